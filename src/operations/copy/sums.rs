//! What a database holds: rows and checksum of each table, sequences, large objects.

use super::super::Context;
use super::super::backup::logical::export_snapshot;
use super::relay::{Counted, Rows};
use super::schema::LOCK_LIMIT;
use super::units::{self, Form, Table, sql_name};
use super::{SequenceValue, Sums, TableSum, large};
use crate::error::{Error, Result};
use crate::process;
use crate::sql::{Db, Target, literal};
use std::collections::BTreeMap;

/// Opens the transaction that everything is read in; gives its snapshot.
pub fn snapshot(db: &mut Db, target: &Target) -> Result<String> {
    let from_standby = db.in_recovery()?;
    let snapshot = export_snapshot(db, from_standby)?;
    // A table's size is waited for too, when somebody has locked it.
    db.run(&format!("SET LOCAL lock_timeout = {}", LOCK_LIMIT.as_millis()))?;
    snapshot.ok_or_else(|| Error::CopySource {
        source_name: format!("the database {} of {}", target.database, target.label),
        why: "a standby of its version cannot show the same to several connections: give its primary".into(),
    })
}

/// The database's encoding.
pub fn encoding(db: &mut Db) -> Result<String> {
    db.value("SELECT current_setting('server_encoding')", &[])
}

/// As they stand here, in the order of their names.
pub fn tables(tables: &[Table], forms: &[Form], counted: &Counted) -> Vec<TableSum> {
    let forms: BTreeMap<_, _> =
        tables.iter().zip(forms).map(|(table, form)| (table.counted_as(), form)).collect();
    let sum = |(name, tally): (&units::Name, &super::relay::Tally)| TableSum {
        schema: name.0.clone(),
        name: name.1.clone(),
        rows: tally.rows,
        sum: format!("{:032x}", tally.sum),
        form: forms.get(name).map_or_else(String::new, |form| form.text()),
    };
    counted.tallies.iter().map(sum).collect()
}

/// Where all sequences stand.
pub fn sequences(db: &mut Db) -> Result<Vec<SequenceValue>> {
    let names = units::sequences(db)?;
    let mut values = Vec::with_capacity(names.len());
    for part in names.chunks(200) {
        process::check_interrupt()?;
        let one = |name: &units::Name| {
            let (schema, sequence) = (literal(&name.0), literal(&name.1));
            format!("SELECT {schema}::text, {sequence}::text, last_value, is_called FROM {}", sql_name(name))
        };
        let sql = part.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ");
        values.extend(db.rows(&sql, &[])?.iter().map(|row| SequenceValue {
            schema: row.get(0),
            name: row.get(1),
            last_value: row.get(2),
            is_called: row.get(3),
        }));
    }
    values.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(values)
}

/// Reads all of a database in one snapshot, its tables as `like` says.
pub fn read(context: Context, target: &Target, jobs: usize, like: Option<&Sums>) -> Result<Sums> {
    let mut db = Db::connect(target)?;
    let encoding = encoding(&mut db)?;
    let snapshot = snapshot(&mut db, target)?;
    let list = units::tables(&mut db, false, like)?;
    let known = units::forms(like);
    let forms: Vec<Form> = list
        .iter()
        .map(|table| match known.get(table.counted_as()) {
            // It may have got a column since that cannot be read so.
            Some(form) => Form { binary: form.binary && table.binary, ..form.clone() },
            None => Form {
                binary: table.binary,
                encoding: encoding.clone(),
                rounded: false,
                tree: table.root.is_some(),
            },
        })
        .collect();
    let bytes = list.iter().map(|table| table.whole_bytes).sum();
    let rows = Rows {
        source: target,
        version: db.version,
        snapshot: &snapshot,
        side: None,
        tables: &list,
        forms: &forms,
        jobs,
    };
    context.progress.begin_bytes("compare", bytes);
    let counted = rows.run(context);
    context.progress.end();
    let counted = counted?;
    let large_objects = large::run(context, &mut db, target, &snapshot, None, jobs)?;
    Ok(Sums {
        tables: tables(&list, &forms, &counted),
        sequences: sequences(&mut db)?,
        large_objects: Some(large_objects),
    })
}
