//! Owns the one thread on which requests to S3 run. The rest of the program only waits for its replies: with a
//! limit, and so that an interrupt ends the wait.

use crate::error::Result;
use crate::process;
use std::future::Future;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Ends with its last owner.
pub struct Engine {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Engine {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Engine> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("s3".into()).spawn(move || {
            // Comes back when the sender is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Engine { handle, _stop: stop })
    }

    /// Begins `work`; it goes on while nobody waits for it, and ends when its reply is dropped.
    pub fn begin<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Reply<T> {
        let (sender, receiver) = channel();
        let task = self.handle.spawn(async move {
            let _ = sender.send(work.await);
        });
        Reply { receiver, task: task.abort_handle() }
    }
}

/// What comes of a request.
pub struct Reply<T> {
    receiver: Receiver<T>,
    task: AbortHandle,
}

impl<T> Reply<T> {
    /// `None` when the time is over.
    pub fn wait(&self, limit: Duration) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        loop {
            process::check_interrupt()?;
            match self.receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// The same, but not to be interrupted: for what cleans up.
    pub fn wait_out(&self, limit: Duration) -> Option<T> {
        self.receiver.recv_timeout(limit).ok()
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
