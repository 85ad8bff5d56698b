#!/usr/bin/env bats
# The README's walk-through is run as printed, from a clone in a path with a space.

setup() {
    root=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
    clone="$BATS_TEST_TMPDIR/a clone"
    mkdir "$clone"
    (cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$clone")
    # Built once: the clone's `cargo build` finds all but our own crate done.
    export CARGO_TARGET_DIR=$root/target OPENSSL_SRC_PERL=$root/scripts/openssl-perl
    ln -s "$root/target" "$clone/target"
    # Not below a test's directory: those are root's own, and the instances are another account's.
    DOTCLOUD_HOME=$(mktemp -d "${TMPDIR:-/tmp}/pgmahout readme.XXXXXX")
    export DOTCLOUD_HOME
    chmod 755 "$DOTCLOUD_HOME"
}

teardown() {
    "$clone/scripts/dotcloud" -A shop destroy --yes >/dev/null 2>&1 || true
    rm -rf "$DOTCLOUD_HOME"
}

# The sh blocks of a section, as one script.
commands_of() {
    awk -v section="## $1" '
        /^## / { inside = ($0 == section) }
        inside && /^```sh$/ { code = 1; next }
        /^```$/ { code = 0 }
        code' "$clone/README.md"
}

@test "the walk-through works as printed" {
    commands_of "Walk through it" >"$BATS_TEST_TMPDIR/commands"
    [ "$(grep -c dotcloud "$BATS_TEST_TMPDIR/commands")" -ge 15 ]
    cd "$clone"
    run bash -e -o pipefail "$BATS_TEST_TMPDIR/commands"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"db.1 streams from db.0"* ]]
    [[ $output == *"db.2 streams from db.0"* ]]
    [[ $output == *"db.2 streams from db.1: no data moved"* ]]
    [[ $output == *"db.0 streams from db.1: no data moved"* ]]
    [[ $output == *$'\n1001\n'* ]]
}

@test "the herd's commands work as printed" {
    commands_of "The herd" >"$BATS_TEST_TMPDIR/commands"
    [ "$(grep -c ^herd "$BATS_TEST_TMPDIR/commands")" -ge 15 ]
    cd "$clone"
    PATH=$clone/scripts:$PATH run bash -e -o pipefail "$BATS_TEST_TMPDIR/commands"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"HEROKU_POSTGRESQL_AQUA_URL is the primary"* ]]
    [[ $output == *"Promoting HEROKU_POSTGRESQL_BLACK_URL to DATABASE_URL... done"* ]]
    [[ $output == *"HEROKU_POSTGRESQL_AMBER_URL follows HEROKU_POSTGRESQL_BLACK_URL now (no data moved"* ]]
    [[ $output == *"HEROKU_POSTGRESQL_AQUA_URL follows HEROKU_POSTGRESQL_BLACK_URL now"* ]]
    [[ $output == *"Rotating the password of dotcloud on HEROKU_POSTGRESQL_BLACK_URL... done"* ]]
}

@test "the backups' commands work as printed" {
    commands_of "Backups" >"$BATS_TEST_TMPDIR/commands"
    [ "$(grep -c pgbackups "$BATS_TEST_TMPDIR/commands")" -ge 10 ]
    cd "$clone"
    PATH=$clone/scripts:$PATH run bash -e -o pipefail "$BATS_TEST_TMPDIR/commands"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"HEROKU_POSTGRESQL_AQUA_URL  ----backup--->  b002"* ]]
    [[ $output == *$'\nb001 | '*$'\nb002 | '* ]]
    [[ $output == *"<---restore---  b001"*"Restoring... done"*"  1000"* ]]
    [[ $output == *"Verifying b001... good"* ]]
    [[ $output == *$'\n'"pgbackups:auto-month       db.0     every night"* ]]
    pg_restore --list latest.dump | grep -q "TABLE DATA public orders"
    pg_restore --list kept.dump | grep -q "TABLE DATA public orders"
}
