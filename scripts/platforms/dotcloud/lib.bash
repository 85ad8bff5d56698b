# shellcheck shell=bash
# What the verbs of this platform share: the dotcloud command, the app, and
# which of its services are databases. Contract: ../README.md
#
# Written for scripts/dotcloud. The dotCloud CLI of 2012 to 2015 has the same
# commands with fewer options; where it takes one line to do without an option
# (`knows`), that is done.
set -euo pipefail

platform_directory=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
dotcloud_program=$(type -P dotcloud) || dotcloud_program=$platform_directory/../../dotcloud
dotcloud_command=("$dotcloud_program" ${HERD_APP:+-A "$HERD_APP"})
# To say that another command holds the lock is better than to be killed while waiting for it
export DOTCLOUD_LOCK_TIMEOUT=${DOTCLOUD_LOCK_TIMEOUT:-50}
verb=${0##*/}

# fail MESSAGE [CODE]
fail() {
    printf 'dotcloud: %s\n' "$1" >&2
    exit "${2:-1}"
}

# usage TEXT: how this verb is called
usage() {
    fail "usage: $verb${1:+ $1}" 2
}

dotcloud() {
    "${dotcloud_command[@]}" "$@"
}

# knows COMMAND WORD: does its help say so?
knows() {
    local help
    help=$("$dotcloud_program" "$1" --help </dev/null 2>/dev/null) || true
    [[ $help == *"$2"* ]]
}

# The state of the app, read once:
# {application, services: {NAME: {ports: {pgsql: "tcp"}, instances: {NAME.N: {state, ports: [{name, url}]}}}}}
read_app() {
    app=$(dotcloud info --json </dev/null)
}

# ask FILTER [JQ-OPTION...]: about $app. Databases are the services with a port named pgsql.
ask() {
    jq -r "${@:2}" '
        def pgsql: .ports[]? | select(.name == "pgsql") | .url | capture("://([^/]*@)?(?<at>[^/@]+)").at;
        def databases: .services | with_entries(select(.value.ports.pgsql));
        def processes: .services | with_entries(select(.value.ports.pgsql | not));
        def state: [.instances[].state] | unique
            | if length == 0 then "stopped" elif length > 1 then "degraded" else .[0] end;
        '"$1" <<<"$app"
}

# The app's name, as $app says it; that needs no jq, which takes its time to start
application() {
    [[ $app =~ \"application\":\ *\"([^\"]+)\" ]] || fail "dotcloud does not say which application this is"
    printf '%s\n' "${BASH_REMATCH[1]}"
}

# The argument is a database instance, such as db.1; never a whole service
check_instance() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9_-]*\.[0-9]+$ ]] || fail "'$1' is not the name of an instance, such as db.0" 2
    read_app
    # shellcheck disable=SC2016 # $i is jq's
    [[ $(ask 'databases | any(.[].instances; has($i))' --arg i "$1") == true ]] ||
        fail "$1 is not a database instance of $(application), which has $(ask '[databases[].instances | keys[]] | join(", ") | if . == "" then "none" else . end')"
}

# The arguments are process services, NAME or NAME=COUNT
check_processes() {
    local name
    for name in "${@%%=*}"; do
        # shellcheck disable=SC2016 # $p is jq's
        [[ $(ask 'processes | has($p)' --arg p "$name") == true ]] ||
            fail "$name is not a process type of $(application), which has $(ask 'processes | keys | join(", ") | if . == "" then "none" else . end')" 2
    done
}

# All process services into the array $processes
list_processes() {
    # shellcheck disable=SC2034 # for the verbs
    mapfile -t processes < <(ask 'processes | keys_unsorted[]')
}

# on or off into $maintenance
read_maintenance() {
    local config
    config=$(dotcloud env list --json </dev/null)
    # shellcheck disable=SC2034 # for the verbs
    maintenance=$(jq -r 'if .env.MAINTENANCE == "on" then "on" else "off" end' <<<"$config")
}

# change_config set|unset ARGUMENT...: a new release, whose number is printed. For `set` the entries
# NAME=VALUE come on stdin, each ended by NUL.
change_config() {
    local action=$1 options=() said
    shift
    if knows env --no-restart; then
        options+=(--no-restart --reason "${HERD_WHAT:-}")
        [[ $action != set ]] || options+=(--stdin)
        said=$(dotcloud env "$action" "${options[@]}" "$@")
    elif [[ $action == set ]]; then
        # dotCloud's own CLI knows no other way than arguments, and restarts
        said=$(xargs -0 "${dotcloud_command[@]}" env set)
    else
        said=$(dotcloud env unset "$@" </dev/null)
    fi
    # "--> shop: release 7"
    if [[ $said =~ :\ release\ ([0-9]+)$ ]]; then
        printf '%s\n' "${BASH_REMATCH[1]}"
    else
        dotcloud env list --json </dev/null | jq .release
    fi
}
