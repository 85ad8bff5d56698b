# shellcheck shell=bash disable=SC2034,SC2016,SC2154
# Usage: dotcloud down [SERVICE[.N]... | --all]
# Summary: stop instances, keep all data
#
# Only the named services and instances, or all of the application. Without a
# chosen application (-A, or .dotcloud/config here), or with --all, it does so
# for all applications. `dotcloud up` starts them again.
#
# Examples:
#   dotcloud down
#   dotcloud down www db.1

# shellcheck source=scripts/dotcloud.d/commands/up.bash
source "$library/commands/up.bash"

command_down() {
    need jq flock
    need_account
    for_each_app down_app "$@"
}

down_app() {
    local chosen
    choose_instances "$@"
    side_by_side bring_down each
}

bring_down() {
    say "$app: stopping $1"
    stop_instance "$1" "$stop_timeout"
}
