//! Owns the checks before the plan, which touch nothing: another machine, programs that can run the copy, the
//! right direction, a free slot, settings that are high enough.

use super::super::Context;
use super::super::build_version::{share, switch};
use super::Options;
use super::here::Cluster;
use super::there::{self, Preloads, There};
use crate::blurb::Blurb;
use crate::builds::{self, Build};
use crate::error::{Error, Result};
use crate::postgres::files::preloaded_libraries;
use crate::postgres::recovery::last_setting;
use crate::postgres::release::Release;
use crate::process;
use crate::transfer::source::boot_id;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The source must not be this very instance: the same directory of the same running system.
pub fn check_not_itself(context: Context, there: &There) -> Result<()> {
    let data = context.instance.data_directory()?;
    let Ok(here) = fs::metadata(&data) else { return Ok(()) };
    let same = there.facts.boot_id == boot_id()
        && (there.facts.device, there.facts.inode) == (here.dev(), here.ino());
    if same { Err(Error::SourceIsTarget { instance: context.instance.name.clone() }) } else { Ok(()) }
}

/// Sees that the programs here can run a copy of the source. When that is wanted and they are others, gives the
/// build that is to be used from the copy's start on: one that is here, or what the source offers.
pub fn programs(context: Context, there: &There, options: &Options) -> Result<Option<Build>> {
    let instance = context.instance;
    let ours = match instance.program_version() {
        Ok(ours) => Some(ours),
        // With the source's build it needs none of its own.
        Err(Error::NoBinDirectory | Error::NoProgram { .. }) if options.take_build => None,
        Err(error) => return Err(error),
    };
    let same_major = ours.is_some_and(|ours| ours.same_major(there.version));
    if ours != Some(there.version) && options.take_build {
        switch::check_programs(context)?;
        let here = Release::from_name(&there.version.to_string());
        let build = match here.and_then(|release| builds::find(&instance.home, &release)) {
            Some(build) => {
                builds::check(&build.prefix, &build.release)?;
                build
            }
            None => ask_for_build(context, there, true)?,
        };
        if !build.release.version().same_major(there.version) {
            return Err(other_major(there, &build.release.to_string()));
        }
        return Ok(Some(build));
    }
    let ours = ours.map_or_else(|| "none".into(), |ours| ours.to_string());
    if !same_major {
        return Err(other_major(there, &ours));
    }
    if ours != there.version.to_string() {
        context.progress.step(format!(
            "{} runs {}, this instance {ours}: that works; --take-build takes its build",
            there.name, there.version
        ));
    }
    check_block_size(there, &instance.program("postgres")?)?;
    Ok(None)
}

/// The build that the copy is to be started with, here and able to run it.
pub fn take_build(context: Context, there: &There, offered: &Build) -> Result<Build> {
    let build = match builds::find(&context.instance.home, &offered.release) {
        Some(build) => build,
        None => ask_for_build(context, there, false)?,
    };
    check_block_size(there, &build.prefix.join("bin/postgres"))?;
    Ok(build)
}

fn ask_for_build(context: Context, there: &There, only_ask: bool) -> Result<Build> {
    // Whether the data here allow a switch does not matter: they are about to be replaced.
    let wanted = share::Options { no_switch: true, dry_run: only_ask, ..share::Options::default() };
    share::take(context, there.remote.as_ref(), &there.agent, &wanted).map(|taken| taken.build)
}

fn other_major(there: &There, ours: &str) -> Error {
    Error::OtherMajor { source: there.name.clone(), theirs: there.version.to_string(), ours: ours.to_owned() }
}

/// A server can only be built with one block size; asking the program itself is exact.
fn check_block_size(there: &There, postgres: &Path) -> Result<()> {
    let mut command = Command::new(postgres);
    let finished = process::run_any(command.args(["-C", "block_size"]), Duration::from_secs(30))?;
    let block_size = finished.stdout.trim().parse().unwrap_or(there.control.block_size);
    if block_size != there.control.block_size {
        return Err(Error::OtherBlockSize { theirs: there.control.block_size, ours: block_size });
    }
    Ok(())
}

/// The libraries that the copied settings preload have to be among the programs here: without one of them the
/// server does not start.
pub fn check_libraries(context: Context, there: &There) -> Result<()> {
    let instance = context.instance;
    let Preloads { setting, file, path } = &there.preloads;
    // Only what stands in PGDATA is copied; and of that, a server whose settings are elsewhere reads but one file.
    let copied = Path::new(file).starts_with(&there.data_directory)
        && (instance.config_directory.is_none() || file.ends_with("/postgresql.auto.conf"));
    let postgres = instance.program("postgres")?;
    let postgres = postgres.canonicalize().unwrap_or(postgres);
    // Where PostgreSQL's own build puts $libdir, with and without Debian's change; plpgsql is always in it.
    let prefix = postgres.ancestors().nth(2).unwrap_or(Path::new("/"));
    let directories = ["lib/postgresql", "lib"].map(|name| prefix.join(name));
    let directory = directories.into_iter().find(|directory| directory.join("plpgsql.so").exists());
    let Some(directory) = directory.filter(|_| copied && path == "$libdir") else { return Ok(()) };
    for library in preloaded_libraries(setting) {
        let name = library.trim_start_matches("$libdir/").trim_end_matches(".so");
        // An absolute path replaces the directory.
        if !directory.join(format!("{name}.so")).exists() {
            return Err(Error::LibraryMissing { library, source: there.name.clone(), directory });
        }
    }
    Ok(())
}

/// The direction guard, as far as it needs no plan.
pub fn check_direction(
    context: Context,
    there: &mut There,
    cluster: Option<&mut Cluster>,
    options: &Options,
) -> Result<()> {
    if !there.in_recovery {
        return Ok(());
    }
    let instance = context.instance.name.clone();
    let source = there.name.clone();
    if let Some(cluster) = cluster
        && cluster.control.system_id == there.system_id
    {
        if !cluster.ours.is_standby {
            return Err(Error::SourceIsOurStandby { source, instance });
        }
        // Both are standbys: a circle, if it streams from us.
        if let Some(db) = &mut cluster.db
            && there.version.has_wal_receiver_view()
        {
            let rows = there.db.rows("SELECT slot_name FROM pg_stat_wal_receiver", &[])?;
            if let Some(slot) = rows.first().and_then(|row| row.get::<_, Option<String>>(0)) {
                let ours = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active";
                if db.value::<i64>(ours, &[&slot])? > 0 {
                    return Err(Error::SourceIsOurStandby { source, instance });
                }
            }
        }
    }
    if !options.cascade {
        return Err(Error::SourceIsStandby { source });
    }
    Ok(())
}

/// Our slot's name must not be in somebody else's use.
pub fn check_slot(context: Context, there: &There, cluster: Option<&mut Cluster>, slot: &str) -> Result<()> {
    if !there.slot_is_active {
        return Ok(());
    }
    // Held by ourselves, as a standby that has this slot in its settings: that ends with the restart.
    let ours = match cluster {
        None => false,
        Some(Cluster { db: Some(db), .. }) if db.version.shows_recovery_settings() => {
            db.setting("primary_slot_name")?.as_deref() == Some(slot)
        }
        Some(Cluster { db: Some(_), .. }) => true,
        // One that is starting up streams before it lets anybody in.
        Some(cluster) => {
            context.instance.running().is_some()
                && ["postgresql.auto.conf", "recovery.conf"].iter().any(|name| {
                    let text = fs::read_to_string(cluster.data.join(name)).unwrap_or_default();
                    last_setting(&text, "primary_slot_name").as_deref() == Some(slot)
                })
        }
    };
    if !ours { Err(Error::SlotInUse { slot: slot.to_owned() }) } else { Ok(()) }
}

/// Settings that must not be lower here than on the source, where this instance keeps its own.
pub fn check_settings(context: Context, there: &mut There, cluster: Option<&mut Cluster>) -> Result<()> {
    let instance = context.instance;
    let mut db = cluster.and_then(|cluster| cluster.db.as_mut());
    for name in there.version.standby_minimum_settings() {
        let theirs = there.db.setting(name)?;
        let ours = match &mut db {
            Some(db) => db.setting(name)?,
            None => {
                let directory = match &instance.config_directory {
                    Some(directory) => directory.clone(),
                    None => instance.data_directory()?,
                };
                let mut command = Command::new(instance.program("postgres")?);
                command.arg("-D").arg(directory).args(["-C", name]);
                let finished = process::run_any(&mut command, Duration::from_secs(30))?;
                finished.status.success().then(|| finished.stdout.trim().to_owned())
            }
        };
        let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse::<i64>().ok());
        if let (Some(theirs), Some(ours)) = (number(&theirs), number(&ours))
            && ours < theirs
        {
            return Err(Error::SettingTooLow { name, ours, theirs, source: there.name.clone() });
        }
    }
    Ok(())
}

/// The standby that a copy comes from, reached and found to be a standby of the source, which has what the source has.
///
/// # Errors
/// Those of reaching it; [`Error::CopyFrom`].
pub fn copy_from(context: Context, there: &There, blurb: &Blurb) -> Result<There> {
    let name = blurb.name.clone().unwrap_or_else(|| "the standby".into());
    let other = there::reach(context, &Blurb { name: Some(name), ..blurb.clone() }, None)?;
    check_not_itself(context, &other)?;
    let no = |why: String| Error::CopyFrom { name: other.name.clone(), source: there.name.clone(), why };
    if other.system_id != there.system_id {
        return Err(no("it is another cluster".into()));
    }
    if !other.in_recovery {
        return Err(no("it is no standby".into()));
    }
    if (other.facts.device, other.facts.inode, &other.facts.boot_id)
        == (there.facts.device, there.facts.inode, &there.facts.boot_id)
    {
        return Err(no("it is the source".into()));
    }
    if !other.version.same_major(there.version) {
        return Err(no(format!("it is PostgreSQL {}, not {}", other.version, there.version)));
    }
    if !other.version.has_nonexclusive_backup() || !other.version.reserves_slot_at_once() {
        return Err(no(format!("PostgreSQL {} cannot be copied from a standby", other.version)));
    }
    if other.history.timeline != there.history.timeline {
        let (its, ours) = (other.history.timeline.0, there.history.timeline.0);
        return Err(no(format!("it is on timeline {its}, not {ours}")));
    }
    context.progress.step(format!("the copy comes from {}, at {}", other.name, other.end));
    Ok(other)
}
