//! What `pgmahout enslave` refuses: the exact message, the exit code, and that nothing was changed on
//! either side.

use crate::common::*;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// A primary and a fresh instance that refusals share: nothing may change on them anyhow. One test at a
/// time has them, for the agent serves one command at a time.
struct Shared {
    primary: Host,
    target: Host,
}

struct Turn {
    shared: Arc<Shared>,
    before: (Snapshot, Snapshot),
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Turn {
    fn unchanged(&self) {
        self.before.0.assert_unchanged(&self.primary);
        self.before.1.assert_unchanged(&self.target);
        primary_is_clean(&self.primary, &[]);
    }
}

fn shared() -> Turn {
    static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
    static TURN: Mutex<()> = Mutex::new(());
    let shared = {
        let mut slot = SHARED.lock().unwrap_or_else(|p| p.into_inner());
        slot.upgrade().unwrap_or_else(|| {
            let (primary, target) = pair(Pg::embedded("18"));
            primary.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
            let new = Arc::new(Shared { primary, target });
            *slot = Arc::downgrade(&new);
            new
        })
    };
    let turn = TURN.lock().unwrap_or_else(|p| p.into_inner());
    let before = (snapshot(&shared.primary), snapshot(&shared.target));
    Turn { shared, before, _turn: turn }
}

const INFO_HINT: &str = "run `dotcloud info db.0` and give what it prints, all of it";

// --- what arrives on standard input -------------------------------------------------------------------

#[test]
fn empty_stdin() {
    let host = shared();
    let hint = "pipe one in, as in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave";
    for nothing in ["", "\n", "  \r\n\n"] {
        host.target.agent(&["enslave"]).stdin(nothing).run().fails(2, "the blurb is empty", hint);
    }
    host.target.agent(&["--json", "enslave"]).stdin("").run().fails_json(2, "the blurb is empty", Some(hint));
    host.unchanged();
}

#[test]
fn a_terminal_as_stdin() {
    let host = shared();
    let output = host.target.agent(&["enslave"]).terminal(&[]);
    assert_eq!(output.code, 2, "{output:?}");
    assert_eq!(
        output.stdout.replace('\r', ""),
        "pgmahout: the blurb is expected on stdin, and stdin is a terminal\n\
         hint: pipe it in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave; or use --info FILE\n"
    );
    host.unchanged();
}

#[test]
fn a_blurb_that_is_none() {
    let host = shared();
    let enslave = |blurb: &[u8]| host.target.agent(&["enslave"]).stdin(blurb).run();
    enslave(b"hello: world\n").fails(2, "the blurb has no ports; it begins with: hello: world", INFO_HINT);
    enslave(b"\xff\xfe\x00").fails(2, "the blurb is not UTF-8 text (byte 0)", INFO_HINT);
    enslave(&vec![b'a'; 2 << 20]).fails(2, "2097152 bytes are no blurb (the limit is 1048576)", INFO_HINT);
    enslave(b"Error: Not Found: no such service or instance: db.7\n").fails(
        2,
        "the blurb is an error message: Error: Not Found: no such service or instance: db.7",
        "the command in front of the pipe failed; run it alone until it prints the instance's ports",
    );
    host.unchanged();
}

const TWO: &str = "== db\ntype:            custom\ninstances:       2\n\n\
    === db.0\nports:\n  ssh:   ssh://dotcloud@shop-example.test:22481\n  pgsql: tcp://shop-example.test:22482\n\n\
    === db.1\nports:\n  ssh:   ssh://dotcloud@shop-example.test:31011\n  pgsql: tcp://shop-example.test:31012\n";

#[test]
fn several_instances_or_several_ports() {
    let host = shared();
    host.target.agent(&["enslave"]).stdin(TWO).run().fails(
        2,
        "the blurb tells of several instances: db.0, db.1",
        "choose one with --from, or ask for one: dotcloud info db.0",
    );
    host.target.agent(&["enslave", "--from", "db.7"]).stdin(TWO).run().fails(
        2,
        "there is no instance db.7, only db.0, db.1",
        "",
    );
    let ports = "ports:\n-   name: ssh\n    url: ssh://dotcloud@h.test:1\n-   name: a\n    url: tcp://h.test:2\n-   name: b\n    url: tcp://h.test:3\n";
    host.target.agent(&["enslave"]).stdin(ports).run().fails(
        2,
        "several ports could be PostgreSQL's: a, b",
        "name one of them pgsql in dotcloud.yml, or in the blurb",
    );
    host.unchanged();
}

#[test]
fn an_instance_number_without_an_environment() {
    let host = shared();
    host.target.agent(&["enslave", "0"]).run().fails(
        2,
        &format!("there is no environment.json in {} to look the instance up in", host.target.home.display()),
        "give its blurb instead: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
    );
    let output = host.target.agent(&["enslave", "--info", "no-such-file"]).run();
    output.fails(1, "could not read no-such-file: No such file or directory (os error 2)", "");
    host.unchanged();
}

/// What messages call a host's server.
fn at(host: &Host) -> String {
    format!("the source (127.0.0.1:{})", host.port)
}

// --- reaching the other side --------------------------------------------------------------------------

#[test]
fn closed_ssh_port() {
    let host = shared();
    let closed = free_port();
    host.target.agent(&["enslave"]).stdin(host.primary.blurb_at(closed, host.primary.port)).run().fails(
        4,
        &format!("could not connect to 127.0.0.1:{closed} by SSH: Connection refused (os error 111)"),
        "is the address right, is sshd running there, and is its port open from here?",
    );
    host.unchanged();
}

#[test]
fn a_name_that_does_not_exist() {
    let host = shared();
    let blurb = host.primary.blurb().replace("127.0.0.1", "no-such-host.invalid");
    let output = host.target.agent(&["enslave"]).stdin(blurb).run();
    assert_eq!(output.code, 4, "{output:?}");
    output.says(&format!(
        "pgmahout: could not connect to no-such-host.invalid:{} by SSH: the name was not found",
        host.primary.ssh_port
    ));
    host.unchanged();
}

#[test]
fn closed_sql_port() {
    let host = shared();
    let closed = free_port();
    host.target.agent(&["enslave"]).stdin(host.primary.blurb_at(host.primary.ssh_port, closed)).run().fails(
        4,
        &format!(
            "could not connect to PostgreSQL of the source (127.0.0.1:{closed}): Connection refused (os error 111)"
        ),
        "is the address right, is the server running, and is its port open from here?",
    );
    host.unchanged();
}

#[test]
fn a_port_that_is_no_postgresql_and_one_that_is_no_ssh() {
    let host = shared();
    // SSH's port as SQL's and the other way round.
    let swapped = host.primary.blurb_at(host.primary.port, host.primary.ssh_port);
    let output = host.target.agent(&["enslave"]).stdin(swapped).run();
    assert_eq!(output.code, 4, "{output:?}");
    let twice = host.primary.blurb_at(host.primary.ssh_port, host.primary.ssh_port);
    let output = host.target.agent(&["enslave"]).stdin(twice).run();
    assert_eq!(output.code, 4, "{output:?}");
    host.unchanged();
}

#[test]
fn wrong_password() {
    let host = shared();
    host.target.agent(&["enslave"]).stdin(host.primary.blurb_with("dotcloud", "wrong")).run().fails(
        4,
        &format!("PostgreSQL of {} does not accept the password of dotcloud", at(&host.primary)),
        "put the right one into ~/password (or password_file, or PGPASSWORD) of this instance",
    );
    host.unchanged();
}

#[test]
fn a_role_that_is_not_superuser() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    primary.exec("CREATE ROLE weak LOGIN REPLICATION PASSWORD 'weak'");
    let host = shared();
    let before = snapshot(&primary);
    host.target.agent(&["enslave"]).stdin(primary.blurb_with("weak", "weak")).run().fails(
        1,
        "weak is no superuser of the source",
        "give the superuser in the blurb's pgsql URL, or by the setting user",
    );
    before.assert_unchanged(&primary);
    host.unchanged();
}

#[test]
fn replication_that_pg_hba_does_not_allow() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    primary.hba("reject");
    primary.reload();
    let host = shared();
    let before = snapshot(&primary);
    host.target.agent(&["enslave"]).stdin(primary.blurb()).run().fails(
        1,
        &format!("PostgreSQL of {} lets no replication connection of dotcloud in from here", at(&primary)),
        "add a line \"host replication <user> <this host> scram-sha-256\" to its pg_hba.conf and reload it",
    );
    before.assert_unchanged(&primary);
    host.unchanged();
}

#[test]
fn a_key_that_is_not_let_in() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).unauthorized().build();
    let host = shared();
    let before = snapshot(&primary);
    let key = host.target.home.join(".ssh/id_ed25519");
    host.target.agent(&["enslave"]).stdin(primary.blurb()).run().fails(
        4,
        &format!(
            "127.0.0.1:{} accepts no key of ours for {}: {} (Username/PublicKey combination invalid)",
            primary.ssh_port,
            primary.account.name,
            key.display()
        ),
        "add this instance's public key (~/.ssh/id_ed25519.pub) to ~/.ssh/authorized_keys there",
    );
    before.assert_unchanged(&primary);
    host.unchanged();
}

#[test]
fn no_key_at_all() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).without_identity().build();
    let host = shared();
    let before = snapshot(&target);
    target.agent(&["enslave"]).stdin(host.primary.blurb()).run().fails(
        4,
        &format!(
            "127.0.0.1:{} accepts no key of ours for {}: no key was found",
            host.primary.ssh_port, host.primary.account.name
        ),
        "add this instance's public key (~/.ssh/id_ed25519.pub) to ~/.ssh/authorized_keys there",
    );
    before.assert_unchanged(&target);
    host.unchanged();
}

#[test]
fn a_changed_host_key() {
    let site = Site::new();
    let mut primary = site.host("db.0").pg(Pg::embedded("18")).build();
    let target = site.host("db.1").pg(Pg::embedded("18")).build();
    target.enslave(&primary, &["--dry-run"]);
    primary.stop_sshd();
    primary.new_host_key();
    primary.start_sshd();
    let (before, there) = (snapshot(&target), snapshot(&primary));
    let known = std::fs::read(target.known_hosts()).unwrap();
    target.agent(&["enslave"]).stdin(primary.blurb()).run().fails(
        3,
        &format!(
            "the host key of 127.0.0.1:{} has changed; it now shows {}",
            primary.ssh_port,
            primary.host_key()
        ),
        &format!(
            "if that is expected: ssh-keygen -f '{}' -R '[127.0.0.1]:{}', or --host-key {} for this once",
            target.known_hosts().display(),
            primary.ssh_port,
            primary.host_key()
        ),
    );
    before.assert_unchanged(&target);
    there.assert_unchanged(&primary);
    assert_eq!(std::fs::read(target.known_hosts()).unwrap(), known, "known_hosts was changed");
    assert_eq!(
        primary.ssh_commands().iter().filter(|c| c.contains("source")).count(),
        1,
        "only the dry run got in"
    );
}

#[test]
fn ssh_to_one_machine_and_sql_to_another() {
    let site = Site::new();
    let mut other = site.host("db.7").pg(Pg::embedded("18")).build();
    let host = shared();
    // As on another machine of the same making: the same path, another cluster.
    let other_data = other.data.clone();
    other.restart_sshd_seeing(&other_data, &host.primary.data);
    let before = snapshot(&other);
    host.target.agent(&["enslave"]).stdin(host.primary.blurb_at(other.ssh_port, host.primary.port)).run().fails(
        2,
        &format!(
            "SSH to 127.0.0.1:{} and SQL to 127.0.0.1:{} lead to different clusters (system identifiers {} and {})",
            other.ssh_port,
            host.primary.port,
            other.system_identifier(),
            host.primary.system_identifier()
        ),
        "the blurb mixes the ports of two instances; take it from one: dotcloud info db.0",
    );
    before.assert_unchanged(&other);
    host.unchanged();
}

// --- what the source cannot feed ----------------------------------------------------------------------

#[test]
fn another_major_version() {
    let site = Site::new();
    let old = site.host("db.0").pg(Pg::embedded("17")).build();
    let host = shared();
    let before = snapshot(&old);
    host.target.agent(&["enslave"]).stdin(old.blurb()).run().fails(
        1,
        "the source is PostgreSQL 17.10, and this instance has the programs of 18.4",
        "a standby needs the same major version: --take-build takes the source's finished build",
    );
    before.assert_unchanged(&old);
    host.unchanged();
}

#[test]
fn wal_level_minimal() {
    let site = Site::new();
    let minimal = site
        .host("db.0")
        .pg(Pg::embedded("18"))
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0");
    let primary = minimal.build();
    cannot_feed(
        &primary,
        // With this setting the server refuses the replication connection that comes first.
        "wal_level of the source is minimal: no standby can follow",
        "set wal_level = replica there and restart it",
    );
}

#[test]
fn no_free_wal_sender() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).setting("max_wal_senders", "1").build();
    let first = site.host("db.2").pg(Pg::embedded("18")).build();
    first.enslave(&primary, &[]);
    cannot_feed(
        &primary,
        "all 1 WAL senders of the source are in use",
        "raise max_wal_senders there and restart it",
    );
}

#[test]
fn no_free_slot() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).setting("max_replication_slots", "1").build();
    primary.exec("SELECT pg_create_physical_replication_slot('mine')");
    cannot_feed(
        &primary,
        "all 1 replication slots of the source are in use",
        "raise max_replication_slots there and restart it, or drop a slot that nobody needs",
    );
}

#[track_caller]
fn cannot_feed(primary: &Host, text: &str, hint: &str) {
    let host = shared();
    let before = snapshot(primary);
    host.target.agent(&["enslave"]).stdin(primary.blurb()).run().fails(1, text, hint);
    before.assert_unchanged(primary);
    host.unchanged();
}

#[test]
fn a_slot_of_our_name_that_another_standby_uses() {
    let site = Site::new();
    let pg = Pg::embedded("18");
    let primary = site.host("db.0").pg(pg.clone()).build();
    let twin = site.host("twin").pg(pg).yml("instance", "db.1").build();
    twin.enslave(&primary, &[]);
    cannot_feed(
        &primary,
        "another standby streams from the slot pgmahout_db_1",
        "two instances have the same name; set instance in one's ~/pgmahout.yml",
    );
    assert_streams(&primary, &twin);
}

#[test]
fn settings_that_a_standby_must_not_have_lower() {
    // Where the settings are the source's they come with the copy; a repointed standby keeps its own.
    let site = Site::new();
    let pg = Pg::embedded("18");
    let [a, b] = ["db.0", "db.1"].map(|name| site.host(name).pg(pg.clone()).build());
    b.enslave(&a, &[]);
    b.stop();
    a.exec("ALTER SYSTEM SET max_connections = 60");
    a.restart();
    let before = (snapshot(&a), snapshot(&b));
    b.agent(&["enslave"]).stdin(a.blurb()).run().fails(
        1,
        "max_connections is 30 here and 60 on the source: a standby's must not be lower",
        "raise it in this instance's configuration",
    );
    before.0.assert_unchanged(&a);
    before.1.assert_unchanged(&b);
}

#[test]
fn a_source_that_is_a_standby() {
    let site = Site::new();
    let pg = Pg::embedded("18");
    let [a, b] = ["db.0", "db.5"].map(|name| site.host(name).pg(pg.clone()).build());
    b.enslave(&a, &[]);
    let host = shared();
    let before = (snapshot(&a), snapshot(&b));
    host.target.agent(&["enslave"]).stdin(b.blurb()).run().fails(
        3,
        "the source is itself a standby",
        "follow its primary, or say --cascade to follow the standby",
    );
    before.0.assert_unchanged(&a);
    before.1.assert_unchanged(&b);
    host.unchanged();
}

// --- the direction guard ------------------------------------------------------------------------------

#[test]
fn enslaving_an_instance_to_itself() {
    let host = shared();
    for arguments in
        [&["enslave"][..], &["enslave", "--confirm", "db.0"], &["enslave", "--cascade", "--confirm", "db.0"]]
    {
        host.primary.agent(arguments).stdin(host.primary.blurb()).run().fails(
            2,
            "the source is db.0 itself",
            "give the blurb of another instance",
        );
    }
    host.unchanged();
}

#[test]
fn enslaving_the_primary_to_its_own_standby() {
    let (primary, standby) = pair(Pg::embedded("15"));
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    standby.enslave(&primary, &[]);
    let before = (snapshot(&primary), snapshot(&standby));
    for arguments in
        [&["enslave"][..], &["enslave", "--cascade"], &["enslave", "--cascade", "--confirm", "db.0"]]
    {
        primary.agent(arguments).stdin(standby.blurb()).run().fails(
            2,
            "the source is a standby of db.0",
            "the other way round? send the blurb of the primary to the standby; or promote the standby first",
        );
        before.0.assert_unchanged(&primary);
        before.1.assert_unchanged(&standby);
    }
    assert_streams(&primary, &standby);
}

#[test]
fn a_target_with_data_of_its_own() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).build();
    target.exec("CREATE TABLE precious AS SELECT 1 AS n");
    let host = shared();
    let before = snapshot(&target);
    let text = format!(
        "db.1 holds another cluster with data of its own (system identifier {}; the source's is {})",
        target.system_identifier(),
        host.primary.system_identifier()
    );
    let hint = "to lose it on purpose, add --confirm db.1; the old cluster is moved aside and kept";
    target.agent(&["enslave"]).stdin(host.primary.blurb()).run().fails(3, &text, hint);
    target.agent(&["--json", "enslave"]).stdin(host.primary.blurb()).run().fails_json(3, &text, Some(hint));
    // The name is that of the victim, not of the source.
    target.agent(&["enslave", "--confirm", "db.0"]).stdin(host.primary.blurb()).run().fails(3, &text, hint);
    before.assert_unchanged(&target);
    // So it is when the server is stopped, and its files are all there is to ask.
    target.stop();
    let before = snapshot(&target);
    target.agent(&["enslave"]).stdin(host.primary.blurb()).run().fails(3, &text, hint);
    before.assert_unchanged(&target);
    // A database is data, too.
    target.start();
    target.exec("DROP TABLE precious; ");
    target.exec("CREATE DATABASE shop");
    let before = snapshot(&target);
    target.agent(&["enslave"]).stdin(host.primary.blurb()).run().fails(3, &text, hint);
    before.assert_unchanged(&target);
    host.unchanged();
}

#[test]
fn a_directory_that_is_no_data_directory() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).without_data().build();
    target.account.mkdir(&target.data, 0o700);
    target.account.write(&target.data.join("thesis.tex"), "years of work", 0o600);
    let host = shared();
    let before = snapshot(&target);
    for arguments in [&["enslave"][..], &["enslave", "--confirm", "db.1"]] {
        target.agent(arguments).stdin(host.primary.blurb()).run().fails(
            1,
            &format!("{} is not empty and holds no PostgreSQL cluster", target.data.display()),
            "if it is the right directory, move what is in it elsewhere",
        );
        before.assert_unchanged(&target);
    }
    host.unchanged();
}

#[test]
fn repointing_where_it_is_not_possible() {
    let host = shared();
    host.target.agent(&["enslave", "--plan", "repoint"]).stdin(host.primary.blurb()).run().fails(
        1,
        "repointing is not possible: the cluster here is another one (its system identifier differs)",
        "leave --plan away, and what is needed will be copied",
    );
    host.unchanged();
}

// --- the machine here ---------------------------------------------------------------------------------

#[test]
fn a_disk_that_is_too_small() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "small disk", 100);
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&primary, 60);
    let target = site.host("db.1").pg(Pg::embedded("18")).home(&disk.path).build();
    let before = (snapshot(&primary), snapshot(&target));
    let output = target.agent(&["enslave"]).stdin(primary.blurb()).run();
    assert_eq!(output.code, 1, "{output:?}");
    output
        .says(&format!("pgmahout: {} needs ", target.data.display()))
        .says("hint: make room, or use a larger disk");
    before.0.assert_unchanged(&primary);
    before.1.assert_unchanged(&target);
    primary_is_clean(&primary, &[]);
    drop(target);
}

#[test]
fn the_wrong_account() {
    let host = shared();
    assert!(nix::unistd::geteuid().is_root(), "this test needs a second account: run it as root");
    let root =
        std::process::Command::new(std::fs::canonicalize(host.target.home.join("bin/pgmahout")).unwrap())
            .env_clear()
            .env("HOME", &host.target.home)
            .args(["enslave"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                use std::io::Write;
                child.stdin.take().unwrap().write_all(host.primary.blurb().as_bytes())?;
                child.wait_with_output()
            })
            .unwrap();
    let said = String::from_utf8_lossy(&root.stderr).into_owned();
    let text = format!("{} belongs to dotcloud, and this is another account", host.target.data.display());
    let hint = "run pgmahout as the account that runs the server";
    assert_eq!(said, format!("pgmahout: {text}\nhint: {hint}\n"));
    assert_eq!(root.status.code(), Some(2));
    host.unchanged();
}

#[test]
fn settings_that_are_wrong() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).stopped().build();
    let host = shared();
    let own = target.account;
    let path = target.home.join("pgmahout.yml");
    let good = std::fs::read_to_string(&path).unwrap();
    let fails = |settings: String, text: String, hint: &str| {
        own.write(&path, settings, 0o644);
        target.agent(&["enslave"]).stdin(host.primary.blurb()).run().fails(2, &text, hint);
    };
    let listed = "`pgmahout config` lists every setting";
    let unclear = format!("{} cannot be understood: ", path.display());
    fails(format!("{good}prot: 5432\n"), format!("{unclear}there is no setting \"prot\""), listed);
    fails(
        format!("{good}connect_timeout: soon\n"),
        "the setting connect_timeout is \"soon\", but has to be a number".into(),
        "",
    );
    fails(
        good.replace("service: \"commands\"", "service: \"upstart\""),
        "the setting service is \"upstart\", but has to be supervisor, systemd, pg_ctlcluster, pg_ctl or commands".into(),
        "",
    );
    fails(
        good.replace("start_command", "supervisor_program"),
        "the setting start_command is needed, because service is commands".into(),
        "",
    );
    host.unchanged();
}
