//! Owns `pgmahout migrate`.

use super::output::{answer, show};
use crate::blurb::Secret;
use crate::error::{Error, Result, printable};
use crate::operations::migrate::{self, Abandoned, App, From, Options, Report, To};
use crate::process;
use crate::progress::{Progress, bytes_text, duration_text, time_text};
use clap::Args;
use serde_json::json;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Move an app to another database, with the way back
///
/// It runs on the operator's machine; `herd pg:migrate` starts it. The app is stopped, its database copied and
/// compared, its config variables pointed to the copy, and the app started. A journal in
/// ~/.local/state/pgmahout/migrations is written before and after each step: Ctrl-C and any failure undo what was
/// done; after a kill --resume goes on and --rollback goes back. The old database is never removed, and --rollback
/// works while it is there.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  herd pg:migrate --from SHARED_DATABASE_URL --plan ronin --app shop
  herd pg:migrate --rehearse --app shop
  herd pg:migrate --status --app shop
  herd pg:migrate --rollback --app shop
  pgmahout migrate --platform scripts/platforms/dotcloud --herd scripts/herd --app shop --to db.1")]
pub struct MigrateArgs {
    /// Directory of the platform's executables
    #[arg(long, value_name = "DIR")]
    platform: PathBuf,
    /// The herd command
    #[arg(long, value_name = "PATH")]
    herd: PathBuf,
    /// The app
    #[arg(long)]
    app: String,
    /// Config variable of the database that it moves from [default: SHARED_DATABASE_URL]
    #[arg(long, value_name = "VARIABLE", conflicts_with = "url")]
    from: Option<String>,
    /// File with the URL of a database outside the herd that it moves from; `-` is stdin. Its sslmode and sslrootcert
    /// are followed, by the files of the machines where the agents run
    #[arg(long, value_name = "FILE")]
    url: Option<String>,
    /// Instance that it moves to
    #[arg(long, value_name = "INSTANCE", conflicts_with = "plan")]
    to: Option<String>,
    /// Plan of a new instance that it moves to
    #[arg(long)]
    plan: Option<String>,
    /// Name of the new attachment
    #[arg(long)]
    colour: Option<String>,
    /// Try it out with a fork: takes nothing down, tells how long it would be down
    #[arg(long)]
    rehearse: bool,
    /// Only to a newer major version of PostgreSQL
    #[arg(long)]
    newer: bool,
    /// Without owners and grants: all belongs to the target database's owner
    #[arg(long)]
    no_owner: bool,
    /// Connections that copy at the same time
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Seconds to wait until the last client has gone
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86400))]
    wait: u64,
    /// End the sessions of clients that stay
    #[arg(long)]
    terminate: bool,
    /// Check, say what would be done, and do nothing
    #[arg(long, short = 'n', conflicts_with_all = ["resume", "rollback", "abandon", "status"])]
    dry_run: bool,
    /// Name of the app: lose what was written to the new database, or free the source
    #[arg(long, value_name = "APP")]
    confirm: Option<String>,
    /// Go on with one that was killed
    #[arg(long, conflicts_with_all = ["rollback", "abandon", "status", "rehearse", "from", "url", "to", "plan"])]
    resume: bool,
    /// Go back: undo one that was killed, or return to the old database after one that was done
    #[arg(long, conflicts_with_all = ["abandon", "status", "rehearse", "from", "url", "to", "plan"])]
    rollback: bool,
    /// Free a source whose migration can be completed nowhere, as its journal is lost
    #[arg(long, conflicts_with_all = ["status", "rehearse", "to", "plan"])]
    abandon: bool,
    /// Show the last migrations of the app, step by step
    #[arg(long, conflicts_with_all = ["rehearse", "from", "url", "to", "plan"])]
    status: bool,
}

/// Runs it.
pub fn run(progress: &Progress, args: &MigrateArgs, json: bool) -> Result<()> {
    let app = App { name: args.app.clone(), platform: args.platform.clone(), herd: args.herd.clone() };
    if args.status {
        let all = migrate::status(progress, &app)?;
        if json {
            answer(&json!({"app": app.name, "migrations": all}));
        } else {
            let text: Vec<_> = all.iter().take(5).map(text).collect();
            let text = if text.is_empty() { "no migration is known here".into() } else { text.join("\n") };
            super::say(text.trim_end());
        }
        return Ok(());
    }
    let report = if args.resume {
        migrate::resume(progress, &app)?
    } else if args.rollback {
        migrate::rollback(progress, &app, args.confirm.as_deref())?
    } else {
        let options = options(progress, args)?;
        if args.abandon {
            let report = migrate::abandon(progress, &app, &options, args.confirm.as_deref())?;
            show(json, &report, abandoned_text);
            return Ok(());
        }
        migrate::run(progress, &app, &options)?
    };
    show(json, &report, text);
    Ok(())
}

fn options(progress: &Progress, args: &MigrateArgs) -> Result<Options> {
    let from = match (&args.url, &args.from) {
        (Some(url), _) => From::Url(read_url(progress, url)?),
        (None, from) => From::Variable(from.clone().unwrap_or_else(|| "SHARED_DATABASE_URL".into())),
    };
    Ok(Options {
        from,
        to: match &args.to {
            Some(to) => To::Instance(to.clone()),
            None => To::Plan(args.plan.clone()),
        },
        colour: args.colour.clone(),
        rehearse: args.rehearse,
        newer: args.newer,
        no_owner: args.no_owner,
        jobs: args.jobs.map(usize::from),
        wait: Duration::from_secs(args.wait),
        terminate: args.terminate,
        dry_run: args.dry_run,
    })
}

/// No URL is longer.
const URL_LIMIT: u64 = 16 << 10;

const URL_WAIT: Duration = Duration::from_secs(120);

/// One that stands among the arguments has no password: that was refused before.
fn read_url(progress: &Progress, word: &str) -> Result<Secret> {
    let usage = |why: &str, hint: &str| Error::MigrateUsage { why: why.into(), hint: hint.into() };
    if word.contains("://") {
        return Ok(Secret::new(word));
    }
    let bytes = if word == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(usage("the URL would come from a terminal", "put it into a file: --url FILE"));
        }
        let read = process::read_within(URL_WAIT, move || {
            let mut bytes = Vec::new();
            stdin.lock().take(URL_LIMIT).read_to_end(&mut bytes).map(|_| bytes)
        })?;
        read.ok_or_else(|| usage("no URL came on stdin within 120 s", "close stdin after it"))?
    } else {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(word);
        let meta = file.as_ref().ok().and_then(|file| file.metadata().ok());
        if meta.is_some_and(|meta| meta.is_file() && meta.permissions().mode() & 0o077 != 0) {
            let file = printable(word);
            progress.warn(format!("others can read {file}, which may hold a password: chmod 600 {file}"));
        }
        file.and_then(|file| file.take(URL_LIMIT).read_to_end(&mut bytes)).map(|_| bytes)
    };
    let path = if word == "-" { Path::new("stdin") } else { Path::new(word) };
    let bytes = bytes.map_err(|source| Error::File { action: "read", path: path.into(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match lines.next().unwrap_or_default() {
        "" => Err(usage("there is no URL where it should be", "postgres://USER:PASSWORD@HOST:PORT/DATABASE")),
        text => Ok(Secret::new(text)),
    }
}

fn abandoned_text(report: &Abandoned) -> String {
    let lock = &report.was["lock"];
    let said = |name: &str| lock[name].as_str().map(printable).unwrap_or_else(|| "?".into());
    match lock.is_object() {
        true => format!(
            "{} is free again; the migration {} that had it was begun by {} at {}",
            report.database,
            said("id"),
            said("by"),
            said("since")
        ),
        false => format!("no migration had {}", report.database),
    }
}

fn text(report: &Report) -> String {
    use migrate::{Kind, Mark, State};
    let place = |place: &migrate::Place| match (&place.instance, &place.address) {
        (Some(instance), _) => instance.clone(),
        (_, Some(address)) => format!("{} of {address}", place.database),
        _ => "a new database".to_owned(),
    };
    let from = report.source.as_ref().map_or("?".to_owned(), place);
    let to = place(&report.target);
    let what = match report.kind {
        Kind::Migration => "migration",
        Kind::Rehearsal => "rehearsal",
    };
    let state = match (report.dry_run, report.kind, report.state) {
        (true, ..) => "would go like this",
        (_, Kind::Rehearsal, State::Undone) if report.error.is_none() => "came to its end, and is cleaned up",
        (_, _, State::Running) => "is not finished",
        (_, _, State::Undoing) => "is on its way back",
        (_, _, State::Undone) => "was undone",
        (_, _, State::Done) => "is done",
        (_, _, State::RollingBack) => "is being rolled back",
        (_, _, State::KeepingNew) => "was not rolled back, which is being undone",
        (_, _, State::RolledBack) => "was rolled back",
    };
    let id = if report.dry_run { String::new() } else { format!(" {}", report.id) };
    let mut text = format!("{what}{id} of {} from {from} to {to} {state}\n", report.app);
    if !report.dry_run {
        text.push_str(&format!("  begun {} by {}\n", time_text(report.started as i64), report.by));
    }
    for (title, steps) in [("", &report.steps), ("back to the old database:\n", &report.back)] {
        if steps.is_empty() {
            continue;
        }
        text.push_str(title);
        for went in steps {
            let took = went.seconds.map(duration_text).unwrap_or_default();
            let mark = match went.state {
                Mark::Waiting => "",
                Mark::Doing => "begun",
                Mark::Done => "done",
                Mark::Undoing => "not undone",
                Mark::Undone => "undone",
            };
            let columns = if report.dry_run { String::new() } else { format!("{mark:<10} {took:>8}  ") };
            text.push_str(&format!("  {columns}{:<15} {}\n", went.step, went.what));
            if let Some(error) = &went.error {
                text.push_str(&format!("    {error}\n"));
            }
        }
    }
    let mut line = |line: String| text.push_str(&format!("{line}\n"));
    if let Some(copied) = &report.copied {
        let bytes = bytes_text(copied.bytes);
        let tables = if copied.tables == 1 { "table" } else { "tables" };
        line(format!("copied: {} {tables}, {} rows, {bytes}", copied.tables, copied.rows));
    }
    if let Some(seconds) = report.down_seconds {
        line(format!("{} was down for {}", report.app, duration_text(seconds)));
    }
    if let Some(seconds) = report.predicted_seconds {
        line(migrate::predicted_text(seconds));
    }
    if let Some(error) = &report.error {
        line(format!("failed at {error}"));
    }
    for warning in &report.warnings {
        line(format!("warning: {warning}"));
    }
    for next in &report.next {
        line(format!("- {next}"));
    }
    text
}
