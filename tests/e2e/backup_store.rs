//! Where backups lie: a directory and S3; their bytes on the way in and out, sealed, checked, resumed.

use crate::common::*;
use pgmahout::backups::manifest::{BackupId, By, FORMAT, Kind, Manifest, Needs};
use pgmahout::instance::Instance;
use pgmahout::postgres::wal::{Lsn, SystemId, Timeline};
use pgmahout::progress::{Progress, Voice};
use pgmahout::settings::Settings;
use pgmahout::store::sealed::{self, Sealer, Stored};
use pgmahout::store::{self, catalog, stream_error};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const MB: usize = 1 << 20;
const DENIED_HINT: &str = "give a key that is not revoked (AWS_ACCESS_KEY_ID, else ~/.aws/credentials), with the \
                           rights s3:ListBucket, GetObject, PutObject, DeleteObject and AbortMultipartUpload";

/// A host without a server: stores need none.
fn bare(site: &Arc<Site>, name: &str, yml: &[(&str, String)]) -> Host {
    let mut builder = site.host(name).without_data();
    for (name, value) in yml {
        builder = builder.yml(name, value);
    }
    builder.build()
}

/// A bucket, and a host that has its store there and a key for it.
fn in_s3(site: &Arc<Site>) -> (S3, Host) {
    let s3 = S3::start(site);
    let host = with_bucket(site, "db.0", &s3);
    (s3, host)
}

fn with_bucket(site: &Arc<Site>, name: &str, s3: &S3) -> Host {
    s3.create_bucket("shop");
    let host = bare(site, name, &s3.yml("shop", "prod/backups"));
    key(&host);
    host
}

fn key(host: &Host) {
    host.account.mkdir(&host.home.join(".aws"), 0o700);
    let text = format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    host.account.write(&host.home.join(".aws/credentials"), text, 0o600);
}

/// The instance of a host as the library sees it.
fn instance(host: &Host, environment: &[(&str, &str)]) -> Instance {
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Instance::discover(&Settings::load(&host.home, BTreeMap::new(), environment).unwrap()).unwrap()
}

/// Bytes that no compression and no luck makes equal to others.
fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut all = Vec::with_capacity(size + 8);
    while all.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(size);
    all
}

fn id(text: &str) -> BackupId {
    text.parse().unwrap()
}

fn manifest(file: &str, stored: Stored, content: &[u8]) -> Manifest {
    Manifest {
        format: FORMAT,
        id: BackupId { by: By::Hand, number: 1 },
        kind: Kind::Logical,
        database: Some("shop".into()),
        instance: "db.0".into(),
        app: None,
        from_standby: false,
        started: 1_795_191_420,
        finished: 1_795_191_425,
        server_version: "15.18".into(),
        server_version_num: 150_018,
        tool_version: Some("15.18".into()),
        agent_version: "0".into(),
        system_id: SystemId(7_000_000_000_000_000_001),
        lineage: None,
        timeline: Timeline(1),
        lsn: Lsn(0x0150_0000),
        file: file.into(),
        size: stored.size,
        sha256: stored.sha256,
        content_size: content.len() as u64,
        compression: "none".into(),
        encryption: stored.encryption,
        database_size: 1,
        tables: Vec::new(),
        needs: Needs::default(),
        properties: None,
        physical: None,
    }
}

/// Puts a backup into the instance's store, as a capture does.
fn add(instance: &Instance, file: &str, content: &[u8]) -> Manifest {
    let store = store::open(instance).unwrap();
    let mut sealer = Sealer::create(&*store, instance, file).unwrap();
    sealer.write_all(content).unwrap();
    let mut manifest = manifest(file, sealer.finish().unwrap(), content);
    catalog::add(&*store, &mut manifest).unwrap();
    manifest
}

fn listed(instance: &Instance) -> Vec<String> {
    let store = store::open(instance).unwrap();
    let all = catalog::list(&*store, &Progress::new(Voice::Quiet)).unwrap();
    all.iter().map(|listed| listed.manifest.id.to_string()).collect()
}

fn read_all(mut from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).map(|_| all)
}

/// What root's part of a test has written belongs to the host.
fn give(host: &Host, directory: &Path) {
    host.account.own(directory);
    for entry in std::fs::read_dir(directory).unwrap() {
        host.account.own(&entry.unwrap().path());
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Downloads with the binary, and says how much memory it took at most, in kB.
fn download_measured(host: &Host, arguments: &[&str]) -> u64 {
    let mut run = host.agent(arguments).spawn();
    let (status, mut most) = (format!("/proc/{}/status", run.pid()), 0);
    while run.is_running() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = line.map_or(most, |line| line.trim().trim_end_matches(" kB").parse().unwrap());
        std::thread::sleep(Duration::from_millis(2));
    }
    run.wait().ok();
    most
}

#[test]
fn the_servers_of_the_tests() {
    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("shop");
    s3.put("shop", "backups/b001.dump", b"a dump");
    assert_eq!(s3.keys("shop"), ["backups/b001.dump"]);
    s3.flip("shop", "backups/b001.dump", 0);
    assert_eq!(s3.get("shop", "backups/b001.dump"), b"` dump");
    assert!(s3.uploads("shop").is_empty());
    assert_eq!(Pg::full18().major, 18);
}

#[test]
fn a_backup_goes_into_s3_and_comes_back() {
    let site = Site::new();
    let (s3, host) = in_s3(&site);
    let here = instance(&host, &[]);
    assert!(listed(&here).is_empty());
    let content = bytes(60 * MB + 5, 1);
    let manifest = add(&here, "b001-0123abcd.dump", &content);
    assert_eq!((manifest.size, manifest.sha256.as_str()), (content.len() as u64, &*sha256(&content)));
    assert!(s3.uploads("shop").is_empty());
    assert_eq!(s3.keys("shop"), ["prod/backups/b001-0123abcd.dump", "prod/backups/b001.json"]);
    assert!(s3.get("shop", "prod/backups/b001-0123abcd.dump") == content);
    assert!(names(&here.state_directory.join("uploads")).is_empty(), "the note of the upload is gone");
    let store = store::open(&here).unwrap();
    assert!(read_all(sealed::open(&*store, &here, &manifest).unwrap()).unwrap() == content);

    // The same through the binary, once with the key in the environment.
    let shown = host.agent(&["--json", "backup", "info", "b001"]).s3().run().json();
    assert_eq!(shown["sha256"], manifest.sha256);
    let most = download_measured(&host, &["backup", "download", "b001"]);
    assert!((1..80_000).contains(&most), "{most} kB for 60 MB");
    assert!(std::fs::read(host.home.join("b001.dump")).unwrap() == content);
    assert!(!host.home.join("b001.dump.part").exists());
    host.agent(&["backup", "download", "b001"]).run().fails(
        3,
        "./b001.dump is there already",
        "--force overwrites it",
    );
    host.agent(&["backup", "download", "b001", "--force"]).run().ok().says("checksum verified");
    host.agent(&["backup", "delete", "b001"]).run().ok();
    assert!(s3.keys("shop").is_empty());
    host.agent(&["backup", "download", "b001"]).run().fails(
        1,
        "there is no backup b001 in s3://shop/prod/backups",
        "pgmahout backup list shows those that are",
    );
}

#[test]
fn a_backup_goes_into_a_directory_and_comes_back() {
    let site = Site::new();
    let host = bare(&site, "db.0", &[]);
    let here = instance(&host, &[]);
    let directory = host.home.join("backups");
    let content = bytes(60 * MB + 5, 2);
    let manifest = add(&here, "b001-0123abcd.dump", &content);
    assert_eq!(std::fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
    give(&host, &directory);
    let store = store::open(&here).unwrap();
    assert!(read_all(sealed::open(&*store, &here, &manifest).unwrap()).unwrap() == content);
    let most = download_measured(&host, &["backup", "download", "b001", "copy"]);
    assert!((1..40_000).contains(&most), "{most} kB for 60 MB");
    assert!(std::fs::read(host.home.join("copy")).unwrap() == content);

    // A smaller one, to a directory and to standard output.
    add(&here, "b002-0123abcd.dump", b"PGDMP, small");
    give(&host, &directory);
    let report = host.agent(&["--json", "backup", "download", "b002", "run"]).run().json();
    assert_eq!((&report["file"], &report["size"]), (&"run/b002.dump".into(), &12.into()));
    assert_eq!(host.agent(&["backup", "download", "b002", "-"]).run().ok().stdout, "PGDMP, small");

    // Bytes that were cut off, and a manifest that is none.
    std::fs::write(directory.join("b001-0123abcd.dump"), &content[..MB]).unwrap();
    std::fs::write(directory.join("b003.json"), "{}").unwrap();
    give(&host, &directory);
    let output = host.agent(&["--json", "backup", "list"]).run();
    assert!(output.stderr.contains("b001 is left out"), "{}", output.stderr);
    assert!(output.stderr.contains("the manifest of b003 cannot be read"), "{}", output.stderr);
    let list = output.json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
}

#[test]
fn two_with_the_same_number() {
    let site = Site::new();
    let (_s3, host) = in_s3(&site);
    let unconditional = S3::start_unconditional(&site);
    let (local, other) = (bare(&site, "db.1", &[]), with_bucket(&site, "db.2", &unconditional));
    for host in [&host, &local, &other] {
        let here = instance(host, &[]);
        std::thread::scope(|scope| {
            for n in 0..4 {
                let here = &here;
                scope.spawn(move || add(here, &format!("b001-0000000{n}.dump"), &bytes(1000, n)));
            }
        });
        let mut ids = listed(&here);
        ids.sort();
        assert_eq!(ids, ["b001", "b002", "b003", "b004"], "of {}", host.name);
        let store = store::open(&here).unwrap();
        let mut files: Vec<String> =
            ids.iter().map(|name| catalog::find(&*store, id(name)).unwrap().manifest.file).collect();
        files.sort();
        files.dedup();
        assert_eq!(files.len(), 4, "each names its own bytes: {files:?}");
    }
}

#[test]
fn what_breaks_off_leaves_nothing_in_s3() {
    let site = Site::new();
    let (s3, host) = in_s3(&site);
    let here = instance(&host, &[]);
    let store = store::open(&here).unwrap();
    let notes = here.state_directory.join("uploads");
    let begun = |name: &str| {
        let mut sealer = Sealer::create(&*store, &here, name).unwrap();
        sealer.write_all(&bytes(20 * MB, 3)).unwrap();
        assert_eq!(s3.uploads("shop").len(), 1);
        assert_eq!(names(&notes).len(), 1);
        sealer
    };
    // The dump failed, or the upload did: nothing of it stays.
    drop(begun("b001-0123abcd.dump"));
    assert!(s3.uploads("shop").is_empty());
    assert!(names(&notes).is_empty());
    // What a kill leaves: nobody cleans up, until the next run.
    std::mem::forget(begun("b001-0123abcd.dump"));
    let again = store::open(&instance(&host, &[])).unwrap();
    again.sweep().unwrap();
    assert!(s3.uploads("shop").is_empty());
    assert!(names(&notes).is_empty());
    assert!(s3.keys("shop").is_empty());
    again.sweep().unwrap();
}

#[test]
fn what_breaks_off_leaves_nothing_in_a_directory() {
    let site = Site::new();
    let host = bare(&site, "db.0", &[]);
    let here = instance(&host, &[]);
    let store = store::open(&here).unwrap();
    let directory = host.home.join("backups");
    let mut sealer = Sealer::create(&*store, &here, "b001-0123abcd.dump").unwrap();
    sealer.write_all(&bytes(MB, 4)).unwrap();
    assert!(store.list().unwrap().is_empty());
    // Another instance with the same directory sweeps: this upload is at work.
    store::open(&here).unwrap().sweep().unwrap();
    assert_eq!(names(&directory).len(), 1);
    drop(sealer);
    assert!(names(&directory).is_empty());
    // What a kill has left is nobody's.
    std::fs::write(directory.join(".partial-b001-0123abcd.dump-x1y2z3"), "half").unwrap();
    store.sweep().unwrap();
    assert!(names(&directory).is_empty());
}

#[test]
fn bytes_without_a_manifest_are_removed_after_a_day() {
    let site = Site::new();
    let host = bare(&site, "db.0", &[]);
    let here = instance(&host, &[]);
    add(&here, "b001-0123abcd.dump", b"good");
    let directory = host.home.join("backups");
    for name in ["b002-0123abcd.dump", "b003-0123abcd.dump.age", "notes.txt"] {
        std::fs::write(directory.join(name), "x").unwrap();
    }
    for name in ["b001-0123abcd.dump", "b002-0123abcd.dump", "notes.txt"] {
        must(Command::new("touch").args(["-d", "2 days ago"]).arg(directory.join(name)));
    }
    let store = store::open(&here).unwrap();
    let removed = catalog::sweep_orphans(&*store, 86_400).unwrap();
    assert_eq!(removed.iter().map(|o| &*o.name).collect::<Vec<_>>(), ["b002-0123abcd.dump"]);
    let left = ["b001-0123abcd.dump", "b001.json", "b003-0123abcd.dump.age", "notes.txt"];
    assert_eq!(names(&directory), left);
    // A manifest that cannot be read may name it.
    must(Command::new("touch").args(["-d", "2 days ago"]).arg(directory.join(left[2])));
    std::fs::write(directory.join("b009.json"), "{}").unwrap();
    catalog::sweep_orphans(&*store, 86_400).unwrap_err();
    assert_eq!(names(&directory).len(), 5);
}

#[test]
fn a_flipped_bit_is_found() {
    let site = Site::new();
    let (s3, host) = in_s3(&site);
    let here = instance(&host, &[]);
    let manifest = add(&here, "b001-0123abcd.dump", &bytes(10 * MB, 5));
    s3.flip("shop", "prod/backups/b001-0123abcd.dump", 7 * MB);
    let store = store::open(&here).unwrap();
    let error = read_all(sealed::open(&*store, &here, &manifest).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    host.agent(&["backup", "download", "b001", "copy"]).run().fails(
        1,
        "the backup b001 in s3://shop/prod/backups is damaged: its checksum is not the one of its manifest",
        "use another one; pgmahout backup list shows them, pgmahout backup verify proves one",
    );
    assert!(!host.home.join("copy").exists() && !host.home.join("copy.part").exists());
}

#[test]
fn a_download_that_was_killed_goes_on() {
    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("shop");
    let proxy = Proxy::to(s3.port).slow(12_000_000);
    let mut yml = s3.yml("shop", "");
    yml[1].1 = format!("http://127.0.0.1:{}", proxy.port);
    let host = bare(&site, "db.0", &yml);
    key(&host);
    let content = bytes(40 * MB, 6);
    add(&instance(&host, &[]), "b001-0123abcd.dump", &content);
    let part = host.home.join("b001.dump.part");
    let have = || part.metadata().map_or(0, |metadata| metadata.len());
    let running = host.agent(&["backup", "download", "b001"]).spawn();
    until("some of it is here", 60, || have() > 6 * MB as u64);
    // A second one keeps away from the first.
    let second = host.agent(&["backup", "download", "b001"]).run();
    assert!(second.code == 1 && second.stderr.contains("another download"), "{}", second.stderr);
    running.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(running.wait().code, -9);
    let had = have();
    proxy.set_rate(0);
    let before = proxy.passed();
    let report = host.agent(&["--json", "backup", "download", "b001"]).run().json();
    assert_eq!(report["resumed_from"], had);
    assert!(std::fs::read(host.home.join("b001.dump")).unwrap() == content);
    let fetched = proxy.passed() - before;
    assert!(fetched < content.len() as u64 - had + MB as u64, "{fetched} after {had}");

    // What is there is of something else: it is fetched anew.
    host.account.write(&host.home.join("copy.part"), bytes(5 * MB, 7), 0o600);
    let report = host.agent(&["--json", "backup", "download", "b001", "copy"]).run();
    assert!(report.stderr.contains("copy.part is not the beginning of b001"), "{}", report.stderr);
    assert_eq!(report.json()["resumed_from"], 0);
    assert!(std::fs::read(host.home.join("copy")).unwrap() == content);
}

#[test]
fn a_network_fault_is_retried() {
    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("shop");
    let proxy = Proxy::to(s3.port);
    let mut yml = s3.yml("shop", "");
    yml[1].1 = format!("http://127.0.0.1:{}", proxy.port);
    let host = bare(&site, "db.0", &yml);
    key(&host);
    let here = instance(&host, &[]);
    let content = bytes(40 * MB, 8);
    let store = store::open(&here).unwrap();
    let mut sealer = Sealer::create(&*store, &here, "b001-0123abcd.dump").unwrap();
    for piece in content.chunks(5 * MB) {
        sealer.write_all(piece).unwrap();
        proxy.cut();
    }
    let mut manifest = manifest("b001-0123abcd.dump", sealer.finish().unwrap(), &content);
    proxy.cut();
    catalog::add(&*store, &mut manifest).unwrap();
    assert_eq!(listed(&here), ["b001"]);
    assert!(s3.uploads("shop").is_empty());

    let mut reader = sealed::open(&*store, &here, &manifest).unwrap();
    let (mut all, mut piece) = (Vec::new(), vec![0; MB]);
    loop {
        let n = reader.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        all.extend_from_slice(&piece[..n]);
        if all.len() / (5 * MB) > (all.len() - n) / (5 * MB) {
            proxy.cut();
        }
    }
    assert!(all == content);
}

#[test]
fn what_is_wrong_with_s3_is_said() {
    let site = Site::new();
    let (s3, host) = in_s3(&site);
    add(&instance(&host, &[]), "b001-0123abcd.dump", b"good");
    let list = |host: &Host| host.agent(&["backup", "list"]).env("AWS_EC2_METADATA_DISABLED", "true").run();
    list(&host).ok().says("b001");

    let other = bare(&site, "db.1", &s3.yml("shoq", ""));
    list(&other).fails(
        1,
        &format!(
            "there are no credentials for s3://shoq: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set; \
             there is no {home}/.aws/credentials; there is no {home}/.aws/config; AWS_EC2_METADATA_DISABLED is set",
            home = other.home.display()
        ),
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials",
    );
    key(&other);
    list(&other).fails(
        1,
        &format!("there is no bucket shoq at {}", s3.endpoint()),
        "create it, or correct store, store_endpoint or store_region",
    );

    s3.revoke();
    list(&host)
        .fails(
            1,
            "access to s3://shop/prod/backups is denied: InvalidAccessKeyId: The AWS Access Key Id you provided does \
             not exist in our records.",
            DENIED_HINT,
        )
        .says_not(SECRET);
    let store = store::open(&instance(&host, &[])).unwrap();
    let denied = |text: String| assert!(text.contains("is denied"), "{text}");
    denied(store.put_new("b002.json", b"{}").unwrap_err().to_string());
    denied(store.read("b001.json", 0).err().unwrap().to_string());
    let mut upload = store.create("b002-0123abcd.dump").unwrap();
    let error = upload.write_all(&bytes(9 * MB, 9)).unwrap_err();
    denied(stream_error(&*store, "write", &error).to_string());

    let (endpoint, port) = (s3.endpoint(), s3.port);
    drop(s3);
    let down = list(&host);
    down.fails(
        4,
        &format!("could not reach {endpoint} for s3://shop/prod/backups: Connection refused (os error 111)"),
        "is the service up, and within reach of this machine? store_endpoint says where it is",
    );
    let s3 = S3::start_at(&site, port);
    s3.create_bucket("shop");
    list(&host).ok().says("no backups yet");
}

#[test]
fn a_link_is_good_for_anyone() {
    let site = Site::new();
    let (_s3, host) = in_s3(&site);
    let here = instance(&host, &[]);
    add(&here, "b001-0123abcd.dump", b"PGDMP");
    let store = store::open(&here).unwrap();
    let link = store.link("b001-0123abcd.dump", "b001.dump", Duration::from_secs(600)).unwrap().unwrap();
    assert!(!link.contains(SECRET) && link.contains("X-Amz-Expires=600"), "{link}");
    must(Command::new("curl").args(["-sSfOJ", &link]).current_dir(&host.home));
    assert_eq!(std::fs::read(host.home.join("b001.dump")).unwrap(), b"PGDMP");
    must(Command::new("curl").args(["-sSfO", &link]).current_dir(&host.home));
    assert_eq!(std::fs::read(host.home.join("b001-0123abcd.dump")).unwrap(), b"PGDMP");
}

/// A key file of age-keygen's, and the recipient of its key.
fn keygen(host: &Host, name: &str) -> (PathBuf, String) {
    let path = host.home.join(name);
    must(host.command("age-keygen").arg("-o").arg(&path));
    let recipient = must(host.command("age-keygen").arg("-y").arg(&path));
    (path, recipient)
}

#[test]
fn encrypted_with_a_key_file() {
    let site = Site::new();
    let (s3, host) = in_s3(&site);
    let (path, recipient) = keygen(&host, "backup.key");
    let by = |path: &Path| instance(&host, &[("PGMAHOUT_BACKUP_KEY_FILE", path.to_str().unwrap())]);
    let here = by(&path);
    let content = bytes(20 * MB, 10);
    let manifest = add(&here, "b001-0123abcd.dump", &content);
    assert_eq!(manifest.encryption.as_deref(), Some("age"));
    let stored = s3.get("shop", "prod/backups/b001-0123abcd.dump");
    assert!(stored.starts_with(b"age-encryption.org/v1\n"));
    assert_eq!((manifest.size, manifest.sha256.as_str()), (stored.len() as u64, &*sha256(&stored)));
    let store = store::open(&here).unwrap();
    assert!(read_all(sealed::open(&*store, &here, &manifest).unwrap()).unwrap() == content);

    // As it is stored, any age opens it; decrypted here, nobody has to.
    let download = |arguments: &[&str], key: &Path| {
        let arguments: Vec<&str> = ["backup", "download"].iter().chain(arguments).copied().collect();
        host.agent(&arguments).env("PGMAHOUT_BACKUP_KEY_FILE", key).run()
    };
    download(&["b001"], &path).ok();
    let sealed_file = host.home.join("b001.dump.age");
    let mut age = host.command("age");
    must(age.arg("-d").arg("-i").arg(&path).arg("-o").arg(host.home.join("opened")).arg(&sealed_file));
    assert!(std::fs::read(host.home.join("opened")).unwrap() == content);
    download(&["b001", "--decrypt"], &path).ok().says("decrypted");
    assert!(std::fs::read(host.home.join("b001.dump")).unwrap() == content);

    // And what age has made opens here.
    let plain = host.home.join("plain");
    host.account.write(&plain, b"by age itself", 0o600);
    must(host.command("age").args(["-r", &recipient, "-o"]).arg(host.home.join("sealed")).arg(&plain));
    let foreign = std::fs::read(host.home.join("sealed")).unwrap();
    s3.put("shop", "prod/backups/b002-0123abcd.dump", &foreign);
    let stored =
        Stored { size: foreign.len() as u64, sha256: sha256(&foreign), encryption: Some("age".into()) };
    catalog::add(&*store, &mut self::manifest("b002-0123abcd.dump", stored, b"")).unwrap();
    assert_eq!(download(&["b002", "-", "--decrypt"], &path).ok().stdout, "by age itself");

    // The wrong key, one that only encrypts, one that others can read, none.
    let (wrong, _) = keygen(&host, "wrong.key");
    let way_out = "give the one that it was made with: backup_key_file or PGMAHOUT_BACKUP_PASSPHRASE";
    let text = "the backup b001 does not open with this key";
    download(&["b001", "x", "--decrypt"], &wrong).fails(1, text, way_out);
    let public = host.home.join("public.key");
    host.account.write(&public, format!("{recipient}\n"), 0o644);
    add(&by(&public), "b003-0123abcd.dump", b"good");
    let no_key =
        "the setting backup_key_file names the file with the identity (AGE-SECRET-KEY-1...) it was made for";
    let text = "the backup b003 is encrypted, and there is no secret key to open it";
    download(&["b003", "x", "--decrypt"], &public).fails(1, text, no_key);
    host.agent(&["backup", "download", "b003", "x", "--decrypt"]).run().fails(1, text, no_key);
    assert_eq!(download(&["b003", "-", "--decrypt"], &path).ok().stdout, "good");
    let secret = std::fs::read(&path).unwrap();
    host.account.write(&path, secret, 0o644);
    download(&["b001", "x", "--decrypt"], &path)
        .fails(
            1,
            &format!(
                "the key file for backups cannot be used: others may read or write {}, its mode is 0644",
                path.display()
            ),
            "age-keygen -o FILE makes one, chmod 600 FILE keeps it; the setting backup_key_file names it",
        )
        .says_not("AGE-SECRET");
    assert!(!host.home.join("x").exists());
}

#[test]
fn encrypted_with_a_passphrase() {
    let site = Site::new();
    let host = bare(&site, "db.0", &[]);
    let directory = host.home.join("backups");
    let here = instance(&host, &[("PGMAHOUT_BACKUP_PASSPHRASE", "correct horse")]);
    let manifest = add(&here, "b001-0123abcd.dump", &bytes(MB, 11));
    give(&host, &directory);
    let download = |passphrase: &str| {
        let arguments = ["backup", "download", "b001", "--decrypt", "--force"];
        host.agent(&arguments).env("PGMAHOUT_BACKUP_PASSPHRASE", passphrase).run()
    };
    download("correct horse").ok().says_not("correct horse");
    assert!(std::fs::read(host.home.join("b001.dump")).unwrap() == bytes(MB, 11));
    download("wrong horse")
        .fails(
            1,
            "the backup b001 does not open with this passphrase",
            "give the one that it was made with: backup_key_file or PGMAHOUT_BACKUP_PASSPHRASE",
        )
        .says_not("wrong horse");
    host.agent(&["backup", "download", "b001", "x", "--decrypt"]).run().fails(
        1,
        "the backup b001 is encrypted with a passphrase",
        "give it in the environment: PGMAHOUT_BACKUP_PASSPHRASE",
    );
    // A key file wins for new ones; the passphrase still opens this one.
    let (path, _) = keygen(&host, "backup.key");
    let both = [
        ("PGMAHOUT_BACKUP_PASSPHRASE", "correct horse"),
        ("PGMAHOUT_BACKUP_KEY_FILE", path.to_str().unwrap()),
    ];
    let both = instance(&host, &both);
    let store = store::open(&both).unwrap();
    let newer = add(&both, "b002-0123abcd.dump", b"newer");
    let opened = |manifest| read_all(sealed::open(&*store, &both, manifest).unwrap()).unwrap();
    assert!(opened(&manifest) == bytes(MB, 11));
    assert_eq!(opened(&newer), b"newer");
    assert!(store::sealed::open(&*store, &here, &newer).is_err());

    // Every byte of it is guarded: flipped, cut off, and put behind its end.
    let file = directory.join("b001-0123abcd.dump");
    let good = std::fs::read(&file).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        match sealed::open(&*store, &both, &manifest) {
            Ok(reader) => read_all(reader).map_err(|e| sealed::read_error(&*store, &manifest, &e)),
            Err(error) => Err(error),
        }
    };
    let mut flipped = good.clone();
    flipped[MB / 2] ^= 1;
    let longer = [&good[..], b"x"].concat();
    for bad in [&flipped[..], &good[..good.len() - 1], &longer] {
        let text = read(bad).unwrap_err().to_string();
        assert!(text.contains("b001 in") && text.contains("is damaged"), "{text}");
    }
    assert!(read(&good).unwrap() == bytes(MB, 11));
}

#[test]
fn what_is_wrong_with_a_directory_is_said() {
    let site = Site::new();
    let hint = "is its disk mounted? create the directory for this account, or correct the setting store";
    let of = |name: &str, store: &Path| bare(&site, name, &[("store", store.display().to_string())]);

    let file = site.directory.join("a file");
    account().write(&file, "", 0o644);
    let host = of("db.0", &file);
    let text = format!("{} cannot hold backups: it is a file", file.display());
    host.agent(&["backup", "list"]).run().fails(1, &text, hint);

    // The disk is gone, and its mount point with it. No backups would be a lie.
    let gone = site.directory.join("mnt/nas");
    let host = of("db.1", &gone);
    let text = format!(
        "{} cannot hold backups: it is not there, and cannot be made in {}: no such file or directory",
        gone.display(),
        gone.parent().unwrap().display()
    );
    for verb in ["list", "info"] {
        let arguments = ["backup", verb, "b001"];
        host.agent(&arguments[..if verb == "list" { 2 } else { 3 }]).run().fails(1, &text, hint);
    }

    let disk = SmallDisk::mount(&site, "small disk", 4);
    let host = of("db.2", &disk.path.join("backups"));
    let here = instance(&host, &[]);
    add(&here, "b001-0123abcd.dump", b"good");
    let store = store::open(&here).unwrap();
    let mut sealer = Sealer::create(&*store, &here, "b002-0123abcd.dump").unwrap();
    let error = sealer.write_all(&bytes(8 * MB, 12)).unwrap_err();
    let text = stream_error(&*store, "write", &error).to_string();
    let at = disk.path.join("backups");
    assert_eq!(text, format!("could not write to {}: No space left on device (os error 28)", at.display()));
    drop(sealer);
    assert_eq!(names(&at), ["b001-0123abcd.dump", "b001.json"]);
    assert_eq!(listed(&here), ["b001"]);

    // No name leads out of it.
    for name in ["../b001.json", ".hidden", "", "a/b"] {
        assert!(store.read(name, 0).is_err() && store.delete(name).is_err() && store.create(name).is_err());
    }
}
