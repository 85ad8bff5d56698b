//! Finds programs of PostgreSQL that are new enough for a backup: of the server in use, of the builds here, of
//! Debian's packages, of the PATH.

use crate::builds;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::version::PgVersion;
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A program and its version.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub version: PgVersion,
}

/// Debian's directory of versions, each with a `bin`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The program there; none where it does not run.
pub fn at(path: &Path) -> Option<Tool> {
    let said = process::run(Command::new(path).arg("--version"), Duration::from_secs(30)).ok()?;
    Some(Tool { path: path.into(), version: PgVersion::parse(said.stdout.trim()).ok()? })
}

/// Every program of this name on this machine, oldest first.
pub fn all(instance: &Instance, name: &str) -> Vec<Tool> {
    let mut directories: Vec<PathBuf> = instance.bin_directory().map(Into::into).into_iter().collect();
    directories
        .extend(builds::all(&instance.home).unwrap_or_default().into_iter().map(|b| b.prefix.join("bin")));
    directories
        .extend(std::fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|e| e.path().join("bin")));
    let mut paths: Vec<PathBuf> = directories.into_iter().map(|directory| directory.join(name)).collect();
    paths.extend(which::which(name));
    let mut found: Vec<Tool> = Vec::new();
    for path in paths {
        let Ok(path) = path.canonicalize() else { continue };
        // Debian's pg_wrapper in the PATH picks one of those that are known already.
        if found.iter().any(|tool| tool.path == path) || path.ends_with("pg_wrapper") {
            continue;
        }
        found.extend(at(&path));
    }
    found.sort_by_key(|tool| tool.version);
    found
}

/// The one to use: not older than `wanted`, and of the server's own version where that is new enough, for a newer
/// one says what an older server does not understand.
pub fn find(instance: &Instance, name: &'static str, wanted: PgVersion, server: PgVersion) -> Result<Tool> {
    let found = all(instance, name);
    let newest = found.last().map(|tool| tool.version.to_string());
    let fits = |tool: &&Tool| tool.version >= wanted || tool.version.same_major(wanted);
    let least =
        found.iter().filter(fits).find(|tool| tool.version >= server || tool.version.same_major(server));
    let tool = least.or_else(|| found.iter().rev().find(fits)).cloned();
    tool.ok_or_else(|| Error::BackupTool { program: name, wanted: wanted.major(), found: newest })
}
