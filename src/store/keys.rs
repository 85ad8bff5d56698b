//! Owns the keys that backups are encrypted with: an age key file, or a passphrase.

use crate::blurb::Secret;
use crate::error::{Error, Result};
use crate::instance::Instance;
use age::secrecy::SecretString;
use age::{Identity, Recipient, scrypt, x25519};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// scrypt's cost for a passphrase of ours: 2^16 blocks of 1 kB, 64 MB of memory for a quarter of a second. (age
/// measures a cost of one second otherwise, which takes 256 MB.)
const WORK: u8 = 16;
/// The cost of a file of others that is still paid: 2^20, 1 GB.
const MOST_WORK: u8 = 20;

/// What a key file holds.
#[derive(Default)]
pub struct KeyFile {
    identities: Vec<x25519::Identity>,
    recipients: Vec<x25519::Recipient>,
}

impl KeyFile {
    /// Reads it: `AGE-SECRET-KEY-1…` and `age1…`, a line each, and comments, as `age-keygen` writes it.
    ///
    /// # Errors
    /// [`Error::BackupKeyFile`], which never quotes the file.
    pub fn read(path: &Path) -> Result<KeyFile> {
        let name = path.display();
        let bad = |why: String| Error::BackupKeyFile { why };
        let text = std::fs::read_to_string(path).map_err(|e| bad(format!("{name}: {e}")))?;
        let mut file = KeyFile::default();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Ok(identity) = line.parse::<x25519::Identity>() {
                file.identities.push(identity);
            } else if let Ok(recipient) = line.parse::<x25519::Recipient>() {
                file.recipients.push(recipient);
            } else {
                return Err(bad(format!(
                    "line {} of {name} is neither a key of age nor a comment",
                    number + 1
                )));
            }
        }
        if file.identities.is_empty() && file.recipients.is_empty() {
            return Err(bad(format!("{name} has no key in it")));
        }
        let mode = std::fs::metadata(path).map_err(|e| bad(format!("{name}: {e}")))?.mode() & 0o777;
        if mode & 0o077 != 0 && !file.identities.is_empty() {
            return Err(bad(format!("others may read or write {name}, its mode is {mode:04o}")));
        }
        Ok(file)
    }
}

fn secret(passphrase: &Secret) -> SecretString {
    SecretString::from(passphrase.expose().to_owned())
}

/// Whom a new backup is encrypted to; none where the instance's settings ask for no encryption.
pub fn recipients(instance: &Instance) -> Result<Vec<Box<dyn Recipient>>> {
    if let Some(path) = &instance.backup.key_file {
        let file = KeyFile::read(path)?;
        let of_identities = file.identities.iter().map(x25519::Identity::to_public);
        let mut all: Vec<x25519::Recipient> = Vec::new();
        // age-keygen's own comment is often copied beside the key: nobody needs two copies of one recipient.
        for recipient in of_identities.chain(file.recipients) {
            if !all.iter().any(|known| known.to_string() == recipient.to_string()) {
                all.push(recipient);
            }
        }
        return Ok(all.into_iter().map(|one| Box::new(one) as Box<dyn Recipient>).collect());
    }
    Ok(match &instance.backup.passphrase {
        Some(passphrase) => {
            let mut recipient = scrypt::Recipient::new(secret(passphrase));
            recipient.set_work_factor(WORK);
            vec![Box::new(recipient)]
        }
        None => Vec::new(),
    })
}

/// What may open the backup `id`, which was encrypted with a passphrase or to a key.
pub fn identities(instance: &Instance, id: &str, by_passphrase: bool) -> Result<Vec<Box<dyn Identity>>> {
    let missing = |wanted| Error::NoBackupKey { id: id.to_owned(), wanted };
    if by_passphrase {
        let passphrase = instance.backup.passphrase.as_ref().ok_or_else(|| missing("passphrase"))?;
        let mut identity = scrypt::Identity::new(secret(passphrase));
        identity.set_max_work_factor(MOST_WORK);
        return Ok(vec![Box::new(identity)]);
    }
    let path = instance.backup.key_file.as_ref().ok_or_else(|| missing("key"))?;
    let identities = KeyFile::read(path)?.identities;
    if identities.is_empty() {
        return Err(missing("key"));
    }
    Ok(identities.into_iter().map(|one| Box::new(one) as Box<dyn Identity>).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn read(text: &str, mode: u32) -> Result<KeyFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        KeyFile::read(file.path())
    }

    #[test]
    fn key_files() {
        use age::secrecy::ExposeSecret;
        let identity = x25519::Identity::generate();
        let secret = identity.to_string().expose_secret().to_owned();
        let public = identity.to_public();
        let text = format!("# created: 2026-11-21T10:00:00Z\n# public key: {public}\n{secret}\n");
        let file = read(&text, 0o600).unwrap();
        assert_eq!((file.identities.len(), file.recipients.len()), (1, 0));
        let file = read(&format!("{public}\n"), 0o644).unwrap();
        assert_eq!((file.identities.len(), file.recipients.len()), (0, 1));
        let error = |text: &str, mode| read(text, mode).err().unwrap().to_string();
        assert!(error(&text, 0o640).contains("its mode is 0640"));
        assert!(error("# nothing\n\n", 0o600).contains("has no key in it"));
        let damaged = secret.replace("KEY-1", "KEY-2");
        let said = error(&format!("\n{damaged}\n"), 0o600);
        assert!(said.contains("line 2 of") && !said.contains(&damaged), "{said}");
    }
}
