//! Where the server's log is, asked of the server, or of its configuration when it is down.

use super::super::Context;
use crate::durable::Context as _;
use crate::error::{Error, Result};
use crate::postgres::log::{Format, is_log_name};
use crate::postgres::recovery::last_setting;
use crate::postgres::time::zone_offset;
use crate::process;
use crate::service;
use crate::sql::{Db, Target};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The log of a server.
pub struct Log {
    /// Where its files are.
    pub place: Place,
    /// How they are written.
    pub format: Format,
    /// `log_line_prefix`
    pub prefix: String,
    /// What the server's clock is called, and how far it is from UTC: CET and CEST, for example.
    pub zones: HashMap<String, i64>,
    /// `log_min_duration_statement`, in milliseconds; negative for never.
    pub logged_from: Option<i64>,
}

/// Where log files are.
pub enum Place {
    /// Those of the logging collector.
    Collected {
        /// `log_directory`
        directory: PathBuf,
        /// `log_filename`
        pattern: String,
        /// The ending.
        format: Format,
    },
    /// The file of whatever runs the server; when it is rotated, `.1` and so on are older.
    Kept(PathBuf),
}

/// A file at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Which file.
    pub path: PathBuf,
    /// Device and inode.
    pub id: (u64, u64),
    /// Bytes.
    pub length: u64,
    /// Seconds and nanoseconds of its last change.
    pub changed: (i64, i64),
}

impl State {
    /// Of what stands at `path`; `None` when nothing does, or no file.
    pub fn at(path: &Path) -> Option<State> {
        Some(State::of(path, &fs::metadata(path).ok().filter(fs::Metadata::is_file)?))
    }

    /// Of an open file.
    pub fn of(path: &Path, metadata: &fs::Metadata) -> State {
        State {
            path: path.to_owned(),
            id: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Place {
    /// Its files, the oldest first.
    pub fn states(&self) -> Result<Vec<State>> {
        match self {
            Place::Collected { directory, pattern, format } => {
                let entries = fs::read_dir(directory).map_err(|e| unreadable(directory, e))?;
                let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
                let ours = names.filter(|name| is_log_name(name, pattern, *format));
                let mut states: Vec<_> = ours.filter_map(|name| State::at(&directory.join(name))).collect();
                states.sort_by(|a, b| (a.changed, &a.path).cmp(&(b.changed, &b.path)));
                Ok(states)
            }
            Place::Kept(path) => {
                let mut states: Vec<_> = numbered(path).into_iter().map(|(_, state)| state).collect();
                states.extend(State::at(path));
                Ok(states)
            }
        }
    }
}

/// The rotated files beside `path` (`.1` is the newest) with their numbers, the oldest first. Compressed ones
/// are left to zcat.
pub fn numbered(path: &Path) -> Vec<(u32, State)> {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Vec::new();
    };
    let entries = fs::read_dir(crate::durable::parent(path)).into_iter().flatten().flatten();
    let mut states: Vec<(u32, State)> = entries
        .filter_map(|entry| {
            let found = entry.file_name().to_string_lossy().into_owned();
            let number = found.strip_prefix(&name)?.strip_prefix('.')?.parse().ok()?;
            Some((number, State::at(&entry.path())?))
        })
        .collect();
    states.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    states
}

/// A log that may not be read has another way out than other files.
pub fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::LogUnreadable { path: path.into(), source }
}

const SETTINGS: [&str; 8] = [
    "log_min_duration_statement",
    "logging_collector",
    "log_destination",
    "log_directory",
    "log_filename",
    "log_line_prefix",
    "log_timezone",
    "data_directory",
];

#[derive(Default)]
struct Facts {
    settings: HashMap<String, String>,
    zones: HashMap<String, i64>,
    /// A file of the collector, by destination.
    current: HashMap<&'static str, PathBuf>,
}

/// Finds the log.
pub fn find(context: Context) -> Result<Log> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    let facts = if instance.running().is_some() {
        asked(context).or_else(|error| {
            process::check_interrupt()?;
            // It is when a server is ill that its log is looked for.
            context.progress.warn(format!("{error}; its configuration files are looked at instead"));
            configured(context)
        })?
    } else {
        configured(context)?
    };
    let of =
        |name: &str, default: &str| facts.settings.get(name).cloned().unwrap_or_else(|| default.to_owned());
    let destinations = of("log_destination", "stderr");
    let goes_to = |name: &str| destinations.split(',').any(|d| d.trim().eq_ignore_ascii_case(name));
    let mut log = Log {
        place: Place::Kept(PathBuf::new()),
        format: Format::Stderr,
        prefix: of("log_line_prefix", "%m [%p] "),
        logged_from: of("log_min_duration_statement", "").parse().ok(),
        zones: facts.zones,
    };
    if is_on(&of("logging_collector", "off")) {
        let wanted = [("jsonlog", Format::Json), ("csvlog", Format::Csv), ("stderr", Format::Stderr)];
        let Some((name, format)) = wanted.into_iter().find(|(name, _)| goes_to(name)) else {
            return Err(Error::LogElsewhere { destination: destinations });
        };
        let said = data.join(of("log_directory", "log"));
        let current = facts.current.get(name).map(|file| data.join(file));
        let directory = current.as_deref().and_then(Path::parent).map_or(said, Path::to_owned);
        let pattern = of("log_filename", "postgresql-%Y-%m-%d_%H%M%S.log");
        context.progress.detail(format!("the log is {} in {}", pattern, directory.display()));
        log.place = Place::Collected { directory: directory.clone(), pattern: pattern.clone(), format };
        log.format = format;
        if !directory.exists() || log.place.states()?.is_empty() {
            return Err(Error::NoLog { looked_at: format!("{pattern} in {}", directory.display()) });
        }
        return Ok(log);
    }
    // csvlog and jsonlog go to stderr too, as far as there is no collector for them.
    if !["stderr", "csvlog", "jsonlog"].into_iter().any(goes_to) {
        return Err(Error::LogElsewhere { destination: destinations });
    }
    let file = service::log_file(instance).or_else(|| stderr_of_server(context));
    let Some(file) = file else {
        return Err(Error::NoLog {
            looked_at: format!("file known that keeps its stderr (it is run by {})", instance.service),
        });
    };
    context.progress.detail(format!("the log is {}", file.display()));
    log.place = Place::Kept(file);
    Ok(log)
}

fn is_on(value: &str) -> bool {
    // What a configuration file may say; the server itself says "on".
    ["on", "true", "yes", "1", "t", "y"].iter().any(|on| value.eq_ignore_ascii_case(on))
}

/// The file that the running server has as its stderr: whoever started it chose that, and did not tell us.
fn stderr_of_server(context: Context) -> Option<PathBuf> {
    let pid = context.instance.running()?.pid;
    let file = fs::read_link(format!("/proc/{pid}/fd/2")).ok()?;
    file.is_file().then_some(file)
}

/// The running server's own word.
fn asked(context: Context) -> Result<Facts> {
    let mut db = Db::connect(&Target::local(context.instance)?)?;
    let mut facts = Facts::default();
    let wanted: Vec<&str> = SETTINGS.to_vec();
    for row in db.rows("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", &[&wanted])? {
        facts.settings.insert(row.get(0), row.get(1));
    }
    let destinations = facts.settings.get("log_destination").cloned().unwrap_or_default();
    if db.version.has_current_logfile() {
        for name in ["jsonlog", "csvlog", "stderr"] {
            // It does not know the name of a destination that its version does not have.
            if destinations.contains(name) {
                let file: Option<String> = db.value("SELECT pg_current_logfile($1)", &[&name])?;
                facts.current.extend(file.map(|file| (name, file.into())));
            }
        }
    }
    let zone = facts.settings.get("log_timezone").cloned().unwrap_or_default();
    if zone_offset(&zone).is_none() {
        // An abbreviation means something only within its zone, so the server says what they are there: over
        // a year, for winter and summer, and half a year ahead for a tail that goes on so long.
        db.value::<String>("SELECT set_config('TimeZone', $1, false)", &[&zone])?;
        let rows = db.rows(
            "SELECT DISTINCT to_char(t, 'TZ'), extract(timezone FROM t)::int8 \
             FROM generate_series(now() - interval '400 days', now() + interval '200 days', '12 hours') t",
            &[],
        )?;
        let zones = rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1) * 1_000_000));
        facts.zones = zones.collect();
    }
    Ok(facts)
}

/// What the configuration says: by `postgres -C`, which follows includes, else read from the files.
fn configured(context: Context) -> Result<Facts> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    let directory = instance.config_directory.clone().unwrap_or_else(|| data.clone());
    let mut facts = Facts::default();
    let auto = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap_or_default();
    let path = directory.join("postgresql.conf");
    let mut text = None;
    for name in SETTINGS {
        let said = instance.program("postgres").ok().and_then(|program| {
            let mut command = Command::new(program);
            command.arg("-D").arg(&directory).args(["-C", name]);
            let finished = process::run_any(&mut command, Duration::from_secs(10)).ok()?;
            // Spaces at the end of log_line_prefix matter.
            finished.status.success().then(|| finished.stdout.trim_end_matches('\n').to_owned())
        });
        let value = match said {
            Some(said) => Some(said),
            None => {
                if text.is_none() {
                    text = Some(fs::read_to_string(&path).on("read", &path)?);
                }
                last_setting(&auto, name).or_else(|| last_setting(text.as_deref().unwrap_or(""), name))
            }
        };
        facts.settings.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(facts)
}
