# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2153,SC2154
# herd pg:migrate is killed before, in and after each call that it makes, and goes back with --rollback, which is killed
# as well. The table of cases is that of a migration that nobody disturbed. CASE=TEXT runs those alone whose line holds it.

load migration

setup_file() {
    set_migration_scene
    record --from DATABASE_URL --to SILVER >&2
    go_back >&2
}

teardown_file() {
    strike_scene
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

@test "killed before each step, then rolled back" {
    each_case rolled_back before
}

@test "killed in each step, then rolled back" {
    each_case rolled_back in
}

@test "killed after each step, then rolled back" {
    each_case rolled_back after
}

# way_back NAME NUMBER WHEN: the way back of one that was nearly through is killed there, and gone again
way_back() {
    plan config-set 1 after kill
    to_silver
    [ "$status" = 137 ] && happened || return 1
    plan "$1" "$2" "$3" kill
    migrate --rollback
    [ "$status" = 137 ] && happened || return 1
    plan none 0 before true
    migrate --rollback
    [ "$status" = 0 ] || return 1
    nobody_wrote_to "$new_at" && as_before
}

@test "the way back is killed before, in and after each of its steps" {
    plan config-set 1 after kill
    to_silver
    [ "$status" = 137 ]
    plan none 0 before true
    migrate --rollback
    [ "$status" = 0 ]
    cp "$cut/calls" "$scene/recorded"
    as_before
    each_case way_back before in after
}

# way_back_after_success NAME NUMBER WHEN
way_back_after_success() {
    plan none 0 before true
    to_silver
    [ "$status" = 0 ] || return 1
    eventually app_writes_to "$new_at"
    plan "$1" "$2" "$3" kill
    migrate --rollback --confirm shop
    [ "$status" = 137 ] && happened || return 1
    plan none 0 before true
    migrate --rollback --confirm shop
    [ "$status" = 0 ] || return 1
    give_up_writes_of "$new_at"
    empty_target
    as_before
}

@test "after success the way back is killed in and after each of its steps" {
    plan none 0 before true
    to_silver
    [ "$status" = 0 ]
    plan none 0 before true
    migrate --rollback --confirm shop
    [ "$status" = 0 ]
    cp "$cut/calls" "$scene/recorded"
    give_up_writes_of "$new_at"
    empty_target
    as_before
    each_case way_back_after_success in after
}
