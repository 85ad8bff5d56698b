//! A command that is killed again and again: where it can be killed, how its hosts come back to what they were before,
//! and what must never be found afterwards.

use crate::common::*;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The slot of the standby that most of these tests have.
pub const SLOT: &str = "pgmahout_db_1";

// --- the command --------------------------------------------------------------------------------------

/// A command on a host that speaks to another one.
pub struct Command<'a> {
    pub here: &'a Host,
    pub arguments: Vec<&'a str>,
    pub stdin: String,
    /// Where the other end of it runs, by SSH.
    pub there: Option<&'a Host>,
}

/// Which of the two processes is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Here,
    There,
}

/// A boundary, and which time that it is passed.
#[derive(Clone, Debug)]
pub struct Point {
    pub side: Side,
    name: String,
    nth: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let side = if self.side == Side::Here { "here" } else { "there" };
        write!(f, "{}:{} {side}", self.name, self.nth)
    }
}

impl Point {
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }
}

/// Boundaries that are passed for every part of the data: how often depends on how fast the other stream is.
const MANY: &[&str] = &["copy.part", "source.sent", "source.listed", "restore.block"];

/// Where it is killed of all the times that a run has passed boundaries. Each at least once; where one is passed often, the
/// first time, the last, and some between.
fn points(side: Side, trace: &[String]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut seen = BTreeSet::new();
    for name in trace.iter().filter(|name| seen.insert(name.as_str())) {
        let times = trace.iter().filter(|other| *other == name).count();
        let chosen = match (side, MANY.contains(&name.as_str())) {
            // Each process there counts for itself.
            (Side::There, _) => vec![1],
            (Side::Here, true) => vec![1, times / 2],
            (Side::Here, false) if times > 4 => vec![1, times / 2, times],
            (Side::Here, false) => (1..=times).collect(),
        };
        let chosen: BTreeSet<usize> = chosen.into_iter().filter(|nth| *nth > 0).collect();
        points.extend(chosen.into_iter().map(|nth| Point { side, name: name.clone(), nth }));
    }
    points
}

/// Every other point, so that two tests share the waiting.
pub fn half(which: usize) -> impl Fn(&Point) -> bool {
    let count = std::cell::Cell::new(which);
    move |_| {
        count.set(count.get() + 1);
        count.get().is_multiple_of(2)
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

const TRACE: &str = "PGMAHOUT_FAULT_TRACE";
const KILL: &str = "PGMAHOUT_FAULT_KILL";

impl<'a> Command<'a> {
    pub fn enslave(here: &'a Host, there: &'a Host, flags: &[&'a str]) -> Command<'a> {
        Command { here, arguments: [&["enslave"], flags].concat(), stdin: there.blurb(), there: Some(there) }
    }

    pub fn run(&self) -> Run<'a> {
        self.here.agent(&self.arguments).stdin(self.stdin.clone())
    }

    fn trace(&self, side: Side) -> PathBuf {
        let name = if side == Side::Here { "trace here" } else { "trace there" };
        self.here.site.directory.join(name)
    }

    fn forget_traces(&self) {
        for side in [Side::Here, Side::There] {
            self.here.account.write(&self.trace(side), "", 0o666);
        }
    }

    /// Runs it undisturbed; gives every point where it can be killed. Those that are `expected` must be among them: what
    /// is asked for and never passed would be tested by nobody.
    #[track_caller]
    pub fn points(&self, expected_here: &[&str], expected_there: &[&str]) -> Vec<Point> {
        self.forget_traces();
        if let Some(there) = self.there {
            there.ssh_environment(&[(TRACE, self.trace(Side::There).to_str().unwrap())]);
        }
        let output = self.run().env(TRACE, self.trace(Side::Here)).run().ok();
        self.calm();
        let mut all = Vec::new();
        for (side, expected) in [(Side::Here, expected_here), (Side::There, expected_there)] {
            let trace = lines(&self.trace(side));
            for name in expected {
                let passed: BTreeSet<_> = trace.iter().collect();
                assert!(trace.iter().any(|line| line == name), "{name} is not in {passed:?}\n{output:?}");
            }
            all.extend(points(side, &trace));
        }
        // One of them alone, to look at it: PGMAHOUT_FAULT_POINT="server.stopped:1 there".
        if let Ok(only) = std::env::var("PGMAHOUT_FAULT_POINT") {
            all.retain(|point| point.to_string() == only);
        }
        assert!(!all.is_empty());
        all
    }

    /// Runs it, and kills it there. Gives what it said.
    #[track_caller]
    pub fn killed_at(&self, point: &Point) -> Output {
        eprintln!("killed at {point}");
        self.forget_traces();
        let at = format!("{}:{}", point.name, point.nth);
        let output = match point.side {
            Side::Here => {
                let output = self.run().env(KILL, &at).run();
                assert_eq!(output.code, -9, "it was not killed at {point}: {output:?}");
                output
            }
            Side::There => {
                let trace = self.trace(Side::There);
                let there = self.there.expect("another host");
                there.ssh_environment(&[(TRACE, trace.to_str().unwrap()), (KILL, &at)]);
                let output = self.run().run();
                let passed = lines(&trace).iter().filter(|line| **line == point.name).count();
                assert!(passed >= point.nth, "nobody came to {point}: {output:?}");
                assert!([0, 1, 4].contains(&output.code), "{output:?}");
                output
            }
        };
        self.calm();
        output
    }

    /// Begins it, with so many minutes for all of it; [`Command::wait_for`] says where it is.
    pub fn begin(&self, minutes: u64) -> Running {
        self.forget_traces();
        self.run().env(TRACE, self.trace(Side::Here)).limit(minutes).spawn()
    }

    /// Waits until it passes this boundary here.
    #[track_caller]
    pub fn wait_for(&self, boundary: &str) {
        let trace = self.trace(Side::Here);
        until(&format!("it passes {boundary}"), 60, || lines(&trace).iter().any(|line| line == boundary));
    }

    /// No more faults, and what was started by the dead is through.
    fn calm(&self) {
        if let Some(there) = self.there {
            there.ssh_environment(&[]);
        }
        for host in [Some(self.here), self.there].into_iter().flatten() {
            settle(host);
        }
    }

    /// The same command once more, which must succeed now.
    #[track_caller]
    pub fn again(&self) -> Output {
        self.run().run().ok()
    }
}

/// Waits until nobody starts or stops this host's server any more, and its server answers or is gone with all its
/// processes: those of a killed one take a moment to see it, and keep the next one from starting.
pub fn settle(host: &Host) {
    let bin = format!("{}/bin/pg-", host.home.display());
    let working = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let is_ours = words.iter().any(|word| word.contains(&bin) || Path::new(&**word) == host.data);
        is_ours && words.iter().any(|word| word.contains("pg-st") || word.ends_with("pg_ctl"))
    };
    until("nobody starts or stops the server", 60, || !pids().iter().any(working));
    until("the server is up or gone", 60, || match host.is_running() {
        true => host.try_sql("postgres").is_ok(),
        // A dead one that nobody has waited for yet keeps the next one from starting, too.
        false => host.processes().is_empty() && !host.names_a_process(),
    });
}

// --- before -------------------------------------------------------------------------------------------

/// What a host was: its data directory, what pgmahout remembers, and whether its server ran.
#[derive(Clone)]
pub struct Saved {
    place: PathBuf,
    running: bool,
}

fn contents(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn remove(path: &Path) {
    let is_directory = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// All that is in a directory, into another one.
pub fn copy(from: &Path, to: &Path) {
    must(account().command("cp").arg("-a").arg(from.join(".")).arg(to));
}

impl Saved {
    pub fn of(host: &Host) -> Saved {
        let running = host.is_running();
        if running {
            host.stop();
        }
        let free = |number: &u32| !host.site.directory.join(format!("saved {number}")).exists();
        let number = (1..).find(free).expect("there are enough numbers");
        let place = host.site.directory.join(format!("saved {number}"));
        host.account.mkdir(&place, 0o700);
        for (from, to) in Saved::pairs(host, &place) {
            host.account.mkdir(&to, 0o700);
            if from.exists() {
                copy(&from, &to);
            }
        }
        if running {
            host.start();
        }
        Saved { place, running }
    }

    fn pairs(host: &Host, place: &Path) -> [(PathBuf, PathBuf); 2] {
        [(host.data.clone(), place.join("data")), (host.home.join(".pgmahout"), place.join(".pgmahout"))]
    }

    /// The host is as it was.
    pub fn put_back(&self, host: &Host) {
        host.stop_at_once();
        let beside = format!("{}.pgmahout-", host.data.display());
        for path in contents(host.data.parent().unwrap()) {
            if path.display().to_string().starts_with(&beside) {
                remove(&path);
            }
        }
        for (to, from) in Saved::pairs(host, &self.place) {
            // Emptied, not removed: it may be a mount point, and pgmahout knows its own directory by its number.
            contents(&to).iter().for_each(|path| remove(path));
            if !to.exists() {
                host.account.mkdir(&to, 0o700);
            }
            copy(&from, &to);
        }
        if self.running {
            host.start();
        }
    }
}

/// Nothing on a primary tells of an earlier round.
pub fn as_if_never_followed(primary: &Host) {
    until("nobody streams from it", 20, || {
        primary.one("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"
    });
    primary.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    primary.exec("DROP TABLE IF EXISTS journal");
}

// --- after --------------------------------------------------------------------------------------------

/// Everything below a host's home that pgmahout has made, or has named; and every server and agent of this host that runs
/// where none should.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Whether this one is there does not matter.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub fn of(host: &Host) -> Traces {
        let mut found = BTreeSet::new();
        names(&host.home, Path::new(""), &mut found);
        if !host.data.starts_with(&host.home) {
            names(&host.data, Path::new("data"), &mut found);
        }
        let state = host.home.join(".pgmahout");
        if let Ok(metadata) = std::fs::metadata(&state) {
            // What a restore works in.
            let ours = format!("pgmahout-{:x}-{:x}.", metadata.dev(), metadata.ino());
            let scratch = contents(Path::new("/tmp")).into_iter().map(|path| path.display().to_string());
            found.extend(scratch.filter(|path| path.contains(&ours)));
        }
        Traces(found)
    }
}

fn names(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in contents(&root.join(below)) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        let path = below.join(&name);
        let is_directory = std::fs::symlink_metadata(&entry).is_ok_and(|metadata| metadata.is_dir());
        if let Some((stem, _)) = name.split_once(".pgmahout-old-") {
            found.insert(format!("{stem}.pgmahout-old-*"));
            continue;
        }
        if path.display().to_string().contains("pgmahout") {
            found.insert(path.display().to_string());
        }
        if is_directory && name != "bin" {
            names(root, &path, found);
        }
    }
}

/// Agents of this host that still run.
pub fn agents(host: &Host) -> Vec<i32> {
    let home = format!("HOME={}", host.home.display());
    let is_ours = |pid: &i32| {
        let is_agent = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary());
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        is_agent && environment.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
    };
    pids().into_iter().filter(is_ours).collect()
}

/// No agent runs on any of them any more.
#[track_caller]
pub fn no_agents(hosts: &[&Host]) {
    until("the agents have ended", 15, || hosts.iter().all(|host| agents(host).is_empty()));
}

/// The primary is in no backup, and has no slot but that of the one that is to follow it.
#[track_caller]
pub fn no_slot_but(primary: &Host, slots: &[&str]) {
    let mut left = Vec::new();
    until("the sessions on the primary have ended", 15, || {
        left = primary.column("postgres", "SELECT slot_name FROM pg_replication_slots ORDER BY 1");
        left.iter().all(|slot| slots.contains(&slot.as_str()))
    });
    primary_is_clean(primary, &left.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What PGDATA turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A cluster that answers.
    Cluster,
    /// Nothing that starts.
    Unfinished,
}

/// Looks at what a kill has left: whoever starts the server now gets a cluster that `is_good`, or none at all and then the
/// directory says that it is no cluster. Afterwards all files are as the kill has left them.
#[track_caller]
pub fn look_at(host: &Host, is_good: impl Fn(&Host)) -> Found {
    // A start that the dead one was just about to exec is no agent any more by now.
    settle(host);
    if host.is_running() {
        is_good(host);
        return Found::Cluster;
    }
    if !host.data.exists() {
        return Found::Unfinished;
    }
    let beside = host.site.directory.join(format!("as it was left {}", host.name));
    host.account.mkdir(&beside, 0o700);
    copy(&host.data, &beside);
    // pg_ctl's word is not taken: of a standby that ended at once it says that it was shut down.
    host.try_start();
    settle(host);
    let started = host.is_running();
    if started {
        is_good(host);
        host.stop_at_once();
    } else {
        assert!(
            !host.data.join("global/pg_control").exists(),
            "a cluster that does not start:\n{}",
            host.log()
        );
        assert!(host.data.join(".pgmahout-incomplete").exists(), "nothing says that it is not complete");
    }
    contents(&host.data).iter().for_each(|path| remove(path));
    copy(&beside, &host.data);
    remove(&beside);
    if started { Found::Cluster } else { Found::Unfinished }
}

/// It follows the primary, has all that was acknowledged there, and every table and index is sound.
#[track_caller]
pub fn follows(primary: &Host, standby: &Host, journal: Journal) {
    let acknowledged = journal.stop();
    assert!(acknowledged > 0, "nothing was written meanwhile");
    assert_streams(primary, standby);
    compare(primary, standby);
    assert_eq!(standby.one("SELECT max(n) FROM journal"), acknowledged.to_string());
    amcheck(primary, standby);
    no_agents(&[primary, standby]);
}

/// Ends a process at once, if it is still there.
pub fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}
