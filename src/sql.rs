//! Owns SQL to a server: connecting with a limit, one error text per way it can be refused, and the
//! check that a *replication* connection is let in, which ordinary SQL cannot ask.

use crate::blurb::Secret;
use crate::error::{CertificateFlaw, Error, Result};
use crate::instance::Instance;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{Lsn, Timeline};
use crate::process;
use crate::tls::{Encryption, Found, Tls};
use crate::wire::{Fault, Peer, Wire};
use postgres::config::SslMode;
use postgres::types::{FromSql, ToSql, Type};
use postgres::{Client, Row, SimpleQueryMessage};
use postgres_openssl::MakeTlsConnector;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// A server to connect to.
#[derive(Clone)]
pub struct Target {
    /// What error texts call it: "db.0", "this instance".
    pub label: String,
    /// Host name or address, or the absolute path of a Unix socket directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// Database.
    pub database: String,
    /// Whether with TLS, and how its certificate is checked.
    pub tls: Tls,
    /// Limit for the connection.
    pub timeout: Duration,
}

impl Target {
    /// The server of this instance.
    pub fn local(instance: &Instance) -> Result<Target> {
        let target = Target {
            label: "this instance".into(),
            host: instance.address(),
            port: instance.port(),
            user: instance.user.clone(),
            password: instance.password()?,
            database: "postgres".into(),
            tls: Tls::default(),
            timeout: instance.connect_timeout,
        };
        // A rotation was interrupted: which of the two passwords is in force only the server can say.
        if let Some(next) = instance.next_password()?
            && matches!(Db::connect(&target), Err(Error::SqlPassword { .. }))
        {
            let rotated = Target { password: Some(next), ..target.clone() };
            if Db::connect(&rotated).is_ok() {
                return Ok(rotated);
            }
        }
        Ok(target)
    }

    fn at(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{} ({}:{})", self.label, host, self.port)
    }

    /// The same server, another database.
    pub fn database(&self, database: &str) -> Target {
        Target { database: database.into(), ..self.clone() }
    }
}

/// A connection.
pub struct Db {
    /// None only while it is dropped.
    client: Option<Client>,
    label: String,
    /// For the connection that cancels.
    tls: MakeTlsConnector,
    /// The server's version.
    pub version: PgVersion,
}

/// A value for `$1`, `$2`, … of a statement. Its type goes with it, which spares the question how the server takes it:
/// one way there and back in place of two, for each statement.
pub trait Parameter: ToSql + Sync {
    /// What the server is told that it is.
    fn kind(&self) -> Type;

    /// As the client library has it.
    fn value(&self) -> &(dyn ToSql + Sync);
}

macro_rules! parameter {
    ($($type:ty: $kind:ident),* $(,)?) => {$(
        impl Parameter for $type {
            fn kind(&self) -> Type {
                Type::$kind
            }

            fn value(&self) -> &(dyn ToSql + Sync) {
                self
            }
        }
    )*};
}

// A text is what the statement makes of it (`name`, `text`): unknown, as a literal is.
parameter! {
    &str: UNKNOWN, String: UNKNOWN, &String: UNKNOWN, Option<String>: UNKNOWN,
    Vec<String>: TEXT_ARRAY, &[String]: TEXT_ARRAY, Vec<&str>: TEXT_ARRAY, &[&str]: TEXT_ARRAY,
    &[u8]: BYTEA, Vec<Vec<u8>>: BYTEA_ARRAY,
    bool: BOOL, Vec<bool>: BOOL_ARRAY,
    i32: INT4, i64: INT8, Vec<i64>: INT8_ARRAY,
    u32: OID, Vec<u32>: OID_ARRAY,
}

fn typed<'a>(parameters: &[&'a dyn Parameter]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    parameters.iter().map(|parameter| (parameter.value(), parameter.kind())).collect()
}

fn tls(target: &Target) -> Result<(MakeTlsConnector, Found)> {
    let (connector, found) = target.tls.connector(&target.host)?;
    let mut tls = MakeTlsConnector::new(connector);
    // The name is compared with the rest of the certificate.
    tls.set_callback(|ssl, _| {
        ssl.set_verify_hostname(false);
        Ok(())
    });
    Ok((tls, found))
}

/// With TLS or without, as the target's `sslmode` says; the other way when pg_hba.conf lets it in only so.
fn either_way<T>(target: &Target, connect: impl Fn(Encryption) -> Result<T>) -> Result<T> {
    let (first, second) = target.tls.order(&target.host);
    let error = match connect(first) {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    let is_entry = match &error {
        Error::NoReplicationEntry { .. } => true,
        Error::SqlRefused { why, .. } => why.contains("pg_hba.conf"),
        _ => false,
    };
    match second.filter(|_| is_entry).map(connect) {
        None | Some(Err(Error::SqlNoTls { .. })) => Err(error),
        Some(other) => other,
    }
}

/// A server notices within a minute that our end of the line was cut: without it a session stays for two hours, with its
/// backup, its locks and its snapshot.
pub const NOTICED: &str = "SET tcp_keepalives_idle = 15; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 6; \
     SELECT CASE WHEN current_setting('server_version_num')::int >= 120000 \
     THEN set_config('tcp_user_timeout', '60000', false) END";

impl Db {
    /// Connects, or says why not.
    pub fn connect(target: &Target) -> Result<Db> {
        either_way(target, |encryption| Db::connect_with(target, encryption))
    }

    fn connect_with(target: &Target, encryption: Encryption) -> Result<Db> {
        let mut config = postgres::Config::new();
        config
            .host(&target.host)
            .port(target.port)
            .user(&target.user)
            .dbname(&target.database)
            .application_name("pgmahout")
            .connect_timeout(target.timeout)
            .keepalives_idle(Duration::from_secs(15))
            .tcp_user_timeout(Duration::from_secs(60))
            .ssl_mode(match encryption {
                Encryption::Never => SslMode::Disable,
                Encryption::IfOffered => SslMode::Prefer,
                Encryption::Always => SslMode::Require,
            });
        if let Some(password) = &target.password {
            config.password(password.expose());
        }
        let (tls, found) = tls(target)?;
        let for_cancel = tls.clone();
        // connect_timeout covers the TCP connection only: a server that accepts and stays silent would be
        // waited for without limit, so the whole of it runs against a clock.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(config.connect(tls));
        });
        let outcome = match receiver.recv_timeout(target.timeout + Duration::from_secs(1)) {
            Ok(outcome) => outcome,
            Err(_) => return Err(Error::SqlSilent { at: target.at(), limit: target.timeout }),
        };
        let client = outcome.map_err(|e| match found.take() {
            Some(flaw) => certificate_error(target, flaw),
            None => connection_error(target, &e),
        })?;
        let mut db = Db {
            client: Some(client),
            label: target.label.clone(),
            tls: for_cancel,
            version: PgVersion::from_num(0),
        };
        let greeting =
            format!("SELECT current_setting('server_version_num'); SET statement_timeout = '60s'; {NOTICED}");
        db.forget_others_errors();
        let answers = db.client().simple_query(&greeting);
        let number = answers.map_err(|e| db.error(&e))?.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        db.version = PgVersion::from_num(number.unwrap_or(0));
        Ok(db)
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("it is there until the connection is dropped")
    }

    /// libssh2 leaves what it tried in vain (an OpenSSH key read as PEM) in this thread's OpenSSL error queue,
    /// where the next TLS read of PostgreSQL's connection would take it for its own.
    fn forget_others_errors(&self) {
        drop(openssl::error::ErrorStack::get());
    }

    fn error(&self, e: &postgres::Error) -> Error {
        let why = match e.as_db_error() {
            Some(db) => match db.detail() {
                Some(detail) => format!("{} ({detail})", db.message()),
                None => db.message().to_owned(),
            },
            None => chain(e),
        };
        Error::Sql { label: self.label.clone(), why }
    }

    /// Runs statements that return nothing.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.forget_others_errors();
        let outcome = self.client().batch_execute(sql);
        outcome.map_err(|e| self.error(&e))
    }

    /// All rows.
    pub fn rows(&mut self, sql: &str, parameters: &[&dyn Parameter]) -> Result<Vec<Row>> {
        self.forget_others_errors();
        let outcome = self.client().query_typed(sql, &typed(parameters));
        outcome.map_err(|e| self.error(&e))
    }

    /// As [`Db::rows`], for what may take long: an interrupt cancels it on the server.
    pub fn rows_interruptible(&mut self, sql: &str, parameters: &[&dyn Parameter]) -> Result<Vec<Row>> {
        let token = self.client().cancel_token();
        let tls = self.tls.clone();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let watcher = std::thread::spawn(move || {
            // Until the other end is dropped.
            while is_done.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                if process::check_interrupt().is_err() {
                    let _ = token.cancel_query(tls);
                    return;
                }
            }
        });
        let outcome = self.rows(sql, parameters);
        drop(done);
        let _ = watcher.join();
        process::check_interrupt()?;
        outcome
    }

    /// The one row of a query that returns exactly one.
    pub fn row(&mut self, sql: &str, parameters: &[&dyn Parameter]) -> Result<Row> {
        self.forget_others_errors();
        let outcome = self.client().query_typed_one(sql, &typed(parameters));
        outcome.map_err(|e| self.error(&e))
    }

    /// The first column of the one row.
    pub fn value<T: for<'a> FromSql<'a>>(&mut self, sql: &str, parameters: &[&dyn Parameter]) -> Result<T> {
        let row = self.row(sql, parameters)?;
        row.try_get(0).map_err(|e| self.error(&e))
    }

    /// An LSN from a query that gives it as text; `None` for NULL.
    pub fn lsn(&mut self, sql: &str) -> Result<Option<Lsn>> {
        let text: Option<String> = self.value(sql, &[])?;
        text.map(|t| t.parse::<Lsn>()).transpose()
    }

    /// The value of a setting; `None` where this version does not know it.
    pub fn setting(&mut self, name: &str) -> Result<Option<String>> {
        let rows = self.rows("SELECT current_setting(name) FROM pg_settings WHERE name = $1", &[&name])?;
        rows.first().map(|row| row.try_get(0)).transpose().map_err(|e| self.error(&e))
    }

    /// Is it in recovery, i.e. a standby?
    pub fn in_recovery(&mut self) -> Result<bool> {
        self.value("SELECT pg_is_in_recovery()", &[])
    }

    /// True while the connection works.
    pub fn is_alive(&mut self) -> bool {
        self.forget_others_errors();
        self.client().is_valid(Duration::from_secs(5)).is_ok()
    }
}

/// The good-bye of a connection may take so long.
const GOODBYE: Duration = Duration::from_secs(2);

impl Drop for Db {
    /// The client waits for the answers that are still to come, from a peer that is silent for ever.
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(client);
            let _ = done.send(());
        });
        let _ = is_done.recv_timeout(GOODBYE);
    }
}

/// A text as a literal in SQL, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\\', "\\\\").replace('\'', "''");
    if text.contains('\\') { format!(" E'{quoted}'") } else { format!("'{quoted}'") }
}

/// A name as an identifier in SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The error and everything behind it, once each: tokio-postgres says "error connecting to server" and
/// hides the reason in the source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

fn connection_error(target: &Target, error: &postgres::Error) -> Error {
    match error.as_db_error() {
        // It will never accept one: to wait for it would be in vain.
        Some(db) if db.detail().is_some_and(|detail| detail.contains("Hot standby mode is disabled")) => {
            Error::SqlRefused { at: target.at(), why: "hot_standby is off".into() }
        }
        Some(db) => refusal(target, db.code().code(), db.message(), false),
        // A server that wants a password of a client that has none is told by the client library itself.
        None if chain(error).contains("password missing") => {
            refusal(target, "28P01", "no password is known", false)
        }
        None if chain(error).contains("server does not support TLS") => Error::SqlNoTls { at: target.at() },
        None => {
            let why = chain(error);
            let why = why.strip_prefix("error connecting to server: ").unwrap_or(&why).to_owned();
            Error::SqlUnreachable { at: target.at(), why }
        }
    }
}

fn certificate_error(target: &Target, flaw: CertificateFlaw) -> Error {
    let (sslmode, root) = target.tls.asked();
    Error::SqlCertificate { at: target.at(), sslmode, root, flaw }
}

/// The error for what a server answers to a connection. Codes: PostgreSQL's appendix A.
fn refusal(target: &Target, code: &str, message: &str, replication: bool) -> Error {
    let at = target.at();
    let user = target.user.clone();
    match code {
        "28P01" => Error::SqlPassword { at, user },
        "28000" if message.contains("pg_hba.conf") && replication => Error::NoReplicationEntry { at, user },
        "28000" => Error::SqlRefused { at, why: message.into() },
        "57P03" => Error::SqlUnreachable { at, why: message.into() },
        _ => Error::SqlRefused { at, why: message.into() },
    }
}

/// The error for a raw connection that came to nothing.
fn wire_error(target: &Target, fault: Fault, replication: bool) -> Error {
    let at = target.at();
    match fault {
        Fault::Server { code, said } => refusal(target, &code, &said, replication),
        Fault::NoPassword => Error::SqlPassword { at, user: target.user.clone() },
        Fault::NoTls => Error::SqlNoTls { at },
        Fault::Certificate(flaw) => certificate_error(target, flaw),
        Fault::Here(error) => *error,
        Fault::Odd(_) => Error::SqlRefused { at, why: fault.to_string() },
        Fault::Silent(limit) => Error::SqlSilent { at, limit },
        Fault::Lost(why) => Error::SqlUnreachable { at, why },
        Fault::Interrupted => Error::Interrupted,
    }
}

fn raw_to(target: &Target, parameters: &[(&str, &str)], replication: bool) -> Result<Wire> {
    either_way(target, |encryption| {
        let peer = Peer {
            host: target.host.clone(),
            port: target.port,
            user: target.user.clone(),
            password: target.password.clone(),
            tls: target.tls.clone(),
            encryption,
            timeout: target.timeout,
        };
        Wire::connect(&peer, parameters).map_err(|fault| wire_error(target, fault, replication))
    })
}

/// A raw connection to the database. When it is silent, another connection finds out whether the server still answers.
pub fn raw(target: &Target) -> Result<Wire> {
    let parameters = [
        ("database", target.database.as_str()),
        ("application_name", "pgmahout"),
        ("client_encoding", "UTF8"),
    ];
    let mut wire = raw_to(target, &parameters, false)?;
    let target = target.clone();
    wire.set_look(Box::new(move || Db::connect(&target).map(drop).map_err(|e| e.to_string())));
    Ok(wire)
}

/// Connects as a standby would and asks IDENTIFY_SYSTEM; gives the system identifier that the server
/// says, and its current timeline.
pub fn check_replication(target: &Target) -> Result<(String, Timeline)> {
    let parameters = [("replication", "true"), ("application_name", "pgmahout")];
    let mut wire = raw_to(target, &parameters, true)?;
    let rows = wire.query("IDENTIFY_SYSTEM").map_err(|fault| wire_error(target, fault, true))?;
    // systemid, timeline, xlogpos, dbname
    let text = |i: usize| rows.first()?.get(i)?.clone();
    match (text(0), text(1).and_then(|t| t.parse().ok())) {
        (Some(id), Some(timeline)) => Ok((id, Timeline(timeline))),
        _ => Err(Error::SqlRefused { at: target.at(), why: "it answered no system identifier".into() }),
    }
}
