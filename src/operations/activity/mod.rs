//! The sessions of this server: what they do, who waits for whom, what took the most time, and how to stop one.

pub mod kill;
pub mod locks;
pub mod outliers;
pub mod psql;

use super::Context;
use crate::error::{Error, Result};
use crate::postgres::log::mask_passwords;
use crate::postgres::version::PgVersion;
use crate::sql::{Db, Target};
use postgres::Row;
use serde::Serialize;

/// What serves a client, as `pg_stat_activity.backend_type` calls it.
const CLIENT: &str = "client backend";

/// A process of the server, as `pg_stat_activity` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Session {
    /// Its process id; 0 stands for a prepared transaction, which has none.
    pub pid: i32,
    /// `client backend`, `walsender`, `autovacuum worker`, …
    pub kind: String,
    /// `active`, `idle`, `idle in transaction`, …
    pub state: Option<String>,
    /// Its application_name.
    pub source: Option<String>,
    /// Role.
    pub user: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// The client's address; none by a Unix socket.
    pub client: Option<String>,
    /// Seconds of its statement, or of its transaction while it is idle in one.
    pub running_seconds: Option<f64>,
    /// `<wait_event_type>/<wait_event>`; before 9.6 only that it waits for a lock.
    pub waiting_on: Option<String>,
    /// Its statement, or its last one, with passwords masked.
    pub query: Option<String>,
    /// When it began: a process id may be another session's later.
    #[serde(skip)]
    began: Option<String>,
    /// When its statement began.
    #[serde(skip)]
    statement_began: Option<String>,
}

/// What the client sessions do.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The longest running first.
    pub sessions: Vec<Session>,
}

/// Asks what the client sessions do; with `all` also those that do nothing.
pub fn run(context: Context, all: bool) -> Result<Report> {
    let mut db = connect(context)?;
    let mut sessions = sessions(&mut db)?;
    sessions.retain(|session| session.kind == CLIENT && (all || session.state.as_deref() != Some("idle")));
    let seconds = |session: &Session| session.running_seconds.unwrap_or(-1.0);
    sessions.sort_by(|a, b| seconds(b).total_cmp(&seconds(a)).then(a.pid.cmp(&b.pid)));
    Ok(Report { instance: context.instance.name.clone(), sessions })
}

fn connect(context: Context) -> Result<Db> {
    Db::connect(&target(context)?)
}

/// The server of this instance; an error of its own when it does not run.
pub fn target(context: Context) -> Result<Target> {
    let instance = context.instance;
    // Without PGDATA here, the server is elsewhere, and only its answer tells.
    if instance.data_directory().is_ok() && instance.running().is_none() {
        return Err(Error::NoServer { instance: instance.name.clone() });
    }
    Target::local(instance)
}

/// All of them but our own.
fn sessions(db: &mut Db) -> Result<Vec<Session>> {
    let sql = sessions_sql(db.version);
    Ok(db.rows(&sql, &[])?.iter().map(session).collect())
}

/// `pg_stat_activity` with the columns of 9.2 on.
fn view(version: PgVersion) -> &'static str {
    if version.has_session_state() {
        return "pg_stat_activity";
    }
    "(SELECT procpid AS pid, usename, datname, application_name, client_addr, backend_start, xact_start, \
     query_start, waiting, current_query AS query, CASE WHEN current_query = '<IDLE>' THEN 'idle' \
     WHEN current_query LIKE '<IDLE> in transaction%' THEN 'idle in transaction' ELSE 'active' END AS state \
     FROM pg_stat_activity)"
}

fn sessions_sql(version: PgVersion) -> String {
    let kind = match version.has_backend_type() {
        true => "a.backend_type",
        false => {
            "CASE WHEN a.query LIKE 'autovacuum: %' THEN 'autovacuum worker' \
             WHEN EXISTS (SELECT 1 FROM pg_stat_replication r WHERE r.pid = a.pid) THEN 'walsender' \
             ELSE 'client backend' END"
        }
    };
    // An idle session waits for its client; its state says that.
    let waiting = match version.has_wait_events() {
        true => {
            "CASE WHEN a.state IS NULL OR a.state NOT LIKE 'idle%' \
             THEN a.wait_event_type || '/' || a.wait_event END"
        }
        false => "CASE WHEN a.waiting THEN 'Lock' END",
    };
    format!(
        "SELECT a.pid, {kind}, a.state, nullif(a.application_name, ''), a.usename::text, a.datname::text, \
         host(a.client_addr), extract(epoch FROM clock_timestamp() - CASE \
         WHEN a.state LIKE 'idle in transaction%' THEN a.xact_start \
         WHEN a.state <> 'idle' THEN a.query_start END)::float8, \
         {waiting}, nullif(a.query, ''), a.backend_start::text, a.query_start::text \
         FROM {} a WHERE a.pid <> pg_backend_pid()",
        view(version)
    )
}

fn session(row: &Row) -> Session {
    Session {
        pid: row.get(0),
        kind: row.get::<_, Option<String>>(1).unwrap_or_else(|| "server process".into()),
        state: row.get(2),
        source: row.get(3),
        user: row.get(4),
        database: row.get(5),
        client: row.get(6),
        running_seconds: row.get::<_, Option<f64>>(7).map(|seconds| seconds.max(0.0)),
        waiting_on: row.get(8),
        query: row.get::<_, Option<String>>(9).map(masked),
        began: row.get(10),
        statement_began: row.get(11),
    }
}

fn masked(query: String) -> String {
    mask_passwords(&query).unwrap_or(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_has() {
        let sql = |version: &str| sessions_sql(PgVersion::parse(version).unwrap());
        assert!(sql("9.1").contains("procpid AS pid") && sql("9.1").contains("a.waiting"));
        assert!(sql("9.5").contains("FROM pg_stat_activity a") && sql("9.5").contains("a.waiting"));
        assert!(sql("9.6").contains("wait_event_type") && !sql("9.6").contains("backend_type"));
        assert!(sql("10").contains("a.backend_type") && !sql("10").contains("pg_stat_replication"));
    }
}
