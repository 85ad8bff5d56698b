//! `pgmahout credentials`: what a client needs, a new password that no log has, and a standby that takes it over
//! while it streams.

use crate::common::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;

fn next(host: &Host) -> PathBuf {
    host.home.join("password.next")
}

fn password_file(host: &Host) -> String {
    std::fs::read_to_string(host.home.join("password")).unwrap()
}

/// Whether the server lets its superuser in with this password; by TCP, so it is asked for.
fn accepts(host: &Host, role: &str, password: &str) -> bool {
    let connected = postgres::Config::new()
        .host("127.0.0.1")
        .port(host.port)
        .user(role)
        .password(password)
        .dbname("postgres")
        .connect(postgres::NoTls);
    match connected {
        Ok(_) => true,
        Err(error) => {
            let code = error.as_db_error().unwrap_or_else(|| panic!("{error:?}")).code();
            assert_eq!(code.code(), "28P01", "{error:?}");
            false
        }
    }
}

/// pg_hba.conf with this method for everybody.
fn method(host: &Host, method: &str) {
    host.hba(method);
    let path = host.data.join("pg_hba.conf");
    let lines = std::fs::read_to_string(&path).unwrap();
    host.account.write(&path, lines.replace("scram-sha-256", method), 0o600);
    host.exec("SELECT pg_reload_conf()");
    // Reloading is asynchronous.
    std::thread::sleep(std::time::Duration::from_millis(300));
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer[name].as_str().unwrap_or_else(|| panic!("{name}: {answer}"))
}

fn rotate(host: &mut Host) -> String {
    let answer = host.agent(&["--json", "credentials", "--rotate"]).run().json();
    let new = text(&answer, "password").to_owned();
    assert_eq!((text(&answer, "user"), &answer["rotated"]), ("dotcloud", &json!(true)), "{answer}");
    assert!(answer["seconds"].is_number(), "{answer}");
    assert!(new.len() == 32 && new.bytes().all(|b| b.is_ascii_alphanumeric()), "{new}");
    assert_eq!(password_file(host), format!("{new}\n"));
    assert!(!next(host).exists());
    host.password.clone_from(&new);
    new
}

fn mode(path: PathBuf) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn what_a_client_needs_is_shown() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let answer = host.agent(&["--json", "credentials"]).run().json();
    let expected = json!({"instance": "db.0", "user": "dotcloud", "password": host.password,
                          "database": "postgres", "port": host.port});
    assert_eq!(answer, expected);
    let lines = host.agent(&["credentials"]).run().ok().stdout;
    let expected = format!(
        "instance: db.0\nuser: dotcloud\npassword: {}\ndatabase: postgres\nport: {}\n",
        host.password, host.port
    );
    assert_eq!(lines, expected);
    host.agent(&["credentials", "--role", "shop"]).run().fails(
        1,
        "no password of shop is known on db.0",
        "the server keeps no passwords, only what they are checked with; for a new one: pgmahout credentials \
         --rotate --role shop",
    );
    std::fs::remove_file(host.home.join("password")).unwrap();
    host.agent(&["credentials"]).run().fails(
        1,
        "no password of dotcloud is known on db.0",
        "put it into ~/password (or password_file, or PGPASSWORD) of this instance, or let it have a new one: \
         pgmahout credentials --rotate",
    );
}

#[test]
fn a_rotation_reaches_the_standby_while_it_streams() {
    for major in ["10", "18"] {
        let (mut primary, mut standby) = pair(Pg::embedded(major));
        let old = primary.password.clone();
        for host in [&primary, &standby] {
            let escaped = old.replace('\\', r"\\").replace(':', r"\:");
            let line = |host: &str, port: u16, user: &str| format!("{host}:{port}:*:{user}:{escaped}\n");
            let pgpass = line("127.0.0.1", host.port, "dotcloud")
                + &line("127.0.0.1", host.port, "other")
                + &line("elsewhere", 5432, "dotcloud");
            host.account.write(&host.home.join(".pgpass"), pgpass, 0o600);
        }
        primary.append_conf("log_statement = 'all'\nlog_min_duration_statement = 0\n");
        primary.reload();
        standby.enslave(&primary, &[]);
        let receiver = standby.one("SELECT pid FROM pg_stat_wal_receiver");

        let new = rotate(&mut primary);
        assert!(!accepts(&primary, "dotcloud", &old) && accepts(&primary, "dotcloud", &new));
        assert_eq!(mode(primary.home.join("password")), 0o600);
        let pgpass = std::fs::read_to_string(primary.home.join(".pgpass")).unwrap();
        let lines: Vec<&str> = pgpass.lines().collect();
        assert_eq!(lines[0], format!("127.0.0.1:{}:*:dotcloud:{new}", primary.port));
        assert!(lines[1].contains(":other:_|KZ") && lines[2].starts_with("elsewhere:5432:*:dotcloud:_|KZ"));

        // All is logged, but neither the password nor what the server keeps of it.
        let log = primary.log();
        assert!(log.contains("set_config(name, value, false)"), "statements are logged:\n{log}");
        let kept = primary.one("SELECT rolpassword FROM pg_authid WHERE rolname = 'dotcloud'");
        assert!(kept.starts_with("SCRAM-SHA-256$"), "{kept}");
        for secret in [&new, &kept, "ALTER ROLE"] {
            assert!(!log.contains(secret), "{secret} is in the log");
        }

        // The standby has it from the primary, and knows the old one.
        wait_replayed_with(&primary, &standby, &new);
        let stale = standby.agent(&["--json", "info"]).run().json();
        assert!(text(&stale, "problem").contains("does not accept the password"), "{stale}");

        // A wrong one is refused, and nothing is changed.
        let files = ["password", ".pgpass", ".pgmahout/pgpass"].map(|name| standby.home.join(name));
        let before: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        let wrong = standby.agent(&["credentials", "--adopt"]).stdin("wrong\n").run();
        wrong.fails(
            1,
            &format!(
                "this is not the password of dotcloud on 127.0.0.1:{}; nothing was changed",
                primary.port
            ),
            "`pgmahout credentials` on the primary shows the right one",
        );
        assert_eq!(before, files.clone().map(|file| std::fs::read(file).unwrap()));

        let adopted = standby.agent(&["--json", "credentials", "--adopt"]).stdin(format!("{new}\n")).run();
        let adopted = adopted.says_not(&new).json();
        let expected = json!({"instance": "db.1", "adopted": true,
                              "following": format!("127.0.0.1:{}", primary.port)});
        assert_eq!(adopted, expected);
        standby.password.clone_from(&new);
        assert_eq!(password_file(&standby), format!("{new}\n"));
        assert!(!accepts(&standby, "dotcloud", &old) && accepts(&standby, "dotcloud", &new));
        let pgpass = std::fs::read_to_string(standby.home.join(".pgpass")).unwrap();
        assert!(pgpass.starts_with(&format!("127.0.0.1:{}:*:dotcloud:{new}\n", standby.port)), "{pgpass}");
        assert_eq!(standby.one("SELECT pid FROM pg_stat_wal_receiver"), receiver, "it streams on");

        // A receiver that has to connect anew finds it.
        primary.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
        until("another WAL receiver streams", 30, || {
            let pid = standby.one("SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'");
            !pid.is_empty() && pid != receiver
        });
        primary.exec("CREATE TABLE t AS SELECT 1 AS n");
        assert_streams(&primary, &standby);
        compare(&primary, &standby);
        standby.agent(&["wait"]).run().ok();
        for host in [&primary, &standby] {
            assert!(!host.log().contains(&new), "the log of {} has it", host.name);
        }
    }
}

/// As [`wait_replayed`], where the standby has another password from one moment to the next.
fn wait_replayed_with(primary: &Host, standby: &Host, new: &str) {
    let lsn = primary.one("SELECT pg_current_wal_lsn()");
    until("the standby has the new password", 20, || accepts(standby, "dotcloud", new));
    assert!(!lsn.is_empty());
}

#[test]
fn a_standby_that_lost_its_stream_for_the_password_gets_it_back() {
    let (mut primary, mut standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    let new = rotate(&mut primary);
    wait_replayed_with(&primary, &standby, &new);
    standby.password.clone_from(&new);
    primary.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    until("it is not let in", 30, || standby.log().contains("password authentication failed"));
    assert_eq!(standby.one("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'"), "0");
    standby
        .agent(&["credentials", "--adopt"])
        .stdin(new)
        .run()
        .ok()
        .says("db.1 has the new password, which ");
    assert_streams(&primary, &standby);
}

#[test]
fn a_rotation_is_the_primarys() {
    let (primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    let before = password_file(&standby);
    standby.agent(&["credentials", "--rotate"]).run().fails(
        1,
        &format!("db.1 is a standby: its password is that of its primary, 127.0.0.1:{}", primary.port),
        "run the command on the primary",
    );
    assert_eq!((password_file(&standby), next(&standby).exists()), (before, false));
    assert!(accepts(&primary, "dotcloud", &primary.password));
    // What a primary has it can adopt, and nothing else.
    primary.agent(&["credentials", "--adopt"]).stdin(primary.password.clone()).run().ok();
    let wrong = primary.agent(&["credentials", "--adopt"]).stdin("wrong").run();
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert_eq!(password_file(&primary), format!("{}\n", primary.password));
}

#[test]
fn a_rotation_that_is_killed_is_completed_by_the_next() {
    for major in ["10", "18"] {
        let site = Site::new();
        let mut host = site.host("db.0").pg(Pg::embedded(major)).build();
        let old = host.password.clone();
        // Killed while the server is at it: the server carries it out all the same.
        let mut blocker = host.sql();
        blocker.batch_execute("BEGIN; LOCK TABLE pg_authid IN SHARE MODE").unwrap();
        let mut watcher = host.sql();
        let mut waiting = |sql: &str| -> bool { watcher.query_one(sql, &[]).unwrap().get(0) };
        let running = host.agent(&["credentials", "--rotate"]).spawn();
        until("ALTER ROLE waits", 20, || {
            waiting(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE%' AND wait_event_type = 'Lock'",
            )
        });
        running.signal(Signal::SIGKILL);
        running.wait();
        let left = std::fs::read_to_string(next(&host)).unwrap();
        assert_eq!(mode(next(&host)), 0o600);
        assert_eq!(
            password_file(&host),
            format!("{old}\n"),
            "the old one stays until the new one is in force"
        );

        // Before: the old one is in force, and every command connects.
        let role = |host: &Host| text(&host.agent(&["--json", "info"]).run().json(), "role").to_owned();
        assert!(accepts(&host, "dotcloud", &old));
        assert_eq!(role(&host), "primary");
        assert_eq!(text(&host.agent(&["--json", "credentials"]).run().json(), "password"), old);

        // After: the new one is, and every command connects.
        blocker.batch_execute("ROLLBACK").unwrap();
        until("the server has the new one", 20, || accepts(&host, "dotcloud", left.trim_end()));
        assert!(!accepts(&host, "dotcloud", &old));
        assert_eq!(role(&host), "primary");
        assert_eq!(text(&host.agent(&["--json", "credentials"]).run().json(), "password"), left.trim_end());

        // The next run completes it.
        assert_eq!(rotate(&mut host), left.trim_end());
        assert_ne!(rotate(&mut host), left.trim_end());
        assert!(accepts(&host, "dotcloud", &host.password));

        // Killed before the server had it.
        host.account.write(&next(&host), "A".repeat(32), 0o600);
        assert_eq!(rotate(&mut host), "A".repeat(32));
    }
}

#[test]
fn a_new_password_that_is_not_accepted_is_taken_back() {
    let site = Site::new();
    let mut host = site.host("db.0").pg(Pg::embedded("13")).build();
    // md5 verifiers cannot be used where pg_hba.conf wants SCRAM; one that is SCRAM stays so.
    host.append_conf("password_encryption = 'md5'\n");
    host.reload();
    rotate(&mut host);
    assert!(host.one("SELECT rolpassword FROM pg_authid WHERE rolname = 'dotcloud'").starts_with("SCRAM-"));

    host.exec("ALTER ROLE dotcloud VALID UNTIL '2001-01-01'");
    method(&host, "trust");
    let mut watcher = host.sql();
    let mut verifier = || -> String {
        watcher.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = 'dotcloud'", &[]).unwrap().get(0)
    };
    let (before, kept) = (verifier(), host.password.clone());
    // Let in by trust, but no client with a password is.
    let hba = host.data.join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    let mut blocker = host.sql();
    blocker.batch_execute("BEGIN; LOCK TABLE pg_authid IN SHARE MODE").unwrap();
    let running = host.agent(&["credentials", "--rotate"]).spawn();
    until("ALTER ROLE waits", 20, || {
        host.one("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE%' AND wait_event_type = 'Lock'")
            == "1"
    });
    host.account.write(&hba, lines.replace("trust", "scram-sha-256"), 0o600);
    blocker.batch_execute("ROLLBACK; SELECT pg_reload_conf()").unwrap();
    let output = running.wait();
    assert_eq!(output.code, 1, "{output:?}");
    output.says("the new password of dotcloud was not accepted, so the old one is in force again: ");
    assert_eq!(verifier(), before);
    assert_eq!((password_file(&host), next(&host).exists()), (format!("{kept}\n"), false));
}

#[test]
fn another_role_gets_another_password() {
    for (major, encryption) in [("10", "md5"), ("18", "scram-sha-256")] {
        let (primary, standby) = pair(Pg::embedded(major));
        if encryption == "md5" {
            primary.append_conf("password_encryption = 'md5'\n");
            method(&primary, "md5");
        }
        standby.enslave(&primary, &[]);
        let role = r#"we"b 'shop"#;
        primary.exec(r#"CREATE ROLE "we""b 'shop" LOGIN"#);
        let before = password_file(&primary);
        let answer = primary.agent(&["--json", "credentials", "--rotate", "--role", role]).run().json();
        let new = text(&answer, "password").to_owned();
        assert_eq!(text(&answer, "user"), role);
        assert!(accepts(&primary, role, &new));
        let kept = primary.one("SELECT rolpassword FROM pg_authid WHERE rolname LIKE '%shop'");
        assert!(kept.starts_with(if encryption == "md5" { "md5" } else { "SCRAM-SHA-256$" }), "{kept}");
        assert!(accepts(&primary, "dotcloud", &primary.password), "the superuser's is what it was");
        assert_eq!((password_file(&primary), next(&primary).exists()), (before.clone(), false));

        standby.agent(&["credentials", "--adopt", "--role", role]).stdin(new.clone()).run().ok();
        let wrong = standby.agent(&["credentials", "--adopt", "--role", role]).stdin("wrong").run();
        assert_eq!(wrong.code, 1, "{wrong:?}");
        assert_eq!(password_file(&standby), before);
        assert!(!std::fs::read_to_string(standby.home.join(".pgmahout/pgpass")).unwrap().contains(&new));

        primary.agent(&["credentials", "--rotate", "--role", "nobody"]).run().fails(
            1,
            "there is no role nobody on db.0",
            r"psql -c '\du' shows those that there are",
        );
    }
}

#[test]
fn a_server_that_trusts_everybody_is_asked_all_the_same() {
    let (mut primary, standby) = pair(Pg::embedded("18"));
    standby.enslave(&primary, &[]);
    method(&primary, "trust");
    let new = rotate(&mut primary);
    let before = password_file(&standby);
    let wrong = standby.agent(&["credentials", "--adopt"]).stdin("wrong").run();
    assert_eq!(wrong.code, 1, "{wrong:?}");
    wrong.says("this is not the password of dotcloud on ");
    assert_eq!(password_file(&standby), before);
    standby.agent(&["credentials", "--adopt"]).stdin(new.clone()).run().ok();
    assert_eq!(password_file(&standby), format!("{new}\n"));
}

#[test]
fn what_is_no_password_is_refused() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).build();
    let before = password_file(&host);
    for (input, why) in [
        ("".to_owned(), "it is empty"),
        ("\n".to_owned(), "it is empty"),
        ("a\tb\n".to_owned(), "it has control characters"),
        ("x".repeat(5000), "it is longer than 1024 bytes"),
    ] {
        let output = host.agent(&["credentials", "--adopt"]).stdin(input).run();
        assert_eq!(output.code, 2, "{output:?}");
        output.says(&format!("the new password has to come on stdin, on one line: {why}"));
    }
    assert_eq!(password_file(&host), before);
    let both = host.agent(&["credentials", "--adopt", "--rotate"]).run();
    assert_eq!(both.code, 2, "{both:?}");
}
