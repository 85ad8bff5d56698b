# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2154
# Backups over the local platform, with the real agent and server, under an app that writes all the time. The tests
# build on each other: AMBER (db.0) is DATABASE_URL, GOLD (db.1) follows it, each has a directory of its own as its store.

load helper

setup_file() {
    set_herd_scene
    export HERD_APP=shop
    dotcloud create shop
    dotcloud push "$checkout" >&2
    herd addons:attach db.0 --as amber
    herd addons:add heroku-postgresql --follow amber --as gold
    herd pg:wait
    herd ps:restart
    # Names that quoting must survive, a large object, a sequence
    psql_on db.0 'CREATE TABLE "it'\''s a ""table""" AS SELECT n, md5(n::text) AS "ünïcode $HOME" FROM generate_series(1, 20000) n'
    psql_on db.0 'CREATE SEQUENCE counter START 4711; SELECT lo_from_bytea(12345, '\''\x00ff'\''); CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n'
}

teardown_file() {
    strike_scene
}

# The app has written something within the last second
writes() {
    [[ -n $(dotcloud run www 'cat written' | awk -v now="$(date +%s)" '$2 > now - 1' | head -n 1) ]]
}

# What must come back, of a database
contents() {
    dotcloud run "$1" "psql -At -d $(printf %q "${2:-postgres}")" <<'END'
SELECT count(*), md5(string_agg(t::text, ',' ORDER BY n)) FROM "it's a ""table""" t;
SELECT sum(n) FROM orders;
SELECT last_value FROM counter;
SELECT lo_get(12345);
END
}

@test "pgbackups:capture and pgbackups, of the primary and of a follower" {
    [ "$(herd pgbackups)" = "shop has no backups; herd pgbackups:capture takes one" ]
    said=$(herd pgbackups:capture 2>"$BATS_TEST_TMPDIR/steps")
    cat "$BATS_TEST_TMPDIR/steps"
    [[ $said == $'\n'"HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)  ----backup--->  b001"$'\n\n'"Capturing... done"$'\n'"Storing... done, "* ]]
    herd pg:wait gold
    herd pgbackups:capture gold --json >"$BATS_TEST_TMPDIR/captured"
    jq -se 'length == 1 and (.[0] | .id == "b002" and .instance == "db.1" and .kind == "logical" and .database == "postgres" and .manifest.from_standby)' "$BATS_TEST_TMPDIR/captured"
    herd pgbackups
    [ "$(herd pgbackups | awk -F ' *[|] *' 'NR != 2 { print $1, $4, $5 }')" = "ID Database Kind
b001 HEROKU_POSTGRESQL_AMBER_URL/postgres logical
b002 HEROKU_POSTGRESQL_GOLD_URL/postgres logical" ]
    herd pgbackups --json | jq -e '[.backups[] | "\(.id) \(.holders | join(" "))"] == ["b001 db.0", "b002 db.1"] and .errors == []'
    [[ $(herd pgbackups:info b002) == *b002* ]]
}

@test "pgbackups:url and pgbackups:download give what plain pg_restore restores" {
    sha256=$(herd pgbackups --json | jq -r '.backups[0].sha256')
    url=$(herd pgbackups:url b001)
    (cd "$scene/here" && curl -sSf -o from-link.dump "$url")
    [ "$(sha256sum <"$scene/here/from-link.dump")" = "$sha256  -" ]
    [ "$(herd pgbackups:download b001 2>"$BATS_TEST_TMPDIR/steps" | head -n 1)" = "Downloading b001 from HEROKU_POSTGRESQL_AMBER_URL... done" ]
    cmp "$scene/here/b001.dump" "$scene/here/from-link.dump"
    /usr/lib/postgresql/15/bin/pg_restore --list "$scene/here/b001.dump" | grep -q "TABLE DATA public orders"
    refuses 1 "b001.dump is there already" pgbackups:download b001
}

@test "pgbackups:restore: wants the app's name; takes the most recent, from another instance; the app goes on" {
    before=$(contents db.0)
    psql_on db.0 'DROP TABLE orders; DELETE FROM "it'\''s a ""table""" WHERE n > 7; SELECT lo_unlink(12345)'
    not_confirmed() {
        ends 3 "What is in the database postgres of HEROKU_POSTGRESQL_AMBER_URL will be replaced by b002 (most recent)." herd pgbackups:restore
        [ -z "$out" ]
    }
    unchanged not_confirmed
    typed shop pgbackups:restore DATABASE_URL >"$BATS_TEST_TMPDIR/said" || status=$?
    said=$(<"$BATS_TEST_TMPDIR/said")
    echo "${status:-0}: $said"
    [[ $said == *"HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)  <---restore---  b002 (most recent)"*"HEROKU_POSTGRESQL_GOLD_URL/postgres"*"Restoring... done"* ]]
    [ "$(contents db.0)" = "$before" ]
    eventually writes
    herd pg:wait
    [ "$(contents db.1)" = "$before" ]
    # Nothing that was half made or put aside is left
    [ "$(psql_on db.0 "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database WHERE datname !~ '^template'")" = postgres ]
}

@test "pgbackups:restore into a new database, and from a link" {
    herd pgbackups:restore AMBER b001 --database 'it'\''s a copy' --confirm shop --json >"$BATS_TEST_TMPDIR/restored"
    jq -se 'length == 1 and .[0].database == "it'\''s a copy"' "$BATS_TEST_TMPDIR/restored"
    [ "$(contents db.0 "it's a copy")" = "$(contents db.0)" ]
    herd pgbackups:restore AMBER "$(herd pgbackups:url db.1:b002)" --database linked --confirm shop
    [ "$(contents db.0 linked)" = "$(contents db.0)" ]
    psql_on db.0 'DROP DATABASE "it'\''s a copy"'
    psql_on db.0 'DROP DATABASE linked'
}

@test "pgbackups:verify proves one, and finds a flipped bit" {
    [[ $(herd pgbackups:verify b001) == "Verifying b001... good"* ]]
    herd pgbackups --json | jq -e '.backups[0].verified | .good and .instance == "db.0"'
    [[ $(herd pgbackups | sed -n '/^b001/s/.*| //p') == 20*UTC ]]
    file=$(herd pgbackups --json | jq -r '.backups[1].file')
    dotcloud run db.1 "printf x | dd of=backups/$file bs=1 seek=5000 conv=notrunc status=none"
    status=0
    herd pgbackups:verify b002 || status=$?
    [ "$status" = 1 ]
    refuses 1 "b002" pgbackups:download b002 "$BATS_TEST_TMPDIR/b002.dump"
    [ ! -e "$BATS_TEST_TMPDIR/b002.dump" ]
}

@test "one name on two instances is asked about; pgbackups:destroy takes the one that is meant" {
    # By hand, so that nobody has looked at the other instance's numbers
    dotcloud run db.0 pgmahout backup capture
    refuses 2 "shop has several backups b002: db.1:b002 of " pgbackups:url b002
    refuses 2 "say which: db.1:b002 or db.0:b002" pgbackups:destroy b002
    [ "$(herd pgbackups:destroy db.1:b002)" = "Destroying b002... done" ]
    herd pgbackups --json | jq -e '[.backups[] | "\(.id) \(.holders[0])"] == ["b001 db.0", "b002 db.0"]'
    refuses 1 "shop has no backup b007" pgbackups:destroy b007
}

@test "the nightly backups are an add-on, and go on at whoever is promoted" {
    [[ $(herd addons:add pgbackups:auto-month) == "Adding pgbackups:auto-month on shop... done"* ]]
    [[ $(herd addons) == *$'\n'"pgbackups:auto-month       db.0     every night" ]]
    herd pg:switchover gold
    herd addons --json | jq -e '.addons[-1] == {addon: "pgbackups:auto-month", instance: "db.1"}'
    status=0
    herd pgbackups:check --json >"$BATS_TEST_TMPDIR/checked" || status=$?
    cat "$BATS_TEST_TMPDIR/checked"
    jq -se --argjson s "$status" 'length == 1 and (.[0] | (.text | length > 9) and ($s == 0 or $s == 1))' "$BATS_TEST_TMPDIR/checked"
    [[ $(herd addons:remove pgbackups --confirm shop) == "Removing pgbackups:auto-month from shop... done"* ]]
    herd addons --json | jq -e 'all(.addons[]; .addon | startswith("pgbackups") | not)'
}

@test "a physical backup becomes a database of its own" {
    herd pg:wait
    herd pgbackups:capture amber --physical --json >"$BATS_TEST_TMPDIR/physical"
    jq -e '.kind == "physical" and .id == "b003" and .instance == "db.0"' "$BATS_TEST_TMPDIR/physical"
    herd pgbackups:download b003 "$scene/here/b003" >&2
    ends 3 "Its followers have to be followed anew: db." herd pgbackups:restore DATABASE_URL b003
    herd addons:add heroku-postgresql --as silver
    herd pgbackups:restore SILVER b003 --confirm shop
    [ "$(contents db.2)" = "$(contents db.1)" ]
    herd pg:psql silver -c 'CREATE TABLE mine ()'
    herd pg:info silver --json | jq -e '.databases[0].info.role == "primary"'
    # The others are as they were
    [ "$(psql_on db.1 "SELECT to_regclass('mine') IS NULL")" = t ]
    eventually writes
}

@test "herd ends with 4 while an instance is down, and the others' backups are shown" {
    dotcloud run db.2 'mv bin/pgmahout bin/away'
    ends 4 "HEROKU_POSTGRESQL_SILVER_URL does not say which backups it has" herd pgbackups
    [[ $out == *"b003"* ]]
    dotcloud run db.2 'mv bin/away bin/pgmahout'
}
