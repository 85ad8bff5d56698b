# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# An application's state: one file, app.json, replaced as a whole; the locks
# around it; and which application and instance a command is about.
#
#   $DOTCLOUD_HOME/apps/APP/app.json            this file
#   $DOTCLOUD_HOME/apps/APP/ssh/                the platform's client key, host keys
#   $DOTCLOUD_HOME/apps/APP/build/SERVICE/home  the last good build
#   $DOTCLOUD_HOME/apps/APP/SERVICE.N/          an instance (see instance.bash)

# The application in $app: -A, else .dotcloud/config here or in a parent.
find_app() {
    local directory=$PWD
    app=$app_option
    while [[ -z $app ]]; do
        if [[ -f $directory/.dotcloud/config ]]; then
            # Every command comes by here, and jq takes its time to start
            [[ $(<"$directory/.dotcloud/config") =~ \"application\":\ *\"([^\"]+)\" ]] && app=${BASH_REMATCH[1]}
            [[ -n $app ]] || die "$directory/.dotcloud/config names no application; run dotcloud create APP again"
        fi
        [[ -n $directory ]] || break
        directory=${directory%/*}
    done
    [[ -n $app ]]
}

use_app() {
    find_app || die "no application is chosen here; run dotcloud create APP, or name one with -A"
    open_app
}

open_app() {
    check_app_name
    app_directory=$DOTCLOUD_HOME/apps/$app
    [[ -f $app_directory/app.json ]] || die "no such application: $app; see dotcloud list"
    [[ -r $app_directory/app.json ]] || die "the application $app belongs to somebody else; become its owner"
}

check_app_name() {
    [[ $app =~ ^[a-z][a-z0-9-]{0,29}$ ]] ||
        usage_error "'$app' cannot be an application's name; use lower-case letters, digits and -, at most 30"
}

# A lock is held on a directory itself, so that destroy leaves no lock file;
# the directory may be gone by the time that we have it.
lock_app() {
    exec 8<"$app_directory"
    wait_for_lock 8
    [[ -f $app_directory/app.json && $app_directory -ef /dev/fd/8 ]] || die "no such application: $app; see dotcloud list"
    remove_incomplete
}

lock_home() {
    exec 9<"$DOTCLOUD_HOME"
    wait_for_lock 9
}

unlock_home() {
    exec 9<&-
}

wait_for_lock() {
    flock -n "$1" && return
    warn "waiting for another dotcloud command to finish"
    flock -w "$lock_timeout" "$1" || die "another dotcloud command still runs after $lock_timeout seconds; try again when it is done"
}

# query FILTER [JQ-OPTION...]: reads the state. update: replaces it.
query() {
    jq -r -L "$library" "${@:2}" "include \"dotcloud\"; $1" "$app_directory/app.json"
}

update() {
    local file=$app_directory/app.json
    # shellcheck disable=SC2094 # another file, then renamed
    (
        umask 077
        jq -L "$library" "${@:2}" "include \"dotcloud\"; $1" "$file" >"$file.new" && sync "$file.new" && mv -f "$file.new" "$file"
    ) || die "cannot write $file; is the disk full?"
}

services() {
    query '.services | keys_unsorted[]'
}

# instances [SERVICE]: names such as db.0, of those that are complete
instances() {
    query 'complete | . as $app | (.services | keys_unsorted[] | select($only == "" or . == $only)) as $s | $app | numbers($s)[] | "\($s).\(.)"' \
        --arg only "${1:-}"
}

# Splits db.1 into $service and $number ("" for a bare service); it must exist.
parse_instance() {
    service=${1%.*}
    number=""
    [[ $1 != *.* ]] || number=${1##*.}
    [[ $(query 'complete | .services[$s] | . != null and ($n == "" or .instances[$n] != null)' \
        --arg s "$service" --arg n "$number") == true ]] ||
        die "no such service or instance: $1; see dotcloud info"
}

# The instances that [SERVICE[.N]...] means, into the array $chosen.
choose_instances() {
    local service number target
    if [[ -z ${1:-} ]]; then
        mapfile -t chosen < <(instances)
        return
    fi
    for target; do parse_instance "$target"; done
    mapfile -t chosen < <(
        for target; do
            if [[ $target == *.* ]]; then printf '%s\n' "$target"; else instances "$target"; fi
        done | awk '!seen[$0]++'
    )
}

# Ports that somebody listens on now, on whatever address.
listening_ports() {
    local hexadecimal
    awk 'FNR > 1 && (FILENAME ~ /udp/ || $4 == "0A") { n = split($2, part, ":"); print part[n] }' \
        /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 2>/dev/null |
        while read -r hexadecimal; do printf '%d\n' "0x$hexadecimal"; done
}

# Gives every instance of $service a port for each name that has none, under the
# lock on all applications; a port belongs to one instance even while it is down.
allocate_ports() {
    local first=${port_range%-*} last=${port_range#*-} port name instance_number count start i
    local -A used=()
    lock_home
    while read -r port; do used[$port]=1; done < <(
        listening_ports
        find "$DOTCLOUD_HOME/apps" -mindepth 2 -maxdepth 2 -name app.json -exec \
            jq -r '.services[].instances[]?.ports[]' {} +
    )
    count=$((last - first + 1))
    start=$((RANDOM * 32768 + RANDOM))
    i=0
    while IFS=$'\t' read -r instance_number name; do
        while :; do
            ((i < count)) || die "no port in $port_range is free; widen DOTCLOUD_PORTS"
            port=$((first + (start + i) % count))
            i=$((i + 1))
            [[ -n ${used[$port]:-} ]] || break
        done
        used[$port]=1
        update '.services[$s].instances[$n].ports[$p] = ($port | tonumber)' \
            --arg s "$service" --arg n "$instance_number" --arg p "$name" --arg port "$port"
    done < <(query '.services[$s] | (kinds | keys_unsorted) as $names | .instances | to_entries[]
        | .key as $n | ($names - (.value.ports | keys))[] | [$n, .] | @tsv' --arg s "$service")
    unlock_home
    # A port that is no longer in dotcloud.yml goes back
    update '.services[$s] |= ((kinds | keys) as $names | .instances |= map_values(.ports |= with_entries(select([.key] | inside($names)))))' \
        --arg s "$service"
}

# db=2 www=1
summary() {
    query '. as $app | [.services | keys_unsorted[] as $s | "\($s)=\($app | numbers($s) | length)"] | join(" ")'
}
