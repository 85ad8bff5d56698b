//! The harness itself: its hosts serve SQL and SSH, survive a crash, and leave nothing behind.

use crate::common::*;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
fn a_host_serves_sql_and_ssh_and_leaves_nothing() {
    let (directory, pids) = {
        let (primary, target) = pair(Pg::embedded("18"));
        assert!(!primary.is_standby());
        primary.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
        assert_eq!(primary.one("SELECT count(*) FROM t"), "10");

        let output = target
            .command("ssh")
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "BatchMode=yes",
            ])
            .args(["-p", &primary.ssh_port.to_string(), "-i"])
            .arg(target.home.join(".ssh/id_ed25519"))
            .arg(format!("{}@127.0.0.1", primary.account.name))
            .arg("echo \"$HOME\" \"$(whoami)\"")
            .output()
            .unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = format!("{} {}\n", primary.home.display(), primary.account.name);
        assert_eq!(got, expected, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(primary.ssh_commands(), ["echo \"$HOME\" \"$(whoami)\""]);

        let before = snapshot(&primary);
        before.assert_unchanged(&primary);
        primary.crash();
        assert!(!primary.is_running());
        primary.start();
        assert_eq!(primary.one("SELECT count(*) FROM t"), "10");
        Pgbench::initialise(&primary, 1);
        Pgbench::start(&primary).stop();
        amcheck(&primary, &primary);
        let pids = [primary.postmaster().unwrap().as_raw(), primary.sshd.as_ref().unwrap().id() as i32];
        (primary.site.directory.clone(), pids)
    };
    assert!(!directory.exists());
    for pid in pids {
        // One that is dead and not yet waited for has no arguments any more.
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(arguments.is_empty(), "process {pid} lives on");
    }
}

#[test]
fn every_pinned_server_starts() {
    let site = Site::new();
    for major in ["10", "11", "12", "13", "14", "15", "16", "17", "18"] {
        let host = site.host(&format!("v{major}")).pg(Pg::embedded(major)).build();
        assert!(host.one("SHOW server_version").starts_with(major));
        assert_eq!(host.one("SHOW data_checksums"), "on");
        assert_eq!(host.timeline(), 1);
        snapshot(&host).assert_unchanged(&host);
    }
}

#[test]
fn the_proxy_slows_and_counts() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap().port()).slow(1_000_000);
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(&[7; 500_000]).unwrap());
    let started = std::time::Instant::now();
    let mut got = Vec::new();
    std::net::TcpStream::connect(("127.0.0.1", proxy.port)).unwrap().read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 500_000);
    assert_eq!(proxy.passed(), 500_000);
    assert!(started.elapsed().as_millis() > 300, "{:?}", started.elapsed());
}

#[test]
fn arguments_are_watched() {
    let watch = Argv::watch("a-secret-of-this-test");
    let mut child = Command::new("sleep").arg0("a-secret-of-this-test").arg("2").spawn().unwrap();
    child.wait().unwrap();
    assert!(!watch.seen().is_empty());
}
