//! Physical backups with real servers: taken hot, cold, from a standby, of a full disk, of damaged pages; restored
//! onto empty and full instances, by hand, and with a kill at many instants.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A directory that the backups of all hosts of a site lie in.
fn store(site: &Arc<Site>) -> PathBuf {
    let path = site.directory.join("store");
    account().mkdir(&path, 0o700);
    path
}

/// A source that runs, and an instance without a cluster, with another password.
fn source_and_empty(pg: Pg) -> (Host, Host, PathBuf) {
    let site = Site::new();
    let store = store(&site);
    let at = store.display().to_string();
    let source = site.host("db.0").pg(pg.clone()).yml("store", &at).build();
    let empty = site.host("db.1").pg(pg).yml("store", &at).password("another 'one'").without_data().build();
    (source, empty, store)
}

fn capture(host: &Host, flags: &[&str]) -> Value {
    let arguments = [&["--json", "backup", "capture", "--physical"][..], flags].concat();
    host.agent(&arguments).run().json()
}

fn restore(host: &Host, from: &str, flags: &[&str]) -> Value {
    let arguments = [&["--json", "backup", "restore", from][..], flags].concat();
    host.agent(&arguments).run().json()
}

/// The file of a backup in the store.
fn file_of(report: &Value, store: &Path) -> PathBuf {
    store.join(report["manifest"]["file"].as_str().unwrap())
}

/// It is a primary of its own: nothing names the original, and nothing of the restore is left.
fn independent(host: &Host, timeline: u32) {
    assert!(!host.is_standby());
    assert_eq!(host.timeline(), timeline);
    for name in ["standby.signal", "recovery.signal", "recovery.conf", "recovery.done", "backup_label"] {
        assert!(!host.data.join(name).exists(), "{name}");
    }
    let auto = std::fs::read_to_string(host.data.join("postgresql.auto.conf")).unwrap_or_default();
    for word in ["primary_", "restore_command", "recovery_target"] {
        assert!(!auto.contains(word), "{auto}");
    }
    assert_eq!(host.one("SELECT count(*) FROM pg_replication_slots"), "0");
    assert!(!host.home.join("data.pgmahout-new").exists());
    assert!(!host.home.join(".pgmahout/restoring").exists());
    assert!(!host.data.join(".pgmahout-incomplete").exists());
}

fn digest(host: &Host, table: &str) -> String {
    host.one(&format!(
        "SELECT count(*) || md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))) FROM {table} t"
    ))
}

// --- hot ---------------------------------------------------------------------------------------------

/// pgbench and a journal write all the time; what is restored is the state of one moment of it.
fn hot_under_load(pg: Pg) {
    let (source, empty, _) = source_and_empty(pg);
    Pgbench::initialise(&source, 3);
    noise(&source, 12);
    source.exec("CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 1000) AS n");
    let bench = Pgbench::start(&source);
    let journal = Journal::start(&source);
    until("the journal is written", 20, || source.one("SELECT count(*) > 5 FROM journal") == "t");
    let before: u64 = source.one("SELECT max(n) FROM journal").parse().unwrap();

    let report = capture(&source, &[]);
    bench.stop();
    assert!(journal.stop() > before);
    primary_is_clean(&source, &[]);
    let manifest = &report["manifest"];
    assert_eq!(report["id"], "b001", "{report}");
    assert_eq!(manifest["kind"], "physical");
    assert_eq!(manifest["physical"]["cold"], false);
    assert_eq!(manifest["physical"]["checksums"], true);
    assert!(manifest["physical"]["damaged_pages"].is_null(), "{manifest}");
    assert_eq!(manifest["needs"]["settings"]["max_connections"], "30");
    let tables = manifest["tables"].as_array().unwrap();
    assert!(tables.iter().any(|t| t["name"] == "noise" && t["database"] == "postgres"), "{manifest}");

    let done = restore(&empty, "b001", &[]);
    assert_eq!(done["password_set"], true, "{done}");
    assert_eq!(done["timeline"], 2, "{done}");
    independent(&empty, 2);
    assert_eq!(empty.system_identifier(), source.system_identifier());
    let has: u64 = empty.one("SELECT max(n) FROM journal").parse().unwrap();
    assert!(has >= before, "{has} of {before}");
    assert_eq!(empty.one("SELECT count(*) FROM journal").parse::<u64>().unwrap(), has, "without a gap");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
                AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers) \
                AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
    assert_eq!(empty.one(sums), "t", "every transaction is whole");
    assert_eq!(digest(&empty, "noise"), digest(&source, "noise"));
    assert_eq!(empty.one("SELECT count(*) FROM fleeting"), "0");
    amcheck(&empty, &empty);
    empty.exec("INSERT INTO journal VALUES (0)");
    empty.restart();
    assert_eq!(empty.one("SELECT count(*) FROM journal WHERE n = 0"), "1");
    assert_eq!(source.timeline(), 1);
}

#[test]
fn hot_under_load_on_11() {
    hot_under_load(Pg::embedded("11"));
}

#[test]
fn hot_under_load_on_15() {
    hot_under_load(Pg::debian15());
}

#[test]
fn hot_under_load_on_18() {
    hot_under_load(Pg::embedded("18"));
}

#[test]
fn a_busy_standby_is_backed_up_and_its_primary_not_disturbed() {
    for major in ["11", "15", "18"] {
        let site = Site::new();
        let at = store(&site).display().to_string();
        let host = |name: &str| site.host(name).pg(Pg::embedded(major)).yml("store", &at);
        let (primary, standby) = (host("db.0").build(), host("db.1").build());
        let empty = host("db.2").without_data().build();
        noise(&primary, 4);
        standby.enslave(&primary, &[]);
        let journal = Journal::start(&primary);
        until("the journal is replayed", 20, || {
            standby.one("SELECT to_regclass('journal') IS NOT NULL") == "t"
                && standby.one("SELECT count(*) > 5 FROM journal") == "t"
        });
        let before: u64 = standby.one("SELECT max(n) FROM journal").parse().unwrap();
        let report = capture(&standby, &["--compress", "gzip:1"]);
        assert_eq!(report["manifest"]["from_standby"], true, "{report}");
        journal.stop();
        assert_eq!(standby.one("SELECT count(*) FROM pg_replication_slots"), "0");
        assert_streams(&primary, &standby);
        restore(&empty, "b001", &[]);
        independent(&empty, 2);
        let has: u64 = empty.one("SELECT max(n) FROM journal").parse().unwrap();
        assert!(has >= before, "{has} of {before}");
        assert_eq!(empty.one("SELECT count(*) FROM journal").parse::<u64>().unwrap(), has);
        assert_eq!(digest(&empty, "noise"), digest(&primary, "noise"));
        amcheck(&empty, &empty);
    }
}

#[test]
fn tablespaces_outside_and_inside_the_data_directory_find_their_place() {
    let (source, empty, _) = source_and_empty(Pg::embedded("18"));
    let (outside, inside) = (source.home.join("disk two"), source.data.join("fast"));
    source.account.mkdir(&outside, 0o700);
    source.account.mkdir(&inside, 0o700);
    source.exec(&format!("CREATE TABLESPACE two LOCATION '{}'", outside.display()));
    source.exec(&format!("CREATE TABLESPACE fast LOCATION '{}'", inside.display()));
    source.exec("CREATE TABLE a (n) TABLESPACE two AS SELECT generate_series(1, 5000)");
    source.exec("CREATE TABLE b (n) TABLESPACE fast AS SELECT generate_series(1, 5000)");
    let report = capture(&source, &[]);
    let spaces = &report["manifest"]["physical"]["tablespaces"];
    assert!(spaces.to_string().contains("disk two") && spaces.to_string().contains("\"fast\""), "{spaces}");

    // On one machine the original's directory stands where the copy's would.
    empty.agent(&["backup", "restore", "b001"]).run().fails(
        1,
        &format!("the directory {0} for the tablespace {0} is not empty", outside.display()),
        "choose another: --tablespace-mapping OLD=NEW",
    );
    let there = empty.home.join("elsewhere");
    let mapping = format!("{}={}", outside.display(), there.display());
    restore(&empty, "b001", &["--tablespace-mapping", &mapping]);
    independent(&empty, 2);
    for (table, place) in [("a", there), ("b", empty.data.join("fast"))] {
        assert_eq!(empty.one(&format!("SELECT sum(n) FROM {table}")), "12502500");
        let sql =
            format!("SELECT pg_tablespace_location(reltablespace) FROM pg_class WHERE relname = '{table}'");
        assert_eq!(empty.one(&sql), place.display().to_string());
    }
    source.exec("DROP TABLE a");
    assert_eq!(empty.one("SELECT count(*) FROM a"), "5000");
}

// --- what the file is, without us --------------------------------------------------------------------

/// Unpacks the stored file by tar alone and starts it by pg_ctl alone.
fn by_hand(host: &Host, file: &Path, options: &str) -> bool {
    host.account.mkdir(&host.data, 0o700);
    must(host.command("tar").arg("-xf").arg(file).arg("-C").arg(&host.data));
    let options = format!(
        "-p {} -c \"unix_socket_directories={}\" {options}",
        host.port,
        host.socket_directory().display()
    );
    let mut command = host.command(host.pg.bin.join("pg_ctl"));
    command.arg("-D").arg(&host.data).arg("-l").arg(host.log_file()).args(["-w", "-t", "60", "-o", &options]);
    let quiet = || std::process::Stdio::null();
    command.arg("start").stdin(quiet()).stdout(quiet()).stderr(quiet()).status().unwrap().success()
}

#[test]
fn the_file_starts_by_itself_after_plain_tar() {
    for major in ["11", "15", "18"] {
        let site = Site::new();
        let store = store(&site);
        let at = store.display().to_string();
        let host = |name: &str| site.host(name).pg(Pg::embedded(major)).yml("store", &at);
        let (source, standby) = (host("db.0").build(), host("db.1").build());
        source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
        standby.enslave(&source, &[]);
        for (number, from) in [&source, &standby].into_iter().enumerate() {
            let report = capture(from, &["--compress", "gzip"]);
            let copy = host(&format!("copy.{number}")).without_data().build();
            assert!(
                by_hand(&copy, &file_of(&report, &store), ""),
                "{major} from {}: {}",
                from.name,
                copy.log()
            );
            assert_eq!(copy.one("SELECT sum(n) FROM t"), "500500");
            assert!(!copy.is_standby());
        }
    }
}

#[test]
fn a_file_without_its_manifest_is_restored_too_and_its_original_forgotten() {
    let (source, empty, store) = source_and_empty(Pg::embedded("15"));
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    source.exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    source.exec("ALTER SYSTEM SET primary_conninfo = 'host=192.0.2.1'");
    for (compression, timeline) in [("none", 2), ("gzip:2", 3), ("zstd:1", 4)] {
        let report = capture(&source, &["--compress", compression]);
        assert_eq!(report["manifest"]["compression"], compression);
        let file = file_of(&report, &store);
        let confirm: &[&str] = if compression == "none" { &[] } else { &["--confirm", "db.1"] };
        let done = restore(&empty, &file.display().to_string(), confirm);
        assert!(done["warnings"].to_string().contains("nobody"), "{done}");
        independent(&empty, timeline);
        empty.exec("INSERT INTO t VALUES (0)");
        assert_eq!(empty.one("SELECT sum(n) FROM t"), "500500");
    }
}

// --- cold --------------------------------------------------------------------------------------------

#[test]
fn a_server_that_is_down_is_copied_as_it_lies() {
    for major in ["11", "15", "18"] {
        let (source, empty, store) = source_and_empty(Pg::embedded(major));
        source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
        source.exec("CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 1000) AS n");
        source.stop();
        let clean = capture(&source, &["--compress", "gzip:1"]);
        assert_eq!(clean["manifest"]["physical"]["cold"], true, "{clean}");
        assert!(by_hand(&empty, &file_of(&clean, &store), ""), "{}", empty.log());
        let mut by_tar = postgres::Config::new();
        by_tar
            .host("127.0.0.1")
            .port(empty.port)
            .user("dotcloud")
            .password(&source.password)
            .dbname("postgres");
        let mut sql = by_tar.connect(postgres::NoTls).unwrap();
        let rows: i64 = sql.query_one("SELECT count(*) FROM fleeting", &[]).unwrap().get(0);
        assert_eq!(rows, 1000, "shut down in order, nothing resets it");
        drop(sql);
        empty.stop();

        source.start();
        source.exec("CHECKPOINT");
        source.exec("INSERT INTO t SELECT generate_series(1001, 2000)");
        source.exec("SELECT pg_switch_wal()");
        source.exec("INSERT INTO t VALUES (-1)");
        source.crash();
        let crashed = capture(&source, &[]);
        assert_eq!(crashed["manifest"]["physical"]["cold"], true, "{crashed}");
        for (backup, sum, timeline) in [("b001", "500500", 2), ("b002", "2000999", 3)] {
            restore(&empty, backup, &["--confirm", "db.1"]);
            independent(&empty, timeline);
            assert_eq!(empty.one("SELECT sum(n) FROM t"), sum, "{backup} of {major}");
            amcheck(&empty, &empty);
        }
        source.start();
        assert_eq!(source.one("SELECT sum(n) FROM t"), "2000999");
    }
}

#[test]
fn a_stopped_standby_is_copied_too() {
    let site = Site::new();
    let at = store(&site).display().to_string();
    let host = |name: &str| site.host(name).pg(Pg::embedded("15")).yml("store", &at);
    let (primary, standby, empty) =
        (host("db.0").build(), host("db.1").build(), host("db.2").without_data().build());
    standby.enslave(&primary, &[]);
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    wait_replayed(&primary, &standby);
    standby.stop();
    let report = capture(&standby, &[]);
    assert_eq!(report["manifest"]["from_standby"], true);
    restore(&empty, "b001", &[]);
    independent(&empty, 2);
    assert_eq!(empty.one("SELECT sum(n) FROM t"), "500500");
}

#[test]
fn what_is_no_whole_cluster_is_not_backed_up() {
    let (source, _, store) = source_and_empty(Pg::embedded("15"));
    source.stop();
    let marker = source.data.join(".pgmahout-incomplete");
    let mark = pgmahout::checked::lines("restore of PostgreSQL 15\n");
    let whole = mark.as_bytes();
    // One that nobody can read any more may be such a mark, or have been left over.
    for length in (0..whole.len()).step_by(13) {
        source.account.write(&marker, &whole[..length], 0o600);
        source.agent(&["backup", "capture", "--physical"]).run().fails(
            1,
            &format!(
                "{} is damaged: whether a restore was under way in this directory cannot be told",
                marker.display()
            ),
            "if this cluster has run since, remove that file; if not, move the data directory elsewhere",
        );
    }
    source.account.write(&marker, whole, 0o600);
    source.agent(&["backup", "capture", "--physical"]).run().fails(
        1,
        &format!("{} is a copy that was not completed: there is nothing to back up", source.data.display()),
        "run the command again that made it",
    );
    std::fs::remove_file(&marker).unwrap();
    std::fs::rename(source.data.join("global/pg_control"), source.home.join("kept")).unwrap();
    source.agent(&["backup", "capture", "--physical"]).run().fails(
        1,
        &format!("the cluster in {} has no global/pg_control: it is damaged", source.data.display()),
        "if nothing of it is needed, move it elsewhere",
    );
    std::fs::rename(source.home.join("kept"), source.data.join("global/pg_control")).unwrap();
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);

    // WAL that is needed is gone: somebody tidied up.
    source.start();
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 100000) AS n");
    source.crash();
    let wal = source.data.join("pg_wal");
    let first = std::fs::read_dir(&wal)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24)
        .min()
        .unwrap();
    std::fs::remove_file(wal.join(&first)).unwrap();
    source.agent(&["backup", "capture", "--physical"]).run().says(&format!("the WAL segment {first}"));
    assert_eq!(source.agent(&["--json", "backup", "list"]).run().json(), serde_json::json!([]));
}

// --- a disk that is full -----------------------------------------------------------------------------

/// Takes what is left of a disk but for so many blocks of 4 kB.
fn fill(disk: &SmallDisk, leave: u64) {
    let path = disk.path.join("filler");
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", &format!("of={}", path.display())])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the disk was to be full");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096 * leave).unwrap();
}

#[test]
fn an_instance_that_is_down_to_its_last_block_is_backed_up_hot_and_cold() {
    let site = Site::new();
    let at = store(&site).display().to_string();
    let disk = SmallDisk::mount(&site, "disk", 200);
    let pg = Pg::embedded("15");
    let source = site
        .host("db.0")
        .pg(pg.clone())
        .yml("store", &at)
        .data(&disk.path.join("data"))
        .setting("min_wal_size", "128MB")
        // And nothing keeps its WAL either.
        .setting("max_replication_slots", "0")
        .build();
    let empty = site.host("db.1").pg(pg).yml("store", &at).without_data().build();
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    // Segments that have been used once are kept for the next time.
    for _ in 0..4 {
        source.exec("INSERT INTO t VALUES (0)");
        source.exec("SELECT pg_switch_wal()");
    }
    source.exec("CHECKPOINT");
    // A session without its caches writes them, and fails where it cannot.
    drop((source.sql(), source.sql_in("template1")));
    fill(&disk, 20);
    let report = source.agent(&["--json", "backup", "capture", "--physical"]).run();
    let report = report.says("no slot keeps the WAL meanwhile").json();
    assert_eq!(report["manifest"]["physical"]["cold"], false);
    assert!(source.is_running());
    restore(&empty, "b001", &[]);
    assert_eq!(empty.one("SELECT sum(n) FROM t"), "500500");

    // It writes until it cannot.
    let mut sql = source.sql();
    let mut written = 0;
    for n in 1..200 {
        let insert = format!("INSERT INTO t SELECT {n} FROM generate_series(1, 20000)");
        if sql.batch_execute("BEGIN").is_err()
            || sql.batch_execute(&insert).is_err()
            || sql.batch_execute("COMMIT").is_err()
        {
            break;
        }
        written = n;
    }
    if source.is_running() {
        source.crash();
    }
    let report = capture(&source, &[]);
    assert_eq!(report["manifest"]["physical"]["cold"], true);
    restore(&empty, "b002", &["--confirm", "db.1"]);
    assert_eq!(empty.one("SELECT max(n) FROM t WHERE n < 200 HAVING count(*) > 0"), empty.one("SELECT 199"));
    assert!(
        written == 0 || empty.one(&format!("SELECT count(*) >= 20000 FROM t WHERE n = {written}")) == "t"
    );
}

#[test]
fn a_server_that_a_backup_would_bring_down_is_not_touched() {
    let site = Site::new();
    let at = store(&site).display().to_string();
    let disk = SmallDisk::mount(&site, "disk", 120);
    let source =
        site.host("db.0").pg(Pg::embedded("15")).yml("store", &at).data(&disk.path.join("data")).build();
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    drop((source.sql(), source.sql_in("template1")));
    fill(&disk, 0);
    source.agent(&["backup", "capture", "--physical"]).run().fails(
        1,
        &format!(
            "the server cannot begin a backup on its full disk: 0 bytes are free in {}",
            source.data.display()
        ),
        "stop it, and take the backup again: its files are copied as they lie then, and nothing is written",
    );
    std::fs::remove_file(disk.path.join("filler")).unwrap();
    fill(&disk, 100);
    source.agent(&["backup", "capture", "--physical"]).run().fails(
        1,
        &format!(
            "the server cannot begin a backup on its full disk: no room for a WAL segment in {}",
            source.data.join("pg_wal").display()
        ),
        "stop it, and take the backup again: its files are copied as they lie then, and nothing is written",
    );
    assert_eq!(source.one("SELECT sum(n) FROM t"), "500500");
    // The way out that the hint names; the stop itself may fail for want of room, which is a crash like any other.
    if !source.command(source.home.join("bin/pg-stop")).output().unwrap().status.success()
        && source.is_running()
    {
        source.crash();
    }
    assert_eq!(capture(&source, &[])["manifest"]["physical"]["cold"], true);
}

// --- damage ------------------------------------------------------------------------------------------

#[test]
fn a_flipped_bit_in_a_page_is_found_and_named() {
    for major in ["11", "18"] {
        let (source, empty, _) = source_and_empty(Pg::embedded(major));
        source.exec("CREATE TABLE t AS SELECT n, repeat('x', 100) AS x FROM generate_series(1, 1000) n");
        source.exec("CREATE TABLE other AS SELECT generate_series(1, 1000) AS n");
        source.exec("CHECKPOINT");
        let path = source.one("SELECT pg_relation_filepath('t')");
        let file = source.data.join(&path);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[3 * 8192 + 5000] ^= 1;
        {
            use std::os::unix::fs::FileExt;
            let out = std::fs::File::options().write(true).open(&file).unwrap();
            out.write_all_at(&bytes[3 * 8192 + 5000..][..1], 3 * 8192 + 5000).unwrap();
        }
        for _ in 0..2 {
            let output = source.agent(&["--json", "backup", "capture", "--physical"]).run();
            let report = output.says("1 page of this cluster is damaged").json();
            let damaged = &report["manifest"]["physical"]["damaged_pages"];
            assert_eq!(damaged, &serde_json::json!([format!("{path}: 3")]), "{report}");
            if source.is_running() {
                source.stop();
            }
        }
        restore(&empty, "b001", &[]);
        assert_eq!(empty.one("SELECT sum(n) FROM other"), "500500");
    }
}

#[test]
fn what_is_stored_is_not_used_when_it_is_damaged() {
    let (source, empty, store) = source_and_empty(Pg::embedded("15"));
    noise(&source, 3);
    let report = capture(&source, &["--compress", "none"]);
    let file = file_of(&report, &store);
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    // In a page of the noise: the tar is whole, the checksum is not.
    flipped[whole.len() / 3] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
        source.account.write(&file, damaged, 0o600);
        let output = empty.agent(&["backup", "restore", "b001"]).run();
        assert_eq!(output.code, 1, "{output:?}");
        output.says("it is no whole physical backup");
        assert!(!empty.data.exists() && !empty.home.join("data.pgmahout-new").exists());
    }
    // The same without a manifest: cut off it has no control file, for that is the last.
    source.account.write(&file, &whole[..whole.len() - 20_000], 0o600);
    let output = empty.agent(&["backup", "restore", &file.display().to_string()]).run();
    assert_eq!(output.code, 1);
    output.says("it is no whole physical backup");
    assert!(!empty.data.exists());
}

/// A tar with one entry that the tar crate itself would refuse to write, after those of a cluster.
fn hostile(name: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut entry = |name: &str, kind, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6777);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    };
    entry("PG_VERSION", tar::EntryType::Regular, "", b"15\n");
    entry(name, kind, link, b"");
    archive.into_inner().unwrap()
}

#[test]
fn a_hostile_tar_is_refused_and_leaves_nothing() {
    use tar::EntryType;
    let (source, empty, _) = source_and_empty(Pg::embedded("15"));
    let cases = [
        ("../climbed", EntryType::Regular, "", "leaves its directory"),
        ("base/../../climbed", EntryType::Regular, "", "leaves its directory"),
        ("/tmp/pgmahout-climbed", EntryType::Regular, "", "leaves its directory"),
        ("base", EntryType::Symlink, "/etc", "is neither a file nor a directory"),
        ("base/x", EntryType::Link, "PG_VERSION", "is neither a file nor a directory"),
        ("base/x", EntryType::Fifo, "", "is neither a file nor a directory"),
        ("base/x", EntryType::Char, "", "is neither a file nor a directory"),
        ("pg_tblspc/1", EntryType::Symlink, "/etc", "is neither a file nor a directory"),
        ("pg_tblspc/1", EntryType::Regular, "", "is no tablespace"),
        ("pg_tblspc/x/y", EntryType::Regular, "", "is no tablespace"),
        (".pgmahout-incomplete", EntryType::Regular, "", "has a name that is pgmahout's own"),
    ];
    let file = source.home.join("hostile.tar");
    for (name, kind, link, why) in cases {
        source.account.write(&file, hostile(name, kind, link), 0o600);
        empty.agent(&["backup", "restore", &file.display().to_string()]).run().fails(
            1,
            &format!("{name:?} in the tar {why}: nothing of it is used"),
            "pgmahout made no such backup; look where it comes from",
        );
        assert!(!empty.data.exists() && !empty.home.join("data.pgmahout-new").exists(), "{name}");
        assert!(!empty.home.join("climbed").exists() && !Path::new("/tmp/pgmahout-climbed").exists());
    }
}

// --- refusals ----------------------------------------------------------------------------------------

#[test]
fn data_that_is_here_is_lost_on_purpose_only_and_another_version_never_comes() {
    let (source, empty, _) = source_and_empty(Pg::embedded("15"));
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    capture(&source, &[]);
    restore(&empty, "b001", &[]);
    empty.exec("CREATE TABLE mine AS SELECT 1 AS n");
    let holds = format!(
        "db.1 holds a cluster with data of its own (system identifier {})",
        empty.system_identifier()
    );
    let hint = "to lose it on purpose, add --confirm db.1; the old cluster is moved aside and kept";
    let refused = |flags: &[&str]| empty.agent(&[&["backup", "restore", "b001"][..], flags].concat()).run();
    refused(&[]).fails(3, &holds, hint);
    refused(&["--confirm", "db.0"]).fails(3, &holds, hint);
    assert_eq!(empty.one("SELECT count(*) FROM mine"), "1", "it runs on");
    let done = restore(&empty, "b001", &["--confirm", "db.1"]);
    let kept = PathBuf::from(done["kept"].as_str().unwrap());
    assert!(kept.join("PG_VERSION").exists());
    assert_eq!(empty.one("SELECT to_regclass('mine') IS NULL"), "t");

    // A cluster that is past reading is replaced in the same way.
    empty.exec("CREATE TABLE mine AS SELECT 1 AS n");
    empty.stop();
    std::fs::remove_file(empty.data.join("global/pg_control")).unwrap();
    let damaged = format!(
        "db.1 holds a cluster that cannot be judged (the cluster in {} has no global/pg_control: it is damaged)",
        empty.data.display()
    );
    refused(&[]).fails(3, &damaged, hint);
    restore(&empty, "b001", &["--confirm", "db.1"]);
    independent(&empty, 4);

    let at = empty.site.directory.join("store").display().to_string();
    let other = empty.site.host("db.2").pg(Pg::embedded("16")).yml("store", &at).without_data().build();
    other.agent(&["backup", "restore", "b001"]).run().fails(
        1,
        "it is a cluster of PostgreSQL 15, and the programs here are 16",
        "build that version first: pgmahout build-version; a logical backup can be restored to any later version",
    );
}

#[test]
fn where_there_is_no_room_for_two_a_fresh_cluster_is_emptied_first() {
    let site = Site::new();
    let at = store(&site).display().to_string();
    let pg = Pg::embedded("15");
    let source = site.host("db.0").pg(pg.clone()).yml("store", &at).build();
    noise(&source, 40);
    capture(&source, &[]);
    let disk = SmallDisk::mount(&site, "disk", 240);
    let small = site.host("db.1").pg(pg).yml("store", &at).data(&disk.path).build();
    let running = small.agent(&["backup", "restore", "b001"]).spawn();
    until("it unpacks", 60, || disk.path.join(".pgmahout-incomplete").exists());
    running.signal(Signal::SIGKILL);
    running.wait();
    assert!(!small.try_start(), "half a cluster must not start");
    let done = restore(&small, "b001", &[]);
    assert_eq!(done["in_place"], "it is a mount point", "{done}");
    independent(&small, 2);
    assert_eq!(digest(&small, "noise"), digest(&source, "noise"));
}

// --- kills -------------------------------------------------------------------------------------------

/// An old version; those of 18 are tests/faults's.
#[test]
fn a_killed_capture_leaves_neither_a_backup_nor_a_slot() {
    let (source, _, store) = source_and_empty(Pg::embedded("11"));
    noise(&source, 40);
    for delay in [30, 100, 200, 400, 800, 1600] {
        let mut running = source.agent(&["backup", "capture", "--physical", "--compress", "zstd:9"]).spawn();
        std::thread::sleep(Duration::from_millis(delay));
        if running.is_running() {
            running.signal(Signal::SIGKILL);
        }
        let ended = running.wait();
        primary_is_clean(&source, &[]);
        let listed = source.agent(&["--json", "backup", "list"]).run().json();
        // Killed behind its last step, it is one all the same.
        let listed = listed.as_array().unwrap();
        assert!(listed.len() <= 1 && (ended.code != 0 || listed.len() == 1), "after {delay} ms: {listed:?}");
        for backup in listed {
            let id = backup["id"].as_str().unwrap();
            let copy = source.home.join("copy").display().to_string();
            source.agent(&["backup", "download", id, &copy, "--force"]).run().ok();
            source.agent(&["backup", "delete", id]).run().ok();
        }
    }
    capture(&source, &[]);
    let left: Vec<String> = std::fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // A whole tar whose manifest never came goes when it is old: it may be another instance's.
    assert!(left.iter().all(|name| name.ends_with(".tar") || name.ends_with(".json")), "{left:?}");
    assert_eq!(left.iter().filter(|name| name.ends_with(".json")).count(), 1, "{left:?}");
}

/// The exchange is done, and the server does not start: as after a kill at this instant.
fn restore_without_start(host: &Host, id: &str) {
    let script = host.home.join("bin/pg-start");
    let text = std::fs::read_to_string(&script).unwrap();
    host.account.write(&script, "#!/bin/sh\nexit 1\n", 0o755);
    assert_eq!(host.agent(&["backup", "restore", id, "--confirm", &host.name]).run().code, 1);
    assert!(host.home.join(".pgmahout/restoring").exists());
    host.account.write(&script, text, 0o755);
}

#[test]
fn an_interrupted_restore_is_completed_and_tells_where_the_old_cluster_is() {
    let (source, victim, _) = source_and_empty(Pg::embedded("15"));
    source.exec("CREATE TABLE t AS SELECT 1 AS n");
    capture(&source, &[]);
    restore(&victim, "b001", &[]);
    victim.exec("CREATE TABLE mine AS SELECT 1 AS n");

    restore_without_start(&victim, "b001");
    let asked = victim.agent(&["--json", "backup", "restore", "b001", "--dry-run"]).run().json();
    assert_eq!(asked["dry_run"], true);
    assert!(!victim.is_running(), "a dry run starts nothing");
    let done = restore(&victim, "b001", &[]);
    assert_eq!(victim.one("SELECT n FROM t"), "1");
    let kept = PathBuf::from(done["kept"].as_str().expect("the old cluster is kept and named"));
    assert!(kept.join("PG_VERSION").exists());
}

#[test]
fn another_backup_than_that_of_an_interrupted_restore_is_restored_itself() {
    let (source, victim, _) = source_and_empty(Pg::embedded("15"));
    source.exec("CREATE TABLE t AS SELECT 1 AS n");
    capture(&source, &[]);
    source.exec("UPDATE t SET n = 2");
    capture(&source, &[]);
    restore(&victim, "b001", &[]);
    victim.exec("CREATE TABLE mine AS SELECT 1 AS n");
    restore_without_start(&victim, "b001");
    let done = restore(&victim, "b002", &["--confirm", "db.1"]);
    assert_eq!(victim.one("SELECT n FROM t"), "2", "{done}");
    assert!(!victim.home.join(".pgmahout/restoring").exists());
}

/// Two histories of one number would be taken for one by standbys, archives and whoever compares positions.
#[test]
fn a_timeline_that_was_used_here_is_not_used_again() {
    let (source, victim, _) = source_and_empty(Pg::embedded("15"));
    source.exec("CREATE TABLE t AS SELECT 1 AS n");
    capture(&source, &[]);
    restore(&victim, "b001", &[]);
    assert_eq!(victim.timeline(), 2);
    victim.exec("CREATE TABLE mine AS SELECT 1 AS n");
    let follower = victim.site.host("db.2").pg(Pg::embedded("15")).password(&victim.password).build();
    follower.enslave(&victim, &[]);
    wait_replayed(&victim, &follower);
    restore(&victim, "b001", &["--confirm", "db.1"]);
    independent(&victim, 3);
    // It goes on as a copy of what is there now, and never of both.
    victim.exec("CREATE TABLE other AS SELECT generate_series(1, 1000) AS n");
    follower.enslave(&victim, &["--confirm", "db.2"]);
    wait_replayed(&victim, &follower);
    assert_eq!(follower.one("SELECT to_regclass('mine') IS NULL AND to_regclass('other') IS NOT NULL"), "t");
    assert_streams(&victim, &follower);
    amcheck(&victim, &follower);
}
