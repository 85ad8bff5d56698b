# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Backups: which there are on all instances of the app, and which one is meant. Each lies in the store of the instance
# that took it: a directory there, or one in S3 that several share, which then list the same.

# What a list of backups must be for all that is read from it here
list_shape='def null_or($t): . == null or type == $t;
    type == "array" and all(.[]; type == "object" and (.id, .file, .sha256, .instance | type == "string") and (.finished, .size | type == "number")
        and (.id | test("^[ab][0-9]{3,9}$")) and (.kind | . == "logical" or . == "physical") and (.database, .encryption, .compression | null_or("string"))
        and (.started | null_or("number")) and (.verified | null_or("object") and (. == null or (.at | type == "number"))))'

# And what `backup schedule` answers
schedule_shape='type == "object" and (.plan | . == null or (type == "string" and test("^[a-z-]{1,30}$")))'

# list_backups [INSTANCE...]: asks these, or all, at once. Into $backups, as merged_backups of herd.jq makes it, and those
# that gave no list into $silent.
list_backups() {
    local names=("$@") name
    (($#)) || mapfile -t names < <(about '.databases[].name')
    ((${#names[@]})) || die 1 "$app has no databases" "herd addons:add heroku-postgresql:ronin adds one"
    in_parallel backups_of "${names[@]}" || true
    silent=()
    for name in "${names[@]}"; do
        [[ $(<"$work/status.$name") == 0 ]] || silent+=("$name")
    done
    for name in "${names[@]}"; do
        [[ $(<"$work/status.$name") != 0 ]] || jq -c --arg n "$name" '{holder: $n, backups: .}' "$work/out.$name"
    done | jq -cs -L "$library" 'include "herd"; merged_backups' >"$work/backups"
    backups=$(<"$work/backups")
}

backups_of() {
    shape=$list_shape ask "$1" backup list
}

# of_backups FILTER [JQ-OPTION...]: of $backups, with $all for the databases
of_backups() {
    jq -r -L "$library" --slurpfile d <(printf %s "$databases") "${@:2}" "include \"herd\"; \$d[0].databases as \$all | $1" <<<"$backups"
}

# of_backup FILTER [JQ-OPTION...]: of the one that find_backup has found
of_backup() {
    of_backups ".[] | select(.key == \$k) | $1" --arg k "$backup" "${@:2}"
}

# Whoever does not say which backups it has may have more
warn_of_silence() {
    local name
    for name in ${silent[@]+"${silent[@]}"}; do
        warn "$(label "$name") does not say which backups it has: $(jq -r .message "$work/error.$name")"
    done
}

# What that instance warned of when it was asked last
warnings_of() {
    sed -n 's/^warning: //p' "$work/stderr.$1" | while IFS= read -r line; do warn "$(label "$1"): $line"; done
}

# find_backup [ID|INSTANCE:ID]: its key into $backup, its name into $id, who has it into $holder. Without one the most
# recent of a database, as at Heroku, that is not known to be bad.
find_backup() {
    local wanted=${1:-} where="" found
    id=${wanted##*:}
    id=${id,,}
    [[ -z $wanted || $id =~ ^[ab][0-9]{3,9}$ ]] || usage_error "'$wanted' is not the name of a backup" "herd pgbackups shows them; b001, or db.0:b001"
    [[ $wanted != *:* ]] || resolve "${wanted%:*}" where
    list_backups ${where:+"$where"}
    # The only one that was asked
    [[ -z $where || ${#silent[@]} == 0 ]] || die_of "$where"
    backups=$(jq -c 'map(. + {key: "\(.id) \(.file) \(.sha256)"})' <<<"$backups")
    if [[ -n $wanted ]]; then
        mapfile -t found < <(of_backups '.[] | select(.id == $i) | .key' --arg i "$id")
    else
        mapfile -t found < <(of_backups 'map(select(.kind == "logical" and .verified.good != false)) | last | .key // empty')
    fi
    case ${#found[@]} in
        0)
            ((${#silent[@]} == 0)) || die "$(jq .exit "$work/error.${silent[0]}")" \
                "$(label "${silent[0]}") does not say whether it has ${id:-a backup}: $(jq -r .message "$work/error.${silent[0]}")" \
                "herd pgbackups shows what the others have"
            [[ -n $id || $backups == "[]" ]] || die 1 "$app has no backup of a database that is not known to be bad" "name one of those that herd pgbackups shows"
            [[ -n $id ]] || die 1 "$app has no backups" "herd pgbackups:capture takes one"
            die 1 "${where:-$app} has no backup $id" "herd pgbackups shows those that there are"
            ;;
        1) backup=${found[0]} ;;
        *)
            die 2 "$app has several backups $id: $(of_backups '[.[] | select(.id == $i) | "\(.holders[0]):\(.id) of \(.finished | backup_time)"] | join(", ")' --arg i "$id")" \
                "say which: $(of_backups '[.[] | select(.id == $i) | "\(.holders[0]):\(.id)"] | join(" or ")' --arg i "$id")"
            ;;
    esac
    id=${backup%% *}
    holder=$(of_backup '.holders[0]')
}

# title_of INSTANCE: HEROKU_POSTGRESQL_AMBER_URL (DATABASE_URL)
title_of() {
    about '.databases[] | select(.name == $n) | title' --arg n "$1"
}

# database_at INSTANCE [NAME]: that which its attachment's URL names, or nothing
database_at() {
    local url
    url=$(attached_url "$1" "${2:-}") || exit
    decoded "$(database_in "$url")"
}

# answered_by INSTANCE LIMIT WORD...: as agent, but what it answers with exit code 1 is printed too, if it is in $shape
answered_by() {
    local instance=$1 limit=$2 status=0
    shift 2
    agent "$limit" "$instance" "$@" </dev/null || status=$?
    if ((status == 1)) && jq -se "length == 1 and (.[0] | $shape)" "$work/refused.$instance" >/dev/null 2>&1; then
        cat "$work/refused.$instance"
    fi
    return "$status"
}

# one_backup [ID]: of a command that takes one and nothing else
one_backup() {
    (($# == 1)) && [[ -n $1 && $1 != -* ]] || usage_error "it wants one backup, such as b001" "herd pgbackups shows them"
    use_platform
    load_databases
    find_backup "$1"
    warn_of_silence
}
