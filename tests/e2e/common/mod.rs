//! The end-to-end harness: real PostgreSQL servers, real sshd, the real binary, on loopback.
//!
//! A [`Site`] is one test's directory. A [`Host`] in it acts as one machine with one
//! instance: own home, own sshd, own server. Whatever a test starts ends when its values are dropped,
//! also when the test panics, and what an interrupted test run left behind is swept by the next one.
#![allow(dead_code, unused_imports, missing_docs)]

mod account;
mod agent;
mod checks;
mod host;
mod line;
mod load;
mod proxy;
mod real_build;
mod s3;
pub mod shelf;
mod site;
mod source;
mod supervisor;
mod template;

pub use account::{Account, account, must};
pub use agent::{Output, Run, Running, start};
pub use checks::{
    Snapshot, amcheck, assert_streams, compare, primary_is_clean, snapshot, wait_replayed, without_check,
};
pub use host::{Host, HostBuilder, Pg, percent, quote};
pub use line::{Direction, Line, Network};
pub use load::{Argv, Journal, Pgbench, Seen, enslaved_under_load, noise};
pub use proxy::Proxy;
pub use real_build::{names, really_build};
pub use s3::{KEY, S3, SECRET};
pub use site::{Site, SmallDisk, binary, free_port, pids, until};
pub use source::{Mirror, Nginx, Standin, sha256, url_at};
pub use supervisor::{Supervisor, supervised};

/// A primary and a fresh instance beside it, both running, of the same version.
pub fn pair(pg: Pg) -> (Host, Host) {
    let site = Site::new();
    let primary = site.host("db.0").pg(pg.clone()).build();
    let target = site.host("db.1").pg(pg).build();
    (primary, target)
}
