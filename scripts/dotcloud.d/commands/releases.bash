# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud releases [--json]
# Summary: the last 100 releases: when, and what changed
#
# The newest comes first. A push and a change of `dotcloud env` make a release.
#
# Example:
#   dotcloud releases

command_releases() {
    local filter='.[] | [.release, .at, .what] | join("  ")'
    if [[ ${1:-} == --json ]]; then
        filter=.
        shift
    fi
    (($# == 0)) || usage_error "unknown argument $1; see dotcloud releases --help"
    need jq
    use_app
    query ".releases // [] | reverse | $filter"
}
