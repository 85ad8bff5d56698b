# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:follow DB --of DB [--dry-run] [--background] [--copy] [--copy-from DB] [--paranoid] [--cascade] [--confirm APP] [--json]
# Summary: make a database a follower of another
#
# The cheapest way that is correct: new connection settings where nothing is
# missing, else a copy. A database that holds what the other has not wants the
# app's name, typed or by --confirm.
#
# Options:
#   -n, --dry-run   what would be done
#   --background    come back as soon as all is checked; pg:wait tells how it does
#   --copy          copy all, also where new settings would do
#   --copy-from DB  what has to be copied comes from that follower, so that the other has nothing to read
#   --paranoid      where only what differs is copied, compare everything, also what the WAL says is the same
#   --cascade       follow a database that is itself a follower
#
# Examples:
#   herd pg:follow AMBER --of DATABASE_URL
#   herd pg:follow db.0 --of db.1 --dry-run
#   herd pg:follow db.3 --of AMBER --copy-from SILVER

command_pg_follow() {
    direct_copy enslave "$@"
}
