# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:copy DB TARGET [--no-owner] [--jobs N] [--confirm APP] [--json]
#        herd pg:copy --url FILE|- TARGET [...]
# Summary: copy a database into another one, and compare the two
#
# Whatever DB holds when it begins is in TARGET then; the app's config stays as it
# is. TARGET is filled beside what it has, and replaced only after the comparison;
# if it is not empty, the app's name has to be typed, or given with --confirm.
#
# Options:
#   --url FILE|-   from a database outside: its URL on the first line of a file, or of stdin
#   --no-owner     all belongs to the target's user; for roles that are not there
#   --jobs N       connections that copy at the same time
#
# Examples:
#   herd pg:copy DATABASE_URL SILVER
#   herd pg:copy --url old.txt SILVER --confirm shop

command_pg_copy() {
    local words=() url="" options=() wanted source="" target name database report status=0 text from
    while (($#)); do
        case $1 in
            --url)
                url=$(option_value "$@")
                shift
                ;;
            --url=*) url=${1#*=} ;;
            --no-owner) options+=("$1") ;;
            --jobs | --jobs=*)
                [[ $1 == *=* ]] || set -- "$1=${2:-}" "${@:3}"
                [[ ${1#*=} =~ ^[1-9][0-9]{0,2}$ ]] || usage_error "--jobs wants a number"
                options+=(--jobs "${1#*=}")
                ;;
            -*) usage_error "unknown option $1" ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    if [[ -n $url ]]; then
        ((${#words[@]} == 1)) || usage_error "into which database? it wants one beside --url"
        url_file "$url"
    else
        ((${#words[@]} == 2)) || usage_error "it wants DB and TARGET"
    fi
    wanted=${words[-1]}
    use_platform
    load_databases
    resolve "$wanted" target
    if [[ -n $url ]]; then
        from="the database of ${url/#-/standard input}"
        # The first line, without what a file made elsewhere ends with
        { if [[ $url == - ]]; then timeout --foreground 3600 head -n 1; else head -n 1 -- "$url"; fi; } | tr -d '\r' >"$work/url"
        grep -qiE '^(postgres|postgresql|pgsql)://' "$work/url" || usage_error "what --url names does not begin with a URL such as postgres://user:password@host:5432/database"
    else
        resolve "${words[0]}" source
        [[ $source != "$target" ]] || usage_error "$(label "$target") cannot be copied into itself"
        from=$(label "$source")
        attached_url "$source" "${words[0]}" >"$work/url"
    fi
    ask_all "$target"
    must_answer "$target"
    name=$(info "$target" .instance)
    database=$(database_at "$target" "$wanted")
    report=$(copy_into) || status=$?
    # Only its data is in the way
    if ((status == 3)) && [[ -n $(jq -r '.hint // ""' "$work/error.$target" | grep -- "--confirm" || true) ]]; then
        text=$(jq -r .message "$work/error.$target")
        confirm_app "$text" "WARNING: Destructive Action" "$(label "$target"): $text." \
            "What is in the database $database of $(label "$target") will be replaced by a copy of $from." "This command will affect the app: $app"
        options+=(--confirm "$name")
        status=0
        report=$(copy_into) || status=$?
    fi
    if ((status)); then
        say "Copying $from to $(label "$target")... failed"
        die_of "$target"
    fi
    say "Copying $from to $(label "$target")... done$(jq -r -L "$library" 'include "herd"; copied_text' <<<"$report")"
    jq -r '.warnings // [] | .[] | strings | gsub("\n"; " ")' <<<"$report" | while IFS= read -r text; do [[ -n $json ]] || warn "$(one_line 1000 <<<"$text")"; done
    [[ -z $json ]] || printf '%s\n' "$report"
}

copy_into() {
    agent "$longest" "$target" copy ${options[@]+"${options[@]}"} "$database" <"$work/url" 2> >(steps_of "$target")
}
