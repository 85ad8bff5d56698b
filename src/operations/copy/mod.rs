//! `copy`: a live database becomes one of this instance, with no disk between. The steps of it are those of `migrate`
//! too, each for itself.

pub mod check;
pub mod compare;
pub mod fill;
mod large;
pub mod lock;
pub mod look;
pub mod place;
mod relay;
mod schema;
pub mod source;
pub mod state;
mod sums;
mod units;

use super::Context;
use super::backup::restore::swap;
use crate::error::{Error, Result};
use crate::sql::Target;
use check::{Checked, Here, Wishes};
use compare::Compared;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// What a database holds, as far as two of them are compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Tables, in the order of their names.
    pub tables: Vec<TableSum>,
    /// Sequences, in the order of their names.
    pub sequences: Vec<SequenceValue>,
    /// Large objects.
    pub large_objects: Option<LargeObjects>,
}

/// One table's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSum {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// 32 hexadecimal digits, whatever the order of the rows.
    pub sum: String,
    /// How the rows were read, as both sides must be read alike.
    pub form: String,
}

/// Where a sequence stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceValue {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `last_value`.
    pub last_value: i64,
    /// `is_called`.
    pub is_called: bool,
}

/// All large objects together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// 32 hexadecimal digits.
    pub sum: String,
}

/// What the operator asked for: all of it at once.
#[derive(Clone)]
pub struct Options {
    /// The source.
    pub from: Target,
    /// The database here; none: one of the source's name.
    pub database: Option<String>,
    /// Connections that copy at the same time; none: see [`default_jobs`].
    pub jobs: Option<usize>,
    /// Without owners and grants.
    pub no_owner: bool,
    /// The name of this instance: what the database holds may be lost.
    pub confirm: Option<String>,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// The source, e.g. `shop at 10.0.0.1:5432`.
    pub source: String,
    /// The database here.
    pub database: String,
    /// What that held before, e.g. `12 tables, 3.4 MB`; none when it was not there or empty.
    pub loses: Option<String>,
    /// The pair as it was checked.
    pub checked: Checked,
    /// Tables and materialized views.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Bytes of rows that were sent.
    pub bytes: u64,
    /// What was compared.
    pub compared: Option<Compared>,
    /// Sessions of the old database that were ended.
    pub sessions_ended: usize,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// As many as there are processors, 2 at least and 8 at most.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8)
}

/// Checks, fills, compares, places. At any failure the database here is as it was.
pub fn run(context: Context, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let from = &options.from;
    let database = options.database.clone().unwrap_or_else(|| from.database.clone());
    let _lock = if options.dry_run { None } else { Some(place::lock(context, "copy")?) };
    let mut here = Here::open(context, &database)?;
    if !options.dry_run {
        place::sweep(context, &mut here)?;
    }
    let wishes = Wishes { no_owner: options.no_owner, replaces: true };
    let checked = check::examine(context, from, &mut here, wishes)?;
    let instance = context.instance.name.clone();
    let loses = checked.target.holds.clone();
    let mut report = Report {
        instance: instance.clone(),
        dry_run: options.dry_run,
        source: source::describe(from),
        database: database.clone(),
        loses: loses.clone(),
        tables: checked.source.tables as usize,
        rows: 0,
        bytes: checked.source.size,
        compared: None,
        sessions_ended: 0,
        warnings: checked.warnings.clone(),
        seconds: 0.0,
        checked,
    };
    if options.dry_run {
        return Ok(report);
    }
    if let Some(holds) = loses.filter(|_| options.confirm.as_ref() != Some(&instance)) {
        return Err(Error::ReplacesDatabase { instance, database, holds });
    }
    let jobs = options.jobs.unwrap_or_else(default_jobs);
    let id = swap::unique();
    let outcome = all(context, from, &mut here, &id, &mut report, jobs);
    // What has its place is no copy any more; what has not is of no use.
    let dropped = here.wake().and_then(|()| swap::drop_copy(&mut here.db, &here.target, &database, &id));
    let forgotten = state::forget(context, &id);
    outcome?;
    dropped?;
    forgotten?;
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn all(
    context: Context,
    from: &Target,
    here: &mut Here,
    id: &str,
    report: &mut Report,
    jobs: usize,
) -> Result<()> {
    let filled = place::make(context, from, here, id, &report.checked, jobs, false)?;
    (report.tables, report.rows, report.bytes) = (filled.tables, filled.rows, filled.bytes);
    report.warnings = filled.warnings;
    report.compared = Some(place::compare(context, from, here, id, false, jobs)?);
    let placed = place::replace(context, here, id)?;
    report.sessions_ended = placed.sessions_ended;
    report.warnings.extend(placed.warnings);
    Ok(())
}
