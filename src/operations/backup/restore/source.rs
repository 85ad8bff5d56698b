//! Where a backup comes from: the store, a file, stdin, a URL, or the store of another instance over SSH; and the
//! one copy of it on this disk that pg_restore's jobs need, where there is none already.

use super::super::super::enslave::there::connect_ssh;
use super::super::super::{Context, client};
use crate::agent;
use crate::backups::manifest::{BackupId, Kind, Manifest};
use crate::blurb::Blurb;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::process::{self, Patient};
use crate::source_build::mirror::{http_agent, without_password};
use crate::ssh::{Remote, RemoteProcess, shell_word};
use crate::store::{self, Store, catalog, sealed};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::StatusCode;

/// What the operator named.
#[derive(Clone, Debug)]
pub enum Source {
    /// A backup of this instance's store.
    Stored(BackupId),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// An http or https URL.
    Url(String),
    /// A backup of the store of another instance.
    Other {
        /// That instance.
        blurb: Box<Blurb>,
        /// The host key to accept.
        host_key: Option<String>,
        /// Its backup.
        id: BackupId,
    },
}

impl Source {
    /// Reads one: `b001`, `-`, `https://…`, else a file.
    pub fn parse(text: &str) -> Source {
        if text == "-" {
            return Source::Stdin;
        }
        if ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Source::Url(text.into());
        }
        match text.parse() {
            Ok(id) if !Path::new(text).exists() => Source::Stored(id),
            _ => Source::File(text.into()),
        }
    }

    /// What messages call it: never with what may be a secret.
    pub fn shown(&self) -> String {
        match self {
            Source::Stored(id) => id.to_string(),
            Source::File(path) => path.display().to_string(),
            Source::Stdin => "stdin".into(),
            Source::Url(url) => without_secrets(url),
            Source::Other { blurb, id, .. } => {
                format!("{id} of {}", blurb.name.as_deref().unwrap_or("the other instance"))
            }
        }
    }
}

/// A URL without its query, which is where a link has its signature, and without a password.
pub fn without_secrets(url: &str) -> String {
    let url = without_password(url);
    match url.split_once(['?', '#']) {
        Some((before, _)) => format!("{before}?…"),
        None => url,
    }
}

/// A backup that can be read.
pub struct Opened {
    /// What messages call it.
    pub name: String,
    /// All about it, where it is known.
    pub manifest: Option<Manifest>,
    /// Its kind: as the manifest says it, or as its first bytes look.
    pub kind: Kind,
    /// Its bytes, to be read once. Their end comes only when they were whole, as far as anybody can know that.
    pub bytes: Box<dyn Read + Send>,
    /// How many, where that is known.
    pub size: u64,
    /// A file on this machine that has exactly these bytes.
    pub path: Option<PathBuf>,
    place: String,
}

/// After the bytes, or an error, the connection may take this long to its end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// No transfer takes longer.
const LIMIT: Duration = Duration::from_secs(3 * 86_400);

/// Opens it.
pub fn open(context: Context, source: &Source) -> Result<Opened> {
    let name = source.shown();
    match source {
        Source::Stored(id) => {
            let store = store::open(context.instance)?;
            let manifest = catalog::find(&*store, *id)?.manifest;
            stored(context, &*store, manifest)
        }
        Source::File(path) => {
            let file = File::open(path).on("open", path)?;
            let metadata = file.metadata().on("look at", path)?;
            // A pipe has no size, and cannot be opened again by each job.
            let path = metadata.is_file().then(|| path.clone());
            sniffed(name, Box::new(Patient::new(file, LIMIT)), metadata.len(), path)
        }
        Source::Stdin => sniffed(name, Box::new(Patient::new(io::stdin(), LIMIT)), 0, None),
        Source::Url(url) => {
            let download = Download::open(url, context.instance.connect_timeout)?;
            let size = download.total.unwrap_or(0);
            sniffed(name, Box::new(Patient::new(download, LIMIT)), size, None)
        }
        Source::Other { blurb, host_key, id } => given(context, blurb, host_key.clone(), *id),
    }
}

/// A backup of the store.
pub fn stored(context: Context, store: &dyn Store, manifest: Manifest) -> Result<Opened> {
    let path = store.local_path(&manifest.file).filter(|_| manifest.encryption.is_none());
    Ok(Opened {
        name: manifest.id.to_string(),
        kind: manifest.kind,
        bytes: sealed::open(store, context.instance, &manifest)?,
        size: manifest.size,
        path,
        place: store.place(),
        manifest: Some(manifest),
    })
}

/// Reads a backup of the store to its end: whether its bytes are those of its manifest.
pub fn check(context: Context, store: &dyn Store, manifest: &Manifest) -> Result<()> {
    let mut bytes = sealed::open(store, context.instance, manifest)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        process::check_interrupt()?;
        match bytes.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(sealed::read_error(store, manifest, &error)),
        }
    }
}

/// As pg_dump's custom format begins (src/bin/pg_dump/pg_backup_archiver.c).
const CUSTOM: &[u8] = b"PGDMP";
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const AGE: &[u8] = b"age-encryption.org/";
/// At byte 257 of a tar.
const TAR: &[u8] = b"ustar";

fn sniffed(
    name: String,
    mut bytes: Box<dyn Read + Send>,
    size: u64,
    path: Option<PathBuf>,
) -> Result<Opened> {
    let mut head = Vec::new();
    let read = bytes.by_ref().take(512).read_to_end(&mut head);
    process::check_interrupt()?;
    read.map_err(|error| own_error(error).unwrap_or_else(|e| not_read(&name, &e)))?;
    let bad = |why: &str| Error::NotABackup { source: name.clone(), why: why.into() };
    let kind = match &head {
        h if h.starts_with(CUSTOM) => Kind::Logical,
        h if h.starts_with(GZIP) || h.starts_with(ZSTD) => Kind::Physical,
        h if h.get(257..262) == Some(TAR) => Kind::Physical,
        h if h.is_empty() => return Err(bad("it is empty")),
        h if h.starts_with(AGE) => {
            return Err(bad("it is encrypted; only a backup in the store is decrypted"));
        }
        _ => return Err(bad("it is neither an archive of pg_dump -Fc nor a tar")),
    };
    let place = name.clone();
    let bytes = Box::new(io::Cursor::new(head).chain(bytes));
    Ok(Opened { name, manifest: None, kind, bytes, size, path, place })
}

fn not_read(name: &str, error: &io::Error) -> Error {
    Error::NotABackup { source: name.into(), why: format!("it cannot be read: {error}") }
}

/// One of our errors that came through a reader.
fn own_error(error: io::Error) -> std::result::Result<Error, io::Error> {
    match error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        true => Ok(*error.into_inner().expect("looked at").downcast::<Error>().expect("looked at")),
        false => Err(error),
    }
}

/// An archive that several processes can open.
pub struct Archive {
    /// Where.
    pub path: PathBuf,
    /// Without a name: whatever ends us, its space is given back.
    _spool: Option<File>,
}

impl Opened {
    /// Reads all of it, so that whatever is wrong with its bytes is found before anything is done, and gives the file
    /// for pg_restore: where it lies, or a copy.
    pub fn archive(self, context: Context) -> Result<Archive> {
        let Opened { name, manifest, mut bytes, size, path, place, .. } = self;
        let mut spool = match path {
            Some(_) => None,
            None => Some(spool(context, size)?),
        };
        let progress = context.progress;
        let checked = path.is_some();
        // What was never hashed is not read twice.
        if checked && manifest.is_none() {
            return Ok(Archive { path: path.expect("looked at"), _spool: None });
        }
        progress.begin_bytes(if checked { "check" } else { "fetch" }, size);
        let mut buffer = vec![0; 256 * 1024];
        let outcome = loop {
            process::check_interrupt()?;
            match bytes.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    progress.add(n as u64);
                    if let Some((file, directory)) = &mut spool {
                        file.write_all(&buffer[..n]).on("write to", directory)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        progress.end();
        process::check_interrupt()?;
        if let Err(error) = outcome {
            return Err(match (own_error(error), &manifest) {
                (Ok(error), _) => error,
                (Err(error), Some(manifest)) if error.kind() == io::ErrorKind::InvalidData => {
                    Error::BackupDamaged { id: manifest.id.to_string(), place, why: error.to_string() }
                }
                (Err(error), Some(_)) => Error::Store { place, action: "read", why: error.to_string() },
                (Err(error), None) => not_read(&name, &error),
            });
        }
        Ok(match (path, spool) {
            (Some(path), _) => Archive { path, _spool: None },
            (None, spool) => {
                let (file, _) = spool.expect("made above");
                // pg_restore opens it as its own: into this process nobody looks.
                let inherited = FcntlArg::F_SETFD(FdFlag::empty());
                fcntl(&file, inherited).on("hand on", Path::new("the fetched backup"))?;
                Archive { path: client::memory_path(&file).into(), _spool: Some(file) }
            }
        })
    }
}

/// A file without a name, in the state directory or in the one for temporary files, where there is room.
fn spool(context: Context, size: u64) -> Result<(File, PathBuf)> {
    let own = context.instance.state_directory.clone();
    durable::create_private_directory(&own)?;
    let mut most = (own.clone(), 0);
    for directory in [own, std::env::temp_dir()] {
        let available = durable::available_space(&directory)?;
        if available >= size.max(1) {
            let file = tempfile::tempfile_in(&directory).on("create a file in", &directory)?;
            return Ok((file, directory));
        }
        if available >= most.1 {
            most = (directory, available);
        }
    }
    Err(Error::NoSpace { path: most.0, needed: size, available: most.1 })
}

// ---- over SSH

/// The line of the manifest begins so, whatever a login profile has printed before it.
const MARKER: &str = "pgmahout-backup ";

/// No manifest is longer.
const MANIFEST_LIMIT: u64 = 64 << 20;

/// The giving side: the manifest on a line of its own, then the bytes, decrypted. That they were whole is said by the
/// exit status.
pub fn give(context: Context, id: BackupId, mut to: impl Write) -> Result<()> {
    let store = store::open(context.instance)?;
    let manifest = catalog::find(&*store, id)?.manifest;
    let json = serde_json::to_string(&manifest).expect("a manifest is plain data");
    let stdout = Path::new("stdout");
    let mut bytes = sealed::open(&*store, context.instance, &manifest)?;
    write!(to, "\n{MARKER}{json}\n").on("write to", stdout)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        process::check_interrupt()?;
        match bytes.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => to.write_all(&buffer[..n]).on("write to", stdout)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(sealed::read_error(&*store, &manifest, &error)),
        }
    }
    to.flush().on("write to", stdout)
}

fn given(context: Context, blurb: &Blurb, host_key: Option<String>, id: BackupId) -> Result<Opened> {
    let ssh = connect_ssh(context, blurb, host_key)?;
    let agent = agent::ensure(&*ssh, context.progress)?;
    let host = ssh.label().to_owned();
    let mut process = ssh.exec(&format!("{agent} --json give-backup {}", shell_word(&id.to_string())))?;
    let broken = |e: &io::Error| Error::SshBroken { host: host.clone(), why: e.to_string() };
    process.send_eof().map_err(|e| broken(&e))?;
    let mut stream = BufReader::with_capacity(256 * 1024, Patient::new(process, LIMIT));
    let mut head = stream.by_ref().take(MANIFEST_LIMIT);
    let manifest = loop {
        let mut line = Vec::new();
        let read = head.read_until(b'\n', &mut line);
        process::check_interrupt()?;
        if read.map_err(|e| broken(&e))? == 0 {
            let said = "nothing".into();
            return Err(last_words(stream.into_inner(), &host).unwrap_or(Error::NoSource { host, said }));
        }
        if let Some(json) = String::from_utf8_lossy(&line).strip_prefix(MARKER) {
            break Manifest::parse(id, json.as_bytes())?;
        }
    };
    let size = if manifest.encryption.is_some() { 0 } else { manifest.size };
    let given = Given { stream: Some(stream), host: host.clone(), _connection: ssh };
    Ok(Opened {
        name: format!("{id} of {host}"),
        kind: manifest.kind,
        manifest: Some(manifest),
        bytes: Box::new(given),
        size,
        path: None,
        place: host,
    })
}

/// How the giver ended, if not well.
fn last_words(stream: Patient<Box<dyn RemoteProcess>>, host: &str) -> Option<Error> {
    let broken = |why: &str| Error::SshBroken { host: host.to_owned(), why: why.into() };
    let Some(process) = stream.finish(LAST_WORDS) else { return Some(broken("it did not come to its end")) };
    match process.finish() {
        Ok(ended) if ended.status == 0 => None,
        Ok(ended) => Some(agent::relayed(host.to_owned(), ended.status, ended.stderr)),
        Err(error) => Some(error),
    }
}

/// Bytes that another instance gives; their end comes only when it said that it has given all.
struct Given {
    stream: Option<BufReader<Patient<Box<dyn RemoteProcess>>>>,
    host: String,
    _connection: Box<dyn Remote>,
}

impl Read for Given {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        let n = stream.read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            let stream = self.stream.take().expect("looked at").into_inner();
            if let Some(error) = last_words(stream, &self.host) {
                return Err(io::Error::other(error));
            }
        }
        Ok(n)
    }
}

// ---- by http

/// A download that breaks and gets no further is taken up again this often; after a pause that grows.
const RESUMPTIONS: u32 = 5;

/// A download that goes on where it broke.
struct Download {
    agent: ureq::Agent,
    url: String,
    body: Option<Box<dyn Read + Send>>,
    at: u64,
    total: Option<u64>,
    /// What tells whether it is still the same: the strong ETag, else the time of its last change.
    tag: Option<String>,
    tries: u32,
}

impl Download {
    fn open(url: &str, connect_timeout: Duration) -> Result<Download> {
        let agent = http_agent(connect_timeout);
        let (url, body, at) = (url.to_owned(), None, 0);
        let mut download = Download { agent, url, body, at, total: None, tag: None, tries: 0 };
        let shown = without_secrets(&download.url);
        let failed = |why| Error::BackupUrl { url: shown.clone(), why };
        loop {
            process::check_interrupt()?;
            match download.ask() {
                Ok(()) => return Ok(download),
                Err(Miss::Never(why)) => return Err(failed(why)),
                Err(Miss::Now(why)) if download.tries >= 2 => return Err(failed(why)),
                Err(Miss::Now(_)) => download.pause(),
            }
        }
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(200 << self.tries.min(5)));
        self.tries += 1;
    }

    fn ask(&mut self) -> std::result::Result<(), Miss> {
        let mut request = self.agent.get(&self.url);
        if self.at > 0 {
            request = request.header("Range", format!("bytes={}-", self.at));
            if let Some(tag) = &self.tag {
                request = request.header("If-Range", tag);
            }
        }
        // An error of the client may quote the URL.
        let response = request.call().map_err(|error| match error {
            ureq::Error::Io(error) => Miss::Now(error.to_string()),
            ureq::Error::BadUri(_) => Miss::Never("it is no URL".into()),
            other => Miss::Now(other.to_string().replace(&self.url, "it")),
        })?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        match response.status() {
            StatusCode::OK if self.at == 0 => {
                self.total = header("content-length").and_then(|text| text.trim().parse().ok());
                let etag = header("etag").filter(|etag| !etag.starts_with("W/"));
                self.tag = etag.or(header("last-modified")).map(str::to_owned);
            }
            StatusCode::PARTIAL_CONTENT if self.at > 0 => {
                let range = header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {}-", self.at)) {
                    return Err(Miss::Never(format!("it answers with the range {range:?}")));
                }
            }
            StatusCode::OK => {
                return Err(Miss::Never("it changed, or cannot be taken up where it broke".into()));
            }
            status if status.is_server_error() => return Err(Miss::Now(format!("it answers {status}"))),
            status => return Err(Miss::Never(format!("it answers {status}"))),
        }
        self.body = Some(Box::new(response.into_body().into_reader()));
        Ok(())
    }

    fn whole(&self) -> bool {
        self.total.is_none_or(|total| self.at >= total)
    }
}

/// Why nothing came.
enum Miss {
    /// It may come another time.
    Now(String),
    Never(String),
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let why = match self.body.as_mut().map(|body| body.read(buffer)) {
                Some(Ok(n)) if n > 0 || buffer.is_empty() => {
                    self.at += n as u64;
                    self.tries = 0;
                    return Ok(n);
                }
                Some(Ok(_)) if self.whole() => return Ok(0),
                Some(Ok(_)) => "it ended too early".to_owned(),
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Some(Err(error)) => error.to_string(),
                None => "it broke".to_owned(),
            };
            // Without a length nobody knows whether an end is the end, but a failure is one.
            self.body = None;
            let failed = |why| io::Error::other(Error::BackupUrl { url: without_secrets(&self.url), why });
            if self.tries >= RESUMPTIONS || process::check_interrupt().is_err() {
                return Err(failed(why));
            }
            self.pause();
            match self.ask() {
                Ok(()) | Err(Miss::Now(_)) => {}
                Err(Miss::Never(why)) => {
                    return Err(io::Error::other(Error::BackupUrl { url: without_secrets(&self.url), why }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_shown_without_its_signature() {
        assert_eq!(without_secrets("https://h/b001.dump?s=secret&e=1"), "https://h/b001.dump?…");
        assert_eq!(without_secrets("https://me:secret@h/x#secret"), "https://…@h/x?…");
        assert_eq!(without_secrets("http://h/x"), "http://h/x");
    }

    #[test]
    fn sources_are_told_apart() {
        assert!(matches!(Source::parse("b001"), Source::Stored(_)));
        assert!(matches!(Source::parse("-"), Source::Stdin));
        assert!(matches!(Source::parse("https://h/b001"), Source::Url(_)));
        for file in ["b1", "./b001", "/tmp/b001.dump", "s3://b/x"] {
            assert!(matches!(Source::parse(file), Source::File(_)), "{file}");
        }
    }

    #[test]
    fn what_is_no_backup_is_refused_at_its_first_bytes() {
        let kind = |bytes: &[u8]| {
            let bytes = Box::new(io::Cursor::new(bytes.to_vec()));
            sniffed("x".into(), bytes, 0, None).map(|opened| opened.kind)
        };
        assert_eq!(kind(b"PGDMP\x01\x0e").unwrap(), Kind::Logical);
        assert_eq!(kind(&[0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap(), Kind::Physical);
        for bad in [&b""[..], b"<html>", b"age-encryption.org/v1\n", b"-- PostgreSQL database dump"] {
            assert!(matches!(kind(bad), Err(Error::NotABackup { .. })));
        }
    }
}
