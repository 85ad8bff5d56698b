//! Owns what the operator has said: flags, environment, `pgmahout.yml`. What follows from the machine
//! when nothing was said is `instance.rs`'s.

use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a value came from, in the order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "at")]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// This settings file.
    File(PathBuf),
    /// dotCloud's layout: this file or variable of it.
    Dotcloud(String),
    /// Found on the machine: how.
    Detected(String),
    /// Nothing said, nothing found.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Environment(name) => write!(f, "environment, {name}"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Dotcloud(what) => write!(f, "dotCloud's layout, {what}"),
            Origin::Detected(how) => write!(f, "detected: {how}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// Every setting and what it is, in the order `pgmahout config` shows them. Each can be given as
/// `PGMAHOUT_<NAME>` in the environment or as `name: value` in `pgmahout.yml`.
pub const SETTINGS: &[(&str, &str)] = &[
    ("instance", "name of this instance: what --confirm asks for, and its slot's name"),
    ("app", "name of the app the instance belongs to"),
    ("data_directory", "PGDATA"),
    ("bin_directory", "where postgres and pg_ctl are"),
    ("config_directory", "where postgresql.conf is, when not in PGDATA"),
    ("host", "address that the server listens on, when not by its Unix socket"),
    ("port", "port of the server"),
    ("socket_directory", "directory of the server's Unix socket"),
    ("user", "superuser, also for replication"),
    ("password_file", "file with the superuser's password"),
    ("service", "what runs the server: supervisor, systemd, pg_ctlcluster, pg_ctl or commands"),
    ("supervisor_config", "supervisord's configuration file"),
    ("supervisor_program", "supervisor's name of the server"),
    ("systemd_unit", "systemd's name of the server"),
    ("start_command", "shell command that starts the server, for service: commands"),
    ("stop_command", "shell command that stops it cleanly, for service: commands"),
    (
        "ssh",
        "the SSH client: builtin, system (the machine's, with ~/.ssh/config), or auto: builtin, system where that \
         gets in no other way or data does not compress",
    ),
    ("ssh_identity", "private key file for SSH"),
    ("ssh_known_hosts", "file of known host keys"),
    ("ssh_sessions", "parallel SSH sessions of a copy"),
    ("tablespace_mapping", "OLD=NEW pairs: where the source's tablespaces go"),
    (
        "source_mirrors",
        "URLs of directories with PostgreSQL's sources, separated by commas, the preferred one first",
    ),
    ("build_options", "configure options for build-version, as words of a shell"),
    ("build_jobs", "compilers at the same time"),
    ("build_timeout", "seconds that one phase of a build may take"),
    ("build_directory", "where sources are unpacked and compiled"),
    ("slow_query_ms", "milliseconds from which `logs --slow` shows a statement"),
    ("store", "where backups lie: a directory, or s3://BUCKET/PREFIX"),
    ("store_endpoint", "URL of an S3-compatible service that is not Amazon's"),
    ("store_region", "region of the bucket"),
    ("backup_key_file", "file with an age identity: backups are encrypted for it, and decrypted with it"),
    ("backup_compression", "METHOD[:LEVEL] of backups: zstd, gzip, none, or auto"),
    ("backup_jobs", "processors that a backup, its restore or its verification may use"),
    ("backup_time", "HH:MM in UTC, from when on the nightly backup is taken"),
    ("backup_keep_daily", "days of which the schedule keeps a backup"),
    ("backup_keep_weekly", "weeks of which the schedule keeps a backup"),
    ("backup_keep_manual", "backups by hand that are kept"),
    ("backup_verify_days", "days after which the schedule verifies the newest backup again; 0 is never"),
    ("backup_max_age", "hours after which `backup check` calls the last good backup too old"),
    ("link_expires", "seconds that a download link is good for"),
    ("serve_listen", "ADDRESS:PORT that `serve` listens on"),
    ("serve_url", "URL under which others reach `serve`"),
    ("state_directory", "the agent's own directory: lock, passfile"),
    ("connect_timeout", "seconds that a connection may take"),
    ("stop_timeout", "seconds that the server may take to stop"),
    ("start_timeout", "seconds that the server may take to accept connections"),
    ("stream_timeout", "seconds that a new standby may take until it streams"),
];

/// Which SSH client connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SshClient {
    /// The one in here; where that does not get in, the machine's; and for the bulk of what does not compress, the
    /// machine's without its configuration.
    #[default]
    Auto,
    /// The one in here.
    Builtin,
    /// The machine's `ssh`, with all that `~/.ssh/config` says: jump hosts, certificates, hardware keys.
    System,
}

impl SshClient {
    /// As the setting `ssh` has it.
    pub fn parse(text: &str) -> Option<SshClient> {
        match text {
            "auto" => Some(SshClient::Auto),
            "builtin" => Some(SshClient::Builtin),
            "system" => Some(SshClient::System),
            _ => None,
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value as text.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// What was said, by whom.
#[derive(Debug, Default)]
pub struct Settings {
    /// The instance's home directory.
    pub home: PathBuf,
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
    file_path: PathBuf,
}

impl Settings {
    /// Reads `pgmahout.yml` in `home`, if there is one. Unknown keys are refused: a misspelt setting
    /// that is silently ignored is found out at the worst moment.
    pub fn load(
        home: &Path,
        flags: BTreeMap<&'static str, String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Settings> {
        let file_path = home.join("pgmahout.yml");
        let file = match std::fs::read_to_string(&file_path) {
            Ok(text) => parse(&text, &file_path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(Error::File { action: "read", path: file_path, source }),
        };
        Ok(Settings {
            home: home.into(),
            flags,
            environment: environment.into_iter().collect(),
            file,
            file_path,
        })
    }

    /// What was said of `name`, if anything.
    pub fn said(&self, name: &str) -> Option<Found> {
        debug_assert!(SETTINGS.iter().any(|(known, _)| *known == name), "{name} is in the table");
        let variable = format!("PGMAHOUT_{}", name.to_uppercase());
        let found = |value: &String, origin| Some(Found { value: value.clone(), origin });
        if let Some(value) = self.flags.get(name) {
            return found(value, Origin::Flag);
        }
        if let Some(value) = self.environment.get(&variable).filter(|v| !v.is_empty()) {
            return found(value, Origin::Environment(variable));
        }
        self.file.get(name).and_then(|value| found(value, Origin::File(self.file_path.clone())))
    }

    /// A variable of the process's environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}

fn parse(text: &str, path: &Path) -> Result<BTreeMap<String, String>> {
    let bad = |why: String| Error::SettingsFile { path: path.into(), why };
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let read: BTreeMap<String, serde_yaml::Value> =
        serde_yaml::from_str(text).map_err(|e| bad(e.to_string()))?;
    let mut settings = BTreeMap::new();
    for (name, value) in read {
        if !SETTINGS.iter().any(|(known, _)| *known == name) {
            return Err(bad(format!("there is no setting {name:?}")));
        }
        settings.insert(name.clone(), scalar(&value).ok_or_else(|| bad(format!("{name} is not a value")))?);
    }
    Ok(settings)
}

fn scalar(value: &serde_yaml::Value) -> Option<String> {
    use serde_yaml::Value::*;
    match value {
        String(s) => Some(s.clone()),
        Number(n) => Some(n.to_string()),
        Bool(b) => Some(b.to_string()),
        // A mapping or a list serves for settings that are pairs or lists on one line.
        Mapping(pairs) => {
            let pairs: Option<Vec<_>> =
                pairs.iter().map(|(k, v)| Some(format!("{}={}", scalar(k)?, scalar(v)?))).collect();
            Some(pairs?.join(","))
        }
        Sequence(items) => Some(items.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(",")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Settings> {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("pgmahout.yml"), yaml).unwrap();
        let flags = flags.iter().map(|(k, v)| (*k, v.to_string())).collect();
        Settings::load(home.path(), flags, env.iter().map(|(k, v)| (k.to_string(), v.to_string())))
    }

    #[test]
    fn flag_then_environment_then_file() {
        let all = load("port: 1\n", &[("port", "3")], &[("PGMAHOUT_PORT", "2")]).unwrap();
        assert_eq!(all.said("port").unwrap(), Found { value: "3".into(), origin: Origin::Flag });
        let two = load("port: 1\n", &[], &[("PGMAHOUT_PORT", "2")]).unwrap();
        assert_eq!(two.said("port").unwrap().value, "2");
        let one = load("port: 1\n", &[], &[]).unwrap();
        assert_eq!(one.said("port").unwrap().value, "1");
        assert_eq!(one.said("user"), None);
    }

    #[test]
    fn a_misspelt_setting_is_refused() {
        let error = load("prot: 1\n", &[], &[]).unwrap_err();
        assert!(error.to_string().contains("there is no setting \"prot\""), "{error}");
    }

    #[test]
    fn pairs_may_be_a_mapping() {
        let settings = load("tablespace_mapping: {/a: /b, /c: /d}\n", &[], &[]).unwrap();
        assert_eq!(settings.said("tablespace_mapping").unwrap().value, "/a=/b,/c=/d");
    }
}
