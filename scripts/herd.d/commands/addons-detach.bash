# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons:detach DB [--json]
# Summary: forget a database's attachment; the instance goes on
#
# Example:
#   herd addons:detach SILVER

command_addons_detach() {
    local instance release variables
    (($# == 1)) && [[ $1 != -* ]] || usage_error "which database?"
    use_platform
    load_databases
    resolve "$1"
    must_not_be_current "$instance"
    mapfile -t variables < <(about '.databases[] | select(.name == $n) | .attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"' --arg n "$instance")
    ((${#variables[@]})) || die 1 "$instance is not attached" "herd addons shows what is"
    doing "Detaching $(label "$instance") from $app"
    release=$(config_unset "Detach ${variables[0]%_URL}" "${variables[@]}")
    done_with "v$release"
    [[ -z $json ]] || jq -cn --arg i "$instance" --argjson r "$release" '{instance: $i, release: $r}'
}
