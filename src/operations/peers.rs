//! Owns what an instance knows of the others of its cluster, whom it has fed or followed, and what follows from their
//! answers: an old primary that comes back after one of them was promoted in its place starts read-only.
//!
//! A peer is noted when an `enslave` is done, on both sides, in a file of its own (two that enslave at once do not
//! meet); `forget` removes it. It is asked by IDENTIFY_SYSTEM: one of the same system identifier on a later timeline
//! has been promoted since, or follows one that was. One that does not answer says nothing: where the old primary and
//! all its peers cannot reach each other, nobody can tell (docs/reliability.md).

use super::Context;
use crate::checked;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result, printable};
use crate::instance::{Instance, has_standby_file};
use crate::postgres::recovery::{auto_conf_with, slot_name};
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{SystemId, Timeline};
use crate::progress::time_text;
use crate::sql::{self, Db, Target};
use crate::ssh::{self, Remote};
use crate::tls::Tls;
use crate::transfer::source::boot_id;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Another instance of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where its server is, as seen from here.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// The source of an enslave, as far as it matters here.
pub struct Source<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Its SQL address.
    pub target: &'a Target,
    /// SQL to it.
    pub db: &'a mut Db,
    /// SSH to it.
    pub remote: &'a dyn Remote,
    /// The shell word that runs the agent there.
    pub agent: &'a str,
    /// Of its machine.
    pub boot_id: &'a str,
    /// Its cluster.
    pub system_id: SystemId,
    /// The timeline it is on.
    pub timeline: Timeline,
}

/// What a peer says of itself.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Who.
    #[serde(flatten)]
    pub peer: Peer,
    /// The timeline it is on, where it is of the same cluster.
    pub timeline: Option<Timeline>,
    /// It is a standby; absent where that was not to be known.
    pub in_recovery: Option<bool>,
    /// It is of the same cluster, on a later timeline.
    pub supersedes: bool,
    /// Why it says nothing.
    pub problem: Option<String>,
}

/// What is known of the peers, and what they say.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Everybody it knows.
    pub peers: Vec<Answer>,
    /// Why it is read-only, or should be.
    pub superseded: Option<String>,
}

/// Peers that are dead are many after a bad night, and a server that starts must not wait for them.
const PATIENCE: Duration = Duration::from_secs(3);

fn directory(instance: &Instance) -> PathBuf {
    instance.state_directory.join("peers")
}

fn file_of(instance: &Instance, name: &str) -> PathBuf {
    // The slot's name has only letters that a file may have.
    directory(instance).join(slot_name(instance.app.as_deref(), name))
}

/// Everybody that was noted, by name. What cannot be read is warned of: one that nobody asks may be the successor.
pub fn known(context: Context) -> Vec<Peer> {
    let mut peers = Vec::new();
    for path in files(context.instance) {
        match read(&path) {
            Ok(peer) => peers.push(peer),
            Err(error) => {
                let hint = error.hint().unwrap_or_default();
                context.progress.warn(format!("{error}; {hint}"));
            }
        }
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

/// Their files, without those that are just being written.
fn files(instance: &Instance) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(directory(instance)).into_iter().flatten().flatten();
    files.filter(|file| !file.file_name().as_encoded_bytes().starts_with(b".")).map(|file| file.path())
}

fn read(path: &Path) -> Result<Peer> {
    let bad = |why| Error::PeerFile { path: path.into(), why };
    checked::from_json(&fs::read(path).map_err(|e| bad(e.to_string()))?).map_err(bad)
}

/// Notes a peer, in place of what was known of it.
pub fn note(instance: &Instance, peer: &Peer) -> Result<()> {
    let file = file_of(instance, &peer.name);
    durable::create_private_directory(durable::parent(&file))?;
    durable::sweep(durable::parent(&file));
    durable::write(&file, &checked::json(peer), 0o600)
}

/// Notes the follower at the other end of this SSH session, whose server has `port`.
///
/// # Errors
/// [`Error::NoSshPeer`] where sshd has not said whose session it is.
pub fn note_follower(instance: &Instance, name: &str, port: u16) -> Result<Peer> {
    // "client address, client port, server address, server port" (ssh(1), ENVIRONMENT)
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let host: Option<IpAddr> = connection.split(' ').next().and_then(|address| address.parse().ok());
    let host = host.ok_or(Error::NoSshPeer)?;
    let peer = Peer { name: name.to_owned(), host: host.to_string(), port };
    note(instance, &peer)?;
    Ok(peer)
}

/// Removes a peer that has gone its own way; true when it was known.
pub fn forget(instance: &Instance, name: &str) -> Result<bool> {
    let file = file_of(instance, name);
    match fs::remove_file(&file) {
        Ok(()) => durable::sync_directory(durable::parent(&file)).map(|()| true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("remove", &file),
    }
}

/// Asks all of them at once whether they are of the cluster `system_id` and beyond `ours`, as `user` with `password`.
pub fn ask(like: &Target, peers: Vec<Peer>, system_id: SystemId, ours: Timeline) -> Vec<Answer> {
    thread::scope(|scope| {
        let asked: Vec<_> =
            peers.into_iter().map(|peer| scope.spawn(move || ask_one(like, peer, system_id, ours))).collect();
        asked.into_iter().map(|one| one.join().expect("a panic has ended the program")).collect()
    })
}

/// As this instance's own role; a peer has no URL, so the environment says what is asked of its TLS.
fn like_local(instance: &Instance) -> Result<Target> {
    Ok(Target { tls: Tls::of_conninfo(std::iter::empty()), ..Target::local(instance)? })
}

fn ask_one(like: &Target, peer: Peer, system_id: SystemId, ours: Timeline) -> Answer {
    let target = Target {
        label: peer.name.clone(),
        host: peer.host.clone(),
        port: peer.port,
        timeout: PATIENCE.min(like.timeout),
        // It is known by the address that sshd saw, which few certificates have.
        tls: match peer.host.parse::<IpAddr>() {
            Ok(_) => like.tls.of_any_name(),
            Err(_) => like.tls.clone(),
        },
        ..like.clone()
    };
    let mut answer = Answer { peer, timeline: None, in_recovery: None, supersedes: false, problem: None };
    match sql::check_replication(&target) {
        Ok((theirs, _)) if theirs != system_id.to_string() => {
            answer.problem = Some("another cluster is there now".into());
        }
        Ok((_, timeline)) => {
            answer.timeline = Some(timeline);
            answer.supersedes = timeline > ours;
            answer.in_recovery = Db::connect(&target).and_then(|mut db| db.in_recovery()).ok();
        }
        Err(error) => answer.problem = Some(error.to_string()),
    }
    answer
}

/// The one of a later timeline to name: a primary, if there is one.
pub fn successor(answers: &[Answer]) -> Option<&Answer> {
    let later = || answers.iter().filter(|answer| answer.supersedes);
    later().find(|answer| answer.in_recovery == Some(false)).or_else(|| later().next())
}

impl Answer {
    /// "db.1 (10.0.0.2:5432), a primary on timeline 2"
    pub fn text(&self) -> String {
        let Peer { name, host, port } = &self.peer;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let at = format!("{} ({}:{port})", printable(name), printable(&host));
        let role = match self.in_recovery {
            Some(false) => "a primary",
            Some(true) => "a standby",
            None => "a server",
        };
        match (&self.timeline, &self.problem) {
            (Some(timeline), _) => format!("{at}, {role} on timeline {}", timeline.0),
            (None, problem) => format!("{at}: {}", problem.as_deref().unwrap_or("it said nothing")),
        }
    }
}

/// Asks everybody whom this instance knows.
pub fn run(context: Context) -> Result<Report> {
    let instance = context.instance;
    let control = instance.control()?;
    let timeline = control.as_ref().map(|control| instance.newest_timeline(control)).transpose()?;
    let peers = match (&control, timeline) {
        (Some(control), Some(timeline)) => {
            ask(&like_local(instance)?, known(context), control.system_id, timeline)
        }
        _ => Vec::new(),
    };
    let superseded = superseded(instance).or_else(|| {
        let is_standby = has_standby_file(&instance.data_directory().ok()?);
        successor(&peers).filter(|_| !is_standby).map(|by| why(by, timeline.unwrap_or(Timeline(0))))
    });
    Ok(Report { instance: instance.name.clone(), timeline, peers, superseded })
}

fn why(by: &Answer, ours: Timeline) -> String {
    format!("{}, has taken over; this one ended on timeline {}", by.text(), ours.0)
}

/// Says, while it exists, why this old primary runs read-only.
fn note_file(instance: &Instance) -> PathBuf {
    instance.state_directory.join("superseded")
}

/// Why this old primary runs read-only, if it does.
pub fn superseded(instance: &Instance) -> Option<String> {
    // Whatever it says: that it is there counts.
    let text = String::from_utf8_lossy(&fs::read(note_file(instance)).ok()?).into_owned();
    let is_standby = has_standby_file(&instance.data_directory().ok()?);
    is_standby.then(|| text.trim().to_owned())
}

/// It is a standby, or a primary, like any other from here on.
pub fn lift(instance: &Instance) -> Result<()> {
    let file = note_file(instance);
    match fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).on("remove", &file),
        _ => Ok(()),
    }
}

/// For what starts the server: one whose place was taken since it last ran is made to start as a standby of nobody,
/// which takes no writes. Gives why, when it does.
///
/// Nothing is lost by it, whoever is right: its WAL stays as it is, `enslave` judges by that what it has which its
/// successor has not, and `promote --confirm` makes it a primary again.
pub fn before_start(context: Context) -> Result<Option<String>> {
    let instance = context.instance;
    let data = instance.data_directory()?;
    let Some(control) = instance.control()? else { return Ok(None) };
    if has_standby_file(&data) || instance.running().is_some() {
        return Ok(superseded(instance));
    }
    let peers = known(context);
    let Some(version) = instance.data_version()?.filter(|_| !peers.is_empty()) else { return Ok(None) };
    let ours = instance.newest_timeline(&control)?;
    let answers = ask(&like_local(instance)?, peers, control.system_id, ours);
    for answer in answers.iter().filter(|answer| answer.problem.is_some()) {
        context.progress.detail(answer.text());
    }
    let Some(by) = successor(&answers) else { return Ok(None) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let why = format!("{}, found at {}", why(by, ours), time_text(now as i64));
    // The note first: a standby of nobody that does not say why would be a riddle.
    durable::create_private_directory(&instance.state_directory)?;
    durable::write(&note_file(instance), format!("{why}\n").as_bytes(), 0o600)?;
    start_as_standby_of_nobody(instance, version)?;
    Ok(Some(why))
}

fn start_as_standby_of_nobody(instance: &Instance, version: PgVersion) -> Result<()> {
    let data = instance.data_directory()?;
    if version.uses_recovery_conf() {
        return durable::write(&data.join("recovery.conf"), b"standby_mode = 'on'\n", 0o600);
    }
    // Of the time when it was a standby itself.
    let file = data.join("postgresql.auto.conf");
    let existing = fs::read_to_string(&file).unwrap_or_default();
    let without = auto_conf_with(&existing, &[("primary_conninfo", None), ("primary_slot_name", None)]);
    if without != existing {
        durable::write(&file, without.as_bytes(), 0o600)?;
    }
    durable::write(&data.join("standby.signal"), b"", 0o600)
}

/// The note on both sides that this instance follows the one at `there`, when the follower is complete: for the way
/// back, so a failure is only told.
pub fn introduce(context: Context, there: &Source) {
    let instance = context.instance;
    let word = ssh::shell_word(&instance.name);
    let command =
        format!("exec {} --json --quiet peers --note {word} --note-port {}", there.agent, instance.port());
    // A blurb need not say what it is called.
    let noted = ssh::run(there.remote, &command, b"").and_then(|answer| {
        let name = serde_json::from_slice(last_line(&answer)).unwrap_or_else(|_| there.name.to_owned());
        note(instance, &Peer { name, host: there.target.host.clone(), port: there.target.port })
    });
    if let Err(error) = noted {
        context.progress.warn(format!(
            "{} and this one do not know each other, so an old primary of the two that comes back is not told: {error}",
            there.name
        ));
    }
}

/// This instance goes its own way: it is nobody's successor from now on, and nobody is its own. Before this a fork onto a
/// former follower would have been taken for one that was promoted, by a primary that starts anew.
pub fn part(context: Context, there: &Source) {
    let instance = context.instance;
    let name = ssh::shell_word(&instance.name);
    let told = ssh::run(there.remote, &format!("exec {} --quiet forget {name}", there.agent), b"");
    if let Err(error) = told.and_then(|_| forget_all(instance)) {
        context.progress.warn(format!(
            "{0} may take {1} for its successor when it starts anew: run `pgmahout forget {1}` there ({error})",
            there.name, instance.name
        ));
    }
}

/// Whoever was known has nothing to do with the cluster that is here now.
pub fn forget_all(instance: &Instance) -> Result<()> {
    files(instance).try_for_each(|file| fs::remove_file(&file).on("remove", &file))
}

/// The answer; a login profile may print before it.
fn last_line(answer: &[u8]) -> &[u8] {
    answer.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// Refuses a source whose place was taken, also one that is read-only by now: whoever follows it follows a past.
pub fn check_source(context: Context, there: &mut Source) -> Result<()> {
    let command = format!("exec {} --json --quiet peers --list", there.agent);
    let answer = match ssh::run(there.remote, &command, b"") {
        Ok(answer) => answer,
        Err(error) => {
            context.progress.detail(format!("{} does not say whom it knows: {error}", there.name));
            return Ok(());
        }
    };
    let peers: Vec<Peer> = serde_json::from_slice(last_line(&answer)).unwrap_or_default();
    // Those that stream from it are no later than it is.
    let rows = there.db.rows("SELECT application_name FROM pg_stat_replication", &[])?;
    let streaming: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    // What is 127.0.0.1 there is here only on the same machine.
    let is_here = there.boot_id == boot_id();
    let loopback = |peer: &Peer| peer.host.parse().is_ok_and(|host: IpAddr| host.is_loopback());
    let peers = peers
        .into_iter()
        .filter(|peer| peer.name != context.instance.name && !streaming.contains(&peer.name))
        .filter(|peer| is_here || !loopback(peer))
        .collect();
    let answers = ask(there.target, peers, there.system_id, there.timeline);
    for answer in answers.iter().filter(|answer| answer.problem.is_some()) {
        context.progress.detail(answer.text());
    }
    match successor(&answers) {
        Some(by) => Err(Error::SourceSuperseded {
            source: there.name.to_owned(),
            by: by.text(),
            name: by.peer.name.clone(),
            timeline: there.timeline.0,
        }),
        None => Ok(()),
    }
}

/// Its place was taken: who takes it back has to say so.
pub fn check_promotion(instance: &Instance, confirm: Option<&str>) -> Result<()> {
    match superseded(instance) {
        Some(why) if confirm != Some(&instance.name) => {
            Err(Error::Superseded { instance: instance.name.clone(), why })
        }
        _ => Ok(()),
    }
}

/// For `info`: who of those that do not stream from here has gone beyond.
pub fn look(context: Context, followers: &[String], timeline: Timeline) -> Result<Option<String>> {
    let instance = context.instance;
    let Some(control) = instance.control()? else { return Ok(None) };
    let peers = known(context).into_iter().filter(|peer| !followers.contains(&peer.name)).collect();
    let answers = ask(&like_local(instance)?, peers, control.system_id, timeline);
    Ok(successor(&answers).map(|by| why(by, timeline)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_note_of_a_peer_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgmahout_db_1");
        let peer = Peer { name: "db.1".into(), host: "10.0.0.2".into(), port: 5432 };
        let whole = checked::json(&peer);
        fs::write(&path, &whole).unwrap();
        assert_eq!(read(&path).unwrap(), peer);
        for bytes in checked::damaged(&whole) {
            fs::write(&path, &bytes).unwrap();
            match read(&path) {
                Ok(read) => assert_eq!(read, peer),
                Err(error) => assert!(error.to_string().contains("/pgmahout_db_1 cannot be read"), "{error}"),
            }
        }
    }
}
