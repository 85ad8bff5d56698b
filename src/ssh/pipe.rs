//! Owns what runs behind pipes: the machine's own `ssh`, and, for tests and copies within one host, a shell.

use super::{Ended, Identity, Remote, RemoteProcess, SILENCE_LIMIT, label, run};
use crate::blurb::SshEndpoint;
use crate::error::{Error, Result};
use crate::process::{self, wait_for as wait_until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::User;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Of what a command says on stderr.
const STDERR_LIMIT: u64 = 64 * 1024;

/// The machine's `ssh`, a process for each command.
pub struct System {
    program: PathBuf,
    arguments: Vec<String>,
    label: String,
    patience: AtomicU64,
}

/// Whether OpenSSH has anything to read that libssh2 does not know.
pub fn has_configuration(identity: &Identity) -> bool {
    let own = || User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|me| me.dir.join(".ssh/config"));
    identity.configuration.is_some() || own().is_some_and(|path| path.exists())
}

impl System {
    /// Finds `ssh`, and runs a command that does nothing.
    pub fn connect(endpoint: &SshEndpoint, identity: &Identity) -> Result<System> {
        let label = label(endpoint);
        let failed = |why: String| Error::SshUnreachable { host: label.clone(), why };
        if identity.pinned.is_some() {
            return Err(failed("--host-key is not for the machine's own ssh, which has known_hosts".into()));
        }
        // It comes from a blurb, and ends in ssh's own command lines (ProxyCommand).
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:_-%".contains(c);
        if endpoint.host.starts_with('-') || !endpoint.host.chars().all(plain) {
            return Err(failed("that is no name of a host".into()));
        }
        let program = which::which("ssh").map_err(|_| failed("there is no ssh in the PATH".into()))?;
        // No shared connection: its master would keep our pipes open, and each session is to have a processor of its own.
        let mut arguments: Vec<String> =
            ["-T", "-x", "-a", "-S", "none", "-o", "BatchMode=yes"].map(str::to_owned).into();
        if let Some(configuration) = &identity.configuration {
            arguments.extend(["-F".to_owned(), configuration.display().to_string()]);
        }
        let mut option = |text: String| arguments.extend(["-o".to_owned(), text]);
        option(format!("ConnectTimeout={}", identity.timeout.as_secs().max(1)));
        option("ServerAliveInterval=15".into());
        option("ServerAliveCountMax=4".into());
        option(format!("UserKnownHostsFile=\"{}\"", identity.known_hosts.display()));
        for key in identity.keys.iter().filter(|key| key.exists()) {
            arguments.extend(["-i".to_owned(), key.display().to_string()]);
        }
        // What the blurb leaves open, the configuration may say.
        if endpoint.port != 22 {
            arguments.extend(["-p".to_owned(), endpoint.port.to_string()]);
        }
        if let Some(user) = &endpoint.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        let host = ["--".to_owned(), endpoint.host.clone()];
        if let Some(ciphers) = faster_ciphers(&program, &arguments, &host) {
            arguments.extend(["-c".to_owned(), ciphers]);
        }
        arguments.extend(host);
        let patience = AtomicU64::new(SILENCE_LIMIT.as_millis() as u64);
        let system = System { program, arguments, label: label.clone(), patience };
        match run(&system, "true", b"") {
            Ok(_) => Ok(system),
            Err(Error::RemoteCommand { said, .. }) => {
                let why = said.lines().last().unwrap_or("it said nothing").to_owned();
                Err(failed(format!("{} says: {}", system.program.display(), crate::error::printable(&why))))
            }
            Err(error) => Err(error),
        }
    }
}

/// Those that the configuration allows, with AES-GCM first where the processor has AES: OpenSSH prefers another one, of
/// half the speed.
fn faster_ciphers(program: &PathBuf, arguments: &[String], host: &[String]) -> Option<String> {
    const FAST: &str = "aes128-gcm@openssh.com";
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    let has_aes = false;
    let mut ask = Command::new(program);
    ask.arg("-G").args(arguments).args(host).stdin(Stdio::null());
    let said = process::without_secrets(&mut ask).output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let allowed = text.lines().find_map(|line| line.strip_prefix("ciphers "))?;
    let others: Vec<&str> = allowed.split(',').filter(|name| *name != FAST).collect();
    let changes = has_aes && others.len() < allowed.split(',').count() && !allowed.starts_with(FAST);
    changes.then(|| format!("{FAST},{}", others.join(",")))
}

impl Remote for System {
    fn exec(&self, command: &str) -> Result<Box<dyn RemoteProcess>> {
        let mut ssh = Command::new(&self.program);
        ssh.args(&self.arguments).arg(command);
        let limit = Duration::from_millis(self.patience.load(Ordering::Relaxed));
        Ok(Box::new(Piped::start(ssh, limit, Some(self.label.clone()))?))
    }

    fn again(&self) -> Result<Box<dyn Remote>> {
        Ok(Box::new(System {
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            label: self.label.clone(),
            patience: AtomicU64::new(SILENCE_LIMIT.as_millis() as u64),
        }))
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn set_patience(&self, limit: Duration) {
        self.patience.store(limit.as_millis() as u64, Ordering::Relaxed);
    }
}

/// The same machine, by a pipe: for tests, and for a copy between two directories of one host.
pub struct Local;

impl Remote for Local {
    fn exec(&self, command: &str) -> Result<Box<dyn RemoteProcess>> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        Ok(Box::new(Piped::start(shell, SILENCE_LIMIT, None)?))
    }

    fn again(&self) -> Result<Box<dyn Remote>> {
        Ok(Box::new(Local))
    }

    fn label(&self) -> &str {
        "this machine"
    }
}

/// A child and its pipes. It ends with this.
struct Piped {
    child: Child,
    limit: Duration,
    /// Of the ssh that it is, when it is one.
    host: Option<String>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Piped {
    fn start(mut command: Command, limit: Duration, host: Option<String>) -> Result<Piped> {
        let program = command.get_program().to_string_lossy().into_owned();
        let command = process::without_secrets(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Spawn { program, source })?;
        let pipe = child.stderr.take().expect("piped");
        // Read all the time: a pipe that is full would stop it.
        let stderr = std::thread::spawn(move || {
            let (mut pipe, mut kept) = (pipe, Vec::new());
            let _ = (&mut pipe).take(STDERR_LIMIT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
            kept
        });
        Ok(Piped { child, limit, host, stderr: Some(stderr) })
    }
}

/// Waits until a pipe is ready, or its other end is gone.
fn wait_for(pipe: BorrowedFd, wanted: PollFlags, limit: Duration) -> std::io::Result<()> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pipe, wanted)], timeout)? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Read for Piped {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let stdout = self.child.stdout.as_mut().expect("piped");
        wait_for(stdout.as_fd(), PollFlags::POLLIN, self.limit)?;
        stdout.read(buffer)
    }
}

impl Write for Piped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let stdin = self.child.stdin.as_mut().ok_or(ErrorKind::BrokenPipe)?;
        wait_for(stdin.as_fd(), PollFlags::POLLOUT, self.limit)?;
        // What a pipe is sure to take once there is room in it: more would wait without a limit.
        stdin.write(&bytes[..bytes.len().min(nix::libc::PIPE_BUF)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl RemoteProcess for Piped {
    fn send_eof(&mut self) -> std::io::Result<()> {
        self.child.stdin = None;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Ended> {
        self.child.stdin = None;
        let left = std::io::copy(&mut *self, &mut std::io::sink());
        if let (Err(error), Some(host)) = (left, &self.host) {
            return Err(Error::SshBroken { host: host.clone(), why: error.to_string() });
        }
        let program = if self.host.is_some() { "ssh" } else { "sh" };
        let failed = |source| Error::Spawn { program: program.into(), source };
        let limit = self.limit;
        let ended = wait_until(limit, || self.child.try_wait().map_err(failed))?;
        let status = match ended {
            Some(status) => status,
            None => {
                let _ = self.child.kill();
                self.child.wait().map_err(failed)?
            }
        };
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(Ended { status: status.code().unwrap_or(-1), stderr })
    }
}
