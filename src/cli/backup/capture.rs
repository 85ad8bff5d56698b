//! Owns `pgmahout backup capture`.

use super::super::output::show;
use crate::backups::manifest::{By, Kind};
use crate::error::Result;
use crate::operations::Context;
use crate::operations::backup::capture::{self, Options, Report};
use crate::progress::{bytes_text, duration_text};
use clap::Args;

/// Take a backup of one database, or of the whole cluster
///
/// It goes straight into the store and is in the list once its bytes and its manifest are safe there. On a standby
/// it spares the primary the work.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup capture
  pgmahout backup capture shop
  pgmahout backup capture shop --compress gzip:9
  pgmahout backup capture --physical            the whole cluster
  pgmahout --json backup capture | jq -r .id")]
pub struct CaptureArgs {
    /// Database [default: the only one beside postgres, else postgres]
    #[arg(conflicts_with = "physical")]
    database: Option<String>,
    /// A base backup of the whole cluster, with the WAL that makes it consistent
    #[arg(long)]
    physical: bool,
    /// METHOD[:LEVEL]: zstd, gzip or none [default: the setting backup_compression]
    #[arg(long, value_name = "METHOD")]
    compress: Option<String>,
    /// Processors to use [default: the setting backup_jobs]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// The number is to be greater than this
    #[arg(long, hide = true, value_name = "NUMBER")]
    after: Option<u32>,
}

/// Runs it.
pub fn run(context: Context, args: &CaptureArgs, json: bool) -> Result<()> {
    let report = capture::run(
        context,
        &Options {
            database: args.database.clone(),
            kind: if args.physical { Kind::Physical } else { Kind::Logical },
            by: By::Hand,
            compression: args.compress.clone(),
            jobs: args.jobs.map(usize::from),
            after: args.after,
            dry_run: args.dry_run,
        },
    )?;
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    show(json, &report, text);
    Ok(())
}

fn text(report: &Report) -> String {
    let (id, store) = (report.id, &report.store);
    let what = report.database.as_deref().unwrap_or("the whole cluster");
    let Some(manifest) = &report.manifest else {
        let size = bytes_text(report.database_size);
        return format!("would back up {what} ({size} on disk) of {} as {id} to {store}", report.instance);
    };
    format!(
        "{id}: {what} of {}, {} from {} in {}, to {store}",
        report.instance,
        bytes_text(manifest.size),
        bytes_text(manifest.content_size),
        duration_text(report.seconds)
    )
}
