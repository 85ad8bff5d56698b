# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd ps:scale NAME=COUNT... [--json]
# Summary: change how many processes of a type there are
#
# Databases are added by addons:add and removed by addons:remove. In maintenance
# none is started; they start when it is turned off.
#
# Examples:
#   herd ps:scale www=3
#   herd ps:scale worker=0

command_ps_scale() {
    local argument
    (($#)) || usage_error "which processes? for example www=3"
    for argument; do
        [[ $argument =~ ^[A-Za-z0-9][A-Za-z0-9._-]*=[0-9]{1,4}$ ]] || usage_error "'$argument' is not NAME=COUNT"
    done
    use_platform
    platform processes >"$work/processes"
    for argument; do
        cut -f 1 "$work/processes" | grep -qxF -- "${argument%%=*}" ||
            die 2 "$app has no processes named ${argument%%=*}" "it has: $(cut -f 1 "$work/processes" | paste -sd ' ' | grep . || echo none)"
    done
    doing "Scaling ${*//=*/} processes"
    platform scale "$@" >/dev/null
    done_with "now running ${*#*=}"
    [[ -n $json || $(platform maintenance 2>/dev/null || true) != on ]] || say "$app is in maintenance: what is new starts when it is turned off"
    [[ -z $json ]] || jq -cn --arg app "$app" --args '{app: $app, scaled: ($ARGS.positional | map(split("=") | {(.[0]): (.[1] | tonumber)}) | add)}' "$@"
}
