//! The rows: COPY's messages go from one server to the other as they are, or nowhere, and are added up on the way.

use super::super::Context;
use super::units::{self, Form, Name, Table, Unit, said_name};
use crate::error::{Error, Result};
use crate::postgres::version::PgVersion;
use crate::process;
use crate::sql::{self, Target};
use crate::wire::{Fault, Wire};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use twox_hash::XxHash3_128;

/// Rows, and the sum of their hashes: it does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Sum of the XXH3-128 of each row's bytes, modulo 2^128.
    pub sum: u128,
}

impl Tally {
    /// One more.
    pub fn add_hash(&mut self, hash: u128) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash);
    }

    /// All of another one's.
    pub fn add(&mut self, other: Tally) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What stands in front of the first row in binary format: a signature of 11 bytes, flags, the length of nothing.
const HEAD: usize = 19;
/// And behind the last one, in a message of its own.
const TRAILER: &[u8] = &[0xff, 0xff];
/// A longer message is hashed as it comes, a shorter one when all of it is there.
const LONG: usize = 64 << 10;
/// The other side is asked so often whether it has said something.
const ASK_EVERY: usize = 1 << 20;

/// Reads the heads of COPY's messages, one row in each (copyto.c), and hashes what is in them.
struct Scan {
    binary: bool,
    at_start: bool,
    /// Of a long message: the hash up to here, and what is still to come.
    long: Option<(XxHash3_128, usize)>,
    tally: Tally,
}

impl Scan {
    fn new(binary: bool) -> Scan {
        Scan { binary, at_start: true, long: None, tally: Tally::default() }
    }

    /// Rows have been seen, or the begin of one.
    fn has_rows(&self) -> bool {
        self.tally.rows > 0 || self.long.is_some()
    }

    fn row(&mut self, bytes: &[u8]) {
        if !(self.binary && bytes == TRAILER) {
            self.tally.add_hash(XxHash3_128::oneshot(bytes));
        }
    }

    /// How many bytes at the front are rows, and whether another message stands behind them.
    fn take(&mut self, input: &[u8]) -> (usize, bool) {
        let mut at = 0;
        loop {
            let here = &input[at..];
            if let Some((mut hasher, left)) = self.long.take() {
                let n = left.min(here.len());
                hasher.write(&here[..n]);
                at += n;
                if n < left {
                    self.long = Some((hasher, left - n));
                    return (at, false);
                }
                self.tally.add_hash(hasher.finish_128());
                continue;
            }
            let Some(head) = here.first_chunk::<5>() else { return (at, false) };
            if head[0] != b'd' {
                return (at, true);
            }
            let size = (u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize).saturating_sub(4);
            let payload = &here[5..];
            if payload.len() < size.min(LONG) {
                return (at, false);
            }
            let skip = if self.at_start && self.binary { HEAD.min(size) } else { 0 };
            self.at_start = false;
            if payload.len() >= size {
                self.row(&payload[skip..size]);
                at += 5 + size;
            } else {
                let mut hasher = XxHash3_128::new();
                hasher.write(&payload[skip..]);
                self.long = Some((hasher, size - payload.len()));
                return (input.len(), false);
            }
        }
    }
}

/// Which side it was.
enum At {
    Source,
    Side,
}

/// Runs one COPY to its end. Nothing is said to the other side when there are no rows.
fn pump(
    source: &mut Wire,
    out: &str,
    binary: bool,
    mut side: Option<(&mut Wire, &str)>,
    stop: &AtomicBool,
    count: &dyn Fn(u64),
) -> std::result::Result<(Tally, u64), (At, Fault)> {
    let of_source = |fault| (At::Source, fault);
    source.begin_copy(out).map_err(of_source)?;
    let (mut scan, mut begun, mut bytes, mut unasked) = (Scan::new(binary), false, 0, 0);
    loop {
        if stop.load(Ordering::Relaxed) || process::check_interrupt().is_err() {
            return Err((At::Source, Fault::Interrupted));
        }
        let (n, is_over) = scan.take(source.buffered());
        if n > 0 {
            if let Some((side, copy_in)) = side.as_mut().filter(|_| scan.has_rows()) {
                let of_side = |fault| (At::Side, fault);
                if !begun {
                    begun = true;
                    side.begin_copy(copy_in).map_err(of_side)?;
                }
                side.write_all(&source.buffered()[..n]).map_err(of_side)?;
                unasked += n;
                if unasked >= ASK_EVERY {
                    unasked = 0;
                    side.objection().map_err(of_side)?;
                }
            }
            source.consume(n);
            bytes += n as u64;
            count(n as u64);
        }
        if is_over {
            break;
        }
        source.read_more().map_err(of_source)?;
    }
    source.finish().map_err(of_source)?;
    if let Some((side, _)) = side.filter(|_| begun) {
        side.end_copy().map_err(|fault| (At::Side, fault))?;
    }
    Ok((scan.tally, bytes))
}

/// Settings under which a session reads, as pg_dump has them, and a snapshot.
pub fn reading(version: PgVersion, snapshot: &str) -> String {
    // Of one query with several statements the first one begins the transaction.
    let mut sql = String::from("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; ");
    sql += &format!("SET TRANSACTION SNAPSHOT {}; ", sql::literal(snapshot));
    sql += &settings(version);
    if version.has_row_security() {
        sql += "SET row_security = off; ";
    }
    sql + "SET lock_timeout = '10s'; SET extra_float_digits = 3; SET TimeZone = 'UTC'; SET bytea_output = 'hex'"
}

/// Settings under which a session fills, as pg_restore has them.
pub fn writing(version: PgVersion) -> String {
    // What a crash would lose is made anew anyway. Triggers and rules do not run in this role.
    settings(version)
        + "SET lock_timeout = '300s'; SET default_transaction_read_only = off; SET synchronous_commit = off; \
           SET session_replication_role = replica"
}

fn settings(version: PgVersion) -> String {
    // Notices of a function in a CHECK are read by nobody, and would fill the way back until nothing goes forth.
    let mut sql = String::from(
        "SET statement_timeout = 0; SET DateStyle = ISO; SET IntervalStyle = postgres; SET lc_monetary = 'C'; \
         SET client_min_messages = error; SET xmloption = content; SET array_nulls = on; \
         SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'idle_session_timeout'; \
         SELECT pg_catalog.set_config('search_path', '', false); ",
    );
    sql += &format!("{}; ", sql::NOTICED);
    if version.has_idle_in_transaction_timeout() {
        sql += "SET idle_in_transaction_session_timeout = 0; ";
    }
    if version.has_transaction_timeout() {
        sql += "SET transaction_timeout = 0; ";
    }
    sql
}

/// What goes where.
pub struct Rows<'a> {
    /// The server that is read.
    pub source: &'a Target,
    /// Its version.
    pub version: PgVersion,
    /// What its sessions see.
    pub snapshot: &'a str,
    /// The server that is filled, with its version; none: the rows are only added up.
    pub side: Option<(&'a Target, PgVersion)>,
    /// The tables.
    pub tables: &'a [Table],
    /// How each of them is read.
    pub forms: &'a [Form],
    /// Connections to each side.
    pub jobs: usize,
}

/// What came of it.
pub struct Counted {
    /// By the name under which a table is counted.
    pub tallies: BTreeMap<Name, Tally>,
    /// Bytes that were read.
    pub bytes: u64,
}

fn failed(what: String, side: &str, fault: Fault) -> Error {
    let is_full = matches!(&fault, Fault::Server { code, .. } if code == "53100");
    match fault {
        Fault::Interrupted => Error::Interrupted,
        fault => Error::CopyFailed { what, side: side.into(), why: fault.to_string(), is_full },
    }
}

impl Rows<'_> {
    /// Reads them all.
    pub fn run(&self, context: Context) -> Result<Counted> {
        let units = units::units(self.tables, self.jobs);
        let jobs = self.jobs.clamp(1, units.len().max(1));
        let tallies =
            self.tables.iter().map(|table| (table.counted_as().clone(), Tally::default())).collect();
        let counted = Mutex::new(Counted { tallies, bytes: 0 });
        let units = Mutex::new(VecDeque::from(units));
        let (stop, first) = (Arc::new(AtomicBool::new(false)), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    if let Err(error) = self.work(context, &units, &counted, &stop) {
                        // The others end by it, and what they say is not the cause.
                        if !stop.swap(true, Ordering::Relaxed) {
                            *first.lock().expect("no panic") = Some(error);
                        }
                    }
                });
            }
        });
        process::check_interrupt()?;
        match first.into_inner().expect("no panic") {
            Some(error) => Err(error),
            None => Ok(counted.into_inner().expect("no panic")),
        }
    }

    fn work(
        &self,
        context: Context,
        units: &Mutex<VecDeque<Unit>>,
        counted: &Mutex<Counted>,
        stop: &Arc<AtomicBool>,
    ) -> Result<()> {
        let begin = |target: &Target, settings: String| -> Result<Wire> {
            let mut wire = sql::raw(target)?;
            wire.set_stop(stop.clone());
            wire.query(&settings).map_err(|fault| match fault {
                Fault::Interrupted => Error::Interrupted,
                fault => Error::Sql { label: target.label.clone(), why: fault.to_string() },
            })?;
            Ok(wire)
        };
        let mut source = begin(self.source, reading(self.version, self.snapshot))?;
        let mut side = match self.side {
            Some((target, version)) => Some((begin(target, writing(version))?, target)),
            None => None,
        };
        loop {
            let Some(unit) = units.lock().expect("no panic").pop_front() else { return Ok(()) };
            let (table, form) = (&self.tables[unit.table], &self.forms[unit.table]);
            context.progress.detail(format!("rows of {}", said_name(&table.name)));
            let wrong = |(at, fault)| {
                let label = match (at, self.side) {
                    (At::Side, Some((target, _))) => &target.label,
                    _ => &self.source.label,
                };
                failed(format!("the rows of {}", said_name(&table.name)), label, fault)
            };
            let count = |n| context.progress.add(n);
            let copy_in = units::copy_in(table, &unit, form);
            let copy_out = units::copy_out(table, &unit, form);
            let (tally, bytes) = match &mut side {
                // As they are stored, which is not as they are compared.
                Some((side, _)) if form.rounded => {
                    let exact = Form { rounded: false, ..form.clone() };
                    let (exact_out, exact_in) =
                        (units::copy_out(table, &unit, &exact), units::copy_in(table, &unit, &exact));
                    let (_, bytes) =
                        pump(&mut source, &exact_out, form.binary, Some((side, &exact_in)), stop, &count)
                            .map_err(wrong)?;
                    (pump(&mut source, &copy_out, form.binary, None, stop, &|_| {}).map_err(wrong)?.0, bytes)
                }
                Some((side, _)) => {
                    pump(&mut source, &copy_out, form.binary, Some((side, &copy_in)), stop, &count)
                        .map_err(wrong)?
                }
                None => pump(&mut source, &copy_out, form.binary, None, stop, &count).map_err(wrong)?,
            };
            let mut counted = counted.lock().expect("no panic");
            counted.bytes += bytes;
            counted.tallies.entry(table.counted_as().clone()).or_default().add(tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'd'];
        bytes.extend((payload.len() as u32 + 4).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Whatever the pieces in which they come.
    fn scanned(binary: bool, stream: &[u8], step: usize) -> Tally {
        let (mut scan, mut buffer, mut rest) = (Scan::new(binary), Vec::new(), stream);
        loop {
            let (n, is_over) = scan.take(&buffer);
            buffer.drain(..n);
            if is_over {
                assert_eq!(buffer[0], b'c');
                return scan.tally;
            }
            let n = step.min(rest.len());
            assert!(n > 0, "it wants more than there is");
            buffer.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
        }
    }

    #[test]
    fn rows_are_added_up_however_they_come() {
        let rows = [b"\x00\x01".repeat(7), vec![7; 200_000], vec![], vec![9; LONG], b"x".to_vec()];
        let mut expected = Tally::default();
        rows.iter().for_each(|row| expected.add_hash(XxHash3_128::oneshot(row)));
        let (mut text, mut binary) = (Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            text.extend(message(row));
            let head = if i == 0 { b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec() } else { Vec::new() };
            binary.extend(message(&[head, row.clone()].concat()));
        }
        binary.extend(message(TRAILER));
        text.extend(b"c\0\0\0\x04");
        binary.extend(b"c\0\0\0\x04");
        for step in [1, 3, 1000, 70_000, 1 << 20] {
            assert_eq!(scanned(false, &text, step), expected, "{step}");
            assert_eq!(scanned(true, &binary, step), expected, "{step}");
        }
    }

    #[test]
    fn an_empty_table_has_no_rows() {
        let mut binary = message(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\xff\xff");
        binary.extend(b"c\0\0\0\x04");
        assert_eq!(scanned(true, &binary, 4), Tally::default());
        assert_eq!(scanned(false, b"c\0\0\0\x04", 4), Tally::default());
        // A row without columns is one.
        let mut rows = message(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\0");
        rows.extend([message(b"\0\0"), message(TRAILER), b"c\0\0\0\x04".to_vec()].concat());
        assert_eq!(scanned(true, &rows, 4).rows, 2);
    }
}
