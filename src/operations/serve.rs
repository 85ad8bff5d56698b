//! Serves backups of this instance's directory to whoever has a link that `pgmahout backup url` gave.

use super::Context;
use super::backup::{now, url};
use crate::backups::link;
use crate::error::{Error, Result};
use crate::http_server::{self, Answer, Limits};
use crate::instance::Instance;
use crate::process;
use crate::store::{self, catalog};
use nix::fcntl::OFlag;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

const LIMITS: Limits =
    Limits { connections: 64, head: Duration::from_secs(15), idle: Duration::from_secs(60) };

/// Serves until it is interrupted.
///
/// # Errors
/// [`Error::ServeListen`] when it cannot listen.
pub fn run(context: Context) -> Result<()> {
    let (instance, progress) = (context.instance, context.progress);
    let at = &instance.backup.serve_listen;
    let failed = |e: std::io::Error| Error::ServeListen {
        at: at.clone(),
        taken: e.kind() == std::io::ErrorKind::AddrInUse,
        why: e.to_string(),
    };
    let listener = TcpListener::bind(at.as_str()).map_err(failed)?;
    let local = store::open(instance)?.is_local();
    // So that a missing or damaged key is told at the start.
    url::key(instance)?;
    progress.step(format!("listening on {at}"));
    if !local {
        progress.step("the store gives links of its own: nothing is served here");
    }
    let own = instance.clone();
    let find = move |path: &str, query: &str| find(&own, path, query);
    let stop = || process::check_interrupt().is_err();
    http_server::serve(listener, LIMITS, Arc::new(find), |line| progress.step(line), stop).map_err(failed)?;
    progress.step("ended");
    Ok(())
}

/// Only a backup that is in the list, and only under the name that its own link has. Nothing tells one who has no good
/// link whether there is such a backup.
fn find(instance: &Instance, path: &str, query: &str) -> Answer {
    let Some(link) = link::parse(path, query) else { return Answer::NotFound };
    let found = || -> Result<Answer> {
        let store = store::open(instance)?;
        // Its links lead elsewhere, and no stranger is to make us ask it.
        if !store.is_local() {
            return Ok(Answer::NotFound);
        }
        let key = url::key(instance)?;
        let manifest = match catalog::find(&*store, link.id) {
            Ok(found) => found.manifest,
            Err(Error::NoBackup { .. } | Error::Manifest { .. }) => return Ok(Answer::Forbidden),
            Err(error) => return Err(error),
        };
        let right_name = link.name == manifest.download_name();
        if !link.is_good(&key, &manifest.file, now()) || !right_name {
            return Ok(Answer::Forbidden);
        }
        let Some(path) = store.local_path(&manifest.file) else { return Ok(Answer::NotFound) };
        // As in the list, a symbolic link is no backup, wherever it leads; and a pipe would be waited for.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        match opened.and_then(|file| file.metadata().map(|metadata| (file, metadata))) {
            // Deleted this moment.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Answer::Forbidden),
            Err(e) => Ok(Answer::Failed(format!("{}: {e}", path.display()))),
            Ok((_, metadata)) if !metadata.is_file() => {
                Ok(Answer::Failed(format!("{}: it is no file", path.display())))
            }
            Ok((file, _)) => Ok(Answer::File { file, size: manifest.size, name: link.name.clone() }),
        }
    };
    // What is wrong here is for the log; to a stranger any backup looks the same.
    found().unwrap_or_else(|error| Answer::Failed(error.to_string()))
}
