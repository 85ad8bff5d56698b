//! Lets the instance use another build: `~/postgresql` in one step, the server restarted. When it does not
//! start, the one before is put back and started again.

use super::super::{Context, standby};
use crate::builds::{self, Build, Current};
use crate::durable::Lock;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::layout::Service;
use crate::postgres::version::PgVersion;
use crate::service;
use crate::settings;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a switch came to.
#[derive(Debug, Default)]
pub struct Switched {
    /// `~/postgresql` points to it since now.
    pub switched: bool,
    /// The server was restarted.
    pub restarted: bool,
    /// What was used before.
    pub previous: Option<String>,
}

/// Somebody else may be at a switch, which ends with a restart.
const OTHERS_SWITCH: Duration = Duration::from_secs(60);

/// The lock of the instance, as every command takes that changes it.
pub fn lock(context: Context, doing: &str) -> Result<Lock> {
    let path = context.instance.state_directory.join("lock");
    Lock::wait(&path, doing, OTHERS_SWITCH, |holder| {
        context.progress.step(format!("waiting for another pgmahout at work on this instance: {holder}"));
    })
}

/// Refuses what could not be switched to, before anything is downloaded or changed.
pub fn check(context: Context, version: PgVersion) -> Result<()> {
    check_programs(context)?;
    let instance = context.instance;
    let has = match instance.data_version() {
        Ok(has) => has,
        // A home without data, such as the one that a recipe's builder fills.
        Err(Error::NoDataDirectory { candidates }) if candidates.is_empty() => None,
        Err(error) => return Err(error),
    };
    if let Some(has) = has.filter(|has| !has.same_major(version)) {
        let data = instance.data_directory()?;
        return Err(Error::OtherDataMajor { data, has: has.major(), wanted: version.major() });
    }
    Ok(())
}

/// Refuses where `~/postgresql` is not what the server is started from.
pub fn check_programs(context: Context) -> Result<()> {
    let instance = context.instance;
    let link = instance.home.join(builds::LINK);
    if builds::current(&instance.home)? == Current::Taken {
        return Err(Error::LinkTaken { path: link });
    }
    let programs = instance.bin_directory().map(Path::to_path_buf).unwrap_or_else(|| link.join("bin"));
    let elsewhere =
        |because: String| Err(Error::NotFromLink { programs: programs.display().to_string(), because });
    if let Service::Systemd { .. } | Service::PgCtlCluster { .. } = instance.service {
        return elsewhere(format!("it is run by {}", instance.service));
    }
    let said = instance.resolved().iter().find(|r| r.name == "bin_directory").map(|r| &r.origin);
    if let Some(
        origin @ (settings::Origin::Flag | settings::Origin::Environment(_) | settings::Origin::File(_)),
    ) = said
        && programs != link.join("bin")
    {
        return elsewhere(format!("bin_directory is set ({origin})"));
    }
    Ok(())
}

/// Whether `~/postgresql` points to this build.
pub fn is_linked(context: Context, build: &Build) -> Result<bool> {
    Ok(builds::current(&context.instance.home)? == Current::Link(build.prefix.clone()))
}

/// The file that the running server was started from.
pub fn running_program(instance: &Instance) -> Option<PathBuf> {
    let running = instance.running()?;
    std::fs::read_link(format!("/proc/{}/exe", running.pid)).ok()
}

/// Whether a program lies in an installation.
pub fn is_program_of(program: Option<&Path>, prefix: &Path) -> bool {
    let real = prefix.canonicalize().unwrap_or_else(|_| prefix.into());
    program.is_some_and(|program| program.starts_with(real))
}

/// Switches. `renewed` says that the build's files are new: then a server that runs it is restarted too.
pub fn switch(context: Context, build: &Build, renewed: bool) -> Result<Switched> {
    let instance = context.instance;
    // Before the lock: what is in use already is answered although a long enslave has it.
    let is_done = |renewed: bool| -> Result<bool> {
        let runs = instance.running().is_none()
            || (!renewed && is_program_of(running_program(instance).as_deref(), &build.prefix));
        Ok(runs && is_linked(context, build)?)
    };
    if is_done(renewed)? {
        return Ok(Switched::default());
    }
    builds::check(&build.prefix, &build.release)?;
    let _lock = lock(context, &format!("build-version {}", build.release))?;
    if is_done(renewed)? {
        return Ok(Switched::default());
    }
    // Data may have come in the meantime.
    check(context, build.release.version())?;
    let before = builds::current(&instance.home)?;
    let previous = previous_name(instance, &before, build);
    let switched = !is_linked(context, build)?;
    if instance.running().is_none() {
        builds::point(&instance.home, &build.prefix)?;
        return Ok(Switched { switched, restarted: false, previous });
    }
    restart(context, build, &before, previous.as_deref())?;
    Ok(Switched { switched, restarted: true, previous })
}

fn previous_name(instance: &Instance, before: &Current, build: &Build) -> Option<String> {
    match before {
        Current::Link(target) if *target == build.prefix => None,
        Current::Link(target) => {
            let name = target.file_name()?.to_string_lossy().into_owned();
            let version = name.strip_prefix("postgresql-").map(str::to_owned);
            Some(version.unwrap_or_else(|| target.display().to_string()))
        }
        _ => {
            let version = instance.program_version().ok()?;
            let directory = instance.bin_directory()?.canonicalize().ok()?;
            Some(format!("{version} in {}", directory.parent().unwrap_or(&directory).display()))
        }
    }
}

fn restart(context: Context, build: &Build, before: &Current, previous: Option<&str>) -> Result<()> {
    let instance = context.instance;
    let progress = context.progress;
    progress.step(format!("restarting the server with PostgreSQL {}", build.release));
    // By the programs that started it.
    if let Err(error) = service::stop(instance) {
        // It may have been stopping all the same, or was interrupted at it.
        let _ = service::start(instance);
        return Err(error);
    }
    let renewed = instance.with_linked_programs();
    let started = builds::point(&instance.home, &build.prefix)
        .and_then(|()| start(Context { instance: &renewed, progress }));
    let error = match started {
        Ok(()) => {
            let running = running_program(&renewed);
            return match running {
                Some(program) if !is_program_of(Some(&program), &build.prefix) => {
                    Err(Error::OtherProgramsRun { release: build.release.to_string(), running: program })
                }
                _ => Ok(()),
            };
        }
        // It was started, only nobody waits for it any more.
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => error,
    };
    if *before == Current::Link(build.prefix.clone()) {
        return Err(error);
    }
    progress.step("it does not start; switching back");
    let _ = service::stop(&renewed);
    match before {
        Current::Link(target) => builds::point(&instance.home, target)?,
        _ => builds::unpoint(&instance.home)?,
    }
    start(context)?;
    Err(Error::SwitchedBack {
        release: build.release.to_string(),
        previous: previous.unwrap_or("the one before").to_owned(),
        why: error.to_string(),
    })
}

/// Starts the server and waits until it answers; that it lets us in is not asked.
fn start(context: Context) -> Result<()> {
    match standby::start_and_connect(context) {
        Ok(_) | Err(Error::SqlPassword { .. } | Error::SqlRefused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets `~/postgresql` point to a build while the server is down, as a part of another command; gives the
/// instance that is started from there.
pub fn point(context: Context, build: &Build) -> Result<Instance> {
    builds::point(&context.instance.home, &build.prefix)?;
    Ok(context.instance.with_linked_programs())
}
