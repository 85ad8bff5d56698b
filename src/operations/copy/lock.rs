//! Owns what a migration does to its source: the lock, which is a schema of one table in it, and that nobody writes.

use super::super::Context;
use super::source::{self, SCHEMA, Session};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::{Db, Target, identifier, literal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The key of the advisory lock of whoever changes the lock or waits for clients: "pgmh", "migr".
const KEYS: (i32, i32) = (0x7067_6d68, 0x6d69_6772);

/// A run whose caller was killed ends by itself within this.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// The source is asked for its clients so often.
const POLL: Duration = Duration::from_millis(250);

/// A session that was told to end does so within this.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A migration's lock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    /// The migration's id.
    pub id: String,
    /// The app: `app` of the note.
    pub app: String,
    /// `user@host`: `by` of the note.
    pub by: String,
    /// When it was taken, `2026-11-22T01:20:00Z`.
    pub since: String,
    /// `running` or `done`.
    pub state: String,
    /// What the migration says of itself, without secrets.
    pub note: serde_json::Value,
    /// `default_transaction_read_only` of the database before; none where it had no such setting.
    #[serde(skip)]
    before: Option<String>,
    /// Sessions that began later (microseconds since 1970, the server's clock) are read-only; 0: that is not known yet.
    /// None while the database is as writable as before.
    #[serde(skip)]
    read_only_since: Option<i64>,
}

impl Lock {
    fn is_done(&self) -> bool {
        self.state == "done"
    }

    /// `locked`, `read-only` or `done`; see [`Done::was`].
    fn condition(&self) -> &'static str {
        match (self.is_done(), self.read_only_since) {
            (true, _) => "done",
            (_, Some(_)) => "read-only",
            (_, None) => "locked",
        }
    }

    fn refusal(self, database: &str) -> Error {
        let is_done = self.is_done();
        let Lock { id, app, by, since, .. } = self;
        let whose = format!("{id} of {app}, which {by} began at {since}");
        Error::MigrationLocked { database: database.into(), whose, is_done }
    }
}

/// That something was done to the source, or had been before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub done: bool,
    /// What the source was before: `unlocked`, `locked` (and writable), `read-only` (and locked) or `done`.
    pub was: String,
    /// The lock that was there.
    pub lock: Option<Lock>,
}

impl Done {
    fn new(lock: Option<Lock>) -> Done {
        let was = lock.as_ref().map_or("unlocked", Lock::condition).to_owned();
        Done { done: true, was, lock }
    }
}

/// The lock that is there.
pub fn read(db: &mut Db) -> Result<Option<Lock>> {
    let there: bool = db.value(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 \
         AND relname = 'lock')",
        &[&SCHEMA],
    )?;
    if !there {
        return Ok(None);
    }
    let sql = format!(
        "SELECT id, app, \"by\", to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), state, note::text, \
         before, read_only_since FROM {SCHEMA}.lock"
    );
    let rows = db.rows(&sql, &[])?;
    Ok(rows.first().map(|row| Lock {
        id: row.get(0),
        app: row.get(1),
        by: row.get(2),
        since: row.get(3),
        state: row.get(4),
        note: serde_json::from_str(row.get(5)).unwrap_or_default(),
        before: row.get(6),
        read_only_since: row.get(7),
    }))
}

/// The lock of this migration; none when there is none.
fn read_own(db: &mut Db, source: &Target, id: &str) -> Result<Option<Lock>> {
    match read(db)? {
        Some(lock) if lock.id != id => Err(lock.refusal(&source.database)),
        other => Ok(other),
    }
}

/// Waits until no other pgmahout changes the lock or waits for clients. Until the session ends nobody else does.
fn alone(context: Context, db: &mut Db, source: &Target) -> Result<()> {
    let (a, b) = KEYS;
    let mut told = false;
    let taken = process::wait_for(BUSY_LIMIT, || {
        if db.value(&format!("SELECT pg_try_advisory_lock({a}, {b})"), &[])? {
            return Ok(Some(()));
        }
        if !std::mem::replace(&mut told, true) {
            context.progress.step(format!(
                "waiting for another pgmahout at {}: {}",
                source.database,
                holder(db)?
            ));
        }
        Ok(None)
    })?;
    match taken {
        Some(()) => Ok(()),
        None => {
            let by = holder(db)?;
            Err(Error::MigrationBusy { database: source.database.clone(), by, limit: BUSY_LIMIT })
        }
    }
}

fn holder(db: &mut Db) -> Result<String> {
    let (a, b) = KEYS;
    let sql = format!(
        "SELECT a.pid, usename::text, host(client_addr) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE locktype = 'advisory' AND classid = {a} AND objid = {b} AND granted AND a.datname = current_database()"
    );
    let rows = db.rows(&sql, &[])?;
    Ok(rows.first().map_or("it has just ended".into(), |row| {
        let user: Option<String> = row.get(1);
        let client: Option<String> = row.get(2);
        let from = client.map(|client| format!(" from {client}")).unwrap_or_default();
        format!("the session {} of {}{from}", row.get::<_, i32>(0), user.unwrap_or_default())
    }))
}

/// Runs statements in one transaction.
fn transaction(db: &mut Db, statements: &[String]) -> Result<()> {
    db.run(&format!("BEGIN; {}; COMMIT", statements.join("; "))).inspect_err(|_| drop(db.run("ROLLBACK")))
}

/// Takes the lock for the migration `id`. That it has it already is fine. `note` is an object without secrets, of which
/// `app` and `by` say whose migration it is.
///
/// # Errors
/// [`Error::MigrationLocked`] when another one has it; [`Error::SourceReadOnly`] on a standby;
/// [`Error::NotDatabaseOwner`].
pub fn lock(context: Context, source: &Target, id: &str, note: &serde_json::Value) -> Result<Lock> {
    let mut db = source::connect(source)?;
    let db = &mut db;
    let database = || source.database.clone();
    if db.in_recovery()? {
        return Err(Error::SourceReadOnly { database: database() });
    }
    // Before anything is waited for: another migration may be waiting for clients.
    if let Some(lock) = read_own(db, source, id)? {
        return Ok(lock);
    }
    let is_owner: bool = db.value(
        "SELECT pg_has_role(current_user, datdba, 'USAGE') FROM pg_database WHERE datname = current_database()",
        &[],
    )?;
    if !is_owner {
        return Err(Error::NotDatabaseOwner { database: database(), user: source.user.clone() });
    }
    alone(context, db, source)?;
    if let Some(lock) = read_own(db, source, id)? {
        return Ok(lock);
    }
    let said = |name: &str| note.get(name).and_then(|value| value.as_str());
    let app = said("app").map_or_else(|| "an app without a name".to_owned(), str::to_owned);
    let by = said("by").map_or_else(here, str::to_owned);
    let before = setting(db)?.map_or("NULL".to_owned(), |value| literal(&value));
    let table = format!(
        "CREATE TABLE {SCHEMA}.lock (one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL, \
         app text NOT NULL, \"by\" text NOT NULL, since timestamptz NOT NULL DEFAULT now(), state text NOT NULL, \
         note jsonb NOT NULL, before text, read_only_since int8)"
    );
    let row = format!(
        "INSERT INTO {SCHEMA}.lock (id, app, \"by\", state, note, before) VALUES ({}, {}, {}, 'running', {}, {before})",
        literal(id),
        literal(&app),
        literal(&by),
        literal(&note.to_string())
    );
    let statements = [
        format!("CREATE SCHEMA {SCHEMA}"),
        table,
        row,
        // Whoever comes second learns who was first.
        format!("GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC"),
        format!("GRANT SELECT ON {SCHEMA}.lock TO PUBLIC"),
    ];
    transaction(db, &statements)?;
    read(db)?.ok_or_else(|| Error::MigrationNotLocked { database: database(), id: id.into() })
}

/// `user@host` of this process.
fn here() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let user = user.map_or_else(|| "somebody".to_owned(), |user| user.name);
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    format!("{user}@{}", host.unwrap_or_default())
}

/// `default_transaction_read_only` of this database for all roles.
fn setting(db: &mut Db) -> Result<Option<String>> {
    let rows = db.rows(
        "SELECT substr(said, 31) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase, \
         unnest(setconfig) said WHERE datname = current_database() AND setrole = 0 \
         AND said LIKE 'default\\_transaction\\_read\\_only=%'",
        &[],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// The statements that make the database as writable as it was; none where nothing was changed.
fn restoring(source: &Target, lock: &Lock) -> Option<String> {
    lock.read_only_since?;
    let database = identifier(&source.database);
    Some(match &lock.before {
        Some(value) => {
            format!("ALTER DATABASE {database} SET default_transaction_read_only = {}", literal(value))
        }
        None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
    })
}

// ---- nobody writes

/// That nobody writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quiet {
    /// Seconds until the last client had left.
    pub waited_seconds: f64,
    /// Sessions that were ended.
    pub ended: Vec<Session>,
    /// What the operator should know: sessions that are in the database and read-only.
    pub warnings: Vec<String>,
}

/// Makes the database read-only for sessions that begin from now on, and waits as long as `wait` until those that began
/// before have ended; with `terminate` they are ended then. Whoever connects meanwhile is read-only and is not waited
/// for. At a failure the database is as writable as before.
///
/// A session that sets `default_transaction_read_only` (or a transaction's own mode) by itself, or whose role has it set,
/// can write all the same: this is a fence against accidents, not against intent.
///
/// # Errors
/// [`Error::ClientsStay`]; [`Error::MigrationNotLocked`] without the lock.
pub fn quiesce(
    context: Context,
    source: &Target,
    id: &str,
    wait: Duration,
    terminate: bool,
) -> Result<Quiet> {
    let mut db = source::connect(source)?;
    let db = &mut db;
    let unlocked = || Error::MigrationNotLocked { database: source.database.clone(), id: id.into() };
    read_own(db, source, id)?.ok_or_else(unlocked)?;
    alone(context, db, source)?;
    let lock = read_own(db, source, id)?.ok_or_else(unlocked)?;
    if lock.is_done() {
        return Ok(Quiet { waited_seconds: 0.0, ended: Vec::new(), warnings: Vec::new() });
    }
    let outcome = quiesce_locked(context, db, source, &lock, wait, terminate);
    if outcome.is_err() {
        let lock = Lock { read_only_since: Some(0), ..lock };
        // The connection may be what has failed.
        let back = release_locked(db, source, &lock).or_else(|_| {
            let mut again = source::connect(source)?;
            release_locked(&mut again, source, &lock)
        });
        if let Err(error) = back {
            context.progress.warn(format!("{} is still read-only: {error}", source.database));
        }
    }
    outcome
}

fn quiesce_locked(
    context: Context,
    db: &mut Db,
    source: &Target,
    lock: &Lock,
    wait: Duration,
    terminate: bool,
) -> Result<Quiet> {
    let begin = Instant::now();
    let switched = match (lock.read_only_since, setting(db)?.as_deref()) {
        (Some(since), Some("on")) if since > 0 => since,
        _ => {
            context.progress.step(format!("{} is read-only for new sessions", source.database));
            let database = identifier(&source.database);
            let statements = [
                format!("UPDATE {SCHEMA}.lock SET read_only_since = 0"),
                format!("ALTER DATABASE {database} SET default_transaction_read_only = on"),
            ];
            transaction(db, &statements)?;
            // After the commit: whoever begins later has read the setting.
            db.value(
                &format!(
                    "UPDATE {SCHEMA}.lock SET read_only_since = (extract(epoch FROM clock_timestamp()) * 1000000)::int8 \
                     RETURNING read_only_since"
                ),
                &[],
            )?
        }
    };
    let writers = roles_that_write(db)?;
    // Of whom the beginning is not shown: those that are there now may have begun before.
    let first: BTreeSet<i32> = source::sessions(db)?.iter().map(|session| session.pid).collect();
    let may_write = |session: &Session| {
        let began_before = session.began.map_or(first.contains(&session.pid), |began| began <= switched);
        began_before || session.user.as_ref().is_some_and(|user| writers.contains(user))
    };
    let staying = |db: &mut Db| -> Result<(Vec<Session>, Vec<Session>)> {
        Ok(source::sessions(db)?.into_iter().partition(|session| may_write(session)))
    };
    let mut told = BTreeSet::new();
    let deadline = begin + wait;
    let (mut stay, mut harmless) = staying(db)?;
    while !stay.is_empty() && Instant::now() < deadline {
        let pids: BTreeSet<i32> = stay.iter().map(|session| session.pid).collect();
        if pids != told {
            context.progress.step(format!("waiting for {}", described(&stay).join("; ")));
            told = pids;
        }
        pause(deadline)?;
        (stay, harmless) = staying(db)?;
    }
    let waited = begin.elapsed();
    let (mut ended, mut refused) = (Vec::new(), None);
    if !stay.is_empty() && terminate {
        ended = stay.clone();
        for session in stay.iter().filter(|session| session.pid != 0) {
            context.progress.step(format!("ending {}", session.describe()));
            // One of a role that this one has nothing to do with is refused; it is named below then.
            if let Err(error) = db.rows("SELECT pg_terminate_backend($1)", &[&session.pid]) {
                refused.get_or_insert(error.to_string());
            }
        }
        let deadline = Instant::now() + END_LIMIT;
        while !stay.is_empty() && Instant::now() < deadline {
            pause(deadline)?;
            (stay, harmless) = staying(db)?;
        }
        ended.retain(|session| stay.iter().all(|staying| staying.pid != session.pid));
    }
    process::check_interrupt()?;
    if !stay.is_empty() {
        let sessions = described(&stay);
        let database = source.database.clone();
        return Err(Error::ClientsStay { database, sessions, limit: wait, terminate, refused });
    }
    let warning = |session: &Session| {
        format!("{} is in {}, but began after it was made read-only", session.describe(), source.database)
    };
    Ok(Quiet {
        waited_seconds: waited.as_secs_f64(),
        ended,
        warnings: harmless.iter().map(warning).collect(),
    })
}

fn described(sessions: &[Session]) -> Vec<String> {
    let mut texts: Vec<String> = sessions.iter().take(10).map(Session::describe).collect();
    if sessions.len() > 10 {
        texts.push(format!("and {} more", sessions.len() - 10));
    }
    texts
}

fn pause(deadline: Instant) -> Result<()> {
    process::check_interrupt()?;
    std::thread::sleep(POLL.min(deadline.saturating_duration_since(Instant::now())));
    process::check_interrupt()
}

/// Roles with a setting of their own that goes before the database's.
fn roles_that_write(db: &mut Db) -> Result<BTreeSet<String>> {
    let rows = db.rows(
        "SELECT DISTINCT rolname::text FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = setrole, \
         unnest(setconfig) said WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
         AND said ~ '^default_transaction_read_only=(off|false|no|0|f|n)$'",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn release_locked(db: &mut Db, source: &Target, lock: &Lock) -> Result<()> {
    let cleared = format!("UPDATE {SCHEMA}.lock SET read_only_since = NULL, state = 'running'");
    let statements: Vec<String> = restoring(source, lock).into_iter().chain([cleared]).collect();
    transaction(db, &statements)
}

/// The database is as writable as before the migration; the lock stays.
pub fn release(context: Context, source: &Target, id: &str) -> Result<Done> {
    let mut db = source::connect(source)?;
    read_own(&mut db, source, id)?;
    alone(context, &mut db, source)?;
    let lock = read_own(&mut db, source, id)?;
    if let Some(lock) = &lock {
        release_locked(&mut db, source, lock)?;
    }
    Ok(Done::new(lock))
}

/// The migration is complete: the lock and the read-only database stay, with `note` (an object) added to the lock's.
///
/// # Errors
/// [`Error::MigrationNotLocked`] without the lock.
pub fn finish(context: Context, source: &Target, id: &str, note: Option<&serde_json::Value>) -> Result<Done> {
    let mut db = source::connect(source)?;
    let unlocked = || Error::MigrationNotLocked { database: source.database.clone(), id: id.into() };
    read_own(&mut db, source, id)?.ok_or_else(unlocked)?;
    alone(context, &mut db, source)?;
    let lock = read_own(&mut db, source, id)?.ok_or_else(unlocked)?;
    let added = note.map_or("{}".to_owned(), |note| note.to_string());
    db.run(&format!("UPDATE {SCHEMA}.lock SET state = 'done', note = note || {}::jsonb", literal(&added)))?;
    Ok(Done::new(Some(lock)))
}

/// Takes the lock away, and makes the database as writable as before: without the lock nobody would know how it was.
pub fn unlock(context: Context, source: &Target, id: &str) -> Result<Done> {
    let mut db = source::connect(source)?;
    if read_own(&mut db, source, id)?.is_none() {
        return Ok(Done::new(None));
    }
    alone(context, &mut db, source)?;
    let lock = read_own(&mut db, source, id)?;
    remove(&mut db, source, lock)
}

/// The same of whichever migration.
pub fn abandon(context: Context, source: &Target) -> Result<Done> {
    let mut db = source::connect(source)?;
    alone(context, &mut db, source)?;
    let lock = read(&mut db)?;
    remove(&mut db, source, lock)
}

fn remove(db: &mut Db, source: &Target, lock: Option<Lock>) -> Result<Done> {
    if let Some(lock) = &lock {
        let drop = format!("DROP SCHEMA {SCHEMA} CASCADE");
        let statements: Vec<String> = restoring(source, lock).into_iter().chain([drop]).collect();
        transaction(db, &statements)?;
    }
    Ok(Done::new(lock))
}
