//! Drops the slot of a standby that does not come back, before it fills this instance's disk.

use super::{Context, peers, standby};
use crate::error::{Error, Result};
use crate::postgres::recovery::slot_name;
use crate::process;
use crate::sql::{Db, Target};
use serde::Serialize;
use std::time::Duration;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The slot.
    pub slot: String,
    /// It was there.
    pub dropped: bool,
    /// The instance was known as one that may take this one's place, and is not any more.
    pub forgotten: bool,
}

/// The sender of a standby that has just ended may need a moment to notice.
const PATIENCE: Duration = Duration::from_secs(10);

/// Drops the slot that the instance `of` used as a standby of this one.
pub fn run(context: Context, of: &str) -> Result<Report> {
    let instance = context.instance;
    let slot = slot_name(instance.app.as_deref(), of);
    let forgotten = peers::forget(instance, of)?;
    let mut db = Db::connect(&Target::local(instance)?)?;
    let report = |dropped| Report { instance: instance.name.clone(), slot: slot.clone(), dropped, forgotten };
    let is_there = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
    if !db.version.has_replication_slots() || db.value::<i64>(is_there, &[&slot])? == 0 {
        return Ok(report(false));
    }
    let dropped = process::wait_for(PATIENCE, || Ok(standby::drop_slot(&mut db, &slot)?.then_some(())))?;
    dropped.ok_or_else(|| Error::SlotOfStandby { slot: slot.clone(), standby: of.to_owned() })?;
    Ok(report(true))
}
