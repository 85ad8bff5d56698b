//! Owns how the bytes of a stream get into a file: past the page cache where there is much of them.
//!
//! What goes through the page cache is copied once more, needs memory that the servers on this machine have a better use
//! for, and reaches the disk only when the kernel finds the time. Written past it (`O_DIRECT`), a megabyte at a time, it
//! is on its way to the disk at once and the sync at the end finds little left. Such writes want whole sectors; the rest,
//! and file systems that have no such writes, go through the page cache.

use crate::durable::{self, Context};
use crate::error::Result;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// So much is collected before it is written.
const HEAP: usize = 1 << 20;

/// So many heaps has a stream: one is filled while the others are on their way.
const HEAPS: usize = 3;

/// Less is not worth another thread's attention, nor the disk's at once: of such there may be many.
const LITTLE: usize = HEAP / 4;

/// Offsets, lengths and addresses of direct writes are multiples of this: no disk in use has larger sectors.
const SECTOR: usize = 4096;

/// A file that is being written to.
pub struct Target {
    path: PathBuf,
    file: File,
    direct: Option<File>,
    /// The file system has turned out to have no direct writes.
    refused: AtomicBool,
}

impl Target {
    /// `file` was opened for writing as `path`. Much is about to be written, if `large`.
    pub fn new(file: File, path: &Path, large: bool) -> Target {
        let open = || {
            let flags = nix::libc::O_NOFOLLOW | nix::libc::O_DIRECT;
            OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
        };
        let direct = if large { open() } else { None };
        Target { path: path.to_owned(), file, direct, refused: AtomicBool::new(false) }
    }

    /// The file, through the page cache.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.try_write(bytes, offset).on("write", &self.path)
    }

    fn try_write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let whole = bytes.len() - bytes.len() % SECTOR;
        let mut done = 0;
        if whole > 0
            && offset.is_multiple_of(SECTOR as u64)
            && let Some(direct) = &self.direct
            && !self.refused.load(Ordering::Relaxed)
        {
            match direct.write_at(&bytes[..whole], offset) {
                // What is left of a write that ended early may begin anywhere.
                Ok(written) => done = written,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::InvalidInput => self.refused.store(true, Ordering::Relaxed),
                Err(e) => return Err(e),
            }
        }
        let (rest, offset) = (&bytes[done..], offset + done as u64);
        self.file.write_all_at(rest, offset)?;
        if rest.len() >= LITTLE {
            durable::begin_writing(&self.file, offset..offset + rest.len() as u64);
        }
        Ok(())
    }
}

/// [`HEAP`] bytes from `begin` on lie at an address that a direct write accepts.
struct Room {
    bytes: Vec<u8>,
    begin: usize,
}

impl Room {
    fn new() -> Room {
        let bytes = vec![0; HEAP + SECTOR];
        let begin = bytes.as_ptr().align_offset(SECTOR);
        Room { bytes, begin }
    }

    fn filled(&self, length: usize) -> &[u8] {
        &self.bytes[self.begin..self.begin + length]
    }
}

/// What the writing thread is asked for.
struct Job {
    to: Arc<Target>,
    room: Room,
    offset: u64,
    length: usize,
}

/// Collects bytes of one file that follow each other, and has them written by a thread of its own. One per stream.
pub struct Heap {
    jobs: Sender<Job>,
    written: Receiver<Result<Room>>,
    /// Those that are neither being filled nor on their way.
    free: Vec<Room>,
    on_their_way: usize,
    filling: Option<Room>,
    offset: u64,
    length: usize,
}

impl Heap {
    /// With its thread in `scope`, which ends when the heap is dropped.
    pub fn new<'scope>(scope: &'scope Scope<'scope, '_>) -> Heap {
        let (jobs, queue) = channel::<Job>();
        let (done, written) = channel();
        scope.spawn(move || {
            for Job { to, room, offset, length } in queue {
                let outcome = to.write(room.filled(length), offset);
                if done.send(outcome.map(|()| room)).is_err() {
                    break;
                }
            }
        });
        let free = (0..HEAPS).map(|_| Room::new()).collect();
        Heap { jobs, written, free, on_their_way: 0, filling: None, offset: 0, length: 0 }
    }

    /// Takes bytes, at most [`HEAP`], for an offset of `to`, and has written what has become enough. An error may be that
    /// of an earlier write.
    pub fn add(&mut self, to: &Arc<Target>, bytes: &[u8], offset: u64) -> Result<()> {
        if self.offset + self.length as u64 != offset || self.length + bytes.len() > HEAP {
            self.flush(to)?;
            self.offset = offset;
        }
        if self.filling.is_none() {
            self.filling = match self.free.pop() {
                Some(room) => Some(room),
                None => Some(self.next_written()?),
            };
        }
        let room = self.filling.as_mut().expect("taken above");
        let at = room.begin + self.length;
        room.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    /// Has everything written that was collected for `to`; it may be on its way still. Must be called before another
    /// file's bytes come.
    pub fn flush(&mut self, to: &Arc<Target>) -> Result<()> {
        let (offset, length) = (self.offset, std::mem::take(&mut self.length));
        self.offset += length as u64;
        if length < LITTLE {
            return match &self.filling {
                Some(room) if length > 0 => to.write(room.filled(length), offset),
                _ => Ok(()),
            };
        }
        let room = self.filling.take().expect("something was collected");
        self.on_their_way += 1;
        // Its thread ends only with us.
        let _ = self.jobs.send(Job { to: to.clone(), room, offset, length });
        Ok(())
    }

    /// Waits until all is written.
    pub fn finish(mut self) -> Result<()> {
        while self.on_their_way > 0 {
            let room = self.next_written()?;
            self.free.push(room);
        }
        Ok(())
    }

    fn next_written(&mut self) -> Result<Room> {
        self.on_their_way -= 1;
        self.written.recv().expect("its thread ends only with us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_stands_in_the_file_wherever_it_began_and_ended() {
        // In memory there may be no direct writes; both ways have to bring the same.
        for directory in ["/var/tmp", "/dev/shm"] {
            let file = tempfile::NamedTempFile::new_in(directory).unwrap();
            let mut want = vec![0u8; 9 << 20];
            let target = Arc::new(Target::new(file.reopen().unwrap(), file.path(), true));
            std::thread::scope(|scope| {
                let mut heap = Heap::new(scope);
                let mut give = |offset: usize, length: usize, with: u8| {
                    want[offset..offset + length].fill(with);
                    heap.add(&target, &vec![with; length], offset as u64).unwrap();
                };
                give(0, 8192, 1);
                give(8192, 128 << 10, 2);
                give(136 << 10, 100, 3);
                give((136 << 10) + 100, 131_000, 4);
                for n in 0..40 {
                    give((1 << 20) + n * (128 << 10), 128 << 10, 5 + n as u8);
                }
                give(7_000_000, 500_000, 60);
                give(7_500_001, 1, 61);
                heap.flush(&target).unwrap();
                heap.finish().unwrap();
            });
            want.truncate(7_500_002);
            assert!(std::fs::read(file.path()).unwrap() == want, "{directory}");
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_whoever_writes() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let target = Arc::new(Target::new(full, Path::new("/dev/full"), false));
        for length in [10, HEAP] {
            let error = std::thread::scope(|scope| {
                let mut heap = Heap::new(scope);
                heap.add(&target, &vec![1; length], 0).unwrap();
                heap.flush(&target).and_then(|()| heap.finish()).unwrap_err()
            });
            assert!(error.to_string().contains("/dev/full"), "{error}");
        }
    }
}
