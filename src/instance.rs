//! Owns this machine's instance: where its parts are and why (flag, environment, file, dotCloud's
//! layout, detection), and what state its files are in.

use crate::blurb::Secret;
use crate::durable::{self, Context, Lock};
use crate::error::{Error, Result};
use crate::layout::{self, Debian, Running, Service};
use crate::postgres::control::ControlFile;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Lsn, Timeline, history_file_name, parse_segment_name};
use crate::process;
use crate::settings::{Found, Origin, Settings, SshClient};
use crate::source_build::mirror::without_password;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// One line of `pgmahout config`.
#[derive(Clone, Debug, Serialize)]
pub struct Resolved {
    /// The setting's name, as in [`crate::settings::SETTINGS`].
    pub name: &'static str,
    /// Its value in force; none when there is nothing to say or find.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
}

/// The instance that this agent keeps.
#[derive(Clone)]
pub struct Instance {
    /// Home directory of the account, or of the dotCloud instance.
    pub home: PathBuf,
    /// The name `--confirm` asks for, e.g. `db.1`.
    pub name: String,
    /// The app it belongs to, where there is one.
    pub app: Option<String>,
    /// What runs the server.
    pub service: Service,
    /// Superuser.
    pub user: String,
    /// File with the superuser's password; may not exist.
    pub password_file: PathBuf,
    /// Private keys to try.
    pub identities: Vec<PathBuf>,
    /// File of known host keys.
    pub known_hosts: PathBuf,
    /// Which SSH client connects.
    pub ssh_client: SshClient,
    /// Parallel SSH sessions of a copy.
    pub ssh_sessions: usize,
    /// The agent's own directory.
    pub state_directory: PathBuf,
    /// OLD=NEW pairs for tablespaces.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Limit for one connection, SSH or SQL.
    pub connect_timeout: Duration,
    /// Limit for a clean stop of the server.
    pub stop_timeout: Duration,
    /// Limit from start to the first accepted connection.
    pub start_timeout: Duration,
    /// Limit from start to streaming.
    pub stream_timeout: Duration,
    /// Milliseconds from which a statement is slow.
    pub slow_query_ms: u64,
    /// Where postgresql.conf is when it is not in PGDATA (Debian).
    pub config_directory: Option<PathBuf>,
    /// How PostgreSQL is built here.
    pub build: BuildSettings,
    /// Where backups lie, how they are made and kept.
    pub backup: BackupSettings,
    data_directory: Option<PathBuf>,
    bin_directory: Option<PathBuf>,
    host: Option<String>,
    port: u16,
    socket_directory: Option<PathBuf>,
    environment_password: Option<Secret>,
    resolved: Vec<Resolved>,
}

/// How PostgreSQL is built on an instance.
#[derive(Clone, Debug)]
pub struct BuildSettings {
    /// URLs of directories with sources.
    pub mirrors: Vec<String>,
    /// What `configure` is told beside the defaults.
    pub options: Vec<String>,
    /// Compilers at the same time.
    pub jobs: usize,
    /// Limit of one phase.
    pub timeout: Duration,
    /// Where sources are unpacked and compiled.
    pub directory: PathBuf,
}

/// Where an instance's backups lie, how they are made and kept.
#[derive(Clone, Debug)]
pub struct BackupSettings {
    /// A directory, or `s3://bucket/prefix`.
    pub store: String,
    /// URL of an S3-compatible service.
    pub store_endpoint: Option<String>,
    /// Region of the bucket.
    pub store_region: Option<String>,
    /// File with an age identity.
    pub key_file: Option<PathBuf>,
    /// A passphrase in place of a key file; only from the environment.
    pub passphrase: Option<Secret>,
    /// `auto`, `none`, or METHOD[:LEVEL].
    pub compression: String,
    /// Processors to use, from 1 on.
    pub jobs: usize,
    /// Minutes after midnight, UTC.
    pub time: u32,
    /// Days of which a scheduled backup is kept.
    pub keep_daily: u32,
    /// Weeks of which a scheduled backup is kept.
    pub keep_weekly: u32,
    /// Backups by hand that are kept.
    pub keep_manual: u32,
    /// Days between verifications; 0 is never.
    pub verify_days: u32,
    /// The last good backup may be as old as this.
    pub max_age: Duration,
    /// How long a link is good.
    pub link_expires: Duration,
    /// Where `serve` listens.
    pub serve_listen: String,
    /// Under which URL others reach it.
    pub serve_url: Option<String>,
}

impl BackupSettings {
    /// The store as a directory below `home`, when it is one.
    pub fn store_path(&self, home: &Path) -> PathBuf {
        expand(home, &self.store)
    }
}

struct Resolver<'a> {
    settings: &'a Settings,
    resolved: Vec<Resolved>,
}

impl Resolver<'_> {
    fn find(&mut self, name: &'static str, fallback: impl FnOnce() -> Option<Found>) -> Option<String> {
        let found = self.settings.said(name).or_else(fallback);
        let (value, origin) = match found {
            Some(Found { value, origin }) => (Some(value), origin),
            None => (None, Origin::Default),
        };
        self.resolved.push(Resolved { name, value: value.clone(), origin });
        value
    }

    fn path(&mut self, name: &'static str, fallback: impl FnOnce() -> Option<Found>) -> Option<PathBuf> {
        let home = self.settings.home.clone();
        self.find(name, fallback).map(|value| expand(&home, &value))
    }

    fn number(&mut self, name: &'static str, fallback: impl FnOnce() -> Option<Found>) -> Result<u64> {
        let value = self.find(name, fallback).unwrap_or_default();
        value.parse().map_err(|_| Error::SettingValue { name, value, wanted: "a number" })
    }
}

fn expand(home: &Path, value: &str) -> PathBuf {
    match value.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => home.join(value),
    }
}

fn default(value: impl ToString) -> Option<Found> {
    Some(Found { value: value.to_string(), origin: Origin::Default })
}

fn detected(value: impl ToString, how: &str) -> Option<Found> {
    Some(Found { value: value.to_string(), origin: Origin::Detected(how.into()) })
}

fn dotcloud(value: impl ToString, what: &str) -> Option<Found> {
    Some(Found { value: value.to_string(), origin: Origin::Dotcloud(what.into()) })
}

/// True when the files say that the server will start as a standby.
pub fn has_standby_file(data: &Path) -> bool {
    ["standby.signal", "recovery.conf"].iter().any(|name| data.join(name).exists())
}

impl Instance {
    /// Finds the instance. It fails only on settings that cannot be understood; what could not be found
    /// is an error of the method that needs it.
    pub fn discover(settings: &Settings) -> Result<Instance> {
        let home = settings.home.clone();
        let environment = layout::read_environment(&home);
        let dotcloud_variable = |name: &str| environment.get(name).cloned();
        let mut r = Resolver { settings, resolved: Vec::new() };

        let app =
            r.find("app", || dotcloud_variable("DOTCLOUD_PROJECT").and_then(|v| dotcloud(v, "environment")));

        // PGDATA first: most of the rest hangs on it.
        let home_data = home.join("data");
        let candidates = if settings.said("data_directory").is_none() && !home_data.is_dir() {
            layout::detect_data_directories()
        } else {
            Vec::new()
        };
        let data_directory = r.path("data_directory", || {
            let pgdata = settings.variable("PGDATA");
            if let Some(value) = pgdata {
                return Some(Found { value: value.into(), origin: Origin::Environment("PGDATA".into()) });
            }
            if home_data.is_dir() || dotcloud_variable("DOTCLOUD_SERVICE_NAME").is_some() {
                return dotcloud(home_data.display(), "~/data");
            }
            match candidates.as_slice() {
                [(path, how)] => detected(path.display(), how),
                _ => None,
            }
        });
        let running = data_directory.as_deref().and_then(layout::read_running);
        let debian = data_directory.as_deref().and_then(Debian::of_data_directory);

        let config_directory = r.path("config_directory", || {
            debian.as_ref().and_then(|d| detected(d.config_directory.display(), "Debian's cluster layout"))
        });
        let name = r.find("instance", || {
            let service = dotcloud_variable("DOTCLOUD_SERVICE_NAME");
            if let (Some(service), Some(id)) = (service, dotcloud_variable("DOTCLOUD_SERVICE_ID")) {
                return dotcloud(format!("{service}.{id}"), "environment");
            }
            let host = nix::unistd::gethostname().ok()?.to_string_lossy().into_owned();
            match &debian {
                Some(d) => detected(format!("{host}.{}-{}", d.version, d.cluster), "host and cluster"),
                None => detected(host, "host name"),
            }
        });
        let bin_directory = r.path("bin_directory", || {
            if home.join("postgresql/bin/postgres").exists() {
                return dotcloud(home.join("postgresql/bin").display(), "~/postgresql");
            }
            layout::detect_bin_directory(data_directory.as_deref(), running.as_ref())
        });
        let host = r.find("host", || None);
        let port = r.number("port", || {
            if let Some(running) = &running {
                return detected(running.port, "postmaster.pid");
            }
            if let Some(port) = settings.variable("PORT_PGSQL") {
                return dotcloud(port, "$PORT_PGSQL");
            }
            if let Some(port) = debian.as_ref().and_then(|d| d.port) {
                return detected(port, "Debian's cluster layout");
            }
            let in_data = data_directory.as_deref().and_then(layout::configured_port);
            in_data.and_then(|port| detected(port, "postgresql.conf")).or_else(|| default(5432))
        })?;
        let port = u16::try_from(port).ok().filter(|p| *p > 0).ok_or(Error::SettingValue {
            name: "port",
            value: port.to_string(),
            wanted: "a port number",
        })?;
        let socket_directory = r.path("socket_directory", || {
            let running = running.as_ref().and_then(|r| r.socket_directory.clone());
            running.and_then(|path| detected(path.display(), "postmaster.pid"))
        });
        let is_dotcloud = dotcloud_variable("DOTCLOUD_SERVICE_NAME").is_some();
        let user = r
            .find("user", || {
                if let Some(user) = settings.variable("PGUSER") {
                    return Some(Found { value: user.into(), origin: Origin::Environment("PGUSER".into()) });
                }
                if is_dotcloud {
                    return dotcloud("dotcloud", "superuser");
                }
                default("postgres")
            })
            .unwrap_or_default();
        let password_file =
            r.path("password_file", || dotcloud("~/password", "~/password")).unwrap_or_default();

        let service = find_service(&mut r, &home, debian.as_ref())?;

        let ssh_client = r.find("ssh", || default("auto")).unwrap_or_default();
        let ssh_client = SshClient::parse(&ssh_client).ok_or_else(|| Error::SettingValue {
            name: "ssh",
            value: ssh_client.clone(),
            wanted: "auto, builtin or system",
        })?;
        let identities = r.path("ssh_identity", || {
            let known = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|n| home.join(".ssh").join(n));
            known.iter().find(|p| p.exists()).and_then(|p| detected(p.display(), "~/.ssh"))
        });
        let known_hosts =
            r.path("ssh_known_hosts", || default("~/.ssh/known_hosts")).expect("it has a default");
        let ssh_sessions = r.number("ssh_sessions", || {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            detected(cores.min(4), "processors, four at most")
        })?;
        let mapping = r.find("tablespace_mapping", || None);
        let state_directory = r.path("state_directory", || default("~/.pgmahout")).expect("has a default");
        let seconds =
            |r: &mut Resolver, name, value: u64| r.number(name, || default(value)).map(Duration::from_secs);
        let connect_timeout = seconds(&mut r, "connect_timeout", 10)?;
        let stop_timeout = seconds(&mut r, "stop_timeout", 300)?;
        let start_timeout = seconds(&mut r, "start_timeout", 300)?;
        let stream_timeout = seconds(&mut r, "stream_timeout", 120)?;

        let slow_query_ms = r.number("slow_query_ms", || default(50))?;
        let build = find_build_settings(&mut r, &state_directory)?;
        let backup = find_backup_settings(&mut r)?;

        let order: BTreeMap<&str, usize> =
            crate::settings::SETTINGS.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
        r.resolved.sort_by_key(|resolved| order[resolved.name]);
        Ok(Instance {
            name: name.unwrap_or_else(|| "localhost".into()),
            app,
            service,
            user,
            password_file,
            identities: identities.into_iter().collect(),
            known_hosts,
            ssh_client,
            ssh_sessions: (ssh_sessions as usize).clamp(1, 16),
            state_directory,
            tablespace_mapping: parse_mapping(mapping.as_deref().unwrap_or(""))?,
            connect_timeout,
            stop_timeout,
            start_timeout,
            stream_timeout,
            slow_query_ms,
            config_directory,
            build,
            backup,
            data_directory,
            bin_directory,
            host,
            port,
            socket_directory,
            environment_password: settings.variable("PGPASSWORD").map(|p| Secret::new(p.to_owned())),
            resolved: r.resolved,
            home,
        })
    }

    /// Every setting with its value and origin, for `pgmahout config`. None of them is a secret.
    pub fn resolved(&self) -> &[Resolved] {
        &self.resolved
    }

    /// PGDATA with symbolic links resolved, so that it is the directory itself that gets exchanged.
    pub fn data_directory(&self) -> Result<PathBuf> {
        let path = self.data_directory.clone().ok_or_else(|| {
            let candidates: Vec<_> = layout::detect_data_directories()
                .into_iter()
                .map(|(path, _)| path.display().to_string())
                .collect();
            Error::NoDataDirectory { candidates: candidates.join(", ") }
        })?;
        Ok(path.canonicalize().unwrap_or(path))
    }

    /// A program of the server's version.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let directory = self.bin_directory.clone().ok_or(Error::NoBinDirectory)?;
        which::which_in(name, Some(&directory), ".")
            .map_err(|_| Error::NoProgram { program: name.into(), directory })
    }

    /// Where PostgreSQL's programs are, if they were found.
    pub fn bin_directory(&self) -> Option<&Path> {
        self.bin_directory.as_deref()
    }

    /// The same instance with the programs of `~/postgresql`, whatever it used until now.
    pub fn with_linked_programs(&self) -> Instance {
        let bin_directory = Some(self.home.join("postgresql/bin"));
        Instance { bin_directory, ..self.clone() }
    }

    /// The version of the `postgres` program here.
    pub fn program_version(&self) -> Result<PgVersion> {
        let mut command = Command::new(self.program("postgres")?);
        let finished = process::run(command.arg("--version"), Duration::from_secs(30))?;
        PgVersion::parse(finished.stdout.trim())
    }

    /// The server's process and addresses, when it runs.
    pub fn running(&self) -> Option<Running> {
        self.data_directory().ok().as_deref().and_then(layout::read_running)
    }

    /// The port that the server has, or will have.
    pub fn port(&self) -> u16 {
        self.running().map_or(self.port, |running| running.port)
    }

    /// Where the server listens: a Unix socket directory (an absolute path) or a host name.
    pub fn address(&self) -> String {
        if let Some(host) = &self.host {
            return host.clone();
        }
        if let Some(running) = self.running() {
            if let Some(directory) = running.socket_directory {
                return directory.display().to_string();
            }
            return match running.listen_address.as_deref() {
                None | Some("*") | Some("0.0.0.0") => "127.0.0.1".into(),
                Some("::") => "::1".into(),
                Some(address) => address.into(),
            };
        }
        match &self.socket_directory {
            Some(directory) => directory.display().to_string(),
            None => "127.0.0.1".into(),
        }
    }

    /// The superuser's password, when the instance has one.
    pub fn password(&self) -> Result<Option<Secret>> {
        if self.environment_password.is_some() {
            return Ok(self.environment_password.clone());
        }
        read_password(&self.password_file)
    }

    /// Where a rotation keeps the new password until the server has it.
    pub fn next_password_file(&self) -> PathBuf {
        let mut name = self.password_file.clone().into_os_string();
        name.push(".next");
        name.into()
    }

    /// The password of a rotation that is under way, or was interrupted.
    pub fn next_password(&self) -> Result<Option<Secret>> {
        read_password(&self.next_password_file())
    }

    /// The control file of the data directory; `None` when there is no cluster.
    pub fn control(&self) -> Result<Option<ControlFile>> {
        let path = self.data_directory()?.join("global/pg_control");
        match fs::read(&path) {
            Ok(bytes) => ControlFile::parse(&bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).on("read", &path),
        }
    }

    /// The major version of the data directory; `None` when there is no cluster.
    pub fn data_version(&self) -> Result<Option<PgVersion>> {
        let path = self.data_directory()?.join("PG_VERSION");
        match fs::read_to_string(&path) {
            // Made, and not filled any more: a copy was killed there.
            Ok(text) if text.trim_matches('\0').is_empty() => Ok(None),
            Ok(text) => PgVersion::parse(text.trim()).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).on("read", &path),
        }
    }

    /// The newest timeline that the files here hold WAL of. The control file names a timeline only at the
    /// next checkpoint or restart point, which may be minutes after the switch; until then the segments and
    /// the history file of the new timeline are the only witnesses.
    pub fn newest_timeline(&self, control: &ControlFile) -> Result<Timeline> {
        let known = control.timeline.max(control.min_recovery_timeline.unwrap_or(Timeline(0)));
        let data = self.data_directory()?;
        let Some(version) = self.data_version()? else { return Ok(known) };
        let wal = data.join(version.wal_directory());
        let from = control.checkpoint_redo.floor(control.wal_segment_size.into());
        let mut newest = known;
        for entry in fs::read_dir(&wal).on("list", &wal)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((timeline, begin)) = parse_segment_name(&name, control.wal_segment_size) else {
                continue;
            };
            let is_newer = timeline > newest && begin >= from;
            if is_newer && wal.join(history_file_name(timeline)).exists() && begins_at(&entry.path(), begin) {
                newest = timeline;
            }
        }
        Ok(newest)
    }

    /// The lock of whoever changes this instance's cluster or its role: one at a time. Temporary files of killed runs
    /// are swept from PGDATA.
    pub fn lock(&self, doing: &str) -> Result<Lock> {
        let lock = Lock::take(&self.state_directory.join("lock"), doing)?;
        if let Ok(data) = self.data_directory() {
            durable::sweep(&data);
        }
        Ok(lock)
    }

    /// The application name and the slot name of this instance as a standby.
    pub fn slot_name(&self) -> String {
        crate::postgres::recovery::slot_name(self.app.as_deref(), &self.name)
    }

    /// The 0600 file with the password that the standby streams with. It lies outside PGDATA, so that no
    /// copy of the cluster carries it away.
    pub fn passfile(&self) -> PathBuf {
        self.state_directory.join("pgpass")
    }

    /// Says, while it exists, why this server must not be started: its successor was promoted. The recipe's
    /// start script looks at it, so that an old primary does not come back by itself after a reboot.
    pub fn fence_file(&self) -> PathBuf {
        self.state_directory.join("fenced")
    }

    /// What the fence file says, while it is there.
    pub fn fenced(&self) -> Option<String> {
        fs::read_to_string(self.fence_file()).ok().map(|text| text.trim().to_owned())
    }

    /// Refuses to go on as an account that cannot keep this data directory.
    pub fn check_account(&self) -> Result<()> {
        let me = nix::unistd::geteuid();
        let path = self.data_directory()?;
        let existing = crate::durable::existing_ancestor(&path);
        let owner = fs::metadata(&existing).on("look at", &existing)?.uid();
        if me.is_root() || (path.exists() && owner != me.as_raw()) {
            let name = nix::unistd::User::from_uid(owner.into()).ok().flatten();
            let owner = name.map_or_else(|| owner.to_string(), |user| user.name);
            return Err(Error::WrongAccount { path, owner });
        }
        Ok(())
    }
}

fn read_password(path: &Path) -> Result<Option<Secret>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).on("read", path),
    }
}

/// Where PostgreSQL's project publishes its sources.
const MIRROR: &str = "https://ftp.postgresql.org/pub/source";

fn find_build_settings(r: &mut Resolver, state_directory: &Path) -> Result<BuildSettings> {
    let mirrors = r.find("source_mirrors", || default(MIRROR)).unwrap_or_default();
    let mirrors: Vec<String> =
        mirrors.split([',', '\n']).map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
    // `pgmahout config` shows it.
    if let Some(shown) = r.resolved.iter_mut().find(|resolved| resolved.name == "source_mirrors") {
        shown.value = Some(mirrors.iter().map(|url| without_password(url)).collect::<Vec<_>>().join(", "));
    }
    let options = r.find("build_options", || None).unwrap_or_default();
    // As a shell would read it: CFLAGS='-O3 -march=native' is one word.
    let options = shlex::split(&options).ok_or_else(|| Error::SettingValue {
        name: "build_options",
        value: options.clone(),
        wanted: "words as in a shell, with closed quotes",
    })?;
    let jobs = r.number("build_jobs", || {
        detected(std::thread::available_parallelism().map_or(1, |n| n.get()), "processors")
    })?;
    let timeout = r.number("build_timeout", || default(3600)).map(Duration::from_secs)?;
    let own = state_directory.join("build");
    let directory = r.path("build_directory", || {
        if fit_for_make(&own) {
            return default(own.display());
        }
        detected("/var/tmp", "make cannot work below a home of this name")
    });
    Ok(BuildSettings {
        mirrors,
        options,
        jobs: (jobs as usize).clamp(1, 256),
        timeout,
        directory: directory.expect("it has a default"),
    })
}

/// The port that `serve` listens on where nothing else is said; no well-known one.
const SERVE_PORT: u16 = 5480;

fn find_backup_settings(r: &mut Resolver) -> Result<BackupSettings> {
    let store = r.find("store", || default("~/backups")).unwrap_or_default();
    let is_s3 = store.strip_prefix("s3://").is_some_and(|rest| !rest.starts_with('/') && !rest.is_empty());
    if store.contains("://") && !is_s3 {
        let wanted = "a directory or s3://BUCKET/PREFIX";
        return Err(Error::SettingValue { name: "store", value: without_password(&store), wanted });
    }
    let variable = |name: &str| r.settings.variable(name).map(str::to_owned);
    let (endpoint, region) = (
        variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL")),
        variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")),
    );
    let from_environment = |value: Option<String>, name: &str| {
        value.map(|value| Found { value, origin: Origin::Environment(name.into()) })
    };
    let store_endpoint = r.find("store_endpoint", || from_environment(endpoint, "AWS_ENDPOINT_URL"));
    let store_region = r.find("store_region", || from_environment(region, "AWS_REGION"));
    let key_file = r.path("backup_key_file", || None);
    let compression = r.find("backup_compression", || default("auto")).unwrap_or_default();
    let jobs = r.number("backup_jobs", || {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        detected(cores.min(4), "processors, four at most")
    })?;
    let said = r.find("backup_time", || default("03:00")).unwrap_or_default();
    let time = minutes_of_day(&said).ok_or_else(|| Error::SettingValue {
        name: "backup_time",
        value: said.clone(),
        wanted: "a time of day in UTC, such as 03:00",
    })?;
    let small = |r: &mut Resolver, name, value: u64| {
        let number = r.number(name, || default(value))?;
        let wanted = "a number up to 10000";
        let value = number.to_string();
        let fits = u32::try_from(number).ok().filter(|n| *n <= 10_000);
        fits.ok_or(Error::SettingValue { name, value, wanted })
    };
    let keep_daily = small(r, "backup_keep_daily", 7)?;
    let keep_weekly = small(r, "backup_keep_weekly", 5)?;
    let keep_manual = small(r, "backup_keep_manual", 10)?;
    let verify_days = small(r, "backup_verify_days", 30)?;
    let max_age = small(r, "backup_max_age", 26)?;
    let link_expires = r.number("link_expires", || default(600))?;
    let port = r.settings.variable("PORT_BACKUPS").map(str::to_owned);
    let serve_listen = r.find("serve_listen", || {
        // Behind the platform's own port, as the server is.
        match &port {
            Some(port) => dotcloud(format!("127.0.0.1:{port}"), "$PORT_BACKUPS"),
            None => default(format!("127.0.0.1:{SERVE_PORT}")),
        }
    });
    let serve_url = r.find("serve_url", || None);
    Ok(BackupSettings {
        store,
        store_endpoint,
        store_region,
        key_file,
        passphrase: r.settings.variable("PGMAHOUT_BACKUP_PASSPHRASE").map(|p| Secret::new(p.to_owned())),
        compression,
        jobs: (jobs as usize).clamp(1, 64),
        time,
        keep_daily,
        keep_weekly,
        keep_manual,
        verify_days,
        max_age: Duration::from_secs(u64::from(max_age) * 3600),
        link_expires: Duration::from_secs(link_expires.clamp(1, 7 * 86_400)),
        serve_listen: serve_listen.unwrap_or_default(),
        serve_url,
    })
}

/// "03:00" as minutes after midnight.
fn minutes_of_day(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str, below: u32| text.parse::<u32>().ok().filter(|n| text.len() == 2 && *n < below);
    Some(number(hours, 24)? * 60 + number(minutes, 60)?)
}

/// Whether `make` and its kin can work in a directory of this name: they do not quote.
pub fn fit_for_make(path: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@".contains(c);
    path.to_str().is_some_and(|text| text.chars().all(plain))
}

fn find_service(r: &mut Resolver, home: &Path, debian: Option<&Debian>) -> Result<Service> {
    let supervisor = r.path("supervisor_config", || {
        let path = home.join("supervisord.conf");
        path.exists().then(|| dotcloud(path.display(), "~/supervisord.conf")).flatten()
    });
    let program = r.find("supervisor_program", || default("postgres")).unwrap_or_default();
    let unit = r.find("systemd_unit", || {
        debian.and_then(|d| detected(format!("postgresql@{}-{}", d.version, d.cluster), "Debian's layout"))
    });
    let start = r.find("start_command", || None);
    let stop = r.find("stop_command", || None);
    let kind = r
        .find("service", || {
            if start.is_some() && stop.is_some() {
                detected("commands", "start_command and stop_command are set")
            } else if let Some(path) = &supervisor {
                dotcloud("supervisor", &path.display().to_string())
            } else if unit.is_some() && Path::new("/run/systemd/system").is_dir() {
                detected("systemd", "systemd runs here")
            } else if debian.is_some() {
                detected("pg_ctlcluster", "Debian's cluster layout")
            } else {
                default("pg_ctl")
            }
        })
        .unwrap_or_default();
    let missing = |name| Error::SettingMissing { name, because: format!("service is {kind}") };
    match kind.as_str() {
        "supervisor" => {
            let config = supervisor.ok_or_else(|| missing("supervisor_config"))?;
            Ok(Service::Supervisor { config, program })
        }
        "systemd" => Ok(Service::Systemd { unit: unit.ok_or_else(|| missing("systemd_unit"))? }),
        "pg_ctlcluster" => {
            let debian = debian.ok_or_else(|| missing("data_directory"))?;
            Ok(Service::PgCtlCluster { version: debian.version.clone(), cluster: debian.cluster.clone() })
        }
        "pg_ctl" => Ok(Service::PgCtl),
        "commands" => Ok(Service::Commands {
            start: start.ok_or_else(|| missing("start_command"))?,
            stop: stop.ok_or_else(|| missing("stop_command"))?,
        }),
        _ => Err(Error::SettingValue {
            name: "service",
            value: kind,
            wanted: "supervisor, systemd, pg_ctlcluster, pg_ctl or commands",
        }),
    }
}

/// Whether a WAL segment was written at its position: a recycled one still has another's page header
/// (magic u16, info u16, timeline u32, position u64; src/include/access/xlog_internal.h).
fn begins_at(segment: &Path, position: Lsn) -> bool {
    use std::io::Read;
    let mut header = [0u8; 16];
    let read = fs::File::open(segment).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header[8..16] == position.0.to_le_bytes()
}

/// `OLD=NEW[,OLD=NEW…]`, both absolute.
pub fn parse_mapping(text: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let bad = || Error::SettingValue {
        name: "tablespace_mapping",
        value: text.to_owned(),
        wanted: "OLD=NEW, two absolute paths",
    };
    let mut pairs = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (old, new) = pair.split_once('=').ok_or_else(bad)?;
        if !old.starts_with('/') || !new.starts_with('/') {
            return Err(bad());
        }
        pairs.push((old.into(), new.into()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_absolute_pairs() {
        assert_eq!(parse_mapping("/a=/b").unwrap(), vec![("/a".into(), "/b".into())]);
        assert!(parse_mapping("/a").is_err());
        assert!(parse_mapping("a=/b").is_err());
    }

    #[test]
    fn make_wants_plain_paths() {
        assert!(fit_for_make(Path::new("/home/a.b-c/x_1")));
        assert!(!fit_for_make(Path::new("/home/a b")));
        assert!(!fit_for_make(Path::new("/home/$x")));
    }

    #[test]
    fn dotcloud_layout_is_found() {
        let home = tempfile::tempdir().unwrap();
        fs::write(
            home.path().join("environment.json"),
            r#"{"DOTCLOUD_PROJECT":"shop","DOTCLOUD_SERVICE_NAME":"db","DOTCLOUD_SERVICE_ID":"1"}"#,
        )
        .unwrap();
        fs::write(home.path().join("supervisord.conf"), "").unwrap();
        fs::write(home.path().join("password"), "hunter2\n").unwrap();
        let environment = [("PORT_PGSQL".to_owned(), "31012".to_owned())];
        let settings = Settings::load(home.path(), BTreeMap::new(), environment).unwrap();
        let instance = Instance::discover(&settings).unwrap();
        assert_eq!(instance.name, "db.1");
        assert_eq!(instance.user, "dotcloud");
        assert_eq!(instance.port(), 31012);
        assert_eq!(instance.password().unwrap().unwrap().expose(), "hunter2");
        assert_eq!(instance.slot_name(), "pgmahout_shop_db_1");
        assert!(matches!(instance.service, Service::Supervisor { .. }));
    }
}
