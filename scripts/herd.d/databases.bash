# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# The app's databases: what the platform and the config variables say of them, their names, and what they say of
# themselves. An attachment is the variable HEROKU_POSTGRESQL_<COLOUR>_URL; it belongs to the instance at whose
# address its URL points, and so does DATABASE_URL.

# One JSON for all of it in $databases:
#   {app, release, config, databases: [{name, state, address, attachments: [COLOUR…], current}], strays: [NAME…]}
load_databases() {
    local config instances twice asked
    # Both at once; when both fail, one message is enough
    platform instances >"$work/instances" 2>"$work/instances.stderr" 3>"$work/instances.json" &
    asked=$!
    config=$(platform config-list)
    check_config <<<"$config"
    wait "$asked" || {
        asked=$?
        cat "$work/instances.stderr" >&2
        cat "$work/instances.json"
        exit "$asked"
    }
    instances=$(<"$work/instances")
    if [[ -n $instances ]]; then
        ! grep -qvP '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\t(running|stopped|degraded|unknown)\t[][A-Za-z0-9._:%-]+:[0-9]{1,5}$' <<<"$instances" ||
            misbehaved instances "it answered a line that is not NAME, STATE and HOST:PORT"
        twice=$(awk -F '\t' '!found && (names[$1]++ || addresses[$3]++) { print $1 " at " $3; found = 1 }' <<<"$instances")
        [[ -z $twice ]] || misbehaved instances "it answered $twice, whose name or address another line has too"
    fi
    databases=$(jq -c -L "$library" --arg app "$app" --rawfile instances <(printf %s "$instances") 'include "herd"; databases($app; $instances)' <<<"$config")
}

# What config-list answered, on stdin
check_config() {
    jq -se 'length == 1 and (.[0] | (.release | type == "number" or . == null) and (.config | type == "object" and all(.[]; type == "string")))' \
        >/dev/null 2>&1 || misbehaved config-list "it answered no JSON with release and config"
}

# about FILTER [JQ-OPTION...]: of $databases
about() {
    jq -r -L "$library" "${@:2}" "include \"herd\"; $1" <<<"$databases"
}

# The instance that NAME means into the variable $2 (default: instance); the default NAME is DATABASE_URL.
resolve() {
    local wanted=${1:-DATABASE_URL} found
    found=$(about 'resolve($w)' --arg w "$wanted")
    case $found in
        "")
            if [[ ${wanted^^} == DATABASE_URL ]]; then
                die 2 "$app has no DATABASE_URL" "name a database, or add one: herd addons:add heroku-postgresql:ronin"
            fi
            die 2 "$app has no database $wanted" "it has: $(about '[.databases[] | names] | flatten | join(", ") | if . == "" then "none; see herd addons:add --help" else . end')"
            ;;
        "?"*) die 2 "$wanted of $app may be ${found#\?}" "use another of its names, such as HEROKU_POSTGRESQL_${wanted^^}_URL for the attachment" ;;
        "!"*) die 1 "${found#!} of $app points to no instance that the platform knows" "see herd config, and the platform's list: $platform_directory/instances" ;;
    esac
    printf -v "${2:-instance}" %s "$found"
}

# label INSTANCE: HEROKU_POSTGRESQL_AMBER_URL, or the instance's own name
label() {
    about '.databases[] | select(.name == $n) | attachment' --arg n "$1"
}

# Every attached instance, or all where none is
attached() {
    about '[.databases[] | select(.attachments != [] or .current)] | .[].name'
}

# What an info must be for all that is read from it here; null where nothing is known
info_shape='def null_or($t): . == null or type == $t; def list: null_or("array") and all(.[]?; type == "object");
    type == "object" and (.instance, .role | type == "string") and (.following, .job, .connections | null_or("object"))
    and (.system_id, .problem, .no_follow, .plan, .version, .following.primary | null_or("string")) and (.followers, .slots | list)
    and (.size_bytes, .created, .following.lag.bytes, .following.lag.seconds | null_or("number"))'

# Each is a few processes and an SSH session, and a herd may have a thousand instances
room_for_one() {
    while (($(jobs -rp | wc -l) >= ${HERD_AT_ONCE:-32})); do wait -n || true; done
}

# ask_all INSTANCE...: `pgmahout info` of all at once; their answers in $work/info.NAME, with an error in its place
# {"error": {message, hint, exit}} for those that gave none.
ask_all() {
    local name pids=() pid
    for name; do
        room_for_one
        (shape=$info_shape ask "$name" info >"$work/info.$name" || jq -c '{error: .}' "$work/error.$name" >"$work/info.$name") &
        pids+=($!)
    done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || true; done
}

# All of them in one JSON for herd.jq: $databases with .info in each that was asked
with_info() {
    local name files=()
    for name in $(about '.databases[].name'); do
        [[ ! -s $work/info.$name ]] || files+=("$work/info.$name")
    done
    # Never as an argument: the config holds passwords
    jq -c '{(input_filename | split("/info.")[-1]): .}' "${files[@]:-/dev/null}" |
        jq -cs --slurpfile d <(printf %s "$databases") 'add // {} | . as $infos | $d[0] | .databases |= map(. + {info: $infos[.name]})'
}

# info INSTANCE FILTER: of its answer
info() {
    jq -r "$2" "$work/info.$1"
}

# Ends when it could not be asked
must_answer() {
    [[ $(info "$1" 'has("error")') == false ]] ||
        die "$(info "$1" .error.exit)" "$(label "$1"): $(info "$1" .error.message)" "$(info "$1" '.error.hint // ""')"
}

# blurb_of INSTANCE: with the password that it has now, as the others may know an older one
blurb_of() {
    local blurb address credentials
    blurb=$(platform blurb "$1")
    [[ $blurb == *ssh://* ]] || misbehaved blurb "it answered no blurb with an ssh:// URL"
    address=$(about '.databases[] | select(.name == $n) | .address' --arg n "$1")
    if [[ $blurb =~ (tcp|pgsql|postgres|postgresql)://"$address" ]]; then
        # The server may be down: then the agent has nothing newer to say
        if credentials=$(ask "$1" credentials); then
            credentials=$(jq -r '"pgsql://\(.user | @uri):\(.password | @uri)@"' <<<"$credentials")
            blurb=${blurb//"${BASH_REMATCH[0]}"/"$credentials$address"}
        fi
    fi
    printf '%s\n' "$blurb"
}

# url_of INSTANCE: what the app connects with
url_of() {
    local url address credentials
    url=$(platform url "$1") || return
    address=$(about '.databases[] | select(.name == $n) | .address' --arg n "$1")
    if [[ -n $url ]]; then
        [[ ${#url} -lt 10000 && $url != *[[:space:][:cntrl:]]* && $(printf %s "$url" | jq -rRs -L "$library" 'include "herd"; address') == "${address,,}" ]] ||
            misbehaved url "it answered no URL of $1 at $address"
    else
        credentials=$(ask "$1" credentials) || die_of "$1"
        url=$(jq -r --arg a "$address" '"postgres://\(.user | @uri):\(.password | @uri)@\($a)/\(.database | @uri)"' <<<"$credentials")
    fi
    printf '%s\n' "$url"
}

# attached_url INSTANCE [NAME]: its attachment's, else url_of. Of several, which may be of several databases of that
# server, the one of that name, else one of the database that DATABASE_URL is of.
attached_url() {
    local url
    url=$(about 'url_of($n; $w)' --arg n "$1" --arg w "${2:-}")
    if [[ -n $url ]]; then printf '%s\n' "$url"; else url_of "$1"; fi
}

# database_in URL: its name, percent-encoded as it is there
database_in() {
    printf %s "$1" | sed -E 's|^[a-z]+://[^/]*/?([^?]*).*$|\1|'
}

# decoded TEXT: of a URL
decoded() {
    local text=${1//\\/\\\\}
    printf %b "${text//%/\\x}"
}

# by_address HOST:PORT: the instance there, or nothing
by_address() {
    about '[.databases[] | select(.address == $a) | .name] | first // empty' --arg a "$1"
}

# A report of enslave for a person
followed_text() {
    jq -r -L "$library" 'include "herd"; followed_text'
}

# in_parallel FUNCTION INSTANCE...: for each in a process of its own; its stdout goes to $work/out.INSTANCE and its
# status to $work/status.INSTANCE. Fails when one of them did.
in_parallel() {
    local function=$1 name pids=() pid failed=0 status i
    shift
    for name; do
        room_for_one
        ("$function" "$name" >"$work/out.$name") &
        pids+=($!)
    done
    i=0
    for name; do
        status=0
        wait "${pids[i]}" || status=$?
        printf '%s\n' "$status" >"$work/status.$name"
        ((status == 0)) || failed=1
        i=$((i + 1))
    done
    return "$failed"
}

must_not_be_current() {
    [[ $(about '.databases[] | select(.name == $n) | .current' --arg n "$1") == false ]] ||
        die 1 "$(label "$1") is the DATABASE_URL of $app" "promote another one first: herd pg:promote DB; or herd config:unset DATABASE_URL"
}

# shown_by_agent VERB [DB] [ARGUMENT...]: what the agent there shows, as it is
shown_by_agent() {
    local verb=$1 wanted="" instance
    shift
    if [[ -n ${1:-} && $1 != -* && ! $1 =~ ^[0-9]+$ ]]; then
        wanted=$1
        shift
    fi
    use_platform
    load_databases
    resolve "$wanted"
    show_of "$instance" "$verb" "$@"
}

# show_of INSTANCE WORD...: the same of an instance that is known
show_of() {
    local instance=$1 status=0 words
    shift
    printf -v words '%q ' pgmahout ${json:+--json} "$@"
    call_platform "$platform_timeout" run "$instance" "${words% }" </dev/null 2>"$work/stderr.$instance" | plain || status=$?
    case $status in
        0) sed '/^$/d' "$work/stderr.$instance" | plain >&2 ;;
        124 | 127 | 137 | 255) die "$(agent_error "$instance" "$status" "$platform_timeout" "" | tee "$work/error.$instance" | jq .exit)" "$(jq -r .message "$work/error.$instance")" "$(jq -r '.hint // ""' "$work/error.$instance")" ;;
        # It has said why, in its own words
        *)
            sed -e 's/^pgmahout: / !    /' -e 's/^hint: / !    /' -e 's/`pgmahout ps /`herd pg:ps /' "$work/stderr.$instance" | plain >&2
            exit "$status"
            ;;
    esac
}
