//! Owns reading WAL records out of segment pages: where the valid WAL ends and what was committed.
//!
//! For PostgreSQL 10 and later; the layout is that of `access/xlog_internal.h`, `xlogrecord.h` and
//! `xlogreader.c`, on little-endian machines. WAL of older versions is refused by name rather than
//! taken for an empty one. Pages are fetched through a closure, and records are checked against their
//! CRC while they pass by, so that memory stays below [`KEPT`] plus one page whatever a length says.

use super::wal::{Lsn, SystemId, Timeline, is_segment_size};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::io;

/// Bytes of a WAL page. Servers built with another `--with-wal-blocksize` are not read.
pub const PAGE_SIZE: usize = 8192;

/// A WAL page as it stands in its segment.
pub type Page = [u8; PAGE_SIZE];

/// Of each record's body at most this many bytes are kept; all of them are checked.
pub const KEPT: usize = 1 << 20;

const PAGE: u64 = PAGE_SIZE as u64;
const SHORT_PAGE_HEADER: u64 = 24;
const LONG_PAGE_HEADER: u64 = 40;
const RECORD_HEADER: u32 = 24;
/// Above what any PostgreSQL writes (a logical message can come near 1 GB).
const LONGEST_RECORD: u32 = (1 << 30) + (1 << 20);

// xlp_info
const FIRST_IS_CONTINUATION: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE: u16 = 0x0008;
const ALL_PAGE_FLAGS: u16 = 0x000F;

/// Page magics: 10 begins at 0xD097 (9.5 to 9.6 lie between 0xD07E and it); 15 changed the flags of
/// page images.
const MAGIC_OLDEST_ANY: u16 = 0xD05A;
const MAGIC_10: u16 = 0xD097;
const MAGIC_15: u16 = 0xD110;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const XLOG_SWITCH: u8 = 0x40;
const XACT_OPERATION: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_COMMIT_PREPARED: u8 = 0x30;

/// A moment as PostgreSQL stores it: microseconds since 2000-01-01 00:00 UTC. Shown in RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(pub i64);

impl PgTime {
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(946_684_800_000_000)
    }
}

impl fmt::Display for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: i64 = 86_400_000_000;
        let (days, in_day) = (self.unix_micros().div_euclid(DAY), self.unix_micros().rem_euclid(DAY));
        // Howard Hinnant's civil_from_days: the year begins in March, so that leap days come last.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let seconds = in_day / 1_000_000;
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        let micros = in_day % 1_000_000;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

impl Serialize for PgTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One valid WAL record.
#[derive(Clone, Debug)]
pub struct WalRecord {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where the next one may begin: the end, aligned to 8; the next segment after a switch.
    pub end: Lsn,
    /// The transaction that wrote it, or 0.
    pub xid: u32,
    /// The resource manager: 0 XLOG, 1 transactions, 10 heap, …
    pub rmid: u8,
    /// `xl_info`, whose meaning depends on `rmid`.
    pub info: u8,
    /// Its length with the header, in bytes.
    pub total_len: u32,
    /// What follows the header, cut at [`KEPT`] bytes.
    pub body: Vec<u8>,
    magic: u16,
}

impl WalRecord {
    /// Whether the rest of the segment is unused (`pg_switch_wal()`, `archive_timeout`).
    pub fn is_switch(&self) -> bool {
        self.rmid == RM_XLOG && self.info & 0xF0 == XLOG_SWITCH
    }

    /// Whether it commits a transaction, `COMMIT PREPARED` included.
    pub fn is_commit(&self) -> bool {
        self.rmid == RM_XACT && matches!(self.info & XACT_OPERATION, XACT_COMMIT | XACT_COMMIT_PREPARED)
    }

    /// When a commit record's transaction was committed, by the clock of its server.
    pub fn commit_time(&self) -> Option<PgTime> {
        let data = if self.is_commit() { self.main_data()? } else { return None };
        Some(PgTime(i64::from_le_bytes(data.get(..8)?.try_into().ok()?)))
    }

    /// The record's own data (what its resource manager reads), behind the block references and block
    /// data; cut where the body was cut. `None` when there is none or it lies past the cut.
    pub fn main_data(&self) -> Option<&[u8]> {
        let length = self.main_data_length()?;
        let start = (self.total_len - RECORD_HEADER).checked_sub(length)? as usize;
        self.body.get(start..)
    }

    /// Walks the headers in front of the data (`DecodeXLogRecord`).
    fn main_data_length(&self) -> Option<u32> {
        let mut rest = Bytes(&self.body);
        loop {
            match rest.u8()? {
                255 => return rest.u8().map(u32::from),
                254 => return rest.u32(),
                253 => rest.skip(2)?, // replication origin
                252 => rest.skip(4)?, // top-level transaction
                0..=32 => self.skip_block_header(&mut rest)?,
                _ => return None,
            }
        }
    }

    fn skip_block_header(&self, rest: &mut Bytes<'_>) -> Option<()> {
        let fork_flags = rest.u8()?;
        rest.skip(2)?;
        if fork_flags & 0x10 != 0 {
            rest.skip(4)?;
            let image = rest.u8()?;
            let compressed = if self.magic < MAGIC_15 { 0x02 } else { 0x1C };
            if image & compressed != 0 && image & 0x01 != 0 {
                rest.skip(2)?; // length of the hole
            }
        }
        if fork_flags & 0x80 == 0 {
            rest.skip(12)?; // another relation than the block before
        }
        rest.skip(4)
    }
}

/// Little-endian fields from the front of a slice.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }
    fn u8(&mut self) -> Option<u8> {
        let value = *self.0.first()?;
        self.skip(1)?;
        Some(value)
    }
    fn u32(&mut self) -> Option<u32> {
        let value = u32_at(self.0.get(..4)?, 0);
        self.skip(4)?;
        Some(value)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Why no further record could be read: the end of the WAL, or a fault in it. The two cannot be told
/// apart from the WAL alone (PostgreSQL cannot either).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndOfWal {
    /// The segment that would hold this position does not exist.
    NoSegment(Lsn),
    /// Nothing was written here yet.
    Zeros(Lsn),
    /// The page at this position is not the one that belongs here; often a recycled segment.
    Page(Lsn, &'static str),
    /// What stands at this position is no record.
    Record(Lsn, &'static str),
}

impl fmt::Display for EndOfWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndOfWal::NoSegment(at) => write!(f, "no WAL segment holds {at}"),
            EndOfWal::Zeros(at) => write!(f, "nothing is written at {at}"),
            EndOfWal::Page(at, why) => write!(f, "WAL page {at}: {why}"),
            EndOfWal::Record(at, why) => write!(f, "WAL record {at}: {why}"),
        }
    }
}

/// How reading one record can end without one.
enum Halt {
    End(EndOfWal),
    Failed(Error),
    /// A crashed server never finished the record; WAL goes on at this page.
    Overwritten(Lsn),
}

/// A page whose header was checked.
struct Loaded {
    at: Lsn,
    bytes: Box<Page>,
    flags: u16,
    header: u64,
    rest_of_record: u32,
}

/// Iterates over the valid records of one timeline's WAL, in order, until the first thing that is not
/// valid. Pages of older timelines are accepted, as they stand at the front of the segment in which a
/// timeline begins; a page of a newer one ends the WAL.
pub struct WalReader<F> {
    fetch: F,
    timeline: Timeline,
    segment_size: u64,
    start: Lsn,
    /// Look for the first record at or behind `start` rather than expecting one right there.
    searching: bool,
    page: Option<Loaded>,
    magic: Option<u16>,
    system_id: Option<SystemId>,
    newest_timeline: u32,
    next: Lsn,
    previous: Option<Lsn>,
    ended: Option<EndOfWal>,
    failed: bool,
}

impl<F: FnMut(Lsn) -> io::Result<Option<Page>>> WalReader<F> {
    /// Starts at a position where a record is known to begin: a checkpoint, its redo position, the end
    /// of another record. `segment_size` in bytes. `fetch` gives the page that begins at a position (a
    /// multiple of [`PAGE_SIZE`]), or `None` when its segment does not exist.
    ///
    /// # Errors
    /// [`Error::WalSegmentSize`].
    pub fn new(start: Lsn, timeline: Timeline, segment_size: u32, fetch: F) -> Result<Self> {
        if !is_segment_size(segment_size) {
            return Err(Error::WalSegmentSize { bytes: segment_size });
        }
        Ok(WalReader {
            fetch,
            timeline,
            segment_size: segment_size.into(),
            start,
            searching: false,
            page: None,
            magic: None,
            system_id: None,
            newest_timeline: 0,
            next: start,
            previous: None,
            ended: None,
            failed: false,
        })
    }

    /// Starts at the first record that begins at or behind any position on the page `start` lies on;
    /// records in front of `start` on that page are given too. For positions that are no record's
    /// beginning, such as a segment's.
    ///
    /// # Errors
    /// As [`WalReader::new`].
    pub fn searching(start: Lsn, timeline: Timeline, segment_size: u32, fetch: F) -> Result<Self> {
        let mut reader = Self::new(start.floor(PAGE), timeline, segment_size, fetch)?;
        reader.searching = true;
        Ok(reader)
    }

    /// The end of the last valid record: once the iterator has ended, the end of the WAL. The start
    /// position as long as there was none.
    pub fn end(&self) -> Lsn {
        self.next
    }

    /// Why there was no further record, once the iterator has ended.
    pub fn ended(&self) -> Option<&EndOfWal> {
        self.ended.as_ref()
    }

    /// Which cluster wrote the WAL, as far as the beginning of a segment was seen.
    pub fn system_id(&self) -> Option<SystemId> {
        self.system_id
    }

    /// Makes the page at `at` the current one, after checking its header (`XLogReaderValidatePageHeader`).
    fn load(&mut self, at: Lsn) -> std::result::Result<&Loaded, Halt> {
        if self.page.as_ref().is_none_or(|page| page.at != at) {
            let segment = at.floor(self.segment_size);
            // Like PostgreSQL, look at the segment's first page first: a recycled one shows itself.
            if at != segment && self.page.as_ref().is_none_or(|page| page.at < segment) {
                self.page = Some(self.checked(segment)?);
            }
            self.page = Some(self.checked(at)?);
        }
        Ok(self.page.as_ref().expect("loaded above"))
    }

    fn checked(&mut self, at: Lsn) -> std::result::Result<Loaded, Halt> {
        let bytes = match (self.fetch)(at) {
            Ok(Some(bytes)) => Box::new(bytes),
            Ok(None) => return Err(Halt::End(EndOfWal::NoSegment(at))),
            Err(source) => return Err(Halt::Failed(Error::WalPage { lsn: at.to_string(), source })),
        };
        let bad = |why| Halt::End(EndOfWal::Page(at, why));
        let (magic, flags, timeline) = (u16_at(&bytes[..], 0), u16_at(&bytes[..], 2), u32_at(&bytes[..], 4));
        if bytes[..SHORT_PAGE_HEADER as usize].iter().all(|byte| *byte == 0) {
            return Err(Halt::End(EndOfWal::Zeros(at)));
        }
        match self.magic {
            Some(expected) if magic != expected => return Err(bad("its magic number is another one")),
            None if (MAGIC_OLDEST_ANY..MAGIC_10).contains(&magic) => {
                return Err(Halt::Failed(Error::WalVersion { magic }));
            }
            None if magic < MAGIC_10 || magic >> 8 > 0xD2 => return Err(bad("its magic number is unknown")),
            _ => {}
        }
        if flags & !ALL_PAGE_FLAGS != 0 {
            return Err(bad("its flags are unknown"));
        }
        if u64_at(&bytes[..], 8) != at.0 {
            return Err(bad("it belongs to another position"));
        }
        let first_of_segment = at.0.is_multiple_of(self.segment_size);
        if (flags & LONG_HEADER != 0) != first_of_segment {
            return Err(bad("its header has the wrong length"));
        }
        if timeline > self.timeline.0 {
            return Err(bad("it belongs to a newer timeline"));
        }
        if timeline < self.newest_timeline {
            return Err(bad("it belongs to an older timeline than the page before"));
        }
        if first_of_segment {
            let system_id = SystemId(u64_at(&bytes[..], 24));
            if self.system_id.is_some_and(|known| known != system_id) {
                return Err(bad("it belongs to another cluster"));
            }
            if u64::from(u32_at(&bytes[..], 32)) != self.segment_size {
                return Err(bad("its segment size is another one"));
            }
            if u64::from(u32_at(&bytes[..], 36)) != PAGE {
                return Err(bad("its page size is not 8192"));
            }
            self.system_id = Some(system_id);
        }
        self.magic = Some(magic);
        self.newest_timeline = timeline;
        let header = if first_of_segment { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
        Ok(Loaded { at, flags, header, rest_of_record: u32_at(&bytes[..], 16), bytes })
    }

    /// Finds the first record that begins on or behind the page at `self.next`.
    fn find_first(&mut self) -> std::result::Result<(), Halt> {
        let mut at = self.next;
        loop {
            let page = self.load(at)?;
            let skip = if page.flags & FIRST_IS_CONTINUATION != 0 {
                u64::from(page.rest_of_record).next_multiple_of(8)
            } else {
                0
            };
            let offset = page.header + skip;
            if offset < PAGE {
                self.next = Lsn(at.0 + offset);
                return Ok(());
            }
            at = Lsn(at.0 + PAGE);
        }
    }

    fn read(&mut self) -> std::result::Result<WalRecord, Halt> {
        if self.searching {
            self.find_first()?;
            self.searching = false;
        }
        let mut lsn = self.next;
        let page = self.load(lsn.floor(PAGE))?;
        if lsn == page.at {
            lsn = Lsn(lsn.0 + page.header);
            if page.flags & FIRST_IS_CONTINUATION != 0 {
                return Err(Halt::End(EndOfWal::Record(lsn, "a record's continuation stands there")));
            }
        }
        let offset = lsn.0 - page.at.0;
        if offset < page.header || !lsn.0.is_multiple_of(8) {
            return Err(Halt::End(EndOfWal::Record(lsn, "no record can begin there")));
        }
        // Records begin at multiples of 8, so the length always stands on the first page.
        let total_len = u32_at(&page.bytes[..], offset as usize);
        match total_len {
            0 => return Err(Halt::End(EndOfWal::Zeros(lsn))),
            1..RECORD_HEADER => return Err(Halt::End(EndOfWal::Record(lsn, "it is too short"))),
            LONGEST_RECORD.. => return Err(Halt::End(EndOfWal::Record(lsn, "it is too long"))),
            _ => {}
        }

        let mut assembly = Assembly::new(lsn, total_len);
        let mut at = lsn;
        let end = loop {
            let page = self.page.as_ref().expect("loaded before each round");
            let offset = (at.0 - page.at.0) as usize;
            let count = (PAGE_SIZE - offset).min((total_len - assembly.got) as usize);
            assembly
                .add(&page.bytes[offset..offset + count], self.previous)
                .map_err(|why| Halt::End(EndOfWal::Record(lsn, why)))?;
            if assembly.got == total_len {
                break at.0 + count as u64;
            }
            let next = Lsn(page.at.0 + PAGE);
            let page = self.load(next)?;
            if page.flags & FIRST_IS_OVERWRITE != 0 {
                return Err(Halt::Overwritten(next));
            }
            if page.flags & FIRST_IS_CONTINUATION == 0 {
                return Err(Halt::End(EndOfWal::Record(lsn, "its continuation is missing")));
            }
            if page.rest_of_record != total_len - assembly.got {
                return Err(Halt::End(EndOfWal::Record(lsn, "its continuation has another length")));
            }
            at = Lsn(next.0 + page.header);
        };
        let mut record = assembly
            .finish(Lsn(end.next_multiple_of(8)), self.magic.expect("known since the first page"))
            .map_err(|why| Halt::End(EndOfWal::Record(lsn, why)))?;
        if record.is_switch() {
            record.end = Lsn(record.end.0.next_multiple_of(self.segment_size));
        }
        Ok(record)
    }
}

impl<F: FnMut(Lsn) -> io::Result<Option<Page>>> Iterator for WalReader<F> {
    type Item = Result<WalRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended.is_some() || self.failed {
            return None;
        }
        loop {
            match self.read() {
                Ok(record) => {
                    self.previous = Some(record.lsn);
                    self.next = record.end;
                    return Some(Ok(record));
                }
                Err(Halt::Overwritten(page)) => self.next = page,
                Err(Halt::End(why)) => {
                    self.ended = Some(why);
                    return None;
                }
                Err(Halt::Failed(error)) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A record on its way, from one page or many.
struct Assembly {
    lsn: Lsn,
    total_len: u32,
    got: u32,
    header: [u8; RECORD_HEADER as usize],
    crc: u32,
    body: Vec<u8>,
}

impl Assembly {
    fn new(lsn: Lsn, total_len: u32) -> Self {
        Assembly { lsn, total_len, got: 0, header: [0; RECORD_HEADER as usize], crc: 0, body: Vec::new() }
    }

    /// Takes the next bytes; refuses the record as soon as its header is whole and cannot follow the
    /// `previous` one, before a wrong length is believed.
    fn add(&mut self, mut bytes: &[u8], previous: Option<Lsn>) -> std::result::Result<(), &'static str> {
        if self.got < RECORD_HEADER {
            let from = self.got as usize;
            let count = bytes.len().min(RECORD_HEADER as usize - from);
            self.header[from..from + count].copy_from_slice(&bytes[..count]);
            self.got += count as u32;
            bytes = &bytes[count..];
            if self.got < RECORD_HEADER {
                return Ok(());
            }
            let link = Lsn(u64_at(&self.header, 8));
            if previous.map_or(link >= self.lsn, |previous| link != previous) {
                return Err("it does not follow the record before");
            }
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        let room = KEPT - self.body.len();
        self.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.got += bytes.len() as u32;
        Ok(())
    }

    /// The CRC covers the body first, then the header up to the CRC itself.
    fn finish(self, end: Lsn, magic: u16) -> std::result::Result<WalRecord, &'static str> {
        if crc32c::crc32c_append(self.crc, &self.header[..20]) != u32_at(&self.header, 20) {
            return Err("its checksum is wrong");
        }
        Ok(WalRecord {
            lsn: self.lsn,
            end,
            xid: u32_at(&self.header, 4),
            info: self.header[16],
            rmid: self.header[17],
            total_len: self.total_len,
            body: self.body,
            magic,
        })
    }
}

/// What a stretch of WAL commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommitSummary {
    /// How many transactions, those of autovacuum included.
    pub count: u64,
    /// When the first was committed, by the server's clock.
    pub first_time: Option<PgTime>,
    /// When the last was committed.
    pub last_time: Option<PgTime>,
    /// The end of the valid WAL.
    pub end: Lsn,
}

/// Counts the commits whose record begins at or behind `from`, the point up to which another server
/// has the same WAL. Start the reader at a record that certainly exists and lies at or before `from`
/// (the last checkpoint, or the beginning of the segment of `from` by [`WalReader::searching`]).
///
/// # Errors
/// [`Error::WalUnreadable`] when not even one record can be read: that is missing or damaged WAL, and
/// must not pass for "no commits". Reading errors of the pages, and WAL of versions before 10.
pub fn commits_after<F>(reader: &mut WalReader<F>, from: Lsn) -> Result<CommitSummary>
where
    F: FnMut(Lsn) -> io::Result<Option<Page>>,
{
    let (mut count, mut first_time, mut last_time, mut seen) = (0, None, None, false);
    for record in reader.by_ref() {
        let record = record?;
        seen = true;
        if record.lsn >= from && record.is_commit() {
            count += 1;
            last_time = record.commit_time().or(last_time);
            first_time = first_time.or(last_time);
        }
    }
    match reader.ended() {
        Some(why) if !seen => {
            Err(Error::WalUnreadable { lsn: reader.start.to_string(), why: why.to_string() })
        }
        _ => Ok(CommitSummary { count, first_time, last_time, end: reader.end() }),
    }
}
