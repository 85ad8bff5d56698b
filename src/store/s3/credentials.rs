//! Owns where credentials for S3 are found: the environment, then the files that Amazon's own programs read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A key, or where to go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The key; none: ask the machine's own services.
    pub key: Option<Key>,
    /// The profile's region.
    pub region: Option<String>,
    /// Where was looked, for the one who has to put a key somewhere.
    pub looked: Vec<String>,
}

/// A key.
#[derive(PartialEq, Eq)]
pub struct Key {
    /// Its public part.
    pub id: String,
    /// Its secret part.
    pub secret: String,
    /// What temporary ones have too.
    pub token: Option<String>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

type Profile = BTreeMap<String, String>;

/// Looks in the environment (`variable`), then in the files below `home`. The order is the one of Amazon's own
/// programs: environment, shared credentials file, config file.
pub fn find(home: &Path, variable: impl Fn(&str) -> Option<String>) -> Found {
    let profile = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
    let name = profile.clone().unwrap_or_else(|| "default".into());
    let file = |name: &str, usual: &str| {
        let said = variable(name).map(|path| match path.strip_prefix("~/") {
            Some(rest) => home.join(rest),
            None => PathBuf::from(path),
        });
        said.unwrap_or_else(|| home.join(".aws").join(usual))
    };
    let files = [file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config")];
    let profiles = files.each_ref().map(|path| read(path, &name));
    let region = profiles.iter().flatten().find_map(|profile| profile.get("region").cloned());
    let environment = Profile::from_iter(
        ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
            .iter()
            .filter_map(|name| Some((name.to_string(), variable(&name.to_uppercase())?))),
    );
    if let Some(key) = key(&environment) {
        return Found { key: Some(key), region, looked: Vec::new() };
    }
    let mut looked = vec!["AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set".to_owned()];
    for (path, profile) in files.iter().zip(&profiles) {
        match profile {
            None if !path.exists() => looked.push(format!("there is no {}", path.display())),
            None => looked.push(format!("{} has no readable profile {name:?}", path.display())),
            Some(profile) => {
                if let Some(key) = key(profile) {
                    return Found { key: Some(key), region, looked: Vec::new() };
                }
                let other = ["credential_process", "sso_session", "sso_start_url", "role_arn"];
                let other = other.iter().find(|name| profile.contains_key(**name));
                let why = other.map_or(String::new(), |name| format!(" ({name} is not followed here)"));
                looked.push(format!("the profile {name:?} in {} has no key{why}", path.display()));
            }
        }
    }
    Found { key: None, region, looked }
}

fn key(profile: &Profile) -> Option<Key> {
    let get = |name: &str| profile.get(name).filter(|value| !value.is_empty()).cloned();
    let (id, secret) = (get("aws_access_key_id")?, get("aws_secret_access_key")?);
    Some(Key { id, secret, token: get("aws_session_token") })
}

/// One profile of a file: `[name]`, or `[profile name]` as the config file has it.
fn read(path: &Path, name: &str) -> Option<Profile> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut found: Option<Profile> = None;
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(heading) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let heading = heading.trim();
            inside = heading.strip_prefix("profile ").map_or(heading, str::trim) == name;
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && !trimmed.starts_with(['#', ';'])
            // What is indented belongs to a setting with parts of its own (`s3 =`).
            && !line.starts_with([' ', '\t'])
            && let Some((name, value)) = trimmed.split_once('=')
            && let Some(found) = &mut found
        {
            found.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(credentials: &str, config: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        home
    }

    fn id(found: Found) -> Option<String> {
        found.key.map(|key| key.id)
    }

    #[test]
    fn in_the_usual_order() {
        let home = home(
            "[default]\naws_access_key_id = FILE\naws_secret_access_key=s\n\n[other]\n# a comment\n\
             aws_access_key_id=OTHER\naws_secret_access_key = t\naws_session_token = u\n",
            "[default]\nregion = eu-west-3\ns3 =\n  aws_access_key_id = NESTED\n[profile third]\n\
             aws_access_key_id=THIRD\naws_secret_access_key=v\n[profile sso]\nsso_session = x\n",
        );
        let with = |pairs: &[(&str, &str)]| {
            let pairs: BTreeMap<String, String> =
                pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            find(home.path(), |name| pairs.get(name).cloned())
        };
        let both = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
        assert_eq!(id(with(&both)).as_deref(), Some("ENV"));
        assert_eq!(id(with(&both[..1])).as_deref(), Some("FILE"));
        assert_eq!(with(&[]).region.as_deref(), Some("eu-west-3"));
        let other = with(&[("AWS_PROFILE", "other")]).key.unwrap();
        assert_eq!((other.id.as_str(), other.token.as_deref()), ("OTHER", Some("u")));
        assert_eq!(id(with(&[("AWS_PROFILE", "third")])).as_deref(), Some("THIRD"));
        let none = with(&[("AWS_PROFILE", "sso")]);
        assert_eq!(none.key, None);
        assert!(none.looked.join("; ").contains("sso_session is not followed"), "{:?}", none.looked);
        let elsewhere = with(&[("AWS_SHARED_CREDENTIALS_FILE", "~/none"), ("AWS_CONFIG_FILE", "/none")]);
        assert_eq!(elsewhere.key, None);
        assert_eq!(elsewhere.looked[1], format!("there is no {}", home.path().join("none").display()));
    }
}
