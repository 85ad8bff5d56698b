//! Owns the arguments and the output of the commands about sessions: ps, locks, outliers, kill, psql.

use super::output::{show, table};
use crate::error::{Error, Result};
use crate::operations::Context;
use crate::operations::activity::{self, Session, kill, locks, outliers, psql};
use crate::postgres::log::one_line;
use crate::progress::duration_text;
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;

/// Show what the client sessions do now
///
/// A session runs for as long as its statement; idle in transaction, for as long as its transaction. Passwords
/// after the word PASSWORD are masked. Statements are cut in the table; --json has all that the server keeps of
/// them (its setting track_activity_query_size).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout ps
  pgmahout ps --all                    idle ones too
  pgmahout ps --json | jq '.sessions[] | select(.running_seconds > 60)'")]
pub struct PsArgs {
    /// Also those that are idle
    #[arg(long, short)]
    all: bool,
}

/// Show who waits for whom, and the exclusive locks that are held
///
/// Held are ExclusiveLock and AccessExclusiveLock; a transaction that has written holds one on itself.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout locks
  pgmahout locks --json | jq '.waiting[] | [.pid, .blockers[].pid]'
  pgmahout kill 4711                   the statement of the one that blocks")]
pub struct LocksArgs {}

/// Show the statements that took the most time, by pg_stat_statements
///
/// The extension is used in whatever database it is, and created in the database postgres of a primary where it is
/// only preloaded. A new cluster of the recipe preloads it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout outliers
  pgmahout outliers -n 50 --json | jq '.statements[] | select(.mean_ms > 100)'
  pgmahout outliers --reset            begin to count anew")]
pub struct OutliersArgs {
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Set all counters to zero, and show nothing
    #[arg(long, conflicts_with = "lines")]
    reset: bool,
}

/// Cancel what a session does, or end it
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout kill 4711                   cancel its statement; its transaction fails
  pgmahout kill 4711 --force           end the session
  pgmahout kill --all --force          end all client sessions")]
pub struct KillArgs {
    /// Process id of the session, as `pgmahout ps` shows it
    #[arg(required_unless_present = "all", conflicts_with = "all", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// All client sessions
    #[arg(long)]
    all: bool,
    /// End the session, not only its statement
    #[arg(long, short)]
    force: bool,
}

/// Open psql on this instance, as its superuser
///
/// It is the psql of the server's programs, else the one in PATH. Its own arguments come after `--`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout psql
  pgmahout psql -d shop -- -c 'SELECT count(*) FROM orders'
  pgmahout psql -d shop < schema.sql")]
pub struct PsqlArgs {
    /// Database
    #[arg(long, short, value_name = "DATABASE", default_value = "postgres")]
    database: String,
    /// Arguments of psql
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// `pgmahout ps`.
pub fn ps(context: Context, args: &PsArgs, json: bool) -> Result<()> {
    let report = activity::run(context, args.all)?;
    show(json, &report, |report| ps_text(report, args.all));
    Ok(())
}

/// `pgmahout locks`.
pub fn locks(context: Context, json: bool) -> Result<()> {
    show(json, &locks::run(context)?, locks_text);
    Ok(())
}

/// `pgmahout outliers`.
pub fn outliers(context: Context, args: &OutliersArgs, json: bool) -> Result<()> {
    show(json, &outliers::run(context, args.lines, args.reset)?, outliers_text);
    Ok(())
}

/// `pgmahout kill`.
pub fn kill(context: Context, args: &KillArgs, json: bool) -> Result<()> {
    let whom = args.pid.map_or(kill::Whom::All, kill::Whom::One);
    show(json, &kill::run(context, whom, args.force)?, kill_text);
    Ok(())
}

/// `pgmahout psql`: returns only when psql cannot be started.
pub fn psql(context: Context, args: &PsqlArgs) -> Result<()> {
    let mut command = psql::command(context, &args.database, &args.arguments)?;
    let program = command.get_program().to_string_lossy().into_owned();
    Err(Error::Spawn { program, source: command.exec() })
}

/// So much of a statement stands in a table.
const STATEMENT_WIDTH: usize = 60;

/// So much where there are two of them in a line.
const HALF_WIDTH: usize = 40;

/// A text of somebody else in a table: on one line, and not longer than that.
fn cell(text: Option<&str>, width: usize) -> String {
    let Some(text) = text else { return "-".into() };
    let line = one_line(text);
    match line.char_indices().nth(width) {
        None => line,
        Some(_) => line.chars().take(width - 1).chain(['…']).collect(),
    }
}

fn name(text: &Option<String>) -> String {
    cell(text.as_deref(), 63)
}

fn seconds_text(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".into(), duration_text)
}

fn milliseconds_text(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.1} ms") } else { duration_text(ms / 1000.0) }
}

fn ps_text(report: &activity::Report, all: bool) -> String {
    if report.sessions.is_empty() {
        let instance = &report.instance;
        return match all {
            true => format!("{instance} has no client sessions"),
            false => format!("no client session of {instance} does anything; --all shows idle ones"),
        };
    }
    let rows = report.sessions.iter().map(|session| {
        [
            session.pid.to_string(),
            name(&session.state),
            name(&session.source),
            name(&session.user),
            name(&session.database),
            session.client.clone().unwrap_or_else(|| "local".into()),
            seconds_text(session.running_seconds),
            name(&session.waiting_on),
            cell(session.query.as_deref(), STATEMENT_WIDTH),
        ]
    });
    let headings =
        ["PID", "STATE", "SOURCE", "USER", "DATABASE", "CLIENT", "RUNNING FOR", "WAITING ON", "QUERY"];
    table(&headings, rows)
}

/// Who it is, where the server's own processes stand beside clients.
fn who(session: &Session) -> String {
    match session.kind.as_str() {
        "client backend" => session.pid.to_string(),
        "prepared transaction" => "a prepared transaction (see pg_prepared_xacts)".into(),
        kind => format!("{} ({kind})", session.pid),
    }
}

fn locks_text(report: &locks::Report) -> String {
    let mut text = String::new();
    if report.waiting.is_empty() {
        text.push_str(&format!("nobody waits for a lock on {}\n", report.instance));
    } else {
        let rows = report.waiting.iter().flat_map(|waiting| {
            // One whose blocker is gone already stands there all the same.
            let blockers = waiting.blockers.iter().map(Some);
            let blockers = blockers.chain(waiting.blockers.is_empty().then_some(None));
            blockers.map(|blocker| {
                [
                    who(&waiting.session),
                    seconds_text(waiting.waiting_seconds),
                    cell(Some(&waiting.lock.object), 63),
                    waiting.lock.mode.clone(),
                    cell(waiting.session.query.as_deref(), HALF_WIDTH),
                    blocker.map_or_else(|| "-".into(), who),
                    blocker.map_or_else(|| "-".into(), |blocker| name(&blocker.state)),
                    blocker.map_or_else(|| "-".into(), |blocker| cell(blocker.query.as_deref(), HALF_WIDTH)),
                ]
            })
        });
        let headings =
            ["PID", "WAITING", "FOR", "MODE", "QUERY", "BLOCKED BY", "ITS STATE", "ITS LAST QUERY"];
        text.push_str(&table(&headings, rows));
    }
    text.push('\n');
    if report.held.is_empty() {
        text.push_str("no exclusive locks are held\n");
        return text;
    }
    let rows = report.held.iter().map(|held| {
        [
            who(&held.session),
            cell(Some(&held.lock.object), 63),
            held.lock.mode.clone(),
            seconds_text(held.age_seconds),
            name(&held.session.source),
            name(&held.session.user),
            name(&held.session.database),
            cell(held.session.query.as_deref(), HALF_WIDTH),
        ]
    });
    let headings = ["PID", "HOLDS", "MODE", "AGE", "SOURCE", "USER", "DATABASE", "QUERY"];
    text.push_str(&table(&headings, rows));
    text
}

fn outliers_text(report: &outliers::Report) -> String {
    if report.reset {
        return format!("{} counts its statements anew", report.instance);
    }
    let rows = report.statements.iter().map(|statement| {
        [
            milliseconds_text(statement.total_ms),
            format!("{:.1} %", statement.share * 100.0),
            statement.calls.to_string(),
            milliseconds_text(statement.mean_ms),
            statement.io_ms.map_or_else(|| "-".into(), milliseconds_text),
            name(&statement.user),
            name(&statement.database),
            cell(statement.query.as_deref(), STATEMENT_WIDTH),
        ]
    });
    let mut text = table(&["TOTAL", "SHARE", "CALLS", "MEAN", "I/O", "USER", "DATABASE", "QUERY"], rows);
    if !report.io_timing {
        text.push_str("\ntrack_io_timing is off: the time of I/O is not known\n");
    }
    text
}

fn kill_text(report: &kill::Report) -> String {
    let (instance, ended) = (&report.instance, report.action == "ended");
    let what = |session: &Session| {
        let user = name(&session.user);
        let database = session.database.as_ref().map(|database| format!(" in {}", cell(Some(database), 63)));
        let query = cell(session.query.as_deref(), STATEMENT_WIDTH);
        format!("{} ({user}{}): {query}", session.pid, database.unwrap_or_default())
    };
    match report.sessions.as_slice() {
        [] if ended => format!("{instance} has no other client sessions"),
        [] => format!("no client session of {instance} runs a statement; --force ends the sessions"),
        sessions => {
            let head = match (sessions.len(), ended) {
                (1, true) => "ended session".to_owned(),
                (1, false) => "cancelled the statement of session".to_owned(),
                (n, true) => format!("ended {n} sessions:\n "),
                (n, false) => format!("cancelled the statements of {n} sessions:\n "),
            };
            let lines: Vec<_> = sessions.iter().map(what).collect();
            format!("{head} {}", lines.join("\n  "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_in_its_cell() {
        assert_eq!(cell(None, 5), "-");
        assert_eq!(cell(Some("SELECT\n   1\u{1b}[2J"), 60), "SELECT 1\\u{1b}[2J");
        assert_eq!(cell(Some("äöüäö"), 5), "äöüäö");
        assert_eq!(cell(Some("äöüäöü"), 5), "äöüä…");
    }
}
