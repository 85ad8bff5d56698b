//! Owns the source tarball: which mirror has it, what its published SHA-256 is, and its download, which goes
//! on where an earlier one was cut. Nothing is taken on trust but the checksum that was published or given.

use crate::durable::{self, Context};
use crate::error::{Error, Result};
use crate::postgres::release::{Release, Wanted};
use crate::process;
use crate::progress::Progress;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::http::StatusCode;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

/// The forms that a tarball comes in, in the order they are asked for.
const FORMS: [&str; 2] = ["tar.gz", "tar.bz2"];

/// A server that sends nothing for this long is taken for dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// A cut download that gets no further is taken up again this often before it is given up for now; one that
/// does, some more.
const RESUMPTIONS: u32 = 5;
const ATTEMPTS: u32 = 100;

/// All attempts together.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// No checksum file or directory listing is longer.
const PAGE_LIMIT: u64 = 4 << 20;

/// No source tarball is longer (17.6 has 28 MB).
const TARBALL_LIMIT: u64 = 1 << 30;

/// Where PostgreSQL's sources are to be had, in the order of preference.
pub struct Mirrors {
    bases: Vec<Base>,
    agent: ureq::Agent,
}

/// One mirror: the directory that holds `v17.6/` and its like.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    /// `file://`.
    Directory(PathBuf),
    /// `http://` or `https://`, without a slash at its end.
    Web(String),
}

/// A tarball that a mirror has, and what it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The release.
    pub release: Release,
    /// The tarball's name.
    pub file_name: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    location: Location,
}

/// Why something was not had from a mirror.
enum Miss {
    /// The mirror does not have it.
    NotThere,
    /// The download was complete already, or what is here is longer than what is there.
    Beyond,
    /// The mirror could not be asked: why.
    Down(String),
}

/// What one mirror says of one form of a tarball.
enum Candidate {
    Source(Source),
    Nothing,
    Down(String),
    /// It is there, but its checksum is not, or is another.
    Unfit(Error),
}

/// Something that a mirror sends.
struct Answer {
    body: Box<dyn Read + Send>,
    /// The offset that the body begins at.
    begin: u64,
    /// The whole file's length, when it is known.
    total: Option<u64>,
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Base::Directory(path) => write!(f, "file://{}", path.display()),
            Base::Web(url) => f.write_str(url),
        }
    }
}

/// One file of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Location(Base);

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where it comes from.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.location.fmt(f)
    }
}

impl Base {
    fn parse(url: &str) -> Result<Base> {
        let bad = |why| Error::MirrorUrl { url: without_password(url), why };
        if let Some(path) = url.strip_prefix("file://") {
            let path = path.strip_prefix("localhost").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(bad("names no absolute path"));
            }
            return Ok(Base::Directory(percent_decoded(path)));
        }
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let rest = rest.ok_or_else(|| bad("is no https, http or file URL"))?;
        if rest.is_empty() || rest.starts_with('/') {
            return Err(bad("names no host"));
        }
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            return Err(bad("holds a password or a user name, which would get into logs"));
        }
        Ok(Base::Web(url.trim_end_matches('/').to_owned()))
    }

    fn join(&self, path: &str) -> Location {
        Location(match self {
            Base::Directory(directory) => Base::Directory(directory.join(path)),
            Base::Web(url) => Base::Web(format!("{url}/{path}")),
        })
    }
}

/// `%20` and its like are what they stand for; a percent sign before anything else is one.
fn percent_decoded(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// A URL, or what was meant to be one, without what may be a password.
pub fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("…@{host}{path}"),
        Some((_, host)) => format!("{scheme}://…@{host}{path}"),
        None => url.to_owned(),
    }
}

/// A client for HTTP and HTTPS, with the machine's certificates. `connect_timeout` limits each connection, and each
/// answer three times as long; a download that stalls ends after a while. A status is no error of its own.
pub fn http_agent(connect_timeout: Duration) -> ureq::Agent {
    let tls =
        TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls)
        .timeout_connect(Some(connect_timeout))
        .timeout_recv_response(Some(connect_timeout * 3))
        .timeout_per_read(Some(SILENCE_LIMIT))
        .user_agent(concat!("pgmahout/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .build()
        .new_agent()
}

impl Mirrors {
    /// `connect_timeout` limits each connection, and each answer three times as long.
    ///
    /// # Errors
    /// [`Error::MirrorUrl`] for a URL that is none or of another kind.
    pub fn new(urls: &[String], connect_timeout: Duration) -> Result<Mirrors> {
        let bases = urls.iter().map(|url| Base::parse(url)).collect::<Result<Vec<_>>>()?;
        if bases.is_empty() {
            return Err(Error::MirrorUrl { url: String::new(), why: "is needed, and none is set" });
        }
        let agent = http_agent(connect_timeout);
        Ok(Mirrors { bases, agent })
    }

    /// Which release is meant: of a major version the newest that the first mirror to answer lists.
    ///
    /// # Errors
    /// [`Error::UnknownRelease`] when the mirrors have none, [`Error::MirrorsDown`] when none could be asked.
    pub fn resolve(&self, wanted: &Wanted) -> Result<Release> {
        if let Wanted::Exactly(release) = wanted {
            return Ok(release.clone());
        }
        let mut down = Vec::new();
        let mut known = Vec::new();
        for base in &self.bases {
            match self.list(base)? {
                Ok(listed) => match listed.iter().rev().find(|release| wanted.accepts(release)) {
                    Some(newest) => return Ok(newest.clone()),
                    None => known.extend(listed),
                },
                Err(why) => down.push(format!("{base}: {why}")),
            }
        }
        Err(self.not_found(wanted.to_string(), down, known))
    }

    /// Finds the release's tarball and the checksum that it has to have: `given`, or what is published
    /// beside it.
    ///
    /// # Errors
    /// [`Error::UnknownRelease`], [`Error::MirrorsDown`], [`Error::NoChecksum`], [`Error::ChecksumText`].
    pub fn find(&self, release: &Release, given: Option<&str>) -> Result<Source> {
        self.each(release, given, |source| Ok(source.clone()))
    }

    /// Downloads the release's tarball from the first mirror that has it whole and unchanged.
    ///
    /// # Errors
    /// As [`Mirrors::find`] and [`Mirrors::download`]; of several that failed, what the last one said.
    pub fn fetch_release(
        &self,
        release: &Release,
        given: Option<&str>,
        directory: &Path,
        progress: &Progress,
        mut room: impl FnMut(u64) -> Result<()>,
    ) -> Result<(Source, PathBuf)> {
        self.each(release, given, |source| {
            progress.step(format!("downloading {source}"));
            let path = self.download(source, directory, progress, &mut room)?;
            Ok((source.clone(), path))
        })
    }

    /// Gives every tarball that the mirrors have in turn to `take`, until it takes one.
    fn each<T>(
        &self,
        release: &Release,
        given: Option<&str>,
        mut take: impl FnMut(&Source) -> Result<T>,
    ) -> Result<T> {
        let mut down = Vec::new();
        let (mut failed, mut unsigned) = (None, None);
        for base in &self.bases {
            for form in FORMS {
                let source = match self.candidate(base, release, form, given)? {
                    Candidate::Source(source) => source,
                    Candidate::Nothing => continue,
                    Candidate::Down(why) => {
                        down.push(format!("{base}: {why}"));
                        break;
                    }
                    Candidate::Unfit(error) => {
                        unsigned = unsigned.or(Some(error));
                        continue;
                    }
                };
                match take(&source) {
                    Err(error @ (Error::DownloadBroke { .. } | Error::WrongChecksum { .. })) => {
                        failed = Some(error)
                    }
                    other => return other,
                }
            }
        }
        if let Some(error) = failed.or(unsigned) {
            return Err(error);
        }
        let mut known = Vec::new();
        if down.is_empty() {
            for base in &self.bases {
                known.extend(self.list(base)?.unwrap_or_default());
            }
        }
        Err(self.not_found(release.to_string(), down, known))
    }

    fn candidate(
        &self,
        base: &Base,
        release: &Release,
        form: &str,
        given: Option<&str>,
    ) -> Result<Candidate> {
        let file_name = format!("postgresql-{release}.{form}");
        let location = base.join(&format!("v{release}/{file_name}"));
        let source = |sha256: String| {
            let (release, file_name, location) = (release.clone(), file_name.clone(), location.clone());
            Candidate::Source(Source { release, file_name, sha256, location })
        };
        let published = match self.page(&base.join(&format!("v{release}/{file_name}.sha256")))? {
            Ok(text) => Some(published_sum(&text, &file_name)),
            Err(Miss::Down(why)) => return Ok(Candidate::Down(why)),
            Err(_) => None,
        };
        Ok(match (given.map(str::to_ascii_lowercase), published) {
            (None, Some(Some(sum))) => source(sum),
            (None, Some(None)) => Candidate::Unfit(Error::ChecksumText { url: format!("{location}.sha256") }),
            // With both forms there, the given checksum is of one of them.
            (Some(given), Some(Some(sum))) if given != sum => {
                let (url, found) = (location.to_string(), sum);
                Candidate::Unfit(Error::WrongChecksum { url, expected: given, found })
            }
            (given, _) => match (self.probe(&location)?, given) {
                (Ok(()), Some(given)) => source(given),
                (Ok(()), None) => Candidate::Unfit(Error::NoChecksum { url: location.to_string() }),
                (Err(Miss::Down(why)), _) => Candidate::Down(why),
                (Err(_), _) => Candidate::Nothing,
            },
        })
    }

    fn not_found(&self, wanted: String, down: Vec<String>, mut known: Vec<Release>) -> Error {
        if !down.is_empty() {
            return Error::MirrorsDown { wanted, why: down };
        }
        known.sort();
        known.dedup();
        let major = wanted.split('.').next().unwrap_or_default().to_owned();
        let same: Vec<_> = known.iter().filter(|r| r.version().major() == major).collect();
        let offered = match (same.first(), same.last(), known.first(), known.last()) {
            (Some(first), Some(last), ..) if first == last => format!("it has {first}"),
            (Some(first), Some(last), ..) => format!("it has {first} to {last}"),
            (_, _, Some(first), Some(last)) if first == last => format!("it has only {first}"),
            (_, _, Some(first), Some(last)) => format!("it has {first} to {last}, but no {major}"),
            _ => "a mirror is a directory that holds v17.6/postgresql-17.6.tar.gz and its like".into(),
        };
        let mirrors = self.bases.iter().map(Base::to_string).collect();
        Error::UnknownRelease { wanted, mirrors, offered }
    }

    /// The releases that a mirror lists.
    fn list(&self, base: &Base) -> Result<std::result::Result<Vec<Release>, String>> {
        if let Base::Directory(directory) = base {
            return Ok(match fs::read_dir(directory) {
                Ok(entries) => {
                    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
                    Ok(Release::listed(&names.collect::<Vec<_>>().join("\n")))
                }
                Err(error) => Err(error.to_string()),
            });
        }
        Ok(match self.page(&base.join(""))? {
            Ok(text) => Ok(Release::listed(&text)),
            Err(Miss::Down(why)) => Err(why),
            Err(_) => Err("it lists nothing".into()),
        })
    }

    fn page(&self, location: &Location) -> Result<std::result::Result<String, Miss>> {
        let (agent, location) = (self.agent.clone(), location.clone());
        let read = process::read_within(SILENCE_LIMIT * 3, move || {
            let answer = open(&agent, &location, 0)?;
            let mut bytes = Vec::new();
            match answer.body.take(PAGE_LIMIT).read_to_end(&mut bytes) {
                Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) => Err(Miss::Down(error.to_string())),
            }
        })?;
        Ok(read.unwrap_or_else(|| Err(Miss::Down("no answer".into()))))
    }

    fn probe(&self, location: &Location) -> Result<std::result::Result<(), Miss>> {
        let (agent, location) = (self.agent.clone(), location.clone());
        let read = process::read_within(SILENCE_LIMIT * 3, move || open(&agent, &location, 0).map(drop))?;
        Ok(read.unwrap_or_else(|| Err(Miss::Down("no answer".into()))))
    }

    /// The tarball in `directory`, whole and with the right checksum. What an earlier download left there is
    /// gone on from. `room` is asked once how many bytes may be needed, before anything is downloaded.
    ///
    /// # Errors
    /// [`Error::WrongChecksum`] (the file is removed), [`Error::DownloadBroke`] (what came is kept).
    pub fn download(
        &self,
        source: &Source,
        directory: &Path,
        progress: &Progress,
        mut room: impl FnMut(u64) -> Result<()>,
    ) -> Result<PathBuf> {
        durable::create_private_directory(directory)?;
        let whole = directory.join(&source.file_name);
        let part = directory.join(format!("{}.part", source.file_name));
        if whole.exists() {
            if sha256_of(&whole)? == source.sha256 {
                progress.detail(format!("{} is here already", whole.display()));
                room(length(&whole))?;
                return Ok(whole);
            }
            fs::remove_file(&whole).on("remove", &whole)?;
        }
        let mut resumed = length(&part) > 0;
        loop {
            self.fetch(source, &part, progress, &mut room)?;
            let found = sha256_of(&part)?;
            if found == source.sha256 {
                durable::rename(&part, &whole)?;
                return Ok(whole);
            }
            fs::remove_file(&part).on("remove", &part)?;
            if !std::mem::take(&mut resumed) {
                let expected = source.sha256.clone();
                return Err(Error::WrongChecksum { url: source.location.to_string(), expected, found });
            }
            // The beginning may have been of another file of this name: once more, and whole.
            progress.step("what an earlier download left does not fit; downloading all of it");
        }
    }

    fn fetch(
        &self,
        source: &Source,
        part: &Path,
        progress: &Progress,
        room: &mut impl FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let location = &source.location;
        let broke = |why: String| Error::DownloadBroke { url: location.to_string(), why, kept: length(part) };
        let mut file = OpenOptions::new()
            .create(true)
            .append(false)
            .write(true)
            .truncate(false)
            .open(part)
            .on("create", part)?;
        let (mut failures, mut attempts, mut furthest) = (0, 0, length(part));
        let deadline = Instant::now() + DOWNLOAD_LIMIT;
        loop {
            let have = length(part);
            let (sender, receiver) = sync_channel(16);
            let (agent, from) = (self.agent.clone(), location.clone());
            std::thread::spawn(move || send(&agent, &from, have, &sender));
            let why = loop {
                match receiver.recv_timeout(Duration::from_millis(200)) {
                    Ok(Message::Begins { at, total }) => {
                        room(total.unwrap_or(64 << 20))?;
                        file.set_len(at).on("write", part)?;
                        file.seek(SeekFrom::Start(at)).on("write", part)?;
                        if at > 0 {
                            progress.step(format!(
                                "{}: going on after {}",
                                source.file_name,
                                crate::progress::bytes_text(at)
                            ));
                        }
                        progress.begin_bytes("download", total.unwrap_or(0));
                        progress.add(at);
                    }
                    Ok(Message::Bytes(bytes)) => {
                        if file.stream_position().on("write", part)? + bytes.len() as u64 > TARBALL_LIMIT {
                            progress.end();
                            return Err(broke("it has no end".into()));
                        }
                        file.write_all(&bytes).on("write", part)?;
                        progress.add(bytes.len() as u64);
                    }
                    Ok(Message::End) => break None,
                    Ok(Message::Gone) => return Err(broke("it is not there, only its checksum".into())),
                    Ok(Message::Failed(why)) => break Some(why),
                    Err(RecvTimeoutError::Timeout) => process::check_interrupt()?,
                    Err(RecvTimeoutError::Disconnected) => break Some("it stopped".into()),
                }
                process::check_interrupt()?;
                if Instant::now() >= deadline {
                    progress.end();
                    return Err(broke(format!(
                        "it has not ended after {} h",
                        DOWNLOAD_LIMIT.as_secs() / 3600
                    )));
                }
            };
            progress.end();
            let Some(why) = why else { return file.sync_all().on("sync", part) };
            // A server without ranges begins anew each time: only what goes further than before counts.
            failures = if length(part) > furthest { 0 } else { failures + 1 };
            furthest = furthest.max(length(part));
            attempts += 1;
            if failures >= RESUMPTIONS || attempts >= ATTEMPTS {
                return Err(broke(why));
            }
            progress.detail(format!("the download was cut ({why}); taking it up again"));
            process::wait_for(Duration::from_millis(300 << failures), || Ok(None::<()>))?;
        }
    }
}

enum Message {
    Begins {
        at: u64,
        total: Option<u64>,
    },
    Bytes(Vec<u8>),
    End,
    /// It will not help to ask again.
    Gone,
    Failed(String),
}

/// Reads a file of a mirror into the channel, in a thread of its own: an interrupt need not wait for a
/// server that is silent. It ends when nobody listens any more.
fn send(agent: &ureq::Agent, location: &Location, have: u64, to: &SyncSender<Message>) {
    let mut answer = match open(agent, location, have) {
        Ok(answer) => answer,
        // Nothing comes after what is here; the checksum will tell whether that is right.
        Err(Miss::Beyond) => return drop(to.send(Message::End)),
        Err(Miss::NotThere) => return drop(to.send(Message::Gone)),
        Err(Miss::Down(why)) => return drop(to.send(Message::Failed(why))),
    };
    let (mut at, total) = (answer.begin, answer.total);
    if to.send(Message::Begins { at, total }).is_err() {
        return;
    }
    loop {
        let mut bytes = vec![0; 128 * 1024];
        match answer.body.read(&mut bytes) {
            Ok(0) => {
                let whole = total.is_none_or(|total| at >= total);
                let end = if whole { Message::End } else { Message::Failed("it ended too early".into()) };
                return drop(to.send(end));
            }
            Ok(n) => {
                at += n as u64;
                bytes.truncate(n);
                if to.send(Message::Bytes(bytes)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return drop(to.send(Message::Failed(error.to_string()))),
        }
    }
}

fn open(agent: &ureq::Agent, location: &Location, from: u64) -> std::result::Result<Answer, Miss> {
    let url = match &location.0 {
        Base::Directory(path) => return open_file(path, from),
        Base::Web(url) => url,
    };
    let mut request = agent.get(url);
    if from > 0 {
        request = request.header("Range", format!("bytes={from}-"));
    }
    let response = request.call().map_err(|error| {
        Miss::Down(match error {
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        })
    })?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
    let (begin, total) = match response.status() {
        StatusCode::OK => (0, number(header("content-length"))),
        StatusCode::PARTIAL_CONTENT => {
            let range = header("content-range").unwrap_or_default();
            let (begin, total) = content_range(range)
                .ok_or_else(|| Miss::Down(format!("it answers with the range {range:?}")))?;
            if begin != from {
                return Err(Miss::Down(format!("it answers from byte {begin} in place of {from}")));
            }
            (begin, total)
        }
        StatusCode::RANGE_NOT_SATISFIABLE => return Err(Miss::Beyond),
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Miss::NotThere),
        status => return Err(Miss::Down(format!("it answers {status}"))),
    };
    Ok(Answer { body: Box::new(response.into_body().into_reader()), begin, total })
}

/// `bytes 1000-2000/5000` to the first byte and the whole length (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

fn open_file(path: &Path, from: u64) -> std::result::Result<Answer, Miss> {
    let down = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Miss::NotThere,
        _ => Miss::Down(error.to_string()),
    };
    // A mirror that is not there at all is not one that lacks a file.
    let mut file = File::open(path).map_err(|error| match path.ancestors().nth(2) {
        Some(base) if !base.is_dir() => Miss::Down(format!("there is no directory {}", base.display())),
        _ => down(error),
    })?;
    let total = file.metadata().map_err(down)?.len();
    if from > 0 && from >= total {
        return Err(Miss::Beyond);
    }
    file.seek(SeekFrom::Start(from)).map_err(down)?;
    Ok(Answer { body: Box::new(file), begin: from, total: Some(total) })
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// SHA-256 of a file in hexadecimal.
fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).on("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        process::check_interrupt()?;
        match file.read(&mut buffer).on("read", path)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The checksum of `file_name` in a `.sha256` file: `<hex>  <name>`, `<hex> *<name>`, or the digits alone.
fn published_sum(text: &str, file_name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let sum = words.next().filter(|word| is_sha256(word))?;
        let named = words.next().map(|name| name.trim_start_matches(['*', '.', '/']));
        named.is_none_or(|name| name == file_name).then(|| sum.to_ascii_lowercase())
    })
}

/// Whether a text is a SHA-256 in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Voice;

    const SUM: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn mirrors_are_urls_of_three_kinds() {
        assert_eq!(Base::parse("file:///a b").unwrap(), Base::Directory("/a b".into()));
        assert_eq!(Base::parse("file:///a%20b/100% c%2").unwrap(), Base::Directory("/a b/100% c%2".into()));
        assert_eq!(Base::parse("https://h/pub/").unwrap(), Base::Web("https://h/pub".into()));
        for url in ["ftp://h/x", "file://relative", "/path", "", "https://", "http:///x"] {
            assert!(matches!(Base::parse(url), Err(Error::MirrorUrl { .. })), "{url}");
        }
        for url in ["https://me:secret@h/x", "me:secret@h/x", "ftp://me:sec@ret:secret@h"] {
            let error = Base::parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("…@h"), "{error}");
        }
    }

    #[test]
    fn a_checksum_file_is_read_in_every_form() {
        let name = "postgresql-17.6.tar.gz";
        for text in [
            format!("{SUM}  {name}\n"),
            format!("{SUM} *{name}"),
            format!("{}\n", SUM.to_uppercase()),
            format!("{SUM}  ./{name}\r\n"),
            format!("{}  other.tar.gz\n{SUM}  {name}\n", "0".repeat(64)),
        ] {
            assert_eq!(published_sum(&text, name).as_deref(), Some(SUM), "{text:?}");
        }
        for text in ["", "<html>", &format!("{SUM}  other.tar.gz"), &SUM[1..]] {
            assert_eq!(published_sum(text, name), None, "{text:?}");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("octets 5-9/10"), None);
    }

    /// A mirror directory with one release and the place to download to.
    fn site(content: &[u8], sum: &str) -> (tempfile::TempDir, Mirrors, PathBuf) {
        let site = tempfile::tempdir().unwrap();
        let release = site.path().join("mirror/v17.6");
        fs::create_dir_all(&release).unwrap();
        fs::write(release.join("postgresql-17.6.tar.bz2"), content).unwrap();
        fs::write(
            release.join("postgresql-17.6.tar.bz2.sha256"),
            format!("{sum}  postgresql-17.6.tar.bz2\n"),
        )
        .unwrap();
        let url = format!("file://{}/mirror", site.path().display());
        let mirrors = Mirrors::new(&[url], Duration::from_secs(1)).unwrap();
        let into = site.path().join("sources");
        (site, mirrors, into)
    }

    fn download(mirrors: &Mirrors, into: &Path) -> Result<PathBuf> {
        let source = mirrors.find(&Release::from_name("17.6").unwrap(), None)?;
        mirrors.download(&source, into, &Progress::new(Voice::Quiet), |_| Ok(()))
    }

    #[test]
    fn what_was_published_arrives() {
        let (_site, mirrors, into) = site(b"test", SUM);
        assert_eq!(mirrors.resolve(&Wanted::parse("17").unwrap()).unwrap().name(), "17.6");
        let path = download(&mirrors, &into).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"test");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
        assert_eq!(download(&mirrors, &into).unwrap(), path, "what is here is used");
    }

    #[test]
    fn a_wrong_checksum_leaves_nothing() {
        let (_site, mirrors, into) = site(b"tampered", SUM);
        assert!(matches!(download(&mirrors, &into), Err(Error::WrongChecksum { .. })));
        assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
    }

    #[test]
    fn a_cut_download_goes_on_and_a_wrong_beginning_starts_anew() {
        for left in ["te", "test", "xx", "far too long"] {
            let (_site, mirrors, into) = site(b"test", SUM);
            fs::create_dir(&into).unwrap();
            fs::write(into.join("postgresql-17.6.tar.bz2.part"), left).unwrap();
            let path = download(&mirrors, &into).unwrap();
            assert_eq!(fs::read(path).unwrap(), b"test", "{left}");
        }
    }

    #[test]
    fn the_next_mirror_is_asked_when_the_first_one_fails() {
        let (bad, _, _) = site(b"tampered", SUM);
        let (good, _, into) = site(b"test", SUM);
        let (empty, _, _) = site(b"test", SUM);
        fs::remove_file(empty.path().join("mirror/v17.6/postgresql-17.6.tar.bz2")).unwrap();
        let url = |site: &tempfile::TempDir| format!("file://{}/mirror", site.path().display());
        let release = Release::from_name("17.6").unwrap();
        let quiet = Progress::new(Voice::Quiet);
        let fetch = |urls: &[String], given| {
            let mirrors = Mirrors::new(urls, Duration::from_secs(1)).unwrap();
            mirrors.fetch_release(&release, given, &into, &quiet, |_| Ok(()))
        };
        for first in [&bad, &empty] {
            let (source, path) = fetch(&[url(first), url(&good)], None).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"test");
            assert!(source.to_string().starts_with(&url(&good)));
            fs::remove_file(path).unwrap();
        }
        assert!(matches!(fetch(&[url(&bad)], None), Err(Error::WrongChecksum { .. })));
        assert!(matches!(fetch(&[url(&empty)], None), Err(Error::DownloadBroke { .. })));
        let other = "0".repeat(64);
        assert!(matches!(fetch(&[url(&good)], Some(&other)), Err(Error::WrongChecksum { .. })));
        // Of two forms, the one that the given checksum is of.
        let second = good.path().join("mirror/v17.6/postgresql-17.6.tar.gz");
        fs::write(&second, "another").unwrap();
        fs::write(second.with_extension("gz.sha256"), other.clone()).unwrap();
        let (source, _) = fetch(&[url(&good)], Some(SUM)).unwrap();
        assert_eq!(source.file_name, "postgresql-17.6.tar.bz2");
    }

    #[test]
    fn what_is_not_there_is_told_from_a_mirror_that_is_down() {
        let (site, mirrors, _) = site(b"test", SUM);
        let release = Release::from_name("17.9").unwrap();
        match mirrors.find(&release, None) {
            Err(Error::UnknownRelease { wanted, offered, .. }) => {
                assert_eq!((wanted.as_str(), offered.as_str()), ("17.9", "it has 17.6"));
            }
            other => panic!("{other:?}"),
        }
        fs::remove_file(site.path().join("mirror/v17.6/postgresql-17.6.tar.bz2.sha256")).unwrap();
        let release = Release::from_name("17.6").unwrap();
        assert!(matches!(mirrors.find(&release, None), Err(Error::NoChecksum { .. })));
        assert_eq!(mirrors.find(&release, Some(SUM)).unwrap().sha256, SUM);
        fs::rename(site.path().join("mirror"), site.path().join("elsewhere")).unwrap();
        assert!(matches!(mirrors.find(&release, None), Err(Error::MirrorsDown { .. })));
        assert!(matches!(mirrors.resolve(&Wanted::parse("17").unwrap()), Err(Error::MirrorsDown { .. })));
    }
}
