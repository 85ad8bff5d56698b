# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# What every command needs: messages, help, questions, and the work directory.

# Errors as JSON go there from within $(...) too; and the last word, whatever was redirected when herd was interrupted
exec 3>&1 5>&2

# With --json everything is ASCII: a terminal obeys some of the characters that JSON lets stand. What is written raw (-r,
# -j) is for ourselves.
jq() {
    local word
    if [[ -n ${json:-} ]]; then
        for word; do
            [[ ! $word =~ ^-[a-z]*[jr] ]] || break
        done
        [[ $word =~ ^-[a-z]*[jr] ]] || set -- -a "$@"
    fi
    command jq "$@"
}

# die CODE MESSAGE [HINT]
die() {
    not_done
    if [[ -n ${json:-} ]]; then
        jq -cn --arg m "$2" --arg h "${3:-}" --argjson e "$1" \
            '{error: {message: $m, hint: (if $h == "" then null else $h end), exit: $e}}' >&3
    else
        warn "$2"
        [[ -z ${3:-} ]] || warn "$3"
    fi
    exit "$1"
}

usage_error() {
    die 2 "$1" "${2:-herd ${command:-} --help}"
}

# Much of it is what others have answered: no terminal takes orders from them, and no further line of it looks like one of
# ours
warn() {
    printf ' !    %s\n' "$*" | plain | sed '2,$s/^/      /' >&2
}

# Heroku's "Doing something... done, v7" in two halves; with --json only the answer is printed. On a terminal a dot
# every two seconds says that it goes on.
doing() {
    [[ -z $json ]] || return 0
    printf '%s... ' "$1" | plain
    : >"$work/doing"
    [[ -t 1 ]] || return 0
    while sleep 2; do printf .; done &
    dots=$!
}

no_more_dots() {
    rm -f -- "$work/doing"
    [[ -z ${dots:-} ]] || kill "$dots" 2>/dev/null || true
    dots=""
}

done_with() {
    no_more_dots
    [[ -n $json ]] || printf 'done%s\n' "${1:+, $1}" | plain
}

# What stands where "done" would have stood; once, as die may come from within $(...)
not_done() {
    [[ -n ${work:-} && -e $work/doing ]] || return 0
    no_more_dots
    printf 'failed\n' >&3
}

say() {
    [[ -n $json ]] || printf '%s\n' "$*" | plain
}

# A whole second word for an option
option_value() {
    (($# > 1)) && [[ -n $2 ]] || usage_error "$1 wants a value"
    printf '%s\n' "$2"
}

need() {
    local name
    for name; do
        type -P "$name" >/dev/null || die 1 "the program $name is missing" "install it, for example: apt-get install $name"
    done
}

# The comment block at the top of a file is its help.
show_help() {
    awk '/^#!|^# shellcheck|^# Summary:/ { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$1"
}

show_main_help() {
    local line file name
    show_help "$program_file" | while IFS= read -r line; do
        if [[ $line != *@COMMANDS@* ]]; then
            printf '%s\n' "$line"
            continue
        fi
        for file in "$library"/commands/*.bash; do
            name=${file##*/}
            name=${name%.bash}
            printf '  %-22s %s\n' "${name//-/:}" "$(sed -n 's/^# Summary: //p' "$file")"
        done
        printf '\n'
    done
}

commands() {
    local file
    for file in "$library"/commands/*.bash; do
        file=${file##*/}
        file=${file%.bash}
        printf '%s\n' "${file//-/:}"
    done
}

# Commands that begin alike, or the way to all of them
suggestion() {
    local near
    near=$(commands | grep -- "^${1%%:*}" | tr '\n' ' ' || true)
    if [[ $1 =~ ^[a-z:]+$ && -n $near ]]; then
        printf 'there is: %s' "$near"
    else
        printf 'herd --help shows them all'
    fi
}

version() {
    printf 'herd of pgmahout %s\n' "$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$scripts/../Cargo.toml")"
}

# For the answers of instances that are asked in parallel; some hold passwords.
make_work_directory() {
    umask 077
    work=$(mktemp -d "${TMPDIR:-/tmp}/herd.XXXXXX")
    mkdir "$work/groups" "$work/kept"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# Whatever still runs for us, and what it wrote, $partial too. $unfinished: what to say when the command ends before it is through.
clean_up() {
    local status=$? pids pid i
    trap '' INT TERM HUP
    # Process groups of the platform's verbs: half a second to end by themselves
    for ((i = 0; i < 10; i++)); do
        mapfile -t pids < <(cd "$work/groups" && printf -- '-%s\n' [0-9]*)
        [[ ${pids[0]} != "-[0-9]*" ]] && kill -0 -- "${pids[@]}" 2>/dev/null || break
        ((i > 0)) || kill -- "${pids[@]}" 2>/dev/null || true
        sleep 0.05
    done
    ((i < 10)) || kill -KILL -- "${pids[@]}" 2>/dev/null || true
    mapfile -t pids < <(jobs -p)
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    rm -rf -- "$work" ${partial:+"$partial"}
    ((status == 0)) || [[ -z ${unfinished:-} ]] || warn "$unfinished" 2>&5 || true
    exit "$status"
}

# confirm_app WHY LINE...: Heroku's typed confirmation, --confirm APP or the app's name on a terminal. WHY is in the
# refusal, the lines stand before it.
confirm_app() {
    local line answer=""
    [[ $confirmed == "$app" ]] && return
    [[ -z $confirmed ]] || die 3 "--confirm $confirmed does not match the app $app; $done_so_far"
    if [[ -n $json || ! -t 0 ]]; then
        for line in "${@:2}"; do [[ -n $json ]] || warn "$line"; done
        die 3 "$done_so_far: $1" "To proceed, re-run this command with --confirm $app"
    fi
    for line in "${@:2}"; do warn "$line"; done
    warn "To proceed, type \"$app\" or re-run this command with --confirm $app"
    printf '\n> ' >&2
    read -r -t "${HERD_CONFIRM_TIMEOUT:-3600}" answer || answer=""
    [[ $answer == "$app" ]] || die 3 "Confirmation did not match $app. Aborted; $done_so_far"
}

# no_arguments "$@": of a command that takes none
no_arguments() {
    (($# == 0)) || usage_error "unknown argument $1"
}

# Bytes for a person, as the agent writes them: 1.2 GB
bytes_text() {
    awk -v b="$1" 'BEGIN { split("B kB MB GB TB PB", u); i = 1; while (b >= 999.5 && i < 6) { b /= 1000; i++ }
        if (i == 1) printf "%d B", b; else printf "%.1f %s", b, u[i] }'
}
