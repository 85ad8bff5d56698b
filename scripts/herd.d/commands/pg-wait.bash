# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:wait [DB...] [--timeout SECONDS] [--json]
# Summary: wait until databases are ready and followers have caught up
#
# Without a name all that are attached to the app, at the same time. A copy in the
# background is shown as it gets on, and its failure is the failure of this command.
#
# Options:
#   --timeout SECONDS   at most (3600)
#
# Example:
#   herd pg:wait WHITE && herd pg:promote WHITE

command_pg_wait() {
    local chosen=() name instance limit=3600 failed=0 status
    use_platform
    load_databases
    while (($#)); do
        case $1 in
            --timeout)
                [[ ${2:-} =~ ^[1-9][0-9]{0,6}$ ]] || usage_error "--timeout wants a number of seconds"
                limit=$2
                shift
                ;;
            -*) usage_error "unknown option $1" ;;
            *)
                resolve "$1"
                chosen+=("$instance")
                ;;
        esac
        shift
    done
    ((${#chosen[@]})) || mapfile -t chosen < <(attached)
    ((${#chosen[@]})) || die 1 "$app has no databases" "herd addons:add heroku-postgresql:ronin adds one"
    in_parallel wait_for_database "${chosen[@]}" || true
    for name in "${chosen[@]}"; do
        status=$(<"$work/status.$name")
        if ((status == 0)); then
            say "Waiting for database $(label "$name")... $(jq -r 'if .role == "standby" then "following" else "available" end' "$work/out.$name")"
        else
            say "Waiting for database $(label "$name")... failed"
            [[ -n $json ]] || warn "$(label "$name"): $(jq -r '.message + (if .hint then "; " + .hint else "" end)' "$work/error.$name")"
            ((failed)) || failed=$status
        fi
    done
    if [[ -n $json ]]; then
        for name in "${chosen[@]}"; do
            if [[ $(<"$work/status.$name") == 0 ]]; then jq -c --arg n "$name" '{($n): .}' "$work/out.$name"; else jq -c --arg n "$name" '{($n): {error: .}}' "$work/error.$name"; fi
        done | jq -cs add
    fi
    return "$failed"
}

wait_for_database() {
    agent $((limit + 30)) "$1" wait --timeout "$limit" </dev/null 2> >(steps_of "$1")
}
