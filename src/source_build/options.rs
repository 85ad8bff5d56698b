//! Owns what PostgreSQL is built with: what `configure` is told, from what the machine has and what the
//! operator wants, and which Debian package brings what is missing.

use crate::durable::Context;
use crate::error::{Error, Result};
use crate::postgres::version::PgVersion;
use crate::process;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

/// A part of PostgreSQL that needs something of the machine.
#[derive(Debug)]
pub struct Feature {
    /// What `configure` calls it: `openssl` of `--with-openssl`.
    pub word: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// The Debian package to build with it.
    pub package: &'static str,
    probe: Probe,
    default: Default,
}

/// How to find out whether the machine has it.
#[derive(Debug)]
enum Probe {
    /// A header that declares a symbol, and the libraries that hold it.
    Library { header: &'static str, symbol: &'static str, link: &'static [&'static str] },
    /// A program.
    Program(&'static str),
}

/// Whether it is built in when nobody says anything.
#[derive(Clone, Copy, Debug)]
enum Default {
    /// Where the machine has it, from the version on that knows it.
    WherePossible(fn(PgVersion) -> bool),
    /// Only when asked for.
    OnRequest,
}

const fn library(header: &'static str, symbol: &'static str, link: &'static [&'static str]) -> Probe {
    Probe::Library { header, symbol, link }
}

const fn always(_: PgVersion) -> bool {
    true
}

const fn on_request(word: &'static str, name: &'static str, package: &'static str, probe: Probe) -> Feature {
    Feature { word, name, package, probe, default: Default::OnRequest }
}

const fn possible(
    word: &'static str,
    name: &'static str,
    package: &'static str,
    known: fn(PgVersion) -> bool,
    probe: Probe,
) -> Feature {
    Feature { word, name, package, probe, default: Default::WherePossible(known) }
}

/// The features, those with a default first (the manual, "Installation from Source Code", and `configure
/// --help`; packages of Debian 12).
pub const FEATURES: &[Feature] = &[
    possible(
        "openssl",
        "OpenSSL",
        "libssl-dev",
        always,
        library("openssl/ssl.h", "SSL_new", &["-lssl", "-lcrypto"]),
    ),
    possible(
        "icu",
        "ICU",
        "libicu-dev",
        PgVersion::has_icu_option,
        library("unicode/ucol.h", "ucol_open", &["-licui18n", "-licuuc"]),
    ),
    possible(
        "readline",
        "readline",
        "libreadline-dev",
        always,
        library("readline/readline.h", "readline", &["-lreadline"]),
    ),
    possible("zlib", "zlib", "zlib1g-dev", always, library("zlib.h", "deflate", &["-lz"])),
    possible(
        "lz4",
        "lz4",
        "liblz4-dev",
        PgVersion::has_lz4_option,
        library("lz4.h", "LZ4_compress_default", &["-llz4"]),
    ),
    possible(
        "zstd",
        "zstd",
        "libzstd-dev",
        PgVersion::has_zstd_option,
        library("zstd.h", "ZSTD_compress", &["-lzstd"]),
    ),
    on_request("libxml", "libxml2", "libxml2-dev", Probe::Program("xml2-config")),
    on_request("libxslt", "libxslt", "libxslt1-dev", library("", "xsltParseStylesheetFile", &["-lxslt"])),
    on_request("uuid", "a UUID library", "uuid-dev", library("uuid/uuid.h", "uuid_generate", &["-luuid"])),
    on_request(
        "systemd",
        "systemd",
        "libsystemd-dev",
        library("systemd/sd-daemon.h", "sd_notify", &["-lsystemd"]),
    ),
    on_request("pam", "PAM", "libpam0g-dev", library("security/pam_appl.h", "pam_start", &["-lpam"])),
    on_request(
        "gssapi",
        "Kerberos",
        "libkrb5-dev",
        library("gssapi/gssapi.h", "gss_init_sec_context", &["-lgssapi_krb5"]),
    ),
    on_request("ldap", "LDAP", "libldap-dev", library("ldap.h", "ldap_initialize", &["-lldap"])),
    on_request(
        "selinux",
        "SELinux",
        "libselinux1-dev",
        library("selinux/selinux.h", "is_selinux_enabled", &["-lselinux"]),
    ),
    on_request("perl", "Perl", "libperl-dev", library("", "perl_alloc", &["-lperl"])),
    on_request("python", "Python", "python3-dev", Probe::Program("python3-config")),
    on_request("tcl", "Tcl", "tcl-dev", library("", "Tcl_CreateInterp", &["-ltcl"])),
    on_request("llvm", "LLVM", "llvm-dev clang", Probe::Program("llvm-config")),
    on_request(
        "liburing",
        "liburing",
        "liburing-dev",
        library("liburing.h", "io_uring_queue_init", &["-luring"]),
    ),
    on_request("libnuma", "libnuma", "libnuma-dev", library("numa.h", "numa_available", &["-lnuma"])),
    on_request(
        "libcurl",
        "libcurl",
        "libcurl4-openssl-dev",
        library("curl/curl.h", "curl_easy_init", &["-lcurl"]),
    ),
    on_request("nls", "gettext", "gettext", Probe::Program("msgfmt")),
    on_request("dtrace", "SystemTap", "systemtap-sdt-dev", Probe::Program("dtrace")),
];

/// What `configure` will be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its arguments, without those about directories.
    pub arguments: Vec<String>,
    /// The features with a default that are built in.
    pub with: Vec<&'static str>,
    /// Those that could be, and the package that would bring them; none for what the operator refused.
    pub without: Vec<(&'static str, Option<&'static str>)>,
}

/// Decides. `has` says whether the machine has a feature.
///
/// # Errors
/// [`Error::BuildOption`] for an option that is not the operator's to set, [`Error::MissingLibraries`] when
/// something was asked for by name that the machine lacks.
pub fn choose(version: PgVersion, wanted: &[String], has: impl Fn(&Feature) -> bool) -> Result<Chosen> {
    let mut arguments = Vec::new();
    for option in wanted {
        check_option(option)?;
        arguments.push(option.clone());
    }
    let mut missing = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for feature in FEATURES {
        match (asked(feature, wanted), feature.default) {
            (Some(true), default) => {
                if !has(feature) {
                    missing.push((feature.name, feature.package));
                } else if let Default::WherePossible(_) = default {
                    with.push(feature.name);
                }
            }
            (Some(false), Default::WherePossible(_)) => without.push((feature.name, None)),
            (None, Default::WherePossible(known)) if known(version) => {
                let found = has(feature);
                arguments.extend(argument(feature, version, found));
                if found {
                    with.push(feature.name);
                } else {
                    without.push((feature.name, Some(feature.package)));
                }
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        return Err(Error::MissingLibraries { missing });
    }
    Ok(Chosen { arguments, with, without })
}

/// Whether the operator said yes or no to a feature; the last word counts.
fn asked(feature: &Feature, wanted: &[String]) -> Option<bool> {
    wanted.iter().rev().find_map(|option| {
        let (yes, word) = split(option)?;
        let (word, value) = word.split_once('=').unwrap_or((word, ""));
        // From 14 on OpenSSL's option is --with-ssl=openssl, and no other library is known.
        let named = word == feature.word || (word == "ssl" && feature.word == "openssl");
        named.then_some(yes && value != "no")
    })
}

fn split(option: &str) -> Option<(bool, &str)> {
    for (prefix, yes) in
        [("--with-", true), ("--enable-", true), ("--without-", false), ("--disable-", false)]
    {
        if let Some(word) = option.strip_prefix(prefix) {
            return Some((yes, word));
        }
    }
    None
}

fn argument(feature: &Feature, version: PgVersion, found: bool) -> Option<String> {
    // readline and zlib are configure's own defaults, which fail where they are missing; so does ICU from 16 on.
    let own_default =
        matches!(feature.word, "readline" | "zlib") || (feature.word == "icu" && version.wants_icu());
    match (own_default, found) {
        (true, false) => Some(format!("--without-{}", feature.word)),
        (false, true) => Some(format!("--with-{}", feature.word)),
        _ => None,
    }
}

/// Where a build lies is not an option: a build that is somewhere else cannot be switched to.
fn check_option(option: &str) -> Result<()> {
    let bad = |why| Err(Error::BuildOption { option: option.to_owned(), why });
    if option.starts_with("--") && option.contains(",--") {
        return bad("holds several options; separate them by spaces");
    }
    if option.chars().any(char::is_control) {
        return bad("holds a control character");
    }
    let variable = option.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    if variable || split(option).is_some_and(|(_, word)| !word.is_empty()) {
        return Ok(());
    }
    bad("is none that can be set here; --with-…, --without-…, --enable-…, --disable-… and VARIABLE=value can")
}

/// A program that building needs, and the Debian package that brings it.
const TOOLS: &[(&str, &str)] = &[("make", "make"), ("pkg-config", "pkg-config")];
const GENERATORS: &[(&str, &str)] = &[("bison", "bison"), ("flex", "flex"), ("perl", "perl")];

/// The C compiler that the options name, or `cc`.
fn compiler(wanted: &[String]) -> String {
    let named = wanted.iter().rev().find_map(|option| option.strip_prefix("CC="));
    // "ccache gcc -m64" is a program with arguments.
    named.and_then(|cc| cc.split_whitespace().next()).unwrap_or("cc").to_owned()
}

/// Refuses to begin where a program is missing that is needed in any case.
///
/// # Errors
/// [`Error::MissingTools`], with all of them.
pub fn check_tools(version: PgVersion, wanted: &[String]) -> Result<()> {
    let cc = compiler(wanted);
    let generators: &[_] = if version.needs_generators() { GENERATORS } else { &[] };
    let mut missing = Vec::new();
    for (tool, package) in [(cc.as_str(), "gcc libc6-dev")].iter().chain(TOOLS).chain(generators) {
        if which::which(tool).is_err() {
            missing.push(((*tool).to_owned(), *package));
        }
    }
    if !missing.is_empty() {
        return Err(Error::MissingTools { version: version.major(), missing });
    }
    // Debian's gcc comes without the C library's headers.
    let (header, symbol) = ("stdio.h", "printf");
    if compiles(wanted, header, symbol, &[])? {
        return Ok(());
    }
    let missing = vec![(format!("a working C compiler ({cc})"), "gcc libc6-dev")];
    Err(Error::MissingTools { version: version.major(), missing })
}

/// Whether this machine has a feature: what `configure` will find out, but at once and for all of them.
fn machine_has(feature: &Feature, wanted: &[String]) -> Result<bool> {
    match feature.probe {
        Probe::Program(program) => Ok(which::which(program).is_ok()),
        Probe::Library { header, symbol, link } => compiles(wanted, header, symbol, link),
    }
}

/// A compiler takes some 30 ms for it; one that hangs is none.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Compiles and links a program that uses `symbol`, with the operator's own compiler and directories.
fn compiles(wanted: &[String], header: &str, symbol: &str, link: &[&str]) -> Result<bool> {
    let value = |name: &str| wanted.iter().rev().find_map(|option| option.strip_prefix(name));
    let mut words: Vec<&str> = value("CC=").unwrap_or("cc").split_whitespace().collect();
    let Some(program) = (!words.is_empty()).then(|| words.remove(0)) else { return Ok(false) };
    let declared = match header {
        "" => format!("char {symbol}();"),
        header => format!("#include <stdio.h>\n#include <{header}>"),
    };
    let text = format!("{declared}\nint main(void) {{ return (long) (void *) {symbol} == 1; }}\n");
    let temporary = std::env::temp_dir();
    let mut source = tempfile::Builder::new()
        .prefix("pgmahout-probe.")
        .suffix(".c")
        .tempfile()
        .on("create a file in", &temporary)?;
    source.write_all(text.as_bytes()).on("write", source.path())?;
    let mut command = Command::new(program);
    command.args(words).arg("-w").arg(source.path()).args(["-o", "/dev/null"]);
    for name in ["CPPFLAGS=", "CFLAGS=", "LDFLAGS="] {
        command.args(value(name).unwrap_or_default().split_whitespace());
    }
    for (name, flag) in [("--with-includes=", "-I"), ("--with-libraries=", "-L")] {
        let directories = value(name).unwrap_or_default().split(':').filter(|d| !d.is_empty());
        command.args(directories.map(|directory| format!("{flag}{directory}")));
    }
    command.args(link);
    match process::run_lines(command, PROBE_LIMIT, |_| Ok(())) {
        Ok(status) => Ok(status.success()),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(_) => Ok(false),
    }
}

/// The machine's answer for every feature, found side by side.
pub fn survey(wanted: &[String]) -> Result<impl Fn(&Feature) -> bool + use<>> {
    let answers: Vec<(&'static str, Result<bool>)> = std::thread::scope(|scope| {
        let asked = FEATURES
            .iter()
            .filter(|f| matches!(f.default, Default::WherePossible(_)) || asked(f, wanted).is_some());
        let running: Vec<_> = asked.map(|f| scope.spawn(move || (f.word, machine_has(f, wanted)))).collect();
        running.into_iter().map(|thread| thread.join().expect("a probe does not panic")).collect()
    });
    let mut found = Vec::new();
    for (word, has) in answers {
        if has? {
            found.push(word);
        }
    }
    Ok(move |feature: &Feature| found.contains(&feature.word))
}

/// The Debian package that holds a shared library by this file name, as far as PostgreSQL may need it.
pub fn package_of_shared_library(file: &str) -> Option<String> {
    let (name, version) = file.split_once(".so")?;
    let version = version.trim_start_matches('.').split('.').next().unwrap_or_default();
    Some(match name {
        "libssl" | "libcrypto" => format!("libssl{version}"),
        "libicui18n" | "libicuuc" | "libicudata" => format!("libicu{version}"),
        "libreadline" => format!("libreadline{version}"),
        "libz" => "zlib1g".into(),
        "liblz4" => "liblz4-1".into(),
        "libzstd" => "libzstd1".into(),
        "libxml2" => "libxml2".into(),
        "libxslt" => "libxslt1.1".into(),
        "libuuid" => "libuuid1".into(),
        "libsystemd" => "libsystemd0".into(),
        "libpam" => "libpam0g".into(),
        "libgssapi_krb5" => "libgssapi-krb5-2".into(),
        "libedit" => "libedit2".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    fn chosen(version: &str, words: &[&str], has: &[&str]) -> Result<Chosen> {
        choose(PgVersion::parse(version).unwrap(), &options(words), |f| has.contains(&f.word))
    }

    const ALL: &[&str] = &["openssl", "icu", "readline", "zlib", "lz4", "zstd"];

    #[test]
    fn what_the_machine_has_is_used_from_the_version_on_that_knows_it() {
        let arguments = |version| chosen(version, &[], ALL).unwrap().arguments;
        assert_eq!(arguments("9.6"), ["--with-openssl"]);
        assert_eq!(arguments("13"), ["--with-openssl", "--with-icu"]);
        assert_eq!(arguments("14"), ["--with-openssl", "--with-icu", "--with-lz4"]);
        assert_eq!(arguments("15"), ["--with-openssl", "--with-icu", "--with-lz4", "--with-zstd"]);
        assert_eq!(arguments("17"), ["--with-openssl", "--with-lz4", "--with-zstd"]);
        assert_eq!(
            chosen("17", &[], ALL).unwrap().with,
            ["OpenSSL", "ICU", "readline", "zlib", "lz4", "zstd"]
        );
    }

    #[test]
    fn what_the_machine_lacks_is_left_out_and_named_with_its_package() {
        let bare = chosen("17", &[], &[]).unwrap();
        assert_eq!(bare.arguments, ["--without-icu", "--without-readline", "--without-zlib"]);
        assert!(bare.without.contains(&("zstd", Some("libzstd-dev"))));
        assert_eq!(chosen("15", &[], &[]).unwrap().arguments, ["--without-readline", "--without-zlib"]);
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let refused = chosen("17", &["--without-icu", "--with-perl"], &["icu", "zlib", "perl"]).unwrap();
        assert_eq!(refused.arguments, ["--without-icu", "--with-perl", "--without-readline"]);
        assert!(refused.without.contains(&("ICU", None)));
        let ssl = chosen("17", &["--with-ssl=openssl"], ALL).unwrap();
        assert_eq!(ssl.arguments.iter().filter(|a| a.contains("openssl")).count(), 1);
        assert!(ssl.with.contains(&"OpenSSL"));
        for word in ["--with-ssl=no", "--without-ssl", "--without-openssl"] {
            let none = chosen("17", &[word], ALL).unwrap();
            assert!(!none.arguments.contains(&"--with-openssl".to_owned()), "{word}");
        }
    }

    #[test]
    fn what_was_asked_for_by_name_and_is_missing_is_an_error() {
        match chosen("17", &["--with-perl", "--with-uuid=e2fs", "--with-lz4"], &["icu"]) {
            Err(Error::MissingLibraries { missing }) => assert_eq!(
                missing,
                [("lz4", "liblz4-dev"), ("a UUID library", "uuid-dev"), ("Perl", "libperl-dev")]
            ),
            other => panic!("{other:?}"),
        }
        let error = chosen("17", &["--with-lz4"], &[]).unwrap_err();
        assert_eq!(error.hint().unwrap(), "apt-get install liblz4-dev, or leave the option away");
    }

    #[test]
    fn where_it_lies_is_not_an_option() {
        for option in
            ["--prefix=/x", "--bindir=/x", "-q", "x", "lower=x", "--with-", "--with-a,--with-b", "=x"]
        {
            assert!(matches!(chosen("17", &[option], ALL), Err(Error::BuildOption { .. })), "{option}");
        }
        for option in [
            "CFLAGS=-O3 -march=native",
            "LDFLAGS=-Wl,--as-needed",
            "CC=ccache gcc",
            "--enable-debug",
            "--with-segsize=2",
        ] {
            assert!(chosen("17", &[option], ALL).is_ok(), "{option}");
        }
    }

    #[test]
    fn the_machine_is_asked_by_its_own_compiler() {
        let compiles = |words: &[&str], header, symbol, link: &[&str]| {
            compiles(&options(words), header, symbol, link).unwrap()
        };
        assert!(compiles(&[], "stdio.h", "printf", &[]));
        assert!(!compiles(&[], "no/such/header.h", "printf", &[]));
        assert!(!compiles(&[], "stdio.h", "printf", &["-lno-such-library"]));
        assert!(!compiles(&[], "", "no_such_symbol", &[]));
        assert!(!compiles(&["CC=no-such-compiler"], "stdio.h", "printf", &[]));
        assert!(!compiles(&["CFLAGS=-no-such-flag"], "stdio.h", "printf", &[]));
        let error = check_tools(PgVersion::parse("17").unwrap(), &options(&["CC=no-such-compiler"]));
        assert!(
            matches!(error, Err(Error::MissingTools { missing, .. }) if missing[0].0 == "no-such-compiler")
        );
    }

    #[test]
    fn a_shared_library_is_known_by_its_package() {
        assert_eq!(package_of_shared_library("libicui18n.so.72").unwrap(), "libicu72");
        assert_eq!(package_of_shared_library("libssl.so.3").unwrap(), "libssl3");
        assert_eq!(package_of_shared_library("libreadline.so.8").unwrap(), "libreadline8");
        assert_eq!(package_of_shared_library("libz.so.1").unwrap(), "zlib1g");
        assert_eq!(package_of_shared_library("libfoo.so.1"), None);
    }
}
