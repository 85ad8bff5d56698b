# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud list [--json]
# Summary: the applications and how they are
#
# Example:
#   dotcloud list

command_list() {
    local json=0 current="" file state app
    if [[ ${1:-} == --json ]]; then
        json=1
        shift
    fi
    (($# == 0)) || usage_error "unknown argument $1; see dotcloud list --help"
    need jq
    need_account
    find_app && current=$app
    for file in "$DOTCLOUD_HOME"/apps/*/app.json; do
        [[ -r $file ]] || continue
        app_directory=${file%/*}
        app=${app_directory##*/}
        state=$(app_state)
        query '. as $app | {name, release, created_at, state: $state, current: (.name == $current),
            services: (.services | with_entries(.key as $s | .value = ($app | numbers($s) | length)))}' \
            --arg state "$state" --arg current "$current"
    done | if ((json)); then
        jq -s .
    else
        jq -r 'if .current then "*" else " " end + " \(.name)\t\(.state)\trelease \(.release)\t" + (.services | to_entries | map("\(.key)=\(.value)") | join(" "))' |
            awk -F '\t' '{ printf "%-20s %-9s %-12s %s\n", $1, $2, $3, $4 }' | sed 's/ *$//'
    fi
}

# All of its instances alike, or degraded
app_state() {
    local instance states
    states=$(while read -r instance; do instance_state "$instance"; done < <(instances) | sort -u)
    case $states in
        "") echo empty ;;
        *$'\n'*) echo degraded ;;
        *) echo "$states" ;;
    esac
}
