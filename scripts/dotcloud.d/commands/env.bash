# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud env list [--json]
#        dotcloud env set [OPTION...] NAME=VALUE...
#        dotcloud env unset [OPTION...] NAME...
# Summary: the application's own variables
#
# A change is a new release: environment.json is written anew in every instance
# and the processes are restarted.
#
# Options:
#   --stdin         set: read the entries NAME=VALUE from standard input, each
#                   ended by NUL; arguments are seen by everybody on this machine
#   --no-restart    restart nothing: processes see the change when they start
#   --reason TEXT   what `dotcloud releases` says about it
#
# Examples:
#   dotcloud env set GREETING='good morning' LEVEL=3
#   printf 'TOKEN=%s\0' "$token" | dotcloud env set --stdin --no-restart
#   dotcloud env list

command_env() {
    local action=${1:-list} argument json=0 stdin=0 restart=1 reason="" entries=()
    shift || true
    if [[ $action == set || $action == unset ]]; then
        while [[ ${1:-} == -* ]]; do
            case $1 in
                --stdin) stdin=1 ;;
                --no-restart) restart=0 ;;
                --reason)
                    (($# > 1)) || usage_error "--reason wants a text"
                    reason=$2
                    shift
                    ;;
                *) usage_error "unknown option $1; see dotcloud env --help" ;;
            esac
            shift
        done
    fi
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
            if ((stdin)); then
                (($# == 0)) || usage_error "env set --stdin takes no entries as arguments; see dotcloud env --help"
                [[ ! -t 0 ]] || usage_error "env set --stdin reads no terminal; see dotcloud env --help"
                while IFS= read -r -d '' argument; do entries+=("$argument"); done
                [[ -z $argument ]] || usage_error "the input ends within '${argument%%=*}': each entry is ended by NUL"
                set -- ${entries[@]+"${entries[@]}"}
            fi
            (($#)) || usage_error "env set wants NAME=VALUE; see dotcloud env --help"
            for argument; do
                [[ $argument =~ ^([A-Za-z_][A-Za-z0-9_]*)= ]] || usage_error "'${argument%%=*}' is not NAME=VALUE; see dotcloud env --help"
                check_variable "${BASH_REMATCH[1]}"
                iconv -f UTF-8 -t UTF-8 <<<"$argument" >/dev/null 2>&1 || usage_error "the value of ${argument%%=*} is not UTF-8"
            done
            # Values are read from a pipe, so that no other process sees them
            change_env Set '.env += ([$change | splits("\u0000") | select(. != "") | index("=") as $at | {key: .[:$at], value: .[$at + 1:]}] | from_entries)' "$@"
            ;;
        unset)
            ((stdin == 0)) || usage_error "env unset takes names as arguments; see dotcloud env --help"
            (($#)) || usage_error "env unset wants NAME; see dotcloud env --help"
            for argument; do
                [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || usage_error "'$argument' is not a name; see dotcloud env --help"
            done
            change_env Unset '.env |= delpaths([$change | splits("\u0000") | select(. != "") | [.]])' "$@"
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

# change_env VERB FILTER ENTRY...
change_env() {
    local verb=$1 filter=$2 chosen=() instance names
    shift 2
    names=$(printf ', %s' "${@%%=*}")
    use_app
    need_account
    lock_app
    # bash has no NUL in a variable, so the file is what carries them
    update "$filter | new_release(\$what)" --rawfile change <(printf '%s\0' "$@") --arg what "${reason:-$verb ${names:2}}"
    write_all_environments
    ((restart == 0)) || choose_instances
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        # One that is down gets it when it comes up
        [[ $(instance_state "$instance") == stopped ]] || restart_programs "$instance"
    done
    say "$app: release $release"
}
