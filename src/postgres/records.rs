//! Owns reading WAL records out of segment pages: where the valid WAL ends and what was committed.
//!
//! For PostgreSQL 10 and later; the layout is that of `access/xlog_internal.h`, `xlogrecord.h` and
//! `xlogreader.c`, on little-endian machines. WAL of older versions is refused by name rather than
//! taken for an empty one. Pages are fetched through a closure, and records are checked against their
//! CRC while they pass by, so that memory stays below [`KEPT`] plus one page whatever a length says.

use super::wal::{Lsn, SystemId, Timeline, is_segment_size, parse_segment_name, segment_name};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_SWITCH: u8 = 0x40;
const XACT_OPERATION: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_PREPARE: u8 = 0x10;
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

    /// Where replay from this checkpoint begins; `None` when it is none.
    pub fn checkpoint_redo(&self) -> Option<Lsn> {
        let is_checkpoint = self.rmid == RM_XLOG
            && matches!(self.info & 0xF0, XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE);
        let data = if is_checkpoint { self.main_data()? } else { return None };
        Some(Lsn(u64_at(data.get(..8)?, 0)))
    }

    /// Whether it commits a transaction, `COMMIT PREPARED` included.
    pub fn is_commit(&self) -> bool {
        self.rmid == RM_XACT && matches!(self.info & XACT_OPERATION, XACT_COMMIT | XACT_COMMIT_PREPARED)
    }

    /// `PREPARE TRANSACTION`, which is acknowledged to the client as a commit is.
    pub fn is_prepare(&self) -> bool {
        self.rmid == RM_XACT && self.info & XACT_OPERATION == XACT_PREPARE
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

    fn main_data_length(&self) -> Option<u32> {
        self.walk(|_, _, _, _, _| ()).filter(|length| *length > 0)
    }

    /// Gives each block that the record refers to: fork, tablespace, database, file number, block. `None` when its
    /// headers cannot be read to their end.
    pub fn each_block(&self, give: impl FnMut(u8, u32, u32, u32, u32)) -> Option<()> {
        self.walk(give).map(drop)
    }

    /// Walks the headers in front of the data (`DecodeXLogRecord`), and gives the length of the main data.
    fn walk(&self, mut give: impl FnMut(u8, u32, u32, u32, u32)) -> Option<u32> {
        let mut rest = Bytes(&self.body);
        // Whatever is behind the headers.
        let mut data = 0u64;
        let mut relation = None;
        loop {
            if rest.0.len() as u64 + u64::from(self.total_len - RECORD_HEADER) - self.body.len() as u64
                == data
            {
                // No main data: the headers end where the data of the blocks begins.
                return Some(0);
            }
            match rest.u8()? {
                255 => return rest.u8().map(u32::from),
                254 => return rest.u32(),
                253 => rest.skip(2)?, // replication origin
                252 => rest.skip(4)?, // top-level transaction
                0..=32 => {
                    let fork_flags = rest.u8()?;
                    data += u64::from(rest.u16()?);
                    if fork_flags & 0x10 != 0 {
                        data += u64::from(rest.u16()?); // of the image
                        rest.skip(2)?;
                        let image = rest.u8()?;
                        let compressed = if self.magic < MAGIC_15 { 0x02 } else { 0x1C };
                        if image & compressed != 0 && image & 0x01 != 0 {
                            rest.skip(2)?; // length of the hole
                        }
                    }
                    if fork_flags & 0x80 == 0 {
                        relation = Some((rest.u32()?, rest.u32()?, rest.u32()?));
                    }
                    // Without one of its own it is that of the block before.
                    let (tablespace, database, number) = relation?;
                    give(fork_flags & 0x0F, tablespace, database, number, rest.u32()?);
                }
                _ => return None,
            }
        }
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
    fn u16(&mut self) -> Option<u16> {
        let value = u16_at(self.0.get(..2)?, 0);
        self.skip(2)?;
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

/// So many names are tried faster than a directory is read.
const FEW_TIMELINES: u32 = 64;

/// The pages of the segments in a directory.
pub struct Pages {
    directory: PathBuf,
    timeline: Timeline,
    /// Bytes of a segment.
    pub segment_size: u32,
    opened: Option<(Lsn, File)>,
}

impl Pages {
    /// Those of `pg_wal`, up to this timeline.
    pub fn of(directory: &Path, timeline: Timeline, segment_size: u32) -> Pages {
        Pages { directory: directory.to_owned(), timeline, segment_size, opened: None }
    }

    /// The page that begins there; `None` where its segment is not.
    pub fn get(&mut self, at: Lsn) -> io::Result<Option<Page>> {
        let mut page = [0; PAGE_SIZE];
        match self.read(at, &mut page) {
            Ok(()) => Ok(Some(page)),
            Err(e) if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The newest timeline, up to ours, that has a segment. Somebody else may have said how many there are: they are not
    /// tried one after the other.
    fn newest_of(&self, segment: Lsn) -> Option<Timeline> {
        let names = std::fs::read_dir(&self.directory).ok()?.flatten().filter_map(|entry| {
            let (timeline, lsn) = parse_segment_name(entry.file_name().to_str()?, self.segment_size)?;
            (lsn == segment && timeline <= self.timeline).then_some(timeline)
        });
        names.max()
    }

    /// The bytes from there on, within one segment.
    pub fn read(&mut self, at: Lsn, bytes: &mut [u8]) -> io::Result<()> {
        let segment = at.floor(self.segment_size.into());
        if self.opened.as_ref().is_none_or(|(of, _)| *of != segment) {
            // Behind a switch the segment may exist on both timelines; the newer one holds both parts.
            let open = |timeline| {
                let name = segment_name(Timeline(timeline), segment, self.segment_size);
                File::open(self.directory.join(name)).ok()
            };
            let file = match self.timeline.0 {
                few @ ..=FEW_TIMELINES => (1..=few).rev().find_map(open),
                _ => self.newest_of(segment).and_then(|timeline| open(timeline.0)),
            };
            let file = file.ok_or(io::ErrorKind::NotFound)?;
            self.opened = Some((segment, file));
        }
        let (_, file) = self.opened.as_ref().expect("opened above");
        file.read_exact_at(bytes, at.0 - segment.0)
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

/// A reader of a directory's segments.
pub type DirectoryReader = WalReader<Box<dyn FnMut(Lsn) -> io::Result<Option<Page>>>>;

impl DirectoryReader {
    /// As [`WalReader::new`].
    ///
    /// # Errors
    /// As there.
    pub fn of_pages(start: Lsn, mut pages: Pages) -> Result<DirectoryReader> {
        let (timeline, size) = (pages.timeline, pages.segment_size);
        WalReader::new(start, timeline, size, Box::new(move |at| pages.get(at)))
    }

    /// As [`WalReader::searching`].
    ///
    /// # Errors
    /// As there.
    pub fn searching_pages(start: Lsn, mut pages: Pages) -> Result<DirectoryReader> {
        let (timeline, size) = (pages.timeline, pages.segment_size);
        WalReader::searching(start, timeline, size, Box::new(move |at| pages.get(at)))
    }
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

    /// Whether there is WAL of this place behind the end: the next page is no recycled one.
    pub fn goes_on(&mut self) -> io::Result<bool> {
        let next = Lsn(self.next.floor(PAGE).0 + PAGE);
        Ok((self.fetch)(next)?.is_some_and(|page| u64_at(&page, 8) == next.0))
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
    /// How many transactions were prepared for a two-phase commit.
    pub prepared: u64,
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
    let (mut count, mut prepared, mut first_time, mut last_time, mut seen) = (0, 0, None, None, false);
    for record in reader.by_ref() {
        let record = record?;
        seen = true;
        if record.lsn >= from && record.is_commit() {
            count += 1;
            last_time = record.commit_time().or(last_time);
            first_time = first_time.or(last_time);
        } else if record.lsn >= from && record.is_prepare() {
            prepared += 1;
        }
    }
    match reader.ended() {
        Some(why) if !seen => {
            Err(Error::WalUnreadable { lsn: reader.start.to_string(), why: why.to_string() })
        }
        _ => Ok(CommitSummary { count, prepared, first_time, last_time, end: reader.end() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const MB: u32 = 1 << 20;

    /// WAL of real servers, in tests/fixtures/wal: contiguous segments, packed with gzip, missing pages
    /// at the end of the last segment being zero.
    struct Wal {
        first: Lsn,
        segment_size: u32,
        bytes: Vec<u8>,
    }

    macro_rules! wal {
        ($name:literal, $first:literal, $segment_size:expr) => {
            Wal::unpack(
                include_bytes!(concat!("../../tests/fixtures/wal/", $name, ".gz")),
                $first,
                $segment_size,
            )
        };
    }

    impl Wal {
        fn unpack(packed: &[u8], first: &str, segment_size: u32) -> Wal {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
            bytes.resize(bytes.len().next_multiple_of(segment_size as usize), 0);
            Wal { first: first.parse().unwrap(), segment_size, bytes }
        }

        fn fetch(&self, at: Lsn) -> io::Result<Option<Page>> {
            assert_eq!(at.0 % PAGE, 0);
            let Some(from) = at.distance_from(self.first) else { return Ok(None) };
            let page = self.bytes.get(from as usize..from as usize + PAGE_SIZE);
            Ok(page.map(|page| page.try_into().unwrap()))
        }

        fn reader(
            &self,
            start: &str,
            timeline: u32,
        ) -> WalReader<impl FnMut(Lsn) -> io::Result<Option<Page>>> {
            let start = start.parse().unwrap();
            WalReader::new(start, Timeline(timeline), self.segment_size, |at| self.fetch(at)).unwrap()
        }

        fn at(&mut self, at: &str) -> &mut [u8] {
            let from = lsn(at).distance_from(self.first).unwrap() as usize;
            &mut self.bytes[from..]
        }
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn fifteen() -> Wal {
        wal!("15", "0/900000", MB)
    }

    /// Each server did the same: ten transactions (one prepared, one with a subtransaction, one with a
    /// replication origin), one rolled back, logical messages of 30 kB and of 1.06 MB (over a segment's
    /// end), a segment switch. Times and ends are what the server itself said before it was killed:
    /// `pg_xact_commit_timestamp`, `pg_last_committed_xact`, `pg_current_wal_flush_lsn`.
    #[test]
    fn real_wal_of_every_version_is_read_to_its_end() {
        let servers = [
            (
                "10",
                wal!("10", "0/2000000", 16 * MB),
                "0/2000060",
                "16:34:55.096334",
                "16:34:55.125887",
                "0/3000098",
            ),
            ("11", wal!("11", "0/A00000", MB), "0/A00060", "16:34:56.807334", "16:34:56.842222", "0/C00098"),
            ("12", wal!("12", "0/800000", MB), "0/800060", "16:34:58.307374", "16:34:58.334051", "0/A00098"),
            ("13", wal!("13", "0/A00000", MB), "0/A00060", "16:34:59.951382", "16:34:59.981106", "0/C00098"),
            ("14", wal!("14", "0/800000", MB), "0/800060", "16:35:01.311963", "16:35:01.330244", "0/A00098"),
            ("15", wal!("15", "0/900000", MB), "0/900060", "16:35:02.581376", "16:35:02.595944", "0/B00098"),
            ("16", wal!("16", "0/600000", MB), "0/600060", "16:35:03.784682", "16:35:03.797463", "0/800098"),
            ("17", wal!("17", "0/900000", MB), "0/900080", "16:35:05.055515", "16:35:05.071933", "0/B00098"),
            ("18", wal!("18", "0/900000", MB), "0/900080", "16:35:06.556578", "16:35:06.589980", "0/B00098"),
        ];
        for (version, wal, checkpoint, first, last, end) in servers {
            let mut reader = wal.reader(checkpoint, 1);
            let summary = commits_after(&mut reader, Lsn::ZERO).unwrap();
            assert_eq!(summary.count, 10, "{version}");
            let time = |time: Option<PgTime>| time.unwrap().to_string();
            assert_eq!(time(summary.first_time), format!("2026-11-20T{first}Z"), "{version}");
            assert_eq!(time(summary.last_time), format!("2026-11-20T{last}Z"), "{version}");
            assert_eq!(summary.end, lsn(end), "{version}");
            assert_eq!(reader.ended(), Some(&EndOfWal::Zeros(lsn(end))), "{version}");
        }
    }

    /// The numbers are those of `pg_waldump` 15 over the same WAL.
    #[test]
    fn records_agree_with_pg_waldump() {
        let wal = fifteen();
        let mut reader = wal.reader("0/900060", 1);
        let records: Vec<WalRecord> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(records.len(), 86);
        let of = |rmid| records.iter().filter(|record| record.rmid == rmid).count();
        // XLOG, Transaction, Storage, Standby, Heap2, Heap, Btree, LogicalMessage
        assert_eq!([0, 1, 2, 8, 9, 10, 11, 21].map(of), [4, 14, 1, 1, 19, 14, 31, 2]);
        assert_eq!(records.iter().map(|record| u64::from(record.total_len)).sum::<u64>(), 1_097_540);
        assert_eq!(records.iter().map(|record| u64::from(record.xid)).sum::<u64>(), 58_090);
        assert_eq!(reader.system_id(), Some(SystemId(7710293085431323832)));

        let long = records.iter().find(|record| record.total_len == 1_060_055).unwrap();
        assert_eq!((long.lsn, long.end), (lsn("0/909310"), lsn("0/A0CC28")));
        assert_eq!(long.body.len(), KEPT);
        let short = records.iter().find(|record| record.total_len == 30_055).unwrap();
        assert!(short.main_data().unwrap().ends_with(&[b'x'; 30_000]));

        let switch = records.iter().find(|record| record.is_switch()).unwrap();
        assert_eq!((switch.lsn, switch.end), (lsn("0/A0CC98"), lsn("0/B00000")));
        let prepared = records.iter().find(|record| record.lsn == lsn("0/9019C0")).unwrap();
        assert!(prepared.is_commit() && prepared.xid == 0);
        assert_eq!(prepared.commit_time().unwrap().to_string(), "2026-11-20T16:35:02.584451Z");
        let with_origin = records.iter().find(|record| record.lsn == lsn("0/901C90")).unwrap();
        assert_eq!(with_origin.commit_time().unwrap().to_string(), "2026-11-20T16:35:02.585387Z");
        let aborted = records.iter().find(|record| record.lsn == lsn("0/901860")).unwrap();
        assert!(!aborted.is_commit() && aborted.commit_time().is_none());
        for record in &records {
            let page_image_only = record.rmid == 0 && record.info == 0xA0; // FPI_FOR_HINT
            let has_data = !record.is_switch() && !page_image_only;
            assert_eq!(record.main_data().is_some(), has_data, "the headers of {} are walked", record.lsn);
        }
    }

    #[test]
    fn only_commits_behind_the_given_position_count() {
        let wal = fifteen();
        let count = |from: &str| commits_after(&mut wal.reader("0/900060", 1), lsn(from)).unwrap().count;
        assert_eq!(count("0/9014F0"), 10); // the first commit record begins there
        assert_eq!(count("0/9014F8"), 9);
        assert_eq!(count("0/A0CC68"), 2);
        assert_eq!(count("0/B00068"), 1);
        assert_eq!(count("0/B00098"), 0);
        assert_eq!(count("5/0"), 0);
    }

    #[test]
    fn reading_can_start_at_any_record_or_be_told_to_search() {
        let wal = fifteen();
        for start in ["0/9014F0", "0/909310", "0/A0CC28", "0/B00000", "0/B00028"] {
            let mut reader = wal.reader(start, 1);
            assert!(commits_after(&mut reader, Lsn::ZERO).is_ok(), "{start}");
            assert_eq!(reader.end(), lsn("0/B00098"), "{start}");
        }
        // 0/A00000 lies in the middle of the long record, whose end is found through its length
        for (start, first) in [("0/900000", "0/900028"), ("0/A00000", "0/A0CC28"), ("0/A02468", "0/A0CC28")] {
            let mut reader = WalReader::searching(lsn(start), Timeline(1), MB, |at| wal.fetch(at)).unwrap();
            assert_eq!(reader.next().unwrap().unwrap().lsn, lsn(first), "{start}");
        }
    }

    #[test]
    fn a_start_that_is_no_record_is_an_error_and_not_an_empty_wal() {
        let wal = fifteen();
        let why = |start: &str| commits_after(&mut wal.reader(start, 1), Lsn::ZERO).unwrap_err().to_string();
        assert_eq!(why("0/500028"), "the WAL cannot be read from 0/500028 on: no WAL segment holds 0/500000");
        assert!(why("0/900061").contains("no record can begin there"));
        assert!(why("0/900008").contains("no record can begin there"));
        assert!(why("0/900070").contains("WAL record 0/900070"));
        assert!(why("0/A00000").contains("a record's continuation stands there"));
        assert!(why("0/B00098").contains("nothing is written at 0/B00098"));
        assert!(why("0/B02018").contains("it belongs to another position"), "a page of a recycled segment");
        assert!(WalReader::new(Lsn(0), Timeline(1), 3, |_| Ok(None)).is_err());
    }

    #[test]
    fn an_unfinished_record_that_a_crash_left_is_passed_over() {
        // The server was killed, the segment with the record's second half removed, and started again.
        let wal = wal!("15-overwritten", "0/700000", MB);
        let mut reader = wal.reader("0/701028", 1);
        let records: Vec<WalRecord> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(records[1].lsn, lsn("0/800028"));
        assert_eq!((records[1].rmid, records[1].info), (0, 0xD0)); // OVERWRITE_CONTRECORD
        assert_eq!(reader.end(), lsn("0/8001A0"));
        let summary = commits_after(&mut wal.reader("0/701028", 1), Lsn::ZERO).unwrap();
        assert_eq!((summary.count, summary.end), (3, lsn("0/8001A0")));
    }

    #[test]
    fn a_segment_in_which_a_timeline_begins_is_read_across() {
        let wal = wal!("15-promoted", "0/800000", MB);
        let history = super::super::wal::History::parse(
            Timeline(2),
            include_str!("../../tests/fixtures/wal/00000002.history"),
        )
        .unwrap();
        let switch = history.entries[0].switch;
        let summary = commits_after(&mut wal.reader("0/800058", 2), switch).unwrap();
        assert_eq!((summary.count, summary.end), (2, lsn("0/800350")));
        let all = commits_after(&mut wal.reader("0/800058", 2), Lsn::ZERO).unwrap();
        assert_eq!(all.count, 4);
    }

    #[test]
    fn a_page_of_a_newer_timeline_ends_an_older_one() {
        let mut wal = fifteen();
        wal.at("0/A00004")[0] = 2;
        let mut reader = wal.reader("0/900060", 1);
        assert_eq!(commits_after(&mut reader, Lsn::ZERO).unwrap().end, lsn("0/909310"));
        assert!(matches!(reader.ended(), Some(EndOfWal::Page(at, why))
            if *at == lsn("0/A00000") && why.contains("newer timeline")));
        // and one of an older timeline does not follow a newer one
        let mut wal = fifteen();
        for page in (0..0x10_0000u64).step_by(PAGE_SIZE) {
            wal.at("0/900004")[page as usize] = 2;
        }
        let mut reader = wal.reader("0/900060", 2);
        assert_eq!(commits_after(&mut reader, Lsn::ZERO).unwrap().end, lsn("0/909310"));
    }

    /// Whatever byte is changed in the part that is read, the WAL ends at or before the record it
    /// stands in, and never with a panic.
    #[test]
    fn a_changed_byte_ends_the_wal_where_it_stands() {
        let whole = wal_ends();
        let mut wal = fifteen();
        wal.bytes.truncate(2 * PAGE_SIZE);
        for at in (0x60..0x2400usize).step_by(7) {
            wal.bytes[at] ^= 0x55;
            let last = wal.reader("0/900060", 1).map_while(Result::ok).last().map(|record| record.lsn);
            wal.bytes[at] ^= 0x55;
            let position = Lsn(0x90_0000 + at as u64);
            let padding = whole.iter().any(|(end, next)| *end <= position && position < *next);
            let page_header_padding = position.0 % PAGE >= 20 && position.0 % PAGE < 24;
            if !padding && !page_header_padding {
                assert!(last.is_none_or(|last| last < position), "{position}: read up to {last:?}");
            }
        }
    }

    /// Unpadded end and padded end of each record of the fixture, plus the two bytes of padding in each
    /// record's header, which nothing covers.
    fn wal_ends() -> Vec<(Lsn, Lsn)> {
        let wal = fifteen();
        let mut ends = Vec::new();
        for record in wal.reader("0/900060", 1).map(Result::unwrap) {
            ends.push((Lsn(record.end.0 - 8), record.end));
            ends.push((Lsn(record.lsn.0 + 18), Lsn(record.lsn.0 + 20)));
        }
        ends
    }

    #[test]
    fn a_length_is_not_believed() {
        for length in [1u32, 23, u32::MAX, LONGEST_RECORD, 1 << 30] {
            let mut wal = fifteen();
            wal.at("0/9014F0")[..4].copy_from_slice(&length.to_le_bytes());
            let summary = commits_after(&mut wal.reader("0/900060", 1), Lsn::ZERO).unwrap();
            assert_eq!((summary.count, summary.end), (0, lsn("0/9014F0")), "{length}");
        }
    }

    #[test]
    fn wal_of_older_versions_is_named_and_not_taken_for_its_end() {
        for magic in [0xD066u16, 0xD07E, 0xD093] {
            let mut wal = fifteen();
            wal.at("0/900000")[..2].copy_from_slice(&magic.to_le_bytes());
            let error = commits_after(&mut wal.reader("0/900060", 1), Lsn::ZERO).unwrap_err().to_string();
            assert!(error.contains("a PostgreSQL version before 10"), "{error}");
        }
        let mut wal = fifteen();
        wal.at("0/900000")[..2].copy_from_slice(&[1, 2]);
        let error = commits_after(&mut wal.reader("0/900060", 1), Lsn::ZERO).unwrap_err().to_string();
        assert!(error.contains("its magic number is unknown"), "{error}");
    }

    #[test]
    fn a_page_that_cannot_be_read_is_an_error_and_not_the_end() {
        let wal = fifteen();
        let mut reader = WalReader::new(lsn("0/900060"), Timeline(1), MB, |at| {
            if at == lsn("0/904000") { Err(io::Error::other("the disk is gone")) } else { wal.fetch(at) }
        })
        .unwrap();
        let error = commits_after(&mut reader, Lsn::ZERO).unwrap_err().to_string();
        assert_eq!(error, "could not read the WAL page at 0/904000: the disk is gone");
        assert!(reader.next().is_none());
    }

    #[test]
    fn times_are_shown_in_utc() {
        let cases = [
            (0, "2000-01-01T00:00:00.000000Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (5_097_599_999_999, "2000-02-28T23:59:59.999999Z"),
            (5_184_000_000_000 - 86_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (848_507_702_595_944, "2026-11-20T16:35:02.595944Z"),
        ];
        for (micros, shown) in cases {
            assert_eq!(PgTime(micros).to_string(), shown);
        }
        assert_eq!(PgTime(0).unix_micros(), 946_684_800_000_000);
        let _ = PgTime(i64::MAX).to_string(); // "infinity"
    }

    #[test]
    fn four_billion_timelines_are_not_tried_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let size = 1 << 20;
        for timeline in [1, 100, 70_000] {
            let name = segment_name(Timeline(timeline), Lsn(0), size);
            std::fs::write(directory.path().join(name), vec![timeline as u8; size as usize]).unwrap();
        }
        let first = |timeline| Pages::of(directory.path(), Timeline(timeline), size).get(Lsn(0)).unwrap();
        assert_eq!(first(u32::MAX).unwrap()[0], 70_000u32 as u8);
        assert_eq!(first(69_999).unwrap()[0], 100);
        assert_eq!(first(3).unwrap()[0], 1);
        let mut none = Pages::of(directory.path(), Timeline(u32::MAX), size);
        assert!(none.get(Lsn(size.into())).unwrap().is_none());
    }
}
