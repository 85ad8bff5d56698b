//! Owns how a session is stopped: its statement, or all of it, and seen to have stopped.

use super::super::Context;
use super::{CLIENT, Session, connect, session, sessions, sessions_sql, view};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::Db;
use serde::Serialize;
use std::time::Duration;

/// A statement sees its cancellation at its next check for interrupts, normally at once.
const LIMIT: Duration = Duration::from_secs(5);

/// Whom to stop.
#[derive(Clone, Copy, Debug)]
pub enum Whom {
    /// The session of this process id.
    One(i32),
    /// All client sessions but our own.
    All,
}

/// What was stopped.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// `cancelled` (the statement) or `ended` (the session).
    pub action: &'static str,
    /// How many.
    pub count: usize,
    /// Them, as they were before.
    pub sessions: Vec<Session>,
}

/// Cancels the statement, or with `force` ends the session.
pub fn run(context: Context, whom: Whom, force: bool) -> Result<Report> {
    let mut db = connect(context)?;
    let sessions = match whom {
        Whom::One(pid) => vec![one(&mut db, pid, force)?],
        Whom::All => {
            let mut all = sessions(&mut db)?;
            // Ours may be in the middle of a copy.
            let ours = |session: &Session| session.source.as_deref() == Some("pgmahout");
            all.retain(|session| {
                session.kind == CLIENT && !ours(session) && (force || idle(session).is_none())
            });
            all
        }
    };
    for session in &sessions {
        context.progress.detail(format!("session {}: {}", session.pid, action(force)));
        tell(&mut db, session, force)?;
    }
    let mut left = Vec::new();
    process::wait_for(LIMIT, || {
        left = still_there(&mut db, &sessions, force)?;
        Ok(left.is_empty().then_some(()))
    })?;
    if !left.is_empty() {
        return Err(Error::DoesNotStop { pids: left, told: sessions.len(), ended: force, limit: LIMIT });
    }
    let instance = context.instance.name.clone();
    Ok(Report { instance, action: action(force), count: sessions.len(), sessions })
}

fn action(force: bool) -> &'static str {
    if force { "ended" } else { "cancelled" }
}

/// The state of a session that runs no statement.
fn idle(session: &Session) -> Option<&str> {
    session.state.as_deref().filter(|state| state.starts_with("idle"))
}

fn one(db: &mut Db, pid: i32, force: bool) -> Result<Session> {
    let sql = format!("{} AND a.pid = $1", sessions_sql(db.version));
    let found = db.rows(&sql, &[&pid])?;
    let session = found.first().map(session).ok_or(Error::NoSuchSession { pid })?;
    let vacuum = session.kind == "autovacuum worker" && force;
    if session.kind != CLIENT && !vacuum {
        let name = session.source.filter(|_| session.kind == "walsender");
        return Err(Error::NotAClient { pid, kind: session.kind, name });
    }
    match idle(&session) {
        Some(state) if !force => Err(Error::NothingToCancel { pid, state: state.to_owned() }),
        _ => Ok(session),
    }
}

/// Only that very session, and that very statement: the next one of a session is nobody's to cancel.
fn tell(db: &mut Db, session: &Session, force: bool) -> Result<()> {
    let view = view(db.version);
    if force {
        let sql = format!(
            "SELECT pg_terminate_backend(a.pid) FROM {view} a WHERE a.pid = $1 AND a.backend_start::text = $2"
        );
        return db.rows(&sql, &[&session.pid, &session.began]).map(drop);
    }
    let sql = format!(
        "SELECT pg_cancel_backend(a.pid) FROM {view} a WHERE a.pid = $1 AND a.backend_start::text = $2 \
         AND a.query_start::text IS NOT DISTINCT FROM $3::text"
    );
    db.rows(&sql, &[&session.pid, &session.began, &session.statement_began]).map(drop)
}

/// Those that go on with what they did when they were told.
fn still_there(db: &mut Db, told: &[Session], force: bool) -> Result<Vec<i32>> {
    let now = sessions(db)?;
    let goes_on = |before: &&Session| {
        now.iter().any(|session| {
            let same = session.pid == before.pid && session.began == before.began;
            let same_statement = session.statement_began == before.statement_began && idle(session).is_none();
            same && (force || same_statement)
        })
    };
    Ok(told.iter().filter(goes_on).map(|session| session.pid).collect())
}
