# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2154
# herd's commands over the local platform, with the real agent and server. The tests build on each other: AMBER (db.0)
# is what the push made, GOLD (db.1) is added and becomes DATABASE_URL, WHITE (db.2) follows it, and AMBER gives way
# to COBALT, which takes its number.

load helper

setup_file() {
    set_herd_scene
    dotcloud create shop
    dotcloud push "$checkout" >&2
}

teardown_file() {
    strike_scene
}

@test "help: every command has its own, and the main one has every command" {
    main=$(herd --help)
    [[ $main == "Usage: herd "*"Exit codes: 0 done, 1 failed"*"Examples:"* ]]
    [[ $main != *"@COMMANDS@"* ]]
    for file in "$checkout"/scripts/herd.d/commands/*.bash; do
        name=$(basename "$file" .bash)
        name=${name//-/:}
        grep -qE "^  $name +[^ ]" <<<"$main"
        help=$(herd "$name" --help)
        [[ $help == "Usage: herd $name"*"Example"*"  herd $name"* || $name == config:get ]] || { echo "$name: $help" && false; }
        [[ $help == "$(herd --help "$name")" && $help != *Summary:* && $help != *shellcheck* ]]
    done
    [ "$(herd --version)" = "herd of pgmahout $(sed -n 's/^version = "\(.*\)"/\1/p' "$checkout/Cargo.toml" | head -n 1)" ]
}

@test "wrong usage is 2, and says the way" {
    refuses 2 "which command?"
    refuses 2 "herd --help shows them all" frob
    refuses 2 "'pg:frob' is not a herd command" pg:frob
    [[ $err == *"there is: "*pg:info* ]]
    refuses 2 "is not a herd command" ../commands/pg-info
    refuses 2 "--app wants a value" addons --app
    refuses 2 "there is no platform nosuch" addons --platform nosuch
    for command in addons config ps pg:promote pg:switchover config:unset addons:add addons:attach addons:detach \
        addons:remove pg:follow pg:fork pg:kill pg:unfollow pg:credentials config:set maintenance:on releases; do
        refuses 2 "" "$command" --nosuch
    done
    refuses 2 "--nosuch" pg:switchover --nosuch
    for command in addons:attach addons:detach addons:remove pg:promote pg:switchover pg:follow pg:unfollow pg:kill config:get config:set config:unset ps:scale completions; do
        refuses 2 "" "$command"
    done
    refuses 2 "'mysql:small' is not an add-on" addons:add mysql:small
    refuses 2 "plans: dev, basic, crane" addons:add heroku-postgresql:nosuch
    refuses 2 "only one of --follow, --track and --fork" addons:add heroku-postgresql --follow A --fork B
    refuses 2 "'www' is not NAME=COUNT" ps:scale www
    refuses 2 "'1A' is not NAME=VALUE" config:set 1A=b
    refuses 2 "--timeout wants a number of seconds" pg:wait --timeout soon
    refuses 2 "-n wants a number of lines" logs -n many
    refuses 2 "--slow wants a number of milliseconds" logs --slow long
    refuses 2 "only --ps postgres is here" logs --ps web
    HERD_PLATFORM_TIMEOUT=soon refuses 2 "HERD_PLATFORM_TIMEOUT=soon is not a number of seconds" addons
}

@test "without a database each command says so" {
    nothing_attached() {
        refuses 2 "shop has no DATABASE_URL" pg:psql -c 'select 1'
        refuses 2 "shop has no DATABASE_URL" pg:credentials
        refuses 1 "shop has no databases" pg:wait
        refuses 1 "shop has no databases" logs
        refuses 2 "it has: db.0" pg:promote AMBER
    }
    unchanged nothing_attached
    [ "$(herd pg:info)" = "shop has no databases; herd addons:add heroku-postgresql:ronin adds one" ]
    herd pg:info --json | jq -e '. == {app: "shop", databases: []}'
    herd addons --json | jq -e '.addons == [{addon: "heroku-postgresql", instance: "db.0", attachments: [], current: false, role: "primary", error: null}]'
    [[ $(herd addons) == "=== shop Addons"*"db.0"*"not attached" ]]
}

@test "addons:attach: the first one becomes DATABASE_URL" {
    refuses 2 "'9lives' cannot be a colour" addons:attach db.0 --as 9lives
    [ "$(herd addons:attach db.0 --as amber)" = "Attaching db.0 to shop... done, v2"$'\n'"Attached as HEROKU_POSTGRESQL_AMBER" ]
    password=$(dotcloud run db.0 cat password)
    at=127.0.0.1:$(port db.0 pgsql)
    herd config --json | jq -e --arg u "postgres://dotcloud:$password@$at/postgres" '. == {app: "shop", release: 2,
        config: {HEROKU_POSTGRESQL_AMBER_URL: $u, DATABASE_URL: $u}}'
    attached_twice() {
        refuses 1 "db.0 is attached already, as HEROKU_POSTGRESQL_AMBER_URL" addons:attach db.0
        refuses 1 "HEROKU_POSTGRESQL_AMBER is attached already" addons:add heroku-postgresql:dev --as Amber
        refuses 1 "AMBER_URL is the DATABASE_URL of shop" addons:detach amber
        refuses 1 "AMBER_URL is the DATABASE_URL of shop" addons:remove amber --confirm shop
    }
    unchanged attached_twice
}

@test "ps, ps:restart and ps:scale: the app's processes, never a database" {
    database=$(psql_on db.0 'select pg_postmaster_start_time()')
    [ "$(herd ps:restart www)" = "Restarting www... done" ]
    app_writes
    [ "$(herd ps | tr -s ' ')" = "=== shop Processes"$'\n'"www 1 running" ]
    [ "$(herd ps:scale www=2)" = "Scaling www processes... done, now running 2" ]
    herd ps --json | jq -e '. == {app: "shop", processes: [{name: "www", count: 2, state: "running"}]}'
    herd ps:scale www=1
    more_or_none() {
        refuses 2 "shop has no processes named db" ps:scale db=2
        refuses 2 "it has: www" ps:scale worker=1
        refuses 2 "nosuch" ps:restart nosuch
    }
    unchanged more_or_none
    [ "$(psql_on db.0 'select pg_postmaster_start_time()')" = "$database" ]
}

# The fixture has written within the last second, into the database that it has in DATABASE_URL
app_writes() {
    local before
    before=$(dotcloud run www.0 'tail -n 1 written 2>/dev/null' || true)
    more() { [[ $(dotcloud run www.0 'tail -n 1 written 2>/dev/null') != "$before" ]]; }
    eventually more
}

@test "config: what is set comes back, whatever is in it" {
    value=$'a "quoted" \'word\'\n$HOME `id` \\ %s é 漢字 😀'
    before=$(release)
    [ "$(herd config:set ODD="$value" EMPTY= SECOND='a=b' --no-restart)" = "Setting config vars... done, v$((before + 1))"$'\n'"ODD: $value"$'\n'"EMPTY: "$'\n'"SECOND: a=b" ]
    [ "$(herd config:get ODD)" = "$value" ]
    [ "$(herd config:get SECOND)" = a=b ]
    [ "$(herd config:get EMPTY)" = "" ]
    herd config:get ODD --json | jq -e --arg v "$value" '. == {name: "ODD", value: $v}'
    herd config --json | jq -e --arg v "$value" '.config | .ODD == $v and .EMPTY == "" and .SECOND == "a=b"'
    [ "$(bash -c "$(herd config --shell) ; printf %s \"\$ODD\"")" = "$value" ]
    [[ $(herd config) == "=== shop Config Vars"*"SECOND:                      a=b"* ]]
    printf '%s\n' "$value" | herd config:set FROM_STDIN --json --no-restart | jq -e --argjson r $((before + 2)) '. == {release: $r}'
    [ "$(herd config:get FROM_STDIN)" = "$value" ]
    secret=$(head -c 24 /dev/urandom | base64)
    watch_processes
    herd config:set SECRET --no-restart <<<"$secret" >/dev/null
    nobody_showed "$secret"
    [ "$(herd config:get SECRET)" = "$secret" ]
    herd config:unset SECRET --no-restart
    # Processes get it when they are restarted, and not before
    [ "$(of_process DATABASE_URL)" = "DATABASE_URL=$(herd config:get DATABASE_URL)" ]
    [ "$(of_process SECOND)" = none ]
    [[ $(herd config:unset EMPTY FROM_STDIN) == "Unsetting EMPTY FROM_STDIN and restarting shop... done, v$((before + 5))" ]]
    [ "$(of_process SECOND)" = SECOND=a=b ]
    not_set() {
        refuses 1 "shop has no variable EMPTY" config:get EMPTY
        refuses 2 "only one variable can have its value from stdin" config:set A B
    }
    unchanged not_set
    herd config:unset ODD SECOND --no-restart --json | jq -e --argjson r $((before + 6)) '. == {release: $r}'
}

# of_process NAME: the variable as the app's process has it
of_process() {
    dotcloud run www.0 "tr '\\0' '\\n' <\"/proc/\$(supervisorctl -c supervisord.conf pid www)/environ\" | grep '^$1=' || echo none"
}

@test "maintenance stops the app's processes and nothing else" {
    [ "$(herd maintenance)" = off ]
    [ "$(herd maintenance:on)" = "Enabling maintenance mode for shop... done" ]
    herd maintenance --json | jq -e '. == {app: "shop", maintenance: true}'
    herd ps --json | jq -e '.processes[0].state == "stopped"'
    [ "$(field db.0 .info.role)" = primary ]
    herd maintenance:off --json | jq -e '. == {app: "shop", maintenance: false}'
    app_writes
}

@test "addons:add makes a database with a plan, under a colour, and no process shows its password" {
    before=$(release)
    watch_processes
    said=$(herd addons:add heroku-postgresql:dev --as gold)
    nobody_showed "$(dotcloud run db.1 cat password)"
    [ "$said" = "Adding heroku-postgresql:dev on shop... done, v$((before + 1))"$'\n'"Attached as HEROKU_POSTGRESQL_GOLD"$'\n'"Database has been created and is available" ]
    [ "$(psql_on db.1 'show max_connections')" = 20 ]
    herd addons --json | jq -e '.addons[1] == {addon: "heroku-postgresql:dev", instance: "db.1", attachments: ["HEROKU_POSTGRESQL_GOLD_URL"], current: false, role: "primary", error: null}'
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_AMBER_URL)" ]
}

# Until nobody_showed: keeps all command lines that there are
watch_processes() {
    (
        while [[ ! -e $scene/enough ]]; do
            cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '
            echo
            sleep 0.02
        done >"$scene/shown"
    ) 3>&- &
    watch=$!
}

# nobody_showed SECRET...
nobody_showed() {
    local secret
    touch "$scene/enough"
    wait "$watch"
    grep -q "scripts/herd " "$scene/shown"
    grep -q "scripts/platforms/" "$scene/shown"
    for secret; do
        ((${#secret} > 20))
        ! grep -oaF -- "$secret" "$scene/shown" || return 1
    done
    rm "$scene/enough" "$scene/shown"
}

@test "every form of a name" {
    for name in db.1 DB.1 gold GOLD HEROKU_POSTGRESQL_GOLD heroku_postgresql_gold_url HEROKU_POSTGRESQL_GOLD_URL; do
        [ "$(herd pg:credentials "$name" --json | jq -r .instance)" = db.1 ]
    done
    for name in "" DATABASE_URL database_url; do
        [ "$(herd pg:credentials ${name:+"$name"} --json | jq -r .instance)" = db.0 ]
    done
    refuses 2 "shop has no database nosuch" pg:info nosuch
    refuses 2 "it has: HEROKU_POSTGRESQL_AMBER_URL, db.0, HEROKU_POSTGRESQL_GOLD_URL, db.1" pg:info gol
    herd config:set HEROKU_POSTGRESQL_LOST_URL=postgres://a:b@127.0.0.1:1/c --no-restart
    refuses 1 "HEROKU_POSTGRESQL_LOST_URL of shop points to no instance" pg:info lost
    herd config:unset HEROKU_POSTGRESQL_LOST_URL --no-restart
}

@test "from anywhere, through a link, for the app that is named" {
    ln -s "$checkout/scripts/herd" "$scene/here/a link"
    [ "$(cd "$scene/here" && "./a link" maintenance)" = off ]
    directory=/ refuses 1 "no application is chosen" addons
    [ "$(directory=/ herd -a shop maintenance)" = off ]
    [ "$(directory=/ herd maintenance --app=shop)" = off ]
    [ "$(directory=/ HERD_APP=shop herd maintenance)" = off ]
    [ "$(directory=/ HERD_APP=nosuch herd maintenance --app shop --platform dotcloud)" = off ]
    refuses 1 "no such application: nosuch" addons -a nosuch
    HERD_APP=nosuch refuses 1 "no such application: nosuch" addons
}

@test "pg:promote of a database that follows nobody only changes DATABASE_URL" {
    said=$(herd pg:promote gold)
    [[ $said == "Promoting HEROKU_POSTGRESQL_GOLD_URL to DATABASE_URL... done, v$(release)"$'\n'"The old primary HEROKU_POSTGRESQL_AMBER_URL goes on, on its own" ]]
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_GOLD_URL)" ]
    written() { [[ $(psql_on db.1 'select count(*) > 10 from journal' 2>/dev/null) == t ]]; }
    eventually written
    [[ $(herd releases -n 1) == "=== shop Releases"$'\n'"v$(release) "*" UTC   Promote HEROKU_POSTGRESQL_GOLD_URL" ]]
    herd releases --json -n 2 | jq -e --argjson r "$(release)" '.app == "shop" and [.releases[].release] == [$r, $r - 1]
        and .releases[0].what == "Promote HEROKU_POSTGRESQL_GOLD_URL" and (.releases[0].at | fromdate > now - 600)'
}

@test "a copy has its source's plan, and no other" {
    other_plans() {
        refuses 1 "HEROKU_POSTGRESQL_GOLD_URL has the plan dev, not ronin" addons:add heroku-postgresql:ronin --follow DATABASE_URL
        [[ $err == *"use heroku-postgresql:dev for it"* ]]
        refuses 1 "HEROKU_POSTGRESQL_AMBER_URL has the plan none, not dev" addons:add heroku-postgresql:dev --track amber
        refuses 1 "HEROKU_POSTGRESQL_AMBER_URL has the plan none, not dev" pg:follow gold --of amber
        refuses 1 "GOLD_URL cannot be made a copy of itself" pg:fork gold --of DATABASE_URL
        refuses 2 "shop has no database nosuch" addons:add heroku-postgresql:dev --follow nosuch
        refuses 2 "it wants DB --of DB" pg:follow gold
    }
    unchanged other_plans
}

@test "addons:add --follow, pg:wait and pg:info, as JSON" {
    herd addons:add heroku-postgresql:dev --follow DATABASE_URL --as white --json >"$BATS_TEST_TMPDIR/added"
    jq -se --argjson r "$(release)" '. == [{instance: "db.2", attachment: "HEROKU_POSTGRESQL_WHITE_URL", plan: "dev", release: $r, enslave: "db.1"}]' "$BATS_TEST_TMPDIR/added"
    herd pg:wait white gold --json | jq -e '.["db.2"].role == "standby" and .["db.1"].role == "primary"'
    herd pg:info --json >"$BATS_TEST_TMPDIR/info.json"
    at() { printf 127.0.0.1:%s "$(port "$1" pgsql)"; }
    jq -e --arg gold "$(at db.1)" --arg white "$(at db.2)" '.app == "shop" and ([.databases[].name] == ["db.0", "db.1", "db.2"])
        and (.databases[1] | .address == $gold and .current and .attachments == ["HEROKU_POSTGRESQL_GOLD_URL"] and .state == "running"
            and (.info | .role == "primary" and .plan == "dev" and (.version | startswith("15.")) and .connections.limit == 20
                and .size_bytes > 1e6 and [.followers[].name] == ["db.2"]))
        and (.databases[2] | .address == $white and (.current | not)
            and (.info | .role == "standby" and .plan == "dev" and .following.primary == $gold and .following.streaming))' "$BATS_TEST_TMPDIR/info.json"
    said=$(herd pg:info white | tr -s ' ')
    for line in "=== HEROKU_POSTGRESQL_WHITE_URL" "Plan: Dev" "Status: following" "Role: standby" \
        "Following: HEROKU_POSTGRESQL_GOLD_URL (DATABASE_URL)" "Instance: db.2 at $(at db.2)"; do
        grep -qxF "$line" <<<"$said"
    done
    [[ $(herd pg:info gold) == *"Followers:   HEROKU_POSTGRESQL_WHITE_URL"* ]]
}

@test "what would lose a database is refused" {
    refused_changes() {
        refuses 1 "WHITE_URL is itself a follower; nothing was added" addons:add heroku-postgresql:dev --follow white
        [[ $err == *"follow its primary: --follow db.1"* ]]
        ends 3 "--cascade" herd pg:follow amber --of white
        refuses 1 "GOLD_URL follows no database" pg:unfollow gold
        refuses 1 "GOLD_URL is a primary already, and no old primary waits to follow it" pg:switchover gold
        refuses 3 "WHITE_URL would become writable and no longer follow" pg:unfollow white
        refuses 3 "--confirm blog does not match the app shop; nothing was done" pg:unfollow white --confirm blog
        refuses 3 "db.0 holds another cluster with data of its own" pg:follow amber --of gold
        [[ $err == *"What only HEROKU_POSTGRESQL_AMBER_URL has will be lost."* ]]
        refuses 3 "--confirm blog does not match the app shop; nothing was done" addons:remove amber --confirm blog
        refuses 3 "re-run this command with --confirm shop" addons:remove amber
        [[ $err == *"WARNING: Destructive Action"*"HEROKU_POSTGRESQL_AMBER_URL (db.0, "*"MB) will be destroyed with all its data. This cannot be undone."* ]]
        status=0
        said=$(typed shopp addons:remove amber) || status=$?
        [ "$status" = 3 ]
        [[ $said == *'type "shop" or re-run this command with --confirm shop'*"Confirmation did not match shop. Aborted; nothing was done"* ]]
    }
    unchanged refused_changes
    # One that others follow, were it not in use
    herd config:get DATABASE_URL >"$scene/url"
    herd config:unset DATABASE_URL --no-restart
    refuses 1 "GOLD_URL is followed by db.2" addons:remove gold --confirm shop
    herd config:set DATABASE_URL --no-restart <"$scene/url" >"$BATS_TEST_TMPDIR/said"
    [ "$(herd config:get DATABASE_URL)" = "$(<"$scene/url")" ]
}

@test "pg:psql passes input, output and the exit code" {
    [ "$(herd pg:psql -- -At <<<'select 6 * 7')" = 42 ]
    [ "$(herd pg:psql white -c "select 'it''s \"\$HOME\" é', pg_is_in_recovery()" -- -At </dev/null)" = 'it'"'"'s "$HOME" é|t' ]
    ends 1 "division by zero" herd pg:psql -c 'select 1/0'
    status=0
    herd pg:psql -- -v ON_ERROR_STOP=1 <<<'select 1 / 0' || status=$?
    [ "$status" = 3 ]
    refuses 2 "psql's own options come after --" pg:psql --nosuch
}

@test "pg:ps, pg:locks and pg:kill" {
    herd pg:psql -c 'create table locked (n int)'
    (! psql_on db.1 "begin; lock locked; select pg_sleep(60)" >"$scene/holder" 2>&1) 3>&- &
    holder=$!
    holds() { [[ $(psql_on db.1 "select count(*) from pg_locks where relation = 'locked'::regclass and granted") == 1 ]]; }
    eventually holds
    (! psql_on db.1 "select count(*) from locked" >"$scene/waiter" 2>&1) 3>&- &
    waiter=$!
    waits() { herd pg:locks --json | tee "$scene/locks" | jq -e '.waiting | length == 1'; }
    eventually waits
    first=$(jq '.waiting[0].blockers[0].pid' "$scene/locks")
    second=$(jq '.waiting[0].pid' "$scene/locks")
    jq -e '.instance == "db.1" and (.waiting[0].query | contains("from locked")) and (.waiting[0].blockers | length == 1)' "$scene/locks"
    [[ $(herd pg:locks) == *"$second"*"$first"* ]]
    herd pg:ps --json | jq -e --argjson f "$first" --argjson s "$second" '.instance == "db.1" and ([.sessions[].pid] | contains([$f, $s]))
        and (.sessions[] | select(.pid == $f) | (.query | contains("lock locked")) and .running_seconds > 0)'
    [[ $(herd pg:ps gold) == *"from locked"* ]]
    [[ $(herd pg:ps white) != *"from locked"* ]]
    # The statement of the one, the session of the other
    herd pg:kill "$second" --json | jq -e .
    wait "$waiter"
    grep -q "canceling statement due to user request" "$scene/waiter"
    herd pg:kill "$first" gold --force
    wait "$holder"
    grep -q "terminating connection due to administrator command" "$scene/holder"
    refuses 1 "there is no session 4194304" pg:kill 4194304
    refuses 2 "which session?" pg:kill gold
    herd pg:psql -c 'drop table locked'
}

@test "pg:outliers" {
    herd pg:outliers --reset
    herd pg:psql -c 'select pg_sleep(0.3) /* outlier */'
    herd pg:outliers -n 1 --json | jq -e '.instance == "db.1" and (.statements | length == 1)
        and (.statements[0] | (.query | contains("pg_sleep")) and .calls == 1 and .total_ms > 290)'
    [[ $(herd pg:outliers gold) == *pg_sleep* ]]
}

@test "logs of several databases stand in the order of time" {
    since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    for mark in 1:db.0 2:db.1 3:db.0 4:db.2; do
        psql_on "${mark#*:}" "select 'mark ${mark%:*}', pg_sleep(0.06)" >/dev/null
    done
    four() { [[ $(herd logs --since "$since" -n 1000 | tee "$scene/log" | grep -c "'mark [1-4]'") == 4 ]]; }
    eventually four
    [ "$(grep -o "mark [1-4]'" "$scene/log" | tr -d "\n")" = "mark 1'mark 2'mark 3'mark 4'" ]
    grep -qE "^[0-9-]+T[0-9:.]+\+00:00 app\[postgres\.db\.2\]: \[[0-9]+\] LOG:  duration: [0-9.]+ ms  statement: select 'mark 4'" "$scene/log"
    sort -c -s -k 1,1 "$scene/log"
    [ "$(grep -vc ' duration: ' "$scene/log")" = 0 ]
    [ "$(herd logs -n 2 | wc -l)" = 2 ]
    [[ $(herd logs amber gold --since 5m) != *"mark 4"* ]]
    herd logs --since 5m -n 1000 --json | jq -se '[.[] | select(.message | contains("mark "))] | [.[].instance] == ["db.0", "db.1", "db.0", "db.2"]
        and all(.[]; .duration_ms >= 60 and .severity == "LOG" and (.time | startswith("20")) and .pid > 0)'
    [ -z "$(herd logs --ps postgres --slow 50000)" ]
    herd logs --all -n 1000 | grep -vq ' duration: '
    refuses 2 "--since wants a time" logs --since soon
    # One that cannot be read does not hide the others
    dotcloud run db.0 'mv logs logs.away'
    ends 1 "HEROKU_POSTGRESQL_AMBER_URL: " herd logs --since 5m -n 1000
    mv "$BATS_TEST_TMPDIR/err" "$scene/log.err"
    [[ $out == *"mark 4"* && $out != *"mark 3"* && $(wc -l <"$scene/log.err") == 1 ]]
    ends 1 "" herd logs --since 5m -n 1000 --json
    dotcloud run db.0 'mv logs.away logs'
    [ -z "$err" ]
    jq -se '([.[] | .error | values] | length == 1 and (.[0] | .instance == "db.0" and .message and .exit == 1)) and any(.[]; .instance == "db.1")' <<<"$out"
}

@test "pg:follow, pg:unfollow and pg:fork of one that is there already" {
    herd pg:fork amber --of gold --dry-run --json | jq -e '.instance == "db.0" and .source == "db.1" and .dry_run and .plan.action == "full" and .plan.loses'
    [[ $(herd pg:follow amber --of gold -n) == "HEROKU_POSTGRESQL_AMBER_URL would be made by: full, because "*"it wants a confirmation"* ]]
    said=$(typed shop pg:fork amber --of gold)
    [[ $said == *"What only HEROKU_POSTGRESQL_AMBER_URL has will be lost."*"HEROKU_POSTGRESQL_AMBER_URL is a copy of HEROKU_POSTGRESQL_GOLD_URL now ("*"writable"* ]]
    [ "$(field amber '.info | "\(.role) \(.plan)"')" = "primary dev" ]
    refuses 2 "--copy-from is not for a fork" pg:fork amber --of gold --copy-from white
    refuses 2 "--paranoid is not for a fork" pg:fork amber --of gold --paranoid
    herd pg:follow amber --of gold --paranoid --dry-run --confirm shop
    ends 1 "a copy of db.1 cannot come from db.1: it is no standby" herd pg:follow amber --of gold --copy-from gold --confirm shop
    herd pg:follow amber --of gold --copy-from white --confirm shop --json |
        jq -se 'length == 1 and (.[0] | .instance == "db.0" and .source == "db.1" and .copied_from == "db.2" and (.dry_run | not))'
    [ "$(field amber .info.following.primary)" = "$(field gold .address)" ]
    herd pg:unfollow amber --confirm shop --json | jq -e .
    [ "$(field amber .info.role)" = primary ]
    [ "$(psql_on db.1 "select string_agg(slot_name, ' ') from pg_replication_slots")" = pgmahout_shop_db_2 ]
}

@test "addons:detach and addons:remove" {
    before=$(release)
    [ "$(herd addons:detach AMBER)" = "Detaching HEROKU_POSTGRESQL_AMBER_URL from shop... done, v$((before + 1))" ]
    refuses 1 "db.0 is not attached" addons:detach db.0
    herd pg:info --json | jq -e '[.databases[].name] == ["db.1", "db.2"]'
    herd addons:attach db.0 --as HEROKU_POSTGRESQL_AMBER_URL --json | jq -e --argjson r $((before + 2)) \
        '. == {instance: "db.0", attachment: "HEROKU_POSTGRESQL_AMBER_URL", release: $r}'
    said=$(typed shop addons:remove amber)
    [[ $said == *"Removing HEROKU_POSTGRESQL_AMBER_URL from shop... "*"done, v$((before + 3))"* ]]
    [ "$(dotcloud info --json | jq -c '.services.db.instances | keys')" = '["db.1","db.2"]' ]
    refuses 1 "shop has no variable HEROKU_POSTGRESQL_AMBER_URL" config:get HEROKU_POSTGRESQL_AMBER_URL
    app_writes
}

@test "pg:credentials and its rotation: streaming goes on, the app goes on, the old password is refused" {
    old=$(herd config:get DATABASE_URL)
    [[ $(herd pg:credentials) == "Connection info string:"*"dbname=postgres host=127.0.0.1 port=$(port db.1 pgsql) user=dotcloud password="*"Connection URL:"*"$old" ]]
    herd pg:credentials white --json | jq -e --argjson p "$(port db.2 pgsql)" '.instance == "db.2" and .host == "127.0.0.1" and .port == $p and .user == "dotcloud" and .database == "postgres"'
    receiver=$(psql_on db.2 'select pid from pg_stat_wal_receiver')
    [[ $receiver =~ ^[0-9]+$ ]]
    watch_processes
    herd pg:credentials:rotate white --json >"$BATS_TEST_TMPDIR/rotated"
    new=$(herd config:get DATABASE_URL)
    password() { cut -d : -f 3 <<<"${1%%@*}"; }
    nobody_showed "$(password "$old")" "$(password "$new")"
    jq -e --argjson r "$(release)" '. == {primary: "db.1", role: "dotcloud", release: $r, followers: ["db.2"]}' "$BATS_TEST_TMPDIR/rotated"
    [[ $new != "$old" && ${new##*@} == "${old##*@}" ]]
    [ "$(password "$(herd config:get HEROKU_POSTGRESQL_WHITE_URL)")" = "$(password "$new")" ]
    [ "$(psql_on db.2 'select pid from pg_stat_wal_receiver')" = "$receiver" ]
    [ "$(/usr/lib/postgresql/15/bin/psql "$new" -Atc 'select 1')" = 1 ]
    ends 2 "password authentication failed" /usr/lib/postgresql/15/bin/psql "$old" -Atc 'select 1'
    app_writes
}

@test "a follower that is added after it has the new password" {
    herd addons:add heroku-postgresql --track DATABASE_URL --as cobalt
    herd pg:wait
    [ "$(field cobalt '| "\(.name) \(.info.role) \(.info.plan) \(.info.following.streaming)"')" = "db.0 standby dev true" ]
    url=$(herd config:get HEROKU_POSTGRESQL_COBALT_URL)
    [ "$(/usr/lib/postgresql/15/bin/psql "$url" -Atc 'select pg_is_in_recovery()')" = t ]
}

@test "completions: the shells' own syntax, and what there is" {
    herd completions bash >"$scene/completions.bash"
    herd completions zsh >"$scene/completions.zsh"
    bash -n "$scene/completions.bash"
    zsh -n "$scene/completions.zsh"
    export PATH=$checkout/scripts:$PATH
    cd "$scene/here"
    complete_in_bash "herd pg:pro"
    [ "$completed" = promote ]
    complete_in_bash "herd pg:info COB"
    [ "$completed" = COBALT ]
    complete_in_bash "herd pg:switchover --"
    [[ " $completed " == *" --confirm "* ]]
    complete_in_bash "herd addons:add heroku-postgresql:de"
    [ "$completed" = dev ]
    complete_in_bash "herd config:get DATA"
    [ "$completed" = DATABASE_URL ]
    complete_in_bash "herd ps:restart "
    [ "$completed" = www ]
    complete_in_bash "herd -a shop pg:wait WH"
    [ "$completed" = WHITE ]
    complete_in_bash "herd --app shop co"
    [[ " $completed " == *" config "* && $completed != *pg:* ]]
    # The function itself, with the place where zsh would put its candidates
    said=$(zsh -f -c 'compdef() { :; }; compadd() { shift; print -rl -- ${(P)1}; }; source "$1"; LBUFFER="herd pg:info "; _herd' zsh "$scene/completions.zsh")
    for word in COBALT GOLD WHITE db.0 db.1 db.2 DATABASE_URL; do grep -qxF "$word" <<<"$said"; done
}

# complete_in_bash LINE: what bash would offer at its end, into $completed
complete_in_bash() {
    completed=$(bash -c 'source "$1"; COMP_LINE=$2 COMP_POINT=${#2}; _herd; echo "${COMPREPLY[*]}"' bash "$scene/completions.bash" "$1")
}

@test "a primary that is down" {
    dotcloud run db.1 'supervisorctl -c supervisord.conf stop postgres'
    primary_down() {
        refuses 1 "which HEROKU_POSTGRESQL_WHITE_URL follows, is not a running primary" pg:switchover white
        [[ $err == *"after a failure: herd pg:promote db.2"* ]]
        refuses 1 "GOLD_URL cannot be promoted" pg:promote gold
        refuses 1 "GOLD_URL cannot become the primary" pg:switchover gold
        refuses 1 "the server of db.1 does not run" pg:ps
        refuses 1 "GOLD_URL cannot change a password" pg:credentials:rotate
    }
    unchanged primary_down
    [[ $(herd pg:info | tr -s ' ') == *$'(DATABASE_URL)\nPlan: Dev\nStatus: stopped\nRole: stopped\n'*"=== HEROKU_POSTGRESQL_WHITE_URL"*"Status: following, but not streaming"* ]]
    herd pg:info gold --json | jq -e '.databases[0].info | .role == "stopped" and .no_follow == "its server does not run" and .connections == null'
    ends 1 "the server of db.1 does not run" herd pg:psql -c 'select 1'
    ends 1 "" herd pg:wait gold --timeout 5
    [[ $out == "Waiting for database HEROKU_POSTGRESQL_GOLD_URL... failed" && $err == *" !    HEROKU_POSTGRESQL_GOLD_URL: "* ]]
    ends 1 "" herd pg:wait gold --timeout 5 --json
    jq -e '.["db.1"].error | .message and .exit == 1' <<<"$out"
    dotcloud run db.1 'supervisorctl -c supervisord.conf start postgres'
    herd pg:wait
}

@test "pg:switchover as JSON; afterwards everybody can be removed but the primary" {
    herd pg:switchover white --json >"$BATS_TEST_TMPDIR/switched"
    jq -se 'length == 1 and (.[0] | .primary == "db.2" and .old_primary == "db.1" and .seconds < 60 and (.release | type == "number")
        and ([.followers[] | .instance] | sort == ["db.0", "db.1"]) and all(.followers[]; .report))' "$BATS_TEST_TMPDIR/switched"
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_WHITE_URL)" ]
    app_writes
    for name in cobalt gold; do
        herd addons:remove "$name" --confirm shop --json | jq -e '.destroyed and .release'
    done
    [ "$(psql_on db.2 'select count(*) from pg_replication_slots')" = 0 ]
    refuses 1 "WHITE_URL is the DATABASE_URL of shop" addons:remove white --confirm shop
    herd addons --json | jq -e '[.addons[].instance] == ["db.2"]'
}
