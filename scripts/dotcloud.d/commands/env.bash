# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud env list [--json]
#        dotcloud env set NAME=VALUE...
#        dotcloud env unset NAME...
# Summary: the application's own variables
#
# A change is a new release: environment.json is written anew in every instance
# and the processes are restarted.
#
# Examples:
#   dotcloud env set GREETING='good morning' LEVEL=3
#   dotcloud env list

command_env() {
    local action=${1:-list} argument json=0
    shift || true
    need_everything
    case $action in
        list)
            for argument; do
                [[ $argument == --json ]] || usage_error "unknown argument $argument; see dotcloud env --help"
                json=1
            done
            use_app
            if ((json)); then
                query '{application: .name, release, env}'
            else
                query '"# \(.name), release \(.release)", (.env | to_entries[] | "\(.key)=\(.value)")'
            fi
            ;;
        set)
            (($#)) || usage_error "env set wants NAME=VALUE; see dotcloud env --help"
            for argument; do
                [[ $argument =~ ^([A-Za-z_][A-Za-z0-9_]*)= ]] || usage_error "'${argument%%=*}' is not NAME=VALUE; see dotcloud env --help"
                check_variable "${BASH_REMATCH[1]}"
                iconv -f UTF-8 -t UTF-8 <<<"$argument" >/dev/null 2>&1 || usage_error "the value of ${argument%%=*} is not UTF-8"
            done
            # Values are read from a pipe, so that no other process sees them
            change_env '.env += ([$change | splits("\u0000") | select(. != "") | index("=") as $at | {key: .[:$at], value: .[$at + 1:]}] | from_entries)' "$@"
            ;;
        unset)
            (($#)) || usage_error "env unset wants NAME; see dotcloud env --help"
            for argument; do
                [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || usage_error "'$argument' is not a name; see dotcloud env --help"
            done
            change_env '.env |= delpaths([$change | splits("\u0000") | select(. != "") | [.]])' "$@"
            ;;
        *) usage_error "unknown action '$action': it is list, set or unset" ;;
    esac
}

check_variable() {
    case $1 in
        HOME | PATH | USER | LOGNAME | SHELL | PORT_* | SERVICE_* | DOTCLOUD_*)
            usage_error "$1 is the platform's own variable; choose another name"
            ;;
    esac
}

change_env() {
    local filter=$1 chosen instance
    shift
    use_app
    need_account
    lock_app
    # bash has no NUL in a variable, so the file is what carries them
    update "$filter | .release += 1" --rawfile change <(printf '%s\0' "$@")
    write_all_environments
    choose_instances
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        # One that is down gets it when it comes up
        [[ $(instance_state "$instance") == stopped ]] || restart_programs "$instance"
    done
    say "$app: release $(query .release)"
}
