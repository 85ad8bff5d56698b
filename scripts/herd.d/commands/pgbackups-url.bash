# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:url [ID] [--expires SECONDS] [--json]
# Summary: a link to a backup, for anyone who has it
#
# Without ID to the most recent of a database. The link is good for ten minutes, or as long as
# --expires says. What it gives is for pg_restore, or for pgbackups:restore of
# another app.
#
# Examples:
#   herd pgbackups:url b001
#   curl -o latest.dump "$(herd pgbackups:url)"

command_pgbackups_url() {
    local wanted="" expires=() id holder backup backups silent report url
    while (($#)); do
        case $1 in
            --expires)
                expires=(--expires "$(option_value "$@")")
                shift
                ;;
            --expires=*) expires=(--expires "${1#*=}") ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $wanted ]] || usage_error "only one backup at a time"
                wanted=$1
                ;;
        esac
        shift
    done
    [[ -z ${expires[1]:-} || ${expires[1]} =~ ^[1-9][0-9]{0,8}$ ]] || usage_error "--expires wants a number of seconds"
    use_platform
    load_databases
    find_backup "$wanted"
    warn_of_silence
    report=$(shape='type == "object" and (.url | type == "string" and test("^https?://[!-~]+$"))' \
        agent "$platform_timeout" "$holder" backup url "$id" ${expires[@]+"${expires[@]}"} </dev/null 2>/dev/null) || die_of "$holder"
    if [[ -n $json ]]; then
        printf '%s\n' "$report"
        return
    fi
    # Such as: it is encrypted
    warnings_of "$holder"
    url=$(jq -r .url <<<"$report")
    # As Heroku did: quoted for whoever copies it from a terminal
    if [[ -t 1 ]]; then printf '"%s"\n' "$url"; else printf '%s\n' "$url"; fi
}
