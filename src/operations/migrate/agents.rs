//! What the agents beside the two databases are asked: `pgmahout copy-part`, with the source's URL on its stdin.

use super::Work;
use super::journal::Target;
use crate::error::{Error, Result};
use crate::platform::{LONGEST, Seat};
use serde_json::{Value, json};
use std::time::Duration;

impl Work<'_> {
    /// Who speaks to the source: the agent beside it, or, where it is outside, this program.
    fn source_seat(&self) -> Result<Seat> {
        let source = self.source()?;
        Ok(source.instance.clone().map_or(Seat::Here, Seat::Instance))
    }

    fn part(&self, seat: &Seat, words: &[&str], url: &str, limit: Duration) -> Result<Value> {
        let mut all = vec!["copy-part"];
        all.extend(words);
        all.push("--lifeline");
        let name = seat.name().to_owned();
        let mut line = |text: &str| {
            let text = self.platform.quoted(text);
            if !text.trim().is_empty() {
                self.progress.step(format!("  {name}: {text}"));
            }
        };
        self.platform.agent(seat, &all, Some(url), limit, &mut line)
    }

    /// An action that speaks to the source alone.
    fn at_source(&self, words: &[&str], limit: Duration) -> Result<Value> {
        let url = self.source()?.url.clone();
        self.part(&self.source_seat()?, words, url.expose(), limit)
    }

    /// An action that fills or looks at the target. In a rehearsal the source may be a fork.
    fn at_target(&self, action: &str, options: &[&str], limit: Duration) -> Result<Value> {
        let target = &self.journal.target;
        let seat = Seat::Instance(target.instance()?.to_owned());
        let fork = self.journal.fork.as_ref().and_then(|fork| fork.url.clone());
        let url = match fork {
            Some(url) => url,
            None => self.source()?.url.clone(),
        };
        let mut words = vec![action, &target.database];
        words.extend(options);
        self.part(&seat, &words, url.expose(), limit)
    }

    /// All that is known of the source.
    pub fn look(&self) -> Result<Value> {
        self.at_source(&["look"], self.platform.long())
    }

    /// The lock on the source, with what helps somebody who finds it.
    pub fn take_lock(&self) -> Result<Value> {
        let journal = &self.journal;
        let leg = journal.leg();
        let note = json!({
            "app": journal.app, "by": journal.by, "from": journal.wanted.from,
            "to": journal.target.instance, "plan": journal.wanted.plan,
            "counts": leg.counts, "maintenance": leg.maintenance_was,
        });
        self.at_source(&["lock", "--id", &journal.id, "--note", &note.to_string()], self.platform.long())
    }

    /// Nobody writes to the source after this.
    pub fn quiesce(&self) -> Result<Value> {
        let wait = self.journal.wanted.wait;
        let seconds = wait.to_string();
        let mut words = vec!["quiesce", "--id", &self.journal.id, "--wait", &seconds];
        if self.journal.wanted.terminate {
            words.push("--terminate");
        }
        self.at_source(&words, self.platform.long() + Duration::from_secs(wait))
    }

    /// The migration is complete; its lock says where the data went.
    pub fn finish(&self) -> Result<Value> {
        let target = &self.journal.target;
        let note = json!({ "to": target.instance, "address": target.address, "database": target.database });
        let words = ["finish", "--id", &self.journal.id, "--note", &note.to_string()];
        self.at_source(&words, self.platform.long())
    }

    /// `release` or `unlock`.
    pub fn tell_source(&self, action: &str) -> Result<Value> {
        self.at_source(&[action, "--id", &self.journal.id], self.platform.long())
    }

    /// Frees the source of whichever migration has it.
    pub fn abandon(&self) -> Result<Value> {
        self.at_source(&["abandon"], self.platform.long())
    }

    /// Whether the source can go into the target.
    pub fn check_pair(&self) -> Result<Value> {
        let options: &[&str] = if self.journal.wanted.no_owner { &["--no-owner"] } else { &[] };
        self.at_target("check", options, LONGEST)
    }

    /// The copy.
    pub fn fill(&self) -> Result<Value> {
        let jobs = self.journal.wanted.jobs.map(|jobs| jobs.to_string());
        let mut options = vec!["--id", &self.journal.id];
        if let Some(jobs) = &jobs {
            options.extend(["--jobs", jobs]);
        }
        if self.journal.wanted.no_owner {
            options.push("--no-owner");
        }
        self.at_target("fill", &options, LONGEST)
    }

    /// `compare`, `place`, `clear` or `changes`.
    pub fn tell_target(&self, action: &str) -> Result<Value> {
        let limit = if matches!(action, "place" | "clear") { self.platform.long() } else { LONGEST };
        self.at_target(action, &["--id", &self.journal.id], limit)
    }

    /// What an instance says of itself.
    pub fn info(&self, instance: &str) -> Result<Value> {
        self.ask(instance, &["info"])
    }

    /// Its schedule of backups.
    pub fn schedule(&self, instance: &str) -> Result<Value> {
        self.ask(instance, &["backup", "schedule"])
    }

    fn ask(&self, instance: &str, words: &[&str]) -> Result<Value> {
        let seat = Seat::Instance(instance.to_owned());
        self.platform.agent(&seat, words, None, self.platform.long(), &mut |_| {})
    }
}

impl Target {
    /// Its instance.
    pub fn instance(&self) -> Result<&str> {
        self.instance.as_deref().ok_or_else(|| Error::MigrateImpossible {
            why: "there is no target yet".into(),
            hint: "--rollback, and begin again".into(),
        })
    }
}

/// A number of an answer, or 0.
pub fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// A text of an answer.
pub fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// A truth of an answer, or false.
pub fn is(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}
