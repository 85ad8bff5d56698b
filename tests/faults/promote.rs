//! `pgmahout promote`, `promote --fence` and `fork`, killed at every boundary, on either side.

use crate::common::*;
use crate::scene::*;

/// A primary with a standby that streams from it; both begin every round anew.
fn couple() -> (Host, Host) {
    let (primary, standby) = pair(Pg::embedded("18"));
    noise(&primary, 1);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    (primary, standby)
}

/// The standby streams again, after both were put back.
fn streams_again(primary: &Host, standby: &Host) {
    assert_streams(primary, standby);
}

/// What was acknowledged is all there, on a primary whose tables and indexes are sound.
#[track_caller]
fn has_all(host: &Host, acknowledged: u64) {
    assert!(!host.is_standby(), "{} is no primary", host.name);
    let rows: u64 = host.one("SELECT count(*) FROM journal").parse().unwrap();
    // The last commit may have been made without anybody being told.
    assert!((acknowledged..=acknowledged + 1).contains(&rows), "{rows} of {acknowledged}");
    assert_eq!(host.one("SELECT max(n) FROM journal"), rows.to_string());
    assert_eq!(host.one("SELECT count(*) FROM noise"), "512");
    host.exec("INSERT INTO journal VALUES (0)");
    amcheck(host, host);
}

#[test]
fn a_promotion_after_the_primary_has_died() {
    let (primary, standby) = couple();
    let (first, second) = (Saved::of(&primary), Saved::of(&standby));
    let command =
        Command { here: &standby, arguments: vec!["promote"], stdin: String::new(), there: Some(&primary) };
    primary.crash();
    let expected = ["promote.ending", "promote.asking", "promote.asked", "promote.ended"];
    let points = command.points(&expected, &[]);
    let undisturbed = Traces::of(&standby);
    for point in &points {
        first.put_back(&primary);
        second.put_back(&standby);
        streams_again(&primary, &standby);
        let journal = Journal::start(&primary);
        until("the journal is written", 10, || primary.one("SELECT count(*) > 20 FROM journal") == "t");
        let acknowledged = journal.stop();
        // What it had acknowledged and not sent is lost with it, as PostgreSQL has it: that is what a fence is for.
        wait_replayed(&primary, &standby);
        primary.crash();

        command.killed_at(point);
        assert_eq!(
            look_at(&standby, |host| assert_ne!(host.one("SELECT max(n) FROM journal"), "")),
            Found::Cluster
        );
        command.again();
        has_all(&standby, acknowledged);
        assert_eq!(standby.timeline(), 2, "it was promoted once, whoever asked");
        no_agents(&[&primary, &standby]);
        assert_eq!(Traces::of(&standby), undisturbed, "after {point}");
    }
}

/// The roles change. There are never two primaries, and what the old one acknowledged up to its stop is there.
#[test]
fn a_switchover() {
    let (primary, standby) = couple();
    let (first, second) = (Saved::of(&primary), Saved::of(&standby));
    let command = Command {
        here: &standby,
        arguments: vec!["promote", "--fence"],
        stdin: primary.blurb(),
        there: Some(&primary),
    };
    let here = ["promote.fencing", "promote.fenced", "promote.received", "promote.ending", "promote.asked"];
    let there = ["fence.writing", "server.stopping", "server.stopped", "fence.answering", "file.renamed"];
    let points = command.points(&here, &there);
    let undisturbed = (Traces::of(&primary), Traces::of(&standby));
    for point in &points {
        first.put_back(&primary);
        second.put_back(&standby);
        streams_again(&primary, &standby);
        let journal = Journal::start(&primary);
        until("the journal is written", 10, || primary.one("SELECT count(*) > 20 FROM journal") == "t");

        let killed = command.killed_at(point);
        let writes = |host: &Host| host.is_running() && !host.is_standby();
        assert!(!(writes(&primary) && writes(&standby)), "two primaries after {point}: {killed:?}");
        if killed.code == 1 || killed.code == 4 {
            // Whoever could not go on has taken back what it did, or says that it could not.
            let is_told = killed.stderr.contains("could not be started again");
            assert!(primary.is_running() || is_told, "nobody says that the old primary is down: {killed:?}");
        }
        // The standby of one that was started again connects anew within five seconds. A fence before that would wait for
        // the last WAL in vain, and be taken back when its time is over.
        if primary.is_running() {
            assert_streams(&primary, &standby);
        }
        command.again();
        let acknowledged = journal.stop();
        has_all(&standby, acknowledged);
        assert!(!primary.is_running(), "the old primary runs after {point}");
        assert_eq!(standby.timeline(), 2);
        no_agents(&[&primary, &standby]);
        assert_eq!((Traces::of(&primary), Traces::of(&standby)), undisturbed, "after {point}");
        // And it becomes a standby of its successor.
        primary.enslave(&standby, &[]);
        assert_streams(&standby, &primary);
        compare(&standby, &primary);
    }
}

#[test]
fn a_fork() {
    fork(half(0));
}

#[test]
fn a_fork_the_other_half() {
    fork(half(1));
}

fn fork(only: impl Fn(&Point) -> bool) {
    let (source, fork) = pair(Pg::embedded("18"));
    noise(&source, 1);
    source.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    fork.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    let system = fork.system_identifier();
    let saved = Saved::of(&fork);
    let command = Command {
        here: &fork,
        arguments: vec!["fork", "--confirm", "db.1"],
        stdin: source.blurb(),
        there: Some(&source),
    };
    let expected = [
        "fork.noted",
        "copy.copied",
        "place.exchanged",
        "enslave.streaming",
        "fork.caught-up",
        "promote.asked",
        "fork.promoted",
        "fork.forgotten",
        "fork.untied",
        "fork.note-removed",
        "slot.dropped",
    ];
    let points = command.points(&expected, &["source.opened", "source.sent"]);
    let undisturbed = (Traces::of(&source), Traces::of(&fork));
    for point in points.iter().filter(|point| only(point)) {
        saved.put_back(&fork);
        as_if_never_followed(&source);
        let journal = Journal::start(&source);
        until("the journal is written", 10, || source.one("SELECT count(*) > 5 FROM journal") == "t");
        let killed = command.killed_at(point);
        no_agents(&[&source, &fork]);
        no_slot_but(&source, &[SLOT]);
        look_at(&fork, |host| {
            if host.system_identifier() == system {
                assert_eq!(host.one("SELECT n FROM old_cluster"), "42");
            } else {
                assert_eq!(host.one("SELECT count(*) FROM noise"), "512");
            }
        });
        let before: u64 = source.one("SELECT max(n) FROM journal").parse().unwrap();
        let is_over = fork.is_running() && fork.system_identifier() != system && !fork.is_standby();
        if killed.code != 0 {
            command.again();
        }
        let acknowledged = journal.stop();
        let has: u64 = fork.one("SELECT max(n) FROM journal").parse().unwrap();
        // One that was promoted before the kill has what was there then.
        assert!(has >= if is_over { 5 } else { before }, "{has} of {before} after {point}");
        assert!(has <= acknowledged + 1);
        assert_eq!(fork.one("SELECT count(*) FROM journal"), has.to_string(), "without a gap");
        assert!(!fork.is_standby());
        fork.exec("INSERT INTO journal VALUES (0)");
        amcheck(&fork, &fork);
        primary_is_clean(&source, &[]);
        assert_eq!((Traces::of(&source), Traces::of(&fork)), undisturbed, "after {point}");
    }
}
