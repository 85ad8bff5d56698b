# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud logs [SERVICE[.N]] [-n LINES] [--tail | -f]
# Summary: what the processes wrote
#
# Shows the last 20 lines of each log; --tail (or -f) goes on with what comes.
#
# Examples:
#   dotcloud logs db.0 -n 100
#   dotcloud logs www --tail

command_logs() {
    local lines=20 follow="" target="" chosen instance files=()
    while (($#)); do
        case $1 in
            -n)
                [[ ${2:-} =~ ^[0-9]{1,9}$ ]] || usage_error "-n wants a number of lines"
                lines=$2
                shift
                ;;
            -f | --tail | --follow) follow=-F ;;
            -*) usage_error "unknown option $1; see dotcloud logs --help" ;;
            *) target=$1 ;;
        esac
        shift
    done
    need jq
    use_app
    need_account
    choose_instances "$target"
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        while IFS= read -r; do files+=("$REPLY"); done < <(
            as_account "$app_directory" find "$instance/home/logs" -name '*.log' ! -name supervisord.log 2>/dev/null | sort
        )
    done
    ((${#files[@]})) || die "there are no logs yet; see dotcloud ps"
    as_account "$app_directory" tail -v -n "$lines" ${follow:+"$follow"} -- "${files[@]}"
}
