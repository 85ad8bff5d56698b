# shellcheck shell=bash disable=SC2015,SC2016,SC2030,SC2031,SC2034,SC2154
# The scene of the tests of migrations: the app of fixtures/shop on the local platform, with two databases. It writes into
# db.0 (AMBER, DATABASE_URL); db.1 (SILVER) is empty. The migrations call the platform through fixtures/cut. One app
# serves all tests of a file: each leaves it as it was.

# shellcheck source=tests/herd/helper.bash
source "$(dirname "${BASH_SOURCE[0]}")/helper.bash"

set_migration_scene() {
    local root=$BATS_TEST_DIRNAME/../.. verb
    set_herd_scene
    export XDG_STATE_HOME="$scene/journals" cut="$checkout/scripts/platforms/cut"
    unset CASE_LEFT
    cp -a "$BATS_TEST_DIRNAME/fixtures/shop" "$checkout/"
    { cat "$checkout/shop/dotcloud.yml" && sed 's/instances: 1/instances: 2/' "$root/dotcloud.yml"; } >"$checkout/dotcloud.yml"
    mkdir -p "$cut" "$scene/acknowledged" "$XDG_STATE_HOME"
    chmod 777 "$scene/acknowledged"
    cp "$BATS_TEST_DIRNAME/fixtures/cut/verb" "$cut/verb"
    for verb in "$checkout"/scripts/platforms/dotcloud/*; do
        [[ ! -x $verb ]] || ln -s verb "$cut/${verb##*/}"
    done
    : >"$cut/plan"
    : >"$cut/calls"
    : >"$scene/lost"
    dotcloud create shop
    dotcloud env set --no-restart "ACKNOWLEDGED=$scene/acknowledged"
    dotcloud push "$checkout" >&2
    fill_source
    herd addons:attach db.0 --as amber >&2
    herd addons:attach db.1 --as silver >&2
    old_url=$(herd config:get DATABASE_URL)
    # Two more that hold the old URL, and some that do not quite
    printf 'SHOP_URL=%s\0READ_URL=%s?application_name=x\0ODD=%s\0CACHE_URL=redis://10.0.0.1\0' "$old_url" "$old_url" \
        $'a "b"\n\'c\' $HOME \\ % é' | dotcloud env set --stdin --no-restart
    goes_to db.1 SILVER
    eventually app_writes_to "$old_at"
}

# goes_to INSTANCE COLOUR: what the config is to be before and after
goes_to() {
    local old_url new_url
    old_url=$(herd config:get DATABASE_URL)
    new_url=$(herd config:get "HEROKU_POSTGRESQL_$2_URL")
    config >"$scene/before.json"
    platform instances | cut -f 1 >"$scene/instances"
    jq -cS --rawfile old <(printf %s "$old_url") --rawfile new <(printf %s "$new_url") 'map_values(if . == $old then $new else . end)' \
        "$scene/before.json" >"$scene/after.json"
    [[ $(jq -c --slurpfile a "$scene/after.json" '[to_entries[] | select(.value != $a[0][.key]).key]' "$scene/before.json") == '["DATABASE_URL","HEROKU_POSTGRESQL_AMBER_URL","SHOP_URL"]' ]]
    export target="$1" old_at="${old_url##*@}" new_at="${new_url##*@}"
}

# What is odd in a database, in small
fill_source() {
    dotcloud run db.0 psql -qX -v ON_ERROR_STOP=1 <<'SQL'
CREATE TABLE journal (process text, serial bigint, at timestamptz, PRIMARY KEY (process, serial));
CREATE TABLE orders (id serial PRIMARY KEY, price numeric, tax numeric GENERATED ALWAYS AS (price * 0.19) STORED, note bytea);
INSERT INTO orders (price, note) SELECT n, decode(md5(n::text), 'hex') FROM generate_series(1, 5000) AS n;
CREATE TABLE visits (at date, page text) PARTITION BY RANGE (at);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
INSERT INTO visits SELECT '2026-01-01'::date + n % 360, 'page ' || n FROM generate_series(1, 1000) AS n;
CREATE MATERIALIZED VIEW busy AS SELECT at, count(*) FROM visits GROUP BY at;
SELECT lo_from_bytea(4711, '\x00ff01'::bytea);
SQL
}

config() {
    dotcloud env list --json | jq -cS .env
}

# over the platform without the hand
platform() {
    (cd "$scene/here" && "$checkout/scripts/platforms/dotcloud/$1" "${@:2}")
}

# plan NAME NUMBER WHEN WHAT: for the next migration
plan() {
    printf '%s\n' "$*" >"$cut/plan"
    : >"$cut/calls"
    rm -f "$cut/done" "$cut/go" "$cut/held"
}

# migrate ARGUMENT...: into $status, $out, $err
migrate() {
    status=0
    # Who runs this in the background has SIGINT ignored, and that is inherited
    (cd "$scene/here" && exec env --default-signal=INT "$checkout/scripts/herd" --platform "$cut" pg:migrate "$@") \
        >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null || status=$?
    out=$(<"$BATS_TEST_TMPDIR/out")
    err=$(<"$BATS_TEST_TMPDIR/err")
    printf '# pg:migrate %s: %s\n' "$*" "$status"
    sed 's/^/#   /' "$BATS_TEST_TMPDIR/out" "$BATS_TEST_TMPDIR/err"
    ! grep -qF -e "$(password_in "$scene/before.json")" "$BATS_TEST_TMPDIR/out" "$BATS_TEST_TMPDIR/err" || { echo "it shows a password" && return 1; }
}

password_in() {
    jq -r '.DATABASE_URL | capture("://[^:]*:(?<p>[^@]*)@").p' "$1"
}

# the one way of all cases
to_silver() {
    migrate --from DATABASE_URL --to SILVER "$@"
}

# The plan was carried out: else the case has tested nothing
happened() {
    [[ -e $cut/done ]] || { echo "that call was never made; calls:" && cat "$cut/calls" && return 1; }
}

# --- what must be true -----------------------------------------------------------

# As "process serial" of all that was acknowledged, but for what was given up
acknowledged() {
    local file
    for file in "$scene"/acknowledged/*[0-9]; do
        # The last line may be only half there
        awk -v p="${file##*/}" -v at="${1:-}" 'NF == 3 && (at == "" || $3 == at) { print p, $1 }' "$file"
    done | sort | comm -23 - "$scene/lost"
}

# Every acknowledged row is in the database of that instance
nothing_is_missing_in() {
    acknowledged >"$BATS_TEST_TMPDIR/acknowledged"
    psql_on "$1" "SELECT process || ' ' || serial FROM journal" | sort >"$BATS_TEST_TMPDIR/rows"
    [[ -s $BATS_TEST_TMPDIR/acknowledged ]]
    comm -23 "$BATS_TEST_TMPDIR/acknowledged" "$BATS_TEST_TMPDIR/rows" >"$BATS_TEST_TMPDIR/missing"
    [[ ! -s $BATS_TEST_TMPDIR/missing ]] || {
        echo "acknowledged, but missing in $1: $(wc -l <"$BATS_TEST_TMPDIR/missing") of $(wc -l <"$BATS_TEST_TMPDIR/acknowledged")"
        head -n 5 "$BATS_TEST_TMPDIR/missing"
        return 1
    }
}

# Whoever goes back from a database on which the app has written loses that, and knows it
give_up_writes_of() {
    local lost
    lost=$(acknowledged "$1")
    { cat "$scene/lost" && printf '%s\n' "$lost"; } | sed '/^$/d' | sort -u >"$scene/lost.new"
    mv "$scene/lost.new" "$scene/lost"
}

# Nobody has written there
nobody_wrote_to() {
    [[ -z $(acknowledged "$1") ]] || { echo "somebody wrote to $1" && return 1; }
}

# Each of the three processes, within the last two seconds, and nowhere else
app_writes_to() {
    local name last
    for name in www.0 www.1 worker.0; do
        last=$(tail -n 2 "$scene/acknowledged/$name" 2>/dev/null | awk 'NF == 3' | tail -n 1)
        [[ ${last##* } == "$1" ]] || return 1
        awk -v l="$last" -v now="$EPOCHREALTIME" 'BEGIN { split(l, f, " "); exit !(now - f[2] < 2) }' || return 1
    done
}

same_config_as() {
    diff <(jq -S . "$1") <(config | jq -S .) || { echo "the config is not that of ${1##*/}" && return 1; }
}

app_runs() {
    [[ $(platform maintenance) == off ]] || { echo "maintenance is on" && return 1; }
    [[ $(platform processes | sort) == $'worker\t1\trunning\nwww\t2\trunning' ]] || { echo "processes:" && platform processes && return 1; }
}

# No migration, no call of it, nothing on the instances that it began
nobody_migrates() {
    local pid left=0
    while read -r pid; do
        ! tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -E 'migrate --platform|platforms/cut/' || left=1
    done < <(grep -lzxF -- "XDG_STATE_HOME=$XDG_STATE_HOME" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)
    ! pgrep -af "copy-part .*--lifeline" | grep -F "$scene" || left=1
    ((left == 0)) || { echo "still runs" && return 1; }
    [[ -z $(find "$XDG_STATE_HOME" -name '*.child') ]] || { echo "a record of a call is left" && return 1; }
}

is_free() {
    [[ $(psql_on "$1" "SHOW default_transaction_read_only") == off ]] || { echo "$1 is read-only" && return 1; }
    [[ $(psql_on "$1" "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgmahout_migration'") == 0 ]] || { echo "$1 is locked" && return 1; }
}

is_empty() {
    [[ $(psql_on "$1" "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0 ]] || { echo "$1 is not empty" && return 1; }
    [[ -z $(psql_on "$1" "SELECT datname FROM pg_database WHERE datname LIKE '%pgmahout%'") ]] || { echo "a copy is left on $1" && return 1; }
}

# All as it was before the migration
as_before() {
    eventually nobody_migrates &&
        same_config_as "$scene/before.json" && app_runs &&
        is_free db.0 && is_free "$target" && is_empty "$target" &&
        diff "$scene/instances" <(platform instances | cut -f 1) &&
        eventually app_writes_to "$old_at" && nothing_is_missing_in db.0
}

# The app has moved to the target, and db.0 is kept for the way back
moved() {
    eventually nobody_migrates &&
        same_config_as "$scene/after.json" && app_runs &&
        [[ $(psql_on db.0 "SHOW default_transaction_read_only") == on ]] &&
        [[ $(psql_on db.0 "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgmahout_migration'") == 1 ]] &&
        [[ $(psql_on "$target" "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgmahout_migration'") == 0 ]] &&
        eventually app_writes_to "$new_at" && nothing_is_missing_in "$target" && same_data
}

# What the app does not write
same_data() {
    local name query="SELECT (SELECT md5(string_agg(o::text, ',' ORDER BY id)) FROM orders o), (SELECT md5(string_agg(v::text, ',' ORDER BY v::text)) FROM visits v),
        (SELECT sum(count) FROM busy), (SELECT md5(lo_get(4711))), (SELECT last_value FROM orders_id_seq)"
    diff <(psql_on db.0 "$query") <(psql_on "$target" "$query")
}

# After success: back to the old database, and the new one empty again
go_back() {
    migrate --rollback --confirm shop
    [[ $status == 0 ]] || return 1
    give_up_writes_of "$new_at"
    empty_target
    as_before
}

empty_target() {
    dotcloud run "$target" 'psql -qX -d template1 -c "DROP DATABASE IF EXISTS postgres WITH (FORCE)" -c "CREATE DATABASE postgres TEMPLATE template0"'
}

# --- the table of cases ----------------------------------------------------------

# What only looks: a kill there has nothing to undo
looks='^(app|instances|config-list|config-get|processes|oneoffs|releases|blurb|url|maintenance:ask|run:info|run:backup|run:look|run:check|run:credentials|run:changes)$'

# record ARGUMENT...: a migration that nobody disturbs; its calls into $scene/recorded
record() {
    plan none 0 before true
    migrate "$@"
    cp "$cut/calls" "$scene/recorded"
    [[ $status == 0 ]]
}

# cases WHEN...: "NAME NUMBER WHEN" for each recorded call that changes something. CASE=TEXT keeps those that hold it;
# $few those of the names that it matches, unless EVERY_CASE is set: tests/e2e/migrate.rs has all calls, in a pretence.
cases() {
    local name number when
    while read -r name number; do
        [[ ! $name =~ $looks ]] || continue
        [[ -n ${EVERY_CASE:-} || $name =~ ^(${few:-.*})$ ]] || continue
        for when; do printf '%s %s %s\n' "$name" "$number" "$when"; done
    done <"$scene/recorded" | grep -F -- "${CASE:-}"
}

# each_case FUNCTION WHEN...: with NAME NUMBER WHEN of each
each_case() {
    local function=$1 all line
    shift
    mapfile -t all < <(cases "$@")
    ((${#all[@]}))
    for line in "${all[@]}"; do
        echo "# ---- $line ($((SECONDS)) s)"
        # shellcheck disable=SC2086 # three words
        "$function" $line || { echo "# failed: $line" && return 1; }
    done
}

# chain "ARGUMENT..." "ARGUMENT..." WHEN...: pg:migrate with the first arguments, killed, and gone on with the second ones,
# killed again at the next case of the table, and so on to its end: whoever goes on comes through the step at which the last
# one was killed. (A call that came to its end is not made again, so "in" and "after" are not for one chain.)
chain() {
    local name when seen=" " words next
    read -r -a words <<<"$1"
    read -r -a next <<<"$2"
    shift 2
    while read -r name _; do
        [[ ! $name =~ $looks && $seen != *" $name "* ]] || continue
        seen+="$name "
        for when; do
            [[ "$name $when" == *"${CASE:-}"* ]] || continue
            echo "# ---- $name $when ($SECONDS s)"
            plan "$name" 1 "$when" kill
            migrate "${words[@]}"
            [[ $status == 137 ]] && happened || { echo "# failed: $name $when" && return 1; }
            words=("${next[@]}")
        done
    done <"$scene/recorded"
    [[ $seen != " " ]]
    plan none 0 before true
    migrate "${next[@]}"
    [[ $status == 0 ]]
}
