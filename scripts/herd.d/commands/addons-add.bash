# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd addons:add heroku-postgresql[:PLAN] [--follow DB | --track DB | --fork DB] [--as COLOUR] [--json]
#        herd addons:add pgbackups:auto-month|pgbackups:auto-week [--json]
# Summary: a new database (empty, a follower, a copy), or nightly backups
#
# Makes an instance, attaches it under a free colour and, with --follow, --track
# (the same) or --fork, starts the copy, which goes on in the background. The first
# database of an app also becomes its DATABASE_URL.
#
# Plans stand in recipe/plans.yml: PostgreSQL settings by name. A follower or fork
# has its source's settings, so it has its source's plan, which is the default.
#
# pgbackups backs up DATABASE_URL every night; auto-month keeps more of them than
# auto-week (herd pgbackups). It goes on at whoever is promoted.
#
# Examples:
#   herd addons:add heroku-postgresql:ronin
#   herd addons:add heroku-postgresql:ronin --follow DATABASE_URL
#   herd addons:add heroku-postgresql --fork AMBER --as silver
#   herd addons:add pgbackups:auto-month

command_addons_add() {
    local addon="" plan="" verb="" of="" colour="" wanted source="" instance="" release url variable
    while (($#)); do
        case $1 in
            --follow | --track | --fork | --follow=* | --track=* | --fork=*)
                [[ -z $verb ]] || usage_error "only one of --follow, --track and --fork"
                verb=enslave
                [[ $1 != --fork* ]] || verb=fork
                if [[ $1 == *=* ]]; then of=${1#*=}; else
                    of=$(option_value "$@")
                    shift
                fi
                ;;
            --as)
                colour=$(option_value "$@")
                shift
                ;;
            --as=*) colour=${1#*=} ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $addon ]] || usage_error "only one add-on at a time"
                addon=$1
                ;;
        esac
        shift
    done
    if [[ $addon =~ ^pgbackups(:.*)?$ ]]; then
        [[ -z $verb && -z $colour ]] || usage_error "pgbackups has no options"
        schedule_backups "${addon#pgbackups}"
        return
    fi
    [[ $addon =~ ^heroku-postgresql(:([a-z0-9-]+))?$ ]] || usage_error "'$addon' is not an add-on" "heroku-postgresql:PLAN is, with a plan of $(plan_names); and pgbackups:auto-month, pgbackups:auto-week"
    plan=${BASH_REMATCH[2]:-}
    [[ -z $plan ]] || check_plan "$plan"
    use_platform
    load_databases
    wanted=$colour
    choose_colour "$wanted"
    if [[ -n $verb ]]; then
        resolve "$of" source
        ask_all "$source"
        must_answer "$source"
        check_plans "$plan" "$source" "use heroku-postgresql$(info "$source" '.plan // empty | ":\(.)"') for it"
        [[ -z $(info "$source" '.no_follow // ""') ]] ||
            die 1 "$(label "$source") can be neither followed nor forked: $(info "$source" .no_follow)"
        [[ $verb == fork || $(info "$source" .role) != standby ]] ||
            die 1 "$(label "$source") is itself a follower; nothing was added" "follow its primary: --follow $(by_address "$(info "$source" .following.primary)")"
        plan=$(info "$source" '.plan // ""')
        blurb_of "$source" >"$work/blurb"
    fi

    doing "Adding heroku-postgresql${plan:+:$plan} on $app"
    instance=$(platform provision "${plan:-none}") || exit
    [[ $instance =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || misbehaved provision "it answered no name of an instance"
    unfinished="the new instance $instance is there, attached to nothing: herd addons:attach $instance, or herd addons:remove $instance"
    load_databases
    [[ -n $(about '.databases[] | select(.name == $n and .attachments == [] and (.current | not)) | .name' --arg n "$instance") ]] || {
        unfinished=""
        misbehaved provision "it answered $instance, which is not listed or belongs to somebody already"
    }
    # From here on what fails takes the instance away again, once it is known to hold nothing
    must_be_new "$instance"
    if [[ -n $verb ]]; then
        agent "$longest" "$instance" "$verb" --background <"$work/blurb" >/dev/null 2>&1 || take_back "$instance"
        # It will have the roles of its source, at its own address
        url=$(url_like "$source" "$instance")
    else
        [[ -z $plan ]] || plan_settings "$plan" | agent "$longest" "$instance" plan "$plan" >/dev/null 2>&1 || take_back "$instance"
        url=$(url_of "$instance")
    fi
    # Somebody else may have added one meanwhile
    load_databases
    choose_colour "$wanted"
    variable=HEROKU_POSTGRESQL_${colour}_URL
    attach "$colour" "$([[ -n $verb ]] || echo first)" <<<"$url" || {
        not_done
        exit 1
    }
    unfinished=""
    done_with "v$release"
    say "Attached as HEROKU_POSTGRESQL_$colour"
    case $verb in
        "") say "Database has been created and is available" ;;
        fork) say "Database will become available after it completes forking" ;;
        *) say "Follower will become available for read-only queries when up-to-date" ;;
    esac
    [[ -z $verb ]] || say "Use \`herd pg:wait\` to track status"
    restart_if_new
    [[ -z $json ]] || jq -cn --arg i "$instance" --arg v "$variable" --arg p "$plan" --argjson r "$release" --arg verb "$verb" --arg s "$source" \
        '{instance: $i, attachment: $v, plan: (if $p == "" then null else $p end), release: $r} + (if $verb == "" then {} else {($verb): $s} end)'
}

# What the platform gave must hold nothing: somebody's data must not be attached, let alone taken back
must_be_new() {
    ask_all "$1"
    [[ $(info "$1" 'has("error")') == false ]] || {
        unfinished=""
        not_done
        die "$(info "$1" .error.exit)" "the new instance $1 does not answer: $(info "$1" .error.message)" "nothing is attached; mend it, then herd addons:attach $1"
    }
    case $(info "$1" '"\(.role) \(.fresh)"') in
        "primary true" | "empty "*) ;;
        *)
            unfinished=""
            not_done
            die 1 "the new instance $1 is not empty ($(info "$1" .role)); nothing was changed" "if it is what you want: herd addons:attach $1"
            ;;
    esac
}

take_back() {
    not_done
    (json="" platform destroy "$1" >/dev/null) && unfinished=""
    die_of "$1"
}

# The URL of the source's attachment with the address of the instance
url_like() {
    local url ours theirs
    url=$(attached_url "$1" "$of")
    theirs=$(about '.databases[] | select(.name == $n) | .address' --arg n "$1")
    ours=$(about '.databases[] | select(.name == $n) | .address' --arg n "$2")
    [[ $url == *"$theirs"* ]] || die 1 "the URL of $(label "$1") does not hold its address $theirs" "see herd config"
    printf %s "${url/"$theirs"/"$ours"}"
}

# schedule_backups :PLAN, of whoever is DATABASE_URL
schedule_backups() {
    local instance report
    [[ $1 =~ ^:auto-(month|week)$ ]] || usage_error "which plan? backups by hand need none: herd pgbackups:capture" "pgbackups:auto-month or pgbackups:auto-week"
    use_platform
    load_databases
    resolve ""
    doing "Adding pgbackups$1 on $app"
    report=$(shape=$schedule_shape agent "$platform_timeout" "$instance" backup schedule "${1#:}" </dev/null 2>/dev/null) || {
        not_done
        die_of "$instance"
    }
    done_with
    say "$(label "$instance") is backed up every night; \`herd pgbackups\` shows the backups"
    # Where there is no recipe
    [[ $(jq '.install // null | type' <<<"$report") != '"object"' ]] ||
        warn "but nothing on $instance runs that yet: pgmahout backup schedule there, and on its followers, shows what to install"
    [[ -z $json ]] || jq -c --arg i "$instance" '{addon: "pgbackups:\(.plan)", instance: $i}' <<<"$report"
}
