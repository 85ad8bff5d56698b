//! Owns where a full copy lies: beside PGDATA until the two are exchanged in one atomic step, its
//! tablespaces, what an earlier run has left, and what becomes of the old cluster.

use super::super::Context;
use super::marker::{self, By, MARKER, Mark, remove_marker};
use super::plan::{Action, Fate, Plan};
use super::there::There;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::postgres::version::PgVersion;
use crate::progress::time_text;
use crate::service;
use crate::sql::Target;
use crate::transfer::protocol::{EntryKind, List};
use crate::transfer::source::boot_id;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a file system has at its root, where that is a data directory.
pub const LOST_AND_FOUND: &str = "lost+found";

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
    /// The major version of the copy.
    pub major: String,
    /// It is no copy of another instance, but a backup that is restored.
    pub restores: bool,
    /// Tablespaces of a source that sees the same disks: whatever leads there from here, nothing is removed there.
    pub theirs: Vec<PathBuf>,
    /// Where the copy goes.
    pub place: Place,
    /// What lies there already is compared with the source's, and only what differs is copied.
    pub reuse: bool,
    /// Tablespaces: OID, where on the source, where here.
    pub tablespaces: Vec<(u32, String, PathBuf)>,
    /// Bytes of the source's files.
    pub bytes: u64,
    /// Where pg_wal lies when it is a symbolic link here, and where the new one will.
    pub wal_link: Option<(PathBuf, PathBuf)>,
}

/// Bytes beyond the copy itself that have to be free: room for the WAL that arrives meanwhile.
const MARGIN: u64 = 64 << 20;

/// Measures the source and finds the place for the copy. What a run that broke off has left is used if `resume`.
pub fn layout(
    context: Context,
    there: &mut There,
    plan: &Plan,
    mapping: &[(PathBuf, PathBuf)],
    resume: bool,
) -> Result<Layout> {
    let mut rooms: BTreeMap<u32, u64> = BTreeMap::new();
    let mut bytes = 0;
    let mut tablespaces = Vec::new();
    let version = there.version;
    there.stream.list(&list(there.version.num(), version.has_nonexclusive_backup()), |entry| {
        match entry.kind {
            EntryKind::Tablespace => tablespaces.push((entry.root, entry.path.clone(), entry.size != 1)),
            _ => {
                bytes += entry.size;
                // Whole blocks, as they will lie on the disk.
                *rooms.entry(entry.root).or_default() += entry.room.next_multiple_of(4096);
            }
        }
        Ok(())
    })?;
    let data = context.instance.data_directory()?;
    let begun = [&data, &staging(&data)].into_iter().find(|root| marker::is_begun(root)).cloned();
    let theirs = tablespaces.iter().filter(|(_, _, outside)| *outside && sees_our_disks(there));
    let theirs: Vec<_> = theirs.map(|(_, at, _)| real(Path::new(at))).collect();
    let reused = if plan.action == Action::Delta { Some(data.clone()) } else { begun.filter(|_| resume) };
    let reused = reused.map(|root| Reused { tablespaces: begun_tablespaces(&root, &data, &theirs), root });
    let layout = placed(context, version, &rooms, &tablespaces, plan, mapping, reused)?;
    Ok(Layout { theirs, bytes, ..layout })
}

/// What the copy begins with.
pub struct Reused {
    root: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
}

/// A path there is the same directory here: one machine, and no container between.
fn sees_our_disks(there: &There) -> bool {
    let same = |found: fs::Metadata| (found.dev(), found.ino()) == (there.facts.device, there.facts.inode);
    there.facts.boot_id == boot_id() && fs::metadata(&there.data_directory).is_ok_and(same)
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Finds the place for a cluster: bytes by root, and its tablespaces: OID, where they were (relative to PGDATA when
/// in it).
pub fn placed(
    context: Context,
    version: PgVersion,
    sizes: &BTreeMap<u32, u64>,
    tablespaces: &[(u32, String, bool)],
    plan: &Plan,
    mapping: &[(PathBuf, PathBuf)],
    reused: Option<Reused>,
) -> Result<Layout> {
    let data = context.instance.data_directory()?;
    let existing = existing_tablespaces(&data);
    let (reused, begun) = match reused {
        Some(Reused { root, tablespaces }) => (Some(root), tablespaces),
        None => (None, BTreeMap::new()),
    };
    let half_made = [staging(&data), data.clone()]
        .into_iter()
        .filter(|root| *root != data || marker::is_incomplete(root));
    let unfinished: Vec<_> =
        half_made.filter_map(|root| Mark::read(&root)).flat_map(|mark| mark.elsewhere).collect();
    let mut placed = Vec::new();
    let mut inside = 0;
    for (oid, on_source, outside) in tablespaces {
        if *outside {
            let here = match begun.get(oid) {
                Some(here) => here.clone(),
                None => place_tablespace(context, on_source, mapping, &existing, &unfinished, *oid)?,
            };
            placed.push((*oid, on_source.clone(), here));
        } else {
            inside += sizes.get(oid).copied().unwrap_or(0);
            placed.push((*oid, on_source.clone(), data.join(on_source)));
        }
    }
    let in_data = sizes.get(&0).copied().unwrap_or(0) + inside;
    let bytes = sizes.values().sum();
    let place = match &reused {
        None => find_place(&data, in_data, plan)?,
        Some(root) => {
            let (needed, available) = (in_data + MARGIN, durable::available_space(root)? + tree_size(root));
            if available < needed {
                return Err(Error::NoSpace { path: root.clone(), needed, available });
            }
            match *root == data {
                true if plan.action == Action::Delta => Place::InPlace("only what differs is written"),
                true => Place::InPlace("it holds a copy that was not completed"),
                false => Place::Beside(root.clone()),
            }
        }
    };
    for (oid, _, here) in placed.iter().filter(|(_, _, here)| !here.starts_with(&data)) {
        let needed = sizes.get(oid).copied().unwrap_or(0) + MARGIN;
        let own = if begun.contains_key(oid) { tree_size(here) } else { 0 };
        let available = durable::available_space(here)? + own;
        if available < needed {
            return Err(Error::NoSpace { path: here.clone(), needed, available });
        }
    }
    let wal = data.join(version.wal_directory());
    let is_link = fs::symlink_metadata(&wal).is_ok_and(|m| m.is_symlink());
    let begun_wal = reused.as_ref().and_then(|root| fs::read_link(root.join(version.wal_directory())).ok());
    let wal_link =
        is_link.then(|| wal.canonicalize().ok()).flatten().and_then(|old| match (&reused, begun_wal) {
            // It goes on behind the link that it has.
            (Some(root), _) if *root == data => None,
            (_, Some(begun)) => Some((old, begun)),
            _ => Some((old.clone(), new_wal_directory(&old))),
        });
    Ok(Layout {
        data,
        major: version.major(),
        restores: false,
        theirs: Vec::new(),
        place,
        reuse: reused.is_some(),
        tablespaces: placed,
        bytes,
        wal_link,
    })
}

/// A copy that broke off is here, and the next run goes on with it.
pub fn has_begun(instance: &Instance) -> bool {
    instance.data_directory().is_ok_and(|data| marker::is_begun(&data) || marker::is_begun(&staging(&data)))
}

/// The request for the files of a base backup.
pub fn list(version: u32, has_nonexclusive_backup: bool) -> List {
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

/// Those whose content the copy begins with. A link alone may be a copy of the source's own, or lead into PGDATA itself;
/// that of a copy that broke off is its own when its mark says so.
fn begun_tablespaces(root: &Path, data: &Path, theirs: &[PathBuf]) -> BTreeMap<u32, PathBuf> {
    let mark = Mark::read(root).filter(|_| !marker::has_control(root));
    let is_ours = |here: &Path| {
        here.is_absolute()
            && !real(here).starts_with(real(data))
            && !theirs.contains(&real(here))
            && mark.as_ref().is_none_or(|mark| mark.elsewhere.iter().any(|marked| marked == here))
    };
    existing_tablespaces(root).into_iter().filter(|(_, here)| is_ours(here)).collect()
}

/// The mark of a copy that lies so.
pub fn mark(layout: &Layout) -> Mark {
    let wal = layout.wal_link.iter().map(|(_, new)| new);
    Mark {
        by: if layout.restores { By::Restore } else { By::Copy },
        major: layout.major.clone(),
        elsewhere: outside(layout).chain(wal).cloned().collect(),
    }
}

/// The tablespaces that do not lie in PGDATA.
pub fn outside(layout: &Layout) -> impl Iterator<Item = &PathBuf> {
    layout.tablespaces.iter().map(|(_, _, here)| here).filter(|here| !here.starts_with(&layout.data))
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
    if here.starts_with(context.instance.data_directory()?) {
        return Err(Error::TablespaceInside { on_source: on_source.to_owned(), here });
    }
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

/// A name for new WAL beside the old one, which stays whole, on the disk that was made for it.
fn new_wal_directory(old: &Path) -> PathBuf {
    let base = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let base = base.split(".pgmahout-").next().unwrap_or_default();
    let candidates = (1..).map(|n| old.with_file_name(format!("{base}.pgmahout-{n}")));
    candidates.into_iter().find(|path| !path.exists()).expect("there are enough numbers")
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
/// that was exchanged but not yet moved to its final name gets it, which is given.
pub fn tidy(context: Context, data: &Path) -> Result<Option<PathBuf>> {
    let staging = staging(data);
    if !staging.exists() {
        return Ok(None);
    }
    if staging.join(MARKER).exists() || is_empty_or_absent(&staging)? {
        context.progress.step("removing an earlier copy that was not completed");
        marker::remove_copy(&staging)?;
    } else {
        let aside = aside(data);
        context.progress.warn(format!("an old cluster was found and is kept in {}", aside.display()));
        durable::rename(&staging, &aside)?;
        return Ok(Some(aside));
    }
    Ok(None)
}

/// Old clusters that are kept beside PGDATA, oldest first.
pub fn kept(data: &Path) -> Vec<PathBuf> {
    let prefix = suffixed(data, "pgmahout-old-");
    let entries = fs::read_dir(durable::parent(data)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.as_os_str().to_string_lossy().starts_with(&*prefix.to_string_lossy()))
        .collect();
    found.sort();
    found
}

/// Where an old cluster is kept: a name that nobody has, behind those of all that are kept already.
fn aside(data: &Path) -> PathBuf {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let named = |second: i64| {
        let stamp: String = time_text(second).chars().filter(char::is_ascii_digit).collect();
        suffixed(data, &format!("pgmahout-old-{stamp}"))
    };
    // Two may be put aside within one second.
    (now as i64..).map(named).find(|path| !path.exists()).expect("there are enough seconds")
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
        boundary("place.renamed");
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
    boundary("place.exchanging");
    if !durable::exchange(staging, data)? {
        let aside = aside(data);
        durable::rename(data, &aside)?;
        durable::rename(staging, data)?;
        durable::rename(&aside, staging)?;
    }
    // `staging` is the old cluster now.
    boundary("place.exchanged");
    arrived()?;
    if fate == Fate::KeptAside {
        let aside = aside(data);
        durable::rename(staging, &aside)?;
        boundary("place.kept");
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
    /// Its version, and the directories where its tablespaces have theirs.
    mark: Mark,
    /// Its WAL, on a disk of its own.
    wal: Option<PathBuf>,
}

impl Leftovers {
    fn of(data: &Path, layout: &Layout) -> Leftovers {
        let in_use: Vec<_> = layout.tablespaces.iter().map(|(_, _, here)| real(here)).collect();
        let is_its_own = |path: &PathBuf| {
            !in_use.contains(path) && !layout.theirs.contains(path) && !path.starts_with(real(data))
        };
        // What is half made may have links that lead anywhere: only its mark is believed.
        let (major, elsewhere) = match Mark::read(data).filter(|_| !marker::has_control(data)) {
            Some(mark) => (mark.major, mark.elsewhere),
            None => {
                let major = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default().trim().to_owned();
                (major, existing_tablespaces(data).into_values().collect())
            }
        };
        let elsewhere = elsewhere.iter().map(|path| real(path)).filter(is_its_own).collect();
        let wal = layout.wal_link.as_ref().map(|(old, _)| old.clone());
        Leftovers { mark: Mark { by: By::Removal, major, elsewhere }, wal }
    }

    fn remove(&self, old: &Path) -> Result<()> {
        // Were it to break off here, the next run finishes it.
        self.mark.write(old)?;
        boundary("place.removing");
        self.mark.remove_elsewhere(|_| true)?;
        if let Some(wal) = &self.wal {
            durable::remove_tree(wal)?;
        }
        durable::remove_tree(old)?;
        boundary("place.removed");
        Ok(())
    }
}
