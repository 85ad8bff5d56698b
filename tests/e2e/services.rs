//! What runs the server: supervisor, pg_ctl, the operator's own commands. (Debian's are in debian.rs.)

use crate::common::*;

/// Enslave, promote with a fence, enslave back, with the service that both hosts have.
fn there_and_back(first: &Host, second: &Host) {
    first.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    second.enslave(first, &[]);
    assert_streams(first, second);
    compare(first, second);
    second.agent(&["promote", "--fence"]).stdin(first.blurb()).run().ok();
    assert!(!first.is_running() && !second.is_standby());
    second.exec("INSERT INTO t VALUES (1000)");
    let back = first.enslave(second, &[]);
    assert_eq!(back["plan"]["action"], "repoint", "{back}");
    assert_streams(second, first);
    compare(second, first);
}

#[test]
fn pg_ctl() {
    let site = Site::new();
    let [first, second] = ["db.0", "db.1"].map(|name| {
        let host = site.host(name).pg(Pg::embedded("15")).yml("service", "pg_ctl").stopped().build();
        // Where it listens stands in postgresql.conf, which the copy replaces.
        host.append_conf(&format!(
            "port = {}\nunix_socket_directories = '{}'\n",
            host.port,
            host.socket_directory().display()
        ));
        host.start();
        host
    });
    there_and_back(&first, &second);
}

#[test]
fn a_plan_under_supervisor() {
    let site = Site::new();
    let host = supervised(&site, "db.0");
    let _supervisor = Supervisor::start(&host);
    let report = host.agent(&["--json", "plan", "crane"]).stdin("max_connections = 50").run().json();
    assert_eq!(report["restarted"], true, "{report}");
    assert_eq!(host.one("SHOW max_connections"), "50");
    // supervisor goes on trying to start it.
    let output = host.agent(&["plan", "ronin"]).stdin("wal_level = minimal").run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("it has its former settings again and accepts connections");
    assert_eq!(
        (host.one("SHOW max_connections"), host.one("SHOW wal_level")),
        ("50".into(), "replica".into())
    );
}

#[test]
fn supervisor() {
    let site = Site::new();
    let [first, second] = ["db.0", "db.1"].map(|name| supervised(&site, name));
    let _supervisors = [Supervisor::start(&first), Supervisor::start(&second)];
    let config = second.agent(&["--json", "config"]).run().json();
    let service = config.as_array().unwrap().iter().find(|s| s["name"] == "service").unwrap().clone();
    assert_eq!(service["value"], "supervisor", "{service}");
    there_and_back(&first, &second);
}

#[test]
fn commands_whose_server_keeps_their_output_open() {
    let (primary, standby) = pair(Pg::embedded("18"));
    // Started carelessly: the server holds whatever its starter had as standard output and error.
    let start = std::fs::read_to_string(standby.home.join("bin/pg-start")).unwrap();
    let log = format!("-l '{}'", standby.log_file().display());
    assert!(start.contains(&log), "{start}");
    standby.account.write(&standby.home.join("bin/pg-start"), start.replace(&log, ""), 0o755);
    let output = standby.agent(&["enslave"]).stdin(primary.blurb()).run().ok();
    assert!(output.elapsed.as_secs() < 240, "{:?}", output.elapsed);
    assert_streams(&primary, &standby);
}

#[test]
fn a_start_command_that_fails_is_quoted() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.account.write(
        &standby.home.join("bin/pg-start"),
        "#!/bin/sh\necho 'no such disk' >&2\nexit 7\n",
        0o755,
    );
    let output = standby.agent(&["enslave"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("could not start the server by").says("no such disk");
    primary_is_clean(&primary, &["pgmahout_db_1"]);
    // Nothing has to be copied again once that is mended.
    let good = site_start(&standby);
    standby.account.write(&standby.home.join("bin/pg-start"), good, 0o755);
    let done = standby.enslave(&primary, &[]);
    assert_eq!(done["plan"]["action"], "repoint", "{done}");
    assert_streams(&primary, &standby);
}

/// A start script like the harness's own.
fn site_start(host: &Host) -> String {
    format!(
        "#!/bin/sh\nexec '{bin}/pg_ctl' -D '{data}' -l '{log}' -w -o '-p {port} -c \"unix_socket_directories={run}\"' start\n",
        bin = host.pg.bin.display(),
        data = host.data.display(),
        log = host.log_file().display(),
        port = host.port,
        run = host.socket_directory().display(),
    )
}
