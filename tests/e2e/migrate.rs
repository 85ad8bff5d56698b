//! `pgmahout migrate` against a platform that only pretends (tests/fixtures/pretend-platform.bash): every call of it is
//! where the migration is killed, made to fail or interrupted once. What must never happen meanwhile (the app up on a
//! database that takes no writes, a target cleared that the app points to, …) the pretender writes down by itself.
//! The same on a real platform is in tests/herd.

use crate::common::*;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const OLD: &str = "postgres://u:secret-old@old:1/main";
const NEW: &str = "postgres://u:secret-new@new:2/main";

const VERBS: &[&str] = &[
    "app",
    "instances",
    "config-list",
    "config-set",
    "config-unset",
    "processes",
    "scale",
    "maintenance",
    "oneoffs",
    "run",
    "herd",
];

/// A platform with the app shop, which has processes and its data in db.0. The directory's name has a space.
struct Scene {
    directory: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

type Config = BTreeMap<String, String>;

impl Scene {
    fn new() -> Scene {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // In memory, as it is about the order of things and not about disks.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let directory = parent.join(format!("pgmahout-migrate {} {number}", std::process::id()));
        let scene = Scene { directory };
        fs::create_dir_all(scene.state("config")).unwrap();
        let pretender = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pretend-platform.bash");
        for verb in VERBS {
            std::os::unix::fs::symlink(&pretender, scene.directory.join("platform").join(verb)).unwrap();
        }
        for (name, content) in [
            ("old", OLD),
            ("new", NEW),
            ("config/DATABASE_URL", OLD),
            ("config/SHARED_DATABASE_URL", OLD),
            ("config/HEROKU_POSTGRESQL_OLD_URL", "postgres://u:secret-old@old:1/other"),
            ("config/SECRET", "sesame"),
            ("instances", "db.0\trunning\told:1"),
            ("count.www", "2"),
            ("count.worker", "3"),
            ("count.idle", "0"),
            ("maintenance", "off"),
            ("readonly", "off"),
            ("release", "1"),
            ("target.version", "150001"),
        ] {
            scene.put(name, content);
        }
        scene
    }

    /// One that has db.1 too, attached as WHITE.
    fn with_target() -> Scene {
        let scene = Scene::new();
        scene.put("instances", "db.0\trunning\told:1\ndb.1\trunning\tnew:2");
        scene.put("config/HEROKU_POSTGRESQL_WHITE_URL", NEW);
        scene
    }

    fn state(&self, name: &str) -> PathBuf {
        self.directory.join("platform/state").join(name)
    }

    fn put(&self, name: &str, content: &str) {
        fs::write(self.state(name), format!("{content}\n")).unwrap();
    }

    fn get(&self, name: &str) -> String {
        fs::read_to_string(self.state(name)).unwrap_or_default().trim().to_owned()
    }

    fn calls(&self) -> Vec<String> {
        self.get("calls").lines().map(str::to_owned).collect()
    }

    fn config(&self) -> Config {
        let entries = fs::read_dir(self.state("config")).unwrap().flatten();
        let one = |path: PathBuf| {
            let value = fs::read_to_string(&path).unwrap().trim().to_owned();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), value)
        };
        entries.map(|entry| one(entry.path())).collect()
    }

    fn spawn(&self, arguments: &[&str]) -> Running {
        let platform = self.directory.join("platform");
        let mut command = Command::new(binary());
        command
            .args(["migrate", "--app", "shop", "--platform"])
            .arg(&platform)
            .arg("--herd")
            .arg(platform.join("herd"))
            .args(arguments)
            .env("XDG_STATE_HOME", self.directory.join("xdg"))
            .current_dir(&self.directory);
        start(command, format!("migrate {}", arguments.join(" ")), None)
    }

    fn migrate(&self, arguments: &[&str]) -> Output {
        let output = self.spawn(arguments).wait();
        for secret in ["secret-old", "secret-new", "sesame"] {
            assert!(!output.stdout.contains(secret), "{}", output.stdout);
            assert!(!output.stderr.contains(secret), "{}", output.stderr);
        }
        output
    }

    fn journals(&self) -> Vec<serde_json::Value> {
        let entries = fs::read_dir(self.directory.join("xdg/pgmahout/migrations/shop"));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let journals = paths.filter(|path| path.extension().is_some_and(|e| e == "json"));
        journals.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    /// The app runs as it did, nobody has the lock, and nothing happened that never must.
    #[track_caller]
    fn runs(&self, said: &str) {
        assert_eq!(self.get("wrong"), "", "{said}");
        let counts = ["www", "worker", "idle"].map(|name| self.get(&format!("count.{name}")));
        assert_eq!(counts, ["2", "3", "0"], "{said}");
        assert_eq!(self.get("maintenance"), "off", "{said}");
        let calls = self.get("calls");
        for secret in ["secret-old", "secret-new", "sesame"] {
            assert!(!calls.contains(secret), "{calls}");
        }
    }

    /// It has the new database, and the old one takes no writes.
    #[track_caller]
    fn has_new(&self, said: &str) {
        self.runs(said);
        let mut expected = Scene::new().config();
        for name in ["DATABASE_URL", "SHARED_DATABASE_URL", "HEROKU_POSTGRESQL_AMBER_URL"] {
            expected.insert(name.into(), NEW.into());
        }
        assert_eq!(self.config(), expected, "{said}");
        assert_eq!(self.get("readonly"), "on", "{said}");
        assert!(self.get("lock").ends_with(" done"), "{said}");
        assert_eq!(self.get("placed"), self.get("lock").trim_end_matches(" done"), "{said}");
    }

    /// It is as it was before anybody thought of a migration.
    #[track_caller]
    fn is_as_it_was(&self, said: &str) {
        self.runs(said);
        assert_eq!(self.config(), Scene::new().config(), "{said}");
        assert_eq!(self.get("instances"), "db.0\trunning\told:1", "{said}");
        self.source_is_free(said);
    }

    #[track_caller]
    fn source_is_free(&self, said: &str) {
        assert_eq!(self.get("readonly"), "off", "{said}");
        assert_eq!(self.get("lock"), "", "{said}");
    }

    /// It went back after it had been done: the new database stays, and is attached.
    #[track_caller]
    fn went_back(&self, said: &str) {
        self.runs(said);
        let mut expected = Scene::new().config();
        expected.insert("HEROKU_POSTGRESQL_AMBER_URL".into(), NEW.into());
        assert_eq!(self.config(), expected, "{said}");
        assert_ne!(self.get("placed"), "", "{said}");
        self.source_is_free(said);
    }
}

/// A call changes nothing: it is all the same when in it the caller is killed.
fn only_reads(call: &str) -> bool {
    let words: Vec<_> = call.split_whitespace().collect();
    match words[0] {
        "maintenance" => words.len() == 1,
        "run" => ["look", "compare", "check", "changes", "info", "schedule"]
            .iter()
            .any(|word| words.contains(word)),
        "herd" => words.contains(&"pg:credentials"),
        verb => ["app", "instances", "config-list", "processes", "oneoffs"].contains(&verb),
    }
}

/// Every call of a recorded run with every way to be killed at it.
fn all_kills(calls: &[String]) -> Vec<(usize, &'static str)> {
    let modes = |call: &str| if only_reads(call) { &["after"][..] } else { &["before", "in", "after"] };
    let one = |(at, call): (usize, &String)| {
        modes(call).iter().map(move |mode| (at + 1, *mode)).collect::<Vec<_>>()
    };
    calls.iter().enumerate().flat_map(one).collect()
}

/// Runs them all, a few at a time, and tells of all that fail.
fn each<T: Copy + Sync + std::fmt::Debug>(cases: &[T], run: impl Fn(T) + Sync) {
    assert!(cases.len() > 5, "hardly anything was recorded: {cases:?}");
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(*case)));
                    if result.is_err() {
                        failed.lock().unwrap().push(format!("{case:?}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {}", failed.len(), cases.len(), failed.join(", "));
}

const NEW_ONE: &[&str] = &["--plan", "ronin"];

/// The secrets of a migration are in its journal, which is its owner's alone, and in no arguments on the way.
#[test]
fn no_password_stands_among_arguments() {
    let scene = Scene::new();
    let watches = ["secret-old", "secret-new", "sesame"].map(Argv::watch);
    scene.put("fault", "scale worker=3 fail");
    assert_eq!(scene.migrate(NEW_ONE).code, 1);
    scene.migrate(&["--json", "--verbose", "--plan", "ronin"]).ok();
    scene.migrate(&["--verbose", "--rollback", "--confirm", "shop"]).ok();
    let looked: Vec<u64> = watches
        .into_iter()
        .map(|watch| {
            let looks = watch.looks();
            assert_eq!(watch.seen(), Vec::<String>::new());
            looks
        })
        .collect();
    assert!(looked.iter().all(|looks| *looks > 3), "{looked:?}");
}

fn recorded() -> Vec<String> {
    let scene = Scene::new();
    let output = scene.migrate(NEW_ONE).ok();
    scene.has_new(&output.stderr);
    scene.calls()
}

/// A migration that was killed at a call, and what the scene said of it.
fn killed(scene: &Scene, arguments: &[&str], at: usize, mode: &str) -> String {
    scene.put("fault", &format!("{} {mode}", scene.calls().len() + at));
    let output = scene.migrate(arguments);
    assert_eq!(output.code, -9, "{}\n{}", output.stdout, output.stderr);
    format!("killed {mode} {}\n{}", scene.calls().last().cloned().unwrap_or_default(), output.stderr)
}

#[test]
fn killed_at_every_call_and_resumed() {
    each(&all_kills(&recorded()), |(at, mode)| {
        let scene = Scene::new();
        let said = killed(&scene, NEW_ONE, at, mode);
        if scene.journals().is_empty() {
            return scene.is_as_it_was(&said);
        }
        let output = scene.migrate(&["--resume"]).ok();
        scene.has_new(&format!("{said}--- resumed\n{}", output.stderr));
        assert_eq!(scene.journals()[0]["state"], "done");
    });
}

#[test]
fn killed_at_every_call_and_rolled_back() {
    each(&all_kills(&recorded()), |(at, mode)| {
        let scene = Scene::new();
        let said = killed(&scene, NEW_ONE, at, mode);
        if scene.journals().is_empty() {
            return scene.is_as_it_was(&said);
        }
        let past = scene.journals()[0]["forward"]["steps"]["maintenance-off"].is_object();
        let output = scene.migrate(&["--rollback"]).ok();
        let said = format!("{said}--- rolled back\n{}", output.stderr);
        if past {
            scene.went_back(&said)
        } else {
            scene.is_as_it_was(&said)
        }
        // And the next one can begin.
        assert_eq!(scene.journals()[0]["state"], if past { "rolled-back" } else { "undone" });
    });
}

#[test]
fn killed_at_every_call_of_the_way_back() {
    let record = |scene: &Scene| {
        scene.put("fault", "scale worker=3 fail");
        let before = Scene::calls(scene).len();
        let output = scene.migrate(NEW_ONE);
        assert_eq!(output.code, 1, "{}", output.stderr);
        scene.is_as_it_was(&output.stderr);
        let calls = scene.calls();
        let failed = calls.iter().rposition(|call| call.starts_with("maintenance off")).unwrap();
        let rebound = calls[..failed].iter().rposition(|call| call.starts_with("config-set")).unwrap();
        (calls[rebound - 1..].to_vec(), rebound - 1 - before)
    };
    let (calls, offset) = record(&Scene::new());
    each(&all_kills(&calls), |(at, mode)| {
        let scene = Scene::new();
        // Two faults: the second is laid when the first has fired.
        scene.put("fault", "scale worker=3 fail");
        scene.put("fault.next", &format!("{} {mode}", offset + at));
        let output = scene.migrate(NEW_ONE);
        assert_eq!(output.code, -9, "{}", output.stderr);
        assert_eq!(scene.journals()[0]["state"], "undoing", "{}", output.stderr);
        scene.migrate(&["--resume"]).says("is on its way back");
        let again = scene.migrate(&["--rollback"]).ok();
        scene.is_as_it_was(&format!("{}--- again\n{}", output.stderr, again.stderr));
    });
}

#[test]
fn killed_at_every_call_of_a_rollback_after_it_was_done() {
    let done = || {
        let scene = Scene::new();
        scene.migrate(NEW_ONE).ok();
        scene
    };
    let scene = done();
    let before = scene.calls().len();
    let output = scene.migrate(&["--rollback"]).ok();
    scene.went_back(&output.stderr);
    each(&all_kills(&scene.calls()[before..]), |(at, mode)| {
        let scene = done();
        let said = killed(&scene, &["--rollback"], at, mode);
        let output = scene.migrate(&["--rollback"]).ok();
        scene.went_back(&format!("{said}--- again\n{}", output.stderr));
    });
}

#[test]
fn whatever_fails_is_undone() {
    let calls = recorded();
    let cases: Vec<_> = (1..=calls.len()).flat_map(|at| [(at, "fail"), (at, "half")]).collect();
    let cases: Vec<_> =
        cases.into_iter().filter(|(at, mode)| *mode == "fail" || !only_reads(&calls[at - 1])).collect();
    each(&cases, |(at, mode)| {
        let scene = Scene::new();
        scene.put("fault", &format!("{at} {mode}"));
        let output = scene.migrate(NEW_ONE);
        let said = format!("{} {mode}s\n{}{}", calls[at - 1], output.stdout, output.stderr);
        if output.code == 0 {
            // Not all calls have a half, and one is for a warning only.
            assert!(mode == "half" || calls[at - 1].contains("backup schedule"), "{said}");
            return scene.has_new(&said);
        }
        assert_eq!(output.code, 1, "{said}");
        if said.contains("has the new database, and the rest is still to be done") {
            assert!(calls[at - 1].contains("maintenance off") || calls[at - 1].contains("finish"), "{said}");
            let output = scene.migrate(&["--resume"]).ok();
            return scene.has_new(&output.stderr);
        }
        scene.is_as_it_was(&said);
        assert!(scene.journals().iter().all(|journal| journal["state"] == "undone"), "{said}");
    });
}

#[test]
fn ctrl_c_undoes_and_a_second_one_stops_that() {
    for (call, mode) in
        [("copy-part fill", "stall"), ("scale worker=0", "interrupt"), ("config-set", "interrupt")]
    {
        let scene = Scene::new();
        scene.put("fault", &format!("{call} {mode}"));
        let running = scene.spawn(NEW_ONE);
        if mode == "stall" {
            until("the copy", 30, || scene.state("hangs").exists());
            running.signal(Signal::SIGINT);
        }
        let output = running.wait();
        assert_eq!(output.code, 5, "{}", output.stderr);
        scene.is_as_it_was(&output.stderr);
        output.says("interrupted").says("all was undone: shop is as it was");
    }
    let scene = Scene::new();
    scene.put("fault", "copy-part fill interrupt");
    scene.put("fault.next", "copy-part release interrupt");
    let output = scene.migrate(NEW_ONE);
    assert_eq!(output.code, 5, "{}", output.stderr);
    let output = output.says("shop is not as it was yet").says("--rollback completes the way back");
    assert_eq!(scene.get("maintenance"), "on", "{}", output.stderr);
    scene
        .migrate(&["--status"])
        .ok()
        .says("is on its way back")
        .says("herd pg:migrate --rollback --app shop");
    let output = scene.migrate(&["--rollback"]).ok();
    scene.is_as_it_was(&output.stderr);
}

#[test]
fn what_cannot_be_undone_stays_in_the_journal() {
    // Cleaning up does not keep the app down.
    for fault in ["addons:remove", "copy-part unlock"] {
        let scene = Scene::new();
        scene.put("fault", "copy-part compare fail");
        scene.put("fault.next", &format!("{fault} fail"));
        let output = scene.migrate(NEW_ONE);
        assert_eq!(output.code, 1, "{}", output.stderr);
        scene.runs(&output.stderr);
        assert_eq!(scene.config()["DATABASE_URL"], OLD);
        output.says("shop is up on its old database; not undone").says("--rollback completes the way back");
        let refused = scene.migrate(NEW_ONE);
        assert_eq!(refused.code, 3);
        refused.says("has not come to its end");
        let output = scene.migrate(&["--rollback"]).ok();
        scene.is_as_it_was(&output.stderr);
    }
    // But it does not come up on a database that takes no writes, or on the wrong one.
    for (first, then) in [("copy-part compare", "copy-part release"), ("scale worker=3", "config-set")] {
        let scene = Scene::new();
        scene.put("fault", &format!("{first} fail"));
        scene.put("fault.next", &format!("{then} fail"));
        let output = scene.migrate(NEW_ONE);
        assert_eq!(output.code, 1, "{}", output.stderr);
        assert_eq!(scene.get("wrong"), "");
        assert_eq!(scene.get("maintenance"), "on");
        assert_ne!(scene.get("lock"), "", "who unlocks it forgets how it was");
        output.says("shop stays down; not undone");
        let output = scene.migrate(&["--rollback"]).ok();
        scene.is_as_it_was(&output.stderr);
    }
}

#[test]
fn a_verb_that_hangs_is_ended() {
    let scene = Scene::new();
    scene.put("fault", "config-list hang");
    let begin = Instant::now();
    let platform = scene.directory.join("platform");
    let mut command = Command::new(binary());
    command
        .args(["migrate", "--app", "shop", "--platform"])
        .arg(&platform)
        .arg("--herd")
        .arg(platform.join("herd"));
    command.env("XDG_STATE_HOME", scene.directory.join("xdg")).env("HERD_PLATFORM_TIMEOUT", "1");
    let output = start(command, "migrate".into(), None).wait();
    assert_eq!(output.code, 4, "{}", output.stderr);
    assert!(begin.elapsed() < Duration::from_secs(60));
    output.says("did not answer within 1 seconds (config-list)");
    scene.is_as_it_was("");
}

#[test]
fn what_a_killed_run_left_running_is_ended() {
    let scene = Scene::new();
    scene.put("fault", "copy-part fill hang");
    let running = scene.spawn(NEW_ONE);
    until("the copy", 30, || scene.state("hangs").exists());
    let second = scene.migrate(NEW_ONE);
    assert_eq!(second.code, 3, "{}", second.stderr);
    second.says("a migration of shop runs on this machine: begun by").says("since 20");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, -9);
    scene.migrate(&["--status"]).ok().says("is not finished").says("transfer");
    let begin = Instant::now();
    let output = scene.migrate(&["--resume"]).ok().says("what the run before has left running is ended: run");
    assert!(begin.elapsed() < Duration::from_secs(120));
    scene.has_new(&output.stderr);
}

#[test]
fn a_target_that_was_there_is_cleared_and_not_removed() {
    let to = &["--to", "db.1"];
    let scene = Scene::with_target();
    let before = scene.config();
    scene.put("fault", "scale worker=3 fail");
    let output = scene.migrate(to);
    assert_eq!(output.code, 1);
    scene.runs(&output.stderr);
    scene.source_is_free(&output.stderr);
    assert_eq!(scene.config(), before);
    assert!(scene.get("instances").contains("db.1"));
    assert_eq!((scene.get("side"), scene.get("placed")), (String::new(), String::new()));

    // Unattached it is attached, and detached again.
    fs::remove_file(scene.state("config/HEROKU_POSTGRESQL_WHITE_URL")).unwrap();
    let before = scene.config();
    // A dry run looks into it and attaches nothing.
    let calls = scene.calls().len();
    scene.migrate(&["--to", "db.1", "--dry-run"]).ok().says("warning: a warning");
    assert!(scene.calls()[calls..].iter().all(|call| only_reads(call)), "{:?}", scene.calls());
    scene.put("placed", "something");
    scene.migrate(&["--to", "db.1", "--dry-run"]).fails(
        1,
        "db.1: the target is not empty",
        "so says the agent on db.1",
    );
    fs::remove_file(scene.state("placed")).unwrap();
    assert_eq!(scene.config(), before);
    scene.put("fault", "copy-part fill fail");
    let output = scene.migrate(&["--to", "DB.1", "--colour", "gold"]);
    assert_eq!(output.code, 1);
    assert!(scene.get("calls").contains("addons:attach db.1 --as=gold"), "{}", scene.get("calls"));
    assert_eq!(scene.config(), before);
    scene.runs(&output.stderr);

    let output = scene.migrate(to).ok();
    scene.runs(&output.stderr);
    assert_eq!(scene.config()["DATABASE_URL"], NEW);
}

#[test]
fn what_was_on_hold_stays_so() {
    let scene = Scene::new();
    scene.put("maintenance", "on");
    scene.migrate(NEW_ONE).ok();
    assert_eq!((scene.get("maintenance"), scene.get("wrong")), ("on".into(), String::new()));
    scene.migrate(&["--rollback"]).ok();
    assert_eq!(scene.get("maintenance"), "on");

    // No processes: nothing is stopped.
    let scene = Scene::new();
    for name in ["www", "worker", "idle"] {
        fs::remove_file(scene.state(&format!("count.{name}"))).unwrap();
    }
    scene.put("maintenance", "on");
    let output = scene.migrate(NEW_ONE).ok();
    assert_eq!(scene.config()["DATABASE_URL"], NEW, "{}", output.stderr);
    assert!(!scene.calls().iter().any(|call| call.starts_with("maintenance") || call.starts_with("scale")));

    // No DATABASE_URL: herd would have made the new one that before its time.
    let scene = Scene::new();
    fs::remove_file(scene.state("config/DATABASE_URL")).unwrap();
    scene.put("fault", "copy-part fill fail");
    let output = scene.migrate(NEW_ONE);
    assert_eq!(output.code, 1);
    assert!(!scene.config().contains_key("DATABASE_URL"), "{}", output.stderr);
    scene.runs(&output.stderr);
    let output = scene.migrate(&["--from", "shared_database_url"]).ok();
    assert_eq!(scene.config()["SHARED_DATABASE_URL"], NEW, "{}", output.stderr);
    assert!(!scene.config().contains_key("DATABASE_URL"));
}

#[test]
fn what_somebody_else_changed_is_left_alone() {
    let scene = Scene::new();
    scene.migrate(NEW_ONE).ok();
    scene.put("config/SHARED_DATABASE_URL", "postgres://u@elsewhere/x");
    scene.migrate(&["--rollback"]).ok().says("SHARED_DATABASE_URL was changed by somebody else meanwhile");
    assert_eq!(scene.config()["DATABASE_URL"], OLD);
    assert_eq!(scene.config()["SHARED_DATABASE_URL"], "postgres://u@elsewhere/x");
}

#[test]
fn writes_are_not_lost_without_a_word() {
    let scene = Scene::new();
    scene.migrate(NEW_ONE).ok();
    scene.put("changes", r#"{"what": "table orders", "before": 10, "now": 12}"#);
    let before = scene.calls().len();
    let output = scene.migrate(&["--rollback"]);
    assert_eq!(output.code, 3);
    output.says("table orders: 10 then, 12 now").says("add --confirm shop");
    assert!(scene.calls()[before..].iter().all(|call| only_reads(call)), "{:?}", &scene.calls()[before..]);
    scene.has_new("refused");
    let output = scene.migrate(&["--rollback", "--confirm", "store"]);
    assert_eq!(output.code, 3);
    let output = scene.migrate(&["--rollback", "--confirm", "shop"]).ok().says("these writes stay behind");
    scene.went_back(&output.stderr);
    let output = scene.migrate(&["--rollback"]);
    assert_eq!(output.code, 1);
    output.says("no migration of shop to be rolled back");
    // A failure on that way leaves the app where it is.
    let scene = Scene::new();
    scene.migrate(NEW_ONE).ok();
    for fault in ["scale worker=0", "config-set", "copy-part release", "scale worker=3"] {
        scene.put("fault", &format!("{fault} fail"));
        let output = scene.migrate(&["--rollback"]);
        assert_eq!(output.code, 1, "{}", output.stderr);
        scene.has_new(&format!("{fault}: {}", output.stderr));
        output.says("shop goes on with the new database, as before");
    }
}

#[test]
fn refused_before_anything_is_done() {
    type Prepare = fn(&Scene);
    let cases: &[(&[&str], Prepare, i32, &str)] = &[
        (&["--from", "NOWHERE_URL"], |_| (), 2, "shop has no NOWHERE_URL"),
        (&["--from", "SECRET"], |_| (), 2, "SECRET of shop is no postgres:// URL"),
        (&["--to", "db.7"], |_| (), 2, "shop has no database db.7"),
        (&["--to", "db.0"], |_| (), 2, "db.0 is where the data is already"),
        (&["--plan", "ronin"], |s| s.put("plan.db.0", "ronin"), 1, "db.0 has the plan ronin already"),
        (&[], |s| s.put("standby", "true"), 3, "main of db.0 is a standby"),
        (
            &[],
            |s| s.put("lock", "0badcafe running"),
            3,
            "is being migrated: 0badcafe of shop, by x@y, since then",
        ),
        (&[], |s| s.put("lock", "0badcafe done"), 3, "was left by the migration 0badcafe"),
        (&["--url", "postgres://u:secret@x/y"], |_| (), 2, "a URL with a password is no argument"),
        (&["--url", "postgres://u@x/y"], |_| (), 4, ""),
        (&["--resume"], |_| (), 1, "there is no migration of shop to be resumed"),
        (&["--rollback"], |_| (), 1, "there is no migration of shop to be rolled back"),
        (&["--abandon"], |_| (), 3, "main of db.0 would be writable again"),
        (&["--resume", "--rollback"], |_| (), 2, "cannot be used with"),
        (&["--to", "db.1", "--plan", "x"], |_| (), 2, "cannot be used with"),
    ];
    for (arguments, prepare, code, says) in cases {
        let scene = Scene::new();
        prepare(&scene);
        let output = scene.migrate(arguments);
        // Nobody listens at that one.
        if *code != 4 {
            assert_eq!(output.code, *code, "{arguments:?}: {}", output.stderr);
        } else {
            assert_ne!(output.code, 0);
        }
        output.says(says);
        assert!(scene.calls().iter().all(|call| only_reads(call)), "{arguments:?}: {:?}", scene.calls());
        assert!(scene.journals().is_empty(), "{arguments:?} leaves a journal");
    }
}

#[test]
fn told_before_and_after() {
    let scene = Scene::new();
    scene.put("oneoffs", "run.1\t2026-11-22 01:00\trake postgres://u:sesame@x/y");
    let output = scene.migrate(&["--dry-run", "--plan", "ronin"]).ok();
    let output =
        output.says("a one-off process runs").says("would go like this").says("stopping worker=3 www=2");
    output.says("pointing DATABASE_URL, SHARED_DATABASE_URL to the new database");
    assert!(scene.calls().iter().all(|call| only_reads(call)), "{:?}", scene.calls());
    assert!(scene.journals().is_empty());

    let report = scene.migrate(&["--plan", "ronin", "--json"]).json();
    assert_eq!(report["state"], "done");
    assert_eq!(report["copied"]["rows"], 30);
    assert!(report["down_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["next"].to_string().contains("herd pg:migrate --rollback --app shop"));
    let status = scene.migrate(&["--status", "--json"]).json();
    assert_eq!(status["migrations"][0]["id"], report["id"]);
    assert!(scene.get("whats").contains("Migrate to db.1"), "{}", scene.get("whats"));
    use std::os::unix::fs::PermissionsExt;
    let id = report["id"].as_str().unwrap();
    let journal = scene.directory.join(format!("xdg/pgmahout/migrations/shop/{id}.json"));
    assert_eq!(fs::metadata(journal).unwrap().permissions().mode() & 0o777, 0o600);

    // Its journal lost, the source is freed by hand.
    fs::remove_dir_all(scene.directory.join("xdg")).unwrap();
    scene.put("config/OLD_URL", OLD);
    scene
        .migrate(&["--abandon", "--from", "OLD_URL", "--confirm", "shop"])
        .ok()
        .says("main of db.0 is free again; the migration")
        .says("was begun by x@y at then");
    scene
        .migrate(&["--abandon", "--from", "OLD_URL", "--confirm", "shop"])
        .ok()
        .says("no migration had main of db.0");
    scene.source_is_free("abandoned");

    // A file with a password that others can read is told of.
    let file = scene.directory.join("its url");
    fs::write(&file, format!("{OLD}\n")).unwrap();
    let told = format!("others can read {}", file.display());
    for (mode, tells) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let output = scene.migrate(&["--dry-run", "--url", file.to_str().unwrap()]).ok();
        assert_eq!(output.stderr.contains(&told), tells, "{}", output.stderr);
    }
}

/// Killed, and then somebody else did something.
fn killed_and_then(fault: &str, arguments: &[&str], then: impl FnOnce(&Scene)) -> Scene {
    let scene = Scene::new();
    scene.put("fault", fault);
    let output = scene.migrate(arguments);
    assert_eq!(output.code, -9, "{}", output.stderr);
    then(&scene);
    scene
}

fn up_by_hand(scene: &Scene) {
    for (name, value) in [("maintenance", "off"), ("count.www", "2"), ("count.worker", "3")] {
        scene.put(name, value);
    }
}

#[test]
fn what_an_app_has_written_that_was_brought_up_by_hand_is_not_cleared() {
    let then = |scene: &Scene| {
        up_by_hand(scene);
        scene.put("changes", r#"{"what": "table orders", "before": 10, "now": 12}"#);
    };
    let scene = killed_and_then("config-set after", NEW_ONE, then);
    let output = scene.migrate(&["--rollback"]);
    assert_eq!(output.code, 3, "{}", output.stderr);
    output.says("table orders: 10 then, 12 now").says("--confirm shop");
    assert_ne!(scene.get("placed"), "");
    let output = scene.migrate(&["--rollback", "--confirm", "shop"]).ok();
    scene.went_back(&output.stderr);
    // Nor by a failure after it was resumed.
    let scene = killed_and_then("config-set after", NEW_ONE, then);
    scene.put("fault", "scale worker=3 fail");
    let output = scene.migrate(&["--resume"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    output.says("shop has the new database, and the rest is still to be done");
    let output = scene.migrate(&["--resume"]).ok();
    scene.has_new(&output.stderr);
}

#[test]
fn what_was_done_before_a_kill_may_not_be_so_any_more() {
    // The app was brought up by hand.
    let scene = killed_and_then("copy-part fill before", NEW_ONE, up_by_hand);
    let output = scene.migrate(&["--resume"]).ok();
    scene.has_new(&output.stderr);
    // And the source was freed: nothing is copied that is written to.
    let scene = killed_and_then("copy-part fill before", NEW_ONE, |scene| {
        up_by_hand(scene);
        fs::remove_file(scene.state("lock")).unwrap();
        scene.put("readonly", "off");
    });
    let output = scene.migrate(&["--resume"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    scene.is_as_it_was(&output.stderr);
}

#[test]
fn nobody_elses_instance_is_removed() {
    let of_somebody = |scene: &Scene, line: &str, url: &str| {
        scene.put("instances", &format!("db.0\trunning\told:1\n{line}"));
        scene.put("config/HEROKU_POSTGRESQL_PRECIOUS_URL", url);
    };
    let fork = ("db.2\trunning\tfork:3", "postgres://u@fork:3/x");
    let other = ("db.1\trunning\tother:9", "postgres://u@other:9/x");
    let same = ("db.1\trunning\tnew:2", "postgres://u@new:2/x");
    let new: &[&str] = &["--plan", "ronin", "--colour", "amber"];
    for (fault, arguments, (line, url)) in [
        ("addons:add before", &["--rehearse"][..], fork),
        ("addons:add before", new, same),
        ("copy-part fill before", new, other),
        ("copy-part fill before", new, same),
    ] {
        let scene = killed_and_then(fault, arguments, |scene| {
            let _ = fs::remove_file(scene.state("config/HEROKU_POSTGRESQL_AMBER_URL"));
            of_somebody(scene, line, url);
        });
        let output = scene.migrate(&["--rollback"]).ok();
        assert!(scene.get("instances").contains(line), "{fault}: {}", output.stderr);
        assert_eq!(scene.config()["HEROKU_POSTGRESQL_PRECIOUS_URL"], url, "{fault}: {}", output.stderr);
    }
}

#[test]
fn a_journal_is_of_one_platform() {
    let scene = killed_and_then("copy-part fill before", NEW_ONE, |_| ());
    let other = scene.directory.join("elsewhere");
    fs::rename(scene.directory.join("platform"), &other).unwrap();
    fs::create_dir_all(scene.directory.join("platform/state")).unwrap();
    for entry in fs::read_dir(&other).unwrap().flatten() {
        if entry.file_type().unwrap().is_symlink() {
            let link = fs::read_link(entry.path()).unwrap();
            std::os::unix::fs::symlink(link, scene.directory.join("platform").join(entry.file_name()))
                .unwrap();
        }
    }
    let mut command = Command::new(binary());
    command.args(["migrate", "--app", "shop", "--rollback", "--platform"]).arg(&other);
    command.arg("--herd").arg(other.join("herd")).env("XDG_STATE_HOME", scene.directory.join("xdg"));
    let output = start(command, "migrate".into(), None).wait();
    assert_eq!(output.code, 1);
    output.says("there is no migration of shop to be rolled back");
}

#[test]
fn an_app_that_is_bound_to_neither_is_no_success() {
    let elsewhere = |scene: &Scene, names: &[&str], url: &str| {
        for name in names {
            scene.put(&format!("config/{name}"), url);
        }
    };
    let names = &["DATABASE_URL", "SHARED_DATABASE_URL"];
    let scene =
        killed_and_then("copy-part place after", NEW_ONE, |s| elsewhere(s, names, "postgres://u@old:1/else"));
    let output = scene.migrate(&["--resume"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    let output = output.says("were changed by somebody else meanwhile, all of them");
    scene.runs(&output.stderr);
    scene.source_is_free(&output.stderr);

    let scene = Scene::new();
    scene.migrate(NEW_ONE).ok();
    elsewhere(&scene, names, "postgres://u@third:7/main");
    let output = scene.migrate(&["--rollback"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    let output = output.says("shop goes on with the new database, as before");
    scene.runs(&output.stderr);
    // With another password it is the same database.
    elsewhere(&scene, names, "postgres://u:rotated@new:2/main");
    scene.migrate(&["--rollback"]).ok();
    assert_eq!(scene.config()["DATABASE_URL"], OLD);
}

#[test]
fn a_journal_that_cannot_be_written_keeps_no_app_down() {
    let scene = Scene::new();
    scene.put("fault", "copy-part fill stall");
    let running = scene.spawn(NEW_ONE);
    until("the copy", 30, || scene.state("hangs").exists());
    fs::rename(scene.directory.join("xdg/pgmahout"), scene.directory.join("xdg/gone")).unwrap();
    running.signal(Signal::SIGINT);
    let output = running.wait();
    assert_eq!(output.code, 5, "{}", output.stderr);
    output.says("the journal is behind");
    scene.is_as_it_was("");
}

#[test]
fn a_source_that_is_away_for_a_moment_keeps_no_app_down() {
    let scene = Scene::new();
    scene.put("fault", "copy-part fill fail");
    scene.put("fault.next", "copy-part release away");
    let output = scene.migrate(NEW_ONE);
    assert_eq!(output.code, 1, "{}", output.stderr);
    let output = output.says("waiting for it").says("all was undone");
    scene.is_as_it_was(&output.stderr);
}

#[test]
fn what_does_not_go_along_is_said() {
    let scene = Scene::new();
    scene.put("config/READ_URL", "postgresql://reader:x@OLD:1/main?application_name=x");
    scene.put("followers.db.0", r#"{"name": "db.5", "state": "streaming"}"#);
    scene.put("backups.db.0", "auto-month");
    let output = scene.migrate(&["--dry-run"]).ok().says("READ_URL leads to main of db.0 too");
    let output = output.says("goes on following it, and not the new database: db.5");
    output.says("herd addons:add pgbackups:auto-month --app shop");
}

#[test]
fn a_rehearsal_takes_nothing_down() {
    let rehearse = &["--rehearse", "--plan", "ronin"];
    let scene = Scene::new();
    scene.put("live", "yes");
    let output = scene.migrate(rehearse).ok();
    scene.is_as_it_was(&output.stderr);
    let output = output.says("the app would be down for about");
    let calls = scene.calls();
    let touches = |call: &&String| call.starts_with("scale") || call.starts_with("maintenance o");
    assert!(!calls.iter().any(|call| touches(&call) || call.contains(" lock ")), "{calls:?}");
    assert!(calls.iter().any(|call| call.contains("--fork db.0")), "{}", output.stderr);
    each(&all_kills(&calls), |(at, mode)| {
        let scene = Scene::new();
        scene.put("live", "yes");
        let said = killed(&scene, rehearse, at, mode);
        if !scene.journals().is_empty() && scene.journals()[0]["state"] != "undone" {
            let output = scene.migrate(&["--rollback"]).ok();
            return scene.is_as_it_was(&format!("{said}--- rolled back\n{}", output.stderr));
        }
        scene.is_as_it_was(&said);
    });
}
