//! Owns what a source is, who is in it, and who has locked it, all at once.

use super::lock::{self, Lock};
use super::source::{self, Session, Source};
use crate::error::Result;
use crate::sql::Target;
use serde::{Deserialize, Serialize};

/// Everything about a source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    /// What it is.
    #[serde(flatten)]
    pub source: Source,
    /// Sessions of others in it.
    pub sessions: Vec<Session>,
    /// Roles that own something in it or are granted something; predefined ones left out.
    pub roles: Vec<String>,
    /// Extensions, `plpgsql` left out.
    pub extensions: Vec<String>,
    /// The lock of a migration.
    pub lock: Option<Lock>,
}

/// Looks at it, and changes nothing.
pub fn look(from: &Target) -> Result<Look> {
    let mut db = source::connect(from)?;
    let db = &mut db;
    Ok(Look {
        source: source::facts(db)?,
        sessions: source::sessions(db)?,
        roles: source::roles(db)?
            .into_iter()
            .filter(|role| !role.has_only_public)
            .map(|role| role.name)
            .collect(),
        extensions: source::extensions(db)?,
        lock: lock::read(db)?,
    })
}
