//! Owns the source as the preflight sees it: reached by SSH, by SQL and by a replication connection, and
//! found to be one and the same server. Nothing is changed there.

use super::super::Context;
use super::super::peers::Source;
use super::super::standby::positions;
use super::plan::{Ours, Theirs};
use super::streams::Opening;
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
use crate::tls::Tls;
use crate::transfer::protocol::FactsAnswer;
use crate::transfer::stream::{Stream, Wishes};
use base64::Engine;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

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
    pub remote: Arc<dyn Remote>,
    /// The shell word that runs the agent there.
    pub agent: String,
    /// The first stream of the transfer.
    pub stream: Stream,
    /// The streams that a copy will take, if it is sure to come.
    pub opening: Option<Opening>,
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
    /// Somebody streams through the slot that will be ours.
    pub slot_is_active: bool,
    /// What it preloads.
    pub preloads: Preloads,
}

/// The libraries that a server preloads.
#[derive(Debug)]
pub struct Preloads {
    /// `shared_preload_libraries`.
    pub setting: String,
    /// The file that says so; empty when none does.
    pub file: String,
    /// `dynamic_library_path`.
    pub path: String,
}

/// The SQL address of a blurb, completed from this instance: where the blurb names no role or no
/// password, ours are used (instances of one service share them).
pub fn sql_target(context: Context, blurb: &Blurb, name: &str) -> Result<Target> {
    let instance = context.instance;
    let password = match &blurb.sql.password {
        Some(password) => Some(password.clone()),
        None => instance.password()?,
    };
    let tls = Tls::of_url(&blurb.sql.ssl)?;
    let data = instance.data_directory()?;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(path) = tls.files().find(|path| real(path).starts_with(real(&data))) {
        return Err(Error::TlsFileInData { path: path.to_owned() });
    }
    Ok(Target {
        label: name.to_owned(),
        host: blurb.sql.host.clone(),
        port: blurb.sql.port,
        user: blurb.sql.user.clone().unwrap_or_else(|| instance.user.clone()),
        password,
        database: blurb.sql.database.clone().unwrap_or_else(|| "postgres".into()),
        tls,
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
    let target = sql_target(context, blurb, &name)?;
    let slot = context.instance.slot_name();
    // All at once: each is a dozen answers one after the other, a second and more where the source is far.
    let (ssh, sql, replication) = thread::scope(|scope| {
        let sql = scope.spawn(|| ask_server(&target, &name, &slot));
        let replication = scope.spawn(|| sql::check_replication(&target));
        let ssh =
            connect_ssh(context, blurb, pinned).and_then(|ssh| Ok((agent::look(&*ssh)?, Arc::from(ssh))));
        let panicked = "a panic has ended the program";
        (ssh, sql.join().expect(panicked), replication.join().expect(panicked))
    });
    let (found, ssh): (_, Arc<dyn Remote>) = ssh?;
    let Asked { db, in_recovery, data_directory, end, slot_is_active, preloads } = sql?;
    let version = db.version;
    let (replication_id, timeline) = replication?;
    let agent = agent::ensured(&*ssh, found, context.progress)?;
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
    Ok(There {
        name,
        target,
        system_id: control.system_id,
        data_directory,
        in_recovery,
        agent,
        stream,
        opening: None,
        facts,
        control,
        version,
        history,
        history_text,
        end,
        slot_is_active,
        preloads,
        db,
        remote: ssh,
    })
}

/// What the server says of itself.
struct Asked {
    db: Db,
    in_recovery: bool,
    data_directory: String,
    end: Lsn,
    slot_is_active: bool,
    preloads: Preloads,
}

/// Also what is looked at much later: meanwhile SSH is being connected, and nobody waits for these answers.
fn ask_server(target: &Target, name: &str, slot: &str) -> Result<Asked> {
    let mut db = Db::connect(target)?;
    check_version(db.version, name)?;
    // pg_settings shows others no data_directory, where current_setting() would fail.
    let row = db.row(
        "SELECT pg_is_in_recovery(), rolsuper, \
                (SELECT setting FROM pg_settings WHERE name = 'data_directory') \
         FROM pg_roles WHERE rolname = current_user",
        &[],
    )?;
    let (in_recovery, is_superuser, data_directory): (bool, bool, Option<String>) =
        (row.get(0), row.get(1), row.get(2));
    let Some(data_directory) = data_directory.filter(|_| is_superuser) else {
        return Err(Error::NotSuperuser { user: target.user.clone(), at: name.to_owned() });
    };
    check_feeds_standbys(&mut db, name, slot)?;
    let active = match db.version.has_replication_slots() {
        true => "(SELECT count(*) > 0 FROM pg_replication_slots WHERE slot_name = $1 AND active)",
        false => "$1::text IS NULL",
    };
    let sql = format!(
        "SELECT {active}, setting, coalesce(sourcefile, ''), current_setting('dynamic_library_path') \
         FROM pg_settings WHERE name = 'shared_preload_libraries'"
    );
    let row = db.row(&sql, &[&slot])?;
    let slot_is_active = row.get(0);
    let preloads = Preloads { setting: row.get(1), file: row.get(2), path: row.get(3) };
    let end = end_of_wal(&mut db, in_recovery)?;
    Ok(Asked { db, in_recovery, data_directory, end, slot_is_active, preloads })
}

/// The end of the WAL of a server: what a primary has flushed, what a standby has received or replayed.
pub fn end_of_wal(db: &mut Db, in_recovery: bool) -> Result<Lsn> {
    let version = db.version;
    if !in_recovery {
        let sql = format!("SELECT {}::text", version.sql_current_wal_flush_lsn());
        return Ok(db.lsn(&sql)?.unwrap_or(Lsn::ZERO));
    }
    let (received, replayed) = positions(db)?;
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

    /// What its peers have to do with.
    pub fn as_peer(&mut self) -> Source<'_> {
        Source {
            name: &self.name,
            target: &self.target,
            db: &mut self.db,
            remote: self.remote.as_ref(),
            agent: &self.agent,
            boot_id: &self.facts.boot_id,
            system_id: self.system_id,
            timeline: self.history.timeline,
        }
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
    let has_slots = db.version.has_replication_slots();
    let slots = if has_slots {
        ", (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1), \
         current_setting('max_replication_slots')::bigint"
    } else {
        ", 0::bigint, 1::bigint WHERE $1::text IS NOT NULL"
    };
    let sql = format!(
        "SELECT current_setting('wal_level'), (SELECT count(*) FROM pg_stat_replication), \
         current_setting('max_wal_senders')::bigint{slots}"
    );
    let row = db.row(&sql, &[&slot])?;
    let level: String = row.get(0);
    if !db.version.wal_level_feeds_standbys(&level) {
        return Err(Error::WalLevel { at, level, wanted: db.version.standby_wal_level() });
    }
    let (senders, limit): (i64, i64) = (row.get(1), row.get(2));
    if senders >= limit {
        return Err(Error::NoFreeSender { at, limit });
    }
    let (slots, limit): (i64, i64) = (row.get(3), row.get(4));
    if slots >= limit {
        return Err(Error::NoFreeSlot { at, limit });
    }
    Ok(())
}
