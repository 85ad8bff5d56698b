//! Following a log from file to file: what the collector begins, what a manager renames, what is emptied.
//! A file is read to its end before the next one is begun.

use super::Options;
use super::find::{Log, Place, State, numbered};
use super::read::{Give, Reader, Times};
use crate::error::Result;
use crate::postgres::log::Entry;
use crate::process;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often is looked. An entry is given after two looks at the latest.
pub const PAUSE: Duration = Duration::from_millis(150);

/// Gives what comes, until an interrupt or until nobody listens: the only wait without a limit, for it is
/// what was asked for.
pub fn follow(
    log: &Log,
    mut current: Reader,
    mut known: Vec<State>,
    options: &Options,
    times: &mut Times,
    each: &mut dyn FnMut(Option<&Entry>) -> bool,
) -> Result<()> {
    current.is_live();
    loop {
        process::check_interrupt()?;
        let mut give = |entry: Entry| !options.want(&entry) || each(Some(&entry.masked()));
        let listens = step(log, &mut current, &mut known, times, &mut give)?;
        if !listens || !each(None) {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
}

/// One look; gives whether somebody still listens.
fn step(
    log: &Log,
    current: &mut Reader,
    known: &mut Vec<State>,
    times: &mut Times,
    give: &mut Give,
) -> Result<bool> {
    if !current.pump(times, give)? {
        return Ok(false);
    }
    // `log_truncate_on_rotation`, or logrotate's copytruncate: what was written between our last look and that
    // moment is gone, for anybody.
    if current.now().is_some_and(|now| now.length < current.offset) {
        if !current.finish(times, give) {
            return Ok(false);
        }
        current.rewind()?;
        if !current.pump(times, give)? {
            return Ok(false);
        }
    }
    let next = match &log.place {
        Place::Collected { .. } => changed(log, current, known)?,
        Place::Kept(path) => renamed(log, current, path)?,
    };
    if next.is_empty() {
        // What was pending at the last look too is complete, also while others go on writing.
        return Ok(current.settle(times, give));
    }
    for mut reader in next {
        // There is a newer file, so this one has its last line.
        if !current.pump(times, give)? || !current.finish(times, give) {
            return Ok(false);
        }
        remember(known, current);
        reader.is_live();
        *current = reader;
    }
    current.pump(times, give)
}

/// The files of the collector that have changed since the last look, without the current one. Their names may
/// be old ones (`postgresql-%a.log` comes back every week), so what counts is what they hold.
fn changed(log: &Log, current: &Reader, known: &mut Vec<State>) -> Result<Vec<Reader>> {
    // Where the directory is away for a moment, there is nothing new in it.
    let Ok(states) = log.place.states() else { return Ok(Vec::new()) };
    let mut next = Vec::new();
    for state in &states {
        if state.id == current.state.id {
            continue;
        }
        let old = known.iter().find(|old| old.path == state.path && old.id == state.id);
        // A file of another name that we know: somebody has renamed it.
        let moved = old.is_none() && is_moved(known, state);
        match old {
            Some(old) if old == state => {}
            Some(old) if old.length == state.length => {}
            Some(old) if old.length < state.length => {
                next.extend(Reader::open_at_entry(log, &state.path, old.length).ok());
            }
            None if moved => {}
            _ => next.extend(Reader::open(log, &state.path, 0).ok()),
        }
    }
    // What was opened is read from there; what could not be, is tried again.
    let opened = |state: &State| {
        state.id == current.state.id
            || known.contains(state)
            || next.iter().any(|reader: &Reader| reader.state.path == state.path)
            || is_moved(known, state)
    };
    let states: Vec<State> = states.iter().filter(|state| opened(state)).cloned().collect();
    *known = states;
    Ok(next)
}

/// Whether a file is one that we know under another name. An inode alone is no proof: that of a removed file
/// is given to the next one.
fn is_moved(known: &[State], state: &State) -> bool {
    known.iter().any(|old| (old.id, old.length, old.changed) == (state.id, state.length, state.changed))
}

/// Notes how far a file has been read that is left now.
fn remember(known: &mut Vec<State>, left: &Reader) {
    let Some(now) = left.now() else { return };
    known.retain(|state| state.id != now.id);
    known.push(State { length: left.offset, ..now });
}

/// The files that have followed ours at a manager's path: it was renamed to `.1`, perhaps more than once
/// since the last look.
fn renamed(log: &Log, current: &Reader, path: &Path) -> Result<Vec<Reader>> {
    // A rename amid our looking is noticed by looking again.
    for _ in 0..5 {
        // Nothing there: the next one is about to be made.
        let Some(state) = State::at(path) else { return Ok(Vec::new()) };
        if state.id == current.state.id {
            return Ok(Vec::new());
        }
        let aside = numbered(path);
        let ours = aside.iter().position(|(_, state)| state.id == current.state.id);
        let since = current.now().map(|now| now.changed);
        let newer = aside.iter().enumerate().filter(|(at, (_, state))| match ours {
            Some(ours) => *at > ours,
            // Ours is removed already: what was written after it.
            None => since.is_some_and(|since| state.changed > since),
        });
        let mut paths: Vec<State> = newer.map(|(_, (_, state))| state.clone()).collect();
        paths.push(state);
        let readers: Result<Vec<Reader>> =
            paths.iter().map(|state| Reader::open(log, &state.path, 0)).collect();
        let Ok(readers) = readers else { continue };
        let same = |(reader, state): (&Reader, &State)| {
            reader.state.id == state.id && State::at(&state.path).is_some_and(|now| now.id == state.id)
        };
        if readers.iter().zip(&paths).all(same) {
            return Ok(readers);
        }
    }
    Ok(Vec::new())
}
