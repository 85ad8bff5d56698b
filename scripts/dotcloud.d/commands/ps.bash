# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud ps [SERVICE[.N]] [--one-off] [--json]
# Summary: the processes of instances and how they are
#
# Options:
#   --one-off   instead: what was started by hand (dotcloud run) and still runs,
#               also what such a command has left in the background
#
# Examples:
#   dotcloud ps db
#   dotcloud ps --one-off

command_ps() {
    local argument target="" json=0 one_off=0 chosen instance service
    for argument; do
        case $argument in
            --json) json=1 ;;
            --one-off) one_off=1 ;;
            -*) usage_error "unknown option $argument; see dotcloud ps --help" ;;
            *) target=$argument ;;
        esac
    done
    need_everything
    use_app
    need_account
    choose_instances "$target"
    if ((one_off)); then
        show_one_offs
        return
    fi
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        daemon_pid "$instance" sshd >/dev/null &&
            printf '%s\tsshd\tRUNNING\tpid %s\n' "$instance" "$(daemon_pid "$instance" sshd)" ||
            printf '%s\tsshd\tSTOPPED\t\n' "$instance"
        if daemon_pid "$instance" supervisord >/dev/null; then
            # Its status is not 0 as long as one program does not run
            { supervisorctl_of "$instance" status || true; } |
                awk -v i="$instance" '{ name = $1; state = $2; $1 = $2 = ""; sub(/^ +/, ""); printf "%s\t%s\t%s\t%s\n", i, name, state, $0 }'
        else
            query '.services[$s] | programs($s) | keys_unsorted[] | "\($i)\t\(.)\tSTOPPED\t"' --arg i "$instance" --arg s "${instance%.*}"
        fi
    done | {
        cat
        # A service without instances is there all the same
        if [[ $target != *.* ]]; then
            for service in ${target:-"${service_names[@]}"}; do
                [[ -n $(instances "$service") ]] || printf '%s\t-\tSTOPPED\tit has no instances\n' "$service"
            done
        fi
    } | if ((json)); then
        jq -R -s '[split("\n")[] | select(. != "") | split("\t") | {instance: .[0], process: .[1], state: .[2], detail: .[3]}]'
    else
        awk -F '\t' '{ printf "%-12s %-16s %-9s %s\n", $1, $2, $3, $4 }' | sed 's/ *$//'
    fi
}

show_one_offs() {
    for instance in ${chosen[@]+"${chosen[@]}"}; do
        one_offs "$instance" | sed "s/^/$instance\t/"
    done | if ((json)); then
        jq -R -s '[split("\n")[] | select(. != "") | split("\t") | {instance: .[0], pid: (.[1] | tonumber), since: .[2], command: (.[3:] | join(" "))}]'
    else
        awk -F '\t' '{ printf "%-12s %-9s %-21s %s\n", $1, $2, $3, $4 }'
    fi
}
