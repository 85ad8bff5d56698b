# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# pg:migrate and pg:upgrade: the agent on this machine goes the way (`pgmahout migrate`); here names become what it
# understands, and then it takes over, so that Ctrl-C and the exit code are its own.

# migration_options COMMAND ARGUMENT...: into $from, $to, $plan, $url, $as, $action, $options, $words
migration_options() {
    command=$1 from="" to="" plan="" url="" as="" action="" options=() words=()
    shift
    while (($#)); do
        case $1 in
            --from | --to | --plan | --url | --as)
                [[ $1 != --from && $1 != --url || $command == pg:migrate ]] || usage_error "$1 is for pg:migrate; the database is named"
                printf -v "${1#--}" %s "$(option_value "$@")"
                [[ -n ${2:-} ]] || exit 2
                shift
                ;;
            --from=* | --to=* | --plan=* | --url=* | --as=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            --rehearse | --no-owner | --terminate) options+=("$1") ;;
            -n | --dry-run) options+=(--dry-run) ;;
            --wait | --jobs)
                [[ ${2:-} =~ ^[0-9]{1,6}$ ]] || usage_error "$1 wants a number"
                options+=("$1" "$2")
                shift
                ;;
            --wait=* | --jobs=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            --resume | --rollback | --abandon | --status)
                [[ $command == pg:migrate ]] || usage_error "$1 is for pg:migrate, also after $command" "herd pg:migrate $1"
                [[ -z $action || $action == "$1" ]] || usage_error "$action or $1?"
                action=$1
                ;;
            -*) usage_error "unknown option $1" ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    [[ -z $to || -z $plan ]] || usage_error "--to is a database that is there, --plan makes a new one; only one of them"
    [[ -z $from || -z $url ]] || usage_error "--from is a config variable, --url a database elsewhere; only one of them"
    [[ -z $action || -z $to$plan$as && ${#options[@]} == 0 && ($action == --abandon || -z $from$url) ]] ||
        usage_error "$action takes no other options: it is about the migration that was begun"
    [[ -z $plan ]] || check_plan "$plan"
}

# The agent on this machine into $local_agent
find_local_agent() {
    local file newest=""
    if [[ -n ${PGMAHOUT_BIN:-} ]]; then
        [[ -f $PGMAHOUT_BIN && -x $PGMAHOUT_BIN ]] || die 1 "PGMAHOUT_BIN=$PGMAHOUT_BIN is not an executable file" "unset it, or name the pgmahout of this machine"
        local_agent=$PGMAHOUT_BIN
        return
    fi
    for file in "$scripts"/../target/*/release/pgmahout "$scripts"/../target/release/pgmahout; do
        [[ -f $file && -x $file ]] || continue
        [[ -n $newest && ! $file -nt $newest ]] || newest=$file
    done
    local_agent=${newest:-$(type -P pgmahout || true)}
    [[ -n $local_agent ]] || die 1 "a migration needs pgmahout on this machine too, and there is none" \
        "cargo build --release in $(cd "$scripts/.." && pwd), or put it into your PATH, or name it in PGMAHOUT_BIN"
}

# to_instance: what the agent is to move to, into $options
to_instance() {
    local target
    if [[ -n $to ]]; then
        resolve "$to" target
        options+=(--to "$target")
        # One that has a name keeps it
        [[ -z $(about '.databases[] | select(.name == $n) | .attachments[]' --arg n "$target") ]] || {
            [[ -z $as ]] || usage_error "$(label "$target") is attached already; --as is for what is not"
            return 0
        }
    elif [[ -n $plan ]]; then
        options+=(--plan "$plan")
    fi
    choose_colour "$as"
    options+=(--colour "$colour")
}

# The config variables that hold the URL of a database
url_variables() {
    about '[.config | to_entries[] | select(.value | test("^(postgres|postgresql|pgsql)://"; "i")) | .key] | join(", ")'
}

# migrate ARGUMENT...: this process becomes the agent's
migrate() {
    local directory
    find_local_agent
    directory=$(cd "$platform_directory" && pwd)
    # Its own calls of herd are for the same app and platform; they attach, and decide nothing
    export HERD_APP=$app HERD_PLATFORM=$directory/
    rm -rf -- "$work"
    trap - EXIT INT TERM HUP
    exec "$local_agent" ${json:+--json} migrate --platform "$directory" --herd "$program_file" --app "$app" \
        "$@" ${confirmed:+--confirm "$confirmed"} 3>&- 5>&-
}
