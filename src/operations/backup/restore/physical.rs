//! Restores a physical backup: the tar becomes a cluster beside PGDATA, is started there out of everyone's sight,
//! recovers to the end of its own WAL and ends on a timeline of its own, gets this instance's password, loses what
//! ties it to its original, and is stopped in order. Only then the two are exchanged in one atomic step.
//!
//! What holds at a kill at any instant: PGDATA is the old cluster, untouched, until the exchange, and the new one,
//! complete and synced, from then on. Where there is no room for two (or PGDATA is a mount point) it is emptied
//! first and cannot start until the same command has been run to its end.

use super::super::super::enslave::marker;
use super::super::super::enslave::place::{self, Layout, Place};
use super::super::super::enslave::plan::{Action, Fate, Plan};
use super::super::super::enslave::{copy, here};
use super::super::super::{Context, credentials, fork, job, peers, promote, standby};
use crate::backups::manifest::{BackupId, Manifest};
use crate::durable::{self, Context as _, FileSystems};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::layout;
use crate::postgres::control::ControlFile;
use crate::postgres::password;
use crate::postgres::recovery::{auto_conf_with, independent_auto_conf};
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Timeline, history_file_name, parse_segment_name};
use crate::process;
use crate::progress::{Progress, bytes_text};
use crate::service;
use crate::source_build::tree;
use crate::sql::{Db, Target, identifier};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

// --- the tar becomes files ---------------------------------------------------------------------------

/// A cluster that came out of a tar, ready to start.
#[derive(Debug)]
pub struct Extracted {
    /// Its major version.
    pub version: PgVersion,
    /// Its control file.
    pub control: ControlFile,
    /// The newest timeline that its WAL is of.
    pub timeline: Timeline,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where its tablespaces lie now.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

/// Names below this many levels are no cluster's.
const DEPTH_LIMIT: usize = 32;
/// No path of a cluster is longer.
const PATH_LIMIT: usize = 1024;
/// A control file has 8 kB.
const CONTROL_LIMIT: u64 = 64 * 1024;
/// Restores and promotions that one cluster has behind it.
const TIMELINES_LIMIT: u32 = 10_000;
/// Tablespaces that have no place of their own lie here, in PGDATA.
const TABLESPACES: &str = "pgmahout_tablespaces";

/// Unpacks a tar (as it is, or compressed by gzip or zstd) into the directory `root`, which is empty or absent.
/// `tablespaces` says where each goes, by OID; the others get a directory in `root`. `global/pg_control` is written
/// last, once `from` has come to its end without an error and everything else is on the disk: before that nothing
/// in `root` can start. When it fails, what was unpacked is left to the caller.
///
/// # Errors
/// [`Error::TarDamaged`], [`Error::TarEscapes`], [`Error::BackupOtherVersion`] when it is not what its manifest says.
pub fn extract(
    context: Context,
    from: &mut dyn Read,
    manifest: Option<&Manifest>,
    root: &Path,
    tablespaces: &BTreeMap<u32, PathBuf>,
) -> Result<Extracted> {
    durable::create_private_directory(root)?;
    if fs::read_dir(root).on("list", root)?.next().is_some() {
        return Err(Error::File {
            action: "unpack into",
            path: root.into(),
            source: io::ErrorKind::DirectoryNotEmpty.into(),
        });
    }
    fs::set_permissions(root, Permissions::from_mode(0o700)).on("set the mode of", root)?;
    for directory in tablespaces.values() {
        durable::create_private_directory(directory)?;
    }
    unpack(context, from, manifest, root, tablespaces)
}

/// The same into a directory that has been prepared: with its marker, and a link for its WAL if need be.
fn unpack(
    context: Context,
    from: &mut dyn Read,
    manifest: Option<&Manifest>,
    root: &Path,
    tablespaces: &BTreeMap<u32, PathBuf>,
) -> Result<Extracted> {
    let progress = context.progress;
    progress.begin_bytes("restore", manifest.map_or(0, |manifest| manifest.content_size));
    let mut unpacking = Unpacking {
        root,
        placed: tablespaces.clone(),
        links: BTreeSet::new(),
        seen: BTreeSet::new(),
        control: None,
        files: 0,
        bytes: 0,
        limit: manifest.map_or(u64::MAX, |manifest| manifest.content_size),
        buffer: vec![0; 256 * 1024],
        progress,
    };
    let outcome = unpacking.all(from);
    progress.end();
    outcome?;
    unpacking.complete(manifest)
}

struct Unpacking<'a> {
    root: &'a Path,
    placed: BTreeMap<u32, PathBuf>,
    links: BTreeSet<u32>,
    seen: BTreeSet<PathBuf>,
    control: Option<Vec<u8>>,
    files: u64,
    bytes: u64,
    limit: u64,
    buffer: Vec<u8>,
    progress: &'a Progress,
}

/// The reader without its compression, told by its first bytes.
fn decompressed<'a>(from: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    let mut buffered = BufReader::with_capacity(256 * 1024, from);
    let head = buffered.fill_buf()?;
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
        // Who made the stream does not decide how much memory is taken: 32 MB.
        decoder.window_log_max(25)?;
        Box::new(decoder)
    } else {
        Box::new(buffered)
    })
}

/// The tar crate wraps what happened in what it was doing.
fn damaged(error: &io::Error) -> Error {
    if process::check_interrupt().is_err() {
        return Error::Interrupted;
    }
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        why = inner.to_string();
        source = inner.source();
    }
    Error::TarDamaged { why }
}

impl Unpacking<'_> {
    fn all(&mut self, from: &mut dyn Read) -> Result<()> {
        let mut plain = decompressed(from).map_err(|e| damaged(&e))?;
        let mut archive = tar::Archive::new(&mut plain);
        for entry in archive.entries().map_err(|e| damaged(&e))? {
            process::check_interrupt()?;
            self.entry(entry.map_err(|e| damaged(&e))?)?;
        }
        // The end of the tar is not the end of the backup: its checksum is known only there.
        loop {
            process::check_interrupt()?;
            if plain.read(&mut self.buffer).map_err(|e| damaged(&e))? == 0 {
                return Ok(());
            }
        }
    }

    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<()> {
        let raw = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned();
        let escapes = |why| Error::TarEscapes { entry: shown(), why };
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::XGlobalHeader {
            return Ok(());
        }
        if !matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory) {
            return Err(escapes("is neither a file nor a directory"));
        }
        let path = plain_path(&raw).map_err(escapes)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let is_directory = kind == tar::EntryType::Directory;
        let full = self.place(&path, is_directory).map_err(escapes)?;
        if is_directory {
            return make_directories(&full);
        }
        if !self.seen.insert(path.clone()) {
            return Err(Error::TarDamaged { why: format!("{} stands in it twice", path.display()) });
        }
        let size = entry.size();
        self.bytes = self.bytes.saturating_add(size);
        self.files += 1;
        if self.bytes > self.limit {
            return Err(Error::TarDamaged { why: "it is larger than its manifest says".into() });
        }
        if path == Path::new("global/pg_control") {
            return self.keep_control(&mut entry, size);
        }
        self.file(&mut entry, &full, size)
    }

    fn keep_control<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, size: u64) -> Result<()> {
        if size > CONTROL_LIMIT {
            return Err(Error::TarDamaged { why: format!("its control file has {size} bytes") });
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
        ControlFile::parse(&bytes)?;
        self.control = Some(bytes);
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, full: &Path, size: u64) -> Result<()> {
        make_directories(durable::parent(full))?;
        let mut options = OpenOptions::new();
        // Never through a link, never in place of something.
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(full).on("create", full)?;
        let mut left = size;
        while left > 0 {
            process::check_interrupt()?;
            let want = left.min(self.buffer.len() as u64) as usize;
            let have = entry.read(&mut self.buffer[..want]).map_err(|e| damaged(&e))?;
            if have == 0 {
                return Err(Error::TarDamaged { why: "it ends in the middle of a file".into() });
            }
            file.write_all(&self.buffer[..have]).on("write", full)?;
            boundary("restore.block");
            left -= have as u64;
            self.progress.add(have as u64);
        }
        Ok(())
    }

    /// Where an entry goes: tablespaces have places of their own.
    fn place(&mut self, path: &Path, is_directory: bool) -> std::result::Result<PathBuf, &'static str> {
        let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        if parts.next().as_deref() != Some("pg_tblspc") {
            return Ok(self.root.join(path));
        }
        let Some(name) = parts.next() else { return Ok(self.root.join(path)) };
        let oid = name.parse::<u32>().ok().filter(|oid| *oid > 0 && oid.to_string() == name);
        let oid = oid.ok_or("is no tablespace")?;
        let below: PathBuf = parts.collect();
        if below.as_os_str().is_empty() && !is_directory {
            return Err("is no tablespace");
        }
        self.links.insert(oid);
        let root = self.root;
        let place = self.placed.entry(oid).or_insert_with(|| root.join(TABLESPACES).join(oid.to_string()));
        Ok(place.join(below))
    }

    /// Makes what was unpacked a cluster.
    fn complete(self, manifest: Option<&Manifest>) -> Result<Extracted> {
        let root = self.root;
        let damaged = |why: &str| Error::TarDamaged { why: why.to_owned() };
        let bytes = self.control.ok_or_else(|| damaged("there is no global/pg_control in it"))?;
        let control = ControlFile::parse(&bytes)?;
        let version =
            fs::read_to_string(root.join("PG_VERSION")).map_err(|_| damaged("it has no PG_VERSION"))?;
        let version = PgVersion::parse(version.trim())?;
        if let Some(manifest) = manifest
            && (manifest.system_id != control.system_id
                || !version.same_major(PgVersion::from_num(manifest.server_version_num)))
        {
            return Err(damaged("it is another cluster than its manifest says"));
        }
        make_directories(&root.join("global"))?;
        make_directories(&root.join("pg_tblspc"))?;
        let mut tablespaces = BTreeMap::new();
        for oid in &self.links {
            let place = self.placed[oid].clone();
            // One without a file in it yet.
            make_directories(&place)?;
            point(root, *oid, &place)?;
            tablespaces.insert(*oid, place);
        }
        let timeline = newest_timeline(&root.join(version.wal_directory()), &control)?;
        FileSystems::of([root].into_iter().chain(tablespaces.values().map(PathBuf::as_path)))?.sync()?;
        durable::write(&root.join("global/pg_control"), &bytes, 0o600)?;
        Ok(Extracted { version, control, timeline, files: self.files, bytes: self.bytes, tablespaces })
    }
}

/// A relative path of plain names, from the bytes of a tar; empty for the root itself.
fn plain_path(raw: &[u8]) -> std::result::Result<PathBuf, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "has a name that PostgreSQL does not make")?;
    if text.len() > PATH_LIMIT || text.contains('\0') {
        return Err("has a name that PostgreSQL does not make");
    }
    let mut path = PathBuf::new();
    for (depth, part) in Path::new(text).components().enumerate() {
        match part {
            Component::Normal(_) if depth > DEPTH_LIMIT => return Err("lies too deep"),
            Component::Normal(name) if name.to_string_lossy().starts_with(".pgmahout") => {
                return Err("has a name that is pgmahout's own");
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return Err("leaves its directory"),
        }
    }
    Ok(path)
}

fn make_directories(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).on("create", path)
}

/// Points a tablespace's link to its directory.
fn point(root: &Path, oid: u32, place: &Path) -> Result<()> {
    let link = root.join("pg_tblspc").join(oid.to_string());
    let new = root.join("pg_tblspc").join(format!(".pgmahout-{oid}"));
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(place, &new).on("create", &new)?;
    fs::rename(&new, &link).on("rename", &new)
}

/// The timeline of the last segment that came along: recovery goes to its end.
fn newest_timeline(wal: &Path, control: &ControlFile) -> Result<Timeline> {
    let names = fs::read_dir(wal).on("list", wal)?.flatten();
    let segments = names.filter_map(|entry| {
        let (timeline, begin) =
            parse_segment_name(&entry.file_name().to_string_lossy(), control.wal_segment_size)?;
        Some((begin, timeline))
    });
    Ok(segments.max().map_or(control.timeline, |(_, timeline)| timeline))
}

// --- onto an instance --------------------------------------------------------------------------------

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The victim's name, when its data may be lost.
    pub confirm: Option<String>,
    /// Tablespaces: where they were, where they go.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Say what would be done and stop.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The backup; none of a file without a manifest.
    pub backup: Option<BackupId>,
    /// Nothing was done.
    pub dry_run: bool,
    /// What becomes of the cluster that was here.
    pub plan: Plan,
    /// Why PGDATA was emptied first; none when the two were exchanged.
    pub in_place: Option<&'static str>,
    /// Where the old cluster is kept.
    pub kept: Option<PathBuf>,
    /// Bytes that were unpacked.
    pub bytes: u64,
    /// The timeline that it writes on.
    pub timeline: Option<Timeline>,
    /// The superuser of the backup got this instance's password.
    pub password_set: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds from start to writable.
    pub seconds: f64,
}

/// There from just before the exchange until the restored cluster runs: which cluster of which backup it is, and
/// where those old ones lay that had been kept before.
fn note(instance: &Instance) -> PathBuf {
    instance.state_directory.join("restoring")
}

/// Restores onto this instance. The caller holds the lock of backups.
pub fn run(
    context: Context,
    from: &mut dyn Read,
    manifest: Option<&Manifest>,
    options: &Options,
) -> Result<Report> {
    let begin = Instant::now();
    let (instance, progress) = (context.instance, context.progress);
    instance.check_account()?;
    let _lock = instance.lock("backup restore")?;
    let data = instance.data_directory()?;
    let programs = instance.program_version()?;
    if let Some(manifest) = manifest {
        check_version(PgVersion::from_num(manifest.server_version_num), programs)?;
    }
    let mut report = Report {
        instance: instance.name.clone(),
        backup: manifest.map(|manifest| manifest.id),
        dry_run: options.dry_run,
        plan: Plan {
            action: Action::Full,
            why: "an interrupted restore is completed".into(),
            fate: Fate::None,
            loses: None,
        },
        in_place: None,
        kept: None,
        bytes: 0,
        timeline: None,
        password_set: false,
        warnings: Vec::new(),
        seconds: 0.0,
    };
    if let Some(kept_before) = put_before(instance, &data, manifest)? {
        if options.dry_run {
            report.seconds = begin.elapsed().as_secs_f64();
            return Ok(report);
        }
        let kept = place::tidy(context, &data)?;
        report.kept =
            kept.or_else(|| place::kept(&data).into_iter().rfind(|path| !kept_before.contains(path)));
    } else {
        // Of a killed run, in the place where the next one works.
        if !options.dry_run {
            end_server(instance, &place::staging(&data))?;
            if marker::is_incomplete(&data) {
                end_server(instance, &data)?;
            }
        }
        report.plan = plan(context, &data)?;
        let layout = measured(context, manifest, programs, &report.plan, options)?;
        if let Place::InPlace(why) = layout.place {
            report.in_place = Some(why);
        }
        progress.step(format!(
            "plan: {}{}",
            report.plan.why,
            match report.in_place {
                Some(why) => format!("; PGDATA is emptied first: {why}"),
                None => String::new(),
            }
        ));
        if let Some(holds) = &report.plan.loses
            && options.confirm.as_deref() != Some(&instance.name)
            && !options.dry_run
        {
            return Err(Error::NeedsConfirmation { instance: instance.name.clone(), holds: holds.clone() });
        }
        if options.dry_run {
            report.seconds = begin.elapsed().as_secs_f64();
            return Ok(report);
        }
        bring(context, from, manifest, programs, &layout, &mut report)?;
    }
    boundary("restore.in-place");
    progress.step("starting the server");
    standby::lift_fence(instance)?;
    // The killed run that is completed may have come to the start of the server.
    let mut db = match instance.running() {
        Some(_) => standby::connect_when_ready(context, instance.start_timeout)?,
        None => standby::start_and_connect(context)?,
    };
    boundary("restore.running");
    report.timeline = Some(promote::timeline(&mut db, instance)?);
    for warning in fork::untie(&mut db)? {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    match fs::remove_file(note(instance)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).on("remove", &note(instance)),
        _ => {}
    }
    boundary("restore.note-removed");
    job::forget(instance);
    peers::forget_all(instance)?;
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn check_version(theirs: PgVersion, ours: PgVersion) -> Result<()> {
    if theirs.same_major(ours) {
        return Ok(());
    }
    Err(Error::BackupOtherVersion { theirs: theirs.major(), ours: ours.major() })
}

/// The exchange of an interrupted run of this very backup is done, and only the start is not: then the old clusters
/// that had been kept before it.
fn put_before(instance: &Instance, data: &Path, manifest: Option<&Manifest>) -> Result<Option<Vec<PathBuf>>> {
    let Ok(text) = fs::read_to_string(note(instance)) else { return Ok(None) };
    let (Some(manifest), Some(control)) = (manifest, instance.control()?) else { return Ok(None) };
    let mut lines = text.lines();
    let same = lines.next() == Some(&mark(&control)) && lines.next() == Some(&manifest.sha256);
    Ok((same && !marker::is_incomplete(data)).then(|| lines.map(PathBuf::from).collect()))
}

fn write_note(
    instance: &Instance,
    data: &Path,
    manifest: Option<&Manifest>,
    control: &ControlFile,
) -> Result<()> {
    // Without a manifest nobody can say that the next run is of the same backup.
    let of = manifest.map_or("-", |manifest| &manifest.sha256);
    let mut text = format!("{}\n{of}\n", mark(control));
    for path in place::kept(data) {
        text += &format!("{}\n", path.display());
    }
    durable::write(&note(instance), text.as_bytes(), 0o600)
}

fn mark(control: &ControlFile) -> String {
    format!("{} {} {}", control.system_id, control.timeline.0, control.checkpoint)
}

/// What becomes of what is here.
fn plan(context: Context, data: &Path) -> Result<Plan> {
    let plan = |why: &str, fate, loses| Plan { action: Action::Full, why: why.into(), fate, loses };
    if marker::is_incomplete(data) {
        return Ok(plan("what is here is a copy that was not completed", Fate::Removed, None));
    }
    // A backup is there for the day on which nothing here can be read any more.
    let unreadable = |error: Error| format!("a cluster that cannot be judged ({error})");
    let holds = match here::look(context) {
        Ok(None) => return Ok(plan("there is no cluster here", Fate::None, None)),
        Err(error @ (Error::NotADataDirectory { .. } | Error::Interrupted)) => return Err(error),
        Err(error) => unreadable(error),
        Ok(Some(mut cluster)) => match cluster.has_user_data() {
            Ok(false) => {
                return Ok(plan("nobody has created anything in the cluster here", Fate::Removed, None));
            }
            Ok(true) => {
                format!("a cluster with data of its own (system identifier {})", cluster.control.system_id)
            }
            Err(error) => unreadable(error),
        },
    };
    Ok(plan("the cluster here is moved aside", Fate::KeptAside, Some(holds)))
}

/// Where everything goes, and whether there is room for it.
fn measured(
    context: Context,
    manifest: Option<&Manifest>,
    programs: PgVersion,
    plan: &Plan,
    options: &Options,
) -> Result<Layout> {
    let physical = manifest.and_then(|manifest| manifest.physical.as_ref());
    let tablespaces: Vec<_> = physical
        .iter()
        .flat_map(|physical| &physical.tablespaces)
        .map(|(oid, at)| (*oid, at.clone(), at.starts_with('/')))
        .collect();
    let bytes = manifest.map_or(0, |manifest| manifest.content_size);
    // How much of it goes to other disks is not known: then it is found out.
    let outside = tablespaces.iter().any(|(_, _, outside)| *outside);
    let sizes = BTreeMap::from([(0, if outside { 0 } else { bytes })]);
    let mut mapping = options.tablespace_mapping.clone();
    mapping.extend(context.instance.tablespace_mapping.iter().cloned());
    let placed = place::placed(context, programs, &sizes, &tablespaces, plan, &mapping, None)?;
    Ok(Layout { restores: true, ..placed })
}

/// From the tar to PGDATA.
fn bring(
    context: Context,
    from: &mut dyn Read,
    manifest: Option<&Manifest>,
    programs: PgVersion,
    layout: &Layout,
    report: &mut Report,
) -> Result<()> {
    let (instance, progress) = (context.instance, context.progress);
    let data = &layout.data;
    let found = place::tidy(context, data)?;
    let was_running = instance.running().is_some();
    let root = match &layout.place {
        Place::Beside(staging) => staging.clone(),
        Place::InPlace(_) => {
            progress.step("stopping the server");
            service::stop(instance)?;
            data.clone()
        }
    };
    let made = make(context, from, manifest, programs, layout, &root, report);
    let control = match (made, &layout.place) {
        (Ok(control), _) => control,
        (Err(error), Place::InPlace(_)) => return Err(error),
        (Err(error), Place::Beside(staging)) => {
            if let Err(left) = marker::remove_copy(staging) {
                progress.warn(format!("what was unpacked is still there: {left}"));
            }
            return Err(error);
        }
    };
    if was_running {
        progress.step("stopping the server");
    }
    let target = Target { password: None, ..Target::local(instance)? };
    let put = service::stop(instance)
        .and_then(|()| write_note(instance, data, manifest, &control))
        .and_then(|()| place::put_in_place(context, layout, &report.plan, &target));
    let kept = put.inspect_err(|_| {
        if was_running && place::is_pending(layout) && instance.running().is_none() {
            progress.step("the old cluster is untouched; starting it again");
            if let Err(again) = service::start(instance) {
                progress.warn(format!("it did not start: {again}"));
            }
        }
    })?;
    report.kept = kept.or(found);
    Ok(())
}

/// Unpacks into `root` and makes a cluster of its own of it, stopped in order; gives its control file.
fn make(
    context: Context,
    from: &mut dyn Read,
    manifest: Option<&Manifest>,
    programs: PgVersion,
    layout: &Layout,
    root: &Path,
    report: &mut Report,
) -> Result<ControlFile> {
    let (instance, progress) = (context.instance, context.progress);
    boundary("restore.preparing");
    copy::prepare(layout, root)?;
    boundary("restore.prepared");
    if let Some((_, new)) = &layout.wal_link {
        copy::make_wal_link(&root.join(programs.wal_directory()), new)?;
    }
    // Open from before the first byte: a write that fails later is known to their sync, whoever's sync met it first.
    let disks = copy::file_systems(root, layout)?;
    let places =
        layout.tablespaces.iter().map(|(oid, on_source, here)| match here.starts_with(&layout.data) {
            true => (*oid, root.join(on_source)),
            false => (*oid, here.clone()),
        });
    let extracted = unpack(context, from, manifest, root, &places.collect())?;
    boundary("restore.unpacked");
    check_version(extracted.version, programs)?;
    report.bytes = extracted.bytes;
    progress.step(format!(
        "{} in {} files unpacked; recovering it, out of sight",
        bytes_text(extracted.bytes),
        extracted.files
    ));
    let version = extracted.version;
    copy::keep_own_configuration(instance, &layout.data, root)?;
    be_independent(instance, root, &extracted)?;
    know_timelines(instance, &layout.data, root, &extracted)?;
    boundary("restore.settling");
    let settled = settle(context, root, &extracted)?;
    boundary("restore.settled");
    report.password_set = settled.password_set;
    report.warnings.extend(settled.warnings);
    remove(&root.join("recovery.done"))?;
    remove(&root.join("recovery.signal"))?;
    // What lies in PGDATA is to be found there after the exchange.
    for (oid, place) in &extracted.tablespaces {
        if let Ok(relative) = place.strip_prefix(root) {
            point(root, *oid, &layout.data.join(relative))?;
        }
    }
    disks.sync()?;
    boundary("restore.synced");
    let path = root.join("global/pg_control");
    let control = ControlFile::parse(&fs::read(&path).on("read", &path)?)?;
    if !control.state.is_clean() || control.timeline <= extracted.timeline {
        let why = format!(
            "it was left {:?} on timeline {} of PostgreSQL {version}",
            control.state, control.timeline.0
        );
        return Err(Error::RestoredDoesNotStart { why, log: String::new() });
    }
    Ok(control)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

/// Files that say that it follows somebody, or that it is to stop at some place, go; that it is to recover to its
/// own end and begin a timeline there comes.
fn be_independent(instance: &Instance, root: &Path, extracted: &Extracted) -> Result<()> {
    for name in ["standby.signal", "recovery.signal", "recovery.conf", "recovery.done", "postmaster.pid"] {
        remove(&root.join(name))?;
    }
    let auto_conf = root.join("postgresql.auto.conf");
    let existing = match fs::read_to_string(&auto_conf) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.on("read", &auto_conf)?,
    };
    let mut text = independent_auto_conf(&existing);
    if let Some(port) = copy::own_port(instance) {
        text = auto_conf_with(&text, &[("port", Some(&port))]);
    }
    durable::write(&auto_conf, text.as_bytes(), 0o600)?;
    if extracted.version.uses_recovery_conf() {
        let timeline = extracted.timeline.0.to_string();
        let text = auto_conf_with(
            "",
            &[("restore_command", Some("false")), ("recovery_target_timeline", Some(&timeline))],
        );
        return durable::write(&root.join("recovery.conf"), text.as_bytes(), 0o600);
    }
    durable::write(&root.join("recovery.signal"), b"", 0o600)
}

/// A new timeline gets the number behind those whose histories are known where it begins. Those that the cluster here
/// has used must be among them, or its standbys and its archive would take two histories for one.
fn know_timelines(instance: &Instance, data: &Path, root: &Path, extracted: &Extracted) -> Result<()> {
    let directory = extracted.version.wal_directory();
    let (old, new) = (data.join(directory), root.join(directory));
    let control = instance.control().ok().flatten();
    if data == root || control.as_ref().is_some_and(|c| c.system_id != extracted.control.system_id) {
        return Ok(());
    }
    let names = fs::read_dir(&old).into_iter().flatten().flatten();
    let of_files = names.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        u32::from_str_radix(name.strip_suffix(".history").filter(|digits| digits.len() == 8)?, 16).ok()
    });
    let newest = of_files.chain(control.map(|control| control.timeline.0)).max().unwrap_or(0);
    // Whoever has that many has a file that is called so by somebody else.
    for number in extracted.timeline.0 + 1..=newest.min(extracted.timeline.0 + TIMELINES_LIMIT) {
        let name = history_file_name(Timeline(number));
        // A standby asks for every one of them: where it is not here any more, for one that says nothing.
        let text = fs::read(old.join(&name)).unwrap_or_else(|_| b"# not known here\n".to_vec());
        durable::write(&new.join(&name), &text, 0o600)?;
    }
    Ok(())
}

// --- out of sight ------------------------------------------------------------------------------------

struct Settled {
    password_set: bool,
    warnings: Vec<String>,
}

/// A server that only we know of: no network, a socket in a directory of ours, no archiving, nobody's jobs.
struct Hidden {
    child: Child,
    directory: tempfile::TempDir,
    stopped: bool,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if !self.stopped {
            let pid = Pid::from_raw(self.child.id() as i32);
            let _ = kill(pid, Signal::SIGQUIT);
            if !process::wait_until(Duration::from_secs(10), || !matches!(self.child.try_wait(), Ok(None))) {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
    }
}

impl Hidden {
    fn start(instance: &Instance, root: &Path, extracted: &Extracted) -> Result<Hidden> {
        // A socket's path must be short, and what a killed run left is found by its name.
        let state = &instance.state_directory;
        let metadata = fs::metadata(state).on("look at", state)?;
        let prefix = format!("pgmahout-{:x}-{:x}.", metadata.dev(), metadata.ino());
        let directory = tree::scratch(&std::env::temp_dir(), &prefix)?;
        let path = directory.path();
        fs::set_permissions(path, Permissions::from_mode(0o700)).on("set the mode of", path)?;
        let hba = directory.path().join("pg_hba.conf");
        // Who reaches the socket is this account.
        durable::write(&hba, b"local all all trust\n", 0o600)?;
        let log = directory.path().join("log");
        let out = File::create(&log).on("create", &log)?;
        let also = out.try_clone().on("create", &log)?;
        let program = instance.program("postgres")?;
        let mut command = Command::new(&program);
        command.arg("-D").arg(root);
        for (name, value) in hidden_settings(instance, root, directory.path(), extracted) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = process::without_secrets(&mut command)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(also)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;
        Ok(Hidden { child, directory, stopped: false })
    }

    fn log(&self) -> String {
        let text = fs::read(self.directory.path().join("log")).unwrap_or_default();
        service::last_messages(&String::from_utf8_lossy(&text), 12).join("\n")
    }

    fn failed(&self, why: String) -> Error {
        Error::RestoredDoesNotStart { why, log: self.log() }
    }

    /// Waits for the end of recovery: not before it lets anybody in.
    fn connect(&mut self, target: &Target, limit: Duration) -> Result<Db> {
        let mut last = String::new();
        let connected = process::wait_for(limit, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.stopped = true;
                return Err(self.failed(format!("its server ended ({status})")));
            }
            match Db::connect(target) {
                Ok(mut db) => Ok(if db.in_recovery()? { None } else { Some(db) }),
                Err(error) => {
                    last = error.to_string();
                    match last.contains("role \"") && last.contains("does not exist") {
                        true => {
                            Err(Error::NoRole { role: target.user.clone(), instance: "the backup".into() })
                        }
                        false => Ok(None),
                    }
                }
            }
        })?;
        connected.ok_or_else(|| self.failed(format!("not within {} s: {last}", limit.as_secs())))
    }

    /// Stops it in order.
    fn stop(mut self, limit: Duration) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, Signal::SIGINT);
        let status = process::wait_for(limit, || Ok(self.child.try_wait().ok().flatten()))?;
        self.stopped = status.is_some();
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(format!("its server ended ({status})"))),
            None => Err(self.failed(format!("it does not stop within {} s", limit.as_secs()))),
        }
    }
}

/// Only a port in a socket's name.
const HIDDEN_PORT: u16 = 5432;

fn hidden_settings(
    instance: &Instance,
    root: &Path,
    directory: &Path,
    extracted: &Extracted,
) -> Vec<(&'static str, String)> {
    let version = extracted.version;
    let mut settings = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", format!("\"{}\"", directory.display())),
        ("port", HIDDEN_PORT.to_string()),
        ("hba_file", directory.join("pg_hba.conf").display().to_string()),
        // The old server may be running beside it.
        ("shared_buffers", "16MB".into()),
        ("huge_pages", "off".into()),
        ("external_pid_file", String::new()),
        ("ssl", "off".into()),
        // Its port and its files are the instance's; here it says everything to us.
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
        // What it writes now nobody is to have.
        ("archive_mode", "off".into()),
        ("autovacuum", "off".into()),
        // Nobody before the end of recovery, whatever the settings here are compared with the original's.
        ("hot_standby", "off".into()),
        ("restart_after_crash", "off".into()),
        // All of it is synced at once when it is settled. Until then nothing but another restore takes it for a cluster, and
        // PostgreSQL would sync each file before it begins.
        ("fsync", "off".into()),
    ];
    if let Some(configuration) = &instance.config_directory {
        settings.push(("config_file", configuration.join("postgresql.conf").display().to_string()));
        settings.push(("data_directory", root.display().to_string()));
    }
    if version.has_subscriptions() {
        settings.push(("max_logical_replication_workers", "0".into()));
    }
    if !version.uses_recovery_conf() {
        settings.push(("restore_command", "false".into()));
        settings.push(("recovery_target_timeline", extracted.timeline.0.to_string()));
        for name in [
            "recovery_target",
            "recovery_target_lsn",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
            "recovery_end_command",
            "archive_cleanup_command",
            "primary_conninfo",
        ] {
            settings.push((name, String::new()));
        }
    }
    settings
}

/// Recovers the cluster in `root` to the end of its WAL, on to a timeline of its own, and settles what only SQL can.
fn settle(context: Context, root: &Path, extracted: &Extracted) -> Result<Settled> {
    let instance = context.instance;
    let mut hidden = Hidden::start(instance, root, extracted)?;
    let target = Target {
        label: "the restored cluster".into(),
        host: hidden.directory.path().display().to_string(),
        port: HIDDEN_PORT,
        user: instance.user.clone(),
        password: None,
        database: "postgres".into(),
        tls: Default::default(),
        timeout: instance.connect_timeout,
    };
    // As long as the WAL of a backup takes; the first start's limit is for an ordinary one.
    boundary("restore.hidden-started");
    let mut db = hidden.connect(&target, instance.start_timeout * 12)?;
    boundary("restore.recovered");
    db.run("SET synchronous_commit = local")?;
    let password_set = set_password(instance, &mut db)?;
    let mut warnings = fork::untie(&mut db)?;
    warnings.extend(disable_subscriptions(&mut db, &target)?);
    db.run("CHECKPOINT")?;
    drop(db);
    hidden.stop(instance.stop_timeout)?;
    Ok(Settled { password_set, warnings })
}

/// The superuser's password is this instance's from now on: true when it was another one.
fn set_password(instance: &Instance, db: &mut Db) -> Result<bool> {
    let Some(own) = instance.password()? else { return Ok(false) };
    let role = &instance.user;
    let rows = db.rows("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[role])?;
    let row =
        rows.first().ok_or_else(|| Error::NoRole { role: role.clone(), instance: "the backup".into() })?;
    let former: Option<String> = row.get(0);
    if former.as_deref().and_then(|former| password::matches(former, role, own.expose())) == Some(true) {
        return Ok(false);
    }
    let asked = db.setting("password_encryption")?;
    let is_scram = former.as_deref().is_some_and(password::is_scram);
    let scram = db.version.has_scram() && (is_scram || asked.as_deref() == Some("scram-sha-256"));
    let verifier = password::verifier(role, own.expose(), scram);
    credentials::set_verifier(db, role, Some(&verifier))?;
    Ok(true)
}

/// A subscription that came along would take the original's changes away from it.
fn disable_subscriptions(db: &mut Db, target: &Target) -> Result<Vec<String>> {
    if !db.version.has_subscriptions() {
        return Ok(Vec::new());
    }
    let sql = "SELECT datname::text, subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid \
               WHERE subenabled ORDER BY 1, 2";
    let mut warnings = Vec::new();
    for row in db.rows(sql, &[])? {
        let (database, name): (String, String) = (row.get(0), row.get(1));
        let mut there = Db::connect(&target.database(&database))?;
        there.run("SET synchronous_commit = local")?;
        there.run(&format!("ALTER SUBSCRIPTION {} DISABLE", identifier(&name)))?;
        warnings.push(format!(
            "the subscription {name} in {database} is disabled: its slot on the publisher is the original's"
        ));
    }
    Ok(warnings)
}

/// Ends the hidden server that a killed run has left in `root`.
fn end_server(instance: &Instance, root: &Path) -> Result<()> {
    let Some(running) = layout::read_running(root) else { return Ok(()) };
    let _ = kill(Pid::from_raw(running.pid), Signal::SIGQUIT);
    let gone =
        process::wait_for(instance.stop_timeout, || Ok((!process::is_alive(running.pid)).then_some(())))?;
    gone.ok_or_else(|| Error::ServerDoesNotStop { data: root.into(), limit: instance.stop_timeout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_or_are_refused() {
        for (path, plain) in [("base/5/1", "base/5/1"), ("./base/", "base"), ("./", ""), ("a//b", "a/b")] {
            assert_eq!(plain_path(path.as_bytes()).unwrap(), Path::new(plain), "{path}");
        }
        let long = "x/".repeat(600);
        let deep = "x/".repeat(40);
        for path in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/..",
            ".pgmahout-incomplete",
            "a/.pgmahout-x",
            &long,
            &deep,
        ] {
            assert!(plain_path(path.as_bytes()).is_err(), "{path}");
        }
        assert!(plain_path(b"a\xff").is_err());
    }
}
