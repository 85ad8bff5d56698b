//! Owns the frames: a kind, a bounded length, a payload. Both ends are the same build (the agent is
//! uploaded when it differs), so there is one version and it is checked.

use crate::postgres::changes::{Change, Relation};
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::str::FromStr;

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
    /// A [`ReadRange`]; answered by data and zero frames and a done.
    Read = b'R',
    /// A [`Compare`]; answered as a read is, but only with the blocks that differ.
    Compare = b'C',
    /// JSON [`Stretch`]; answered by [`Kind::Changed`] frames and an [`Kind::End`], whose payload says why the changes
    /// cannot be known, and is empty when they are.
    Changes = b'W',
    /// JSON [`FactsAnswer`].
    Facts = b'f',
    /// Some changes, each of [`CHANGE_SIZE`] bytes.
    Changed = b'w',
    /// One [`Entry`].
    Entry = b'e',
    /// The manifest is complete.
    End = b'z',
    /// A block of a file (`coding.rs`).
    Data = b'd',
    /// A part of a file that holds nothing but zeroes: offset and length.
    Zero = b'0',
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
        [Open, List, Read, Compare, Changes, Facts, Changed, Entry, End, Data, Zero, Done, Alive, Failed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| bad(format!("a frame of unknown kind {byte:#04x}")))
    }
}

/// An error for what the other side must not send.
pub fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the other side sent {what}"))
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Found out while it runs.
    #[default]
    Auto,
    /// Nothing is compressed.
    None,
    /// lz4.
    Lz4,
    /// zstd at this level, 1 to 19.
    Zstd(i32),
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Compression::Auto),
            None if text == "none" => Ok(Compression::None),
            None if text == "lz4" => Ok(Compression::Lz4),
            None if text == "zstd" => Ok(Compression::Zstd(1)),
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ 1..=19) => Ok(Compression::Zstd(level)),
                _ => Err(format!("zstd has the levels 1 to 19, not {level:?}")),
            },
            _ => Err(format!("{text:?} is none of auto, none, lz4, zstd and zstd:LEVEL")),
        }
    }
}

/// Opens a source.
#[derive(Debug, Serialize, Deserialize)]
pub struct Open {
    /// PGDATA there.
    pub data_directory: String,
    /// How what is sent is compressed.
    pub compression: Compression,
    /// Bytes of files that this stream may send or compare in a second; 0 is as many as there are.
    pub max_rate: u64,
    /// Milliseconds that an answer takes, as far as that is known: a far line is a slow one.
    #[serde(default)]
    pub distance: u32,
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
    /// Bytes of them that take room on a disk ([`super::blocks::room`]).
    pub room: u64,
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

/// Asks for the blocks of a part of a file that are not as they are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The part.
    pub range: ReadRange,
    /// Of the hashes.
    pub seed: u64,
    /// Those of the blocks here ([`super::blocks::hash`]), in their order, 8 bytes each; fewer than the part has blocks
    /// where the file here is shorter.
    pub hashes: Vec<u8>,
}

/// How a range ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything asked for was looked at, and sent where it had to be.
    Whole,
    /// The file is shorter than that now: its size.
    Short(u64),
    /// The file is gone.
    Gone,
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

/// A payload that is taken apart from its front.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| bad("a frame that is too short"))?;
        self.0 = tail;
        Ok(head)
    }

    /// Little endian.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// Little endian.
    pub fn u64(&mut self) -> Result<u64> {
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
        let mut out = Vec::with_capacity(25 + self.path.len());
        out.push(match self.kind {
            EntryKind::Directory => 0,
            EntryKind::File => 1,
            EntryKind::Tablespace => 2,
        });
        out.extend(self.root.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(self.room.to_le_bytes());
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
        let room = fields.u64()?.min(size);
        Ok(Entry { kind, root, mode, size, room, path: fields.rest_as_path()? })
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

impl Compare {
    /// Its payload.
    pub fn encode(&self) -> Vec<u8> {
        let range = self.range.encode();
        let mut out = Vec::with_capacity(12 + range.len() + self.hashes.len());
        out.extend(self.seed.to_le_bytes());
        out.extend((range.len() as u32).to_le_bytes());
        out.extend(range);
        out.extend(&self.hashes);
        out
    }

    /// From a payload.
    pub fn decode(payload: &[u8]) -> Result<Compare> {
        let mut fields = Fields(payload);
        let (seed, length) = (fields.u64()?, fields.u32()? as usize);
        let range = ReadRange::decode(fields.take(length)?)?;
        Ok(Compare { range, seed, hashes: fields.0.to_vec() })
    }
}

/// Of an encoded [`Change`]: its kind, three numbers of a relation, a block.
pub const CHANGE_SIZE: usize = 17;

/// As a part of a payload.
pub fn encode_change(change: Change) -> [u8; CHANGE_SIZE] {
    let (kind, relation, block) = match change {
        Change::Block(relation, block) => (0, relation, block),
        Change::From(relation, block) => (1, relation, block),
        Change::Database(database) => (2, Relation { tablespace: 0, database, number: 0 }, 0),
    };
    let mut out = [kind; CHANGE_SIZE];
    let numbers = [relation.tablespace, relation.database, relation.number, block];
    for (part, number) in out[1..].chunks_exact_mut(4).zip(numbers) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    out
}

/// From a part of a payload.
pub fn decode_change(fields: &mut Fields) -> Result<Change> {
    let kind = fields.take(1)?[0];
    let relation = Relation { tablespace: fields.u32()?, database: fields.u32()?, number: fields.u32()? };
    let block = fields.u32()?;
    match kind {
        0 => Ok(Change::Block(relation, block)),
        1 => Ok(Change::From(relation, block)),
        2 => Ok(Change::Database(relation.database)),
        _ => Err(bad("a change of unknown kind")),
    }
}

impl Done {
    /// Its payload.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Done::Whole => vec![0],
            Done::Short(size) => std::iter::once(1).chain(size.to_le_bytes()).collect(),
            Done::Gone => vec![2],
        }
    }

    /// From a payload.
    pub fn decode(payload: &[u8]) -> Result<Done> {
        let mut fields = Fields(payload);
        match (fields.take(1)?[0], fields.0.len()) {
            (0, 0) => Ok(Done::Whole),
            (1, 8) => Ok(Done::Short(fields.u64()?)),
            (2, 0) => Ok(Done::Gone),
            _ => Err(bad("an unknown end of a range")),
        }
    }
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
    fn entries_and_ranges_come_back() {
        let entry = Entry {
            kind: EntryKind::File,
            root: 16385,
            mode: 0o600,
            size: 1 << 33,
            room: 1 << 20,
            path: "PG_15/5/x".into(),
        };
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        let range = ReadRange { root: 0, path: "base/1/2".into(), offset: 8192, length: 9 };
        assert_eq!(ReadRange::decode(&range.encode()).unwrap(), range);
        let compare = Compare { range, seed: 1 << 50, hashes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        assert_eq!(Compare::decode(&compare.encode()).unwrap(), compare);
        for done in [Done::Whole, Done::Short(1 << 40), Done::Gone] {
            assert_eq!(Done::decode(&done.encode()).unwrap(), done);
        }
        let relation = Relation { tablespace: 1663, database: 5, number: 16384 };
        for change in [Change::Block(relation, u32::MAX - 1), Change::From(relation, 7), Change::Database(5)]
        {
            assert_eq!(decode_change(&mut Fields(&encode_change(change))).unwrap(), change);
        }
        assert!(decode_change(&mut Fields(&[3; CHANGE_SIZE])).is_err());
        assert!(decode_change(&mut Fields(&[0; CHANGE_SIZE - 1])).is_err());
        assert!(Compare::decode(&compare.encode()[..20]).is_err());
        assert!(
            Done::decode(&[1, 0]).is_err() && Done::decode(&[0, 0]).is_err() && Done::decode(&[]).is_err()
        );
        assert!(Entry::decode(b"").is_err());
        assert!(ReadRange::decode(&[0; 19]).is_err());
    }
}
