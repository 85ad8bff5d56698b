# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd pg:migrate with a real app on the local platform: the whole way and back, what is refused, Ctrl-C at each step, and
# a platform that fails. What a kill leaves is in migrate_killed.bats.

load migration

setup_file() {
    set_migration_scene
}

teardown_file() {
    strike_scene
}

# The calls that change something, as the last migration made them
changes_made() {
    grep -vE "${looks%\$}" "$cut/calls" | awk '{ print $1 }'
}

@test "the app writes from all its processes, and the scene is as the tests believe" {
    as_before
    [ "$(psql_on db.0 "SELECT count(DISTINCT process) FROM journal")" = 3 ]
    before=$(acknowledged | wc -l)
    # What is acknowledged survives the instances
    herd ps:scale www=0 worker=0
    [ "$(acknowledged | wc -l)" -ge "$before" ]
    nothing_is_missing_in db.0
    herd ps:scale www=2 worker=1
    as_before
}

@test "a dry run says what it would do, and does nothing" {
    plan none 0 before true
    releases=$(release)
    to_silver --dry-run
    [ "$status" = 0 ]
    [ -z "$(changes_made)" ]
    [ "$(release)" = "$releases" ]
    as_before
}

@test "a rehearsal takes nothing down, tells the window, and cleans up" {
    acknowledged >"$BATS_TEST_TMPDIR/first"
    plan none 0 before true
    # The app must not notice it: no process is another one than before
    pids() { dotcloud ps --json | jq -c '[.[] | select(.instance | startswith("db") | not) | .detail | split(",")[0]]'; }
    before=$(pids)
    to_silver --rehearse
    [ "$status" = 0 ]
    [[ "$out$err" == *"down for about"* ]]
    [ "$(pids)" = "$before" ]
    run grep -E '^(maintenance:o|scale|run:(lock|quiesce|finish|place) )' "$cut/calls"
    [ "$status" = 1 ]
    as_before
}

@test "the whole way, and back with what would be lost named" {
    releases=$(release)
    record --from DATABASE_URL --to SILVER
    moved
    # In these steps and no others; migrate_killed.bats kills it at each
    diff - <(changes_made) <<'END'
run:lock
maintenance:on
scale:0
run:quiesce
run:fill
run:compare
run:place
config-set
scale:up
maintenance:off
run:finish
END
    # One release has bound it anew; maintenance has its own two here
    dotcloud releases --json | jq -e --argjson r "$releases" '[.[] | select(.release > $r) | .what] | map(select(startswith("Migrate to "))) | length == 1'
    [ "$(release)" = $((releases + 3)) ]
    # The old database is there, complete up to the last acknowledged write, and takes none
    before=$(acknowledged "$old_at" | wc -l)
    [ "$(psql_on db.0 "SELECT count(*) FROM journal")" -ge "$before" ]
    ends 1 "read-only" psql_on db.0 "INSERT INTO journal VALUES ('x', 1, now())"
    [ "$(find "$XDG_STATE_HOME/pgmahout/migrations/shop" -name '*.json' -printf '%m\n' | sort -u)" = 600 ]
    migrate --status
    [ "$status" = 0 ]
    migrate --status --json
    jq -e 'type == "object" or type == "array"' <<<"$out"
    # From the old one nobody can move again
    migrate --from READ_URL --to SILVER
    [ "$status" != 0 ]
    # Going back would lose what was written since
    eventually app_writes_to "$new_at"
    migrate --rollback
    [ "$status" = 3 ]
    [[ $err == *journal* && $err == *"--confirm shop"* ]]
    moved
    go_back
    # Nothing is left to go back from
    migrate --rollback --confirm shop
    [ "$status" != 0 ]
    migrate --resume
    [ "$status" != 0 ]
    as_before
}

@test "a new database: added, attached, removed again with the way back" {
    plan none 0 before true
    migrate --from DATABASE_URL --as jade
    [ "$status" = 0 ]
    [ "$(platform instances | cut -f 1)" = $'db.0\ndb.1\ndb.2' ]
    url=$(herd config:get HEROKU_POSTGRESQL_JADE_URL)
    at=${url##*@}
    [ "$(herd config:get DATABASE_URL)" = "$url" ]
    eventually app_writes_to "$at"
    nothing_is_missing_in db.2
    migrate --rollback --confirm shop
    [ "$status" = 0 ]
    give_up_writes_of "$at"
    # The new database stays until somebody removes it
    [ "$(herd config:get HEROKU_POSTGRESQL_JADE_URL)" = "$url" ]
    herd addons:remove JADE --confirm shop
    as_before
}

# go_back_from_new: the new database, which the app uses by now, is left and removed
go_back_from_new() {
    at=$(herd config:get HEROKU_POSTGRESQL_JADE_URL | sed 's/.*@//')
    eventually app_writes_to "$at"
    nothing_is_missing_in "$(platform instances | cut -f 1 | tail -n 1)"
    [ "$(platform instances | wc -l)" = 3 ] || return 1
    migrate --rollback --confirm shop
    [ "$status" = 0 ] || return 1
    give_up_writes_of "$at"
    herd addons:remove JADE --confirm shop
    as_before
}

@test "killed while a new database is made and attached: no instance is forgotten" {
    local chains=("before in") what whats=("config-set 1 in")
    [[ -z ${EVERY_CASE:-} ]] || { chains+=(after) && whats+=("provision 1 in" "provision 1 after"); }
    for when in "${chains[@]}"; do
        printf 'provision 1\nconfig-set 1\n' >"$scene/recorded"
        # shellcheck disable=SC2086 # words
        chain "--from DATABASE_URL --as jade" "--resume" $when
        go_back_from_new
    done
    for what in "${whats[@]}"; do
        echo "# ---- $what, --rollback"
        # shellcheck disable=SC2086 # words
        plan $what kill
        migrate --from DATABASE_URL --as jade
        [ "$status" = 137 ]
        happened
        plan none 0 before true
        migrate --rollback --confirm shop
        [ "$status" = 0 ]
        as_before
    done
}

# interrupted NAME NUMBER WHEN
interrupted() {
    plan "$1" "$2" "$3" interrupt
    to_silver
    happened || return 1
    case $1 in
        # From here on it only goes forward
        maintenance:off | run:finish)
            [ "$status" = 0 ] || [ "$status" = 5 ] || return 1
            # What it was about to do may be half done, and is said to be
            if [[ $status = 5 && $err == *--resume* ]]; then
                plan none 0 before true
                migrate --resume
                [ "$status" = 0 ] || return 1
            fi
            moved && go_back
            ;;
        *)
            [ "$status" = 5 ] && as_before
            ;;
    esac
}

@test "Ctrl-C at each step leaves the app as it was" {
    # As the whole way has them
    printf '%s 1\n' run:lock maintenance:on scale:0 run:quiesce run:fill run:compare run:place config-set scale:up \
        maintenance:off run:finish >"$scene/recorded"
    few="run:lock|run:fill|maintenance:off" each_case interrupted in
}

@test "Ctrl-C on a terminal" {
    plan run:fill 1 before 'touch "$here/marked"'
    run "$BATS_TEST_DIRNAME/fixtures/terminal" "$cut/marked" $'\x03' \
        bash -c 'cd "$scene/here" && exec "$checkout/scripts/herd" --platform "$cut" pg:migrate --from DATABASE_URL --to SILVER'
    echo "$output"
    [[ ${lines[-1]} == "5 "* ]]
    rm -f "$cut/marked"
    as_before
}

# fails_at STATUS TEXT NAME NUMBER WHEN BASH...: the migration ends so, and all is as it was
fails_at() {
    local want=$1 text=$2
    shift 2
    plan "$@"
    to_silver
    happened || return 1
    [[ $status == "$want" && $err == *"$text"* ]] || { echo "status $status, not $want; or not: $text" && return 1; }
    as_before
}

@test "a platform that fails: all is undone, and said" {
    # Halfway: one process type is scaled, the other is not
    fails_at 1 "no room for more" scale:0 1 instead '"$real" "$1"; echo "dotcloud: no room for more" >&2; return 1'
    fails_at 1 "no room for more" scale:up 1 instead '"$real" "$1"; echo "dotcloud: no room for more" >&2; return 1'
    fails_at 1 "stuck" maintenance:on 1 after 'echo "dotcloud: stuck" >&2; status=1'
    # Nothing was set; all was set, and its answer is lost
    fails_at 1 "the disk is full" config-set 1 instead 'echo "dotcloud: the disk is full" >&2; return 1'
    fails_at 1 "lost" config-set 1 after 'echo "dotcloud: lost" >&2; status=1'
    # Half of it was
    fails_at 1 "half" config-set 1 instead 'jq -c "to_entries[:1] | from_entries" | "$real" >/dev/null; echo "dotcloud: half" >&2; return 1'
    fails_at 1 "" scale:0 1 instead true
}

@test "the network to the target is cut in the transfer" {
    fails_at 4 "db.1" run:fill 1 instead 'timeout -s KILL 0.4 "$real" "$@" || true; echo "ssh: connection lost" >&2; return 255'
    fails_at 4 "db.1" run:compare 1 instead 'echo "ssh: connection lost" >&2; return 255'
    fails_at 4 "db.1" run:place 1 after 'status=255'
}

@test "a row that differs is found, and nothing was moved" {
    fails_at 1 "orders" run:compare 1 before '"$here/../dotcloud/run" db.1 "psql -qAtX -d \$(psql -AtXc \"SELECT datname FROM pg_database WHERE datname LIKE '\''%pgmahout_copy%'\''\") -c \"UPDATE orders SET price = price + 1 WHERE id = 4000\"" </dev/null >&2'
    fails_at 1 "visits" run:compare 1 before '"$here/../dotcloud/run" db.1 "psql -qAtX -d \$(psql -AtXc \"SELECT datname FROM pg_database WHERE datname LIKE '\''%pgmahout_copy%'\''\") -c \"DELETE FROM visits_2 WHERE page = '\''page 300'\''\"" </dev/null >&2'
}

@test "a second migration is refused, from this machine and from another" {
    plan run:fill 1 before hold
    (
        to_silver >"$BATS_TEST_TMPDIR/first" 2>&1
        echo "$status" >"$BATS_TEST_TMPDIR/first.status"
    ) 3>&- &
    first=$!
    eventually test -e "$cut/held"
    # This machine
    migrate --from DATABASE_URL
    [ "$status" = 3 ]
    # Another: it has no journal
    XDG_STATE_HOME="$scene/elsewhere" migrate --from DATABASE_URL
    [ "$status" = 3 ]
    [[ $err == *"@"* && $err == *"since 20"* && $err == *"--abandon"* ]]
    XDG_STATE_HOME="$scene/elsewhere" migrate --from DATABASE_URL --rehearse
    [ "$status" = 3 ]
    XDG_STATE_HOME="$scene/elsewhere" migrate --rollback
    [ "$status" != 0 ]
    touch "$cut/go"
    wait "$first"
    cat "$BATS_TEST_TMPDIR/first"
    [ "$(<"$BATS_TEST_TMPDIR/first.status")" = 0 ]
    moved
    go_back
}

@test "--abandon frees the old database of a migration whose machine is lost" {
    plan run:quiesce 1 after kill
    to_silver
    [ "$status" = 137 ]
    XDG_STATE_HOME="$scene/elsewhere" migrate --abandon --from DATABASE_URL
    [ "$status" = 3 ]
    [[ $err == *"--confirm shop"* ]]
    XDG_STATE_HOME="$scene/elsewhere" migrate --abandon --from DATABASE_URL --confirm shop
    [ "$status" = 0 ]
    is_free db.0
    # The machine was not lost after all
    migrate --rollback
    [ "$status" = 0 ]
    as_before
}

@test "clients that stay are named, or ended with --terminate" {
    dotcloud run db.0 "PGAPPNAME=report psql -qAtXc 'SELECT pg_sleep(120)'" >/dev/null 2>&1 </dev/null 3>&- &
    stays() { [ "$(psql_on db.0 "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'report'")" = 1 ]; }
    eventually stays
    plan none 0 before true
    to_silver --wait 1
    [ "$status" = 3 ]
    [[ $err == *report* ]]
    as_before
    stays
    to_silver --wait 1 --terminate
    [ "$status" = 0 ]
    [[ $err$out == *report* ]]
    moved
    go_back
}

@test "one-off processes are named" {
    dotcloud run worker.0 'sleep 4711; true' >/dev/null 2>&1 </dev/null 3>&- &
    runs() { [[ $(platform oneoffs) == *"sleep 4711"* ]]; }
    eventually runs
    to_silver --dry-run
    [[ $err$out == *"sleep 4711"* ]]
    dotcloud run worker.0 "pkill -f '^sleep 4711'"
    as_before
}

@test "refused before anything is touched" {
    before=$(release)
    migrate --from DATABASE_URL --to db.0
    [ "$status" = 2 ]
    psql_on db.1 "CREATE TABLE public.mine (n int)"
    to_silver
    [[ $status == 3 && $err == *"holds 1 table"* ]]
    psql_on db.1 "DROP TABLE public.mine"
    # The same version is no upgrade
    status=0
    (cd "$scene/here" && "$checkout/scripts/herd" --platform "$cut" pg:upgrade DATABASE_URL --to SILVER) 2>"$BATS_TEST_TMPDIR/err" </dev/null || status=$?
    cat "$BATS_TEST_TMPDIR/err"
    [ "$status" = 1 ]
    grep -q "is not newer than" "$BATS_TEST_TMPDIR/err"
    [ "$(release)" = "$before" ]
    as_before
}

@test "pg:copy: the data alone, compared; over what is there only when confirmed" {
    before=$(release)
    [[ $(herd pg:copy DATABASE_URL SILVER 2>"$BATS_TEST_TMPDIR/err") == "Copying HEROKU_POSTGRESQL_AMBER_URL to HEROKU_POSTGRESQL_SILVER_URL... done"* ]]
    cat "$BATS_TEST_TMPDIR/err"
    same_data
    [ "$(psql_on db.1 "SELECT count(*) > 0 FROM journal")" = t ]
    [ "$(psql_on db.1 "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgmahout_migration'")" = 0 ]
    psql_on db.1 "DELETE FROM orders WHERE id > 10"
    refuses 3 "--confirm shop" pg:copy DATABASE_URL SILVER
    [ "$(psql_on db.1 "SELECT count(*) FROM orders")" = 10 ]
    herd config:get DATABASE_URL >"$scene/here/url"
    herd pg:copy --url url SILVER --confirm shop --json | jq -e 'type == "object"'
    same_data
    rm "$scene/here/url"
    [ "$(release)" = "$before" ]
    empty_target
    as_before
}
