//! Reading log files: forwards from anywhere, and from how far back for the last so many entries.

use super::Options;
use super::find::{Log, State, unreadable};
use crate::error::Result;
use crate::postgres::log::{Decoder, Entry, Format, Prefix};
use crate::postgres::time::zone_offset;
use crate::process;
use crate::progress::Progress;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether anybody still listens, after an entry.
pub type Give<'a> = dyn FnMut(Entry) -> bool + 'a;

const BLOCK: usize = 256 << 10;

/// Gives entries their time in UTC, and says once what it cannot know.
pub struct Times<'a> {
    progress: &'a Progress,
    log: &'a Log,
    warned: bool,
}

impl<'a> Times<'a> {
    /// Says at once when lines have no time at all.
    pub fn new(progress: &'a Progress, log: &'a Log) -> Times<'a> {
        if log.format == Format::Stderr && !Prefix::new(&log.prefix).has_time() {
            progress.warn(
                "log_line_prefix has no time (%m): old entries are shown with the time of their file's last \
                 change, new ones with that of reading",
            );
        }
        Times { progress, log, warned: false }
    }

    /// In UTC, where the zone is known.
    fn convert(&mut self, entry: &mut Entry) {
        let (Some(time), Some(zone)) = (entry.time, entry.zone.as_deref()) else { return };
        match self.log.zones.get(zone).copied().or_else(|| zone_offset(zone)) {
            Some(offset) => (entry.time, entry.zone) = (Some(time - offset), None),
            None if self.warned => {}
            None => {
                self.warned = true;
                self.progress.warn(format!(
                    "how far the log's time zone {zone} is from UTC only the running server knows; its times \
                     are shown as they are, without +00:00"
                ));
            }
        }
    }
}

/// An open log file.
pub struct Reader {
    file: File,
    /// What it was when it was opened.
    pub state: State,
    /// Up to where it has been read.
    pub offset: u64,
    decoder: Decoder,
    /// The time of the entry before, for a line that has none.
    before: Option<(i64, Option<String>)>,
    fallback: Option<i64>,
}

impl Reader {
    /// From a position on, which may be amid an entry.
    pub fn open(log: &Log, path: &Path, offset: u64) -> Result<Reader> {
        let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
        let metadata = file.metadata().map_err(|e| unreadable(path, e))?;
        let state = State::of(path, &metadata);
        file.seek(SeekFrom::Start(offset)).map_err(|e| unreadable(path, e))?;
        let fallback = Some(state.changed.0 * 1_000_000 + state.changed.1 / 1000);
        let decoder = Decoder::new(log.format, &log.prefix, offset > 0);
        Ok(Reader { file, state, offset, decoder, before: None, fallback })
    }

    /// As [`Reader::open`], at a position where an entry begins.
    pub fn open_at_entry(log: &Log, path: &Path, offset: u64) -> Result<Reader> {
        let mut reader = Reader::open(log, path, offset)?;
        reader.decoder = Decoder::new(log.format, &log.prefix, false);
        Ok(reader)
    }

    /// From now on what has no time was written when it is read.
    pub fn is_live(&mut self) {
        self.fallback = None;
    }

    /// The open file as it is now, wherever its name has gone.
    pub fn now(&self) -> Option<State> {
        Some(State::of(&self.state.path, &self.file.metadata().ok()?))
    }

    /// Reads what there is; gives whether somebody still listens.
    pub fn pump(&mut self, times: &mut Times, give: &mut Give) -> Result<bool> {
        let mut block = vec![0; BLOCK];
        let mut listens = true;
        loop {
            process::check_interrupt()?;
            let read = self.file.read(&mut block).map_err(|e| unreadable(&self.state.path, e))?;
            if read == 0 || !listens {
                return Ok(listens);
            }
            self.offset += read as u64;
            let Reader { decoder, before, fallback, .. } = self;
            decoder.feed(&block[..read], &mut timed(before, *fallback, times, give, &mut listens));
        }
    }

    /// Nothing has come for a while.
    pub fn settle(&mut self, times: &mut Times, give: &mut Give) -> bool {
        let mut listens = true;
        let Reader { decoder, before, fallback, .. } = self;
        decoder.settle(&mut timed(before, *fallback, times, give, &mut listens));
        listens
    }

    /// Nothing more will come.
    pub fn finish(&mut self, times: &mut Times, give: &mut Give) -> bool {
        let mut listens = true;
        let Reader { decoder, before, fallback, .. } = self;
        decoder.finish(&mut timed(before, *fallback, times, give, &mut listens));
        listens
    }

    /// The file was emptied and is filled again.
    pub fn rewind(&mut self) -> Result<()> {
        self.offset = 0;
        self.file.rewind().map_err(|e| unreadable(&self.state.path, e))
    }
}

/// What takes a decoder's entries: each gets its time before it is given away.
fn timed<'b>(
    before: &'b mut Option<(i64, Option<String>)>,
    fallback: Option<i64>,
    times: &'b mut Times,
    give: &'b mut Give,
    listens: &'b mut bool,
) -> impl FnMut(Entry) {
    move |mut entry| {
        match entry.time {
            Some(time) => *before = Some((time, entry.zone.clone())),
            None => {
                let (time, zone) = before.clone().unwrap_or_else(|| (fallback.unwrap_or_else(now), None));
                (entry.time, entry.zone) = (Some(time), zone);
            }
        }
        times.convert(&mut entry);
        *listens = *listens && give(entry);
    }
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Gives the last entries that are wanted; then the newest file, read so far, for the one who follows it.
/// `None` when nobody listens any more.
///
/// Two passes: the first looks, in ever larger blocks at the ends of ever older files, for where to begin
/// and only counts; the second gives. So nothing is kept in memory, however many are wanted.
pub fn last(
    log: &Log,
    files: &[State],
    options: &Options,
    times: &mut Times,
    give: &mut Give,
) -> Result<Option<Reader>> {
    let mut begin: Vec<(Reader, u64)> = Vec::new();
    let mut found = 0;
    for state in files.iter().rev() {
        // One that is gone by now was the oldest, or has another name and will be read there.
        let Ok(newest) = Reader::open(log, &state.path, 0) else {
            if begin.is_empty() {
                Reader::open(log, &state.path, 0)?;
            }
            continue;
        };
        let mut window = BLOCK as u64;
        let enough = loop {
            let from = newest.state.length.saturating_sub(window);
            let (wanted, first) = count(log, &state.path, from, options, times)?;
            let is_older = options.since.is_some_and(|since| first.is_some_and(|first| first < since));
            let enough = is_older || options.last.is_some_and(|last| found + wanted >= last);
            if enough || from == 0 {
                found += wanted;
                begin.push((newest, from));
                break enough;
            }
            window *= 8;
        };
        if enough {
            break;
        }
    }
    let mut skip = options.last.map_or(0, |last| found.saturating_sub(last));
    let mut give = |entry: Entry| {
        if skip > 0 && options.want(&entry) {
            skip -= 1;
            return true;
        }
        give(entry)
    };
    let mut newest = None;
    while let Some((mut reader, from)) = begin.pop() {
        if from > 0 {
            // The open file, not its name: that may be another's by now.
            reader.file.seek(SeekFrom::Start(from)).map_err(|e| unreadable(&reader.state.path, e))?;
            reader.offset = from;
            reader.decoder = Decoder::new(log.format, &log.prefix, true);
        }
        let is_followed = options.tail && begin.is_empty();
        let mut listens = reader.pump(times, &mut give)?;
        if listens && is_followed {
            // What was pending at the first call and still is at the second belongs to the old entries.
            listens = reader.settle(times, &mut give);
            std::thread::sleep(super::follow::PAUSE);
            listens = listens && reader.pump(times, &mut give)? && reader.settle(times, &mut give);
        } else if listens {
            listens = reader.finish(times, &mut give);
        }
        if !listens {
            return Ok(None);
        }
        newest = Some(reader);
    }
    Ok(newest)
}

/// How many wanted entries there are from `from` on, and when the first of all was written.
fn count(
    log: &Log,
    path: &Path,
    from: u64,
    options: &Options,
    times: &mut Times,
) -> Result<(usize, Option<i64>)> {
    let mut reader = Reader::open(log, path, from)?;
    let (mut wanted, mut first) = (0, None);
    let mut count = |entry: Entry| {
        first = first.or(entry.time);
        wanted += usize::from(options.want(&entry));
        true
    };
    reader.pump(times, &mut count)?;
    reader.finish(times, &mut count);
    Ok((wanted, first))
}
