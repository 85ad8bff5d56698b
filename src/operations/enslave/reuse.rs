//! Owns what lies in the place of a copy already, a cluster or what a copy that broke off has left: what of it the
//! source does not have goes away, the rest is compared with the source's.

use super::marker::MARKER;
use super::place::{LOST_AND_FOUND, Layout};
use crate::durable::{self, Context as _};
use crate::error::Result;
use crate::transfer::protocol::{Entry, EntryKind};
use crate::transfer::target::Roots;
use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

/// What the source has. Of a million files it keeps 8 MB: hashes, with a seed of their own, in place of paths. One
/// that agrees by chance leaves a file that nobody asks for.
#[derive(Default)]
pub struct Manifest {
    seed: RandomState,
    files: Vec<u64>,
    directories: HashSet<(u32, String)>,
    has_configuration: bool,
}

impl Manifest {
    /// Notes an entry of the source's.
    pub fn note(&mut self, entry: &Entry) {
        match entry.kind {
            EntryKind::Tablespace => {}
            EntryKind::Directory => drop(self.directories.insert((entry.root, entry.path.clone()))),
            EntryKind::File => {
                self.has_configuration |= entry.root == 0 && entry.path == "postgresql.conf";
                self.files.push(self.seed.hash_one((entry.root, entry.path.as_str())));
            }
        }
    }

    fn has_file(&self, root: u32, path: &str) -> bool {
        self.files.binary_search(&self.seed.hash_one((root, path))).is_ok()
    }

    fn has_directory(&self, root: u32, path: &str) -> bool {
        self.directories.contains(&(root, path.to_owned()))
    }

    /// Removes everything below the roots that the source does not have. In a tablespace's directory only what
    /// `own_directory` names (`PG_15_202209061`) is this cluster's.
    pub fn remove_strangers(mut self, roots: &Roots, layout: &Layout, own_directory: &str) -> Result<()> {
        self.files.sort_unstable();
        let inside: Vec<&PathBuf> =
            roots.0.iter().filter(|(oid, _)| **oid != 0).map(|(_, path)| path).collect();
        for (oid, root) in &roots.0 {
            let top = Top { oid: *oid, root, layout, inside: &inside, own_directory };
            match oid {
                0 => self.below(&top, "")?,
                _ if !root.join(own_directory).exists() => {}
                oid if self.has_directory(*oid, own_directory) => self.below(&top, own_directory)?,
                _ => durable::remove_tree(&root.join(own_directory))?,
            }
        }
        Ok(())
    }

    fn below(&self, top: &Top, relative: &str) -> Result<()> {
        let directory = top.root.join(relative);
        for entry in fs::read_dir(&directory).on("list", &directory)? {
            let entry = entry.on("list", &directory)?;
            let (path, kind) = (entry.path(), entry.file_type().on("look at", &entry.path())?);
            let Ok(name) = entry.file_name().into_string() else {
                remove(&path, kind.is_dir())?;
                continue;
            };
            let below = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
            if top.keeps(&path, &below, kind.is_symlink(), self.has_configuration) {
                continue;
            }
            // WAL on a disk of its own is found behind a link.
            let is_directory = kind.is_dir() || top.is_wal_link(&below, &path, kind.is_symlink());
            if kind.is_symlink() && top.oid == 0 && relative == "pg_tblspc" {
                top.empty_tablespace(&path)?;
            }
            match is_directory {
                true if self.has_directory(top.oid, &below) => self.below(top, &below)?,
                false if kind.is_file() && self.has_file(top.oid, &below) => {}
                // A tablespace lies further in.
                true if top.inside.iter().any(|root| root.starts_with(&path)) => {}
                _ => remove(&path, kind.is_dir())?,
            }
        }
        Ok(())
    }
}

/// Where a walk began.
struct Top<'a> {
    oid: u32,
    root: &'a Path,
    layout: &'a Layout,
    /// The roots of tablespaces: those that lie in PGDATA are walked by themselves.
    inside: &'a [&'a PathBuf],
    own_directory: &'a str,
}

impl Top<'_> {
    fn keeps(&self, path: &Path, relative: &str, is_link: bool, source_has_configuration: bool) -> bool {
        // At the root of any file system, such as that of a linked pg_wal.
        if path.file_name().is_some_and(|name| name == LOST_AND_FOUND) {
            return true;
        }
        if self.oid != 0 {
            return false;
        }
        let link_of = |oid: u32| self.layout.tablespaces.iter().find(|(known, _, _)| *known == oid);
        let oid = relative.strip_prefix("pg_tblspc/").and_then(|name| name.parse().ok());
        if let (Some((_, _, here)), true) = (oid.and_then(link_of), is_link) {
            return fs::read_link(path).is_ok_and(|leads_to| leads_to == *here);
        }
        // A source that keeps its configuration elsewhere leaves us ours. (Beside PGDATA there is but a copy of it.)
        let ours = !source_has_configuration
            && self.root == self.layout.data
            && !relative.contains('/')
            && relative.ends_with(".conf")
            && relative != "postgresql.auto.conf"
            && relative != "recovery.conf";
        relative == MARKER || ours || self.inside.iter().any(|root| root.as_path() == path)
    }

    /// A tablespace that the source does not have (any more, or there).
    fn empty_tablespace(&self, link: &Path) -> Result<()> {
        let place = fs::read_link(link).on("read", link)?;
        let real = place.canonicalize().unwrap_or_else(|_| place.clone());
        // What lies in PGDATA is the old cluster's, or walked with PGDATA itself; what is the source's is the source's.
        if place.starts_with(&self.layout.data)
            || place.is_relative()
            || self.inside.iter().any(|root| **root == place)
            || self.layout.theirs.contains(&real)
        {
            return Ok(());
        }
        durable::remove_tree(&place.join(self.own_directory))
    }

    fn is_wal_link(&self, relative: &str, path: &Path, is_link: bool) -> bool {
        self.oid == 0 && is_link && (relative == "pg_wal" || relative == "pg_xlog") && path.is_dir()
    }
}

fn remove(path: &Path, is_directory: bool) -> Result<()> {
    if is_directory {
        return durable::remove_tree(path);
    }
    fs::remove_file(path).on("remove", path)
}

#[cfg(test)]
mod tests {
    use super::super::place::Place;
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    fn entry(kind: EntryKind, root: u32, path: &str) -> Entry {
        Entry { kind, root, mode: 0o600, size: 1, room: 1, path: path.into() }
    }

    #[test]
    fn what_the_source_has_not_goes_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let (data, outside, wal) =
            (home.path().join("data"), home.path().join("disk"), home.path().join("wal"));
        let file = |path: PathBuf| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        let kept = [
            "PG_VERSION",
            "base/5/1",
            "base/5/2",
            ".pgmahout-incomplete",
            "lost+found/x",
            "postgresql.conf",
            "pg_hba.conf",
            "fast/PG_15_1/5/9",
        ];
        let gone = [
            "base/5/3",
            "base/6/1",
            "recovery.conf",
            "postmaster.pid",
            "backup_label",
            "fast/PG_15_1/5/10",
            "pg_replslot/s/state",
        ];
        for path in kept.iter().chain(&gone) {
            file(data.join(path));
        }
        for path in ["PG_15_1/5/7", "PG_15_1/5/8", "PG_16_2/5/8", "lost"] {
            file(outside.join(path));
        }
        file(wal.join("000000010000000000000001"));
        symlink(&wal, data.join("pg_wal")).unwrap();
        fs::create_dir(data.join("pg_tblspc")).unwrap();
        file(home.path().join("gone/PG_15_1/5/1"));
        file(home.path().join("gone/PG_16_2/5/1"));
        file(home.path().join("theirs/PG_15_1/5/1"));
        let links = [
            (7, outside.clone()),
            (8, data.join("fast")),
            (9, home.path().join("gone")),
            (10, home.path().join("theirs")),
        ];
        for (oid, to) in &links {
            symlink(to, data.join("pg_tblspc").join(oid.to_string())).unwrap();
        }
        symlink("/etc/passwd", data.join("base/5/4")).unwrap();

        let mut manifest = Manifest::default();
        use EntryKind::*;
        for path in ["base", "base/5", "pg_wal", "pg_tblspc", "pg_replslot", "fast"] {
            manifest.note(&entry(Directory, 0, path));
        }
        for path in ["PG_VERSION", "base/5/1", "base/5/2", "base/5/4"] {
            manifest.note(&entry(File, 0, path));
        }
        for (root, path) in [(7, "PG_15_1"), (7, "PG_15_1/5"), (8, "PG_15_1"), (8, "PG_15_1/5")] {
            manifest.note(&entry(Directory, root, path));
        }
        manifest.note(&entry(File, 7, "PG_15_1/5/7"));
        manifest.note(&entry(File, 8, "PG_15_1/5/9"));
        let layout = Layout {
            data: data.clone(),
            major: "15".into(),
            restores: false,
            theirs: vec![home.path().join("theirs").canonicalize().unwrap()],
            place: Place::InPlace(""),
            reuse: true,
            tablespaces: vec![(7, String::new(), outside.clone()), (8, "fast".into(), data.join("fast"))],
            bytes: 0,
            wal_link: None,
        };
        let roots = BTreeMap::from([(0, data.clone()), (7, outside.clone()), (8, data.join("fast"))]);
        manifest.remove_strangers(&Roots(roots), &layout, "PG_15_1").unwrap();

        for path in kept {
            assert!(data.join(path).exists(), "{path} is gone");
        }
        for path in gone {
            assert!(!data.join(path).exists(), "{path} is there");
        }
        assert!(!data.join("pg_replslot/s").exists() && data.join("pg_replslot").exists());
        assert!(fs::symlink_metadata(data.join("base/5/4")).is_err(), "a link is no file");
        assert!(outside.join("PG_15_1/5/7").exists() && !outside.join("PG_15_1/5/8").exists());
        assert!(outside.join("PG_16_2/5/8").exists() && outside.join("lost").exists(), "somebody else's");
        assert!(data.join("pg_wal").is_dir() && fs::read_dir(&wal).unwrap().next().is_none());
        let link = |oid: u32| fs::read_link(data.join("pg_tblspc").join(oid.to_string()));
        assert!(!home.path().join("gone/PG_15_1").exists() && home.path().join("gone/PG_16_2/5/1").exists());
        assert!(link(7).is_ok() && link(8).is_ok() && link(9).is_err() && link(10).is_err());
        assert!(home.path().join("theirs/PG_15_1/5/1").exists(), "a copied link leads to the source's own");
    }
}
