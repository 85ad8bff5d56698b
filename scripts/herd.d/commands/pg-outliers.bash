# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:outliers [DB] [-n N] [--reset] [--json]
# Summary: the statements that took the most time
#
# DATABASE_URL by default. `pgmahout outliers --help` on an instance says what is shown.
#
# Example:
#   herd pg:outliers -n 5

command_pg_outliers() {
    shown_by_agent outliers "$@"
}
