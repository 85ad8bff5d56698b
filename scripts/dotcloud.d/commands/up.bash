# shellcheck shell=bash disable=SC2034,SC2016,SC2154
# Usage: dotcloud up [SERVICE[.N]... | --all]
# Summary: start what does not run, for example after a reboot
#
# The instances of a service are started one after the other, the services side by
# side.
#
# Only the named services and instances, or all of the application. Without a
# chosen application (-A, or .dotcloud/config here), or with --all, it does so
# for all applications.
#
# Examples:
#   dotcloud up --all
#   dotcloud up www

command_up() {
    need_everything
    need_account
    for_each_app up_app "$@"
}

up_app() {
    local chosen
    choose_instances "$@"
    side_by_side bring_up each
}

bring_up() {
    if [[ $(instance_state "$1") == running ]]; then
        say "$app: $1 runs"
    else
        say "$app: starting $1"
    fi
    start_instance "$1"
}

# for_each_app FUNCTION [SERVICE[.N]... | --all]: in a subshell each, so that an
# application that cannot be started does not keep the others down
for_each_app() {
    local function=$1 argument file failed=0 apps=()
    shift
    if [[ $* == --all ]]; then
        shift
    elif (($#)); then
        for argument; do
            [[ $argument != -* ]] || usage_error "unknown option $argument; see dotcloud ${function%_app} --help"
        done
        use_app
        apps=("$app")
    elif find_app; then
        apps=("$app")
    fi
    if ((${#apps[@]} == 0)); then
        for file in "$DOTCLOUD_HOME"/apps/*/app.json; do
            [[ ! -f $file ]] || {
                file=${file%/*}
                apps+=("${file##*/}")
            }
        done
    fi
    for app in ${apps[@]+"${apps[@]}"}; do
        (
            open_app
            lock_app
            "$function" "$@"
        ) || failed=1
    done
    return "$failed"
}
