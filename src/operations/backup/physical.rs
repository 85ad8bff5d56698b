//! The bytes of a physical backup: the whole cluster as one tar, a base backup with the WAL that makes it
//! consistent, or a copy of a cluster whose server is down. Nothing is written on this machine but into the store.
//!
//! In the tar stand the paths of PGDATA, `global/pg_control` last: what was cut off cannot start. The content of a
//! tablespace stands where PGDATA sees it, as a directory `pg_tblspc/<oid>`; where it lay the manifest says.
//! By hand: `tar -xf` into an empty directory (0700), and start the server on it. With tablespaces move each
//! `pg_tblspc/<oid>` to where it is to be and put a symbolic link in its place first (a server wants links there;
//! with `allow_in_place_tablespaces = on` it takes the directories as well). A server that is started this way goes
//! on on the same timeline as its original: [`super::restore`] gives it one of its own.

use super::super::enslave::here::{self, has_standby_file};
use super::super::enslave::marker;
use super::super::enslave::session::Backup;
use super::super::{Context, standby};
use super::subject::{Options, Subject, Written};
use crate::backups::manifest::{Needs, Physical, Table};
use crate::compress::{self, Compression};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::backup::BackupLabel;
use crate::postgres::control::{ClusterState, ControlFile};
use crate::postgres::files::{RelationFile, relation_of};
use crate::postgres::page::{self, PAGE, PAGES_PER_SEGMENT};
use crate::postgres::recovery::last_setting;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{History, Lsn, Timeline, history_file_name, parse_segment_name, segment_name};
use crate::process;
use crate::sql::{Db, Target};
use crate::store;
use crate::transfer::walk::{self, Found, Walk};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that are read at once; whole pages.
const CHUNK: usize = 256 * 1024;
/// So many damaged pages are named; the others are as good as countless.
const NAMED: usize = 100;
/// Bytes that a checkpoint may want beside the files that are there.
const CHECKPOINT_ROOM: u64 = 64 * 1024;
/// A standby may wait so long for the WAL up to the backup's end.
const WAL_LIMIT: Duration = Duration::from_secs(300);

/// How large the cluster is. Nothing is begun.
pub fn subject(context: Context, _options: &Options) -> Result<Subject> {
    let instance = context.instance;
    instance.check_account()?;
    let data = instance.data_directory()?;
    let version = data_version(instance)?;
    // Read now, so that an unfinished or foreign directory is refused before anything is stored.
    marker::check(context, &data)?;
    if marker::is_incomplete(&data) {
        return Err(Error::UnfinishedCopy { path: data });
    }
    read_control(&data)?;
    let mut size = 0;
    let cluster = Cluster::look(&data, version, false, false)?;
    cluster.each(&mut |found| {
        size += found.size;
        Ok(())
    })?;
    Ok(Subject { database: None, database_size: size })
}

/// Writes the tar.
pub fn write(context: Context, options: &Options, subject: &Subject, to: &mut dyn Write) -> Result<Written> {
    let instance = context.instance;
    let text = options.compression.as_deref().unwrap_or(&instance.backup.compression);
    let compression = Compression::parse(text)?.unwrap_or(Compression::ZSTD);
    let jobs = options.jobs.unwrap_or(instance.backup.jobs);
    let writer = compress::Writer::new(to, compression, jobs);
    context.progress.begin_bytes("backup", subject.database_size);
    let mut archive = Archive::new(context, writer);
    let outcome = match instance.running() {
        Some(_) => hot(context, &mut archive),
        None => cold(context, &mut archive),
    };
    context.progress.end();
    let mut written = outcome?;
    let writer = archive.tar.into_inner().map_err(stored)?;
    written.content_size = writer.input();
    written.compression = compression.to_string();
    writer.finish().map_err(stored)?;
    Ok(written)
}

/// What fails while the tar is written, and is not a file of the cluster, is the store.
fn stored(error: io::Error) -> Error {
    if process::check_interrupt().is_err() {
        return Error::Interrupted;
    }
    store::own_error(&error).unwrap_or_else(|| Error::Store {
        place: "the store".into(),
        action: "write",
        why: error.to_string(),
    })
}

fn data_version(instance: &Instance) -> Result<PgVersion> {
    let path = instance.data_directory()?;
    instance.data_version()?.ok_or(Error::NoCluster { path })
}

/// The control file, whole: its server may be writing it, so its checksum decides.
fn read_control(data: &Path) -> Result<(Vec<u8>, ControlFile)> {
    let path = data.join("global/pg_control");
    let mut tries = 20;
    loop {
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoControlFile { path: data.into() });
            }
            other => other.on("read", &path)?,
        };
        tries -= 1;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

// --- what is walked ----------------------------------------------------------------------------------

struct Cluster {
    data: PathBuf,
    tablespaces: Vec<(u32, PathBuf)>,
    walk: Walk,
}

impl Cluster {
    fn look(
        data: &Path,
        version: PgVersion,
        with_backup_label: bool,
        with_unlogged: bool,
    ) -> Result<Cluster> {
        let tablespaces = walk::tablespaces(data).on("read", data)?;
        let inside = tablespaces.iter().map(|(_, path)| path.clone()).filter(|path| path.starts_with(data));
        let walk = Walk { version, with_backup_label, with_unlogged, inside: inside.collect() };
        Ok(Cluster { data: data.into(), tablespaces, walk })
    }

    fn each(&self, each: &mut dyn FnMut(Found) -> io::Result<()>) -> Result<()> {
        let mut all = || -> io::Result<()> {
            self.walk.root(0, &self.data, "", each)?;
            for (oid, path) in &self.tablespaces {
                self.walk.root(*oid, path, &format!("pg_tblspc/{oid}"), each)?;
            }
            Ok(())
        };
        all().on("read", &self.data)
    }

    fn locations(&self) -> BTreeMap<u32, String> {
        // Relative to PGDATA when in it.
        let shown = |path: &PathBuf| path.strip_prefix(&self.data).unwrap_or(path).display().to_string();
        self.tablespaces.iter().map(|(oid, path)| (*oid, shown(path))).collect()
    }
}

// --- the tar -----------------------------------------------------------------------------------------

struct Archive<'a, W: Write> {
    context: Context<'a>,
    tar: tar::Builder<W>,
    buffer: Vec<u8>,
    pages: Option<Pages>,
}

/// What is known of pages with a wrong checksum.
struct Pages {
    /// Replay repairs pages that were changed from here on.
    start: Lsn,
    damaged: Vec<String>,
    count: u64,
    /// Wrong, but changed since the start, says a position that may be damaged itself.
    suspects: Vec<(Lsn, String)>,
}

impl<'a, W: Write> Archive<'a, W> {
    fn new(context: Context<'a>, to: W) -> Archive<'a, W> {
        Archive { context, tar: tar::Builder::new(to), buffer: vec![0; CHUNK], pages: None }
    }

    fn header(is_directory: bool, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_directory { 0o700 } else { 0o600 });
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_mtime(super::now().max(0) as u64);
        header.set_size(size);
        header
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = Self::header(true, 0);
        self.tar.append_data(&mut header, format!("{path}/"), io::empty()).map_err(stored)
    }

    fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = Self::header(false, bytes.len() as u64);
        self.tar.append_data(&mut header, path, bytes).map_err(stored)
    }

    /// A file as it is now; gone is gone. What it grows by is not wanted, what it shrinks by is zeroes: replay
    /// makes both right.
    fn file(&mut self, in_data: &str, full: &Path) -> Result<()> {
        let file = match File::open(full) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.on("open", full)?,
        };
        let size = file.metadata().on("look at", full)?.len();
        let relation = relation_of(in_data).filter(|_| self.pages.is_some());
        let mut header = Self::header(false, size);
        let mut content = Content {
            file: &file,
            in_data,
            at: 0,
            size,
            buffer: &mut self.buffer,
            from: 0,
            have: 0,
            pages: self.pages.as_mut().zip(relation),
            context: self.context,
            failed: None,
        };
        let appended = self.tar.append_data(&mut header, in_data, &mut content);
        if let Some(error) = content.failed.take() {
            return Err(error).on("read", full);
        }
        process::check_interrupt()?;
        appended.map_err(stored)
    }

    fn cluster(&mut self, cluster: &Cluster, still: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut seen = 0u64;
        let mut failed = None;
        let outcome = cluster.each(&mut |found| {
            seen += 1;
            let appended = process::check_interrupt()
                .and_then(|()| if seen.is_multiple_of(256) { still() } else { Ok(()) })
                .and_then(|()| match found.is_directory {
                    true => self.directory(&found.in_data),
                    // Last of all.
                    false if found.in_data == "global/pg_control" => Ok(()),
                    false => self.file(&found.in_data, &found.full),
                });
            appended.map_err(|error| {
                failed = Some(error);
                io::Error::other("see failed")
            })
        });
        match failed {
            Some(error) => Err(error),
            None => outcome,
        }?;
        for (oid, _) in &cluster.tablespaces {
            self.directory(&format!("pg_tblspc/{oid}"))?;
        }
        Ok(())
    }

    /// A WAL segment by its name; true when it is there. Recycled under our hands it would be another's.
    fn segment(&mut self, wal: &Path, version: PgVersion, name: &str, size: u32) -> Result<bool> {
        let path = wal.join(name);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.on("open", &path)?,
        };
        let metadata = file.metadata().on("look at", &path)?;
        if metadata.len() != u64::from(size) {
            return Ok(false);
        }
        let in_data = format!("{}/{name}", version.wal_directory());
        self.file(&in_data, &path)?;
        let same = fs::metadata(&path).is_ok_and(|now| now.ino() == metadata.ino());
        if !same {
            return Ok(false);
        }
        // What the copy has it never archives again.
        self.bytes(&format!("{}/archive_status/{name}.done", version.wal_directory()), &[])?;
        Ok(true)
    }

    /// The segments from `first` to the one that holds the byte before `end`, and the histories that lead there.
    fn wal(&mut self, cluster: &Cluster, history: &History, first: Lsn, end: Lsn, size: u32) -> Result<()> {
        let version = cluster.walk.version;
        let wal = cluster.data.join(version.wal_directory());
        let last = Lsn(end.0.saturating_sub(1)).max(first);
        let timelines: Vec<Timeline> =
            history.entries.iter().map(|entry| entry.timeline).chain([history.timeline]).collect();
        let mut at = first.floor(size.into());
        while at <= last {
            let segment_end = Lsn(at.0 + u64::from(size));
            // The newest timeline's file has the older ones' part of it too, and without it replay ends here.
            let needed = history.timeline_at(Lsn(segment_end.0.min(end.0.max(1)) - 1));
            for timeline in timelines.iter().filter(|timeline| **timeline <= needed) {
                let name = segment_name(*timeline, at, size);
                let there = self.segment(&wal, version, &name, size)?;
                if *timeline == needed && !there {
                    return Err(Error::BackupWalGone { segment: name, directory: wal });
                }
            }
            at = segment_end;
        }
        for timeline in timelines {
            let name = history_file_name(timeline);
            if let Ok(text) = fs::read(wal.join(&name)) {
                self.bytes(&format!("{}/{name}", version.wal_directory()), &text)?;
                self.bytes(&format!("{}/archive_status/{name}.done", version.wal_directory()), &[])?;
            }
        }
        Ok(())
    }

    /// What is left of the pages with a wrong checksum, now that the end is known; and says so.
    fn damaged(&mut self, end: Lsn, warnings: &mut Vec<String>) -> Vec<String> {
        let Some(pages) = self.pages.take() else { return Vec::new() };
        let Pages { mut damaged, mut count, suspects, .. } = pages;
        // No page that was read before the end can have been changed after it.
        for (_, place) in suspects.into_iter().filter(|(lsn, _)| *lsn > end) {
            count += 1;
            damaged.push(place);
        }
        damaged.truncate(NAMED);
        if count > 0 {
            let first = damaged.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            warnings.push(format!(
                "{count} page{} of this cluster {} damaged (the checksum is wrong): {first}; the backup is kept, and \
                 holds them as they are. Look after the disk, and restore the tables from an older backup",
                if count == 1 { "" } else { "s" },
                if count == 1 { "is" } else { "are" },
            ));
        }
        damaged
    }
}

/// A file's content for the tar: as many bytes as its header says, its pages looked at as they go by.
struct Content<'a> {
    file: &'a File,
    in_data: &'a str,
    at: u64,
    size: u64,
    buffer: &'a mut Vec<u8>,
    from: usize,
    have: usize,
    pages: Option<(&'a mut Pages, RelationFile)>,
    context: Context<'a>,
    failed: Option<io::Error>,
}

impl Content<'_> {
    fn fill(&mut self) -> io::Result<()> {
        let want = (self.size - self.at).min(CHUNK as u64) as usize;
        let have = read_full(self.file, &mut self.buffer[..want], self.at)?;
        self.buffer[have..want].fill(0);
        if let Some((pages, relation)) = &mut self.pages {
            let first = relation.segment * PAGES_PER_SEGMENT + (self.at / PAGE as u64) as u32;
            for (index, page) in self.buffer[..have].chunks_exact_mut(PAGE).enumerate() {
                let block = first + index as u32;
                if !page::is_sound(page, block) {
                    let offset = self.at + (index * PAGE) as u64;
                    pages.doubt(self.file, page, block, offset, self.in_data)?;
                }
            }
        }
        self.context.progress.add(want as u64);
        (self.from, self.have) = (0, want);
        self.at += want as u64;
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.from == self.have {
            if self.at == self.size {
                return Ok(0);
            }
            process::check_interrupt().map_err(|_| io::Error::other("interrupted"))?;
            if let Err(error) = self.fill() {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                return Err(copy);
            }
        }
        let n = into.len().min(self.have - self.from);
        into[..n].copy_from_slice(&self.buffer[self.from..self.from + n]);
        self.from += n;
        Ok(n)
    }
}

impl Pages {
    /// A page whose checksum is wrong may have been read while it was written: it is read again before it is
    /// called damaged, and what was read last is what goes into the backup.
    fn doubt(&mut self, file: &File, page: &mut [u8], block: u32, offset: u64, path: &str) -> io::Result<()> {
        for _ in 0..3 {
            let mut again = [0u8; PAGE];
            if read_full(file, &mut again, offset)? < PAGE {
                // Cut off meanwhile.
                return Ok(());
            }
            page.copy_from_slice(&again);
            if page::is_sound(page, block) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let place = format!("{path}: {block}");
        let lsn = page::lsn(page);
        if lsn >= self.start {
            if self.suspects.len() < 10 * NAMED {
                self.suspects.push((lsn, place));
            }
            return Ok(());
        }
        self.count += 1;
        if self.damaged.len() < NAMED {
            self.damaged.push(place);
        }
        Ok(())
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

fn pages_of(control: &ControlFile, start: Lsn) -> Option<Pages> {
    let has = control.data_checksum_version != 0 && control.block_size as usize == PAGE;
    has.then(|| Pages { start, damaged: Vec::new(), count: 0, suspects: Vec::new() })
}

// --- a server that runs ------------------------------------------------------------------------------

fn hot<W: Write>(context: Context, archive: &mut Archive<W>) -> Result<Written> {
    let (instance, progress) = (context.instance, context.progress);
    let data = instance.data_directory()?;
    let (mut asked, target) = connect(instance)?;
    let version = asked.version;
    let from_standby = asked.in_recovery()?;
    check_room(&mut asked, &data, from_standby)?;
    let tables = tables(context, &mut asked, &target)?;
    let needs = needs(&mut asked)?;
    let mut db = Db::connect(&target)?;
    if from_standby && !version.has_nonexclusive_backup() {
        return Err(Error::StandbyBackup { version: version.major() });
    }

    progress.step("backup begins (a checkpoint runs)");
    let mut backup = Backup::start_passing(context, &mut db, &target)?;
    // The checksums of what this server writes: it may have been another's directory a moment ago.
    let (_, control) = read_control(&data)?;
    archive.pages = pages_of(&control, control.checkpoint_redo);
    let cluster = Cluster::look(&data, version, !version.has_nonexclusive_backup(), false)?;
    archive.cluster(&cluster, &|| Ok(()))?;
    boundary("capture.copied");
    // Before the end: what it calls the end of recovery must not lie behind the WAL that is brought along.
    let (control_bytes, control) = read_control(&data)?;
    // Before 9.6 it is a file of the source, until the end.
    let in_files = fs::read_to_string(data.join("backup_label")).ok();
    progress.step("backup ends");
    let (label, stop) = backup.stop()?;
    let stop: Lsn = stop.unwrap_or_default().parse()?;
    let text = label.clone().or(in_files).unwrap_or_default();
    let begun = BackupLabel::parse(&text)?;
    let history = match from_standby {
        true => wait_for_wal(context, &mut asked, stop)?,
        false => read_history(&data, version, begun.timeline)?,
    };
    archive.wal(&cluster, &history, begun.start, stop, control.wal_segment_size)?;
    drop(backup);
    if let Some(label) = label {
        archive.bytes("backup_label", label.as_bytes())?;
    }
    archive.bytes("global/pg_control", &control_bytes)?;
    let mut warnings = Vec::new();
    let damaged_pages = archive.damaged(stop, &mut warnings);
    Ok(Written {
        content_size: 0,
        compression: String::new(),
        from_standby,
        server_version: version.to_string(),
        server_version_num: version.num(),
        tool_version: None,
        system_id: control.system_id,
        timeline: history.timeline_at(Lsn(stop.0.saturating_sub(1))),
        lsn: stop,
        tables,
        needs,
        properties: None,
        physical: Some(Physical {
            start_lsn: begun.start,
            stop_lsn: stop,
            wal_segment_size: control.wal_segment_size,
            cold: false,
            checksums: control.data_checksum_version != 0,
            tablespaces: cluster.locations(),
            damaged_pages,
        }),
        warnings,
    })
}

/// On a full disk a session may fail for want of a cache that it writes, in one database and not in another.
fn connect(instance: &Instance) -> Result<(Db, Target)> {
    let target = Target::local(instance)?;
    match Db::connect(&target) {
        Ok(db) => Ok((db, target)),
        Err(Error::SqlRefused { why, .. }) if why.contains("init file") || why.contains("No space left") => {
            let other = target.database("template1");
            Db::connect(&other).map(|db| (db, other)).map_err(|_| Error::NoRoomForBackup { why })
        }
        Err(error) => Err(error),
    }
}

/// A backup begins with a checkpoint, which writes small files (`pg_logical/replorigin_checkpoint`), and on a primary
/// begins and ends by going on to another WAL segment. A server that has no room for these goes down with it (PANIC):
/// it is not touched.
fn check_room(db: &mut Db, data: &Path, from_standby: bool) -> Result<()> {
    let version = db.version;
    let free = durable::available_space(data)?;
    if free < CHECKPOINT_ROOM {
        return Err(Error::NoRoomForBackup { why: format!("{free} bytes are free in {}", data.display()) });
    }
    if from_standby {
        return Ok(());
    }
    let wal = data.join(version.wal_directory());
    let size = read_control(data)?.1.wal_segment_size;
    let sql = format!("SELECT {}({})", version.sql_walfile_name(), version.sql_current_wal_lsn());
    let current: String = db.value(&sql, &[])?;
    let begin = |name: &str| parse_segment_name(name, size).map(|(_, begin)| begin);
    let names = fs::read_dir(&wal).on("list", &wal)?.flatten();
    let ready = names.filter(|entry| begin(&entry.file_name().to_string_lossy()) > begin(&current)).count();
    let room = durable::available_space(&wal)? / u64::from(size);
    if ready as u64 + room < 2 {
        return Err(Error::NoRoomForBackup {
            why: format!("no room for a WAL segment in {}", wal.display()),
        });
    }
    Ok(())
}

/// The history of a timeline from its file.
fn read_history(data: &Path, version: PgVersion, timeline: Timeline) -> Result<History> {
    if timeline == Timeline(1) {
        return Ok(History::root());
    }
    let path = data.join(version.wal_directory()).join(history_file_name(timeline));
    History::parse(timeline, &fs::read_to_string(&path).on("read", &path)?)
}

/// A standby has replayed up to the backup's end, but what it replays may still be on its way to its own disk.
fn wait_for_wal(context: Context, db: &mut Db, stop: Lsn) -> Result<History> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    let arrived = process::wait_for(WAL_LIMIT, || {
        let (received, replayed) = standby::positions(db)?;
        Ok((received.max(replayed) >= Some(stop)).then_some(()))
    })?;
    arrived.ok_or(Error::LastWalMissing { end: stop.to_string(), limit: WAL_LIMIT })?;
    read_history(&data, db.version, standby::timeline(db, instance)?)
}

/// Tables and their estimates in every database that lets in.
fn tables(context: Context, db: &mut Db, target: &Target) -> Result<Vec<Table>> {
    let sql = "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1";
    let names: Vec<String> = db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect();
    let mut tables = Vec::new();
    for name in names {
        process::check_interrupt()?;
        let sql = "SELECT nspname::text, relname::text, reltuples::float8::bigint FROM pg_class c \
                   JOIN pg_namespace n ON n.oid = relnamespace \
                   WHERE relkind IN ('r', 'm') AND relpersistence = 'p' \
                   AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1, 2";
        // The backup has it all the same.
        let rows = match Db::connect(&target.database(&name)).and_then(|mut db| db.rows(sql, &[])) {
            Ok(rows) => rows,
            Err(error) => {
                context.progress.warn(format!("the manifest does not name the tables of {name}: {error}"));
                continue;
            }
        };
        tables.extend(rows.iter().map(|row| Table {
            database: Some(name.clone()),
            schema: row.get(0),
            name: row.get(1),
            estimate: row.get(2),
            rows: None,
        }));
    }
    Ok(tables)
}

/// Settings that a restored cluster must have.
fn needs(db: &mut Db) -> Result<Needs> {
    let mut needs = Needs::default();
    let minimums = db.version.standby_minimum_settings();
    for name in minimums.iter().chain(&["wal_level", "shared_preload_libraries", "data_checksums"]) {
        if let Some(value) = db.setting(name)?.filter(|value| !value.is_empty()) {
            needs.settings.insert((*name).to_owned(), value);
        }
    }
    let sql = "SELECT spcname::text, pg_tablespace_location(oid) FROM pg_tablespace \
               WHERE spcname NOT IN ('pg_default', 'pg_global')";
    for row in db.rows(sql, &[])? {
        needs.tablespaces.insert(row.get(0), row.get(1));
    }
    Ok(needs)
}

// --- a server that is down ---------------------------------------------------------------------------

/// A process that still works in a data directory whose postmaster is gone.
fn straggler(data: &Path) -> Option<i32> {
    let me = std::process::id() as i32;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let works_here = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data);
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        (works_here
            && pid != me
            && program.file_name().is_some_and(|n| n.to_string_lossy().starts_with("postgres")))
        .then_some(pid)
    })
}

fn cold<W: Write>(context: Context, archive: &mut Archive<W>) -> Result<Written> {
    let (instance, progress) = (context.instance, context.progress);
    let data = instance.data_directory()?;
    let version = data_version(instance)?;
    if let Some(pid) = straggler(&data) {
        return Err(Error::ClusterBusy { path: data, pid });
    }
    let pid_file = || fs::read(data.join("postmaster.pid")).ok();
    let pid_before = pid_file();
    let (control_bytes, control) = read_control(&data)?;
    let still = || match pid_file() == pid_before
        && fs::read(data.join("global/pg_control")).ok().as_ref() == Some(&control_bytes)
    {
        true => Ok(()),
        false => Err(Error::StartedMeanwhile { instance: instance.name.clone() }),
    };
    progress.step("the server does not run: its files are copied as they are");
    let is_clean = control.state.is_clean();
    let label = fs::read_to_string(data.join("backup_label")).ok();
    let begun = label.as_deref().map(BackupLabel::parse).transpose()?;
    let start = begun.map_or(control.checkpoint_redo, |label| label.start);
    // After a crash replay repairs what was being written; after a stop in order there is no replay.
    let repaired = if is_clean { Lsn(u64::MAX) } else { start };
    archive.pages = pages_of(&control, repaired);
    let from_standby = has_standby_file(&data) || control.state.in_recovery();
    let with_unlogged = control.state == ClusterState::ShutDown;
    let cluster = Cluster::look(&data, version, true, with_unlogged)?;
    archive.cluster(&cluster, &still)?;

    let timeline = instance.newest_timeline(&control)?;
    let end = match here::end_of_files(&data, &control, version, timeline)? {
        // WAL before 10 is not read: up to the last segment that is there.
        Lsn(u64::MAX) => last_segment(&data, version, control.wal_segment_size)?,
        end => end,
    };
    let history = read_history(&data, version, timeline)?;
    archive.wal(&cluster, &history, start, end, control.wal_segment_size)?;
    still()?;
    if straggler(&data).is_some() {
        return Err(Error::StartedMeanwhile { instance: instance.name.clone() });
    }
    archive.bytes("global/pg_control", &control_bytes)?;
    let mut warnings = Vec::new();
    let damaged_pages = archive.damaged(Lsn(u64::MAX), &mut warnings);
    let program = instance.program_version().ok().filter(|program| program.same_major(version));
    let shown = program.unwrap_or(version);
    let mut needs = Needs::default();
    for (name, value) in &control.standby_minimums {
        needs.settings.insert((*name).to_owned(), value.to_string());
    }
    let conf = instance.config_directory.as_deref().unwrap_or(&data).join("postgresql.conf");
    for file in [conf, data.join("postgresql.auto.conf")] {
        let text = fs::read_to_string(file).unwrap_or_default();
        for name in ["wal_level", "shared_preload_libraries"] {
            if let Some(value) = last_setting(&text, name) {
                needs.settings.insert(name.into(), value);
            }
        }
    }
    let checksums = control.data_checksum_version != 0;
    needs.settings.insert("data_checksums".into(), if checksums { "on" } else { "off" }.into());
    Ok(Written {
        content_size: 0,
        compression: String::new(),
        from_standby,
        server_version: shown.to_string(),
        server_version_num: shown.num(),
        tool_version: None,
        system_id: control.system_id,
        timeline: history.timeline_at(end),
        lsn: end,
        tables: Vec::new(),
        needs,
        properties: None,
        physical: Some(Physical {
            start_lsn: start,
            stop_lsn: end,
            wal_segment_size: control.wal_segment_size,
            cold: true,
            checksums,
            tablespaces: cluster.locations(),
            damaged_pages,
        }),
        warnings,
    })
}

fn last_segment(data: &Path, version: PgVersion, size: u32) -> Result<Lsn> {
    let wal = data.join(version.wal_directory());
    let names = fs::read_dir(&wal).on("list", &wal)?.flatten();
    let ends = names.filter_map(|entry| {
        let (_, begin) = parse_segment_name(&entry.file_name().to_string_lossy(), size)?;
        Some(Lsn(begin.0 + u64::from(size)))
    });
    Ok(ends.max().unwrap_or(Lsn::ZERO))
}
