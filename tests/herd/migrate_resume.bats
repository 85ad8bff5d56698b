# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd pg:migrate is killed before, in and after each call that it makes, and goes on with --resume. The table of cases is
# that of a migration that nobody disturbed. CASE=TEXT runs those alone that hold it ("run:fill in"); EVERY_CASE=yes all
# of those that are resumed in one go.

load migration

setup_file() {
    set_migration_scene
    record --from DATABASE_URL --to SILVER >&2
    go_back >&2
}

teardown_file() {
    strike_scene
}

@test "killed before and in each step, and resumed each time" {
    chain "--from DATABASE_URL --to SILVER" "--resume" before in
    moved
    go_back
}

@test "killed after each step, and resumed each time" {
    chain "--from DATABASE_URL --to SILVER" "--resume" after
    moved
    go_back
}

# resumed NAME WHEN
resumed() {
    plan "$1" 1 "$2" kill
    to_silver
    [ "$status" = 137 ] && happened || return 1
    plan none 0 before true
    migrate --resume
    [ "$status" = 0 ] || return 1
    moved && go_back
}

@test "killed once where it matters most, and resumed in one go" {
    resumed run:place after
    [[ -z ${EVERY_CASE:-} ]] || { resumed run:quiesce in && resumed config-set after; }
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
