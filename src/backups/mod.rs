//! What a backup is and what becomes of it: pure facts and pure decisions. `now` is always an argument.
pub mod manifest;
