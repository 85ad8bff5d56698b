//! Owns small files that tell when they were damaged: JSON whose first field is a checksum of all that stands behind it,
//! and lines whose last one is. A bit that a disk has flipped would else be another port, another size, another path.
//!
//! Both stay plain text. Files without a checksum, which an older version or a person has written, are read as they are.

use serde::Serialize;
use serde::de::DeserializeOwned;

const FIELD: &str = "{\"check\":\"";
const LINE: &str = "check ";
/// Hexadecimal digits of a CRC-32C.
const DIGITS: usize = 8;

fn sum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

/// A structure with named fields as JSON.
pub fn json(value: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_vec_pretty(value).expect("plain data");
    let rest = text.strip_prefix(b"{").expect("a structure with named fields");
    let mut all = format!("{FIELD}{}\",", sum(rest)).into_bytes();
    all.extend_from_slice(rest);
    all
}

/// Reads what [`json`] has written. Why it cannot be read never quotes it: it may hold a password.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if let Some(checked) = bytes.strip_prefix(FIELD.as_bytes())
        && let Some((digits, rest)) = checked.split_at_checked(DIGITS)
        && let Some(rest) = rest.strip_prefix(b"\",")
        && digits != sum(rest).as_bytes()
    {
        return Err("it is damaged: its checksum is wrong".into());
    }
    let wrong = |e: serde_json::Error| format!("it is damaged at line {}, column {}", e.line(), e.column());
    serde_json::from_slice(bytes).map_err(wrong)
}

/// Lines, each with its end, and a last one that tells whether they are whole.
pub fn lines(text: &str) -> String {
    format!("{text}{LINE}{}\n", sum(text.as_bytes()))
}

/// Reads what [`lines`] has written; `None` when it is damaged.
pub fn from_lines(bytes: &[u8]) -> Option<String> {
    let at = bytes.len().checked_sub(LINE.len() + DIGITS + 1)?;
    let (text, last) = bytes.split_at(at);
    let whole = last == format!("{LINE}{}\n", sum(text)).as_bytes();
    whole.then(|| String::from_utf8(text.to_vec()).ok()).flatten()
}

/// Every text that begins as `whole` does and is shorter, and every one that differs from it in one bit.
#[cfg(test)]
pub fn damaged(whole: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let shorter = (0..whole.len()).map(|length| whole[..length].to_vec());
    let flipped = (0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    shorter.chain(flipped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        name: String,
        port: u16,
        at: f64,
    }

    #[test]
    fn json_is_whole_or_refused() {
        let thing = Thing { name: "hunter2 \u{1f418}".into(), port: 5432, at: 1_795_191_420.123_456_7 };
        let whole = json(&thing);
        assert_eq!(from_json::<Thing>(&whole).as_ref(), Ok(&thing));
        let other: serde_json::Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!((&other["name"], &other["port"]), (&thing.name.as_str().into(), &5432.into()));
        for bytes in damaged(&whole) {
            match from_json::<Thing>(&bytes) {
                Err(why) => assert!(why.starts_with("it is damaged") && !why.contains("hunter2"), "{why}"),
                // The checksum's own name was hit, and all else is as it was.
                Ok(read) => assert_eq!((read, &bytes[FIELD.len()..]), (thing.clone(), &whole[FIELD.len()..])),
            }
        }
        assert_eq!(from_json::<Thing>(&serde_json::to_vec(&thing).unwrap()), Ok(thing), "an older version's");
    }

    #[test]
    fn lines_are_whole_or_none() {
        for text in ["", "one\n", "one\n/a path/of pgmahout-1\n"] {
            let whole = lines(text);
            assert_eq!(from_lines(whole.as_bytes()).as_deref(), Some(text));
            for bytes in damaged(whole.as_bytes()) {
                assert_eq!(from_lines(&bytes), None, "{}", String::from_utf8_lossy(&bytes));
            }
        }
    }
}
