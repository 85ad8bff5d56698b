//! Owns what makes a cluster a standby and what tells that it is a good one: settings, passfile, slot,
//! streaming, lag.

use super::Context;
use crate::blurb::Secret;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::recovery::{Conninfo, StandbySettings, last_setting};
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Lsn, Timeline};
use crate::process;
use crate::service;
use crate::sql::{Db, Target};
use crate::tls::Tls;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The settings of a standby of `target`, and its passfile written: the password stands in nothing but
/// that file.
pub fn settings(
    instance: &Instance,
    target: &Target,
    slot: Option<&str>,
    version: PgVersion,
) -> Result<StandbySettings> {
    let mut conninfo = Conninfo::new();
    conninfo.set("host", &target.host).set("port", &target.port.to_string()).set("user", &target.user);
    // What is nobody's wish is left out: the server's own environment has a say then, as for any other client.
    if target.tls != Tls::default() {
        for (keyword, value) in target.tls.keywords() {
            conninfo.set(keyword, &value);
        }
    }
    conninfo.set("application_name", &instance.name);
    if let Some(password) = &target.password {
        write_passfile(instance, target, password)?;
        if version.passfile_in_conninfo() {
            conninfo.set("passfile", &instance.passfile().display().to_string());
        } else {
            // Before 10 libpq reads a password file only from the server's environment; the recipe's
            // recovery.conf is 0600 and lies in PGDATA, the one other place there is.
            conninfo.set("password", password.expose());
        }
    }
    Ok(StandbySettings {
        primary_conninfo: conninfo.to_conninfo(),
        primary_slot_name: slot.map(str::to_owned),
    })
}

/// libpq's format: host:port:database:user:password, with `\` and `:` escaped. Lines for other servers
/// stay: the cluster here may go on following one of them if this does not work out.
pub fn write_passfile(instance: &Instance, target: &Target, password: &Secret) -> Result<()> {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    durable::create_private_directory(&instance.state_directory)?;
    let whom = passfile_prefix(target);
    let existing = fs::read_to_string(instance.passfile()).unwrap_or_default();
    let others = existing.lines().filter(|line| !line.starts_with(&whom)).map(|line| format!("{line}\n"));
    let text: String = others.chain([format!("{whom}{}\n", escape(password.expose()))]).collect();
    durable::write(&instance.passfile(), text.as_bytes(), 0o600)
}

/// Takes away what says that this cluster followed `target`: the settings of a standby that was promoted, and
/// the password that it streamed with.
pub fn forget_settings(instance: &Instance, data: &Path, target: &Target, version: PgVersion) -> Result<()> {
    if version.uses_recovery_conf() {
        let done = data.join("recovery.done");
        if done.exists() {
            fs::remove_file(&done).on("remove", &done)?;
        }
    } else {
        let auto_conf = data.join("postgresql.auto.conf");
        let existing = fs::read_to_string(&auto_conf).on("read", &auto_conf)?;
        let without = crate::postgres::recovery::auto_conf_with(
            &existing,
            &[("primary_conninfo", None), ("primary_slot_name", None)],
        );
        durable::write(&auto_conf, without.as_bytes(), 0o600)?;
    }
    let passfile = instance.passfile();
    let Ok(existing) = fs::read_to_string(&passfile) else { return Ok(()) };
    let whom = passfile_prefix(target);
    let others: String =
        existing.lines().filter(|line| !line.starts_with(&whom)).map(|line| format!("{line}\n")).collect();
    if others.is_empty() {
        return fs::remove_file(&passfile).on("remove", &passfile);
    }
    durable::write(&passfile, others.as_bytes(), 0o600)
}

/// How a line of the passfile for this server begins.
fn passfile_prefix(target: &Target) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    format!("{}:{}:*:{}:", escape(&target.host), target.port, escape(&target.user))
}

/// Writes the settings into a data directory so that the server starts as a standby.
pub fn write_settings(
    data: &Path,
    settings: &StandbySettings,
    version: PgVersion,
    own: &[(&str, Option<&str>)],
) -> Result<()> {
    let auto_conf = data.join("postgresql.auto.conf");
    let existing = match fs::read_to_string(&auto_conf) {
        // A start that was cut short may have left that.
        Ok(text) => text.replace(FIRST_START, ""),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).on("read", &auto_conf),
    };
    let with_own = crate::postgres::recovery::auto_conf_with(&existing, own);
    if version.uses_recovery_conf() {
        if with_own != existing {
            durable::write(&auto_conf, with_own.as_bytes(), 0o600)?;
        }
        return durable::write(&data.join("recovery.conf"), settings.recovery_conf().as_bytes(), 0o600);
    }
    durable::write(&auto_conf, settings.auto_conf(&with_own).as_bytes(), 0o600)?;
    let recovery_conf = data.join("recovery.conf");
    if recovery_conf.exists() {
        // From 12 on a server does not start while this file exists.
        fs::remove_file(&recovery_conf).on("remove", &recovery_conf)?;
    }
    durable::write(&data.join("standby.signal"), b"", 0o600)
}

/// From here on the server may be started: it is about to be its successor's standby, or its successor gives up.
pub fn lift_fence(instance: &Instance) -> Result<()> {
    let fence = instance.fence_file();
    if fence.exists() {
        fs::remove_file(&fence).on("remove", &fence)?;
        boundary("fence.lifted");
    }
    super::peers::lift(instance)
}

/// Starts the server and waits until it accepts connections; never one that is fenced.
pub fn start_and_connect(context: Context) -> Result<Db> {
    let instance = context.instance;
    if let Some(why) = instance.fenced() {
        return Err(Error::Fenced { instance: instance.name.clone(), why });
    }
    service::start(instance)?;
    let mut db = connect_when_ready(context, instance.start_timeout)?;
    end_first_start(&mut db, &instance.data_directory()?)?;
    Ok(db)
}

/// Before its first start PostgreSQL syncs each file of a copy, which is on the disk already; of many files that takes
/// minutes. From 14 on it syncs whole file systems when it is told so.
const FIRST_START: &str =
    "recovery_init_sync_method = 'syncfs' # pgmahout: for the first start of this copy\n";

/// Lets the first start of a copy in `data` sync nothing twice, unless its settings speak of that themselves.
pub fn ease_first_start(data: &Path, version: PgVersion) -> Result<()> {
    if !version.has_recovery_init_sync_method() {
        return Ok(());
    }
    let auto_conf = data.join("postgresql.auto.conf");
    let existing = fs::read_to_string(&auto_conf).on("read", &auto_conf)?;
    if last_setting(&existing, "recovery_init_sync_method").is_some() {
        return Ok(());
    }
    durable::write(&auto_conf, (existing + FIRST_START).as_bytes(), 0o600)
}

/// Every later start is as it is told by whoever operates the server.
fn end_first_start(db: &mut Db, data: &Path) -> Result<()> {
    let auto_conf = data.join("postgresql.auto.conf");
    let Ok(existing) = fs::read_to_string(&auto_conf) else { return Ok(()) };
    if existing.contains(FIRST_START) {
        durable::write(&auto_conf, existing.replace(FIRST_START, "").as_bytes(), 0o600)?;
        db.rows("SELECT pg_reload_conf()", &[])?;
    }
    Ok(())
}

/// A server that is not ready so soon is asked seldom from then on.
const SOON: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(1);

/// Waits until the server accepts connections; an error as soon as it has gone away.
pub fn connect_when_ready(context: Context, limit: Duration) -> Result<Db> {
    let instance = context.instance;
    let mut last = None;
    let mut absent = 0;
    // A standby first replays to a consistent state, which takes as long as the copy's WAL is: the limit
    // holds for the time without progress.
    let mut progress = (replay_state(instance), Instant::now());
    // The server logs each attempt.
    let (begin, mut tried) = (Instant::now(), None::<Instant>);
    let connected = process::wait_for(Duration::from_secs(7 * 86_400), || {
        // supervisor restarts a server that dies: look more than once.
        absent = if instance.running().is_some() { 0 } else { absent + 1 };
        if absent > 15 {
            return Err(Error::ServerGone {
                data: instance.data_directory()?,
                log: service::log_tail(instance),
            });
        }
        let lately = |at: Instant| at - begin > SOON && at.elapsed() < SELDOM;
        if tried.is_some_and(lately) {
            return Ok(None);
        }
        tried = Some(Instant::now());
        match Db::connect(&Target::local(instance)?) {
            Ok(db) => Ok(Some(db)),
            Err(error @ (Error::SqlPassword { .. } | Error::SqlRefused { .. })) => Err(error),
            Err(error) => {
                last = Some(error.to_string());
                let state = replay_state(instance);
                if state != progress.0 {
                    progress = (state, Instant::now());
                }
                if progress.1.elapsed() < limit {
                    return Ok(None);
                }
                Err(Error::ServerNotReady {
                    limit,
                    why: last.take().unwrap_or_default(),
                    log: service::log_tail(instance),
                })
            }
        }
    })?;
    connected.ok_or_else(|| Error::ServerNotReady {
        limit,
        why: last.unwrap_or_else(|| "it was not asked".into()),
        log: service::log_tail(instance),
    })
}

/// What changes while a server that is starting replays: its control file, and what it has received.
fn replay_state(instance: &Instance) -> (Option<Lsn>, Option<String>) {
    let control = instance.control().ok().flatten();
    let newest = instance.data_directory().ok().and_then(|data| {
        let wal = fs::read_dir(data.join("pg_wal")).ok()?;
        wal.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).max()
    });
    (control.map(|control| control.min_recovery_point.max(control.checkpoint)), newest)
}

/// Whether this standby receives WAL now.
pub fn is_streaming(db: &mut Db) -> Result<bool> {
    if db.version.has_wal_receiver_view() {
        let rows = db.rows("SELECT status FROM pg_stat_wal_receiver", &[])?;
        return Ok(
            rows.first().and_then(|row| row.get::<_, Option<String>>(0)).as_deref() == Some("streaming")
        );
    }
    // Before 9.6 there is no view of it: received WAL ahead of the replay start is the sign.
    let received = db.lsn(&format!("SELECT {}::text", db.version.sql_last_wal_receive_lsn()))?;
    Ok(received.is_some())
}

/// The newest timeline that a running standby has WAL of.
pub fn timeline(db: &mut Db, instance: &Instance) -> Result<Timeline> {
    let control = instance.control()?;
    let in_files = control.map(|control| instance.newest_timeline(&control)).transpose()?;
    let mut timeline = in_files.unwrap_or(Timeline(0));
    if db.version.has_wal_receiver_view() {
        let rows = db.rows("SELECT received_tli FROM pg_stat_wal_receiver", &[])?;
        let received = rows.first().and_then(|row| row.get::<_, Option<i32>>(0));
        timeline = timeline.max(Timeline(received.unwrap_or(0) as u32));
    }
    Ok(timeline)
}

/// Waits until this standby streams.
pub fn wait_until_streaming(context: Context, db: &mut Db) -> Result<()> {
    let limit = context.instance.stream_timeout;
    match process::wait_for(limit, || Ok(is_streaming(db)?.then_some(())))? {
        Some(()) => Ok(()),
        None => Err(Error::NotStreaming { limit, log: service::log_tail(context.instance) }),
    }
}

/// How far a standby is behind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    /// WAL bytes that the primary has written and this standby has not replayed.
    pub bytes: Option<u64>,
    /// Age in seconds of the last replayed commit; zero when nothing is left to replay, however long ago
    /// the primary was last written to.
    pub seconds: Option<f64>,
}

/// The positions of a standby.
pub fn positions(db: &mut Db) -> Result<(Option<Lsn>, Option<Lsn>)> {
    let version = db.version;
    let (received, replayed) = (version.sql_last_wal_receive_lsn(), version.sql_last_wal_replay_lsn());
    let row = db.row(&format!("SELECT {received}::text, {replayed}::text"), &[])?;
    let position = |i: usize| row.get::<_, Option<&str>>(i).map(str::parse).transpose();
    Ok((position(0)?, position(1)?))
}

/// The lag of the standby `db` behind a primary that ends at `primary_end` (when it could be asked).
pub fn lag(db: &mut Db, primary_end: Option<Lsn>) -> Result<Lag> {
    let (received, replayed) = positions(db)?;
    // Without the primary's word, what was received is all that is known to exist.
    let Some(end) = primary_end.or(received) else { return Ok(Lag::default()) };
    let behind = replayed.map(|replayed| end.0.saturating_sub(replayed.0));
    let seconds: Option<f64> =
        db.value("SELECT extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8", &[])?;
    let seconds = match behind {
        Some(0) => Some(0.0),
        _ => seconds.map(|s| s.max(0.0)),
    };
    Ok(Lag { bytes: behind, seconds })
}

/// The primary that a standby is set up to follow.
pub fn primary_conninfo(db: &mut Db, data: &Path) -> Result<Option<Conninfo>> {
    let text = if db.version.shows_recovery_settings() {
        db.setting("primary_conninfo")?
    } else {
        let text = fs::read_to_string(data.join("recovery.conf")).unwrap_or_default();
        crate::postgres::recovery::last_setting(&text, "primary_conninfo")
    };
    text.filter(|t| !t.trim().is_empty()).map(|t| Conninfo::parse(&t)).transpose()
}

/// The same from the files alone, for when the server cannot be asked: those that an enslave writes.
pub fn primary_conninfo_in_files(data: &Path) -> Result<Option<Conninfo>> {
    let of = |name: &str| {
        let text = fs::read_to_string(data.join(name)).ok()?;
        crate::postgres::recovery::last_setting(&text, "primary_conninfo").filter(|t| !t.trim().is_empty())
    };
    let text = of("recovery.conf").or_else(|| of("postgresql.auto.conf"));
    text.map(|t| Conninfo::parse(&t)).transpose()
}

/// The SQL address of the primary that a standby follows.
pub fn primary_target(instance: &Instance, conninfo: &Conninfo, label: &str) -> Result<Option<Target>> {
    let Some(host) = conninfo.get("host") else { return Ok(None) };
    let password = match conninfo.get("password") {
        Some(password) => Some(Secret::new(password)),
        None => {
            let port = conninfo.get("port").unwrap_or("5432");
            match password_from_passfile(instance, host, port) {
                Some(password) => Some(password),
                None => instance.password()?,
            }
        }
    };
    Ok(Some(Target {
        label: label.to_owned(),
        host: host.to_owned(),
        port: conninfo.get("port").and_then(|p| p.parse().ok()).unwrap_or(5432),
        user: conninfo.get("user").unwrap_or(&instance.user).to_owned(),
        password,
        database: "postgres".into(),
        tls: Tls::of_conninfo(conninfo.iter()),
        timeout: instance.connect_timeout.min(Duration::from_secs(3)),
    }))
}

/// The password in our own passfile.
fn password_from_passfile(instance: &Instance, host: &str, port: &str) -> Option<Secret> {
    let text = fs::read_to_string(instance.passfile()).ok()?;
    text.lines().find_map(|line| match fields_of(line).as_slice() {
        [of, at, _, _, password] if of == host && at == port => Some(Secret::new(password.clone())),
        _ => None,
    })
}

/// The fields of a line of a password file.
pub fn fields_of(line: &str) -> Vec<String> {
    let (mut fields, mut escaped) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            ':' if !escaped => fields.push(String::new()),
            c => {
                escaped = false;
                fields.last_mut().expect("one at least").push(c);
            }
        }
    }
    fields
}

/// Drops a slot if it is there and nobody uses it; true when it did.
pub fn drop_slot(db: &mut Db, slot: &str) -> Result<bool> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
               WHERE slot_name = $1 AND NOT active";
    let dropped = !db.rows(sql, &[&slot])?.is_empty();
    boundary("slot.dropped");
    Ok(dropped)
}

/// Drops a slot that this very session holds (a temporary one is active as long as it exists).
pub fn drop_slot_in_session(db: &mut Db, slot: &str) -> Result<()> {
    db.rows("SELECT pg_drop_replication_slot($1)", &[&slot]).map(drop)
}

/// Creates our permanent slot, reserving WAL at once where the version can.
pub fn create_slot(db: &mut Db, slot: &str) -> Result<()> {
    let sql = if db.version.reserves_slot_at_once() {
        "SELECT pg_create_physical_replication_slot($1, true)::text"
    } else {
        "SELECT pg_create_physical_replication_slot($1)::text"
    };
    db.rows(sql, &[&slot])?;
    boundary("slot.created");
    Ok(())
}
