//! Owns `pgmahout plan`: its arguments, the settings on stdin, its answer as text.

use crate::error::{Error, Result};
use crate::operations::Context;
use crate::operations::plan::{self, Report};
use crate::postgres::plan::Plan;
use crate::process;
use crate::progress::duration_text;
use clap::Args;
use std::io::{IsTerminal, Read};
use std::time::Duration;

/// Show this instance's plan, or give it another: settings of PostgreSQL under a name
///
/// The settings come on stdin, lines as in postgresql.conf. They are applied all or none; those of the former
/// plan that the new one does not name are reset. When a setting needs it the server is restarted; when it does
/// not start with them it gets the former ones back. Followers and forks that are made later carry the plan
/// along.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout plan
  echo 'shared_buffers = 425MB' | pgmahout plan ronin
  pgmahout plan ronin --no-restart < ronin.conf
  pgmahout plan none < /dev/null                  reset the settings of the plan that it has")]
pub struct PlanArgs {
    /// Name of the new plan
    name: Option<String>,
    /// Leave what needs a restart of the server to its next one
    #[arg(long, requires = "name")]
    no_restart: bool,
}

/// Runs it.
pub fn run(context: Context, args: &PlanArgs) -> Result<Report> {
    let report = match &args.name {
        Some(name) => {
            // Its name first: a wrong one need not wait for the settings.
            Plan::parse(name, "")?;
            plan::apply(context, &Plan::parse(name, &read_settings()?)?, !args.no_restart)?
        }
        None => plan::show(context)?,
    };
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    Ok(report)
}

/// No server has so many settings.
const LIMIT: u64 = 64 << 10;

const WAIT: Duration = Duration::from_secs(120);

fn read_settings() -> Result<String> {
    let bad = |why: &str| Error::PlanInput { why: why.into() };
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(bad("this is a terminal"));
    }
    let read = process::read_within(WAIT, move || {
        let mut text = Vec::new();
        stdin.lock().take(LIMIT + 1).read_to_end(&mut text).map(|_| text)
    })?;
    let text = read.ok_or_else(|| bad(&format!("their end did not come within {} s", WAIT.as_secs())))?;
    let text = text.map_err(|source| Error::File { action: "read", path: "stdin".into(), source })?;
    if text.len() as u64 > LIMIT {
        return Err(bad(&format!("they are longer than {LIMIT} bytes")));
    }
    String::from_utf8(text).map_err(|_| bad("they are not UTF-8 text"))
}

/// The plan, a line for each setting.
pub fn text(report: &Report) -> String {
    let mut text = match (&report.plan, report.seconds) {
        (Some(plan), Some(seconds)) => {
            let restarted = if report.restarted == Some(true) { ", server restarted" } else { "" };
            format!("{} has the plan {plan} now, {}{restarted}\n", report.instance, duration_text(seconds))
        }
        (Some(plan), None) => format!("{} has the plan {plan}\n", report.instance),
        (None, _) => format!("{} has no plan\n", report.instance),
    };
    for (name, value) in &report.settings {
        text.push_str(&format!("{name} = {value}\n"));
    }
    if !report.pending_restart.is_empty() {
        text.push_str(&format!("waiting for a restart: {}\n", report.pending_restart.join(", ")));
    }
    text
}
