//! Waits until this instance is ready: a copy in the background until it is done, a standby until it has
//! replayed everything that its primary had written when the wait began, a primary until it accepts
//! connections.

use super::standby::{self, Lag};
use super::{Context, enslave::there::end_of_wal, job};
use crate::error::{Error, Result};
use crate::postgres::wal::Lsn;
use crate::process;
use crate::service;
use crate::sql::Db;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What it came to.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// `primary` or `standby`.
    pub role: &'static str,
    /// The position that had to be reached.
    pub target: Option<Lsn>,
    /// How far it is behind now.
    pub lag: Option<Lag>,
    /// Seconds waited.
    pub seconds: f64,
}

/// Waits at most `limit`.
pub fn run(context: Context, limit: Duration) -> Result<Report> {
    let started = Instant::now();
    let instance = context.instance;
    let left = || limit.saturating_sub(started.elapsed());
    job::wait(context, limit)?;
    // One that has just been told to start gets a moment to be seen.
    let seen = process::wait_for(Duration::from_secs(3).min(left()), || Ok(instance.running().map(drop)))?;
    if seen.is_none() {
        let name = instance.name.clone();
        return Err(match instance.fenced() {
            Some(why) => Error::Fenced { instance: name, why },
            None => Error::ServerDown { instance: name },
        });
    }
    let mut db = standby::connect_when_ready(context, left())?;
    let name = instance.name.clone();
    if !db.in_recovery()? {
        let seconds = started.elapsed().as_secs_f64();
        return Ok(Report { instance: name, role: "primary", target: None, lag: None, seconds });
    }
    let conninfo = standby::primary_conninfo(&mut db, &instance.data_directory()?)?;
    let primary = match &conninfo {
        Some(conninfo) => standby::primary_target(instance, conninfo, "the primary")?,
        None => None,
    };
    let end = |target: &Option<crate::sql::Target>| -> Option<Lsn> {
        let mut db = Db::connect(target.as_ref()?).ok()?;
        let in_recovery = db.in_recovery().ok()?;
        end_of_wal(&mut db, in_recovery).ok()
    };
    let target = match end(&primary) {
        Some(lsn) => lsn,
        None => {
            context.progress.warn("the primary could not be asked: waiting for what was received");
            standby::positions(&mut db)?.0.unwrap_or(Lsn::ZERO)
        }
    };
    let mut last = standby::positions(&mut db)?.1.unwrap_or(Lsn::ZERO);
    context.progress.begin_bytes("replay", target.0.saturating_sub(last.0));
    let reached = process::wait_for(left(), || {
        let now = standby::positions(&mut db)?.1.unwrap_or(Lsn::ZERO);
        context.progress.add(now.0.saturating_sub(last.0));
        last = last.max(now);
        Ok((now >= target).then_some(()))
    });
    context.progress.end();
    if reached?.is_none() {
        let behind = target.0.saturating_sub(last.0);
        let log = if standby::is_streaming(&mut db)? { None } else { service::log_tail(instance) };
        return Err(Error::NotCaughtUp { limit, behind, log });
    }
    let lag = standby::lag(&mut db, end(&primary))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report { instance: name, role: "standby", target: Some(target), lag: Some(lag), seconds })
}
