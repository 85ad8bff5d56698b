//! Owns TCP connections as all of them are made here: tried at every address of a name, within a limit, and told within a
//! minute when the line was cut without a word.

use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Error, Result};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Connects to the first address of the name that answers; each may take as long as `limit`.
pub fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream> {
    let addresses = (host, port).to_socket_addrs();
    let addresses = addresses.map_err(|e| Error::other(format!("the name was not found: {e}")))?;
    let mut why = Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                notice_cuts(&stream);
                return Ok(stream);
            }
            Err(e) => why = e,
        }
    }
    Err(why)
}

/// What waits for an answer fails within a minute when nothing comes back any more, not even an acknowledgement.
fn notice_cuts(stream: &TcpStream) {
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &5);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &6);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &60_000);
}
