//! `pgmahout enslave`, killed at every boundary of each of its plans, on either side.

use crate::common::*;
use crate::scene::*;

/// What every copy passes.
const COPY: &[&str] = &[
    "enslave.planned",
    "server.stopping",
    "server.stopped",
    "backup.starting",
    "backup.started",
    "copy.preparing",
    "copy.prepared",
    "copy.listed",
    "copy.part",
    "copy.copied",
    "backup.stopping",
    "backup.stopped",
    "copy.syncing",
    "copy.synced",
    "slot.kept",
    "copy.completing",
    "copy.completed",
    "file.written",
    "file.renamed",
    "mark.removed",
    "server.starting",
    "server.started",
    "enslave.streaming",
    "enslave.done",
];

const SOURCE: &[&str] = &["source.opened", "source.listed", "source.sent"];

/// Whatever of this cluster there was before the command.
enum Before {
    /// Another cluster, with a table of its own.
    Other(u64),
    /// Another cluster, as initdb has made it.
    Fresh(u64),
    /// A standby of the same primary.
    Standby,
}

/// A cluster of this host is the old one, whole, or a standby.
fn old_or_standby(host: &Host, primary: &Host, before: &Before) {
    match before {
        Before::Other(system) if host.system_identifier() == *system => {
            assert_eq!(host.one("SELECT n FROM old_cluster"), "42");
            return;
        }
        Before::Fresh(system) if host.system_identifier() == *system => return,
        _ => assert_eq!(host.system_identifier(), primary.system_identifier(), "a third cluster"),
    }
    assert!(host.is_standby(), "a copy was started as a primary");
    assert_ne!(host.one("SELECT count(*) FROM noise"), "0");
}

/// Kills it at every point, and has it completed by the same command. Gives how often it could not be started meanwhile.
#[track_caller]
fn each_point(
    primary: &Host,
    standby: &Host,
    command: &Command,
    before: &Before,
    expected: &[&str],
    there: &[&str],
    only: impl Fn(&Point) -> bool,
) -> usize {
    let begin = std::time::Instant::now();
    let saved = Saved::of(standby);
    // As in every round.
    as_if_never_followed(primary);
    let points = command.points(expected, there);
    let undisturbed = (Traces::of(primary), Traces::of(standby));
    let (mut rounds, mut unfinished) = (0, 0);
    for point in points.iter().filter(|point| only(point)) {
        saved.put_back(standby);

        as_if_never_followed(primary);
        let journal = Journal::start(primary);
        command.killed_at(point);

        no_agents(&[primary, standby]);
        no_slot_but(primary, &[SLOT]);
        let found = look_at(standby, |host| old_or_standby(host, primary, before));
        unfinished += usize::from(found == Found::Unfinished);

        command.again();
        follows(primary, standby, journal);
        primary_is_clean(primary, &[SLOT]);
        let mut left = (Traces::of(primary), Traces::of(standby));
        if let Before::Fresh(_) = before {
            // Who finds an old cluster that nobody has judged keeps it.
            left.1.forget("data.pgmahout-old-*");
        }
        assert_eq!(left, undisturbed, "after {point}");
        rounds += 1;
    }
    eprintln!("{rounds} rounds in {:?}, {unfinished} times nothing that starts was left", begin.elapsed());
    assert!(rounds > 0);
    unfinished
}

fn source_and_target(pg: Pg) -> (Host, Host) {
    let (primary, standby) = pair(pg);
    noise(&primary, 4);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    (primary, standby)
}

/// The old cluster has data and is moved aside.
fn full_and_kept(pg: Pg, only: impl Fn(&Point) -> bool) {
    let pg_copies_no_slots = pg.major < 12;
    let (primary, standby) = source_and_target(pg);
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    let before = Before::Other(standby.system_identifier());
    let command = Command::enslave(&standby, &primary, &["--confirm", "db.1"]);
    let mut expected =
        [COPY, &["copy.created", "place.exchanging", "place.exchanged", "place.kept"]].concat();
    if pg_copies_no_slots {
        expected.retain(|name| *name != "slot.kept");
    }
    each_point(&primary, &standby, &command, &before, &expected, SOURCE, only);
}

#[test]
fn a_full_copy_over_a_cluster_that_is_kept() {
    full_and_kept(Pg::embedded("18"), half(0));
}

#[test]
fn a_full_copy_over_a_cluster_that_is_kept_the_other_half() {
    full_and_kept(Pg::embedded("18"), half(1));
}

/// Exclusive backups are gone since, slots cannot be copied, and a standby is told by recovery.conf.
#[test]
fn a_full_copy_on_11() {
    let differs = [
        "slot.created",
        "backup.started",
        "file.renamed",
        "slot.dropped",
        "copy.completed",
        "place.exchanged",
    ];
    full_and_kept(Pg::embedded("11"), |point| differs.iter().any(|name| point.is(name)));
}

/// The old cluster has nothing that anybody has made, and is removed.
#[test]
fn a_full_copy_over_a_fresh_cluster() {
    let (primary, standby) = source_and_target(Pg::embedded("18"));
    let before = Before::Fresh(standby.system_identifier());
    let command = Command::enslave(&standby, &primary, &[]);
    let own = ["place.exchanged", "place.removing", "place.removed"];
    let expected = [COPY, &own].concat();
    let only = |point: &Point| own.iter().any(|name| point.is(name));
    each_point(&primary, &standby, &command, &before, &expected, SOURCE, only);
}

/// What cannot be exchanged is emptied first, and cannot start from then on.
#[test]
fn a_full_copy_into_a_mount_point() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&primary, 4);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    let disk = SmallDisk::mount(&site, "disk", 300);
    std::fs::set_permissions(&disk.path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let standby = site.host("db.1").pg(Pg::embedded("18")).data(&disk.path).build();
    let before = Before::Fresh(standby.system_identifier());
    let command = Command::enslave(&standby, &primary, &[]);
    let own = [
        "copy.control-removed",
        "copy.emptying",
        "copy.prepared",
        "copy.part",
        "copy.completing",
        "copy.completed",
    ];
    let expected = [COPY, &own].concat();
    let only = |point: &Point| own.iter().chain(&["file.renamed", "mark.removed"]).any(|name| point.is(name));
    let unfinished = each_point(&primary, &standby, &command, &before, &expected, SOURCE, only);
    assert!(unfinished >= 5, "something started although it was not complete");
    drop(standby);
}

/// The standby was left behind: what differs is written over it, in its place.
fn delta(pg: Pg, only: impl Fn(&Point) -> bool) {
    let (primary, standby) = source_and_target(pg);
    standby.enslave(&primary, &[]);
    standby.stop();
    until("the slot is nobody's", 30, || {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        primary.exec(drop);
        primary.one("SELECT count(*) FROM pg_replication_slots") == "0"
    });
    primary.exec("UPDATE noise SET id = -id WHERE id % 3 = 0; CREATE TABLE later AS SELECT generate_series(1, 9000) AS n");
    // Checkpoints remove what is older than the one before.
    for _ in 0..3 {
        primary.exec("CREATE TABLE IF NOT EXISTS passing (n int); INSERT INTO passing VALUES (1)");
        primary.exec("SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
    }
    standby.start();
    let command = Command::enslave(&standby, &primary, &["--plan", "delta"]);
    let expected = [COPY, &["copy.control-removed"]].concat();
    let unfinished = each_point(&primary, &standby, &command, &Before::Standby, &expected, SOURCE, only);
    assert!(unfinished >= 5, "something started although it was not complete");
}

#[test]
fn a_delta() {
    delta(Pg::embedded("18"), half(0));
}

#[test]
fn a_delta_the_other_half() {
    delta(Pg::embedded("18"), half(1));
}

/// A standby that was stopped for a while follows its primary again.
#[test]
fn a_repoint_of_a_stopped_standby() {
    let (primary, standby) = source_and_target(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    standby.stop();
    let command = Command::enslave(&standby, &primary, &[]);
    let expected = [
        "slot.created",
        "repoint.writing",
        "repoint.written",
        "server.starting",
        "server.started",
        "enslave.done",
    ];
    each_point(&primary, &standby, &command, &Before::Standby, &expected, &["source.opened"], |_| true);
}

/// A standby of a standby is told to follow the primary itself, while it runs; its slot on the other goes.
#[test]
fn a_repoint_of_a_running_standby() {
    let site = Site::new();
    let [primary, between, standby] =
        ["db.0", "db.2", "db.1"].map(|name| site.host(name).pg(Pg::embedded("18")).build());
    noise(&primary, 1);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    between.enslave(&primary, &[]);
    standby.enslave(&between, &["--cascade"]);
    standby.stop();
    let command = Command::enslave(&standby, &primary, &[]);
    standby.start();
    let expected =
        ["slot.created", "repoint.written", "repoint.reloaded", "enslave.streaming", "enslave.done"];
    let before = || {
        let slots = between.column("postgres", "SELECT slot_name FROM pg_replication_slots");
        if slots.is_empty() {
            between.exec("SELECT pg_create_physical_replication_slot('pgmahout_db_1', true)");
        }
    };
    let saved = Saved::of(&standby);
    let points = command.points(&expected, &["source.opened"]);
    let undisturbed = (Traces::of(&primary), Traces::of(&standby));
    let both = ["pgmahout_db_1", "pgmahout_db_2"];
    primary_is_clean(&primary, &both);
    primary_is_clean(&between, &[]);
    for point in &points {
        saved.put_back(&standby);
        before();
        until("nobody holds its slot", 20, || {
            primary
                .one("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgmahout_db_1' AND active")
                == "0"
        });
        primary.exec(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'pgmahout_db_1'",
        );
        primary.exec("DROP TABLE IF EXISTS journal");
        until("it streams from the one between", 20, || {
            between.one("SELECT count(*) FROM pg_replication_slots WHERE active") == "1"
        });
        let journal = Journal::start(&primary);
        command.killed_at(point);
        no_agents(&[&primary, &standby]);
        no_slot_but(&primary, &both);
        assert_eq!(
            look_at(&standby, |host| old_or_standby(host, &primary, &Before::Standby)),
            Found::Cluster
        );
        command.again();
        follows(&primary, &standby, journal);
        primary_is_clean(&primary, &both);
        primary_is_clean(&between, &[]);
        assert_eq!((Traces::of(&primary), Traces::of(&standby)), undisturbed, "after {point}");
    }
}
