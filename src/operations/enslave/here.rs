//! Owns this side as the preflight sees it: the cluster that is here, the end of its WAL, and what would
//! be lost if it went away. Nothing is changed.

use super::super::{Context, standby};
use super::plan::{Loss, Ours, Relation, Theirs};
use super::there::end_of_wal;
use crate::durable::Context as _;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::backup::BackupLabel;
use crate::postgres::control::{ClusterState, ControlFile};
use crate::postgres::files;
use crate::postgres::records::{DirectoryReader, Pages, commits_after};
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{History, Lsn, Timeline, history_file_name, parse_segment_name};
use crate::progress::time_text;
use crate::sql::{Db, Target};
use std::fs;
use std::path::{Path, PathBuf};

/// The cluster of this instance.
pub struct Cluster {
    /// PGDATA.
    pub data: PathBuf,
    /// Its control file.
    pub control: ControlFile,
    /// Its major version.
    pub version: PgVersion,
    /// SQL to it, when it runs and lets us in.
    pub db: Option<Db>,
    /// What the decision needs.
    pub ours: Ours,
}

pub use crate::instance::has_standby_file;

/// Looks at the cluster here; `None` when the data directory holds none.
pub fn look(context: Context) -> Result<Option<Cluster>> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    super::marker::check(context, &data)?;
    let Some(version) = instance.data_version()? else {
        let strangers = fs::read_dir(&data).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            !name.to_string_lossy().starts_with('.') && name != "lost+found"
        });
        return if strangers && !data.join(super::marker::MARKER).exists() {
            Err(Error::NotADataDirectory { path: data })
        } else {
            Ok(None)
        };
    };
    let Some(control) = instance.control()? else {
        // Without its control file it is a copy that broke off, if it says so itself; else it is somebody's
        // damaged cluster.
        return if data.join(super::marker::MARKER).exists() {
            Ok(None)
        } else {
            Err(Error::NoControlFile { path: data })
        };
    };
    let db = connect_if_running(instance)?;
    let ours = ours(instance, &data, &control, version, db)?;
    Ok(Some(Cluster { data, control, version, db: ours.1, ours: ours.0 }))
}

fn connect_if_running(instance: &Instance) -> Result<Option<Db>> {
    if instance.running().is_none() {
        return Ok(None);
    }
    // A server that is starting up, or lets nobody in, is judged by its files.
    Ok(Db::connect(&Target::local(instance)?).ok())
}

fn ours(
    instance: &Instance,
    data: &Path,
    control: &ControlFile,
    version: PgVersion,
    mut db: Option<Db>,
) -> Result<(Ours, Option<Db>)> {
    let mut timeline = instance.newest_timeline(control)?;
    let mut is_standby = has_standby_file(data);
    // A server that runs but does not let us ask is judged by its files.
    let mut is_live_primary = !is_standby && instance.running().is_some();
    let end = if let Some(db) = &mut db {
        is_standby = db.in_recovery()?;
        is_live_primary = !is_standby;
        if is_live_primary {
            // The control file names a new timeline only after the first checkpoint on it.
            let (name_of, now) = (version.sql_walfile_name(), version.sql_current_wal_lsn());
            let sql = format!("SELECT {name_of}({now})");
            let name: String = db.value(&sql, &[])?;
            if let Some((current, _)) = parse_segment_name(&name, control.wal_segment_size) {
                timeline = current;
            }
        } else {
            timeline = standby::timeline(db, instance)?;
        }
        end_of_wal(db, is_standby)?
    } else if control.state == ClusterState::ShutDown && !is_standby && !is_live_primary {
        // The shutdown checkpoint is the last record, and a switch point never lies inside a record: just
        // past its beginning is past all points in front of it, and in front of all behind it.
        Lsn(control.checkpoint.0 + 1)
    } else {
        end_of_files(data, control, version, timeline)?
    };
    let history = if timeline == Timeline(1) {
        Some(History::root())
    } else {
        let path = data.join(version.wal_directory()).join(history_file_name(timeline));
        fs::read_to_string(path).ok().and_then(|text| History::parse(timeline, &text).ok())
    };
    let ours = Ours { system_id: control.system_id, history, timeline, end, is_standby, is_live_primary };
    Ok((ours, db))
}

/// The end of the WAL in the files of a server that does not run (or lets nobody in).
pub fn end_of_files(
    data: &Path,
    control: &ControlFile,
    version: PgVersion,
    timeline: Timeline,
) -> Result<Lsn> {
    let label = fs::read_to_string(data.join("backup_label")).ok();
    let start = match label {
        // A fresh copy: replay begins where the backup did, and there may be no WAL here yet.
        Some(text) => BackupLabel::parse(&text)?.start,
        None => control.checkpoint_redo,
    };
    let mut reader = reader(data, control, version, timeline, start)?;
    for record in reader.by_ref() {
        match record {
            Ok(_) => {}
            // WAL before 10 is not read: beyond every switch point, so that it is copied.
            Err(Error::WalVersion { .. }) => return Ok(Lsn(u64::MAX)),
            Err(error) => return Err(error),
        }
    }
    Ok(reader.end().max(control.min_recovery_point))
}

fn reader(
    data: &Path,
    control: &ControlFile,
    version: PgVersion,
    timeline: Timeline,
    start: Lsn,
) -> Result<DirectoryReader> {
    let directory = data.join(version.wal_directory());
    DirectoryReader::of_pages(start, Pages::of(&directory, timeline, control.wal_segment_size))
}

/// Whether somebody has created a database, a role, or something in the database that `db` is connected to.
pub fn has_user_objects(db: &mut Db) -> Result<bool> {
    let databases: i64 = db.value(
        "SELECT count(*) FROM pg_database WHERE datname NOT IN ('template0', 'template1', 'postgres')",
        &[],
    )?;
    // 16384 is FirstNormalObjectId: what initdb makes has smaller OIDs.
    let objects: i64 = db.value(
        "SELECT (SELECT count(*) FROM pg_class WHERE oid >= 16384) \
              + (SELECT count(*) FROM pg_proc WHERE oid >= 16384) \
              + (SELECT count(*) FROM pg_authid WHERE oid >= 16384) \
              + (SELECT count(*) FROM pg_largeobject_metadata)",
        &[],
    )?;
    Ok(databases + objects > 0)
}

impl Cluster {
    /// What would be lost if this cluster went away in favour of the source.
    pub fn loss(&mut self, relation: &Relation, theirs: &Theirs) -> Result<Loss> {
        match relation {
            Relation::Other if self.has_user_data()? => Ok(Loss::Something(format!(
                "another cluster with data of its own (system identifier {}; the source's is {})",
                self.control.system_id, theirs.system_id
            ))),
            Relation::Other => Ok(Loss::Fresh),
            Relation::Behind => Ok(Loss::Nothing),
            // A standby's WAL came from a primary; past the point it may hold that one's commits all the same.
            Relation::DivergedAt(timeline, at) => Ok(self.commits_since(*timeline, *at)),
            Relation::Unknown(why) => {
                Ok(Loss::Something(format!("possibly commits that the source lacks ({why})")))
            }
        }
    }

    fn commits_since(&self, timeline: Timeline, at: Lsn) -> Loss {
        let counted = reader(&self.data, &self.control, self.version, self.ours.timeline, at)
            .and_then(|mut reader| commits_after(&mut reader, at));
        let point = format!("since {at} of timeline {}", timeline.0);
        match counted {
            // No commit, and read to the end: a damaged page in the middle looks like an end.
            Ok(summary) if summary.count + summary.prepared == 0 && summary.end >= self.ours.end => {
                Loss::Nothing
            }
            Ok(summary) if summary.count + summary.prepared == 0 => Loss::Something(format!(
                "possibly commits that the source lacks ({point}; its WAL can be read only to {})",
                summary.end
            )),
            Ok(summary) => {
                let last = summary.last_time.map(|t| t.unix_micros() / 1_000_000);
                let last = last.map(|t| format!(", the last at {}", time_text(t))).unwrap_or_default();
                let count = summary.count + summary.prepared;
                let plural = if count == 1 { "" } else { "s" };
                Loss::Something(format!("{count} commit{plural} that the source lacks ({point}{last})"))
            }
            // Stopped right at the point: there is no record behind it.
            Err(Error::WalUnreadable { .. }) if self.ours.end <= at => Loss::Nothing,
            Err(_) => {
                Loss::Something(format!("possibly commits that the source lacks ({point}; its WAL is gone)"))
            }
        }
    }

    /// Whether somebody has created something here: told from file names, which also counts a rewritten
    /// catalogue as data, and asked by SQL where the server runs.
    pub fn has_user_data(&mut self) -> Result<bool> {
        if let Some(db) = &mut self.db
            && has_user_objects(db)?
        {
            return Ok(true);
        }
        let base = self.data.join("base");
        for database in fs::read_dir(&base).on("list", &base)?.flatten() {
            for file in fs::read_dir(database.path()).into_iter().flatten().flatten() {
                let (database, file) = (database.file_name(), file.file_name());
                let path = format!("base/{}/{}", database.to_string_lossy(), file.to_string_lossy());
                if files::is_user_data(&path) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
