//! Owns `pgmahout backup check`.

use super::super::output::show;
use crate::error::Result;
use crate::operations::Context;
use crate::operations::backup::check;
use clap::Args;
use std::io::Write;
use std::time::Duration;

/// Say in one line whether the backups are as they should be, for monitoring
///
/// The exit code is 0 when the last good backup of every database is young enough, and the schedule's last try and
/// the last verification went well; else 1. A backup whose verification failed is no good one.
///
/// On a standby or a fenced instance the backups are another instance's affair, and the answer is 0. With --max-age
/// the store is judged there too, which makes sense where the instances share one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup check
  pgmahout backup check --max-age 48
  pgmahout --json backup check | jq -r .status")]
pub struct CheckArgs {
    /// How old the last good backup may be [default: the setting backup_max_age, 26]
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    max_age: Option<u32>,
}

/// Runs it. What it finds decides the exit code.
pub fn run(context: Context, args: &CheckArgs, json: bool) -> Result<()> {
    let max_age = args.max_age.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
    let report = check::run(context, max_age)?;
    show(json, &report, |report| report.text.clone());
    if !report.good {
        let _ = std::io::stdout().flush();
        // It is the answer, not an error of ours, so nothing more is said.
        std::process::exit(1);
    }
    Ok(())
}
