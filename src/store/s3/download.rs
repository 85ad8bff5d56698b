//! Owns an object on its way out of S3: one stream for its reader, fetched in pieces ahead of it. A piece that a
//! network fault has cut is fetched again.

use super::engine::Reply;
use super::{Link, Place, RETRY, fault};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PIECE: u64 = 4 << 20;
const AHEAD: usize = 3;

/// A piece of it, and the size of the whole.
type Fetched = object_store::Result<(Bytes, u64)>;

/// A reader of one object.
pub struct Downloading {
    link: Arc<Link>,
    place: Place,
    path: Path,
    size: u64,
    next: u64,
    ahead: VecDeque<Reply<Fetched>>,
    piece: Bytes,
}

impl Downloading {
    /// Opens it at `offset`: its first piece is there, or the error why not.
    pub fn open(link: Arc<Link>, place: Place, path: Path, offset: u64) -> crate::error::Result<Downloading> {
        let (own, key) = (link.clone(), path.clone());
        let (piece, size) = link.wait(&place, "read", async move {
            let error = match fetch(&own, &key, offset).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            // "Range not satisfiable": there is nothing behind the offset.
            if fault::code(&error).as_deref() == Some("InvalidRange") {
                let found = own.patient.head(&key).await?;
                if found.size <= offset {
                    return Ok((Bytes::new(), found.size));
                }
            }
            Err(error)
        })?;
        let next = offset + piece.len() as u64;
        Ok(Downloading { link, place, path, size, next, ahead: VecDeque::new(), piece })
    }

    fn fetch_ahead(&mut self) {
        while self.ahead.len() < AHEAD && self.next < self.size {
            let (own, path, offset) = (self.link.clone(), self.path.clone(), self.next);
            self.next = (offset + PIECE).min(self.size);
            self.ahead.push_back(self.link.engine.begin(async move { fetch(&own, &path, offset).await }));
        }
    }
}

async fn fetch(link: &Link, path: &Path, offset: u64) -> Fetched {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(200);
    loop {
        let range = Some(GetRange::Bounded(offset..offset + PIECE));
        let fetched = async {
            let result = link.patient.get_opts(path, GetOptions { range, ..Default::default() }).await?;
            let size = result.meta.size;
            Ok((result.bytes().await?, size))
        };
        match fetched.await {
            Err(error) if !fault::is_final(&error) && begin.elapsed() < RETRY => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            other => return other,
        }
    }
}

impl Read for Downloading {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            self.fetch_ahead();
            let Some(reply) = self.ahead.pop_front() else { return Ok(0) };
            let fetched = self.link.reply(&self.place, "read", &reply);
            (self.piece, _) = fetched.map_err(std::io::Error::other)?;
            self.fetch_ahead();
        }
        let n = buffer.len().min(self.piece.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
