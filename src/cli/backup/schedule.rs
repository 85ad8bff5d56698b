//! Owns `pgmahout backup schedule`.

use super::super::output::show;
use crate::backups::schedule::Plan;
use crate::error::Result;
use crate::operations::Context;
use crate::operations::backup::schedule::{self, Report};
use clap::Args;

/// Show the schedule of backups, or turn it on with a plan, or off
///
/// auto-month: every night, kept are 7 daily, 5 weekly, 10 by hand. auto-week: 7 daily, 1 weekly, 5 by hand. Settings
/// that say other numbers (backup_keep_daily, …_weekly, …_manual) win. It is recorded in the cluster: a standby that is
/// promoted goes on with it, and a fork does not.
///
/// Under the recipe's supervisor the program `backups` runs it. Elsewhere a systemd timer or a line of a crontab has
/// to: both are printed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup schedule
  pgmahout backup schedule auto-month
  pgmahout backup schedule off")]
pub struct ScheduleArgs {
    /// auto-month, auto-week, or off
    #[arg(value_parser = parse)]
    plan: Option<Wanted>,
}

/// What is to be recorded.
#[derive(Clone, Copy, Debug)]
struct Wanted(Option<Plan>);

fn parse(text: &str) -> std::result::Result<Wanted, String> {
    match (text, Plan::named(text)) {
        ("off", _) => Ok(Wanted(None)),
        (_, Some(plan)) => Ok(Wanted(Some(plan))),
        _ => Err("it is auto-month, auto-week or off".into()),
    }
}

/// Runs it.
pub fn run(context: Context, args: &ScheduleArgs, json: bool) -> Result<()> {
    let report = match args.plan {
        None => schedule::show(context)?,
        Some(Wanted(plan)) => schedule::set(context, plan)?,
    };
    show(json, &report, text);
    Ok(())
}

fn text(report: &Report) -> String {
    let Some(plan) = &report.plan else {
        return format!("{}: the schedule is off", report.instance);
    };
    let keep = report.keep;
    let mut text = format!(
        "{}: {plan}, every night from {} UTC on; kept are {} daily, {} weekly, {} by hand",
        report.instance, report.time, keep.daily, keep.weekly, keep.manual
    );
    for said in &report.overridden {
        text.push_str(&format!("\nset: {said}"));
    }
    if report.standby {
        text.push_str("\nit is a standby: its primary takes them, and this one goes on when it is promoted");
    }
    if let Some(install) = &report.install {
        text.push_str(&format!(
            "\n\nNothing runs it here yet. /etc/systemd/system/pgmahout-backup.service:\n\n{}\n\
             /etc/systemd/system/pgmahout-backup.timer:\n\n{}\n\
             and then: systemctl enable --now pgmahout-backup.timer\n\nOr a line of this account's crontab:\n\n{}",
            install.service, install.timer, install.cron
        ));
    }
    text
}
