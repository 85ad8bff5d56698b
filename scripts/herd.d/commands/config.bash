# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd config [--shell] [--json]
# Summary: the app's config variables
#
# Options:
#   --shell   NAME=value, quoted for a shell
#
# Example:
#   herd config --shell > .env

command_config() {
    local shell=""
    [[ ${1:-} != --shell ]] || { shell=yes && shift; }
    no_arguments "$@"
    use_platform
    platform config-list >"$work/config"
    check_config <"$work/config"
    if [[ -n $json ]]; then
        jq -c --arg app "$app" '{app: $app, release, config}' "$work/config"
    elif [[ -n $shell ]]; then
        jq -r '.config | to_entries[] | "\(.key)=\(.value | @sh)"' "$work/config"
    else
        jq -r --arg app "$app" '"=== \($app) Config Vars", (.config | (keys | map(length) | max) as $w | to_entries[] | "\(.key):\(" " * ($w - (.key | length) + 1))\(.value)")' "$work/config" | plain
    fi
}
