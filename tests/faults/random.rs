//! Kills at random instants, of everything that takes part in an enslave. `PGMAHOUT_FAULT_ROUNDS` says how many (12),
//! `PGMAHOUT_FAULT_SEED` which ones, `PGMAHOUT_FAULT_PLAN` of which plan alone; `scripts/soak` runs many.

use crate::common::*;
use crate::scene::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// The same for the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// pgmahout on the standby-to-be.
    Here,
    /// Its agents on the primary.
    Agents,
    /// The processes of sshd that serve its sessions.
    Sessions,
    /// All of sshd.
    Sshd,
    /// The server of the standby-to-be, whichever it is then.
    Standby,
    /// The server of the primary, which is started again.
    Primary,
}

const VICTIMS: [Victim; 6] =
    [Victim::Here, Victim::Agents, Victim::Sessions, Victim::Sshd, Victim::Standby, Victim::Primary];

/// The processes below this one.
fn descendants(of: i32) -> Vec<i32> {
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let parents: Vec<(i32, i32)> = pids().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        let above = found[at];
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

fn is_sshd(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
}

impl Victim {
    fn kill(self, running: &Running, primary: &mut Host, standby: &Host) {
        let sshd = primary.sshd.as_ref().expect("an sshd").id() as i32;
        match self {
            Victim::Here => kill(running.pid().as_raw()),
            Victim::Agents => agents(primary).into_iter().for_each(kill),
            Victim::Sessions => descendants(sshd).into_iter().filter(|pid| is_sshd(*pid)).for_each(kill),
            Victim::Sshd => {
                let sessions = descendants(sshd);
                primary.stop_sshd();
                sessions.into_iter().filter(|pid| is_sshd(*pid)).for_each(kill);
            }
            Victim::Standby => {
                if let Some(postmaster) = standby.postmaster() {
                    kill(postmaster.as_raw());
                }
            }
            Victim::Primary => primary.crash(),
        }
    }
}

/// What an enslave finds, and does then.
struct Case {
    plan: &'static str,
    flags: &'static [&'static str],
    saved: Saved,
    /// Another cluster than the primary's.
    system: Option<u64>,
    undisturbed: Traces,
    lasts: Duration,
}

fn command<'a>(primary: &'a Host, standby: &'a Host, flags: &[&'a str]) -> Command<'a> {
    Command::enslave(standby, primary, flags)
}

/// How long it takes, and what it leaves, when nobody disturbs it.
fn case(
    primary: &Host,
    standby: &Host,
    plan: &'static str,
    flags: &'static [&'static str],
    saved: Saved,
    system: Option<u64>,
) -> Case {
    saved.put_back(standby);
    as_if_never_followed(primary);
    let output = command(primary, standby, flags).again();
    let undisturbed = Traces::of(standby);
    Case { plan, flags, saved, system, undisturbed, lasts: output.elapsed }
}

#[test]
fn whatever_is_killed_the_same_command_completes_it() {
    let rounds = variable("PGMAHOUT_FAULT_ROUNDS").unwrap_or(12);
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let seed = variable("PGMAHOUT_FAULT_SEED").unwrap_or_else(clock);
    let only = std::env::var("PGMAHOUT_FAULT_PLAN").ok().filter(|plan| !plan.is_empty());
    println!("PGMAHOUT_FAULT_SEED={seed}, {rounds} rounds");
    let mut dice = Dice(seed);

    let site = Site::new();
    let mut primary = site.host("db.0").pg(Pg::embedded("18")).setting("wal_keep_size", "1GB").build();
    let standby = site.host("db.1").pg(Pg::embedded("18")).build();
    noise(&primary, 4);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    let system = standby.system_identifier();
    let other = Saved::of(&standby);
    standby.enslave(&primary, &["--confirm", "db.1"]);
    wait_replayed(&primary, &standby);
    // It is stopped, and its primary goes on.
    standby.stop();
    let behind = Saved::of(&standby);
    primary.exec("UPDATE noise SET id = -id WHERE id % 3 = 0; CREATE TABLE later AS SELECT generate_series(1, 9000) AS n");
    let mut cases = vec![
        case(&primary, &standby, "full", &["--confirm", "db.1"], other, Some(system)),
        case(&primary, &standby, "delta", &["--plan", "delta"], behind.clone(), None),
        case(&primary, &standby, "repoint", &[], behind, None),
    ];
    cases.retain(|case| only.as_deref().is_none_or(|plan| plan == case.plan));
    assert!(!cases.is_empty(), "there is no plan {only:?}");

    let begin = Instant::now();
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..rounds {
        let case = &cases[round as usize % cases.len()];
        let victim = VICTIMS[dice.below(VICTIMS.len() as u64) as usize];
        let after = Duration::from_micros(dice.below(case.lasts.as_micros() as u64));
        println!(
            "round {} of {rounds}: {}, {victim:?} after {after:?} of {:?} (seed {seed}, {} s)",
            round + 1,
            case.plan,
            case.lasts,
            begin.elapsed().as_secs()
        );
        case.saved.put_back(&standby);
        as_if_never_followed(&primary);
        let journal = Journal::start(&primary);
        let running = command(&primary, &standby, case.flags).run().spawn();
        std::thread::sleep(after);
        victim.kill(&running, &mut primary, &standby);
        // Whoever waits for the other end waits as long as it may: it comes back meanwhile.
        std::thread::sleep(Duration::from_millis(dice.below(2000)));
        if primary.sshd.is_none() {
            primary.start_sshd();
        }
        if !primary.is_running() {
            primary.start();
        }
        let output = running.wait();
        if victim == Victim::Here {
            // It may have been through already.
            assert!([-9, 0].contains(&output.code), "{output:?}");
        } else {
            assert!([0, 1, 4].contains(&output.code), "{output:?}");
        }
        settle(&standby);
        no_agents(&[&primary, &standby]);
        no_slot_but(&primary, &[SLOT]);
        look_at(&standby, |host| {
            if Some(host.system_identifier()) == case.system {
                assert_eq!(host.one("SELECT n FROM old_cluster"), "42");
            } else {
                assert!(host.is_standby(), "a copy was started as a primary");
            }
        });

        let again = command(&primary, &standby, case.flags).run().run();
        assert_eq!(again.code, 0, "first {output:?}\nagain {again:?}");
        let acknowledged = journal.stop();
        assert_streams(&primary, &standby);
        compare(&primary, &standby);
        let has: u64 = standby.one("SELECT coalesce(max(n), 0) FROM journal").parse().unwrap();
        // A commit that the primary had made and not told of when it died counts.
        let more = u64::from(victim == Victim::Primary);
        assert!((acknowledged..=acknowledged + more).contains(&has), "{has} of {acknowledged}");
        amcheck(&primary, &standby);
        no_agents(&[&primary, &standby]);
        primary_is_clean(&primary, &[SLOT]);
        assert_eq!(Traces::of(&standby), case.undisturbed);
        let outcome = if output.code == 0 { "was through" } else { "was stopped" };
        *done.entry(format!("{} {victim:?} {outcome}", case.plan)).or_default() += 1;
    }
    for (what, times) in &done {
        println!("{times:4} times {what}");
    }
    println!("{rounds} kills, nothing lost, nothing left; {} s (seed {seed})", begin.elapsed().as_secs());
}
