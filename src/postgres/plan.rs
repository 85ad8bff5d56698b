//! Owns what a plan is: a name and settings of PostgreSQL, how they are written, and which settings no plan may
//! touch.

use super::recovery;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file in the data directory that says which plan the cluster has. A base copy carries it along with the
/// settings. (Names that begin with a dot and ours are not copied.)
pub const FILE: &str = "pgmahout.plan";

/// While a plan is being applied: what it takes to put back what was before. Not carried along.
pub const JOURNAL: &str = ".pgmahout-plan-undo";

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name, e.g. `ronin`.
    pub plan: String,
    /// Settings by name, values as in `postgresql.conf` without quotes.
    pub settings: BTreeMap<String, String>,
}

impl Plan {
    /// Reads lines `name = value` as in `postgresql.conf`; `#` begins a comment, the last line of a name counts.
    pub fn parse(name: &str, text: &str) -> Result<Plan> {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !(1..=63).contains(&name.len()) || !name.bytes().all(letters) {
            return Err(Error::PlanName { name: name.to_owned() });
        }
        let mut settings = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read = recovery::setting(line).filter(|(_, value)| ends_with(line, value));
            let (setting, value) = read.ok_or_else(|| Error::PlanLine {
                number: number + 1,
                line: line.chars().take(80).collect(),
            })?;
            settings.insert(setting.to_lowercase(), value);
        }
        Ok(Plan { plan: name.to_owned(), settings })
    }
}

/// Whether an unquoted value stands, and is the last of its line but for a comment.
fn ends_with(line: &str, value: &str) -> bool {
    let Some(name) = line.find(|c: char| c == '=' || c.is_ascii_whitespace()) else { return false };
    let rest = line[name..].trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    if rest.starts_with('\'') {
        return true;
    }
    let after = rest.strip_prefix(value).unwrap_or(rest).trim_start();
    !value.is_empty() && (after.is_empty() || after.starts_with('#'))
}

/// Why no plan may set this: it runs code, moves the server or its files, or makes it another's standby.
pub fn refused(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    if ends(&["_command", "_library", "_libraries", "_preload"])
        || ["dynamic_library_path", "extension_control_path", "jit_provider"].contains(&name.as_str())
    {
        return Some("it runs code");
    }
    const MOVES: &[&str] = &["data_directory", "port", "listen_addresses", "stats_temp_directory"];
    if MOVES.contains(&name.as_str())
        || begins(&["unix_socket_", "bonjour"])
        || ends(&["_file", "_keyfile", "_dir"])
        || ["log_directory", "log_filename", "log_file_mode"].contains(&name.as_str())
    {
        return Some("it moves the server or its files");
    }
    if begins(&["recovery_", "primary_", "hot_standby"]) {
        return Some("whom this instance follows is said by pgmahout enslave");
    }
    (name == "allow_alter_system").then_some("no further plan could be applied")
}

/// Bytes of a memory setting: a number in blocks of `block` bytes, or with a unit. `None` for what the server
/// will refuse.
pub fn memory_bytes(value: &str, block: u64) -> Option<u64> {
    let value = value.trim();
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let number: f64 = value[..end].parse().ok()?;
    let unit = match value[end..].trim() {
        "" => block,
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    Some((number * unit as f64) as u64)
}

/// Bytes of memory that a machine has, and those that are available, from its `/proc/meminfo`.
pub fn machine_memory(meminfo: &str) -> Option<(u64, u64)> {
    let of = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    Some((of("MemTotal")?, of("MemAvailable")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        let text = "# ronin\n\nShared_Buffers = 425MB # a quarter\nwork_mem 8MB\nwork_mem='9MB'\n\
                    log_line_prefix = '%m it''s # '\n";
        let plan = Plan::parse("ronin", text).unwrap();
        let settings: Vec<_> = plan.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(settings, ["log_line_prefix=%m it's # ", "shared_buffers=425MB", "work_mem=9MB"]);
        assert!(Plan::parse("ronin", "").unwrap().settings.is_empty());
        for bad in [
            "work_mem",
            "work_mem =",
            "work_mem = 8 MB",
            "= 8MB",
            "work_mem = '8MB",
            "work_mem = # 8MB",
            "- x",
        ] {
            let error = Plan::parse("ronin", &format!("\n{bad}\n")).unwrap_err();
            assert!(error.to_string().starts_with("line 2 of the plan's settings"), "{bad}: {error}");
        }
        for bad in ["", "a b", "../x", "a/b", "ü"] {
            assert!(Plan::parse(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_runs_code_or_moves_the_server_is_refused() {
        for name in [
            "data_directory",
            "hba_file",
            "ident_file",
            "config_file",
            "external_pid_file",
            "port",
            "listen_addresses",
            "unix_socket_directories",
            "primary_conninfo",
            "primary_slot_name",
            "restore_command",
            "archive_command",
            "ssl_passphrase_command",
            "Archive_Library",
            "shared_preload_libraries",
            "session_preload_libraries",
            "local_preload_libraries",
            "oauth_validator_libraries",
            "dynamic_library_path",
            "extension_control_path",
            "jit_provider",
            "ssl_key_file",
            "ssl_crl_dir",
            "krb_server_keyfile",
            "log_directory",
            "recovery_target_lsn",
            "promote_trigger_file",
            "allow_alter_system",
        ] {
            assert!(refused(name).is_some(), "{name}");
        }
        for name in
            ["shared_buffers", "max_connections", "log_min_duration_statement", "jit", "log_line_prefix"]
        {
            assert_eq!(refused(name), None, "{name}");
        }
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        for (value, bytes) in
            [("128MB", 128 << 20), ("1 GB", 1 << 30), ("1.5GB", 3 << 29), ("100", 819_200), ("64kB", 65_536)]
        {
            assert_eq!(memory_bytes(value, 8192), Some(bytes), "{value}");
        }
        for value in ["", "MB", "1XB", "-1", "1 2MB"] {
            assert_eq!(memory_bytes(value, 8192), None, "{value}");
        }
        let meminfo = "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   5000 kB\n";
        assert_eq!(machine_memory(meminfo), Some((8000 << 10, 5000 << 10)));
        assert_eq!(machine_memory("MemTotal: 1 kB"), None);
    }
}
