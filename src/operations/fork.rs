//! Makes this instance an independent copy of another: followed until it has all that the source had when the
//! command was given, then a primary on a timeline of its own, with nothing left that ties the two together.
//!
//! WAL comes by streaming, so no archive is waited for. A kill leaves a standby and a note; the next run goes
//! on from there without copying again.

use super::enslave::{self, Followed, there};
use super::{Context, backup, job, peers, promote, standby};
use crate::blurb::Blurb;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::wal::{Lsn, Timeline};
use crate::process;
use crate::service;
use crate::sql::Db;
use crate::transfer::target::Copied;
use enslave::plan::{Plan, Wanted};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the copy is made; its plan is always a full one.
    pub copy: enslave::Options,
    /// Limit for replaying what the source had, and for the end of recovery.
    pub timeout: Duration,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// What it is a copy of.
    pub source: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// How the copy was, or would be, made.
    pub plan: Plan,
    /// What was copied; none when an earlier run had done it.
    pub copied: Option<Copied>,
    /// Bytes that the copy takes.
    pub bytes_planned: Option<u64>,
    /// Where the old cluster is kept.
    pub kept: Option<PathBuf>,
    /// The last position of the source that is in it.
    pub lsn: Option<Lsn>,
    /// The timeline that it writes on.
    pub timeline: Option<Timeline>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds from start to writable.
    pub seconds: f64,
}

/// There from the begin of the copy to the end of recovery: the system identifier of the source.
pub(super) fn note(instance: &Instance) -> PathBuf {
    instance.state_directory.join("forking")
}

/// Runs the whole of it.
pub fn run(context: Context, blurb: &Blurb, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    let progress = context.progress;
    instance.check_account()?;
    let _lock = instance.lock("fork")?;

    let note = note(instance);
    let unfinished = fs::read_to_string(&note).ok();
    let mut copy = enslave::Options { wanted: Wanted::Full, cascade: true, ..options.copy.clone() };
    if !copy.dry_run {
        let whom = blurb.sql.host.clone() + ":" + &blurb.sql.port.to_string();
        if unfinished.as_deref() == Some(&whom) {
            progress.step("an earlier fork was interrupted; going on with what it has copied");
            copy.wanted = Wanted::Auto;
        }
        durable::create_private_directory(&instance.state_directory)?;
        durable::write(&note, whom.as_bytes(), 0o600)?;
        boundary("fork.noted");
    }
    let followed = enslave::follow(context, blurb, &copy);
    if followed.is_err()
        && unfinished.is_none()
        && !is_standby(instance)
        && !enslave::place::has_begun(instance)
    {
        // Nothing was begun that a next run could go on with.
        let _ = fs::remove_file(&note);
    }
    let Followed { report: copied, mut there, db } = followed?;
    let mut report = Report {
        instance: instance.name.clone(),
        source: there.name.clone(),
        dry_run: copy.dry_run,
        plan: copied.plan,
        copied: copied.copied,
        bytes_planned: copied.bytes_planned,
        kept: copied.kept,
        lsn: None,
        timeline: None,
        warnings: Vec::new(),
        seconds: 0.0,
    };
    let Some(mut db) = db.filter(|_| !copy.dry_run) else {
        report.seconds = begin.elapsed().as_secs_f64();
        return Ok(report);
    };

    let goal = there::end_of_wal(&mut there.db, there.in_recovery)?;
    replay_to(context, &mut db, goal, options.timeout)?;
    boundary("fork.caught-up");
    progress.step("ending recovery");
    report.lsn = promote::end_recovery(context, &mut db, options.timeout)?;
    report.timeline = Some(promote::timeline(&mut db, instance)?);
    job::forget(instance);

    let data = instance.data_directory()?;
    boundary("fork.promoted");
    standby::forget_settings(instance, &data, &there.target, there.version)?;
    boundary("fork.forgotten");
    report.warnings = untie(&mut db)?;
    boundary("fork.untied");
    // Not before: until then it has the source's schedule of backups, which would act here.
    fs::remove_file(&note).on("remove", &note)?;
    boundary("fork.note-removed");
    if let Some(slot) = &copied.slot {
        drop_slot(context, &mut there.db, slot, &there.name);
    }
    peers::part(context, &there.as_peer());
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn is_standby(instance: &Instance) -> bool {
    let data = instance.data_directory();
    data.is_ok_and(|data| enslave::here::has_standby_file(&data))
}

/// Waits until this standby has replayed the source up to `goal`; as long as it gets on, and `limit` without.
fn replay_to(context: Context, db: &mut Db, goal: Lsn, limit: Duration) -> Result<()> {
    let progress = context.progress;
    let mut last = standby::positions(db)?.1.unwrap_or(Lsn::ZERO);
    let mut moved = Instant::now();
    progress.begin_bytes("replay", goal.0.saturating_sub(last.0));
    let reached = process::wait_for(Duration::from_secs(7 * 86_400), || {
        let now = standby::positions(db)?.1.unwrap_or(Lsn::ZERO);
        if now > last {
            progress.add(now.0 - last.0);
            (last, moved) = (now, Instant::now());
        }
        if now < goal && moved.elapsed() > limit {
            let log = service::log_tail(context.instance);
            return Err(Error::NotCaughtUp { limit, behind: goal.0 - now.0, log });
        }
        Ok((now >= goal).then_some(()))
    });
    progress.end();
    reached.map(drop)
}

/// What came with the copy and would make the new primary depend on the old one, or disturb it.
pub(super) fn untie(db: &mut Db) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let names = db.setting("synchronous_standby_names")?.unwrap_or_default();
    if !names.trim().is_empty() {
        db.run("ALTER SYSTEM SET synchronous_standby_names = ''")?;
        warnings.push(format!(
            "synchronous_standby_names was {names:?}: commits would have waited; it is empty now"
        ));
    }
    if let Some(plan) = backup::schedule::untie(db)? {
        warnings.push(format!(
            "the schedule of backups ({plan}) is the source's and was not taken along; `pgmahout backup schedule \
             {plan}` turns it on here"
        ));
    }
    db.rows("SELECT pg_reload_conf()", &[])?;
    let archiving = db.setting("archive_mode")?.is_some_and(|mode| mode != "off");
    let command = db.setting("archive_command")?.unwrap_or_default();
    if archiving && !command.trim().is_empty() {
        warnings.push(
            "archive_command came along: WAL of this copy goes where the source's goes; change it and reload"
                .into(),
        );
    }
    Ok(warnings)
}

/// The WAL receiver is gone since the end of recovery, but its sender there may need a moment to notice.
fn drop_slot(context: Context, source: &mut Db, slot: &str, name: &str) {
    let count = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
    let dropped = process::wait_for(Duration::from_secs(15), || {
        standby::drop_slot(source, slot)?;
        Ok((source.value::<i64>(count, &[&slot])? == 0).then_some(()))
    });
    if !matches!(dropped, Ok(Some(()))) {
        context.progress.warn(format!(
            "the slot {slot} is still on {name}; drop it there: SELECT pg_drop_replication_slot('{slot}')"
        ));
    }
}
