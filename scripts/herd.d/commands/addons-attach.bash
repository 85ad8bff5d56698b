# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons:attach INSTANCE [--as COLOUR] [--json]
# Summary: attach an instance that is there already
#
# The first one becomes DATABASE_URL, and the app's processes are restarted.
#
# Example:
#   herd addons:attach db.0 --as amber

command_addons_attach() {
    local wanted="" colour="" instance url release
    while (($#)); do
        case $1 in
            --as)
                colour=$(option_value "$@")
                shift
                ;;
            --as=*) colour=${1#*=} ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $wanted ]] || usage_error "only one instance at a time"
                wanted=$1
                ;;
        esac
        shift
    done
    [[ -n $wanted ]] || usage_error "which instance?"
    use_platform
    load_databases
    resolve "$wanted"
    [[ $(about '.databases[] | select(.name == $n) | .attachments | length' --arg n "$instance") == 0 ]] ||
        die 1 "$instance is attached already, as $(label "$instance")"
    choose_colour "$colour"
    doing "Attaching $instance to $app"
    url=$(url_of "$instance")
    attach "$colour" first <<<"$url"
    done_with "v$release"
    say "Attached as HEROKU_POSTGRESQL_$colour"
    restart_if_new
    [[ -z $json ]] || jq -cn --arg i "$instance" --arg v "HEROKU_POSTGRESQL_${colour}_URL" --argjson r "$release" '{instance: $i, attachment: $v, release: $r}'
}
