# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud run SERVICE[.N] [--] [COMMAND...]
# Summary: run a command on an instance, or a shell
#
# Input, output, errors and the exit code pass through. The words are joined by
# spaces and expanded on the instance by `bash -lc`; quote what is to be expanded
# there. A bare SERVICE means its first instance. The exit code is 255 when the
# instance does not run or cannot be reached.
#
# Examples:
#   dotcloud run db.1 'ls ~/logs'
#   dotcloud run db psql postgres
#   dotcloud info db.0 | dotcloud run db.1 pgmahout enslave

command_run() {
    local target=${1:-} chosen terminal=-T ssh_command
    [[ -n $target ]] || usage_error "run wants a service or an instance; for example: dotcloud run db.0 ls"
    [[ $target != -* ]] || usage_error "unknown option $target; see dotcloud run --help"
    shift
    [[ ${1:-} != -- ]] || shift
    need jq ssh
    use_app
    need_account
    need_facts "$target"
    choose_instances "$target"
    ((${#chosen[@]})) || die "$target has no instance; see dotcloud scale --help"
    target=${chosen[0]}
    daemon_pid "$target" sshd >/dev/null || die "$target does not run; start it with dotcloud up" 255
    ssh_to "$target"
    [[ ! -t 0 || ! -t 1 ]] || terminal=-t
    exec "${ssh_command[@]:0:1}" "$terminal" "${ssh_command[@]:1}" ${1+"$*"}
}
