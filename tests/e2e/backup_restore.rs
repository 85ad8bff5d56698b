//! `pgmahout backup restore`: whatever goes wrong, and whenever it is killed, the old database is as it was and in
//! place; and what is restored is all that was backed up.

use crate::backups::*;
use crate::common::*;
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Quotes, spaces, what a connection string or a shell would read otherwise, more bytes than a name takes twice.
const ODD: &str = "Ünï 'q\" = $x";

fn host(pg: Pg) -> Host {
    Site::new()
        .host("db.0")
        .pg(pg)
        .setting("max_prepared_transactions", "2")
        .setting("wal_level", "logical")
        .build()
}

/// A database with some of everything.
fn fill(host: &Host, database: &str) {
    host.exec(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'clerk') THEN \
         CREATE ROLE clerk; CREATE ROLE \"the \"\"Reader\"\"\"; END IF; END $$",
    );
    host.exec(&format!("CREATE DATABASE {} OWNER clerk", quoted(database)));
    host.exec_in(
        database,
        r#"
        CREATE EXTENSION hstore;
        CREATE SCHEMA "odd ""schema'"; ALTER SCHEMA "odd ""schema'" OWNER TO clerk;
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, mood mood DEFAULT 'ok', attributes hstore);
        INSERT INTO customers (name, attributes) SELECT 'n' || g, hstore('k', g::text) FROM generate_series(1, 2000) g;
        CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES customers, note text);
        INSERT INTO orders (customer, note) SELECT 1 + g % 2000, repeat(md5(g::text), 10) FROM generate_series(1, 5000) g;
        CREATE INDEX ON orders (customer); CREATE UNIQUE INDEX ON customers (lower(name));
        CREATE TABLE "odd ""schema'"."täble = 'x'" ("cölumn ""1""" bytea, "select" timestamptz DEFAULT now());
        INSERT INTO "odd ""schema'"."täble = 'x'" VALUES ('\x00ff', '2020-01-01'), (NULL, NULL);
        CREATE TABLE empty ();
        CREATE TABLE parts (at date, n int) PARTITION BY RANGE (at);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
        CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
        INSERT INTO parts SELECT date '2020-06-01' + g, g FROM generate_series(1, 400) g;
        CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent);
        INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3);
        CREATE VIEW names AS SELECT name FROM customers;
        CREATE MATERIALIZED VIEW totals AS SELECT customer, count(*) FROM orders GROUP BY 1;
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := NEW.note || ''!''; RETURN NEW; END';
        CREATE TRIGGER touch BEFORE INSERT ON orders FOR EACH ROW EXECUTE PROCEDURE touch();
        CREATE SEQUENCE tickets START 77; SELECT nextval('tickets'), nextval('tickets');
        SELECT lo_from_bytea(4242, '\xdeadbeef'), lo_from_bytea(4243, decode(repeat('00ff', 100000), 'hex'));
        ALTER LARGE OBJECT 4242 OWNER TO clerk;
        ALTER TABLE orders OWNER TO clerk; GRANT SELECT ON customers TO "the ""Reader""";
        CREATE POLICY own ON orders TO clerk USING (true); ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
        COMMENT ON TABLE customers IS 'who buys';
    "#,
    );
}

/// What belongs to the database itself.
fn adorn(host: &Host, database: &str) {
    let name = quoted(database);
    host.exec(&format!(
        r#"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC; GRANT CONNECT, TEMP ON DATABASE {name} TO "the ""Reader""" WITH GRANT OPTION;
        ALTER DATABASE {name} CONNECTION LIMIT 17; ALTER DATABASE {name} SET search_path TO "$user", 'odd "schema''', public;
        ALTER DATABASE {name} SET my.own TO 'a, b'; ALTER ROLE clerk IN DATABASE {name} SET work_mem TO '7MB';
        COMMENT ON DATABASE {name} IS 'it''s ours'"#
    ));
}

fn restore(host: &Host, arguments: &[&str]) -> Output {
    let all: Vec<&str> = ["backup", "restore"].iter().chain(arguments).copied().collect();
    host.agent(&all).run()
}

fn restored(host: &Host, arguments: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = ["--json", "backup", "restore"].iter().chain(arguments).copied().collect();
    host.agent(&all).run().json()
}

fn round_trip(host: &Host) {
    for database in ["shop", ODD] {
        fill(host, database);
        adorn(host, database);
        let (before, were) = (contents(host, database), properties(host, database));
        assert!(before.len() > 40 && were.len() >= 4, "{before:?} {were:?}");
        let id = backup(host, database);
        host.exec_in(
            database,
            "DROP TABLE orders CASCADE; UPDATE customers SET name = 'x' || name; SELECT lo_unlink(4242)",
        );
        host.exec_in(database, "CREATE TABLE later AS SELECT 1");
        let secret = Argv::watch(&host.password);
        let report = restored(host, &[&id, "--confirm", "db.0"]);
        assert_eq!(secret.seen(), Vec::<String>::new());
        assert!(report["rows"].as_u64().unwrap() > 7000, "{report}");
        assert_eq!(report["warnings"], serde_json::json!([]), "{report}");
        assert_eq!(contents(host, database), before);
        assert_eq!(properties(host, database), were);
        assert_eq!(host.one_in(database, "SHOW my.own"), "a, b");
        assert_eq!(host.one_in(database, "SELECT nextval('tickets')"), "79");
        assert_ne!(host.one_in(database, "SELECT reltuples FROM pg_class WHERE relname = 'customers'"), "0");
        no_leftovers(host);
        // Into a new one, and over that again.
        let other = format!("{database} 2");
        let report = restored(host, &[&id, &other, "-j", "1"]);
        assert_eq!(report["sessions_ended"], 0);
        assert_eq!(contents(host, &other), before);
        restore(host, &[&id, &other]).fails(
            3,
            &format!("the database {other} of db.0 holds {}", report_of(host, &id, &other)),
            "to replace it on purpose, add --confirm db.0",
        );
        no_leftovers(host);
    }
}

fn report_of(host: &Host, id: &str, database: &str) -> String {
    restored(host, &[id, database, "--dry-run"])["loses"].as_str().unwrap().to_owned()
}

#[test]
fn all_comes_back_on_11_by_the_tools_of_debian() {
    round_trip(&host(Pg::embedded("11")));
}

#[test]
fn all_comes_back_on_15() {
    round_trip(&host(Pg::debian15()));
}

#[test]
fn all_comes_back_on_18() {
    round_trip(&host(Pg::full18()));
}

#[test]
fn a_newer_pg_restore_restores_to_an_older_server() {
    for pg in [Pg::embedded("11"), Pg::debian15()] {
        let host = host(pg);
        fill(&host, "shop");
        let before = contents(&host, "shop");
        let bytes = dump_by(&host, "shop", &Pg::full18().bin.join("pg_dump"));
        let mut about = manifest(&host, "shop", &bytes);
        about.tool_version = Some("18.6".into());
        let id = put(&host, &bytes, about).to_string();
        drop_database(&host, "shop");
        restore(&host, &[&id]).fails(
            1,
            "no pg_restore of version 18 or later is here (the newest is 15.18)"
                .replace("15.18", &newest())
                .as_str(),
            "apt-get install postgresql-client-18, or pgmahout build-version 18 --no-switch",
        );
        let path = format!("{}:/usr/bin:/bin", Pg::full18().bin.display());
        let run = |arguments: &[&str]| host.agent(arguments).env("PATH", path.clone()).run();
        run(&["backup", "restore", &id]).ok();
        assert_eq!(contents(&host, "shop"), before);
        // An error that is not the harmless one is one.
        let text = bytes.len() / 2;
        let cut = host.home.join("cut.dump");
        host.account.write(&cut, &bytes[..text], 0o600);
        let output = run(&["backup", "restore", cut.to_str().unwrap(), "shop", "--confirm", "db.0"]);
        assert_eq!(output.code, 1);
        output.says("pg_restore failed");
        assert_eq!(contents(&host, "shop"), before);
        no_leftovers(&host);
    }
}

fn newest() -> String {
    must(account().command(Pg::client("pg_restore")).arg("--version"))
        .split_whitespace()
        .nth(2)
        .unwrap()
        .into()
}

#[test]
fn postgres_itself_is_replaced() {
    let host = host(Pg::debian15());
    fill(&host, "shop");
    let before = contents(&host, "shop");
    let id = backup(&host, "shop");
    // Empty: nothing to confirm.
    assert_eq!(restored(&host, &[&id, "postgres"])["loses"], serde_json::Value::Null);
    assert_eq!(contents(&host, "postgres"), before);
    host.exec_in("postgres", "DROP TABLE orders CASCADE");
    restore(&host, &[&id, "postgres", "--confirm", "db.0"]).ok();
    assert_eq!(contents(&host, "postgres"), before);
    no_leftovers(&host);
    restore(&host, &[&id, "template1"]).fails(
        2,
        "template1 is a template: what is in it gets into every new database",
        "name another database",
    );
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let host = host(Pg::debian15());
    fill(&host, "shop");
    adorn(&host, "shop");
    let id = backup(&host, "shop");
    let (before, were) = (contents(&host, "shop"), properties(&host, "shop"));
    let databases = host.column("postgres", "SELECT datname FROM pg_database ORDER BY 1");
    for confirm in [&["--confirm", "db.1"][..], &[]] {
        let arguments = [&[id.as_str()], confirm].concat();
        let output = restore(&host, &arguments);
        assert_eq!(output.code, 3);
        output.says("the database shop of db.0 holds 10 tables, ").says("add --confirm db.0");
    }
    let bytes = std::fs::read(file(&host, &id)).unwrap();
    let mut about = manifest(&host, "shop", &bytes);
    about.needs.extensions.insert("postgis".into(), "3".into());
    let extension = put(&host, &bytes, about).to_string();
    restore(&host, &[&extension, "new"]).fails(
        1,
        "the backup needs extensions that db.0 does not have: postgis",
        "install their packages for this PostgreSQL; pg_available_extensions shows those that are here",
    );
    let mut about = manifest(&host, "shop", &bytes);
    about.database_size = 1 << 60;
    let large = put(&host, &bytes, about).to_string();
    let output = restore(&host, &[&large, "new"]);
    assert_eq!(output.code, 1);
    output.says("needs 1152921504607 MB");
    restore(&host, &["b077"]).fails(
        1,
        &format!("there is no backup b077 in {}", directory(&host).display()),
        "pgmahout backup list shows those that are",
    );
    let page = host.home.join("page.html");
    host.account.write(&page, "<html>", 0o600);
    restore(&host, &[page.to_str().unwrap(), "shop"]).fails(
        1,
        &format!("{} is no backup: it is neither an archive of pg_dump -Fc nor a tar", page.display()),
        "a backup is what pg_dump -Fc writes, or what pgmahout backup has stored",
    );
    std::fs::remove_file(page).unwrap();
    for id in [&extension, &large] {
        host.agent(&["backup", "delete", id]).run().ok();
    }
    assert_eq!((contents(&host, "shop"), properties(&host, "shop")), (before, were));
    assert_eq!(host.column("postgres", "SELECT datname FROM pg_database ORDER BY 1"), databases);
    no_leftovers(&host);

    host.exec_in("shop", "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')");
    host.exec_in("shop", "BEGIN; INSERT INTO empty DEFAULT VALUES; PREPARE TRANSACTION 'half'");
    restore(&host, &[&id, "--confirm", "db.0"]).fails(
        1,
        "shop cannot be replaced while it has the logical replication slot feed, the prepared transaction half",
        "drop them, or restore into another database",
    );
    host.exec_in("shop", "ROLLBACK PREPARED 'half'");
    host.exec_in("shop", "SELECT pg_drop_replication_slot('feed')");
    no_leftovers(&host);
}

#[test]
fn without_its_roles_all_belongs_to_the_databases_owner() {
    let host = host(Pg::debian15());
    fill(&host, "shop");
    host.exec_in("shop", "DROP POLICY own ON orders");
    let id = backup(&host, "shop");
    let rows = contents(&host, "shop").into_iter().filter(|line| line.contains(": ")).collect::<Vec<_>>();
    drop_database(&host, "shop");
    host.exec("DROP ROLE clerk, \"the \"\"Reader\"\"\"; CREATE ROLE owner; ");
    restore(&host, &[&id]).fails(
        1,
        "the backup needs roles that db.0 does not have: clerk, the \"Reader\"",
        "create them, or add --no-owner: everything belongs to the database's owner then, and nothing is granted",
    );
    // The same of a file, which has no manifest.
    let path = file(&host, &id).display().to_string();
    let output = restore(&host, &[&path, "shop"]);
    assert_eq!(output.code, 1);
    output.says("role \"clerk\" does not exist").says("hint: create the role, or add --no-owner");
    no_leftovers(&host);
    host.exec("CREATE DATABASE shop OWNER owner");
    restore(&host, &[&id, "--no-owner"]).ok();
    let now = contents(&host, "shop").into_iter().filter(|line| line.contains(": ")).collect::<Vec<_>>();
    assert_eq!(now, rows);
    let owners = "SELECT DISTINCT relowner::regrole FROM pg_class WHERE oid >= 16384 AND relnamespace <> 99";
    assert_eq!(host.column("shop", owners), ["owner"]);
    assert_eq!(
        host.one_in("shop", "SELECT DISTINCT lomowner::regrole FROM pg_largeobject_metadata"),
        "owner"
    );
    assert_eq!(host.one("SELECT datdba::regrole FROM pg_database WHERE datname = 'shop'"), "owner");
    no_leftovers(&host);
    // A new one belongs to the superuser.
    restore(&host, &[&path, "fresh", "--no-owner"]).ok();
    assert_eq!(host.column("fresh", owners), ["dotcloud"]);
    no_leftovers(&host);
}

#[test]
fn a_standby_is_refused() {
    let (primary, standby) = pair(Pg::debian15());
    fill(&primary, "shop");
    standby.enslave(&primary, &[]);
    let id = backup(&primary, "shop");
    std::fs::create_dir(directory(&standby)).unwrap();
    for entry in std::fs::read_dir(directory(&primary)).unwrap().flatten() {
        std::fs::copy(entry.path(), directory(&standby).join(entry.file_name())).unwrap();
    }
    must(std::process::Command::new("chown").arg("-R").arg(&account().name).arg(directory(&standby)));
    let output = restore(&standby, &[&id, "--confirm", "db.1"]);
    assert_eq!(output.code, 1);
    output.says("db.1 is a standby: its data is that of its primary");
}

/// An app that writes, and connects again at once when it is thrown out.
struct App {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl App {
    fn start(host: &Host, database: &str) -> App {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut config = postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(host.port)
            .user(&host.superuser)
            .password(&host.password)
            .dbname(database);
        let threads = (0..6)
            .map(|_| {
                let (config, stop, written) = (config.clone(), stop.clone(), written.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let Ok(mut client) = config.connect(postgres::NoTls) else { continue };
                        while !stop.load(Ordering::SeqCst)
                            && client.batch_execute("INSERT INTO journal DEFAULT VALUES").is_ok()
                        {
                            written.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        App { stop, written, threads }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_app_that_connects_all_the_time_does_not_prevent_the_swap() {
    for pg in [Pg::embedded("11"), Pg::debian15(), Pg::full18()] {
        let host = host(pg);
        host.exec("CREATE DATABASE shop");
        host.exec_in(
            "shop",
            "CREATE TABLE journal (n serial); CREATE TABLE mark (m int); INSERT INTO mark VALUES (1)",
        );
        let id = backup(&host, "shop");
        host.exec_in("shop", "UPDATE mark SET m = 2");
        let app = App::start(&host, "shop");
        until("the app writes", 20, || app.written.load(Ordering::SeqCst) > 100);
        let report = restored(&host, &[&id, "--confirm", "db.0"]);
        assert!(report["sessions_ended"].as_u64().unwrap() >= 6, "{report}");
        assert_eq!(report["warnings"], serde_json::json!([]));
        let now = app.written.load(Ordering::SeqCst);
        until("the app writes again", 20, || app.written.load(Ordering::SeqCst) > now + 100);
        drop(app);
        assert_eq!(host.one_in("shop", "SELECT m FROM mark"), "1");
        no_leftovers(&host);
    }
}

#[test]
fn a_backup_that_is_not_sound_changes_nothing() {
    let host = host(Pg::debian15());
    fill(&host, "shop");
    let id = backup(&host, "shop");
    let path = file(&host, &id);
    let bytes = std::fs::read(&path).unwrap();
    let before = contents(&host, "shop");
    let place = directory(&host).display().to_string();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    let hint = "use another one; pgmahout backup list shows them, pgmahout backup verify proves one";
    for (damaged, why) in [
        (&flipped[..], "its checksum is not the one of its manifest"),
        (&bytes[..bytes.len() - 1], "it is shorter than its manifest says"),
        (&[&bytes[..], b"x"].concat()[..], "it is longer than its manifest says"),
    ] {
        host.account.write(&path, damaged, 0o600);
        let text = format!("the backup {id} in {place} is damaged: {why}");
        restore(&host, &[&id, "--confirm", "db.0"]).fails(1, &text, hint);
    }
    // Damaged before it was hashed: pg_restore finds it, or the rows do.
    let about = manifest(&host, "shop", &bytes);
    for cut in [bytes.len() / 3, bytes.len() - 100, 1000, 20] {
        let id = put(&host, &bytes[..cut], about.clone()).to_string();
        let output = restore(&host, &[&id, "--confirm", "db.0"]);
        assert_eq!(output.code, 1, "{cut}: {output:?}");
        output.says("pg_restore failed");
    }
    let mut wrong = about.clone();
    wrong.tables.iter_mut().find(|table| table.name == "customers").unwrap().rows = Some(1999);
    wrong.tables.push(pgmahout::backups::manifest::Table { name: "gone".into(), ..wrong.tables[0].clone() });
    let schema = wrong.tables[0].schema.clone();
    let id = put(&host, &bytes, wrong).to_string();
    restore(&host, &[&id, "--confirm", "db.0"]).fails(
        1,
        &format!(
            "what was restored is not what the manifest says: public.customers has 2000 rows in place of 1999; \
             there is no table {schema}.gone"
        ),
        "use another backup; pgmahout backup list shows them",
    );
    // Rows that no constraint lets in again.
    host.exec_in(
        "shop",
        "SET session_replication_role = replica; INSERT INTO orders (customer) VALUES (999999)",
    );
    let id = backup(&host, "shop");
    let output = restore(&host, &[&id, "--confirm", "db.0"]);
    assert_eq!(output.code, 1);
    output.says("violates foreign key constraint").says("is not present in table");
    host.exec_in("shop", "DELETE FROM orders WHERE customer = 999999; SELECT setval('orders_id_seq', 5000)");
    assert_eq!(contents(&host, "shop"), before);
    no_leftovers(&host);
}

#[test]
fn a_full_disk_and_a_killed_pg_restore_change_nothing() {
    let site = Site::new();
    let disk = SmallDisk::mount(&site, "disk", 220);
    // Without room for WAL it would be the server that goes down.
    let wal = format!("--waldir={}", site.directory.join("wal").display());
    let host = site.host("db.0").data(&disk.path.join("data")).initdb_arg(&wal).build();
    host.exec("CREATE DATABASE shop");
    host.exec_in(
        "shop",
        "CREATE TABLE t (a int, b text); INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 60000) g; CHECKPOINT",
    );
    let bytes = dump(&host, "shop");
    let mut about = manifest(&host, "shop", &bytes);
    about.database_size = 1;
    let id = put(&host, &bytes, about).to_string();
    let filler = disk.path.join("filler");
    let free =
        || nix::sys::statvfs::statvfs(&disk.path).map(|s| s.blocks_available() * s.fragment_size()).unwrap();
    host.account.write(&filler, vec![1; (free() - (30 << 20)) as usize], 0o600);
    let output = restore(&host, &[&id, "--confirm", "db.0"]);
    assert_eq!(output.code, 1);
    output.says("No space left on device");
    std::fs::remove_file(&filler).unwrap();
    if !host.is_running() {
        host.start();
    }
    assert_eq!(host.one_in("shop", "SELECT count(*) FROM t"), "60000");
    // What the full disk did not let go, the next run does.
    let mut running = host.agent(&["backup", "restore", &id, "--confirm", "db.0"]).spawn();
    let mut killed = false;
    until("pg_restore is killed", 60, || {
        for pid in pids() {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let at = format!("{}/", host.home.display());
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "pg_restore" && command.windows(at.len()).any(|w| w == at.as_bytes()) {
                killed |= nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        killed || !running.is_running()
    });
    assert!(killed, "{}", running.stderr());
    let output = running.wait();
    assert_eq!(output.code, 1);
    output.says("pg_restore failed");
    assert_eq!(host.one_in("shop", "SELECT count(*) FROM t"), "60000");
    no_leftovers(&host);
}

#[test]
fn killed_at_any_instant_the_database_is_whole_and_the_next_run_cleans_up() {
    let host = host(Pg::debian15());
    host.exec("CREATE DATABASE shop");
    host.exec_in(
        "shop",
        "CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g; CREATE INDEX ON t (g)",
    );
    let id = backup(&host, "shop");
    host.exec_in("shop", "DELETE FROM t WHERE g = 1");
    let arguments = ["backup", "restore", &id, "--confirm", "db.0"];
    let whole = host.agent(&arguments).run().ok().elapsed;
    let (mut old, mut new, mut left) = (0, 0, 0);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        // Whatever the last kill has left goes first.
        host.agent(&arguments).run().ok();
        for n in 0..24u32 {
            host.exec_in("shop", "DELETE FROM t WHERE g = 1");
            let mut running = host.agent(&arguments).spawn();
            std::thread::sleep(whole * n / 20);
            if running.is_running() {
                running.signal(signal);
            }
            let output = running.wait();
            if signal == Signal::SIGTERM {
                // Before it has learnt to hear signals it has done nothing yet.
                assert!([0, 5, -15].contains(&output.code), "{output:?}");
                no_leftovers(&host);
            }
            // Whoever connects at the very moment of the swap is told that it has been renamed just now.
            until("shop is there", 5, || host.try_sql("shop").is_ok());
            match host.one_in("shop", "SELECT count(*) FROM t").as_str() {
                "19999" => old += 1,
                "20000" => new += 1,
                other => panic!("{other} rows after {n}"),
            }
            left +=
                host.column("postgres", "SELECT 1 FROM pg_database WHERE datname LIKE '%pgmahout%'").len();
        }
    }
    assert!(old > 10 && new > 3 && left > 3, "{old} old, {new} new, {left} left");
    // What is not ours stays, however it is called.
    host.exec("CREATE DATABASE shop_pgmahout_old_00000000");
    host.exec("CREATE DATABASE shop_pgmahout_restore_00000000");
    host.agent(&arguments).run().ok();
    host.exec("DROP DATABASE shop_pgmahout_old_00000000");
    host.exec("DROP DATABASE shop_pgmahout_restore_00000000");
    no_leftovers(&host);
    assert_eq!(host.one_in("shop", "SELECT count(*) FROM t"), "20000");
}

#[test]
fn a_backup_comes_from_a_file_stdin_or_a_link() {
    let site = Site::new();
    let host = site.host("db.0").build();
    fill(&host, "shop");
    let before = contents(&host, "shop");
    let mirror = Mirror::new(&site);
    let bytes = dump(&host, "shop");
    let path = mirror.directory.join("shop one.dump");
    host.account.write(&path, &bytes, 0o644);
    restore(&host, &[path.to_str().unwrap()]).fails(
        2,
        &format!("{} does not say of which database it is", path.display()),
        "name the database to restore into: pgmahout backup restore SOURCE DATABASE",
    );
    restore(&host, &[path.to_str().unwrap(), "one"]).ok();
    assert_eq!(contents(&host, "one"), before);
    host.agent(&["backup", "restore", "-", "two"]).stdin(bytes.clone()).run().ok();
    assert_eq!(contents(&host, "two"), before);
    let nginx = Nginx::serve(&site, &mirror);
    let url = format!("{}/shop%20one.dump?signature=geheim", nginx.url());
    restore(&host, &[&url, "three"]).ok().says_not("geheim");
    assert_eq!(contents(&host, "three"), before);
    let tls = format!("{}/shop%20one.dump", nginx.tls_url());
    host.agent(&["backup", "restore", &tls, "four"]).env("SSL_CERT_FILE", nginx.certificate()).run().ok();
    restore(&host, &[&format!("{}/none?signature=geheim", nginx.url()), "five"]).fails(
        4,
        &format!("could not read {}/none?…: it answers 404 Not Found", nginx.url()),
        "a link is good for a while only; pgmahout backup url gives a new one",
    );
    let nobody = free_port();
    let output = restore(&host, &[&format!("http://127.0.0.1:{nobody}/x?signature=geheim"), "five"]);
    assert_eq!(output.code, 4);
    output.says_not("geheim");
    no_leftovers(&host);
}

#[test]
fn a_link_that_breaks_is_taken_up_where_it_broke() {
    let site = Site::new();
    let host = site.host("db.0").build();
    host.exec("CREATE DATABASE shop");
    host.exec_in("shop", "CREATE TABLE t AS SELECT g, gen_random_uuid()::text || gen_random_uuid() u FROM generate_series(1, 60000) g");
    let before = contents(&host, "shop");
    let mirror = Mirror::new(&site);
    let bytes = dump(&host, "shop");
    host.account.write(&mirror.directory.join("shop.dump"), &bytes, 0o644);
    let nginx = Nginx::serve(&site, &mirror);
    let proxy = Proxy::to(nginx.port).slow(1_000_000);
    let url = format!("{}/shop.dump", url_at(proxy.port));
    let running = host.agent(&["backup", "restore", &url, "copy"]).spawn();
    for n in 1..=2 {
        let now = proxy.passed();
        until("some of it has come", 60, || proxy.passed() > now + 400_000);
        proxy.cut();
        until("it asks again", 30, || nginx.log().iter().filter(|line| line.ends_with(" 206")).count() >= n);
    }
    proxy.set_rate(1_000_000_000);
    running.wait().ok();
    assert_eq!(contents(&host, "copy"), before);
    // One that does not come back.
    let proxy = Proxy::to(nginx.port).slow(300_000);
    let url = format!("{}/shop.dump", url_at(proxy.port));
    let running = host.agent(&["backup", "restore", &url, "other"]).spawn();
    until("some of it has come", 60, || proxy.passed() > 200_000);
    proxy.refuse();
    proxy.cut();
    let output = running.wait();
    assert_eq!(output.code, 4);
    output.says(&format!("could not read {url}: "));
    no_leftovers(&host);
}

#[test]
fn a_backup_comes_from_another_instance() {
    let (giver, taker) = pair(Pg::debian15());
    fill(&giver, "shop");
    let before = contents(&giver, "shop");
    let id = backup(&giver, "shop");
    taker.exec("CREATE ROLE clerk; CREATE ROLE \"the \"\"Reader\"\"\"");
    let get = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["backup", "restore"].iter().chain(arguments).chain(&["--from-blurb"]).copied().collect();
        taker.agent(&all).stdin(giver.blurb()).run()
    };
    get(&[&id]).ok();
    assert_eq!(contents(&taker, "shop"), before);
    get(&["b099", "x"]).fails(
        1,
        &format!("there is no backup b099 in {}", directory(&giver).display()),
        "pgmahout backup list shows those that are",
    );
    let mut bytes = std::fs::read(file(&giver, &id)).unwrap();
    let at = bytes.len() - 10;
    bytes[at] ^= 1;
    giver.account.write(&file(&giver, &id), &bytes, 0o600);
    let output = get(&[&id, "x"]);
    assert_eq!(output.code, 1);
    output.says("is damaged: its checksum is not the one of its manifest");
    assert_eq!(taker.one("SELECT count(*) FROM pg_database WHERE datname = 'x'"), "0");
    no_leftovers(&taker);
}

#[test]
fn a_database_that_is_gone_comes_back_with_its_owner_and_grants() {
    for pg in [Pg::debian15(), Pg::full18()] {
        let host = host(pg);
        for role in ["app \"x\"", "reader"] {
            host.exec(&format!("CREATE ROLE \"{}\"", role.replace('"', "\"\"")));
        }
        host.exec("CREATE DATABASE shop OWNER \"app \"\"x\"\"\" CONNECTION LIMIT 7");
        host.exec("COMMENT ON DATABASE shop IS 'It''s ours'");
        host.exec("REVOKE ALL ON DATABASE shop FROM PUBLIC");
        host.exec("GRANT CONNECT ON DATABASE shop TO reader WITH GRANT OPTION");
        host.exec("ALTER DATABASE shop SET search_path = \"$user\", public, 'a b'");
        host.exec("ALTER DATABASE shop SET app.secret = 'hunter2'");
        host.exec("ALTER ROLE reader IN DATABASE shop SET work_mem = '5MB'");
        host.exec_in("shop", "CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
        let about = |host: &Host| {
            host.column(
                "postgres",
                "SELECT pg_get_userbyid(datdba) || ' ' || datconnlimit || ' ' || datacl::text || ' ' \
                 || shobj_description(oid, 'pg_database') || (SELECT string_agg(setrole::regrole || setconfig::text, ';' \
                 ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = d.oid) \
                 FROM pg_database d WHERE datname = 'shop'",
            )
        };
        let captured = host.agent(&["--json", "backup", "capture", "shop"]).run().ok();
        captured.says_not("hunter2");
        host.exec("ALTER DATABASE shop RESET app.secret");
        let before = about(&host);
        assert!(before[0].contains("reader=c*/") && before[0].contains("a b"), "{before:?}");
        host.exec("DROP DATABASE shop WITH (FORCE)");
        restore(&host, &["b001"]).ok().says("are not in a backup, for they may be secrets: app.secret;");
        assert_eq!(about(&host), before);
        assert_eq!(host.one_in("shop", "SELECT count(*) FROM t"), "10");
        // Under another name too, but not where all is to be the operator's.
        restore(&host, &["b001", "other", "--no-owner"]).ok();
        let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'other'";
        assert_eq!(host.column("postgres", owner), ["dotcloud"]);
        no_leftovers(&host);
    }
}
