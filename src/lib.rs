//! pgmahout: one keeper for one PostgreSQL instance.
//!
//! The modules stand on floors and import only from lower ones; `tests/layering.rs` holds them to it.

// floor 0
pub mod checked;
pub mod error;
pub mod fault;
// floor 1: pure facts and pure decisions
pub mod backups;
pub mod blurb;
pub mod postgres;
// floor 2
pub mod compress;
pub mod durable;
pub mod net;
pub mod nss;
pub mod process;
pub mod progress;
pub mod settings;
// floor 3
pub mod agent;
pub mod builds;
pub mod http_server;
pub mod instance;
pub mod layout;
pub mod platform;
pub mod service;
pub mod source_build;
pub mod sql;
pub mod ssh;
pub mod store;
pub mod tls;
pub mod transfer;
pub mod wire;
// floor 4
pub mod operations;
// floor 5
pub mod cli;
