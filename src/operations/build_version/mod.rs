//! Gives the instance the PostgreSQL that is asked for: found, downloaded, checked, built and kept beside the
//! others, or taken from an instance that has it; then switched to. Until the switch nothing that runs is
//! touched, and the switch is one rename and a restart.

pub mod share;
pub mod switch;

use super::Context;
use crate::builds::{self, Build, Machine, Record, Replaced};
use crate::durable::{self, Context as _, Lock};
use crate::error::{Error, Result};
use crate::instance::fit_for_make;
use crate::layout;
use crate::postgres::release::{Release, Wanted};
use crate::progress::{bytes_text, duration_text};
use crate::source_build::compile::{self, Job};
use crate::source_build::mirror::{Mirrors, is_sha256};
use crate::source_build::options::{self, Chosen};
use crate::source_build::tree;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The version; none for what the environment or `dotcloud.yml` says.
    pub version: Option<String>,
    /// The tarball's SHA-256, in place of the published one.
    pub sha256: Option<String>,
    /// Build and keep it, but let the instance use what it uses.
    pub no_switch: bool,
    /// Build it although it is here.
    pub rebuild: bool,
    /// Say what would be done and stop.
    pub dry_run: bool,
    /// Options of `configure`, after those of the settings.
    pub options: Vec<String>,
    /// Compilers at the same time.
    pub jobs: Option<usize>,
}

/// Where a build comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It was here.
    Present,
    /// It was compiled.
    Built,
    /// It was taken from another instance.
    Taken,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The release.
    pub version: Release,
    /// Where it lies.
    pub directory: PathBuf,
    /// Where it comes from; with `dry_run`, would come from.
    pub origin: Origin,
    /// What `configure` was told.
    pub options: Option<Vec<String>>,
    /// The optional parts that are in it.
    pub with: Option<Vec<String>>,
    /// The tarball, when it was, or would be, compiled.
    pub source: Option<String>,
    /// Bytes of its files.
    pub bytes: Option<u64>,
    /// Nothing was done.
    pub dry_run: bool,
    /// The instance uses it.
    pub in_use: bool,
    /// The instance uses it since now.
    pub switched: bool,
    /// The server was restarted.
    pub restarted: bool,
    /// What it used before, when that is another.
    pub previous: Option<String>,
    /// Seconds that all of it took.
    pub seconds: f64,
}

impl Report {
    /// Of a release that nothing has been done with yet.
    fn new(context: Context, release: &Release, origin: Origin, dry_run: bool) -> Report {
        Report {
            instance: context.instance.name.clone(),
            version: release.clone(),
            directory: context.instance.home.join(builds::directory_name(release)),
            origin,
            options: None,
            with: None,
            source: None,
            bytes: None,
            dry_run,
            in_use: false,
            switched: false,
            restarted: false,
            previous: None,
            seconds: 0.0,
        }
    }
}

/// A build may take this long, and another one of the same version waits for it.
const OTHERS_BUILD: Duration = Duration::from_secs(4 * 3600);

/// Runs the whole of it.
pub fn run(context: Context, wanted: &Options) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    check_home(&instance.home)?;
    if let Some(sum) = wanted.sha256.as_ref().filter(|sum| !is_sha256(sum)) {
        return Err(Error::ChecksumArgument { text: sum.clone() });
    }
    let version = Wanted::parse(&named_version(context, wanted.version.as_deref())?)?;
    if !wanted.no_switch {
        switch::check(context, version.version())?;
    }
    let mirrors = Mirrors::new(&instance.build.mirrors, instance.connect_timeout)?;
    let release = mirrors.resolve(&version)?;
    if let Wanted::Newest(_) = version {
        context.progress.step(format!("the newest PostgreSQL {version} is {release}"));
    }
    let mut report = Report::new(context, &release, Origin::Present, wanted.dry_run);
    let mut replaced = None;
    let build = match builds::find(&instance.home, &release).filter(|_| !wanted.rebuild) {
        Some(build) => {
            warn_about_options(context, &build, wanted);
            build
        }
        None if wanted.dry_run => {
            let chosen = prepare(context, &release, wanted)?;
            let source = mirrors.find(&release, wanted.sha256.as_deref())?;
            report.origin = Origin::Built;
            report.source = Some(source.to_string());
            report.options = Some(chosen.arguments);
            report.with = Some(chosen.with.iter().map(|part| part.to_string()).collect());
            report.seconds = begin.elapsed().as_secs_f64();
            return Ok(report);
        }
        None => {
            let built = build_alone(context, &mirrors, &release, wanted)?;
            report.origin = if built.source.is_some() { Origin::Built } else { Origin::Present };
            report.source = built.source;
            replaced = built.replaced;
            built.build
        }
    };
    finish(context, report, &build, replaced, wanted.no_switch, begin)
}

/// Switches, unless that is not wanted, and completes the report.
fn finish(
    context: Context,
    mut report: Report,
    build: &Build,
    replaced: Option<Replaced>,
    no_switch: bool,
    begin: Instant,
) -> Result<Report> {
    report.directory = build.prefix.clone();
    if let Some(record) = &build.record {
        report.options = Some(record.options.clone());
        report.with = Some(record.with.clone());
        report.bytes = Some(record.bytes);
    }
    if no_switch || report.dry_run {
        report.in_use = switch::is_linked(context, build)?;
        if let Some(replaced) = replaced {
            replaced.forget()?;
        }
    } else {
        let done = switch::switch(context, build, replaced)?;
        report.in_use = true;
        report.switched = done.switched;
        report.restarted = done.restarted;
        report.previous = done.previous;
    }
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// What runs as another account could not be switched, and what it built not be used.
fn check_home(home: &Path) -> Result<()> {
    let owner = fs::metadata(home).on("look at", home)?.uid();
    if owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let name = nix::unistd::User::from_uid(owner.into()).ok().flatten();
    let owner = name.map_or_else(|| owner.to_string(), |user| user.name);
    Err(Error::NotOurHome { home: home.into(), owner })
}

/// The version of the argument, else of `$SERVICE_VERSION`, else of `dotcloud.yml`.
fn named_version(context: Context, argument: Option<&str>) -> Result<String> {
    if let Some(version) = argument {
        return Ok(version.to_owned());
    }
    if let Some(version) = std::env::var("SERVICE_VERSION").ok().filter(|v| !v.is_empty()) {
        context.progress.step(format!("version {version}, says $SERVICE_VERSION"));
        return Ok(version);
    }
    let (version, file) = layout::version_of_dotcloud_yml(&context.instance.home)
        .map_err(|looked_at| Error::NoVersionNamed { looked_at })?;
    context.progress.step(format!("version {version}, says {}", file.display()));
    Ok(version)
}

fn all_options(context: Context, wanted: &Options) -> Vec<String> {
    context.instance.build.options.iter().chain(&wanted.options).cloned().collect()
}

fn warn_about_options(context: Context, build: &Build, wanted: &Options) {
    let Some(record) = &build.record else { return };
    if wanted.sha256.as_ref().is_some_and(|sum| !sum.eq_ignore_ascii_case(&record.sha256)) {
        context.progress.warn(format!(
            "PostgreSQL {} was built here from another tarball ({}); --rebuild builds it anew",
            build.release, record.sha256
        ));
    }
    let asked = all_options(context, wanted);
    let lacks: Vec<_> = asked.iter().filter(|option| !record.options.contains(option)).cloned().collect();
    if !lacks.is_empty() {
        context.progress.warn(format!(
            "PostgreSQL {} was built here without {}; --rebuild builds it anew",
            build.release,
            lacks.join(" ")
        ));
    }
}

/// Everything that can be found out about this machine before the first byte is downloaded.
fn prepare(context: Context, release: &Release, wanted: &Options) -> Result<Chosen> {
    let directory = &context.instance.build.directory;
    if !fit_for_make(directory) {
        return Err(Error::SettingValue {
            name: "build_directory",
            value: directory.display().to_string(),
            wanted: "a path of letters, digits and . _ - + , @, as make cannot quote",
        });
    }
    let asked = all_options(context, wanted);
    // Options first: a mistyped one is no reason to start a compiler.
    options::choose(release.version(), &asked, |_| true)?;
    options::check_tools(release.version(), &asked)?;
    options::choose(release.version(), &asked, options::survey(&asked)?)
}

/// What came of building.
struct Built {
    build: Build,
    /// The tarball; none when somebody else built it in the meantime.
    source: Option<String>,
    /// The build that it has taken the place of.
    replaced: Option<Replaced>,
}

/// Builds under the version's lock. When somebody else was at it, their result is taken.
fn build_alone(context: Context, mirrors: &Mirrors, release: &Release, wanted: &Options) -> Result<Built> {
    let instance = context.instance;
    let progress = context.progress;
    let chosen = prepare(context, release, wanted)?;
    let waited = std::cell::Cell::new(false);
    let _lock = lock(context, release, OTHERS_BUILD, &waited)?;
    if let Some(build) = builds::find(&instance.home, release).filter(|_| !wanted.rebuild || waited.get()) {
        warn_about_options(context, &build, wanted);
        return Ok(Built { build, source: None, replaced: None });
    }
    let begin = Instant::now();
    progress.step(format!("PostgreSQL {release} with {}{}", list(&chosen.with), without(&chosen)));

    let place = &instance.build.directory;
    durable::create_private_directory(place)?;
    let sources = instance.state_directory.join("sources");
    let given = wanted.sha256.as_deref();
    let room = |bytes| check_room(context, bytes);
    let (source, archive) = mirrors.fetch_release(release, given, &sources, progress, room)?;

    // Instances of one account may share the place, and each its own lock.
    let scratch = tree::scratch(place, &format!("pgmahout-{}-{release}.", short_name(&instance.home)))?;
    let top = builds::directory_name(release);
    progress.step("unpacking");
    let tree = tree::unpack_file(&archive, scratch.path(), &top, progress)?;
    let log = instance.state_directory.join(format!("build-{release}.log"));
    let job = Job {
        release,
        tree: &tree,
        arguments: &chosen.arguments,
        jobs: wanted.jobs.unwrap_or(instance.build.jobs),
        // Here and not in the home, whose name make may not be able to quote.
        stage: &scratch.path().join("stage"),
        log: &log,
        limit: instance.build.timeout,
    };
    let staged = compile::run(&job, progress)?;
    builds::check(&staged, release)?;
    let stage = tree::scratch(&instance.home, &format!(".postgresql-{release}."))?;
    let staged = tree::carry(&staged, stage.path(), &top)?;
    let record = Record {
        version: release.clone(),
        options: chosen.arguments,
        with: chosen.with.iter().map(|part| part.to_string()).collect(),
        machine: Machine::here(),
        built_at: now(),
        seconds: begin.elapsed().as_secs_f64(),
        bytes: tree::measure(&staged)?.0,
        sha256: source.sha256.clone(),
        taken_from: None,
    };
    let (build, replaced) = builds::install(&instance.home, &staged, &record)?;
    progress.step(format!(
        "PostgreSQL {release} is built: {} in {}, {}",
        bytes_text(record.bytes),
        build.prefix.display(),
        duration_text(record.seconds)
    ));
    // What it was made of is not needed any more; its checksum is in the record.
    fs::remove_file(&archive).on("remove", &archive)?;
    Ok(Built { build, source: Some(source.to_string()), replaced })
}

/// The lock of a version: whoever builds, takes, gives or removes it has it.
fn lock(
    context: Context,
    release: &Release,
    limit: Duration,
    waited: &std::cell::Cell<bool>,
) -> Result<Lock> {
    let path = context.instance.state_directory.join(format!("build-{release}.lock"));
    let doing = format!("build-version {release}");
    Lock::wait(&path, &doing, limit, |holder| {
        waited.set(true);
        context.progress.step(format!("waiting for another one at work on PostgreSQL {release}: {holder}"));
    })
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "nothing optional".into() } else { words.join(", ") }
}

fn without(chosen: &Chosen) -> String {
    let absent = |(name, package): &(&str, Option<&str>)| match package {
        Some(package) => format!("{name} (apt-get install {package})"),
        None => name.to_string(),
    };
    match chosen.without.iter().map(absent).collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        some => format!("; without {}", some.join(", ")),
    }
}

/// A build of 15 or 17 takes, from its tarball of 23 MB on: 165 MB unpacked, 55 MB of objects, 35 MB installed.
const TREE_PER_TARBALL: u64 = 11;
const INSTALLED_PER_TARBALL: u64 = 2;

fn check_room(context: Context, tarball: u64) -> Result<()> {
    let instance = context.instance;
    let device = |path: &Path| fs::metadata(durable::existing_ancestor(path)).map(|m| m.dev()).unwrap_or(0);
    let sources = instance.state_directory.join("sources");
    let needs = [
        (&instance.build.directory, tarball * TREE_PER_TARBALL),
        (&instance.home, tarball * INSTALLED_PER_TARBALL),
        (&sources, tarball),
    ];
    for (path, _) in &needs {
        let here = device(path);
        let needed = needs.iter().filter(|(other, _)| device(other) == here).map(|(_, bytes)| bytes).sum();
        let available = durable::available_space(path)?;
        if available < needed {
            return Err(Error::NoSpace { path: path.to_path_buf(), needed, available });
        }
    }
    Ok(())
}

/// A name for a home that can stand in a path of its own.
fn short_name(home: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = Sha256::digest(home.as_os_str().as_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// One line of `--list`.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// The version.
    pub version: String,
    /// Where it lies.
    pub directory: PathBuf,
    /// Bytes of its files; unknown for what a package installed.
    pub bytes: Option<u64>,
    /// When it was built: seconds since 1970.
    pub built_at: Option<i64>,
    /// What `configure` was told.
    pub options: Option<Vec<String>>,
    /// The optional parts that are in it.
    pub with: Option<Vec<String>>,
    /// The instance it was taken from.
    pub taken_from: Option<String>,
    /// The instance uses it.
    pub in_use: bool,
    /// The server that runs is of it.
    pub running: bool,
}

/// The builds of this instance, and what it uses when that is none of them.
pub fn list_builds(context: Context) -> Result<Vec<Listed>> {
    let instance = context.instance;
    let running = switch::running_program(instance);
    let mut listed = Vec::new();
    for build in builds::all(&instance.home)? {
        let record = build.record.as_ref();
        let bytes = match record {
            Some(record) => record.bytes,
            None => tree::measure(&build.prefix)?.0,
        };
        listed.push(Listed {
            version: build.release.to_string(),
            bytes: Some(bytes),
            built_at: record.map(|r| r.built_at),
            options: record.map(|r| r.options.clone()),
            with: record.map(|r| r.with.clone()),
            taken_from: record.and_then(|r| r.taken_from.clone()),
            in_use: switch::is_linked(context, &build)?,
            running: switch::is_program_of(running.as_deref(), &build.prefix),
            directory: build.prefix,
        });
    }
    if !listed.iter().any(|build| build.in_use)
        && let Some(directory) = instance.bin_directory()
        && let Ok(version) = instance.program_version()
    {
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.into());
        let prefix = directory.parent().unwrap_or(&directory).to_owned();
        listed.push(Listed {
            version: version.to_string(),
            bytes: None,
            built_at: None,
            options: None,
            with: None,
            taken_from: None,
            in_use: true,
            running: switch::is_program_of(running.as_deref(), &prefix),
            directory: prefix,
        });
    }
    Ok(listed)
}

/// What was removed.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// This instance.
    pub instance: String,
    /// The release.
    pub version: Release,
    /// Where it lay.
    pub directory: PathBuf,
    /// Bytes that are free again.
    pub bytes: u64,
    /// Nothing was done.
    pub dry_run: bool,
}

/// Removes a build, never one that is in use. A major version means the only build of it.
pub fn remove(context: Context, version: &str, dry_run: bool) -> Result<Removed> {
    let instance = context.instance;
    check_home(&instance.home)?;
    let wanted = Wanted::parse(version)?;
    let all = builds::all(&instance.home)?;
    let mut meant = all.iter().filter(|build| wanted.accepts(&build.release));
    let build = match (meant.next(), meant.next()) {
        (Some(build), None) => build,
        _ => {
            let known = all.iter().map(|build| build.release.to_string()).collect();
            return Err(Error::NoSuchBuild { release: wanted.to_string(), known });
        }
    };
    let release = &build.release;
    let _lock = lock(context, release, OTHERS_BUILD, &std::cell::Cell::new(false))?;
    // A switch to it must not come in between.
    let _instance_lock = switch::lock(context, &format!("build-version --remove {release}"))?;
    if let Some(by) = switch::user_of(context, build)? {
        return Err(Error::BuildInUse { release: release.to_string(), by });
    }
    let bytes = tree::measure(&build.prefix)?.0;
    if !dry_run {
        builds::remove(build)?;
        let _ = fs::remove_file(instance.state_directory.join(format!("build-{release}.log")));
    }
    let (name, directory) = (instance.name.clone(), build.prefix.clone());
    Ok(Removed { instance: name, version: release.clone(), directory, bytes, dry_run })
}
