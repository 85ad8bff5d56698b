//! Owns configure, make and install: from an unpacked source tree to an installation in a directory of its own,
//! with every word of the tools in a log file and what went wrong in the error.

use crate::durable::Context;
use crate::error::{Error, Result};
use crate::postgres::release::Release;
use crate::process;
use crate::progress::{Progress, duration_text};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What is to be built, and where.
pub struct Job<'a> {
    /// The release.
    pub release: &'a Release,
    /// Its unpacked tree; it is built in place.
    pub tree: &'a Path,
    /// The arguments of `configure`, without those about directories.
    pub arguments: &'a [String],
    /// Compilers at the same time.
    pub jobs: usize,
    /// Where the installation is staged (make's DESTDIR).
    pub stage: &'a Path,
    /// The log file, written anew.
    pub log: &'a Path,
    /// What each phase may take.
    pub limit: Duration,
}

/// The directory that `configure` is told. Nothing is ever there: a PostgreSQL that is moved as a whole finds
/// its parts by where its own programs are (src/port/path.c), and its libraries by `$ORIGIN`. With the path of
/// one instance compiled in, no other could take the build.
pub fn compiled_prefix(release: &Release) -> String {
    format!("/usr/local/postgresql-{release}")
}

/// Where the programs find libpq: beside themselves, wherever that is. `$$` is how make spells `$`. It goes to
/// make, as configure would lose a `$` on the way.
const RPATH: &str = "rpathdir=$$ORIGIN/../lib";

/// Builds and stages; gives the staged installation, below `stage`.
///
/// # Errors
/// [`Error::BuildFailed`] with the last words of the tool that failed.
pub fn run(job: &Job, progress: &Progress) -> Result<PathBuf> {
    let mut log = Log::create(job.log)?;
    let release = job.release;
    let prefix = compiled_prefix(release);

    let configure = fs::read_to_string(job.tree.join("configure")).unwrap_or_default();
    // Two of three that its text names are made.
    let checks = configure.matches("checking ").count() * 2 / 3;
    let mut command = Command::new("./configure");
    command.arg(format!("--prefix={prefix}")).args(job.arguments);
    progress.step(format!("configure {}", job.arguments.join(" ")));
    progress.begin_about("configure", checks as u64, "checks");
    phase(job, &mut log, "configure", command, |line| {
        if line.starts_with("checking ") {
            progress.add(1);
        }
    })
    .inspect_err(|_| progress.end())?;
    progress.end();

    let begin = Instant::now();
    progress.step(format!("make -j{}", job.jobs));
    progress.begin_about("make", estimate(job.tree), "files");
    let mut compiled = 0;
    let outcome = [None, Some("contrib")].into_iter().try_for_each(|directory| {
        phase(job, &mut log, "make", make(job, directory, &["all"]), |line| {
            if line.contains(" -c ") && line.contains(" -o ") {
                compiled += 1;
                progress.add(1);
            }
        })
    });
    progress.end();
    outcome?;
    progress.detail(format!("{compiled} files in {}", duration_text(begin.elapsed().as_secs_f64())));

    progress.step("make install");
    let destination = format!("DESTDIR={}", job.stage.display());
    for directory in [None, Some("contrib")] {
        phase(job, &mut log, "make install", make(job, directory, &["install", &destination]), |_| ())?;
    }
    log.flush()?;
    let staged = job.stage.join(prefix.trim_start_matches('/'));
    make_relocatable(&staged, &prefix)?;
    Ok(staged)
}

fn make(job: &Job, directory: Option<&str>, targets: &[&str]) -> Command {
    let mut command = Command::new("make");
    command.args(directory.map(|d| format!("--directory={d}")));
    command.arg(format!("-j{}", job.jobs)).args(targets).arg(RPATH);
    command
}

/// About how many files will be compiled: as many as there are, for some are for other systems, and some are
/// compiled two or three times.
fn estimate(tree: &Path) -> u64 {
    const ELSEWHERE: [&str; 3] = ["src/test", "src/tools", "src/tutorial"];
    let mut count = 0;
    let mut pending = vec![tree.join("src"), tree.join("contrib")];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let relative = path.strip_prefix(tree).unwrap_or(&path);
                if !ELSEWHERE.iter().any(|d| relative.starts_with(d)) && !relative.ends_with("ecpg/test") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "c") {
                count += 1;
            }
        }
    }
    count
}

fn phase(
    job: &Job,
    log: &mut Log,
    name: &'static str,
    mut command: Command,
    mut seen: impl FnMut(&str),
) -> Result<()> {
    command.current_dir(job.tree).env("LC_ALL", "C");
    // A make that runs us, or an operator's DESTDIR, is not this one's business.
    for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "DESTDIR", "CONFIG_SITE"] {
        command.env_remove(variable);
    }
    log.write(&format!("$ {command:?}"))?;
    let status = process::run_lines(command, job.limit, |line| {
        seen(line);
        log.line(line)
    });
    log.flush()?;
    let status = status?;
    if status.success() {
        return Ok(());
    }
    if log.disk_is_full {
        let source = std::io::Error::from(nix::errno::Errno::ENOSPC);
        return Err(Error::File { action: "build in", path: job.tree.into(), source });
    }
    Err(Error::BuildFailed {
        release: job.release.to_string(),
        phase: name,
        status: status.to_string(),
        log: job.log.into(),
        tail: log.tail(),
    })
}

/// Installed files that name the compiled prefix and are read as text: pkg-config can say it relatively.
fn make_relocatable(staged: &Path, prefix: &str) -> Result<()> {
    let directory = staged.join("lib/pkgconfig");
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let text = fs::read_to_string(&path).on("read", &path)?;
        fs::write(&path, text.replace(prefix, "${pcfiledir}/../..")).on("write", &path)?;
    }
    Ok(())
}

struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
    last: VecDeque<String>,
    errors: Vec<String>,
    disk_is_full: bool,
}

/// So many last lines go into the error.
const TAIL: usize = 12;

impl Log {
    fn create(path: &Path) -> Result<Log> {
        let file = File::create(path).on("create", path)?;
        Ok(Log {
            path: path.into(),
            file: BufWriter::new(file),
            flushed: Instant::now(),
            last: VecDeque::new(),
            errors: Vec::new(),
            disk_is_full: false,
        })
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.disk_is_full |= line.contains("No space left on device") || line.contains("Disk quota exceeded");
        if line.contains("error: ") && self.errors.len() < 5 {
            self.errors.push(line.to_owned());
        }
        if self.last.len() == TAIL {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        self.write(line)
    }

    /// Into the file only: our own words are not the tool's.
    fn write(&mut self, line: &str) -> Result<()> {
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.write_all(b"\n"))
            .on("write", &self.path)?;
        // Somebody may be following it.
        if self.flushed.elapsed() > Duration::from_secs(1) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.flushed = Instant::now();
        self.file.flush().on("write", &self.path)
    }

    /// The last lines, and before them the compiler's errors: with several compilers at work the cause may
    /// stand far above the end.
    fn tail(&self) -> String {
        let above = self.errors.iter().filter(|error| !self.last.contains(error));
        above.chain(&self.last).map(|line| clip(line)).collect::<Vec<_>>().join("\n")
    }
}

/// A compiler's command line is of no use in an error.
fn clip(line: &str) -> String {
    const WIDTH: usize = 200;
    match line.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_stands_in_the_tail_however_far_above() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::create(&path).unwrap();
        log.line("a.c:1:1: error: expected ';'").unwrap();
        for number in 0..100 {
            log.line(&format!("line {number}")).unwrap();
        }
        log.line(&"x".repeat(500)).unwrap();
        let tail = log.tail();
        assert!(tail.starts_with("a.c:1:1: error: expected ';'\nline 89\n"), "{tail}");
        assert_eq!(tail.lines().last().unwrap().chars().count(), 201);
        assert!(!log.disk_is_full);
        log.line("cc1: fatal error: No space left on device").unwrap();
        log.flush().unwrap();
        assert!(log.disk_is_full);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 103);
    }

    #[test]
    fn files_for_other_places_are_not_counted() {
        let tree = tempfile::tempdir().unwrap();
        for directory in ["src/backend", "src/test/x", "src/interfaces/ecpg/test", "contrib/a"] {
            fs::create_dir_all(tree.path().join(directory)).unwrap();
            for n in 0..6 {
                fs::write(tree.path().join(directory).join(format!("{n}.c")), "").unwrap();
            }
        }
        assert_eq!(estimate(tree.path()), 12);
    }
}
