# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud down [--all]
# Summary: stop everything, keep all data
#
# Without a chosen application (-A, or .dotcloud/config here), or with --all, it
# does so for all applications. `dotcloud up` starts them again.
#
# Example:
#   dotcloud down

# shellcheck source=scripts/dotcloud.d/commands/up.bash
source "$library/commands/up.bash"

command_down() {
    need jq flock
    need_account
    for_each_app down_app "$@"
}

down_app() {
    local instance
    while read -r instance <&3; do
        say "$app: stopping $instance"
        stop_instance "$instance" "$stop_timeout"
    done 3< <(instances)
}
