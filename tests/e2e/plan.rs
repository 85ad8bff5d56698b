//! `pgmahout plan`: settings under a name, applied all or none, carried along by copies.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn apply(host: &Host, name: &str, settings: &str) -> Value {
    host.agent(&["--json", "plan", name]).stdin(settings).run().json()
}

fn show(host: &Host) -> Value {
    host.agent(&["--json", "plan"]).run().json()
}

fn started(host: &Host) -> String {
    host.one("SELECT pg_postmaster_start_time()")
}

fn setting(host: &Host, name: &str) -> String {
    host.one(&format!("SHOW {name}"))
}

#[test]
fn a_plan_is_applied_shown_and_changed_for_another() {
    for major in ["10", "18"] {
        let site = Site::new();
        let host = site.host("db.0").pg(Pg::embedded(major)).build();
        let none = json!({"instance": "db.0", "plan": null, "settings": {}, "pending_restart": []});
        assert_eq!(show(&host), none);
        let before = started(&host);

        // What needs no restart gets none.
        let lines = "# small\nWORK_MEM = 3MB # each\nlog_line_prefix = '%m it''s \\\\ [%p] '\nsearch_path = '\"$user\", public'\n";
        let report = apply(&host, "dev", lines);
        assert_eq!(report["plan"], "dev");
        assert_eq!(report["restarted"], false, "{report}");
        assert_eq!(report["settings"]["work_mem"], "3MB", "{report}");
        assert_eq!(setting(&host, "work_mem"), "3MB");
        assert_eq!(setting(&host, "log_line_prefix"), "%m it's \\ [%p] ");
        assert_eq!(
            host.sql().query_one("SHOW search_path", &[]).unwrap().get::<_, String>(0),
            "\"$user\", public"
        );
        assert_eq!(started(&host), before);

        // Another one: with a restart, and the former one's settings are gone.
        let report = apply(&host, "ronin", "shared_buffers = 24MB\nmax_connections = 40\nwork_mem = 5MB");
        assert_eq!(report["restarted"], true, "{report}");
        assert_eq!(report["pending_restart"], json!([]));
        assert_ne!(started(&host), before);
        assert_eq!(setting(&host, "shared_buffers"), "24MB");
        assert_eq!(setting(&host, "max_connections"), "40");
        assert_eq!(setting(&host, "work_mem"), "5MB");
        assert_eq!(setting(&host, "log_line_prefix"), "%m [%p] %a ");
        let shown = show(&host);
        assert_eq!(shown["plan"], "ronin");
        let settings = json!({"max_connections": "40", "shared_buffers": "24MB", "work_mem": "5MB"});
        assert_eq!(shown["settings"], settings);
        host.agent(&["plan"])
            .run()
            .ok()
            .says("db.0 has the plan ronin\nmax_connections = 40\nshared_buffers = 24MB\nwork_mem = 5MB\n");
        assert_eq!(host.agent(&["--json", "info"]).run().json()["plan"], "ronin");
        host.agent(&["info"]).run().ok().says("plan:         ronin\n");

        // Left to the next restart.
        let before = started(&host);
        let report =
            host.agent(&["--json", "plan", "crane", "--no-restart"]).stdin("work_mem = 6MB").run().json();
        assert_eq!(report["pending_restart"], json!(["max_connections", "shared_buffers"]), "{report}");
        assert_eq!((started(&host), setting(&host, "work_mem")), (before, "6MB".into()));
        assert_eq!(show(&host)["pending_restart"], json!(["max_connections", "shared_buffers"]));
        // What an earlier plan has left waiting is not forgotten.
        assert_eq!(apply(&host, "crane", "work_mem = 6MB")["restarted"], true);
        assert_eq!(
            (setting(&host, "max_connections"), setting(&host, "shared_buffers")),
            ("30".into(), "16MB".into())
        );

        // A plan without settings.
        let report = apply(&host, "none", "");
        assert_eq!(report["settings"], json!({}), "{report}");
        assert_eq!(setting(&host, "work_mem"), "4MB");
        assert!(!host.data.join(".pgmahout-plan-undo").exists());
    }
}

#[test]
fn what_a_plan_cannot_have_changes_nothing() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    apply(&host, "dev", "work_mem = 3MB");
    let before = snapshot(&host);
    let marker = host.home.join("ran");
    let archive = format!("archive_command = 'touch {}'", marker.display());
    let no = "cannot have";
    for (line, code, why) in [
        ("work_mems = 3MB", 1, "the plan ronin cannot have work_mems: PostgreSQL 18"),
        ("work_mem = 3 MB", 2, "line 3 of the plan's settings cannot be understood: work_mem = 3 MB"),
        ("work_mem = much", 1, "the plan ronin cannot have work_mem: invalid value for parameter"),
        ("work_mem = 1B", 1, no),
        ("zero_damaged_pages = perhaps", 1, "the plan ronin cannot have zero_damaged_pages: "),
        ("block_size = 4096", 1, "it was fixed when the server was built or its cluster made"),
        (
            "Data_Directory = '/tmp'",
            1,
            "the plan ronin cannot have data_directory: it moves the server or its files",
        ),
        ("hba_file = '/tmp/x'", 1, "it moves the server or its files"),
        ("port = 1", 1, "it moves the server or its files"),
        ("listen_addresses = '*'", 1, "it moves the server or its files"),
        ("primary_conninfo = 'host=x'", 1, "whom this instance follows is said by pgmahout enslave"),
        ("shared_preload_libraries = 'x'", 1, "it runs code"),
        (archive.as_str(), 1, "the plan ronin cannot have archive_command: it runs code"),
        ("shared_buffers = 900TB", 1, "the plan ronin wants "),
    ] {
        // maintenance_work_mem comes before it, and would have been set.
        let settings = format!("autovacuum_naptime = 10\nmaintenance_work_mem = 40MB\n{line}\n");
        let output = host.agent(&["plan", "ronin"]).stdin(settings).run();
        assert_eq!(output.code, code, "{line}: {output:?}");
        output.says(why);
        before.assert_unchanged(&host);
        assert_eq!(setting(&host, "maintenance_work_mem"), "64MB");
    }
    host.agent(&["plan", "ronin"])
        .stdin("work_mems = 3MB")
        .run()
        .says("does not know it; nothing was changed\nhint: correct or remove its line");
    host.agent(&["plan", "a b"]).stdin("").run().fails(
        2,
        "\"a b\" is no name for a plan",
        "letters, digits, dots, dashes and underscores, as in: pgmahout plan ronin",
    );
    assert_eq!(show(&host)["plan"], "dev");
    assert!(!marker.exists());
}

#[test]
fn settings_that_the_server_cannot_read_are_not_called_applied() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    host.append_conf("= what is this\n");
    let before = snapshot(&host);
    host.agent(&["plan", "ronin"]).stdin("work_mem = 3MB").run().fails(
        1,
        "the server did not read its settings anew within 10 s; nothing was changed",
        "its log says why; SELECT * FROM pg_file_settings WHERE error IS NOT NULL shows wrong lines",
    );
    before.assert_unchanged(&host);
}

#[test]
fn copies_carry_the_plan_along_and_a_standby_has_its_primarys() {
    for major in ["10", "18"] {
        let site = Site::new();
        let host = |name: &str| site.host(name).pg(Pg::embedded(major)).build();
        let (primary, standby, fork) = (host("db.0"), host("db.1"), host("db.2"));
        apply(&fork, "basic", "work_mem = 2MB");
        apply(&primary, "crane", "max_connections = 50\nwork_mem = 7MB");
        standby.enslave(&primary, &[]);
        fork.agent(&["fork", "--confirm", "db.2"]).stdin(primary.blurb()).run().ok();
        for copy in [&standby, &fork] {
            assert_eq!(show(copy)["plan"], "crane");
            assert_eq!(show(copy)["settings"], json!({"max_connections": "50", "work_mem": "7MB"}));
            assert_eq!(
                (setting(copy, "max_connections"), setting(copy, "work_mem")),
                ("50".into(), "7MB".into())
            );
        }
        standby.agent(&["plan", "dev"]).stdin("").run().fails(
            1,
            &format!("db.1 is a standby: its plan is that of its primary, 127.0.0.1:{}", primary.port),
            "run the command on the primary",
        );
        // Lower on the primary is no harm, higher is, and is said.
        let output = primary.agent(&["plan", "ika"]).stdin("max_connections = 60").run().ok();
        output.says("warning: max_connections is higher than before, and the standbys of this instance");
        // The copy goes its own way.
        apply(&fork, "dev", "");
        assert_eq!(
            (setting(&fork, "max_connections"), setting(&fork, "work_mem")),
            ("30".into(), "4MB".into())
        );
    }
}

#[test]
fn a_plan_that_the_server_does_not_start_with_comes_back() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    apply(&host, "dev", "work_mem = 3MB\nmax_connections = 35");
    let auto_conf = || std::fs::read_to_string(host.data.join("postgresql.auto.conf")).unwrap();
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = (sorted(auto_conf()), show(&host), started(&host));
    // The server refuses this only when it starts: there are WAL senders.
    let output = host.agent(&["plan", "ronin"]).stdin("wal_level = minimal\nwork_mem = 9MB").run();
    assert_eq!(output.code, 1, "{output:?}");
    output
        .says("the server does not start with the plan ronin; it has its former settings again and accepts")
        .says("hint: the server's log says which setting it is");
    assert_eq!((sorted(auto_conf()), show(&host)), (before.0, before.1));
    assert_ne!(started(&host), before.2);
    assert_eq!((setting(&host, "wal_level"), setting(&host, "work_mem")), ("replica".into(), "3MB".into()));
    assert!(!host.data.join(".pgmahout-plan-undo").exists());
    assert!(host.log().contains("wal_level"), "{}", host.log());
}

#[test]
fn a_run_that_was_killed_is_undone_by_the_next() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    apply(&host, "dev", "work_mem = 3MB");
    // Its server does not come up, and it is killed meanwhile: the start command waits.
    let start = host.home.join("bin/pg-start");
    let script = std::fs::read_to_string(&start).unwrap();
    host.account.write(&start, script.replacen("\n", "\nsleep 600\n", 1), 0o755);
    let settings = "wal_level = minimal\nmaintenance_work_mem = 40MB";
    let running = host.agent(&["plan", "ronin"]).stdin(settings).spawn();
    until("the server is stopped", 60, || !host.is_running());
    running.signal(Signal::SIGKILL);
    running.wait();
    for pid in pids() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(start.to_str().unwrap()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    host.account.write(&start, script, 0o755);
    let shown = host.agent(&["plan"]).run().ok();
    shown.says("warning: a change of the plan was interrupted: run it again").says("db.0 has the plan dev");

    // Another plan than the one that was interrupted: nothing of that one is left.
    let report = apply(&host, "crane", "work_mem = 5MB");
    assert_eq!(report["plan"], "crane", "{report}");
    let has = ["wal_level", "maintenance_work_mem", "work_mem"].map(|name| setting(&host, name));
    assert_eq!(has, ["replica", "64MB", "5MB"]);
    assert!(!host.data.join(".pgmahout-plan-undo").exists());
}

#[test]
fn the_recipes_plans_are_settings_of_every_server() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipe/plans.yml")).unwrap();
    let plans: BTreeMap<String, BTreeMap<String, serde_yaml::Value>> = serde_yaml::from_str(&text).unwrap();
    let names: Vec<&str> = plans.keys().map(String::as_str).collect();
    assert_eq!(names, ["baku", "basic", "crane", "dev", "fugu", "ika", "kappa", "mecha", "ronin", "zilla"]);
    let lines = |plan: &str| -> String {
        let value = |value: &serde_yaml::Value| {
            value.as_str().map(str::to_owned).unwrap_or_else(|| value.as_i64().unwrap().to_string())
        };
        plans[plan].iter().map(|(name, set)| format!("{name} = {}\n", value(set))).collect()
    };
    for major in ["10", "18"] {
        let site = Site::new();
        let host = site.host("db.0").pg(Pg::embedded(major)).build();
        for plan in &names {
            let bytes = |name: &str| -> u64 {
                let value = plans[*plan][name].as_str().unwrap();
                host.one(&format!("SELECT pg_size_bytes('{value}')")).parse().unwrap()
            };
            assert_eq!(bytes("shared_buffers") * 4, bytes("effective_cache_size"), "{plan}");
            for (name, value) in lines(plan).lines().map(|line| line.split_once(" = ").unwrap()) {
                host.exec(&format!("ALTER SYSTEM SET {name} = '{value}'"));
            }
        }
        host.exec("ALTER SYSTEM RESET ALL");
        for plan in ["dev", "crane"] {
            let report = apply(&host, plan, &lines(plan));
            assert_eq!(report["restarted"], true, "{report}");
            assert_eq!(setting(&host, "shared_buffers"), plans[plan]["shared_buffers"].as_str().unwrap());
        }
        // Its machine has no memory for it.
        let output = host.agent(&["plan", "mecha"]).stdin("shared_buffers = 900TB").run();
        assert_eq!(output.code, 1, "{output:?}");
        output
            .says("the plan mecha wants ")
            .says("hint: choose a smaller plan, or a machine with more memory");
    }
}
