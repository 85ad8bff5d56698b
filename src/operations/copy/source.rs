//! Owns what is asked of a copy's source: its URL, what it is, who is in it.

use crate::blurb::DatabaseUrl;
use crate::error::{Error, Result};
use crate::postgres::log::mask_passwords;
use crate::sql::{Db, Target, literal};
use crate::tls::Tls;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The schema that is the lock of a migration. It is never copied.
pub const SCHEMA: &str = "pgmahout_migration";

/// What error texts call it.
const LABEL: &str = "the source";

/// Where a URL leads to.
///
/// # Errors
/// [`Error::SourceUrl`], which does not quote it; [`Error::TlsAsked`].
pub fn target(url: &str, timeout: Duration) -> Result<Target> {
    let url = DatabaseUrl::parse(url.trim()).map_err(|why| Error::SourceUrl { why })?;
    Ok(Target {
        label: LABEL.into(),
        host: url.host,
        port: url.port,
        user: url.user,
        password: url.password,
        database: url.database,
        tls: Tls::of_url(&url.ssl)?,
        timeout,
    })
}

/// A name for people: `shop at 10.0.0.1:5432`.
pub fn describe(source: &Target) -> String {
    let host = if source.host.contains(':') { format!("[{}]", source.host) } else { source.host.clone() };
    format!("{} at {host}:{}", source.database, source.port)
}

/// Connects. The session may write, also while the database is read-only for all others.
pub fn connect(source: &Target) -> Result<Db> {
    let mut db = Db::connect(source).map_err(|error| match error {
        Error::SqlPassword { at, user } => Error::SourcePassword { at, user },
        error => error,
    })?;
    db.run("SET default_transaction_read_only = off")?;
    Ok(db)
}

/// What a source is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// The server's version, e.g. `15.18`.
    pub version: String,
    /// E.g. 150018.
    pub version_num: u32,
    /// The cluster's identifier, in decimal; none where the user may not ask. A fork has that of its origin.
    pub system_identifier: Option<String>,
    /// Name of the database.
    pub database: String,
    /// The URL's user.
    pub user: String,
    /// Bytes on the server's disk.
    pub size: u64,
    /// E.g. `UTF8`.
    pub encoding: String,
    /// Tables and materialized views, without those of the lock.
    pub tables: u64,
    /// Large objects.
    pub large_objects: u64,
    /// It cannot be written to.
    pub is_standby: bool,
    /// The URL's user is a superuser.
    pub superuser: bool,
    /// A new session of this user would be read-only.
    pub read_only: bool,
}

/// A session of somebody else in the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its process id; 0 stands for a prepared transaction, which has none.
    pub pid: i32,
    /// Role.
    pub user: Option<String>,
    /// Its application_name.
    pub application: Option<String>,
    /// The client's address; none by a Unix socket, or where the URL's user may not see it, as with all below.
    pub client: Option<String>,
    /// `active`, `idle`, `idle in transaction`, …
    pub state: Option<String>,
    /// In this state since, `2026-11-22T01:20:00Z`.
    pub since: Option<String>,
    /// The beginning of its last statement, passwords masked.
    pub query: Option<String>,
    /// When it began: microseconds since 1970 by the server's clock.
    #[serde(skip)]
    pub began: Option<i64>,
}

impl Session {
    /// For a person: `process 4711 of app (rails, 10.0.0.7), idle since 2026-11-22T01:20:00Z`.
    pub fn describe(&self) -> String {
        let mut text = match self.pid {
            0 => self.application.clone().unwrap_or_default(),
            pid => format!("process {pid}"),
        };
        if let Some(user) = &self.user {
            text += &format!(" of {user}");
        }
        let application = self.application.as_ref().filter(|_| self.pid != 0);
        let whence: Vec<&str> =
            [application, self.client.as_ref()].into_iter().flatten().map(String::as_str).collect();
        if !whence.is_empty() {
            text += &format!(" ({})", whence.join(", "));
        }
        match (&self.state, &self.since) {
            (Some(state), Some(since)) => format!("{text}, {state} since {since}"),
            (Some(state), None) => format!("{text}, {state}"),
            (None, _) => text,
        }
    }
}

/// What a source is.
pub fn facts(db: &mut Db) -> Result<Source> {
    let sql = format!(
        "SELECT current_database()::text, current_user::text, pg_database_size(current_database()), \
         pg_encoding_to_char(encoding)::text, pg_is_in_recovery(), rolsuper, current_setting('server_version'), \
         (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm') \
         AND relpersistence <> 't' AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema', '{SCHEMA}')), \
         (SELECT count(*) FROM pg_largeobject_metadata), \
         (SELECT reset_val = 'on' FROM pg_settings WHERE name = 'default_transaction_read_only') \
         FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user"
    );
    let row = db.row(&sql, &[])?;
    // Some providers take the function away.
    let system_identifier = match db.version.has_control_functions() {
        true => db.value::<i64>("SELECT system_identifier FROM pg_control_system()", &[]).ok(),
        false => None,
    };
    let version: String = row.get(6);
    Ok(Source {
        version: version.split_whitespace().next().unwrap_or_default().to_owned(),
        version_num: db.version.num(),
        // SQL knows it as a signed number only.
        system_identifier: system_identifier.map(|id| (id as u64).to_string()),
        database: row.get(0),
        user: row.get(1),
        size: row.get::<_, i64>(2) as u64,
        encoding: row.get(3),
        tables: row.get::<_, i64>(7) as u64,
        large_objects: row.get::<_, i64>(8) as u64,
        is_standby: row.get(4),
        superuser: row.get(5),
        read_only: row.get(9),
    })
}

/// Client sessions in this database, and its prepared transactions; without those of pgmahout itself.
pub fn sessions(db: &mut Db) -> Result<Vec<Session>> {
    // Of other roles' sessions a user that is no superuser sees neither kind nor times. What has no role at all serves
    // no client.
    let is_client = match db.version.has_backend_type() {
        true => "coalesce(backend_type = 'client backend', usesysid IS NOT NULL)",
        false => {
            "usesysid IS NOT NULL AND coalesce(query NOT LIKE 'autovacuum: %', true) \
                  AND pid NOT IN (SELECT pid FROM pg_stat_replication)"
        }
    };
    let sql = format!(
        "SELECT pid, usename::text, nullif(application_name, ''), host(client_addr), state, \
         to_char(state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), nullif(query, ''), \
         (extract(epoch FROM backend_start) * 1000000)::int8 FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND {is_client} \
         AND application_name NOT LIKE 'pgmahout%' \
         UNION ALL SELECT 0, owner::text, 'the prepared transaction ' || gid, NULL, NULL, NULL, NULL, NULL \
         FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1"
    );
    let session = |row: &postgres::Row| Session {
        pid: row.get(0),
        user: row.get(1),
        application: row.get(2),
        client: row.get(3),
        state: row.get(4),
        since: row.get(5),
        query: row.get::<_, Option<String>>(6).map(first_words),
        began: row.get(7),
    };
    Ok(db.rows(&sql, &[])?.iter().map(session).collect())
}

fn first_words(query: String) -> String {
    // Masked first: half a password would not be known as one.
    let query = mask_passwords(&query).unwrap_or(query);
    query.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

/// Extensions, `plpgsql` left out.
pub fn extensions(db: &mut Db) -> Result<Vec<String>> {
    let sql = "SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1";
    Ok(db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

/// A role that a copy with owners and grants needs.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// It has no more than the schema `public` as initdb made it.
    pub has_only_public: bool,
}

/// Roles that own something in this database or are granted something in it. What the database itself is does not
/// count: that stays the target's. What the superuser that initdb made owns is not recorded among the dependencies (it is
/// pinned), so what is owned is asked for itself.
pub fn roles(db: &mut Db) -> Result<Vec<Role>> {
    let lock = literal(SCHEMA);
    // Whoever makes an extension owns what is in it.
    let unbound = |catalog: &str| {
        format!("AND oid NOT IN (SELECT objid FROM members WHERE classid = '{catalog}'::regclass)")
    };
    let publications = match db.version.has_partitions() {
        // Of the same version.
        true => "UNION SELECT pubowner FROM pg_publication ",
        false => "",
    };
    let sql = format!(
        "WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname = {lock} \
         UNION ALL SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = {lock} \
         UNION ALL SELECT t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE nspname = {lock}), \
         members AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e' \
         UNION SELECT 'pg_extension'::regclass, oid FROM pg_extension), \
         needed AS (SELECT refobjid AS role FROM pg_shdepend s, pg_database d WHERE refclassid = 'pg_authid'::regclass \
         AND d.datname = current_database() AND dbid = d.oid AND objid NOT IN (SELECT oid FROM ours) \
         AND s.deptype <> 'i' AND NOT (s.deptype = 'o' AND (classid, objid) IN (SELECT classid, objid FROM members)) \
         UNION SELECT relowner FROM pg_class WHERE oid >= 16384 AND oid NOT IN (SELECT oid FROM ours) \
         AND relpersistence <> 't' AND relkind NOT IN ('t', 'i', 'I') {0} \
         UNION SELECT nspowner FROM pg_namespace WHERE oid >= 16384 AND oid NOT IN (SELECT oid FROM ours) \
         AND nspname !~ '^pg_' \
         UNION SELECT proowner FROM pg_proc WHERE oid >= 16384 {1} \
         UNION SELECT typowner FROM pg_type t WHERE oid >= 16384 AND typtype IN ('b', 'd', 'e', 'r') \
         AND NOT EXISTS (SELECT FROM pg_type of WHERE of.typarray = t.oid) {2} \
         UNION SELECT evtowner FROM pg_event_trigger UNION SELECT srvowner FROM pg_foreign_server \
         UNION SELECT defaclrole FROM pg_default_acl {publications}\
         UNION SELECT lomowner FROM pg_largeobject_metadata) \
         SELECT rolname::text, oid NOT IN (SELECT role FROM needed) FROM pg_roles WHERE rolname !~ '^pg_' \
         AND (oid IN (SELECT role FROM needed) \
         OR oid = (SELECT nspowner FROM pg_namespace WHERE nspname = 'public')) ORDER BY 1",
        unbound("pg_class"),
        unbound("pg_proc"),
        unbound("pg_type")
    );
    let role = |row: &postgres::Row| Role { name: row.get(0), has_only_public: row.get(1) };
    Ok(db.rows(&sql, &[])?.iter().map(role).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_described() {
        let mut session = Session {
            pid: 7,
            user: Some("app".into()),
            application: Some("rails".into()),
            client: Some("10.0.0.7".into()),
            state: Some("idle".into()),
            since: Some("2026-11-22T01:20:00Z".into()),
            query: None,
            began: None,
        };
        assert_eq!(session.describe(), "process 7 of app (rails, 10.0.0.7), idle since 2026-11-22T01:20:00Z");
        (session.state, session.client, session.application) = (None, None, None);
        assert_eq!(session.describe(), "process 7 of app");
        (session.pid, session.application) = (0, Some("the prepared transaction x".into()));
        assert_eq!(session.describe(), "the prepared transaction x of app");
    }

    #[test]
    fn a_query_is_shown_by_its_beginning_without_passwords() {
        let query = format!("ALTER ROLE x\n  PASSWORD 'geheim'  {}", "y ".repeat(99));
        let shown = first_words(query);
        assert!(
            shown.starts_with("ALTER ROLE x PASSWORD '***' y")
                || shown.starts_with("ALTER ROLE x PASSWORD *** y"),
            "{shown}"
        );
        assert_eq!(shown.chars().count(), 60);
    }
}
