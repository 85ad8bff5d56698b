# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud restart [SERVICE[.N]]
# Summary: restart the processes of instances
#
# An instance that is down is started.
#
# Example:
#   dotcloud restart www

command_restart() {
    local chosen instance
    [[ ${1:-} != -* ]] || usage_error "unknown option $1; see dotcloud restart --help"
    (($# <= 1)) || usage_error "restart wants one service or instance; see dotcloud restart --help"
    need_everything
    use_app
    need_account
    lock_app
    choose_instances "${1:-}"
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        restart_programs "$instance"
    done
}
