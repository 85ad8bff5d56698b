//! What the two ways to take a backup are asked, and what they answer.

use crate::backups::manifest::{By, Kind, Needs, Physical, Properties, Table};
use crate::postgres::wal::{Lsn, SystemId, Timeline};

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database; none: the only one that is not a template or `postgres`, else `postgres`. Not of a physical one.
    pub database: Option<String>,
    /// What kind.
    pub kind: Kind,
    /// Who asked.
    pub by: By,
    /// `auto`, `none`, METHOD[:LEVEL]; in place of the setting.
    pub compression: Option<String>,
    /// Processors to use; in place of the setting.
    pub jobs: Option<usize>,
    /// The backup's number is to be greater than this: the app has that many on its other instances.
    pub after: Option<u32>,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What is backed up, found out before anything is stored.
pub struct Subject {
    /// Database; none of a physical backup.
    pub database: Option<String>,
    /// Bytes on the server's disk.
    pub database_size: u64,
}

/// What a backup's bytes turned out to be.
pub struct Written {
    /// Bytes before compression.
    pub content_size: u64,
    /// METHOD[:LEVEL] as used.
    pub compression: String,
    /// The instance is a standby.
    pub from_standby: bool,
    /// E.g. `15.18`.
    pub server_version: String,
    /// E.g. 150018.
    pub server_version_num: u32,
    /// pg_dump's.
    pub tool_version: Option<String>,
    /// The cluster's.
    pub system_id: SystemId,
    /// Of `lsn`.
    pub timeline: Timeline,
    /// What was committed up to here is in it.
    pub lsn: Lsn,
    /// What it holds.
    pub tables: Vec<Table>,
    /// What a restore needs.
    pub needs: Needs,
    /// What the database is beside what it holds; none of a physical one.
    pub properties: Option<Properties>,
    /// What only a physical one has.
    pub physical: Option<Physical>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}
