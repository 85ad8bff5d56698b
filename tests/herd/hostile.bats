# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2153,SC2154
# What instances answer is data of other machines. Whatever stands in it (escapes of a terminal, newlines, quotes, words
# of a shell, options of ssh) is shown as text in its own line and cell, and nobody runs it. The platform is fixtures/broken.

load scene

export hostile='$(touch x)`touch x`;touch x|'$'"\'\n=== FORGED\r\e]0;owned\a\e[31m\u009b2J\u202e\u2066\n !    forged\t-oProxyCommand=touch x'

# Nothing that a terminal obeys, no line that begins as one of herd's own, nothing that was run. (The scene's herd looks
# for other control characters by itself.)
is_harmless() {
    ! LC_ALL=C grep -qP '\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]' "$scene/out" "$scene/err" || { echo "it moves a terminal" && return 1; }
    ! grep -qE '^(=== FORGED| !    forged)' "$scene/out" "$scene/err" || { echo "a line of its own" && return 1; }
    [ -z "$(find "$scene" -name x)" ] || { echo "it was run" && return 1; }
}

# As JSON it is what it was, and says no more than one value
is_json() {
    jq -se 'length == 1' "$scene/out" >/dev/null || { echo "no JSON" && return 1; }
    is_harmless
}

# texts FILE: the path of each string in it, as JSON
texts() {
    jq -c 'paths(type == "string")' "$1"
}

@test "pg:info of a hostile instance" {
    local name path shown=0
    for name in db.0 db.1; do
        while IFS= read -r path; do
            all_is_well
            set_info "$name" "setpath($path; \$ENV.hostile)"
            herd pg:info
            is_harmless
            [[ $out != *'$(touch x)'* ]] || shown=$((shown + 1))
            herd pg:info --json
            is_json
        done < <(texts "$BROKEN/instances/$name")
    done
    # Somebody has seen it
    ((shown >= 3))
}

@test "what a hostile instance says of its troubles" {
    set_info db.1 '.problem = $ENV.hostile | .job = {verb: $ENV.hostile, source: $ENV.hostile, state: "running", doing: $ENV.hostile, step: $ENV.hostile, error: null}'
    herd pg:info
    is_harmless
    [[ $out == *'$(touch x)'* ]]
    set_info db.1 '.job = {verb: "enslave", source: "db.0", state: "failed", doing: "x", error: {message: $ENV.hostile, hint: $ENV.hostile, exit: 1}}'
    herd pg:info
    is_harmless
    herd pg:wait GOLD
    is_harmless
    set_info db.0 '.superseded = $ENV.hostile | .plan = $ENV.hostile | .followers[0].name = $ENV.hostile | .slots[0].name = $ENV.hostile'
    herd pg:info
    is_harmless
    herd pg:switchover GOLD
    is_harmless
}

@test "a hostile instance that refuses" {
    local answer
    answer=$(jq -cn '{error: {message: $ENV.hostile, hint: $ENV.hostile, exit: 3}}')
    # As the agent says it, as somebody in between says it, and both
    for words in "printf '%s\\n' \"\$hostile_answer\"; exit 3" 'printf "pgmahout: %s\nhint: %s\n" "$hostile" "$hostile" >&2; exit 1' \
        'printf "%s\n" "$hostile"; printf "%s\n" "$hostile" >&2; exit 255' 'printf "%s\n" "$hostile"; exit 0'; do
        for command in info enslave promote credentials logs backup fence; do
            fault "run.db.1.$command" "hostile_answer='${answer//\'/\'\\\'\'}'; $words"
        done
        for line in "pg:info" "pg:promote GOLD" "pg:follow GOLD --of AMBER" "pg:credentials GOLD" "pgbackups" "pgbackups:capture GOLD" "pg:switchover GOLD"; do
            # shellcheck disable=SC2086 # words
            herd $line
            is_harmless
        done
        herd pg:info --json
        is_json
        herd pg:promote GOLD --json
        is_harmless
        all_is_well
    done
}

@test "backups of a hostile instance" {
    local path shown=0 list=$BROKEN/backups/db.1
    herd pgbackups:capture GOLD
    [ "$status" = 0 ]
    cp "$list" "$scene/list"
    while IFS= read -r path; do
        jq -c "setpath($path; \$ENV.hostile)" "$scene/list" >"$list"
        for line in pgbackups "pgbackups:info b001"; do
            # shellcheck disable=SC2086 # words
            herd $line
            is_harmless
            [[ $out != *'$(touch x)'* ]] || shown=$((shown + 1))
        done
    done < <(texts "$scene/list")
    ((shown >= 1))
}

@test "logs, credentials and releases that are hostile" {
    fault run.db.1.logs 'printf "2026-11-21T18:07:06.444000+00:00 app[postgres.db.1]: [1] LOG:  %s\n" "$hostile"; exit'
    herd logs --all GOLD
    # A log has lines of its own; each is shown as it is, without what a terminal obeys
    [[ $out == *FORGED* ]]
    if LC_ALL=C grep -P '\x1b|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]' "$scene/out"; then return 1; fi
    [ -z "$(find "$scene" -name x)" ]
    fault run.db.1.credentials 'jq -cn "{instance: \$ENV.hostile, user: \$ENV.hostile, password: \$ENV.hostile, database: \$ENV.hostile, port: 5432}"; exit'
    herd pg:credentials GOLD
    is_harmless
    fault releases 'jq -cn "[{release: 3, at: \$ENV.hostile, what: \$ENV.hostile}]"; exit'
    herd releases
    [ "$status" = 0 ]
    is_harmless
    [[ $out == *'$(touch x)'* ]]
    herd releases --json
    is_json
}
