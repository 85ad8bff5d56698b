# shellcheck shell=bash
# Usage: herd ps:restart [NAME...]
# Summary: restart the app's processes; never a database
#
# Example:
#   herd ps:restart www

command_ps_restart() {
    use_platform
    doing "Restarting ${*:-processes}"
    platform restart "$@" >/dev/null
    done_with
}
