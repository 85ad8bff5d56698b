# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd maintenance [--json]
# Summary: whether the app is in maintenance
#
# Example:
#   herd maintenance

command_maintenance() {
    no_arguments "$@"
    maintenance_is ""
}

# maintenance_is [on|off]: sets it, and says how it is
maintenance_is() {
    local state
    use_platform
    [[ -z ${1:-} ]] || doing "$([[ $1 == on ]] && echo Enabling || echo Disabling) maintenance mode for $app"
    state=$(platform maintenance ${1:+"$1"})
    [[ $state == on || $state == off ]] || misbehaved maintenance "it answered neither on nor off"
    [[ -z ${1:-} || $1 == "$state" ]] || misbehaved maintenance "it answered $state to $1"
    if [[ -n $json ]]; then
        jq -cn --arg app "$app" --arg s "$state" '{app: $app, maintenance: ($s == "on")}'
    elif [[ -n ${1:-} ]]; then
        done_with
    else
        say "$state"
    fi
}
