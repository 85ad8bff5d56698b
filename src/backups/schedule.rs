//! Owns when the schedule acts: every night once, what was missed at once, what failed again after a while, and
//! verification every so many days. Decided from times; a clock that was set back is expected.

use super::retention::Keep;
use crate::postgres::time::iso;
use serde::{Deserialize, Serialize};

const DAY: i64 = 86_400;
/// A first failure is tried again after this, the next ones after twice as long each.
const FIRST_RETRY: i64 = 15 * 60;
const LONGEST_RETRY: i64 = 4 * 3600;

/// Heroku's plans of backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A night's backup, kept for a week and, one a week, for a month.
    Month,
    /// A night's backup, kept for a week.
    Week,
}

impl Plan {
    /// All of them.
    pub const ALL: [Plan; 2] = [Plan::Month, Plan::Week];

    /// Its name, as it stands in the cluster.
    pub fn name(self) -> &'static str {
        match self {
            Plan::Month => "auto-month",
            Plan::Week => "auto-week",
        }
    }

    /// The plan of this name.
    pub fn named(name: &str) -> Option<Plan> {
        Plan::ALL.into_iter().find(|plan| plan.name() == name)
    }

    /// What it keeps where the settings say nothing else.
    pub fn keep(self) -> Keep {
        match self {
            Plan::Month => Keep { daily: 7, weekly: 5, manual: 10 },
            Plan::Week => Keep { daily: 7, weekly: 1, manual: 5 },
        }
    }
}

/// The last time that the schedule acted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// When it began, seconds since 1970.
    pub at: i64,
    /// It came to its end and all went well.
    pub ok: bool,
    /// How often in a row it has failed since the night's hour.
    pub failures: u32,
}

/// What is to be done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "action")]
pub enum Due {
    /// Take a backup.
    Now {
        /// As a sentence.
        reason: String,
    },
    /// Nothing until then.
    Later {
        /// Seconds since 1970; in the future, and at most a day off.
        at: i64,
        /// As a sentence.
        reason: String,
    },
}

/// The last time, up to now, that it was `minutes` after midnight UTC: the begin of the night that is the current one.
pub fn night(now: i64, minutes: u32) -> i64 {
    let offset = i64::from(minutes) * 60;
    (now - offset).div_euclid(DAY) * DAY + offset
}

/// Whether a database's backup is due.
///
/// `last` is when the scheduled backup with the greatest number was begun. A time in the future counts as of now
/// while it is within this night; further off it says nothing, and a new backup is the way to know.
pub fn due(last: Option<i64>, last_try: Option<&Try>, minutes: u32, now: i64) -> Due {
    let tonight = night(now, minutes);
    let tomorrow = tonight + DAY;
    let missing = match last {
        None => "there is no scheduled backup yet".to_owned(),
        Some(last) if last >= tomorrow => {
            format!("the clock was set back: the last backup's time, {}, is still to come", time_text(last))
        }
        Some(last) if last >= tonight => {
            return Due::Later {
                at: tomorrow,
                reason: format!("tonight's was begun at {}", time_text(last)),
            };
        }
        Some(last) if last >= tonight - DAY => format!("the night's is due since {}", time_text(tonight)),
        Some(last) => format!("nights were missed: the last one was begun at {}", time_text(last)),
    };
    // A try whose time is still to come tells nothing; neither does last night's.
    let failed = last_try.filter(|tried| !tried.ok && (tonight..=now).contains(&tried.at));
    if let Some(failed) = failed {
        let again = (failed.at + pause(failed.failures)).min(tomorrow);
        if again > now {
            let reason = format!("the last try, at {}, failed", time_text(failed.at));
            return Due::Later { at: again, reason };
        }
    }
    Due::Now { reason: missing }
}

/// "2026-11-20 03:00:00 UTC"
fn time_text(at: i64) -> String {
    format!("{} UTC", iso(at.saturating_mul(1_000_000))[..19].replace('T', " "))
}

/// Seconds from a failed try to the next one.
fn pause(failures: u32) -> i64 {
    let doublings = failures.saturating_sub(1).min(10);
    (FIRST_RETRY << doublings).min(LONGEST_RETRY)
}

/// How often in a row it has failed, counting a try that begins now, for its record.
pub fn failures_with(last_try: Option<&Try>, minutes: u32, now: i64) -> u32 {
    let tonight = night(now, minutes);
    let before = last_try.filter(|tried| !tried.ok && (tonight..=now).contains(&tried.at));
    before.map_or(0, |tried| tried.failures).saturating_add(1)
}

/// Why a verification is due, if it is: never done, `days` ago or more, or the last one failed and there is a backup
/// that is newer than the one it found bad. `last`: when, and whether that was so. `last_try`: when one was begun
/// last, which is not repeated in the same night.
pub fn verification_due(
    last: Option<Verification>,
    last_try: Option<i64>,
    days: u32,
    minutes: u32,
    now: i64,
) -> Option<String> {
    if days == 0 || last_try.is_some_and(|at| (night(now, minutes)..=now).contains(&at)) {
        return None;
    }
    match last {
        None => Some("no backup has been verified yet".into()),
        Some(last) if !last.good => last
            .newer
            .then(|| format!("the one of {} failed, and there is a newer backup", time_text(last.at))),
        Some(last) if last.at > now => {
            Some(format!("the last one's time, {}, is still to come", time_text(last.at)))
        }
        Some(last) if last.at <= now - i64::from(days) * DAY => {
            Some(format!("the last one was at {}", time_text(last.at)))
        }
        Some(_) => None,
    }
}

/// The last verification of a database's backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// When, seconds since 1970.
    pub at: i64,
    /// The backup was good.
    pub good: bool,
    /// There is a newer backup than that one.
    pub newer: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 03:00
    const TIME: u32 = 180;

    fn at(text: &str) -> i64 {
        crate::postgres::time::since(&format!("2026-{text}:00"), 0).unwrap() / 1_000_000
    }

    fn failed(text: &str, failures: u32) -> Option<Try> {
        Some(Try { at: at(text), ok: false, failures })
    }

    fn ok(text: &str) -> Option<Try> {
        Some(Try { at: at(text), ok: true, failures: 0 })
    }

    /// "now: why" or "11-21 03:00: why".
    fn says(last: Option<&str>, tried: Option<Try>, now: &str) -> String {
        match due(last.map(at), tried.as_ref(), TIME, at(now)) {
            Due::Now { reason } => format!("now: {reason}"),
            Due::Later { at, reason } => format!("{}: {reason}", &time_text(at)[5..16]),
        }
    }

    #[test]
    fn the_night_begins_at_its_hour() {
        for (now, begin) in [
            ("11-20 03:00", "11-20 03:00"),
            ("11-20 02:59", "11-19 03:00"),
            ("11-20 23:59", "11-20 03:00"),
            ("11-21 00:00", "11-20 03:00"),
        ] {
            assert_eq!(night(at(now), TIME), at(begin), "{now}");
        }
        assert_eq!(night(at("11-20 00:00"), 0), at("11-20 00:00"));
        assert_eq!(night(at("11-20 23:58"), 23 * 60 + 59), at("11-19 23:59"));
        assert_eq!(night(-1, 0), -DAY);
    }

    #[test]
    fn by_the_table() {
        let cases: &[(Option<&str>, Option<Try>, &str, &str)] = &[
            (None, None, "11-20 12:00", "now: there is no scheduled backup yet"),
            (None, None, "11-20 02:00", "now: there is no scheduled backup yet"),
            (
                Some("11-20 03:00"),
                None,
                "11-20 03:05",
                "11-21 03:00: tonight's was begun at 2026-11-20 03:00:00 UTC",
            ),
            (
                Some("11-20 03:00"),
                None,
                "11-21 02:59",
                "11-21 03:00: tonight's was begun at 2026-11-20 03:00:00 UTC",
            ),
            (
                Some("11-20 03:00"),
                None,
                "11-21 03:00",
                "now: the night's is due since 2026-11-21 03:00:00 UTC",
            ),
            (
                Some("11-20 03:00"),
                ok("11-20 03:00"),
                "11-21 03:00",
                "now: the night's is due since 2026-11-21 03:00:00 UTC",
            ),
            (
                Some("11-20 17:00"),
                None,
                "11-21 03:00",
                "now: the night's is due since 2026-11-21 03:00:00 UTC",
            ),
            // Missed ones are caught up, once.
            (
                Some("11-10 03:00"),
                None,
                "11-20 12:00",
                "now: nights were missed: the last one was begun at 2026-11-10 03:00:00 UTC",
            ),
            (
                Some("11-20 12:00"),
                None,
                "11-20 12:01",
                "11-21 03:00: tonight's was begun at 2026-11-20 12:00:00 UTC",
            ),
            // What failed.
            (
                None,
                failed("11-20 12:00", 1),
                "11-20 12:00",
                "11-20 12:15: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (None, failed("11-20 12:00", 1), "11-20 12:15", "now: there is no scheduled backup yet"),
            (
                None,
                failed("11-20 12:00", 2),
                "11-20 12:15",
                "11-20 12:30: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (
                None,
                failed("11-20 12:00", 3),
                "11-20 12:15",
                "11-20 13:00: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (
                None,
                failed("11-20 12:00", 4),
                "11-20 12:15",
                "11-20 14:00: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (
                None,
                failed("11-20 12:00", 5),
                "11-20 12:15",
                "11-20 16:00: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (
                None,
                failed("11-20 12:00", u32::MAX),
                "11-20 12:15",
                "11-20 16:00: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            // Not beyond the next night, and not from the last one on.
            (
                None,
                failed("11-21 02:00", 9),
                "11-21 02:30",
                "11-21 03:00: the last try, at 2026-11-21 02:00:00 UTC, failed",
            ),
            (None, failed("11-21 02:59", 9), "11-21 03:00", "now: there is no scheduled backup yet"),
            // A failure before tonight's good one is over.
            (
                Some("11-20 04:00"),
                failed("11-20 03:30", 2),
                "11-20 05:00",
                "11-21 03:00: tonight's was begun at 2026-11-20 04:00:00 UTC",
            ),
            // One of several databases has failed: the others have theirs.
            (
                Some("11-20 03:00"),
                failed("11-20 03:00", 1),
                "11-20 03:01",
                "11-21 03:00: tonight's was begun at 2026-11-20 03:00:00 UTC",
            ),
            (
                Some("11-19 03:00"),
                failed("11-20 03:00", 1),
                "11-20 03:01",
                "11-20 03:15: the last try, at 2026-11-20 03:00:00 UTC, failed",
            ),
            // The clock was set back: a little, by days, before a failed try.
            (
                Some("11-20 03:10"),
                None,
                "11-20 03:05",
                "11-21 03:00: tonight's was begun at 2026-11-20 03:10:00 UTC",
            ),
            (
                Some("11-21 02:59"),
                None,
                "11-20 03:05",
                "11-21 03:00: tonight's was begun at 2026-11-21 02:59:00 UTC",
            ),
            (
                Some("11-20 03:10"),
                None,
                "11-20 02:55",
                "now: the clock was set back: the last backup's time, 2026-11-20 03:10:00 UTC, is still to come",
            ),
            (
                Some("12-24 03:00"),
                None,
                "11-20 12:00",
                "now: the clock was set back: the last backup's time, 2026-12-24 03:00:00 UTC, is still to come",
            ),
            (
                Some("12-24 03:00"),
                failed("11-20 12:00", 1),
                "11-20 12:01",
                "11-20 12:15: the last try, at 2026-11-20 12:00:00 UTC, failed",
            ),
            (None, failed("12-24 03:00", 9), "11-20 12:00", "now: there is no scheduled backup yet"),
        ];
        for (last, tried, now, expected) in cases {
            assert_eq!(says(*last, tried.clone(), now), *expected, "{last:?} {tried:?} {now}");
        }
    }

    /// Lives through days with a clock that jumps; every due backup is taken. Gives the number taken.
    fn live(steps: &[(i64, i64)], fails: bool) -> u32 {
        let (mut now, mut last, mut tried) = (at("11-20 12:00"), None, None::<Try>);
        let (mut taken, mut silent) = (0, 0);
        for (step, jump) in steps {
            now += step + jump;
            silent += step;
            match due(last, tried.as_ref(), TIME, now) {
                Due::Now { .. } => {
                    let failures = failures_with(tried.as_ref(), TIME, now);
                    tried = Some(Try { at: now, ok: !fails, failures: if fails { failures } else { 0 } });
                    if !fails {
                        last = Some(now);
                    }
                    (taken, silent) = (taken + 1, 0);
                }
                Due::Later { at, .. } => assert!(at > now && at <= now + DAY, "{at} at {now}"),
            }
            // A day, and what the clock went back.
            assert!(silent <= DAY + 300, "silent for {silent} s");
        }
        taken
    }

    #[test]
    fn never_a_tight_loop_and_never_silent_for_a_day() {
        let minutes = |n: usize| vec![(60, 0); n];
        // Ten days, one minute each.
        assert_eq!(live(&minutes(14_400), false), 11);
        // Set back by 40 days, forward by 40, back by two minutes: each costs at most one more.
        let mut jumps = minutes(14_400);
        jumps[3_000].1 = -40 * DAY;
        jumps[6_000].1 = 40 * DAY;
        jumps[9_000].1 = -120;
        assert!((11..=14).contains(&live(&jumps, false)), "{}", live(&jumps, false));
        // What always fails is tried at once, after 15, 30, 60, 120 minutes, then every four hours, until the night.
        let failing = live(&minutes(1440), true);
        assert_eq!(failing, 13);
    }

    #[test]
    fn plans_have_herokus_names() {
        assert_eq!(Plan::named("auto-month").unwrap().keep(), Keep { daily: 7, weekly: 5, manual: 10 });
        assert_eq!(Plan::named("auto-week").unwrap().keep(), Keep { daily: 7, weekly: 1, manual: 5 });
        assert_eq!(Plan::named("off"), None);
        for plan in Plan::ALL {
            assert_eq!(Plan::named(plan.name()), Some(plan));
        }
    }

    #[test]
    fn verification_comes_every_so_many_days() {
        let verified = |text: &str, good, newer| Some(Verification { at: at(text), good, newer });
        let is_due = |last, tried: Option<&str>, days| {
            verification_due(last, tried.map(at), days, TIME, at("11-20 04:00")).unwrap_or_default()
        };
        assert_eq!(is_due(None, None, 30), "no backup has been verified yet");
        assert_eq!(is_due(None, None, 0), "");
        assert_eq!(is_due(verified("11-19 04:00", true, true), None, 30), "");
        assert_eq!(is_due(verified("10-21 04:01", true, true), None, 30), "");
        assert_eq!(
            is_due(verified("10-21 04:00", true, true), None, 30),
            "the last one was at 2026-10-21 04:00:00 UTC"
        );
        assert_eq!(
            is_due(verified("11-19 04:00", false, true), None, 30),
            "the one of 2026-11-19 04:00:00 UTC failed, and there is a newer backup"
        );
        assert_eq!(is_due(verified("11-19 04:00", false, false), None, 30), "");
        assert_eq!(
            is_due(verified("12-24 04:00", true, true), None, 30),
            "the last one's time, 2026-12-24 04:00:00 UTC, is still to come"
        );
        // What could not be done is not repeated in the same night, but in the next.
        assert_eq!(is_due(None, Some("11-20 03:30"), 30), "");
        assert_eq!(is_due(None, Some("11-19 03:30"), 30), "no backup has been verified yet");
        assert_eq!(is_due(None, Some("12-24 03:30"), 30), "no backup has been verified yet");
    }
}
