//! Takes one backup: bytes into the store, then the manifest, which is what makes it a backup. Whatever goes wrong
//! before that leaves nothing in the list, and what was stored is taken away again.

use super::super::Context;
pub use super::subject::{Options, Subject, Written};
use super::{lock, logical, now, physical, schedule};
use crate::backups::manifest::{BackupId, FORMAT, Kind, Manifest};
use crate::error::Result;
use crate::fault::boundary;
use crate::store::sealed::Sealer;
use crate::store::{self, catalog};
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This instance.
    pub instance: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// The backup's name, or what it would be.
    pub id: BackupId,
    /// Where it lies.
    pub store: String,
    /// Its database.
    pub database: Option<String>,
    /// Its kind.
    pub kind: Kind,
    /// Bytes on the server's disk.
    pub database_size: u64,
    /// All about it; none of a dry run.
    pub manifest: Option<Manifest>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Seconds.
const ORPHANED_AFTER: i64 = 86_400;

/// Takes one.
pub fn run(context: Context, options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let instance = context.instance;
    let store = store::open(instance)?;
    let _lock = if options.dry_run { None } else { Some(lock(context, "backup capture")?) };
    let subject = match options.kind {
        Kind::Logical => logical::subject(context, options)?,
        Kind::Physical => physical::subject(context, options)?,
    };
    let mut id = catalog::next(&*store, options.by)?;
    id.number = id.number.max(options.after.map_or(0, |after| after + 1));
    let mut report = Report {
        instance: instance.name.clone(),
        dry_run: options.dry_run,
        id,
        store: store.place(),
        database: subject.database.clone(),
        kind: options.kind,
        database_size: subject.database_size,
        manifest: None,
        warnings: Vec::new(),
        seconds: 0.0,
    };
    if store.is_local() {
        report.warnings.push(format!(
            "{} is on the same machine as the server: what takes the machine takes its backups; set store: to a \
             mounted disk of another machine or s3://BUCKET/PREFIX",
            store.place()
        ));
    }
    if options.dry_run {
        return Ok(report);
    }
    store.sweep()?;
    // Bytes without a manifest: whoever stored them was killed before the last step. What is younger may be another
    // instance's that is at that step now. They are only room that is lost: no reason to take no backup.
    let _ = catalog::sweep_orphans(&*store, ORPHANED_AFTER);
    let started = now();
    let file = format!("{id}-{}.{}", unique(), if options.kind == Kind::Logical { "dump" } else { "tar" });
    let mut sealer = Sealer::create(&*store, instance, &file)?;
    boundary("capture.begun");
    let written = match options.kind {
        Kind::Logical => logical::write(context, options, &subject, &mut sealer),
        Kind::Physical => physical::write(context, options, &subject, &mut sealer),
    };
    let written = written?;
    sealer.flush().map_err(|e| store::stream_error(&*store, "write", &e))?;
    boundary("capture.written");
    let stored = sealer.finish()?;
    boundary("capture.stored");
    let mut manifest = Manifest {
        format: FORMAT,
        id,
        kind: options.kind,
        database: subject.database,
        instance: instance.name.clone(),
        app: instance.app.clone(),
        from_standby: written.from_standby,
        started,
        finished: now(),
        server_version: written.server_version,
        server_version_num: written.server_version_num,
        tool_version: written.tool_version,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        system_id: written.system_id,
        lineage: schedule::lineage_of(instance),
        timeline: written.timeline,
        lsn: written.lsn,
        file,
        size: stored.size,
        sha256: stored.sha256,
        content_size: written.content_size,
        compression: written.compression,
        encryption: stored.encryption,
        database_size: subject.database_size,
        tables: written.tables,
        needs: written.needs,
        properties: written.properties,
        physical: written.physical,
    };
    if let Err(error) = catalog::add(&*store, &mut manifest) {
        let _ = store.delete(&manifest.file);
        return Err(error);
    }
    boundary("capture.listed");
    report.id = manifest.id;
    report.warnings.extend(written.warnings);
    report.manifest = Some(manifest);
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

/// Eight hexadecimal digits, so that two instances never write to one object.
fn unique() -> String {
    let mut bytes = [0u8; 4];
    openssl::rand::rand_bytes(&mut bytes).expect("OpenSSL has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
