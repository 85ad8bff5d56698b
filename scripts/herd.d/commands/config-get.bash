# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd config:get NAME [--json]
# Summary: the value of one variable
#
# Exit code 1 when it is not set.
#
# Example:
#   psql "$(herd config:get DATABASE_URL)"

command_config_get() {
    (($# == 1)) || usage_error "which variable?"
    use_platform
    platform config-get "$1" >"$work/value" || die 1 "$app has no variable $1" "herd config shows all"
    if [[ -n $json ]]; then jq -cRs --arg n "$1" '{name: $n, value: rtrimstr("\n")}' "$work/value"; else cat "$work/value"; fi
}
