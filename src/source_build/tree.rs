//! Owns unpacking: an archive becomes one directory of the name that is expected, or is refused. An entry that
//! would lie anywhere else is an attack or an accident; in both cases nothing of the archive is wanted.

use crate::durable::{self, Context};
use crate::error::{Error, Result};
use crate::process;
use crate::progress::Progress;
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

/// A PostgreSQL tree has 200 MB in 8,000 files; what is far beyond that is something else.
const BYTES_LIMIT: u64 = 4 << 30;
const ENTRIES_LIMIT: u64 = 200_000;

/// Unpacks a source tarball (`.tar.gz`, `.tar.bz2`) into `into` and gives the directory `top` in it.
///
/// # Errors
/// [`Error::ArchiveEscapes`], [`Error::ArchiveDamaged`].
pub fn unpack_file(archive: &Path, into: &Path, top: &str, progress: &Progress) -> Result<PathBuf> {
    let file = File::open(archive).on("open", archive)?;
    progress.begin_bytes("unpack", file.metadata().on("look at", archive)?.len());
    let counted = BufReader::with_capacity(256 * 1024, Counted { inner: file, progress });
    let is_bzip2 = archive.extension().is_some_and(|e| e == "bz2");
    let name = archive.display().to_string();
    // Both kinds may come in several parts: parallel compressors write them so.
    let outcome = if is_bzip2 {
        unpack(bzip2::bufread::MultiBzDecoder::new(counted), &name, into, top)
    } else {
        unpack(flate2::bufread::MultiGzDecoder::new(counted), &name, into, top)
    };
    progress.end();
    outcome
}

struct Counted<'a, R> {
    inner: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.progress.add(n as u64);
        Ok(n)
    }
}

/// Unpacks a tar stream into `into` and gives the directory `top` in it. `name` is what errors call it.
pub fn unpack(stream: impl Read, name: &str, into: &Path, top: &str) -> Result<PathBuf> {
    // The tar crate's text hides what the system said.
    let full = |errno: Errno| Error::File { action: "write to", path: into.into(), source: errno.into() };
    let damaged = |why: io::Error| match why.kind() {
        io::ErrorKind::StorageFull => full(Errno::ENOSPC),
        io::ErrorKind::QuotaExceeded => full(Errno::EDQUOT),
        _ => Error::ArchiveDamaged { archive: name.into(), why: innermost(&why) },
    };
    let escapes =
        |entry: &Path, why| Error::ArchiveEscapes { archive: name.into(), entry: entry.into(), why };
    let mut archive = tar::Archive::new(stream);
    let (mut bytes, mut count) = (0u64, 0u64);
    for entry in archive.entries().map_err(damaged)? {
        process::check_interrupt()?;
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let link = entry.link_name().map_err(damaged)?.map(|link| link.into_owned());
        check_entry(&path, kind, link.as_deref(), top).map_err(|why| escapes(&path, why))?;
        (bytes, count) = (bytes.saturating_add(entry.size()), count + 1);
        if bytes > BYTES_LIMIT || count > ENTRIES_LIMIT {
            return Err(escapes(&path, "makes the archive larger than any PostgreSQL"));
        }
        if !entry.unpack_in(into).map_err(damaged)? {
            return Err(escapes(&path, "lies outside of its directory"));
        }
    }
    let directory = into.join(top);
    if !directory.is_dir() {
        let why = format!("there is no {top} in it");
        return Err(Error::ArchiveDamaged { archive: name.into(), why });
    }
    Ok(directory)
}

/// The tar crate wraps what happened in what it was doing.
fn innermost(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// Why an entry must not be unpacked, if so.
fn check_entry(
    path: &Path,
    kind: EntryType,
    link: Option<&Path>,
    top: &str,
) -> std::result::Result<(), &'static str> {
    let inside = resolve(Path::new(""), path).ok_or("lies outside of its directory")?;
    if inside.components().next().map(Component::as_os_str) != Some(top.as_ref()) {
        return Err("lies outside of its directory");
    }
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory => Ok(()),
        EntryType::Symlink => {
            let from = inside.parent().unwrap_or(Path::new(""));
            // A `..` after a name goes up from where that name leads, which may be another link.
            let link = link.filter(|link| !climbs_after_a_name(link));
            let target = link.and_then(|link| resolve(from, link));
            match target {
                Some(target) if target.starts_with(top) => Ok(()),
                _ => Err("is a link that leads outside of its directory"),
            }
        }
        EntryType::Link => match link.and_then(|link| resolve(Path::new(""), link)) {
            Some(target) if target.starts_with(top) => Ok(()),
            _ => Err("is a link that leads outside of its directory"),
        },
        _ => Err("is neither a file nor a directory nor a link"),
    }
}

fn climbs_after_a_name(path: &Path) -> bool {
    let mut components = path.components().skip_while(|c| !matches!(c, Component::Normal(_)));
    components.any(|c| c == Component::ParentDir)
}

/// `path` seen from `base`, without `.` and `..`; `None` when it is absolute or leads above the root.
fn resolve(base: &Path, path: &Path) -> Option<PathBuf> {
    let mut at = base.to_path_buf();
    for component in path.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !at.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(at)
}

/// Writes the directory `from` as a tar stream in which it is called `top`.
pub fn pack(from: &Path, top: &str, to: impl io::Write) -> Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    archive.append_dir_all(top, from).on("pack", from)?;
    archive.into_inner().and_then(|mut to| to.flush()).on("pack", from)
}

/// Moves the directory `from` into the directory `into`, under the name `top`; to another file system it is
/// copied.
pub fn carry(from: &Path, into: &Path, top: &str) -> Result<PathBuf> {
    let to = into.join(top);
    match std::fs::rename(from, &to) {
        Ok(()) => return Ok(to),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        Err(error) => return Err(error).on("rename", from),
    }
    let (reader, writer) = io::pipe().on("open a pipe for", from)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| pack(from, top, io::BufWriter::with_capacity(64 * 1024, writer)));
        let unpacked = unpack(BufReader::with_capacity(64 * 1024, reader), "the copy", into, top);
        // When the one end fails the other has only lost its peer.
        let packed = packing.join().expect("packing does not panic");
        unpacked.and_then(|to| packed.map(|()| to))
    })
}

/// Bytes and files below a directory.
pub fn measure(directory: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    let mut pending = vec![directory.to_path_buf()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(&at).on("list", &at)? {
            let entry = entry.on("list", &at)?;
            let metadata = entry.metadata().on("look at", &entry.path())?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                bytes += metadata.len();
                files += 1;
            }
        }
    }
    Ok((bytes, files))
}

/// A new directory of this account alone, removed again when it is dropped. What a killed run left under the
/// same `prefix` is removed first: the caller holds the lock of that name.
pub fn scratch(parent: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    let me = nix::unistd::geteuid().as_raw();
    for entry in std::fs::read_dir(parent).on("list", parent)?.flatten() {
        use std::os::unix::fs::MetadataExt;
        let mine = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == me);
        if mine && entry.file_name().to_string_lossy().starts_with(prefix) {
            // What was started there may be on its last file yet: the next run removes the rest.
            let _ = durable::remove_tree(&entry.path());
        }
    }
    tempfile::Builder::new().prefix(prefix).tempdir_in(parent).on("create a directory in", parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(path: &str, kind: EntryType, link: Option<&str>) -> Option<&'static str> {
        check_entry(Path::new(path), kind, link.map(Path::new), "postgresql-17.6").err()
    }

    #[test]
    fn what_stays_inside_is_unpacked() {
        for path in ["postgresql-17.6", "postgresql-17.6/", "./postgresql-17.6/a", "postgresql-17.6/a/../b"] {
            assert_eq!(verdict(path, EntryType::Regular, None), None, "{path}");
        }
        assert_eq!(verdict("postgresql-17.6/lib/a.so", EntryType::Symlink, Some("a.so.5")), None);
        assert_eq!(verdict("postgresql-17.6/lib/a", EntryType::Symlink, Some("../bin/b")), None);
        assert_eq!(verdict("postgresql-17.6/a", EntryType::Link, Some("postgresql-17.6/b")), None);
    }

    #[test]
    fn what_tries_to_leave_is_refused() {
        for path in [
            "/etc/passwd",
            "../x",
            "x",
            "postgresql-17.5/x",
            "postgresql-17.6/../x",
            "postgresql-17.6/../../x",
        ] {
            assert!(verdict(path, EntryType::Regular, None).is_some(), "{path}");
        }
        for link in ["/etc/passwd", "../..", "../../etc", "../../postgresql-17.5/x"] {
            assert!(
                verdict("postgresql-17.6/a/b", EntryType::Symlink, Some(link)).is_some() || link == "../.."
            );
            assert!(verdict("postgresql-17.6/a", EntryType::Symlink, Some(link)).is_some(), "{link}");
        }
        assert!(verdict("postgresql-17.6/a", EntryType::Link, Some("../etc/passwd")).is_some());
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            assert!(verdict("postgresql-17.6/a", kind, None).is_some());
        }
    }

    /// A tar with one entry whose name the tar crate itself would refuse to write.
    fn tar_with(name: &str, kind: EntryType, link: &str) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, io::empty()).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn an_archive_that_climbs_leaves_nothing_outside() {
        for (name, kind, link) in [
            ("../climbed", EntryType::Regular, ""),
            ("postgresql-17.6/../../climbed", EntryType::Regular, ""),
            ("/tmp/pgmahout-climbed", EntryType::Regular, ""),
            ("postgresql-17.6/etc", EntryType::Symlink, "/etc"),
        ] {
            let outer = tempfile::tempdir().unwrap();
            let into = outer.path().join("into");
            std::fs::create_dir(&into).unwrap();
            let result = unpack(&tar_with(name, kind, link)[..], "it", &into, "postgresql-17.6");
            assert!(matches!(result, Err(Error::ArchiveEscapes { .. })), "{name}: {result:?}");
            assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1, "{name}");
            assert_eq!(std::fs::read_dir(&into).unwrap().count(), 0, "{name}");
        }
    }

    #[test]
    fn what_is_packed_comes_out_with_its_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let site = tempfile::tempdir().unwrap();
        let from = site.path().join("from");
        std::fs::create_dir_all(from.join("lib")).unwrap();
        std::fs::write(from.join("lib/libpq.so.5"), "library").unwrap();
        std::fs::set_permissions(from.join("lib/libpq.so.5"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        std::os::unix::fs::symlink("libpq.so.5", from.join("lib/libpq.so")).unwrap();
        let mut stream = Vec::new();
        pack(&from, "postgresql-17.6", &mut stream).unwrap();
        let came = unpack(&stream[..], "it", site.path(), "postgresql-17.6").unwrap();
        assert_eq!(std::fs::read_link(came.join("lib/libpq.so")).unwrap(), Path::new("libpq.so.5"));
        let mode = std::fs::metadata(came.join("lib/libpq.so.5")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(measure(&came).unwrap(), measure(&from).unwrap());
        let cut = &stream[..stream.len() / 2];
        let again = unpack(cut, "it", &site.path().join("from"), "postgresql-17.6");
        assert!(again.is_err(), "a cut stream is no archive");
    }

    #[test]
    fn a_tree_is_carried_to_this_and_to_another_file_system() {
        let here = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for into in [here.path(), memory.path()] {
            let from = here.path().join("from");
            std::fs::create_dir_all(from.join("lib")).unwrap();
            std::fs::write(from.join("lib/a"), vec![7; 300_000]).unwrap();
            std::os::unix::fs::symlink("a", from.join("lib/b")).unwrap();
            let to = carry(&from, into, "postgresql-17.6").unwrap();
            assert_eq!(std::fs::read(to.join("lib/b")).unwrap(), vec![7; 300_000]);
        }
    }

    #[test]
    fn a_scratch_directory_is_cleared_of_what_a_killed_run_left() {
        let site = tempfile::tempdir().unwrap();
        let left = scratch(site.path(), "17.6.").unwrap().keep();
        let other = scratch(site.path(), "17.5.").unwrap().keep();
        let new = scratch(site.path(), "17.6.").unwrap();
        assert!(!left.exists() && other.exists() && new.path().exists());
    }
}
