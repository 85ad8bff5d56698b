//! Owns the full plan: a base backup of the source into a directory beside PGDATA, and the exchange of
//! the two in one atomic step.
//!
//! What holds at a kill at any instant: PGDATA is the old cluster, untouched, until the exchange; it is
//! the new one, complete and synced, from then on. Where PGDATA cannot be exchanged (a mount point, or no
//! room for two) it is emptied first, its control file before everything else, so that it cannot start
//! until the same command has been run to its end. The backup and its temporary slot belong to an SQL
//! session of ours and end with it, however we end.

use super::super::{Context, standby};
use super::plan::{Fate, Plan};
use super::there::There;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::layout::Service;
use crate::postgres::backup::BackupCalls;
use crate::postgres::control::ControlFile;
use crate::postgres::wal::{history_file_name, segment_name};
use crate::progress::{Progress, bytes_text, time_text};
use crate::service;
use crate::settings::Origin;
use crate::sql::{Db, Target};
use crate::ssh::Remote;
use crate::transfer::protocol::{Entry, EntryKind, List};
use crate::transfer::target::{self, Copied, Roots, Stream, Work};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stands in a copy until it is in PGDATA, complete: a directory beside PGDATA that has it was never
/// exchanged, one without it is an old cluster. Its lines name the tablespace directories of the copy.
pub const MARKER: &str = ".pgmahout-incomplete";

/// Where the copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into this directory beside PGDATA, to be exchanged.
    Beside(PathBuf),
    /// Into PGDATA itself, which is emptied first: why.
    InPlace(&'static str),
}

/// What the copy will need, measured before anything is changed.
pub struct Layout {
    /// PGDATA.
    pub data: PathBuf,
    /// Where the copy goes.
    pub place: Place,
    /// Tablespaces: OID, where on the source, where here.
    pub tablespaces: Vec<(u32, String, PathBuf)>,
    /// Bytes of the source's files.
    pub bytes: u64,
    /// Where pg_wal lies when it is a symbolic link here, and where the new one will.
    pub wal_link: Option<(PathBuf, PathBuf)>,
}

/// Bytes beyond the copy itself that have to be free: room for the WAL that arrives meanwhile.
const MARGIN: u64 = 64 << 20;

/// Measures the source and finds the place for the copy.
pub fn layout(
    context: Context,
    there: &mut There,
    plan: &Plan,
    mapping: &[(PathBuf, PathBuf)],
) -> Result<Layout> {
    let data = context.instance.data_directory()?;
    let mut sizes: BTreeMap<u32, u64> = BTreeMap::new();
    let mut tablespaces = Vec::new();
    let version = there.version;
    there.stream.list(&list(there.version.num(), version.has_nonexclusive_backup()), |entry| {
        match entry.kind {
            EntryKind::Tablespace if entry.size == 1 => {
                tablespaces.push((entry.root, entry.path.clone(), None));
            }
            EntryKind::Tablespace => tablespaces.push((entry.root, entry.path.clone(), Some(()))),
            // Whole blocks, as they will lie on the disk.
            _ => *sizes.entry(entry.root).or_default() += entry.size.next_multiple_of(4096),
        }
        Ok(())
    })?;
    let existing = existing_tablespaces(&data);
    let unfinished = [unfinished_tablespaces(&staging(&data)), unfinished_tablespaces(&data)].concat();
    let mut placed = Vec::new();
    let mut inside = 0;
    for (oid, on_source, outside) in tablespaces {
        match outside {
            None => {
                inside += sizes.get(&oid).copied().unwrap_or(0);
                placed.push((oid, on_source.clone(), data.join(&on_source)));
            }
            Some(()) => {
                let here = place_tablespace(context, &on_source, mapping, &existing, &unfinished, oid)?;
                placed.push((oid, on_source, here));
            }
        }
    }
    let in_data = sizes.get(&0).copied().unwrap_or(0) + inside;
    let bytes = sizes.values().sum();
    let place = find_place(&data, in_data, plan)?;
    for (oid, _, here) in placed.iter().filter(|(_, _, here)| !here.starts_with(&data)) {
        let needed = sizes.get(oid).copied().unwrap_or(0) + MARGIN;
        let available = durable::available_space(here)?;
        if available < needed {
            return Err(Error::NoSpace { path: here.clone(), needed, available });
        }
    }
    let wal = data.join(version.wal_directory());
    let is_link = fs::symlink_metadata(&wal).is_ok_and(|m| m.is_symlink());
    let wal_link = is_link.then(|| wal.canonicalize().ok()).flatten().map(|old| {
        let new = new_wal_directory(&old);
        (old, new)
    });
    Ok(Layout { data, place, tablespaces: placed, bytes, wal_link })
}

fn list(version: u32, has_nonexclusive_backup: bool) -> List {
    List { version, wal_from: None, with_backup_label: !has_nonexclusive_backup }
}

/// Tablespace links of the cluster that is here now.
fn existing_tablespaces(data: &Path) -> BTreeMap<u32, PathBuf> {
    let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
    links
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// The tablespace directories of a copy that was not completed, as its marker names them.
fn unfinished_tablespaces(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root.join(MARKER)).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

fn write_marker(root: &Path, layout: &Layout) -> Result<()> {
    let wal = layout.wal_link.iter().map(|(_, new)| new);
    let lines: String = outside(layout).chain(wal).map(|here| format!("{}\n", here.display())).collect();
    durable::write(&root.join(MARKER), lines.as_bytes(), 0o600)
}

/// Where a tablespace goes: where the mapping says, else where it is on the source. It must be empty or
/// absent: on one machine the source's own directory stands there.
fn place_tablespace(
    context: Context,
    on_source: &str,
    mapping: &[(PathBuf, PathBuf)],
    existing: &BTreeMap<u32, PathBuf>,
    unfinished: &[PathBuf],
    oid: u32,
) -> Result<PathBuf> {
    let mapped = mapping.iter().find(|(old, _)| old == Path::new(on_source)).map(|(_, new)| new.clone());
    let mut here = mapped.unwrap_or_else(|| PathBuf::from(on_source));
    if existing.get(&oid) == Some(&here) && !is_empty_or_absent(&here)? {
        // Our own old copy of it: the new one lies beside, for the old one must stay whole until then.
        let stamp = std::process::id();
        here = here.with_file_name(format!(
            "{}.pgmahout-{stamp}",
            here.file_name().unwrap_or_default().to_string_lossy()
        ));
        context.progress.detail(format!("tablespace {on_source} goes to {}", here.display()));
    }
    // What a copy that broke off has left there is emptied before the next one begins.
    if unfinished.contains(&here) || is_empty_or_absent(&here)? {
        Ok(here)
    } else {
        Err(Error::TablespaceTaken { on_source: on_source.to_owned(), here })
    }
}

fn is_empty_or_absent(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).on("list", path),
    }
}

fn find_place(data: &Path, needed: u64, plan: &Plan) -> Result<Place> {
    let available = durable::available_space(data)?;
    let needed = needed + MARGIN;
    let disposable = matches!(plan.fate, Fate::Removed | Fate::None);
    let mount_point = data.exists() && durable::is_mount_point(data);
    if available >= needed && !mount_point {
        return Ok(Place::Beside(staging(data)));
    }
    let own = if data.exists() { tree_size(data) } else { 0 };
    if disposable && available + own >= needed {
        let why = if mount_point { "it is a mount point" } else { "there is no room for two" };
        return Ok(Place::InPlace(why));
    }
    if mount_point && available >= needed {
        return Err(Error::MountPoint { path: data.into() });
    }
    Err(Error::NoSpace { path: data.into(), needed, available })
}

/// Where the copy is made: a sibling, so that a rename moves it.
pub fn staging(data: &Path) -> PathBuf {
    suffixed(data, "pgmahout-new")
}

fn suffixed(data: &Path, suffix: &str) -> PathBuf {
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    data.with_file_name(format!("{name}.{suffix}"))
}

fn tree_size(path: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { tree_size(&entry.path()) } else { metadata.blocks() * 512 };
    }
    sum
}

/// What an earlier run has left beside PGDATA: a copy that was not completed is removed, an old cluster
/// that was exchanged but not yet moved to its final name gets it.
pub fn tidy(context: Context, data: &Path) -> Result<()> {
    let staging = staging(data);
    if !staging.exists() {
        return Ok(());
    }
    if staging.join(MARKER).exists() || is_empty_or_absent(&staging)? {
        context.progress.step("removing an earlier copy that was not completed");
        let outside = unfinished_tablespaces(&staging);
        remove_copy(&staging, &outside)?;
    } else {
        let aside = aside(data);
        context.progress.warn(format!("an old cluster was found and is kept in {}", aside.display()));
        durable::rename(&staging, &aside)?;
    }
    Ok(())
}

fn aside(data: &Path) -> PathBuf {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let stamp: String = time_text(now as i64).chars().filter(char::is_ascii_digit).collect();
    suffixed(data, &format!("pgmahout-old-{stamp}"))
}

/// Removes a copy with the tablespace directories that its links name.
fn remove_copy(root: &Path, tablespaces: &[PathBuf]) -> Result<()> {
    for path in tablespaces {
        empty_directory(path)?;
    }
    durable::remove_tree(root)
}

/// Empties a directory; one that we have named ourselves goes too.
fn empty_directory(path: &Path) -> Result<()> {
    if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".pgmahout-")) {
        return durable::remove_tree(path);
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            durable::remove_tree(&path)?;
        } else {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    Ok(())
}

/// A base backup that is running, and the slot that keeps its WAL.
struct Backup<'a> {
    db: &'a mut Db,
    calls: BackupCalls,
    slot: Slot,
    running: bool,
    target: Target,
    progress: &'a Progress,
}

/// How the slot is held.
enum Slot {
    /// Versions without slots: WAL is copied after the stop.
    None,
    /// Temporary, gone with the session; copied into the permanent one at the end.
    Temporary { temporary: String, permanent: String },
    /// Permanent from the start; dropped by us when the copy fails.
    Permanent { name: String, keep: bool },
}

impl Backup<'_> {
    fn start<'a>(context: Context<'a>, db: &'a mut Db, target: &Target, slot: &str) -> Result<Backup<'a>> {
        let version = db.version;
        let calls = BackupCalls::of(version);
        let label = format!("pgmahout {}", context.instance.name);
        if calls.exclusive {
            end_own_exclusive_backup(db, &label)?;
        }
        // The backup's start waits for a checkpoint, which takes as long as the disks need.
        db.run("SET statement_timeout = '1h'")?;
        // The session sits idle for the whole copy; without it there is no backup.
        db.rows(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'",
            &[],
        )?;
        let slot = reserve(db, slot)?;
        let (target, progress) = (target.clone(), context.progress);
        let mut backup = Backup { db, calls, slot, running: false, target, progress };
        backup.running = true;
        backup.db.rows_interruptible(calls.start, &[&label])?;
        Ok(backup)
    }

    /// Ends the backup; gives the content of backup_label where it is not a file of the source.
    fn stop(&mut self) -> Result<(Option<String>, Option<String>)> {
        self.running = false;
        let row = self.db.row(self.calls.stop, &[])?;
        Ok((row.get("labelfile"), row.get("lsn")))
    }

    /// Makes the slot last beyond this session.
    fn keep_slot(&mut self) -> Result<()> {
        match &mut self.slot {
            Slot::None => Ok(()),
            Slot::Permanent { keep, .. } => {
                *keep = true;
                Ok(())
            }
            Slot::Temporary { temporary, permanent } => {
                let sql = "SELECT pg_copy_physical_replication_slot($1, $2, false)::text";
                let (temporary, permanent) = (temporary.clone(), permanent.clone());
                // The slot of the old cluster here is not needed from now on.
                standby::drop_slot(self.db, &permanent)?;
                self.db.rows(sql, &[&temporary, &permanent])?;
                standby::drop_slot_in_session(self.db, &temporary)?;
                self.slot = Slot::Permanent { name: permanent, keep: true };
                Ok(())
            }
        }
    }

    /// The permanent slot is nobody's again.
    fn disown_slot(&mut self) {
        if let Slot::Permanent { keep, .. } = &mut self.slot {
            *keep = false;
        }
    }
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        // When it is the session that broke, what lasts beyond it needs another one.
        if !self.db.is_alive() {
            match Db::connect(&self.target) {
                Ok(db) => *self.db = db,
                Err(error) => {
                    if let Slot::Permanent { name, keep: false } = &self.slot {
                        self.progress.warn(format!(
                            "the slot {name} may be left on {}: {error}; running this command again uses it",
                            self.target.label
                        ));
                    }
                    return;
                }
            }
            self.running &= self.calls.exclusive;
            if let Slot::Temporary { .. } = self.slot {
                self.slot = Slot::None;
            }
        }
        if self.running {
            // A backup of the newer kind ends with its session, but ours may live on for a while.
            let _ = self.db.rows(self.calls.stop, &[]);
        }
        match &self.slot {
            Slot::Permanent { name, keep: false } => drop(standby::drop_slot(self.db, name)),
            Slot::Temporary { temporary, .. } => drop(standby::drop_slot_in_session(self.db, temporary)),
            _ => {}
        }
        let _ = self.db.run("SET statement_timeout = '60s'");
    }
}

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
    let in_use: i64 =
        db.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active", &[&slot])?;
    if in_use > 0 {
        return Err(Error::SlotInUse { slot: slot.to_owned() });
    }
    let free: i64 = db.value(
        "SELECT current_setting('max_replication_slots')::bigint - count(*) FROM pg_replication_slots",
        &[],
    )?;
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

/// Copies the source, ready to start as a standby but not in PGDATA's place yet. The server here must be
/// stopped. When it fails, nothing of the copy is left beside PGDATA.
pub fn run(
    context: Context,
    there: &mut There,
    layout: &Layout,
    sessions: usize,
    slot: &str,
) -> Result<Copied> {
    let root = match &layout.place {
        Place::Beside(staging) => staging.clone(),
        Place::InPlace(_) => layout.data.clone(),
    };
    let outcome =
        prepare(layout, &root).and_then(|()| copy_into(context, there, layout, &root, sessions, slot));
    if let (Err(_), Place::Beside(staging)) = (&outcome, &layout.place) {
        let outside = unfinished_tablespaces(staging);
        if let Err(error) = remove_copy(staging, &outside) {
            context.progress.warn(format!("what was copied is still there: {error}"));
        }
    }
    outcome
}

fn copy_into(
    context: Context,
    there: &mut There,
    layout: &Layout,
    root: &Path,
    sessions: usize,
    slot: &str,
) -> Result<Copied> {
    let progress = context.progress;
    let There { db, version, target, control, name, history, history_text, .. } = there;
    let There { remote, agent, data_directory, facts, .. } = there;
    let (version, timeline) = (*version, &history.timeline);

    progress.step(format!("backup of {name} begins (a checkpoint runs there)"));
    let mut backup = Backup::start(context, db, target, slot)?;
    // Opened only now: while the checkpoint ran nobody would have answered sshd's keep-alives.
    let mut streams = open_streams(context, remote.as_ref(), agent, data_directory, facts.inode, sessions)?;
    let mut first = streams.remove(0);
    let stream = &mut first;
    let outcome = (|| {
        let mut roots = Roots(BTreeMap::from([(0, root.to_owned())]));
        for (oid, on_source, here) in &layout.tablespaces {
            let inside = here.starts_with(&layout.data);
            let path = if inside { root.join(on_source) } else { here.clone() };
            roots.0.insert(*oid, path);
        }
        let work =
            take_manifest(stream, root, &roots, layout, version.num(), version.has_nonexclusive_backup())?;
        progress.step(format!(
            "copying {} in {} files over {} SSH session{}",
            bytes_text(work.bytes),
            work.files(),
            streams.len() + 1,
            if streams.is_empty() { "" } else { "s" }
        ));
        progress.begin_bytes("copy", work.bytes);
        let copied = copy_all(stream, &mut streams, &work, &roots, progress);
        progress.end_bytes();
        let copied = copied?;
        let control_bytes = read_control(stream)?;

        progress.step("backup ends");
        let (label, _) = backup.stop()?;
        if let Some(label) = label {
            durable::write(&root.join("backup_label"), label.as_bytes(), 0o600)?;
        }
        if let Some(text) = history_text {
            // Until it has streamed, nothing else tells a second run of this command where the timelines part.
            let name = history_file_name(*timeline);
            durable::write(&root.join(version.wal_directory()).join(name), text.as_bytes(), 0o600)?;
        }
        if !version.reserves_slot_at_once() {
            copy_wal(stream, &mut streams, &roots, control, version, progress)?;
        }
        keep_own_files(context, layout, root, version, target, slot)?;
        progress.step("syncing to disk");
        sync(root, layout)?;
        // As late as can be: a slot that lasts, for a copy that is not there yet, would be nobody's.
        backup.keep_slot()?;
        write_control(root, &control_bytes)?;
        Ok(copied)
    })();
    if outcome.is_err() {
        backup.disown_slot();
    }
    outcome
}

fn outside(layout: &Layout) -> impl Iterator<Item = &PathBuf> {
    layout.tablespaces.iter().map(|(_, _, here)| here).filter(|here| !here.starts_with(&layout.data))
}

fn open_streams(
    context: Context,
    remote: &dyn Remote,
    agent: &str,
    data: &str,
    inode: u64,
    sessions: usize,
) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    while streams.len() < sessions {
        let opened = remote.again().and_then(|remote| Stream::open(&*remote, agent, data));
        match opened {
            Ok((stream, facts)) if facts.inode == inode => streams.push(stream),
            Ok(_) => return Err(Error::SourceMoved { host: remote.label().to_owned() }),
            // One session does the whole work too, only slower: a server that lets in no second one
            // (MaxStartups) is no reason to fail.
            Err(error) if streams.is_empty() || matches!(error, Error::Interrupted) => return Err(error),
            Err(error) => {
                context.progress.detail(format!("no further SSH session: {error}"));
                break;
            }
        }
    }
    Ok(streams)
}

fn prepare(layout: &Layout, root: &Path) -> Result<()> {
    let private = fs::Permissions::from_mode(0o700);
    if let Place::InPlace(_) = layout.place {
        fs::create_dir_all(root).on("create", root)?;
        for here in unfinished_tablespaces(root) {
            empty_directory(&here)?;
        }
        // The marker first, the control file next: from here on this is no cluster until it is complete.
        write_marker(root, layout)?;
        let control = root.join("global/pg_control");
        if control.exists() {
            fs::remove_file(&control).on("remove", &control)?;
            durable::sync_directory(&root.join("global"))?;
        }
        for entry in fs::read_dir(root).on("list", root)?.flatten() {
            let path = entry.path();
            if entry.file_name() == MARKER {
                continue;
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                durable::remove_tree(&path)?;
            } else {
                fs::remove_file(&path).on("remove", &path)?;
            }
        }
    } else {
        fs::create_dir(root).on("create", root)?;
        write_marker(root, layout)?;
    }
    fs::set_permissions(root, private.clone()).on("set the mode of", root)?;
    for here in outside(layout) {
        fs::create_dir_all(here).on("create", here)?;
        fs::set_permissions(here, private.clone()).on("set the mode of", here)?;
    }
    Ok(())
}

fn take_manifest(
    stream: &mut Stream,
    root: &Path,
    roots: &Roots,
    layout: &Layout,
    version: u32,
    has_nonexclusive_backup: bool,
) -> Result<Work> {
    let mut work = Work::default();
    let mut links = Vec::new();
    stream.list(&list(version, has_nonexclusive_backup), |entry: Entry| {
        match entry.kind {
            EntryKind::Tablespace => {
                // One that was created since the preflight has no place here yet.
                let known = layout.tablespaces.iter().find(|(oid, _, _)| *oid == entry.root);
                let (_, _, here) = known.ok_or(Error::UnknownRoot { root: entry.root })?;
                links.push((entry.root, here.clone()));
            }
            EntryKind::Directory => {
                let path =
                    roots.path(entry.root, &entry.path).ok_or(Error::UnknownRoot { root: entry.root })?;
                let wal = layout.wal_link.as_ref().filter(|_| entry.root == 0 && is_wal(&entry.path));
                match wal {
                    Some((_, new)) => make_wal_link(&path, new)?,
                    None => target::make_directory(&path, entry.mode)?,
                }
            }
            EntryKind::File if entry.root == 0 && entry.path == "global/pg_control" => {}
            EntryKind::File => work.add(entry),
        }
        Ok(())
    })?;
    let directory = root.join("pg_tblspc");
    for (oid, here) in links {
        let link = directory.join(oid.to_string());
        std::os::unix::fs::symlink(&here, &link).on("create", &link)?;
    }
    let status = root.join(if root.join("pg_wal").exists() { "pg_wal" } else { "pg_xlog" });
    target::make_directory(&status.join("archive_status"), 0o700)?;
    Ok(work)
}

fn is_wal(path: &str) -> bool {
    path == "pg_wal" || path == "pg_xlog"
}

/// A name for new WAL beside the old one, which stays whole, on the disk that was made for it.
fn new_wal_directory(old: &Path) -> PathBuf {
    let base = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let base = base.split(".pgmahout-").next().unwrap_or_default();
    let candidates = (1..).map(|n| old.with_file_name(format!("{base}.pgmahout-{n}")));
    candidates.into_iter().find(|path| !path.exists()).expect("there are enough numbers")
}

fn make_wal_link(at: &Path, new: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(new).on("create", new)?;
    std::os::unix::fs::symlink(new, at).on("create", at)
}

fn copy_all(
    first: &mut Stream,
    others: &mut [Stream],
    work: &Work,
    roots: &Roots,
    progress: &Progress,
) -> Result<Copied> {
    let mut all: Vec<&mut Stream> = std::iter::once(first).chain(others.iter_mut()).collect();
    target::copy(&mut all, work, roots, progress)
}

/// The control file, whole: it is read while the server may be writing it, so its checksum decides.
fn read_control(stream: &mut Stream) -> Result<Vec<u8>> {
    let mut last = None;
    for _ in 0..20 {
        let bytes = stream.read_file("global/pg_control", 8192)?.unwrap_or_default();
        match ControlFile::parse(&bytes) {
            Ok(_) => return Ok(bytes),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(last.expect("twenty tries"))
}

fn write_control(root: &Path, bytes: &[u8]) -> Result<()> {
    durable::write(&root.join("global/pg_control"), bytes, 0o600)
}

/// The copy is in PGDATA and complete.
pub fn remove_marker(data: &Path) -> Result<()> {
    let marker = data.join(MARKER);
    match fs::remove_file(&marker) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", &marker).and_then(|()| durable::sync_directory(data)),
    }
}

/// Versions without slots: the WAL from the backup's start on comes as files.
fn copy_wal(
    stream: &mut Stream,
    others: &mut [Stream],
    roots: &Roots,
    control: &ControlFile,
    version: crate::postgres::version::PgVersion,
    progress: &Progress,
) -> Result<()> {
    let first = segment_name(control.timeline, control.checkpoint_redo, control.wal_segment_size);
    let request = List { version: version.num(), wal_from: Some(first), with_backup_label: false };
    let mut work = Work::default();
    stream.list(&request, |entry| {
        work.add(entry);
        Ok(())
    })?;
    copy_all(stream, others, &work, roots, progress).map(drop)
}

/// What belongs to this instance rather than to the cluster: standby settings, its port, configuration
/// files that the source keeps elsewhere.
fn keep_own_files(
    context: Context,
    layout: &Layout,
    root: &Path,
    version: crate::postgres::version::PgVersion,
    target: &Target,
    slot: &str,
) -> Result<()> {
    let instance = context.instance;
    if instance.config_directory.is_none() && !root.join("postgresql.conf").exists() {
        // The source keeps its configuration elsewhere (Debian): ours goes on, with what it includes.
        for entry in fs::read_dir(&layout.data).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let text = name.to_string_lossy();
            let wanted = text.ends_with(".conf") && text != "postgresql.auto.conf" && text != "recovery.conf";
            let new = root.join(&name);
            if wanted && !new.exists() {
                fs::copy(entry.path(), &new).on("copy", &entry.path())?;
            }
        }
    }
    let slot = version.has_replication_slots().then_some(slot);
    let settings = standby::settings(instance, target, slot, version)?;
    // supervisor's and Debian's servers get their port from outside PGDATA; pg_ctl's from the copied file.
    let port = instance.port().to_string();
    let said = instance.resolved().iter().any(|r| r.name == "port" && r.origin != Origin::Default);
    let own_port = said && matches!(instance.service, Service::PgCtl | Service::Commands { .. });
    let own: &[(&str, Option<&str>)] = if own_port { &[("port", Some(&port))] } else { &[] };
    standby::write_settings(root, &settings, version, own)
}

fn sync(root: &Path, layout: &Layout) -> Result<()> {
    let mut seen = Vec::new();
    let wal = layout.wal_link.as_ref().and_then(|(_, new)| new.parent());
    for path in std::iter::once(root).chain(outside(layout).map(PathBuf::as_path)).chain(wal) {
        let device = fs::metadata(path).on("look at", path)?.dev();
        if !seen.contains(&device) {
            durable::sync_file_system(path)?;
            seen.push(device);
        }
    }
    Ok(())
}

/// True while the copy lies beside PGDATA and the old cluster, untouched, in it.
pub fn is_pending(layout: &Layout) -> bool {
    matches!(&layout.place, Place::Beside(staging) if staging.join(MARKER).exists())
}

/// Puts the copy in PGDATA's place; gives where the old cluster is kept, if it is.
pub fn put_in_place(
    context: Context,
    layout: &Layout,
    plan: &Plan,
    target: &Target,
) -> Result<Option<PathBuf>> {
    let data = &layout.data;
    let arrived = || remove_marker(data).and_then(|()| super::adopt_password(context, target));
    let Place::Beside(staging) = &layout.place else { return arrived().map(|()| None) };
    // Links into PGDATA itself were made with PGDATA's final name, so they hold after the exchange.
    if !data.exists() {
        durable::rename(staging, data)?;
        return arrived().map(|()| None);
    }
    let mut fate = plan.fate;
    if context.instance.running().is_some() {
        // Somebody, or supervisor after a push, has started the old cluster meanwhile: a server must never
        // find another directory under its feet.
        context.progress.step("the server was started meanwhile; stopping it again");
        service::stop(context.instance)?;
        // And what it wrote meanwhile nobody has judged.
        fate = Fate::KeptAside;
    }
    let leftovers = Leftovers::of(data, layout);
    if !durable::exchange(staging, data)? {
        let aside = aside(data);
        durable::rename(data, &aside)?;
        durable::rename(staging, data)?;
        durable::rename(&aside, staging)?;
    }
    // `staging` is the old cluster now.
    arrived()?;
    if fate == Fate::KeptAside {
        let aside = aside(data);
        durable::rename(staging, &aside)?;
        return Ok(Some(aside));
    }
    context.progress.detail("removing the old cluster");
    if let Err(error) = leftovers.remove(staging) {
        context.progress.warn(format!("the old cluster could not be removed whole: {error}"));
    }
    Ok(None)
}

/// What an old cluster has outside its PGDATA.
struct Leftovers {
    /// Its own directories in its tablespaces.
    tablespaces: Vec<PathBuf>,
    /// Its WAL, on a disk of its own.
    wal: Option<PathBuf>,
}

impl Leftovers {
    fn of(data: &Path, layout: &Layout) -> Leftovers {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let in_use: Vec<_> = layout.tablespaces.iter().map(|(_, _, here)| real(here)).collect();
        // Only what this cluster put there: clusters of other versions may share the directory.
        let own = fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|major| {
            let control = ControlFile::parse(&fs::read(data.join("global/pg_control")).ok()?).ok()?;
            Some(format!("PG_{}_{}", major.trim(), control.catalog_version))
        });
        let outside = existing_tablespaces(data)
            .into_values()
            .map(|path| real(&path))
            .filter(|path| !in_use.contains(path) && !path.starts_with(real(data)));
        let unfinished =
            unfinished_tablespaces(data).into_iter().filter(|path| !in_use.contains(&real(path)));
        let tablespaces = match own {
            Some(own) => outside.map(|path| path.join(&own)).collect(),
            None => unfinished.collect(),
        };
        Leftovers { tablespaces, wal: layout.wal_link.as_ref().map(|(old, _)| old.clone()) }
    }

    fn remove(&self, old: &Path) -> Result<()> {
        // Were it to break off here, the next run finishes it.
        durable::write(&old.join(MARKER), b"to be removed\n", 0o600)?;
        for path in self.tablespaces.iter().chain(&self.wal) {
            durable::remove_tree(path)?;
        }
        durable::remove_tree(old)
    }
}
