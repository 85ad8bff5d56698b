//! Owns how both ends look at a file: in blocks of 8 kB, holes and zeroes told from data, and the hash by which a block
//! there and one here are taken for the same.
//!
//! The hash is XXH3 with 64 bits and a seed that the target draws for each run. Only the same block of the same file is
//! ever compared, so there is no birthday: a block that differs passes for the same once in 2^64. Were each of the
//! 1.3 billion blocks of a 10 TB database another one, all of them would be told apart in all but one of 10^10 runs; a
//! disk returns a wrong sector unnoticed far more often. XXH3 is no cryptographic hash: who knows the seed can make two
//! blocks that agree. Nobody does before the run, and after it the blocks are compared no more.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Result};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use twox_hash::XxHash3_64;

/// Bytes that one hash stands for: PostgreSQL's page, and whatever size that has in a cluster a good one to compare by.
/// 64 kB would be hashed no faster and send eight times as much (DESIGN.md, "What was measured about the transfer").
pub const HASHED: usize = 8192;

/// The hash of a block; the last one of a file may be short.
pub fn hash(seed: u64, block: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, block)
}

/// True when there is nothing but zeroes in it.
pub fn is_zero(block: &[u8]) -> bool {
    // By the cache line: what is no zero page shows it in its first bytes.
    let mut lines = block.chunks_exact(64);
    lines.all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
        && lines.remainder().iter().all(|byte| *byte == 0)
}

/// A file that is read in blocks.
pub struct Reader {
    file: File,
    has_holes: bool,
}

/// What stands in a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes were read.
    Read(usize),
    /// So many bytes are a hole: zeroes that cost nothing.
    Hole(u64),
    /// The file ends here.
    End,
}

impl Reader {
    /// Of a plain file.
    pub fn new(file: File) -> Result<Reader> {
        let metadata = file.metadata()?;
        Ok(Reader { has_holes: metadata.blocks() * 512 < metadata.len(), file })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What comes at `range.start`, not beyond `range.end`: as much as fits into `buffer`, or a hole of any length.
    pub fn next(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<Piece> {
        if self.has_holes
            && let Some(data) = self.next_data(range.start, range.end)?
            && data > range.start
        {
            return Ok(Piece::Hole(data - range.start));
        }
        let want = (range.end - range.start).min(buffer.len() as u64) as usize;
        let mut have = 0;
        while have < want {
            match self.file.read_at(&mut buffer[have..want], range.start + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(if have == 0 { Piece::End } else { Piece::Read(have) })
    }

    /// Where the next data begins, cut down to whole blocks and to `end`; `None` where the file ends before `at`.
    fn next_data(&self, at: u64, end: u64) -> Result<Option<u64>> {
        use nix::errno::Errno;
        use nix::unistd::{Whence, lseek64};
        match lseek64(self.file.as_fd(), at as i64, Whence::SeekData) {
            Ok(data) => {
                let whole = at + (data as u64 - at) / HASHED as u64 * HASHED as u64;
                Ok(Some(whole.min(end)))
            }
            // Nothing but a hole up to the end of the file, or `at` is past it.
            Err(Errno::ENXIO) => {
                let size = self.file.metadata()?.len();
                Ok((size > at).then_some(size.min(end)))
            }
            // A file system that does not know holes has none.
            Err(_) => Ok(None),
        }
    }
}

/// Bytes that a copy of a file takes on the disk: all of it but its holes. What a file system has made smaller by
/// compressing it counts whole, for the other one may not.
pub fn room(path: &Path, metadata: &Metadata) -> u64 {
    let size = metadata.len();
    if metadata.blocks() * 512 >= size {
        return size;
    }
    // Without waiting, were it a pipe by now.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.and_then(|file| bytes_of_data(&file)).map_or(size, |data| data.min(size))
}

/// Bytes of the blocks that are not wholly in a hole.
fn bytes_of_data(file: &File) -> Result<u64> {
    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek64};
    let next = |at: u64, whence| -> Result<Option<u64>> {
        match lseek64(file.as_fd(), at as i64, whence) {
            Ok(found) => Ok(Some(found as u64)),
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    let (mut sum, mut at) = (0, 0);
    while let Some(data) = next(at, Whence::SeekData)? {
        // A file ends in a hole; where there is none it has just been cut off.
        let Some(hole) = next(data, Whence::SeekHole)? else { break };
        at = hole.next_multiple_of(HASHED as u64);
        sum += at - data / HASHED as u64 * HASHED as u64;
    }
    Ok(sum)
}

/// The hashes of a part of a file, one for each block of it that is there, as they go over the wire.
pub fn hashes(reader: &Reader, range: Range<u64>, seed: u64, buffer: &mut [u8]) -> Result<Vec<u8>> {
    let blocks = (range.end - range.start).div_ceil(HASHED as u64) as usize;
    let mut out = Vec::with_capacity(blocks * 8);
    let mut at = range.start;
    while at < range.end {
        match reader.next(at..range.end, buffer)? {
            Piece::End => break,
            Piece::Hole(length) => {
                zeroes(length, |block| {
                    out.extend(hash(seed, block).to_le_bytes());
                    Ok(())
                })?;
                at += length;
            }
            Piece::Read(have) => {
                for block in buffer[..have].chunks(HASHED) {
                    out.extend(hash(seed, block).to_le_bytes());
                }
                at += have as u64;
            }
        }
    }
    Ok(out)
}

/// Gives the blocks of a hole to `each`.
pub fn zeroes(length: u64, mut each: impl FnMut(&'static [u8]) -> Result<()>) -> Result<()> {
    static ZEROES: [u8; HASHED] = [0; HASHED];
    let mut left = length;
    while left > 0 {
        let n = left.min(HASHED as u64);
        each(&ZEROES[..n as usize])?;
        left -= n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn one_bit_makes_another_hash_and_so_does_the_seed() {
        let mut block = vec![7; HASHED];
        let before = hash(1, &block);
        assert_ne!(before, hash(2, &block));
        assert_ne!(before, hash(1, &block[..HASHED - 1]));
        for at in [0, 1, 4095, HASHED - 1] {
            block[at] ^= 1;
            assert_ne!(before, hash(1, &block), "{at}");
            block[at] ^= 1;
        }
    }

    #[test]
    fn zeroes_are_told_from_what_only_begins_like_them() {
        assert!(is_zero(&[0; HASHED]) && is_zero(&[0; 100]) && is_zero(&[]));
        for at in [0, 63, 64, 8191] {
            let mut block = [0; HASHED];
            block[at] = 1;
            assert!(!is_zero(&block), "{at}");
        }
        assert!(!is_zero(&[0, 0, 1]));
    }

    #[test]
    fn a_hole_has_the_hashes_of_zeroes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        let mut file = File::create(&path).unwrap();
        file.write_all(&[1; 3 * HASHED]).unwrap();
        file.set_len(40 * HASHED as u64 + 100).unwrap();
        file.write_all_at(&[2; HASHED], 30 * HASHED as u64).unwrap();
        let reader = Reader::new(File::open(&path).unwrap()).unwrap();
        let mut buffer = vec![0; 4 * HASHED];
        let found = hashes(&reader, 0..1 << 30, 9, &mut buffer).unwrap();
        let content = std::fs::read(&path).unwrap();
        let expected: Vec<u8> = content.chunks(HASHED).flat_map(|b| hash(9, b).to_le_bytes()).collect();
        assert_eq!(found.len(), 41 * 8);
        assert!(found == expected);
        let room = |path: &Path| super::room(path, &std::fs::metadata(path).unwrap());
        assert_eq!(room(&path), 4 * HASHED as u64);
        let past = hashes(&reader, 1 << 30..1 << 31, 9, &mut buffer).unwrap();
        assert!(past.is_empty());
    }
}
