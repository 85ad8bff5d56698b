# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:fork DB --of DB [--dry-run] [--background] [--confirm APP] [--json]
# Summary: make a database an independent, writable copy of another
#
# It gets all that the other has now, and goes its own way from there. To make a
# new database for it: herd addons:add heroku-postgresql:PLAN --fork DB
#
# Example:
#   herd pg:fork SILVER --of DATABASE_URL

command_pg_fork() {
    direct_copy fork "$@"
}
