//! Facts about PostgreSQL 9.0 to 18, each in one place, without any I/O: what a version can do, what
//! stands in its files, and which SQL it wants.
pub mod archive;
pub mod backup;
pub mod changes;
pub mod control;
pub mod files;
pub mod log;
pub mod page;
pub mod password;
pub mod plan;
pub mod records;
pub mod recovery;
pub mod release;
pub mod ssl;
pub mod time;
pub mod version;
pub mod wal;
