# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:kill PID [DB] [--force] [--json]
# Summary: cancel a session's statement, or end the session
#
# PID is what pg:ps and pg:locks show; DB is DATABASE_URL by default.
#
# Options:
#   --force   end the session, not only its statement
#   --all     in place of PID: all sessions of clients
#
# Example:
#   herd pg:kill 4711

command_pg_kill() {
    local argument whom="" database="" options=()
    for argument; do
        case $argument in
            --force) options+=(--force) ;;
            --all) whom=--all ;;
            -*) usage_error "unknown option $argument" ;;
            *) if [[ -z $whom && $argument =~ ^[0-9]+$ ]]; then whom=$argument; else database=$argument; fi ;;
        esac
    done
    [[ -n $whom ]] || usage_error "which session? herd pg:ps shows them"
    shown_by_agent kill ${database:+"$database"} "$whom" ${options[@]+"${options[@]}"}
}
