//! Owns raw connections to PostgreSQL: start-up, authentication and TLS by hand, for what the `postgres` crate cannot
//! do, a replication connection and the relay of COPY.
