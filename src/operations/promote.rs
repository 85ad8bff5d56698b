//! Ends recovery: this standby becomes a primary on a new timeline, having replayed all that it received.
//! Never by deleting files: without a new timeline a later divergence could not be seen.

use super::enslave::{marker, there};
use super::fence::Fenced;
use super::{Context, job, peers, standby};
use crate::agent;
use crate::blurb::Blurb;
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::recovery::last_setting;
use crate::postgres::wal::{Lsn, Timeline, parse_segment_name};
use crate::process;
use crate::sql::{Db, Target};
use crate::ssh::{self, Remote};
use serde::Serialize;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// This instance's name, when there may be two primaries.
    pub confirm: Option<String>,
    /// The old primary, to be stopped first.
    pub fence: Option<Blurb>,
    /// The host key of the old primary to accept.
    pub host_key: Option<String>,
    /// Limit for the end of recovery.
    pub timeout: Duration,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// It was a primary already.
    pub already: bool,
    /// The timeline it writes on now.
    pub timeline: Timeline,
    /// The last position it replayed as a standby.
    pub last_lsn: Option<Lsn>,
    /// Age in seconds of the last commit it replayed as a standby.
    pub last_commit_age: Option<f64>,
    /// What became of the old primary: "fenced", "unreachable", "running", "none".
    pub old_primary: &'static str,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds from start to writable.
    pub seconds: f64,
}

enum OldPrimary {
    /// None is configured, or it is a standby now.
    None,
    /// It does not answer.
    Unreachable(String),
    /// It answers and writes: where.
    Writable(String),
}

/// Runs the whole of it.
pub fn run(context: Context, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    let progress = context.progress;
    instance.check_account()?;
    let _lock = instance.lock("promote")?;
    if instance.running().is_none() {
        return Err(Error::ServerDown { instance: instance.name.clone() });
    }
    let mut db = Db::connect(&Target::local(instance)?)?;
    if !db.in_recovery()? {
        return Ok(Report {
            instance: instance.name.clone(),
            already: true,
            timeline: timeline(&mut db, instance)?,
            last_lsn: None,
            last_commit_age: None,
            old_primary: "none",
            warnings: warnings(&mut db)?,
            seconds: begin.elapsed().as_secs_f64(),
        });
    }

    peers::check_promotion(instance, options.confirm.as_deref())?;
    let old_primary = match &options.fence {
        Some(blurb) => {
            fence(context, &mut db, blurb, options)?;
            "fenced"
        }
        None => match ask_old_primary(context, &mut db)? {
            OldPrimary::None => "none",
            OldPrimary::Unreachable(why) => {
                progress.step(format!("the old primary does not answer ({why}): promoting"));
                "unreachable"
            }
            OldPrimary::Writable(at) if options.confirm.as_deref() == Some(&instance.name) => {
                progress
                    .warn(format!("the old primary at {at} is still writable: there will be two primaries"));
                "running"
            }
            OldPrimary::Writable(at) => {
                return Err(Error::TwoPrimaries { instance: instance.name.clone(), old: at });
            }
        },
    };

    let last_commit_age: Option<f64> =
        db.value("SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8", &[])?;
    progress.step("ending recovery");
    boundary("promote.ending");
    let last_lsn = end_recovery(context, &mut db, options.timeout)?;
    boundary("promote.ended");
    let timeline = timeline(&mut db, instance)?;
    job::forget(instance);
    peers::lift(instance)?;
    let warnings = warnings(&mut db)?;
    Ok(Report {
        instance: instance.name.clone(),
        already: false,
        timeline,
        last_lsn,
        last_commit_age,
        old_primary,
        warnings,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Asks the primary that this standby follows whether it still writes. Its silence is an answer too, and
/// a quick one: at three in the morning nobody waits for a dead machine.
fn ask_old_primary(context: Context, db: &mut Db) -> Result<OldPrimary> {
    let instance = context.instance;
    let Some(conninfo) = standby::primary_conninfo(db, &instance.data_directory()?)? else {
        return Ok(OldPrimary::None);
    };
    let Some(target) = standby::primary_target(instance, &conninfo, "the old primary")? else {
        return Ok(OldPrimary::None);
    };
    let at = format!("{}:{}", target.host, target.port);
    let before = progress_of(db)?;
    let asked = Db::connect(&target).and_then(|mut old| {
        let in_recovery = old.in_recovery()?;
        // A standby in between (a cascade) that streams has a living primary behind it.
        Ok((in_recovery, in_recovery && standby::is_streaming(&mut old)?))
    });
    match asked {
        Ok((true, true)) => Ok(OldPrimary::Writable(format!("{at} (a standby that streams from it)"))),
        Ok((true, false)) => Ok(OldPrimary::None),
        Ok((false, _)) => Ok(OldPrimary::Writable(at)),
        // It lives, but does not let us ask. As long as it feeds us it is taken for what it was.
        Err(
            Error::SqlPassword { .. }
            | Error::SqlRefused { .. }
            | Error::SqlNoTls { .. }
            | Error::SqlCertificate { .. }
            | Error::TlsFile { .. }
            | Error::TlsNoSystem,
        ) if standby::is_streaming(db)? => Ok(OldPrimary::Writable(at)),
        // It lets nobody in any more, but who is in goes on to commit, and sends that here.
        Err(_) if standby::is_streaming(db)? && has_committed_since(before, progress_of(db)?) => {
            Ok(OldPrimary::Writable(format!("{at} (it sends new commits)")))
        }
        Err(error) => Ok(OldPrimary::Unreachable(error.to_string())),
    }
}

/// The position that was received, and the time of the last commit that was replayed.
type Progress = (Option<Lsn>, Option<f64>);

fn progress_of(db: &mut Db) -> Result<Progress> {
    let received = standby::positions(db)?.0;
    let commit = db.value("SELECT extract(epoch FROM pg_last_xact_replay_timestamp())::float8", &[])?;
    Ok((received, commit))
}

/// Both: a primary that is dead may have left much to replay, and one that nobody uses still writes a little.
fn has_committed_since(before: Progress, now: Progress) -> bool {
    now.0 > before.0 && now.1 > before.1
}

/// Stops the old primary and lets this standby receive the last of its WAL. When that does not come, the
/// old primary is started again and nothing has changed.
fn fence(context: Context, db: &mut Db, blurb: &Blurb, options: &Options) -> Result<()> {
    let instance = context.instance;
    let progress = context.progress;
    let name = blurb.name.clone().unwrap_or_else(|| "the old primary".into());
    let ssh = there::connect_ssh(context, blurb, options.host_key.clone())?;
    let agent = agent::ensure(&*ssh, progress)?;
    progress.step(format!("stopping {name}"));
    boundary("promote.fencing");
    let control = instance.control()?.ok_or(Error::NoCluster { path: instance.data_directory()? })?;
    let expected = control.system_id;
    // A fast shutdown may write for minutes before it is done.
    ssh.set_patience(instance.stop_timeout + Duration::from_secs(30));
    let command = format!(
        "{agent} --json --quiet fence --system-id {expected} --successor {}",
        ssh::shell_word(&instance.name)
    );
    let answer = match ssh::run(&*ssh, &command, b"") {
        Ok(answer) => answer,
        Err(error) => {
            let error = match error {
                Error::RemoteCommand { host, status, said } => agent::relayed(host, status, said),
                other => other,
            };
            // What it says itself is that it refused or failed, and has undone what it did. Without a word from it (it was
            // killed, or the connection broke) whether it was stopped is not known: see to it that it runs.
            if !matches!(error, Error::Relayed { .. }) {
                match there::connect_ssh(context, blurb, options.host_key.clone()) {
                    Ok(ssh) => unfence(context, &*ssh, &agent, &name),
                    Err(_) => progress.warn(format!(
                        "whether {name} was stopped is not known, and it does not answer: {} is not promoted. When it answers \
                         again, the same command goes on; if it is lost, promote without --fence, and keep it from its clients",
                        instance.name
                    )),
                }
            }
            return Err(error);
        }
    };
    // A login profile may print before it: the answer is the last line.
    let line = answer.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let fenced: Fenced = serde_json::from_slice(line).map_err(|e| Error::SourceFailed {
        host: blurb.ssh.host.clone(),
        why: format!("its answer to the fence is not understood: {e}"),
    })?;
    boundary("promote.fenced");
    let outcome = after_fence(context, db, &fenced, options.timeout);
    if outcome.is_err() && fenced.was_running {
        unfence(context, &*ssh, &agent, &name);
    }
    outcome?;
    boundary("promote.received");
    progress.step(format!(
        "{name} is stopped; {} has received all that it wrote, up to {}",
        instance.name, fenced.end
    ));
    Ok(())
}

fn after_fence(context: Context, db: &mut Db, fenced: &Fenced, limit: Duration) -> Result<()> {
    let instance = context.instance;
    let ours = standby::timeline(db, instance)?;
    if ours != fenced.timeline {
        return Err(Error::FencedOtherTimeline {
            instance: fenced.instance.clone(),
            theirs: fenced.timeline.0,
            ours: ours.0,
        });
    }
    let arrived = process::wait_for(limit, || {
        let (received, replayed) = standby::positions(db)?;
        Ok((received.max(replayed) >= Some(fenced.end)).then_some(()))
    })?;
    arrived.ok_or_else(|| Error::LastWalMissing { end: fenced.end.to_string(), limit })?;
    // The blurb may have been another server's: the one that we follow must be silent now.
    match ask_old_primary(context, db)? {
        OldPrimary::Writable(at) => Err(Error::TwoPrimaries { instance: instance.name.clone(), old: at }),
        OldPrimary::None | OldPrimary::Unreachable(_) => Ok(()),
    }
}

fn unfence(context: Context, ssh: &dyn Remote, agent: &str, name: &str) {
    context.progress.step(format!("starting {name} again"));
    ssh.set_patience(context.instance.start_timeout + Duration::from_secs(30));
    let successor = ssh::shell_word(&context.instance.name);
    let command = format!("{agent} --json fence --undo --successor {successor}");
    if let Err(error) = ssh::run(ssh, &command, b"") {
        context.progress.warn(format!("{name} could not be started again: {error}"));
    }
}

/// Ends recovery and waits until the server writes; gives the last position it replayed.
pub fn end_recovery(context: Context, db: &mut Db, limit: Duration) -> Result<Option<Lsn>> {
    let instance = context.instance;
    let version = db.version;
    let data = instance.data_directory()?;
    // Of a primary nobody must think that it is a copy.
    marker::remove_marker(&data)?;
    boundary("promote.asking");
    let paused = version.sql_is_wal_replay_paused();
    if db.value::<bool>(&format!("SELECT {paused}"), &[])? {
        check_pause(context, db)?;
        context.progress.step("replay was paused; it goes on");
        db.rows(&format!("SELECT {}::text", version.sql_wal_replay_resume()), &[])?;
    }
    let (received, mut last) = standby::positions(db)?;
    context.progress.detail(format!("received {received:?}, replayed {last:?}"));
    if version.has_promote_function() {
        db.rows("SELECT pg_promote(false)", &[])?;
    } else if version.has_promote_command() {
        let mut command = Command::new(instance.program("pg_ctl")?);
        command.arg("-D").arg(&data).arg("promote");
        process::run(&mut command, limit + Duration::from_secs(5))?;
    } else {
        let text = fs::read_to_string(data.join("recovery.conf")).unwrap_or_default();
        let trigger = last_setting(&text, "trigger_file").ok_or(Error::NoTriggerFile)?;
        crate::durable::write(std::path::Path::new(&trigger), b"", 0o600)?;
    }
    boundary("promote.asked");
    let replay = format!("SELECT {}::text", version.sql_last_wal_replay_lsn());
    let done = process::wait_for(limit, || {
        last = db.lsn(&replay)?.or(last);
        Ok((!db.in_recovery()?).then_some(()))
    })?;
    match done {
        Some(()) => Ok(db.lsn(&replay)?.or(last)),
        None => Err(Error::PromotionTooSlow { limit }),
    }
}

/// From 14 on a standby whose settings are lower than its primary's were pauses replay; resuming it then
/// *ends* the server (PostgreSQL's manual, "Hot Standby", "Administrator's Overview"). Not at three in the
/// morning: name the setting first.
fn check_pause(context: Context, db: &mut Db) -> Result<()> {
    if !db.version.pauses_on_lower_settings() {
        return Ok(());
    }
    let Some(control) = context.instance.control()? else { return Ok(()) };
    for (name, wanted) in control.standby_minimums {
        let ours: u32 = db.setting(name)?.and_then(|value| value.parse().ok()).unwrap_or(u32::MAX);
        if ours < wanted {
            return Err(Error::PausedBySetting { name, ours, wanted });
        }
    }
    Ok(())
}

/// The timeline that a primary writes on; the control file names it only after the next checkpoint.
pub fn timeline(db: &mut Db, instance: &Instance) -> Result<Timeline> {
    let version = db.version;
    let sql = format!("SELECT {}({})", version.sql_walfile_name(), version.sql_current_wal_lsn());
    let name: String = db.value(&sql, &[])?;
    let size = instance.control()?.map_or(16 << 20, |control| control.wal_segment_size);
    Ok(parse_segment_name(&name, size).map_or(Timeline(0), |(timeline, _)| timeline))
}

fn warnings(db: &mut Db) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let names = db.setting("synchronous_standby_names")?.unwrap_or_default();
    if !names.trim().is_empty() {
        let attached: i64 = if db.version.has_replication_view() {
            db.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')", &[])?
        } else {
            0
        };
        if attached == 0 {
            warnings.push(format!(
                "synchronous_standby_names is {names:?} and no such standby is attached: commits will wait for \
                 one; attach it, or run ALTER SYSTEM SET synchronous_standby_names = '' and SELECT pg_reload_conf()"
            ));
        }
    }
    Ok(warnings)
}
