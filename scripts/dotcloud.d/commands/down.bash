# shellcheck shell=bash disable=SC2016,SC2154
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
    local instance chosen
    choose_instances "$@"
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        say "$app: stopping $instance"
        stop_instance "$instance" "$stop_timeout"
    done
}
