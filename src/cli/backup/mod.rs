//! Owns `pgmahout backup`: its arguments and answers. Each verb's are in a file of its own.

mod auto;
mod capture;
mod check;
mod download;
mod restore;
mod schedule;
mod url;
mod verify;

use super::output::{answer, say, show, table};
use crate::backups::manifest::{BackupId, Kind, Manifest};
use crate::error::Result;
use crate::instance::Instance;
use crate::operations::{Context, backup};
use crate::progress::{bytes_text, duration_text, time_text};
use crate::store::catalog::Listed;
use clap::{Args, Subcommand};
use serde_json::json;

/// Take, list, restore, verify backups; a schedule for them
///
/// A logical backup holds one database in pg_dump's custom format, a physical one the whole cluster with the WAL
/// that makes it consistent. They lie in the directory ~/backups, or where the setting store says: s3://BUCKET/PREFIX.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout backup capture                      back up the database
  pgmahout backup list
  pgmahout backup restore b001 shop
  pgmahout backup url b001                     a link for anyone, good for ten minutes
  pgmahout backup verify b001                  restore it into a throw-away cluster and compare
  pgmahout backup auto --dry-run               what the schedule would do now, and why
  pgmahout backup check                        for monitoring")]
pub struct BackupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Capture(capture::CaptureArgs),
    Restore(restore::RestoreArgs),
    Verify(verify::VerifyArgs),
    /// Show all backups
    #[command(
        after_help = "Examples:\n  pgmahout backup list\n  pgmahout --json backup list | jq -r '.[-1].id'"
    )]
    List,
    /// Show all about one backup
    #[command(after_help = "Example:\n  pgmahout backup info b001")]
    Info {
        /// Name of the backup
        id: BackupId,
    },
    Download(download::DownloadArgs),
    /// Remove backups
    #[command(visible_alias = "destroy", after_help = "Example:\n  pgmahout backup delete b001 b002")]
    Delete {
        /// Names of the backups
        #[arg(required = true)]
        ids: Vec<BackupId>,
        /// Say what would be done, and do nothing
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    Url(url::UrlArgs),
    Schedule(schedule::ScheduleArgs),
    Auto(auto::AutoArgs),
    Check(check::CheckArgs),
}

/// Runs it.
pub fn run(
    context: Context,
    args: BackupArgs,
    json: bool,
    reload: &dyn Fn() -> Result<Instance>,
) -> Result<()> {
    match args.verb {
        Verb::Capture(args) => capture::run(context, &args, json)?,
        Verb::Restore(args) => restore::run(context, args, json)?,
        Verb::Verify(args) => verify::run(context, args, json)?,
        Verb::List => {
            let listed = backup::list(context)?;
            if json { answer(&listed) } else { say(list_text(&listed).trim_end()) }
        }
        Verb::Url(args) => url::run(context, &args, json)?,
        Verb::Schedule(args) => schedule::run(context, &args, json)?,
        Verb::Auto(args) => auto::run(context, &args, json, reload)?,
        Verb::Check(args) => check::run(context, &args, json)?,
        Verb::Info { id } => show(json, &backup::info(context, id)?, info_text),
        Verb::Download(args) => download::run(context, args, json)?,
        Verb::Delete { ids, dry_run } => {
            // Of several nothing is removed because of a slip in one.
            for id in &ids {
                backup::info(context, *id)?;
            }
            for id in ids {
                let removed = backup::delete(context, id, dry_run)?;
                let verb = if dry_run { "would be removed" } else { "is removed" };
                let freed = bytes_text(removed.size);
                match json {
                    true => answer(&json!({"id": id, "dry_run": dry_run, "size": removed.size})),
                    false => say(&format!("{id} {verb}: {freed}")),
                }
            }
        }
    }
    Ok(())
}

fn list_text(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "no backups yet; pgmahout backup capture takes one".into();
    }
    let now = backup::now();
    let rows = listed.iter().map(|Listed { manifest, verified }| {
        [
            manifest.id.to_string(),
            time_text(manifest.finished),
            bytes_text(manifest.size),
            manifest.database.clone().unwrap_or_else(|| "(whole cluster)".into()),
            kind_text(manifest.kind).to_owned(),
            age_text(now - manifest.finished),
            match verified {
                Some(verified) if verified.good => time_text(verified.at),
                Some(verified) => format!("FAILED {}", time_text(verified.at)),
                None => "-".into(),
            },
        ]
    });
    table(&["ID", "BACKUP TIME", "SIZE", "DATABASE", "KIND", "AGE", "VERIFIED"], rows)
}

/// "logical" or "physical".
pub fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Logical => "logical",
        Kind::Physical => "physical",
    }
}

/// The age of a backup; the clock may have been set back since.
pub fn age_text(seconds: i64) -> String {
    match seconds {
        s if s < 0 => format!("{} in the future", duration_text(-s as f64)),
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s => duration_text(s as f64),
    }
}

fn info_text(Listed { manifest, verified }: &Listed) -> String {
    let mut text = manifest_text(manifest);
    let shown = match verified {
        None => "never".to_owned(),
        Some(v) => format!("{} on {}: {}", time_text(v.at), v.instance, v.text),
    };
    text.push_str(&format!("{:<13} {shown}\n", "verified:"));
    text
}

fn manifest_text(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{:<13} {value}\n", format!("{name}:")));
        }
    };
    line("id", manifest.id.to_string());
    line("kind", kind_text(manifest.kind).into());
    line("database", manifest.database.clone().unwrap_or_default());
    let standby = if manifest.from_standby { ", a standby" } else { "" };
    line("taken on", format!("{}{standby}", manifest.instance));
    let seconds = (manifest.finished - manifest.started).max(0) as f64;
    line("taken at", format!("{}, in {}", time_text(manifest.finished), duration_text(seconds)));
    line("server", manifest.server_version.clone());
    line("pg_dump", manifest.tool_version.clone().unwrap_or_default());
    line("system id", manifest.system_id.to_string());
    line("position", format!("{} on timeline {}", manifest.lsn, manifest.timeline.0));
    let encrypted = if manifest.encryption.is_some() { ", encrypted" } else { "" };
    line("size", format!("{} ({}{encrypted})", bytes_text(manifest.size), manifest.compression));
    line("on disk", bytes_text(manifest.database_size));
    line("sha256", manifest.sha256.clone());
    line("file", manifest.file.clone());
    let rows: u64 = manifest.tables.iter().filter_map(|table| table.rows).sum();
    let counted = if manifest.kind == Kind::Logical { format!(", {rows} rows") } else { String::new() };
    line("tables", format!("{}{counted}", manifest.tables.len()));
    line("roles", manifest.needs.roles.join(", "));
    let extensions: Vec<_> =
        manifest.needs.extensions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    line("extensions", extensions.join(", "));
    let tablespaces: Vec<_> =
        manifest.needs.tablespaces.iter().map(|(name, at)| format!("{name} ({at})")).collect();
    line("tablespaces", tablespaces.join(", "));
    for (name, value) in &manifest.needs.settings {
        line("setting", format!("{name} = {value}"));
    }
    if let Some(physical) = &manifest.physical {
        line("damaged", physical.damaged_pages.join(", "));
    }
    text
}
