//! Owns the bytes of a backup on their way into a store and out of it: encrypted and decrypted, counted, hashed,
//! and compared with what the manifest says.

use super::{Store, Upload};
use crate::backups::manifest::Manifest;
use crate::error::{Error, Result};
use crate::instance::Instance;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};

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
    hashed: Hashed,
}

struct Hashed {
    upload: Box<dyn Upload>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.upload.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.upload.flush()
    }
}

impl Sealer {
    /// Begins the object `name`, encrypted where the instance's settings say so.
    pub fn create(store: &dyn Store, _instance: &Instance, name: &str) -> Result<Sealer> {
        let upload = store.create(name)?;
        Ok(Sealer { hashed: Hashed { upload, hash: Sha256::new(), size: 0 } })
    }

    /// Bytes that have gone to the store.
    pub fn size(&self) -> u64 {
        self.hashed.size
    }

    /// It is in the store when this comes back.
    pub fn finish(self) -> Result<Stored> {
        let Hashed { upload, hash, size } = self.hashed;
        upload.finish()?;
        Ok(Stored { size, sha256: hexadecimal(&hash.finalize()), encryption: None })
    }
}

impl Write for Sealer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hashed.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.hashed.flush()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a backup's bytes, decrypted. The end of the reader comes only after size and checksum of what is stored
/// have been found right; otherwise its last read is an error of the kind `InvalidData`. So whoever has read to the
/// end has read the backup.
pub fn open(store: &dyn Store, _instance: &Instance, manifest: &Manifest) -> Result<Box<dyn Read + Send>> {
    Ok(Box::new(open_stored(store, manifest)?))
}

/// The same bytes as they are stored.
pub fn open_stored(store: &dyn Store, manifest: &Manifest) -> Result<Checked> {
    Ok(Checked {
        inner: store.read(&manifest.file, 0)?,
        hash: Sha256::new(),
        left: manifest.size,
        wanted: manifest.sha256.clone(),
    })
}

/// Stored bytes that are compared with their manifest.
pub struct Checked {
    inner: Box<dyn Read + Send>,
    hash: Sha256,
    left: u64,
    wanted: String,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bad = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, text.to_owned());
        let n = self.inner.read(buffer)?;
        if n as u64 > self.left {
            return Err(bad("it is longer than its manifest says"));
        }
        self.left -= n as u64;
        self.hash.update(&buffer[..n]);
        if n == 0 && !buffer.is_empty() {
            if self.left > 0 {
                return Err(bad("it is shorter than its manifest says"));
            }
            if hexadecimal(&std::mem::take(&mut self.hash).finalize()) != self.wanted {
                return Err(bad("its checksum is not the one of its manifest"));
            }
            self.wanted = hexadecimal(&Sha256::new().finalize());
        }
        Ok(n)
    }
}

/// The error of a read of a backup.
pub fn read_error(store: &dyn Store, manifest: &Manifest, error: &std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::InvalidData {
        return Error::BackupDamaged {
            id: manifest.id.to_string(),
            place: store.place(),
            why: error.to_string(),
        };
    }
    Error::Store { place: store.place(), action: "read", why: error.to_string() }
}
