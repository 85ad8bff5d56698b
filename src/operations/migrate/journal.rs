//! The journal of a migration: what was done and what was before, synced before and after each step, so that whoever
//! comes after a crash knows. It holds the old URL, which is needed for the way back, and is for its owner only.

use crate::blurb::Secret;
use crate::checked;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A text that only the journal's file shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden(pub Secret);

impl Hidden {
    /// Hides it.
    pub fn new(text: &str) -> Hidden {
        Hidden(Secret::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Hidden, D::Error> {
        String::deserialize(deserializer).map(|text| Hidden::new(&text))
    }
}

/// What it is the journal of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An app moves.
    Migration,
    /// It is only tried out.
    Rehearsal,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It goes forward.
    Running,
    /// What was done is being undone.
    Undoing,
    /// All was undone.
    Undone,
    /// The app has the new database.
    Done,
    /// After it was done, the app goes back to the old database.
    RollingBack,
    /// That failed and is being undone: the app keeps the new database.
    KeepingNew,
    /// The app has the old database again.
    RolledBack,
}

impl State {
    /// Nobody has to do anything any more.
    pub fn is_over(self) -> bool {
        matches!(self, State::Undone | State::Done | State::RolledBack)
    }
}

/// How a step stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Its turn has not come.
    #[default]
    Waiting,
    /// It was begun.
    Doing,
    /// It is done.
    Done,
    /// Its undoing was begun.
    Undoing,
    /// It is undone.
    Undone,
}

/// A step, as it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// How it stands.
    pub mark: Mark,
    /// When it began, in seconds since 1970.
    pub began: Option<f64>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// Why it, or its undoing, failed.
    pub error: Option<String>,
}

/// A config variable that gets another database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// It had the old URL; else it was not set.
    pub was_set: bool,
}

/// One way of the app: to the new database, or back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Leg {
    /// The steps by their names.
    pub steps: BTreeMap<String, Record>,
    /// How many processes there were of each type, without those of which there were none.
    pub counts: BTreeMap<String, u32>,
    /// The app has process types at all.
    pub has_processes: bool,
    /// Counts and maintenance are noted.
    pub noted: bool,
    /// Maintenance was on before; `None`: the platform has no such thing, or there is nothing to stop.
    pub maintenance_was: Option<bool>,
    /// The release before.
    pub release: Option<u64>,
    /// The release with the other database.
    pub new_release: Option<u64>,
    /// Since when the app was down, in seconds since 1970.
    pub down_since: Option<f64>,
    /// Until when.
    pub down_until: Option<f64>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// The variable, as it was typed; `None`: a URL.
    pub from: Option<String>,
    /// The instance.
    pub to: Option<String>,
    /// The plan of a new one.
    pub plan: Option<String>,
    /// The name of its attachment.
    pub colour: Option<String>,
    /// Its version must be newer.
    pub newer: bool,
    /// Without owners.
    pub no_owner: bool,
    /// Connections that copy.
    pub jobs: Option<usize>,
    /// Seconds to wait for the last client.
    pub wait: u64,
    /// End those that stay.
    pub terminate: bool,
}

/// The old database, and in a rehearsal its fork.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// The config variable that was named.
    pub variable: Option<String>,
    /// Its URL.
    pub url: Hidden,
    /// The instance of the app that it is on.
    pub instance: Option<String>,
    /// HOST:PORT.
    pub address: String,
    /// The database.
    pub database: String,
}

/// A database that is or was made for this.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Target {
    /// The instance.
    pub instance: Option<String>,
    /// It was, or is being, made by this migration.
    pub provisioned: bool,
    /// Its attachment was made by this migration.
    pub attached: bool,
    /// The variable of its attachment.
    pub variable: Option<String>,
    /// Its URL.
    pub url: Option<Hidden>,
    /// HOST:PORT.
    pub address: Option<String>,
    /// The database.
    pub database: String,
    /// The instances before it was made.
    pub before: Option<BTreeSet<String>>,
    /// DATABASE_URL was set before, so that nobody else sets it.
    pub had_database_url: bool,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journal {
    /// Of this file's own form.
    pub format: u32,
    /// Eight hexadecimal digits.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The app.
    pub app: String,
    /// What its platform is called. Another one may have an app of the same name.
    pub platform: String,
    /// Who began it, on which machine.
    pub by: String,
    /// How it stands.
    pub state: State,
    /// Seconds since 1970.
    pub started: f64,
    /// When it came to its end, whichever.
    pub finished: Option<f64>,
    /// What was asked for.
    pub wanted: Wanted,
    /// From where.
    pub source: Option<Source>,
    /// A rehearsal's copy of it.
    pub fork: Option<Target>,
    /// To where.
    pub target: Target,
    /// The variables that get the other URL.
    pub rebound: Vec<Bound>,
    /// To the new database.
    pub forward: Leg,
    /// Back to the old one, after it was done.
    pub back: Option<Leg>,
    /// What `copy-part` answered: `look`, `check`, `fill`, `compare`, `changes`.
    pub found: BTreeMap<String, Value>,
    /// What the operator has to know.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Journal {
    /// A new one.
    pub fn new(kind: Kind, app: &str, platform: &str, wanted: Wanted) -> Result<Journal> {
        let mut random = [0; 4];
        let urandom = Path::new("/dev/urandom");
        fs::File::open(urandom).and_then(|mut file| file.read_exact(&mut random)).on("read", urandom)?;
        Ok(Journal {
            format: 1,
            id: format!("{:08x}", u32::from_be_bytes(random)),
            kind,
            app: app.to_owned(),
            platform: platform.to_owned(),
            by: operator(),
            state: State::Running,
            started: now(),
            finished: None,
            wanted,
            source: None,
            fork: None,
            target: Target::default(),
            rebound: Vec::new(),
            forward: Leg::default(),
            back: None,
            found: BTreeMap::new(),
            warnings: Vec::new(),
            error: None,
        })
    }

    /// The way that is gone now.
    pub fn leg(&self) -> &Leg {
        self.back.as_ref().unwrap_or(&self.forward)
    }

    /// The same, to write.
    pub fn leg_mut(&mut self) -> &mut Leg {
        self.back.as_mut().unwrap_or(&mut self.forward)
    }

    /// The mark of a step of the way that is gone now.
    pub fn mark(&self, step: &str) -> Mark {
        self.leg().steps.get(step).map(|record| record.mark).unwrap_or_default()
    }

    /// The mark of a step of the way to the new database.
    pub fn forward_mark(&self, step: &str) -> Mark {
        self.forward.steps.get(step).map(|record| record.mark).unwrap_or_default()
    }

    /// Writes it to the disk, whole or not at all.
    pub fn write(&self, directory: &Path) -> Result<()> {
        durable::write(&path(directory, &self.id), &checked::json(self), 0o600)
    }

    /// Reads one.
    pub fn read(path: &Path) -> Result<Journal> {
        let bytes = fs::read(path).on("read", path)?;
        let bad = |why: String| Error::MigrateJournal { path: path.into(), why };
        let journal: Journal = checked::from_json(&bytes).map_err(bad)?;
        if journal.format != 1 {
            return Err(bad(format!("its format is {}", journal.format)));
        }
        Ok(journal)
    }
}

/// The file of a migration.
pub fn path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.json"))
}

/// Where the platform call that runs is recorded.
pub fn child_path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.child"))
}

/// The directory of an app's journals.
pub fn directory(app: &str) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    let state = state.ok_or_else(|| Error::MigrateUsage {
        why: "neither XDG_STATE_HOME nor HOME is set".into(),
        hint: "the journal of a migration lies in HOME/.local/state/pgmahout/migrations".into(),
    })?;
    Ok(state.join("pgmahout/migrations").join(app))
}

/// All journals of the app on that platform, the newest first; and those that cannot be read.
pub fn all(directory: &Path, platform: &str) -> (Vec<Journal>, Vec<Error>) {
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "json")
            && !entry.file_name().to_string_lossy().starts_with('.')
        {
            match Journal::read(&path) {
                Ok(journal) if journal.platform == platform => found.push(journal),
                Ok(_) => {}
                Err(error) => bad.push(error),
            }
        }
    }
    found.sort_by(|a, b| b.started.total_cmp(&a.started));
    (found, bad)
}

/// `user@host`.
pub fn operator() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned());
    format!("{}@{}", user.unwrap_or_else(|| "somebody".into()), host.unwrap_or_else(|| "somewhere".into()))
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_journal_is_named_and_shows_no_password() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(Kind::Migration, "shop", "pretend", Wanted::default()).unwrap();
        journal.started = 1_795_191_420.5;
        journal.warnings.push("postgres://u:hunter2@h/d".into());
        journal.write(directory.path()).unwrap();
        let path = path(directory.path(), &journal.id);
        let whole = fs::read(&path).unwrap();
        let text = |journal: &Journal| serde_json::to_string(journal).unwrap();
        for bytes in checked::damaged(&whole) {
            fs::write(&path, &bytes).unwrap();
            match Journal::read(&path) {
                Ok(read) => assert_eq!(text(&read), text(&journal)),
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains(&journal.id) && said.contains("it is damaged"), "{said}");
                    assert!(!said.contains("hunter2"), "{said}");
                    let (found, bad) = all(directory.path(), "pretend");
                    assert_eq!((found.len(), bad.len()), (0, 1));
                }
            }
        }
    }
}
