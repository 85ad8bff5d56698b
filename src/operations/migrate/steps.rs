//! The steps of a migration, of the way back of one that was done, and of a rehearsal: what each does, how it is
//! undone, and how to see that it happened.

use super::Work;
use super::agents::{is, number, text};
use super::find;
use super::journal::{Bound, Hidden, Kind, Mark, Target, now};
use super::way::{Step, Undo, nobody_knows};
use crate::error::{Error, Exit, Result};
use crate::platform::{Config, Listed, address_of, names_of};
use crate::progress::{bytes_text, duration_text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An app moves.
pub static FORWARD: &[Step] = &[
    CHECK,
    Step {
        name: "lock",
        says: |w| format!("locking {}", w.source_name()),
        run: lock,
        undo: Some(Undo {
            says: |w| format!("unlocking {}", w.source_name()),
            run: |w| w.tell_source("unlock").map(drop),
            needs: &["rebind", "quiesce"],
        }),
        happened: nobody_knows,
    },
    PROVISION,
    CHECK_TARGET,
    NOTE,
    MAINTENANCE,
    SCALE_DOWN,
    Step {
        name: "quiesce",
        says: |w| format!("waiting until nobody writes to {}", w.source_name()),
        run: quiesce,
        undo: Some(Undo {
            says: |w| format!("making {} writable again", w.source_name()),
            run: free_again,
            needs: &[],
        }),
        happened: nobody_knows,
    },
    TRANSFER,
    Step {
        name: "compare",
        says: |w| format!("comparing {} with its copy", w.source_name()),
        run: |w| {
            compare(w)?;
            w.tell_target("place").map(drop)
        },
        undo: None,
        happened: nobody_knows,
    },
    Step {
        name: "rebind",
        says: |w| format!("pointing {} to {}", w.variables(), w.target_name()),
        run: |w| bind(w, true),
        undo: Some(Undo {
            says: |w| format!("pointing {} back to {}", w.variables(), w.source_name()),
            run: |w| bind(w, false),
            needs: &[],
        }),
        happened: |w| bound(w, true),
    },
    SCALE_UP,
    MAINTENANCE_OFF,
    Step {
        name: "report",
        says: |w| format!("noting on {} where its data went", w.source_name()),
        run: |w| w.finish().map(drop),
        undo: None,
        happened: nobody_knows,
    },
];

/// The app goes back to the old database, which is as it was when it left.
pub static BACKWARD: &[Step] = &[
    Step {
        name: "changes",
        says: |w| format!("looking for what was written to {} since", w.target_name()),
        run: changes,
        undo: None,
        happened: nobody_knows,
    },
    NOTE,
    MAINTENANCE,
    SCALE_DOWN,
    Step {
        name: "last-changes",
        says: |w| format!("looking again, as nobody writes to {} any more", w.target_name()),
        run: last_changes,
        undo: None,
        happened: nobody_knows,
    },
    Step {
        name: "rebind",
        says: |w| format!("pointing {} back to {}", w.variables(), w.source_name()),
        run: |w| bind(w, false),
        undo: Some(Undo {
            says: |w| format!("pointing {} to {} again", w.variables(), w.target_name()),
            run: |w| bind(w, true),
            needs: &[],
        }),
        happened: |w| bound(w, false),
    },
    Step {
        name: "release",
        says: |w| format!("making {} writable again", w.source_name()),
        run: |w| w.tell_source("release").map(drop),
        undo: Some(Undo {
            says: |w| format!("making {} read-only again", w.source_name()),
            run: |w| w.quiesce().map(drop),
            needs: &[],
        }),
        happened: nobody_knows,
    },
    SCALE_UP,
    MAINTENANCE_OFF,
    Step {
        name: "unlock",
        says: |w| format!("unlocking {}", w.source_name()),
        run: |w| w.tell_source("unlock").map(drop),
        undo: None,
        happened: nobody_knows,
    },
];

/// All that can be tried without taking anything down; it is undone at its end.
pub static REHEARSAL: &[Step] = &[
    CHECK,
    Step {
        name: "fork",
        says: |w| match w.is_outside() {
            true => format!("reading {} as it is", w.source_name()),
            false => format!("forking {}", w.source_name()),
        },
        run: fork,
        undo: Some(Undo {
            says: |w| match w.is_outside() {
                true => String::new(),
                false => "removing the fork".to_owned(),
            },
            run: |w| remove(w, Slot::Fork),
            needs: &[],
        }),
        happened: nobody_knows,
    },
    PROVISION,
    CHECK_TARGET,
    TRANSFER,
    Step {
        name: "compare",
        says: |w| format!("comparing {} with its copy", w.source_name()),
        run: compare,
        undo: None,
        happened: nobody_knows,
    },
];

const CHECK: Step = Step {
    name: "check",
    says: |w| format!("checking {}", w.journal.app),
    run: check,
    undo: None,
    happened: nobody_knows,
};

const PROVISION: Step = Step {
    name: "provision",
    says: |w| match &w.journal.wanted.to {
        Some(_) if w.journal.target.url.is_some() => format!("using {}", w.target_name()),
        Some(to) => format!("attaching {to}"),
        None => match &w.journal.wanted.plan {
            Some(plan) => format!("adding a database with the plan {plan}"),
            None => "adding a database".to_owned(),
        },
    },
    run: provision,
    undo: Some(Undo {
        says: |w| match (w.journal.target.provisioned, w.journal.target.attached) {
            (true, _) => format!("removing {}", w.target_name()),
            (_, true) => format!("detaching {}", w.target_name()),
            _ => String::new(),
        },
        run: |w| remove(w, Slot::Target),
        needs: &["rebind"],
    }),
    happened: nobody_knows,
};

const CHECK_TARGET: Step = Step {
    name: "check-target",
    says: |w| format!("checking {}", w.target_name()),
    run: check_target,
    undo: None,
    happened: nobody_knows,
};

const NOTE: Step = Step {
    name: "note",
    says: |_| "noting the release, the process counts and maintenance".to_owned(),
    run: note,
    undo: None,
    happened: |w| Ok(w.journal.leg().noted),
};

const MAINTENANCE: Step = Step {
    name: "maintenance",
    says: |w| match (w.journal.leg().has_processes, w.journal.leg().maintenance_was) {
        (false, _) => "no processes, no maintenance".to_owned(),
        (_, Some(true)) => "maintenance is on already, and stays on".to_owned(),
        (_, Some(false)) => "turning maintenance on".to_owned(),
        (_, None) => "the platform has no maintenance; scaling has to do".to_owned(),
    },
    run: |w| turn(w, true),
    undo: Some(Undo {
        says: |w| match w.turns() {
            true => "turning maintenance off".to_owned(),
            false => String::new(),
        },
        run: |w| turn(w, false),
        // The app never runs on the wrong database, or on one that takes no writes.
        needs: &["rebind", "quiesce"],
    }),
    happened: |w| Ok(!w.turns() || w.platform.maintenance(None)? == Some(true)),
};

const SCALE_DOWN: Step = Step {
    name: "scale-down",
    says: |w| match w.counts_text() {
        text if text.is_empty() => "no process is to be stopped".to_owned(),
        text => format!("stopping {text}"),
    },
    run: |w| {
        w.down_from_now()?;
        let none = zeros(w);
        w.platform.scale(&none)
    },
    undo: Some(Undo {
        says: |w| match w.counts_text() {
            text if text.is_empty() => String::new(),
            text => format!("scaling back to {text}"),
        },
        run: |w| scale_back(w),
        needs: &["rebind", "quiesce"],
    }),
    happened: |w| Ok(w.platform.not_scaled(&zeros(w))?.is_none()),
};

const TRANSFER: Step = Step {
    name: "transfer",
    says: |w| {
        let size = w.journal.found.get("look").map_or(0, |look| number(look, "size"));
        format!("copying {} ({}) to {}", w.source_name(), bytes_text(size), w.target_name())
    },
    run: |w| {
        let fill = w.fill()?;
        w.keep("fill", fill)
    },
    undo: Some(Undo {
        says: |w| match w.journal.target.provisioned {
            true => String::new(),
            false => format!("clearing {}", w.target_name()),
        },
        // A database that was made for this goes as a whole.
        run: |w| if w.journal.target.provisioned { Ok(()) } else { w.tell_target("clear").map(drop) },
        needs: &["rebind"],
    }),
    happened: nobody_knows,
};

const SCALE_UP: Step = Step {
    name: "scale-up",
    says: |w| match w.counts_text() {
        text if text.is_empty() => "no process was stopped".to_owned(),
        text => format!("scaling back to {text}"),
    },
    run: scale_back,
    undo: None,
    happened: |w| Ok(w.platform.not_scaled(&w.journal.leg().counts)?.is_none()),
};

const MAINTENANCE_OFF: Step = Step {
    name: "maintenance-off",
    says: |w| match (w.turns(), w.journal.leg().maintenance_was) {
        (true, _) => "turning maintenance off".to_owned(),
        (_, Some(true)) => "maintenance stays on, as it was".to_owned(),
        _ => "nothing is in maintenance".to_owned(),
    },
    run: |w| turn(w, false),
    undo: None,
    happened: nobody_knows,
};

// ---- what they do

fn check(work: &mut Work) -> Result<()> {
    let platform = work.platform;
    let config = platform.config()?;
    let instances = platform.instances()?;
    find::source(work, &config, &instances)?;
    find::target(work, &config, &instances)?;
    work.hide_secrets();
    work.save()?;
    let look = work.look()?;
    judge(work, &look)?;
    work.keep("look", look)?;
    let source = work.source()?.instance.clone();
    let info = source.as_ref().map(|instance| work.info(instance)).transpose()?;
    if let (Some(plan), Some(instance), false) =
        (&work.journal.wanted.plan, &source, work.journal.wanted.newer)
        && info.as_ref().and_then(|info| text(info, "plan")) == Some(plan)
    {
        return Err(Error::MigrateImpossible {
            why: format!("{instance} has the plan {plan} already"),
            hint: "name another plan, or an instance to go to: --to".into(),
        });
    }
    if work.journal.kind == Kind::Migration {
        let rebound = find::variables(work, &config)?;
        work.journal.rebound = rebound;
        name_oneoffs(work)?;
        for name in find::others(work, &config)? {
            let source = work.source_name();
            work.warn(format!(
                "{name} leads to {source} too, but is not the same URL: it stays, and {source} takes no writes then"
            ));
        }
    }
    if let (Some(instance), Some(info), Kind::Migration) = (&source, &info, work.journal.kind) {
        what_stays_behind(work, instance, info)?;
    }
    // For whoever finds the lock when this journal is lost; what counts is noted later.
    read_app(work)?;
    work.save()
}

fn name_oneoffs(work: &mut Work) -> Result<()> {
    for process in work.platform.oneoffs()?.unwrap_or_default() {
        work.warn(format!("a one-off process runs, which may write: {process}"));
    }
    Ok(())
}

/// What the old database has and does not go along.
fn what_stays_behind(work: &mut Work, instance: &str, info: &Value) -> Result<()> {
    let followers = info.get("followers").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<_> = followers.iter().filter_map(|follower| text(follower, "name")).collect();
    if !names.is_empty() {
        let names = work.platform.quoted(&names.join(", "));
        work.warn(format!("what follows {instance} goes on following it, and not the new database: {names}"));
    }
    let plan = match work.schedule(instance) {
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        // An agent that keeps none.
        Err(_) => None,
        Ok(answer) => {
            text(&answer, "plan").filter(|plan| !plan.is_empty()).map(|plan| work.platform.quoted(plan))
        }
    };
    if let Some(plan) = plan {
        let app = &work.journal.app;
        let text = format!(
            "the nightly backups ({plan}) are those of {instance} and do not go along: afterwards herd addons:add \
             pgbackups:{plan} --app {app}"
        );
        work.warn(text);
    }
    Ok(())
}

fn judge(work: &Work, look: &Value) -> Result<()> {
    let name = work.source_name();
    if is(look, "is_standby") {
        return Err(Error::MigrateRefused {
            why: format!("{name} is a standby"),
            hint: "migrate its primary".into(),
        });
    }
    let Some(lock) = look.get("lock").filter(|lock| lock.is_object()) else { return Ok(()) };
    let id = text(lock, "id").unwrap_or("?");
    if id == work.journal.id {
        return Ok(());
    }
    let quoted = |what: &str| work.platform.quoted(text(lock, what).unwrap_or("?"));
    let (app, by, since, state) = (quoted("app"), quoted("by"), quoted("since"), quoted("state"));
    Err(match state.as_str() {
        "done" => Error::MigrateRefused {
            why: format!(
                "{name} was left by the migration {id} of {app}, by {by}, begun {since}: it takes no writes"
            ),
            hint: "--rollback on that machine goes back to it; when its journal is lost, --abandon frees it"
                .into(),
        },
        _ => Error::MigrateRefused {
            why: format!("{name} is being migrated: {id} of {app}, by {by}, since {since}"),
            hint: "--resume or --rollback on that machine; when it is lost, --abandon frees the database"
                .into(),
        },
    })
}

fn lock(work: &mut Work) -> Result<()> {
    let lock = work.take_lock()?;
    work.keep("lock", lock)
}

/// Which database was made for this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Target,
    Fork,
}

impl Slot {
    fn of<'a>(self, work: &'a mut Work) -> &'a mut Target {
        match self {
            Slot::Target => &mut work.journal.target,
            Slot::Fork => work.journal.fork.get_or_insert_default(),
        }
    }
}

fn provision(work: &mut Work) -> Result<()> {
    if work.journal.target.url.is_some() && work.journal.target.before.is_none() {
        return Ok(());
    }
    let colour = work.journal.wanted.colour.clone();
    let mut words = Vec::new();
    match (&work.journal.wanted.to, &work.journal.wanted.plan) {
        (Some(to), _) => words.extend(["addons:attach".to_owned(), to.clone()]),
        (None, Some(plan)) => words.extend(["addons:add".to_owned(), format!("heroku-postgresql:{plan}")]),
        (None, None) => words.extend(["addons:add".to_owned(), "heroku-postgresql".to_owned()]),
    }
    words.extend(colour.map(|colour| format!("--as={colour}")));
    add(work, Slot::Target, words)
}

fn fork(work: &mut Work) -> Result<()> {
    let Some(instance) = work.source()?.instance.clone() else { return Ok(()) };
    let colour = format!("--as={}", fork_colour(work));
    let words = ["addons:add", "heroku-postgresql", "--fork", &instance, &colour].map(str::to_owned);
    add(work, Slot::Fork, words.to_vec())?;
    let fork = Slot::Fork.of(work);
    let (name, address) = (fork.instance()?.to_owned(), fork.address.clone().unwrap_or_default());
    work.platform.herd(&["pg:wait", &name, "--timeout", "86400"], crate::platform::LONGEST)?;
    let source = work.source()?;
    let url = find::with_address(source.url.expose(), &address);
    let database = source.database.clone();
    let fork = Slot::Fork.of(work);
    fork.url = Some(Hidden::new(&url));
    fork.database = database;
    work.save()
}

/// The name by which a rehearsal knows its own fork again.
fn fork_colour(work: &Work) -> String {
    format!("rehearsal_{}", work.journal.id)
}

/// Adds or attaches a database by herd. What a killed run has made already is taken.
fn add(work: &mut Work, slot: Slot, words: Vec<String>) -> Result<()> {
    let platform = work.platform;
    let attaches = words[0] == "addons:attach";
    let (config, instances) = (platform.config()?, platform.instances()?);
    let target = slot.of(work);
    if target.before.is_none() {
        target.before = Some(names_of(&instances));
        target.had_database_url = config.config.get("DATABASE_URL").is_some_and(|url| !url.is_empty());
        target.provisioned = !attaches;
        target.attached = attaches;
        work.save()?;
    }
    let target = slot.of(work).clone();
    let found = match attaches {
        true => instances.iter().find(|i| Some(&i.name) == target.instance.as_ref()).cloned(),
        false => left_by_a_killed_run(work, slot, &config, &instances)?,
    };
    let attachments = found.as_ref().map(|found| find::attachments(&config, &found.address));
    let name = match (found, attachments) {
        (Some(found), Some(attachments)) if !attachments.is_empty() => found.name,
        (Some(found), _) => {
            // With the colour, where one was named.
            let mut words = vec!["addons:attach", &found.name];
            let colour = match slot {
                Slot::Target => work.journal.wanted.colour.clone(),
                Slot::Fork => Some(fork_colour(work)),
            };
            let colour = colour.map(|colour| format!("--as={colour}"));
            words.extend(colour.as_deref());
            platform.herd(&words, platform.long() * 2)?;
            found.name
        }
        (None, _) => {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let answer = platform.herd(&words, platform.long() * 2)?;
            let name = text(&answer, "instance").map(str::to_owned);
            name.ok_or_else(|| Error::AgentUnknown { who: "herd".into() })?
        }
    };
    slot.of(work).instance = Some(name.clone());
    work.save()?;
    let (config, instances) = (platform.config()?, platform.instances()?);
    let missing = || Error::MigrateImpossible {
        why: format!("{name} was added, but the platform does not list it, or no variable points to it"),
        hint: "see herd addons".into(),
    };
    let listed = instances.iter().find(|i| i.name == name).ok_or_else(missing)?;
    let wanted = match slot {
        Slot::Target => work.journal.wanted.colour.clone(),
        Slot::Fork => Some(fork_colour(work)),
    };
    let database = work.source()?.database.clone();
    let choice = find::choose(&config, &listed.address, wanted.as_deref(), &database).ok_or_else(missing)?;
    let target = slot.of(work);
    target.address = Some(listed.address.clone());
    target.database = choice.database;
    target.url = Some(Hidden::new(&choice.url));
    target.variable = Some(choice.variable);
    work.hide_secrets();
    work.save()?;
    take_back_database_url(work, slot, &config)
}

/// herd makes an app's first database its DATABASE_URL, which is not ours to change before its time.
fn take_back_database_url(work: &mut Work, slot: Slot, config: &Config) -> Result<()> {
    let target = slot.of(work);
    let ours = target.address.clone().is_some_and(|address| {
        let url = config.config.get("DATABASE_URL");
        url.and_then(|url| address_of(url)).is_some_and(|at| at.address == address)
    });
    if target.had_database_url || !ours {
        return Ok(());
    }
    work.platform.config_unset(&["DATABASE_URL"], "Not DATABASE_URL before the migration").map(drop)
}

/// The instance that a run has made which was killed before it could write that down: the only one that is new, has no
/// other name than was wanted, and there is nothing in it but, in a fork, the source.
fn left_by_a_killed_run(
    work: &mut Work,
    slot: Slot,
    config: &Config,
    instances: &[Listed],
) -> Result<Option<Listed>> {
    let target = slot.of(work).clone();
    if let Some(name) = &target.instance {
        return Ok(instances.iter().find(|i| i.name == *name).cloned());
    }
    let before = target.before.unwrap_or_default();
    let new: Vec<_> = instances.iter().filter(|i| !before.contains(&i.name)).collect();
    let mut ours = Vec::new();
    for listed in &new {
        let wanted = match slot {
            Slot::Target => work.journal.wanted.colour.clone(),
            Slot::Fork => Some(fork_colour(work)),
        };
        let named = find::attachments(config, &listed.address);
        let is_named = wanted.is_some_and(|wanted| named.iter().any(|choice| choice.is_called(&wanted)));
        if !named.is_empty() && !is_named && (slot == Slot::Fork || work.journal.wanted.colour.is_some()) {
            continue;
        }
        let info = work.info(&listed.name);
        // A fork holds what its source holds; herd attaches it as soon as it is begun.
        let fits = |info: &Value| {
            (slot == Slot::Fork && (is_named || is_busy(info)))
                || text(info, "role") == Some("empty")
                || is(info, "fresh")
        };
        if info.is_ok_and(|info| fits(&info)) {
            ours.push((*listed).clone());
        }
    }
    if let ([one], true) = (&ours[..], new.len() == 1) {
        return Ok(Some(one.clone()));
    }
    for listed in new {
        let name = &listed.name;
        work.warn(format!("{name} was added meanwhile; if nobody knows it: herd addons:remove {name}"));
    }
    Ok(None)
}

/// It is still being made.
fn is_busy(info: &Value) -> bool {
    info.get("job").and_then(|job| text(job, "state")) == Some("running")
}

fn remove(work: &mut Work, slot: Slot) -> Result<()> {
    let platform = work.platform;
    let target = slot.of(work).clone();
    if target.before.is_none() {
        return Ok(());
    }
    let (config, instances) = (platform.config()?, platform.instances()?);
    let found = match target.provisioned {
        true => left_by_a_killed_run(work, slot, &config, &instances)?,
        false => instances.iter().find(|i| Some(&i.name) == target.instance.as_ref()).cloned(),
    };
    // Days may have gone by: an instance of that name may be another one by now.
    if let (Some(found), Some(address)) = (&found, &target.address) {
        let named = find::attachments(&config, address);
        let colour = fork_colour(work);
        let known = |choice: &find::Choice| match slot {
            Slot::Fork => choice.is_called(&colour),
            Slot::Target => target.url.as_ref().is_none_or(|url| choice.url == url.expose()),
        };
        if found.address != *address || !(named.is_empty() || named.iter().any(known)) {
            let name = &found.name;
            work.warn(format!(
                "{name} is not the database that was made for this any more: it stays as it is"
            ));
            return Ok(());
        }
    }
    let address = found.as_ref().map(|found| found.address.clone()).or(target.address.clone());
    slot.of(work).address = address.clone();
    take_back_database_url(work, slot, &config)?;
    if let (Some(found), true) = (&found, target.provisioned) {
        let app = work.journal.app.clone();
        platform.herd(&["addons:remove", &found.name, "--confirm", &app], platform.long() * 2)?;
    }
    // An instance that was here before keeps what it had; and a removal may have been killed before its last word.
    let Some(address) = address else { return Ok(()) };
    let config = platform.config()?;
    let ours = find::attachments(&config, &address);
    let ours: Vec<_> = ours.iter().map(|choice| choice.variable.as_str()).collect();
    if !ours.is_empty() {
        platform.config_unset(&ours, &format!("Detach {}", ours[0].trim_end_matches("_URL")))?;
    }
    Ok(())
}

fn check_target(work: &mut Work) -> Result<()> {
    let answer = work.check_pair()?;
    for warning in answer.get("warnings").and_then(Value::as_array).into_iter().flatten() {
        let warning = work.platform.quoted(warning.as_str().unwrap_or_default());
        work.warn(warning);
    }
    if work.journal.wanted.newer {
        let version = |of: &str| answer.get(of).map_or(0, |side| number(side, "version_num"));
        let (old, new) = (version("source"), version("target"));
        if major(new) <= major(old) {
            return Err(Error::MigrateImpossible {
                why: format!("{} is not newer than {}", work.target_name(), work.source_name()),
                hint: "an upgrade goes to a newer major version of PostgreSQL".into(),
            });
        }
    }
    work.keep("check", answer)
}

/// For a look at a target that is not attached, and is not to be: whether its URL is known now.
pub fn url_of_target(work: &mut Work) -> Result<bool> {
    let target = &work.journal.target;
    let Some(instance) = target.instance.clone().filter(|_| target.url.is_none()) else {
        return Ok(target.url.is_some());
    };
    let answer = work.platform.herd(&["pg:credentials", &instance], work.platform.long())?;
    let url = text(&answer, "url");
    let at = url.and_then(address_of).ok_or_else(|| Error::AgentUnknown { who: "herd".into() })?;
    let target = &mut work.journal.target;
    target.url = url.map(Hidden::new);
    target.database = at.database;
    work.hide_secrets();
    Ok(true)
}

/// 15.3 is of 15, 9.6.24 of 9.6.
fn major(version_num: u64) -> u64 {
    if version_num < 100_000 { version_num / 100 } else { version_num / 10_000 * 100 }
}

fn note(work: &mut Work) -> Result<()> {
    read_app(work)?;
    let release = work.platform.config()?.release;
    let leg = work.journal.leg_mut();
    leg.release = release;
    leg.noted = true;
    work.save()
}

/// The processes and maintenance as they are.
fn read_app(work: &mut Work) -> Result<()> {
    let processes = work.platform.processes()?;
    let maintenance = match processes.is_empty() {
        true => None,
        false => work.platform.maintenance(None)?,
    };
    let forward = &work.journal.forward;
    if work.journal.back.is_some() && work.journal.forward_mark("maintenance-off") != Mark::Done {
        // It goes back from where it had not come to its end: what is now is not how the app was.
        let (counts, maintenance) = (forward.counts.clone(), forward.maintenance_was);
        let leg = work.journal.leg_mut();
        leg.has_processes = !processes.is_empty();
        (leg.counts, leg.maintenance_was) = (counts, maintenance);
        return Ok(());
    }
    let leg = work.journal.leg_mut();
    leg.has_processes = !processes.is_empty();
    leg.counts = processes.into_iter().filter(|p| p.count > 0).map(|p| (p.name, p.count)).collect();
    leg.maintenance_was = maintenance;
    Ok(())
}

fn turn(work: &mut Work, on: bool) -> Result<()> {
    if on {
        work.down_from_now()?;
    }
    if work.turns() {
        work.platform.maintenance(Some(on))?;
    }
    if !on {
        let leg = work.journal.leg_mut();
        if leg.down_since.is_some() && leg.down_until.is_none() {
            leg.down_until = Some(now());
        }
        work.save()?;
    }
    Ok(())
}

fn zeros(work: &Work) -> BTreeMap<String, u32> {
    work.journal.leg().counts.keys().map(|name| (name.clone(), 0)).collect()
}

fn scale_back(work: &mut Work) -> Result<()> {
    let counts = work.journal.leg().counts.clone();
    match work.platform.not_scaled(&counts)? {
        None => Ok(()),
        Some(_) => work.platform.scale(&counts),
    }
}

fn quiesce(work: &mut Work) -> Result<()> {
    work.down_from_now()?;
    let answer = work.quiesce()?;
    for session in answer.get("ended").and_then(Value::as_array).into_iter().flatten() {
        let name = match session {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = work.platform.quoted(&name);
        work.warn(format!("a session was ended: {name}"));
    }
    work.keep("quiesce", answer)
}

/// A server that has just crashed is back in a moment, and without it the app stays down.
fn free_again(work: &mut Work) -> Result<()> {
    let deadline = Instant::now() + AWAY_LIMIT;
    let mut told = false;
    loop {
        match work.tell_source("release") {
            Err(error) if error.exit() == Exit::Unreachable && Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    work.progress.step(format!("{error}; waiting for it"));
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            other => return other.map(drop),
        }
    }
}

/// A server that does not answer is waited for so long on the way back.
const AWAY_LIMIT: Duration = Duration::from_secs(60);

fn compare(work: &mut Work) -> Result<()> {
    let answer = work.tell_target("compare")?;
    work.keep("compare", answer)
}

/// Gives the variables the new URL, or the old one, in one release. What somebody else has changed meanwhile stays.
fn bind(work: &mut Work, to_new: bool) -> Result<()> {
    let config = work.platform.config()?;
    let old = work.source()?.url.clone();
    let new = work.new_url()?;
    if to_new && work.journal.back.is_none() {
        // Those that came to hold it since the check, too.
        let mut rebound = work.journal.rebound.clone();
        for (name, value) in &config.config {
            if value == old.expose() && !rebound.iter().any(|bound| bound.name == *name) {
                rebound.push(Bound { name: name.clone(), was_set: true });
            }
        }
        work.journal.rebound = rebound;
        work.save()?;
    }
    let (mut values, mut unset, mut right) = (BTreeMap::new(), Vec::new(), 0);
    let place = |url: &str| address_of(url).map(|at| (at.address, at.database));
    for bound in work.journal.rebound.clone() {
        let value = config.config.get(&bound.name).map(String::as_str).filter(|value| !value.is_empty());
        let is_old = if bound.was_set { value == Some(old.expose()) } else { value.is_none() };
        // After it was done, the new database may have got another password.
        let is_new = value == Some(new.expose())
            || (work.journal.back.is_some()
                && value.is_some()
                && value.and_then(place) == place(new.expose()));
        right += u32::from(is_old || is_new);
        match (to_new, is_old, is_new) {
            (true, true, _) => drop(values.insert(bound.name, new.expose().to_owned())),
            (false, _, true) if bound.was_set => drop(values.insert(bound.name, old.expose().to_owned())),
            (false, _, true) => unset.push(bound.name),
            (true, _, true) | (false, true, _) => {}
            _ => work.warn(format!(
                "{} was changed by somebody else meanwhile, and stays as it is now: herd config:get {}",
                bound.name, bound.name
            )),
        }
    }
    // All but the undoing of what is not done: without any the app would come up on whatever it is.
    if right == 0 && to_new == work.journal.back.is_none() {
        return Err(Error::MigrateImpossible {
            why: format!("{} were changed by somebody else meanwhile, all of them", work.variables()),
            hint: "where do they lead? herd config; herd releases says who changed them".into(),
        });
    }
    let what = match to_new {
        true => format!("Migrate to {}", work.target_name()),
        false => format!("Migrate back to {}", work.source_name()),
    };
    let mut release = None;
    if !values.is_empty() {
        release = Some(work.platform.config_set(&values, &what)?);
    }
    if !unset.is_empty() {
        let unset: Vec<_> = unset.iter().map(String::as_str).collect();
        release = Some(work.platform.config_unset(&unset, &what)?);
    }
    if let Some(release) = release {
        work.journal.leg_mut().new_release = Some(release);
        // Golden rule 4 is the platform's; that the app comes up on the right database is ours.
        let now = work.platform.config()?.config;
        let wrong = values.iter().find(|(name, value)| now.get(*name) != Some(*value));
        if let Some((name, _)) = wrong {
            return Err(Error::MigrateImpossible {
                why: format!("{name} was set, but has another value now"),
                hint: "does somebody else change the config? herd releases".into(),
            });
        }
    }
    work.save()
}

/// The variables are as [`bind`] makes them.
fn bound(work: &mut Work, to_new: bool) -> Result<bool> {
    let config = work.platform.config()?.config;
    let url = if to_new { work.new_url()? } else { work.source()?.url.clone() };
    let is = |bound: &Bound| match config.get(&bound.name) {
        None => !to_new && !bound.was_set,
        Some(value) => value == url.expose() && (to_new || bound.was_set),
    };
    let rebound = &work.journal.rebound;
    Ok(!rebound.is_empty() && rebound.iter().all(is))
}

fn changes(work: &mut Work) -> Result<()> {
    name_oneoffs(work)?;
    let look = work.look()?;
    let ours = look.get("lock").and_then(|lock| text(lock, "id")) == Some(&work.journal.id);
    if !ours {
        judge(work, &look)?;
        let why = format!("{} was freed meanwhile, and may have been written to", work.source_name());
        if !work.confirmed {
            return Err(unconfirmed(work, why));
        }
        work.warn(why);
    }
    last_changes(work)
}

fn last_changes(work: &mut Work) -> Result<()> {
    let answer = match work.tell_target("changes") {
        Ok(answer) => answer,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        // When the new database is lost is when the old one is wanted most.
        Err(error) => {
            let why = format!("nobody knows what would be lost: {error}");
            if !work.confirmed {
                return Err(unconfirmed(work, why));
            }
            work.warn(why);
            return Ok(());
        }
    };
    let list = match &answer {
        Value::Array(list) => list.clone(),
        other => other.get("changes").and_then(Value::as_array).cloned().unwrap_or_default(),
    };
    let value = |change: &Value, name: &str| match change.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let line = |change: &Value| {
        let text = format!(
            "{}: {} then, {} now",
            value(change, "what"),
            value(change, "before"),
            value(change, "now")
        );
        work.platform.quoted(&text)
    };
    let lines: Vec<_> = list.iter().map(line).collect();
    work.journal.found.insert("changes".into(), Value::Array(list));
    work.save()?;
    if lines.is_empty() {
        return Ok(());
    }
    let mut shown = lines.iter().take(20).cloned().collect::<Vec<_>>().join("; ");
    if lines.len() > 20 {
        shown = format!("{shown}; and {} more", lines.len() - 20);
    }
    let why = format!("{} has writes that {} has not: {shown}", work.target_name(), work.source_name());
    if !work.confirmed {
        return Err(unconfirmed(work, why));
    }
    if work.journal.mark("scale-down") == Mark::Done {
        work.warn(format!("these writes stay behind: {shown}"));
    }
    Ok(())
}

fn unconfirmed(work: &Work, why: String) -> Error {
    Error::MigrateRefused {
        why,
        hint: format!("to go back all the same, add --confirm {}", work.journal.app),
    }
}

impl Work<'_> {
    /// The app is down from now on.
    fn down_from_now(&mut self) -> Result<()> {
        let leg = self.journal.leg_mut();
        // One that was in maintenance before was down already.
        if leg.down_since.is_some() || leg.maintenance_was == Some(true) {
            return Ok(());
        }
        leg.down_since = Some(now());
        self.save()
    }

    /// Maintenance is for this migration to turn on and off.
    fn turns(&self) -> bool {
        self.journal.leg().has_processes && self.journal.leg().maintenance_was == Some(false)
    }

    fn counts_text(&self) -> String {
        let counts = &self.journal.leg().counts;
        counts.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    }

    fn variables(&self) -> String {
        let names: Vec<_> = self.journal.rebound.iter().map(|bound| bound.name.as_str()).collect();
        if names.is_empty() { "the config variables".to_owned() } else { names.join(", ") }
    }
}

/// How long the app would be down, for a rehearsal's report; in seconds.
pub fn predicted(work: &Work) -> f64 {
    let seconds = |value: &Value| match value {
        Value::Array(parts) => parts.iter().filter_map(Value::as_f64).sum(),
        Value::Object(parts) => parts.values().filter_map(Value::as_f64).sum(),
        other => other.as_f64().unwrap_or(0.0),
    };
    let of = |name: &str| {
        work.journal.found.get(name).and_then(|answer| answer.get("seconds")).map_or(0.0, seconds)
    };
    let stop_and_start = if work.journal.forward.has_processes { STOP_AND_START } else { 0.0 };
    of("fill") + of("compare") + stop_and_start
}

/// What stopping and starting an app takes, guessed.
const STOP_AND_START: f64 = 20.0;

/// The same for a person.
pub fn predicted_text(seconds: f64) -> String {
    format!("the app would be down for about {}", duration_text(seconds))
}
