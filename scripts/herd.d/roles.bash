# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Changes of roles, as pg:promote, pg:switchover and the attachments of addons:add share them.

# attach COLOUR [first]: its URL on stdin; with "first" the app's first database becomes DATABASE_URL. Sets $release.
attach() {
    became=""
    [[ -z ${2:-} || -n $(about '.config.DATABASE_URL // ""') ]] || became=DATABASE_URL
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

# set_database_url INSTANCE REASON: prints the release
set_database_url() {
    attached_url "$1" | jq -cRs '{DATABASE_URL: rtrimstr("\n")}' | config_set "$2"
}

# The standbys that follow the address, or whose primary is not there any more, into $followers: what an earlier run
# that was interrupted has left is found again. Those that follow a living primary or standby are somebody else's.
find_followers() {
    local address=$1 target=$2 system_id
    system_id=$(info "$target" '.system_id // ""')
    mapfile -t followers < <(with_info | jq -r --arg a "$address" --arg t "$target" --arg id "$system_id" '
        [.databases[] | select(.info.role == "primary" or .info.role == "standby") | .address] as $alive
        | ([.databases[] | select(.name == $t) | .address][0]) as $new
        | .databases[]
        | select(.name != $t and .info.role == "standby" and .info.system_id == $id and .info.following.primary != $new)
        | .info.following.primary as $p
        | select($p == $a or ($alive | index($p) | not))
        | .name')
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
