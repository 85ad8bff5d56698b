//! Lets the instance use another build: `~/postgresql` in one step, the server restarted. When it does not
//! start, the one before is put back and started again.

use super::super::{Context, standby};
use crate::builds::{self, Build, Current, PreparedLink, Replaced};
use crate::durable::{self, Context as _, Lock};
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::layout::Service;
use crate::postgres::version::PgVersion;
use crate::process;
use crate::service;
use crate::settings;
use crate::sql::Db;
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

/// Whether `~/postgresql` leads to this build.
pub fn is_linked(context: Context, build: &Build) -> Result<bool> {
    Ok(match builds::current(&context.instance.home)? {
        Current::Link(target) => real(&target) == real(&build.prefix),
        _ => false,
    })
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// The file that the running server was started from.
pub fn running_program(instance: &Instance) -> Option<PathBuf> {
    let running = instance.running()?;
    std::fs::read_link(format!("/proc/{}/exe", running.pid)).ok()
}

/// Whether a program lies in an installation.
pub fn is_program_of(program: Option<&Path>, prefix: &Path) -> bool {
    program.is_some_and(|program| program.starts_with(real(prefix)))
}

/// By whom a build is used: this instance, running or not, or whatever else this account runs from it.
pub fn user_of(context: Context, build: &Build) -> Result<Option<&'static str>> {
    let instance = context.instance;
    if is_linked(context, build)?
        || is_program_of(instance.bin_directory().map(real).as_deref(), &build.prefix)
    {
        return Ok(Some("this instance"));
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let programs = processes.filter_map(|entry| std::fs::read_link(entry.path().join("exe")).ok());
    let runs = programs.into_iter().any(|program| is_program_of(Some(&program), &build.prefix));
    Ok(runs.then_some("a program that runs"))
}

/// There while a server is stopped for a switch: what it used before. A run that finds it starts the server,
/// for the one that stopped it was killed.
fn marker(instance: &Instance) -> PathBuf {
    instance.state_directory.join("switching")
}

/// Switches. `replaced` is the build whose place this one has taken: then a server that runs it is restarted
/// too, and it is what comes back when the new one does not start.
pub fn switch(context: Context, build: &Build, replaced: Option<Replaced>) -> Result<Switched> {
    let instance = context.instance;
    let renewed = replaced.is_some();
    let is_done = || -> Result<bool> {
        let runs = match instance.running() {
            Some(_) => !renewed && is_program_of(running_program(instance).as_deref(), &build.prefix),
            None => !marker(instance).exists(),
        };
        Ok(runs && is_linked(context, build)?)
    };
    // Without the lock: what is in use already is answered although a long enslave has it.
    if is_done()? && !marker(instance).exists() && !renewed {
        return Ok(Switched::default());
    }
    let _lock = lock(context, &format!("build-version {}", build.release))?;
    if is_done()? {
        // An interrupted run had started the server, and did not wait for it.
        if marker(instance).exists() {
            let renewed = instance.with_linked_programs();
            answers(standby::connect_when_ready(
                Context { instance: &renewed, progress: context.progress },
                instance.start_timeout,
            ))?;
            remove_marker(instance)?;
        }
        if let Some(replaced) = replaced {
            replaced.forget()?;
        }
        return Ok(Switched::default());
    }
    builds::check(&build.prefix, &build.release)?;
    // Data may have come in the meantime.
    check(context, build.release.version())?;
    let unfinished = std::fs::read_to_string(marker(instance)).ok();
    let before = match unfinished.as_deref() {
        Some("") => Current::None,
        Some(target) => Current::Link(target.into()),
        None => builds::current(&instance.home)?,
    };
    let previous = previous_name(instance, &before, build);
    let switched = !is_linked(context, build)?;
    let link = builds::prepare_link(&instance.home, &build.prefix)?;
    // A server that was stopped for its successor in the meantime is not ours to start.
    if instance.running().is_none() && (unfinished.is_none() || instance.fenced().is_some()) {
        link.put()?;
        if unfinished.is_some() {
            remove_marker(instance)?;
        }
        if let Some(replaced) = replaced {
            replaced.forget()?;
        }
        return Ok(Switched { switched, restarted: false, previous });
    }
    let replaced = replaced.or_else(|| Replaced::find(&instance.home, &build.release));
    restart(context, build, link, &before, replaced, previous.as_deref())?;
    Ok(Switched { switched, restarted: true, previous })
}

fn previous_name(instance: &Instance, before: &Current, build: &Build) -> Option<String> {
    match before {
        Current::Link(target) if real(target) == real(&build.prefix) => None,
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

fn restart(
    context: Context,
    build: &Build,
    link: PreparedLink,
    before: &Current,
    replaced: Option<Replaced>,
    previous: Option<&str>,
) -> Result<()> {
    let instance = context.instance;
    let progress = context.progress;
    progress.step(format!("restarting the server with PostgreSQL {}", build.release));
    let from = match before {
        Current::Link(target) => target.display().to_string(),
        _ => String::new(),
    };
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&marker(instance), from.as_bytes(), 0o600)?;
    boundary("switch.marked");
    // By the programs that started it.
    stop(context)?;
    let renewed = instance.with_linked_programs();
    let error = match link
        .put()
        .inspect(|()| boundary("switch.linked"))
        .and_then(|()| start(Context { instance: &renewed, progress }))
    {
        Ok(()) => {
            boundary("switch.running");
            remove_marker(instance)?;
            boundary("switch.done");
            if let Some(replaced) = replaced {
                replaced.forget()?;
            }
            return match running_program(&renewed) {
                Some(program) if !is_program_of(Some(&program), &build.prefix) => {
                    Err(Error::OtherProgramsRun { release: build.release.to_string(), running: program })
                }
                _ => Ok(()),
            };
        }
        // It was started, only nobody waits for it any more; the next run sees what became of it.
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => error,
    };
    let same = matches!(before, Current::Link(target) if real(target) == real(&build.prefix));
    if same && replaced.is_none() {
        return Err(error);
    }
    progress.step("it does not start; switching back");
    let _ = service::stop(&renewed);
    let back = way_back(instance, before, replaced.as_ref());
    // Whatever became of the link: a server that is down helps nobody.
    let again = back.and(start(context));
    let release = build.release.to_string();
    let previous = previous.unwrap_or("the build before").to_owned();
    match again {
        Ok(()) => {
            remove_marker(instance)?;
            Err(Error::SwitchedBack { release, previous, why: error.to_string() })
        }
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(second) => Err(Error::NothingStarts {
            release,
            previous,
            why: error.to_string(),
            second: second.to_string(),
        }),
    }
}

fn way_back(instance: &Instance, before: &Current, replaced: Option<&Replaced>) -> Result<()> {
    if let Some(replaced) = replaced {
        replaced.restore()?;
    }
    if builds::current(&instance.home)? == *before {
        return Ok(());
    }
    match before {
        Current::Link(target) => builds::prepare_link(&instance.home, target)?.put(),
        _ => builds::remove_link(&instance.home),
    }
}

fn remove_marker(instance: &Instance) -> Result<()> {
    let marker = marker(instance);
    std::fs::remove_file(&marker).on("remove", &marker)
}

/// Stops the server. Once it has begun to stop there is no way but to its end: an interrupt is heeded when it
/// runs again.
fn stop(context: Context) -> Result<()> {
    let instance = context.instance;
    let Err(error) = service::stop(instance) else { return Ok(()) };
    if !process::wait_until(instance.stop_timeout, || instance.running().is_none()) {
        // It goes on serving, or has not come to its end; the marker tells the next run to start it.
        return Err(error);
    }
    if let Error::Interrupted = error {
        return Ok(());
    }
    context.progress.step("it stopped all the same; starting it again");
    match start(context) {
        Ok(()) => remove_marker(instance)?,
        Err(second) => context.progress.warn(format!("it did not start again: {second}")),
    }
    Err(error)
}

/// Starts the server and waits until it answers; that it lets us in is not asked.
fn start(context: Context) -> Result<()> {
    answers(standby::start_and_connect(context))
}

fn answers(connected: Result<Db>) -> Result<()> {
    match connected {
        Ok(_) | Err(Error::SqlPassword { .. } | Error::SqlRefused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets `~/postgresql` point to a build while the server is down, as a part of another command; gives the
/// instance that is started from there.
pub fn point(context: Context, build: &Build) -> Result<Instance> {
    builds::prepare_link(&context.instance.home, &build.prefix)?.put()?;
    Ok(context.instance.with_linked_programs())
}
