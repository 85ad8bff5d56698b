//! TLS to PostgreSQL: which certificate passes which `sslmode`, by the client library, by our own connections, by libpq's
//! programs, and by the standby that an enslave leaves.

use crate::common::*;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Name};
use pgmahout::operations::copy::source::target;
use pgmahout::sql::{Db, check_replication};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIMIT: Duration = Duration::from_secs(10);
const DAY: i64 = 86_400;

struct Authority {
    key: PKey<Private>,
    certificate: X509,
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn common_name(name: &str) -> X509Name {
    let mut builder = X509Name::builder().unwrap();
    builder.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    builder.build()
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = new_key();
        let certificate = certificate(name, &[], DAY, &key, None);
        Authority { key, certificate }
    }

    /// Puts a certificate for these names, and its key, where the server, or a client, finds it.
    fn issue(&self, names: &[&str], good_for: i64, certificate_file: &Path) {
        let key = new_key();
        let signed = certificate(names.first().unwrap(), names, good_for, &key, Some(self));
        account().write(certificate_file, signed.to_pem().unwrap(), 0o600);
        let key_file = certificate_file.with_extension("key");
        account().write(&key_file, key.private_key_to_pem_pkcs8().unwrap(), 0o600);
    }

    fn save(&self, path: &Path) {
        account().write(path, self.certificate.to_pem().unwrap(), 0o644);
    }
}

fn certificate(
    subject: &str,
    names: &[&str],
    good_for: i64,
    key: &PKey<Private>,
    by: Option<&Authority>,
) -> X509 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(if by.is_some() { 2 } else { 1 }).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    let subject = common_name(subject);
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(by.map_or(&subject, |by| by.certificate.subject_name())).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(now - 2 * DAY).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(now + good_for).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    if by.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    if !names.is_empty() {
        let mut other = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<std::net::IpAddr>() {
                Ok(_) => other.ip(name),
                Err(_) => other.dns(name),
            };
        }
        let extension = other.build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(extension).unwrap();
    }
    builder.sign(by.map_or(key, |by| &by.key), MessageDigest::sha256()).unwrap();
    builder.build()
}

/// A server with TLS, its certificate in `server.crt` of its home, and its authority.
fn server(site: &Arc<Site>, name: &str) -> (Host, Authority) {
    let home = site.directory.join(name);
    let file = |name: &str| home.join(name).display().to_string();
    let host = site
        .host(name)
        .setting("ssl", "on")
        .setting("ssl_cert_file", &file("server.crt"))
        .setting("ssl_key_file", &file("server.key"))
        .setting("log_connections", "on")
        .stopped()
        .build();
    let authority = Authority::new("one");
    authority.issue(&["localhost", "127.0.0.1"], DAY, &host.home.join("server.crt"));
    host.start();
    (host, authority)
}

fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn url_at(host: &Host, address: &str, parameters: &str) -> String {
    let (user, password) = (&host.superuser, percent(&host.password));
    format!("postgres://{user}:{password}@{address}:{}/postgres?{parameters}", host.port)
}

fn root(path: &Path) -> String {
    format!("&sslrootcert={}", percent(path.to_str().unwrap()))
}

/// By the client library and by a connection of our own: whether it has TLS, or the error and its exit code.
fn tried(url: &str) -> (String, String) {
    let target = target(url, LIMIT).unwrap();
    let error = |error: pgmahout::error::Error| format!("{}: {error}", error.exit() as i32);
    let by_library = Db::connect(&target)
        .and_then(|mut db| db.value::<bool>("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]));
    let by_library = match by_library {
        Ok(true) => "TLS".into(),
        Ok(false) => "plain".into(),
        Err(e) => error(e),
    };
    let own = check_replication(&target).map_or_else(error, |_| "lets in".into());
    (by_library, own)
}

#[test]
fn a_table_of_modes_and_certificates() {
    let site = Site::new();
    let (host, authority) = server(&site, "db.0");
    let (ours, server_file) = (host.home.join("ca one.crt"), host.home.join("server.crt"));
    authority.save(&ours);
    let other = Authority::new("two");
    let named = root(&ours);
    let at = format!("the source (127.0.0.1:{})", host.port);

    let unknown = format!("{} has no authority that signed it; it is signed by CN=two", ours.display());
    let name = "it is for db.example, 10.0.0.9, not for 127.0.0.1".to_owned();
    type Issue<'a> = Box<dyn Fn() + 'a>;
    let certificates: [(&str, Issue, Option<String>, Option<String>); 4] = [
        ("good", Box::new(|| authority.issue(&["localhost", "127.0.0.1"], DAY, &server_file)), None, None),
        (
            "of another host",
            Box::new(|| authority.issue(&["db.example", "10.0.0.9"], DAY, &server_file)),
            None,
            Some(name),
        ),
        (
            "of another authority",
            Box::new(|| other.issue(&["127.0.0.1"], DAY, &server_file)),
            Some(unknown.clone()),
            Some(unknown),
        ),
        (
            "expired",
            Box::new(|| authority.issue(&["127.0.0.1"], -DAY, &server_file)),
            Some("it, or one that it rests on, was good until ".into()),
            Some("it, or one that it rests on, was good until ".into()),
        ),
    ];
    for (certificate, issue, ca_flaw, full_flaw) in certificates {
        issue();
        host.reload();
        for (mode, parameters, wanted) in [
            ("disable", "", Ok("plain")),
            ("allow", "", Ok("plain")),
            ("prefer", "", Ok("TLS")),
            ("require", "", Ok("TLS")),
            ("require", named.as_str(), ca_flaw.as_ref().map_or(Ok("TLS"), Err)),
            ("verify-ca", named.as_str(), ca_flaw.as_ref().map_or(Ok("TLS"), Err)),
            ("verify-full", named.as_str(), full_flaw.as_ref().map_or(Ok("TLS"), Err)),
        ] {
            let (by_library, own) =
                tried(&url_at(&host, "127.0.0.1", &format!("sslmode={mode}{parameters}")));
            let case = format!("{certificate}, {mode}{parameters}: {by_library}");
            match wanted {
                Ok(tls) => assert_eq!((by_library.as_str(), own.as_str()), (tls, "lets in"), "{case}"),
                Err(flaw) => {
                    let text = format!("4: the certificate of {at} does not pass sslmode={mode}: {flaw}");
                    assert!(by_library.starts_with(&text), "{case}, not {text}");
                    assert_eq!(by_library, own, "{case}");
                }
            }
        }
    }

    // Names: that of the URL counts, whatever address it has.
    authority.issue(&["localhost", "127.0.0.1"], DAY, &server_file);
    host.reload();
    let full = format!("sslmode=verify-full{named}");
    assert_eq!(tried(&url_at(&host, "localhost", &full)).0, "TLS");
    let v6 = tried(&url_at(&host, "[::1]", &full));
    assert!(v6.0.ends_with("it is for localhost, 127.0.0.1, not for ::1"), "{v6:?}");
    assert_eq!(v6.0, v6.1);
    assert_eq!(tried(&url_at(&host, "[::1]", &format!("sslmode=verify-ca{named}"))).1, "lets in");

    // A file that is not there, or is none.
    let none = host.home.join("none.crt");
    account().write(&host.home.join("text.crt"), "text\n", 0o644);
    for mode in ["require", "verify-ca", "verify-full"] {
        let without = tried(&url_at(&host, "127.0.0.1", &format!("sslmode={mode}{}", root(&none))));
        let text =
            format!("2: the root certificate {} for TLS cannot be used: it does not exist", none.display());
        assert_eq!(without, (text.clone(), text));
    }
    let none = root(&host.home.join("text.crt"));
    let text = tried(&url_at(&host, "127.0.0.1", &format!("sslmode=verify-full{none}"))).0;
    assert!(text.ends_with("text.crt for TLS cannot be used: no certificate or crl found"), "{text}");
}

#[test]
fn the_server_says_whether_with_tls() {
    let site = Site::new();
    let (host, authority) = server(&site, "db.0");
    authority.save(&host.home.join("ca.crt"));
    let entry = |kind: &str, options: &str| {
        let text = format!(
            "local all all scram-sha-256\n{kind} all all 127.0.0.1/32 scram-sha-256{options}\n\
             {kind} replication all 127.0.0.1/32 scram-sha-256{options}\n"
        );
        account().write(&host.data.join("pg_hba.conf"), text, 0o600);
        host.command(Pg::debian15().bin.join("pg_ctl"))
            .args(["reload", "-s", "-D"])
            .arg(&host.data)
            .status()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
    };
    let tried = |parameters: &str| tried(&url_at(&host, "127.0.0.1", parameters));
    let (plain, tls) = (("plain".into(), "lets in".into()), ("TLS".into(), "lets in".into()));
    entry("hostssl", "");
    assert_eq!((tried("sslmode=allow"), tried("sslmode=prefer")), (tls.clone(), tls.clone()));
    assert!(tried("sslmode=disable").0.contains("no pg_hba.conf entry"), "{:?}", tried("sslmode=disable"));
    entry("hostnossl", "");
    assert_eq!((tried("sslmode=allow"), tried("sslmode=prefer")), (plain.clone(), plain));
    assert!(tried("sslmode=require").0.contains("no pg_hba.conf entry"), "{:?}", tried("sslmode=require"));

    // A client certificate.
    let own = host.home.join("me.crt");
    authority.issue(&["me"], DAY, &own);
    let ca = host.home.join("ca.crt").display().to_string();
    host.append_conf(&format!("ssl_ca_file = '{ca}'\n"));
    entry("hostssl", " clientcert=verify-ca");
    assert!(tried("sslmode=require").0.contains("client certificate"), "{:?}", tried("sslmode=require"));
    let file = |path: &Path| percent(path.to_str().unwrap());
    let with = |key: &Path| format!("sslmode=require&sslcert={}&sslkey={}", file(&own), file(key));
    assert_eq!(tried(&with(&own.with_extension("key"))), tls);
    let missing = tried(&with(Path::new("/none.key"))).0;
    assert_eq!(missing, "2: the client key /none.key for TLS cannot be used: it does not exist");
}

#[test]
fn a_revoked_certificate() {
    let site = Site::new();
    let (host, authority) = server(&site, "db.0");
    let ca = host.home.join("ca.crt");
    authority.save(&ca);
    let key = host.home.join("ca.key");
    account().write(&key, authority.key.private_key_to_pem_pkcs8().unwrap(), 0o600);
    account().write(&host.home.join("index.txt"), "", 0o644);
    account().write(
        &host.home.join("ca.conf"),
        "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\ndefault_md = sha256\ndefault_crl_days = 1\n",
        0o644,
    );
    let crl = host.home.join("ca.crl");
    let ca_does = |words: &[&str]| {
        must(
            host.command("openssl")
                .current_dir(&host.home)
                .args(["ca", "-config", "ca.conf", "-keyfile", "ca.key", "-cert", "ca.crt"])
                .args(words),
        );
    };
    let parameters = format!("sslmode=verify-full{}&sslcrl={}", root(&ca), percent(crl.to_str().unwrap()));
    ca_does(&["-gencrl", "-out", "ca.crl"]);
    assert_eq!(tried(&url_at(&host, "127.0.0.1", &parameters)), ("TLS".into(), "lets in".into()));
    ca_does(&["-revoke", "server.crt"]);
    ca_does(&["-gencrl", "-out", "ca.crl"]);
    let (by_library, own) = tried(&url_at(&host, "127.0.0.1", &parameters));
    assert!(by_library.ends_with("does not pass sslmode=verify-full: certificate revoked"), "{by_library}");
    assert_eq!(by_library, own);
}

/// The command line: defaults of the home and the environment, relative paths, what libpq's programs are told.
#[test]
fn a_copy_obeys_the_url_and_libpqs_defaults() {
    let site = Site::new();
    let (from, authority) = server(&site, "db.0");
    let to = site.host("db.1").build();
    from.exec("CREATE DATABASE shop");
    from.exec_in("shop", "CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let (ours, others) = (to.home.join("ca.crt"), to.home.join("other.crt"));
    authority.save(&ours);
    Authority::new("two").save(&others);
    let at = format!("the source (127.0.0.1:{})", from.port);
    let url = |parameters: &str| url_at(&from, "127.0.0.1", parameters).replace("/postgres?", "/shop?");
    let look = |parameters: &str| to.agent(&["copy-part", "look"]).stdin(url(parameters));
    let hint = "if it is the right server, name the file with its authority's certificate as sslrootcert";
    let unknown = |mode: &str, by: &str| {
        format!(
            "the certificate of {at} does not pass sslmode={mode}: {by} has no authority that signed it; \
             it is signed by CN=one"
        )
    };
    look("sslmode=verify-full&sslrootcert=ca.crt").run().ok().says_not("certificate");
    let by_others = unknown("verify-full", &others.display().to_string());
    look("sslmode=verify-full&sslrootcert=other.crt").run().fails(4, &by_others, hint);
    look("sslmode=verify-ca&sslrootcert=other.crt").env("PGSSLROOTCERT", &ours).run().fails(
        4,
        &by_others.replace("verify-full", "verify-ca"),
        hint,
    );
    look("")
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", "other.crt")
        .run()
        .fails(4, &by_others, hint);
    look("").env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", "ca.crt").run().ok();
    look("sslrootcert=ca.crt").run().fails(
        2,
        "what is asked of TLS cannot be done: sslmode=prefer checks no certificate, and sslrootcert is given",
        "in the URL, sslmode=verify-full and sslrootcert=FILE (or =system) check the server's certificate; \
         PGSSLMODE and PGSSLROOTCERT stand in for them",
    );
    look("sslmode=require&sslcrldir=x").run().fails(
        2,
        "the source's URL asks for sslcrldir, which pgmahout does not follow in this way",
        "it has to be postgres://user:password@host:port/database, on the first line of stdin",
    );

    // The certificates of the machine.
    look("sslrootcert=system").env("SSL_CERT_FILE", &ours).run().ok();
    let system = "this machine's certificates (sslrootcert=system)";
    look("sslrootcert=system").run().fails(4, &unknown("verify-full", system), hint);

    // ~/.postgresql/root.crt: what `require` is checked by when it is there, and `verify-ca` always.
    look("sslmode=require").run().ok();
    let default = to.home.join(".postgresql/root.crt");
    let missing =
        format!("the root certificate {} for TLS cannot be used: it does not exist", default.display());
    let other_file = "name another file of this machine (sslrootcert=FILE, or =system; PGSSLROOTCERT), or take an \
                      sslmode that needs none";
    look("sslmode=verify-ca").run().fails(2, &missing, other_file);
    account().mkdir(default.parent().unwrap(), 0o700);
    std::fs::copy(&others, &default).unwrap();
    account().own(&default);
    for mode in ["require", "verify-ca"] {
        let text = unknown(mode, &default.display().to_string());
        look(&format!("sslmode={mode}")).run().fails(4, &text, hint);
    }
    look("sslmode=prefer").run().ok();

    // pg_dump and all the other connections: none without TLS, though the home's default is the wrong one.
    let logged = from.log().len();
    to.agent(&["copy", "--no-owner"]).stdin(url("sslmode=verify-full&sslrootcert=ca.crt")).run().ok();
    assert_eq!(to.one_in("shop", "SELECT count(*) FROM t"), "10");
    let log = from.log()[logged..].to_owned();
    let connections: Vec<&str> = log.lines().filter(|l| l.contains("connection authorized")).collect();
    // pg_dump is among them; it is told to call itself pgmahout too.
    assert!(connections.len() >= 4, "{connections:#?}");
    let plain: Vec<_> = connections
        .iter()
        .filter(|l| l.contains("application_name=pg") && !l.contains("SSL enabled"))
        .collect();
    assert!(plain.is_empty(), "{plain:#?}");
}

fn blurb_with(host: &Host, parameters: &str) -> String {
    let at = format!("127.0.0.1:{}", host.port);
    host.blurb().replace(&at, &format!("{at}?{parameters}"))
}

#[test]
fn a_standby_checks_what_the_enslave_has_checked() {
    let site = Site::new();
    let (primary, authority) = server(&site, "db.0");
    let (standby, fresh) = (site.host("db.1").build(), site.host("db.2").build());
    primary.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let checked = "sslmode=verify-full&sslrootcert=root.crt";
    let root_of = |host: &Host| -> PathBuf { host.home.join("root.crt") };
    for host in [&standby, &fresh] {
        authority.save(&root_of(host));
    }

    // A file in what the copy replaces is refused.
    let inside = standby.data.join("root.crt");
    let text = format!("{} for TLS lies in the data directory, which a copy replaces", inside.display());
    standby
        .agent(&["enslave"])
        .stdin(blurb_with(&primary, "sslmode=verify-ca&sslrootcert=data/root.crt"))
        .run()
        .fails(2, &text, "put it elsewhere, such as ~/.postgresql/root.crt, and name it there");

    standby.agent(&["enslave"]).stdin(blurb_with(&primary, checked)).run().ok();
    assert_streams(&primary, &standby);
    let wanted = format!("sslrootcert={}", root_of(&standby).display());
    // PGDATA is the server's directory: the path is whole. A space in it makes quotes.
    for sql in ["SELECT conninfo FROM pg_stat_wal_receiver", "SHOW primary_conninfo"] {
        let conninfo = standby.one(sql).replace('\'', "").replace("\\", "");
        assert!(conninfo.contains("sslmode=verify-full"), "{conninfo}");
        assert!(conninfo.contains(&wanted), "{conninfo}, not {wanted}");
    }
    let sender = "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
    assert_eq!(primary.one(sender), "true");
    let info = standby.agent(&["--json", "info"]).run().json();
    assert_eq!(
        (&info["following"]["reachable"], &info["following"]["streaming"]),
        (&true.into(), &true.into())
    );

    // Another authority's: nobody follows it any more, nothing is touched.
    Authority::new("two").issue(&["127.0.0.1"], DAY, &primary.home.join("server.crt"));
    primary.reload();
    let before = (snapshot(&primary), snapshot(&fresh));
    let text = format!(
        "the certificate of the source (127.0.0.1:{}) does not pass sslmode=verify-full: {} has no authority that \
         signed it; it is signed by CN=two",
        primary.port,
        root_of(&fresh).display()
    );
    let hint = "if it is the right server, name the file with its authority's certificate as sslrootcert";
    fresh.agent(&["enslave"]).stdin(blurb_with(&primary, checked)).run().fails(4, &text, hint);
    before.0.assert_unchanged(&primary);
    before.1.assert_unchanged(&fresh);
    primary_is_clean(&primary, &["pgmahout_db_1"]);

    // The standby that streams still knows that its primary lives, though it cannot be asked.
    assert_eq!(standby.agent(&["promote"]).run().code, 3);
    // Its next connection checks too.
    standby.restart();
    until("the WAL receiver refuses the certificate", 30, || {
        standby.log().contains("certificate verify failed")
    });
    assert_eq!(standby.one("SELECT count(*) FROM pg_stat_wal_receiver"), "0");
    authority.issue(&["127.0.0.1"], DAY, &primary.home.join("server.crt"));
    primary.reload();
    assert_streams(&primary, &standby);
}

#[test]
fn a_fork_checks_the_certificate_and_says_nothing_in_the_clear() {
    let site = Site::new();
    let (source, authority) = server(&site, "db.0");
    let fork = site.host("db.1").build();
    source.exec("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    authority.save(&fork.home.join("root.crt"));
    Authority::new("two").save(&fork.home.join("other.crt"));
    let before = (snapshot(&source), snapshot(&fork));
    let with = |root: &str| blurb_with(&source, &format!("sslmode=verify-full&sslrootcert={root}"));
    let text = format!(
        "the certificate of the source (127.0.0.1:{}) does not pass sslmode=verify-full: {} has no authority that \
         signed it; it is signed by CN=one",
        source.port,
        fork.home.join("other.crt").display()
    );
    let hint = "if it is the right server, name the file with its authority's certificate as sslrootcert";
    fork.agent(&["fork"]).stdin(with("other.crt")).run().fails(4, &text, hint);
    before.0.assert_unchanged(&source);
    before.1.assert_unchanged(&fork);

    let logged = source.log().len();
    fork.agent(&["fork"]).stdin(with("root.crt")).run().ok();
    assert_eq!(fork.one("SELECT count(*) || ' ' || pg_is_in_recovery() FROM t"), "10 false");
    let log = source.log()[logged..].to_owned();
    // Over the source's own socket its agent asks too.
    let pid =
        |line: &str| line.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0.to_owned()));
    let local: Vec<_> = log.lines().filter(|l| l.contains("host=[local]")).map(pid).collect();
    let over_tcp = |line: &&str| {
        line.contains("connection authorized")
            && line.contains("application_name=pgmahout")
            && !local.contains(&pid(line))
    };
    let (tls, plain): (Vec<_>, Vec<_>) =
        log.lines().filter(over_tcp).partition(|l| l.contains("SSL enabled"));
    assert!(tls.len() >= 2 && plain.is_empty(), "{tls:#?} {plain:#?}");
}
