//! Makes this instance a streaming standby of another: preflight, direction guard, the cheapest plan that
//! is correct, and the plans *repoint*, *delta* and *full* (DESIGN.md, "enslave, step by step").

pub mod copy;
pub mod here;
pub mod known;
pub mod marker;
pub mod place;
pub mod plan;
pub mod preflight;
pub mod reuse;
pub mod session;
pub mod streams;
pub mod there;

use super::build_version::switch;
use super::standby::{self, Lag};
use super::{Context, job, peers};
use crate::blurb::Blurb;
use crate::builds::Build;
use crate::durable;
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::recovery::{Conninfo, SLOT_PREFIX, last_setting};
use crate::postgres::release::Release;
use crate::process;
use crate::progress::{bytes_text, duration_text};
use crate::service;
use crate::sql::{Db, Target};
use crate::transfer::protocol::Compression;
use crate::transfer::target::Copied;
use here::Cluster;
use plan::{Action, Fate, Loss, Plan, Relation, Wanted};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use streams::Opening;
use there::There;

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The victim's name, when its data may be lost.
    pub confirm: Option<String>,
    /// Follow a source that is itself a standby.
    pub cascade: bool,
    /// A standby of the source, which a copy comes from.
    pub copy_from: Option<Blurb>,
    /// Say what would be done and stop.
    pub dry_run: bool,
    /// The host key to accept.
    pub host_key: Option<String>,
    /// The plan to use.
    pub wanted: Wanted,
    /// Tablespaces: where on the source, where here.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Parallel SSH sessions.
    pub ssh_sessions: Option<usize>,
    /// How what is copied is compressed.
    pub compression: Compression,
    /// Bytes that the source may read in a second; 0 is as many as it can.
    pub max_rate: u64,
    /// The pages that come are not verified.
    pub no_verify_checksums: bool,
    /// A *delta* compares everything, also what the WAL says is the same.
    pub paranoid: bool,
    /// Take the source's build of PostgreSQL when its version is another.
    pub take_build: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The source.
    pub source: String,
    /// Whom a copy comes from, when that is not the source.
    pub copied_from: Option<String>,
    /// `repoint`, `delta` or `full`; as planned when `dry_run`.
    pub plan: Plan,
    /// Nothing was done.
    pub dry_run: bool,
    /// It followed this source already, and nothing had to be done.
    pub already: bool,
    /// What was copied.
    pub copied: Option<Copied>,
    /// Bytes that a full copy takes.
    pub bytes_planned: Option<u64>,
    /// Where the old cluster is kept.
    pub kept: Option<PathBuf>,
    /// The build of PostgreSQL that was taken from the source.
    pub taken_build: Option<Release>,
    /// The slot on the source.
    pub slot: Option<String>,
    /// Seconds from start to streaming.
    pub seconds: f64,
    /// How far behind the standby was when it streamed.
    pub lag: Lag,
}

/// Runs the whole of it.
pub fn run(context: Context, blurb: &Blurb, options: &Options) -> Result<Report> {
    let instance = context.instance;
    instance.check_account()?;
    let _lock = instance.lock("enslave")?;
    let mut followed = follow(context, blurb, options)?;
    if !options.dry_run {
        job::forget(instance);
        peers::introduce(context, &followed.there.as_peer());
    }
    Ok(followed.report)
}

/// What a follower is left with: what was done, and both ends of what it follows by.
pub struct Followed {
    /// What was done.
    pub report: Report,
    /// The source.
    pub there: There,
    /// SQL to this instance, a standby now; none when nothing was done.
    pub db: Option<Db>,
}

/// Makes this instance a standby, for those who have its lock.
pub fn follow(context: Context, blurb: &Blurb, options: &Options) -> Result<Followed> {
    let begin = Instant::now();
    let instance = context.instance;
    let progress = context.progress;

    // Preflight: nothing is touched.
    let mut there = there::reach(context, blurb, options.host_key.clone())?;
    progress.step(format!(
        "{} is PostgreSQL {}, a {} on timeline {}, at {}",
        there.name,
        there.version,
        if there.in_recovery { "standby" } else { "primary" },
        there.history.timeline.0,
        there.end
    ));
    preflight::check_not_itself(context, &there)?;
    let build = preflight::programs(context, &there, options)?;
    let mut cluster = here::look(context)?;
    preflight::check_direction(context, &mut there, cluster.as_mut(), options)?;
    let settings = copy_settings(instance, options);
    // What a copy will take is opened while the rest is asked: a second where the source is far.
    let open = |from: &mut There| {
        let other = |cluster: &Cluster| cluster.control.system_id != from.system_id;
        let copies = match options.wanted {
            Wanted::Full | Wanted::Delta => true,
            Wanted::Auto => cluster.as_ref().is_none_or(other),
            Wanted::Repoint => false,
        };
        if copies && !options.dry_run {
            from.opening = Some(Opening::begin(copy::way(from, &settings)));
        }
    };
    let mut other = match &options.copy_from {
        None => {
            open(&mut there);
            None
        }
        Some(blurb) => Some(preflight::copy_from(context, &there, blurb)?),
    };
    peers::check_source(context, &mut there.as_peer())?;
    other.iter_mut().for_each(open);

    let slot = instance.slot_name();
    if build.is_none()
        && let Some(report) = already_following(context, &mut there, cluster.as_mut(), &slot, options, begin)?
    {
        return Ok(Followed { report, there, db: cluster.and_then(|cluster| cluster.db) });
    }
    let mut wished = options.clone();
    if cluster.is_none() && wished.wanted == Wanted::Delta && marker::is_begun(&instance.data_directory()?) {
        // A delta that broke off is completed by the command that began it.
        wished.wanted = Wanted::Auto;
    }
    let (plan, relation) = decide(&mut there, cluster.as_mut(), &wished)?;
    preflight::check_slot(context, &there, cluster.as_mut(), &slot)?;
    if plan.action == Action::Repoint || instance.config_directory.is_some() {
        preflight::check_settings(context, &mut there, cluster.as_mut())?;
    }
    // With the source's own build comes what it preloads.
    if plan.action != Action::Repoint && build.is_none() {
        preflight::check_libraries(context, &there)?;
    }
    let layout = match plan.action {
        Action::Full | Action::Delta => {
            let resume = options.wanted != Wanted::Full;
            let from = other.as_mut().unwrap_or(&mut there);
            Some(place::layout(context, from, &plan, &mapping(context, options), resume)?)
        }
        Action::Repoint => None,
    };
    let mut report = Report {
        instance: instance.name.clone(),
        source: there.name.clone(),
        copied_from: other.as_ref().filter(|_| layout.is_some()).map(|other| other.name.clone()),
        plan: plan.clone(),
        dry_run: options.dry_run,
        already: false,
        copied: None,
        bytes_planned: layout.as_ref().map(|layout| layout.bytes),
        kept: None,
        taken_build: build.as_ref().map(|build| build.release.clone()),
        slot: there.version.has_replication_slots().then(|| slot.clone()),
        seconds: 0.0,
        lag: Lag::default(),
    };
    let size = report.bytes_planned.map(|b| format!(", {}", bytes_text(b))).unwrap_or_default();
    let action = match plan.action {
        Action::Repoint => "repoint",
        Action::Delta => "delta",
        Action::Full => "full copy",
    };
    let resumed = plan.action == Action::Full && layout.as_ref().is_some_and(|layout| layout.reuse);
    let resumed = if resumed { "; it goes on with what an interrupted run has copied" } else { "" };
    progress.step(format!("plan: {action}{size}, because {}{resumed}", plan.why));
    if let (Some(loses), true) = (&plan.loses, options.confirm.as_deref() != Some(&instance.name)) {
        // With --dry-run the plan was the question, and what it would ask is part of the answer.
        if !options.dry_run {
            return Err(needs_confirmation(context, &plan, loses.clone()));
        }
    }
    if options.dry_run {
        report.seconds = begin.elapsed().as_secs_f64();
        return Ok(Followed { report, there, db: None });
    }

    // From here on things change.
    boundary("enslave.planned");
    let build = build.map(|offered| preflight::take_build(context, &there, &offered)).transpose()?;
    let was_primary = cluster.as_ref().is_some_and(|cluster| !cluster.ours.is_standby)
        || peers::superseded(instance).is_some();
    let former = former_primary(context, cluster.as_mut(), &there)?;
    let with = Standby { slot: &slot, build: build.as_ref(), since: begin };
    let mut db = match layout {
        None => repoint(context, &mut there, cluster, &with)?,
        Some(layout) => {
            let from = other.as_mut();
            let (db, copied, kept) =
                full(context, &mut there, from, cluster, &plan, &layout, &with, options, &settings)?;
            report.copied = Some(copied);
            report.kept = kept;
            db
        }
    };
    standby::wait_until_streaming(context, &mut db)?;
    boundary("enslave.streaming");
    clean_up_slots(context, &mut db, &mut there, former, &slot, was_primary && relation == Relation::Behind);
    boundary("enslave.done");
    let end = there::end_of_wal(&mut there.db, there.in_recovery).ok();
    report.lag = standby::lag(&mut db, end)?;
    report.seconds = begin.elapsed().as_secs_f64();
    progress.detail(format!("streaming after {}", duration_text(report.seconds)));
    Ok(Followed { report, there, db: Some(db) })
}

fn needs_confirmation(context: Context, plan: &Plan, holds: String) -> Error {
    let instance = context.instance.name.clone();
    match plan.fate {
        Fate::Rewritten => Error::WouldOverwrite { instance, holds },
        _ => Error::NeedsConfirmation { instance, holds },
    }
}

fn mapping(context: Context, options: &Options) -> Vec<(PathBuf, PathBuf)> {
    let mut mapping = options.tablespace_mapping.clone();
    mapping.extend(context.instance.tablespace_mapping.iter().cloned());
    mapping
}

/// Starts the server as a standby, with the build that was taken for it if there is one. Not a moment earlier:
/// until here the old cluster may have to come back, with the programs that it had.
fn start_standby(context: Context, build: Option<&Build>) -> Result<Db> {
    context.progress.step("starting the server as a standby");
    standby::lift_fence(context.instance)?;
    let Some(build) = build else { return standby::start_and_connect(context) };
    let renewed = switch::point(context, build)?;
    standby::start_and_connect(Context { instance: &renewed, progress: context.progress })
}

/// A standby that already streams from this source through its slot needs nothing.
fn already_following(
    context: Context,
    there: &mut There,
    cluster: Option<&mut Cluster>,
    slot: &str,
    options: &Options,
    begin: Instant,
) -> Result<Option<Report>> {
    let Some(cluster) = cluster else { return Ok(None) };
    if matches!(options.wanted, Wanted::Full | Wanted::Delta)
        || cluster.control.system_id != there.system_id
        || !there.version.has_replication_slots()
    {
        return Ok(None);
    }
    let Some(db) = &mut cluster.db else { return Ok(None) };
    if !db.in_recovery()? || !standby::is_streaming(db)? {
        return Ok(None);
    }
    let conninfo = standby::primary_conninfo(db, &cluster.data)?.unwrap_or_default();
    let port = there.target.port.to_string();
    let same = conninfo.get("host") == Some(&there.target.host) && conninfo.get("port") == Some(&port);
    let held = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    if !same || there.db.value::<i64>(held, &[&slot])? == 0 {
        return Ok(None);
    }
    if !options.dry_run {
        // What a run that broke off has left.
        marker::remove_marker(&cluster.data)?;
        place::tidy(context, &cluster.data)?;
        if let Some(former) = noted_former(context.instance)? {
            leave_former(context, &former, &there.target, slot);
        }
    }
    let end = there::end_of_wal(&mut there.db, there.in_recovery).ok();
    Ok(Some(Report {
        instance: context.instance.name.clone(),
        source: there.name.clone(),
        copied_from: None,
        plan: Plan {
            action: Action::Repoint,
            why: "it follows this source already".into(),
            fate: Fate::Used,
            loses: None,
        },
        dry_run: options.dry_run,
        already: true,
        copied: None,
        bytes_planned: None,
        kept: None,
        taken_build: None,
        slot: Some(slot.to_owned()),
        seconds: begin.elapsed().as_secs_f64(),
        lag: standby::lag(db, end)?,
    }))
}

fn decide(there: &mut There, cluster: Option<&mut Cluster>, options: &Options) -> Result<(Plan, Relation)> {
    let Some(cluster) = cluster else {
        return Ok((plan::plan(&Relation::Other, Loss::NoCluster, None, options.wanted)?, Relation::Other));
    };
    // Asked again: a busy primary has gone on since, and we may have received it.
    there.end = there::end_of_wal(&mut there.db, there.in_recovery)?;
    let theirs = there.as_seen();
    let relation = if cluster.version.same_major(there.version) {
        plan::relation(&cluster.ours, &theirs)
    } else {
        Relation::Other
    };
    let relation = match relation {
        Relation::Behind if there.has_other_wal(&cluster.ours, &cluster.data)? => Relation::Unknown(
            "the WAL of its timeline is another than the source's: two were promoted at the same place",
        ),
        other => other,
    };
    let gap = match relation {
        Relation::Behind => there.wal_gap(cluster.ours.end)?,
        _ => None,
    };
    let loss = cluster.loss(&relation, &theirs)?;
    Ok((plan::plan(&relation, loss, gap, options.wanted)?, relation))
}

/// The primary that this instance followed until now, to take its slot away there. It is noted: once the settings name
/// another one, a run that is killed would leave that slot to nobody.
fn former_primary(context: Context, cluster: Option<&mut Cluster>, there: &There) -> Result<Option<Target>> {
    let instance = context.instance;
    if !there.version.has_replication_slots() {
        return Ok(None);
    }
    let noted = noted_former(instance)?;
    let Some(cluster) = cluster.filter(|cluster| cluster.ours.is_standby) else { return Ok(noted) };
    let data = cluster.data.clone();
    let Some(db) = cluster.db.as_mut() else { return Ok(noted) };
    let Some(conninfo) = standby::primary_conninfo(db, &data)? else { return Ok(noted) };
    let former = standby::primary_target(instance, &conninfo, "the former primary")?;
    let Some(former) = former.filter(|former| !same_server(former, &there.target)) else { return Ok(noted) };
    let mut note = Conninfo::new();
    note.set("host", &former.host).set("port", &former.port.to_string()).set("user", &former.user);
    for (keyword, value) in former.tls.keywords() {
        note.set(keyword, &value);
    }
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&former_note(instance), note.to_conninfo().as_bytes(), 0o600)?;
    Ok(Some(former))
}

/// There from before a former primary is left until its slot is gone.
fn former_note(instance: &Instance) -> PathBuf {
    instance.state_directory.join("former-primary")
}

fn noted_former(instance: &Instance) -> Result<Option<Target>> {
    let Ok(text) = fs::read_to_string(former_note(instance)) else { return Ok(None) };
    standby::primary_target(instance, &Conninfo::parse(&text)?, "the former primary")
}

fn same_server(a: &Target, b: &Target) -> bool {
    (&a.host, a.port) == (&b.host, b.port)
}

/// Its slot there would keep WAL for nobody. That it does not answer is what one leaves it for.
fn leave_former(context: Context, former: &Target, source: &Target, slot: &str) {
    let progress = context.progress;
    if !same_server(former, source) {
        match Db::connect(former).and_then(|mut db| standby::drop_slot(&mut db, slot)) {
            Ok(true) => progress.detail(format!("slot {slot} on the former primary dropped")),
            Ok(false) => {}
            Err(error) => progress.detail(format!("the former primary may still hold slot {slot}: {error}")),
        }
    }
    let _ = fs::remove_file(former_note(context.instance));
}

/// After the fact, and never a reason to fail: slots that would keep WAL for nobody.
fn clean_up_slots(
    context: Context,
    db: &mut Db,
    there: &mut There,
    former: Option<Target>,
    slot: &str,
    was_primary: bool,
) {
    let progress = context.progress;
    if !there.version.has_replication_slots() {
        return;
    }
    if let Some(former) = former {
        leave_former(context, &former, &there.target, slot);
    }
    let outdated = match outdated_slots(there, was_primary) {
        Ok(outdated) => outdated,
        Err(error) => {
            return progress.warn(format!("{} did not say what slots it has: {error}", there.name));
        }
    };
    for slot in outdated {
        match standby::drop_slot(db, &slot) {
            Ok(true) => progress.detail(format!("slot {slot} of the time before dropped")),
            Ok(false) => {}
            Err(error) => progress.warn(format!("slot {slot} here could not be dropped: {error}")),
        }
    }
}

/// Slots here that nobody has a use for any more: the one through which the source followed this instance (a new primary
/// its old one, or the follower that it took the last of the WAL from), and those of an old primary's followers that
/// stream from the new primary by now. The slots of the others stay: they may be about to connect again.
fn outdated_slots(there: &mut There, was_primary: bool) -> Result<Vec<String>> {
    let mut slots: Vec<String> = Vec::new();
    if was_primary {
        let rows = there.db.rows("SELECT slot_name::text FROM pg_replication_slots WHERE active", &[])?;
        slots.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    slots.extend(its_slot(there)?);
    slots.retain(|slot| slot.starts_with(SLOT_PREFIX));
    Ok(slots)
}

/// The slot that the source used when it was a standby itself: its settings still name it.
fn its_slot(there: &mut There) -> Result<Option<String>> {
    let slot = if there.version.shows_recovery_settings() {
        there.db.setting("primary_slot_name")?
    } else {
        let done = there.stream.read_file("recovery.done", 64 * 1024)?.unwrap_or_default();
        last_setting(&String::from_utf8_lossy(&done), "primary_slot_name")
    };
    Ok(slot.filter(|slot| slot.starts_with(SLOT_PREFIX)))
}

/// What the new standby runs with.
struct Standby<'a> {
    slot: &'a str,
    build: Option<&'a Build>,
    /// When the command was given.
    since: Instant,
}

fn repoint(context: Context, there: &mut There, cluster: Option<Cluster>, with: &Standby) -> Result<Db> {
    let slot = with.slot;
    let instance = context.instance;
    let version = there.version;
    let Some(mut cluster) = cluster else {
        return Err(Error::NoCluster { path: instance.data_directory()? });
    };
    if version.has_replication_slots() {
        // One that is there may hold the very WAL that is needed (a copy that was not started yet), unless
        // the server has given it up.
        let lost = if version.has_slot_wal_status() { "wal_status = 'lost'" } else { "false" };
        let usable = format!(
            "SELECT count(*) FROM pg_replication_slots \
             WHERE slot_name = $1 AND restart_lsn IS NOT NULL AND NOT coalesce({lost}, false)"
        );
        if there.db.value::<i64>(&usable, &[&slot])? == 0 {
            standby::drop_slot(&mut there.db, slot)?;
            standby::create_slot(&mut there.db, slot)?;
        }
    }
    let can_reload = version.reloads_primary_conninfo() && cluster.ours.is_standby && with.build.is_none();
    let live = match cluster.db.take() {
        Some(db) if can_reload => Some(db),
        _ => {
            stop(context)?;
            None
        }
    };
    let slot = version.has_replication_slots().then_some(slot);
    let settings = standby::settings(instance, &there.target, slot, version)?;
    boundary("repoint.writing");
    standby::write_settings(&cluster.data, &settings, version, &[])?;
    boundary("repoint.written");
    marker::remove_marker(&cluster.data)?;
    peers::lift(instance)?;
    place::tidy(context, &cluster.data)?;
    match live {
        Some(mut db) => {
            context.progress.step("reloading the standby's settings");
            let before: Option<i32> =
                db.rows("SELECT pid FROM pg_stat_wal_receiver", &[])?.first().and_then(|row| row.get(0));
            db.rows("SELECT pg_reload_conf()", &[])?;
            boundary("repoint.reloaded");
            wait_for_new_receiver(context, &mut db, before)?;
            Ok(db)
        }
        None => {
            // What it replays from now on may bring the source's password.
            adopt_password(context, &there.target)?;
            start_standby(context, with.build)
        }
    }
}

/// After a reload the old WAL receiver may be seen streaming for a moment yet.
fn wait_for_new_receiver(context: Context, db: &mut Db, before: Option<i32>) -> Result<()> {
    let limit = context.instance.stream_timeout;
    let changed = process::wait_for(limit, || {
        let rows = db.rows("SELECT pid FROM pg_stat_wal_receiver", &[])?;
        let now: Option<i32> = rows.first().and_then(|row| row.get(0));
        Ok((now.is_some() && now != before).then_some(()))
    })?;
    changed.ok_or_else(|| Error::NotStreaming { limit, log: service::log_tail(context.instance) })
}

fn copy_settings(instance: &Instance, options: &Options) -> copy::Settings {
    copy::Settings {
        sessions: options.ssh_sessions.unwrap_or(instance.ssh_sessions),
        compression: options.compression,
        max_rate: options.max_rate,
        verify: !options.no_verify_checksums,
        paranoid: options.paranoid,
    }
}

#[allow(clippy::too_many_arguments)]
fn full(
    context: Context,
    there: &mut There,
    from: Option<&mut There>,
    cluster: Option<Cluster>,
    plan: &Plan,
    layout: &place::Layout,
    with: &Standby,
    options: &Options,
    settings: &copy::Settings,
) -> Result<(Db, Copied, Option<PathBuf>)> {
    let instance = context.instance;
    let was_running = instance.running().is_some();
    // The server's stop would wait for our own connection.
    drop(cluster);
    stop(context)?;
    let plan = if was_running { &plan_after_stop(context, there, plan, layout, options)? } else { plan };
    if !(layout.reuse && matches!(layout.place, place::Place::Beside(_))) {
        place::tidy(context, &layout.data)?;
    }
    let restart = |error: Error| {
        // Its control file is the first to go.
        if was_running && marker::has_control(&layout.data) && instance.running().is_none() {
            context.progress.step("the old cluster is untouched; starting it again");
            if let Err(again) = service::start(instance) {
                context.progress.warn(format!("it did not start: {again}"));
            }
        }
        error
    };
    let mut copied = copy::run(context, there, from, layout, settings, with.slot).map_err(restart)?;
    let kept = place::put_in_place(context, layout, plan, &there.target)
        .map_err(|error| if place::is_pending(layout) { restart(error) } else { error })?;
    copied.durable_seconds = with.since.elapsed().as_secs_f64();
    Ok((start_standby(context, with.build)?, copied, kept))
}

fn stop(context: Context) -> Result<()> {
    if context.instance.running().is_some() {
        context.progress.step("stopping the server");
    }
    // Also when it does not run: supervisor may be about to start it again.
    service::stop(context.instance)
}

/// Between the preflight and its stop a primary may have been written to, and a standby may have received
/// more. Now that nothing comes any more, what it holds is judged again: something that was not there before
/// is never removed.
fn plan_after_stop(
    context: Context,
    there: &mut There,
    plan: &Plan,
    layout: &place::Layout,
    options: &Options,
) -> Result<Plan> {
    let verdict = here::look(context).and_then(|cluster| match cluster {
        Some(mut cluster) => {
            decide(there, Some(&mut cluster), &Options { wanted: Wanted::Full, ..options.clone() })
        }
        None => Ok((plan.clone(), Relation::Other)),
    });
    let now = match verdict {
        Ok((now, _)) => now,
        Err(error) => {
            service::start(context.instance)?;
            return Err(error);
        }
    };
    if now.loses.is_none() || plan.loses.is_some() {
        return Ok(plan.clone());
    }
    let holds = now.loses.clone().unwrap_or_default();
    if matches!(layout.place, place::Place::InPlace(_)) {
        service::start(context.instance)?;
        return Err(needs_confirmation(context, plan, holds));
    }
    context.progress.warn(format!("until it stopped it was written to: it holds {holds}, and is kept"));
    Ok(Plan { fate: Fate::KeptAside, loses: Some(holds), ..plan.clone() })
}

/// The copied cluster has the source's roles: from now on their password is this instance's.
pub(super) fn adopt_password(context: Context, target: &Target) -> Result<()> {
    let instance = context.instance;
    let Some(password) = &target.password else { return Ok(()) };
    let known = fs::read_to_string(&instance.password_file).unwrap_or_default();
    if target.user == instance.user
        && instance.password_file.exists()
        && known.trim_end() != password.expose()
    {
        context
            .progress
            .step(format!("{} now holds the source's password", instance.password_file.display()));
        durable::write(&instance.password_file, format!("{}\n", password.expose()).as_bytes(), 0o600)?;
    }
    Ok(())
}
