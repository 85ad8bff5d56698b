//! One checklist per verb. Operations never print, exit or parse flags: they report to the one progress
//! sink and return what they did, or an error.

use crate::instance::Instance;
use crate::progress::Progress;

pub mod activity;
pub mod backup;
pub mod build_version;
mod client;
pub mod copy;
pub mod credentials;
pub mod enslave;
pub mod fence;
pub mod forget;
pub mod fork;
pub mod info;
pub mod job;
pub mod logs;
pub mod migrate;
pub mod peers;
pub mod plan;
pub mod primary;
pub mod promote;
pub mod serve;
pub mod standby;
pub mod wait;

/// What every operation works with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The instance that this agent keeps.
    pub instance: &'a Instance,
    /// Where to report.
    pub progress: &'a Progress,
}
