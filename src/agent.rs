//! Owns the agent at the other end: the same binary as this one, found there or uploaded.

use crate::durable::Context;
use crate::error::{Error, Result};
use crate::progress::{Progress, bytes_text};
use crate::ssh::{self, Remote, shell_word};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

/// This very program, even when its file has been replaced or removed since it started.
const MYSELF: &str = "/proc/self/exe";

/// Makes sure that the other side has this binary and gives the shell word that runs it there.
///
/// It is looked for in `~/bin` and in its cache directory, and taken only when its SHA-256 is ours:
/// the two ends of the transfer are always the same build.
pub fn ensure(remote: &dyn Remote, progress: &Progress) -> Result<String> {
    ensured(remote, look(remote)?, progress)
}

/// What [`look`] has found on the other side.
pub struct Found {
    binary: Vec<u8>,
    cached: String,
    path: Option<String>,
}

/// The first half of [`ensure`], which changes nothing there.
pub fn look(remote: &dyn Remote) -> Result<Found> {
    let binary = std::fs::read(MYSELF).on("read", Path::new(MYSELF))?;
    let mut hash = String::new();
    for byte in Sha256::digest(&binary) {
        let _ = write!(hash, "{byte:02x}");
    }
    let cached = format!("${{XDG_CACHE_HOME:-$HOME/.cache}}/pgmahout/agent-{hash}");
    // The markers keep apart what a login profile may print, whose last line may have no end.
    let probe = format!(
        "printf '\\npgmahout-machine %s\\n' \"$(uname -sm)\"; \
         for f in \"$HOME/bin/pgmahout\" \"{cached}\"; do \
         if [ -x \"$f\" ] && [ \"$(sha256sum < \"$f\" | cut -c1-64)\" = {hash} ]; then \
         printf 'pgmahout-found %s\\n' \"$f\"; break; fi; done"
    );
    let answer = String::from_utf8_lossy(&ssh::run(remote, &probe, b"")?).into_owned();
    let marked = |marker: &str| answer.lines().rev().find_map(|l| l.strip_prefix(marker));
    let machine = marked("pgmahout-machine ").unwrap_or("unknown").trim();
    let ours = format!("Linux {}", std::env::consts::ARCH);
    if machine != ours {
        let host = remote.label().to_owned();
        return Err(Error::OtherMachine { host, theirs: machine.to_owned(), ours });
    }
    let path = marked("pgmahout-found ").map(str::to_owned);
    Ok(Found { binary, cached, path })
}

/// The other half of [`ensure`].
pub fn ensured(remote: &dyn Remote, found: Found, progress: &Progress) -> Result<String> {
    let Found { binary, cached, path } = found;
    if let Some(path) = path {
        progress.detail(format!("agent on {}: {path}", remote.label()));
        return Ok(shell_word(&path));
    }
    let archive = pack(&binary).on("read", Path::new(MYSELF))?;
    progress.step(format!(
        "uploading the agent to {} ({})",
        remote.label(),
        bytes_text(archive.len() as u64)
    ));
    let unpack = format!(
        "set -e; umask 077; f=\"{cached}\"; d=\"${{f%/*}}\"; mkdir -p \"$d\"; t=$(mktemp -d \"$d/up.XXXXXX\"); \
         trap 'rm -rf \"$t\"' EXIT; tar -xzf - -C \"$t\"; mv -f \"$t/agent\" \"$f\"; \
         \"$f\" --version >/dev/null; printf 'pgmahout-found %s\\n' \"$f\""
    );
    let answer = ssh::run(remote, &unpack, &archive)
        .map_err(|e| Error::AgentUpload { host: remote.label().to_owned(), why: e.to_string() })?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.lines().rev().find_map(|l| l.strip_prefix("pgmahout-found ")) {
        Some(path) => Ok(shell_word(path)),
        None => {
            let why = format!("it answered {:?}", answer.trim());
            Err(Error::AgentUpload { host: remote.label().to_owned(), why })
        }
    }
}

/// The error that the agent of the other side answered as JSON, as it was; anything else as it came.
pub fn relayed(host: String, status: i32, said: String) -> Error {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Relayed,
    }
    #[derive(serde::Deserialize)]
    struct Relayed {
        message: String,
        hint: Option<String>,
        exit: u8,
    }
    let json = said.find("{\"error\"").map_or("", |begin| &said[begin..]);
    match serde_json::from_str(json.trim_end()) {
        Ok(Answer { error: Relayed { message, hint, exit } }) => Error::Relayed { host, message, hint, exit },
        Err(_) => Error::RemoteCommand { host, status, said },
    }
}

/// A gzipped tar with the one file: a third of the bytes on the wire, and tar checks that it is whole.
fn pack(binary: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_ustar();
    header.set_size(binary.len() as u64);
    header.set_mode(0o700);
    archive.append_data(&mut header, "agent", binary)?;
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out() {
        let archive = pack(b"binary").unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("agent"));
        assert_eq!(entry.header().mode().unwrap(), 0o700);
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        assert_eq!(content, b"binary");
    }
}
