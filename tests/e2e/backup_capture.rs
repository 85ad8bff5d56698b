//! `pgmahout backup capture` of one database: what plain `pg_restore` makes of it, what the manifest says, and what
//! is left of one that failed.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A client program of the server's own version where there is one, else Debian's; connected to this host.
fn client(host: &Host, program: &str) -> Command {
    let own = host.pg.bin.join(program);
    host.connected(if own.exists() { own } else { Pg::client(program) })
}

/// A database with one of everything.
fn fill(host: &Host, database: &str) {
    host.exec(&format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\"")));
    let sql = r#"
        CREATE SCHEMA "the ""other"" one's";
        CREATE TABLE plain AS SELECT n, md5(n::text) AS t, n * 1.5 AS x FROM generate_series(1, 20000) n;
        ALTER TABLE plain ADD PRIMARY KEY (n);
        COMMENT ON TABLE plain IS 'with ''quotes'' and
            a second line';
        COMMENT ON COLUMN plain.t IS 'Grüße';
        CREATE TABLE empty (n int, t text);
        CREATE TABLE no_columns ();
        INSERT INTO no_columns DEFAULT VALUES;
        INSERT INTO no_columns DEFAULT VALUES;
        CREATE TABLE "the ""other"" one's"."näme
of two lines; -- \ " ("a b" text, "ü" text);
        INSERT INTO "the ""other"" one's"."näme
of two lines; -- \ " VALUES (E'tab\there', E'line\nline\r\\.'), (E'\\.', NULL), ('', E'\\N'), ('☃', '.');
        CREATE TABLE large AS SELECT 1 AS n, string_agg(md5(n::text), E'\n') AS t FROM generate_series(1, 96000) n;
        CREATE TABLE bytes AS SELECT n, decode(repeat(md5(n::text), n), 'hex') AS b FROM generate_series(1, 200) n;
        CREATE TABLE parts (n int, t text) PARTITION BY RANGE (n);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
        CREATE TABLE "parts 2" PARTITION OF parts FOR VALUES FROM (100) TO (1000);
        INSERT INTO parts SELECT n, 'x' FROM generate_series(0, 499) n;
        CREATE MATERIALIZED VIEW summary AS SELECT n % 10 AS d, count(*) FROM plain GROUP BY 1;
        CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 7) AS n;
        CREATE SEQUENCE "its sequence" START 5;
        SELECT setval('"its sequence"', 4711);
        SELECT lo_from_bytea(0, decode(repeat('00ff10', 400000), 'hex'));
        SELECT lo_from_bytea(3000000000, 'small');
        SELECT lo_create(4711);
        CREATE FUNCTION half(int) RETURNS int LANGUAGE sql AS 'SELECT $1 / 2';
        CREATE ROLE "bob o'x";
        GRANT SELECT ON plain TO "bob o'x";
        CREATE ROLE "owner é";
        ALTER TABLE empty OWNER TO "owner é";
    "#;
    host.exec_in(database, sql);
}

/// All that pg_dump says of a database, without what is new each time.
fn text_of(host: &Host, database: &str) -> String {
    let text = must(client(host, "pg_dump").env("PGDATABASE", database));
    let mut lines: Vec<_> = text.lines().filter(|line| !line.contains("restrict ")).collect();
    // Rows have no order.
    lines.sort_unstable();
    lines.join("\n")
}

/// The same text, or where it begins to differ.
#[track_caller]
fn assert_same(before: &str, after: &str) {
    let differing = before.lines().zip(after.lines()).find(|(before, after)| before != after);
    assert!(before == after, "{} and {} bytes: {:.300}", before.len(), after.len(), format!("{differing:?}"));
}

fn backups(host: &Host) -> PathBuf {
    host.home.join("backups")
}

fn list(host: &Host) -> Vec<Value> {
    host.agent(&["--json", "backup", "list"]).run().json().as_array().unwrap().clone()
}

fn capture(host: &Host, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["--json", "backup", "capture"].iter().chain(arguments).copied().collect();
    host.agent(&all).run().json()
}

/// The stored file of a report.
fn file_of(host: &Host, report: &Value) -> PathBuf {
    backups(host).join(report["manifest"]["file"].as_str().unwrap())
}

/// Plain pg_restore of a stored file into a new database.
fn restore(host: &Host, file: &Path, database: &str) {
    host.exec(&format!("CREATE DATABASE \"{database}\" TEMPLATE template0"));
    must(client(host, "pg_restore").args(["--exit-on-error", "-d", database]).arg(file));
}

/// Schema and name of every table of a manifest, to its exact rows.
fn rows(report: &Value) -> BTreeMap<(String, String), Option<u64>> {
    let tables = report["manifest"]["tables"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    tables.iter().map(|t| ((text(&t["schema"]), text(&t["name"])), t["rows"].as_u64())).collect()
}

/// The manifest's rows are those of the tables.
fn assert_rows(host: &Host, database: &str, report: &Value) {
    let rows = rows(report);
    let mut counted = 0;
    let mut sql = host.sql_in(database);
    for ((schema, name), rows) in &rows {
        if name == "summary" {
            assert_eq!(*rows, None, "a materialized view is made anew");
            continue;
        }
        let quoted = format!("\"{}\".\"{}\"", schema.replace('"', "\"\""), name.replace('"', "\"\""));
        let there: i64 = sql.query_one(&format!("SELECT count(*) FROM {quoted}"), &[]).unwrap().get(0);
        assert_eq!(*rows, Some(there as u64), "{quoted}");
        counted += 1;
    }
    assert_eq!(counted, 9, "{rows:?}");
}

/// Nothing but whole backups and their manifests.
fn assert_tidy(host: &Host, backups_there: usize) {
    let names: Vec<_> = std::fs::read_dir(backups(host))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2 * backups_there, "{names:?}");
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
    assert_eq!(list(host).len(), backups_there);
}

fn whole_and_exact(pg: Pg, extension: bool, auto: &str, others: &[&str]) {
    let site = Site::new();
    let host = site.host("db.0").pg(pg).build();
    let name = "shop \"é\" = 'x'";
    fill(&host, name);
    if extension {
        host.exec_in(name, "CREATE EXTENSION pg_trgm; CREATE INDEX ON plain USING gin (t gin_trgm_ops)");
    }
    let before = text_of(&host, name);
    for (number, method) in ["auto"].iter().chain(others).copied().enumerate() {
        let report = capture(&host, &["--compress", method]);
        assert_eq!(report["id"], format!("b{:03}", number + 1));
        let manifest = &report["manifest"];
        assert_eq!((&manifest["database"], &manifest["kind"]), (&name.into(), &"logical".into()));
        assert_eq!(manifest["compression"], if method == "auto" { auto } else { method });
        assert_eq!(manifest["system_id"].as_str().unwrap(), host.system_identifier().to_string());
        assert_eq!(manifest["from_standby"], false);
        assert_eq!(manifest["needs"]["encoding"], "UTF8");
        let roles = manifest["needs"]["roles"].as_array().unwrap();
        assert_eq!(roles, &["bob o'x", &*host.superuser, "owner é"].map(Value::from));
        assert_eq!(manifest["needs"]["extensions"].get("pg_trgm").is_some(), extension);
        assert_rows(&host, name, &report);
        let file = file_of(&host, &report);
        let stored = std::fs::read(&file).unwrap();
        assert_eq!(manifest["sha256"], sha256(&stored));
        assert_eq!(manifest["size"], stored.len());
        let restored = format!("restored {number}");
        restore(&host, &file, &restored);
        assert_same(&before, &text_of(&host, &restored));
        host.exec(&format!("DROP DATABASE \"{restored}\""));
    }
    assert_tidy(&host, 1 + others.len());
}

#[test]
fn a_backup_of_11_restores_whole() {
    whole_and_exact(Pg::embedded("11"), false, "gzip:3", &["none"]);
}

#[test]
fn a_backup_of_15_restores_whole() {
    whole_and_exact(Pg::debian15(), true, "gzip:3", &["gzip:1", "gzip:9", "none"]);
}

#[test]
fn a_backup_of_18_restores_whole() {
    whole_and_exact(Pg::full18(), false, "gzip:3", &["gzip:9", "none"]);
}

#[test]
fn a_backup_of_17_with_zstd_restores_whole() {
    let site = Site::new();
    let builder = site.host("builder").without_data().build();
    let version = really_build(&builder, "17");
    let bin = builder.home.join(format!("postgresql-{version}/bin"));
    whole_and_exact(Pg { major: 17, bin }, false, "zstd:3", &["zstd:1", "zstd:19", "gzip:1", "none"]);
}

#[test]
fn which_database_and_which_number() {
    let site = Site::new();
    let host = site.host("db.0").build();
    let dry = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["--json", "backup", "capture", "--dry-run"].iter().chain(arguments).copied().collect();
        host.agent(&all).run().json()
    };
    assert_eq!(dry(&[])["database"], "postgres");
    host.exec("CREATE DATABASE shop");
    assert_eq!(dry(&[])["database"], "shop");
    host.exec("CREATE DATABASE other");
    host.agent(&["backup", "capture"]).run().fails(
        2,
        "there are several databases: other, shop",
        "say which: pgmahout backup capture DATABASE",
    );
    assert_eq!(dry(&["other"])["database"], "other");
    host.agent(&["backup", "capture", "shops"]).run().fails(
        1,
        "there is no database \"shops\"; there are: other, postgres, shop",
        "",
    );
    host.agent(&["backup", "capture", "shop", "--compress", "gzip:10"]).run().fails(
        2,
        "\"gzip:10\" is not a compression",
        "it is none, gzip, zstd or auto; gzip and zstd with a level if you like: gzip:9 (1 to 9), zstd:3 (1 to 19)",
    );
    host.agent(&["backup", "capture", "shop", "--compress", "zstd"]).run().fails(
        2,
        "/usr/lib/postgresql/15/bin/pg_dump cannot read zstd, and so nobody could restore the backup with it",
        "use --compress gzip, or a build of PostgreSQL 16 or later with zstd: pgmahout build-version",
    );
    assert!(!backups(&host).exists(), "a dry run and a refusal write nothing");

    let said = host.agent(&["backup", "capture", "shop"]).run().ok();
    assert_eq!(said.stderr.matches("warning: ").count(), 1, "{}", said.stderr);
    let said = said.says("is on the same machine as the server").says("b001: shop of db.0, ");
    assert!(said.stdout.contains(&format!(", to {}\n", backups(&host).display())), "{}", said.stdout);
    assert_eq!(capture(&host, &["other", "--after", "6"])["id"], "b007");
    // Numbers tell the order, and one is not given again.
    host.agent(&["backup", "delete", "b001"]).run().ok();
    assert_eq!(capture(&host, &["other"])["id"], "b008");
    host.agent(&["backup", "list"]).run().ok().says("b007").says("b008").says("other").says_not("b001");
    host.agent(&["backup", "info", "b008"])
        .run()
        .ok()
        .says("database:     other\n")
        .says("verified:     never\n");
    assert_tidy(&host, 2);
}

#[test]
fn a_standby_spares_the_primary_the_work() {
    let (primary, standby) = pair(Pg::debian15());
    fill(&primary, "shop");
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    let report = capture(&standby, &[]);
    let manifest = &report["manifest"];
    assert_eq!((&manifest["from_standby"], &manifest["instance"]), (&true.into(), &"db.1".into()));
    assert_eq!(manifest["timeline"], 1);
    assert_eq!(rows(&report)[&("public".into(), "plain".into())], Some(20_000));
    assert_eq!(rows(&report)[&("public".into(), "unlogged".into())], None);
    let warnings = report["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|w| w.as_str().unwrap().contains("1 unlogged tables")), "{warnings:?}");
    primary.exec_in("shop", "TRUNCATE unlogged");
    let before = text_of(&primary, "shop");
    restore(&primary, &file_of(&standby, &report), "restored");
    assert_same(&before, &text_of(&primary, "restored"));
}

#[test]
fn one_moment_of_a_database_that_is_written_to() {
    let site = Site::new();
    let host = site.host("db.0").build();
    host.exec("CREATE DATABASE shop");
    // Both tables always have the same number of rows for those who look at one moment.
    host.exec_in("shop", "CREATE TABLE a (n int); CREATE TABLE z (n int)");
    host.exec_in("shop", "CREATE TABLE m AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n");
    let mut writer = host.sql_in("shop");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                writer
                    .batch_execute("BEGIN; INSERT INTO a VALUES (1); INSERT INTO z VALUES (1); COMMIT")
                    .unwrap();
            }
        });
        until("rows come", 10, || host.one_in("shop", "SELECT count(*) > 20 FROM z") == "t");
        let report = capture(&host, &[]);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        report
    });
    let rows = rows(&report);
    let of = |name: &str| rows[&("public".to_owned(), name.to_owned())].unwrap();
    assert_eq!(of("a"), of("z"));
    assert!(of("a") > 20);
    restore(&host, &file_of(&host, &report), "restored");
    let restored = host.one_in("restored", "SELECT count(*) FROM a");
    assert_eq!(restored, of("a").to_string());
}

/// A database whose dump takes some seconds.
fn fill_much(host: &Host, megabytes: u32) {
    host.exec("CREATE DATABASE shop");
    let rows = megabytes * 13_500;
    let sql = format!(
        "CREATE TABLE t AS SELECT n, md5(n::text) || md5((n % 70000)::text) AS t FROM generate_series(1, {rows}) n"
    );
    host.exec_in("shop", &sql);
}

/// The pg_dump that this agent has started.
fn dump_of(agent: Pid) -> Option<Pid> {
    pids().into_iter().map(Pid::from_raw).find(|pid| {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let parent = of("stat").rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)?.parse().ok());
        // Not one that only says its version.
        parent == Some(agent.as_raw()) && of("cmdline").contains("--snapshot")
    })
}

/// A capture whose pg_dump is at work.
fn at_work(host: &Host, arguments: &[&str]) -> (Running, Pid) {
    let all: Vec<&str> = ["backup", "capture", "shop"].iter().chain(arguments).copied().collect();
    let running = host.agent(&all).spawn();
    let mut dump = None;
    until("pg_dump is at work", 30, || {
        dump = dump_of(running.pid());
        let open = std::fs::read_dir(backups(host)).into_iter().flatten().flatten();
        let written = open.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum::<u64>();
        dump.is_some() && written > 0
    });
    (running, dump.unwrap())
}

fn gone(pid: Pid) {
    until("pg_dump has ended", 15, || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn what_fails_leaves_nothing() {
    let site = Site::new();
    let host = site.host("db.0").build();
    fill_much(&host, 200);
    capture(&host, &["postgres"]);

    // pg_dump is killed.
    let (running, dump) = at_work(&host, &[]);
    kill(dump, Signal::SIGKILL).unwrap();
    running.wait().fails(1, "pg_dump of shop failed (signal: 9 (SIGKILL)): it said nothing", "");
    assert_tidy(&host, 1);

    // Two at once.
    let (first, dump) = at_work(&host, &[]);
    let second = host.agent(&["backup", "capture"]).run();
    assert_eq!(second.code, 1);
    second.says(&format!("backup capture (process {})", first.pid()));

    // An interrupt, and pg_dump with it.
    first.signal(Signal::SIGINT);
    let output = first.wait();
    assert_eq!(output.code, 5, "{output:?}");
    gone(dump);
    assert_tidy(&host, 1);

    // kill -9 of the agent: what it left is swept by the next one, and its lock is gone with it.
    let (first, dump) = at_work(&host, &[]);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.wait().code, -9);
    gone(dump);
    let left: Vec<_> = std::fs::read_dir(backups(&host)).unwrap().collect();
    assert_eq!(left.len(), 3, "a partial file");
    assert_eq!(list(&host).len(), 1, "it is not listed");
    assert_eq!(capture(&host, &["postgres"])["id"], "b002");
    assert_tidy(&host, 2);

    // The server goes in the middle.
    let (running, dump) = at_work(&host, &[]);
    host.crash();
    let output = running.wait();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("pgmahout: pg_dump of shop failed (exit status: 1): ");
    gone(dump);
    assert_tidy(&host, 2);
    host.agent(&["backup", "capture"]).run().says("db.0").says_not("panicked");
    assert_tidy(&host, 2);
}

#[test]
fn a_connection_that_is_cut_is_one_message() {
    let site = Site::new();
    let host = site.host("db.0").build();
    fill_much(&host, 200);
    let (running, dump) = at_work(&host, &[]);
    host.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'");
    let output = running.wait();
    assert_eq!(output.code, 1, "{output:?}");
    // Why it was cut reaches pg_dump only where there was time to say it.
    output.says(
        "pgmahout: pg_dump of shop failed (exit status: 1): Dumping the contents of table \"t\" failed",
    );
    gone(dump);
    assert_tidy(&host, 0);
}

#[test]
fn a_full_disk_is_one_message() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "small disk", 8);
    let store = disk.path.join("backups");
    let host = site.host("db.0").yml("store", store.to_str().unwrap()).build();
    fill_much(&host, 100);
    let output = host.agent(&["backup", "capture", "shop", "--compress", "none"]).run();
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(output.stderr.matches("pgmahout: ").count(), 1, "{output:?}");
    output
        .says(&format!("pgmahout: could not write to {}: No space left on device", store.display()))
        .says_not("could not write /");
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
    assert_eq!(list(&host).len(), 0);
    // What is smaller has room again.
    assert_eq!(capture(&host, &["postgres"])["id"], "b001");
}

#[test]
fn a_full_home_does_not_matter_to_another_disk() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "full home", 2);
    let store = site.directory.join("elsewhere");
    account().mkdir(&store, 0o755);
    let data = site.directory.join("data");
    let host = site.host("db.0").home(&disk.path).data(&data).yml("store", store.to_str().unwrap()).build();
    fill_much(&host, 10);
    // The log is the server's own; all the rest of the room goes.
    let filler = disk.path.join("filler");
    let _ = std::fs::write(&filler, vec![0; 4 << 20]);
    let report = capture(&host, &["shop"]);
    assert_eq!(report["store"], store.to_str().unwrap());
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 2);
    std::fs::remove_file(filler).unwrap();
}

#[test]
fn without_a_pg_dump_that_fits_its_package_is_named() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let output = host.agent(&["backup", "capture"]).run();
    assert_eq!(output.code, 1);
    output
        .says("pgmahout: no pg_dump of version 18 or later is here (the newest is 15.")
        .says("hint: apt-get install postgresql-client-18, or pgmahout build-version 18 --no-switch\n");
    assert_tidy(&host, 0);
}

#[test]
fn a_clock_that_was_set_back_does_not_matter() {
    let site = Site::new();
    let host = site.host("db.0").build();
    capture(&host, &[]);
    let path = backups(&host).join("b001.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for name in ["started", "finished"] {
        manifest[name] = (manifest[name].as_i64().unwrap() + 40 * 86_400).into();
    }
    host.account.write(&path, pgmahout::checked::json(&without_check(manifest)), 0o600);
    assert_eq!(capture(&host, &[])["id"], "b002");
    host.agent(&["backup", "list"]).run().ok().says("in the future");
    assert_tidy(&host, 2);
}

#[test]
fn bytes_without_a_manifest_are_swept() {
    let site = Site::new();
    let host = site.host("db.0").build();
    host.account.mkdir(&backups(&host), 0o700);
    let (old, young) = (backups(&host).join("b001-0123abcd.dump"), backups(&host).join("b002-0123abcd.dump"));
    for path in [&old, &young] {
        host.account.write(path, "killed before its manifest was written", 0o600);
    }
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(90_000);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(past).unwrap();
    assert_eq!(capture(&host, &[])["id"], "b003");
    assert!(!old.exists(), "nobody is about to write its manifest");
    assert!(young.exists(), "another instance may be");
    assert_eq!(list(&host).len(), 1);
}

#[test]
fn its_memory_stays_small() {
    let site = Site::new();
    let host = site.host("db.0").build();
    fill_much(&host, 300);
    for (method, jobs) in [("auto", "2"), ("gzip:1", "64"), ("none", "2")] {
        let mut running =
            host.agent(&["backup", "capture", "shop", "--compress", method, "-j", jobs]).spawn();
        let mut peak = 0;
        while running.is_running() {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        running.wait().ok();
        eprintln!("{method}: at most {peak} kB");
        assert!(peak > 1000 && peak < 100_000, "{method}: {peak} kB");
    }
}

/// A partition's rows may come by way of their root, to be distributed anew: the number in each is not the dump's to say.
#[test]
fn rows_that_are_distributed_anew_are_no_difference() {
    let host = Site::new().host("db.0").pg(Pg::full18()).build();
    host.exec("CREATE DATABASE shop");
    host.exec_in(
        "shop",
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'); \
         CREATE TABLE moods (m mood, n int) PARTITION BY HASH (m); \
         CREATE TABLE moods_0 PARTITION OF moods FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
         CREATE TABLE moods_1 PARTITION OF moods FOR VALUES WITH (MODULUS 2, REMAINDER 1); \
         INSERT INTO moods SELECT unnest(enum_range(NULL::mood)), g FROM generate_series(1, 100) g",
    );
    let id = capture(&host, &["shop"])["id"].as_str().unwrap().to_owned();
    // Other OIDs, and so another distribution: some of eight names go elsewhere, as good as surely.
    host.exec("CREATE TABLE between AS SELECT 1; SELECT lo_create(0) FROM generate_series(1, 1000)");
    for other in ["one", "two", "three"] {
        host.agent(&["backup", "restore", &id, other]).run().ok();
        assert_eq!(host.one_in(other, "SELECT count(*) FROM moods"), "800");
    }
    host.agent(&["backup", "verify", &id]).run().ok();
}
