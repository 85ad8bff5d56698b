# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd releases [-n N] [--json]
# Summary: what was changed, and when
#
# Options:
#   -n N   how many (15)
#
# Example:
#   herd releases

command_releases() {
    local count=15
    if [[ ${1:-} == -n ]]; then
        [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "-n wants a number"
        count=$2
        shift 2
    fi
    no_arguments "$@"
    use_platform
    platform releases >"$work/releases"
    jq -e 'type == "array" and all(.[]; (.release | type == "number") and (.at, .what | type == "string"))' "$work/releases" >/dev/null 2>&1 ||
        misbehaved releases "it answered no list of releases"
    if [[ -n $json ]]; then
        jq -c --arg app "$app" --argjson n "$count" '{app: $app, releases: .[:$n]}' "$work/releases"
    else
        jq -r -L "$library" --arg app "$app" --argjson n "$count" 'include "herd"; "=== \($app) Releases", (.[:$n][] | "v\(.release)\t\(.at | one_line | sub("T"; " ") | sub("Z$"; " UTC"))\t\(.what | one_line)")' "$work/releases" |
            awk -F '\t' 'NF == 1 { print; next } { printf "%-6s %-25s %s\n", $1, $2, $3 }'
    fi
}
