//! `copy`: a live database becomes one of this instance, with no disk between. The steps of it are those of `migrate`
//! too, each for itself.

pub mod compare;
pub mod fill;
mod large;
mod relay;
mod schema;
mod sums;
mod units;

use serde::{Deserialize, Serialize};

/// What a database holds, as far as two of them are compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Tables, in the order of their names.
    pub tables: Vec<TableSum>,
    /// Sequences, in the order of their names.
    pub sequences: Vec<SequenceValue>,
    /// Large objects.
    pub large_objects: Option<LargeObjects>,
}

/// One table's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSum {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// 32 hexadecimal digits, whatever the order of the rows.
    pub sum: String,
    /// How the rows were read, as both sides must be read alike.
    pub form: String,
}

/// Where a sequence stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceValue {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `last_value`.
    pub last_value: i64,
    /// `is_called`.
    pub is_called: bool,
}

/// All large objects together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// 32 hexadecimal digits.
    pub sum: String,
}
