# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud up [--all]
# Summary: start what does not run, for example after a reboot
#
# Without a chosen application (-A, or .dotcloud/config here), or with --all, it
# does so for all applications.
#
# Example:
#   dotcloud up --all

command_up() {
    need_everything
    need_account
    for_each_app up_app "$@"
}

up_app() {
    local instance
    while read -r instance <&3; do
        if [[ $(instance_state "$instance") == running ]]; then
            say "$app: $instance runs"
        else
            say "$app: starting $instance"
        fi
        start_instance "$instance"
    done 3< <(instances)
}

# for_each_app FUNCTION [--all]: in a subshell each, so that an application that
# cannot be started does not keep the others down
for_each_app() {
    local function=$1 file failed=0 apps=()
    shift
    [[ $# == 0 || $* == --all ]] || usage_error "unknown argument $1; see --help"
    if [[ $# == 0 ]] && find_app; then
        apps=("$app")
    else
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
            "$function"
        ) || failed=1
    done
    return "$failed"
}
