//! Owns `pgmahout backup auto`.

use super::super::output::show;
use crate::backups::schedule::Due;
use crate::error::Result;
use crate::instance::Instance;
use crate::operations::Context;
use crate::operations::backup::auto::{self, Report};
use crate::progress::time_text;
use clap::Args;

/// Do what the schedule asks for now: take the backups that are due, remove those that are not kept, verify one
///
/// It does nothing, and says so, on a standby, on a fenced or stopped instance, and while the schedule is off. What was
/// missed is caught up once; what failed is tried again after a while.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup auto --dry-run       what would be done, and why
  pgmahout backup auto                 from a timer
  pgmahout backup auto --loop          for supervisor")]
pub struct AutoArgs {
    /// Say what would be done and why, and do nothing
    #[arg(long, short = 'n', conflicts_with = "forever")]
    dry_run: bool,
    /// Go on until it is interrupted
    #[arg(long = "loop")]
    forever: bool,
}

/// Runs it.
pub fn run(
    context: Context,
    args: &AutoArgs,
    json: bool,
    reload: &dyn Fn() -> Result<Instance>,
) -> Result<()> {
    if args.forever {
        return auto::run_loop(context.progress, reload);
    }
    let report = auto::run(context, args.dry_run)?;
    show(json, &report, text);
    Ok(())
}

fn text(report: &Report) -> String {
    if let Some(why) = &report.idle {
        return format!("nothing to do: {why}");
    }
    let mut lines = Vec::new();
    for database in &report.databases {
        let name = &database.name;
        lines.push(match (&database.due, database.taken) {
            (Due::Now { reason }, Some(id)) => format!("{name}: taken as {id}: {reason}"),
            (Due::Now { reason }, None) => format!("{name}: would be backed up: {reason}"),
            (Due::Later { at, reason }, _) => format!("{name}: not before {}: {reason}", time_text(*at)),
        });
    }
    lines.extend(report.retention.iter().map(|decision| {
        let reason = match (report.dry_run, decision.reason.strip_prefix("removed: ")) {
            (true, Some(why)) => format!("would be removed: {why}"),
            _ => decision.reason.clone(),
        };
        format!("{} {reason}", decision.id)
    }));
    if let Some(verifying) = &report.verification {
        let verb = if verifying.done { "was verified" } else { "is to be verified" };
        lines.push(format!("{} {verb}: {}", verifying.id, verifying.reason));
    }
    lines.join("\n")
}
