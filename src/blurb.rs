//! Owns the blurb: what an instance tells another about itself, as `dotcloud info` printed it over the
//! years (YAML or JSON of the 0.4 command line, text of 0.9), and the instance's own environment.
//!
//! A blurb comes from another machine and may be anything. Its size is bounded, what is quoted from it
//! in an error is escaped and freed of passwords, and hosts and users that could pass for options are
//! refused.

use crate::error::{Error, Result};
use crate::postgres::ssl::SslParameters;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// Larger inputs are no blurbs.
const LONGEST: usize = 1 << 20;

/// A password. Neither `{}` nor `{:?}` show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where an instance's SSH server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshEndpoint {
    /// `None`: whoever runs the agent.
    pub user: Option<String>,
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 22 where the blurb has none.
    pub port: u16,
}

/// Where an instance's PostgreSQL is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlEndpoint {
    /// `None`: this instance's own.
    pub user: Option<String>,
    /// `None`: this instance's own.
    pub password: Option<Secret>,
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 5432 where a `pgsql:` URL has none.
    pub port: u16,
    /// `None`: not said.
    pub database: Option<String>,
    /// What its URL says of TLS.
    pub ssl: SslParameters,
}

/// What an instance tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blurb {
    /// `db.0`, where the blurb says it.
    pub name: Option<String>,
    /// Its SSH server.
    pub ssh: SshEndpoint,
    /// Its PostgreSQL.
    pub sql: SqlEndpoint,
}

impl Blurb {
    /// Reads what `dotcloud info` printed. `from` chooses one of several instances: `db.0`, `0` or
    /// `shop.db.0`.
    ///
    /// # Errors
    /// The `Blurb…` variants of [`Error`]; all end with exit code 2.
    pub fn parse(bytes: &[u8], from: Option<&str>) -> Result<Blurb> {
        let text = checked_text(bytes)?;
        let text = without_warnings(&text)?;
        let first = text.trim_start();
        if first.starts_with(['{', '[']) {
            let document = serde_json::from_str(first)
                .map_err(|error| Error::BlurbSyntax { format: "JSON", why: shown(&error.to_string()) })?;
            return from_document(document, text, from);
        }
        if text.lines().any(|line| line.starts_with("== ") || line.starts_with("=== ")) {
            return from_sections(text, from);
        }
        match serde_yaml::from_str(text) {
            Ok(document) => from_document(document, text, from),
            // A password can break the YAML; the lines that matter are plain enough without.
            Err(_) => from_document(scan_lines(text), text, from),
        }
    }

    /// Reads an instance's own environment (`environment.json`, `environment.yaml`, or `KEY=VALUE`
    /// lines) and looks another instance of the app up: by its number, if it is of the same service,
    /// or its name (`db.0`, `shop.db.0`).
    ///
    /// # Errors
    /// The `Blurb…` and `Environment…` variants of [`Error`]; all end with exit code 2.
    pub fn from_environment(bytes: &[u8], number_or_name: &str) -> Result<Blurb> {
        let text = checked_text(bytes)?;
        let variables = environment_variables(&text)?;
        let missing = |why| Error::EnvironmentInstance { wanted: shown(number_or_name), why };

        let (service, number) = match number_or_name.rsplit_once('.') {
            Some((service, number)) => (service.rsplit('.').next().unwrap_or(service), number),
            None => match variables.get("DOTCLOUD_SERVICE_NAME") {
                Some(service) => (service.as_str(), number_or_name),
                None => return Err(missing("does not say which service this is")),
            },
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(missing("is looked up by a number, as in 0 or db.0, and not by that"));
        }
        let key_part = |name: &str| -> String {
            name.chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
                .collect()
        };
        let prefix = format!("DOTCLOUD_{}_", key_part(service));
        let suffix = format!("_{number}");
        // A service that never had more than one instance may have no numbers in its keys.
        let numbered = variables.keys().any(|key| key.starts_with(&prefix) && ends_with_number(key));
        let get = |port: &str, what: &str| {
            let key = format!("{prefix}{}_{what}", key_part(port));
            let plain = || (!numbered && number == "0").then(|| variables.get(&key)).flatten();
            variables.get(&format!("{key}{suffix}")).or_else(plain)
        };

        let mut ports = Vec::new();
        for port in ["ssh", "pgsql", "sql", "postgresql"] {
            let url = match (get(port, "URL"), get(port, "HOST"), get(port, "PORT")) {
                (Some(url), _, _) => url.clone(),
                (None, Some(host), Some(number)) => {
                    let scheme = if port == "ssh" { "ssh" } else { "tcp" };
                    let bracketed = host.contains(':') && !host.starts_with('[');
                    let host = if bracketed { format!("[{host}]") } else { host.clone() };
                    format!("{scheme}://{host}:{number}")
                }
                _ => continue,
            };
            ports.push(Port { name: port.to_owned(), url });
        }
        if ports.is_empty() {
            let names = known_instances(&variables);
            return Err(if names.is_empty() {
                missing("holds no instance at all")
            } else {
                Error::BlurbNoSuchInstance { wanted: shown(number_or_name), names }
            });
        }
        let mut blurb = from_ports(Some(format!("{service}.{number}")), &ports, None)?;
        let credential =
            |what| ["pgsql", "sql", "postgresql"].iter().find_map(|port| get(port, what)).cloned();
        blurb.sql.user = blurb.sql.user.or(credential("LOGIN"));
        blurb.sql.password = blurb.sql.password.or(credential("PASSWORD").map(Secret));
        Ok(blurb)
    }
}

// ---- the text

/// Bounded, UTF-8, without a byte order mark, lines ending in LF alone, not empty.
fn checked_text(bytes: &[u8]) -> Result<String> {
    if bytes.len() > LONGEST {
        return Err(Error::BlurbTooLong { bytes: bytes.len(), limit: LONGEST });
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| Error::BlurbNotText { position: error.valid_up_to() })?;
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    if text.trim().is_empty() {
        return Err(Error::BlurbEmpty);
    }
    Ok(text)
}

/// What stands behind the warnings that command lines print first.
///
/// # Errors
/// [`Error::BlurbIsError`] when an error message is all there is.
fn without_warnings(text: &str) -> Result<&str> {
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let lower = line.trim().to_ascii_lowercase();
        let says = |word: &str| {
            lower.strip_prefix(word).is_some_and(|more| more.starts_with(':') || more.is_empty())
        };
        if says("error") || says("fatal") || lower.starts_with("traceback (most recent") {
            return Err(Error::BlurbIsError { line: shown(line) });
        }
        // "**" begins the lines of OpenSSH's warning about key exchanges.
        if !(lower.is_empty() || says("warning") || lower.starts_with("** ")) {
            return Ok(rest);
        }
        rest = after;
    }
    Err(Error::BlurbEmpty)
}

/// A piece of foreign text made fit for a terminal: passwords masked, everything that is not visible
/// escaped, cut to one line's length.
fn shown(text: &str) -> String {
    const LONGEST_SHOWN: usize = 120;
    let text = text.trim();
    let mut masked = text.to_owned();
    if let Some(scheme) = text.find("://") {
        let userinfo = scheme + 3;
        if let Some(at) = text.rfind('@').filter(|at| *at > userinfo)
            && let Some(colon) = text[userinfo..at].find(':')
        {
            masked.replace_range(userinfo + colon + 1..at, "***");
        } else if let Some(port) = port_at(text, userinfo)
            && (text.len() - port > 5 || !text[port..].chars().all(|c| c.is_ascii_digit()))
        {
            // What was cut off before its @ has a user where a host would be, and a password in place of the port.
            masked.replace_range(port.., "***");
        }
    } else if let Some(word) = text.to_ascii_lowercase().find("password")
        && let Some(end) = text[word..].find([':', '='])
    {
        masked.replace_range(word + end + 1.., " ***");
    }
    let mut escaped = String::new();
    for c in masked.chars() {
        if escaped.chars().count() >= LONGEST_SHOWN {
            escaped.push('…');
            break;
        }
        match c {
            ' '..='~' => escaped.push(c),
            c if c.is_alphanumeric() => escaped.push(c),
            c => escaped.extend(c.escape_default()),
        }
    }
    escaped
}

/// Where the port would begin in a URL whose host begins at `host`.
fn port_at(text: &str, host: usize) -> Option<usize> {
    let after_brackets = match text[host..].starts_with('[') {
        true => host + text[host..].find(']')?,
        false => host,
    };
    text[after_brackets..].find(':').map(|colon| after_brackets + colon + 1)
}

// ---- the forms a blurb comes in

/// A port: what it is called and where it is.
struct Port {
    name: String,
    url: String,
}

/// The 0.4 form, of which only this is read. Strings keep a YAML scalar exactly as written, so that a
/// password such as `007` or `1e5` is not taken for a number.
#[derive(Default, Deserialize)]
struct Document {
    ports: Option<Ports>,
    config: Option<Config>,
    instances: Option<BTreeMap<String, Option<ListedInstance>>>,
}

/// What later platforms say of each instance; the local one also its ports.
#[derive(Default, Deserialize)]
struct ListedInstance {
    #[serde(default)]
    ports: Option<Ports>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ports {
    List(Vec<ListedPort>),
    Map(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct ListedPort {
    name: Option<String>,
    url: Option<String>,
}

#[derive(Default, Deserialize)]
struct Config {
    postgresql_password: Option<String>,
}

fn from_document(document: Document, text: &str, from: Option<&str>) -> Result<Blurb> {
    // "shop.db.0" is db.0 of shop.
    let mut instances: Vec<(String, Option<Ports>)> = document
        .instances
        .unwrap_or_default()
        .into_iter()
        .map(|(name, instance)| (short_name(&name), instance.and_then(|instance| instance.ports)))
        .collect();
    let names: Vec<String> = instances.iter().map(|(name, _)| shown(name)).collect();
    if let (Some(from), false) = (from, instances.is_empty()) {
        instances.retain(|(name, _)| is_meant(name, from));
        if instances.is_empty() {
            return Err(Error::BlurbNoSuchInstance { wanted: shown(from), names });
        }
    }
    let sole = if instances.len() == 1 { instances.pop() } else { None };
    let (name, own_ports) = sole.map_or((None, None), |(name, ports)| (Some(name), ports));
    // Ports at the top are the service's, and win: an instance of its own has no others.
    let ports = match (document.ports.or(own_ports), instances.is_empty()) {
        (Some(ports), _) => ports,
        (None, true) => return Err(unknown(text)),
        (None, false) => return Err(Error::BlurbSeveral { names }),
    };
    let ports: Vec<Port> = match ports {
        Ports::Map(map) => map.into_iter().map(|(name, url)| Port { name, url }).collect(),
        Ports::List(list) => list
            .into_iter()
            .filter_map(|port| Some(Port { name: port.name.unwrap_or_default(), url: port.url? }))
            .collect(),
    };
    from_ports(name, &ports, document.config.and_then(|config| config.postgresql_password))
}

fn unknown(text: &str) -> Error {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Error::BlurbUnknown { line: shown(line) }
}

/// The `ports:` list and the password, line by line, for what looks like 0.4's YAML and is not.
fn scan_lines(text: &str) -> Document {
    let unquoted = |value: &str| {
        let value = value.trim();
        ['\'', '"']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
            .unwrap_or(value)
            .to_owned()
    };
    let mut ports: Vec<ListedPort> = Vec::new();
    let mut section = "";
    let mut config = Config::default();
    for line in text.lines() {
        if !line.starts_with([' ', '-', '\t']) {
            section = line.split(':').next().unwrap_or_default();
            continue;
        }
        let (item, body) = match line.trim_start().strip_prefix("- ") {
            Some(body) => (true, body.trim_start()),
            None => (false, line.trim_start()),
        };
        let Some((key, value)) = body.split_once(": ") else { continue };
        match (section, key) {
            ("ports", "name" | "url") => {
                if item || ports.is_empty() {
                    ports.push(ListedPort { name: None, url: None });
                }
                let port = ports.last_mut().expect("pushed above");
                let field = if key == "name" { &mut port.name } else { &mut port.url };
                *field = Some(unquoted(value));
            }
            ("config", "postgresql_password") => config.postgresql_password = Some(unquoted(value)),
            _ => {}
        }
    }
    Document {
        ports: (!ports.is_empty()).then_some(Ports::List(ports)),
        config: Some(config),
        instances: None,
    }
}

/// The 0.9 form: `== db` begins a service, `=== db.0` an instance, whose ports are indented lines
/// behind `ports:`.
fn from_sections(text: &str, from: Option<&str>) -> Result<Blurb> {
    let mut sections: Vec<(String, Vec<Port>)> = Vec::new();
    let (mut in_instance, mut in_ports) = (false, false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("=== ") {
            sections.push((short_name(name.trim()), Vec::new()));
            (in_instance, in_ports) = (true, false);
        } else if line.starts_with("== ") {
            in_instance = false;
        } else if !line.starts_with([' ', '\t']) {
            in_ports = line.trim_end() == "ports:";
        } else if in_instance
            && in_ports
            && let Some((name, url)) = line.split_once(':')
            && let Some((_, ports)) = sections.last_mut()
        {
            ports.push(Port { name: name.trim().to_owned(), url: url.trim().to_owned() });
        }
    }
    let names = || sections.iter().map(|(name, _)| shown(name)).collect::<Vec<_>>();
    if sections.is_empty() {
        return Err(unknown(text));
    }
    let chosen: Vec<&(String, Vec<Port>)> =
        sections.iter().filter(|(name, _)| from.is_none_or(|from| is_meant(name, from))).collect();
    match (chosen[..].first(), from) {
        (None, _) => {
            Err(Error::BlurbNoSuchInstance { wanted: shown(from.unwrap_or_default()), names: names() })
        }
        (Some(_), _) if chosen.len() > 1 => Err(Error::BlurbSeveral { names: names() }),
        (Some((name, ports)), _) => from_ports(Some(name.clone()), ports, None),
    }
}

/// `shop.db.0` is `db.0` of the app `shop`.
fn short_name(name: &str) -> String {
    let mut parts = name.rsplitn(3, '.');
    match (parts.next(), parts.next()) {
        (Some(number), Some(service)) => format!("{service}.{number}"),
        _ => name.to_owned(),
    }
}

/// Whether `from`, as typed, means the instance `name`.
fn is_meant(name: &str, from: &str) -> bool {
    name == from || name == short_name(from) || name.rsplit('.').next() == Some(from)
}

// ---- the environment

fn environment_variables(text: &str) -> Result<BTreeMap<String, String>> {
    let first = text.trim_start();
    let document: serde_json::Value = if first.starts_with('{') {
        serde_json::from_str(first)
            .map_err(|error| Error::BlurbSyntax { format: "JSON", why: shown(&error.to_string()) })?
    } else if let Some(variables) = key_value_lines(text) {
        return Ok(variables);
    } else {
        let map: BTreeMap<String, Option<String>> = serde_yaml::from_str(text)
            .map_err(|error| Error::BlurbSyntax { format: "YAML", why: shown(&error.to_string()) })?;
        return Ok(map.into_iter().filter_map(|(key, value)| Some((key, value?))).collect());
    };
    let map = document.as_object().cloned().unwrap_or_default();
    let text_of = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    Ok(map.into_iter().filter_map(|(key, value)| Some((key, text_of(value)?))).collect())
}

/// `KEY=VALUE` lines, with an optional `export` and quotes; `None` if any other line is found.
fn key_value_lines(text: &str) -> Option<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=')?;
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        let value = ['\'', '"']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
            .unwrap_or(value);
        variables.insert(key.to_owned(), value.to_owned());
    }
    Some(variables)
}

fn ends_with_number(key: &str) -> bool {
    key.rsplit_once('_').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|b| b.is_ascii_digit()))
}

/// `db.0`, `db.1`, … as far as they have an SSH port in the environment.
fn known_instances(variables: &BTreeMap<String, String>) -> Vec<String> {
    let instance = |key: &String| {
        let (service, number) = key.strip_prefix("DOTCLOUD_")?.split_once("_SSH_URL_")?;
        Some(shown(&format!("{}.{number}", service.to_ascii_lowercase())))
    };
    variables.keys().filter_map(instance).collect()
}

// ---- ports and URLs

/// What PostgreSQL's port is called, the best name first.
const SQL_NAMES: [&str; 3] = ["pgsql", "sql", "postgresql"];
const SQL_SCHEMES: [&str; 4] = ["tcp", "pgsql", "postgres", "postgresql"];

fn from_ports(name: Option<String>, ports: &[Port], password: Option<String>) -> Result<Blurb> {
    let candidates = |of: &dyn Fn(&&Port) -> bool| ports.iter().filter(of).collect::<Vec<_>>();
    let named = |wanted: &str| ports.iter().find(|port| port.name.eq_ignore_ascii_case(wanted));
    let seen = || ports.iter().map(|port| shown(&port.name)).collect::<Vec<_>>();
    let of = name.clone().map(|name| shown(&name));

    let ssh_like = candidates(&|port| scheme(&port.url) == "ssh");
    let ssh = match (named("ssh"), &ssh_like[..]) {
        (Some(port), _) => port,
        (None, [port]) => *port,
        _ => return Err(Error::BlurbNoPort { of, what: "SSH", names: seen() }),
    };
    let is_sql = |port: &&Port| SQL_SCHEMES.contains(&scheme(&port.url).as_str());
    let sql_like = candidates(&is_sql);
    let sql = match (SQL_NAMES.iter().find_map(|name| named(name).filter(is_sql)), &sql_like[..]) {
        (Some(port), _) => port,
        (None, [port]) => *port,
        (None, []) => {
            // One that has the name has a URL that is damaged, or another server's: it is shown, but no password.
            let named = |port: &Port| SQL_NAMES.iter().any(|name| port.name.eq_ignore_ascii_case(name));
            let text = |port: &Port| match port.url.rsplit_once('@') {
                _ if !named(port) => shown(&port.name),
                Some((_, behind)) => format!("{} (…@{})", shown(&port.name), shown(behind)),
                None => format!("{} ({})", shown(&port.name), shown(&port.url)),
            };
            return Err(Error::BlurbNoPort {
                of,
                what: "PostgreSQL",
                names: ports.iter().map(text).collect(),
            });
        }
        (None, several) => {
            let names = several.iter().map(|port| shown(&port.name)).collect();
            return Err(Error::BlurbPorts { names });
        }
    };
    let ssh_url = Url::parse(ssh)?;
    let sql_url = Url::parse(sql)?;
    // A pgsql: URL has a default port, a mere tcp: one cannot have.
    let sql_default = (scheme(&sql.url) != "tcp").then_some(5432);
    let sql_port = sql_url.port.or(sql_default).ok_or_else(|| bad_url(sql, "has no port number"))?;
    // The configuration shows the password as it is, the URL perhaps encoded, perhaps not.
    let sql_password = match (sql_url.password, password) {
        (Some((raw, _)), Some(known)) if raw == known => Some(known),
        (Some((_, decoded)), _) => Some(decoded),
        (None, known) => known,
    };
    Ok(Blurb {
        name,
        ssh: SshEndpoint { user: ssh_url.user, host: ssh_url.host, port: ssh_url.port.unwrap_or(22) },
        sql: SqlEndpoint {
            user: sql_url.user,
            password: sql_password.filter(|text| !text.is_empty()).map(Secret),
            host: sql_url.host,
            port: sql_port,
            database: sql_url.database,
            ssl: ssl_of(&sql_url.parameters).map_err(|why| bad_url(sql, why))?,
        },
    })
}

/// Where in a URL, behind its `://`, user and password end: their `@`. By the book the authority ends before the path;
/// only a password that was not encoded reaches beyond.
pub fn end_of_user(rest: &str) -> Option<usize> {
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest[..authority].rfind('@').or_else(|| rest.rfind('@'))
}

/// It begins with `postgres://` or `postgresql://`, in letters of whatever case.
pub fn is_database_url(text: &str) -> bool {
    ["postgres", "postgresql"].contains(&scheme(text).as_str())
}

fn scheme(url: &str) -> String {
    url.split_once("://").map_or(String::new(), |(scheme, _)| scheme.to_ascii_lowercase())
}

fn bad_url(port: &Port, why: impl Into<String>) -> Error {
    Error::BlurbUrl { port: shown(&port.name), url: shown(&port.url), why: why.into() }
}

/// Names and values behind a URL's `?`, decoded.
fn parameters(text: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = text.split('&').filter_map(|parameter| parameter.split_once('='));
    pairs.map(|(name, value)| (lenient_decode(name), lenient_decode(value)))
}

fn ssl_of(text: &str) -> std::result::Result<SslParameters, String> {
    let mut ssl = SslParameters::default();
    parameters(text).try_for_each(|(name, value)| ssl.take(&name, &value))?;
    Ok(ssl)
}

struct Url {
    user: Option<String>,
    /// As written, and percent-decoded.
    password: Option<(String, String)>,
    host: String,
    port: Option<u16>,
    database: Option<String>,
    /// As written, what is behind the `?`.
    parameters: String,
}

impl Url {
    /// `scheme://[user[:password]@]host[:port][/database]`. The password may hold any character, so
    /// the user part ends at the *last* `@`, and only behind it `/`, `?` and `#` mean something.
    fn parse(port: &Port) -> Result<Url> {
        let read = || {
            let (_, rest) = port.url.split_once("://").ok_or("is not a URL")?;
            match rest.rsplit_once('@') {
                Some((user_part, rest)) => Url::read(Some(user_part), rest),
                None => Url::read(None, rest),
            }
        };
        read().map_err(|why| bad_url(port, why))
    }

    /// Both sides of the `@`.
    fn read(user_part: Option<&str>, rest: &str) -> std::result::Result<Url, &'static str> {
        let (address, path) = match rest.find(['/', '?', '#']) {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, ""),
        };
        let (host, number) = match address.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or("has \"[\" without \"]\"")?;
                if !is_ipv6(host) {
                    return Err("has no IPv6 address in its brackets");
                }
                let number = if after.is_empty() { None } else { after.strip_prefix(':') };
                if number.is_none() && !after.is_empty() {
                    return Err("has something else than a port behind \"]\"");
                }
                (host.replace("%25", "%"), number)
            }
            None => match address.split_once(':') {
                Some((_, number)) if number.contains(':') => {
                    return Err("has an IPv6 address without brackets");
                }
                Some((host, number)) => (host.to_owned(), Some(number)),
                None => (address.to_owned(), None),
            },
        };
        if !address.starts_with('[') && !is_host_name(&host) {
            return Err("has no usable host name");
        }
        let number = match number {
            None => None,
            Some(text) => Some(
                text.parse::<u16>()
                    .ok()
                    .filter(|n| *n > 0 && text.bytes().all(|b| b.is_ascii_digit()))
                    .ok_or("has a port that is not between 1 and 65535")?,
            ),
        };
        let (user, password) = match user_part.map(|part| part.split_once(':').unwrap_or((part, ""))) {
            Some((user, password)) => (lenient_decode(user), password),
            None => (String::new(), ""),
        };
        if user.starts_with('-') || user.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("has no usable user name");
        }
        let decoded = lenient_decode(password);
        if decoded.contains(['\0', '\n', '\r']) {
            return Err("has a line break or NUL in its password");
        }
        let database = path.strip_prefix('/').unwrap_or("").split(['?', '#']).next().unwrap_or_default();
        let database = lenient_decode(database.trim_end_matches('/'));
        if database.chars().any(char::is_control) {
            return Err("has no usable database name");
        }
        let parameters = path.split('#').next().and_then(|path| path.split_once('?')).map_or("", |(_, p)| p);
        Ok(Url {
            user: (!user.is_empty()).then_some(user),
            password: (!password.is_empty()).then(|| (password.to_owned(), decoded)),
            host,
            port: number,
            database: (!database.is_empty()).then_some(database),
            parameters: parameters.to_owned(),
        })
    }
}

/// A database's URL, `postgres://user:password@host:port/database?parameters`, as libpq reads it; but a password may
/// hold any character where that is not mistaken for something else.
#[derive(Clone, Debug)]
pub struct DatabaseUrl {
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Option<Secret>,
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 5432 where it has none.
    pub port: u16,
    /// Database; that of the user's name where it has none.
    pub database: String,
    /// What it says of TLS.
    pub ssl: SslParameters,
}

/// What libpq would take from behind the `?` in place of what stands before it.
const LEADING_ELSEWHERE: &[&str] =
    &["dbname", "host", "hostaddr", "options", "passfile", "password", "port", "service", "user"];

impl DatabaseUrl {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence that begins with it. The URL itself is not quoted.
    pub fn parse(text: &str) -> std::result::Result<DatabaseUrl, String> {
        if !is_database_url(text) {
            return Err("does not begin with postgres://".into());
        }
        let (_, rest) = text.split_once("://").unwrap_or_default();
        if rest.chars().any(char::is_control) {
            return Err("has a control character".into());
        }
        let at = end_of_user(rest);
        let url = match at {
            Some(at) => Url::read(Some(&rest[..at]), &rest[at + 1..])?,
            None => Url::read(None, rest)?,
        };
        if parameters(&url.parameters).any(|(name, _)| LEADING_ELSEWHERE.contains(&name.as_str())) {
            return Err("says behind the \"?\" where it leads to or as whom".into());
        }
        let ssl = ssl_of(&url.parameters)?;
        let user = url.user.ok_or("has no user")?;
        Ok(DatabaseUrl {
            password: url.password.map(|(_, decoded)| Secret(decoded)),
            host: url.host,
            port: url.port.unwrap_or(5432),
            database: url.database.unwrap_or_else(|| user.clone()),
            user,
            ssl,
        })
    }
}

/// A name or an IPv4 address, and nothing that a program could take for an option.
fn is_host_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && !host.starts_with(['-', '.'])
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// An IPv6 address, with an optional zone (`%eth0`, in URLs `%25eth0`).
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').unwrap_or((host, "x"));
    let zone = zone.strip_prefix("25").unwrap_or(zone);
    address.parse::<std::net::Ipv6Addr>().is_ok()
        && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// Decodes `%41`; what is no such code stays, for passwords were not always encoded. All or nothing: if
/// the result is not UTF-8, the text stays as it was.
fn lenient_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::postgres::ssl::SslMode;

    macro_rules! sample {
        ($name:literal) => {
            include_bytes!(concat!("../tests/fixtures/blurbs/", $name)).as_slice()
        };
    }

    fn parse(text: &str) -> Blurb {
        Blurb::parse(text.as_bytes(), None).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The error's text; its exit code must be that of wrong usage.
    fn refusal(result: Result<Blurb>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        error.to_string()
    }

    fn refused(text: &str) -> String {
        refusal(Blurb::parse(text.as_bytes(), None))
    }

    /// `user@host:port user:password@host:port/database`, dashes for what is not said.
    fn brief(blurb: &Blurb) -> String {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        format!(
            "{} {}@{}:{} {}:{}@{}:{}/{}",
            or_dash(blurb.name.as_deref()),
            or_dash(blurb.ssh.user.as_deref()),
            blurb.ssh.host,
            blurb.ssh.port,
            or_dash(blurb.sql.user.as_deref()),
            or_dash(blurb.sql.password.as_ref().map(Secret::expose)),
            blurb.sql.host,
            blurb.sql.port,
            or_dash(blurb.sql.database.as_deref()),
        )
    }

    /// A 0.4 blurb with these ports.
    fn with_ports(ports: &[(&str, &str)]) -> String {
        let list: String =
            ports.iter().map(|(name, url)| format!("-   name: {name}\n    url: {url}\n")).collect();
        format!("ports:\n{list}type: custom\n")
    }

    fn with_sql(url: &str) -> String {
        with_ports(&[("ssh", "ssh://dotcloud@shop.test:22481"), ("pgsql", url)])
    }

    #[test]
    fn every_sample_is_understood() {
        let cases = [
            (
                sample!("04-data-service.txt"),
                None,
                "- postgres@203.0.113.10:7962 root:Rz7kQ1mWtb@203.0.113.10:7963/-",
            ),
            (
                sample!("04-custom-many-ports.txt"),
                None,
                "- dotcloud@shop-example.test:12345 -:-@shop-example.test:34567/-",
            ),
            (
                sample!("04-instances.txt"),
                None,
                "db.0 postgres@shop-example.test:20270 root:hunter2@shop-example.test:20269/-",
            ),
            (
                sample!("09-one-instance.txt"),
                None,
                "db.0 dotcloud@shop-example.test:22481 -:-@shop-example.test:22482/-",
            ),
            (
                sample!("09-one-instance.txt"),
                Some("db.0"),
                "db.0 dotcloud@shop-example.test:22481 -:-@shop-example.test:22482/-",
            ),
            (
                sample!("09-service-two-instances.txt"),
                Some("db.0"),
                "db.0 dotcloud@shop-example.test:22481 -:-@shop-example.test:22482/-",
            ),
            (
                sample!("09-service-two-instances.txt"),
                Some("db.1"),
                "db.1 dotcloud@shop-example.test:31011 -:-@shop-example.test:31012/-",
            ),
            (
                sample!("09-service-two-instances.txt"),
                Some("1"),
                "db.1 dotcloud@shop-example.test:31011 -:-@shop-example.test:31012/-",
            ),
            (
                sample!("09-service-two-instances.txt"),
                Some("shop.db.1"),
                "db.1 dotcloud@shop-example.test:31011 -:-@shop-example.test:31012/-",
            ),
        ];
        for (bytes, from, expected) in cases {
            let blurb = Blurb::parse(bytes, from).unwrap();
            assert_eq!(brief(&blurb), expected);
            // the same through a pipe that ends lines in CRLF, behind warnings and a byte order mark
            let text = std::str::from_utf8(bytes).unwrap();
            let warned =
                format!("\u{feff}Warning: your CLI is old\nWARNING: really\n\n{text}").replace('\n', "\r\n");
            assert_eq!(Blurb::parse(warned.as_bytes(), from).unwrap(), blurb);
        }
    }

    #[test]
    fn two_instances_need_a_choice() {
        let two = sample!("09-service-two-instances.txt");
        let error = Blurb::parse(two, None).unwrap_err();
        assert_eq!(error.to_string(), "the blurb tells of several instances: db.0, db.1");
        assert_eq!(error.hint().unwrap(), "choose one with --from, or ask for one: dotcloud info db.0");
        assert_eq!(refusal(Blurb::parse(two, Some("db.7"))), "there is no instance db.7, only db.0, db.1");
        assert_eq!(
            refusal(Blurb::parse(sample!("04-instances.txt"), Some("db.1"))),
            "there is no instance db.1, only db.0"
        );
    }

    /// A name or a number that was cut off is another one, and with the port of PostgreSQL gone the only other port is taken
    /// for it: the preflight finds out that there is not one server behind SSH and SQL. All else is refused.
    #[test]
    fn a_blurb_that_was_cut_off_leads_nowhere_else() {
        for (bytes, from) in [
            (sample!("04-custom-many-ports.txt"), None),
            (sample!("04-data-service.txt"), None),
            (sample!("09-one-instance.txt"), None),
            (sample!("09-service-two-instances.txt"), Some("db.1")),
        ] {
            let whole = Blurb::parse(bytes, from).unwrap();
            let is_cut = |cut: u16, whole: u16| whole.to_string().starts_with(&cut.to_string());
            let mut refused = 0;
            for length in 0..bytes.len() {
                match Blurb::parse(&bytes[..length], from) {
                    Err(error) => {
                        let text = error.to_string();
                        let named =
                            ["blurb", "instance", "the URL of port"].iter().any(|what| text.contains(what));
                        assert!(named, "{length}: {text}");
                        refused += 1;
                    }
                    Ok(cut) => {
                        assert!(whole.ssh.host.starts_with(&cut.ssh.host), "{length}: {cut:?}");
                        // Without any digit left it is the default.
                        assert!(
                            is_cut(cut.ssh.port, whole.ssh.port) || cut.ssh.port == 22,
                            "{length}: {cut:?}"
                        );
                    }
                }
            }
            assert!(refused > 0);
            for bytes in crate::checked::damaged(bytes) {
                // Never a panic, and no control character in what is said.
                if let Err(error) = Blurb::parse(&bytes, from) {
                    assert!(!error.to_string().contains(|c: char| c.is_control()), "{error:?}");
                }
            }
        }
    }

    #[test]
    fn an_error_of_the_command_line_is_quoted() {
        let expected = "the blurb is an error message: Error: Not Found: no such service or instance: db.7";
        assert_eq!(refusal(Blurb::parse(sample!("bad-cli-error.txt"), None)), expected);
        assert_eq!(refused("Warning: old\r\nerror: no\r\n"), "the blurb is an error message: error: no");
        assert!(refused("Traceback (most recent call last):\n  File x\n").contains("Traceback"));
    }

    #[test]
    fn nothing_is_not_a_blurb() {
        for text in ["", " \r\n\t\n", "\u{feff}", "Warning: only this\n"] {
            let error = Blurb::parse(text.as_bytes(), None).unwrap_err();
            assert_eq!(error.to_string(), "the blurb is empty", "{text:?}");
            assert!(
                error.hint().unwrap().contains("dotcloud info db.0 | dotcloud run db.1 pgmahout enslave")
            );
        }
        assert_eq!(refusal(Blurb::parse(b"ports: \xff", None)), "the blurb is not UTF-8 text (byte 7)");
        let long = vec![b' '; LONGEST + 1];
        assert_eq!(refusal(Blurb::parse(&long, None)), "1048577 bytes are no blurb (the limit is 1048576)");
    }

    #[test]
    fn what_is_no_blurb_is_quoted_without_its_dangers() {
        assert_eq!(refused("hello world\n"), "the blurb has no ports; it begins with: hello world");
        assert_eq!(refused("type: custom\n"), "the blurb has no ports; it begins with: type: custom");
        assert_eq!(
            refused("\x1b[2Jcleared\x07\u{202e}\n"),
            "the blurb has no ports; it begins with: \\u{1b}[2Jcleared\\u{7}\\u{202e}"
        );
        assert_eq!(
            refused("my password: hunter2\n"),
            "the blurb has no ports; it begins with: my password: ***"
        );
        assert!(refused(&"x".repeat(5000)).len() < 250);
        assert!(refused("{\"ports\": [}").starts_with("this is not valid JSON: "));
        assert!(refused("{\"a\": 1}").starts_with("the blurb has no ports"));
        assert!(refused("== db\ntype: custom\n").starts_with("the blurb has no ports"));
        assert_eq!(refused("=== db.0\nports: N/A\n"), "the blurb of db.0 has no port for SSH");
        // a YAML that would grow to gigabytes
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, before) in ('b'..='i').zip('a'..='h') {
            bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(",")));
        }
        assert!(refused(&bomb).contains("has no ports"));
        assert!(refused(&"[".repeat(10_000)).contains("not valid JSON"));
        assert!(refused(&format!("a: {}", "[".repeat(10_000))).contains("has no ports"));
    }

    #[test]
    fn json_has_the_same_ports() {
        let json = r#"{"config": {"postgresql_password": "hunter2"}, "created_at": 1324741102.91, "instances": {"shop.db.0": {"role": "master"}},
            "ports": [{"name": "ssh", "url": "ssh:\/\/postgres@shop.test:20270"}, {"name": "pgsql", "url": "pgsql://root:hunter2@shop.test:20269"}]}"#;
        assert_eq!(brief(&parse(json)), "db.0 postgres@shop.test:20270 root:hunter2@shop.test:20269/-");
        let map = r#"{"ports": {"ssh": "ssh://a@h:1", "pgsql": "tcp://h:2"}}"#;
        assert_eq!(brief(&parse(map)), "- a@h:1 -:-@h:2/-");
        assert_eq!(brief(&parse("ports: {ssh: 'ssh://a@h:1', pgsql: 'tcp://h:2'}\n")), "- a@h:1 -:-@h:2/-");
    }

    #[test]
    fn the_port_of_postgresql_is_chosen_by_name_first() {
        let ssh = ("ssh", "ssh://a@h:1");
        let chosen = |ports: &[(&str, &str)]| parse(&with_ports(ports)).sql.port;
        assert_eq!(
            chosen(&[("postgresql", "tcp://h:4"), ("sql", "tcp://h:3"), ("pgsql", "tcp://h:2"), ssh]),
            2
        );
        assert_eq!(chosen(&[("postgresql", "tcp://h:4"), ("sql", "tcp://h:3"), ssh]), 3);
        assert_eq!(chosen(&[("postgresql", "tcp://h:4"), ("other", "tcp://h:3"), ssh]), 4);
        assert_eq!(chosen(&[("db", "tcp://h:5"), ("web", "http://h/"), ssh]), 5);
        assert_eq!(chosen(&[("db", "pgsql://h"), ssh]), 5432);
        // The recipe's port of downloads stands beside it, whatever PostgreSQL's is called.
        assert_eq!(chosen(&[ssh, ("backups", "http://h:6/"), ("pgsql", "tcp://h:2")]), 2);
        assert_eq!(chosen(&[ssh, ("backups", "http://h:6/"), ("db", "tcp://h:5")]), 5);
        let several = with_ports(&[("one", "tcp://h:3"), ("two", "tcp://h:4"), ssh]);
        let error = Blurb::parse(several.as_bytes(), None).unwrap_err();
        assert_eq!(error.to_string(), "several ports could be PostgreSQL's: one, two");
        assert_eq!(error.hint().unwrap(), "name one of them pgsql in dotcloud.yml, or in the blurb");
        assert_eq!(
            refused(&with_ports(&[ssh, ("www", "http://h/")])),
            "the blurb has no port for PostgreSQL, only ssh, www"
        );
        assert_eq!(
            refused(&with_ports(&[ssh, ("sql", "mysql://r:x@h:3306")])),
            "the blurb has no port for PostgreSQL, only ssh, sql (…@h:3306)"
        );
        assert_eq!(
            refused(&with_ports(&[ssh, ("pgsql", "tcp//h:2")])),
            "the blurb has no port for PostgreSQL, only ssh, pgsql (tcp//h:2)"
        );
        assert_eq!(
            refused(&with_ports(&[("pgsql", "tcp://h:2")])),
            "the blurb has no port for SSH, only pgsql"
        );
        let odd = with_ports(&[("shell", "ssh://a@h:9"), ("pgsql", "tcp://h:2")]);
        assert_eq!(parse(&odd).ssh.port, 9);
    }

    #[test]
    fn a_password_may_hold_any_character() {
        let cases = [
            ("pgsql://root:_|KZ&CKWa[@h:1", "root:_|KZ&CKWa[@h:1/-"),
            ("pgsql://root:p@ss@w@h:1", "root:p@ss@w@h:1/-"),
            ("pgsql://root:a:b:c@h:1", "root:a:b:c@h:1/-"),
            ("pgsql://root:a/b?c#d@h:1", "root:a/b?c#d@h:1/-"),
            ("pgsql://root:%70%40%3A%2f@h:1", "root:p@:/@h:1/-"),
            ("pgsql://root:100%@h:1", "root:100%@h:1/-"),
            ("pgsql://root:%zz%4@h:1", "root:%zz%4@h:1/-"),
            ("pgsql://root:%ff@h:1", "root:%ff@h:1/-"),
            ("pgsql://root:]@[::1]:1", "root:]@::1:1/-"),
            ("pgsql://root:@h:1", "root:-@h:1/-"),
            ("pgsql://root@h:1/shop", "root:-@h:1/shop"),
            ("pgsql://a%20b@h:1", "refused"),
            ("postgres://root:x@h/a%20b?sslmode=require", "root:x@h:5432/a b"),
        ];
        for (url, expected) in cases {
            // in YAML, in JSON and in the text of 0.9
            let json = serde_json::json!({"ports": [{"name": "ssh", "url": "ssh://h"}, {"name": "pgsql", "url": url}]});
            let text = format!("=== db.0\nports:\n  ssh: ssh://h\n  pgsql: {url}\n");
            for blurb in [with_sql(url), json.to_string(), text] {
                match Blurb::parse(blurb.as_bytes(), None) {
                    Ok(blurb) => {
                        assert!(brief(&blurb).ends_with(&format!(" {expected}")), "{url}: {}", brief(&blurb))
                    }
                    Err(error) => assert_eq!(expected, "refused", "{url}: {error}"),
                }
            }
        }
    }

    #[test]
    fn a_password_that_breaks_the_yaml_does_not_break_the_blurb() {
        for password in ["[abc", "*x", "@home", "`", "%x", "{", "a: b", "'", "&"] {
            let text = format!(
                "config:\n    postgresql_password: {password}\nports:\n-   name: ssh\n    url: ssh://p@h:1\n-   name: sql\n    url: pgsql://root@h:2\nstate: running\n"
            );
            let blurb = parse(&text);
            let brief = brief(&blurb);
            assert!(brief.starts_with("- p@h:1 root:") && brief.ends_with("@h:2/-"), "{password}: {brief}");
            if !password.starts_with(['&', '\'']) {
                assert_eq!(blurb.sql.password.as_ref().map(Secret::expose), Some(password));
            }
        }
    }

    #[test]
    fn the_password_of_the_configuration_stands_in_and_is_never_a_number() {
        let text = |config: &str, url: &str| {
            format!("config:\n    postgresql_password: {config}\n{}", with_sql(url))
        };
        let password = |text: &str| parse(text).sql.password.map(|secret| secret.expose().to_owned());
        for digits in ["007", "1e5", "0x1F", "12.50", "yes", "12345678901234567890123"] {
            assert_eq!(password(&text(digits, "pgsql://root@h:1")).as_deref(), Some(digits));
        }
        // the URL's own counts, unless the configuration shows that it was not encoded
        assert_eq!(password(&text("other", "pgsql://root:a%41@h:1")).as_deref(), Some("aA"));
        assert_eq!(password(&text("a%41", "pgsql://root:a%41@h:1")).as_deref(), Some("a%41"));
        assert_eq!(password(&with_sql("tcp://h:1")), None);
    }

    #[test]
    fn ipv6_hosts_stand_in_brackets() {
        let blurb = parse(&with_ports(&[("ssh", "ssh://a@[2001:db8::7]:22"), ("pgsql", "tcp://[::1]:5432")]));
        assert_eq!((blurb.ssh.host.as_str(), blurb.sql.host.as_str()), ("2001:db8::7", "::1"));
        assert_eq!(
            parse(&with_ports(&[("ssh", "ssh://[fe80::1%25eth0]"), ("pgsql", "tcp://h:1")])).ssh.host,
            "fe80::1%eth0"
        );
        for (url, why) in [
            ("tcp://::1:5432", "has an IPv6 address without brackets"),
            ("tcp://[::1:5432", "has \"[\" without \"]\""),
            ("tcp://[h]:5432", "has no IPv6 address in its brackets"),
            ("tcp://[::1]5432", "has something else than a port behind \"]\""),
            ("tcp://[::1]", "has no port number"),
            ("tcp://[::1%-o]:1x", "has a port that is not between 1 and 65535"),
        ] {
            assert!(refused(&with_sql(url)).starts_with(&format!("the URL of port pgsql {why}: ")), "{url}");
        }
    }

    #[test]
    fn urls_that_cannot_be_used_say_why_and_hide_the_password() {
        for (url, why) in [
            ("tcp://h", "has no port number"),
            ("tcp://h:", "has a port that is not between 1 and 65535"),
            ("tcp://h:0", "has a port that is not between 1 and 65535"),
            ("tcp://h:65536", "has a port that is not between 1 and 65535"),
            ("tcp://h:+1", "has a port that is not between 1 and 65535"),
            ("tcp://:5432", "has no usable host name"),
            ("pgsql://me:hunter2", "has a port that is not between 1 and 65535"),
            ("pgsql://me:hunter2/x", "has a port that is not between 1 and 65535"),
            ("pgsql://[::1]:hunter2", "has a port that is not between 1 and 65535"),
            ("pgsql://me:5:hunter2", "has an IPv6 address without brackets"),
            ("tcp://-oProxyCommand=x:1", "has no usable host name"),
            ("tcp://h;rm:1", "has no usable host name"),
            ("tcp://root:hunter2@-h:1", "has no usable host name"),
            ("tcp://-u:hunter2@h:1", "has no usable user name"),
            ("tcp://a%0ab:hunter2@h:1", "has no usable user name"),
            ("tcp://a:hunter2%00@h:1", "has a line break or NUL in its password"),
            ("tcp://a:hunter2%0A@h:1", "has a line break or NUL in its password"),
            ("tcp://a:hunter2@h:1/%1b", "has no usable database name"),
        ] {
            let text = refused(&with_sql(url));
            assert!(text.starts_with(&format!("the URL of port pgsql {why}: ")), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        let ssh = refused(&with_ports(&[("ssh", "ssh://-oProxyCommand=touch@h:1"), ("pgsql", "tcp://h:1")]));
        assert!(ssh.contains("has no usable user name"), "{ssh}");
        assert!(
            refused(&with_ports(&[("ssh", "shop.test:22"), ("pgsql", "tcp://h:1")])).contains("is not a URL")
        );
    }

    #[test]
    fn a_databases_url_is_read_as_libpq_does() {
        let read = |text: &str| {
            let url = DatabaseUrl::parse(text).unwrap();
            let password = url.password.map(|password| password.0).unwrap_or_default();
            format!("{} {password} {} {} {}", url.user, url.host, url.port, url.database)
        };
        for (text, wanted) in [
            ("postgres://me:p%40ss%2F@db.example:5433/shop", "me p@ss/ db.example 5433 shop"),
            ("postgresql://me@10.0.0.1", "me  10.0.0.1 5432 me"),
            ("postgres://me:x@[::1]:6000/a%20b?sslmode=require&application_name=a@b", "me x ::1 6000 a b"),
            ("postgres://me:p/w?#@h/d?pool=5", "me p/w?# h 5432 d"),
            ("POSTGRES://me:a@b@h/d", "me a@b h 5432 d"),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
        for (text, why) in [
            ("", "does not begin with postgres://"),
            ("mysql://me:secret@h/d", "does not begin with postgres://"),
            ("postgres://h/d", "has no user"),
            ("postgres://me:secret@/d", "has no usable host name"),
            ("postgres://me:secret@h:0/d", "has a port that is not between 1 and 65535"),
            ("postgres://me:secret@h1,h2/d", "has no usable host name"),
            ("postgres://me:secret@h/d?sslmode=yes", "has an sslmode that libpq does not know"),
            (
                "postgres://me:secret@h/d?sslpassword=x",
                "asks for sslpassword, which pgmahout does not follow in this way",
            ),
            ("postgres://me:secret@h/d?ho%73t=other", "says behind the \"?\" where it leads to or as whom"),
            ("postgres://me:secret@h/d?host=other", "says behind the \"?\" where it leads to or as whom"),
            ("postgres://me:secret@h/d\u{7}", "has a control character"),
        ] {
            assert_eq!(DatabaseUrl::parse(text).unwrap_err(), why, "{text}");
        }
        for (parameters, mode, root) in [
            ("", None, None),
            ("?sslmode=prefer", Some(SslMode::Prefer), None),
            ("?pool=5&sslmode=require#x", Some(SslMode::Require), None),
            (
                "?sslrootcert=/a%20b/%40.crt&sslmode=verify-full",
                Some(SslMode::VerifyFull),
                Some("/a b/@.crt"),
            ),
        ] {
            let ssl = DatabaseUrl::parse(&format!("postgres://me@h/d{parameters}")).unwrap().ssl;
            assert_eq!((ssl.sslmode, ssl.sslrootcert.as_deref()), (mode, root), "{parameters}");
            let blurb = parse(&with_sql(&format!("tcp://h:1{parameters}")));
            assert_eq!(blurb.sql.ssl, ssl, "{parameters}");
        }
        assert_eq!(
            refused(&with_sql("tcp://u:hunter2@h:1?sslcrldir=/x")),
            "the URL of port pgsql asks for sslcrldir, which pgmahout does not follow in this way: \
             tcp://u:***@h:1?sslcrldir=/x"
        );
        let shown = format!("{:?}", DatabaseUrl::parse("postgres://me:secret@h/d").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn ssh_has_defaults() {
        let blurb = parse(&with_ports(&[("ssh", "ssh://shop.test"), ("pgsql", "tcp://h:1")]));
        assert_eq!(blurb.ssh, SshEndpoint { user: None, host: "shop.test".to_owned(), port: 22 });
        assert_eq!(parse(&with_ports(&[("ssh", "ssh://@h:7/"), ("pgsql", "tcp://h:1")])).ssh.port, 7);
    }

    #[test]
    fn a_password_is_never_shown() {
        let blurb = parse(&with_sql("pgsql://root:hunter2@h:1"));
        assert!(!format!("{blurb:?}").contains("hunter2"));
        assert_eq!(format!("{}", Secret::new("hunter2")), "***");
    }

    /// The three forms of an environment.
    fn environments() -> [Vec<u8>; 3] {
        let json = sample!("environment.json").to_vec();
        let map: BTreeMap<String, String> = serde_json::from_slice(&json).unwrap();
        let yaml = serde_yaml::to_string(&map).unwrap().into_bytes();
        let lines = map.iter().map(|(key, value)| format!("export {key}='{value}'\r\n")).collect::<String>();
        [json, yaml, lines.into_bytes()]
    }

    #[test]
    fn an_instance_is_looked_up_in_the_environment() {
        for environment in environments() {
            for (wanted, expected) in [
                ("0", "db.0 dotcloud@shop-example.test:22481 -:-@shop-example.test:22482/-"),
                ("db.0", "db.0 dotcloud@shop-example.test:22481 -:-@shop-example.test:22482/-"),
                ("1", "db.1 dotcloud@shop-example.test:31011 -:-@shop-example.test:31012/-"),
                ("shop.db.1", "db.1 dotcloud@shop-example.test:31011 -:-@shop-example.test:31012/-"),
            ] {
                assert_eq!(brief(&Blurb::from_environment(&environment, wanted).unwrap()), expected);
            }
            for wanted in ["2", "web.0"] {
                let text = refusal(Blurb::from_environment(&environment, wanted));
                assert_eq!(text, format!("there is no instance {wanted}, only db.0, db.1"));
            }
            for wanted in ["db", "", "db.", "x\x1b", "-1"] {
                let text = refusal(Blurb::from_environment(&environment, wanted));
                assert!(text.contains("is looked up by a number"), "{text}");
            }
        }
    }

    #[test]
    fn several_instances_with_ports_of_their_own_want_a_choice() {
        let text = "type: custom\ninstances:\n    shop.db.0:\n        state: running\n        ports:\n        \
                    -   name: ssh\n            url: ssh://u@h:1\n        -   name: pgsql\n            \
                    url: tcp://h:2\n    shop.db.1:\n        ports:\n        -   name: ssh\n            \
                    url: ssh://u@h:3\n        -   name: pgsql\n            url: tcp://h:4\n";
        let blurb = Blurb::parse(text.as_bytes(), Some("db.1")).unwrap();
        assert_eq!((blurb.name.as_deref(), blurb.ssh.port, blurb.sql.port), (Some("db.1"), 3, 4));
        let error = Blurb::parse(text.as_bytes(), None).unwrap_err();
        assert_eq!(error.to_string(), "the blurb tells of several instances: db.0, db.1");
        let error = Blurb::parse(text.as_bytes(), Some("db.7")).unwrap_err();
        assert_eq!(error.to_string(), "there is no instance db.7, only db.0, db.1");
    }

    #[test]
    fn an_environment_may_have_parts_only() {
        let look = |text: &str, wanted: &str| Blurb::from_environment(text.as_bytes(), wanted);
        let parts = "# made by hand\nDOTCLOUD_MY_DB_SSH_HOST_3=::1\nDOTCLOUD_MY_DB_SSH_PORT_3=2201\nDOTCLOUD_MY_DB_SQL_URL_3=pgsql://h:5433\nDOTCLOUD_MY_DB_SQL_LOGIN_3=me\nDOTCLOUD_MY_DB_SQL_PASSWORD_3=p@s=s\n";
        assert_eq!(brief(&look(parts, "my-db.3").unwrap()), "my-db.3 -@::1:2201 me:p@s=s@h:5433/-");
        assert!(refusal(look(parts, "3")).contains("does not say which service this is"));
        // keys without a number stand for instance 0 where no key has one
        let single = "DOTCLOUD_DB_SSH_URL=ssh://a@h:1\nDOTCLOUD_DB_PGSQL_URL=tcp://h:2\n";
        assert_eq!(brief(&look(single, "db.0").unwrap()), "db.0 a@h:1 -:-@h:2/-");
        assert!(refusal(look(single, "db.1")).contains("holds no instance at all"));
        assert!(refusal(look("{}", "db.0")).contains("holds no instance at all"));
        assert_eq!(
            refusal(look("DOTCLOUD_DB_SSH_URL_0=ssh://a@h:1\n", "db.0")),
            "the blurb of db.0 has no port for PostgreSQL, only ssh"
        );
        assert_eq!(refusal(look("", "0")), "the blurb is empty");
        assert!(refusal(look("{", "0")).starts_with("this is not valid JSON"));
        assert!(refusal(look("just words\n", "0")).starts_with("this is not valid YAML"));
        // numbers, as some writers have ports
        let json = r#"{"DOTCLOUD_DB_SSH_HOST_0": "h", "DOTCLOUD_DB_SSH_PORT_0": 22, "DOTCLOUD_DB_PGSQL_HOST_0": "h", "DOTCLOUD_DB_PGSQL_PORT_0": 5432, "X": null}"#;
        assert_eq!(brief(&look(json, "db.0").unwrap()), "db.0 -@h:22 -:-@h:5432/-");
    }
}
