//! Owns `pgmahout migrate`.
