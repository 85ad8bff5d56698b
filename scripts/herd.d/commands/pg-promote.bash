# shellcheck shell=bash disable=SC2015,SC2016,SC2030,SC2031,SC2034,SC2154
# Usage: herd pg:promote DB [--no-fence] [--dry-run] [--confirm APP] [--json]
# Summary: make a database the app's DATABASE_URL, after a failure or for good
#
# A follower ends following first and is waited for until it is writable; then
# DATABASE_URL is set, the app's processes are restarted, and the other followers
# are pointed to it, normally without copying anything. The old primary, if it can
# still be reached, is stopped first so that no commit is lost and there are never
# two; where only its machine answers, it is kept from starting again.
#
# Options:
#   --no-fence      leave the old primary running, on its own; wants --confirm
#   -n, --dry-run   say what would be done, and do nothing
#   --confirm APP   although the old primary goes on, or commits may be lost
#
# For a planned change with the old primary becoming a follower: pg:switchover.
#
# Example:
#   herd pg:promote GOLD

command_pg_promote() {
    local target="" argument fence=yes address="" old="" fate="" release others followers=() name asking="" failed=0 dry_run="" wanted
    for argument; do
        case $argument in
            --no-fence) fence="" ;;
            -n | --dry-run) dry_run=yes ;;
            -*) usage_error "unknown option $argument" ;;
            *)
                [[ -z $target ]] || usage_error "promote wants one database"
                target=$argument
                ;;
        esac
    done
    [[ -n $target ]] || usage_error "which database is to be promoted?"
    use_platform
    load_databases
    wanted=$target
    resolve "$wanted" target

    # Everybody is asked at once, but only the target's answer is waited for
    mapfile -t others < <(about '.databases[].name | select(. != $t)' --arg t "$target")
    if ((${#others[@]})); then
        (answer_timeout=$((answer_timeout < 10 ? answer_timeout : 10)) && ask_all "${others[@]}") &
        asking=$!
    fi
    ask_all "$target"
    must_answer "$target"
    case $(info "$target" .role) in
        primary) old=$(about '[.databases[] | select(.current) | .name] | first // empty') ;;
        standby)
            address=$(info "$target" '.following.primary // ""')
            old=$(by_address "$address")
            ;;
        *) die 1 "$(label "$target") cannot be promoted: $(info "$target" '.problem // "it is \(.role)"')" "herd pg:info tells more" ;;
    esac
    [[ $(info "$target" '.job.state // ""') != running ]] ||
        die 1 "$(label "$target") is still being made: $(info "$target" .job.doing)" "herd pg:wait $target tells when it is done"
    [[ $old != "$target" ]] || old=""
    if [[ -n $dry_run ]]; then
        [[ -z $asking ]] || wait "$asking" || true
        what_would_be
        return
    fi

    if [[ $(info "$target" .role) == standby ]]; then
        check_jump
        say "Ending following on $(label "$target")..."
        end_following
    fi
    if [[ $(info "$target" .role) == primary && $(about '.config.DATABASE_URL // ""') == "$(attached_url "$target" "$wanted")" ]]; then
        complete_promotion
        return
    fi
    doing "Promoting $(label "$target") to DATABASE_URL"
    release=$(set_database_url "$target" "Promote $(label "$target")" "$wanted") || {
        not_done
        die 1 "$(label "$target") is writable, but DATABASE_URL is as it was" "mend that and run the same command again"
    }
    done_with "v$release"

    [[ -z $asking ]] || wait "$asking" || true
    find_followers "$address" "$target"
    hand_over "$target" || failed=1
    warn_of_the_silent "$target" "$old"
    old_primary_text
    if [[ -n $json ]]; then
        jq -cs --arg t "$target" --argjson r "$release" --arg old "$old" --arg fate "$fate" \
            '{promoted: $t, release: $r, old_primary: (if $old == "" then null else {instance: $old, state: $fate} end), followers: .}' "$work/followers"
    fi
    return "$failed"
}

# It has all that it can be given; perhaps an earlier run was interrupted before the others followed it
complete_promotion() {
    local failed=0
    [[ -z $asking ]] || wait "$asking" || true
    find_followers "" "$target"
    say "$(label "$target") is DATABASE_URL already"
    if ((${#followers[@]})); then
        hand_over "$target" || failed=1
    else
        : >"$work/followers"
    fi
    [[ -z $json ]] || jq -cs --arg t "$target" '{promoted: $t, already: true, followers: .}' "$work/followers"
    return "$failed"
}

what_would_be() {
    local how names ahead="" more
    find_followers "$address" "$target"
    mapfile -t names < <(for name in ${followers[@]+"${followers[@]}"}; do label "$name"; done)
    if [[ $(info "$target" .role) == primary ]]; then
        how="is writable already"
    elif [[ $(info "$target" .following.reachable) != true ]]; then
        find_ahead
        how="would be promoted at once, as its primary ${old:-$address} does not answer it"
        [[ -z $ahead ]] ||
            how="would first take the $more from $(label "$ahead") that only that one has received, and be promoted then, as its primary ${old:-$address} does not answer it"
    elif [[ -z $fence ]]; then
        how="would be promoted, and its primary ${old:-$address} goes on beside it"
    else
        how="would be promoted when its primary ${old:-$address} is stopped, with all that it wrote"
    fi
    if [[ -n $json ]]; then
        jq -cn --arg t "$target" --arg old "$old" --arg how "$how" --args '{dry_run: true, promoted: $t, how: $how, old_primary: (if $old == "" then null else $old end), followers: $ARGS.positional}' ${followers[@]+"${followers[@]}"}
        return
    fi
    say "$(label "$target") $how"
    say "DATABASE_URL would be $(label "$target"), and the processes of $app restarted"
    ((${#names[@]} == 0)) || say "These would follow it: ${names[*]}"
}

# DATABASE_URL is at a primary that the target does not follow: an earlier promotion that this follower has missed, or
# the target stands behind another follower, which is gone
check_jump() {
    local current
    current=$(about '[.databases[] | select(.current) | .name] | first // empty')
    [[ -n $current && $current != "$old" && $current != "$target" ]] || return 0
    [[ -z $asking ]] || wait "$asking" || true
    asking=""
    [[ $(info "$current" .role) == primary && $(info "$current" .system_id) == "$(info "$target" .system_id)" ]] || return 0
    confirm_app "$(label "$current") is the primary, and $(label "$target") does not follow it: there would be two primaries" \
        "DATABASE_URL is at $(label "$current"), a running primary that $(label "$target") does not follow:" \
        "there will be two primaries, and what only $(label "$current") has will be lost to $app."
}

# The target ends recovery; before that the old primary is stopped where that can be done. Sets $fate.
end_following() {
    local name system_id end=""
    name=$(info "$target" .instance)
    system_id=$(info "$target" .system_id)
    if [[ $(info "$target" .following.reachable) == true ]]; then
        if [[ -z $fence ]]; then
            confirm_app "there will be two primaries" "$(label "$target") will become writable while its primary at $address goes on:" \
                "there will be two primaries, and what is written to one is not in the other."
            fate=running
            agent "$longest" "$target" promote --confirm "$name" </dev/null 2> >(steps_of "$target") >/dev/null || die_of "$target"
            return
        fi
        [[ -n $old ]] || die 3 "the primary at $address is alive, and is no instance of $platform_name that could be stopped" \
            "stop it yourself, or herd pg:promote $target --no-fence --confirm $app"
        fate=fenced
        blurb_of "$old" | agent "$longest" "$target" promote --fence 2> >(steps_of "$target") >/dev/null || die_of "$target"
        return
    fi

    # The target does not reach it; perhaps we do
    fate=unreachable
    [[ -z $asking ]] || wait "$asking" || true
    asking=""
    # It sends: it lives, but may be slow
    [[ -z $old || $(info "$old" 'has("error")') == false || $(info "$target" .following.streaming) != true ]] || ask_all "$old"
    if [[ -n $old && $(info "$old" 'has("error")') == false ]]; then fence_unreached; fi
    catch_up
    [[ -z $end ]] || warn_of_unreceived
    agent "$longest" "$target" promote ${confirmed:+--confirm "$name"} </dev/null 2> >(steps_of "$target") >/dev/null || die_of "$target"
}

# The old primary, whose machine we reach and the target does not, is stopped, and kept from starting again
fence_unreached() {
    local runs="" limit=$answer_timeout
    # What the target would follow on the way to its primary is none itself
    [[ $(info "$old" .role) != standby ]] || return 0
    # It may run, and only not let us in
    [[ ! $(info "$old" .role) =~ ^(primary|unknown)$ ]] || runs=yes
    if [[ -z $fence ]]; then
        [[ -n $runs ]] || return 0
        confirm_app "there will be two primaries" "$(label "$target") will become writable while $(label "$old") goes on, which it cannot reach:" \
            "there will be two primaries, and what is written to one is not in the other."
        fate=running confirmed=$app
        return
    fi
    if [[ -n $runs ]]; then
        confirm_app "$(label "$target") cannot reach its primary $old, which runs: commits that it has not received would be lost" \
            "$(label "$target") cannot reach its primary $(label "$old"), but that one runs." \
            "It will be stopped; commits that $(label "$target") has not received will be lost."
        # Its fast shutdown may write for minutes
        limit=600
    fi
    if agent "$limit" "$old" fence --system-id "$system_id" --successor "$name" </dev/null >"$work/fenced" 2>/dev/null; then
        fate=fenced
        done_so_far="nothing was promoted, but $(label "$old") is stopped and kept from starting"
        end=$(jq -r '.end // ""' "$work/fenced")
    elif [[ -n $runs || $(jq .exit "$work/error.$old") == 3 ]]; then
        # Confirmed was that it is stopped, not that there are two; or it was stopped for somebody else
        warn "$(label "$target") was not promoted; to do that all the same: herd pg:promote $target --no-fence --confirm $app"
        die_of "$old"
    else
        warn "$(label "$old") could not be kept from starting again: $(jq -r .message "$work/error.$old")"
    fi
}

# Another follower may have received more, and with synchronous_commit somebody was told that it is there for good: the
# target takes it from that one first.
catch_up() {
    local ahead="" more why
    find_ahead
    [[ -n $ahead ]] || return 0
    say "$(label "$ahead") has received $more more than $(label "$target"), which takes that from it first..."
    if blurb_of "$ahead" | agent 120 "$target" enslave --cascade --plan repoint 2> >(steps_of "$target") >/dev/null &&
        agent 120 "$target" wait --timeout 100 </dev/null 2> >(steps_of "$target") >/dev/null; then
        ask_all "$target"
        return
    fi
    [[ $fate == fenced ]] || done_so_far="nothing was promoted"
    why=$(jq -r .message "$work/error.$target" 2>/dev/null || jq -r .message "$work/error.$ahead" 2>/dev/null) || why="it gives no blurb"
    confirm_app "$(label "$ahead") has received $more more than $(label "$target"), which could not take that from it; herd pg:promote $ahead promotes that one" \
        "$(label "$ahead") has received $more more than $(label "$target"), which could not take that from it:" \
        "$why. Commits in it will be lost to $app;" \
        "herd pg:promote $ahead promotes that one instead."
}

# Sets $ahead to the follower of the same primary that has received the most, if that is more than the target has, and
# $more to how much more
find_ahead() {
    local own most candidate lsn
    own=$(info "$target" '.received // .lsn // ""')
    [[ $own =~ ^[0-9A-F]+/[0-9A-F]+$ ]] || return 0
    own=$(lsn_number "$own")
    most=$own
    while read -r candidate lsn; do
        (($(lsn_number "$lsn") <= most)) || ahead=$candidate most=$(lsn_number "$lsn")
    done < <(with_info | jq -r --arg t "$target" --arg a "$address" '
        ([.databases[] | select(.name == $t)][0].info) as $new
        | .databases[] | select(.name != $t) | .name as $name | .info
        | select(.role == "standby" and .system_id == $new.system_id and .timeline == $new.timeline and .following.primary == $a)
        | .received // "" | select(test("^[0-9A-F]+/[0-9A-F]+$")) | "\($name) \(.)"')
    more=$(bytes_text $((most - own)))
}

# What the old primary had written last may never have come here: that is no reason to wait at three in the morning,
# but to be known
warn_of_unreceived() {
    local received
    received=$(info "$target" '.received // .lsn // ""')
    [[ $end =~ ^[0-9A-F]+/[0-9A-F]+$ && $received =~ ^[0-9A-F]+/[0-9A-F]+$ ]] || return 0
    (($(lsn_number "$end") > $(lsn_number "$received"))) || return 0
    warn "$(label "$old") had written $(bytes_text $(($(lsn_number "$end") - $(lsn_number "$received")))) that $(label "$target") has not received; commits in it are"
    warn "not lost yet: they are on $old, and herd pg:follow $old --of $target will ask before it gives them up"
}

# An LSN such as 0/3000060 as a number of bytes
lsn_number() {
    printf '%d' $((16#${1%/*} * 4294967296 + 16#${1#*/}))
}

old_primary_text() {
    local whom=${old:-$address}
    [[ -n $whom ]] || return 0
    [[ -z $old || $(info "$old" .role) != standby ]] || return 0
    [[ -z $old ]] || whom=$(label "$old")
    case $fate in
        fenced) say "The old primary $whom is stopped and stays down; herd pg:follow $old --of $target makes it a follower" ;;
        unreachable)
            warn "The old primary $whom could not be reached. See that it stays down: it would be a second primary."
            warn "When its machine is back: herd pg:follow ${old:-DB} --of $target"
            ;;
        *) say "The old primary $whom goes on, on its own" ;;
    esac
}
