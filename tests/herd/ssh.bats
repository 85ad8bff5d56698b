# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2154
# herd over the ssh platform, with the local dotcloud's instances as its hosts: nobody but a hosts file knows them, all
# below paths with spaces. The tests build on each other: one app lives from the first to the last.

load ../dotcloud/helper

setup_file() {
    set_scene
    export PGMAHOUT_BINARY=${PGMAHOUT_BIN:?run it by scripts/test} DOTCLOUD_START_TIMEOUT=60
    cp -a "$BATS_TEST_DIRNAME/../../scripts/"{herd,herd.d,platforms} "$checkout/scripts/"
    cp -a "$BATS_TEST_DIRNAME/../../Cargo.toml" "$checkout/"
    sed -i 's/instances: 1/instances: 3/' "$checkout/dotcloud.yml"
    dotcloud create shop
    dotcloud push "$checkout" >&2
    mkdir -p "$scene/here/the hosts"
    export HERD_HOSTS="$scene/here/the hosts/herd's 100%.yml"
    write_hosts
}

teardown_file() {
    strike_scene
}

# db.0 is in use, db.1 and db.2 are spare; only db.2 can be destroyed
write_hosts() {
    local n password
    password=$(dotcloud run db.0 cat password)
    cat "$DOTCLOUD_HOME"/apps/shop/ssh/db.*.known_hosts >"$scene/here/the hosts/known hosts"
    {
        printf 'application: shop\nconfig: the config.json\nssh:\n  identity: "%s"\n  known_hosts: known hosts\ndatabases:\n' "$DOTCLOUD_HOME/apps/shop/ssh/id_ed25519"
        for n in 0 1 2; do
            printf '  db.%s:\n    ssh: %s\n' "$n" "$(dotcloud info "db.$n" --json | jq -r '.ports[] | select(.name == "ssh").url')"
            printf '    sql: postgres://dotcloud:%s@127.0.0.1:%s\n' "$password" "$(port "db.$n" pgsql)"
            ((n == 0)) || printf '    spare: true\n'
        done
        printf '    provision: "echo $PLAN of $PGMAHOUT_APP >~/given"\n    destroy: "rm ~/given && supervisorctl -c ~/supervisord.conf stop postgres"\n'
        printf 'processes:\n  www:\n    count: 2\n    status: test -e "is up"\n'
        printf '    %s\n' 'restart: echo "restart for ${DATABASE_URL##*@}" >>calls' 'scale: echo "scale $COUNT" >>calls' \
            'stop: rm "is up"; echo stop >>calls' 'start: touch "is up"; echo start >>calls'
    } >"$HERD_HOSTS"
    touch "$scene/here/the hosts/is up"
    chmod 600 "$HERD_HOSTS"
}

herd() {
    (cd "$scene/here" && "$checkout/scripts/herd" "$@")
}

# says STATUS LINES COMMAND...: each line of what it says, both ways, is like the pattern
says() {
    local want=$1 status=0 patterns lines i
    mapfile -t patterns <<<"$2"
    shift 2
    output=$("$@" 2>&1) || status=$?
    mapfile -t lines <<<"$output"
    [[ $status == "$want" && ${#lines[@]} == "${#patterns[@]}" ]] || { printf 'status %s; %s\n' "$status" "$output" && return 1; }
    for i in "${!patterns[@]}"; do
        # shellcheck disable=SC2053 # it is a pattern
        [[ ${lines[i]} == ${patterns[i]} ]] || { printf 'not like %s:\n%s\n' "${patterns[i]}" "$output" && return 1; }
    done
}

sql() {
    dotcloud run "$1" psql -At <<<"$2"
}

# NAME: ROLE of PRIMARY, of all; a dead one is "unavailable"
roles() {
    herd pg:info --json | jq -r '.databases as $all | .databases[] | "\(.name): \(if .error then "unavailable" else .info.role end)"
        + (.info.following.primary // empty | . as $a | " of \([$all[] | select(.address == $a) | .name][0])") // "\(.name): \(if .error then "unavailable" else .info.role end)"'
}

roles_are() {
    local now
    now=$(roles | sort | tr '\n' ',')
    [[ $now == "$1," ]] || { echo "roles: $now" && return 1; }
}

has_row() {
    [[ $(sql "$1" "SELECT count(*) FROM journal WHERE word = '$2'") == 1 ]]
}

calls() {
    cat "$scene/here/the hosts/calls"
    rm "$scene/here/the hosts/calls"
}

# --- Heroku's walk-through ---------------------------------------------------------

@test "the first database, and followers on spare hosts" {
    says 0 'shop has no databases; herd addons:add heroku-postgresql:ronin adds one' herd pg:info
    says 0 'Attaching db.0 to shop... done, v1
Attached as HEROKU_POSTGRESQL_AMBER' herd addons:attach db.0
    # Who waited for a DATABASE_URL has one
    [ "$(calls)" = "restart for 127.0.0.1:$(port db.0 pgsql)/postgres" ]
    sql db.0 "CREATE TABLE journal (word text); INSERT INTO journal VALUES ('first')"
    says 0 'Adding heroku-postgresql on shop... done, v2
Attached as HEROKU_POSTGRESQL_AQUA
Follower will become available for read-only queries when up-to-date
Use `herd pg:wait` to track status' herd addons:add heroku-postgresql --follow DATABASE_URL
    herd addons:add heroku-postgresql --follow amber --as black
    [ "$(dotcloud run db.2 cat given)" = "none of shop" ]
    herd pg:wait
    roles_are "db.0: primary,db.1: standby of db.0,db.2: standby of db.0"
    has_row db.1 first
    has_row db.2 first
    says 1 'Adding heroku-postgresql on shop... failed
 !    ssh: */the hosts/herd'\''s 100%.yml: databases: none is spare, without an attachment and not given away in the last quarter of an hour; add one with spare: true' herd addons:add heroku-postgresql --follow amber
    [ "$(herd config --json | jq '.release, (.config | length)' | tr '\n' ' ')" = "3 4 " ]
    [ "$(stat -c %a "$scene/here/the hosts/the config.json")" = 600 ]
}

@test "pg:info, addons and config show them" {
    says 0 '=== HEROKU_POSTGRESQL_AQUA_URL
Status:      following
Role:        standby
Data Size:   * MB
PG Version:  15.*
Connections: * of 100
Fork/Follow: available
Following:   HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)
Behind By:   *
Created:     20* UTC
Instance:    db.1 at 127.0.0.1:*' herd pg:info aqua
    says 0 "=== shop Addons
heroku-postgresql          db.0     HEROKU_POSTGRESQL_AMBER (DATABASE_URL)
heroku-postgresql          db.1     HEROKU_POSTGRESQL_AQUA
heroku-postgresql          db.2     HEROKU_POSTGRESQL_BLACK" herd addons
    herd config:set 'GREETING=it'\''s $HOME "100%"' --no-restart
    [ "$(herd config:get GREETING)" = 'it'\''s $HOME "100%"' ]
    [ "$(bash -c 'eval "$1"; printf %s "$GREETING"' - "$(herd config --shell)")" = 'it'\''s $HOME "100%"' ]
    herd config:unset GREETING --no-restart
    says 1 ' !    shop has no variable GREETING
 !    herd config shows all' herd config:get GREETING
    [ "$(herd releases --json | jq -r '.releases[0].what')" = "Unset GREETING" ]
}

@test "logs of all hosts, merged" {
    sql db.0 "SELECT 'slow on the primary', pg_sleep(0.2)"
    sql db.2 "SELECT 'slow on a follower', pg_sleep(0.2)"
    eventually eval '[[ $(herd logs) == *"slow on the primary"*"slow on a follower"* ]]'
    [[ $(herd logs) == *"app[postgres.db.0]: "*"slow on the primary"*$'\n'*"app[postgres.db.2]: "*"slow on a follower"* ]]
}

# --- changes of roles ----------------------------------------------------------------

@test "pg:switchover" {
    herd pg:switchover aqua >"$BATS_TEST_TMPDIR/out"
    cat "$BATS_TEST_TMPDIR/out"
    says 0 'Switching over from HEROKU_POSTGRESQL_AMBER_URL to HEROKU_POSTGRESQL_AQUA_URL...
HEROKU_POSTGRESQL_AQUA_URL is the primary, v*
HEROKU_POSTGRESQL_BLACK_URL follows HEROKU_POSTGRESQL_AQUA_URL now (no data moved, * s)
HEROKU_POSTGRESQL_AMBER_URL follows HEROKU_POSTGRESQL_AQUA_URL now (no data moved, * s)' cat "$BATS_TEST_TMPDIR/out"
    herd pg:wait
    roles_are "db.0: standby of db.1,db.1: primary,db.2: standby of db.1"
    [ "$(herd config:get DATABASE_URL)" = "$(herd config:get HEROKU_POSTGRESQL_AQUA_URL)" ]
    [ "$(calls)" = "restart for 127.0.0.1:$(port db.1 pgsql)/postgres" ]
    sql db.1 "INSERT INTO journal VALUES ('switched')"
    eventually has_row db.0 switched
    eventually has_row db.2 switched
}

@test "the password is changed, though the hosts file has the old one" {
    before=$(herd config:get DATABASE_URL)
    says 0 'Rotating the password of dotcloud on HEROKU_POSTGRESQL_AQUA_URL... done, v*' herd pg:credentials:rotate
    [ "$(calls)" = "restart for 127.0.0.1:$(port db.1 pgsql)/postgres" ]
    [ "$(herd config:get DATABASE_URL)" != "$before" ]
    [ "$(herd config --json | jq -r '.config[] | capture("://(?<u>[^@]*)@").u' | sort -u | wc -l)" = 1 ]
    PGCONNECT_TIMEOUT=5 psql "$(herd config:get DATABASE_URL)" -c 'SELECT 1' >/dev/null
    [ "$(grep -cF "$(herd config:get DATABASE_URL | sed 's|.*://[^:]*:||; s|@.*||')" "$HERD_HOSTS")" = 0 ]
    sql db.1 "INSERT INTO journal VALUES ('rotated')"
    eventually has_row db.0 rotated
    # What copies from it now logs in with the new one
    says 0 'HEROKU_POSTGRESQL_BLACK_URL follows HEROKU_POSTGRESQL_AQUA_URL now (followed it already, *' \
        bash -c '"$@" 2>/dev/null' - "$checkout/scripts/herd" pg:follow black --of aqua
}

@test "pg:promote when the primary's host is dead" {
    dotcloud down db.1
    status=0
    output=$(herd pg:info) || status=$?
    [ "$status" = 4 ]
    [[ $output == *"Status:      unavailable: db.1 could not be reached: "*"Connection refused"* ]]
    roles_are "db.0: standby of db.1,db.1: unavailable,db.2: standby of db.1"
    herd pg:promote amber 2>"$BATS_TEST_TMPDIR/err"
    cat "$BATS_TEST_TMPDIR/err"
    grep -qF "The old primary HEROKU_POSTGRESQL_AQUA_URL could not be reached. See that it stays down: it would be a second primary." "$BATS_TEST_TMPDIR/err"
    roles_are "db.0: primary,db.1: unavailable,db.2: standby of db.0"
    [ "$(calls)" = "restart for 127.0.0.1:$(port db.0 pgsql)/postgres" ]
    sql db.0 "INSERT INTO journal VALUES ('promoted')"
    eventually has_row db.2 promoted
}

@test "the dead host comes back as a follower" {
    dotcloud up db.1
    herd pg:follow aqua --of database_url --confirm shop
    roles_are "db.0: primary,db.1: standby of db.0,db.2: standby of db.0"
    eventually has_row db.1 promoted
}

# --- an end --------------------------------------------------------------------------

@test "pg:unfollow" {
    says 3 ' !    HEROKU_POSTGRESQL_BLACK_URL will become writable and no longer
 !    follow HEROKU_POSTGRESQL_AMBER_URL on 127.0.0.1:*. This cannot be undone.
 !    nothing was done: *
 !    To proceed, re-run this command with --confirm shop' herd pg:unfollow black </dev/null
    says 0 'Unfollowing... done' herd pg:unfollow black --confirm shop
    roles_are "db.0: primary,db.1: standby of db.0,db.2: primary"
    sql db.2 "INSERT INTO journal VALUES ('alone')"
    [ "$(sql db.0 "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots")" = pgmahout_shop_db_1 ]
}

@test "addons:remove destroys where the hosts file says how, and nothing elsewhere" {
    before=$(herd config --json)
    says 1 ' !    the platform ssh cannot do that (destroy): *db.1*' bash -c '"$@" 2>&1 >/dev/null' - "$checkout/scripts/herd" addons:remove aqua --confirm shop
    [ "$(herd config --json)" = "$before" ]
    roles_are "db.0: primary,db.1: standby of db.0,db.2: primary"
    says 0 'Removing HEROKU_POSTGRESQL_BLACK_URL from shop... done, v*' herd addons:remove black --confirm shop
    [ "$(dotcloud run db.2 'ls given data/postmaster.pid 2>/dev/null | wc -l')" = 0 ]
    status=0
    herd config:get HEROKU_POSTGRESQL_BLACK_URL || status=$?
    [ "$status" = 1 ]
    says 0 'Detaching HEROKU_POSTGRESQL_AQUA_URL from shop... done, v*' herd addons:detach aqua
    roles_are "db.0: primary"
}

# --- the app's processes ----------------------------------------------------------------

@test "ps and maintenance are the operator's own commands" {
    says 0 '=== shop Processes
www            2  running' herd ps
    says 0 'Restarting www... done' herd ps:restart www
    says 0 'Scaling www processes... done, now running 5' herd ps:scale www=5
    says 0 'Enabling maintenance mode for shop... done' herd maintenance:on
    says 0 'on' herd maintenance
    says 0 '=== shop Processes
www            5  stopped' herd ps
    # Nothing is restarted then
    says 0 'Restarting processes... done' herd ps:restart
    says 0 'Disabling maintenance mode for shop... done' herd maintenance:off
    says 0 '=== shop Processes
www            5  running' herd ps
    [ "$(calls)" = "restart for 127.0.0.1:$(port db.0 pgsql)/postgres
scale 5
stop
start" ]
    says 2 ' !    shop has no processes named db
 !    it has: www' herd ps:scale db=2
}
