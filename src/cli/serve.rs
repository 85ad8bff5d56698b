//! Owns `pgmahout serve`.

use crate::error::Result;
use crate::operations::{Context, serve};
use clap::Args;

/// Give out the backups of this instance to whoever has a link to one
///
/// It listens where the setting serve_listen says, and answers only links that `pgmahout backup url` gave, while they
/// are good: GET and HEAD, also of a range, so that a download that broke off goes on (`curl -C -`). There is no
/// list, and no other file. It speaks plain HTTP: put a proxy that speaks HTTPS before it, and say its URL in the
/// setting serve_url.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgmahout serve
  PGMAHOUT_SERVE_LISTEN=0.0.0.0:5480 pgmahout serve")]
pub struct ServeArgs {}

/// Runs it until it is interrupted.
pub fn run(context: Context) -> Result<()> {
    serve::run(context)
}
