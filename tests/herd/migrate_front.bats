# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# What herd itself does of pg:migrate, pg:upgrade and pg:copy: names, defaults, refusals, and what it hands to the agent
# on this machine, which here only tells how it was called. The platform is fixtures/broken.

load scene

setup_file() {
    set_pretend_scene
    export scene broken herd_program
    # It goes where a checkout would have it
    mkdir -p "$scene/bin"
    cat >"$scene/bin/pgmahout" <<'AGENT'
#!/bin/bash
printf 'argument %s\n' "$@"
printf 'environment %s|%s\n' "$HERD_APP" "$HERD_PLATFORM"
[ ! -p /dev/stdin ] || printf 'stdin %s\n' "$(cat)"
[ ! -e /proc/self/fd/3 ] && [ ! -e /proc/self/fd/5 ] || echo "descriptors are left open"
exit "${AGENT_EXIT:-0}"
AGENT
    chmod 755 "$scene/bin/pgmahout"
    export PGMAHOUT_BIN="$scene/bin/pgmahout"
}

teardown_file() {
    rm -rf -- "$scene"
}

# hands ARGUMENT... -- HERD-ARGUMENT...: this is what the agent gets after its platform, herd and app
hands() {
    local expected=()
    while [[ $1 != -- ]]; do
        expected+=("$1")
        shift
    done
    shift
    herd "$@"
    [ "$status" = 0 ]
    diff <(printf 'argument %s\n' migrate --platform "$broken" --herd "$(readlink -f "$herd_program")" --app shop "${expected[@]}" &&
        printf 'environment shop|%s/\n' "$broken") <(printf '%s\n' "$out")
    did
}

set_config() {
    jq -c --arg n "$1" --arg v "$2" '.config[$n] = $v' "$BROKEN/config.json" >"$scene/new"
    mv "$scene/new" "$BROKEN/config.json"
}

@test "pg:migrate: names become instances and variables, and a new database gets a free colour" {
    hands --from DATABASE_URL --to db.2 -- pg:migrate --from DATABASE_URL --to SILVER
    hands --from HEROKU_POSTGRESQL_AMBER_URL --to db.2 -- pg:migrate --from amber --to=heroku_postgresql_silver_url
    hands --from DATABASE_URL --plan ronin --colour AQUA -- pg:migrate --from database_url --plan ronin
    hands --from DATABASE_URL --colour AQUA -- pg:migrate --from DATABASE_URL
    hands --from DATABASE_URL --plan ronin --colour RED -- pg:migrate --from DATABASE_URL --plan=ronin --as red
    # One that is there, but attached to nothing
    jq -c '.instance = "db.3"' "$broken/model/new.json" >"$BROKEN/instances/db.3"
    hands --from DATABASE_URL --to db.3 --colour AQUA -- pg:migrate --from DATABASE_URL --to db.3
    hands --from DATABASE_URL --to db.3 --colour JADE -- pg:migrate --from DATABASE_URL --to DB.3 --as heroku_postgresql_jade
    set_config SHARED_DATABASE_URL postgres://old:s3cret@elsewhere:5432/shared
    hands --from SHARED_DATABASE_URL --to db.2 -- pg:migrate --to SILVER
    hands --from SHARED_DATABASE_URL --to db.2 -- pg:migrate --from shared_database --to SILVER
    # All the rest as it is
    hands --rehearse --dry-run --no-owner --wait 7 --terminate --jobs 3 --from DATABASE_URL --to db.2 --confirm shop -- \
        pg:migrate --rehearse -n --no-owner --wait 7 --terminate --jobs=3 --from DATABASE_URL --to SILVER --confirm shop
    hands --abandon --from DATABASE_URL --confirm shop -- pg:migrate --abandon --from DATABASE_URL --confirm shop
    hands --abandon --from SHARED_DATABASE_URL -- pg:migrate --abandon
    for action in --resume --rollback --status; do
        hands "$action" -- pg:migrate "$action"
        hands "$action" --confirm shop -- pg:migrate "$action" --confirm shop
    done
    herd pg:migrate --status --json
    [ "$(head -n 2 <<<"$out")" = $'argument --json\nargument migrate' ]
}

@test "pg:migrate: the exit code is the agent's, and its stdin is ours" {
    for code in 1 3 4 5; do
        AGENT_EXIT=$code herd pg:migrate --from DATABASE_URL --to SILVER
        [ "$status" = "$code" ]
    done
    status=0
    out=$(cd "$scene/here" && printf 'postgres://x:s3cret@old:5432/x' | "$herd_program" --platform "$broken" pg:migrate --url - --to SILVER)
    [[ $out == *$'argument --url\nargument -\n'* && $out == *"stdin postgres://x:s3cret@old:5432/x" ]]
    printf 'postgres://x:s3cret@old:5432/x\n' >"$scene/here/old url"
    hands --url "old url" --to db.2 -- pg:migrate --url "old url" --to SILVER
    [ "$(ls -A "$TMPDIR")" = "" ]
}

@test "pg:migrate refuses what it cannot know, and says the way" {
    fails 2 "shop has no SHARED_DATABASE_URL, and which database to move from is not guessed" pg:migrate --to SILVER
    [[ $err == *"say --from with one of: DATABASE_URL, HEROKU_POSTGRESQL_AMBER_URL, HEROKU_POSTGRESQL_GOLD_URL, HEROKU_POSTGRESQL_SILVER_URL" ]]
    fails 2 "shop has no config variable REDIS_URL" pg:migrate --from REDIS_URL --to SILVER
    set_config REDIS_URL redis://x
    fails 2 "REDIS_URL of shop does not hold the URL of a PostgreSQL database" pg:migrate --from REDIS_URL --to SILVER
    fails 2 "shop has no database PURPLE" pg:migrate --from DATABASE_URL --to PURPLE
    fails 2 "there is no plan nosuch" pg:migrate --from DATABASE_URL --plan nosuch
    fails 2 "only one of them" pg:migrate --from DATABASE_URL --to SILVER --plan ronin
    fails 2 "only one of them" pg:migrate --from DATABASE_URL --url - --to SILVER
    fails 2 "--as is for what is not" pg:migrate --from DATABASE_URL --to SILVER --as red
    fails 1 "HEROKU_POSTGRESQL_GOLD is attached already" pg:migrate --from DATABASE_URL --as gold
    fails 2 "--wait wants a number" pg:migrate --wait soon
    fails 2 "--jobs wants a number" pg:migrate --jobs
    fails 2 "--to wants a value" pg:migrate --to
    fails 2 "unknown option --nosuch" pg:migrate --nosuch
    fails 2 "unknown argument SILVER" pg:migrate SILVER
    fails 2 "--resume or --rollback?" pg:migrate --resume --rollback
    fails 2 "--resume takes no other options" pg:migrate --resume --to SILVER
    fails 2 "--rollback takes no other options" pg:migrate --rollback --terminate
    fails 2 "--abandon takes no other options" pg:migrate --abandon --to SILVER
    fails 2 "shop has no SHARED_DATABASE_URL" pg:migrate --abandon
    fails 2 "--url nowhere: there is no such file" pg:migrate --url nowhere --to SILVER
    PGMAHOUT_BIN=$scene/nowhere fails 1 "PGMAHOUT_BIN=$scene/nowhere is not an executable file" pg:migrate --from DATABASE_URL --to SILVER
    did
}

@test "the agent of this machine: beside the scripts, or in the PATH, or the way to one" {
    mkdir -p "$scene/alone/scripts" "$scene/path"
    cp -a "$(dirname "$herd_program")/herd" "$(dirname "$herd_program")/herd.d" "$scene/alone/scripts/"
    mkdir "$scene/alone/recipe"
    herd_program=$scene/alone/scripts/herd
    unset PGMAHOUT_BIN
    fails 1 "a migration needs pgmahout on this machine too, and there is none" pg:migrate --status
    [[ $err == *"cargo build --release in $scene/alone, or put it into your PATH"* ]]
    ln -s "$scene/bin/pgmahout" "$scene/path/pgmahout"
    PATH=$scene/path:$PATH herd pg:migrate --status
    [ "$status" = 0 ]
    mkdir -p "$scene/alone/target/x86_64-unknown-linux-gnu/release"
    printf '#!/bin/sh\necho beside\n' >"$scene/alone/target/x86_64-unknown-linux-gnu/release/pgmahout"
    chmod 755 "$scene/alone/target/x86_64-unknown-linux-gnu/release/pgmahout"
    PATH=$scene/path:$PATH herd pg:migrate --status
    [ "$status $out" = "0 beside" ]
}

@test "pg:upgrade: the variable that holds the database's URL, and newer only" {
    hands --from DATABASE_URL --newer --to db.2 -- pg:upgrade DATABASE_URL --to SILVER
    hands --from HEROKU_POSTGRESQL_AMBER_URL --newer --to db.2 -- pg:upgrade AMBER --to SILVER
    hands --from DATABASE_URL --newer --to db.2 -- pg:upgrade db.0 --to SILVER
    hands --from HEROKU_POSTGRESQL_GOLD_URL --newer --to db.2 -- pg:upgrade db.1 --to SILVER
    hands --rehearse --from DATABASE_URL --newer --plan ronin --colour AQUA -- pg:upgrade DATABASE_URL --plan ronin --rehearse
    fails 2 "which database? it wants one" pg:upgrade
    fails 2 "which database? it wants one" pg:upgrade AMBER SILVER
    fails 2 "--from is for pg:migrate" pg:upgrade AMBER --from X
    fails 2 "--resume is for pg:migrate, also after pg:upgrade" pg:upgrade --resume
    jq -c '.instance = "db.3"' "$broken/model/new.json" >"$BROKEN/instances/db.3"
    fails 1 "db.3 is not attached, so no config variable holds its URL" pg:upgrade db.3 --to SILVER
    did
}

@test "pg:copy: the source's URL goes to the target's agent by its stdin" {
    herd pg:copy DATABASE_URL SILVER
    [ "$status $out" = "0 Copying HEROKU_POSTGRESQL_AMBER_URL to HEROKU_POSTGRESQL_SILVER_URL... done, 3 tables, 1200 rows, 58.4 kB, 1.3 s" ]
    [ "$err" = " !    the roles [31mx are not here" ]
    did "db.2 copy shop" "db.2 copied from 10.0.0.0:5432/shop"
    : >"$BROKEN/calls"
    printf 'postgres://x:s3cret@old:5432/x\r\nmore\n' >"$scene/here/old url"
    herd pg:copy --url "old url" --no-owner --jobs 2 db.2 --json
    [ "$status $err" = "0 " ]
    jq -e '.rows == 1200' <<<"$out"
    did "db.2 copy --no-owner --jobs 2 shop" "db.2 copied from old:5432/x"
    : >"$BROKEN/calls"
    (cd "$scene/here" && printf 'postgres://x:s3cret@old:5432/y' | "$herd_program" --platform "$broken" pg:copy --url - SILVER >/dev/null 2>&1)
    did "db.2 copy shop" "db.2 copied from old:5432/y"
}

@test "pg:copy into what is not empty wants the app's name" {
    fault run.db.2.copy '[[ $(tail -n 1 "$BROKEN/calls") == *" --confirm "* ]] || refuse 3 "the database shop is not empty: 3 tables" "to replace it, say --confirm db.2"'
    herd pg:copy DATABASE_URL SILVER --json
    jq -e '.error | .exit == 3 and .message == "nothing was done: the database shop is not empty: 3 tables"' <<<"$out"
    herd pg:copy DATABASE_URL SILVER
    [ "$status" = 3 ]
    [[ $err == *" !    What is in the database shop of HEROKU_POSTGRESQL_SILVER_URL will be replaced by a copy of HEROKU_POSTGRESQL_AMBER_URL."*"re-run this command with --confirm shop"* ]]
    : >"$BROKEN/calls"
    herd pg:copy DATABASE_URL SILVER --confirm blog
    [[ $status == 3 && $err == *"--confirm blog does not match the app shop; nothing was done"* ]]
    : >"$BROKEN/calls"
    herd pg:copy DATABASE_URL SILVER --confirm shop
    [ "$status" = 0 ]
    did "db.2 copy shop" "db.2 copy --confirm db.2 shop" "db.2 copied from 10.0.0.0:5432/shop"
    # Refused for another reason: nobody is asked
    fault run.db.2.copy 'refuse 3 "a migration of shop by ann@desk has it since 10:00" "herd pg:migrate --status there"'
    herd pg:copy DATABASE_URL SILVER --confirm shop
    [[ $status == 3 && $err == *"db.2: a migration of shop by ann@desk has it since 10:00"* ]]
    fails 2 "cannot be copied into itself" pg:copy AMBER DATABASE_URL
    fails 2 "it wants DB and TARGET" pg:copy SILVER
    fails 2 "does not begin with a URL" pg:copy --url <(echo no) SILVER
}

@test "addons:add and attach of a migration's target leave DATABASE_URL alone" {
    jq -c '.config |= {SHARED_DATABASE_URL: "postgres://old:s3cret@elsewhere:5432/shared"}' "$BROKEN/config.json" >"$scene/new"
    mv "$scene/new" "$BROKEN/config.json"
    HERD_ATTACH_ONLY=yes herd --json addons:add heroku-postgresql --as red
    [ "$status" = 0 ]
    jq -e '. == {instance: "db.3", attachment: "HEROKU_POSTGRESQL_RED_URL", plan: null, release: 4}' <<<"$out"
    did "provision none" "config-set HEROKU_POSTGRESQL_RED_URL=db.3"
    HERD_ATTACH_ONLY=yes herd --json addons:attach db.2 --as blue
    jq -e '. == {instance: "db.2", attachment: "HEROKU_POSTGRESQL_BLUE_URL", release: 5}' <<<"$out"
    herd --json addons:detach BLUE
    jq -e '. == {instance: "db.2", release: 6}' <<<"$out"
    # Attached or not
    for instance in db.3 db.2; do
        herd --json addons:remove "$instance" --confirm shop
        [ "$status" = 0 ]
        jq -e --arg i "$instance" '.destroyed == $i' <<<"$out"
    done
    [ "$(jq -c '.config | keys' "$BROKEN/config.json")" = '["SHARED_DATABASE_URL"]' ]
}

@test "ps:scale in maintenance says that nothing starts" {
    fault maintenance 'echo on; exit'
    herd ps:scale www=0
    [ "$status $out" = "0 Scaling www processes... done, now running 0
shop is in maintenance: what is new starts when it is turned off" ]
    did "scale www=0"
}
