//! Many at once: what one machine with the defaults of its sshd bears.

use crate::common::*;

/// sshd's own default hangs up on some of those who come while ten others are about to log in.
#[test]
fn twenty_standbys_of_one_primary_at_once() {
    const STANDBYS: usize = 20;
    let site = Site::new();
    let mut primary = site
        .host("db.0")
        .pg(Pg::embedded("18"))
        .setting("max_wal_senders", "50")
        .setting("max_replication_slots", "50")
        .setting("max_connections", "200")
        .build();
    primary.stop_sshd();
    primary.sshd_extra = "MaxStartups 10:30:100\n".into();
    primary.start_sshd();
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let standbys: Vec<Host> = (1..=STANDBYS)
        .map(|n| site.host(&format!("db.{n}")).pg(Pg::embedded("18")).without_data().build())
        .collect();

    let runs: Vec<Running> = standbys
        .iter()
        .map(|standby| standby.agent(&["--json", "enslave"]).stdin(primary.blurb()).limit(5).spawn())
        .collect();
    let done: Vec<Output> = runs.into_iter().map(Running::wait).collect();

    for output in done {
        let report = output.json();
        assert_eq!(report["plan"]["action"], "full", "{report}");
    }
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    until("all of them stream", 30, || primary.one(streaming) == STANDBYS.to_string());
    for standby in &standbys {
        wait_replayed(&primary, standby);
        assert_eq!(standby.one("SELECT sum(n) FROM t"), "500500");
    }
    let mut names: Vec<String> = (1..=STANDBYS).map(|n| format!("pgmahout_db_{n}")).collect();
    names.sort();
    primary_is_clean(&primary, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let known = primary.agent(&["--json", "peers"]).run().json();
    assert_eq!(known["peers"].as_array().unwrap().len(), STANDBYS, "{known}");
}

/// Holes take no room on either side, so what counts is the room that is taken and not the size.
#[test]
fn a_table_that_is_larger_than_the_disk_and_mostly_a_hole() {
    const GB: u64 = 1 << 30;
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    let first = primary.data.join(primary.one("SELECT pg_relation_filepath('t')"));
    primary.stop();
    for segment in [first.clone(), first.with_extension("1")] {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&segment).unwrap();
        file.set_len(GB).unwrap();
        account().own(&segment);
    }
    primary.start();
    let disk = SmallDisk::mount(&site, "disk", 400);
    let standby =
        site.host("db.1").pg(Pg::embedded("18")).data(&disk.path.join("data")).without_data().build();

    for arguments in [&[][..], &["--plan", "delta", "--paranoid"]] {
        let report = standby.enslave(&primary, arguments);
        assert!(report["copied"]["bytes"].as_u64().unwrap() > 2 * GB, "{report}");
        assert_streams(&primary, &standby);
        assert_eq!(standby.one("SELECT pg_relation_size('t')"), (2 * GB).to_string());
        assert_eq!(standby.one("SELECT n FROM t LIMIT 1"), "1");
        standby.stop();
        primary.exec("UPDATE t SET n = 1 WHERE ctid = '(0,1)'");
    }
}
