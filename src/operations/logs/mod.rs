//! What the server says: found wherever it puts its log, the last entries of it, and those that come.

mod find;
mod follow;
mod read;

use super::Context;
use crate::error::{Error, Result};
use crate::postgres::log::{Entry, Level};

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// So many, the last ones; none for all.
    pub last: Option<usize>,
    /// And then those that come, until an interrupt.
    pub tail: bool,
    /// Only statements that took so many milliseconds.
    pub slow: Option<f64>,
    /// Only since this time, in microseconds since 1970.
    pub since: Option<i64>,
    /// Only so grave ones; a severity that is not known here is shown.
    pub level: Option<Level>,
}

impl Options {
    fn want(&self, entry: &Entry) -> bool {
        let late = self.since.is_none_or(|since| entry.time.is_none_or(|time| time >= since));
        let grave = self.level.is_none_or(|level| entry.level().is_none_or(|of| of >= level));
        late && grave && self.slow.is_none_or(|limit| entry.duration().is_some_and(|took| took >= limit))
    }
}

/// Hands over the wanted entries, in the order of the log, with passwords masked; nothing (`None`) whenever
/// there is a pause, which is when to write out what was kept back. `each` answers whether anybody still
/// listens.
///
/// With `tail` an interrupt is the ordinary end, not a failure: there is nothing to complete.
pub fn run(context: Context, options: &Options, each: &mut dyn FnMut(Option<&Entry>) -> bool) -> Result<()> {
    match show(context, options, each) {
        Err(Error::Interrupted) if options.tail => Ok(()),
        other => other,
    }
}

fn show(context: Context, options: &Options, each: &mut dyn FnMut(Option<&Entry>) -> bool) -> Result<()> {
    let log = find::find(context)?;
    if let (Some(slow), Some(from)) = (options.slow, log.logged_from)
        && (from < 0 || from as f64 > slow)
    {
        // An empty answer would look like a fast server.
        context.progress.warn(format!(
            "the server does not log all statements of {slow} ms: log_min_duration_statement is {from}"
        ));
    }
    // Before anything is read: what changes from here on is seen by the follower.
    let known = log.place.states()?;
    let mut times = read::Times::new(context.progress, &log);
    let mut give = |entry: Entry| !options.want(&entry) || each(Some(&entry.masked()));
    let Some(current) = read::last(&log, &known, options, &mut times, &mut give)? else { return Ok(()) };
    if !each(None) || !options.tail {
        return Ok(());
    }
    follow::follow(&log, current, known, options, &mut times, each)
}
