//! Where backups lie: a directory or S3. Flat: objects with plain names, no folders. An object is there whole or
//! not at all.

pub mod catalog;
pub mod directory;
mod keys;
pub mod s3;
pub mod sealed;

use crate::error::{Error, Result};
use crate::instance::Instance;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

/// One object of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name: letters, digits, `.`, `_`, `-`; no leading dot.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was stored by the store's clock, seconds since 1970.
    pub modified: i64,
}

/// An object on its way in. Dropped without [`Upload::finish`] nothing of it stays.
pub trait Upload: Write + Send {
    /// Makes it last: it is in the store, synced or acknowledged, when this comes back.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Where backups lie.
pub trait Store: Send + Sync {
    /// What messages call it: a path, `s3://bucket/prefix`. Never with credentials.
    fn place(&self) -> String;
    /// A directory on this machine: a lost disk takes the backups along.
    fn is_local(&self) -> bool;
    /// All objects, in no order. Unfinished uploads are none.
    fn list(&self) -> Result<Vec<Object>>;
    /// An object's bytes from `offset` on.
    ///
    /// # Errors
    /// [`crate::error::Error::NoObject`] when there is none of this name. Errors of the reader itself are the
    /// store's, as text; a network fault is retried inside it.
    fn read(&self, name: &str, offset: u64) -> Result<Box<dyn Read + Send>>;
    /// Begins an object that is not there yet.
    fn create(&self, name: &str) -> Result<Box<dyn Upload>>;
    /// Stores a small object in one step, in place of one of the same name.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()>;
    /// The same, but never in place of another: false when there is one already.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool>;
    /// Removes an object; that it is not there is no error.
    fn delete(&self, name: &str) -> Result<()>;
    /// A link for anyone to this object, good for `expires`, under which it is saved as `save_as`. None where the
    /// store cannot give one (a directory).
    fn link(&self, name: &str, save_as: &str, expires: Duration) -> Result<Option<String>>;
    /// The object as a file of this machine, where it is one.
    fn local_path(&self, name: &str) -> Option<PathBuf>;
    /// Removes what uploads that were killed have left. Only while this instance's backup lock is held.
    fn sweep(&self) -> Result<()>;
}

/// The store of this instance, as its settings say. Nothing is created or asked yet.
pub fn open(instance: &Instance) -> Result<Box<dyn Store>> {
    if instance.backup.store.starts_with("s3://") {
        return Ok(Box::new(s3::S3::new(instance)?));
    }
    Ok(Box::new(directory::Directory::new(instance.backup.store_path(&instance.home))))
}

/// True of what an object may be called.
pub fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain)
}

fn check_name(store: &dyn Store, name: &str) -> Result<()> {
    if is_plain(name) {
        return Ok(());
    }
    let why = format!("{name:?} is no object's name");
    Err(Error::Store { place: store.place(), action: "use", why })
}

/// The error of reading from, or writing to, a store's stream: the store's own one where it is in it.
pub fn stream_error(store: &dyn Store, action: &'static str, error: &std::io::Error) -> Error {
    own_error(error).unwrap_or_else(|| Error::Store { place: store.place(), action, why: error.to_string() })
}

/// The store's own error in one of its stream, which knows the place, the way out and the exit code.
pub fn own_error(error: &std::io::Error) -> Option<Error> {
    error.get_ref()?.downcast_ref::<Error>().and_then(Error::of_a_store)
}

/// The whole of a small object.
pub fn read_small(store: &dyn Store, name: &str) -> Result<Vec<u8>> {
    const LIMIT: u64 = 64 << 20;
    let mut bytes = Vec::new();
    let read = store.read(name, 0)?.take(LIMIT).read_to_end(&mut bytes);
    read.map_err(|e| stream_error(store, "read", &e))?;
    Ok(bytes)
}
