//! Runs the command line and exits with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgmahout::process::keep_memory_private();
    pgmahout::nss::files_and_dns_only();
    ExitCode::from(pgmahout::cli::run())
}
