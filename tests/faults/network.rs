//! Lines between two networks: far, lossy, slow, and cut without a word, in both directions or in one.

use crate::common::*;
use crate::scene::*;
use std::time::Duration;

/// A primary at one end, another cluster at the other. The end of a backup fills a segment of WAL, which travels whole: it
/// is a small one. The line is dropped last.
struct Apart {
    primary: Host,
    standby: Host,
    line: Line,
}

impl Apart {
    fn new() -> Apart {
        let site = Site::new();
        let line = Line::new();
        let primary =
            site.host("db.0").pg(Pg::embedded("18")).at(&line.near).initdb_arg("--wal-segsize=1").build();
        let standby = site.host("db.1").pg(Pg::embedded("18")).at(&line.far).build();
        primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
        standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
        Apart { primary, standby, line }
    }

    fn enslave(&self) -> Command<'_> {
        Command::enslave(&self.standby, &self.primary, &["--confirm", "db.1"])
    }
}

/// Each work has a journal of its own.
fn journal(primary: &Host) -> Journal {
    primary.exec("DROP TABLE IF EXISTS journal");
    Journal::start(primary)
}

/// A full copy, a repoint, a delta and a switchover.
fn everything_works(apart: &Apart) {
    let (primary, standby) = (&apart.primary, &apart.standby);
    let took = |what: &str, output: Output| eprintln!("{what}: {:.1} s", output.elapsed.as_secs_f64());
    let limit = 10;
    let work = journal(primary);
    took("full", apart.enslave().run().limit(limit).run().ok());
    follows(primary, standby, work);

    let work = journal(primary);
    standby.stop();
    took("repoint", standby.agent(&["enslave"]).stdin(primary.blurb()).limit(limit).run().ok());
    follows(primary, standby, work);

    let work = journal(primary);
    let delta = standby.agent(&["enslave", "--plan", "delta"]);
    took("delta", delta.stdin(primary.blurb()).limit(limit).run().ok());
    follows(primary, standby, work);

    let promoted = standby.agent(&["promote", "--fence"]);
    took("switchover", promoted.stdin(primary.blurb()).limit(limit).run().ok());
    assert!(!primary.is_running() && !standby.is_standby());
    standby.exec("CREATE TABLE after_it (n int)");
}

#[test]
fn two_hundred_milliseconds_and_five_of_a_hundred_lost() {
    let apart = Apart::new();
    apart.line.delay(Duration::from_millis(100));
    apart.line.loses(50);
    everything_works(&apart);
}

#[test]
fn one_megabit() {
    let apart = Apart::new();
    apart.line.delay(Duration::from_millis(10));
    apart.line.bits_per_second(1_000_000);
    everything_works(&apart);
}

/// The line is cut where the command passes this boundary. Both ends notice by themselves, each within its limits, and when
/// the line is there again the same command completes.
fn cut_at(boundary: &str, direction: Direction) {
    let apart = Apart::new();
    let Apart { primary, standby, line } = &apart;
    noise(primary, 4);
    // What the kernel takes a quarter of an hour for otherwise: it gives up what is sent and not acknowledged.
    line.near.give_up_after(5);
    // Slow enough that the cut comes before the next step.
    line.delay(Duration::from_millis(20));
    line.bits_per_second(8_000_000);
    let old = standby.system_identifier();
    let command = apart.enslave();
    let journal = Journal::start(primary);
    let running = command.begin(5);
    command.wait_for(boundary);
    line.cut(direction);
    let output = running.wait();
    eprintln!("{boundary}, {direction:?}: {:.0} s, {}", output.elapsed.as_secs_f64(), output.stderr);
    assert!([1, 4].contains(&output.code), "{output:?}");
    assert!(output.elapsed < Duration::from_secs(110), "{output:?}");
    // Once it follows, it is the server's log that tells of the line.
    let names_it = output.stderr.contains(line.near.address);
    assert!(names_it || output.stderr.contains("does not stream"), "{output:?}");
    // One that was copied can be asked when it has the WAL of its backup, which comes over this line.
    if boundary != "server.starting" {
        look_at(standby, |host| match host.system_identifier() == old {
            true => assert_eq!(host.one("SELECT n FROM old_cluster"), "42"),
            false => assert!(host.is_standby(), "a copy was started as a primary"),
        });
    }
    // While the line is still cut.
    until("nobody works for it on the primary any more", 150, || {
        agents(primary).is_empty()
            && primary.one(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE application_name <> 'the test' AND backend_type IN ('client backend', 'walsender')",
            ) == "0"
    });
    no_slot_but(primary, &[SLOT]);

    line.heal();
    command.again();
    follows(primary, standby, journal);
    primary_is_clean(primary, &[SLOT]);
}

#[test]
fn cut_while_it_looks() {
    cut_at("enslave.planned", Direction::Both);
}

#[test]
fn cut_in_the_middle_of_a_copy() {
    cut_at("copy.part", Direction::Both);
}

/// What the standby asks does not arrive any more.
#[test]
fn half_open_towards_the_primary() {
    cut_at("copy.part", Direction::FromFar);
}

/// What the primary answers does not arrive any more.
#[test]
fn half_open_towards_the_standby() {
    cut_at("copy.part", Direction::FromNear);
}

#[test]
fn cut_at_the_end_of_the_copy() {
    cut_at("backup.stopping", Direction::Both);
}

#[test]
fn cut_when_the_standby_starts() {
    cut_at("server.starting", Direction::Both);
}

/// Nobody knows whether the old primary has heard: nothing is promoted unasked, and it says so.
#[test]
fn cut_in_the_middle_of_a_switchover() {
    let apart = Apart::new();
    let Apart { primary, standby, line } = &apart;
    line.near.give_up_after(5);
    line.delay(Duration::from_millis(20));
    apart.enslave().again();
    let command = Command {
        here: standby,
        arguments: vec!["promote", "--fence"],
        stdin: primary.blurb(),
        there: Some(primary),
    };
    let running = command.begin(5);
    command.wait_for("promote.fencing");
    line.cut(Direction::Both);
    let output = running.wait();
    eprintln!("{:.0} s, {}", output.elapsed.as_secs_f64(), output.stderr);
    assert!([1, 4].contains(&output.code), "{output:?}");
    assert!(output.elapsed < Duration::from_secs(150), "{output:?}");
    assert!(output.stderr.contains(line.near.address), "{output:?}");
    assert!(output.stderr.contains("was stopped is not known"), "{output:?}");
    assert!(standby.is_standby(), "it was promoted, and the old primary may run: {output:?}");
    until("nobody works for it on the primary any more", 150, || agents(primary).is_empty());
    line.heal();
    if primary.is_running() {
        assert_streams(primary, standby);
    }
    command.again();
    assert!(!primary.is_running() && !standby.is_standby());
}
