//! Proves a backup: restores it into a throw-away cluster of this instance's own build, compares what is there with
//! the manifest, looks at the structure of every table and index. What was not looked at is said.

use super::super::Context;
use super::super::client::Passfile;
use super::restore::fill::{self, Filling};
use super::restore::{logical, physical, source, swap};
use super::scratch::Scratch;
use super::{lock, now, tools};
use crate::backups::manifest::{BackupId, Kind, Manifest, Verified};
use crate::durable;
use crate::error::{Error, Result};
use crate::postgres::version::PgVersion;
use crate::process;
use crate::progress::bytes_text;
use crate::sql::{Db, Target, identifier};
use crate::store::{self, catalog};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the throw-away cluster lies; none: below the state directory.
    pub directory: Option<PathBuf>,
    /// Its files stay.
    pub keep: bool,
    /// Jobs at the same time, in place of the setting.
    pub jobs: Option<usize>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The backup.
    pub id: BackupId,
    /// It is good.
    pub good: bool,
    /// What was done and found, as it is remembered in the store.
    pub text: String,
    /// Tables that were compared.
    pub tables: usize,
    /// Their rows; none of a physical backup.
    pub rows: Option<u64>,
    /// The cluster, where it was kept.
    pub kept: Option<PathBuf>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// A throw-away cluster has this beside its databases.
const EMPTY_CLUSTER: u64 = 200 << 20;

/// No check of a cluster's structure takes longer.
const CHECK_LIMIT: Duration = Duration::from_secs(7 * 86_400);

/// What one kind of verification gives.
struct Seen {
    text: String,
    tables: usize,
    rows: Option<u64>,
}

/// Verifies one backup as the schedule does.
///
/// # Errors
/// As [`run_with`].
pub fn run(context: Context, id: BackupId) -> Result<Report> {
    run_with(context, id, &Options::default())
}

/// Verifies one backup and remembers in the store what came of it. A damaged backup is a report, not an error.
///
/// # Errors
/// Whatever says nothing about the backup: no programs, no room, an interrupt, a store that does not answer.
/// Nothing is remembered then.
pub fn run_with(context: Context, id: BackupId, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    instance.check_account()?;
    let _lock = lock(context, "backup verify")?;
    let store = store::open(instance)?;
    let manifest = catalog::find(&*store, id)?.manifest;
    let base = options.directory.clone().unwrap_or_else(|| instance.state_directory.clone());
    let (needed, available) = (manifest.database_size + EMPTY_CLUSTER, durable::available_space(&base)?);
    if available < needed {
        return Err(Error::NoSpace { path: base, needed, available });
    }
    let mut scratch = Scratch::create(&base)?;
    let jobs = options.jobs.unwrap_or(instance.backup.jobs);
    let opened = source::stored(context, &*store, manifest.clone())?;
    let outcome = match manifest.kind {
        Kind::Logical => dump(context, &mut scratch, opened, &manifest, jobs),
        Kind::Physical => cluster(context, &mut scratch, opened, &manifest, jobs).map_err(of_its_pages),
    };
    // What cannot be unpacked has come broken, or was stored so.
    let outcome = match outcome {
        Err(error @ (Error::TarDamaged { .. } | Error::TarEscapes { .. })) => {
            Err(source::check(context, &*store, &manifest).err().unwrap_or(error))
        }
        other => other,
    };
    let mut report = Report {
        instance: instance.name.clone(),
        id,
        good: outcome.is_ok(),
        text: String::new(),
        tables: 0,
        rows: None,
        kept: None,
        seconds: 0.0,
    };
    match outcome {
        Ok(seen) => (report.text, report.tables, report.rows) = (seen.text, seen.tables, seen.rows),
        Err(error) if is_of_the_backup(&error, &mut scratch) => report.text = error.to_string(),
        Err(error) => return Err(error),
    }
    let verified =
        Verified { at: now(), instance: instance.name.clone(), good: report.good, text: report.text.clone() };
    catalog::set_verified(&*store, id, &verified)?;
    if options.keep {
        scratch.keep();
        report.kept = Some(scratch.root.clone());
    }
    drop(scratch);
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Whether an error says that the backup is bad, and not that this machine could not tell.
fn is_of_the_backup(error: &Error, scratch: &mut Scratch) -> bool {
    match error {
        Error::BackupDamaged { .. } | Error::RestoredDiffers { .. } | Error::StructureDamaged { .. } => true,
        Error::TarDamaged { .. } | Error::TarEscapes { .. } => true,
        Error::RestoreFailed { status, said, .. } => {
            let of_machine = [
                "No space left",
                "out of memory",
                "could not connect",
                "connection to server",
                "ERROR:  role ",
            ];
            scratch.is_alive()
                && !status.contains("signal")
                && !of_machine.iter().any(|text| said.contains(text))
        }
        _ => false,
    }
}

/// A logical backup.
fn dump(
    context: Context,
    scratch: &mut Scratch,
    opened: source::Opened,
    manifest: &Manifest,
    jobs: usize,
) -> Result<Seen> {
    let progress = context.progress;
    let server = context.instance.program_version()?;
    let tool = logical::tool_for(context, manifest, server)?;
    let archive = opened.archive(context)?;
    progress.step(format!("restoring {} into a throw-away cluster of PostgreSQL {server}", manifest.id));
    scratch.initdb(context)?;
    let mut remarks: Vec<String> = scratch.start(context, &manifest.needs.settings)?.into_iter().collect();
    let target = scratch.target(context);
    let mut db = Db::connect(&target)?;
    logical::check_extensions(&mut db, manifest, context.instance.name.clone())?;
    for role in manifest.needs.roles.iter().filter(|role| **role != context.instance.user) {
        db.run(&format!("CREATE ROLE {}", identifier(role)))?;
    }
    let (new, warning) = swap::create(&mut db, &target, "verify", None, Some(&manifest.needs), None)?;
    remarks.extend(warning.map(|_| "the backup's locale is not here".to_owned()));
    let inside = target.database(&new.name);
    let tables = manifest.tables.len();
    let filling = Filling {
        tool: &tool,
        target: &inside,
        archive: &archive.path,
        jobs,
        role: None,
        no_owner: false,
        no_tablespaces: true,
        tables,
        section: None,
    };
    let filled = filling.run(context, &db);
    let compared = filled.and_then(|()| fill::compare(context, &inside, Some(manifest), jobs));
    let checked = compared.and_then(|found| {
        let structure = structure(context, &target, std::slice::from_ref(&new.name), jobs)?;
        Ok((found, structure))
    });
    // It goes with the cluster.
    new.leave();
    let (found, structure) = checked?;
    let compared = manifest.tables.iter().filter(|table| table.rows.is_some()).count();
    let mut text = format!(
        "restored by pg_restore {} into PostgreSQL {server}: {compared} of {} tables have the manifest's rows, {} in \
         all; {structure}",
        tool.version, found.tables, found.rows
    );
    for remark in remarks {
        text += &format!("; {remark}");
    }
    Ok(Seen { text, tables: found.tables, rows: Some(found.rows) })
}

/// What a server says of files that are damaged, or not there: the messages of xlogrecovery.c, bufmgr.c, md.c,
/// relcache.c, relmapper.c, slru.c and heaptoast.c.
const DAMAGE: &[&str] = &[
    "checkpoint record",
    "WAL ends before",
    "invalid data in file",
    "invalid page in block",
    "could not read block",
    "could not open file \"base/",
    "could not open file \"global/",
    "could not open file \"pg_tblspc/",
    "could not open file \"pg_xact/",
    "could not open file \"pg_multixact/",
    "could not open relation",
    "could not access status of transaction",
    "incorrect checksum",
    "contains incorrect",
    "missing chunk",
    "catalog is missing",
    "cache lookup failed",
];

/// What the machine says when it is its own fault, in whatever words PostgreSQL puts it.
const OF_MACHINE: &[&str] =
    &["No space left", "annot allocate memory", "Too many open files", "out of memory"];

/// A server that does not start, or does not let in, because of the backup's own files says that the backup is bad.
fn of_its_pages(error: Error) -> Error {
    let (database, said) = match error {
        Error::NoScratchCluster { why } => ("the cluster", why),
        Error::Sql { why, .. } | Error::SqlRefused { why, .. } => ("the cluster", why),
        other => return other,
    };
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match has(DAMAGE) && !has(OF_MACHINE) {
        true => Error::StructureDamaged { database: database.into(), said },
        false => Error::NoScratchCluster { why: said },
    }
}

/// A physical backup: started as it stands.
fn cluster(
    context: Context,
    scratch: &mut Scratch,
    mut opened: source::Opened,
    manifest: &Manifest,
    jobs: usize,
) -> Result<Seen> {
    physical::extract(context, &mut opened.bytes, Some(manifest), &scratch.data(), &BTreeMap::new())?;
    // It is read even where the configuration lies elsewhere.
    durable::write(&scratch.data().join("postgresql.auto.conf"), b"", 0o600)?;
    context.progress.step(format!("starting {} as a throw-away cluster", manifest.id));
    let remark = scratch.start(context, &manifest.needs.settings)?;
    let target = scratch.target(context);
    let mut db = Db::connect(&target)?;
    let server = db.version;
    let sql = "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1";
    let databases: Vec<String> = db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect();
    let tables = compare_tables(&target, &databases, manifest)?;
    let structure = structure(context, &target, &databases, jobs)?;
    let mut text = format!(
        "started by PostgreSQL {server}: all tables of the manifest ({tables}) are there; {structure}"
    );
    if let Some(remark) = remark {
        text += &format!("; {remark}");
    }
    Ok(Seen { text, tables, rows: None })
}

/// Whether every table of the manifest is in its database.
fn compare_tables(target: &Target, databases: &[String], manifest: &Manifest) -> Result<usize> {
    let mut here = BTreeSet::new();
    for database in databases {
        let mut db = Db::connect(&target.database(database))?;
        let sql =
            "SELECT nspname::text, relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace";
        here.extend(db.rows(sql, &[])?.iter().map(|row| {
            let (schema, name): (String, String) = (row.get(0), row.get(1));
            (database.clone(), schema, name)
        }));
    }
    let mut missing = Vec::new();
    for table in &manifest.tables {
        let database = table.database.clone().unwrap_or_default();
        if !here.contains(&(database.clone(), table.schema.clone(), table.name.clone())) {
            missing.push(format!("there is no table {}.{} in {database}", table.schema, table.name));
        }
    }
    missing.truncate(10);
    if missing.is_empty() { Ok(manifest.tables.len()) } else { Err(Error::RestoredDiffers { what: missing }) }
}

/// The schema for an extension that the backup does not have.
const AMCHECK: &str = "pgmahout_verify";

/// Looks at the structure of every table and index with what is here, and says with what.
fn structure(context: Context, target: &Target, databases: &[String], jobs: usize) -> Result<String> {
    let mut db = Db::connect(target)?;
    let here = db.rows("SELECT FROM pg_available_extensions WHERE name = 'amcheck'", &[])?;
    if here.is_empty() {
        return Ok("the structure of tables and indexes was not checked, for amcheck is not here".into());
    }
    let sizes = "SELECT coalesce(sum(pg_database_size(datname)), 0)::bigint FROM pg_database WHERE datname = ANY ($1)";
    let size: i64 = db.value(sizes, &[&databases])?;
    context.progress.step(format!("checking tables and indexes, {}", bytes_text(size as u64)));
    let server = db.version;
    let tool = tools::all(context.instance, "pg_amcheck").pop().filter(|_| server.has_verify_heapam());
    for database in databases {
        let mut inside = Db::connect(&target.database(database))?;
        // Whatever its database or its event triggers want; they do not run in this role.
        inside.run(
            "SET statement_timeout = 0; SET default_transaction_read_only = off; \
             SET session_replication_role = replica",
        )?;
        inside.run(&format!("CREATE SCHEMA IF NOT EXISTS {AMCHECK}"))?;
        inside.run(&format!("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA {AMCHECK}"))?;
        // One that came along may be of an older version, which lacks functions.
        inside.run("ALTER EXTENSION amcheck UPDATE")?;
        match &tool {
            Some(tool) => amcheck(target, tool, database, jobs)?,
            None => {
                indexes(&mut inside, server, database)?;
                tables_without_index(&mut inside, database)?;
            }
        }
    }
    Ok(match tool {
        Some(tool) => {
            format!("pg_amcheck {} found nothing wrong with tables and B-tree indexes", tool.version)
        }
        None => "amcheck found nothing wrong with B-tree indexes; the pages of tables were only read".into(),
    })
}

fn amcheck(target: &Target, tool: &tools::Tool, database: &str, jobs: usize) -> Result<()> {
    let mut command = Command::new(&tool.path);
    super::super::client::point(&mut command, &target.database(database));
    let _passfile = Passfile::write(target, &mut command)?;
    command.env("LC_ALL", "C").env("PGOPTIONS", "-c lc_messages=C -c statement_timeout=0");
    // The database from the environment: as an argument its name would be a pattern.
    command.env("PGDATABASE", fill::conninfo(database));
    command.args(["--no-password", "--heapallindexed"]).arg(format!("--jobs={jobs}"));
    let mut said = Vec::new();
    let status = process::run_lines(command, CHECK_LIMIT, |line| {
        if said.len() < 6 && !line.trim().is_empty() {
            said.push(line.trim().to_owned());
        }
        Ok(())
    })?;
    match status.code() {
        Some(0) => Ok(()),
        // Its own way to say that something is wrong with the data.
        Some(2) => Err(Error::StructureDamaged { database: database.into(), said: said.join("; ") }),
        _ => Err(Error::Child {
            program: "pg_amcheck".into(),
            status: status.to_string(),
            said: said.join("; "),
        }),
    }
}

/// Every B-tree by SQL, and every row of their tables by the way (`heapallindexed`).
fn indexes(db: &mut Db, server: PgVersion, database: &str) -> Result<()> {
    // One that CREATE INDEX CONCURRENTLY has not finished is nothing to check.
    let all = "SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = relam \
               JOIN pg_index i ON i.indexrelid = c.oid WHERE amname = 'btree' AND relkind = 'i' \
               AND relpersistence = 'p' AND indisvalid AND indisready ORDER BY 1";
    let schema: String =
        db.value("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'amcheck'", &[])?;
    let all_rows = if server.has_heapallindexed() { ", true" } else { "" };
    for row in db.rows(all, &[])? {
        let (oid, name): (u32, String) = (row.get(0), row.get(1));
        look_at(db, database, &name, &format!("SELECT {schema}.bt_index_check({oid}::oid{all_rows})"))?;
    }
    Ok(())
}

/// Rows that no index leads to are read.
fn tables_without_index(db: &mut Db, database: &str) -> Result<()> {
    let all = "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind IN ('r', 'm') AND relpersistence = 'p' \
               AND relispopulated AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class b ON b.oid = indexrelid \
               JOIN pg_am a ON a.oid = b.relam WHERE indrelid = c.oid AND amname = 'btree' AND indpred IS NULL \
               AND indisvalid AND indisready) ORDER BY 1";
    for row in db.rows(all, &[])? {
        let name: String = row.get(0);
        look_at(db, database, &name, &format!("SELECT count(*) FROM ONLY {name}"))?;
    }
    Ok(())
}

fn look_at(db: &mut Db, database: &str, name: &str, sql: &str) -> Result<()> {
    process::check_interrupt()?;
    match db.rows_interruptible(sql, &[]) {
        Ok(_) => Ok(()),
        Err(Error::Sql { why, .. }) if db.is_alive() => {
            let said = format!("{name}: {why}");
            Err(Error::StructureDamaged { database: database.into(), said })
        }
        Err(error) => Err(error),
    }
}
