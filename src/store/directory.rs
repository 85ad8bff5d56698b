//! Owns backups in a directory of this machine, or of a disk that is mounted on it.

use super::{Object, Store, Upload, check_name};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::AccessFlags;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is not finished begins like this: no listing shows it. Whoever writes it holds a lock on it, so that
/// another instance with the same directory (NFS) does not sweep it away.
const PARTIAL: &str = ".partial-";
/// What [`durable::write`] leaves when it is killed.
const TEMPORARY: &str = ".pgmahout-";
/// Where the file system has no locks, what is older than this is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(86_400);

/// A directory with backups.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// It is created with the first backup.
    pub fn new(path: PathBuf) -> Directory {
        Directory { path }
    }
}

struct Partial {
    /// The same open file as `named`'s; none where the file system has no locks.
    _lock: Option<Flock<File>>,
    named: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.named.as_file_mut().write(bytes).map_err(|e| self.explain(e))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.named.as_file_mut().flush().map_err(|e| self.explain(e))
    }
}

impl Partial {
    /// With the name of the directory, and the way out. (The file's own writer would name the temporary file.)
    fn explain(&self, source: std::io::Error) -> std::io::Error {
        let kind = source.kind();
        if kind == ErrorKind::Interrupted {
            return source;
        }
        let path = durable::parent(&self.path).to_owned();
        std::io::Error::new(kind, Error::File { action: "write to", path, source })
    }

    /// Gives it its name, synced, unless there is one of this name.
    fn keep(self) -> Result<bool> {
        let path = self.path;
        self.named.as_file().sync_all().on("sync", &path)?;
        let from = self.named.path().to_owned();
        match renameat2(AT_FDCWD, &from, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {
                // Its old name is gone; nothing is left to be removed.
                let _ = self.named.into_temp_path().keep();
            }
            Err(Errno::EEXIST) => return Ok(false),
            // A file system without it (NFS): a link is refused in the same way.
            Err(Errno::EINVAL | Errno::ENOSYS) => match fs::hard_link(&from, &path) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
                // One without links either (CIFS, exFAT): the name is taken first, and then given.
                Err(_) => match File::create_new(&path) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
                    created => {
                        created.on("create", &path)?;
                        fs::rename(&from, &path).on("rename to", &path)?;
                        let _ = self.named.into_temp_path().keep();
                    }
                },
            },
            Err(errno) => return Err(errno).on("rename to", &path),
        }
        durable::sync_directory(durable::parent(&path))?;
        Ok(true)
    }
}

impl Upload for Partial {
    fn finish(self: Box<Self>) -> Result<()> {
        let path = self.path.clone();
        if !self.keep()? {
            return Err(Error::File { action: "create", path, source: ErrorKind::AlreadyExists.into() });
        }
        Ok(())
    }
}

impl Directory {
    fn unusable(&self, why: impl Into<String>) -> Error {
        Error::StoreDirectory { path: self.path.clone(), why: why.into() }
    }

    /// True when it is there; false when it is not, and could be made. Anything else is no empty list of backups:
    /// a disk that is not mounted, above all.
    fn is_there(&self) -> Result<bool> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => return Ok(true),
            Ok(_) => return Err(self.unusable("it is a file")),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(self.unusable(e.to_string())),
        }
        let parent = durable::parent(&self.path);
        match nix::unistd::access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => Ok(false),
            Err(errno) => {
                let (parent, why) = (parent.display(), errno.desc().to_lowercase());
                Err(self.unusable(format!("it is not there, and cannot be made in {parent}: {why}")))
            }
        }
    }

    fn make(&self) -> Result<()> {
        if !self.is_there()? {
            durable::create_private_directory(&self.path)?;
            durable::sync_directory(durable::parent(&self.path))?;
        }
        nix::unistd::access(&self.path, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| match errno {
            Errno::EACCES => self.unusable("this account may not write there"),
            Errno::EROFS => self.unusable("its file system is read-only"),
            errno => self.unusable(errno.desc().to_lowercase()),
        })
    }

    fn partial(&self, name: &str) -> Result<Partial> {
        check_name(self, name)?;
        self.make()?;
        let mut builder = tempfile::Builder::new();
        let prefix = format!("{PARTIAL}{name}-");
        let named = builder.prefix(&prefix).tempfile_in(&self.path).on("create a file in", &self.path)?;
        let again = named.as_file().try_clone().on("open", named.path())?;
        let lock = Flock::lock(again, FlockArg::LockExclusiveNonblock).ok();
        Ok(Partial { _lock: lock, named, path: self.path.join(name) })
    }
}

/// True of what nobody writes to any more.
fn is_abandoned(path: &Path, metadata: &fs::Metadata) -> bool {
    let Ok(file) = File::options().read(true).write(true).open(path) else { return false };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => true,
        Err((_, Errno::EWOULDBLOCK)) => false,
        Err(_) => is_old(metadata),
    }
}

fn is_old(metadata: &fs::Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > ABANDONED)
}

impl Store for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn list(&self) -> Result<Vec<Object>> {
        if !self.is_there()? {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.path).on("list", &self.path)?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.on("list", &self.path)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() && super::is_plain(&name) {
                found.push(Object { name, size: metadata.len(), modified: metadata.mtime() });
            }
        }
        Ok(found)
    }

    fn read(&self, name: &str, offset: u64) -> Result<Box<dyn Read + Send>> {
        check_name(self, name)?;
        let path = self.path.join(name);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.is_there()?;
                return Err(Error::NoObject { place: self.place(), name: name.into() });
            }
            other => other.on("open", &path)?,
        };
        file.seek(SeekFrom::Start(offset)).on("read", &path)?;
        Ok(Box::new(file))
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(self.partial(name)?))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        check_name(self, name)?;
        self.make()?;
        durable::write(&self.path.join(name), bytes, 0o600)
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let mut partial = self.partial(name)?;
        partial.named.as_file_mut().write_all(bytes).on("write to", &self.path)?;
        partial.keep()
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(self, name)?;
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).on("remove", &path),
            Ok(()) => durable::sync_directory(&self.path),
        }
    }

    fn link(&self, _: &str, _: &str, _: Duration) -> Result<Option<String>> {
        Ok(None)
    }

    fn local_path(&self, name: &str) -> Option<PathBuf> {
        Some(self.path.join(name))
    }

    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            if name.starts_with(PARTIAL) && is_abandoned(&path, &metadata)
                || name.starts_with(TEMPORARY) && is_old(&metadata)
            {
                match fs::remove_file(&path) {
                    // Another instance has swept it just now.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    other => other.on("remove", &path)?,
                }
            }
        }
        Ok(())
    }
}
