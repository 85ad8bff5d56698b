//! Owns how PostgreSQL's own client programs are told where to connect: by their environment, the password in a file.

use crate::error::{Error, Result};
use crate::sql::Target;
use crate::tls::Tls;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What libpq would take before, or beside, what it is told here.
const MISLEADING: &[&str] = &["PGPASSWORD", "PGSERVICE", "PGHOSTADDR"];

/// Says in `command`'s environment where to connect, and as whom; arguments may say otherwise.
pub fn point(command: &mut Command, target: &Target) {
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.env("PGHOST", &target.host).env("PGPORT", target.port.to_string());
    command.env("PGUSER", &target.user).env("PGDATABASE", &target.database);
    let variable = |keyword: &str| format!("PG{}", keyword.to_ascii_uppercase());
    for keyword in Tls::KEYWORDS {
        command.env_remove(variable(keyword));
    }
    command.envs(target.tls.keywords().into_iter().map(|(keyword, value)| (variable(keyword), value)));
}

/// A file in memory that a child finds under [`memory_path`] as long as it is open here.
pub fn memory(name: &'static str) -> Result<File> {
    let file = memfd_create(name, MFdFlags::empty()).map(File::from).map_err(io::Error::from);
    let file = file.and_then(|file| {
        // libpq takes no passfile that others may read.
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(file)
    });
    file.map_err(|source| Error::File { action: "make", path: format!("{name} in memory").into(), source })
}

/// Where a child finds a file that it inherits.
pub fn memory_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A passfile in memory for the time that a program runs, inherited by it: nothing of it is left behind by a kill, a
/// full disk does not matter, and two of them are not in each other's way.
pub struct Passfile(Option<File>);

impl Passfile {
    /// Writes it, and tells `command` of it.
    pub fn write(target: &Target, command: &mut Command) -> Result<Passfile> {
        let Some(text) = passfile(target) else { return Ok(Passfile(None)) };
        let mut file = memory("pgpass")?;
        let failed = |source| Error::File { action: "write", path: "a passfile in memory".into(), source };
        file.write_all(text.as_bytes()).map_err(failed)?;
        command.env("PGPASSFILE", memory_path(&file));
        Ok(Passfile(Some(file)))
    }
}

impl Drop for Passfile {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// What stands in a passfile for this server; none where no password is known. libpq looks for a socket in its own
/// default directory under the name localhost.
pub fn passfile(target: &Target) -> Option<String> {
    let password = target.password.as_ref()?;
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    let rest = format!("{}:*:{}:{}", target.port, escape(&target.user), escape(password.expose()));
    let hosts = if target.host.starts_with('/') {
        vec![target.host.as_str(), "localhost"]
    } else {
        vec![target.host.as_str()]
    };
    Some(hosts.iter().map(|host| format!("{}:{rest}\n", escape(host))).collect())
}
