//! Backups of this instance: one checklist per verb.

pub mod auto;
pub mod capture;
pub mod check;
pub mod download;
pub mod logical;
pub mod physical;
pub mod properties;
pub mod restore;
pub mod schedule;
mod scratch;
pub mod subject;
pub mod tools;
pub mod url;
pub mod verify;

use super::Context;
use crate::backups::manifest::{BackupId, Manifest};
use crate::durable::Lock;
use crate::error::Result;
use crate::store::catalog::Listed;
use crate::store::{self, Store, catalog};
use std::path::PathBuf;

/// One backup, restore or verification on an instance at a time; they do not keep anything else waiting.
pub fn lock(context: Context, doing: &str) -> Result<Lock> {
    Lock::take(&lock_file(context), doing)
}

fn lock_file(context: Context) -> PathBuf {
    context.instance.state_directory.join("backup.lock")
}

/// All backups in this instance's store, in the order in which they were taken.
pub fn list(context: Context) -> Result<Vec<Listed>> {
    catalog::list(&*store::open(context.instance)?, context.progress)
}

/// One backup.
pub fn info(context: Context, id: BackupId) -> Result<Listed> {
    catalog::find(&*store::open(context.instance)?, id)
}

/// Removes one backup; gives what it was.
pub fn delete(context: Context, id: BackupId, dry_run: bool) -> Result<Manifest> {
    let store: Box<dyn Store> = store::open(context.instance)?;
    let manifest = catalog::find(&*store, id)?.manifest;
    if !dry_run {
        catalog::remove(&*store, &manifest)?;
    }
    Ok(manifest)
}

/// Seconds since 1970 by this machine's clock.
pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() as i64)
}
