//! Restores backups.

pub mod physical;
