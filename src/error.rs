//! Owns every error text, its hint and its exit code: one variant per thing that can go wrong,
//! one arm in [`Error::parts`] that says all three.
//!
//! Texts are lower case, without a full stop, and name the object. The hint says the way out.

use std::fmt;

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Exit codes, the same for every command (DESIGN.md, "What bad input gets").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: it failed; nothing is half-done.
    Failed = 1,
    /// 2: wrong usage or a blurb that does not say enough.
    Usage = 2,
    /// 3: refused for safety; a flag (normally `--confirm`) overrides it.
    Refused = 3,
    /// 4: the other side could not be reached.
    Unreachable = 4,
    /// 5: interrupted; run the same command again to complete it.
    Interrupted = 5,
}

/// Everything that can go wrong.
#[derive(Debug)]
#[allow(missing_docs, reason = "a variant's fields are explained by its own docstring")]
pub enum Error {
    /// A file or directory operation failed. `action` is an infinitive: "read", "create".
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    // ---- PostgreSQL's facts (src/postgres)
    /// A text that should be a PostgreSQL version.
    PgVersion { text: String },
    /// A text that should be an LSN.
    Lsn { text: String },
    /// A text that should be a system identifier.
    SystemId { text: String },
    /// A line of a timeline history file; 0 stands for the whole file.
    HistoryLine { file: String, number: usize, line: String, why: &'static str },
    /// A timeline history file of 9.0 to 9.2.
    HistoryFormat { file: String },
    /// A WAL segment size that no server has.
    WalSegmentSize { bytes: u32 },
    /// A WAL page could not be read.
    WalPage { lsn: String, source: std::io::Error },
    /// WAL of a version before 10.
    WalVersion { magic: u16 },
    /// Not even the first WAL record could be read.
    WalUnreadable { lsn: String, why: String },
    /// `pg_control` ends before its last field.
    ControlTooShort { bytes: usize },
    /// `pg_control` of a big-endian machine.
    ControlByteOrder,
    /// `pg_control` of a version that is not known here.
    ControlVersion { version: u32 },
    /// `pg_control` does not agree with its own checksum.
    ControlChecksum { stored: u32, computed: u32 },
    /// `pg_control` holds something that no server writes.
    ControlField { field: &'static str, value: String },
    /// A `backup_label` without one of its lines.
    BackupLabel { line: &'static str },
    /// A libpq connection string. It is not quoted, for it may hold a password.
    Conninfo { why: &'static str },
    // ---- blurbs. What they quote is escaped and free of passwords already.
    /// Nothing arrived.
    BlurbEmpty,
    /// More arrived than any blurb has.
    BlurbTooLong { bytes: usize, limit: usize },
    /// Not UTF-8.
    BlurbNotText { position: usize },
    /// The command that should have printed the blurb printed an error.
    BlurbIsError { line: String },
    /// Text, but no blurb.
    BlurbUnknown { line: String },
    /// Damaged JSON or YAML.
    BlurbSyntax { format: &'static str, why: String },
    /// Several instances and no `--from`.
    BlurbSeveral { names: Vec<String> },
    /// The instance asked for is not there.
    BlurbNoSuchInstance { wanted: String, names: Vec<String> },
    /// No port for SSH or PostgreSQL.
    BlurbNoPort { of: Option<String>, what: &'static str, names: Vec<String> },
    /// Several ports could be PostgreSQL's.
    BlurbPorts { names: Vec<String> },
    /// A port's URL cannot be used.
    BlurbUrl { port: String, url: String, why: &'static str },
    /// The environment of this instance does not tell about another.
    EnvironmentInstance { wanted: String, why: &'static str },
}

const INFO_HINT: &str = "run `dotcloud info db.0` and give what it prints, all of it";
const CONTROL_HINT: &str = "the data directory is damaged, or is not one";

struct Parts {
    exit: Exit,
    text: String,
    hint: Option<String>,
}

impl Error {
    /// The exit code, the text and the hint of this error, in the only place they are written.
    fn parts(&self) -> Parts {
        use Exit::*;
        let (exit, text, hint): (Exit, String, &str) = match self {
            Error::File { action, path, source } => {
                (Failed, format!("could not {action} {}: {source}", path.display()), "")
            }
            // ---- PostgreSQL's facts
            Error::PgVersion { text } => (
                Failed,
                format!("{text:?} is not a PostgreSQL version"),
                "a version looks like 15.18, 15 or 9.6.24",
            ),
            Error::Lsn { text } => (Failed, format!("{text:?} is not an LSN such as 16/B374D848"), ""),
            Error::SystemId { text } => (
                Failed,
                format!("{text:?} is not a system identifier"),
                "it is a decimal number of 19 digits or so",
            ),
            Error::HistoryLine { file, number: 0, why, .. } => {
                (Failed, format!("{file} cannot be read: {why}"), "")
            }
            Error::HistoryLine { file, number, line, why } => {
                (Failed, format!("line {number} of {file} cannot be read: {why}: {line:?}"), "")
            }
            Error::HistoryFormat { file } => (
                Failed,
                format!("{file} names WAL segments in place of LSNs, as PostgreSQL 9.0 to 9.2 wrote it"),
                "such a standby cannot be pointed at another primary; it has to be copied anew",
            ),
            Error::WalSegmentSize { bytes } => (
                Failed,
                format!("a WAL segment size of {bytes} bytes is not possible"),
                "it is a power of two from 1 MB to 1 GB",
            ),
            Error::WalPage { lsn, source } => {
                (Failed, format!("could not read the WAL page at {lsn}: {source}"), "")
            }
            Error::WalVersion { magic } => (
                Failed,
                format!(
                    "the WAL is of a PostgreSQL version before 10 (page magic {magic:#06X}), which is not read"
                ),
                "",
            ),
            Error::WalUnreadable { lsn, why } => (
                Failed,
                format!("the WAL cannot be read from {lsn} on: {why}"),
                "what it commits is unknown; start the server once, so that it recovers, and stop it again",
            ),
            Error::ControlTooShort { bytes } => {
                (Failed, format!("pg_control is too short ({bytes} bytes)"), CONTROL_HINT)
            }
            Error::ControlByteOrder => (
                Failed,
                "pg_control was written by a machine of the other byte order".to_owned(),
                "a data directory can only be copied between machines of one architecture",
            ),
            Error::ControlVersion { version } => (
                Failed,
                format!("pg_control has the unknown version {version}"),
                "PostgreSQL 9.3 to 18 is known; a newer one needs a newer pgmahout",
            ),
            Error::ControlChecksum { stored, computed } => (
                Failed,
                format!("pg_control is damaged: its checksum is {stored:08X}, its content's {computed:08X}"),
                CONTROL_HINT,
            ),
            Error::ControlField { field, value } => {
                (Failed, format!("pg_control has an impossible {field}: {value}"), CONTROL_HINT)
            }
            Error::BackupLabel { line } => {
                (Failed, format!("the line \"{line}\" of backup_label is missing or cannot be read"), "")
            }
            Error::Conninfo { why } => (Failed, format!("the connection string has {why}"), ""),
            // ---- blurbs
            Error::BlurbEmpty => (
                Usage,
                "the blurb is empty".to_owned(),
                "pipe one in, as in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
            ),
            Error::BlurbTooLong { bytes, limit } => {
                (Usage, format!("{bytes} bytes are no blurb (the limit is {limit})"), INFO_HINT)
            }
            Error::BlurbNotText { position } => {
                (Usage, format!("the blurb is not UTF-8 text (byte {position})"), INFO_HINT)
            }
            Error::BlurbIsError { line } => (
                Usage,
                format!("the blurb is an error message: {line}"),
                "the command in front of the pipe failed; run it alone until it prints the instance's ports",
            ),
            Error::BlurbUnknown { line } => {
                (Usage, format!("the blurb has no ports; it begins with: {line}"), INFO_HINT)
            }
            Error::BlurbSyntax { format, why } => {
                (Usage, format!("this is not valid {format}: {why}"), INFO_HINT)
            }
            Error::BlurbSeveral { names } => (
                Usage,
                format!("the blurb tells of several instances: {}", names.join(", ")),
                "choose one with --from, or ask for one: dotcloud info db.0",
            ),
            Error::BlurbNoSuchInstance { wanted, names } => {
                (Usage, format!("there is no instance {wanted}, only {}", names.join(", ")), "")
            }
            Error::BlurbNoPort { of, what, names } => (
                Usage,
                format!(
                    "the blurb{} has no port for {what}{}",
                    of.as_ref().map_or(String::new(), |of| format!(" of {of}")),
                    if names.is_empty() { String::new() } else { format!(", only {}", names.join(", ")) },
                ),
                "an instance needs an ssh and a pgsql port; run `dotcloud info db.0` to see what it has",
            ),
            Error::BlurbPorts { names } => (
                Usage,
                format!("several ports could be PostgreSQL's: {}", names.join(", ")),
                "name one of them pgsql in dotcloud.yml, or in the blurb",
            ),
            Error::BlurbUrl { port, url, why } => {
                (Usage, format!("the URL of port {port} {why}: {url}"), INFO_HINT)
            }
            Error::EnvironmentInstance { wanted, why } => (
                Usage,
                format!("instance {wanted} is not known here: the environment {why}"),
                "give its blurb instead: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
            ),
        };
        Parts { exit, text, hint: (!hint.is_empty()).then(|| hint.to_owned()) }
    }

    /// The exit code of the process that ends with this error.
    pub fn exit(&self) -> Exit {
        self.parts().exit
    }

    /// What gets the person out, when there is something better than reading the text again.
    pub fn hint(&self) -> Option<String> {
        self.parts().hint
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts().text)
    }
}

impl std::error::Error for Error {}
