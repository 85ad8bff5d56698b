# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:credentials:rotate [DB] [--json]
# Summary: a new password, everywhere it is used
#
# The primary gets it, the followers take it over without ceasing to stream, the
# config variables that hold the old one are changed, and the app's processes are
# restarted. A follower names its primary. When a follower cannot be reached, it is
# said so, and running the command again brings all to one password.
#
# Example:
#   herd pg:credentials:rotate

command_pg_credentials_rotate() {
    local wanted=${1:-} primary role encoded release others name followers=() failed=0 taken=() addresses silent=()
    (($# <= 1)) && [[ $wanted != -* ]] || usage_error "it wants one database"
    use_platform
    load_databases
    resolve "$wanted" primary
    mapfile -t others < <(about '.databases[].name')
    ask_all "${others[@]}"
    must_answer "$primary"
    if [[ $(info "$primary" .role) == standby ]]; then
        name=$(by_address "$(info "$primary" '.following.primary // ""')")
        [[ -n $name ]] || die 1 "the primary of $(label "$primary") at $(info "$primary" .following.primary) is no instance of the platform"
        primary=$name
        must_answer "$primary"
    fi
    [[ $(info "$primary" .role) == primary ]] || die 1 "$(label "$primary") cannot change a password: $(info "$primary" '.problem // "it is \(.role)"')"
    # All that have its roles: its followers, and theirs
    mapfile -t followers < <(with_info | jq -r --arg p "$primary" '
        .databases as $all
        | def behind($a): $all[] | select(.info.role == "standby" and .info.following.primary == $a) | .name, behind(.address);
          ($all[] | select(.name == $p) | .address) as $a | behind($a)')
    mapfile -t silent < <(with_info | jq -r '.databases[] | select(.info.error) | .name')
    encoded=$(attached_url "$primary" "$wanted" | jq -rRs 'capture("^[a-z]+://(?<u>[^:@/]*)[:@]").u')
    role=$(decoded "$encoded")

    doing "Rotating the password of $role on $(label "$primary")"
    agent "$longest" "$primary" credentials --rotate --role "$role" </dev/null 2>/dev/null >"$work/rotated" || {
        not_done
        die_of "$primary"
    }
    unfinished="$(label "$primary") has a new password of $role, but not all know it: run herd pg:credentials:rotate again"
    jq -r .password "$work/rotated" >"$work/password"
    if ((${#followers[@]})); then
        in_parallel adopt_password "${followers[@]}" || failed=1
    fi
    # As it is now: somebody may have promoted or added one meanwhile
    load_databases
    addresses=$(about '[.databases[] | select([.name] | inside($n)) | .address | ascii_downcase] | tojson' --argjson n "$(printf '%s\n' "$primary" ${followers[@]+"${followers[@]}"} | jq -R . | jq -cs .)")
    release=$(jq -n --slurpfile d <(printf %s "$databases") --slurpfile r "$work/rotated" --argjson at "$addresses" --arg role "$encoded" -L "$library" 'include "herd";
        $d[0].config | with_entries(select((.key | colour or . == "DATABASE_URL") and ([.value | address] | inside($at))
            and ([.value | capture("^[a-z]+://(?<u>[^:@/]*)[:@]").u] == [$role]))
            | .value |= sub("^(?<s>[a-z]+)://[^@/]*@"; "\(.s)://\($role):\($r[0].password | @uri)@"))' | config_set "Rotate the password of $role") || {
        not_done
        exit 1
    }
    unfinished=""
    done_with "v$release"
    for name in ${followers[@]+"${followers[@]}"}; do
        if [[ $(<"$work/status.$name") == 0 ]]; then
            taken+=("$name")
        else
            warn "$(label "$name") did not take it over: $(jq -r .message "$work/error.$name")"
        fi
    done
    for name in ${silent[@]+"${silent[@]}"}; do
        warn "$(label "$name") does not answer, and may be a follower: $(info "$name" .error.message)"
        failed=1
    done
    ((failed == 0)) || warn "mend that, then run herd pg:credentials:rotate again; until then it streams on, but cannot connect anew"
    platform restart || failed=1
    [[ -z $json ]] || jq -cn --arg p "$primary" --arg role "$role" --argjson r "$release" --args '{primary: $p, role: $role, release: $r, followers: $ARGS.positional}' ${taken[@]+"${taken[@]}"}
    return "$failed"
}

adopt_password() {
    agent "$platform_timeout" "$1" credentials --adopt --role "$role" <"$work/password" 2>/dev/null
}
