//! `pgmahout enslave` over a cluster that has parted from the source, or was left behind, where the WAL of both sides
//! tells which blocks can differ.

use crate::common::*;
use pgmahout::postgres::changes::{Change, Changes, Relation, Stretch};
use pgmahout::postgres::wal::{Lsn, Timeline};
use std::collections::HashSet;
use std::sync::Arc;

/// Everything that changes files in a way of its own: rows, truncation, relations that come and go and are rewritten,
/// indexes, databases, large objects, two-phase commits, transactions that are rolled back.
fn turmoil(host: &Host, tag: &str) {
    host.exec(&format!(
        "UPDATE noise SET id = -id WHERE id % 97 = 0; DELETE FROM noise WHERE id % 89 = 0; \
         TRUNCATE emptied; INSERT INTO emptied SELECT generate_series(1, 3000); \
         DROP TABLE IF EXISTS dropped; CREATE TABLE dropped AS SELECT generate_series(1, 20000) AS n, '{tag}' AS t; \
         CREATE INDEX ON dropped (n); UPDATE shrunk SET n = n + 1; DELETE FROM shrunk WHERE n > 100; \
         ALTER TABLE rewritten ADD COLUMN IF NOT EXISTS m int DEFAULT 7; \
         INSERT INTO indexed SELECT g, md5(g::text || '{tag}') FROM generate_series(1, 5000) g; \
         DELETE FROM indexed WHERE n % 3 = 0; SELECT lo_from_bytea(0, '\\x0102')"
    ));
    for sql in
        ["VACUUM FULL rewritten", "VACUUM indexed", "VACUUM shrunk", "REINDEX TABLE indexed", "CHECKPOINT"]
    {
        host.exec(sql);
    }
    host.exec(&format!(
        "BEGIN; INSERT INTO indexed VALUES (-1, '{tag}'); CREATE TABLE never (n int); ROLLBACK"
    ));
    host.exec(&format!("BEGIN; INSERT INTO indexed VALUES (-2, '{tag}'); PREPARE TRANSACTION '{tag}'"));
    host.exec(&format!("COMMIT PREPARED '{tag}'"));
    until("nobody is connected to the database that goes", 60, || {
        let of = "FROM pg_stat_activity WHERE datname IN ('other', 'logged')";
        host.exec(&format!("SELECT pg_terminate_backend(pid) {of}"));
        host.one(&format!("SELECT count(*) {of}")) == "0"
    });
    host.exec("DROP DATABASE IF EXISTS other");
    if host.pg.major >= 15 {
        host.exec("CREATE DATABASE other TEMPLATE template0 STRATEGY file_copy");
        host.exec("DROP DATABASE IF EXISTS logged");
        host.exec("CREATE DATABASE logged TEMPLATE template0 STRATEGY wal_log");
    } else {
        host.exec("CREATE DATABASE other TEMPLATE template0");
    }
    host.exec_in("other", &format!("CREATE TABLE t AS SELECT generate_series(1, 999) AS n, '{tag}' AS t"));
    // Read, so that hints are set.
    host.exec("SELECT count(*) FROM noise; SELECT count(*) FROM indexed WHERE n < 100");
}

fn tables(host: &Host) {
    noise(host, 24);
    host.exec(
        "CREATE TABLE emptied AS SELECT generate_series(1, 90000) AS n; \
         CREATE TABLE shrunk AS SELECT generate_series(1, 90000) AS n; \
         CREATE TABLE rewritten AS SELECT generate_series(1, 9000) AS n; \
         CREATE TABLE indexed (n int, t text); CREATE INDEX ON indexed (n); CREATE INDEX ON indexed USING gin (to_tsvector('simple', t)); \
         CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 9000) AS n",
    );
    host.exec("CHECKPOINT");
}

fn pair_of(pg: Pg, more: impl Fn(HostBuilder) -> HostBuilder) -> (Arc<Site>, Host, Host) {
    let site = Site::new();
    // Two thirds of a gigabyte: all of a test.
    let (keep, much) = if pg.major < 13 { ("wal_keep_segments", "40") } else { ("wal_keep_size", "640MB") };
    let host = |name: &str| {
        let host = site.host(name).pg(pg.clone()).setting("max_prepared_transactions", "5");
        more(host.setting(keep, much)).build()
    };
    let (first, second) = (host("db.0"), host("db.1"));
    (site, first, second)
}

fn number(done: &serde_json::Value, name: &str) -> u64 {
    done["copied"][name].as_u64().unwrap_or_else(|| panic!("{done}"))
}

#[track_caller]
fn is_known_by(done: &serde_json::Value, by: &str) {
    assert_eq!(
        (&done["plan"]["action"], &done["copied"]["known_by"]),
        (&"delta".into(), &by.into()),
        "{done}"
    );
    let (all, passed_over) = (number(done, "bytes"), number(done, "passed_over_bytes"));
    assert!(passed_over > all / 4, "{done}");
}

/// The old primary was killed, wrote on when it came back, and so did the new one.
fn parted(first: &Host, second: &Host) {
    tables(first);
    second.enslave(first, &[]);
    turmoil(first, "common");
    wait_replayed(first, second);
    second.exec("CHECKPOINT");
    first.crash();
    second.agent(&["promote"]).run().ok();
    turmoil(second, "second");
    first.start();
    turmoil(first, "first");
}

fn comes_back(first: &Host, second: &Host, flags: &[&str]) -> serde_json::Value {
    let done = first.enslave(second, &[&["--plan", "delta", "--confirm", "db.0"], flags].concat());
    assert_streams(second, first);
    compare(second, first);
    amcheck(second, first);
    done
}

fn an_old_primary_comes_back(pg: Pg, more: impl Fn(HostBuilder) -> HostBuilder) {
    let (_site, first, second) = pair_of(pg, more);
    parted(&first, &second);
    first.crash();
    let done = comes_back(&first, &second, &[]);
    is_known_by(&done, "wal");
    // What it is now can be promoted, and the other come back behind it.
    turmoil(&second, "third");
    wait_replayed(&second, &first);
    first.agent(&["promote", "--fence"]).stdin(second.blurb()).run().ok();
    turmoil(&first, "fourth");
    second.enslave(&first, &[]);
    assert_streams(&first, &second);
    compare(&first, &second);
    amcheck(&first, &second);
}

#[test]
fn an_old_primary_comes_back_on_11() {
    an_old_primary_comes_back(Pg::embedded("11"), |host| host);
}

#[test]
fn an_old_primary_comes_back_on_15() {
    an_old_primary_comes_back(Pg::debian15(), |host| host);
}

#[test]
fn an_old_primary_comes_back_on_18() {
    let hints = |host: HostBuilder| host.initdb_arg("--no-data-checksums").setting("wal_log_hints", "on");
    an_old_primary_comes_back(Pg::embedded("18"), hints);
}

#[test]
fn what_the_wal_does_not_tell_is_compared() {
    let (_site, first, second) = pair_of(Pg::embedded("18"), |host| host.initdb_arg("--no-data-checksums"));
    parted(&first, &second);
    let arguments = ["enslave", "--plan", "delta", "--confirm", "db.0"];
    // Hints of the old primary's own time may be on any page.
    let run = first.agent(&arguments).stdin(second.blurb()).run().ok();
    run.says("everything is compared: it has neither checksums nor wal_log_hints");
    compare(&second, &first);
    // A standby that was promoted, and one that nobody trusts.
    second.stop();
    first.agent(&["promote"]).run().ok();
    second.start();
    turmoil(&first, "alone");
    let run = first.agent(&arguments).stdin(second.blurb()).run().ok();
    run.says("everything is compared: it was promoted");
    compare(&second, &first);
    amcheck(&second, &first);
}

#[test]
fn paranoid_compares_everything() {
    let (_site, first, second) = pair_of(Pg::embedded("18"), |host| host);
    parted(&first, &second);
    let done = comes_back(&first, &second, &["--paranoid"]);
    assert_eq!(
        (&done["copied"]["known_by"], number(&done, "passed_over_bytes")),
        (&serde_json::Value::Null, 0)
    );
}

/// The WAL that the standby would need is gone; the summaries of it are not.
#[test]
fn a_standby_that_was_left_behind_is_brought_up_by_the_summaries() {
    let (_site, primary, standby) =
        pair_of(Pg::embedded("18"), |host| host.setting("summarize_wal", "on").setting("wal_keep_size", "0"));
    tables(&primary);
    standby.enslave(&primary, &[]);
    turmoil(&primary, "common");
    wait_replayed(&primary, &standby);
    standby.exec("CHECKPOINT");
    standby.stop();
    primary.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    let end = primary.one("SELECT pg_current_wal_lsn()");
    turmoil(&primary, "alone");
    until("the WAL is summarized, and gone", 120, || {
        primary.exec("INSERT INTO emptied VALUES (1)");
        primary.exec("SELECT pg_switch_wal()");
        primary.exec("CHECKPOINT");
        let gone = format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = pg_walfile_name('{end}')");
        primary.one(&gone) == "0"
    });
    let done = standby.enslave(&primary, &[]);
    is_known_by(&done, "summaries");
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    amcheck(&primary, &standby);
}

/// What is read out of the WAL here holds all that PostgreSQL's own summarizer finds in it.
fn agrees_with_the_summaries(pg: Pg) {
    let (_site, host, _other) = pair_of(pg, |host| host.setting("summarize_wal", "on"));
    tables(&host);
    let row = |sql: &str| -> Lsn { host.one(sql).parse().unwrap() };
    let from = row("SELECT redo_lsn FROM pg_control_checkpoint()");
    turmoil(&host, "one");
    turmoil(&host, "two");
    let to = row("SELECT redo_lsn FROM pg_control_checkpoint()");
    until("the WAL is summarized", 120, || {
        host.exec("CHECKPOINT");
        row("SELECT summarized_lsn FROM pg_get_wal_summarizer_state()") >= to
    });
    let version: u32 = host.one("SELECT current_setting('server_version_num')").parse().unwrap();
    let size: u32 =
        host.one("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").parse().unwrap();
    let stretch = Stretch { version, timeline: Timeline(1), segment_size: size, from, to: Some(to) };
    let mut changes = Changes::new(pgmahout::postgres::version::PgVersion::from_num(version)).unwrap();
    stretch.read(&host.data.join("pg_wal"), &mut changes, || Ok(())).unwrap().unwrap();
    let mut ours = HashSet::new();
    changes
        .each(|change| {
            ours.insert(format!("{change:?}"));
            Ok::<_, ()>(())
        })
        .unwrap();

    let summarized = host.sql().query(
        "SELECT relfilenode::int8, reltablespace::int8, reldatabase::int8, relblocknumber, is_limit_block \
         FROM pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) \
         WHERE relforknumber = 0 AND s.start_lsn::text::pg_lsn >= $1::text::pg_lsn AND s.end_lsn <= $2::text::pg_lsn",
        &[&from.to_string(), &to.to_string()],
    ).unwrap();
    assert!(summarized.len() > 500, "{}", summarized.len());
    let (mut limits, mut databases) = (0, 0);
    for row in &summarized {
        let number = |n: usize| row.get::<_, i64>(n) as u32;
        let relation = Relation { number: number(0), tablespace: number(1), database: number(2) };
        let change = match row.get::<_, bool>(4) {
            true if relation.number == 0 => Change::Database(relation.database),
            true => Change::From(relation, number(3)),
            false => Change::Block(relation, number(3)),
        };
        limits += usize::from(matches!(change, Change::From(..)));
        databases += usize::from(matches!(change, Change::Database(_)));
        assert!(ours.contains(&format!("{change:?}")), "{change:?} is in a summary, and was not read");
    }
    assert!(limits > 3 && databases > 0, "{limits} {databases}");
    // And hardly more: what lies between two summaries, and what was limited afterwards.
    assert!(ours.len() < summarized.len() * 2, "{} {}", ours.len(), summarized.len());
}

#[test]
fn what_is_read_is_what_postgresql_summarizes_on_17() {
    agrees_with_the_summaries(Pg::embedded("17"));
}

#[test]
fn what_is_read_is_what_postgresql_summarizes_on_18() {
    agrees_with_the_summaries(Pg::embedded("18"));
}
