//! Work on a server while the agent works: pgbench, a journal of acknowledged commits; and an eye on
//! every process's arguments.

use super::account::{account, must};
use super::checks::{amcheck, assert_streams, compare, primary_is_clean};
use super::host::Host;
use super::site::{binary, pids};
use std::collections::HashSet;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// pgbench with two clients in the background until it is stopped.
pub struct Pgbench {
    child: Child,
}

impl Pgbench {
    pub fn initialise(host: &Host, scale: u32) {
        must(host.client("pgbench").args(["-q", "-i", "-s", &scale.to_string(), "postgres"]));
    }

    pub fn start(host: &Host) -> Pgbench {
        let log = std::fs::File::create(host.home.join("pgbench.log")).unwrap();
        let child = host
            .client("pgbench")
            // Not at full speed: replay and the other tests on this machine have to keep up.
            .args(["-n", "-c", "2", "-T", "600", "-R", "300", "postgres"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Pgbench { child }
    }

    /// Stops it; it must have run up to now.
    pub fn stop(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "pgbench ended by itself");
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A table `noise` of about so many megabytes that no compression makes smaller.
pub fn noise(host: &Host, megabytes: u32) {
    host.exec(&format!(
        "CREATE TABLE IF NOT EXISTS noise (id int, bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL; \
         INSERT INTO noise SELECT g, (SELECT string_agg(decode(md5(random()::text || g || i), 'hex'), '') \
         FROM generate_series(1, 110) i) FROM generate_series(1, {}) g",
        megabytes * 512
    ));
}

/// One row after the other into the table `journal`, each committed by itself; knows which the server
/// has acknowledged.
pub struct Journal {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    pub fn start(host: &Host) -> Journal {
        host.exec("CREATE TABLE IF NOT EXISTS journal (n bigint PRIMARY KEY)");
        let mut client = host.sql();
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            for n in 1.. {
                if stopped.load(Ordering::SeqCst)
                    || client.batch_execute(&format!("INSERT INTO journal VALUES ({n})")).is_err()
                {
                    return;
                }
                counter.store(n, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Journal { stop, acknowledged, thread: Some(thread) }
    }

    /// Ends it, also when the server has already ended it; the last row the server acknowledged.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.acknowledged.load(Ordering::SeqCst)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// What everybody on this machine could read of the processes while they were watched, and what those of the hosts'
/// account have inherited.
#[derive(Default)]
pub struct Seen {
    /// Each command line once, its words ended by NUL.
    pub arguments: HashSet<Vec<u8>>,
    /// Each environment once, behind the program's name. Not those of pgmahout itself: they are nobody else's.
    pub environments: HashSet<Vec<u8>>,
}

/// Reads every process's arguments all the time.
pub struct Argv {
    secret: String,
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<Seen>>,
}

impl Argv {
    /// For where this secret stands.
    pub fn watch(secret: &str) -> Argv {
        Argv::start(secret, false)
    }

    /// For secrets that are known only later; and the environments too.
    pub fn watch_all() -> Argv {
        Argv::start("", true)
    }

    fn start(secret: &str, environments: bool) -> Argv {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let (stopped, looked) = (stop.clone(), looks.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::SeqCst) {
                for pid in pids() {
                    seen.arguments.insert(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
                    if environments && let Some(environment) = inherited(pid) {
                        seen.environments.insert(environment);
                    }
                }
                looked.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Argv { secret: secret.into(), stop, looks, thread: Some(thread) }
    }

    /// How often it was looked so far.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    /// Where the secret was seen.
    pub fn seen(self) -> Vec<String> {
        let secret = self.secret.clone().into_bytes();
        assert!(!secret.is_empty());
        let holds = |arguments: &Vec<u8>| arguments.windows(secret.len()).any(|window| window == secret);
        let found = self.all().arguments.into_iter().filter(holds);
        found.map(|arguments| String::from_utf8_lossy(&arguments).into_owned()).collect()
    }

    /// All that was seen.
    pub fn all(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The environment of a process of the hosts' account. A child that was not yet exec'ed has its parent's program.
fn inherited(pid: i32) -> Option<Vec<u8>> {
    let of = |what: &str| format!("/proc/{pid}/{what}");
    let status = std::fs::read_to_string(of("status")).ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t"))?.split('\t').next()?;
    if uid != account().uid.to_string() {
        return None;
    }
    let program = || std::fs::read_link(of("exe")).ok();
    let before = program().filter(|program| program != binary())?;
    let environment = std::fs::read(of("environ")).ok()?;
    // What it was between the two looks nobody knows.
    program().filter(|after| *after == before)?;
    Some([before.as_os_str().as_encoded_bytes(), b"\0", &environment].concat())
}

impl Drop for Argv {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// db.1 is made a standby while pgbench and a journal write all the time. Afterwards every table agrees, every index is
/// sound, and no acknowledged row is missing; gives what the command said.
#[track_caller]
pub fn enslaved_under_load(primary: &Host, standby: &Host) -> serde_json::Value {
    let bench = Pgbench::start(primary);
    let journal = Journal::start(primary);
    let written_before = primary.one("SELECT pg_current_wal_lsn()");
    let done = standby.enslave(primary, &[]);
    bench.stop();
    let acknowledged = journal.stop();
    assert_ne!(
        primary.one("SELECT pg_current_wal_lsn()"),
        written_before,
        "nothing was written during the copy"
    );
    assert_streams(primary, standby);
    primary_is_clean(primary, &["pgmahout_db_1"]);
    compare(primary, standby);
    assert_eq!(standby.one("SELECT max(n) FROM journal"), acknowledged.to_string());
    amcheck(primary, standby);
    done
}
