//! Owns the end that reads: `pgmahout source`, started over SSH, answers requests about one data
//! directory and changes nothing.

use super::blocks::{self, HASHED, Piece, Reader};
use super::coding::Encoder;
use super::protocol::*;
use super::walk::{self, Found, Walk, named};
use crate::fault::boundary;
use crate::postgres::changes::{Changes, Stretch};
use crate::postgres::version::PgVersion;
use base64::Engine;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Result, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
            (Kind::Changes, Some(source)) => source.changes(&payload, &mut to),
            (Kind::Read, Some(source)) => {
                ReadRange::decode(&payload).and_then(|range| source.send(&range, None, &mut to))
            }
            (Kind::Compare, Some(source)) => Compare::decode(&payload).and_then(|compare| {
                let theirs = Theirs { seed: compare.seed, hashes: &compare.hashes };
                source.send(&compare.range, Some(theirs), &mut to)
            }),
            _ => Err(bad("a request out of order")),
        };
        if let Err(error) = outcome {
            write_frame(&mut to, Kind::Failed, &error.to_string().into_bytes()[..])?;
            to.flush()?;
            return Err(error);
        }
        to.flush()?;
        boundary(match kind {
            Kind::Open => "source.opened",
            Kind::List => "source.listed",
            Kind::Changes => "source.changes-told",
            _ => "source.sent",
        });
    }
    Ok(())
}

/// [`serve`] on standard input and output.
pub fn serve_standard_streams() -> Result<()> {
    // Not std's stdin: a poll does not see what that has read ahead.
    let from = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let to = RefCell::new(BufWriter::with_capacity(256 * 1024, std::io::stdout().lock()));
    serve(BufReader::new(Requests { from, to: &to, idle: 60_000 }), Answers(&to))
}

/// Requests from whoever may be gone without a word: while none comes, signs of life go out. Of a line that was cut sshd
/// learns only when it has something to send; then it gives up after a quarter of an hour, and so do we.
struct Requests<'a, R, W: Write> {
    from: R,
    /// Where the signs go, which [`serve`] writes to as well.
    to: &'a RefCell<W>,
    /// Milliseconds between two of them.
    idle: u16,
}

impl<R: Read + AsFd, W: Write> Read for Requests<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match poll(&mut [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)], PollTimeout::from(self.idle))
            {
                Ok(0) => {
                    let mut to = self.to.borrow_mut();
                    write_frame(&mut *to, Kind::Alive, &[])?;
                    to.flush()?;
                }
                Ok(_) => return self.from.read(buffer),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// One of two that write there.
struct Answers<'a, W: Write>(&'a RefCell<W>);

impl<W: Write> Write for Answers<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.borrow_mut().flush()
    }
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
    encoder: Encoder,
    pace: Pace,
    // The file of the last range: the ranges of a large file come one after the other.
    opened: Option<((u32, String), Reader)>,
}

/// Keeps what is read below a rate, so that the server beside us keeps its disks and its line.
struct Pace {
    bytes_per_second: u64,
    begin: Instant,
    read: u64,
}

impl Pace {
    /// `bytes` are about to be read; waits until they may be.
    fn wait(&mut self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.read as f64 / self.bytes_per_second as f64);
        let now = self.begin.elapsed();
        if due > now {
            std::thread::sleep(due - now);
        } else if now - due > Duration::from_secs(1) {
            // What was not used while nothing was asked for is not made up for later.
            (self.begin, self.read) = (Instant::now(), 0);
        }
        self.read += bytes as u64;
    }
}

/// What the target has of a part.
struct Theirs<'a> {
    seed: u64,
    hashes: &'a [u8],
}

impl Theirs<'_> {
    fn has(&self, index: usize, block: &[u8]) -> bool {
        let hash = self.hashes.get(index * 8..index * 8 + 8);
        hash.is_some_and(|hash| hash == blocks::hash(self.seed, block).to_le_bytes())
    }
}

/// What is done with a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Same,
    Zero,
    Send,
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
    let pace = Pace { bytes_per_second: request.max_rate, begin: Instant::now(), read: 0 };
    Ok(Source {
        data,
        buffer: vec![0; BLOCK],
        encoder: Encoder::new(request.compression, Duration::from_millis(request.distance.into())),
        pace,
        opened: None,
    })
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
            let entry = Entry {
                kind: EntryKind::Tablespace,
                root: *oid,
                mode: 0o700,
                size,
                room: 0,
                path: path_text,
            };
            write_frame(to, Kind::Entry, &entry.encode())?;
        }
        let mut pulse = Pulse(Instant::now());
        let mut each = |found: Found| {
            pulse.beat(to)?;
            let kind = if found.is_directory { EntryKind::Directory } else { EntryKind::File };
            let Found { root, mode, size, room, path, .. } = found;
            write_frame(to, Kind::Entry, &Entry { kind, root, mode, size, room, path }.encode())
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
                let size = metadata.len();
                let entry = Entry { kind: EntryKind::File, root: 0, mode: 0o600, size, room: size, path };
                write_frame(to, Kind::Entry, &entry.encode())?;
            }
        }
        write_frame(to, Kind::End, &[])
    }

    fn changes(&self, payload: &[u8], to: &mut impl Write) -> Result<()> {
        let stretch: Stretch = serde_json::from_slice(payload).map_err(bad)?;
        let version = PgVersion::from_num(stretch.version);
        let directory = self.data.join(version.wal_directory());
        let mut pulse = Pulse(Instant::now());
        let read = match Changes::new(version) {
            Ok(mut changes) => stretch
                .read(&directory, &mut changes, || pulse.beat(to))
                .map_err(|e| named(&directory, e))?
                .map(|_| changes),
            Err(why) => Err(why),
        };
        let changes = match read {
            Ok(changes) => changes,
            Err(why) => return write_frame(to, Kind::End, why.as_bytes()),
        };
        let mut frame = Vec::new();
        changes.each(|change| {
            frame.extend(encode_change(change));
            if frame.len() + CHANGE_SIZE > BLOCK {
                write_frame(to, Kind::Changed, &frame)?;
                frame.clear();
            }
            Ok::<_, std::io::Error>(())
        })?;
        write_frame(to, Kind::Changed, &frame)?;
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

    /// Opens the file of a range; false when it is gone.
    fn open_file(&mut self, range: &ReadRange) -> Result<bool> {
        let key = (range.root, range.path.clone());
        if self.opened.as_ref().is_some_and(|(opened, _)| *opened == key) {
            return Ok(true);
        }
        self.opened = None;
        check_relative(&range.path)?;
        // What else lies where a tablespace does is nothing of the cluster's.
        if range.root != 0 && !range.path.starts_with("PG_") {
            return Err(bad(format!("a request for {:?} in a tablespace", range.path)));
        }
        // A tablespace may be dropped at any time, as a file may.
        let root = match self.root(range.root) {
            Ok(root) => root,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if let Some(link) = link_on_the_way(&root, range.root, &range.path) {
            return Err(bad(format!("a request for {:?}, behind the link {}", range.path, link.display())));
        }
        let path = root.join(&range.path);
        let mut options = fs::OpenOptions::new();
        // Without waiting: opening a pipe would last until somebody writes into it.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        match options.read(true).custom_flags(flags).open(&path) {
            Ok(file) if file.metadata()?.is_file() => self.opened = Some((key, Reader::new(file)?)),
            Ok(_) => return Err(bad(format!("a request for {}, which is no file", path.display()))),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(named(&path, e)),
        }
        Ok(true)
    }

    /// Sends a part of a file: all of it, or what the target does not have.
    fn send(&mut self, range: &ReadRange, theirs: Option<Theirs>, to: &mut impl Write) -> Result<()> {
        if !self.open_file(range)? {
            return write_frame(to, Kind::Done, &Done::Gone.encode());
        }
        let (_, reader) = self.opened.as_ref().expect("opened above");
        let end = range.offset.saturating_add(range.length);
        let mut out = Out { to, encoder: &mut self.encoder, zeroes: (range.offset, 0) };
        let mut pulse = Pulse(Instant::now());
        let mut at = range.offset;
        let index = |at: u64| ((at - range.offset) / HASHED as u64) as usize;
        while at < end {
            let piece = reader.next(at..end, &mut self.buffer).map_err(|e| named(&self.data, e))?;
            match piece {
                Piece::Read(have) => {
                    self.pace.wait(have);
                    let read = &self.buffer[..have];
                    let fate = |block: &[u8], n: usize| match &theirs {
                        Some(theirs) if theirs.has(index(at) + n, block) => Fate::Same,
                        _ if blocks::is_zero(block) => Fate::Zero,
                        _ => Fate::Send,
                    };
                    let mut run = (Fate::Same, 0);
                    for (n, block) in read.chunks(HASHED).enumerate() {
                        let now = fate(block, n);
                        if now != run.0 {
                            let until = n * HASHED;
                            out.give(run.0, at + run.1 as u64, &read[run.1..until])?;
                            run = (now, until);
                        }
                    }
                    out.give(run.0, at + run.1 as u64, &read[run.1..])?;
                    at += have as u64;
                }
                Piece::Hole(length) => {
                    let mut n = index(at);
                    blocks::zeroes(length, |block| {
                        if theirs.as_ref().is_none_or(|theirs| !theirs.has(n, block)) {
                            let offset = range.offset + (n * HASHED) as u64;
                            out.zero(offset, block.len() as u64)?;
                        }
                        n += 1;
                        Ok(())
                    })?;
                    at += length;
                }
                Piece::End => {
                    out.flush()?;
                    let size = reader.file().metadata()?.len().min(at);
                    return write_frame(to, Kind::Done, &Done::Short(size).encode());
                }
            }
            pulse.beat(out.to)?;
        }
        out.flush()?;
        write_frame(to, Kind::Done, &Done::Whole.encode())
    }
}

/// The answer to one request.
struct Out<'a, W: Write> {
    to: &'a mut W,
    encoder: &'a mut Encoder,
    /// Offset and length of zeroes that were not named yet: more may follow.
    zeroes: (u64, u64),
}

impl<W: Write> Out<'_, W> {
    fn give(&mut self, fate: Fate, offset: u64, bytes: &[u8]) -> Result<()> {
        match fate {
            _ if bytes.is_empty() => Ok(()),
            Fate::Same => Ok(()),
            Fate::Zero => self.zero(offset, bytes.len() as u64),
            Fate::Send => {
                // In the file's order: a small file is put together by it.
                self.flush()?;
                self.encoder.write_block(self.to, offset, bytes)
            }
        }
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.zeroes.0 + self.zeroes.1 != offset {
            self.flush()?;
            self.zeroes = (offset, 0);
        }
        self.zeroes.1 += length;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let (offset, length) = std::mem::take(&mut self.zeroes);
        if length == 0 {
            return Ok(());
        }
        write_frame(self.to, Kind::Zero, &[offset.to_le_bytes(), length.to_le_bytes()].concat())
    }
}

/// A path that stays below its root: relative, of plain names only.
pub fn check_relative(path: &str) -> Result<()> {
    // As `components` would pass over them: one file must not have two names.
    let plain = path.split('/').all(|name| !name.is_empty() && name != ".")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if plain { Ok(()) } else { Err(bad(format!("the path {path:?}, which leaves its directory"))) }
}

/// The first symbolic link among the directories on the way to a file below a root. Only WAL may lie behind one: the
/// others are somebody else's, and lead to what is no part of the cluster.
pub fn link_on_the_way(base: &Path, root: u32, path: &str) -> Option<PathBuf> {
    let is_link = |at: &Path| fs::symlink_metadata(at).is_ok_and(|found| found.is_symlink());
    let ends = path.match_indices('/').map(|(end, _)| &path[..end]);
    let leads_to_wal = |way: &str| root == 0 && (way == "pg_wal" || way == "pg_xlog");
    ends.filter(|way| !leads_to_wal(way)).map(|way| base.join(way)).find(|at| is_link(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_nothing_gets_signs_of_life() {
        let (from, mut asking) = std::io::pipe().unwrap();
        let asks = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            asking.write_all(b"ab").unwrap();
        });
        let to = RefCell::new(Vec::new());
        let mut requests = Requests { from, to: &to, idle: 20 };
        let mut asked = [0; 4];
        assert_eq!(requests.read(&mut asked).unwrap(), 2);
        assert_eq!(&asked[..2], b"ab");
        asks.join().unwrap();
        // The other end is gone.
        assert_eq!(requests.read(&mut asked).unwrap(), 0);
        let to = to.borrow();
        let (mut signs, mut payload, mut count) = (&to[..], Vec::new(), 0);
        while let Some(kind) = read_frame(&mut signs, &mut payload).unwrap() {
            assert!(kind == Kind::Alive && payload.is_empty());
            count += 1;
        }
        assert!((1..=15).contains(&count), "{count}");
    }
}
