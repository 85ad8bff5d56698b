# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2153,SC2154
# herd's commands for backups, on the pretend instances of fixtures/broken: their grammar and Heroku's output, the lists
# of several instances in one, which backup is meant, what is asked before it is done, and what is said when it fails.

load scene

# has INSTANCE ID TIME [FILTER]: a backup in its store, taken at that second
has() {
    local store=$BROKEN/backups/$1
    mkdir -p "$BROKEN/backups"
    [[ -e $store ]] || echo '[]' >"$store"
    jq -c --arg i "$1" --arg id "$2" --argjson t "$3" '. + [{id: $id, kind: "logical", database: "shop", instance: $i, started: $t, finished: ($t + 2),
        size: 58400, compression: "gzip:3", sha256: "00", file: "\($id)-\($i).dump", from_standby: false, verified: null} | '"${4:-.}"']' "$store" >"$scene/list"
    mv "$scene/list" "$store"
}

# October 22nd 2010, the day of Heroku's own example
then=1287777348

@test "pgbackups: Heroku's table, and what is known beside" {
    herd pgbackups
    [ "$status $out" = "0 shop has no backups; herd pgbackups:capture takes one" ]
    [ -z "$err" ]
    herd pgbackups --json
    [ "$out" = '{"app":"shop","backups":[],"errors":[]}' ]
    now=$(date +%s)
    has db.0 b001 $then '.verified = {at: 1287863748, instance: "db.0", good: true, text: "3 tables"}'
    has db.0 a001 $((now - 7203)) '.verified = {at: 1287863748, instance: "db.0", good: false, text: "a bit flipped"} | .encryption = "age"'
    has db.1 b002 $((now - 303)) '.kind = "physical" | del(.database) | .size = 1234567890'
    has db.9 b009 $then
    has db.2 b003 $((now + 3600)) '.instance = "elsewhere" | .database = "Blümchen \"x\""'
    herd pgbackups
    [ "$status" = 0 ]
    [ -z "$err" ]
    day() { date -u -d "@$1" '+%Y/%m/%d %H:%M.%S UTC'; }
    diff <(sed -E 's/ +$//' "$scene/out") - <<END
ID   | Backup Time             | Size    | Database                         | Kind               | Age           | Verified
-----+-------------------------+---------+----------------------------------+--------------------+---------------+-------------------------------
b001 | 2010/10/22 19:55.50 UTC | 58.4 kB | HEROKU_POSTGRESQL_AMBER_URL/shop | logical            | $(printf '%-13s' "$(((now - then) / 86400)) days") | 2010/10/23 19:55.48 UTC
a001 | $(day $((now - 7201))) | 58.4 kB | HEROKU_POSTGRESQL_AMBER_URL/shop | logical, encrypted | 2 h           | FAILED 2010/10/23 19:55.48 UTC
b002 | $(day $((now - 301))) | 1.2 GB  | HEROKU_POSTGRESQL_GOLD_URL       | physical           | 5 min         | -
b003 | $(day $((now + 3602))) | 58.4 kB | elsewhere/Blümchen "x"           | logical            | in the future | -
END
    herd pgbackups --json
    jq -e '.app == "shop" and .errors == [] and [.backups[] | "\(.id) \(.holders[0])"] == ["b001 db.0", "a001 db.0", "b002 db.1", "b003 db.2"]' <<<"$out"
    did
}

@test "a store that all share: each backup once" {
    echo s3 >"$BROKEN/store"
    has s3 b001 $then '.instance = "db.1"'
    has s3 b002 $((then + 9)) '.instance = "db.0"'
    herd pgbackups --json
    jq -e '[.backups[] | "\(.id) \(.holders | join(" "))"] == ["b001 db.0 db.1 db.2", "b002 db.0 db.1 db.2"]' <<<"$out"
    # Its own store has it: no blurb
    herd pgbackups:restore SILVER b001 --confirm shop
    [ "$status" = 0 ]
    did "db.2 backup restore --confirm db.2 -- b001 shop"
    # A number that two instances took at the same moment is no trouble there
    herd pgbackups:verify db.2:b002
    [ "$out" = "Verifying b002... good: 3 tables, 50000 rows" ]
    did "db.2 backup restore --confirm db.2 -- b001 shop" "db.2 backup verify b002"
}

@test "one instance that does not answer does not hide the others' backups" {
    has db.0 b001 $then
    for broken_run in 'exit 255' 'echo "{}"; exit' 'echo "[{\"id\": \"b001; touch x\"}]"; exit' 'echo "[7]"; exit' 'printf "[{\"id\": \"b001\""; exit' 'sleep 20'; do
        fault run.db.1.backup "$broken_run"
        limit=2
        [[ $broken_run == sleep* ]] || limit=20
        herd pgbackups
        [ "$status" = 4 ]
        [[ $out == "ID "*"b001 | 2010/10/22 19:55.50 UTC"* ]]
        [[ $err == " !    HEROKU_POSTGRESQL_GOLD_URL does not say which backups it has: "* && $(wc -l <"$scene/err") == 1 ]]
        herd pgbackups --json
        [ "$status" = 4 ]
        [ -z "$err" ]
        jq -e '[.backups[].id] == ["b001"] and [.errors[].instance] == ["db.1"] and all(.errors[]; .message and .exit)' <<<"$out"
    done
    [ -z "$(find "$scene" -name x)" ]
    # What the instance itself warns of is said here
    all_is_well
    fault run.db.0.backup 'printf "warning: b007 is left out: \e[31mits bytes are gone\n" >&2'
    herd pgbackups
    [ "$status" = 0 ]
    [ "$err" = " !    HEROKU_POSTGRESQL_AMBER_URL: b007 is left out: [31mits bytes are gone" ]
    fault instances 'exit 0'
    fails 1 "shop has no databases" pgbackups
}

@test "pgbackups:capture, as Heroku said it" {
    herd pgbackups:capture
    [ "$status" = 0 ]
    [ -z "$err" ]
    diff - "$scene/out" <<'END'

HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)  ----backup--->  b001

Capturing... done
Storing... done, 58.4 kB
END
    # A follower spares the primary; numbers go on over all instances
    herd pgbackups:capture GOLD
    [[ $out == $'\n'"HEROKU_POSTGRESQL_GOLD_URL  ----backup--->  b002"* ]]
    herd pgbackups:capture db.2 --physical --json
    jq -se 'length == 1 and (.[0] | .id == "b003" and .kind == "physical" and .instance == "db.2")' <<<"$out"
    herd pgbackups:capture --database $'it\'s "ünïcode" $HOME'
    [ "$status" = 0 ]
    did "db.0 backup capture --after 0 -- shop" "db.1 backup capture --after 1 -- shop" "db.2 backup capture --after 2 --physical" \
        "db.0 backup capture --after 3 -- it's \"ünïcode\" \$HOME"
    # The database in the URL may be any
    jq -c '.config.HEROKU_POSTGRESQL_SILVER_URL |= sub("/shop$"; "/my%20shop")' "$BROKEN/config.json" >"$scene/config"
    mv "$scene/config" "$BROKEN/config.json"
    herd pgbackups:capture silver
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.2 backup capture --after 4 -- my shop" ]
}

@test "pgbackups:capture: nothing hides a failure" {
    fails 2 "only one database at a time" pgbackups:capture AMBER GOLD
    fails 2 "--physical takes the whole server" pgbackups:capture --physical --database shop
    fails 2 "unknown option --nosuch" pgbackups:capture --nosuch
    fails 2 "shop has no database nosuch" pgbackups:capture nosuch
    did
    fault run.db.0.backup.capture 'printf "copied \e[31m5 %%\n" >&2; refuse 1 "pg_dump failed: the disk is full" "make room"'
    herd pgbackups:capture
    [ "$status" = 1 ]
    [ "$(tail -n 1 <<<"$out")" = "Capturing... failed" ]
    # What it says meanwhile is seen
    [[ $err == "  db.0: copied [31m5 %"$'\n'*" !    db.0: pg_dump failed: the disk is full
 !    make room" ]]
    herd pgbackups:capture --json
    [ "$status" = 1 ]
    [ -z "$err" ]
    jq -se '. == [{error: {message: "db.0: pg_dump failed: the disk is full", hint: "make room", exit: 1}}]' <<<"$out"
    for lie in '{}' '{"id": "b1"}' '{"id": "$(touch x)"}' nonsense; do
        fault run.db.0.backup.capture "echo '$lie'; exit"
        herd pgbackups:capture
        [ "$status" = 1 ]
        [[ $err == *"what db.0 answered is not pgmahout's"* ]]
    done
    # Another one was faster
    all_is_well
    fault_once run.db.0.backup.capture "pgmahout --json backup capture >/dev/null"
    herd pgbackups:capture
    [ "$status" = 0 ]
    [ "$(tail -n 1 <<<"$out")" = "It is b002, as another backup became b001 meanwhile" ]
    # Without the numbers of one the backup is taken all the same
    fault run.db.1.backup 'exit 255'
    herd pgbackups:capture
    [ "$status" = 0 ]
    [[ $out == *"----backup--->  b003"* && $err == " !    HEROKU_POSTGRESQL_GOLD_URL does not say which backups it has: "* ]]
}

@test "pgbackups:capture --expire removes the oldest by hand, of the same database, and no more than has to be" {
    has db.0 b001 $then
    has db.0 a001 $((then + 1))
    has db.0 b002 $((then + 2)) '.database = "other"'
    has db.0 b003 $((then + 3))
    has db.1 b004 $((then + 4))
    has db.0 b005 $((then + 5)) '.kind = "physical" | del(.database)'
    herd pgbackups:capture --expire
    [ "$status" = 0 ]
    [ "$(tail -n 1 <<<"$out")" = "Destroying b001... done" ]
    herd pgbackups:capture GOLD -e
    [ "$(tail -n 1 <<<"$out")" = "Storing... done, 58.4 kB" ]
    did "db.0 backup capture --after 5 -- shop" "db.0 backup delete b001" "db.1 backup capture --after 6 -- shop"
    # Not before the new one is there
    fault run.db.0.backup.capture 'refuse 1 "no" "no"'
    herd pgbackups:capture --expire
    [ "$status" = 1 ]
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.0 backup capture --after 7 -- shop" ]
    rm "$BROKEN/faults/run.db.0.backup.capture"
    fault run.db.0.backup.schedule 'echo "{}"; exit'
    herd pgbackups:capture --expire
    [ "$status" = 1 ]
    [ "$err" = " !    nothing is removed: HEROKU_POSTGRESQL_AMBER_URL does not say how many backups it keeps" ]
}

@test "which backup is meant" {
    fails 1 "shop has no backups" pgbackups:url
    has db.0 b001 $then
    has db.1 b001 $((then + 5))
    has db.1 b002 $((then + 4))
    for command in info url destroy verify download; do
        fails 2 "shop has several backups b001: db.0:b001 of 2010/10/22 19:55.50 UTC, db.1:b001 of 2010/10/22 19:55.55 UTC" "pgbackups:$command" b001
        [[ $err == *$'\n'" !    say which: db.0:b001 or db.1:b001" ]]
        fails 1 "shop has no backup b007" "pgbackups:$command" b007
        fails 1 "db.1 has no backup a001" "pgbackups:$command" gold:a001
        fails 2 "shop has no database nosuch" "pgbackups:$command" nosuch:b001
        fails 2 "'nonsense' is not the name of a backup" "pgbackups:$command" nonsense
    done
    fails 2 "shop has several backups b001" pgbackups:restore SILVER b001 --confirm shop
    for command in info destroy verify download; do
        fails 2 "" "pgbackups:$command"
    done
    did
    for name in db.1:b001 DB.1:B001 GOLD:b001 heroku_postgresql_gold_url:b001; do
        herd pgbackups:info "$name"
        [ "$status $out" = "0 id: b001" ]
    done
    # Only the one that was named is asked
    fault run.db.0 'exit 255'
    herd pgbackups:destroy gold:b001
    [ "$status $out" = "0 Destroying b001... done" ]
    [ -z "$err" ]
    did "db.1 backup delete b001"
    fails 4 "db.0: db.0 could not be reached" pgbackups:destroy db.0:b001
    # One that is silent may have it, too
    fails 4 "HEROKU_POSTGRESQL_AMBER_URL does not say whether it has a backup b002 too: db.0 could not be reached" pgbackups:destroy b002
    [[ $err == *"herd pgbackups:destroy db.1:b002" ]]
    fails 4 "HEROKU_POSTGRESQL_AMBER_URL does not say whether it has b001" pgbackups:url b001
    did "db.1 backup delete b001"
}

@test "pgbackups:url: the link alone, of the most recent without a name" {
    has db.0 b001 $then
    has db.1 b002 $((then + 9))
    has db.1 b003 $((then + 19)) '.verified = {at: 1287863748, instance: "db.1", good: false, text: "a bit flipped"}'
    has db.1 b004 $((then + 29)) '.kind = "physical" | del(.database)'
    herd pgbackups:url
    [ "$status $out" = "0 https://10.0.0.7/b002.dump?signature=s3cret" ]
    [ -z "$err" ]
    herd pgbackups:url b001 --expires 60 --json
    jq -e '.id == "b001" and .url == "https://10.0.0.7/b001.dump?signature=s3cret"' <<<"$out"
    did "db.1 backup url b002" "db.0 backup url b001 --expires 60"
    for bad in 0 soon -1 ''; do fails 2 "--expires wants a" pgbackups:url b001 --expires "$bad"; done
    fault run.db.0.backup.url 'refuse 1 "db.0 serves no backups: there is no program serve" "start it"'
    fails 1 "db.0: db.0 serves no backups: there is no program serve" pgbackups:url b001
    for lie in '{"url": 7}' '{"url": "javascript:x"}' '{"url": "https://a b\u001b[31m"}'; do
        fault run.db.0.backup.url "echo '$lie'; exit"
        fails 1 "what db.0 answered is not pgmahout's" pgbackups:url b001
    done
    # What it warns of does not come between
    fault run.db.0.backup.url 'echo "warning: what is downloaded is encrypted" >&2; jq -cn "{id: \"b001\", url: \"https://x/y\"}"; exit'
    herd pgbackups:url b001
    [ "$status $out" = "0 https://x/y" ]
    [ "$err" = " !    HEROKU_POSTGRESQL_AMBER_URL: what is downloaded is encrypted" ]
}

@test "pgbackups:restore: Heroku's words, and nothing without the app's name" {
    has db.0 b001 $then
    has db.0 b002 $((then + 9)) '.kind = "physical" | del(.database)'
    herd pgbackups:restore SILVER b001
    [ "$status $out" = "3 " ]
    [ "$err" = " !    WARNING: Destructive Action
 !    What is in the database shop of HEROKU_POSTGRESQL_SILVER_URL will be replaced by b001.
 !    This command will affect the app: shop
 !    nothing was done: what is in the database shop of HEROKU_POSTGRESQL_SILVER_URL would be replaced
 !    To proceed, re-run this command with --confirm shop" ]
    herd pgbackups:restore SILVER b001 --json
    [ "$status" = 3 ]
    [ -z "$err" ]
    jq -e '.error.exit == 3' <<<"$out"
    fails 3 "--confirm shopp does not match the app shop" pgbackups:restore SILVER b001 --confirm shopp
    [[ $(at_terminal wrong pgbackups:restore SILVER b001) == *"Confirmation did not match shop. Aborted"* ]]
    did
    said=$(at_terminal shop pgbackups:restore SILVER b001)
    [[ $said == *"
HEROKU_POSTGRESQL_SILVER_URL  <---restore---  b001
                                              HEROKU_POSTGRESQL_AMBER_URL/shop
                                              2010/10/22 19:55.50 UTC
                                              58.4 kB

 !    WARNING: Destructive Action
"*'To proceed, type "shop" or re-run this command with --confirm shop'*"Restoring... done, 3 tables, 50000 rows"* ]]
    did "db.2 backup restore --confirm db.2 --from-blurb -- b001 shop"
    # Heroku's defaults: DATABASE_URL, the most recent
    herd pgbackups:restore --confirm shop
    [ "$status" = 0 ]
    [[ $out == $'\n'"HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)  <---restore---  b001 (most recent)"* ]]
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.0 backup restore --confirm db.0 -- b001 shop" ]
    herd pgbackups:restore GOLD b001 --database new --confirm shop --json
    jq -se 'length == 1 and .[0].instance == "db.1"' <<<"$out"
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.1 backup restore --confirm db.1 --from-blurb -- b001 new" ]
    # A physical one is of the whole server
    fails 2 "b002 is a physical backup" pgbackups:restore GOLD b002 --database new --confirm shop
    herd pgbackups:restore GOLD b002
    [[ $status == 3 && $err == *"What is in HEROKU_POSTGRESQL_GOLD_URL, with all its databases, will be replaced by b002."* ]]
    fault run.db.1.backup.restore 'echo "{\"instance\": \"db.1\", \"kept\": \"/home/dotcloud/data.old\"}"; exit'
    herd pgbackups:restore GOLD b002 --confirm shop
    [ "$(tail -n 2 <<<"$out")" = "Restoring... done
What it had is kept in /home/dotcloud/data.old" ]
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.1 backup restore --confirm db.1 --from-blurb -- b002" ]
}

# at_terminal ANSWER ARGUMENT...: herd on a terminal, where that is typed
at_terminal() {
    (cd "$scene/here" && env -u HERD_APP -u HERD_HOSTS "$BATS_TEST_DIRNAME/fixtures/typed" "$1" "$herd_program" --platform "$broken" "${@:2}" | tr -d '\r') || true
}

@test "pgbackups:restore from a URL shows nobody its signature" {
    herd pgbackups:restore SILVER 'https://b.example.com/x/latest.dump?X-Amz-Signature=s3cret&a=b' --confirm shop
    [ "$status" = 0 ]
    [[ $out == $'\n'"HEROKU_POSTGRESQL_SILVER_URL  <---restore---  latest.dump"$'\n'* && $out != *s3cret* && $err != *s3cret* ]]
    did "db.2 backup restore --confirm db.2 -- https://b.example.com/x/latest.dump?X-Amz-Signature=s3cret&a=b shop"
    herd pgbackups:restore SILVER 'https://b.example.com/b002.tar.zst?s3cret' --confirm shop
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.2 backup restore --confirm db.2 -- https://b.example.com/b002.tar.zst?s3cret" ]
    for wrong in 'https://x/y.dump?s3cret' b001 db.0:b001; do
        fails 2 "into which database?" pgbackups:restore "$wrong" --confirm shop
        fails 2 "into which database?" pgbackups:restore "$wrong" SILVER --confirm shop
    done
}

@test "pgbackups:restore that fails is said, in the instance's words" {
    has db.0 b001 $then
    fault run.db.2.backup.restore 'echo "restoring 12 %" >&2; refuse 1 "b001 is damaged: its checksum is another" "take another"'
    herd pgbackups:restore SILVER b001 --confirm shop
    [ "$status" = 1 ]
    [ "$(tail -n 1 <<<"$out")" = "Restoring... failed" ]
    [[ $err == "  db.2: restoring 12 %"* && $err == *" !    db.2: b001 is damaged: its checksum is another
 !    take another" ]]
    fault blurb 'echo "broken: no blurb today" >&2; exit 1'
    all=$(wc -l <"$BROKEN/calls")
    herd pgbackups:restore SILVER b001 --confirm shop
    [ "$status $err" = "1  !    broken: no blurb today" ]
    fault run.db.2 'exit 255'
    fails 4 "HEROKU_POSTGRESQL_SILVER_URL: db.2 could not be reached" pgbackups:restore SILVER b001 --confirm shop
    [ "$(wc -l <"$BROKEN/calls")" = "$all" ]
}

@test "pgbackups:info, destroy, verify and check" {
    has db.0 b001 $then
    herd pgbackups:info b001 --json
    jq -e '.id == "b001" and .database == "shop"' <<<"$out"
    herd pgbackups:verify b001
    [ "$status $out" = "0 Verifying b001... good: 3 tables, 50000 rows" ]
    fault run.db.0.backup.verify 'echo "{\"id\": \"b001\", \"good\": false, \"text\": \"a \u001b[31mbit flipped\"}"; exit 1'
    herd pgbackups:verify b001
    [ "$status $out" = "1 Verifying b001... failed: a [31mbit flipped" ]
    herd pgbackups:verify b001 --json
    [ "$status" = 1 ]
    jq -se 'length == 1 and .[0].good == false' <<<"$out"
    fault run.db.0.backup.verify 'refuse 1 "there is no room for a throw-away cluster" "make some"'
    herd pgbackups:verify b001
    [ "$status $out" = "1 Verifying b001... failed" ]
    [[ $err == *" !    db.0: there is no room for a throw-away cluster
 !    make some" ]]

    herd pgbackups:check
    [ "$status $out" = "0 HEROKU_POSTGRESQL_AMBER_URL: the last good backup is b001, 3 h old" ]
    [ -z "$err" ]
    fault run.db.1.backup 'echo "{\"ok\": false, \"text\": \"the last try failed\"}"; exit 1'
    herd pgbackups:check GOLD
    [ "$status $out" = "1 HEROKU_POSTGRESQL_GOLD_URL: the last try failed" ]
    [ -z "$err" ]
    herd pgbackups:check GOLD --json
    [ "$status $out" = '1 {"ok": false, "text": "the last try failed"}' ]
    fault run.db.1.backup 'refuse 1 "the store cannot be read" "see"'
    fails 1 "db.1: the store cannot be read" pgbackups:check GOLD
    fault run.db.1 'exit 255'
    fails 4 "db.1 could not be reached" pgbackups:check GOLD
    fails 2 "it wants one database" pgbackups:check AMBER GOLD

    herd pgbackups:destroy b001
    [ "$status $out" = "4 " ]
    rm "$BROKEN/faults"/run.db.1*
    fault_once run.db.0.backup.delete 'refuse 1 "b001 is the only good backup" "take another first"'
    herd pgbackups:destroy b001
    [ "$status $out" = "1 Destroying b001... failed" ]
    [ "$err" = " !    db.0: b001 is the only good backup
 !    take another first" ]
    rm "$BROKEN/faults"/*
    herd pgbackups:destroy b001 --json
    jq -e '.id == "b001"' <<<"$out"
    herd pgbackups --json
    jq -e '.backups == []' <<<"$out"
}

@test "pgbackups:download: every byte, or nothing" {
    herd pgbackups:capture
    herd pgbackups:capture --physical
    herd pgbackups:download b001
    [ "$status" = 0 ]
    [ "$out" = "Downloading b001 from HEROKU_POSTGRESQL_AMBER_URL... done
b001.dump: 58.4 kB" ]
    cmp "$scene/here/b001.dump" <(printf 'PGDMP\0\ndb.0\xff\r\n\0')
    [ "$(stat -c %a "$scene/here/b001.dump")" = 600 ]
    fails 1 "b001.dump is there already; nothing was done" pgbackups:download b001
    herd pgbackups:download b002
    [ "$out" = "Downloading b002 from HEROKU_POSTGRESQL_AMBER_URL... done
b002.tar.gz: 58.4 kB" ]
    mkdir "$scene/here/kept"
    herd pgbackups:download b001 kept --json
    jq -e '.id == "b001" and .file == "kept/b001.dump" and .size == 58400 and (.sha256 | length == 64)' <<<"$out"
    herd pgbackups:download b001 "$scene/here/kept/it's a \"name\""
    [ "$status" = 0 ]
    fails 1 "there is no directory nosuch" pgbackups:download b001 nosuch/file
    before=$(ls -A "$scene/here" "$scene/here/kept")

    fault run.db.0.backup.download 'printf PGDMP; exit'
    fails 1 "b001 came with another checksum than it was stored with; nothing was kept" pgbackups:download b001 new
    fault run.db.0.backup.download 'printf PGDMP; printf "pgmahout: b001 is damaged\nhint: take another\n" >&2; exit 1'
    fails 1 "db.0: b001 is damaged" pgbackups:download b001 new
    [[ $err == *$'\n'" !    take another" ]]
    fault run.db.0.backup.download 'printf PGDMP; exit 255'
    fails 4 "db.0 could not be reached" pgbackups:download b001 new
    fault run.db.0.backup.download "echo mine >'$scene/here/taken'; rm -f \"\$fault\""
    fails 1 "somebody else made taken meanwhile; it was not touched" pgbackups:download b001 taken
    [ "$(cat "$scene/here/taken")" = mine ]
    rm "$scene/here/taken"
    fault run.db.0.backup.download "touch '$scene/hangs'; printf PGDMP; sleep 20"
    runner=("$BATS_TEST_DIRNAME/fixtures/terminal" "$scene/hangs" $'\x03')
    herd pgbackups:download b001 new
    [[ $(tail -n 1 <<<"$out") == "130 "* ]]
    diff <(printf '%s\n' "$before") <(ls -A "$scene/here" "$scene/here/kept")
    rm -r "$scene/here/kept" "$scene/here"/b00*
}

@test "pgbackups as an add-on: a schedule, and its end" {
    fails 2 "which plan?" addons:add pgbackups
    fails 2 "which plan?" addons:add pgbackups:hourly
    fault run.db.0.backup.schedule 'jq -cn "{instance: \"db.0\", plan: \"auto-week\", install: {cron: \"x\"}}"; exit'
    herd addons:add pgbackups:auto-week
    [[ $status == 0 && $err == " !    but nothing on db.0 runs that yet: "* ]]
    all_is_well
    fails 2 "pgbackups has no options" addons:add pgbackups:auto-month --follow AMBER
    fails 1 "HEROKU_POSTGRESQL_AMBER_URL has no nightly backups" addons:remove pgbackups
    did
    herd addons:add pgbackups:auto-week
    [ "$status" = 0 ]
    [ -z "$err" ]
    [ "$out" = 'Adding pgbackups:auto-week on shop... done
HEROKU_POSTGRESQL_AMBER_URL is backed up every night; `herd pgbackups` shows the backups' ]
    herd addons:add pgbackups:auto-month --json
    [ "$out" = '{"addon":"pgbackups:auto-month","instance":"db.0"}' ]
    herd addons
    [[ $out == *$'\n'"pgbackups:auto-month       db.0     every night" ]]
    herd addons --json
    jq -e '.addons[-1] == {addon: "pgbackups:auto-month", instance: "db.0"} and (.addons | length == 4)' <<<"$out"
    fails 1 "has no nightly backups of the plan auto-week, but those of auto-month" addons:remove pgbackups:auto-week
    herd addons:remove pgbackups
    [ "$status" = 3 ]
    [[ $err == *"The backups that there are stay; herd pgbackups shows them."* ]]
    did "db.0 backup schedule auto-week" "db.0 backup schedule auto-month"
    fault run.db.0.backup 'refuse 1 "its server does not run" "start it"'
    herd addons
    [[ $status == 0 && $out == *$'\n'"pgbackups                  db.0     unknown: its server does not run" ]]
    fails 1 "db.0: its server does not run" addons:remove pgbackups --confirm shop
    herd addons:add pgbackups:auto-month
    [ "$status $out" = "1 Adding pgbackups:auto-month on shop... failed" ]
    [[ $err == " !    db.0: its server does not run"* ]]
    rm "$BROKEN/faults"/*
    herd addons:remove pgbackups:auto-month --confirm shop
    [ "$status" = 0 ]
    [ "$out" = 'Removing pgbackups:auto-month from shop... done
The backups that there are stay; `herd pgbackups` shows them' ]
    herd addons --json
    jq -e '.addons | length == 3' <<<"$out"
    [ "$(tail -n 1 "$BROKEN/calls")" = "db.0 backup schedule off" ]
    # Without a DATABASE_URL there is nobody to back up
    fault config-list 'jq -c "{release, config: {}}" "$BROKEN/config.json"; exit'
    fails 2 "shop has no DATABASE_URL" addons:add pgbackups:auto-month
}

@test "completions know the backups" {
    has db.0 b001 $then
    has db.1 a017 $((then + 1))
    for command in info url destroy verify download; do
        herd completions words "herd pgbackups:$command "
        [ "$out" = $'b001\na017' ]
    done
    herd completions words "herd pgbackups:restore SILVER "
    for word in SILVER DATABASE_URL db.2 b001 a017; do grep -qxF "$word" "$scene/out"; done
    herd completions words "herd pgbackups:capture "
    grep -qxF GOLD "$scene/out"
    [[ $out != *b001* ]]
    herd completions words "herd pgbackups:capture --"
    for word in --physical --database --expire --json; do grep -qxF -- "$word" "$scene/out"; done
    herd completions words "herd addons:add "
    grep -qxF pgbackups:auto-month "$scene/out"
    herd completions words "herd addons:remove "
    grep -qxF pgbackups "$scene/out"
    herd completions words "herd pgb"
    grep -qxF pgbackups:restore "$scene/out"
}
