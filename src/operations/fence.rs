//! Stops an old primary cleanly, from the machine of its successor: what `promote --fence` runs on the
//! other side, and takes back when the promotion cannot go on.

use super::Context;
use super::enslave::here::has_standby_file;
use crate::durable::{self, Lock};
use crate::error::{Error, Result};
use crate::postgres::wal::{Lsn, SystemId};
use crate::progress::time_text;
use crate::service;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the fenced side answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fenced {
    /// Its name.
    pub instance: String,
    /// Its system identifier.
    pub system_id: SystemId,
    /// Position of its shutdown checkpoint: the last record it wrote.
    pub checkpoint: Lsn,
    /// It was running until now.
    pub was_running: bool,
}

/// Stops the server of this instance, if it is the primary of the cluster that is `expected`, and says
/// where its WAL ends. It stays down until it is somebody's standby.
pub fn fence(context: Context, expected: SystemId, successor: &str) -> Result<Fenced> {
    let instance = context.instance;
    instance.check_account()?;
    let _lock = Lock::take(&instance.state_directory.join("lock"), "fence")?;
    let data = instance.data_directory()?;
    if has_standby_file(&data) {
        return Err(Error::NotAPrimary { instance: instance.name.clone() });
    }
    let found = instance.control()?.ok_or(Error::NoCluster { path: data.clone() })?.system_id;
    if found != expected {
        return Err(Error::FencedAnother {
            instance: instance.name.clone(),
            theirs: found.to_string(),
            expected: expected.to_string(),
        });
    }
    let was_running = instance.running().is_some();
    service::stop(instance)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let text = format!(
        "{successor} was promoted in place of {} at {}; make this instance its standby by pgmahout enslave, or \
         remove {} to start it as a second primary\n",
        instance.name,
        time_text(now as i64),
        instance.fence_file().display()
    );
    durable::write(&instance.fence_file(), text.as_bytes(), 0o600)?;
    let control = instance.control()?.ok_or(Error::NoCluster { path: data })?;
    Ok(Fenced {
        instance: instance.name.clone(),
        system_id: control.system_id,
        checkpoint: control.checkpoint,
        was_running,
    })
}

/// Takes a fence back: the server starts again as it was.
pub fn unfence(context: Context) -> Result<()> {
    super::standby::start_and_connect(context).map(drop)
}
