//! pgmahout: one keeper for one PostgreSQL instance.
//!
//! The modules stand on floors and import only from lower ones; `tests/layering.rs` holds them to it.
pub mod blurb;
pub mod error;
pub mod postgres;
