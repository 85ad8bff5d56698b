//! Clusters that initdb has made once in this process, and copies of them with a system identifier of their own: initdb
//! costs a second of a processor, and hundreds of hosts want one. With EVERY_CASE each host gets its own initdb.

use super::account::{Account, must};
use super::site::PREFIX;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the cluster of a command line lies; whoever is first makes it while the others wait.
type Shelf = Mutex<HashMap<Vec<String>, Arc<OnceLock<PathBuf>>>>;

/// Does what `initdb -D data` would do, where `initdb` is all of its command line but the directory.
pub fn initdb(account: &Account, mut initdb: Command, data: &Path) {
    let taken = std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some());
    if std::env::var_os("EVERY_CASE").is_some() || taken {
        must(initdb.arg("-D").arg(data));
        return;
    }
    static SHELF: OnceLock<Shelf> = OnceLock::new();
    let text = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
    let mut key = vec![account.name.clone(), text(initdb.get_program())];
    key.extend(initdb.get_args().map(text));
    // The password file is each host's own; what is in it counts.
    for at in 0..key.len() - 1 {
        if key[at] == "--pwfile" {
            key[at + 1] = std::fs::read_to_string(&key[at + 1]).unwrap();
        }
    }
    let one = SHELF.get_or_init(Shelf::default).lock().unwrap().entry(key).or_default().clone();
    let template = one.get_or_init(|| {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("{PREFIX}{} cluster {n}", std::process::id()));
        account.mkdir(&directory, 0o700);
        must(initdb.arg("-D").arg(directory.join("data")));
        directory.join("data")
    });
    let mut copy = account.command("cp");
    must(copy.arg("-a").arg("-T").arg(template).arg(data));
    be_another(data);
}

/// Gives a cluster that was never started a new system identifier: in its control file, whose checksum it follows, and at
/// the beginning of each WAL segment (xlp_sysid).
fn be_another(data: &Path) {
    let control = data.join("global/pg_control");
    let mut bytes = std::fs::read(&control).unwrap();
    let old: [u8; 8] = bytes[..8].try_into().unwrap();
    let sum = |bytes: &[u8], at: usize| crc32c::crc32c(&bytes[..at]).to_le_bytes();
    let checksum = (200..500).find(|at| bytes[*at..*at + 4] == sum(&bytes, *at)).expect("a control file");
    bytes[..8].copy_from_slice(&new_identifier());
    let new_sum = sum(&bytes, checksum);
    bytes[checksum..checksum + 4].copy_from_slice(&new_sum);
    overwrite(&control, 0, &bytes);
    for entry in std::fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
        let segment = entry.path();
        if entry.file_name().len() != 24 {
            continue;
        }
        let mut there = [0; 8];
        std::fs::File::open(&segment).unwrap().read_exact_at(&mut there, 24).unwrap();
        // One that is only prepared has nothing in it.
        if there != [0; 8] {
            assert_eq!(there, old, "{} is not of this cluster", segment.display());
            overwrite(&segment, 24, &bytes[..8]);
        }
    }
}

/// As initdb makes it: seconds, microseconds, and in place of its process id the number of the cluster.
fn new_identifier() -> [u8; 8] {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let number = COUNT.fetch_add(1, Ordering::Relaxed) & 0xfff;
    (now.as_secs() << 32 | u64::from(now.subsec_micros()) << 12 | number).to_le_bytes()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}
