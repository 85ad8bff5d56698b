//! Owns compression by several threads: how a method is written, a pool that compresses blocks and gives them back
//! in order, and a writer of one compressed stream on top of it. Memory is bounded by a few blocks per thread.

use crate::error::{Error, Result};
use flate2::{Compress, FlushCompress, Status};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A method and its level, written `none`, `gzip:3`, `zstd:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// Deflate, 1 to 9.
    Gzip(u32),
    /// Zstandard, 1 to 19.
    Zstd(i32),
}

impl Compression {
    /// gzip where no level is said.
    pub const GZIP: Compression = Compression::Gzip(3);
    /// zstd where no level is said.
    pub const ZSTD: Compression = Compression::Zstd(3);

    /// Reads `none`, `gzip[:LEVEL]`, `zstd[:LEVEL]`; none for `auto`.
    ///
    /// # Errors
    /// [`Error::CompressionText`] for anything else.
    pub fn parse(text: &str) -> Result<Option<Compression>> {
        let bad = || Error::CompressionText { text: text.chars().take(80).collect() };
        let (method, level) = match text.split_once(':') {
            Some((method, level)) => (method, Some(level)),
            None => (text, None),
        };
        // One spelling: no sign, no leading zero.
        let plain = |level: &&str| level.bytes().all(|b| b.is_ascii_digit()) && !level.starts_with('0');
        let level = match level {
            Some(level) => {
                Some(Some(level).filter(plain).and_then(|l| l.parse::<u8>().ok()).ok_or_else(bad)?)
            }
            None => None,
        };
        match (method, level) {
            ("auto", None) => Ok(None),
            ("none", None) => Ok(Some(Compression::None)),
            ("gzip", None) => Ok(Some(Compression::GZIP)),
            ("zstd", None) => Ok(Some(Compression::ZSTD)),
            ("gzip", Some(level @ 1..=9)) => Ok(Some(Compression::Gzip(level.into()))),
            ("zstd", Some(level @ 1..=19)) => Ok(Some(Compression::Zstd(level.into()))),
            _ => Err(bad()),
        }
    }

    /// Threads that fit into the memory that a backup may take (100 MB in all): each has some blocks and its own
    /// tables, which zstd's higher levels make large. One server process feeds them all, so more are of little use.
    fn threads_limit(self) -> usize {
        match self {
            Compression::None | Compression::Gzip(_) => 16,
            Compression::Zstd(..=9) => 8,
            Compression::Zstd(_) => 2,
        }
    }

    /// Bytes of input that are compressed by themselves. Smaller ones cost size, larger ones memory.
    pub fn block_size(self) -> usize {
        match self {
            Compression::None | Compression::Gzip(_) => 512 << 10,
            Compression::Zstd(_) => 1 << 20,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Gzip(level) => write!(f, "gzip:{level}"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// What becomes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It can be read by itself: a gzip member or a zstd frame.
    Whole,
    /// For gzip: raw deflate that ends at a byte's boundary and is not the end, to be put into a zlib stream.
    /// For zstd the same as [`Form::Whole`].
    Piece,
}

/// A block after its compression.
#[derive(Debug)]
pub struct Block {
    /// Compressed, or as it was where nothing is compressed.
    pub bytes: Vec<u8>,
    /// Adler-32 of the input; only of a [`Form::Piece`] of gzip, otherwise 1.
    pub adler: u32,
    /// Bytes of input.
    pub input: usize,
}

struct Done {
    block: Block,
    spare: Vec<u8>,
}

struct Job {
    input: Vec<u8>,
    to: SyncSender<io::Result<Done>>,
}

enum Pending {
    Here(Vec<u8>),
    At(Receiver<io::Result<Done>>),
}

/// Threads that compress blocks. What is pushed comes back by [`Pool::pop`] in the same order, with its tag.
pub struct Pool<T> {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pending: VecDeque<(T, Pending)>,
    compressing: usize,
    limit: usize,
    spare: Vec<Vec<u8>>,
    block_size: usize,
}

impl<T> Pool<T> {
    /// Starts `threads` of them; none are needed where nothing is compressed.
    pub fn new(compression: Compression, form: Form, threads: usize) -> Pool<T> {
        let threads = threads.clamp(1, compression.threads_limit());
        let threads = if compression == Compression::None { 0 } else { threads };
        let limit = 2 * threads + 1;
        let (jobs, queue) = sync_channel::<Job>(limit);
        let queue = Arc::new(Mutex::new(queue));
        let work = || {
            let queue = queue.clone();
            thread::spawn(move || work(&queue, compression, form))
        };
        Pool {
            threads: (0..threads).map(|_| work()).collect(),
            jobs: (threads > 0).then_some(jobs),
            pending: VecDeque::new(),
            compressing: 0,
            limit,
            spare: Vec::new(),
            block_size: compression.block_size(),
        }
    }

    /// An empty buffer for the next block, of those that are done with.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.block_size))
    }

    /// Hands over a block to be compressed. Call [`Pool::pop`] first while [`Pool::is_full`].
    pub fn push(&mut self, tag: T, input: Vec<u8>) {
        let Some(jobs) = &self.jobs else { return self.pass(tag, input) };
        let (to, result) = sync_channel(1);
        // Fails when no thread lives: the pop says so.
        let _ = jobs.send(Job { input, to });
        self.pending.push_back((tag, Pending::At(result)));
        self.compressing += 1;
    }

    /// Hands over bytes that are to come back as they are, in their turn.
    pub fn pass(&mut self, tag: T, bytes: Vec<u8>) {
        self.pending.push_back((tag, Pending::Here(bytes)));
    }

    /// As many blocks are on their way as may be.
    pub fn is_full(&self) -> bool {
        self.compressing >= self.limit || self.pending.len() >= 16 * self.limit
    }

    /// Something has to be popped before more is handed over, or can be at no cost.
    pub fn has_ready(&self) -> bool {
        matches!(self.pending.front(), Some((_, Pending::Here(_)))) || self.is_full()
    }

    /// The oldest of those on their way, once it is done; none when there are none.
    pub fn pop(&mut self) -> io::Result<Option<(T, Block)>> {
        match self.pending.pop_front() {
            None => Ok(None),
            Some((tag, Pending::Here(bytes))) => {
                let input = bytes.len();
                Ok(Some((tag, Block { bytes, adler: 1, input })))
            }
            Some((tag, Pending::At(result))) => {
                self.compressing -= 1;
                let lost = |_| io::Error::other("a thread that compresses has ended");
                let done = result.recv().map_err(lost)??;
                self.give_back(done.spare);
                Ok(Some((tag, done.block)))
            }
        }
    }

    /// Keeps a buffer that is done with, if a block fits into it.
    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < self.limit && buffer.capacity() >= self.block_size {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.jobs = None;
        self.pending.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, compression: Compression, form: Form) {
    let mut compressor = Compressor::new(compression, form);
    loop {
        let job = queue.lock().expect("no panic while waiting").recv();
        let Ok(Job { input, to }) = job else { return };
        let done = match &mut compressor {
            Ok(compressor) => compressor.block(&input).map(|block| Done { block, spare: input }),
            Err(e) => Err(io::Error::other(e.to_string())),
        };
        // Nobody waits for it when the whole was given up.
        let _ = to.send(done);
    }
}

enum Compressor {
    Member(u32),
    Piece(Compress),
    Frame(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    fn new(compression: Compression, form: Form) -> io::Result<Compressor> {
        Ok(match (compression, form) {
            (Compression::None, _) => unreachable!("no threads where nothing is compressed"),
            (Compression::Gzip(level), Form::Whole) => Compressor::Member(level),
            (Compression::Gzip(level), Form::Piece) => {
                Compressor::Piece(Compress::new(flate2::Compression::new(level), false))
            }
            (Compression::Zstd(level), _) => Compressor::Frame(zstd::bulk::Compressor::new(level)?),
        })
    }

    fn block(&mut self, input: &[u8]) -> io::Result<Block> {
        let mut adler = 1;
        let bytes = match self {
            Compressor::Member(level) => {
                let to = Vec::with_capacity(input.len() / 2);
                let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::new(*level));
                encoder.write_all(input)?;
                encoder.finish()?
            }
            Compressor::Piece(deflate) => {
                adler = adler32(input);
                piece(deflate, input)?
            }
            Compressor::Frame(frame) => frame.compress(input)?,
        };
        Ok(Block { bytes, adler, input: input.len() })
    }
}

fn piece(deflate: &mut Compress, input: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    let mut bytes = Vec::with_capacity(input.len() / 2 + 64);
    loop {
        let at = deflate.total_in() as usize;
        let status = deflate.compress_vec(&input[at..], &mut bytes, FlushCompress::Sync);
        if status.map_err(io::Error::other)? == Status::StreamEnd {
            return Err(io::Error::other("deflate ended a stream that is to go on"));
        }
        // zlib's manual: the flush is complete when there is room left in the output.
        if deflate.total_in() as usize == input.len() && bytes.len() < bytes.capacity() {
            return Ok(bytes);
        }
        bytes.reserve(input.len() / 4 + 64);
    }
}

/// What a zlib stream of [`Form::Piece`]s begins with (RFC 1950: deflate, window of 32 kB).
pub const ZLIB_HEAD: [u8; 2] = [0x78, 0x9c];

/// What it ends with: an empty last block, and the checksum of all input.
pub fn zlib_tail(adler: u32) -> [u8; 6] {
    let [a, b, c, d] = adler.to_be_bytes();
    [3, 0, a, b, c, d]
}

const MODULUS: u32 = 65_521;

/// RFC 1950's checksum. In groups of 32 with their weights, so that the compiler makes vectors of it.
fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // 5552 is the most bytes after which `b` still fits (zlib's NMAX); 5536 is a multiple of 32.
    for run in bytes.chunks(5536) {
        let groups = run.chunks_exact(32);
        let rest = groups.remainder();
        for group in groups {
            let (mut sum, mut weighted) = (0u32, 0u32);
            for (at, byte) in group.iter().enumerate() {
                sum += u32::from(*byte);
                weighted += (32 - at as u32) * u32::from(*byte);
            }
            b += 32 * a + weighted;
            a += sum;
        }
        for byte in rest {
            a += u32::from(*byte);
            b += a;
        }
        a %= MODULUS;
        b %= MODULUS;
    }
    (b << 16) | a
}

/// The checksum of two inputs one after the other, from the checksums of both and the second one's length.
pub fn adler32_combine(first: u32, second: u32, second_length: usize) -> u32 {
    let (a1, b1) = (u64::from(first & 0xffff), u64::from(first >> 16));
    let (a2, b2) = (u64::from(second & 0xffff), u64::from(second >> 16));
    let modulus = u64::from(MODULUS);
    let length = second_length as u64 % modulus;
    let a = (a1 + a2 + modulus - 1) % modulus;
    let b = (b1 + b2 + length * (a1 + modulus - 1)) % modulus;
    (b << 16 | a) as u32
}

/// One compressed stream: gzip members or zstd frames one after the other, which every gunzip and unzstd reads.
/// What is not [`Writer::finish`]ed is not whole.
pub struct Writer<W: Write> {
    to: W,
    pool: Pool<()>,
    block: Vec<u8>,
    input: u64,
    compressed: bool,
}

impl<W: Write> Writer<W> {
    /// Compresses with `threads` threads beside the caller's.
    pub fn new(to: W, compression: Compression, threads: usize) -> Writer<W> {
        let mut pool = Pool::new(compression, Form::Whole, threads);
        let block = pool.buffer();
        Writer { to, pool, block, input: 0, compressed: compression != Compression::None }
    }

    /// Bytes before compression.
    pub fn input(&self) -> u64 {
        self.input
    }

    fn write_one(&mut self) -> io::Result<bool> {
        let Some(((), block)) = self.pool.pop()? else { return Ok(false) };
        self.to.write_all(&block.bytes)?;
        Ok(true)
    }

    fn push(&mut self) -> io::Result<()> {
        while self.pool.is_full() {
            self.write_one()?;
        }
        let next = self.pool.buffer();
        let block = std::mem::replace(&mut self.block, next);
        self.pool.push((), block);
        Ok(())
    }

    /// The end of the stream; gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        // No bytes are a stream too: one empty member or frame.
        if self.compressed && (!self.block.is_empty() || self.input == 0) {
            self.push()?;
        }
        while self.write_one()? {}
        self.to.flush()?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.compressed {
            let written = self.to.write(bytes)?;
            self.input += written as u64;
            return Ok(written);
        }
        let room = self.pool.block_size - self.block.len();
        let taken = room.min(bytes.len());
        self.block.extend_from_slice(&bytes[..taken]);
        self.input += taken as u64;
        if self.block.len() == self.pool.block_size {
            self.push()?;
        }
        Ok(taken)
    }

    /// Flushes what is written so far; a block that is not full stays, or the stream would grow by each flush.
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Bytes of which a part repeats.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..length).map(|at| if at % 3 == 0 { next() as u8 } else { (at / 7) as u8 }).collect()
    }

    fn stream(input: &[u8], compression: Compression, threads: usize) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), compression, threads);
        for piece in input.chunks(77_777) {
            writer.write_all(piece).unwrap();
        }
        assert_eq!(writer.input(), input.len() as u64);
        writer.finish().unwrap()
    }

    #[test]
    fn methods_have_one_spelling() {
        for good in ["none", "gzip:1", "gzip:9", "zstd:1", "zstd:19"] {
            assert_eq!(Compression::parse(good).unwrap().unwrap().to_string(), good);
        }
        assert_eq!(Compression::parse("auto").unwrap(), None);
        assert_eq!(Compression::parse("gzip").unwrap(), Some(Compression::GZIP));
        assert_eq!(Compression::parse("zstd").unwrap(), Some(Compression::ZSTD));
        for bad in [
            "", "gz", "gzip:", "gzip:0", "gzip:10", "gzip:+3", "gzip:03", "zstd:20", "none:1", "auto:1",
            "GZIP",
        ] {
            assert!(Compression::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn streams_are_read_by_everyone() {
        for length in [0, 1, 511 << 10, 512 << 10, (3 << 20) + 17] {
            let input = sample(length);
            for threads in [1, 3] {
                let mut back = Vec::new();
                let gzip = stream(&input, Compression::Gzip(4), threads);
                flate2::read::MultiGzDecoder::new(&gzip[..]).read_to_end(&mut back).unwrap();
                assert!(back == input, "gzip of {length}");
                let zstd = stream(&input, Compression::Zstd(3), threads);
                assert!(zstd::decode_all(&zstd[..]).unwrap() == input, "zstd of {length}");
                assert!(length == 0 || gzip.len().max(zstd.len()) < length + 100);
            }
            assert_eq!(stream(&input, Compression::None, 2), input);
        }
    }

    #[test]
    fn pieces_are_one_zlib_stream() {
        for length in [0, 5, (2 << 20) + 12_345] {
            let input = sample(length);
            let mut pool = Pool::new(Compression::Gzip(1), Form::Piece, 2);
            let (mut zlib, mut adler) = (ZLIB_HEAD.to_vec(), 1);
            let mut take = |pool: &mut Pool<usize>| {
                let (tag, block) = pool.pop().unwrap()?;
                zlib.extend(&block.bytes);
                adler = adler32_combine(adler, block.adler, block.input);
                Some(tag)
            };
            let mut order = Vec::new();
            for (number, block) in input.chunks(300_000).enumerate() {
                while pool.is_full() {
                    order.extend(take(&mut pool));
                }
                pool.push(number, block.to_vec());
            }
            while let Some(tag) = take(&mut pool) {
                order.push(tag);
            }
            assert!(order.is_sorted() && order.len() == length.div_ceil(300_000));
            zlib.extend(zlib_tail(adler));
            let mut back = Vec::new();
            flate2::read::ZlibDecoder::new(&zlib[..]).read_to_end(&mut back).unwrap();
            assert!(back == input, "zlib of {length}");
        }
    }

    #[test]
    fn a_writer_that_is_given_up_ends_its_threads() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = Writer::new(Full, Compression::Zstd(1), 2);
        let error = writer.write_all(&sample(20 << 20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
