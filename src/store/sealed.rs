//! Owns the bytes of a backup on their way into a store and out of it: encrypted and decrypted, counted, hashed,
//! and compared with what the manifest says.

use super::{Store, Upload, keys, own_error, stream_error};
use crate::backups::manifest::Manifest;
use crate::error::{Error, Result};
use crate::instance::Instance;
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor};
use sha2::{Digest, Sha256};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What [`Stored::encryption`] and the manifest call it.
const AGE: &str = "age";

/// What was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes.
    pub size: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
    /// `age` or none.
    pub encryption: Option<String>,
}

/// A backup's bytes on their way in. Dropped without [`Sealer::finish`] nothing of them stays.
pub struct Sealer {
    way: Way,
    size: Arc<AtomicU64>,
    place: String,
}

enum Way {
    Plain(Hashed),
    Encrypted(StreamWriter<Hashed>),
}

struct Hashed {
    upload: Box<dyn Upload>,
    hash: Sha256,
    size: Arc<AtomicU64>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.upload.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upload.flush()
    }
}

impl Sealer {
    /// Begins the object `name`, encrypted where the instance's settings say so.
    pub fn create(store: &dyn Store, instance: &Instance, name: &str) -> Result<Sealer> {
        // Before anything is stored: a key that cannot be used is found at once.
        let recipients = keys::recipients(instance)?;
        let size = Arc::new(AtomicU64::new(0));
        let hashed = Hashed { upload: store.create(name)?, hash: Sha256::new(), size: size.clone() };
        let place = store.place();
        if recipients.is_empty() {
            return Ok(Sealer { way: Way::Plain(hashed), size, place });
        }
        let encryptor = Encryptor::with_recipients(recipients.iter().map(|one| &**one))
            .map_err(|e| Error::BackupKeyFile { why: e.to_string() })?;
        let writer = encryptor.wrap_output(hashed).map_err(|e| stream_error(store, "write", &e))?;
        Ok(Sealer { way: Way::Encrypted(writer), size, place })
    }

    /// Bytes that have gone to the store.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// It is in the store when this comes back.
    pub fn finish(self) -> Result<Stored> {
        let (hashed, encryption) = match self.way {
            Way::Plain(hashed) => (hashed, None),
            Way::Encrypted(writer) => {
                let failed = |e: io::Error| {
                    own_error(&e).unwrap_or_else(|| Error::Store {
                        place: self.place,
                        action: "write",
                        why: e.to_string(),
                    })
                };
                (writer.finish().map_err(failed)?, Some(AGE.to_owned()))
            }
        };
        let size = hashed.size.load(Ordering::Relaxed);
        hashed.upload.finish()?;
        Ok(Stored { size, sha256: hexadecimal(&hashed.hash.finalize()), encryption })
    }
}

impl Write for Sealer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.way {
            Way::Plain(hashed) => hashed.write(bytes),
            Way::Encrypted(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.way {
            Way::Plain(hashed) => hashed.flush(),
            Way::Encrypted(writer) => writer.flush(),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn damaged(text: impl ToString) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.to_string())
}

/// Opens a backup's bytes, decrypted. The end of the reader comes only after size and checksum of what is stored
/// have been found right; otherwise its last read is an error of the kind `InvalidData`. So whoever has read to the
/// end has read the backup.
///
/// # Errors
/// [`Error::NoBackupKey`] and [`Error::WrongBackupKey`] of an encrypted one.
pub fn open(store: &dyn Store, instance: &Instance, manifest: &Manifest) -> Result<Box<dyn Read + Send>> {
    let id = manifest.id.to_string();
    match manifest.encryption.as_deref() {
        None => return Ok(Box::new(open_stored(store, manifest)?)),
        Some(AGE) => {}
        Some(other) => {
            let why =
                format!("it is encrypted by {}, which is not known here", crate::error::printable(other));
            return Err(Error::Manifest { id, why });
        }
    }
    let stored = Shared(Arc::new(Mutex::new(open_stored(store, manifest)?)));
    let failed = |error: DecryptError, wanted: &'static str| match error {
        DecryptError::Io(e) => read_error(store, manifest, &e),
        DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
            Error::WrongBackupKey { id: id.clone(), wanted }
        }
        other => Error::BackupDamaged { id: id.clone(), place: store.place(), why: other.to_string() },
    };
    let decryptor = Decryptor::new_buffered(BufReader::new(stored.clone())).map_err(|e| failed(e, "key"))?;
    let by_passphrase = decryptor.is_scrypt();
    let identities = keys::identities(instance, &id, by_passphrase)?;
    let wanted = if by_passphrase { "passphrase" } else { "key" };
    let inner = decryptor.decrypt(identities.iter().map(|one| &**one)).map_err(|e| failed(e, wanted))?;
    Ok(Box::new(Opened { inner, stored }))
}

/// One reader that both the decryption and the one who checks after it hold.
#[derive(Clone)]
struct Shared(Arc<Mutex<Checked>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while reading").read(buffer)
    }
}

struct Opened {
    inner: StreamReader<BufReader<Shared>>,
    stored: Shared,
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                // The decryption knows its own end: what is stored may go on.
                io::copy(&mut self.stored, &mut io::sink())?;
                Ok(0)
            }
            // What is neither the store's error nor the system's is the decryption's.
            Err(e) if e.get_ref().is_some_and(|inner| !inner.is::<Error>()) => Err(damaged(e)),
            read => read,
        }
    }
}

/// The same bytes as they are stored.
pub fn open_stored(store: &dyn Store, manifest: &Manifest) -> Result<Checked> {
    open_stored_from(store, manifest, Sha256::new(), 0)
}

/// The same behind the first `offset` bytes, which `hash` has seen.
pub fn open_stored_from(
    store: &dyn Store,
    manifest: &Manifest,
    hash: Sha256,
    offset: u64,
) -> Result<Checked> {
    let left = manifest.size.saturating_sub(offset);
    let inner: Box<dyn Read + Send> = match left {
        0 if offset > 0 => Box::new(io::empty()),
        _ => store.read(&manifest.file, offset)?,
    };
    Ok(Checked { inner, hash, left, wanted: manifest.sha256.clone(), verified: false })
}

/// Stored bytes that are compared with their manifest.
pub struct Checked {
    inner: Box<dyn Read + Send>,
    hash: Sha256,
    left: u64,
    wanted: String,
    verified: bool,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.verified {
            return Ok(0);
        }
        let n = self.inner.read(buffer)?;
        if n as u64 > self.left {
            return Err(damaged("it is longer than its manifest says"));
        }
        self.left -= n as u64;
        self.hash.update(&buffer[..n]);
        if n == 0 && !buffer.is_empty() {
            if self.left > 0 {
                return Err(damaged("it is shorter than its manifest says"));
            }
            if hexadecimal(&self.hash.clone().finalize()) != self.wanted {
                return Err(damaged("its checksum is not the one of its manifest"));
            }
            self.verified = true;
        }
        Ok(n)
    }
}

/// The error of a read of a backup.
pub fn read_error(store: &dyn Store, manifest: &Manifest, error: &io::Error) -> Error {
    if error.kind() == ErrorKind::InvalidData {
        return Error::BackupDamaged {
            id: manifest.id.to_string(),
            place: store.place(),
            why: error.to_string(),
        };
    }
    stream_error(store, "read", error)
}
