# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd maintenance:off [--json]
# Summary: start the app's processes again
#
# Example:
#   herd maintenance:off

# shellcheck source=scripts/herd.d/commands/maintenance.bash
source "$library/commands/maintenance.bash"

command_maintenance_off() {
    no_arguments "$@"
    maintenance_is off
}
