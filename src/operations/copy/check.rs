//! Owns whether one database can be copied to the other: all that can be known before anything is touched.

use super::super::backup::restore::logical::{check_superuser, holds};
use super::super::backup::restore::swap::{self, Old};
use super::super::backup::tools;
use super::super::{Context, primary};
use super::source::{self, SCHEMA, Source};
use crate::backups::manifest::Needs;
use crate::durable;
use crate::error::{Error, Result};
use crate::postgres::version::PgVersion;
use crate::sql::{Db, Target, literal};
use serde::{Deserialize, Serialize};

/// The database here that is to be filled.
pub struct Here {
    /// This instance's server.
    pub target: Target,
    /// A connection to another database of it.
    pub db: Db,
    /// Its name.
    pub database: String,
    /// The database as it is; none where there is none.
    pub old: Option<Old>,
}

impl Here {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::OnStandby`] on a standby.
    pub fn open(context: Context, database: &str) -> Result<Here> {
        if ["template0", "template1"].contains(&database) {
            return Err(Error::RestoreTemplate { database: database.into() });
        }
        let mut db = primary::connect(context.instance, "data")?;
        let target = Target::local(context.instance)?;
        check_superuser(&mut db, &target)?;
        if database == "postgres" {
            db = swap::maintenance(&target, database)?;
        }
        let old = swap::old(&mut db, database)?;
        Ok(Here { target, db, database: database.into(), old })
    }

    /// Connects again where the connection, idle for hours, has broken.
    pub fn wake(&mut self) -> Result<()> {
        if !self.db.is_alive() {
            self.db = swap::maintenance(&self.target, &self.database)?;
        }
        Ok(())
    }
}

/// The database that is to be filled, as it is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct There {
    /// The server's version.
    pub version: String,
    /// E.g. 150018.
    pub version_num: u32,
    /// The cluster's identifier, in decimal.
    pub system_identifier: Option<String>,
    /// Its name.
    pub database: String,
    /// It exists.
    pub exists: bool,
    /// It has nothing of its own, or does not exist.
    pub is_empty: bool,
    /// What it has, e.g. `12 tables, 3.4 MB`.
    pub holds: Option<String>,
}

/// The pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// The source.
    pub source: Source,
    /// The database here.
    pub target: There,
    /// Everything is to belong to this role, without grants; none where owners and grants are kept.
    pub owner: Option<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Bytes that the copy may take.
    pub needed: u64,
    /// Bytes that are free.
    pub available: u64,
    /// The source's encoding and locale.
    #[serde(skip)]
    pub needs: Needs,
}

/// What may be different.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Without owners and grants.
    pub no_owner: bool,
    /// The database here need not be empty.
    pub replaces: bool,
}

/// Looks at both, and changes nothing.
///
/// # Errors
/// [`Error::TargetNotEmpty`] when that is all; otherwise [`Error::CopyImpossible`] with everything that is in the way.
pub fn examine(context: Context, from: &Target, here: &mut Here, wishes: Wishes) -> Result<Checked> {
    let mut db = source::connect(from)?;
    let source = source::facts(&mut db)?;
    let there = there(here)?;
    let mut found = Found { instance: context.instance.name.clone(), ..Found::default() };
    let theirs = db.version;
    if is_same(&mut db, &source, here)? {
        // Nothing else is worth saying then.
        found.problem(format!("it is the same database, {}", source::describe(from)), "give another target");
        return Err(found.error(&source.database));
    }
    found.versions(context, theirs, here.db.version);
    let holds = there.holds.clone().filter(|_| !wishes.replaces);
    found.extensions(&mut db, here)?;
    let owner = found.roles(&mut db, from, here, wishes)?;
    found.readable(&mut db, from)?;
    found.tablespaces(&mut db)?;
    found.settings(&mut db, from, here)?;
    let needs = swap::old(&mut db, &source.database)?.map(|old| old.needs).unwrap_or_default();
    found.locale(&needs, here);
    let tied = swap::tied(&mut here.db, &here.database)?;
    if !tied.is_empty() {
        let text = format!("{} has {} here", here.database, tied.join(", "));
        found.problem(text, "drop them, or copy to another database");
    }
    let directory = match here.old.as_ref().and_then(|old| old.location.clone()) {
        Some(location) => location.into(),
        None => context.instance.data_directory()?,
    };
    let (needed, available) = (source.size + source.size / 10, durable::available_space(&directory)?);
    if available < needed {
        found.error_of(&Error::NoSpace { path: directory, needed, available });
    }
    for copy in swap::copies(&mut here.db)?.iter().filter(|copy| copy.is_ours) {
        found.warnings.push(format!(
            "the unfinished copy {} is here; pgmahout copy-part clear {} --id {} drops it",
            copy.name,
            copy.database.as_deref().unwrap_or(&here.database),
            copy.id
        ));
    }
    match holds {
        Some(holds) if found.problems.is_empty() => {
            Err(Error::TargetNotEmpty { instance: found.instance, database: here.database.clone(), holds })
        }
        Some(holds) => {
            found.problem(format!("the database {} holds {holds}", here.database), "give an empty one");
            Err(found.error(&source.database))
        }
        None if found.problems.is_empty() => {
            Ok(Checked { source, target: there, owner, warnings: found.warnings, needed, available, needs })
        }
        None => Err(found.error(&source.database)),
    }
}

fn there(here: &mut Here) -> Result<There> {
    let holds = match &here.old {
        Some(old) => holds(&mut here.db, &here.target.database(&here.database), old)?,
        None => None,
    };
    let said: String = here.db.value("SELECT current_setting('server_version')", &[])?;
    let identifier = match here.db.version.has_control_functions() {
        true => here.db.value::<i64>("SELECT system_identifier FROM pg_control_system()", &[]).ok(),
        false => None,
    };
    Ok(There {
        version: said.split_whitespace().next().unwrap_or_default().to_owned(),
        version_num: here.db.version.num(),
        system_identifier: identifier.map(|id| (id as u64).to_string()),
        database: here.database.clone(),
        exists: here.old.is_some(),
        is_empty: holds.is_none(),
        holds,
    })
}

/// Whether both are one database. A fork has its origin's identifier and OIDs, and addresses have many names; but a lock
/// that is taken there is seen here only if it is one server.
fn is_same(db: &mut Db, source: &Source, here: &mut Here) -> Result<bool> {
    let mut bytes = [0u8; 8];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random bytes");
    let [a, b] =
        [0, 4].map(|at| i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")) & i32::MAX);
    if source.database != here.database {
        return Ok(false);
    }
    db.rows(&format!("SELECT pg_advisory_lock({a}, {b})"), &[])?;
    let seen: bool = here.db.value(
        &format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = {a} AND objid = {b})"
        ),
        &[],
    )?;
    db.rows(&format!("SELECT pg_advisory_unlock({a}, {b})"), &[])?;
    Ok(seen)
}

#[derive(Default)]
struct Found {
    instance: String,
    problems: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Found {
    fn problem(&mut self, text: String, hint: impl Into<String>) {
        self.problems.push((text, hint.into()));
    }

    /// What is an error elsewhere.
    fn error_of(&mut self, error: &Error) {
        self.problem(error.to_string(), error.hint().unwrap_or_default());
    }

    fn error(self, database: &str) -> Error {
        Error::CopyImpossible { database: database.into(), instance: self.instance, problems: self.problems }
    }

    fn versions(&mut self, context: Context, theirs: PgVersion, ours: PgVersion) {
        if theirs > ours && !theirs.same_major(ours) {
            let text = format!("the source is PostgreSQL {theirs}, and {} the older {ours}", self.instance);
            self.problem(text, "copy to the same major version or a later one");
            return;
        }
        for name in ["pg_dump", "pg_restore"] {
            if let Err(error) = tools::find(context.instance, name, theirs, ours) {
                self.error_of(&error);
            }
        }
    }

    fn extensions(&mut self, db: &mut Db, here: &mut Here) -> Result<()> {
        let here = names(&mut here.db, "SELECT name::text FROM pg_available_extensions")?;
        let missing: Vec<String> =
            source::extensions(db)?.into_iter().filter(|name| !here.contains(name)).collect();
        if !missing.is_empty() {
            self.problem(
                format!("{} does not have the extensions {}", self.instance, missing.join(", ")),
                "install their packages for this PostgreSQL; pg_available_extensions shows those that are here",
            );
        }
        Ok(())
    }

    /// Who is to own everything; none where owners and grants are kept.
    fn roles(
        &mut self,
        db: &mut Db,
        from: &Target,
        here: &mut Here,
        wishes: Wishes,
    ) -> Result<Option<String>> {
        let owner = here.old.as_ref().map_or_else(|| here.target.user.clone(), |old| old.owner.clone());
        if wishes.no_owner {
            return Ok(Some(owner));
        }
        let there = names(&mut here.db, "SELECT rolname::text FROM pg_roles")?;
        let missing: Vec<source::Role> =
            source::roles(db)?.into_iter().filter(|role| !there.contains(&role.name)).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let others: Vec<&str> = missing
            .iter()
            .filter(|role| role.name != from.user && !role.has_only_public)
            .map(|role| role.name.as_str())
            .collect();
        if !others.is_empty() {
            self.problem(
                format!("{} does not have the roles {}", self.instance, others.join(", ")),
                "create them, or add --no-owner: everything belongs to the database's owner then, and nothing is granted",
            );
            return Ok(None);
        }
        let missing: Vec<&str> = missing.iter().map(|role| role.name.as_str()).collect();
        self.warnings.push(format!(
            "everything belongs to {owner} and nothing is granted, for {} does not have the {} {}",
            self.instance,
            if missing.len() == 1 { "role" } else { "roles" },
            missing.join(", ")
        ));
        Ok(Some(owner))
    }

    /// pg_dump and COPY read as the URL's user.
    fn readable(&mut self, db: &mut Db, from: &Target) -> Result<()> {
        let sql = format!(
            "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
             WHERE relkind IN ('r', 'p', 'm', 'S') AND relpersistence <> 't' AND nspname !~ '^pg_' \
             AND nspname NOT IN ('information_schema', {}) \
             AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) ORDER BY 1",
            literal(SCHEMA)
        );
        let closed = names(db, &sql)?;
        if !closed.is_empty() {
            let more = closed.len().saturating_sub(5);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let some = closed.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            self.problem(
                format!("{} may not read {some}{more} of the source", from.user),
                "give the URL of a user that may read everything",
            );
        }
        Ok(())
    }

    fn tablespaces(&mut self, db: &mut Db) -> Result<()> {
        let spaces = names(
            db,
            "SELECT spcname::text FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') AND oid IN \
             (SELECT reltablespace FROM pg_class UNION SELECT dattablespace FROM pg_database \
             WHERE datname = current_database()) ORDER BY 1",
        )?;
        if !spaces.is_empty() {
            self.warnings.push(format!(
                "all goes to the database's own tablespace; in the source some is in {}",
                spaces.join(", ")
            ));
        }
        Ok(())
    }

    /// What is set for the database, for a role in it, or for the URL's own role everywhere, does not go along: an app may not
    /// work without its search_path.
    fn settings(&mut self, db: &mut Db, from: &Target, here: &mut Here) -> Result<()> {
        let (database, user) = (&from.database, &from.user);
        let read = |db: &mut Db, name: &str| -> Result<Vec<(Option<String>, String)>> {
            let sql = "SELECT rolname::text, said FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = setdatabase \
                 LEFT JOIN pg_roles r ON r.oid = setrole, unnest(setconfig) said \
                 WHERE (datname = $1 OR setdatabase = 0 AND rolname = $2) AND said !~ '^(default_transaction_read_only=|pgmahout\\.)' ORDER BY 1 NULLS FIRST, 2";
            Ok(db.rows(sql, &[&name, &user])?.iter().map(|row| (row.get(0), row.get(1))).collect())
        };
        let there = read(&mut here.db, &here.database)?;
        let mut missing = Vec::new();
        for one in read(db, database)?.iter().filter(|one| !there.contains(one)) {
            // The value may be a secret.
            let name = one.1.split('=').next().unwrap_or_default();
            missing.push(match &one.0 {
                Some(role) => format!("{name} (of {role})"),
                None => name.to_owned(),
            });
        }
        if !missing.is_empty() {
            self.warnings.push(format!(
                "what is set for the database {database} itself, or its role, does not go along, and {} does not have \
                 it: {}; ALTER DATABASE ... SET gives it",
                here.database,
                missing.join(", ")
            ));
        }
        Ok(())
    }

    /// A locale of the C library is asked for by making a collation of it, which is then taken back.
    fn locale(&mut self, needs: &Needs, here: &mut Here) {
        let of_libc = !matches!(needs.locale_provider.as_deref(), Some("i" | "b"));
        for name in [&needs.collate, &needs.ctype].into_iter().flatten() {
            if !of_libc || ["C", "POSIX"].contains(&name.as_str()) {
                continue;
            }
            let sql = format!("BEGIN; CREATE COLLATION pg_temp.pgmahout (LOCALE = {})", literal(name));
            let made = here.db.run(&sql);
            let _ = here.db.run("ROLLBACK");
            if let Err(error) = made {
                let said = error.to_string();
                if said.contains("could not create locale") {
                    self.warnings.push(format!(
                        "{} gets the locale of template0: the source's {name} is not here, and texts may be sorted \
                         differently",
                        here.database
                    ));
                    return;
                }
            }
        }
    }
}

fn names(db: &mut Db, sql: &str) -> Result<Vec<String>> {
    Ok(db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect())
}
