//! Passwords and keys are where they are meant to be, in files of their owner's, and nowhere else: every command is run,
//! also where it fails, while all processes are watched; afterwards everything that was said and written is searched.

use crate::common::*;
use age::secrecy::ExposeSecret;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::SystemTime;

// --- what is looked for -------------------------------------------------------------------------------

/// A text that nobody else has: it is a part of each password, and no quoting changes it.
fn core_of(what: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let unique = format!("{what} {} {}", now.as_nanos(), std::process::id());
    format!("Q{}", &sha256(unique.as_bytes())[..20])
}

/// With all that a URL, SQL, a passfile, YAML, a shell and a terminal each quote in their own way.
fn password(core: &str) -> String {
    format!(r#"'{core}%41:\@"$x"#)
}

/// Secrets in all forms in which they could stand somewhere, each with its name.
#[derive(Default)]
struct Secrets(Vec<(Vec<u8>, &'static str)>);

impl Secrets {
    fn add(&mut self, name: &'static str, secret: &[u8]) {
        assert!(secret.len() >= 16, "{name} is too short to be looked for");
        let mut forms = vec![secret.to_vec()];
        forms.push(secret.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
        forms.push(STANDARD.encode(secret).into_bytes());
        forms.push(URL_SAFE_NO_PAD.encode(secret).into_bytes());
        // In the middle of something else: what of it depends on its neighbours is left away.
        for before in 1..3 {
            let text = STANDARD_NO_PAD.encode([&vec![0; before], secret].concat()).into_bytes();
            forms.push(text[4..text.len() - 2].to_vec());
        }
        let text = STANDARD_NO_PAD.encode(secret).into_bytes();
        forms.push(text[..text.len() - 2].to_vec());
        self.0.extend(forms.into_iter().map(|form| (form, name)));
    }

    /// Names of those that stand in it.
    fn find(&self, bytes: &[u8]) -> BTreeSet<&'static str> {
        // Two bytes decide whether a place is worth a closer look.
        let pair = |form: &[u8]| usize::from(form[0]) << 8 | usize::from(form[1]);
        let mut begins = vec![false; 1 << 16];
        self.0.iter().for_each(|(form, _)| begins[pair(form)] = true);
        let mut found = BTreeSet::new();
        for at in 0..bytes.len().saturating_sub(1) {
            if begins[pair(&bytes[at..])] {
                let here = self.0.iter().filter(|(form, _)| bytes[at..].starts_with(form));
                found.extend(here.map(|(_, name)| *name));
            }
        }
        found
    }
}

#[test]
fn a_secret_is_found_in_every_form() {
    let core = core_of("a form");
    let mut secrets = Secrets::default();
    secrets.add("it", core.as_bytes());
    let password = password(&core);
    for text in [
        password.clone(),
        percent(&password),
        password.replace('\'', "''"),
        serde_json::to_string(&password).unwrap(),
        quote(&password),
        STANDARD.encode(&core),
        STANDARD.encode(format!("user:{password}")),
        STANDARD.encode(format!("me:{password} and more")),
        URL_SAFE_NO_PAD.encode(&core),
        format!("AKIA:{core}:x"),
    ] {
        assert_eq!(
            secrets.find(format!("before {text} behind").as_bytes()),
            BTreeSet::from(["it"]),
            "{text}"
        );
    }
    assert_eq!(secrets.find(&core.as_bytes()[1..]), BTreeSet::new());
    assert_eq!(secrets.find(b""), BTreeSet::new());
}

// --- where it may stand -------------------------------------------------------------------------------

/// Files that are there to hold a secret.
const MEANT: &[&str] = &[
    "password",
    "test.pgpass",
    ".pgpass",
    ".pgmahout/pgpass",
    ".pgmahout/psql.pgpass",
    ".pgmahout/link-key",
    ".ssh/id_ed25519",
    "key file",
    "a blurb",
];

/// Fails with every file below `directory` that holds a secret and is not there for it, or is not its owner's alone.
/// Gives those that are there for it.
#[track_caller]
fn search(secrets: &Secrets, directory: &Path) -> BTreeSet<String> {
    let (mut wrong, mut meant, mut files) = (Vec::new(), BTreeSet::new(), Vec::new());
    below(directory, &mut files);
    assert!(!files.is_empty());
    for path in files {
        // Deleted meanwhile by its server, such as WAL.
        let (Ok(bytes), Ok(metadata)) = (std::fs::read(&path), path.metadata()) else { continue };
        let found = secrets.find(&bytes);
        if found.is_empty() {
            continue;
        }
        let Some(name) = MEANT.iter().find(|name| path.ends_with(name)) else {
            wrong.push(format!("{} holds {found:?}", path.display()));
            continue;
        };
        let parent = path.parent().unwrap().metadata().unwrap();
        if metadata.mode() & 0o077 != 0 || parent.mode() & 0o022 != 0 || metadata.uid() != account().uid {
            wrong.push(format!("{} is of mode {:o} in {:o}", path.display(), metadata.mode(), parent.mode()));
        }
        meant.insert((*name).to_owned());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    meant
}

fn below(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            below(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

/// Everything that the hosts' account has written since then where all may write.
fn left_in_public(since: SystemTime) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for directory in ["/tmp", "/var/tmp", "/dev/shm"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // Those of the tests are searched by their own.
            if !entry.file_name().to_string_lossy().starts_with("pgmahout test ") {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    files.push(path);
                } else if path.metadata().is_ok_and(|of| of.is_dir() && of.uid() == account().uid) {
                    below(&path, &mut files);
                }
            }
        }
    }
    let is_new = |path: &PathBuf| {
        path.metadata().is_ok_and(|of| of.uid() == account().uid && of.modified().is_ok_and(|at| at >= since))
    };
    files.retain(is_new);
    files
}

// --- the commands -------------------------------------------------------------------------------------

/// What every command has said, and what it may say.
#[derive(Default)]
struct Said {
    commands: BTreeMap<String, usize>,
    outputs: Vec<(Output, &'static [&'static str])>,
}

impl Said {
    fn note(&mut self, output: Output) -> &Output {
        self.note_that_shows(output, &[])
    }

    /// Its standard output is for showing these.
    fn note_that_shows(&mut self, output: Output, shows: &'static [&'static str]) -> &Output {
        let mut words = output.what.strip_prefix("pgmahout ").unwrap().split(' ');
        let command = words.find(|word| !word.starts_with('-')).unwrap();
        *self.commands.entry(command.to_owned()).or_default() += 1;
        self.outputs.push((output, shows));
        &self.outputs.last().unwrap().0
    }

    /// As text, as JSON, and with all that there is to say.
    fn note_all(&mut self, host: &Host, words: &[&str]) {
        for how in ["--quiet", "--json", "--verbose"] {
            self.note(host.agent(&[&[how], words].concat()).run().ok());
        }
    }

    /// It has to fail, in every voice.
    fn note_failures(&mut self, host: &Host, words: &[&str], stdin: &str) {
        for how in ["--quiet", "--json", "--verbose"] {
            let output = host.agent(&[&[how], words].concat()).stdin(stdin).run();
            assert_ne!(output.code, 0, "{output:?}");
            self.note(output);
        }
    }

    #[track_caller]
    fn search(&self, secrets: &Secrets) {
        let mut all_wrong = Vec::new();
        for (output, shows) in &self.outputs {
            let of = |text: &str| secrets.find(text.as_bytes());
            let may = |name: &&&'static str| !shows.contains(name);
            let (stdout, stderr) = (of(&output.stdout), of(&output.stderr));
            let wrong: Vec<_> = stdout.iter().filter(may).chain(&stderr).collect();
            if !wrong.is_empty() {
                all_wrong.push(format!("{wrong:?} in {output:?}"));
            }
            for name in *shows {
                assert!(stdout.contains(name), "it does not show {name}: {output:?}");
            }
        }
        assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
    }
}

/// The commands that the program names in its help.
fn all_commands(host: &Host) -> BTreeSet<String> {
    let help = host.agent(&["--help"]).run().ok().stdout;
    let (_, rest) = help.split_once("\nCommands:\n").unwrap();
    let (list, _) = rest.split_once("\n\n").unwrap();
    let lines = list.lines().filter(|line| !line.starts_with("   "));
    let names: BTreeSet<_> = lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(names.len() > 20, "{help}");
    names
}

/// The tests of `e2e migrate` search all that is said in a migration, whose steps (`copy-part`) run here.
const ELSEWHERE: &[&str] = &["help", "migrate"];

/// Of a migration's lock.
const NOTE: &str = r#"{"app": "www", "by": "ada@laptop", "to": "db.1"}"#;

/// What PostgreSQL logs by itself when it is told to log all.
const LOGS_ALL: &[(&str, &str)] = &[
    ("log_statement", "all"),
    ("log_min_duration_statement", "0"),
    ("log_connections", "on"),
    ("log_replication_commands", "on"),
];

fn host(site: &Arc<Site>, name: &str, password: &str) -> HostBuilder {
    let builder = site.host(name).password(password);
    LOGS_ALL.iter().fold(builder, |builder, (name, value)| builder.setting(name, value))
}

#[test]
fn no_secret_leaves_its_place_whatever_is_run() {
    let since = SystemTime::now();
    let watch = Argv::watch_all();
    let (mut secrets, mut said) = (Secrets::default(), Said::default());
    let core = |name: &'static str, secrets: &mut Secrets| {
        let core = core_of(name);
        secrets.add(name, core.as_bytes());
        core
    };
    let superuser = password(&core("the superuser's password", &mut secrets));
    let app = password(&core("an app's password", &mut secrets));
    let wrong = password(&core("a wrong password", &mut secrets));
    let typed = password(&core("a password among arguments", &mut secrets));
    let passphrase = core("the passphrase of backups", &mut secrets);
    let s3_secret = core("the secret key of S3", &mut secrets);
    let identity = age::x25519::Identity::generate().to_string().expose_secret().to_owned();
    secrets.add("the key of backups", identity.trim_start_matches("AGE-SECRET-KEY-1").as_bytes());

    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("shop");
    let port = free_port();
    let mirror = Mirror::with(&site, &["15.98"]);
    let mut primary =
        host(&site, "db.0", &superuser).yml("serve_listen", &format!("127.0.0.1:{port}")).build();
    let mut standby = host(&site, "db.1", &superuser).build();
    let fork = host(&site, "db.2", &superuser).without_data().build();
    let builder = host(&site, "db.3", &superuser).pg(Pg::embedded("15")).linked();
    let built = builder.yml("source_mirrors", &mirror.url()).without_data().build();
    let private = std::fs::read_to_string(primary.home.join(".ssh/id_ed25519")).unwrap();
    secrets.add("the key of SSH", private.lines().nth(3).unwrap().as_bytes());
    primary.account.write(&primary.home.join("key file"), format!("{identity}\n"), 0o600);

    // Secrets of every kind are in the environment of whatever is run: nobody inherits them.
    let secretive = [
        ("PGPASSWORD", superuser.as_str()),
        ("PGMAHOUT_BACKUP_PASSPHRASE", passphrase.as_str()),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", s3_secret.as_str()),
    ];

    // One that looks.
    primary.exec(&format!("CREATE ROLE app LOGIN PASSWORD '{}'", verifier(&app)));
    primary.exec("CREATE DATABASE shop OWNER app");
    primary.exec_in(
        "shop",
        "CREATE TABLE orders AS SELECT generate_series(1, 100) AS n; ALTER TABLE orders OWNER TO app",
    );
    for words in [
        &["info"][..],
        &["config"],
        &["ps", "--all"],
        &["locks"],
        &["logs", "-n", "1000"],
        &["peers"],
        &["plan"],
        &["psql", "--", "-c", "SELECT 1"],
        &["completions", "bash"],
        &["man"],
        &["backup", "schedule", "auto-month"],
        &["backup", "auto", "--dry-run"],
    ] {
        said.note_all(&primary, words);
    }
    said.note(primary.agent(&["outliers"]).run());
    let mut client = primary.sql();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    said.note(primary.agent(&["kill", "--force", &pid.to_string()]).run().ok());
    let shows: &[&str] = &["the superuser's password"];
    said.note_that_shows(primary.agent(&["credentials"]).run().ok(), shows);
    said.note_that_shows(primary.agent(&["--json", "--verbose", "credentials"]).run().ok(), shows);

    // Backups: encrypted by a passphrase, by a key, in a directory, in S3, as links.
    let with = |host: &Host, words: &[&str], more: &[(&str, &str)]| {
        let run =
            secretive.iter().chain(more).fold(host.agent(words), |run, (name, value)| run.env(name, *value));
        run.run()
    };
    let key_file = primary.home.join("key file").display().to_string();
    let endpoint = s3.endpoint();
    let directory: &[(&str, &str)] = &[];
    let bucket = [
        ("PGMAHOUT_STORE", "s3://shop/x"),
        ("PGMAHOUT_STORE_ENDPOINT", endpoint.as_str()),
        ("PGMAHOUT_STORE_REGION", "us-east-1"),
        ("PGMAHOUT_BACKUP_KEY_FILE", key_file.as_str()),
    ];
    for store in [directory, &bucket] {
        for words in [
            &["-v", "backup", "capture", "shop"][..],
            &["-v", "backup", "capture", "--physical"],
            &["--json", "backup", "list"],
            &["backup", "info", "b001"],
            &["-v", "backup", "verify", "b001"],
            &["-v", "backup", "download", "b001", "run/copy"],
            &["-v", "backup", "restore", "b001", "copy", "--confirm", "db.0"],
            &["backup", "url", "b001"],
            &["--json", "backup", "url", "b001"],
            &["backup", "check"],
            &["backup", "delete", "b002"],
        ] {
            let output = with(&primary, words, store);
            assert!(output.code == 0 || words.contains(&"check"), "{output:?}");
            said.note(output);
        }
        std::fs::remove_file(primary.home.join("run/copy")).unwrap();
    }
    let link_key = std::fs::read(primary.home.join(".pgmahout/link-key")).unwrap();
    secrets.add("the key of links", &link_key);
    let link = primary.agent(&["backup", "url", "b001"]).run().ok().stdout.trim().to_owned();
    let signature = link.rsplit('=').next().unwrap().to_owned();
    let server = primary.agent(&["-v", "serve"]).spawn();
    until("it listens", 20, || server.stderr().contains("listening on "));
    must(account().command("curl").args(["-fsS", "-o", "/dev/null", &link]));
    must(account().command("curl").args(["-sS", "-o", "/dev/null", &format!("{link}x")]));
    server.signal(Signal::SIGTERM);
    let output = server.wait().ok();
    assert!(output.stderr.contains(" 200 ") && !output.stderr.contains(&signature), "{output:?}");
    said.note(output);
    let nobody = [bucket[0], ("PGMAHOUT_STORE_ENDPOINT", "http://127.0.0.1:1"), bucket[2]];
    let output = with(&primary, &["-v", "backup", "list"], &nobody);
    assert_ne!(output.code, 0, "{output:?}");
    said.note(output);
    let wrong_phrase = [("PGMAHOUT_BACKUP_PASSPHRASE", wrong.as_str())];
    let output =
        with(&primary, &["-v", "backup", "restore", "b001", "copy", "--confirm", "db.0"], &wrong_phrase);
    assert_ne!(output.code, 0, "{output:?}");
    said.note(output);

    // A standby, by a blurb that has the password: copied, found up to date, a delta, repointed, in the background.
    let with_blurb = |host: &Host, words: &[&str], source: &Host| {
        let run = host.agent(words).stdin(source.blurb_with("dotcloud", &source.password));
        secretive.iter().fold(run, |run, (name, value)| run.env(name, *value)).run()
    };
    for words in [&["--json", "-v", "enslave", "--dry-run"][..], &["-v", "enslave"], &["--json", "enslave"]] {
        said.note(with_blurb(&standby, words, &primary).ok());
    }
    said.note_all(&standby, &["wait"]);
    for host in [&primary, &standby] {
        said.note_all(host, &["info"]);
        said.note_all(host, &["peers"]);
    }
    said.note(primary.agent(&["peers", "--list"]).run().ok());
    // What pgmahout has started may write a core file.
    let postmaster = standby.postmaster().unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{postmaster}/environ")).unwrap().uid(), account().uid);
    standby.stop();
    said.note(standby.agent(&["-v", "peers", "--before-start"]).run().ok());
    said.note(with_blurb(&standby, &["-v", "enslave", "--plan", "delta"], &primary).ok());
    said.note(with_blurb(&standby, &["-v", "promote", "--fence"], &primary).ok());
    said.note(with_blurb(&primary, &["-v", "enslave", "--background"], &standby).ok());
    said.note(primary.agent(&["-v", "wait"]).run().ok());
    said.note(with_blurb(&primary, &["-v", "promote", "--fence"], &standby).ok());
    said.note(with_blurb(&standby, &["-v", "enslave", "--plan", "full", "--confirm", "db.1"], &primary).ok());
    said.note(with_blurb(&fork, &["-v", "fork"], &primary).ok());
    let build =
        secretive.iter().fold(built.agent(&["-v", "build-version", "15.98"]), |run, (n, v)| run.env(n, *v));
    said.note(build.run().ok());

    // Another database, by a URL on stdin.
    let url = |host: &Host, user: &str, password: &str| {
        format!("postgres://{user}:{}@127.0.0.1:{}/shop\n", percent(password), host.port)
    };
    said.note(fork.agent(&["-v", "copy", "again"]).stdin(url(&primary, "app", &app)).run().ok());
    said.note(
        fork.agent(&["--json", "copy", "again", "--confirm", "db.2"])
            .stdin(url(&primary, "dotcloud", &superuser))
            .run()
            .ok(),
    );
    for words in
        [&["look"][..], &["lock", "--id", "0badcafe", "--note", NOTE], &["unlock", "--id", "0badcafe"]]
    {
        let words = [&["--json", "copy-part"], words].concat();
        said.note(primary.agent(&words).stdin(url(&primary, "app", &app)).run().ok());
    }

    // What goes wrong.
    for (port, password) in [(primary.port, &wrong), (1, &superuser)] {
        let elsewhere = format!("postgres://app:{}@127.0.0.1:{port}/shop\n", percent(password));
        said.note_failures(&fork, &["copy", "third"], &elsewhere);
        said.note_failures(&fork, &["copy-part", "look"], &elsewhere);
    }
    for url in [
        format!("postgres://app:{wrong}@h:99999/shop\n"),
        format!("mysql://app:{}@h/shop\n", percent(&wrong)),
        format!("app:{wrong}@h/shop\n"),
    ] {
        said.note_failures(&fork, &["copy", "third"], &url);
    }
    let blurbs = [
        primary.blurb_with("dotcloud", &wrong),
        primary.blurb_with("nobody", &wrong),
        primary
            .blurb_at(primary.ssh_port, 1)
            .replace("tcp://", &format!("pgsql://dotcloud:{}@", percent(&wrong))),
        primary
            .blurb_at(1, primary.port)
            .replace("tcp://", &format!("pgsql://dotcloud:{}@", percent(&wrong))),
        format!("postgresql_password: {wrong}\n"),
        primary
            .blurb()
            .replace("tcp://127.0.0.1:", &format!("pgsql://dotcloud:{}@127.0.0.1:x", percent(&wrong))),
        // One that the other machine has cut off.
        primary.blurb_with("dotcloud", &wrong).rsplit_once("@127.0.0.1").unwrap().0.to_owned(),
    ];
    for blurb in &blurbs {
        said.note_failures(&fork, &["enslave", "--confirm", "db.2"], blurb);
        said.note_failures(&fork, &["fork", "--confirm", "db.2", "--background"], blurb);
    }
    said.note_failures(&fork, &["enslave"], &primary.blurb_with("dotcloud", &superuser));
    fork.account.write(&fork.home.join("a blurb"), primary.blurb_with("dotcloud", &wrong), 0o600);
    said.note_failures(&fork, &["enslave", "--info", "a blurb", "--confirm", "db.2"], "");
    said.note_failures(&standby, &["credentials", "--adopt"], &format!("{wrong}\n"));
    let misplaced = format!("postgres://app:{typed}@h/shop");
    for words in [
        &["copy", &misplaced][..],
        &["enslave", "--info", &misplaced],
        &["enslave", "--nonsense", &misplaced],
        &["backup", "restore", "b001", &misplaced],
        &["migrate", "--platform", "x", "--herd", "y", "--app", "z", "--url", &misplaced],
        &["copy", &format!("host=h password={typed}")],
        &["info", &misplaced],
    ] {
        said.note_failures(&fork, words, "");
    }

    // A new password, which the standby takes over.
    let answer = primary.agent(&["--json", "credentials", "--rotate"]).run().ok();
    let new: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let new = new["password"].as_str().unwrap().to_owned();
    secrets.add("the new password", new.as_bytes());
    said.note_that_shows(answer, &["the new password"]);
    until("the standby has the new password", 20, || {
        standby.password.clone_from(&new);
        standby.try_sql("postgres").is_ok()
    });
    said.note(standby.agent(&["-v", "credentials", "--adopt"]).stdin(format!("{new}\n")).run().ok());
    primary.password.clone_from(&new);
    let rotated = primary.agent(&["credentials", "--rotate", "--role", "app"]).run().ok();
    let app_new = rotated.stdout.lines().find_map(|line| line.strip_prefix("password: ")).unwrap().to_owned();
    secrets.add("an app's new password", app_new.as_bytes());
    said.note_that_shows(rotated, &["an app's new password"]);
    standby.stop();
    until("nobody streams from it", 20, || {
        primary.one("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
    });
    said.note(primary.agent(&["-v", "forget", "db.1"]).run().ok());
    said.note_all(&primary, &["logs", "-n", "100000"]);

    // --- nothing of it is anywhere
    said.search(&secrets);
    let looks = watch.looks();
    let seen = watch.all();
    let shown = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).replace('\0', " ");
    for arguments in &seen.arguments {
        let mut found = secrets.find(arguments);
        // That somebody has typed it there is not to be helped.
        found.remove("a password among arguments");
        assert!(found.is_empty(), "{found:?} in the arguments of {}", shown(arguments));
    }
    for environment in &seen.environments {
        let found = secrets.find(environment);
        assert!(found.is_empty(), "{found:?} in the environment of {}", shown(environment));
    }
    let meant = search(&secrets, &site.directory);
    for path in left_in_public(since) {
        let found = secrets.find(&std::fs::read(&path).unwrap_or_default());
        assert!(found.is_empty(), "{found:?} in {}", path.display());
    }

    // --- and it was looked
    for name in ["password", ".pgmahout/pgpass", ".pgmahout/psql.pgpass", ".pgmahout/link-key", "key file"] {
        assert!(meant.contains(name), "{name} holds no secret: {meant:?}");
    }
    let mut expected = all_commands(&primary);
    ELSEWHERE.iter().for_each(|name| assert!(expected.remove(*name), "there is no {name}"));
    let ran: BTreeSet<_> = said.commands.keys().cloned().collect();
    let missing: Vec<_> = expected.difference(&ran).collect();
    assert!(missing.is_empty(), "nobody ran {missing:?}");
    assert!(looks > 100, "{looks} looks only");
    for program in ["pg_dump", "pg_restore", "initdb"] {
        let is_it = |arguments: &Vec<u8>| shown(arguments).contains(program);
        assert!(seen.arguments.iter().any(is_it), "{program} was never seen");
    }
    assert!(seen.environments.iter().any(|of| shown(of).contains("PGPASSFILE=")), "no client was seen");
    assert!(primary.log().contains("LOG:  statement: ") && primary.log().contains("duration: "));
}

/// A SCRAM verifier: the server logs all that it is told.
fn verifier(password: &str) -> String {
    pgmahout::postgres::password::verifier("app", password, true)
}

/// What is watched would be seen.
#[test]
fn a_leak_is_found() {
    let core = core_of("a leak");
    let mut secrets = Secrets::default();
    secrets.add("it", core.as_bytes());
    let watch = Argv::watch_all();
    let mut leaky = account().command("sh");
    // The shell stays, so that its arguments do.
    leaky
        .args(["-c", &format!("sleep 3; : {}", STANDARD.encode(&core))])
        .env("PGPASSWORD", percent(&password(&core)));
    must(&mut leaky);
    let seen = watch.all();
    assert!(seen.arguments.iter().any(|arguments| !secrets.find(arguments).is_empty()));
    assert!(seen.environments.iter().any(|environment| !secrets.find(environment).is_empty()));

    let site = Site::new();
    for (name, mode, is_wrong) in [
        ("a log", 0o600, true),
        ("password", 0o644, true),
        ("password", 0o400, false),
        ("password", 0o620, true),
    ] {
        let directory = site.directory.join(format!("{mode:o} {is_wrong}"));
        account().mkdir(&directory, 0o700);
        account().write(&directory.join(name), format!("x {core}"), mode);
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| search(&secrets, &directory)));
        assert_eq!(looked.is_err(), is_wrong, "{name} of mode {mode:o}");
    }
}

// --- memory -------------------------------------------------------------------------------------------

#[test]
fn the_memory_of_a_command_is_nobody_elses() {
    let site = Site::new();
    let port = free_port();
    let host = site.host("db.0").stopped().yml("serve_listen", &format!("127.0.0.1:{port}")).build();
    let start = |name: &str, program: &Path, arguments: &[&str]| {
        let directory = site.directory.join(name);
        account().mkdir(&directory, 0o700);
        let mut shell = host.command("sh");
        shell.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]).arg(program).args(arguments);
        shell.current_dir(&directory).stdout(Stdio::null()).stderr(Stdio::null());
        (directory, shell.spawn().unwrap())
    };
    let (own, mut serve) = start("own", binary(), &["serve"]);
    until("it listens", 20, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let (others, mut sleep) = start("others", Path::new("/bin/sleep"), &["600"]);
    let runs_sleep =
        |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    until("sleep runs", 20, || runs_sleep(sleep.id()));

    // The kernel gives the files of a process whose memory is private to root.
    for (pid, owner) in [(serve.id(), 0), (sleep.id(), account().uid)] {
        let of = |what: &str| format!("/proc/{pid}/{what}");
        let status = std::fs::read_to_string(of("status")).unwrap();
        assert!(status.contains(&format!("\nUid:\t{}\t", account().uid)), "{status}");
        assert_eq!(std::fs::metadata(of("environ")).unwrap().uid(), owner);
        for what in ["environ", "mem", "maps"] {
            let mut reader = account().command("head");
            let read = reader.args(["-c", "0", &of(what)]).output().unwrap();
            assert_eq!(read.status.success(), owner != 0, "{what}: {read:?}");
        }
    }
    let end = |child: &mut std::process::Child| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGABRT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
        status.core_dumped()
    };
    assert!(!end(&mut serve));
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 0);
    // Whether this machine writes any is its own affair; where it does, that of the other one is here.
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let is_here = end(&mut sleep) && !pattern.starts_with(['|', '/']);
    assert_eq!(std::fs::read_dir(&others).unwrap().count(), usize::from(is_here), "{pattern}");
}
