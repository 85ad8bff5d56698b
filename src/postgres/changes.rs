//! Owns which blocks of which relations a stretch of WAL changes, so that a copy need not look at the others.
//!
//! What counts is what PostgreSQL's own summarizer counts (`walsummarizer.c`, `pg_rewind`'s `parsexlog.c`): the block
//! references of all records, and the records that change files without one: relations that are created, truncated or
//! dropped (their file numbers may have been given again), databases that are created or dropped. A record that changes files in a
//! way that is not known here makes the whole stretch unknown.
//!
//! Only main forks are kept. The others are small, and not all that happens to them is in a block reference: a bit of the
//! visibility map is cleared by the record of its heap block, and the free space map is hardly logged at all. They have to
//! be looked at as a whole.

use super::files::{Fork, parse_relation_file};
use super::page::{PAGE, PAGES_PER_SEGMENT};
use super::records::{Pages, WalReader, WalRecord};
use super::version::PgVersion;
use super::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;

/// A relation by the numbers that its path has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Relation {
    /// OID of its tablespace: 1663 is `base`, 1664 is `global`.
    pub tablespace: u32,
    /// OID of its database; 0 for what all share.
    pub database: u32,
    /// Its file number.
    pub number: u32,
}

const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;
/// The newest version whose records are known here.
const NEWEST: u32 = 18;

/// What is remembered takes no more than this, in bytes; where more has changed, all of it is looked at.
const MEMORY: usize = 24 << 20;

/// The blocks that were changed.
#[derive(Debug)]
pub struct Changes {
    version: PgVersion,
    relations: HashMap<Relation, Blocks>,
    /// Databases that were created or dropped: anything in them may be new.
    databases: HashSet<u32>,
    bytes: usize,
    /// Settings were changed at some time, `wal_log_hints` perhaps: what it was before is not told.
    pub parameters_changed: bool,
}

/// Of one relation.
#[derive(Debug, Default)]
struct Blocks {
    /// From here on all, for it was truncated to this.
    limit: Option<u32>,
    /// By the upper half of their numbers.
    chunks: BTreeMap<u16, Chunk>,
}

#[derive(Debug)]
enum Chunk {
    /// Sorted.
    Few(Vec<u16>),
    Many(Box<[u64; 1024]>),
}

/// So many are as large as a bitmap.
const FEW: usize = 4096;
/// What a relation takes besides its blocks, about.
const RELATION_BYTES: usize = 96;
/// The same of a chunk, and of a database.
const CHUNK_BYTES: usize = 64;
const DATABASE_BYTES: usize = 16;

impl Chunk {
    /// True when it was not there yet.
    fn insert(&mut self, low: u16) -> bool {
        match self {
            Chunk::Few(few) => match few.binary_search(&low) {
                Ok(_) => false,
                Err(at) => {
                    few.insert(at, low);
                    if few.len() > FEW {
                        let mut bits = Box::new([0u64; 1024]);
                        few.iter().for_each(|low| bits[usize::from(*low) / 64] |= 1 << (low % 64));
                        *self = Chunk::Many(bits);
                    }
                    true
                }
            },
            Chunk::Many(bits) => {
                let (word, bit) = (&mut bits[usize::from(low) / 64], 1 << (low % 64));
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
        }
    }

    fn each(&self, mut give: impl FnMut(u16)) {
        match self {
            Chunk::Few(few) => few.iter().for_each(|low| give(*low)),
            Chunk::Many(bits) => {
                for (n, word) in bits.iter().enumerate() {
                    let mut left = *word;
                    while left != 0 {
                        give((n * 64) as u16 + left.trailing_zeros() as u16);
                        left &= left - 1;
                    }
                }
            }
        }
    }
}

// rmid
const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_SMGR: u8 = 2;
const RM_DBASE: u8 = 4;
// xl_info
const SPECIAL_REL_UPDATE: u8 = 0x01;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const SMGR_CREATE: u8 = 0x10;
const SMGR_TRUNCATE: u8 = 0x20;
const XACT_COMMIT: u8 = 0x00;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;
const XACT_HAS_INFO: u8 = 0x80;
// xinfo
const HAS_DBINFO: u32 = 1 << 0;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Nothing: it has to be looked at as a whole.
    Unknown,
    /// Only these bytes of it can have changed, in their order; what lies behind its former end is not among them.
    Only(Vec<Range<u64>>),
}

/// A change, as it travels from the other side and comes out of a summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A block.
    Block(Relation, u32),
    /// All blocks from this one on.
    From(Relation, u32),
    /// All of a database.
    Database(u32),
}

impl Changes {
    /// None yet. An error says why those of this version are not read.
    pub fn new(version: PgVersion) -> Result<Changes, String> {
        if version.num() < 100_000 || version.num() / 10_000 > NEWEST {
            return Err(format!("the WAL of PostgreSQL {version} is not read"));
        }
        Ok(Changes {
            version,
            relations: HashMap::new(),
            databases: HashSet::new(),
            bytes: 0,
            parameters_changed: false,
        })
    }

    /// Adds one.
    pub fn add(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Database(database) => {
                if self.databases.insert(database) {
                    self.bytes += DATABASE_BYTES;
                }
            }
            Change::From(relation, block) => {
                let limit = &mut self.of(relation).limit;
                *limit = Some(limit.map_or(block, |known| known.min(block)));
            }
            Change::Block(relation, block) => {
                let high = (block >> 16) as u16;
                let blocks = self.of(relation);
                // The first one of a relation is among what the relation takes.
                let is_more = !blocks.chunks.is_empty() && !blocks.chunks.contains_key(&high);
                let chunk = blocks.chunks.entry(high).or_insert_with(|| Chunk::Few(Vec::new()));
                let was_few = matches!(chunk, Chunk::Few(_));
                if chunk.insert(block as u16) && was_few {
                    self.bytes += 2;
                }
                if is_more {
                    self.bytes += CHUNK_BYTES;
                }
            }
        }
        match self.bytes > MEMORY {
            true => Err("too much has changed to be remembered".into()),
            false => Ok(()),
        }
    }

    fn of(&mut self, relation: Relation) -> &mut Blocks {
        let bytes = &mut self.bytes;
        self.relations.entry(relation).or_insert_with(|| {
            *bytes += RELATION_BYTES;
            Blocks::default()
        })
    }

    /// Adds what a record changes. An error says why that is not known.
    pub fn note(&mut self, record: &WalRecord) -> Result<(), String> {
        let mut failed = None;
        let walked = record.each_block(|fork, tablespace, database, number, block| {
            if fork == 0 {
                let relation = Relation { tablespace, database, number };
                failed = self.add(Change::Block(relation, block)).err().or(failed.take());
            }
        });
        if let Some(why) = failed {
            return Err(why);
        }
        if walked.is_none() {
            return Err(format!("the WAL record at {} is not understood", record.lsn));
        }
        let read = match (record.rmid, record.info & 0xF0) {
            (RM_SMGR, SMGR_CREATE) => self.created(record),
            (RM_SMGR, SMGR_TRUNCATE) => self.truncated(record),
            (RM_DBASE, _) => self.database(record),
            (RM_XACT, info)
                if matches!(
                    info & 0x70,
                    XACT_COMMIT | XACT_ABORT | XACT_COMMIT_PREPARED | XACT_ABORT_PREPARED
                ) =>
            {
                self.dropped(record)
            }
            (RM_XLOG, XLOG_PARAMETER_CHANGE) => self.parameters(record),
            _ if record.info & SPECIAL_REL_UPDATE != 0 => None,
            _ => Some(()),
        };
        read.ok_or_else(|| format!("what the WAL record at {} changes is not known", record.lsn))
    }

    /// `xl_smgr_create`: relation, fork. What may have stood under its number before is nothing of it.
    fn created(&mut self, record: &WalRecord) -> Option<()> {
        let data = record.main_data()?;
        match u32_at(data, 12)? {
            0 => self.add(Change::From(relation_at(data, 0)?, 0)).ok(),
            _ => Some(()),
        }
    }

    /// `xl_smgr_truncate`: block, relation, flags.
    fn truncated(&mut self, record: &WalRecord) -> Option<()> {
        let data = record.main_data()?;
        self.add(Change::From(relation_at(data, 4)?, u32_at(data, 0)?)).ok()
    }

    /// All of them begin with the database, or name it next to one that is read only.
    fn database(&mut self, record: &WalRecord) -> Option<()> {
        self.add(Change::Database(u32_at(record.main_data()?, 0)?)).ok()
    }

    /// `xl_xact_commit` and `xl_xact_abort`, up to the relations that go with it.
    fn dropped(&mut self, record: &WalRecord) -> Option<()> {
        if record.info & XACT_HAS_INFO == 0 {
            return Some(());
        }
        let data = record.main_data()?;
        let info = u32_at(data, 8)?;
        let mut at = 12;
        if info & HAS_DBINFO != 0 {
            at += 8;
        }
        if info & HAS_SUBXACTS != 0 {
            at += 4 + 4 * u32_at(data, at)? as usize;
        }
        if info & HAS_RELATIONS != 0 {
            let count = u32_at(data, at)? as usize;
            at += 4;
            for n in 0..count {
                self.add(Change::From(relation_at(data, at + 12 * n)?, 0)).ok()?;
            }
        }
        Some(())
    }

    /// `xl_parameter_change`: what is logged may have become less. With `wal_level` minimal whole relations are not.
    fn parameters(&mut self, record: &WalRecord) -> Option<()> {
        let data = record.main_data()?;
        // max_wal_senders came in between with 12.
        let at = if self.version.num() >= 120_000 { 20 } else { 16 };
        self.parameters_changed = true;
        (u32_at(data, at)? > 0).then_some(())
    }

    /// All of them.
    pub fn each<E>(&self, mut give: impl FnMut(Change) -> Result<(), E>) -> Result<(), E> {
        for database in &self.databases {
            give(Change::Database(*database))?;
        }
        for (relation, blocks) in &self.relations {
            if let Some(limit) = blocks.limit {
                give(Change::From(*relation, limit))?;
            }
            for (high, chunk) in &blocks.chunks {
                let mut failed = None;
                chunk.each(|low| {
                    if failed.is_none() {
                        let block = u32::from(*high) << 16 | u32::from(low);
                        failed = give(Change::Block(*relation, block)).err();
                    }
                });
                if let Some(error) = failed {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What of a file can have changed, by its path as PGDATA sees it. Blocks that are nearly neighbours are given as one
    /// range.
    pub fn of_file(&self, in_data: &str) -> Touched {
        let Some((relation, segment)) = main_fork(in_data) else { return Touched::Unknown };
        if self.databases.contains(&relation.database) {
            return Touched::Unknown;
        }
        let Some(blocks) = self.relations.get(&relation) else { return Touched::Only(Vec::new()) };
        let Some(first) = segment.checked_mul(PAGES_PER_SEGMENT) else { return Touched::Unknown };
        let last = first.saturating_add(PAGES_PER_SEGMENT - 1);
        let page = PAGE as u64;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut add = |block: u32, end: u64| {
            let begin = u64::from(block - first) * page;
            match ranges.last_mut() {
                Some(range) if begin <= range.end + NEAR => range.end = range.end.max(end),
                _ => ranges.push(begin..end),
            }
        };
        for (high, chunk) in blocks.chunks.range((first >> 16) as u16..=(last >> 16) as u16) {
            chunk.each(|low| {
                let block = u32::from(*high) << 16 | u32::from(low);
                if (first..=last).contains(&block) && blocks.limit.is_none_or(|limit| block < limit) {
                    add(block, (u64::from(block - first) + 1) * page);
                }
            });
        }
        if let Some(limit) = blocks.limit.filter(|limit| *limit <= last) {
            add(limit.max(first), u64::from(PAGES_PER_SEGMENT) * page);
        }
        Touched::Only(ranges)
    }
}

/// A stretch of the WAL of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// `server_version_num`.
    pub version: u32,
    /// Its newest timeline.
    pub timeline: Timeline,
    /// Bytes of a segment.
    pub segment_size: u32,
    /// A record begins here.
    pub from: Lsn,
    /// All that is before this has to be there; without it, the stretch ends where the WAL does.
    pub to: Option<Lsn>,
}

impl Stretch {
    /// Reads it out of `directory` (`pg_wal`), and gives where it ends. The error of the inside says why it cannot be
    /// known what was changed. `tick` is called now and then.
    pub fn read(
        &self,
        directory: &Path,
        changes: &mut Changes,
        mut tick: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Result<Lsn, String>> {
        let pages = Pages::of(directory, self.timeline, self.segment_size);
        let mut reader = match WalReader::of_pages(self.from, pages) {
            Ok(reader) => reader,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut seen = false;
        for record in reader.by_ref() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return Ok(Err(error.to_string())),
            };
            if self.to.is_some_and(|to| record.lsn >= to) {
                return Ok(Ok(record.lsn));
            }
            seen = true;
            if let Err(why) = changes.note(&record) {
                return Ok(Err(why));
            }
            tick()?;
        }
        let end = reader.end();
        let why = reader.ended().map(|why| why.to_string()).unwrap_or_default();
        Ok(match self.to {
            Some(to) if end < to => Err(why),
            None if !seen => Err(why),
            // What looks like the end may be damage: behind it something goes on.
            None if reader.goes_on()? => Err(format!("{why}, and behind it there is more")),
            _ => Ok(end),
        })
    }
}

/// Blocks no further apart than this, in bytes, are read with what lies between them.
const NEAR: u64 = 15 * PAGE as u64;

/// The relation whose main fork a file belongs to, and which gigabyte of it it is.
fn main_fork(in_data: &str) -> Option<(Relation, u32)> {
    let parts: Vec<&str> = in_data.split('/').collect();
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| n.to_string() == text);
    let (tablespace, database, name) = match parts[..] {
        ["global", name] => (GLOBAL_TABLESPACE, 0, name),
        ["base", database, name] => (DEFAULT_TABLESPACE, number(database)?, name),
        ["pg_tblspc", tablespace, _, database, name] => (number(tablespace)?, number(database)?, name),
        _ => return None,
    };
    let file = parse_relation_file(name)
        .filter(|file| file.fork == Fork::Main && name.starts_with(&file.filenode.to_string()))?;
    Some((Relation { tablespace, database, number: file.filenode }, file.segment))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// `RelFileNode`, `RelFileLocator`: tablespace, database, number.
fn relation_at(bytes: &[u8], at: usize) -> Option<Relation> {
    Some(Relation {
        tablespace: u32_at(bytes, at)?,
        database: u32_at(bytes, at + 4)?,
        number: u32_at(bytes, at + 8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Relation = Relation { tablespace: 1663, database: 5, number: 16384 };
    const PAGES: u64 = PAGE as u64;

    fn changes() -> Changes {
        Changes::new("15".parse().unwrap()).unwrap()
    }

    fn only(ranges: &[(u64, u64)]) -> Touched {
        Touched::Only(ranges.iter().map(|(begin, end)| begin * PAGES..end * PAGES).collect())
    }

    #[test]
    fn which_bytes_of_which_file() {
        let mut changes = changes();
        for block in
            [7, 3, 3, 4, 19, 40, PAGES_PER_SEGMENT - 1, PAGES_PER_SEGMENT, PAGES_PER_SEGMENT + 70_000]
        {
            changes.add(Change::Block(TABLE, block)).unwrap();
        }
        let last = u64::from(PAGES_PER_SEGMENT);
        // What lies nearer than 15 blocks is one range.
        assert_eq!(changes.of_file("base/5/16384"), only(&[(3, 20), (40, 41), (last - 1, last)]));
        assert_eq!(changes.of_file("base/5/16384.1"), only(&[(0, 1), (70_000, 70_001)]));
        for untouched in
            ["base/5/16384.2", "base/6/16384", "base/5/16385", "global/1262", "pg_tblspc/9/PG_15_1/5/16384"]
        {
            assert_eq!(changes.of_file(untouched), only(&[]), "{untouched}");
        }
        for unknown in [
            "base/5/16384_vm",
            "base/5/16384_fsm",
            "base/5/16385_init",
            "base/5/PG_VERSION",
            "pg_xact/0000",
            "global/pg_control",
            "base/5/016384",
            "base/5/x/16384",
            "PG_VERSION",
        ] {
            assert_eq!(changes.of_file(unknown), Touched::Unknown, "{unknown}");
        }
        changes.add(Change::From(TABLE, 30)).unwrap();
        changes.add(Change::From(TABLE, 35)).unwrap();
        assert_eq!(changes.of_file("base/5/16384"), only(&[(3, last)]));
        assert_eq!(changes.of_file("base/5/16384.7"), only(&[(0, last)]));
        changes.add(Change::Database(6)).unwrap();
        assert_eq!(changes.of_file("base/6/1"), Touched::Unknown);
        assert_eq!(changes.of_file("pg_tblspc/9/PG_15_1/6/1"), Touched::Unknown);
        let elsewhere = Relation { tablespace: 9, database: 5, number: 7 };
        changes.add(Change::Block(elsewhere, 0)).unwrap();
        assert_eq!(changes.of_file("pg_tblspc/9/PG_15_1/5/7"), only(&[(0, 1)]));
        let shared = Relation { tablespace: 1664, database: 0, number: 1262 };
        changes.add(Change::Block(shared, 1)).unwrap();
        assert_eq!(changes.of_file("global/1262"), only(&[(1, 2)]));
    }

    #[test]
    fn many_blocks_take_little_memory_and_come_back() {
        let mut changes = changes();
        let mut expected = HashSet::new();
        // Every 20th block of 8 GB: no two of them are near.
        for n in 0..52_000u32 {
            let block = n.wrapping_mul(7919) % 52_000 * 20;
            changes.add(Change::Block(TABLE, block)).unwrap();
            expected.insert(block);
        }
        assert!(changes.bytes < 250_000, "{}", changes.bytes);
        let mut again = self::changes();
        changes.each(|change| again.add(change)).unwrap();
        let mut found = HashSet::new();
        again
            .each(|change| {
                let Change::Block(TABLE, block) = change else { panic!("{change:?}") };
                found.insert(block);
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(found, expected);
        let Touched::Only(ranges) = again.of_file("base/5/16384.7") else { panic!() };
        assert_eq!(ranges.len(), (7 * 131_072..1_040_000u32).step_by(1).filter(|b| b % 20 == 0).count());
    }

    #[test]
    fn what_is_too_much_is_not_remembered() {
        let mut changes = changes();
        let mut add = |n: u32| changes.add(Change::Block(Relation { number: n, ..TABLE }, 0));
        let most = (0..1_000_000).find(|n| add(*n).is_err()).unwrap();
        assert!(most > 200_000, "{most}");
    }

    #[test]
    fn versions_whose_wal_is_not_known() {
        for version in ["9.6", "19"] {
            assert!(Changes::new(version.parse().unwrap()).is_err(), "{version}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_however_thinly_it_is_spread() {
        let mut spread = changes();
        let refused = (0..=u32::MAX / 65_536)
            .flat_map(|high| (0..64).map(move |number| (high, number)))
            .find(|(high, number)| {
                let relation = Relation { number: *number, ..TABLE };
                spread.add(Change::Block(relation, high << 16)).is_err()
            });
        assert!(refused.is_some() && spread.bytes < MEMORY + 1000);
        let mut databases = changes();
        assert!((0..u32::MAX).any(|database| databases.add(Change::Database(database)).is_err()));
        assert!(databases.databases.len() <= MEMORY / DATABASE_BYTES + 1);
    }
}
