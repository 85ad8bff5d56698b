//! Fills a database from an archive of pg_dump by pg_restore, and compares it with what the manifest says. Both
//! for a restore and for a verification.

use super::super::super::Context;
use super::super::super::client::{self, Passfile};
use super::super::tools::Tool;
use crate::backups::manifest::Manifest;
use crate::error::{Error, Result};
use crate::postgres::plan::machine_memory;
use crate::process;
use crate::sql::{Db, Target, identifier};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// No restore takes longer.
const LIMIT: Duration = Duration::from_secs(7 * 86_400);

/// How an archive is restored.
pub struct Filling<'a> {
    /// pg_restore.
    pub tool: &'a Tool,
    /// The database, which is empty.
    pub target: &'a Target,
    /// The archive: it is opened by every job.
    pub archive: &'a Path,
    /// Jobs at the same time.
    pub jobs: usize,
    /// Without owners and grants; by this role, which owns everything then.
    pub role: Option<&'a str>,
    /// Without owners and grants.
    pub no_owner: bool,
    /// Everything in the database's own tablespace.
    pub no_tablespaces: bool,
    /// Tables with data, as far as that is known: for the progress.
    pub tables: usize,
    /// Only a part of it.
    pub section: Option<Section>,
}

/// A part of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// All that stands before the rows.
    PreData,
    /// Indexes, constraints, triggers and all that stands behind the rows.
    PostData,
}

/// A database's name as a connection string: a bare name with `=` in it would be read as one.
pub fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl Filling<'_> {
    /// Runs pg_restore to its end.
    ///
    /// # Errors
    /// [`Error::RestoreFailed`] with the first error that it named.
    pub fn run(&self, context: Context, server: &Db) -> Result<()> {
        let mut command = Command::new(&self.tool.path);
        client::point(&mut command, self.target);
        let _passfile = Passfile::write(self.target, &mut command)?;
        // Its messages are read here. What a crash of the server would lose is made anew anyway.
        // And the event triggers that come along are not to forbid what comes behind them (REFRESH): in this role they
        // do not run; foreign keys are looked at all the same.
        let memory = sorting_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), self.jobs);
        let options = format!(
            "-c lc_messages=C -c synchronous_commit=off -c session_replication_role=replica \
             -c maintenance_work_mem={memory}MB"
        );
        command.env("LC_ALL", "C").env("PGOPTIONS", options);
        command.env("PGAPPNAME", "pgmahout restore");
        command.args(["--verbose", "--no-password", "--format=custom"]);
        // A newer pg_restore sets what an older server does not know, and that is to be its only error.
        let tolerant =
            self.tool.version.has_transaction_timeout() && !server.version.has_transaction_timeout();
        if !tolerant {
            command.arg("--exit-on-error");
        }
        if self.no_owner {
            command.args(["--no-owner", "--no-acl"]);
        }
        // What is counted, and how a line begins that tells of one.
        let (what, things, one) = match self.section {
            None => ("restore", "tables", "processing data for table "),
            Some(Section::PreData) => ("schema", "tables", "creating TABLE "),
            Some(Section::PostData) => ("indexes and constraints", "of them", "creating "),
        };
        match self.section {
            None => {}
            Some(Section::PreData) => drop(command.arg("--section=pre-data")),
            Some(Section::PostData) => drop(command.arg("--section=post-data")),
        }
        if let Some(role) = self.role {
            command.arg(format!("--role={role}"));
        }
        if self.no_tablespaces {
            command.arg("--no-tablespaces");
        }
        command.arg(format!("--jobs={}", self.jobs)).arg("--dbname").arg(conninfo(&self.target.database));
        command.arg("--").arg(self.archive);
        context.progress.begin_about(what, self.tables as u64, things);
        let mut said = Said::default();
        let status = process::run_lines(command, LIMIT, |line| {
            if line.contains(one) {
                context.progress.add(1);
            }
            context.progress.detail(line);
            said.line(line);
            // Without --exit-on-error it would go on although nothing can come of it.
            if tolerant && said.error().is_some() { Err(self.failed("ended", &said)) } else { Ok(()) }
        });
        context.progress.end();
        let status = status?;
        let only_harmless =
            tolerant && status.code() == Some(1) && said.harmless > 0 && said.error().is_none();
        if status.success() || only_harmless { Ok(()) } else { Err(self.failed(&status.to_string(), &said)) }
    }

    fn failed(&self, status: &str, said: &Said) -> Error {
        let text = said.error().or_else(|| said.last.clone()).unwrap_or_else(|| "it said nothing".into());
        Error::RestoreFailed { program: "pg_restore".into(), status: status.into(), said: text }
    }
}

/// Megabytes that each job's index builds may use: what is free now, of which most is left to the server and its
/// cache.
fn sorting_memory(meminfo: &str, jobs: usize) -> u64 {
    let available = machine_memory(meminfo).map_or(0, |(_, available)| available);
    // An index build uses it once more for each of its parallel workers, two as a rule.
    ((available / 16 / jobs.max(1) as u64) >> 20).clamp(64, 1024)
}

/// What pg_restore says, as far as it matters.
#[derive(Default)]
struct Said {
    /// The first error, with what belongs to it.
    first: Vec<String>,
    /// That error is complete.
    closed: bool,
    /// Errors that had to come.
    harmless: usize,
    last: Option<String>,
}

impl Said {
    fn line(&mut self, line: &str) {
        // Only by its beginning: a table may be called as an error is. The last form is that of 11 and before.
        let is_error = line.starts_with("pg_restore: error: ")
            || line.starts_with("pg_restore: fatal: ")
            || (line.starts_with("pg_restore: [") && line.contains("] could not "));
        if is_error && line.contains("unrecognized configuration parameter \"transaction_timeout\"") {
            self.harmless += 1;
            return;
        }
        if is_error && self.first.is_empty() {
            self.first.push(line.trim_start_matches("pg_restore: ").trim_start_matches("error: ").to_owned());
            return;
        }
        if !self.first.is_empty() && !self.closed {
            // DETAIL, CONTEXT, "Command was": the first lines of it.
            self.closed = line.starts_with("pg_restore: ") || self.first.len() >= 4;
            if !self.closed {
                self.first.push(line.trim().to_owned());
            }
        }
        if line.starts_with("pg_restore: ") {
            self.last = Some(line.to_owned());
        }
    }

    fn error(&self) -> Option<String> {
        (!self.first.is_empty()).then(|| self.first.join("; ").chars().take(1000).collect())
    }
}

/// What was found in a restored database.
#[derive(Debug, Default)]
pub struct Found {
    /// Tables and materialized views.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// What could not be done and does not matter much.
    pub warnings: Vec<String>,
}

struct Counted {
    schema: String,
    name: String,
    /// Its extension puts rows into it by itself.
    of_extension: bool,
    /// Not so a materialized view WITH NO DATA, which cannot be read.
    is_populated: bool,
}

const TABLES: &str = "SELECT n.nspname, c.relname, EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
     AND d.objid = c.oid AND d.deptype = 'e'), c.relispopulated \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm', 'p') \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' \
     AND n.nspname NOT LIKE 'pg\\_temp%' ORDER BY pg_table_size(c.oid) DESC";

/// Counts every table's rows and compares them with the manifest, collects the planner's statistics on the way,
/// and looks for missing extensions and indexes that are not valid.
///
/// # Errors
/// [`Error::RestoredDiffers`] with every difference.
pub fn compare(context: Context, target: &Target, manifest: Option<&Manifest>, jobs: usize) -> Result<Found> {
    let mut db = Db::connect(target)?;
    db.run("SET statement_timeout = 0")?;
    let rows = db.rows(TABLES, &[])?;
    let tables: Vec<Counted> = rows
        .iter()
        .map(|row| Counted {
            schema: row.get(0),
            name: row.get(1),
            of_extension: row.get(2),
            is_populated: row.get(3),
        })
        .collect();
    let mut found = Found { tables: tables.len(), ..Found::default() };
    let counted = count(context, target, &tables, jobs, &mut found.warnings)?;
    found.rows = counted.values().sum();
    let mut differences = Vec::new();
    for table in manifest.iter().flat_map(|manifest| &manifest.tables) {
        let name = format!("{}.{}", table.schema, table.name);
        let there = counted.get(&(table.schema.clone(), table.name.clone()));
        let of_extension =
            || tables.iter().any(|t| t.schema == table.schema && t.name == table.name && t.of_extension);
        match (there, table.rows) {
            (None, _) => differences.push(format!("there is no table {name}")),
            (Some(there), Some(rows)) if *there != rows && !(*there > rows && of_extension()) => {
                differences.push(format!("{name} has {there} rows in place of {rows}"))
            }
            _ => {}
        }
    }
    for name in manifest.iter().flat_map(|manifest| manifest.needs.extensions.keys()) {
        if db.rows("SELECT FROM pg_extension WHERE extname = $1", &[name])?.is_empty() {
            differences.push(format!("there is no extension {name}"));
        }
    }
    let invalid = db.rows(
        "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = indexrelid \
         WHERE NOT indisvalid AND relkind = 'i'",
        &[],
    )?;
    differences
        .extend(invalid.iter().map(|row| format!("the index {} is not valid", row.get::<_, String>(0))));
    match differences.is_empty() {
        true => Ok(found),
        false => {
            let more = differences.len().saturating_sub(10);
            differences.truncate(10);
            if more > 0 {
                differences.push(format!("and {more} more"));
            }
            Err(Error::RestoredDiffers { what: differences })
        }
    }
}

type Rows = BTreeMap<(String, String), u64>;

/// Every table's own rows, by several connections, the largest tables first.
fn count(
    context: Context,
    target: &Target,
    tables: &[Counted],
    jobs: usize,
    warnings: &mut Vec<String>,
) -> Result<Rows> {
    context.progress.begin_about("count", tables.len() as u64, "tables");
    let (next, done, warned) = (Mutex::new(tables.iter()), Mutex::new(Rows::new()), Mutex::new(Vec::new()));
    // All connections before any work: that there are too many of them is found at once.
    let connect = |_| {
        let mut db = Db::connect(target)?;
        db.run("SET statement_timeout = 0; SET synchronous_commit = off")?;
        Ok(db)
    };
    let connections = (0..jobs.clamp(1, tables.len().max(1))).map(connect).collect::<Result<Vec<Db>>>()?;
    let work = |db: &mut Db| -> Result<()> {
        loop {
            process::check_interrupt()?;
            let Some(table) = next.lock().expect("no panic").next() else { return Ok(()) };
            let key = (table.schema.clone(), table.name.clone());
            if !table.is_populated {
                done.lock().expect("no panic").insert(key, 0);
                context.progress.add(1);
                continue;
            }
            let name = format!("{}.{}", identifier(&table.schema), identifier(&table.name));
            let counted = db.rows_interruptible(&format!("SELECT count(*) FROM ONLY {name}"), &[])?;
            let counted = counted.first().map_or(0i64, |row| row.get(0)) as u64;
            done.lock().expect("no panic").insert(key, counted);
            // What a function of the user's makes of it is no reason to throw a restored database away.
            if let Err(error) = db.rows_interruptible(&format!("ANALYZE {name}"), &[]) {
                process::check_interrupt()?;
                warned.lock().expect("no panic").push(format!("no statistics of {name}: {error}"));
            }
            context.progress.add(1);
        }
    };
    // The connections come back, to be closed one after the other too.
    let outcome: Vec<(Result<()>, Db)> = std::thread::scope(|scope| {
        let start = |mut db: Db| {
            let work = &work;
            scope.spawn(move || (work(&mut db), db))
        };
        let threads: Vec<_> = connections.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    context.progress.end();
    outcome.into_iter().try_for_each(|(outcome, _)| outcome)?;
    warnings.extend(warned.into_inner().expect("no panic"));
    Ok(done.into_inner().expect("no panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        let mut said = Said::default();
        text.lines().for_each(|line| said.line(line));
        said
    }

    #[test]
    fn index_builds_get_a_part_of_what_is_free() {
        let free = |gigabytes: u64| format!("MemTotal: 1 kB\nMemAvailable: {} kB\n", gigabytes << 20);
        assert_eq!(sorting_memory(&free(8), 2), 256);
        assert_eq!(sorting_memory(&free(1), 2), 64);
        assert_eq!(sorting_memory(&free(500), 1), 1024);
        assert_eq!(sorting_memory("", 1), 64);
    }

    #[test]
    fn the_first_error_is_the_error() {
        let text = "pg_restore: creating TABLE \"public.t\"\n\
            pg_restore: while PROCESSING TOC:\n\
            pg_restore: from TOC entry 3; 2606 1 CONSTRAINT t t_pkey me\n\
            pg_restore: error: could not execute query: ERROR:  could not create unique index \"t_pkey\"\n\
            DETAIL:  Key (id)=(1) is duplicated.\n\
            Command was: ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);\n\
            pg_restore: error: another";
        let error = said(text).error().unwrap();
        assert!(
            error.starts_with("could not execute query: ERROR:  could not create unique index"),
            "{error}"
        );
        assert!(error.contains("is duplicated") && !error.contains("another"), "{error}");
    }

    #[test]
    fn a_setting_that_an_old_server_lacks_is_harmless() {
        let text = "pg_restore: while INITIALIZING:\n\
            pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\n\
            Command was: SET transaction_timeout = 0;\n\
            pg_restore: processing data for table \"public.t\"\n\
            pg_restore: warning: errors ignored on restore: 1";
        assert_eq!((said(text).harmless, said(text).error()), (1, None));
    }

    #[test]
    fn a_name_is_no_connection_string() {
        assert_eq!(conninfo(r"a=b 'c' \d"), r"dbname='a=b \'c\' \\d'");
    }
}
