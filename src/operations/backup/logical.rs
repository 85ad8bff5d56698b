//! The bytes of a logical backup: `pg_dump`'s custom format, compressed here, its rows counted as they go by.

use super::super::activity::target;
use super::super::client::{self, Passfile};
use super::super::{Context, promote, standby};
use super::properties;
use super::subject::{Options, Subject, Written};
use super::tools::{self, Tool};
use crate::backups::manifest::{Needs, Table};
use crate::compress::{self, Block, Compression, Form, Pool};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::archive::{self, Archive, Fault, Packing, Sink};
use crate::postgres::wal::{Lsn, SystemId, Timeline};
use crate::process::{self, Finished, Producer};
use crate::progress::Progress;
use crate::sql::{Db, Target};
use crate::store;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::process::Command;
use std::time::Duration;

/// Longer than any dump takes.
const LIMIT: Duration = Duration::from_secs(7 * 86_400);
/// A table that somebody has locked is waited for so long.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
/// pg_dump's clean-up behind its last byte.
const END_LIMIT: Duration = Duration::from_secs(60);
/// `pg_dump --version` and the like.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Which database, and how large it is.
pub fn subject(context: Context, options: &Options) -> Result<Subject> {
    let mut db = Db::connect(&target(context)?)?;
    let there: Vec<String> = texts(&mut db, DATABASES)?;
    let database = match &options.database {
        Some(database) if there.contains(database) => database.clone(),
        Some(database) => return Err(Error::NoDatabase { database: database.clone(), there }),
        None => default_database(&there)?,
    };
    // What would make the backup fail is found before anything is stored.
    let tool = tools::find(context.instance, "pg_dump", db.version, db.version)?;
    compression(context, options, &tool)?;
    let size: i64 = db.value("SELECT pg_database_size($1::text::name)", &[&database])?;
    Ok(Subject { database: Some(database), database_size: size as u64 })
}

const DATABASES: &str = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate \
    ORDER BY datname";

/// The only one beside `postgres`, else `postgres`. Of several nobody has named one.
fn default_database(there: &[String]) -> Result<String> {
    let others: Vec<_> = there.iter().filter(|name| *name != "postgres").collect();
    match others[..] {
        [] => Ok("postgres".into()),
        [only] => Ok(only.clone()),
        _ => Err(Error::WhichDatabase { there: others.into_iter().cloned().collect() }),
    }
}

fn texts(db: &mut Db, sql: &str) -> Result<Vec<String>> {
    Ok(db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

fn pairs(db: &mut Db, sql: &str) -> Result<BTreeMap<String, String>> {
    Ok(db.rows(sql, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes the dump.
pub fn write(context: Context, options: &Options, subject: &Subject, to: &mut dyn Write) -> Result<Written> {
    let database = subject.database.as_deref().unwrap_or("postgres");
    let target = target(context)?.database(database);
    let mut db = Db::connect(&target)?;
    let tool = tools::find(context.instance, "pg_dump", db.version, db.version)?;
    let compression = compression(context, options, &tool)?;
    let standing = Standing::of(&mut db, context.instance)?;
    let snapshot = export_snapshot(&mut db, standing.from_standby)?;
    let (mut tables, unlogged) = tables(&mut db)?;
    let needs = needs(&mut db)?;
    let oid = db.value("SELECT oid FROM pg_database WHERE datname = current_database()", &[])?;
    let properties = properties::for_manifest(properties::read(&mut db, oid)?);
    let detail = format!("{} {} of {database}, {compression}", tool.path.display(), tool.version);
    context.progress.detail(detail);

    let threads = options.jobs.unwrap_or(context.instance.backup.jobs);
    let dump = Dump { context, target: &target, tool: &tool, snapshot, compression, threads };
    context.progress.begin_bytes("backup", subject.database_size);
    let dumped = dump.run(to);
    context.progress.end();
    let (archive, said) = dumped?;
    // Until here it held the snapshot.
    drop(db);

    put_rows(&mut tables, &archive);
    let mut warnings: Vec<String> = said.lines().take(20).map(str::to_owned).collect();
    if standing.from_standby && unlogged > 0 {
        warnings.push(format!("the rows of {unlogged} unlogged tables are not in it: a standby has none"));
    }
    Ok(Written {
        content_size: archive.size,
        compression: compression.to_string(),
        from_standby: standing.from_standby,
        server_version: standing.server_version,
        server_version_num: standing.server_version_num,
        tool_version: Some(tool.version.to_string()),
        system_id: standing.system_id,
        timeline: standing.timeline,
        lsn: standing.lsn,
        tables,
        needs,
        properties: Some(properties),
        physical: None,
        warnings,
    })
}

/// Where the server stands before the snapshot is taken: all that is committed up to there is in it.
struct Standing {
    from_standby: bool,
    server_version: String,
    server_version_num: u32,
    system_id: SystemId,
    timeline: Timeline,
    lsn: Lsn,
}

impl Standing {
    fn of(db: &mut Db, instance: &Instance) -> Result<Standing> {
        let from_standby = db.in_recovery()?;
        let version = db.version;
        let position =
            if from_standby { version.sql_last_wal_replay_lsn() } else { version.sql_current_wal_lsn() };
        let lsn: Option<String> = db.value(&format!("SELECT {position}::text"), &[])?;
        let timeline = match from_standby {
            true => standby::timeline(db, instance)?,
            false => promote::timeline(db, instance)?,
        };
        let said: String = db.value("SELECT current_setting('server_version')", &[])?;
        Ok(Standing {
            from_standby,
            server_version: said.split_whitespace().next().unwrap_or_default().to_owned(),
            server_version_num: version.num(),
            system_id: system_id(db, instance)?,
            timeline,
            // A standby that has replayed nothing yet has no position.
            lsn: lsn.map_or(Ok(Lsn(0)), |text| text.parse())?,
        })
    }
}

fn system_id(db: &mut Db, instance: &Instance) -> Result<SystemId> {
    if db.version.has_control_functions() {
        let id: String = db.value("SELECT system_identifier::text FROM pg_control_system()", &[])?;
        // The function knows it only as a signed number.
        return Ok(SystemId(id.parse::<i64>().map_or(0, |id| id as u64)));
    }
    Ok(instance.control()?.map_or(SystemId(0), |control| control.system_id))
}

/// Opens the transaction whose snapshot the dump is of, so that what is counted here is what is dumped. It stays
/// open as long as the session; none where a standby of this version has no way.
pub fn export_snapshot(db: &mut Db, from_standby: bool) -> Result<Option<String>> {
    let version = db.version;
    db.run("SET statement_timeout = 0")?;
    if version.has_idle_in_transaction_timeout() {
        db.run("SET idle_in_transaction_session_timeout = 0")?;
    }
    if version.has_transaction_timeout() {
        db.run("SET transaction_timeout = 0")?;
    }
    db.run("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
    if from_standby && !version.exports_snapshots_in_recovery() {
        return Ok(None);
    }
    db.value("SELECT pg_export_snapshot()", &[]).map(Some)
}

/// Tables and materialized views in the order of their names, and how many tables are unlogged.
fn tables(db: &mut Db) -> Result<(Vec<Table>, usize)> {
    let estimate = match db.version.has_unknown_reltuples() {
        true => "reltuples::bigint",
        false => "CASE WHEN relpages = 0 THEN -1 ELSE reltuples::bigint END",
    };
    let sql = format!(
        "SELECT nspname::text, relname::text, {estimate}, relpersistence = 'u' \
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind IN ('r', 'm') AND relpersistence <> 't' AND nspname !~ '^pg_' \
         AND nspname <> 'information_schema' ORDER BY nspname, relname"
    );
    let rows = db.rows(&sql, &[])?;
    let unlogged = rows.iter().filter(|row| row.get::<_, bool>(3)).count();
    let table = |row: &postgres::Row| Table {
        database: None,
        schema: row.get(0),
        name: row.get(1),
        estimate: row.get(2),
        rows: None,
    };
    Ok((rows.iter().map(table).collect(), unlogged))
}

/// The exact numbers of rows, as they went by.
fn put_rows(tables: &mut [Table], archive: &Archive) {
    let counted: HashMap<(&str, &str), u64> = archive
        .entries
        .iter()
        .filter_map(|entry| Some(((entry.schema.as_deref()?, entry.name.as_str()), entry.rows?)))
        .collect();
    for table in tables {
        table.rows = counted.get(&(table.schema.as_str(), table.name.as_str())).copied();
    }
}

/// Roles that own something here or are granted something. The dependencies of the superuser that initdb made are
/// not recorded (it is pinned), so what is owned is asked for itself.
const ROLES: &str = "SELECT DISTINCT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' AND oid IN (\
    SELECT refobjid FROM pg_shdepend, pg_database d WHERE refclassid = 'pg_authid'::regclass \
    AND d.datname = current_database() \
    AND (dbid = d.oid OR (dbid = 0 AND classid = 'pg_database'::regclass AND objid = d.oid)) \
    UNION SELECT datdba FROM pg_database WHERE datname = current_database() \
    UNION SELECT relowner FROM pg_class WHERE oid >= 16384 \
    UNION SELECT nspowner FROM pg_namespace WHERE oid >= 16384 \
    UNION SELECT proowner FROM pg_proc WHERE oid >= 16384 \
    UNION SELECT typowner FROM pg_type WHERE oid >= 16384) ORDER BY 1";

const TABLESPACES: &str = "SELECT spcname::text, pg_tablespace_location(oid) FROM pg_tablespace \
    WHERE spcname NOT IN ('pg_default', 'pg_global') AND oid IN (\
    SELECT dattablespace FROM pg_database WHERE datname = current_database() \
    UNION SELECT reltablespace FROM pg_class)";

const EXTENSIONS: &str = "SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql'";

/// `server_encoding` is of this database; a library that is preloaded may be what an extension needs.
const SETTINGS: &str = "SELECT name, setting FROM pg_settings \
    WHERE name IN ('server_encoding', 'shared_preload_libraries') AND setting <> ''";

fn needs(db: &mut Db) -> Result<Needs> {
    let (provider, locale) = match db.version {
        v if v.has_datlocale() => ("datlocprovider::text", "datlocale"),
        v if v.has_locale_provider() => ("datlocprovider::text", "daticulocale"),
        _ => ("NULL::text", "NULL::text"),
    };
    let sql = format!(
        "SELECT pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, {provider}, \
         {locale}::text FROM pg_database WHERE datname = current_database()"
    );
    let row = db.row(&sql, &[])?;
    Ok(Needs {
        encoding: row.get(0),
        collate: row.get(1),
        ctype: row.get(2),
        locale_provider: row.get(3),
        locale: row.get(4),
        roles: texts(db, ROLES)?,
        extensions: pairs(db, EXTENSIONS)?,
        tablespaces: pairs(db, TABLESPACES)?,
        settings: pairs(db, SETTINGS)?,
    })
}

// ---- pg_dump

/// Archives with zstd can be written by this pg_dump and read by the pg_restore beside it. pg_dump says that it cannot
/// before it connects; this one is told to connect where nobody is.
fn has_zstd(dump: &Tool) -> Result<bool> {
    const NOWHERE: &str = "/nonexistent/pgmahout";
    let restore = tools::at(&dump.path.with_file_name("pg_restore"));
    if !dump.version.has_zstd_archives() || restore.is_none_or(|tool| tool.version != dump.version) {
        return Ok(false);
    }
    let mut probe = Command::new(&dump.path);
    probe.args(["-Fc", "--compress=zstd:1", "--no-password", "-h", NOWHERE, "-p", "1", "-d", "postgres"]);
    probe.env_remove("PGSERVICE").env_remove("PGHOSTADDR");
    Ok(process::run_any(&mut probe, PROBE_LIMIT)?.stderr.contains(NOWHERE))
}

/// What was asked for, as far as pg_restore can read it.
fn compression(context: Context, options: &Options, tool: &Tool) -> Result<Compression> {
    let said = options.compression.as_deref().unwrap_or(&context.instance.backup.compression);
    match Compression::parse(said)? {
        None if has_zstd(tool)? => Ok(Compression::ZSTD),
        None => Ok(Compression::GZIP),
        Some(Compression::Zstd(_)) if !has_zstd(tool)? => Err(Error::NoZstd { tool: tool.path.clone() }),
        Some(compression) => Ok(compression),
    }
}

struct Dump<'a> {
    context: Context<'a>,
    target: &'a Target,
    tool: &'a Tool,
    snapshot: Option<String>,
    compression: Compression,
    threads: usize,
}

impl Dump<'_> {
    /// Gives what was dumped and what pg_dump had to say about it.
    fn run(&self, to: &mut dyn Write) -> Result<(Archive, String)> {
        let mut command = self.command();
        // Until pg_dump has ended.
        let _passfile = Passfile::write(self.target, &mut command)?;
        let mut producer = Producer::start(command, LIMIT)?;
        let read = Counted { from: &mut producer.stdout, progress: self.context.progress };
        let mut packer = Packer::new(to, self.compression, self.threads);
        let rewritten =
            archive::rewrite(BufReader::with_capacity(256 << 10, read), self.packing(), &mut packer)
                .and_then(|archive| packer.finish().map(|()| archive).map_err(Fault::Write));
        // It reads as an end of the archive, as a broken pipe, as anything.
        process::check_interrupt()?;
        match rewritten {
            Ok(archive) => {
                let said = self.checked(producer.finish(END_LIMIT)?)?;
                Ok((archive, said))
            }
            Err(Fault::Write(e)) => {
                let store = store::open(self.context.instance)?;
                Err(store::stream_error(&*store, "write", &e))
            }
            Err(fault) => {
                // A pg_dump that failed is the cause, whatever its archive looks like.
                self.checked(producer.finish(END_LIMIT)?)?;
                let why = match fault {
                    Fault::Bad(why) => why,
                    Fault::Read(e) | Fault::Write(e) => e.to_string(),
                };
                Err(Error::Archive { why })
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.tool.path);
        client::point(&mut command, self.target);
        command.env_remove("PGOPTIONS").env_remove("PGCLIENTENCODING").env("LC_ALL", "C");
        command.args(["-Fc", "-Z0", "--no-password"]);
        command.arg(format!("--lock-wait-timeout={}", LOCK_LIMIT.as_millis()));
        if let Some(snapshot) = &self.snapshot {
            command.arg(format!("--snapshot={snapshot}"));
        }
        command
    }

    fn checked(&self, finished: Finished) -> Result<String> {
        if finished.status.success() {
            return Ok(finished.stderr);
        }
        let said = finished.stderr.trim();
        let said = if said.is_empty() { "it said nothing" } else { said };
        let said = said.strip_prefix("pg_dump: error: ").unwrap_or(said).to_owned();
        let (database, status) = (self.target.database.clone(), finished.status.to_string());
        Err(Error::Dump { database, status, said })
    }

    fn packing(&self) -> Packing {
        match self.compression {
            Compression::None => Packing::None,
            Compression::Gzip(level) => Packing::Gzip(level as u8),
            Compression::Zstd(_) => Packing::Zstd,
        }
    }
}

struct Counted<'a, R> {
    from: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}

// ---- the archive's data, compressed

/// What has been handed over to be written in its turn.
enum Part {
    Plain,
    Begin,
    Chunk,
    End,
}

/// Compresses the data of an archive block by block; a block is a chunk of it.
struct Packer<'a> {
    to: BufWriter<&'a mut dyn Write>,
    pool: Pool<Part>,
    compression: Compression,
    block: Vec<u8>,
    /// Of the entry that is being written.
    adler: u32,
}

impl<'a> Packer<'a> {
    fn new(to: &'a mut dyn Write, compression: Compression, threads: usize) -> Packer<'a> {
        let mut pool = Pool::new(compression, Form::Piece, threads);
        let block = pool.buffer();
        Packer { to: BufWriter::with_capacity(256 << 10, to), pool, compression, block, adler: 1 }
    }

    fn push(&mut self) -> io::Result<()> {
        let next = self.pool.buffer();
        let block = std::mem::replace(&mut self.block, next);
        self.pool.push(Part::Chunk, block);
        self.write_ready()
    }

    fn pass(&mut self, part: Part, bytes: &[u8]) -> io::Result<()> {
        self.pool.pass(part, bytes.to_vec());
        self.write_ready()
    }

    fn write_ready(&mut self) -> io::Result<()> {
        while self.pool.has_ready() {
            self.write_one()?;
        }
        Ok(())
    }

    fn write_one(&mut self) -> io::Result<bool> {
        let Some((part, block)) = self.pool.pop()? else { return Ok(false) };
        let gzip = matches!(self.compression, Compression::Gzip(_));
        match part {
            Part::Plain => self.to.write_all(&block.bytes)?,
            Part::Begin => {
                self.adler = 1;
                if gzip {
                    self.write_chunk(&compress::ZLIB_HEAD)?;
                }
            }
            Part::Chunk => self.write_block(&block)?,
            Part::End => {
                if gzip {
                    self.write_chunk(&compress::zlib_tail(self.adler))?;
                }
                self.write_chunk(&[])?;
            }
        }
        self.pool.give_back(block.bytes);
        Ok(true)
    }

    fn write_block(&mut self, block: &Block) -> io::Result<()> {
        self.adler = compress::adler32_combine(self.adler, block.adler, block.input);
        self.write_chunk(&block.bytes)
    }

    fn write_chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut length = Vec::with_capacity(5);
        archive::put_int(&mut length, bytes.len() as u32);
        self.to.write_all(&length)?;
        self.to.write_all(bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        while self.write_one()? {}
        self.to.flush()
    }
}

impl Sink for Packer<'_> {
    fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pass(Part::Plain, bytes)
    }

    fn begin(&mut self) -> io::Result<()> {
        self.pass(Part::Begin, &[])
    }

    fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.compression.block_size() - self.block.len());
            self.block.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.block.len() == self.compression.block_size() {
                self.push()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.push()?;
        }
        self.pass(Part::End, &[])
    }
}
