# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd ps [--json]
# Summary: the app's processes: how many of each, and how they are
#
# Example:
#   herd ps

command_ps() {
    no_arguments "$@"
    use_platform
    platform processes >"$work/processes"
    ! grep -qvP '^[A-Za-z0-9][A-Za-z0-9._-]*\t[0-9]{1,6}\t(running|stopped|degraded|unknown)$' "$work/processes" ||
        misbehaved processes "it answered a line that is not NAME, COUNT and STATE"
    if [[ -n $json ]]; then
        jq -cRs --arg app "$app" '{app: $app, processes: [split("\n")[] | select(. != "") | split("\t") | {name: .[0], count: (.[1] | tonumber), state: .[2]}]}' "$work/processes"
    else
        printf '=== %s Processes\n' "$app"
        awk -F '\t' '{ printf "%-12s %3d  %s\n", $1, $2, $3 }' "$work/processes"
    fi
}
