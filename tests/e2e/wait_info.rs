//! `pgmahout wait`, `info` and `config`: what they say of primaries, standbys and stopped servers.

use crate::common::*;
use serde_json::Value;
use std::time::Duration;

fn info(host: &Host) -> Value {
    host.agent(&["--json", "info"]).run().json()
}

#[test]
fn wait_returns_when_caught_up() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    standby.exec("SELECT pg_wal_replay_pause()");
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 200000) AS n");
    let lsn = primary.one("SELECT pg_current_wal_lsn()");

    // Behind, with replay paused: it waits as long as it may, and says how far.
    let late = standby.agent(&["wait", "--timeout", "2"]).run();
    assert_eq!(late.code, 1, "{late:?}");
    assert!(
        late.elapsed >= Duration::from_secs(2) && late.elapsed < Duration::from_secs(60),
        "{:?}",
        late.elapsed
    );
    let late = late.says("bytes behind after 2 s");
    assert!(late.stderr.ends_with("hint: run `pgmahout wait` again to wait longer\n"), "{late:?}");

    let waiting = standby.agent(&["--json", "wait", "--timeout", "60"]).spawn();
    std::thread::sleep(Duration::from_millis(500));
    standby.exec("SELECT pg_wal_replay_resume()");
    let done = waiting.wait().json();
    assert_eq!(done["role"], "standby", "{done}");
    assert_eq!(standby.one(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn")), "t");
    let target = done["target"].as_str().unwrap();
    assert_eq!(primary.one(&format!("SELECT '{target}'::pg_lsn >= '{lsn}'::pg_lsn")), "t", "{done}");
    standby.agent(&["wait"]).run().ok().says("db.1 has caught up");
}

#[test]
fn wait_on_a_primary_and_on_a_server_that_does_not_run() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    host.agent(&["wait"]).run().ok().says("db.0 is a primary and accepts connections");
    host.stop();
    let output = host.agent(&["wait", "--timeout", "3"]).run();
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.elapsed < Duration::from_secs(60), "{:?}", output.elapsed);
}

#[test]
fn wait_when_the_primary_is_gone_is_for_what_was_received() {
    let (primary, standby) = pair(Pg::embedded("18"));
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    standby.enslave(&primary, &[]);
    wait_replayed(&primary, &standby);
    primary.crash();
    standby.agent(&["wait", "--timeout", "20"]).run().ok().says("the primary could not be asked");
}

#[test]
fn info_of_a_primary_with_its_standby() {
    for major in ["10", "12", "18"] {
        let (primary, standby) = pair(Pg::embedded(major));
        primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
        standby.enslave(&primary, &[]);
        wait_replayed(&primary, &standby);
        until("the standby's answer has arrived", 10, || {
            primary.one("SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication") == "t"
        });
        // An idle primary: its last commit grows older, and the lag is zero all the same.
        std::thread::sleep(Duration::from_millis(1200));

        let of_primary = info(&primary);
        assert_eq!(of_primary["role"], "primary", "{of_primary}");
        assert_eq!(of_primary["instance"], "db.0");
        assert_eq!(of_primary["timeline"], 1);
        assert_eq!(of_primary["checksums"], true);
        assert_eq!(
            of_primary["system_id"].to_string().trim_matches('"'),
            primary.system_identifier().to_string()
        );
        assert!(of_primary["version"].as_str().unwrap().starts_with(major), "{of_primary}");
        assert!(of_primary["size_bytes"].as_i64().unwrap() > 1_000_000, "{of_primary}");
        assert_eq!(of_primary["connections"]["limit"], 30);
        assert_eq!(of_primary["data_directory"], primary.data.display().to_string());
        assert_eq!(of_primary["followers"].as_array().unwrap().len(), 1, "{of_primary}");
        assert_eq!(of_primary["followers"][0]["name"], "db.1");
        assert_eq!(of_primary["followers"][0]["state"], "streaming");
        assert_eq!(of_primary["followers"][0]["lag_bytes"], 0);
        assert_eq!(of_primary["slots"][0]["name"], "pgmahout_db_1");
        assert_eq!(of_primary["slots"][0]["active"], true);
        assert!(of_primary["slots"][0]["retained_bytes"].as_i64().unwrap() < 100_000_000, "{of_primary}");

        // Whoever reads a page first on the primary may write a hint bit's WAL.
        until("nothing is under way", 20, || info(&standby)["following"]["lag"]["bytes"] == 0);
        let of_standby = info(&standby);
        assert_eq!(of_standby["role"], "standby", "{of_standby}");
        assert_eq!(of_standby["timeline"], 1);
        assert_eq!(of_standby["following"]["primary"], format!("127.0.0.1:{}", primary.port));
        assert_eq!(of_standby["following"]["streaming"], true);
        assert_eq!(of_standby["following"]["reachable"], true);
        assert!(of_standby["following"]["lag"]["bytes"].is_u64(), "{of_standby}");
        standby.agent(&["info"]).run().ok().says("standby").says_not(&standby.password);
        // The primary writes a little on its own now and then.
        until("it says so in words", 10, || standby.agent(&["info"]).run().stdout.contains(", no lag\n"));

        // Behind: bytes and seconds.
        let (pause, resume) = ("SELECT pg_wal_replay_pause()", "SELECT pg_wal_replay_resume()");
        standby.exec(pause);
        primary.exec("INSERT INTO t VALUES (7)");
        primary.exec("INSERT INTO t VALUES (8)");
        std::thread::sleep(Duration::from_millis(1500));
        let behind = info(&standby);
        assert!(behind["following"]["lag"]["bytes"].as_i64().unwrap() > 0, "{behind}");
        standby.exec(resume);
        wait_replayed(&primary, &standby);

        // The primary dies: the standby says so and what it knows.
        primary.crash();
        until("the receiver has noticed", 20, || {
            standby.one("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "0"
        });
        let alone = info(&standby);
        assert_eq!(alone["role"], "standby");
        assert_eq!(alone["following"]["streaming"], false, "{alone}");
        assert_eq!(alone["following"]["reachable"], false, "{alone}");
    }
}

#[test]
fn info_of_a_slot_that_nobody_uses_says_what_it_retains() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    standby.stop();
    noise(&primary, 20);
    until("the sender is gone", 10, || primary.one("SELECT active FROM pg_replication_slots") == "f");
    let report = info(&primary);
    assert_eq!(report["slots"][0]["active"], false, "{report}");
    assert!(report["slots"][0]["retained_bytes"].as_i64().unwrap() > 15_000_000, "{report}");
    primary.agent(&["info"]).run().ok().says("pgmahout_db_1, inactive, retains");
    assert_eq!(report["followers"].as_array().unwrap().len(), 0, "{report}");
}

#[test]
fn info_of_a_stopped_server_and_of_no_cluster() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).stopped().build();
    let report = info(&host);
    assert_eq!(report["role"], "stopped", "{report}");
    assert_eq!(report["version"].as_str().map(|v| v.starts_with("18")), Some(true), "{report}");
    assert_eq!(report["timeline"], 1);
    let empty = site.host("db.1").pg(Pg::embedded("18")).without_data().build();
    assert_eq!(info(&empty)["role"], "empty");
    // A server that lets nobody in: what the files tell, and why there is no more.
    host.start();
    host.account.write(&host.home.join("password"), "not the one\n", 0o600);
    let report = info(&host);
    assert!(report["problem"].as_str().unwrap().contains("does not accept the password"), "{report}");
}

#[test]
fn config_says_where_every_value_is_from() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).stopped().build();
    let all = host.agent(&["--json", "config"]).env("PGMAHOUT_CONNECT_TIMEOUT", "7").run().json();
    let of = |name: &str| -> &Value {
        all.as_array().unwrap().iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("{name}: {all}"))
    };
    assert_eq!(of("connect_timeout")["value"], "7");
    assert!(of("connect_timeout")["origin"].to_string().contains("PGMAHOUT_CONNECT_TIMEOUT"), "{all}");
    assert_eq!(of("instance")["value"], "db.0");
    assert!(of("instance")["origin"].to_string().contains("pgmahout.yml"), "{all}");
    assert_eq!(of("data_directory")["value"], host.data.display().to_string());
    let flag = host.agent(&["--json", "config", "--data-directory", "/elsewhere"]).run().json();
    let directory = flag.as_array().unwrap().iter().find(|s| s["name"] == "data_directory").unwrap().clone();
    assert_eq!(directory["value"], "/elsewhere");
    assert!(directory["origin"].to_string().contains("flag"), "{directory}");
    let text = host.agent(&["config"]).run().ok().stdout;
    for name in [
        "instance",
        "data_directory",
        "bin_directory",
        "port",
        "user",
        "password_file",
        "service",
        "ssh_known_hosts",
        "state_directory",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{text}");
    }
    assert!(!text.contains(&host.password));
}

#[test]
fn a_job_that_is_about_to_begin_is_waited_for() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let file = host.home.join(".pgmahout/job.json");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let record = |started: u64| {
        let text = format!(
            r#"{{"verb":"enslave","source":"db.9","pid":0,"started":{started},"step":"starting","done":0,"total":0,"error":null}}"#
        );
        host.account.write(&file, text, 0o600);
    };
    host.agent(&["info"]).run().ok();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    record(now);
    let output = host.agent(&["wait", "--timeout", "1"]).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("the copy in the background is not done after 1 s");
    record(now - 60);
    let output = host.agent(&["wait", "--timeout", "1"]).run();
    assert_eq!(output.code, 5, "{output:?}");
    output.says("was ended before it was done");
}
