//! Owns the command line: what was typed, what it means on this machine, how results and errors are shown.

mod activity;
mod backup;
mod copy;
mod credentials;
mod migrate;
mod output;
mod plan;
mod serve;

use crate::backups::manifest::BackupId;
use crate::blurb::{Blurb, is_database_url};
use crate::error::{Error, Result};
use crate::instance::{Instance, parse_mapping};
use crate::operations::backup::restore;
use crate::operations::build_version::{self, Origin, share};
use crate::operations::enslave::plan::{Action, Fate, Wanted};
use crate::operations::{Context, enslave, fence, forget, fork, info, job, logs, peers, promote, wait};
use crate::platform::{address_of, password_of};
use crate::postgres::log::{Entry, Level};
use crate::postgres::time;
use crate::postgres::wal::SystemId;
use crate::process;
use crate::progress::{Progress, Voice, bytes_text, duration_text, time_text};
use crate::settings::Settings;
use crate::transfer::protocol::Compression;
use crate::transfer::target::Copied;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use output::{answer, json_text, say, show, table};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

const MAIN_EXAMPLES: &str = "\
Examples:
  dotcloud info db.0 | dotcloud run db.1 pgmahout enslave   make db.1 a standby of db.0
  pgmahout enslave --dry-run < blurb                        what that would do
  dotcloud info db.0 | dotcloud run db.2 pgmahout fork      make db.2 an independent copy of db.0
  pgmahout info                                             role, lag, followers, slots
  pgmahout promote                                          make this standby a primary
  pgmahout backup capture                                   a backup of the database
  pgmahout logs --slow --tail                               slow statements, as they come
  pgmahout ps                                               what the sessions do
  pgmahout build-version 17                                 build PostgreSQL, switch to it
  pgmahout backup capture                                   back the database up; see pgmahout backup --help
  pgmahout copy shop < url                                  make a database here a copy of another one

Exit codes: 0 done, 1 failed, 2 wrong usage or blurb, 3 refused (needs --confirm),
4 the other side could not be reached, 5 interrupted (run again to complete).";

/// One keeper for one PostgreSQL instance: enslave, promote, backup, info, build-version.
#[derive(Parser, Debug)]
#[command(name = "pgmahout", version, about, after_help = MAIN_EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct Common {
    /// Home directory of the instance, where pgmahout.yml and dotCloud's layout are looked for [default: $HOME]
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// PGDATA of the instance
    #[arg(long, short = 'D', global = true, value_name = "DIR")]
    data_directory: Option<PathBuf>,
    /// Answer with one JSON object on stdout, also for errors
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but warnings and the result
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Also say how each step is done
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    Enslave(EnslaveArgs),
    Fork(ForkArgs),
    Promote(PromoteArgs),
    Wait(WaitArgs),
    BuildVersion(BuildVersionArgs),
    Backup(backup::BackupArgs),
    Copy(copy::CopyArgs),
    #[command(hide = true)]
    CopyPart(copy::PartArgs),
    Serve(serve::ServeArgs),
    Logs(LogsArgs),
    Ps(activity::PsArgs),
    Locks(activity::LocksArgs),
    Outliers(activity::OutliersArgs),
    Kill(activity::KillArgs),
    Psql(activity::PsqlArgs),
    /// Drop the slot of a standby that does not come back
    ///
    /// A slot keeps the WAL that its standby has not received, until the disk is full. One that is in use is never
    /// dropped.
    #[command(after_help = "Example:\n  pgmahout forget db.2")]
    Forget {
        /// Name of the instance that was the standby
        standby: String,
    },
    Peers(PeersArgs),
    Credentials(credentials::CredentialsArgs),
    Plan(plan::PlanArgs),
    Migrate(migrate::MigrateArgs),
    /// Show this instance: role, version, timeline, LSN, lag, followers, slots, connections, size
    #[command(after_help = "Examples:\n  pgmahout info\n  pgmahout --json info | jq .following.lag")]
    Info,
    /// Show every setting, its value and where it came from
    #[command(after_help = "Examples:\n  pgmahout config\n  PGMAHOUT_PORT=5433 pgmahout config")]
    Config,
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  pgmahout completions bash > /etc/bash_completion.d/pgmahout")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory, or the main one to stdout
    #[command(after_help = "Example:\n  pgmahout man /usr/local/share/man/man1")]
    Man {
        /// Directory, which has to exist
        directory: Option<PathBuf>,
    },
    /// The reading end of a copy: started over SSH by the other side
    #[command(hide = true)]
    Source,
    /// Hand out a finished build: started over SSH by `build-version --from-blurb`
    #[command(hide = true)]
    GiveBuild {
        /// Another version than the one in use
        version: Option<String>,
    },
    /// Hand out a backup: started over SSH by `backup restore --from-blurb`
    #[command(hide = true)]
    GiveBackup {
        /// Its name
        id: BackupId,
    },
    /// Stop this primary for its successor: started over SSH by `promote --fence`
    #[command(hide = true)]
    Fence {
        /// The cluster that is meant
        #[arg(long, default_value_t = 0)]
        system_id: u64,
        /// Who is promoted
        #[arg(long)]
        successor: Option<String>,
        /// Start it again
        #[arg(long)]
        undo: bool,
    },
}

/// Show the instances that this one has fed or followed, and whether one of them has taken its place
///
/// Whoever enslaves itself to this instance is noted on both sides. An old primary that comes back after one of them was
/// promoted is told by the timeline that they are on: with --before-start, which the recipe runs, it then starts
/// read-only, and `pgmahout enslave` makes it a follower. Peers that do not answer within three seconds say nothing.
/// `pgmahout forget NAME` removes one that has gone its own way.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout peers
  ExecStartPre=-/usr/local/bin/pgmahout peers --before-start     in a systemd unit, as postgres")]
struct PeersArgs {
    /// For what starts the server: make it start read-only if its place was taken
    #[arg(long)]
    before_start: bool,
    /// The noted ones, without asking them: for another instance, over SSH
    #[arg(long, hide = true, conflicts_with = "before_start")]
    list: bool,
    /// Note the follower at the other end of this SSH session
    #[arg(long, hide = true, value_name = "NAME", requires = "note_port", conflicts_with_all = ["list", "before_start"])]
    note: Option<String>,
    /// Where its server is
    #[arg(long, hide = true, value_name = "PORT")]
    note_port: Option<u16>,
}

/// Make this instance a streaming standby of the one in the blurb
///
/// The blurb is what `dotcloud info` prints of an instance; it comes on stdin, or from a file (--info), or
/// the instance is looked up by its number in this instance's environment. Everything is checked before
/// anything is touched; the cheapest plan that is correct is used: new connection settings where the
/// source has all that this instance has, otherwise a copy.
///
/// The URL of PostgreSQL may say sslmode and sslrootcert, as libpq's do: pgsql://HOST:PORT?sslmode=verify-full checks
/// the source's certificate, now and by the standby that streams from it.
#[derive(Args, Debug)]
#[command(visible_aliases = ["follow", "track"], after_help = "\
Examples:
  dotcloud info db.0 | dotcloud run db.1 pgmahout enslave
  dotcloud run db.1 pgmahout enslave 0
  pgmahout enslave --dry-run --info db0.blurb
  dotcloud info db | pgmahout enslave --from db.0
  dotcloud info db | pgmahout enslave --from db.0 --copy-from db.1
  pgmahout enslave --confirm db.1 < blurb      lose what only db.1 has
  pgmahout enslave --background < blurb && pgmahout wait")]
struct EnslaveArgs {
    #[command(flatten)]
    copy: CopyArgs,
    /// Follow a source that is itself a standby
    #[arg(long)]
    cascade: bool,
    /// A standby of the source that the copy comes from, so that the source has nothing to read: a file with its blurb,
    /// its name where the blurb tells of several, or - where its blurb follows the source's after a line ---
    #[arg(long, value_name = "STANDBY")]
    copy_from: Option<String>,
    /// The plan
    #[arg(long, value_enum, default_value_t = PlanArg::Auto)]
    plan: PlanArg,
    /// A delta compares every block, also those of which the WAL of both sides says that they are the same
    #[arg(long)]
    paranoid: bool,
    /// Seconds that the new standby may take until it streams [default: 120]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// From where, and what may become of this instance.
#[derive(Args, Debug)]
struct CopyArgs {
    /// Number or name of the source in this instance's environment, in place of a blurb
    instance: Option<String>,
    /// File with the blurb; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "instance")]
    info: Option<PathBuf>,
    /// Which instance, when the blurb tells of several
    #[arg(long, value_name = "NAME", conflicts_with = "instance")]
    from: Option<String>,
    /// Name of this instance: its own data may be lost
    #[arg(long, value_name = "INSTANCE")]
    confirm: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Take the source's finished build of PostgreSQL when its version is another
    #[arg(long)]
    take_build: bool,
    /// Accept this host key of the source and no other
    #[arg(long, value_name = "SHA256:…")]
    host_key: Option<String>,
    /// Where a tablespace of the source goes here; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<String>,
    /// Parallel SSH sessions of a copy [default: number of processors, 4 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    ssh_sessions: Option<u16>,
    /// How what is copied is compressed on its way: auto finds out, none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    compress: Compression,
    /// Bytes that the source may read in a second for the copy, such as 50M
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    max_rate: Option<u64>,
    /// Do not verify the checksums of the pages that are copied
    #[arg(long)]
    no_verify_checksums: bool,
    /// Come back as soon as all is checked, and do the rest in the background; `wait` and `info` tell how it does
    #[arg(long, conflicts_with = "dry_run")]
    background: bool,
    /// This is what `--background` has started
    #[arg(long, hide = true, conflicts_with = "background")]
    job: bool,
}

impl CopyArgs {
    /// The source, the standby that a copy comes from, and what was read to know them.
    fn source(&self, context: Context, copy_from: Option<&str>) -> Result<Sources> {
        let in_file = |name: &str| {
            let path = PathBuf::from(name);
            path.is_file().then(|| Blurb::parse(&read_blurb(Some(&path))?, None))
        };
        if let Some(wanted) = &self.instance {
            let other = |name| in_file(name).unwrap_or_else(|| blurb_of_environment(context.instance, name));
            return Ok(Sources {
                source: blurb_of_environment(context.instance, wanted)?,
                copy_from: copy_from.map(other).transpose()?,
                read: None,
            });
        }
        let read = read_blurb(self.info.as_ref())?;
        if self.job {
            job::forget_blurb(context);
        }
        let (first, second) = match copy_from {
            Some("-") => {
                two_documents(&read).map(|(first, second)| (first, Some(second))).ok_or(Error::OneBlurb)?
            }
            _ => (&read[..], None),
        };
        let source = Blurb::parse(first, self.from.as_deref())?;
        let copy_from = match (copy_from, second) {
            (None, _) => None,
            (_, Some(second)) => Some(Blurb::parse(second, None)?),
            (Some(name), None) => Some(match in_file(name) {
                Some(found) => found?,
                // A blurb that has no names tells of the source alone: then a file was meant.
                None => Blurb::parse(&read, Some(name))
                    .ok()
                    .filter(|found| found.name.is_some())
                    .ok_or_else(|| Error::NoSuchStandby { wanted: name.to_owned() })?,
            }),
        };
        Ok(Sources { source, copy_from, read: Some(read) })
    }

    fn options(self) -> Result<enslave::Options> {
        Ok(enslave::Options {
            confirm: self.confirm,
            dry_run: self.dry_run || self.background,
            take_build: self.take_build,
            host_key: self.host_key,
            tablespace_mapping: parse_mapping(&self.tablespace_mapping.join(","))?,
            ssh_sessions: self.ssh_sessions.map(usize::from),
            compression: self.compress,
            max_rate: self.max_rate.unwrap_or(0),
            no_verify_checksums: self.no_verify_checksums,
            ..enslave::Options::default()
        })
    }
}

/// Whom a copy is of.
struct Sources {
    source: Blurb,
    copy_from: Option<Blurb>,
    read: Option<Vec<u8>>,
}

/// What is before and behind the line `---`.
fn two_documents(read: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = b"\n---\n";
    let at = read.windows(line.len()).position(|window| window == line)?;
    Some((&read[..at + 1], &read[at + line.len()..]))
}

/// Make this instance an independent, writable copy of the one in the blurb
///
/// It has all that the source had when the command was given, a timeline of its own, and nothing that ties
/// it to the source, which goes on as if nothing had been. No archive is needed or waited for.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  dotcloud info db.0 | dotcloud run db.2 pgmahout fork
  pgmahout fork --dry-run --info db0.blurb
  pgmahout fork --confirm db.2 < blurb      lose what only db.2 has")]
struct ForkArgs {
    #[command(flatten)]
    copy: CopyArgs,
    /// Seconds that replay may stand still, and that the end of recovery may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum PlanArg {
    /// The cheapest that is correct
    Auto,
    /// No data moved, or refused
    Repoint,
    /// Only what differs is copied, over what is here
    Delta,
    /// A full copy
    Full,
}

/// Make this standby a primary on a new timeline
///
/// It first replays all that it received. When the old primary still answers and is writable there would
/// be two primaries: then this instance's name is asked for (or --confirm gives it), and --fence stops the
/// old primary first, so that no commit is lost. When the old primary is unreachable it promotes at once.
#[derive(Args, Debug)]
#[command(
    visible_alias = "unfollow",
    after_help = "\
Examples:
  pgmahout promote
  dotcloud info db.0 | dotcloud run db.1 pgmahout promote --fence     stop db.0 first, lose nothing
  pgmahout promote --confirm db.1                                     although db.0 is still writable"
)]
struct PromoteArgs {
    /// Name of this instance: promote although the old primary is still writable
    #[arg(long, value_name = "INSTANCE")]
    confirm: Option<String>,
    /// Stop the old primary first; its blurb comes on stdin or by --info
    #[arg(long)]
    fence: bool,
    /// File with the old primary's blurb; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "fence")]
    info: Option<PathBuf>,
    /// Which instance, when the blurb tells of several
    #[arg(long, value_name = "NAME", requires = "fence")]
    from: Option<String>,
    /// Accept this host key of the old primary and no other
    #[arg(long, value_name = "SHA256:…", requires = "fence")]
    host_key: Option<String>,
    /// Seconds that the end of recovery may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// Wait until this standby has replayed all that its primary has written
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  pgmahout wait\n  pgmahout wait --timeout 60 && echo caught up")]
struct WaitArgs {
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

/// Give this instance another PostgreSQL: built from source once, kept, switched to
///
/// The version is the argument, else $SERVICE_VERSION, else what dotcloud.yml says: 17 is the newest 17.x of
/// the mirror, 17.6 is that one. It is built in ~/postgresql-<VERSION>, with what the machine has; then
/// ~/postgresql is pointed to it and the server restarted. A version that was built before is switched to
/// at once. Options for PostgreSQL's configure come after `--`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout build-version 17                         the newest 17.x
  pgmahout build-version 17.5                       back to a build that is still here: no compiling
  pgmahout build-version 17 --no-switch -- --with-perl CFLAGS=-O3
  dotcloud info db.0 | dotcloud run db.1 pgmahout build-version --from-blurb
                                                    take the finished build of db.0
  pgmahout build-version --list
  pgmahout build-version --remove 17.5")]
struct BuildVersionArgs {
    /// Version: 17, 17.6, 9.6.24, 18beta1
    version: Option<String>,
    /// Show the builds of this instance: version, size, when, with what, in use
    #[arg(long, conflicts_with_all = ["remove", "from_blurb", "version"])]
    list: bool,
    /// Remove the build of this version; never the one in use
    #[arg(long, requires = "version", conflicts_with = "from_blurb")]
    remove: bool,
    #[command(flatten)]
    other: OtherArgs,
    /// Build it, but go on using what is in use
    #[arg(long)]
    no_switch: bool,
    /// Build (or take) it again although it is here
    #[arg(long)]
    rebuild: bool,
    /// Say what would be done, and do nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// SHA-256 of the tarball, in place of the published one
    #[arg(long, value_name = "HEX", conflicts_with = "from_blurb")]
    sha256: Option<String>,
    /// URL of a directory with sources, in place of the setting source_mirrors; may be repeated
    #[arg(long, value_name = "URL", conflicts_with = "from_blurb")]
    mirror: Vec<String>,
    /// Compilers at the same time [default: number of processors]
    #[arg(long, short = 'j', value_name = "N", conflicts_with = "from_blurb", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Options for PostgreSQL's configure, after those of the setting build_options
    #[arg(last = true, value_name = "CONFIGURE-OPTION", conflicts_with = "from_blurb")]
    options: Vec<String>,
}

/// Show this server's log, one line per entry, with times in UTC
///
/// The log is found by the server's settings: the logging collector's files (json, csv or stderr format, in
/// this order of preference), otherwise the file in which supervisor, Debian or pg_ctl keep the server's
/// stderr. A line of the output is `<time> app[postgres.<instance>]: [<pid>] <severity>:  <message>`; what
/// belongs to an entry (DETAIL, STATEMENT, …) stands behind its message. Passwords after the word PASSWORD
/// are masked.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout logs                          the last 100 entries
  pgmahout logs --slow                   statements over the setting slow_query_ms (50)
  pgmahout logs --tail --slow 1000       those over a second, as they come, until Ctrl-C
  pgmahout logs --since 2h --level error
  pgmahout logs --since 1d --json | jq -r 'select(.duration_ms > 500) | .message'")]
struct LogsArgs {
    /// How many of the last entries [default: 100; with --since all]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Go on with new entries as they come, until Ctrl-C
    #[arg(long, short = 't')]
    tail: bool,
    /// Only statements that took at least MS milliseconds [default: the setting slow_query_ms]
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    slow: Option<Option<f64>>,
    /// Only since this time (2026-11-21T15:40:00Z) or so long ago (90s, 10m, 2h, 1d)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<i64>,
    /// Only so grave ones and worse; LOG counts as information
    #[arg(long, value_enum, value_name = "LEVEL")]
    level: Option<LevelArg>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum LevelArg {
    /// All
    Debug,
    /// LOG, INFO and worse
    Log,
    /// NOTICE and worse
    Notice,
    /// WARNING and worse
    Warning,
    /// Failed statements and worse
    Error,
    /// Sessions that ended, and worse
    Fatal,
    /// All sessions ended
    Panic,
}

fn milliseconds(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0);
    number.ok_or_else(|| "not a number of milliseconds".to_owned())
}

fn since(text: &str) -> std::result::Result<i64, String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_micros() as i64);
    time::since(text, now).map_err(|error| format!("{error}: {}", error.hint().unwrap_or_default()))
}

/// A password must not stand among the arguments, which everybody on the machine can read: it is refused before
/// anything quotes it. What is for psql is psql's affair.
fn check_no_password(arguments: &[String]) -> Result<()> {
    let holds = |word: &String| {
        let is_url = is_database_url(word) && password_of(word).is_some();
        is_url || address_of(word).is_some_and(|at| at.has_password) || word.contains("password=")
    };
    match arguments.iter().any(holds) && !arguments.iter().any(|word| word == "psql") {
        true => Err(Error::PasswordArgument),
        false => Ok(()),
    }
}

/// Runs the command line; gives the exit code of the process.
pub fn run() -> u8 {
    let arguments: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Err(error) = check_no_password(&arguments) {
        show_error(&error, arguments.iter().any(|word| word == "--json"));
        return error.exit() as u8;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version end here too; clap's own code for wrong usage is 2, as ours.
        Err(error) => {
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    process::catch_interrupts();
    let json = cli.common.json;
    // Its stdout is an archive by then.
    let is_giver = matches!(cli.command, Command::GiveBuild { .. } | Command::GiveBackup { .. });
    match dispatch(cli) {
        Ok(()) => 0,
        Err(error) if is_giver => {
            let _ = writeln!(std::io::stderr(), "{}", json_text(&error_json(&error)));
            error.exit() as u8
        }
        Err(error) => {
            show_error(&error, json);
            error.exit() as u8
        }
    }
}

fn show_error(error: &Error, json: bool) {
    if json {
        answer(&error_json(error));
        return;
    }
    let hint = error.hint().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    let _ = write!(std::io::stderr(), "pgmahout: {error}\n{hint}");
}

fn error_json(error: &Error) -> serde_json::Value {
    let exit = error.exit() as u8;
    json!({"error": {"message": error.to_string(), "hint": error.hint(), "exit": exit}})
}

fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pgmahout", &mut std::io::stdout());
            return Ok(());
        }
        Command::Man { directory } => return man(directory),
        Command::Source => {
            return crate::transfer::source::serve_standard_streams()
                .map_err(|e| Error::SshBroken { host: "the target".into(), why: e.to_string() });
        }
        _ => {}
    }
    let voice = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => Voice::Quiet,
        (_, true) => Voice::Verbose,
        _ => Voice::Normal,
    };
    let progress = Progress::new(voice);
    // The operator's machine has no instance.
    if let Command::Migrate(args) = &cli.command {
        return migrate::run(&progress, args, cli.common.json);
    }
    let instance = find_instance(&cli)?;
    let context = Context { instance: &instance, progress: &progress };
    let json = cli.common.json;
    match cli.command {
        Command::Enslave(args) => run_enslave(context, args, json),
        Command::Fork(args) => run_fork(context, args, json),
        Command::Promote(args) => run_promote(context, args, json),
        Command::Wait(args) => {
            let report = wait::run(context, Duration::from_secs(args.timeout))?;
            show(json, &report, wait_text);
            Ok(())
        }
        Command::BuildVersion(args) => run_build_version(context, args, json),
        Command::Backup(args) => {
            backup::run(context, args, json, &|| load_instance(&cli.common, BTreeMap::new()))
        }
        Command::Copy(args) => copy::run(context, args, json),
        Command::CopyPart(args) => copy::run_part(context, args, json),
        Command::Serve(_) => serve::run(context),
        Command::Logs(args) => run_logs(context, &args, json),
        Command::Ps(args) => activity::ps(context, &args, json),
        Command::Locks(_) => activity::locks(context, json),
        Command::Outliers(args) => activity::outliers(context, &args, json),
        Command::Kill(args) => activity::kill(context, &args, json),
        Command::Psql(args) => activity::psql(context, &args),
        Command::Forget { standby } => {
            show(json, &forget::run(context, &standby)?, forget_text);
            Ok(())
        }
        Command::Credentials(args) => {
            show(json, &credentials::run(context, &args)?, credentials::text);
            Ok(())
        }
        Command::Peers(PeersArgs { note: Some(name), note_port: Some(port), .. }) => {
            peers::note_follower(&instance, &name, port)?;
            // On a line of its own, whatever a login profile has printed before it.
            say("");
            answer(&instance.name);
            Ok(())
        }
        Command::Peers(PeersArgs { list: true, .. }) => {
            // On a line of its own, whatever a login profile has printed before it.
            say("");
            answer(&peers::known(context));
            Ok(())
        }
        Command::Peers(PeersArgs { before_start: true, .. }) => {
            let superseded = peers::before_start(context)?;
            if json {
                answer(&json!({"instance": instance.name, "superseded": superseded}));
            } else if let Some(why) = &superseded {
                say(&peers_advice(&instance.name, why));
            }
            Ok(())
        }
        Command::Peers(_) => {
            show(json, &peers::run(context)?, peers_text);
            Ok(())
        }
        Command::Plan(args) => {
            show(json, &plan::run(context, &args)?, plan::text);
            Ok(())
        }
        Command::GiveBuild { version } => share::give(context, version.as_deref(), std::io::stdout().lock()),
        Command::GiveBackup { id } => restore::source::give(context, id, std::io::stdout().lock()),
        Command::Info => {
            let report = info::run(context)?;
            show(json, &report, info_text);
            Ok(())
        }
        Command::Config => {
            if json {
                answer(&instance.resolved())
            } else {
                say(config_text(&instance).trim_end())
            }
            Ok(())
        }
        Command::Fence { undo: true, successor, .. } => {
            fence::unfence(context, successor.as_deref())?;
            answer(&json!({"instance": instance.name, "started": true}));
            Ok(())
        }
        Command::Fence { system_id, successor, .. } => {
            let fenced = fence::fence(
                context,
                SystemId(system_id),
                successor.as_deref().unwrap_or("another instance"),
            )?;
            // On a line of its own, whatever a login profile has printed before it.
            say("");
            answer(&fenced);
            Ok(())
        }
        Command::Completions { .. } | Command::Man { .. } | Command::Source | Command::Migrate(_) => Ok(()),
    }
}

fn find_instance(cli: &Cli) -> Result<Instance> {
    let mut flags = BTreeMap::new();
    if let Command::Enslave(EnslaveArgs { timeout: Some(seconds), .. }) = &cli.command {
        flags.insert("stream_timeout", seconds.to_string());
    }
    if let Command::BuildVersion(BuildVersionArgs { mirror, .. }) = &cli.command
        && !mirror.is_empty()
    {
        flags.insert("source_mirrors", mirror.join("\n"));
    }
    load_instance(&cli.common, flags)
}

fn load_instance(common: &Common, mut flags: BTreeMap<&'static str, String>) -> Result<Instance> {
    let home = common.home.clone().or_else(|| std::env::var_os("HOME").map(PathBuf::from));
    let home = home.unwrap_or_else(|| PathBuf::from("/"));
    if let Some(path) = &common.data_directory {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        flags.insert("data_directory", path.display().to_string());
    }
    Instance::discover(&Settings::load(&home, flags, std::env::vars())?)
}

/// No blurb is this long; the parser says so in its own words.
const BLURB_LIMIT: u64 = 2 << 20;

/// `dotcloud info` takes a second or two; a pipe that is still open after this was forgotten.
const BLURB_WAIT: Duration = Duration::from_secs(120);

fn read_blurb(info: Option<&PathBuf>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match info {
        Some(path) if path.as_os_str() != "-" => {
            let read = std::fs::File::open(path).and_then(|f| f.take(BLURB_LIMIT).read_to_end(&mut bytes));
            read.map_err(|source| Error::File { action: "read", path: path.clone(), source })?;
        }
        _ => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                return Err(Error::BlurbFromTerminal);
            }
            let read = process::read_within(BLURB_WAIT, move || {
                let mut bytes = Vec::new();
                stdin.lock().take(BLURB_LIMIT).read_to_end(&mut bytes).map(|_| bytes)
            })?;
            let read = read.ok_or(Error::BlurbDoesNotCome { limit: BLURB_WAIT })?;
            bytes = read.map_err(|source| Error::File { action: "read", path: "stdin".into(), source })?;
        }
    }
    Ok(bytes)
}

fn blurb_of_environment(instance: &Instance, wanted: &str) -> Result<Blurb> {
    let names = ["environment.json", "environment.yaml", "environment.yml", "environment"];
    let found = names.iter().find_map(|name| std::fs::read(instance.home.join(name)).ok());
    let found = found.ok_or_else(|| Error::NoEnvironment { home: instance.home.clone() })?;
    Blurb::from_environment(&found, wanted)
}

/// "50M", "32k", "1000000": bytes, by powers of 1024 as pg_basebackup's `--max-rate` has them.
fn parse_rate(text: &str) -> std::result::Result<u64, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], 1 << 20),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let rate = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    match rate {
        Some(rate) if rate >= SLOWEST => Ok(rate),
        Some(_) => Err("less than 32k a second would take for ever".into()),
        None => Err("a rate is a number with k, M or G, such as 50M".into()),
    }
}

/// Slower than this the source would look dead to its client.
const SLOWEST: u64 = 32 << 10;

/// A long copy, in whichever of three ways: with the operator waiting, only checked and then handed to a job, or
/// as that job.
fn copy<T: Serialize>(
    context: Context,
    verb: &str,
    args: CopyArgs,
    copy_from: Option<String>,
    json: bool,
    run: impl FnOnce(&Blurb, enslave::Options) -> Result<T>,
    summary: impl FnOnce(&T) -> (String, Option<String>),
) -> Result<Option<T>> {
    if args.job {
        job::begin(context)?;
        let done = args.source(context, copy_from.as_deref()).and_then(|found| {
            run(&found.source, enslave::Options { copy_from: found.copy_from, ..args.options()? })
        });
        job::end(context, done.as_ref().err());
        return done.map(Some);
    }
    let Sources { source: blurb, copy_from, read } = args.source(context, copy_from.as_deref())?;
    let (background, confirmed) = (args.background, args.confirm.clone());
    let report = run(&blurb, enslave::Options { copy_from, ..args.options()? })?;
    if !background {
        return Ok(Some(report));
    }
    let instance = &context.instance.name;
    let (source, loses) = summary(&report);
    if let Some(holds) = loses.filter(|_| confirmed.as_ref() != Some(instance)) {
        return Err(Error::NeedsConfirmation { instance: instance.clone(), holds });
    }
    let job = job::start(context, verb, &source, arguments_of_job(), read.as_deref())?;
    if json {
        answer(&json!({"instance": instance, "started": job, "planned": report}));
    } else {
        say(&format!(
            "{instance}: the {verb} of {source} goes on in the background; pgmahout wait tells when it is done"
        ));
    }
    Ok(None)
}

/// Another instance, which has what is wanted.
#[derive(Args, Debug)]
struct OtherArgs {
    /// Take it from the instance whose blurb comes on stdin or by --info
    #[arg(long)]
    from_blurb: bool,
    /// File with the blurb; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "from_blurb")]
    info: Option<PathBuf>,
    /// Which instance, when the blurb tells of several
    #[arg(long, value_name = "NAME", requires = "from_blurb")]
    from: Option<String>,
    /// Accept this host key of the other instance and no other
    #[arg(long, value_name = "SHA256:…", requires = "from_blurb")]
    host_key: Option<String>,
}

impl OtherArgs {
    /// Its blurb, when it was asked for.
    fn blurb(&self) -> Result<Option<Blurb>> {
        if !self.from_blurb {
            return Ok(None);
        }
        Blurb::parse(&read_blurb(self.info.as_ref())?, self.from.as_deref()).map(Some)
    }
}

/// The command line of this process as that of the job that it starts: the blurb comes from a file.
fn arguments_of_job() -> Vec<std::ffi::OsString> {
    let mut arguments = Vec::new();
    let mut given = std::env::args_os().skip(1);
    while let Some(argument) = given.next() {
        match argument.to_str() {
            Some("--background") => arguments.push("--job".into()),
            Some("--info") => drop(given.next()),
            Some(text) if text.starts_with("--info=") => {}
            _ => arguments.push(argument),
        }
    }
    arguments
}

fn run_fork(context: Context, args: ForkArgs, json: bool) -> Result<()> {
    let timeout = Duration::from_secs(args.timeout);
    let run = |blurb: &Blurb, copy| fork::run(context, blurb, &fork::Options { copy, timeout });
    let summary = |report: &fork::Report| (report.source.clone(), report.plan.loses.clone());
    let Some(report) = copy(context, "fork", args.copy, None, json, run, summary)? else { return Ok(()) };
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    show(json, &report, fork_text);
    Ok(())
}

fn fork_text(report: &fork::Report) -> String {
    let (instance, source) = (&report.instance, &report.source);
    if report.dry_run {
        let bytes = bytes_text(report.bytes_planned.unwrap_or(0));
        let confirm = report.plan.loses.as_ref();
        let confirm = confirm.map(|loses| format!("\nneeds --confirm {instance}: it holds {loses}"));
        return format!("{instance} would copy {bytes} of {source}{}", confirm.unwrap_or_default());
    }
    let copied = match &report.copied {
        Some(copied) => format!("{}, ", copied_text(copied)),
        None => String::new(),
    };
    let lsn = report.lsn.map(|lsn| format!(" as of {lsn}")).unwrap_or_default();
    let timeline = report.timeline.map_or(0, |timeline| timeline.0);
    let seconds = duration_text(report.seconds);
    format!(
        "{instance} is a copy of {source}{lsn}: {copied}{seconds}, writable on timeline {timeline}{}",
        kept_text(report.kept.as_ref())
    )
}

fn copied_text(copied: &Copied) -> String {
    let (bytes, files) = (bytes_text(copied.bytes), copied.files);
    match copied.compared {
        true if copied.known_by.is_some() => format!(
            "{bytes} in {files} files, of which the WAL named {} to be compared, {} copied",
            bytes_text(copied.bytes.saturating_sub(copied.passed_over_bytes)),
            bytes_text(copied.written_bytes)
        ),
        true => format!("{bytes} in {files} files compared, {} copied", bytes_text(copied.written_bytes)),
        false => format!("{bytes} in {files} files copied"),
    }
}

fn kept_text(kept: Option<&PathBuf>) -> String {
    let text = |path: &PathBuf| {
        format!("\nthe old cluster is kept in {0}; when it is not needed: rm -r '{0}'", path.display())
    };
    kept.map(text).unwrap_or_default()
}

fn run_enslave(context: Context, args: EnslaveArgs, json: bool) -> Result<()> {
    let wanted = match args.plan {
        PlanArg::Auto => Wanted::Auto,
        PlanArg::Repoint => Wanted::Repoint,
        PlanArg::Delta => Wanted::Delta,
        PlanArg::Full => Wanted::Full,
    };
    let (cascade, paranoid, copy_from) = (args.cascade, args.paranoid, args.copy_from);
    let run = |blurb: &Blurb, copy| {
        enslave::run(context, blurb, &enslave::Options { cascade, wanted, paranoid, ..copy })
    };
    let summary = |report: &enslave::Report| (report.source.clone(), report.plan.loses.clone());
    let Some(report) = copy(context, "enslave", args.copy, copy_from, json, run, summary)? else {
        return Ok(());
    };
    show(json, &report, enslave_text);
    Ok(())
}

fn enslave_text(report: &enslave::Report) -> String {
    let (instance, source) = (&report.instance, &report.source);
    if report.already {
        return format!("{instance} follows {source} already, {}", lag_text(&report.lag));
    }
    if report.dry_run {
        let fate = match report.plan.fate {
            Fate::Used => "the data here is used as it is",
            Fate::None => "there is no cluster here",
            Fate::Rewritten => "what differs in the cluster here is overwritten",
            Fate::Removed => "the cluster here is replaced; it holds nothing that the source lacks",
            Fate::KeptAside => "the cluster here is moved aside and kept",
        };
        let what = match report.plan.action {
            Action::Repoint => "would repoint, no data moved".to_owned(),
            Action::Delta => {
                format!(
                    "would compare {} and copy what differs",
                    bytes_text(report.bytes_planned.unwrap_or(0))
                )
            }
            Action::Full => format!("would copy {}", bytes_text(report.bytes_planned.unwrap_or(0))),
        };
        let confirm =
            report.plan.loses.as_ref().map(|loses| format!("\nneeds --confirm {instance}: it holds {loses}"));
        return format!("{instance} {what}; {fate}{}", confirm.unwrap_or_default());
    }
    let how = match &report.copied {
        None => "no data moved".to_owned(),
        Some(copied) => format!(
            "{}, {} on the wire",
            copied_text(copied),
            bytes_text(copied.wire_bytes + copied.sent_bytes)
        ),
    };
    let seconds = duration_text(report.seconds);
    let lag = lag_text(&report.lag);
    let build = report.taken_build.as_ref().map(|build| format!(", with its PostgreSQL {build}"));
    format!(
        "{instance} streams from {source}{}{}: {how}, {seconds}, {lag}{}",
        build.unwrap_or_default(),
        report.copied_from.as_ref().map_or(String::new(), |other| format!(", copied from {other}")),
        kept_text(report.kept.as_ref())
    )
}

fn lag_text(lag: &crate::operations::standby::Lag) -> String {
    match (lag.bytes, lag.seconds) {
        (Some(0), _) => "no lag".into(),
        (Some(bytes), Some(seconds)) => format!("lag {} ({})", bytes_text(bytes), duration_text(seconds)),
        (Some(bytes), None) => format!("lag {}", bytes_text(bytes)),
        _ => "lag unknown".into(),
    }
}

fn run_build_version(context: Context, args: BuildVersionArgs, json: bool) -> Result<()> {
    if args.list {
        let listed = build_version::list_builds(context)?;
        if json {
            answer(&listed)
        } else {
            say(builds_text(&listed).trim_end())
        }
        return Ok(());
    }
    if args.remove {
        let version = args.version.unwrap_or_default();
        let removed = build_version::remove(context, &version, args.dry_run)?;
        if json {
            answer(&removed);
            return Ok(());
        }
        let verb = if removed.dry_run { "would be removed" } else { "is removed" };
        let (version, freed) = (&removed.version, bytes_text(removed.bytes));
        say(&format!("PostgreSQL {version} {verb} from {}: {freed}", removed.directory.display()));
        return Ok(());
    }
    let report = if let Some(blurb) = args.other.blurb()? {
        let options = share::Options {
            version: args.version,
            host_key: args.other.host_key,
            no_switch: args.no_switch,
            rebuild: args.rebuild,
            dry_run: args.dry_run,
        };
        share::run(context, &blurb, &options)?
    } else {
        let options = build_version::Options {
            version: args.version,
            sha256: args.sha256,
            no_switch: args.no_switch,
            rebuild: args.rebuild,
            dry_run: args.dry_run,
            options: args.options,
            jobs: args.jobs.map(usize::from),
        };
        build_version::run(context, &options)?
    };
    show(json, &report, build_version_text);
    Ok(())
}

fn build_version_text(report: &build_version::Report) -> String {
    let (instance, version) = (&report.instance, &report.version);
    if report.dry_run {
        let source = report.source.as_deref().unwrap_or_default();
        let options = report.options.as_deref().unwrap_or_default().join(" ");
        return match report.origin {
            Origin::Present if report.in_use => format!("{instance} uses PostgreSQL {version} already"),
            Origin::Present => format!("PostgreSQL {version} is here and would not be built again"),
            Origin::Taken => format!("would take PostgreSQL {version} ({options})"),
            Origin::Built => format!("would build PostgreSQL {version} from {source}: configure {options}"),
        };
    }
    let how = match report.origin {
        Origin::Present => String::new(),
        Origin::Built => format!(", built in {}", duration_text(report.seconds)),
        Origin::Taken => format!(", taken in {}", duration_text(report.seconds)),
    };
    let before = report.previous.as_ref().map(|before| format!("; before: {before}")).unwrap_or_default();
    let restarted = if report.restarted { ", server restarted" } else { "" };
    match (report.in_use, report.switched) {
        (false, _) => format!(
            "PostgreSQL {version} is in {}{how}; `pgmahout build-version {version}` switches to it",
            report.directory.display()
        ),
        (true, true) => format!("{instance} uses PostgreSQL {version} now{how}{restarted}{before}"),
        (true, false) if report.restarted || !how.is_empty() => {
            format!("{instance} uses PostgreSQL {version}{how}{restarted}")
        }
        (true, false) => format!("{instance} uses PostgreSQL {version} already"),
    }
}

fn builds_text(listed: &[build_version::Listed]) -> String {
    if listed.is_empty() {
        return "no PostgreSQL here; pgmahout build-version 17 builds one".into();
    }
    let rows = listed.iter().map(|build| {
        let state = match (build.in_use, build.running) {
            (true, true) => "in use, running",
            (true, false) => "in use",
            (false, true) => "running",
            (false, false) => "",
        };
        let options = match (&build.options, &build.with) {
            (Some(options), Some(with)) if options.is_empty() => with.join(" "),
            (Some(options), _) => options.join(" "),
            _ if build.bytes.is_none() => format!("installed in {}", build.directory.display()),
            _ => String::new(),
        };
        [
            build.version.clone(),
            build.bytes.map(bytes_text).unwrap_or_else(|| "-".into()),
            build.built_at.map(time_text).unwrap_or_else(|| "-".into()),
            state.to_owned(),
            match &build.taken_from {
                Some(giver) => format!("{options} (from {giver})"),
                None => options,
            },
        ]
    });
    table(&["VERSION", "SIZE", "BUILT", "STATE", "OPTIONS"], rows)
}

fn run_logs(context: Context, args: &LogsArgs, json: bool) -> Result<()> {
    let name = &context.instance.name;
    let options = logs::Options {
        last: args.lines.or(if args.since.is_some() { None } else { Some(100) }),
        tail: args.tail,
        slow: args.slow.map(|said| said.unwrap_or(context.instance.slow_query_ms as f64)),
        since: args.since,
        level: args.level.map(|level| match level {
            LevelArg::Debug => Level::Debug,
            LevelArg::Log => Level::Log,
            LevelArg::Notice => Level::Notice,
            LevelArg::Warning => Level::Warning,
            LevelArg::Error => Level::Error,
            LevelArg::Fatal => Level::Fatal,
            LevelArg::Panic => Level::Panic,
        }),
    };
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    // A reader that has gone away ends it, and is no failure of ours.
    logs::run(context, &options, &mut |entry| match entry {
        Some(entry) if json => writeln!(stdout, "{}", entry_json(entry, name)).is_ok(),
        Some(entry) => writeln!(stdout, "{}", entry_text(entry, name)).is_ok(),
        None => stdout.flush().is_ok() && has_reader(stdout.get_ref()),
    })
}

/// Whether the other end of stdout is still open. Only a write would say otherwise, and a quiet log gives
/// nothing to write: the reader at the other end of an SSH connection would leave us behind for ever.
fn has_reader(stdout: &impl std::os::fd::AsFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut ends = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    !matches!(poll(&mut ends, PollTimeout::ZERO), Ok(n) if n > 0)
        || !ends[0].revents().is_some_and(|events| events.intersects(gone))
}

/// An entry's time: UTC, or without `+00:00` when the zone's distance is not known.
fn entry_time(entry: &Entry) -> String {
    let zone = if entry.zone.is_none() { "+00:00" } else { "" };
    format!("{}{zone}", time::iso(entry.time.unwrap_or(0)))
}

/// As Heroku shows a log of PostgreSQL.
fn entry_text(entry: &Entry, instance: &str) -> String {
    let pid = entry.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let (severity, line) = (output::in_one_line(&entry.severity), entry.one_line());
    format!("{} app[postgres.{instance}]: [{pid}] {severity}:  {line}", entry_time(entry))
}

fn entry_json(entry: &Entry, instance: &str) -> String {
    let mut object = serde_json::Map::new();
    let mut put = |name: &str, value: serde_json::Value| {
        if !value.is_null() {
            object.insert(name.to_owned(), value);
        }
    };
    put("time", json!(entry_time(entry)));
    put("instance", json!(instance));
    put("pid", json!(entry.pid));
    put("severity", json!(entry.severity));
    put("message", json!(entry.message));
    for (label, text) in &entry.attached {
        put(&label.to_lowercase(), json!(text));
    }
    put("duration_ms", json!(entry.duration()));
    put("user", json!(entry.user));
    put("database", json!(entry.database));
    put("application", json!(entry.application));
    json_text(&object)
}

fn run_promote(context: Context, args: PromoteArgs, json: bool) -> Result<()> {
    let fence = match args.fence {
        true => Some(Blurb::parse(&read_blurb(args.info.as_ref())?, args.from.as_deref())?),
        false => None,
    };
    let mut options = promote::Options {
        confirm: args.confirm,
        fence,
        host_key: args.host_key,
        timeout: Duration::from_secs(args.timeout),
    };
    let report = match promote::run(context, &options) {
        Err(error @ Error::TwoPrimaries { .. }) if !json && options.confirm.is_none() => {
            options.confirm = Some(ask_for_name(&error, &context.instance.name)?.ok_or(error)?);
            promote::run(context, &options)?
        }
        other => other?,
    };
    for warning in &report.warnings {
        context.progress.warn(warning);
    }
    show(json, &report, promote_text);
    Ok(())
}

/// A person may look something up before answering; an hour later nobody is there.
const ANSWER_WAIT: Duration = Duration::from_secs(3600);

/// On a terminal the operator may type the instance's name; anything else is a no.
fn ask_for_name(error: &Error, name: &str) -> Result<Option<String>> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    let _ = write!(
        std::io::stderr(),
        "pgmahout: {error}\nType {name} to promote all the same, anything else to leave it: "
    );
    let read = process::read_within(ANSWER_WAIT, || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    })?;
    let Some(line) = read else { return Ok(None) };
    let line = line.map_err(|source| Error::File { action: "read", path: "stdin".into(), source })?;
    Ok((line.trim() == name).then(|| name.to_owned()))
}

fn promote_text(report: &promote::Report) -> String {
    let instance = &report.instance;
    let timeline = report.timeline.0;
    if report.already {
        return format!("{instance} is a primary already, on timeline {timeline}");
    }
    let last = report.last_lsn.map(|lsn| format!(", last LSN replayed {lsn}")).unwrap_or_default();
    let age = report
        .last_commit_age
        .map(|age| format!(", its last commit {} old", duration_text(age)))
        .unwrap_or_default();
    let seconds = duration_text(report.seconds);
    format!("{instance} is a primary on timeline {timeline} after {seconds}{last}{age}")
}

fn wait_text(report: &wait::Report) -> String {
    match &report.lag {
        None => format!("{} is a primary and accepts connections", report.instance),
        Some(lag) => format!("{} has caught up, {}", report.instance, lag_text(lag)),
    }
}

fn forget_text(report: &forget::Report) -> String {
    let slot = &report.slot;
    let text = if report.dropped {
        format!("the slot {slot} is dropped")
    } else {
        format!("there is no slot {slot}")
    };
    if report.forgotten { format!("{text}, and the instance is no peer any more") } else { text }
}

fn peers_advice(instance: &str, why: &str) -> String {
    let why = crate::error::printable(why);
    format!(
        "{instance} starts read-only: {why}\n\
         to follow it: pgmahout enslave; to go back to this one: pgmahout promote --confirm {instance}"
    )
}

fn peers_text(report: &peers::Report) -> String {
    let mut lines: Vec<_> = report
        .peers
        .iter()
        .map(|answer| {
            format!("{}{}", answer.text(), if answer.supersedes { ": later than this one" } else { "" })
        })
        .collect();
    if lines.is_empty() {
        lines.push(format!("{} knows no other instance", report.instance));
    }
    if let Some(why) = &report.superseded {
        lines.push(format!("{} has lost its place: {}", report.instance, crate::error::printable(why)));
    }
    lines.join("\n")
}

fn config_text(instance: &Instance) -> String {
    let rows: Vec<_> = instance
        .resolved()
        .iter()
        .map(|r| (r.name, r.value.clone().unwrap_or_else(|| "-".into()), r.origin.to_string()))
        .collect();
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value, origin)| format!("{name:<20} {value:<width$}  {origin}\n")).collect()
}

fn info_text(report: &info::Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{:<13} {value}\n", format!("{name}:")));
        }
    };
    line("instance", Some(report.instance.clone()));
    line("app", report.app.clone());
    line("role", Some(report.role.to_owned()));
    line("problem", report.problem.clone());
    line("superseded", report.superseded.as_deref().map(crate::error::printable));
    line("version", report.version.map(|v| v.to_string()));
    line("timeline", report.timeline.map(|t| t.0.to_string()));
    line("lsn", report.lsn.map(|l| l.to_string()));
    if let Some(following) = &report.following {
        let state = if following.streaming { "streaming" } else { "not streaming" };
        let reach = if following.reachable { "" } else { ", unreachable" };
        let lag = lag_text(&following.lag);
        line("following", Some(format!("{}, {state}{reach}, {lag}", following.primary)));
    }
    for f in &report.followers {
        let lag = f.lag_bytes.map(|b| format!(", lag {}", bytes_text(b as u64))).unwrap_or_default();
        line("follower", Some(format!("{}, {}, {}{lag}", f.name, f.state, f.sync)));
    }
    for s in &report.slots {
        let active = if s.active { "active" } else { "inactive" };
        let kept =
            s.retained_bytes.map(|b| format!(", retains {}", bytes_text(b as u64))).unwrap_or_default();
        let status = s.wal_status.as_ref().map(|w| format!(", {w}")).unwrap_or_default();
        line("slot", Some(format!("{}, {active}{kept}{status}", s.name)));
    }
    let copying = report.job.as_ref().map(|job| match &job.job.error {
        Some(failure) => format!("{} of {} failed: {}", job.job.verb, job.job.source, failure.message),
        None if job.state == job::State::Running => {
            format!("{} of {}: {}", job.job.verb, job.job.source, job.doing)
        }
        None => format!("{} of {} was interrupted; run it again", job.job.verb, job.job.source),
    });
    line("background", copying);
    line("no follower", report.no_follow.clone());
    line("connections", report.connections.as_ref().map(|c| format!("{} of {}", c.used, c.limit)));
    line("size", report.size_bytes.map(|b| bytes_text(b as u64)));
    line("created", report.created.map(|seconds| time_text(seconds as i64)));
    line("plan", report.plan.clone());
    line("checksums", report.checksums.map(|on| if on { "on" } else { "off" }.to_owned()));
    line("system id", report.system_id.map(|id| id.to_string()));
    line("data", Some(report.data_directory.display().to_string()));
    line("build", report.build.as_ref().map(|p| p.display().to_string()));
    line("service", Some(report.service.clone()));
    text
}

fn man(directory: Option<PathBuf>) -> Result<()> {
    let on = |path: PathBuf| move |source| Error::File { action: "write", path: path.clone(), source };
    match directory {
        Some(directory) => clap_mangen::generate_to(Cli::command(), &directory).map_err(on(directory)),
        None => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).map_err(on("stdout".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
