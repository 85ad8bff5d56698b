//! Owns the full plan's copy: a base backup of the source, made ready to start as a standby. Where it lies
//! and how it comes into PGDATA's place is `place.rs`'s, the backup on the source `session.rs`'s.
//!
//! What holds at a kill at any instant: PGDATA is the old cluster, untouched, until the exchange; it is
//! the new one, complete and synced, from then on. Where PGDATA cannot be exchanged (a mount point, or no
//! room for two) it is emptied first, its control file before everything else, so that it cannot start
//! until the same command has been run to its end. The backup and its temporary slot belong to an SQL
//! session of ours and end with it, however we end.

use super::super::{Context, standby};
use super::known;
use super::marker::{self, MARKER, Mark, remove_copy};
use super::place::{LOST_AND_FOUND, Layout, Place, list, mark, outside};
use super::reuse::Manifest;
use super::session::{Backup, Held};
use super::streams::{Opened, Opening, Way};
use super::there::There;
use crate::durable::{self, Context as _, FileSystems};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::layout::Service;
use crate::postgres::changes::Changes;
use crate::postgres::control::ControlFile;
use crate::postgres::page::{PAGE, PAGES_PER_SEGMENT};
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Lsn, history_file_name, segment_name};
use crate::process;
use crate::progress::{Progress, bytes_text};
use crate::settings::Origin;
use crate::sql::Target;
use crate::transfer::protocol::Compression;
use crate::transfer::protocol::{Entry, EntryKind, List};
use crate::transfer::stream::{Stream, Wishes};
use crate::transfer::target::{self, Copied, Manner, Roots, Work};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How the operator wants it.
pub struct Settings {
    /// Parallel SSH sessions.
    pub sessions: usize,
    /// How what is copied is compressed.
    pub compression: Compression,
    /// Bytes that the source may read in a second; 0 is as many as it can.
    pub max_rate: u64,
    /// The pages that come are verified, where they carry checksums.
    pub verify: bool,
    /// What differs is found by comparing everything.
    pub paranoid: bool,
}

/// Copies the source, ready to start as a standby but not in PGDATA's place yet. The server here must be
/// stopped. When the other side fails, or somebody interrupts it, what was copied beside PGDATA is left for the next
/// run; when something here does, such as a full disk, nothing is left.
///
/// The bytes come from the standby `from`, if there is one.
pub fn run(
    context: Context,
    there: &mut There,
    from: Option<&mut There>,
    layout: &Layout,
    settings: &Settings,
    slot: &str,
) -> Result<Copied> {
    let root = match &layout.place {
        Place::Beside(staging) => staging.clone(),
        Place::InPlace(_) => layout.data.clone(),
    };
    let outcome = copy_into(context, there, from, layout, &root, settings, slot);
    match (&outcome, &layout.place) {
        (Err(Error::File { .. } | Error::UnknownRoot { .. }), Place::Beside(staging)) => {
            if let Err(error) = remove_copy(staging) {
                context.progress.warn(format!("what was copied is still there: {error}"));
            }
        }
        (Err(_), Place::Beside(staging)) if staging.join(MARKER).exists() => {
            let at = staging.display();
            context.progress.step(format!("what was copied is in {at}; the same command goes on with it"));
        }
        (Err(Error::File { action, .. }), Place::InPlace(_))
            if action.starts_with("sync") && marker::is_incomplete(&layout.data) =>
        {
            marker::distrust(&layout.data);
            context.progress.warn(format!(
                "what was written to {} may not be on the disk; the same command copies all of it again",
                layout.data.display()
            ));
        }
        (Err(_), Place::InPlace(_)) if marker::is_incomplete(&layout.data) => {
            let at = layout.data.display();
            context.progress.warn(format!(
                "{at} is a copy that is not complete, and cannot start; the same command goes on with it"
            ));
        }
        _ => {}
    }
    outcome
}

fn copy_into(
    context: Context,
    there: &mut There,
    from: Option<&mut There>,
    layout: &Layout,
    root: &Path,
    settings: &Settings,
    slot: &str,
) -> Result<Copied> {
    let progress = context.progress;
    let primary = there.target.clone();
    // Before the backup: the primary keeps all WAL from here on, the standby has what is before.
    let (mut held, from) = match from {
        Some(from) => (Some(Held::reserve(context, &mut there.db, &primary, slot)?), from),
        None => (None, there),
    };
    let mut known = match (layout.reuse, settings.paranoid) {
        (true, false) => known::own(context, from, layout)?,
        (true, true) => Err("that was asked for".into()),
        (false, _) => Err(String::new()),
    };
    let way = way(from, settings);
    let There { db, version, target, control, name, history, history_text, in_recovery, opening, .. } = from;
    let (version, timeline, in_recovery) = (*version, &history.timeline, *in_recovery);

    progress.step(format!(
        "backup of {name} begins{}",
        if in_recovery { "" } else { " (a checkpoint runs there)" }
    ));
    let opening = opening.take().filter(Opening::is_fresh).unwrap_or_else(|| Opening::begin(way.clone()));
    let mut backup = match held {
        Some(_) => Backup::start_passing(context, db, target),
        None => Backup::start(context, db, target, slot),
    }?;
    // The checkpoint may have taken its time.
    let opened = if opening.is_fresh() { opening.end() } else { way.open() };
    let Opened { mut streams, refused } = opened?;
    if let Some(error) = refused {
        progress.detail(format!("no further SSH session: {error}"));
    }
    let mut first = streams.remove(0);
    let stream = &mut first;
    let outcome = (|| {
        if let Ok(ours) = &mut known
            && let Err(why) = ours.add_theirs(stream, &mut backup, control, history, layout.bytes)?
        {
            known = Err(why);
        }
        if let (true, Err(why)) = (layout.reuse, &known) {
            progress.step(format!("everything is compared: {why}"));
        }
        // Not before: until here the old cluster can go on.
        boundary("copy.preparing");
        prepare(layout, root)?;
        boundary("copy.prepared");
        let mut roots = Roots(BTreeMap::from([(0, root.to_owned())]));
        for (oid, on_source, here) in &layout.tablespaces {
            // One that lies in PGDATA on the source is named relative to it.
            let inside = Path::new(on_source).is_relative();
            let path = if inside { root.join(on_source) } else { here.clone() };
            roots.0.insert(*oid, path);
        }
        let own_directory = format!("PG_{}_{}", version.major(), control.catalog_version);
        let work = take_manifest(stream, root, &roots, layout, version, &own_directory)?;
        boundary("copy.listed");
        if work.bytes >= WORTH_A_SAMPLE && !layout.reuse && hardly_compresses(stream, &work, settings)? {
            let faster = way.remote.for_bulk().and_then(|bulk| way.over(bulk).open().ok());
            if let Some(Opened { streams: mut faster, .. }) = faster {
                progress.detail("what comes does not compress: OpenSSH's own client fetches it");
                *stream = faster.remove(0);
                streams = faster;
            }
        }
        progress.step(format!(
            "{} {}{} in {} files over {} SSH session{}",
            if layout.reuse { "comparing" } else { "copying" },
            if known.is_ok() { "what the WAL says has changed of " } else { "" },
            bytes_text(work.bytes),
            work.files(),
            streams.len() + 1,
            if streams.is_empty() { "" } else { "s" }
        ));
        let manner = Manner {
            compare: layout.reuse,
            verify_since: verify_since(control, backup.begin, settings),
            rate: rate_of_each(settings),
        };
        let disks = file_systems(root, layout)?;
        progress.begin_bytes(if layout.reuse { "compare" } else { "copy" }, work.bytes);
        let changes = known.as_ref().ok().map(|known| &known.changes);
        let copied = copy_all(stream, &mut streams, &work, &roots, manner, changes, progress);
        progress.end();
        let mut copied = copied?;
        boundary("copy.copied");
        match &known {
            Ok(known) => copied.known_by = Some(known.by),
            Err(why) => copied.not_known = Some(why.clone()).filter(|_| layout.reuse),
        }
        warn_of_damage(&copied, name, progress);
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
        if let Some(held) = &mut held {
            // Where the files of it end the new standby streams on from the primary: that has to be where the primary's
            // begins, or later.
            let wanted = held.keeps_from()?;
            wait_for_wal(context, &mut backup, in_recovery, wanted, name)?;
        }
        if held.is_some() || !version.reserves_slot_at_once() {
            copy_wal(stream, &mut streams, &roots, control, version, progress)?;
        }
        keep_own_files(context, layout, root, version, &primary, slot)?;
        progress.step("syncing to disk");
        boundary("copy.syncing");
        disks.sync()?;
        boundary("copy.synced");
        // As late as can be: a slot that lasts, for a copy that is not there yet, would be nobody's.
        match &mut held {
            Some(held) => held.keep()?,
            None => backup.keep_slot()?,
        }
        boundary("copy.completing");
        write_control(root, &control_bytes)?;
        boundary("copy.completed");
        Ok(copied)
    })();
    if outcome.is_err() {
        backup.disown_slot();
        if let Some(held) = &mut held {
            held.disown();
        }
    }
    // Each waits for the other side's good-bye, for which nobody else has to wait.
    thread::spawn(move || drop((first, streams)));
    outcome
}

/// Bytes of a copy that is worth a look at what it consists of.
const WORTH_A_SAMPLE: u64 = 256 << 20;

/// Whether most of what the files hold will come as it is. Then decryption is what costs the most, for which there may be
/// something better.
fn hardly_compresses(stream: &mut Stream, work: &Work, settings: &Settings) -> Result<bool> {
    match settings.compression {
        Compression::None => Ok(true),
        Compression::Auto => Ok(target::sample(stream, work)? > 0.8),
        Compression::Lz4 | Compression::Zstd(_) => Ok(false),
    }
}

/// A standby that is copied from may not have received yet what its primary keeps for the new one.
fn wait_for_wal(
    context: Context,
    backup: &mut Backup,
    in_recovery: bool,
    wanted: Lsn,
    name: &str,
) -> Result<()> {
    let limit = context.instance.stream_timeout;
    let mut at = Lsn::ZERO;
    let come = process::wait_for(limit, || {
        at = backup.end_of_wal(in_recovery)?;
        Ok((at >= wanted).then_some(()))
    })?;
    come.ok_or_else(|| Error::CopyFromBehind {
        name: name.to_owned(),
        at: at.to_string(),
        wanted: wanted.to_string(),
        limit,
    })
}

/// Bytes in a second.
const SLOWEST_STREAM: u64 = 8 << 10;

/// How the streams of a copy are opened.
pub fn way(from: &There, settings: &Settings) -> Way {
    Way {
        remote: from.remote.clone(),
        agent: from.agent.clone(),
        data: from.data_directory.clone(),
        inode: from.facts.inode,
        wishes: Wishes {
            compression: settings.compression,
            max_rate: rate_of_each(settings),
            distance: from.stream.distance(),
        },
        sessions: settings.sessions,
    }
}

/// Bytes that one session may read in a second; 0 is as many as it can. Not so few that one block takes longer than the
/// other side may be silent.
fn rate_of_each(settings: &Settings) -> u64 {
    match settings.max_rate {
        0 => 0,
        rate => rate.div_ceil(settings.sessions as u64).max(SLOWEST_STREAM),
    }
}

/// Where the backup began, when the pages that come are to be verified: only of servers with PostgreSQL's own sizes.
fn verify_since(control: &ControlFile, begin: Option<Lsn>, settings: &Settings) -> Option<Lsn> {
    let has_checksums = control.data_checksum_version > 0
        && control.block_size as usize == PAGE
        && control.segment_blocks == PAGES_PER_SEGMENT;
    begin.filter(|_| settings.verify && has_checksums)
}

fn warn_of_damage(copied: &Copied, name: &str, progress: &Progress) {
    if copied.damaged == 0 {
        return;
    }
    let named: Vec<_> = copied.damaged_pages.iter().take(10).map(String::as_str).collect();
    progress.warn(format!(
        "{} page{} of {name} {} damaged (the checksum is wrong), and so in the copy: {}{}. Look after the disk there, \
         and restore the tables from a backup",
        copied.damaged,
        if copied.damaged == 1 { "" } else { "s" },
        if copied.damaged == 1 { "is" } else { "are" },
        named.join(", "),
        if copied.damaged > named.len() as u64 { ", …" } else { "" }
    ));
}

/// Makes the place for a copy: marked, private, and empty unless what is there is reused.
pub fn prepare(layout: &Layout, root: &Path) -> Result<()> {
    let private = fs::Permissions::from_mode(0o700);
    let mut own = mark(layout);
    // What an earlier run that broke off has in other directories.
    let left = Mark::read(root).filter(|_| marker::is_incomplete(root));
    if let (Some(left), Place::InPlace(_)) = (&left, &layout.place) {
        let more = left.elsewhere.iter().filter(|path| !own.elsewhere.contains(path)).cloned();
        own.elsewhere.extend(more.collect::<Vec<_>>());
    }
    if layout.reuse {
        if let (Some(left), Place::Beside(_)) = (&left, &layout.place) {
            // Tablespaces that are not on the source any more.
            left.remove_elsewhere(|path| !own.elsewhere.iter().any(|known| known == path))?;
        }
        own.write(root)?;
        remove_control(root)?;
    } else if let Place::InPlace(_) = layout.place {
        fs::create_dir_all(root).on("create", root)?;
        // The marker first, the control file next: from here on this is no cluster until it is complete.
        own.write(root)?;
        remove_control(root)?;
        if let Some(left) = left {
            left.remove_elsewhere(|_| true)?;
        }
        boundary("copy.emptying");
        for entry in fs::read_dir(root).on("list", root)?.flatten() {
            let path = entry.path();
            if entry.file_name() == MARKER || entry.file_name() == LOST_AND_FOUND {
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
        boundary("copy.created");
        own.write(root)?;
        // A half-made copy in PGDATA may have files where this one's are to come; it is never gone on with now.
        if let Some(left) = Mark::read(&layout.data).filter(|_| marker::is_incomplete(&layout.data)) {
            left.remove_elsewhere(|path| outside(layout).any(|here| here == path))?;
        }
    }
    fs::set_permissions(root, private.clone()).on("set the mode of", root)?;
    for here in outside(layout) {
        fs::create_dir_all(here).on("create", here)?;
        fs::set_permissions(here, private.clone()).on("set the mode of", here)?;
    }
    Ok(())
}

/// Without it a cluster cannot start.
fn remove_control(root: &Path) -> Result<()> {
    let control = root.join("global/pg_control");
    if control.exists() {
        fs::remove_file(&control).on("remove", &control)?;
        durable::sync_directory(&root.join("global"))?;
        boundary("copy.control-removed");
    }
    Ok(())
}

#[doc(hidden)] // for fuzz/
pub fn take_manifest(
    stream: &mut Stream,
    root: &Path,
    roots: &Roots,
    layout: &Layout,
    version: PgVersion,
    own_directory: &str,
) -> Result<Work> {
    roots.check_inside()?;
    let mut work = Work::default();
    let mut links = Vec::new();
    let mut directories = Vec::new();
    let mut manifest = Manifest::default();
    stream.list(&list(version.num(), version.has_nonexclusive_backup()), |entry: Entry| {
        if layout.reuse {
            manifest.note(&entry);
        }
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
                let is_wal_directory = entry.root == 0 && is_wal(&entry.path);
                directories.push((path, entry.mode, is_wal_directory));
            }
            EntryKind::File if entry.root == 0 && entry.path == "global/pg_control" => {}
            EntryKind::File => work.add(entry),
        }
        Ok(())
    })?;
    if layout.reuse {
        manifest.remove_strangers(roots, layout, own_directory)?;
    }
    for (path, mode, is_wal_directory) in directories {
        match layout.wal_link.as_ref().filter(|_| is_wal_directory) {
            Some((_, new)) if fs::read_link(&path).is_ok_and(|leads_to| leads_to == *new) => {}
            Some((_, new)) => make_wal_link(&path, new)?,
            None => target::make_directory(&path, mode)?,
        }
    }
    let directory = root.join("pg_tblspc");
    for (oid, here) in links {
        let link = directory.join(oid.to_string());
        if fs::read_link(&link).is_ok_and(|leads_to| leads_to == here) {
            continue;
        }
        std::os::unix::fs::symlink(&here, &link).on("create", &link)?;
    }
    let status = root.join(if root.join("pg_wal").exists() { "pg_wal" } else { "pg_xlog" });
    target::make_directory(&status.join("archive_status"), 0o700)?;
    Ok(work)
}

fn is_wal(path: &str) -> bool {
    path == "pg_wal" || path == "pg_xlog"
}

/// WAL on a disk of its own.
pub fn make_wal_link(at: &Path, new: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(new).on("create", new)?;
    std::os::unix::fs::symlink(new, at).on("create", at)
}

fn copy_all(
    first: &mut Stream,
    others: &mut [Stream],
    work: &Work,
    roots: &Roots,
    manner: Manner,
    known: Option<&Changes>,
    progress: &Progress,
) -> Result<Copied> {
    let mut all: Vec<&mut Stream> = std::iter::once(first).chain(others.iter_mut()).collect();
    target::copy(&mut all, work, roots, manner, known, progress)
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
    let control = root.join("global/pg_control");
    durable::write(&control, bytes, 0o600).inspect_err(|_| {
        // It may be there all the same, and its slot is taken away now: it must not start.
        let _ = fs::remove_file(&control);
    })
}

/// The WAL from the backup's start on as files: for versions without slots, and where the slot is another server's.
fn copy_wal(
    stream: &mut Stream,
    others: &mut [Stream],
    roots: &Roots,
    control: &ControlFile,
    version: PgVersion,
    progress: &Progress,
) -> Result<()> {
    let first = segment_name(control.timeline, control.checkpoint_redo, control.wal_segment_size);
    let request = List { version: version.num(), wal_from: Some(first), with_backup_label: false };
    let mut work = Work::default();
    stream.list(&request, |entry| {
        work.add(entry);
        Ok(())
    })?;
    copy_all(stream, others, &work, roots, Manner::default(), None, progress).map(drop)
}

/// What belongs to this instance rather than to the cluster: standby settings, its port, configuration
/// files that the source keeps elsewhere.
fn keep_own_files(
    context: Context,
    layout: &Layout,
    root: &Path,
    version: PgVersion,
    target: &Target,
    slot: &str,
) -> Result<()> {
    let instance = context.instance;
    keep_own_configuration(instance, &layout.data, root)?;
    let slot = version.has_replication_slots().then_some(slot);
    let settings = standby::settings(instance, target, slot, version)?;
    let port = own_port(instance);
    let own: &[(&str, Option<&str>)] = if port.is_some() { &[("port", port.as_deref())] } else { &[] };
    standby::write_settings(root, &settings, version, own)?;
    standby::ease_first_start(root, version)
}

/// Where the source keeps its configuration elsewhere (Debian): ours goes on, with what it includes.
pub fn keep_own_configuration(instance: &Instance, data: &Path, root: &Path) -> Result<()> {
    if instance.config_directory.is_some() || root.join("postgresql.conf").exists() {
        return Ok(());
    }
    for entry in fs::read_dir(data).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let wanted = text.ends_with(".conf") && text != "postgresql.auto.conf" && text != "recovery.conf";
        let new = root.join(&name);
        if wanted && !new.exists() {
            fs::copy(entry.path(), &new).on("copy", &entry.path())?;
        }
    }
    Ok(())
}

/// The port as a setting of the copy: supervisor's and Debian's servers get theirs from outside PGDATA, pg_ctl's
/// from the copied file.
pub fn own_port(instance: &Instance) -> Option<String> {
    let said = instance.resolved().iter().any(|r| r.name == "port" && r.origin != Origin::Default);
    let own = said && matches!(instance.service, Service::PgCtl | Service::Commands { .. });
    own.then(|| instance.port().to_string())
}

/// Where a copy is written to, once its directories are there.
pub fn file_systems(root: &Path, layout: &Layout) -> Result<FileSystems> {
    let wal = ["pg_wal", "pg_xlog"].map(|name| root.join(name)).into_iter().filter(|path| path.exists());
    let wal: Vec<_> = wal.collect();
    FileSystems::of([root].into_iter().chain(outside(layout).chain(&wal).map(PathBuf::as_path)))
}
