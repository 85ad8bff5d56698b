//! Owns `pgmahout backup download`.

use super::super::output::show;
use crate::backups::manifest::BackupId;
use crate::error::Result;
use crate::operations::Context;
use crate::operations::backup::download::{self, Options, Report, Target};
use crate::progress::{bytes_text, duration_text};
use clap::Args;
use std::path::PathBuf;

/// Fetch a backup into a file, or to standard output
///
/// Its checksum is verified while it streams. A download that breaks off is kept as FILE.part: the same command goes
/// on after it. Of an encrypted backup it is what age decrypts, unless --decrypt is said.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup download b001
  pgmahout backup download b001 shop.dump
  pgmahout backup download b001 - | pg_restore --list
  pgmahout backup download b002 --decrypt")]
pub struct DownloadArgs {
    /// Name of the backup
    id: BackupId,
    /// File or directory, or - for standard output [default: b001.dump and the like, here]
    file: Option<PathBuf>,
    /// As it was before it was encrypted; it cannot be resumed
    #[arg(long)]
    decrypt: bool,
    /// Overwrite FILE
    #[arg(long, short = 'f')]
    force: bool,
}

/// Runs it.
pub fn run(context: Context, args: DownloadArgs, json: bool) -> Result<()> {
    let options = Options { id: args.id, decrypt: args.decrypt, force: args.force };
    let file = args.file.unwrap_or_else(|| ".".into());
    if file.as_os_str() == "-" {
        // Standard output is the backup's: there is no report, with --json or without it.
        download::run(context, options, Target::Stream(&mut std::io::stdout().lock()))?;
        return Ok(());
    }
    show(json, &download::run(context, options, Target::File(file))?, text);
    Ok(())
}

fn text(report: &Report) -> String {
    let file = report.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let decrypted = if report.decrypted { ", decrypted" } else { "" };
    let resumed = match report.resumed_from {
        0 => String::new(),
        bytes => format!(", {} of them from before", bytes_text(bytes)),
    };
    format!(
        "{} is in {}: {}{resumed}{decrypted}, checksum verified, in {}",
        report.id,
        file.strip_prefix("./").unwrap_or(&file),
        bytes_text(report.size),
        duration_text(report.seconds)
    )
}
