//! Does what the schedule asks for: on a primary a backup of each database every night, then the retention, then a
//! verification when one is due. Decides purely (`crate::backups`), then acts; by hand, by a timer, or in a loop under
//! supervisor.

use super::super::Context;
use super::super::enslave::here::has_standby_file;
use super::super::fork;
use super::super::primary::address;
use super::super::standby;
use super::{capture, now, schedule};
use crate::backups::manifest::{BackupId, By, Kind};
use crate::backups::retention::{self, Backup, Decision};
use crate::backups::schedule::{Due, Try, Verification, due, failures_with, night, verification_due};
use crate::checked;
use crate::durable::{self, Context as _, Lock};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::process;
use crate::progress::{Progress, bytes_text, time_text};
use crate::sql::{Db, Target};
use crate::store::catalog::Listed;
use crate::store::{self, Store, catalog};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What was done, or would be.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// Why there is nothing to do here: a standby, the schedule is off.
    pub idle: Option<String>,
    /// The plan.
    pub plan: Option<String>,
    /// Each database and whether its backup is due.
    pub databases: Vec<Database>,
    /// Each backup of this cluster and whether it stays.
    pub retention: Vec<Decision>,
    /// The verification that is due.
    pub verification: Option<Verifying>,
    /// When there is something to do again, seconds since 1970.
    pub next: Option<i64>,
}

/// One database.
#[derive(Debug, Serialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// What is to be done, and why.
    #[serde(flatten)]
    pub due: Due,
    /// The backup that was taken.
    pub taken: Option<BackupId>,
    /// Its bytes.
    pub size: Option<u64>,
}

/// A verification.
#[derive(Debug, Serialize)]
pub struct Verifying {
    /// Of which backup.
    pub id: BackupId,
    /// Why.
    pub reason: String,
    /// It was done, and the backup is good.
    pub done: bool,
}

/// What the schedule did last on this instance; `backup-last.json` in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Last {
    /// When, and whether it went well.
    #[serde(flatten)]
    pub tried: Try,
    /// The process that is, or was, at it.
    pub pid: u32,
    /// It came to its end, in whichever way.
    pub over: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// The databases that are backed up.
    pub databases: Vec<String>,
    /// The last verification that was begun.
    pub verification: Option<LastVerification>,
}

/// The last verification by the schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastVerification {
    /// When, seconds since 1970.
    pub at: i64,
    /// Of which backup.
    pub id: BackupId,
    /// What is wrong.
    pub error: Option<String>,
}

fn last_path(instance: &Instance) -> PathBuf {
    instance.state_directory.join("backup-last.json")
}

/// What was done last; none when nothing was.
///
/// # Errors
/// Why nobody knows: which file is damaged. What is done next is written over it.
pub fn last(instance: &Instance) -> std::result::Result<Option<Last>, String> {
    let path = last_path(instance);
    let read = match std::fs::read(&path) {
        Ok(bytes) => checked::from_json(&bytes).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    read.map_err(|why| format!("what the schedule did last is not known, {}: {why}", path.display()))
}

fn remember(instance: &Instance, last: &Last) -> Result<()> {
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&last_path(instance), &checked::json(last), 0o600)
}

/// As if nothing had been begun.
fn forget_try(instance: &Instance, before: Option<&Last>) -> Result<()> {
    match before {
        Some(before) => remember(instance, before),
        None => std::fs::remove_file(last_path(instance)).on("remove", &last_path(instance)),
    }
}

/// What this instance is to the schedule.
pub enum Role {
    /// Here it runs.
    Primary(Box<Db>),
    /// Here it does not.
    Idle {
        /// Why, as a sentence.
        why: String,
        /// It is another instance's affair: this one is a standby, or fenced.
        elsewhere: bool,
    },
}

/// Finds it out.
pub fn role(instance: &Instance) -> Result<Role> {
    let name = &instance.name;
    let idle = |why: String, elsewhere| Ok(Role::Idle { why, elsewhere });
    let standby = |primary: Option<String>| match primary {
        Some(at) => format!("{name} is a standby: the backups are for its primary to take, {at}"),
        None => format!("{name} is a standby: the backups are for its primary to take"),
    };
    let data = instance.data_directory()?;
    if let Some(why) = instance.fenced() {
        return idle(format!("{name} is fenced: {why}"), true);
    }
    if fork::note(instance).exists() {
        // Not another's affair: nobody is told that all is well where a fork was given up.
        let note = fork::note(instance);
        let why = format!("the fork of {name} is not through; run it again, or remove {}", note.display());
        return idle(why, false);
    }
    if has_standby_file(&data) {
        let conninfo = standby::primary_conninfo_in_files(&data)?;
        return idle(standby(conninfo.as_ref().and_then(address)), true);
    }
    if instance.running().is_none() {
        return idle(format!("the server of {name} does not run"), false);
    }
    let mut db = Db::connect(&Target::local(instance)?)?;
    if db.in_recovery()? {
        let conninfo = standby::primary_conninfo(&mut db, &data)?;
        return idle(standby(conninfo.as_ref().and_then(address)), true);
    }
    Ok(Role::Primary(Box::new(db)))
}

/// Does what is due.
///
/// # Errors
/// The first of what failed; all the rest is done all the same.
pub fn run(context: Context, dry_run: bool) -> Result<Report> {
    let instance = context.instance;
    let report = Report { instance: instance.name.clone(), dry_run, ..Report::default() };
    let mut db = match role(instance)? {
        Role::Primary(db) => db,
        Role::Idle { why, .. } => return Ok(Report { idle: Some(why), ..report }),
    };
    let Some(plan) = schedule::recorded(&mut db)? else {
        let off = "the schedule is off; `pgmahout backup schedule auto-month` turns it on";
        return Ok(Report { idle: Some(off.into()), ..report });
    };
    // Two at once would both find the same backup missing.
    let _lock = match dry_run {
        true => None,
        false => Some(Lock::take(&instance.state_directory.join("backup-auto.lock"), "backup auto")?),
    };
    let before = match last(instance) {
        Ok(last) => last,
        Err(why) => {
            context.progress.warn(why);
            if !dry_run {
                forget_try(instance, None)?;
            }
            None
        }
    };
    let mut pass = Pass {
        context,
        report: Report { plan: Some(plan), ..report },
        last: before.clone(),
        failed: None,
        began: false,
        fresh: None,
    };
    let failed = match pass.run(&mut db) {
        Ok(()) => pass.failed.take(),
        Err(error) => Some(error),
    };
    if let Some(error) = failed {
        match error {
            // Whoever ends it, or is at work at the same time, does not make it fail: it is done anew soon.
            Error::Interrupted | Error::Locked { .. } if pass.began => forget_try(instance, before.as_ref())?,
            Error::Interrupted | Error::Locked { .. } => {}
            _ if dry_run => {}
            _ => pass.end(Some(error.to_string()))?,
        }
        return Err(error);
    }
    if pass.began {
        pass.end(None)?;
    }
    Ok(pass.report)
}

/// Restores and compares it.
fn verify(context: Context, id: BackupId) -> Result<()> {
    let report = super::verify::run(context, id)?;
    if report.good { Ok(()) } else { Err(Error::NotVerified { id: id.to_string(), why: report.text }) }
}

/// One run of it.
struct Pass<'a> {
    context: Context<'a>,
    report: Report,
    last: Option<Last>,
    failed: Option<Error>,
    /// It is recorded that something was begun.
    began: bool,
    /// How many failures in a row this one would make.
    fresh: Option<u32>,
}

impl Pass<'_> {
    fn run(&mut self, db: &mut Db) -> Result<()> {
        let context = self.context;
        let instance = context.instance;
        let store = store::open(instance)?;
        let names = databases(db)?;
        let system_id = instance.control()?.map(|control| control.system_id);
        let lineage = schedule::lineage(db)?;
        let own = |store: &dyn Store| -> Result<Vec<Listed>> {
            let all = catalog::list(store, context.progress)?.into_iter();
            let is_own =
                |listed: &Listed| schedule::is_own(instance, system_id, lineage.as_deref(), &listed.manifest);
            Ok(all.filter(is_own).collect())
        };
        let listed = own(&*store)?;
        let tried = self.last.as_ref().map(|last| last.tried.clone());
        let minutes = instance.backup.time;
        for name in &names {
            let due = due(last_of(&listed, name), tried.as_ref(), minutes, now());
            self.report.databases.push(Database { name: name.clone(), due, taken: None, size: None });
        }
        self.capture_all(&names)?;
        let listed = if self.began { own(&*store)? } else { listed };
        self.retain(&*store, &listed)?;
        let listed = if self.report.retention.iter().any(|d| !d.keep) { own(&*store)? } else { listed };
        self.verify(&listed, &names)?;
        self.report.next = Some(self.next());
        self.recover(&listed, &names)
    }

    fn capture_all(&mut self, names: &[String]) -> Result<()> {
        let context = self.context;
        let is_due = |database: &Database| matches!(database.due, Due::Now { .. });
        if self.report.dry_run || !self.report.databases.iter().any(is_due) {
            return Ok(());
        }
        self.begin(names)?;
        for database in self.report.databases.iter_mut().filter(|database| is_due(database)) {
            process::check_interrupt()?;
            let options = capture::Options {
                database: Some(database.name.clone()),
                kind: Kind::Logical,
                by: By::Schedule,
                compression: None,
                jobs: None,
                after: None,
                dry_run: false,
            };
            match capture::run(context, &options) {
                Ok(done) => {
                    database.taken = Some(done.id);
                    database.size = done.manifest.as_ref().map(|manifest| manifest.size);
                    let size = database.size.map(bytes_text).unwrap_or_default();
                    context.progress.step(format!("{}: {}, {size}", done.id, database.name));
                    done.warnings.iter().for_each(|warning| context.progress.detail(warning));
                }
                Err(error) => {
                    // What a signal to the whole group did to a child is no failure either.
                    process::check_interrupt()?;
                    self.failed = later(context, self.failed.take(), &database.name, error);
                }
            }
        }
        Ok(())
    }

    /// Before anything is done: what is killed then counts as failed, and is not tried again and again at once.
    fn begin(&mut self, names: &[String]) -> Result<()> {
        let instance = self.context.instance;
        let (at, minutes) = (now(), instance.backup.time);
        let failures = failures_with(self.last.as_ref().map(|last| &last.tried), minutes, at);
        self.fresh = Some(failures);
        let last = Last {
            tried: Try { at, ok: false, failures },
            pid: std::process::id(),
            over: false,
            error: None,
            databases: names.to_vec(),
            verification: self.last.as_ref().and_then(|last| last.verification.clone()),
        };
        remember(instance, &last)?;
        self.last = Some(last);
        self.began = true;
        Ok(())
    }

    fn end(&mut self, error: Option<String>) -> Result<()> {
        if !self.began {
            self.begin(&[])?;
        }
        let failures = if error.is_none() { 0 } else { self.fresh.unwrap_or(1) };
        if let Some(last) = &mut self.last {
            last.tried = Try { ok: error.is_none(), failures, ..last.tried };
            (last.over, last.error) = (true, error);
            remember(self.context.instance, last)?;
        }
        Ok(())
    }

    fn retain(&mut self, store: &dyn Store, listed: &[Listed]) -> Result<()> {
        let context = self.context;
        let (keep, _) = schedule::keep(context.instance, self.report.plan.as_deref());
        let backups: Vec<Backup> = listed.iter().map(facts).collect();
        self.report.retention = retention::plan(&backups, keep, now());
        let removed: Vec<&Decision> = self.report.retention.iter().filter(|d| !d.keep).collect();
        if self.report.dry_run || removed.is_empty() {
            return Ok(());
        }
        let _lock = match super::lock(context, "backup auto") {
            // It is restored from, or verified: nothing is urgent about removing.
            Err(error @ Error::Locked { .. }) => {
                context.progress.warn(format!("nothing is removed this time: {error}"));
                return Ok(());
            }
            other => other?,
        };
        for decision in removed {
            process::check_interrupt()?;
            let of = listed.iter().find(|listed| listed.manifest.id == decision.id);
            let Some(Listed { manifest, .. }) = of else { continue };
            match catalog::remove(store, manifest) {
                Ok(()) => context.progress.step(format!("{} is {}", decision.id, decision.reason)),
                Err(error) => {
                    self.failed = later(context, self.failed.take(), &decision.id.to_string(), error);
                }
            }
        }
        Ok(())
    }

    /// The newest backup of the first database for which it is due: one each night.
    fn verify(&mut self, listed: &[Listed], names: &[String]) -> Result<()> {
        let context = self.context;
        let settings = &context.instance.backup;
        let tried = self.last.as_ref().and_then(|last| last.verification.as_ref()).map(|v| v.at);
        let due = names.iter().find_map(|name| {
            let newest = newest_of(listed, name)?;
            let last = last_verification(listed, name);
            let reason = verification_due(last, tried, settings.verify_days, settings.time, now())?;
            Some(Verifying { id: newest.manifest.id, reason, done: false })
        });
        let Some(mut verifying) = due else { return Ok(()) };
        if !self.report.dry_run {
            if !self.began {
                self.begin(names)?;
            }
            let outcome = verify(context, verifying.id);
            process::check_interrupt()?;
            let record = LastVerification {
                at: now(),
                id: verifying.id,
                error: outcome.as_ref().err().map(ToString::to_string),
            };
            if let Some(last) = &mut self.last {
                last.verification = Some(record);
            }
            verifying.done = outcome.is_ok();
            if let Err(error) = outcome {
                self.failed = later(context, self.failed.take(), &verifying.id.to_string(), error);
            }
        }
        self.report.verification = Some(verifying);
        Ok(())
    }

    /// What failed is over once nothing is missing: a store that was away for a moment while no backup was due would
    /// be a failure until the next night.
    fn recover(&mut self, listed: &[Listed], names: &[String]) -> Result<()> {
        let minutes = self.context.instance.backup.time;
        let is_there =
            |name: &String| matches!(due(last_of(listed, name), None, minutes, now()), Due::Later { .. });
        let is_idle = !self.began && !self.report.dry_run && self.failed.is_none();
        match &mut self.last {
            Some(last) if is_idle && !last.tried.ok && names.iter().all(is_there) => {
                last.tried = Try { ok: true, failures: 0, ..last.tried };
                (last.over, last.error, last.databases) = (true, None, names.to_vec());
                remember(self.context.instance, last)
            }
            _ => Ok(()),
        }
    }

    /// When there is something to do again.
    fn next(&self) -> i64 {
        let (now, minutes) = (now(), self.context.instance.backup.time);
        let tomorrow = night(now, minutes) + 86_400;
        let waits = self.report.databases.iter().filter_map(|database| match &database.due {
            Due::Later { at, .. } => Some(*at),
            Due::Now { .. } if database.taken.is_none() => Some(now),
            Due::Now { .. } => None,
        });
        waits.min().unwrap_or(tomorrow).min(tomorrow)
    }
}

/// The first error is the answer; the next ones are told.
fn later(context: Context, first: Option<Error>, of: &str, error: Error) -> Option<Error> {
    match first {
        Some(first) => {
            context.progress.warn(format!("{of}: {error}"));
            Some(first)
        }
        None => {
            context.progress.step(format!("{of} failed"));
            Some(error)
        }
    }
}

/// Every database that one can connect to and that is no template; `postgres` only when it holds something, or when
/// there is no other.
pub fn databases(db: &mut Db) -> Result<Vec<String>> {
    let rows = db.rows(
        // What a restore fills, or has replaced, is none for anybody.
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' \
         AND datname !~ '_pgmahout_(restore|old)_[0-9a-f]{8}$' ORDER BY datname",
        &[],
    )?;
    let mut names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    // 16384: FirstNormalObjectId. What an extension brought is there again with the extension.
    let used = "SELECT EXISTS (SELECT 1 FROM pg_class c WHERE oid >= 16384 AND relkind <> 't' \
         AND relpersistence <> 't' AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_') \
         AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid \
                         AND deptype = 'e')) \
         OR EXISTS (SELECT 1 FROM pg_proc p WHERE oid >= 16384 \
                    AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE classid = 'pg_proc'::regclass \
                                    AND objid = p.oid AND deptype = 'e')) \
         OR EXISTS (SELECT 1 FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_') \
         OR EXISTS (SELECT 1 FROM pg_largeobject_metadata)";
    if names.is_empty() || db.value::<bool>(used, &[])? {
        names.push("postgres".into());
    }
    Ok(names)
}

fn facts(listed: &Listed) -> Backup {
    let manifest = &listed.manifest;
    Backup {
        id: manifest.id,
        kind: manifest.kind,
        database: manifest.database.clone(),
        at: manifest.started,
        bad: is_bad(listed),
    }
}

/// A verification found it damaged.
pub fn is_bad(listed: &Listed) -> bool {
    listed.verified.as_ref().is_some_and(|verified| !verified.good)
}

fn logical<'a>(listed: &'a [Listed], database: &'a str) -> impl Iterator<Item = &'a Listed> {
    listed
        .iter()
        .filter(move |l| l.manifest.kind == Kind::Logical && l.manifest.database.as_deref() == Some(database))
}

/// When the last scheduled backup of a database was begun.
fn last_of(listed: &[Listed], database: &str) -> Option<i64> {
    let scheduled = logical(listed, database).filter(|l| l.manifest.id.by == By::Schedule && !is_bad(l));
    scheduled.max_by_key(|l| l.manifest.id.number).map(|l| l.manifest.started)
}

fn newest_of<'a>(listed: &'a [Listed], database: &'a str) -> Option<&'a Listed> {
    let scheduled = logical(listed, database).filter(|l| l.manifest.id.by == By::Schedule);
    scheduled.max_by_key(|l| l.manifest.id.number)
}

fn last_verification(listed: &[Listed], database: &str) -> Option<Verification> {
    let verified = logical(listed, database).filter_map(|l| Some((l, l.verified.as_ref()?)));
    let (of, last) = verified.max_by_key(|(_, verified)| verified.at)?;
    let newer = newest_of(listed, database).is_some_and(|newest| newest.manifest.id != of.manifest.id);
    Some(Verification { at: last.at, good: last.good, newer })
}

/// How often the loop looks what this instance is, what the clock says and whether the schedule is on.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// So much more than it slept: the clock was set, or the machine was asleep.
const CLOCK_JUMP: i64 = 90;
/// After an error that is not a backup's, and that a pass cannot remember by itself.
const AFTER_ERROR: i64 = 300;

/// Does what is due whenever it is, until it is interrupted. One line for each event.
/// `reload` gives the instance with the settings of now: where the backups go may be set while it runs.
pub fn run_loop(progress: &Progress, reload: &dyn Fn() -> Result<Instance>) -> Result<()> {
    let mut state = Loop { progress, reload, said: String::new(), next: 0, looked: None, known: Vec::new() };
    loop {
        match state.look() {
            Err(Error::Interrupted) => return Ok(()),
            Err(error) => state.say(format!("error: {error}")),
            Ok(()) => {}
        }
        let until = Instant::now() + LOOK_EVERY;
        let due = state.next;
        while Instant::now() < until && !(due > 0 && (due..due + 2).contains(&now())) {
            if process::check_interrupt().is_err() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

struct Loop<'a> {
    progress: &'a Progress,
    reload: &'a dyn Fn() -> Result<Instance>,
    /// The last thing that was said; it is not said again and again.
    said: String,
    /// When a pass is due, seconds since 1970; 0: at once.
    next: i64,
    looked: Option<(i64, Instant)>,
    /// The databases of the last pass.
    known: Vec<String>,
}

impl Loop<'_> {
    fn say(&mut self, text: String) {
        if self.said != text {
            self.progress.step(format!("{} {text}", time_text(now())));
            self.said = text;
        }
    }

    fn look(&mut self) -> Result<()> {
        process::check_interrupt()?;
        let instance = (self.reload)()?;
        let context = Context { instance: &instance, progress: self.progress };
        let (clock, passed) = (now(), Instant::now());
        if let Some((then, since)) = self.looked.replace((clock, passed)) {
            let expected = then + passed.duration_since(since).as_secs() as i64;
            if (clock - expected).abs() > CLOCK_JUMP {
                self.say(format!("the clock was set from {}", time_text(expected)));
                self.next = 0;
            }
        }
        // Whatever it is, once it is over everything is looked at anew.
        let plan = match role(&instance)? {
            Role::Idle { why, .. } => Err(why),
            Role::Primary(mut db) => match schedule::recorded(&mut db)? {
                None => Err("the schedule is off".to_owned()),
                Some(_) => Ok(databases(&mut db)?),
            },
        };
        match plan {
            Err(why) => {
                self.next = 0;
                self.say(why);
                Ok(())
            }
            // A new one has no backup yet, which `backup check` says at once.
            Ok(names) if clock < self.next && names.iter().all(|name| self.known.contains(name)) => Ok(()),
            Ok(names) => {
                self.known = names;
                self.pass(context)
            }
        }
    }

    fn pass(&mut self, context: Context) -> Result<()> {
        match run(context, false) {
            Ok(report) => {
                let Some(next) = report.next else { return Ok(()) };
                if let Some(Verifying { id, done: false, reason }) = &report.verification {
                    self.say(format!("{id} is to be verified: {reason}; pgmahout backup verify {id}"));
                }
                self.next = next;
                self.say(format!("the next backup is due at {}", time_text(next)));
                Ok(())
            }
            Err(Error::Interrupted) => Err(Error::Interrupted),
            // Somebody takes one by hand, restores, verifies: soon again.
            Err(error @ Error::Locked { .. }) => Err(error),
            Err(error) => {
                let last = last(context.instance).ok().flatten();
                let wait = last.map(|last| last.tried).filter(|tried| !tried.ok);
                let again = wait.map(|tried| due(None, Some(&tried), context.instance.backup.time, now()));
                self.next = match again {
                    Some(Due::Later { at, .. }) => at,
                    _ => now() + AFTER_ERROR,
                };
                self.said.clear();
                self.say(format!("failed, and tried again at {}: {error}", time_text(self.next)));
                Ok(())
            }
        }
    }
}
