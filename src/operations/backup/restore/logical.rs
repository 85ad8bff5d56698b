//! Restores one database: into a new one beside the old one, compared with the manifest, and only then swapped.

use super::super::super::{Context, primary};
use super::super::properties;
use super::super::tools::{self, Tool};
use super::Options;
use super::fill::{self, Filling};
use super::source::{Archive, Opened};
use super::swap::{self, Old};
use crate::backups::manifest::{Manifest, Properties};
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::postgres::version::PgVersion;
use crate::progress::bytes_text;
use crate::sql::{Db, Target, identifier};
use serde::Serialize;
use std::io::Read;
use std::time::Instant;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// What was restored.
    pub source: String,
    /// Into which database.
    pub database: String,
    /// What that held before, e.g. `12 tables, 3.4 MB`; none when it was not there or empty.
    pub loses: Option<String>,
    /// Tables and materialized views in it now.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Sessions of the old database that were ended at the swap.
    pub sessions_ended: usize,
    /// Databases that were dropped: the replaced one, and what earlier runs that were killed had left.
    pub dropped: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Restores `opened`.
pub fn run(context: Context, opened: Opened, options: &Options, begin: Instant) -> Result<Report> {
    let instance = context.instance;
    let mut db = primary::connect(instance, "data")?;
    let target = Target::local(instance)?;
    check_superuser(&mut db, &target)?;
    let of_manifest = || opened.manifest.as_ref().and_then(|manifest| manifest.database.clone());
    let database = options.database.clone().or_else(of_manifest);
    let database = database.ok_or_else(|| Error::RestoreWhere { source_name: opened.name.clone() })?;
    // Everything that can be known beforehand is asked before anything is touched, or a large file fetched.
    if ["template0", "template1"].contains(&database.as_str()) {
        return Err(Error::RestoreTemplate { database });
    }
    let mut db = match database.as_str() {
        "postgres" => swap::maintenance(&target, &database)?,
        _ => db,
    };
    let old = swap::old(&mut db, &database)?;
    let manifest = opened.manifest.clone();
    let mut plan = Plan { no_owner: options.no_owner, ..Plan::default() };
    if let Some(manifest) = &manifest {
        plan.check(context, &mut db, manifest, old.as_ref())?;
    }
    let tool = manifest.as_ref().map(|manifest| tool_for(context, manifest, db.version)).transpose()?;
    let loses = match &old {
        Some(old) => holds(&mut db, &target.database(&database), old)?,
        None => None,
    };
    let tied = swap::tied(&mut db, &database)?;
    if !tied.is_empty() {
        return Err(Error::DatabaseTied { database, by: tied });
    }
    let mut report = Report {
        instance: instance.name.clone(),
        dry_run: options.dry_run,
        source: opened.name.clone(),
        database: database.clone(),
        loses,
        tables: manifest.as_ref().map_or(0, |manifest| manifest.tables.len()),
        rows: manifest.iter().flat_map(|m| &m.tables).filter_map(|table| table.rows).sum(),
        sessions_ended: 0,
        dropped: Vec::new(),
        warnings: plan.warnings,
        seconds: 0.0,
    };
    if options.dry_run {
        return Ok(report);
    }
    if let Some(holds) = report.loses.as_ref().filter(|_| options.confirm.as_ref() != Some(&instance.name)) {
        let (instance, holds) = (instance.name.clone(), holds.clone());
        return Err(Error::ReplacesDatabase { instance, database, holds });
    }
    report.dropped = swap::sweep(&mut db)?;
    // From here on the archive is whole, as far as its checksum says.
    let archive = opened.archive(context)?;
    let tool = match tool {
        Some(tool) => tool,
        None => tools::find(instance, "pg_restore", version_of(&archive)?, db.version)?,
    };

    let needs = manifest.as_ref().map(|manifest| &manifest.needs);
    // A database that is gone comes back as it was; where there is one, it keeps what it has.
    let recorded = manifest.as_ref().and_then(|manifest| manifest.properties.clone());
    let recorded = recorded.filter(|_| old.is_none() && !options.no_owner);
    let owner = old.as_ref().map(|old| &old.owner).or(recorded.as_ref().map(|recorded| &recorded.owner));
    let (mut new, warning) =
        swap::create(&mut db, &target, &database, old.as_ref(), needs, owner.map(String::as_str))?;
    report.warnings.extend(warning);
    context
        .progress
        .step(format!("restoring {} by pg_restore {} into {}", report.source, tool.version, new.name));
    let inside = target.database(&new.name);
    let owner = old.as_ref().map(|old| old.owner.clone()).filter(|owner| *owner != target.user);
    let role = match &owner {
        Some(_) if options.no_owner => Some(new.with_role(&mut db)?),
        _ => None,
    };
    let jobs = options.jobs.unwrap_or(instance.backup.jobs);
    let filling = Filling {
        tool: &tool,
        target: &inside,
        archive: &archive.path,
        jobs,
        role: role.as_deref(),
        no_owner: options.no_owner,
        no_tablespaces: plan.no_tablespaces,
        tables: report.tables,
        section: None,
    };
    filling.run(context, &db)?;
    drop(archive);
    if let Some(owner) = &owner {
        new.give_to(owner)?;
    }
    let found = fill::compare(context, &inside, manifest.as_ref(), jobs)?;
    (report.tables, report.rows) = (found.tables, found.rows);
    report.warnings.extend(found.warnings);

    if !db.is_alive() {
        db = swap::maintenance(&target, &database)?;
    }
    // A slot that was made meanwhile would go with the old database, without a word.
    let tied = swap::tied(&mut db, &database)?;
    if !tied.is_empty() {
        return Err(Error::DatabaseTied { database, by: tied });
    }
    let properties = match (&old, recorded) {
        (Some(old), _) => properties::read(&mut db, old.oid)?,
        (None, Some(recorded)) => as_far_as_known(&mut db, recorded, &database, &mut report.warnings)?,
        (None, None) => Properties::new(&target.user),
    };
    let swapped = swap::swap(context, &mut db, &mut new, old.as_ref(), properties)?;
    report.sessions_ended = swapped.sessions_ended;
    if let Some(old_name) = swapped.old_name {
        match swap::drop_database(&mut db, &old_name) {
            Ok(()) => report.dropped.push(old_name),
            Err(error) => report.warnings.push(format!(
                "the old database is still there: {error}; DROP DATABASE {} removes it, as the next restore does",
                identifier(&old_name)
            )),
        }
    }
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Without what is of roles that are not here.
fn as_far_as_known(
    db: &mut Db,
    mut properties: Properties,
    database: &str,
    warnings: &mut Vec<String>,
) -> Result<Properties> {
    let roles: Vec<String> =
        db.rows("SELECT rolname::text FROM pg_roles", &[])?.iter().map(|row| row.get(0)).collect();
    let here = |role: &Option<String>| role.as_ref().is_none_or(|role| roles.contains(role));
    properties.settings.retain(|setting| here(&setting.role));
    if let Some(grants) = &mut properties.grants {
        grants.retain(|grant| here(&grant.to));
    }
    if !properties.left_out.is_empty() {
        warnings.push(format!(
            "settings of its own that {database} had are not in a backup, for they may be secrets: {}; ALTER DATABASE \
             ... SET gives them again",
            properties.left_out.join(", ")
        ));
    }
    Ok(properties)
}

/// Refuses a user that is no superuser here.
pub fn check_superuser(db: &mut Db, target: &Target) -> Result<()> {
    let is_superuser: bool = db.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?;
    if is_superuser {
        return Ok(());
    }
    Err(Error::NotSuperuser { user: target.user.clone(), at: target.label.clone() })
}

/// The pg_restore for a backup.
pub fn tool_for(context: Context, manifest: &Manifest, server: PgVersion) -> Result<Tool> {
    let said = manifest.tool_version.as_ref().unwrap_or(&manifest.server_version);
    tools::find(context.instance, "pg_restore", PgVersion::parse(said)?, server)
}

/// The oldest pg_dump that writes such an archive: K_VERS_* in src/bin/pg_dump/pg_backup_archiver.h.
fn version_of(archive: &Archive) -> Result<PgVersion> {
    let mut head = [0u8; 7];
    let file = std::fs::File::open(&archive.path).on("open", &archive.path);
    file.and_then(|mut file| file.read_exact(&mut head).on("read", &archive.path))?;
    PgVersion::parse(match (head[5], head[6]) {
        (1, 0..=13) => "10",
        (1, 14) => "12",
        (1, 15) => "16",
        _ => "17",
    })
}

/// What a person would miss of the old database; none when it has nothing of its own.
pub fn holds(db: &mut Db, target: &Target, old: &Old) -> Result<Option<String>> {
    let size: i64 = db.value("SELECT pg_database_size($1::oid)", &[&old.oid])?;
    let size = bytes_text(size as u64);
    let mut inside = match Db::connect(target) {
        Ok(inside) => inside,
        // Closed to connections: whatever it is, it is not nothing.
        Err(Error::SqlRefused { .. }) => return Ok(Some(size)),
        Err(error) => return Err(error),
    };
    let counted = |catalog: &str, condition: &str| {
        format!(
            "(SELECT count(*) FROM {catalog} o WHERE o.oid >= 16384 {condition} AND NOT EXISTS (SELECT FROM pg_depend d \
             WHERE d.classid = '{catalog}'::regclass AND d.objid = o.oid AND d.deptype = 'e'))"
        )
    };
    let sql = format!(
        "SELECT {}, {} + {} + {} + (SELECT count(*) FROM pg_largeobject_metadata)",
        counted("pg_class", "AND relkind IN ('r', 'p', 'm', 'f')"),
        counted("pg_class", "AND relkind IN ('v', 'S')"),
        counted("pg_proc", ""),
        counted("pg_type", "AND typtype IN ('d', 'e', 'r')"),
    );
    let row = inside.row(&sql, &[])?;
    Ok(match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
        (0, 0) => None,
        (0, _) => Some(size),
        (1, _) => Some(format!("1 table, {size}")),
        (tables, _) => Some(format!("{tables} tables, {size}")),
    })
}

/// What was found out beforehand.
#[derive(Default)]
struct Plan {
    no_owner: bool,
    no_tablespaces: bool,
    warnings: Vec<String>,
}

impl Plan {
    fn check(&mut self, context: Context, db: &mut Db, manifest: &Manifest, old: Option<&Old>) -> Result<()> {
        let name = || context.instance.name.clone();
        let theirs = PgVersion::from_num(manifest.server_version_num);
        if db.version < theirs && !db.version.same_major(theirs) {
            self.warnings.push(format!(
                "the backup is of PostgreSQL {theirs}, and this is the older {}: what only the newer one knows fails",
                db.version
            ));
        }
        let roles = missing(db, "SELECT rolname::text FROM pg_roles", manifest.needs.roles.iter())?;
        if !roles.is_empty() && !self.no_owner {
            return Err(Error::RestoreRoles { roles, instance: name() });
        }
        check_extensions(db, manifest, name())?;
        let spaces = "SELECT spcname::text FROM pg_tablespace";
        let tablespaces = missing(db, spaces, manifest.needs.tablespaces.keys())?;
        if !tablespaces.is_empty() {
            self.no_tablespaces = true;
            self.warnings.push(format!(
                "all goes to the database's own tablespace, for these are not here: {}",
                tablespaces.join(", ")
            ));
        }
        let directory = match old.and_then(|old| old.location.clone()) {
            Some(location) => location.into(),
            None => context.instance.data_directory()?,
        };
        let (needed, available) = (manifest.database_size, durable::available_space(&directory)?);
        if available < needed {
            return Err(Error::NoSpace { path: directory, needed, available });
        }
        Ok(())
    }
}

/// Refuses when the server lacks an extension that the backup needs.
pub fn check_extensions(db: &mut Db, manifest: &Manifest, instance: String) -> Result<()> {
    let here = "SELECT name::text FROM pg_available_extensions";
    let extensions = missing(db, here, manifest.needs.extensions.keys())?;
    if extensions.is_empty() { Ok(()) } else { Err(Error::RestoreExtensions { extensions, instance }) }
}

fn missing<'a>(db: &mut Db, here: &str, wanted: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let here: Vec<String> = db.rows(here, &[])?.iter().map(|row| row.get(0)).collect();
    Ok(wanted.filter(|name| !here.contains(name)).cloned().collect())
}
