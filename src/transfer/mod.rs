//! PGDATA from there to here: the frames on the wire, the end that reads and the end that writes.
//!
//! The target asks, the source answers. One stream (an SSH session with a `pgmahout source` at its far
//! end) carries the manifest; then each of several streams takes ranges of files from one queue, so that
//! large files are split between them and small ones do not wait for a round trip: requests are sent
//! ahead of their answers. Both ends hold a few blocks in memory, whatever the size of the database.
//!
//! Correctness while the source is written to rests on PostgreSQL's base backup: whatever changes, grows,
//! shrinks or goes away after the backup's start is repaired by replaying the WAL from there.
pub mod blocks;
pub mod coding;
#[cfg(test)]
mod peers;
pub mod protocol;
pub mod source;
pub mod stream;
pub mod target;
pub mod walk;
mod write;
