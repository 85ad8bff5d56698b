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
    facts_of=""
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

# query FILTER [JQ-OPTION...]: reads the state.
query() {
    jq -r -L "$library" "${@:2}" "include \"dotcloud\"; $1" "$app_directory/app.json"
}

# update FILTER [JQ-OPTION...]: replaces the state, and knows the facts of the new one.
update() {
    local file=$app_directory/app.json facts
    facts=$(
        umask 077
        jq -j -L "$library" "${@:2}" "include \"dotcloud\"; $1 | ([facts] | join(\"\n\")), \"\u0000\", ." "$file" | {
            IFS= read -r -d '' facts && cat >"$file.new" && printf '%s\n' "$facts"
        } && sync "$file.new" && mv -f "$file.new" "$file"
    ) || die "cannot write $file; is the disk full?"
    take_facts "$facts"
}

# The facts: what bash itself asks about the state, read at once and once per command, as jq takes its time to start.
#   $facts_of          whose they are
#   $release           the number
#   $service_names     in their order
#   $instance_names    such as db.0, those that are complete; by service, then by number
#   $incomplete_names  those that a command is making or removing, or was when it was killed
#   least_of           by service: how many instances it must have
#   first_of           by service: how many a push makes of it
#   kinds_of           by service: the names of its ports, with spaces between
#   lacks_of           by service: how many ports its instances have not got yet
#   ports_of           by instance: lines PORT NAME KIND
#   ssh_port_of        by instance
facts_of=""
take_facts() {
    local what name one two three four
    service_names=() instance_names=() incomplete_names=()
    declare -gA least_of=() first_of=() kinds_of=() lacks_of=() ports_of=() ssh_port_of=()
    while read -r what name one two three four; do
        case $what in
            release) release=$name ;;
            service)
                service_names+=("$name")
                least_of[$name]=$one first_of[$name]=$two lacks_of[$name]=$three kinds_of[$name]=$four
                ;;
            complete) instance_names+=("$name") ;;
            incomplete) incomplete_names+=("$name") ;;
            port)
                ports_of[$name]+="$one $two $three"$'\n'
                [[ $two != ssh ]] || ssh_port_of[$name]=$one
                ;;
        esac
    done <<<"$1"
    facts_of=$app_directory
}

# Another command may have changed the state meanwhile: whoever takes the lock reads them again. With the name of an
# instance only those of it: the facts of a thousand others take longer than a connection to it.
# shellcheck disable=SC2120 # `dotcloud run` names one
need_facts() {
    local facts
    [[ $facts_of != "$app_directory" ]] || return 0
    facts=$(query 'only($i) | facts' --arg i "${1:-}") || die "cannot read $app_directory/app.json; is it damaged?"
    take_facts "$facts"
}

# instances [SERVICE]: names such as db.0, of those that are complete
instances() {
    local name
    need_facts ''
    for name in ${instance_names[@]+"${instance_names[@]}"}; do
        [[ -n ${1:-} && ${name%.*} != "$1" ]] || printf '%s\n' "$name"
    done
}

# Splits db.1 into $service and $number ("" for a bare service); it must exist.
parse_instance() {
    service=${1%.*}
    number=""
    [[ $1 != *.* ]] || number=${1##*.}
    need_facts ''
    if [[ $1 == *.* ]]; then
        [[ " ${instance_names[*]} " == *" $1 "* && $1 != *" "* ]]
    else
        [[ " ${service_names[*]} " == *" $1 "* && $1 != *" "* ]]
    fi || die "no such service or instance: $1; see dotcloud info"
}

# The instances that [SERVICE[.N]...] means, into the array $chosen.
choose_instances() {
    local service number target
    need_facts ''
    if [[ -z ${1:-} ]]; then
        chosen=(${instance_names[@]+"${instance_names[@]}"})
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

# update_with_ports SERVICE FILTER NEW [JQ-OPTION...]: an update by which the service gets NEW instances more. Afterwards
# each of its instances has a port for each name; under the lock on all applications, as a port belongs to one instance even
# while it is down. A port that is no longer in dotcloud.yml goes back.
update_with_ports() {
    local service=$1 filter=$2 first=${port_range%-*} last=${port_range#*-} wanted port count start i used kinds free=()
    read -ra kinds <<<"${kinds_of[$service]}"
    wanted=$((lacks_of[$service] + $3 * ${#kinds[@]}))
    if ((wanted)); then
        lock_home
        used=" $(
            listening_ports
            find "$DOTCLOUD_HOME/apps" -mindepth 2 -maxdepth 2 -name app.json -exec \
                jq -r '.services[].instances[]?.ports[]' {} +
        ) "
        used=${used//$'\n'/ }
        count=$((last - first + 1))
        start=$((RANDOM * 32768 + RANDOM))
        for ((i = 0; ${#free[@]} < wanted; i++)); do
            ((i < count)) || die "no port in $port_range is free; widen DOTCLOUD_PORTS"
            port=$((first + (start + i) % count))
            [[ $used == *" $port "* ]] || free+=("$port")
        done
    fi
    update "$filter | .services[\$s] |= with_ports(\$free | split(\" \") | map(tonumber))" "${@:4}" --arg s "$service" --arg free "${free[*]}"
    unlock_home
}

# db=2 www=1
summary() {
    local service all=()
    need_facts ''
    for service in "${service_names[@]}"; do all+=("$service=$(instances "$service" | wc -l)"); done
    printf '%s' "${all[*]}"
}
