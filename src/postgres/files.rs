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
    let left_out = |part: &&str| part.starts_with("pgsql_tmp") || part.starts_with(OWN_PREFIX);
    if parts.iter().any(left_out) || name.starts_with("pg_internal.init") {
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

/// The relation that a file belongs to whose pages carry checksums, by its path as PGDATA sees it.
pub fn relation_of(in_data: &str) -> Option<RelationFile> {
    let (directory, name) = in_data.rsplit_once('/')?;
    let relations = ["base/", "pg_tblspc/"].iter().any(|top| directory.starts_with(top));
    (relations || directory == "global").then(|| parse_relation_file(name)).flatten()
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
    pub fn among(paths: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let unlogged = |path: &str| {
            let (directory, file) = relation(path).filter(|(_, file)| file.fork == Fork::Init)?;
            Some((directory.to_owned(), file.filenode))
        };
        Unlogged { relations: paths.into_iter().filter_map(|path| unlogged(path.as_ref())).collect() }
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

/// The libraries of `shared_preload_libraries` or its kin.
pub fn preloaded_libraries(setting: &str) -> Vec<String> {
    let names = setting.split(',').map(|name| name.trim().trim_matches('"'));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preloaded_libraries_as_they_are_written() {
        let read = |setting: &str| preloaded_libraries(setting).join("|");
        assert_eq!(read(""), "");
        assert_eq!(read("pg_stat_statements"), "pg_stat_statements");
        assert_eq!(read(r#"auto_explain, "$libdir/my lib",x"#), "auto_explain|$libdir/my lib|x");
    }

    fn v(text: &str) -> PgVersion {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_left_out_is_what_postgresql_leaves_out() {
        use Decision::*;
        let directory = true;
        let file = false;
        let cases = [
            ("pg_wal", directory, KeepDirectoryOnly),
            ("pg_wal/archive_status", directory, KeepDirectoryOnly),
            ("pg_wal/summaries", directory, KeepDirectoryOnly),
            ("pg_wal/000000010000000000000001", file, Skip),
            ("pg_wal/archive_status/000000010000000000000001.done", file, Skip),
            ("pg_wal/other", directory, Skip),
            ("pg_replslot", directory, KeepDirectoryOnly),
            ("pg_replslot/a_slot", directory, Skip),
            ("pg_replslot/a_slot/state", file, Skip),
            ("pg_dynshmem", directory, KeepDirectoryOnly),
            ("pg_notify/0000", file, Skip),
            ("pg_serial/0000", file, Skip),
            ("pg_snapshots/x", file, Skip),
            ("pg_stat_tmp/global.stat", file, Skip),
            ("pg_subtrans/0000", file, Skip),
            ("pg_stat", directory, Keep),
            ("pg_xact/0000", file, Keep),
            ("pg_logical/replorigin_checkpoint", file, Keep),
            ("postmaster.pid", file, Skip),
            ("postmaster.opts", file, Skip),
            ("backup_label", file, Skip),
            ("tablespace_map", file, Skip),
            ("backup_label.old", file, Keep),
            ("backup_manifest", file, Skip),
            ("postgresql.auto.conf", file, Keep),
            // The plan goes with its settings, its journal stays.
            ("pgmahout.plan", file, Keep),
            (".pgmahout-plan-undo", file, Skip),
            ("postgresql.auto.conf.tmp", file, Skip),
            ("current_logfiles", file, Keep),
            ("current_logfiles.tmp", file, Skip),
            ("standby.signal", file, Skip),
            ("recovery.signal", file, Skip),
            ("recovery.conf", file, Skip),
            ("PG_VERSION", file, Keep),
            ("postgresql.conf", file, Keep),
            ("global/pg_control", file, Keep),
            ("global/pg_internal.init", file, Skip),
            ("base/5/pg_internal.init", file, Skip),
            ("base/5/pg_internal.init.123", file, Skip),
            ("base/5/PG_VERSION", file, Keep),
            ("base/5/16384", file, Keep),
            ("base/5/16384.1", file, Keep),
            ("base/5/t3_16384", file, Skip),
            ("base/5/t3_16384_fsm.1", file, Skip),
            ("base/5/t3_x", file, Keep),
            ("base/5/table", file, Keep),
            ("base/pgsql_tmp", directory, Skip),
            ("base/pgsql_tmp/pgsql_tmp123.0", file, Skip),
            ("pg_tblspc", directory, Keep),
            ("pg_tblspc/16400", directory, Keep),
            ("pg_tblspc/16400/PG_15_202209061", directory, Keep),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", file, Keep),
            ("pg_tblspc/16400/PG_15_202209061/5/t12_16401", file, Skip),
            ("pg_tblspc/16400/PG_15_202209061/pgsql_tmp", directory, Skip),
            ("pg_tblspc/16400/PG_14_202107181", directory, Skip),
            ("pg_tblspc/16400/PG_14_202107181/5/16401", file, Skip),
            ("pg_tblspc/16400/lost+found", directory, Skip),
            (".pgmahout", directory, Skip),
            (".pgmahout-state/plan.json", file, Skip),
            ("base/5/.pgmahout.16384", file, Skip),
            ("t3_16384", file, Keep),
        ];
        for (path, is_directory, expected) in cases {
            assert_eq!(decide(path, is_directory, v("15.18")), expected, "{path}");
        }
    }

    #[test]
    fn the_wal_directory_and_the_labels_depend_on_the_version() {
        use Decision::*;
        assert_eq!(decide("pg_xlog", true, v("9.6")), KeepDirectoryOnly);
        assert_eq!(decide("pg_xlog/000000010000000000000001", false, v("9.5")), Skip);
        assert_eq!(decide("pg_xlog", true, v("10")), Keep);
        for name in ["backup_label", "tablespace_map"] {
            assert_eq!(decide(name, false, v("9.5")), Keep, "{name}");
            assert_eq!(decide(name, false, v("9.6")), Skip, "{name}");
        }
        assert_eq!(decide("pg_tblspc/1/PG_9.6_201608131/1/2", false, v("9.6.3")), Keep);
        assert_eq!(decide("pg_tblspc/1/PG_9.6_201608131/1/2", false, v("9.5")), Skip);
        assert_eq!(decide("pg_tblspc/1/PG_1_2/1/2", false, v("15")), Skip);
    }

    #[test]
    fn relation_files_are_told_by_their_names() {
        let is = |name, filenode, fork, segment| {
            assert_eq!(parse_relation_file(name), Some(RelationFile { filenode, fork, segment }), "{name}");
        };
        is("1259", 1259, Fork::Main, 0);
        is("16384.1", 16384, Fork::Main, 1);
        is("16384_fsm", 16384, Fork::FreeSpace, 0);
        is("16384_vm.2", 16384, Fork::Visibility, 2);
        is("4294967295_init", u32::MAX, Fork::Init, 0);
        for name in [
            "",
            "PG_VERSION",
            "pg_filenode.map",
            "0",
            "16384.",
            "16384.0",
            "16384.01",
            "16384_",
            "16384_xyz",
            "16384_fsm_vm",
            "4294967296",
            "-1",
            "+1",
            "t3_16384",
            "16384.1_fsm",
            "16384 ",
        ] {
            assert_eq!(parse_relation_file(name), None, "{name}");
        }
        for name in ["t3_16384", "t3_16384.1", "t12_16384_vm", "t0_1_init"] {
            assert!(is_temporary_relation(name), "{name}");
        }
        for name in ["t_16384", "t3", "t3_", "tx_1", "3_16384", "t3_16384_x"] {
            assert!(!is_temporary_relation(name), "{name}");
        }
    }

    #[test]
    fn only_the_init_fork_of_an_unlogged_relation_is_kept() {
        let paths = [
            "base/5/16388",
            "base/5/16388_init",
            "base/5/16391_init",
            "pg_tblspc/16400/PG_15_202209061/5/20000_init",
            "global/7_init",
        ];
        let unlogged = Unlogged::among(paths);
        for path in [
            "base/5/16388",
            "base/5/16388.1",
            "base/5/16388_fsm",
            "base/5/16391",
            "base/5/16391_vm",
            "pg_tblspc/16400/PG_15_202209061/5/20000",
        ] {
            assert!(unlogged.leaves_out(path), "{path}");
        }
        for path in [
            "base/5/16388_init",
            "base/6/16388",
            "base/5/16389",
            "base/5/20000",
            "16388",
            "global/7",
            "pg_tblspc/16401/PG_15_202209061/5/20000",
        ] {
            assert!(!unlogged.leaves_out(path), "{path}");
        }
    }

    /// Paths as they stood in a data directory of 15.
    #[test]
    fn what_users_created_is_told_from_what_initdb_did() {
        for path in [
            "base/5/16384",
            "base/5/16391_init",
            "base/16387/6113",
            "base/16387/2603_vm",
            "base/5/16384.1",
            "pg_tblspc/16400/PG_15_202209061/5/16401",
        ] {
            assert!(is_user_data(path), "{path}");
        }
        for path in [
            "base/1/13422",
            "base/5/1259",
            "base/4/2619_fsm",
            "base/16387/PG_VERSION",
            "global/1262",
            "global/16384",
            "base/5/t3_16384",
            "pg_wal/000000010000000000000001",
            "pg_xact/0000",
            "16384",
            "base/16387",
        ] {
            assert!(!is_user_data(path), "{path}");
        }
    }
}
