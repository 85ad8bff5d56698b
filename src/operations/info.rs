//! What this instance is and how it does: role, positions, lag, who follows it, what its slots retain.

use super::enslave::here;
use super::enslave::there::{self, end_of_wal};
use super::standby::{self, Lag};
use super::{Context, job, peers, plan, primary, promote};
use crate::error::Result;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Lsn, SystemId, Timeline};
use crate::sql::{Db, Target};
use serde::Serialize;
use std::path::PathBuf;

/// Everything that can be said; what a stopped server cannot tell is absent.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Its app.
    pub app: Option<String>,
    /// `primary`, `standby`, `stopped`, `empty` (no cluster) or `unknown` (it runs, but does not answer).
    pub role: &'static str,
    /// The server's version, or the data directory's.
    pub version: Option<PgVersion>,
    /// The server program.
    pub build: Option<PathBuf>,
    /// PGDATA.
    pub data_directory: PathBuf,
    /// What runs the server.
    pub service: String,
    /// System identifier.
    pub system_id: Option<SystemId>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// End of WAL: written by a primary, replayed by a standby.
    pub lsn: Option<Lsn>,
    /// A standby's last received position.
    pub received: Option<Lsn>,
    /// Whom it follows.
    pub following: Option<Following>,
    /// A primary's former primary, host:port, where its settings still say so.
    pub followed: Option<String>,
    /// Who follows it.
    pub followers: Vec<Follower>,
    /// Its replication slots.
    pub slots: Vec<Slot>,
    /// Client connections.
    pub connections: Option<Connections>,
    /// Bytes of all databases.
    pub size_bytes: Option<i64>,
    /// The plan whose settings it has.
    pub plan: Option<String>,
    /// Data checksums are on.
    pub checksums: Option<bool>,
    /// When initdb made the cluster (or the one it is a copy of), in seconds since 1970: the upper half of its
    /// system identifier (src/backend/access/transam/xlog.c, BootStrapXLOG).
    pub created: Option<u64>,
    /// Nobody has created anything in it yet; only where its server runs.
    pub fresh: Option<bool>,
    /// Why it can be neither followed nor forked; absent when it can, or when it cannot be asked.
    pub no_follow: Option<String>,
    /// A copy in the background that runs or has failed.
    pub job: Option<Job>,
    /// Why it runs read-only though it was a primary, or should: another instance has taken its place.
    pub superseded: Option<String>,
    /// Why less is known than there is to know.
    pub problem: Option<String>,
}

/// A copy in the background.
#[derive(Debug, Serialize)]
pub struct Job {
    /// `running`, `failed` or `interrupted`.
    pub state: job::State,
    /// What it does: "copy, 43%".
    pub doing: String,
    /// The rest.
    #[serde(flatten)]
    pub job: job::Job,
}

/// A standby's primary.
#[derive(Debug, Serialize)]
pub struct Following {
    /// host:port.
    pub primary: String,
    /// WAL is being received.
    pub streaming: bool,
    /// It could be asked for its position.
    pub reachable: bool,
    /// How far behind.
    pub lag: Lag,
}

/// A standby of this instance.
#[derive(Debug, Serialize)]
pub struct Follower {
    /// Its application name.
    pub name: String,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// `async`, `sync`, …
    pub sync: String,
    /// Bytes that it has not replayed.
    pub lag_bytes: Option<i64>,
}

/// A replication slot.
#[derive(Debug, Serialize)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Somebody uses it.
    pub active: bool,
    /// WAL bytes that it keeps on the disk.
    pub retained_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost` (13+).
    pub wal_status: Option<String>,
}

/// Client connections.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// In use.
    pub used: i64,
    /// max_connections.
    pub limit: i64,
}

/// Asks the instance.
pub fn run(context: Context) -> Result<Report> {
    let instance = context.instance;
    let data_directory = instance.data_directory()?;
    let control = instance.control()?;
    let mut report = Report {
        instance: instance.name.clone(),
        app: instance.app.clone(),
        role: if control.is_some() { "stopped" } else { "empty" },
        version: instance.program_version().ok().or(instance.data_version()?),
        build: instance.program("postgres").ok(),
        plan: plan::recorded(&data_directory).unwrap_or_default().map(|plan| plan.plan),
        data_directory,
        service: instance.service.to_string(),
        system_id: control.as_ref().map(|c| c.system_id),
        timeline: control.as_ref().map(|c| c.timeline),
        lsn: control.as_ref().map(|c| c.checkpoint),
        received: None,
        following: None,
        followed: None,
        followers: Vec::new(),
        slots: Vec::new(),
        connections: None,
        size_bytes: None,
        checksums: control.as_ref().map(|c| c.data_checksum_version > 0),
        created: control.as_ref().map(|c| c.system_id.0 >> 32),
        fresh: None,
        no_follow: None,
        job: job::read(instance).map(|job| Job { state: job.state(), doing: job.doing(), job }),
        superseded: peers::superseded(instance),
        problem: None,
    };
    if instance.running().is_none() {
        report.no_follow = Some("its server does not run".into());
        report.problem = instance.fenced().map(|why| format!("fenced: {why}"));
        return Ok(report);
    }
    match Db::connect(&Target::local(instance)?) {
        Ok(mut db) => ask(context, &mut db, &mut report)?,
        Err(error) => {
            report.role = "unknown";
            report.problem = Some(error.to_string());
        }
    }
    Ok(report)
}

fn ask(context: Context, db: &mut Db, report: &mut Report) -> Result<()> {
    let instance = context.instance;
    let version = db.version;
    report.version = Some(version);
    if !version.has_streaming_replication() {
        // It does not even know the questions.
        report.role = "primary";
        report.no_follow = no_follow(context, db);
        return Ok(());
    }
    let in_recovery = db.in_recovery()?;
    if in_recovery {
        report.role = "standby";
        let (received, replayed) = standby::positions(db)?;
        (report.received, report.lsn) = (received, replayed);
        report.following = following(context, db)?;
        report.timeline = Some(standby::timeline(db, instance)?);
    } else {
        report.role = "primary";
        report.timeline = Some(promote::timeline(db, instance)?);
        report.lsn = Some(end_of_wal(db, false)?);
        let former = standby::primary_conninfo(db, &instance.data_directory()?)?;
        report.followed = former.as_ref().and_then(primary::address);
    }
    let here = if in_recovery { version.sql_last_wal_replay_lsn() } else { version.sql_current_wal_lsn() };
    if let Some(diff) = version.sql_wal_lsn_diff() {
        let replay = format!("replay_{}", version.replication_column_suffix());
        let sql = format!(
            "SELECT application_name, state, sync_state, {diff}({here}, {replay})::bigint \
             FROM pg_stat_replication WHERE state <> 'backup' ORDER BY 1"
        );
        report.followers = db
            .rows(&sql, &[])?
            .iter()
            .map(|row| Follower {
                name: row.get(0),
                state: row.get(1),
                sync: row.get(2),
                lag_bytes: row.get::<_, Option<i64>>(3).map(|bytes| bytes.max(0)),
            })
            .collect();
        if version.has_replication_slots() {
            let status = if version.has_slot_wal_status() { "wal_status" } else { "NULL::text" };
            let sql = format!(
                "SELECT slot_name::text, active, {diff}({here}, restart_lsn)::bigint, {status} \
                 FROM pg_replication_slots ORDER BY 1"
            );
            report.slots = db
                .rows(&sql, &[])?
                .iter()
                .map(|row| Slot {
                    name: row.get(0),
                    active: row.get(1),
                    retained_bytes: row.get::<_, Option<i64>>(2).map(|bytes| bytes.max(0)),
                    wal_status: row.get(3),
                })
                .collect();
        }
    }
    if !in_recovery && let Some(timeline) = report.timeline {
        let followers: Vec<_> = report.followers.iter().map(|follower| follower.name.clone()).collect();
        report.superseded = peers::look(context, &followers, timeline)?;
    }
    let row = db.row(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL), \
         current_setting('max_connections')::bigint, \
         (SELECT sum(pg_database_size(oid))::bigint FROM pg_database)",
        &[],
    )?;
    report.connections = Some(Connections { used: row.get(0), limit: row.get(1) });
    report.size_bytes = row.get(2);
    report.fresh = Some(!in_recovery && !here::has_user_objects(db)?);
    report.no_follow =
        there::check_feeds_standbys(db, &instance.name, "").err().map(|error| error.to_string());
    Ok(())
}

fn no_follow(context: Context, db: &mut Db) -> Option<String> {
    there::check_feeds_standbys(db, &context.instance.name, "").err().map(|error| error.to_string())
}

fn following(context: Context, db: &mut Db) -> Result<Option<Following>> {
    let instance = context.instance;
    let Some(conninfo) = standby::primary_conninfo(db, &instance.data_directory()?)? else { return Ok(None) };
    let target = standby::primary_target(instance, &conninfo, "the primary")?;
    let end = target.as_ref().and_then(|target| {
        let mut primary = Db::connect(target).ok()?;
        let in_recovery = primary.in_recovery().ok()?;
        end_of_wal(&mut primary, in_recovery).ok()
    });
    Ok(Some(Following {
        primary: target.map(|t| format!("{}:{}", t.host, t.port)).unwrap_or_default(),
        streaming: standby::is_streaming(db)?,
        reachable: end.is_some(),
        lag: standby::lag(db, end)?,
    }))
}
