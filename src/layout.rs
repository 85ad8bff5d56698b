//! Owns what can be found on a machine without being told: the server that runs, Debian's clusters,
//! dotCloud's environment, and what kind of manager runs the server.

use crate::postgres::recovery::last_setting;
use crate::process;
use crate::settings::{Found, Origin};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What runs the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// A program of supervisord (the recipe).
    Supervisor {
        /// supervisord's configuration file, which says where its socket is.
        config: PathBuf,
        /// The program's name in it.
        program: String,
    },
    /// A unit of systemd.
    Systemd {
        /// e.g. `postgresql@15-main`.
        unit: String,
    },
    /// Debian's wrapper, where systemd does not run.
    PgCtlCluster {
        /// Major version.
        version: String,
        /// Cluster name.
        cluster: String,
    },
    /// PostgreSQL's own.
    PgCtl,
    /// The operator's shell commands.
    Commands {
        /// Starts the server and returns.
        start: String,
        /// Stops it cleanly and returns.
        stop: String,
    },
}

/// A cluster of Debian's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debian {
    /// Major version.
    pub version: String,
    /// Cluster name.
    pub cluster: String,
    /// `/etc/postgresql/<version>/<cluster>`.
    pub config_directory: PathBuf,
    /// PGDATA.
    pub data_directory: PathBuf,
    /// Its port, when it says one.
    pub port: Option<u16>,
}

impl Debian {
    /// Every cluster that `/etc/postgresql` names and this account may read.
    pub fn all() -> Vec<Debian> {
        let mut found = Vec::new();
        let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
        for version in list(Path::new("/etc/postgresql")) {
            for config_directory in list(&version) {
                let Ok(text) = fs::read_to_string(config_directory.join("postgresql.conf")) else { continue };
                let Some(data) = last_setting(&text, "data_directory") else { continue };
                let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
                let (Some(version), Some(cluster)) = (name(&version), name(&config_directory)) else {
                    continue;
                };
                found.push(Debian {
                    version,
                    cluster,
                    data_directory: data.into(),
                    port: last_setting(&text, "port").and_then(|p| p.parse().ok()),
                    config_directory,
                });
            }
        }
        found
    }

    /// The cluster whose PGDATA this is.
    pub fn of_data_directory(data: &Path) -> Option<Debian> {
        let wanted = data.canonicalize().unwrap_or_else(|_| data.into());
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into());
        Debian::all().into_iter().find(|d| real(&d.data_directory) == wanted)
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Service::Supervisor { program, .. } => write!(f, "supervisor program {program}"),
            Service::Systemd { unit } => write!(f, "systemd unit {unit}"),
            Service::PgCtlCluster { version, cluster } => write!(f, "pg_ctlcluster {version} {cluster}"),
            Service::PgCtl => f.write_str("pg_ctl"),
            Service::Commands { .. } => f.write_str("the operator's own commands"),
        }
    }
}

/// What `postmaster.pid` says of a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The postmaster's process id.
    pub pid: i32,
    /// Its port.
    pub port: u16,
    /// Its first Unix socket directory, if any.
    pub socket_directory: Option<PathBuf>,
    /// Its first listen address, if any.
    pub listen_address: Option<String>,
}

/// The instance's dotCloud environment: `environment.json`, or its YAML forms.
pub fn read_environment(home: &Path) -> BTreeMap<String, String> {
    for name in ["environment.json", "environment.yaml", "environment.yml"] {
        let Ok(text) = fs::read_to_string(home.join(name)) else { continue };
        // JSON is YAML; what cannot be read here is named by `enslave N`, which needs it.
        let Ok(all) = serde_yaml::from_str::<BTreeMap<String, serde_yaml::Value>>(&text) else { continue };
        let text = |value: serde_yaml::Value| match value {
            serde_yaml::Value::String(s) => Some(s),
            serde_yaml::Value::Number(n) => Some(n.to_string()),
            _ => None,
        };
        return all.into_iter().filter_map(|(k, v)| Some((k, text(v)?))).collect();
    }
    BTreeMap::new()
}

/// The version that `dotcloud.yml` wants of this instance's service, and the file that says so.
///
/// # Errors
/// What was looked at in vain, for [`crate::error::Error::NoVersionNamed`].
pub fn version_of_dotcloud_yml(home: &Path) -> std::result::Result<(String, PathBuf), String> {
    type Services = BTreeMap<String, serde_yaml::Value>;
    let files = [home.join("code/dotcloud.yml"), home.join("dotcloud.yml")];
    let Some(file) = files.iter().find(|file| file.is_file()) else {
        let at = |file: &PathBuf| file.display().to_string();
        return Err(format!(
            "neither an argument nor $SERVICE_VERSION, and there is no {} and no {}",
            at(&files[0]),
            at(&files[1])
        ));
    };
    let at = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("{at} cannot be read: {error}"))?;
    let services: Services =
        serde_yaml::from_str(&text).map_err(|error| format!("{at} cannot be understood: {error}"))?;
    let unquoted = std::cell::Cell::new(false);
    let of = |service: &serde_yaml::Value| match service.get("version")? {
        serde_yaml::Value::String(text) => Some(text.clone()),
        serde_yaml::Value::Number(number) => {
            // As a number 15.10 is 15.1, another release.
            unquoted.set(unquoted.get() || (number.is_f64() && number.as_f64() >= Some(10.0)));
            Some(number.to_string())
        }
        _ => None,
    };
    let name = std::env::var("DOTCLOUD_SERVICE_NAME")
        .ok()
        .or_else(|| read_environment(home).remove("DOTCLOUD_SERVICE_NAME"));
    let version = match &name {
        Some(name) => services.get(name).and_then(of),
        None => {
            let mut versions = services.values().filter_map(of);
            let first = versions.next();
            if versions.next().is_some() {
                return Err(format!("{at} names one for several services"));
            }
            first
        }
    };
    if unquoted.get() {
        return Err(format!(
            "{at} has a version without quotes, where YAML reads 15.10 as 15.1; write \"15.10\""
        ));
    }
    let of_service = name.map(|name| format!(" of service {name}")).unwrap_or_default();
    version.map(|version| (version, file.clone())).ok_or(format!("{at} says no version{of_service}"))
}

/// The server that runs on this data directory, if one does.
pub fn read_running(data_directory: &Path) -> Option<Running> {
    let text = fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let running = parse_postmaster_pid(&text)?;
    // After a crash of the machine the file may name somebody else's process.
    let cwd = fs::read_link(format!("/proc/{}/cwd", running.pid));
    let its_own = match (cwd, data_directory.canonicalize()) {
        (Ok(cwd), Ok(data)) => cwd == data,
        // It has ended, also when nobody has waited for it yet.
        (Err(e), _) if e.kind() == ErrorKind::NotFound => false,
        _ => process::is_alive(running.pid),
    };
    its_own.then_some(running)
}

/// Every process of a server that works in this data directory, whether or not its postmaster is among them; a dead
/// postmaster that nobody has waited for yet counts, for it keeps the next one from starting.
pub fn processes_of(data_directory: &Path) -> Vec<i32> {
    let Ok(data) = data_directory.canonicalize() else { return Vec::new() };
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let postmaster = parse_postmaster_pid(&text).map(|running| running.pid);
    let of_process = |process: fs::DirEntry| -> Option<i32> {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let is_postgres = fs::read_to_string(process.path().join("comm")).ok()?.trim() == "postgres";
        let is_there = match fs::read_link(process.path().join("cwd")) {
            Ok(cwd) => cwd == data,
            Err(e) => e.kind() == ErrorKind::NotFound && postmaster == Some(pid),
        };
        (is_postgres && is_there).then_some(pid)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of_process).collect()
}

/// Lines: pid, data directory, start time, port, socket directory, listen address, shared memory key,
/// status (from 10 on) – src/include/utils/pidfile.h.
fn parse_postmaster_pid(text: &str) -> Option<Running> {
    let lines: Vec<_> = text.lines().collect();
    let non_empty = |i: usize| lines.get(i).map(|s| s.trim()).filter(|s| !s.is_empty());
    Some(Running {
        // A negative number is a single-user server's.
        pid: non_empty(0)?.trim_start_matches('-').parse().ok()?,
        port: non_empty(3).and_then(|s| s.parse().ok()).unwrap_or(5432),
        socket_directory: non_empty(4).map(PathBuf::from),
        listen_address: non_empty(5).map(str::to_owned),
    })
}

/// Data directories on this machine that belong to this account: of running servers, then of Debian's
/// clusters.
pub fn detect_data_directories() -> Vec<(PathBuf, String)> {
    let me = nix::unistd::geteuid().as_raw();
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    let mut add = |path: PathBuf, how: &str| {
        if !found.iter().any(|(known, _)| *known == path) {
            found.push((path, how.to_owned()));
        }
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let mine = entry.metadata().is_ok_and(|m| m.uid() == me);
        let is_postgres = fs::read_to_string(process.join("comm")).is_ok_and(|c| c.trim() == "postgres");
        if mine
            && is_postgres
            && let Ok(cwd) = fs::read_link(process.join("cwd"))
            && cwd.join("postmaster.pid").exists()
        {
            add(cwd, "a running server");
        }
    }
    for debian in Debian::all() {
        if fs::metadata(&debian.data_directory).is_ok_and(|m| m.uid() == me) {
            add(debian.data_directory, "Debian's cluster layout");
        }
    }
    found
}

/// Where PostgreSQL's programs are: those of the running server, of the data directory's version, in PATH.
pub fn detect_bin_directory(data: Option<&Path>, running: Option<&Running>) -> Option<Found> {
    if let Some(running) = running
        && let Ok(program) = fs::read_link(format!("/proc/{}/exe", running.pid))
    {
        return program.parent().and_then(|p| detected(p.display(), "the running server"));
    }
    if let Some(major) = data.and_then(|d| fs::read_to_string(d.join("PG_VERSION")).ok()) {
        let directory = PathBuf::from(format!("/usr/lib/postgresql/{}/bin", major.trim()));
        if directory.join("postgres").exists() {
            return detected(directory.display(), "PG_VERSION");
        }
    }
    if let Ok(program) = which::which("postgres") {
        let program = program.canonicalize().unwrap_or(program);
        return program.parent().and_then(|p| detected(p.display(), "PATH"));
    }
    // Debian keeps one directory per major version; with only one installed there is no question.
    let installed: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    match installed.as_slice() {
        [one] => detected(one.display(), "the only one installed"),
        _ => None,
    }
}

/// The port that the configuration in a data directory names.
pub fn configured_port(data: &Path) -> Option<u16> {
    let read = |name: &str| {
        let text = fs::read_to_string(data.join(name)).ok()?;
        last_setting(&text, "port")?.parse().ok()
    };
    read("postgresql.auto.conf").or_else(|| read("postgresql.conf"))
}

fn detected(value: impl ToString, how: &str) -> Option<Found> {
    Some(Found { value: value.to_string(), origin: Origin::Detected(how.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotcloud_yml_names_the_version() {
        let home = tempfile::tempdir().unwrap();
        let version = || version_of_dotcloud_yml(home.path()).map(|(version, _)| version);
        assert!(version().unwrap_err().contains("there is no"));
        fs::create_dir(home.path().join("code")).unwrap();
        let say = |text: &str| fs::write(home.path().join("code/dotcloud.yml"), text).unwrap();
        say("db: {type: custom, version: 15}\n");
        assert_eq!(version().unwrap(), "15");
        say("www: {type: custom}\ndb: {version: \"15.18\"}\n");
        assert_eq!(version().unwrap(), "15.18");
        say("a: {version: 9.6}\nb: {version: 15}\n");
        assert!(version().unwrap_err().contains("several services"));
        fs::write(home.path().join("environment.json"), r#"{"DOTCLOUD_SERVICE_NAME":"a"}"#).unwrap();
        assert_eq!(version().unwrap(), "9.6");
        say("a: {version: 15.10}\n");
        assert!(version().unwrap_err().contains("without quotes"));
        say("b: {version: 15}\n");
        assert!(version().unwrap_err().contains("no version of service a"));
        say("{");
        assert!(version().unwrap_err().contains("cannot be understood"));
    }

    #[test]
    fn postmaster_pid_is_read() {
        let text = "4711\n/var/lib/x\n1700000000\n5433\n/tmp/s\n*\n  12 34\nready   \n";
        let running = parse_postmaster_pid(text).unwrap();
        assert_eq!(running.pid, 4711);
        assert_eq!(running.port, 5433);
        assert_eq!(running.socket_directory, Some("/tmp/s".into()));
        assert_eq!(running.listen_address, Some("*".into()));
        assert_eq!(parse_postmaster_pid("").map(|r| r.pid), None);
        assert_eq!(parse_postmaster_pid("12\n/x\n1\n5432\n\n127.0.0.1\n").unwrap().socket_directory, None);
    }
}
