//! Owns `pgmahout copy`, and the hidden `copy-part` that a migration is made of.

use super::output::{answer, say, show};
use crate::blurb::Secret;
use crate::error::{Error, Result};
use crate::operations::Context;
use crate::operations::copy::check::{self, Checked, Here, Wishes};
use crate::operations::copy::compare::{Change, Compared};
use crate::operations::copy::lock::{self, Done, Lock, Quiet};
use crate::operations::copy::look::{self, Look};
use crate::operations::copy::place::{self, Cleared, Placed, amount};
use crate::operations::copy::source;
use crate::operations::copy::{self, Options, Report};
use crate::process;
use crate::progress::{bytes_text, duration_text};
use crate::sql::Target;
use clap::{Args, Subcommand};
use std::io::{BufRead, IsTerminal, Read};
use std::time::Duration;

/// The caller knows the URL before it starts this.
const URL_WAIT: Duration = Duration::from_secs(120);

/// No URL is this long.
const URL_LIMIT: u64 = 64 << 10;

/// Make a database of this instance a copy of another one, with no disk between
///
/// The other database's URL comes on stdin: it holds a password. Its rows are read in one snapshot, while it is used, by
/// several connections, and go into a new database first, which is compared with it row by row and only then takes its
/// place here: at any failure what is here is as it was. The other one may be of the same major version or an older one.
/// Its URL is followed as by libpq: ?sslmode=verify-full&sslrootcert=FILE checks the server's certificate.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout copy < url                      into a database of the same name, which is empty or not there
  pgmahout copy shop --dry-run < url       whether it can be done, and what would be lost
  pgmahout copy shop --confirm db.1 < url  over what is there
  echo postgres://me:secret@10.0.0.1/shop | pgmahout copy --no-owner")]
pub struct CopyArgs {
    /// Database of this instance [default: one of the other's name]
    database: Option<String>,
    /// Connections that copy at the same time [default: number of processors, 2 at least and 8 at most]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Without owners and grants: all belongs to the database's owner
    #[arg(long)]
    no_owner: bool,
    /// Name of this instance: what the database holds may be lost
    #[arg(long, value_name = "INSTANCE")]
    confirm: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// One step of a migration, on the instance of the source or on that of the target
///
/// The source's URL is the first line of stdin, for the steps that need it; the others read it and do nothing with it.
#[derive(Args, Debug)]
pub struct PartArgs {
    /// End by itself as soon as stdin ends: whoever started this is gone
    #[arg(long, global = true)]
    lifeline: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Args, Debug)]
struct IdArg {
    /// The migration's id: 8 hexadecimal digits
    #[arg(long, value_name = "ID", value_parser = id)]
    id: String,
}

#[derive(Args, Debug)]
struct JobsArg {
    /// Connections at the same time [default: number of processors, 2 at least and 8 at most]
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
}

impl JobsArg {
    fn jobs(&self) -> usize {
        self.jobs.map_or_else(copy::default_jobs, usize::from)
    }
}

#[derive(Args, Debug)]
struct OwnerArg {
    /// Without owners and grants: all belongs to the database's owner
    #[arg(long)]
    no_owner: bool,
}

impl OwnerArg {
    fn wishes(&self) -> Wishes {
        Wishes { no_owner: self.no_owner, replaces: false }
    }
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Source: what it is, who is in it, who has locked it
    Look,
    /// Source: take the lock
    Lock {
        #[command(flatten)]
        id: IdArg,
        /// What the migration says of itself, without secrets: an object with `app` and `by`
        #[arg(long, value_name = "JSON", value_parser = object)]
        note: serde_json::Value,
    },
    /// Source: make it read-only, and wait until its clients are gone
    Quiesce {
        #[command(flatten)]
        id: IdArg,
        /// Seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
        /// End those that stay
        #[arg(long)]
        terminate: bool,
    },
    /// Source: make it as writable as before
    Release(IdArg),
    /// Source: the migration is complete; it stays locked and read-only
    Finish {
        #[command(flatten)]
        id: IdArg,
        /// An object that is added to the lock's note
        #[arg(long, value_name = "JSON", value_parser = object)]
        note: Option<serde_json::Value>,
    },
    /// Source: take the lock away
    Unlock(IdArg),
    /// Source: make it as writable as before and take the lock away, whosesoever it is
    Abandon,
    /// Target: whether the source can be copied to it
    Check {
        /// Database
        database: String,
        #[command(flatten)]
        owner: OwnerArg,
    },
    /// Target: fill a database beside it
    Fill {
        /// Database
        database: String,
        #[command(flatten)]
        id: IdArg,
        #[command(flatten)]
        jobs: JobsArg,
        #[command(flatten)]
        owner: OwnerArg,
    },
    /// Target: compare the copy with the source
    Compare {
        /// Database
        database: String,
        #[command(flatten)]
        id: IdArg,
        #[command(flatten)]
        jobs: JobsArg,
        /// Read the source again
        #[arg(long)]
        again: bool,
    },
    /// Target: the copy takes the database's place
    Place {
        /// Database
        database: String,
        #[command(flatten)]
        id: IdArg,
    },
    /// Target: drop the copy, wherever it is
    Clear {
        /// Database
        database: String,
        #[command(flatten)]
        id: IdArg,
    },
    /// Target: what has changed since the comparison
    Changes {
        /// Database
        database: String,
        #[command(flatten)]
        id: IdArg,
        #[command(flatten)]
        jobs: JobsArg,
    },
}

fn id(text: &str) -> std::result::Result<String, String> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() == 8 && text.bytes().all(is_digit) {
        true => Ok(text.to_owned()),
        false => Err("not 8 hexadecimal digits in lower case".into()),
    }
}

fn object(text: &str) -> std::result::Result<serde_json::Value, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.is_object() { Ok(value) } else { Err("not a JSON object".into()) }
}

/// The first line of stdin.
fn url() -> Result<Secret> {
    let wrong = |why: &str| Error::SourceUrl { why: why.into() };
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(wrong("is expected on stdin, and stdin is a terminal"));
    }
    let read = process::read_within(URL_WAIT, move || {
        let mut line = Vec::new();
        stdin.lock().take(URL_LIMIT).read_until(b'\n', &mut line).map(|_| line)
    })?;
    let Some(read) = read else {
        return Err(wrong(&format!("has not come on stdin after {} s", URL_WAIT.as_secs())));
    };
    let line = read.map_err(|source| Error::File { action: "read", path: "stdin".into(), source })?;
    let line = String::from_utf8(line).map_err(|_| wrong("is not UTF-8"))?;
    if line.trim().is_empty() {
        return Err(wrong("is not there: stdin is empty"));
    }
    Ok(Secret::new(line.trim()))
}

fn from(context: Context) -> Result<Target> {
    source::target(url()?.expose(), context.instance.connect_timeout)
}

/// From now on the end of stdin ends the work.
fn watch_lifeline() {
    std::thread::spawn(|| {
        let (mut stdin, mut buffer) = (std::io::stdin().lock(), [0u8; 1024]);
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return process::interrupt(),
                Ok(_) => {}
            }
        }
    });
}

/// Runs all of it.
pub fn run(context: Context, args: CopyArgs, json: bool) -> Result<()> {
    let options = Options {
        from: from(context)?,
        database: args.database,
        jobs: args.jobs.map(usize::from),
        no_owner: args.no_owner,
        confirm: args.confirm,
        dry_run: args.dry_run,
    };
    let report = copy::run(context, &options)?;
    warn(context, &report.warnings);
    show(json, &report, text);
    Ok(())
}

fn warn(context: Context, warnings: &[String]) {
    for warning in warnings {
        context.progress.warn(warning);
    }
}

fn text(report: &Report) -> String {
    let Report { instance, database, source, .. } = report;
    if report.dry_run {
        let confirm = report.loses.as_ref();
        let confirm = confirm.map(|holds| format!("\nneeds --confirm {instance}: it holds {holds}"));
        let size = bytes_text(report.bytes);
        return format!(
            "{instance}: would make {database} a copy of {source}, {size}{}",
            confirm.unwrap_or_default()
        );
    }
    let ended = match report.sessions_ended {
        0 => String::new(),
        1 => "; 1 session was ended".to_owned(),
        n => format!("; {n} sessions were ended"),
    };
    let amount = amount(report.tables, report.rows, report.bytes);
    let seconds = duration_text(report.seconds);
    format!("{instance}: {database} is a copy of {source}: {amount} in {seconds}, compared{ended}")
}

/// Runs one step.
pub fn run_part(context: Context, args: PartArgs, json: bool) -> Result<()> {
    // Who needs the URL reads it before the rest of stdin is waited for.
    let from = || {
        let from = from(context)?;
        if args.lifeline {
            watch_lifeline();
        }
        Ok::<_, Error>(from)
    };
    let lock_for = |action: &str, id: &str| {
        if args.lifeline {
            watch_lifeline();
        }
        place::lock(context, &format!("copy-part {action} {id}"))
    };
    match &args.action {
        Action::Look => show(json, &look::look(&from()?)?, look_text),
        Action::Lock { id, note } => show(json, &lock::lock(context, &from()?, &id.id, note)?, lock_text),
        Action::Quiesce { id, wait, terminate } => {
            let quiet = lock::quiesce(context, &from()?, &id.id, Duration::from_secs(*wait), *terminate)?;
            warn(context, &quiet.warnings);
            show(json, &quiet, quiet_text);
        }
        Action::Release(id) => show(json, &lock::release(context, &from()?, &id.id)?, done_text),
        Action::Finish { id, note } => {
            show(json, &lock::finish(context, &from()?, &id.id, note.as_ref())?, done_text)
        }
        Action::Unlock(id) => show(json, &lock::unlock(context, &from()?, &id.id)?, done_text),
        Action::Abandon => show(json, &lock::abandon(context, &from()?)?, done_text),
        Action::Check { database, owner } => {
            let from = from()?;
            let checked =
                check::examine(context, &from, &mut Here::open(context, database)?, owner.wishes())?;
            warn(context, &checked.warnings);
            show(json, &checked, checked_text);
        }
        Action::Fill { database, id, jobs, owner } => {
            let from = from()?;
            let _lock = place::lock(context, &format!("copy-part fill {}", id.id))?;
            let mut here = Here::open(context, database)?;
            let report = place::fill(context, &from, &mut here, &id.id, owner.wishes(), jobs.jobs())?;
            warn(context, &report.warnings);
            show(json, &report, filled_text);
        }
        Action::Compare { database, id, jobs, again } => {
            let from = from()?;
            let _lock = place::lock(context, &format!("copy-part compare {}", id.id))?;
            let mut here = Here::open(context, database)?;
            let compared = place::compare(context, &from, &mut here, &id.id, *again, jobs.jobs())?;
            show(json, &compared, compared_text);
        }
        Action::Place { database, id } => {
            let _lock = lock_for("place", &id.id)?;
            let placed = place::place(context, &mut Here::open(context, database)?, &id.id)?;
            warn(context, &placed.warnings);
            show(json, &placed, placed_text);
        }
        Action::Clear { database, id } => {
            let _lock = lock_for("clear", &id.id)?;
            show(json, &place::clear(context, &mut Here::open(context, database)?, &id.id)?, cleared_text);
        }
        Action::Changes { database, id, jobs } => {
            let _lock = lock_for("changes", &id.id)?;
            let changes = place::changes(context, &mut Here::open(context, database)?, &id.id, jobs.jobs())?;
            if json { answer(&changes) } else { say(changes_text(&changes).trim_end()) }
        }
    }
    Ok(())
}

fn look_text(look: &Look) -> String {
    let source = &look.source;
    let role = if source.is_standby { "a standby" } else { "a primary" };
    let mut text = format!(
        "{} of PostgreSQL {}, {role}: {}, {} tables, {} large objects, {} sessions of others\n",
        source.database,
        source.version,
        bytes_text(source.size),
        source.tables,
        source.large_objects,
        look.sessions.len()
    );
    text.extend(look.sessions.iter().map(|session| format!("{}\n", session.describe())));
    text + &look.lock.as_ref().map(lock_text).unwrap_or_default()
}

fn lock_text(lock: &Lock) -> String {
    format!(
        "locked by the migration {} of {}, which {} began at {}: {}",
        lock.id, lock.app, lock.by, lock.since, lock.state
    )
}

fn quiet_text(quiet: &Quiet) -> String {
    let ended = match quiet.ended.len() {
        0 => String::new(),
        1 => format!("; ended {}", quiet.ended[0].describe()),
        n => format!("; {n} sessions were ended"),
    };
    format!(
        "read-only, and no client is left that may write, after {}{ended}",
        duration_text(quiet.waited_seconds)
    )
}

fn done_text(done: &Done) -> String {
    format!("done; it was {}", done.was)
}

fn checked_text(checked: &Checked) -> String {
    format!(
        "{} can be copied: {} of {} that are free",
        checked.source.database,
        bytes_text(checked.needed),
        bytes_text(checked.available)
    )
}

fn filled_text(report: &place::Report) -> String {
    let seconds = duration_text(report.seconds.iter().sum());
    format!("{} is filled: {} in {seconds}", report.side, amount(report.tables, report.rows, report.bytes))
}

fn compared_text(compared: &Compared) -> String {
    format!(
        "{} tables, {} rows are alike, {}",
        compared.tables,
        compared.rows,
        duration_text(compared.seconds)
    )
}

fn placed_text(placed: &Placed) -> String {
    format!("{} is the copy", placed.database)
}

fn cleared_text(cleared: &Cleared) -> String {
    match cleared.dropped.is_empty() {
        true => format!("nothing of the copy is left for {}", cleared.database),
        false => format!("dropped {}", cleared.dropped.join(", ")),
    }
}

fn changes_text(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing has changed".into();
    }
    changes
        .iter()
        .map(|change| format!("{}: {} before, {} now\n", change.what, change.before, change.now))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_eight_digits() {
        assert!(id("0a1b2c3d").is_ok());
        for wrong in ["", "0a1b2c3", "0a1b2c3d4", "0A1B2C3D", "0a1b2c3g", "ü1b2c3d"] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }
}
