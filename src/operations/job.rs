//! A long operation that goes on when the operator has gone: `enslave --background` and `fork --background`
//! start this program again, detached, and `wait` and `info` read how it does from one small file.

use super::Context;
use crate::checked;
use crate::durable::{self, Context as _, Lock};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::process;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What runs in the background, or has failed there. One that came to its good end leaves nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// `enslave` or `fork`.
    pub verb: String,
    /// Of what.
    pub source: String,
    /// Its process.
    pub pid: i32,
    /// Seconds since 1970 when it began.
    pub started: i64,
    /// What it is doing.
    pub step: String,
    /// Bytes done of this step.
    pub done: u64,
    /// Bytes that this step has, or 0.
    pub total: u64,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// An error as `--json` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// Its text.
    pub message: String,
    /// What gets the person out.
    pub hint: Option<String>,
    /// Exit code.
    pub exit: u8,
}

impl Failure {
    fn of(error: &Error) -> Failure {
        Failure { message: error.to_string(), hint: error.hint(), exit: error.exit() as u8 }
    }
}

/// How a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is at work.
    Running,
    /// It ended with an error.
    Failed,
    /// It was ended before it could say anything.
    Interrupted,
}

impl Job {
    /// How it does.
    pub fn state(&self) -> State {
        match self.error {
            Some(_) => State::Failed,
            None if is_at_work(self.pid) || self.is_starting() => State::Running,
            None => State::Interrupted,
        }
    }

    /// It has no process yet that says so itself.
    fn is_starting(&self) -> bool {
        self.pid == 0 && (0..=START_LIMIT.as_secs() as i64).contains(&(now() - self.started))
    }

    /// What it is doing, for a person: "copying, 43%".
    pub fn doing(&self) -> String {
        match self.total {
            0 => self.step.clone(),
            total => format!("{}, {}%", self.step, (self.done.min(total) * 100) / total),
        }
    }
}

/// From its record to its process' own word.
const START_LIMIT: Duration = Duration::from_secs(20);

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// The number may be another process's by now.
fn is_at_work(pid: i32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    process::is_alive(pid) && arguments.split(|byte| *byte == 0).any(|argument| argument == b"--job")
}

fn path(instance: &Instance) -> PathBuf {
    instance.state_directory.join("job.json")
}

/// Where a job finds its blurb, for which its stdin is gone. It may hold a password.
fn blurb_path(instance: &Instance) -> PathBuf {
    instance.state_directory.join("job.blurb")
}

/// The job of this instance, if there is one. Of one whose record is damaged nobody knows how it does: it has failed.
pub fn read(instance: &Instance) -> Option<Job> {
    let path = path(instance);
    let read = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => Err(e.to_string()),
        Ok(bytes) => checked::from_json(&bytes),
    };
    Some(read.unwrap_or_else(|why| Job {
        verb: "background work".into(),
        source: "some instance".into(),
        pid: 0,
        started: 0,
        step: "unknown".into(),
        done: 0,
        total: 0,
        error: Some(Failure::of(&Error::JobRecord { path, why })),
    }))
}

fn write(instance: &Instance, job: &Job) -> Result<()> {
    durable::write(&path(instance), &checked::json(job), 0o600)
}

/// Starts this program again with `arguments` and without a terminal or a connection; gives the job once it
/// is at work. `blurb` is what it reads in place of stdin.
pub fn start(
    context: Context,
    verb: &str,
    source: &str,
    arguments: Vec<OsString>,
    blurb: Option<&[u8]>,
) -> Result<Job> {
    let instance = context.instance;
    // Until it has begun: whoever comes at the same time sees that it runs.
    let lock = instance.state_directory.join("job.lock");
    let _lock = Lock::wait(&lock, "--background", Duration::from_secs(30), |_| {})?;
    if let Some(job) = read(instance).filter(|job| job.pid != 0 && job.state() == State::Running) {
        return Err(Error::JobRuns { verb: job.verb, source_name: job.source, pid: job.pid });
    }
    let started = spawn(context, verb, source, arguments, blurb);
    if started.is_err() {
        // It may hold a password, which nobody would take away.
        forget_blurb(context);
        if read(instance).is_some_and(|job| job.pid == 0) {
            let _ = fs::remove_file(path(instance));
        }
    }
    started
}

fn spawn(
    context: Context,
    verb: &str,
    source: &str,
    mut arguments: Vec<OsString>,
    blurb: Option<&[u8]>,
) -> Result<Job> {
    let instance = context.instance;
    durable::create_private_directory(&instance.state_directory)?;
    if let Some(blurb) = blurb {
        let path = blurb_path(instance);
        durable::write(&path, blurb, 0o600)?;
        arguments.extend(["--info".into(), path.into()]);
    }
    let job = Job {
        verb: verb.to_owned(),
        source: source.to_owned(),
        pid: 0,
        started: now(),
        step: "starting".into(),
        done: 0,
        total: 0,
        error: None,
    };
    write(instance, &job)?;
    let log = instance.state_directory.join("job.log");
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&log);
    let file = file.on("open", &log)?;
    let program = std::env::current_exe().on("find", &PathBuf::from("/proc/self/exe"))?;
    let spawn_error = |source| Error::Spawn { program: program.display().to_string(), source };
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(spawn_error)?)
        .stderr(file)
        .spawn()
        .map_err(spawn_error)?;
    let pid = child.id() as i32;
    let begun = process::wait_for(START_LIMIT, || {
        if let Some(job) = read(instance).filter(|job| job.pid == pid) {
            return Ok(Some(job));
        }
        // It has done all that was to do, or says in its log why it could not.
        match child.try_wait().map_err(spawn_error)? {
            Some(status) if status.success() => Ok(Some(Job { pid, ..job.clone() })),
            Some(status) => Err(Error::Child {
                program: program.display().to_string(),
                status: status.to_string(),
                said: fs::read_to_string(&log).unwrap_or_default().trim().to_owned(),
            }),
            None => Ok(None),
        }
    })?;
    if begun.is_none() {
        // Nobody would know of it.
        let _ = child.kill();
        let _ = child.wait();
    }
    begun.ok_or(Error::ChildTooSlow { program: program.display().to_string(), limit: START_LIMIT })
}

/// In the job itself: leaves the terminal's session, and from now on records what is done.
pub fn begin(context: Context) -> Result<()> {
    let _ = nix::unistd::setsid();
    let instance = context.instance.clone();
    let Some(mut job) = read(&instance) else { return Ok(()) };
    job.pid = std::process::id() as i32;
    job.error = None;
    write(&instance, &job)?;
    context.progress.watch(move |step, done, total| {
        let job = Job { step: step.to_owned(), done, total, ..job.clone() };
        // How it does is for the curious: the work goes on without it.
        let _ = write(&instance, &job);
    });
    Ok(())
}

/// In the job itself: the blurb was read, and nobody else needs it.
pub fn forget_blurb(context: Context) {
    let _ = fs::remove_file(blurb_path(context.instance));
}

/// In the job itself: what it came to.
pub fn end(context: Context, error: Option<&Error>) {
    let instance = context.instance;
    let Some(error) = error else { return forget(instance) };
    let Some(mut job) = read(instance) else { return };
    job.error = Some(Failure::of(error));
    let _ = write(instance, &job);
}

/// What failed earlier is over, as something newer was done. A job that runs stays.
pub fn forget(instance: &Instance) {
    let own = std::process::id() as i32;
    if read(instance).is_some_and(|job| job.pid == own || job.state() != State::Running) {
        let _ = fs::remove_file(path(instance));
    }
}

/// Waits until no job runs; its failure is the error.
pub fn wait(context: Context, limit: Duration) -> Result<()> {
    let mut shown: Option<(String, u64)> = None;
    let over = process::wait_for(limit, || {
        let Some(job) = read(context.instance) else { return Ok(Some(())) };
        match (job.state(), &job.error) {
            (State::Running, _) => {
                show(context, &job, &mut shown);
                Ok(None)
            }
            (_, Some(failure)) => Err(Error::Relayed {
                host: context.instance.name.clone(),
                message: format!("the {} of {} failed: {}", job.verb, job.source, failure.message),
                hint: failure.hint.clone(),
                exit: failure.exit,
            }),
            // It ended between two looks: look again.
            _ if read(context.instance).is_none() => Ok(Some(())),
            _ => Err(Error::JobGone { verb: job.verb, source_name: job.source }),
        }
    });
    context.progress.end();
    over?.ok_or(Error::JobTooSlow { limit })
}

fn show(context: Context, job: &Job, shown: &mut Option<(String, u64)>) {
    let progress = context.progress;
    match shown {
        Some((step, done)) if *step == job.step => {
            progress.add(job.done.saturating_sub(*done));
            *done = job.done.max(*done);
        }
        _ => {
            progress.end();
            if job.total > 0 {
                progress.begin_bytes(&job.step, job.total);
            } else {
                progress.step(&job.step);
            }
            *shown = Some((job.step.clone(), 0));
        }
    }
}
