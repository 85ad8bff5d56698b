//! PostgreSQL as the agent builds it from its real sources, once for all tests and runs.

use super::account::must;
use super::host::Host;
use super::source::sha256;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is in a directory, sorted; nothing where there is none.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The sources that scripts/bootstrap --tests fetches, laid out as a mirror.
fn real_sources() -> PathBuf {
    let directory = std::env::var_os("PGMAHOUT_SOURCES").map(PathBuf::from).unwrap_or_else(|| {
        if nix::unistd::geteuid().is_root() {
            return "/var/cache/pgmahout/sources".into();
        }
        let home = PathBuf::from(std::env::var_os("HOME").expect("HOME"));
        std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("pgmahout/sources")
    });
    assert!(directory.is_dir(), "no sources in {}: run scripts/bootstrap --tests", directory.display());
    directory
}

/// Builds PostgreSQL of this major version on a host and gives the version. A build takes minutes, so it is kept
/// in target/real-builds as long as the tarball and what builds it are the same. It is built without optimisation, which
/// is half of the time.
pub fn really_build(host: &Host, major: &str) -> String {
    let mirror = real_sources();
    let newest = names(&mirror).into_iter().rfind(|name| name.starts_with(&format!("v{major}.")));
    let version = newest.unwrap_or_else(|| panic!("no {major} in {}", mirror.display()))[1..].to_owned();
    let top = format!("postgresql-{version}");
    let mut inputs = std::fs::read(mirror.join(format!("v{version}/{top}.tar.bz2"))).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parts =
        names(&root.join("src/source_build")).into_iter().map(|name| format!("src/source_build/{name}"));
    for part in parts.chain(["src/builds.rs".into()]) {
        inputs.extend(std::fs::read(root.join(part)).unwrap());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let kept = target.join("real-builds").join(sha256(&inputs));
    let archive = kept.join(format!("{top}.tar"));
    if archive.exists() {
        eprintln!("PostgreSQL {version} is the one of an earlier run: {}", archive.display());
        let from = std::fs::File::open(&archive).unwrap();
        must(host.account.command("tar").args(["-xf", "-", "-C"]).arg(&host.home).stdin(from));
        return version;
    }
    let url = format!("file://{}", mirror.display());
    let built = host
        .agent(&["--json", "build-version", major, "--no-switch", "--mirror", &url, "--", "CFLAGS=-O0"])
        .limit(30)
        .run()
        .json();
    assert_eq!((&built["version"], &built["origin"]), (&json!(version), &json!("built")), "{built}");
    // What was built from other inputs is of no use any more.
    for entry in std::fs::read_dir(kept.parent().unwrap()).into_iter().flatten().flatten() {
        if entry.path().join(format!("{top}.tar")).exists() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    std::fs::create_dir_all(&kept).unwrap();
    must(Command::new("tar").arg("-cf").arg(kept.join("new")).arg("-C").arg(&host.home).arg(&top));
    std::fs::rename(kept.join("new"), archive).unwrap();
    version
}
