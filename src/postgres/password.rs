//! Owns passwords as the server keeps them: making a random one, and the verifier that stands in
//! `pg_authid.rolpassword` in its place (PostgreSQL's manual, "pg_authid").

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use postgres_protocol::password;
use sha2::{Digest, Sha256};

/// How long a password of ours is.
pub const LENGTH: usize = 32;

const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Makes a password of random bytes; none when they are too few. Bytes past the last whole multiple of the
/// alphabet are passed over, for they would favour its first letters.
pub fn from_random(bytes: &[u8]) -> Option<String> {
    let usable = 256 / ALPHABET.len() * ALPHABET.len();
    let letters = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < usable);
    let password: String =
        letters.map(|byte| char::from(ALPHABET[byte % ALPHABET.len()])).take(LENGTH).collect();
    (password.len() == LENGTH).then_some(password)
}

/// Whether a text could come from [`from_random`].
pub fn is_ours(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// Whether a verifier is a SCRAM one.
pub fn is_scram(verifier: &str) -> bool {
    verifier.starts_with("SCRAM-SHA-256$")
}

/// What the server keeps of a role's password. It accepts it in the password's place.
pub fn verifier(role: &str, password: &str, scram: bool) -> String {
    if scram {
        password::scram_sha_256(password.as_bytes())
    } else {
        password::md5(password.as_bytes(), role)
    }
}

/// Whether `verifier` is one of this password; `None` when that cannot be told here.
pub fn matches(verifier: &str, role: &str, password: &str) -> Option<bool> {
    if verifier.starts_with("md5") {
        return Some(password::md5(password.as_bytes(), role) == verifier);
    }
    // SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>. Beyond ASCII there is SASLprep.
    let rest = verifier.strip_prefix("SCRAM-SHA-256$").filter(|_| password.is_ascii())?;
    let (how, keys) = rest.split_once('$')?;
    let (iterations, salt) = how.split_once(':')?;
    let (stored, _) = keys.split_once(':')?;
    let mut salted = [0u8; 32];
    let (salt, digest) = (STANDARD.decode(salt).ok()?, MessageDigest::sha256());
    openssl::pkcs5::pbkdf2_hmac(password.as_bytes(), &salt, iterations.parse().ok()?, digest, &mut salted)
        .ok()?;
    let key = PKey::hmac(&salted).ok()?;
    let client = Signer::new(digest, &key).ok()?.sign_oneshot_to_vec(b"Client Key").ok()?;
    Some(Sha256::digest(client).as_slice() == STANDARD.decode(stored).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_is_as_likely_as_any_other() {
        let all: Vec<u8> = (0..=255).collect();
        let mut counts = std::collections::BTreeMap::new();
        for at in 0..248 {
            // So many copies of one usable byte, behind bytes that are not.
            let password = from_random(&[&all[248..], &[all[at]; LENGTH]].concat()).unwrap();
            assert!(is_ours(&password), "{password}");
            *counts.entry(password).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 62);
        assert!(counts.values().all(|count| *count == 4), "{counts:?}");
        assert_eq!(from_random(&[7; LENGTH - 1]), None);
        assert_eq!(from_random(&[255; 1000]), None);
    }

    #[test]
    fn a_verifier_knows_its_password() {
        for scram in [true, false] {
            let made = verifier("app", "geheim", scram);
            assert_eq!(is_scram(&made), scram);
            assert!(!made.contains("geheim"));
            assert_eq!(matches(&made, "app", "geheim"), Some(true));
            assert_eq!(matches(&made, "app", "geheimer"), Some(false));
        }
        assert_eq!(matches("md5x", "other", "geheim"), Some(false));
        assert_eq!(matches(&verifier("app", "ä", true), "app", "ä"), None);
        for broken in ["", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:!$a:b", "SCRAM-SHA-256$x:AAAA$AAAA:AAAA"] {
            assert_eq!(matches(broken, "app", "geheim"), None, "{broken}");
        }
    }
}
