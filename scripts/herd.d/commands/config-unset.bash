# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd config:unset NAME... [--no-restart] [--json]
# Summary: remove variables, and restart the app's processes
#
# Example:
#   herd config:unset GREETING

command_config_unset() {
    local argument release restart=yes names=()
    for argument; do
        case $argument in
            --no-restart) restart="" ;;
            -*) usage_error "unknown option $argument" ;;
            *)
                [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || usage_error "'$argument' is not a variable's name"
                names+=("$argument")
                ;;
        esac
    done
    ((${#names[@]})) || usage_error "which variables?"
    use_platform
    doing "Unsetting ${names[*]}${restart:+ and restarting $app}"
    release=$(config_unset "Unset ${names[*]}" "${names[@]}")
    done_with "v$release"
    [[ -z $restart ]] || platform restart
    [[ -z $json ]] || jq -cn --argjson r "$release" '{release: $r}'
}
