//! Owns what is said about one backup: its name and its manifest, as JSON beside the bytes.

use crate::checked;
use crate::error::{Error, Result};
use crate::postgres::wal::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Who asked for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The schedule: `a001`.
    Schedule,
    /// A person: `b001`.
    Hand,
}

/// A backup's name: `b001`, `a017`. Numbers go up by one and are never given again while a greater one exists;
/// they tell the order of backups whatever the clock did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    /// Who asked for it.
    pub by: By,
    /// From 1 on.
    pub number: u32,
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.by {
            By::Schedule => 'a',
            By::Hand => 'b',
        };
        write!(f, "{letter}{:03}", self.number)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<BackupId> {
        let bad = || Error::BackupIdText { text: text.chars().take(80).collect() };
        let by = match text.as_bytes().first() {
            Some(b'a') => By::Schedule,
            Some(b'b') => By::Hand,
            _ => return Err(bad()),
        };
        let digits = &text[1..];
        let fits = (3..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let number = digits.parse().ok().filter(|n| fits && *n > 0).ok_or_else(bad)?;
        let id = BackupId { by, number };
        // One spelling only: b0001 would be a second name of b001.
        if id.to_string() == text { Ok(id) } else { Err(bad()) }
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<BackupId, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What kind of backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One database, in `pg_dump`'s custom format.
    Logical,
    /// The whole cluster, a base backup as a tar with the WAL that makes it consistent.
    Physical,
}

/// A table (or materialized view) with data of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its database; only in a physical backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `pg_class.reltuples` when the backup began; -1 where nothing was ever counted.
    pub estimate: i64,
    /// The rows that are in the backup, counted while they went by; only in a logical backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// What must be there before a backup can be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// `pg_encoding_to_char`, e.g. `UTF8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// `datcollate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collate: Option<String>,
    /// `datctype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctype: Option<String>,
    /// `c` (libc), `i` (ICU), `b` (builtin); 15 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale_provider: Option<String>,
    /// `daticulocale` (15, 16) or `datlocale` (17 on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Roles that own something or are granted something, predefined ones left out; sorted.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Extensions and their versions, `plpgsql` left out.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
    /// Tablespaces that something lies in, `pg_default` and `pg_global` left out: name to location.
    #[serde(default)]
    pub tablespaces: BTreeMap<String, String>,
    /// Settings of the server that a restored cluster must have, or that what is restored depends on, such as
    /// `shared_preload_libraries`, `max_connections`.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// What belongs to a database and not to what is in it: a restore needs it when the database was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Its owner.
    pub owner: String,
    /// `datconnlimit`; -1 is none.
    pub connection_limit: i32,
    /// Its comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Its grants; none where nothing was ever granted or revoked, and PostgreSQL's own defaults hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<Grant>>,
    /// `ALTER DATABASE … SET`, `ALTER ROLE … IN DATABASE … SET`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// Names of settings that are the database's users' own, and not in here: their values may be secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

impl Properties {
    /// Those of a database that was just created.
    pub fn new(owner: &str) -> Properties {
        Properties {
            owner: owner.into(),
            connection_limit: -1,
            comment: None,
            grants: None,
            settings: Vec::new(),
            left_out: Vec::new(),
        }
    }
}

/// A privilege on a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Whose; none is PUBLIC.
    pub to: Option<String>,
    /// `CONNECT`, `CREATE`, `TEMPORARY`.
    pub privilege: String,
    /// With grant option.
    pub again: bool,
}

/// A setting of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Of this role in the database; none: of all.
    pub role: Option<String>,
    /// Its name.
    pub name: String,
    /// As it stands in `pg_db_role_setting`.
    pub value: String,
}

/// What only a physical backup has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physical {
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// From here on the cluster is consistent. The manifest's `lsn` is the same.
    pub stop_lsn: Lsn,
    /// Bytes.
    pub wal_segment_size: u32,
    /// The cluster was copied while its server was down.
    pub cold: bool,
    /// Data checksums are on.
    pub checksums: bool,
    /// Tablespaces by OID: where they lay.
    pub tablespaces: BTreeMap<u32, String>,
    /// Pages whose checksum is wrong, as "path: block"; at most a hundred are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_pages: Vec<String>,
}

/// All that is known about one backup. A backup without a manifest is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this structure: 1. A greater one is refused.
    pub format: u32,
    /// Its name.
    pub id: BackupId,
    /// What kind.
    pub kind: Kind,
    /// The database; none of a physical backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The instance that it was taken on.
    pub instance: String,
    /// Its app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// That instance was a standby.
    pub from_standby: bool,
    /// When it was begun, seconds since 1970.
    pub started: i64,
    /// When the last byte was stored.
    pub finished: i64,
    /// The server, e.g. `15.18`.
    pub server_version: String,
    /// The same as a number, e.g. 150018.
    pub server_version_num: u32,
    /// pg_dump's, e.g. `15.18`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_version: Option<String>,
    /// Ours.
    pub agent_version: String,
    /// The cluster's.
    pub system_id: SystemId,
    /// Of which succession of primaries it is: forks and restored copies have the cluster's system identifier too. None
    /// where no schedule was ever on, or the server was down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// The timeline of `lsn`.
    pub timeline: Timeline,
    /// The backup has what was committed up to here.
    pub lsn: Lsn,
    /// The name of its bytes in the store, beside the manifest.
    pub file: String,
    /// Their number, as stored.
    pub size: u64,
    /// Their SHA-256, as stored, in hexadecimal.
    pub sha256: String,
    /// Bytes before compression and encryption.
    pub content_size: u64,
    /// `gzip:3`, `zstd:3`, `none`.
    pub compression: String,
    /// `age` or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// Bytes on the server's disk, of the database or of the cluster.
    pub database_size: u64,
    /// What it holds.
    pub tables: Vec<Table>,
    /// What a restore needs.
    pub needs: Needs,
    /// What the database is beside what it holds; only of a logical backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
    /// What only a physical backup has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<Physical>,
}

/// The newest structure that is known here.
pub const FORMAT: u32 = 1;

impl Manifest {
    /// The name of its manifest in the store.
    pub fn name(id: BackupId) -> String {
        format!("{id}.json")
    }

    /// The name of its verification in the store.
    pub fn verified_name(id: BackupId) -> String {
        format!("{id}.verified.json")
    }

    /// What a person would call the downloaded file: `b001.dump`, `b002.tar.zst`, `b003.dump.age`.
    pub fn download_name(&self) -> String {
        let compressed = match self.compression.split(':').next() {
            Some("gzip") => ".gz",
            Some("zstd") => ".zst",
            _ => "",
        };
        let what = match self.kind {
            Kind::Logical => "dump".to_owned(),
            Kind::Physical => format!("tar{compressed}"),
        };
        let sealed = if self.encryption.is_some() { ".age" } else { "" };
        format!("{}.{what}{sealed}", self.id)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Manifest`] when it is damaged, or of a later version of pgmahout.
    pub fn parse(id: BackupId, bytes: &[u8]) -> Result<Manifest> {
        let bad = |why: String| Error::Manifest { id: id.to_string(), why };
        let manifest: Manifest = checked::from_json(bytes).map_err(bad)?;
        if manifest.format > FORMAT {
            return Err(bad(format!("it is of format {}, written by a later pgmahout", manifest.format)));
        }
        // The name of a file that is read, sent and deleted.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let begins_well = manifest.file.starts_with(|c: char| c.is_ascii_alphanumeric());
        if manifest.id != id || !begins_well || !manifest.file.chars().all(plain) {
            return Err(bad("it is another backup's".into()));
        }
        Ok(manifest)
    }
}

/// That a backup was restored and compared, or what went wrong. In the store as `<id>.verified.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When, seconds since 1970.
    pub at: i64,
    /// On which instance.
    pub instance: String,
    /// It was good.
    pub good: bool,
    /// What was done, or what was found.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        for good in ["b001", "a001", "b999", "b1000", "a123456789"] {
            assert_eq!(good.parse::<BackupId>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "b",
            "b1",
            "b01",
            "b000",
            "c001",
            "b0001",
            "b01000",
            "b-01",
            "B001",
            "b001 ",
            "b9999999999",
            "é001",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_says_the_same() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/manifest/");
        let id: BackupId = "b001".parse().unwrap();
        let manifest = Manifest::parse(id, &std::fs::read(format!("{corpus}physical")).unwrap()).unwrap();
        let whole = checked::json(&manifest);
        assert_eq!(Manifest::parse(id, &whole).unwrap(), manifest);
        for bytes in checked::damaged(&whole) {
            match Manifest::parse(id, &bytes) {
                Ok(read) => assert_eq!(read, manifest),
                Err(error) => {
                    assert!(
                        error.to_string().starts_with("the manifest of b001 cannot be read: it is damaged")
                    )
                }
            }
        }
    }

    #[test]
    fn a_file_of_a_manifest_is_neither_a_path_nor_an_option() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/manifest/");
        let id: BackupId = "b001".parse().unwrap();
        let small = std::fs::read(format!("{corpus}small")).unwrap();
        assert_eq!(Manifest::parse(id, &small).unwrap().file, "b001-0a1b.dump");
        for name in ["climbs-out", "option", "hidden", "no-name", "escapes"] {
            let bytes = std::fs::read(format!("{corpus}{name}")).unwrap();
            let error = Manifest::parse(id, &bytes).unwrap_err().to_string();
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }
}
