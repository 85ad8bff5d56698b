//! `pgmahout backup capture` and `backup restore`, killed at every boundary.

use crate::common::*;
use crate::scene::*;

fn names(directory: &std::path::Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

/// A store, a source with something in it, and another instance that has the same store.
fn source_and_victim() -> (Host, Host, std::path::PathBuf) {
    let site = Site::new();
    let store = site.directory.join("store");
    account().mkdir(&store, 0o700);
    let at = store.display().to_string();
    let [source, victim] =
        ["db.0", "db.1"].map(|name| site.host(name).pg(Pg::embedded("18")).yml("store", &at).build());
    noise(&source, 2);
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    source.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    (source, victim, store)
}

#[test]
fn a_physical_capture() {
    let (source, _, store) = source_and_victim();
    let arguments = vec!["backup", "capture", "--physical"];
    let command = Command { here: &source, arguments, stdin: String::new(), there: None };
    let expected = [
        "backup.started",
        "capture.begun",
        "capture.copied",
        "backup.stopped",
        "capture.written",
        "capture.stored",
        "capture.listed",
    ];
    let points = command.points(&expected, &[]);
    let undisturbed = Traces::of(&source);
    for point in &points {
        names(&store).iter().for_each(|name| std::fs::remove_file(store.join(name)).unwrap());
        source.exec("DROP TABLE IF EXISTS journal");
        let journal = Journal::start(&source);
        command.killed_at(point);
        primary_is_clean(&source, &[]);
        no_agents(&[&source]);
        let listed = source.agent(&["--json", "backup", "list"]).run().json().as_array().unwrap().len();
        assert_eq!(listed, usize::from(point.is("capture.listed")), "after {point}");
        command.again();
        assert_eq!(names(&store).iter().filter(|name| name.ends_with(".json")).count(), listed + 1);
        // Whole bytes whose manifest never came stay for a day: they may be another instance's. Half of them never do.
        let orphans = names(&store).len() - 2 * (listed + 1);
        assert_eq!(orphans, usize::from(point.is("capture.stored")), "after {point}: {:?}", names(&store));
        assert!(names(&store).iter().all(|name| name.starts_with('b')), "{:?}", names(&store));
        let all = source.agent(&["--json", "backup", "list"]).run().json();
        for backup in all.as_array().unwrap() {
            source.agent(&["backup", "verify", backup["id"].as_str().unwrap()]).run().ok();
        }
        let acknowledged = journal.stop();
        assert_eq!(source.one("SELECT max(n) FROM journal"), acknowledged.to_string());
        assert_eq!(Traces::of(&source), undisturbed, "after {point}");
    }
}

#[test]
fn a_physical_restore() {
    restore(half(0));
}

#[test]
fn a_physical_restore_the_other_half() {
    restore(half(1));
}

fn restore(only: impl Fn(&Point) -> bool) {
    let (source, victim, _) = source_and_victim();
    source.agent(&["backup", "capture", "--physical"]).run().ok();
    victim.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    let system = victim.system_identifier();
    let saved = Saved::of(&victim);
    let arguments = vec!["backup", "restore", "b001", "--confirm", "db.1"];
    let command = Command { here: &victim, arguments, stdin: String::new(), there: None };
    let expected = [
        "restore.preparing",
        "restore.prepared",
        "restore.block",
        "restore.unpacked",
        "restore.settling",
        "restore.hidden-started",
        "restore.recovered",
        "restore.settled",
        "restore.synced",
        "server.stopped",
        "place.exchanging",
        "place.exchanged",
        "mark.removed",
        "place.kept",
        "restore.in-place",
        "server.started",
        "restore.running",
        "restore.note-removed",
    ];
    let points = command.points(&expected, &[]);
    let undisturbed = Traces::of(&victim);
    let is_restored = |host: &Host| {
        assert_eq!(host.one("SELECT sum(n) FROM t"), "500500");
        assert!(!host.is_standby());
    };
    let (mut old, mut new) = (0, 0);
    for point in points.iter().filter(|point| only(point)) {
        saved.put_back(&victim);
        command.killed_at(point);
        let is_old = std::cell::Cell::new(false);
        let found = look_at(&victim, |host| {
            is_old.set(host.system_identifier() == system);
            match is_old.get() {
                true => assert_eq!(host.one("SELECT n FROM old_cluster"), "42"),
                false => is_restored(host),
            }
        });
        assert_eq!(found, Found::Cluster, "after {point}");
        old += usize::from(is_old.get());
        new += usize::from(!is_old.get());
        command.again();
        is_restored(&victim);
        amcheck(&victim, &victim);
        no_agents(&[&victim]);
        assert_eq!(Traces::of(&victim), undisturbed, "after {point}");
    }
    assert!(old > 3 && new > 2, "{old} times the old cluster, {new} times the new one");
    primary_is_clean(&source, &[]);
}
