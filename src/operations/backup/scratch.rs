//! A throw-away cluster of this instance's own build: private, reached by a socket only, without care for its data;
//! stopped and removed on every way out, or by the next run where a kill left it.

use super::super::Context;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::layout;
use crate::process;
use crate::sql::{Db, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Its directory is called so, and what makes it unique.
const PREFIX: &str = "verify-";

/// The directory with its socket, in `/tmp`: the path of a socket has 107 bytes at most.
const SOCKET_PREFIX: &str = "pgmahout-socket-";

/// A link to that directory, so that the next run finds it.
const SOCKET_LINK: &str = "socket";

/// A PostgreSQL without work stops at once; with `fsync` off too.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What is loaded into every process.
const LIBRARIES: &str = "shared_preload_libraries";

/// Settings of the backup's server without which a cluster does not start.
const TAKEN_OVER: &[&str] = &["max_connections", "max_prepared_transactions", "max_locks_per_transaction"];

/// A directory for a cluster, and its server once it was started. Both end with this value.
pub struct Scratch {
    /// The whole of it.
    pub root: PathBuf,
    socket: PathBuf,
    server: Option<Child>,
    keep: bool,
}

impl Scratch {
    /// A new directory below `base`. Sweeps what earlier runs left there: only while this instance's backup lock is
    /// held.
    pub fn create(base: &Path) -> Result<Scratch> {
        durable::create_private_directory(base)?;
        sweep(base)?;
        let root =
            tempfile::Builder::new().prefix(PREFIX).tempdir_in(base).on("create a directory in", base)?;
        let temporary = Path::new("/tmp");
        let socket = tempfile::Builder::new().prefix(SOCKET_PREFIX).tempdir_in(temporary);
        let socket = socket.on("create a directory in", temporary)?;
        let link = root.path().join(SOCKET_LINK);
        std::os::unix::fs::symlink(socket.path(), &link).on("create", &link)?;
        Ok(Scratch { root: root.keep(), socket: socket.keep(), server: None, keep: false })
    }

    /// PGDATA.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The server is stopped, but its files stay.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// A new cluster in it, with the instance's own superuser, whom dumps name as owner without needing to say so. Its
    /// databases bring their own encoding and locale. Nobody's password is needed: only this account reaches the socket.
    pub fn initdb(&self, context: Context) -> Result<()> {
        let mut command = Command::new(context.instance.program("initdb")?);
        command.args([
            "--no-sync",
            "--auth=trust",
            "--no-locale",
            "--encoding=UTF8",
            "--username",
            &context.instance.user,
        ]);
        command.arg("--pgdata").arg(self.data()).env("LC_ALL", "C");
        let failed = |error: Error| Error::NoScratchCluster { why: error.to_string() };
        process::run(&mut command, Duration::from_secs(300)).map(drop).map_err(failed)
    }

    /// Starts its server, with the libraries of the backup's server where they are here. The
    /// value says what is missing.
    pub fn start(&mut self, context: Context, settings: &BTreeMap<String, String>) -> Result<Option<String>> {
        let libraries = settings.get(LIBRARIES).filter(|libraries| !libraries.trim().is_empty());
        match self.try_start(context, settings, libraries.map_or("", String::as_str)) {
            Err(error) if libraries.is_some() && process::check_interrupt().is_ok() => {
                self.try_start(context, settings, "")?;
                let libraries = libraries.expect("looked at");
                Ok(Some(format!("the server ran without {LIBRARIES} = {libraries} ({error})")))
            }
            other => other.map(|()| None),
        }
    }

    fn try_start(
        &mut self,
        context: Context,
        settings: &BTreeMap<String, String>,
        libraries: &str,
    ) -> Result<()> {
        self.stop();
        // Its own settings and rules, whatever the backup's cluster had.
        let (config, hba) = (self.root.join("postgresql.conf"), self.root.join("pg_hba.conf"));
        durable::write(&config, b"", 0o600)?;
        durable::write(&hba, b"local all all trust\n", 0o600)?;
        let log = self.root.join("log");
        let output = fs::File::create(&log).on("create", &log)?;
        let also = output.try_clone().on("open", &log)?;
        let mut command = Command::new(context.instance.program("postgres")?);
        command.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(output).stderr(also).process_group(0);
        command.env("LC_ALL", "C").env_remove("PGPORT");
        for (name, value) in settings.iter().filter(|(name, _)| TAKEN_OVER.contains(&name.as_str())) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("unix_socket_directories", &self.socket.display().to_string()),
            ("unix_socket_permissions", "0700"),
            ("external_pid_file", ""),
            ("config_file", &config.display().to_string()),
            ("hba_file", &hba.display().to_string()),
            ("ident_file", &config.display().to_string()),
            ("data_directory", &self.data().display().to_string()),
            ("ssl", "off"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("synchronous_commit", "off"),
            ("synchronous_standby_names", ""),
            ("autovacuum", "off"),
            ("archive_mode", "off"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("max_wal_size", "4GB"),
            (LIBRARIES, libraries),
        ] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let program = "postgres".to_owned();
        let command = process::without_secrets(&mut command);
        self.server = Some(command.spawn().map_err(|source| Error::Spawn { program, source })?);
        let target = self.target(context);
        let limit = context.instance.start_timeout;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let ready = process::wait_for(limit, || {
            let server = self.server.as_mut().expect("started above");
            if let Ok(Some(status)) = server.try_wait() {
                let said = said();
                // Not what it answered to our own questions meanwhile.
                let fatal = |line: &&str| {
                    (line.contains("FATAL: ") && !line.contains("the database system is "))
                        || line.contains("PANIC: ")
                };
                let why = said.lines().rev().find(fatal).unwrap_or("its log does not say why").to_owned();
                return Err(Error::NoScratchCluster { why: format!("its server ended ({status}): {why}") });
            }
            Ok(Db::connect(&target).ok().map(drop))
        })?;
        ready.ok_or_else(|| Error::NoScratchCluster {
            why: format!("no connection within {} s", limit.as_secs()),
        })
    }

    /// Its server, as its superuser.
    pub fn target(&self, context: Context) -> Target {
        Target {
            label: "the throw-away cluster".into(),
            host: self.socket.display().to_string(),
            port: 5432,
            user: context.instance.user.clone(),
            password: None,
            database: "postgres".into(),
            tls: Default::default(),
            timeout: context.instance.connect_timeout,
        }
    }

    /// Whether its server is still there: what fails without it is not the backup's fault.
    pub fn is_alive(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = Pid::from_raw(server.id() as i32);
        // At once, and its processes with it: nothing of it is wanted any more, unless it is to be looked at.
        let _ = kill(pid, if self.keep { Signal::SIGINT } else { Signal::SIGQUIT });
        if !process::wait_until(STOP_LIMIT, || matches!(server.try_wait(), Ok(Some(_)) | Err(_))) {
            let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
            let _ = server.wait();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.stop();
        let _ = durable::remove_tree(&self.socket);
        if self.keep {
            let _ = fs::remove_file(self.root.join(SOCKET_LINK));
        } else {
            let _ = durable::remove_tree(&self.root);
        }
    }
}

/// Ends and removes what runs that were killed have left. One that was kept on purpose has no link to a socket.
fn sweep(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base).on("list", base)?.flatten() {
        let root = entry.path();
        let Ok(socket) = fs::read_link(root.join(SOCKET_LINK)) else { continue };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name(&root).starts_with(PREFIX) || !name(&socket).starts_with(SOCKET_PREFIX) {
            continue;
        }
        let data = root.join("data");
        if let Some(running) = layout::read_running(&data) {
            let pid = Pid::from_raw(running.pid);
            let _ = kill(pid, Signal::SIGQUIT);
            if !process::wait_until(STOP_LIMIT, || !process::is_alive(running.pid)) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        durable::remove_tree(&socket)?;
        durable::remove_tree(&root)?;
    }
    Ok(())
}
