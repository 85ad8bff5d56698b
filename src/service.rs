//! Owns the server's life: how it is started and stopped, under whatever runs it here.

use crate::durable;
use crate::error::{Error, Result};
use crate::fault::boundary;
use crate::instance::Instance;
use crate::layout::{self, Debian, Service};
use crate::process;
use std::collections::HashSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Stops the server cleanly (a fast shutdown: clients are disconnected, WAL goes out to standbys) and
/// returns when its processes are gone, also those of one whose postmaster was killed.
pub fn stop(instance: &Instance) -> Result<()> {
    let limit = instance.stop_timeout;
    let Some(running) = instance.running() else {
        // supervisor may be between two attempts to start it.
        if let Service::Supervisor { .. } = instance.service {
            supervisorctl(instance, "stop", limit).map_err(|e| failed("stop", instance, e))?;
        }
        return wait_for_left_processes(instance, limit);
    };
    boundary("server.stopping");
    let outcome = match &instance.service {
        Service::Supervisor { .. } => supervisorctl(instance, "stop", limit).and_then(|()| {
            // It has waited for its own. Of a supervisord that was killed: its successor knows of no server.
            if process::is_alive(running.pid) { pg_ctl_stop(instance, limit) } else { Ok(()) }
        }),
        Service::Systemd { unit } => plain(Command::new("systemctl").args(["stop", unit]), limit),
        Service::PgCtlCluster { version, cluster } => {
            plain(Command::new("pg_ctlcluster").args([version, cluster, "stop", "-m", "fast"]), limit)
        }
        Service::PgCtl => pg_ctl_stop(instance, limit),
        Service::Commands { stop, .. } => plain(Command::new("sh").args(["-c", stop]), limit),
    };
    outcome.map_err(|e| failed("stop", instance, e))?;
    let gone = process::wait_for(limit, || Ok((!process::is_alive(running.pid)).then_some(())))?;
    boundary("server.stopped");
    match gone {
        Some(()) => wait_for_left_processes(instance, limit),
        None => Err(Error::ServerDoesNotStop { data: instance.data_directory()?, limit }),
    }
}

/// A backend sees that its postmaster was killed when it next waits for something, and may write until then: nobody may
/// change the data directory, or start another server on it, before the last of them is gone.
fn wait_for_left_processes(instance: &Instance, limit: Duration) -> Result<()> {
    let Ok(data) = instance.data_directory() else { return Ok(()) };
    let mut pids = Vec::new();
    let gone = process::wait_for(limit, || {
        pids = layout::processes_of(&data);
        Ok(pids.is_empty().then_some(()))
    })?;
    gone.ok_or(Error::ServerProcessesLeft { data, pids, limit })
}

/// Starts the server and returns when its manager says it started; whether it accepts connections is for
/// the caller to see.
pub fn start(instance: &Instance) -> Result<()> {
    let limit = instance.start_timeout;
    boundary("server.starting");
    let outcome = match &instance.service {
        Service::Supervisor { .. } => supervisorctl(instance, "start", limit),
        Service::Systemd { unit } => plain(Command::new("systemctl").args(["start", unit]), limit),
        Service::PgCtlCluster { version, cluster } => {
            plain(Command::new("pg_ctlcluster").args([version, cluster, "start"]), limit)
        }
        Service::PgCtl => {
            let mut command = Command::new(instance.program("pg_ctl")?);
            // -W: `pg_ctl -w` would wait for a standby's consistent state without saying so; we wait.
            command.arg("-D").arg(instance.data_directory()?);
            command.arg("-l").arg(pg_ctl_log(instance)).args(["-W", "start"]);
            plain(&mut command, limit)
        }
        Service::Commands { start, .. } => plain(Command::new("sh").args(["-c", start]), limit),
    };
    boundary("server.started");
    outcome.map_err(|e| failed("start", instance, e))
}

fn plain(command: &mut Command, limit: Duration) -> Result<()> {
    process::run(command, limit).map(drop)
}

fn failed(action: &'static str, instance: &Instance, error: Error) -> Error {
    Error::ServerCommand {
        action,
        manager: instance.service.to_string(),
        why: error.to_string(),
        log: if action == "start" { log_tail(instance) } else { None },
    }
}

fn pg_ctl_stop(instance: &Instance, limit: Duration) -> Result<()> {
    let mut command = Command::new(instance.program("pg_ctl")?);
    let seconds = limit.as_secs().to_string();
    command.arg("-D").arg(instance.data_directory()?);
    command.args(["-m", "fast", "-w", "-t", &seconds, "stop"]);
    plain(&mut command, limit + Duration::from_secs(5))
}

fn supervisorctl(instance: &Instance, action: &str, limit: Duration) -> Result<()> {
    let Service::Supervisor { config, program } = &instance.service else { return Ok(()) };
    let mut command = Command::new("supervisorctl");
    let finished = process::run_any(command.arg("-c").arg(config).args([action, program]), limit)?;
    // Its exit status does not tell "already started" from a failure in every version.
    let said = format!("{}{}", finished.stdout, finished.stderr);
    let done = ["already started", "not running", ": started", ": stopped"];
    if done.iter().any(|d| said.contains(d)) {
        return Ok(());
    }
    let mut said = said.trim().to_owned();
    if ["no such file", "refused connection"].iter().any(|gone| said.contains(gone)) {
        said += &format!(": supervisord does not run; start it by supervisord -c {}", config.display());
    }
    Err(Error::Child { program: "supervisorctl".into(), status: finished.status.to_string(), said })
}

/// What this machine knows about a server that does not start or stream: the last lines of its log, where that can be
/// found, and the disk that it needs and that is full (a server whose log is on that disk cannot even say so).
pub fn log_tail(instance: &Instance) -> Option<String> {
    let log = log_file(instance).and_then(|file| {
        let text = String::from_utf8_lossy(&read_end(&file, 1 << 20)?).into_owned();
        Some(format!("the end of {}:\n{}", file.display(), last_messages(&text, 12).join("\n")))
    });
    let said: Vec<_> = full_disk(instance).into_iter().chain(log).collect();
    (!said.is_empty()).then(|| said.join("\n"))
}

/// The last lines of a log, of those that say the same only the last one: a server that is not ready says so to everybody
/// who asks, us too, and for minutes nothing else would stand there. What `log_line_prefix` puts before a message ends
/// with the severity, whatever the language.
pub fn last_messages(log: &str, count: usize) -> Vec<&str> {
    let mut said = HashSet::new();
    let message = |line: &'_ str| line.split_once(":  ").map_or(line, |(_, message)| message).to_owned();
    let mut lines: Vec<_> = log.lines().rev().filter(|line| said.insert(message(line))).take(count).collect();
    lines.reverse();
    lines
}

/// The first of PGDATA and its WAL directory that has no room for the next segment of WAL (of the usual size): without it
/// a standby takes no more from its primary, and says so once at most.
fn full_disk(instance: &Instance) -> Option<String> {
    let data = instance.data_directory().ok()?;
    [data.join("pg_wal"), data].iter().find_map(|directory| {
        let left = durable::available_space(directory).ok()?;
        (left < SEGMENT).then(|| {
            format!(
                "No space left on device: {} has {} kB, and WAL needs more",
                directory.display(),
                left / 1000
            )
        })
    })
}

const SEGMENT: u64 = 16 << 20;

/// Where the manager puts the server's stderr, if there is such a file.
pub fn log_file(instance: &Instance) -> Option<PathBuf> {
    let existing = |path: PathBuf| path.exists().then_some(path);
    match &instance.service {
        Service::Supervisor { config, program } => {
            let text = fs::read_to_string(config).ok()?;
            let section = text.split(&format!("[program:{program}]")).nth(1)?;
            let section = section.split("\n[").next()?;
            let of = |key: &str| {
                let mut pairs = section.lines().rev().filter_map(|line| line.split_once('='));
                let (_, value) = pairs.find(|(name, _)| name.trim() == key)?;
                // A comment begins with " ;".
                Some(value.split(" ;").next().unwrap_or(value).trim().to_owned())
            };
            let joined = of("redirect_stderr").is_some_and(|value| value.eq_ignore_ascii_case("true"));
            let own = if joined { None } else { of("stderr_logfile") };
            let file = own.or_else(|| of("stdout_logfile"))?;
            let here = config.parent()?;
            let file = file.replace("%(here)s", &here.display().to_string());
            let file = file.replace("%(program_name)s", program).replace("%%", "%");
            existing(here.join(file))
        }
        Service::Systemd { .. } | Service::PgCtlCluster { .. } => {
            let debian = Debian::of_data_directory(&instance.data_directory().ok()?)?;
            let name = format!("postgresql-{}-{}.log", debian.version, debian.cluster);
            existing(Path::new("/var/log/postgresql").join(name))
        }
        Service::PgCtl => existing(pg_ctl_log(instance)),
        Service::Commands { .. } => None,
    }
}

/// In the agent's directory: a log inside PGDATA would be copied and moved with it.
fn pg_ctl_log(instance: &Instance) -> PathBuf {
    instance.state_directory.join("postgres.log")
}

fn read_end(path: &Path, bytes: u64) -> Option<Vec<u8>> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes))).ok()?;
    let mut buffer = Vec::new();
    file.take(bytes).read_to_end(&mut buffer).ok()?;
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_repeats_itself_does_not_hide_what_it_said_before() {
        let mut log = String::from(
            "2026-01-01 10:00:00.001 UTC [7] FATAL:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device\n",
        );
        for second in 10..40 {
            log += &format!(
                "2026-01-01 10:00:{second}.411 UTC [{second}] FATAL:  the database system is starting up\n"
            );
            log += &format!(
                "2026-01-01 10:00:{second}.411 UTC [{second}] DETAIL:  Consistent recovery state.\n"
            );
        }
        let last = last_messages(&log, 12);
        assert_eq!(last.len(), 3, "{last:?}");
        assert!(last[0].contains("No space left"), "{last:?}");
        assert!(last[1].contains("10:00:39.411 UTC [39] FATAL") && last[2].contains("DETAIL"), "{last:?}");
        assert_eq!(last_messages(&log, 1), &last[2..]);
    }
}
