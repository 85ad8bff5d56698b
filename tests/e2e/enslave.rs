//! `pgmahout enslave` with real servers: the copy under load, every version, tablespaces, what is left
//! out, secrets, the plans, and what an interruption leaves.

use crate::common::*;
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SLOT: &str = "pgmahout_db_1";

// --- the full copy -----------------------------------------------------------------------------------

fn enslave_under_load(pg: Pg) {
    let (primary, standby) = pair(pg);
    Pgbench::initialise(&primary, 4);
    noise(&primary, 16);

    let done = enslaved_under_load(&primary, &standby);

    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert!(done["copied"]["bytes"].as_u64().unwrap() > 50_000_000, "{done}");
    // Rows of afterwards arrive too.
    primary.exec("CREATE TABLE afterwards AS SELECT 1 AS n");
    compare(&primary, &standby);
    assert!(!standby.home.join("data.pgmahout-new").exists(), "the copy's place is left over");
}

#[test]
fn under_load_on_11() {
    enslave_under_load(Pg::embedded("11"));
}

#[test]
fn under_load_on_15() {
    enslave_under_load(Pg::debian15());
}

#[test]
fn under_load_on_18() {
    enslave_under_load(Pg::embedded("18"));
}

/// Enslave, switch over without losing a row, enslave the old primary back without moving data.
fn there_and_back(major: &str) {
    let (first, second) = pair(Pg::embedded(major));
    first.exec("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)");
    second.enslave(&first, &[]);
    assert_streams(&first, &second);
    let journal = Journal::start(&first);
    std::thread::sleep(Duration::from_millis(300));

    second.agent(&["promote", "--fence"]).stdin(first.blurb()).run().ok();
    let acknowledged = journal.stop();
    assert!(acknowledged > 0);
    assert!(!first.is_running(), "the fenced primary runs");
    assert!(!second.is_standby());
    assert_eq!(second.timeline(), 2);
    assert!(
        second.one("SELECT max(n) FROM journal").parse::<u64>().unwrap() >= acknowledged,
        "a commit was lost"
    );
    second.exec("INSERT INTO t VALUES (2000)");

    let back = first.enslave(&second, &[]);
    assert_eq!(back["plan"]["action"], "repoint", "{back}");
    assert!(back["copied"].is_null(), "{back}");
    assert_streams(&second, &first);
    compare(&second, &first);
    assert_eq!(first.one("SELECT count(*) FROM t"), "1001");
    amcheck(&second, &first);
}

#[test]
fn there_and_back_on_10() {
    there_and_back("10");
}

#[test]
fn there_and_back_on_11() {
    there_and_back("11");
}

#[test]
fn there_and_back_on_12() {
    there_and_back("12");
}

#[test]
fn there_and_back_on_13() {
    there_and_back("13");
}

#[test]
fn there_and_back_on_14() {
    there_and_back("14");
}

#[test]
fn there_and_back_on_16() {
    there_and_back("16");
}

#[test]
fn there_and_back_on_17() {
    there_and_back("17");
}

#[test]
fn tablespaces_outside_and_inside_the_data_directory() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let own = primary.account;
    let (outside, inside) = (primary.home.join("disk two"), primary.data.join("fast"));
    own.mkdir(&outside, 0o700);
    own.mkdir(&inside, 0o700);
    let location = |path: &Path| path.display().to_string().replace('\'', "''");
    primary.exec(&format!("CREATE TABLESPACE two LOCATION '{}'", location(&outside)));
    primary.exec(&format!("CREATE TABLESPACE fast LOCATION '{}'", location(&inside)));
    primary.exec("CREATE TABLE a (n) TABLESPACE two AS SELECT generate_series(1, 5000)");
    primary.exec("CREATE TABLE b (n) TABLESPACE fast AS SELECT generate_series(1, 5000)");

    // On one machine the source's own directory stands where the copy's would.
    let before = snapshot(&standby);
    let refused = standby.agent(&["enslave"]).stdin(primary.blurb()).run();
    refused.fails(
        1,
        &format!("the directory {0} for the tablespace {0} is not empty", outside.display()),
        "choose another: --tablespace-mapping OLD=NEW",
    );
    before.assert_unchanged(&standby);
    let within = standby.data.join("two");
    let mapping = format!("{}={}", outside.display(), within.display());
    standby.agent(&["enslave", "--tablespace-mapping", &mapping]).stdin(primary.blurb()).run().fails(
        1,
        &format!(
            "the tablespace {} would lie in the data directory, at {}, which is replaced as a whole",
            outside.display(),
            within.display()
        ),
        "choose a directory elsewhere: --tablespace-mapping OLD=NEW",
    );
    before.assert_unchanged(&standby);

    let there = standby.home.join("elsewhere");
    let mapping = format!("{}={}", outside.display(), there.display());
    standby.enslave(&primary, &["--tablespace-mapping", &mapping]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    let places = standby.column(
        "postgres",
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 16000 ORDER BY spcname",
    );
    assert_eq!(places, [standby.data.join("fast").display().to_string(), there.display().to_string()]);
    assert!(walk(&standby.data).iter().all(|p| !p.starts_with(&primary.home)));
    // Inside PGDATA: once, in its own directory, and not a second time through pg_tblspc.
    let copies = walk(&standby.data).into_iter().filter(|p| p.ends_with("PG_VERSION")).count();
    let originals = walk(&primary.data).into_iter().filter(|p| p.ends_with("PG_VERSION")).count();
    assert_eq!(copies, originals);
    amcheck(&primary, &standby);
}

/// Files below a directory, symbolic links not followed.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn unlogged_and_temporary_tables_stay_behind() {
    let (primary, standby) = pair(Pg::debian15());
    primary.exec("CREATE UNLOGGED TABLE fleeting (n int PRIMARY KEY); INSERT INTO fleeting SELECT generate_series(1, 9000)");
    let mut session = primary.sql();
    session.batch_execute("CREATE TEMP TABLE own AS SELECT generate_series(1, 9000) AS n").unwrap();
    primary.exec("CHECKPOINT");
    let path = |host: &Host, fork: &str| {
        host.data.join(format!("{}{fork}", primary.one("SELECT pg_relation_filepath('fleeting')")))
    };
    assert!(path(&primary, "").exists() && path(&primary, "_init").exists());

    standby.enslave(&primary, &[]);

    // Recovery makes an empty main fork from the init fork; what was written to it was not copied.
    assert!(path(&standby, "_init").exists());
    assert!(
        std::fs::metadata(path(&standby, "")).map_or(0, |m| m.len())
            < std::fs::metadata(path(&primary, "")).unwrap().len()
    );
    let temporary = walk(&standby.data.join("base")).into_iter().filter(|p| {
        let name = p.file_name().unwrap().to_str().unwrap();
        name.starts_with('t') && name[1..].contains('_')
    });
    assert_eq!(temporary.count(), 0, "temporary relations were copied");
    for excluded in ["postmaster.opts", "backup_label", "tablespace_map", "backup_manifest"] {
        // postmaster.opts is written by the start; backup_label is renamed by it.
        if excluded != "postmaster.opts" {
            assert!(!standby.data.join(excluded).exists(), "{excluded}");
        }
    }
    drop(session);
    standby.promote(&["--confirm", "db.1"]);
    assert_eq!(standby.one("SELECT count(*) FROM fleeting"), "0");
    standby.exec("INSERT INTO fleeting VALUES (1)");
}

#[test]
fn a_source_without_the_agent_gets_it_once() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("15")).without_agent().build();
    let standby = site.host("db.1").pg(Pg::embedded("15")).build();
    let cache = primary.home.join(".cache/pgmahout");
    let agents = || -> Vec<PathBuf> {
        std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };

    standby.agent(&["enslave"]).stdin(primary.blurb()).run().ok().says("uploading the agent to");
    assert_streams(&primary, &standby);
    assert_eq!(agents().len(), 1, "{:?}", agents());
    let uploaded = agents().remove(0);
    let mine = std::fs::read(standby.home.join("bin/pgmahout")).unwrap();
    assert!(std::fs::read(&uploaded).unwrap() == mine, "what was uploaded is another program");
    assert_eq!(std::fs::metadata(&uploaded).unwrap().permissions().mode() & 0o777, 0o700);

    standby.agent(&["enslave", "--plan", "full"]).stdin(primary.blurb()).run().ok().says_not("uploading");
    // A damaged or replaced file in the cache is not run but replaced.
    primary.account.write(&uploaded, "#!/bin/sh\necho not me\n", 0o700);
    standby
        .agent(&["enslave", "--plan", "full"])
        .stdin(primary.blurb())
        .run()
        .ok()
        .says("uploading the agent to");
    assert_streams(&primary, &standby);
}

#[test]
fn the_password_stands_in_one_file_only() {
    for (major, password) in [("11", "tropical fish"), ("18", "_|KZ&CKWa['\\:@ %41")] {
        let site = Site::new();
        let primary = site.host("db.0").pg(Pg::embedded(major)).password(password).build();
        let standby = site.host("db.1").pg(Pg::embedded(major)).password(password).build();
        let watch = Argv::watch(password);
        let output = standby.agent(&["-v", "enslave"]).stdin(primary.blurb()).run().ok();
        assert_streams(&primary, &standby);
        assert_eq!(watch.seen(), Vec::<String>::new(), "the password stood in a process's arguments");
        let output = output.says_not(password);
        let info = standby.agent(&["-v", "info"]).run().ok();
        let config = standby.agent(&["config"]).run().ok();
        info.says_not(password);
        config.says_not(password);
        drop(output);

        let passfile = standby.home.join(".pgmahout/pgpass");
        assert_eq!(std::fs::metadata(&passfile).unwrap().permissions().mode() & 0o777, 0o600);
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        assert!(std::fs::read_to_string(&passfile).unwrap().contains(&escaped));
        // Not in PGDATA, in no form; nor in any other file but ~/password.
        let percent = password.replace(' ', "%20");
        let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
        let doubled = password.replace('\'', "''");
        for file in walk(&standby.home).into_iter().chain(walk(&primary.home)) {
            if file == passfile || file.ends_with("password") || file.ends_with("test.pgpass") {
                continue;
            }
            let content = std::fs::read(&file).unwrap_or_default();
            for form in [password, escaped.as_str(), percent.as_str(), quoted.as_str(), doubled.as_str()] {
                let found = content.windows(form.len()).any(|window| window == form.as_bytes());
                assert!(!found, "the password stands in {}", file.display());
            }
        }
    }
}

#[test]
fn an_instance_without_a_cluster() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    let standby = site.host("db.1").pg(Pg::embedded("18")).without_data().build();
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    standby.enslave(&primary, &[]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    let mode = std::fs::metadata(&standby.data).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "mode of the data directory");
}

#[test]
fn a_crashed_target_and_a_stopped_one() {
    let (primary, standby) = pair(Pg::embedded("15"));
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    standby.crash();
    standby.enslave(&primary, &[]);
    assert_streams(&primary, &standby);
    standby.stop();
    standby.enslave(&primary, &[]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
}

#[test]
fn many_files_and_databases_and_odd_names() {
    let (primary, standby) = pair(Pg::embedded("18"));
    for database in ["plain", "with space", "quote'\"d", "Ünïcode"] {
        primary.exec(&format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\"")));
        primary.exec_in(database, "CREATE TABLE t AS SELECT generate_series(1, 100) AS n; CREATE TABLE empty (n int); CREATE INDEX ON t (n)");
    }
    primary.exec("DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('CREATE TABLE many_%s AS SELECT %s AS n', i, i); END LOOP; END $$");
    standby.enslave(&primary, &["--ssh-sessions", "4"]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    // It was for the first start only.
    let setting = |host: &Host| host.one("SHOW recovery_init_sync_method");
    let said = |host: &Host| {
        std::fs::read_to_string(host.data.join("postgresql.auto.conf"))
            .unwrap()
            .contains("recovery_init_sync_method")
    };
    until("the setting is back", 10, || setting(&standby) == "fsync");
    assert!(!said(&standby));
    // Whoever has set it keeps it.
    primary.exec("ALTER SYSTEM SET recovery_init_sync_method = 'syncfs'");
    standby.stop();
    standby.agent(&["enslave", "--plan", "full"]).stdin(primary.blurb()).run().ok();
    assert!(said(&standby));
    assert_eq!(setting(&standby), "syncfs");
}

// --- how the source is named --------------------------------------------------------------------------

#[test]
fn by_number_by_file_by_choice_and_in_every_form() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let own = primary.account;
    let (user, ssh, sql) = (&own.name, primary.ssh_port, primary.port);

    let environment = serde_json::json!({
        "DOTCLOUD_PROJECT": "shop", "DOTCLOUD_SERVICE_NAME": "db", "DOTCLOUD_SERVICE_ID": "1",
        "DOTCLOUD_DB_SSH_URL_0": format!("ssh://{user}@127.0.0.1:{ssh}"),
        "DOTCLOUD_DB_PGSQL_URL_0": format!("tcp://127.0.0.1:{sql}"),
    });
    own.write(&standby.home.join("environment.json"), environment.to_string(), 0o600);
    let done = standby.agent(&["--json", "enslave", "0"]).run().json();
    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert_streams(&primary, &standby);

    let repointed = |run: Run<'_>| {
        let done = run.run().json();
        assert_eq!(done["plan"]["action"], "repoint", "{done}");
        assert_streams(&primary, &standby);
    };
    own.write(&standby.home.join("blurb"), primary.blurb(), 0o600);
    repointed(standby.agent(&["--json", "enslave", "--info", "blurb"]));
    let section = |n: u32, ssh: u16, sql: u16| {
        format!(
            "=== db.{n}\nports:\n  ssh:   ssh://{user}@127.0.0.1:{ssh}\n  pgsql: tcp://127.0.0.1:{sql}\n\n"
        )
    };
    let two = format!(
        "== db\ninstances: 2\n\n{}{}",
        section(0, ssh, sql),
        section(1, standby.ssh_port, standby.port)
    );
    repointed(standby.agent(&["--json", "enslave", "--from", "db.0"]).stdin(two.clone()));
    repointed(standby.agent(&["--json", "follow", "--from", "0"]).stdin(two.replace('\n', "\r\n")));
    repointed(
        standby.agent(&["--json", "track"]).stdin(format!("Warning: old client\n{}", section(0, ssh, sql))),
    );
    repointed(standby.agent(&["--json", "enslave"]).stdin(primary.blurb_with("dotcloud", &primary.password)));
    let json = serde_json::json!({"ports": [
        {"name": "ssh", "url": format!("ssh://{user}@localhost:{ssh}")},
        {"name": "pgsql", "url": format!("tcp://localhost:{sql}")}]});
    repointed(standby.agent(&["--json", "enslave"]).stdin(json.to_string()));
}

// --- the plans ----------------------------------------------------------------------------------------

#[test]
fn dry_run_shows_the_plan_and_changes_nothing() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let (before, there) = (snapshot(&standby), snapshot(&primary));
    let plan = standby.enslave(&primary, &["--dry-run"]);
    assert_eq!(plan["plan"]["action"], "full", "{plan}");
    standby.agent(&["enslave", "--dry-run"]).stdin(primary.blurb()).run().ok().says("full");
    before.assert_unchanged(&standby);
    there.assert_unchanged(&primary);
    primary_is_clean(&primary, &[]);
}

#[test]
fn a_switchover_moves_no_data_on_any_of_three() {
    let site = Site::new();
    let pg = Pg::embedded("15");
    let [a, b, c] = ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(pg.clone()).build());
    a.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    b.enslave(&a, &[]);
    c.enslave(&a, &[]);
    primary_is_clean(&a, &["pgmahout_db_1", "pgmahout_db_2"]);
    b.agent(&["promote", "--fence"]).stdin(a.blurb()).run().ok();
    b.exec("INSERT INTO t VALUES (1000)");
    for follower in [&c, &a] {
        let done = follower.enslave(&b, &[]);
        assert_eq!(done["plan"]["action"], "repoint", "{done}");
        assert_streams(&b, follower);
        compare(&b, follower);
    }
    // No slot of the old order stays anywhere: it would keep WAL for ever.
    primary_is_clean(&b, &["pgmahout_db_0", "pgmahout_db_2"]);
    primary_is_clean(&a, &[]);
    primary_is_clean(&c, &[]);
}

#[test]
fn a_standby_whose_wal_is_gone_gets_what_differs() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    standby.stop();
    primary.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    primary.exec("ALTER SYSTEM SET max_wal_size = '32MB'");
    primary.reload();
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    for _ in 0..4 {
        primary.exec("SELECT pg_switch_wal()");
        primary.exec("INSERT INTO t VALUES (2)");
        primary.exec("CHECKPOINT");
    }
    let done = standby.enslave(&primary, &[]);
    assert_eq!(done["plan"]["action"], "delta", "{done}");
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
}

#[test]
fn a_standby_of_a_standby_needs_cascade() {
    let site = Site::new();
    let pg = Pg::embedded("18");
    let [a, b, c] = ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(pg.clone()).build());
    a.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    b.enslave(&a, &[]);
    let done = c.enslave(&b, &["--cascade"]);
    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert_streams(&b, &c);
    a.exec("INSERT INTO t VALUES (1000)");
    compare(&a, &b);
    compare(&a, &c);
    primary_is_clean(&a, &["pgmahout_db_1"]);
    primary_is_clean(&b, &["pgmahout_db_2"]);
}

#[test]
fn confirmed_the_old_cluster_is_kept_aside() {
    let (primary, standby) = pair(Pg::embedded("15"));
    primary.exec("CREATE TABLE theirs AS SELECT 1 AS n");
    standby.exec("CREATE TABLE ours AS SELECT 42 AS n");
    let system = standby.system_identifier();
    let done = standby.enslave(&primary, &["--confirm", "db.1"]);
    assert_streams(&primary, &standby);
    compare(&primary, &standby);
    let kept = PathBuf::from(done["kept"].as_str().unwrap_or_else(|| panic!("{done}")));
    assert!(kept.starts_with(&standby.home), "{}", kept.display());
    // It is whole: put back, it starts with its rows.
    standby.stop();
    std::fs::rename(&standby.data, standby.home.join("copy")).unwrap();
    std::fs::rename(&kept, &standby.data).unwrap();
    standby.start();
    assert_eq!(standby.system_identifier(), system);
    assert_eq!(standby.one("SELECT n FROM ours"), "42");
}

#[test]
fn a_diverged_old_primary_loses_commits_only_when_confirmed() {
    let (first, second) = pair(Pg::embedded("18"));
    first.exec("CREATE TABLE t (n int)");
    second.enslave(&first, &[]);
    first.crash();
    second.agent(&["promote"]).run().ok();
    second.exec("INSERT INTO t VALUES (1)");
    // It comes back and takes writes that nobody else has.
    first.start();
    first.exec("INSERT INTO t VALUES (7)");
    let before = snapshot(&first);
    let refused = first.agent(&["enslave"]).stdin(second.blurb()).run();
    assert_eq!(refused.code, 3, "{refused:?}");
    let refused = refused.says("that the source lacks").says("--confirm db.0");
    assert!(refused.stdout.is_empty());
    before.assert_unchanged(&first);
    let done = first.enslave(&second, &["--confirm", "db.0"]);
    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert_streams(&second, &first);
    compare(&second, &first);
    assert_eq!(first.column("postgres", "SELECT n FROM t"), ["1"]);
}

// --- interruptions ------------------------------------------------------------------------------------

/// What the old cluster of a target is told by.
fn mark(target: &Host) -> u64 {
    target.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    target.system_identifier()
}

/// PGDATA is the old cluster, whole, or does not start.
#[track_caller]
fn old_or_not_startable(target: &Host, system: u64) {
    // A stop that was under way when the agent was killed goes on.
    until("the server is up or down", 30, || !target.is_running() || target.try_sql("postgres").is_ok());
    if !target.is_running() && !target.try_start() {
        return;
    }
    assert_eq!(target.system_identifier(), system, "the half-made copy started");
    assert_eq!(target.one("SELECT n FROM old_cluster"), "42");
}

/// An old version; those of 18 are tests/faults's.
#[test]
fn killed_at_any_instant_it_leaves_the_old_cluster_and_completes_when_run_again() {
    let (primary, target) = pair(Pg::embedded("11"));
    noise(&primary, 12);
    let system = mark(&target);
    let proxy = Proxy::to(primary.ssh_port).slow(6_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);
    // Each run goes on with what the one before has copied.
    for kilobytes in [40, 300, 3_000, 3_000, 3_000] {
        let begin = proxy.passed();
        let mut running = target.agent(&["enslave", "--confirm", "db.1"]).stdin(blurb.clone()).spawn();
        until("so much was copied", 60, || {
            proxy.passed() - begin > kilobytes * 1000 || !running.is_running()
        });
        assert!(
            running.is_running(),
            "it ended before it could be killed at {kilobytes} kB: {}",
            running.stderr()
        );
        running.signal(Signal::SIGKILL);
        assert_eq!(running.wait().code, -9);
        // No backup, and no slot but the one that belongs to this very instance.
        until("the session on the primary has ended", 15, || {
            primary.one("SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'pgmahout_db_1'") == "0"
        });
        let slots = primary.column("postgres", "SELECT slot_name FROM pg_replication_slots");
        primary_is_clean(&primary, &slots.iter().map(String::as_str).collect::<Vec<_>>());
        old_or_not_startable(&target, system);
    }
    proxy.set_rate(0);
    target.agent(&["enslave", "--confirm", "db.1"]).stdin(blurb).run().ok();
    assert_streams(&primary, &target);
    compare(&primary, &target);
    primary_is_clean(&primary, &[SLOT]);
    assert!(!target.home.join("data.pgmahout-new").exists());
}

#[test]
fn a_signal_ends_it_cleanly() {
    let (primary, target) = pair(Pg::embedded("18"));
    noise(&primary, 12);
    let system = mark(&target);
    let proxy = Proxy::to(primary.ssh_port).slow(4_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let begin = proxy.passed();
        let mut running = target.agent(&["enslave", "--confirm", "db.1"]).stdin(blurb.clone()).spawn();
        until("the copy has begun", 30, || proxy.passed() - begin > 3_000_000 || !running.is_running());
        assert!(running.is_running(), "{}", running.stderr());
        running.signal(signal);
        running.wait().fails(5, "interrupted", "run the same command again to complete it");
        primary_is_clean(&primary, &[]);
        assert!(target.is_running(), "the old cluster does not run again");
        old_or_not_startable(&target, system);
    }
    drop(proxy);
    target.enslave(&primary, &["--confirm", "db.1"]);
    assert_streams(&primary, &target);
}

#[test]
fn a_broken_connection_brings_the_old_cluster_back() {
    let (primary, target) = pair(Pg::embedded("15"));
    noise(&primary, 12);
    let system = mark(&target);
    let proxy = Proxy::to(primary.ssh_port).slow(4_000_000);
    let mut running = target
        .agent(&["enslave", "--confirm", "db.1"])
        .stdin(primary.blurb_at(proxy.port, primary.port))
        .spawn();
    until("the copy has begun", 30, || proxy.passed() > 3_000_000 || !running.is_running());
    proxy.refuse();
    let output = running.wait();
    assert_eq!(output.code, 4, "{output:?}");
    primary_is_clean(&primary, &[]);
    assert!(target.is_running(), "the old cluster does not run again");
    old_or_not_startable(&target, system);
}

#[test]
fn a_source_that_dies_brings_the_old_cluster_back() {
    let (primary, target) = pair(Pg::embedded("18"));
    noise(&primary, 12);
    let system = mark(&target);
    let proxy = Proxy::to(primary.ssh_port).slow(4_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);

    // The server crashes: the copy would lack the backup's end.
    let mut running = target.agent(&["enslave", "--confirm", "db.1"]).stdin(blurb.clone()).spawn();
    until("the copy has begun", 30, || proxy.passed() > 3_000_000 || !running.is_running());
    primary.crash();
    proxy.set_rate(0);
    let output = running.wait();
    assert!([1, 4].contains(&output.code), "{output:?}");
    old_or_not_startable(&target, system);
    assert!(target.is_running(), "the old cluster does not run again");
    primary.start();
    primary_is_clean(&primary, &[]);

    // The agent there is killed.
    proxy.set_rate(4_000_000);
    let begin = proxy.passed();
    // Not going on with what was copied: it may have been all of it.
    let anew = ["enslave", "--confirm", "db.1", "--plan", "full"];
    let mut running = target.agent(&anew).stdin(blurb).spawn();
    until("the copy has begun", 30, || proxy.passed() - begin > 3_000_000 || !running.is_running());
    let killed = kill_sources(&primary);
    assert!(killed > 0, "no `pgmahout source` found on the primary");
    let output = running.wait();
    assert!([1, 4].contains(&output.code), "{output:?}");
    primary_is_clean(&primary, &[]);
    assert!(target.is_running(), "the old cluster does not run again");
    old_or_not_startable(&target, system);
}

/// Kills the agents that serve a copy on this host; how many there were.
fn kill_sources(host: &Host) -> usize {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_source = arguments.split(|b| *b == 0).any(|argument| argument == b"source");
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let home = format!("HOME={}", host.home.display());
        if is_source && environment.split(|b| *b == 0).any(|variable| variable == home.as_bytes()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            killed += 1;
        }
    }
    killed
}

#[test]
fn a_standby_promoted_in_the_middle_of_the_copy_is_noticed() {
    let site = Site::new();
    let pg = Pg::embedded("15");
    let [a, b, c] = ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(pg.clone()).build());
    noise(&a, 12);
    b.enslave(&a, &[]);
    let system = mark(&c);
    let proxy = Proxy::to(b.ssh_port).slow(4_000_000);
    let mut running =
        c.agent(&["enslave", "--cascade", "--confirm", "db.2"]).stdin(b.blurb_at(proxy.port, b.port)).spawn();
    until("the copy has begun", 30, || proxy.passed() > 3_000_000 || !running.is_running());
    b.exec("SELECT pg_promote(true, 30)");
    proxy.set_rate(0);
    let output = running.wait();
    assert_eq!(output.code, 1, "{output:?}");
    assert!(c.is_running(), "the old cluster does not run again");
    old_or_not_startable(&c, system);
    assert_eq!(b.one("SELECT count(*) FROM pg_replication_slots"), "0");
}

#[test]
fn two_at_once_are_refused_and_two_targets_are_served() {
    let site = Site::new();
    let pg = Pg::embedded("18");
    let [a, b, c] = ["db.0", "db.1", "db.2"].map(|name| site.host(name).pg(pg.clone()).build());
    noise(&a, 8);
    let proxy = Proxy::to(a.ssh_port).slow(3_000_000);
    let blurb = a.blurb_at(proxy.port, a.port);
    let mut first = b.agent(&["enslave"]).stdin(blurb.clone()).spawn();
    until("the copy has begun", 30, || proxy.passed() > 500_000 || !first.is_running());
    let second = b.agent(&["enslave"]).stdin(blurb).run();
    assert_eq!(second.code, 1, "{second:?}");
    second.says(&format!("enslave (process {})", first.pid()));
    let beside = c.agent(&["enslave"]).stdin(a.blurb()).spawn();
    proxy.set_rate(0);
    first.wait().ok();
    beside.wait().ok();
    for standby in [&b, &c] {
        assert_streams(&a, standby);
        compare(&a, standby);
    }
    primary_is_clean(&a, &["pgmahout_db_1", "pgmahout_db_2"]);
}

#[test]
fn pg_wal_on_a_disk_of_its_own_stays_there() {
    let (primary, standby) = pair(Pg::embedded("18"));
    primary.exec("CREATE TABLE t AS SELECT 1 AS n");
    standby.stop();
    let disk = standby.home.join("wal disk");
    standby.account.mkdir(&disk, 0o700);
    std::fs::rename(standby.data.join("pg_wal"), disk.join("wal")).unwrap();
    std::os::unix::fs::symlink(disk.join("wal"), standby.data.join("pg_wal")).unwrap();
    standby.account.own(&standby.data.join("pg_wal"));
    standby.start();
    standby.enslave(&primary, &[]);
    assert_streams(&primary, &standby);
    let link = std::fs::read_link(standby.data.join("pg_wal")).expect("pg_wal is a symbolic link");
    assert!(link.starts_with(&disk), "{}", link.display());
    compare(&primary, &standby);
}

// --- where two clusters do not fit, or cannot be exchanged ----------------------------------------------

#[test]
fn a_data_directory_that_is_a_mount_point_is_filled_in_place() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&primary, 12);
    let disk = SmallDisk::mount(&site, "disk", 500);
    // PGDATA wants to be its owner's alone.
    std::fs::set_permissions(&disk.path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let target = site.host("db.1").pg(Pg::embedded("18")).data(&disk.path).build();

    // With data of its own it cannot be moved aside: refused, also when confirmed.
    target.exec("CREATE TABLE precious AS SELECT 1 AS n");
    let before = snapshot(&target);
    let refused = target.agent(&["enslave", "--confirm", "db.1"]).stdin(primary.blurb()).run();
    refused.fails(
        1,
        &format!("{} is a mount point, so the cluster in it cannot be moved aside", disk.path.display()),
        "move it yourself, or put the data directory into a directory below the mount point",
    );
    before.assert_unchanged(&target);
    target.exec("DROP TABLE precious");
    // A dropped table's file is there until the next checkpoint.
    target.exec("CHECKPOINT");

    // Fresh, it is emptied; from then on it cannot start until the copy is complete.
    let proxy = Proxy::to(primary.ssh_port).slow(5_000_000);
    let blurb = primary.blurb_at(proxy.port, primary.port);
    let mut running = target.agent(&["enslave"]).stdin(blurb.clone()).spawn();
    until("so much was copied", 60, || proxy.passed() > 6_000_000 || !running.is_running());
    assert!(running.is_running(), "{:?}", running.wait());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, -9);
    assert!(!target.try_start(), "a half-made copy started");
    primary_is_clean(&primary, &[]);

    proxy.set_rate(0);
    target.agent(&["enslave"]).stdin(blurb).run().ok();
    assert_streams(&primary, &target);
    compare(&primary, &target);
    assert!(disk.path.join("PG_VERSION").exists());
    drop(target);
}

#[test]
fn where_two_do_not_fit_a_fresh_cluster_makes_room() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&primary, 40);
    primary.exec("CHECKPOINT");
    // A fresh cluster and its WAL are some 40 MB; the copy is some 65 MB and wants 64 MB to spare.
    let disk = SmallDisk::mount(&site, "disk", 165);
    let target = site.host("db.1").pg(Pg::embedded("18")).home(&disk.path).build();
    let done = target.enslave(&primary, &[]);
    assert_eq!(done["plan"]["action"], "full", "{done}");
    assert_streams(&primary, &target);
    compare(&primary, &target);
    drop(target);
}
