//! Owns what a download link says and whether it is right: the name of the file, until when, and a signature that only
//! who has the key can make.

use super::manifest::BackupId;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

/// Bytes of a key.
pub const KEY_SIZE: usize = 32;

/// A link without its base: what a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The backup.
    pub id: BackupId,
    /// Under which name it is saved, e.g. `b001.dump`.
    pub name: String,
    /// Until when it is good, seconds since 1970.
    pub expires: i64,
    /// As it was found, perhaps wrong.
    signature: Vec<u8>,
}

/// A path and query, signed: `b001.dump?expires=1795191420&signature=…`. `file` is the backup's object, whose name is
/// given only once, while a number may be given again after the backup was deleted.
pub fn signed(key: &[u8], id: BackupId, name: &str, file: &str, expires: i64) -> String {
    let signature = URL_SAFE_NO_PAD.encode(sign(key, id, name, file, expires));
    format!("{name}?expires={expires}&signature={signature}")
}

/// Reads the path and query of a request; none when it is not about a backup at all, whatever its signature.
pub fn parse(path: &str, query: &str) -> Option<Link> {
    let name = path.strip_prefix('/')?;
    // A name without a slash, and one that begins with a backup's: no other file can be meant.
    let id: BackupId = name.split('.').next()?.parse().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    if name.len() > 64 || !name.chars().all(plain) || name.contains("..") {
        return None;
    }
    let mut link = Link { id, name: name.into(), expires: 0, signature: Vec::new() };
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("expires", value)) => link.expires = value.parse().unwrap_or(0),
            Some(("signature", value)) => link.signature = URL_SAFE_NO_PAD.decode(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

impl Link {
    /// The signature is right and the time is not over. The comparison takes as long for any signature.
    pub fn is_good(&self, key: &[u8], file: &str, now: i64) -> bool {
        let right = sign(key, self.id, &self.name, file, self.expires);
        let same = right.len() == self.signature.len() && openssl::memcmp::eq(&right, &self.signature);
        same && now < self.expires
    }
}

fn sign(key: &[u8], id: BackupId, name: &str, file: &str, expires: i64) -> Vec<u8> {
    // None of them can hold a line's end.
    hmac_sha256(key, format!("pgmahout link 1\n{id}\n{name}\n{file}\n{expires}\n").as_bytes())
}

fn hmac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    let signed = PKey::hmac(key).and_then(|key| {
        Signer::new(MessageDigest::sha256(), &key).and_then(|mut s| s.sign_oneshot_to_vec(text))
    });
    signed.expect("OpenSSL has HMAC and SHA-256")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; KEY_SIZE] = [7; KEY_SIZE];
    const FILE: &str = "b001-0a1b2c3d.dump";

    fn id() -> BackupId {
        "b001".parse().unwrap()
    }

    fn link(expires: i64) -> String {
        signed(&KEY, id(), "b001.dump", FILE, expires)
    }

    fn read(text: &str) -> Option<Link> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        parse(&format!("/{path}"), query)
    }

    /// RFC 4231, cases 1, 2 and 6.
    #[test]
    fn the_hmac_is_the_standards() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let cases: [(&[u8], &[u8], &str); 3] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, text, expected) in cases {
            assert_eq!(hex(hmac_sha256(key, text)), expected);
        }
    }

    #[test]
    fn a_link_is_good_until_its_time() {
        let link = read(&link(1000)).unwrap();
        assert_eq!((link.id, link.name.as_str(), link.expires), (id(), "b001.dump", 1000));
        assert!(link.is_good(&KEY, FILE, 999));
        assert!(!link.is_good(&KEY, FILE, 1000));
        assert!(!link.is_good(&KEY, "b001-ffffffff.dump", 999), "another backup that got its number");
        assert!(!link.is_good(&[8; KEY_SIZE], FILE, 999), "another instance's");
    }

    #[test]
    fn what_is_changed_is_not_good() {
        let good = link(1000);
        let changed = [
            good.replace("b001.dump", "b002.dump"),
            good.replace("b001.dump", "b001.tar"),
            good.replace("expires=1000", "expires=1001"),
            good.replace("expires=1000", "expires=01000x"),
            good.replace("expires=1000&", ""),
            good.replace("signature=", "signature=A"),
            good.replace("signature", "sig"),
            good.split('&').next().unwrap().to_owned(),
            good.replace("?", "?signature=&").replace("&signature=", "&x="),
            format!("{good}&signature="),
            format!("{good}&expires=99999999999"),
            "b001.dump".into(),
        ];
        for text in &changed {
            assert_ne!(*text, good);
            let link = read(text).unwrap_or_else(|| panic!("{text} is still a link"));
            assert!(!link.is_good(&KEY, FILE, 0), "{text}");
        }
        // Every single bit of the signature counts.
        let whole = read(&good).unwrap();
        for bit in 0..256 {
            let mut link = whole.clone();
            link.signature[bit / 8] ^= 1 << (bit % 8);
            assert!(!link.is_good(&KEY, FILE, 0), "bit {bit}");
        }
        for length in 0..32 {
            let mut link = whole.clone();
            link.signature.truncate(length);
            assert!(!link.is_good(&KEY, FILE, 0), "{length} bytes");
        }
        assert!(whole.is_good(&KEY, FILE, 0));
    }

    #[test]
    fn nothing_but_a_backups_name_is_a_link() {
        for path in [
            "",
            "/",
            "//b001.dump",
            "/b001.dump/",
            "/../b001.dump",
            "/b001.dump/../../etc/passwd",
            "/b001/../x",
            "/b001..dump",
            "/b001.%2e%2e",
            "/b001.dump%00",
            "/b001.dump\n",
            "/link-key",
            "/.pgmahout/link-key",
            "/b1.dump",
            "/c001.dump",
            "/x/b001.dump",
            "b001.dump",
            "http://h/b001.dump",
            "/b001.dümp",
        ] {
            assert_eq!(parse(path, ""), None, "{path:?}");
        }
        assert_eq!(parse(&format!("/b001.{}", "x".repeat(100)), ""), None);
        // Without a signature it is one, but never good.
        assert!(parse("/b001.json", "").is_some_and(|link| !link.is_good(&KEY, FILE, 0)));
    }
}
