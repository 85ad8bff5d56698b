//! Owns the SSH client that is part of this program: libssh2. It needs nothing of the machine but keys and known hosts.

use super::pipe::System;
use super::{Ended, Identity, Remote, RemoteProcess, SILENCE_LIMIT, label};
use crate::blurb::SshEndpoint;
use crate::durable::{self, Context};
use crate::error::{Error, Result};
use crate::net;
use crate::process::check_interrupt;
use crate::settings::SshClient;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use ssh2::{CheckResult, ErrorCode, HostKeyType, KnownHostFileKind, MethodType, Session};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An authenticated SSH connection.
pub struct Ssh {
    line: Arc<Line>,
    endpoint: SshEndpoint,
    identity: Identity,
    label: String,
    first_seen: Option<String>,
}

/// AES-GCM costs a fraction of chacha20 where the processor has AES (DESIGN.md); elsewhere it is the
/// other way round.
fn ciphers() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    if has_aes {
        "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr"
    } else {
        "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,aes256-ctr"
    }
}

/// sshd hangs up at random on those who come while too many others are about to log in (MaxStartups, from 10 on): as
/// often a further try is made, after a pause that doubles and is nobody else's.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(150);

impl Ssh {
    /// Connects, checks the host key, authenticates.
    pub fn connect(endpoint: &SshEndpoint, identity: &Identity) -> Result<Ssh> {
        let begin = Instant::now();
        for n in 0..TRIES - 1 {
            match Ssh::try_connect(endpoint, identity) {
                Err(Attempt::HungUp(_)) if begin.elapsed() < identity.timeout => {
                    check_interrupt()?;
                    std::thread::sleep(
                        FIRST_PAUSE * (1 << n) + FIRST_PAUSE * (1 << n) * u32::from(dice()) / 256,
                    );
                }
                Err(Attempt::HungUp(error) | Attempt::Failed(error)) => return Err(error),
                Ok(ssh) => return Ok(ssh),
            }
        }
        Ssh::try_connect(endpoint, identity).map_err(|attempt| match attempt {
            Attempt::HungUp(error) | Attempt::Failed(error) => error,
        })
    }

    fn try_connect(endpoint: &SshEndpoint, identity: &Identity) -> std::result::Result<Ssh, Attempt> {
        let label = label(endpoint);
        let stream = net::connect(&endpoint.host, endpoint.port, identity.timeout)
            .map_err(|e| Error::SshUnreachable { host: label.clone(), why: e.to_string() })?;
        let broken =
            |e: ssh2::Error| Error::SshUnreachable { host: label.clone(), why: e.message().to_owned() };
        let mut session = Session::new().map_err(broken)?;
        session.set_timeout(identity.timeout.as_millis() as u32);
        session.method_pref(MethodType::CryptCs, ciphers()).map_err(broken)?;
        session.method_pref(MethodType::CryptSc, ciphers()).map_err(broken)?;
        let known = KnownKeys::read(&identity.known_hosts)?;
        if let Some(algorithms) = known.preferred_algorithms(&session, endpoint)? {
            session.method_pref(MethodType::HostKey, &algorithms).map_err(broken)?;
        }
        session.set_tcp_stream(stream);
        session.handshake().map_err(|e| match e.code() {
            ErrorCode::Session(BANNER_RECV | SOCKET_DISCONNECT | SOCKET_RECV) => Attempt::HungUp(broken(e)),
            _ => Attempt::Failed(broken(e)),
        })?;
        let first_seen = check_host_key(&session, endpoint, &label, identity, &known)?;
        authenticate(&session, endpoint, &label, identity)?;
        session.set_timeout(SILENCE_LIMIT.as_millis() as u32);
        let line = Arc::new(Line { session });
        Ok(Ssh { line, endpoint: endpoint.clone(), identity: identity.clone(), label, first_seen })
    }
}

/// How a try to connect failed.
enum Attempt {
    /// The other end hung up before it had shown who it is.
    HungUp(Error),
    /// In any other way.
    Failed(Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Attempt {
        Attempt::Failed(error)
    }
}

/// LIBSSH2_ERROR_BANNER_RECV, _SOCKET_DISCONNECT and _SOCKET_RECV (libssh2.h)
const BANNER_RECV: i32 = -2;
const SOCKET_DISCONNECT: i32 = -13;
const SOCKET_RECV: i32 = -43;

fn dice() -> u8 {
    let mut byte = [0];
    let _ = openssl::rand::rand_bytes(&mut byte);
    byte[0]
}

/// The lines of known_hosts that libssh2 can read. `@revoked` and `@cert-authority` lines are not among
/// them; a revoked key is refused here, by its own text.
struct KnownKeys {
    path: PathBuf,
    lines: Vec<String>,
    revoked: Vec<String>,
}

const KEY_TYPES: &[(&str, &str)] = &[
    ("ssh-ed25519", "ssh-ed25519"),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
    ("ssh-rsa", "rsa-sha2-512,rsa-sha2-256,ssh-rsa"),
];

impl KnownKeys {
    fn read(path: &Path) -> Result<KnownKeys> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).on("read", path),
        };
        let mut keys = KnownKeys { path: path.into(), lines: Vec::new(), revoked: Vec::new() };
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if let Some(rest) = line.strip_prefix("@revoked") {
                keys.revoked.extend(rest.split_whitespace().nth(2).map(str::to_owned));
            } else if !line.starts_with('@') {
                keys.lines.push(line.to_owned());
            }
        }
        Ok(keys)
    }

    fn check(
        &self,
        session: &Session,
        endpoint: &SshEndpoint,
        key: &[u8],
        only: &str,
    ) -> Result<CheckResult> {
        let error = |e: ssh2::Error| Error::File {
            action: "understand",
            path: self.path.clone(),
            source: std::io::Error::other(e.message().to_owned()),
        };
        let mut known = session.known_hosts().map_err(error)?;
        for line in
            self.lines.iter().filter(|l| l.split_whitespace().nth(1).is_some_and(|t| t.contains(only)))
        {
            // A line it cannot read is a line that OpenSSH would pass over as well.
            let _ = known.read_str(line, KnownHostFileKind::OpenSSH);
        }
        // Not check_port: it falls back to an entry without a port, which is another server's (port 22).
        Ok(match endpoint.port {
            22 => known.check(&endpoint.host, key),
            port => known.check(&format!("[{}]:{port}", endpoint.host), key),
        })
    }

    /// Host key algorithms with the types first that are known for this host: otherwise a host known by
    /// its RSA key would seem changed when it offers its Ed25519 key.
    fn preferred_algorithms(&self, session: &Session, endpoint: &SshEndpoint) -> Result<Option<String>> {
        let (mut known, mut others) = (Vec::new(), Vec::new());
        for (key_type, algorithms) in KEY_TYPES {
            let never_a_key = key_type.as_bytes();
            let found = self.check(session, endpoint, never_a_key, key_type)?;
            let list = if matches!(found, CheckResult::Mismatch) { &mut known } else { &mut others };
            list.push(*algorithms);
        }
        if known.is_empty() {
            return Ok(None);
        }
        known.append(&mut others);
        Ok(Some(known.join(",")))
    }
}

fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

fn check_host_key(
    session: &Session,
    endpoint: &SshEndpoint,
    label: &str,
    identity: &Identity,
    known: &KnownKeys,
) -> Result<Option<String>> {
    let host = label.to_owned();
    let Some((key, key_type)) = session.host_key() else {
        return Err(Error::SshUnreachable { host, why: "it showed no host key".into() });
    };
    let offered = fingerprint(key);
    let encoded = base64::engine::general_purpose::STANDARD.encode(key);
    if known.revoked.contains(&encoded) {
        return Err(Error::HostKeyRevoked { host, offered, file: identity.known_hosts.clone() });
    }
    if let Some(pinned) = &identity.pinned {
        let same = pinned.trim_end_matches('=') == offered;
        return if same {
            Ok(None)
        } else {
            Err(Error::HostKeyNotPinned { host, offered, pinned: pinned.clone() })
        };
    }
    match known.check(session, endpoint, key, "")? {
        CheckResult::Match => Ok(None),
        CheckResult::NotFound => {
            remember(&identity.known_hosts, endpoint, key_type, &encoded)?;
            Ok(Some(offered))
        }
        CheckResult::Mismatch => {
            Err(Error::HostKeyChanged { host, offered, file: identity.known_hosts.clone() })
        }
        CheckResult::Failure => {
            Err(Error::SshUnreachable { host, why: "its host key could not be checked".into() })
        }
    }
}

fn remember(path: &Path, endpoint: &SshEndpoint, key_type: HostKeyType, key: &str) -> Result<()> {
    durable::create_private_directory(durable::parent(path))?;
    let name = match endpoint.port {
        22 => endpoint.host.clone(),
        port => format!("[{}]:{port}", endpoint.host),
    };
    let key_type = match key_type {
        HostKeyType::Rsa => "ssh-rsa",
        HostKeyType::Ecdsa256 => "ecdsa-sha2-nistp256",
        HostKeyType::Ecdsa384 => "ecdsa-sha2-nistp384",
        HostKeyType::Ecdsa521 => "ecdsa-sha2-nistp521",
        HostKeyType::Ed25519 => "ssh-ed25519",
        _ => {
            let why = "its host key is of a kind that cannot be remembered".into();
            return Err(Error::SshUnreachable { host: name, why });
        }
    };
    let unfinished = fs::read(path).is_ok_and(|text| text.last().is_some_and(|byte| *byte != b'\n'));
    let mut file =
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).on("open", path)?;
    let line = format!("{}{name} {key_type} {key}\n", if unfinished { "\n" } else { "" });
    file.write_all(line.as_bytes()).on("write", path)?;
    file.sync_all().on("sync", path)
}

/// The agent's keys first, as OpenSSH does; but never so many that the server hangs up (MaxAuthTries is 6)
/// before the key files have had their turn.
fn authenticate(session: &Session, endpoint: &SshEndpoint, label: &str, identity: &Identity) -> Result<()> {
    let user = endpoint.user.as_deref().unwrap_or(&identity.user);
    let mut tried = Vec::new();
    let agent_tries = 5usize.saturating_sub(identity.keys.len()).max(1);
    if std::env::var_os("SSH_AUTH_SOCK").is_some()
        && let Ok(mut agent) = session.agent()
        && agent.connect().is_ok()
        && agent.list_identities().is_ok()
    {
        for key in agent.identities().unwrap_or_default().iter().take(agent_tries) {
            if agent.userauth(user, key).is_ok() {
                return Ok(());
            }
            tried.push(format!("{} of the SSH agent", crate::error::printable(key.comment())));
        }
    }
    for key in &identity.keys {
        match session.userauth_pubkey_file(user, None, key, None) {
            Ok(()) => return Ok(()),
            Err(e) => tried.push(format!("{} ({})", key.display(), e.message())),
        }
    }
    Err(Error::SshAuthentication {
        host: label.to_owned(),
        user: user.to_owned(),
        tried: if tried.is_empty() { "no key was found".into() } else { tried.join(", ") },
    })
}

impl Remote for Ssh {
    fn exec(&self, command: &str) -> Result<Box<dyn RemoteProcess>> {
        let broken = |e: ssh2::Error| Error::SshBroken { host: self.label.clone(), why: e.message().into() };
        let mut channel = self.line.session.channel_session().map_err(broken)?;
        channel.exec(command).map_err(broken)?;
        let line = self.line.clone();
        Ok(Box::new(SshProcess { channel: Some(channel), line, label: self.label.clone() }))
    }

    fn again(&self) -> Result<Box<dyn Remote>> {
        Ok(Box::new(Ssh::connect(&self.endpoint, &self.identity)?))
    }

    /// OpenSSH's, without its configuration, which might lead elsewhere: it decrypts whole packets at once, libssh2 sixteen
    /// bytes.
    fn for_bulk(&self) -> Option<Box<dyn Remote>> {
        if self.identity.client != SshClient::Auto {
            return None;
        }
        let user = self.endpoint.user.clone().unwrap_or_else(|| self.identity.user.clone());
        let endpoint = SshEndpoint { user: Some(user), ..self.endpoint.clone() };
        let identity = Identity { configuration: Some("none".into()), ..self.identity.clone() };
        System::connect(&endpoint, &identity).ok().map(|system| Box::new(system) as Box<dyn Remote>)
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn set_patience(&self, limit: Duration) {
        self.line.session.set_timeout(limit.as_millis() as u32);
    }

    fn first_seen(&self) -> Option<&str> {
        self.first_seen.as_deref()
    }
}

/// The good-bye of a channel or a session may take so long: the line may be gone.
const GOODBYE: Duration = Duration::from_secs(2);

/// A connection, which lasts as long as anything that runs over it.
struct Line {
    session: Session,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.session.set_timeout(GOODBYE.as_millis() as u32);
    }
}

struct SshProcess {
    /// There until it is dropped.
    channel: Option<ssh2::Channel>,
    line: Arc<Line>,
    label: String,
}

impl SshProcess {
    fn channel(&mut self) -> &mut ssh2::Channel {
        self.channel.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for SshProcess {
    fn drop(&mut self) {
        let session = &self.line.session;
        let patience = session.timeout();
        session.set_timeout(GOODBYE.as_millis() as u32);
        self.channel = None;
        session.set_timeout(patience);
    }
}

impl Read for SshProcess {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.channel().read(buffer);
        read.map_err(|e| std::io::Error::new(e.kind(), plain(&e.to_string())))
    }
}

/// libssh2's words for an error of the socket are no help: its keep-alives are not answered any more.
fn plain(message: &str) -> String {
    match message {
        "Unexpected error" | "transport read" | "Error receiving on socket" => {
            "nothing comes from there any more".into()
        }
        other => other.into(),
    }
}

impl Write for SshProcess {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.channel().write(bytes)
    }

    // Not `channel.flush()`: libssh2's flush throws away what has *arrived* and was not read yet. A write
    // goes out at once, so there is nothing to do.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl RemoteProcess for SshProcess {
    fn send_eof(&mut self) -> std::io::Result<()> {
        self.channel().send_eof().map_err(std::io::Error::other)
    }

    fn finish(mut self: Box<Self>) -> Result<Ended> {
        let label = self.label.clone();
        let broken = |why: String| Error::SshBroken { host: label.clone(), why };
        let channel = self.channel();
        let mut stderr = Vec::new();
        let _ = channel.stderr().take(64 * 1024).read_to_end(&mut stderr);
        // What is left of stdout has to be taken, or the end of the stream never comes.
        std::io::copy(channel, &mut std::io::sink()).map_err(|e| broken(e.to_string()))?;
        channel.wait_close().map_err(|e| broken(plain(e.message())))?;
        let killed = channel.exit_signal().ok().and_then(|s| s.exit_signal);
        let status = channel.exit_status().map_err(|e| broken(e.message().to_owned()))?;
        Ok(Ended {
            status: if killed.is_some() { -1 } else { status },
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_openssh_s() {
        // ssh-keygen -lf prints the SHA-256 of the key blob in base64 without padding.
        assert_eq!(fingerprint(b""), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
    }
}
