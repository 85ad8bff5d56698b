# shellcheck shell=bash disable=SC2016,SC2031,SC2154
# The scene of these tests: a checkout and a state directory whose paths hold
# spaces and other things that quoting must survive. Not in bats' own directory,
# which the instances' account cannot enter.

set_scene() {
    local name here root
    here=$(dirname "${BASH_SOURCE[0]}")
    root=$here/../..
    for name in jq yq supervisord rsync python3 ssh flock; do
        command -v "$name" >/dev/null || { echo "$name is missing: run scripts/bootstrap" >&2 && return 1; }
    done
    scene=$(mktemp -d "${TMPDIR:-/tmp}/dotcloud tests.XXXXXX")
    checkout="$scene/check out 100%"
    # bats has such a directory for each test, but none for setup_file, where "$BATS_TEST_TMPDIR/x" would be /x: of all files
    BATS_TEST_TMPDIR=${BATS_TEST_TMPDIR:-$scene/setup}
    mkdir -p "$scene/setup" "$checkout/scripts" "$scene/state dir; it's 100% \$HOME" "$scene/here"
    chmod 755 "$scene"
    cp -a "$root/scripts/dotcloud" "$root/scripts/dotcloud.d" "$root/scripts/platforms" "$checkout/scripts/"
    cp -a "$root/recipe" "$root/dotcloud.yml" "$checkout/"
    cp -a "$here/fixtures/www" "$scene/www"
    export scene checkout DOTCLOUD_HOME="$scene/state dir; it's 100% \$HOME"
    unset DOTCLOUD_USER
}

strike_scene() {
    local app
    cd /
    for app in "$DOTCLOUD_HOME"/apps/*/; do
        [[ ! -d $app ]] || dotcloud -A "$(basename "$app")" destroy --yes >/dev/null
    done
    rm -rf -- "$scene"
}

dotcloud() {
    (cd "${directory:-$scene/here}" && "$checkout/scripts/dotcloud" "$@")
}

# refused STATUS MESSAGE COMMAND...: it fails with one line, and this one
refused() {
    local want=$1 message=$2 status=0 error
    shift 2
    error=$("$@" 2>&1 >/dev/null) || status=$?
    [[ $status == "$want" && $error == dotcloud:*"$message"* && $error != *$'\n'* ]] || {
        printf 'status %s, not %s; message: %s\n' "$status" "$want" "$error"
        return 1
    }
}

eventually() {
    local deadline=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < deadline)) || { echo "not within 60 seconds: $*" && return 1; }
        sleep 0.2
    done
}

port() {
    dotcloud "${@:3}" info "$1" --json | jq -r --arg name "$2" '.ports[] | select(.name == $name) | .url | capture(":(?<p>[0-9]+)/?$").p'
}

# What the fixture's server sees in the variable
served() {
    exec 4<>"/dev/tcp/127.0.0.1/$(port www.0 http)"
    printf 'GET /%s HTTP/1.0\r\n\r\n' "$1" >&4
    sed '1,/^\r*$/d' <&4
    exec 4>&-
}

nothing_runs() {
    [[ -z $(processes_of_scene) ]]
}

processes_of_scene() {
    grep -lzF "$scene" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null |
        grep -v "^/proc/\($$\|$BASHPID\|self\)/" | cut -d/ -f3 | sort -u | while read -r pid; do
        # The tests' own processes have $scene in their environment too
        ! tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -q ^BATS_ || continue
        [[ ! -d /proc/$pid ]] || tr '\0' ' ' <"/proc/$pid/cmdline"
    done
}
