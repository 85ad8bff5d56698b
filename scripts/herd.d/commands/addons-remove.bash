# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons:remove DB|pgbackups [--confirm APP] [--json]
# Summary: destroy a database with all its data, or end the nightly backups
#
# The app's name has to be typed, or given with --confirm. The database in use
# (DATABASE_URL) cannot be destroyed, nor one that others follow: promote another
# one first, or remove the followers first.
#
# pgbackups ends the nightly backups of DATABASE_URL; those that there are stay.
#
# Examples:
#   herd addons:remove SILVER
#   herd addons:remove pgbackups

command_addons_remove() {
    local instance release="" failed=0 variables others name source sources address followers
    (($# == 1)) && [[ $1 != -* ]] || usage_error "which database?"
    use_platform
    load_databases
    if [[ $1 =~ ^pgbackups(:[a-z-]+)?$ ]]; then
        end_schedule "${1#pgbackups}"
        return
    fi
    resolve "$1"
    must_be_removable
    confirm_app "$(label "$instance") would be destroyed with all its data" \
        "WARNING: Destructive Action" \
        "$(label "$instance") ($instance$(size_text)) will be destroyed with all its data. This cannot be undone."
    # Whoever typed it had time, in which it may have become the primary
    if [[ $confirmed != "$app" ]]; then
        load_databases
        must_be_removable
    fi
    mapfile -t variables < <(about '.databases[] | select(.name == $n) | .attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"' --arg n "$instance")
    name=$(info "$instance" ".instance // \"$instance\"")
    # One that does not answer has its slot at whoever has one that nobody uses
    mapfile -t sources < <(with_info | jq -r --arg n "$instance" '
        [.databases[] | select(.name == $n) | .info][0] as $i | .databases[] | select(.name != $n)
        | select(if $i.error then any(.info.slots[]?; .active | not) else .address == $i.following.primary end) | .name')

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
    for source in ${sources[@]+"${sources[@]}"}; do
        ask "$source" forget "$name" >/dev/null && continue
        warn "the slot of $instance may still be on $(label "$source"): $(jq -r .message "$work/error.$source")"
        warn "when that one answers: herd pg:info $source shows it, and pgmahout forget $name there drops it"
    done
    ((failed == 0)) || return 1
    [[ -z $json ]] || jq -cn --arg i "$instance" --arg r "$release" '{destroyed: $i, release: (if $r == "" then null else $r | tonumber end)}'
}

# Neither in use nor followed, as far as anybody can tell
must_be_removable() {
    must_not_be_current "$instance"
    mapfile -t others < <(about '.databases[].name')
    ask_all "${others[@]}"
    address=$(about '.databases[] | select(.name == $n) | .address' --arg n "$instance")
    followers=$(with_info | jq -r --arg a "$address" --arg n "$instance" '[(.databases[] | select(.info.role == "standby" and .info.following.primary == $a) | .name),
        (.databases[] | select(.name == $n) | .info.followers // [] | .[].name)] | unique | join(" ")')
    [[ -z $followers ]] || die 1 "$(label "$instance") is followed by $followers" "remove them first, or point them elsewhere: herd pg:follow"
    [[ $(about '.strays | index("DATABASE_URL") | tostring') == null || $(info "$instance" '.connections.used // 0') == 0 ]] ||
        die 1 "$(label "$instance") has $(info "$instance" .connections.used) sessions, and DATABASE_URL points to no instance that the platform knows: it may be this one" \
            "set it to an address as herd pg:info shows it, or end the sessions: herd pg:kill --all --force $instance"
}

size_text() {
    info "$instance" '.size_bytes // empty' | while read -r bytes; do printf ', %s' "$(bytes_text "$bytes")"; done
}

# end_schedule [:PLAN]: of whoever is DATABASE_URL
end_schedule() {
    local report plan
    resolve ""
    report=$(shape=$schedule_shape ask "$instance" backup schedule) || die_of "$instance"
    plan=$(jq -r '.plan // ""' <<<"$report")
    [[ -n $plan && (-z $1 || $1 == ":$plan") ]] || die 1 "$(label "$instance") has no nightly backups${1:+ of the plan ${1#:}}${plan:+, but those of $plan}" "herd addons shows what there is"
    confirm_app "$(label "$instance") would not be backed up any more" \
        "WARNING: $(label "$instance") will not be backed up every night any more." \
        "The backups that there are stay; herd pgbackups shows them."
    doing "Removing pgbackups:$plan from $app"
    report=$(shape=$schedule_shape agent "$platform_timeout" "$instance" backup schedule off </dev/null 2>/dev/null) || {
        not_done
        die_of "$instance"
    }
    done_with
    say "The backups that there are stay; \`herd pgbackups\` shows them"
    [[ -z $json ]] || jq -cn --arg a "pgbackups:$plan" --arg i "$instance" '{removed: $a, instance: $i}'
}
