//! `pgmahout copy` and the steps that a migration is made of: who has the source's lock, that nobody writes, what is
//! refused, and that each step may be killed and run again.

use crate::backups::*;
use crate::common::*;
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ID: &str = "0a1b2c3d";
const OTHER: &str = "99999999";
const NOTE: &str = r#"{"app": "www", "by": "ada@laptop", "to": "db.1"}"#;
/// Of the role `app`, which owns the database `shop` and is no superuser.
const SECRET: &str = "s3cret/of?app";

fn url_as(host: &Host, user: &str, password: &str, database: &str) -> String {
    let (password, database) = (percent(password), percent(database));
    format!("postgres://{user}:{password}@127.0.0.1:{}/{database}?sslmode=prefer\n", host.port)
}

/// As the superuser.
fn url(host: &Host, database: &str) -> String {
    url_as(host, &host.superuser, &host.password, database)
}

/// As the database's owner.
fn app_url(host: &Host) -> String {
    url_as(host, "app", SECRET, "shop")
}

fn source(site: &Arc<Site>, name: &str, pg: Pg) -> Host {
    let host = site.host(name).pg(pg).setting("max_prepared_transactions", "2").build();
    host.exec(&format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'"));
    host.exec("CREATE DATABASE shop OWNER app");
    session(&host, "app", SECRET)
        .batch_execute("CREATE TABLE orders (id serial PRIMARY KEY, note text); INSERT INTO orders (note) VALUES ('a'), ('b')")
        .unwrap();
    host
}

fn try_session(host: &Host, user: &str, password: &str) -> Result<postgres::Client, postgres::Error> {
    postgres::Config::new()
        .host("127.0.0.1")
        .port(host.port)
        .user(user)
        .password(password)
        .dbname("shop")
        .application_name("rails")
        .connect(postgres::NoTls)
}

/// A session of its own in `shop`.
fn session(host: &Host, user: &str, password: &str) -> postgres::Client {
    try_session(host, user, password).unwrap()
}

fn part<'a>(on: &'a Host, from: &str, arguments: &[&str]) -> Run<'a> {
    let all: Vec<&str> = ["copy-part"].iter().chain(arguments).copied().collect();
    on.agent(&all).stdin(from)
}

fn json(on: &Host, from: &str, arguments: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = ["--json", "copy-part"].iter().chain(arguments).copied().collect();
    on.agent(&all).stdin(from).run().json()
}

fn lock(host: &Host, from: &str) {
    let lock = json(host, from, &["lock", "--id", ID, "--note", NOTE]);
    assert_eq!((&lock["id"], &lock["state"]), (&ID.into(), &"running".into()));
}

fn locked(since: &str) -> String {
    format!(
        "shop is locked by the migration {ID} of www, which ada@laptop began at {since} and did not complete"
    )
}

const LOCKED_HINT: &str = "there, --resume completes it and --rollback undoes it; when that machine is lost, --abandon \
    makes the database writable again and takes the lock away";

// --- the lock

#[test]
fn of_two_migrations_exactly_one_gets_the_lock() {
    for pg in [Pg::embedded("11"), Pg::debian15()] {
        let site = Site::new();
        let host = source(&site, "db.0", pg);
        let from = app_url(&host);
        for round in 0..4 {
            let ids = ["0000000a", "0000000b"];
            let running: Vec<_> = ids
                .iter()
                .map(|id| part(&host, &from, &["lock", "--id", id, "--note", NOTE]).spawn())
                .collect();
            let codes: Vec<i32> = running.into_iter().map(|running| running.wait().code).collect();
            let winner = codes.iter().position(|code| *code == 0).expect("a winner");
            assert_eq!(codes[1 - winner], 3, "round {round}: {codes:?}");
            assert_eq!(json(&host, &from, &["look"])["lock"]["id"], ids[winner]);
            assert_eq!(json(&host, &from, &["unlock", "--id", ids[winner]])["was"], "locked");
        }
        // The same one, from two processes at once, is one migration.
        let running: Vec<_> =
            (0..3).map(|_| part(&host, &from, &["lock", "--id", ID, "--note", NOTE]).spawn()).collect();
        running.into_iter().for_each(|running| drop(running.wait().ok()));
        let look = json(&host, &from, &["look"]);
        let since = look["lock"]["since"].as_str().unwrap();
        assert_eq!(look["lock"]["note"]["to"], "db.1");
        for action in [
            &["lock", "--id", OTHER, "--note", NOTE][..],
            &["unlock", "--id", OTHER],
            &["release", "--id", OTHER],
        ] {
            part(&host, &from, action).run().fails(3, &locked(since), LOCKED_HINT);
        }
        // It is no table of the source's.
        assert_eq!((&look["tables"], &look["roles"]), (&1.into(), &serde_json::json!(["app"])));
        assert_eq!(json(&host, &from, &["unlock", "--id", ID])["was"], "locked");
        assert_eq!(json(&host, &from, &["unlock", "--id", ID])["was"], "unlocked");
        assert_eq!(json(&host, &from, &["look"])["lock"], serde_json::Value::Null);
    }
}

#[test]
fn a_look_tells_what_it_is_and_shows_no_password() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let mut client = session(&host, "app", SECRET);
    client
        .batch_execute("SELECT lo_create(7); CREATE EXTENSION IF NOT EXISTS hstore; SELECT 'x' AS password")
        .unwrap();
    let secrets = (Argv::watch(&percent(SECRET)), Argv::watch(SECRET));
    let look = json(&host, &app_url(&host), &["look"]);
    assert_eq!(look["version_num"].as_u64().unwrap() / 10_000, 15);
    assert_eq!(
        (&look["user"], &look["database"], &look["encoding"]),
        (&"app".into(), &"shop".into(), &"UTF8".into())
    );
    assert_eq!((&look["tables"], &look["large_objects"]), (&1.into(), &1.into()));
    assert_eq!(
        (&look["superuser"], &look["is_standby"], &look["read_only"]),
        (&false.into(), &false.into(), &false.into())
    );
    assert_eq!(look["system_identifier"], host.system_identifier().to_string());
    assert_eq!(look["extensions"], serde_json::json!(["hstore"]));
    assert_eq!(look["sessions"].as_array().unwrap().len(), 1, "{look}");
    let seen = &look["sessions"][0];
    assert_eq!(
        (&seen["application"], &seen["user"], &seen["state"]),
        (&"rails".into(), &"app".into(), &"idle".into())
    );
    // An operator's machine has no server.
    let bare = site.directory.join("bare");
    host.account.mkdir(&bare, 0o755);
    let mut command = host.command(binary());
    command.env("HOME", &bare).env_remove("PGDATA").current_dir(&bare).args(["--json", "copy-part", "look"]);
    let elsewhere =
        start(command, "a look from elsewhere".into(), Some(app_url(&host).into_bytes())).wait().json();
    assert_eq!(elsewhere["database"], "shop");
    assert_eq!(std::fs::read_dir(&bare).unwrap().count(), 0);
    let wrong = url_as(&host, "app", "wrong+secret", "shop");
    let output = part(&host, &wrong, &["look"]).run().fails(
        4,
        &format!("PostgreSQL of the source (127.0.0.1:{}) does not accept the password of app", host.port),
        "is the URL still the right one?",
    );
    output.says_not("wrong");
    for (text, why) in [
        ("mysql://app:s3cret@h/d\n", "does not begin with postgres://"),
        ("postgres://app:s3cret@h:99999/d", "has a port that is not between 1 and 65535"),
        ("", "is not there: stdin is empty"),
    ] {
        let output = part(&host, text, &["look"]).run().fails(
            2,
            &format!("the source's URL {why}"),
            "it has to be postgres://user:password@host:port/database, on the first line of stdin",
        );
        output.says_not("s3cret");
    }
    let terminal = host.agent(&["copy-part", "look"]).terminal(&[]);
    assert_eq!(terminal.code, 2);
    terminal.says("the source's URL is expected on stdin, and stdin is a terminal");
    assert_eq!((secrets.0.seen(), secrets.1.seen()), (Vec::<String>::new(), Vec::new()));
}

#[test]
fn who_may_not_lock_is_told_so() {
    let site = Site::new();
    let (primary, standby) =
        (source(&site, "db.0", Pg::debian15()), site.host("db.1").without_data().build());
    standby.enslave(&primary, &[]);
    primary.exec(&format!("CREATE ROLE guest LOGIN PASSWORD '{SECRET}'"));
    let guest = url_as(&primary, "guest", SECRET, "shop");
    let arguments = ["lock", "--id", ID, "--note", NOTE];
    part(&primary, &guest, &arguments).run().fails(
        1,
        "guest does not own shop, so that it can neither lock it nor make it read-only",
        "give the URL of its owner, or of a superuser",
    );
    wait_replayed(&primary, &standby);
    part(&primary, &app_url(&standby), &arguments).run().fails(
        1,
        "shop is on a standby, which can be read and not be locked",
        "give the URL of its primary",
    );
    assert_eq!(json(&primary, &app_url(&standby), &["look"])["is_standby"], true);
    lock(&primary, &app_url(&primary));
    // Everybody may know who has it.
    assert_eq!(json(&primary, &guest, &["look"])["lock"]["id"], ID);
    for action in [&["quiesce", "--id", ID][..], &["finish", "--id", ID]] {
        json(&primary, &app_url(&primary), &["unlock", "--id", ID]);
        part(&primary, &app_url(&primary), action).run().fails(
            1,
            &format!("shop is not locked by the migration {ID}"),
            "take the lock first: pgmahout copy-part lock",
        );
    }
    assert_eq!(json(&primary, &app_url(&primary), &["release", "--id", ID])["was"], "unlocked");

    // A standby is no target either.
    let origin = source(&site, "db.2", Pg::debian15());
    part(&standby, &app_url(&origin), &["check", "shop"]).run().fails(
        1,
        &format!("db.1 is a standby: its data is that of its primary, 127.0.0.1:{}", primary.port),
        "run the command on the primary",
    );
}

// --- nobody writes

fn is_read_only(host: &Host) -> bool {
    let mut client = session(host, "app", SECRET);
    match client.batch_execute("INSERT INTO orders (note) VALUES ('later')") {
        Ok(()) => false,
        Err(error) => {
            let said = error.as_db_error().unwrap().message().to_owned();
            assert_eq!(said, "cannot execute INSERT in a read-only transaction");
            true
        }
    }
}

#[test]
fn the_last_client_is_waited_for() {
    for pg in [Pg::embedded("11"), Pg::debian15()] {
        let site = Site::new();
        let host = source(&site, "db.0", pg);
        let from = app_url(&host);
        lock(&host, &from);
        let mut client = session(&host, "app", SECRET);
        client.batch_execute("INSERT INTO orders (note) VALUES ('before')").unwrap();
        let running = host
            .agent(&["--json", "copy-part", "quiesce", "--id", ID, "--wait", "60"])
            .stdin(from.clone())
            .spawn();
        until("it waits", 20, || running.stderr().contains("waiting for process"));
        assert!(
            running.stderr().contains("of app (rails, 127.0.0.1), idle since 20"),
            "{}",
            running.stderr()
        );
        // Who was there may still write, who comes now may not.
        client.batch_execute("INSERT INTO orders (note) VALUES ('still')").unwrap();
        assert!(is_read_only(&host));
        drop(client);
        let quiet = running.wait().json();
        assert!(quiet["waited_seconds"].as_f64().unwrap() > 0.1, "{quiet}");
        assert_eq!((&quiet["ended"], &quiet["warnings"]), (&serde_json::json!([]), &serde_json::json!([])));
        assert!(is_read_only(&host));
        assert_eq!(json(&host, &from, &["look"])["read_only"], true);
        // Again: nothing more to do.
        json(&host, &from, &["quiesce", "--id", ID, "--wait", "0"]);
        assert_eq!(json(&host, &from, &["release", "--id", ID])["was"], "read-only");
        assert!(!is_read_only(&host));
        assert_eq!(json(&host, &from, &["release", "--id", ID])["was"], "locked");
        // What was set before is set again.
        session(&host, "app", SECRET)
            .batch_execute("ALTER DATABASE shop SET default_transaction_read_only = off")
            .unwrap();
        json(&host, &from, &["unlock", "--id", ID]);
        lock(&host, &from);
        json(&host, &from, &["quiesce", "--id", ID, "--wait", "5"]);
        json(&host, &from, &["release", "--id", ID]);
        let said = host.column("postgres", "SELECT unnest(setconfig) FROM pg_db_role_setting");
        assert_eq!(said, ["default_transaction_read_only=off"]);
    }
}

#[test]
fn a_client_that_stays_is_named_or_ended() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let from = app_url(&host);
    lock(&host, &from);
    let quiesce = ["quiesce", "--id", ID, "--wait", "1"];
    let mut client = session(&host, "app", SECRET);
    client.batch_execute("BEGIN; INSERT INTO orders (note) VALUES ('open')").unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let output = part(&host, &from, &quiesce).run();
    assert_eq!(output.code, 3);
    output
        .says(&format!(
            "pgmahout: after 1 s shop still has clients that may write: process {pid} of app (rails, 127.0.0.1), idle in \
             transaction since 20"
        ))
        .says("hint: end them there, wait longer, or add --terminate, which ends them");
    assert!(!is_read_only(&host));
    assert_eq!(json(&host, &from, &["look"])["read_only"], false);

    let quiet = json(&host, &from, &["quiesce", "--id", ID, "--wait", "0", "--terminate"]);
    assert_eq!(
        (&quiet["ended"][0]["pid"], &quiet["ended"][0]["application"]),
        (&pid.into(), &"rails".into())
    );
    assert!(client.batch_execute("COMMIT").is_err());
    assert!(is_read_only(&host));
    json(&host, &from, &["release", "--id", ID]);

    // A session that an owner may not end, and of which it does not see what it does.
    let mut client = session(&host, &host.superuser, &host.password);
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let output = part(&host, &from, &["quiesce", "--id", ID, "--wait", "0", "--terminate"]).run();
    assert_eq!(output.code, 3);
    output
        .says(&format!(
            "still has clients that may write: process {pid} of dotcloud (rails); they could not be ended: "
        ))
        .says("superuser")
        .says("hint: end them there, as a superuser or as their own role, or wait longer");
    assert!(!is_read_only(&host));
    client.batch_execute("INSERT INTO orders (note) VALUES ('x')").unwrap();
    drop(client);

    // What a prepared transaction will have written nobody knows.
    session(&host, "app", SECRET)
        .batch_execute("BEGIN; INSERT INTO orders (note) VALUES ('half'); PREPARE TRANSACTION 'half'")
        .unwrap();
    let output = part(&host, &from, &["quiesce", "--id", ID, "--wait", "0", "--terminate"]).run();
    assert_eq!(output.code, 3);
    output.says("may write: the prepared transaction half of app\n");
    session(&host, "app", SECRET).batch_execute("ROLLBACK PREPARED 'half'").unwrap();

    // A role that is told otherwise is not read-only, whenever it began.
    host.exec("CREATE ROLE stubborn LOGIN PASSWORD 'x'; ALTER ROLE stubborn SET default_transaction_read_only = off");
    json(&host, &from, &quiesce);
    let stubborn = session(&host, "stubborn", "x");
    let output = part(&host, &url(&host, "shop"), &quiesce).run();
    assert_eq!(output.code, 3);
    output.says(" of stubborn (rails, 127.0.0.1)");
    drop(stubborn);
}

#[test]
fn who_connects_again_cannot_write_and_is_not_waited_for() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let from = app_url(&host);
    lock(&host, &from);
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let said = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    std::thread::scope(|scope| {
        // An app that writes and does not give up.
        let writer = || {
            while !stop.load(Ordering::SeqCst) {
                let Ok(mut client) = try_session(&host, "app", SECRET) else { continue };
                loop {
                    match client.batch_execute("INSERT INTO orders (note) VALUES ('w')") {
                        Ok(()) => {}
                        Err(error) => {
                            if let Some(error) = error.as_db_error() {
                                said.lock().unwrap().insert(error.message().to_owned());
                            }
                            refused.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        };
        // A superuser's monitoring, which the database's owner sees by its name only.
        let monitoring = || {
            while !stop.load(Ordering::SeqCst) {
                if let Ok(mut client) = try_session(&host, &host.superuser, &host.password) {
                    let _ = client.batch_execute("SELECT count(*) FROM orders");
                    std::thread::sleep(Duration::from_millis(150));
                }
            }
        };
        scope.spawn(writer);
        scope.spawn(writer);
        scope.spawn(monitoring);
        std::thread::sleep(Duration::from_millis(300));
        let all = ["--json", "copy-part", "quiesce", "--id", ID, "--wait", "3", "--terminate"];
        let output = host.agent(&all).stdin(from.clone()).run();
        let count = || {
            host.column("postgres", "SELECT xact_commit FROM pg_stat_database WHERE datname = 'shop'").len()
        };
        let rows = |host: &Host| -> i64 {
            let mut client = session(host, &host.superuser, &host.password);
            client.query_one("SELECT count(*) FROM orders", &[]).unwrap().get(0)
        };
        let before = rows(&host);
        let refused_before = refused.load(Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(20);
        while refused.load(Ordering::SeqCst) < refused_before + 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let after = rows(&host);
        let tried = refused.load(Ordering::SeqCst) - refused_before;
        stop.store(true, Ordering::SeqCst);
        let _ = count();
        let quiet = output.json();
        assert_eq!(quiet["ended"].as_array().unwrap().len(), 2, "{quiet}");
        assert!(tried >= 20, "{tried}");
        assert_eq!(after, before);
    });
    let said: Vec<String> = said.lock().unwrap().iter().cloned().collect();
    assert!(said.contains(&"cannot execute INSERT in a read-only transaction".to_owned()), "{said:?}");
}

#[test]
fn a_kill_while_it_waits_is_undone_by_release() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let from = app_url(&host);
    lock(&host, &from);
    let client = session(&host, "app", SECRET);
    let quiesce = ["quiesce", "--id", ID, "--wait", "60"];
    let running = part(&host, &from, &quiesce).spawn();
    until("it waits", 20, || running.stderr().contains("waiting for process"));
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, -9);
    assert!(is_read_only(&host));
    assert_eq!(json(&host, &from, &["release", "--id", ID])["was"], "read-only");
    assert!(!is_read_only(&host));
    // Ctrl-C undoes it by itself.
    let running = part(&host, &from, &quiesce).spawn();
    until("it waits", 20, || running.stderr().contains("waiting for process"));
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().code, 5);
    assert!(!is_read_only(&host));
    // A second one takes no part in what the first one does, and each ends as it should.
    let first = part(&host, &from, &quiesce).spawn();
    until("it waits", 20, || first.stderr().contains("waiting for process"));
    let second = part(&host, &from, &quiesce).spawn();
    until("it waits too", 20, || {
        second.stderr().contains("waiting for another pgmahout at shop: the session ")
    });
    drop(client);
    first.wait().ok();
    second.wait().ok();
    assert!(is_read_only(&host));
    // Killed, and gone on with: who began before the first switch is still waited for.
    json(&host, &from, &["release", "--id", ID]);
    let client = session(&host, "app", SECRET);
    let running = part(&host, &from, &quiesce).spawn();
    until("it waits", 20, || running.stderr().contains("waiting for process"));
    running.signal(Signal::SIGKILL);
    running.wait();
    let output = part(&host, &from, &["quiesce", "--id", ID, "--wait", "0"]).run();
    assert_eq!(output.code, 3);
    drop(client);
}

#[test]
fn finished_stays_until_it_is_released_or_abandoned() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let from = app_url(&host);
    lock(&host, &from);
    json(&host, &from, &["quiesce", "--id", ID, "--wait", "5"]);
    let done = json(&host, &from, &["finish", "--id", ID, "--note", r#"{"color": "TEAL"}"#]);
    assert_eq!((&done["done"], &done["was"]), (&true.into(), &"read-only".into()));
    assert_eq!(json(&host, &from, &["finish", "--id", ID])["was"], "done");
    assert!(is_read_only(&host));
    let lock_there = &json(&host, &from, &["look"])["lock"];
    assert_eq!((&lock_there["state"], &lock_there["note"]["color"]), (&"done".into(), &"TEAL".into()));
    let since = lock_there["since"].as_str().unwrap();
    part(&host, &from, &["lock", "--id", OTHER, "--note", NOTE]).run().fails(
        3,
        &format!(
            "shop is the old database of the migration {ID} of www, which ada@laptop began at {since}; it is complete, and \
             the data is in the new database"
        ),
        "there, --rollback goes back; --abandon makes this database writable again and takes the lock away",
    );
    let done = json(&host, &from, &["abandon"]);
    assert_eq!((&done["was"], &done["lock"]["id"]), (&"done".into(), &ID.into()));
    assert!(!is_read_only(&host));
    assert_eq!(json(&host, &from, &["abandon"])["was"], "unlocked");
    // And back from a finished one.
    lock(&host, &from);
    json(&host, &from, &["quiesce", "--id", ID, "--wait", "5"]);
    json(&host, &from, &["finish", "--id", ID]);
    assert_eq!(json(&host, &from, &["release", "--id", ID])["was"], "done");
    assert!(!is_read_only(&host));
    assert_eq!(json(&host, &from, &["unlock", "--id", ID])["was"], "locked");
    // Without the lock nobody would know how it was: it does not stay read-only.
    lock(&host, &from);
    json(&host, &from, &["quiesce", "--id", ID, "--wait", "5"]);
    assert_eq!(json(&host, &from, &["unlock", "--id", ID])["was"], "read-only");
    assert!(!is_read_only(&host));
}

#[test]
fn work_whose_caller_is_gone_ends_by_itself() {
    let site = Site::new();
    let host = source(&site, "db.0", Pg::debian15());
    let from = app_url(&host);
    lock(&host, &from);
    let client = session(&host, "app", SECRET);
    let start = |lifeline: &[&str]| {
        let mut command = host.command(binary());
        command
            .args(["copy-part", "quiesce", "--id", ID, "--wait", "60"])
            .args(lifeline)
            .current_dir(&host.home);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(from.as_bytes()).unwrap();
        until("it is read-only", 20, || host.one("SELECT count(*) FROM pg_db_role_setting") == "1");
        child
    };
    let mut child = start(&["--lifeline"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5), "{said}");
    assert!(
        said.ends_with("pgmahout: interrupted\nhint: run the same command again to complete it\n"),
        "{said}"
    );
    assert!(!is_read_only(&host));
    // Without it the end of stdin means nothing.
    let mut child = start(&[]);
    drop(child.stdin.take());
    std::thread::sleep(Duration::from_millis(800));
    assert!(child.try_wait().unwrap().is_none());
    drop(client);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

// --- the pair

fn target(site: &Arc<Site>, pg: Pg) -> Host {
    let host = site.host("db.1").pg(pg).build();
    host.exec("CREATE DATABASE shop");
    host
}

#[test]
fn what_is_in_the_way_is_told_all_at_once() {
    let site = Site::new();
    let from = source(&site, "db.0", Pg::debian15());
    let (to, older) = (target(&site, Pg::debian15()), site.host("db.2").pg(Pg::embedded("11")).build());
    let ours = app_url(&from);
    let check = |on: &Host, url: &str| part(on, url, &["check", "shop"]).run();

    // The role app owns all of it, so that it can be done without.
    let checked = json(&to, &ours, &["check", "shop"]);
    assert_eq!((&checked["owner"], &checked["target"]["is_empty"]), (&"dotcloud".into(), &true.into()));
    assert_eq!(
        checked["warnings"],
        serde_json::json!([
            "everything belongs to dotcloud and nothing is granted, for db.1 does not have the role app"
        ])
    );
    assert!(checked["needed"].as_u64() > checked["source"]["size"].as_u64());
    to.exec("CREATE ROLE app");
    let checked = json(&to, &ours, &["check", "shop"]);
    assert_eq!((&checked["owner"], &checked["warnings"]), (&serde_json::Value::Null, &serde_json::json!([])));
    assert_eq!(json(&to, &ours, &["check", "shop", "--no-owner"])["owner"], "dotcloud");
    // The lock is not among what needs roles, whoever has taken it.
    from.exec("CREATE ROLE chief SUPERUSER LOGIN PASSWORD 'c'");
    let chief = url_as(&from, "chief", "c", "shop");
    lock(&from, &chief);
    assert_eq!(json(&to, &ours, &["check", "shop"])["owner"], serde_json::Value::Null);
    json(&from, &chief, &["abandon"]);

    // One database by two names.
    let same = url(&from, "shop").replace("127.0.0.1", "[::1]");
    check(&from, &same).fails(
        1,
        &format!("shop cannot be copied to db.0: it is the same database, shop at [::1]:{}", from.port),
        "give another target",
    );
    from.exec("CREATE DATABASE other");
    json(&from, &ours, &["check", "other"]);

    // What is there.
    to.exec_in("shop", "CREATE TABLE t AS SELECT 1");
    let holds = json(&to, &ours, &["check", "postgres"])["target"]["holds"].clone();
    assert_eq!(holds, serde_json::Value::Null);
    let output = check(&to, &ours);
    assert_eq!(output.code, 3);
    output.says("pgmahout: the database shop of db.1 holds 1 table, ").says(
        "hint: give an empty one, or drop what is in it; pgmahout copy --confirm replaces it, a migration never does\n",
    );
    to.exec_in("shop", "DROP TABLE t");

    // Roles, extensions, tables that may not be read.
    from.exec("CREATE ROLE clerk");
    from.exec_in(
        "shop",
        "CREATE TABLE books (n int); ALTER TABLE books OWNER TO clerk; SET allow_system_table_mods = on; \
         INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) \
         VALUES (99999, 'postgis', 10, 2200, false, '3'); RESET allow_system_table_mods",
    );
    check(&to, &ours).fails(
        1,
        "shop cannot be copied to db.1: db.1 does not have the extensions postgis; db.1 does not have the roles clerk; \
         app may not read public.books of the source",
        "install their packages for this PostgreSQL; pg_available_extensions shows those that are here; create them, or add \
         --no-owner: everything belongs to the database's owner then, and nothing is granted; give the URL of a user that \
         may read everything",
    );
    from.exec_in(
        "shop",
        "SET allow_system_table_mods = on; DELETE FROM pg_extension WHERE extname = 'postgis'",
    );
    check(&to, &url(&from, "shop")).fails(
        1,
        "shop cannot be copied to db.1: db.1 does not have the roles clerk",
        "create them, or add --no-owner: everything belongs to the database's owner then, and nothing is granted",
    );
    json(&to, &url(&from, "shop"), &["check", "shop", "--no-owner"]);
    from.exec_in("shop", "DROP TABLE books");
    from.exec_in("shop", "GRANT SELECT ON orders TO clerk");
    check(&to, &ours).fails(
        1,
        "shop cannot be copied to db.1: db.1 does not have the roles clerk",
        "create them, or add --no-owner: everything belongs to the database's owner then, and nothing is granted",
    );

    // An older server; it lacks the roles too, and that is said at the same time.
    let versions =
        [&from, &older].map(|host| host.one("SHOW server_version").split(' ').next().unwrap().to_owned());
    check(&older, &ours).fails(
        1,
        &format!(
            "shop cannot be copied to db.2: the source is PostgreSQL {}, and db.2 the older {}; db.2 does not have the \
             roles clerk",
            versions[0], versions[1]
        ),
        "copy to the same major version or a later one; create them, or add --no-owner: everything belongs to the \
         database's owner then, and nothing is granted",
    );

    // Nobody there.
    let closed = free_port();
    let nowhere = ours.replace(&format!(":{}/", from.port), &format!(":{closed}/"));
    check(&to, &nowhere).fails(
        4,
        &format!("could not connect to PostgreSQL of the source (127.0.0.1:{closed}): Connection refused (os error 111)"),
        "is the address right, is the server running, and is its port open from here?",
    );
    no_leftovers_of_copies(&to);
}

#[test]
fn without_room_nothing_is_begun() {
    let site = Site::new();
    let from = source(&site, "db.0", Pg::debian15());
    let mut app = session(&from, "app", SECRET);
    app.batch_execute(
        "CREATE TABLE big AS SELECT repeat(md5(g::text), 30) AS t FROM generate_series(1, 90000) g",
    )
    .unwrap();
    drop(app);
    let disk = SmallDisk::mount(&site, "disk", 130);
    let to = site.host("db.1").data(&disk.path.join("data")).build();
    to.exec("CREATE DATABASE shop");
    for arguments in [&["copy-part", "check", "shop"][..], &["copy"]] {
        let output = to.agent(arguments).stdin(app_url(&from)).run();
        assert_eq!(output.code, 1);
        output
            .says(&format!(
                "pgmahout: shop cannot be copied to db.1: {} needs ",
                disk.path.join("data").display()
            ))
            .says("hint: make room, or use a larger disk\n");
    }
    no_leftovers_of_copies(&to);
}

// --- the place

/// Nothing is left but what is in its place.
#[track_caller]
fn no_leftovers_of_copies(host: &Host) {
    let found = host.column(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname LIKE '%\\_pgmahout\\_%' UNION ALL \
         SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgmahout%'",
    );
    assert!(found.is_empty(), "left: {found:?}");
    let state = std::fs::read_dir(host.home.join(".pgmahout")).into_iter().flatten().flatten();
    let files: Vec<_> = state
        .map(|entry| entry.file_name())
        .filter(|name| *name != "copy.lock" && *name != "backup.lock")
        .collect();
    assert!(files.is_empty(), "left: {files:?}");
}

fn adorn(host: &Host) {
    host.exec(
        "CREATE ROLE owner; ALTER DATABASE shop OWNER TO owner; ALTER DATABASE shop CONNECTION LIMIT 17; \
         ALTER DATABASE shop SET work_mem = '7MB'; REVOKE CONNECT ON DATABASE shop FROM PUBLIC; \
         COMMENT ON DATABASE shop IS 'ours'",
    );
}

#[test]
fn a_copy_takes_its_place_and_goes_again() {
    for (theirs, ours) in [(Pg::embedded("11"), Pg::debian15()), (Pg::debian15(), Pg::full18())] {
        let site = Site::new();
        let (from, to) = (source(&site, "db.0", theirs), target(&site, ours));
        adorn(&to);
        let (url, were) = (app_url(&from), properties(&to, "shop"));
        let side = format!("shop_pgmahout_copy_{ID}");
        let step = |action: &str| json(&to, &url, &[action, "shop", "--id", ID]);
        // In another order it is not to be had.
        for (action, why) in [
            ("compare", "that could be compared"),
            ("place", "that could take its place"),
            ("changes", "whose changes could be told"),
        ] {
            part(&to, &url, &[action, "shop", "--id", ID]).run().fails(
                1,
                &format!("there is no copy {ID} for shop {why}"),
                "fill and compare it first: pgmahout copy-part fill, pgmahout copy-part compare",
            );
        }
        assert_eq!(step("clear")["dropped"], serde_json::json!([]));
        let filled = step("fill");
        assert_eq!((&filled["side"], &filled["owner"]), (&side.clone().into(), &"owner".into()));
        assert_eq!(filled["sums"], serde_json::Value::Null);
        part(&to, &url, &["place", "shop", "--id", ID]).run().fails(
            1,
            &format!("there is no copy {ID} for shop that was compared"),
            "fill and compare it first: pgmahout copy-part fill, pgmahout copy-part compare",
        );
        // Anew.
        to.exec_in(&side, "CREATE TABLE of_the_first (n int)");
        step("fill");
        assert_eq!(to.one_in(&side, "SELECT count(*) FROM pg_class WHERE relname = 'of_the_first'"), "0");
        step("compare");
        // Another migration has nothing to do with it, and a restore does not sweep it.
        assert_eq!(json(&to, &url, &["clear", "shop", "--id", OTHER])["dropped"], serde_json::json!([]));
        let id = backup(&to, "postgres");
        to.agent(&["backup", "restore", &id, "restored"]).run().ok();
        std::fs::remove_dir_all(directory(&to)).unwrap();
        let checked = json(&to, &url, &["check", "shop"]);
        let said = checked["warnings"].as_array().unwrap().iter().any(|warning| {
            warning
                == &format!(
                    "the unfinished copy {side} is here; pgmahout copy-part clear shop --id {ID} drops it"
                )
        });
        assert!(said, "{checked}");
        to.exec_in(&side, "CREATE TABLE mine AS SELECT 42 AS n");
        // A client of the empty database does not prevent it.
        let client = to.sql_in("shop");
        for _ in 0..2 {
            let placed = step("place");
            assert_eq!((&placed["database"], &placed["placed"]), (&"shop".into(), &true.into()));
        }
        drop(client);
        assert_eq!(to.one_in("shop", "SELECT n FROM mine"), "42");
        let mut are = properties(&to, "shop");
        are.retain(|line| !line.ends_with(&format!("pgmahout.copy={ID}")));
        assert_eq!(are, were);
        assert_eq!(
            to.column("postgres", "SELECT datname FROM pg_database WHERE datname LIKE '%pgmahout%'"),
            Vec::<String>::new()
        );
        step("changes");
        // It is not empty any more, for any migration.
        let output = part(&to, &url, &["fill", "shop", "--id", OTHER]).run();
        assert_eq!(output.code, 3);
        output.says("the database shop of db.1 holds ");
        assert_eq!(json(&to, &url, &["clear", "shop", "--id", OTHER])["dropped"], serde_json::json!([]));
        assert_eq!(to.one_in("shop", "SELECT n FROM mine"), "42");
        let cleared = step("clear");
        assert_eq!((&cleared["cleared"], &cleared["dropped"]), (&true.into(), &serde_json::json!(["shop"])));
        assert_eq!(properties(&to, "shop"), were);
        assert_eq!(step("clear")["dropped"], serde_json::json!([]));
        assert_eq!(json(&to, &url, &["check", "shop"])["target"]["is_empty"], true);
        no_leftovers_of_copies(&to);
    }
}

#[test]
fn a_kill_at_any_instant_is_completed_or_undone_by_the_next_run() {
    let site = Site::new();
    let (from, to) = (source(&site, "db.0", Pg::debian15()), target(&site, Pg::debian15()));
    adorn(&to);
    let (url, were) = (app_url(&from), properties(&to, "shop"));
    fn all(action: &str) -> [&str; 4] {
        [action, "shop", "--id", ID]
    }
    let killed = |action: &str, after: u64| {
        let running = part(&to, &url, &all(action)).spawn();
        std::thread::sleep(Duration::from_millis(after));
        running.signal(Signal::SIGKILL);
        let code = running.wait().code;
        // What the server was told to do it does.
        until("its sessions are gone", 30, || {
            to.one("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%'") == "0"
        });
        code
    };
    let mut codes = std::collections::BTreeMap::<&str, Vec<i32>>::new();
    for round in 0..10 {
        codes.entry("fill").or_default().push(killed("fill", 40 + round * 60));
        if round % 3 == 0 {
            json(&to, &url, &all("clear"));
            assert_eq!(properties(&to, "shop"), were);
            no_leftovers_of_copies(&to);
        }
        json(&to, &url, &all("fill"));
        json(&to, &url, &all("compare"));
        to.exec_in(&format!("shop_pgmahout_copy_{ID}"), "CREATE TABLE mine AS SELECT 42 AS n");
        codes.entry("place").or_default().push(killed("place", 30 + round * 25));
        if round % 4 != 1 {
            json(&to, &url, &all("place"));
            assert_eq!(to.one_in("shop", "SELECT n FROM mine"), "42");
        }
        codes.entry("clear").or_default().push(killed("clear", 30 + round * 50));
        json(&to, &url, &all("clear"));
        assert_eq!(properties(&to, "shop"), were, "round {round}");
        assert_eq!(json(&to, &url, &all("check")[..2])["target"]["is_empty"], true);
        no_leftovers_of_copies(&to);
    }
    for (action, codes) in codes {
        assert!(codes.contains(&-9), "no {action} was killed: {codes:?}");
    }
}

#[test]
fn two_on_one_instance_wait_for_each_other() {
    let site = Site::new();
    let (from, to) = (source(&site, "db.0", Pg::debian15()), target(&site, Pg::debian15()));
    json(&to, &app_url(&from), &["clear", "shop", "--id", ID]);
    let hold = |seconds: &str| {
        let file = to.home.join(".pgmahout/copy.lock");
        to.account.write(&file, "copy-part fill 0a1b2c3d (process 7)\n", 0o600);
        let child = to.command("flock").arg("--no-fork").arg(&file).args(["sleep", seconds]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        child
    };
    let mut holder = hold("3");
    let output = part(&to, &app_url(&from), &["clear", "shop", "--id", ID]).run().ok();
    output.says("waiting for another pgmahout on this instance: copy-part fill 0a1b2c3d (process 7)");
    holder.wait().unwrap();
    let mut holder = hold("120");
    let output = part(&to, &app_url(&from), &["clear", "shop", "--id", ID]).run();
    assert!(output.elapsed > Duration::from_secs(29), "{:?}", output.elapsed);
    output.fails(
        1,
        &format!(
            "another pgmahout is at work on this instance: copy-part fill 0a1b2c3d (process 7) ({})",
            to.home.join(".pgmahout/copy.lock").display()
        ),
        "wait for its end, then run the command again",
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn all_of_it_at_once() {
    let site = Site::new();
    let (from, to) = (source(&site, "db.0", Pg::debian15()), target(&site, Pg::debian15()));
    let url = app_url(&from);
    let copy = |arguments: &[&str]| {
        let all: Vec<&str> = ["copy"].iter().chain(arguments).copied().collect();
        to.agent(&all).stdin(url.clone()).run()
    };
    let name = format!("shop at 127.0.0.1:{}", from.port);
    let planned = copy(&["--dry-run"]).ok();
    assert!(planned.stdout.starts_with(&format!("db.1: would make shop a copy of {name}, ")), "{planned:?}");
    let done = copy(&[]).ok();
    assert!(done.stdout.starts_with(&format!("db.1: shop is a copy of {name}: ")), "{done:?}");
    assert!(done.stdout.ends_with(" s, compared\n"), "{done:?}");
    no_leftovers_of_copies(&to);
    // Into one that is not there.
    copy(&["fresh", "-j", "3"]).ok();
    assert_eq!(to.one("SELECT datdba::regrole FROM pg_database WHERE datname = 'fresh'"), "dotcloud");
    // Over what is there, only on purpose; and what another migration has begun stays.
    to.exec("CREATE DATABASE third");
    json(&to, &url, &["fill", "third", "--id", ID]);
    to.exec_in("shop", "CREATE TABLE precious AS SELECT 1");
    adorn(&to);
    let were = properties(&to, "shop");
    for arguments in [&[][..], &["--confirm", "db.0"]] {
        let output = copy(arguments);
        assert_eq!(output.code, 3);
        output
            .says("the database shop of db.1 holds ")
            .says("hint: to replace it on purpose, add --confirm db.1\n");
    }
    assert_eq!(to.one_in("shop", "SELECT count(*) FROM precious"), "1");
    let planned = copy(&["--dry-run"]).ok();
    assert!(planned.stdout.contains("\nneeds --confirm db.1: it holds "), "{planned:?}");
    // What a killed one has left is swept by the next.
    to.exec("CREATE DATABASE shop_pgmahout_copy_00000000 CONNECTION LIMIT 0");
    to.exec("CREATE ROLE pgmahout_copy_00000000 SUPERUSER");
    to.exec("CREATE DATABASE theirs_pgmahout_copy_11111111");
    copy(&["--confirm", "db.1"]).ok();
    assert_eq!(to.one_in("shop", "SELECT count(*) FROM pg_class WHERE relname = 'precious'"), "0");
    assert_eq!(properties(&to, "shop"), were);
    assert_eq!(
        to.column("postgres", "SELECT datname FROM pg_database WHERE datname LIKE '%pgmahout%' ORDER BY 1"),
        ["theirs_pgmahout_copy_11111111".to_owned(), format!("third_pgmahout_copy_{ID}")]
    );
    to.exec("DROP DATABASE theirs_pgmahout_copy_11111111");
    assert_eq!(json(&to, &url, &["clear", "third", "--id", ID])["dropped"].as_array().unwrap().len(), 1);
    no_leftovers_of_copies(&to);
    to.agent(&["copy", "template1"]).stdin(url.clone()).run().fails(
        2,
        "template1 is a template: what is in it gets into every new database",
        "name another database",
    );
    let json: serde_json::Value = {
        to.exec("DROP DATABASE fresh");
        to.agent(&["--json", "copy", "fresh"]).stdin(url.clone()).run().json()
    };
    assert_eq!(
        (&json["instance"], &json["database"], &json["source"]),
        (&"db.1".into(), &"fresh".into(), &name.into())
    );
    assert!(json["compared"].is_object() && json["checked"]["source"]["version"].is_string(), "{json}");
}

/// With what only a superuser may own, what cannot be dropped with its database, and what is no part of it.
#[test]
fn what_is_tied_to_more_than_the_database() {
    let site = Site::new();
    let (from, to) = (source(&site, "db.0", Pg::debian15()), target(&site, Pg::debian15()));
    from.exec_in(
        "shop",
        "CREATE EXTENSION postgres_fdw; CREATE FUNCTION ev() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; \
         CREATE EVENT TRIGGER ev ON ddl_command_end EXECUTE FUNCTION ev(); CREATE PUBLICATION p FOR ALL TABLES; \
         CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 dbname=x' PUBLICATION p WITH (connect = false, slot_name = 'other')",
    );
    from.exec("ALTER DATABASE shop SET search_path = 'secret-value'");
    adorn(&to);
    let from_url = url(&from, "shop");
    let step = |action: &[&str]| {
        let all: Vec<&str> =
            action[..1].iter().chain(&["shop", "--id", ID]).chain(&action[1..]).copied().collect();
        json(&to, &from_url, &all)
    };
    let filled = step(&["fill", "--no-owner"]);
    let warnings = filled["warnings"].to_string();
    assert!(
        warnings.contains("shop does not have it: search_path;") && !warnings.contains("secret-value"),
        "{warnings}"
    );
    // It is filled anew, and dropped beside the database and in its place.
    step(&["fill", "--no-owner"]);
    step(&["compare"]);
    step(&["place"]);
    let owners = "SELECT concat_ws(' ', (SELECT fdwowner::regrole FROM pg_foreign_data_wrapper), \
        (SELECT evtowner::regrole FROM pg_event_trigger), (SELECT relowner::regrole FROM pg_class WHERE relname = 'orders'), \
        (SELECT subenabled FROM pg_subscription))";
    assert_eq!(to.one_in("shop", owners), "dotcloud dotcloud owner f");
    assert_eq!(step(&["clear"])["dropped"], serde_json::json!(["shop"]));
    no_leftovers_of_copies(&to);
    assert_eq!(to.one("SELECT count(*) FROM pg_subscription"), "0");
}

/// A table that somebody has locked for long, and a check that says more than there are rows.
#[test]
fn who_waits_can_be_interrupted() {
    let site = Site::new();
    let (from, to) = (source(&site, "db.0", Pg::debian15()), target(&site, Pg::debian15()));
    from.exec_in(
        "shop",
        "CREATE FUNCTION loud(int) RETURNS bool LANGUAGE plpgsql AS \
         $$BEGIN RAISE NOTICE '%', repeat('n', 300); RETURN true; END$$; \
         SET client_min_messages = error; CREATE TABLE t (a int CHECK (loud(a))); \
         INSERT INTO t SELECT generate_series(1, 100000)",
    );
    let mut client = session(&from, "app", SECRET);
    client.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").unwrap();
    let running = to.agent(&["copy", "--no-owner"]).stdin(url(&from, "shop")).spawn();
    until("it waits for the table", 30, || {
        from.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "1"
    });
    let begin = Instant::now();
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().code, 5);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    no_leftovers_of_copies(&to);
    drop(client);
    to.agent(&["copy", "--no-owner"]).stdin(url(&from, "shop")).run().ok();

    // Without TLS nothing is said to a server that has none.
    let required = url(&from, "shop").replace("sslmode=prefer", "sslmode=require");
    part(&to, &required, &["look"]).run().fails(
        4,
        &format!(
            "PostgreSQL of the source (127.0.0.1:{}) refuses: it offers no TLS, which the URL's sslmode requires",
            from.port
        ),
        "set ssl to on there; sslmode=prefer takes a connection without TLS",
    );
}
