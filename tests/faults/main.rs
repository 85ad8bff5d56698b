//! What is left when something breaks at the worst moment: processes are killed at every boundary between two steps
//! (`src/fault.rs`) and at random instants, disks are full, read-only, failing or not what they seem, and lines are far, lossy
//! and cut.
//!
//! Three promises are looked at each time. No commit that was acknowledged is lost which PostgreSQL itself would keep.
//! PGDATA is the old cluster, or the new one, or cannot start and is completed by the same command. Nothing is left on
//! the other side: no backup mode, no slot of nobody's, no process, no file.

#[path = "../e2e/common/mod.rs"]
mod common;

mod scene;

mod backup;
mod build_version;
mod disk;
mod enslave;
mod network;
mod promote;
mod random;
mod secrets;
mod server;
