//! What is copied: the tables of a database, how the rows of each are read, and the pieces in which they go.

use super::Sums;
use crate::error::Result;
use crate::sql::{Db, identifier, literal};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The schema that a migration keeps in its source. It is never copied.
pub const OWN_SCHEMA: &str = "pgmahout_migration";

/// Whose rows are meant, in conditions on `n.nspname`.
pub const SCHEMAS: &str =
    "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgmahout_migration')";

/// How rows are read, so that both sides read them alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// In COPY's binary format, else as text.
    pub binary: bool,
    /// The client's encoding.
    pub encoding: String,
    /// `extra_float_digits = 0`: servers before and since 12 write the exact text of a float differently.
    pub rounded: bool,
    /// It is the root of partitions, and the rows of all of them.
    pub tree: bool,
}

impl Form {
    /// As it is remembered.
    pub fn text(&self) -> String {
        let format = if self.binary { "binary" } else { "text" };
        let rounded = if self.rounded { " rounded" } else { "" };
        let tree = if self.tree { " tree" } else { "" };
        format!("{format} {}{rounded}{tree}", self.encoding)
    }

    /// Reads [`Form::text`].
    pub fn parse(text: &str) -> Form {
        let mut words = text.split(' ');
        let binary = words.next() == Some("binary");
        let encoding = words.next().unwrap_or("UTF8").to_owned();
        let rest: Vec<&str> = words.collect();
        Form { binary, encoding, rounded: rest.contains(&"rounded"), tree: rest.contains(&"tree") }
    }
}

/// Schema and name.
pub type Name = (String, String);

/// A name in SQL.
pub fn sql_name(name: &Name) -> String {
    format!("{}.{}", identifier(&name.0), identifier(&name.1))
}

/// A name for people.
pub fn said_name(name: &Name) -> String {
    format!("{}.{}", name.0, name.1)
}

/// A table with rows of its own.
#[derive(Clone, Debug)]
pub struct Table {
    /// Schema and name.
    pub name: Name,
    /// Size in bytes of its rows, without what is stored out of line.
    pub bytes: u64,
    /// The same with it.
    pub whole_bytes: u64,
    /// Columns in the order of their names, generated ones left out. Both sides order them so, for their own orders
    /// may differ where tables inherit.
    pub columns: Vec<String>,
    /// Every column can be sent in binary format.
    pub binary: bool,
    /// The text of a column may have floats in it.
    pub floats: bool,
    /// A table of an extension, of which only these rows are the user's; empty for all of them.
    pub condition: Option<String>,
    /// The root of its partitions, when its rows may belong into another partition on the other side.
    pub root: Option<Name>,
    /// It is an ordinary heap.
    pub is_heap: bool,
    /// It can be read in pieces.
    pub divisible: bool,
}

impl Table {
    /// Under which name its rows are counted.
    pub fn counted_as(&self) -> &Name {
        self.root.as_ref().unwrap_or(&self.name)
    }

    fn list(&self) -> String {
        self.columns.iter().map(|column| identifier(column)).collect::<Vec<_>>().join(", ")
    }

    fn parenthesized(&self) -> String {
        if self.columns.is_empty() { String::new() } else { format!(" ({})", self.list()) }
    }
}

/// One COPY.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Of which table: its place in the list.
    pub table: usize,
    /// Pages, from and to; the last piece has no end.
    pub pages: Option<(u64, Option<u64>)>,
    /// For the order.
    pub bytes: u64,
}

/// A table is read in pieces of so many pages, when it has more than two of them.
const PIECE: u64 = 16_384;
const PAGE: u64 = 8192;
/// From this size on a table's rows come frozen, for which it is truncated before.
const FREEZE_FROM: u64 = 1 << 20;

/// The pieces, largest first.
pub fn units(tables: &[Table], jobs: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    for (i, table) in tables.iter().enumerate() {
        let pages = table.bytes.div_ceil(PAGE);
        if !table.divisible || jobs < 2 || pages <= 2 * PIECE {
            units.push(Unit { table: i, pages: None, bytes: table.whole_bytes });
            continue;
        }
        let pieces = pages / PIECE;
        for piece in 0..pieces {
            let end = (piece + 1 < pieces).then_some((piece + 1) * PIECE);
            units.push(Unit {
                table: i,
                pages: Some((piece * PIECE, end)),
                bytes: table.whole_bytes / pieces,
            });
        }
    }
    units.sort_by_key(|unit| std::cmp::Reverse(unit.bytes));
    units
}

/// What stands before and behind a COPY in the same query, so that the session goes on speaking UTF-8: the query's
/// own text is converted before any of it runs.
fn around(form: &Form) -> (String, String) {
    let (mut before, mut behind) = (String::new(), String::new());
    if form.encoding != "UTF8" {
        before += &format!("SET client_encoding = {}; ", literal(&form.encoding));
        behind += "; SET client_encoding = 'UTF8'";
    }
    if form.rounded {
        before += "SET extra_float_digits = 0; ";
        behind += "; SET extra_float_digits = 3";
    }
    (before, behind)
}

/// The query that reads a unit.
pub fn copy_out(table: &Table, unit: &Unit, form: &Form) -> String {
    let name = sql_name(&table.name);
    let mut conditions = Vec::new();
    if let Some(condition) = &table.condition
        && !condition.trim().is_empty()
    {
        // It begins with WHERE.
        conditions.push(condition.clone());
    }
    if let Some((from, to)) = unit.pages {
        let to = to.map_or(String::new(), |to| format!(" AND ctid < '({to},0)'"));
        conditions.push(format!("WHERE ctid >= '({from},0)'{to}"));
    }
    let what = match conditions.is_empty() {
        true => format!("{name}{}", table.parenthesized()),
        false => format!("(SELECT {} FROM ONLY {name} {})", table.list(), conditions.join(" ")),
    };
    let format = if form.binary { " WITH (FORMAT binary)" } else { "" };
    let (before, behind) = around(form);
    format!("{before}COPY {what} TO STDOUT{format}{behind}")
}

/// The query that writes it.
pub fn copy_in(table: &Table, unit: &Unit, form: &Form) -> String {
    let name = sql_name(table.counted_as());
    let frozen = unit.pages.is_none()
        && table.root.is_none()
        && table.condition.is_none()
        && table.is_heap
        && table.bytes >= FREEZE_FROM;
    let mut options = Vec::new();
    if form.binary {
        options.push("FORMAT binary");
    }
    if frozen {
        options.push("FREEZE");
    }
    let options = if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) };
    // All of one query is one transaction.
    let truncate = if frozen { format!("TRUNCATE ONLY {name}; ") } else { String::new() };
    let (before, behind) = around(form);
    format!("{before}{truncate}COPY {name}{} FROM STDIN{options}{behind}", table.parenthesized())
}

// ---- the catalog

/// Types whose binary format is the same in every version since 9.4: pg_type.dat. Those of which it holds an OID of
/// another catalog (regclass) are not among them, nor xml, which is parsed anew.
const SAFE: &[u32] = &[
    16, 17, 18, 19, 20, 21, 23, 25, 26, 27, 28, 29, 114, 600, 601, 602, 603, 604, 628, 650, 700, 701, 718,
    774, 790, 829, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2950, 3220, 3614,
    3802, 3904, 3906, 3908, 3910, 3912, 3926, 5069,
];
/// float4, float8, and the geometric types.
const FLOATS: &[u32] = &[600, 601, 602, 603, 604, 628, 700, 701, 718];
/// The first OID that no catalog of initdb has.
const FIRST_OWN: u32 = 16_384;

struct Type {
    kind: String,
    base: u32,
    element: u32,
    is_array: bool,
    relation: u32,
    subtype: u32,
}

struct Types {
    types: HashMap<u32, Type>,
    attributes: HashMap<u32, Vec<u32>>,
}

impl Types {
    fn is_safe(&self, oid: u32) -> bool {
        if SAFE.contains(&oid) {
            return true;
        }
        let Some(this) = self.types.get(&oid) else { return false };
        match this.kind.as_str() {
            "e" => true,
            "d" => self.is_safe(this.base),
            // An array has the OID of its elements' type in it.
            "b" if this.is_array => SAFE.contains(&this.element),
            _ => false,
        }
    }

    fn has_floats(&self, oid: u32, depth: usize) -> bool {
        if FLOATS.contains(&oid) || depth > 32 {
            return true;
        }
        let Some(this) = self.types.get(&oid) else { return false };
        let of = |oid| self.has_floats(oid, depth + 1);
        match this.kind.as_str() {
            "e" => false,
            "d" => of(this.base),
            "c" => self.attributes.get(&this.relation).is_some_and(|types| types.iter().any(|t| of(*t))),
            "r" => of(this.subtype),
            "b" if this.is_array => of(this.element),
            // What an extension's type writes nobody knows.
            _ => oid >= FIRST_OWN,
        }
    }
}

fn types(db: &mut Db) -> Result<Types> {
    let mut types = HashMap::new();
    let sql = "SELECT t.oid, typtype::text, typbasetype, typelem, typcategory = 'A' AND typlen = -1, typrelid, \
         coalesce(rngsubtype, 0::oid) FROM pg_type t LEFT JOIN pg_range ON rngtypid = t.oid";
    for row in db.rows(sql, &[])? {
        let this = Type {
            kind: row.get(1),
            base: row.get(2),
            element: row.get(3),
            is_array: row.get(4),
            relation: row.get(5),
            subtype: row.get(6),
        };
        types.insert(row.get(0), this);
    }
    let sql = "SELECT attrelid, atttypid FROM pg_attribute JOIN pg_class c ON c.oid = attrelid \
         WHERE attnum > 0 AND NOT attisdropped AND c.oid >= 16384";
    let mut attributes: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in db.rows(sql, &[])? {
        attributes.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(Types { types, attributes })
}

/// Columns by table, with their types.
fn columns(db: &mut Db) -> Result<HashMap<u32, Vec<(String, u32)>>> {
    let generated = if db.version.has_generated_columns() { "AND attgenerated = ''" } else { "" };
    let sql = format!(
        "SELECT attrelid, attname::text, atttypid FROM pg_attribute JOIN pg_class c ON c.oid = attrelid \
         WHERE attnum > 0 AND NOT attisdropped {generated} AND relkind = 'r' AND c.oid >= 16384"
    );
    let mut columns: HashMap<u32, Vec<(String, u32)>> = HashMap::new();
    for row in db.rows(&sql, &[])? {
        columns.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    for list in columns.values_mut() {
        list.sort();
    }
    Ok(columns)
}

/// Tables and sequences of extensions that hold what is the user's, with the condition that says which rows.
fn configurations(db: &mut Db) -> Result<HashMap<u32, String>> {
    let sql = "SELECT unnest(extconfig), unnest(extcondition) FROM pg_extension WHERE extconfig IS NOT NULL";
    Ok(db.rows(sql, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What belongs to an extension.
fn of_extensions(db: &mut Db) -> Result<HashSet<u32>> {
    let sql = "SELECT objid FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype = 'e'";
    Ok(db.rows(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

/// Partitions whose place is decided by what is not the same on the other side, with the root that knows it.
struct Partitions {
    parents: HashMap<u32, u32>,
    names: HashMap<u32, Name>,
    /// Partitioned by a hash of what has another hash there.
    moving: HashSet<u32>,
}

impl Partitions {
    /// `all_hashes`: the encodings of the two sides differ, and with them the hash of every text.
    fn read(db: &mut Db, all_hashes: bool) -> Result<Partitions> {
        let mut partitions =
            Partitions { parents: HashMap::new(), names: HashMap::new(), moving: HashSet::new() };
        if !db.version.has_partitions() {
            return Ok(partitions);
        }
        let sql = "SELECT inhrelid, inhparent FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relispartition";
        partitions.parents = db.rows(sql, &[])?.iter().map(|row| (row.get(0), row.get(1))).collect();
        let sql = "SELECT c.oid, nspname::text, relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
             WHERE relkind = 'p'";
        partitions.names =
            db.rows(sql, &[])?.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
        if db.version.has_hash_partitions() {
            // An enum's hash is that of its OIDs: pg_dump's getPartitioningInfo.
            let sql = "SELECT partrelid FROM pg_partitioned_table WHERE partstrat = 'h' AND ($1 OR \
                 (SELECT c.oid FROM pg_opclass c JOIN pg_am a ON c.opcmethod = a.oid WHERE opcname = 'enum_ops' \
                 AND opcnamespace = 'pg_catalog'::regnamespace AND amname = 'hash') = ANY (partclass))";
            partitions.moving = db.rows(sql, &[&all_hashes])?.iter().map(|row| row.get(0)).collect();
        }
        Ok(partitions)
    }

    fn root(&self, leaf: u32, known: &HashSet<Name>) -> Option<Name> {
        let (mut at, mut moves) = (*self.parents.get(&leaf)?, false);
        loop {
            moves |= self.moving.contains(&at);
            match self.parents.get(&at) {
                Some(parent) => at = *parent,
                None => break,
            }
        }
        self.names.get(&at).filter(|name| moves || known.contains(*name)).cloned()
    }
}

/// All tables with rows of their own, in no order.
///
/// `all_hashes`: the other side has another encoding. `like`: what is known to have been read as one tree is so here.
pub fn tables(db: &mut Db, all_hashes: bool, like: Option<&Sums>) -> Result<Vec<Table>> {
    let trees: HashSet<Name> = like
        .iter()
        .flat_map(|sums| &sums.tables)
        .filter(|table| Form::parse(&table.form).tree)
        .map(|table| (table.schema.clone(), table.name.clone()))
        .collect();
    let types = types(db)?;
    let mut columns = columns(db)?;
    let configurations = configurations(db)?;
    let of_extensions = of_extensions(db)?;
    let partitions = Partitions::read(db, all_hashes)?;
    let has_binary_times = db.setting("integer_datetimes")?.is_none_or(|value| value == "on");
    let is_heap = match db.version.has_table_access_methods() {
        true => "(SELECT amname = 'heap' FROM pg_am WHERE pg_am.oid = relam)",
        false => "true",
    };
    let sql = format!(
        "SELECT c.oid, n.nspname::text, relname::text, coalesce(pg_relation_size(c.oid), 0), \
         coalesce(pg_table_size(c.oid), 0), coalesce({is_heap}, false) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind = 'r' AND relpersistence <> 't' AND {SCHEMAS}"
    );
    let has_ranges = db.version.has_tid_ranges();
    let mut found = Vec::new();
    for row in db.rows_interruptible(&sql, &[])? {
        let oid: u32 = row.get(0);
        let condition = configurations.get(&oid).cloned();
        if of_extensions.contains(&oid) && condition.is_none() {
            continue;
        }
        let columns = columns.remove(&oid).unwrap_or_default();
        let is_heap: bool = row.get(5);
        found.push(Table {
            name: (row.get(1), row.get(2)),
            bytes: row.get::<_, i64>(3) as u64,
            whole_bytes: row.get::<_, i64>(4) as u64,
            binary: has_binary_times && columns.iter().all(|(_, oid)| types.is_safe(*oid)),
            floats: columns.iter().any(|(_, oid)| types.has_floats(*oid, 0)),
            columns: columns.into_iter().map(|(name, _)| name).collect(),
            root: partitions.root(oid, &trees),
            is_heap,
            divisible: is_heap && has_ranges && condition.is_none(),
            condition,
        });
    }
    Ok(found)
}

/// Sequences whose value is the user's, in the order of their names.
pub fn sequences(db: &mut Db) -> Result<Vec<Name>> {
    let configurations = configurations(db)?;
    let of_extensions = of_extensions(db)?;
    let sql = format!(
        "SELECT c.oid, n.nspname::text, relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind = 'S' AND relpersistence <> 't' AND {SCHEMAS}"
    );
    let mut found: Vec<Name> = db
        .rows(&sql, &[])?
        .iter()
        .filter(|row| !of_extensions.contains(&row.get(0)) || configurations.contains_key(&row.get(0)))
        .map(|row| (row.get(1), row.get(2)))
        .collect();
    found.sort();
    Ok(found)
}

/// Forms by table, of what is known already.
pub fn forms(like: Option<&Sums>) -> BTreeMap<Name, Form> {
    let known = like.iter().flat_map(|sums| &sums.tables);
    known.map(|table| ((table.schema.clone(), table.name.clone()), Form::parse(&table.form))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(bytes: u64) -> Table {
        Table {
            name: ("s".into(), "a \"b\"".into()),
            bytes,
            whole_bytes: bytes,
            columns: vec!["x".into(), "y z".into()],
            binary: true,
            floats: false,
            condition: None,
            root: None,
            is_heap: true,
            divisible: true,
        }
    }

    #[test]
    fn a_form_is_remembered() {
        for rounded in [false, true] {
            for tree in [false, true] {
                let form = Form { binary: !rounded, encoding: "LATIN1".into(), rounded, tree };
                assert_eq!(Form::parse(&form.text()), form);
            }
        }
    }

    #[test]
    fn pieces_cover_a_table() {
        let tables = [table(1000), table(3 * PIECE * PAGE + 5)];
        let units = units(&tables, 2);
        let mut pages: Vec<_> = units.iter().filter(|unit| unit.table == 1).map(|unit| unit.pages).collect();
        pages.sort();
        assert_eq!(pages, [Some((0, Some(PIECE))), Some((PIECE, Some(2 * PIECE))), Some((2 * PIECE, None))]);
        assert_eq!(units.last().unwrap().table, 0);
        assert_eq!(super::units(&tables, 1).len(), 2);
    }

    #[test]
    fn copies_say_what_they_copy() {
        let form = Form { binary: true, encoding: "UTF8".into(), rounded: false, tree: false };
        let whole = Unit { table: 0, pages: None, bytes: 0 };
        assert_eq!(
            copy_out(&table(9), &whole, &form),
            r#"COPY "s"."a ""b""" ("x", "y z") TO STDOUT WITH (FORMAT binary)"#
        );
        assert_eq!(
            copy_in(&table(2 << 20), &whole, &form),
            r#"TRUNCATE ONLY "s"."a ""b"""; COPY "s"."a ""b""" ("x", "y z") FROM STDIN WITH (FORMAT binary, FREEZE)"#
        );
        let piece = Unit { table: 0, pages: Some((5, Some(9))), bytes: 0 };
        let form = Form { binary: false, encoding: "LATIN1".into(), rounded: true, tree: false };
        assert_eq!(
            copy_out(&table(9), &piece, &form),
            "SET client_encoding = 'LATIN1'; SET extra_float_digits = 0; COPY (SELECT \"x\", \"y z\" FROM ONLY \
             \"s\".\"a \"\"b\"\"\" WHERE ctid >= '(5,0)' AND ctid < '(9,0)') TO STDOUT; SET client_encoding = 'UTF8'; \
             SET extra_float_digits = 3"
        );
    }
}
