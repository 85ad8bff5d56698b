//! Compares two databases: rows and checksum of each table, sequences, large objects.

use super::super::Context;
use super::{LargeObjects, SequenceValue, Sums, TableSum, sums};
use crate::error::{Error, Result};
use crate::sql::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// What was compared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compared {
    /// Tables.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Seconds.
    pub seconds: f64,
}

/// A table that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `schema.table`, `sequence schema.name` or `large objects`.
    pub what: String,
    /// Rows (a sequence's value) at the time of the comparison; 0 where there was nothing.
    pub before: i64,
    /// And now.
    pub now: i64,
}

/// Reads all of a database. `like`: what the other side said, so that both are read alike; to compare a source with
/// what [`super::fill::run`] has read of it, that is what is given.
///
/// # Errors
/// [`Error::CopyFailed`] names the table that cannot be read.
pub fn sums(context: Context, target: &Target, jobs: usize, like: Option<&Sums>) -> Result<Sums> {
    sums::read(context, target, jobs, like)
}

/// Compares `side` with what the source held.
///
/// # Errors
/// [`Error::CopyDiffers`] with every difference, the first ten by name.
pub fn run(context: Context, source: &Sums, side: &Target, jobs: usize) -> Result<Compared> {
    let begin = Instant::now();
    let copy = sums(context, side, jobs, Some(source))?;
    let mut what: Vec<String> = differences(source, &copy).into_iter().map(|(_, text)| text).collect();
    if !what.is_empty() {
        let more = what.len().saturating_sub(10);
        what.truncate(10);
        if more > 0 {
            what.push(format!("and {more} more"));
        }
        return Err(Error::CopyDiffers { what });
    }
    let rows = copy.tables.iter().map(|table| table.rows).sum();
    Ok(Compared { tables: copy.tables.len(), rows, seconds: begin.elapsed().as_secs_f64() })
}

/// What has changed since. A table without rows that came or went is not told.
pub fn changes(context: Context, before: &Sums, target: &Target, jobs: usize) -> Result<Vec<Change>> {
    let now = sums(context, target, jobs, Some(before))?;
    let changes = differences(before, &now).into_iter().map(|(change, _)| change);
    // An empty one is nobody's work.
    Ok(changes.filter(|change| (change.before, change.now) != (0, 0)).collect())
}

/// Names of both, with what each has.
fn pairs<'a, T>(
    before: &'a [T],
    now: &'a [T],
    name: impl Fn(&'a T) -> (&'a str, &'a str),
) -> Vec<(String, Option<&'a T>, Option<&'a T>)> {
    let mut all: BTreeMap<_, (Option<&T>, Option<&T>)> = BTreeMap::new();
    before.iter().for_each(|one| all.entry(name(one)).or_default().0 = Some(one));
    now.iter().for_each(|one| all.entry(name(one)).or_default().1 = Some(one));
    all.into_iter().map(|((schema, name), (a, b))| (format!("{schema}.{name}"), a, b)).collect()
}

/// All of them, each as a text too.
fn differences(source: &Sums, copy: &Sums) -> Vec<(Change, String)> {
    let mut found = Vec::new();
    let named = |table: &TableSum| table.rows as i64;
    for (name, a, b) in pairs(&source.tables, &copy.tables, |table| (&table.schema, &table.name)) {
        let text = match (a, b) {
            (Some(a), Some(b)) if a.rows != b.rows => {
                format!("{name} has {} rows in place of {}", b.rows, a.rows)
            }
            (Some(a), Some(b)) if a.sum != b.sum || a.form != b.form => {
                format!("the {} rows of {name} are not the same", a.rows)
            }
            (Some(_), Some(_)) => continue,
            (Some(_), None) => format!("there is no table {name}"),
            (None, _) => format!("the source has no table {name}"),
        };
        found.push((Change { what: name, before: a.map_or(0, named), now: b.map_or(0, named) }, text));
    }
    let value = |sequence: Option<&SequenceValue>| sequence.map_or(0, |sequence| sequence.last_value);
    for (name, a, b) in pairs(&source.sequences, &copy.sequences, |one| (&one.schema, &one.name)) {
        let said = |one: &SequenceValue| {
            let called = if one.is_called { "" } else { ", not called" };
            format!("{}{called}", one.last_value)
        };
        let text = match (a, b) {
            (Some(a), Some(b)) if (a.last_value, a.is_called) != (b.last_value, b.is_called) => {
                format!("the sequence {name} is at {} in place of {}", said(b), said(a))
            }
            (Some(_), Some(_)) => continue,
            (Some(_), None) => format!("there is no sequence {name}"),
            (None, _) => format!("the source has no sequence {name}"),
        };
        found.push((Change { what: format!("sequence {name}"), before: value(a), now: value(b) }, text));
    }
    if let (Some(a), Some(b)) = (&source.large_objects, &copy.large_objects)
        && a != b
    {
        let said = |one: &LargeObjects| format!("{} large objects of {} bytes", one.count, one.bytes);
        let text = match (a.count, a.bytes) == (b.count, b.bytes) {
            true => format!("the {} are not the same", said(a)),
            false => format!("there are {} in place of {}", said(b), said(a)),
        };
        let (what, before, now) = ("large objects".into(), a.count as i64, b.count as i64);
        found.push((Change { what, before, now }, text));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(rows: u64, sum: &str, value: i64, is_called: bool, objects: (u64, u64, &str)) -> Sums {
        let (schema, name) = ("public".to_owned(), "t".to_owned());
        let (sum, form) = (sum.to_owned(), "binary UTF8".to_owned());
        Sums {
            tables: vec![TableSum { schema: schema.clone(), name, rows, sum, form }],
            sequences: vec![SequenceValue { schema, name: "s".into(), last_value: value, is_called }],
            large_objects: Some(LargeObjects {
                count: objects.0,
                bytes: objects.1,
                sum: objects.2.to_owned(),
            }),
        }
    }

    #[test]
    fn every_difference_is_told() {
        let a = some(5, "aa", 7, true, (1, 9, "x"));
        let told = |b: &Sums| differences(&a, b).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(told(&a), Vec::<String>::new());
        assert_eq!(told(&some(4, "aa", 7, true, (1, 9, "x"))), ["public.t has 4 rows in place of 5"]);
        assert_eq!(told(&some(5, "ab", 7, true, (1, 9, "x"))), ["the 5 rows of public.t are not the same"]);
        assert_eq!(
            told(&some(5, "aa", 7, false, (1, 9, "y"))),
            [
                "the sequence public.s is at 7, not called in place of 7",
                "the 1 large objects of 9 bytes are not the same"
            ]
        );
        assert_eq!(
            told(&Sums { large_objects: a.large_objects.clone(), ..Sums::default() }),
            ["there is no table public.t", "there is no sequence public.s"]
        );
        let (empty, full) = (Sums { large_objects: a.large_objects.clone(), ..Sums::default() }, &a);
        assert_eq!(differences(&empty, full)[0].1, "the source has no table public.t");
    }
}
