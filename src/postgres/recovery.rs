//! Owns the text of standby configuration: libpq connection strings, lines of configuration files,
//! `recovery.conf` and `postgresql.auto.conf`, and slot names.
//!
//! Whatever a value holds (quotes, backslashes, line breaks), it stays one value.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};

/// A libpq connection string: keywords and values, in order, each keyword once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo {
    pairs: Vec<(String, String)>,
}

impl Conninfo {
    /// Without any keyword.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `key=value key='quoted value'` by the rules of libpq's `conninfo_parse`, or a
    /// `postgres://` or `postgresql://` URL with at most one host. A keyword given twice has its last
    /// value.
    ///
    /// # Errors
    /// [`Error::Conninfo`], which never quotes the string: it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why| Error::Conninfo { why };
        let trimmed = text.trim();
        for scheme in ["postgres://", "postgresql://"] {
            if let Some(rest) = trimmed.strip_prefix(scheme) {
                return parse_url(rest);
            }
        }
        let mut conninfo = Self::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
            let keyword = &rest[..end];
            rest = rest[end..]
                .trim_start()
                .strip_prefix('=')
                .ok_or_else(|| bad("a keyword without \"=\""))?
                .trim_start();
            if keyword.is_empty() {
                return Err(bad("a value without a keyword"));
            }
            check_keyword(keyword)?;
            let quoted = rest.strip_prefix('\'');
            let mut value = String::new();
            let mut chars = quoted.unwrap_or(rest).char_indices();
            let source = quoted.unwrap_or(rest);
            rest = loop {
                match chars.next() {
                    None if quoted.is_some() => return Err(bad("a quoted value without its end")),
                    None => break "",
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                    Some((at, '\'')) if quoted.is_some() => break &source[at + 1..],
                    Some((at, c)) if quoted.is_none() && c.is_ascii_whitespace() => break &source[at..],
                    Some((_, c)) => value.push(c),
                }
            }
            .trim_start();
            conninfo.set(keyword, &value);
        }
        Ok(conninfo)
    }

    /// The value of a keyword.
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == keyword).map(|(_, value)| value.as_str())
    }

    /// Gives a keyword a value, in place of the one it has.
    pub fn set(&mut self, keyword: &str, value: &str) -> &mut Self {
        match self.pairs.iter_mut().find(|(key, _)| key == keyword) {
            Some((_, old)) => value.clone_into(old),
            None => self.pairs.push((keyword.to_owned(), value.to_owned())),
        }
        self
    }

    /// Takes a keyword out.
    pub fn remove(&mut self, keyword: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(key, _)| key == keyword)?;
        Some(self.pairs.remove(at).1)
    }

    /// Keywords and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The connection string, in the key=value form. With the password, if there is one: see
    /// [`Conninfo::shown`].
    pub fn to_conninfo(&self) -> String {
        self.joined(|_, value| conninfo_value_quote(value))
    }

    /// The connection string for people and logs: passwords masked.
    pub fn shown(&self) -> String {
        self.joined(|key, value| match key {
            "password" | "sslpassword" => "***".to_owned(),
            _ => conninfo_value_quote(value),
        })
    }

    fn joined(&self, value_of: impl Fn(&str, &str) -> String) -> String {
        let pairs: Vec<String> =
            self.iter().map(|(key, value)| format!("{key}={}", value_of(key, value))).collect();
        pairs.join(" ")
    }
}

impl std::fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conninfo({})", self.shown())
    }
}

/// `[user[:password]@][host][:port][/database][?key=value&…]`, each part percent-encoded.
fn parse_url(rest: &str) -> Result<Conninfo> {
    let bad = |why| Error::Conninfo { why };
    let decode = |text: &str| percent_decode(text).ok_or_else(|| bad("a wrong percent-encoding"));
    let mut conninfo = Conninfo::new();
    let mut set = |key: &str, text: &str| -> Result<()> {
        if !text.is_empty() {
            conninfo.set(key, &decode(text)?);
        }
        Ok(())
    };
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_part, host_part) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user_part.split_once(':').unwrap_or((user_part, ""));
    set("user", user)?;
    set("password", password)?;
    if host_part.contains(',') {
        return Err(bad("a URL with several hosts"));
    }
    let (host, port) = match host_part.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or_else(|| bad("\"[\" without \"]\""))?;
            (host, after.strip_prefix(':').unwrap_or(after))
        }
        None => host_part.split_once(':').unwrap_or((host_part, "")),
    };
    set("host", host)?;
    set("port", port)?;
    set("dbname", database)?;
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').ok_or_else(|| bad("a parameter without \"=\""))?;
        let key = decode(key)?;
        check_keyword(&key)?;
        set(&key, value)?;
    }
    Ok(conninfo)
}

/// A keyword is written without quotes, and would be two if it held a space. libpq knows none but such.
fn check_keyword(keyword: &str) -> Result<()> {
    match keyword.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !keyword.is_empty() {
        true => Ok(()),
        false => Err(Error::Conninfo { why: "a keyword that is none of libpq's" }),
    }
}

/// `None` for a `%` without two hexadecimal digits, for NUL, and for what is not UTF-8 afterwards.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(*rest.next()?).to_digit(16);
        let decoded = (digit()? * 16 + digit()?) as u8;
        if decoded == 0 {
            return None;
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes).ok()
}

/// A value of a connection string, in quotes unless it is harmless without.
pub fn conninfo_value_quote(value: &str) -> String {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-:/+,@%~*[]".contains(&b);
    if !value.is_empty() && value.bytes().all(harmless) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A value of a configuration file, always in quotes, by the rules of `guc-file.l`: a quote is
/// doubled, a backslash too, and line breaks are written as escapes, for a raw one would end the
/// value. NUL cannot be expressed there and is left out.
pub fn config_quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\0' => {}
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// The setting that a line of a configuration file makes: its name as written and its value. `None`
/// for comments, empty lines and what cannot be read.
pub(super) fn setting(line: &str) -> Option<(&str, String)> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || "_.$".contains(c) || !c.is_ascii()))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let Some(quoted) = rest.strip_prefix('\'') else {
        let end = rest.find(|c: char| c.is_ascii_whitespace() || c == '#').unwrap_or(rest.len());
        return Some((name, rest[..end].to_owned()));
    };
    Some((name, config_unquote(quoted)?))
}

/// What stands behind an opening quote, up to the closing one (`GUC_scanstr` in guc-file.l).
fn config_unquote(text: &str) -> Option<String> {
    let mut value = Vec::new();
    let mut bytes = text.bytes().peekable();
    loop {
        match bytes.next()? {
            b'\'' if bytes.peek() == Some(&b'\'') => value.extend(bytes.next()),
            b'\'' => break,
            b'\\' => match bytes.next()? {
                b'b' => value.push(8),
                b'f' => value.push(12),
                b'n' => value.push(b'\n'),
                b'r' => value.push(b'\r'),
                b't' => value.push(b'\t'),
                digit @ b'0'..=b'7' => {
                    let mut code = u32::from(digit - b'0');
                    for _ in 0..2 {
                        match bytes.peek() {
                            Some(next @ b'0'..=b'7') => code = code * 8 + u32::from(next - b'0'),
                            _ => break,
                        }
                        bytes.next();
                    }
                    value.push(code as u8);
                }
                other => value.push(other),
            },
            byte => value.push(byte),
        }
    }
    String::from_utf8(value).ok()
}

/// The value that `key` has at the end of a configuration file: its last line counts, as for the
/// server. Includes are not followed.
pub fn last_setting(text: &str, key: &str) -> Option<String> {
    let mut settings = text.lines().rev().filter_map(setting);
    settings.find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// `existing` without any line for the keys of `set`, followed by one line for each key that has a
/// value. Everything else, comments included, stays as it is.
pub fn auto_conf_with(existing: &str, set: &[(&str, Option<&str>)]) -> String {
    let names = |line: &str| {
        // A line whose value is broken makes the setting all the same, as far as the server got.
        let name = line.trim_start();
        let end =
            name.find(|c: char| !(c.is_ascii_alphanumeric() || "_.$".contains(c))).unwrap_or(name.len());
        name[..end].to_owned()
    };
    let mut text = String::new();
    for line in existing.split_inclusive('\n') {
        if !set.iter().any(|(key, _)| key.eq_ignore_ascii_case(&names(line))) {
            text.push_str(line);
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (key, value) in set {
        if let Some(value) = value {
            text.push_str(&format!("{key} = {}\n", config_quote(value)));
        }
    }
    text
}

/// What is taken out of a `postgresql.auto.conf` that came with a copy: settings that say how the
/// *source* was once made or what it follows.
///
/// `restore_command` and `archive_cleanup_command` go too: in this file they are left by the tool that
/// restored the source, may fetch WAL of another branch, and may remove what another standby needs.
/// Whoever wants them for every instance has them in `postgresql.conf`, which is not touched.
/// `recovery_min_apply_delay` goes, for the copy of a delayed standby is not meant to be late.
pub const RECOVERY_KEYS: &[&str] = &[
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_min_apply_delay",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "promote_trigger_file",
    // only in recovery.conf (up to 11); a server from 12 on does not start with them
    "pause_at_recovery_target",
    "standby_mode",
    "trigger_file",
];

/// What makes an instance a standby of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbySettings {
    /// How to reach the primary; without a password, which belongs into a password file.
    pub primary_conninfo: String,
    /// The slot on the primary (9.4 on).
    pub primary_slot_name: Option<String>,
}

impl StandbySettings {
    /// `postgresql.auto.conf` for 12 on, made from the one that is there.
    pub fn auto_conf(&self, existing: &str) -> String {
        let mut set: Vec<(&str, Option<&str>)> = RECOVERY_KEYS.iter().map(|key| (*key, None)).collect();
        for (key, value) in &mut set {
            *value = match *key {
                "primary_conninfo" => Some(self.primary_conninfo.as_str()),
                "primary_slot_name" => self.primary_slot_name.as_deref(),
                "recovery_target_timeline" => Some("latest"),
                _ => None,
            };
        }
        auto_conf_with(existing, &set)
    }

    /// `recovery.conf` for versions up to 11.
    pub fn recovery_conf(&self) -> String {
        let mut set =
            vec![("standby_mode", Some("on")), ("primary_conninfo", Some(self.primary_conninfo.as_str()))];
        if let Some(slot) = &self.primary_slot_name {
            set.push(("primary_slot_name", Some(slot)));
        }
        set.push(("recovery_target_timeline", Some("latest")));
        auto_conf_with("", &set)
    }
}

/// `existing` without the settings of a standby: for an instance that became independent (12 on).
pub fn independent_auto_conf(existing: &str) -> String {
    let set: Vec<(&str, Option<&str>)> = RECOVERY_KEYS.iter().map(|key| (*key, None)).collect();
    auto_conf_with(existing, &set)
}

/// What all our slots' names begin with.
pub const SLOT_PREFIX: &str = "pgmahout_";
const LONGEST_SLOT: usize = 63; // NAMEDATALEN - 1

/// The name of the slot of an instance: `db.1` of `shop` has `pgmahout_shop_db_1`. Slot names hold
/// only `a-z`, `0-9` and `_`; where replacing the rest could make two instances share a name, or
/// where it gets too long, eight digits of a hash follow.
pub fn slot_name(app: Option<&str>, instance: &str) -> String {
    let whole = app.map_or(instance.to_owned(), |app| format!("{app}_{instance}"));
    let clean = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let name: String = whole.chars().map(|c| clean(c.to_ascii_lowercase())).collect();
    if is_plain(app, instance) && SLOT_PREFIX.len() + name.len() <= LONGEST_SLOT {
        return format!("{SLOT_PREFIX}{name}");
    }
    // The app's length tells "a_b" + "c" from "a" + "b_c".
    let identity = format!("{} {whole}", app.map_or(0, |app| app.len() + 1));
    let hash: String = Sha256::digest(identity).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let room = LONGEST_SLOT - SLOT_PREFIX.len() - 1 - hash.len();
    format!("{SLOT_PREFIX}{}_{hash}", &name[..name.len().min(room)])
}

/// Whether the name says all by itself: app and service of `a-z0-9`, the service beginning with a
/// letter, and one dot in front of the instance's number.
fn is_plain(app: Option<&str>, instance: &str) -> bool {
    let simple =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let (service, number) = instance.split_once('.').unwrap_or((instance, "0"));
    app.is_none_or(simple)
        && simple(service)
        && service.starts_with(|c: char| c.is_ascii_lowercase())
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && (instance.contains('.') || app.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that try to get out of their quotes.
    const NASTY: [&str; 14] = [
        "",
        " ",
        "plain",
        "two words",
        "it's",
        "''",
        "\\",
        "\\'",
        "a\\",
        "'; restore_command = 'rm -rf /",
        "x\nrestore_command = 'rm'",
        "tab\there\r",
        "# no comment",
        "ü€=&?",
    ];

    #[test]
    fn connection_strings_are_read_as_libpq_reads_them() {
        let read = |text: &str| -> Vec<(String, String)> {
            Conninfo::parse(text).unwrap().iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let cases: [(&str, &[(&str, &str)]); 12] = [
            ("", &[]),
            ("  \n ", &[]),
            ("host=a port=5432", &[("host", "a"), ("port", "5432")]),
            (" host = a\n\tport =5432 ", &[("host", "a"), ("port", "5432")]),
            ("host=''", &[("host", "")]),
            ("host= port=1", &[("host", "port=1")]),
            ("a='it\\'s' b=c", &[("a", "it's"), ("b", "c")]),
            ("a='x'b=c", &[("a", "x"), ("b", "c")]),
            ("a=x\\ y b=\\'", &[("a", "x y"), ("b", "'")]),
            ("a='x y'", &[("a", "x y")]),
            ("a=b'c'd", &[("a", "b'c'd")]),
            ("a=1 a=2", &[("a", "2")]),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text), pairs(expected), "{text:?}");
        }
    }

    #[test]
    fn urls_are_connection_strings_too() {
        let url = Conninfo::parse(
            "postgresql://me:p%40ss@db.example:5433/shop?sslmode=require&application_name=a%20b",
        )
        .unwrap();
        assert_eq!(
            url.to_conninfo(),
            "user=me password=p@ss host=db.example port=5433 dbname=shop sslmode=require application_name='a b'"
        );
        assert_eq!(Conninfo::parse("postgres://[::1]:5433").unwrap().to_conninfo(), "host=::1 port=5433");
        assert_eq!(Conninfo::parse("postgres://").unwrap().to_conninfo(), "");
        assert_eq!(Conninfo::parse("postgres:///db?host=/tmp").unwrap().to_conninfo(), "dbname=db host=/tmp");
        for bad in [
            "postgres://a,b/x",
            "postgres://%zz@h",
            "postgres://[::1/x",
            "postgres://h/?x",
            "postgres://%00@h",
        ] {
            assert!(Conninfo::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_connection_string_is_refused_without_quoting_it() {
        for bad in ["hunter2", "password=hunter2 x", "password='hunter2", "=hunter2", "password='hunter2\\'"]
        {
            let error = Conninfo::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("the connection string has ") && !error.contains("hunter2"), "{error}");
        }
        let conninfo = Conninfo::parse("host=a password=hunter2").unwrap();
        assert_eq!(conninfo.shown(), "host=a password=***");
        assert!(!format!("{conninfo:?}").contains("hunter2"));
    }

    #[test]
    fn any_value_survives_a_connection_string_and_a_configuration_file() {
        for value in NASTY {
            let mut conninfo = Conninfo::new();
            conninfo.set("host", "a").set("application_name", value).set("port", "1");
            let text = conninfo.to_conninfo();
            assert_eq!(Conninfo::parse(&text).unwrap(), conninfo, "{text}");

            let file = auto_conf_with(
                "# head\nport = 5432\n",
                &[("primary_conninfo", Some(&text)), ("x", Some(value))],
            );
            assert_eq!(file.lines().count(), 4, "{file}");
            assert_eq!(last_setting(&file, "primary_conninfo").as_deref(), Some(text.as_str()));
            assert_eq!(last_setting(&file, "x").as_deref(), Some(value));
            assert_eq!(last_setting(&file, "restore_command"), None);
        }
        assert_eq!(config_quote("a\0b"), "'ab'");
        let mut conninfo = Conninfo::parse("a=1 b=2").unwrap();
        assert_eq!(conninfo.remove("a").as_deref(), Some("1"));
        assert_eq!((conninfo.remove("a"), conninfo.get("b")), (None, Some("2")));
    }

    #[test]
    fn the_last_line_of_a_setting_counts() {
        let file = "# port = 1\nPort = 2 # two\nport=3\n port '4'\nhost.x = 'a''b\\'c\\101\\n' # x\nbroken = 'no end\nempty =\n";
        assert_eq!(last_setting(file, "port").as_deref(), Some("4"));
        assert_eq!(last_setting("port 5#x", "PORT").as_deref(), Some("5"));
        assert_eq!(last_setting(file, "host.x").as_deref(), Some("a'b'cA\n"));
        assert_eq!(last_setting(file, "broken"), None);
        assert_eq!(last_setting(file, "empty").as_deref(), Some(""));
        assert_eq!(last_setting(file, "por"), None);
        assert_eq!(last_setting("port = 6\r\n", "port").as_deref(), Some("6"));
    }

    #[test]
    fn earlier_lines_of_a_setting_go_and_the_rest_stays() {
        let existing = "# Do not edit this file manually!\r\nwork_mem = '8MB'\n  PRIMARY_CONNINFO = 'host=old'\nprimary_conninfo_x = 'kept'\n#primary_conninfo = 'comment'\nprimary_slot_name='s'";
        let file =
            auto_conf_with(existing, &[("primary_conninfo", Some("host=new")), ("primary_slot_name", None)]);
        assert_eq!(
            file,
            "# Do not edit this file manually!\r\nwork_mem = '8MB'\nprimary_conninfo_x = 'kept'\n#primary_conninfo = 'comment'\nprimary_conninfo = 'host=new'\n"
        );
        assert_eq!(auto_conf_with("a = 1", &[("b", Some("2"))]), "a = 1\nb = '2'\n");
        assert_eq!(auto_conf_with("", &[("b", None)]), "");
    }

    #[test]
    fn a_standby_is_configured_by_version() {
        let settings = StandbySettings {
            primary_conninfo: "host=a application_name='it\\'s'".to_owned(),
            primary_slot_name: Some("pgmahout_db_1".to_owned()),
        };
        assert_eq!(
            settings.recovery_conf(),
            "standby_mode = 'on'\nprimary_conninfo = 'host=a application_name=''it\\\\''s'''\nprimary_slot_name = 'pgmahout_db_1'\nrecovery_target_timeline = 'latest'\n"
        );
        let copied = "work_mem = '8MB'\nrestore_command = 'cp'\nrecovery_target_xid = '5'\nprimary_slot_name = 'other'\nrecovery_target_timeline = '3'\n";
        assert_eq!(
            settings.auto_conf(copied),
            "work_mem = '8MB'\nprimary_conninfo = 'host=a application_name=''it\\\\''s'''\nprimary_slot_name = 'pgmahout_db_1'\nrecovery_target_timeline = 'latest'\n"
        );
        let without = StandbySettings { primary_slot_name: None, ..settings };
        assert!(!without.auto_conf(copied).contains("slot") && !without.recovery_conf().contains("slot"));
        assert_eq!(independent_auto_conf(copied), "work_mem = '8MB'\n");
    }

    #[test]
    fn slot_names_are_readable_where_they_can_be() {
        assert_eq!(slot_name(Some("shop"), "db.1"), "pgmahout_shop_db_1");
        assert_eq!(slot_name(None, "db.1"), "pgmahout_db_1");
        assert_eq!(slot_name(Some("shop"), "db"), "pgmahout_shop_db");
        assert!(slot_name(Some("my-shop"), "db.1").starts_with("pgmahout_my_shop_db_1_"));
    }

    #[test]
    fn slot_names_are_valid_and_different_whatever_the_names() {
        let long = "x".repeat(80);
        let longer = format!("{long}y");
        let names = [
            (Some("shop"), "db.1"),
            (Some("shop"), "db_1"),
            (Some("shop"), "db-1"),
            (Some("Shop"), "db.1"),
            (Some("shop"), "DB.1"),
            (Some("my-shop"), "db.1"),
            (Some("my_shop"), "db.1"),
            (Some("my"), "shop_db.1"),
            (None, "my_shop_db.1"),
            (None, "shop.db"),
            (None, "shop.db.1"),
            (None, "shop_db.1"),
            (None, "shop_db_1"),
            (Some(""), "db.1"),
            (None, "db.1"),
            (None, "db"),
            (None, "db_1"),
            (None, ""),
            (Some("a"), "1"),
            (None, "a.1"),
            (Some("ü"), "db.1"),
            (Some("ö"), "db.1"),
            (Some(&long), "db.1"),
            (Some(&longer), "db.1"),
            (Some(&long), "db.2"),
            (Some("a'; DROP"), "db.1"),
            (Some("db"), "x.1"),
        ];
        let mut seen = std::collections::HashMap::new();
        for (app, instance) in names {
            let name = slot_name(app, instance);
            assert!(name.len() <= 63 && name.starts_with(SLOT_PREFIX), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            assert_eq!(slot_name(app, instance), name);
            assert_eq!(seen.insert(name.clone(), (app, instance)), None, "{name}");
        }
    }

    #[test]
    fn a_keyword_cannot_become_two() {
        for text in
            ["postgres://h/d?a%20password=x", "postgres://h/d?=x", "a\u{1}b=1", "postgres://h/d?x%3Dy=1"]
        {
            assert!(matches!(Conninfo::parse(text), Err(Error::Conninfo { .. })), "{text:?}");
        }
        assert!(Conninfo::parse("postgres://h/d?application_name=x").is_ok());
    }
}
