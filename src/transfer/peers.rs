//! Sources for the tests of the other end: a real one in this process, and one that lies.

use super::protocol::*;
use super::stream::{Stream, Wishes};
use crate::error::Result;
use crate::ssh::{Ended, RemoteProcess};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A base backup's files.
pub const PLAIN: List = List { version: 150000, wal_from: None, with_backup_label: false };

/// A source in this process, behind a socket pair.
struct InProcess(UnixStream);

impl Read for InProcess {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}
impl Write for InProcess {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
impl RemoteProcess for InProcess {
    fn send_eof(&mut self) -> std::io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Write)
    }
    fn finish(self: Box<Self>) -> Result<Ended> {
        Ok(Ended { status: 0, stderr: String::new() })
    }
}

/// A stream to a source in this process.
pub fn stream_to(data: &Path) -> Stream {
    stream_with(data, Wishes::default())
}

/// One that is as wished.
pub fn stream_with(data: &Path, wishes: Wishes) -> Stream {
    let (here, there) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let _ = super::source::serve(there.try_clone().unwrap(), there);
    });
    Stream::over(Box::new(InProcess(here)), "test", data.to_str().unwrap(), wishes).unwrap().0
}

/// A peer that answers with these bytes, whatever it is asked.
pub fn hostile(answer: Vec<u8>) -> Stream {
    let (here, mut there) = UnixStream::pair().unwrap();
    let facts = FactsAnswer {
        control: String::new(),
        pg_version: "15".into(),
        boot_id: String::new(),
        device: 0,
        inode: 0,
    };
    let mut wire = GREETING.to_vec();
    write_frame(&mut wire, Kind::Facts, &serde_json::to_vec(&facts).unwrap()).unwrap();
    wire.extend(answer);
    std::thread::spawn(move || {
        let _ = there.write_all(&wire);
        let _ = std::io::copy(&mut there, &mut std::io::sink());
    });
    Stream::over(Box::new(InProcess(here)), "peer", "/data", Wishes::default()).unwrap().0
}

/// A data directory, small but for one file.
pub fn cluster() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    for directory in ["global", "base", "base/5", "pg_tblspc", "pg_wal", "pg_wal/archive_status"] {
        fs::create_dir(data.path().join(directory)).unwrap();
    }
    let write = |path: &str, content: &[u8]| fs::write(data.path().join(path), content).unwrap();
    write("PG_VERSION", b"15\n");
    write("global/pg_control", &[1; 8192]);
    write("base/5/16384", &(0..40_000_000u32).map(|i| (i >> 12) as u8).collect::<Vec<_>>());
    write("base/5/16385", b"");
    write("base/5/16386", b"small");
    write("base/5/16387", b"unlogged");
    write("base/5/16387_init", b"init");
    write("base/5/t3_16388", b"temporary");
    write("postmaster.pid", b"1");
    write("pg_wal/000000010000000000000001", b"wal");
    data
}
