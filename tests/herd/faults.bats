# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd over a platform that breaks its contract: it ends in time, says what is wrong in one message, executes nothing
# that was data, and leaves nothing behind. The platform is fixtures/broken.

load scene

# --- a platform that breaks its contract ------------------------------------------

@test "a platform that keeps its contract" {
    herd pg:info
    [ "$status" = 0 ]
    [ "$(grep ^Status "$scene/out")" = "Status:      available"$'\n'"Status:      following"$'\n'"Status:      following" ]
    did
}

@test "a verb that hangs, ignores SIGTERM or has left somebody who holds its pipes" {
    for verb in app config-list instances; do
        limit=1
        fault "$verb" 'sleep 600'
        fails 4 "the platform it's \"broken\" 100% \$HOME did not answer within 1 seconds ($verb)" addons
        rm "$BROKEN/faults/$verb"
    done
    # timeout's second signal comes after 5 seconds
    fault app 'trap "" TERM; sleep 600'
    fails 4 "did not answer within 1 seconds (app)" addons
    awk -v t="$took" 'BEGIN { exit !(t > 5.5 && t < 120) }'
    limit=20
    # One in its process group, and one that has left it: what the verb has answered counts, and they are its own affair
    fault app 'sleep 600 & echo $! >>"$BROKEN/left"'
    fault instances 'setsid sleep 600 & echo $! >>"$BROKEN/left"'
    leaves=yes
    herd addons
    [ "$status" = 0 ]
    awk -v t="$took" 'BEGIN { exit !(t < 15) }'
    # On an instance too, but there nothing in its process group is left
    mv "$BROKEN/faults/app" "$BROKEN/faults/run.db.1.info"
    mv "$BROKEN/faults/instances" "$BROKEN/faults/run.db.2.info"
    herd pg:info
    [ "$status" = 0 ]
    [[ $out == *GOLD*following*SILVER*following* ]]
    awk -v t="$took" 'BEGIN { exit !(t < 15) }'
    mapfile -t left <"$BROKEN/left"
    [ "${#left[@]}" = 4 ]
    leaves=""
    kill "${left[@]}" 2>"$scene/killed" || true
    [ "$(wc -l <"$scene/killed")" = 1 ]
}

@test "a verb that fails: its words, its code, and no secret of it" {
    fault app 'echo "first line" >&2; echo "broken: the moon is down; wait until it is up" >&2; echo >&2; exit 1'
    fails 1 "broken: the moon is down; wait until it is up" addons
    for code in 2 3 4 5; do
        fault app "echo 'broken: no $code' >&2; exit $code"
        fails "$code" "broken: no $code" addons
    done
    fault app 'exit 1'
    fails 1 "the platform it's \"broken\" 100% \$HOME failed (app, exit code 1) and said nothing" addons
    fault app 'exit 77'
    fails 1 "failed (app, exit code 77) and said nothing" addons
    fault app 'echo "there is no such verb here" >&2; exit 69'
    fails 1 "the platform it's \"broken\" 100% \$HOME cannot do that (app): there is no such verb here" addons
    fault app 'kill -SEGV $$'
    fails 1 "was ended by signal 11 (app)" addons
    fault app 'kill -KILL $$'
    fails 1 "was ended by signal 9 (app)" addons
    fault app 'printf "broken: cannot reach postgres://shop:s3cret@10.0.0.0:5432/shop \e[31mred\e[0m\a\n" >&2; exit 4'
    fails 4 "broken: cannot reach postgres://shop:...@10.0.0.0:5432/shop" addons
    fault app 'head -c 10000000 /dev/zero | tr "\0" x >&2; exit 1'
    fails 1 "xxxxxxxx" addons
    ((${#err} < 600))
    # What it says when all is well is for nobody
    fault app 'echo "password=s3cret" >&2'
    herd pg:info AMBER
    [ "$status" = 0 ] && [ -z "$err" ] && [[ $out != *s3cret* ]]
    # As JSON the error is one object on stdout
    fault app 'printf "broken: \e[31mno\n" >&2; exit 4'
    herd addons --json
    [ "$status" = 4 ] && [ -z "$err" ]
    [ "$(jq -c '.error | [.message, .exit]' <<<"$out")" = '["broken: [31mno",4]' ]
}

@test "a verb that is missing or not executable, a platform that is not there" {
    for verb in app config-list; do
        mv "$broken/$verb" "$scene/kept"
        fails 1 "$breaks: $verb: it cannot be run: there is no executable $broken/$verb" addons
        printf '#!/bin/sh\necho shop\n' >"$broken/$verb"
        fails 1 "$breaks: $verb: it cannot be run: there is no executable" addons
        printf '#!/nonexistent/interpreter\n' >"$broken/$verb"
        chmod +x "$broken/$verb"
        fails 1 "$breaks: $verb: it cannot be run" addons
        mv "$scene/kept" "$broken/$verb"
    done
    broken=$scene/nowhere fails 2 "there is no platform $scene/nowhere" addons
}

@test "app lies" {
    for lie in '' 'two words' '$(touch x)' '`touch x`' '../../x' '-x' '\e[31mred' 'a\nb' '\0\0' '\xff\xfe'; do
        fault app "printf -- '$lie'; exit"
        fails 1 "$breaks: app: it answered no name of an app" addons
    done
    fault app 'head -c 10000000 /dev/zero | tr "\0" x; exit'
    fails 1 "$breaks: app: it answered no name of an app" addons
    fault app 'echo blog; exit'
    fails 1 "$breaks: app: it answered blog for the app shop" addons --app shop
    [ -z "$(find "$scene" -name x)" ]
}

@test "config-list lies" {
    for lie in '' '{"release": 3, "config": {' '{"release": "seven", "config": {}}' '{"release": 3, "config": []}' '{"release": 3, "config": {"A": 1}}' \
        '[]' 'null' 'shop: 1' '\x00\xff\x1b[31m' '{"release": 3, "config": {}}{"release": 4, "config": {}}'; do
        fault config-list "printf '$lie'; exit"
        fails 1 "$breaks: config-list: it answered no JSON with release and config" addons
    done
    fault config-list 'head -c 10000000 /dev/zero | tr "\0" "["; exit'
    fails 1 "$breaks: config-list: it answered no JSON with release and config" addons
    # The same for those who show it
    fault config-list 'echo "{"; exit'
    fails 1 "$breaks: config-list: it answered no JSON" config
}

@test "instances lies" {
    for lie in 'db.0' 'db.0\trunning' 'db 0\trunning\t10.0.0.0:5432' 'db.0\tfine\t10.0.0.0:5432' 'db.0\trunning\t10.0.0.0' 'db.0\trunning\t10.0.0.0:5432\tmore' \
        '$(touch x)\trunning\t10.0.0.0:5432' '../x\trunning\t10.0.0.0:5432' '-n\trunning\t10.0.0.0:5432' 'db.0\trunning\t$(touch x):5432' \
        'db.0\trunning\t\e[31m10.0.0.0:5432' '\xff\xfe' '\n\ndb.0'; do
        fault instances "printf -- '$lie\n'; exit"
        fails 1 "$breaks: instances: it answered a line that is not NAME, STATE and HOST:PORT" addons
    done
    fault instances 'printf "db.%s\trunning\t10.0.0.%s:5432\n" 0 0 1 1 0 2; exit'
    fails 1 "$breaks: instances: it answered db.0 at 10.0.0.2:5432, whose name or address another line has too" addons
    fault instances 'printf "db.%s\trunning\t10.0.0.%s:5432\n" 0 0 1 1 2 1; exit'
    fails 1 "$breaks: instances: it answered db.2 at 10.0.0.1:5432, whose name or address another line has too" addons
    fault instances 'head -c 10000000 /dev/zero | tr "\0" x; exit'
    fails 1 "$breaks: instances: it answered a line that is not" addons
    [ -z "$(find "$scene" -name x)" ]
    # Many are no lie
    fault instances 'for i in {0..9999}; do printf "db.%s\tstopped\t10.0.0.%s:5432\n" "$i" "$i"; done; exit'
    herd pg:info GOLD
    [ "$status" = 0 ]
}

@test "no instances, and a URL to nowhere" {
    fault instances 'exit 0'
    for command in "pg:promote GOLD" pg:credentials:rotate "pg:info AMBER"; do
        # shellcheck disable=SC2086
        fails 1 "of shop points to no instance that the platform knows" $command
    done
    herd pg:info
    [ "$status $out" = "0 shop has no databases; herd addons:add heroku-postgresql:ronin adds one" ]
    fails 1 "shop has no databases" pg:wait
    did
}

@test "other answers that are lies" {
    fault processes 'printf "www\t2\tfi\e[31mne\n"; exit'
    fails 1 "$breaks: processes: it answered a line that is not NAME, COUNT and STATE" ps
    fault releases 'echo "[{}]"; exit'
    fails 1 "$breaks: releases: it answered no list of releases" releases
    fault releases 'printf %s "[{\"release\": 3, \"at\": \"2026-11-21T15:40:00Z\", \"what\": \"a\\u001b[31mb\\n\\tc\"}]"; exit'
    herd releases
    [ "${out#*$'\n'}" = "v3     2026-11-21 15:40:00 UTC   a [31mb c" ]
    fault maintenance 'echo perhaps; exit'
    fails 1 "$breaks: maintenance: it answered neither on nor off" maintenance
    fault maintenance 'echo off; exit'
    fails 1 "$breaks: maintenance: it answered off to on" maintenance:on
    for lie in '' seven '7 8' '$(touch x)' '\e[31m7'; do
        fault config-set "printf '$lie'; exit"
        fails 1 "$breaks: config-set: it answered no release number" config:set A=1 --no-restart
        fault config-unset "printf '$lie'; exit"
        fails 1 "$breaks: config-unset: it answered no release number" config:unset A --no-restart
    done
    fault config-set 'echo "broken: the disk is full" >&2; exit 1'
    fails 1 "broken: the disk is full" config:set A=1
    for lie in 'postgres://shop:s3cret@10.0.0.9:5432/shop' 'nonsense' 'postgres://shop@10.0.0.3:5432/shop\nmore' 'postgres://shop@10.0.0.3:5432/\e[31m'; do
        all_is_well
        fault url "printf '$lie'; exit"
        herd addons:add heroku-postgresql
        [[ $status == 1 && $err == " !    $breaks: url: it answered no URL of db.3 at 10.0.0.3:5432"*"the new instance db.3 is there, attached to nothing: "* ]]
        [ "$(jq .release "$BROKEN/config.json")" = 3 ]
    done
    all_is_well
    fault blurb 'echo nonsense; exit'
    fails 1 "$breaks: blurb: it answered no blurb" pg:follow GOLD --of AMBER
    [ -z "$(find "$scene" -name x)" ]
}

# --- instances that do not answer as they should ----------------------------------

# Whatever one of them does, the others are shown
@test "one broken instance does not hide the others" {
    for broken_run in 'trap "" TERM; sleep 600 & wait; sleep 600' 'kill -KILL $$' 'echo "{\"instance\""; exit' 'head -c 1000000 /dev/urandom; exit' \
        'jq -cn "{error: {message: \"broken \u001b[31m it is\", hint: \"see\", exit: 4}}"; exit 4'; do
        fault run.db.1 "$broken_run"
        limit=2
        [[ $broken_run == *sleep* ]] || limit=20
        herd pg:info
        [ "$status" = 4 ] && [ -z "$err" ]
        [ "$(grep -c "^Status:      \(available\|following\)" "$scene/out")" = 2 ]
        [ "$(grep -c "^Status:      unavailable: " "$scene/out")" = 1 ]
        awk -v t="$took" 'BEGIN { exit !(t < 12) }'
    done
}

@test "of each broken answer pg:info says what it is" {
    says() {
        fault run.db.1 "$1"
        herd pg:info GOLD
        [[ $status == 4 && $out == *$'\nStatus:      unavailable: '"$2"$'\n'* ]] || { echo "not: $2" && return 1; }
    }
    says 'exit 255' "db.1 could not be reached"
    says 'echo "ssh: no way to postgres://shop:s3cret@10.0.0.1:5432" >&2; exit 255' "db.1 could not be reached: ssh: no way to postgres://shop:...@10.0.0.1:5432"
    says 'kill -KILL $$' "pgmahout on db.1 failed (exit code 137)"
    says 'exit 0' "what db.1 answered is not pgmahout's"
    says 'echo "{}{}"; exit' "what db.1 answered is not pgmahout's"
    says 'echo "bash: pgmahout: command not found" >&2; exit 127' "there is no pgmahout on db.1"
    says 'printf "broken: \e[31mred\n" >&2; exit 3' "pgmahout on db.1 failed (exit code 3): broken: [31mred"
    says 'echo "[]"; exit' "what db.1 answered is not pgmahout's"
    says 'echo "{\"instance\": \"db.1\", \"role\": 7}"; exit' "what db.1 answered is not pgmahout's"
    says 'echo "{\"instance\": \"db.1\", \"role\": \"standby\", \"following\": \"db.0\"}"; exit' "what db.1 answered is not pgmahout's"
    # A login profile that talks is no reason to fail
    fault run.db.1 'printf "Welcome to db.1!\n\e[31mYou have mail.\n"'
    herd pg:info GOLD
    [ "$status" = 0 ]
    # What is said in JSON's own way is said to terminals as text
    set_info db.1 '.problem = "its \u001b[31m disk is full\n" | .plan = "ron\u0007in"'
    herd pg:info GOLD
    [[ $status == 0 && $out == *"Status:      standby, its  [31m disk is full "$'\n'* ]]
}

@test "logs and pg:wait go on without a broken instance, and name it" {
    for broken_run in 'sleep 600' 'printf "broken: \e[31mno ssh\n" >&2; exit 255'; do
        fault run.db.1 "$broken_run"
        limit=2
        herd logs
        [ "$status" = 4 ]
        [ "$(grep -c "duration: 99 ms" "$scene/out")" = 2 ]
        [ "$(grep -c . "$scene/err")" = 1 ]
        [[ $err == " !    HEROKU_POSTGRESQL_GOLD_URL: db.1 "* ]]
    done
    herd pg:wait --timeout 1
    [ "$status" = 4 ]
    [ "$out" = "Waiting for database HEROKU_POSTGRESQL_AMBER_URL... available
Waiting for database HEROKU_POSTGRESQL_GOLD_URL... failed
Waiting for database HEROKU_POSTGRESQL_SILVER_URL... following" ]
    [[ $err == *" !    HEROKU_POSTGRESQL_GOLD_URL: db.1 could not be reached: broken: [31mno ssh; is its machine up?" ]]
    herd pg:wait --timeout 1 --json
    [ "$status" = 4 ]
    [ "$(jq -c '[.["db.0"].role, .["db.1"].error.exit, .["db.2"].role]' <<<"$out")" = '["primary",4,"standby"]' ]
    # Its steps may hold anything
    fault run.db.1 'printf "copying \e[31m\xff 5 %%\r\n" >&2'
    herd pg:wait
    [ "$status" = 0 ]
    # And its log
    fault run.db.1.logs 'printf "2026-11-21T18:07:05.444000+00:00 app[postgres.db.1]: [1] LOG:  \e[31m\0 duration: 1 ms\n"; exit'
    herd logs GOLD
    [ "$status" = 0 ]
    [[ $out == *"duration: 1 ms" ]]
}

@test "Ctrl-C during a hanging verb ends herd at once with 130 and leaves nothing" {
    for place in app config-list run.db.1 run.db.1.wait config-set restart; do
        command="pg:wait"
        [[ $place != config-set && $place != restart ]] || command="config:set A=1"
        for hangs in 'sleep 20' 'trap "" TERM INT; sleep 20'; do
            [[ $hangs == sleep* || $place == run.db.1 || $place == config-set ]] || continue
            rm -f "$scene/hangs" "$BROKEN/faults"/*
            fault "$place" "touch '$scene/hangs'; $hangs"
            runner=("$BATS_TEST_DIRNAME/fixtures/terminal" "$scene/hangs" $'\x03')
            # shellcheck disable=SC2086
            herd $command
            [[ $status == 0 && $(tail -n 1 <<<"$out") =~ ^130\ [0-3]\.[0-9]$ ]] || { echo "$place: $hangs" && return 1; }
        done
    done
}
