//! Running the real binary on a host, and saying exactly what came out.

use super::host::{Host, quote};
use super::site::binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// A run of the agent, to be described and started.
pub struct Run<'a> {
    host: &'a Host,
    arguments: Vec<String>,
    stdin: Option<Vec<u8>>,
    environment: Vec<(String, OsString)>,
    under: Vec<String>,
    limit: Duration,
}

impl<'a> Run<'a> {
    pub fn new(host: &'a Host, arguments: &[&str]) -> Run<'a> {
        let arguments = arguments.iter().map(|a| a.to_string()).collect();
        Run { host, arguments, stdin: None, environment: Vec::new(), under: Vec::new(), limit: LIMIT }
    }

    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Started by this program, with these arguments before its own name.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|word| word.to_string()).collect();
        self
    }

    /// It may take longer than others.
    pub fn limit(mut self, minutes: u64) -> Self {
        self.limit = Duration::from_secs(60 * minutes);
        self
    }

    pub fn spawn(self) -> Running {
        let mut command = match self.under.split_first() {
            Some((program, words)) => {
                let mut command = self.host.command(program);
                command.args(words).arg(binary());
                command
            }
            None => self.host.command(binary()),
        };
        command.args(&self.arguments).envs(self.environment).current_dir(&self.host.home);
        let what = format!("pgmahout {} on {}", self.arguments.join(" "), self.host.name);
        let mut running = start(command, what, self.stdin);
        running.limit = self.limit;
        running
    }

    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Runs on a terminal of its own; waits for each text in turn and then types its answer. Standard
    /// output and standard error are one there: `stdout`.
    pub fn terminal(self, answers: &[(&str, &str)]) -> Output {
        let line: Vec<String> =
            std::iter::once(quote(binary())).chain(self.arguments.iter().map(quote)).collect();
        let mut command = self.host.command("/usr/bin/script");
        command
            .args(["-q", "-e", "-c", &format!("exec {}", line.join(" ")), "/dev/null"])
            .env("TERM", "xterm")
            .envs(self.environment)
            .current_dir(&self.host.home)
            .stdin(Stdio::piped());
        let what = format!("pgmahout {} on {}, on a terminal", self.arguments.join(" "), self.host.name);
        let mut running = start_piped(command, what);
        for (question, answer) in answers {
            let deadline = Instant::now() + LIMIT;
            while !String::from_utf8_lossy(&running.stdout.lock().unwrap()).contains(question) {
                let ended = running.child.try_wait().unwrap();
                assert!(
                    ended.is_none() && Instant::now() < deadline,
                    "never asked {question:?}: {}",
                    String::from_utf8_lossy(&running.stdout.lock().unwrap())
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut stdin = running.child.stdin.as_ref().unwrap();
            stdin.write_all(answer.as_bytes()).unwrap();
        }
        running.wait()
    }
}

/// Any program under the same limit and with the same checks.
pub fn start(mut command: Command, what: String, stdin: Option<Vec<u8>>) -> Running {
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut running = start_piped(command, what);
    if let Some(bytes) = stdin {
        let mut pipe = running.child.stdin.take().unwrap();
        std::thread::spawn(move || {
            // It may end without reading.
            let _ = pipe.write_all(&bytes);
        });
    }
    running
}

fn start_piped(mut command: Command, what: String) -> Running {
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let (stdout, out) = collect(child.stdout.take().unwrap());
    let (stderr, err) = collect(child.stderr.take().unwrap());
    Running { child, what, started, limit: LIMIT, stdout, stderr, readers: vec![out, err] }
}

type Collected = Arc<Mutex<Vec<u8>>>;

fn collect(mut from: impl Read + Send + 'static) -> (Collected, JoinHandle<()>) {
    let collected = Collected::default();
    let into = collected.clone();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            into.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
    });
    (collected, reader)
}

pub struct Running {
    child: Child,
    what: String,
    started: Instant,
    limit: Duration,
    stdout: Collected,
    stderr: Collected,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    pub fn wait(mut self) -> Output {
        let text = |bytes: &Collected| String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > self.limit {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "{}: not done after {:?}\n{}\n{}",
                    self.what,
                    self.limit,
                    text(&self.stdout),
                    text(&self.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let elapsed = self.started.elapsed();
        // A server that it started may hold the pipes open if it was started carelessly: that hangs
        // `dotcloud run` too, so it is an error, not something to wait for.
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.readers.iter().any(|r| !r.is_finished()) {
            assert!(
                Instant::now() < deadline,
                "{}: it ended, but something that it started still holds its standard output or error",
                self.what
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        use std::os::unix::process::ExitStatusExt;
        Output {
            what: std::mem::take(&mut self.what),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            code: status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)),
            elapsed,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run left: its output, its exit code (negative: the signal that ended it), its time.
#[derive(Debug)]
pub struct Output {
    pub what: String,
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
    pub elapsed: Duration,
}

impl Output {
    fn all(&self) -> String {
        format!("{}: code {}\n--- stdout\n{}\n--- stderr\n{}", self.what, self.code, self.stdout, self.stderr)
    }

    /// It succeeded.
    #[track_caller]
    pub fn ok(self) -> Output {
        assert_eq!(self.code, 0, "{}", self.all());
        self
    }

    /// It succeeded and printed one JSON value, and nothing else, on standard output.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let output = self.ok();
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("not JSON: {e}\n{}", output.all()))
    }

    /// It failed with this code, and standard error ends with exactly this message and this hint
    /// (none when empty). Standard output is empty.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str, hint: &str) -> Output {
        let mut expected = format!("pgmahout: {text}\n");
        if !hint.is_empty() {
            expected += &format!("hint: {hint}\n");
        }
        let from = self.stderr.find("pgmahout: ").map_or("", |at| &self.stderr[at..]);
        assert_eq!(from, expected, "{}", self.all());
        assert_eq!(self.code, code, "{}", self.all());
        assert_eq!(self.stdout, "", "{}", self.all());
        self
    }

    /// The same of a run with --json: the error as data.
    #[track_caller]
    pub fn fails_json(self, code: i32, text: &str, hint: Option<&str>) -> Output {
        assert_eq!(self.code, code, "{}", self.all());
        let got: serde_json::Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.all()));
        let expected = serde_json::json!({"error": {"message": text, "hint": hint, "exit": code}});
        assert_eq!(got, expected, "{}", self.all());
        self
    }

    /// Its output, standard output and error, says this.
    #[track_caller]
    pub fn says(self, text: &str) -> Output {
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "does not say {text:?}\n{}",
            self.all()
        );
        self
    }

    #[track_caller]
    pub fn says_not(self, text: &str) -> Output {
        assert!(!self.stdout.contains(text) && !self.stderr.contains(text), "says {text:?}\n{}", self.all());
        self
    }
}
