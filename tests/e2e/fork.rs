//! `pgmahout fork`: an independent, writable copy that has all that was there when the command was given;
//! the source goes on, and nothing ties the two together afterwards.

use crate::common::*;
use nix::sys::signal::Signal;

/// Whatever names the source, or would follow it.
fn independent(fork: &Host, source: &Host, timeline: u32) {
    assert!(!fork.is_standby());
    assert_eq!(fork.timeline(), timeline);
    for name in ["standby.signal", "recovery.signal", "recovery.conf", "recovery.done", "backup_label"] {
        assert!(!fork.data.join(name).exists(), "{name}");
    }
    let auto = std::fs::read_to_string(fork.data.join("postgresql.auto.conf")).unwrap_or_default();
    assert!(!auto.contains("primary_"), "{auto}");
    assert!(!fork.home.join(".pgmahout/pgpass").exists() && !fork.home.join(".pgmahout/forking").exists());
    assert_eq!(fork.one("SELECT count(*) FROM pg_replication_slots"), "0");
    primary_is_clean(source, &[]);
}

#[test]
fn a_fork_of_a_busy_primary_goes_its_own_way() {
    for major in ["10", "15", "18"] {
        let (source, fork) = pair(Pg::embedded(major));
        source.exec("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)");
        let journal = Journal::start(&source);
        until("the journal is written", 10, || {
            source.one("SELECT to_regclass('journal') IS NOT NULL") == "t"
                && source.one("SELECT count(*) > 5 FROM journal") == "t"
        });
        let before: u64 = source.one("SELECT max(n) FROM journal").parse().unwrap();
        let report = fork.agent(&["--json", "fork"]).stdin(source.blurb()).run().json();
        assert_eq!(report["timeline"], 2, "{report}");
        independent(&fork, &source, 2);
        let has: u64 = fork.one("SELECT max(n) FROM journal").parse().unwrap();
        assert!(has >= before, "{has} of {before}: all that was there when the command was given");
        assert_eq!(fork.one("SELECT count(*) FROM journal").parse::<u64>().unwrap(), has, "without a gap");
        assert_eq!(fork.one("SELECT count(*) FROM t"), "1000");

        fork.exec("INSERT INTO t VALUES (2000)");
        source.exec("DELETE FROM t WHERE n = 1");
        assert!(journal.stop() > has, "the source was written to all the time");
        assert_eq!(
            (fork.one("SELECT count(*) FROM t"), source.one("SELECT count(*) FROM t")),
            ("1001".into(), "999".into())
        );
        fork.restart();
        assert_eq!(fork.one("SELECT count(*) FROM t"), "1001");
        assert_eq!(source.timeline(), 1);
    }
}

#[test]
fn a_fork_of_a_standby_leaves_the_primary_alone() {
    let site = Site::new();
    let host = |name: &str| site.host(name).pg(Pg::embedded("16")).build();
    let (primary, standby, fork) = (host("db.0"), host("db.1"), host("db.2"));
    primary.exec("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)");
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    let output = fork.agent(&["fork"]).stdin(standby.blurb()).run().ok();
    output.says("db.2 is a copy of the source as of ").says(", writable on timeline 2");
    assert_eq!(fork.one("SELECT count(*) FROM t"), "1000");
    assert_eq!(standby.one("SELECT count(*) FROM pg_replication_slots"), "0");
    assert_streams(&primary, &standby);
    assert!(!fork.is_standby());
}

#[test]
fn what_would_be_lost_is_asked_for_and_kept() {
    let (source, fork) = pair(Pg::embedded("15"));
    fork.exec("CREATE TABLE own AS SELECT 1 AS n");
    let before = snapshot(&fork);
    let dry = fork.agent(&["fork", "--dry-run"]).stdin(source.blurb()).run().ok();
    dry.says("db.1 would copy ").says("\nneeds --confirm db.1: it holds ");
    let refused = fork.agent(&["fork"]).stdin(source.blurb()).run();
    assert_eq!(refused.code, 3, "{refused:?}");
    refused.says("hint: to lose it on purpose, add --confirm db.1; the old cluster is moved aside and kept");
    before.assert_unchanged(&fork);
    assert!(!fork.home.join(".pgmahout/forking").exists());

    let done = fork.agent(&["fork", "--confirm", "db.1"]).stdin(source.blurb()).run().ok();
    done.says("the old cluster is kept in ");
    independent(&fork, &source, 2);
    assert_eq!(fork.one("SELECT to_regclass('own') IS NULL"), "t");
}

#[test]
fn commits_do_not_wait_for_the_sources_standbys() {
    let (source, fork) = pair(Pg::embedded("15"));
    source.exec("CREATE TABLE t (n int)");
    source.append_conf("synchronous_standby_names = 'nobody'\nsynchronous_commit = local\n");
    source.reload();
    let output = fork.agent(&["fork"]).stdin(source.blurb()).run().ok();
    output.says("warning: synchronous_standby_names was \"nobody\"");
    fork.exec("SET statement_timeout = '10s'; SET synchronous_commit = on; INSERT INTO t VALUES (1)");
    assert_eq!(fork.one("SHOW synchronous_standby_names"), "");
}

#[test]
fn a_killed_fork_goes_on_without_copying_again() {
    let (source, fork) = pair(Pg::embedded("15"));
    source.exec("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)");
    // It streams, and is killed before it ends recovery: the end of recovery itself is the server's.
    let mut running = fork.agent(&["fork"]).stdin(source.blurb()).spawn();
    until("the copy has started", 60, || running.stderr().contains("starting the server as a standby"));
    if running.is_running() {
        running.signal(Signal::SIGKILL);
    }
    running.wait();
    let report = fork.agent(&["--json", "fork"]).stdin(source.blurb()).run().json();
    assert!(report["copied"].is_null(), "{report}");
    independent(&fork, &source, 2);
    assert_eq!(fork.one("SELECT count(*) FROM t"), "1000");
}

#[test]
fn an_instance_is_no_fork_of_itself() {
    let (source, fork) = pair(Pg::embedded("15"));
    source.agent(&["fork"]).stdin(source.blurb()).run().fails(
        2,
        "the source is db.0 itself",
        "give the blurb of another instance",
    );
    fork.enslave(&source, &[]);
    source.agent(&["fork"]).stdin(fork.blurb()).run().fails(
        2,
        "the source is a standby of db.0",
        "the other way round? send the blurb of the primary to the standby; or promote the standby first",
    );
    assert_streams(&source, &fork);
}
