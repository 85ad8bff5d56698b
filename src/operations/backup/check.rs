//! Says for monitoring whether there is a good backup that is young enough, and whether the schedule does its work.

use super::super::Context;
use super::auto::{self, Role};
use super::{now, schedule};
use crate::backups::manifest::{BackupId, Kind};
use crate::error::{Error, Result};
use crate::process;
use crate::progress::{duration_text, time_text};
use crate::store::catalog::Listed;
use crate::store::{self, catalog};
use serde::Serialize;
use std::time::Duration;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Ok,
    /// It is another instance's affair.
    Elsewhere,
    /// There is no good backup.
    None,
    /// The last good one is too old.
    Old,
    /// The last try, or the last verification, failed; or the store cannot be asked.
    Failed,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// How it is.
    pub status: Status,
    /// Nobody has to be called.
    pub good: bool,
    /// One line.
    pub text: String,
    /// The last good backup, of the database that is worst off.
    pub id: Option<BackupId>,
    /// Its age in seconds; negative when its time is still to come.
    pub age: Option<i64>,
    /// The plan of the schedule, as far as it can be asked.
    pub plan: Option<String>,
}

/// Looks. With `max_age` the store is judged on every instance; without, only where the schedule runs.
pub fn run(context: Context, max_age: Option<Duration>) -> Result<Report> {
    let instance = context.instance;
    let mut found = Found { plan: None, databases: None };
    let mut lineage = None;
    match auto::role(instance) {
        Ok(Role::Idle { why, elsewhere: true }) if max_age.is_none() => {
            let report = found.report(context, Status::Elsewhere, format!("OK: {why}"));
            return Ok(report);
        }
        Ok(Role::Primary(mut db)) => {
            found.plan = schedule::recorded(&mut db)?;
            lineage = Some(schedule::lineage(&mut db)?);
            found.databases = Some(auto::databases(&mut db)?);
        }
        // A server that is down does not make its backups old: they are judged as they are.
        Ok(Role::Idle { .. }) | Err(_) => {}
    }
    let (last, damage) = match auto::last(instance) {
        Ok(last) => (last, None),
        Err(why) => (None, Some(why)),
    };
    if found.databases.is_none() {
        found.databases = last.as_ref().map(|last| last.databases.clone());
    }
    let store = store::open(instance)?;
    let system_id = instance.control().ok().flatten().map(|control| control.system_id);
    let all = match catalog::list(&*store, context.progress) {
        // Of a store that does not answer monitoring gets its line as well.
        Err(error) if !matches!(error, Error::Interrupted) => {
            return Ok(found.report(context, Status::Failed, format!("FAILED: {error}")));
        }
        other => other?,
    };
    let own = |listed: &Listed| match &lineage {
        Some(lineage) => schedule::is_own(instance, system_id, lineage.as_deref(), &listed.manifest),
        // The server cannot be asked; what can be told is told.
        None => system_id.is_none_or(|id| listed.manifest.system_id == id),
    };
    let listed: Vec<Listed> = all.into_iter().filter(own).collect();
    let limit = max_age.unwrap_or(instance.backup.max_age);
    let (status, text, worst) = found.judge(&listed, last.as_ref(), limit, &store.place(), now());
    let (status, text) = match damage {
        Some(why) => (Status::Failed, format!("FAILED: {why}; `pgmahout backup auto` writes it anew")),
        None => (status, text),
    };
    let mut report = found.report(context, status, text);
    report.id = worst.map(|worst| worst.manifest.id);
    report.age = worst.map(|worst| now() - worst.manifest.finished);
    Ok(report)
}

struct Found {
    plan: Option<String>,
    databases: Option<Vec<String>>,
}

impl Found {
    fn report(&self, context: Context, status: Status, text: String) -> Report {
        let good = matches!(status, Status::Ok | Status::Elsewhere);
        let instance = context.instance.name.clone();
        // One line, whatever an error text says.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Report { instance, status, good, text, id: None, age: None, plan: self.plan.clone() }
    }

    /// The worst comes first: nothing there, failed, too old.
    fn judge<'a>(
        &self,
        listed: &'a [Listed],
        last: Option<&auto::Last>,
        limit: Duration,
        place: &str,
        now: i64,
    ) -> (Status, String, Option<&'a Listed>) {
        let databases = self.databases.clone().unwrap_or_default();
        let good = |database: Option<&str>| {
            let of = move |l: &&Listed| {
                !auto::is_bad(l) && (database.is_none() || is_of(l, database.unwrap_or_default()))
            };
            // One whose time is still to come would look young for ever: those of now come first.
            let rank = move |l: &&Listed| (l.manifest.finished <= now, l.manifest.finished);
            listed.iter().filter(of).max_by_key(rank)
        };
        let mut newest: Vec<(&str, Option<&Listed>)> =
            databases.iter().map(|name| (name.as_str(), good(Some(name)))).collect();
        if newest.is_empty() {
            newest.push(("", good(None)));
        }
        let age = |l: &Listed| now - l.manifest.finished;
        let worst = newest.iter().min_by_key(|(_, l)| l.map_or(i64::MIN, |l| -age(l).abs()));
        let (name, worst) = worst.copied().unwrap_or(("", None));
        if let Some(text) = failed_try(last, listed, now) {
            return (Status::Failed, text, worst);
        }
        let Some(worst) = worst else {
            let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
            let off = if self.plan.is_none() { ", and the schedule is off" } else { "" };
            return (Status::None, format!("NONE: there is no good backup{of} in {place}{off}"), None);
        };
        if let Some(text) = failed_verification(last, listed) {
            return (Status::Failed, text, Some(worst));
        }
        let what = about(worst, now);
        let limit_text = duration_text(limit.as_secs_f64());
        match age(worst) {
            // Two clocks are never quite the same.
            a if a < -300 => {
                (Status::Old, format!("IN THE FUTURE: {what}; its age is not known"), Some(worst))
            }
            a if a > limit.as_secs() as i64 => {
                (Status::Old, format!("TOO OLD: {what}; it may be {limit_text}"), Some(worst))
            }
            _ => (Status::Ok, format!("OK: {what}"), Some(worst)),
        }
    }
}

fn is_of(listed: &Listed, database: &str) -> bool {
    listed.manifest.kind == Kind::Physical || listed.manifest.database.as_deref() == Some(database)
}

/// "a017 of shop, 3.2 h old, verified 2 days ago"
fn about(listed: &Listed, now: i64) -> String {
    let manifest = &listed.manifest;
    let of = manifest.database.as_deref().unwrap_or("the whole cluster");
    let age = match now - manifest.finished {
        ahead if ahead < 0 => format!("of {}", time_text(manifest.finished)),
        age => format!("{} old", days_text(age)),
    };
    let verified = match &listed.verified {
        Some(verified) if verified.at <= now => format!("verified {} ago", days_text(now - verified.at)),
        Some(verified) => format!("verified at {}", time_text(verified.at)),
        None => "not verified".into(),
    };
    format!("{} of {of}, {age}, {verified}", manifest.id)
}

fn days_text(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s => duration_text(s as f64),
    }
}

/// The schedule's last try failed, and nothing good has come since.
fn failed_try(last: Option<&auto::Last>, listed: &[Listed], now: i64) -> Option<String> {
    let last = last.filter(|last| !last.tried.ok)?;
    let at = time_text(last.tried.at);
    if !last.over && process::is_alive(last.pid as i32) {
        return None;
    }
    let since = |name: &String| {
        listed.iter().any(|l| {
            is_of(l, name) && !auto::is_bad(l) && (last.tried.at..=now).contains(&l.manifest.started)
        })
    };
    // Somebody has taken them by hand meanwhile; what else failed is still to be mended.
    if last.error.is_none() && !last.databases.is_empty() && last.databases.iter().all(since) {
        return None;
    }
    let why = last.error.as_deref().unwrap_or("it was ended before it was through");
    Some(format!("FAILED: last try at {at}: {why}"))
}

fn failed_verification(last: Option<&auto::Last>, listed: &[Listed]) -> Option<String> {
    let proven = listed.iter().filter_map(|l| l.verified.as_ref().map(|v| (v.at, l.manifest.id, v)));
    let newest = proven.max_by_key(|(at, ..)| *at);
    let tried = last.and_then(|last| last.verification.as_ref());
    match (newest, tried) {
        (Some((at, id, verified)), tried) if tried.is_none_or(|tried| tried.at <= at) => {
            let text = || format!("FAILED: verification of {id} at {}: {}", time_text(at), verified.text);
            (!verified.good).then(text)
        }
        (_, Some(tried)) => {
            let error = tried.error.as_ref()?;
            Some(format!("FAILED: verification of {} at {}: {error}", tried.id, time_text(tried.at)))
        }
        (_, None) => None,
    }
}
