# Owns the herd of bench/scale: stand-ins for instances, and how long it takes to ask them all.
# shellcheck shell=bash disable=SC2154 # part of bench/scale, which sets and uses the rest

# A stand-in is what scripts/dotcloud has made once, copied: a home, an environment, an sshd of its own. It runs no
# supervisord, and its pgmahout says what a real one has said (tests/herd/fixtures/broken/model/standby.json).
case_herd() {
    local account have=1 key
    work=$(mktemp -d "${TMPDIR:-/tmp}/pgmahout-bench.XXXXXX")
    chmod 755 "$work"
    export DOTCLOUD_HOME=$work/state HERD_APP=bench HERD_ANSWER_TIMEOUT=60 HERD_PLATFORM_TIMEOUT=300
    trap end_herd EXIT
    first_instance >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
    account=$(stat -c %U "$work/state/apps/bench/db.0/home")
    key=$work/state/apps/bench/ssh
    for size in ${sizes:-10 100 1000}; do
        stand_ins "$size"
        asked dotcloud
        hosts_file >"$work/herd.yml" && chmod 600 "$work/herd.yml"
        HERD_HOSTS=$work/herd.yml asked ssh
    done
}

end_herd() {
    kill ${sampler:+"$sampler"} 2>/dev/null || true
    # The stand-ins are unknown to the platform again, which would look for processes of each
    xargs -r kill <"$work/sshds" 2>/dev/null || true
    jq '.services.db.instances |= {"0"}' "$work/app.json" >"$work/state/apps/bench/app.json" || true
    "$root/scripts/dotcloud" -A bench destroy --yes >/dev/null 2>&1 || true
    rm -rf "$work"
}

first_instance() {
    mkdir -p "$work/app/agent"
    printf '#!/bin/sh\ncat ~/code/standby.json\n' >"$work/app/agent/pgmahout"
    cp tests/herd/fixtures/broken/model/standby.json "$work/app/"
    cat >"$work/app/dotcloud.yml" <<'YAML'
db:
  type: custom
  ports: {pgsql: tcp}
  process: python3 -m http.server --bind 127.0.0.1 $PORT_PGSQL
YAML
    (cd "$work/app" && "$root/scripts/dotcloud" create bench && "$root/scripts/dotcloud" push .)
    "$root/scripts/dotcloud" -A bench run db.0 'mkdir -p bin && install -m 755 code/agent/pgmahout bin/'
}

# stand_ins N: so many, all of them attached, at ports that the platform gives to nobody
stand_ins() {
    local apps=$work/state/apps/bench n port
    jq --argjson have "$have" --argjson n "$1" '
        .services.db.instances["0"] as $first
        | .services.db.instances += ([range($have; $n) | {key: tostring, value: ($first + {ports: {ssh: (10000 + 2 * .), pgsql: (10001 + 2 * .)}})}] | from_entries)
        | .env = ([.services.db.instances | to_entries[] | {key: "HEROKU_POSTGRESQL_C\(.key)_URL", value: "postgres://u:p@127.0.0.1:\(.value.ports.pgsql)/shop"}] | from_entries)' \
        "$apps/app.json" >"$work/app.json"
    cat "$work/app.json" >"$apps/app.json"
    for ((n = have; n < $1; n++)); do
        port=$((10000 + 2 * n))
        cp -a "$apps/db.0" "$apps/db.$n"
        rm -f "$apps/db.$n"/*.pid
        sed -i "s|/db\.0|/db.$n|g; s|^Port .*|Port $port|" "$apps/db.$n/sshd_config" "$apps/db.$n/environment.sh"
        sed "s|:[0-9]*\]|:$port]|; s|\]:[0-9]*|]:$port|" "$key/db.0.known_hosts" >"$key/db.$n.known_hosts"
        setpriv --reuid "$account" --regid "$account" --init-groups /usr/sbin/sshd -f "$apps/db.$n/sshd_config" -E "$apps/db.$n/sshd.log"
    done
    have=$1
    sleep 1
    cat "$apps"/db.*/sshd.pid >"$work/sshds"
}

# The same instances for the platform ssh
hosts_file() {
    local apps=$work/state/apps/bench
    cat "$key"/*.known_hosts >"$work/known_hosts"
    jq '{application: .name, ssh: {identity: $key, known_hosts: $known},
        databases: (.services.db.instances | with_entries({key: "db.\(.key)",
            value: {ssh: "ssh://\($a)@127.0.0.1:\(.value.ports.ssh)", sql: "postgres://u:p@127.0.0.1:\(.value.ports.pgsql)"}}))}' \
        --arg key "$key/id_ed25519" --arg known "$work/known_hosts" --arg a "$account" "$apps/app.json"
    # In the file that the platform would have made
    jq '{release: 1, config: .env, releases: [], maintenance: false}' "$apps/app.json" >"$work/bench.config.json" && chmod 600 "$work/bench.config.json"
}

# asked PLATFORM: herd pg:info of all of them, a line into the table
asked() {
    local begin seconds count
    sample_herd &
    sampler=$!
    begin=$(date +%s.%N)
    /usr/bin/time -f '%M %U %S' -o "$work/time" "$root/scripts/herd" --platform "$1" --json pg:info >"$work/said" 2>"$work/errors" ||
        { kill "$sampler" && tail -n 5 "$work/said" "$work/errors" | cut -c -1000 >&2 && exit 1; }
    seconds=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    if kill "$sampler"; then wait "$sampler" 2>/dev/null || true; fi
    count=$(jq '[.databases[] | select(.info.role)] | length' "$work/said")
    [ "$count" = "$size" ] || { echo "$count of $size have answered" >&2 && exit 1; }
    echo "$size|$1|$seconds $(awk 'NF == 3 { printf "%.1f %d", $2 + $3, $1 }' "$work/time") $(cat "$work/sampled")" >>"$tables/herd"
    tail -n 1 "$tables/herd" >&2
}

# sample_herd: until it is ended, the most processes at once that work for herd, and the most descriptors of itself
sample_herd() {
    local most=0 fds=0 pid count open
    trap 'echo "$most $fds" >"$work/sampled" && exit' TERM
    while kill -0 $$ 2>/dev/null; do
        count=$(pgrep -c -f "$root/scripts/(herd|platforms|dotcloud)" || true)
        ((most >= count)) || most=$count
        for pid in $(pgrep -f "$root/scripts/herd --platform"); do
            open=("/proc/$pid/fd/"*)
            ((fds >= ${#open[@]})) || fds=${#open[@]}
        done
        sleep 0.2
    done
}
