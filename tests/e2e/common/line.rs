//! Two networks of their own and the line between them, which can be long, slow, lossy and cut, also in one direction only.
//! Linux's network namespaces, and two TUN devices whose packets we carry: not every kernel has netem. Needs root.

use super::account::must;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One end of a line: programs that are started in it see its devices and addresses only. It ends with the last of them.
pub struct Network {
    handle: OwnedFd,
    pub address: &'static str,
}

impl Network {
    fn new(address: &'static str) -> Arc<Network> {
        assert!(nix::unistd::geteuid().is_root(), "this test makes networks of its own: run it as root");
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its handle").into()
        });
        let network = Network { handle: made.join().unwrap(), address };
        network.ip(&["link", "set", "lo", "up"]);
        Arc::new(network)
    }

    /// Does it in this network, where it may open sockets that go on to belong to it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("the network namespace");
            work()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(entered).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What `nsenter` is told.
    pub fn option(&self) -> String {
        format!("--net=/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    fn ip(&self, arguments: &[&str]) {
        must(Command::new("nsenter").arg(self.option()).arg("ip").args(arguments));
    }

    /// The kernel gives an unanswered connection up after so many tries, of which each takes twice as long as the last.
    pub fn give_up_after(&self, tries: u32) {
        let set = || std::fs::write("/proc/sys/net/ipv4/tcp_retries2", tries.to_string());
        self.inside(set).expect("tcp_retries2");
    }

    fn device(&self) -> File {
        let tun = self.inside(|| {
            let tun = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
            be_a_device(&tun);
            tun
        });
        self.ip(&["address", "add", &format!("{}/24", self.address), "dev", NAME]);
        self.ip(&["link", "set", NAME, "up"]);
        tun
    }
}

const NAME: &str = "line";

#[allow(unsafe_code, reason = "no safe crate makes TUN devices without an asynchronous runtime of its own")]
fn be_a_device(tun: &File) {
    // TUNSETIFF of linux/if_tun.h; a struct ifreq is a name of 16 bytes and 24 bytes for what is asked.
    nix::ioctl_write_ptr_bad!(
        set,
        nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
        [u8; 40]
    );
    const TUN_WITHOUT_HEADER: u16 = 0x1001; // IFF_TUN | IFF_NO_PI
    let mut request = [0; 40];
    request[..NAME.len()].copy_from_slice(NAME.as_bytes());
    request[16..18].copy_from_slice(&TUN_WITHOUT_HEADER.to_ne_bytes());
    // SAFETY: the kernel reads and writes a struct ifreq, which is as long as the request.
    unsafe { set(tun.as_raw_fd(), &request) }.expect("a TUN device");
}

/// One direction of a line.
#[derive(Default)]
struct Way {
    cut: AtomicBool,
    /// Of a thousand packets.
    lost: AtomicU64,
    delay: AtomicU64,
    /// In a second; 0 is as many as come.
    bits: AtomicU64,
    passed: AtomicU64,
}

pub struct Line {
    pub near: Arc<Network>,
    pub far: Arc<Network>,
    /// From the near end, from the far end.
    ways: [Arc<Way>; 2],
    over: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

/// Which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromNear,
    FromFar,
    Both,
}

impl Line {
    /// Short, fast and whole.
    pub fn new() -> Line {
        let (near, far) = (Network::new("10.99.0.1"), Network::new("10.99.0.2"));
        let ways = [Arc::new(Way::default()), Arc::new(Way::default())];
        let over = Arc::new(AtomicBool::new(false));
        let ends = [near.device(), far.device()].map(Arc::new);
        let carriers = (0..2).map(|n| {
            let (from, to, way, over) = (ends[n].clone(), ends[1 - n].clone(), ways[n].clone(), over.clone());
            std::thread::spawn(move || carry(&from, &to, &way, &over))
        });
        let carriers = carriers.collect();
        Line { near, far, ways, over, carriers }
    }

    /// A packet takes so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.ways.iter().for_each(|way| way.delay.store(delay.as_micros() as u64, SeqCst));
    }

    pub fn bits_per_second(&self, bits: u64) {
        self.ways.iter().for_each(|way| way.bits.store(bits, SeqCst));
    }

    /// So many of a thousand packets never arrive.
    pub fn loses(&self, packets: u64) {
        self.ways.iter().for_each(|way| way.lost.store(packets, SeqCst));
    }

    /// Nothing passes any more, and nobody is told.
    pub fn cut(&self, direction: Direction) {
        self.ways[0].cut.store(direction != Direction::FromFar, SeqCst);
        self.ways[1].cut.store(direction != Direction::FromNear, SeqCst);
    }

    pub fn heal(&self) {
        self.ways.iter().for_each(|way| way.cut.store(false, SeqCst));
    }

    /// Bytes that have arrived at the far end.
    pub fn passed(&self) -> u64 {
        self.ways[0].passed.load(SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        self.carriers.drain(..).for_each(|carrier| carrier.join().unwrap());
    }
}

/// A queue of more than this drops what comes, as a router's does.
const QUEUE: usize = 1 << 20;

fn carry(mut from: &File, mut to: &File, way: &Way, over: &AtomicBool) {
    let (mut queue, mut queued, mut free_at) = (VecDeque::new(), 0, Instant::now());
    let mut buffer = vec![0; 65536];
    let mut dice = 0x9E37_79B9_7F4A_7C15u64;
    while !over.load(SeqCst) {
        let now = Instant::now();
        while queue.front().is_some_and(|(due, _)| *due <= now) {
            let (_, packet): (Instant, Vec<u8>) = queue.pop_front().unwrap();
            queued -= packet.len();
            if !way.cut.load(SeqCst) && to.write(&packet).is_ok() {
                way.passed.fetch_add(packet.len() as u64, SeqCst);
            }
        }
        let longest = Duration::from_millis(50);
        let wait = queue.front().map_or(longest, |(due, _)| due.saturating_duration_since(now).min(longest));
        let wait = PollTimeout::try_from(wait.as_micros().div_ceil(1000) as i32).unwrap();
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, wait).unwrap_or(0) == 0 {
            continue;
        }
        let Ok(length) = from.read(&mut buffer) else { continue };
        // xorshift64
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        if dice % 1000 < way.lost.load(SeqCst) || queued + length > QUEUE {
            continue;
        }
        let bits = way.bits.load(SeqCst);
        let takes = if bits == 0 { 0.0 } else { length as f64 * 8.0 / bits as f64 };
        free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(takes);
        queue.push_back((free_at + Duration::from_micros(way.delay.load(SeqCst)), buffer[..length].to_vec()));
        queued += length;
    }
}
