# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd ps:restart [NAME...] [--json]
# Summary: restart the app's processes; never a database
#
# Example:
#   herd ps:restart www

command_ps_restart() {
    use_platform
    doing "Restarting ${*:-processes}"
    platform restart "$@" >/dev/null
    done_with
    [[ -z $json ]] || jq -cn --arg app "$app" --args '{app: $app, restarted: (if $ARGS.positional == [] then "all" else $ARGS.positional end)}' "$@"
}
