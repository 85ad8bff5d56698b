//! Carries a finished build from one instance to another: ten instances compile once. It travels over SSH as
//! one compressed tar, and is taken only by a machine that can run it.

use super::super::Context;
use super::super::enslave::there::connect_ssh;
use super::{OTHERS_BUILD, Origin, Report, finish, list, lock, now, switch};
use crate::agent;
use crate::blurb::Blurb;
use crate::builds::{self, Build, Current, Machine, Record, Replaced};
use crate::durable::Context as _;
use crate::error::{Error, Result};
use crate::postgres::release::{Release, Wanted};
use crate::process::Patient;
use crate::progress::{Progress, bytes_text};
use crate::source_build::tree;
use crate::ssh::{self, Remote, RemoteProcess};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// What the giver says before the archive.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    /// The giver's name.
    instance: String,
    /// What it gives.
    record: Record,
}

/// The line of the offer begins so, whatever a login profile has printed before it.
const MARKER: &str = "pgmahout-build ";

/// The giver waits so long for somebody who builds that version anew.
const OTHERS_REBUILD: Duration = Duration::from_secs(20);

/// After the archive, or an error, the connection may take this long to its end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// No offer is longer.
const OFFER_LIMIT: u64 = 1 << 20;

/// The giving side: writes an offer and the archive of the build of `version`, or of the one in use, to `to`.
pub fn give(context: Context, version: Option<&str>, mut to: impl Write) -> Result<()> {
    let instance = context.instance;
    let nothing = |has: String| Error::NothingToGive { instance: instance.name.clone(), has };
    let home = &instance.home;
    let build = match version {
        Some(version) => {
            let wanted = Wanted::parse(version)?;
            let all = builds::all(home)?;
            let names: Vec<_> = all.iter().map(|build| build.release.to_string()).collect();
            let newest = all.into_iter().rev().find(|build| wanted.accepts(&build.release));
            newest.ok_or_else(|| {
                nothing(match names.is_empty() {
                    true => "it has built none".into(),
                    false => format!("it has built only {}", names.join(", ")),
                })
            })?
        }
        None => build_in_use(home).ok_or_else(|| {
            let programs = instance.bin_directory().map(|path| path.canonicalize().unwrap_or(path.into()));
            nothing(match programs {
                Some(programs) => format!("it uses {}, which it has not built", programs.display()),
                None => "it has no PostgreSQL".into(),
            })
        })?,
    };
    let record = match build.record {
        Some(record) => record,
        None => Record {
            version: build.release.clone(),
            options: Vec::new(),
            with: Vec::new(),
            machine: Machine::here(),
            built_at: now(),
            seconds: 0.0,
            bytes: tree::measure(&build.prefix)?.0,
            sha256: String::new(),
            taken_from: None,
        },
    };
    // A rebuild must not exchange it while it is read. Whoever asked waits at the other end of the line.
    let _lock = lock(context, &build.release, OTHERS_REBUILD, &std::cell::Cell::new(false))?;
    let offer = Offer { instance: instance.name.clone(), record };
    let json = serde_json::to_string(&offer).expect("an offer is plain data");
    let stdout = Path::new("stdout");
    write!(to, "\n{MARKER}{json}\n").on("write to", stdout)?;
    let mut compressed = lz4_flex::frame::FrameEncoder::new(&mut to);
    tree::pack(&build.prefix, &builds::directory_name(&build.release), &mut compressed)?;
    compressed.finish().map_err(io::Error::other).on("write to", stdout)?;
    to.flush().on("write to", stdout)
}

fn build_in_use(home: &Path) -> Option<Build> {
    let Ok(Current::Link(target)) = builds::current(home) else { return None };
    builds::all(home).ok()?.into_iter().find(|build| build.prefix == target)
}

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Another version than the one that the giver uses.
    pub version: Option<String>,
    /// The host key to accept.
    pub host_key: Option<String>,
    /// Keep it, but let the instance use what it uses.
    pub no_switch: bool,
    /// Take it although it is here.
    pub rebuild: bool,
    /// Say what would be done and stop.
    pub dry_run: bool,
}

/// The taking side: asks the instance of a blurb for its build, keeps it, switches to it.
pub fn run(context: Context, blurb: &Blurb, wanted: &Options) -> Result<Report> {
    let begin = Instant::now();
    super::check_home(&context.instance.home)?;
    if !wanted.no_switch {
        switch::check_programs(context)?;
    }
    let ssh = connect_ssh(context, blurb, wanted.host_key.clone())?;
    let agent = agent::ensure(&*ssh, context.progress)?;
    let Taken { build, origin, replaced } = take(context, &*ssh, &agent, wanted)?;
    let report = Report::new(context, &build.release, origin, wanted.dry_run);
    finish(context, report, &build, replaced, wanted.no_switch, begin)
}

/// What came of asking.
pub struct Taken {
    /// The build, here; with `dry_run`, where it would be.
    pub build: Build,
    /// Whether it was here.
    pub origin: Origin,
    /// The build that it has taken the place of.
    pub replaced: Option<Replaced>,
}

/// Takes the build, or finds that it is here.
pub fn take(context: Context, remote: &dyn Remote, agent: &str, wanted: &Options) -> Result<Taken> {
    let instance = context.instance;
    let progress = context.progress;
    let host = remote.label().to_owned();
    let mut command = format!("{agent} --json give-build");
    if let Some(version) = &wanted.version {
        command += &format!(" {}", ssh::shell_word(&Wanted::parse(version)?.to_string()));
    }
    let mut process = remote.exec(&command)?;
    process.send_eof().map_err(|e| broken(&host, &e))?;
    let incoming = Incoming { inner: Patient::new(process, instance.build.timeout), progress };
    let mut stream = BufReader::with_capacity(256 * 1024, incoming);
    let offer = match read_offer(&mut stream, &host)? {
        Some(offer) => offer,
        None => {
            return Err(last_words(stream, &host).unwrap_or(Error::NoSource { host, said: "nothing".into() }));
        }
    };
    let release = offer.record.version.clone();
    let ours = Machine::here();
    if !ours.runs_what_is_of(&offer.record.machine) {
        let theirs = offer.record.machine.to_string();
        return Err(Error::OtherLibc { host: offer.instance, theirs, ours: ours.to_string() });
    }
    if !wanted.no_switch {
        switch::check(context, release.version())?;
    }
    let waited = std::cell::Cell::new(false);
    let _lock = if wanted.dry_run { None } else { Some(lock(context, &release, OTHERS_BUILD, &waited)?) };
    if let Some(build) = builds::find(&instance.home, &release).filter(|_| !wanted.rebuild || waited.get()) {
        progress.step(format!("PostgreSQL {release} of {} is here already", offer.instance));
        return Ok(Taken { build, origin: Origin::Present, replaced: None });
    }
    let parts = list(&offer.record.with.iter().map(String::as_str).collect::<Vec<_>>());
    let size = bytes_text(offer.record.bytes);
    progress.step(match wanted.dry_run {
        true => format!("{} has PostgreSQL {release} to give: {size}, with {parts}", offer.instance),
        false => format!("taking PostgreSQL {release} from {}: {size}, with {parts}", offer.instance),
    });
    let record = Record { taken_from: Some(offer.instance.clone()), ..offer.record };
    if wanted.dry_run {
        let prefix = instance.home.join(builds::directory_name(&release));
        let build = Build { release, prefix, record: Some(record) };
        return Ok(Taken { build, origin: Origin::Taken, replaced: None });
    }
    let available = crate::durable::available_space(&instance.home)?;
    if available < record.bytes {
        return Err(Error::NoSpace { path: instance.home.clone(), needed: record.bytes, available });
    }
    let stage = tree::scratch(&instance.home, &format!(".postgresql-{release}."))?;
    progress.begin_bytes("take", 0);
    let staged = receive(&mut stream, stage.path(), &release, &host);
    progress.end();
    crate::process::check_interrupt()?;
    // What the giver says of its failure is better than what is seen of it here.
    let staged = match (staged, last_words(stream, &host)) {
        (Ok(staged), None) => staged,
        (_, Some(error)) => return Err(error),
        (Err(error), None) => return Err(error),
    };
    builds::check(&staged, &release)?;
    let (build, replaced) = builds::install(&instance.home, &staged, &record)?;
    Ok(Taken { build, origin: Origin::Taken, replaced })
}

/// How the giver ended, if not well.
fn last_words(stream: BufReader<Incoming>, host: &str) -> Option<Error> {
    let process = stream.into_inner().inner.finish(LAST_WORDS)?;
    match process.finish() {
        Ok(ended) if ended.status == 0 => None,
        Ok(ended) => Some(agent::relayed(host.to_owned(), ended.status, ended.stderr)),
        Err(error) => Some(error),
    }
}

fn broken(host: &str, error: &io::Error) -> Error {
    Error::SshBroken { host: host.to_owned(), why: error.to_string() }
}

/// The offer, after whatever a login profile has printed; none when none came.
fn read_offer(stream: &mut impl BufRead, host: &str) -> Result<Option<Offer>> {
    let mut stream = stream.take(OFFER_LIMIT);
    loop {
        let mut line = Vec::new();
        let read = stream.read_until(b'\n', &mut line);
        crate::process::check_interrupt()?;
        if read.map_err(|e| broken(host, &e))? == 0 {
            return Ok(None);
        }
        if let Some(json) = String::from_utf8_lossy(&line).strip_prefix(MARKER) {
            let offer = serde_json::from_str(json).map_err(|e| broken(host, &io::Error::other(e)))?;
            return Ok(Some(offer));
        }
    }
}

fn receive(stream: &mut impl Read, into: &Path, release: &Release, host: &str) -> Result<std::path::PathBuf> {
    let mut archive = lz4_flex::frame::FrameDecoder::new(stream);
    let name = format!("the build of {host}");
    let staged = tree::unpack(&mut archive, &name, into, &builds::directory_name(release))?;
    // To its very end: a connection that breaks between the last file and the end mark is a broken one.
    // Behind a tar's end there are only zeros, and few.
    io::copy(&mut archive.take(TAIL_LIMIT), &mut io::sink()).map_err(|e| broken(host, &e))?;
    Ok(staged)
}

const TAIL_LIMIT: u64 = 1 << 20;

/// Counts what comes.
struct Incoming<'a> {
    inner: Patient<Box<dyn RemoteProcess>>,
    progress: &'a Progress,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.progress.add(n as u64);
        Ok(n)
    }
}
