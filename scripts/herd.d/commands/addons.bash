# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons [--json]
# Summary: the app's databases, their plans and attachments
#
# Example:
#   herd addons

command_addons() {
    local all chosen
    no_arguments "$@"
    use_platform
    load_databases
    mapfile -t chosen < <(about '.databases[].name')
    ask_all ${chosen[@]+"${chosen[@]}"}
    all=$(with_info)
    if [[ -n $json ]]; then
        jq -c '{app, addons: [.databases[] | {addon: ("heroku-postgresql" + (if .info.plan then ":\(.info.plan)" else "" end)), instance: .name,
            attachments: [.attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"], current, role: .info.role, error: .info.error.message}]}' <<<"$all"
    else
        jq -r -L "$library" 'include "herd"; "=== \(.app) Addons", (.databases[]
            | ["heroku-postgresql" + (if .info.plan then ":\(.info.plan)" else "" end), .name,
               (if .attachments == [] then "not attached" else ([.attachments[] | "HEROKU_POSTGRESQL_\(.)"] | join(" ")) end) + (if .current then " (DATABASE_URL)" else "" end)] | @tsv)' <<<"$all" |
            awk -F '\t' 'NF == 1 { print; next } { printf "%-26s %-8s %s\n", $1, $2, $3 }'
    fi
}
