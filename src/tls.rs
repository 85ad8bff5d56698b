//! Owns TLS to PostgreSQL: what is asked of a connection, by its connection string, the environment and libpq's default
//! files; and the check of the server's certificate, as libpq makes it (PostgreSQL's manual, "SSL Support").
//!
//! What libpq does that is not done here: a failed check never leads to a connection without TLS (`prefer` makes none),
//! and a file that is named and is not there is an error under every `sslmode`.

use crate::error::{CertificateFlaw, Error, Result};
use crate::postgres::ssl::{SslMode, SslParameters};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::store::{File, X509Lookup, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509NameRef, X509Ref, X509StoreContextRef};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The value of `sslrootcert` that stands for the authorities that this machine trusts.
const SYSTEM: &str = "system";

/// What is asked of a connection to PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Which connections are good enough.
    pub mode: SslMode,
    /// Whose signature makes a certificate a good one; none: it is not checked.
    root: Option<Root>,
    /// File of certificates that were revoked.
    crl: Option<PathBuf>,
    /// The client's own certificate, and its key.
    own: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Root {
    File(PathBuf),
    System,
}

/// What a connection may be tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// No TLS.
    Never,
    /// TLS if the server offers it.
    IfOffered,
    /// TLS.
    Always,
}

/// Looks a variable of the environment up.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Tls {
    /// What a URL asks for, completed from the environment (`PGSSLMODE`, …) and `~/.postgresql`.
    ///
    /// # Errors
    /// [`Error::TlsAsked`] for what contradicts itself.
    pub fn of_url(ssl: &SslParameters) -> Result<Tls> {
        Tls::resolved(ssl, &environment).map_err(|why| Error::TlsAsked { why })
    }

    /// What a standby's connection string asks for. That one is not refused: it is the server that makes it its own.
    pub fn of_conninfo<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Tls {
        let mut ssl = SslParameters::default();
        for (name, value) in pairs {
            let _ = ssl.take(name, value);
        }
        let mode = ssl.sslmode.unwrap_or_default();
        Tls::resolved(&ssl, &environment).unwrap_or(Tls { mode, ..Tls::default() })
    }

    fn resolved(ssl: &SslParameters, environment: Environment) -> std::result::Result<Tls, String> {
        let or = |said: &Option<String>, variable: &str| said.clone().or_else(|| environment(variable));
        let root = or(&ssl.sslrootcert, "PGSSLROOTCERT");
        let is_system = root.as_deref() == Some(SYSTEM);
        let mode = match (ssl.sslmode, environment("PGSSLMODE")) {
            (Some(mode), _) => mode,
            (None, _) if is_system => SslMode::VerifyFull,
            (None, Some(text)) => {
                SslMode::parse(&text).ok_or("PGSSLMODE has a value that libpq does not know")?
            }
            (None, None) => SslMode::default(),
        };
        let weak = || format!("sslmode={}", mode.name());
        if is_system && mode != SslMode::VerifyFull {
            return Err(format!("sslrootcert=system goes with sslmode=verify-full, not with {}", weak()));
        }
        // Whoever names a file in the string itself expects a check by it.
        let named = [("sslrootcert", &ssl.sslrootcert), ("sslcrl", &ssl.sslcrl)];
        if let Some((name, _)) = named.iter().find(|(_, said)| said.is_some())
            && !mode.needs_tls()
        {
            return Err(format!("{} checks no certificate, and {name} is given", weak()));
        }
        if mode == SslMode::Disable {
            return Ok(Tls { mode, ..Tls::default() });
        }
        let default = |name: &str| Some(Path::new(&environment("HOME")?).join(".postgresql").join(name));
        let existing = |name: &str| default(name).filter(|path| path.exists());
        let file = |word: String| std::path::absolute(&word).unwrap_or_else(|_| word.into());
        let root = match root {
            _ if !mode.needs_tls() => None,
            Some(_) if is_system => Some(Root::System),
            Some(word) => Some(Root::File(file(word))),
            None if mode == SslMode::Require => existing("root.crt").map(Root::File),
            None => Some(Root::File(default("root.crt").ok_or("there is no sslrootcert, and no HOME")?)),
        };
        let crl = or(&ssl.sslcrl, "PGSSLCRL").map(file).or_else(|| existing("root.crl"));
        let certificate = or(&ssl.sslcert, "PGSSLCERT").map(file).or_else(|| existing("postgresql.crt"));
        let key = || or(&ssl.sslkey, "PGSSLKEY").map(file).or_else(|| default("postgresql.key"));
        Ok(Tls {
            mode,
            crl: crl.filter(|_| root.is_some()),
            root,
            own: certificate.and_then(|certificate| Some((certificate, key()?))),
        })
    }

    /// The same without the comparison of names, where the authorities are not those of all the world.
    pub fn of_any_name(&self) -> Tls {
        match (self.mode, &self.root) {
            (SslMode::VerifyFull, Some(Root::File(_))) => Tls { mode: SslMode::VerifyCa, ..self.clone() },
            _ => self.clone(),
        }
    }

    /// How a server is tried, and how once more when its `pg_hba.conf` does not let it in that way.
    pub fn order(&self, host: &str) -> (Encryption, Option<Encryption>) {
        match self.mode {
            // As for libpq, a Unix socket has no TLS and needs none.
            _ if host.starts_with('/') => (Encryption::Never, None),
            SslMode::Disable => (Encryption::Never, None),
            SslMode::Allow => (Encryption::Never, Some(Encryption::Always)),
            SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Never)),
            _ => (Encryption::Always, None),
        }
    }

    /// What says the same to libpq: its keywords and their values, files by their absolute paths. Keywords that are not
    /// among them are not to be set.
    pub fn keywords(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        let mut keywords = vec![("sslmode", self.mode.name().to_owned())];
        match &self.root {
            None => {}
            Some(Root::File(path)) => keywords.push(("sslrootcert", text(path))),
            // libpq knows the word from 16 on, and asks the OpenSSL that it was built with: ours was not.
            Some(Root::System) => {
                let path = openssl_probe::probe().cert_file;
                keywords.push(("sslrootcert", path.map_or(SYSTEM.to_owned(), |path| text(&path))));
            }
        }
        keywords.extend(self.crl.iter().map(|path| ("sslcrl", text(path))));
        if let Some((certificate, key)) = &self.own {
            keywords.extend([("sslcert", text(certificate)), ("sslkey", text(key))]);
        }
        keywords
    }

    /// All keywords that [`Tls::keywords`] may have.
    pub const KEYWORDS: &[&str] = &["sslmode", "sslrootcert", "sslcrl", "sslcert", "sslkey"];

    /// The files that a connection needs.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let root = match &self.root {
            Some(Root::File(path)) => Some(path),
            _ => None,
        };
        let own = self.own.iter().flat_map(|(certificate, key)| [certificate, key]);
        root.into_iter().chain(&self.crl).chain(own).map(PathBuf::as_path)
    }

    /// For error texts: what a certificate is checked by.
    pub fn asked(&self) -> (&'static str, String) {
        let root = match &self.root {
            Some(Root::File(path)) => path.display().to_string(),
            _ => "this machine's certificates (sslrootcert=system)".into(),
        };
        (self.mode.name(), root)
    }

    /// OpenSSL for a connection to `host`. What is wrong with the certificate is found in the second when it fails.
    ///
    /// # Errors
    /// [`Error::TlsFile`].
    pub fn connector(&self, host: &str) -> Result<(SslConnector, Found)> {
        let found = Found::default();
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |e: ErrorStack| Error::TlsFile { what, why: reason(&path, &e), path }
        };
        let broken = |e: ErrorStack| Error::Sql { label: "TLS".into(), why: e.to_string() };
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(broken)?;
        if let Some((certificate, key)) = &self.own {
            builder
                .set_certificate_chain_file(certificate)
                .map_err(failed("client certificate", certificate))?;
            builder
                .set_private_key_file(key, SslFiletype::PEM)
                .and_then(|()| builder.check_private_key())
                .map_err(failed("client key", key))?;
        }
        let Some(root) = &self.root else {
            builder.set_verify(SslVerifyMode::NONE);
            return Ok((builder.build(), found));
        };
        // Nobody is trusted but them.
        let empty = X509StoreBuilder::new().map(|store| store.build());
        builder.set_cert_store(empty.map_err(broken)?);
        match root {
            Root::File(path) => {
                builder.load_verify_locations(Some(path), None).map_err(failed("root certificate", path))?
            }
            Root::System => trust_system(&mut builder)?,
        }
        if let Some(path) = &self.crl {
            let store = builder.cert_store_mut();
            let loaded = store
                .add_lookup(X509Lookup::<File>::file())
                .and_then(|lookup| lookup.load_crl_file(path, SslFiletype::PEM));
            loaded
                .and_then(|_| store.set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL))
                .map_err(failed("list of revoked certificates", path))?;
        }
        let host = (self.mode == SslMode::VerifyFull).then(|| host.to_owned());
        let note = found.clone();
        builder.set_verify_callback(SslVerifyMode::PEER, move |is_good, context| {
            let flaw = if is_good { wrong_name(context, host.as_deref()) } else { Some(flaw_of(context)) };
            let is_good = flaw.is_none();
            *note.lock() = flaw;
            is_good
        });
        Ok((builder.build(), found))
    }
}

/// What was wrong with a certificate, if that was it.
#[derive(Clone, Default)]
pub struct Found(Arc<Mutex<Option<CertificateFlaw>>>);

impl Found {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<CertificateFlaw>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it.
    pub fn take(&self) -> Option<CertificateFlaw> {
        self.lock().take()
    }
}

/// `SSL_CERT_FILE`, `SSL_CERT_DIR`, and where distributions have them.
fn trust_system(builder: &mut SslConnectorBuilder) -> Result<()> {
    let places = openssl_probe::probe();
    let all = places.cert_file.iter().map(|file| (Some(file.as_path()), None));
    let all = all.chain(places.cert_dir.iter().map(|directory| (None, Some(directory.as_path()))));
    let mut is_any = false;
    for (file, directory) in all {
        let path = file.or(directory).unwrap_or(Path::new("")).to_owned();
        builder.load_verify_locations(file, directory).map_err(|e| Error::TlsFile {
            what: "root certificate",
            why: reason(&path, &e),
            path,
        })?;
        is_any = true;
    }
    if is_any { Ok(()) } else { Err(Error::TlsNoSystem) }
}

/// Why a file could not be used. OpenSSL says it in numbers only.
fn reason(path: &Path, e: &ErrorStack) -> String {
    match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "it does not exist".into(),
        Err(e) => e.to_string(),
        Ok(_) => match e.errors().iter().find_map(|e| e.reason()) {
            Some(reason) => reason.to_owned(),
            None => "it is not what it should be, in PEM".into(),
        },
    }
}

fn flaw_of(context: &X509StoreContextRef) -> CertificateFlaw {
    // <openssl/x509_vfy.h>
    let certificate = context.current_cert();
    match context.error().as_raw() {
        2 | 7 | 18..=21 => CertificateFlaw::Authority {
            issuer: certificate.map_or_else(String::new, |c| name(c.issuer_name())),
        },
        9 => CertificateFlaw::NotYet {
            from: certificate.map_or_else(String::new, |c| c.not_before().to_string()),
        },
        10 => CertificateFlaw::Expired {
            until: certificate.map_or_else(String::new, |c| c.not_after().to_string()),
        },
        _ => CertificateFlaw::Other { why: context.error().error_string().to_owned() },
    }
}

/// `CN=ca, O=Example`
fn name(name: &X509NameRef) -> String {
    let entry = |entry: &openssl::x509::X509NameEntryRef| {
        let key = entry.object().nid().short_name().unwrap_or("?").to_owned();
        Some(format!("{key}={}", entry.data().to_string().ok()?))
    };
    name.entries().filter_map(entry).collect::<Vec<_>>().join(", ")
}

fn wrong_name(context: &X509StoreContextRef, host: Option<&str>) -> Option<CertificateFlaw> {
    let host = host.filter(|_| context.error_depth() == 0)?;
    let names = Names::of(context.current_cert()?);
    (!names.have(host)).then(|| CertificateFlaw::Name { host: host.to_owned(), names: names.all() })
}

/// Whom a certificate is for.
#[derive(Default)]
struct Names {
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
    common: Option<String>,
}

impl Names {
    fn of(certificate: &X509Ref) -> Names {
        let mut names = Names::default();
        for other in certificate.subject_alt_names().iter().flatten() {
            names.dns.extend(other.dnsname().map(str::to_owned));
            names.addresses.extend(other.ipaddress().and_then(address));
        }
        let common = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).last();
        names.common = common.and_then(|entry| entry.data().to_string().ok());
        names
    }

    /// As libpq compares it (fe-secure-common.c): the subject's common name counts where there is no other name of the
    /// host's kind, and an address may also stand there, or among the names, as text.
    fn have(&self, host: &str) -> bool {
        let host = host.split('%').next().unwrap_or(host);
        let address: Option<IpAddr> = host.parse().ok();
        let is_common_asked = match address {
            Some(_) => self.addresses.is_empty(),
            None => self.dns.is_empty(),
        };
        let common = self.common.iter().filter(|_| is_common_asked);
        address.is_some_and(|address| self.addresses.contains(&address))
            || self.dns.iter().chain(common).any(|pattern| match address {
                Some(_) => pattern == host,
                None => matches(pattern, host),
            })
    }

    fn all(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        let all: Vec<String> = self.dns.iter().cloned().chain(addresses).collect();
        if all.is_empty() { self.common.iter().cloned().collect() } else { all }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A name, or one whose `*` stands for its whole first label.
fn matches(pattern: &str, host: &str) -> bool {
    let Some(rest) = pattern.strip_prefix('*').filter(|rest| rest.starts_with('.') && rest.len() > 1) else {
        return pattern.eq_ignore_ascii_case(host);
    };
    host.find('.').is_some_and(|dot| dot > 0 && host[dot..].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn resolved(url: &[(&str, &str)], variables: &[(&str, &str)]) -> std::result::Result<Tls, String> {
        let mut ssl = SslParameters::default();
        url.iter().try_for_each(|(name, value)| ssl.take(name, value))?;
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Tls::resolved(&ssl, &|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    /// "verify-full /x/root.crt"
    fn brief(tls: &std::result::Result<Tls, String>) -> String {
        let Ok(tls) = tls else { return tls.clone().unwrap_err() };
        let root = match &tls.root {
            None => "-".into(),
            Some(Root::System) => "system".into(),
            Some(Root::File(path)) => path.display().to_string(),
        };
        format!("{} {root}", tls.mode.name())
    }

    #[test]
    fn string_environment_and_home_are_merged_as_libpq_does() {
        let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directory = with.path().join(".postgresql");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("root.crt"), "").unwrap();
        let default = directory.join("root.crt").display().to_string();
        let missing = without.path().join(".postgresql/root.crt").display().to_string();
        let (with, without) = (with.path().to_str().unwrap(), without.path().to_str().unwrap());
        let relative = std::env::current_dir().unwrap().join("ca.crt").display().to_string();
        let (mode, root) = (|m| ("sslmode", m), |r| ("sslrootcert", r));
        for (url, home, variables, wanted) in [
            (vec![], with, vec![], "prefer -".to_owned()),
            (vec![mode("disable")], with, vec![], "disable -".into()),
            (vec![mode("allow")], with, vec![], "allow -".into()),
            (vec![mode("prefer")], with, vec![("PGSSLMODE", "verify-full")], "prefer -".into()),
            (vec![mode("require")], without, vec![], "require -".into()),
            (vec![mode("require")], with, vec![], format!("require {default}")),
            (vec![mode("require"), root("/no.crt")], with, vec![], "require /no.crt".into()),
            (vec![mode("verify-ca")], without, vec![], format!("verify-ca {missing}")),
            (vec![mode("verify-full"), root("ca.crt")], with, vec![], format!("verify-full {relative}")),
            (
                vec![mode("verify-full"), root("~/ca")],
                with,
                vec![],
                format!("verify-full {}", std::env::current_dir().unwrap().join("~/ca").display()),
            ),
            (vec![], with, vec![("PGSSLMODE", "verify-ca")], format!("verify-ca {default}")),
            (vec![], with, vec![("PGSSLROOTCERT", "/env.crt")], "prefer -".into()),
            (vec![mode("require")], with, vec![("PGSSLROOTCERT", "/env.crt")], "require /env.crt".into()),
            (
                vec![root("/u")],
                with,
                vec![("PGSSLROOTCERT", "/e"), ("PGSSLMODE", "require")],
                "require /u".into(),
            ),
            (vec![root("system")], with, vec![("PGSSLMODE", "require")], "verify-full system".into()),
            (vec![], with, vec![("PGSSLROOTCERT", "system")], "verify-full system".into()),
            (
                vec![mode("require"), root("system")],
                with,
                vec![],
                "sslrootcert=system goes with sslmode=verify-full, not with sslmode=require".into(),
            ),
            (
                vec![root("/u")],
                with,
                vec![],
                "sslmode=prefer checks no certificate, and sslrootcert is given".into(),
            ),
            (
                vec![mode("disable"), ("sslcrl", "/u")],
                with,
                vec![],
                "sslmode=disable checks no certificate, and sslcrl is given".into(),
            ),
            (
                vec![],
                with,
                vec![("PGSSLMODE", "yes")],
                "PGSSLMODE has a value that libpq does not know".into(),
            ),
        ] {
            let all: Vec<_> = variables.iter().copied().chain([("HOME", home)]).collect();
            assert_eq!(brief(&resolved(&url, &all)), wanted, "{url:?} {variables:?}");
        }
        let any_name = |url: &[(&str, &str)]| brief(&resolved(url, &[]).map(|tls| tls.of_any_name()));
        assert_eq!(any_name(&[mode("verify-full"), root("/u")]), "verify-ca /u");
        assert_eq!(any_name(&[root("system")]), "verify-full system");
    }

    #[test]
    fn libpq_is_told_the_same() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(".postgresql");
        std::fs::create_dir(&directory).unwrap();
        for name in ["postgresql.crt", "root.crl"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let home = home.path().to_str().unwrap();
        let told = |url: &[(&str, &str)]| {
            let keywords = resolved(url, &[("HOME", home)]).unwrap().keywords();
            assert!(keywords.iter().all(|(name, _)| Tls::KEYWORDS.contains(name)));
            let text: Vec<_> = keywords.iter().map(|(name, value)| format!("{name}={value}")).collect();
            text.join(" ").replace(directory.to_str().unwrap(), "~")
        };
        assert_eq!(
            told(&[("sslmode", "verify-ca"), ("sslrootcert", "/ca")]),
            "sslmode=verify-ca sslrootcert=/ca sslcrl=~/root.crl sslcert=~/postgresql.crt sslkey=~/postgresql.key"
        );
        assert_eq!(
            told(&[("sslmode", "require"), ("sslcert", "/c"), ("sslkey", "/k")]),
            "sslmode=require sslcert=/c sslkey=/k"
        );
        assert_eq!(told(&[("sslmode", "disable"), ("sslcert", "/c")]), "sslmode=disable");
        let tls =
            resolved(&[("sslmode", "verify-ca"), ("sslrootcert", "/ca")], &[("HOME", "/none")]).unwrap();
        assert_eq!(tls.of_any_name(), tls);
        let text = tls.keywords();
        assert_eq!(Tls::of_conninfo(text.iter().map(|(name, value)| (*name, value.as_str()))).root, tls.root);
    }

    #[test]
    fn a_foreign_connection_string_is_followed_as_far_as_it_goes() {
        // As pg_basebackup -R writes it, and what is said of TLS that is not followed here.
        let text =
            [("sslmode", "prefer"), ("sslcompression", "1"), ("sslrootcert", "/x"), ("sslcrldir", "/y")];
        let tls = Tls::of_conninfo(text.into_iter());
        assert_eq!((tls.mode, tls.root), (SslMode::Prefer, None));
    }

    #[test]
    fn names_are_compared_as_libpq_compares_them() {
        let names = |dns: &[&str], addresses: &[&str], common: &str| Names {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            common: Some(common.to_owned()),
        };
        for (names, host, wanted) in [
            (names(&[], &[], "db.example"), "DB.example", true),
            (names(&[], &[], "db.example"), "db.example.org", false),
            (names(&["other"], &[], "db.example"), "db.example", false),
            (names(&[], &["10.0.0.1"], "db.example"), "db.example", true),
            (names(&["*.example"], &[], ""), "db.example", true),
            (names(&["*.example"], &[], ""), "a.db.example", false),
            (names(&["*.example"], &[], ""), ".example", false),
            (names(&["*.example"], &[], ""), "example", false),
            (names(&["*"], &[], ""), "db", false),
            (names(&["d*.example"], &[], ""), "db.example", false),
            (names(&["*.0.0.1"], &[], ""), "10.0.0.1", false),
            (names(&[], &["10.0.0.2"], "10.0.0.1"), "10.0.0.1", false),
            (names(&["db"], &[], "10.0.0.1"), "10.0.0.1", true),
            (names(&["10.0.0.1"], &[], ""), "10.0.0.1", true),
            (names(&[], &["::1"], ""), "0:0::1", true),
            (names(&[], &["fe80::1"], ""), "fe80::1%eth0", true),
            (names(&[], &[], ""), "db", false),
        ] {
            assert_eq!(names.have(host), wanted, "{:?} {host}", names.all());
        }
        // A NUL ends no name.
        assert!(!names(&["db.example\0.evil"], &[], "").have("db.example"));
    }
}
