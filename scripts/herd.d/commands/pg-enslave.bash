# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:enslave DB --of DB [--dry-run] [--background] [--copy] [--paranoid] [--cascade] [--confirm APP] [--json]
# Summary: the same as pg:follow, by its older name
#
# Example:
#   herd pg:enslave db.1 --of db.0

command_pg_enslave() {
    direct_copy enslave "$@"
}
