//! What a client needs to connect, a new password, and a standby's taking over of its primary's new one.
//!
//! The server gets a verifier and never the password, and gets it unlogged. At a kill at any instant one of two
//! files has the password that is in force: the password file, or the one beside it that the rotation wrote
//! first ([`Target::local`] tries both).

use super::enslave::here::has_standby_file;
use super::{Context, primary, standby};
use crate::blurb::Secret;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::password;
use crate::postgres::recovery::{Conninfo, auto_conf_with};
use crate::sql::{Db, Target, identifier, literal};
use serde::Serialize;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// What a client needs. It holds the password: that is what it is for.
#[derive(Serialize)]
pub struct Credentials {
    /// This instance.
    pub instance: String,
    /// Role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Database.
    pub database: String,
    /// Port of the server.
    pub port: u16,
    /// The password is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotated: Option<bool>,
    /// Seconds that took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// A new password that this instance has taken over.
#[derive(Debug, Serialize)]
pub struct Adopted {
    /// This instance.
    pub instance: String,
    /// It has.
    pub adopted: bool,
    /// The server that the password was checked against, host:port; none on a primary.
    pub following: Option<String>,
}

/// What the operator asked for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// To see the password.
    Show,
    /// A new one.
    Rotate,
}

/// Shows the password of the superuser (or of `role`, when it is that one), or gives a role a new one.
pub fn run(context: Context, role: Option<&str>, wanted: Wanted) -> Result<Credentials> {
    let instance = context.instance;
    let role = role.unwrap_or(&instance.user);
    let begin = Instant::now();
    let (password, rotated) = match wanted {
        Wanted::Show => (known(instance, role)?, None),
        Wanted::Rotate => (rotate(context, role)?, Some(true)),
    };
    Ok(Credentials {
        instance: instance.name.clone(),
        user: role.to_owned(),
        password: password.expose().to_owned(),
        database: "postgres".into(),
        port: instance.port(),
        rotated,
        seconds: rotated.map(|_| begin.elapsed().as_secs_f64()),
    })
}

fn known(instance: &Instance, role: &str) -> Result<Secret> {
    let own = role == instance.user;
    let password = if own { Target::local(instance)?.password } else { None };
    let unknown = || Error::NoPassword { instance: instance.name.clone(), role: role.to_owned(), own };
    password.filter(|password| !password.expose().is_empty()).ok_or_else(unknown)
}

fn rotate(context: Context, role: &str) -> Result<Secret> {
    let instance = context.instance;
    instance.check_account()?;
    let _lock = instance.lock("credentials --rotate")?;
    let mut db = primary::connect(instance, "password")?;
    let rows = db.rows("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&role])?;
    let row = rows
        .first()
        .ok_or_else(|| Error::NoRole { role: role.to_owned(), instance: instance.name.clone() })?;
    let former: Option<String> = row.get(0);
    // A role that logs in by SCRAM may have to, by pg_hba.conf; where md5 is asked for, SCRAM does as well.
    let asked = db.setting("password_encryption")?;
    let is_scram = former.as_deref().is_some_and(password::is_scram);
    let scram = db.version.has_scram() && (is_scram || asked.as_deref() == Some("scram-sha-256"));

    if role != instance.user {
        let new = random()?;
        set_verifier(&mut db, role, Some(&password::verifier(role, new.expose(), scram)))?;
        renew_pgpass(instance, role, &new, None)?;
        return Ok(new);
    }
    // What an interrupted run has left is used again: the server may have it already, or be about to.
    let next = instance.next_password_file();
    let new = match instance.next_password()?.filter(|left| password::is_ours(left.expose())) {
        Some(left) => {
            context.progress.step("an earlier rotation was interrupted; going on with its password");
            left
        }
        None => random()?,
    };
    let with_new = Target { password: Some(new.clone()), ..Target::local(instance)? };
    write_password(&next, &new)?;
    set_verifier(&mut db, role, Some(&password::verifier(role, new.expose(), scram)))?;
    if let Err(error @ Error::SqlPassword { .. }) = Db::connect(&with_new) {
        set_verifier(&mut db, role, former.as_deref())?;
        fs::remove_file(&next).on("remove", &next)?;
        return Err(Error::NewPasswordRefused { role: role.to_owned(), why: error.to_string() });
    }
    durable::rename(&next, &instance.password_file)?;
    renew_pgpass(instance, role, &new, None)?;
    Ok(new)
}

fn random() -> Result<Secret> {
    let source = Path::new("/dev/urandom");
    // So many that enough of them are usable but once in an eternity.
    let mut bytes = [0u8; 4 * password::LENGTH];
    loop {
        fs::File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).on("read", source)?;
        if let Some(password) = password::from_random(&bytes) {
            return Ok(Secret::new(password));
        }
    }
}

fn write_password(path: &Path, password: &Secret) -> Result<()> {
    durable::write(path, format!("{}\n", password.expose()).as_bytes(), 0o600)
}

/// Gives a role another verifier, or none. The statement is kept out of the server's log and of
/// pg_stat_statements: an md5 verifier is as good as the password, and a SCRAM one can be guessed at.
pub(super) fn set_verifier(db: &mut Db, role: &str, verifier: Option<&str>) -> Result<()> {
    db.rows(
        "SELECT set_config(name, value, false) FROM (VALUES ('log_statement', 'none'), \
         ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1'), \
         ('log_transaction_sample_rate', '0'), ('log_min_error_statement', 'panic'), \
         ('pg_stat_statements.track_utility', 'off')) AS quiet (name, value) \
         WHERE name IN (SELECT s.name FROM pg_settings s)",
        &[],
    )?;
    let verifier = verifier.map_or("NULL".to_owned(), literal);
    db.run(&format!("ALTER ROLE {} PASSWORD {verifier}", identifier(role)))
}

/// Takes over a password that was changed on the primary, after that one has confirmed it. Streaming goes on;
/// a WAL receiver that has to connect anew finds it.
pub fn adopt(context: Context, role: Option<&str>, new: &Secret) -> Result<Adopted> {
    let instance = context.instance;
    instance.check_account()?;
    let _lock = instance.lock("credentials --adopt")?;
    let role = role.unwrap_or(&instance.user);
    let data = instance.data_directory()?;
    let conninfo = if has_standby_file(&data) { conninfo(instance, &data, new)? } else { None };
    let target = match &conninfo {
        Some(conninfo) => standby::primary_target(instance, conninfo, "the primary")?,
        None => None,
    };
    let asked = target.clone().map_or_else(|| Target::local(instance), Ok)?;
    check(&Target { user: role.to_owned(), password: Some(new.clone()), ..asked })?;

    if let (Some(conninfo), Some(target)) = (&conninfo, &target)
        && target.user == role
    {
        match conninfo.get("password") {
            Some(_) => renew_conninfo(context, &data, conninfo, new)?,
            None => standby::write_passfile(instance, target, new)?,
        }
    }
    if role == instance.user {
        write_password(&instance.password_file, new)?;
        let next = instance.next_password_file();
        if next.exists() {
            fs::remove_file(&next).on("remove", &next)?;
        }
    }
    renew_pgpass(instance, role, new, target.as_ref())?;
    Ok(Adopted {
        instance: instance.name.clone(),
        adopted: true,
        following: target.map(|target| format!("{}:{}", target.host, target.port)),
    })
}

/// Whom this standby follows, by its files, or by its server, which may have the new password already.
fn conninfo(instance: &Instance, data: &Path, new: &Secret) -> Result<Option<Conninfo>> {
    if let Some(conninfo) = standby::primary_conninfo_in_files(data)? {
        return Ok(Some(conninfo));
    }
    let target = Target::local(instance)?;
    let mut db = match Db::connect(&target) {
        Err(Error::SqlPassword { .. }) => Db::connect(&Target { password: Some(new.clone()), ..target })?,
        other => other?,
    };
    standby::primary_conninfo(&mut db, data)
}

/// An error unless this is the role's password. A server that lets in whoever comes is asked for the verifier.
fn check(target: &Target) -> Result<()> {
    let at = format!("{}:{}", target.host, target.port);
    let wrong = || Error::NotThePassword { role: target.user.clone(), at: at.clone() };
    let mut db = match Db::connect(target) {
        Err(Error::SqlPassword { .. }) => return Err(wrong()),
        other => other?,
    };
    // Only a superuser may read it; who is none has been let in, and that has to do.
    let sql = "SELECT coalesce(rolpassword, 'md5') FROM pg_authid WHERE rolname = current_user";
    let Ok(rows) = db.rows(sql, &[]) else { return Ok(()) };
    let verifier: Option<String> = rows.first().map(|row| row.get(0));
    let password = target.password.as_ref().map_or("", Secret::expose);
    match verifier.and_then(|verifier| password::matches(&verifier, &target.user, password)) {
        Some(false) => Err(wrong()),
        _ => Ok(()),
    }
}

/// A password that stands in the connection string itself: before 10, or by somebody's hand.
fn renew_conninfo(context: Context, data: &Path, conninfo: &Conninfo, new: &Secret) -> Result<()> {
    let text = conninfo.clone().set("password", new.expose()).to_conninfo();
    let file = ["recovery.conf", "postgresql.auto.conf"].map(|name| data.join(name));
    let file =
        file.iter().find(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("primary_conninfo")));
    if let Some(file) = file {
        let existing = fs::read_to_string(file).on("read", file)?;
        let renewed = auto_conf_with(&existing, &[("primary_conninfo", Some(&text))]);
        durable::write(file, renewed.as_bytes(), 0o600)?;
    }
    context.progress.warn(
        "the password stands in primary_conninfo itself: the server reads it when it is reloaded (13 and later) or \
         started again",
    );
    Ok(())
}

/// Renews the role's lines in ~/.pgpass (the recipe writes one) for this server and its primary; lines for
/// other servers stay, and none is added.
fn renew_pgpass(instance: &Instance, role: &str, new: &Secret, primary: Option<&Target>) -> Result<()> {
    let file = instance.home.join(".pgpass");
    let Ok(existing) = fs::read_to_string(&file) else { return Ok(()) };
    let port = instance.port().to_string();
    let is_ours = |host: &str, at: &str| {
        (at == port && ["127.0.0.1", "::1", "localhost"].contains(&host))
            || primary.is_some_and(|primary| host == primary.host && at == primary.port.to_string())
    };
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    let renewed: String = existing
        .lines()
        .map(|line| match standby::fields_of(line).as_slice() {
            [host, at, database, user, _] if user == role && is_ours(host, at) => {
                let fields = [host, at, database, user, new.expose()].map(escape);
                format!("{}\n", fields.join(":"))
            }
            _ => format!("{line}\n"),
        })
        .collect();
    if renewed == existing { Ok(()) } else { durable::write(&file, renewed.as_bytes(), 0o600) }
}
