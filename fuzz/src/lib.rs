//! What each target does with its bytes, and what must hold whatever they are. `fuzz_targets/` hands them to libFuzzer,
//! `tests/corpus.rs` of pgmahout runs the corpora through the same functions in `cargo test`.

use pgmahout::backups::{link, manifest};
use pgmahout::blurb::{Blurb, DatabaseUrl, Secret};
use pgmahout::operations::enslave::copy::take_manifest;
use pgmahout::operations::enslave::place::{Layout, Place};
use pgmahout::postgres::archive::{self, Packing, Sink};
use pgmahout::postgres::backup::BackupLabel;
use pgmahout::postgres::changes::{Changes, Stretch};
use pgmahout::postgres::control::ControlFile;
use pgmahout::postgres::log::{Decoder, Entry, Format, is_log_name};
use pgmahout::postgres::plan::{Plan, memory_bytes};
use pgmahout::postgres::records::{PAGE_SIZE, Page, WalReader};
use pgmahout::postgres::recovery::{self, Conninfo};
use pgmahout::postgres::release::{Release, Wanted};
use pgmahout::postgres::version::PgVersion;
use pgmahout::postgres::wal::{History, Lsn, Timeline, parse_segment_name, segment_name};
use pgmahout::progress::{Progress, Voice};
use pgmahout::settings::Settings;
use pgmahout::ssh::{Ended, RemoteProcess};
use pgmahout::tls::{Encryption, Tls};
use pgmahout::transfer::coding;
use pgmahout::transfer::protocol::{self, *};
use pgmahout::transfer::source;
use pgmahout::transfer::stream::{Stream, Wishes};
use pgmahout::transfer::target::{self, Manner, Roots};
use pgmahout::wire::{Peer, Wire};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A target.
pub type Target = fn(&[u8]);

/// The targets by their names, which are those of the corpora and of the programs in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("blurb", blurb),
    ("control", control),
    ("frames", frames),
    ("log", log),
    ("manifest", manifest),
    ("recovery", recovery),
    ("settings", settings),
    ("transfer_source", transfer_source),
    ("transfer_target", transfer_target),
    ("wal", wal),
    ("wire", wire),
];

/// No text for a person may hold what a terminal obeys.
fn assert_plain(text: &str) {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!text.contains(harmful), "a control character in {text:?}");
}

// ---- blurbs

/// What stands where another program may take it for an option, or split it, is harmless.
fn assert_name(name: &str) {
    assert!(!name.is_empty() && !name.starts_with('-'), "{name:?}");
    let harmful = |c: char| c.is_control() || c.is_whitespace();
    assert!(!name.contains(harmful), "{name:?}");
}

fn assert_host(host: &str) {
    assert_name(host);
    assert!(host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:%".contains(c)), "{host:?}");
}

/// Blurbs, environments and URLs of databases.
pub fn blurb(data: &[u8]) {
    let from = data.first().map(|byte| ["0", "db.0", "shop.db.0", "1"][usize::from(*byte) % 4]);
    for read in [Blurb::parse(data, None), Blurb::parse(data, from), Blurb::from_environment(data, "db.1")] {
        match read {
            Ok(blurb) => {
                assert_host(&blurb.ssh.host);
                assert_host(&blurb.sql.host);
                for name in blurb.ssh.user.iter().chain(&blurb.sql.user) {
                    assert_name(name);
                }
                assert!(blurb.ssh.port > 0 && blurb.sql.port > 0);
                let shown = format!("{blurb:?}");
                if let Some(password) = blurb.sql.password.filter(|password| password.expose().len() > 20) {
                    assert!(!shown.contains(password.expose()), "{shown}");
                }
            }
            Err(error) => assert_plain(&error.to_string()),
        }
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(url) = DatabaseUrl::parse(text.trim()) {
        assert_host(&url.host);
    }
}

// ---- backups

/// Manifests of backups, and signed links to them.
pub fn manifest(data: &[u8]) {
    let id: manifest::BackupId = "b001".parse().expect("it is one");
    match manifest::Manifest::parse(id, data) {
        Ok(manifest) => {
            let file = &manifest.file;
            assert!(!file.is_empty() && !file.starts_with(['.', '-']) && !file.contains('/'), "{file:?}");
            assert!(!manifest.download_name().contains(['/', '\n', ' ']));
        }
        Err(error) => assert_plain(&error.to_string()),
    }
    let text = String::from_utf8_lossy(data);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    if let Some(link) = link::parse(path, query) {
        assert!(
            link.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.') && !link.name.contains("..")
        );
        assert!(!link.is_good(&[7; link::KEY_SIZE], "b001.dump", 0), "a signature was found");
    }
}

struct Nowhere(usize);

impl Sink for Nowhere {
    fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }
    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Archives of `pg_dump`.
pub fn archive(data: &[u8]) {
    for packing in [Packing::None, Packing::Gzip(3), Packing::Zstd] {
        let mut to = Nowhere(0);
        if let Ok(read) = archive::rewrite(data, packing, &mut to) {
            assert!(read.size <= data.len() as u64);
        }
        assert!(to.0 <= 2 * data.len() + 4096, "{} bytes of {}", to.0, data.len());
    }
}

// ---- what PostgreSQL writes

/// Lines of a server's log: they come out the same whatever pieces they come in.
pub fn log(data: &[u8]) {
    let [head, at, rest @ ..] = data else { return };
    let format = [Format::Json, Format::Csv, Format::Stderr][usize::from(head % 3)];
    let (prefix, text) = match head & 0x40 {
        0 => ("%m [%p] %q%u@%d ".into(), rest),
        _ => {
            let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            (String::from_utf8_lossy(&rest[..end]).into_owned(), &rest[end..])
        }
    };
    let run = |pieces: &[&[u8]]| {
        let mut entries = Vec::new();
        let mut decoder = Decoder::new(format, &prefix, head & 0x80 != 0);
        for piece in pieces {
            decoder.feed(piece, &mut |entry| entries.push(entry));
        }
        decoder.finish(&mut |entry| entries.push(entry));
        entries
    };
    let whole: Vec<Entry> = run(&[text]);
    let (front, back) = text.split_at(usize::from(*at).min(text.len()));
    assert!(whole == run(&[front, back]), "{whole:?}\n{:?}", run(&[front, back]));
    for entry in whole {
        let line = entry.one_line();
        assert!(!line.contains(char::is_control), "{line:?}");
        let _ = (entry.level(), entry.duration(), entry.masked());
    }
    let mut decoder = Decoder::new(format, &prefix, false);
    for piece in text.chunks(7) {
        decoder.feed(piece, &mut drop);
        decoder.settle(&mut drop);
    }
    let _ = is_log_name(&String::from_utf8_lossy(text), &prefix, format);
}

/// `pg_control`, as it comes and with its checksum made right.
pub fn control(data: &[u8]) {
    let _ = ControlFile::parse(data);
    let mut bytes = data.to_vec();
    for at in (200..=320.min(data.len().saturating_sub(4))).step_by(4) {
        let right = crc32c::crc32c(&bytes[..at]).to_le_bytes();
        let before: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        bytes[at..at + 4].copy_from_slice(&right);
        let _ = ControlFile::parse(&bytes);
        bytes[at..at + 4].copy_from_slice(&before);
    }
}

const SEGMENT: u32 = 1 << 20;

/// One page with records whose checksums are right and whose content is not.
fn page_of(head: u8, data: &[u8]) -> Page {
    let mut page = [0; PAGE_SIZE];
    let magics = [0xD097u16, 0xD101, 0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];
    page[..2].copy_from_slice(&magics[usize::from(head) % magics.len()].to_le_bytes());
    page[2] = 2;
    page[4] = 1;
    page[8..16].copy_from_slice(&u64::from(SEGMENT).to_le_bytes());
    page[24..32].copy_from_slice(&1u64.to_le_bytes());
    page[32..36].copy_from_slice(&SEGMENT.to_le_bytes());
    page[36..40].copy_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
    let (mut at, mut previous, mut rest) = (40, 0u64, data);
    while let [rmid, info, length, more @ ..] = rest {
        let body = &more[..usize::from(*length).min(more.len())];
        rest = &more[body.len()..];
        let end = at + 24 + body.len();
        if end > PAGE_SIZE {
            break;
        }
        page[at..at + 4].copy_from_slice(&((24 + body.len()) as u32).to_le_bytes());
        page[at + 8..at + 16].copy_from_slice(&previous.to_le_bytes());
        (page[at + 16], page[at + 17]) = (*info, *rmid);
        page[at + 24..end].copy_from_slice(body);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &page[at..at + 20]);
        page[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
        previous = u64::from(SEGMENT) + at as u64;
        at = end.next_multiple_of(8);
    }
    page
}

/// The WAL, the names of its files, histories of timelines, backup labels.
pub fn wal(data: &[u8]) {
    let [head, rest @ ..] = data else { return };
    let made = page_of(*head, rest);
    let pages: Vec<Page> = match head & 0x80 {
        0 => vec![made],
        _ => rest
            .chunks(PAGE_SIZE)
            .map(|chunk| {
                let mut page = [0; PAGE_SIZE];
                page[..chunk.len()].copy_from_slice(chunk);
                page
            })
            .collect(),
    };
    let fetch = |at: Lsn| {
        let number = at.0.checked_sub(SEGMENT.into()).map(|from| from as usize / PAGE_SIZE);
        Ok(number.and_then(|number| pages.get(number).copied()))
    };
    let start = Lsn(u64::from(SEGMENT));
    for searching in [false, true] {
        let made = match searching {
            false => WalReader::new(Lsn(start.0 + 40), Timeline(1), SEGMENT, fetch),
            true => WalReader::searching(start, Timeline(1), SEGMENT, fetch),
        };
        let Ok(mut reader) = made else { return };
        let mut changes = Changes::new(PgVersion::from_num(150_000)).expect("it is known");
        let mut before = Lsn(0);
        while let Some(Ok(record)) = reader.next() {
            assert!(record.lsn > before && record.end > record.lsn);
            before = record.lsn;
            let _ = (record.checkpoint_redo(), record.commit_time().map(|at| at.to_string()));
            let _ = changes.note(&record);
        }
        let _ = (reader.goes_on(), reader.ended().map(|why| assert_plain(&why.to_string())));
        let _ = (changes.of_file("base/5/16384"), changes.of_file("global/1260.1"));
    }
    let text = String::from_utf8_lossy(rest);
    if let Ok(history) = History::parse(Timeline(u32::from(*head)), &text) {
        let _ = (history.timeline_at(Lsn(1 << 32)), history.left_at(Timeline(1)));
    }
    if let Some((timeline, lsn)) = parse_segment_name(&text, SEGMENT) {
        assert_eq!(segment_name(timeline, lsn, SEGMENT), text);
    }
    let _ = BackupLabel::parse(&text);
    let _ = text.parse::<Lsn>().map(|lsn| assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn)));
}

// ---- configuration

/// `GUC_scanstr` of PostgreSQL's guc-file.l, and the rule by which its scanner finds the end of a string:
/// `\'([^'\\\n]|\\.|\'\')*\'`, in which a dot is no line's end.
fn as_postgres_reads(quoted: &[u8]) -> Option<Vec<u8>> {
    let (mut value, mut at) = (Vec::new(), 1);
    if quoted.first() != Some(&b'\'') {
        return None;
    }
    loop {
        match (*quoted.get(at)?, quoted.get(at + 1)) {
            (b'\'', Some(b'\'')) => {
                value.push(b'\'');
                at += 2;
            }
            (b'\'', None) => return Some(value),
            (b'\'' | b'\n', _) | (b'\\', None | Some(b'\n')) => return None,
            (b'\\', Some(escaped)) => {
                at += 2;
                match escaped {
                    b'b' => value.push(8),
                    b'f' => value.push(12),
                    b'n' => value.push(b'\n'),
                    b'r' => value.push(b'\r'),
                    b't' => value.push(b'\t'),
                    b'0'..=b'7' => {
                        let mut code = u32::from(escaped - b'0');
                        for _ in 0..2 {
                            let Some(digit @ b'0'..=b'7') = quoted.get(at) else { break };
                            code = code * 8 + u32::from(digit - b'0');
                            at += 1;
                        }
                        value.push(code as u8);
                    }
                    other => value.push(*other),
                }
            }
            (byte, _) => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

/// Values of `recovery.conf` and `postgresql.auto.conf`, and connection strings: what is written is read back as it was.
pub fn recovery(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (value, existing) = text.split_once('\u{1}').unwrap_or((&text, ""));
    let without_nul = value.replace('\0', "");
    let quoted = recovery::config_quote(value);
    assert_eq!(as_postgres_reads(quoted.as_bytes()).as_deref(), Some(without_nul.as_bytes()), "{quoted:?}");
    assert!(!quoted.contains(['\n', '\r']), "{quoted:?}");

    let set = [("primary_conninfo", Some(value)), ("restore_command", None)];
    let written = recovery::auto_conf_with(existing, &set);
    assert_eq!(recovery::last_setting(&written, "primary_conninfo").as_deref(), Some(&*without_nul));
    assert_eq!(recovery::last_setting(&written, "restore_command"), None);
    // Once more changes nothing but the last line's place.
    assert_eq!(recovery::auto_conf_with(&written, &set), written);

    let mut made = Conninfo::new();
    made.set("host", "h").set("application_name", value).set("password", "x");
    let read = Conninfo::parse(&made.to_conninfo()).expect("it was just written");
    assert_eq!(read.get("application_name"), Some(value));
    assert!(read.get("password") == Some("x") && read.iter().count() == 3);
    match Conninfo::parse(value) {
        Ok(conninfo) => {
            let again = Conninfo::parse(&conninfo.to_conninfo());
            assert!(again.is_ok_and(|again| again == conninfo), "{:?}", conninfo.to_conninfo());
        }
        Err(error) => assert_plain(&error.to_string()),
    }
    let slot = recovery::slot_name(Some(existing), value);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(slot.len() <= 63 && slot.chars().all(plain), "{slot:?}");
    let _ = recovery::percent_decode(value);
}

/// `pgmahout.yml`, `dotcloud.yml`, plans, versions, times.
pub fn settings(data: &[u8]) {
    static HOME: OnceLock<TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| tempfile::tempdir().expect("a directory")).path();
    for name in ["pgmahout.yml", "dotcloud.yml", "environment.json", "environment.yaml"] {
        fs::write(home.join(name), data).expect("it can be written");
    }
    if let Err(error) = Settings::load(home, BTreeMap::new(), []) {
        let _ = (error.to_string(), error.hint());
    }
    let _ = pgmahout::layout::version_of_dotcloud_yml(home);
    let _ = pgmahout::layout::read_environment(home);
    let text = String::from_utf8_lossy(data);
    let _ = Plan::parse("small", &text);
    let _ = (memory_bytes(&text, 8192), memory_bytes(&text, 1024));
    let _ = PgVersion::parse(&text).map(|version| (version.major(), version.to_string()));
    if let Some(release) = Release::from_name(&text) {
        assert_eq!(
            Release::from_name(release.name()).map(|again| again.name().to_owned()),
            Some(text.to_string())
        );
    }
    let _ = (Release::listed(&text), Wanted::parse(&text));
    let _ = pgmahout::postgres::time::since(&text, 1_795_191_420);
    let _ = (pgmahout::postgres::time::clock(&text), pgmahout::postgres::time::zone_offset(&text));
    let _ =
        pgmahout::source_build::options::choose(PgVersion::from_num(150_000), &[text.to_string()], |_| true);
}

// ---- the transfer

/// Frames and what is in them: nothing is larger than it may be, and what was read is written as it was.
pub fn frames(data: &[u8]) {
    let (mut from, mut payload) = (data, Vec::new());
    let mut decoder = coding::Decoder::default();
    while let Ok(Some(kind)) = read_frame(&mut from, &mut payload) {
        assert!(payload.len() <= protocol::PAYLOAD_LIMIT);
        let _ = ReadRange::decode(&payload).map(|range| assert_eq!(range.encode(), payload));
        let _ = Compare::decode(&payload).map(|compare| assert_eq!(compare.encode(), payload));
        let _ = Done::decode(&payload).map(|done| assert_eq!(done.encode(), payload));
        if let Ok(entry) = protocol::Entry::decode(&payload) {
            assert_eq!(protocol::Entry::decode(&entry.encode()).ok(), Some(entry));
        }
        let mut fields = Fields(&payload);
        while !fields.0.is_empty() && decode_change(&mut fields).is_ok() {}
        if let Ok(block) = decoder.read_block(&payload) {
            assert!(block.bytes.len() <= BLOCK);
        }
        let _ = (kind, source_json(&payload));
    }
}

fn source_json(payload: &[u8]) {
    let text = String::from_utf8_lossy(payload);
    let _ = text.parse::<Compression>();
}

const SECRET: &[u8] = b"what stands outside is nobody's business";

/// A cluster beside which something lies, and from which links lead there.
fn cluster(base: &Path) {
    let data = base.join("data");
    for directory in ["global", "base/5", "pg_tblspc", "pg_wal"] {
        fs::create_dir_all(data.join(directory)).expect("a directory");
    }
    fs::create_dir_all(base.join("ts/PG_15_202209061/5")).expect("a directory");
    fs::create_dir_all(base.join("outside")).expect("a directory");
    for (path, content) in [
        ("data/PG_VERSION", &b"15\n"[..]),
        ("data/global/pg_control", &[1; 8192]),
        ("data/base/5/16384", &[7; 3 * 8192]),
        ("data/base/5/16385", b""),
        ("ts/PG_15_202209061/5/16386", b"in a tablespace"),
        ("ts/private", SECRET),
        ("outside/secret", SECRET),
    ] {
        fs::write(base.join(path), content).expect("a file");
    }
    let sparse = fs::File::create(data.join("base/5/16387")).expect("a file");
    sparse.set_len(1 << 21).expect("a hole");
    symlink("../ts", data.join("pg_tblspc/16384")).expect("a link");
    symlink("../outside", data.join("out")).expect("a link");
    symlink("../../../outside/secret", data.join("base/5/16388")).expect("a link");
}

/// What the source may send before the harness stops it.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() > 8 << 20 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A target that asks for anything: nothing outside of PGDATA and its tablespaces is sent.
pub fn transfer_source(data: &[u8]) {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let base = tempfile::tempdir().expect("a directory");
        cluster(base.path());
        base
    });
    let data_directory = base.path().join("data");
    let open = format!(
        "{{\"data_directory\": \"{}\", \"compression\": \"none\", \"max_rate\": 0}}",
        data_directory.display()
    );
    let mut asked = Vec::new();
    write_frame(&mut asked, Kind::Open, open.as_bytes()).expect("a Vec takes everything");
    // Another cluster may be opened, for whom this program serves has a shell here; but not slowly.
    let (mut from, mut payload) = (data, Vec::new());
    while let Ok(Some(kind)) = read_frame(&mut from, &mut payload) {
        if kind == Kind::Open {
            return;
        }
    }
    asked.extend_from_slice(data);
    let mut answer = Limited(Vec::new());
    let _ = source::serve(Cursor::new(asked), &mut answer);
    let leaked = answer.0.windows(SECRET.len()).any(|part| part == SECRET);
    assert!(!leaked, "a file outside of PGDATA was sent");
}

/// A source that has said all that it will ever say.
struct Said(Cursor<Vec<u8>>);

impl Read for Said {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl RemoteProcess for Said {
    fn send_eof(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn finish(self: Box<Self>) -> pgmahout::error::Result<Ended> {
        Ok(Ended { status: 0, stderr: String::new() })
    }
}

/// A source that answers anything: what lies outside of the roots stays as it is.
pub fn transfer_target(data: &[u8]) {
    let [head, rest @ ..] = data else { return };
    let base = tempfile::tempdir().expect("a directory");
    let base = base.path();
    let root = base.join("data");
    let (reuse, in_place) = (head & 1 != 0, head & 2 != 0);
    if reuse {
        cluster(base);
    } else {
        for directory in ["data", "outside", "ts"] {
            fs::create_dir(base.join(directory)).expect("a directory");
        }
        fs::write(base.join("outside/secret"), SECRET).expect("a file");
        fs::write(base.join("ts/private"), SECRET).expect("a file");
    }
    let mut said = GREETING.to_vec();
    let facts = br#"{"control": "", "pg_version": "15", "boot_id": "", "device": 0, "inode": 0}"#;
    write_frame(&mut said, Kind::Facts, facts).expect("a Vec takes everything");
    said.extend_from_slice(rest);
    let process = Box::new(Said(Cursor::new(said)));
    let Ok((mut stream, _)) = Stream::over(process, "peer", "/data", Wishes::default()) else { return };

    let (ts, inside) = (base.join("ts"), root.join("out"));
    let layout = Layout {
        data: root.clone(),
        major: "15".into(),
        restores: false,
        theirs: Vec::new(),
        place: if in_place { Place::InPlace("a mount point") } else { Place::Beside(root.clone()) },
        reuse,
        tablespaces: vec![(16384, "/there/ts".into(), ts.clone()), (16390, "out".into(), inside.clone())],
        bytes: 0,
        wal_link: None,
    };
    let roots = Roots(BTreeMap::from([(0, root.clone()), (16384, ts), (16390, inside)]));
    let version = PgVersion::from_num(150_000);
    let _ = (|| {
        if head & 4 != 0 {
            let mut changes = Changes::new(version).expect("it is known");
            let stretch = Stretch {
                version: 150_000,
                timeline: Timeline(1),
                segment_size: SEGMENT,
                from: Lsn(0),
                to: None,
            };
            let _ = stream.changes(&stretch, &mut changes)?;
        }
        let work = take_manifest(&mut stream, &root, &roots, &layout, version, "PG_15_202209061")?;
        let progress = Progress::new(Voice::Quiet);
        let verify_since = (head & 8 != 0).then_some(Lsn(0));
        let manner = Manner { compare: reuse, verify_since, rate: 0 };
        target::copy(&mut [&mut stream], &work, &roots, manner, None, &progress)?;
        stream.read_file("global/pg_control", 8192)
    })();
    let names = |directory: &Path| {
        let mut names: Vec<_> = fs::read_dir(directory)
            .expect("it is there")
            .map(|entry| entry.expect("it is there").file_name().into_string().expect("made by us"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(base), ["data", "outside", "ts"]);
    assert_eq!(names(&base.join("outside")), ["secret"]);
    assert_eq!(fs::read(base.join("outside/secret")).expect("it is there"), SECRET);
    for name in names(&base.join("ts")) {
        assert!(name == "private" || name.starts_with("PG_"), "{name:?} in a tablespace");
    }
    assert_eq!(fs::read(base.join("ts/private")).expect("it is there"), SECRET);
}

// ---- PostgreSQL's protocol

/// A server that answers anything.
pub fn wire(data: &[u8]) {
    static LISTENER: OnceLock<(TempDir, UnixListener)> = OnceLock::new();
    let (directory, listener) = LISTENER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).expect("a socket");
        (directory, listener)
    });
    let peer = Peer {
        host: directory.path().to_str().expect("UTF-8").to_owned(),
        port: 5432,
        user: "me".into(),
        password: Some(Secret::new("secret")),
        tls: Tls::default(),
        encryption: Encryption::IfOffered,
        timeout: Duration::from_secs(2),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            let _ = stream.write_all(data);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let Ok(mut wire) = Wire::connect(&peer, &[("database", "x")]) else { return };
        let _ = wire.query("SELECT 1");
        let _ = wire.begin_copy("COPY t TO STDOUT");
        let _ = wire.objection();
        let _ = wire.end_copy();
    });
}
