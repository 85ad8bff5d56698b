//! Stops an old primary cleanly, from the machine of its successor: what `promote --fence` runs on the
//! other side, and takes back when the promotion cannot go on.

use super::Context;
use super::enslave::here::{end_of_files, has_standby_file};
use crate::durable::{self, Lock};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::postgres::control::ClusterState;
use crate::postgres::wal::{Lsn, SystemId, Timeline};
use crate::progress::time_text;
use crate::service;
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the fenced side answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fenced {
    /// Its name.
    pub instance: String,
    /// Its system identifier.
    pub system_id: SystemId,
    /// A standby that has received at least this has received all that it wrote.
    pub end: Lsn,
    /// The timeline it wrote on.
    pub timeline: Timeline,
    /// It was running until now, or an earlier fence had stopped it.
    pub was_running: bool,
}

/// Stops the server of this instance, if it is the primary of the cluster that is `expected`, and says
/// where its WAL ends. It stays down until it is somebody's standby.
pub fn fence(context: Context, expected: SystemId, successor: &str) -> Result<Fenced> {
    let instance = context.instance;
    instance.check_account()?;
    let _lock = instance.lock("fence")?;
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
    let fence = instance.fence_file();
    check_successor(context, successor)?;
    let was_running = instance.running().is_some() || fence.exists();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let text = format!(
        "{successor}{IN_PLACE_OF}{} at {}; make this instance its standby by pgmahout enslave, or \
         remove {} to start it as a second primary\n",
        instance.name,
        time_text(now as i64),
        fence.display()
    );
    // Before the stop: were the machine to reboot in between, it would start as a primary.
    durable::create_private_directory(&instance.state_directory)?;
    boundary("fence.writing");
    durable::write(&fence, text.as_bytes(), 0o600)?;
    if let Err(error) = service::stop(instance) {
        let _ = std::fs::remove_file(&fence);
        return Err(error);
    }
    let control = instance.control()?.ok_or(Error::NoCluster { path: data.clone() })?;
    let timeline = instance.newest_timeline(&control)?;
    let end = if control.state == ClusterState::ShutDown {
        // The shutdown checkpoint is the last record: what is received ends with a record, so more than its
        // beginning is all of it.
        Lsn(control.checkpoint.0 + 1)
    } else {
        // It had crashed: the end of its WAL is in its files, and may never have left this machine.
        let version = instance.data_version()?.ok_or(Error::NoCluster { path: data.clone() })?;
        end_of_files(&data, &control, version, timeline)?
    };
    boundary("fence.answering");
    Ok(Fenced { instance: instance.name.clone(), system_id: control.system_id, end, timeline, was_running })
}

/// Takes the fence of `successor` (or anybody's) back: the server starts again as it was.
pub fn unfence(context: Context, successor: Option<&str>) -> Result<()> {
    let instance = context.instance;
    let limit = instance.stop_timeout;
    // Who fences may still be at it, and the server on its way down.
    let _lock = Lock::wait(&instance.state_directory.join("lock"), "fence --undo", limit, |holder| {
        context.progress.step(format!("waiting for another pgmahout: {holder}"));
    })?;
    if let Some(successor) = successor {
        check_successor(context, successor)?;
    }
    super::standby::lift_fence(instance)?;
    super::standby::start_and_connect(context).map(drop)
}

/// What stands in the fence between the successor's name and ours.
const IN_PLACE_OF: &str = " was promoted in place of ";

/// Who was stopped for one successor is nobody else's to be stopped or started: that one may be the primary
/// by now, and a second one would be promoted, or this one started, beside it.
fn check_successor(context: Context, successor: &str) -> Result<()> {
    let fence = context.instance.fence_file();
    let Ok(text) = fs::read_to_string(&fence) else { return Ok(()) };
    match text.split_once(IN_PLACE_OF) {
        Some((first, _)) if first != successor => Err(Error::FencedForAnother {
            instance: context.instance.name.clone(),
            successor: first.to_owned(),
            fence,
        }),
        _ => Ok(()),
    }
}
