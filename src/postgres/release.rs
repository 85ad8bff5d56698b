//! Owns the names of PostgreSQL's source releases: what "17", "17.6" and "18beta1" mean, and which of the
//! releases that a mirror lists is the newest.

use super::version::PgVersion;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// One release, by the name that its directory and its tarball carry: `17.6`, `9.6.24`, `18beta1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    name: String,
    version: PgVersion,
    stage: Stage,
}

/// How far a release had come, in the order in which they appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Alpha(u32),
    Beta(u32),
    Candidate(u32),
    Final,
}

/// What somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest minor release of a major version.
    Newest(Major),
    /// This one.
    Exactly(Release),
}

/// A major version: `17`, or `9.6` before 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Major(PgVersion);

impl Wanted {
    /// Reads "17" or "9.6" (the newest of it), "17.6", "9.6.24" or "18beta1" (that one). A leading "v" and
    /// white space around are let pass.
    ///
    /// # Errors
    /// [`Error::ReleaseText`] for anything else.
    pub fn parse(text: &str) -> Result<Wanted> {
        let name = text.trim();
        let name = name.strip_prefix('v').unwrap_or(name);
        match name.split('.').collect::<Vec<_>>()[..] {
            [major] if number(major).is_some_and(|n| n >= 10) => {}
            ["9", second] if number(second).is_some() => {}
            _ => {
                let release = Release::from_name(name);
                return release
                    .map(Wanted::Exactly)
                    .ok_or_else(|| Error::ReleaseText { text: text.to_owned() });
            }
        }
        let version = PgVersion::parse(name).map_err(|_| Error::ReleaseText { text: text.to_owned() })?;
        Ok(Wanted::Newest(Major(version)))
    }

    /// Whether this release is what was asked for.
    pub fn accepts(&self, release: &Release) -> bool {
        match self {
            Wanted::Newest(major) => major.holds(release),
            Wanted::Exactly(wanted) => wanted == release,
        }
    }

    /// The version as far as it is known: `17.0` for the newest of 17.
    pub fn version(&self) -> PgVersion {
        match self {
            Wanted::Newest(major) => major.0,
            Wanted::Exactly(release) => release.version,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Newest(major) => f.write_str(&major.0.major()),
            Wanted::Exactly(release) => f.write_str(&release.name),
        }
    }
}

impl Major {
    fn holds(self, release: &Release) -> bool {
        release.stage == Stage::Final && release.version.same_major(self.0)
    }
}

fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    // "017" would be another file name for the same number.
    let canonical = text == "0" || !text.starts_with('0');
    if plain && canonical { text.parse().ok() } else { None }
}

impl Release {
    /// Reads the name of a release: digits and dots, or a major version and `alpha`, `beta` or `rc` with its
    /// number. `None` for anything else, so that a name can stand in a path.
    pub fn from_name(name: &str) -> Option<Release> {
        for (word, stage) in [
            ("alpha", Stage::Alpha as fn(u32) -> Stage),
            ("beta", Stage::Beta as fn(u32) -> Stage),
            ("rc", Stage::Candidate as fn(u32) -> Stage),
        ] {
            if let Some((major, count)) = name.split_once(word) {
                let count = number(count)?;
                let known = match major.split('.').collect::<Vec<_>>()[..] {
                    [major] => number(major)? >= 10,
                    [major, second] => number(major)? < 10 && number(second).is_some(),
                    _ => false,
                };
                let version = PgVersion::parse(major).ok().filter(|_| known)?;
                return Some(Release { name: name.to_owned(), version, stage: stage(count) });
            }
        }
        let parts = name.split('.').map(number).collect::<Option<Vec<_>>>()?;
        match parts[..] {
            [major, _] if major >= 10 => {}
            [major, _, _] if major < 10 => {}
            _ => return None,
        }
        let version = PgVersion::parse(name).ok()?;
        Some(Release { name: name.to_owned(), version, stage: Stage::Final })
    }

    /// The name, as in `postgresql-<name>.tar.gz`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that the server will say it has; `18.0` for `18beta1`.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// Every release that the page or the listing of a mirror's directory names: each `v<release>` in it.
    pub fn listed(text: &str) -> Vec<Release> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
        let mut found: Vec<Release> =
            words.filter_map(|word| Release::from_name(word.strip_prefix('v')?)).collect();
        found.sort();
        found.dedup();
        found
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Release {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.version, self.stage, &self.name).cmp(&(other.version, other.stage, &other.name))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Release {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Release::from_name(text).ok_or_else(|| Error::ReleaseText { text: text.to_owned() })
    }
}

impl Serialize for Release {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.name)
    }
}

impl<'de> Deserialize<'de> for Release {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(name: &str) -> Release {
        Release::from_name(name).unwrap_or_else(|| panic!("{name}"))
    }

    #[test]
    fn a_major_version_means_its_newest() {
        for (text, shown) in [("17", "17"), ("9.6", "9.6"), (" 15\n", "15"), ("v10", "10")] {
            let wanted = Wanted::parse(text).unwrap();
            assert!(matches!(wanted, Wanted::Newest(_)), "{text}");
            assert_eq!(wanted.to_string(), shown);
        }
        let wanted = Wanted::parse("17").unwrap();
        assert!(wanted.accepts(&release("17.6")));
        assert!(!wanted.accepts(&release("17beta1")), "nobody gets a beta who did not name it");
        assert!(!wanted.accepts(&release("16.6")));
        assert!(Wanted::parse("9.6").unwrap().accepts(&release("9.6.24")));
        assert!(!Wanted::parse("9.6").unwrap().accepts(&release("9.5.24")));
    }

    #[test]
    fn a_full_version_means_itself() {
        for text in ["17.6", "9.6.24", "18beta1", "18rc2", "9.0.0", "v15.18"] {
            let wanted = Wanted::parse(text).unwrap();
            assert!(matches!(wanted, Wanted::Exactly(_)), "{text}");
            assert_eq!(wanted.to_string(), text.trim_start_matches('v'));
        }
    }

    #[test]
    fn nothing_else_gets_near_a_path_or_a_url() {
        for text in [
            "",
            "x",
            "17.",
            ".6",
            "17.6.1",
            "9",
            "8",
            "17/../..",
            "17.6/",
            "../17.6",
            "17.6 ;ls",
            "17.06",
            "017",
            "17.x",
            "beta1",
            "17beta",
            "17betaX",
            "9beta1",
            "17.6beta1",
            "-1",
            "17.99999",
            "٣",
        ] {
            let error = Wanted::parse(text).unwrap_err();
            assert!(error.to_string().contains("not a PostgreSQL version"), "{text}: {error}");
        }
    }

    #[test]
    fn the_listing_of_a_mirror_is_read() {
        let page = r#"<a href="../">../</a> <a href="v17.10/">v17.10/</a> <a href="v17.9/">v17.9/</a>
            <a href="v9.6.24/">v9.6.24/</a><a href="v18beta1/">v18beta1/</a> <a href="odbc/">v/</a>"#;
        let names: Vec<_> = Release::listed(page).iter().map(|r| r.name().to_owned()).collect();
        assert_eq!(names, ["9.6.24", "17.9", "17.10", "18beta1"]);
        assert_eq!(Release::listed("v15.1\nv15.2\nREADME"), [release("15.1"), release("15.2")]);
    }

    #[test]
    fn releases_stand_in_the_order_of_their_appearance() {
        let order =
            ["9.6.24", "10.0", "10.23", "18alpha1", "18beta1", "18beta2", "18rc1", "18.0", "18.1", "18.10"];
        for pair in order.windows(2) {
            assert!(release(pair[0]) < release(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn a_release_is_its_name_in_json() {
        let json = serde_json::to_string(&release("18beta1")).unwrap();
        assert_eq!(json, "\"18beta1\"");
        assert_eq!(serde_json::from_str::<Release>(&json).unwrap(), release("18beta1"));
        assert!(serde_json::from_str::<Release>("\"../../x\"").is_err());
    }
}
