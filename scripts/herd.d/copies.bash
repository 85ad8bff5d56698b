# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The direct forms pg:follow, pg:fork and pg:enslave: one existing instance becomes a standby or a copy of another.

# direct_copy VERB ARGUMENT...: DB --of DB
direct_copy() {
    local verb=$1 wanted="" of="" copy_from="" target source other options=() report status=0 name text
    shift
    while (($#)); do
        case $1 in
            --of)
                of=$(option_value "$@")
                shift
                ;;
            --of=*) of=${1#*=} ;;
            -n | --dry-run) options+=(--dry-run) ;;
            --background) options+=(--background) ;;
            --take-build) options+=("$1") ;;
            --copy-from | --copy-from=*)
                [[ $verb == enslave ]] || usage_error "--copy-from is not for a fork"
                if [[ $1 == *=* ]]; then
                    copy_from=${1#*=}
                else
                    copy_from=$(option_value "$@")
                    shift
                fi
                ;;
            --cascade | --copy | --paranoid)
                [[ $verb == enslave ]] || usage_error "$1 is not for a fork, which is always a copy"
                if [[ $1 == --copy ]]; then options+=(--plan full); else options+=("$1"); fi
                ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $wanted ]] || usage_error "which database? $wanted or $1"
                wanted=$1
                ;;
        esac
        shift
    done
    [[ -n $wanted && -n $of ]] || usage_error "it wants DB --of DB"
    use_platform
    load_databases
    resolve "$wanted" target
    resolve "$of" source
    [[ $target != "$source" ]] || usage_error "$(label "$target") cannot be made a copy of itself"
    ask_all "$target" "$source"
    must_answer "$source"
    must_answer "$target"
    check_plans "$(info "$target" '.plan // ""')" "$source"

    blurb_of "$source" >"$work/blurb"
    if [[ -n $copy_from ]]; then
        resolve "$copy_from" other
        { echo --- && blurb_of "$other"; } >>"$work/blurb"
        options+=(--copy-from -)
    fi
    name=$(info "$target" .instance)
    report=$(copy_from "$verb" "$target" ${options[@]+"${options[@]}"}) || status=$?
    if ((status == 3)) && [[ $(jq -r .message "$work/error.$target") != *"--cascade"* && -n $(jq -r '.hint // ""' "$work/error.$target" | grep -- "--confirm" || true) ]]; then
        text=$(jq -r .message "$work/error.$target")
        confirm_app "$text" "$(label "$target"): $text." "What only $(label "$target") has will be lost."
        status=0
        report=$(copy_from "$verb" "$target" --confirm "$name" ${options[@]+"${options[@]}"}) || status=$?
    fi
    ((status == 0)) || die_of "$target"
    if [[ -n $json ]]; then
        printf '%s\n' "$report"
        return
    fi
    case " ${options[*]-} " in
        *" --dry-run "*) jq -r --arg t "$(label "$target")" '"\($t) would be made by: \(.plan.action), because \(.plan.why)" + (if .plan.loses then "; it wants a confirmation, as it holds \(.plan.loses)" else "" end)' <<<"$report" ;;
        *" --background "*) say "Use \`herd pg:wait $target\` to track status" ;;
        *)
            if [[ $verb == fork ]]; then
                say "$(label "$target") is a copy of $(label "$source") now ($(jq -r '"\(.seconds * 10 | round / 10) s"' <<<"$report")), writable"
            else
                say "$(label "$target") follows $(label "$source") now ($(followed_text <<<"$report"))"
            fi
            jq -r '.kept // empty | "What it had is kept in \(.)"' <<<"$report"
            ;;
    esac
}

copy_from() {
    local verb=$1 target=$2
    shift 2
    agent "$longest" "$target" "$verb" "$@" <"$work/blurb" 2> >(steps_of "$target")
}

# check_plans PLAN SOURCE HINT: a follower or fork has the settings of its source, so a plan of its own would be a lie
check_plans() {
    local theirs
    theirs=$(info "$2" '.plan // ""')
    [[ -z $1 || $1 == "$theirs" ]] ||
        die 1 "$(label "$2") has the plan ${theirs:-none}, not $1: following or forking across plans is not possible, as a copy has its source's settings" \
            "${3:-herd addons:add heroku-postgresql${theirs:+:$theirs} makes one with that plan}"
}
