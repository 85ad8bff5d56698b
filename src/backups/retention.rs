//! Owns which backups stay: the newest of each of the last days and weeks, the newest by hand, and always a good
//! one. Decided from a list and a time, without touching anything.

use super::manifest::{BackupId, By, Kind};
use crate::postgres::time::civil;
use serde::Serialize;
use std::collections::BTreeMap;

/// How many stay, of each database and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Keep {
    /// Days (UTC) of which the newest scheduled one stays.
    pub daily: u32,
    /// Weeks (from Monday, UTC) of which the newest scheduled one stays.
    pub weekly: u32,
    /// Newest ones by hand.
    pub manual: u32,
}

/// What has to be known of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its name. The numbers tell the order, whatever the clock did.
    pub id: BackupId,
    /// Its kind.
    pub kind: Kind,
    /// Its database; none of a physical one.
    pub database: Option<String>,
    /// When it was begun, seconds since 1970.
    pub at: i64,
    /// A verification found it damaged.
    pub bad: bool,
}

/// What becomes of one backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Its name.
    pub id: BackupId,
    /// It stays.
    pub keep: bool,
    /// Why, as a sentence for a person.
    pub reason: String,
}

/// Decides on each backup, in the order of the list.
///
/// A day or week counts when it has a backup; the last ones are found by going back through the numbers, so a clock
/// that was set back never makes the newest backup look old. One whose time is still to come stays, and takes nobody's
/// place. A bad one takes nobody's place either. Of each database and kind at least one good backup stays.
pub fn plan(backups: &[Backup], keep: Keep, now: i64) -> Vec<Decision> {
    let mut groups: BTreeMap<(bool, Option<&str>), Vec<&Backup>> = BTreeMap::new();
    for backup in backups {
        let group = (backup.kind == Kind::Physical, backup.database.as_deref());
        groups.entry(group).or_default().push(backup);
    }
    let mut decided = BTreeMap::new();
    for mut group in groups.into_values() {
        group.sort_by_key(|backup| std::cmp::Reverse(backup.id.number));
        for by in [By::Schedule, By::Hand] {
            let of: Vec<&Backup> = group.iter().filter(|backup| backup.id.by == by).copied().collect();
            let current: Vec<&Backup> =
                of.iter().filter(|backup| backup.at <= now && !backup.bad).copied().collect();
            decided.extend(match by {
                By::Schedule => scheduled(&current, keep),
                By::Hand => manual(&current, keep.manual),
            });
            for backup in of.iter().filter(|backup| backup.at > now) {
                let reason = format!(
                    "kept: its time, {}, is still to come; the clock was set back",
                    day_text(backup.at)
                );
                decided.insert(backup.id, (true, reason));
            }
        }
        keep_one_good(&group, now, &mut decided);
        for backup in group.iter().filter(|backup| backup.bad && backup.at <= now) {
            decided.insert(backup.id, of_bad(backup, &group, now));
        }
    }
    backups
        .iter()
        .map(|backup| {
            let (keep, reason) = decided.remove(&backup.id).unwrap_or((true, "kept".into()));
            Decision { id: backup.id, keep, reason }
        })
        .collect()
}

type Decided = BTreeMap<BackupId, (bool, String)>;

/// The newest of each of the last days and weeks. `current`: good ones, the greatest number first.
fn scheduled(current: &[&Backup], keep: Keep) -> Decided {
    let (days, weeks) = (newest_of(current, keep.daily, day), newest_of(current, keep.weekly, week));
    let decide = |backup: &&Backup| {
        let (day, week) = (day(backup.at), week(backup.at));
        let is = |newest: Option<&BackupId>| newest == Some(&backup.id);
        let decision = match (is(days.get(&day)), is(weeks.get(&week))) {
            (true, true) => (true, format!("kept: newest of {} and of its week", day_text(backup.at))),
            (true, false) => (true, format!("kept: newest of {}", day_text(backup.at))),
            (false, true) => (true, format!("kept: newest of the week of {}", monday_text(week))),
            (false, false) => (false, why_not(backup, keep, days.get(&day), weeks.get(&week))),
        };
        (backup.id, decision)
    };
    current.iter().map(decide).collect()
}

fn why_not(backup: &Backup, keep: Keep, of_day: Option<&BackupId>, of_week: Option<&BackupId>) -> String {
    match (of_day, of_week) {
        (Some(id), _) => format!("removed: a later one of the same day is kept, {id}"),
        (None, Some(id)) => format!("removed: a later one of the same week is kept, {id}"),
        (None, None) => {
            let (days, weeks) = (counted(keep.daily, "day"), counted(keep.weekly, "week"));
            format!("removed: {} is before the {days} and {weeks} that are kept", day_text(backup.at))
        }
    }
}

/// The first backup seen of each of the first `count` periods.
fn newest_of(current: &[&Backup], count: u32, period: fn(i64) -> i64) -> BTreeMap<i64, BackupId> {
    let mut found = BTreeMap::new();
    for backup in current {
        let period = period(backup.at);
        if found.len() < count as usize {
            found.entry(period).or_insert(backup.id);
        }
    }
    found
}

fn manual(current: &[&Backup], count: u32) -> Decided {
    let decide = |(rank, backup): (usize, &&Backup)| {
        let decision = match rank < count as usize {
            true => (true, format!("kept: among the newest {count} by hand")),
            false => (false, format!("removed: not among the newest {count} by hand")),
        };
        (backup.id, decision)
    };
    current.iter().enumerate().map(decide).collect()
}

/// However few are to be kept: without this one nothing could be restored.
fn keep_one_good(group: &[&Backup], now: i64, decided: &mut Decided) {
    let good = || group.iter().filter(|backup| !backup.bad && backup.at <= now);
    let stays = good().any(|backup| decided.get(&backup.id).is_some_and(|(keep, _)| *keep));
    // Numbers of the two kinds of names say nothing of each other.
    if let Some(newest) = good().max_by_key(|backup| (backup.at, backup.id.number))
        && !stays
    {
        decided.insert(newest.id, (true, "kept: the only good one that is left".into()));
    }
}

fn of_bad(bad: &Backup, group: &[&Backup], now: i64) -> (bool, String) {
    let is_later = |other: &&&Backup| match other.id.by == bad.id.by {
        true => other.id.number > bad.id.number,
        false => other.at > bad.at,
    };
    let later =
        group.iter().filter(|other| !other.bad && other.at <= now).filter(is_later).max_by_key(|o| o.at);
    match later {
        Some(good) => (false, format!("removed: its verification failed, and {} is later", good.id)),
        None => (true, "kept: its verification failed, but there is no later good one".into()),
    }
}

fn day(at: i64) -> i64 {
    at.div_euclid(86_400)
}

/// Weeks since the Monday before 1970, a Thursday.
fn week(at: i64) -> i64 {
    (day(at) + 3).div_euclid(7)
}

/// "2026-11-20"
pub fn day_text(at: i64) -> String {
    let (year, month, day) = civil(day(at));
    format!("{year:04}-{month:02}-{day:02}")
}

fn monday_text(week: i64) -> String {
    day_text((week * 7 - 3) * 86_400)
}

/// "1 day", "7 days"
fn counted(n: u32, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// 2026-11-20 is a Friday.
    const NOW: &str = "11-20 12:00";

    /// "11-20 03:00" of 2026 as seconds.
    fn at(text: &str) -> i64 {
        crate::postgres::time::since(&format!("2026-{text}:00"), 0).unwrap() / 1_000_000
    }

    fn backup(text: &str) -> Backup {
        let (text, bad) = text.strip_suffix(" bad").map_or((text, false), |text| (text, true));
        let mut words = text.splitn(2, ' ');
        let (id, rest) = (words.next().unwrap(), words.next().unwrap());
        let (when, database) = (&rest[..11], rest[11..].trim());
        let (kind, database) = match database {
            "" => (Kind::Logical, Some("shop")),
            "physical" => (Kind::Physical, None),
            other => (Kind::Logical, Some(other)),
        };
        Backup { id: id.parse().unwrap(), kind, database: database.map(str::to_owned), at: at(when), bad }
    }

    /// Backups that are to go and whose going would leave their database and kind without a good one.
    fn last_good_ones(backups: &[Backup], removed: &BTreeSet<BackupId>) -> Vec<BackupId> {
        let same = |a: &Backup, b: &Backup| a.kind == b.kind && a.database == b.database;
        let stays = |of: &Backup| {
            backups.iter().any(|other| same(of, other) && !other.bad && !removed.contains(&other.id))
        };
        let goes = |backup: &&Backup| removed.contains(&backup.id) && !backup.bad;
        backups.iter().filter(goes).filter(|backup| !stays(backup)).map(|backup| backup.id).collect()
    }

    fn decide(backups: &[&str], keep: (u32, u32, u32)) -> Vec<Decision> {
        let backups: Vec<Backup> = backups.iter().map(|text| backup(text)).collect();
        let keep = Keep { daily: keep.0, weekly: keep.1, manual: keep.2 };
        let decided = plan(&backups, keep, at(NOW));
        let removed = decided.iter().filter(|d| !d.keep).map(|d| d.id).collect();
        assert_eq!(last_good_ones(&backups, &removed), [], "a good one stays: {decided:?}");
        assert_eq!(decided.len(), backups.len());
        decided
    }

    /// The names of those that stay.
    fn kept(backups: &[&str], keep: (u32, u32, u32)) -> String {
        let decided = decide(backups, keep);
        decided.iter().filter(|d| d.keep).map(|d| d.id.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// One each night at 03:00, the last one tonight, the oldest first: a001 …
    fn nights(count: i64) -> Vec<String> {
        let night = |n: i64| {
            let when = at("11-20 03:00") - (count - 1 - n) * 86_400;
            let text = crate::postgres::time::iso(when * 1_000_000);
            format!("a{:03} {}", n + 1, text[5..16].replace('T', " "))
        };
        (0..count).map(night).collect()
    }

    type Case = (&'static str, &'static [&'static str], (u32, u32, u32), &'static str);

    #[test]
    fn by_the_table() {
        let cases: &[Case] = &[
            ("nothing", &[], (7, 5, 10), ""),
            ("one", &["a001 11-20 03:00"], (7, 5, 10), "a001"),
            ("one by hand", &["b001 11-20 03:00"], (7, 5, 10), "b001"),
            ("an old one", &["a001 01-01 03:00"], (7, 5, 10), "a001"),
            ("two of a day", &["a001 11-20 03:00", "a002 11-20 04:00"], (7, 5, 10), "a002"),
            (
                "three of a day",
                &["a001 11-20 03:00", "a002 11-20 04:00", "a003 11-20 05:00"],
                (7, 5, 10),
                "a003",
            ),
            ("two days", &["a001 11-19 03:00", "a002 11-20 03:00"], (7, 5, 10), "a001 a002"),
            ("around midnight", &["a001 11-19 23:59", "a002 11-20 00:00"], (2, 0, 0), "a001 a002"),
            ("one day is kept", &["a001 11-19 03:00", "a002 11-20 03:00"], (1, 0, 0), "a002"),
            ("a week has one", &["a001 11-19 03:00", "a002 11-20 03:00"], (0, 1, 0), "a002"),
            ("Sunday and Monday", &["a001 11-15 03:00", "a002 11-16 03:00"], (0, 2, 0), "a001 a002"),
            ("Monday and Sunday", &["a001 11-09 03:00", "a002 11-15 03:00"], (0, 2, 0), "a002"),
            ("Sunday, Monday, one week", &["a001 11-15 03:00", "a002 11-16 03:00"], (0, 1, 0), "a002"),
            // A day without one does not count.
            ("gaps", &["a001 09-01 03:00", "a002 10-01 03:00", "a003 11-20 03:00"], (2, 0, 0), "a002 a003"),
            (
                "gaps of weeks",
                &["a001 09-01 03:00", "a002 10-01 03:00", "a003 11-20 03:00"],
                (0, 2, 0),
                "a002 a003",
            ),
            (
                "of a week beyond the days",
                &["a001 11-10 03:00", "a002 11-11 03:00", "a003 11-20 03:00"],
                (1, 2, 0),
                "a002 a003",
            ),
            // By hand.
            (
                "by hand, two of three",
                &["b001 11-01 03:00", "b002 11-02 03:00", "b003 11-03 03:00"],
                (7, 5, 2),
                "b002 b003",
            ),
            ("by hand, of one day", &["b001 11-20 03:00", "b002 11-20 04:00"], (7, 5, 10), "b001 b002"),
            ("by hand, however old", &["b001 01-01 03:00", "a001 11-20 03:00"], (7, 5, 10), "b001 a001"),
            ("by hand do not take days", &["a001 11-20 03:00", "b001 11-20 04:00"], (7, 5, 10), "a001 b001"),
            (
                "scheduled do not take places",
                &["b001 11-20 03:00", "a001 11-20 04:00"],
                (1, 0, 1),
                "b001 a001",
            ),
            ("none by hand", &["b001 11-20 03:00", "a001 11-20 04:00"], (1, 0, 0), "a001"),
            ("only those by hand", &["b001 11-20 03:00", "a001 11-20 04:00"], (0, 0, 1), "b001"),
            // Databases and kinds do not meet.
            ("two databases", &["a001 11-20 03:00", "a002 11-20 04:00 blog"], (7, 5, 10), "a001 a002"),
            (
                "two databases, twice",
                &["a001 11-20 03:00", "a002 11-20 03:00 blog", "a003 11-20 04:00", "a004 11-20 04:00 blog"],
                (7, 5, 10),
                "a003 a004",
            ),
            ("two kinds", &["a001 11-20 03:00", "a002 11-20 04:00 physical"], (7, 5, 10), "a001 a002"),
            (
                "physical ones",
                &["a001 11-20 03:00 physical", "a002 11-20 04:00 physical"],
                (7, 5, 10),
                "a002",
            ),
            (
                "by hand of two databases",
                &["b001 11-20 03:00", "b002 11-20 04:00 blog"],
                (7, 5, 1),
                "b001 b002",
            ),
            (
                "one whose database is gone",
                &["a001 01-01 03:00 gone", "a002 11-20 03:00"],
                (1, 0, 0),
                "a001 a002",
            ),
            // Never the only good one.
            ("nothing is to be kept", &["a001 11-20 03:00"], (0, 0, 0), "a001"),
            ("nothing is to be kept by hand", &["b001 11-20 03:00"], (0, 0, 0), "b001"),
            ("nothing, of several", &["a001 11-19 03:00", "a002 11-20 03:00"], (0, 0, 0), "a002"),
            ("nothing, of both", &["a001 11-19 03:00", "b001 11-20 03:00"], (0, 0, 0), "b001"),
            (
                "nothing, of both, scheduled later",
                &["b001 11-19 03:00", "a001 11-20 03:00"],
                (0, 0, 0),
                "a001",
            ),
            (
                "nothing, of two databases",
                &["a001 11-19 03:00", "a002 11-20 03:00 blog"],
                (0, 0, 0),
                "a001 a002",
            ),
            (
                "nothing, of two kinds",
                &["a001 11-19 03:00", "a002 11-20 03:00 physical"],
                (0, 0, 0),
                "a001 a002",
            ),
            // Bad ones.
            ("a bad one alone", &["a001 11-20 03:00 bad"], (7, 5, 10), "a001"),
            ("bad after good", &["a001 11-19 03:00", "a002 11-20 03:00 bad"], (7, 5, 10), "a001 a002"),
            ("bad before good", &["a001 11-19 03:00 bad", "a002 11-20 03:00"], (7, 5, 10), "a002"),
            ("bad is not the day's", &["a001 11-20 03:00", "a002 11-20 04:00 bad"], (7, 5, 10), "a001 a002"),
            (
                "bad is not the only good one",
                &["a001 11-19 03:00", "a002 11-20 03:00 bad"],
                (1, 0, 0),
                "a001 a002",
            ),
            (
                "bad takes no day",
                &["a001 11-18 03:00", "a002 11-19 03:00 bad", "a003 11-20 03:00"],
                (2, 0, 0),
                "a001 a003",
            ),
            (
                "bad takes no place",
                &["b001 11-18 03:00", "b002 11-19 03:00 bad", "b003 11-20 03:00"],
                (7, 5, 2),
                "b001 b003",
            ),
            ("two bad ones", &["a001 11-19 03:00 bad", "a002 11-20 03:00 bad"], (1, 0, 0), "a001 a002"),
            (
                "bad, and good by hand later",
                &["a001 11-19 03:00 bad", "b001 11-20 03:00"],
                (7, 5, 10),
                "b001",
            ),
            (
                "bad, and good by hand before",
                &["b001 11-18 03:00", "a001 11-19 03:00 bad"],
                (7, 5, 10),
                "b001 a001",
            ),
            (
                "bad of another database",
                &["a001 11-19 03:00 bad", "a002 11-20 03:00 blog"],
                (7, 5, 10),
                "a001 a002",
            ),
            // The clock was set back.
            ("still to come", &["a001 11-20 03:00", "a002 12-24 03:00"], (1, 0, 0), "a001 a002"),
            (
                "still to come, and later ones",
                &["a001 12-24 03:00", "a002 11-19 03:00", "a003 11-20 03:00"],
                (1, 0, 0),
                "a001 a003",
            ),
            (
                "all still to come",
                &["a001 12-23 03:00", "a002 12-24 03:00", "a003 12-24 04:00"],
                (1, 1, 0),
                "a001 a002 a003",
            ),
            ("still to come, by hand", &["b001 11-20 03:00", "b002 12-24 03:00"], (7, 5, 1), "b001 b002"),
            (
                "still to come and nothing to keep",
                &["a001 11-20 03:00", "a002 12-24 03:00"],
                (0, 0, 0),
                "a001 a002",
            ),
            ("bad and still to come", &["a001 11-20 03:00", "a002 12-24 03:00 bad"], (1, 0, 0), "a001 a002"),
            (
                "the newest number looks old",
                &["a001 11-18 03:00", "a002 11-19 03:00", "a003 10-01 03:00"],
                (1, 0, 0),
                "a003",
            ),
            (
                "the newest number looks old, two days",
                &["a001 11-18 03:00", "a002 11-19 03:00", "a003 10-01 03:00"],
                (2, 0, 0),
                "a002 a003",
            ),
            (
                "the day's newest is the number's",
                &["a001 11-20 09:00", "a002 11-20 03:00"],
                (1, 0, 0),
                "a002",
            ),
            ("beyond a thousand", &["a999 11-20 03:00", "a1000 11-20 04:00"], (1, 0, 0), "a1000"),
        ];
        assert!(cases.len() >= 50, "{}", cases.len());
        for (name, backups, keep, expected) in cases {
            assert_eq!(kept(backups, *keep), *expected, "{name}");
        }
    }

    #[test]
    fn a_year_of_nights_leaves_seven_days_and_five_weeks() {
        let all = nights(300);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        // Friday the 20th back to Saturday the 14th; Sundays the 15th (has a day), 8th, 1st and 25th.
        assert_eq!(kept(&all, (7, 5, 10)), "a274 a281 a288 a294 a295 a296 a297 a298 a299 a300");
    }

    #[test]
    fn night_after_night_as_many_as_promised_stay() {
        let keep = Keep { daily: 7, weekly: 5, manual: 10 };
        let mut have: Vec<Backup> = Vec::new();
        for night in 0..200 {
            let now = at("01-01 03:00") + night * 86_400;
            let id = BackupId { by: By::Schedule, number: night as u32 + 1 };
            have.push(Backup { id, kind: Kind::Logical, database: Some("shop".into()), at: now, bad: false });
            let decided = plan(&have, keep, now + 600);
            have.retain(|backup| decided.iter().any(|d| d.id == backup.id && d.keep));
            let days: BTreeSet<i64> = have.iter().map(|b| day(b.at)).collect();
            assert!(
                (0..7.min(night + 1)).all(|ago| days.contains(&(day(now) - ago))),
                "night {night}: {days:?}"
            );
            let weeks: BTreeSet<i64> = have.iter().map(|b| week(b.at)).collect();
            let first = week(at("01-01 03:00"));
            let wanted = (0..5).map(|ago| week(now) - ago).filter(|week| *week >= first);
            assert!(wanted.clone().all(|week| weeks.contains(&week)), "night {night}");
            assert!(have.len() <= 12, "night {night}: {}", have.len());
        }
    }

    #[test]
    fn each_has_a_reason_that_a_person_understands() {
        let reasons = |backups: &[&str], keep| -> Vec<String> {
            decide(backups, keep).into_iter().map(|d| d.reason).collect()
        };
        assert_eq!(
            reasons(
                &[
                    "a001 10-01 03:00",
                    "a002 11-11 03:00",
                    "a003 11-12 03:00",
                    "a004 11-20 03:00",
                    "a005 11-20 04:00",
                    "a006 12-24 03:00",
                    "b001 11-01 03:00",
                    "b002 11-02 03:00",
                ],
                (1, 2, 1)
            ),
            [
                "removed: 2026-10-01 is before the 1 day and 2 weeks that are kept",
                "removed: a later one of the same week is kept, a003",
                "kept: newest of the week of 2026-11-09",
                "removed: a later one of the same day is kept, a005",
                "kept: newest of 2026-11-20 and of its week",
                "kept: its time, 2026-12-24, is still to come; the clock was set back",
                "removed: not among the newest 1 by hand",
                "kept: among the newest 1 by hand",
            ]
        );
        assert_eq!(
            reasons(&["a001 11-18 03:00 bad", "a002 11-19 03:00", "a003 11-20 03:00 bad"], (0, 0, 0)),
            [
                "removed: its verification failed, and a002 is later",
                "kept: the only good one that is left",
                "kept: its verification failed, but there is no later good one",
            ]
        );
    }

    #[test]
    fn a_removal_that_would_leave_no_good_one_is_seen() {
        let backups =
            [backup("a001 11-18 03:00"), backup("a002 11-19 03:00 bad"), backup("a003 11-20 03:00 blog")];
        let removed = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<BackupId>>();
        let found = |ids: &[&str]| last_good_ones(&backups, &removed(ids)).len();
        assert_eq!((found(&["a001"]), found(&["a002"]), found(&["a001", "a003"])), (1, 0, 2));
    }
}
