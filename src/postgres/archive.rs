//! Owns `pg_dump`'s custom format: an uncompressed archive is read while it streams and written anew, with its data
//! given to a [`Sink`] that compresses it, so that plain `pg_restore` reads the result.
//!
//! Facts: src/bin/pg_dump of PostgreSQL 15 to 18, `pg_backup_archiver.c` (WriteHead, WriteToc, WriteInt, WriteStr),
//! `pg_backup_custom.c` (blocks and chunks), `pg_dump.c` (dumpTableData_copy: what ends a table's data).

use std::collections::HashMap;
use std::io::{self, BufRead};

/// How the data of the new archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    None,
    /// One zlib stream per data entry; of this level, 1 to 9.
    Gzip(u8),
    /// Zstandard frames, one in each chunk; from archive version 1.15 on.
    Zstd,
}

/// Takes the new archive's bytes, in order.
pub trait Sink {
    /// Bytes as they are to stand in the archive.
    fn plain(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// A data entry, or a large object in one, begins.
    fn begin(&mut self) -> io::Result<()>;
    /// Some of its uncompressed data.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// It is over: its last chunk and the chunk of no length behind it are due.
    fn end(&mut self) -> io::Result<()>;
}

/// What went wrong.
#[derive(Debug)]
pub enum Fault {
    /// The old archive could not be read.
    Read(io::Error),
    /// The new one could not be written.
    Write(io::Error),
    /// The old one is not whole, or not one.
    Bad(String),
}

type Result<T> = std::result::Result<T, Fault>;

/// An entry with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `TABLE DATA`, `BLOBS`.
    pub kind: String,
    /// Its schema.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
    /// Rows; only of a table whose data ends as COPY's does, and goes into that very table.
    pub rows: Option<u64>,
    via_root: bool,
    came: bool,
}

/// What the archive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// E.g. (1, 14).
    pub version: (u8, u8),
    /// The database.
    pub database: String,
    /// The server's version, e.g. `15.18 (Debian 15.18-0+deb12u1)`.
    pub server_version: String,
    /// pg_dump's version.
    pub tool_version: String,
    /// Entries with data, in the order of the table of contents.
    pub entries: Vec<Entry>,
    /// Bytes of the old archive.
    pub size: u64,
}

/// No text of PostgreSQL is longer (MaxAllocSize), and no chunk of data.
const LENGTH_LIMIT: i64 = 1 << 30;
/// No database has more objects.
const ENTRIES_LIMIT: i64 = 1 << 28;

/// Reads an archive that is not compressed, gives it to `sink` as one that is, and says what was in it.
pub fn rewrite(from: impl BufRead, packing: Packing, sink: &mut dyn Sink) -> Result<Archive> {
    let mut input = Input { from, size: 0, place: Place::Header, copy: Vec::new() };
    let (mut archive, offset_size) = header(&mut input, packing)?;
    input.pass(sink)?;
    let by_id = contents(&mut input, offset_size, &mut archive, sink)?;
    blocks(&mut input, &by_id, &mut archive, sink)?;
    if let Some(missing) = archive.entries.iter().find(|entry| !entry.came) {
        return Err(Fault::Bad(format!("it ends before {}", data_of(missing))));
    }
    archive.size = input.size;
    Ok(archive)
}

/// Appends an integer as the archive has it: a byte for the sign, then the value, least significant byte first.
pub fn put_int(to: &mut Vec<u8>, value: u32) {
    to.push(0);
    to.extend(value.to_le_bytes());
}

/// Where the reader is, for error texts.
enum Place {
    Header,
    Contents(i64, i64),
    Blocks,
    Data(String),
}

struct Input<R> {
    from: R,
    size: u64,
    place: Place,
    /// What was read of the header and the table of contents, and is to be passed on.
    copy: Vec<u8>,
}

impl<R: BufRead> Input<R> {
    fn bad(&self, what: &str) -> Fault {
        Fault::Bad(match &self.place {
            Place::Header => format!("{what} in its header"),
            Place::Contents(at, all) => format!("{what} in its table of contents, entry {at} of {all}"),
            Place::Blocks => format!("{what} between its blocks of data"),
            Place::Data(of) => format!("{what} in {of}"),
        })
    }

    /// The bytes that can be had at once; none at the end.
    fn here(&mut self) -> Result<&[u8]> {
        self.from.fill_buf().map_err(Fault::Read)
    }

    fn consume(&mut self, bytes: usize) {
        self.from.consume(bytes);
        self.size += bytes as u64;
    }

    /// Reads so many bytes, of which memory is taken only as they come.
    fn bytes(&mut self, mut left: usize, to: &mut Vec<u8>) -> Result<()> {
        while left > 0 {
            let here = self.here()?;
            let taken = here.len().min(left);
            if taken == 0 {
                return Err(self.bad("it ends"));
            }
            to.extend_from_slice(&here[..taken]);
            self.consume(taken);
            left -= taken;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        if let Some(array) = self.here()?.first_chunk::<N>().copied() {
            self.consume(N);
            return Ok(array);
        }
        let mut bytes = Vec::new();
        self.bytes(N, &mut bytes)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    /// An integer, and the bytes that it was written with.
    fn int(&mut self) -> Result<(i64, [u8; 5])> {
        let bytes: [u8; 5] = self.array()?;
        let [sign, a, b, c, d] = bytes;
        let value = i64::from(u32::from_le_bytes([a, b, c, d]));
        match sign {
            0 => Ok((value, bytes)),
            1 => Ok((-value, bytes)),
            _ => Err(self.bad("there is no number where one should be")),
        }
    }

    // What the following three read is passed on as it was.

    fn kept_int(&mut self) -> Result<i64> {
        let (value, bytes) = self.int()?;
        self.copy.extend(bytes);
        Ok(value)
    }

    fn kept_bytes(&mut self, count: usize) -> Result<()> {
        let mut copy = std::mem::take(&mut self.copy);
        self.bytes(count, &mut copy)?;
        self.copy = copy;
        Ok(())
    }

    fn kept_text(&mut self) -> Result<Option<String>> {
        let length = self.kept_int()?;
        if length < 0 {
            return Ok(None);
        }
        if length > LENGTH_LIMIT {
            return Err(self.bad("there is a text that is too long"));
        }
        let mut copy = std::mem::take(&mut self.copy);
        let begin = copy.len();
        self.bytes(length as usize, &mut copy)?;
        let text = String::from_utf8_lossy(&copy[begin..]).into_owned();
        self.copy = copy;
        Ok(Some(text))
    }

    fn pass(&mut self, sink: &mut dyn Sink) -> Result<()> {
        sink.plain(&self.copy).map_err(Fault::Write)?;
        self.copy.clear();
        Ok(())
    }
}

fn header(input: &mut Input<impl BufRead>, packing: Packing) -> Result<(Archive, u8)> {
    let head: [u8; 11] = input.array()?;
    if &head[..5] != b"PGDMP" {
        return Err(Fault::Bad("it does not begin as one of pg_dump's custom format".into()));
    }
    let (major, minor, int_size, offset_size, format) = (head[5], head[6], head[8], head[9], head[10]);
    if major != 1 || !(12..=16).contains(&minor) {
        return Err(Fault::Bad(format!("its version {major}.{minor} is not known (1.12 to 1.16 are)")));
    }
    if int_size != 4 || !(1..=8).contains(&offset_size) || format != 1 {
        return Err(Fault::Bad("its header is not one of the custom format".into()));
    }
    input.copy.extend(head);
    // Since 1.15 the method, before it zlib's level.
    let was = if minor >= 15 { i64::from(input.array::<1>()?[0]) } else { input.int()?.0 };
    if was != 0 {
        return Err(Fault::Bad("it is compressed already".into()));
    }
    match (minor >= 15, packing) {
        (true, Packing::None) => input.copy.push(0),
        (true, Packing::Gzip(_)) => input.copy.push(1),
        (true, Packing::Zstd) => input.copy.push(3),
        (false, Packing::None) => put_int(&mut input.copy, 0),
        (false, Packing::Gzip(level)) => put_int(&mut input.copy, level.into()),
        (false, Packing::Zstd) => {
            return Err(Fault::Bad(format!("its version {major}.{minor} knows no zstd")));
        }
    }
    // When it was made: seconds, minutes, hours, day, month, year, summer time.
    for _ in 0..7 {
        input.kept_int()?;
    }
    let mut text = || Ok(input.kept_text()?.unwrap_or_default());
    let archive = Archive {
        version: (major, minor),
        database: text()?,
        server_version: text()?,
        tool_version: text()?,
        entries: Vec::new(),
        size: 0,
    };
    Ok((archive, offset_size))
}

/// The table of contents; gives each entry with data its place in the list by its id.
fn contents(
    input: &mut Input<impl BufRead>,
    offset_size: u8,
    archive: &mut Archive,
    sink: &mut dyn Sink,
) -> Result<HashMap<i64, usize>> {
    input.place = Place::Contents(0, 0);
    let count = input.kept_int()?;
    if !(0..=ENTRIES_LIMIT).contains(&count) {
        return Err(input.bad("there is an impossible number of entries"));
    }
    let mut by_id = HashMap::new();
    for number in 1..=count {
        input.place = Place::Contents(number, count);
        let id = input.kept_int()?;
        let has_data = input.kept_int()? != 0;
        let entry = toc_entry(input, archive.version.1, offset_size)?;
        if has_data {
            if by_id.insert(id, archive.entries.len()).is_some() {
                return Err(input.bad("there is an id that another one has"));
            }
            archive.entries.push(entry);
        }
        input.pass(sink)?;
    }
    input.pass(sink)?;
    Ok(by_id)
}

/// The definition of a partition's data begins so when its root distributes the rows anew: hash partitions by an enum,
/// whose hashes are of OIDs (dumpTableData, from 16 on).
const VIA_ROOT: &str = "-- load via partition root ";

/// What stands in an entry behind its id and whether it has data.
fn toc_entry(input: &mut Input<impl BufRead>, minor: u8, offset_size: u8) -> Result<Entry> {
    // The catalog's OID and its own.
    input.kept_text()?;
    input.kept_text()?;
    let name = input.kept_text()?.unwrap_or_default();
    let kind = input.kept_text()?.unwrap_or_default();
    // Section; definition, how it is dropped, how it is copied.
    input.kept_int()?;
    let definition = input.kept_text()?.unwrap_or_default();
    input.kept_text()?;
    input.kept_text()?;
    let schema = input.kept_text()?;
    // Tablespace, table access method, kind of relation.
    input.kept_text()?;
    if minor >= 14 {
        input.kept_text()?;
    }
    if minor >= 16 {
        input.kept_int()?;
    }
    // Owner, WITH OIDS; then what it depends on, up to a NULL.
    input.kept_text()?;
    input.kept_text()?;
    while input.kept_text()?.is_some() {}
    // Where its data is: whether that is known, and the offset.
    input.kept_bytes(1 + usize::from(offset_size))?;
    let via_root = definition.starts_with(VIA_ROOT);
    Ok(Entry { kind, schema, name, rows: None, via_root, came: false })
}

const DATA_BLOCK: u8 = 1;
const BLOBS_BLOCK: u8 = 3;

fn blocks(
    input: &mut Input<impl BufRead>,
    by_id: &HashMap<i64, usize>,
    archive: &mut Archive,
    sink: &mut dyn Sink,
) -> Result<()> {
    loop {
        input.place = Place::Blocks;
        if input.here()?.is_empty() {
            return Ok(());
        }
        let [kind] = input.array()?;
        let (id, written) = input.int()?;
        let Some(entry) = by_id.get(&id).map(|at| &mut archive.entries[*at]).filter(|e| !e.came) else {
            return Err(input.bad("there is data of nothing that is in its table of contents"));
        };
        input.place = Place::Data(data_of(entry));
        let mut head = vec![kind];
        head.extend(written);
        sink.plain(&head).map_err(Fault::Write)?;
        match kind {
            DATA_BLOCK => {
                let mut rows = Rows::default();
                chunks(input, sink, |bytes| rows.count(bytes))?;
                entry.rows = if entry.kind == "TABLE DATA" && !entry.via_root { rows.total() } else { None };
            }
            BLOBS_BLOCK => loop {
                let (oid, written) = input.int()?;
                sink.plain(&written).map_err(Fault::Write)?;
                if oid == 0 {
                    break;
                }
                chunks(input, sink, |_| ())?;
            },
            _ => return Err(input.bad("there is an unknown kind of block")),
        }
        entry.came = true;
    }
}

/// Data up to the chunk of no length.
fn chunks(input: &mut Input<impl BufRead>, sink: &mut dyn Sink, mut look: impl FnMut(&[u8])) -> Result<()> {
    sink.begin().map_err(Fault::Write)?;
    loop {
        let (length, _) = input.int()?;
        if length == 0 {
            return sink.end().map_err(Fault::Write);
        }
        if !(0..=LENGTH_LIMIT).contains(&length) {
            return Err(input.bad("there is a chunk of impossible length"));
        }
        let mut left = length as usize;
        while left > 0 {
            let here = input.here()?;
            let taken = here.len().min(left);
            if taken == 0 {
                return Err(input.bad("it ends"));
            }
            look(&here[..taken]);
            sink.data(&here[..taken]).map_err(Fault::Write)?;
            input.consume(taken);
            left -= taken;
        }
    }
}

fn data_of(entry: &Entry) -> String {
    let schema = entry.schema.as_ref().map(|schema| format!("{schema}.")).unwrap_or_default();
    format!("the data of {} {schema}{}", entry.kind, entry.name)
}

/// What pg_dump writes behind the rows of a table.
const COPY_END: &[u8] = b"\\.\n\n\n";

/// Counts the rows in COPY's text format: a line each, as newlines in values are written as `\n`.
#[derive(Default)]
struct Rows {
    lines: u64,
    /// The last bytes, one more than [`COPY_END`] has.
    tail: Vec<u8>,
}

impl Rows {
    fn count(&mut self, bytes: &[u8]) {
        self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let keep = COPY_END.len() + 1;
        let last = &bytes[bytes.len().saturating_sub(keep)..];
        let of_before = (keep - last.len()).min(self.tail.len());
        self.tail.drain(..self.tail.len() - of_before);
        self.tail.extend(last);
    }

    fn total(&self) -> Option<u64> {
        let before = self.tail.strip_suffix(COPY_END)?;
        let at_line_start = before.is_empty() || before == b"\n";
        at_line_start.then(|| self.lines - 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive by hand: version 1.`minor`, these entries, and blocks as they are.
    fn archive(minor: u8, entries: &[(i32, bool, &str, &str)], blocks: &[u8]) -> Vec<u8> {
        let mut bytes = b"PGDMP".to_vec();
        bytes.extend([1, minor, 0, 4, 8, 1]);
        if minor >= 15 {
            bytes.push(0)
        } else {
            put_int(&mut bytes, 0)
        }
        for value in [1, 2, 3, 4, 5, 126, 0] {
            put_int(&mut bytes, value);
        }
        for value in ["shop", "15.18", "18.1"] {
            text(&mut bytes, Some(value));
        }
        put_int(&mut bytes, entries.len() as u32);
        for (id, has_data, kind, name) in entries {
            put_int(&mut bytes, *id as u32);
            put_int(&mut bytes, (*has_data).into());
            for value in ["1259", "16384", name, kind] {
                text(&mut bytes, Some(value));
            }
            put_int(&mut bytes, 3);
            for value in [Some(""), None, Some("COPY …"), Some("public"), None] {
                text(&mut bytes, value);
            }
            if minor >= 14 {
                text(&mut bytes, Some("heap"));
            }
            if minor >= 16 {
                put_int(&mut bytes, u32::from(b'r'));
            }
            for value in [Some("dotcloud"), Some("false"), Some("7"), None] {
                text(&mut bytes, value);
            }
            bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes.extend(blocks);
        bytes
    }

    fn text(to: &mut Vec<u8>, value: Option<&str>) {
        match value {
            None => to.extend([1, 1, 0, 0, 0]),
            Some(value) => {
                put_int(to, value.len() as u32);
                to.extend(value.bytes());
            }
        }
    }

    fn block(kind: u8, id: u32, chunks: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![kind];
        put_int(&mut bytes, id);
        for chunk in chunks {
            put_int(&mut bytes, chunk.len() as u32);
            bytes.extend(*chunk);
        }
        put_int(&mut bytes, 0);
        bytes
    }

    /// Writes data in chunks of seven bytes, not compressed.
    #[derive(Default)]
    struct Collected {
        all: Vec<u8>,
        open: Vec<u8>,
    }

    impl Sink for Collected {
        fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.all.extend(bytes);
            Ok(())
        }
        fn begin(&mut self) -> io::Result<()> {
            self.open.clear();
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.open.extend(bytes);
            Ok(())
        }
        fn end(&mut self) -> io::Result<()> {
            for chunk in self.open.chunks(7) {
                put_int(&mut self.all, chunk.len() as u32);
                self.all.extend(chunk);
            }
            put_int(&mut self.all, 0);
            Ok(())
        }
    }

    fn rewritten(bytes: &[u8], packing: Packing) -> Result<(Archive, Vec<u8>)> {
        let mut sink = Collected::default();
        // A small buffer: every number and text is cut somewhere.
        let archive = rewrite(io::BufReader::with_capacity(3, bytes), packing, &mut sink)?;
        Ok((archive, sink.all))
    }

    const ENTRIES: &[(i32, bool, &str, &str)] = &[
        (11, false, "TABLE", "a"),
        (12, true, "TABLE DATA", "a"),
        (13, true, "TABLE DATA", "empty"),
        (14, true, "BLOBS", "BLOBS"),
        (15, false, "INDEX", "i"),
    ];

    fn whole(minor: u8) -> Vec<u8> {
        let mut blocks = block(1, 12, &[b"1\t\\.\n", b"2\tx\\n", b"y\n3\t\n", b"\\.\n\n\n"]);
        blocks.extend(block(1, 13, &[b"\\.\n\n\n"]));
        let mut blobs = vec![3];
        put_int(&mut blobs, 14);
        // An OID above 2^31 is written as a negative number.
        blobs.extend([1, 0xf0, 0xff, 0xff, 0x7f]);
        blobs.extend(&block(0, 0, &[b"large object"])[6..]);
        put_int(&mut blobs, 0);
        blocks.extend(blobs);
        archive(minor, ENTRIES, &blocks)
    }

    #[test]
    fn all_versions_are_read_and_passed_on() {
        for minor in 12..=16 {
            let bytes = whole(minor);
            let (archive, written) = rewritten(&bytes, Packing::None).unwrap();
            assert_eq!(archive.version, (1, minor));
            assert_eq!((&*archive.database, &*archive.server_version), ("shop", "15.18"));
            assert_eq!((&*archive.tool_version, archive.size), ("18.1", bytes.len() as u64));
            let rows: Vec<_> = archive.entries.iter().map(|e| (&*e.name, e.rows)).collect();
            assert_eq!(rows, [("a", Some(3)), ("empty", Some(0)), ("BLOBS", None)]);
            // What was written says the same, and does not change any more.
            let (again, same) = rewritten(&written, Packing::None).unwrap();
            assert_eq!((again.entries, same), (archive.entries, written));
        }
    }

    #[test]
    fn the_header_says_how_it_is_compressed() {
        let method = |minor, packing| rewritten(&whole(minor), packing).unwrap().1[11..16].to_vec();
        assert_eq!(method(16, Packing::Gzip(3))[0], 1);
        assert_eq!(method(15, Packing::Zstd)[0], 3);
        assert_eq!(method(14, Packing::Gzip(3)), [0, 3, 0, 0, 0]);
        assert!(matches!(rewritten(&whole(14), Packing::Zstd), Err(Fault::Bad(_))));
    }

    #[test]
    fn every_cut_is_found() {
        for minor in [12, 16] {
            let bytes = whole(minor);
            for end in 0..bytes.len() {
                let Err(Fault::Bad(why)) = rewritten(&bytes[..end], Packing::None) else {
                    panic!("cut after {end} of {} bytes", bytes.len())
                };
                assert!(why.contains("it ends"), "{end}: {why}");
            }
        }
        let cut = rewritten(&whole(14)[..whole(14).len() - 8], Packing::None).unwrap_err();
        assert!(matches!(cut, Fault::Bad(why) if why == "it ends in the data of BLOBS public.BLOBS"));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |bytes: &[u8]| match rewritten(bytes, Packing::None) {
            Err(Fault::Bad(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(refused(b"-- PostgreSQL database dump\n").contains("does not begin"));
        assert!(refused(&whole(17)).contains("1.17 is not known"));
        let stray = archive(14, ENTRIES, &block(1, 99, &[b"x"]));
        assert!(refused(&stray).contains("data of nothing"));
        let mut twice = whole(14);
        twice.extend(block(1, 12, &[b"x"]));
        assert!(refused(&twice).contains("data of nothing"));
        let mut long = archive(14, ENTRIES, &[]);
        long.extend([1, 0, 12, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]);
        assert!(refused(&long).contains("impossible length"));
        let mut compressed = whole(16);
        compressed[11] = 1;
        assert!(refused(&compressed).contains("compressed already"));
        // A length that nothing follows takes no memory.
        let mut text = archive(14, &[], &[])[..16 + 35].to_vec();
        put_int(&mut text, 1 << 30);
        assert_eq!(refused(&text), "it ends in its header");
    }

    #[test]
    fn rows_are_lines_up_to_the_terminator() {
        let count = |pieces: &[&[u8]]| {
            let mut rows = Rows::default();
            pieces.iter().for_each(|piece| rows.count(piece));
            rows.total()
        };
        assert_eq!(count(&[b"\\.\n\n\n"]), Some(0));
        // A table without columns: its rows are empty lines.
        assert_eq!(count(&[b"\n", b"\n", b"\\.\n\n\n"]), Some(2));
        assert_eq!(count(&[b"a\nb\n\\.\n", b"\n", b"\n"]), Some(2));
        assert_eq!(count(&[b"a\n"]), None);
        assert_eq!(count(&[b"a\\.\n\n\n"]), None);
        assert_eq!(count(&[]), None);
    }
}
