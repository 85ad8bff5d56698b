//! Owns the way from a mirror to a finished installation of PostgreSQL: which release, its tarball with the
//! checksum that was published, what the machine offers, configure and make.
//!
//! Where a finished build lies and which one is in use is [`crate::builds`]'s.

pub mod compile;
pub mod mirror;
pub mod options;
pub mod tree;
