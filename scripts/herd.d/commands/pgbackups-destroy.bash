# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:destroy ID [--json]
# Summary: remove a backup
#
# ID is b001; INSTANCE:ID where several instances have one of that name, or one of
# them does not answer.
#
# Example:
#   herd pgbackups:destroy b001

command_pgbackups_destroy() {
    local id holder backup backups silent report
    (($# == 1)) && [[ -n $1 && $1 != -* ]] || usage_error "which backup?" "herd pgbackups shows them"
    use_platform
    load_databases
    find_backup "$1"
    ((${#silent[@]} == 0)) || die 4 "$(label "${silent[0]}") does not say whether it has a backup $id too: $(jq -r .message "$work/error.${silent[0]}")" \
        "to remove the one that is known: herd pgbackups:destroy $holder:$id"
    doing "Destroying $id"
    report=$(agent "$longest" "$holder" backup delete "$id" </dev/null 2>/dev/null) || {
        not_done
        die_of "$holder"
    }
    done_with
    [[ -z $json ]] || printf '%s\n' "$report"
}
