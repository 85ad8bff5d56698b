//! Disks that are full, read-only, or not laid out as a plan expects. (A disk that is too small beforehand, a mount point,
//! a linked pg_wal and another account are e2e's: refusals.rs, enslave.rs.)

use crate::common::*;
use crate::scene::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command as Program;

/// Fills a file system to its last block.
fn fill(disk: &SmallDisk) {
    let to = format!("of={}", disk.path.join("filler").display());
    let status =
        Program::new("dd").args(["if=/dev/zero", "bs=64k", &to]).stderr(std::process::Stdio::null()).status();
    assert!(!status.unwrap().success(), "the disk was to be full");
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The disk is full all at once, at several places of the copy, for one that lies beside the old cluster and for a delta,
/// which is written over it.
#[test]
fn a_disk_that_fills_up_in_the_middle() {
    for plan in ["full", "delta"] {
        let site = Site::new();
        let primary = site.host("db.0").pg(Pg::embedded("18")).build();
        noise(&primary, 12);
        primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
        let disk = SmallDisk::mount(&site, "disk", 400);
        let standby = site.host("db.1").pg(Pg::embedded("18")).home(&disk.path).build();
        let system = standby.system_identifier();
        if plan == "full" {
            standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
        } else {
            standby.enslave(&primary, &[]);
            // All of it is another: new files have to come.
            primary.exec("VACUUM FULL noise");
            primary.exec("UPDATE noise SET id = -id");
            standby.stop();
        }
        let saved = Saved::of(&standby);
        let proxy = Proxy::to(primary.ssh_port);
        let blurb = primary.blurb_at(proxy.port, primary.port);
        let arguments = if plan == "full" {
            vec!["enslave", "--confirm", "db.1"]
        } else {
            vec!["enslave", "--plan", "delta"]
        };
        // Preflight and manifests are some 140 kB, after which a delta has removed what gave it room.
        for kilobytes in [200, 2_000, 6_000, 10_000] {
            saved.put_back(&standby);
            as_if_never_followed(&primary);
            let journal = Journal::start(&primary);
            proxy.set_rate(4_000_000);
            let begin = proxy.passed();
            let mut running = standby.agent(&arguments).stdin(blurb.clone()).spawn();
            until("so much was copied", 60, || {
                proxy.passed() - begin > kilobytes * 1000 || !running.is_running()
            });
            assert!(running.is_running(), "{plan} was through at {kilobytes} kB: {}", running.stderr());
            // Filling takes its time, and nothing may come to its end meanwhile.
            proxy.set_rate(10_000);
            fill(&disk);
            proxy.set_rate(0);
            let output = running.wait();
            assert_eq!(output.code, 1, "{plan} at {kilobytes} kB: {output:?}");
            assert_eq!(output.stderr.matches("pgmahout: ").count(), 1, "{output:?}");
            let output = output.says("No space left on device");
            no_agents(&[&primary, &standby]);
            primary_is_clean(&primary, &[]);
            std::fs::remove_file(disk.path.join("filler")).unwrap();
            if plan == "full" {
                assert!(!standby.home.join("data.pgmahout-new").exists(), "{output:?}");
            }
            let found = look_at(&standby, |host| match plan {
                "full" => {
                    assert_eq!(host.system_identifier(), system);
                    assert_eq!(host.one("SELECT n FROM old_cluster"), "42");
                }
                _ => assert!(host.is_standby()),
            });
            assert!(plan == "delta" || found == Found::Cluster, "the old cluster is gone: {output:?}");
            standby.agent(&arguments).stdin(blurb.clone()).run().ok();
            follows(&primary, &standby, journal);
            primary_is_clean(&primary, &[SLOT]);
        }
        drop(standby);
    }
}

/// One message, nothing changed, and the old cluster goes on when the disk does.
#[test]
fn a_read_only_file_system() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    let disk = SmallDisk::mount(&site, "disk", 300);
    let standby = site.host("db.1").pg(Pg::embedded("18")).data(&disk.path.join("data")).build();
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    standby.stop();
    let remount = |how: &str| {
        must(Program::new("mount").args(["-o", &format!("remount,{how}")]).arg(&disk.path));
    };
    remount("ro");
    let before = snapshot(&standby);
    for arguments in [&["enslave", "--confirm", "db.1"][..], &["fork", "--confirm", "db.1"]] {
        let output = standby.agent(arguments).stdin(primary.blurb()).run();
        assert_eq!(output.code, 1, "{output:?}");
        assert_eq!(output.stderr.matches("pgmahout: ").count(), 1, "{output:?}");
        output.says("Read-only file system");
        primary_is_clean(&primary, &[]);
        before.assert_unchanged(&standby);
    }
    remount("rw");
    standby.start();
    assert_eq!(standby.one("SELECT n FROM old_cluster"), "42");
    standby.enslave(&primary, &["--confirm", "db.1"]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    drop(standby);
}

/// The copy is made beside PGDATA: where nothing can be made, the old cluster runs on.
#[test]
fn a_parent_that_is_not_ours() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    let parent = site.directory.join("roots");
    account().mkdir(&parent, 0o755);
    let standby = site.host("db.1").pg(Pg::embedded("18")).data(&parent.join("data")).build();
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    std::os::unix::fs::chown(&parent, Some(0), Some(0)).unwrap();
    let output = standby.agent(&["enslave", "--confirm", "db.1"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("Permission denied");
    primary_is_clean(&primary, &[]);
    assert!(standby.is_running(), "the old cluster does not run");
    assert_eq!(standby.one("SELECT n FROM old_cluster"), "42");
    account().own(&parent);
    standby.enslave(&primary, &["--confirm", "db.1"]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
}

/// PostgreSQL refuses to start in a directory that others may read: the standby's is its own again.
#[test]
fn a_mode_that_the_server_refuses() {
    let (primary, standby) = pair(Pg::embedded("18"));
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    for flags in [&["--plan", "full"][..], &["--plan", "delta"]] {
        standby.stop();
        mode(&standby.data, 0o755);
        // pg_ctl says of a standby that ended at once that it was shut down.
        standby.try_start();
        assert!(!standby.is_running(), "the server does not mind");
        standby.enslave(&primary, flags);
        assert_streams(&primary, &standby);
        compare(&primary, &standby);
        assert_eq!(std::fs::metadata(&standby.data).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

/// Puts a directory elsewhere and a link in its place, as somebody does whose disk is full.
fn move_away(host: &Host, name: &str) -> std::path::PathBuf {
    host.stop();
    let elsewhere = host.home.join(format!("moved {name}"));
    std::fs::rename(host.data.join(name), &elsewhere).unwrap();
    symlink(&elsewhere, host.data.join(name)).unwrap();
    host.account.own(&host.data.join(name));
    host.start();
    elsewhere
}

/// What base/ leads to is somebody's own: nothing there is removed, and the standby has all that it is to have.
#[test]
fn a_linked_base_of_the_standby() {
    for plan in ["full", "delta"] {
        let (primary, standby) = pair(Pg::embedded("18"));
        noise(&primary, 2);
        primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
        standby.enslave(&primary, &[]);
        let elsewhere = move_away(&standby, "base");
        primary.exec("UPDATE noise SET id = -id");
        wait_replayed(&primary, &standby);
        standby.account.write(&elsewhere.join("mine"), "precious", 0o600);
        let journal = Journal::start(&primary);
        standby.enslave(&primary, &["--plan", plan]);
        follows(&primary, &standby, journal);
        primary_is_clean(&primary, &[SLOT]);
        assert_eq!(std::fs::read_to_string(elsewhere.join("mine")).unwrap(), "precious");
    }
}

/// A copy without what the link leads to would start, and have no tables: it is refused, and so is a backup.
#[test]
fn a_linked_base_of_the_source() {
    let (primary, standby) = pair(Pg::embedded("18"));
    noise(&primary, 2);
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    move_away(&primary, "base");
    let before = snapshot(&standby);
    let output = standby.agent(&["enslave", "--confirm", "db.1"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says(&format!("{}: it is a symbolic link", primary.data.join("base").display()));
    before.assert_unchanged(&standby);
    let output = primary.agent(&["backup", "capture", "--physical"]).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("it is a symbolic link");
    primary_is_clean(&primary, &[]);
}

/// Every call of ours that makes something durable fails once, by strace: the kernel has no device here that does it. Nothing
/// is called done then. What was not synced is never gone on with: the next sync would say nothing of it.
fn a_disk_that_fails(standby: &Host, primary: &Host, in_place: bool) {
    noise(primary, 2);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    if !in_place {
        // A cluster that cannot be moved aside is replaced only when it is an empty one.
        standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    }
    let system = standby.system_identifier();
    let saved = Saved::of(standby);
    let command = Command::enslave(standby, primary, &["--confirm", "db.1"]);
    let calls = standby.site.directory.join("calls");
    let strace = |inject: &str| {
        // Of the programs that it starts none.
        let words = ["strace", "-f", "-qq", "-b", "execve", "-o", calls.to_str().unwrap(), "-e", inject];
        command.run().under(&words).run()
    };
    account().write(&calls, "", 0o666);
    // The first time it also remembers host keys and the other.
    command.again();
    saved.put_back(standby);
    as_if_never_followed(primary);
    strace("trace=fsync,fdatasync,syncfs").ok();
    let seen = std::fs::read_to_string(&calls).unwrap();
    // strace counts in each thread: ours are of the first, as the one syncfs is.
    let line = seen.lines().find(|line| line.contains("syncfs(")).expect("a syncfs");
    let main = line.split(' ').next().unwrap();
    let of = |call: &str| {
        seen.lines().filter(|line| line.starts_with(main) && line.contains(&format!("{call}("))).count()
    };
    let [fsync, syncfs] = ["fsync", "syncfs"].map(of);
    assert!(syncfs >= 1 && fsync >= 5 && of("fdatasync") == 0, "{seen}");
    // Each takes five seconds.
    let every = if std::env::var_os("EVERY_CASE").is_some_and(|set| !set.is_empty()) { 1 } else { 2 };
    let files = (1..=fsync).rev().step_by(every).map(|nth| ("fsync", nth));
    for (call, nth) in (1..=syncfs).map(|nth| ("syncfs", nth)).chain(files) {
        saved.put_back(standby);
        as_if_never_followed(primary);
        let journal = Journal::start(primary);
        let output = strace(&format!("inject={call}:error=EIO:when={nth}"));
        eprintln!("{call} {nth}: {} {}", output.code, output.stderr);
        assert!(
            output.stderr.contains("Input/output error"),
            "{call} {nth} failed, and nobody says it: {output:?}"
        );
        // It streams already when the two note each other.
        assert!(
            output.code == 1 || output.stderr.contains("do not know each other"),
            "{call} {nth}: {output:?}"
        );
        no_agents(&[primary, standby]);
        no_slot_but(primary, &[SLOT]);
        look_at(standby, |host| match host.system_identifier() == system {
            true if in_place => {}
            true => assert_eq!(host.one("SELECT n FROM old_cluster"), "42"),
            false => assert!(host.is_standby(), "a copy was started as a primary"),
        });
        let again = command.again();
        if call == "syncfs" {
            assert!(!again.stderr.contains("comparing"), "it goes on with what was not synced: {again:?}");
            assert_eq!(output.stderr.contains("copies all of it again"), in_place, "{output:?}");
        }
        follows(primary, standby, journal);
        primary_is_clean(primary, &[SLOT]);
    }
}

#[test]
fn a_disk_that_fails_to_sync() {
    let (primary, standby) = pair(Pg::embedded("18"));
    a_disk_that_fails(&standby, &primary, false);
}

#[test]
fn a_mount_point_that_fails_to_sync() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    let disk = SmallDisk::mount(&site, "disk", 400);
    mode(&disk.path, 0o700);
    let standby = site.host("db.1").pg(Pg::embedded("18")).data(&disk.path).build();
    a_disk_that_fails(&standby, &primary, true);
    drop(standby);
}
