//! Owns `pgmahout backup restore`.

use super::super::OtherArgs;
use super::super::output::show;
use crate::error::Result;
use crate::instance::parse_mapping;
use crate::operations::Context;
use crate::operations::backup::restore::source::Source;
use crate::operations::backup::restore::{self, Options, Report, logical, physical};
use crate::progress::{bytes_text, duration_text};
use clap::Args;

/// Restore a backup, over a database or into a new one
///
/// It goes into a new database first, is compared with its manifest, and only then takes the old one's place, which
/// is dropped last: at any failure the old one is as it was. Sessions in it are ended at that moment.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup restore b001 copy             into a database that may not be there yet
  pgmahout backup restore b001 --confirm db.0   over the database that it was taken of
  pgmahout backup restore b002 --confirm db.0   a physical one: over the whole cluster
  pgmahout backup restore 'https://…' shop      from a link
  pgmahout backup restore - shop < b001.dump
  dotcloud info db.0 | dotcloud run db.1 pgmahout backup restore b001 shop --from-blurb")]
pub struct RestoreArgs {
    /// Name of a backup, file, http(s) URL, or `-` for stdin
    source: String,
    /// Database [default: the one that the backup was taken of]
    database: Option<String>,
    /// Name of this instance: what the database holds may be lost
    #[arg(long, value_name = "INSTANCE")]
    confirm: Option<String>,
    /// Jobs at the same time [default: the setting backup_jobs]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Without owners and grants: all belongs to the database's owner
    #[arg(long)]
    no_owner: bool,
    /// Where a tablespace of a physical backup goes here; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<String>,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    #[command(flatten)]
    other: OtherArgs,
}

/// Runs it.
pub fn run(context: Context, args: RestoreArgs, json: bool) -> Result<()> {
    let source = match args.other.blurb()? {
        Some(blurb) => {
            Source::Other { blurb: Box::new(blurb), host_key: args.other.host_key, id: args.source.parse()? }
        }
        None => Source::parse(&args.source),
    };
    let options = Options {
        source,
        database: args.database,
        confirm: args.confirm,
        jobs: args.jobs.map(usize::from),
        no_owner: args.no_owner,
        tablespace_mapping: parse_mapping(&args.tablespace_mapping.join(","))?,
        dry_run: args.dry_run,
    };
    match restore::run(context, &options)? {
        Report::Logical(report) => {
            for warning in &report.warnings {
                context.progress.warn(warning);
            }
            show(json, &report, logical_text);
        }
        Report::Physical(report) => {
            for warning in &report.warnings {
                context.progress.warn(warning);
            }
            show(json, &report, physical_text);
        }
    }
    Ok(())
}

fn logical_text(report: &logical::Report) -> String {
    let logical::Report { instance, source, database, .. } = report;
    if report.dry_run {
        let confirm = report.loses.as_ref();
        let confirm = confirm.map(|holds| format!("\nneeds --confirm {instance}: it holds {holds}"));
        return format!(
            "would restore {source} into {database} of {instance}{}",
            confirm.unwrap_or_default()
        );
    }
    let (tables, rows) = (report.tables, report.rows);
    let ended = match report.sessions_ended {
        0 => String::new(),
        1 => "; 1 session was ended".to_owned(),
        n => format!("; {n} sessions were ended"),
    };
    let seconds = duration_text(report.seconds);
    format!(
        "{database} of {instance} is restored from {source}: {tables} {}, {rows} rows, {seconds}{ended}",
        if tables == 1 { "table" } else { "tables" }
    )
}

fn physical_text(report: &physical::Report) -> String {
    if report.dry_run {
        return format!("would restore onto {}: {}", report.instance, report.plan.why);
    }
    let timeline = report.timeline.map_or(0, |timeline| timeline.0);
    let mut text = format!(
        "{} restored onto {} in {}; it writes on timeline {timeline}",
        bytes_text(report.bytes),
        report.instance,
        duration_text(report.seconds)
    );
    if report.password_set {
        text.push_str("; its superuser has this instance's password now");
    }
    if let Some(kept) = &report.kept {
        text.push_str(&format!("; the old cluster is kept in {}", kept.display()));
    }
    text
}
