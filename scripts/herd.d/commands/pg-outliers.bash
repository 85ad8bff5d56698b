# shellcheck shell=bash
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
