//! Owns the app's platform as seen from here: the executables of its directory, called with a limit, and not believed
//! blindly. Their contract is scripts/platforms/README.md. herd, which stands beside them, is called in the same way.
//!
//! What a call has started is known before it begins its work: whoever is killed meanwhile leaves a record, by which
//! the next one ends it ([`end_left_behind`]).

use crate::blurb;
use crate::durable::Context as _;
use crate::error::{Error, Result, printable};
use crate::process;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What may take as long as the work behind it, which has limits of its own.
pub const LONGEST: Duration = Duration::from_secs(172_800);

/// An interrupt leaves a call as long to come to its end.
const GRACE: Duration = Duration::from_secs(10);

/// No answer is longer.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// A platform, for one app.
pub struct Platform {
    directory: PathBuf,
    herd: PathBuf,
    app: String,
    limit: Duration,
    /// Where the call that runs is recorded.
    record: RefCell<Option<PathBuf>>,
    /// A call that cannot be recorded is made all the same.
    unrecorded: Cell<bool>,
    /// What never to quote.
    secrets: RefCell<Vec<String>>,
}

/// A database instance, as the platform lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// HOST:PORT, in lower case.
    pub address: String,
}

/// A process type of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessType {
    /// Its name.
    pub name: String,
    /// How many there are to be.
    pub count: u32,
    /// `running`, `stopped`, `degraded` or `unknown`.
    pub state: String,
}

/// The config variables of a release. They hold passwords: there is no Debug.
#[derive(Clone, Deserialize)]
pub struct Config {
    /// The number of the release, where there is one.
    pub release: Option<u64>,
    /// Names and values.
    pub config: BTreeMap<String, String>,
}

/// Where an agent works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// On an instance of the app.
    Instance(String),
    /// Here: this same program.
    Here,
}

impl Seat {
    /// For a person.
    pub fn name(&self) -> &str {
        match self {
            Seat::Instance(name) => name,
            Seat::Here => "this machine",
        }
    }
}

enum Input<'a> {
    Nothing,
    Text(&'a str),
    /// The text, and then nothing, until the call is over or we are.
    Lifeline(&'a str),
}

struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// A call that runs, as it is recorded.
#[derive(Serialize, Deserialize)]
struct Recorded {
    what: String,
    group: i32,
    started: u64,
    boot: String,
}

impl Platform {
    /// The platform in `directory`, whose app must be `app`. `herd` is the command of that name.
    ///
    /// # Errors
    /// [`Error::MigrateUsage`] when there is no such directory or HERD_PLATFORM_TIMEOUT is no number of seconds.
    pub fn new(directory: &Path, herd: &Path, app: &str) -> Result<Platform> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        if !directory.is_dir() {
            let why = format!("there is no platform {}", directory.display());
            return Err(Error::MigrateUsage { why, hint: "it is a directory of executables".into() });
        }
        if !is_name(app) {
            let why = format!("{:?} is not the name of an app", printable(app));
            return Err(Error::MigrateUsage { why, hint: String::new() });
        }
        let seconds = match std::env::var("HERD_PLATFORM_TIMEOUT").ok().filter(|text| !text.is_empty()) {
            None => 60,
            Some(text) => text.parse().ok().filter(|n| (1..100_000).contains(n)).ok_or_else(|| {
                let why = format!("HERD_PLATFORM_TIMEOUT={} is not a number of seconds", printable(&text));
                Error::MigrateUsage { why, hint: "use for example 60".into() }
            })?,
        };
        Ok(Platform {
            directory: absolute(directory),
            herd: absolute(herd),
            app: app.to_owned(),
            limit: Duration::from_secs(seconds),
            record: RefCell::new(None),
            unrecorded: Cell::new(false),
            secrets: RefCell::default(),
        })
    }

    /// From now on each call is recorded there while it runs.
    pub fn record_in(&self, path: Option<PathBuf>) {
        *self.record.borrow_mut() = path;
    }

    /// From now on a full disk here is no reason not to call: on the way back.
    pub fn call_anyhow(&self) {
        self.unrecorded.set(true);
    }

    /// Whatever is quoted from now on is without this.
    pub fn hide(&self, secret: &str) {
        for secret in [secret.to_owned(), decoded(secret)] {
            if secret.len() > 3 && !self.secrets.borrow().contains(&secret) {
                self.secrets.borrow_mut().push(secret);
            }
        }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ten times what an answer may take: the limit of what starts, stops, makes or destroys.
    pub fn long(&self) -> Duration {
        self.limit * 10
    }

    /// What somebody else said, fit for a message: no secrets, nothing that a terminal would obey, not too long.
    pub fn quoted(&self, text: &str) -> String {
        let mut text = masked(text);
        for secret in &*self.secrets.borrow() {
            text = text.replace(secret.as_str(), "...");
        }
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        match text.char_indices().nth(500) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }

    // ---- the verbs

    /// The app's name.
    pub fn check_app(&self) -> Result<()> {
        let found = self.verb("app", &[], Input::Nothing, None)?;
        match found.trim_end_matches('\n') {
            name if name == self.app => Ok(()),
            name => Err(self.misbehaved("app", &format!("it answered {name:?} for the app {}", self.app))),
        }
    }

    /// Its database instances.
    pub fn instances(&self) -> Result<Vec<Listed>> {
        let text = self.verb("instances", &[], Input::Nothing, None)?;
        let mut found: Vec<Listed> = Vec::new();
        for line in text.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            let listed = match fields[..] {
                [name, state, address] if is_name(name) && is_state(state) && is_address(address) => {
                    Listed { name: name.to_owned(), address: address.to_ascii_lowercase() }
                }
                _ => {
                    return Err(self.no_line("instances", line, "NAME, STATE and HOST:PORT"));
                }
            };
            if found.iter().any(|other| other.name == listed.name || other.address == listed.address) {
                let why = format!("it answered {} at {} twice", listed.name, listed.address);
                return Err(self.misbehaved("instances", &why));
            }
            found.push(listed);
        }
        Ok(found)
    }

    /// The config variables as they are.
    pub fn config(&self) -> Result<Config> {
        let text = self.verb("config-list", &[], Input::Nothing, None)?;
        serde_json::from_str(&text)
            .map_err(|_| self.misbehaved("config-list", "it answered no JSON with release and config"))
    }

    /// Sets variables, in one release; its number. `what` is what the change is for.
    pub fn config_set(&self, values: &BTreeMap<String, String>, what: &str) -> Result<u64> {
        let text = serde_json::to_string(values).expect("names and values");
        let answer = self.verb("config-set", &[], Input::Text(&text), Some(what))?;
        self.release("config-set", &answer)
    }

    /// Unsets variables, in one release; its number.
    pub fn config_unset(&self, names: &[&str], what: &str) -> Result<u64> {
        let answer = self.verb("config-unset", names, Input::Nothing, Some(what))?;
        self.release("config-unset", &answer)
    }

    /// It answered this line, which is none of what its contract has.
    fn no_line(&self, verb: &str, line: &str, wanted: &str) -> Error {
        let line = self.quoted(&line.replace('\t', "<TAB>"));
        self.misbehaved(verb, &format!("it answered the line \"{line}\", which is not {wanted}"))
    }

    fn release(&self, verb: &str, answer: &str) -> Result<u64> {
        let number = answer.trim_end().parse().ok().filter(|_| answer.len() < 12);
        number.ok_or_else(|| self.misbehaved(verb, "it answered no release number"))
    }

    /// The process types of the app.
    pub fn processes(&self) -> Result<Vec<ProcessType>> {
        let text = self.verb("processes", &[], Input::Nothing, None)?;
        let parse = |line: &str| {
            let fields: Vec<_> = line.split('\t').collect();
            match fields[..] {
                [name, count, state] if is_name(name) && is_state(state) => Some(ProcessType {
                    name: name.to_owned(),
                    count: count.parse().ok()?,
                    state: state.to_owned(),
                }),
                _ => None,
            }
        };
        let checked =
            |line| parse(line).ok_or_else(|| self.no_line("processes", line, "NAME, COUNT and STATE"));
        text.lines().map(checked).collect()
    }

    /// Changes how many there are of each, and sees to it that it has.
    pub fn scale(&self, counts: &BTreeMap<String, u32>) -> Result<()> {
        if counts.is_empty() {
            return Ok(());
        }
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        self.verb("scale", &words, Input::Nothing, None)?;
        match self.not_scaled(counts)? {
            None => Ok(()),
            Some(why) => Err(self.misbehaved("scale", &why)),
        }
    }

    /// The first that there are not so many of, in words.
    pub fn not_scaled(&self, counts: &BTreeMap<String, u32>) -> Result<Option<String>> {
        let now = self.processes()?;
        let count = |name: &str| now.iter().find(|p| p.name == name).map_or(0, |p| p.count);
        let wrong = counts.iter().find(|(name, wanted)| count(name) != **wanted);
        Ok(wrong.map(|(name, wanted)| format!("{name} is {} now, not {wanted}", count(name))))
    }

    /// Whether the app is in maintenance, after it was turned on or off; `None` where the platform has no such thing.
    pub fn maintenance(&self, turn: Option<bool>) -> Result<Option<bool>> {
        let word = turn.map(|on| if on { "on" } else { "off" });
        let answer = match self.verb("maintenance", word.as_slice(), Input::Nothing, None) {
            Err(Error::PlatformCannot { .. }) => return Ok(None),
            other => other?,
        };
        let is = match answer.trim_end() {
            "on" => true,
            "off" => false,
            _ => return Err(self.misbehaved("maintenance", "it answered neither on nor off")),
        };
        if turn.is_some_and(|wanted| wanted != is) {
            return Err(self.misbehaved("maintenance", &format!("it answered {}", answer.trim_end())));
        }
        Ok(Some(is))
    }

    /// The one-off processes that run, in words; `None` where the platform cannot know.
    pub fn oneoffs(&self) -> Result<Option<Vec<String>>> {
        if !self.has("oneoffs") {
            return Ok(None);
        }
        let text = match self.verb("oneoffs", &[], Input::Nothing, None) {
            Err(Error::PlatformCannot { .. }) => return Ok(None),
            other => other?,
        };
        let parse = |line: &str| {
            let mut fields = line.splitn(3, '\t');
            let (at, since, command) = (fields.next()?, fields.next()?, fields.next()?);
            Some(self.quoted(&format!("{command} at {at}, since {since}")))
        };
        let checked =
            |line| parse(line).ok_or_else(|| self.no_line("oneoffs", line, "WHERE, SINCE and COMMAND"));
        text.lines().map(checked).collect::<Result<_>>().map(Some)
    }

    /// `pgmahout` with these words at `seat`: its answer. `url`, with a password in it, goes to its stdin, which is
    /// then held open until it is through. Each line of what it says meanwhile is handed to `line`.
    ///
    /// # Errors
    /// [`Error::Relayed`] with what it said of its failure.
    pub fn agent(
        &self,
        seat: &Seat,
        words: &[&str],
        url: Option<&str>,
        limit: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<Value> {
        let url = url.map(|url| format!("{url}\n"));
        let input = url.as_deref().map_or(Input::Nothing, Input::Lifeline);
        let ended = match seat {
            Seat::Instance(name) => {
                let all: Vec<&str> = ["pgmahout", "--json"].iter().chain(words).copied().collect();
                let quoted = shlex::try_join(all).map_err(|_| Error::MigrateUsage {
                    why: "a NUL cannot stand in an argument".into(),
                    hint: String::new(),
                })?;
                let program = self.program("run")?;
                self.call(&program, "run", &[name, &quoted], input, limit, None, line)?
            }
            Seat::Here => {
                let program = std::env::current_exe().on("find", Path::new("/proc/self/exe"))?;
                let all: Vec<&str> = std::iter::once("--json").chain(words.iter().copied()).collect();
                self.call(&program, words.first().unwrap_or(&"pgmahout"), &all, input, limit, None, line)?
            }
        };
        self.answer_of(seat.name(), ended)
    }

    /// herd with these words, for this app and platform: its answer, within `limit`.
    pub fn herd(&self, words: &[&str], limit: Duration) -> Result<Value> {
        let directory = self.directory.to_string_lossy().into_owned();
        let mut all = vec!["--json", "--platform", &directory, "--app", &self.app];
        all.extend(words);
        if !is_executable(&self.herd) {
            let why = format!("there is no executable {}", self.herd.display());
            return Err(Error::MigrateUsage { why, hint: "--herd says where herd is".into() });
        }
        let what = format!("herd {}", words.first().unwrap_or(&""));
        let ended = self.call(&self.herd, &what, &all, Input::Nothing, limit, None, &mut |_| {})?;
        self.answer_of("herd", ended)
    }

    /// The JSON object or list on the last line: a login profile may have printed before it.
    fn answer_of(&self, who: &str, ended: Ended) -> Result<Value> {
        let last = ended.stdout.trim_end().rsplit('\n').next().unwrap_or_default();
        let answer: Option<Value> = serde_json::from_str(last).ok();
        let answer = answer.filter(|answer| answer.is_object() || answer.is_array());
        let code = ended.status.code();
        let error = answer.as_ref().and_then(|answer| answer.get("error")).filter(|error| error.is_object());
        match (code, answer.as_ref(), error) {
            (Some(0), Some(answer), None) => return Ok(answer.clone()),
            (_, _, Some(error)) => {
                let text = |name: &str| error.get(name).and_then(Value::as_str).map(|t| self.quoted(t));
                if let Some(message) = text("message") {
                    let exit = error.get("exit").and_then(Value::as_u64).unwrap_or(1) as u8;
                    let message = format!("{who}: {message}");
                    return Err(Error::Relayed { host: who.into(), message, hint: text("hint"), exit });
                }
            }
            _ => {}
        }
        let said = self.first_error(&ended.stderr);
        let but = if said.is_empty() { String::new() } else { format!(": {said}") };
        Err(match code {
            Some(0) => Error::AgentUnknown { who: who.into() },
            Some(127) => Error::AgentMissing { who: who.into() },
            Some(255) => Error::AgentUnreachable { who: who.into(), why: said },
            _ => Error::AgentFailed { who: who.into(), why: format!("{}{but}", ended_text(ended.status)) },
        })
    }

    /// What a program said of its failure: its line with "error", or its last.
    fn first_error(&self, stderr: &str) -> String {
        let mut lines = stderr.lines().filter(|line| !line.trim().is_empty());
        let is_error = |line: &&str| {
            ["error", "pgmahout", "dotcloud", "ssh"].iter().any(|w| line.starts_with(&format!("{w}:")))
        };
        let line = lines.clone().find(is_error).or_else(|| lines.next_back()).unwrap_or_default();
        self.quoted(line)
    }

    // ---- calls

    fn has(&self, verb: &str) -> bool {
        is_executable(&self.directory.join(verb))
    }

    fn program(&self, verb: &str) -> Result<PathBuf> {
        let path = self.directory.join(verb);
        match is_executable(&path) {
            true => Ok(path),
            false => Err(self.misbehaved(verb, &format!("there is no executable {}", path.display()))),
        }
    }

    /// `dotcloud`: what its directory is called.
    pub fn name(&self) -> String {
        self.directory.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn misbehaved(&self, verb: &str, why: &str) -> Error {
        let why = self.quoted(why);
        Error::PlatformMisbehaves { platform: self.name(), path: self.directory.join(verb), why }
    }

    fn verb(&self, verb: &str, arguments: &[&str], input: Input, what: Option<&str>) -> Result<String> {
        let limit = match verb {
            "provision" | "destroy" | "scale" | "restart" => self.long(),
            "maintenance" if !arguments.is_empty() => self.long(),
            _ => self.limit,
        };
        let program = self.program(verb)?;
        let ended = self.call(&program, verb, arguments, input, limit, what, &mut |_| {})?;
        if ended.status.success() {
            return Ok(ended.stdout.replace('\0', ""));
        }
        let last = ended.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let said = self.quoted(last);
        let platform = self.name();
        let but = if said.is_empty() { String::new() } else { format!(": {said}") };
        Err(match ended.status.code() {
            Some(126 | 127) => self.misbehaved(verb, &format!("it cannot be run{but}")),
            Some(69) => Error::PlatformCannot { platform, verb: verb.into(), why: but },
            Some(code @ 1..=5) if !said.is_empty() => {
                Error::PlatformFailed { platform, verb: verb.into(), why: said, exit: code as u8 }
            }
            code => Error::PlatformFailed {
                why: format!("{}{but}", ended_text(ended.status)),
                exit: code.filter(|code| (2..=5).contains(code)).unwrap_or(1) as u8,
                platform,
                verb: verb.into(),
            },
        })
    }

    /// Runs it in a process group of its own. An interrupt lets it come to its end for a while.
    #[allow(clippy::too_many_arguments, reason = "each is something else of one call")]
    fn call(
        &self,
        program: &Path,
        what: &str,
        arguments: &[&str],
        input: Input,
        limit: Duration,
        reason: Option<&str>,
        line: &mut dyn FnMut(&str),
    ) -> Result<Ended> {
        process::check_interrupt()?;
        let spawn_error = |source| Error::Spawn { program: program.display().to_string(), source };
        // What it leaves running may hold them open for ever, which a pipe would have to wait for.
        let memory = |name: &str| {
            memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from).map_err(|e| spawn_error(e.into()))
        };
        let (stdout, stderr) = (memory("stdout")?, memory("stderr")?);
        // It waits for a word before it begins, which comes when it is recorded: who is killed before leaves nothing
        // that runs.
        let begin = match input {
            Input::Nothing => r#"IFS= read -r word || exit 125; exec "$0" "$@" </dev/null"#,
            _ => r#"IFS= read -r word || exit 125; exec "$0" "$@""#,
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", begin])
            .arg(program)
            .args(arguments)
            .env("HERD_APP", &self.app)
            .env_remove("HERD_WHAT")
            // A target that is attached while it is empty is not what the app is to use.
            .env("HERD_ATTACH_ONLY", "yes")
            .stdin(Stdio::piped())
            .stdout(stdout.try_clone().map_err(spawn_error)?)
            .stderr(stderr.try_clone().map_err(spawn_error)?)
            .process_group(0);
        if let Some(reason) = reason {
            command.env("HERD_WHAT", reason);
        }
        let child = command.spawn().map_err(spawn_error)?;
        let mut group = Group { child, over: false };
        drop(command);
        match self.record(what, group.child.id() as i32) {
            Err(_) if self.unrecorded.get() => {}
            other => other?,
        }
        let mut lifeline = group.child.stdin.take();
        let text = match input {
            Input::Nothing => String::new(),
            Input::Text(text) | Input::Lifeline(text) => text.to_owned(),
        };
        let (holding, held) = std::sync::mpsc::channel::<()>();
        let mut holding = matches!(input, Input::Lifeline(_)).then_some(holding);
        // In a thread, as it may not read, and nobody is to wait for that.
        if let Some(mut pipe) = lifeline.take() {
            thread::spawn(move || {
                let _ = pipe.write_all(format!("go\n{text}").as_bytes());
                let _ = held.recv();
            });
        }
        let deadline = Instant::now() + limit;
        let mut over: Option<(Instant, Error)> = None;
        let mut tail = Tail::default();
        let begun = Instant::now();
        let status = loop {
            let ended = group.child.try_wait().map_err(spawn_error)?;
            tail.read(&stderr, line);
            if let Some(status) = ended {
                break status;
            }
            let now = Instant::now();
            if over.is_none() {
                let interrupted = process::check_interrupt().err().map(|e| (now + GRACE, e));
                let slow = (now >= deadline).then(|| {
                    let (platform, verb) = (self.name(), what.to_owned());
                    (now, Error::PlatformSlow { platform, verb, limit })
                });
                let large = || {
                    let length = |file: &File| file.metadata().map_or(0, |m| m.len());
                    let large = length(&stdout).max(length(&stderr)) > OUTPUT_LIMIT;
                    large.then(|| (now, self.misbehaved(what, "its answer has no end")))
                };
                over = interrupted.or(slow).or_else(large);
                if over.is_some() {
                    // The agent at the other end sees that nobody waits for it any more.
                    holding = None;
                }
            }
            match &over {
                Some((at, _)) if now >= *at + Duration::from_secs(2) => group.signal(Signal::SIGKILL),
                Some((at, _)) if now >= *at => group.signal(Signal::SIGTERM),
                _ => {}
            }
            // Quick answers are seen quickly.
            thread::sleep((begun.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(50)));
        };
        drop(holding);
        tail.end(line);
        // On an instance nothing goes on once its command has ended.
        group.over = what != "run";
        drop(group);
        self.forget_record();
        match over {
            // What came to its good end all the same is done.
            Some((_, Error::Interrupted)) if status.success() => {}
            Some((_, error)) => return Err(error),
            None => {}
        }
        Ok(Ended { status, stdout: content(&stdout), stderr: content(&stderr) })
    }

    fn record(&self, what: &str, group: i32) -> Result<()> {
        let record = self.record.borrow();
        let Some(path) = &*record else { return Ok(()) };
        let recorded = Recorded {
            what: what.to_owned(),
            group,
            started: process::start_time(group).unwrap_or(0),
            boot: boot(),
        };
        let text = serde_json::to_vec(&recorded).expect("plain data");
        // Not synced: after a crash of the machine there is nothing left to end.
        let temporary = path.with_extension("child.new");
        let mut options = File::options();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        opened.and_then(|mut file| file.write_all(&text)).on("write", &temporary)?;
        fs::rename(&temporary, path).on("rename", &temporary)
    }

    fn forget_record(&self) {
        if let Some(path) = &*self.record.borrow() {
            let _ = fs::remove_file(path);
        }
    }
}

/// A child that heads a process group, which ends with it.
struct Group {
    child: Child,
    over: bool,
}

impl Group {
    fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.over {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// The lines of a file that grows.
#[derive(Default)]
struct Tail {
    at: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn read(&mut self, file: &File, line: &mut dyn FnMut(&str)) {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = file.read_at(&mut buffer, self.at) {
            self.at += n as u64;
            for byte in &buffer[..n] {
                match byte {
                    b'\n' => {
                        line(&String::from_utf8_lossy(&self.rest));
                        self.rest.clear();
                    }
                    byte if self.rest.len() < 4096 => self.rest.push(*byte),
                    _ => {}
                }
            }
        }
    }

    fn end(&mut self, line: &mut dyn FnMut(&str)) {
        if !self.rest.is_empty() {
            line(&String::from_utf8_lossy(&self.rest));
        }
    }
}

fn content(file: &File) -> String {
    let length = file.metadata().map_or(0, |m| m.len()).min(OUTPUT_LIMIT);
    let mut bytes = vec![0; length as usize];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Ends the call that a killed run has recorded and left running, and says what it was. It has a few seconds to come
/// to its end by itself: the agent behind it does once its stdin is over.
pub fn end_left_behind(record: &Path) -> Option<String> {
    let recorded: Recorded = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    let gone = || process::start_time(recorded.group) != Some(recorded.started);
    let mut left = None;
    if recorded.boot == boot() && recorded.group > 1 && !gone() {
        left = Some(recorded.what);
        let group = Pid::from_raw(recorded.group);
        let wait = |seconds| process::wait_until(Duration::from_secs(seconds), gone);
        if !wait(4) {
            let _ = killpg(group, Signal::SIGTERM);
            if !wait(4) {
                let _ = killpg(group, Signal::SIGKILL);
                wait(2);
            }
        }
    }
    let _ = fs::remove_file(record);
    left
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn ended_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

/// As platforms name apps, instances and process types.
fn is_name(text: &str) -> bool {
    text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_state(text: &str) -> bool {
    ["running", "stopped", "degraded", "unknown"].contains(&text)
}

fn is_address(text: &str) -> bool {
    let host = |c: char| c.is_ascii_alphanumeric() || "[]._:%-".contains(c);
    text.rsplit_once(':')
        .is_some_and(|(name, port)| !name.is_empty() && name.chars().all(host) && port.parse::<u16>().is_ok())
}

/// Without the passwords of URLs, encoded or not: what lies between the first `:` behind a `://` and the last `@` before
/// the word's end is taken for one. Better too much than a part of one.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        rest = after;
        let end = after.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(after.len());
        if let Some(sign) = after[..end].rfind('@')
            && let Some(colon) = after[..sign].find(':')
        {
            out.push_str(&after[..colon + 1]);
            out.push_str("...");
            rest = &after[sign..];
        }
    }
    out.push_str(rest);
    out
}

/// A database's URL, taken apart as far as anybody here needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// HOST:PORT, in lower case.
    pub address: String,
    /// The database's name.
    pub database: String,
    /// There is a password in it.
    pub has_password: bool,
}

/// Takes a `postgres://` URL apart; `None` when it is none.
pub fn address_of(url: &str) -> Option<Address> {
    if url.chars().any(|c| c.is_control() || c == ' ') {
        return None;
    }
    let (_, rest) = url.split_once("://").filter(|_| blurb::is_database_url(url))?;
    let (user, rest) = match blurb::end_of_user(rest) {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    let (host, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
        (!name.contains(':') || name.ends_with(']')) && port.parse::<u16>().is_ok()
    });
    let address = if has_port { host.to_owned() } else { format!("{host}:5432") };
    if host.is_empty() || !is_address(&address) {
        return None;
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let database = path.trim_start_matches('/');
    let user_name = user.map(|user| user.split(':').next().unwrap_or_default()).unwrap_or_default();
    let database = decoded(if database.is_empty() { user_name } else { database });
    if database.is_empty() {
        return None;
    }
    let has_password = user.is_some_and(|user| user.contains(':'))
        || query.split('&').any(|word| word.starts_with("password="));
    Some(Address { address: address.to_ascii_lowercase(), database, has_password })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = (*first == b'%').then(|| more.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &more[2..] } else { more };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The password in a URL, as it stands there, for [`Platform::hide`].
pub fn password_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    rest[..blurb::end_of_user(rest)?].split_once(':').map(|(_, password)| password)
}

/// Names that more than one has.
pub fn names_of(listed: &[Listed]) -> BTreeSet<String> {
    listed.iter().map(|i| i.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let at = |url| address_of(url).map(|a| (a.address, a.database, a.has_password));
        let is = |address: &str, database: &str, password| {
            Some((address.to_owned(), database.to_owned(), password))
        };
        assert_eq!(
            at("postgres://u:p@DB.example:6432/main?sslmode=require"),
            is("db.example:6432", "main", true)
        );
        assert_eq!(at("postgresql://u@db/a%20b"), is("db:5432", "a b", false));
        assert_eq!(at("postgres://u@[::1]/main"), is("[::1]:5432", "main", false));
        assert_eq!(at("postgres://u@[::1]:77"), is("[::1]:77", "u", false));
        assert_eq!(at("postgres://db/main?password=x"), is("db:5432", "main", true));
        assert_eq!(at("POSTGRES://u:a/b?c#d@db:1/main"), is("db:1", "main", true));
        assert_eq!(at("mysql://u:p@db/main"), None);
        assert_eq!(at("postgres:///main"), None);
        assert_eq!(at("postgres://u@db/ma in"), None);
        assert_eq!(password_of("postgres://u:p:q@db/x"), Some("p:q"));
        assert_eq!(password_of("postgres://u:a/b?c#d@db/x"), Some("a/b?c#d"));
        assert_eq!(password_of("postgres://u@db/x:y@z"), None);
    }

    #[test]
    fn passwords_are_not_quoted() {
        assert_eq!(masked("at postgres://u:p@ss@db/x, http://h/"), "at postgres://u:...@db/x, http://h/");
        assert_eq!(masked("is postgres://u:a/b?c#d@e@db/x now"), "is postgres://u:...@db/x now");
        assert_eq!(masked("postgres://u@db:5432/x"), "postgres://u@db:5432/x");
    }
}
