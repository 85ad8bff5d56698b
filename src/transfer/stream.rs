//! Owns the client of one stream: what is asked of a `pgmahout source`, and what of its answers is believed.

use super::coding::{Block, Decoder};
use super::protocol::*;
use super::source::check_relative;
use crate::error::{Error, Result};
use crate::postgres::changes::{Changes, Stretch};
use crate::postgres::files::OWN_PREFIX;
use crate::process::check_interrupt;
use crate::ssh::{Remote, RemoteProcess};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// One stream to a source.
pub struct Stream {
    io: BufReader<Counted>,
    host: String,
    payload: Vec<u8>,
    decoder: Decoder,
    pending: Vec<u8>,
    sent: u64,
    distance: Duration,
    /// Bytes of the part that is being answered.
    answered: u64,
}

/// How a stream is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// How the source compresses.
    pub compression: Compression,
    /// Bytes of files that the source may read for this stream in a second; 0 is as many as it can.
    pub max_rate: u64,
    /// What an earlier stream found of [`Stream::distance`].
    pub distance: Duration,
}

/// A piece of an answer to [`Stream::read`] or [`Stream::compare`].
pub enum Answer<'a> {
    /// These bytes.
    Data(Block<'a>),
    /// Nothing but zeroes: offset and length.
    Zero(u64, u64),
    /// It is over.
    Done(Done),
}

/// Counts what comes over the wire.
struct Counted {
    inner: Box<dyn RemoteProcess>,
    received: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.received += n as u64;
        Ok(n)
    }
}

/// libssh2's own receive buffer is about this; more does not make it faster (DESIGN.md).
const READ_BUFFER: usize = 64 * 1024;

impl Stream {
    /// Starts `agent source` (a shell word) on the other side and opens PGDATA there.
    pub fn open(
        remote: &dyn Remote,
        agent: &str,
        data: &str,
        wishes: Wishes,
    ) -> Result<(Stream, FactsAnswer)> {
        let process = remote.exec(&format!("exec {agent} source"))?;
        Stream::over(process, remote.label(), data, wishes)
    }

    /// As [`Stream::open`], over a process that is already a source.
    pub fn over(
        process: Box<dyn RemoteProcess>,
        host: &str,
        data: &str,
        wishes: Wishes,
    ) -> Result<(Stream, FactsAnswer)> {
        let counted = Counted { inner: process, received: 0 };
        let mut stream = Stream {
            io: BufReader::with_capacity(READ_BUFFER, counted),
            host: host.to_owned(),
            payload: Vec::new(),
            decoder: Decoder::default(),
            pending: Vec::new(),
            sent: 0,
            distance: Duration::ZERO,
            answered: 0,
        };
        stream.skip_noise()?;
        let Wishes { compression, max_rate, distance } = wishes;
        let distance = distance.as_millis().min(60_000) as u32;
        let request = Open { data_directory: data.to_owned(), compression, max_rate, distance };
        let begin = Instant::now();
        stream.ask(Kind::Open, &serde_json::to_vec(&request).expect("plain data"))?;
        let answer = stream.answer()?;
        stream.distance = begin.elapsed();
        match answer {
            Kind::Facts => {
                let facts = serde_json::from_slice(&stream.payload).map_err(|e| stream.broken(bad(e)))?;
                Ok((stream, facts))
            }
            kind => Err(stream.unexpected(kind)),
        }
    }

    fn broken(&self, error: std::io::Error) -> Error {
        use std::io::ErrorKind::*;
        let why = match error.kind() {
            UnexpectedEof | BrokenPipe | ConnectionReset => "the connection ended".into(),
            TimedOut | WouldBlock => "no answer for a minute".into(),
            _ => error.to_string(),
        };
        Error::SshBroken { host: self.host.clone(), why }
    }

    fn unexpected(&self, kind: Kind) -> Error {
        self.broken(bad(format!("a frame {kind:?} out of order")))
    }

    fn skip_noise(&mut self) -> Result<()> {
        let greeting = &GREETING[1..];
        let (mut line, mut noise) = (Vec::new(), 0);
        loop {
            line.clear();
            let mut limited = (&mut self.io).take(NOISE_LIMIT as u64);
            let n = limited.read_until(b'\n', &mut line).map_err(|e| self.broken(e))?;
            if line == greeting {
                return Ok(());
            }
            noise += n;
            if n == 0 || noise > NOISE_LIMIT {
                let said = String::from_utf8_lossy(&line).into_owned();
                return Err(Error::NoSource { host: self.host.clone(), said: said.trim().to_owned() });
            }
        }
    }

    /// Collects a request; it goes out with the next [`Stream::flush`].
    fn queue(&mut self, kind: Kind, payload: &[u8]) {
        write_frame(&mut self.pending, kind, payload).expect("a Vec takes everything");
    }

    /// Sends what was asked for.
    pub fn flush(&mut self) -> Result<()> {
        let Counted { inner, .. } = self.io.get_mut();
        self.sent += self.pending.len() as u64;
        let sent = inner.write_all(&self.pending).and_then(|()| inner.flush());
        self.pending.clear();
        sent.map_err(|e| self.broken(e))
    }

    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.queue(kind, payload);
        self.flush()
    }

    fn answer(&mut self) -> Result<Kind> {
        let (begin, mut signs) = (Instant::now(), 0);
        loop {
            check_interrupt()?;
            match read_frame(&mut self.io, &mut self.payload) {
                // One that works sends them seconds apart.
                Ok(Some(Kind::Alive)) if signs > begin.elapsed().as_secs() + SIGNS_AT_ONCE => {
                    return Err(self.broken(bad("signs of life without end")));
                }
                Ok(Some(Kind::Alive)) => signs += 1,
                Ok(Some(Kind::Failed)) => {
                    let why = String::from_utf8_lossy(&self.payload).into_owned();
                    return Err(Error::SourceFailed { host: self.host.clone(), why });
                }
                Ok(Some(kind)) => return Ok(kind),
                Ok(None) => return Err(self.broken(std::io::ErrorKind::UnexpectedEof.into())),
                Err(e) => return Err(self.broken(e)),
            }
        }
    }

    /// How long the first answer took.
    pub fn distance(&self) -> Duration {
        self.distance
    }

    /// Bytes received and sent so far, as SSH delivered them.
    pub fn on_the_wire(&self) -> (u64, u64) {
        (self.io.get_ref().received, self.sent)
    }

    /// Asks for a part of a file, with the next [`Stream::flush`]; [`Stream::next`] gives the answer.
    pub fn read(&mut self, range: &ReadRange) {
        self.queue(Kind::Read, &range.encode());
    }

    /// Asks for those blocks of a part that are others than here. The hashes of a part have to fit into a frame.
    pub fn compare(&mut self, compare: &Compare) {
        self.queue(Kind::Compare, &compare.encode());
    }

    /// The next piece of the answer to the oldest request that is not done, which was for this part of a file.
    pub fn next(&mut self, part: Range<u64>) -> Result<Answer<'_>> {
        // Nothing comes twice, and no piece is empty: so every answer has an end.
        let asked_for = part.end - part.start;
        let within = |offset: u64, length: u64| {
            offset >= part.start && offset.checked_add(length).is_some_and(|end| end <= part.end)
        };
        match self.answer()? {
            Kind::Data => {
                let host = &self.host;
                let broken = |e: std::io::Error| Error::SshBroken { host: host.clone(), why: e.to_string() };
                let block = self.decoder.read_block(&self.payload).map_err(broken)?;
                let length = block.bytes.len() as u64;
                self.answered += length;
                match within(block.offset, length) && length > 0 && self.answered <= asked_for {
                    true => Ok(Answer::Data(block)),
                    false => Err(broken(bad("a block that was not asked for"))),
                }
            }
            Kind::Zero => {
                let mut fields = Fields(&self.payload);
                let both = fields.u64().and_then(|offset| Ok((offset, fields.u64()?)));
                let (offset, length) = both.map_err(|e| self.broken(e))?;
                self.answered = self.answered.saturating_add(length);
                match within(offset, length) && length > 0 && self.answered <= asked_for {
                    true => Ok(Answer::Zero(offset, length)),
                    false => Err(self.broken(bad("zeroes that were not asked for"))),
                }
            }
            Kind::Done => {
                self.answered = 0;
                Ok(Answer::Done(Done::decode(&self.payload).map_err(|e| self.broken(e))?))
            }
            kind => Err(self.unexpected(kind)),
        }
    }

    /// Asks for a manifest; each entry has passed [`check_entry`].
    pub fn list(&mut self, request: &List, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        self.ask(Kind::List, &serde_json::to_vec(request).expect("plain data"))?;
        let mut so_far = Listed::default();
        loop {
            match self.answer()? {
                Kind::Entry => {
                    let entry = Entry::decode(&self.payload).and_then(check_entry);
                    each(entry.and_then(|entry| so_far.with(entry)).map_err(|e| self.broken(e))?)?;
                }
                Kind::End => return Ok(()),
                kind => return Err(self.unexpected(kind)),
            }
        }
    }

    /// Adds what a stretch of the WAL there changes. The error of the inside says why that cannot be known.
    pub fn changes(
        &mut self,
        stretch: &Stretch,
        changes: &mut Changes,
    ) -> Result<std::result::Result<(), String>> {
        self.ask(Kind::Changes, &serde_json::to_vec(stretch).expect("plain data"))?;
        let mut outcome = Ok(());
        let mut count = 0;
        loop {
            match self.answer()? {
                Kind::Changed => {
                    let mut fields = Fields(&self.payload);
                    count += self.payload.len() / CHANGE_SIZE + 1;
                    if count > CHANGES_LIMIT {
                        return Err(self.broken(bad("changes without end")));
                    }
                    while !fields.0.is_empty() {
                        let change = decode_change(&mut fields).map_err(|e| self.broken(e))?;
                        outcome = outcome.and_then(|()| changes.add(change));
                    }
                }
                Kind::End if self.payload.is_empty() => return Ok(outcome),
                Kind::End => {
                    let why = String::from_utf8_lossy(&self.payload);
                    return Ok(Err(why.chars().filter(|c| !c.is_control()).take(200).collect()));
                }
                kind => return Err(self.unexpected(kind)),
            }
        }
    }

    /// A whole small file; `None` when it is not there.
    pub fn read_file(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.read_part(&ReadRange { root: 0, path: path.to_owned(), offset: 0, length: limit })
    }

    /// A part of a file that fits into memory; `None` when the file is not there.
    pub fn read_part(&mut self, range: &ReadRange) -> Result<Option<Vec<u8>>> {
        self.read(range);
        self.flush()?;
        let mut content = Vec::new();
        let mut out_of_order = false;
        loop {
            let at = range.offset + content.len() as u64;
            match self.next(range.offset..range.offset + range.length)? {
                Answer::Data(block) => {
                    out_of_order |= block.offset != at;
                    content.extend_from_slice(block.bytes);
                }
                Answer::Zero(offset, length) => {
                    out_of_order |= offset != at;
                    // Within what was asked for, so it is no larger than that.
                    content.resize(content.len() + length as usize, 0);
                }
                Answer::Done(_) if out_of_order => return Err(self.broken(bad("a file out of order"))),
                Answer::Done(done) => return Ok((done != Done::Gone).then_some(content)),
            }
            if content.len() as u64 > range.length {
                return Err(self.broken(bad("more than was asked for")));
            }
        }
    }
}

/// So many signs of life may have waited in the buffers on the way.
const SIGNS_AT_ONCE: u64 = 100;

/// A source remembers fewer changes.
const CHANGES_LIMIT: usize = 1 << 25;

/// No cluster has more entries, nor more bytes in their paths or in its files. What is listed is kept in memory here.
const ENTRIES_LIMIT: u64 = 1 << 24;
const PATHS_LIMIT: u64 = 1 << 30;
const TOTAL_LIMIT: u64 = 1 << 60;

/// What a source has listed so far.
#[derive(Default)]
struct Listed {
    entries: u64,
    paths: u64,
    bytes: u64,
}

impl Listed {
    fn with(&mut self, entry: Entry) -> std::io::Result<Entry> {
        self.entries += 1;
        self.paths += entry.path.len() as u64;
        // Each is below SIZE_LIMIT.
        self.bytes += entry.size;
        match self.entries > ENTRIES_LIMIT || self.paths > PATHS_LIMIT || self.bytes > TOTAL_LIMIT {
            true => Err(bad("more files than any cluster has")),
            false => Ok(entry),
        }
    }
}

/// No file of a cluster is larger: segments have 1 GB unless built otherwise.
const SIZE_LIMIT: u64 = 1 << 42;

/// Refuses an entry that a cluster cannot have: the other side is not trusted to write anywhere but below
/// the roots.
fn check_entry(entry: Entry) -> std::io::Result<Entry> {
    match entry.kind {
        EntryKind::Tablespace if entry.size == 0 => {
            let path = Path::new(&entry.path);
            let clean = path.is_absolute() && check_relative(entry.path.trim_start_matches('/')).is_ok();
            if !clean || entry.root == 0 {
                return Err(bad(format!("a tablespace at {:?}", entry.path)));
            }
        }
        _ => check_relative(&entry.path)?,
    }
    // In a tablespace a server has only directories of its own naming: whatever path the other side gave
    // the tablespace, nothing else can be written there.
    if entry.root != 0 && entry.kind != EntryKind::Tablespace && !entry.path.starts_with("PG_") {
        return Err(bad(format!("{:?} in a tablespace", entry.path)));
    }
    // Our own marks, and what is behind the links to tablespaces, are not the source's to write.
    let ours = entry.path.split('/').any(|name| name.starts_with(OWN_PREFIX));
    let behind_a_link = entry.root == 0
        && entry
            .path
            .strip_prefix("pg_tblspc/")
            .is_some_and(|rest| entry.kind == EntryKind::File || rest.contains('/'));
    if ours || behind_a_link {
        return Err(bad(format!("{:?}, which no source has", entry.path)));
    }
    if entry.size > SIZE_LIMIT {
        return Err(bad(format!("a file of {} bytes", entry.size)));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::super::peers::{PLAIN, cluster, hostile, stream_to};
    use super::*;

    #[test]
    fn a_source_shows_nothing_outside_its_roots() {
        let data = cluster();
        std::os::unix::fs::symlink("/etc/passwd", data.path().join("link")).unwrap();
        for path in ["../etc/passwd", "/etc/passwd", "base/../../x", "link", "base", ""] {
            let error = stream_to(data.path()).read_file(path, 100);
            assert!(matches!(error, Err(Error::SourceFailed { .. })), "{path}: {error:?}");
        }
        assert_eq!(stream_to(data.path()).read_file("PG_VERSION", 100).unwrap().unwrap(), b"15\n");
        assert_eq!(stream_to(data.path()).read_file("nothing", 100).unwrap(), None);
    }

    #[test]
    fn entries_that_climb_out_are_refused() {
        for (kind, size, path) in [
            (EntryKind::File, 1, "pgdata:global//pg_control"),
            (EntryKind::File, 1, "pgdata:global/./pg_control"),
            (EntryKind::File, 1, "pgdata:.pgmahout-incomplete"),
            (EntryKind::File, 1, "pgdata:pg_tblspc/7"),
            (EntryKind::Directory, 0, "pgdata:pg_tblspc/7/PG_15_202209061"),
            (EntryKind::File, 1, "../x"),
            (EntryKind::File, 1, "/etc/x"),
            (EntryKind::Directory, 0, "a/../../b"),
            (EntryKind::Tablespace, 0, "relative"),
            (EntryKind::Tablespace, 0, "/a/../b"),
            (EntryKind::Tablespace, 1, "../outside"),
            (EntryKind::File, 1, "authorized_keys"),
            (EntryKind::File, 1 << 60, "PG_15_202209061/5/16384"),
        ] {
            let (root, path) = path.strip_prefix("pgdata:").map_or((7, path), |path| (0, path));
            let entry = Entry { kind, root, mode: 0o600, size, room: size, path: path.into() };
            let mut wire = Vec::new();
            write_frame(&mut wire, Kind::Entry, &entry.encode()).unwrap();
            let error = hostile(wire).list(&PLAIN, |_| panic!("{path} was let through"));
            assert!(matches!(error, Err(Error::SshBroken { .. })), "{path}: {error:?}");
        }
    }

    fn entry(kind: EntryKind, path: &str, size: u64) -> Vec<u8> {
        let entry = Entry { kind, root: 0, mode: 0o600, size, room: size, path: path.into() };
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Entry, &entry.encode()).unwrap();
        wire
    }

    fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut payload = vec![0];
        payload.extend(offset.to_le_bytes());
        payload.extend((bytes.len() as u32).to_le_bytes());
        payload.extend(bytes);
        write_frame(&mut wire, Kind::Data, &payload).unwrap();
        wire
    }

    fn is_refused<T>(outcome: Result<T>, why: &str) {
        let error = outcome.err().unwrap();
        assert!(matches!(error, Error::SshBroken { .. }) && error.to_string().contains(why), "{error}");
    }

    #[test]
    fn an_answer_without_end_is_refused() {
        let mut signs = Vec::new();
        (0..1000).for_each(|_| write_frame(&mut signs, Kind::Alive, &[]).unwrap());
        is_refused(hostile(signs).list(&PLAIN, |_| Ok(())), "signs of life without end");

        let mut again = hostile(data(0, b"1234").repeat(3));
        again.read(&ReadRange { root: 0, path: "x".into(), offset: 0, length: 8 });
        assert!(again.next(0..8).is_ok() && again.next(0..8).is_ok());
        is_refused(again.next(0..8).map(drop), "a block that was not asked for");
        is_refused(hostile(data(0, b"")).next(0..8).map(drop), "a block that was not asked for");

        let huge = entry(EntryKind::File, "x", SIZE_LIMIT).repeat((TOTAL_LIMIT / SIZE_LIMIT) as usize + 1);
        let mut taken = 0;
        let outcome = hostile(huge).list(&PLAIN, |_| {
            taken += 1;
            Ok(())
        });
        is_refused(outcome, "more files than any cluster has");
        assert_eq!(taken, TOTAL_LIMIT / SIZE_LIMIT);
    }

    #[test]
    fn a_source_follows_no_link_but_that_of_the_wal_and_waits_for_no_pipe() {
        use std::os::unix::fs::symlink;
        let (data, outside) = (cluster(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), b"secret").unwrap();
        std::fs::create_dir(outside.path().join("PG_15_1")).unwrap();
        std::fs::write(outside.path().join("PG_15_1/1"), b"in a tablespace").unwrap();
        symlink(outside.path(), data.path().join("base/out")).unwrap();
        symlink(outside.path(), data.path().join("pg_tblspc/7")).unwrap();
        std::fs::remove_dir_all(data.path().join("pg_wal")).unwrap();
        symlink(outside.path(), data.path().join("pg_wal")).unwrap();
        nix::unistd::mkfifo(&data.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = |root, path: &str| {
            let range = ReadRange { root, path: path.into(), offset: 0, length: 100 };
            stream_to(data.path()).read_part(&range)
        };
        for (root, path) in [(0, "base/out/secret"), (0, "pg_tblspc/7/secret"), (7, "secret"), (0, "pipe")] {
            let outcome = read(root, path);
            assert!(matches!(outcome, Err(Error::SourceFailed { .. })), "{path}: {outcome:?}");
        }
        assert_eq!(read(7, "PG_15_1/1").unwrap().unwrap(), b"in a tablespace");
        assert_eq!(read(0, "pg_wal/secret").unwrap().unwrap(), b"secret");
    }
}
