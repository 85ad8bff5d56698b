//! Owns raw connections to PostgreSQL: start-up, authentication and TLS by hand, for what the `postgres` crate cannot
//! do, a replication connection and the relay of COPY. The messages are those of PostgreSQL's manual, "Message
//! Formats".

use crate::blurb::Secret;
use crate::error::{CertificateFlaw, Error};
use crate::tls::{Encryption, Tls};
use crate::{net, process};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use openssl::ssl::{HandshakeError, SslStream};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where to, and as whom.
#[derive(Clone)]
pub struct Peer {
    /// Host name or address, or the absolute path of a Unix socket directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// How its certificate is checked.
    pub tls: Tls,
    /// Whether it is to be with TLS.
    pub encryption: Encryption,
    /// Limit for the connection.
    pub timeout: Duration,
}

/// Why it went no further.
#[derive(Debug)]
pub enum Fault {
    /// No connection, or no longer one.
    Lost(String),
    /// It says nothing.
    Silent(Duration),
    /// PostgreSQL's own error.
    Server {
        /// SQLSTATE.
        code: String,
        /// Message, and detail.
        said: String,
    },
    /// It wants a password, and none is known.
    NoPassword,
    /// TLS is asked for, and it has none.
    NoTls,
    /// Its certificate does not pass.
    Certificate(CertificateFlaw),
    /// What TLS needs is not here.
    Here(Box<Error>),
    /// That is not PostgreSQL's protocol.
    Odd(&'static str),
    /// An interrupt came.
    Interrupted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Fault::Lost(why) => f.write_str(why),
            Fault::Silent(limit) => write!(f, "it has said nothing for {} s", limit.as_secs()),
            Fault::Server { said, .. } => f.write_str(said),
            Fault::NoPassword => f.write_str("it wants a password, and none is known"),
            Fault::NoTls => f.write_str("it offers no TLS"),
            Fault::Certificate(_) => f.write_str("its certificate does not pass"),
            Fault::Here(error) => write!(f, "{error}"),
            Fault::Odd(what) => write!(f, "it answered {what}"),
            Fault::Interrupted => f.write_str("interrupted"),
        }
    }
}

type Result<T> = std::result::Result<T, Fault>;

fn lost(e: io::Error) -> Fault {
    Fault::Lost(e.to_string())
}

/// An interrupt is asked for so often while a connection blocks.
const TICK: Duration = Duration::from_millis(100);
/// A peer that has been silent for so long is looked at: does its server still answer?
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// No server that works is silent for so long.
const SILENCE: Duration = Duration::from_secs(3600);
/// No message but rows comes near this.
const MESSAGE_LIMIT: usize = 1 << 20;
/// `scram_iterations` of a server that means it (16 on): some seconds at most.
const ITERATIONS_LIMIT: u64 = 10_000_000;
/// As much is read at once.
const BUFFER: usize = 256 << 10;

enum Stream {
    Tcp(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
    Unix(UnixStream),
}

impl Stream {
    fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let limit = Some(limit);
        match self {
            Stream::Tcp(tcp) => tcp.set_read_timeout(limit).and_then(|()| tcp.set_write_timeout(limit)),
            Stream::Tls(tls) => {
                tls.get_ref().set_read_timeout(limit).and_then(|()| tls.get_ref().set_write_timeout(limit))
            }
            Stream::Unix(unix) => unix.set_read_timeout(limit).and_then(|()| unix.set_write_timeout(limit)),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
            Stream::Unix(unix) => unix.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
            Stream::Unix(unix) => unix.write(bytes),
        }
    }

    fn has_pending(&self) -> bool {
        match self {
            Stream::Tls(tls) => tls.ssl().pending() > 0,
            _ => false,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(tcp) => tcp.as_fd(),
            Stream::Tls(tls) => tls.get_ref().as_fd(),
            Stream::Unix(unix) => unix.as_fd(),
        }
    }
}

/// Whether the server that a silent connection leads to still answers; why not.
type Look = Box<dyn Fn() -> std::result::Result<(), String> + Send>;

/// A connection.
pub struct Wire {
    stream: Stream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    look: Option<Look>,
    stop: Option<Arc<AtomicBool>>,
    /// While it is being made.
    deadline: Option<(Instant, Duration)>,
}

/// One row of a query's answer, as text.
pub type Texts = Vec<Option<String>>;

impl Wire {
    /// Connects and signs in; `parameters` go beside the user into the start-up message, `database` e.g.
    pub fn connect(peer: &Peer, parameters: &[(&str, &str)]) -> Result<Wire> {
        drop(openssl::error::ErrorStack::get());
        let stream = open(peer)?;
        stream.set_timeout(TICK).map_err(lost)?;
        let mut wire = Wire {
            stream,
            input: vec![0; BUFFER],
            start: 0,
            end: 0,
            look: None,
            stop: None,
            deadline: Some((Instant::now() + peer.timeout, peer.timeout)),
        };
        let mut out = BytesMut::new();
        let all = std::iter::once(("user", peer.user.as_str())).chain(parameters.iter().copied());
        frontend::startup_message(all, &mut out).map_err(lost)?;
        wire.write_all(&out)?;
        wire.sign_in(peer)?;
        wire.deadline = None;
        Ok(wire)
    }

    /// When it is silent, `look` says whether there is any use in waiting.
    pub fn set_look(&mut self, look: Look) {
        self.look = Some(look);
    }

    /// Waits end, as by an interrupt, when this becomes true.
    pub fn set_stop(&mut self, stop: Arc<AtomicBool>) {
        self.stop = Some(stop);
    }

    fn sign_in(&mut self, peer: &Peer) -> Result<()> {
        let password = || match &peer.password {
            Some(password) => Ok(password.expose().as_bytes()),
            None => Err(Fault::NoPassword),
        };
        let mut scram: Option<sasl::ScramSha256> = None;
        let mut out = BytesMut::new();
        loop {
            out.clear();
            use backend::Message::*;
            match self.message()? {
                AuthenticationOk => {}
                AuthenticationCleartextPassword => {
                    frontend::password_message(password()?, &mut out).map_err(lost)?
                }
                AuthenticationMd5Password(body) => {
                    let hash = md5_hash(peer.user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out).map_err(lost)?
                }
                AuthenticationSasl(_) => {
                    let state = sasl::ScramSha256::new(password()?, sasl::ChannelBinding::unsupported());
                    frontend::sasl_initial_response(sasl::SCRAM_SHA_256, state.message(), &mut out)
                        .map_err(lost)?;
                    scram = Some(state);
                }
                AuthenticationSaslContinue(body) => {
                    let state = scram.as_mut().ok_or(Fault::Odd("SASL out of order"))?;
                    check_iterations(body.data())?;
                    state.update(body.data()).map_err(lost)?;
                    frontend::sasl_response(state.message(), &mut out).map_err(lost)?;
                }
                AuthenticationSaslFinal(body) => {
                    let state = scram.as_mut().ok_or(Fault::Odd("SASL out of order"))?;
                    state.finish(body.data()).map_err(lost)?;
                }
                ReadyForQuery(_) => return Ok(()),
                ErrorResponse(body) => return Err(server_error(&body)),
                ParameterStatus(_) | BackendKeyData(_) | NoticeResponse(_) => {}
                _ => return Err(Fault::Odd("something that is not PostgreSQL's protocol")),
            }
            if !out.is_empty() {
                self.write_all(&out)?;
            }
        }
    }

    /// Sends a query, which may be several statements.
    pub fn send_query(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(lost)?;
        self.write_all(&out)
    }

    /// Runs statements to their end and gives the rows.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Texts>> {
        self.send_query(sql)?;
        self.finish()
    }

    /// Reads to the end of a query; an error is given when the connection is ready again.
    pub fn finish(&mut self) -> Result<Vec<Texts>> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            use backend::Message::*;
            match self.message()? {
                ReadyForQuery(_) => return error.map_or(Ok(rows), Err),
                DataRow(row) => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        range.map(|range| String::from_utf8_lossy(&row.buffer()[range]).into_owned())
                    };
                    let ranges: Vec<_> = row.ranges().collect().map_err(lost)?;
                    rows.push(ranges.into_iter().map(text).collect());
                }
                ErrorResponse(body) => {
                    let fault = server_error(&body);
                    // There will be no more after it.
                    if body
                        .fields()
                        .any(|f| Ok(f.type_() == b'S' && f.value_bytes() == b"FATAL"))
                        .unwrap_or(false)
                    {
                        return Err(fault);
                    }
                    error = error.or(Some(fault));
                }
                ParameterStatus(_) | NoticeResponse(_) | RowDescription(_) | CommandComplete(_)
                | EmptyQueryResponse | CopyDone => {}
                _ => return Err(Fault::Odd("something that was not asked for")),
            }
        }
    }

    /// Sends a query in which a COPY stands, and waits for its begin. After an error the connection is ready again.
    pub fn begin_copy(&mut self, sql: &str) -> Result<()> {
        self.send_query(sql)?;
        loop {
            use backend::Message::*;
            match self.message()? {
                CopyOutResponse(_) | CopyInResponse(_) => return Ok(()),
                ErrorResponse(body) => {
                    let fault = server_error(&body);
                    let _ = self.finish();
                    return Err(fault);
                }
                ReadyForQuery(_) => return Err(Fault::Odd("no COPY")),
                ParameterStatus(_) | NoticeResponse(_) | CommandComplete(_) | RowDescription(_)
                | DataRow(_) => {}
                _ => return Err(Fault::Odd("something that is not a COPY")),
            }
        }
    }

    /// Ends a COPY FROM and waits for what comes of it.
    pub fn end_copy(&mut self) -> Result<()> {
        // CopyDone
        self.write_all(&[b'c', 0, 0, 0, 4])?;
        self.finish().map(drop)
    }

    /// What has been read and not been consumed.
    pub fn buffered(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// `n` bytes of it are done with.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
    }

    /// Waits until more is buffered.
    pub fn read_more(&mut self) -> Result<()> {
        self.make_room();
        let begin = Instant::now();
        let mut looked = begin;
        loop {
            match self.stream.read(&mut self.input[self.end..]) {
                Ok(0) => return Err(Fault::Lost("it closed the connection".into())),
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(e) => self.waited(e, begin, &mut looked)?,
            }
        }
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.input.len() {
            self.input.resize(self.end * 2, 0);
        }
    }

    /// Sends all of it.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        let mut begin = Instant::now();
        let mut looked = begin;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(Fault::Lost("it closed the connection".into())),
                Ok(n) => {
                    bytes = &bytes[n..];
                    if !bytes.is_empty() {
                        begin = Instant::now();
                        looked = begin;
                    }
                }
                // What it said before it closed is why.
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Err(self.last_words().unwrap_or_else(|| lost(e)));
                }
                Err(e) => self.waited(e, begin, &mut looked)?,
            }
        }
        Ok(())
    }

    fn last_words(&mut self) -> Option<Fault> {
        loop {
            match self.message().ok()? {
                backend::Message::ErrorResponse(body) => return Some(server_error(&body)),
                _ => continue,
            }
        }
    }

    /// After a read or a write that did not come to anything: whether to try it again.
    fn waited(&self, e: io::Error, begin: Instant, looked: &mut Instant) -> Result<()> {
        if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) {
            return Err(lost(e));
        }
        // The kernel has given it up: TCP_USER_TIMEOUT, keepalives. A timeout of the socket itself is EAGAIN.
        if e.raw_os_error() == Some(nix::errno::Errno::ETIMEDOUT as i32) {
            return Err(lost(e));
        }
        let is_stopped = self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
        if is_stopped || process::check_interrupt().is_err() {
            return Err(Fault::Interrupted);
        }
        if let Some((deadline, limit)) = self.deadline {
            return if Instant::now() < deadline { Ok(()) } else { Err(Fault::Silent(limit)) };
        }
        if begin.elapsed() >= SILENCE {
            return Err(Fault::Silent(SILENCE));
        }
        if looked.elapsed() >= LOOK_EVERY
            && let Some(look) = &self.look
        {
            look().map_err(|why| Fault::Lost(format!("it has been silent, and then {why}")))?;
            *looked = Instant::now();
        }
        Ok(())
    }

    /// An error that came while rows were sent: the server takes them all the same and throws them away.
    pub fn objection(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.stream.fd(), PollFlags::POLLIN)];
        let has_said = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
        if !has_said && !self.stream.has_pending() && self.start == self.end {
            return Ok(());
        }
        if has_said {
            self.make_room();
            match self.stream.read(&mut self.input[self.end..]) {
                Ok(0) => return Err(Fault::Lost("it closed the connection".into())),
                Ok(n) => self.end += n,
                // TLS has had something for itself.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(lost(e)),
            }
        }
        while let Some(message) = self.parse()? {
            if let backend::Message::ErrorResponse(body) = message {
                return Err(server_error(&body));
            }
        }
        Ok(())
    }

    /// The next message, of which only COPY's rows are long.
    pub fn message(&mut self) -> Result<backend::Message> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            self.read_more()?;
        }
    }

    fn parse(&mut self) -> Result<Option<backend::Message>> {
        let here = &self.input[self.start..self.end];
        let Some(head) = here.first_chunk::<5>() else { return Ok(None) };
        let length = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MESSAGE_LIMIT {
            return Err(Fault::Odd("an overlong message"));
        }
        if here.len() < length {
            return Ok(None);
        }
        let mut bytes = BytesMut::from(&here[..length]);
        self.start += length;
        backend::Message::parse(&mut bytes).map_err(lost)
    }
}

impl Drop for Wire {
    /// Says good-bye, so that the server's log does not complain.
    fn drop(&mut self) {
        let _ = self.stream.write(&[b'X', 0, 0, 0, 4]);
    }
}

/// The connection, TLS and all.
fn open(peer: &Peer) -> Result<Stream> {
    if peer.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", peer.host, peer.port);
        return UnixStream::connect(path).map(Stream::Unix).map_err(lost);
    }
    secure(peer, net::connect(&peer.host, peer.port, peer.timeout).map_err(lost)?)
}

fn secure(peer: &Peer, mut stream: TcpStream) -> Result<Stream> {
    stream.set_read_timeout(Some(peer.timeout)).map_err(lost)?;
    stream.set_write_timeout(Some(peer.timeout)).map_err(lost)?;
    let silent = |e: io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Fault::Silent(peer.timeout),
        _ => lost(e),
    };
    if peer.encryption == Encryption::Never {
        return Ok(Stream::Tcp(stream));
    }
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    stream.write_all(&out).map_err(silent)?;
    let mut answer = [0u8];
    stream.read_exact(&mut answer).map_err(silent)?;
    if answer[0] != b'S' {
        return match peer.encryption {
            Encryption::Always => Err(Fault::NoTls),
            _ => Ok(Stream::Tcp(stream)),
        };
    }
    let tls = |e: &dyn fmt::Display| Fault::Lost(e.to_string());
    let (connector, found) = peer.tls.connector(&peer.host).map_err(|e| Fault::Here(Box::new(e)))?;
    let mut configuration = connector.configure().map_err(|e| tls(&e))?;
    // The name is compared with the rest of it.
    configuration.set_verify_hostname(false);
    match configuration.connect(&peer.host, stream) {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(HandshakeError::WouldBlock(_)) => Err(Fault::Silent(peer.timeout)),
        Err(e) => Err(found.take().map_or_else(|| tls(&e), Fault::Certificate)),
    }
}

/// A server says how often the password is hashed. PostgreSQL's default is 4096; four billion would keep a processor
/// busy for an hour.
fn check_iterations(data: &[u8]) -> Result<()> {
    let asked = data.split(|byte| *byte == b',').find_map(|part| part.strip_prefix(b"i="));
    let digits = asked.unwrap_or_default();
    let number = str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if number > ITERATIONS_LIMIT {
        Err(Fault::Odd("with more SCRAM iterations than any server needs"))
    } else {
        Ok(())
    }
}

fn server_error(body: &backend::ErrorResponseBody) -> Fault {
    let (mut code, mut said, mut detail) = (String::new(), String::new(), None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value,
            b'M' => said = value,
            b'D' => detail = Some(value),
            _ => {}
        }
    }
    if let Some(detail) = detail {
        said = format!("{said} ({detail})");
    }
    Fault::Server { code, said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_have_a_password_hashed_for_ever() {
        assert!(check_iterations(b"r=abc,s=c2FsdA==,i=4096").is_ok());
        assert!(check_iterations(b"r=abc,s=c2FsdA==").is_ok());
        for wrong in ["4294967295", "10000001"] {
            let data = format!("r=abc,s=c2FsdA==,i={wrong}");
            assert!(matches!(check_iterations(data.as_bytes()), Err(Fault::Odd(_))), "{wrong}");
        }
    }
}
