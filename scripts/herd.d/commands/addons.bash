# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons [--json]
# Summary: the app's databases, their plans and attachments; nightly backups
#
# Example:
#   herd addons

command_addons() {
    local all chosen instance schedule=null
    no_arguments "$@"
    use_platform
    load_databases
    mapfile -t chosen < <(about '.databases[].name')
    ask_all ${chosen[@]+"${chosen[@]}"}
    instance=$(about '[.databases[] | select(.current) | .name] | first // empty')
    # One that is silent already is not waited for twice
    if [[ -n $instance && $(info "$instance" 'has("error")') == false ]]; then
        schedule=$(shape=$schedule_shape ask "$instance" backup schedule | jq -c --arg i "$instance" 'select(.plan) | {addon: "pgbackups:\(.plan)", instance: $i}') ||
            schedule=$(jq -c --arg i "$instance" '{addon: "pgbackups", instance: $i, error: .message}' "$work/error.$instance")
    fi
    all=$(with_info | jq -c --argjson s "${schedule:-null}" '. + {schedule: $s}')
    if [[ -n $json ]]; then
        jq -c '{app, addons: ([.databases[] | {addon: ("heroku-postgresql" + (if .info.plan then ":\(.info.plan)" else "" end)), instance: .name,
             attachments: [.attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"], current, role: .info.role, error: .info.error.message}]
            + [.schedule | values])}' <<<"$all"
    else
        jq -r -L "$library" 'include "herd"; "=== \(.app) Addons", (.databases[]
            | ["heroku-postgresql" + (if .info.plan then ":\(.info.plan)" else "" end), .name,
               (if .attachments == [] then "not attached" else ([.attachments[] | "HEROKU_POSTGRESQL_\(.)"] | join(" ")) end) + (if .current then " (DATABASE_URL)" else "" end)] | @tsv),
            (.schedule | values | [.addon, .instance, (if .error then "unknown: \(.error | one_line)" else "every night" end)] | @tsv)' <<<"$all" |
            awk -F '\t' 'NF == 1 { print; next } { printf "%-26s %-8s %s\n", $1, $2, $3 }' | plain
    fi
}
