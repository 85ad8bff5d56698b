//! A TCP proxy on loopback: slows a copy down so that a test can act in the middle of it, or cuts it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    /// Bytes per second from the server to the client, all connections together; 0: no limit.
    rate: AtomicU64,
    /// Bytes that went from the server to the client.
    passed: AtomicU64,
    stop: AtomicBool,
    refuse: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    bucket: Mutex<(Instant, f64)>,
}

impl Proxy {
    pub fn to(port: u16) -> Proxy {
        Proxy::listen(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn listen(to: SocketAddr) -> Proxy {
        let port = super::site::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let shared = Arc::new(Shared {
            to,
            rate: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            connections: Mutex::default(),
            bucket: Mutex::new((Instant::now(), 0.0)),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if accepting.refuse.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(accepting.to) else { continue };
                let mut all = accepting.connections.lock().unwrap();
                all.push(client.try_clone().unwrap());
                all.push(server.try_clone().unwrap());
                drop(all);
                let (c, s, shared) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), accepting.clone());
                std::thread::spawn(move || pump(server, client, Some(shared)));
                std::thread::spawn(move || pump(c, s, None));
            }
        });
        Proxy { port, shared }
    }

    /// At most so many bytes per second towards the client.
    pub fn slow(self, bytes_per_second: u64) -> Proxy {
        self.set_rate(bytes_per_second);
        self
    }

    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Ends every connection, as a network failure would.
    pub fn cut(&self) {
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Ends every connection at once after accepting it from now on.
    pub fn refuse(&self) {
        self.shared.refuse.store(true, Ordering::SeqCst);
        self.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, counted: Option<Arc<Shared>>) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            break;
        }
        if let Some(shared) = &counted {
            shared.passed.fetch_add(n as u64, Ordering::SeqCst);
            shared.wait_for(n);
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

impl Shared {
    fn wait_for(&self, bytes: usize) {
        loop {
            let rate = self.rate.load(Ordering::SeqCst) as f64;
            if rate == 0.0 || self.stop.load(Ordering::SeqCst) {
                return;
            }
            {
                let mut bucket = self.bucket.lock().unwrap();
                let now = Instant::now();
                bucket.1 = (bucket.1 + now.duration_since(bucket.0).as_secs_f64() * rate)
                    .min(rate / 10.0 + bytes as f64);
                bucket.0 = now;
                if bucket.1 >= bytes as f64 {
                    bucket.1 -= bytes as f64;
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
