//! The commands about sessions: `ps`, `locks`, `outliers`, `kill`, `psql`, and the library that `outliers` needs.

use crate::common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::thread::JoinHandle;

const OLDEST_AND_NEWEST: [&str; 2] = ["10", "18"];

type Outcome = Result<(), postgres::Error>;

/// A session of its own and its process id.
fn session(host: &Host, database: &str) -> (postgres::Client, i32) {
    let mut client = host.sql_in(database);
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    (client, pid)
}

/// A session that runs `sql` until it ends or is ended; seen to have begun it.
fn busy(host: &Host, database: &str, sql: &'static str) -> (i32, JoinHandle<Outcome>) {
    let (mut client, pid) = session(host, database);
    let thread = std::thread::spawn(move || client.batch_execute(sql));
    let active = format!(
        "SELECT state = 'active' AND query NOT LIKE '%backend_pid%' FROM pg_stat_activity WHERE pid = {pid}"
    );
    until("the statement runs", 10, || host.one(&active) == "t");
    (pid, thread)
}

fn ask(host: &Host, arguments: &[&str]) -> Value {
    host.agent(&[&["--json"], arguments].concat()).run().json()
}

/// The one of these sessions that has this process id.
fn of(sessions: &Value, pid: i32) -> Option<&Value> {
    let mut found = sessions.as_array().unwrap().iter().filter(|session| session["pid"] == pid);
    let first = found.next();
    assert!(found.next().is_none(), "{pid} is there twice: {sessions}");
    first
}

fn pids_of(sessions: &Value) -> Vec<i64> {
    sessions.as_array().unwrap().iter().map(|session| session["pid"].as_i64().unwrap()).collect()
}

fn message(outcome: Outcome) -> String {
    outcome.unwrap_err().as_db_error().map(|e| e.message().to_owned()).unwrap_or_default()
}

#[test]
fn ps_shows_what_the_sessions_do() {
    for major in OLDEST_AND_NEWEST {
        let site = Site::new();
        let host = site.host("db.0").pg(Pg::embedded(major)).build();
        let (mut in_transaction, open) = session(&host, "postgres");
        in_transaction.batch_execute("BEGIN; SELECT 'in it'").unwrap();
        let (mut resting, idle) = session(&host, "template1");
        resting.batch_execute("SELECT 'rests'").unwrap();
        let (sleeper, _thread) =
            busy(&host, "postgres", "SELECT pg_sleep(600), -- PASSWORD 'geheim'\n\t\t'\u{1b}[2J'");

        let report = ask(&host, &["ps"]);
        assert_eq!(report["instance"], "db.0");
        let sessions = &report["sessions"];
        let active = of(sessions, sleeper).unwrap();
        assert_eq!(active["kind"], "client backend", "{active}");
        assert_eq!(active["state"], "active", "{active}");
        assert_eq!(active["source"], "the test", "{active}");
        assert_eq!(active["user"], "dotcloud", "{active}");
        assert_eq!(active["database"], "postgres", "{active}");
        assert_eq!(active["client"], "127.0.0.1", "{active}");
        assert_eq!(active["waiting_on"], "Timeout/PgSleep", "{active}");
        assert_eq!(active["query"], "SELECT pg_sleep(600), -- PASSWORD '***'\n\t\t'\u{1b}[2J'", "{active}");
        let seconds = active["running_seconds"].as_f64().unwrap();
        assert!(seconds > 0.0 && seconds < 60.0, "{active}");
        let waits = of(sessions, open).unwrap();
        assert_eq!(waits["state"], "idle in transaction", "{waits}");
        assert!(waits["running_seconds"].as_f64().unwrap() > seconds, "the older first: {sessions}");
        assert_eq!(waits["waiting_on"], Value::Null, "{waits}");
        assert!(of(sessions, idle).is_none(), "{sessions}");
        let order = pids_of(sessions);
        let place = |pid: i32| order.iter().position(|other| *other == i64::from(pid)).unwrap();
        assert!(place(open) < place(sleeper), "{order:?}");

        let all = ask(&host, &["ps", "--all"]);
        let rests = of(&all["sessions"], idle).unwrap();
        assert_eq!((&rests["state"], &rests["running_seconds"]), (&"idle".into(), &Value::Null), "{rests}");
        assert_eq!(rests["query"], "SELECT 'rests'");
        let others = |session: &Value| session["kind"] == "client backend" && session["source"] != "pgmahout";
        assert!(all["sessions"].as_array().unwrap().iter().all(others), "only clients, never itself: {all}");

        let text = host.agent(&["ps"]).run().ok().says_not("geheim").says_not("\u{1b}").says_not("rests");
        assert!(text.stdout.starts_with("PID "), "{}", text.stdout);
        text.says("SELECT pg_sleep(600), -- PASSWORD '***' '\\u{1b}[2J'").says("Timeout/PgSleep");
    }
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let nobody = host.agent(&["ps"]).run().ok();
    assert_eq!(nobody.stdout, "no client session of db.0 does anything; --all shows idle ones\n");
    assert_eq!(host.agent(&["ps", "-a"]).run().ok().stdout, "db.0 has no client sessions\n");
    host.stop();
    host.agent(&["ps"]).run().fails(
        1,
        "the server of db.0 does not run: there is nothing to connect to",
        "start it; `pgmahout logs` says why it stopped",
    );
}

#[test]
fn locks_shows_who_waits_for_whom_and_what_is_held() {
    for major in OLDEST_AND_NEWEST {
        let site = Site::new();
        let host =
            site.host("db.0").pg(Pg::embedded(major)).setting("max_prepared_transactions", "2").build();
        assert_eq!(
            host.agent(&["locks"]).run().ok().stdout,
            "nobody waits for a lock on db.0\n\nno exclusive locks are held\n"
        );
        host.exec("CREATE DATABASE shop");
        host.exec_in("shop", "CREATE SCHEMA s; CREATE TABLE s.orders AS SELECT generate_series(1, 9) AS n");
        host.exec("CREATE TABLE here AS SELECT 1 AS n");

        let (mut writer, first) = session(&host, "shop");
        writer
            .batch_execute("BEGIN; SAVEPOINT a; UPDATE s.orders SET n = 1 WHERE n = 1; SAVEPOINT b")
            .unwrap();
        writer.batch_execute("UPDATE s.orders SET n = 2 WHERE n = 2; SELECT 'done'").unwrap();
        let (second, _b) = busy(&host, "shop", "UPDATE s.orders SET n = 10 WHERE n = 1");
        let (third, _c) = busy(&host, "shop", "TRUNCATE s.orders");
        host.exec("BEGIN; UPDATE here SET n = 2; PREPARE TRANSACTION 'two'");
        let (fourth, _d) = busy(&host, "postgres", "UPDATE here SET n = 3");
        let (mut holder, fifth) = session(&host, "postgres");
        holder.batch_execute("BEGIN; LOCK TABLE here IN ROW SHARE MODE").unwrap();
        holder.batch_execute("SELECT pg_advisory_lock(7, 8); SELECT pg_advisory_lock(5000000000)").unwrap();
        // Each has got to where it has to wait.
        until("three wait", 10, || host.one("SELECT count(*) FROM pg_locks WHERE NOT granted") == "3");

        let report = ask(&host, &["locks"]);
        let waiting = &report["waiting"];
        assert_eq!(waiting.as_array().unwrap().len(), 3, "{report}");
        let row = of(waiting, second).unwrap();
        assert_eq!(row["lock"]["type"], "transactionid", "{row}");
        assert_eq!(row["lock"]["mode"], "ShareLock", "{row}");
        assert_eq!(row["lock"]["relation"], "s.orders", "{row}");
        let object = row["lock"]["object"].as_str().unwrap();
        assert!(object.starts_with("transaction ") && object.ends_with(" (a row of s.orders)"), "{row}");
        assert_eq!(pids_of(&row["blockers"]), [i64::from(first)], "{row}");
        assert_eq!(row["blockers"][0]["state"], "idle in transaction", "{row}");
        assert!(row["blockers"][0]["query"].as_str().unwrap().contains("'done'"), "{row}");
        assert_eq!(row["query"], "UPDATE s.orders SET n = 10 WHERE n = 1");
        assert!(row["waiting_seconds"].as_f64().is_some_and(|s| s > 0.0 && s < 60.0), "{row}");
        let table = of(waiting, third).unwrap();
        assert_eq!(table["lock"]["object"], "s.orders", "{table}");
        assert_eq!(table["lock"]["mode"], "AccessExclusiveLock", "{table}");
        let blockers = pids_of(&table["blockers"]);
        assert!(blockers.contains(&first.into()) && blockers.contains(&second.into()), "{table}");
        let prepared = of(waiting, fourth).unwrap();
        assert_eq!(prepared["blockers"][0]["kind"], "prepared transaction", "{prepared}");
        assert_eq!(prepared["lock"]["relation"], "here", "of its own database: {prepared}");

        let held = report["held"].as_array().unwrap();
        let by = |pid: i32| held.iter().filter(|held| held["pid"] == pid).collect::<Vec<_>>();
        // Its savepoints are transactions too, and do not count.
        assert_eq!(by(first).len(), 1, "{report}");
        assert_eq!(by(first)[0]["lock"]["type"], "transactionid", "{report}");
        assert!(by(first)[0]["age_seconds"].as_f64().is_some_and(|s| s > 0.0 && s < 60.0), "{report}");
        let objects: Vec<_> = by(fifth).iter().map(|held| held["lock"]["object"].as_str().unwrap()).collect();
        assert_eq!(objects.len(), 2, "a weak lock is not held against anybody: {report}");
        assert!(objects.contains(&"advisory lock 7, 8") && objects.contains(&"advisory lock 5000000000"));
        holder.batch_execute("LOCK TABLE here IN EXCLUSIVE MODE NOWAIT").unwrap_err();
        holder.batch_execute("ROLLBACK; BEGIN; LOCK TABLE pg_database IN EXCLUSIVE MODE").unwrap();
        let report = ask(&host, &["locks"]);
        let shared =
            report["held"].as_array().unwrap().iter().find(|held| held["lock"]["type"] == "relation");
        assert_eq!(shared.unwrap()["lock"]["object"], "pg_database", "{report}");

        let text = host.agent(&["locks"]).run().ok();
        text.says("a prepared transaction (see pg_prepared_xacts)").says("BLOCKED BY").says("pg_database");
        // The way out: without the first, the second goes on.
        ask(&host, &["kill", &first.to_string(), "--force"]);
        until("the second has its lock", 10, || of(&ask(&host, &["locks"])["waiting"], second).is_none());
    }
}

#[test]
fn kill_cancels_a_statement_or_ends_a_session() {
    for major in OLDEST_AND_NEWEST {
        let site = Site::new();
        let host = site.host("db.0").pg(Pg::embedded(major)).build();
        let (pid, thread) = busy(&host, "postgres", "SELECT pg_sleep(600) /* PASSWORD 'geheim' */");
        let report = ask(&host, &["kill", &pid.to_string()]);
        assert_eq!((&report["action"], &report["count"]), (&"cancelled".into(), &1.into()), "{report}");
        assert_eq!(report["sessions"][0]["user"], "dotcloud", "{report}");
        assert_eq!(report["sessions"][0]["query"], "SELECT pg_sleep(600) /* PASSWORD '***' */", "{report}");
        assert_eq!(message(thread.join().unwrap()), "canceling statement due to user request");

        let (pid, thread) = busy(&host, "postgres", "SELECT pg_sleep(600)");
        let done = host.agent(&["kill", &pid.to_string()]).run().ok();
        let expected = format!(
            "cancelled the statement of session {pid} (dotcloud in postgres): SELECT pg_sleep(600)\n"
        );
        assert_eq!(done.stdout, expected);
        thread.join().unwrap().unwrap_err();

        let (mut client, pid) = session(&host, "postgres");
        client.batch_execute("BEGIN").unwrap();
        host.agent(&["kill", &pid.to_string()]).run().fails(
            1,
            &format!("session {pid} runs no statement that could be cancelled: it is idle in transaction"),
            "--force ends the session and the transaction that it may have open",
        );
        assert_eq!(ask(&host, &["kill", &pid.to_string(), "--force"])["action"], "ended");
        assert!(client.batch_execute("SELECT 1").is_err());
        host.agent(&["kill", &pid.to_string(), "-f"]).run().fails(
            1,
            &format!("there is no session {pid}"),
            "`pgmahout ps --all` shows all of them",
        );
        let launcher =
            host.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum launcher'");
        host.agent(&["kill", &launcher, "--force"]).run().fails(
            3,
            &format!("{launcher} is no client session but an autovacuum launcher"),
            "the server needs it; `pgmahout ps --all` shows the client sessions",
        );
        let usage = host.agent(&["kill"]).run();
        assert_eq!(usage.code, 2, "{usage:?}");
        let usage = host.agent(&["kill", "--all", "1"]).run();
        assert_eq!(usage.code, 2, "{usage:?}");
    }
}

#[test]
fn kill_all_takes_every_client_but_itself() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    host.exec("CREATE DATABASE shop");
    let none = host.agent(&["kill", "--all"]).run().ok();
    assert_eq!(none.stdout, "no client session of db.0 runs a statement; --force ends the sessions\n");
    let (mut resting, idle) = session(&host, "shop");
    let (one, first) = busy(&host, "postgres", "SELECT pg_sleep(600)");
    let (two, second) = busy(&host, "shop", "SELECT pg_sleep(600)");
    let report = ask(&host, &["kill", "--all"]);
    assert_eq!(report["count"], 2, "{report}");
    assert!(of(&report["sessions"], one).is_some() && of(&report["sessions"], two).is_some(), "{report}");
    for thread in [first, second] {
        assert_eq!(message(thread.join().unwrap()), "canceling statement due to user request");
    }
    resting.batch_execute("SELECT 1").unwrap();

    let report = ask(&host, &["kill", "--all", "--force"]);
    assert!(of(&report["sessions"], idle).is_some(), "{report}");
    assert!(resting.batch_execute("SELECT 1").is_err());
    assert_eq!(ask(&host, &["ps", "--all"])["sessions"].as_array().unwrap().len(), 0);
    let none = host.agent(&["kill", "--all", "--force"]).run().ok();
    assert_eq!(none.stdout, "db.0 has no other client sessions\n");
}

#[test]
fn kill_says_when_a_session_does_not_stop() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let (pid, thread) = busy(&host, "postgres", "SELECT pg_sleep(600)");
    // As one that hangs in the kernel, on a dead network file system.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    host.agent(&["kill", &pid.to_string()]).run().fails(
        1,
        &format!("session {pid} was told to cancel its statement and still runs it after 5 s"),
        "look again with `pgmahout ps`; --force ends the session",
    );
    host.agent(&["--json", "kill", "--all", "--force"]).run().fails_json(
        1,
        // The test's own session, which looks for the other, has ended.
        &format!("of 2 sessions told to end one goes on after 5 s: {pid}"),
        Some("it may wait for a disk or a network file system; look again: pgmahout ps --all"),
    );
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    thread.join().unwrap().unwrap_err();
}

#[test]
fn an_autovacuum_worker_is_killed_only_by_force() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).setting("autovacuum_naptime", "1").build();
    host.exec(
        "CREATE TABLE big (n int) WITH (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, \
         autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
    );
    host.exec("INSERT INTO big SELECT generate_series(1, 200000)");
    host.exec("DELETE FROM big");
    let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query LIKE '%VACUUM%big%'";
    until("autovacuum works", 60, || !host.one(worker).is_empty());
    let pid = host.one(worker);
    host.agent(&["kill", &pid]).run().fails(
        3,
        &format!("{pid} is no client session but an autovacuum worker"),
        "--force ends it; the table is vacuumed later then",
    );
    let report = ask(&host, &["kill", &pid, "--force"]);
    assert_eq!(report["sessions"][0]["kind"], "autovacuum worker", "{report}");
    assert_ne!(host.one(worker), pid);
}

#[test]
fn sessions_of_a_standby_and_its_walsender() {
    let (primary, standby) = pair(Pg::embedded("18"));
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    standby.enslave(&primary, &[]);
    let sender = primary.one("SELECT pid FROM pg_stat_replication");
    for flags in [&["kill", &sender][..], &["kill", &sender, "--force"]] {
        primary.agent(flags).run().fails(
            3,
            &format!("{sender} is no client session but a walsender of db.1"),
            "end it at its other end: the standby, or the program that takes a copy",
        );
    }
    ask(&primary, &["kill", "--all", "--force"]);
    assert_eq!(primary.one("SELECT pid FROM pg_stat_replication"), sender);

    // A statement on the standby holds replay up: who waits is the server itself.
    standby.exec("ALTER SYSTEM SET max_standby_streaming_delay = -1");
    standby.reload();
    let (mut reader, pid) = session(&standby, "postgres");
    reader.batch_execute("BEGIN; SELECT * FROM t").unwrap();
    assert_eq!(of(&ask(&standby, &["ps"])["sessions"], pid).unwrap()["state"], "idle in transaction");
    primary.exec("TRUNCATE t");
    until("replay waits for the reader", 20, || {
        let report = ask(&standby, &["locks"]);
        report["waiting"].as_array().unwrap().iter().any(|waiting| {
            waiting["kind"] == "startup"
                && waiting["lock"]["object"] == "t"
                && pids_of(&waiting["blockers"]) == [i64::from(pid)]
        })
    });
    ask(&standby, &["kill", &pid.to_string(), "--force"]);
    wait_replayed(&primary, &standby);
}

#[test]
fn outliers_of_every_form_of_the_view() {
    for pg in [Pg::embedded("10"), Pg::embedded("13"), Pg::debian15(), Pg::embedded("17"), Pg::embedded("18")]
    {
        let site = Site::new();
        let host = site
            .host("db.0")
            .pg(pg)
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("track_io_timing", "on")
            .build();
        host.exec("CREATE DATABASE shop");
        let first = host.agent(&["--json", "outliers"]).run();
        let first = first.says("creating the extension pg_stat_statements in the database postgres").json();
        assert_eq!((&first["created"], &first["database"]), (&true.into(), &"postgres".into()), "{first}");
        for _ in 0..3 {
            host.exec_in("shop", "SELECT pg_sleep(0.5)");
        }
        host.exec("ALTER ROLE dotcloud CONNECTION LIMIT -1; CREATE ROLE r PASSWORD 'geheim'");
        let report = ask(&host, &["outliers"]);
        assert_eq!(report["created"], false, "{report}");
        let statements = report["statements"].as_array().unwrap();
        assert!(statements.is_sorted_by_key(|s| -s["total_ms"].as_f64().unwrap()), "{report}");
        // The worst one, unless creating the database took even longer.
        let top = &statements[usize::from(statements[0]["query"] == "CREATE DATABASE shop")];
        assert!(top["query"].as_str().unwrap().starts_with("SELECT pg_sleep("), "{report}");
        assert_eq!(
            (&top["calls"], &top["user"], &top["database"]),
            (&3.into(), &"dotcloud".into(), &"shop".into())
        );
        let (total, mean) = (top["total_ms"].as_f64().unwrap(), top["mean_ms"].as_f64().unwrap());
        assert!(total >= 1500.0 && (mean - total / 3.0).abs() < 0.001, "{top}");
        let of_all = report["total_ms"].as_f64().unwrap();
        assert!(
            (top["share"].as_f64().unwrap() - total / of_all).abs() < 0.001 && of_all > total,
            "{report}"
        );
        assert!(top["io_ms"].as_f64().is_some(), "{top}");
        assert_eq!(report["statements"].as_array().unwrap().len(), 10, "{report}");
        let all = ask(&host, &["outliers", "-n", "1000"]);
        assert!(all["statements"].as_array().unwrap().len() > 10, "{all}");
        let text = all.to_string();
        assert!(text.contains("CREATE ROLE r PASSWORD") && !text.contains("geheim"), "{text}");
        let text = host.agent(&["outliers", "-n", "1"]).run().ok();
        assert_eq!(text.stdout.lines().count(), 2, "{}", text.stdout);
        text.says("SELECT pg_sleep(").says("shop");

        host.agent(&["outliers", "--reset"]).run().ok().says("db.0 counts its statements anew");
        assert!(!ask(&host, &["outliers", "-n", "1000"]).to_string().contains("pg_sleep"));

        // Somebody has put it elsewhere.
        host.exec("DROP EXTENSION pg_stat_statements");
        host.exec_in(
            "shop",
            "CREATE SCHEMA \"Odd One\"; CREATE EXTENSION pg_stat_statements SCHEMA \"Odd One\"",
        );
        host.exec("ALTER SYSTEM SET track_io_timing = off");
        host.reload();
        let report = ask(&host, &["outliers"]);
        assert_eq!((&report["created"], &report["database"]), (&false.into(), &"shop".into()), "{report}");
        assert_eq!((&report["io_timing"], &report["statements"][0]["io_ms"]), (&false.into(), &Value::Null));
        host.agent(&["outliers"]).run().ok().says("track_io_timing is off: the time of I/O is not known");
    }
}

#[test]
fn outliers_says_how_to_have_them() {
    let site = Site::new();
    let host =
        site.host("db.0").pg(Pg::embedded("18")).setting("shared_preload_libraries", "auto_explain").build();
    let text = "db.0 does not count its statements: pg_stat_statements is not preloaded";
    let hint = "ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_stat_statements' and restart the server";
    host.agent(&["outliers"]).run().fails(1, text, hint);
    // What the hint says does work.
    host.exec(hint.strip_suffix(" and restart the server").unwrap());
    host.restart();
    assert_eq!(ask(&host, &["outliers"])["created"], true);

    let bare = without_library(&site, "pg_stat_statements");
    let host = site.host("db.1").pg(bare).build();
    std::fs::remove_file(host.pg.bin.join("../share/postgresql/extension/pg_stat_statements.control"))
        .unwrap();
    let hint = "install PostgreSQL's contrib modules (a build of build-version has them), then \
                ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements' and restart the server";
    host.agent(&["outliers"]).run().fails(1, &text.replace("db.0", "db.1"), hint);
}

/// A copy of PostgreSQL 18 that lacks a library.
fn without_library(site: &Site, name: &str) -> Pg {
    let of = Pg::embedded("18");
    let prefix = site.directory.join("bare");
    must(std::process::Command::new("cp").arg("-r").arg(of.bin.parent().unwrap()).arg(&prefix));
    std::fs::remove_file(prefix.join("lib/postgresql").join(format!("{name}.so"))).unwrap();
    Pg { bin: prefix.join("bin"), ..of }
}

#[test]
fn a_library_that_the_source_preloads_has_to_be_here() {
    let site = Site::new();
    let counting = |name: &str| {
        let host = site.host(name).pg(Pg::embedded("18"));
        host.setting("shared_preload_libraries", "auto_explain, $libdir/pg_stat_statements").build()
    };
    let primary = counting("db.0");
    let target = site.host("db.1").pg(without_library(&site, "pg_stat_statements")).build();
    target.exec("CREATE TABLE mine AS SELECT 1 AS n");
    let before = snapshot(&target);
    let directory = target.pg.bin.parent().unwrap().join("lib/postgresql");
    let text = format!(
        "the source preloads $libdir/pg_stat_statements, which is not in {}: with its settings the server would \
         not start",
        directory.display()
    );
    let hint = "install it here, take the build of the source (build-version --from-blurb --rebuild), or take \
                $libdir/pg_stat_statements out of its shared_preload_libraries and restart it";
    for arguments in
        [&["enslave", "--confirm", "db.1"][..], &["enslave", "--dry-run"], &["fork", "--confirm", "db.1"]]
    {
        target.agent(arguments).stdin(primary.blurb()).run().fails(1, &text, hint);
    }
    before.assert_unchanged(&target);
    // A library that is here as well is none of its business.
    primary.exec("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'");
    primary.restart();
    target.enslave(&primary, &["--confirm", "db.1"]);
}

#[test]
fn outliers_of_a_standby() {
    let site = Site::new();
    let primary = site
        .host("db.0")
        .pg(Pg::embedded("18"))
        .setting("shared_preload_libraries", "pg_stat_statements")
        .build();
    let standby = site.host("db.1").pg(Pg::embedded("18")).build();
    standby.enslave(&primary, &[]);
    standby.agent(&["outliers"]).run().fails(
        1,
        "no database of the standby db.1 has the extension pg_stat_statements",
        "run `pgmahout outliers` on its primary, which creates it; it comes here by replication",
    );
    ask(&primary, &["outliers"]);
    wait_replayed(&primary, &standby);
    standby.exec("SELECT pg_sleep(0.5)");
    let report = ask(&standby, &["outliers", "-n", "1"]);
    assert!(report["statements"][0]["query"].as_str().unwrap().contains("pg_sleep"), "{report}");
    ask(&standby, &["outliers", "--reset"]);
    assert!(!ask(&standby, &["outliers"]).to_string().contains("pg_sleep"));
}

#[test]
fn psql_is_this_instances() {
    // Debian's has its own psql; the embedded one uses that of PATH.
    for pg in [Pg::debian15(), Pg::embedded("18")] {
        let site = Site::new();
        let host = site.host("db.0").pg(pg).build();
        host.exec("CREATE DATABASE shop");
        let watch = Argv::watch(&host.password);
        let sql = "SELECT current_user, current_database(), pg_sleep(0.5)";
        let arguments = ["psql", "-d", "shop", "--", "-XAtF,", "-c", sql, "-c", "\\! env"];
        let output = host.agent(&arguments).run().ok();
        assert!(output.stdout.starts_with("dotcloud,shop,\n"), "{}", output.stdout);
        assert_eq!(watch.seen(), Vec::<String>::new(), "the password stood in a process's arguments");
        output.says_not("PGPASSWORD").says_not(&host.password);
        let passfile = host.home.join(".pgmahout/psql.pgpass");
        assert_eq!(std::fs::metadata(&passfile).unwrap().permissions().mode() & 0o777, 0o600);

        // Standard input goes through, arguments say otherwise where they do, and the exit code is psql's.
        let piped = host.agent(&["psql", "--", "-XAt"]).stdin("SELECT current_database();\n").run().ok();
        assert_eq!(piped.stdout, "postgres\n");
        let other = host.agent(&["psql", "--", "-XAtc", "SELECT current_database()", "template1"]).run().ok();
        assert_eq!(other.stdout, "template1\n");
        let failed = host.agent(&["psql", "--", "-X", "-c", "SELECT 1/0"]).run();
        assert_eq!(failed.code, 1, "{failed:?}");
        failed.says("division by zero");
        host.agent(&["psql", "--", "-X"])
            .env("PGPASSWORD", host.password.as_str())
            .env("PAGER", "cat")
            .terminal(&[
                ("postgres=#", "SELECT 6 * 7, '\\! ';\n"),
                ("42", "\\! env\n"),
                ("PGPASSFILE", "\\q\n"),
            ])
            .ok()
            .says_not("PGPASSWORD=");
    }
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    host.agent(&["psql"]).env("PATH", "/nowhere").run().fails(
        1,
        &format!("there is no psql: neither in {} nor in PATH", host.pg.bin.display()),
        "apt-get install postgresql-client, or use a build that has it: pgmahout build-version",
    );
}
