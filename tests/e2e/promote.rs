//! `pgmahout promote`: on a new timeline, never two primaries unasked, nothing lost behind a fence, and
//! no obstacle when the old primary is dead.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// A primary with a standby that streams from it.
fn couple(pg: Pg) -> (Host, Host) {
    let (primary, standby) = pair(pg);
    primary.exec("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 100)");
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    (primary, standby)
}

const CONFIRM_HINT: &str =
    "stop it first: --fence with its blurb on stdin; or promote all the same with --confirm db.1";

#[test]
fn a_dead_primary_is_no_obstacle() {
    for major in ["10", "11", "18"] {
        let (primary, standby) = couple(Pg::embedded(major));
        let last = standby.one("SELECT pg_last_wal_replay_lsn()");
        primary.crash();
        let output = standby.agent(&["promote"]).run().ok();
        assert!(output.elapsed < Duration::from_secs(60), "{:?}", output.elapsed);
        output.says(&last);
        assert!(!standby.is_standby());
        assert_eq!(standby.timeline(), 2);
        standby.exec("INSERT INTO t VALUES (1000)");
        assert!(standby.log().contains("selected new timeline ID: 2"), "{}", standby.log());

        // Again: nothing to do, and nothing done.
        let before = snapshot(&standby);
        let again = standby.agent(&["--json", "promote"]).run().json();
        assert_eq!(again["already"], true, "{again}");
        standby.agent(&["unfollow"]).run().ok();
        before.assert_unchanged(&standby);
        assert_eq!(standby.timeline(), 2);
    }
}

#[test]
fn a_primary_that_hangs_does_not_hold_it_up() {
    let (primary, standby) = couple(Pg::embedded("18"));
    let postmaster = primary.postmaster().unwrap();
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let output = standby.agent(&["promote"]).run();
    kill(postmaster, Signal::SIGCONT).unwrap();
    let output = output.ok();
    assert!(output.elapsed < Duration::from_secs(60), "{:?}", output.elapsed);
    assert!(!standby.is_standby());
}

#[test]
fn a_primary_that_lets_nobody_in_but_still_commits_is_alive() {
    let (primary, standby) = couple(Pg::embedded("18"));
    let postmaster = primary.postmaster().unwrap();
    let journal = Journal::start(&primary);
    until("it is written to", 10, || standby.one("SELECT to_regclass('journal') IS NOT NULL") == "t");
    kill(postmaster, Signal::SIGSTOP).unwrap();
    let output = standby.agent(&["promote"]).run();
    let was_standby = standby.is_standby();
    kill(postmaster, Signal::SIGCONT).unwrap();
    journal.stop();
    assert!(was_standby, "there were two primaries: {output:?}");
    assert_eq!(output.code, 3, "{output:?}");
    output.says("(it sends new commits) still answers and is writable");
}

#[test]
fn the_report_says_the_last_position_and_its_age() {
    let (primary, standby) = couple(Pg::debian15());
    // Only what was streamed has a time; the rows of before came with the copy.
    primary.exec("INSERT INTO t VALUES (1000)");
    wait_replayed(&primary, &standby);
    let last = primary.one("SELECT pg_current_wal_lsn()");
    primary.stop();
    let done = standby.promote(&[]);
    assert_eq!(done["already"], false);
    assert_eq!(done["timeline"], 2);
    assert_eq!(done["old_primary"], "unreachable", "{done}");
    assert!(done["last_commit_age"].as_f64().unwrap() >= 0.0, "{done}");
    let reached = format!("SELECT '{}'::pg_lsn >= '{last}'::pg_lsn", done["last_lsn"].as_str().unwrap());
    assert_eq!(standby.one(&reached), "t", "{done}, the primary ended after {last}");
}

#[test]
fn two_primaries_only_when_confirmed() {
    let (primary, standby) = couple(Pg::embedded("18"));
    let before = (snapshot(&primary), snapshot(&standby));
    let text = format!(
        "the old primary at 127.0.0.1:{} still answers and is writable: there would be two primaries",
        primary.port
    );
    standby.agent(&["promote"]).run().fails(3, &text, CONFIRM_HINT);
    standby.agent(&["--json", "promote"]).run().fails_json(3, &text, Some(CONFIRM_HINT));
    standby.agent(&["promote", "--confirm", "db.0"]).run().fails(3, &text, CONFIRM_HINT);
    before.0.assert_unchanged(&primary);
    before.1.assert_unchanged(&standby);
    assert_streams(&primary, &standby);

    let done = standby.promote(&["--confirm", "db.1"]);
    assert_eq!(done["old_primary"], "running", "{done}");
    assert!(!standby.is_standby() && !primary.is_standby());
    assert_eq!(standby.timeline(), 2);
}

#[test]
fn on_a_terminal_the_name_is_typed() {
    let (primary, standby) = couple(Pg::embedded("15"));
    let wrong = standby.agent(&["promote"]).terminal(&[("db.1", "yes\n")]);
    assert_eq!(wrong.code, 3, "{wrong:?}");
    assert!(standby.is_standby());
    let ended = standby.agent(&["promote"]).terminal(&[("db.1", "\u{4}")]);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(standby.is_standby());
    assert_streams(&primary, &standby);
    let right = standby.agent(&["promote"]).terminal(&[("db.1", "db.1\n")]);
    assert_eq!(right.code, 0, "{right:?}");
    assert!(!standby.is_standby());
}

#[test]
fn a_fence_stops_the_old_primary_and_loses_nothing() {
    for major in ["11", "18"] {
        let (primary, standby) = couple(Pg::embedded(major));
        let journal = Journal::start(&primary);
        let bench = {
            Pgbench::initialise(&primary, 1);
            Pgbench::start(&primary)
        };
        std::thread::sleep(Duration::from_millis(500));
        let done = standby.agent(&["--json", "promote", "--fence"]).stdin(primary.blurb()).run().json();
        let acknowledged = journal.stop();
        drop(bench);
        assert_eq!(done["old_primary"], "fenced", "{done}");
        assert!(!primary.is_running());
        assert_eq!(primary.control_state(), 1, "the old primary was not shut down cleanly");
        let have: u64 = standby.one("SELECT max(n) FROM journal").parse().unwrap();
        assert!(have >= acknowledged, "row {acknowledged} was acknowledged, {have} is the last one here");
        assert_eq!(standby.timeline(), 2);
        // It can follow without a copy.
        let back = primary.enslave(&standby, &[]);
        assert_eq!(back["plan"]["action"], "repoint", "{back}");
    }
}

#[test]
fn who_was_fenced_for_one_is_not_fenced_or_started_for_another() {
    let (primary, first) = couple(Pg::embedded("18"));
    let second = primary.site.host("db.2").pg(Pg::embedded("18")).build();
    second.enslave(&primary, &[]);
    wait_replayed(&primary, &second);
    first.agent(&["promote", "--fence"]).stdin(primary.blurb()).run().ok();
    first.exec("INSERT INTO t VALUES (1000)");
    let text =
        "db.0 was stopped for db.1 already, which may be the primary now: there would be two primaries";
    let output = second.agent(&["promote", "--fence"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 3, "{output:?}");
    output.says(text);
    assert!(second.is_standby(), "there are two primaries");
    let output = primary.agent(&["fence", "--undo", "--successor", "db.2"]).run();
    assert_eq!(output.code, 3, "{output:?}");
    output.says(text);
    assert!(!primary.is_running(), "there are two primaries");
    // Nor does a plan start it, which a kill had interrupted before
    primary.account.write(&primary.data.join(".pgmahout-plan-undo"), r#"{"plan":null,"settings":{}}"#, 0o600);
    let output = primary.agent(&["plan", "dev"]).stdin("work_mem = 2MB\n").run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("stays down");
    assert!(!primary.is_running(), "there are two primaries");
    // By the one that it was stopped for, it is
    primary.agent(&["fence", "--undo", "--successor", "db.1"]).run().ok();
    assert!(primary.is_running());
}

#[test]
fn a_follower_of_one_is_no_follower_of_its_twin() {
    let (primary, one) = couple(Pg::embedded("18"));
    let twin = primary.site.host("db.2").pg(Pg::embedded("18")).build();
    twin.enslave(&primary, &[]);
    wait_replayed(&primary, &twin);
    wait_replayed(&primary, &one);
    primary.crash();
    let (first, second) = (one.promote(&[]), twin.promote(&[]));
    assert_eq!((&first["timeline"], &first["last_lsn"]), (&second["timeline"], &second["last_lsn"]));
    let follower = primary.site.host("db.3").pg(Pg::embedded("18")).build();
    follower.enslave(&one, &[]);
    one.exec("CREATE TABLE only_here AS SELECT generate_series(1, 10)");
    wait_replayed(&one, &follower);
    twin.exec("CREATE TABLE only_there AS SELECT generate_series(1, 20000)");
    let output = follower.agent(&["enslave"]).stdin(twin.blurb()).run();
    assert_eq!(output.code, 3, "{output:?}");
    output.says("--confirm db.3");
    assert_streams(&one, &follower);
}

#[test]
fn a_fence_with_info_from_a_file() {
    let (primary, standby) = couple(Pg::embedded("15"));
    standby.account.write(&standby.home.join("old"), primary.blurb(), 0o600);
    standby.agent(&["promote", "--fence", "--info", "old"]).run().ok();
    assert!(!primary.is_running() && !standby.is_standby());
}

#[test]
fn a_fence_of_the_wrong_machine_is_taken_back() {
    let (primary, standby) = couple(Pg::embedded("15"));
    let stranger = primary.site.host("db.9").pg(Pg::embedded("15")).build();
    let before = (snapshot(&primary), snapshot(&standby));
    let output = standby.agent(&["promote", "--fence"]).stdin(stranger.blurb()).run();
    assert_eq!(output.code, 2, "{output:?}");
    output.says("is not the primary of this standby");
    assert!(stranger.is_running(), "the stranger was stopped");
    assert!(standby.is_standby());
    before.0.assert_unchanged(&primary);
    before.1.assert_unchanged(&standby);
    assert_streams(&primary, &standby);
}

#[test]
fn a_fence_whose_wal_does_not_arrive_is_taken_back() {
    let (primary, standby) = couple(Pg::embedded("15"));
    // The receiver cannot connect any more, so the last WAL cannot arrive.
    primary.hba("reject");
    primary.reload();
    primary.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    primary.exec("INSERT INTO t VALUES (1000)");
    let output = standby.agent(&["promote", "--fence", "--timeout", "3"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("but that did not arrive here within 3 s; nothing was promoted");
    assert!(standby.is_standby(), "promoted without the last commits");
    assert!(primary.is_running(), "the old primary was not started again");
    primary.exec("INSERT INTO t VALUES (1001)");
}

#[test]
fn a_fence_that_does_not_answer() {
    let (primary, mut standby) = couple(Pg::embedded("15"));
    let closed = free_port();
    let before = snapshot(&standby);
    let output = standby.agent(&["promote", "--fence"]).stdin(primary.blurb_at(closed, primary.port)).run();
    assert_eq!(output.code, 4, "{output:?}");
    before.assert_unchanged(&standby);
    let output = standby.agent(&["promote", "--fence"]).stdin("").run();
    assert_eq!(output.code, 2, "{output:?}");
    standby.stop_sshd();
}

#[test]
fn inherited_synchronous_standby_names_are_warned_of() {
    let (primary, standby) = couple(Pg::embedded("18"));
    primary.exec("ALTER SYSTEM SET synchronous_standby_names = 'somebody'; ");
    std::fs::copy(primary.data.join("postgresql.auto.conf"), standby.home.join("theirs")).unwrap();
    primary.exec("ALTER SYSTEM RESET synchronous_standby_names");
    standby.exec("ALTER SYSTEM SET synchronous_standby_names = 'somebody'");
    standby.reload();
    primary.crash();
    let done = standby.promote(&[]);
    let warnings = done["warnings"].to_string();
    assert!(warnings.contains("synchronous_standby_names") && warnings.contains("ALTER SYSTEM"), "{done}");
}

#[test]
fn paused_replay_is_gone_through() {
    let (primary, standby) = couple(Pg::embedded("15"));
    standby.exec("SELECT pg_wal_replay_pause()");
    primary.exec("INSERT INTO t SELECT generate_series(1, 50)");
    until("it was received", 20, || {
        let lsn = primary.one("SELECT pg_current_wal_lsn()");
        standby.one(&format!("SELECT pg_last_wal_receive_lsn() >= '{lsn}'")) == "t"
    });
    primary.crash();
    standby.promote(&[]);
    assert_eq!(standby.one("SELECT count(*) FROM t"), "150");
}

#[test]
fn a_stopped_instance_and_one_that_never_followed() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let before = snapshot(&host);
    let done = host.promote(&[]);
    assert_eq!(done["already"], true, "{done}");
    before.assert_unchanged(&host);
    host.stop();
    let before = snapshot(&host);
    host.agent(&["promote"]).run().fails(
        1,
        "the server of db.0 does not run",
        "start it first; its log tells why it ended",
    );
    before.assert_unchanged(&host);
}
