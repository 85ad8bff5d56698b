//! Owns the end that reads: `pgmahout source`, started over SSH, answers requests about one data
//! directory and changes nothing.

use super::protocol::*;
use super::walk::{self, Found, Walk, named};
use crate::postgres::version::PgVersion;
use base64::Engine;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// Answers requests until the stream ends. A request that fails is answered by its reason, and ends it.
pub fn serve(mut from: impl Read, mut to: impl Write) -> Result<()> {
    to.write_all(GREETING)?;
    to.flush()?;
    let mut source: Option<Source> = None;
    let mut payload = Vec::new();
    while let Some(kind) = read_frame(&mut from, &mut payload)? {
        let outcome = match (kind, &mut source) {
            (Kind::Open, _) => open(&payload, &mut to).map(|opened| source = Some(opened)),
            (Kind::List, Some(source)) => source.list(&payload, &mut to),
            (Kind::Read, Some(source)) => source.read(&payload, &mut to),
            _ => Err(bad("a request out of order")),
        };
        if let Err(error) = outcome {
            write_frame(&mut to, Kind::Failed, &error.to_string().into_bytes()[..])?;
            to.flush()?;
            return Err(error);
        }
        to.flush()?;
    }
    Ok(())
}

/// Sends a sign of life when the last one is some time ago.
struct Pulse(Instant);

impl Pulse {
    fn beat(&mut self, to: &mut impl Write) -> Result<()> {
        if self.0.elapsed() > Duration::from_secs(5) {
            self.0 = Instant::now();
            write_frame(to, Kind::Alive, &[])?;
            to.flush()?;
        }
        Ok(())
    }
}

struct Source {
    data: PathBuf,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    // The file of the last range: the ranges of a large file come one after the other.
    opened: Option<((u32, String), File)>,
}

fn open(payload: &[u8], to: &mut impl Write) -> Result<Source> {
    let request: Open = serde_json::from_slice(payload).map_err(bad)?;
    let data = PathBuf::from(&request.data_directory);
    let data = data.canonicalize().map_err(|e| named(&data, e))?;
    let control = data.join("global/pg_control");
    let mut head = vec![0u8; 8192];
    let mut file = File::open(&control).map_err(|e| named(&control, e))?;
    let mut have = 0;
    while have < head.len() {
        match file.read(&mut head[have..])? {
            0 => break,
            n => have += n,
        }
    }
    head.truncate(have);
    let version = data.join("PG_VERSION");
    let metadata = fs::metadata(&data).map_err(|e| named(&data, e))?;
    let facts = FactsAnswer {
        control: base64::engine::general_purpose::STANDARD.encode(&head),
        pg_version: fs::read_to_string(&version).map_err(|e| named(&version, e))?.trim().to_owned(),
        boot_id: boot_id(),
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    write_frame(to, Kind::Facts, &serde_json::to_vec(&facts)?)?;
    Ok(Source { data, buffer: vec![0; BLOCK], scratch: Vec::new(), opened: None })
}

/// Identifies the running system; the same in every container and namespace of it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Source {
    fn list(&mut self, payload: &[u8], to: &mut impl Write) -> Result<()> {
        let request: List = serde_json::from_slice(payload).map_err(bad)?;
        let version = PgVersion::from_num(request.version);
        if let Some(first) = request.wal_from {
            return self.list_wal(version, &first, to);
        }
        let mut walk = Walk {
            version,
            with_backup_label: request.with_backup_label,
            with_unlogged: false,
            inside: HashSet::new(),
        };
        let tablespaces = walk::tablespaces(&self.data)?;
        for (oid, path) in &tablespaces {
            let relative = path.strip_prefix(&self.data).ok();
            let shown = relative.unwrap_or(path);
            let path_text = shown.to_str().ok_or_else(|| bad("a path that is not UTF-8"))?.to_owned();
            let size = relative.is_some().into();
            if relative.is_some() {
                walk.inside.insert(path.clone());
            }
            let entry = Entry { kind: EntryKind::Tablespace, root: *oid, mode: 0o700, size, path: path_text };
            write_frame(to, Kind::Entry, &entry.encode())?;
        }
        let mut pulse = Pulse(Instant::now());
        let mut each = |found: Found| {
            pulse.beat(to)?;
            let kind = if found.is_directory { EntryKind::Directory } else { EntryKind::File };
            let Found { root, mode, size, path, .. } = found;
            write_frame(to, Kind::Entry, &Entry { kind, root, mode, size, path }.encode())
        };
        walk.root(0, &self.data, "", &mut each)?;
        for (oid, path) in &tablespaces {
            walk.root(*oid, path, &format!("pg_tblspc/{oid}"), &mut each)?;
        }
        write_frame(to, Kind::End, &[])
    }

    fn list_wal(&self, version: PgVersion, first: &str, to: &mut impl Write) -> Result<()> {
        let directory = self.data.join(version.wal_directory());
        for entry in fs::read_dir(&directory).map_err(|e| named(&directory, e))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            let wanted = is_segment && name.as_str() >= first || name.ends_with(".history");
            if wanted && let Ok(metadata) = entry.metadata() {
                let path = format!("{}/{name}", version.wal_directory());
                let entry = Entry { kind: EntryKind::File, root: 0, mode: 0o600, size: metadata.len(), path };
                write_frame(to, Kind::Entry, &entry.encode())?;
            }
        }
        write_frame(to, Kind::End, &[])
    }

    fn root(&self, root: u32) -> Result<PathBuf> {
        match root {
            0 => Ok(self.data.clone()),
            oid => {
                let link = self.data.join("pg_tblspc").join(oid.to_string());
                link.canonicalize().map_err(|e| named(&link, e))
            }
        }
    }

    fn read(&mut self, payload: &[u8], to: &mut impl Write) -> Result<()> {
        let range = ReadRange::decode(payload)?;
        let key = (range.root, range.path.clone());
        if self.opened.as_ref().is_none_or(|(opened, _)| *opened != key) {
            self.opened = None;
            check_relative(&range.path)?;
            // A tablespace may be dropped at any time, as a file may.
            let path = match self.root(range.root) {
                Ok(root) => root.join(&range.path),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return write_frame(to, Kind::Done, &Done::Gone.encode());
                }
                Err(e) => return Err(e),
            };
            let mut options = fs::OpenOptions::new();
            match options.read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path) {
                Ok(file) if file.metadata()?.is_file() => self.opened = Some((key, file)),
                Ok(_) => return Err(bad(format!("a request for {}, which is no file", path.display()))),
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return write_frame(to, Kind::Done, &Done::Gone.encode());
                }
                Err(e) => return Err(named(&path, e)),
            }
        }
        let (_, file) = self.opened.as_ref().expect("opened above");
        let end = range.offset.saturating_add(range.length);
        let mut at = range.offset;
        while at < end {
            let want = (end - at).min(BLOCK as u64) as usize;
            let have = read_full(file, &mut self.buffer[..want], at).map_err(|e| named(&self.data, e))?;
            if have > 0 {
                write_block(to, at, &self.buffer[..have], &mut self.scratch)?;
            }
            at += have as u64;
            if have < want {
                return write_frame(to, Kind::Done, &Done::Short.encode());
            }
        }
        write_frame(to, Kind::Done, &Done::Whole.encode())
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// A path that stays below its root: relative, of plain names only.
pub fn check_relative(path: &str) -> Result<()> {
    let plain = !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if plain { Ok(()) } else { Err(bad(format!("the path {path:?}, which leaves its directory"))) }
}
