# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:locks [DB] [--json]
# Summary: who waits for whom, and what is locked
#
# DATABASE_URL by default. `pgmahout locks --help` on an instance says what is shown.
#
# Example:
#   herd pg:locks

command_pg_locks() {
    shown_by_agent locks "$@"
}
