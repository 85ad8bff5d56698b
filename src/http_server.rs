//! Owns HTTP to whoever has a link: one request on each connection, whole files or a range of one, in bounded memory.
//! Which path is which file is not this module's; nor is any other part of the project asynchronous.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};

/// What a server puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time; the next ones wait until one ends.
    pub connections: usize,
    /// From the connection to the end of the request's head.
    pub head: Duration,
    /// Without a single byte being taken.
    pub idle: Duration,
}

/// What a path leads to.
pub enum Answer {
    /// A file, open, its size, and under which name it is saved.
    File {
        /// Read from its begin, or from where a range begins.
        file: File,
        /// Bytes.
        size: u64,
        /// Letters, digits and dots.
        name: String,
    },
    /// No: 403.
    Forbidden,
    /// There is no such thing: 404.
    NotFound,
    /// It should be there but could not be opened: 500. The text is for the log only.
    Failed(String),
}

/// Path and query of a request to what it leads to. Called in a thread where it may block.
pub type Find = dyn Fn(&str, &str) -> Answer + Send + Sync;

/// How often it looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);
/// Bytes read at once.
const CHUNK: usize = 128 * 1024;

/// Serves until `stop` says so; what is under way then breaks off. `log` gets a line for each answer; queries are not
/// in it, as whoever reads one could use it.
///
/// # Errors
/// When the listener or the runtime cannot be set up.
pub fn serve(
    listener: TcpListener,
    limits: Limits,
    find: Arc<Find>,
    mut log: impl FnMut(&str),
    stop: impl Fn() -> bool,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Reads of files go to threads of their own: one for each connection at most.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(limits.connections.max(1))
        .build()?;
    let (said, lines): (Sender<String>, Receiver<String>) = channel();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = JoinSet::new();
        while !stop() {
            lines.try_iter().for_each(|line| log(&line));
            while connections.try_join_next().is_some() {}
            if connections.len() >= limits.connections {
                let _ = timeout(TICK, connections.join_next()).await;
                continue;
            }
            match timeout(TICK, listener.accept()).await {
                Ok(Ok((stream, peer))) => {
                    connections.spawn(speak(stream, peer, limits, find.clone(), said.clone()));
                }
                // Out of descriptors, or a connection that was gone before it was taken.
                Ok(Err(error)) => {
                    log(&format!("a connection was not taken: {error}"));
                    sleep(TICK).await;
                }
                Err(_) => {}
            }
        }
        Ok::<_, io::Error>(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    lines.try_iter().for_each(|line| log(&line));
    Ok(())
}

async fn speak(stream: TcpStream, peer: SocketAddr, limits: Limits, find: Arc<Find>, said: Sender<String>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let (find, said) = (find.clone(), said.clone());
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let response = answer(request, find, &said).await;
            // A question mark that somebody has lost or escaped makes the signature a part of the path.
            let plain = |c: &char| c.is_ascii_alphanumeric() || "/._-".contains(*c);
            let path: String = path.chars().take_while(plain).take(200).collect();
            let length = response.headers().get(header::CONTENT_LENGTH);
            let length = length.and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
            let _ = said.send(format!("{peer} {method} {path:?} {} {length}", response.status().as_u16()));
            Ok::<_, Infallible>(response)
        }
    });
    let io = Patient { io: TokioIo::new(stream), limit: limits.idle, stuck: None };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(16 * 1024)
        // One request each: who holds a connection has to ask for something.
        .keep_alive(false)
        .serve_connection(io, service);
    // That the other side went away is its own affair.
    let _ = served.await;
}

type Reply = Response<Either<Full<Bytes>, FileBody>>;

async fn answer(request: Request<Incoming>, find: Arc<Find>, said: &Sender<String>) -> Reply {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
    let found = tokio::task::spawn_blocking(move || find(&path, &query)).await;
    match found.unwrap_or_else(|panic| Answer::Failed(panic.to_string())) {
        Answer::Forbidden => plain(StatusCode::FORBIDDEN, "this link is not good, or not any more\n"),
        Answer::NotFound => plain(StatusCode::NOT_FOUND, "there is nothing here\n"),
        Answer::Failed(why) => {
            let _ = said.send(why);
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the backup could not be read\n")
        }
        Answer::File { file, size, name } => send(&request, file, size, &name, said),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(Bytes::from_static(text.as_bytes()))));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, text.len().into());
    reply
}

fn send(request: &Request<Incoming>, mut file: File, size: u64, name: &str, said: &Sender<String>) -> Reply {
    let asked = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let (begin, length, status) = match asked.map_or(Range::Whole, |text| range(text, size)) {
        Range::Whole => (0, size, StatusCode::OK),
        Range::Part { begin, end } => (begin, end - begin, StatusCode::PARTIAL_CONTENT),
        Range::Impossible => {
            let mut reply = plain(StatusCode::RANGE_NOT_SATISFIABLE, "the file is shorter\n");
            insert(&mut reply, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return reply;
        }
    };
    if let Err(error) = file.seek(SeekFrom::Start(begin)) {
        let _ = said.send(error.to_string());
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the backup could not be read\n");
    }
    // hyper sends the head only of what HEAD asks for, and no more of the body than the length says.
    let mut reply = Response::new(Either::Right(FileBody { left: length, reading: Reading::Idle(file) }));
    *reply.status_mut() = status;
    insert(&mut reply, header::CONTENT_TYPE, "application/octet-stream");
    insert(&mut reply, header::CONTENT_LENGTH, &length.to_string());
    insert(&mut reply, header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{name}\""));
    insert(&mut reply, header::ACCEPT_RANGES, "bytes");
    insert(&mut reply, header::CACHE_CONTROL, "private, no-store");
    if status == StatusCode::PARTIAL_CONTENT {
        let last = begin + length - 1;
        insert(&mut reply, header::CONTENT_RANGE, &format!("bytes {begin}-{last}/{size}"));
    }
    reply
}

fn insert(reply: &mut Reply, name: header::HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""));
    reply.headers_mut().insert(name, value);
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// `end` is the first byte that is not in it.
    Part {
        begin: u64,
        end: u64,
    },
    Impossible,
}

/// RFC 9110, 14.1.2. What is not understood, and several ranges at once, are answered with the whole.
fn range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
        false => None,
    };
    let (Some(first_number), Some(last_number)) = (number(first), number(last)) else { return Range::Whole };
    match (first.is_empty(), last.is_empty()) {
        (true, true) => Range::Whole,
        // The last so many bytes.
        (true, false) if last_number == 0 || size == 0 => Range::Impossible,
        (true, false) => Range::Part { begin: size.saturating_sub(last_number), end: size },
        _ if first_number >= size => Range::Impossible,
        (false, true) => Range::Part { begin: first_number, end: size },
        (false, false) if last_number < first_number => Range::Whole,
        (false, false) => Range::Part { begin: first_number, end: last_number.saturating_add(1).min(size) },
    }
}

/// A part of a file on its way out: one chunk of it is in memory.
struct FileBody {
    left: u64,
    reading: Reading,
}

enum Reading {
    Idle(File),
    Busy(JoinHandle<io::Result<(File, Bytes)>>),
    Over,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match std::mem::replace(&mut self.reading, Reading::Over) {
                Reading::Over => return Poll::Ready(None),
                Reading::Idle(_) if self.left == 0 => return Poll::Ready(None),
                Reading::Idle(file) => {
                    let want = self.left.min(CHUNK as u64) as usize;
                    self.reading = Reading::Busy(tokio::task::spawn_blocking(move || read_chunk(file, want)));
                }
                Reading::Busy(mut handle) => match Pin::new(&mut handle).poll(cx) {
                    Poll::Pending => {
                        self.reading = Reading::Busy(handle);
                        return Poll::Pending;
                    }
                    Poll::Ready(read) => {
                        let (file, bytes) = match read.map_err(io::Error::other).and_then(|read| read) {
                            Ok(read) => read,
                            Err(error) => return Poll::Ready(Some(Err(error))),
                        };
                        self.left -= bytes.len() as u64;
                        self.reading = Reading::Idle(file);
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The next bytes; at least one. A file that became shorter is an error, so that the other side sees a broken
/// connection and not a whole file.
fn read_chunk(mut file: File, want: usize) -> io::Result<(File, Bytes)> {
    let mut bytes = vec![0; want];
    let n = file.read(&mut bytes)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.truncate(n);
    Ok((file, bytes.into()))
}

/// A connection whose other side has to take or give a byte now and then.
struct Patient {
    io: TokioIo<TcpStream>,
    limit: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Nothing has moved; an error once that has been so for too long.
    fn wait(&mut self, cx: &mut Context) -> Poll<io::Error> {
        let limit = self.limit;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    fn moved<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Pending => self.wait(cx).map(Err),
            done => {
                self.stuck = None;
                done
            }
        }
    }
}

impl hyper::rt::Read for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        buffer: hyper::rt::ReadBufCursor,
    ) -> Poll<io::Result<()>> {
        // While a body goes out nothing comes in: only writing is measured.
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.moved(outcome, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context,
        slices: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.moved(outcome, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn ranges() {
        let part = |begin, end| Range::Part { begin, end };
        for (text, expected) in [
            ("bytes=0-", part(0, 100)),
            ("bytes=0-0", part(0, 1)),
            ("bytes=99-", part(99, 100)),
            ("bytes=10-19", part(10, 20)),
            ("bytes=10-1000", part(10, 100)),
            ("bytes=10-99999999999999999999999", part(10, 100)),
            ("bytes=-1", part(99, 100)),
            ("bytes=-100", part(0, 100)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=100-", Range::Impossible),
            ("bytes=99999999999999999999999-", Range::Impossible),
            ("bytes=-0", Range::Impossible),
            ("bytes=-", Range::Whole),
            ("bytes=2-1", Range::Whole),
            ("bytes=0-1,5-6", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=+1-", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("", Range::Whole),
        ] {
            assert_eq!(range(text, 100), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Range::Impossible);
        assert_eq!(range("bytes=-5", 0), Range::Impossible);
    }

    /// A server of one large file with short limits, for as long as `work` runs.
    fn served(limits: Limits, work: impl FnOnce(SocketAddr)) -> Vec<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            let find = |path: &str, _: &str| match path {
                "/big" => {
                    let file = tempfile::tempfile().unwrap();
                    file.set_len(1 << 30).unwrap();
                    Answer::File { file, size: 1 << 30, name: "big".into() }
                }
                "/panic" => panic!("on purpose"),
                _ => Answer::NotFound,
            };
            let mut lines = Vec::new();
            serve(
                listener,
                limits,
                Arc::new(find),
                |line| lines.push(line.to_owned()),
                || stopped.load(Ordering::Relaxed),
            )
            .unwrap();
            lines
        });
        work(at);
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap()
    }

    const SHORT: Limits =
        Limits { connections: 4, head: Duration::from_millis(300), idle: Duration::from_millis(300) };

    fn ask(at: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    #[test]
    fn who_says_nothing_and_who_takes_nothing_is_sent_away() {
        // One connection at a time: the next one is answered only once the one before it is gone.
        let lines = served(Limits { connections: 1, ..SHORT }, |at| {
            let big = "GET /big HTTP/1.1\r\nHost: x\r\n\r\n";
            for text in ["", "GET /x HT", "GET /x HTTP/1.1\r\nHost: x\r\nA: ", big] {
                let mut silent = ask(at, text);
                let mut answer = String::new();
                ask(at, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n").read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 404 "), "{text}: {answer}");
                // What it gets now had been sent before it was cut off.
                let (mut taken, mut buffer) = (0, vec![0; 1 << 16]);
                while let Ok(n @ 1..) = silent.read(&mut buffer) {
                    taken += n;
                }
                assert!(taken < 1 << 28, "{text}: {taken}");
            }
        });
        assert!(lines.iter().any(|line| line.ends_with("GET \"/x\" 404 22")), "{lines:?}");
    }

    #[test]
    fn a_fault_in_one_answer_is_that_ones() {
        served(SHORT, |at| {
            for _ in 0..3 {
                let mut answer = String::new();
                ask(at, "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n").read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
            }
        });
    }
}
