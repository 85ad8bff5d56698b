//! Every end-to-end test, one module per subject, in one program: the harness is compiled once, and the tests of all
//! modules wait for their servers side by side.
//!
//! A module may count on nothing that is shared by the whole machine: tests of other modules run at the same time.

mod backups;
mod common;

mod activity;
mod backup_capture;
mod backup_physical;
mod backup_restore;
mod backup_schedule;
mod backup_serve;
mod backup_store;
mod backup_verify;
mod blurbs;
mod build_version;
mod cli;
mod copy;
mod copy_data;
mod copy_from;
mod credentials;
mod debian;
mod delta;
mod delta_wal;
mod enslave;
mod fork;
mod harness_selftest;
mod logs;
mod migrate;
mod peers;
mod plan;
mod promote;
mod refusals;
mod scale;
mod services;
mod ssh;
mod tls;
mod wait_info;
