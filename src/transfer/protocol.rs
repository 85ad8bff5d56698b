//! Owns the frames: a kind, a bounded length, a payload. Both ends are the same build (the agent is
//! uploaded when it differs), so there is one version and it is checked.

use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Read, Result, Write};

/// The source's first line. Whatever a login profile prints comes before it and is passed over.
pub const GREETING: &[u8] = b"\npgmahout source 1\n";
/// A profile that prints more than this is not passed over.
pub const NOISE_LIMIT: usize = 64 * 1024;
/// Bytes of file content in one data frame.
pub const BLOCK: usize = 128 * 1024;
/// No payload is longer: a block and its header, with room for lz4's worst case.
pub const PAYLOAD_LIMIT: usize = BLOCK + BLOCK / 128 + 4096;
/// No path is longer (PATH_MAX).
pub const PATH_LIMIT: usize = 4096;

/// Frame kinds. Upper case asks, lower case answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// JSON [`Open`]; answered by [`Kind::Facts`].
    Open = b'O',
    /// JSON [`List`]; answered by entries and an end.
    List = b'L',
    /// A [`Read`](ReadRange); answered by data frames and a done.
    Read = b'R',
    /// JSON [`FactsAnswer`].
    Facts = b'f',
    /// One [`Entry`].
    Entry = b'e',
    /// The manifest is complete.
    End = b'z',
    /// A block of a file.
    Data = b'd',
    /// The range is over: a [`Done`].
    Done = b'x',
    /// A sign of life while a long answer is prepared.
    Alive = b'a',
    /// UTF-8 text: the request failed, and so has the session.
    Failed = b'!',
}

impl Kind {
    fn of(byte: u8) -> Result<Kind> {
        use Kind::*;
        [Open, List, Read, Facts, Entry, End, Data, Done, Alive, Failed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| bad(format!("a frame of unknown kind {byte:#04x}")))
    }
}

/// An error for what the other side must not send.
pub fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the other side sent {what}"))
}

/// Opens a source.
#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    /// PGDATA there.
    pub data_directory: String,
}

/// What the source says of itself: enough to see that SSH and SQL lead to the same server.
#[derive(Debug, Serialize, Deserialize)]
pub struct FactsAnswer {
    /// The first bytes of `global/pg_control`, base64.
    pub control: String,
    /// Content of `PG_VERSION`.
    pub pg_version: String,
    /// Identifies the running system: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Device of PGDATA there.
    pub device: u64,
    /// Inode of PGDATA there.
    pub inode: u64,
}

/// Asks for a manifest.
#[derive(Debug, Serialize, Deserialize)]
pub struct List {
    /// `server_version_num` of the source.
    pub version: u32,
    /// Instead of a base backup's files: the WAL segments (and history files) whose name is not below
    /// this one. For servers without replication slots.
    pub wal_from: Option<String>,
    /// Copy `backup_label` too (exclusive backups, before 9.6).
    pub with_backup_label: bool,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A plain file of `size` bytes.
    File,
    /// A tablespace: `root` is its OID, `path` where it is on the source; `size` 1 when it lies inside
    /// PGDATA, and then `path` is relative to PGDATA.
    Tablespace,
}

/// One line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// 0 for PGDATA, else a tablespace's OID; `path` is relative to it.
    pub root: u32,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Path, UTF-8 (PostgreSQL makes no others).
    pub path: String,
}

/// Asks for a part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// As in [`Entry`].
    pub root: u32,
    /// As in [`Entry`].
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// Bytes wanted.
    pub length: u64,
}

/// How a range ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything asked for was sent.
    Whole,
    /// The file is shorter than that now.
    Short,
    /// The file is gone.
    Gone,
}

/// A block of a file, decompressed.
pub struct Block<'a> {
    /// Where it goes.
    pub offset: u64,
    /// Its bytes, at most [`BLOCK`].
    pub bytes: &'a [u8],
}

/// Writes a frame.
pub fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<()> {
    debug_assert!(payload.len() <= PAYLOAD_LIMIT);
    let mut header = [kind as u8, 0, 0, 0, 0];
    header[1..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    to.write_all(&header)?;
    to.write_all(payload)
}

/// Reads a frame into `payload`; `None` at the end of the stream between two frames.
pub fn read_frame(from: &mut impl Read, payload: &mut Vec<u8>) -> Result<Option<Kind>> {
    let mut header = [0u8; 5];
    let mut have = 0;
    while have < header.len() {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let kind = Kind::of(header[0])?;
    let length = u32::from_le_bytes(header[1..].try_into().expect("four bytes")) as usize;
    if length > PAYLOAD_LIMIT {
        return Err(bad(format!("a frame of {length} bytes")));
    }
    payload.resize(length, 0);
    from.read_exact(payload)?;
    Ok(Some(kind))
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| bad("a frame that is too short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn rest_as_path(self) -> Result<String> {
        if self.0.len() > PATH_LIMIT || self.0.contains(&0) {
            return Err(bad("a path that no file can have"));
        }
        String::from_utf8(self.0.to_vec()).map_err(|_| bad("a path that is not UTF-8"))
    }
}

impl Entry {
    /// Its payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17 + self.path.len());
        out.push(match self.kind {
            EntryKind::Directory => 0,
            EntryKind::File => 1,
            EntryKind::Tablespace => 2,
        });
        out.extend(self.root.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(self.path.as_bytes());
        out
    }

    /// From a payload. The path is not judged here: the writer does that, where it is used.
    pub fn decode(payload: &[u8]) -> Result<Entry> {
        let mut fields = Fields(payload);
        let kind = match fields.take(1)?[0] {
            0 => EntryKind::Directory,
            1 => EntryKind::File,
            2 => EntryKind::Tablespace,
            _ => return Err(bad("an entry of unknown kind")),
        };
        let (root, mode, size) = (fields.u32()?, fields.u32()? & 0o777, fields.u64()?);
        Ok(Entry { kind, root, mode, size, path: fields.rest_as_path()? })
    }
}

impl ReadRange {
    /// Its payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.path.len());
        out.extend(self.root.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.path.as_bytes());
        out
    }

    /// From a payload.
    pub fn decode(payload: &[u8]) -> Result<ReadRange> {
        let mut fields = Fields(payload);
        let (root, offset, length) = (fields.u32()?, fields.u64()?, fields.u64()?);
        Ok(ReadRange { root, offset, length, path: fields.rest_as_path()? })
    }
}

impl Done {
    /// Its payload.
    pub fn encode(self) -> [u8; 1] {
        [match self {
            Done::Whole => 0,
            Done::Short => 1,
            Done::Gone => 2,
        }]
    }

    /// From a payload.
    pub fn decode(payload: &[u8]) -> Result<Done> {
        match payload {
            [0] => Ok(Done::Whole),
            [1] => Ok(Done::Short),
            [2] => Ok(Done::Gone),
            _ => Err(bad("an unknown end of a range")),
        }
    }
}

/// Writes `bytes` (at most [`BLOCK`]) as a data frame, compressed by lz4 where that saves an eighth.
/// Compressing before the cipher is what makes the copy fast (DESIGN.md, "What was measured").
pub fn write_block(to: &mut impl Write, offset: u64, bytes: &[u8], scratch: &mut Vec<u8>) -> Result<()> {
    debug_assert!(bytes.len() <= BLOCK);
    const HEADER: usize = 13;
    scratch.resize(HEADER + lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
    let packed = lz4_flex::block::compress_into(bytes, &mut scratch[HEADER..]).unwrap_or(usize::MAX);
    let compressed = packed < bytes.len() - bytes.len() / 8;
    if compressed {
        scratch.truncate(HEADER + packed);
    } else {
        scratch.truncate(HEADER);
        scratch.extend_from_slice(bytes);
    }
    scratch[0] = compressed.into();
    scratch[1..9].copy_from_slice(&offset.to_le_bytes());
    scratch[9..13].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    write_frame(to, Kind::Data, scratch)
}

/// Reads the payload of a data frame; `scratch` holds the bytes when they were compressed.
pub fn read_block<'a>(payload: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Block<'a>> {
    let mut fields = Fields(payload);
    let compressed = match fields.take(1)?[0] {
        0 => false,
        1 => true,
        _ => return Err(bad("a block of unknown coding")),
    };
    let (offset, length) = (fields.u64()?, fields.u32()? as usize);
    if length > BLOCK {
        return Err(bad(format!("a block of {length} bytes")));
    }
    let bytes: &[u8] = if compressed {
        scratch.resize(length, 0);
        let written = lz4_flex::block::decompress_into(fields.0, scratch).map_err(bad)?;
        if written != length {
            return Err(bad("a block of another length than it says"));
        }
        scratch
    } else if fields.0.len() == length {
        fields.0
    } else {
        return Err(bad("a block of another length than it says"));
    };
    Ok(Block { offset, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::List, b"abc").unwrap();
        write_frame(&mut wire, Kind::End, b"").unwrap();
        let (mut from, mut payload) = (wire.as_slice(), Vec::new());
        assert_eq!(read_frame(&mut from, &mut payload).unwrap(), Some(Kind::List));
        assert_eq!(payload, b"abc");
        assert_eq!(read_frame(&mut from, &mut payload).unwrap(), Some(Kind::End));
        assert_eq!(read_frame(&mut from, &mut payload).unwrap(), None);
    }

    #[test]
    fn a_length_is_bounded_before_it_is_believed() {
        let mut payload = Vec::new();
        let error = read_frame(&mut [b'd', 255, 255, 255, 255].as_slice(), &mut payload).unwrap_err();
        assert_eq!(error.to_string(), "the other side sent a frame of 4294967295 bytes");
        assert!(payload.capacity() < PAYLOAD_LIMIT);
        let error = read_frame(&mut [b'?', 0, 0, 0, 0].as_slice(), &mut payload).unwrap_err();
        assert!(error.to_string().contains("unknown kind 0x3f"));
    }

    #[test]
    fn half_a_frame_is_an_error_and_not_an_end() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Done, &[0]).unwrap();
        for cut in 1..wire.len() {
            assert!(read_frame(&mut &wire[..cut], &mut Vec::new()).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn blocks_come_back_compressed_or_not() {
        let noise: Vec<u8> =
            (0..BLOCK as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u8).collect();
        for bytes in [vec![7u8; BLOCK], noise, vec![], vec![1]] {
            let (mut wire, mut scratch) = (Vec::new(), Vec::new());
            write_block(&mut wire, 1 << 40, &bytes, &mut scratch).unwrap();
            let mut payload = Vec::new();
            assert_eq!(read_frame(&mut wire.as_slice(), &mut payload).unwrap(), Some(Kind::Data));
            let mut scratch = Vec::new();
            let block = read_block(&payload, &mut scratch).unwrap();
            assert_eq!((block.offset, block.bytes), (1 << 40, bytes.as_slice()));
        }
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        let mut scratch = Vec::new();
        let mut wire = vec![0];
        wire.extend(0u64.to_le_bytes());
        wire.extend(5u32.to_le_bytes());
        wire.extend(b"four");
        assert!(read_block(&wire, &mut scratch).is_err());
        wire[0] = 1;
        assert!(read_block(&wire, &mut scratch).is_err());
        wire[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read_block(&wire, &mut scratch).is_err());
        assert!(scratch.capacity() <= BLOCK);
    }

    #[test]
    fn entries_and_ranges_come_back() {
        let entry = Entry {
            kind: EntryKind::File,
            root: 16385,
            mode: 0o600,
            size: 1 << 33,
            path: "PG_15/5/x".into(),
        };
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let range = ReadRange { root: 0, path: "base/1/2".into(), offset: 8192, length: 9 };
        assert_eq!(ReadRange::decode(&range.encode()).unwrap(), range);
        assert!(Entry::decode(b"").is_err());
        assert!(ReadRange::decode(&[0; 19]).is_err());
    }
}
