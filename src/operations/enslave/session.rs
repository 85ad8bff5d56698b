//! Owns the base backup on the source, the slot that keeps its WAL, and the SQL session that both belong to: they end
//! with it, however we end. A backup of a standby for a follower of its primary has its slot there, in a session of its
//! own.

use super::super::{Context, standby};
use super::there::end_of_wal;
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::postgres::backup::BackupCalls;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::Lsn;
use crate::progress::Progress;
use crate::sql::{Db, Target, literal};

/// A base backup that is running, and the slot that keeps its WAL.
pub struct Backup<'a> {
    held: Held<'a>,
    calls: BackupCalls,
    running: bool,
    /// Where it began: replay starts there, or before.
    pub begin: Option<Lsn>,
}

/// A slot, and the session that holds it.
pub struct Held<'a> {
    db: &'a mut Db,
    slot: Slot,
    target: Target,
    progress: &'a Progress,
}

/// How the slot is held.
enum Slot {
    /// Versions without slots: WAL is copied after the stop.
    None,
    /// Temporary, gone with the session; copied into the permanent one at the end.
    Temporary { temporary: String, permanent: String },
    /// Temporary, gone with the session: the copy brings its WAL along.
    Passing,
    /// Permanent from the start; dropped by us when the copy fails.
    Permanent { name: String, keep: bool },
}

impl Backup<'_> {
    /// Reserves the WAL and begins the backup.
    pub fn start<'a>(
        context: Context<'a>,
        db: &'a mut Db,
        target: &Target,
        slot: &str,
    ) -> Result<Backup<'a>> {
        Backup::start_with(context, db, target, |db| reserve(db, slot))
    }

    /// The same for a backup that brings its WAL along: nothing lasts beyond the session. Where no slot can be had
    /// (a full disk) it goes on without one, and the WAL has to be looked for at the end.
    pub fn start_passing<'a>(context: Context<'a>, db: &'a mut Db, target: &Target) -> Result<Backup<'a>> {
        Backup::start_with(context, db, target, |db| {
            if !db.version.has_temporary_slots() {
                return Ok(Slot::None);
            }
            let name = format!("pgmahout_backup_tmp{}", std::process::id());
            match db.rows("SELECT pg_create_physical_replication_slot($1, true, true)::text", &[&name]) {
                Ok(_) => Ok(Slot::Passing),
                Err(error) => {
                    context.progress.warn(format!("no slot keeps the WAL meanwhile: {error}"));
                    Ok(Slot::None)
                }
            }
        })
    }

    fn start_with<'a>(
        context: Context<'a>,
        db: &'a mut Db,
        target: &Target,
        reserve: impl FnOnce(&mut Db) -> Result<Slot>,
    ) -> Result<Backup<'a>> {
        let version = db.version;
        let calls = BackupCalls::of(version);
        let label = format!("pgmahout {}", context.instance.name);
        if calls.exclusive {
            end_own_exclusive_backup(db, &label)?;
        }
        // The backup's start waits for a checkpoint, which takes as long as the disks need.
        db.run(&format!("SET statement_timeout = '1h'; {MAY_SIT_IDLE}"))?;
        let slot = reserve(db)?;
        let held = Held { db, slot, target: target.clone(), progress: context.progress };
        let mut backup = Backup { held, calls, running: true, begin: None };
        boundary("backup.starting");
        let rows = backup.held.db.rows_interruptible(calls.start, &[&label])?;
        boundary("backup.started");
        backup.begin = rows.first().and_then(|row| row.get::<_, &str>(0).parse().ok());
        Ok(backup)
    }

    /// Ends the backup; gives the content of backup_label where it is not a file of the source.
    pub fn stop(&mut self) -> Result<(Option<String>, Option<String>)> {
        self.running = false;
        boundary("backup.stopping");
        let row = self.held.db.row(self.calls.stop, &[])?;
        boundary("backup.stopped");
        Ok((row.get("labelfile"), row.get("lsn")))
    }

    /// Makes the slot last beyond this session.
    pub fn keep_slot(&mut self) -> Result<()> {
        self.held.keep()
    }

    /// The permanent slot is nobody's again.
    pub fn disown_slot(&mut self) {
        self.held.disown();
    }

    /// Rows of the session in which the backup runs.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<postgres::Row>> {
        self.held.db.rows(sql, &[])
    }

    /// The server's version.
    pub fn version(&self) -> PgVersion {
        self.held.db.version
    }

    /// The end of the WAL that the server of the backup has.
    pub fn end_of_wal(&mut self, in_recovery: bool) -> Result<Lsn> {
        end_of_wal(self.held.db, in_recovery)
    }
}

impl Held<'_> {
    /// Reserves the WAL for a standby from now on.
    pub fn reserve<'a>(
        context: Context<'a>,
        db: &'a mut Db,
        target: &Target,
        slot: &str,
    ) -> Result<Held<'a>> {
        db.run(MAY_SIT_IDLE)?;
        let slot = reserve(db, slot)?;
        Ok(Held { db, slot, target: target.clone(), progress: context.progress })
    }

    /// From where on the WAL is kept.
    pub fn keeps_from(&mut self) -> Result<Lsn> {
        let name = match &self.slot {
            Slot::Temporary { temporary, .. } => temporary,
            Slot::Permanent { name, .. } => name,
            Slot::None | Slot::Passing => return Ok(Lsn::ZERO),
        };
        let sql =
            format!("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = {}", literal(name));
        Ok(self.db.lsn(&sql)?.unwrap_or(Lsn::ZERO))
    }

    /// Makes the slot last beyond this session.
    pub fn keep(&mut self) -> Result<()> {
        match &mut self.slot {
            Slot::None | Slot::Passing => Ok(()),
            Slot::Permanent { keep, .. } => {
                *keep = true;
                Ok(())
            }
            Slot::Temporary { temporary, permanent } => {
                let permanent = permanent.clone();
                let (of, to) = (literal(temporary), literal(&permanent));
                // The slot of the old cluster here is not needed from now on.
                self.db.run(&format!(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE slot_name = {to} AND NOT active; \
                     SELECT pg_copy_physical_replication_slot({of}, {to}, false); \
                     SELECT pg_drop_replication_slot({of})"
                ))?;
                boundary("slot.kept");
                self.slot = Slot::Permanent { name: permanent, keep: true };
                Ok(())
            }
        }
    }

    /// The permanent slot is nobody's again.
    pub fn disown(&mut self) {
        if let Slot::Permanent { keep, .. } = &mut self.slot {
            *keep = false;
        }
    }

    /// When it is the session that broke, what lasts beyond it needs another one: whether there is one, and whether it is
    /// another.
    fn revive(&mut self) -> (bool, bool) {
        if self.db.is_alive() {
            return (true, false);
        }
        match Db::connect(&self.target) {
            Ok(db) => *self.db = db,
            Err(error) => {
                if let Slot::Permanent { name, keep: false } = &self.slot {
                    self.progress.warn(format!(
                        "the slot {name} may be left on {}: {error}; running this command again uses it",
                        self.target.label
                    ));
                    self.slot = Slot::None;
                }
                return (false, false);
            }
        }
        if let Slot::Temporary { .. } = self.slot {
            self.slot = Slot::None;
        }
        (true, true)
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        if !self.running {
            return;
        }
        let (alive, is_another) = self.held.revive();
        // A backup of the newer kind ends with its session, but ours may live on for a while.
        if alive && (self.calls.exclusive || !is_another) {
            let _ = self.held.db.rows(self.calls.stop, &[]);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let ends_well = matches!(self.slot, Slot::None | Slot::Passing | Slot::Permanent { keep: true, .. });
        if ends_well && self.db.run(USUAL_LIMIT).is_ok() {
            return;
        }
        if !self.revive().0 {
            return;
        }
        match &self.slot {
            Slot::Permanent { name, keep: false } => drop(standby::drop_slot(self.db, name)),
            Slot::Temporary { temporary, .. } => drop(standby::drop_slot_in_session(self.db, temporary)),
            _ => {}
        }
        let _ = self.db.run(USUAL_LIMIT);
    }
}

/// As [`Db::connect`] sets it.
const USUAL_LIMIT: &str = "SET statement_timeout = '60s'";

/// The session does nothing for the whole copy; without it there is no backup and no slot.
const MAY_SIT_IDLE: &str =
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";

/// In exclusive mode our own crash leaves the primary in backup mode: end it, if it is ours.
fn end_own_exclusive_backup(db: &mut Db, label: &str) -> Result<()> {
    let running: bool = db.value("SELECT pg_is_in_backup()", &[])?;
    if running {
        let text: String = db.value("SELECT pg_read_file('backup_label')", &[])?;
        if !text.contains(&format!("LABEL: {label}\n")) {
            return Err(Error::ForeignBackup { text: text.lines().last().unwrap_or_default().to_owned() });
        }
        db.rows("SELECT pg_stop_backup()::text", &[])?;
    }
    Ok(())
}

fn reserve(db: &mut Db, slot: &str) -> Result<Slot> {
    let version = db.version;
    if !version.has_replication_slots() {
        return Ok(Slot::None);
    }
    let row = db.row(
        "SELECT coalesce(bool_or(active AND slot_name = $1), false), \
                current_setting('max_replication_slots')::bigint - count(*) FROM pg_replication_slots",
        &[&slot],
    )?;
    let (in_use, free): (bool, i64) = (row.get(0), row.get(1));
    if in_use {
        return Err(Error::SlotInUse { slot: slot.to_owned() });
    }
    if version.copies_slots() && free >= 2 {
        let mut temporary = format!("{slot}_tmp{}", std::process::id());
        if temporary.len() > 63 {
            temporary = format!("pgmahout_tmp{}", std::process::id());
        }
        let sql = "SELECT pg_create_physical_replication_slot($1, true, true)::text";
        db.rows(sql, &[&temporary])?;
        return Ok(Slot::Temporary { temporary, permanent: slot.to_owned() });
    }
    // What is left of an earlier attempt or an earlier life keeps WAL from long ago.
    standby::drop_slot(db, slot)?;
    standby::create_slot(db, slot)?;
    Ok(Slot::Permanent { name: slot.to_owned(), keep: false })
}
