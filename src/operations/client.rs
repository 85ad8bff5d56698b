//! Owns how PostgreSQL's own client programs are told where to connect: by their environment, the password in a file.

use crate::sql::Target;
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
