//! Owns `pgmahout credentials`: its arguments, the password on stdin, its answer as text.

use crate::blurb::Secret;
use crate::error::{Error, Result};
use crate::operations::Context;
use crate::operations::credentials::{self, Adopted, Credentials, Wanted};
use crate::process;
use clap::Args;
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Read};
use std::time::Duration;

/// Show what a client needs to connect, password included; or give a role a new password
///
/// With --rotate, on a primary, the role gets a new random password. The server never sees it, only what it is
/// checked with, so it stands in no log. The standbys go on streaming; each has to be told by --adopt, with the
/// password on stdin, before it has to connect anew.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout credentials
  pgmahout --json credentials | jq -r .password
  pgmahout credentials --rotate                   a new password for the superuser
  pgmahout credentials --rotate --role shop       a new one for another role
  dotcloud run db.0 pgmahout --json credentials | jq -r .password |
    dotcloud run db.1 pgmahout credentials --adopt")]
pub struct CredentialsArgs {
    /// Role [default: the superuser, by the setting user]
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// Give the role a new random password; on a primary
    #[arg(long, conflicts_with = "adopt")]
    rotate: bool,
    /// Take over the role's new password, which comes on stdin and is checked against the primary
    #[arg(long)]
    adopt: bool,
}

/// One of the two things that are answered.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// What a client needs.
    Credentials(Credentials),
    /// A password was taken over.
    Adopted(Adopted),
}

/// Runs it.
pub fn run(context: Context, args: &CredentialsArgs) -> Result<Answer> {
    let role = args.role.as_deref();
    if args.adopt {
        return credentials::adopt(context, role, &read_password()?).map(Answer::Adopted);
    }
    let wanted = if args.rotate { Wanted::Rotate } else { Wanted::Show };
    credentials::run(context, role, wanted).map(Answer::Credentials)
}

/// Longer than any that a client of PostgreSQL sends.
const LIMIT: u64 = 1024;

/// The other side of the pipe may have to rotate it first.
const WAIT: Duration = Duration::from_secs(120);

fn read_password() -> Result<Secret> {
    let bad = |why: &str| Error::PasswordInput { why: why.into() };
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(bad("this is a terminal, which would show it"));
    }
    let read = process::read_within(WAIT, move || {
        let mut line = Vec::new();
        stdin.lock().take(LIMIT + 2).read_until(b'\n', &mut line).map(|_| line)
    })?;
    let line = read.ok_or_else(|| bad(&format!("none came within {} s", WAIT.as_secs())))?;
    let line = line.map_err(|source| Error::File { action: "read", path: "stdin".into(), source })?;
    let line = String::from_utf8(line).map_err(|_| bad("it is not UTF-8 text"))?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(bad("it is empty"));
    }
    if password.len() as u64 > LIMIT {
        return Err(bad(&format!("it is longer than {LIMIT} bytes")));
    }
    if password.chars().any(char::is_control) {
        return Err(bad("it has control characters"));
    }
    Ok(Secret::new(password))
}

/// The answer, a line each.
pub fn text(answer: &Answer) -> String {
    match answer {
        Answer::Credentials(c) => format!(
            "instance: {}\nuser: {}\npassword: {}\ndatabase: {}\nport: {}",
            c.instance, c.user, c.password, c.database, c.port
        ),
        Answer::Adopted(Adopted { instance, following: Some(at), .. }) => {
            format!("{instance} has the new password, which {at} confirmed")
        }
        Answer::Adopted(Adopted { instance, .. }) => format!("{instance} has the new password"),
    }
}
