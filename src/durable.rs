//! Owns what reaches the disk for good: temporary file + fsync + rename, directory exchange, locks,
//! free space.

use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::process;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Adds the action and the path to an I/O error.
pub trait Context<T> {
    /// `action` is an infinitive: "read", "create", "rename".
    fn on(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.into(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::File { action, path: path.into(), source: errno.into() })
    }
}

/// Writes `path` so that a reader, or a crash at any instant, sees the old content or the new one.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let directory = parent(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(&format!("{TEMPORARY}{}-", std::process::id()))
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .on("create a file in", directory)?;
    temporary.write_all(content).on("write", path)?;
    temporary.as_file().set_permissions(Permissions::from_mode(mode)).on("set the mode of", path)?;
    temporary.as_file().sync_all().on("sync", path)?;
    boundary("file.written");
    temporary.persist(path).map_err(|e| e.error).on("rename to", path)?;
    sync_directory(directory)?;
    boundary("file.renamed");
    Ok(())
}

/// How [`write`] calls its temporary files, before the number of the process.
const TEMPORARY: &str = ".pgmahout-";

/// Removes the temporary files that processes which were killed in [`write`] have left in a directory. What cannot be
/// removed now is found by the next run.
pub fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let rest = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-'));
        let Some(writer) = rest.and_then(|(pid, _)| pid.parse().ok()).filter(|pid| *pid > 0) else {
            continue;
        };
        if kill(Pid::from_raw(writer), None) == Err(Errno::ESRCH) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The directory a path lies in; "." for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Makes the directory's entries durable.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).on("sync", path)
}

/// The file systems that something is written to, each once.
///
/// Everything on them becomes durable in one call: one fsync per file costs seconds for thousands of relations
/// (DESIGN.md). They are opened before the writing begins: Linux (5.8 and later) then reports every write error since,
/// also one that somebody else's sync has been told of meanwhile.
#[derive(Default)]
pub struct FileSystems(Vec<(u64, PathBuf, File)>);

impl FileSystems {
    /// Those of `paths`, which must exist.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<FileSystems> {
        let mut found = FileSystems::default();
        for path in paths {
            let directory = File::open(path).on("open", path)?;
            let device = directory.metadata().on("look at", path)?.dev();
            if !found.0.iter().any(|(known, _, _)| *known == device) {
                found.0.push((device, path.to_owned(), directory));
            }
        }
        Ok(found)
    }

    /// Makes everything that was written to them durable.
    pub fn sync(&self) -> Result<()> {
        for (_, path, directory) in &self.0 {
            nix::unistd::syncfs(directory).on("sync the file system of", path)?;
        }
        Ok(())
    }
}

/// Lets the disk begin with what was just written, so that the sync at the end finds little left. No promise: it may do
/// nothing.
#[allow(unsafe_code, reason = "nix has no sync_file_range")]
pub fn begin_writing(file: &File, range: Range<u64>) {
    let length = range.end.saturating_sub(range.start);
    // SAFETY: a system call with an open descriptor and numbers; it reads and writes no memory of ours.
    unsafe {
        nix::libc::sync_file_range(
            file.as_raw_fd(),
            range.start as i64,
            length as i64,
            nix::libc::SYNC_FILE_RANGE_WRITE,
        )
    };
}

/// Creates a directory and its parents, only for its owner.
pub fn create_private_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).on("create", path)
}

/// Puts each of two paths in the other's place in one atomic step. False where the file system cannot.
pub fn exchange(a: &Path, b: &Path) -> Result<bool> {
    match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {
            sync_directory(parent(a))?;
            sync_directory(parent(b))?;
            Ok(true)
        }
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(false),
        Err(errno) => Err(errno).on("exchange", a),
    }
}

/// Renames and makes the new name durable.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).on("rename", from)?;
    sync_directory(parent(to))
}

/// Removes a whole directory if it is there. Symbolic links in it are removed, not followed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

/// Bytes that this account can still write on the file system under `path` (which need not exist yet).
pub fn available_space(path: &Path) -> Result<u64> {
    let existing = existing_ancestor(path);
    let stat = nix::sys::statvfs::statvfs(&existing).on("ask for the free space of", &existing)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// The nearest ancestor that exists (the path itself when it does).
pub fn existing_ancestor(path: &Path) -> PathBuf {
    let mut at = path;
    while !at.exists() {
        at = parent(at);
        if at == Path::new(".") {
            break;
        }
    }
    at.to_path_buf()
}

/// True when `path` is where a file system is mounted: it cannot be renamed then.
pub fn is_mount_point(path: &Path) -> bool {
    match (fs::metadata(path), fs::metadata(path.join(".."))) {
        (Ok(here), Ok(above)) => here.dev() != above.dev() || here.ino() == above.ino(),
        _ => false,
    }
}

/// A lock held by this process until it is dropped or the process ends, in whichever way.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or names who has it. `doing` is left in the file for the one who comes second. What killed runs
    /// have left beside it is swept.
    pub fn take(path: &Path, doing: &str) -> Result<Lock> {
        create_private_directory(parent(path))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .on("open", path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                sweep(parent(path));
                file.set_len(0).on("write", path)?;
                file.rewind().on("write", path)?;
                match writeln!(file, "{doing} (process {})", std::process::id()) {
                    // It is locked all the same; only the one who comes second learns less.
                    Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {}
                    other => other.on("write", path)?,
                }
                Ok(Lock { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                Err(Error::Locked { path: path.into(), holder: holder.trim().to_owned() })
            }
            Err((_, errno)) => Err(errno).on("lock", path),
        }
    }

    /// Takes the lock as soon as its holder gives it back, within `limit`. `waiting` is told once who has it.
    pub fn wait(path: &Path, doing: &str, limit: Duration, waiting: impl Fn(&str)) -> Result<Lock> {
        let mut told = false;
        let taken = process::wait_for(limit, || match Lock::take(path, doing) {
            Err(Error::Locked { holder, .. }) => {
                if !std::mem::replace(&mut told, true) {
                    waiting(&holder);
                }
                Ok(None)
            }
            other => other.map(Some),
        })?;
        match taken {
            Some(lock) => Ok(lock),
            None => Lock::take(path, doing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_with_its_mode_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        write(&path, b"first, and longer", 0o644).unwrap();
        write(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_a_killed_writer_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let dead = std::process::Command::new("true").spawn().and_then(|mut child| {
            child.wait()?;
            Ok(child.id())
        });
        let names = |dead| [format!(".pgmahout-{dead}-x"), format!(".pgmahout-{}-x", std::process::id())];
        let names = names(dead.unwrap());
        let all = names.iter().map(String::as_str).chain([
            ".pgmahout-7",
            ".pgmahout-0-x",
            ".pgmahout-new-x",
            "data",
        ]);
        for name in all.clone() {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let _lock = Lock::take(&directory.path().join("lock"), "enslave").unwrap();
        for name in all {
            assert_eq!(directory.path().join(name).exists(), name != names[0], "{name}");
        }
    }

    #[test]
    fn exchange_swaps_directories() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("old"), "").unwrap();
        if exchange(&a, &b).unwrap() {
            assert!(b.join("old").exists() && !a.join("old").exists());
        }
    }

    #[test]
    fn the_second_one_learns_who_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/lock");
        let held = Lock::take(&path, "enslave").unwrap();
        let error = Lock::take(&path, "promote").unwrap_err().to_string();
        assert!(error.contains("enslave (process "), "{error}");
        let (given_back, told) = (path.clone(), std::sync::mpsc::channel());
        let waiting = std::thread::spawn(move || {
            Lock::wait(&given_back, "promote", Duration::from_secs(10), |who| {
                told.0.send(who.to_owned()).unwrap()
            })
        });
        assert!(told.1.recv().unwrap().starts_with("enslave (process "));
        drop(held);
        waiting.join().unwrap().unwrap();
        Lock::take(&path, "promote").unwrap();
    }
}
