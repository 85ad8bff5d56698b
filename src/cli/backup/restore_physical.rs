//! Owns `pgmahout backup restore-physical`, the way to a physical restore until `backup restore` has it.

use super::super::output::show;
use crate::backups::manifest::{BackupId, Manifest};
use crate::durable::Context as _;
use crate::error::Result;
use crate::instance::parse_mapping;
use crate::operations::Context;
use crate::operations::backup::restore::physical::{self, Options, Report};
use crate::operations::backup::{self};
use crate::progress::{bytes_text, duration_text};
use crate::store::{self, catalog, sealed};
use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Restore a physical backup onto this instance
#[derive(Args, Debug)]
pub struct RestorePhysicalArgs {
    /// Name of the backup, or a file
    from: String,
    /// This instance's name, when the cluster here is to be replaced
    #[arg(long, value_name = "INSTANCE")]
    confirm: Option<String>,
    /// OLD=NEW: where tablespaces go
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<String>,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// Runs it.
pub fn run(context: Context, args: &RestorePhysicalArgs, json: bool) -> Result<()> {
    let _lock = backup::lock(context, "backup restore")?;
    let (mut from, manifest): (Box<dyn Read>, Option<Manifest>) = match args.from.parse::<BackupId>() {
        Ok(id) => {
            let store = store::open(context.instance)?;
            let manifest = catalog::find(&*store, id)?.manifest;
            (sealed::open(&*store, context.instance, &manifest)?, Some(manifest))
        }
        Err(_) => {
            let path = Path::new(&args.from);
            (Box::new(File::open(path).on("open", path)?), None)
        }
    };
    let mapping: Result<Vec<_>> = args.tablespace_mapping.iter().map(|text| parse_mapping(text)).collect();
    let options = Options {
        confirm: args.confirm.clone(),
        tablespace_mapping: mapping?.concat(),
        dry_run: args.dry_run,
    };
    let report = physical::run(context, &mut from, manifest.as_ref(), &options)?;
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    show(json, &report, text);
    Ok(())
}

fn text(report: &Report) -> String {
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
