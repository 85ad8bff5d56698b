# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# A scene of pretend instances for tests/herd/faults.bats: db.0 (AMBER, DATABASE_URL), its followers db.1 (GOLD) and
# db.2 (SILVER), on the platform of fixtures/broken.

setup_file() {
    set_pretend_scene
    export scene broken herd_program
}

teardown_file() {
    rm -rf -- "$scene"
}

setup() {
    all_is_well
    limit=20 runner=() leaves=""
}

# What a message begins with that says the platform is at fault
breaks="the platform it's \"broken\" 100% \$HOME does not keep its contract"

# In the scene's path is what quoting must survive
set_pretend_scene() {
    scene=$(mktemp -d "${TMPDIR:-/tmp}/herd tests.XXXXXX")
    broken="$scene/it's \"broken\" 100% \$HOME"
    mkdir -p "$broken" "$scene/here" "$scene/tmp"
    cp -a "$BATS_TEST_DIRNAME/fixtures/broken/." "$broken/"
    export BROKEN="$scene/state" TMPDIR="$scene/tmp"
    herd_program=$BATS_TEST_DIRNAME/../../scripts/herd
    all_is_well
}

# Before each test
all_is_well() {
    local n
    rm -rf "$BROKEN"
    mkdir -p "$BROKEN/instances" "$BROKEN/faults"
    cp "$broken/model/config.json" "$BROKEN/config.json"
    cp "$broken/model/primary.json" "$BROKEN/instances/db.0"
    for n in 1 2; do sed "s/db\\.1/db.$n/" "$broken/model/standby.json" >"$BROKEN/instances/db.$n"; done
    : >"$BROKEN/calls"
}

# fault WHERE BASH: what goes wrong there; fault_once: only the first time
fault() {
    printf '%s\n' "$2" >"$BROKEN/faults/$1"
}

fault_once() {
    # shellcheck disable=SC2016 # $fault is the platform's
    printf 'rm -f "$fault"\n%s\n' "$2" >"$BROKEN/faults/$1"
}

# set_info INSTANCE FILTER: what it tells of itself
set_info() {
    jq -c "$2" "$BROKEN/instances/$1" >"$scene/info"
    mv "$scene/info" "$BROKEN/instances/$1"
}

# herd ARGUMENT...: into $status, $out, $err and $took (seconds). Whatever happens, it leaves no file and no process.
herd() {
    local begin=$EPOCHREALTIME
    status=0
    (cd "$scene/here" && env -u HERD_APP -u HERD_HOSTS HERD_MARK="$scene" HERD_PLATFORM_TIMEOUT="${limit:-20}" HERD_ANSWER_TIMEOUT="${limit:-20}" \
        ${runner[@]+"${runner[@]}"} "$herd_program" --platform "$broken" "$@") >"$scene/out" 2>"$scene/err" </dev/null || status=$?
    took=$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')
    out=$(tr -d '\0' <"$scene/out") err=$(tr -d '\0' <"$scene/err")
    echo "# herd $*: $status in $took s"
    cat "$scene/out" "$scene/err"
    nothing_is_left
}

# No matter how it ended. With $leaves a test says that its platform has left processes.
nothing_is_left() {
    local left
    left=$(ls -A "$TMPDIR")
    [[ -z $left ]] || { echo "left: $left" && return 1; }
    [[ -n ${leaves:-} ]] || ! left=$(running) || { echo "still runs: $left" && return 1; }
    ! grep -qP '[\x00-\x08\x0b-\x1f\x7f]' "$scene/out" "$scene/err" || { echo "control characters in its output" && return 1; }
}

# What herd has started and still runs
running() {
    local pid found=1
    while read -r pid; do
        [[ -s /proc/$pid/cmdline ]] && tr '\0' ' ' <"/proc/$pid/cmdline" && found=0
    done < <(grep -lzxF "HERD_MARK=$scene" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3)
    return "$found"
}

# fails STATUS TEXT ARGUMENT...: one message, with TEXT in its first line; and nobody sees a secret in it
fails() {
    local want=$1 text=$2
    shift 2
    herd "$@"
    [[ $status == "$want" ]] || { echo "status $status, not $want" && return 1; }
    [[ ${err%%$'\n'*} == " !    "*"$text"* ]] || { echo "no such message: $text" && return 1; }
    (($(grep -c . "$scene/err") <= 2)) || { echo "more than a message and a hint" && return 1; }
    [[ $err != *s3cret* && $err != *"line "[0-9]* ]]
}

# did STEP... [+ STEP...]: these calls changed something, in this order; those after + in any
did() {
    local ordered=() free=() into=ordered step
    for step; do
        if [[ $step == + ]]; then into=free; elif [[ $into == ordered ]]; then ordered+=("$step"); else free+=("$step"); fi
    done
    diff <({ ((${#ordered[@]} == 0)) || printf '%s\n' "${ordered[@]}"; } && { ((${#free[@]} == 0)) || printf '%s\n' "${free[@]}" | sort; }) \
        <(head -n "${#ordered[@]}" "$BROKEN/calls" && tail -n "+$((${#ordered[@]} + 1))" "$BROKEN/calls" | sort) ||
        { echo "# all of them:" && cat "$BROKEN/calls" && return 1; }
}
