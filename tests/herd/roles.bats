# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2154
# Heroku's walk-through, and changes of roles under an app that writes all the time. The tests build on each other:
# one app lives from the first to the last.

load helper

setup_file() {
    set_herd_scene
    export HERD_APP=shop
    dotcloud create shop
    dotcloud push "$checkout" >&2
}

teardown_file() {
    strike_scene
}

# said COMMAND...: its stdout alone in $output, its stderr for whoever reads a failure
said() {
    status=0
    output=$("$@" 2>"$BATS_TEST_TMPDIR/stderr") || status=$?
    cat "$BATS_TEST_TMPDIR/stderr" >&2
}

# is LINES: exactly what was said
is() {
    [[ $output == "$1" ]] || {
        printf 'status %s; not as expected:\n%s\n--- but:\n%s\n' "$status" "$1" "$output"
        return 1
    }
}

# like LINES: each line as a pattern
like() {
    local expected actual i
    mapfile -t expected <<<"$1"
    mapfile -t actual <<<"$output"
    for i in "${!expected[@]}"; do
        # shellcheck disable=SC2053 # it is a pattern
        [[ ${actual[i]:-} == ${expected[i]} ]] || {
            printf 'line %s is not like\n%s\n--- but:\n%s\n' "$i" "${expected[i]}" "$output"
            return 1
        }
    done
}

sql() {
    dotcloud run "$1" psql -At <<<"$2"
}

role_of() {
    herd pg:info "$1" --json | jq -r '.databases[0] | "\(.info.role) of \(.info.following.primary // "nobody")"'
}

address_of() {
    herd pg:info "$1" --json | jq -r '.databases[0].address'
}

# --- Heroku's walk-through ---------------------------------------------------------

@test "the first database becomes DATABASE_URL, and the app that waited for it writes" {
    said herd addons:attach db.0
    is 'Attaching db.0 to shop... done, v2
Attached as HEROKU_POSTGRESQL_AMBER'
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_AMBER_URL)" ]
    said herd ps:restart
    is 'Restarting processes... done'
    eventually writes
}

# The app has written something within the last second
writes() {
    [[ -n $(dotcloud run www 'cat written' | awk -v now="$(date +%s)" '$2 > now - 1' | head -n 1) ]]
}

@test "addons:add --follow, pg:wait, pg:info" {
    said herd addons:add heroku-postgresql --follow HEROKU_POSTGRESQL_AMBER
    is 'Adding heroku-postgresql on shop... done, v3
Attached as HEROKU_POSTGRESQL_AQUA
Follower will become available for read-only queries when up-to-date
Use `herd pg:wait` to track status'
    said herd addons:add heroku-postgresql --track database_url
    [[ $output == *"Attached as HEROKU_POSTGRESQL_BLACK"* ]]
    said herd addons:add heroku-postgresql --follow amber --as blue
    [[ $output == *"Attached as HEROKU_POSTGRESQL_BLUE"* ]]
    said herd pg:wait
    is 'Waiting for database HEROKU_POSTGRESQL_AMBER_URL... available
Waiting for database HEROKU_POSTGRESQL_AQUA_URL... following
Waiting for database HEROKU_POSTGRESQL_BLACK_URL... following
Waiting for database HEROKU_POSTGRESQL_BLUE_URL... following'
    said herd pg:info amber black
    like '=== HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)
Status:      available
Role:        primary
Data Size:   * MB
PG Version:  15.*
Connections: * of 100
Fork/Follow: available
Followers:   HEROKU_POSTGRESQL_AQUA_URL*, HEROKU_POSTGRESQL_BLACK_URL*, HEROKU_POSTGRESQL_BLUE_URL*
Created:     20* UTC
Instance:    db.0 at 127.0.0.1:*

=== HEROKU_POSTGRESQL_BLACK_URL
Status:      following
Role:        standby
Data Size:   * MB
PG Version:  15.*
Connections: * of 100
Fork/Follow: available
Following:   HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)
Behind By:   *'
}

@test "a slow query is in logs --tail soon after its end" {
    (cd "$scene/here" && exec "$checkout/scripts/herd" logs --ps postgres --tail -n 0) >"$BATS_TEST_TMPDIR/tail" 2>&1 3>&- &
    tail=$!
    sleep 3
    sql db.0 "SELECT 'slow', pg_sleep(0.2)" >/dev/null
    ended=$(date +%s%N)
    until grep -q "SELECT 'slow'" "$BATS_TEST_TMPDIR/tail"; do
        (($(date +%s%N) - ended < 30000000000)) || break
        sleep 0.05
    done
    took=$((($(date +%s%N) - ended) / 1000000))
    kill "$tail"
    wait "$tail" || true
    cat "$BATS_TEST_TMPDIR/tail"
    echo "# seen $took ms after its end" >&3
    grep -qE "^20[0-9-]+T[0-9:.]+\+00:00 app\[postgres\.db\.0\]: \[[0-9]+\] LOG:  duration: [0-9.]+ ms .*SELECT 'slow', pg_sleep\(0\.2\)" "$BATS_TEST_TMPDIR/tail"
    # Nobody goes on reading on the instances
    eventually nobody_tails
}

nobody_tails() {
    ! processes_of_scene | grep -q "pgmahout logs"
}

@test "addons:add --fork: a copy of its own, while the source goes on" {
    sql db.0 "CREATE TABLE before_fork AS SELECT 1 AS one" >/dev/null
    said herd addons:add heroku-postgresql --fork DATABASE_URL --as silver
    like 'Adding heroku-postgresql on shop... done, v*
Attached as HEROKU_POSTGRESQL_SILVER
Database will become available after it completes forking
Use `herd pg:wait` to track status'
    said herd pg:wait silver
    is 'Waiting for database HEROKU_POSTGRESQL_SILVER_URL... available'
    [ "$(role_of silver)" = "primary of nobody" ]
    [ "$(herd pg:psql silver -c 'SELECT one FROM before_fork' -- -At)" = 1 ]
    herd pg:psql silver -c 'INSERT INTO before_fork VALUES (2)'
    [ "$(sql db.0 'SELECT count(*) FROM before_fork')" = 1 ]
    # Nothing of it is left on the source
    [ "$(sql db.0 "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%db_4%'")" = 0 ]
    eventually writes
}

@test "pg:unfollow wants the app's name, typed on a terminal" {
    herd pg:enslave silver --of amber --confirm shop
    herd pg:wait silver
    run herd_typed shopp pg:unfollow silver
    [ "$status" = 3 ]
    [[ $output == *"HEROKU_POSTGRESQL_SILVER_URL will become writable and no longer"* ]]
    [[ $output == *"follow HEROKU_POSTGRESQL_AMBER_URL on 127.0.0.1:"*"This cannot be undone."* ]]
    [[ $output == *'To proceed, type "shop" or re-run this command with --confirm shop'* ]]
    [[ $output == *"Confirmation did not match shop. Aborted"* ]]
    [ "$(role_of silver)" = "standby of $(address_of amber)" ]
    run herd_typed shop pg:unfollow silver
    [ "$status" = 0 ]
    # On a terminal a dot stands there for each two seconds that it took
    [[ $output =~ Unfollowing\.\.\.\ \.*done ]]
    [ "$(role_of silver)" = "primary of nobody" ]
    [ "$(sql db.0 "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%db_4%'")" = 0 ]
}

herd_typed() {
    (cd "$scene/here" && "$BATS_TEST_DIRNAME/fixtures/typed" "$1" "$checkout/scripts/herd" "${@:2}")
}

@test "pg:promote of what was unfollowed: DATABASE_URL, and the app goes over" {
    said herd pg:promote silver
    like 'Promoting HEROKU_POSTGRESQL_SILVER_URL to DATABASE_URL... done, v*
The old primary HEROKU_POSTGRESQL_AMBER_URL goes on, on its own'
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_SILVER_URL)" ]
    before=$(sql db.4 'SELECT max(number) FROM journal')
    eventually has_more_than "$before"
    # And back: the others still follow the one that it was
    said herd pg:promote amber
    [ "$status" = 0 ]
    said herd addons:remove silver --confirm shop
    like 'Removing HEROKU_POSTGRESQL_SILVER_URL from shop... done, v*'
    [[ $(herd addons) != *SILVER* ]]
    eventually writes
}

has_more_than() {
    (($(sql db.4 'SELECT max(number) FROM journal') > $1))
}

# --- an app that writes through all of it --------------------------------------------

# The longest time between two acknowledged writes since $1, in milliseconds
gap_since() {
    dotcloud run www 'cat written' | awk -v since="$1" '$2 >= since { if (last && $2 - last > gap) gap = $2 - last; last = $2 } END { printf "%d\n", gap * 1000 }'
}

# lost INSTANCE: how many of the acknowledged numbers it has not
lost() {
    dotcloud run www 'cut -d " " -f 1 written' | sort >"$BATS_TEST_TMPDIR/acknowledged"
    [ -s "$BATS_TEST_TMPDIR/acknowledged" ]
    sql "$1" 'SELECT number FROM journal' | sort >"$BATS_TEST_TMPDIR/there"
    comm -23 "$BATS_TEST_TMPDIR/acknowledged" "$BATS_TEST_TMPDIR/there" | wc -l
}

@test "pg:switchover: roles exchanged, not one acknowledged write lost, three followers behind the new primary" {
    # From here on one journal counts
    dotcloud run www 'supervisorctl -c supervisord.conf stop www; rm -f written failed'
    sql db.0 'TRUNCATE journal' >/dev/null
    dotcloud run www 'supervisorctl -c supervisord.conf start www'
    eventually writes
    said herd pg:switchover aqua --dry-run
    like 'HEROKU_POSTGRESQL_AMBER_URL would be stopped cleanly, and HEROKU_POSTGRESQL_AQUA_URL promoted when it has all that it wrote (* behind now)
DATABASE_URL would be HEROKU_POSTGRESQL_AQUA_URL, and the processes of shop restarted
These would follow it: HEROKU_POSTGRESQL_BLACK_URL HEROKU_POSTGRESQL_BLUE_URL HEROKU_POSTGRESQL_AMBER_URL'
    said herd pg:promote aqua -n
    like 'HEROKU_POSTGRESQL_AQUA_URL would be promoted when its primary db.0 is stopped, with all that it wrote
DATABASE_URL would be HEROKU_POSTGRESQL_AQUA_URL, and the processes of shop restarted
These would follow it: HEROKU_POSTGRESQL_BLACK_URL HEROKU_POSTGRESQL_BLUE_URL'
    [ "$(role_of aqua)" = "standby of $(address_of amber)" ]
    sleep 1
    since=$(date +%s)
    begin=$(date +%s%N)
    said herd pg:switchover aqua
    took=$((($(date +%s%N) - begin) / 1000000))
    [ "$status" = 0 ]
    [[ $output == *"HEROKU_POSTGRESQL_AQUA_URL is the primary, v"* ]]
    for name in AMBER BLACK BLUE; do
        [[ $output == *"HEROKU_POSTGRESQL_${name}_URL follows HEROKU_POSTGRESQL_AQUA_URL now (no data moved, "* ]]
    done
    eventually writes
    echo "# switchover: $took ms in all, no write acknowledged for $(gap_since "$since") ms" >&3
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_AQUA_URL)" ]
    new=$(address_of aqua)
    for name in amber black blue; do
        [ "$(role_of "$name")" = "standby of $new" ]
    done
    [ "$(lost db.1)" = 0 ]
    # The old one's slots of its followers are gone: they would keep its WAL for ever
    [ "$(sql db.0 'SELECT count(*) FROM pg_replication_slots')" = 0 ]
    said herd pg:switchover aqua
    [ "$status" = 1 ]
}

# crash DB: its server ends as in a crash, and supervisord is kept from starting it again. A stop that meets the new start
# is one that supervisord (4.2.5) never answers.
crash() {
    dotcloud run "$1" 'ctl() { timeout 5 supervisorctl -c supervisord.conf "$@"; }
        ctl signal KILL postgres
        for attempt in 1 2 3; do ctl stop postgres && exit; done'
}

@test "pg:promote after the primary's end: writable, the others follow, the old one stays down" {
    herd pg:wait
    eventually writes
    since=$(date +%s)
    crash db.1
    begin=$(date +%s%N)
    said herd pg:promote black
    took=$((($(date +%s%N) - begin) / 1000000))
    [ "$status" = 0 ]
    [[ $output == *"Promoting HEROKU_POSTGRESQL_BLACK_URL to DATABASE_URL... done, v"* ]]
    [[ $output == *"HEROKU_POSTGRESQL_AMBER_URL follows HEROKU_POSTGRESQL_BLACK_URL now (no data moved, "* ]]
    [[ $output == *"HEROKU_POSTGRESQL_BLUE_URL follows HEROKU_POSTGRESQL_BLACK_URL now (no data moved, "* ]]
    [[ $output == *"The old primary HEROKU_POSTGRESQL_AQUA_URL is stopped and stays down; herd pg:follow db.1 --of db.2 makes it a follower"* ]]
    eventually writes
    echo "# promote: $took ms in all, no write acknowledged for $(gap_since "$since") ms" >&3
    # It is kept down although everything on its machine is started anew
    dotcloud restart db.1 || true
    run herd pg:info aqua
    [[ $output == *"Status:      stopped, fenced: db.2 was promoted in place of db.1"* ]]
    run herd pg:wait aqua
    [ "$status" = 1 ]
    [[ $output == *"db.1 is stopped and stays down: db.2 was promoted in place of db.1"* ]]
    # What it alone had is lost only when somebody says so
    herd pg:follow aqua --of black --confirm shop
    [ "$(role_of aqua)" = "standby of $(address_of black)" ]
}

@test "a switchover whose promotion fails leaves everything as it was" {
    herd pg:wait
    before=$(herd config:get DATABASE_URL)
    # The new primary cannot be reached by SSH from the follower: --fence is refused before anything is stopped
    dotcloud run db.3 'mv .ssh/id_ed25519 .ssh/away'
    said herd pg:switchover blue
    dotcloud run db.3 'mv .ssh/away .ssh/id_ed25519'
    [ "$status" != 0 ]
    [[ $(cat "$BATS_TEST_TMPDIR/stderr") == *"HEROKU_POSTGRESQL_BLACK_URL is the primary as before, v"* ]]
    [ "$(herd config:get DATABASE_URL)" = "$before" ]
    [ "$(role_of black)" = "primary of nobody" ]
    [ "$(role_of blue)" = "standby of $(address_of black)" ]
    eventually writes
}

@test "a switchover whose new primary does not get the last of the WAL brings the old one back" {
    before=$(herd config:get DATABASE_URL)
    # Its WAL receiver is stopped: what the old primary writes last does not arrive, and after a while the old one ends
    # without having sent it
    sql db.2 "ALTER SYSTEM SET wal_sender_timeout = '3s'; SELECT pg_reload_conf()" >/dev/null
    dotcloud run db.3 'kill -STOP $(pgrep -f "[w]alreceiver" -P $(head -1 data/postmaster.pid))'
    said herd pg:switchover blue --timeout 3
    dotcloud run db.3 'pkill -CONT -f "[w]alreceiver" -P $(head -1 data/postmaster.pid)' || true
    [ "$status" != 0 ]
    cat "$BATS_TEST_TMPDIR/stderr"
    [[ $(cat "$BATS_TEST_TMPDIR/stderr") == *"HEROKU_POSTGRESQL_BLACK_URL is the primary as before, v"* ]]
    [ "$(herd config:get DATABASE_URL)" = "$before" ]
    [ "$(role_of black)" = "primary of nobody" ]
    eventually writes
    sql db.2 "ALTER SYSTEM RESET wal_sender_timeout; SELECT pg_reload_conf()" >/dev/null
}

@test "the password is changed while the app writes and the others stream" {
    herd pg:wait
    receiver='SELECT pid FROM pg_stat_wal_receiver'
    before=$(sql db.0 "$receiver")
    old=$(herd config:get DATABASE_URL)
    said herd pg:credentials:rotate
    [ "$status" = 0 ]
    [ "$(herd config:get DATABASE_URL)" != "$old" ]
    [ "$(sql db.0 "$receiver")" = "$before" ]
    eventually writes
    herd pg:wait
}

@test "pg:promote of a follower that has less than another takes the rest from that one" {
    herd pg:wait
    # It misses the last commits
    dotcloud run db.3 'supervisorctl -c supervisord.conf stop postgres'
    sql db.2 'CREATE TABLE last_words AS SELECT generate_series(1, 1000) AS n' >/dev/null
    eventually holds db.1 'SELECT count(*) FROM last_words' 1000
    crash db.2
    dotcloud run db.3 'supervisorctl -c supervisord.conf start postgres'
    herd pg:wait blue
    [ "$(sql db.3 "SELECT to_regclass('last_words')")" = "" ]
    said herd pg:promote blue --dry-run
    like 'HEROKU_POSTGRESQL_BLUE_URL would first take the * from HEROKU_POSTGRESQL_A*_URL that only that one has received, and be promoted then, as its primary db.2 does not answer it
DATABASE_URL would be HEROKU_POSTGRESQL_BLUE_URL, and the processes of shop restarted
These would follow it: *'
    said herd pg:promote blue
    [ "$status" = 0 ]
    [[ $output == *"HEROKU_POSTGRESQL_AQUA_URL has received "*" more than HEROKU_POSTGRESQL_BLUE_URL, which takes that from it first..."* ||
        $output == *"HEROKU_POSTGRESQL_AMBER_URL has received "*" more than HEROKU_POSTGRESQL_BLUE_URL, which takes that from it first..."* ]]
    [ "$(sql db.3 'SELECT count(*) FROM last_words')" = 1000 ]
    for name in AMBER AQUA; do
        [[ $output == *"HEROKU_POSTGRESQL_${name}_URL follows HEROKU_POSTGRESQL_BLUE_URL now (no data moved, "* ]]
    done
    eventually writes
    # Nobody keeps WAL for somebody who has gone
    for db in db.0 db.1; do [ "$(sql "$db" 'SELECT count(*) FROM pg_replication_slots')" = 0 ]; done
}

holds() {
    [[ $(sql "$1" "$2" 2>/dev/null) == "$3" ]]
}
