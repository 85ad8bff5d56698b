//! One test's directory and its ports, the SSH key; sweeping of what killed test runs left behind.

use super::account::{Account, account, must};
use super::host::HostBuilder;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub struct Site {
    /// Its name has a space: whatever does not quote a path is found out by every test.
    pub directory: PathBuf,
}

impl Site {
    pub fn new() -> Arc<Site> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("{PREFIX}{} {number}", std::process::id()));
        account().mkdir(&directory, 0o755);
        Arc::new(Site { directory })
    }

    /// A host of this name, to be configured and built.
    pub fn host(self: &Arc<Site>, name: &str) -> HostBuilder {
        HostBuilder::new(self.clone(), name)
    }

    /// A new key pair in the site's directory, for a host that has another one than all others.
    pub fn new_key(&self, name: &str) -> PathBuf {
        new_key(self.directory.join(name))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end_processes_in(&self.directory);
        if std::env::var_os("PGMAHOUT_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.directory.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Of everything that a test makes in the temporary directory; then the process.
pub const PREFIX: &str = "pgmahout test ";

fn new_key(path: PathBuf) -> PathBuf {
    let mut command = account().command("ssh-keygen");
    must(command.args(["-q", "-t", "ed25519", "-N", "", "-C", "pgmahout test", "-f"]).arg(&path));
    path
}

/// The key pair of every host in this process, as the instances of one app share theirs.
pub fn shared_key() -> &'static Path {
    static KEY: OnceLock<PathBuf> = OnceLock::new();
    KEY.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("{PREFIX}{} key", std::process::id()));
        account().mkdir(&directory, 0o700);
        new_key(directory.join("id_ed25519"))
    })
}

/// A file system of its own in memory; needs root, as the continuous integration has it.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    /// Mounted on a new directory of the site, owned by the hosts' account.
    pub fn mount(site: &Site, name: &str, megabytes: u32) -> SmallDisk {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts a small file system: run it as root");
        let path = site.directory.join(name);
        account().mkdir(&path, 0o755);
        let options = format!("size={megabytes}m,mode=755,uid={},gid={}", account().uid, account().gid);
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        SmallDisk { path }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// The binary under test, where every account can read it: PGMAHOUT_BIN, else the one cargo built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        use std::os::unix::fs::PermissionsExt;
        let built = std::env::var_os("PGMAHOUT_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_pgmahout").into());
        let directory = std::env::temp_dir().join(format!("{PREFIX}{} bin", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.join("pgmahout");
        // Not by ourselves: a child that another test is just starting would still have it open for writing.
        must(Command::new("cp").arg(&built).arg(&path));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    })
}

/// Ends every process that works or was started below `directory`, each by its own pid.
fn end_processes_in(directory: &Path) {
    for _ in 0..50 {
        let mut found = false;
        for pid in pids() {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let inside =
                |link: &str| std::fs::read_link(proc.join(link)).is_ok_and(|p| p.starts_with(directory));
            let named = || {
                // A server or sshd of ours names the directory in its arguments (as a whole path prefix).
                let command = std::fs::read(proc.join("cmdline")).unwrap_or_default();
                let needle = format!("{}/", directory.display());
                pid != std::process::id() as i32
                    && command.windows(needle.len()).any(|w| w == needle.as_bytes())
            };
            if inside("cwd") || inside("exe") || named() {
                found = true;
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Removes what test runs left that did not live to do it themselves.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let Some(pid) = rest.split(' ').next().and_then(|p| p.parse::<i32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        end_processes_in(&entry.path());
        for mounted in mounts_below(&entry.path()) {
            let _ = Command::new("umount").arg("-l").arg(mounted).status();
        }
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The kernel writes a space as \040.
    paths
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(directory))
        .collect()
}

/// A TCP port that nothing listens on, and that no other caller in this process gets. Below the range
/// that the kernel hands out by itself, so that no outgoing connection takes it before its server does.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..8000 {
        let port = 10_000 + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 8_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 18000");
}

/// Waits for a condition; panics with `what` when it does not come true in time.
pub fn until(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
