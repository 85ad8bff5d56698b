//! Ordinary Debian servers: clusters of pg_createcluster under the account postgres, found without being
//! told, started and stopped by pg_ctlcluster, or by systemd where it runs.

use crate::common::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// A cluster in /etc/postgresql/15 with its home and sshd.
struct Cluster {
    host: Host,
    cluster: String,
    /// Dropped after the host, which ends the server.
    _drop: DropCluster,
}

struct DropCluster(String);

impl Cluster {
    fn create(site: &Arc<Site>, name: &str) -> Cluster {
        assert!(nix::unistd::geteuid().is_root(), "Debian clusters are made by root: run this test as root");
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(sweep);
        let cluster = format!("pgmahout{}{}", std::process::id(), name);
        let port = free_port();
        must(
            Command::new("pg_createcluster")
                .args(["15", &cluster, "-p", &port.to_string(), "--start-conf", "manual", "--"])
                .args(["-k", "--auth-local=peer", "--auth-host=scram-sha-256"]),
        );
        // Whatever fails from here on, the cluster is dropped again.
        let drop = DropCluster(cluster.clone());
        let made = Cluster { host: site.host(name).debian(&cluster, port), cluster, _drop: drop };
        made.host.append_conf_at(
            &Path::new("/etc/postgresql/15").join(&made.cluster).join("postgresql.conf"),
            "shared_buffers = 16MB\nmax_connections = 30\nwal_level = replica\nlisten_addresses = '127.0.0.1'\n",
        );
        made.ctl("start");
        made.host.exec_locally(&format!(
            "ALTER ROLE postgres PASSWORD '{}'",
            made.host.password.replace('\'', "''")
        ));
        made
    }

    fn ctl(&self, action: &str) {
        must(Command::new("pg_ctlcluster").args(["15", &self.cluster, action]));
    }

    fn config_directory(&self) -> PathBuf {
        Path::new("/etc/postgresql/15").join(&self.cluster)
    }
}

impl Drop for DropCluster {
    fn drop(&mut self) {
        let name = &self.0;
        let output = Command::new("pg_dropcluster").args(["--stop", "15", name]).output();
        if !output.as_ref().is_ok_and(|o| o.status.success()) {
            eprintln!("pg_dropcluster 15 {name}: {output:?}");
        }
        let _ = std::fs::remove_dir_all(Path::new("/etc/postgresql/15").join(name));
        // What the agent has kept or left beside the data directory.
        for entry in std::fs::read_dir("/var/lib/postgresql/15").into_iter().flatten().flatten() {
            let beside = entry.file_name().to_string_lossy().into_owned();
            if beside.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Drops the clusters of test runs that did not live to do it.
fn sweep() {
    for entry in std::fs::read_dir("/etc/postgresql/15").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("pgmahout") else { continue };
        let pid: String = rest.chars().take_while(char::is_ascii_digit).collect();
        if !pid.is_empty() && !Path::new("/proc").join(pid).exists() {
            drop(DropCluster(name));
        }
    }
}

#[test]
fn enslaved_promoted_and_enslaved_back() {
    let site = Site::new();
    let first = Cluster::create(&site, "a");
    let second = Cluster::create(&site, "b");
    first.host.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");

    // Nothing is said but which of the clusters on this machine is meant.
    let config = second.host.agent(&["--json", "config"]).run().json();
    let value =
        |name: &str| config.as_array().unwrap().iter().find(|s| s["name"] == name).unwrap()["value"].clone();
    assert_eq!(value("service"), "pg_ctlcluster", "{config}");
    assert_eq!(value("bin_directory"), "/usr/lib/postgresql/15/bin", "{config}");
    assert_eq!(value("config_directory"), second.config_directory().display().to_string(), "{config}");
    assert_eq!(value("port"), second.host.port.to_string(), "{config}");
    assert_eq!(value("user"), "postgres", "{config}");

    let conf = std::fs::read(second.config_directory().join("postgresql.conf")).unwrap();
    let done = second.host.enslave(&first.host, &[]);
    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert_streams(&first.host, &second.host);
    compare(&first.host, &second.host);
    amcheck(&first.host, &second.host);
    assert_eq!(
        std::fs::read(second.config_directory().join("postgresql.conf")).unwrap(),
        conf,
        "its own settings"
    );
    let listed = must(Command::new("pg_lsclusters").arg("-h"));
    let line = listed.lines().find(|l| l.contains(&second.cluster)).unwrap();
    assert!(line.contains("online,recovery") && line.contains("postgres"), "{line}");

    second.host.agent(&["promote", "--fence"]).stdin(first.host.blurb()).run().ok();
    assert!(!first.host.is_running() && !second.host.is_standby());
    second.host.exec("INSERT INTO t VALUES (2000)");
    let back = first.host.enslave(&second.host, &[]);
    assert_eq!(back["plan"]["action"], "repoint", "{back}");
    assert_streams(&second.host, &first.host);
    compare(&second.host, &first.host);
}

#[test]
fn settings_that_debian_keeps_outside_are_checked_before_a_copy() {
    let site = Site::new();
    let first = Cluster::create(&site, "c");
    let second = Cluster::create(&site, "d");
    first.host.append_conf_at(&first.config_directory().join("postgresql.conf"), "max_connections = 60\n");
    first.ctl("restart");
    let before = snapshot(&second.host);
    second.host.agent(&["enslave"]).stdin(first.host.blurb()).run().fails(
        1,
        "max_connections is 30 here and 60 on the source: a standby's must not be lower",
        "raise it in this instance's configuration",
    );
    before.assert_unchanged(&second.host);
}

/// A systemctl that writes down how it was called and does what the unit would.
fn stand_in(cluster: &Cluster) -> PathBuf {
    let directory = cluster.host.home.join("stand-in");
    cluster.host.account.mkdir(&directory, 0o755);
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>'{home}/calls'\n\
         case \"$1\" in start | stop | restart) exec pg_ctlcluster --skip-systemctl-redirect 15 {name} \"$1\" ;; esac\n",
        home = cluster.host.home.display(),
        name = cluster.cluster
    );
    cluster.host.account.write(&directory.join("systemctl"), script, 0o755);
    directory
}

#[test]
fn where_systemd_runs_its_unit_is_stopped_and_started() {
    let site = Site::new();
    let first = Cluster::create(&site, "e");
    let second = Cluster::create(&site, "f");
    first.host.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    let directory = stand_in(&second);
    let output = second
        .host
        .agent(&["--json", "enslave"])
        .stdin(first.host.blurb())
        .env("PGMAHOUT_SERVICE", "systemd")
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", directory.display()))
        .run();
    output.json();
    assert_streams(&first.host, &second.host);
    compare(&first.host, &second.host);
    let unit = format!("postgresql@15-{}", second.cluster);
    let calls = std::fs::read_to_string(second.host.home.join("calls")).unwrap();
    assert_eq!(calls.lines().collect::<Vec<_>>(), [format!("stop {unit}"), format!("start {unit}")]);
}

#[test]
fn its_log_is_found_and_followed_through_logrotate() {
    let site = Site::new();
    let cluster = Cluster::create(&site, "g");
    let host = &cluster.host;
    let slow = |what: &str| {
        host.exec(&format!("SET log_min_duration_statement = 50; SELECT pg_sleep(0.06), '{what}'"));
    };
    slow("one");
    let shown = host.agent(&["logs", "--slow"]).run().ok().stdout;
    assert!(shown.contains("SELECT pg_sleep(0.06), 'one'") && shown.lines().count() == 1, "{shown}");
    let tail = host.agent(&["logs", "--slow", "--tail"]).spawn();
    until("the old one is shown", 10, || tail.stdout().contains("'one'"));
    // postgresql-common's logrotate copies and empties the file.
    let log = host.log_file();
    let aside = log.with_extension("log.1");
    must(host.command("cp").args([&log, &aside]));
    std::fs::File::options().write(true).truncate(true).open(&log).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    slow("two");
    until("the new one is shown", 5, || tail.stdout().contains("'two'"));
    tail.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(tail.wait().ok().stdout.lines().count(), 2);
    // The old one is in `.1` now.
    let shown = host.agent(&["logs", "--slow", "-n", "2"]).run().ok().stdout;
    assert!(shown.find("'one'").unwrap() < shown.find("'two'").unwrap(), "{shown}");
    std::fs::remove_file(aside).unwrap();
}
