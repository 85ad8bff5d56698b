//! Turns the schedule of backups on and off, and shows it. That it is on lies in the cluster itself, so a standby knows
//! it, and has it when it is promoted.

use super::super::{Context, primary};
use crate::backups::manifest::Manifest;
use crate::backups::retention::Keep;
use crate::backups::schedule::Plan;
use crate::error::Result;
use crate::instance::Instance;
use crate::layout::Service;
use crate::postgres::wal::SystemId;
use crate::settings::Origin;
use crate::sql::{Db, Target, literal};
use serde::Serialize;

/// Settings of the database `postgres` that the server itself does not know. They replicate, as postgresql.conf
/// does not.
const PLAN: &str = "pgmahout.backups";
/// Which succession of primaries this is: standbys have it too, a fork or a restored copy gets one of its own. The
/// system identifier cannot tell them apart.
const LINEAGE: &str = "pgmahout.lineage";

/// What is scheduled.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The plan; none when the schedule is off.
    pub plan: Option<String>,
    /// What it was before this command.
    pub before: Option<String>,
    /// HH:MM in UTC.
    pub time: String,
    /// How many backups stay.
    pub keep: Keep,
    /// Settings that say another number than the plan, each with where it was said.
    pub overridden: Vec<String>,
    /// It is a standby: the schedule is its primary's to run.
    pub standby: bool,
    /// What runs the schedule here, where nothing does yet.
    pub install: Option<Install>,
}

/// What has to be put somewhere so that the schedule runs.
#[derive(Debug, Serialize)]
pub struct Install {
    /// `/etc/systemd/system/pgmahout-backup.service`
    pub service: String,
    /// `/etc/systemd/system/pgmahout-backup.timer`
    pub timer: String,
    /// The same as a line of a crontab.
    pub cron: String,
}

/// The plan that is recorded in the cluster of this connection, which may be a standby's; none when the schedule
/// is off.
pub fn recorded(db: &mut Db) -> Result<Option<String>> {
    Ok(setting(db, PLAN)?.filter(|plan| plan != "off"))
}

/// The cluster's lineage; none where no schedule was ever turned on.
pub fn lineage(db: &mut Db) -> Result<Option<String>> {
    setting(db, LINEAGE)
}

/// The same of this instance; none too where its server cannot be asked.
pub fn lineage_of(instance: &Instance) -> Option<String> {
    let target = Target::local(instance).ok()?;
    lineage(&mut Db::connect(&target).ok()?).ok().flatten()
}

fn setting(db: &mut Db, name: &str) -> Result<Option<String>> {
    // Not current_setting(): it is that of when the session began.
    let rows = db.rows(
        "SELECT option FROM (SELECT unnest(setconfig) AS option FROM pg_db_role_setting s \
         JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = 'postgres' AND s.setrole = 0) o \
         WHERE split_part(option, '=', 1) = $1",
        &[&name],
    )?;
    let text: Option<String> = rows.first().map(|row| row.get(0));
    Ok(text
        .and_then(|text| text.split_once('=').map(|(_, value)| value.to_owned()))
        .filter(|v| !v.is_empty()))
}

/// Records a plan, or that there is none; on a primary. The lineage stays when the schedule is turned off.
pub fn record(db: &mut Db, plan: Option<Plan>) -> Result<()> {
    let Some(plan) = plan else {
        return db.run(&format!("ALTER DATABASE postgres RESET \"{PLAN}\""));
    };
    if lineage(db)?.is_none() {
        let mut bytes = [0u8; 8];
        openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random bytes");
        let new: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        db.run(&format!("ALTER DATABASE postgres SET \"{LINEAGE}\" = {}", literal(&new)))?;
    }
    db.run(&format!("ALTER DATABASE postgres SET \"{PLAN}\" = {}", literal(plan.name())))
}

/// Takes the schedule and the lineage off a copy that goes its own way, before its own schedule can see the original's
/// backups. Gives the plan that it had.
pub fn untie(db: &mut Db) -> Result<Option<String>> {
    let plan = recorded(db)?;
    for name in [PLAN, LINEAGE] {
        if setting(db, name)?.is_some() {
            db.run(&format!("ALTER DATABASE postgres RESET \"{name}\""))?;
        }
    }
    Ok(plan)
}

/// Whether the schedule of this instance may count, and remove, a backup. Where nothing says of which lineage it is,
/// it has to be taken here.
pub fn is_own(
    instance: &Instance,
    system_id: Option<SystemId>,
    lineage: Option<&str>,
    of: &Manifest,
) -> bool {
    let same = match of.lineage.as_deref() {
        Some(other) => lineage == Some(other),
        None => of.instance == instance.name && of.app == instance.app,
    };
    system_id == Some(of.system_id) && same
}

/// Shows it.
pub fn show(context: Context) -> Result<Report> {
    let mut db = Db::connect(&Target::local(context.instance)?)?;
    let plan = recorded(&mut db)?;
    let standby = db.in_recovery()?;
    Ok(report(context.instance, plan.clone(), plan, standby))
}

/// Turns it on with a plan, or off.
///
/// # Errors
/// [`crate::error::Error::OnStandby`] on a standby.
pub fn set(context: Context, plan: Option<Plan>) -> Result<Report> {
    let mut db = primary::connect(context.instance, "schedule of backups")?;
    let before = recorded(&mut db)?;
    record(&mut db, plan)?;
    Ok(report(context.instance, plan.map(|plan| plan.name().to_owned()), before, false))
}

fn report(instance: &Instance, plan: Option<String>, before: Option<String>, standby: bool) -> Report {
    let (keep, overridden) = keep(instance, plan.as_deref());
    let minutes = instance.backup.time;
    Report {
        instance: instance.name.clone(),
        install: if plan.is_some() { install(instance) } else { None },
        plan,
        before,
        time: format!("{:02}:{:02}", minutes / 60, minutes % 60),
        keep,
        overridden,
        standby,
    }
}

/// The plan's numbers, and the settings' where somebody has said one.
pub fn keep(instance: &Instance, plan: Option<&str>) -> (Keep, Vec<String>) {
    let mut keep = plan.and_then(Plan::named).unwrap_or(Plan::Month).keep();
    let mut overridden = Vec::new();
    let settings = &instance.backup;
    let numbers = [
        ("backup_keep_daily", &mut keep.daily, settings.keep_daily),
        ("backup_keep_weekly", &mut keep.weekly, settings.keep_weekly),
        ("backup_keep_manual", &mut keep.manual, settings.keep_manual),
    ];
    for (name, number, said) in numbers {
        let origin = instance.resolved().iter().find(|r| r.name == name).map(|r| &r.origin);
        if let Some(origin) = origin.filter(|origin| **origin != Origin::Default) {
            *number = said;
            overridden.push(format!("{name}: {said} ({origin})"));
        }
    }
    (keep, overridden)
}

/// None where supervisor runs it.
fn install(instance: &Instance) -> Option<Install> {
    if let Service::Supervisor { config, .. } = &instance.service {
        let text = std::fs::read_to_string(config).unwrap_or_default();
        if text.lines().any(|line| line.trim() == "[program:backups]") {
            return None;
        }
    }
    let binary = std::env::current_exe().ok().filter(|path| path.exists());
    let binary = binary.map_or("pgmahout".to_owned(), |path| path.display().to_string());
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name);
    let home = instance.home.display().to_string();
    // What is due is found out by the command itself: it catches up, and tries again what failed.
    let systemd = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let service = format!(
        "[Unit]\nDescription=Backups of {name}\nAfter=network.target\n\n[Service]\nType=oneshot\nUser={user}\n\
         ExecStart=\"{}\" --home \"{}\" --quiet backup auto\nNice=10\nIOSchedulingClass=idle\n",
        systemd(&binary),
        systemd(&home),
        name = systemd(&instance.name),
    );
    let timer = "[Unit]\nDescription=Runs the backups that are due\n\n[Timer]\nOnCalendar=*:0/15\nPersistent=true\n\n\
                 [Install]\nWantedBy=timers.target\n";
    // In a crontab % ends the command.
    let word = |text: &str| shlex::try_quote(text).map_or_else(|_| text.to_owned(), |t| t.into_owned());
    let line = format!("*/15 * * * * {} --home {} --quiet backup auto", word(&binary), word(&home));
    Some(Install { service, timer: timer.into(), cron: line.replace('%', "\\%") })
}
