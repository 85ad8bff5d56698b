//! What a backup is and what becomes of it: pure facts and pure decisions. `now` is always an argument.
pub mod link;
pub mod manifest;
pub mod retention;
pub mod schedule;
