# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:credentials [DB] [--json]
# Summary: how to connect to a database
#
# Prints the password: that is what it is for.
#
# Example:
#   herd pg:credentials AMBER

command_pg_credentials() {
    local instance url user password host port database
    (($# <= 1)) && [[ ${1:-} != -* ]] || usage_error "it wants one database"
    use_platform
    load_databases
    resolve "${1:-}"
    url=$(attached_url "$instance" "${1:-}")
    [[ $url =~ ^[a-z]+://(([^:@/]*)(:([^@/]*))?@)?(\[[^]]*\]|[^:/?]+)(:([0-9]+))?(/([^?]*))? ]] || die 1 "the URL of $(label "$instance") cannot be understood" "see herd config"
    user=${BASH_REMATCH[2]} password=${BASH_REMATCH[4]} host=${BASH_REMATCH[5]} port=${BASH_REMATCH[7]:-5432} database=${BASH_REMATCH[9]}
    host=${host#[} host=${host%]}
    if [[ -n $json ]]; then
        printf %s "$url" | jq -cRs --arg i "$instance" --arg h "$host" --arg p "$port" --arg u "$(decoded "$user")" --arg d "$(decoded "$database")" \
            '{instance: $i, url: ., host: $h, port: ($p | tonumber), user: $u, database: $d}'
    else
        printf '%s\n' "Connection info string:" \
            "   \"dbname=$(conninfo_word "$database") host=$host port=$port user=$(conninfo_word "$user") password=$(conninfo_word "$password")\"" \
            "Connection URL:" "   $url"
    fi
}

# conninfo_word PART-OF-URL: as libpq reads it
conninfo_word() {
    local text
    text=$(decoded "$1")
    if [[ -z $text || $text == *[[:space:]\'\\]* ]]; then
        text=${text//\\/\\\\}
        text="'${text//\'/\\\'}'"
    fi
    printf %s "$text"
}
