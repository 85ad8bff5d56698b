# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:ps [DB] [--all] [--json]
# Summary: what the sessions of a database do now
#
# DATABASE_URL by default. `pgmahout ps --help` on an instance says what is shown.
#
# Example:
#   herd pg:ps WHITE --all

command_pg_ps() {
    shown_by_agent ps "$@"
}
