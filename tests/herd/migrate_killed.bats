# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd pg:migrate is killed in the calls that it makes, and goes on with --resume or back with --rollback, which is killed
# as well. The table of cases is that of a migration that nobody disturbed. CASE=TEXT runs those alone whose line holds it
# ("run:fill in"); EVERY_CASE=yes also those that only tests/e2e/migrate.rs has otherwise, in a pretence.

load migration

setup_file() {
    set_migration_scene
    record --from DATABASE_URL --to SILVER >&2
    go_back >&2
}

teardown_file() {
    strike_scene
}

@test "killed in each step, and resumed each time" {
    if [[ -n ${EVERY_CASE:-} ]]; then
        chain "--from DATABASE_URL --to SILVER" "--resume" after
        moved
        go_back
        chain "--from DATABASE_URL --to SILVER" "--resume" before in
    else
        chain "--from DATABASE_URL --to SILVER" "--resume" in
    fi
    moved
    go_back
}

@test "killed and nobody comes: the app is down, and its data is safe; another start says what to do" {
    plan run:fill 1 in kill
    to_silver
    [ "$status" = 137 ]
    nothing_is_missing_in db.0
    nobody_wrote_to "$new_at"
    plan none 0 before true
    to_silver
    [ "$status" = 3 ]
    [[ $err == *--resume* && $err == *--rollback* ]]
    migrate --status
    [ "$status" = 0 ]
    migrate --resume
    [ "$status" = 0 ]
    moved
    go_back
}

# back_again NAME: after a rollback of a migration that was killed at that call
back_again() {
    case $1 in
        maintenance:off | run:finish)
            # The app may have written to the new database by then, and may have gone back from there, which leaves it filled
            give_up_writes_of "$new_at"
            empty_target
            ;;
        *) nobody_wrote_to "$new_at" ;;
    esac
    as_before
}

# rolled_back NAME NUMBER WHEN
rolled_back() {
    plan "$1" "$2" "$3" kill
    to_silver
    [ "$status" = 137 ] && happened || return 1
    plan none 0 before true
    migrate --rollback --confirm shop
    [ "$status" = 0 ] || return 1
    back_again "$1"
}

@test "killed before a step, then rolled back" {
    few="run:fill" each_case rolled_back before
}

@test "killed in a step, then rolled back" {
    few="config-set" each_case rolled_back in
}

@test "killed after a step, then rolled back" {
    few="maintenance:off" each_case rolled_back after
}

# What a rollback changes becomes the table of cases
record_rollback() {
    plan none 0 before true
    migrate --rollback "$@"
    cp "$cut/calls" "$scene/recorded"
    [ "$status" = 0 ]
}

nearly_through() {
    plan config-set 1 after kill
    to_silver
    [ "$status" = 137 ] && happened
}

@test "the way back is killed in each of its steps" {
    nearly_through
    record_rollback
    as_before
    nearly_through
    if [[ -n ${EVERY_CASE:-} ]]; then
        chain "--rollback" "--rollback" before in
        as_before
        nearly_through
        chain "--rollback" "--rollback" after
    else
        chain "--rollback" "--rollback" in
    fi
    nobody_wrote_to "$new_at"
    as_before
}

# What the app wrote meanwhile is given up
through() {
    plan none 0 before true
    to_silver
    [ "$status" = 0 ]
    eventually app_writes_to "$new_at"
}

all_is_back() {
    give_up_writes_of "$new_at"
    empty_target
    as_before
}

@test "after success the way back is killed in each of its steps" {
    through
    record_rollback --confirm shop
    all_is_back
    through
    chain "--rollback --confirm shop" "--rollback --confirm shop" in
    all_is_back
    [[ -n ${EVERY_CASE:-} ]] || return 0
    for when in before after; do
        through
        chain "--rollback --confirm shop" "--rollback --confirm shop" "$when"
        all_is_back
    done
}
