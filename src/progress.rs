//! Owns what a person sees while work goes on: the one sink that operations report to. On a terminal a
//! bar, without one a line every ten seconds, quiet nothing. Everything goes to stderr; results go to
//! stdout and are not this module's.

use crate::error::printable;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// Warnings only.
    Quiet,
    /// Steps, warnings, progress.
    Normal,
    /// Also how each step was done.
    Verbose,
}

/// The sink.
pub struct Progress {
    voice: Voice,
    bar: Mutex<Option<Bar>>,
    done: AtomicU64,
    watcher: OnceLock<Watcher>,
}

/// Somebody else who wants to know: what is being done, and how much of how much (0 when nobody knows).
type Watcher = Box<dyn Fn(&str, u64, u64) + Send + Sync>;

struct Bar {
    what: String,
    unit: Unit,
    total: u64,
    begin: Instant,
    last_line: Instant,
    last_watch: Instant,
    drawn: Option<ProgressBar>,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Bytes, of which the total is known, or 0.
    Bytes,
    /// Things of this name, of which the total is an estimate.
    About(&'static str),
}

const LINE_EVERY: Duration = Duration::from_secs(10);
const WATCH_EVERY: Duration = Duration::from_millis(500);

impl Progress {
    /// A sink that speaks on stderr.
    pub fn new(voice: Voice) -> Progress {
        Progress { voice, bar: Mutex::new(None), done: AtomicU64::new(0), watcher: OnceLock::new() }
    }

    /// From now on `watcher` is told of each step, and of a count twice a second.
    pub fn watch(&self, watcher: impl Fn(&str, u64, u64) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    fn tell(&self, what: &str, done: u64, total: u64) {
        if let Some(watcher) = self.watcher.get() {
            watcher(what, done, total);
        }
    }

    /// What is being done now.
    pub fn step(&self, text: impl AsRef<str>) {
        self.tell(text.as_ref(), 0, 0);
        if self.voice != Voice::Quiet {
            self.line(text.as_ref());
        }
    }

    /// How it is done; only with `--verbose`.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.voice == Voice::Verbose {
            self.line(&format!("  {}", text.as_ref()));
        }
    }

    /// What the operator has to know even with `--quiet`.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.line(&format!("warning: {}", text.as_ref()));
    }

    fn line(&self, text: &str) {
        match &*self.bar.lock().expect("no panic while drawing") {
            Some(Bar { drawn: Some(drawn), .. }) => drawn.suspend(|| say(text)),
            _ => say(text),
        }
    }

    /// Begins to count `total` bytes of `what`; 0 when nobody knows how many.
    pub fn begin_bytes(&self, what: &str, total: u64) {
        self.begin(what, total, Unit::Bytes);
    }

    /// Begins to count things, e.g. files, of which there are about `total`.
    pub fn begin_about(&self, what: &str, total: u64, things: &'static str) {
        self.begin(what, total, Unit::About(things));
    }

    fn begin(&self, what: &str, total: u64, unit: Unit) {
        self.done.store(0, Ordering::Relaxed);
        let drawn = (self.voice != Voice::Quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = match unit {
                Unit::Bytes if total == 0 => "{msg} {bytes} {bytes_per_sec}".to_owned(),
                Unit::Bytes => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}".to_owned(),
                Unit::About(things) => {
                    format!("{{msg}} {{wide_bar}} {{pos}} of about {{len}} {things} {{elapsed}}")
                }
            };
            bar.set_style(ProgressStyle::with_template(&style).expect("a valid template"));
            bar.set_message(printable(what));
            bar
        });
        self.tell(what, 0, total);
        let now = Instant::now();
        let (last_line, last_watch) = (now, now);
        *self.bar.lock().expect("no panic while drawing") =
            Some(Bar { what: what.into(), unit, total, begin: now, last_line, last_watch, drawn });
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        // A worker that finds the lock taken leaves the drawing to the one who has it.
        let Ok(mut bar) = self.bar.try_lock() else { return };
        let Some(bar) = bar.as_mut() else { return };
        if bar.last_watch.elapsed() >= WATCH_EVERY {
            bar.last_watch = Instant::now();
            self.tell(&bar.what, done, bar.total);
        }
        if let Some(drawn) = &bar.drawn {
            // An estimate that was too low is corrected by what is seen.
            if done > bar.total && bar.unit != Unit::Bytes {
                drawn.set_length(done);
            }
            drawn.set_position(done);
        } else if self.voice != Voice::Quiet && bar.last_line.elapsed() >= LINE_EVERY {
            bar.last_line = Instant::now();
            say(&bar.text(done));
        }
    }

    /// Ends the count.
    pub fn end(&self) {
        if let Some(bar) = self.bar.lock().expect("no panic while drawing").take()
            && let Some(drawn) = bar.drawn
        {
            drawn.finish_and_clear();
        }
    }
}

impl Bar {
    fn text(&self, done: u64) -> String {
        let seconds = self.begin.elapsed().as_secs_f64();
        let what = &self.what;
        match self.unit {
            Unit::About(things) => {
                let total = self.total.max(done);
                format!("{what}: {done} of about {total} {things}, {}", duration_text(seconds))
            }
            Unit::Bytes => {
                let rate = done as f64 / seconds.max(0.001);
                let so_far = bytes_text(done);
                let rate_text = bytes_text(rate as u64);
                if self.total == 0 {
                    return format!("{what}: {so_far}, {rate_text}/s");
                }
                let left = self.total.saturating_sub(done) as f64 / rate.max(1.0);
                let total = bytes_text(self.total);
                format!("{what}: {so_far} of {total}, {rate_text}/s, {left:.0} s left")
            }
        }
    }
}

fn say(text: &str) {
    // A closed stderr is no reason to stop in the middle of a copy.
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}

/// Bytes for a person: "831 B", "32.0 MB" (powers of 1000, as disks and links are sold).
pub fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} PB")
}

/// A duration for a person: "0.4 s", "75 s", "12 min", "3.2 h".
pub fn duration_text(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Seconds since 1970 as "2026-11-20 16:17:00 UTC".
pub fn time_text(unix: i64) -> String {
    let (year, month, day) = crate::postgres::time::civil(unix.div_euclid(86_400));
    let seconds = unix.rem_euclid(86_400);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_a_person() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(999), "999 B");
        assert_eq!(bytes_text(32_000_000), "32.0 MB");
        assert_eq!(duration_text(0.42), "0.4 s");
        assert_eq!(duration_text(600.0), "10 min");
    }

    #[test]
    fn times() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(time_text(1_795_191_420), "2026-11-20 16:17:00 UTC");
        assert_eq!(time_text(-1), "1969-12-31 23:59:59 UTC");
    }

    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\n"), "a\\u{1b}[31mb\\r\n");
    }
}
