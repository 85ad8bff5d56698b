//! Owns how PostgreSQL's own client is started on this instance.

use super::super::{Context, client};
use super::target;
use crate::durable;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::sql::Target;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// This version's psql as it is to be run: connected to this instance as its superuser.
///
/// Where to is said in its environment, so that `arguments` may say otherwise; the password only in a file.
pub fn command(context: Context, database: &str, arguments: &[OsString]) -> Result<Command> {
    let instance = context.instance;
    let target = target(context)?.database(database);
    let mut command = Command::new(program(instance)?);
    client::point(&mut command, &target);
    if let Some(passfile) = write_passfile(instance, &target)? {
        command.env("PGPASSFILE", passfile);
    }
    command.args(arguments);
    Ok(command)
}

fn program(instance: &Instance) -> Result<PathBuf> {
    let own = instance.program("psql").or_else(|_| which::which("psql"));
    own.map_err(|_| Error::NoPsql { directory: instance.bin_directory().map(Into::into) })
}

/// Beside the passfile of a standby, which is for its primary.
fn write_passfile(instance: &Instance, target: &Target) -> Result<Option<PathBuf>> {
    let Some(text) = client::passfile(target) else { return Ok(None) };
    let path = instance.state_directory.join("psql.pgpass");
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&path, text.as_bytes(), 0o600)?;
    Ok(Some(path))
}
