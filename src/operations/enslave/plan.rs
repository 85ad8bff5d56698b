//! Owns the decision: how two clusters are related, which plan is the cheapest that is correct, and whose
//! data would be lost by it. Pure: everything it needs is given.

use crate::error::{Error, Result};
use crate::postgres::wal::{History, Lsn, SystemId, Timeline};
use serde::Serialize;

/// The cluster that is here now.
#[derive(Clone, Debug)]
pub struct Ours {
    /// Its system identifier.
    pub system_id: SystemId,
    /// The newest timeline it has followed or made.
    pub history: Option<History>,
    /// That timeline.
    pub timeline: Timeline,
    /// The end of the WAL it has: written by itself or received.
    pub end: Lsn,
    /// It is set up as a standby (so nothing was written here that was not received).
    pub is_standby: bool,
    /// It is running, and as a primary: its end of WAL still moves.
    pub is_live_primary: bool,
}

/// The source.
#[derive(Clone, Debug)]
pub struct Theirs {
    /// Its system identifier.
    pub system_id: SystemId,
    /// The history of its timeline.
    pub history: History,
    /// The end of its WAL.
    pub end: Lsn,
}

/// How our cluster stands to theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Another cluster altogether.
    Other,
    /// Everything we have, they have: streaming can go on from here.
    Behind,
    /// The same cluster up to this point; what we have past it they do not have.
    DivergedAt(Timeline, Lsn),
    /// The same cluster, but where the two parted cannot be known: why.
    Unknown(&'static str),
}

/// Finds the relation (POSTGRES.md, "When a standby may simply be pointed at another primary").
pub fn relation(ours: &Ours, theirs: &Theirs) -> Relation {
    if ours.system_id != theirs.system_id {
        return Relation::Other;
    }
    let Some(history) = &ours.history else {
        return Relation::Unknown("the history file of its timeline is missing");
    };
    match common_until(history, &theirs.history) {
        Common::Everything if !ours.is_standby => Relation::Unknown(
            "it is no standby, yet on the source's own timeline: a copy was started without promotion",
        ),
        Common::Everything if ours.end <= theirs.end => Relation::Behind,
        Common::Everything => Relation::DivergedAt(ours.timeline, theirs.end),
        Common::Until(timeline, lsn) => {
            // A live primary writes at least a checkpoint when it stops, so it is past the point by then.
            if ours.timeline == timeline && ours.end <= lsn && !ours.is_live_primary {
                Relation::Behind
            } else {
                Relation::DivergedAt(timeline, lsn)
            }
        }
        Common::Nothing => Relation::Unknown("the two histories have nothing in common"),
    }
}

enum Common {
    /// Both are on the same timeline, reached in the same way.
    Everything,
    /// Common up to this point of this timeline, where one of them, or both, left it.
    Until(Timeline, Lsn),
    Nothing,
}

fn common_until(a: &History, b: &History) -> Common {
    let steps = |history: &History| -> Vec<(Timeline, Option<Lsn>)> {
        let left = history.entries.iter().map(|entry| (entry.timeline, Some(entry.switch)));
        left.chain([(history.timeline, None)]).collect()
    };
    let mut last = None;
    for ((ours, our_end), (theirs, their_end)) in steps(a).into_iter().zip(steps(b)) {
        if ours != theirs {
            break;
        }
        match (our_end, their_end) {
            (None, None) => return Common::Everything,
            (Some(x), Some(y)) if x == y => last = Some((ours, x)),
            (x, y) => {
                let until = [x, y].into_iter().flatten().min().expect("one of them left");
                return Common::Until(ours, until);
            }
        }
    }
    match last {
        Some((timeline, lsn)) => Common::Until(timeline, lsn),
        None => Common::Nothing,
    }
}

/// What would be lost if the cluster here went away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// There is no cluster here.
    NoCluster,
    /// A cluster in which nobody has created anything.
    Fresh,
    /// Nothing that the source does not have.
    Nothing,
    /// This: a phrase that follows "holds".
    Something(String),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// New connection settings, no data moved.
    Repoint,
    /// The blocks that differ are copied, in place.
    Delta,
    /// Everything is copied.
    Full,
}

/// What becomes of the cluster here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes on as the standby.
    Used,
    /// There is none.
    None,
    /// What differs in it is overwritten.
    Rewritten,
    /// It is removed once the new one is in place.
    Removed,
    /// It is moved aside and kept.
    KeptAside,
}

/// The plan, as `--dry-run` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What is to be done.
    pub action: Action,
    /// Why this and nothing cheaper.
    pub why: String,
    /// What becomes of the cluster here.
    pub fate: Fate,
    /// What is lost, when something is: then the victim has to be named.
    pub loses: Option<String>,
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The cheapest that is correct.
    #[default]
    Auto,
    /// No data moved, or refused.
    Repoint,
    /// Only what differs is copied, or refused.
    Delta,
    /// A full copy.
    Full,
}

/// Decides. `wal_gap` says why the source cannot stream from our end of WAL, when it cannot.
pub fn plan(relation: &Relation, loss: Loss, wal_gap: Option<String>, wanted: Wanted) -> Result<Plan> {
    let against = match (relation, &wal_gap) {
        (_, _) if loss == Loss::NoCluster => Some("there is no cluster here".to_owned()),
        (Relation::Behind, None) => None,
        (Relation::Behind, Some(gap)) => Some(gap.clone()),
        (Relation::Other, _) => {
            Some("the cluster here is another one (its system identifier differs)".into())
        }
        (Relation::DivergedAt(timeline, lsn), _) => {
            Some(format!("the cluster here left the source's history at {lsn} of timeline {timeline}"))
        }
        (Relation::Unknown(why), _) => Some(format!("the cluster here cannot be followed back: {why}")),
    };
    match (against, wanted) {
        (None, Wanted::Auto | Wanted::Repoint) => Ok(Plan {
            action: Action::Repoint,
            why: "the source has everything that this instance has".into(),
            fate: Fate::Used,
            loses: None,
        }),
        (Some(why), Wanted::Repoint) => Err(Error::CannotRepoint { why }),
        (Some(why), Wanted::Delta) if loss == Loss::NoCluster || *relation == Relation::Other => {
            Err(Error::CannotDelta { why })
        }
        // What only this cluster has is not overwritten unless that was asked for: a full copy keeps it aside.
        (against, Wanted::Auto | Wanted::Delta)
            if loss != Loss::NoCluster
                && *relation != Relation::Other
                && (wanted == Wanted::Delta || !matches!(loss, Loss::Something(_))) =>
        {
            let why = against.unwrap_or_else(|| "that was asked for".into());
            let loses = match loss {
                Loss::Something(what) => Some(what),
                _ => None,
            };
            Ok(Plan { action: Action::Delta, why, fate: Fate::Rewritten, loses })
        }
        (against, _) => {
            let why = against.unwrap_or_else(|| "a full copy was asked for".into());
            let (fate, loses) = match loss {
                Loss::NoCluster => (Fate::None, None),
                Loss::Fresh | Loss::Nothing => (Fate::Removed, None),
                Loss::Something(what) => (Fate::KeptAside, Some(what)),
            };
            Ok(Plan { action: Action::Full, why, fate, loses })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal::HistoryEntry;

    fn history(timeline: u32, switches: &[(u32, u64)]) -> History {
        let entries = switches
            .iter()
            .map(|(timeline, lsn)| HistoryEntry {
                timeline: Timeline(*timeline),
                switch: Lsn(*lsn),
                reason: "no recovery target specified".into(),
            })
            .collect();
        History { timeline: Timeline(timeline), entries }
    }

    fn standby(timeline: u32, switches: &[(u32, u64)], end: u64) -> Ours {
        Ours {
            system_id: SystemId(7),
            history: Some(history(timeline, switches)),
            timeline: Timeline(timeline),
            end: Lsn(end),
            is_standby: true,
            is_live_primary: false,
        }
    }

    fn stopped_primary(timeline: u32, switches: &[(u32, u64)], end: u64) -> Ours {
        Ours { is_standby: false, ..standby(timeline, switches, end) }
    }

    fn source(timeline: u32, switches: &[(u32, u64)], end: u64) -> Theirs {
        Theirs { system_id: SystemId(7), history: history(timeline, switches), end: Lsn(end) }
    }

    #[test]
    fn relations() {
        use Relation::*;
        let at = |timeline, lsn| DivergedAt(Timeline(timeline), Lsn(lsn));
        let cases = [
            ("same timeline, behind", standby(1, &[], 50), source(1, &[], 60), Behind),
            ("same timeline, level", standby(1, &[], 60), source(1, &[], 60), Behind),
            ("we have more than the source", standby(1, &[], 70), source(1, &[], 60), at(1, 60)),
            ("follower, new primary", standby(1, &[], 90), source(2, &[(1, 100)], 200), Behind),
            ("follower at the very point", standby(1, &[], 100), source(2, &[(1, 100)], 200), Behind),
            ("follower got past the point", standby(1, &[], 101), source(2, &[(1, 100)], 200), at(1, 100)),
            (
                "old primary, stopped cleanly",
                stopped_primary(1, &[], 100),
                source(2, &[(1, 100)], 200),
                Behind,
            ),
            ("old primary, wrote on", stopped_primary(1, &[], 101), source(2, &[(1, 100)], 200), at(1, 100)),
            ("two promotions ago", standby(1, &[], 90), source(3, &[(1, 100), (2, 150)], 200), Behind),
            (
                "both promoted: the same timeline number twice",
                standby(2, &[(1, 80)], 90),
                source(2, &[(1, 100)], 200),
                at(1, 80),
            ),
            (
                "the wrong way round: we were promoted from them",
                stopped_primary(2, &[(1, 100)], 150),
                source(1, &[], 300),
                at(1, 100),
            ),
            (
                "siblings with a common grandparent",
                stopped_primary(3, &[(1, 100), (2, 150)], 170),
                source(4, &[(1, 100), (2, 140)], 300),
                at(2, 140),
            ),
        ];
        for (name, ours, theirs, expected) in cases {
            assert_eq!(relation(&ours, &theirs), expected, "{name}");
        }
    }

    #[test]
    fn a_running_primary_at_the_point_will_pass_it_when_it_stops() {
        let live = Ours { is_live_primary: true, ..stopped_primary(1, &[], 100) };
        let expected = Relation::DivergedAt(Timeline(1), Lsn(100));
        assert_eq!(relation(&live, &source(2, &[(1, 100)], 200)), expected);
    }

    #[test]
    fn what_cannot_be_known_is_not_guessed() {
        let other = Ours { system_id: SystemId(8), ..standby(1, &[], 1) };
        assert_eq!(relation(&other, &source(1, &[], 2)), Relation::Other);
        let lost = Ours { history: None, ..standby(2, &[], 1) };
        assert!(matches!(relation(&lost, &source(2, &[(1, 1)], 2)), Relation::Unknown(_)));
        let unpromoted = stopped_primary(1, &[], 50);
        assert!(matches!(relation(&unpromoted, &source(1, &[], 60)), Relation::Unknown(_)));
    }

    #[test]
    fn the_cheapest_plan_that_is_correct() {
        let repoint = plan(&Relation::Behind, Loss::Nothing, None, Wanted::Auto).unwrap();
        assert_eq!((repoint.action, repoint.fate), (Action::Repoint, Fate::Used));
        let gap = Some("the source has removed the WAL".to_owned());
        let delta = plan(&Relation::Behind, Loss::Nothing, gap.clone(), Wanted::Auto).unwrap();
        assert_eq!((delta.action, delta.fate, delta.loses), (Action::Delta, Fate::Rewritten, None));
        let full = plan(&Relation::Behind, Loss::Nothing, gap.clone(), Wanted::Full).unwrap();
        assert_eq!((full.action, full.fate, full.loses), (Action::Full, Fate::Removed, None));
        // Commits that nobody else has are kept aside, unless it is said that they may be overwritten.
        let parted = Relation::DivergedAt(Timeline(1), Lsn(100));
        let commits = || Loss::Something("3 commits".into());
        let kept = plan(&parted, commits(), None, Wanted::Auto).unwrap();
        assert_eq!((kept.action, kept.fate), (Action::Full, Fate::KeptAside));
        let lost = plan(&parted, commits(), None, Wanted::Delta).unwrap();
        assert_eq!(
            (lost.action, lost.fate, lost.loses),
            (Action::Delta, Fate::Rewritten, Some("3 commits".into()))
        );
        let unknown = plan(&Relation::Unknown("?"), Loss::Nothing, None, Wanted::Auto).unwrap();
        assert_eq!(unknown.action, Action::Delta);
        assert!(plan(&Relation::Other, Loss::Fresh, None, Wanted::Delta).is_err());
        assert!(plan(&Relation::Other, Loss::NoCluster, None, Wanted::Delta).is_err());
        let fresh = plan(&Relation::Other, Loss::Fresh, None, Wanted::Auto).unwrap();
        assert_eq!((fresh.action, fresh.fate, fresh.loses), (Action::Full, Fate::Removed, None));
        let other = plan(&Relation::Other, Loss::Something("data".into()), None, Wanted::Auto).unwrap();
        assert_eq!((other.fate, other.loses), (Fate::KeptAside, Some("data".into())));
        let asked = plan(&Relation::Behind, Loss::Nothing, None, Wanted::Full).unwrap();
        assert_eq!((asked.action, asked.why.as_str()), (Action::Full, "a full copy was asked for"));
        assert!(plan(&Relation::Behind, Loss::Nothing, gap, Wanted::Repoint).is_err());
        let empty = plan(&Relation::Other, Loss::NoCluster, None, Wanted::Auto).unwrap();
        assert_eq!(empty.fate, Fate::None);
    }
}
