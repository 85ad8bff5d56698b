//! Backups in a host's store that no server had to make: their bytes are the test's, their times too.

use super::host::Host;
use pgmahout::backups::manifest::{BackupId, FORMAT, Kind, Manifest, Needs, Verified};
use pgmahout::instance::Instance;
use pgmahout::postgres::wal::{Lsn, SystemId, Timeline};
use pgmahout::settings::Settings;
use pgmahout::store::directory::Directory;
use pgmahout::store::sealed::Sealer;
use pgmahout::store::{Store, catalog};
use std::collections::BTreeMap;
use std::io::Write;

/// Seconds since 1970.
pub fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

fn store(host: &Host) -> Directory {
    Directory::new(host.home.join("backups"))
}

fn own(host: &Host) {
    let directory = host.home.join("backups");
    host.account.own(&directory);
    for entry in std::fs::read_dir(&directory).unwrap() {
        host.account.own(&entry.unwrap().path());
    }
}

/// Puts a logical backup of `database`, begun at `at`, into ~/backups, as the real one would: by the library.
pub fn shelve(host: &Host, id: &str, database: &str, at: i64, content: &[u8]) -> Manifest {
    let settings = Settings::load(&host.home, BTreeMap::new(), []).unwrap();
    let instance = Instance::discover(&settings).unwrap();
    let id: BackupId = id.parse().unwrap();
    let store = store(host);
    let file = format!("{id}-{:08x}.dump", at as u32);
    let mut sealer = Sealer::create(&store, &instance, &file).unwrap();
    sealer.write_all(content).unwrap();
    let stored = sealer.finish().unwrap();
    let mut manifest = Manifest {
        format: FORMAT,
        id,
        kind: Kind::Logical,
        database: Some(database.into()),
        instance: host.name.clone(),
        app: None,
        from_standby: false,
        started: at,
        finished: at + 1,
        server_version: "15.18".into(),
        server_version_num: 150_018,
        tool_version: None,
        agent_version: "0".into(),
        system_id: SystemId(host.system_identifier()),
        lineage: None,
        timeline: Timeline(1),
        lsn: Lsn(0x100_0000),
        file,
        size: stored.size,
        sha256: stored.sha256,
        content_size: content.len() as u64,
        compression: "none".into(),
        encryption: stored.encryption,
        database_size: content.len() as u64,
        tables: Vec::new(),
        needs: Needs::default(),
        properties: None,
        physical: None,
    };
    catalog::add(&store, &mut manifest).unwrap();
    own(host);
    manifest
}

/// What a verification at `at` found.
pub fn set_verified(host: &Host, id: &str, at: i64, good: bool) {
    let text = if good { "as it was" } else { "a flipped bit" };
    let verified = Verified { at, instance: host.name.clone(), good, text: text.into() };
    catalog::set_verified(&store(host), id.parse().unwrap(), &verified).unwrap();
    own(host);
}

/// Takes it away again.
pub fn unshelve(host: &Host, manifest: &Manifest) {
    catalog::remove(&store(host), manifest).unwrap();
}

/// Names in the store that are not hidden.
pub fn objects(host: &Host) -> Vec<String> {
    let mut names: Vec<String> = store(host).list().unwrap().into_iter().map(|object| object.name).collect();
    names.sort();
    names
}
