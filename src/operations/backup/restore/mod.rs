//! Restores a backup, of whatever kind and from wherever. What is here stays untouched and in place until what was
//! restored is whole and was compared with its manifest.

pub mod fill;
pub mod logical;
pub mod physical;
pub mod source;
pub mod swap;

use super::super::Context;
use super::lock;
use crate::backups::manifest::Kind;
use crate::error::Result;
use serde::Serialize;
use source::Source;
use std::path::PathBuf;
use std::time::Instant;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The backup.
    pub source: Source,
    /// The database to restore into; none: the one that the manifest names. Not of a physical one.
    pub database: Option<String>,
    /// The name of this instance: what it holds may be lost.
    pub confirm: Option<String>,
    /// Jobs of pg_restore, in place of the setting.
    pub jobs: Option<usize>,
    /// Without owners and grants: all belongs to the database's owner.
    pub no_owner: bool,
    /// OLD=NEW pairs for a physical backup's tablespaces.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// One database.
    Logical(logical::Report),
    /// The whole cluster.
    Physical(physical::Report),
}

/// Restores.
pub fn run(context: Context, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    context.instance.check_account()?;
    let _lock = if options.dry_run { None } else { Some(lock(context, "backup restore")?) };
    let mut opened = source::open(context, &options.source)?;
    match opened.kind {
        Kind::Logical => logical::run(context, opened, options, begin).map(Report::Logical),
        Kind::Physical => {
            let options = physical::Options {
                confirm: options.confirm.clone(),
                tablespace_mapping: options.tablespace_mapping.clone(),
                dry_run: options.dry_run,
            };
            physical::run(context, &mut opened.bytes, opened.manifest.as_ref(), &options)
                .map(Report::Physical)
        }
    }
}
