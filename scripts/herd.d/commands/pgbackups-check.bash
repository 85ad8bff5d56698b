# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:check [DB] [--json]
# Summary: for monitoring: is the last good backup recent enough?
#
# One line, and the exit code: 0 all is well, 1 the last good backup is too old or the
# last try failed, 4 the instance did not answer. DB is DATABASE_URL by default.
#
# Example:
#   herd pgbackups:check || mail -s "no backup" ops@example.com

command_pgbackups_check() {
    local instance report status=0
    (($# <= 1)) && [[ ${1:-} != -* ]] || usage_error "it wants one database"
    use_platform
    load_databases
    resolve "${1:-}"
    report=$(shape='type == "object" and (.text | type == "string")' \
        answered_by "$instance" "$platform_timeout" backup check 2>/dev/null) || status=$?
    [[ -n $report ]] || die_of "$instance"
    say "$(label "$instance"): $(jq -r .text <<<"$report" | plain)"
    [[ -z $json ]] || printf '%s\n' "$report"
    return "$status"
}
