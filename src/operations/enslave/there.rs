//! Owns the source as the preflight sees it: reached by SSH, by SQL and by a replication connection, and
//! found to be one and the same server. Nothing is changed there.

use super::super::Context;
use super::plan::{Ours, Theirs};
use crate::agent;
use crate::blurb::Blurb;
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::version::PgVersion;
use crate::postgres::wal::{
    History, Lsn, SystemId, Timeline, history_file_name, parse_segment_name, segment_name,
};
use crate::sql::{self, Db, Target};
use crate::ssh::{self, Identity, Remote};
use crate::transfer::protocol::FactsAnswer;
use crate::transfer::stream::{Stream, Wishes};
use base64::Engine;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of WAL that are compared: more than any record that all clusters write alike.
const COMPARED: u64 = 64 << 10;

/// The source.
pub struct There {
    /// What messages call it.
    pub name: String,
    /// Its SQL address, with the role and password that streaming will use.
    pub target: Target,
    /// SQL to it.
    pub db: Db,
    /// SSH to it.
    pub remote: Box<dyn Remote>,
    /// The shell word that runs the agent there.
    pub agent: String,
    /// The first stream of the transfer.
    pub stream: Stream,
    /// What the agent there says of the data directory.
    pub facts: FactsAnswer,
    /// Its version.
    pub version: PgVersion,
    /// Its control file.
    pub control: ControlFile,
    /// PGDATA there.
    pub data_directory: String,
    /// It is itself a standby.
    pub in_recovery: bool,
    /// Its system identifier.
    pub system_id: SystemId,
    /// The history of its current timeline.
    pub history: History,
    /// Its history file, from timeline 2 on.
    pub history_text: Option<String>,
    /// The end of its WAL when it was asked.
    pub end: Lsn,
}

/// The SQL address of a blurb, completed from this instance: where the blurb names no role or no
/// password, ours are used (instances of one service share them).
pub fn sql_target(context: Context, blurb: &Blurb, name: &str) -> Result<Target> {
    let instance = context.instance;
    let password = match &blurb.sql.password {
        Some(password) => Some(password.clone()),
        None => instance.password()?,
    };
    Ok(Target {
        label: name.to_owned(),
        host: blurb.sql.host.clone(),
        port: blurb.sql.port,
        user: blurb.sql.user.clone().unwrap_or_else(|| instance.user.clone()),
        password,
        database: blurb.sql.database.clone().unwrap_or_else(|| "postgres".into()),
        tls: Default::default(),
        timeout: instance.connect_timeout,
    })
}

/// SSH to the machine of a blurb.
pub fn connect_ssh(context: Context, blurb: &Blurb, pinned: Option<String>) -> Result<Box<dyn Remote>> {
    let ssh = ssh::connect(&blurb.ssh, &Identity::of(context.instance, pinned))?;
    if let Some(fingerprint) = ssh.first_seen() {
        context.progress.step(format!(
            "host key of {} seen for the first time and remembered: {fingerprint}",
            ssh.label()
        ));
    }
    Ok(ssh)
}

/// Reaches the source in every way that enslaving needs, and checks that all of them lead to one server.
pub fn reach(context: Context, blurb: &Blurb, pinned: Option<String>) -> Result<There> {
    let name = blurb.name.clone().unwrap_or_else(|| "the source".into());
    let ssh = connect_ssh(context, blurb, pinned)?;
    let target = sql_target(context, blurb, &name)?;
    let mut db = Db::connect(&target)?;
    let version = db.version;
    check_version(version, &name)?;
    let in_recovery = db.in_recovery()?;
    let is_superuser: bool = db.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[])?;
    if !is_superuser {
        return Err(Error::NotSuperuser { user: target.user.clone(), at: name });
    }
    let data_directory: String = db.value("SELECT current_setting('data_directory')", &[])?;

    check_feeds_standbys(&mut db, &name, &context.instance.slot_name())?;
    let (replication_id, timeline) = sql::check_replication(&target)?;

    let agent = agent::ensure(&*ssh, context.progress)?;
    let (mut stream, facts) = Stream::open(&*ssh, &agent, &data_directory, Wishes::default())?;
    let control = control_of(&facts)?;
    if control.system_id.to_string() != replication_id {
        return Err(Error::TwoMachines {
            ssh: ssh.label().to_owned(),
            ssh_system: control.system_id.to_string(),
            sql: format!("{}:{}", target.host, target.port),
            sql_system: replication_id,
        });
    }
    let (history, history_text) = history_of(&mut stream, version, timeline)?;
    let end = end_of_wal(&mut db, in_recovery)?;
    Ok(There {
        name,
        target,
        system_id: control.system_id,
        data_directory,
        in_recovery,
        agent,
        stream,
        facts,
        control,
        version,
        history,
        history_text,
        end,
        db,
        remote: ssh,
    })
}

/// The end of the WAL of a server: what a primary has flushed, what a standby has received or replayed.
pub fn end_of_wal(db: &mut Db, in_recovery: bool) -> Result<Lsn> {
    let version = db.version;
    if !in_recovery {
        let sql = format!("SELECT {}::text", version.sql_current_wal_flush_lsn());
        return Ok(db.lsn(&sql)?.unwrap_or(Lsn::ZERO));
    }
    let received = db.lsn(&format!("SELECT {}::text", version.sql_last_wal_receive_lsn()))?;
    let replayed = db.lsn(&format!("SELECT {}::text", version.sql_last_wal_replay_lsn()))?;
    Ok(received.max(replayed).unwrap_or(Lsn::ZERO))
}

fn control_of(facts: &FactsAnswer) -> Result<ControlFile> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(&facts.control);
    ControlFile::parse(&bytes.unwrap_or_default())
}

fn history_of(
    stream: &mut Stream,
    version: PgVersion,
    timeline: Timeline,
) -> Result<(History, Option<String>)> {
    if timeline == Timeline(1) {
        return Ok((History::root(), None));
    }
    let path = format!("{}/{}", version.wal_directory(), history_file_name(timeline));
    let content = stream.read_file(&path, 1 << 20)?.ok_or(Error::NoHistory { timeline: timeline.0 })?;
    let text = String::from_utf8_lossy(&content).into_owned();
    Ok((History::parse(timeline, &text)?, Some(text)))
}

impl There {
    /// Two standbys that were promoted at the same position are both on a timeline of the same number, with the same
    /// history; so are a standby and a primary that was taken back to an earlier state and has gone on from there. Whether the timeline here is the source's, only its WAL can tell: its newest piece here is compared. What
    /// cannot be compared is taken for the same.
    pub fn has_other_wal(&mut self, ours: &Ours, data: &Path) -> Result<bool> {
        let switch = self.history.entries.last().map_or(Lsn::ZERO, |entry| entry.switch);
        if ours.timeline != self.history.timeline || ours.end <= switch {
            return Ok(false);
        }
        let size = self.control.wal_segment_size;
        let segment = Lsn(ours.end.0 - 1).floor(size.into());
        let start = segment.max(switch).max(Lsn(ours.end.0.saturating_sub(COMPARED)));
        let file = format!("{}/{}", self.version.wal_directory(), segment_name(ours.timeline, segment, size));
        let mut here = vec![0; (ours.end.0 - start.0) as usize];
        let read = File::open(data.join(&file))
            .and_then(|opened| opened.read_exact_at(&mut here, start.0 - segment.0));
        let sql = "SELECT pg_read_binary_file($1, $2, $3)";
        let rows = self.db.rows(sql, &[&file, &((start.0 - segment.0) as i64), &(here.len() as i64)]);
        let (Ok(()), Ok(rows)) = (read, rows) else { return Ok(false) };
        Ok(rows.first().is_some_and(|row| row.get::<_, Vec<u8>>(0) != here))
    }

    /// What the decision needs to know of it.
    pub fn as_seen(&self) -> Theirs {
        Theirs { system_id: self.system_id, history: self.history.clone(), end: self.end }
    }

    /// Why a standby that ends at `end` could not stream on from here; `None` when it can. The server
    /// keeps the WAL from its last checkpoint on and more, so only a name in its directory tells.
    pub fn wal_gap(&mut self, end: Lsn) -> Result<Option<String>> {
        if end >= self.end {
            // Nothing is missing; right after a segment switch the next segment does not exist yet.
            return Ok(None);
        }
        let size = self.control.wal_segment_size;
        let wanted = end.floor(size.into());
        let directory = self.version.wal_directory();
        let names = self.db.rows(&format!("SELECT pg_ls_dir('{directory}')"), &[])?;
        let has = names.iter().any(|row| {
            let name: String = row.get(0);
            parse_segment_name(&name, size).is_some_and(|(_, begin)| begin == wanted)
        });
        Ok((!has).then(|| format!("the source no longer has the WAL from {end}")))
    }
}

/// Before anything is asked that such an old server does not understand.
fn check_version(version: PgVersion, name: &str) -> Result<()> {
    if version.has_streaming_replication() {
        return Ok(());
    }
    Err(Error::NoStreaming { at: name.to_owned(), version: version.to_string() })
}

/// The preflight checks that need only the source: whether it can feed one more standby.
pub fn check_feeds_standbys(db: &mut Db, name: &str, slot: &str) -> Result<()> {
    check_version(db.version, name)?;
    let at = name.to_owned();
    let level = db.setting("wal_level")?.unwrap_or_default();
    if !db.version.wal_level_feeds_standbys(&level) {
        return Err(Error::WalLevel { at, level, wanted: db.version.standby_wal_level() });
    }
    let number = |db: &mut Db, name: &str| -> Result<i64> {
        Ok(db.setting(name)?.and_then(|value| value.parse().ok()).unwrap_or(0))
    };
    let senders: i64 = db.value("SELECT count(*) FROM pg_stat_replication", &[])?;
    let limit = number(db, "max_wal_senders")?;
    if senders >= limit {
        return Err(Error::NoFreeSender { at, limit });
    }
    if !db.version.has_replication_slots() {
        return Ok(());
    }
    let slots: i64 = db.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1", &[&slot])?;
    let limit = number(db, "max_replication_slots")?;
    if slots >= limit {
        return Err(Error::NoFreeSlot { at, limit });
    }
    Ok(())
}
