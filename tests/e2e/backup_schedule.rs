//! `pgmahout backup schedule`, `auto` and `check`: the schedule lies in the cluster, so that a standby knows it and goes
//! on with it when it is promoted; against real servers.

use crate::common::shelf::{now, objects, set_verified, shelve};
use crate::common::*;
use nix::sys::signal::Signal;

const DAY: i64 = 86_400;

/// When the night began that is the current one: backup_time is 03:00.
fn tonight() -> i64 {
    (now() - 3 * 3600).div_euclid(DAY) * DAY + 3 * 3600
}

fn says(host: &Host, arguments: &[&str]) -> String {
    host.agent(&[&["backup"], arguments].concat()).run().ok().stdout
}

/// Exit code and line of `backup check`.
fn check(host: &Host, arguments: &[&str]) -> (i32, String) {
    let output = host.agent(&[&["backup", "check"], arguments].concat()).run();
    assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
    assert!(!output.stderr.contains("pgmahout: "), "{output:?}");
    (output.code, output.stdout.trim().to_owned())
}

#[test]
fn the_schedule_replicates_and_its_new_primary_takes_over() {
    for major in ["11", "15", "18"] {
        let (primary, standby) = pair(Pg::embedded(major));
        primary.exec("CREATE TABLE t AS SELECT 1 AS n");
        standby.enslave(&primary, &[]);
        assert_eq!(says(&primary, &["schedule"]), "db.0: the schedule is off\n");
        assert!(says(&primary, &["auto"]).starts_with("nothing to do: the schedule is off"), "{major}");

        let on = says(&primary, &["schedule", "auto-month"]);
        assert!(
            on.starts_with(
                "db.0: auto-month, every night from 03:00 UTC on; kept are 7 daily, 5 weekly, 10 by hand\n"
            ),
            "{on}"
        );
        wait_replayed(&primary, &standby);
        let report = standby.agent(&["--json", "backup", "schedule"]).run().json();
        assert_eq!((report["plan"].as_str(), report["standby"].as_bool()), (Some("auto-month"), Some(true)));
        let refused = standby.agent(&["backup", "schedule", "off"]).run();
        refused.fails(
            1,
            &format!(
                "db.1 is a standby: its schedule of backups is that of its primary, 127.0.0.1:{}",
                primary.port
            ),
            "run the command on the primary",
        );
        let idle = says(&standby, &["auto", "--dry-run"]);
        let whose =
            format!("db.1 is a standby: the backups are for its primary to take, 127.0.0.1:{}", primary.port);
        assert_eq!(idle, format!("nothing to do: {whose}\n"));
        assert_eq!(check(&standby, &[]), (0, format!("OK: {whose}")));
        let (code, text) = check(&standby, &["--max-age", "26"]);
        assert!(code == 1 && text.starts_with("NONE: there is no good backup"), "{text}");

        // Its own store is empty: it is due at once. The old one is fenced, and leaves it alone.
        shelve(&primary, "a001", "postgres", tonight() + 1, b"tonight's");
        assert!(says(&primary, &["auto", "--dry-run"]).contains("postgres: not before "), "{major}");
        standby.agent(&["promote", "--fence"]).stdin(primary.blurb()).run().ok();
        let due = says(&standby, &["auto", "--dry-run"]);
        assert_eq!(due, "postgres: would be backed up: there is no scheduled backup yet\n", "{major}");
        let idle = says(&primary, &["auto"]);
        assert!(idle.starts_with("nothing to do: db.0 is fenced: "), "{idle}");
        let (code, text) = check(&primary, &[]);
        assert!(code == 0 && text.starts_with("OK: db.0 is fenced: "), "{text}");

        assert_eq!(says(&standby, &["schedule", "off"]), "db.1: the schedule is off\n");
        let left = standby.one("SELECT setconfig FROM pg_db_role_setting");
        assert!(
            left.starts_with("{pgmahout.lineage=") && !left.contains(','),
            "whose backups they are stays: {left}"
        );
    }
}

#[test]
fn a_fork_does_not_take_the_schedule_along() {
    for major in ["11", "18"] {
        let (source, fork) = pair(Pg::embedded(major));
        source.exec("ALTER DATABASE postgres SET work_mem = '5MB'");
        says(&source, &["schedule", "auto-week"]);
        let output = fork.agent(&["fork"]).stdin(source.blurb()).run().ok();
        output.says(
            "warning: the schedule of backups (auto-week) is the source's and was not taken along; `pgmahout backup \
             schedule auto-week` turns it on here",
        );
        assert_eq!(says(&fork, &["schedule"]), "db.1: the schedule is off\n");
        assert!(says(&source, &["schedule"]).starts_with("db.0: auto-week, "));
        assert_eq!(
            fork.one("SELECT setconfig FROM pg_db_role_setting"),
            "{work_mem=5MB}",
            "what else was set stays"
        );
        assert!(says(&fork, &["schedule", "auto-week"]).contains("kept are 7 daily, 1 weekly, 5 by hand"));
    }
}

/// A fork has its source's system identifier, and so has a standby; only the standby's backups are one with the
/// primary's.
#[test]
fn in_one_bucket_a_fork_leaves_its_sources_backups_alone_and_a_promoted_standby_goes_on_with_them() {
    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("kept");
    let hosts = ["db.0", "db.1", "db.2"].map(|name| {
        let host = site.host(name).pg(Pg::debian15()).yml("backup_keep_daily", "1");
        let host = host.yml("backup_keep_weekly", "0").yml("backup_verify_days", "0");
        s3.yml("kept", "shop").iter().fold(host, |host, (name, value)| host.yml(name, value)).build()
    });
    let [source, fork, standby] = &hosts;
    let auto = |host: &Host, words: &[&str]| {
        host.agent(&[&["backup", "auto"], words].concat()).s3().run().ok().stdout
    };
    source.exec("CREATE TABLE t AS SELECT 1 AS n");
    says(source, &["schedule", "auto-month"]);
    assert!(auto(source, &[]).contains("a001"));
    // A bit that the disk flipped is said once; what is known by others is not done again.
    let last = source.home.join(".pgmahout/backup-last.json");
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[60] ^= 1;
    source.account.write(&last, bytes, 0o600);
    let again = source.agent(&["backup", "auto"]).s3().run().ok();
    assert!(again.stderr.contains("backup-last.json: it is damaged: its checksum is wrong"), "{again:?}");
    assert!(!again.stdout.contains("a002") && !auto(source, &[]).contains("a002"), "{again:?}");
    assert!(!source.agent(&["backup", "auto"]).s3().run().ok().stderr.contains("damaged"));
    fork.agent(&["fork"]).stdin(source.blurb()).run().ok();
    standby.enslave(source, &[]);
    says(fork, &["schedule", "auto-month"]);

    let none = fork.agent(&["backup", "check"]).s3().run();
    assert!(none.code == 1 && none.stdout.starts_with("NONE: "), "{none:?}");
    let silent =
        fork.agent(&["backup", "check"]).s3().env("PGMAHOUT_STORE_ENDPOINT", "http://127.0.0.1:9").run();
    assert!(silent.code == 1 && silent.stdout.starts_with("FAILED: could not reach "), "{silent:?}");
    assert_eq!(silent.stdout.lines().count(), 1);
    let taken = auto(fork, &[]);
    assert!(taken.contains("a002") && !taken.contains("a001"), "{taken}");
    let names = |host: &Host| {
        let list = host.agent(&["--json", "backup", "list"]).s3().run().json();
        list.as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(fork), ["a001", "a002"], "either has a night's of its own");
    source.agent(&["backup", "auto"]).s3().env("PGMAHOUT_STORE_ENDPOINT", "http://127.0.0.1:9").run();
    let check = || source.agent(&["backup", "check"]).s3().run();
    assert!(check().stdout.starts_with("FAILED: last try at "), "{:?}", check());
    auto(source, &[]);
    assert_eq!(check().code, 0, "nothing is missing: {:?}", check());
    let again = auto(source, &["--dry-run"]);
    assert!(again.contains("not before") && !again.contains("a002"), "{again}");

    standby.agent(&["promote", "--fence"]).stdin(source.blurb()).run().ok();
    let on = auto(standby, &["--dry-run"]);
    assert!(on.contains("not before") && on.contains("a001") && !on.contains("a002"), "{on}");
}

#[test]
fn settings_win_over_the_plan_and_what_runs_it_is_printed() {
    let site = Site::new();
    let host = site.host("db.0").yml("backup_keep_weekly", "12").yml("backup_time", "23:45").build();
    let text = says(&host, &["schedule", "auto-week"]);
    assert!(
        text.starts_with(
            "db.0: auto-week, every night from 23:45 UTC on; kept are 7 daily, 12 weekly, 5 by hand\n\
             set: backup_keep_weekly: 12 ("
        ),
        "{text}"
    );
    // Not under supervisor: it has to be run by something else, and both are ready to be used.
    let report = host.agent(&["--json", "backup", "schedule"]).run().json();
    let install = &report["install"];
    let service = install["service"].as_str().unwrap();
    assert!(service.contains("[Service]") && service.contains(" backup auto\n"), "{service}");
    assert!(service.contains(&format!("--home \"{}\"", host.home.display())), "{service}");
    assert!(install["timer"].as_str().unwrap().contains("Persistent=true"), "{install}");
    // The line's command is one that works, in a directory with a space in its name.
    let cron = install["cron"].as_str().unwrap();
    let command = cron.strip_prefix("*/15 * * * * ").unwrap();
    says(&host, &["schedule", "off"]);
    let output = host.command("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("nothing to do: the schedule is off"),
        "{output:?}"
    );
    assert_eq!(host.agent(&["backup", "schedule", "auto-year"]).run().code, 2);
}

#[test]
fn each_decision_has_its_reason_and_a_dry_run_does_nothing() {
    let host = Site::new().host("db.0").build();
    host.exec("CREATE DATABASE \"the shop\"");
    host.exec("CREATE DATABASE blog");
    host.exec("CREATE DATABASE closed ALLOW_CONNECTIONS false");
    says(&host, &["schedule", "auto-month"]);
    let since = tonight();
    for (id, database, at) in [
        ("a001", "blog", since - 200 * DAY),
        ("a002", "blog", since - 2 * DAY),
        ("a003", "blog", since - 2 * DAY + 60),
        ("a004", "blog", since + 1),
        ("b001", "blog", since - 300 * DAY),
    ] {
        shelve(&host, id, database, at, id.as_bytes());
    }
    let before = objects(&host);
    let text = says(&host, &["auto", "--dry-run"]);
    for line in [
        "blog: not before ".to_owned(),
        "the shop: would be backed up: there is no scheduled backup yet\n".to_owned(),
        "a002 would be removed: a later one of the same day is kept, a003\n".to_owned(),
        "a004 kept: newest of ".to_owned(),
        "b001 kept: among the newest 10 by hand\n".to_owned(),
        "a004 is to be verified: no backup has been verified yet".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} in\n{text}");
    }
    assert!(!text.contains("closed") && !text.contains("postgres:") && !text.contains("template"), "{text}");
    assert_eq!(objects(&host), before);
    assert!(!host.home.join(".pgmahout/backup-last.json").exists());
    // postgres itself holds something now.
    host.exec("CREATE TABLE t (n int)");
    assert!(says(&host, &["auto", "-n"]).contains("postgres: would be backed up"), "postgres");
    host.stop();
    assert_eq!(says(&host, &["auto"]), "nothing to do: the server of db.0 does not run\n");
}

#[test]
fn check_is_one_line_and_an_exit_code() {
    let host = Site::new().host("db.0").build();
    let place = host.home.join("backups").display().to_string();
    let none = format!("NONE: there is no good backup of postgres in {place}");
    assert_eq!(check(&host, &[]), (1, format!("{none}, and the schedule is off")));
    says(&host, &["schedule", "auto-month"]);
    assert_eq!(check(&host, &[]), (1, none));

    shelve(&host, "a001", "postgres", now() - 100 * 3600, b"old");
    let (code, text) = check(&host, &[]);
    assert!(
        code == 1
            && text.starts_with("TOO OLD: a001 of postgres, 4 days old, not verified; it may be 26.0 h"),
        "{text}"
    );
    assert_eq!(check(&host, &["--max-age", "200"]).0, 0);
    shelve(&host, "a002", "postgres", now() - 3 * 3600, b"young");
    set_verified(&host, "a001", now() - 5 * DAY, true);
    let (code, text) = check(&host, &[]);
    assert_eq!((code, text.as_str()), (0, "OK: a002 of postgres, 3.0 h old, not verified"));
    set_verified(&host, "a002", now() - 2 * DAY - 10, true);
    assert_eq!(check(&host, &[]).1, "OK: a002 of postgres, 3.0 h old, verified 2 days ago");
    let report = host.agent(&["--json", "backup", "check"]).run().json();
    assert_eq!((report["status"].as_str(), report["id"].as_str()), (Some("ok"), Some("a002")));

    // A bad one is no good one, and that it is bad is said.
    set_verified(&host, "a002", now() - 60, false);
    let (code, text) = check(&host, &[]);
    assert!(code == 1 && text.starts_with("FAILED: verification of a002 at "), "{text}");
    assert!(text.ends_with(": a flipped bit"), "{text}");
    set_verified(&host, "a001", now() - 30, true);
    assert!(check(&host, &[]).1.starts_with("TOO OLD: a001 "), "a later one was good");
    set_verified(&host, "a002", now() - 60, true);

    // What the schedule did last is known after it.
    host.account.mkdir(&host.home.join(".pgmahout"), 0o700);
    let last = |text: String| host.account.write(&host.home.join(".pgmahout/backup-last.json"), text, 0o600);
    let tried = |ok: bool, over: bool, error: &str| {
        format!(
            r#"{{"at":{},"ok":{ok},"failures":2,"pid":{},"over":{over},"error":{error},"databases":["postgres"],"verification":null}}"#,
            now() - 600,
            i32::MAX
        )
    };
    last(tried(false, true, "\"no room left,\\nhint\""));
    let (code, text) = check(&host, &[]);
    assert!(
        code == 1 && text.starts_with("FAILED: last try at ") && text.ends_with(": no room left, hint"),
        "{text}"
    );
    last(tried(false, false, "null"));
    assert!(check(&host, &[]).1.ends_with(": it was ended before it was through"), "killed");
    let whole = tried(true, true, "null");
    last(whole[..100].to_owned());
    let (code, text) = check(&host, &[]);
    assert!(code == 1 && text.contains("/.pgmahout/backup-last.json: it is damaged at line 1"), "{text}");
    last(whole);
    assert_eq!(check(&host, &[]).0, 0);

    // Every database counts; a physical or a future one is what it is.
    host.exec("CREATE TABLE t (n int)");
    host.exec("CREATE DATABASE blog");
    assert_eq!(check(&host, &[]), (1, format!("NONE: there is no good backup of blog in {place}")));
    shelve(&host, "b001", "blog", now() + 40 * DAY, b"set back");
    let (code, text) = check(&host, &[]);
    assert!(code == 1 && text.starts_with("IN THE FUTURE: b001 of blog, of "), "{text}");
    shelve(&host, "b002", "blog", now() - 10, b"now");
    assert_eq!(check(&host, &[]).0, 0);
    // A server that is down does not make backups old.
    host.stop();
    assert_eq!(check(&host, &[]).0, 0);
}

#[test]
fn the_loop_waits_survives_restarts_and_ends_at_once() {
    let site = Site::new();
    // What is shelved is no backup: a verification would find that out.
    let host = |name: &str| site.host(name).yml("backup_verify_days", "0").build();
    let (primary, standby) = (host("db.0"), host("db.1"));
    standby.enslave(&primary, &[]);
    let mut loops =
        [&primary, &standby].map(|host| host.agent(&["backup", "auto", "--loop"]).limit(10).spawn());
    until("it says that it is off", 60, || loops[0].stderr().contains(" UTC the schedule is off\n"));
    until("it says that it is a standby", 60, || {
        loops[1].stderr().contains("db.1 is a standby: the backups are")
    });
    primary.restart();
    assert!(loops.iter_mut().all(Running::is_running));
    shelve(&primary, "a001", "postgres", tonight() + 1, b"tonight's");
    shelve(&primary, "a002", "postgres", tonight() + 2, b"tonight's, again");
    says(&primary, &["schedule", "auto-month"]);
    until("it does its work", 90, || loops[0].stderr().contains("the next backup is due at "));
    assert!(loops[0].stderr().contains("a001 is removed: a later one of the same day is kept, a002\n"));
    assert!(!objects(&primary).iter().any(|name| name.starts_with("a001")), "{:?}", objects(&primary));
    assert_eq!(loops[0].stderr().matches("the schedule is off").count(), 1, "nothing is said twice");

    // Tonight's is in the store that both would have if it were shared; here the standby finds its own.
    shelve(&standby, "a001", "postgres", tonight() + 1, b"tonight's");
    standby.agent(&["promote", "--fence"]).stdin(primary.blurb()).run().ok();
    until("the old one stops", 90, || loops[0].stderr().contains("db.0 is fenced: "));
    until("the new one takes over", 90, || loops[1].stderr().contains("the next backup is due at "));
    for running in loops {
        running.signal(Signal::SIGTERM);
        running.wait().ok();
    }
}
