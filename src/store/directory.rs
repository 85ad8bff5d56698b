//! Owns backups in a directory of this machine, or of a disk that is mounted on it.

use super::{Object, Store, Upload};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is not finished begins like this: no listing shows it.
const PARTIAL: &str = ".partial-";

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
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Upload for Partial {
    fn finish(self: Box<Self>) -> Result<()> {
        self.file.as_file().sync_all().on("sync", &self.path)?;
        if !keep(self.file, &self.path)? {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(Error::File { action: "create", path: self.path, source });
        }
        Ok(())
    }
}

/// Gives a synced file its name, unless there is one of this name.
fn keep(file: tempfile::NamedTempFile, path: &Path) -> Result<bool> {
    let from = file.path().to_owned();
    match renameat2(AT_FDCWD, &from, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {
            // Its old name is gone; nothing is left to be removed.
            let _ = file.into_temp_path().keep();
        }
        Err(nix::errno::Errno::EEXIST) => return Ok(false),
        // A file system without it (NFS): a link is refused in the same way.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => match fs::hard_link(&from, path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(e).on("create", path),
        },
        Err(errno) => return Err(errno).on("rename to", path),
    }
    durable::sync_directory(durable::parent(path))?;
    Ok(true)
}

impl Directory {
    fn temporary(&self, name: &str) -> Result<tempfile::NamedTempFile> {
        durable::create_private_directory(&self.path)?;
        let mut builder = tempfile::Builder::new();
        let prefix = format!("{PARTIAL}{name}-");
        builder.prefix(&prefix).tempfile_in(&self.path).on("create a file in", &self.path)
    }
}

impl Store for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn list(&self) -> Result<Vec<Object>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).on("list", &self.path),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.on("list", &self.path)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() && !name.starts_with('.') {
                found.push(Object { name, size: metadata.len(), modified: metadata.mtime() });
            }
        }
        Ok(found)
    }

    fn read(&self, name: &str, offset: u64) -> Result<Box<dyn Read + Send>> {
        let path = self.path.join(name);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoObject { place: self.place(), name: name.into() });
            }
            other => other.on("open", &path)?,
        };
        file.seek(SeekFrom::Start(offset)).on("read", &path)?;
        Ok(Box::new(file))
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Partial { file: self.temporary(name)?, path: self.path.join(name) }))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        durable::create_private_directory(&self.path)?;
        durable::write(&self.path.join(name), bytes, 0o600)
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.path.join(name);
        let mut file = self.temporary(name)?;
        file.write_all(bytes).on("write", &path)?;
        file.as_file().sync_all().on("sync", &path)?;
        keep(file, &path)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
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
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_file(entry.path()).on("remove", &entry.path())?;
            }
        }
        Ok(())
    }
}
