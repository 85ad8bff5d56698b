//! Owns how PostgreSQL's own client is started on this instance.

use super::super::Context;
use super::target;
use crate::durable;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::sql::Target;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// What libpq would take before, or beside, what it is told here.
const MISLEADING: &[&str] = &["PGPASSWORD", "PGSERVICE", "PGHOSTADDR"];

/// This version's psql as it is to be run: connected to this instance as its superuser.
///
/// Where to is said in its environment, so that `arguments` may say otherwise; the password only in a file.
pub fn command(context: Context, database: &str, arguments: &[OsString]) -> Result<Command> {
    let instance = context.instance;
    let target = target(context)?.database(database);
    let mut command = Command::new(program(instance)?);
    lead(&mut command, instance, &target)?;
    command.args(arguments);
    Ok(command)
}

/// Leads a program that uses libpq to a server, by its environment and a file with the password.
pub fn lead(command: &mut Command, instance: &Instance, target: &Target) -> Result<()> {
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.env("PGHOST", &target.host).env("PGPORT", target.port.to_string());
    command.env("PGUSER", &target.user).env("PGDATABASE", &target.database);
    if let Some(passfile) = write_passfile(instance, target)? {
        command.env("PGPASSFILE", passfile);
    }
    Ok(())
}

fn program(instance: &Instance) -> Result<PathBuf> {
    let own = instance.program("psql").or_else(|_| which::which("psql"));
    own.map_err(|_| Error::NoPsql { directory: instance.bin_directory().map(Into::into) })
}

/// Beside the passfile of a standby, which is for its primary. libpq looks for a socket in its own default
/// directory under the name localhost.
fn write_passfile(instance: &Instance, target: &Target) -> Result<Option<PathBuf>> {
    let Some(password) = &target.password else { return Ok(None) };
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    let rest = format!("{}:*:{}:{}", target.port, escape(&target.user), escape(password.expose()));
    let hosts = if target.host.starts_with('/') {
        vec![target.host.as_str(), "localhost"]
    } else {
        vec![target.host.as_str()]
    };
    let text: String = hosts.iter().map(|host| format!("{}:{rest}\n", escape(host))).collect();
    let path = instance.state_directory.join("psql.pgpass");
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&path, text.as_bytes(), 0o600)?;
    Ok(Some(path))
}
