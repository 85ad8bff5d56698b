# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:switchover DB [--timeout SECONDS] [--dry-run] [--confirm APP] [--json]
# Summary: exchange the roles of the primary and a follower, losing no commit
#
# For planned work. The primary is stopped cleanly, the follower replays all that
# it wrote and becomes the primary, DATABASE_URL and the other followers point to
# it, and the old primary comes back as its follower; normally nothing is copied.
# If a step fails before the follower is writable, the old primary is started
# again and everything is as it was. Interrupted later, it is completed by running
# the same command again.
#
# A follower that is more than 64 MB behind is refused, as the app would have to
# wait for it.
#
# Options:
#   --timeout SECONDS   that the follower may take to receive and replay the last
#                       of the WAL; then the old primary is started again (60)
#   -n, --dry-run       check all, say what would be done, and do nothing
#
# Example:
#   herd pg:switchover GOLD

command_pg_switchover() {
    local target="" address="" old="" release="" before followers=() others failed=0 behind begin limit=60 dry_run="" in_use wanted
    while (($#)); do
        case $1 in
            --timeout)
                [[ ${2:-} =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "--timeout wants a number of seconds"
                limit=$2
                shift
                ;;
            -n | --dry-run) dry_run=yes ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $target ]] || usage_error "switchover wants one database"
                target=$1
                ;;
        esac
        shift
    done
    [[ -n $target ]] || usage_error "which follower becomes the primary?"
    use_platform
    load_databases
    wanted=$target
    resolve "$wanted" target
    mapfile -t others < <(about '.databases[].name')
    ask_all "${others[@]}"
    must_answer "$target"
    case $(info "$target" .role) in
        standby) check_pair ;;
        primary)
            # What an earlier run has not come to: the old primary is down, and says for whom
            old=$(with_info | jq -r --arg id "$(info "$target" .system_id)" --arg t "$(info "$target" .instance)" \
                '[.databases[] | select(.info.system_id == $id and (.info.problem // "" | startswith("fenced: \($t) was promoted"))) | .name][0] // empty')
            [[ -n $old ]] || die 1 "$(label "$target") is a primary already, and no old primary waits to follow it" "herd pg:info shows all roles"
            ;;
        *) die 1 "$(label "$target") cannot become the primary: $(info "$target" '.problem // "it is \(.role)"')" "herd pg:info tells more" ;;
    esac

    find_followers "$address" "$target"
    [[ " ${followers[*]-} " == *" $old "* ]] || followers+=("$old")
    # A DATABASE_URL that points elsewhere stays there
    in_use=$(about '[.databases[] | select(.current) | .name] | first // ""')
    before=$(about '.config.DATABASE_URL // ""')
    if [[ -n $dry_run ]]; then
        what_would_be
        return
    fi

    # The variable first, and no process restarted yet: of all steps this is the one that can fail for reasons of its own
    begin=$SECONDS
    if [[ -z $before || $in_use == "$old" ]]; then
        release=$(set_database_url "$target" "Switch over to $(label "$target")" "$wanted")
    elif [[ $in_use != "$target" ]]; then
        say "DATABASE_URL points to ${in_use:-no database of $app}, and stays so"
    fi
    if [[ $(info "$target" .role) == standby ]]; then
        say "Switching over from $(label "$old") to $(label "$target")..."
        exchange
    fi
    say "$(label "$target") is the primary${release:+, v$release}"

    hand_over "$target" || failed=1
    warn_of_the_silent "$target" "$old"
    if [[ -n $json ]]; then
        jq -cs --arg t "$target" --arg old "$old" --arg r "$release" --argjson s $((SECONDS - begin)) \
            '{primary: $t, old_primary: $old, release: (if $r == "" then null else $r | tonumber end), seconds: $s, followers: .}' "$work/followers"
    fi
    return "$failed"
}

what_would_be() {
    local url=no names
    [[ -n $before && $in_use != "$old" ]] || url=yes
    if [[ -n $json ]]; then
        jq -cn --arg t "$target" --arg old "$old" --arg u "$url" --args '{dry_run: true, primary: $t, old_primary: $old, sets_database_url: ($u == "yes"), followers: $ARGS.positional}' "${followers[@]}"
        return
    fi
    if [[ $(info "$target" .role) == standby ]]; then
        say "$(label "$old") would be stopped cleanly, and $(label "$target") promoted when it has all that it wrote ($(bytes_text "$(info "$target" '.following.lag.bytes // 0')") behind now)"
    fi
    [[ $url == no ]] || say "DATABASE_URL would be $(label "$target"), and the processes of $app restarted"
    mapfile -t names < <(for name in "${followers[@]}"; do label "$name"; done)
    say "These would follow it: ${names[*]}"
}

# DATABASE_URL as it was, into $release_back
set_back() {
    local why now
    why="Undo the switchover to $(label "$target")"
    if [[ -z $release ]]; then
        return
    elif now=$(platform config-get DATABASE_URL 2>/dev/null) && [[ $now != "$(attached_url "$target" "$wanted")" ]]; then
        warn "somebody else has changed DATABASE_URL meanwhile; it is left as it is"
    elif [[ -z $before ]]; then
        release_back=$(config_unset "$why" DATABASE_URL)
    else
        release_back=$(printf %s "$before" | jq -cRs '{DATABASE_URL: .}' | config_set "$why")
    fi
}

check_pair() {
    address=$(info "$target" '.following.primary // ""')
    old=$(by_address "$address")
    [[ -n $old ]] || die 1 "$(label "$target") follows $address, which is no instance of the platform $platform_name" "herd pg:promote is for that"
    must_answer "$old"
    [[ $(info "$old" .role) == primary ]] ||
        die 1 "$(label "$old"), which $(label "$target") follows, is not a running primary ($(info "$old" '.problem // .role'))" "after a failure: herd pg:promote $target"
    [[ $(info "$target" .following.streaming) == true ]] ||
        die 1 "$(label "$target") does not stream from $(label "$old")" "herd pg:info and its log tell why; then herd pg:follow $target --of $old"
    behind=$(info "$target" '.following.lag.bytes // 0')
    if ((behind > 64000000)); then
        [[ $confirmed == "$app" ]] || die 3 "$(label "$target") is $(bytes_text "$behind") behind, and the app would have to wait for it" \
            "herd pg:wait $target first, or --confirm $app"
    fi
}

# Not to be interrupted by Ctrl-C: it takes about a second, and comes to one end or the other
exchange() {
    local release_back=""
    trap '' INT TERM HUP
    uninterruptible=yes
    if ! blurb_of "$old" | agent "$((limit + 1200))" "$target" promote --fence --timeout "$limit" 2> >(steps_of "$target") >/dev/null; then
        not_exchanged
        die_of "$target"
    fi
    uninterruptible=""
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# Says how it is now: the promotion may have come to its end all the same, or somebody else's has
not_exchanged() {
    local is
    cp "$work/error.$target" "$work/why"
    ask_all "$target"
    mv "$work/why" "$work/error.$target"
    if [[ $(info "$target" .role) == primary ]]; then
        warn "$(label "$target") is the primary all the same; herd pg:switchover $target completes it"
        return
    fi
    set_back || warn "DATABASE_URL could not be set back; do it: herd pg:promote $old"
    if is=$(agent "$answer_timeout" "$old" wait --timeout "$answer_timeout" </dev/null 2>/dev/null) && [[ $(jq -r .role <<<"$is") == primary ]]; then
        warn "$(label "$old") is the primary as before${release_back:+, v$release_back}"
    else
        warn "$(label "$old") is no primary now${is:+, but a $(jq -r .role <<<"$is")}; see herd pg:info, and herd pg:promote the one that is"
    fi
}
