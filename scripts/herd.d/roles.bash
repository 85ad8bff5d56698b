# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Changes of roles, as pg:promote, pg:switchover and the attachments of addons:add share them.

# attach COLOUR [first]: its URL on stdin; with "first" the app's first database becomes DATABASE_URL, but not when a
# migration attaches its target (HERD_ATTACH_ONLY), which is empty. Sets $release.
attach() {
    became=""
    [[ -z ${2:-} || -n ${HERD_ATTACH_ONLY:-} || -n $(about '.config.DATABASE_URL // ""') ]] || became=DATABASE_URL
    release=$(jq -cRs --arg v "HEROKU_POSTGRESQL_$1_URL" --arg b "$became" \
        'rtrimstr("\n") as $url | {($v): $url} + (if $b == "" then {} else {($b): $url} end)' | config_set "Attach HEROKU_POSTGRESQL_$1")
}

# Who waited for a DATABASE_URL gets it
restart_if_new() {
    [[ -z $became ]] || restart_app || true
}

# The processes of the app; a failure is said, and is for the caller to count
restart_app() {
    (json="" platform restart >/dev/null 2>"$work/restart") && return
    warn "the processes of $app were not restarted: $(sed 's/^ !    //' "$work/restart" | head -n 1)"
    return 1
}

# set_database_url INSTANCE REASON [NAME]: prints the release. NAME is what the operator called it.
set_database_url() {
    local url was
    url=$(attached_url "$1" "${3:-}") || return
    was=$(database_in "$(about '.config.DATABASE_URL // ""')")
    [[ -z $was || $was == "$(database_in "$url")" ]] ||
        warn "DATABASE_URL was of the database $was there, and is of $(database_in "$url") now"
    printf %s "$url" | jq -cRs '{DATABASE_URL: rtrimstr("\n")}' | config_set "$2"
}

# The standbys that follow the address, into $followers; and what an earlier run that was interrupted has left: those
# whose primary was the target's too, and is not there any more. Those of anybody else are not ours, though he does not
# answer now: a fork has the same system identifier, and its timeline may have the same number.
find_followers() {
    local address=$1 target=$2
    mapfile -t followers < <(with_info | jq -r --arg a "$address" --arg t "$target" '
        ([.databases[] | select(.name == $t)][0]) as $new
        | [.databases[] | select(.info.role | IN("primary", "standby", "unknown")) | .address] as $alive
        | ([$new.info.followed // empty, (.databases[] | select(.info.system_id == $new.info.system_id
                and (.info.problem // "" | startswith("fenced: \($new.info.instance) was promoted"))) | .address)]
            - $alive) as $left
        | .databases[]
        | select(.name != $t and .info.role == "standby" and .info.system_id == $new.info.system_id)
        | .info.following.primary as $p
        | select($p == $a or ($left | index($p)))
        | .name')
}

# Those that may be followers, but do not say so now, would go on following the old primary when they are back
warn_of_the_silent() {
    local name
    for name in $(with_info | jq -r --arg t "$1" --arg o "$2" '
        [.databases[] | select(.name == $t) | .info.system_id][0] as $id
        | .databases[] | select(.name != $t and .name != $o)
        | select(.info.error or ((.info.role | IN("stopped", "unknown")) and .info.system_id == $id
            and (.info.problem // "" | startswith("fenced: ") | not))) | .name'); do
        warn "$(label "$name") does not say whom it follows: $(info "$name" '.error.message // .problem // "its server does not run"')"
        warn "if it followed what $1 followed: herd pg:follow $name --of $1, when it is back"
    done
}

# Points $followers to the new primary and restarts the processes of the app, all at the same time, as every second
# is one without writes. Says what came of each; fails when something did.
hand_over() {
    local target=$1 restart name failed=0
    restart_app &
    restart=$!
    : >"$work/followers"
    if ((${#followers[@]})); then
        blurb_of "$target" >"$work/blurb"
        in_parallel point_follower "${followers[@]}" || failed=1
    fi
    wait "$restart" || failed=1
    for name in ${followers[@]+"${followers[@]}"}; do
        if [[ $(<"$work/status.$name") == 0 ]]; then
            say "$(label "$name") follows $(label "$target") now ($(followed_text <"$work/out.$name"))"
            jq -c --arg n "$name" '{instance: $n, report: .}' "$work/out.$name" >>"$work/followers"
        else
            warn "$(label "$name") does not follow: $(jq -r .message "$work/error.$name")"
            warn "$(jq -r '.hint // "mend that" | if . == "" then "mend that" else . end' "$work/error.$name"); then herd pg:follow $name --of $target"
            jq -c --arg n "$name" '{instance: $n, error: .}' "$work/error.$name" >>"$work/followers"
        fi
    done
    return "$failed"
}

point_follower() {
    agent "$longest" "$1" enslave <"$work/blurb" 2> >(steps_of "$1")
}
