//! The engine: goes a table of steps forward and back. It knows nothing of what they do; the journal is written before
//! and after each.

use super::Work;
use super::journal::{Mark, State, now};
use crate::error::{Error, Result};
use crate::process;
use crate::progress::duration_text;

/// A step: what it is called, what it says, how it is done and undone, and how to see that it happened.
pub struct Step {
    /// Its name, for the journal and `--status`.
    pub name: &'static str,
    /// What it does, for a person.
    pub says: fn(&Work) -> String,
    /// Does it; doing it again after a killed run does no harm.
    pub run: fn(&mut Work) -> Result<()>,
    /// How it is undone; `None`: it changes nothing.
    pub undo: Option<Undo>,
    /// Whether it has happened, asked of one that a killed run had begun. Where nobody can see that it is done again.
    pub happened: fn(&mut Work) -> Result<bool>,
}

/// The way back of a step. It does no harm where the step was not done, or only half.
pub struct Undo {
    /// What it does.
    pub says: fn(&Work) -> String,
    /// Does it.
    pub run: fn(&mut Work) -> Result<()>,
    /// Steps that have to be undone before.
    pub needs: &'static [&'static str],
}

/// Nobody can see it: it is done again.
pub fn nobody_knows(_: &mut Work) -> Result<bool> {
    Ok(false)
}

/// What stopped the way forward.
pub struct Stopped {
    /// The step's name.
    pub step: &'static str,
    /// Why.
    pub error: Box<Error>,
}

/// How the way back went.
#[derive(Default)]
pub struct Back {
    /// What could not be undone, and why.
    pub left: Vec<String>,
    /// The steps of those.
    pub steps: Vec<&'static str>,
    /// The exit code of the first failure.
    pub exit: Option<u8>,
    /// The step at which an interrupt stopped it.
    pub interrupted: Option<&'static str>,
}

/// Goes the table to its end. Steps that are done are passed over; of those that were begun it is asked whether they
/// have happened.
pub fn forward(work: &mut Work, table: &'static [Step]) -> std::result::Result<(), Stopped> {
    for (number, step) in table.iter().enumerate() {
        let stopped = |error| Stopped { step: step.name, error: Box::new(error) };
        let mark = work.journal.mark(step.name);
        if mark == Mark::Done {
            continue;
        }
        process::check_interrupt().map_err(stopped)?;
        let says = (step.says)(work);
        let place = format!("[{:2}/{}]", number + 1, table.len());
        if mark == Mark::Doing && (step.happened)(work).map_err(stopped)? {
            work.progress.step(format!("{place} {says}: that has happened already"));
            // How long it took nobody has seen
            work.journal.leg_mut().steps.entry(step.name.to_owned()).or_default().began = None;
            work.mark(step.name, Mark::Done, None).map_err(stopped)?;
            continue;
        }
        work.mark(step.name, Mark::Doing, None).map_err(stopped)?;
        work.progress.step(format!("{place} {says}…"));
        if let Err(error) = (step.run)(work) {
            let text = error.to_string();
            // The journal may be what failed.
            let _ = work.mark(step.name, Mark::Doing, Some(text));
            return Err(stopped(error));
        }
        work.mark(step.name, Mark::Done, None).map_err(stopped)?;
        let seconds = work.journal.leg().steps.get(step.name).and_then(|record| record.seconds);
        if let Some(seconds) = seconds.filter(|seconds| *seconds >= 1.0) {
            work.progress.detail(format!("{} took {}", step.name, duration_text(seconds)));
        }
    }
    Ok(())
}

/// Undoes what was done or begun, in reverse. What fails is told, and keeps only those from being undone that need it.
/// An interrupt stops it.
pub fn back(work: &mut Work, table: &'static [Step]) -> Back {
    // The interrupt that brought us here has had its effect.
    process::pardon();
    work.platform.call_anyhow();
    let mut result = Back::default();
    for step in table.iter().rev() {
        let mark = work.journal.mark(step.name);
        if matches!(mark, Mark::Waiting | Mark::Undone) {
            continue;
        }
        let Some(undo) = &step.undo else {
            work.mark_anyhow(step.name, Mark::Undone, None);
            continue;
        };
        if process::check_interrupt().is_err() {
            result.interrupted = Some(step.name);
            return result;
        }
        let says = (undo.says)(work);
        if let Some(needed) = undo.needs.iter().find(|name| result.steps.contains(name)) {
            result.left.push(format!("{} ({says}), which has to wait for {needed}", step.name));
            result.steps.push(step.name);
            continue;
        }
        work.mark_anyhow(step.name, Mark::Undoing, None);
        if !says.is_empty() {
            work.progress.step(format!("[undo] {says}…"));
        }
        match (undo.run)(work) {
            Ok(()) => work.mark_anyhow(step.name, Mark::Undone, None),
            Err(Error::Interrupted) => {
                result.interrupted = Some(step.name);
                return result;
            }
            Err(error) => {
                work.mark_anyhow(step.name, Mark::Undoing, Some(error.to_string()));
                work.progress.warn(format!("not undone: {} ({says}): {error}", step.name));
                result.left.push(format!("{} ({says}): {error}", step.name));
                result.steps.push(step.name);
                result.exit.get_or_insert(error.exit() as u8);
            }
        }
    }
    result
}

impl Work<'_> {
    /// Writes down how a step stands.
    pub fn mark(&mut self, step: &str, mark: Mark, error: Option<String>) -> Result<()> {
        let record = self.journal.leg_mut().steps.entry(step.to_owned()).or_default();
        match mark {
            Mark::Doing if error.is_none() => record.began = Some(now()),
            Mark::Done => record.seconds = record.began.map(|began| now() - began),
            _ => {}
        }
        record.mark = mark;
        record.error = error;
        self.save()
    }

    /// The same on the way back, which goes on though the journal cannot be written.
    fn mark_anyhow(&mut self, step: &str, mark: Mark, error: Option<String>) {
        if let Err(error) = self.mark(step, mark, error) {
            self.progress.warn(format!("the journal is behind: {error}"));
        }
    }

    /// Writes down how all of it stands.
    pub fn enter(&mut self, state: State) -> Result<()> {
        self.journal.state = state;
        if state.is_over() {
            self.journal.finished = Some(now());
        }
        self.save()
    }
}
