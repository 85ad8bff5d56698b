//! Owns what this instance remembers of a copy between its steps: `copy-ID.json` in the state directory.

use super::super::Context;
use super::fill::Filled;
use crate::backups::manifest::Needs;
use crate::durable::{self, Context as _};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The database that is filled.
    pub database: String,
    /// Its encoding and locale before; none where there was none.
    pub before: Option<Needs>,
    /// When the source's sums were read, in seconds since 1970; none until it is filled.
    pub read_at: Option<i64>,
    /// What was filled, with the source's sums.
    pub filled: Filled,
    /// Both sides were compared, and are alike.
    pub is_compared: bool,
}

fn path(context: Context, id: &str) -> PathBuf {
    context.instance.state_directory.join(format!("copy-{id}.json"))
}

impl State {
    /// What is remembered of the copy of this id; none when that is nothing, or nothing that can be read.
    pub fn read(context: Context, id: &str) -> Result<Option<State>> {
        let path = path(context, id);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", &path),
        }
    }

    /// Remembers it.
    pub fn write(&self, context: Context, id: &str) -> Result<()> {
        durable::create_private_directory(&context.instance.state_directory)?;
        let bytes = serde_json::to_vec(self).expect("plain data");
        durable::write(&path(context, id), &bytes, 0o600)
    }
}

/// Forgets it.
pub fn forget(context: Context, id: &str) -> Result<()> {
    let path = path(context, id);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", &path),
        _ => Ok(()),
    }
}
