//! Owns the steps of a copy on this instance: a database beside the one that is meant is filled and compared, takes its
//! place, and goes again. Each may be killed at any instant and run again.

use super::super::Context;
use super::super::backup::restore::logical::holds;
use super::super::backup::restore::swap::{self, New, Purpose};
use super::super::backup::{self, now, properties};
use super::check::{self, Checked, Here, Wishes};
use super::compare::{self, Change, Compared};
use super::fill;
use super::source;
use super::state::{self, State};
use crate::backups::manifest::Properties;
use crate::durable::Lock;
use crate::error::{Error, Result};
use crate::progress::bytes_text;
use crate::sql::{Db, Target, identifier, literal};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The setting of a database that says which copy it is. It goes along when it is renamed.
const MARK: &str = "pgmahout.copy";

/// A run whose caller was killed ends by itself within this.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// The source's sums are read anew when they are so many seconds old: it may not have been read-only all the time.
const LONG_AGO: i64 = 900;

/// One copy on an instance at a time; a backup or a restore does not keep it waiting.
pub fn lock(context: Context, doing: &str) -> Result<Lock> {
    context.instance.check_account()?;
    let path = context.instance.state_directory.join("copy.lock");
    Lock::wait(&path, doing, BUSY_LIMIT, |holder| {
        context.progress.step(format!("waiting for another pgmahout on this instance: {holder}"))
    })
}

/// What was filled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The database that is meant.
    pub database: String,
    /// The one that was filled.
    pub side: String,
    /// Tables and materialized views.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Bytes of rows that were sent.
    pub bytes: u64,
    /// Seconds for the schema, the rows, and what comes behind them.
    pub seconds: [f64; 3],
    /// Everything belongs to this role, without grants; none where owners and grants are kept.
    pub owner: Option<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Checks the pair, and fills a database beside `here` anew.
pub fn fill(
    context: Context,
    from: &Target,
    here: &mut Here,
    id: &str,
    wishes: Wishes,
    jobs: usize,
) -> Result<Report> {
    if is_placed(here, id)? {
        let why = "that could be filled: it is in its place already";
        return Err(Error::NoCopy { database: here.database.clone(), id: id.into(), why });
    }
    // Its room is needed.
    state::forget(context, id)?;
    swap::drop_copy(&mut here.db, &here.target, &here.database, id)?;
    let checked = check::examine(context, from, here, wishes)?;
    make(context, from, here, id, &checked, jobs, true)
}

/// Fills it; with `marked` it can be told from others by its setting once it is in its place.
pub fn make(
    context: Context,
    from: &Target,
    here: &mut Here,
    id: &str,
    checked: &Checked,
    jobs: usize,
    marked: bool,
) -> Result<Report> {
    let old = here.old.as_ref();
    let owner = old.map_or_else(|| here.target.user.clone(), |old| old.owner.clone());
    let mut state = State {
        database: here.database.clone(),
        before: old.map(|old| old.needs.clone()),
        read_at: None,
        filled: fill::Filled::default(),
        is_compared: false,
    };
    state.write(context, id)?;
    let (mut new, warning) = swap::create_for(
        &mut here.db,
        &here.target,
        &here.database,
        old,
        Some(&checked.needs),
        Some(&owner),
        Purpose::Copy(id),
    )?;
    if marked {
        here.db.run(&format!("ALTER DATABASE {} SET {MARK} = {}", identifier(&new.name), literal(id)))?;
    }
    context.progress.step(format!("copying {} into {}", source::describe(from), new.name));
    // What belongs to the first superuser cannot be given away at once, but that of a role made for it can.
    let given_to = checked.owner.clone().filter(|owner| *owner != here.target.user);
    let by = match &given_to {
        Some(_) => Some(new.with_role(&mut here.db)?),
        None => checked.owner.clone(),
    };
    let options = fill::Options { jobs, owner: by, size: checked.source.size };
    let filled = fill::run(context, from, &here.target.database(&new.name), &options)?;
    if let Some(owner) = &given_to {
        new.give_to(owner)?;
    }
    let report = Report {
        database: here.database.clone(),
        side: new.name.clone(),
        tables: filled.tables,
        rows: filled.rows,
        bytes: filled.bytes,
        seconds: filled.seconds,
        owner: checked.owner.clone(),
        warnings: checked.warnings.iter().chain(&warning).chain(&filled.warnings).cloned().collect(),
    };
    (state.filled, state.read_at) = (filled, Some(now()));
    state.write(context, id)?;
    new.leave();
    Ok(report)
}

/// The copy's own name, or that of the database whose place it has.
fn where_it_is(here: &mut Here, id: &str, why: &'static str) -> Result<String> {
    if is_placed(here, id)? {
        return Ok(here.database.clone());
    }
    let name = swap::copy_name(&here.database, id);
    match swap::old(&mut here.db, &name)? {
        Some(_) => Ok(name),
        None => Err(Error::NoCopy { database: here.database.clone(), id: id.into(), why }),
    }
}

fn remembered(context: Context, here: &Here, id: &str, why: &'static str) -> Result<State> {
    let state =
        State::read(context, id)?.filter(|state| state.read_at.is_some() && state.database == here.database);
    state.ok_or_else(|| Error::NoCopy { database: here.database.clone(), id: id.into(), why })
}

/// Compares the copy, wherever it is, with the source: with what that held when the copy was filled, or, with `again` and
/// when that is long ago, with what it holds now.
pub fn compare(
    context: Context,
    from: &Target,
    here: &mut Here,
    id: &str,
    again: bool,
    jobs: usize,
) -> Result<Compared> {
    const WHY: &str = "that could be compared";
    let mut state = remembered(context, here, id, WHY)?;
    let at = where_it_is(here, id, WHY)?;
    if again || state.read_at.is_none_or(|at| now() - at > LONG_AGO || at > now()) {
        context.progress.step(format!("reading {} again", source::describe(from)));
        source::connect(from)?;
        state.filled.sums = compare::sums(context, from, jobs, Some(&state.filled.sums))?;
        state.read_at = Some(now());
    }
    let compared = compare::run(context, &state.filled.sums, &here.target.database(&at), jobs)?;
    state.is_compared = true;
    state.write(context, id)?;
    Ok(compared)
}

/// Where the copy is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placed {
    /// The database.
    pub database: String,
    /// Always true.
    pub placed: bool,
    /// Sessions that were ended in what was there before.
    pub sessions_ended: usize,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// The copy takes the database's place, which must be empty. When it has it already, this only completes it.
pub fn place(context: Context, here: &mut Here, id: &str) -> Result<Placed> {
    if is_placed(here, id)? {
        swap::drop_replaced(&mut here.db, &here.target, &here.database, id)?;
        return Ok(Placed {
            database: here.database.clone(),
            placed: true,
            sessions_ended: 0,
            warnings: Vec::new(),
        });
    }
    const WHY: &str = "that could take its place";
    let state = remembered(context, here, id, WHY)?;
    if !state.is_compared {
        let why = "that was compared";
        return Err(Error::NoCopy { database: here.database.clone(), id: id.into(), why });
    }
    let name = where_it_is(here, id, WHY)?;
    if mark(&mut here.db, &name)?.as_deref() != Some(id) {
        return Err(Error::NotThisCopy { name, id: id.into() });
    }
    if let Some(old) = &here.old
        && let Some(holds) = holds(&mut here.db, &here.target.database(&here.database), old)?
    {
        let (instance, database) = (context.instance.name.clone(), here.database.clone());
        return Err(Error::TargetNotEmpty { instance, database, holds });
    }
    put(context, here, New::of_copy(&here.target, &here.database, id))
}

/// The same for whatever the database holds.
pub fn replace(context: Context, here: &mut Here, id: &str) -> Result<Placed> {
    put(context, here, New::of_copy(&here.target, &here.database, id))
}

fn put(context: Context, here: &mut Here, mut new: New) -> Result<Placed> {
    here.wake()?;
    let tied = swap::tied(&mut here.db, &here.database)?;
    if !tied.is_empty() {
        return Err(Error::DatabaseTied { database: here.database.clone(), by: tied });
    }
    let mut properties = match &here.old {
        Some(old) => properties::read(&mut here.db, old.oid)?,
        None => Properties::new(&here.target.user),
    };
    properties.settings.retain(|setting| setting.name != MARK);
    // A killed run's statements go on in it until the server notices.
    here.db
        .rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&new.name])?;
    let swapped = swap::swap(context, &mut here.db, &mut new, here.old.as_ref(), properties)?;
    let mut warnings = Vec::new();
    if let Some(name) = swapped.old_name
        && let Err(error) = swap::drop_database(&mut here.db, &name)
        // A restore that began meanwhile may have been so kind.
        && swap::old(&mut here.db, &name)?.is_some()
    {
        warnings.push(format!(
            "what was there before is still there: {error}; DROP DATABASE {} removes it",
            identifier(&name)
        ));
    }
    Ok(Placed {
        database: here.database.clone(),
        placed: true,
        sessions_ended: swapped.sessions_ended,
        warnings,
    })
}

/// That nothing is left of a copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cleared {
    /// The database.
    pub database: String,
    /// Always true.
    pub cleared: bool,
    /// Databases that were dropped: the copy, beside the database or in its place, and what was made on the way.
    pub dropped: Vec<String>,
}

/// Drops the copy; where it has the database's place, an empty one gets that, with the encoding and locale of before.
pub fn clear(context: Context, here: &mut Here, id: &str) -> Result<Cleared> {
    let mut dropped = swap::drop_copy(&mut here.db, &here.target, &here.database, id)?;
    if let Some(old) = here.old.clone()
        && is_placed(here, id)?
    {
        let needs = State::read(context, id)?.and_then(|state| state.before);
        let (mut new, _) = swap::create_for(
            &mut here.db,
            &here.target,
            &here.database,
            Some(&old),
            needs.as_ref(),
            Some(&old.owner),
            Purpose::Copy(id),
        )?;
        let mut properties = properties::read(&mut here.db, old.oid)?;
        properties.settings.retain(|setting| setting.name != MARK);
        context.progress.step(format!("emptying {}", here.database));
        swap::swap(context, &mut here.db, &mut new, Some(&old), properties)?;
        let replaced = swap::drop_replaced(&mut here.db, &here.target, &here.database, id)?;
        dropped.extend(replaced.map(|_| here.database.clone()));
    }
    state::forget(context, id)?;
    Ok(Cleared { database: here.database.clone(), cleared: true, dropped })
}

/// What has changed in the placed database since the comparison.
pub fn changes(context: Context, here: &mut Here, id: &str, jobs: usize) -> Result<Vec<Change>> {
    const WHY: &str = "whose changes could be told";
    let state = remembered(context, here, id, WHY)?;
    let at = where_it_is(here, id, WHY)?;
    compare::changes(context, &state.filled.sums, &here.target.database(&at), jobs)
}

/// Whether the database that is meant is the copy of this id.
fn is_placed(here: &mut Here, id: &str) -> Result<bool> {
    mark(&mut here.db, &here.database).map(|mark| mark.as_deref() == Some(id))
}

fn mark(db: &mut Db, database: &str) -> Result<Option<String>> {
    let rows = db.rows(
        "SELECT substr(said, 15) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase, \
         unnest(setconfig) said WHERE datname = $1 AND setrole = 0 AND said LIKE 'pgmahout.copy=%'",
        &[&database],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Drops what copies without a mark have left, which nobody completes.
pub fn sweep(context: Context, here: &mut Here) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    for copy in swap::copies(&mut here.db)? {
        if !copy.is_ours || mark(&mut here.db, &copy.name)?.is_some() {
            continue;
        }
        swap::drop_filled(&mut here.db, &here.target, &copy.name)?;
        state::forget(context, &copy.id)?;
        dropped.push(copy.name);
    }
    swap::sweep_copy_roles(&mut here.db)?;
    // What was replaced and not dropped looks as that of a restore does, of which none may be at work.
    if let Ok(_lock) = backup::lock(context, "copy") {
        dropped.extend(swap::sweep(&mut here.db)?);
    }
    if !dropped.is_empty() {
        context.progress.step(format!("dropped what was left of an earlier copy: {}", dropped.join(", ")));
    }
    Ok(dropped)
}

/// For a person: `12 tables, 3,400 rows, 1.2 GB`.
pub fn amount(tables: usize, rows: u64, bytes: u64) -> String {
    let things = |n: u64, one: &str| match n {
        1 => format!("1 {one}"),
        n => format!("{} {one}s", grouped(n)),
    };
    format!("{}, {}, {}", things(tables as u64, "table"), things(rows, "row"), bytes_text(bytes))
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_for_a_person() {
        assert_eq!(amount(1, 1, 5), "1 table, 1 row, 5 B");
        assert_eq!(amount(12, 3400, 1_200_000_000), "12 tables, 3,400 rows, 1.2 GB");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
