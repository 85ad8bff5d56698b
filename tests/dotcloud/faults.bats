# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2154
# What goes wrong around scripts/dotcloud: one clear line, and the half-made
# instance is gone.

load helper

setup_file() {
    set_scene
    # Small and quick: what matters here is what goes wrong
    mkdir "$scene/small"
    printf 'small: {type: custom, process: exec sleep 100000}\n' >"$scene/small/dotcloud.yml"
    dotcloud create shop
    dotcloud push "$scene/small"
}

teardown_file() {
    strike_scene
}

# fails_and_cleans MESSAGE COMMAND...: the first line of the errors is this one
fails_and_cleans() {
    local message=$1 status=0 error
    shift
    error=$("$@" 2>&1 >/dev/null) || status=$?
    echo "$error"
    [[ $status == 1 && $error == dotcloud:*"$message"*$'\ndotcloud: not made, and gone again: '* ]]
    [ "$(wc -l <<<"$error")" = 2 ]
    [ "$(dotcloud list --json | jq '.[0].services.small')" = 1 ]
    [ ! -e "$DOTCLOUD_HOME/apps/shop/small.1" ]
    [ "$(dotcloud run small jq -r .DOTCLOUD_SMALL_SSH_PORT_1 environment.json)" = null ]
    [ "$(dotcloud ps --json | jq -c '[.[].state]')" = '["RUNNING","RUNNING"]' ]
}

@test "a program is missing" {
    mkdir "$scene/bin"
    find /usr/local/bin /usr/bin /bin -maxdepth 1 ! -name 'supervisor*' -exec ln -sf -t "$scene/bin" {} +
    ln -sf "$(type -P python3)" "$scene/bin/"
    PATH=$scene/bin refused 1 "the program supervisord is missing; install it, for example: apt-get install supervisor" dotcloud scale small=2
}

@test "a program that does not start takes its new instance with it" {
    cp "$scene/small/dotcloud.yml" "$scene/kept.yml"
    # It runs where ~/first is only
    printf 'small: {type: custom, process: "[ -e ~/first ] || { echo no luck today; exit 3; }; exec sleep 100000"}\n' >"$scene/small/dotcloud.yml"
    dotcloud run small touch first
    dotcloud push "$scene/small"
    fails_and_cleans "small of small.1 does not start: no luck today" dotcloud scale small=2
    cp "$scene/kept.yml" "$scene/small/dotcloud.yml"
    dotcloud push "$scene/small"
}

@test "no port is free" {
    only=$(port small.0 ssh)
    DOTCLOUD_PORTS=$only-$only fails_and_cleans "no port in $only-$only is free; widen DOTCLOUD_PORTS" dotcloud scale small=2
    DOTCLOUD_PORTS=x refused 1 "DOTCLOUD_PORTS=x is not a range" dotcloud scale small=2
}

@test "the disk is full" {
    mkdir "$scene/disk"
    mount -t tmpfs -o size=3m,mode=755 tmpfs "$scene/disk"
    full() {
        (
            export DOTCLOUD_HOME=$scene/disk directory=$scene
            dotcloud -A full create
            printf 'full: {type: custom, buildscript: build, process: exec sleep 100000}\n' >"$scene/small/dotcloud.yml"
            printf 'head -c 1700000 /dev/zero >~/zero\n' >"$scene/small/build"
            status=0
            error=$(dotcloud -A full push "$scene/small" 2>&1 >/dev/null) || status=$?
            echo "$error"
            [[ $status == 1 && $error == *"dotcloud: no room for full.0: it needs "*"; free some space"$'\n'*"gone again: full.0" ]] || exit 1
            [[ ! -e $DOTCLOUD_HOME/apps/full/full.0 ]] || exit 1
            # A build that fills the disk is the build's failure
            printf 'head -c 9000000 /dev/zero >~/zero\n' >"$scene/small/build"
            error=$(dotcloud -A full push "$scene/small" 2>&1 >/dev/null) && exit 1
            echo "$error"
            [[ $error == *"No space left on device"* && $error == *"dotcloud: "* ]] || exit 1
            dotcloud -A full destroy --yes
            [[ -z $(ls -A "$DOTCLOUD_HOME") ]]
        )
    }
    status=0
    full || status=$?
    cp "$scene/kept.yml" "$scene/small/dotcloud.yml"
    umount "$scene/disk"
    [ "$status" = 0 ]
}

@test "two commands at once wait for each other" {
    dotcloud scale small=2 >"$scene/one" 2>&1 3>&- &
    first=$!
    directory=$scene dotcloud create neighbour
    directory=$scene dotcloud -A neighbour push "$scene/small" >"$scene/two" 2>&1 3>&- &
    second=$!
    dotcloud env set A=1 2>"$scene/waited"
    wait "$first" "$second"
    grep -q 'waiting for another dotcloud command' "$scene/waited"
    jq -en '[inputs | .services[].instances[].ports[]] | length == 3 and length == (unique | length)' "$DOTCLOUD_HOME"/apps/*/app.json
    [ "$(dotcloud run small.1 'echo $A')" = 1 ]
    dotcloud scale small=1 --yes
    exec 7<"$DOTCLOUD_HOME/apps/shop"
    flock 7
    run env DOTCLOUD_LOCK_TIMEOUT=1 bash -c 'cd "$scene/here" && "$checkout/scripts/dotcloud" env set A=2 7<&- 2>&1'
    exec 7<&-
    [ "$status" = 1 ]
    [[ ${lines[1]} == "dotcloud: another dotcloud command still runs after 1 seconds; try again"* ]]
}

@test "a state directory that the account cannot reach" {
    mkdir -m 700 "$scene/closed"
    DOTCLOUD_HOME=$scene/closed/state refused 1 "cannot reach $scene/closed/state; name another directory in DOTCLOUD_HOME" dotcloud create away
    DOTCLOUD_USER=root refused 1 "instances do not run as root" dotcloud create away
    DOTCLOUD_USER=nobody refused 1 "the account nobody has no login shell" dotcloud create away
}

@test "an ordinary user needs no root" {
    user=$(stat -c %U "$DOTCLOUD_HOME/apps/shop/small.0")
    [ "$user" != root ]
    mkdir "$scene/user"
    chown "$user" "$scene/user"
    as_user() {
        setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups env -C "$scene/user" \
            HOME="$scene/user" DOTCLOUD_HOME= "$checkout/scripts/dotcloud" "$@"
    }
    as_user create mine
    as_user push "$scene/small"
    [ "$(as_user run small 'echo $USER $HOME')" = "$user $scene/user/.local/share/dotcloud/apps/mine/small.0/home" ]
    as_user destroy --yes
    [ -z "$(ls -A "$scene/user/.local/share/dotcloud")" ]
}
