//! Large objects, which pg_dump --schema-only leaves out: their bytes, owners, grants and comments. They are read by
//! windows whose places do not depend on how they are stored: a hole is zeros, and zeros at the end count.

use super::super::Context;
use super::LargeObjects;
use super::relay::{self, Tally};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::{Db, Target, identifier, literal};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use twox_hash::XxHash3_128;

/// Of many small ones so much is read at once, of each.
const FIRST: i32 = 64 << 10;
/// Of a larger one so much at once from then on.
const WINDOW: i32 = 1 << 20;
/// So many at once.
const BATCH: usize = 256;

/// Where the bytes go.
pub struct Filling<'a> {
    /// The server.
    pub side: &'a Target,
    /// They belong to this role, else to whom they did, with their grants.
    pub owner: Option<&'a str>,
}

struct Batch {
    owner: String,
    oids: Vec<u32>,
}

/// Reads all large objects that `snapshot` shows, of which `db` sees the list, and writes them to the other side.
pub fn run(
    context: Context,
    db: &mut Db,
    source: &Target,
    snapshot: &str,
    filling: Option<&Filling>,
    jobs: usize,
) -> Result<LargeObjects> {
    let sql = "SELECT oid, pg_get_userbyid(lomowner)::text FROM pg_largeobject_metadata ORDER BY 2, 1";
    let mut batches: VecDeque<Batch> = VecDeque::new();
    for row in db.rows(sql, &[])? {
        let (oid, owner): (u32, String) = (row.get(0), row.get(1));
        match batches.back_mut() {
            Some(batch) if batch.owner == owner && batch.oids.len() < BATCH => batch.oids.push(oid),
            _ => batches.push_back(Batch { owner, oids: vec![oid] }),
        }
    }
    let count: usize = batches.iter().map(|batch| batch.oids.len()).sum();
    let jobs = jobs.clamp(1, batches.len().max(1));
    if count == 0 {
        return Ok(LargeObjects { count: 0, bytes: 0, sum: format!("{:032x}", 0) });
    }
    context.progress.begin_about("large objects", count as u64, "large objects");
    let (batches, stop, version) = (Mutex::new(batches), AtomicBool::new(false), db.version);
    let work = || -> Result<(Tally, u64)> {
        let mut from = Db::connect(source)?;
        from.run(&relay::reading(version, snapshot))?;
        let mut to = match filling {
            Some(filling) => {
                let mut to = Db::connect(filling.side)?;
                let version = to.version;
                to.run(&relay::writing(version))?;
                Some((to, filling))
            }
            None => None,
        };
        let (mut tally, mut bytes) = (Tally::default(), 0);
        while !stop.load(Ordering::Relaxed) {
            process::check_interrupt()?;
            let Some(batch) = batches.lock().expect("no panic").pop_front() else { break };
            let (more, of_batch) = copy(&mut from, to.as_mut(), &batch).map_err(|error| match error {
                Error::Sql { label, why } => Error::CopyFailed {
                    what: "large objects".into(),
                    side: label,
                    is_full: why.contains("No space left"),
                    why,
                },
                error => error,
            })?;
            tally.add(more);
            bytes += of_batch;
            context.progress.add(batch.oids.len() as u64);
        }
        Ok((tally, bytes))
    };
    let outcomes: Vec<Result<(Tally, u64)>> = std::thread::scope(|scope| {
        let start = |_| {
            scope.spawn(|| {
                let outcome = work();
                stop.fetch_or(outcome.is_err(), Ordering::Relaxed);
                outcome
            })
        };
        let threads: Vec<_> = (0..jobs).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    context.progress.end();
    let (mut tally, mut bytes) = (Tally::default(), 0);
    for outcome in outcomes {
        let (more, of_one) = outcome?;
        tally.add(more);
        bytes += of_one;
    }
    Ok(LargeObjects { count: count as u64, bytes, sum: format!("{:032x}", tally.sum) })
}

fn hash(tally: &mut Tally, oid: u32, offset: i64, bytes: &[u8]) {
    let mut hasher = XxHash3_128::new();
    hasher.write(&oid.to_le_bytes());
    hasher.write(&offset.to_le_bytes());
    hasher.write(bytes);
    tally.add_hash(hasher.finish_128());
}

/// The begin of a longer one, and nothing but zeros: it need not be written.
fn is_hole(first: &[u8]) -> bool {
    first.len() == FIRST as usize && first.iter().all(|byte| *byte == 0)
}

fn copy(from: &mut Db, mut to: Option<&mut (Db, &Filling)>, batch: &Batch) -> Result<(Tally, u64)> {
    let sql = "SELECT o, lo_get(o, 0, $2) FROM unnest($1::oid[]) AS u(o)";
    let rows = from.rows(sql, &[&batch.oids, &FIRST])?;
    let firsts: Vec<(u32, &[u8])> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let (mut tally, mut total) = (Tally::default(), 0);
    if let Some((to, filling)) = &mut to {
        let owner = filling.owner.unwrap_or(&batch.owner);
        to.run(&format!("BEGIN; SET LOCAL ROLE {}", identifier(owner)))?;
        let put =
            |(oid, first): &(u32, &'_ [u8])| (*oid, if is_hole(first) { Vec::new() } else { first.to_vec() });
        let (oids, bytes): (Vec<u32>, Vec<Vec<u8>>) = firsts.iter().map(put).unzip();
        let sql = "SELECT count(lo_from_bytea(o, b)) FROM unnest($1::oid[], $2::bytea[]) AS u(o, b)";
        to.rows(sql, &[&oids, &bytes])?;
    }
    for (oid, first) in firsts {
        hash(&mut tally, oid, 0, first);
        total += first.len() as u64;
        if first.len() < FIRST as usize {
            continue;
        }
        let (mut offset, mut hole) = (i64::from(FIRST), is_hole(first));
        loop {
            let sql = "SELECT lo_get($1, $2, $3)";
            let row = from.rows(sql, &[&oid, &offset, &WINDOW])?;
            let bytes: &[u8] = row.first().map_or(&[], |row| row.get(0));
            let is_last = bytes.len() < WINDOW as usize;
            if !bytes.is_empty() {
                hash(&mut tally, oid, offset, bytes);
                total += bytes.len() as u64;
            }
            if let Some((to, _)) = &mut to {
                let zeros = bytes.iter().all(|byte| *byte == 0);
                // A hole stays one, but for the byte that makes its end the object's.
                if !zeros {
                    let at = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
                    let (begin, rest) = (offset + at as i64, &bytes[at..]);
                    to.rows("SELECT lo_put($1, $2, $3) IS NULL", &[&oid, &begin, &rest])?;
                } else if is_last && (hole || !bytes.is_empty()) {
                    let last = offset + bytes.len() as i64 - 1;
                    to.rows("SELECT lo_put($1, $2, $3) IS NULL", &[&oid, &last, &[0u8].as_slice()])?;
                }
                hole = zeros;
            }
            if is_last {
                break;
            }
            offset += bytes.len() as i64;
        }
    }
    if let Some((to, _)) = &mut to {
        to.run("COMMIT")?;
    }
    Ok((tally, total))
}

/// Grants and comments. Owners are those who made them.
pub fn adorn(db: &mut Db, to: &mut Db, grants: bool) -> Result<()> {
    let mut statements = Vec::new();
    if grants {
        let sql = "SELECT m.oid, pg_get_userbyid(lomowner)::text, a.grantee, pg_get_userbyid(a.grantee)::text, \
             a.privilege_type, a.is_grantable FROM pg_largeobject_metadata m LEFT JOIN LATERAL aclexplode(lomacl) a ON true \
             WHERE lomacl IS NOT NULL ORDER BY 1";
        let mut seen: BTreeMap<u32, ()> = BTreeMap::new();
        for row in db.rows(sql, &[])? {
            let (oid, owner): (u32, String) = (row.get(0), row.get(1));
            if seen.insert(oid, ()).is_none() {
                // What the owner has by itself may have been taken away.
                statements.push(format!("REVOKE ALL ON LARGE OBJECT {oid} FROM {}", identifier(&owner)));
            }
            let Some(privilege) = row.get::<_, Option<String>>(4) else { continue };
            let to = match row.get::<_, u32>(2) {
                0 => "PUBLIC".to_owned(),
                _ => identifier(row.get(3)),
            };
            let option = if row.get(5) { " WITH GRANT OPTION" } else { "" };
            statements.push(format!("GRANT {privilege} ON LARGE OBJECT {oid} TO {to}{option}"));
        }
    }
    let sql = "SELECT m.oid, obj_description(m.oid, 'pg_largeobject') FROM pg_largeobject_metadata m \
         WHERE obj_description(m.oid, 'pg_largeobject') IS NOT NULL";
    for row in db.rows(sql, &[])? {
        let comment: String = row.get(1);
        statements.push(format!("COMMENT ON LARGE OBJECT {} IS {}", row.get::<_, u32>(0), literal(&comment)));
    }
    for part in statements.chunks(500) {
        process::check_interrupt()?;
        to.run(&part.join("; "))?;
    }
    Ok(())
}
