//! Owns the calls that begin and end a base backup, by version, and what `backup_label` says.

use super::version::PgVersion;
use super::wal::{Lsn, Timeline};
use crate::error::{Error, Result};

/// How a version begins and ends a base backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupCalls {
    /// Begins it at once, with a fast checkpoint. `$1` is the label; gives one row with the column
    /// `lsn` as text.
    pub start: &'static str,
    /// Ends it. Gives one row: `lsn`, `labelfile` and `spcmapfile`, all as text; the last two are the
    /// contents of `backup_label` and `tablespace_map`, to be written byte for byte, and NULL in
    /// exclusive mode, where they stand in the source's data directory.
    pub stop: &'static str,
    /// The session that began it must stay open and end it; if it ends first, the backup is void.
    /// Otherwise any session can end it, and somebody has to.
    pub same_session: bool,
    /// Puts the whole cluster into backup mode, primaries only, one at a time.
    pub exclusive: bool,
    /// `stop` cannot be told not to wait for the archive: it hangs where archiving fails.
    pub waits_for_archive: bool,
}

impl BackupCalls {
    /// The calls of a version: exclusive up to 9.5, with a third argument up to 14, renamed in 15.
    pub const fn of(version: PgVersion) -> Self {
        if version.has_backup_start_functions() {
            BackupCalls {
                start: "SELECT pg_backup_start($1, true)::text AS lsn",
                stop: "SELECT lsn::text AS lsn, labelfile, spcmapfile FROM pg_backup_stop(false)",
                same_session: true,
                exclusive: false,
                waits_for_archive: false,
            }
        } else if version.has_backup_stop_without_wait() {
            BackupCalls {
                start: "SELECT pg_start_backup($1, true, false)::text AS lsn",
                stop: "SELECT lsn::text AS lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)",
                same_session: true,
                exclusive: false,
                waits_for_archive: false,
            }
        } else if version.has_nonexclusive_backup() {
            BackupCalls {
                start: "SELECT pg_start_backup($1, true, false)::text AS lsn",
                stop: "SELECT lsn::text AS lsn, labelfile, spcmapfile FROM pg_stop_backup(false)",
                same_session: true,
                exclusive: false,
                waits_for_archive: true,
            }
        } else {
            BackupCalls {
                start: "SELECT pg_start_backup($1, true)::text AS lsn",
                stop: "SELECT pg_stop_backup()::text AS lsn, NULL::text AS labelfile, NULL::text AS spcmapfile",
                same_session: false,
                exclusive: true,
                waits_for_archive: true,
            }
        }
    }
}

/// Where the source of a backup stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupSource {
    /// A primary ("master" up to 13).
    Primary,
    /// A standby.
    Standby,
}

/// What `backup_label` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Replay begins here; WAL from its segment on is needed.
    pub start: Lsn,
    /// The timeline of that position.
    pub timeline: Timeline,
    /// The record of the checkpoint that the backup begins with.
    pub checkpoint: Lsn,
    /// `None` where the line is missing (9.0 and 9.1).
    pub from: Option<BackupSource>,
    /// What was given to the start call.
    pub label: Option<String>,
}

impl BackupLabel {
    /// Reads the content of `backup_label` (`build_backup_content` in xlogbackup.c).
    ///
    /// # Errors
    /// [`Error::BackupLabel`], naming the line that is missing or cannot be read.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(str::trim)
        };
        let bad = |line| Error::BackupLabel { line };

        // 0/2000028 (file 000000010000000000000002)
        let start_line = value("START WAL LOCATION").ok_or_else(|| bad("START WAL LOCATION"))?;
        let (start, file) = start_line
            .split_once(" (file ")
            .and_then(|(start, file)| Some((start.parse().ok()?, file.strip_suffix(')')?)))
            .ok_or_else(|| bad("START WAL LOCATION"))?;
        let checkpoint = value("CHECKPOINT LOCATION")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| bad("CHECKPOINT LOCATION"))?;
        // The file's name begins with the timeline; a line of its own exists from 11 on.
        let timeline = match value("START TIMELINE") {
            Some(text) => text.parse().ok(),
            None => file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()),
        };
        let timeline = timeline.filter(|n| *n > 0).ok_or_else(|| bad("START TIMELINE"))?;
        let from = match value("BACKUP FROM") {
            None => None,
            Some("primary" | "master") => Some(BackupSource::Primary),
            Some("standby") => Some(BackupSource::Standby),
            Some(_) => return Err(bad("BACKUP FROM")),
        };
        let label = value("LABEL").map(str::to_owned);
        Ok(BackupLabel { start, timeline: Timeline(timeline), checkpoint, from, label })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_calls() {
        let exclusive =
            ("SELECT pg_start_backup($1, true)::text", "pg_stop_backup()::text", false, true, true);
        let nine_six =
            ("SELECT pg_start_backup($1, true, false)::text", "pg_stop_backup(false)", true, false, true);
        let ten = (
            "SELECT pg_start_backup($1, true, false)::text",
            "pg_stop_backup(false, false)",
            true,
            false,
            false,
        );
        let fifteen = ("SELECT pg_backup_start($1, true)::text", "pg_backup_stop(false)", true, false, false);
        let table = [
            (&["9.0", "9.1", "9.2", "9.3", "9.4", "9.5"][..], exclusive),
            (&["9.6"][..], nine_six),
            (&["10", "11", "12", "13", "14"][..], ten),
            (&["15", "16", "17", "18"][..], fifteen),
        ];
        for (versions, (start, stop, same_session, exclusive, waits)) in table {
            for version in versions {
                let calls = BackupCalls::of(version.parse().unwrap());
                assert!(calls.start.starts_with(start), "{version}");
                assert!(calls.stop.contains(stop), "{version}");
                for column in ["AS lsn", "labelfile", "spcmapfile"] {
                    assert!(calls.stop.contains(column), "{version}");
                }
                assert_eq!(calls.same_session, same_session, "{version}");
                assert_eq!(calls.exclusive, exclusive, "{version}");
                assert_eq!(calls.waits_for_archive, waits, "{version}");
            }
        }
    }

    /// What a 10.23 server wrote.
    const TEN: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)
CHECKPOINT LOCATION: 0/4000060
BACKUP METHOD: streamed
BACKUP FROM: master
START TIME: 2026-11-20 16:56:12 UTC
LABEL: x y
";

    /// What an 18.4 server wrote.
    const EIGHTEEN: &str = "START WAL LOCATION: 0/C00028 (file 00000001000000000000000C)
CHECKPOINT LOCATION: 0/C00080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-20 16:56:13 UTC
LABEL: x y
START TIMELINE: 1
";

    #[test]
    fn real_labels_are_read() {
        let expected = BackupLabel {
            start: Lsn(0x400_0028),
            timeline: Timeline(1),
            checkpoint: Lsn(0x400_0060),
            from: Some(BackupSource::Primary),
            label: Some("x y".to_owned()),
        };
        assert_eq!(BackupLabel::parse(TEN).unwrap(), expected);
        let eighteen = BackupLabel::parse(EIGHTEEN).unwrap();
        assert_eq!((eighteen.start, eighteen.checkpoint), (Lsn(0xC0_0028), Lsn(0xC0_0080)));
        assert_eq!(eighteen.timeline, Timeline(1));
    }

    #[test]
    fn the_timeline_comes_from_the_file_name_before_11() {
        let text = TEN.replace("(file 00000001", "(file 0000001F").replace("master", "standby");
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!((label.timeline, label.from), (Timeline(31), Some(BackupSource::Standby)));
    }

    #[test]
    fn a_label_names_the_line_that_is_wrong() {
        let without = |line: &str| -> String {
            EIGHTEEN
                .lines()
                .filter(|found| !found.starts_with(line))
                .map(|found| format!("{found}\n"))
                .collect()
        };
        let text = |label: &str| BackupLabel::parse(label).unwrap_err().to_string();
        for line in ["START WAL LOCATION", "CHECKPOINT LOCATION"] {
            assert_eq!(
                text(&without(line)),
                format!("the line \"{line}\" of backup_label is missing or cannot be read")
            );
        }
        assert!(BackupLabel::parse(&without("START TIMELINE")).is_ok());
        assert!(BackupLabel::parse(&without("BACKUP FROM")).unwrap().from.is_none());
        for (from, to, line) in [
            ("0/C00028 (", "C00028 (", "START WAL LOCATION"),
            (" (file", "(file", "START WAL LOCATION"),
            ("0/C00080", "", "CHECKPOINT LOCATION"),
            ("primary", "somewhere", "BACKUP FROM"),
            ("TIMELINE: 1", "TIMELINE: 0", "START TIMELINE"),
            ("TIMELINE: 1", "TIMELINE: x", "START TIMELINE"),
        ] {
            assert!(text(&EIGHTEEN.replace(from, to)).contains(line), "{from}");
        }
        assert!(BackupLabel::parse("").is_err());
    }
}
