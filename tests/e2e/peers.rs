//! Split brain: an old primary that comes back after one of its followers was promoted notices it, starts read-only,
//! is neither followed nor promoted by mistake, and finds the way back without losing a commit unasked.

use crate::common::*;
use std::time::Duration;

/// A primary and its follower, which know of each other.
fn couple(pg: Pg) -> (Host, Host) {
    let (old, new) = pair(pg);
    old.exec("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)");
    new.enslave(&old, &[]);
    wait_replayed(&old, &new);
    (old, new)
}

/// What the recipe's start script does.
fn starts(host: &Host) -> Output {
    let said = host.agent(&["peers", "--before-start"]).run().ok();
    host.start();
    said
}

/// Refused, with a message and a hint that begin so: ports and times are others each time.
#[track_caller]
fn refused(output: Output, text: &str, hint: &str) {
    assert_eq!(output.code, 3, "{output:?}");
    output.says(&format!("pgmahout: {text}")).says(&format!("hint: {hint}"));
}

fn is_read_only(host: &Host) {
    let refused = host.sql().batch_execute("CREATE TABLE written (n int)").unwrap_err();
    let message = refused.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("read-only transaction"), "{message}");
}

fn comes_back_and_follows(pg: Pg) {
    let (old, new) = couple(pg);
    old.stop();
    new.promote(&[]);
    new.exec("INSERT INTO t VALUES (2000)");

    let said = starts(&old);
    said.says("db.0 starts read-only: db.1 (127.0.0.1:").says("a primary on timeline 2, has taken over");
    is_read_only(&old);
    assert_eq!(old.one("SELECT count(*) FROM t"), "100", "what it has can be read");
    let info = old.agent(&["--json", "info"]).run().json();
    assert_eq!(info["role"], "standby", "{info}");
    assert!(info["superseded"].as_str().unwrap().contains("db.1 (127.0.0.1:"), "{info}");

    // It is nobody's source, and nobody's primary again, by mistake.
    let third = old.site.host("db.2").pg(old.pg.clone()).without_data().build();
    refused(
        third.agent(&["enslave", "--cascade"]).stdin(old.blurb()).run(),
        "the source was left behind on timeline 1: db.1 (127.0.0.1:",
        "follow db.1; or",
    );
    let before = snapshot(&old);
    refused(
        old.agent(&["promote"]).run(),
        "the place of db.0 was taken: db.1 (127.0.0.1:",
        "follow the other one by pgmahout enslave; or go back to this one, and lose what the other one has committed \
         since: --confirm db.0",
    );
    before.assert_unchanged(&old);

    let back = old.enslave(&new, &[]);
    assert_eq!(back["plan"]["action"], "repoint", "{back}");
    assert_streams(&new, &old);
    compare(&new, &old);
    let info = old.agent(&["--json", "info"]).run().json();
    assert!(info["superseded"].is_null(), "{info}");
    primary_is_clean(&new, &["pgmahout_db_0"]);
    assert_eq!(old.one("SELECT count(*) FROM pg_replication_slots"), "0", "slots of its time as a primary");
    // And from now on it is a standby like any other.
    old.stop();
    assert_eq!(
        old.agent(&["--json", "peers", "--before-start"]).run().json()["superseded"],
        serde_json::Value::Null
    );
}

#[test]
fn comes_back_and_follows_on_11() {
    comes_back_and_follows(Pg::embedded("11"));
}

#[test]
fn comes_back_and_follows_on_18() {
    comes_back_and_follows(Pg::embedded("18"));
}

#[test]
fn commits_that_only_it_has_are_kept_until_they_are_given_up() {
    let (old, new) = couple(Pg::debian15());
    new.stop();
    old.exec("INSERT INTO t VALUES (1000), (1001)");
    // A machine that lost power
    old.crash();
    new.start();
    new.promote(&[]);
    new.exec("INSERT INTO t VALUES (2000)");

    starts(&old).says("db.0 starts read-only");
    is_read_only(&old);
    assert_eq!(
        old.one("SELECT count(*) FROM t WHERE n >= 1000"),
        "2",
        "its own commits are there to be read"
    );
    let before = snapshot(&old);
    refused(
        old.agent(&["enslave"]).stdin(new.blurb()).run(),
        "db.0 holds 1 commit that the source lacks",
        "to lose it on purpose, add --confirm db.0",
    );
    before.assert_unchanged(&old);
    old.enslave(&new, &["--confirm", "db.0"]);
    assert_streams(&new, &old);
    compare(&new, &old);
}

#[test]
fn who_is_right_is_the_operators_to_say() {
    let (old, new) = couple(Pg::embedded("16"));
    old.stop();
    new.promote(&[]);
    starts(&old).says("db.0 starts read-only");
    new.stop();
    let done = old.promote(&["--confirm", "db.0"]);
    assert_eq!(done["timeline"], 2, "{done}");
    old.exec("INSERT INTO t VALUES (3000)");
    // It stays what it was made, also over a restart: the other one is not later.
    old.stop();
    new.start();
    assert_eq!(
        old.agent(&["--json", "peers", "--before-start"]).run().json()["superseded"],
        serde_json::Value::Null
    );
    old.start();
    old.exec("INSERT INTO t VALUES (3001)");
}

#[test]
fn an_old_primary_that_runs_is_told_apart_and_not_followed() {
    let site = Site::new();
    let [old, new, third] =
        ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(Pg::embedded("17")).build());
    new.enslave(&old, &[]);
    old.stop();
    new.promote(&[]);
    // Started by something that does not ask
    old.start();
    let info = old.agent(&["info"]).run().ok();
    info.says("superseded:   db.1 (127.0.0.1:").says("a primary on timeline 2, has taken over");
    old.agent(&["peers"])
        .run()
        .ok()
        .says("on timeline 2: later than this one")
        .says("db.0 has lost its place");

    let before = snapshot(&third);
    refused(
        third.agent(&["enslave"]).stdin(old.blurb()).run(),
        "the source was left behind on timeline 1: db.1 (127.0.0.1:",
        "follow db.1; or, if db.1 has gone its own way for good: pgmahout forget db.1 on the source",
    );
    before.assert_unchanged(&third);
    // db.1 was made independent on purpose
    old.agent(&["forget", "db.1"]).run().ok().says("the instance is no peer any more");
    old.agent(&["info"]).run().ok().says_not("superseded");
    third.enslave(&old, &[]);
    assert_streams(&old, &third);
}

#[test]
fn peers_that_say_nothing_keep_nobody_down() {
    let (old, new) = couple(Pg::embedded("18"));
    // Nobody there; and there, but silent
    new.stop();
    old.stop();
    let quick = old.agent(&["--verbose", "peers", "--before-start"]).run().ok();
    assert!(quick.elapsed < Duration::from_secs(10), "{:?}", quick.elapsed);
    quick.says("db.1 (127.0.0.1:");
    let silent = std::net::TcpListener::bind(("127.0.0.1", new.port)).unwrap();
    let slow = old.agent(&["peers", "--before-start"]).run().ok();
    assert!(slow.elapsed < Duration::from_secs(20), "{:?}", slow.elapsed);
    drop(silent);
    old.start();
    old.exec("INSERT INTO t VALUES (1000)");
    // Another cluster at that place is no peer
    new.start();
    let report = old.agent(&["--json", "peers"]).run().json();
    assert_eq!(report["peers"][0]["in_recovery"], true, "{report}");
    assert_eq!(report["peers"][0]["supersedes"], false, "{report}");
    assert!(report["superseded"].is_null(), "{report}");
}

#[test]
fn forks_and_those_that_were_let_go_are_no_successors() {
    let site = Site::new();
    let [old, new, fork] =
        ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(Pg::embedded("18")).build());
    new.enslave(&old, &[]);
    // Known as a follower until it goes its own way
    fork.enslave(&old, &[]);
    fork.agent(&["fork", "--confirm", "db.2"]).stdin(old.blurb()).run().ok();
    assert_eq!(fork.timeline(), 2);
    let names = |host: &Host| -> Vec<String> {
        let report = host.agent(&["--json", "peers"]).run().json();
        report["peers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|peer| peer["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&old), ["db.1"]);
    assert_eq!(names(&new), ["db.0"]);
    assert_eq!(names(&fork), [""; 0]);
    old.stop();
    starts(&old).says_not("read-only");
    old.exec("CREATE TABLE still_a_primary ()");
}
