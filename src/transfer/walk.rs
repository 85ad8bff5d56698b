//! Owns the walk through a data directory that a base backup takes: which files there are, tablespaces
//! included, and which of them belong to a copy.

use super::blocks;
use crate::postgres::files::{self, Decision, Unlogged};
use crate::postgres::version::PgVersion;
use std::collections::HashSet;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An error that names its path.
pub fn named(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What was found.
pub struct Found {
    /// 0 for PGDATA, else a tablespace's OID.
    pub root: u32,
    /// Relative to its root.
    pub path: String,
    /// As PGDATA sees it: below `pg_tblspc/<oid>` in a tablespace.
    pub in_data: String,
    /// Where it really is.
    pub full: PathBuf,
    /// A directory, else a plain file.
    pub is_directory: bool,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes of them that take room on a disk ([`blocks::room`]).
    pub room: u64,
}

/// How to walk.
pub struct Walk {
    /// The server's version.
    pub version: PgVersion,
    /// `backup_label` belongs to the copy.
    pub with_backup_label: bool,
    /// What unlogged relations hold belongs to the copy: it was shut down in order, and nothing resets them.
    pub with_unlogged: bool,
    /// Tablespaces that lie inside PGDATA, by their real paths: not to be walked twice.
    pub inside: HashSet<PathBuf>,
}

/// (OID, real path) of every tablespace. A directory instead of a link is an in-place tablespace (15+,
/// for developers) and travels with PGDATA.
pub fn tablespaces(data: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let directory = data.join("pg_tblspc");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(|e| named(&directory, e))? {
        let entry = entry?;
        let oid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let (Some(oid), true) = (oid, entry.file_type()?.is_symlink()) else { continue };
        match entry.path().canonicalize() {
            Ok(path) => found.push((oid, path)),
            // Dropped this moment.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(named(&entry.path(), e)),
        }
    }
    found.sort();
    Ok(found)
}

/// The names in a directory, of which there may be a million: 8 bytes each and their own.
#[derive(Default)]
struct Names {
    text: String,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Names {
    fn add(&mut self, name: &str) {
        let begin = self.text.len() as u32;
        self.text.push_str(name);
        self.places.push((begin, self.text.len() as u32));
    }

    fn sort(&mut self) {
        let text = &self.text;
        self.places.sort_unstable_by_key(|&(begin, end)| &text[begin as usize..end as usize]);
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|&(begin, end)| &self.text[begin as usize..end as usize])
    }
}

/// What a cluster cannot be without, or a part of it.
fn holds_data(path: &str) -> bool {
    const DIRECTORIES: &[&str] = &[
        "base",
        "global",
        "pg_clog",
        "pg_commit_ts",
        "pg_logical",
        "pg_multixact",
        "pg_twophase",
        "pg_xact",
    ];
    match path.split('/').collect::<Vec<_>>()[..] {
        ["pg_tblspc", _, _, ..] => true,
        [top, ..] => DIRECTORIES.contains(&top),
        [] => false,
    }
}

impl Walk {
    /// Gives every file and directory of a root to `each`, directories before what is in them. A tablespace is
    /// `seen_as` `pg_tblspc/<oid>`, PGDATA as nothing.
    pub fn root(
        &self,
        root: u32,
        base: &Path,
        seen_as: &str,
        each: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        self.walk(root, base, "", seen_as, each)
    }

    /// Walks one directory: `relative` to its root, `seen_as` as PGDATA sees the root.
    fn walk(
        &self,
        root: u32,
        base: &Path,
        relative: &str,
        seen_as: &str,
        each: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let directory = base.join(relative);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Dropped between being listed and being read.
            Err(e) if e.kind() == ErrorKind::NotFound && !relative.is_empty() => return Ok(()),
            Err(e) => return Err(named(&directory, e)),
        };
        let mut names = Names::default();
        for entry in entries {
            let name = entry.map_err(|e| named(&directory, e))?.file_name();
            // PostgreSQL makes no names that are not UTF-8; somebody else's are not copied.
            if let Some(name) = name.to_str() {
                names.add(name);
            }
        }
        names.sort();
        let directory_in_data = match (seen_as, relative) {
            ("", relative) => relative.to_owned(),
            (seen_as, "") => seen_as.to_owned(),
            (seen_as, relative) => format!("{seen_as}/{relative}"),
        };
        let below = |parent: &str, name: &str| {
            if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
        };
        let unlogged = match self.with_unlogged {
            true => Unlogged::default(),
            false => Unlogged::among(names.iter().map(|name| below(&directory_in_data, name))),
        };
        for name in names.iter() {
            let in_data = below(&directory_in_data, name);
            let path = below(relative, name);
            let full = directory.join(name);
            let Ok(metadata) = fs::symlink_metadata(&full) else { continue };
            let is_wal = in_data == self.version.wal_directory();
            // pg_wal may be a link to another disk: here it is an (empty) directory.
            let is_directory = metadata.is_dir() || is_wal;
            // Never tablespace_map: the server would make its links anew, to the source's directories.
            let label = self.with_backup_label && in_data == "backup_label";
            let is_map = in_data == "tablespace_map";
            let decision = match files::decide(&in_data, is_directory, self.version) {
                _ if is_map => Decision::Skip,
                _ if label => Decision::Keep,
                Decision::Keep if unlogged.leaves_out(&in_data) => Decision::Skip,
                decision => decision,
            };
            if metadata.is_symlink() && decision == Decision::Keep && holds_data(&in_data) {
                let why = "it is a symbolic link, and a copy would lack what it leads to: stop the server and move that back, \
                     or make it a tablespace";
                return Err(named(&full, Error::other(why)));
            }
            // Sockets and the links of pg_tblspc; other links (to a log, to a configuration) do not belong to a cluster.
            if decision == Decision::Skip || !(is_directory || metadata.is_file()) {
                continue;
            }
            let (size, room) =
                if is_directory { (0, 0) } else { (metadata.len(), blocks::room(&full, &metadata)) };
            let mode = if is_wal { 0o700 } else { metadata.mode() & 0o777 };
            let enter = is_directory && decision == Decision::Keep && !self.inside.contains(&full);
            each(Found { root, path: path.clone(), in_data, full, is_directory, mode, size, room })?;
            if enter {
                self.walk(root, base, &path, seen_as, each)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_in_place_of_data_is_refused_and_another_one_left_out() {
        let home = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (home.path().join("data"), home.path().join("elsewhere"));
        for directory in ["data/base/5", "data/global", "elsewhere"] {
            fs::create_dir_all(home.path().join(directory)).unwrap();
        }
        symlink(&elsewhere, data.join("log")).unwrap();
        let walk = Walk {
            version: PgVersion::from_num(180_000),
            with_backup_label: false,
            with_unlogged: false,
            inside: HashSet::new(),
        };
        let walked = || {
            let mut paths = Vec::new();
            let mut each = |found: Found| {
                paths.push(found.path);
                Ok(())
            };
            walk.root(0, &data, "", &mut each).map(|()| paths)
        };
        assert_eq!(walked().unwrap(), ["base", "base/5", "global"]);
        for link in ["base/6", "base/5/16384", "pg_xact"] {
            symlink(&elsewhere, data.join(link)).unwrap();
            let error = walked().unwrap_err().to_string();
            assert!(error.contains(link) && error.contains("it is a symbolic link"), "{error}");
            fs::remove_file(data.join(link)).unwrap();
        }
    }
}
