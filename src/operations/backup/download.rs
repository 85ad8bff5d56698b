//! Gives a backup's bytes to a file or to whoever reads, checked while they stream. What breaks off is kept beside
//! the file and goes on with the next try.

use super::super::Context;
use crate::backups::manifest::{BackupId, Manifest};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::process;
use crate::store::{self, Store, catalog, sealed};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where it goes.
pub enum Target<'a> {
    /// A file; of a directory, the backup's own name in it.
    File(PathBuf),
    /// A stream. It has everything before the end is known to be good: the error says so.
    Stream(&'a mut dyn Write),
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which one.
    pub id: BackupId,
    /// As it was before it was encrypted.
    pub decrypt: bool,
    /// Overwrite the file.
    pub force: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Which one.
    pub id: BackupId,
    /// The file; none of a stream.
    pub file: Option<PathBuf>,
    /// Its bytes.
    pub size: u64,
    /// Of what is stored: found to be right.
    pub sha256: String,
    /// It was decrypted.
    pub decrypted: bool,
    /// Bytes that an earlier try had brought.
    pub resumed_from: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Downloads one.
pub fn run(context: Context, options: Options, target: Target) -> Result<Report> {
    let begin = Instant::now();
    let store = store::open(context.instance)?;
    let manifest = catalog::find(&*store, options.id)?.manifest;
    let work = Work { context, store: &*store, manifest: &manifest };
    let decrypt = options.decrypt && manifest.encryption.is_some();
    let (file, size, resumed_from) = match target {
        Target::Stream(to) => (None, work.stream(decrypt, to)?, 0),
        Target::File(path) => {
            let path = if path.is_dir() { path.join(name(&manifest, decrypt)) } else { path };
            let (size, resumed_from) = work.file(decrypt, options.force, &path)?;
            (Some(path), size, resumed_from)
        }
    };
    Ok(Report {
        id: options.id,
        file,
        size,
        sha256: manifest.sha256.clone(),
        decrypted: decrypt,
        resumed_from,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// What the file is called when nothing else is said.
fn name(manifest: &Manifest, decrypted: bool) -> String {
    let name = manifest.download_name();
    match name.strip_suffix(".age") {
        Some(plain) if decrypted => plain.to_owned(),
        _ => name,
    }
}

struct Work<'a> {
    context: Context<'a>,
    store: &'a dyn Store,
    manifest: &'a Manifest,
}

impl Work<'_> {
    fn stream(&self, decrypt: bool, to: &mut dyn Write) -> Result<u64> {
        let from = self.open(decrypt, Sha256::new(), 0)?;
        self.copy(from, to, Path::new("standard output"), 0)
    }

    fn open(&self, decrypt: bool, hash: Sha256, offset: u64) -> Result<Box<dyn Read + Send>> {
        match decrypt {
            true => sealed::open(self.store, self.context.instance, self.manifest),
            false => Ok(Box::new(sealed::open_stored_from(self.store, self.manifest, hash, offset)?)),
        }
    }

    /// Its size, and how much of it was there before.
    fn file(&self, decrypt: bool, force: bool, path: &Path) -> Result<(u64, u64)> {
        if !force && path.symlink_metadata().is_ok() {
            return Err(Error::FileExists { path: path.into() });
        }
        let mut part_name = path.as_os_str().to_owned();
        part_name.push(".part");
        let part_path = PathBuf::from(part_name);
        let mut part = open_part(&part_path)?;
        let written = match self.bring(decrypt, &mut part, &part_path) {
            // It is of no use to the next try.
            Err(error @ Error::BackupDamaged { .. }) => {
                let _ = fs::remove_file(&part_path);
                return Err(error);
            }
            other => other?,
        };
        part.sync_all().on("sync", &part_path)?;
        if !force && path.symlink_metadata().is_ok() {
            return Err(Error::FileExists { path: path.into() });
        }
        durable::rename(&part_path, path)?;
        Ok(written)
    }

    /// Fills the part, going on where an earlier try has ended.
    fn bring(&self, decrypt: bool, part: &mut Flock<File>, path: &Path) -> Result<(u64, u64)> {
        let had = part.metadata().on("read", path)?.len();
        if had > 0 && had <= self.manifest.size && !decrypt {
            let (hash, offset) = self.hash(part, path)?;
            self.context
                .progress
                .step(format!("going on after the {offset} bytes that are in {}", path.display()));
            match self.open(false, hash, offset).and_then(|from| self.copy(from, &mut **part, path, offset)) {
                // Perhaps what was there is of another backup, or was damaged here.
                Err(Error::BackupDamaged { .. }) => {
                    self.context.progress.warn(format!(
                        "{} is not the beginning of {}: it is fetched anew",
                        path.display(),
                        self.manifest.id
                    ));
                }
                other => return other.map(|size| (size, offset)),
            }
        }
        part.set_len(0).on("write", path)?;
        part.rewind().on("write", path)?;
        let from = self.open(decrypt, Sha256::new(), 0)?;
        Ok((self.copy(from, &mut **part, path, 0)?, 0))
    }

    fn hash(&self, part: &mut Flock<File>, path: &Path) -> Result<(Sha256, u64)> {
        let (mut hash, mut offset) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER];
        loop {
            process::check_interrupt()?;
            match part.read(&mut buffer).on("read", path)? {
                0 => return Ok((hash, offset)),
                n => {
                    hash.update(&buffer[..n]);
                    offset += n as u64;
                }
            }
        }
    }

    /// Everything to its checked end; gives the whole size.
    fn copy(
        &self,
        mut from: Box<dyn Read + Send>,
        to: &mut dyn Write,
        path: &Path,
        offset: u64,
    ) -> Result<u64> {
        let progress = self.context.progress;
        progress.begin_bytes(&format!("downloading {}", self.manifest.id), self.manifest.size);
        progress.add(offset);
        let mut size = offset;
        let mut buffer = vec![0; BUFFER];
        let copied = loop {
            if let Err(error) = process::check_interrupt() {
                break Err(error);
            }
            match from.read(&mut buffer) {
                Ok(0) => break to.flush().on("write", path).map(|()| size),
                Ok(n) => {
                    if let Err(error) = to.write_all(&buffer[..n]).on("write", path) {
                        break Err(error);
                    }
                    size += n as u64;
                    progress.add(n as u64);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break Err(sealed::read_error(self.store, self.manifest, &e)),
            }
        };
        progress.end();
        copied
    }
}

const BUFFER: usize = 256 << 10;

/// One download to a file at a time.
fn open_part(path: &Path) -> Result<Flock<File>> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).on("create", path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            Error::Locked { path: path.into(), holder: "another download".into() }
        }
        errno => Error::File { action: "lock", path: path.into(), source: errno.into() },
    })
}
