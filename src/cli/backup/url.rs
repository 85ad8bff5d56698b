//! Owns `pgmahout backup url`.

use super::super::output::{answer, say};
use crate::backups::manifest::BackupId;
use crate::error::Result;
use crate::operations::Context;
use crate::operations::backup::url;
use clap::Args;
use std::time::Duration;

/// Give a link to a backup, good for ten minutes, for anyone who has it
///
/// Backups on S3 are linked to directly. Those in a directory are given out by `pgmahout serve`, which has to run. The
/// link cannot be changed to lead to another backup or to last longer. An encrypted backup is downloaded as it is
/// stored: encrypted.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup url b001
  curl -O \"$(pgmahout backup url b001)\"
  pgmahout backup url b001 --expires 3600
  pgmahout --json backup url b001 | jq -r .url")]
pub struct UrlArgs {
    /// Name of the backup
    id: BackupId,
    /// Seconds that the link is good for [default: the setting link_expires, 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    expires: Option<u32>,
}

/// Runs it.
pub fn run(context: Context, args: &UrlArgs, json: bool) -> Result<()> {
    let expires = args.expires.map(|seconds| Duration::from_secs(seconds.into()));
    let report = url::run(context, args.id, expires)?;
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    // Nothing but the link, so that it can be used in $( ).
    if json {
        answer(&report)
    } else {
        say(&report.url)
    }
    Ok(())
}
