//! Owns what the WAL of both sides tells of the blocks in which they can differ: those that either has changed since a
//! point up to which they were the same. With it a *delta* costs what was changed, not what is there.
//!
//! Why a block that neither WAL names is the same on both sides. Let R be where the reading begins: the redo position of a
//! checkpoint that lies before the point where the two parted, and no later than the one in `pg_control` here. What lies on
//! the disk here is the state at R plus what the WAL here has changed since (before R everything was written out; behind
//! it, all that was written out is in the WAL). What the source's backup has, once replayed from its start S, is the state
//! at R plus what the source's WAL has changed since. So a block that is in neither list is as it was at R, here and there.
//!
//! What no WAL tells of are hints: that a transaction is committed or not, that an index entry is dead. Those that a
//! standby sets, or that were set before the two parted, are true on both sides. Those that a primary sets of what it did
//! after the parting are not: a block that has them must be in its list. It is, where hints are logged (checksums, or
//! `wal_log_hints`): then the first hint on a page since the last checkpoint brings the page into the WAL, and if it is not
//! the first, what came before it has. That holds from the checkpoint that this primary itself counts from. A standby that
//! was promoted counts from its last restartpoint, which no WAL tells of, and so is compared as a whole.
//!
//! Everything else that is unusual is not known either, and is compared as a whole: that is only slower. What this rests on
//! is that the server here has written its WAL before its pages. Where that may not be so (`fsync = off`, a disk that loses
//! what it has acknowledged), `--paranoid` compares everything.

use super::super::Context;
use super::here;
use super::marker;
use super::place::{Layout, Place};
use super::plan::{Relation, relation};
use super::session::Backup;
use super::there::There;
use crate::durable::Context as _;
use crate::error::Result;
use crate::instance::Instance;
use crate::postgres::changes::{Change, Changes, Relation as Table, Stretch};
use crate::postgres::control::ControlFile;
use crate::postgres::page::{PAGE, PAGES_PER_SEGMENT};
use crate::postgres::records::{DirectoryReader, Pages};
use crate::postgres::recovery::last_setting;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{History, Lsn, Timeline, segment_name};
use crate::process::check_interrupt;
use crate::transfer::protocol::ReadRange;
use crate::transfer::stream::Stream;
use std::fs;
use std::io;
use std::path::Path;

/// Why it is not known: a phrase.
type Unknown = String;

/// What is known.
pub struct Known {
    /// The blocks.
    pub changes: Changes,
    /// Where both were the same.
    from: Lsn,
    /// The WAL here from there on, as far as both can have the same.
    common: Vec<u8>,
    /// What has told of the source's: `wal` or `summaries`.
    pub by: &'static str,
}

/// So much WAL from R on is compared, to see that both come from there.
const COMPARED: u64 = 64 << 10;

/// What the cluster here, which is stopped, has changed since it was as the source was. The inner error is why that cannot
/// be known.
pub fn own(
    context: Context,
    source: &mut There,
    layout: &Layout,
) -> Result<std::result::Result<Known, Unknown>> {
    if !layout.reuse || matches!(layout.place, Place::Beside(_)) || marker::is_incomplete(&layout.data) {
        return Ok(Err("what is here is a copy that broke off".into()));
    }
    let Some(cluster) = here::look(context)? else { return Ok(Err("there is no cluster here".into())) };
    let (control, ours) = (&cluster.control, &cluster.ours);
    if let Err(why) = can_be_known(context.instance, &cluster.data, control, &source.control) {
        return Ok(Err(why));
    }
    let directory = cluster.data.join(source.version.wal_directory());
    let pages = || Pages::of(&directory, ours.timeline, control.wal_segment_size);
    let parted = match relation(ours, &source.as_seen()) {
        Relation::Behind if source.has_other_wal(ours, &cluster.data)? => {
            return Ok(Err("where it parted from the source cannot be known".into()));
        }
        Relation::Behind => None,
        Relation::DivergedAt(timeline, _) if timeline != ours.timeline => {
            return Ok(Err("it was promoted".into()));
        }
        Relation::DivergedAt(timeline, at) if source.history.left_at(timeline) == Some(at) => Some(at),
        // The source has less on the same timeline: it has lost what it had, and may have gone on since.
        Relation::DivergedAt(..) | Relation::Other | Relation::Unknown(_) => {
            return Ok(Err("where it parted from the source cannot be known".into()));
        }
    };
    let from = match parted {
        Some(at) if control.checkpoint >= at => match checkpoint_before(at, pages)? {
            Some(redo) => redo.min(control.checkpoint_redo),
            None => {
                let why = format!("the WAL from its last checkpoint before {at} on is not here any more");
                return Ok(Err(why));
            }
        },
        _ => control.checkpoint_redo,
    };
    let mut changes = match Changes::new(source.version) {
        Ok(changes) => changes,
        Err(why) => return Ok(Err(why)),
    };
    let stretch = Stretch {
        version: source.version.num(),
        timeline: ours.timeline,
        segment_size: control.wal_segment_size,
        from,
        to: None,
    };
    let read = stretch.read(&directory, &mut changes, interrupted);
    // An interrupt is told by the check itself.
    check_interrupt()?;
    let end = match read.on("read", &directory)? {
        Ok(end) => end,
        Err(why) => return Ok(Err(format!("the WAL here cannot be read: {why}"))),
    };
    if end < control.min_recovery_point || end <= control.checkpoint {
        return Ok(Err(format!("the WAL here ends at {end}, before what was written out")));
    }
    let hints_are_logged = control.data_checksum_version > 0
        || control.wal_log_hints && !ours.is_standby && !changes.parameters_changed;
    if parted.is_some() && !hints_are_logged {
        return Ok(Err("it has neither checksums nor wal_log_hints".into()));
    }
    let until = from.floor(stretch.segment_size.into()).0 + u64::from(stretch.segment_size);
    let until = Lsn(until.min(from.0 + COMPARED)).min(parted.unwrap_or(end)).min(end);
    let mut common = vec![0; (until.0 - from.0) as usize];
    pages().read(from, &mut common).on("read", &directory)?;
    Ok(Ok(Known { changes, from, common, by: "wal" }))
}

fn interrupted() -> io::Result<()> {
    check_interrupt().map_err(|_| io::ErrorKind::Interrupted.into())
}

fn can_be_known(
    instance: &Instance,
    data: &Path,
    control: &ControlFile,
    theirs: &ControlFile,
) -> std::result::Result<(), Unknown> {
    let usual = |control: &ControlFile| {
        control.block_size as usize == PAGE && control.segment_blocks == PAGES_PER_SEGMENT
    };
    if !usual(control) || !usual(theirs) {
        return Err("its block sizes are unusual".into());
    }
    // Enabled or disabled on one side only, without a word in the WAL.
    if control.data_checksum_version != theirs.data_checksum_version {
        return Err("only one of the two has checksums".into());
    }
    if data.join("backup_label").exists() || control.backup_start_point != Lsn::ZERO {
        return Err("it is a backup that has not been recovered".into());
    }
    if !control.state.is_clean() && setting(instance, data, "fsync").is_some_and(|value| !is_on(&value)) {
        return Err("it was not shut down, and fsync is off".into());
    }
    Ok(())
}

fn setting(instance: &Instance, data: &Path, name: &str) -> Option<String> {
    let of = |path: &Path| last_setting(&fs::read_to_string(path).ok()?, name);
    let directory = instance.config_directory.as_deref().unwrap_or(data);
    of(&data.join("postgresql.auto.conf")).or_else(|| of(&directory.join("postgresql.conf")))
}

/// As the server reads a boolean: any beginning of a word that is unique.
fn is_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    value == "1"
        || value == "on"
        || ["true", "yes"].iter().any(|word| !value.is_empty() && word.starts_with(&value))
}

/// The redo position of the last checkpoint whose record lies before `at`, if the WAL from there on is here.
fn checkpoint_before(at: Lsn, pages: impl Fn() -> Pages) -> Result<Option<Lsn>> {
    let size = pages().segment_size.into();
    // A record that begins right at a segment's beginning is none that lies before it.
    let mut segment = Lsn(at.0.saturating_sub(1)).floor(size);
    loop {
        if pages().get(segment).ok().flatten().is_none() {
            return Ok(None);
        }
        let mut last = None;
        for record in DirectoryReader::searching_pages(segment, pages())? {
            check_interrupt()?;
            let record = record?;
            if record.lsn >= at {
                break;
            }
            last = record.checkpoint_redo().or(last);
        }
        if last.is_some() || segment == Lsn::ZERO {
            return Ok(last);
        }
        segment = Lsn(segment.0.saturating_sub(size));
    }
}

impl Known {
    /// Adds what the source has changed since, up to where its backup began. The inner error is why that cannot be known.
    pub fn add_theirs(
        &mut self,
        stream: &mut Stream,
        backup: &mut Backup,
        control: &ControlFile,
        history: &History,
        bytes: u64,
    ) -> Result<std::result::Result<(), Unknown>> {
        let Some(begin) = backup.begin else { return Ok(Err("where the backup began is not known".into())) };
        let Some(length) = begin.distance_from(self.from) else {
            return Ok(Err("the source is behind".into()));
        };
        let version = backup.version();
        let mut stretch = Stretch {
            version: version.num(),
            timeline: history.timeline,
            segment_size: control.wal_segment_size,
            from: self.from,
            to: Some(begin),
        };
        let why = if length > bytes {
            "there is more of it than data".to_owned()
        } else if let Some(theirs) = self.common_there(stream, control, history, version)? {
            if theirs != self.common {
                return Ok(Err("the WAL there is another from before they parted".into()));
            }
            match stream.changes(&stretch, &mut self.changes)? {
                Ok(()) => return Ok(Ok(())),
                Err(why) => why,
            }
        } else {
            format!("that of {} is not there any more", self.from)
        };
        if !version.summarizes_wal() {
            return Ok(Err(format!("of the WAL there: {why}")));
        }
        // The server keeps the WAL that is not in a summary yet.
        self.by = "summaries";
        let summarized = match self.add_summaries(backup, history, begin)? {
            Ok(until) => until,
            Err(nothing) => return Ok(Err(format!("of the WAL there: {why}; of its summaries: {nothing}"))),
        };
        if summarized >= begin {
            return Ok(Ok(()));
        }
        stretch.from = summarized;
        Ok(stream.changes(&stretch, &mut self.changes)?.map_err(|why| format!("of the WAL there: {why}")))
    }

    /// What the source has where we have [`Known::common`].
    fn common_there(
        &self,
        stream: &mut Stream,
        control: &ControlFile,
        history: &History,
        version: PgVersion,
    ) -> Result<Option<Vec<u8>>> {
        let size = control.wal_segment_size;
        let offset = self.from.0 - self.from.floor(size.into()).0;
        let first = history.timeline_at(self.from);
        for timeline in (first.0..=history.timeline.0).rev() {
            let name = segment_name(Timeline(timeline), self.from, size);
            let path = format!("{}/{name}", version.wal_directory());
            let range = ReadRange { root: 0, path, offset, length: self.common.len() as u64 };
            if let Some(bytes) = stream.read_part(&range)? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// What the summaries of the source tell from where both were the same; gives up to where they do.
    fn add_summaries(
        &mut self,
        backup: &mut Backup,
        history: &History,
        until: Lsn,
    ) -> Result<std::result::Result<Lsn, Unknown>> {
        let summaries = backup.summaries()?;
        let mut at = self.from;
        while at < until {
            let timeline = history.timeline_at(at);
            let here =
                |(of, start, end): &&(Timeline, Lsn, Lsn)| *of == timeline && *start <= at && at < *end;
            let Some(summary) = summaries.iter().find(here) else { break };
            let Some(changes) = backup.summary(summary)? else {
                return Ok(Err("one of them is too long".into()));
            };
            for change in changes {
                if let Err(why) = self.changes.add(change) {
                    return Ok(Err(why));
                }
            }
            at = summary.2;
        }
        Ok(match at > self.from {
            true => Ok(at),
            false => Err(format!("there is none of {at}")),
        })
    }
}

impl Backup<'_> {
    /// The summaries of WAL that the server has: timeline, begin, end.
    fn summaries(&mut self) -> Result<Vec<(Timeline, Lsn, Lsn)>> {
        let sql = "SELECT tli::int8, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()";
        let rows = self.rows(sql)?;
        let mut found = Vec::new();
        for row in rows {
            let timeline: i64 = row.get(0);
            let (start, end): (&str, &str) = (row.get(1), row.get(2));
            found.push((Timeline(timeline as u32), start.parse()?, end.parse()?));
        }
        Ok(found)
    }

    /// What one of them tells of main forks; `None` when that is too much at once.
    fn summary(&mut self, (timeline, start, end): &(Timeline, Lsn, Lsn)) -> Result<Option<Vec<Change>>> {
        const MOST: usize = 200_000;
        let sql = format!(
            "SELECT relfilenode::int8, reltablespace::int8, reldatabase::int8, relblocknumber, is_limit_block \
             FROM pg_wal_summary_contents({}, '{start}', '{end}') WHERE relforknumber = 0 LIMIT {}",
            timeline.0,
            MOST + 1
        );
        let rows = self.rows(&sql)?;
        if rows.len() > MOST {
            return Ok(None);
        }
        let change = |row: &postgres::Row| {
            let number = |n: usize| row.get::<_, i64>(n) as u32;
            let table = Table { number: number(0), tablespace: number(1), database: number(2) };
            match row.get::<_, bool>(4) {
                // Of a database as a whole.
                true if table.number == 0 => Change::Database(table.database),
                true => Change::From(table, number(3)),
                false => Change::Block(table, number(3)),
            }
        };
        Ok(Some(rows.iter().map(change).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_as_the_server_reads_them() {
        for on in ["on", "ON", "true", "t", "yes", "y", "1"] {
            assert!(is_on(on), "{on}");
        }
        for off in ["off", "of", "false", "f", "no", "n", "0", ""] {
            assert!(!is_on(off), "{off}");
        }
    }
}
