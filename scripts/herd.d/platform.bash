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
    [[ $found =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$ ]] || misbehaved app "it answered no name of an app"
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
    # Through a file: what a verb has left running may hold a pipe open for ever
    if [[ $verb == config-set ]]; then
        call_platform "$limit" "$@" >"$said.answer" 2>"$said" || status=$?
    else
        call_platform "$limit" "$@" >"$said.answer" 2>"$said" </dev/null || status=$?
    fi
    if ((status == 0)); then
        tr -d '\0' <"$said.answer"
        return
    fi
    [[ ! -e $work/interrupted ]] || exit "$status"
    [[ $verb != config-get || $status != 1 || -s $said ]] || return 1
    platform_failed "$verb" "$status" "$limit" "$said"
}

# platform_failed VERB STATUS LIMIT FILE-WITH-STDERR
platform_failed() {
    local last
    last=$(grep -av '^[[:space:]]*$' "$4" | tail -n 1 | one_line 500) || true
    case $2 in
        124) die 4 "the platform $platform_name did not answer within $3 seconds ($1)" "look at it, or raise HERD_PLATFORM_TIMEOUT" ;;
        126 | 127) misbehaved "$1" "it cannot be run${last:+: $last}" ;;
        69) die 1 "the platform $platform_name cannot do that ($1)${last:+: $last}" ;;
        129 | 1[3-9]?) die 1 "the platform $platform_name was ended by signal $(($2 - 128)) ($1)${last:+: $last}" ;;
        2 | 3 | 4 | 5) die "$2" "${last:-the platform $platform_name failed ($1) and said nothing}" ;;
        *) die 1 "${last:-the platform $platform_name failed ($1, exit code $2) and said nothing}" ;;
    esac
}

# sed's, by bytes: the controls beyond ASCII, and what changes the direction of writing
obeyed=$'s/\302[\200-\237]//g; s/\342\200[\216\217\250-\256]//g; s/\342\201[\246-\251]//g'

# Without what a terminal would obey, U+0080 to U+009F and turns of the direction of writing among it; lines and tabs stay
plain() {
    LC_ALL=C tr -d '\000-\010\013-\037\177' | LC_ALL=C sed "$obeyed"
}

# What somebody else said, as a part of a message: no control characters, no passwords of URLs, at most that long
one_line() {
    tr -d '[:cntrl:]' | sed -E 's|(://[^:@/ ]*):[^@/ ]*@|\1:...@|g' | cut -c "1-$1"
}

# In the background and waited for, as an interrupt must not have to wait for what hangs. It is a process group of its
# own, which clean_up ends too.
call_platform() (
    limit=$1 verb=$2 begin=$SECONDS status=0
    shift 2
    [[ -x $platform_directory/$verb ]] || {
        echo "there is no executable $platform_directory/$verb" >&2
        exit 127
    }
    # A daemon that is started by it must not hold our own descriptors open
    HERD_APP=$app HERD_KEPT=$work/kept timeout --kill-after=5 "$limit" "$platform_directory/$verb" "$@" <&0 3>&- 4>&- 5>&- &
    pid=$!
    { : >"$work/groups/$pid"; } 2>/dev/null || true
    if [[ -z ${uninterruptible:-} ]]; then
        trap 'interrupted 130 "$pid"' INT
        trap 'interrupted 143 "$pid"' TERM HUP
    fi
    # Bash's own words about a signal are nobody's answer
    wait "$pid" 2>/dev/null || status=$?
    # On an instance nothing goes on once its command has ended
    [[ $verb != run ]] || kill -KILL -- "-$pid" 2>/dev/null || true
    rm -f "$work/groups/$pid"
    # Killed after the limit is the limit; before it, somebody else did it
    ((status != 137 || SECONDS - begin < limit)) || status=124
    exit "$status"
)

# Nobody is to take that for an answer
interrupted() {
    { : >"$work/interrupted"; } 2>/dev/null || true
    kill "$2" 2>/dev/null
    exit "$1"
}

# config_set REASON: a JSON object of names and values on stdin; prints the number of the release
config_set() {
    local answer
    answer=$(HERD_WHAT=$1 platform config-set) || return
    release_number config-set <<<"$answer"
}

config_unset() {
    local answer
    answer=$(HERD_WHAT=$1 platform config-unset "${@:2}") || return
    release_number config-unset <<<"$answer"
}

release_number() {
    local answer
    answer=$(cat)
    [[ $answer =~ ^[0-9]{1,9}$ ]] || misbehaved "$1" "it answered no release number"
    printf '%s\n' "$answer"
}

# agent LIMIT INSTANCE WORD...: pgmahout on that instance, which answers one JSON object. stdin goes along; what
# it says meanwhile comes to stderr. Fails with its exit code, the error in $work/error.INSTANCE: {message, hint, exit}, what it answered in $work/refused.INSTANCE.
agent() {
    local limit=$1 instance=$2 status=0 answer words pipe reader patience=100
    shift 2
    printf -v words '%q ' "$@"
    answer=$(mktemp "$work/answer.XXXXXX")
    exec {pipe}> >(exec tee "$work/stderr.$instance" >&2)
    reader=$!
    call_platform "$limit" run "$instance" "pgmahout --json ${words% }" >"$answer" 2>&"$pipe" {pipe}>&- || status=$?
    exec {pipe}>&-
    # All that it said is there, unless somebody whom it has left running holds the pipe
    while ((patience-- > 0)) && kill -0 "$reader" 2>/dev/null; do sleep 0.02; done
    ((patience >= 0)) || kill "$reader" 2>/dev/null || true
    # A login profile may have printed before it
    answer=$(tail -n 1 "$answer" | tr -d '\0')
    if ((status == 0)) && jq -se "length == 1 and (.[0] | ${shape:-type == \"object\" or type == \"array\"})" <<<"$answer" >/dev/null 2>&1; then
        printf '%s\n' "$answer"
        return
    fi
    printf '%s\n' "$answer" >"$work/refused.$instance"
    agent_error "$instance" "$status" "$limit" "$answer" >"$work/error.$instance"
    return "$(jq .exit "$work/error.$instance")"
}

# What a program said of its failure: its line with "error", or its last
first_error() {
    local line
    line=$(grep -a -m 1 -E '^(error|pgmahout|dotcloud|ssh):' "$1" 2>/dev/null || grep -av '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1) || true
    printf '%s\n' "$line" | one_line 300
}

agent_error() {
    local instance=$1 status=$2 limit=$3 answer=$4 said message hint="" exit=1
    # jq 1.6 takes no input at all for true
    if [[ -n $answer ]] && jq -ce '.error | select(.message and .exit)' <<<"$answer" 2>/dev/null; then return; fi
    said=$(first_error "$work/stderr.$instance")
    case $status in
        0) message="what $instance answered is not pgmahout's" hint="is its pgmahout the one of this herd?" ;;
        124) message="$instance did not answer within $limit seconds" hint="look at the machine, or raise HERD_ANSWER_TIMEOUT" exit=4 ;;
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
    if [[ -n $json ]]; then cat >/dev/null; else LC_ALL=C sed -u "s/[[:cntrl:]]//g; $obeyed; s/^/  $1: /" >&2; fi
}

# --url names a file, or - for stdin. A URL in its place has a password, which is not repeated.
url_file() {
    local hint="the URL stands in a file, or comes on stdin with --url -"
    [[ $1 == - || (-f $1 || -p $1 || -c $1) && -r $1 ]] && return
    [[ $1 != *://* ]] || usage_error "--url wants a file: what stands on a command line is seen by others" "$hint"
    usage_error "--url $1: there is no such file, or it cannot be read" "$hint"
}
