//! `pgmahout enslave --copy-from`: the bytes come from a standby, the following goes to its primary.

use crate::common::*;

/// A primary, its standby, and an instance that is to become another one.
fn three(pg: Pg) -> [Host; 3] {
    let site = Site::new();
    let [primary, standby] = ["db.0", "db.1"].map(|name| site.host(name).pg(pg.clone()).build());
    let third = site.host("db.2").pg(pg).without_data().build();
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    standby.enslave(&primary, &[]);
    // What only the standby has tells where a copy came from.
    standby.account.write(&standby.data.join("told by the standby"), "x", 0o600);
    [primary, standby, third]
}

/// A file with its blurb, where db.2 can read it.
fn file_of(standby: &Host, third: &Host) -> String {
    let file = third.home.join("the standby's blurb");
    third.account.write(&file, standby.blurb(), 0o600);
    file.display().to_string()
}

#[track_caller]
fn is_whole(primary: &Host, standby: &Host, third: &Host) {
    assert!(third.data.join("told by the standby").exists(), "it came from somewhere else");
    assert_streams(primary, third);
    assert_streams(primary, standby);
    primary_is_clean(primary, &["pgmahout_db_1", "pgmahout_db_2"]);
    primary_is_clean(standby, &[]);
    compare(primary, third);
}

fn under_load(pg: Pg) {
    let [primary, standby, third] = three(pg);
    Pgbench::initialise(&primary, 4);
    wait_replayed(&primary, &standby);
    let (bench, journal) = (Pgbench::start(&primary), Journal::start(&primary));
    let done = third.enslave(&primary, &["--copy-from", &file_of(&standby, &third)]);
    bench.stop();
    let acknowledged = journal.stop();
    assert_eq!(
        (&done["plan"]["action"], &done["copied_from"]),
        (&"full".into(), &"the standby".into()),
        "{done}"
    );
    is_whole(&primary, &standby, &third);
    assert_eq!(third.one("SELECT max(n) FROM journal"), acknowledged.to_string());
    amcheck(&primary, &third);
}

#[test]
fn under_load_11() {
    under_load(Pg::embedded("11"));
}

#[test]
fn under_load_15() {
    under_load(Pg::debian15());
}

#[test]
fn under_load_18() {
    under_load(Pg::embedded("18"));
}

/// The standby's last checkpoint lies where the primary has no WAL any more: that comes from the standby too.
#[test]
fn wal_that_the_primary_has_no_more() {
    let [primary, standby, third] = three(Pg::embedded("18"));
    primary.exec("ALTER SYSTEM SET max_wal_size = '32MB'");
    primary.exec("ALTER SYSTEM SET wal_recycle = off");
    primary.reload();
    primary.exec("CHECKPOINT");
    wait_replayed(&primary, &standby);
    standby.exec("CHECKPOINT");
    standby.exec("SELECT pg_wal_replay_pause()");
    let redo = standby.one("SELECT redo_lsn FROM pg_control_checkpoint()");
    for _ in 0..4 {
        primary.exec("INSERT INTO t VALUES (0); SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
    }
    let oldest = "SELECT min(name) > pg_walfile_name('{}') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'";
    until("the primary has no such WAL any more", 30, || {
        primary.exec("INSERT INTO t VALUES (0); SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
        primary.one(&oldest.replace("{}", &redo)) == "t"
    });
    third.enslave(&primary, &["--copy-from", &file_of(&standby, &third)]);
    assert_eq!(standby.one("SELECT redo_lsn FROM pg_control_checkpoint()"), redo);
    standby.exec("SELECT pg_wal_replay_resume()");
    is_whole(&primary, &standby, &third);
}

/// A standby that does not receive any more would leave a gap. What was copied meanwhile is gone on with later.
#[test]
fn a_standby_that_is_cut_off() {
    let [primary, standby, third] = three(Pg::embedded("18"));
    let conninfo = standby.one("SHOW primary_conninfo");
    standby.exec("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'");
    standby.reload();
    until("nothing comes any more", 30, || standby.one("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    for _ in 0..2 {
        primary.exec("INSERT INTO t VALUES (0); SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
    }
    let file = file_of(&standby, &third);
    let output =
        third.agent(&["enslave", "--copy-from", &file, "--timeout", "3"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("after 3 s the standby has WAL up to ").says("hint: see whether it streams");
    primary_is_clean(&primary, &["pgmahout_db_1"]);
    primary_is_clean(&standby, &[]);
    assert!(!third.is_running());

    standby.exec(&format!("ALTER SYSTEM SET primary_conninfo = '{}'", conninfo.replace('\'', "''")));
    standby.reload();
    let done = third.enslave(&primary, &["--copy-from", &file]);
    assert_eq!(done["copied"]["compared"], true, "{done}");
    is_whole(&primary, &standby, &third);
}

/// Over what is here already only what differs comes, from the standby too; and where nothing has to be copied nobody is.
#[test]
fn delta_and_repoint() {
    let [primary, standby, third] = three(Pg::embedded("18"));
    let file = file_of(&standby, &third);
    third.enslave(&primary, &[]);
    third.stop();
    primary.exec("SELECT pg_drop_replication_slot('pgmahout_db_2')");
    primary.exec("UPDATE t SET n = -n WHERE n % 10 = 0");
    wait_replayed(&primary, &standby);
    let done = third.enslave(&primary, &["--plan", "delta", "--copy-from", &file]);
    assert_eq!(
        (&done["plan"]["action"], &done["copied"]["compared"]),
        (&"delta".into(), &true.into()),
        "{done}"
    );
    is_whole(&primary, &standby, &third);
    third.stop();
    let done = third.enslave(&primary, &["--copy-from", &file]);
    assert_eq!(
        (&done["plan"]["action"], &done["copied_from"]),
        (&"repoint".into(), &serde_json::Value::Null),
        "{done}"
    );
}

#[test]
fn who_is_of_no_use_and_how_it_is_named() {
    let [primary, standby, third] = three(Pg::embedded("18"));
    let site = Site::new();
    let stranger = site.host("db.7").pg(Pg::embedded("18")).build();
    let hint = "--copy-from names a standby that follows the source; without it the source itself is copied";
    let refused = |other: &Host, why: &str| {
        let file = file_of(other, &third);
        let output = third.agent(&["enslave", "--copy-from", &file]).stdin(primary.blurb()).run();
        assert_eq!(output.code, 1, "{output:?}");
        output.says(&format!("a copy of the source cannot come from the standby: {why}\nhint: {hint}\n"));
    };
    refused(&primary, "it is no standby");
    refused(&stranger, "it is another cluster");

    // One blurb after the other.
    let arguments = ["--json", "enslave", "--dry-run", "--copy-from", "-"];
    let both = format!("{}---\n{}", primary.blurb(), standby.blurb());
    let planned = third.agent(&arguments).stdin(both).run().json();
    assert_eq!(planned["copied_from"], "the standby", "{planned}");
    let output = third.agent(&arguments[1..]).stdin(primary.blurb()).run();
    output.fails(
        2,
        "no second blurb came, that of the standby to copy from",
        "it follows the first after a line ---; --copy-from FILE names a file with it",
    );
    // Both in one blurb, by name.
    let several = |host: &Host, name: &str| {
        let ports: String =
            host.blurb().lines().skip(1).map(|line| format!("            {line}\n")).collect();
        format!("    shop.{name}:\n        ports:\n{ports}")
    };
    let both = format!("instances:\n{}{}", several(&primary, "db.0"), several(&standby, "db.1"));
    let arguments = ["--json", "enslave", "--dry-run", "--from", "db.0", "--copy-from", "db.1"];
    let planned = third.agent(&arguments).stdin(both).run().json();
    assert_eq!((&planned["source"], &planned["copied_from"]), (&"db.0".into(), &"db.1".into()), "{planned}");
    let output = third.agent(&["enslave", "--copy-from", "db.1"]).stdin(primary.blurb()).run();
    output.fails(
        2,
        "--copy-from: db.1 is no file, and the blurb tells of no such instance",
        "give a file with the standby's blurb, or a blurb that tells of both: dotcloud info db",
    );
    assert!(!third.data.exists());
}
