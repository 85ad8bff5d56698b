//! Owns which backups a store has: their manifests, the next number, adding and removing one.

use super::{Store, read_small};
use crate::backups::manifest::{BackupId, By, Manifest, Verified};
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::Serialize;

/// A backup and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// All about it.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Its last verification.
    pub verified: Option<Verified>,
}

/// All backups, in the order in which they were taken. What cannot be read is warned of and left out.
pub fn list(store: &dyn Store, progress: &Progress) -> Result<Vec<Listed>> {
    let objects = store.list()?;
    let mut found = Vec::new();
    for object in &objects {
        let Some(id) = object.name.strip_suffix(".json").and_then(|stem| stem.parse::<BackupId>().ok())
        else {
            continue;
        };
        let read = read_small(store, &object.name).and_then(|bytes| Manifest::parse(id, &bytes));
        let manifest = match read {
            Ok(manifest) => manifest,
            // Deleted this moment.
            Err(Error::NoObject { .. }) => continue,
            Err(error @ Error::Manifest { .. }) => {
                progress.warn(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        if !objects.iter().any(|object| object.name == manifest.file && object.size == manifest.size) {
            progress.warn(format!(
                "{id} is left out: its bytes are not in {} any more, or not whole",
                store.place()
            ));
            continue;
        }
        let name = Manifest::verified_name(id);
        let verified = match objects.iter().any(|object| object.name == name) {
            true => read_small(store, &name).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            false => None,
        };
        found.push(Listed { manifest, verified });
    }
    found.sort_by_key(|listed| (listed.manifest.started, listed.manifest.id.number, listed.manifest.id));
    Ok(found)
}

/// One backup.
pub fn find(store: &dyn Store, id: BackupId) -> Result<Listed> {
    let bytes = match read_small(store, &Manifest::name(id)) {
        Err(Error::NoObject { .. }) => {
            return Err(Error::NoBackup { id: id.to_string(), place: store.place() });
        }
        other => other?,
    };
    let manifest = Manifest::parse(id, &bytes)?;
    let verified = match read_small(store, &Manifest::verified_name(id)) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(Error::NoObject { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(Listed { manifest, verified })
}

/// The name that the next backup will most likely have.
pub fn next(store: &dyn Store, by: By) -> Result<BackupId> {
    let ids = store.list()?.into_iter().filter_map(|object| {
        object.name.split(['.', '-']).next().and_then(|stem| stem.parse::<BackupId>().ok())
    });
    let last = ids.filter(|id| id.by == by).map(|id| id.number).max().unwrap_or(0);
    Ok(BackupId { by, number: last + 1 })
}

/// Puts a backup whose bytes are stored into the list. Another instance may have taken its number meanwhile: the
/// next free one is given then, and is in the manifest afterwards.
pub fn add(store: &dyn Store, manifest: &mut Manifest) -> Result<()> {
    loop {
        let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
        if store.put_new(&Manifest::name(manifest.id), &bytes)? {
            return Ok(());
        }
        manifest.id.number += 1;
    }
}

/// Takes a backup out of the list, and then its bytes away.
pub fn remove(store: &dyn Store, manifest: &Manifest) -> Result<()> {
    store.delete(&Manifest::name(manifest.id))?;
    store.delete(&Manifest::verified_name(manifest.id))?;
    store.delete(&manifest.file)
}

/// Remembers a verification.
pub fn set_verified(store: &dyn Store, id: BackupId, verified: &Verified) -> Result<()> {
    store.put(&Manifest::verified_name(id), &serde_json::to_vec(verified).expect("plain data"))
}
