//! Owns the end that reads: `pgmahout source`, started over SSH, answers requests about one data
//! directory and changes nothing.

use super::protocol::*;
use crate::postgres::files::{self, Decision, Unlogged};
use crate::postgres::version::PgVersion;
use base64::Engine;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result, Write};
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

fn named(path: &Path, error: Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
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

struct Listing<'a, W: Write> {
    to: &'a mut W,
    version: PgVersion,
    with_backup_label: bool,
    /// Tablespaces that lie inside PGDATA, by their real paths: not to be walked twice.
    inside: HashSet<PathBuf>,
    pulse: Pulse,
}

impl Source {
    fn list(&mut self, payload: &[u8], to: &mut impl Write) -> Result<()> {
        let request: List = serde_json::from_slice(payload).map_err(bad)?;
        let version = PgVersion::from_num(request.version);
        if let Some(first) = request.wal_from {
            return self.list_wal(version, &first, to);
        }
        let mut listing = Listing {
            to,
            version,
            with_backup_label: request.with_backup_label,
            inside: HashSet::new(),
            pulse: Pulse(Instant::now()),
        };
        let tablespaces = self.tablespaces()?;
        for (oid, path) in &tablespaces {
            let relative = path.strip_prefix(&self.data).ok();
            let shown = relative.unwrap_or(path);
            let path_text = shown.to_str().ok_or_else(|| bad("a path that is not UTF-8"))?.to_owned();
            let size = relative.is_some().into();
            if relative.is_some() {
                listing.inside.insert(path.clone());
            }
            let entry = Entry { kind: EntryKind::Tablespace, root: *oid, mode: 0o700, size, path: path_text };
            write_frame(listing.to, Kind::Entry, &entry.encode())?;
        }
        listing.walk(0, &self.data, "", "")?;
        for (oid, path) in &tablespaces {
            listing.walk(*oid, path, "", &format!("pg_tblspc/{oid}"))?;
        }
        write_frame(listing.to, Kind::End, &[])
    }

    /// (OID, real path) of every tablespace. A directory instead of a link is an in-place tablespace (15+,
    /// for developers) and travels with PGDATA.
    fn tablespaces(&self) -> Result<Vec<(u32, PathBuf)>> {
        let directory = self.data.join("pg_tblspc");
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

impl<W: Write> Listing<'_, W> {
    /// Walks one directory: `relative` to its root, `seen_as` as PGDATA sees the root.
    fn walk(&mut self, root: u32, base: &Path, relative: &str, seen_as: &str) -> Result<()> {
        let directory = base.join(relative);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Dropped between being listed and being read.
            Err(e) if e.kind() == ErrorKind::NotFound && !relative.is_empty() => return Ok(()),
            Err(e) => return Err(named(&directory, e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| named(&directory, e))?.file_name();
            // PostgreSQL makes no names that are not UTF-8; somebody else's are not copied.
            names.extend(name.into_string());
        }
        names.sort_unstable();
        let directory_in_data = match (seen_as, relative) {
            ("", relative) => relative.to_owned(),
            (seen_as, "") => seen_as.to_owned(),
            (seen_as, relative) => format!("{seen_as}/{relative}"),
        };
        let below = |parent: &str, name: &str| {
            if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
        };
        let paths: Vec<_> = names.iter().map(|name| below(&directory_in_data, name)).collect();
        let unlogged = Unlogged::among(paths.iter().map(String::as_str));
        for (name, in_data) in names.iter().zip(&paths) {
            self.pulse.beat(self.to)?;
            let path = below(relative, name);
            let full = directory.join(name);
            let Ok(metadata) = fs::symlink_metadata(&full) else { continue };
            let is_wal = in_data == self.version.wal_directory();
            // pg_wal may be a link to another disk: here it is an (empty) directory.
            let is_directory = metadata.is_dir() || is_wal;
            // Never tablespace_map: the server would make its links anew, to the source's directories.
            let label = self.with_backup_label && in_data == "backup_label";
            let is_map = in_data == "tablespace_map";
            let decision = match files::decide(in_data, is_directory, self.version) {
                _ if is_map => Decision::Skip,
                _ if label => Decision::Keep,
                Decision::Keep if unlogged.leaves_out(in_data) => Decision::Skip,
                decision => decision,
            };
            if decision == Decision::Skip {
                continue;
            }
            let (kind, size) = if is_directory {
                (EntryKind::Directory, 0)
            } else if metadata.is_file() {
                (EntryKind::File, metadata.len())
            } else {
                // Sockets and the links of pg_tblspc; other links do not belong to a cluster.
                continue;
            };
            let mode = if is_wal { 0o700 } else { metadata.mode() & 0o777 };
            let entry = Entry { kind, root, mode, size, path: path.clone() };
            write_frame(self.to, Kind::Entry, &entry.encode())?;
            if is_directory && decision == Decision::Keep && !self.inside.contains(&full) {
                self.walk(root, base, &path, seen_as)?;
            }
        }
        Ok(())
    }
}
