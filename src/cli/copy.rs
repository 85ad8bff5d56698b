//! Owns `pgmahout copy`, and the hidden `copy-part` that a migration is made of.
