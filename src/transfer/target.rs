//! Owns the end that asks and writes: the client of one stream, and the copy over several of them.

use super::protocol::*;
use super::source::check_relative;
use crate::error::{Error, Result};
use crate::process::check_interrupt;
use crate::progress::Progress;
use crate::ssh::{Remote, RemoteProcess};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// One stream to a source.
pub struct Stream {
    io: BufReader<Counted>,
    host: String,
    payload: Vec<u8>,
    scratch: Vec<u8>,
    pending: Vec<u8>,
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
    pub fn open(remote: &dyn Remote, agent: &str, data: &str) -> Result<(Stream, FactsAnswer)> {
        let process = remote.exec(&format!("exec {agent} source"))?;
        Stream::over(process, remote.label(), data)
    }

    /// As [`Stream::open`], over a process that is already a source.
    pub fn over(process: Box<dyn RemoteProcess>, host: &str, data: &str) -> Result<(Stream, FactsAnswer)> {
        let counted = Counted { inner: process, received: 0 };
        let mut stream = Stream {
            io: BufReader::with_capacity(READ_BUFFER, counted),
            host: host.to_owned(),
            payload: Vec::new(),
            scratch: Vec::new(),
            pending: Vec::new(),
        };
        stream.skip_noise()?;
        let request = serde_json::to_vec(&Open { data_directory: data.to_owned() }).expect("plain text");
        stream.ask(Kind::Open, &request)?;
        match stream.answer()? {
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

    fn flush(&mut self) -> Result<()> {
        let Counted { inner, .. } = self.io.get_mut();
        let sent = inner.write_all(&self.pending).and_then(|()| inner.flush());
        self.pending.clear();
        sent.map_err(|e| self.broken(e))
    }

    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.queue(kind, payload);
        self.flush()
    }

    fn answer(&mut self) -> Result<Kind> {
        loop {
            check_interrupt()?;
            match read_frame(&mut self.io, &mut self.payload) {
                Ok(Some(Kind::Alive)) => {}
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

    /// Bytes received so far, as SSH delivered them.
    pub fn received(&self) -> u64 {
        self.io.get_ref().received
    }

    /// Asks for a manifest; each entry has passed [`check_entry`].
    pub fn list(&mut self, request: &List, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        self.ask(Kind::List, &serde_json::to_vec(request).expect("plain data"))?;
        loop {
            match self.answer()? {
                Kind::Entry => {
                    let entry = Entry::decode(&self.payload).and_then(check_entry);
                    each(entry.map_err(|e| self.broken(e))?)?;
                }
                Kind::End => return Ok(()),
                kind => return Err(self.unexpected(kind)),
            }
        }
    }

    /// A whole small file; `None` when it is not there.
    pub fn read_file(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let range = ReadRange { root: 0, path: path.to_owned(), offset: 0, length: limit };
        self.ask(Kind::Read, &range.encode())?;
        let mut content = Vec::new();
        loop {
            match self.answer()? {
                Kind::Data => {
                    let block = read_block(&self.payload, &mut self.scratch)
                        .map_err(|e| Error::SshBroken { host: self.host.clone(), why: e.to_string() })?;
                    if block.offset != content.len() as u64 || block.offset >= limit {
                        return Err(self.broken(bad("a block that was not asked for")));
                    }
                    content.extend_from_slice(block.bytes);
                }
                Kind::Done => {
                    let done = Done::decode(&self.payload).map_err(|e| self.broken(e))?;
                    return Ok((done != Done::Gone).then_some(content));
                }
                kind => return Err(self.unexpected(kind)),
            }
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
    if entry.size > SIZE_LIMIT {
        return Err(bad(format!("a file of {} bytes", entry.size)));
    }
    Ok(entry)
}

/// Where the roots of a manifest lie here: 0 is PGDATA, the others are tablespaces by OID.
#[derive(Clone, Debug, Default)]
pub struct Roots(pub BTreeMap<u32, PathBuf>);

impl Roots {
    /// The path here of a manifest's path.
    pub fn path(&self, root: u32, relative: &str) -> Option<PathBuf> {
        Some(self.0.get(&root)?.join(relative))
    }
}

/// What has to be copied: the directories are made first, then the files in parts.
#[derive(Default)]
pub struct Work {
    files: Vec<(u32, u32, String)>,
    parts: Vec<Part>,
    /// Bytes of all files.
    pub bytes: u64,
}

#[derive(Clone, Copy)]
struct Part {
    file: u32,
    offset: u64,
    length: u64,
}

/// A larger file is split, so that the last one does not keep one stream busy while the others idle.
const PART: u64 = 16 << 20;

impl Work {
    /// Adds a file of the manifest.
    pub fn add(&mut self, entry: Entry) {
        let file = self.files.len() as u32;
        self.bytes += entry.size;
        let mut offset = 0;
        loop {
            let length = (entry.size - offset).min(PART);
            self.parts.push(Part { file, offset, length });
            offset += length;
            if offset >= entry.size {
                break;
            }
        }
        self.files.push((entry.root, entry.mode, entry.path));
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Copied {
    /// Files written.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Bytes received, as SSH delivered them (compressed).
    pub wire_bytes: u64,
}

/// Bytes asked for ahead of their arrival, per stream: enough to hide the round trip of a long line,
/// small enough that the requests fit into the pipes on the way.
const AHEAD_BYTES: u64 = 2 * PART;
const AHEAD_REQUESTS: usize = 256;

/// Makes a directory of the manifest.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode | 0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(|source| Error::File { action: "create", path: path.into(), source }),
    }
}

/// Copies everything in `work` below `roots` over all `streams` at once. Nothing is synced here.
pub fn copy(streams: &mut [&mut Stream], work: &Work, roots: &Roots, progress: &Progress) -> Result<Copied> {
    let before: u64 = streams.iter().map(|s| s.received()).sum();
    let shared = Shared {
        work,
        roots,
        progress,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        first_error: Mutex::new(None),
        bytes: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for stream in streams.iter_mut() {
            scope.spawn(|| {
                if let Err(error) = shared.run(stream) {
                    shared.stop.store(true, Ordering::Relaxed);
                    shared.first_error.lock().expect("no panic in a worker").get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = shared.first_error.into_inner().expect("no panic in a worker") {
        return Err(error);
    }
    let after: u64 = streams.iter().map(|s| s.received()).sum();
    Ok(Copied { files: work.files() as u64, bytes: shared.bytes.into_inner(), wire_bytes: after - before })
}

struct Shared<'a> {
    work: &'a Work,
    roots: &'a Roots,
    progress: &'a Progress,
    next: AtomicUsize,
    stop: AtomicBool,
    first_error: Mutex<Option<Error>>,
    bytes: AtomicU64,
}

impl Shared<'_> {
    fn run(&self, stream: &mut Stream) -> Result<()> {
        let mut ahead: VecDeque<Part> = VecDeque::new();
        let mut ahead_bytes = 0;
        let mut current: Option<(u32, File)> = None;
        loop {
            while ahead.is_empty() || ahead_bytes < AHEAD_BYTES && ahead.len() < AHEAD_REQUESTS {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                let Some(part) = self.work.parts.get(index).copied() else { break };
                if part.length == 0 {
                    // Empty files need no question: were they to grow now, the WAL has it.
                    self.create(part.file)?;
                    continue;
                }
                let (root, _, path) = &self.work.files[part.file as usize];
                let range =
                    ReadRange { root: *root, path: path.clone(), offset: part.offset, length: part.length };
                stream.queue(Kind::Read, &range.encode());
                ahead_bytes += part.length;
                ahead.push_back(part);
            }
            stream.flush()?;
            let Some(part) = ahead.pop_front() else { return Ok(()) };
            ahead_bytes -= part.length;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.receive(stream, part, &mut current)?;
        }
    }

    fn create(&self, file: u32) -> Result<(PathBuf, File)> {
        let (root, mode, path) = &self.work.files[file as usize];
        let path = self.roots.path(*root, path).ok_or(Error::UnknownRoot { root: *root })?;
        // No truncation: another stream may have begun with another part of it.
        let opened =
            OpenOptions::new().write(true).create(true).truncate(false).mode(*mode | 0o600).open(&path);
        match opened {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(Error::File { action: "create", path, source }),
        }
    }

    fn receive(&self, stream: &mut Stream, part: Part, current: &mut Option<(u32, File)>) -> Result<()> {
        let end = part.offset + part.length;
        loop {
            match stream.answer()? {
                Kind::Data => {
                    let block = read_block(&stream.payload, &mut stream.scratch)
                        .map_err(|e| Error::SshBroken { host: stream.host.clone(), why: e.to_string() })?;
                    let inside =
                        block.offset >= part.offset && block.offset + block.bytes.len() as u64 <= end;
                    if !inside {
                        return Err(stream.broken(bad("a block that was not asked for")));
                    }
                    if current.as_ref().is_none_or(|(file, _)| *file != part.file) {
                        *current = Some((part.file, self.create(part.file)?.1));
                    }
                    let (_, file) = current.as_ref().expect("opened above");
                    file.write_all_at(block.bytes, block.offset).map_err(|source| {
                        let (root, _, path) = &self.work.files[part.file as usize];
                        let path = self.roots.path(*root, path).unwrap_or_default();
                        Error::File { action: "write", path, source }
                    })?;
                    let n = block.bytes.len() as u64;
                    self.bytes.fetch_add(n, Ordering::Relaxed);
                    self.progress.add(n);
                }
                Kind::Done => {
                    match Done::decode(&stream.payload).map_err(|e| stream.broken(e))? {
                        Done::Whole => {}
                        // Truncated or dropped while we copy: replay truncates or drops it here too.
                        Done::Short | Done::Gone => self.progress.add(0),
                    }
                    return Ok(());
                }
                kind => return Err(stream.unexpected(kind)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Voice;
    use crate::ssh::Ended;
    use std::os::unix::net::UnixStream;

    /// A source in this process, behind a socket pair.
    struct InProcess(UnixStream);

    impl Read for InProcess {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for InProcess {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl RemoteProcess for InProcess {
        fn send_eof(&mut self) -> std::io::Result<()> {
            self.0.shutdown(std::net::Shutdown::Write)
        }
        fn finish(self: Box<Self>) -> Result<Ended> {
            Ok(Ended { status: 0, stderr: String::new() })
        }
    }

    fn stream_to(data: &Path) -> Stream {
        let (here, there) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let _ = super::super::source::serve(there.try_clone().unwrap(), there);
        });
        Stream::over(Box::new(InProcess(here)), "test", data.to_str().unwrap()).unwrap().0
    }

    /// A peer that answers with these bytes, whatever it is asked.
    fn hostile(answer: Vec<u8>) -> Stream {
        let (here, mut there) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let _ = there.write_all(&answer);
            let _ = std::io::copy(&mut there, &mut std::io::sink());
        });
        let counted = Counted { inner: Box::new(InProcess(here)), received: 0 };
        Stream {
            io: BufReader::new(counted),
            host: "peer".into(),
            payload: Vec::new(),
            scratch: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn cluster() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        for directory in ["global", "base", "base/5", "pg_tblspc", "pg_wal", "pg_wal/archive_status"] {
            fs::create_dir(data.path().join(directory)).unwrap();
        }
        let write = |path: &str, content: &[u8]| fs::write(data.path().join(path), content).unwrap();
        write("PG_VERSION", b"15\n");
        write("global/pg_control", &[1; 8192]);
        write("base/5/16384", &(0..40_000_000u32).map(|i| (i >> 12) as u8).collect::<Vec<_>>());
        write("base/5/16385", b"");
        write("base/5/16386", b"small");
        write("base/5/16387", b"unlogged");
        write("base/5/16387_init", b"init");
        write("base/5/t3_16388", b"temporary");
        write("postmaster.pid", b"1");
        write("pg_wal/000000010000000000000001", b"wal");
        data
    }

    const PLAIN: List = List { version: 150000, wal_from: None, with_backup_label: false };

    #[test]
    fn a_copy_over_three_streams_is_equal_and_leaves_out_what_it_must() {
        let data = cluster();
        let target = tempfile::tempdir().unwrap();
        let roots = Roots(BTreeMap::from([(0, target.path().to_owned())]));
        let mut streams: Vec<_> = (0..3).map(|_| stream_to(data.path())).collect();
        let mut work = Work::default();
        streams[0]
            .list(&PLAIN, |entry| {
                match entry.kind {
                    EntryKind::Directory => make_directory(&roots.path(0, &entry.path).unwrap(), entry.mode)?,
                    _ => work.add(entry),
                }
                Ok(())
            })
            .unwrap();
        let mut all: Vec<_> = streams.iter_mut().collect();
        let copied = copy(&mut all, &work, &roots, &Progress::new(Voice::Quiet)).unwrap();
        assert!(copied.wire_bytes < copied.bytes / 10, "it compresses: {copied:?}");
        for same in ["PG_VERSION", "base/5/16384", "base/5/16385", "base/5/16386", "base/5/16387_init"] {
            let (a, b) = (fs::read(data.path().join(same)), fs::read(target.path().join(same)));
            assert!(a.unwrap() == b.unwrap(), "{same}");
        }
        for absent in ["postmaster.pid", "base/5/16387", "base/5/t3_16388", "pg_wal/000000010000000000000001"]
        {
            assert!(!target.path().join(absent).exists(), "{absent}");
        }
        assert!(target.path().join("pg_wal").is_dir());
    }

    #[test]
    fn files_that_shrink_or_go_away_are_no_failure() {
        let data = cluster();
        let target = tempfile::tempdir().unwrap();
        let roots = Roots(BTreeMap::from([(0, target.path().to_owned())]));
        let mut streams = [stream_to(data.path())];
        let mut work = Work::default();
        for (path, size) in [("gone", 10), ("PG_VERSION", 4_000_000)] {
            let entry = Entry { kind: EntryKind::File, root: 0, mode: 0o600, size, path: path.into() };
            work.add(entry);
        }
        copy(&mut [&mut streams[0]], &work, &roots, &Progress::new(Voice::Quiet)).unwrap();
        assert!(!target.path().join("gone").exists());
        assert_eq!(fs::read(target.path().join("PG_VERSION")).unwrap(), b"15\n");
    }

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
            (EntryKind::File, 1, "../x"),
            (EntryKind::File, 1, "/etc/x"),
            (EntryKind::Directory, 0, "a/../../b"),
            (EntryKind::Tablespace, 0, "relative"),
            (EntryKind::Tablespace, 0, "/a/../b"),
            (EntryKind::Tablespace, 1, "../outside"),
            (EntryKind::File, 1, "authorized_keys"),
            (EntryKind::File, 1 << 60, "PG_15_202209061/5/16384"),
        ] {
            let entry = Entry { kind, root: 7, mode: 0o600, size, path: path.into() };
            let mut wire = Vec::new();
            write_frame(&mut wire, Kind::Entry, &entry.encode()).unwrap();
            let error = hostile(wire).list(&PLAIN, |_| panic!("{path} was let through"));
            assert!(matches!(error, Err(Error::SshBroken { .. })), "{path}: {error:?}");
        }
    }

    #[test]
    fn a_block_outside_its_range_is_refused() {
        let mut wire = Vec::new();
        write_block(&mut wire, 1 << 30, b"far away", &mut Vec::new()).unwrap();
        let target = tempfile::tempdir().unwrap();
        let roots = Roots(BTreeMap::from([(0, target.path().to_owned())]));
        let mut work = Work::default();
        work.add(Entry { kind: EntryKind::File, root: 0, mode: 0o600, size: 8192, path: "x".into() });
        let error = copy(&mut [&mut hostile(wire)], &work, &roots, &Progress::new(Voice::Quiet));
        assert!(error.unwrap_err().to_string().contains("not asked for"));
        assert!(!target.path().join("x").exists());
    }
}
