# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons:remove DB [--confirm APP] [--json]
# Summary: destroy a database with all its data
#
# The app's name has to be typed, or given with --confirm. The database in use
# (DATABASE_URL) cannot be destroyed, nor one that others follow: promote another
# one first, or remove the followers first.
#
# Example:
#   herd addons:remove SILVER

command_addons_remove() {
    local instance release="" failed=0 variables others name source address followers
    (($# == 1)) && [[ $1 != -* ]] || usage_error "which database?"
    use_platform
    load_databases
    resolve "$1"
    must_not_be_current "$instance"
    mapfile -t others < <(about '.databases[].name')
    ask_all "${others[@]}"
    address=$(about '.databases[] | select(.name == $n) | .address' --arg n "$instance")
    followers=$(with_info | jq -r --arg a "$address" '[.databases[] | select(.info.role == "standby" and .info.following.primary == $a) | .name] | join(" ")')
    [[ -z $followers ]] || die 1 "$(label "$instance") is followed by $followers" "remove them first, or point them elsewhere: herd pg:follow"
    confirm_app "$(label "$instance") would be destroyed with all its data" \
        "WARNING: Destructive Action" \
        "$(label "$instance") ($instance$(size_text)) will be destroyed with all its data. This cannot be undone."
    mapfile -t variables < <(about '.databases[] | select(.name == $n) | .attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"' --arg n "$instance")
    name=$(info "$instance" '.instance // ""')
    source=$(by_address "$(info "$instance" '.following.primary // ""')")

    doing "Removing $(label "$instance") from $app"
    platform destroy "$instance" >/dev/null || exit
    ((${#variables[@]} == 0)) || release=$(config_unset "Remove ${variables[0]%_URL}" "${variables[@]}") || failed=1
    if ((failed)); then
        not_done
        warn "$instance is destroyed, but ${variables[*]} is still set: herd config:unset ${variables[*]}"
    else
        done_with "${release:+v$release}"
    fi
    # Its slot would keep WAL on the primary for ever
    if [[ -n $source && -n $name ]] && ! ask "$source" forget "$name" >/dev/null; then
        warn "the slot of $instance may still be on $(label "$source"): $(jq -r .message "$work/error.$source")"
        warn "when that one answers: herd pg:info $source shows it, and pgmahout forget $name there drops it"
    fi
    ((failed == 0)) || return 1
    [[ -z $json ]] || jq -cn --arg i "$instance" --arg r "$release" '{destroyed: $i, release: (if $r == "" then null else $r | tonumber end)}'
}

size_text() {
    info "$instance" '.size_bytes // empty' | while read -r bytes; do printf ', %s' "$(bytes_text "$bytes")"; done
}
