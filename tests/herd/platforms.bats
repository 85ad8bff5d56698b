# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2154
# The contract of scripts/platforms/README.md, over both platforms: the local dotcloud, and ssh with the same
# instances as its hosts. The tests build on each other: one application lives from the first to the last.

load ../dotcloud/helper

setup_file() {
    set_scene
    export PGMAHOUT_BINARY=${PGMAHOUT_BIN:?run it by scripts/test} DOTCLOUD_START_TIMEOUT=60
    # A database with the real agent, and the fixture's two processes
    cp -a "$scene/www/." "$checkout/"
    cat "$scene/www/dotcloud.yml" "$BATS_TEST_DIRNAME/../../dotcloud.yml" >"$scene/both.yml"
    sed 's/instances: 1/instances: 2/' "$scene/both.yml" >"$checkout/dotcloud.yml"
    dotcloud create shop
    dotcloud push "$checkout" >&2
    mkdir "$scene/bin"
    printf '#!/bin/bash\nexec "$checkout/scripts/dotcloud" -A shop "$@"\n' >"$scene/bin/dotcloud"
    chmod 755 "$scene/bin/dotcloud"
    write_hosts
}

teardown_file() {
    strike_scene
}

write_hosts() {
    local n
    cat "$DOTCLOUD_HOME"/apps/shop/ssh/db.*.known_hosts >"$scene/here/known hosts"
    {
        printf 'application: shop\nssh:\n  identity: "%s"\n  known_hosts: known hosts\ndatabases:\n' "$DOTCLOUD_HOME/apps/shop/ssh/id_ed25519"
        for n in 0 1; do
            printf '  db.%s:\n    ssh: %s\n' "$n" "$(dotcloud info "db.$n" --json | jq -r '.ports[] | select(.name == "ssh").url')"
            printf '    sql: postgres://dotcloud:%s@127.0.0.1:%s\n' "$(dotcloud run db.0 cat password)" "$(port "db.$n" pgsql)"
        done
        # db.1's
        printf '    spare: true\n    environment: {GREETING: "it'\''s $HOME"}\n'
        printf '    provision: "echo $PLAN of $PGMAHOUT_APP >~/made"\n    destroy: rm ~/made\n'
        printf 'processes:\n  www:\n    count: 1\n    restart: dotcloud restart www\n    scale: dotcloud scale www=$COUNT --yes\n'
        printf '    stop: dotcloud down www\n    start: dotcloud up www\n'
        printf '    status: "dotcloud info www --json | jq -e '\''[.instances[].state] | all(. == \\"running\\")'\''"\n'
    } >"$scene/here/herd.yml"
    chmod 600 "$scene/here/herd.yml"
}

# over PLATFORM: the verbs that follow are its own
over() {
    platform=$1
    echo "# platform $platform"
}

verb() {
    (cd "$scene/here" && PATH=$scene/bin:$PATH "$checkout/scripts/platforms/$platform/$1" "${@:2}")
}

# fails STATUS TEXT VERB ARGUMENT...: nothing on stdout, TEXT in the last line of stderr
fails() {
    local want=$1 text=$2 status=0
    shift 2
    verb "$@" >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" || status=$?
    [[ $status == "$want" && ! -s $BATS_TEST_TMPDIR/out && $(tail -n 1 "$BATS_TEST_TMPDIR/err") == *"$text"* ]] || {
        printf '%s over %s: status %s, not %s\n' "$*" "$platform" "$status" "$want"
        cat "$BATS_TEST_TMPDIR/out" "$BATS_TEST_TMPDIR/err"
        return 1
    }
}

# Processes that are not databases, and those that are, as "NAME PROCESS pid N"
pids_of() {
    dotcloud ps "$1" --json | jq -r '.[] | "\(.instance) \(.process) \(.detail | split(",")[0])"'
}

@test "every verb of the contract is there, and wrong usage is 2" {
    mapfile -t verbs < <(sed -n 's/^| `\([a-z-]*\)` |.*/\1/p' "$checkout/scripts/platforms/README.md")
    [ "${#verbs[@]}" = 17 ]
    for platform in dotcloud ssh; do
        over "$platform"
        diff <(printf '%s\n' "${verbs[@]}" | sort) <(find "$checkout/scripts/platforms/$platform" -type f -executable -printf '%f\n' | sort)
        for name in blurb url run provision destroy config-get config-unset scale; do
            fails 2 "usage: $name " "$name" </dev/null
        done
        for name in app instances config-list releases processes oneoffs config-set; do
            fails 2 "usage: $name" "$name" more </dev/null
        done
        fails 2 "usage: maintenance [on|off]" maintenance perhaps
        fails 2 "usage: run INSTANCE COMMAND" run db.0 ''
        fails 2 "usage: scale NAME=COUNT" scale www
        fails 2 nosuch restart nosuch
        fails 2 nosuch scale nosuch=2
    done
}

@test "app and instances, from the sibling and from the PATH, named and not" {
    for platform in dotcloud ssh; do
        over "$platform"
        [ "$(verb app)" = shop ]
        [ "$(HERD_APP=shop verb app)" = shop ]
        verb instances >"$BATS_TEST_TMPDIR/instances"
        [ "$(cut -f 1,3 "$BATS_TEST_TMPDIR/instances")" = "db.0"$'\t'"127.0.0.1:$(port db.0 pgsql)"$'\n'"db.1"$'\t'"127.0.0.1:$(port db.1 pgsql)" ]
        # Without a dotcloud in the PATH
        (cd "$scene/here" && "$checkout/scripts/platforms/$platform/instances") | diff - "$BATS_TEST_TMPDIR/instances"
    done
    over dotcloud
    [ "$(verb instances | cut -f 2 | sort -u)" = running ]
    [ "$(cd / && HERD_APP=shop "$checkout/scripts/platforms/dotcloud/app")" = shop ]
    PATH=$(dirname "$(type -P bash)"):/usr/bin HERD_APP=nosuch
    status=0
    error=$(cd / && HERD_APP=nosuch "$checkout/scripts/platforms/dotcloud/instances" 2>&1) || status=$?
    [ "$status $error" = "1 dotcloud: no such application: nosuch; see dotcloud list" ]
    over ssh
    [ "$(verb instances | cut -f 2 | sort -u)" = unknown ]
    HERD_APP=blog fails 2 "herd.yml is for shop, not for blog; name another file in HERD_HOSTS" instances
    [ "$(cd / && HERD_HOSTS=$scene/here/herd.yml "$checkout/scripts/platforms/ssh/app")" = shop ]
}

@test "a blurb is what the agent understands, and carries the name" {
    for platform in dotcloud ssh; do
        over "$platform"
        verb blurb db.0 >"$BATS_TEST_TMPDIR/blurb"
        run verb run db.1 "pgmahout enslave --dry-run" <"$BATS_TEST_TMPDIR/blurb"
        echo "$output"
        [ "$status" = 0 ]
        [[ $output == *"would copy"* && $output == *db.0* ]]
    done
    over dotcloud
    [ -z "$(verb url db.0)" ]
    fails 1 "www.0 is not a database instance of shop, which has db.0, db.1" blurb www.0
    over ssh
    [ -z "$(verb url db.0)" ]
}

@test "run passes everything through" {
    head -c 1000000 /dev/urandom >"$BATS_TEST_TMPDIR/bytes"
    for platform in dotcloud ssh; do
        over "$platform"
        verb run db.0 cat <"$BATS_TEST_TMPDIR/bytes" | cmp - "$BATS_TEST_TMPDIR/bytes"
        for code in 0 1 43 255; do
            status=0
            verb run db.1 "exit $code" || status=$?
            [ "$status" = "$code" ]
        done
        verb run db.1 'echo "out  $((1 + 1))"; echo '\''err "$HOME"'\'' >&2' >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null
        [ "$(<"$BATS_TEST_TMPDIR/out")" = "out  2" ]
        [ "$(<"$BATS_TEST_TMPDIR/err")" = 'err "$HOME"' ]
        [ "$(verb run db.1 'echo $HOME; type -P pgmahout')" = "$DOTCLOUD_HOME/apps/shop/db.1/home"$'\n'"$DOTCLOUD_HOME/apps/shop/db.1/home/bin/pgmahout" ]
        [ "$(verb run db.1 $'echo one\necho two # three')" = $'one\ntwo' ]
        verb run db.1 'pgmahout info --json' | jq -e .role
        # A terminal only when both ends are one. In a container an sshd without root may have none to give, so this
        # ssh only says how it was called.
        mkdir -p "$scene/stub"
        printf '#!/bin/sh\necho "ssh $1"\n' >"$scene/stub/ssh"
        chmod 755 "$scene/stub/ssh"
        [ "$(PATH=$scene/stub:$PATH verb run db.1 true)" = "ssh -T" ]
        printf 'cd "$scene/here" && PATH=$scene/stub:$PATH "$checkout/scripts/platforms/%s/run" db.1 true\n' "$platform" >"$scene/terminal"
        [[ $(script -qec 'bash "$scene/terminal"' /dev/null </dev/null) == "ssh -t"* ]]
        [[ $(script -qec 'bash "$scene/terminal" | cat' /dev/null </dev/null) == "ssh -T"* ]]
    done
    [ "$(verb run db.1 'echo "$PGMAHOUT_INSTANCE $PGMAHOUT_APP $GREETING"')" = 'db.1 shop it'\''s $HOME' ]
}

@test "ssh: the hosts file is read once in a command of herd, and again when it has changed" {
    over ssh
    export HERD_KEPT=$BATS_TEST_TMPDIR/kept
    mkdir "$HERD_KEPT" "$BATS_TEST_TMPDIR/bin"
    verb instances >"$BATS_TEST_TMPDIR/first"
    # From here on it cannot be read
    printf '#!/bin/sh\nexit 1\n' >"$BATS_TEST_TMPDIR/bin/yq"
    chmod 755 "$BATS_TEST_TMPDIR/bin/yq"
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    diff "$BATS_TEST_TMPDIR/first" <(verb instances)
    [ "$(verb app)" = shop ]
    [ "$(verb run db.1 'echo "$PGMAHOUT_INSTANCE $GREETING"')" = 'db.1 it'\''s $HOME' ]
    fails 1 "databases: there is no db.9, only db.0, db.1" run db.9 true
    [ "$(find "$HERD_KEPT" -mindepth 1 -maxdepth 1 -printf '%m ')" = "700 " ]
    touch "$scene/here/herd.yml"
    fails 2 "herd.yml: invalid YAML at" instances
}

@test "an instance that is not there, and one that cannot be reached" {
    for platform in dotcloud ssh; do
        over "$platform"
        for name in blurb url destroy; do
            fails 1 db.7 "$name" db.7
        done
        fails 1 db.7 run db.7 true
    done
    over dotcloud
    # Nothing but an instance of a database can be destroyed
    fails 2 "'db' is not the name of an instance" destroy db
    fails 2 "'' is not the name of an instance" destroy ''
    fails 1 "www.0 is not a database instance" destroy www.0
    dotcloud down db.1
    fails 255 "db.1 does not run; start it with dotcloud up" run db.1 true
    verb instances | grep -qP '^db\.1\tstopped\t'
    over ssh
    fails 255 "Connection refused" run db.1 true
    fails 4 "db.1 could not be reached by ssh" destroy db.1
    fails 4 "db.1 could not be reached by ssh" provision small
    # Both know of it all the same
    for platform in dotcloud ssh; do
        verb instances | grep -qP "^db\.1\t.*:$(port db.1 pgsql)$"
        verb blurb db.1 | grep -q 'name: pgsql'
    done
    dotcloud up db.1
}

@test "config: set and get whatever it is, unset, releases" {
    value=$'a \'b\' "c" $HOME `id` %s \\n \\ ;\n second line é 象 🐘 = end'
    for platform in dotcloud ssh; do
        over "$platform"
        before=$(verb config-list | jq .release)
        [ "$(jq -n --arg v "$value" '{GREETING: $v, EMPTY: "", trailing: "line\n\n"}' | verb config-set)" = $((before + 1)) ]
        [ "$(verb config-get GREETING)" = "$value" ]
        [ "$(verb config-get EMPTY | wc -c)" = 1 ]
        verb config-list | jq -e --arg v "$value" --argjson r $((before + 1)) '.release == $r and .config.GREETING == $v and .config.EMPTY == "" and .config.trailing == "line\n\n"'
        # Nothing is set, and nothing else is said
        fails 1 "" config-get NOSUCH
        [ ! -s "$BATS_TEST_TMPDIR/err" ]
        [ "$(jq -n '{GREETING: "good morning"}' | HERD_WHAT="Say hello" verb config-set)" = $((before + 2)) ]
        [ "$(verb config-unset GREETING EMPTY)" = $((before + 3)) ]
        [ "$(HERD_WHAT="Tidy up" verb config-unset trailing NOSUCH)" = $((before + 4)) ]
        verb releases | jq -e --argjson r "$before" '[.[:4][] | [.release - $r, .what]]
            == [[4, "Tidy up"], [3, "Unset GREETING, EMPTY"], [2, "Say hello"], [1, "Set GREETING, EMPTY, trailing"]]
            and all(.[:4][].at; fromdate > now - 600 and fromdate < now + 60)'
        # No change is no release
        [ "$(verb config-set <<<'{}')" = $((before + 4)) ]
        kept=$(verb config-list)
        for bad in '' '{' '[]' '{"A": 1}' '{"A": null}' '{"A B": "x"}' '{"A": "x"} {"B": "y"}' '{"=": "x"}'; do
            fails 2 "stdin must be one JSON object of names to strings" config-set <<<"$bad"
        done
        fails 2 "a value holds a NUL" config-set <<<'{"B": "y", "A": "x\u0000y"}'
        fails 2 "stdin is not UTF-8" config-set < <(printf '{"A": "\377"}')
        [ "$(verb config-list)" = "$kept" ]
    done
}

@test "two changes at once are both there" {
    for platform in dotcloud ssh; do
        over "$platform"
        before=$(verb config-list | jq .release)
        pids=()
        for n in 1 2 3 4; do
            verb config-set <<<"{\"N$n\": \"$n\"}" >"$BATS_TEST_TMPDIR/release.$n" 2>/dev/null 3>&- &
            pids+=($!)
        done
        for pid in "${pids[@]}"; do wait "$pid"; done
        [ "$(sort -n "$BATS_TEST_TMPDIR"/release.*)" = "$(seq $((before + 1)) $((before + 4)))" ]
        [ "$(verb config-list | jq -c '.config | [.N1, .N2, .N3, .N4]')" = '["1","2","3","4"]' ]
        verb config-unset N1 N2 N3 N4
    done
}

@test "config-set restarts nothing, and no process list shows what it sets" {
    secret=s3cret$RANDOM$RANDOM$RANDOM
    printf %s "$secret" >"$scene/secret"
    cat >"$scene/watch" <<'PYTHON'
import os, sys
secret = open(sys.argv[1], "rb").read()
seen = open(sys.argv[2], "wb", 0)
print("watching", flush=True)
while not os.path.exists(sys.argv[3]):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if secret in line:
            seen.write(line.replace(b"\0", b" ") + b"\n")
PYTHON
    before=$(pids_of www.0 && pids_of db.0 && pids_of db.1)
    watch() {
        rm -f "$scene/stop" "$scene/watching"
        python3 "$scene/watch" "$scene/secret" "$scene/seen" "$scene/stop" >"$scene/watching" 3>&- &
        watcher=$!
        eventually grep -q watching "$scene/watching"
    }
    # The watcher sees what is there to be seen
    watch
    bash -c 'sleep 0.3; :' bash "$secret"
    touch "$scene/stop" && wait "$watcher"
    grep -q "$secret" "$scene/seen"
    for platform in dotcloud ssh; do
        over "$platform"
        watch
        jq -n --rawfile s "$scene/secret" --arg port "$(port db.0 pgsql)" '{TOKEN: $s, DATABASE_URL: "postgres://dotcloud:\($s)@127.0.0.1:\($port)/shop"}' >"$BATS_TEST_TMPDIR/change"
        verb config-set <"$BATS_TEST_TMPDIR/change"
        verb config-list >/dev/null
        [ "$(verb config-get TOKEN)" = "$secret" ]
        verb blurb db.0 >/dev/null
        verb url db.0 >/dev/null
        touch "$scene/stop" && wait "$watcher"
        sort -u "$scene/seen" | head -n 5
        [ ! -s "$scene/seen" ]
        run verb releases
        [[ $output != *"$secret"* ]]
    done
    [ "$(pids_of www.0 && pids_of db.0 && pids_of db.1)" = "$before" ]
    for platform in dotcloud ssh; do verb config-unset TOKEN DATABASE_URL; done
}

@test "processes, scale and restart: never a database" {
    for platform in dotcloud ssh; do
        over "$platform"
        verb processes | grep -qxP 'www\t1\trunning'
        [ "$(verb processes | wc -l)" = 1 ]
        databases=$(pids_of db.0 && pids_of db.1)
        verb scale www=2 >"$BATS_TEST_TMPDIR/out"
        [ ! -s "$BATS_TEST_TMPDIR/out" ]
        verb processes | grep -qxP 'www\t2\trunning'
        # The same call twice
        verb scale www=2
        verb scale www=1
        verb processes | grep -qxP 'www\t1\trunning'
        before=$(pids_of www.0)
        for arguments in www ""; do
            verb restart $arguments >"$BATS_TEST_TMPDIR/out"
            [ ! -s "$BATS_TEST_TMPDIR/out" ]
            after=$(pids_of www.0)
            [ "$(grep web <<<"$after")" != "$(grep web <<<"$before")" ]
            before=$after
        done
        fails 2 db restart db
        fails 2 db scale db=1
        fails 2 db restart www db
        [ "$(pids_of www.0)" = "$before" ]
        # None at all is a number too
        for _ in 1 2; do
            verb scale www=0
            verb processes | grep -qxP 'www\t0\tstopped'
            [ "$(dotcloud info www --json | jq -c .instances)" = "{}" ]
        done
        verb restart
        verb scale www=1
        verb processes | grep -qxP 'www\t1\trunning'
        [ "$(pids_of db.0 && pids_of db.1)" = "$databases" ]
    done
}

@test "oneoffs: what was started by hand on a process instance, never on a database" {
    over dotcloud
    [ -z "$(verb oneoffs)" ]
    dotcloud run www.0 $'sleep 4711;\tsleep 1' >/dev/null 2>&1 </dev/null 3>&- &
    dotcloud run db.0 'sleep 4711' >/dev/null 2>&1 </dev/null 3>&- &
    both() { [ "$(dotcloud ps --one-off --json | jq length)" = 2 ]; }
    eventually both
    [[ $(verb oneoffs) =~ ^www\.0$'\t'[0-9-]{10}T[0-9:]{8}Z$'\t'"sleep 4711; sleep 1"$ ]]
    # Both instances are of the same account
    dotcloud run www.0 "pkill -f '^sleep 4711'"
    none() { [ -z "$(verb oneoffs)" ]; }
    eventually none
    over ssh
    fails 69 "this platform does not know what was started by hand" oneoffs
}

@test "dotcloud: a CLI that can neither is not asked to" {
    over dotcloud
    mkdir -p "$scene/old"
    printf '#!/bin/bash\nif [[ " $* " == *" --help "* ]]; then "$checkout/scripts/dotcloud" "$@" | sed "s/--no-start//; s/--one-off//"; else exec "$checkout/scripts/dotcloud" -A shop "$@"; fi\n' >"$scene/old/dotcloud"
    chmod 755 "$scene/old/dotcloud"
    verb() {
        (cd "$scene/here" && PATH=$scene/old:$PATH "$checkout/scripts/platforms/$platform/$1" "${@:2}")
    }
    before=$(pids_of www.0)
    fails 69 "this dotcloud cannot scale a service to 0" scale www=0
    fails 69 "this dotcloud does not say what was started by hand" oneoffs
    [ "$(pids_of www.0)" = "$before" ]
    verb maintenance on
    fails 3 "shop is in maintenance: its processes are stopped; turn maintenance off first" scale www=2
    verb maintenance off
    verb processes | grep -qxP 'www\t1\trunning'
}

@test "in maintenance the processes are stopped and stay so; databases run" {
    for platform in dotcloud ssh; do
        over "$platform"
        databases=$(pids_of db.0 && pids_of db.1)
        [ "$(verb maintenance)" = off ]
        for _ in 1 2; do
            [ "$(verb maintenance on)" = on ]
            [ "$(verb maintenance)" = on ]
            verb processes | grep -qxP 'www\t1\tstopped'
            dotcloud ps www --json | jq -e 'all(.state == "STOPPED")'
        done
        verb restart
        verb restart www
        verb config-set <<<'{"DURING": "maintenance"}'
        # What is scaled meanwhile starts when it is over, and not before
        for count in 2 0 2; do
            verb scale "www=$count" >"$BATS_TEST_TMPDIR/out"
            [ ! -s "$BATS_TEST_TMPDIR/out" ]
            verb processes | grep -qxP "www\t$count\tstopped"
            dotcloud ps www --json | jq -e 'all(.state == "STOPPED")'
        done
        [ "$(pids_of db.0 && pids_of db.1)" = "$databases" ]
        for _ in 1 2; do
            [ "$(verb maintenance off)" = off ]
            [ "$(verb maintenance)" = off ]
            verb processes | grep -qxP 'www\t2\trunning'
            dotcloud info www --json | jq -e '[.instances[].state] == ["running", "running"]'
        done
        verb scale www=1
        [ "$(pids_of db.0 && pids_of db.1)" = "$databases" ]
        verb releases | jq -e '[.[].what] | index("Maintenance on") > index("Maintenance off")'
        verb config-unset DURING
    done
    [ "$(over dotcloud >/dev/null && verb config-list | jq -c .config)" = "{}" ]
}

@test "ssh: in maintenance only the count is remembered" {
    over ssh
    sed -i 's/scale: .*/scale: echo "scale $COUNT" >>calls/; s/start: .*/start: echo start >>calls/; s/stop: .*/stop: echo stop >>calls/' "$scene/here/herd.yml"
    file=$scene/here/calls
    verb maintenance on
    # Back to what it was: nothing to do
    verb scale www=0
    verb scale www=1
    verb maintenance off
    [ "$(<"$file")" = $'stop\nstart' ]
    rm "$file"
    verb maintenance on
    verb scale www=3
    verb maintenance off
    verb maintenance off
    [ "$(<"$file")" = $'stop\nscale 3\nstart\nstart' ]
    rm "$file"
    # What is to have no process is not started
    verb maintenance on
    verb scale www=0
    verb maintenance off
    [ "$(<"$file")" = $'stop\nscale 0' ]
    verb processes | grep -qxP 'www\t0\tstopped'
    rm "$file"
    # One that failed is tried again
    verb maintenance on
    verb scale www=2
    sed -i 's/scale: .*/scale: exit 9/' "$scene/here/herd.yml"
    fails 1 "the scale: command of www ended with 9" maintenance off
    sed -i 's/scale: .*/scale: echo "scale $COUNT" >>calls/' "$scene/here/herd.yml"
    verb maintenance off
    verb scale www=1
    [ "$(<"$file")" = $'stop\nscale 2\nstart\nscale 1' ]
    write_hosts
}

@test "provision gives an instance that belongs to nobody, and destroy ends it" {
    for platform in dotcloud ssh; do
        over "$platform"
        new=$(verb provision small)
        [[ $new =~ ^db\.[0-9]+$ && $new != db.0 ]]
        verb instances | cut -f 1 | grep -qx "$new"
        verb run "$new" 'pgmahout info --json' | jq -e .role
        [ "$platform" != dotcloud ] || [ "$new" = db.2 ]
        [ "$platform" != ssh ] || [ "$(verb run db.1 "cat made")" = "small of shop" ]
        verb destroy "$new" >"$BATS_TEST_TMPDIR/out"
        [ ! -s "$BATS_TEST_TMPDIR/out" ]
    done
    over dotcloud
    [ "$(verb instances | cut -f 1)" = $'db.0\ndb.1' ]
    HERD_DATABASE_SERVICE=nosuch fails 1 "no such service or instance: nosuch" provision small
    DOTCLOUD_PORTS=$(port db.0 ssh)-$(port db.0 ssh) fails 1 "is free; widen DOTCLOUD_PORTS" provision small
    [ "$(verb instances | cut -f 1)" = $'db.0\ndb.1' ]
    # One in the middle goes, and nobody else changes
    [ "$(verb provision small)" = db.2 ]
    verb destroy db.1
    [ "$(verb instances | cut -f 1)" = $'db.0\ndb.2' ]
    [ "$(verb provision small)" = db.1 ]
    verb destroy db.2
    write_hosts
}

@test "ssh: a spare database is given once, and none that is attached" {
    over ssh
    [ "$(verb provision small)" = db.1 ]
    # Not attached yet, but somebody has it
    fails 1 "databases: none is spare, without an attachment and not given away in the last quarter of an hour; add one with spare: true" provision small
    verb destroy db.1
    jq -n --arg port "$(port db.1 pgsql)" '{ANYTHING: "postgres://x:y@127.0.0.1:\($port)/z"}' | verb config-set
    fails 1 "none is spare" provision small
    verb config-unset ANYTHING
    fails 69 "db.0: it has no destroy: command, so this platform cannot do it; end the server by hand" destroy db.0
    # What could not be made is free again
    sed -i 's/provision: .*/provision: "echo no room >\&2; exit 3"/' "$scene/here/herd.yml"
    fails 1 "the provision: command of db.1 ended with 3" provision small
    grep -q 'no room' "$BATS_TEST_TMPDIR/err"
    sed -i '/provision:/d' "$scene/here/herd.yml"
    [ "$(verb provision small)" = db.1 ]
    dotcloud run db.1 touch made
    verb destroy db.1
    write_hosts
}

@test "ssh: the password that an attachment has counts" {
    over ssh
    at=127.0.0.1:$(port db.0 pgsql)
    sed -i "0,/sql: .*/s//sql: postgres:\/\/dotcloud:old@$at\n    url: postgres:\/\/shop:first@$at\/shop?sslmode=prefer/" "$scene/here/herd.yml"
    verb blurb db.0 | grep -qxF "    url: \"postgres://dotcloud:old@$at\""
    [ "$(verb url db.0)" = "postgres://shop:first@$at/shop?sslmode=prefer" ]
    jq -n --arg at "$at" '{HEROKU_POSTGRESQL_RED_URL: "postgres://dotcloud:n%40w@\($at)/shop", DATABASE_URL: "postgres://shop:second@\($at)/shop",
        OTHER_URL: "postgres://dotcloud:no@\($at)/shop", HEROKU_POSTGRESQL_BLUE_URL: "postgres://dotcloud:no@127.0.0.1:1/shop"}' | verb config-set
    verb blurb db.0 | grep -qxF "    url: \"postgres://dotcloud:n%40w@$at\""
    [ "$(verb url db.0)" = "postgres://shop:second@$at/shop?sslmode=prefer" ]
    verb config-unset HEROKU_POSTGRESQL_RED_URL DATABASE_URL OTHER_URL HEROKU_POSTGRESQL_BLUE_URL
    write_hosts
}

@test "ssh: what processes cannot do is 69, and their commands see the config" {
    over ssh
    verb config-set <<<'{"TOKEN": "a \"b\"\nc", "command": "no", "name": "no", "PATH": "/nowhere", "UID": "7", "BASH": "no"}'
    cat >>"$scene/here/herd.yml" <<'YAML'
  worker:
    restart: 'printf "%s|" "$TOKEN" "$command" "$PATH" "$PWD" >seen; { read -r line || echo "no input"; } >>seen'
    scale: 'echo too many; exit 9'
YAML
    verb restart worker
    [ "$(<"$scene/here/seen")" = $'a "b"\nc|no|/nowhere|'"$scene/here|no input" ]
    fails 1 "the scale: command of worker ended with 9" scale worker=3
    verb config-unset TOKEN command name PATH UID BASH
    verb processes | grep -qxP 'worker\t1\tunknown'
    fails 69 "processes: worker: it has no stop: command, so this platform cannot do maintenance" maintenance on
    [ "$(verb maintenance)" = off ]
    sed -i '/worker:/,$d' "$scene/here/herd.yml"
    printf '  worker: {count: 0}\n' >>"$scene/here/herd.yml"
    before=$(pids_of www.0)
    fails 69 "processes: worker: it has no restart: command, so this platform cannot do restart" restart
    fails 69 "processes: worker: it has no scale: command" scale www=2 worker=2
    [ "$(pids_of www.0)" = "$before" ]
    verb processes | grep -qxP 'worker\t0\tstopped'
    sed -i '/^processes:/,$d' "$scene/here/herd.yml"
    [ -z "$(verb processes)" ]
    verb restart
    fails 69 "processes: there are none, so this platform cannot do maintenance" maintenance on
    write_hosts
}

@test "ssh: a host whose key is another one is not trusted" {
    over ssh
    ssh-keygen -q -t ed25519 -N "" -f "$scene/other"
    sed -i "s|ssh-ed25519 .*|$(<"$scene/other.pub")|" "$scene/here/known hosts"
    fails 255 "Host key verification failed." run db.0 true
    : >"$scene/here/known hosts"
    fails 255 "Host key verification failed." run db.0 true
    [ ! -s "$scene/here/known hosts" ]
    rm "$scene/here/known hosts"
    fails 1 "known hosts: this file cannot be read; look at known_hosts: in " run db.0 true
    write_hosts
}

@test "ssh: a bad hosts file is one line that names the file and the key" {
    over ssh
    file=$scene/here/herd.yml
    good=$(<"$file")
    password=$(dotcloud run db.0 cat password)
    bad() {
        local message=$1
        shift
        yq -y "$@" >"$file" <<<"$good"
        fails 2 "$file: $message" instances
        [ "$(wc -l <"$BATS_TEST_TMPDIR/err")" = 1 ]
        run grep -F "$password" "$BATS_TEST_TMPDIR/err"
        [ "$status" = 1 ]
    }
    bad 'application: it must be a name' 'del(.application)'
    bad 'application: it must be a name' '.application = "a b"'
    bad '"nosuch": there is no such key; it can be application, config, ssh, databases, processes' '.nosuch = 1'
    bad 'config: it must be a text' '.config = []'
    bad 'ssh: it must be a map' '.ssh = "x"'
    bad 'ssh: "user": there is no such key' '.ssh.user = "x"'
    bad 'ssh: identity: it must be a text' '.ssh.identity = 7'
    bad 'databases: it must be a map' 'del(.databases)'
    bad 'databases: it must be a map' '.databases = []'
    bad 'databases: "a b": a name is' '.databases["a b"] = {}'
    bad 'databases: db.0: it must be a map' '.databases["db.0"] = null'
    bad 'databases: db.0: "sqll": there is no such key' '.databases["db.0"].sqll = "x"'
    bad 'databases: db.0: ssh: it must be a URL such as' 'del(.databases["db.0"].ssh)'
    bad 'databases: db.0: ssh: it must be a URL such as' '.databases["db.0"].ssh = "db1.example.com"'
    bad 'databases: db.0: ssh: it must be a URL such as' '.databases["db.0"].ssh = "ssh://-oProxyCommand=touch@-h"'
    bad 'databases: db.0: ssh: ssh is given no password' '.databases["db.0"].ssh = "ssh://a:b@c"'
    bad 'databases: db.0: sql: it must be a URL such as' '.databases["db.0"].sql = "postgres://db1:5432"'
    bad 'databases: db.0: sql: it must be a URL such as' '.databases["db.0"].sql = "postgres://a:b@b@db1:5432"'
    bad 'databases: db.0: sql: it must be a URL such as' '.databases["db.0"].sql = "postgres://a:b@db1:99999"'
    bad 'databases: db.0: url: it must be a URL such as' '.databases["db.0"].url = null'
    bad 'databases: db.0: url: it is at db9:5432, sql at 127.0.0.1:' '.databases["db.0"].url = "postgres://a:b@DB9/shop"'
    bad 'databases: db.0 and db.1 are both at ' '.databases["db.1"].sql = .databases["db.0"].sql'
    bad 'databases: db.0: spare: it must be true or false' '.databases["db.0"].spare = "maybe"'
    bad 'databases: db.0: environment: "a b" is not' '.databases["db.0"].environment = {"a b": "c"}'
    bad 'databases: db.0: environment: A: it must be a plain value' '.databases["db.0"].environment = {A: []}'
    bad 'databases: db.0: provision: it must be a text' '.databases["db.0"].provision = true'
    bad 'processes: it must be a map' '.processes = []'
    bad 'processes: www: it must be a map' '.processes.www = "x"'
    bad 'processes: www: "stopp": there is no such key' '.processes.www.stopp = "x"'
    bad 'processes: www: count: it must be a number' '.processes.www.count = "x"'
    bad 'processes: www: stop: it must be a text' '.processes.www.stop = ""'
    printf 'databases: [\n' >"$file"
    fails 2 "$file: invalid YAML at line 2, column 1" instances
    : >"$file"
    fails 2 "$file: it must be one map" instances
    printf 'a: 1\n---\nb: 1\n' >"$file"
    fails 2 "$file: it must be one map" instances
    printf '%s\n' "$good" >"$file"
    chmod 640 "$file"
    fails 1 "$file: it holds passwords, and others may read it (mode 640); run: chmod 600 " instances
    rm "$file"
    fails 2 "herd.yml: there is no such file; write it as scripts/platforms/ssh/README.md shows, or name another in HERD_HOSTS" instances
    HERD_HOSTS="$scene/no where.yml" fails 2 "$scene/no where.yml: there is no such file" app
    # Without a password anybody may read it
    yq -y '.databases[] |= (.sql |= sub(":[^:@]*@"; "@"))' <<<"$good" >"$file"
    chmod 644 "$file"
    [ "$(verb app)" = shop ]
    write_hosts
}

@test "ssh: the config file is private, whole, and not anybody's JSON" {
    over ssh
    file=$scene/here/shop.config.json
    verb config-set <<<'{"KEPT": "yes"}'
    [ "$(stat -c %a "$file")" = 600 ]
    for mode in 640 604; do
        chmod "$mode" "$file"
        message="$file: it holds the app's secrets, and others may read it (mode $mode); run: chmod 600 "
        fails 1 "$message" config-list
        fails 1 "$message" config-get KEPT
        fails 1 "$message" config-unset KEPT
        fails 1 "$message" maintenance
        fails 1 "$message" blurb db.0
    done
    chmod 600 "$file"
    [ "$(verb config-get KEPT)" = yes ]
    cp -p "$file" "$scene/kept.json"
    for bad in '' '{' '[]' '{"config": {"A": 1}}' '{} {}'; do
        printf '%s' "$bad" >"$file"
        fails 1 "$file: it is not the JSON that herd wrote; restore it, or repair it by hand" config-set <<<'{"A": "b"}'
        [ "$(<"$file")" = "$bad" ]
    done
    cp -p "$scene/kept.json" "$file"
    # A kill at any instant leaves the old one or the new one
    for n in {1..12}; do
        (cd "$scene/here" && exec "$checkout/scripts/platforms/ssh/config-set") <<<"{\"N\": \"$n\"}" >/dev/null 2>&1 3>&- &
        sleep "0.$((RANDOM % 30 + 10))"
        kill -KILL $! 2>/dev/null || true
        wait $! 2>/dev/null || true
        jq -e '.config.KEPT == "yes" and (.releases[-1].release == .release)' "$file" >/dev/null
    done
    # The lock is held no longer than that
    exec 7<"$scene/here"
    flock 7
    HERD_LOCK_TIMEOUT=1 fails 1 "$file: another herd command changes it; try again when it is done" config-set <<<'{"A": "b"}' 7<&-
    exec 7<&-
    # Through a link, and in another place
    mkdir "$scene/elsewhere"
    mv "$file" "$scene/elsewhere/real.json"
    ln -s ../elsewhere/real.json "$file"
    verb config-set <<<'{"LINKED": "yes"}'
    [ -L "$file" ]
    [ "$(jq -r .config.LINKED "$scene/elsewhere/real.json")" = yes ]
    sed -i 's|^application: shop|&\nconfig: ../nowhere/x.json|' "$scene/here/herd.yml"
    [ "$(verb config-list)" = '{"release":0,"config":{}}' ]
    fails 1 "nowhere: there is no such directory; name another in config: of " config-set <<<'{"A": "b"}'
    write_hosts
}
