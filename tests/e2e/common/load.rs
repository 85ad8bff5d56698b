//! Work on a server while the agent works: pgbench, a journal of acknowledged commits; and an eye on
//! every process's arguments.

use super::account::must;
use super::checks::{amcheck, assert_streams, compare, primary_is_clean};
use super::host::Host;
use super::site::pids;
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

/// Reads every process's arguments all the time and remembers where a secret stood.
pub struct Argv {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Argv {
    pub fn watch(secret: &str) -> Argv {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, secret) = (stop.clone(), secret.as_bytes().to_owned());
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                for pid in pids() {
                    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    if arguments.windows(secret.len()).any(|window| window == secret) {
                        seen.push(String::from_utf8_lossy(&arguments).into_owned());
                    }
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Argv { stop, thread: Some(thread) }
    }

    /// Where the secret was seen.
    pub fn seen(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
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
