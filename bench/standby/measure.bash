# Owns how bench/run measures: seconds, CPU seconds of both ends, bytes on the line, peak memory.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/run, which sets and uses the rest

now() { date +%s.%N; }
ticks() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }
line() { "${space[@]}" cat "/sys/class/net/$device/statistics/rx_bytes" "/sys/class/net/$device/statistics/tx_bytes" | paste -sd+ | bc; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# measure NAME COMMAND...: seconds, CPU seconds of the whole machine, megabytes on the line, peak memory of one process
measure() {
    local name=$1 begin cpu wire peak
    shift
    : >"$work/a/memory" && chmod 666 "$work/a/memory"
    sync -f "$work"
    begin=$(now) cpu=$(ticks) wire=$(line)
    here /usr/bin/time -f %M -o "$work/b/memory" "$@" >"$work/said" 2>"$work/errors" ||
        { cat "$work/said" "$work/errors" >&2 && exit 1; }
    sync -f "$work"
    # The loopback device counts what goes either way twice.
    wire=$(awk -v a="$wire" -v b="$(line)" -v d="$device" 'BEGIN { print (b - a) / (d == "lo" ? 2 : 1) / 1e6 }')
    peak=$(sort -n "$work/a/memory" "$work/b/memory" | grep -E '^[0-9]+$' | tail -n 1)
    awk -v a="$begin" -v b="$(now)" -v c="$cpu" -v d="$(ticks)" -v hz="$(getconf CLK_TCK)" -v w="$wire" -v m="$peak" \
        'BEGIN { printf "%.2f %.2f %.1f %.0f\n", b - a, (d - c) / hz, w, m / 1024 }' >>"$work/results/$name"
}

gcm='ssh -c aes128-gcm@openssh.com'
ssh_to() { echo "$1 -p $ssh_port -i $work/b/.ssh/id_ed25519 -o UserKnownHostsFile=$work/b/.ssh/known_hosts -o BatchMode=yes"; }
source=$(there id -un)@$address:$work/a/data/
# As a base backup: the WAL of before is no use to a standby
rsync=(rsync -a '--exclude=/pg_wal/*')
empty() { rm -rf "$work/b/data" && here mkdir -m 700 "$work/b/data"; }

stop_standby() { here "$pg/pg_ctl" -D "$work/b/data" -m fast -w -s stop; }
forget() { psql -c "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active" postgres >/dev/null; }
enslave() {
    measure "$1" "$work/b/bin/pgmahout" --json enslave --info "$work/blurb" --confirm db.1 "${@:2}"
    jq -r '.copied | [.durable_seconds, .written_bytes, .wire_bytes, .sent_bytes] | @tsv' "$work/said" >>"$work/results/$1.own"
}

mkdir "$work/results"
