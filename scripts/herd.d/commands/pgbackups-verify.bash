# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:verify ID [--json]
# Summary: prove a backup by restoring it into a throw-away server
#
# On the instance that has it; that one's own server and databases are not touched.
# Exit code 1 when the backup is not good.
#
# Examples:
#   herd pgbackups:verify b001
#   herd pgbackups:verify db.2:a017      of a shared store: on that instance

command_pgbackups_verify() {
    local id holder backup backups silent report status=0
    one_backup "$@"
    report=$(shape='type == "object" and (.good | type == "boolean")' \
        answered_by "$holder" "$longest" backup verify "$id" 2> >(steps_of "$holder")) || status=$?
    [[ -n $report ]] || {
        say "Verifying $id... failed"
        die_of "$holder"
    }
    say "Verifying $id... $(jq -r '(if .good then "good" else "failed" end) + (.text // "" | if . == "" then . else ": " + . end)' <<<"$report" | plain)"
    [[ -z $json ]] || printf '%s\n' "$report"
    [[ $status == 0 && $(jq .good <<<"$report") == true ]]
}
