# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd maintenance:on [--json]
# Summary: stop the app's processes; databases go on
#
# Example:
#   herd maintenance:on

# shellcheck source=scripts/herd.d/commands/maintenance.bash
source "$library/commands/maintenance.bash"

command_maintenance_on() {
    no_arguments "$@"
    maintenance_is on
}
