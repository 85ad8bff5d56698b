//! `pgmahout build-version`: what is built, kept, switched to and shared, what is refused, and what a failure
//! or an interruption leaves. The sources are stand-ins that become real servers in a moment (common/source.rs);
//! the test at the end compiles PostgreSQL itself.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tar::EntryType;

/// A host that uses what ~/postgresql points to, at first a server that it has not built.
fn host(site: &Arc<Site>, mirror: &Mirror) -> Host {
    builder(site, "db.0", mirror).build()
}

fn builder(site: &Arc<Site>, name: &str, mirror: &Mirror) -> HostBuilder {
    site.host(name).pg(Pg::embedded("15")).linked().yml("source_mirrors", &mirror.url())
}

fn build(host: &Host, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["--json", "build-version"].iter().chain(arguments).copied().collect();
    host.agent(&all).run().json()
}

fn run(host: &Host, arguments: &[&str]) -> Output {
    let all: Vec<&str> = ["build-version"].iter().chain(arguments).copied().collect();
    host.agent(&all).run()
}

fn version(host: &Host) -> String {
    host.one("SHOW server_version")
}

fn started(host: &Host) -> String {
    host.one("SELECT pg_postmaster_start_time()")
}

fn link(host: &Host) -> PathBuf {
    std::fs::read_link(host.home.join("postgresql")).unwrap()
}

fn native() -> PathBuf {
    Pg::embedded("15").bin.parent().unwrap().canonicalize().unwrap()
}

/// The versions whose builds are here.
fn built(host: &Host) -> Vec<String> {
    names(&host.home).iter().filter_map(|name| Some(name.strip_prefix("postgresql-")?.to_owned())).collect()
}

fn record(host: &Host, version: &str) -> Value {
    let path = host.home.join(format!("postgresql-{version}/pgmahout-build.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn sources(host: &Host) -> Vec<String> {
    names(&host.home.join(".pgmahout/sources"))
}

/// Where this host's sources are compiled: a home with a space is nothing for make.
fn scratch(host: &Host) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let prefix = format!("pgmahout-{}-", &sha256(host.home.as_os_str().as_bytes())[..8]);
    let found = names(Path::new("/var/tmp")).into_iter().filter(|name| name.starts_with(&prefix));
    found.map(|name| Path::new("/var/tmp").join(name)).collect()
}

/// What works in a directory or below, or did before it was removed.
fn works_in(directory: &Path) -> Vec<i32> {
    let at = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
    };
    pids().into_iter().filter(at).collect()
}

#[track_caller]
fn nothing_half_made(host: &Host) {
    let hidden: Vec<_> =
        names(&host.home).into_iter().filter(|name| name.starts_with(".postgresql")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
    assert!(scratch(host).is_empty(), "{:?}", scratch(host));
}

// --- building, switching, keeping ---------------------------------------------------------------------

#[test]
fn a_version_is_built_kept_and_the_server_runs_it() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = host(&site, &mirror);
    host.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    assert_eq!(version(&host), "15.18");
    let place = host.home.join("postgresql-15.98");

    let done = build(&host, &["15.98"]);
    for (name, expected) in [
        ("instance", json!("db.0")),
        ("version", json!("15.98")),
        ("directory", json!(place)),
        ("origin", json!("built")),
        ("source", json!(mirror.tarball_url("15.98"))),
        ("in_use", json!(true)),
        ("switched", json!(true)),
        ("restarted", json!(true)),
        ("previous", json!(Pg::embedded("15").bin.parent().unwrap())),
        ("dry_run", json!(false)),
    ] {
        assert_eq!(done[name], expected, "{name} of {done}");
    }
    assert_eq!((version(&host).as_str(), host.one("SHOW server_version_num").as_str()), ("15.98", "150098"));
    assert_eq!(host.one("SELECT count(*) FROM t"), "100");
    assert_eq!(link(&host), Path::new("postgresql-15.98"), "relative, as the home may be moved");
    assert_eq!(mirror.runs().iter().filter(|run| *run == "install").count(), 1);

    let record = record(&host, "15.98");
    assert_eq!(record["version"], "15.98");
    assert_eq!(record["sha256"], sha256(&std::fs::read(mirror.tarball("15.98")).unwrap()));
    assert_eq!(record["machine"]["architecture"], std::env::consts::ARCH);
    assert_eq!(record["options"], done["options"]);
    assert_eq!(record["with"], done["with"]);
    assert!(record["bytes"].as_u64().unwrap() > 30_000_000, "{record}");
    assert_eq!(record.get("taken_from"), None);
    nothing_half_made(&host);
    assert_eq!(sources(&host), [""; 0]);
}

#[test]
fn what_was_built_is_gone_back_to_listed_and_removed() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97", "15.98"]);
    let host = host(&site, &mirror);
    let listed = build(&host, &["--list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["version"], "15.18");
    assert_eq!(listed[0]["directory"], json!(native()));
    assert_eq!((&listed[0]["in_use"], &listed[0]["running"]), (&json!(true), &json!(true)));

    run(&host, &["15.98"]).ok().says("db.0 uses PostgreSQL 15.98 now, built in ");
    let back = build(&host, &["15.97"]);
    assert_eq!(back["previous"], "15.98", "{back}");
    assert_eq!((version(&host).as_str(), mirror.builds()), ("15.97", 2));
    let output = run(&host, &["15.98"]).ok();
    assert_eq!(output.stdout, "db.0 uses PostgreSQL 15.98 now, server restarted; before: 15.97\n");
    assert_eq!((version(&host).as_str(), mirror.builds()), ("15.98", 2), "nothing is compiled");
    let since = started(&host);
    let output = run(&host, &["15.98"]).ok();
    assert_eq!(output.stdout, "db.0 uses PostgreSQL 15.98 already\n");
    assert_eq!(started(&host), since, "not restarted");

    let listed = build(&host, &["--list"]);
    let states: Vec<_> =
        listed.as_array().unwrap().iter().map(|l| json!([l["version"], l["in_use"], l["running"]])).collect();
    assert_eq!(states, [json!(["15.97", false, false]), json!(["15.98", true, true])], "{listed}");
    assert_eq!(listed[1]["options"], record(&host, "15.98")["options"]);
    let table = run(&host, &["--list"]).ok().stdout;
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("VERSION  SIZE     BUILT"), "{table}");
    assert!(lines[1].starts_with("15.97    ") && !lines[1].contains("in use"), "{table}");
    assert!(lines[2].starts_with("15.98    ") && lines[2].contains(" UTC  in use, running"), "{table}");

    let hint = "switch to another one first: pgmahout build-version VERSION";
    let refused = |by| format!("PostgreSQL 15.98 is in use by {by}, and stays");
    run(&host, &["--remove", "15.98"]).fails(1, &refused("this instance"), hint);
    // The link is turned by hand, and the server runs on.
    std::fs::remove_file(host.home.join("postgresql")).unwrap();
    symlink("postgresql-15.97", host.home.join("postgresql")).unwrap();
    run(&host, &["--remove", "15.98"]).fails(1, &refused("a program that runs"), hint);
    let done = build(&host, &["15.97"]);
    assert_eq!((&done["switched"], &done["restarted"]), (&json!(false), &json!(true)), "{done}");
    assert_eq!(version(&host), "15.97");

    run(&host, &["--remove", "15.98", "-n"]).ok().says("PostgreSQL 15.98 would be removed from ");
    assert_eq!(built(&host), ["15.97", "15.98"]);
    let removed = build(&host, &["--remove", "15.98"]);
    assert!(removed["bytes"].as_u64().unwrap() > 30_000_000, "{removed}");
    assert_eq!(built(&host), ["15.97"]);
    run(&host, &["--remove", "15.98"]).fails(
        1,
        "there is no build of PostgreSQL 15.98 here, only of 15.97",
        "",
    );
    nothing_half_made(&host);
}

#[test]
fn a_stopped_server_stays_stopped_and_starts_with_the_new_one() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = builder(&site, "db.0", &mirror).stopped().build();
    let output = run(&host, &["15.98"]).ok();
    assert!(!output.stdout.contains("restarted") && !host.is_running(), "{}", output.stdout);
    host.start();
    assert_eq!(version(&host), "15.98");
}

#[test]
fn without_data_there_is_nothing_to_restart() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = builder(&site, "db.0", &mirror).without_data().build();
    std::fs::remove_file(host.home.join("postgresql")).unwrap();
    let done = build(&host, &["15.98"]);
    assert_eq!((&done["switched"], &done["restarted"]), (&json!(true), &json!(false)), "{done}");
    assert_eq!(link(&host), Path::new("postgresql-15.98"));
}

#[test]
fn a_major_version_means_its_newest_and_comes_from_where_the_platform_says_it() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97", "15.98"]);
    // Directories without a tarball: they are not asked.
    for other in ["v15.9", "v14.99", "v16.1", "v15beta1", "latest"] {
        std::fs::create_dir(mirror.directory.join(other)).unwrap();
    }
    let host = builder(&site, "db.0", &mirror).stopped().build();
    let newest = |output: Output| {
        output.says("the newest PostgreSQL 15 is 15.98").says("would build PostgreSQL 15.98 from ").ok();
    };
    newest(run(&host, &["15", "--dry-run"]));
    newest(host.agent(&["build-version", "-n"]).env("SERVICE_VERSION", "15").run());
    let code = host.home.join("code");
    run(&host, &["-n"]).fails(
        2,
        &format!(
            "no version is named: neither an argument nor $SERVICE_VERSION, and there is no {home}/code/dotcloud.yml \
             and no {home}/dotcloud.yml",
            home = host.home.display()
        ),
        "name one, as in: pgmahout build-version 17",
    );
    host.account.mkdir(&code, 0o755);
    host.account.write(&code.join("dotcloud.yml"), "db:\n  type: custom\n  version: 15\n", 0o644);
    newest(run(&host, &["-n"]));
    let output = host.agent(&["build-version", "-n"]).env("SERVICE_VERSION", "15.97").run().ok();
    output.says("version 15.97, says $SERVICE_VERSION").says("would build PostgreSQL 15.97 from ");
    run(&host, &["15"]).ok();
    assert_eq!(link(&host), Path::new("postgresql-15.98"));
}

#[test]
fn a_dry_run_changes_nothing_and_no_switch_changes_nothing_that_runs() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98", "16.98"]);
    let host = host(&site, &mirror);
    let before = snapshot(&host);
    let planned = build(&host, &["15.98", "--dry-run", "--", "--with-segsize=2"]);
    assert_eq!((&planned["origin"], &planned["dry_run"]), (&json!("built"), &json!(true)), "{planned}");
    assert_eq!(planned["source"], mirror.tarball_url("15.98"));
    assert_eq!(planned["options"][0], "--with-segsize=2");
    before.assert_unchanged(&host);
    assert_eq!(mirror.builds(), 0);
    assert_eq!(names(&host.home.join(".pgmahout/sources")), [""; 0]);

    let since = started(&host);
    let output = run(&host, &["15.98", "--no-switch"]).ok();
    let kept = format!("PostgreSQL 15.98 is in {}/postgresql-15.98, built in ", host.home.display());
    assert!(output.stdout.starts_with(&kept), "{}", output.stdout);
    assert!(
        output.stdout.ends_with("; `pgmahout build-version 15.98` switches to it\n"),
        "{}",
        output.stdout
    );
    // Another major version beside it is no danger to the data either.
    let beside = build(&host, &["16.98", "--no-switch"]);
    assert_eq!((&beside["in_use"], &beside["switched"]), (&json!(false), &json!(false)), "{beside}");
    assert_eq!(built(&host), ["15.98", "16.98"]);
    assert_eq!((version(&host), started(&host)), ("15.18".into(), since), "it was not touched");
    assert_eq!(link(&host), Pg::embedded("15").bin.parent().unwrap());
}

#[test]
fn options_reach_configure_and_another_choice_needs_a_rebuild() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host =
        builder(&site, "db.0", &mirror).yml("build_options", "--enable-debug --with-segsize=2").build();
    // What the operator's shell exports for another make is not for this one.
    let arguments = ["build-version", "15.98", "-j", "3", "--", "--without-icu", "CFLAGS=-O1 -g"];
    host.agent(&arguments).env("MAKEFLAGS", "-n").env("DESTDIR", "/nowhere").run().ok();
    let told = &mirror.runs()[0];
    let begin = "configure --prefix=/usr/local/postgresql-15.98 --enable-debug --with-segsize=2 --without-icu \
                 CFLAGS=-O1 -g ";
    assert!(told.starts_with(begin), "{told}");
    assert!(!told.contains("--with-icu"), "{told}");
    let options = record(&host, "15.98")["options"].clone();
    assert_eq!(options[3], "CFLAGS=-O1 -g", "one option");

    let warning =
        "warning: PostgreSQL 15.98 was built here without --enable-cassert; --rebuild builds it anew";
    let output = run(&host, &["15.98", "--quiet", "--", "--enable-cassert"]).ok();
    assert_eq!(output.stderr, format!("{warning}\n"));
    run(&host, &["15.98"]).ok().says_not("warning");
    let since = started(&host);
    let done = build(&host, &["15.98", "--rebuild", "--", "--enable-cassert"]);
    assert_eq!((&done["switched"], &done["restarted"]), (&json!(false), &json!(true)), "{done}");
    assert_ne!(started(&host), since, "its files are others now");
    assert!(record(&host, "15.98")["options"].as_array().unwrap().contains(&json!("--enable-cassert")));
    assert_eq!((mirror.builds(), version(&host).as_str()), (2, "15.98"));
    nothing_half_made(&host);
}

// --- when the new one is no good ----------------------------------------------------------------------

#[test]
fn a_server_that_does_not_start_is_switched_back() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97"]);
    mirror.publish(&Standin::new("15.98").that_does_not_start());
    let host = host(&site, &mirror);
    run(&host, &["15.97"]).ok();
    host.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    let output = run(&host, &["15.98"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:?}");
    output
        .says("it does not start; switching back")
        .says("pgmahout: the server did not start with PostgreSQL 15.98 and runs with 15.97 again: ")
        .says("this one does not start");
    assert_eq!(link(&host), Path::new("postgresql-15.97"));
    assert_eq!((version(&host).as_str(), host.one("SELECT count(*) FROM t").as_str()), ("15.97", "100"));
    assert_eq!(built(&host), ["15.97", "15.98"], "kept, to be looked at");
    run(&host, &["--remove", "15.98"]).ok();
    nothing_half_made(&host);
}

#[test]
fn a_rebuilt_version_that_does_not_start_is_taken_back() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = host(&site, &mirror);
    run(&host, &["15.98"]).ok();
    let before = record(&host, "15.98");
    mirror.publish(&Standin::new("15.98").that_does_not_start());
    run(&host, &["15.98", "--rebuild"])
        .says("it does not start; switching back")
        .says("the server did not start with PostgreSQL 15.98 and runs with the build before again: ");
    assert_eq!((version(&host).as_str(), record(&host, "15.98")), ("15.98", before));
    let left: Vec<_> = names(&host.home).into_iter().filter(|name| name.contains("replaced")).collect();
    assert!(left.is_empty(), "{left:?}");
    nothing_half_made(&host);
}

/// What a kill between the server's stop and its start leaves: the server down, and the agent's note of what
/// it used. With the link turned already, or not yet.
#[test]
fn a_switch_that_was_killed_is_completed_by_the_next_run() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97"]);
    mirror.publish(&Standin::new("15.96").that_does_not_start());
    let host = host(&site, &mirror);
    run(&host, &["15.97"]).ok();
    run(&host, &["15.96", "--no-switch"]).ok();
    let note = host.home.join(".pgmahout/switching");
    let kill = |link_to: &str| {
        host.stop();
        account().write(&note, native().to_str().unwrap(), 0o600);
        std::fs::remove_file(host.home.join("postgresql")).unwrap();
        symlink(link_to, host.home.join("postgresql")).unwrap();
    };
    for link_to in [native().to_str().unwrap(), "postgresql-15.97"] {
        kill(link_to);
        let done = build(&host, &["15.97"]);
        assert_eq!(done["restarted"], true, "{done}");
        assert_eq!((version(&host).as_str(), note.exists()), ("15.97", false));
    }
    // And when what it was switched to is no good, the way back leads to what was used before.
    kill("postgresql-15.96");
    run(&host, &["15.96"]).says("the server did not start with PostgreSQL 15.96 and runs with ");
    assert_eq!((version(&host).as_str(), note.exists()), ("15.18", false));
    assert_eq!(link(&host), native());
}

/// Between that kill and the next run somebody has promoted another instance in its place: to start it then would
/// make a second primary.
#[test]
fn a_killed_switch_does_not_start_a_server_that_was_fenced_since() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97"]);
    let host = host(&site, &mirror);
    run(&host, &["15.97", "--no-switch"]).ok();
    let note = host.home.join(".pgmahout/switching");
    host.stop();
    account().write(&note, native().to_str().unwrap(), 0o600);
    account().write(&host.home.join(".pgmahout/fenced"), "db.7 was promoted in place of it\n", 0o600);
    let done = build(&host, &["15.97"]);
    assert_eq!(done["restarted"], false, "{done}");
    assert!(!host.is_running() && !note.exists());
    assert_eq!(link(&host), std::path::Path::new("postgresql-15.97"));
    host.agent(&["wait"]).run().says("is stopped and stays down: db.7 was promoted in place of it");
}

#[test]
fn an_interrupt_during_the_switch_does_not_leave_the_server_down() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = host(&site, &mirror);
    run(&host, &["15.98", "--no-switch"]).ok();
    let mut running = host.agent(&["build-version", "15.98"]).spawn();
    until("the switch begins", 20, || running.stderr().contains("restarting the server"));
    if running.is_running() {
        running.signal(Signal::SIGINT);
    }
    let output = running.wait();
    assert!([0, 5].contains(&output.code), "{output:?}");
    until("the server is back", 30, || host.is_running());
    run(&host, &["15.98"]).ok();
    assert_eq!(version(&host), "15.98");
    assert!(!host.home.join(".pgmahout/switching").exists());
}

const BROKEN: &str = "#!/bin/sh\necho 'initdb: error while loading shared libraries: libicui18n.so.99: cannot open \
                      shared object file' >&2\nexit 127\n";
const BROKEN_TEXT: &str = "initdb of PostgreSQL 15.98 does not run here: initdb: error while loading shared \
                           libraries: libicui18n.so.99: cannot open shared object file";

#[test]
fn programs_that_do_not_run_or_are_others_are_not_installed() {
    let site = Site::new();
    let mirror = Mirror::new(&site);
    let host = host(&site, &mirror);
    let before = snapshot(&host);
    let text = |why| format!("initdb of PostgreSQL 15.98 does not run here: {why}");
    for (program, text, hint) in [
        ("#!/bin/sh\nexit 3\n", text("it says nothing (exit status: 3)"), ""),
        ("#!/bin/sh\necho 'initdb (PostgreSQL) 15.97'\n", text("it says \"initdb (PostgreSQL) 15.97\""), ""),
        (BROKEN, BROKEN_TEXT.into(), "apt-get install libicu99"),
    ] {
        let script = format!("cat >\"$prefix/bin/initdb\" <<'END'\n{program}END");
        mirror.publish(&Standin::new("15.98").in_install(&script));
        run(&host, &["15.98"]).fails(1, &text, hint);
        before.assert_unchanged(&host);
        nothing_half_made(&host);
    }
}

#[test]
fn a_start_command_that_uses_other_programs_is_told() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let script = |name| quote(site.directory.join("db.0/bin").join(name));
    let commands = builder(&site, "db.0", &mirror)
        .yml("service", "commands")
        .yml("start_command", &script("pg-start"))
        .yml("stop_command", &script("pg-stop"));
    let host = commands.build();
    run(&host, &["15.98"]).ok();
    assert_eq!(version(&host), "15.98");
    run(&host, &["15.98", "--rebuild"]).ok();

    let start = host.home.join("bin/pg-start");
    let text = std::fs::read_to_string(&start).unwrap();
    let linked = host.home.join("postgresql/bin").display().to_string();
    host.account.write(&start, text.replace(&linked, &native().join("bin").display().to_string()), 0o755);
    run(&host, &["15.98", "--rebuild"]).fails(
        1,
        &format!(
            "~/postgresql points to 15.98, but the server that was started is {}/bin/postgres",
            native().display()
        ),
        "let what starts the server use ~/postgresql/bin",
    );
    assert_eq!(version(&host), "15.18");
}

// --- refusals -----------------------------------------------------------------------------------------

/// A host that refusals share: nothing may change on it anyhow. One test at a time has it.
struct Turn {
    host: Arc<Host>,
    mirror: Mirror,
    before: Snapshot,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Turn {
    fn run(&self, arguments: &[&str]) -> Output {
        run(self, &[arguments, &["--mirror", &self.mirror.url()]].concat())
    }

    #[track_caller]
    fn unchanged(&self) {
        self.before.assert_unchanged(&self.host);
        nothing_half_made(&self.host);
        assert_eq!(version(self), "15.18");
    }
}

/// The shared host with a mirror of one's own.
fn shared() -> Turn {
    static SHARED: Mutex<Weak<Host>> = Mutex::new(Weak::new());
    static TURN: Mutex<()> = Mutex::new(());
    let host = {
        let mut slot = SHARED.lock().unwrap_or_else(|p| p.into_inner());
        slot.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Site::new().host("db.0").pg(Pg::embedded("15")).linked().build());
            new.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
            *slot = Arc::downgrade(&new);
            new
        })
    };
    let turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    // What a test has left that failed is not the next one's.
    let left = built(&host).into_iter().map(|version| format!("postgresql-{version}"));
    for directory in left.chain([".pgmahout/sources".into()]) {
        let _ = std::fs::remove_dir_all(host.home.join(directory));
    }
    let _ = std::fs::remove_dir_all(host.site.directory.join("mirror"));
    let (mirror, before) = (Mirror::new(&host.site), snapshot(&host));
    Turn { host, mirror, before, _turn: turn }
}

#[test]
fn another_major_version_than_the_datas_is_refused_before_anything_is_downloaded() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98", "16.98"]);
    let host = shared();
    let text = |wanted| {
        let data = host.data.display();
        format!("{data} is of PostgreSQL 15: a server of {wanted} cannot use it; nothing was changed")
    };
    let hint = |wanted| {
        format!(
            "keep to 15.x here, or build {wanted} beside it with --no-switch; data moves to another major version \
             by dump and restore into a new instance"
        )
    };
    host.run(&["16.98"]).fails(1, &text("16"), &hint("16"));
    host.run(&["17"]).fails(1, &text("17"), &hint("17"));
    host.run(&["14.2", "--rebuild", "--dry-run"]).fails(1, &text("14"), &hint("14"));
    host.run(&["9.6"]).fails(1, &text("9.6"), &hint("9.6"));
    assert!(!host.home.join(".pgmahout/sources").exists());

    let giver = builder(&site, "db.1", &mirror).without_data().build();
    build(&giver, &["16.98"]);
    let output = host.agent(&["build-version", "--from-blurb"]).stdin(giver.blurb()).run();
    output.fails(1, &text("16"), &hint("16"));
    host.unchanged();
}

const NO_MIRROR_HINT: &str = "a mirror is a directory that holds v17.6/postgresql-17.6.tar.gz and its like";

#[test]
fn what_no_mirror_has() {
    let host = shared();
    let url = host.mirror.url();
    let none = |wanted| format!("there is no PostgreSQL {wanted} at {url}");
    host.run(&["15.1"]).fails(1, &none("15.1"), NO_MIRROR_HINT);
    for version in ["v15.97", "v15.98", "v16.98"] {
        std::fs::create_dir(host.mirror.directory.join(version)).unwrap();
    }
    host.run(&["15.1"]).fails(1, &none("15.1"), "it has 15.97 to 15.98");
    host.run(&["16.1", "--no-switch"]).fails(1, &none("16.1"), "it has 16.98");
    host.run(&["17", "--no-switch"]).fails(1, &none("17"), "it has 15.97 to 16.98, but no 17");
    host.run(&["15.98"]).fails(1, &none("15.98"), "it has 15.97 to 15.98");
    let hint = "17 is the newest 17.x, 17.6 is that one; 9.6 and 9.6.24 likewise";
    for text in ["fifteen", "15.x", "../15.98", "15.9.8", "1", ""] {
        host.run(&[text]).fails(2, &format!("{text:?} is not a PostgreSQL version"), hint);
    }
    host.unchanged();
}

const DOWN_HINT: &str = "try again later, or name other mirrors in source_mirrors; `pgmahout build-version --list` shows \
    what is built here";

#[test]
fn mirrors_that_cannot_be_asked_and_one_that_can() {
    let host = shared();
    let closed = url_at(free_port());
    let gone = format!("{}/gone", host.mirror.url());
    let no_http = format!("{closed}: Connection refused (os error 111)");
    let no_file = format!("{gone}: there is no directory {}/gone", host.mirror.directory.display());
    for (urls, why) in [
        (vec![&closed], no_http.clone()),
        (vec![&gone], no_file.clone()),
        (vec![&closed, &gone], format!("{no_http}; {no_file}")),
    ] {
        let text = format!("no mirror could be asked for PostgreSQL 15.98: {why}");
        let arguments: Vec<&str> =
            ["15.98"].into_iter().chain(urls.iter().flat_map(|url| ["--mirror", url])).collect();
        run(&host, &arguments).fails(4, &text, DOWN_HINT);
    }
    let output = run(&host, &["15", "--mirror", &closed]);
    output.fails(4, &format!("no mirror could be asked for PostgreSQL 15: {no_http}"), DOWN_HINT);
    host.mirror.publish(&Standin::new("15.98"));
    for version in ["15", "15.98"] {
        let url = host.mirror.url();
        let output = run(&host, &[version, "-n", "--mirror", &closed, "--mirror", &gone, "--mirror", &url]);
        output.ok().says(&format!("would build PostgreSQL 15.98 from {}", host.mirror.tarball_url("15.98")));
    }
    host.unchanged();
}

#[test]
fn mirrors_that_are_none() {
    let host = shared();
    let hint = "source_mirrors are URLs such as https://ftp.postgresql.org/pub/source or file:///srv/mirror";
    for (url, text) in [
        (
            "ftp://ftp.postgresql.org/pub",
            "the mirror \"ftp://ftp.postgresql.org/pub\" is no https, http or file URL",
        ),
        ("/srv/mirror", "the mirror \"/srv/mirror\" is no https, http or file URL"),
        ("file://srv/mirror", "the mirror \"file://srv/mirror\" names no absolute path"),
        ("https:///pub", "the mirror \"https:///pub\" names no host"),
        (
            "https://me:secret@mirror.test/pub",
            "the mirror \"https://…@mirror.test/pub\" holds a password or a user name, which would get into logs",
        ),
    ] {
        run(&host, &["15.98", "--mirror", url]).fails(2, text, hint);
        let output = host.agent(&["build-version", "15.98"]).env("PGMAHOUT_SOURCE_MIRRORS", url).run();
        output.fails(2, text, hint);
    }
    host.unchanged();
}

#[test]
fn checksums_are_wanted_and_have_to_be_right() {
    let host = shared();
    let mirror = &host.mirror;
    mirror.publish(&Standin::new("15.98"));
    let (url, checksum) = (mirror.tarball_url("15.98"), mirror.checksum_file("15.98"));
    let right = sha256(&std::fs::read(mirror.tarball("15.98")).unwrap());
    let wrong = "0".repeat(64);
    let mismatch =
        format!("{url} has the SHA-256 {right}, but {wrong} was published; the download was removed");
    let mismatch_hint =
        "run the command again; if it stays so, the tarball was changed: choose another mirror";

    std::fs::write(&checksum, format!("{wrong}  postgresql-15.98.tar.gz\n")).unwrap();
    host.run(&["15.98"]).fails(1, &mismatch, mismatch_hint);
    assert_eq!(sources(&host), [""; 0]);
    std::fs::write(&checksum, format!("{right}  postgresql-15.97.tar.gz\n")).unwrap();
    host.run(&["15.98"]).fails(
        1,
        &format!("{url}.sha256 holds no SHA-256 of the tarball"),
        "choose another mirror in source_mirrors, or give the checksum by --sha256 HEX",
    );
    std::fs::remove_file(&checksum).unwrap();
    host.run(&["15.98"]).fails(
        1,
        &format!("{url} has no published checksum ({url}.sha256)"),
        "if you have it from elsewhere: --sha256 HEX",
    );
    host.run(&["15.98", "--sha256", &wrong]).fails(1, &mismatch, mismatch_hint);
    assert_eq!(sources(&host), [""; 0]);
    for text in ["abc", &right[1..], &"g".repeat(64)] {
        let said = format!("{text:?} is not a SHA-256: it has 64 hexadecimal digits");
        host.run(&["15.98", "--sha256", text]).fails(2, &said, "");
    }
    assert_eq!(mirror.builds(), 0, "nothing of it was run");
    host.unchanged();
    host.run(&["15.98", "--no-switch", "--sha256", &right.to_uppercase()]).ok();
    assert_eq!(record(&host, "15.98")["sha256"], right);
    run(&host, &["--remove", "15.98"]).ok();
    host.unchanged();
}

#[test]
fn a_tarball_that_climbs_out_is_refused() {
    let host = shared();
    let outside = Path::new("/var/tmp/pgmahout-climbed");
    for (name, kind, leads, why) in [
        ("../climbed", EntryType::Regular, "", "lies outside of its directory"),
        ("/var/tmp/pgmahout-climbed", EntryType::Regular, "", "lies outside of its directory"),
        ("postgresql-15.98/etc", EntryType::Symlink, "/etc", "is a link that leads outside of its directory"),
    ] {
        host.mirror.publish(&Standin::new("15.98").entry(name, kind, leads));
        let archive = host.home.join(".pgmahout/sources/postgresql-15.98.tar.gz");
        host.run(&["15.98"]).fails(
            1,
            &format!("{} was refused: {name:?} {why}", archive.display()),
            "it is not a tarball that PostgreSQL's project made; choose another mirror",
        );
        assert!(!outside.exists() && !Path::new("/var/tmp/climbed").exists(), "{name}");
        host.unchanged();
    }
    assert_eq!(host.mirror.builds(), 0);
}

#[test]
fn a_tarball_that_is_none_is_refused() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98"));
    let whole = std::fs::read(host.mirror.tarball("15.98")).unwrap();
    for bytes in [&b"<html>Please log in</html>"[..], &whole[..whole.len() / 2], b""] {
        host.mirror.publish_bytes("15.98", bytes);
        let output = host.run(&["15.98"]);
        assert_eq!(output.code, 1, "{output:?}");
        let archive = host.home.join(".pgmahout/sources/postgresql-15.98.tar.gz");
        output.says(&format!("pgmahout: {} cannot be unpacked: ", archive.display()));
        host.unchanged();
    }
}

/// A tool fails with this as its last words.
fn tool_fails(standin: Standin, phase: &str, status: u8, words: &str) {
    let host = shared();
    host.mirror.publish(&standin);
    let log = host.home.join(".pgmahout/build-15.98.log");
    let text = format!(
        "{phase} of PostgreSQL 15.98 failed (exit status: {status}); nothing was changed. Its last words:\n{words}"
    );
    host.run(&["15.98"]).fails(1, &text, &format!("all that it said is in {}", log.display()));
    let said = std::fs::read_to_string(log).unwrap();
    assert!(said.contains("$ ") && said.contains("checking for gcc... yes"), "{said}");
    assert_eq!(built(&host), [""; 0]);
    host.unchanged();
}

#[test]
fn configure_fails() {
    let standin =
        Standin::new("15.98").in_configure("echo 'configure: error: the moon is full' >&2; exit 77");
    let words = "checking for gcc... yes\nchecking for strip... yes\nchecking for ld... yes\n\
                 configure: error: the moon is full";
    tool_fails(standin, "configure", 77, words);
}

#[test]
fn make_fails_far_above_the_end() {
    let script = "echo \"x.c:1:5: error: expected ';'\" >&2\n\
                  for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo \"line $n\"; done\nexit 1";
    let lines: String = (2..=12).map(|n| format!("line {n}\n")).collect();
    let words = format!("x.c:1:5: error: expected ';'\n{lines}make: *** [Makefile:2: all] Error 1");
    tool_fails(Standin::new("15.98").in_make(script), "make", 2, &words);
}

#[test]
fn make_install_fails() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98").in_install("echo 'cp: error: no'; exit 1"));
    let output = host.run(&["15.98"]);
    assert_eq!(output.code, 1, "{output:?}");
    output
        .says("make install of PostgreSQL 15.98 failed (exit status: 2); nothing was changed. Its last words:\n")
        .says("cp: error: no\nmake: *** [Makefile:4: install] Error 1\nhint: all that it said is in ");
    host.unchanged();
}

/// A PATH with all of /usr/bin but these.
fn path_without(site: &Site, missing: &[&str]) -> PathBuf {
    let directory = site.directory.join("bin");
    std::fs::create_dir(&directory).unwrap();
    for name in names(Path::new("/usr/bin")) {
        if !missing.contains(&name.as_str()) {
            symlink(Path::new("/usr/bin").join(&name), directory.join(&name)).unwrap();
        }
    }
    directory
}

#[test]
fn missing_tools_and_libraries_are_named_with_their_packages() {
    let host = shared();
    let site = Site::new();
    let path = path_without(&site, &["cc", "make", "bison", "flex"]);
    let without = |arguments: &[&str]| {
        let all: Vec<&str> = ["build-version"].iter().chain(arguments).copied().collect();
        host.agent(&all).env("PATH", &path).run()
    };
    without(&["15.98"]).fails(
        1,
        "building PostgreSQL 15 needs cc, make: not on this machine",
        "apt-get install gcc libc6-dev make",
    );
    without(&["17.98", "--no-switch"]).fails(
        1,
        "building PostgreSQL 17 needs cc, make, bison, flex: not on this machine",
        "apt-get install bison flex gcc libc6-dev make",
    );
    run(&host, &["15.98", "--", "CC=no-such-compiler -m64"]).fails(
        1,
        "building PostgreSQL 15 needs no-such-compiler: not on this machine",
        "apt-get install gcc libc6-dev",
    );
    run(&host, &["15.98", "--", "CC=false"]).fails(
        1,
        "building PostgreSQL 15 needs a working C compiler (false): not on this machine",
        "apt-get install gcc libc6-dev",
    );
    std::fs::remove_dir_all(&path).unwrap();
    let path = path_without(&site, &["xml2-config"]);
    let output = host.agent(&["build-version", "15.98", "--", "--with-libxml"]).env("PATH", &path).run();
    output.fails(
        1,
        "libxml2 was asked for and is not on this machine",
        "apt-get install libxml2-dev, or leave the option away",
    );
    host.unchanged();
}

#[test]
fn options_that_are_none() {
    let host = shared();
    let hint = "as in: pgmahout build-version 17 -- --with-perl CFLAGS=-O3";
    for option in ["--prefix=/opt/postgresql", "--bindir=/x", "-q", "nonsense"] {
        let text = format!(
            "the option {option:?} is none that can be set here; --with-…, --without-…, --enable-…, --disable-… and \
             VARIABLE=value can"
        );
        let mirror = host.mirror.url();
        run(&host, &["15.98", "--mirror", &mirror, "--", option]).fails(2, &text, hint);
    }
    host.unchanged();
}

// --- room and rights ----------------------------------------------------------------------------------

#[test]
fn a_home_too_small_is_refused_before_the_download() {
    let site = Site::new();
    let mirror = Mirror::new(&site);
    mirror.publish(&Standin::new("15.98").padded(2_000_000));
    let disk = SmallDisk::mount(&site, "small", 4);
    let host = builder(&site, "db.0", &mirror).home(&disk.path).without_data().build();
    run(&host, &["15.98"]).fails(
        1,
        &format!("{} needs 7 MB and has 4 MB", disk.path.display()),
        "make room, or use a larger disk",
    );
    assert_eq!(mirror.builds(), 0);
    nothing_half_made(&host);
}

const FULL: &str =
    "No space left on device (os error 28)\nhint: make room there, then run the same command again\n";

#[test]
fn a_disk_that_fills_up_in_make_leaves_nothing() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98").in_make("dd if=/dev/zero of=huge bs=64k"));
    let disk = SmallDisk::mount(&host.site, "small", 4);
    let mirror = host.mirror.url();
    let arguments = ["build-version", "15.98", "--mirror", &mirror];
    let output = host.agent(&arguments).env("PGMAHOUT_BUILD_DIRECTORY", &disk.path).run();
    let wanted = "has to be a path of letters, digits and . _ - + , @, as make cannot quote";
    output.fails(2, &format!("the setting build_directory is {:?}, but {wanted}", disk.path), "");
    let plain = std::env::temp_dir().join(format!("pgmahout-full-{}", std::process::id()));
    symlink(&disk.path, &plain).unwrap();
    let output = host.agent(&arguments).env("PGMAHOUT_BUILD_DIRECTORY", &plain).run();
    std::fs::remove_file(&plain).unwrap();
    assert_eq!(output.code, 1, "{output:?}");
    output.says(&format!("pgmahout: could not build in {}/pgmahout-", plain.display())).says(FULL);
    assert_eq!(names(&disk.path), [""; 0]);
    drop(disk);
    std::fs::remove_dir(host.site.directory.join("small")).unwrap();
    host.unchanged();
}

#[test]
fn a_home_that_fills_up_keeps_no_half_of_a_build() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let disk = SmallDisk::mount(&site, "small", 20);
    let host = builder(&site, "db.0", &mirror).home(&disk.path).without_data().build();
    let output = run(&host, &["15.98"]);
    assert_eq!(output.code, 1, "{output:?}");
    output.says(FULL);
    assert_eq!((mirror.builds(), built(&host)), (1, Vec::new()));
    nothing_half_made(&host);
}

#[test]
fn a_home_that_is_not_ours() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = builder(&site, "db.0", &mirror).without_data().build();
    let mode = |mode| std::fs::set_permissions(&host.home, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    run(&host, &["15.98"]).fails(
        1,
        &format!("could not create {}/.pgmahout: Permission denied (os error 13)", host.home.display()),
        "let this account write there, or run as the one that may",
    );
    mode(0o755);
    assert!(nix::unistd::geteuid().is_root(), "this test gives a home away: run it as root");
    std::os::unix::fs::chown(&host.home, Some(0), Some(0)).unwrap();
    for arguments in [&["15.98"][..], &["--remove", "15.98"]] {
        run(&host, arguments).fails(
            2,
            &format!("{} belongs to root, and this is another account", host.home.display()),
            "run pgmahout as the account that runs the server",
        );
    }
    assert_eq!(mirror.builds(), 0);
}

#[test]
fn a_server_that_is_not_started_from_the_link_is_not_switched() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98"));
    let url = host.mirror.url();
    let hint = "build with --no-switch and change that yourself; or install that version as a package";
    let not_from = |programs: &Path, because: &str| {
        let programs = programs.display();
        format!("this instance's server is started from {programs}, not from ~/postgresql: {because}")
    };
    let arguments = ["build-version", "15.98", "--mirror", &url];
    let embedded = Pg::embedded("15").bin;
    let is_set = not_from(&embedded, "bin_directory is set (environment, PGMAHOUT_BIN_DIRECTORY)");
    host.agent(&arguments).env("PGMAHOUT_BIN_DIRECTORY", &embedded).run().fails(1, &is_set, hint);
    let taking = host.agent(&["build-version", "--from-blurb"]).stdin(host.blurb());
    taking.env("PGMAHOUT_BIN_DIRECTORY", &embedded).run().fails(1, &is_set, hint);
    let systemd = host.agent(&arguments).env("PGMAHOUT_SERVICE", "systemd");
    systemd.env("PGMAHOUT_SYSTEMD_UNIT", "postgresql@15-main").run().fails(
        1,
        &not_from(&host.home.join("postgresql/bin"), "it is run by systemd unit postgresql@15-main"),
        hint,
    );
    // The link itself may be said.
    let dry = [&arguments[..], &["-n"]].concat();
    host.agent(&dry).env("PGMAHOUT_BIN_DIRECTORY", host.home.join("postgresql/bin")).run().ok();
    assert_eq!(host.mirror.builds(), 0);
    host.unchanged();
}

#[test]
fn a_directory_in_the_links_place_stays() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = builder(&site, "db.0", &mirror).without_data().build();
    let path = host.home.join("postgresql");
    std::fs::remove_file(&path).unwrap();
    host.account.mkdir(&path, 0o755);
    run(&host, &["15.98"]).fails(
        1,
        &format!("{} is not a symbolic link, so it cannot be switched", path.display()),
        "rename it to postgresql-<its version>; or build beside it with --no-switch",
    );
    assert_eq!(mirror.builds(), 0);
    run(&host, &["15.98", "--no-switch"]).ok();
    assert!(path.is_dir() && built(&host) == ["15.98"]);
}

// --- interruptions ------------------------------------------------------------------------------------

#[test]
fn an_interrupt_ends_the_compilers_and_leaves_nothing_but_the_tarball() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98"));
    host.mirror.hold();
    let url = host.mirror.url();
    let running = host.agent(&["build-version", "15.98", "--mirror", &url]).spawn();
    host.mirror.until_make_is_at_work();
    let tree = scratch(&host).remove(0);
    assert!(!works_in(&tree).is_empty());
    running.signal(Signal::SIGINT);
    running.wait().fails(5, "interrupted", "run the same command again to complete it");
    assert_eq!(works_in(&tree), [0; 0]);
    assert_eq!(sources(&host), ["postgresql-15.98.tar.gz"]);
    host.mirror.release();
    host.unchanged();
    // It is not downloaded again.
    std::fs::remove_file(host.mirror.tarball("15.98")).unwrap();
    host.run(&["15.98", "--no-switch"]).ok();
    assert_eq!((host.mirror.builds(), sources(&host)), (2, Vec::new()));
    run(&host, &["--remove", "15.98"]).ok();
    host.unchanged();
}

#[test]
fn a_make_that_takes_too_long_is_ended() {
    let host = shared();
    host.mirror.publish(&Standin::new("15.98"));
    host.mirror.hold();
    let url = host.mirror.url();
    let arguments = ["build-version", "15.98", "--mirror", &url];
    let output = host.agent(&arguments).env("PGMAHOUT_BUILD_TIMEOUT", "2").run();
    output.fails(1, "make did not end within 2 s and was killed", "");
    until("no make is left", 5, || scratch(&host).is_empty());
    host.mirror.release();
    host.unchanged();
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = host(&site, &mirror);
    mirror.hold();
    let running = host.agent(&["build-version", "15.98"]).spawn();
    mirror.until_make_is_at_work();
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, -9);
    let left = scratch(&host).remove(0);
    assert_eq!((version(&host).as_str(), built(&host)), ("15.18", Vec::new()));
    // The make of the killed one is still at work.
    assert!(!works_in(&left).is_empty());
    std::fs::remove_file(mirror.tarball("15.98")).unwrap();
    let again = host.agent(&["build-version", "15.98"]).spawn();
    until("make is at work again", 30, || mirror.runs().iter().filter(|run| *run == "make").count() == 2);
    assert!(!left.exists());
    mirror.release();
    again.wait().ok();
    assert_eq!(version(&host), "15.98");
    until("the old make is over", 10, || works_in(&left).is_empty());
    nothing_half_made(&host);
}

#[test]
fn two_at_once_build_once() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let host = host(&site, &mirror);
    mirror.hold();
    let first = host.agent(&["build-version", "15.98"]).spawn();
    mirror.until_make_is_at_work();
    let second = host.agent(&["build-version", "15.98"]).spawn();
    let waits = format!(
        "waiting for another one at work on PostgreSQL 15.98: build-version 15.98 (process {})\n",
        first.pid()
    );
    until("the second one waits", 20, || second.stderr().contains(&waits));
    mirror.release();
    first.wait().ok().says("db.0 uses PostgreSQL 15.98 now, built in ");
    second.wait().ok();
    assert_eq!((mirror.builds(), version(&host).as_str()), (1, "15.98"));
    let log = std::fs::read_to_string(host.home.join(".pgmahout/postgres.log")).unwrap();
    assert_eq!(log.matches("starting PostgreSQL 15.98").count(), 1, "restarted once\n{log}");
    nothing_half_made(&host);
}

// --- the web ------------------------------------------------------------------------------------------

/// A mirror behind nginx, its tarball of so many bytes, and a home without data.
fn web(bytes: usize) -> (Arc<Site>, Mirror, Nginx, Host) {
    let site = Site::new();
    let mirror = Mirror::new(&site);
    mirror.publish(&Standin::new("15.98").padded(bytes));
    let nginx = Nginx::serve(&site, &mirror);
    let host = builder(&site, "db.0", &mirror).without_data().build();
    (site, mirror, nginx, host)
}

const TARBALL: &str = "GET /v15.98/postgresql-15.98.tar.gz";

#[test]
fn by_http_and_https() {
    let (_site, mirror, nginx, host) = web(300_000);
    let done = build(&host, &["15", "--mirror", &nginx.url()]);
    assert_eq!(done["source"], format!("{}/v15.98/postgresql-15.98.tar.gz", nginx.url()), "{done}");
    assert_eq!(link(&host), Path::new("postgresql-15.98"));
    let asked = ["GET / 200".into(), format!("{TARBALL}.sha256 200"), format!("{TARBALL} 200")];
    assert_eq!(nginx.log(), asked);

    let again = ["build-version", "15.98", "--rebuild", "--mirror", &nginx.tls_url()];
    let output = host.agent(&again).run();
    assert_eq!(output.code, 4, "{output:?}");
    output
        .says(&format!("pgmahout: no mirror could be asked for PostgreSQL 15.98: {}: ", nginx.tls_url()))
        .says("certificate verify failed")
        .says(DOWN_HINT);
    assert_eq!(nginx.log().len(), 3);
    host.agent(&again).env("SSL_CERT_FILE", nginx.certificate()).run().ok();
    assert_eq!((nginx.log().len(), mirror.builds()), (5, 2));

    let url = format!("{}/elsewhere", nginx.url());
    let text = format!("there is no PostgreSQL 15.97 at {url}");
    run(&host, &["15.97", "--mirror", &format!("{url}/")]).fails(1, &text, NO_MIRROR_HINT);
    nothing_half_made(&host);
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let (_site, _mirror, nginx, host) = web(3_000_000);
    let proxy = Proxy::to(nginx.port).slow(1_000_000);
    let url = url_at(proxy.port);
    let running = host.agent(&["build-version", "15.98", "--mirror", &url]).spawn();
    until("a third of it came", 30, || proxy.passed() > 1_000_000);
    proxy.cut();
    proxy.set_rate(0);
    running.wait().ok().says("postgresql-15.98.tar.gz: going on after ");
    assert_eq!(nginx.log().last().unwrap(), &format!("{TARBALL} 206"));
    nothing_half_made(&host);
}

#[test]
fn a_download_that_broke_goes_on_in_the_next_run() {
    let (_site, mirror, nginx, host) = web(3_000_000);
    let proxy = Proxy::to(nginx.port).slow(1_000_000);
    let url = url_at(proxy.port);
    let running = host.agent(&["build-version", "15.98", "--mirror", &url]).spawn();
    until("a half of it came", 30, || proxy.passed() > 1_500_000);
    proxy.refuse();
    let output = running.wait();
    assert_eq!(output.code, 4, "{output:?}");
    output
        .says(&format!("pgmahout: the download of {url}/v15.98/postgresql-15.98.tar.gz broke: "))
        .says("hint: run the same command again: it goes on after the 2 MB that are here\n");
    assert_eq!(sources(&host), ["postgresql-15.98.tar.gz.part"]);
    run(&host, &["15.98", "--mirror", &nginx.url()]).ok().says("going on after ");
    assert_eq!(nginx.log().last().unwrap(), &format!("{TARBALL} 206"));

    // What does not fit is downloaded anew.
    let part = host.home.join(".pgmahout/sources/postgresql-15.98.tar.gz.part");
    host.account.write(&part, vec![7; 100_000], 0o600);
    let output = run(&host, &["15.98", "--rebuild", "--mirror", &nginx.url()]).ok();
    output.says("what an earlier download left does not fit; downloading all of it");
    let answers: Vec<_> =
        nginx.log().iter().filter_map(|line| line.strip_prefix(TARBALL).map(str::to_owned)).collect();
    assert_eq!(answers[answers.len() - 2..], [" 206", " 200"]);
    // Longer than what is there: nothing to go on from either.
    host.account.write(&part, vec![7; 4_000_000], 0o600);
    run(&host, &["15.98", "--rebuild", "--mirror", &nginx.url()]).ok();
    assert_eq!((mirror.builds(), sources(&host)), (3, Vec::new()));
}

#[test]
fn an_interrupted_download_ends_at_once() {
    // It would take five minutes
    let (_site, mirror, nginx, host) = web(30_000_000);
    let proxy = Proxy::to(nginx.port).slow(100_000);
    let running = host.agent(&["build-version", "15.98", "--mirror", &url_at(proxy.port)]).spawn();
    until("some of it came", 30, || proxy.passed() > 200_000);
    running.signal(Signal::SIGINT);
    let output = running.wait();
    assert!(output.elapsed.as_secs() < 120, "{output:?}");
    output.fails(5, "interrupted", "run the same command again to complete it");
    assert_eq!((mirror.builds(), sources(&host)), (0, vec!["postgresql-15.98.tar.gz.part".into()]));
    nothing_half_made(&host);
}

// --- from one instance to another ---------------------------------------------------------------------

fn take(host: &Host, giver: &Host, flags: &[&str]) -> Output {
    let all: Vec<&str> = ["--json", "build-version", "--from-blurb"].iter().chain(flags).copied().collect();
    host.agent(&all).stdin(giver.blurb()).run()
}

#[test]
fn a_finished_build_is_taken_from_another_instance() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97", "15.98"]);
    let giver = builder(&site, "db.0", &mirror).without_data().build();
    let taker = builder(&site, "db.1", &mirror).build();
    taker.exec("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    build(&giver, &["15.97", "--no-switch"]);
    build(&giver, &["15.98"]);
    // A profile that prints, as many do.
    let wrapper = giver.home.join("sshd/wrapper");
    let talking = std::fs::read_to_string(&wrapper).unwrap().replace(
        "exec /bin/bash",
        "echo 'Welcome to db.0!'; printf 'no newline'; echo 'and to stderr' >&2\nexec /bin/bash",
    );
    giver.account.write(&wrapper, talking, 0o755);

    let before = snapshot(&taker);
    let planned = take(&taker, &giver, &["--dry-run"]).json();
    assert_eq!((&planned["origin"], &planned["version"]), (&json!("taken"), &json!("15.98")), "{planned}");
    before.assert_unchanged(&taker);

    let done = take(&taker, &giver, &[]).json();
    for (name, expected) in [
        ("origin", json!("taken")),
        ("version", json!("15.98")),
        ("switched", json!(true)),
        ("restarted", json!(true)),
    ] {
        assert_eq!(done[name], expected, "{name} of {done}");
    }
    assert_eq!((version(&taker).as_str(), taker.one("SELECT count(*) FROM t").as_str()), ("15.98", "100"));
    assert_eq!(link(&taker), Path::new("postgresql-15.98"));
    let mut expected = record(&giver, "15.98");
    expected["taken_from"] = json!("db.0");
    assert_eq!(record(&taker, "15.98"), expected);
    let listed = build(&taker, &["--list"]);
    assert_eq!(listed[0]["taken_from"], "db.0", "{listed}");
    run(&taker, &["--list"]).ok().says("(from db.0)\n");

    let since = started(&taker);
    let again = take(&taker, &giver, &[]).json();
    assert_eq!((&again["origin"], &again["restarted"]), (&json!("present"), &json!(false)), "{again}");
    assert_eq!(started(&taker), since);
    take(&taker, &giver, &["15.97", "--no-switch"]).ok();
    assert_eq!(built(&taker), ["15.97", "15.98"]);
    assert_eq!(version(&taker), "15.98");
    let newest = take(&taker, &giver, &["15"]).json();
    assert_eq!(newest["version"], "15.98", "{newest}");
    assert_eq!(mirror.builds(), 2);
    nothing_half_made(&taker);
}

#[test]
fn what_another_instance_cannot_give() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let giver = builder(&site, "db.0", &mirror).without_data().build();
    let taker = shared();
    let hint = "build that version here: pgmahout build-version VERSION --no-switch";
    let refused = |version: &[&str], has: &str| {
        let arguments = [&["build-version", "--from-blurb"], version].concat();
        let output = taker.agent(&arguments).stdin(giver.blurb()).run();
        output.fails(1, &format!("db.0 has no such build to give: {has}"), hint);
    };
    refused(&[], &format!("it uses {}/bin, which it has not built", native().display()));
    refused(&["15.98"], "it has built none");
    build(&giver, &["15.98"]);
    refused(&["15.1"], "it has built only 15.98");
    refused(&["16"], "it has built only 15.98");

    // As if it were another machine.
    let path = giver.home.join("postgresql-15.98/pgmahout-build.json");
    let right = std::fs::read_to_string(&path).unwrap();
    let machine = &record(&giver, "15.98")["machine"];
    let ours =
        format!("{}, {}", machine["architecture"].as_str().unwrap(), machine["libc"].as_str().unwrap());
    for (name, other) in [("libc", "glibc 2.99"), ("libc", "musl 1.2.5"), ("architecture", "m68k")] {
        let mut changed: Value = serde_json::from_str(&right).unwrap();
        changed["machine"][name] = json!(other);
        giver.account.write(&path, changed.to_string(), 0o644);
        let theirs = ours.replace(machine[name].as_str().unwrap(), other);
        taker.agent(&["build-version", "--from-blurb"]).stdin(giver.blurb()).run().fails(
            1,
            &format!("the build of db.0 is of another kind of machine ({theirs}); this one is {ours}"),
            "build it here: pgmahout build-version VERSION",
        );
    }
    // Programs that do not run here all the same.
    giver.account.write(&path, &right, 0o644);
    giver.account.write(&giver.home.join("postgresql-15.98/bin/initdb"), BROKEN, 0o755);
    let output = taker.agent(&["build-version", "--from-blurb"]).stdin(giver.blurb()).run();
    output.fails(1, BROKEN_TEXT, "apt-get install libicu99");
    taker.unchanged();
}

#[test]
fn a_connection_that_breaks_leaves_no_half_of_a_build() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.98"]);
    let giver = builder(&site, "db.0", &mirror).without_data().build();
    build(&giver, &["15.98"]);
    let taker = shared();
    let proxy = Proxy::to(giver.ssh_port).slow(5_000_000);
    let blurb = giver.blurb_at(proxy.port, giver.port);
    let running = taker.agent(&["build-version", "--from-blurb"]).stdin(blurb).spawn();
    until("some of it came", 30, || proxy.passed() > 2_000_000);
    proxy.refuse();
    let output = running.wait();
    assert!(output.code == 1 || output.code == 4, "{output:?}");
    taker.unchanged();
    assert_eq!(built(&taker), [""; 0]);
}

#[test]
fn a_standby_takes_the_build_of_its_source() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["16.98"]);
    let source = builder(&site, "db.0", &mirror).pg(Pg::embedded("16")).build();
    build(&source, &["16.98"]);
    noise(&source, 16);
    let target = builder(&site, "db.1", &mirror).build();
    let before = snapshot(&target);
    target.agent(&["enslave", "--confirm", "db.1"]).stdin(source.blurb()).run().fails(
        1,
        "the source is PostgreSQL 16.98, and this instance has the programs of 15.18",
        "a standby needs the same major version: --take-build takes the source's finished build",
    );
    before.assert_unchanged(&target);
    let planned = target.enslave(&source, &["--take-build", "--dry-run"]);
    assert_eq!(planned["taken_build"], "16.98", "{planned}");
    before.assert_unchanged(&target);
    assert_eq!(built(&target), [""; 0]);

    // The copy breaks: the old server comes back with its old programs. The build that was taken may stay.
    take(&target, &source, &["--no-switch"]).ok();
    let proxy = Proxy::to(source.ssh_port).slow(3_000_000);
    let running = target
        .agent(&["enslave", "--take-build", "--confirm", "db.1"])
        .stdin(source.blurb_at(proxy.port, source.port))
        .spawn();
    until("the copy is at work", 60, || target.home.join("data.pgmahout-new/base").exists());
    proxy.refuse();
    let output = running.wait();
    assert_ne!(output.code, 0, "{output:?}");
    until("the old server is back", 30, || target.try_sql("postgres").is_ok());
    assert_eq!(version(&target), "15.18");
    assert_eq!(link(&target), Pg::embedded("15").bin.parent().unwrap());

    std::fs::remove_dir_all(target.home.join("postgresql-16.98")).unwrap();
    let done = target.enslave(&source, &["--take-build", "--confirm", "db.1"]);
    assert_eq!((&done["taken_build"], &done["plan"]["action"]), (&json!("16.98"), &json!("full")), "{done}");
    assert_streams(&source, &target);
    compare(&source, &target);
    assert_eq!((version(&target).as_str(), link(&target)), ("16.98", "postgresql-16.98".into()));
    assert_eq!(record(&target, "16.98")["taken_from"], "db.0");
    assert_eq!(mirror.builds(), 1);
    nothing_half_made(&target);
}

// --- PostgreSQL itself --------------------------------------------------------------------------------

/// Switches a host without data to its build of this version and makes a cluster with it.
fn use_it(host: &mut Host, version: &str) {
    let done = build(host, &[version]);
    assert_eq!((&done["origin"], &done["switched"]), (&json!("present"), &json!(true)), "{done}");
    host.pg.bin = host.home.join("postgresql/bin");
    host.initdb(&[], &host.where_it_listens());
    host.start();
    let said = host.one("SELECT version()");
    assert!(said.starts_with(&format!("PostgreSQL {version} on ")), "{said}");
}

/// Its own program here, connected to `server`.
fn psql(host: &Host, server: &Host, sql: &str) -> String {
    let mut command = host.command(host.home.join("postgresql/bin/psql"));
    command.env("PGPASSFILE", host.pgpass()).args(["-XAt", "-h", "127.0.0.1", "-U", &server.superuser]);
    must(command.args(["-p", &server.port.to_string(), "-c", sql, "postgres"]))
}

/// A build takes minutes, so 17 stands for both, unless EVERY_CASE is set.
#[test]
fn builds_real_postgresql() {
    built_for_real("17", &["--with-openssl", "--with-lz4", "--with-zstd"]);
    if std::env::var_os("EVERY_CASE").is_some_and(|set| !set.is_empty()) {
        built_for_real("15", &["--with-openssl", "--with-icu", "--with-lz4", "--with-zstd"]);
    }
}

fn built_for_real(major: &str, options: &[&str]) {
    let site = Site::new();
    let mirror = Mirror::new(&site);
    let mut host = builder(&site, "db.0", &mirror).without_data().build();
    let version = really_build(&host, major);
    nothing_half_made(&host);
    use_it(&mut host, &version);
    host.exec("CREATE EXTENSION pgcrypto");
    assert_eq!(host.one("SELECT encode(digest('a', 'sha256'), 'hex')"), sha256(b"a"));
    assert_eq!(
        host.one(
            "SELECT string_agg(w, '' ORDER BY w COLLATE \"de-x-icu\") FROM unnest('{z,ä,B,a}'::text[]) w"
        ),
        "aäBz"
    );
    host.exec("CREATE TABLE c (a text COMPRESSION lz4); INSERT INTO c VALUES (repeat('a', 100000))");
    assert_eq!(host.one("SELECT pg_column_compression(a) FROM c"), "lz4");
    let configured = must(host.command(host.home.join("postgresql/bin/pg_config")).arg("--configure"));
    for option in options {
        assert!(configured.contains(option), "{configured}");
    }
    assert_eq!(psql(&host, &host, "SELECT 1"), "1");

    // In another place it finds its own parts.
    let mut other = builder(&site, "db.1", &mirror).without_data().build();
    take(&other, &host, &["--no-switch"]).ok();
    std::fs::rename(host.home.join(format!("postgresql-{version}")), host.home.join("away")).unwrap();
    use_it(&mut other, &version);
    assert_eq!(psql(&other, &other, "SELECT 1"), "1");
    let home = other.home.display();
    let libraries = must(other.command("ldd").arg(other.home.join("postgresql/bin/psql")));
    let libpq = libraries.lines().find(|line| line.contains("libpq.so")).unwrap();
    assert!(libpq.contains(&format!("=> {home}/postgresql")), "{libpq}");
    let config =
        must(other.command(other.home.join("postgresql/bin/pg_config")).args(["--libdir", "--sharedir"]));
    assert!(
        config.lines().all(|line| line.starts_with(&format!("{home}/postgresql-{version}/"))),
        "{config}"
    );
    other.exec("CREATE EXTENSION pgcrypto");
    std::fs::rename(host.home.join("away"), host.home.join(format!("postgresql-{version}"))).unwrap();
}
