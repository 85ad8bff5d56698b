//! Owns which files of a data directory belong to a copy of it, and what their names mean.
//!
//! The list is that of PostgreSQL's own base backup (`basebackup.c`, and "Base Backup" in the
//! documentation). Paths are relative to the data directory, with `/`, without a leading one;
//! tablespaces are seen through `pg_tblspc/<oid>/`.

use super::version::PgVersion;
use std::collections::HashSet;

/// What a base backup does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It belongs to the copy.
    Keep,
    /// The directory belongs to the copy, nothing below it does.
    KeepDirectoryOnly,
    /// It is left out.
    Skip,
}

/// Directories of which only the directory is copied. `pg_wal` is added by version.
const EMPTY_DIRECTORIES: &[&str] =
    &["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];

/// Directories below the WAL directory that the server expects (`summaries` from 17 on).
const WAL_DIRECTORIES: &[&str] = &["archive_status", "summaries"];

/// Files that stand at the top and describe the source as it is running, or was made.
const SKIPPED_AT_TOP: &[&str] = &[
    "postmaster.pid",
    "postmaster.opts",
    "backup_manifest",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    // What the copy becomes is written for it: these would make a fork a standby.
    "recovery.conf",
    "recovery.signal",
    "standby.signal",
];

/// Names that begin like this are the agent's own, anywhere.
pub const OWN_PREFIX: &str = ".pgmahout";

/// Whether a path belongs to a copy, as far as the path alone tells. Ask [`Unlogged::leaves_out`] too.
pub fn decide(path: &str, is_directory: bool, version: PgVersion) -> Decision {
    use Decision::*;
    let parts: Vec<&str> = path.split('/').collect();
    let name = parts.last().copied().unwrap_or_default();
    if name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init") || name.starts_with(OWN_PREFIX) {
        return Skip;
    }
    let wal = version.wal_directory();
    match parts[..] {
        [top] if top == wal || EMPTY_DIRECTORIES.contains(&top) => KeepDirectoryOnly,
        [top, below] if top == wal && is_directory && WAL_DIRECTORIES.contains(&below) => KeepDirectoryOnly,
        [top, ..] if top == wal || EMPTY_DIRECTORIES.contains(&top) => Skip,
        // In exclusive mode (up to 9.5) the server itself wrote these two, and the copy needs them.
        ["backup_label" | "tablespace_map"] if version.has_nonexclusive_backup() => Skip,
        [top] if SKIPPED_AT_TOP.contains(&top) => Skip,
        ["pg_tblspc", _, directory, ..] if !is_tablespace_of(directory, version) => Skip,
        _ if !is_directory && is_relation_directory(&parts) && is_temporary_relation(name) => Skip,
        _ => Keep,
    }
}

/// A tablespace holds one directory per major version that uses it: `PG_15_202209061`, and
/// `PG_9.2_201204301` before 10.
fn is_tablespace_of(directory: &str, version: PgVersion) -> bool {
    directory
        .strip_prefix(&format!("PG_{}_", version.major()))
        .is_some_and(|catalog| !catalog.is_empty() && catalog.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether the path's directory holds the relations of one database.
fn is_relation_directory(parts: &[&str]) -> bool {
    match parts {
        ["base", database, _] => oid(database).is_some(),
        ["pg_tblspc", _, _, database, _] => oid(database).is_some(),
        _ => false,
    }
}

fn oid(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Which part of a relation a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fork {
    /// Its rows or index entries.
    Main,
    /// Its free space map.
    FreeSpace,
    /// Its visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// A relation's file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The number that `pg_relation_filenode()` gives.
    pub filenode: u32,
    /// Which part.
    pub fork: Fork,
    /// Which gigabyte of it, from 0.
    pub segment: u32,
}

/// Reads `16384`, `16384.1`, `16384_fsm`, `16384_vm.2`, `16384_init`; `None` for anything else.
pub fn parse_relation_file(name: &str) -> Option<RelationFile> {
    let (rest, segment) = match name.split_once('.') {
        Some((rest, segment)) => (rest, oid(segment).filter(|n| *n > 0 && !segment.starts_with('0'))?),
        None => (name, 0),
    };
    let (filenode, fork) = match rest.split_once('_') {
        None => (rest, Fork::Main),
        Some((filenode, "fsm")) => (filenode, Fork::FreeSpace),
        Some((filenode, "vm")) => (filenode, Fork::Visibility),
        Some((filenode, "init")) => (filenode, Fork::Init),
        Some(_) => return None,
    };
    let filenode = oid(filenode).filter(|n| *n > 0)?;
    Some(RelationFile { filenode, fork, segment })
}

/// Whether a name is that of a temporary relation: `t<backend>_<filenode>`, then as for others.
pub fn is_temporary_relation(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, file)| oid(backend).is_some() && parse_relation_file(file).is_some())
}

/// The unlogged relations of a data directory. Only their `_init` forks are copied; the server makes
/// the rest from them.
#[derive(Clone, Debug, Default)]
pub struct Unlogged {
    /// Directory and file node.
    relations: HashSet<(String, u32)>,
}

impl Unlogged {
    /// From all paths of the data directory (those that are not `_init` forks are passed over).
    pub fn among<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let relations = paths
            .into_iter()
            .filter_map(relation)
            .filter(|(_, file)| file.fork == Fork::Init)
            .map(|(directory, file)| (directory.to_owned(), file.filenode))
            .collect();
        Unlogged { relations }
    }

    /// Whether a file is left out because its relation is unlogged.
    pub fn leaves_out(&self, path: &str) -> bool {
        relation(path).is_some_and(|(directory, file)| {
            file.fork != Fork::Init && self.relations.contains(&(directory.to_owned(), file.filenode))
        })
    }
}

fn relation(path: &str) -> Option<(&str, RelationFile)> {
    let (directory, name) = path.rsplit_once('/')?;
    let parts: Vec<&str> = path.split('/').collect();
    is_relation_directory(&parts).then(|| parse_relation_file(name)).flatten().map(|file| (directory, file))
}

/// The first OID that is given to what users create (`FirstNormalObjectId` in `transam.h`).
const FIRST_USER_OID: u32 = 16_384;

/// Whether a path is there because somebody created something in the cluster: a database, or a
/// relation in one of initdb's databases. A catalog that was rewritten (`VACUUM FULL`) counts as well,
/// for its file cannot be told from a table's.
pub fn is_user_data(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let database = match parts[..] {
        ["base", database, _] => database,
        ["pg_tblspc", _, _, database, _] => database,
        _ => return false,
    };
    let Some(file) = parts.last().and_then(|name| parse_relation_file(name)) else { return false };
    oid(database).is_some_and(|oid| oid >= FIRST_USER_OID) || file.filenode >= FIRST_USER_OID
}
