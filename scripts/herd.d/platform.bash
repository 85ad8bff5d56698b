# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The platform: found, called with a limit, and not believed blindly. Its contract is scripts/platforms/README.md.

# Finds the platform and the app. Every command that touches anything begins with it.
use_platform() {
    platform_timeout=${HERD_PLATFORM_TIMEOUT:-60}
    answer_timeout=${HERD_ANSWER_TIMEOUT:-20}
    [[ $platform_timeout =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "HERD_PLATFORM_TIMEOUT=$platform_timeout is not a number of seconds" "use for example 60"
    [[ $answer_timeout =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "HERD_ANSWER_TIMEOUT=$answer_timeout is not a number of seconds" "use for example 20"
    if [[ -z $platform_wanted ]]; then
        if [[ -n ${HERD_HOSTS:-} || -f herd.yml ]]; then platform_wanted=ssh; else platform_wanted=dotcloud; fi
    fi
    case $platform_wanted in
        */*) platform_directory=$platform_wanted ;;
        *) platform_directory=$scripts/platforms/$platform_wanted ;;
    esac
    [[ -d $platform_directory ]] ||
        usage_error "there is no platform $platform_wanted" "it is one of: $(cd "$scripts/platforms" && printf '%s ' */ | tr -d /)or a directory"
    platform_name=${platform_directory%/}
    platform_name=${platform_name##*/}
    local found
    found=$(platform app)
    [[ $found =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || misbehaved app "it answered no name of an app"
    [[ -z $app || $app == "$found" ]] || misbehaved app "it answered $found for the app $app"
    app=$found
}

misbehaved() {
    die 1 "the platform $platform_name does not keep its contract: $1: $2" "see ${platform_directory}/$1 and scripts/platforms/README.md"
}

# platform VERB ARGUMENT...: its answer on stdout, or the end. Its stdin is empty but for config-set.
platform() {
    local verb=$1 limit=$platform_timeout said status=0
    case $verb in provision | destroy | scale | restart | maintenance) limit=$((limit * 10)) ;; esac
    said=$(mktemp "$work/said.XXXXXX")
    if [[ $verb == config-set ]]; then
        call_platform "$limit" "$@" 2>"$said" || status=$?
    else
        call_platform "$limit" "$@" 2>"$said" </dev/null || status=$?
    fi
    ((status == 0)) && return
    [[ $verb != config-get || $status != 1 || -s $said ]] || return 1
    platform_failed "$verb" "$status" "$limit" "$said"
}

# platform_failed VERB STATUS LIMIT FILE-WITH-STDERR
platform_failed() {
    local last
    last=$(grep -v '^[[:space:]]*$' "$4" | tail -n 1 | tr -d '[:cntrl:]' | cut -c 1-500) || true
    case $2 in
        124 | 137) die 4 "the platform $platform_name did not answer within $3 seconds ($1)" "look at it, or raise HERD_PLATFORM_TIMEOUT" ;;
        126 | 127) misbehaved "$1" "it cannot be run${last:+: $last}" ;;
        69) die 1 "the platform $platform_name cannot do that ($1)${last:+: $last}" ;;
        2 | 3 | 4 | 5) die "$2" "${last:-the platform $platform_name failed ($1) and said nothing}" ;;
        *) die 1 "${last:-the platform $platform_name failed ($1, exit code $2) and said nothing}" ;;
    esac
}

# In the background and waited for, as an interrupt must not have to wait for what hangs.
call_platform() (
    limit=$1 verb=$2
    shift 2
    [[ -x $platform_directory/$verb ]] || {
        echo "there is no executable $platform_directory/$verb" >&2
        exit 127
    }
    # A daemon that is started by it must not hold our own descriptors open
    HERD_APP=$app timeout --kill-after=5 "$limit" "$platform_directory/$verb" "$@" <&0 3>&- 4>&- &
    pid=$!
    if [[ -z ${uninterruptible:-} ]]; then
        trap 'kill "$pid" 2>/dev/null; exit 130' INT
        trap 'kill "$pid" 2>/dev/null; exit 143' TERM HUP
    fi
    wait "$pid"
)

# config_set REASON: a JSON object of names and values on stdin; prints the number of the release
config_set() {
    HERD_WHAT=$1 platform config-set | release_number config-set
}

config_unset() {
    HERD_WHAT=$1 platform config-unset "${@:2}" | release_number config-unset
}

release_number() {
    local answer
    answer=$(cat)
    [[ $answer =~ ^[0-9]+$ ]] || misbehaved "$1" "it answered no release number"
    printf '%s\n' "$answer"
}

# agent LIMIT INSTANCE WORD...: pgmahout on that instance, which answers one JSON object. stdin goes along; what
# it says meanwhile comes to stderr. Fails with its exit code, the error in $work/error.INSTANCE: {message, hint, exit}.
agent() {
    local limit=$1 instance=$2 status=0 answer words
    shift 2
    printf -v words '%q ' "$@"
    answer=$({
        call_platform "$limit" run "$instance" "pgmahout --json ${words% }" 2>&1 >&4 4>&- | tee "$work/stderr.$instance" >&2 4>&-
        exit "${PIPESTATUS[0]}"
    } 4>&1) || status=$?
    # A login profile may have printed before it
    answer=${answer##*$'\n'}
    if ((status == 0)) && [[ -n $answer ]] && jq -e 'type == "object" or type == "array"' <<<"$answer" >/dev/null 2>&1; then
        printf '%s\n' "$answer"
        return
    fi
    agent_error "$instance" "$status" "$limit" "$answer" >"$work/error.$instance"
    return "$(jq .exit "$work/error.$instance")"
}

# What a program said of its failure: its line with "error", or its last
first_error() {
    local line
    line=$(grep -m 1 -E '^(error|pgmahout|dotcloud|ssh):' "$1" 2>/dev/null || grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1) || true
    printf '%s\n' "$line" | tr -d '[:cntrl:]' | cut -c 1-300
}

agent_error() {
    local instance=$1 status=$2 limit=$3 answer=$4 said message hint="" exit=1
    # jq 1.6 takes no input at all for true
    if [[ -n $answer ]] && jq -ce '.error | select(.message and .exit)' <<<"$answer" 2>/dev/null; then return; fi
    said=$(first_error "$work/stderr.$instance")
    case $status in
        0) message="what $instance answered is not pgmahout's" hint="is its pgmahout the one of this herd?" ;;
        124 | 137) message="$instance did not answer within $limit seconds" hint="look at the machine, or raise HERD_ANSWER_TIMEOUT" exit=4 ;;
        255) message="$instance could not be reached${said:+: $said}" hint="is its machine up?" exit=4 ;;
        127) message="there is no pgmahout on $instance" hint="copy target/*/release/pgmahout to its ~/bin" ;;
        *) message="pgmahout on $instance failed (exit code $status)${said:+: $said}" ;;
    esac
    jq -cn --arg m "$message" --arg h "$hint" --argjson e "$exit" '{message: $m, hint: $h, exit: $e}'
}

# Ends with the error that an agent left
die_of() {
    local error
    error=$(cat "$work/error.$1" 2>/dev/null) || error='{"message": "nothing is known of its error", "exit": 1}'
    die "$(jq .exit <<<"$error")" "$1: $(jq -r .message <<<"$error")" "$(jq -r '.hint // ""' <<<"$error")"
}

# Every agent that only tells of itself: quietly, and with a short limit
ask() {
    agent "$answer_timeout" "$@" 2>/dev/null </dev/null
}

# Work that may take hours; the agent has limits of its own
longest=172800

# steps_of NAME: what it says, each line with its name before it
steps_of() {
    if [[ -n $json ]]; then cat >/dev/null; else sed -u "s/^/  $1: /" >&2; fi
}
