# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:info [DB...] [--json]
# Summary: every database: role, plan, version, followers, lag, size
#
# Without a name all that are attached to the app. They are asked at the same
# time; one that does not answer is shown as such, and does not hide the others.
# Exit code 4 when one did not answer.
#
# Examples:
#   herd pg:info
#   herd pg:info AMBER
#   herd pg:info --json | jq '.databases[] | select(.info.role == "standby") | .info.following.lag'

command_pg_info() {
    local chosen=() name instance all
    use_platform
    load_databases
    for name; do
        [[ $name != -* ]] || usage_error "unknown option $name"
        resolve "$name"
        chosen+=("$instance")
    done
    (($#)) || mapfile -t chosen < <(attached)
    if ((${#chosen[@]} == 0)); then
        if [[ -n $json ]]; then jq -cn --arg app "$app" '{app: $app, databases: []}'; else say "$app has no databases; herd addons:add heroku-postgresql:ronin adds one"; fi
        return
    fi
    ask_all "${chosen[@]}"
    all=$(with_info)
    if [[ -n $json ]]; then
        jq -c -L "$library" 'include "herd"; info_json' <<<"$all"
    else
        jq -r -L "$library" 'include "herd"; info_text' <<<"$all"
    fi
    [[ $(jq '[.databases[].info.error | values] | length' <<<"$all") == 0 ]] || exit 4
}
