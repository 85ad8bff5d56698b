//! Owns which backups a store has: their manifests, the next number, adding and removing one.

use super::{Object, Store, read_small};
use crate::backups::manifest::{BackupId, By, Manifest, Verified};
use crate::checked;
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::Serialize;
use std::time::SystemTime;

/// A backup and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// All about it.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Its last verification.
    pub verified: Option<Verified>,
}

/// Manifests that are asked for at the same time, of a store behind a network.
const AT_ONCE: usize = 8;

/// All backups, in the order in which they were taken. What cannot be read is warned of and left out.
pub fn list(store: &dyn Store, progress: &Progress) -> Result<Vec<Listed>> {
    let objects = store.list()?;
    let ids: Vec<BackupId> = objects.iter().filter_map(|object| manifest_of(&object.name)).collect();
    let mut found = Vec::new();
    for (id, read) in ids.iter().zip(read_all(store, &ids, &objects)) {
        let listed = match read {
            Ok(listed) => listed,
            // Deleted this moment.
            Err(Error::NoObject { .. }) => continue,
            Err(error @ Error::Manifest { .. }) => {
                progress.warn(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        let verified = Manifest::verified_name(*id);
        if listed.verified.is_none() && objects.iter().any(|object| object.name == verified) {
            let place = store.place();
            progress.warn(format!("{verified} in {place} is damaged: {id} counts as never verified"));
        }
        let (file, size) = (&listed.manifest.file, listed.manifest.size);
        match objects.iter().find(|object| object.name == *file) {
            Some(object) if object.size == size => found.push(listed),
            Some(object) => progress.warn(format!(
                "{id} is left out: {file} in {} has {} bytes in place of {size}",
                store.place(),
                object.size
            )),
            None => progress.warn(format!("{id} is left out: {file} is not in {} any more", store.place())),
        }
    }
    found.sort_by_key(|listed| (listed.manifest.started, listed.manifest.id.number, listed.manifest.id));
    Ok(found)
}

/// The backup whose manifest has this name.
fn manifest_of(name: &str) -> Option<BackupId> {
    name.strip_suffix(".json").and_then(|stem| stem.parse().ok())
}

/// The manifests of `ids`, in their order.
fn read_all(store: &dyn Store, ids: &[BackupId], objects: &[Object]) -> Vec<Result<Listed>> {
    let read = |id: &BackupId| {
        let manifest = Manifest::parse(*id, &read_small(store, &Manifest::name(*id))?)?;
        let name = Manifest::verified_name(*id);
        let verified = match objects.iter().any(|object| object.name == name) {
            true => read_small(store, &name).ok().and_then(|bytes| checked::from_json(&bytes).ok()),
            false => None,
        };
        Ok(Listed { manifest, verified })
    };
    if store.is_local() || ids.len() < 2 {
        return ids.iter().map(read).collect();
    }
    std::thread::scope(|scope| {
        let read = &read;
        let share = ids.len().div_ceil(AT_ONCE);
        let threads: Vec<_> = ids
            .chunks(share)
            .map(|ids| scope.spawn(move || ids.iter().map(read).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("reading does not panic")).collect()
    })
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
        Ok(bytes) => checked::from_json(&bytes).ok(),
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
        if store.put_new(&Manifest::name(manifest.id), &checked::json(manifest))? {
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
    store.put(&Manifest::verified_name(id), &checked::json(verified))
}

/// Removes bytes without a manifest, as a kill between the two leaves them, and gives what was removed. Only what
/// was stored more than `older_than` seconds ago by this machine's clock: another instance may be about to write the
/// manifest. Nothing is removed while a manifest cannot be read: it may name it.
pub fn sweep_orphans(store: &dyn Store, older_than: i64) -> Result<Vec<Object>> {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let objects = store.list()?;
    let orphans: Vec<&Object> = objects
        .iter()
        .filter(|object| is_data(&object.name) && object.modified.saturating_add(older_than) < now)
        .collect();
    if orphans.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<BackupId> = objects.iter().filter_map(|object| manifest_of(&object.name)).collect();
    let mut named = std::collections::BTreeSet::new();
    for read in read_all(store, &ids, &[]) {
        match read {
            Ok(listed) => named.insert(listed.manifest.file),
            Err(Error::NoObject { .. }) => continue,
            Err(error) => return Err(error),
        };
    }
    let mut removed = Vec::new();
    for orphan in orphans.into_iter().filter(|orphan| !named.contains(&orphan.name)) {
        store.delete(&orphan.name)?;
        removed.push(orphan.clone());
    }
    Ok(removed)
}

/// `<id>-<8 hexadecimal digits>.<extension>`, as captures call their bytes.
fn is_data(name: &str) -> bool {
    let Some((id, rest)) = name.split_once('-') else { return false };
    let Some((unique, extension)) = rest.split_once('.') else { return false };
    let hexadecimal = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    id.parse::<BackupId>().is_ok()
        && unique.len() == 8
        && unique.chars().all(hexadecimal)
        && !extension.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Voice;
    use crate::store::directory::Directory;
    use std::path::Path;

    /// Whatever of a catalogue is damaged: no backup is taken for another one, none is deleted for being in nobody's
    /// manifest, and the others stay in the list.
    #[test]
    fn a_damaged_catalogue_is_no_empty_one() {
        let home = tempfile::tempdir().unwrap();
        let store = Directory::new(home.path().join("backups"));
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/manifest/small");
        let bytes = std::fs::read(corpus).unwrap();
        let mut manifest = Manifest::parse("b001".parse().unwrap(), &bytes).unwrap();
        let mut other = Manifest { file: "b002-00000002.dump".into(), ..manifest.clone() };
        for manifest in [&mut manifest, &mut other] {
            manifest.file = manifest.file.replace("0a1b.", "00000001.");
            store.put(&manifest.file, &vec![0; manifest.size as usize]).unwrap();
            add(&store, manifest).unwrap();
        }
        assert_eq!(other.id.to_string(), "b002");
        let progress = Progress::new(Voice::Quiet);
        let ids = || {
            let listed = list(&store, &progress).unwrap();
            listed.into_iter().map(|listed| listed.manifest).collect::<Vec<_>>()
        };
        assert_eq!(ids(), [manifest.clone(), other.clone()]);
        let path = home.path().join("backups/b001.json");
        let whole = std::fs::read(&path).unwrap();
        for (n, bytes) in checked::damaged(&whole).enumerate() {
            std::fs::write(&path, &bytes).unwrap();
            match find(&store, manifest.id) {
                Ok(found) => assert_eq!(found.manifest, manifest),
                Err(error) => assert!(matches!(error, Error::Manifest { .. }), "{error}"),
            }
            // Which warns each time.
            if n % 300 == 200 {
                assert_eq!(ids(), [other.clone()]);
                assert!(sweep_orphans(&store, -1000).is_err());
                assert!(home.path().join("backups").join(&manifest.file).exists());
            }
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(ids(), [manifest, other]);
    }

    #[test]
    fn what_captures_call_their_bytes() {
        for name in ["b001-0123abcd.dump", "a1000-ffffffff.tar.zst", "b003-00000000.dump.age"] {
            assert!(is_data(name), "{name}");
        }
        for name in [
            "b001.json",
            "b001.verified.json",
            "notes-0123abcd.txt",
            "b001-0123abcg.dump",
            "b001-0123abc.dump",
        ] {
            assert!(!is_data(name), "{name}");
        }
    }
}
