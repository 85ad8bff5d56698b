//! Owns how the streams of a copy come to be: several SSH sessions to one source, opened at the same time, and while other
//! things are asked.

use crate::error::{Error, Result};
use crate::ssh::Remote;
use crate::transfer::stream::{Stream, Wishes};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// sshd gives a session up that is silent for longer than it was told, seldom less than this: nobody answers its
/// keep-alives before the session is used.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Where streams lead, and how many are wanted.
#[derive(Clone)]
pub struct Way {
    /// SSH to the source.
    pub remote: Arc<dyn Remote>,
    /// The shell word that runs the agent there.
    pub agent: String,
    /// PGDATA there.
    pub data: String,
    /// Its inode, by which it is known again.
    pub inode: u64,
    /// How each is to be.
    pub wishes: Wishes,
    /// Parallel sessions.
    pub sessions: usize,
}

/// Streams, one at least, and why there are not as many as were wanted.
pub struct Opened {
    /// Each in a session of its own.
    pub streams: Vec<Stream>,
    /// The last error of those that did not open.
    pub refused: Option<Error>,
}

impl Way {
    /// The same by another client.
    pub fn over(&self, remote: Box<dyn Remote>) -> Way {
        Way { remote: Arc::from(remote), ..self.clone() }
    }

    /// Opens them all at the same time. One session does the whole work too, only slower: a server that lets in no second
    /// one (MaxStartups) is no reason to fail.
    ///
    /// # Errors
    /// When none opens; [`Error::SourceMoved`].
    pub fn open(&self) -> Result<Opened> {
        let open = || {
            let remote = self.remote.again()?;
            Stream::open(&*remote, &self.agent, &self.data, self.wishes)
        };
        let all: Vec<_> = thread::scope(|scope| {
            let opening: Vec<_> = (0..self.sessions).map(|_| scope.spawn(open)).collect();
            opening.into_iter().map(|one| one.join().expect("a panic has ended the program")).collect()
        });
        let mut opened = Opened { streams: Vec::new(), refused: None };
        for one in all {
            match one {
                Ok((stream, facts)) if facts.inode == self.inode => opened.streams.push(stream),
                Ok(_) => return Err(Error::SourceMoved { host: self.remote.label().to_owned() }),
                Err(error @ Error::Interrupted) => return Err(error),
                Err(error) => opened.refused = Some(error),
            }
        }
        match (opened.streams.is_empty(), opened.refused) {
            (true, Some(error)) => Err(error),
            (_, refused) => Ok(Opened { refused, ..opened }),
        }
    }
}

/// Streams that are being opened.
pub struct Opening {
    since: Instant,
    thread: thread::JoinHandle<Result<Opened>>,
}

impl Opening {
    /// Begins to.
    pub fn begin(way: Way) -> Opening {
        Opening { since: Instant::now(), thread: thread::spawn(move || way.open()) }
    }

    /// They have not been silent for so long that sshd may have given them up.
    pub fn is_fresh(&self) -> bool {
        self.since.elapsed() < UNANSWERED
    }

    /// Waits for them.
    ///
    /// # Errors
    /// Those of [`Way::open`].
    pub fn end(self) -> Result<Opened> {
        self.thread.join().expect("a panic has ended the program")
    }
}
