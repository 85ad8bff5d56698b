//! Owns one object on its way into S3: a small one in one request, a large one in parts that are sent while the
//! next ones are written. What breaks off is taken away, also after a kill: see [`Note`].

use super::engine::Reply;
use super::{Link, Place, fault};
use crate::durable;
use crate::error::{Error, Result};
use crate::store::Upload;
use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const MB: usize = 1 << 20;
/// Parts that are on their way have no more bytes than this together, but there is always one.
const IN_FLIGHT: usize = 32 * MB;
/// S3 takes no more.
const MOST_PARTS: usize = 10_000;
const CLEAN_UP: Duration = Duration::from_secs(60);

/// Bytes of the part with this index. 10,000 parts have to hold 5 TB, and memory to hold a part: so 8 MB up to
/// 33 GB, 32 MB up to 134 GB, and from there on twice as much every 300 parts, up to 4 GB.
pub fn part_size(index: usize) -> usize {
    match index {
        ..4_000 => 8 * MB,
        4_000..7_000 => 32 * MB,
        _ => (32 * MB) << ((index - 7_000) / 300 + 1).min(7),
    }
}

/// What a kill would leave unknown: an upload whose parts cost money and show up in no list.
#[derive(Serialize, Deserialize)]
pub struct Note {
    /// The service.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// The object.
    pub key: String,
    /// The upload's id.
    pub upload: String,
}

/// An object on its way in.
pub struct Uploading {
    link: Arc<Link>,
    place: Place,
    path: Path,
    notes: PathBuf,
    buffer: Vec<u8>,
    total: u64,
    begun: Option<Begun>,
}

struct Begun {
    upload: String,
    note: PathBuf,
    next: usize,
    in_flight: VecDeque<Reply<object_store::Result<PartId>>>,
    parts: Vec<PartId>,
}

impl Uploading {
    /// Begins it; nothing is sent yet.
    pub fn new(link: Arc<Link>, place: Place, path: Path, notes: PathBuf) -> Uploading {
        Uploading { link, place, path, notes, buffer: Vec::new(), total: 0, begun: None }
    }

    fn begin(&mut self) -> Result<()> {
        let (link, path) = (self.link.clone(), self.path.clone());
        let upload = self
            .link
            .wait(&self.place, "write", async move { link.patient.create_multipart(&path).await })?;
        let name = self.path.filename().unwrap_or("upload");
        let note = self.notes.join(format!("{name}.{}.json", std::process::id()));
        let text = serde_json::to_vec(&Note {
            endpoint: self.place.endpoint(),
            bucket: self.place.bucket.clone(),
            key: self.path.to_string(),
            upload: upload.clone(),
        });
        // Without it (a full disk) only a kill leaves something behind: no reason to take no backup.
        let _ = durable::create_private_directory(&self.notes)
            .and_then(|()| durable::write(&note, &text.expect("plain data"), 0o600));
        let (in_flight, parts) = (VecDeque::new(), Vec::new());
        self.begun = Some(Begun { upload, note, next: 0, in_flight, parts });
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        if self.begun.is_none() {
            self.begin()?;
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let begun = self.begun.as_mut().expect("just begun");
        if begun.next >= MOST_PARTS {
            let why = "it is larger than an object of S3 can be".into();
            return Err(Error::Store { place: self.place.to_string(), action: "write", why });
        }
        let most = (IN_FLIGHT / bytes.len().max(1)).max(1);
        while begun.in_flight.len() >= most {
            Self::receive(&self.link, &self.place, begun)?;
        }
        let (link, path, upload, index) =
            (self.link.clone(), self.path.clone(), begun.upload.clone(), begun.next);
        begun.next += 1;
        begun.in_flight.push_back(self.link.engine.begin(async move {
            link.parts.put_part(&path, &upload, index, PutPayload::from_bytes(bytes)).await
        }));
        Ok(())
    }

    /// The oldest part that is on its way.
    fn receive(link: &Link, place: &Place, begun: &mut Begun) -> Result<()> {
        let Some(reply) = begun.in_flight.pop_front() else { return Ok(()) };
        let part = link.reply(place, "write", &reply)?;
        begun.parts.push(part);
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        if self.begun.is_none() {
            let payload = PutPayload::from_bytes(Bytes::from(std::mem::take(&mut self.buffer)));
            let (link, path) = (self.link.clone(), self.path.clone());
            let put = async move { link.parts.put(&path, payload).await.map(drop) };
            return self.link.wait(&self.place, "write", put);
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        let begun = self.begun.as_mut().expect("just looked");
        while !begun.in_flight.is_empty() {
            Self::receive(&self.link, &self.place, begun)?;
        }
        let (link, path, upload, parts, total) =
            (self.link.clone(), self.path.clone(), begun.upload.clone(), begun.parts.clone(), self.total);
        self.link.wait(&self.place, "write", async move {
            let error = match link.patient.complete_multipart(&path, &upload, parts).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            // The answer to a completion may have been lost, and asking again is answered "no such upload".
            match link.patient.head(&path).await {
                Ok(found) if found.size == total => Ok(()),
                _ => Err(error),
            }
        })?;
        let note = self.begun.take().expect("just looked").note;
        let _ = std::fs::remove_file(note);
        Ok(())
    }
}

impl Write for Uploading {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let size = part_size(self.begun.as_ref().map_or(0, |begun| begun.next));
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(size.min(8 * MB));
        }
        let taken = bytes.len().min(size - self.buffer.len());
        if self.buffer.len() + taken > self.buffer.capacity() {
            self.buffer.reserve_exact(size - self.buffer.len());
        }
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.total += taken as u64;
        if self.buffer.len() == size {
            self.send().map_err(std::io::Error::other)?;
        }
        Ok(taken)
    }

    /// Parts have a size of their own: nothing is sent before it is reached.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Upload for Uploading {
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.complete()
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let Some(mut begun) = self.begun.take() else { return };
        // A part that comes after the end of its upload would be kept: none is on its way any more.
        for reply in begun.in_flight.drain(..) {
            drop(reply);
        }
        if abort(&self.link, &self.place, &self.path, &begun.upload).is_ok() {
            let _ = std::fs::remove_file(&begun.note);
        }
    }
}

/// Takes away what an upload has sent. That it is not there any more is no error.
pub fn abort(link: &Arc<Link>, place: &Place, path: &Path, upload: &str) -> Result<()> {
    let (own, path, upload) = (link.clone(), path.clone(), upload.to_owned());
    let reply = link.engine.begin(async move { own.quick.abort_multipart(&path, &upload).await });
    match reply.wait_out(CLEAN_UP) {
        Some(Err(error)) if !fault::is_missing(&error) => Err(fault::explain(place, "clean up", &error)),
        Some(_) => Ok(()),
        None => Err(super::no_answer(place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_terabytes_fit() {
        let total: u64 = (0..MOST_PARTS).map(|index| part_size(index) as u64).sum();
        assert!(total > 5 << 40, "{total}");
        assert!((0..MOST_PARTS).all(|index| (5 * MB..=4 << 30).contains(&part_size(index))));
        let memory = |bytes: u64| {
            let mut left = bytes;
            let last = (0..MOST_PARTS).find(|index| {
                left = left.saturating_sub(part_size(*index) as u64);
                left == 0
            });
            let size = part_size(last.unwrap());
            size + (IN_FLIGHT / size).max(1) * size
        };
        assert!(memory(30 << 30) <= 40 * MB && memory(120 << 30) <= 64 * MB);
    }
}
