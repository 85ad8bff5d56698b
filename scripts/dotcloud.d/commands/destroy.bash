# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud destroy [SERVICE[.N]] [--yes]
# Summary: end an application, a service or an instance, with all data
#
# The other instances of a service keep their numbers.
#
# Examples:
#   dotcloud destroy db.1 --yes
#   dotcloud -A shop destroy --yes

command_destroy() {
    local yes=0 argument target="" service number instance chosen
    for argument; do
        case $argument in
            -y | --yes | -f | --force) yes=1 ;;
            -*) usage_error "unknown option $argument; see dotcloud destroy --help" ;;
            *)
                [[ -z $target ]] || usage_error "destroy wants one service or instance; see dotcloud destroy --help"
                target=$argument
                ;;
        esac
    done
    need jq flock
    use_app
    need_account
    lock_app
    choose_instances "$target"
    if [[ -z $target ]]; then
        confirm "This destroys the application $app with all data." "$yes"
    else
        parse_instance "$target"
        confirm "This destroys $target of $app with all data." "$yes"
    fi
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        say "destroying $instance"
        remove_instance "$instance"
    done
    if [[ -z $target ]]; then
        rm -rf -- "${app_directory:?}"
        rmdir "$DOTCLOUD_HOME/apps" 2>/dev/null || true
        forget_app
    elif [[ -z $number ]]; then
        update 'del(.services[$s])' --arg s "$service"
        rm -rf -- "${app_directory:?}/build/$service"
        write_all_environments
    else
        write_all_environments
    fi
}

forget_app() {
    local directory=$PWD
    while [[ -n $directory && ! -f $directory/.dotcloud/config ]]; do directory=${directory%/*}; done
    [[ -n $directory && $(jq -r .application "$directory/.dotcloud/config") == "$app" ]] || return 0
    rm -f -- "$directory/.dotcloud/config" "$directory/.dotcloud/.gitignore" 2>/dev/null || true
    rmdir -- "$directory/.dotcloud" 2>/dev/null || true
}
