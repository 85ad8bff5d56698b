//! Owns the end that asks and writes: a copy over several streams, of everything or of what differs.

use super::blocks::{self, Reader};
use super::protocol::*;
use super::source::link_on_the_way;
use super::stream::{Answer, Stream};
use super::write::{Heap, Target};
use crate::durable::{self, Context};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::postgres::changes::{Changes, Touched};
use crate::postgres::files::relation_of;
use crate::postgres::page::{self, PAGE, PAGES_PER_SEGMENT};
use crate::postgres::wal::Lsn;
use crate::process::check_interrupt;
use crate::progress::Progress;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where the roots of a manifest lie here: 0 is PGDATA, the others are tablespaces by OID.
#[derive(Clone, Debug, Default)]
pub struct Roots(pub BTreeMap<u32, PathBuf>);

impl Roots {
    /// The path here of a manifest's path.
    pub fn path(&self, root: u32, relative: &str) -> Option<PathBuf> {
        Some(self.0.get(&root)?.join(relative))
    }

    /// Refuses a way that leads out of its root: whatever links lie here already, the other side chooses its paths
    /// and must not reach through them.
    fn check_way(&self, root: u32, relative: &str) -> Result<()> {
        let base = self.0.get(&root).ok_or(Error::UnknownRoot { root })?;
        match link_on_the_way(base, root, relative) {
            None => Ok(()),
            Some(path) => {
                let source = std::io::Error::other("it is a symbolic link, which would lead elsewhere");
                Err(Error::File { action: "write below", path, source })
            }
        }
    }

    /// Refuses tablespaces in PGDATA, where the other side says that they are, if a link stands there.
    pub fn check_inside(&self) -> Result<()> {
        let Some(data) = self.0.get(&0) else { return Ok(()) };
        let inside = self.0.values().filter_map(|path| path.strip_prefix(data).ok()?.to_str());
        inside.filter(|path| !path.is_empty()).try_for_each(|path| self.check_way(0, &format!("{path}/")))
    }
}

/// What has to be copied: the directories are made first, then the files in parts. A million files take some 30 MB: their
/// paths are kept as a directory and a name.
#[derive(Default)]
pub struct Work {
    directories: Vec<(u32, String)>,
    names: String,
    files: Vec<FileOf>,
    /// Bytes of all files.
    pub bytes: u64,
}

#[derive(Clone, Copy)]
struct FileOf {
    directory: u32,
    /// Where its name ends in `names`; it begins where the one before ends.
    name_end: u32,
    /// Its size, and above [`MODE_SHIFT`] its permission bits.
    size_and_mode: u64,
}

/// Sizes are below 2^43 ([`super::stream`] sees to it), and permissions have 9 bits.
const MODE_SHIFT: u32 = 48;

/// A part of a file of the work.
struct Part {
    file: u32,
    range: ReadRange,
    /// The part has something to be compared with here.
    compare: bool,
}

/// A larger file is split, so that the last one does not keep one stream busy while the others idle. The hashes of one
/// part fit into a frame.
const PART: u64 = 16 << 20;
const SMALLEST_PART: u64 = 1 << 20;

impl Work {
    /// Adds a file of the manifest.
    pub fn add(&mut self, entry: Entry) {
        let (directory, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        if self
            .directories
            .last()
            .is_none_or(|(root, path)| (*root, path.as_str()) != (entry.root, directory))
        {
            self.directories.push((entry.root, directory.to_owned()));
        }
        self.names.push_str(name);
        self.files.push(FileOf {
            directory: self.directories.len() as u32 - 1,
            name_end: self.names.len() as u32,
            size_and_mode: entry.size | u64::from(entry.mode) << MODE_SHIFT,
        });
        self.bytes += entry.size;
    }

    /// See [`Roots::check_way`]; nothing of a copy makes a link, so once is enough.
    fn check_ways(&self, roots: &Roots) -> Result<()> {
        self.directories.iter().try_for_each(|(root, path)| roots.check_way(*root, &format!("{path}/")))
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    fn size(&self, file: u32) -> u64 {
        self.files[file as usize].size_and_mode & ((1 << MODE_SHIFT) - 1)
    }

    fn mode(&self, file: u32) -> u32 {
        (self.files[file as usize].size_and_mode >> MODE_SHIFT) as u32
    }

    /// Root and path of a file.
    fn path(&self, file: u32) -> (u32, String) {
        let FileOf { directory, name_end, .. } = self.files[file as usize];
        let begin = match file {
            0 => 0,
            file => self.files[file as usize - 1].name_end,
        };
        let name = &self.names[begin as usize..name_end as usize];
        match &self.directories[directory as usize] {
            (root, directory) if directory.is_empty() => (*root, name.to_owned()),
            (root, directory) => (*root, format!("{directory}/{name}")),
        }
    }
}

/// What a copy did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Copied {
    /// Files of the source.
    pub files: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// It was compared with what was here.
    pub compared: bool,
    /// Bytes that were not even compared, for the WAL says that they have not changed.
    pub passed_over_bytes: u64,
    /// What said so: `wal`, or `summaries` of it; none where everything was compared.
    pub known_by: Option<&'static str>,
    /// Why everything was compared.
    pub not_known: Option<String>,
    /// Bytes that were written here: all, or those of the blocks that differed.
    pub written_bytes: u64,
    /// Bytes received, as SSH delivered them (compressed).
    pub wire_bytes: u64,
    /// Bytes sent: requests, and the hashes of what is here.
    pub sent_bytes: u64,
    /// Seconds from the command until the copy was complete and on the disk.
    pub durable_seconds: f64,
    /// Pages whose checksum was wrong on the source, however often they were read: file and block of the relation, a
    /// hundred of them at most.
    pub damaged_pages: Vec<String>,
    /// How many there were.
    pub damaged: u64,
}

/// How a copy is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// What lies below the roots already is compared, and only what differs is asked for.
    pub compare: bool,
    /// The pages of relations carry checksums, and are verified: where the backup began. What a page of later than
    /// this holds is written anew by replay.
    pub verify_since: Option<Lsn>,
    /// Bytes that each stream brings in a second at most; 0 when nobody has limited it.
    pub rate: u64,
}

impl Manner {
    /// What is asked for at once. Under a limit it is what comes within a few seconds: a stream that has nothing more to
    /// do while another one brings its last parts does not answer its sshd, which hangs up after some minutes.
    fn part(&self) -> u64 {
        match self.rate {
            0 => PART,
            rate => (rate * 5).next_multiple_of(BLOCK as u64).min(PART),
        }
    }
}

/// A file of so many bytes is written past the page cache. Smaller ones are many, and would each be a request of their
/// own to the disk.
const LARGE: u64 = 1 << 20;

/// Parts asked for ahead of their arrival, per stream: enough to hide the round trip of a long line,
/// small enough that the requests fit into the pipes on the way.
const AHEAD_PARTS: u64 = 2;
const AHEAD_REQUESTS: usize = 256;

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Makes a directory of the manifest.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode | 0o700).create(path) {
        // A link is none: what is to come into the directory would come elsewhere.
        Err(e) if e.kind() == ErrorKind::AlreadyExists && is_directory(path) => Ok(()),
        other => other.map_err(|source| Error::File { action: "create", path: path.into(), source }),
    }
}

/// What is left of some evenly spread pieces of `work` when the source has compressed them, as a part of their bytes; 0 when
/// hardly anything but holes was met.
pub fn sample(stream: &mut Stream, work: &Work) -> Result<f64> {
    const PIECES: u64 = 24;
    const PIECE: u64 = 64 << 10;
    let mut ranges = Vec::new();
    let mut before = 0;
    for file in 0..work.files.len() as u32 {
        let size = work.size(file);
        // Those of the evenly spread places that lie in this file.
        let first = (before * PIECES).div_ceil(work.bytes.max(1));
        let within = (first..PIECES).map(|n| work.bytes * n / PIECES).take_while(|at| *at < before + size);
        for offset in within.filter_map(|at| at.checked_sub(before)) {
            let (root, path) = work.path(file);
            ranges.push(ReadRange { root, offset, length: PIECE.min(size - offset), path });
        }
        before += size;
    }
    let received = stream.on_the_wire().0;
    ranges.iter().for_each(|range| stream.read(range));
    stream.flush()?;
    let mut plain = 0;
    for range in &ranges {
        loop {
            match stream.next(range.offset..range.offset + range.length)? {
                Answer::Data(block) => plain += block.bytes.len(),
                Answer::Zero(..) => {}
                Answer::Done(_) => break,
            }
        }
    }
    let wire = stream.on_the_wire().0 - received;
    Ok(if plain as u64 > PIECE { wire as f64 / plain as f64 } else { 0.0 })
}

/// Copies everything in `work` below `roots` over all `streams` at once. Nothing is synced here.
///
/// What is compared may be anything: a cluster that has diverged, or what a copy that broke off has left. A block that
/// stays is, by its hash, the one that the source had when it read it, which was after the backup's start, as it is for
/// a block that is sent. So what is here in the end could as well have been copied whole, and replay from the backup's
/// start makes it consistent in the same way.
///
/// Of files that are here, only what `known` names is compared, if it is given: it says what can differ between what is
/// here and what was there when the backup began.
pub fn copy(
    streams: &mut [&mut Stream],
    work: &Work,
    roots: &Roots,
    manner: Manner,
    known: Option<&Changes>,
    progress: &Progress,
) -> Result<Copied> {
    let wire = |streams: &[&mut Stream]| {
        streams.iter().map(|s| s.on_the_wire()).fold((0, 0), |(a, b), (x, y)| (a + x, b + y))
    };
    let before = wire(streams);
    work.check_ways(roots)?;
    let shared = Shared {
        work,
        roots,
        manner,
        known,
        progress,
        seed: random(),
        next: Mutex::new(Queue { next_file: 0, begun: vec![Begun::default(); streams.len()] }),
        streams: streams.len() as u64,
        left: AtomicU64::new(work.bytes),
        stop: AtomicBool::new(false),
        first_error: Mutex::new(None),
        written: AtomicU64::new(0),
        passed_over: AtomicU64::new(0),
        ends: Mutex::new(BTreeMap::new()),
        suspects: Mutex::new(Vec::new()),
        more_suspects: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for (n, stream) in streams.iter_mut().enumerate() {
            let shared = &shared;
            scope.spawn(move || {
                let outcome = std::thread::scope(|scope| shared.run(n, stream, Heap::new(scope)));
                if let Err(error) = outcome {
                    shared.stop.store(true, Ordering::Relaxed);
                    shared.first_error.lock().expect("no panic in a worker").get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = shared.first_error.lock().expect("no panic in a worker").take() {
        return Err(error);
    }
    let damaged = match streams.first_mut() {
        Some(stream) => shared.look_again(stream)?,
        None => Vec::new(),
    };
    shared.cut_off()?;
    let after = wire(streams);
    Ok(Copied {
        files: work.files() as u64,
        bytes: work.bytes,
        compared: manner.compare,
        passed_over_bytes: shared.passed_over.into_inner(),
        known_by: None,
        not_known: None,
        written_bytes: shared.written.into_inner(),
        wire_bytes: after.0 - before.0,
        sent_bytes: after.1 - before.1,
        durable_seconds: 0.0,
        damaged: damaged.len() as u64 + shared.more_suspects.into_inner(),
        damaged_pages: damaged.into_iter().take(100).collect(),
    })
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random bytes");
    u64::from_le_bytes(bytes)
}

/// What nobody has taken yet.
struct Queue {
    next_file: u32,
    /// The file that each stream is at. Two of them that write to one file would wait for each other.
    begun: Vec<Begun>,
}

/// What is left of a file, the last range first.
#[derive(Clone, Default)]
struct Begun {
    file: u32,
    left: Vec<Range<u64>>,
    /// The file has something to be compared with.
    compare: bool,
}

impl Begun {
    fn bytes(&self) -> u64 {
        self.left.iter().map(|range| range.end - range.start).sum()
    }
}

/// A file that is being written.
struct Current {
    file: u32,
    to: Arc<Target>,
    /// The first page of it, where its pages are verified.
    first_block: Option<u32>,
}

struct Shared<'a> {
    work: &'a Work,
    roots: &'a Roots,
    manner: Manner,
    known: Option<&'a Changes>,
    progress: &'a Progress,
    seed: u64,
    next: Mutex<Queue>,
    streams: u64,
    /// Bytes of `next`.
    left: AtomicU64,
    stop: AtomicBool,
    first_error: Mutex<Option<Error>>,
    written: AtomicU64,
    /// Bytes that are known to be as they are there.
    passed_over: AtomicU64,
    /// Files that were shorter on the source than its manifest said: how long; none for those that are gone.
    ends: Mutex<BTreeMap<u32, Option<u64>>>,
    /// Pages whose checksum is wrong: file and offset.
    suspects: Mutex<Vec<(u32, u64)>>,
    /// Those that were too many to be remembered.
    more_suspects: AtomicU64,
}

impl Shared<'_> {
    /// What the `n`th stream does.
    fn run(&self, n: usize, stream: &mut Stream, mut heap: Heap) -> Result<()> {
        let mut ahead: VecDeque<Part> = VecDeque::new();
        let mut ahead_bytes = 0;
        let mut current: Option<Current> = None;
        let mut own: Option<(u32, Reader)> = None;
        let mut buffer = vec![0; if self.manner.compare { BLOCK } else { 0 }];
        loop {
            while ahead.is_empty() || ahead_bytes < AHEAD_PARTS * self.part() && ahead.len() < AHEAD_REQUESTS
            {
                let Some(part) = self.next_part(n)? else { break };
                if part.range.length == 0 {
                    // Empty files need no question: were they to grow now, the WAL has it.
                    self.open(part.file, false)?;
                    continue;
                }
                if part.compare {
                    let hashes = self.own_hashes(&part, &mut own, &mut buffer)?;
                    let range = part.range.clone();
                    stream.compare(&Compare { range, seed: self.seed, hashes });
                } else {
                    stream.read(&part.range);
                }
                ahead_bytes += part.range.length;
                ahead.push_back(part);
                if self.manner.compare {
                    // The source may begin with this one while the next is hashed here.
                    stream.flush()?;
                }
            }
            stream.flush()?;
            let Some(part) = ahead.pop_front() else { return heap.finish() };
            ahead_bytes -= part.range.length;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.receive(stream, &part, &mut current, &mut heap)?;
            boundary("copy.part");
        }
    }

    /// What is asked for at once: less and less towards the end, for one stream may be several times as fast as another,
    /// and has nothing to do while that one brings what it has asked for.
    fn part(&self) -> u64 {
        let share = self.left.load(Ordering::Relaxed) / (4 * self.streams);
        self.manner.part().min(share.max(SMALLEST_PART).next_multiple_of(BLOCK as u64))
    }

    /// The next part for the `n`th stream: of its file, else of a new one, else of that of which most is left.
    fn next_part(&self, n: usize) -> Result<Option<Part>> {
        let mut queue = self.next.lock().expect("no panic in a worker");
        while queue.begun[n].left.is_empty() && (queue.next_file as usize) < self.work.files() {
            let file = queue.next_file;
            queue.next_file += 1;
            let begun = self.begin(file)?;
            self.left.fetch_sub(self.work.size(file) - begun.bytes(), Ordering::Relaxed);
            queue.begun[n] = begun;
        }
        let begun = match queue.begun[n].left.is_empty() {
            false => &mut queue.begun[n],
            true => queue.begun.iter_mut().max_by_key(|begun| begun.bytes()).expect("there is a stream"),
        };
        let Some(range) = begun.left.last_mut() else { return Ok(None) };
        let (offset, length) = (range.start, (range.end - range.start).min(self.part()));
        range.start += length;
        self.left.fetch_sub(length, Ordering::Relaxed);
        if range.is_empty() {
            begun.left.pop();
        }
        let (root, path) = self.work.path(begun.file);
        let range = ReadRange { root, path, offset, length };
        Ok(Some(Part { file: begun.file, range, compare: begun.compare }))
    }

    /// Finds what has to be looked at of a file.
    fn begin(&self, file: u32) -> Result<Begun> {
        let (root, path) = self.work.path(file);
        let size = self.work.size(file);
        let found = if self.manner.compare { self.make_comparable(root, &path, size)? } else { None };
        let touched = self.known.map_or(Touched::Unknown, |known| known.of_file(&in_data(root, &path)));
        let mut left = match (found, touched) {
            (Some(found), Touched::Only(ranges)) => {
                let wanted = to_be_compared(ranges, found, size);
                let passed_over = size - wanted.iter().map(|range| range.end - range.start).sum::<u64>();
                self.passed_over.fetch_add(passed_over, Ordering::Relaxed);
                self.progress.add(passed_over);
                wanted
            }
            _ => std::iter::once(0..size).collect(),
        };
        left.reverse();
        Ok(Begun { file, left, compare: found.is_some() })
    }

    /// The size of the file that is here, which is not empty; it has the size of the source's then.
    fn make_comparable(&self, root: u32, relative: &str, size: u64) -> Result<Option<u64>> {
        let path = self.roots.path(root, relative).ok_or(Error::UnknownRoot { root })?;
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {
                if found.len() != size {
                    let file = OpenOptions::new().write(true).open(&path).on("open", &path)?;
                    file.set_len(size).on("set the size of", &path)?;
                }
                Ok(Some(found.len()).filter(|found| *found > 0 && size > 0))
            }
            Ok(found) if found.is_dir() => durable::remove_tree(&path).map(|()| None),
            // A link, a socket: nothing of a cluster.
            Ok(_) => fs::remove_file(&path).on("remove", &path).map(|()| None),
            Err(_) => Ok(None),
        }
    }

    fn own_hashes(&self, part: &Part, own: &mut Option<(u32, Reader)>, buffer: &mut [u8]) -> Result<Vec<u8>> {
        let path = self.roots.path(part.range.root, &part.range.path).unwrap_or_default();
        if own.as_ref().is_none_or(|(file, _)| *file != part.file) {
            let opened = File::open(&path).and_then(Reader::new).on("read", &path)?;
            *own = Some((part.file, opened));
        }
        let (_, reader) = own.as_ref().expect("opened above");
        let end = part.range.offset + part.range.length;
        blocks::hashes(reader, part.range.offset..end, self.seed, buffer).on("read", &path)
    }

    fn full_path(&self, file: u32) -> Result<PathBuf> {
        let (root, relative) = self.work.path(file);
        self.roots.path(root, &relative).ok_or(Error::UnknownRoot { root })
    }

    /// Opens a file, and makes it if it is not here. What is new has its size at once, for it may end in a hole.
    fn open(&self, file: u32, is_new: bool) -> Result<Current> {
        let path = self.full_path(file)?;
        let (root, relative) = self.work.path(file);
        // No truncation: another stream may have begun with another part of it.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(self.work.mode(file) | 0o600);
        let handle = options.custom_flags(nix::libc::O_NOFOLLOW).open(&path).on("create", &path)?;
        let size = self.work.size(file);
        if is_new && handle.metadata().on("look at", &path)?.len() < size {
            handle.set_len(size).on("set the size of", &path)?;
        }
        let relation = self.manner.verify_since.and_then(|_| relation_of(&in_data(root, &relative)));
        let first_block = relation.map(|relation| relation.segment.wrapping_mul(PAGES_PER_SEGMENT));
        let to = Arc::new(Target::new(handle, &path, is_new && size >= LARGE));
        Ok(Current { file, to, first_block })
    }

    fn receive(
        &self,
        stream: &mut Stream,
        part: &Part,
        current: &mut Option<Current>,
        heap: &mut Heap,
    ) -> Result<()> {
        if current.as_ref().is_none_or(|current| current.file != part.file) {
            *current = Some(self.open(part.file, !part.compare)?);
        }
        let current = current.as_ref().expect("opened above");
        let end = part.range.offset + part.range.length;
        loop {
            match stream.next(part.range.offset..end)? {
                Answer::Data(block) => {
                    self.check_pages(current, block.offset, block.bytes);
                    heap.add(&current.to, block.bytes, block.offset)?;
                    let n = block.bytes.len() as u64;
                    self.written.fetch_add(n, Ordering::Relaxed);
                    if !part.compare {
                        self.progress.add(n);
                    }
                }
                // A file that was made anew has a hole there.
                Answer::Zero(_, length) if !part.compare => self.progress.add(length),
                Answer::Zero(offset, length) => {
                    let outcome = write_zeroes(current.to.file(), offset, length);
                    outcome.on("write", &self.full_path(part.file)?)?;
                    self.written.fetch_add(length, Ordering::Relaxed);
                }
                Answer::Done(done) => {
                    heap.flush(&current.to)?;
                    self.done(part, done);
                    return Ok(());
                }
            }
        }
    }

    /// The end of a part. Truncated or dropped while we copy: replay truncates or drops it here too, but must not find
    /// what stood behind the end here before.
    fn done(&self, part: &Part, done: Done) {
        if part.compare {
            self.progress.add(part.range.length);
        }
        let end = match done {
            Done::Whole => return,
            Done::Short(size) => Some(size),
            Done::Gone => Some(part.range.offset).filter(|offset| *offset > 0),
        };
        let mut ends = self.ends.lock().expect("no panic in a worker");
        let shortest = ends.entry(part.file).or_insert(end);
        *shortest = end.min(*shortest);
    }

    /// Cuts files that were shorter there than the manifest said, and removes those that are gone.
    fn cut_off(&self) -> Result<()> {
        for (file, size) in self.ends.lock().expect("no panic in a worker").iter() {
            let path = self.full_path(*file)?;
            let found = match fs::metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                found => found.on("look at", &path)?,
            };
            match size {
                None => fs::remove_file(&path).on("remove", &path)?,
                Some(size) if found.len() > *size => {
                    let handle = OpenOptions::new().write(true).open(&path).on("open", &path)?;
                    handle.set_len(*size).on("set the size of", &path)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn check_pages(&self, current: &Current, offset: u64, bytes: &[u8]) {
        let Some(first) = current.first_block else { return };
        for (n, page) in bytes.chunks_exact(PAGE).enumerate() {
            let at = offset + (n * PAGE) as u64;
            if !self.is_sound(page, first, at) {
                let mut suspects = self.suspects.lock().expect("no panic in a worker");
                match suspects.len() < SUSPECTS {
                    true => suspects.push((current.file, at)),
                    false => drop(self.more_suspects.fetch_add(1, Ordering::Relaxed)),
                }
            }
        }
    }

    fn is_sound(&self, page: &[u8], first_block: u32, offset: u64) -> bool {
        let block = first_block.wrapping_add((offset / PAGE as u64) as u32);
        page::is_sound(page, block) || self.manner.verify_since.is_some_and(|start| page::lsn(page) >= start)
    }

    /// A page that was read while the server was writing it may be torn: it is read again, until it is sound, or was
    /// written since the backup began, so that replay writes it anew. Gives those that stay as they are.
    fn look_again(&self, stream: &mut Stream) -> Result<Vec<String>> {
        let mut suspects = std::mem::take(&mut *self.suspects.lock().expect("no panic in a worker"));
        for round in 0..LOOKS {
            if suspects.is_empty() {
                return Ok(Vec::new());
            }
            if round > 0 {
                std::thread::sleep(Duration::from_millis(100));
            }
            let mut left = Vec::new();
            for (file, at) in suspects {
                check_interrupt()?;
                let ((root, path), current) = (self.work.path(file), self.open(file, false)?);
                let range = ReadRange { root, path, offset: at, length: PAGE as u64 };
                let page = stream.read_part(&range)?.unwrap_or_default();
                if page.len() < PAGE {
                    // Truncated or dropped by now.
                    continue;
                }
                current.to.file().write_all_at(&page, at).on("write", &self.full_path(file)?)?;
                let first = current.first_block.expect("only such files have suspects");
                if !self.is_sound(&page, first, at) {
                    left.push((file, at));
                }
            }
            suspects = left;
        }
        suspects.sort_unstable();
        let name = |(file, at): &(u32, u64)| {
            let (root, path) = self.work.path(*file);
            let path = in_data(root, &path);
            let first =
                relation_of(&path).map_or(0, |relation| relation.segment.wrapping_mul(PAGES_PER_SEGMENT));
            format!("{path}: {}", first.wrapping_add((at / PAGE as u64) as u32))
        };
        Ok(suspects.iter().map(name).collect())
    }
}

/// So many pages are read again. A disk that has more damage than this is beyond it.
const SUSPECTS: usize = 10_000;

/// How often a page with a wrong checksum is read: a server writes one within a moment.
const LOOKS: u32 = 5;

/// What of a file of `size` bytes has to be compared, when only `ranges` of it were changed and `found` bytes of it were
/// here: what is longer there, too.
fn to_be_compared(ranges: Vec<Range<u64>>, found: u64, size: u64) -> Vec<Range<u64>> {
    let end = (found - found % PAGE as u64).min(size);
    let mut wanted: Vec<Range<u64>> = ranges
        .into_iter()
        .map(|range| range.start..range.end.min(end))
        .filter(|range| !range.is_empty())
        .collect();
    if end < size {
        wanted.push(end..size);
    }
    wanted
}

/// A path as PGDATA sees it.
fn in_data(root: u32, relative: &str) -> String {
    match root {
        0 => relative.to_owned(),
        root => format!("pg_tblspc/{root}/{relative}"),
    }
}

/// Makes zeroes of what stands there, without a byte of room where the file system can.
fn write_zeroes(file: &File, offset: u64, length: u64) -> std::io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if fallocate(file, punch, offset as i64, length as i64).is_ok() {
        return Ok(());
    }
    let mut at = offset;
    blocks::zeroes(length, |zeroes| {
        file.write_all_at(zeroes, at)?;
        at += zeroes.len() as u64;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::coding::Encoder;
    use super::super::peers::{PLAIN, cluster, hostile, stream_to, stream_with};
    use super::super::stream::Wishes;
    use super::*;
    use crate::postgres::changes::{Change, Relation};
    use crate::progress::Voice;

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
        let copied =
            copy(&mut all, &work, &roots, Manner::default(), None, &Progress::new(Voice::Quiet)).unwrap();
        assert!(copied.wire_bytes < copied.bytes / 10, "it compresses: {copied:?}");
        assert_eq!(copied.written_bytes, copied.bytes);
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
            let entry =
                Entry { kind: EntryKind::File, root: 0, mode: 0o600, size, room: size, path: path.into() };
            work.add(entry);
        }
        copy(&mut [&mut streams[0]], &work, &roots, Manner::default(), None, &Progress::new(Voice::Quiet))
            .unwrap();
        assert!(!target.path().join("gone").exists());
        assert_eq!(fs::read(target.path().join("PG_VERSION")).unwrap(), b"15\n");
    }

    #[test]
    fn a_block_outside_its_range_is_refused() {
        let mut wire = Vec::new();
        Encoder::new(Compression::Auto, Duration::ZERO).write_block(&mut wire, 1 << 30, b"far away").unwrap();
        let target = tempfile::tempdir().unwrap();
        let roots = Roots(BTreeMap::from([(0, target.path().to_owned())]));
        let mut work = Work::default();
        work.add(Entry {
            kind: EntryKind::File,
            root: 0,
            mode: 0o600,
            size: 8192,
            room: 8192,
            path: "x".into(),
        });
        let error = copy(
            &mut [&mut hostile(wire)],
            &work,
            &roots,
            Manner::default(),
            None,
            &Progress::new(Voice::Quiet),
        );
        assert!(error.unwrap_err().to_string().contains("not asked for"));
        assert_eq!(fs::read(target.path().join("x")).unwrap(), [0; 8192], "nothing of it was written");
    }

    /// Copies `data` over what is in `target`.
    fn copied(data: &Path, target: &Path, manner: Manner, wishes: Wishes) -> Copied {
        copied_knowing(data, target, manner, None, wishes)
    }

    fn copied_knowing(
        data: &Path,
        target: &Path,
        manner: Manner,
        known: Option<&Changes>,
        wishes: Wishes,
    ) -> Copied {
        let roots = Roots(BTreeMap::from([(0, target.to_owned())]));
        let mut streams: Vec<_> = (0..2).map(|_| stream_with(data, wishes)).collect();
        let mut work = Work::default();
        let list = streams[0].list(&PLAIN, |entry| {
            match entry.kind {
                EntryKind::Directory => make_directory(&roots.path(0, &entry.path).unwrap(), entry.mode)?,
                _ => work.add(entry),
            }
            Ok(())
        });
        list.unwrap();
        let mut all: Vec<_> = streams.iter_mut().collect();
        copy(&mut all, &work, &roots, manner, known, &Progress::new(Voice::Quiet)).unwrap()
    }

    const COMPARE: Manner = Manner { compare: true, verify_since: None, rate: 0 };

    fn same(a: &Path, b: &Path, path: &str) {
        let (a, b) = (fs::read(a.join(path)).unwrap(), fs::read(b.join(path)).unwrap());
        assert_eq!(a.len(), b.len(), "{path}");
        assert!(a == b, "{path}");
    }

    #[test]
    fn only_what_differs_travels() {
        let (data, target) = (cluster(), tempfile::tempdir().unwrap());
        let (from, to) = (data.path(), target.path());
        copied(from, to, Manner::default(), Wishes::default());
        let again = copied(from, to, COMPARE, Wishes::default());
        assert_eq!(again.written_bytes, 0, "{again:?}");
        // 8 bytes for a block of 8 kB, and a little for each file.
        assert!(again.sent_bytes < 40_000_000 / 1000 + 3000 && again.wire_bytes < 3000, "{again:?}");

        let big = OpenOptions::new().write(true).open(to.join("base/5/16384")).unwrap();
        // Two pages that are not one run, one byte at the end, and one that is zero there.
        for at in [8191, 20 * 8192, 39_999_999] {
            big.write_all_at(&[255], at).unwrap();
        }
        let there = OpenOptions::new().write(true).open(from.join("base/5/16384")).unwrap();
        there.write_all_at(&[0; 8192], 160 * 8192).unwrap();
        let there = copied(from, to, COMPARE, Wishes::default());
        same(from, to, "base/5/16384");
        assert_eq!(there.written_bytes, 3 * 8192 + 40_000_000 % 8192, "{there:?}");
    }

    #[test]
    fn what_is_known_to_be_the_same_is_passed_over() {
        let page = PAGE as u64;
        let at = |ranges: &[(u64, u64)]| -> Vec<_> {
            ranges.iter().map(|(begin, end)| begin * page..end * page).collect()
        };
        // Nothing changed; changed behind the end; longer there, in the middle of a page; shorter there.
        for (changed, found, wanted) in [
            (at(&[]), 80 * page, at(&[])),
            (at(&[(1, 2), (70, 200)]), 80 * page, at(&[(1, 2), (70, 80)])),
            (at(&[(1, 2)]), 60 * page + 5, at(&[(1, 2), (60, 80)])),
            (at(&[(1, 2), (90, 91)]), 100 * page, at(&[(1, 2)])),
        ] {
            assert_eq!(to_be_compared(changed, found, 80 * page), wanted);
        }

        let (data, target) = (cluster(), tempfile::tempdir().unwrap());
        let (from, to) = (data.path(), target.path());
        copied(from, to, Manner::default(), Wishes::default());
        let table = Relation { tablespace: 1663, database: 5, number: 16384 };
        let mut known = Changes::new("15".parse().unwrap()).unwrap();
        known.add(Change::Block(table, 2)).unwrap();
        let file = OpenOptions::new().write(true).open(to.join("base/5/16384")).unwrap();
        // One that is named, one that is not, and one behind an end that was further on there.
        for block in [2, 1000, 4800] {
            file.write_all_at(&[255], block * page).unwrap();
        }
        file.set_len(4800 * page + 3).unwrap();
        let done = copied_knowing(from, to, COMPARE, Some(&known), Wishes::default());
        let [here, there] = [to, from].map(|root| fs::read(root.join("base/5/16384")).unwrap());
        let differ: Vec<_> = (0..here.len()).filter(|n| here[*n] != there[*n]).collect();
        assert_eq!((here.len(), differ), (there.len(), vec![1000 * PAGE]));
        assert_eq!(done.passed_over_bytes, 4799 * page);
        assert_eq!(copied(from, to, COMPARE, Wishes::default()).written_bytes, page);
    }

    #[test]
    fn whatever_was_here_is_as_it_is_there_in_the_end() {
        let (data, target) = (cluster(), tempfile::tempdir().unwrap());
        let (from, to) = (data.path(), target.path());
        copied(from, to, Manner::default(), Wishes::default());
        let write = |path: &str, content: &[u8]| fs::write(to.join(path), content).unwrap();
        // Shorter, longer, empty, filled, a directory, a link, gone.
        write("PG_VERSION", b"1");
        write("base/5/16386", b"small, and much longer than there");
        write("base/5/16385", b"empty there");
        write("base/5/16387_init", b"");
        let big = OpenOptions::new().write(true).open(to.join("base/5/16384")).unwrap();
        big.set_len(1_000_000).unwrap();
        fs::remove_file(to.join("global/pg_control")).unwrap();
        fs::create_dir(to.join("global/pg_control")).unwrap();
        write("elsewhere", b"not to be touched");
        copied(from, to, COMPARE, Wishes::default());
        for path in ["PG_VERSION", "base/5/16384", "base/5/16385", "base/5/16386", "base/5/16387_init"] {
            same(from, to, path);
        }
        same(from, to, "global/pg_control");
        fs::remove_file(to.join("PG_VERSION")).unwrap();
        std::os::unix::fs::symlink(to.join("elsewhere"), to.join("PG_VERSION")).unwrap();
        copied(from, to, COMPARE, Wishes::default());
        same(from, to, "PG_VERSION");
        assert!(!fs::symlink_metadata(to.join("PG_VERSION")).unwrap().is_symlink());
        assert_eq!(fs::read(to.join("elsewhere")).unwrap(), b"not to be touched");
    }

    #[test]
    fn holes_cost_nothing_and_have_their_size() {
        let (data, target) = (cluster(), tempfile::tempdir().unwrap());
        let (from, to) = (data.path(), target.path());
        let sparse = File::create(from.join("base/5/20000")).unwrap();
        sparse.set_len(3 << 30).unwrap();
        sparse.write_all_at(&[1; 8192], 1 << 30).unwrap();
        fs::write(from.join("base/5/20001"), vec![0; 100_000]).unwrap();
        for manner in [Manner::default(), COMPARE] {
            let done = copied(from, to, manner, Wishes::default());
            assert!(done.written_bytes < 41_000_000, "{done:?}");
            let there = File::open(to.join("base/5/20000")).unwrap();
            let mut page = [0; 8192];
            there.read_exact_at(&mut page, 1 << 30).unwrap();
            assert_eq!(page, [1; 8192]);
            use std::os::unix::fs::MetadataExt;
            let found = there.metadata().unwrap();
            assert!(found.len() == 3 << 30 && found.blocks() * 512 < 1 << 20, "{found:?}");
            same(from, to, "base/5/20001");
        }
        // What was data here and is a hole there.
        let here = OpenOptions::new().write(true).open(to.join("base/5/20000")).unwrap();
        here.write_all_at(&[9; 20_000], 5_000_000).unwrap();
        copied(from, to, COMPARE, Wishes::default());
        let mut page = [7; 20_000];
        File::open(to.join("base/5/20000")).unwrap().read_exact_at(&mut page, 5_000_000).unwrap();
        assert_eq!(page, [0; 20_000]);
    }

    #[test]
    fn every_compression_and_a_rate() {
        let data = cluster();
        for compression in ["none", "lz4", "zstd:3"] {
            let target = tempfile::tempdir().unwrap();
            let wishes =
                Wishes { compression: compression.parse().unwrap(), max_rate: 0, ..Default::default() };
            let done = copied(data.path(), target.path(), Manner::default(), wishes);
            same(data.path(), target.path(), "base/5/16384");
            assert_eq!(done.wire_bytes > done.bytes, compression == "none", "{compression}: {done:?}");
        }
        let target = tempfile::tempdir().unwrap();
        let begin = std::time::Instant::now();
        let wishes = Wishes { compression: Compression::Auto, max_rate: 10_000_000, ..Default::default() };
        copied(data.path(), target.path(), Manner::default(), wishes);
        // 40 MB at 10 MB a second for each of two streams, whose first block is free.
        assert!(begin.elapsed() > Duration::from_millis(1_500), "{:?}", begin.elapsed());
        same(data.path(), target.path(), "base/5/16384");
    }

    #[test]
    fn a_damaged_page_is_named_and_one_of_after_the_start_is_not() {
        let (data, target) = (cluster(), tempfile::tempdir().unwrap());
        let mut page = vec![0u8; PAGE];
        // pd_lsn 0/1000, pd_upper not 0: no new page, and its checksum is wrong.
        page[4..8].copy_from_slice(&0x1000u32.to_le_bytes());
        page[15] = 0x20;
        let sound = page::checksum(&page, 1).to_le_bytes();
        let mut file = page.clone();
        file.extend(&page);
        file[PAGE + 8..PAGE + 10].copy_from_slice(&sound);
        fs::write(data.path().join("base/5/30000"), file).unwrap();
        let verify = |since| Manner { verify_since: Some(Lsn(since)), ..Manner::default() };
        let done = copied(data.path(), target.path(), verify(0x2000), Wishes::default());
        assert!(done.damaged_pages.contains(&"base/5/30000: 0".to_owned()), "{done:?}");
        assert!(!done.damaged_pages.contains(&"base/5/30000: 1".to_owned()), "{done:?}");
        same(data.path(), target.path(), "base/5/30000");
        let done = copied(data.path(), target.path(), verify(0x1000), Wishes::default());
        assert!(!done.damaged_pages.iter().any(|page| page.contains("30000")), "{done:?}");
    }

    #[test]
    fn nothing_is_written_through_a_link_that_is_here_already() {
        use std::os::unix::fs::symlink;
        let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = target.path().join("data");
        fs::create_dir(&data).unwrap();
        symlink(outside.path(), data.join("out")).unwrap();
        assert!(make_directory(&data.join("out"), 0o700).is_err());
        let roots = Roots(BTreeMap::from([(0, data.clone()), (7, data.join("out"))]));
        assert!(roots.check_inside().is_err());
        let entry = |path: &str| Entry {
            kind: EntryKind::File,
            root: 0,
            mode: 0o600,
            size: 4,
            room: 4,
            path: path.into(),
        };
        for path in ["out/x", "out/deeper/x"] {
            let mut work = Work::default();
            work.add(entry(path));
            let mut stream = hostile(Vec::new());
            let progress = Progress::new(Voice::Quiet);
            let outcome = copy(&mut [&mut stream], &work, &roots, Manner::default(), None, &progress);
            assert!(matches!(outcome, Err(Error::File { .. })), "{path}: {outcome:?}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
