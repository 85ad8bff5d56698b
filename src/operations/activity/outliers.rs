//! Owns which statements took the most time, by pg_stat_statements: found in whatever database it is, or created.

use super::super::Context;
use super::{masked, target};
use crate::error::{Error, Result};
use crate::postgres::files::preloaded_libraries;
use crate::sql::{Db, Target};
use serde::Serialize;

const EXTENSION: &str = "pg_stat_statements";

/// A statement, with all its executions since the counters were reset.
#[derive(Debug, Serialize)]
pub struct Statement {
    /// Milliseconds, all executions together.
    pub total_ms: f64,
    /// Of the time of all statements, 0 to 1.
    pub share: f64,
    /// Executions.
    pub calls: i64,
    /// Milliseconds, one execution.
    pub mean_ms: f64,
    /// Milliseconds of reading and writing blocks; none without track_io_timing.
    pub io_ms: Option<f64>,
    /// Role.
    pub user: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// Its text, with parameters in place of constants and passwords masked.
    pub query: Option<String>,
}

/// What took the time.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// The database whose extension was asked; it counts for all databases.
    pub database: String,
    /// The extension was created there just now.
    pub created: bool,
    /// The counters were reset, and nothing else was done.
    pub reset: bool,
    /// The server measures I/O.
    pub io_timing: bool,
    /// Milliseconds of all statements.
    pub total_ms: f64,
    /// The longest first.
    pub statements: Vec<Statement>,
}

/// The `limit` statements that took the most time; or with `reset` begins to count anew.
pub fn run(context: Context, limit: u32, reset: bool) -> Result<Report> {
    let target = target(context)?;
    let mut db = Db::connect(&target)?;
    check_counted(context, &mut db)?;
    let (mut db, database, created) = find(context, &target, db)?;
    let io_timing = db.setting("track_io_timing")?.as_deref() == Some("on");
    let schema: String = db.value(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
         WHERE e.extname = $1",
        &[&EXTENSION],
    )?;
    let instance = context.instance.name.clone();
    let mut report =
        Report { instance, database, created, reset, io_timing, total_ms: 0.0, statements: Vec::new() };
    if reset {
        db.rows(&format!("SELECT {schema}.pg_stat_statements_reset()"), &[])?;
        return Ok(report);
    }
    let columns = db.rows(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 \
         AND NOT attisdropped",
        &[&format!("{schema}.{EXTENSION}")],
    )?;
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    let sql = statements_sql(&schema, &columns);
    for row in db.rows(&sql, &[&i64::from(limit)])? {
        let (total_ms, calls): (f64, i64) = (row.get(0), row.get(1));
        report.total_ms = row.get(2);
        report.statements.push(Statement {
            total_ms,
            share: if report.total_ms > 0.0 { total_ms / report.total_ms } else { 0.0 },
            calls,
            mean_ms: if calls > 0 { total_ms / calls as f64 } else { 0.0 },
            io_ms: io_timing.then(|| row.get(3)),
            user: row.get(4),
            database: row.get(5),
            query: row.get::<_, Option<String>>(6).map(masked),
        });
    }
    Ok(report)
}

/// Whether there is anything to see, and else how to have it the next time.
fn check_counted(context: Context, db: &mut Db) -> Result<()> {
    let preloaded = preloaded_libraries(&db.setting("shared_preload_libraries")?.unwrap_or_default());
    if preloaded.iter().any(|library| library.trim_start_matches("$libdir/") == EXTENSION) {
        return Ok(());
    }
    let installed =
        db.value("SELECT count(*) > 0 FROM pg_available_extensions WHERE name = $1", &[&EXTENSION])?;
    Err(Error::StatementsNotCounted { instance: context.instance.name.clone(), preloaded, installed })
}

/// The connection to a database that has the extension, that database, and whether it had to be created.
fn find(context: Context, target: &Target, mut db: Db) -> Result<(Db, String, bool)> {
    if has_extension(&mut db)? {
        return Ok((db, target.database.clone(), false));
    }
    let others = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate \
                  AND datname <> current_database() ORDER BY oid";
    for row in db.rows(others, &[])? {
        let name: String = row.get(0);
        // One that cannot be entered is no reason not to look into the next.
        let Ok(mut other) = Db::connect(&target.database(&name)) else { continue };
        if has_extension(&mut other)? {
            return Ok((other, name, false));
        }
    }
    if db.in_recovery()? {
        return Err(Error::StatementsNotShown { instance: context.instance.name.clone() });
    }
    context.progress.step(format!("creating the extension {EXTENSION} in the database {}", target.database));
    db.run(&format!("CREATE EXTENSION IF NOT EXISTS {EXTENSION}"))?;
    Ok((db, target.database.clone(), true))
}

fn has_extension(db: &mut Db) -> Result<bool> {
    db.value("SELECT count(*) > 0 FROM pg_extension WHERE extname = $1", &[&EXTENSION])
}

/// The names of the columns follow the extension's own version, which pg_upgrade leaves behind the server's:
/// `total_time` became `total_exec_time` with PostgreSQL 13, `blk_read_time` `shared_blk_read_time` with 17,
/// which also tells of `local_` and, from 15 on, of `temp_blk_read_time`.
fn statements_sql(schema: &str, columns: &[String]) -> String {
    let total = if columns.iter().any(|c| c == "total_time") { "total_time" } else { "total_exec_time" };
    let is_io = |c: &&String| c.ends_with("blk_read_time") || c.ends_with("blk_write_time");
    let io: Vec<_> = columns.iter().filter(is_io).map(|column| format!("s.{column}")).collect();
    let io = if io.is_empty() { "0::float8".to_owned() } else { io.join(" + ") };
    format!(
        "SELECT s.{total}, s.calls, sum(s.{total}) OVER (), {io}, pg_get_userbyid(s.userid)::text, \
         d.datname::text, s.query FROM {schema}.{EXTENSION} s LEFT JOIN pg_database d ON d.oid = s.dbid \
         ORDER BY 1 DESC LIMIT $1"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_each_version() {
        let sql = |columns: &str| {
            statements_sql("public", &columns.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        let old = sql("calls total_time blk_read_time blk_write_time");
        assert!(old.contains("s.total_time, ") && old.contains("s.blk_read_time + s.blk_write_time"));
        let middle = sql("total_plan_time calls total_exec_time blk_read_time blk_write_time");
        assert!(middle.contains("s.total_exec_time, "));
        let new = sql("total_exec_time shared_blk_read_time shared_blk_write_time local_blk_read_time \
                       local_blk_write_time temp_blk_read_time temp_blk_write_time");
        let io = "s.shared_blk_read_time + s.shared_blk_write_time + s.local_blk_read_time";
        assert!(new.contains(io) && new.contains("s.temp_blk_write_time,"), "{new}");
        assert!(sql("calls total_time").contains("0::float8"));
    }
}
