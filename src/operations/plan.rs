//! The plan of this instance: settings of PostgreSQL under a name, applied all or none. A journal in the data
//! directory has what was before, from the first change to the last, so that a run that was killed is undone
//! by the next one; a server that does not start with the plan gets its former settings back.

use super::enslave::here::has_standby_file;
use super::{Context, primary, standby};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::plan::{FILE, JOURNAL, Plan, machine_memory, memory_bytes, refused};
use crate::postgres::recovery::{auto_conf_with, last_setting};
use crate::process;
use crate::service;
use crate::sql::{Db, Target, identifier, literal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// This instance's plan.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Its name.
    pub plan: Option<String>,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
    /// Settings of the server that take effect at its next start.
    pub pending_restart: Vec<String>,
    /// The server was restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarted: Option<bool>,
    /// What the operator should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Seconds that it took to apply it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// What it takes to undo a change.
#[derive(Serialize, Deserialize)]
struct Journal {
    /// The plan that was recorded.
    plan: Option<Plan>,
    /// What stood in postgresql.auto.conf, of each setting that is changed.
    settings: BTreeMap<String, Option<String>>,
}

/// The plan that a data directory has.
pub fn recorded(data: &Path) -> Result<Option<Plan>> {
    read(&data.join(FILE))
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).on("read", path),
    };
    let read = serde_json::from_slice(&text);
    read.map(Some).map_err(|e| Error::PlanFile { path: path.into(), why: e.to_string() })
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).expect("plain data");
    durable::write(path, format!("{text}\n").as_bytes(), 0o600)
}

/// Shows the plan, whatever state the server is in.
pub fn show(context: Context) -> Result<Report> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    let mut warnings = Vec::new();
    if data.join(JOURNAL).exists() {
        warnings.push("a change of the plan was interrupted: run it again".to_owned());
    }
    let asked = match instance.running() {
        Some(_) => Db::connect(&Target::local(instance)?).and_then(|mut db| pending(&mut db)),
        None => Ok(Vec::new()),
    };
    let pending_restart = asked.unwrap_or_else(|error| {
        warnings.push(format!("which settings wait for a restart is not known: {error}"));
        Vec::new()
    });
    let plan = recorded(&data)?;
    Ok(Report {
        instance: instance.name.clone(),
        plan: plan.as_ref().map(|plan| plan.plan.clone()),
        settings: plan.map(|plan| plan.settings).unwrap_or_default(),
        pending_restart,
        restarted: None,
        warnings,
        seconds: None,
    })
}

/// Applies a plan; with `may_restart` the server is restarted when a setting needs it.
pub fn apply(context: Context, wanted: &Plan, may_restart: bool) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    let progress = context.progress;
    instance.check_account()?;
    let _lock = instance.lock("plan")?;
    let data = instance.data_directory()?;
    if instance.running().is_none()
        && let Some(why) = instance.fenced()
    {
        return Err(Error::Fenced { instance: instance.name.clone(), why });
    }
    if !has_standby_file(&data) {
        undo_interrupted(context, &data)?;
    }

    // Checks, which touch nothing.
    let mut db = primary::connect(instance, "plan")?;
    let settings = checked(&mut db, wanted)?;
    check_memory(&mut db, wanted, &settings)?;
    let former = recorded(&data)?;
    let dropped: Vec<String> = former
        .iter()
        .flat_map(|plan| plan.settings.keys())
        .filter(|name| !settings.contains_key(*name))
        .cloned()
        .collect();
    let warnings = standbys_too_low(&mut db, &settings)?;

    let auto_conf = data.join("postgresql.auto.conf");
    let existing = fs::read_to_string(&auto_conf).on("read", &auto_conf)?;
    let touched = settings.keys().chain(&dropped).map(|name| (name.clone(), last_setting(&existing, name)));
    let journal = Journal { plan: former, settings: touched.collect() };
    write(&data.join(JOURNAL), &journal)?;

    let outcome = alter_system(&mut db, wanted, &settings, &dropped).and_then(|()| reload(&mut db));
    if let Err(error) = outcome {
        undo(&data, &journal)?;
        // Most probably nothing had been reloaded.
        let _ = reload(&mut db);
        return Err(error);
    }
    let wait_for_restart = pending(&mut db)?;
    // Also those that an earlier plan has left to the next restart.
    let restarted = may_restart && !wait_for_restart.is_empty();
    if restarted {
        drop(db);
        progress.step(format!("restarting the server for {}", wait_for_restart.join(", ")));
        db = match restart(context) {
            Ok(db) => db,
            // The journal stays: the next run knows what to do.
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => return Err(come_back(context, &data, &journal, &wanted.plan, &error)),
        };
    }
    let pending_restart = pending(&mut db)?;
    write(&data.join(FILE), &Plan { plan: wanted.plan.clone(), settings: settings.clone() })?;
    remove_journal(&data)?;
    Ok(Report {
        instance: instance.name.clone(),
        plan: Some(wanted.plan.clone()),
        settings,
        pending_restart,
        restarted: Some(restarted),
        warnings,
        seconds: Some(begin.elapsed().as_secs_f64()),
    })
}

/// The settings under the names that the server has for them.
fn checked(db: &mut Db, wanted: &Plan) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    for (name, value) in &wanted.settings {
        let no =
            |why: &str| Error::PlanSetting { plan: wanted.plan.clone(), name: name.clone(), why: why.into() };
        if let Some(why) = refused(name) {
            return Err(no(why));
        }
        let sql = "SELECT name, context FROM pg_settings WHERE lower(name) = $1";
        let rows = db.rows(sql, &[name])?;
        let row = rows.first().ok_or_else(|| no(&format!("PostgreSQL {} does not know it", db.version)))?;
        if row.get::<_, &str>(1) == "internal" {
            return Err(no("it was fixed when the server was built or its cluster made"));
        }
        settings.insert(row.get(0), value.clone());
    }
    Ok(settings)
}

fn check_memory(db: &mut Db, plan: &Plan, settings: &BTreeMap<String, String>) -> Result<()> {
    let Some(value) = settings.get("shared_buffers") else { return Ok(()) };
    let row = db.row(
        "SELECT current_setting('block_size')::bigint, setting::bigint FROM pg_settings \
         WHERE name = 'shared_buffers'",
        &[],
    )?;
    let (block, present) = (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(wanted), Some((total, available))) = (memory_bytes(value, block), machine_memory(&meminfo))
    else {
        return Ok(());
    };
    // A restart gives back what the server has now.
    let available = total.min(available + present * block);
    if wanted > available {
        return Err(Error::PlanMemory { plan: plan.plan.clone(), wanted, available, total });
    }
    Ok(())
}

/// Before 14 a standby ends, from then on its replay pauses, when its primary's is higher.
fn standbys_too_low(db: &mut Db, settings: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let followers: i64 = db.value("SELECT count(*) FROM pg_stat_replication WHERE state <> 'backup'", &[])?;
    let mut raised = Vec::new();
    for name in db.version.standby_minimum_settings() {
        let now: Option<i64> = db.setting(name)?.and_then(|value| value.parse().ok());
        let new: Option<i64> = settings.get(*name).and_then(|value| value.parse().ok());
        if let (Some(now), Some(new)) = (now, new)
            && new > now
        {
            raised.push(*name);
        }
    }
    if followers == 0 || raised.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "{} is higher than before, and the standbys of this instance must not be lower: raise it there by ALTER \
         SYSTEM and restart them, or copy them anew by pgmahout enslave --plan full",
        raised.join(", ")
    )])
}

/// Each in a statement of its own: ALTER SYSTEM runs in no transaction. What it does is checked by the server.
fn alter_system(
    db: &mut Db,
    plan: &Plan,
    settings: &BTreeMap<String, String>,
    dropped: &[String],
) -> Result<()> {
    for (name, value) in settings {
        // A list of names: quoted as a whole it would be one name.
        let value = if ["search_path", "temp_tablespaces"].contains(&name.as_str()) {
            let names = value.split(',').map(|one| literal(one.trim().trim_matches('"')));
            names.collect::<Vec<_>>().join(", ")
        } else {
            literal(value)
        };
        db.run(&format!("ALTER SYSTEM SET {} = {value}", name_in_sql(name))).map_err(
            |error| match error {
                Error::Sql { why, .. } => {
                    Error::PlanSetting { plan: plan.plan.clone(), name: name.clone(), why }
                }
                other => other,
            },
        )?;
    }
    for name in dropped {
        // What this server does not know stands in no file that it has read.
        if db.setting(name)?.is_some() {
            db.run(&format!("ALTER SYSTEM RESET {}", name_in_sql(name)))?;
        }
    }
    Ok(())
}

/// A setting's name, which may have parts: pg_stat_statements.max.
fn name_in_sql(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

/// The server's processes read their settings, each at its next turn; back when this session's has. None does
/// while a file of them cannot be read as a whole.
fn reload(db: &mut Db) -> Result<()> {
    let limit = Duration::from_secs(10);
    let loaded = "SELECT pg_conf_load_time()::text";
    let before: String = db.value(loaded, &[])?;
    db.rows("SELECT pg_reload_conf()", &[])?;
    let read = process::wait_for(limit, || Ok((db.value::<String>(loaded, &[])? != before).then_some(())))?;
    read.ok_or(Error::NotReloaded { limit })
}

fn pending(db: &mut Db) -> Result<Vec<String>> {
    let rows = db.rows("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name", &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn restart(context: Context) -> Result<Db> {
    service::stop(context.instance)?;
    standby::start_and_connect(context)
}

/// Puts the former settings back into the files.
fn undo(data: &Path, journal: &Journal) -> Result<()> {
    let auto_conf = data.join("postgresql.auto.conf");
    let existing = fs::read_to_string(&auto_conf).on("read", &auto_conf)?;
    let former: Vec<_> =
        journal.settings.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    durable::write(&auto_conf, auto_conf_with(&existing, &former).as_bytes(), 0o600)?;
    let file = data.join(FILE);
    match &journal.plan {
        Some(plan) => write(&file, plan)?,
        None if file.exists() => fs::remove_file(&file).on("remove", &file)?,
        None => {}
    }
    remove_journal(data)
}

fn remove_journal(data: &Path) -> Result<()> {
    let journal = data.join(JOURNAL);
    fs::remove_file(&journal).on("remove", &journal)?;
    durable::sync_directory(data)
}

/// Starts the server with its former settings; says what went wrong.
fn come_back(context: Context, data: &Path, journal: &Journal, plan: &str, why: &Error) -> Error {
    context.progress.step("the server does not start with the plan; its former settings come back");
    let back = || -> Result<()> {
        undo(data, journal)?;
        // Its manager may still be at trying to start it.
        let _ = service::stop(context.instance);
        standby::start_and_connect(context).map(drop)
    };
    let back = back().err().map(|error| error.to_string());
    Error::PlanDoesNotStart { plan: plan.to_owned(), why: why.to_string(), back }
}

/// A run that was killed: its changes go, and the server starts, should that have kept it from it.
fn undo_interrupted(context: Context, data: &Path) -> Result<()> {
    let Some(journal) = read::<Journal>(&data.join(JOURNAL))? else { return Ok(()) };
    let instance: &Instance = context.instance;
    context
        .progress
        .step("an earlier change of the plan was interrupted; what was before it is put back first");
    undo(data, &journal)?;
    match instance.running() {
        Some(_) => reload(&mut Db::connect(&Target::local(instance)?)?),
        None => standby::start_and_connect(context).map(drop),
    }
}
