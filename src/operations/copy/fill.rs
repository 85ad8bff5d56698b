//! Fills an empty database from another one while it is read: schema, rows, large objects, sequences, indexes.

use super::super::Context;
use super::super::backup::restore::fill::{Filling, Section};
use super::relay::{self, Rows};
use super::schema::Schema;
use super::units::{self, Form, Name, SCHEMAS, Table, said_name, sql_name};
use super::{SequenceValue, Sums, large, sums};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::{Db, Target};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::Instant;

/// How it is filled.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections that copy at the same time.
    pub jobs: usize,
    /// Without owners and grants: everything belongs to this role.
    pub owner: Option<String>,
    /// The source's size in bytes, for the progress.
    pub size: u64,
}

/// What was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filled {
    /// Tables and materialized views.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Bytes of rows that were sent.
    pub bytes: u64,
    /// What the source held, hashed as it went by.
    pub sums: Sums,
    /// Seconds for the schema, the rows, and what comes behind them (indexes, constraints, statistics).
    pub seconds: [f64; 3],
    /// What could not be done and does not matter much.
    pub warnings: Vec<String>,
}

/// Fills `side`, which is empty, with what `source` holds in one snapshot. Nothing is left out but foreign tables' rows
/// and the schema of a migration's own. What an error leaves behind is for the caller to drop.
///
/// # Errors
/// [`Error::CopyFailed`] names the table and the side; [`Error::Dump`] and [`Error::RestoreFailed`] are of the schema.
pub fn run(context: Context, source: &Target, side: &Target, options: &Options) -> Result<Filled> {
    let begin = Instant::now();
    let mut db = Db::connect(source)?;
    let mut to = Db::connect(side)?;
    let version = to.version;
    to.run(&relay::writing(version))?;
    let encoding = sums::encoding(&mut db)?;
    let recoded = sums::encoding(&mut to)? != encoding;
    let snapshot = sums::snapshot(&mut db, source)?;
    let list = units::tables(&mut db, recoded, None)?;
    let views = views(&mut db)?;
    lock(&mut db, &list)?;

    context.progress.step(format!("copying the schema: {} tables", list.len()));
    let (schema, mut warnings) = Schema::dump(context, source, &db, &snapshot, &to)?;
    let path = schema.path();
    let restore = |section, server: &Db| {
        Filling {
            tool: &schema.restore,
            target: side,
            archive: &path,
            jobs: if section == Section::PreData { 1 } else { options.jobs },
            role: options.owner.as_deref(),
            no_owner: options.owner.is_some(),
            no_tablespaces: true,
            tables: list.len(),
            section: Some(section),
        }
        .run(context, server)
    };
    restore(Section::PreData, &to)?;
    let schema_seconds = begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let border = db.version.has_shortest_floats() != version.has_shortest_floats();
    let form = |table: &Table| Form {
        binary: table.binary,
        encoding: encoding.clone(),
        rounded: border && !table.binary && table.floats,
        tree: table.root.is_some(),
    };
    let mut forms: Vec<Form> = list.iter().map(form).collect();
    alike(&list, &mut forms);
    let bytes: u64 = list.iter().map(|table| table.whole_bytes).sum();
    context.progress.step(format!("copying rows by {} connections to each side", options.jobs));
    context.progress.begin_bytes("copy", if bytes == 0 { options.size } else { bytes });
    let rows = Rows {
        source,
        version: db.version,
        snapshot: &snapshot,
        side: Some((side, version)),
        tables: &list,
        forms: &forms,
        jobs: options.jobs,
    };
    let counted = rows.run(context);
    context.progress.end();
    let counted = counted?;
    let owner = options.owner.as_deref();
    let filling = large::Filling { side, owner };
    let large_objects = large::run(context, &mut db, source, &snapshot, Some(&filling), options.jobs)?;
    large::adorn(&mut db, &mut to, owner.is_none())?;
    // Behind the rows: where somebody writes all the same, they are not behind what the rows have of them.
    let sequences = sums::sequences(&mut db)?;
    set(&mut to, &sequences)?;
    let row_seconds = begin.elapsed().as_secs_f64();
    // The source is done with.
    drop(db);

    let begin = Instant::now();
    context.progress.step("building indexes and constraints");
    restore(Section::PostData, &to)?;
    refresh(context, &mut to, &views)?;
    analyze(context, side, options.jobs, &mut warnings)?;
    Ok(Filled {
        tables: list.len() + views.len(),
        rows: counted.tallies.values().map(|tally| tally.rows).sum(),
        bytes: counted.bytes,
        sums: Sums {
            tables: sums::tables(&list, &forms, &counted),
            sequences,
            large_objects: Some(large_objects),
        },
        seconds: [schema_seconds, row_seconds, begin.elapsed().as_secs_f64()],
        warnings,
    })
}

/// Partitions that are counted together are read alike.
fn alike(list: &[Table], forms: &mut [Form]) {
    let mut trees: HashMap<&Name, (bool, bool)> = HashMap::new();
    for (table, form) in list.iter().zip(forms.iter()).filter(|(table, _)| table.root.is_some()) {
        let tree = trees.entry(table.counted_as()).or_insert((true, false));
        *tree = (tree.0 && form.binary, tree.1 || form.rounded);
    }
    for (table, form) in list.iter().zip(forms) {
        if let Some((binary, rounded)) = trees.get(table.counted_as()) {
            (form.binary, form.rounded) = (*binary, *rounded);
        }
    }
}

/// So that no table is dropped or emptied before its rows are read.
fn lock(db: &mut Db, list: &[Table]) -> Result<()> {
    for part in list.chunks(100) {
        process::check_interrupt()?;
        let names: Vec<String> = part.iter().map(|table| format!("ONLY {}", sql_name(&table.name))).collect();
        db.rows_interruptible(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")), &[])?;
    }
    Ok(())
}

/// The materialized views that hold something.
fn views(db: &mut Db) -> Result<HashSet<Name>> {
    let sql = format!(
        "SELECT n.nspname::text, relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind = 'm' AND relispopulated AND {SCHEMAS}"
    );
    Ok(db.rows(&sql, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn set(to: &mut Db, sequences: &[SequenceValue]) -> Result<()> {
    for part in sequences.chunks(500) {
        process::check_interrupt()?;
        let name = |one: &SequenceValue| sql_name(&(one.schema.clone(), one.name.clone()));
        let names: Vec<String> = part.iter().map(name).collect();
        let values: Vec<i64> = part.iter().map(|one| one.last_value).collect();
        let called: Vec<bool> = part.iter().map(|one| one.is_called).collect();
        let sql = "SELECT count(setval(s::regclass, v, c)) FROM unnest($1::text[], $2::int8[], $3::bool[]) AS u(s, v, c)";
        to.rows(sql, &[&names, &values, &called])?;
    }
    Ok(())
}

/// A view goes behind those that it reads, through ordinary views too: pg_dump's buildMatViewRefreshDependencies.
const VIEWS: &str = "WITH RECURSIVE w AS (\
     SELECT c.oid AS objid, d.refobjid, r.relkind FROM pg_class c JOIN pg_rewrite ON ev_class = c.oid \
     JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = pg_rewrite.oid AND d.refobjid <> c.oid \
     JOIN pg_class r ON r.oid = d.refobjid AND r.relkind IN ('m', 'v') \
     WHERE c.relkind = 'm' \
     UNION \
     SELECT w.objid, d.refobjid, r.relkind FROM w JOIN pg_rewrite ON ev_class = w.refobjid \
     JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = pg_rewrite.oid AND d.refobjid <> w.refobjid \
     JOIN pg_class r ON r.oid = d.refobjid AND r.relkind IN ('m', 'v')) \
     SELECT c.oid, n.nspname::text, c.relname::text, \
     (SELECT coalesce(array_agg(DISTINCT w.refobjid), '{}') FROM w WHERE w.objid = c.oid AND w.relkind = 'm') \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' ORDER BY 2, 3";

/// Fills the materialized views that hold something in the source.
fn refresh(context: Context, to: &mut Db, views: &HashSet<Name>) -> Result<()> {
    if views.is_empty() {
        return Ok(());
    }
    context.progress.begin_about("materialized views", views.len() as u64, "materialized views");
    let mut left: VecDeque<(u32, Name, Vec<u32>)> = to
        .rows(VIEWS, &[])?
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2)), row.get(3)))
        .filter(|(_, name, _)| views.contains(name))
        .collect();
    // What a function reads nobody knows: such a one is tried again behind the others.
    let mut tried = 0;
    while let Some((oid, name, needs)) = left.pop_front() {
        process::check_interrupt()?;
        let waits = needs.iter().any(|need| left.iter().any(|(other, _, _)| other == need));
        let outcome = match waits && tried <= left.len() {
            true => None,
            false => {
                Some(to.rows_interruptible(&format!("REFRESH MATERIALIZED VIEW {}", sql_name(&name)), &[]))
            }
        };
        match outcome {
            Some(Ok(_)) => {
                tried = 0;
                context.progress.add(1);
            }
            Some(Err(Error::Sql { label, why })) if tried > left.len() => {
                context.progress.end();
                let what = format!("the materialized view {}", said_name(&name));
                let is_full = why.contains("No space left");
                return Err(Error::CopyFailed { what, side: label, why, is_full });
            }
            Some(Err(Error::Sql { .. })) | None => {
                tried += 1;
                left.push_back((oid, name, needs));
            }
            Some(Err(error)) => {
                context.progress.end();
                return Err(error);
            }
        }
    }
    context.progress.end();
    Ok(())
}

/// Collects the planner's statistics.
fn analyze(context: Context, side: &Target, jobs: usize, warnings: &mut Vec<String>) -> Result<()> {
    let mut db = Db::connect(side)?;
    let sql = format!(
        "SELECT n.nspname::text, relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind IN ('r', 'm', 'p') AND relpersistence <> 't' AND {SCHEMAS} ORDER BY pg_table_size(c.oid) DESC"
    );
    let tables: VecDeque<Name> = db.rows(&sql, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect();
    context.progress.begin_about("statistics", tables.len() as u64, "tables");
    let jobs = jobs.clamp(1, tables.len().max(1));
    let (tables, warned) = (Mutex::new(tables), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        let mut db = Db::connect(side)?;
        let version = db.version;
        db.run(&relay::writing(version))?;
        loop {
            process::check_interrupt()?;
            let Some(name) = tables.lock().expect("no panic").pop_front() else { return Ok(()) };
            // What a function of the user's makes of it is no reason to throw a copy away.
            if let Err(error) = db.rows_interruptible(&format!("ANALYZE {}", sql_name(&name)), &[]) {
                process::check_interrupt()?;
                warned
                    .lock()
                    .expect("no panic")
                    .push(format!("no statistics of {}: {error}", said_name(&name)));
                if !db.is_alive() {
                    return Err(error);
                }
            }
            context.progress.add(1);
        }
    };
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    context.progress.end();
    warnings.extend(warned.into_inner().expect("no panic"));
    outcomes.into_iter().collect()
}
