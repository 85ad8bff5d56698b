//! Owns what each PostgreSQL version can do, as named capabilities, and the SQL names that changed.
//!
//! Nothing outside this file compares version numbers: it asks [`PgVersion::uses_recovery_conf`].
//! The version in which a capability appeared is from PostgreSQL's release notes.

use crate::error::{Error, Result};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A server version as `server_version_num` has it: 150018 is 15.18, 90624 is 9.6.24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgVersion(u32);

impl PgVersion {
    /// From `SHOW server_version_num`.
    pub const fn from_num(num: u32) -> Self {
        PgVersion(num)
    }

    /// The number that `SHOW server_version_num` shows.
    pub const fn num(self) -> u32 {
        self.0
    }

    /// Reads "15.18", "15", "9.6.24", "17beta1" (as 17.0), the content of `PG_VERSION`, and the line
    /// that `postgres --version` or `SELECT version()` prints.
    ///
    /// # Errors
    /// [`Error::PgVersion`] when there is no version in the text.
    pub fn parse(text: &str) -> Result<Self> {
        text.split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .and_then(parse_word)
            .ok_or_else(|| Error::PgVersion { text: text.to_owned() })
    }

    /// The major version as `PG_VERSION` has it: "15", or "9.6" before 10.
    pub fn major(self) -> String {
        if self.0 >= 100_000 {
            (self.0 / 10_000).to_string()
        } else {
            format!("{}.{}", self.0 / 10_000, self.0 / 100 % 100)
        }
    }

    /// Whether a standby of one can follow a primary of the other, as far as the version decides.
    pub fn same_major(self, other: PgVersion) -> bool {
        self.major_num() == other.major_num()
    }

    const fn major_num(self) -> u32 {
        if self.0 >= 100_000 { self.0 / 10_000 * 10_000 } else { self.0 / 100 * 100 }
    }

    const fn since(self, num: u32) -> bool {
        self.0 >= num
    }

    // ---- copying tables

    /// `row_security`, and policies (9.5).
    pub const fn has_row_security(self) -> bool {
        self.since(90_500)
    }

    /// Declarative partitions (10).
    pub const fn has_partitions(self) -> bool {
        self.since(100_000)
    }

    /// Partitions by hash (11).
    pub const fn has_hash_partitions(self) -> bool {
        self.since(110_000)
    }

    /// Generated columns (12).
    pub const fn has_generated_columns(self) -> bool {
        self.since(120_000)
    }

    /// Tables that are not heaps (12).
    pub const fn has_table_access_methods(self) -> bool {
        self.since(120_000)
    }

    /// Floats as the shortest text that is exact, where `extra_float_digits` is above 0 (12).
    pub const fn has_shortest_floats(self) -> bool {
        self.since(120_000)
    }

    /// A range of `ctid` is read without the rest of the table (14).
    pub const fn has_tid_ranges(self) -> bool {
        self.since(140_000)
    }

    // ---- databases and their checks

    /// amcheck's `verify_heapam`, and the program pg_amcheck.
    pub const fn has_verify_heapam(self) -> bool {
        self.since(140_000)
    }

    /// `bt_index_check(index, heapallindexed)`.
    pub const fn has_heapallindexed(self) -> bool {
        self.since(110_000)
    }

    // ---- building from source (the manual, "Installation from Source Code", and each release's configure)

    /// `configure --with-icu` (10).
    pub const fn has_icu_option(self) -> bool {
        self.since(100_000)
    }

    /// `configure` wants ICU unless told otherwise (16).
    pub const fn wants_icu(self) -> bool {
        self.since(160_000)
    }

    /// `configure --with-lz4` (14).
    pub const fn has_lz4_option(self) -> bool {
        self.since(140_000)
    }

    /// `configure --with-zstd` (15).
    pub const fn has_zstd_option(self) -> bool {
        self.since(150_000)
    }

    /// The tarball holds no generated files any more: perl, bison and flex are needed (17).
    pub const fn needs_generators(self) -> bool {
        self.since(170_000)
    }

    // ---- recovery and standbys

    /// Standby settings stand in `recovery.conf`; from 12 on the server refuses to start beside one.
    pub const fn uses_recovery_conf(self) -> bool {
        !self.since(120_000)
    }

    /// `primary_conninfo`, `restore_command` and their kin are settings that `SHOW` shows (12).
    pub const fn shows_recovery_settings(self) -> bool {
        self.since(120_000)
    }

    /// A new `primary_conninfo` takes effect on reload (13); before, on restart.
    pub const fn reloads_primary_conninfo(self) -> bool {
        self.since(130_000)
    }

    /// `primary_conninfo` may name a password file (`passfile=`, libpq 10).
    pub const fn passfile_in_conninfo(self) -> bool {
        self.since(100_000)
    }

    /// `pg_promote()` (12).
    pub const fn has_promote_function(self) -> bool {
        self.since(120_000)
    }

    /// `pg_ctl promote` (9.1); 9.0 knows only a trigger file.
    pub const fn has_promote_command(self) -> bool {
        self.since(90_100)
    }

    /// A standby can stream across a timeline switch (9.3).
    pub const fn follows_timeline_switches(self) -> bool {
        self.since(90_300)
    }

    /// A standby whose settings are lower than the primary's pauses replay (14); before, it stops.
    pub const fn pauses_on_lower_settings(self) -> bool {
        self.since(140_000)
    }

    /// Settings that must not be lower on a hot standby than on its primary (documentation, "Hot
    /// Standby", "Administrator's Overview").
    pub const fn standby_minimum_settings(self) -> &'static [&'static str] {
        const ALL: &[&str] = &[
            "max_connections",
            "max_prepared_transactions",
            "max_locks_per_transaction",
            "max_worker_processes",
            "max_wal_senders",
        ];
        let count = if self.since(120_000) {
            5
        } else if self.since(90_400) {
            4
        } else {
            3
        };
        ALL.split_at(count).0
    }

    /// Whether a hot standby can replay what a primary with this `wal_level` writes. `hot_standby`
    /// became `replica` in 9.6, which still accepts the old name.
    pub fn wal_level_feeds_standbys(self, level: &str) -> bool {
        matches!(level, "hot_standby" | "replica" | "logical")
    }

    /// The lowest `wal_level` that feeds a hot standby, by its name in this version.
    pub const fn standby_wal_level(self) -> &'static str {
        if self.since(90_600) { "replica" } else { "hot_standby" }
    }

    // ---- base backups

    /// `pg_backup_start()` and `pg_backup_stop()` (15), the only pair since.
    pub const fn has_backup_start_functions(self) -> bool {
        self.since(150_000)
    }

    /// Backups that leave nothing in the source's data directory (9.6); also allowed on a standby.
    pub const fn has_nonexclusive_backup(self) -> bool {
        self.since(90_600)
    }

    /// Ending a backup can be told not to wait for the archive (10).
    pub const fn has_backup_stop_without_wait(self) -> bool {
        self.since(100_000)
    }

    // ---- passwords

    /// SCRAM-SHA-256 (10).
    pub const fn has_scram(self) -> bool {
        self.since(100_000)
    }

    // ---- the log

    /// `pg_current_logfile()` (10).
    pub const fn has_current_logfile(self) -> bool {
        self.since(100_000)
    }

    // ---- replication slots and WAL retention

    /// Streaming replication, and hot standby with it (9.0).
    pub const fn has_streaming_replication(self) -> bool {
        self.since(90_000)
    }

    /// Physical replication slots (9.4).
    pub const fn has_replication_slots(self) -> bool {
        self.since(90_400)
    }

    /// `pg_create_physical_replication_slot(name, immediately_reserve)` (9.6).
    pub const fn reserves_slot_at_once(self) -> bool {
        self.since(90_600)
    }

    /// Slots that vanish with their session (10).
    pub const fn has_temporary_slots(self) -> bool {
        self.since(100_000)
    }

    /// Logical replication, with subscriptions (10).
    pub const fn has_subscriptions(self) -> bool {
        self.since(100_000)
    }

    /// `pg_copy_physical_replication_slot()` (12).
    pub const fn copies_slots(self) -> bool {
        self.since(120_000)
    }

    /// `max_slot_wal_keep_size` (13); without it a dead slot fills the primary's disk.
    pub const fn has_max_slot_wal_keep_size(self) -> bool {
        self.since(130_000)
    }

    /// `pg_replication_slots.wal_status` and `safe_wal_size` (13).
    pub const fn has_slot_wal_status(self) -> bool {
        self.since(130_000)
    }

    /// `recovery_init_sync_method` (14).
    pub const fn has_recovery_init_sync_method(self) -> bool {
        self.since(140_000)
    }

    /// `summarize_wal`, and the functions that show the summaries (17).
    pub const fn summarizes_wal(self) -> bool {
        self.since(170_000)
    }

    /// `wal_keep_size` in megabytes (13); before, `wal_keep_segments`.
    pub const fn has_wal_keep_size(self) -> bool {
        self.since(130_000)
    }

    // ---- views and functions

    /// `pg_control_system()` and its siblings (9.6).
    pub const fn has_control_functions(self) -> bool {
        self.since(90_600)
    }

    /// `pg_stat_replication` (9.1).
    pub const fn has_replication_view(self) -> bool {
        self.since(90_100)
    }

    /// `pg_stat_wal_receiver` (9.6).
    pub const fn has_wal_receiver_view(self) -> bool {
        self.since(90_600)
    }

    /// `pg_stat_wal_receiver.flushed_lsn` and `written_lsn` (13) in place of `received_lsn`.
    pub const fn wal_receiver_has_flushed_lsn(self) -> bool {
        self.since(130_000)
    }

    /// `pg_stat_wal_receiver.sender_host` and `sender_port` (11).
    pub const fn wal_receiver_has_sender_host(self) -> bool {
        self.since(110_000)
    }

    // ---- sessions and locks

    /// `pg_stat_activity.pid`, `state` and `query` (9.2); before, `procpid` and `current_query`, which holds the
    /// state too.
    pub const fn has_session_state(self) -> bool {
        self.since(90_200)
    }

    /// `pg_stat_activity.wait_event_type` and `wait_event` (9.6); before, `waiting`.
    pub const fn has_wait_events(self) -> bool {
        self.since(90_600)
    }

    /// `pg_blocking_pids()` (9.6).
    pub const fn has_blocking_pids(self) -> bool {
        self.since(90_600)
    }

    /// `pg_stat_activity.backend_type` (10), and with it the server's own processes.
    pub const fn has_backend_type(self) -> bool {
        self.since(100_000)
    }

    /// `pg_locks.waitstart` (14).
    pub const fn has_lock_wait_start(self) -> bool {
        self.since(140_000)
    }

    // ---- dumps

    /// Whether a `pg_dump` of this version can dump a server of that one: not of a later major version.
    pub const fn dumps(self, server: PgVersion) -> bool {
        self.major_num() >= server.major_num()
    }

    /// zstd in `pg_dump`'s archives, where it is built with it (16).
    pub const fn has_zstd_archives(self) -> bool {
        self.since(160_000)
    }

    /// `pg_class.reltuples` is -1 where nothing was ever counted (14); before, 0.
    pub const fn has_unknown_reltuples(self) -> bool {
        self.since(140_000)
    }

    /// `pg_database.datlocprovider` (15).
    pub const fn has_locale_provider(self) -> bool {
        self.since(150_000)
    }

    /// `pg_database.datlocale` (17); before, `daticulocale`.
    pub const fn has_datlocale(self) -> bool {
        self.since(170_000)
    }

    /// The setting `transaction_timeout` (17).
    pub const fn has_transaction_timeout(self) -> bool {
        self.since(170_000)
    }

    /// The setting `idle_in_transaction_session_timeout` (9.6).
    pub const fn has_idle_in_transaction_timeout(self) -> bool {
        self.since(90_600)
    }

    /// `pg_export_snapshot()` on a standby too (10).
    pub const fn exports_snapshots_in_recovery(self) -> bool {
        self.since(100_000)
    }

    // ---- names

    /// "wal" and "lsn" in names (10) in place of "xlog" and "location".
    pub const fn names_wal(self) -> bool {
        self.since(100_000)
    }

    /// The directory of the WAL below the data directory.
    pub const fn wal_directory(self) -> &'static str {
        if self.names_wal() { "pg_wal" } else { "pg_xlog" }
    }

    const fn renamed(self, wal: &'static str, xlog: &'static str) -> &'static str {
        if self.names_wal() { wal } else { xlog }
    }

    /// Where the next WAL is written, on a primary.
    pub const fn sql_current_wal_lsn(self) -> &'static str {
        self.renamed("pg_current_wal_lsn()", "pg_current_xlog_location()")
    }

    /// Where the next WAL is inserted (may still be in memory), on a primary.
    pub const fn sql_current_wal_insert_lsn(self) -> &'static str {
        self.renamed("pg_current_wal_insert_lsn()", "pg_current_xlog_insert_location()")
    }

    /// Up to where the WAL is on disk, on a primary. 9.6 has it as a function of its own; before, the
    /// write position is the closest there is.
    pub const fn sql_current_wal_flush_lsn(self) -> &'static str {
        if self.names_wal() {
            "pg_current_wal_flush_lsn()"
        } else if self.since(90_600) {
            "pg_current_xlog_flush_location()"
        } else {
            "pg_current_xlog_location()"
        }
    }

    /// The last WAL received by streaming and flushed, on a standby; NULL when it never streamed.
    pub const fn sql_last_wal_receive_lsn(self) -> &'static str {
        self.renamed("pg_last_wal_receive_lsn()", "pg_last_xlog_receive_location()")
    }

    /// The last WAL replayed, on a standby.
    pub const fn sql_last_wal_replay_lsn(self) -> &'static str {
        self.renamed("pg_last_wal_replay_lsn()", "pg_last_xlog_replay_location()")
    }

    /// The function that subtracts two positions, in bytes; `None` before 9.2, where
    /// [`Lsn::distance_from`](crate::postgres::wal::Lsn::distance_from) has to do it.
    pub const fn sql_wal_lsn_diff(self) -> Option<&'static str> {
        if self.since(90_200) { Some(self.renamed("pg_wal_lsn_diff", "pg_xlog_location_diff")) } else { None }
    }

    /// Whether replay is paused, on a standby (9.1 on).
    pub const fn sql_is_wal_replay_paused(self) -> &'static str {
        self.renamed("pg_is_wal_replay_paused()", "pg_is_xlog_replay_paused()")
    }

    /// Continue paused replay, on a standby (9.1 on).
    pub const fn sql_wal_replay_resume(self) -> &'static str {
        self.renamed("pg_wal_replay_resume()", "pg_xlog_replay_resume()")
    }

    /// Begin a new WAL segment, on a primary.
    pub const fn sql_switch_wal(self) -> &'static str {
        self.renamed("pg_switch_wal()", "pg_switch_xlog()")
    }

    /// The function that names the segment of a position, on a primary.
    pub const fn sql_walfile_name(self) -> &'static str {
        self.renamed("pg_walfile_name", "pg_xlogfile_name")
    }

    /// How the position columns of `pg_stat_replication` end: `sent_lsn` or `sent_location`.
    pub const fn replication_column_suffix(self) -> &'static str {
        self.renamed("lsn", "location")
    }

    /// The column of `pg_stat_wal_receiver` up to which WAL is safely on this standby's disk.
    pub const fn wal_receiver_flushed_column(self) -> &'static str {
        if self.wal_receiver_has_flushed_lsn() { "flushed_lsn" } else { "received_lsn" }
    }
}

/// "9.6.24", "15.18", "15", "17beta1", "15.18-1.pgdg120+1"; `None` for anything else.
fn parse_word(word: &str) -> Option<PgVersion> {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (number, rest) = word.split_at(end);
    let known_rest = ["", "devel", "alpha", "beta", "rc", "-", "+", "~", ",", ")"];
    if !known_rest
        .iter()
        .any(|known| if known.is_empty() { rest.is_empty() } else { rest.starts_with(known) })
    {
        return None;
    }
    let parts: Vec<u32> = number.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let num = match parts[..] {
        [major @ 10..=999] => major * 10_000,
        [major @ 10..=999, minor @ 0..=9_999] => major * 10_000 + minor,
        [major @ 7..=9, second @ 0..=99] => major * 10_000 + second * 100,
        [major @ 7..=9, second @ 0..=99, minor @ 0..=99] => major * 10_000 + second * 100 + minor,
        _ => return None,
    };
    Some(PgVersion(num))
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minor = if self.0 >= 100_000 { self.0 % 10_000 } else { self.0 % 100 };
        write!(f, "{}.{minor}", self.major())
    }
}

impl FromStr for PgVersion {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Serialize for PgVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> PgVersion {
        PgVersion::parse(text).unwrap()
    }

    #[test]
    fn versions_are_read_from_every_form_they_come_in() {
        let cases = [
            ("15.18", 150_018, "15.18", "15"),
            ("15", 150_000, "15.0", "15"),
            ("15\n", 150_000, "15.0", "15"),
            ("9.6\n", 90_600, "9.6.0", "9.6"),
            ("9.6.24", 90_624, "9.6.24", "9.6"),
            ("9.0", 90_000, "9.0.0", "9.0"),
            ("8.4.22", 80_422, "8.4.22", "8.4"),
            ("10.23", 100_023, "10.23", "10"),
            ("17beta1", 170_000, "17.0", "17"),
            ("18rc1", 180_000, "18.0", "18"),
            ("19devel", 190_000, "19.0", "19"),
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 150_018, "15.18", "15"),
            ("PostgreSQL 9.2.4 on x86_64-unknown-linux-gnu, compiled by gcc", 90_204, "9.2.4", "9.2"),
            ("pg_ctl (PostgreSQL) 18.4", 180_004, "18.4", "18"),
            ("15.18-1.pgdg120+1", 150_018, "15.18", "15"),
        ];
        for (text, num, shown, major) in cases {
            let version = v(text);
            assert_eq!(version.num(), num, "{text}");
            assert_eq!(version.to_string(), shown, "{text}");
            assert_eq!(version.major(), major, "{text}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in
            ["", "postgres", "9", "15.", "15.x", "15x", "10.1.2", "9.6.24.1", "1.2", "99999", "15.99999"]
        {
            let error = PgVersion::parse(text).unwrap_err();
            assert!(error.to_string().contains("not a PostgreSQL version"), "{text}: {error}");
        }
    }

    #[test]
    fn the_major_version_of_9_x_has_two_parts() {
        assert!(v("15.1").same_major(v("15.18")));
        assert!(!v("15.1").same_major(v("16.1")));
        assert!(v("9.6.1").same_major(v("9.6.24")));
        assert!(!v("9.5.25").same_major(v("9.6.0")));
        assert!(v("9.6.24") < v("10.0") && v("10.23") < v("11.0"));
    }

    /// The first version of each capability: one below lacks it, it and all later ones have it.
    #[test]
    fn capabilities_begin_where_the_release_notes_say() {
        type Capability = fn(PgVersion) -> bool;
        let table: &[(&str, &str, Capability)] = &[
            ("9.1", "has_promote_command", PgVersion::has_promote_command),
            ("9.1", "has_replication_view", PgVersion::has_replication_view),
            ("9.3", "follows_timeline_switches", PgVersion::follows_timeline_switches),
            ("9.0", "has_streaming_replication", PgVersion::has_streaming_replication),
            ("9.4", "has_replication_slots", PgVersion::has_replication_slots),
            ("9.6", "has_nonexclusive_backup", PgVersion::has_nonexclusive_backup),
            ("9.6", "reserves_slot_at_once", PgVersion::reserves_slot_at_once),
            ("9.6", "has_control_functions", PgVersion::has_control_functions),
            ("9.6", "has_wal_receiver_view", PgVersion::has_wal_receiver_view),
            ("10", "has_temporary_slots", PgVersion::has_temporary_slots),
            ("9.6", "has_idle_in_transaction_timeout", PgVersion::has_idle_in_transaction_timeout),
            ("10", "exports_snapshots_in_recovery", PgVersion::exports_snapshots_in_recovery),
            ("14", "has_unknown_reltuples", PgVersion::has_unknown_reltuples),
            ("15", "has_locale_provider", PgVersion::has_locale_provider),
            ("16", "has_zstd_archives", PgVersion::has_zstd_archives),
            ("9.5", "has_row_security", PgVersion::has_row_security),
            ("10", "has_partitions", PgVersion::has_partitions),
            ("11", "has_hash_partitions", PgVersion::has_hash_partitions),
            ("12", "has_generated_columns", PgVersion::has_generated_columns),
            ("12", "has_table_access_methods", PgVersion::has_table_access_methods),
            ("12", "has_shortest_floats", PgVersion::has_shortest_floats),
            ("14", "has_tid_ranges", PgVersion::has_tid_ranges),
            ("17", "has_datlocale", PgVersion::has_datlocale),
            ("17", "has_transaction_timeout", PgVersion::has_transaction_timeout),
            ("10", "names_wal", PgVersion::names_wal),
            ("10", "passfile_in_conninfo", PgVersion::passfile_in_conninfo),
            ("10", "has_backup_stop_without_wait", PgVersion::has_backup_stop_without_wait),
            ("11", "wal_receiver_has_sender_host", PgVersion::wal_receiver_has_sender_host),
            ("12", "not uses_recovery_conf", |v| !v.uses_recovery_conf()),
            ("12", "shows_recovery_settings", PgVersion::shows_recovery_settings),
            ("12", "has_promote_function", PgVersion::has_promote_function),
            ("12", "copies_slots", PgVersion::copies_slots),
            ("13", "reloads_primary_conninfo", PgVersion::reloads_primary_conninfo),
            ("13", "has_max_slot_wal_keep_size", PgVersion::has_max_slot_wal_keep_size),
            ("13", "has_slot_wal_status", PgVersion::has_slot_wal_status),
            ("13", "has_wal_keep_size", PgVersion::has_wal_keep_size),
            ("13", "wal_receiver_has_flushed_lsn", PgVersion::wal_receiver_has_flushed_lsn),
            ("14", "has_recovery_init_sync_method", PgVersion::has_recovery_init_sync_method),
            ("14", "pauses_on_lower_settings", PgVersion::pauses_on_lower_settings),
            ("15", "has_backup_start_functions", PgVersion::has_backup_start_functions),
            ("10", "has_icu_option", PgVersion::has_icu_option),
            ("16", "wants_icu", PgVersion::wants_icu),
            ("14", "has_lz4_option", PgVersion::has_lz4_option),
            ("15", "has_zstd_option", PgVersion::has_zstd_option),
            ("17", "needs_generators", PgVersion::needs_generators),
            ("9.2", "has_session_state", PgVersion::has_session_state),
            ("9.6", "has_wait_events", PgVersion::has_wait_events),
            ("9.6", "has_blocking_pids", PgVersion::has_blocking_pids),
            ("10", "has_backend_type", PgVersion::has_backend_type),
            ("14", "has_lock_wait_start", PgVersion::has_lock_wait_start),
        ];
        let majors = [
            "9.0", "9.1", "9.2", "9.3", "9.4", "9.5", "9.6", "10", "11", "12", "13", "14", "15", "16", "17",
            "18",
        ];
        for (first, name, capability) in table {
            for major in majors {
                assert_eq!(capability(v(major)), v(major) >= v(first), "{name} in {major}");
            }
        }
    }

    #[test]
    fn names_follow_the_renaming_of_10() {
        assert_eq!(v("9.6").wal_directory(), "pg_xlog");
        assert_eq!(v("10").wal_directory(), "pg_wal");
        assert_eq!(v("9.6").sql_current_wal_lsn(), "pg_current_xlog_location()");
        assert_eq!(v("18").sql_current_wal_lsn(), "pg_current_wal_lsn()");
        assert_eq!(v("9.5").sql_current_wal_flush_lsn(), "pg_current_xlog_location()");
        assert_eq!(v("9.6").sql_current_wal_flush_lsn(), "pg_current_xlog_flush_location()");
        assert_eq!(v("9.1").sql_wal_lsn_diff(), None);
        assert_eq!(v("9.2").sql_wal_lsn_diff(), Some("pg_xlog_location_diff"));
        assert_eq!(v("10").sql_wal_lsn_diff(), Some("pg_wal_lsn_diff"));
        assert_eq!(v("12").wal_receiver_flushed_column(), "received_lsn");
        assert_eq!(v("13").wal_receiver_flushed_column(), "flushed_lsn");
    }

    #[test]
    fn settings_that_a_standby_must_match_grew_with_the_versions() {
        assert_eq!(v("9.3").standby_minimum_settings().len(), 3);
        assert_eq!(v("11").standby_minimum_settings().last(), Some(&"max_worker_processes"));
        assert_eq!(v("12").standby_minimum_settings().last(), Some(&"max_wal_senders"));
        assert!(v("9.4").wal_level_feeds_standbys("hot_standby"));
        assert!(!v("15").wal_level_feeds_standbys("minimal"));
        assert!(!v("9.4").wal_level_feeds_standbys("archive"));
        assert_eq!(v("9.5").standby_wal_level(), "hot_standby");
        assert_eq!(v("15").standby_wal_level(), "replica");
    }

    #[test]
    fn a_version_is_a_string_in_json() {
        assert_eq!(serde_json::to_string(&v("15.18")).unwrap(), "\"15.18\"");
    }
}
