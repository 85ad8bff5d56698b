//! Owns positions in the WAL and their names: LSN, timeline, system identifier, segment files and
//! timeline history.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// A position in the WAL, in bytes since its beginning. Shown as PostgreSQL does: `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// "No position" in `pg_control` and in page headers.
    pub const ZERO: Lsn = Lsn(0);

    /// How many bytes of WAL lie between `earlier` and this position; `None` when it is not earlier.
    pub fn distance_from(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// The first position of the WAL segment (or page) of `size` bytes that holds this one.
    pub fn floor(self, size: u64) -> Lsn {
        Lsn(self.0 - self.0 % size)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let half = |part: &str| {
            let fits = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn((half(high)? << 32) | half(low)?)))
            .ok_or_else(|| Error::Lsn { text: text.to_owned() })
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A timeline ID: 1 after initdb, one more (at least) with every promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that initdb gives a cluster, and that every physical copy of it shares. A string in
/// JSON, for it does not fit into a double.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = Error;
    /// Decimal; a negative number is what `pg_control_system()` shows of a number above 2^63.
    fn from_str(text: &str) -> Result<Self> {
        text.parse::<u64>()
            .or_else(|_| text.parse::<i64>().map(|signed| signed as u64))
            .map(SystemId)
            .map_err(|_| Error::SystemId { text: text.to_owned() })
    }
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Whether a cluster can have WAL segments of this many bytes: a power of two from 1 MB to 1 GB.
pub fn is_segment_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && ((1 << 20)..=(1 << 30)).contains(&bytes)
}

/// The name of the segment file that holds `lsn`: 24 hexadecimal digits. `segment_size` in bytes,
/// one that [`is_segment_size`] accepts.
pub fn segment_name(timeline: Timeline, lsn: Lsn, segment_size: u32) -> String {
    let number = lsn.0 / u64::from(segment_size);
    let per_id = (1 << 32) / u64::from(segment_size);
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_id, number % per_id)
}

/// The timeline and the first position of the segment file of this name; `None` when it is not the
/// name of a complete segment (history files, `.partial`, `.backup`, anything else).
pub fn parse_segment_name(name: &str, segment_size: u32) -> Option<(Timeline, Lsn)> {
    if !is_segment_size(segment_size) || !is_segment_shape(name) {
        return None;
    }
    let field = |at: usize| u64::from_str_radix(&name[at..at + 8], 16).ok();
    let (timeline, id, number) = (field(0)?, field(8)?, field(16)?);
    let per_id = (1 << 32) / u64::from(segment_size);
    let known = timeline > 0 && number < per_id;
    known.then(|| (Timeline(timeline as u32), Lsn((id << 32) | (number * u64::from(segment_size)))))
}

fn is_segment_shape(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

/// The name of the file that tells where `timeline` came from. Timeline 1 has none.
pub fn history_file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The way to a timeline: which ones came before it, and where each was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct History {
    /// The timeline whose history this is.
    pub timeline: Timeline,
    /// Its ancestors, oldest first.
    pub entries: Vec<HistoryEntry>,
}

/// One ancestor of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: Timeline,
    /// Where it was left: WAL before this position is shared, WAL after it is not.
    pub switch: Lsn,
    /// What PostgreSQL wrote about the cause, such as "no recovery target specified".
    pub reason: String,
}

/// How a timeline stands to a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the timeline whose history this is: not left yet.
    Current,
    /// It is an ancestor, left at this position.
    LeftAt(Lsn),
    /// It is neither: another branch.
    Unknown,
}

impl History {
    /// The history of timeline 1, which has no file.
    pub fn root() -> Self {
        History { timeline: Timeline(1), entries: Vec::new() }
    }

    /// Reads the content of the history file of `timeline`: lines of parent timeline, LSN and reason,
    /// separated by white space (9.3 on; `readTimeLineHistory` in PostgreSQL's timeline.c).
    ///
    /// # Errors
    /// [`Error::HistoryLine`] for a line that cannot be read, for timelines or positions out of order;
    /// [`Error::HistoryFormat`] for the segment names that 9.0 to 9.2 wrote.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let line = raw.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why| {
                let (number, line) = (index + 1, line.to_owned());
                Error::HistoryLine { file: history_file_name(timeline), number, line, why }
            };
            let (parent, rest) =
                line.split_once(char::is_whitespace).ok_or_else(|| bad("the position is missing"))?;
            let parent: u32 = parent.parse().map_err(|_| bad("the timeline is not a number"))?;
            let rest = rest.trim_start();
            let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            if is_segment_shape(switch) {
                return Err(Error::HistoryFormat { file: history_file_name(timeline) });
            }
            let switch: Lsn = switch.parse().map_err(|_| bad("the position is not an LSN"))?;
            if parent == 0 || parent >= timeline.0 {
                return Err(bad("the timeline is not an earlier one"));
            }
            if entries.last().is_some_and(|last| last.timeline.0 >= parent) {
                return Err(bad("the timelines do not increase"));
            }
            if entries.last().is_some_and(|last| last.switch > switch) {
                return Err(bad("the positions decrease"));
            }
            let reason = reason.trim_start().to_owned();
            entries.push(HistoryEntry { timeline: Timeline(parent), switch, reason });
        }
        if entries.is_empty() && timeline.0 != 1 {
            return Err(Error::HistoryLine {
                file: history_file_name(timeline),
                number: 0,
                line: String::new(),
                why: "it names no parent",
            });
        }
        Ok(History { timeline, entries })
    }

    /// Whether `of` is the current timeline, an ancestor (left where), or another branch.
    pub fn standing(&self, of: Timeline) -> Standing {
        if of == self.timeline {
            return Standing::Current;
        }
        match self.entries.iter().find(|entry| entry.timeline == of) {
            Some(entry) => Standing::LeftAt(entry.switch),
            None => Standing::Unknown,
        }
    }

    /// Where this history left one of its ancestors.
    pub fn left_at(&self, timeline: Timeline) -> Option<Lsn> {
        self.entries.iter().find(|entry| entry.timeline == timeline).map(|entry| entry.switch)
    }

    /// The timeline that holds `lsn` in this history. A switch point itself belongs to the timeline
    /// that begins there.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.entries.iter().find(|entry| lsn < entry.switch).map_or(self.timeline, |entry| entry.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u32 = 1 << 20;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn an_lsn_is_read_and_shown_as_postgresql_does() {
        for (text, value) in
            [("0/0", 0), ("0/1", 1), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)]
        {
            assert_eq!(lsn(text), Lsn(value));
            assert_eq!(Lsn(value).to_string(), text);
        }
        assert_eq!(lsn("0/0900060"), Lsn(0x900060)); // later versions pad the second half
        for text in ["", "/", "0", "0/", "/0", "0/G", "0/123456789", "0/-1", "0/+1", " 0/1", "0/1 ", "0/1/2"]
        {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        assert_eq!("x".parse::<Lsn>().unwrap_err().to_string(), "\"x\" is not an LSN such as 16/B374D848");
    }

    #[test]
    fn distances_do_not_wrap() {
        assert_eq!(lsn("1/0").distance_from(lsn("0/FFFFFFFF")), Some(1));
        assert_eq!(lsn("0/1").distance_from(lsn("0/2")), None);
        assert_eq!(Lsn(8193).floor(8192), Lsn(8192));
    }

    #[test]
    fn json_keeps_every_digit() {
        assert_eq!(serde_json::to_string(&lsn("16/B374D848")).unwrap(), "\"16/B374D848\"");
        assert_eq!(serde_json::from_str::<Lsn>("\"16/B374D848\"").unwrap(), lsn("16/B374D848"));
        assert_eq!(serde_json::to_string(&SystemId(7710293085431323832)).unwrap(), "\"7710293085431323832\"");
        assert_eq!(serde_json::from_str::<SystemId>("\"7\"").unwrap(), SystemId(7));
        assert_eq!(serde_json::to_string(&Timeline(3)).unwrap(), "3");
        assert_eq!("-1".parse::<SystemId>().unwrap(), SystemId(u64::MAX));
        assert!("1x".parse::<SystemId>().is_err());
    }

    #[test]
    fn segments_are_named_by_timeline_and_position() {
        let cases = [
            (1, "0/2000028", 16 * MB, "000000010000000000000002"),
            (2, "16/B374D848", 16 * MB, "0000000200000016000000B3"),
            (1, "0/900060", MB, "000000010000000000000009"),
            (0x1F, "1/FFF00000", MB, "0000001F0000000100000FFF"),
            (1, "3/40000000", 1024 * MB, "000000010000000300000001"),
        ];
        for (timeline, position, size, name) in cases {
            assert_eq!(segment_name(Timeline(timeline), lsn(position), size), name);
            let first = lsn(position).floor(size.into());
            assert_eq!(parse_segment_name(name, size), Some((Timeline(timeline), first)));
        }
    }

    #[test]
    fn what_is_no_segment_is_not_taken_for_one() {
        let names = [
            "00000002.history",
            "000000010000000000000002.partial",
            "000000010000000000000002.00000028.backup",
            "00000001000000000000000",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "000000000000000000000001",
            "000000010000000000000100",
            "archive_status",
        ];
        for name in names {
            assert_eq!(parse_segment_name(name, 16 * MB), None, "{name}");
        }
        assert_eq!(parse_segment_name("000000010000000000000002", 3), None);
        assert_eq!(history_file_name(Timeline(0x1A)), "0000001A.history");
    }

    /// Written by a 15.18 server at its promotion.
    const PROMOTED: &str = "1\t0/8001A0\tno recovery target specified\n";

    #[test]
    fn a_history_says_where_each_timeline_was_left() {
        let text = "# made by hand\r\n\r\n1\t0/8001A0\tno recovery target specified\r\n  3 \t 0/A000000\tbefore 2012-01-01 00:00:00\n";
        let history = History::parse(Timeline(7), text).unwrap();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.entries[1].reason, "before 2012-01-01 00:00:00");
        assert_eq!(history.standing(Timeline(7)), Standing::Current);
        assert_eq!(history.standing(Timeline(3)), Standing::LeftAt(lsn("0/A000000")));
        assert_eq!(history.standing(Timeline(1)), Standing::LeftAt(lsn("0/8001A0")));
        assert_eq!(history.standing(Timeline(2)), Standing::Unknown);
        assert_eq!(history.standing(Timeline(8)), Standing::Unknown);
        assert_eq!(history.timeline_at(lsn("0/80019F")), Timeline(1));
        assert_eq!(history.timeline_at(lsn("0/8001A0")), Timeline(3));
        assert_eq!(history.timeline_at(lsn("0/A000000")), Timeline(7));

        let real = History::parse(Timeline(2), PROMOTED).unwrap();
        assert_eq!(real.entries[0].reason, "no recovery target specified");
        assert_eq!(History::root().standing(Timeline(1)), Standing::Current);
        assert_eq!(History::parse(Timeline(1), "").unwrap(), History::root());
    }

    #[test]
    fn a_history_that_cannot_be_right_is_refused() {
        let cases = [
            ("1\n", "the position is missing"),
            ("x\t0/1\treason\n", "the timeline is not a number"),
            ("1\t0-1\treason\n", "the position is not an LSN"),
            ("0\t0/1\treason\n", "the timeline is not an earlier one"),
            ("5\t0/1\treason\n", "the timeline is not an earlier one"),
            ("2\t0/1\n1\t0/2\n", "the timelines do not increase"),
            ("1\t0/1\n1\t0/2\n", "the timelines do not increase"),
            ("1\t0/2\n2\t0/1\n", "the positions decrease"),
            ("# nothing\n", "it names no parent"),
        ];
        for (text, why) in cases {
            let error = History::parse(Timeline(5), text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("00000005.history"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_history_format_before_9_3_is_named() {
        let text = "1\t000000010000000000000005\tno recovery target specified\n";
        let error = History::parse(Timeline(2), text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "00000002.history names WAL segments in place of LSNs, as PostgreSQL 9.0 to 9.2 wrote it"
        );
    }
}
