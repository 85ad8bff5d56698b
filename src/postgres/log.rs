//! Owns the text of the server's log: `log_line_prefix`, csvlog, jsonlog, which lines make one entry, what
//! a slow statement looks like, and what must not be shown. Bytes go in as they come, entries come out.

use super::time::clock;
use crate::error::printable;
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;

/// One thing that the server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// When, in microseconds since 1970: in `zone`, or in UTC where there is none.
    pub time: Option<i64>,
    /// The abbreviation of a zone, when it is not known to be UTC.
    pub zone: Option<String>,
    /// Which process.
    pub pid: Option<i32>,
    /// `LOG`, `ERROR`, …; [`FOREIGN`] for a line that is not the server's.
    pub severity: String,
    /// What.
    pub message: String,
    /// `DETAIL`, `HINT`, `STATEMENT`, … with their texts.
    pub attached: Vec<(String, String)>,
    /// Whose session.
    pub user: Option<String>,
    /// In which database.
    pub database: Option<String>,
    /// Under what name.
    pub application: Option<String>,
}

/// The "severity" of what is not in the log's format: archive commands, libraries and the shell that starts
/// the server write to its stderr too.
pub const FOREIGN: &str = "STDERR";

/// What belongs to the entry before it (src/backend/utils/error/elog.c, send_message_to_server_log).
const ATTACHED: &[&str] = &["DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "BACKTRACE", "STATEMENT"];

/// How grave an entry is, from the one who reads: unlike in `log_min_messages`, `LOG` is not above `ERROR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// DEBUG1 to DEBUG5.
    Debug,
    /// LOG and INFO.
    Log,
    /// NOTICE.
    Notice,
    /// WARNING.
    Warning,
    /// ERROR: a statement failed.
    Error,
    /// FATAL: a session ended.
    Fatal,
    /// PANIC: all of them did.
    Panic,
}

impl Entry {
    /// How grave; none where `lc_messages` has given the severity another name.
    pub fn level(&self) -> Option<Level> {
        Some(match self.severity.as_str() {
            "LOG" | "INFO" => Level::Log,
            "NOTICE" => Level::Notice,
            "WARNING" => Level::Warning,
            "ERROR" => Level::Error,
            "FATAL" => Level::Fatal,
            "PANIC" => Level::Panic,
            other if other.starts_with("DEBUG") => Level::Debug,
            _ => return None,
        })
    }

    /// Milliseconds of a statement: `duration: 65.232 ms  statement: …`, `… execute <unnamed>: …`,
    /// `… plan:`. The word before the number is translated by `lc_messages`, its form is not: it stands
    /// first, has three decimals and ` ms` after it.
    pub fn duration(&self) -> Option<f64> {
        let (word, rest) = self.message.split_once(": ")?;
        if word.len() > 40 || word.contains(|c: char| c.is_ascii_digit() || c == '\n') {
            return None;
        }
        let (number, _) = rest.split_once(" ms")?;
        let (whole, decimals) = number.split_once('.')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (digits(whole) && digits(decimals) && decimals.len() == 3).then(|| number.parse().ok())?
    }

    /// Passwords masked: see [`mask_passwords`].
    pub fn masked(mut self) -> Entry {
        let texts = std::iter::once(&mut self.message).chain(self.attached.iter_mut().map(|(_, text)| text));
        for text in texts {
            if let Some(masked) = mask_passwords(text) {
                *text = masked;
            }
        }
        self
    }

    /// Message and attachments on one line. A line break with the indentation after it becomes one space:
    /// statements are laid out in lines, and `\n  ` between the words makes them hard to read. Whoever
    /// wants the statement as it was takes it from `--json`. Other control characters are escaped, so that
    /// nothing in a log moves the reader's terminal.
    pub fn one_line(&self) -> String {
        let mut line = one_line(&self.message);
        for (label, text) in &self.attached {
            let _ = write!(line, "  {label}:  {}", one_line(text));
        }
        line
    }
}

/// `text` on one line, as [`Entry::one_line`] says.
pub fn one_line(text: &str) -> String {
    let lines = text.split('\n').map(|line| line.trim_matches(['\r', '\t', ' '])).filter(|l| !l.is_empty());
    printable(&lines.collect::<Vec<_>>().join(" ").replace('\t', " "))
}

/// `text` with `***` in place of what stands behind the word PASSWORD as a literal (`ALTER ROLE … PASSWORD
/// 'x'`, `E'x'`, `$$x$$`) or, after `=`, as a word (`password=x` in a connection string); `None` when there
/// is nothing to mask. It does not know SQL: a password in a bind parameter (`$1`) or behind a comment is not
/// recognised, and a harmless `WHERE password = 'x'` is masked too.
pub fn mask_passwords(text: &str) -> Option<String> {
    const WORD: &str = "password";
    let lower = text.to_ascii_lowercase();
    let mut masked = String::new();
    let mut done = 0;
    let mut from = 0;
    while let Some(found) = lower[from..].find(WORD) {
        let after = from + found + WORD.len();
        from = after;
        let rest = &text[after..];
        let equals = rest.trim_start().strip_prefix('=');
        let value = equals.unwrap_or(rest).trim_start();
        let begin = text.len() - value.len();
        // No space and no "=": a longer word, such as "passwords" or a quoted name.
        if let Some(length) = literal_length(value).or_else(|| equals.and_then(|_| word_length(value))) {
            masked.push_str(&text[done..begin]);
            masked.push_str("'***'");
            done = begin + length;
            from = done;
        }
    }
    (done > 0).then(|| masked + &text[done..])
}

/// How long the string literal is that `text` begins with. One that does not end is cut: it is all of it.
fn literal_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let prefix = match bytes {
        [b'e' | b'E' | b'n' | b'N', b'\'', ..] => 1,
        [b'u' | b'U', b'&', b'\'', ..] => 2,
        _ => 0,
    };
    let body = &text[prefix..];
    if let Some(behind) = body.strip_prefix('$') {
        let end = behind.find(|c: char| !c.is_alphanumeric() && c != '_')? + 1;
        let tag = body.get(..end + 1).filter(|tag| tag.ends_with('$'))?;
        if tag.as_bytes()[1].is_ascii_digit() {
            return None;
        }
        let closing = body[tag.len()..].find(tag);
        return Some(closing.map_or(text.len(), |at| at + 2 * tag.len()));
    }
    let quotes = body.bytes().take_while(|b| *b == b'\'').count();
    if quotes == 0 {
        return None;
    }
    // A literal inside of a literal: EXECUTE 'ALTER ROLE a PASSWORD ''x'''.
    let next = body[quotes..].chars().next();
    if quotes % 2 == 0 && next.is_some_and(|c| !c.is_whitespace() && !";,)".contains(c)) {
        let closing = body[quotes..].find(&"'".repeat(quotes));
        return Some(closing.map_or(text.len(), |at| prefix + at + 2 * quotes));
    }
    let mut at = prefix + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if matches!(bytes[0], b'e' | b'E') => at += 2,
            b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
            b'\'' => return Some(at + 1),
            _ => at += 1,
        }
    }
    Some(text.len())
}

/// How long an unquoted value of a connection string is.
fn word_length(text: &str) -> Option<usize> {
    if text.starts_with('$') {
        return None;
    }
    let ends = |c: char| c.is_whitespace() || "'\",;)".contains(c);
    Some(text.find(ends).unwrap_or(text.len())).filter(|length| *length > 0)
}

// ---- log_line_prefix

enum Token {
    Literal(String),
    /// `%q`: processes that are no sessions stop here.
    Stop,
    /// An escape and its padding, negative for spaces behind it.
    Field(char, i32),
}

/// A `log_line_prefix`, as something to recognise.
pub struct Prefix(Vec<Token>);

/// What a line began with.
#[derive(Default)]
struct Head<'a> {
    time: Option<i64>,
    zone: Option<&'a str>,
    pid: Option<i32>,
    user: Option<&'a str>,
    database: Option<&'a str>,
    application: Option<&'a str>,
    severity: &'a str,
}

/// Longest value of an escape that has no form of its own; names have 63 bytes, host names 255.
const LONGEST_VALUE: usize = 300;

impl Prefix {
    /// Reads the setting. Escapes that no version knows stand for anything.
    pub fn new(setting: &str) -> Prefix {
        let mut tokens = Vec::new();
        let mut literal = String::new();
        let mut chars = setting.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let mut width = String::new();
            while let Some(digit) = chars.next_if(|c| c.is_ascii_digit() || (*c == '-' && width.is_empty())) {
                width.push(digit);
            }
            let token = match chars.next() {
                None => break,
                Some('%') => {
                    literal.push('%');
                    continue;
                }
                Some('q') => Token::Stop,
                Some(escape) => Token::Field(escape, width.parse().unwrap_or(0)),
            };
            if !literal.is_empty() {
                tokens.push(Token::Literal(std::mem::take(&mut literal)));
            }
            tokens.push(token);
        }
        if !literal.is_empty() {
            tokens.push(Token::Literal(literal));
        }
        Prefix(tokens)
    }

    /// Whether lines say when they were written.
    pub fn has_time(&self) -> bool {
        self.0.iter().any(|token| matches!(token, Token::Field('m' | 't' | 'n', _)))
    }

    /// What the line begins with, and its message.
    fn split<'a>(&self, line: &'a str) -> Option<(Head<'a>, &'a str)> {
        let mut head = Head::default();
        let at = walk(&self.0, line, 0, &mut head, &mut HashSet::new())?;
        Some((head, &line[at..]))
    }
}

/// Matches the tokens from `at` on and the severity behind them; gives where the message begins. `failed`
/// remembers what was tried in vain, so that several values without a form cost no more than the product
/// of line and prefix.
fn walk<'a>(
    tokens: &[Token],
    line: &'a str,
    at: usize,
    head: &mut Head<'a>,
    failed: &mut HashSet<(usize, usize)>,
) -> Option<usize> {
    let Some((token, others)) = tokens.split_first() else { return severity(line, at, head) };
    match token {
        Token::Literal(text) => {
            line[at..].starts_with(text).then(|| walk(others, line, at + text.len(), head, failed))?
        }
        Token::Stop => severity(line, at, head).or_else(|| walk(others, line, at, head, failed)),
        Token::Field(escape, width) => {
            let padding = |text: &str| text.len() - text.trim_start_matches(' ').len();
            let begin = if *width > 0 { at + padding(&line[at..]) } else { at };
            let value = &line[begin..];
            let wide = |length: usize| match *width {
                0.. => length,
                width => length.max(width.unsigned_abs() as usize),
            };
            let run = |allowed: fn(u8) -> bool| value.bytes().take_while(|b| allowed(*b)).count();
            let length = match escape {
                'm' | 't' | 's' => {
                    let (micros, length) = clock(value)?;
                    let zone = zone_of(value.get(length + 1..)?);
                    if *escape != 's' {
                        (head.time, head.zone) = (Some(micros), Some(zone));
                    }
                    length + 1 + zone.len()
                }
                'n' => {
                    let length = run(|b| b.is_ascii_digit() || b == b'.');
                    let (seconds, millis) = value[..length].split_once('.')?;
                    let micros = format!("{seconds}{millis:0<6}").parse().ok()?;
                    (head.time, head.zone) = (Some(micros), None);
                    length
                }
                'p' => {
                    let length = run(|b| b.is_ascii_digit());
                    head.pid = Some(value[..length].parse().ok()?);
                    length
                }
                'l' | 'x' | 'P' | 'Q' => run(|b| b.is_ascii_digit() || b == b'-'),
                'c' => run(|b| b.is_ascii_hexdigit() || b == b'.'),
                'e' => run(|b| b.is_ascii_alphanumeric()).min(5),
                _ => return walk_anything(*escape, at, others, line, head, failed),
            };
            let end = begin + wide(length);
            line.get(begin..end)?;
            walk(others, line, end, head, failed)
        }
    }
}

/// As [`walk`], for an escape whose value may be anything: the shortest that lets the rest match.
fn walk_anything<'a>(
    escape: char,
    at: usize,
    others: &[Token],
    line: &'a str,
    head: &mut Head<'a>,
    failed: &mut HashSet<(usize, usize)>,
) -> Option<usize> {
    if !failed.insert((others.len(), at)) {
        return None;
    }
    let longest = (at + LONGEST_VALUE).min(line.len());
    for end in (at..=longest).filter(|end| line.is_char_boundary(*end)) {
        if let Some(message) = walk(others, line, end, head, failed) {
            let value = Some(line[at..end].trim()).filter(|v| !v.is_empty() && *v != "[unknown]");
            match escape {
                'u' => head.user = value,
                'd' => head.database = value,
                'a' => head.application = value,
                _ => {}
            }
            return Some(message);
        }
    }
    None
}

/// The abbreviation (`CET`) or offset (`+03`) that `text` begins with.
fn zone_of(text: &str) -> &str {
    let is_offset = text.starts_with(['+', '-']);
    let of_zone = |c: char| if is_offset { c.is_ascii_digit() || c == ':' } else { c.is_ascii_alphabetic() };
    let sign = usize::from(is_offset);
    let length = text[sign..].find(|c: char| !of_zone(c)).map_or(text.len(), |end| end + sign);
    // %m: would give its colon to an offset.
    text[..length].trim_end_matches(':')
}

/// `LOG:  ` at `at`, in whatever language; gives where the message begins.
fn severity<'a>(line: &'a str, at: usize, head: &mut Head<'a>) -> Option<usize> {
    let word = &line[at..at + line[at..].find(|c: char| !c.is_alphanumeric())?];
    let behind = line[at + word.len()..].trim_start_matches([' ', '\u{a0}']);
    let length = word.chars().count();
    if !(3..=16).contains(&length) || word.chars().any(char::is_lowercase) {
        return None;
    }
    // The message may be empty, and then an editor or a pipe may have taken the spaces.
    let message = behind.strip_prefix(":  ").or_else(|| behind.strip_prefix(':').filter(|m| m.is_empty()))?;
    head.severity = word;
    Some(line.len() - message.len())
}

// ---- records

/// In which format a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `log_destination = 'jsonlog'` (15).
    Json,
    /// `log_destination = 'csvlog'`.
    Csv,
    /// `log_destination = 'stderr'`.
    Stderr,
}

/// A record that is longer is cut: no log may fill the memory of the one who reads it.
const LONGEST_RECORD: usize = 16 << 20;
/// A session says nothing for long; its last entry is not kept back until it speaks again.
const MOST_PENDING: usize = 64;

/// Turns the bytes of a log into entries.
pub struct Decoder {
    format: Format,
    prefixes: Vec<Prefix>,
    bytes: Vec<u8>,
    /// Up to where `bytes` holds no end of a record, and whether that is inside of quotes.
    scanned: usize,
    quoted: bool,
    /// What comes before the first record is the end of one that began earlier.
    seeking: bool,
    pending: VecDeque<Pending>,
    /// Which of the pending entries a continuation line belongs to.
    last: Option<u64>,
    next: u64,
}

struct Pending {
    number: u64,
    entry: Entry,
    complete: bool,
    settled: bool,
}

impl Decoder {
    /// For a log of this format; `prefix` is `log_line_prefix`. `seeking` when the bytes may begin amid a
    /// record, which is then left out.
    pub fn new(format: Format, prefix: &str, seeking: bool) -> Decoder {
        // Lines from before the setting was changed, or read: PostgreSQL's default, Debian's, and any that
        // begins like them.
        let prefixes = [prefix, "%m [%p] ", "%m [%p] %q%u@%d ", "%m [%p] %q%i "];
        Decoder {
            format,
            prefixes: prefixes.iter().map(|prefix| Prefix::new(prefix)).collect(),
            bytes: Vec::new(),
            scanned: 0,
            quoted: false,
            seeking,
            pending: VecDeque::new(),
            last: None,
            next: 0,
        }
    }

    /// Takes more of the log; entries that are complete now are handed over.
    pub fn feed(&mut self, bytes: &[u8], give: &mut dyn FnMut(Entry)) {
        self.bytes.extend_from_slice(bytes);
        let mut done = 0;
        while let Some(end) = self.next_end(done) {
            done = self.record(done, end, give);
            (self.scanned, self.quoted) = (done, false);
        }
        self.bytes.drain(..done);
        self.scanned -= done;
        self.drain(give);
    }

    /// Time passes and nothing comes: what was pending at the last call too is complete. The server writes
    /// an entry with its DETAIL and STATEMENT in one piece, so two calls some tenths of a second apart do.
    pub fn settle(&mut self, give: &mut dyn FnMut(Entry)) {
        let growing = if self.bytes.is_empty() { None } else { self.last };
        for pending in &mut self.pending {
            pending.complete |= pending.settled && growing != Some(pending.number);
            pending.settled = true;
        }
        self.drain(give);
    }

    /// The log has ended: what there is of its last record is one.
    pub fn finish(&mut self, give: &mut dyn FnMut(Entry)) {
        if !self.bytes.is_empty() {
            let rest = std::mem::take(&mut self.bytes);
            match self.format {
                Format::Stderr => self.line(&String::from_utf8_lossy(&rest)),
                _ if self.seeking => {}
                format => self.add(parsed(format, &rest).unwrap_or_else(|| foreign(&rest))),
            }
        }
        (self.scanned, self.quoted, self.last) = (0, false, None);
        self.pending.iter_mut().for_each(|pending| pending.complete = true);
        self.drain(give);
    }

    /// Where the record ends that begins at `from`: behind its line break, if that has come.
    fn next_end(&mut self, from: usize) -> Option<usize> {
        for at in self.scanned..self.bytes.len() {
            match self.bytes[at] {
                // A doubled quote opens and closes, so that it counts for nothing.
                b'"' if self.format == Format::Csv => self.quoted = !self.quoted,
                b'\n' if !self.quoted || !self.begins_csv(from) => return Some(at + 1),
                _ => {}
            }
        }
        self.scanned = self.bytes.len();
        (self.bytes.len() - from > LONGEST_RECORD).then_some(self.bytes.len())
    }

    /// Whether a csvlog record can begin there: nothing else is looked at beyond its line.
    fn begins_csv(&self, at: usize) -> bool {
        let start = &self.bytes[at..self.bytes.len().min(at + 40)];
        let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let text = String::from_utf8_lossy(line);
        clock(&text).is_some_and(|(_, length)| text.get(length..).is_some_and(|rest| rest.contains(',')))
    }

    /// Takes the record between the two positions; gives where the next one begins.
    fn record(&mut self, from: usize, end: usize, give: &mut dyn FnMut(Entry)) -> usize {
        let record = self.bytes[from..end].to_vec();
        if self.format == Format::Stderr {
            self.line(String::from_utf8_lossy(&record).trim_end_matches(['\n', '\r']));
            self.drain(give);
            return end;
        }
        if let Some(entry) = parsed(self.format, &record) {
            self.seeking = false;
            self.add(entry);
            self.drain(give);
            return end;
        }
        // Not a record: its first line is passed over, or shown as it is, and the next may be one again.
        let line = record.iter().position(|b| *b == b'\n').map_or(record.len(), |at| at + 1);
        if !self.seeking && !record[..line].trim_ascii().is_empty() {
            self.add(foreign(&record[..line]));
            self.drain(give);
        }
        from + line
    }

    /// A line of stderr.
    fn line(&mut self, line: &str) {
        if let Some(more) = line.strip_prefix('\t') {
            // The server begins every further line of a message with a tab.
            match self.last.and_then(|last| self.pending.iter_mut().find(|p| p.number == last)) {
                Some(pending) => {
                    let entry = &mut pending.entry;
                    let text = entry.attached.last_mut().map_or(&mut entry.message, |(_, text)| text);
                    if text.len() + more.len() < LONGEST_RECORD {
                        text.push('\n');
                        text.push_str(more);
                    }
                    pending.settled = false;
                }
                None if self.seeking => {}
                None => self.add(foreign(more.as_bytes())),
            }
            return;
        }
        let Some((head, message)) = self.prefixes.iter().find_map(|prefix| prefix.split(line)) else {
            self.last = None;
            if !self.seeking && !line.trim().is_empty() {
                self.add(foreign(line.as_bytes()));
            }
            return;
        };
        let same = self.pending.iter_mut().rev().find(|p| p.entry.pid == head.pid && !p.complete);
        if ATTACHED.contains(&head.severity) {
            if let Some(pending) = same {
                pending.entry.attached.push((head.severity.to_owned(), message.to_owned()));
                pending.settled = false;
                self.last = Some(pending.number);
                return;
            }
            if self.seeking {
                return;
            }
        } else if let Some(previous) = same {
            previous.complete = true;
        }
        self.seeking = false;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let entry = Entry {
            time: head.time,
            zone: owned(head.zone),
            pid: head.pid,
            severity: head.severity.to_owned(),
            message: message.to_owned(),
            attached: Vec::new(),
            user: owned(head.user),
            database: owned(head.database),
            application: owned(head.application),
        };
        self.last = Some(self.next);
        self.pending.push_back(Pending { number: self.next, entry, complete: false, settled: false });
        self.next += 1;
    }

    /// An entry that nothing is attached to.
    fn add(&mut self, entry: Entry) {
        self.pending.push_back(Pending { number: self.next, entry, complete: true, settled: true });
        self.next += 1;
    }

    /// Hands over from the front, so that the order is the log's.
    fn drain(&mut self, give: &mut dyn FnMut(Entry)) {
        while self.pending.front().is_some_and(|p| p.complete) || self.pending.len() > MOST_PENDING {
            let Some(pending) = self.pending.pop_front() else { return };
            give(pending.entry);
        }
    }
}

/// What is not in the log's format, as an entry.
fn foreign(bytes: &[u8]) -> Entry {
    let message = String::from_utf8_lossy(bytes).trim_end_matches(['\n', '\r']).to_owned();
    Entry { severity: FOREIGN.into(), message, ..Entry::default() }
}

fn parsed(format: Format, record: &[u8]) -> Option<Entry> {
    let text = String::from_utf8_lossy(record);
    let text = text.trim_end_matches(['\n', '\r']);
    match format {
        Format::Json => json_entry(text),
        _ => csv_entry(text),
    }
}

/// `2013-02-07 21:53:01.123 UTC`
fn stamp(text: &str) -> Option<(i64, String)> {
    let (micros, length) = clock(text)?;
    Some((micros, text.get(length..)?.trim().to_owned()))
}

/// An entry of csvlog. Its columns were only ever added at the end: 23 up to 12, 24 in 13 (backend_type),
/// 26 from 14 on (leader_pid, query_id); documentation, "Using CSV-Format Log Output".
fn csv_entry(record: &str) -> Option<Entry> {
    let fields = csv_fields(record)?;
    // The message is always quoted. What looks like a record inside of somebody's statement cannot be: its
    // quotes are doubled there. So a reader that starts anywhere is not deceived.
    if fields.len() < 23 || !fields[13].1 {
        return None;
    }
    let value = |column: usize| Some(fields[column].0.clone()).filter(|text| !text.is_empty());
    let (time, zone) = stamp(&fields[0].0)?;
    let attached = [("DETAIL", 14), ("HINT", 15), ("QUERY", 16), ("CONTEXT", 18), ("STATEMENT", 19)];
    Some(Entry {
        time: Some(time),
        zone: Some(zone),
        pid: fields[3].0.parse().ok(),
        severity: fields[11].0.clone(),
        message: fields[13].0.clone(),
        attached: attached.iter().filter_map(|(label, at)| Some(((*label).into(), value(*at)?))).collect(),
        user: value(1),
        database: value(2),
        application: value(22),
    })
}

/// The fields of a record by RFC 4180, and whether each was quoted; `None` when it does not keep to that.
fn csv_fields(record: &str) -> Option<Vec<(String, bool)>> {
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(f, after)| (f, Some(after)));
            if field.contains(['"', '\n']) {
                return None;
            }
            fields.push((field.to_owned(), false));
            match after {
                Some(after) => rest = after,
                None => return Some(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (text, after) = quoted.split_once('"')?;
            field.push_str(text);
            match after.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    quoted = more;
                }
                None => {
                    fields.push((field, true));
                    if after.is_empty() {
                        return Some(fields);
                    }
                    rest = after.strip_prefix(',')?;
                    break;
                }
            }
        }
    }
}

/// An entry of jsonlog; documentation, "Using JSON-Format Log Output".
fn json_entry(record: &str) -> Option<Entry> {
    let value: serde_json::Value = serde_json::from_str(record).ok()?;
    let text = |key: &str| value.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let (time, zone) = stamp(&text("timestamp")?)?;
    let attached = [
        ("DETAIL", "detail"),
        ("HINT", "hint"),
        ("QUERY", "internal_query"),
        ("CONTEXT", "context"),
        ("BACKTRACE", "backtrace"),
        ("STATEMENT", "statement"),
    ];
    Some(Entry {
        time: Some(time),
        zone: Some(zone),
        pid: value.get("pid").and_then(|pid| pid.as_i64()).and_then(|pid| pid.try_into().ok()),
        severity: text("error_severity")?,
        // An empty message is left out.
        message: text("message").unwrap_or_default(),
        attached: attached.iter().filter_map(|(label, key)| Some(((*label).into(), text(key)?))).collect(),
        user: text("user"),
        database: text("dbname"),
        application: text("application_name"),
    })
}

// ---- names of files

/// Whether a file of this name is one of the collector's: `log_filename`, whose `strftime` escapes stand for
/// anything, with the ending of the format in place of `.log` (syslogger.c, logfile_getname).
pub fn is_log_name(name: &str, log_filename: &str, format: Format) -> bool {
    let (stem, ending) = match format {
        Format::Stderr => (log_filename, ""),
        Format::Csv => (log_filename.strip_suffix(".log").unwrap_or(log_filename), ".csv"),
        Format::Json => (log_filename.strip_suffix(".log").unwrap_or(log_filename), ".json"),
    };
    // An escape at the end of the name would stand for the other formats' endings too.
    if ending.is_empty() && [".csv", ".json"].iter().any(|e| name.ends_with(e) && !stem.ends_with(e)) {
        return false;
    }
    let Some(name) = name.strip_suffix(ending) else { return false };
    let mut parts = vec![String::new()];
    let mut chars = stem.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.find(|c| !"-_0^#EO".contains(*c)) {
                Some('%') => parts.last_mut().expect("never empty").push('%'),
                _ => parts.push(String::new()),
            },
            (c, false) => parts.last_mut().expect("never empty").push(c),
        }
    }
    let Some(mut rest) = name.strip_prefix(parts[0].as_str()) else { return false };
    let Some((last, middle)) = parts[1..].split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part.as_str()) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::time::iso;

    /// All entries of a text that comes in pieces of `size` bytes.
    fn pieces(format: Format, prefix: &str, text: &str, size: usize) -> Vec<Entry> {
        let mut decoder = Decoder::new(format, prefix, false);
        let mut entries = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            decoder.feed(piece, &mut |entry| entries.push(entry));
        }
        decoder.finish(&mut |entry| entries.push(entry));
        entries
    }

    fn stderr(prefix: &str, text: &str) -> Vec<Entry> {
        let whole = pieces(Format::Stderr, prefix, text, usize::MAX);
        assert_eq!(whole, pieces(Format::Stderr, prefix, text, 1), "in pieces");
        whole
    }

    fn one(prefix: &str, line: &str) -> Entry {
        let entries = stderr(prefix, line);
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries.into_iter().next().unwrap()
    }

    #[test]
    fn the_recipes_prefix() {
        let prefix = "%m [%p] %q%u@%d %a ";
        let entry = one(
            prefix,
            "2026-11-21 15:40:04.123 UTC [471] joe@shop psql LOG:  duration: 65.232 ms  statement: SELECT 1\n",
        );
        assert_eq!(iso(entry.time.unwrap()), "2026-11-21T15:40:04.123000");
        assert_eq!((entry.zone.as_deref(), entry.pid), (Some("UTC"), Some(471)));
        assert_eq!(entry.user.as_deref(), Some("joe"));
        assert_eq!(entry.database.as_deref(), Some("shop"));
        assert_eq!(entry.application.as_deref(), Some("psql"));
        assert_eq!((entry.severity.as_str(), entry.duration()), ("LOG", Some(65.232)));
        let background = one(prefix, "2026-11-21 15:40:04.123 UTC [9] LOG:  checkpoint starting: time\n");
        assert_eq!(background.message, "checkpoint starting: time");
        assert_eq!((background.pid, background.user.as_deref()), (Some(9), None));
        // An application of many words, none, and a line of before the setting was read.
        let entry = one(prefix, "2026-11-21 15:40:04.123 UTC [471] joe@shop my big app ERROR:  no\n");
        assert_eq!(entry.application.as_deref(), Some("my big app"));
        let entry = one(prefix, "2026-11-21 15:40:04.123 UTC [471] [unknown]@[unknown]  FATAL:  no\n");
        assert_eq!((entry.user.as_deref(), entry.severity.as_str()), (None, "FATAL"));
        let entry = one("<%p>", "2026-11-21 15:40:04.123 UTC [471] LOG:  database system is ready\n");
        assert_eq!(entry.pid, Some(471));
    }

    #[test]
    fn every_escape_has_its_form() {
        let all = "%t|%s|%p|%P|%l|%c|%e|%v|%x|%i|%b|%h|%r|%Q|%L|%%|%u|%d|%a|";
        let entry = one(
            all,
            "2026-11-21 16:40:04 CET|2026-11-21 16:00:00 CET|17||3|655e3c.11|00000|3/14|0|SELECT|client backend\
             |[local]|10.0.0.1(5432)|-7719|[local]|%|joe|shop|psql|WARNING:  ha\n",
        );
        assert_eq!((entry.zone.as_deref(), entry.pid), (Some("CET"), Some(17)));
        assert_eq!(iso(entry.time.unwrap()), "2026-11-21T16:40:04.000000");
        assert_eq!((entry.user.as_deref(), entry.message.as_str()), (Some("joe"), "ha"));

        let entry = one("%n [%-8p] ", "1795275604.123 [471     ] LOG:  x\n");
        assert_eq!((entry.zone, entry.pid), (None, Some(471)));
        assert_eq!(iso(entry.time.unwrap()), "2026-11-21T15:40:04.123000");
        let entry = one("%8p %m: ", "     471 2026-11-21 15:40:04.123 +03: LOG:  x\n");
        assert_eq!((entry.zone.as_deref(), entry.pid), (Some("+03"), Some(471)));
        let entry = one("[%-5p]%-10u:", "[1234567]joe       :LOG:  x\n");
        assert_eq!((entry.pid, entry.user.as_deref()), (Some(1_234_567), Some("joe")));
        assert!(!Prefix::new("%p %u %%m").has_time() && Prefix::new("%5m").has_time());
        let entry = one("", "LOG:  no prefix at all\n");
        assert_eq!((entry.time, entry.pid, entry.message.as_str()), (None, None, "no prefix at all"));
    }

    #[test]
    fn what_belongs_to_an_entry_is_attached_to_it() {
        let text = "\
2026-11-21 15:40:04.123 UTC [1] ERROR:  division by zero
2026-11-21 15:40:04.123 UTC [2] LOG:  from another
2026-11-21 15:40:04.123 UTC [1] CONTEXT:  PL/pgSQL function f()
\tline 2
2026-11-21 15:40:04.124 UTC [1] STATEMENT:  SELECT
\t  f()
\t
\t  FROM t
sh: archive: not found
2026-11-21 15:40:05.000 UTC [1] LOG:  next
\tof two lines
";
        let entries = stderr("%m [%p] ", text);
        let lines: Vec<_> = entries.iter().map(Entry::one_line).collect();
        assert_eq!(
            lines,
            [
                "division by zero  CONTEXT:  PL/pgSQL function f() line 2  STATEMENT:  SELECT f() FROM t",
                "from another",
                "sh: archive: not found",
                "next of two lines"
            ]
        );
        assert_eq!(entries[0].attached[1].1, "SELECT\n  f()\n\n  FROM t");
        assert_eq!((entries[2].severity.as_str(), entries[2].time), (FOREIGN, None));
    }

    #[test]
    fn an_entry_is_given_when_it_is_settled() {
        let mut decoder = Decoder::new(Format::Stderr, "%p ", false);
        let mut seen = Vec::new();
        decoder.feed(b"1 LOG:  a\n2 LOG:  b\n1 DETAIL:  d\n3 LOG:  cut", &mut |e| seen.push(e.one_line()));
        assert!(seen.is_empty(), "{seen:?}");
        decoder.settle(&mut |e| seen.push(e.one_line()));
        assert!(seen.is_empty(), "{seen:?}");
        decoder.settle(&mut |e| seen.push(e.one_line()));
        // The rest of its line may still belong to the last one.
        decoder.feed(b" off\n", &mut |e| seen.push(e.one_line()));
        for _ in 0..3 {
            decoder.settle(&mut |e| seen.push(e.one_line()));
        }
        assert_eq!(seen, ["a  DETAIL:  d", "b", "cut off"]);
        // Nobody else is waited for on a busy server.
        for n in 0..1000 {
            decoder.feed(format!("{n} LOG:  {n}\n").as_bytes(), &mut |e| seen.push(e.one_line()));
        }
        assert!(seen.len() > 900);
    }

    const CSV: &str = "2026-11-21 15:40:04.123 UTC,\"joe\",\"shop\",471,\"[local]\",655e.1d7,1,\"SELECT\",\
2026-11-21 15:40:00 UTC,3/2,0,ERROR,22012,\"division
by \"\"zero\"\"\",\"a, detail\",,,,,\"SELECT
1/0\",8,,\"psql\"";

    #[test]
    fn csvlog_of_every_version() {
        for columns in ["", ",\"client backend\"", ",\"client backend\",,-77"] {
            let record = format!("{CSV}{columns}\n");
            let text = format!("{record}{record}not csv\n{record}");
            for size in [1, 7, usize::MAX] {
                let entries = pieces(Format::Csv, "", &text, size);
                assert_eq!(entries.len(), 4, "{entries:?}");
                assert_eq!(entries[2].message, "not csv");
                let entry = &entries[3];
                assert_eq!((entry.message.as_str(), entry.pid), ("division\nby \"zero\"", Some(471)));
                assert_eq!(entry.application.as_deref(), Some("psql"));
                assert_eq!(
                    entry.one_line(),
                    "division by \"zero\"  DETAIL:  a, detail  STATEMENT:  SELECT 1/0"
                );
            }
        }
    }

    #[test]
    fn a_reader_that_starts_amid_a_record_finds_the_next() {
        // What looks like a record stands in a statement.
        let fake = CSV.replace('"', "\"\"");
        let text = format!("{CSV}\n{}\n{CSV}\n", CSV.replace("1/0", &format!("1/0\n{fake}\n")));
        let whole = pieces(Format::Csv, "", &text, usize::MAX);
        assert_eq!(whole.len(), 3);
        for start in 1..text.len() {
            let mut decoder = Decoder::new(Format::Csv, "", true);
            let mut entries = Vec::new();
            decoder.feed(&text.as_bytes()[start..], &mut |entry| entries.push(entry));
            decoder.finish(&mut |entry| entries.push(entry));
            assert!(whole.ends_with(&entries), "from {start}: {entries:?}");
        }
        let text = "[1] STATEMENT:  x\n\ty\nraw\n[2] LOG:  z\n";
        for start in 1..text.len() {
            let mut decoder = Decoder::new(Format::Stderr, "[%p] ", true);
            let mut seen = Vec::new();
            decoder.feed(&text.as_bytes()[start..], &mut |entry| seen.push(entry.message));
            decoder.finish(&mut |entry| seen.push(entry.message));
            assert!(seen.is_empty() || seen == ["z"], "from {start}: {seen:?}");
        }
    }

    #[test]
    fn a_torn_record_does_not_hide_the_rest() {
        let torn = &CSV[..CSV.find("by").unwrap()];
        let entries = pieces(Format::Csv, "", &format!("{torn}\n{CSV}\n{CSV}\n"), usize::MAX);
        let errors = entries.iter().filter(|entry| entry.severity == "ERROR").count();
        assert_eq!(errors, 2, "{entries:?}");
    }

    #[test]
    fn jsonlog() {
        let line = r#"{"timestamp":"2026-11-21 15:40:04.123 UTC","user":"joe","dbname":"shop","pid":471,"error_severity":"ERROR","message":"no\nway","detail":"d","statement":"SELECT 1","application_name":"psql","query_id":7}"#;
        for size in [1, usize::MAX] {
            let entries = pieces(Format::Json, "", &format!("{line}\n{{broken\n{line}"), size);
            assert_eq!(entries.len(), 3, "{entries:?}");
            assert_eq!(entries[0].one_line(), "no way  DETAIL:  d  STATEMENT:  SELECT 1");
            assert_eq!(entries[1].severity, FOREIGN);
            assert_eq!((entries[2].pid, entries[2].zone.as_deref()), (Some(471), Some("UTC")));
        }
    }

    #[test]
    fn slow_statements() {
        let of = |message: &str| Entry { message: message.into(), ..Entry::default() }.duration();
        assert_eq!(of("duration: 65.232 ms  statement: SELECT 1"), Some(65.232));
        assert_eq!(of("duration: 0.100 ms  execute <unnamed>: SELECT $1"), Some(0.1));
        assert_eq!(of("duration: 1065.232 ms  parse s1: SELECT"), Some(1065.232));
        assert_eq!(of("duration: 1065.232 ms  plan:\nQuery Text: SELECT"), Some(1065.232));
        assert_eq!(of("duration: 3.250 ms"), Some(3.25));
        assert_eq!(of("Dauer: 65.232 ms  Anweisung: SELECT 1"), Some(65.232));
        assert_eq!(of("process 17 still waiting for ShareLock after 1000.123 ms"), None);
        assert_eq!(of("statement: SELECT 'duration: 65.232 ms'"), None);
        assert_eq!(of("duration: many ms"), None);
    }

    #[test]
    fn passwords_are_masked() {
        for (text, masked) in [
            ("ALTER ROLE a PASSWORD 'x''y' LOGIN", "ALTER ROLE a PASSWORD '***' LOGIN"),
            ("CREATE USER a ENCRYPTED password\n  E'x\\'y';", "CREATE USER a ENCRYPTED password\n  '***';"),
            ("ALTER ROLE a PASSWORD $t$x$$y$t$, b", "ALTER ROLE a PASSWORD '***', b"),
            ("DO 'ALTER ROLE a PASSWORD ''xy''';", "DO 'ALTER ROLE a PASSWORD '***'';"),
            ("ALTER ROLE a PASSWORD 'cut off", "ALTER ROLE a PASSWORD '***'"),
            ("ALTER ROLE a PASSWORD ''; x", "ALTER ROLE a PASSWORD '***'; x"),
            ("host=h password=x port=1", "host=h password='***' port=1"),
            ("CONNECTION 'password = x'", "CONNECTION 'password = '***''"),
            ("WHERE Password='é' -- ü", "WHERE Password='***' -- ü"),
            ("PASSWORD U&'x' PASSWORD 'y'", "PASSWORD '***' PASSWORD '***'"),
        ] {
            assert_eq!(mask_passwords(text).as_deref(), Some(masked), "{text}");
        }
        for text in [
            "password authentication failed for user \"joe\"",
            "SELECT password FROM t",
            "WHERE password = $1",
            "ALTER ROLE a PASSWORD NULL",
            "password",
            "password=",
        ] {
            assert_eq!(mask_passwords(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_moves_the_terminal() {
        let entry = Entry { message: "a\u{1b}[2Jb\tc\r\n  d\u{9b}".into(), ..Entry::default() };
        assert_eq!(entry.one_line(), "a\\u{1b}[2Jb c d\\u{9b}");
    }

    #[test]
    fn names_of_the_collectors_files() {
        let is = |name, pattern, format| is_log_name(name, pattern, format);
        let daily = "postgresql-%Y-%m-%d_%H%M%S.log";
        assert!(is("postgresql-2026-11-21_154004.log", daily, Format::Stderr));
        assert!(is("postgresql-2026-11-21_154004.csv", daily, Format::Csv));
        assert!(is("postgresql-2026-11-21_154004.json", daily, Format::Json));
        assert!(!is("postgresql-2026-11-21_154004.log", daily, Format::Csv));
        assert!(!is("postgresql-2026-11-21_154004.log.gz", daily, Format::Stderr));
        assert!(is("pg.log", "pg.log", Format::Stderr) && !is("pg.log.1", "pg.log", Format::Stderr));
        assert!(is("pg-Mon", "pg-%a", Format::Stderr) && !is("pg-Mon.csv", "pg-%a", Format::Stderr));
        assert!(is("100%-7.log", "100%%-%-H.log", Format::Stderr));
    }

    #[test]
    fn no_input_makes_it_panic() {
        let mut seed = 7u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        let parts = [
            "2026-11-21 15:40:04.123 UTC",
            " [1] ",
            "LOG:  ",
            "\"",
            ",",
            "\n",
            "\t",
            "ü",
            "\u{a0}",
            "%",
            "'",
            "PASSWORD ",
            "$",
            "=",
            "password",
            "E'",
            "U&'",
            "-",
            "5",
            "m",
            "q",
            ": ",
            "{",
            "\\",
        ];
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..random(30) {
                text.push_str(parts[random(parts.len())]);
            }
            for format in [Format::Stderr, Format::Csv, Format::Json] {
                for entry in pieces(format, &text, &text, 1 + random(9)) {
                    let entry = entry.masked();
                    let _ = (entry.one_line(), entry.duration(), entry.level());
                }
            }
            let _ = is_log_name(&text, &text, Format::Csv);
        }
    }
}
