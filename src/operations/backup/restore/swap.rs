//! The new database beside the old one, and the moment in which it takes the old one's place. Until then the old one
//! is untouched; what a kill leaves is known by its name and its comment, and is dropped by the next run of its kind: of
//! a restore by any restore, of a copy only by one that knows its id.

use super::super::super::Context;
use super::super::properties;
use crate::backups::manifest::{Needs, Properties};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::{Db, Target, identifier, literal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Databases that are being filled are called so, and eight hexadecimal digits.
const NEW: &str = "_pgmahout_restore_";

/// Databases that have been replaced are called so, and eight hexadecimal digits.
const OLD: &str = "_pgmahout_old_";

/// Databases that are being filled from another server, and the copy's id, which is eight hexadecimal digits.
const COPY: &str = "_pgmahout_copy_";

/// The role that owns all of a restore without owners, for as long as that takes; and eight hexadecimal digits.
pub const ROLE: &str = "pgmahout_restore_";

/// A comment on a database that is being filled begins so; the rest is the database it is for.
const NEW_COMMENT: &str = "pgmahout is restoring ";

/// The same of a copy.
const COPY_ROLE: &str = "pgmahout_copy_";

/// The same of a copy.
const COPY_COMMENT: &str = "pgmahout is copying ";

/// A comment on a database that was replaced begins so; the rest is the database that has its place.
const OLD_COMMENT: &str = "pgmahout has replaced ";

/// Names are cut at so many bytes (NAMEDATALEN - 1).
const NAME_LIMIT: usize = 63;

/// A replaced database may take so long to be removed from the disk.
const DROP_TIMEOUT: &str = "SET statement_timeout = '1h'";

/// RENAME waits five seconds for sessions to go, each time.
const RENAMES: u32 = 6;

/// `name` and what is added, cut so that it fits, and random.
fn beside(name: &str, added: &str, unique: &str) -> String {
    let mut cut = NAME_LIMIT - added.len() - unique.len();
    cut = cut.min(name.len());
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{added}{unique}", &name[..cut])
}

/// What a new database is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// A restore: what a kill leaves is dropped by any other one.
    Restore,
    /// The copy of this id: nobody else drops it.
    Copy(&'a str),
}

impl Purpose<'_> {
    fn role(&self, unique: &str) -> String {
        match self {
            Purpose::Restore => format!("{ROLE}{unique}"),
            Purpose::Copy(_) => format!("{COPY_ROLE}{unique}"),
        }
    }

    fn comment(&self, database: &str) -> String {
        match self {
            Purpose::Restore => format!("{NEW_COMMENT}{database}"),
            Purpose::Copy(_) => format!("{COPY_COMMENT}{database}"),
        }
    }
}

/// What a database that is being copied is called until it takes `database`'s place.
pub fn copy_name(database: &str, id: &str) -> String {
    beside(database, COPY, id)
}

/// What `database` is called once the copy of this id has its place.
pub fn replaced_name(database: &str, id: &str) -> String {
    beside(database, OLD, id)
}

/// A database that a copy has made beside the one that it is for.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Its name.
    pub name: String,
    /// The copy's id.
    pub id: String,
    /// Which database it is for; none in the moment after its creation.
    pub database: Option<String>,
    /// It is one of ours, not only by its name.
    pub is_ours: bool,
}

/// All of them, of whatever id, in the order of their names.
pub fn copies(db: &mut Db) -> Result<Vec<Copy>> {
    let rows = db.rows(
        "SELECT datname::text, coalesce(shobj_description(oid, 'pg_database'), ''), datconnlimit FROM pg_database \
         WHERE datname ~ '_pgmahout_copy_[0-9a-f]{8}$' ORDER BY 1",
        &[],
    )?;
    let copy = |row: &postgres::Row| {
        let (name, comment, limit): (String, String, i32) = (row.get(0), row.get(1), row.get(2));
        let database = comment.strip_prefix(COPY_COMMENT).map(str::to_owned);
        Copy {
            id: name[name.len() - 8..].to_owned(),
            is_ours: database.is_some() || (comment.is_empty() && limit == 0),
            name,
            database,
        }
    };
    Ok(rows.iter().map(copy).collect())
}

/// Drops what the copy of this id has left for `database`, but not what is in its place: its database, what that has
/// replaced, its role. Gives the names of the databases.
///
/// # Errors
/// [`Error::NotThisCopy`] for a database that is called so and was made by somebody else.
pub fn drop_copy(db: &mut Db, target: &Target, database: &str, id: &str) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    let name = copy_name(database, id);
    if let Some(copy) = copies(db)?.into_iter().find(|copy| copy.name == name) {
        if !copy.is_ours || copy.database.as_ref().is_some_and(|of| of != database) {
            return Err(Error::NotThisCopy { name, id: id.into() });
        }
        drop_filled(db, target, &name)?;
        dropped.push(name);
    }
    dropped.extend(drop_replaced(db, target, database, id)?);
    db.run(&format!("DROP ROLE IF EXISTS {}", identifier(&format!("{COPY_ROLE}{id}"))))?;
    Ok(dropped)
}

/// Drops what the copy of this id has replaced, if it is still there.
pub fn drop_replaced(db: &mut Db, target: &Target, database: &str, id: &str) -> Result<Option<String>> {
    let name = replaced_name(database, id);
    let comment = db.rows(
        "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = $1",
        &[&name],
    )?;
    let comment: Option<String> = comment.first().map(|row| row.get(0));
    // Never before the new one is in its place.
    if comment != Some(format!("{OLD_COMMENT}{database}")) || old(db, database)?.is_none() {
        return Ok(None);
    }
    drop_filled(db, target, &name)?;
    Ok(Some(name))
}

/// Drops the roles of copies whose database is gone.
pub fn sweep_copy_roles(db: &mut Db) -> Result<()> {
    let there: Vec<String> = copies(db)?.into_iter().map(|copy| copy.id).collect();
    let roles =
        db.rows("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^pgmahout_copy_[0-9a-f]{8}$'", &[])?;
    for role in roles.iter().map(|row| row.get::<_, String>(0)) {
        if !there.iter().any(|id| role.ends_with(id.as_str())) {
            db.run(&format!("DROP ROLE {}", identifier(&role)))?;
        }
    }
    Ok(())
}

/// A connection to a database that is neither the one to be replaced nor a new one.
pub fn maintenance(target: &Target, database: &str) -> Result<Db> {
    let other = if database == "postgres" { "template1" } else { "postgres" };
    Db::connect(&target.database(other))
}

/// What the old database is, beside what it holds.
#[derive(Clone, Debug)]
pub struct Old {
    /// Its OID.
    pub oid: u32,
    /// Its owner.
    pub owner: String,
    tablespace: String,
    /// Where that lies, when it is not in the data directory.
    pub location: Option<String>,
    is_template: bool,
    allows_connections: bool,
    /// Its encoding and locale.
    pub needs: Needs,
}

/// Looks the old database up.
pub fn old(db: &mut Db, name: &str) -> Result<Option<Old>> {
    let locale = match (db.version.has_datlocale(), db.version.has_locale_provider()) {
        (true, _) => "datlocprovider::text, datlocale",
        (_, true) => "datlocprovider::text, daticulocale",
        _ => "NULL::text, NULL::text",
    };
    let sql = format!(
        "SELECT d.oid, pg_get_userbyid(datdba), spcname, datistemplate, datallowconn, \
         pg_encoding_to_char(encoding), datcollate::text, datctype::text, {locale}, \
         nullif(pg_tablespace_location(t.oid), '') \
         FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = $1"
    );
    Ok(db.rows(&sql, &[&name])?.first().map(|row| Old {
        oid: row.get(0),
        owner: row.get(1),
        tablespace: row.get(2),
        is_template: row.get(3),
        allows_connections: row.get(4),
        needs: Needs {
            encoding: row.get(5),
            collate: row.get(6),
            ctype: row.get(7),
            locale_provider: row.get(8),
            locale: row.get(9),
            ..Needs::default()
        },
        location: row.get(10),
    }))
}

/// What of the old database could not go over to the new one, or would be lost.
pub fn tied(db: &mut Db, name: &str) -> Result<Vec<String>> {
    let mut by = Vec::new();
    for (what, sql) in [
        (
            "logical replication slot",
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = $1 ORDER BY 1",
        ),
        (
            "subscription",
            "SELECT subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = $1 ORDER BY 1",
        ),
        ("prepared transaction", "SELECT gid FROM pg_prepared_xacts WHERE database = $1 ORDER BY 1"),
    ] {
        by.extend(
            db.rows(sql, &[&name])?.iter().map(|row| format!("the {what} {}", row.get::<_, String>(0))),
        );
    }
    Ok(by)
}

/// Drops what earlier runs that were killed have left. Only while this instance's backup lock is held. Gives the
/// names of what was dropped.
pub fn sweep(db: &mut Db) -> Result<Vec<String>> {
    // A database that is being filled has no comment for the moment after its creation: its limit tells then.
    let rows = db.rows(
        "SELECT datname::text, coalesce(shobj_description(oid, 'pg_database'), ''), datconnlimit FROM pg_database \
         WHERE datname ~ '_pgmahout_(restore|old)_[0-9a-f]{8}$' ORDER BY 1",
        &[],
    )?;
    let mut dropped = Vec::new();
    for row in rows {
        let (name, comment, limit): (String, String, i32) = (row.get(0), row.get(1), row.get(2));
        let is_new =
            name.contains(NEW) && (comment.starts_with(NEW_COMMENT) || (comment.is_empty() && limit == 0));
        // Never before the new one is in its place.
        let is_replaced = match comment.strip_prefix(OLD_COMMENT) {
            Some(now) if name.contains(OLD) => old(db, now)?.is_some(),
            _ => false,
        };
        if is_new || is_replaced {
            drop_database(db, &name)?;
            dropped.push(name);
        }
    }
    for row in
        db.rows("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^pgmahout_restore_[0-9a-f]{8}$'", &[])?
    {
        db.run(&format!("DROP ROLE {}", identifier(&row.get::<_, String>(0))))?;
    }
    Ok(dropped)
}

/// Drops a database and ends the sessions in it.
pub fn drop_database(db: &mut Db, name: &str) -> Result<()> {
    db.run(DROP_TIMEOUT)?;
    let mut tries = 0;
    loop {
        // A template is not dropped, and whoever comes anew keeps it from being dropped.
        db.run(&format!("ALTER DATABASE {0} IS_TEMPLATE false CONNECTION LIMIT 0", identifier(name)))?;
        db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&name])?;
        match db.run(&format!("DROP DATABASE IF EXISTS {}", identifier(name))) {
            Err(error) if tries < 3 && error.to_string().contains("other users") => tries += 1,
            other => return other,
        }
    }
}

/// Drops a database that was filled from an archive, with the subscriptions in it: they have never been enabled, or the
/// publisher's slots are not theirs.
pub fn drop_filled(db: &mut Db, target: &Target, name: &str) -> Result<()> {
    let sql = "SELECT subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = $1";
    let subscriptions = db.rows(sql, &[&name])?;
    if !subscriptions.is_empty() {
        let mut inside = Db::connect(&target.database(name))?;
        for row in subscriptions {
            let one = identifier(row.get(0));
            // Without a slot its publisher is not asked.
            for step in [
                format!("ALTER SUBSCRIPTION {one} DISABLE"),
                format!("ALTER SUBSCRIPTION {one} SET (slot_name = NONE)"),
                format!("DROP SUBSCRIPTION {one}"),
            ] {
                inside.run(&step)?;
            }
        }
    }
    drop_database(db, name)
}

/// A database that is being filled. Dropped together with this value unless it has taken the old one's place.
pub struct New {
    /// Its name until then.
    pub name: String,
    /// The eight digits.
    pub unique: String,
    /// What the role of [`New::with_role`] is called.
    role_name: String,
    role: Option<String>,
    target: Target,
    database: String,
    in_place: bool,
}

impl Drop for New {
    fn drop(&mut self) {
        if self.in_place && self.role.is_none() {
            return;
        }
        // What cannot be dropped now is swept by the next run.
        if let Ok(mut db) = maintenance(&self.target, &self.database) {
            if !self.in_place {
                let _ = drop_filled(&mut db, &self.target, &self.name);
            }
            if let Some(role) = &self.role {
                let _ = db.run(&format!("DROP ROLE IF EXISTS {}", identifier(role)));
            }
        }
    }
}

/// Creates the new database from `template0`; the second value warns of a locale that this server does not have.
pub fn create(
    db: &mut Db,
    target: &Target,
    database: &str,
    old: Option<&Old>,
    needs: Option<&Needs>,
    owner: Option<&str>,
) -> Result<(New, Option<String>)> {
    create_for(db, target, database, old, needs, owner, Purpose::Restore)
}

/// The same for a purpose.
pub fn create_for(
    db: &mut Db,
    target: &Target,
    database: &str,
    old: Option<&Old>,
    needs: Option<&Needs>,
    owner: Option<&str>,
    purpose: Purpose,
) -> Result<(New, Option<String>)> {
    let (unique, name) = match purpose {
        Purpose::Restore => {
            let unique = unique();
            (unique.clone(), beside(database, NEW, &unique))
        }
        Purpose::Copy(id) => (id.to_owned(), copy_name(database, id)),
    };
    db.run("SET statement_timeout = '10min'")?;
    let plain = format!(
        "CREATE DATABASE {} TEMPLATE template0 CONNECTION LIMIT 0{}",
        identifier(&name),
        old.map(|old| format!(" TABLESPACE {}", identifier(&old.tablespace))).unwrap_or_default()
    );
    let needs = needs.or(old.map(|old| &old.needs));
    let wanted = needs.map(|needs| locale(needs, db)).unwrap_or_default();
    // From here on it is dropped again, also when only its comment fails.
    let guard = New {
        name: name.clone(),
        role_name: purpose.role(&unique),
        unique,
        role: None,
        target: target.clone(),
        database: database.to_owned(),
        in_place: false,
    };
    let warning = match db.run(&format!("{plain}{wanted}")) {
        Ok(()) => None,
        Err(error) if is_locale_error(&error) => {
            let encoding = needs.and_then(|needs| needs.encoding.as_ref());
            let encoding = encoding.map(|name| format!(" ENCODING {}", literal(name))).unwrap_or_default();
            if db.run(&format!("{plain}{encoding}")).is_err() {
                db.run(&plain)?;
            }
            Some(format!("{database} gets the locale of template0, for this server says: {error}"))
        }
        Err(error) => return Err(error),
    };
    db.run(&format!("COMMENT ON DATABASE {} IS {}", identifier(&name), literal(&purpose.comment(database))))?;
    if let Some(owner) = owner {
        db.run(&format!("ALTER DATABASE {} OWNER TO {}", identifier(&name), identifier(owner)))?;
    }
    Ok((guard, warning))
}

fn is_locale_error(error: &Error) -> bool {
    let text = error.to_string();
    ["locale", "encoding", "LC_CTYPE", "LC_COLLATE", "ICU"].iter().any(|word| text.contains(word))
}

fn locale(needs: &Needs, db: &Db) -> String {
    let option = |name: &str, value: Option<&String>| {
        value.map(|value| format!(" {name} {}", literal(value))).unwrap_or_default()
    };
    let mut text = option("ENCODING", needs.encoding.as_ref())
        + &option("LC_COLLATE", needs.collate.as_ref())
        + &option("LC_CTYPE", needs.ctype.as_ref());
    if db.version.has_locale_provider() {
        text += &match needs.locale_provider.as_deref() {
            Some("i") => format!(" LOCALE_PROVIDER icu{}", option("ICU_LOCALE", needs.locale.as_ref())),
            Some("b") => {
                format!(" LOCALE_PROVIDER builtin{}", option("BUILTIN_LOCALE", needs.locale.as_ref()))
            }
            _ => " LOCALE_PROVIDER libc".into(),
        };
    }
    text
}

/// Eight hexadecimal digits.
pub fn unique() -> String {
    let mut bytes = [0u8; 4];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl New {
    /// The database of a copy that is there already. Unlike a new one it stays when this value is dropped.
    pub fn of_copy(target: &Target, database: &str, id: &str) -> New {
        New {
            name: copy_name(database, id),
            unique: id.to_owned(),
            role_name: Purpose::Copy(id).role(id),
            role: None,
            target: target.clone(),
            database: database.to_owned(),
            in_place: true,
        }
    }

    /// It stays where and as it is.
    pub fn leave(mut self) {
        self.in_place = true;
    }

    /// A superuser for the time of a restore without owners: all that it makes can be given to `owner` in one
    /// statement afterwards, which is refused for what belongs to the first superuser.
    pub fn with_role(&mut self, db: &mut Db) -> Result<String> {
        let role = self.role_name.clone();
        self.role = Some(role.clone());
        db.run(&format!("CREATE ROLE {} SUPERUSER NOLOGIN", identifier(&role)))?;
        Ok(role)
    }

    /// Gives all that the role of [`New::with_role`] has made to `owner`.
    pub fn give_to(&mut self, owner: &str) -> Result<()> {
        let Some(role) = &self.role else { return Ok(()) };
        let mut inside = Db::connect(&self.target.database(&self.name))?;
        inside.run("SET statement_timeout = '10min'")?;
        // What only a superuser may own stays a superuser's, with or without an extension around it.
        let sql = "SELECT 'FOREIGN DATA WRAPPER', fdwname::text FROM pg_foreign_data_wrapper WHERE fdwowner = $1::text::regrole \
             UNION ALL SELECT 'EVENT TRIGGER', evtname::text FROM pg_event_trigger WHERE evtowner = $1::text::regrole \
             UNION ALL SELECT 'PUBLICATION', pubname::text FROM pg_publication WHERE pubowner = $1::text::regrole \
             UNION ALL SELECT 'SUBSCRIPTION', subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid \
             WHERE subowner = $1::text::regrole AND datname = current_database()";
        for row in inside.rows(sql, &[&identifier(role)])? {
            let (kind, name): (&str, String) = (row.get(0), row.get(1));
            let superuser = identifier(&self.target.user);
            inside.run(&format!("ALTER {kind} {} OWNER TO {superuser}", identifier(&name)))?;
        }
        inside.run(&format!("REASSIGN OWNED BY {} TO {}", identifier(role), identifier(owner)))?;
        inside.run(&format!("DROP OWNED BY {0}; DROP ROLE {0}", identifier(role)))?;
        self.role = None;
        Ok(())
    }
}

/// What the swap did.
#[derive(Debug)]
pub struct Swapped {
    /// Sessions of clients that were ended.
    pub sessions_ended: usize,
    /// What the old database is called now, when there was one.
    pub old_name: Option<String>,
}

/// Gives the new database the old one's place in one transaction, with all that belongs to a database and not to
/// what is in it. Sessions in the old one are ended; who connects meanwhile waits for the end of the transaction.
pub fn swap(
    context: Context,
    db: &mut Db,
    new: &mut New,
    old: Option<&Old>,
    properties: Properties,
) -> Result<Swapped> {
    let (name, database) = (identifier(&new.name), identifier(&new.database));
    let mut steps = properties::statements(&properties, &new.name);
    let Some(old) = old else {
        steps.push(format!("ALTER DATABASE {name} RENAME TO {database}"));
        db.run(&format!("BEGIN; {}; COMMIT", steps.join("; "))).inspect_err(|_| drop(db.run("ROLLBACK")))?;
        new.in_place = true;
        return Ok(Swapped { sessions_ended: 0, old_name: None });
    };
    let old_name = beside(&new.database, OLD, &new.unique);
    let flags = format!("IS_TEMPLATE {} ALLOW_CONNECTIONS {}", old.is_template, old.allows_connections);
    steps.push(format!("ALTER DATABASE {name} {flags}"));
    let renamed = identifier(&old_name);
    steps.push(format!("ALTER DATABASE {database} RENAME TO {renamed}"));
    let comment = literal(&format!("{OLD_COMMENT}{}", new.database));
    steps.push(format!("COMMENT ON DATABASE {renamed} IS {comment}"));
    steps.push(format!("ALTER DATABASE {name} RENAME TO {database}"));
    let done = AtomicBool::new(false);
    let mut other = maintenance(&new.target, &new.database)?;
    let outcome = std::thread::scope(|scope| {
        let ending = scope.spawn(|| end_sessions(&mut other, old.oid, &done));
        let mut tries = 1;
        let outcome = loop {
            // After this question nothing is asked until it is done or not.
            if let Err(error) = process::check_interrupt() {
                break Err(error);
            }
            match db.run(&format!("BEGIN; {}; COMMIT", steps.join("; "))) {
                Ok(()) => break Ok(()),
                Err(error) => {
                    let _ = db.run("ROLLBACK");
                    if tries == RENAMES || !error.to_string().contains("other users") {
                        break Err(error);
                    }
                    context.progress.detail(format!("{error}; once more"));
                    tries += 1;
                }
            }
        };
        done.store(true, Ordering::SeqCst);
        (outcome, ending.join().expect("no panic"))
    });
    let (outcome, sessions_ended) = outcome;
    // A connection that broke during COMMIT does not tell what became of it.
    let in_place = outcome.is_ok() || is_in_place(&new.target, &new.database, old.oid);
    if !in_place {
        return Err(match outcome {
            Err(Error::Sql { why, .. }) => Error::NotSwapped { database: new.database.clone(), why },
            Err(error) => error,
            Ok(()) => unreachable!("it is in place then"),
        });
    }
    new.in_place = true;
    Ok(Swapped { sessions_ended, old_name: Some(old_name) })
}

fn is_in_place(target: &Target, database: &str, old_oid: u32) -> bool {
    let found = maintenance(target, database).and_then(|mut db| old(&mut db, database));
    found.is_ok_and(|found| found.is_some_and(|found| found.oid != old_oid))
}

/// Ends the sessions in the old database, again and again; gives how many of them were clients.
fn end_sessions(db: &mut Db, oid: u32, done: &AtomicBool) -> usize {
    let mut ended = std::collections::BTreeSet::new();
    while !done.load(Ordering::SeqCst) {
        // In the list, not in a condition: the planner may ask conditions in any order, and this one ends sessions.
        let sql = "SELECT pid, backend_type = 'client backend', pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datid = $1 AND pid <> pg_backend_pid()";
        for row in db.rows(sql, &[&oid]).unwrap_or_default() {
            if row.get::<_, Option<bool>>(1).unwrap_or(false) {
                ended.insert(row.get::<_, i32>(0));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ended.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(beside("shop", NEW, "0123abcd"), "shop_pgmahout_restore_0123abcd");
        for name in ["x".repeat(63), "ü".repeat(31), "日本".repeat(10)] {
            for added in [NEW, OLD, COPY] {
                let new = beside(&name, added, "0123abcd");
                assert!(new.len() <= NAME_LIMIT && new.len() > NAME_LIMIT - 4, "{new}");
                assert!(
                    new.ends_with(&format!("{added}0123abcd"))
                        && name.starts_with(new.split('_').next().unwrap())
                );
            }
        }
    }
}
