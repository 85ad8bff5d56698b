# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd config:get NAME
# Summary: the value of one variable
#
# Exit code 1 when it is not set.
#
# Example:
#   psql "$(herd config:get DATABASE_URL)"

command_config_get() {
    (($# == 1)) || usage_error "which variable?"
    use_platform
    platform config-get "$1" || die 1 "$app has no variable $1" "herd config shows all"
}
