//! The schema: pg_dump writes it into memory, pg_restore reads it from there, before the rows and behind them.

use super::super::Context;
use super::super::backup::restore::fill::conninfo;
use super::super::backup::tools::{self, Tool};
use super::super::client::{self, Passfile};
use super::units::OWN_SCHEMA;
use crate::error::{Error, Result};
use crate::process::{self, Producer};
use crate::sql::{Db, Target};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// No schema takes longer, however many tables it has.
const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// pg_dump's clean-up behind its last byte.
const END_LIMIT: Duration = Duration::from_secs(60);
/// A table that somebody has locked is waited for so long.
pub const LOCK_LIMIT: Duration = Duration::from_secs(300);

/// An archive of pg_dump without rows.
pub struct Schema {
    file: File,
    /// The pg_restore for it.
    pub restore: Tool,
}

impl Schema {
    /// What `snapshot` of `source` shows.
    pub fn dump(
        context: Context,
        source: &Target,
        db: &Db,
        snapshot: &str,
        side: &Db,
    ) -> Result<(Schema, Vec<String>)> {
        let tool = tools::find(context.instance, "pg_dump", db.version, side.version)?;
        let beside = tools::at(&tool.path.with_file_name("pg_restore"));
        let restore = match beside.filter(|restore| restore.version == tool.version) {
            Some(restore) => restore,
            None => tools::find(context.instance, "pg_restore", tool.version, side.version)?,
        };
        context.progress.detail(format!("{} {} --schema-only", tool.path.display(), tool.version));
        let mut command = Command::new(&tool.path);
        client::point(&mut command, source);
        let _passfile = Passfile::write(source, &mut command)?;
        command.env_remove("PGOPTIONS").env_remove("PGCLIENTENCODING").env("LC_ALL", "C");
        command.env("PGAPPNAME", "pgmahout");
        command.args(["-Fc", "-Z0", "--no-password", "--schema-only"]);
        command.arg(format!("--lock-wait-timeout={}", LOCK_LIMIT.as_millis()));
        command.arg(format!("--snapshot={snapshot}")).arg(format!("--exclude-schema={OWN_SCHEMA}"));
        // A network that was cut is noticed.
        let alive = "connect_timeout=30 keepalives_idle=15 keepalives_interval=5 keepalives_count=6";
        command.arg("--dbname").arg(format!("{} {alive}", conninfo(&source.database)));
        let mut file = client::memory("schema")?;
        let mut producer = Producer::start(command, LIMIT)?;
        let copied = io::copy(&mut producer.stdout, &mut file);
        process::check_interrupt()?;
        let finished = producer.finish(END_LIMIT)?;
        if !finished.status.success() {
            let said = finished.stderr.trim();
            let said = if said.is_empty() { "it said nothing" } else { said };
            let said = said.strip_prefix("pg_dump: error: ").unwrap_or(said).to_owned();
            let (database, status) = (source.database.clone(), finished.status.to_string());
            return Err(Error::Dump { database, status, said });
        }
        copied.map_err(|source| Error::File {
            action: "write",
            path: "a schema in memory".into(),
            source,
        })?;
        let warnings = finished.stderr.lines().take(20).map(str::to_owned).collect();
        Ok((Schema { file, restore }, warnings))
    }

    /// Where every job of pg_restore opens it anew.
    pub fn path(&self) -> PathBuf {
        client::memory_path(&self.file).into()
    }
}
