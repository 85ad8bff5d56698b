//! Owns SSH: connecting within a limit, checking the host key, proving who we are, and running a command with its
//! streams. [`Remote`] is the seam: libssh2, the machine's own `ssh`, or a local pipe in tests.

mod builtin;
mod pipe;

pub use pipe::Local;

use crate::blurb::SshEndpoint;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::settings::SshClient;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

/// A machine that commands can be run on.
pub trait Remote: Send + Sync {
    /// Starts a shell command there.
    fn exec(&self, command: &str) -> Result<Box<dyn RemoteProcess>>;
    /// A second, independent connection to the same place.
    fn again(&self) -> Result<Box<dyn Remote>>;
    /// A client that moves many bytes for less, to the same account of the same machine, where there is one that may be
    /// used. What went wrong with it is no error: this one does all that it does.
    fn for_bulk(&self) -> Option<Box<dyn Remote>> {
        None
    }
    /// What error texts call it.
    fn label(&self) -> &str;
    /// How long a command that is started from now on may think before its next byte.
    fn set_patience(&self, _: Duration) {}
    /// Set when this connection was the first to this host: its fingerprint.
    fn first_seen(&self) -> Option<&str> {
        None
    }
}

/// A command that runs there: reading gives its stdout, writing feeds its stdin.
pub trait RemoteProcess: Read + Write + Send {
    /// Tells it that its stdin is over.
    fn send_eof(&mut self) -> std::io::Result<()>;
    /// Waits for its end.
    fn finish(self: Box<Self>) -> Result<Ended>;
}

/// How a remote command ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Exit status; -1 when it was killed or the connection broke.
    pub status: i32,
    /// What it wrote to stderr, at most 64 kB.
    pub stderr: String,
}

/// Runs a command to its end and gives its stdout; a status other than 0 is an error.
pub fn run(remote: &dyn Remote, command: &str, input: &[u8]) -> Result<Vec<u8>> {
    let broken = |why: std::io::Error| Error::SshBroken { host: remote.label().into(), why: why.to_string() };
    let mut process = remote.exec(command)?;
    process.write_all(input).map_err(broken)?;
    process.send_eof().map_err(broken)?;
    let mut stdout = Vec::new();
    Read::by_ref(&mut process).take(4 << 20).read_to_end(&mut stdout).map_err(broken)?;
    let ended = process.finish()?;
    if ended.status == 0 {
        return Ok(stdout);
    }
    let said = if ended.stderr.trim().is_empty() {
        String::from_utf8_lossy(&stdout).into_owned()
    } else {
        ended.stderr
    };
    Err(Error::RemoteCommand {
        host: remote.label().into(),
        status: ended.status,
        said: said.trim().to_owned(),
    })
}

/// `text` as one word of a POSIX shell.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What a connection needs to know of this side.
#[derive(Clone)]
pub struct Identity {
    /// User name when the endpoint names none.
    pub user: String,
    /// Private key files.
    pub keys: Vec<PathBuf>,
    /// Known host keys, in OpenSSH's format.
    pub known_hosts: PathBuf,
    /// The one host key to accept, as `SHA256:<base64>`.
    pub pinned: Option<String>,
    /// Limit of connecting, and of every wait for a byte.
    pub timeout: Duration,
    /// OpenSSH's configuration, when it is not where that looks for it.
    pub configuration: Option<PathBuf>,
    /// Whose client connects.
    pub client: SshClient,
}

/// A remote command may think this long before its next byte; the source sends a sign of life more often.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Connects, and proves that commands can be run there.
pub fn connect(endpoint: &SshEndpoint, identity: &Identity) -> Result<Box<dyn Remote>> {
    let builtin = || Ok(Box::new(builtin::Ssh::connect(endpoint, identity)?) as Box<dyn Remote>);
    let system = || Ok(Box::new(pipe::System::connect(endpoint, identity)?) as Box<dyn Remote>);
    match identity.client {
        SshClient::Builtin => builtin(),
        SshClient::System => system(),
        SshClient::Auto => builtin().or_else(|error| {
            // A name or a key that only the configuration knows of.
            let may_know_better =
                matches!(error, Error::SshUnreachable { .. } | Error::SshAuthentication { .. })
                    && identity.pinned.is_none()
                    && pipe::has_configuration(identity);
            match may_know_better {
                true => system().map_err(|_| error),
                false => Err(error),
            }
        }),
    }
}

impl Identity {
    /// This instance's identity.
    pub fn of(instance: &Instance, pinned: Option<String>) -> Identity {
        let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        Identity {
            configuration: Some(instance.home.join(".ssh/config"))
                .filter(|path| path.exists() && me.as_ref().is_none_or(|me| me.dir != instance.home)),
            user: me.map_or_else(|| "postgres".into(), |user| user.name),
            keys: instance.identities.clone(),
            known_hosts: instance.known_hosts.clone(),
            pinned,
            timeout: instance.connect_timeout,
            client: instance.ssh_client,
        }
    }
}

fn label(endpoint: &SshEndpoint) -> String {
    let host = &endpoint.host;
    if host.contains(':') {
        format!("[{host}]:{}", endpoint.port)
    } else {
        format!("{host}:{}", endpoint.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_word_stays_one_word() {
        let nasty = "a 'b' $(c) \"d\" ; e\n-f";
        let command = format!("printf %s {}", shell_word(nasty));
        assert_eq!(run(&Local, &command, b"").unwrap(), nasty.as_bytes());
    }

    #[test]
    fn a_remote_failure_is_its_stderr() {
        let error = run(&Local, "echo no room >&2; exit 9", b"").unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }
}
