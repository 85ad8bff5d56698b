//! Owns the instants at which a test kills this program: the boundaries between the steps of a command, each with a
//! name. Without the two variables in its environment it does nothing.
//!
//! `PGMAHOUT_FAULT_TRACE=FILE` notes every boundary that is passed, a line each. `PGMAHOUT_FAULT_KILL=NAME[:N]` ends this
//! process by SIGKILL where it passes that boundary for the first, or the `N`th, time.

use nix::sys::signal::{Signal, raise};
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the environment asks for.
struct Fault {
    trace: Option<File>,
    kill: Option<String>,
    /// How often that boundary is still to be passed alive.
    left: AtomicU32,
}

impl Fault {
    fn asked() -> Option<Fault> {
        let (trace, kill) =
            (std::env::var_os("PGMAHOUT_FAULT_TRACE"), std::env::var("PGMAHOUT_FAULT_KILL").ok());
        if trace.is_none() && kill.is_none() {
            return None;
        }
        let trace = trace.and_then(|path| File::options().append(true).create(true).open(path).ok());
        let (name, nth) = kill.as_deref().map_or(("", 1), at);
        Some(Fault { trace, kill: kill.is_some().then(|| name.to_owned()), left: AtomicU32::new(nth - 1) })
    }

    fn pass(&self, name: &str) {
        if let Some(mut trace) = self.trace.as_ref() {
            // One write, so that the lines of several processes do not mix.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        let one_less = |left: u32| left.checked_sub(1);
        if self.kill.as_deref() == Some(name)
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err()
        {
            let _ = raise(Signal::SIGKILL);
        }
    }
}

/// `NAME[:N]`, where N counts from 1.
fn at(text: &str) -> (&str, u32) {
    match text.rsplit_once(':') {
        Some((name, nth)) => (name, nth.parse().unwrap_or(1).max(1)),
        None => (text, 1),
    }
}

/// One step has ended, and the next one not begun. What the names mean stands where they are used: `x-ing` is right
/// before something that cannot be taken back, `x-ed` right behind it.
pub fn boundary(name: &'static str) {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    if let Some(fault) = FAULT.get_or_init(Fault::asked) {
        fault.pass(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_unless_another_is_named() {
        assert_eq!(at("slot.created"), ("slot.created", 1));
        assert_eq!(at("durable.renamed:12"), ("durable.renamed", 12));
        assert_eq!(at("durable.renamed:0"), ("durable.renamed", 1));
    }
}
