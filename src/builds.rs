//! Owns the finished builds of this instance: `~/postgresql-<VERSION>` with its record, `~/postgresql` that
//! points to the one in use, and what a build needs of a machine.

use crate::durable::{self, Context, FileSystems};
use crate::error::{Error, Result};
use crate::postgres::release::Release;
use crate::process;
use crate::source_build::options::package_of_shared_library;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The symbolic link to the build in use, in the instance's home.
pub const LINK: &str = "postgresql";

/// The record in a build's directory.
const RECORD: &str = "pgmahout-build.json";

/// What is known of a build; kept in its directory, so that it travels with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The release.
    pub version: Release,
    /// What `configure` was told, without directories.
    pub options: Vec<String>,
    /// The optional parts that are in it.
    pub with: Vec<String>,
    /// The machine it was built on.
    pub machine: Machine,
    /// When: seconds since 1970.
    pub built_at: i64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Bytes of its files.
    pub bytes: u64,
    /// The SHA-256 of the tarball.
    pub sha256: String,
    /// The instance that it was taken from, when it was not built here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_from: Option<String>,
}

/// What a build needs of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The architecture as `uname -m` says it.
    pub architecture: String,
    /// The C library: `glibc 2.36`.
    pub libc: String,
}

/// A finished build.
#[derive(Clone, Debug)]
pub struct Build {
    /// The release.
    pub release: Release,
    /// Its directory.
    pub prefix: PathBuf,
    /// Its record; none for what somebody else put there.
    pub record: Option<Record>,
}

/// What `~/postgresql` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// There is none.
    None,
    /// It points there.
    Link(PathBuf),
    /// It is no link.
    Taken,
}

/// The name of a build's directory.
pub fn directory_name(release: &Release) -> String {
    format!("postgresql-{release}")
}

/// The build of a release, if it is here.
pub fn find(home: &Path, release: &Release) -> Option<Build> {
    let prefix = home.join(directory_name(release));
    if !prefix.join("bin/postgres").is_file() {
        return None;
    }
    let record = fs::read(prefix.join(RECORD)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Some(Build { release: release.clone(), prefix, record })
}

/// Every build here, oldest version first.
pub fn all(home: &Path) -> Result<Vec<Build>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(home).on("list", home)? {
        let name = entry.on("list", home)?.file_name();
        let release = name.to_str().and_then(|n| n.strip_prefix("postgresql-")).and_then(Release::from_name);
        found.extend(release.and_then(|release| find(home, &release)));
    }
    found.sort_by(|a, b| a.release.cmp(&b.release));
    Ok(found)
}

/// What `~/postgresql` is and points to, as an absolute path.
pub fn current(home: &Path) -> Result<Current> {
    let link = home.join(LINK);
    match fs::read_link(&link) {
        Ok(target) => Ok(Current::Link(home.join(target))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Current::None),
        // EINVAL: it is something else.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(Current::Taken),
        Err(e) => Err(e).on("read", &link),
    }
}

/// A new `~/postgresql` that only needs its name: whatever can fail at making it has not failed.
pub struct PreparedLink {
    made: tempfile::NamedTempFile<()>,
    link: PathBuf,
}

/// Prepares `~/postgresql` to point to `prefix`. A build of this home is named relatively, as the home may be
/// moved or copied.
pub fn prepare_link(home: &Path, prefix: &Path) -> Result<PreparedLink> {
    const NAME: &str = ".postgresql-link.";
    // What a kill has left; the caller holds the lock of the instance.
    for entry in fs::read_dir(home).on("list", home)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(NAME) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let target = prefix.strip_prefix(home).unwrap_or(prefix);
    let made = tempfile::Builder::new()
        .prefix(NAME)
        .make_in(home, |path| std::os::unix::fs::symlink(target, path))
        .on("create a link in", home)?;
    Ok(PreparedLink { made, link: home.join(LINK) })
}

impl PreparedLink {
    /// Gives it its name in one step: whoever looks sees the old link or the new one.
    pub fn put(self) -> Result<()> {
        self.made.persist(&self.link).map_err(|e| e.error).on("rename to", &self.link)?;
        durable::sync_directory(durable::parent(&self.link))
    }
}

/// Takes `~/postgresql` away again, where there was none before.
pub fn remove_link(home: &Path) -> Result<()> {
    let link = home.join(LINK);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", &link),
        _ => Ok(()),
    }
}

/// A build whose place a new one of the same version has taken. It is kept until the new one has started.
#[derive(Debug)]
pub struct Replaced {
    prefix: PathBuf,
    old: PathBuf,
}

impl Replaced {
    fn of(home: &Path, release: &Release) -> Replaced {
        let name = directory_name(release);
        Replaced { old: home.join(format!(".replaced-{name}")), prefix: home.join(name) }
    }

    /// What a kill between a replacement and the new build's start has left.
    pub fn find(home: &Path, release: &Release) -> Option<Replaced> {
        Some(Replaced::of(home, release)).filter(|replaced| replaced.old.exists())
    }

    /// Puts the old one back; the new one is removed.
    pub fn restore(&self) -> Result<()> {
        if !durable::exchange(&self.old, &self.prefix)? {
            let new = self.old.with_file_name(".failed-build");
            durable::remove_tree(&new)?;
            durable::rename(&self.prefix, &new)?;
            durable::rename(&self.old, &self.prefix)?;
            return durable::remove_tree(&new);
        }
        durable::remove_tree(&self.old)
    }

    /// The old one is not needed any more.
    pub fn forget(&self) -> Result<()> {
        durable::remove_tree(&self.old)
    }
}

/// Puts a complete installation in its place, with its record. It must lie on the same file system as `home`.
/// One that is there already is replaced, and kept aside for the time being.
pub fn install(home: &Path, staged: &Path, record: &Record) -> Result<(Build, Option<Replaced>)> {
    let json = serde_json::to_vec_pretty(record).expect("a record is plain data");
    durable::write(&staged.join(RECORD), &json, 0o644)?;
    FileSystems::of([staged])?.sync()?;
    let prefix = home.join(directory_name(&record.version));
    let replaced = Replaced::of(home, &record.version);
    let there = prefix.exists();
    if there {
        replaced.forget()?;
        if durable::exchange(staged, &prefix)? {
            durable::rename(staged, &replaced.old)?;
        } else {
            // Without the exchange there is an instant without either; better than a mixture of both.
            durable::rename(&prefix, &replaced.old)?;
            if let Err(error) = durable::rename(staged, &prefix) {
                durable::rename(&replaced.old, &prefix)?;
                return Err(error);
            }
        }
    } else {
        durable::rename(staged, &prefix)?;
    }
    let build = Build { release: record.version.clone(), prefix, record: Some(record.clone()) };
    Ok((build, there.then_some(replaced)))
}

/// Removes a build. It vanishes in one step: a kill leaves no half of it under its name.
pub fn remove(build: &Build) -> Result<()> {
    let parent = durable::parent(&build.prefix);
    let doomed = parent.join(format!(".{}.removed", directory_name(&build.release)));
    durable::remove_tree(&doomed)?;
    durable::rename(&build.prefix, &doomed)?;
    durable::remove_tree(&doomed)
}

/// Sees that the programs of an installation run here and are of this release.
///
/// # Errors
/// [`Error::BuildDoesNotRun`], with what the loader says.
pub fn check(prefix: &Path, release: &Release) -> Result<()> {
    for program in ["postgres", "initdb", "pg_ctl"] {
        let path = prefix.join("bin").join(program);
        let finished = process::run_any(Command::new(&path).arg("--version"), Duration::from_secs(30))?;
        let said = finished.stdout.trim();
        // "postgres (PostgreSQL) 17.6"
        if finished.status.success()
            && said.split_whitespace().nth(2).is_some_and(|word| is_version(word, release))
        {
            continue;
        }
        let why = match finished.stderr.trim() {
            "" if said.is_empty() => format!("it says nothing ({})", finished.status),
            "" => format!("it says {said:?}"),
            stderr => stderr.to_owned(),
        };
        // "postgres: error while loading shared libraries: libicui18n.so.72: cannot open shared object file: …"
        let library = why.split("loading shared libraries: ").nth(1).and_then(|rest| rest.split(':').next());
        let package = library.and_then(package_of_shared_library);
        return Err(Error::BuildDoesNotRun {
            program: (*program).to_owned(),
            release: release.to_string(),
            why,
            package,
        });
    }
    Ok(())
}

/// "15.18", also with what `--with-extra-version` appends, but not "15.180".
fn is_version(word: &str, release: &Release) -> bool {
    let rest = word.strip_prefix(release.name());
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

impl Machine {
    /// This machine. The C library is the one that programs here are linked with, not this program's own.
    pub fn here() -> Machine {
        let libc = process::run(Command::new("getconf").arg("GNU_LIBC_VERSION"), Duration::from_secs(10))
            .map(|finished| finished.stdout.trim().to_owned())
            .unwrap_or_else(|_| "unknown".into());
        Machine { architecture: std::env::consts::ARCH.into(), libc }
    }

    /// Whether what was built on `other` can run here: the same architecture, the same kind of C library, and
    /// ours not older (glibc keeps old programs running, not new ones).
    pub fn runs_what_is_of(&self, other: &Machine) -> bool {
        let split = |libc: &str| -> Option<(String, Vec<u32>)> {
            let (kind, version) = libc.split_once(' ')?;
            let parts = version.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
            Some((kind.to_owned(), parts))
        };
        if self.architecture != other.architecture {
            return false;
        }
        match (split(&self.libc), split(&other.libc)) {
            (Some((ours, our_version)), Some((theirs, their_version))) => {
                ours == theirs && our_version >= their_version
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.architecture, self.libc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(architecture: &str, libc: &str) -> Machine {
        Machine { architecture: architecture.into(), libc: libc.into() }
    }

    fn record(version: &str) -> Record {
        Record {
            version: Release::from_name(version).unwrap(),
            options: vec!["--with-openssl".into()],
            with: vec!["OpenSSL".into()],
            machine: machine("x86_64", "glibc 2.36"),
            built_at: 1_795_191_420,
            seconds: 170.0,
            bytes: 35_000_000,
            sha256: "0".repeat(64),
            taken_from: None,
        }
    }

    /// An installation whose programs say that they are `version`.
    fn staged(home: &Path, version: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let staged = home.join(".stage");
        fs::create_dir_all(staged.join("bin")).unwrap();
        for program in ["postgres", "initdb", "pg_ctl"] {
            let path = staged.join("bin").join(program);
            fs::write(&path, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        staged
    }

    #[test]
    fn a_build_is_put_found_pointed_to_and_removed() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        for version in ["15.10", "15.9"] {
            let staged = staged(home, version);
            check(&staged, &Release::from_name(version).unwrap()).unwrap();
            assert!(install(home, &staged, &record(version)).unwrap().1.is_none());
            assert!(!staged.exists());
        }
        fs::create_dir(home.join("postgresql-15.8")).unwrap();
        fs::create_dir(home.join("postgresql-notes")).unwrap();
        let builds = all(home).unwrap();
        let names: Vec<_> = builds.iter().map(|b| b.release.name()).collect();
        assert_eq!(names, ["15.9", "15.10"], "without what is none");
        assert_eq!(builds[1].record, Some(record("15.10")));

        assert_eq!(current(home).unwrap(), Current::None);
        std::os::unix::fs::symlink("left by a kill", home.join(".postgresql-link.x")).unwrap();
        prepare_link(home, &builds[0].prefix).unwrap().put().unwrap();
        prepare_link(home, &builds[1].prefix).unwrap().put().unwrap();
        assert_eq!(current(home).unwrap(), Current::Link(builds[1].prefix.clone()));
        assert_eq!(fs::read_link(home.join(LINK)).unwrap(), Path::new("postgresql-15.10"), "relative");

        remove(&builds[0]).unwrap();
        assert_eq!(all(home).unwrap().len(), 1);
        let hidden = fs::read_dir(home).unwrap().flatten();
        let left: Vec<_> =
            hidden.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_build_replaces_the_one_that_is_there_and_can_be_taken_back() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let old = record("15.9");
        let new = Record { options: vec!["--with-perl".into()], ..old.clone() };
        install(home, &staged(home, "15.9"), &old).unwrap();
        let there = || all(home).unwrap().into_iter().map(|build| build.record.unwrap()).collect::<Vec<_>>();

        let (_, replaced) = install(home, &staged(home, "15.9"), &new).unwrap();
        assert_eq!(there()[0], new);
        replaced.unwrap().restore().unwrap();
        assert_eq!(there(), [old]);
        assert_eq!(fs::read_dir(home).unwrap().count(), 1);

        install(home, &staged(home, "15.9"), &new).unwrap();
        Replaced::find(home, &new.version).unwrap().forget().unwrap();
        assert_eq!(there(), [new]);
        assert_eq!(fs::read_dir(home).unwrap().count(), 1);
    }

    #[test]
    fn a_version_may_have_an_appendix() {
        let release = Release::from_name("15.1").unwrap();
        assert!(is_version("15.1", &release) && is_version("15.1-local", &release));
        assert!(!is_version("15.18", &release) && !is_version("15.1.2", &release));
    }

    #[test]
    fn a_directory_in_the_links_place_is_seen() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(LINK)).unwrap();
        assert_eq!(current(home.path()).unwrap(), Current::Taken);
    }

    #[test]
    fn programs_of_another_release_do_not_pass() {
        let home = tempfile::tempdir().unwrap();
        let staged = staged(home.path(), "15.9");
        let error = check(&staged, &Release::from_name("15.10").unwrap()).unwrap_err().to_string();
        assert!(error.contains("15.9"), "{error}");
        fs::remove_file(staged.join("bin/initdb")).unwrap();
        assert!(check(&staged, &Release::from_name("15.9").unwrap()).is_err());
    }

    #[test]
    fn a_build_runs_on_its_kind_of_machine_and_newer_ones() {
        let built_on = machine("x86_64", "glibc 2.36");
        assert!(built_on.runs_what_is_of(&built_on));
        assert!(machine("x86_64", "glibc 2.41").runs_what_is_of(&built_on));
        assert!(machine("x86_64", "glibc 2.100").runs_what_is_of(&built_on));
        assert!(!machine("x86_64", "glibc 2.31").runs_what_is_of(&built_on));
        assert!(!machine("aarch64", "glibc 2.36").runs_what_is_of(&built_on));
        assert!(!machine("x86_64", "musl 1.2.5").runs_what_is_of(&built_on));
        assert!(!machine("x86_64", "unknown").runs_what_is_of(&machine("x86_64", "unknown")));
    }

    #[test]
    fn this_machine_knows_its_c_library() {
        let here = Machine::here();
        assert!(here.runs_what_is_of(&here), "{here}");
    }
}
