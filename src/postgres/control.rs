//! Owns the layout of `global/pg_control`, for PostgreSQL 9.3 to 18 on 64-bit little-endian machines.
//!
//! The fields and their order are those of `catalog/pg_control.h` of each version; the C compiler's
//! alignment is reproduced by `Fields`. That the layout is the right one is proved twice: the
//! constant 1234567.0 stands where it must, and the checksum right behind the last field is correct.

use super::wal::{Lsn, SystemId, Timeline, is_segment_size};
use crate::error::{Error, Result};
use serde::Serialize;

/// `pg_control_version` of the releases that changed the layout. 9.4 and 9.5 share 942, though 9.5
/// added fields; the catalog version tells them apart.
const V9_3: u32 = 937;
const V9_4: u32 = 942;
const V9_6: u32 = 960;
const V10: u32 = 1002;
const V11: u32 = 1100;
const V12: u32 = 1201;
const V13: u32 = 1300;
const V17: u32 = 1700;
const V18: u32 = 1800;
const KNOWN: [u32; 9] = [V9_3, V9_4, V9_6, V10, V11, V12, V13, V17, V18];
/// Between the last catalog version of 9.4 (201409291) and that of 9.5 (201510051).
const CATALOG_9_5: u32 = 201_412_000;

/// What the cluster was doing when `pg_control` was last written (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    /// Starting up.
    Startup,
    /// Shut down cleanly as a primary.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Replaying WAL after a crash.
    InCrashRecovery,
    /// A standby, or being restored.
    InArchiveRecovery,
    /// A running primary, or one that crashed.
    InProduction,
}

impl ClusterState {
    /// Whether the cluster was stopped in order, so that all its WAL is known to be on disk.
    pub fn is_clean(self) -> bool {
        matches!(self, ClusterState::ShutDown | ClusterState::ShutDownInRecovery)
    }

    /// Whether the cluster was a standby (or being restored).
    pub fn in_recovery(self) -> bool {
        matches!(self, ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery)
    }
}

/// What `pg_control` says. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlFile {
    /// Shared by all physical copies of a cluster.
    pub system_id: SystemId,
    /// The layout of this file.
    pub control_version: u32,
    /// The layout of the system catalogs; also in the names of tablespace directories.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// Where the last checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub checkpoint_redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: Timeline,
    /// A standby is not consistent before this position; zero on a primary.
    pub min_recovery_point: Lsn,
    /// The timeline of that position; `None` when there is none.
    pub min_recovery_timeline: Option<Timeline>,
    /// A restored base backup is being recovered from here and has not reached its end; else zero.
    pub backup_start_point: Lsn,
    /// Hints are in the WAL, as they are with checksums. A primary's own setting.
    pub wal_log_hints: bool,
    /// Settings of the primary that wrote the WAL: a standby's must not be lower.
    pub standby_minimums: Vec<(&'static str, u32)>,
    /// Of data pages; 8192 unless built otherwise.
    pub block_size: u32,
    /// Blocks of a relation in one file.
    pub segment_blocks: u32,
    /// Of WAL pages; 8192 unless built otherwise.
    pub wal_block_size: u32,
    /// Of WAL segments; 16 MB unless initdb was told otherwise.
    pub wal_segment_size: u32,
    /// 0 when data pages carry no checksums.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads the content of `pg_control`; the first 512 bytes suffice.
    ///
    /// # Errors
    /// The `Control…` variants of [`Error`]: too short, of a machine with the other byte order, of an
    /// unknown version, damaged, or naming sizes that no server has.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields { bytes, at: 0 };
        let system_id = SystemId(fields.u64()?);
        let control_version = fields.u32()?;
        if control_version != 0 && control_version.is_multiple_of(65_536) {
            return Err(Error::ControlByteOrder);
        }
        if !KNOWN.contains(&control_version) {
            return Err(Error::ControlVersion { version: control_version });
        }
        let catalog_version = fields.u32()?;
        let since = |version| control_version >= version;
        let since_9_5 = since(V9_6) || catalog_version >= CATALOG_9_5;

        let state = fields.u32()?;
        fields.u64()?; // time
        let checkpoint = Lsn(fields.u64()?);
        if !since(V11) {
            fields.u64()?; // prevCheckPoint
        }

        // CheckPoint, a struct of its own: its first member aligns it to 8
        let checkpoint_redo = Lsn(fields.u64()?);
        let timeline = Timeline(fields.u32()?);
        fields.u32()?; // PrevTimeLineID
        fields.bool()?; // fullPageWrites
        if since(V17) {
            fields.u32()?; // wal_level
        }
        if since(V12) {
            fields.u64()?; // nextXid
        } else {
            fields.u32()?; // nextXidEpoch
            fields.u32()?; // nextXid
        }
        for _ in 0..7 {
            fields.u32()?; // nextOid, nextMulti, its offset, oldestXid, its DB, oldestMulti, its DB
        }
        fields.u64()?; // time
        if since_9_5 {
            fields.u32()?; // oldestCommitTsXid
            fields.u32()?; // newestCommitTsXid
        }
        fields.u32()?; // oldestActiveXid

        fields.u64()?; // unloggedLSN
        let min_recovery_point = Lsn(fields.u64()?);
        let min_recovery_timeline = fields.u32()?;
        let backup_start_point = Lsn(fields.u64()?);
        fields.u64()?; // backupEndPoint
        fields.bool()?; // backupEndRequired
        fields.u32()?; // wal_level
        let wal_log_hints = since(V9_4) && fields.bool()?;
        let mut standby_minimums = vec![("max_connections", fields.u32()?)];
        if since(V9_4) {
            standby_minimums.push(("max_worker_processes", fields.u32()?));
        }
        if since(V12) {
            standby_minimums.push(("max_wal_senders", fields.u32()?));
        }
        standby_minimums.push(("max_prepared_transactions", fields.u32()?));
        standby_minimums.push(("max_locks_per_transaction", fields.u32()?));
        if since_9_5 {
            fields.bool()?; // track_commit_timestamp
        }
        fields.u32()?; // maxAlign
        let float_format = f64::from_bits(fields.u64()?);
        let block_size = fields.u32()?;
        let segment_blocks = fields.u32()?;
        let wal_block_size = fields.u32()?;
        let wal_segment_size = fields.u32()?;
        for _ in 0..3 {
            fields.u32()?; // nameDataLen, indexMaxKeys, toast_max_chunk_size
        }
        if since(V9_4) {
            fields.u32()?; // loblksize
        }
        if !since(V10) {
            fields.bool()?; // enableIntTimes
        }
        if !since(V13) {
            fields.bool()?; // float4ByVal
        }
        fields.bool()?; // float8ByVal
        let data_checksum_version = fields.u32()?;
        if since(V18) {
            fields.bool()?; // default_char_signedness
        }
        if since(V10) {
            fields.take(32, 1)?; // mock_authentication_nonce
        }
        fields.align(4);
        let covered = &bytes[..fields.at.min(bytes.len())];
        let computed = if since_9_5 { crc32c::crc32c(covered) } else { legacy_crc32(covered) };
        let stored = fields.u32()?;
        if stored != computed {
            return Err(Error::ControlChecksum { stored, computed });
        }

        let state = match state {
            0 => ClusterState::Startup,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            _ => return Err(Error::ControlField { field: "state", value: state.to_string() }),
        };
        if float_format != 1_234_567.0 {
            return Err(Error::ControlField { field: "float format", value: float_format.to_string() });
        }
        for (field, size) in [("block size", block_size), ("WAL block size", wal_block_size)] {
            if !(size.is_power_of_two() && (1024..=65_536).contains(&size)) {
                return Err(Error::ControlField { field, value: size.to_string() });
            }
        }
        if !is_segment_size(wal_segment_size) {
            return Err(Error::ControlField {
                field: "WAL segment size",
                value: wal_segment_size.to_string(),
            });
        }
        Ok(ControlFile {
            system_id,
            control_version,
            catalog_version,
            state,
            checkpoint,
            checkpoint_redo,
            timeline,
            min_recovery_point,
            min_recovery_timeline: (min_recovery_timeline != 0).then_some(Timeline(min_recovery_timeline)),
            backup_start_point,
            wal_log_hints,
            standby_minimums,
            block_size,
            segment_blocks,
            wal_block_size,
            wal_segment_size,
            data_checksum_version,
        })
    }
}

/// Walks over the members of a C struct, each aligned to its own size.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, size: usize, align: usize) -> Result<&'a [u8]> {
        self.align(align);
        let field = self
            .bytes
            .get(self.at..self.at + size)
            .ok_or(Error::ControlTooShort { bytes: self.bytes.len() })?;
        self.at += size;
        Ok(field)
    }

    fn bool(&mut self) -> Result<bool> {
        Ok(self.take(1, 1)?[0] != 0)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, 4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, 8)?.try_into().expect("eight bytes")))
    }
}

/// The checksum of 9.4 and before: the table of the reflected polynomial, walked in the direction of
/// the other one. PostgreSQL's `pg_crc.h` calls it bogus and keeps it as "legacy".
fn legacy_crc32(bytes: &[u8]) -> u32 {
    let entry =
        |index: u32| (0..8).fold(index, |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 });
    !bytes.iter().fold(!0, |crc: u32, byte| entry((crc >> 24) ^ u32::from(*byte)) ^ (crc << 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! control {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/fixtures/pg_control/", $name)).as_slice()
        };
    }

    const FIFTEEN: &[u8] = control!("15");

    /// The first 512 bytes of `pg_control` of running servers, and what their `pg_control_system()`,
    /// `pg_control_checkpoint()` and `pg_control_init()` said of it.
    #[test]
    fn real_files_of_every_version_are_read() {
        type Row = (&'static [u8], u32, u32, u64, &'static str, &'static str, u32, u32);
        const MB: u32 = 1 << 20;
        #[rustfmt::skip]
        let servers: [Row; 9] = [
            (control!("10"), 1002, 201707211, 7710293052426865603, "0/2000060", "0/2000028", 16 * MB, 0),
            (control!("11"), 1100, 201809051, 7710293059332353012, "0/A00060", "0/A00028", MB, 1),
            (control!("12"), 1201, 201909212, 7710293066371677221, "0/800060", "0/800028", MB, 0),
            (control!("13"), 1300, 202007201, 7710293073598389334, "0/A00060", "0/A00028", MB, 1),
            (control!("14"), 1300, 202107181, 7710293079457750151, "0/800060", "0/800028", MB, 0),
            (FIFTEEN,        1300, 202209061, 7710293085431323832, "0/900060", "0/900028", MB, 1),
            (control!("16"), 1300, 202307071, 7710293090627386599, "0/600060", "0/600028", MB, 0),
            (control!("17"), 1700, 202406281, 7710293095825517846, "0/900080", "0/900028", MB, 1),
            (control!("18"), 1800, 202506291, 7710293101292977477, "0/900080", "0/900028", MB, 1),
        ];
        for (bytes, control_version, catalog_version, system_id, checkpoint, redo, wal_segment_size, sums) in
            servers
        {
            let expected = ControlFile {
                system_id: SystemId(system_id),
                control_version,
                catalog_version,
                state: ClusterState::InProduction,
                checkpoint: checkpoint.parse().unwrap(),
                checkpoint_redo: redo.parse().unwrap(),
                timeline: Timeline(1),
                min_recovery_point: Lsn::ZERO,
                min_recovery_timeline: None,
                backup_start_point: Lsn::ZERO,
                wal_log_hints: false,
                standby_minimums: minimums(control_version),
                block_size: 8192,
                segment_blocks: 131_072,
                wal_block_size: 8192,
                wal_segment_size,
                data_checksum_version: sums,
            };
            assert_eq!(ControlFile::parse(bytes).unwrap(), expected);
        }
    }

    /// What the servers of the fixtures were started with; the rest are PostgreSQL's defaults.
    fn minimums(control_version: u32) -> Vec<(&'static str, u32)> {
        let all = [
            ("max_connections", 100),
            ("max_worker_processes", 8),
            ("max_wal_senders", 10),
            ("max_prepared_transactions", 10),
            ("max_locks_per_transaction", 64),
        ];
        let has_senders = control_version >= 1201;
        all.into_iter().filter(|(name, _)| has_senders || *name != "max_wal_senders").collect()
    }

    #[test]
    fn a_clean_stop_shows() {
        let control = ControlFile::parse(control!("15-shut-down")).unwrap();
        assert_eq!(control.state, ClusterState::ShutDown);
        assert!(control.state.is_clean() && !control.state.in_recovery());
        assert_eq!(control.checkpoint, control.checkpoint_redo);
        assert_eq!(control.checkpoint.to_string(), "0/B00110"); // as pg_controldata said
    }

    /// Of a running standby of 15; the position is what its `pg_control_recovery()` said.
    #[test]
    fn a_standby_has_a_minimum_recovery_point() {
        let control = ControlFile::parse(control!("15-standby")).unwrap();
        assert_eq!(control.state, ClusterState::InArchiveRecovery);
        assert!(control.state.in_recovery());
        assert_eq!(control.min_recovery_point.to_string(), "0/825B60");
        assert_eq!(control.min_recovery_timeline, Some(Timeline(1)));
    }

    /// `bytes` with `change` made and the checksum (at `crc_at`) made right again.
    fn changed(at: usize, value: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = FIFTEEN.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn what_is_no_usable_control_file_is_refused() {
        let text = |bytes: &[u8]| ControlFile::parse(bytes).unwrap_err().to_string();
        assert_eq!(text(&[]), "pg_control is too short (0 bytes)");
        assert_eq!(text(&FIFTEEN[..291]), "pg_control is too short (291 bytes)");
        assert!(ControlFile::parse(&FIFTEEN[..292]).is_ok());

        let mut swapped = FIFTEEN.to_vec();
        swapped[8..12].reverse();
        assert_eq!(text(&swapped), "pg_control was written by a machine of the other byte order");
        assert_eq!(text(&changed(8, 1900, 288)), "pg_control has the unknown version 1900");
        assert_eq!(text(&[0; 512]), "pg_control has the unknown version 0");

        for at in [0, 40, 200, 287, 288] {
            let mut damaged = FIFTEEN.to_vec();
            damaged[at] ^= 1;
            assert!(text(&damaged).starts_with("pg_control is damaged: its checksum is"), "{at}");
        }
        // another layout under a known version: the checksum would stand elsewhere
        assert!(text(&changed(8, 1100, 288)).starts_with("pg_control is damaged"));
        assert_eq!(text(&changed(16, 7, 288)), "pg_control has an impossible state: 7");
        assert_eq!(text(&changed(216, 8193, 288)), "pg_control has an impossible block size: 8193");
        assert_eq!(text(&changed(228, 1000, 288)), "pg_control has an impossible WAL segment size: 1000");
        assert!(text(&changed(212, 0, 288)).starts_with("pg_control has an impossible float format"));
    }

    /// No server of these versions was at hand. The layouts are built from their headers' member lists
    /// with the sizes a C compiler gives them, independently of the reader.
    #[test]
    fn layouts_before_10_are_read() {
        // version, catalog, size of CheckPoint, is there: wal_log_hints etc., track_commit_timestamp
        let cases = [
            (937, 201306121, false, false),
            (942, 201409291, true, false),
            (942, 201510051, true, true),
            (960, 201608131, true, true),
        ];
        for (version, catalog, since_9_4, since_9_5) in cases {
            let mut bytes = Vec::new();
            let put = |bytes: &mut Vec<u8>, size: usize, value: u64| {
                bytes.resize(bytes.len().next_multiple_of(size), 0);
                bytes.extend_from_slice(&value.to_le_bytes()[..size]);
            };
            for (size, value) in
                [(8, 42), (4, version), (4, catalog), (4, 1), (8, 0), (8, 0x2000060), (8, 0x1000028)]
            {
                put(&mut bytes, size, value);
            }
            for (size, value) in
                [(8, 0x2000028), (4, 3), (4, 3), (1, 1), (4, 0), (4, 700), (4, 16384), (4, 1), (4, 0)]
            {
                put(&mut bytes, size, value);
            }
            for size in [4, 4, 4, 4, 8] {
                put(&mut bytes, size, 1);
            }
            if since_9_5 {
                put(&mut bytes, 4, 0);
                put(&mut bytes, 4, 0);
            }
            put(&mut bytes, 4, 0);
            for (size, value) in [(8, 1), (8, 0x3000000), (4, 3), (8, 0), (8, 0), (1, 0), (4, 2)] {
                put(&mut bytes, size, value);
            }
            if since_9_4 {
                put(&mut bytes, 1, 0);
            }
            put(&mut bytes, 4, 100);
            if since_9_4 {
                put(&mut bytes, 4, 8);
            }
            put(&mut bytes, 4, 0);
            put(&mut bytes, 4, 64);
            if since_9_5 {
                put(&mut bytes, 1, 0);
            }
            put(&mut bytes, 4, 8);
            put(&mut bytes, 8, 1_234_567.0f64.to_bits());
            for value in [8192, 131072, 8192, 16 << 20, 64, 32, 1996] {
                put(&mut bytes, 4, value);
            }
            if since_9_4 {
                put(&mut bytes, 4, 2048);
            }
            for (size, value) in [(1, 1), (1, 1), (1, 1), (4, 1)] {
                put(&mut bytes, size, value);
            }
            let crc = if since_9_5 { crc32c::crc32c(&bytes) } else { legacy_crc32(&bytes) };
            put(&mut bytes, 4, crc.into());
            bytes.resize(512, 0);
            let control = ControlFile::parse(&bytes).unwrap();
            assert_eq!((control.system_id, control.timeline), (SystemId(42), Timeline(3)), "{catalog}");
            assert_eq!(control.min_recovery_point, Lsn(0x3000000), "{catalog}");
            assert_eq!((control.wal_segment_size, control.data_checksum_version), (16 << 20, 1), "{catalog}");
            assert_eq!(control.state, ClusterState::ShutDown);
        }
    }
}
