# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd config:set NAME=VALUE... | NAME [--no-restart] [--json]
# Summary: set variables, and restart the app's processes
#
# A NAME alone takes its value from stdin, so that a secret is in no process list
# and no shell history.
#
# Examples:
#   herd config:set GREETING='good morning' LEVEL=3
#   herd config:set API_KEY < key.txt

command_config_set() {
    local argument release restart=yes names=() from_stdin=""
    : >"$work/config"
    for argument; do
        case $argument in
            --no-restart) restart="" ;;
            -*) usage_error "unknown option $argument" ;;
            *)
                [[ $argument =~ ^([A-Za-z_][A-Za-z0-9_]*)(=(.*))?$ || $argument == *$'\n'* ]] || usage_error "'${argument%%=*}' is not NAME=VALUE"
                [[ ${argument%%=*} =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || usage_error "'${argument%%=*}' is not a variable's name"
                names+=("${argument%%=*}")
                if [[ $argument == *=* ]]; then
                    printf %s "${argument#*=}" | jq -Rs --arg n "${argument%%=*}" '{($n): .}' >>"$work/config"
                else
                    [[ -z $from_stdin ]] || usage_error "only one variable can have its value from stdin"
                    from_stdin=$argument
                    [[ ! -t 0 ]] || printf 'value of %s: ' "$argument" >&2
                    timeout --foreground 3600 cat | jq -Rs --arg n "$argument" '{($n): rtrimstr("\n")}' >>"$work/config"
                fi
                ;;
        esac
    done
    ((${#names[@]})) || usage_error "which variables?"
    use_platform
    doing "Setting config vars${restart:+ and restarting $app}"
    release=$(jq -cs add "$work/config" | config_set "Set ${names[*]}")
    done_with "v$release"
    [[ -z $restart ]] || platform restart
    if [[ -n $json ]]; then jq -cn --argjson r "$release" '{release: $r}'; else jq -rs --arg secret "$from_stdin" 'add | to_entries[] | "\(.key): \(if .key == $secret then "(as read)" else .value end)"' "$work/config"; fi
}
