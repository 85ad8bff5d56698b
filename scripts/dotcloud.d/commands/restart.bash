# shellcheck shell=bash disable=SC2034,SC2016,SC2154
# Usage: dotcloud restart [SERVICE[.N]...]
# Summary: restart the processes of instances
#
# An instance that is down is started. The instances of a service are restarted
# one after the other, the services side by side.
#
# Examples:
#   dotcloud restart www
#   dotcloud restart www worker

command_restart() {
    local argument chosen
    for argument; do
        [[ $argument != -* ]] || usage_error "unknown option $argument; see dotcloud restart --help"
    done
    need_everything
    use_app
    need_account
    lock_app
    choose_instances "$@"
    side_by_side restart_programs
}
