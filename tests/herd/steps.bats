# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd's commands when one of their steps fails: what was done before it, in which order, what is undone, what is said,
# and that the same command run again completes it. The platform is fixtures/broken.

load scene

# What an instance's pgmahout refuses
refusal='refuse 3 "it holds data that db.0 has not" "--confirm db.3"'

current() {
    jq -r '.config.DATABASE_URL | capture("@10.0.0.(?<n>[0-9]+)") | "db.\(.n)"' "$BROKEN/config.json"
}

# What was attached before is, and nothing else
config_is_as_it_was() {
    diff <(jq .config "$broken/model/config.json") <(jq .config "$BROKEN/config.json")
}

@test "addons:add: nothing that could fail before was tried after provision" {
    fault blurb 'echo "broken: no blurb today" >&2; exit 1'
    fails 1 "broken: no blurb today" addons:add heroku-postgresql --follow AMBER
    fault run.db.0.info 'exit 255'
    fails 4 "HEROKU_POSTGRESQL_AMBER_URL: db.0 could not be reached" addons:add heroku-postgresql --follow AMBER
    did
    fault provision 'echo "broken: no room" >&2; exit 1'
    herd addons:add heroku-postgresql
    [ "$status $err" = "1  !    broken: no room" ]
    did "provision none"
    config_is_as_it_was
}

@test "addons:add whose enslave is refused destroys its instance again" {
    fault run.db.3.enslave "$refusal"
    fails 3 "db.3: it holds data that db.0 has not" addons:add heroku-postgresql --follow AMBER
    did "provision none" "db.3 enslave --background" "destroy db.3"
    [ "$out" = "Adding heroku-postgresql on shop... failed" ]
    config_is_as_it_was
    [ ! -e "$BROKEN/instances/db.3" ]
    # And when that fails too, both are said
    fault destroy 'echo "broken: it does not go away" >&2; exit 1'
    herd addons:add heroku-postgresql --follow AMBER
    [ "$status" = 3 ]
    [ "$err" = " !    broken: it does not go away
 !    db.3: it holds data that db.0 has not
 !    --confirm db.3
 !    the new instance db.3 is there, attached to nothing: herd addons:attach db.3, or herd addons:remove db.3" ]
}

@test "addons:add that is given somebody's instance touches it not" {
    fault given 'becomes "$name" ".fresh = false"'
    fails 1 "the new instance db.3 is not empty (primary); nothing was changed" addons:add heroku-postgresql
    did "provision none"
    all_is_well
    fault given 'becomes "$name" ".role = \"standby\""'
    fails 1 "the new instance db.3 is not empty (standby); nothing was changed" addons:add heroku-postgresql --fork AMBER
    did "provision none"
    all_is_well
    fault given 'touch "$BROKEN/faults/given"; echo "exit 255" >"$BROKEN/faults/run.db.3"'
    fails 4 "the new instance db.3 does not answer: db.3 could not be reached" addons:add heroku-postgresql
    did "provision none"
    config_is_as_it_was
    for lie in db.1 db.9; do
        all_is_well
        fault provision "echo $lie; exit"
        herd addons:add heroku-postgresql
        [[ $status == 1 && $err == " !    $breaks: provision: it answered $lie, which is not listed or belongs to somebody already"* && $err != *"is there"* ]]
        did "provision none"
        config_is_as_it_was
    done
    for lie in '' '$(touch x)' 'db.3\ndb.4' '\e[31m'; do
        all_is_well
        fault provision "printf '$lie'; exit"
        fails 1 "$breaks: provision: it answered no name of an instance" addons:add heroku-postgresql
    done
    [ -z "$(find "$scene" -name x)" ]
}

@test "addons:add that cannot attach says what it has left" {
    fault_once config-set 'echo "broken: the disk is full" >&2; exit 1'
    herd addons:add heroku-postgresql --follow AMBER
    [ "$status" = 1 ]
    [ "$out" = "Adding heroku-postgresql on shop... failed" ]
    [ "$err" = " !    broken: the disk is full
 !    the new instance db.3 is there, attached to nothing: herd addons:attach db.3, or herd addons:remove db.3" ]
    did "provision none" "db.3 enslave --background"
    config_is_as_it_was
    herd addons:attach db.3
    [ "$status" = 0 ]
    [ "$(jq -r .config.HEROKU_POSTGRESQL_AQUA_URL "$BROKEN/config.json")" = postgres://shop:s3cret@10.0.0.3:5432/shop ]
}

@test "addons:add that is interrupted says what it has left" {
    fault run.db.3.enslave "touch '$scene/hangs'; sleep 20"
    runner=("$BATS_TEST_DIRNAME/fixtures/terminal" "$scene/hangs" $'\x03')
    herd addons:add heroku-postgresql --follow AMBER
    [[ $(tail -n 1 <<<"$out") == "130 "* && $out == *" !    the new instance db.3 is there, attached to nothing: herd addons:attach db.3, or herd addons:remove db.3"* ]]
    did "provision none" "db.3 enslave --background"
    config_is_as_it_was
}

@test "addons:remove: a failing step stops before what cannot be undone, or is said" {
    fault_once destroy 'echo "broken: it does not go away" >&2; exit 1'
    herd addons:remove SILVER --confirm shop
    [ "$status $err" = "1  !    broken: it does not go away" ]
    did "destroy db.2"
    config_is_as_it_was
    fault_once config-unset 'echo "broken: the disk is full" >&2; exit 1'
    herd addons:remove SILVER --confirm shop
    [ "$status" = 1 ]
    [ "$err" = " !    broken: the disk is full
 !    db.2 is destroyed, but HEROKU_POSTGRESQL_SILVER_URL is still set: herd config:unset HEROKU_POSTGRESQL_SILVER_URL" ]
    did "destroy db.2" "destroy db.2" "config-unset HEROKU_POSTGRESQL_SILVER_URL" "db.0 forget db.2"
}

@test "pg:switchover, and its order" {
    herd pg:switchover GOLD
    [ "$status" = 0 ] && [ -z "$err" ]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" + "db.0 enslave" "db.2 enslave" restart
}

@test "pg:switchover whose promotion fails sets DATABASE_URL back and waits for the old primary" {
    fault run.db.1.promote 'refuse 1 "db.1 has not received all" "try again"'
    herd pg:switchover GOLD
    [ "$status" = 1 ]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" "config-set DATABASE_URL=db.0" "db.0 wait --timeout 20"
    [ "$(grep -v "^  db.1: " "$scene/err")" = " !    HEROKU_POSTGRESQL_AMBER_URL is the primary as before, v5
 !    db.1: db.1 has not received all
 !    try again" ]
    config_is_as_it_was
    # DATABASE_URL cannot be set back
    all_is_well
    fault run.db.1.promote 'echo "echo broken: the disk is full >&2; exit 1" >"$BROKEN/faults/config-set"; refuse 1 "db.1 has not received all" "try again"'
    herd pg:switchover GOLD
    [ "$status" = 1 ]
    [[ $err == *" !    broken: the disk is full
 !    DATABASE_URL could not be set back; do it: herd pg:promote db.0
 !    HEROKU_POSTGRESQL_AMBER_URL is the primary as before
 !    db.1: db.1 has not received all"* ]]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" "db.0 wait --timeout 20"
    rm "$BROKEN/faults"/*
    herd pg:promote db.0
    [ "$status" = 0 ]
    config_is_as_it_was
    # It was not set before
    all_is_well
    fault run.db.1.promote 'refuse 1 "db.1 has not received all" "try again"'
    jq 'del(.config.DATABASE_URL)' "$broken/model/config.json" >"$BROKEN/config.json"
    herd pg:switchover GOLD
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" "config-unset DATABASE_URL" "db.0 wait --timeout 20"
    [ "$(jq '.config | has("DATABASE_URL")' "$BROKEN/config.json")" = false ]
}

@test "pg:switchover whose first step fails has changed nothing" {
    fault config-set 'cat >/dev/null; called config-set; echo "broken: the disk is full" >&2; exit 1'
    fails 1 "broken: the disk is full" pg:switchover GOLD
    did config-set
    rm "$BROKEN/faults/config-set"
    : >"$BROKEN/calls"
    set_info db.1 '.following.streaming = false'
    fails 1 "HEROKU_POSTGRESQL_GOLD_URL does not stream from HEROKU_POSTGRESQL_AMBER_URL" pg:switchover GOLD
    set_info db.1 '.following |= (.streaming = true | .lag.bytes = 65000000)'
    fails 3 "HEROKU_POSTGRESQL_GOLD_URL is 65.0 MB behind" pg:switchover GOLD
    did
}

@test "pg:switchover points the followers even when the restart fails, and completes when run again" {
    fault_once restart 'echo "broken: www does not stop" >&2; exit 1'
    fault_once run.db.0.enslave 'refuse 1 "its timeline has gone on" "copy it: --confirm db.0"'
    fault_once run.db.2.enslave 'exit 255'
    herd pg:switchover GOLD
    [ "$status" = 1 ]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" + "db.0 enslave" "db.2 enslave" restart
    [ "$(grep '^ !' "$scene/err" | sort)" = " !    HEROKU_POSTGRESQL_AMBER_URL does not follow: its timeline has gone on
 !    HEROKU_POSTGRESQL_SILVER_URL does not follow: db.2 could not be reached
 !    copy it: --confirm db.0; then herd pg:follow db.0 --of db.1
 !    is its machine up?; then herd pg:follow db.2 --of db.1
 !    the processes of shop were not restarted: broken: www does not stop" ]
    : >"$BROKEN/calls"
    herd pg:switchover GOLD
    [ "$status" = 0 ] && [ -z "$err" ]
    did + "db.0 enslave" "db.2 enslave" restart
    [ "$(jq -r .following.primary "$BROKEN/instances/db.0" "$BROKEN/instances/db.2" | sort -u)" = 10.0.0.1:5432 ]
}

@test "pg:promote, and its order; a refused promotion has changed nothing" {
    fault_once run.db.1.promote 'refuse 3 "db.0 does not stop" "stop it"'
    herd pg:promote GOLD
    [ "$status" = 3 ]
    [[ $err == *" !    db.1: db.0 does not stop"* ]]
    did "db.1 promote --fence"
    config_is_as_it_was
    : >"$BROKEN/calls"
    herd pg:promote GOLD
    [ "$status" = 0 ] && [ -z "$err" ]
    did "db.1 promote --fence" "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
    [[ $out == *"The old primary HEROKU_POSTGRESQL_AMBER_URL is stopped and stays down; herd pg:follow db.0 --of db.1 makes it a follower" ]]
}

@test "pg:promote whose config-set fails says so, and completes when run again" {
    fault_once config-set 'cat >/dev/null; echo "broken: the disk is full" >&2; exit 1'
    herd pg:promote GOLD
    [ "$status" = 1 ]
    [ "$err" = " !    broken: the disk is full
 !    HEROKU_POSTGRESQL_GOLD_URL is writable, but DATABASE_URL is as it was
 !    mend that and run the same command again" ]
    did "db.1 promote --fence"
    fault_once run.db.2.enslave 'exit 255'
    herd pg:promote GOLD
    [ "$status" = 1 ]
    [[ $err == *" !    HEROKU_POSTGRESQL_SILVER_URL does not follow: db.2 could not be reached"* ]]
    : >"$BROKEN/calls"
    herd pg:promote GOLD
    [ "$status" = 0 ]
    did + "db.2 enslave" restart
}

@test "pg:promote with an old primary that cannot be reached promotes, and warns" {
    fault run.db.0 'exit 255'
    set_info db.1 '.following |= (.reachable = false | .streaming = false)'
    herd pg:promote GOLD
    [ "$status" = 0 ]
    did "db.1 promote" "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
    [ "$err" = " !    The old primary HEROKU_POSTGRESQL_AMBER_URL could not be reached. See that it stays down: it would be a second primary.
 !    When its machine is back: herd pg:follow db.0 --of db.1" ]
}

@test "pg:promote with an old primary that only the target cannot reach wants --confirm" {
    set_info db.1 '.following |= (.reachable = false | .streaming = false)'
    herd pg:promote GOLD
    [ "$status" = 3 ]
    [ "$err" = " !    HEROKU_POSTGRESQL_GOLD_URL cannot reach its primary HEROKU_POSTGRESQL_AMBER_URL, but that one runs.
 !    It will be stopped; commits that HEROKU_POSTGRESQL_GOLD_URL has not received will be lost.
 !    nothing was done: HEROKU_POSTGRESQL_GOLD_URL cannot reach its primary db.0, which runs: commits that it has not received would be lost
 !    To proceed, re-run this command with --confirm shop" ]
    did
    herd pg:promote GOLD --confirm shop
    [ "$status" = 0 ]
    did "db.0 fence --system-id 7710687726964584108 --successor db.1" "db.1 promote --confirm db.1" "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
    # What it had written and the target has not is said
    [[ $err == *" !    HEROKU_POSTGRESQL_AMBER_URL had written 8.0 kB that HEROKU_POSTGRESQL_GOLD_URL has not received; commits in it are"* ]]
    # Confirmed was that it is stopped: when that fails, there would be two. The same for one that runs, but lets nobody in.
    for role in primary unknown; do
        all_is_well
        set_info db.1 '.following |= (.reachable = false | .streaming = false)'
        set_info db.0 ".role = \"$role\""
        fault run.db.0.fence 'exit 255'
        herd pg:promote GOLD
        [ "$status" = 3 ]
        did
        herd pg:promote GOLD --confirm shop
        [ "$status" = 4 ]
        did "db.0 fence --system-id 7710687726964584108 --successor db.1"
        [ "$err" = " !    HEROKU_POSTGRESQL_GOLD_URL was not promoted; to do that all the same: herd pg:promote db.1 --no-fence --confirm shop
 !    db.0: db.0 could not be reached
 !    is its machine up?" ]
        : >"$BROKEN/calls"
        herd pg:promote db.1 --no-fence --confirm shop
        [ "$status" = 0 ]
        did "db.1 promote --confirm db.1" "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
        [[ $out == *"The old primary HEROKU_POSTGRESQL_AMBER_URL goes on, on its own" ]]
    done
    # One that does not run, and cannot be kept down, is warned of
    all_is_well
    set_info db.1 '.following |= (.reachable = false | .streaming = false)'
    set_info db.0 '.role = "stopped"'
    fault run.db.0.fence 'exit 255'
    herd pg:promote GOLD
    [ "$status" = 0 ]
    [[ $err == *" !    HEROKU_POSTGRESQL_AMBER_URL could not be kept from starting again: db.0 could not be reached"* ]]
}

@test "pg:promote of a follower that cannot get what another has received wants --confirm, and says what was done" {
    set_info db.1 '.following |= (.reachable = false | .streaming = false)'
    set_info db.2 '.received = "0/4000800" | .following |= (.reachable = false | .streaming = false)'
    set_info db.0 '.role = "stopped"'
    herd pg:promote GOLD --dry-run
    [ "$status" = 0 ]
    [ "$(head -n 1 <<<"$out")" = "HEROKU_POSTGRESQL_GOLD_URL would first take the 2.0 kB from HEROKU_POSTGRESQL_SILVER_URL that only that one has received, and be promoted then, as its primary db.0 does not answer it" ]
    did
    fault run.db.1.enslave 'refuse 4 "db.2 does not answer" "is it up?"'
    herd pg:promote GOLD
    [ "$status" = 3 ]
    did "db.0 fence --system-id 7710687726964584108 --successor db.1" "db.1 enslave --cascade --plan repoint"
    [[ $err == *" !    nothing was promoted, but HEROKU_POSTGRESQL_AMBER_URL is stopped and kept from starting: HEROKU_POSTGRESQL_SILVER_URL has received 2.0 kB more than HEROKU_POSTGRESQL_GOLD_URL, which could not take that from it; herd pg:promote db.2 promotes that one"* ]]
    [[ $err == *" !    To proceed, re-run this command with --confirm shop" ]]
    herd pg:promote GOLD --confirm shop
    [ "$status" = 0 ]
    [[ $out == *"Promoting HEROKU_POSTGRESQL_GOLD_URL to DATABASE_URL... done"* ]]
}

@test "pg:promote of a follower that has missed an earlier promotion wants --confirm" {
    fault run.db.2 'exit 255'
    herd pg:promote GOLD
    [ "$status" = 0 ]
    [ "$err" = " !    HEROKU_POSTGRESQL_SILVER_URL does not say whom it follows: db.2 could not be reached
 !    if it followed what db.1 followed: herd pg:follow db.2 --of db.1, when it is back" ]
    rm "$BROKEN/faults/run.db.2"
    set_info db.2 '.following |= (.reachable = false | .streaming = false)'
    : >"$BROKEN/calls"
    herd pg:promote SILVER
    [ "$status" = 3 ]
    [[ $err == *" !    nothing was done: HEROKU_POSTGRESQL_GOLD_URL is the primary, and HEROKU_POSTGRESQL_SILVER_URL does not follow it: there would be two primaries"* ]]
    did
    # The old primary was stopped for GOLD, as another operator's herd has done just now
    jq -c '.config.DATABASE_URL = .config.HEROKU_POSTGRESQL_AMBER_URL' "$BROKEN/config.json" >"$scene/config"
    mv "$scene/config" "$BROKEN/config.json"
    fault run.db.0.fence 'refuse 3 "db.0 was stopped for db.1 already" "if db.1 is the primary, follow it"'
    herd pg:promote SILVER
    [ "$status" = 3 ]
    [[ $err == *" !    db.0: db.0 was stopped for db.1 already
 !    if db.1 is the primary, follow it" ]]
    did "db.0 fence --system-id 7710687726964584108 --successor db.2"
    # The same when run again on the one that was promoted: what it has missed follows
    : >"$BROKEN/calls"
    herd pg:promote GOLD
    [ "$status" = 0 ]
    did "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
}

@test "pg:promote leaves the followers of a fork alone, also when the fork does not answer" {
    cp "$BROKEN/instances/db.0" "$BROKEN/instances/db.3"
    cp "$BROKEN/instances/db.2" "$BROKEN/instances/db.4"
    set_info db.3 '.instance = "db.3"'
    for fault in 'exit 255' 'jq -c ".role = \"stopped\"" "$BROKEN/instances/db.3"; exit' 'jq -c ".role = \"unknown\"" "$BROKEN/instances/db.3"; exit'; do
        set_info db.4 '.instance = "db.4" | .following |= (.primary = "10.0.0.3:5432" | .streaming = false | .reachable = false)'
        fault run.db.3.info "$fault"
        cp "$BROKEN/instances/db.0" "$scene/primary"
        cp "$BROKEN/instances/db.1" "$scene/standby"
        herd pg:promote GOLD
        [ "$status" = 0 ]
        did "db.1 promote --fence" "config-set DATABASE_URL=db.1" + "db.2 enslave" restart
        # A primary that fell out of an earlier run: only those that followed what it did
        set_info db.1 '.followed = "10.0.0.0:5432"'
        : >"$BROKEN/calls"
        herd pg:promote GOLD
        [ "$status" = 0 ]
        [ ! -s "$BROKEN/calls" ]
        : >"$BROKEN/calls"
        mv "$scene/primary" "$BROKEN/instances/db.0"
        mv "$scene/standby" "$BROKEN/instances/db.1"
        sed 's/db\.1/db.2/' "$broken/model/standby.json" >"$BROKEN/instances/db.2"
    done
}

@test "pg:switchover that fails does not take back what somebody else has done" {
    # Another operator's promotion of the same follower was a moment earlier
    fault run.db.1.promote 'becomes db.1 ".role = \"primary\" | .following = null"; becomes db.0 ".role = \"stopped\" | .problem = \"fenced: db.1 was promoted in place of db.0 at\""
        refuse 1 "another pgmahout is at work" "wait for its end"'
    herd pg:switchover GOLD
    [ "$status" = 1 ]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60"
    [[ $err == *" !    HEROKU_POSTGRESQL_GOLD_URL is the primary all the same; herd pg:switchover db.1 completes it
 !    db.1: another pgmahout is at work
 !    wait for its end" ]]
    [ "$(current)" = db.1 ]
    herd pg:switchover db.1
    [ "$status" = 0 ]
    # Of another follower, and DATABASE_URL is theirs
    all_is_well
    fault run.db.1.promote 'becomes db.2 ".role = \"primary\" | .following = null"; becomes db.0 ".role = \"standby\""
        jq -c ".config.DATABASE_URL = .config.HEROKU_POSTGRESQL_SILVER_URL" "$BROKEN/config.json" >"$BROKEN/config.new"
        mv "$BROKEN/config.new" "$BROKEN/config.json"
        refuse 3 "db.0 was stopped for db.2 already" "follow it"'
    herd pg:switchover GOLD
    [ "$status" = 3 ]
    did "config-set DATABASE_URL=db.1" "db.1 promote --fence --timeout 60" "db.0 wait --timeout 20"
    [[ $err == *" !    somebody else has changed DATABASE_URL meanwhile; it is left as it is
 !    HEROKU_POSTGRESQL_AMBER_URL is no primary now, but a standby; see herd pg:info, and herd pg:promote the one that is
 !    db.1: db.0 was stopped for db.2 already"* ]]
    [ "$(current)" = db.2 ]
}

@test "DATABASE_URL keeps to its database where a server has several" {
    jq -c '.config = {HEROKU_POSTGRESQL_BLOG_URL: "postgres://shop:s3cret@10.0.0.1:5432/blog"} + .config' "$BROKEN/config.json" >"$scene/config"
    mv "$scene/config" "$BROKEN/config.json"
    herd pg:switchover db.1
    [ "$status $err $(jq -r .config.DATABASE_URL "$BROKEN/config.json")" = "0  postgres://shop:s3cret@10.0.0.1:5432/shop" ]
    herd pg:promote BLOG
    [ "$(jq -r .config.DATABASE_URL "$BROKEN/config.json")" = postgres://shop:s3cret@10.0.0.1:5432/blog ]
    [[ $err == *" !    DATABASE_URL was of the database shop there, and is of blog now"* ]]
}

@test "a name that two databases have is nobody's" {
    fault instances 'printf "db.0\trunning\t10.0.0.0:5432\ngold\trunning\t10.0.0.9:5432\ndb.1\trunning\t10.0.0.1:5432\n"; exit'
    fails 2 "gold of shop may be db.1 or gold" addons:remove gold --confirm shop
    did
}

@test "addons:remove looks again after the app's name was typed, and at who is connected" {
    runner=("$BATS_TEST_DIRNAME/fixtures/terminal" / $'shop\n')
    # While it was typed, somebody has promoted it
    fault_once run.db.2.info 'echo "jq -c \".config.DATABASE_URL = .config.HEROKU_POSTGRESQL_SILVER_URL\" \"\$BROKEN/config.json\" >\"\$BROKEN/new\"; mv \"\$BROKEN/new\" \"\$BROKEN/config.json\"" >"$BROKEN/faults/config-list"'
    herd addons:remove SILVER
    [[ $(tail -n 1 <<<"$out") == "1 "* && $out == *"HEROKU_POSTGRESQL_SILVER_URL is the DATABASE_URL of shop"* ]]
    did
    runner=()
    # By another name of its machine it is in use, and followed
    all_is_well
    jq -c '.config.DATABASE_URL = "postgres://shop:s3cret@db1.example.com:5432/shop"' "$BROKEN/config.json" >"$scene/config"
    mv "$scene/config" "$BROKEN/config.json"
    for name in db.1 db.2; do set_info "$name" '.following.primary = "db1.example.com:5432"'; done
    fails 1 "HEROKU_POSTGRESQL_AMBER_URL is followed by db.1 db.2" addons:remove AMBER --confirm shop
    set_info db.0 '.followers = [] | .connections.used = 3'
    fails 1 "HEROKU_POSTGRESQL_AMBER_URL has 3 sessions, and DATABASE_URL points to no instance" addons:remove AMBER --confirm shop
    did
}

@test "addons:remove of a dead follower drops its slot" {
    fault run.db.2 'exit 255'
    set_info db.0 '.slots[1].active = false'
    herd addons:remove SILVER --confirm shop
    [ "$status" = 0 ]
    did "destroy db.2" "config-unset HEROKU_POSTGRESQL_SILVER_URL" "db.0 forget db.2"
}

@test "what somebody else does to the config meanwhile stays" {
    change='jq -c ".config.$1 = .config.HEROKU_POSTGRESQL_GOLD_URL" "$BROKEN/config.json" >"$BROKEN/config.new"; mv "$BROKEN/config.new" "$BROKEN/config.json"'
    fault run.db.1.credentials "set -- DATABASE_URL; $change"
    herd pg:credentials:rotate
    [ "$status" = 0 ]
    [ "$(jq -r .config.DATABASE_URL "$BROKEN/config.json")" = postgres://shop:n3w@10.0.0.1:5432/shop ]
    all_is_well
    fault provision "set -- HEROKU_POSTGRESQL_AQUA_URL; $change"
    herd addons:add heroku-postgresql
    [ "$status" = 0 ]
    [[ $out == *"Attached as HEROKU_POSTGRESQL_BLACK"* ]]
    [ "$(jq -r .config.HEROKU_POSTGRESQL_AQUA_URL "$BROKEN/config.json")" = postgres://shop:s3cret@10.0.0.1:5432/shop ]
    herd addons:add heroku-postgresql --as teal
    [ "$status" = 0 ]
    fault provision "set -- HEROKU_POSTGRESQL_PINK_URL; $change"
    herd addons:add heroku-postgresql --as pink
    [ "$status" = 1 ]
    [[ $err == " !    HEROKU_POSTGRESQL_PINK is attached already"*"the new instance db.5 is there, attached to nothing"* ]]
}

@test "pg:credentials:rotate names who does not answer" {
    fault run.db.2 'exit 255'
    herd pg:credentials:rotate
    [ "$status" = 1 ]
    [ "$err" = " !    HEROKU_POSTGRESQL_SILVER_URL does not answer, and may be a follower: db.2 could not be reached
 !    mend that, then run herd pg:credentials:rotate again; until then it streams on, but cannot connect anew" ]
}

@test "pg:credentials is what libpq understands" {
    jq -c '.config.HEROKU_POSTGRESQL_AMBER_URL = "postgres://sh%6fp:p%40s%5Cs%27@10.0.0.0:5432/shop"' "$BROKEN/config.json" >"$scene/config"
    mv "$scene/config" "$BROKEN/config.json"
    herd pg:credentials AMBER
    [ "$(sed -n 2p "$scene/out")" = "   \"dbname=shop host=10.0.0.0 port=5432 user=shop password='p@s\\\\s\\''\"" ]
}

@test "a wrong answer to a question does nothing" {
    herd pg:unfollow GOLD --json
    [ "$status $(jq -r .error.message <<<"$out")" = "3 nothing was done: HEROKU_POSTGRESQL_GOLD_URL would become writable and no longer follow" ]
    fails 3 "--confirm blog does not match the app shop; nothing was done" pg:unfollow GOLD --confirm blog
    runner=("$BATS_TEST_DIRNAME/fixtures/terminal" /)
    for answer in blog '' SHOP '$(touch x)'; do
        runner[2]=$answer$'\n'
        herd pg:unfollow GOLD
        [[ $(tail -n 1 <<<"$out") == "3 "* && $out == *"Confirmation did not match shop. Aborted; nothing was done"* ]]
    done
    did
    runner[2]=$'shop\n'
    herd pg:unfollow GOLD
    [[ $(tail -n 1 <<<"$out") == "0 "* ]]
    did "db.1 promote --confirm db.1" "db.0 forget db.1"
}

@test "pg:unfollow says when the slot is left" {
    fault run.db.0.forget 'exit 255'
    herd pg:unfollow GOLD --confirm shop
    [ "$status" = 0 ]
    [ "$err" = " !    the slot of db.1 may still be on HEROKU_POSTGRESQL_AMBER_URL: db.0 could not be reached
 !    when that one answers: herd pg:info db.0 shows it, and pgmahout forget db.1 there drops it" ]
}

@test "pg:credentials:rotate with a follower that fails does the rest" {
    fault_once run.db.1.credentials 'refuse 1 "no room for ~/.pgpass" "free some"'
    herd pg:credentials:rotate
    [ "$status" = 1 ]
    did "db.0 credentials --rotate --role shop" + "db.1 credentials --adopt --role shop" "db.2 credentials --adopt --role shop" \
        "config-set DATABASE_URL=db.0 HEROKU_POSTGRESQL_AMBER_URL=db.0 HEROKU_POSTGRESQL_GOLD_URL=db.1 HEROKU_POSTGRESQL_SILVER_URL=db.2" restart
    [ "$(jq -r '.config[]' "$BROKEN/config.json" | grep -c shop:n3w@)" = 4 ]
    [ "$err" = " !    HEROKU_POSTGRESQL_GOLD_URL did not take it over: no room for ~/.pgpass
 !    mend that, then run herd pg:credentials:rotate again; until then it streams on, but cannot connect anew" ]
    [ "$(<"$BROKEN/password.db.2")" = n3w ]
    herd pg:credentials:rotate
    [ "$status $err" = "0 " ]
    [ "$(<"$BROKEN/password.db.1")" = n3w ]
    # The app still has the old one
    fault_once config-set 'cat >/dev/null; echo "broken: the disk is full" >&2; exit 1'
    herd pg:credentials:rotate
    [ "$status" = 1 ]
    [ "$err" = " !    broken: the disk is full
 !    HEROKU_POSTGRESQL_AMBER_URL has a new password of shop, but not all know it: run herd pg:credentials:rotate again" ]
    # The primary refuses: nothing else was done
    : >"$BROKEN/calls"
    fault run.db.0.credentials 'refuse 1 "there is no role shop" "see"'
    herd pg:credentials:rotate
    [ "$status" = 1 ]
    did "db.0 credentials --rotate --role shop"
}
