//! Owns child processes and signals: a child's failure *is* its stderr, every run has a time limit,
//! a child is reaped on drop, and an interrupt is a flag that long loops ask for.

use crate::error::{Error, Result};
use std::io::{BufRead, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// What a finished child left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to stdout, at most [`OUTPUT_LIMIT`] bytes, lossily decoded.
    pub stdout: String,
    /// The same of stderr.
    pub stderr: String,
}

/// No child of ours has more to say than this; the rest is read and dropped.
const OUTPUT_LIMIT: u64 = 4 << 20;

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Runs `command` to its end with no stdin; an exit status other than 0 is an error that carries its
/// stderr. After `limit` it is killed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let finished = run_any(command, limit)?;
    if finished.status.success() {
        return Ok(finished);
    }
    let said = [&finished.stderr, &finished.stdout].into_iter().find(|s| !s.trim().is_empty());
    Err(Error::Child {
        program: program_of(command),
        status: finished.status.to_string(),
        said: said.map(|s| s.trim().to_owned()).unwrap_or_else(|| "it said nothing".into()),
    })
}

/// As [`run`], but any exit status is a result: for programs whose status is an answer.
pub fn run_any(command: &mut Command, limit: Duration) -> Result<Finished> {
    let program = program_of(command);
    let child = without_secrets(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C on a terminal is for us: a pg_ctl that it kills leaves its server half-stopped.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Spawn { program: program.clone(), source })?;
    let mut child = Reaped(child);
    let stdout = collect(child.0.stdout.take());
    let stderr = collect(child.0.stderr.take());
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    let status = loop {
        match child.0.try_wait().map_err(|source| Error::Spawn { program: program.clone(), source })? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                return Err(Error::ChildTooSlow { program, limit });
            }
            None => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    // A daemon that the child left behind (pg_ctl's postmaster) may hold the pipes open for ever:
    // what has arrived shortly after the child's end is all that it said.
    let grace = Duration::from_millis(300);
    Ok(Finished {
        status,
        stdout: stdout.recv_timeout(grace).unwrap_or_default(),
        stderr: stderr.recv_timeout(grace).unwrap_or_default(),
    })
}

fn collect<R: Read + Send + 'static>(from: Option<R>) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn program_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs `command` to its end and hands over each line that it, or what it started, writes to stdout or
/// stderr, as it comes. It is the head of a process group of its own: an interrupt, the time limit or an
/// error of `line` ends the whole group.
pub fn run_lines(
    mut command: Command,
    limit: Duration,
    mut line: impl FnMut(&str) -> Result<()>,
) -> Result<ExitStatus> {
    let program = program_of(&command);
    let spawn_error = |source| Error::Spawn { program: program.clone(), source };
    let (reader, writer) = std::io::pipe().map_err(spawn_error)?;
    let also = writer.try_clone().map_err(spawn_error)?;
    without_secrets(&mut command).stdin(Stdio::null()).stdout(writer).stderr(also).process_group(0);
    let mut group = Group { head: command.spawn().map_err(spawn_error)?, over: false };
    // The pipe ends when the last of the group does: our own ends of it live in the command.
    drop(command);
    let (sender, lines) = std::sync::mpsc::sync_channel::<Vec<u8>>(1024);
    thread::spawn(move || {
        let mut reader = std::io::BufReader::with_capacity(64 * 1024, reader);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            if sender.send(std::mem::take(&mut bytes)).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + limit;
    loop {
        check_interrupt()?;
        if Instant::now() >= deadline {
            return Err(Error::ChildTooSlow { program, limit });
        }
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']))?,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let remaining = deadline.saturating_duration_since(Instant::now());
    let status = wait_for(remaining, || {
        group.head.try_wait().map_err(|source| Error::Spawn { program: program.clone(), source })
    })?;
    group.over = status.is_some();
    status.ok_or(Error::ChildTooSlow { program, limit })
}

/// A child whose standard output is read while it works. It is the head of a process group of its own, which ends
/// when this is dropped before [`Producer::finish`].
pub struct Producer {
    /// What it writes; a read ends at an interrupt.
    pub stdout: Patient<std::process::ChildStdout>,
    stderr: std::sync::mpsc::Receiver<String>,
    group: Group,
    program: String,
}

impl Producer {
    /// Starts it. All reads together may take as long as `limit`.
    pub fn start(mut command: Command, limit: Duration) -> Result<Producer> {
        let program = program_of(&command);
        let silent = without_secrets(&mut command).stdin(Stdio::null());
        silent.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let spawned = command.spawn();
        let mut head = spawned.map_err(|source| Error::Spawn { program: program.clone(), source })?;
        let stdout = head.stdout.take().expect("a pipe was asked for");
        // Fewer turns of the two; where it may not be so large, it stays as it is.
        let _ = nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
        let stderr = collect(head.stderr.take());
        let group = Group { head, over: false };
        Ok(Producer { stdout: Patient::new(stdout, limit), stderr, group, program })
    }

    /// How it ended and what it said; waits for its end as long as `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let spawn_error = |source| Error::Spawn { program: self.program.clone(), source };
        let status = wait_for(limit, || self.group.head.try_wait().map_err(spawn_error))?;
        let status = status.ok_or(Error::ChildTooSlow { program: self.program.clone(), limit })?;
        self.group.over = true;
        let stderr = self.stderr.recv_timeout(Duration::from_millis(300)).unwrap_or_default();
        Ok(Finished { status, stdout: String::new(), stderr })
    }
}

/// A child that heads a process group.
struct Group {
    head: Child,
    over: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Its head is not reaped yet, so the group's id is nobody else's.
        let group = nix::unistd::Pid::from_raw(self.head.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        thread::sleep(Duration::from_millis(100));
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.head.wait();
    }
}

/// Polls `ready` until it gives a value, an error, the time is over (`Ok(None)`) or an interrupt comes.
pub fn wait_for<T>(limit: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(10);
    loop {
        check_interrupt()?;
        if let Some(value) = ready()? {
            return Ok(Some(value));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (pause * 3 / 2).min(Duration::from_millis(200));
    }
}

/// Secrets that come in our environment. What needs one of them is told it in another way (`operations::client`).
const SECRETS: &[&str] =
    &["PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGMAHOUT_BACKUP_PASSPHRASE"];

/// Takes them out of what a child inherits, which may be a server that runs for months, a compiler, or ssh.
pub fn without_secrets(command: &mut Command) -> &mut Command {
    SECRETS.iter().fold(command, |command, name| command.env_remove(name))
}

/// Passwords and keys pass through this process: no core file of it is written, and no process of the same account looks
/// into it. What it starts is not concerned, as an exec takes it back: a server's core file is its operator's affair.
pub fn keep_memory_private() {
    // It fails on no kernel that runs this; and a command that does its work is worth more than this is.
    let _ = nix::sys::prctl::set_dumpable(false);
}

fn flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From now on SIGINT, SIGTERM and SIGHUP set a flag that [`check_interrupt`] reports, so that clean-up
/// runs; a second one ends the process at once with exit code 5.
pub fn catch_interrupts() {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 5, flag().clone());
        let _ = signal_hook::flag::register(signal, flag().clone());
    }
}

/// As if a signal had come: the work ends by itself at the next [`check_interrupt`].
pub fn interrupt() {
    flag().store(true, Ordering::Relaxed);
}

/// Lowers the flag: what an interrupt stopped is to be undone, which the next interrupt may stop in turn.
pub fn pardon() {
    flag().store(false, Ordering::Relaxed);
}

/// An error once an interrupt has come.
pub fn check_interrupt() -> Result<()> {
    if flag().load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Runs a read that blocks (a pipe, a terminal) so that an interrupt and a limit end the wait for it.
/// `Ok(None)` when the time is over; the read itself then ends with the process.
pub fn read_within<T: Send + 'static>(
    limit: Duration,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(read());
    });
    wait_for(limit, || Ok(receiver.try_recv().ok()))
}

/// As [`wait_for`], but not to be interrupted: for what must come to its end.
pub fn wait_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !ready() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A reader whose reads end at an interrupt, or at the limit for all of them, although what it reads from
/// blocks. After such an end [`check_interrupt`] tells which it was.
pub struct Patient<R> {
    chunks: std::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>,
    reading: thread::JoinHandle<R>,
    chunk: Vec<u8>,
    at: usize,
    deadline: Instant,
}

impl<R: Read + Send + 'static> Patient<R> {
    /// Reads on in a thread of its own.
    pub fn new(mut inner: R, limit: Duration) -> Patient<R> {
        let (sender, chunks) = std::sync::mpsc::sync_channel(16);
        let reading = thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                // Of the size of what came: a pipe gives a few kilobytes at a time.
                let read = inner.read(&mut buffer).map(|n| buffer[..n].to_vec());
                let over = !matches!(&read, Ok(chunk) if !chunk.is_empty());
                if over && read.is_ok() {
                    return inner;
                }
                if sender.send(read).is_err() || over {
                    return inner;
                }
            }
        });
        Patient { chunks, reading, chunk: Vec::new(), at: 0, deadline: Instant::now() + limit }
    }

    /// What it read from, once that has come to its end; `None` when it has not within `limit`.
    pub fn finish(self, limit: Duration) -> Option<R> {
        let deadline = Instant::now() + limit;
        while let Some(remaining) = deadline.checked_duration_since(Instant::now()) {
            match self.chunks.recv_timeout(remaining.min(Duration::from_millis(100))) {
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return self.reading.join().ok(),
                _ if check_interrupt().is_err() => return None,
                _ => {}
            }
        }
        None
    }
}

impl<R: Read + Send + 'static> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use std::sync::mpsc::RecvTimeoutError;
        while self.at == self.chunk.len() {
            if check_interrupt().is_err() {
                return Err(std::io::Error::other("interrupted"));
            }
            if Instant::now() >= self.deadline {
                return Err(std::io::Error::other("it did not come to its end in time"));
            }
            match self.chunks.recv_timeout(Duration::from_millis(100)) {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// When this process began, in the kernel's own ticks since boot; `None` when it is gone or only waits to be reaped.
/// With its id it names a process for good, as ids are given again.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// True when a process with this id exists (also one of another account).
pub fn is_alive(pid: i32) -> bool {
    use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
    pid > 0 && !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_its_stderr() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), Duration::from_secs(5));
        assert_eq!(error.unwrap_err().to_string(), "sh failed (exit status: 3): why");
    }

    #[test]
    fn a_slow_child_is_killed() {
        let begin = Instant::now();
        let error = run(Command::new("sleep").arg("300"), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::ChildTooSlow { .. }));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn lines_come_as_they_are_written() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; (sleep 0.2; printf three) & exit 7"]);
        let mut lines = Vec::new();
        let status = run_lines(command, Duration::from_secs(5), |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        assert_eq!(status.unwrap().code(), Some(7));
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn what_a_producer_writes_comes_with_its_status() {
        let script = "echo one; echo why >&2; echo two; exit 3";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut producer = Producer::start(command, Duration::from_secs(5)).unwrap();
        let mut text = String::new();
        producer.stdout.read_to_string(&mut text).unwrap();
        let finished = producer.finish(Duration::from_secs(5)).unwrap();
        assert_eq!((&*text, &*finished.stderr, finished.status.code()), ("one\ntwo\n", "why\n", Some(3)));
    }

    #[test]
    fn a_producer_that_is_given_up_ends_with_its_group() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 31.4159 & echo $!; wait"]);
        let mut producer = Producer::start(command, Duration::from_secs(60)).unwrap();
        let mut text = [0; 64];
        let read = producer.stdout.read(&mut text).unwrap();
        let pid: i32 = std::str::from_utf8(&text[..read]).unwrap().trim().parse().unwrap();
        assert!(is_running(pid));
        drop(producer);
        let gone = wait_for(Duration::from_secs(5), || Ok((!is_running(pid)).then_some(())));
        assert!(gone.unwrap().is_some(), "process {pid} is still there");
    }

    #[test]
    fn the_whole_group_ends_at_the_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 31.4159 & echo $!; wait"]);
        let mut pid = 0;
        let error = run_lines(command, Duration::from_millis(300), |line| {
            pid = line.parse().unwrap();
            Ok(())
        });
        assert!(matches!(error, Err(Error::ChildTooSlow { .. })));
        let gone = wait_for(Duration::from_secs(5), || Ok((!is_running(pid)).then_some(())));
        assert!(pid > 0 && gone.unwrap().is_some(), "process {pid} is still there");
    }

    /// A zombie that nobody reaps is not running.
    fn is_running(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    }

    #[test]
    fn a_patient_reader_gives_all_and_does_not_wait_for_ever() {
        let mut reader = Patient::new(std::io::Cursor::new(vec![7; 300_000]), Duration::from_secs(5));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 300_000]);
        assert_eq!(reader.finish(Duration::from_secs(1)).unwrap().position(), 300_000);

        let (silent, _writer) = std::io::pipe().unwrap();
        let mut reader = Patient::new(silent, Duration::from_millis(150));
        assert!(reader.read(&mut [0]).unwrap_err().to_string().contains("in time"));
        assert!(reader.finish(Duration::from_millis(50)).is_none());
    }

    #[test]
    fn a_read_that_never_ends_is_given_up() {
        assert_eq!(read_within(Duration::from_secs(5), || 7).unwrap(), Some(7));
        let (reader, _writer) = std::io::pipe().unwrap();
        let silent = move || std::io::read_to_string(reader).ok();
        assert_eq!(read_within(Duration::from_millis(20), silent).unwrap(), None);
    }

    #[test]
    fn waiting_has_an_end() {
        assert_eq!(wait_for(Duration::from_millis(20), || Ok(None::<()>)).unwrap(), None);
        assert_eq!(wait_for(Duration::from_secs(1), || Ok(Some(7))).unwrap(), Some(7));
    }
}
