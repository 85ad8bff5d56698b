//! `migrate`: an app moves to another database, with the way back.

use super::Context;
use crate::blurb::Secret;
use crate::error::Result;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Which app, on what.
#[derive(Clone, Debug)]
pub struct App {
    /// Its name.
    pub name: String,
    /// The platform's directory of executables.
    pub platform: PathBuf,
    /// The herd command.
    pub herd: PathBuf,
}

/// From where.
#[derive(Clone, Debug)]
pub enum From {
    /// What this config variable points to.
    Variable(String),
    /// A database by its URL.
    Url(Secret),
}

/// To where.
#[derive(Clone, Debug)]
pub enum To {
    /// An instance of the app.
    Instance(String),
    /// A new one with this plan, or the platform's own choice.
    Plan(Option<String>),
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// From where.
    pub from: From,
    /// To where.
    pub to: To,
    /// The name under which a new or unattached target is attached.
    pub colour: Option<String>,
    /// Try it out: nothing is taken down.
    pub rehearse: bool,
    /// The target's major version must be newer.
    pub newer: bool,
    /// Everything belongs to the target's user there.
    pub no_owner: bool,
    /// Connections that copy at the same time.
    pub jobs: Option<usize>,
    /// How long the last client is waited for.
    pub wait: Duration,
    /// Those that stay are ended.
    pub terminate: bool,
    /// Check, say what would be done, and do nothing.
    pub dry_run: bool,
}

/// What has happened.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The app.
    pub app: String,
}

/// A new migration.
pub fn run(context: Context, app: &App, options: &Options) -> Result<Report> {
    let _ = (context, options);
    Ok(Report { app: app.name.clone() })
}
