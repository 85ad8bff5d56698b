# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:info ID [--json]
# Summary: all about one backup
#
# ID is b001; INSTANCE:ID where several instances have one of that name.
#
# Examples:
#   herd pgbackups:info b001
#   herd pgbackups:info db.0:b001

command_pgbackups_info() {
    local id holder backup backups silent
    one_backup "$@"
    show_of "$holder" backup info "$id"
}
