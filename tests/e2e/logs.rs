//! `pgmahout logs`: every format, every place a log can be, zones, following through rotation.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

const RECIPE_PREFIX: &str = "%m [%p] %q%u@%d %a ";

fn logging(site: &Arc<Site>, name: &str, pg: &str, destination: &str) -> HostBuilder {
    site.host(name)
        .pg(Pg::embedded(pg))
        .setting("log_min_messages", "warning")
        .setting("log_min_duration_statement", "50")
        .setting("log_line_prefix", RECIPE_PREFIX)
        .setting("log_destination", destination)
        .setting("logging_collector", "on")
}

fn logs(host: &Host, arguments: &[&str]) -> Output {
    host.agent(&[&["logs"], arguments].concat()).run().ok()
}

/// With --json: an object on every line.
fn entries(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let output = host.agent(&[&["--json", "logs"], arguments].concat()).run().ok();
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Seconds between now and the time that a line begins with, as the server sees it.
#[track_caller]
fn age(host: &Host, line: &str) -> f64 {
    let (time, _) = line.split_at(32);
    assert!(time.ends_with("+00:00"), "{line}");
    host.one(&format!("SELECT extract(epoch FROM now() - timestamptz '{time}')")).parse().unwrap()
}

#[test]
fn every_format_of_every_version_gives_the_same_lines() {
    let site = Site::new();
    let kinds = [
        ("10", "stderr"),
        ("10", "csvlog"),
        ("13", "csvlog"),
        ("15", "stderr,csvlog"),
        ("15", "jsonlog"),
        ("18", "stderr"),
        ("18", "csvlog"),
        ("18", "stderr,jsonlog"),
    ];
    for (number, (pg, destination)) in kinds.into_iter().enumerate() {
        let host = logging(&site, &format!("db.{number}"), pg, destination).build();
        let mut client = host.sql();
        client.batch_execute("SELECT\n\t  pg_sleep(0.07),\n  'ü\u{1b}[2J\u{9b}'").unwrap();
        client.query("SELECT pg_sleep($1::float8)", &[&0.12f64]).unwrap();
        client.batch_execute("SELECT 'quick'").unwrap();
        client.batch_execute("ALTER ROLE nobody PASSWORD 'geheim'").unwrap_err();
        client.batch_execute("SELECT 1/0").unwrap_err();
        client
            .batch_execute("LOAD 'auto_explain'; SET log_min_duration_statement = -1; SET auto_explain.log_min_duration = 0")
            .unwrap();
        client.batch_execute("SELECT pg_sleep(0.09)").unwrap();

        let what = format!("{pg}, {destination}");
        let slow = logs(&host, &["--slow"]).stdout;
        let lines: Vec<&str> = slow.lines().collect();
        assert_eq!(lines.len(), 3, "{what}: {slow}");
        for line in &lines {
            assert!(age(&host, line).abs() < 60.0, "{what}: {line}");
            assert!(line[32..].starts_with(&format!(" app[postgres.db.{number}]: [")), "{what}: {line}");
            assert!(line.contains("] LOG:  duration: "), "{what}: {line}");
        }
        assert!(
            lines[0].ends_with(" ms  statement: SELECT pg_sleep(0.07), 'ü\\u{1b}[2J\\u{9b}'"),
            "{what}: {slow}"
        );
        assert!(lines[1].contains("SELECT pg_sleep($1::float8)  DETAIL:  "), "{what}: {slow}");
        assert!(lines[1].contains(" execute ") && lines[1].contains("$1 = '0.12'"), "{what}: {slow}");
        assert!(lines[2].contains(" ms  plan: Query Text: SELECT pg_sleep(0.09) "), "{what}: {slow}");
        assert_eq!(logs(&host, &["--slow", "110"]).stdout.lines().count(), 1, "{what}");
        let from_setting = host.agent(&["logs", "--slow"]).env("PGMAHOUT_SLOW_QUERY_MS", "110").run();
        assert_eq!(from_setting.ok().stdout.lines().count(), 1, "{what}");

        let errors = logs(&host, &["--level", "error"]).says_not("geheim").stdout;
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 2, "{what}: {errors}");
        assert!(
            lines[0].ends_with(
                "ERROR:  role \"nobody\" does not exist  STATEMENT:  ALTER ROLE nobody PASSWORD '***'"
            ),
            "{what}: {errors}"
        );
        assert!(lines[1].ends_with("ERROR:  division by zero  STATEMENT:  SELECT 1/0"), "{what}: {errors}");

        let json = entries(&host, &["--slow"]);
        assert_eq!(json[0]["severity"], "LOG", "{what}: {json:?}");
        assert_eq!(json[0]["instance"], format!("db.{number}"), "{what}");
        assert!(json[0]["duration_ms"].as_f64().unwrap() >= 70.0, "{what}: {json:?}");
        let message = json[0]["message"].as_str().unwrap();
        assert!(
            message.ends_with("SELECT\n\t  pg_sleep(0.07),\n  'ü\u{1b}[2J\u{9b}'"),
            "{what}: {message:?}"
        );
        assert_eq!(json[0]["user"], host.superuser, "{what}: {json:?}");
        assert_eq!(json[0]["database"], "postgres", "{what}");
        assert_eq!(json[0]["application"], "the test", "{what}");
        let raw = host.agent(&["--json", "logs", "--slow"]).run().ok().stdout;
        assert!(!raw.contains(['\u{1b}', '\u{9b}']), "{what}: {raw:?}");

        // Of a server that is down: the place from its configuration.
        host.stop();
        assert_eq!(logs(&host, &["--slow"]).stdout, slow, "{what}");
        logs(&host, &["-n", "1"]).says("database system is shut down");
    }
}

#[test]
fn without_the_collector_it_is_the_managers_file() {
    let site = Site::new();
    let host = site
        .host("db.0")
        .pg(Pg::embedded("15"))
        .setting("log_min_duration_statement", "50")
        .setting("log_line_prefix", "%q[%u] %t <%-8p> ")
        .yml("service", "pg_ctl");
    let home = site.directory.join("db.0").display().to_string();
    let host = host.yml("state_directory", &home).build();
    host.exec("SELECT pg_sleep(0.06)");
    let shown = logs(&host, &["--slow"]).stdout;
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("LOG:  duration: ") && age(&host, &shown).abs() < 60.0, "{shown}");
    host.stop();
    assert_eq!(logs(&host, &["--slow"]).stdout, shown);
    // What the start script has written into it is not the server's.
    logs(&host, &[]).says("[-] STDERR:  start");
}

#[test]
fn a_server_that_somebody_else_started_is_asked_for_its_stderr() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    logs(&host, &[]).says("LOG:  database system is ready to accept connections");
    // That it shows nothing slow does not mean that nothing is.
    logs(&host, &["--slow"])
        .says("warning: the server does not log all statements of 50 ms: log_min_duration_statement is -1");
    host.stop();
    host.agent(&["logs"]).run().fails(
        1,
        "no log of this server was found: there is no file known that keeps its stderr (it is run by the operator's own commands)",
        "logging_collector = on with log_destination = 'stderr', 'csvlog' or 'jsonlog' gives one at the next \
         restart; so does a manager that keeps the server's stderr in a file (pg_ctl -l)",
    );
}

#[test]
fn times_are_utc_whatever_the_zone_of_the_log() {
    let site = Site::new();
    for (number, (zone, destination)) in
        [("Europe/Berlin", "stderr"), ("Asia/Kolkata", "csvlog"), ("America/Sao_Paulo", "jsonlog")]
            .into_iter()
            .enumerate()
    {
        let host =
            logging(&site, &format!("db.{number}"), "15", destination).setting("log_timezone", zone).build();
        host.exec("SELECT pg_sleep(0.06)");
        let shown = logs(&host, &["--slow"]).says_not("warning").stdout;
        assert!(age(&host, &shown).abs() < 60.0, "{zone}: {shown}");
        assert_eq!(logs(&host, &["--slow", "--since", "1m"]).stdout, shown, "{zone}");
        host.stop();
        let down = logs(&host, &["--slow"]);
        if zone == "America/Sao_Paulo" {
            // -03 says it all.
            assert_eq!(down.stdout, shown);
        } else {
            let down = down.says("warning: how far the log's time zone ");
            assert!(!down.stdout.contains("+00:00") && down.stderr.lines().count() == 1, "{down:?}");
        }
    }
}

#[test]
fn a_prefix_without_a_time_is_warned_of_once() {
    let site = Site::new();
    let host = logging(&site, "db.0", "15", "stderr").setting("log_line_prefix", "%p ").build();
    host.exec("SELECT pg_sleep(0.06)");
    let shown = logs(&host, &["--slow"]).says("warning: log_line_prefix has no time (%m)");
    assert!(age(&host, &shown.stdout).abs() < 60.0, "{shown:?}");
}

#[test]
fn a_tail_shows_within_two_seconds_and_an_interrupt_is_its_end() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("15")).setting("log_min_duration_statement", "50").build();
    host.exec("SELECT pg_sleep(0.06), 'before'");
    let tail = host.agent(&["logs", "--tail", "--slow", "-n", "1"]).spawn();
    until("the old one is shown", 10, || tail.stdout().contains("before"));
    // Others go on writing, neither often nor seldom.
    let mut other = host.sql();
    let ticks = std::thread::spawn(move || {
        let sql = "SET log_min_duration_statement = -1; DO $$ BEGIN FOR i IN 1..60 LOOP RAISE LOG 'tick'; \
                   PERFORM pg_sleep(0.05); END LOOP; END $$";
        other.batch_execute(sql).unwrap();
    });
    for _ in 0..3 {
        let seen = tail.stdout().lines().count();
        host.exec("SELECT pg_sleep(0.06), 'new'");
        until("the new one is shown", 30, || tail.stdout().lines().count() == seen + 1);
    }
    assert!(!ticks.is_finished());
    ticks.join().unwrap();
    tail.signal(Signal::SIGINT);
    let tail = tail.wait().ok();
    assert_eq!(tail.stderr, "");
    assert_eq!(tail.stdout.lines().count(), 4, "{}", tail.stdout);
}

#[test]
fn a_tail_ends_when_nobody_reads_it() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("15")).build();
    let script = format!("{} logs --tail | head -n 1", quote(binary()));
    let mut command = host.command("sh");
    command.args(["-c", &script]);
    // The server says nothing more: it is not a write that tells.
    let output = start_command(command).wait().ok();
    assert!(output.elapsed < Duration::from_secs(60), "{:?}", output.elapsed);
    assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
}

fn start_command(command: std::process::Command) -> Running {
    crate::common::start(command, "a pipeline".into(), None)
}

/// Three sessions that write marked lines as fast as they can; every batch is followed by `between`.
fn mark(host: &Host, batches: usize, size: usize, between: impl Fn(usize)) {
    for batch in 0..batches {
        std::thread::scope(|scope| {
            for session in ["a", "b", "c"] {
                scope.spawn(move || {
                    let (from, to) = (batch * size + 1, (batch + 1) * size);
                    let sql = format!(
                        "SET log_min_duration_statement = -1; SET log_min_error_statement = panic; \
                         DO $$ BEGIN FOR i IN {from}..{to} LOOP RAISE LOG 'marker {session} %\nof two lines', i; \
                         END LOOP; END $$"
                    );
                    host.sql().batch_execute(&sql).unwrap();
                });
            }
        });
        between(batch);
    }
}

/// It sees nothing of some batches until they are over, with all their rotations.
fn held_up(tail: &Running, batch: usize) {
    match batch {
        0 => tail.signal(Signal::SIGSTOP),
        2 => tail.signal(Signal::SIGCONT),
        _ => {}
    }
}

/// Each marker once, those of a session in their order, with all that belongs to it.
#[track_caller]
fn assert_marked(shown: &str, markers: usize) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in shown.lines() {
        let Some((_, marker)) = line.split_once("LOG:  marker ") else {
            assert!(!line.contains("marker "), "torn: {line}");
            continue;
        };
        let mut words = marker.split(' ');
        let (session, number) = (words.next().unwrap(), words.next().unwrap().parse::<usize>().unwrap());
        let count = seen.entry(session).or_default();
        assert_eq!(number, *count + 1, "{session}: one is missing or twice: {line}");
        *count = number;
        assert!(marker.contains(" of two lines  CONTEXT:  PL/pgSQL function inline_code_block"), "{line}");
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [markers; 3], "{seen:?}");
}

#[test]
fn a_tail_goes_through_the_collectors_rotation_and_loses_no_line() {
    let site = Site::new();
    let kinds = [("10", "stderr"), ("13", "csvlog"), ("18", "jsonlog"), ("15", "stderr")];
    for (number, (pg, destination)) in kinds.into_iter().enumerate() {
        let mut host = logging(&site, &format!("db.{number}"), pg, destination)
            .setting("log_rotation_size", "128kB")
            .setting("log_rotation_age", "0");
        // Names that come back, as those by the day of the week do: here every second and every ten.
        let name = if number == 3 { "pg-%S.log" } else { "pg-%H%M%S.log" };
        host = host.setting("log_filename", name);
        let host = host.build();
        let before = host.agent(&["logs", "--tail", "-n", "0"]).spawn();
        let after = host.agent(&["--json", "logs", "--tail", "-n", "0"]).spawn();
        std::thread::sleep(Duration::from_millis(800));
        mark(&host, 6, 500, |batch| {
            held_up(&before, batch);
            host.exec("SELECT pg_rotate_logfile()");
            std::thread::sleep(Duration::from_millis(700));
        });
        let files = std::fs::read_dir(host.data.join("log")).or(std::fs::read_dir(host.data.join("pg_log")));
        assert!(files.unwrap().count() >= 5, "it was rotated");
        let last = "marker c 3000";
        until("the last marker has come", 20, || before.stdout().contains(last));
        until("the last marker has come", 20, || after.stdout().contains(last));
        std::thread::sleep(Duration::from_millis(600));
        for tail in [&before, &after] {
            tail.signal(Signal::SIGTERM);
        }
        let shown = before.wait().ok().stdout;
        assert_marked(&shown, 3000);
        let objects = after.wait().ok().stdout;
        let markers = objects.lines().filter(|line| line.contains("\"message\":\"marker "));
        assert_eq!(markers.count(), 9000, "{pg}, {destination}");

        // The same of the old files, all of them and the last so many.
        let all = logs(&host, &["--since", "1h"]).stdout;
        assert_marked(&all, 3000);
        let lines: Vec<&str> = all.lines().collect();
        for count in [1, 50, 2500, 6000] {
            let shown = logs(&host, &["-n", &count.to_string()]).stdout;
            assert_eq!(shown.lines().count(), count, "{pg}, {destination}");
            // Each look connects, which is no line here: the end is the same.
            assert_eq!(
                shown.lines().collect::<Vec<_>>(),
                lines[lines.len() - count..],
                "{pg}, {destination}"
            );
        }
    }
}

struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its program ends with the host.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tail_goes_through_supervisors_rotation_and_loses_no_line() {
    let site = Site::new();
    let host = site
        .host("db.0")
        .pg(Pg::embedded("18"))
        .setting("log_line_prefix", RECIPE_PREFIX)
        .yml("service", "")
        .yml("start_command", "")
        .yml("stop_command", "")
        .stopped()
        .build();
    let (home, run) = (host.home.display(), host.socket_directory());
    host.account.mkdir(&host.home.join("logs"), 0o755);
    let config = format!(
        "[unix_http_server]\nfile={run}/supervisor.sock\n\n[supervisord]\nlogfile={home}/supervisord.log\n\
         pidfile={home}/supervisord.pid\n\n[program:postgres]\n\
         command={bin}/postgres -D \"{data}\" -p {port} -c \"unix_socket_directories={run}\"\n\
         stopsignal=INT\nredirect_stderr=true\nstdout_logfile=logs/postgres.log\n\
         stdout_logfile_maxbytes=200KB\nstdout_logfile_backups=30\n",
        run = run.display(),
        bin = host.pg.bin.display(),
        data = host.data.display(),
        port = host.port,
    );
    host.account.write(&host.home.join("supervisord.conf"), config, 0o644);
    let child = host
        .command("supervisord")
        .args(["-n", "-c"])
        .arg(host.home.join("supervisord.conf"))
        .current_dir(&host.home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("supervisord");
    let _supervisor = Supervisor(child);
    until("the server runs", 30, || host.try_sql("postgres").is_ok());

    let tail = host.agent(&["logs", "--tail", "-n", "0"]).spawn();
    std::thread::sleep(Duration::from_millis(800));
    mark(&host, 4, 500, |batch| {
        held_up(&tail, batch);
        std::thread::sleep(Duration::from_millis(200));
    });
    until("the last marker has come", 20, || tail.stdout().contains("marker c 2000"));
    std::thread::sleep(Duration::from_millis(600));
    assert!(host.home.join("logs/postgres.log.3").exists(), "it was rotated");
    tail.signal(Signal::SIGINT);
    assert_marked(&tail.wait().ok().stdout, 2000);
    assert_marked(&logs(&host, &["-n", "100000"]).stdout, 2000);
}

#[test]
fn an_emptied_log_is_read_from_its_beginning() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("15")).build();
    let tail = host.agent(&["logs", "--tail", "-n", "0"]).spawn();
    std::thread::sleep(Duration::from_millis(600));
    for round in ["first", "second"] {
        host.exec(&format!("DO $$ BEGIN RAISE LOG 'the {round}'; END $$"));
        until("it is shown", 5, || tail.stdout().contains(&format!("the {round}  CONTEXT")));
        // As logrotate's copytruncate does it.
        std::fs::copy(host.log_file(), host.log_file().with_extension("log.1")).unwrap();
        std::fs::File::options().write(true).truncate(true).open(host.log_file()).unwrap();
        std::thread::sleep(Duration::from_millis(400));
    }
    tail.signal(Signal::SIGINT);
    let shown = tail.wait().ok().stdout;
    assert_eq!(shown.matches("CONTEXT").count(), 2, "{shown}");
}

#[test]
fn what_cannot_be_read_is_said_with_the_way_out() {
    let site = Site::new();
    let host = logging(&site, "db.0", "15", "syslog").stopped().build();
    let elsewhere = "the server's log goes to syslog only, which is not read here";
    let hint = "look there (journalctl -t postgres, or the file that syslog writes), or add stderr to log_destination";
    host.agent(&["logs"]).run().fails(1, elsewhere, hint);
    host.append_conf("log_destination = 'stderr'\nlog_directory = 'logs'\n");
    let output = host.agent(&["logs"]).run();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("no log of this server was found: there is no postgresql-%Y-%m-%d_%H%M%S.log in ");
    let directory = host.data.join("logs");
    host.account.mkdir(&directory, 0o700);
    let file = directory.join("postgresql-2026-11-21_000000.log");
    host.account.write(&file, "2026-11-21 00:00:00.000 UTC [1] LOG:  x\n", 0o000);
    host.agent(&["logs"]).run().fails(
        1,
        &format!("the log {} cannot be read: Permission denied (os error 13)", file.display()),
        "run pgmahout as the account that runs the server, or let this one read it (log_file_mode = 0640 and \
         the server's group)",
    );
    // A server that does not let us in: its log says why, and is shown all the same.
    let host = logging(&site, "db.1", "15", "csvlog").build();
    host.account.write(&host.home.join("password"), "not the one\n", 0o600);
    let shown = logs(&host, &["--level", "fatal"]).says("configuration files are looked at instead");
    assert!(shown.stdout.contains("FATAL:  password authentication failed for user"), "{shown:?}");
}
