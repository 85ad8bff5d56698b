# shellcheck shell=bash disable=SC2016,SC2034
# What the verbs of this platform share: the hosts file, the config file beside
# it, and ssh. Contract: ../README.md; the hosts file: README.md
set -euo pipefail

platform_directory=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
verb=${0##*/}

# fail MESSAGE [CODE]
fail() {
    printf 'ssh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# usage TEXT: how this verb is called
usage() {
    fail "usage: $verb${1:+ $1}" 2
}

say() {
    printf 'ssh: %s\n' "$1" >&2
}

# All of it in $hosts
need_hosts() {
    [[ -n $hosts ]] || hosts=$(<"$kept/hosts")
}

# look FILTER [JQ-OPTION...]: at the hosts file
look() {
    need_hosts
    jq -r -L "$platform_directory" "${@:2}" 'include "hosts"; '"$1" <<<"$hosts"
}

# --- the hosts file ------------------------------------------------------------

# $hosts_file, $hosts_directory, $application, $config_file; its contents for look
read_hosts() {
    local program config
    hosts_file=${HERD_HOSTS:-herd.yml}
    for program in yq jq flock ssh; do
        type -P "$program" >/dev/null || fail "the program $program is missing; install it, for example: apt-get install $program"
    done
    [[ -f $hosts_file ]] || fail "$hosts_file: there is no such file; write it as scripts/platforms/ssh/README.md shows, or name another in HERD_HOSTS" 2
    [[ -r $hosts_file ]] || fail "$hosts_file: cannot be read; look at its permissions" 2
    hosts_file=$(realpath -- "$hosts_file")
    hosts_directory=${hosts_file%/*}
    hosts="" kept=""
    # As it was when it was read: whatever changes it, its permissions too, changes this time
    [[ ! -d ${HERD_KEPT:-} ]] || kept=$HERD_KEPT/$(stat -L -c '%d-%i-%.9Z' -- "$hosts_file")
    if [[ -z $kept || ! -d $kept ]]; then
        parse_hosts
        [[ -z $kept ]] || keep_hosts || kept=""
    fi
    if [[ -n $kept ]]; then
        application=$(<"$kept/application")
        config=$(<"$kept/config")
    else
        application=$(look .application)
        config=$(look config)
    fi
    [[ -z ${HERD_APP:-} || $HERD_APP == "$application" ]] ||
        fail "$hosts_file is for $application, not for $HERD_APP; name another file in HERD_HOSTS" 2
    config_file=$(in_hosts_directory "$config")
}

# Its contents into $hosts, once they are right
parse_hosts() {
    local log mistake
    if ! hosts=$(yq -c . "$hosts_file" 2>&1); then
        log=$(yq --version 2>&1) || true
        [[ $log != *mikefarah* ]] || fail "this yq is not the one that wraps jq; install that one, for example: apt-get install yq"
        # Only the place: the rest may quote a password
        [[ $hosts =~ line\ [0-9]+,\ column\ [0-9]+ ]] || BASH_REMATCH=("an unknown place")
        fail "$hosts_file: invalid YAML at ${BASH_REMATCH[0]}" 2
    fi
    [[ -n $hosts && $hosts != *$'\n'* ]] || fail "$hosts_file: it must be one map with application and databases" 2
    mistake=$(look 'first(mistakes)') || fail "$hosts_file: cannot be understood; compare it with scripts/platforms/ssh/README.md" 2
    [[ -z $mistake ]] || fail "$hosts_file: $mistake" 2
    [[ $(look '[.databases[] | .sql, .url | sql_parts | .password // "" | select(. != "")] != []') == false ]] ||
        check_private "$hosts_file" "it holds passwords"
}

# What was read is kept for the other verbs of the same herd command, which may ask a thousand instances: all of it, and
# each database in a file of its own. Others see the whole directory or none.
keep_hosts() {
    local new name database
    new=$(mktemp -d "$HERD_KEPT/new.XXXXXX")
    printf '%s\n' "$hosts" >"$new/hosts"
    look .application >"$new/application"
    look config >"$new/config"
    mkdir "$new/databases"
    while IFS=$'\t' read -r name database; do
        printf '%s\n' "$database" >"$new/databases/$name"
    done < <(look '. as $hosts | .databases | keys[] as $n | "\($n)\t\($hosts | database($n) | tojson)"')
    mv -T -- "$new" "$kept" 2>/dev/null || rm -rf -- "$new"
    [[ -d $kept ]]
}

# check_private FILE WHY
check_private() {
    local mode
    mode=$(stat -L -c %a -- "$1")
    ((8#$mode & 8#077)) || return 0
    fail "$1: $2, and others may read it (mode $mode); run: chmod 600 $(printf %q "$1")" 1
}

# A path of the hosts file: relative to it, ~ is the operator's home
in_hosts_directory() {
    case $1 in
        \~/*) printf '%s\n' "$HOME/${1#"~/"}" ;;
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$hosts_directory/$1" ;;
    esac
}

# check_instance NAME: its part of the hosts file into $database
check_instance() {
    instance=$1
    # A name that is none is no file either
    if [[ -n $kept && $1 != */* && -f $kept/databases/$1 ]]; then
        database=$(<"$kept/databases/$1")
    else
        database=$(look 'database($i) | tojson' --arg i "$1")
    fi
    [[ -n $database ]] || fail "$hosts_file: databases: there is no $1, only $(look '.databases | keys | join(", ")')"
}

# check_processes NAME...: each is in the hosts file
check_processes() {
    local name
    for name; do
        [[ $(look '.processes // {} | has($p)' --arg p "$name") == true ]] ||
            fail "$hosts_file: processes: there is no $name, only $(look '.processes // {} | keys | join(", ") | if . == "" then "nothing" else . end')" 2
    done
}

# All of them into the array $processes
list_processes() {
    mapfile -t processes < <(look '.processes // {} | keys_unsorted[]')
}

# need_commands KEY NAME...: each process has this command, or the verb cannot be done
need_commands() {
    local key=$1 name
    shift
    (($#)) || fail "$hosts_file: processes: there are none, so this platform cannot do $verb" 69
    for name; do
        [[ -n $(look '.processes[$p][$k] // empty' --arg p "$name" --arg k "$key") ]] ||
            fail "$hosts_file: processes: $name: it has no $key: command, so this platform cannot do $verb" 69
    done
}

# --- the config file -----------------------------------------------------------

# Its contents into $config; what does not exist yet is empty
read_config() {
    local empty='{"release": 0, "config": {}, "releases": [], "maintenance": false}'
    if [[ ! -e $config_file && ! -L $config_file ]]; then
        config=$empty
        return
    fi
    [[ -f $config_file ]] || fail "$config_file: it is no file; name another in config: of $hosts_file"
    check_private "$config_file" "it holds the app's secrets"
    [[ -r $config_file ]] || fail "$config_file: cannot be read; it belongs to somebody else"
    config=$(jq -c --argjson empty "$empty" 'select(type == "object") | $empty + . | select((.release | type == "number")
        and (.config | type == "object" and all(.[]; type == "string")) and (.releases | type == "array"))' "$config_file" 2>/dev/null) || config=""
    [[ -n $config && $config != *$'\n'* ]] ||
        fail "$config_file: it is not the JSON that herd wrote; restore it, or repair it by hand"
}

# of_config FILTER [JQ-OPTION...]
of_config() {
    jq -r -L "$platform_directory" "${@:2}" 'include "hosts"; '"$1" <<<"$config"
}

# The lock is on the directory, as the file is replaced with each change
lock_config() {
    config_file=$(readlink -m -- "$config_file")
    [[ -d ${config_file%/*} ]] || fail "${config_file%/*}: there is no such directory; name another in config: of $hosts_file"
    exec 8<"${config_file%/*}"
    flock -w "${HERD_LOCK_TIMEOUT:-50}" 8 || fail "$config_file: another herd command changes it; try again when it is done"
    read_config
}

unlock_config() {
    exec 8<&-
}

# write_config FILTER [JQ-OPTION...]: the old file, or all of the new one
new_file=""
trap '[[ -z $new_file ]] || rm -f -- "$new_file"' EXIT
write_config() {
    local changed
    changed=$(of_config "$@" | jq .) || changed=""
    [[ -n $changed ]] || fail "$config_file: the change could not be made; nothing was changed"
    new_file=$(mktemp "$config_file.XXXXXX" 2>/dev/null) || fail "$config_file: cannot be written; look at the permissions of ${config_file%/*}"
    {
        printf '%s\n' "$changed" >"$new_file" && sync -- "$new_file" && mv -f -- "$new_file" "$config_file" && sync -- "${config_file%/*}"
    } 2>/dev/null || fail "$config_file: cannot be written; is the disk full?"
    new_file=""
    config=$changed
}

# change_config FILTER WHAT [JQ-OPTION...]: a new release; its number is printed
change_config() {
    local filter=$1 what=$2
    shift 2
    lock_config
    write_config "$filter"' | .release += 1
        | .releases = (.releases + [{release, at: (now | todate), what: ($what | gsub("[[:cntrl:]]+"; " "))}])[-100:]' --arg what "$what" "$@"
    of_config .release
}

# --- ssh to a database's host --------------------------------------------------

# The command into $ssh_command, after check_instance
ssh_to_instance() {
    local parts user host port identity known_hosts
    mapfile -d '' -t parts < <(jq -j -L "$platform_directory" 'include "hosts"; (.ssh | ssh_parts | .user // "-", (.host | ltrimstr("[") | rtrimstr("]")), .port),
        (.identity, .known_hosts | . // "") | "\(.)\u0000"' <<<"$database")
    user=${parts[0]} host=${parts[1]} port=${parts[2]} identity=${parts[3]} known_hosts=${parts[4]}
    ssh_command=(ssh -p "$port" -o BatchMode=yes -o StrictHostKeyChecking=yes -o LogLevel=ERROR)
    ssh_command+=(-o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4)
    # A file that is named is the only one; % begins ssh's own tokens
    if [[ -n $identity ]]; then
        identity=$(in_hosts_directory "$identity")
        [[ -r $identity ]] || fail "$identity: this key cannot be read; look at identity: in $hosts_file"
        ssh_command+=(-o IdentitiesOnly=yes -o "IdentityFile=\"${identity//%/%%}\"")
    fi
    if [[ -n $known_hosts ]]; then
        known_hosts=$(in_hosts_directory "$known_hosts")
        [[ -r $known_hosts ]] || fail "$known_hosts: this file cannot be read; look at known_hosts: in $hosts_file"
        ssh_command+=(-o "UserKnownHostsFile=\"${known_hosts//%/%%}\"" -o GlobalKnownHostsFile=/dev/null)
    fi
    [[ $user == - ]] || ssh_command+=(-l "$user")
    ssh_command+=(-- "$host")
}

# remote COMMAND [PLAN]: what the host's shell is to run: the command in a login shell with its environment
remote() {
    jq -r -L "$platform_directory" --arg i "$instance" --arg a "$application" --arg command "$1" --arg plan "${2:-}" 'include "hosts";
        ({PGMAHOUT_INSTANCE: $i, PGMAHOUT_APP: $a} + (.environment // {} | map_values(tostring))
         + (if $plan == "" then {} else {PLAN: $plan} end)
         | to_entries | map("export \(.key)=\(.value | quoted)") | join("\n"))
        + "\nPATH=\"$HOME/bin:$PATH\"\n\($command)" | "exec bash -lc \(quoted)"' <<<"$database"
}

# run_there COMMAND [PLAN]: what it says goes to stderr; ends the verb when it fails
run_there() {
    local ssh_command status=0
    ssh_to_instance
    "${ssh_command[@]}" "$(remote "$@")" </dev/null >&2 || status=$?
    ((status != 255)) || fail "$instance could not be reached by ssh; see the line above, and ssh: of $instance in $hosts_file" 4
    ((status == 0)) || fail "the $verb: command of $instance ended with $status; see the lines above"
}

# --- the operator's commands ---------------------------------------------------

# count_of NAME: what scale has set counts more than what the file says
count_of() {
    local count
    count=$(of_config '.counts[$p] // empty' --arg p "$1")
    [[ -n $count ]] || count=$(look '.processes[$p].count // 1' --arg p "$1")
    printf '%s\n' "$count"
}

# scale_process NAME COUNT
scale_process() {
    run_here "$1" scale "$2" || fail "the scale: command of $1 ended with $?; see the lines above"
}

# run_here NAME KEY [COUNT]: a process's command, with the config as its environment. Any name may stand in the
# config, so that from there on nothing is kept in variables.
run_here() {
    (
        cd "$hosts_directory"
        exec 8<&-
        set -- "$(look '.processes[$p][$k]' --arg p "$1" --arg k "$2")" "${3:-}" "$BASH"
        while IFS= read -r -d ''; do
            # Bash's own; to set a read-only one would end it
            case ${REPLY%%=*} in
                UID | EUID | PPID | SHELLOPTS | BASH*) continue ;;
            esac
            export "${REPLY?}"
        done < <(of_config '.config | to_entries[] | "\(.key)=\(.value)\u0000"' -j)
        [[ -z $2 ]] || export COUNT=$2
        exec "$3" -c "$1" </dev/null >&2
    )
}
