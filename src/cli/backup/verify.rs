//! Owns `pgmahout backup verify`.

use super::super::output::show;
use crate::backups::manifest::BackupId;
use crate::error::{Error, Result};
use crate::operations::Context;
use crate::operations::backup::verify::{self, Options, Report};
use crate::progress::duration_text;
use clap::Args;
use std::path::PathBuf;

/// Prove a backup: restore it into a throw-away cluster and compare
///
/// The cluster is made with this instance's own build, reached by nobody else, and removed again. Tables and rows are
/// compared with the manifest, and amcheck looks at tables and indexes where it is here. What came of it is in the
/// list from then on.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup verify b001
  pgmahout backup verify b001 --directory /mnt/large     where there is room")]
pub struct VerifyArgs {
    /// Name of the backup
    id: BackupId,
    /// Where the throw-away cluster lies [default: the setting state_directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Jobs at the same time [default: the setting backup_jobs]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Do not remove its files
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub fn run(context: Context, args: VerifyArgs, json: bool) -> Result<()> {
    let directory = args.directory.map(|path| std::path::absolute(&path).unwrap_or(path));
    let options = Options { directory, keep: args.keep, jobs: args.jobs.map(usize::from) };
    let report = verify::run_with(context, args.id, &options)?;
    if !report.good {
        if let Some(kept) = &report.kept {
            context.progress.step(format!("what there is of it is in {}", kept.display()));
        }
        return Err(Error::NotVerified { id: report.id.to_string(), why: report.text });
    }
    show(json, &report, text);
    Ok(())
}

fn text(report: &Report) -> String {
    let kept = report.kept.as_ref().map(|path| format!("\nthe cluster is kept in {}", path.display()));
    let seconds = duration_text(report.seconds);
    format!("{} is good: {}; {seconds}{}", report.id, report.text, kept.unwrap_or_default())
}
