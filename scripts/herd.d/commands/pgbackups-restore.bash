# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:restore [DB [ID|URL]] [--database NAME] [--confirm APP] [--json]
# Summary: put a backup in the place of a database
#
# DB is DATABASE_URL by default, ID the most recent backup of a database. The backup may be of any
# database of the app, or of another app: by the URL that pgbackups:url gives there.
#
# It is restored beside the database, checked, and only then put in its place by
# renaming; if anything fails before, the database is as it was. What is in the
# database is lost then: the app's name has to be typed, or given with --confirm.
# Nothing has to be restarted, but the app's sessions are ended.
#
# Options:
#   --database NAME   into that database of the server, which may be a new one
#
# Examples:
#   herd pgbackups:restore SILVER b001
#   herd pgbackups:restore DATABASE_URL db.1:b001
#   herd pgbackups:restore SILVER "$(herd -a shop pgbackups:url)"

command_pgbackups_restore() {
    local wanted="" source="" database="" target id holder backup backups silent recent="" words=() from="" name kind=logical report followers=()
    while (($#)); do
        case $1 in
            --database)
                database=$(option_value "$@")
                shift
                ;;
            --database=*) database=${1#*=} ;;
            -*) usage_error "unknown option $1" ;;
            *)
                if [[ -z $wanted ]]; then wanted=$1; elif [[ -z $source ]]; then source=$1; else usage_error "only one backup at a time"; fi
                ;;
        esac
        shift
    done
    [[ ! $wanted =~ ^([^:/]+:)?[ab][0-9]{3,9}$|:// ]] || usage_error "into which database?" "herd pgbackups:restore DB ID, for example DATABASE_URL b001"
    use_platform
    load_databases
    resolve "$wanted" target
    ask_all "$target"
    must_answer "$target"
    name=$(info "$target" .instance)
    if [[ $source == *://* ]]; then
        # Of its kind only the file's name speaks
        id=${source%%[?#]*}
        [[ ! $id =~ \.tar(\.[a-z0-9]+)*$ ]] || kind=physical
        id=${id##*/}
        from=$source
    else
        find_backup "$source"
        warn_of_silence
        [[ -n $source ]] || recent=" (most recent)"
        kind=$(of_backup .kind)
        from=$id
    fi
    [[ $kind == logical || -z $database ]] || usage_error "$id is a physical backup: it goes in the place of the whole server, not of $database"
    [[ $kind == physical ]] || database=${database:-$(database_at "$target" "$wanted")}
    # From the store of its own, if the backup is there
    if [[ -n ${holder:-} && $source != *:* && $(of_backup '.holders | any(. == $t)' --arg t "$target") == true ]]; then holder=$target; fi

    # What replaces the whole server is no longer what its followers follow
    [[ $kind == logical ]] || mapfile -t followers < <(with_info | jq -r --arg n "$target" '([.databases[] | select(.name == $n)][0]) as $d
        | [(.databases[] | select(.info.role == "standby" and .info.following.primary == $d.address) | .name), ($d.info.followers // [] | .[].name)] | unique[]')

    [[ -n $json || ($confirmed != "$app" && ! -t 0) ]] || arrow
    confirm_app "what is in $(what_goes) would be replaced" \
        "WARNING: Destructive Action" \
        "What is in $(what_goes) will be replaced by $id$recent." \
        ${followers[@]+"Its followers have to be followed anew: ${followers[*]}"} \
        "This command will affect the app: $app"
    words=(backup restore --confirm "$name")
    : >"$work/blurb"
    if [[ -n ${holder:-} && $holder != "$target" ]]; then
        blurb_of "$holder" >"$work/blurb"
        words+=(--from-blurb)
    fi
    words+=(-- "$from" ${database:+"$database"})
    report=$(agent "$longest" "$target" "${words[@]}" <"$work/blurb" 2> >(steps_of "$target")) || {
        say "Restoring... failed"
        die_of "$target"
    }
    say "Restoring... done$(jq -r 'if (.tables | type) == "number" then ", \(.tables) table\(if .tables == 1 then "" else "s" end), \(.rows) rows" else "" end' <<<"$report")"
    say "$(jq -r '.kept // empty | "What it had is kept in \(.)"' <<<"$report" | plain)" | sed '/^$/d'
    for name in ${followers[@]+"${followers[@]}"}; do
        warn "$(label "$name") cannot go on following: herd pg:follow $name --of $(label "$target")"
    done
    [[ -z $json ]] || printf '%s\n' "$report"
}

what_goes() {
    if [[ $kind == physical ]]; then
        printf '%s, with all its databases,' "$(label "$target")"
    else
        printf '%s' "${database:+the database $database of }$(label "$target")"
    fi
}

# What goes where, as Heroku showed it
arrow() {
    local begin
    begin="$(title_of "$target")  <---restore---  "
    printf '\n%s%s\n' "$begin" "$id$recent"
    [[ -z ${backup:-} ]] || of_backup 'backup_of($all), (.finished | backup_time), (.size | bytes)' | sed "s/^/$(printf '%*s' ${#begin} '')/"
    printf '\n'
}
