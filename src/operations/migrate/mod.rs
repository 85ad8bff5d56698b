//! `migrate`: an app moves to another database, with the way back.
//!
//! It works on the operator's machine: it owns the journal and the order of things. What is done to the app is done by
//! the platform's executables, what is done to data by the agents beside the two databases.

use crate::blurb::Secret;
use crate::durable::Lock;
use crate::error::{Error, Result};
use crate::platform::{Platform, address_of, end_left_behind, password_of};
use crate::progress::{Progress, time_text};
use journal::{Hidden, Journal, Source, Wanted, now};
pub use journal::{Kind, Mark, State};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use way::{Back, Step, Stopped};

mod agents;
mod find;
mod journal;
mod steps;
mod way;

/// Which app, on what.
#[derive(Clone, Debug)]
pub struct App {
    /// Its name.
    pub name: String,
    /// The platform's directory of executables.
    pub platform: PathBuf,
    /// The herd command.
    pub herd: PathBuf,
}

/// From where.
#[derive(Clone, Debug)]
pub enum From {
    /// What this config variable points to.
    Variable(String),
    /// A database by its URL.
    Url(Secret),
}

/// To where.
#[derive(Clone, Debug)]
pub enum To {
    /// An instance of the app.
    Instance(String),
    /// A new one with this plan, or the platform's own choice.
    Plan(Option<String>),
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// From where.
    pub from: From,
    /// To where.
    pub to: To,
    /// The name under which a new or unattached target is attached.
    pub colour: Option<String>,
    /// Try it out: nothing is taken down.
    pub rehearse: bool,
    /// The target's major version must be newer.
    pub newer: bool,
    /// Everything belongs to the target's user there.
    pub no_owner: bool,
    /// Connections that copy at the same time.
    pub jobs: Option<usize>,
    /// How long the last client is waited for.
    pub wait: Duration,
    /// Those that stay are ended.
    pub terminate: bool,
    /// Check, say what would be done, and do nothing.
    pub dry_run: bool,
}

/// A step, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct Went {
    /// Its name.
    pub step: &'static str,
    /// What it does.
    pub what: String,
    /// How it stands.
    pub state: Mark,
    /// Seconds since 1970 when it began.
    pub began: Option<f64>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// Why it, or its undoing, failed.
    pub error: Option<String>,
}

/// One of the two databases.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// The instance, where it is one of the app's.
    pub instance: Option<String>,
    /// HOST:PORT.
    pub address: Option<String>,
    /// The database.
    pub database: String,
    /// The config variable that was named, or is its attachment.
    pub variable: Option<String>,
}

/// What has happened, without secrets.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The migration.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The app.
    pub app: String,
    /// Who began it, on which machine.
    pub by: String,
    /// How it stands.
    pub state: State,
    /// Nothing was done.
    pub dry_run: bool,
    /// Seconds since 1970.
    pub started: f64,
    /// When it came to its end.
    pub finished: Option<f64>,
    /// The old database.
    pub source: Option<Place>,
    /// The new one.
    pub target: Place,
    /// The target was made for this.
    pub provisioned: bool,
    /// The config variables that changed their database.
    pub variables: Vec<String>,
    /// The release before.
    pub release: Option<u64>,
    /// The release with the new URL.
    pub new_release: Option<u64>,
    /// The steps.
    pub steps: Vec<Went>,
    /// Those of the way back after it was done.
    pub back: Vec<Went>,
    /// How long the app was down.
    pub down_seconds: Option<f64>,
    /// How long it would be, by a rehearsal.
    pub predicted_seconds: Option<f64>,
    /// Tables, rows and bytes that were copied.
    pub copied: Option<Copied>,
    /// What the operator has to know.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What to do now.
    pub next: Vec<String>,
}

/// What was copied.
#[derive(Clone, Debug, Serialize)]
pub struct Copied {
    /// Tables.
    pub tables: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A migration at work.
struct Work<'a> {
    progress: &'a Progress,
    platform: &'a Platform,
    journal: Journal,
    directory: PathBuf,
    /// Nothing is written down.
    dry: bool,
    /// The operator agrees to lose what only the new database has.
    confirmed: bool,
    /// Another run has begun it: somebody may have touched the app since.
    came_later: bool,
}

impl Work<'_> {
    fn source(&self) -> Result<&Source> {
        self.journal.source.as_ref().ok_or_else(|| Error::MigrateImpossible {
            why: format!("the migration {} does not know its source yet", self.journal.id),
            hint: "--rollback, and begin again".into(),
        })
    }

    fn new_url(&self) -> Result<Hidden> {
        self.journal.target.url.clone().ok_or_else(|| Error::MigrateImpossible {
            why: "there is no target yet".into(),
            hint: "--rollback, and begin again".into(),
        })
    }

    fn is_outside(&self) -> bool {
        self.journal.source.as_ref().is_none_or(|source| source.instance.is_none())
    }

    /// "main of db.0".
    fn source_name(&self) -> String {
        match &self.journal.source {
            Some(source) => {
                let at = source.instance.as_ref().unwrap_or(&source.address);
                self.platform.quoted(&format!("{} of {at}", source.database))
            }
            None => "the source".to_owned(),
        }
    }

    fn target_name(&self) -> String {
        self.journal.target.instance.clone().unwrap_or_else(|| "the new database".to_owned())
    }

    fn hide_secrets(&self) {
        let source = self.journal.source.as_ref().map(|source| &source.url);
        for url in source.into_iter().chain(&self.journal.target.url) {
            self.platform.hide(url.expose());
            if let Some(password) = password_of(url.expose()) {
                self.platform.hide(password);
            }
        }
    }

    fn warn(&mut self, text: String) {
        self.progress.warn(&text);
        if !self.journal.warnings.contains(&text) {
            self.journal.warnings.push(text);
        }
    }

    fn keep(&mut self, name: &str, answer: Value) -> Result<()> {
        self.journal.found.insert(name.to_owned(), answer);
        self.save()
    }

    fn save(&self) -> Result<()> {
        if self.dry { Ok(()) } else { self.journal.write(&self.directory) }
    }

    /// The step from which on it only goes forward: the app may have written to where it is now.
    fn is_past(&self) -> bool {
        let begun = |step: &str| !matches!(self.journal.mark(step), Mark::Waiting | Mark::Undone);
        let leg = self.journal.leg();
        begun("maintenance-off")
            // Without maintenance, processes start when they are scaled.
            || (begun("scale-up") && leg.has_processes && leg.maintenance_was.is_none())
    }

    /// The app was, or may have been, pointed to the new database.
    fn is_bound(&self) -> bool {
        !matches!(self.journal.forward_mark("rebind"), Mark::Waiting | Mark::Undone)
    }

    fn went(&self, table: &'static [Step], leg: &journal::Leg) -> Vec<Went> {
        let went = |step: &Step| {
            let record = leg.steps.get(step.name).cloned().unwrap_or_default();
            Went {
                step: step.name,
                what: (step.says)(self),
                state: record.mark,
                began: record.began,
                seconds: record.seconds,
                error: record.error,
            }
        };
        table.iter().map(went).collect()
    }

    fn report(&self) -> Report {
        let journal = &self.journal;
        let table = table_of(journal.kind);
        let number = |name: &str| journal.found.get("fill").map_or(0, |fill| agents::number(fill, name));
        let target = &journal.target;
        let forward = Work {
            journal: Journal { back: None, ..journal.clone() },
            directory: self.directory.clone(),
            ..*self
        };
        let rehearsed = journal.kind == Kind::Rehearsal && journal.found.contains_key("compare");
        let leg = journal.leg();
        Report {
            id: journal.id.clone(),
            kind: journal.kind,
            app: journal.app.clone(),
            by: journal.by.clone(),
            state: journal.state,
            dry_run: self.dry,
            started: journal.started,
            finished: journal.finished,
            source: journal.source.as_ref().map(|source| Place {
                instance: source.instance.clone(),
                address: Some(source.address.clone()),
                database: source.database.clone(),
                variable: source.variable.clone(),
            }),
            target: Place {
                instance: target.instance.clone(),
                address: target.address.clone(),
                database: target.database.clone(),
                variable: target.variable.clone(),
            },
            provisioned: target.provisioned,
            variables: journal.rebound.iter().map(|bound| bound.name.clone()).collect(),
            release: journal.forward.release,
            new_release: leg.new_release,
            steps: forward.went(table, &journal.forward),
            back: journal.back.as_ref().map(|back| self.went(steps::BACKWARD, back)).unwrap_or_default(),
            down_seconds: leg.down_since.zip(leg.down_until).map(|(since, until)| until - since),
            predicted_seconds: rehearsed.then(|| steps::predicted(self)),
            copied: journal.found.contains_key("fill").then(|| Copied {
                tables: number("tables"),
                rows: number("rows"),
                bytes: number("bytes"),
            }),
            warnings: journal.warnings.clone(),
            error: journal.error.clone(),
            next: self.next(),
        }
    }

    /// What to do now, for a person.
    fn next(&self) -> Vec<String> {
        let journal = &self.journal;
        let app = &journal.app;
        let command = |option: &str| format!("herd pg:migrate {option} --app {app}");
        if self.dry {
            return Vec::new();
        }
        match (journal.kind, journal.state) {
            (Kind::Migration, State::Done) => vec![
                format!("check that {app} works, and what its logs say: herd logs --app {app}"),
                format!("to go back, while {} is there: {}", self.source_name(), command("--rollback")),
                format!("{} takes no writes, and is not removed: that is for you to do", self.source_name()),
            ],
            (Kind::Migration, State::Running) if self.is_past() => vec![
                format!("{app} has the new database; to complete it: {}", command("--resume")),
                format!("to go back to the old one: {}", command("--rollback")),
            ],
            (Kind::Migration, State::Running) => {
                vec![
                    format!("to go on: {}", command("--resume")),
                    format!("to go back: {}", command("--rollback")),
                ]
            }
            (Kind::Rehearsal, State::Running) | (_, State::Undoing) => {
                vec![format!("to complete the way back: {}", command("--rollback"))]
            }
            (_, State::RollingBack | State::KeepingNew) => {
                vec![format!("to complete it: {}", command("--rollback"))]
            }
            (_, State::RolledBack) => {
                vec![format!("{} is there still, with what was written to it", self.target_name())]
            }
            _ => Vec::new(),
        }
    }
}

fn table_of(kind: Kind) -> &'static [Step] {
    match kind {
        Kind::Migration => steps::FORWARD,
        Kind::Rehearsal => steps::REHEARSAL,
    }
}

/// One migration of an app at a time on this machine; whoever has the lock left word since when.
fn lock(directory: &std::path::Path, app: &App, doing: &str) -> Result<Lock> {
    let since = time_text(now() as i64);
    match Lock::take(&directory.join("lock"), &format!("{doing} by {} since {since}", journal::operator())) {
        Err(Error::Locked { holder, .. }) => Err(Error::MigrateRuns { app: app.name.clone(), holder }),
        other => other,
    }
}

fn unfinished(directory: &std::path::Path, platform: &Platform) -> Result<Option<Journal>> {
    let (mut found, bad) = journal::all(directory, &platform.name());
    match (found.iter().position(|journal| !journal.state.is_over()), bad.into_iter().next()) {
        (Some(at), _) => Ok(Some(found.swap_remove(at))),
        // It may be of one that is not over.
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// A new migration, a rehearsal of one, or what it would do.
///
/// # Errors
/// [`Error::MigrateUndone`] when it failed and all was undone, with the exit code of what failed.
pub fn run(progress: &Progress, app: &App, options: &Options) -> Result<Report> {
    let platform = Platform::new(&app.platform, &app.herd, &app.name)?;
    let directory = journal::directory(&app.name)?;
    let kind = if options.rehearse { Kind::Rehearsal } else { Kind::Migration };
    let doing = if options.rehearse { "a rehearsal" } else { "begun" };
    let _lock = lock(&directory, app, doing)?;
    if let Some(journal) = unfinished(&directory, &platform)? {
        let step = how_far(&journal);
        return Err(Error::MigrateUnfinished { app: app.name.clone(), id: journal.id, step });
    }
    platform.check_app()?;
    let journal = new_journal(kind, app, &platform, options)?;
    let mut work = Work {
        progress,
        platform: &platform,
        journal,
        directory,
        dry: options.dry_run,
        confirmed: false,
        came_later: false,
    };
    work.hide_secrets();
    if options.dry_run {
        return dry_run(&mut work);
    }
    work.save()?;
    platform.record_in(Some(journal::child_path(&work.directory, &work.journal.id)));
    go(&mut work)
}

fn new_journal(kind: Kind, app: &App, platform: &Platform, options: &Options) -> Result<Journal> {
    let (to, plan) = match &options.to {
        To::Instance(name) => (Some(name.clone()), None),
        To::Plan(plan) => (None, plan.clone()),
    };
    let from = match &options.from {
        From::Variable(name) => Some(name.clone()),
        From::Url(_) => None,
    };
    let wanted = Wanted {
        from,
        to,
        plan,
        colour: options.colour.clone(),
        newer: options.newer,
        no_owner: options.no_owner,
        jobs: options.jobs,
        wait: options.wait.as_secs(),
        terminate: options.terminate,
    };
    let mut journal = Journal::new(kind, &app.name, &platform.name(), wanted)?;
    if let From::Url(url) = &options.from {
        let at = address_of(url.expose()).ok_or_else(|| Error::MigrateUsage {
            why: "what was given as URL is no postgres:// URL".into(),
            hint: "postgres://USER:PASSWORD@HOST:PORT/DATABASE".into(),
        })?;
        journal.source = Some(Source {
            variable: None,
            url: Hidden::new(url.expose()),
            instance: None,
            address: at.address,
            database: at.database,
        });
    }
    Ok(journal)
}

fn dry_run(work: &mut Work) -> Result<Report> {
    let table = table_of(work.journal.kind);
    for step in table.iter().filter(|step| ["check", "check-target"].contains(&step.name)) {
        // The target of a plan is not there yet.
        if step.name == "check" || steps::url_of_target(work)? {
            (step.run)(work)?;
        }
    }
    Ok(work.report())
}

/// Forward, from wherever it is.
fn go(work: &mut Work) -> Result<Report> {
    let table = table_of(work.journal.kind);
    match (way::forward(work, table), work.journal.kind) {
        (Ok(()), Kind::Migration) => {
            work.journal.error = None;
            work.enter(State::Done)?;
            Ok(work.report())
        }
        (Ok(()), Kind::Rehearsal) => {
            work.enter(State::Undoing)?;
            let back = way::back(work, table);
            come_back(work, back)
        }
        (Err(stopped), _) => Err(stop(work, table, stopped)),
    }
}

/// What to do about a failure: undo all, or, where the app may have written already, leave the rest to `--resume`.
fn stop(work: &mut Work, table: &'static [Step], stopped: Stopped) -> Error {
    let Stopped { step, error: cause } = stopped;
    let app = work.journal.app.clone();
    work.journal.error = Some(format!("{step}: {cause}"));
    let step = step.to_owned();
    let marks = work.journal.forward.steps.values().filter(|record| record.mark != Mark::Waiting).count();
    if step == "check" && marks == 1 {
        // Nothing has begun: nobody has to know of it later.
        let path = journal::path(&work.directory, &work.journal.id);
        let _ = std::fs::remove_file(&path);
        return *cause;
    }
    if work.journal.kind == Kind::Migration {
        keep_what_was_written(work);
    }
    if work.journal.kind == Kind::Migration && work.is_past() {
        let _ = work.save();
        return Error::MigrateStopped { app, step, cause, forward: true };
    }
    work.progress.warn(format!("{step}: {cause}; undoing what was done"));
    if let Err(error) = work.enter(State::Undoing) {
        work.progress.warn(format!("the journal is behind: {error}"));
    }
    let back = way::back(work, table);
    if let Some(at) = back.interrupted {
        let _ = work.save();
        let cause = Box::new(Error::Interrupted);
        return Error::MigrateStopped { app, step: format!("the way back, at {at}"), cause, forward: false };
    }
    let up = is_up(&back);
    if back.left.is_empty() {
        let _ = work.enter(State::Undone);
    }
    Error::MigrateUndone { app, step, cause, left: back.left, up }
}

/// A run that was killed after it had bound the app anew may have made somebody bring the app up by hand. What was
/// written to the new database since must not be cleared: it goes only forward from there, or back the long way, which
/// names it.
fn keep_what_was_written(work: &mut Work) {
    if !work.came_later || !work.is_bound() || work.is_past() {
        return;
    }
    let nothing =
        work.tell_target("changes").is_ok_and(|answer| answer.as_array().is_some_and(Vec::is_empty));
    if !nothing {
        let target = work.target_name();
        work.warn(format!("{} has, or may have, written to {target} already", work.journal.app));
        let record = work.journal.forward.steps.entry("maintenance-off".into()).or_default();
        record.mark = Mark::Doing;
        work.journal.state = State::Running;
    }
}

/// The app runs again, on the database that it had.
fn is_up(back: &Back) -> bool {
    ["rebind", "quiesce", "maintenance", "scale-down"].iter().all(|step| !back.steps.contains(step))
}

/// The end of a way back that was asked for.
fn come_back(work: &mut Work, back: Back) -> Result<Report> {
    let app = work.journal.app.clone();
    if let Some(at) = back.interrupted {
        let _ = work.save();
        let (step, cause) = (format!("the way back, at {at}"), Box::new(Error::Interrupted));
        return Err(Error::MigrateStopped { app, step, cause, forward: false });
    }
    if !back.left.is_empty() {
        let up = is_up(&back);
        return Err(Error::MigrateLeft { app, left: back.left, exit: back.exit.unwrap_or(1), up });
    }
    work.enter(State::Undone)?;
    Ok(work.report())
}

/// Opens the journal of an unfinished migration, when nobody else has it, and ends what a killed run left running.
fn open<'a>(
    progress: &'a Progress,
    platform: &'a Platform,
    journal: Journal,
    directory: PathBuf,
) -> Work<'a> {
    let record = journal::child_path(&directory, &journal.id);
    let work =
        Work { progress, platform, journal, directory, dry: false, confirmed: false, came_later: true };
    work.hide_secrets();
    if let Some(what) = end_left_behind(&record) {
        progress.step(format!("what the run before has left running is ended: {what}"));
    }
    platform.record_in(Some(record));
    work
}

/// Goes on with one that was killed, or stopped where it only goes forward.
pub fn resume(progress: &Progress, app: &App) -> Result<Report> {
    let platform = Platform::new(&app.platform, &app.herd, &app.name)?;
    let directory = journal::directory(&app.name)?;
    let _lock = lock(&directory, app, "resumed")?;
    let journal = unfinished(&directory, &platform)?.ok_or_else(|| nothing(app, "to be resumed"))?;
    if journal.state != State::Running || journal.kind == Kind::Rehearsal {
        return Err(Error::MigrateRefused {
            why: format!(
                "the migration {} of {} is on its way back: {}",
                journal.id,
                app.name,
                how_far(&journal)
            ),
            hint: "--rollback completes that; then begin again".into(),
        });
    }
    platform.check_app()?;
    let mut work = open(progress, &platform, journal, directory);
    // Somebody may have brought the app up by hand since, or freed the source.
    if work.journal.mark("scale-up") == Mark::Waiting {
        for step in ["maintenance", "scale-down", "quiesce"] {
            if let Some(record) = work.journal.forward.steps.get_mut(step).filter(|r| r.mark == Mark::Done) {
                record.mark = Mark::Doing;
            }
        }
    }
    go(&mut work)
}

fn nothing(app: &App, what: &str) -> Error {
    Error::MigrateImpossible {
        why: format!("there is no migration of {} {what} on this machine", app.name),
        hint: "--status shows the last ones; their journals are in XDG_STATE_HOME of who began them".into(),
    }
}

/// Goes back: of one that is not over undoes what was done; of one that was done brings the app back to the old
/// database, which is as it was when the app left it. `confirm` is the app's name, when what was written since may be
/// lost.
pub fn rollback(progress: &Progress, app: &App, confirm: Option<&str>) -> Result<Report> {
    let platform = Platform::new(&app.platform, &app.herd, &app.name)?;
    let directory = journal::directory(&app.name)?;
    check_confirm(app, confirm)?;
    let _lock = lock(&directory, app, "rolled back")?;
    let last = || {
        let (found, _) = journal::all(&directory, &platform.name());
        found.into_iter().find(|j| j.kind == Kind::Migration && j.state != State::Undone)
    };
    let found = match unfinished(&directory, &platform)? {
        Some(journal) => Some(journal),
        None => last().filter(|journal| journal.state == State::Done),
    };
    let journal = found.ok_or_else(|| nothing(app, "to be rolled back"))?;
    platform.check_app()?;
    let mut work = open(progress, &platform, journal, directory);
    work.confirmed = confirm.is_some();
    let is_forward = matches!(work.journal.state, State::Running | State::Undoing);
    if is_forward && work.journal.kind == Kind::Migration {
        keep_what_was_written(&mut work);
    }
    if is_forward && (work.journal.kind == Kind::Rehearsal || !work.is_past()) {
        work.enter(State::Undoing)?;
        let table = table_of(work.journal.kind);
        let back = way::back(&mut work, table);
        return come_back(&mut work, back);
    }
    if work.journal.state == State::KeepingNew {
        keep_new(&mut work)?;
    }
    if work.journal.state != State::RollingBack {
        work.journal.back = Some(journal::Leg::default());
        work.enter(State::RollingBack)?;
    }
    match way::forward(&mut work, steps::BACKWARD) {
        Ok(()) => {
            work.journal.error = None;
            work.enter(State::RolledBack)?;
            Ok(work.report())
        }
        Err(Stopped { step, error: cause }) => {
            let (app, step) = (app.name.clone(), step.to_owned());
            work.journal.error = Some(format!("{step}: {cause}"));
            if work.is_past() {
                let _ = work.save();
                return Err(Error::MigrateStopped { app, step, cause, forward: false });
            }
            if step == "changes" {
                work.journal.error = None;
                keep_new(&mut work)?;
                return Err(*cause);
            }
            progress.warn(format!("{step}: {cause}; {app} keeps the new database"));
            let _ = work.enter(State::KeepingNew);
            keep_new(&mut work)?;
            Err(Error::MigrateKept { app, step, cause })
        }
    }
}

/// Undoes what was done of the way back: the app has the new database, as before.
fn keep_new(work: &mut Work) -> Result<()> {
    let back = way::back(work, steps::BACKWARD);
    let app = work.journal.app.clone();
    if let Some(at) = back.interrupted {
        let _ = work.save();
        let step = format!("undoing the way back, at {at}");
        return Err(Error::MigrateStopped { app, step, cause: Box::new(Error::Interrupted), forward: false });
    }
    if !back.left.is_empty() {
        let up = is_up(&back);
        return Err(Error::MigrateLeft { app, left: back.left, exit: back.exit.unwrap_or(1), up });
    }
    work.journal.back = None;
    let whole = steps::FORWARD.iter().all(|step| work.journal.forward_mark(step.name) == Mark::Done);
    work.enter(if whole { State::Done } else { State::Running })
}

fn check_confirm(app: &App, confirm: Option<&str>) -> Result<()> {
    match confirm {
        Some(name) if name != app.name => Err(Error::MigrateRefused {
            why: format!("--confirm {name} does not match the app {}; nothing was done", app.name),
            hint: String::new(),
        }),
        _ => Ok(()),
    }
}

/// What was abandoned.
#[derive(Debug, Serialize)]
pub struct Abandoned {
    /// The app.
    pub app: String,
    /// The database.
    pub database: String,
    /// What the agent says was there.
    pub was: Value,
}

/// Frees a source whose migration nobody can complete, as the journal of it is lost.
pub fn abandon(
    progress: &Progress,
    app: &App,
    options: &Options,
    confirm: Option<&str>,
) -> Result<Abandoned> {
    let platform = Platform::new(&app.platform, &app.herd, &app.name)?;
    let directory = journal::directory(&app.name)?;
    check_confirm(app, confirm)?;
    let _lock = lock(&directory, app, "abandoned")?;
    if let (Some(journal), _) = {
        let (found, bad) = journal::all(&directory, &platform.name());
        (found.into_iter().find(|journal| !journal.state.is_over()), bad)
    } {
        let step = how_far(&journal);
        return Err(Error::MigrateUnfinished { app: app.name.clone(), id: journal.id, step });
    }
    platform.check_app()?;
    let journal = new_journal(Kind::Migration, app, &platform, options)?;
    let mut work = Work {
        progress,
        platform: &platform,
        journal,
        directory,
        dry: true,
        confirmed: false,
        came_later: false,
    };
    find::source(&mut work, &platform.config()?, &platform.instances()?)?;
    work.hide_secrets();
    let name = work.source_name();
    if confirm.is_none() {
        return Err(Error::MigrateRefused {
            why: format!("{name} would be writable again, and free for whoever comes; nothing was done"),
            hint: format!("when its migration can be completed nowhere, add --confirm {}", app.name),
        });
    }
    let was = work.abandon()?;
    Ok(Abandoned { app: app.name.clone(), database: name, was })
}

/// The last migrations of the app on this machine, the newest first.
pub fn status(progress: &Progress, app: &App) -> Result<Vec<Report>> {
    let platform = Platform::new(&app.platform, &app.herd, &app.name)?;
    let directory = journal::directory(&app.name)?;
    let (found, bad) = journal::all(&directory, &platform.name());
    for error in bad {
        progress.warn(error.to_string());
    }
    let report = |journal: Journal| {
        let directory = directory.clone();
        let platform = &platform;
        let work =
            Work { progress, platform, journal, directory, dry: false, confirmed: false, came_later: true };
        work.hide_secrets();
        work.report()
    };
    Ok(found.into_iter().map(report).collect())
}

/// Where it stands, in a few words.
fn how_far(journal: &Journal) -> String {
    let leg = journal.leg();
    let table = if journal.back.is_some() { steps::BACKWARD } else { table_of(journal.kind) };
    let at = |mark: Mark| table.iter().find(|s| leg.steps.get(s.name).is_some_and(|r| r.mark == mark));
    let since = time_text(journal.started as i64);
    let by = &journal.by;
    match (at(Mark::Undoing), at(Mark::Doing)) {
        (Some(step), _) => format!("begun by {by} at {since}, on the way back at {}", step.name),
        (_, Some(step)) => format!("begun by {by} at {since}, at {}", step.name),
        _ => format!("begun by {by} at {since}"),
    }
}

/// See [`steps::predicted_text`].
pub fn predicted_text(seconds: f64) -> String {
    steps::predicted_text(seconds)
}
