# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2154
# Another `version:` in dotcloud.yml, with the real agent. What it builds is a real server of 15 that says that it
# is another minor version; real sources take minutes and are compiled in tests/e2e/build_version.rs.

load helper

setup_file() {
    set_scene
    # PostgreSQL's own programs cannot live in a path with a $: initdb hands it to a shell
    export DOTCLOUD_HOME="$scene/state dir; it's 100%"
    mkdir "$DOTCLOUD_HOME"
    PGMAHOUT_BINARY=${PGMAHOUT_BIN:?run it by scripts/test}
    export PGMAHOUT_BINARY DOTCLOUD_START_TIMEOUT=60 PGMAHOUT_SOURCE_MIRRORS="file://$scene/mirror"
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgmahout/servers
    ((EUID != 0)) || cache=/var/cache/pgmahout/servers
    server=${PGMAHOUT_SERVERS:-$cache}/15/native
    [[ -x $server/bin/postgres ]] || { echo "no PostgreSQL 15 in $server: run scripts/bootstrap --tests" >&2 && return 1; }
    real=$("$server/bin/postgres" --version | awk '{ print $3 }')
    for version in 15.97 15.98 16.98; do
        source_of "$version"
    done
    export server real
    dotcloud create shop
}

teardown_file() {
    strike_scene
}

# A source tarball of this version for the mirror
source_of() {
    local top=$scene/mirror/v$1/postgresql-$1
    mkdir -p "$top/contrib"
    printf '#!/bin/sh\necho "checking nothing... yes"\n' >"$top/configure"
    chmod 755 "$top/configure"
    printf 'all install:\n' >"$top/contrib/Makefile"
    cat >"$top/Makefile" <<MAKE
all:
	[ ! -e "$scene/broken" ] || { echo "a.c:1:1: error: broken"; exit 1; }
install:
	mkdir -p "\$(DESTDIR)/usr/local/postgresql-$1"
	cp -a "$server/bin" "$server/lib" "$server/share" "\$(DESTDIR)/usr/local/postgresql-$1"
	LC_ALL=C sed -i 's/$real/$1/g' "\$(DESTDIR)/usr/local/postgresql-$1/bin/"*
MAKE
    tar -C "$scene/mirror/v$1" -czf "$top.tar.gz" "postgresql-$1"
    (cd "$scene/mirror/v$1" && sha256sum "postgresql-$1.tar.gz" >"postgresql-$1.tar.gz.sha256")
    chmod -R a+rX "$scene/mirror"
}

version() {
    sed -i "s/^  version: .*/  version: $1/" "$checkout/dotcloud.yml"
}

runs() {
    dotcloud run "$1" "psql -Atc 'show server_version' 2>/dev/null"
}

@test "a push with a version that is not here builds it once for all instances" {
    version '"15.97"'
    run dotcloud push "$checkout"
    echo "$output"
    [ "$status" = 0 ]
    [[ $output == *"PostgreSQL 15.97 is not here (found: "*"); building it"* ]]
    [[ $output == *$'\nPostgreSQL 15.97 is built: '*$'\nPostgreSQL 15.97\n'* ]]
    dotcloud scale db=2
    [ "$(runs db.0) $(runs db.1)" = "15.97 15.97" ]
    # Neither the agent's state nor a path of the build's home came along
    [ "$(dotcloud run db.1 'ls -A .pgmahout 2>/dev/null | grep -cvE "^(pgpass|backup|link-key)"; grep -rlF "build/db" postgresql/ | wc -l')" = $'0\n0' ]
    dotcloud run db.0 'psql -qc "create table kept as select 1 as one"'
}

@test "a changed version is built and switched to, the data stay" {
    version '"15.98"'
    run dotcloud push "$checkout"
    [ "$status" = 0 ]
    [[ $output == *"PostgreSQL 15.98 is built"* ]]
    [ "$(runs db.0) $(runs db.1)" = "15.98 15.98" ]
    [ "$(dotcloud run db.0 'psql -Atc "select one from kept"')" = 1 ]
}

@test "back to the earlier one: nothing is built" {
    version '"15.97"'
    run dotcloud push "$checkout"
    [ "$status" = 0 ]
    [[ $output != *"building it"* && $output == *$'\nPostgreSQL 15.97\n'* ]]
    [ "$(runs db.0)" = 15.97 ]
    run dotcloud run db.0 pgmahout build-version --list
    [[ $output == *"15.97 "*"in use, running"* && $output == *"15.98 "* ]]
}

@test "on the instance itself it takes a restart" {
    run dotcloud run db.1 pgmahout build-version 15.98
    echo "$output"
    [ "$status" = 0 ]
    [[ ${lines[-1]} == "db.1 uses PostgreSQL 15.98 now, server restarted; before: 15.97" ]]
    [ "$(runs db.0) $(runs db.1)" = "15.97 15.98" ]
    run dotcloud run db.1 pgmahout build-version --remove 15.98
    [ "$status" = 1 ]
    [[ $output == *"PostgreSQL 15.98 is in use by this instance, and stays"* ]]
    dotcloud run db.1 pgmahout build-version --remove 15.97
    dotcloud info db.0 >"$BATS_TEST_TMPDIR/blurb"
    run dotcloud run db.1 pgmahout build-version --from-blurb <"$BATS_TEST_TMPDIR/blurb"
    echo "$output"
    [ "$status" = 0 ]
    [[ $output == *"taking PostgreSQL 15.97 from db.0"* ]]
    [ "$(runs db.1)" = 15.97 ]
    dotcloud info db.0 | dotcloud run db.1 pgmahout enslave
}

@test "another major version is refused, and everything goes on as it was" {
    before=$(dotcloud run db.0 'head -n 1 data/postmaster.pid')
    version '"16.98"'
    run dotcloud push "$checkout"
    [ "$status" = 1 ]
    [[ $output == *"builder: the instances hold data of PostgreSQL 15, which a server of 16.98 cannot use; set version: 15 again"* ]]
    [[ $output != *"building it"* ]]
    run dotcloud run db.0 'PGMAHOUT_SOURCE_MIRRORS=file:///nowhere pgmahout build-version 16 2>&1'
    [ "$status" = 1 ]
    [[ $output == *"is of PostgreSQL 15: a server of 16 cannot use it; nothing was changed"* ]]
    [ "$(dotcloud run db.0 'head -n 1 data/postmaster.pid')" = "$before" ]
}

@test "a build that fails changes nothing, and the push can be repeated" {
    dotcloud run db.0 'pgmahout build-version --remove 15.98'
    version '"15.96"'
    run dotcloud push "$checkout"
    [ "$status" = 1 ]
    [[ $output == *"pgmahout: there is no PostgreSQL 15.96 at file://$scene/mirror"$'\n'"hint: it has 15.97 to 15.98"$'\n'* ]]
    source_of 15.96
    touch "$scene/broken"
    run dotcloud push "$checkout"
    echo "$output"
    [ "$status" = 1 ]
    [[ $output == *"make of PostgreSQL 15.96 failed"*"a.c:1:1: error: broken"*"hint: all that it said is in "*"build-15.96.log"* ]]
    [[ $output == *"the build of db failed"*"what runs is as it was"* ]]
    [ "$(runs db.0)" = 15.97 ]
    rm "$scene/broken"
    dotcloud push "$checkout"
    [ "$(runs db.0)" = 15.96 ]
}

@test "destroy leaves no process and no file" {
    dotcloud destroy --yes
    [ -z "$(ls -A "$DOTCLOUD_HOME")" ]
    eventually nothing_runs
}
