//! `pgmahout backup verify`: a good backup is proven, a bad one is found, and what is this machine's fault is not
//! counted as the backup's. Nothing of the throw-away cluster is left.

mod backups;
mod common;

use backups::*;
use common::*;
use nix::sys::signal::Signal;

fn host(pg: Pg) -> Host {
    let host = Site::new().host("db.0").pg(pg).build();
    host.exec("CREATE ROLE clerk");
    host.exec("CREATE DATABASE \"shop = 'ü'\" OWNER clerk");
    host.exec_in(
        SHOP,
        "CREATE EXTENSION hstore; CREATE TABLE t (a serial PRIMARY KEY, b text UNIQUE, c hstore); ALTER TABLE t OWNER TO clerk; \
         INSERT INTO t (b) SELECT md5(g::text) FROM generate_series(1, 5000) g; CREATE TABLE \"ü x\" AS SELECT 1 a",
    );
    host
}

const SHOP: &str = "shop = 'ü'";

fn verify(host: &Host, id: &str) -> Output {
    host.agent(&["backup", "verify", id]).run()
}

/// What the list says of it: none, or whether it was good, and why.
fn remembered(host: &Host, id: &str) -> Option<(bool, String)> {
    let info = host.agent(&["--json", "backup", "info", id]).run().json();
    let verified = &info["verified"];
    verified["good"].as_bool().map(|good| (good, verified["text"].as_str().unwrap().to_owned()))
}

#[track_caller]
fn nothing_is_left(host: &Host) {
    no_leftovers(host);
    let below = format!("{}/verify-", host.home.join(".pgmahout").display());
    let left: Vec<_> = pids()
        .into_iter()
        .map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .filter(|line| String::from_utf8_lossy(line).contains(&below))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn sockets() -> usize {
    let entries = std::fs::read_dir("/tmp").unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pgmahout-socket-")).count()
}

#[test]
fn a_good_backup_is_proven() {
    for (pg, checked) in [
        (
            Pg::embedded("11"),
            "amcheck found nothing wrong with B-tree indexes; the pages of tables were only read",
        ),
        (Pg::debian15(), "found nothing wrong with tables and B-tree indexes"),
        (full18(), "found nothing wrong with tables and B-tree indexes"),
    ] {
        let host = host(pg);
        let id = backup(&host, SHOP);
        assert_eq!(remembered(&host, &id), None);
        let report = host.agent(&["--json", "backup", "verify", &id]).run().json();
        assert_eq!((&report["good"], &report["rows"]), (&true.into(), &5001.into()), "{report}");
        let (good, text) = remembered(&host, &id).unwrap();
        assert!(good && text.contains("2 of 2 tables have the manifest's rows, 5001 in all"), "{text}");
        assert!(text.contains(checked), "{text}");
        host.agent(&["backup", "list"]).run().ok().says_not("FAILED");
        nothing_is_left(&host);
    }
}

#[test]
fn a_bad_backup_is_found() {
    let host = host(Pg::debian15());
    let id = backup(&host, SHOP);
    let bytes = std::fs::read(file(&host, &id)).unwrap();
    let hint = "take another one now: pgmahout backup capture; and look at the disk that it lies on";
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    host.account.write(&file(&host, &id), &flipped, 0o600);
    let place = directory(&host).display().to_string();
    let why = format!("the backup {id} in {place} is damaged: its checksum is not the one of its manifest");
    verify(&host, &id).fails(1, &format!("the backup {id} is not good: {why}"), hint);
    assert_eq!(remembered(&host, &id), Some((false, why)));
    host.agent(&["backup", "list"]).run().ok().says("FAILED");
    nothing_is_left(&host);

    let mut about = manifest(&host, SHOP, &bytes);
    about.tables.iter_mut().find(|table| table.name == "t").unwrap().rows = Some(5001);
    let id = put(&host, &bytes, about.clone()).to_string();
    let why = "what was restored is not what the manifest says: public.t has 5000 rows in place of 5001";
    verify(&host, &id).fails(1, &format!("the backup {id} is not good: {why}"), hint);
    assert_eq!(remembered(&host, &id), Some((false, why.into())));
    // Damaged before it was stored.
    let id = put(&host, &bytes[..bytes.len() / 2], about).to_string();
    assert_eq!(verify(&host, &id).code, 1);
    let (good, text) = remembered(&host, &id).unwrap();
    assert!(!good && text.starts_with("pg_restore failed"), "{text}");
    nothing_is_left(&host);
}

#[test]
fn what_this_machine_lacks_is_not_the_backups_fault() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "disk", 60);
    let host = host(Pg::debian15());
    let id = backup(&host, SHOP);
    let small = disk.path.display().to_string();
    let output = host.agent(&["backup", "verify", &id, "--directory", &small]).run();
    assert_eq!(output.code, 1);
    output.says(&small).says("MB and has");
    let bytes = std::fs::read(file(&host, &id)).unwrap();
    let mut about = manifest(&host, SHOP, &bytes);
    about.needs.extensions.insert("postgis".into(), "3".into());
    let lacking = put(&host, &bytes, about).to_string();
    verify(&host, &lacking).fails(
        1,
        "the backup needs extensions that db.0 does not have: postgis",
        "install their packages for this PostgreSQL; pg_available_extensions shows those that are here",
    );
    // No initdb: a directory with the server alone.
    let bin = host.home.join("only");
    host.account.mkdir(&bin, 0o755);
    std::os::unix::fs::symlink(host.pg.bin.join("postgres"), bin.join("postgres")).unwrap();
    let output = host.agent(&["backup", "verify", &id]).env("PGMAHOUT_BIN_DIRECTORY", bin.as_os_str()).run();
    assert_eq!(output.code, 1);
    output.says("there is no initdb in ");
    for id in [&id, &lacking] {
        assert_eq!(remembered(&host, id), None);
    }
    nothing_is_left(&host);
    assert_eq!(std::fs::read_dir(&disk.path).unwrap().count(), 0);
}

#[test]
fn a_full_disk_in_the_middle_is_not_the_backups_fault() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "disk", 300);
    let host = host(Pg::debian15());
    host.exec_in(SHOP, "INSERT INTO t (b) SELECT repeat('x', 900) || g FROM generate_series(1, 400000) g");
    let bytes = dump(&host, SHOP);
    let mut about = manifest(&host, SHOP, &bytes);
    about.database_size = 1;
    let id = put(&host, &bytes, about).to_string();
    let output = host.agent(&["backup", "verify", &id, "--directory", disk.path.to_str().unwrap()]).run();
    assert_eq!(output.code, 1);
    output.says_not("is not good");
    assert_eq!(remembered(&host, &id), None);
    assert_eq!(std::fs::read_dir(&disk.path).unwrap().count(), 0);
    nothing_is_left(&host);
}

#[test]
fn killed_or_interrupted_it_leaves_nothing_for_long() {
    let host = host(Pg::debian15());
    host.exec_in(
        SHOP,
        "CREATE INDEX ON t (b); INSERT INTO t (b) SELECT 'x' || g FROM generate_series(1, 50000) g",
    );
    let id = backup(&host, SHOP);
    verify(&host, &id).ok();
    std::fs::remove_file(directory(&host).join(format!("{id}.verified.json"))).unwrap();
    for (said, signal) in [
        ("restoring", Signal::SIGTERM),
        ("restoring", Signal::SIGKILL),
        ("checking", Signal::SIGTERM),
        ("checking", Signal::SIGKILL),
    ] {
        let mut running = host.agent(&["backup", "verify", &id]).spawn();
        until(said, 60, || running.stderr().contains(said));
        assert!(running.is_running());
        running.signal(signal);
        let output = running.wait();
        assert_eq!(output.code, if signal == Signal::SIGTERM { 5 } else { -9 }, "{output:?}");
        assert_eq!(remembered(&host, &id), None);
        if signal == Signal::SIGTERM {
            nothing_is_left(&host);
        }
    }
    verify(&host, &id).ok();
    nothing_is_left(&host);
    assert!(remembered(&host, &id).unwrap().0);
    // Kept on purpose.
    let report = host.agent(&["--json", "backup", "verify", &id, "--keep"]).run().json();
    let kept = std::path::PathBuf::from(report["kept"].as_str().unwrap());
    assert!(kept.join("data/PG_VERSION").exists() && !kept.join("data/postmaster.pid").exists());
    verify(&host, &id).ok();
    assert!(kept.exists());
    let before = sockets();
    verify(&host, &id).ok();
    assert_eq!(sockets(), before);
}
