//! What must be true afterwards: nothing changed, the same rows on both, sound indexes, a clean primary.

use super::account::must;
use super::host::Host;
use super::site::until;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Everything about a host that a refusal must leave alone.
#[derive(PartialEq, Eq)]
pub struct Snapshot {
    name: String,
    facts: BTreeMap<String, String>,
}

/// Of a data directory: every file's kind, mode, owner and content, without what a server changes by
/// itself while nobody works on it. Of the server: its start time, role, slots, backups, senders.
pub fn snapshot(host: &Host) -> Snapshot {
    let mut facts = BTreeMap::new();
    if host.is_running() {
        for (name, sql) in [
            ("started", "SELECT pg_postmaster_start_time()"),
            ("in recovery", "SELECT pg_is_in_recovery()"),
            ("slots", "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots"),
            ("roles", "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_authid"),
            ("databases", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"),
            ("senders", "SELECT count(*) FROM pg_stat_replication"),
        ] {
            facts.insert(format!("server: {name}"), host.one(sql));
        }
        // A session of a command that has just ended may take a moment to go.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
        let mut left = in_backup(host);
        while !left.is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(50));
            left = in_backup(host);
        }
        facts.insert("server: in backup".into(), left);
        facts.insert("server: timeline".into(), host.timeline().to_string());
        digest_tables(host, &mut facts);
        // What lies in memory goes to the disk now, not between two snapshots.
        if !host.is_standby() {
            host.exec("CHECKPOINT");
        }
    } else {
        facts.insert("server".into(), "not running".into());
    }
    let running = host.is_running();
    walk(&host.home, Path::new(""), running, &mut facts);
    if !host.data.starts_with(&host.home) {
        walk(&host.data, Path::new(""), running, &mut facts);
    }
    Snapshot { name: host.name.clone(), facts }
}

fn walk(root: &Path, below: &Path, running: bool, facts: &mut BTreeMap<String, String>) {
    let Ok(entries) = std::fs::read_dir(root.join(below)) else { return };
    for entry in entries.flatten() {
        let path = below.join(entry.file_name());
        let text = path.to_str().unwrap().to_owned();
        if is_restless(&text) {
            continue;
        }
        let Ok(metadata) = std::fs::symlink_metadata(root.join(&path)) else { continue };
        let (mode, uid) = (metadata.mode(), metadata.uid());
        let content = if metadata.is_dir() {
            walk(root, &path, running, facts);
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {}", std::fs::read_link(root.join(&path)).unwrap().display())
        } else if metadata.is_file() && running && is_relation(&text) {
            // Reading alone sets hint bits in it, and a vacuum may come by: its rows are asked by SQL.
            "relation".to_owned()
        } else if metadata.is_file() {
            let mut content = std::fs::read(root.join(&path)).unwrap_or_default();
            if text.ends_with("global/pg_control") {
                // Identifier, versions, state; the rest tells of the last checkpoint.
                content.truncate(20);
            }
            format!("{} bytes, {:016x}", metadata.len(), hash(&content))
        } else {
            "special".to_owned()
        };
        facts.insert(format!("file: {text}"), format!("{mode:o} {uid} {content}"));
    }
}

/// A file of a relation: its name begins with a number, below base, global or a tablespace.
fn is_relation(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let place = ["/base/", "/global/", "/pg_xact/"].iter().any(|part| format!("/{path}").contains(part));
    place && name.starts_with(|c: char| c.is_ascii_digit())
}

/// Every ordinary table's rows.
fn digest_tables(host: &Host, facts: &mut BTreeMap<String, String>) {
    for database in host.column("postgres", DATABASES) {
        for table in host.column(&database, RELATIONS) {
            let digest = host.one_in(&database, &rows_digest(&table));
            facts.insert(format!("table: {table} in {database}"), digest);
        }
    }
}

const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";

/// Unlogged tables cannot be read on a standby.
const RELATIONS: &str = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
    WHERE relkind IN ('r', 'm', 'S') AND relpersistence = 'p' \
    AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1";

fn rows_digest(relation: &str) -> String {
    format!(
        "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(row, '' ORDER BY row)), '-') \
         FROM (SELECT md5(t::text) AS row FROM {relation} t) rows"
    )
}

/// Enough to tell a change, and quick without optimisation.
fn hash(content: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let words = content.chunks_exact(8);
    let rest = words.remainder().iter().fold(content.len() as u64, |h, b| step(h, u64::from(*b)));
    words.fold(rest, |h, word| step(h, u64::from_ne_bytes(word.try_into().unwrap())))
}

/// Changes without anybody's doing (statistics, WAL, relation caches, logs), or is the agent's business
/// also when it refuses: the host key it met, its lock.
fn is_restless(path: &str) -> bool {
    const PARTS: &[&str] = &[
        "/pg_stat",
        "/pg_wal",
        "/pg_stat_tmp",
        "/pg_internal.init",
        "/pg_logical/",
        "/postmaster.pid",
        "/pg_subtrans/",
        "/pg_notify/",
        "/pg_dynshmem/",
        "/current_logfiles",
        "/pg_replslot/",
    ];
    const WHOLE: &[&str] = &[
        "run",
        "sshd",
        ".ssh/known_hosts",
        ".pgmahout",
        "postgres.log",
        "ssh-commands",
        "ssh-environment",
        "test.pgpass",
        ".cache",
        ".local",
        "pgbench.log",
    ];
    let slashed = format!("/{path}");
    PARTS.iter().any(|part| slashed.contains(part)) || WHOLE.contains(&path)
}

impl Snapshot {
    /// Fails with the differences.
    #[track_caller]
    pub fn assert_unchanged(&self, host: &Host) {
        let now = snapshot(host);
        let mut differences = Vec::new();
        for name in self.facts.keys().chain(now.facts.keys()) {
            let (before, after) = (self.facts.get(name), now.facts.get(name));
            if before != after && !differences.iter().any(|d: &String| d.starts_with(&format!("{name}:"))) {
                differences.push(format!("{name}: {before:?} became {after:?}"));
            }
        }
        assert!(differences.is_empty(), "{} was changed:\n{}", self.name, differences.join("\n"));
    }
}

/// What is left of a base backup on a server: sessions that hold one open, backup mode of old versions.
fn in_backup(host: &Host) -> String {
    let mut found = Vec::new();
    if host.pg.major < 15 && host.one("SELECT pg_is_in_backup()") == "t" {
        found.push("in exclusive backup mode".to_owned());
    }
    let sessions = host.column(
        "postgres",
        "SELECT application_name || ': ' || query FROM pg_stat_activity WHERE application_name LIKE '%pgmahout%' \
         AND backend_type = 'client backend'",
    );
    found.extend(sessions);
    if host.data.join("backup_label").exists() {
        found.push("backup_label in its data directory".to_owned());
    }
    found.join("; ")
}

/// The primary holds no backup open, and no slots but these. Gives a dying session a moment to go.
#[track_caller]
pub fn primary_is_clean(primary: &Host, slots: &[&str]) {
    until(&format!("{} is left clean, but: {}", primary.name, in_backup(primary)), 15, || {
        in_backup(primary).is_empty()
    });
    // A temporary slot ends with its walsender, which learns of a killed client when it writes to it.
    let have = || primary.column("postgres", "SELECT slot_name FROM pg_replication_slots ORDER BY 1");
    let deadline = Instant::now() + Duration::from_secs(15);
    while have() != slots && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(have(), slots, "slots on {}", primary.name);
}

/// The standby has replayed everything that the primary has written by now.
#[track_caller]
pub fn wait_replayed(primary: &Host, standby: &Host) {
    if primary.home == standby.home {
        return;
    }
    let position = if primary.is_standby() { "pg_last_wal_replay_lsn()" } else { "pg_current_wal_lsn()" };
    let lsn = primary.one(&format!("SELECT {position}"));
    until(&format!("{} has replayed up to {lsn}", standby.name), 180, || {
        standby.one(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn")) == "t"
    });
}

/// Every table of every database has the same rows on both. The primary must be at rest.
#[track_caller]
pub fn compare(primary: &Host, standby: &Host) {
    wait_replayed(primary, standby);
    let names = primary.column("postgres", DATABASES);
    assert_eq!(names, standby.column("postgres", DATABASES));
    let roles = "SELECT md5(string_agg(r::text, ',' ORDER BY rolname)) FROM pg_authid r";
    assert_eq!(primary.one(roles), standby.one(roles), "roles");
    let mut tables = 0;
    for database in names {
        let relations = primary.column(&database, RELATIONS);
        assert_eq!(relations, standby.column(&database, RELATIONS), "relations of {database}");
        for relation in relations {
            let digest = rows_digest(&relation);
            let (there, here) = (primary.one_in(&database, &digest), standby.one_in(&database, &digest));
            assert_eq!(there, here, "{relation} in {database}");
            tables += 1;
        }
    }
    assert!(tables > 0, "nothing to compare");
}

/// Structure of every relation and B-tree on `host`, read on the host itself. The extension has to come
/// from the primary.
#[track_caller]
pub fn amcheck(primary: &Host, host: &Host) {
    let databases =
        primary.column("postgres", "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1");
    for database in &databases {
        primary.exec_in(database, "CREATE EXTENSION IF NOT EXISTS amcheck");
    }
    wait_replayed(primary, host);
    if host.pg.major >= 14 {
        let output = must(host.client("pg_amcheck").args(["--all", "--heapallindexed"]));
        assert_eq!(output, "", "pg_amcheck");
        return;
    }
    for database in &databases {
        let sql = "SELECT count(bt_index_check(c.oid)) FROM pg_class c JOIN pg_am a ON a.oid = relam \
             WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'";
        assert_ne!(host.one_in(database, sql), "0");
    }
}

/// It is a standby that streams from `primary` through the slot of its name, and says so itself.
#[track_caller]
pub fn assert_streams(primary: &Host, standby: &Host) {
    assert!(standby.is_standby(), "{} is a standby", standby.name);
    // All at once: where the timeline switches, the receiver connects anew.
    until(&format!("{} streams from {} through its slot", standby.name, primary.name), 20, || {
        let seen = standby.one(
            "SELECT status || ' ' || substring(conninfo from 'port=(\\d+)') || ' ' || slot_name FROM pg_stat_wal_receiver",
        );
        let Some(slot) = seen.strip_prefix(&format!("streaming {} ", primary.port)) else { return false };
        primary.one(&format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'")) == "t"
    });
}

/// What pgmahout has noted as JSON, to be changed: its checksum is made anew by `checked::json`.
pub fn without_check(mut noted: serde_json::Value) -> serde_json::Value {
    assert!(noted.as_object_mut().unwrap().remove("check").is_some(), "{noted} has a checksum");
    noted
}
