//! Which databases are meant: the source, the target, the config variables that point to them. An attachment is the
//! variable HEROKU_POSTGRESQL_<COLOUR>_URL; it belongs to the instance at whose HOST:PORT its URL points.

use super::Work;
use super::journal::{Bound, Hidden, Source};
use crate::error::{Error, Result};
use crate::platform::{Config, Listed, address_of};

/// An attachment of an instance.
pub struct Choice {
    /// Its variable.
    pub variable: String,
    /// Its URL.
    pub url: String,
    /// The database in that.
    pub database: String,
}

impl Choice {
    /// That is its colour.
    pub fn is_called(&self, wanted: &str) -> bool {
        colour(&self.variable) == Some(&plain_colour(wanted))
    }
}

fn colour(variable: &str) -> Option<&str> {
    let colour = variable.strip_prefix("HEROKU_POSTGRESQL_")?.strip_suffix("_URL")?;
    let plain = colour.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    (plain && colour.starts_with(|c: char| c.is_ascii_uppercase())).then_some(colour)
}

/// All attachments at that HOST:PORT.
pub fn attachments(config: &Config, address: &str) -> Vec<Choice> {
    let one = |(variable, url): (&String, &String)| {
        colour(variable)?;
        let at = address_of(url).filter(|at| at.address == address)?;
        Some(Choice { variable: variable.clone(), url: url.clone(), database: at.database })
    };
    config.config.iter().filter_map(one).collect()
}

/// The attachment that is meant: that of the colour, else one of a database of that name, else the first.
pub fn choose(config: &Config, address: &str, wanted: Option<&str>, database: &str) -> Option<Choice> {
    let all = attachments(config, address);
    let wanted = wanted.map(plain_colour);
    let by_colour = all.iter().position(|choice| wanted.as_deref() == colour(&choice.variable));
    let by_database = all.iter().position(|choice| choice.database == database);
    let at = by_colour.or(by_database).unwrap_or(0);
    all.into_iter().nth(at)
}

fn plain_colour(text: &str) -> String {
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("HEROKU_POSTGRESQL_").unwrap_or(&upper);
    short.strip_suffix("_URL").unwrap_or(short).to_owned()
}

/// The URL with another HOST:PORT.
pub fn with_address(url: &str, address: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    format!("{scheme}://{user}{address}{tail}")
}

/// Where the data is, into the journal.
///
/// # Errors
/// [`Error::MigrateUsage`] when there is no such variable, or no URL in it.
pub fn source(work: &mut Work, config: &Config, instances: &[Listed]) -> Result<()> {
    let app = work.journal.app.clone();
    if let Some(wanted) = work.journal.wanted.from.clone() {
        let exact = config.config.get_key_value(&wanted);
        let same = || config.config.iter().find(|(name, _)| name.eq_ignore_ascii_case(&wanted));
        let Some((variable, url)) = exact.or_else(same) else {
            let has = config.config.iter().filter(|(_, value)| address_of(value).is_some());
            let has: Vec<_> = has.map(|(name, _)| name.as_str()).collect();
            let has = if has.is_empty() { "no URL of a database".to_owned() } else { has.join(", ") };
            return Err(Error::MigrateUsage {
                why: format!("{app} has no {}", work.platform.quoted(&wanted)),
                hint: format!("it has {has}; --from names the variable"),
            });
        };
        let at = address_of(url).ok_or_else(|| Error::MigrateUsage {
            why: format!("{variable} of {app} is no postgres:// URL"),
            hint: "--from names the variable of the database".into(),
        })?;
        work.journal.source = Some(Source {
            variable: Some(variable.clone()),
            url: Hidden::new(url),
            instance: None,
            address: at.address,
            database: at.database,
        });
    }
    let source = work.journal.source.as_mut().ok_or_else(|| Error::MigrateUsage {
        why: "where from?".into(),
        hint: "--from names a config variable, --url a file with a URL".into(),
    })?;
    let instance = instances.iter().find(|listed| listed.address == source.address);
    source.instance = instance.map(|listed| listed.name.clone());
    Ok(())
}

/// Where it goes, as far as that is known before a new one is made.
///
/// # Errors
/// [`Error::MigrateUsage`] when there is no such instance, or it is the source.
pub fn target(work: &mut Work, config: &Config, instances: &[Listed]) -> Result<()> {
    let Some(wanted) = work.journal.wanted.to.clone() else { return Ok(()) };
    let named = |listed: &&Listed| {
        let by_colour = |choice: &Choice| colour(&choice.variable) == Some(&plain_colour(&wanted));
        listed.name.eq_ignore_ascii_case(&wanted)
            || attachments(config, &listed.address).iter().any(by_colour)
    };
    let Some(found) = instances.iter().find(named) else {
        let names: Vec<_> = instances.iter().map(|listed| listed.name.as_str()).collect();
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Error::MigrateUsage {
            why: format!("{} has no database {}", work.journal.app, work.platform.quoted(&wanted)),
            hint: format!("it has: {has}; without --to one is added"),
        });
    };
    if work.source()?.address == found.address {
        return Err(Error::MigrateUsage {
            why: format!("{} is where the data is already", found.name),
            hint: "name another instance; without --to one is added".into(),
        });
    }
    let database = work.source()?.database.clone();
    let colour = work.journal.wanted.colour.clone().or(Some(wanted));
    let choice = choose(config, &found.address, colour.as_deref(), &database);
    work.journal.wanted.to = Some(found.name.clone());
    let target = &mut work.journal.target;
    target.instance = Some(found.name.clone());
    target.address = Some(found.address.clone());
    if let Some(choice) = choice {
        target.url = Some(Hidden::new(&choice.url));
        target.variable = Some(choice.variable);
        target.database = choice.database;
    }
    Ok(())
}

/// The variables that get the new URL: all that hold the old one. Of a source that none holds it is DATABASE_URL, when
/// that is not set.
///
/// # Errors
/// [`Error::MigrateRefused`] when it is.
pub fn variables(work: &Work, config: &Config) -> Result<Vec<Bound>> {
    let source = work.source()?;
    let holds = config.config.iter().filter(|(_, value)| *value == source.url.expose());
    let found: Vec<_> = holds.map(|(name, _)| Bound { name: name.clone(), was_set: true }).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if config.config.get("DATABASE_URL").is_some_and(|url| !url.is_empty()) {
        let hint = match others(work, config)?.first() {
            Some(name) => format!("{name} leads to that database by another URL: --from {name}"),
            None => "name the variable that leads there, if one does: --from NAME; herd pg:copy copies a database and \
                     leaves the app alone"
                .into(),
        };
        return Err(Error::MigrateRefused {
            why: format!(
                "no config variable of {} holds that URL, and DATABASE_URL is set",
                work.journal.app
            ),
            hint,
        });
    }
    Ok(vec![Bound { name: "DATABASE_URL".into(), was_set: false }])
}

/// Those that lead to the source by another URL, as of another user, with other options or spaces around it.
pub fn others(work: &Work, config: &Config) -> Result<Vec<String>> {
    let source = work.source()?;
    let leads = |url: &str| {
        let at = address_of(url.trim());
        at.is_some_and(|at| at.address == source.address && at.database == source.database)
    };
    let holds = config.config.iter().filter(|(_, value)| *value != source.url.expose() && leads(value));
    Ok(holds.map(|(name, _)| name.clone()).collect())
}
