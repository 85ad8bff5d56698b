//! `pgmahout enslave` over a cluster, or a part of one, that is here already: only what differs is copied, whatever
//! became of either side, and a copy that broke off goes on.

use crate::common::*;
use nix::sys::signal::Signal;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const SLOT: &str = "pgmahout_db_1";

/// The standby is stopped, its primary goes on without it, and the WAL that it would need is gone.
fn left_behind(primary: &Host, standby: &Host, work: &str) {
    standby.stop();
    primary.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    primary.exec(work);
    // Checkpoints remove what is older than the one before.
    for _ in 0..3 {
        primary.exec("CREATE TABLE IF NOT EXISTS passing (n int); INSERT INTO passing VALUES (1)");
        primary.exec("SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
    }
}

/// From now on no page changes only because somebody reads it (hint bits).
fn settle(primary: &Host) {
    primary.exec("VACUUM FREEZE noise");
    primary.exec("CHECKPOINT");
}

#[track_caller]
fn is_delta(done: &serde_json::Value) {
    assert_eq!(
        (&done["plan"]["action"], &done["plan"]["fate"]),
        (&"delta".into(), &"rewritten".into()),
        "{done}"
    );
    assert_eq!(done["copied"]["compared"], true, "{done}");
}

/// What was compared and what of it was written.
fn bytes(done: &serde_json::Value) -> (u64, u64) {
    let number = |name: &str| done["copied"][name].as_u64().unwrap_or_else(|| panic!("{done}"));
    (number("bytes"), number("written_bytes"))
}

/// pgbench and a journal write all the time, before and while the blocks are compared.
fn delta_under_load(pg: Pg) {
    let (primary, standby) = pair(pg);
    Pgbench::initialise(&primary, 4);
    noise(&primary, 16);
    standby.enslave(&primary, &[]);
    left_behind(
        &primary,
        &standby,
        "CREATE TABLE later AS SELECT generate_series(1, 9000) AS n; DELETE FROM pgbench_history; \
         UPDATE noise SET id = -id WHERE id % 100 = 0; CREATE TABLE gone AS SELECT 1 AS n; DROP TABLE gone",
    );

    let done = enslaved_under_load(&primary, &standby);

    is_delta(&done);
    let (all, written) = bytes(&done);
    assert!(written < all / 2, "{done}");
    // Not a file more than there: what is not the source's is gone.
    for directory in ["pg_replslot", "base/pgsql_tmp"] {
        let names = std::fs::read_dir(standby.data.join(directory)).into_iter().flatten();
        assert_eq!(names.count(), 0, "{directory}");
    }
    assert!(!standby.data.join(".pgmahout-incomplete").exists());
}

#[test]
fn under_load_on_11() {
    delta_under_load(Pg::embedded("11"));
}

#[test]
fn under_load_on_15() {
    delta_under_load(Pg::debian15());
}

#[test]
fn under_load_on_18() {
    delta_under_load(Pg::embedded("18"));
}

#[test]
fn one_block_in_a_hundred_is_one_in_a_hundred_on_the_wire() {
    let (primary, standby) = pair(Pg::embedded("18"));
    noise(&primary, 80);
    settle(&primary);
    standby.enslave(&primary, &[]);
    // 512 rows are a megabyte, so every 400th is less than one page in a hundred.
    left_behind(&primary, &standby, "UPDATE noise SET bytes = bytes || '\\x00' WHERE id % 400 = 0");
    let dry = standby.enslave(&primary, &["--dry-run"]);
    assert_eq!(
        (&dry["plan"]["action"], &dry["copied"]),
        (&"delta".into(), &serde_json::Value::Null),
        "{dry}"
    );
    let text = standby.agent(&["enslave", "--dry-run"]).stdin(primary.blurb()).run().ok();
    text.says("and copy what differs; what differs in the cluster here is overwritten");
    let done = standby.enslave(&primary, &[]);
    is_delta(&done);
    let (all, written) = bytes(&done);
    let wire = ["wire_bytes", "sent_bytes"].map(|name| done["copied"][name].as_u64().unwrap());
    assert!(all > 80_000_000 && written < all / 20 && wire[0] + wire[1] < all / 20, "{done}");
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    // Again, although it streams: hardly anything.
    let again = standby.agent(&["enslave", "--plan", "delta"]).stdin(primary.blurb()).run().ok();
    again.says("compared, ");
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    amcheck(&primary, &standby);
}

#[test]
fn a_diverged_old_primary_is_overwritten_only_when_that_is_said() {
    let (first, second) = pair(Pg::embedded("18"));
    noise(&first, 8);
    first.exec("CREATE TABLE t (n int)");
    second.enslave(&first, &[]);
    first.crash();
    second.agent(&["promote"]).run().ok();
    second.exec("INSERT INTO t VALUES (1)");
    first.start();
    first.exec("INSERT INTO t VALUES (7); CREATE TABLE only_here AS SELECT generate_series(1, 5000) AS n");
    let before = snapshot(&first);
    let refused = first.agent(&["enslave", "--plan", "delta"]).stdin(second.blurb()).run();
    assert_eq!(refused.code, 3, "{refused:?}");
    refused.says("that the source lacks").says(
        "hint: to lose it on purpose, add --confirm db.0: it is overwritten; --plan full in place of --plan delta \
         moves the old cluster aside and keeps it",
    );
    before.assert_unchanged(&first);
    let done = first.enslave(&second, &["--plan", "delta", "--confirm", "db.0"]);
    is_delta(&done);
    assert_eq!(done["kept"], serde_json::Value::Null);
    let (all, written) = bytes(&done);
    assert!(written < all / 3, "{done}");
    assert_streams(&second, &first);
    compare(&second, &first);
    assert_eq!(first.column("postgres", "SELECT n FROM t"), ["1"]);
    assert_eq!(first.one("SELECT to_regclass('only_here') IS NULL"), "t");
    amcheck(&second, &first);
    // And it is one that can be promoted.
    first.agent(&["promote", "--fence"]).stdin(second.blurb()).run().ok();
    first.exec("INSERT INTO t VALUES (2)");
    assert_eq!(first.timeline(), 3);
}

#[test]
fn another_cluster_has_nothing_to_be_compared_with() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let before = snapshot(&standby);
    standby.agent(&["enslave", "--plan", "delta"]).stdin(primary.blurb()).run().fails(
        1,
        "there is nothing here that a copy could be compared with: the cluster here is another one (its system identifier \
         differs)",
        "leave --plan away, and everything will be copied",
    );
    before.assert_unchanged(&standby);
}

#[test]
fn tablespaces_that_came_went_and_changed() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let own = primary.account;
    let directory = |name: &str| {
        let path = primary.home.join(name);
        own.mkdir(&path, 0o700);
        path
    };
    let (stays, goes, comes) = (directory("stays"), directory("goes"), directory("comes"));
    let create = |name: &str, path: &Path| {
        primary.exec(&format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display()));
        primary.exec(&format!(
            "CREATE TABLE in_{name} (n) TABLESPACE {name} AS SELECT generate_series(1, 9000)"
        ));
    };
    create("stays", &stays);
    create("goes", &goes);
    let here = |name: &str| standby.home.join(format!("its {name}"));
    let map = |path: &Path, name: &str| format!("{}={}", path.display(), here(name).display());
    let mapping = [map(&stays, "stays"), map(&goes, "goes")];
    standby.enslave(&primary, &["--tablespace-mapping", &mapping[0], "--tablespace-mapping", &mapping[1]]);
    left_behind(&primary, &standby, "UPDATE in_stays SET n = -n WHERE n < 100; DROP TABLE in_goes");
    primary.exec("DROP TABLESPACE goes");
    create("comes", &comes);

    // What is here already needs no mapping.
    let done = standby.enslave(&primary, &["--tablespace-mapping", &map(&comes, "comes")]);

    is_delta(&done);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    let places = standby.column(
        "postgres",
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000 ORDER BY spcname",
    );
    assert_eq!(places, [here("comes"), here("stays")].map(|path| path.display().to_string()));
    assert_eq!(std::fs::read_dir(here("goes")).unwrap().count(), 0, "of the dropped one nothing is left");
    amcheck(&primary, &standby);
}

/// As after `cp -a` of a cluster on its own machine: its link leads to the tablespace of the one that it was copied from.
#[test]
fn the_sources_own_tablespace_stays_the_sources() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let space = primary.home.join("space");
    primary.account.mkdir(&space, 0o700);
    primary.exec(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    primary.exec("CREATE TABLE t (n) TABLESPACE space AS SELECT generate_series(1, 9000)");
    let map = |name: &str| format!("{}={}", space.display(), standby.home.join(name).display());
    standby.enslave(&primary, &["--tablespace-mapping", &map("first")]);
    for (name, plan) in [("second", "auto"), ("third", "full")] {
        left_behind(&primary, &standby, "UPDATE t SET n = -n");
        let links = standby.data.join("pg_tblspc");
        let link = std::fs::read_dir(links).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&space, &link).unwrap();

        let flags = ["--tablespace-mapping", &map(name), "--plan", plan];
        standby.enslave(&primary, if plan == "auto" { &flags[..2] } else { &flags });

        assert_streams(&primary, &standby);
        compare(&primary, &standby);
        let place = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000";
        assert_eq!(standby.one(place), standby.home.join(name).display().to_string());
        primary.crash();
        primary.start();
        assert_eq!(primary.one("SELECT count(*) FROM t"), "9000");
    }
}

#[test]
fn a_mark_that_was_left_over_is_taken_away() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    let marker = standby.data.join(".pgmahout-incomplete");
    let mark = pgmahout::checked::lines("copy of PostgreSQL 18\n");
    standby.account.write(&marker, &mark, 0o600);
    let dry = standby.enslave(&primary, &["--dry-run"]);
    assert!(dry["already"] == true && marker.exists(), "{dry}");
    let done = standby.enslave(&primary, &[]);
    assert!(done["already"] == true && !marker.exists(), "{done}");
    standby.account.write(&marker, &mark, 0o600);
    standby.agent(&["promote", "--fence"]).stdin(primary.blurb()).run().ok();
    assert!(!marker.exists());
}

// --- interruptions ------------------------------------------------------------------------------------

/// An old version; those of 18 are tests/faults's.
#[test]
fn killed_at_any_instant_it_cannot_start_or_is_old_and_completes_when_run_again() {
    let (primary, standby) = pair(Pg::embedded("11"));
    noise(&primary, 24);
    settle(&primary);
    standby.enslave(&primary, &[]);
    // Half of it becomes another: the copy takes its time.
    left_behind(&primary, &standby, "UPDATE noise SET bytes = bytes || '\\x00' WHERE id % 2 = 0");
    primary.exec("CREATE TABLE new AS SELECT 1 AS n");
    let proxy = Proxy::to(primary.ssh_port).slow(4_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);
    let mut halfway = 0;
    for kilobytes in [40, 200, 1_000, 2_000, 3_000] {
        let begin = proxy.passed();
        let mut running = standby.agent(&["enslave"]).stdin(blurb.clone()).spawn();
        until("so much came", 60, || proxy.passed() - begin > kilobytes * 1000 || !running.is_running());
        assert!(running.is_running(), "it ended at {kilobytes} kB: {}", running.stderr());
        running.signal(Signal::SIGKILL);
        assert_eq!(running.wait().code, -9);
        until("the session on the primary has ended", 15, || {
            primary.one("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%'")
                == "0"
        });
        let slots = primary.column("postgres", "SELECT slot_name FROM pg_replication_slots");
        primary_is_clean(&primary, &slots.iter().map(String::as_str).collect::<Vec<_>>());
        let is_begun = standby.data.join(".pgmahout-incomplete").exists();
        halfway += usize::from(is_begun);
        if is_begun || !standby.is_running() {
            if !is_begun {
                continue;
            }
            assert!(!standby.data.join("global/pg_control").exists());
            assert!(!standby.try_start(), "a half-made copy started");
        }
    }
    assert!(halfway >= 3, "it was killed in the middle only {halfway} times");
    proxy.set_rate(0);
    let done = standby.agent(&["--json", "enslave"]).stdin(blurb).run().json();
    assert_eq!(done["copied"]["compared"], true, "{done}");
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    amcheck(&primary, &standby);
    primary_is_clean(&primary, &[SLOT]);
    assert!(!standby.data.join(".pgmahout-incomplete").exists());
    assert!(!standby.home.join("data.pgmahout-new").exists());
}

#[test]
fn a_copy_that_broke_off_goes_on_where_it_was() {
    let (primary, target) = pair(Pg::embedded("18"));
    noise(&primary, 40);
    settle(&primary);
    let proxy = Proxy::to(primary.ssh_port).slow(20_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);
    let mut running = target.agent(&["enslave"]).stdin(blurb.clone()).spawn();
    until("most of it came", 60, || proxy.passed() > 36_000_000 || !running.is_running());
    assert!(running.is_running(), "{}", running.stderr());
    running.signal(Signal::SIGINT);
    let ended = running.wait();
    ended.fails(5, "interrupted", "run the same command again to complete it");
    assert!(target.is_running(), "the old cluster does not run again");
    assert!(target.home.join("data.pgmahout-new").exists());
    proxy.set_rate(0);
    // Meanwhile there is more, and less.
    primary.exec("CREATE TABLE later AS SELECT generate_series(1, 1000) AS n; DELETE FROM noise WHERE id < 100; CHECKPOINT");
    let begin = proxy.passed();
    let done = target.agent(&["enslave"]).stdin(blurb).run().ok();
    done.says("it goes on with what an interrupted run has copied");
    let came = proxy.passed() - begin;
    assert!(came < 20_000_000, "{came} bytes came again");
    assert_streams(&primary, &target);
    compare(&primary, &target);
    amcheck(&primary, &target);
    assert!(!target.home.join("data.pgmahout-new").exists());

    // Not when everything is asked for.
    target.stop();
    let done = target.enslave(&primary, &["--plan", "full"]);
    assert_eq!(
        (&done["plan"]["action"], &done["copied"]["compared"]),
        (&"full".into(), &false.into()),
        "{done}"
    );
    assert_streams(&primary, &target);
}

#[test]
fn a_source_that_fails_before_anything_was_overwritten_leaves_the_old_standby() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    left_behind(&primary, &standby, "CREATE TABLE t AS SELECT 1 AS n");
    standby.start();
    // No second session: the preflight has the first, and the copy does not get one.
    let proxy = Proxy::to(primary.ssh_port);
    let mut running =
        standby.agent(&["-v", "enslave"]).stdin(primary.blurb_at(proxy.port, primary.port)).spawn();
    until("it stops the server", 30, || {
        running.stderr().contains("stopping the server") || !running.is_running()
    });
    proxy.refuse();
    let output = running.wait();
    assert_eq!(output.code, 4, "{output:?}");
    let begun = standby.data.join(".pgmahout-incomplete").exists();
    assert_eq!(standby.is_running(), !begun, "{output:?}");
    primary_is_clean(&primary, &[]);
    standby.enslave(&primary, &[]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
}

// --- pages --------------------------------------------------------------------------------------------

#[test]
fn a_flipped_bit_on_the_source_is_named() {
    let (primary, standby) = pair(Pg::embedded("18"));
    noise(&primary, 4);
    primary.exec("CHECKPOINT");
    let table = primary.one("SELECT pg_relation_filepath('noise')");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(primary.data.join(&table)).unwrap();
    let mut byte = [0];
    let at = 300 * 8192 + 4000;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let output = standby.agent(&["--json", "enslave"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 0, "{output:?}");
    let done: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(done["copied"]["damaged"], 1, "{done}");
    assert_eq!(done["copied"]["damaged_pages"], serde_json::json!([format!("{table}: 300")]), "{done}");
    output.says(&format!(
        "warning: 1 page of the source is damaged (the checksum is wrong), and so in the copy: {table}: 300. Look after \
         the disk there, and restore the tables from a backup"
    ));
    assert_streams(&primary, &standby);
    let quiet = standby.agent(&["enslave", "--plan", "full", "--no-verify-checksums"]).stdin(primary.blurb());
    quiet.run().ok().says_not("damaged");
    file.write_all_at(&byte, at).unwrap();
    let done = standby.enslave(&primary, &["--plan", "delta"]);
    assert_eq!(done["copied"]["damaged"], 0, "{done}");
    compare(&primary, &standby);
}

#[test]
fn a_rate_and_a_compression_are_kept_to() {
    let (primary, standby) = pair(Pg::embedded("18"));
    noise(&primary, 12);
    let begin = std::time::Instant::now();
    let done = standby.enslave(&primary, &["--max-rate", "8M", "--compress", "zstd:3"]);
    let (all, _) = bytes(&done);
    // Two streams or more, the first block of each is free; at half the rate at least.
    assert!(begin.elapsed() > Duration::from_secs_f64(all as f64 / 16e6), "{done}");
    assert_streams(&primary, &standby);
    let refused = |flags: &[&str], why: &str| {
        let output = standby.agent(&[&["enslave"], flags].concat()).stdin(primary.blurb()).run();
        assert_eq!(output.code, 2, "{output:?}");
        output.says(why);
    };
    refused(&["--max-rate", "1k"], "less than 32k a second would take for ever");
    refused(&["--max-rate", "fast"], "a rate is a number with k, M or G, such as 50M");
    refused(&["--compress", "gzip"], "is none of auto, none, lz4, zstd and zstd:LEVEL");
    refused(&["--compress", "zstd:99"], "zstd has the levels 1 to 19");
}
