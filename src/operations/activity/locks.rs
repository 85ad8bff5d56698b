//! Owns who waits for whom, and who holds what others may have to wait for.

use super::super::Context;
use super::{Session, connect, sessions, target, view};
use crate::error::Result;
use crate::postgres::version::PgVersion;
use crate::sql::Db;
use postgres::Row;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A lock: what it is of, and how strong.
#[derive(Clone, Debug, Serialize)]
pub struct Lock {
    /// `relation`, `transactionid`, `tuple`, `advisory`, … (pg_locks.locktype).
    #[serde(rename = "type")]
    pub kind: String,
    /// `ExclusiveLock`, `ShareLock`, … (pg_locks.mode).
    pub mode: String,
    /// The relation, also of the row behind which a transaction is waited for.
    pub relation: Option<String>,
    /// The transaction.
    pub transaction: Option<String>,
    /// In words: "orders", "transaction 741 (a row of orders)".
    pub object: String,
}

/// A session that waits.
#[derive(Debug, Serialize)]
pub struct Waiting {
    /// Who.
    #[serde(flatten)]
    pub session: Session,
    /// For what.
    pub lock: Lock,
    /// How long; before 14 as long as its statement runs.
    pub waiting_seconds: Option<f64>,
    /// Because of whom.
    pub blockers: Vec<Session>,
}

/// An exclusive lock that somebody has.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Who.
    #[serde(flatten)]
    pub session: Session,
    /// What.
    pub lock: Lock,
    /// How old its transaction is.
    pub age_seconds: Option<f64>,
}

/// Both lists.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Who waits, the longest first.
    pub waiting: Vec<Waiting>,
    /// ExclusiveLock and AccessExclusiveLock, the oldest transaction first.
    pub held: Vec<Held>,
}

/// A row of `pg_locks`, before its relation has a name.
struct Raw {
    pid: i32,
    kind: String,
    mode: String,
    database: u32,
    relation: Option<u32>,
    transaction: Option<String>,
    key: Option<String>,
    seconds: Option<f64>,
    blockers: Vec<i32>,
}

/// Asks for both.
pub fn run(context: Context) -> Result<Report> {
    let mut db = connect(context)?;
    let mut waiting = raw(&mut db, &waiting_sql)?;
    waiting.sort_by(|a, b| b.seconds.unwrap_or(0.0).total_cmp(&a.seconds.unwrap_or(0.0)));
    let mut held = raw(&mut db, &held_sql)?;
    // Each savepoint is a transaction of its own; one of them tells that the session has written.
    held.dedup_by(|b, a| a.pid == b.pid && a.kind == "transactionid" && b.kind == "transactionid");
    let names = relation_names(context, &mut db, waiting.iter().chain(&held))?;
    let sessions: BTreeMap<i32, Session> =
        sessions(&mut db)?.into_iter().map(|session| (session.pid, session)).collect();
    let waiting = waiting.into_iter().filter_map(|raw| {
        Some(Waiting {
            session: sessions.get(&raw.pid)?.clone(),
            lock: raw.lock(&names),
            waiting_seconds: raw.seconds,
            blockers: raw.blockers.iter().filter_map(|pid| blocker(*pid, &sessions)).collect(),
        })
    });
    let held = held.into_iter().filter_map(|raw| {
        let session = sessions.get(&raw.pid)?.clone();
        Some(Held { session, lock: raw.lock(&names), age_seconds: raw.seconds })
    });
    let instance = context.instance.name.clone();
    Ok(Report { instance, waiting: waiting.collect(), held: held.collect() })
}

fn blocker(pid: i32, sessions: &BTreeMap<i32, Session>) -> Option<Session> {
    if pid != 0 {
        return sessions.get(&pid).cloned();
    }
    Some(Session {
        pid,
        kind: "prepared transaction".into(),
        state: None,
        source: None,
        user: None,
        database: None,
        client: None,
        running_seconds: None,
        waiting_on: None,
        query: None,
        began: None,
        statement_began: None,
    })
}

/// The columns of [`Raw`] but the last two. Of a transaction that is waited for, the row that is wanted: who
/// waits has its tuple lock.
fn columns() -> String {
    let tuple = |column: &str| {
        format!(
            "coalesce(l.{column}, CASE WHEN NOT l.granted THEN (SELECT t.{column} FROM pg_locks t \
             WHERE t.pid = l.pid AND t.granted AND t.locktype = 'tuple' LIMIT 1) END)"
        )
    };
    format!(
        "l.pid, l.locktype, l.mode, coalesce({}, 0::oid), {}, l.transactionid::text, \
         CASE WHEN l.locktype = 'advisory' THEN CASE WHEN l.objsubid = 1 \
         THEN ((l.classid::bigint << 32) | l.objid::bigint)::text \
         ELSE l.classid::text || ', ' || l.objid::text END END",
        tuple("database"),
        tuple("relation")
    )
}

fn waiting_sql(version: PgVersion) -> String {
    let since = match version.has_lock_wait_start() {
        true => "coalesce(l.waitstart, a.query_start)",
        false => "a.query_start",
    };
    // Whoever has a lock on the same object, conflicting or not.
    let holders = "ARRAY(SELECT coalesce(h.pid, 0) FROM pg_locks h WHERE h.granted \
        AND h.pid IS DISTINCT FROM l.pid AND (h.locktype, h.database, h.relation, h.page, h.tuple, h.virtualxid, \
        h.transactionid, h.classid, h.objid, h.objsubid) IS NOT DISTINCT FROM (l.locktype, l.database, l.relation, \
        l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, l.objid, l.objsubid))";
    let blockers = match version.has_blocking_pids() {
        // It does not know a standby's startup process, whose lock conflicts with every other.
        true => format!("coalesce(nullif(pg_blocking_pids(l.pid), '{{}}'), {holders})"),
        false => holders.to_owned(),
    };
    format!(
        "SELECT {}, extract(epoch FROM clock_timestamp() - {since})::float8, {blockers} \
         FROM pg_locks l JOIN {} a ON a.pid = l.pid WHERE NOT l.granted",
        columns(),
        view(version)
    )
}

fn held_sql(version: PgVersion) -> String {
    format!(
        "SELECT {}, extract(epoch FROM clock_timestamp() - a.xact_start)::float8, NULL::int4[] \
         FROM pg_locks l JOIN {} a ON a.pid = l.pid \
         WHERE l.granted AND l.mode IN ('ExclusiveLock', 'AccessExclusiveLock') AND l.locktype <> 'virtualxid' \
         AND l.pid <> pg_backend_pid() \
         ORDER BY a.xact_start NULLS LAST, l.pid, l.locktype, l.transactionid::text::bigint, l.relation",
        columns(),
        view(version)
    )
}

fn raw(db: &mut Db, sql: &dyn Fn(PgVersion) -> String) -> Result<Vec<Raw>> {
    let sql = sql(db.version);
    let read = |row: &Row| {
        let mut blockers = row.get::<_, Option<Vec<i32>>>(8).unwrap_or_default();
        blockers.sort_unstable();
        blockers.dedup();
        Raw {
            pid: row.get(0),
            kind: row.get(1),
            mode: row.get(2),
            database: row.get(3),
            relation: row.get(4),
            transaction: row.get(5),
            key: row.get(6),
            seconds: row.get::<_, Option<f64>>(7).map(|seconds| seconds.max(0.0)),
            blockers,
        }
    };
    Ok(db.rows(&sql, &[])?.iter().map(read).collect())
}

/// Database and relation to the relation's name.
type Names = BTreeMap<(u32, u32), String>;

impl Raw {
    fn lock(&self, names: &Names) -> Lock {
        let relation = self.relation.map(|relation| {
            let known = names.get(&(self.database, relation)).cloned();
            known.unwrap_or_else(|| format!("relation {relation}"))
        });
        let of = relation.as_deref().unwrap_or("?");
        let object = match self.kind.as_str() {
            "relation" => of.to_owned(),
            "transactionid" => {
                let row = relation.as_ref().map(|of| format!(" (a row of {of})")).unwrap_or_default();
                format!("transaction {}{row}", self.transaction.as_deref().unwrap_or("?"))
            }
            "virtualxid" => "a transaction's end".to_owned(),
            "tuple" => format!("a row of {of}"),
            "advisory" => format!("advisory lock {}", self.key.as_deref().unwrap_or("?")),
            kind if relation.is_some() => format!("{kind} of {of}"),
            kind => kind.to_owned(),
        };
        let transaction = self.transaction.clone();
        Lock { kind: self.kind.clone(), mode: self.mode.clone(), relation, transaction, object }
    }
}

/// A name can only be asked in the relation's own database: the same number may be another one elsewhere.
fn relation_names<'a>(context: Context, db: &mut Db, locks: impl Iterator<Item = &'a Raw>) -> Result<Names> {
    let mut wanted: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for raw in locks {
        if let Some(relation) = raw.relation {
            wanted.entry(raw.database).or_default().insert(relation);
        }
    }
    let mut names = Names::new();
    if wanted.is_empty() {
        return Ok(names);
    }
    let target = target(context)?;
    for row in db.rows("SELECT oid, datname::text FROM pg_database WHERE datallowconn", &[])? {
        let (database, name): (u32, String) = (row.get(0), row.get(1));
        let Some(relations) = wanted.get(&database) else { continue };
        // Without a name there is still its number.
        let Ok(mut there) = Db::connect(&target.database(&name)) else { continue };
        name_in(&mut there, database, relations, &mut names)?;
    }
    if let Some(shared) = wanted.get(&0) {
        name_in(db, 0, shared, &mut names)?;
    }
    Ok(names)
}

fn name_in(db: &mut Db, database: u32, relations: &BTreeSet<u32>, names: &mut Names) -> Result<()> {
    let relations: Vec<u32> = relations.iter().copied().collect();
    let found =
        db.rows("SELECT oid, oid::regclass::text FROM pg_class WHERE oid = ANY($1)", &[&relations])?;
    names.extend(found.iter().map(|row| ((database, row.get(0)), row.get(1))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_has() {
        let sql = |version: &str| waiting_sql(PgVersion::parse(version).unwrap());
        assert!(sql("14").contains("waitstart") && !sql("13").contains("waitstart"));
        assert!(sql("9.6").contains("pg_blocking_pids") && !sql("9.5").contains("pg_blocking_pids"));
        assert!(sql("9.1").contains("procpid AS pid"));
    }

    #[test]
    fn locks_in_words() {
        let names = Names::from([((5, 100), "orders".to_owned())]);
        let raw = |kind: &str, relation, transaction: Option<&str>, key: Option<&str>| Raw {
            pid: 1,
            kind: kind.into(),
            mode: "ShareLock".into(),
            database: 5,
            relation,
            transaction: transaction.map(str::to_owned),
            key: key.map(str::to_owned),
            seconds: None,
            blockers: Vec::new(),
        };
        let cases = [
            (raw("relation", Some(100), None, None), "orders"),
            (raw("relation", Some(101), None, None), "relation 101"),
            (raw("transactionid", None, Some("741"), None), "transaction 741"),
            (raw("transactionid", Some(100), Some("741"), None), "transaction 741 (a row of orders)"),
            (raw("tuple", Some(100), None, None), "a row of orders"),
            (raw("advisory", None, None, Some("3, 4")), "advisory lock 3, 4"),
            (raw("extend", Some(100), None, None), "extend of orders"),
            (raw("virtualxid", None, None, None), "a transaction's end"),
        ];
        for (raw, object) in cases {
            assert_eq!(raw.lock(&names).object, object);
        }
    }
}
