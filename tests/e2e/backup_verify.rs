//! `pgmahout backup verify`: a good backup is proven, a bad one is found, and what is this machine's fault is not
//! counted as the backup's. Nothing of the throw-away cluster is left.

use crate::backups::*;
use crate::common::*;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::PathBuf;

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

/// The directories of sockets that lie there now, those of other tests too.
fn sockets() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/tmp").unwrap().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pgmahout-socket-"));
    ours.map(|entry| entry.path()).collect()
}

#[test]
fn a_good_backup_is_proven() {
    for (pg, checked) in [
        (
            Pg::embedded("11"),
            "amcheck found nothing wrong with B-tree indexes; the pages of tables were only read",
        ),
        (Pg::debian15(), "found nothing wrong with tables and B-tree indexes"),
        (Pg::full18(), "found nothing wrong with tables and B-tree indexes"),
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
    let kept = PathBuf::from(report["kept"].as_str().unwrap());
    assert!(kept.join("data/PG_VERSION").exists() && !kept.join("data/postmaster.pid").exists());
    verify(&host, &id).ok();
    assert!(kept.exists());
    let before = sockets();
    verify(&host, &id).ok();
    // Whatever came meanwhile is another test's, and goes with it.
    let came: Vec<_> = sockets().difference(&before).cloned().collect();
    until("no directory of sockets is left", 120, || came.iter().all(|path| !path.exists()));
}

/// What cannot be read, and what forbids everything from the moment that it is there.
#[test]
fn views_without_data_and_event_triggers_do_not_hinder() {
    for pg in [Pg::embedded("11"), Pg::full18()] {
        let host = host(pg);
        host.exec_in(
            SHOP,
            "CREATE MATERIALIZED VIEW empty AS SELECT 1 AS a WITH NO DATA; CREATE MATERIALIZED VIEW z AS SELECT 2 AS a; \
             CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; \
             CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE PROCEDURE no()",
        );
        let report = host.agent(&["--json", "backup", "capture", SHOP]).run().json();
        let id = report["id"].as_str().unwrap();
        verify(&host, id).ok();
        host.agent(&["backup", "restore", id, "other"]).run().ok();
        assert_eq!(host.one_in("other", "SELECT a FROM z"), "2");
        let sql = "SELECT relispopulated FROM pg_class WHERE relname = 'empty'";
        assert_eq!(host.one_in("other", sql), "f");
        let events = "SELECT evtname || evtenabled::text FROM pg_event_trigger";
        assert_eq!(host.one_in("other", events), "noO");
        host.agent(&["backup", "restore", id, "other", "--confirm", "db.0"]).run().ok();
        nothing_is_left(&host);
    }
}

// --- physical ----------------------------------------------------------------------------------------

/// A physical backup by pgmahout; gives its name.
fn physical(host: &Host) -> String {
    let report = host.agent(&["--json", "backup", "capture", "--physical"]).run().json();
    report["id"].as_str().unwrap().to_owned()
}

/// What a server has set for itself, and its databases for theirs, is not for the throw-away cluster.
#[test]
fn a_physical_backup_is_proven_whatever_its_cluster_has_set() {
    for pg in [Pg::embedded("11"), Pg::debian15(), Pg::full18()] {
        let host = host(pg);
        let outside = host.home.join("disk two");
        host.account.mkdir(&outside, 0o700);
        host.exec(&format!("CREATE TABLESPACE two LOCATION '{}'", outside.display()));
        host.exec("CREATE TABLE far (n int PRIMARY KEY) TABLESPACE two");
        host.exec("INSERT INTO far SELECT generate_series(1, 1000)");
        let archive = host.home.join("archive");
        host.account.mkdir(&archive, 0o700);
        for (name, value) in [
            ("archive_mode", "on".to_owned()),
            ("archive_command", format!("cp %p \"{}/%f\"", archive.display())),
            ("shared_preload_libraries", "pg_stat_statements".to_owned()),
            ("max_connections", "300".to_owned()),
        ] {
            // Only where Debian or the wheel has it.
            if name == "shared_preload_libraries" && host.pg.major == 11 {
                continue;
            }
            host.exec(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        host.restart();
        // Not for the server that runs, but for every one that starts with this file.
        host.exec("ALTER SYSTEM SET shared_buffers = '4TB'");
        host.exec("ALTER DATABASE postgres SET default_transaction_read_only = on");
        host.exec_in(
            SHOP,
            "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; \
             CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE PROCEDURE no()",
        );
        // What CREATE INDEX CONCURRENTLY leaves when it fails is not damage.
        host.exec_in(SHOP, "UPDATE pg_index SET indisvalid = false, indisready = false WHERE indexrelid = 't_b_key'::regclass");
        let id = physical(&host);
        verify(&host, &id).ok();
        until("what is archived is this server's own", 20, || {
            let archived = host.one("SELECT archived_count FROM pg_stat_archiver");
            std::fs::read_dir(&archive).unwrap().count().to_string() == archived
        });
        let (good, text) = remembered(&host, &id).unwrap();
        assert!(
            good && text.contains("all tables of the manifest (") && text.contains(") are there;"),
            "{text}"
        );
        host.exec("ALTER SYSTEM RESET shared_buffers");
        nothing_is_left(&host);
    }
}

/// The first bytes of a page of a table are overwritten on the disk.
fn damage(host: &Host, database: &str, relation: &str) {
    host.exec_in(database, "CHECKPOINT");
    let path = host.one_in(database, &format!("SELECT pg_relation_filepath('{relation}')"));
    host.stop();
    let path = host.data.join(path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..8192].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    host.start();
}

#[test]
fn a_bad_physical_backup_is_found() {
    for pg in [Pg::embedded("11"), Pg::full18()] {
        let host = host(pg);
        // No index: only its own pages say something.
        host.exec_in(SHOP, "CREATE TABLE plain AS SELECT generate_series(1, 5000) n");
        let id = physical(&host);
        let info = host.agent(&["--json", "backup", "info", &id]).run().json();
        let stored = directory(&host).join(info["file"].as_str().unwrap());
        let bytes = std::fs::read(&stored).unwrap();
        // A flipped bit, and one byte less.
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        host.account.write(&stored, &flipped, 0o600);
        assert_eq!(verify(&host, &id).code, 1);
        let (good, text) = remembered(&host, &id).expect("a flipped bit is remembered");
        assert!(!good, "{text}");
        host.agent(&["backup", "list"]).run().ok().says("FAILED");
        host.account.write(&stored, &bytes, 0o600);
        verify(&host, &id).ok();

        damage(&host, SHOP, "plain");
        let id = physical(&host);
        assert_eq!(verify(&host, &id).code, 1);
        let (good, text) = remembered(&host, &id).expect("a damaged page is remembered");
        assert!(!good && text.contains("is damaged"), "{text}");
        host.exec_in(SHOP, "SET zero_damaged_pages = on; DROP TABLE plain");

        // A catalog's page: not even a connection can be had.
        damage(&host, SHOP, "pg_attribute");
        let id = physical(&host);
        assert_eq!(verify(&host, &id).code, 1);
        let (good, text) = remembered(&host, &id).expect("a damaged catalog is remembered");
        assert!(!good, "{text}");
        nothing_is_left(&host);
    }
}

/// Its WAL is zeroes, and its manifest agrees: as after a disk that lost its writes before the backup was taken.
#[test]
fn a_physical_backup_that_does_not_start_is_bad() {
    let host = host(Pg::debian15());
    let report =
        host.agent(&["--json", "backup", "capture", "--physical", "--compress", "none"]).run().json();
    let (id, file) = (report["id"].as_str().unwrap(), report["manifest"]["file"].as_str().unwrap());
    let stored = directory(&host).join(file);
    let mut bytes = std::fs::read(&stored).unwrap();
    let former = sha256(&bytes);
    let mut segments = Vec::new();
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().starts_with("pg_wal") && entry.size() > 0 {
            segments.push((entry.raw_file_position() as usize, entry.size() as usize));
        }
    }
    assert!(!segments.is_empty());
    segments.into_iter().for_each(|(at, size)| bytes[at..at + size].fill(0));
    host.account.write(&stored, &bytes, 0o600);
    let about = directory(&host).join(format!("{id}.json"));
    let text = std::fs::read_to_string(&about).unwrap();
    assert!(text.contains(&former), "{text}");
    let told = serde_json::from_str(&text.replace(&former, &sha256(&bytes))).unwrap();
    host.account.write(&about, pgmahout::checked::json(&without_check(told)), 0o600);
    let output = verify(&host, id);
    assert_eq!(output.code, 1);
    let (good, text) = remembered(&host, id).unwrap_or_else(|| panic!("not remembered: {output:?}"));
    assert!(!good && text.contains("checkpoint record"), "{text}");
    nothing_is_left(&host);
}

#[test]
fn a_physical_backup_of_a_standby_is_proven_without_its_primary_noticing() {
    for major in ["11", "18"] {
        let site = Site::new();
        let host = |name: &str| site.host(name).pg(Pg::embedded(major)).build();
        let (primary, standby) = (host("db.0"), host("db.1"));
        standby.enslave(&primary, &[]);
        primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
        wait_replayed(&primary, &standby);
        let id = physical(&standby);
        verify(&standby, &id).ok();
        assert_eq!(primary.one("SELECT count(*) FROM pg_stat_replication"), "1");
        assert_streams(&primary, &standby);
    }
}
