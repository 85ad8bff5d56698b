# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd logs [DB...] [--ps postgres] [--tail] [-n N] [--slow MS | --all] [--since TIME] [--json]
# Summary: slow statements of all databases, merged by time
#
# Each line has its time in UTC, the instance and the statement with its duration.
# The threshold is the setting slow_query_ms of the instances, 50 ms by default, and
# what the server itself logs (log_min_duration_statement).
#
# Options:
#   -n N          the last N lines (100)
#   -t, --tail    go on with what comes, until Ctrl-C
#   --slow MS     another threshold
#   --all         everything that the servers log, not only slow statements
#   --since TIME  2026-11-21T15:40:00Z, or 90s, 10m, 2h, 1d ago
#   --ps postgres as with Heroku; the app's own logs are the platform's
#
# Examples:
#   herd logs --ps postgres --tail
#   herd logs --all --since 1h -n 1000

command_logs() {
    local chosen=() instance options=() lines=100 tail="" slow=(--slow) since="" limit words
    use_platform
    load_databases
    while (($#)); do
        case $1 in
            -n | --num | --lines)
                [[ ${2:-} =~ ^[0-9]{1,7}$ ]] || usage_error "$1 wants a number of lines"
                lines=$2
                shift
                ;;
            -t | --tail) tail=yes ;;
            --slow)
                [[ ${2:-} =~ ^[0-9]+(\.[0-9]+)?$ ]] || usage_error "--slow wants a number of milliseconds"
                slow=(--slow "$2")
                shift
                ;;
            --all) slow=() ;;
            --since)
                since=$(option_value "$@")
                [[ $since =~ ^[0-9]+[smhd]$ || $since =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2} ]] || usage_error "--since wants a time such as 2026-11-21T15:40:00Z, or a while such as 90s, 10m, 2h or 1d"
                shift
                ;;
            --ps | -p)
                [[ ${2:-} == postgres ]] || usage_error "only --ps postgres is here" "the app's own logs are the platform's"
                shift
                ;;
            --ps=postgres) ;;
            -*) usage_error "unknown option $1" ;;
            *)
                resolve "$1"
                chosen+=("$instance")
                ;;
        esac
        shift
    done
    ((${#chosen[@]})) || mapfile -t chosen < <(attached)
    ((${#chosen[@]})) || die 1 "$app has no databases" "herd addons:add heroku-postgresql:ronin adds one"
    options=(${json:+--json} logs -n "$lines" ${slow[@]+"${slow[@]}"} ${since:+--since "$since"} ${tail:+--tail})
    limit=$platform_timeout
    [[ -z $tail ]] || limit=$longest
    printf -v words '%q ' pgmahout "${options[@]}"
    : >"$work/merged"
    if [[ -n $tail ]]; then
        tail_logs
    else
        in_parallel log_of "${chosen[@]}" || true
        for instance in "${chosen[@]}"; do sed '/^{"error":/d' "$work/out.$instance"; done | in_order | tail -n "$lines" | plain
        failures
    fi
}

# Lines by their times, which are all in UTC and equally long
in_order() {
    if [[ -n $json ]]; then
        sed -E 's/^.*"time":"([^"]*)".*$/\1\t&/' | sort -s -t $'\t' -k 1,1 | cut -f 2-
    else
        sort -s -k 1,1
    fi
}

log_of() {
    local status=0
    call_platform "$limit" run "$1" "${words% }" </dev/null 2>"$work/stderr.$1" || status=$?
    # With --json it says on stdout what went wrong
    ((status == 0)) || agent_error "$1" "$status" "$limit" "$(grep '^{"error":' "$work/out.$1" 2>/dev/null)" >"$work/error.$1"
    return "$status"
}

# One that cannot be read does not hide the others, but is named, and decides the exit code
failures() {
    local name failed=0 said
    for name in "${chosen[@]}"; do
        [[ $(<"$work/status.$name") != 0 ]] || continue
        failed=$(jq .exit "$work/error.$name")
        if [[ -n $json ]]; then
            jq -c --arg n "$name" '{error: ({instance: $n} + .)}' "$work/error.$name"
            continue
        fi
        said=$(sed -n 's/^pgmahout: //p' "$work/stderr.$name" | head -n 1)
        warn "$(label "$name"): ${said:-$(jq -r .message "$work/error.$name")}"
    done
    return "$failed"
}

# Lines of several instances come as they come; within a third of a second they are put in order.
tail_logs() {
    local name line pids=() lines_read=() deadline
    mkfifo "$work/lines"
    for name in "${chosen[@]}"; do
        (
            log_of "$name" >"$work/lines" || warn "$(label "$name"): $(jq -r .message "$work/error.$name")"
        ) &
        pids+=($!)
    done
    while :; do
        lines_read=()
        IFS= read -r line || break
        lines_read+=("$line")
        deadline=$((${EPOCHREALTIME/[.,]/} + 300000))
        while ((${EPOCHREALTIME/[.,]/} < deadline)) && IFS= read -r -t 0.3 line; do lines_read+=("$line"); done
        printf '%s\n' "${lines_read[@]}" | in_order | plain
    done <"$work/lines"
    # All have ended: somebody else ended them
    die 1 "no database sends its log any more" "herd pg:info tells how they are"
}
