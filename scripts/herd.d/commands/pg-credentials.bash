# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:credentials [DB] [--json]
# Summary: how to connect to a database
#
# Prints the password: that is what it is for.
#
# Example:
#   herd pg:credentials AMBER

command_pg_credentials() {
    local instance
    (($# <= 1)) && [[ ${1:-} != -* ]] || usage_error "it wants one database"
    use_platform
    load_databases
    resolve "${1:-}"
    attached_url "$instance" | jq -rRs --arg i "$instance" --arg json "$json" '
        rtrimstr("\n") as $url
        | def plain: [match("%[0-9A-Fa-f]{2}|[^%]+"; "g").string] | map(if startswith("%") then .[1:] else . end) | join("");
          ($url | capture("^[a-z]+://(?:(?<user>[^:@/]*)(?::(?<password>[^@/]*))?@)?(?<host>[^:/?]+)(?::(?<port>[0-9]+))?(?:/(?<database>[^?]*))?")) as $p
        | if $json == "yes" then {instance: $i, url: $url, host: $p.host, port: (($p.port // "5432") | tonumber), user: $p.user, database: $p.database} | tojson
          else "Connection info string:",
               "   \"dbname=\($p.database // "") host=\($p.host) port=\($p.port // "5432") user=\($p.user // "") password=\($p.password // "")\"",
               "Connection URL:", "   \($url)" end'
}
