# shellcheck shell=bash disable=SC2015,SC2016,SC2031,SC2154
# The scene of the tests of herd: that of the dotcloud tests, with herd and its plans in the checkout, and an
# application that writes into its database. Databases are the project's own: the real agent, the real server.

# shellcheck source=tests/dotcloud/helper.bash
source "$(dirname "${BASH_SOURCE[0]}")/../dotcloud/helper.bash"

set_herd_scene() {
    local root=$BATS_TEST_DIRNAME/../..
    set_scene
    cp -a "$root/scripts/herd" "$root/scripts/herd.d" "$checkout/scripts/"
    cp -a "$root/Cargo.toml" "$checkout/"
    cp -a "$BATS_TEST_DIRNAME/fixtures/www" "$checkout/"
    cat "$checkout/www/dotcloud.yml" "$root/dotcloud.yml" >"$checkout/dotcloud.yml"
    # The instances' account cannot read everybody's target/
    install -m 755 "${PGMAHOUT_BIN:?run it by scripts/test}" "$scene/pgmahout"
    export PGMAHOUT_BINARY=$scene/pgmahout DOTCLOUD_START_TIMEOUT=60
    unset HERD_APP HERD_PLATFORM HERD_HOSTS
}

herd() {
    (cd "${directory:-$scene/here}" && exec "$checkout/scripts/herd" "$@")
}

# psql_on INSTANCE SQL: by the platform, not by herd
psql_on() {
    dotcloud run "$1" "psql -Atqc $(printf %q "$2")"
}

# ends STATUS TEXT COMMAND...: it exits so, and says TEXT on stderr; both kept in $out and $err
ends() {
    local want=$1 text=$2 status=0
    shift 2
    "$@" >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null || status=$?
    out=$(<"$BATS_TEST_TMPDIR/out")
    err=$(<"$BATS_TEST_TMPDIR/err")
    [[ $status == "$want" && $err == *"$text"* ]] || {
        printf '%s: status %s, not %s\nstdout: %s\nstderr: %s\n' "${*: -3}" "$status" "$want" "$out" "$err"
        return 1
    }
}

# refuses STATUS TEXT ARGUMENT...: herd says so in Heroku's way, on stderr alone, and by --json as one object
refuses() {
    local want=$1 text=$2 status=0 json
    shift 2
    (
        set +e
        herd --json "$@" >"$BATS_TEST_TMPDIR/json" 2>"$BATS_TEST_TMPDIR/json.err" </dev/null
        echo $? >"$BATS_TEST_TMPDIR/json.status"
    ) 3>&- &
    json=$!
    herd "$@" >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" </dev/null || status=$?
    wait "$json"
    out=$(<"$BATS_TEST_TMPDIR/out")
    err=$(<"$BATS_TEST_TMPDIR/err")
    [[ $status == "$want" && (-z $out || $out == *"... failed") && $err == *" !    "*"$text"* ]] || {
        printf 'herd %s: status %s, not %s\nstdout: %s\nstderr: %s\n' "$*" "$status" "$want" "$out" "$err"
        return 1
    }
    [[ $(<"$BATS_TEST_TMPDIR/json.status") == "$want" && ! -s $BATS_TEST_TMPDIR/json.err ]] &&
        jq -se --argjson s "$want" --arg t "$text" 'length == 1 and (.[0] | keys == ["error"])
            and .[0].error.exit == $s and ([.[0].error | .message, .hint // ""] | any(contains($t)))' "$BATS_TEST_TMPDIR/json" >/dev/null || {
        printf 'herd --json %s: status %s, not %s\n' "$*" "$(<"$BATS_TEST_TMPDIR/json.status")" "$want"
        cat "$BATS_TEST_TMPDIR/json" "$BATS_TEST_TMPDIR/json.err"
        return 1
    }
}

# Whatever a refused command must not change: the config and its release, the instances and their roles
situation() {
    local name
    dotcloud env list --json
    dotcloud info --json >"$BATS_TEST_TMPDIR/info"
    jq -cS '.services | map_values(.instances)' "$BATS_TEST_TMPDIR/info"
    for name in $(jq -r '.services.db.instances | keys[]' "$BATS_TEST_TMPDIR/info"); do
        printf '%s %s\n' "$name" "$(psql_on "$name" "select pg_is_in_recovery(), system_identifier, current_setting('primary_conninfo') from pg_control_system()" 2>&1)"
    done
}

# unchanged COMMAND...: it leaves the situation as it was
unchanged() {
    local before
    before=$(situation)
    "$@" && diff <(printf '%s\n' "$before") <(situation)
}

# typed ANSWER ARGUMENT...: herd on a terminal, where that is typed; all that it shows, and its exit code
typed() {
    (cd "$scene/here" && "$BATS_TEST_DIRNAME/fixtures/typed" "$1" "$checkout/scripts/herd" "${@:2}" | tr -d '\r' && exit "${PIPESTATUS[0]}")
}

# field NAME FILTER: of what pg:info --json says of one database
field() {
    herd pg:info --json "$1" | jq -r ".databases[0]$2"
}

release() {
    dotcloud env list --json | jq .release
}
