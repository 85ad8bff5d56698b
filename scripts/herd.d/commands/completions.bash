# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd completions bash|zsh
# Summary: completions for your shell; they know the databases
#
# Examples:
#   herd completions bash > /etc/bash_completion.d/herd
#   herd completions zsh > "${fpath[1]}/_herd"

command_completions() {
    case ${1:-} in
        bash)
            cat <<'END'
# Completions of herd for bash
_herd() {
    local line=${COMP_LINE:0:COMP_POINT} word
    word=${line##*[[:space:]]}
    mapfile -t COMPREPLY < <(compgen -W "$(herd completions words "$line" 2>/dev/null)" -- "$word")
    # bash takes : for the end of a word, and keeps what is before it
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}"); fi
}
complete -F _herd herd
END
            ;;
        zsh)
            cat <<'END'
#compdef herd
# Completions of herd for zsh
_herd() {
    local -a candidates
    candidates=(${(f)"$(herd completions words "${LBUFFER:-${words[1,CURRENT]}}" 2>/dev/null)"})
    compadd -a candidates
}
if [[ $funcstack[1] == _herd ]]; then _herd "$@"; else compdef _herd herd; fi
END
            ;;
        # What may come next on a line that begins like this: for the two above
        words) candidates "${2:-}" ;;
        *) usage_error "which shell? bash or zsh" ;;
    esac
}

candidates() {
    local line=$1 words=() last="" file known="" i
    read -r -a words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=("")
    last=${words[-1]:-}
    # The command is the first word that is no option of ours
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
            -a | --app) app=${words[++i]} ;;
            --app=*) app=${words[i]#*=} ;;
            --platform) platform_wanted=${words[++i]} ;;
            --platform=*) platform_wanted=${words[i]#*=} ;;
            --confirm) ((++i)) ;;
            -*) ;;
            *) [[ -n $known ]] || known=${words[i]} ;;
        esac
    done
    if [[ -z $known ]]; then
        commands
        printf '%s\n' --app --platform --json --help
        return
    fi
    file=$library/commands/${known//:/-}.bash
    [[ -f $file ]] || return 0
    if [[ $last == -* ]]; then
        sed -n '/^# Usage/,/^$/p' "$file" | grep -oE -- '--[a-z-]+' | sort -u
        printf '%s\n' --json --help
        return
    fi
    case $known in
        pg:* | logs | addons:*)
            use_platform
            load_databases
            if [[ ${words[-2]} == --from && $known == pg:migrate ]]; then
                about '.config | to_entries[] | select(.value | test("^(postgres|postgresql|pgsql)://"; "i")) | .key'
                return
            elif [[ ${words[-2]} == --plan ]]; then
                plans 'keys_unsorted[]'
                return
            fi
            about '.databases[] | (.attachments[] | ., "HEROKU_POSTGRESQL_\(.)"), .name'
            printf 'DATABASE_URL\n'
            case $known in
                addons:add)
                    plans 'keys_unsorted[] | "heroku-postgresql:\(.)"'
                    printf '%s\n' pgbackups:auto-month pgbackups:auto-week
                    ;;
                addons:remove) printf 'pgbackups\n' ;;
            esac
            ;;
        pgbackups:*)
            use_platform
            load_databases
            case $known in
                *:capture | *:check | *:restore) about '.databases[] | (.attachments[] | ., "HEROKU_POSTGRESQL_\(.)"), .name, "DATABASE_URL"' | sort -u ;;
            esac
            case $known in
                *:info | *:url | *:destroy | *:verify | *:download | *:restore)
                    list_backups
                    of_backups '.[].id'
                    ;;
            esac
            ;;
        config:*)
            use_platform
            platform config-list | jq -r '.config | keys[]'
            ;;
        ps:*)
            use_platform
            platform processes | cut -f 1
            ;;
    esac
}
