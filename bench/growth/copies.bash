# Owns the copies of bench/scale: the data that grows, and how a copy of it is measured.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/scale, which sets and uses the rest

# The two instances of bench/run, with next to nothing in them
two_instances() {
    scale=1 noise=0 files=0 link='' usage='%M %U %S'
    # shellcheck source=bench/standby/setup.bash
    source bench/standby/setup.bash
    # shellcheck source=bench/standby/measure.bash
    source bench/standby/measure.bash
    trap 'kill ${sampler:+"$sampler"} 2>/dev/null || true; cleanup' EXIT
}

# sample: until it is ended, the greatest VmHWM (kB) and number of descriptors of pgmahout here and there
sample() {
    local side pid line fds
    local -A memory=([a]=0 [b]=0) most=([a]=0 [b]=0)
    trap 'echo "${memory[b]} ${memory[a]} ${most[b]} ${most[a]}" >"$work/sampled" && exit' TERM
    while kill -0 $$ 2>/dev/null; do
        for pid in $(pgrep -x pgmahout); do
            for side in a b; do
                [[ /proc/$pid/exe -ef $work/$side/bin/pgmahout ]] || continue
                while read -r -a line; do
                    [[ ${line[0]-} != VmHWM: ]] || ((memory[$side] >= line[1])) || memory[$side]=${line[1]}
                done 2>/dev/null <"/proc/$pid/status" || true
                fds=("/proc/$pid/fd/"*)
                ((most[$side] >= ${#fds[@]})) || most[$side]=${#fds[@]}
            done
        done
        sleep 0.1
    done
}

# copied WAY ARGUMENT...: makes a standby and measures it, a line into the case's table
copied() {
    local way=$1 begin seconds
    shift
    : >"$work/a/memory" && chmod 666 "$work/a/memory"
    sync -f "$work"
    sample &
    sampler=$!
    begin=$(now)
    here /usr/bin/time -f '%M %U %S' -o "$work/b/memory" "$work/b/bin/pgmahout" --json enslave --info "$work/blurb" --confirm db.1 "$@" \
        >"$work/said" 2>"$work/errors" || { kill "$sampler" && cat "$work/said" "$work/errors" >&2 && exit 1; }
    seconds=$(awk -v a="$begin" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }')
    if kill "$sampler"; then wait "$sampler" 2>/dev/null || true; fi
    # Until it streams and until it is durable; of both ends the CPU seconds; what was sampled; megabytes on the line and
    # on the disk here
    echo "$size|$way|$seconds $(jq '.copied | .durable_seconds * 10 | round / 10' "$work/said")" \
        "$(cpu "$work/b/memory") $(cpu "$work/a/memory") $(cat "$work/sampled")" \
        "$(jq '.copied | (.wire_bytes + .sent_bytes) / 1e6' "$work/said")" \
        "$(du -sm --exclude=pg_wal "$work/b/data" | cut -f1)" >>"$tables/$case"
    tail -n 1 "$tables/$case" >&2
    [[ $way == *compared ]] || jq -r '.copied.not_known | values | "everything was compared: \(.)"' "$work/said" >&2
}
cpu() { awk 'NF == 3 { sum += $2 + $3 } END { printf "%.1f", sum }' "$1"; }

# copies: all ways of one size
copies() {
    psql -c CHECKPOINT postgres
    rm -rf "$work/b/data"
    copied full
    same_as_there
    stop_standby && change
    copied delta --plan delta
    same_as_there
    stop_standby && change
    copied "delta, all compared" --plan delta --paranoid
    same_as_there
    stop_standby && forget
}

change() {
    psql -c "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 100 = 1" -c CHECKPOINT postgres
}

# same_as_there: the standby answers $question as the primary does, and nothing has filled the holes
same_as_there() {
    local answer
    answer=$(here "$pg/psql" -X -h "$work/a" -p $((port + 1)) -U postgres -q -At -c "$question" postgres)
    [ "$answer" = "$(psql -c "$question" postgres)" ] || { echo "the standby answers \"$answer\"" >&2 && exit 1; }
    awk -v here="$(du -sm --exclude=pg_wal "$work/b/data" | cut -f1)" -v there="$(du -sm --exclude=pg_wal "$work/a/data" | cut -f1)" \
        'BEGIN { exit here > there + 64 }' || { echo "the copy takes more room than what it is of" >&2 && exit 1; }
}

case_relations() {
    two_instances
    local question="SELECT count(*) FROM pg_class WHERE relkind = 'r'" have=0
    for size in ${sizes:-1000 10000 100000}; do
        psql postgres <<SQL
DO \$\$ BEGIN
    FOR n IN $have + 1 .. $size LOOP
        EXECUTE 'CREATE TABLE empty_' || n || ' (n int)';
        IF n % 500 = 0 THEN COMMIT; END IF;
    END LOOP;
END \$\$
SQL
        have=$size
        copies
    done
}

# grown SEGMENT MEGABYTES: makes the last segment of the table at $path this one, of that length, by nothing but holes. The
# server is down meanwhile: it does not expect others to do that.
grown() {
    local file=$work/a/data/$path n
    there "$pg/pg_ctl" -D "$work/a/data" -m fast -w -s stop
    for ((n = have; n <= $1; n++)); do
        there truncate -s "$( ((n < $1)) && echo 1024 || echo "$2")M" "$file$( ((n == 0)) || echo ".$n")"
    done
    have=$1
    there "$pg/pg_ctl" -D "$work/a/data" -l "$work/a/log" -w -s start
}

case_sparse() {
    two_instances
    psql -c "CREATE TABLE sparse AS SELECT 1 AS n" postgres
    local have=0 path question="SELECT pg_relation_size('sparse') / 1024 ^ 3, (SELECT n FROM sparse LIMIT 1)"
    path=$(psql -c "SELECT pg_relation_filepath('sparse')" postgres)
    for size in ${sizes:-10 100 1000}; do
        grown $((size - 1)) 1024
        [ "$(psql -c "$question" postgres)" = "$size|1" ]
        copies
    done
}

case_segments() {
    [ "$(df --output=avail -BG "${TMPDIR:-/tmp}" | tr -dc 0-9)" -ge 25 ] || { echo "${TMPDIR:-/tmp} wants 25 GB of free space" >&2 && exit 1; }
    two_instances
    psql -c "CREATE TABLE segments (segment int, n int, t text)" postgres
    local have=0 path segment=0 question
    path=$(psql -c "SELECT pg_relation_filepath('segments')" postgres)
    for size in ${sizes:-10 20 40}; do
        for (( ; segment < size; segment++)); do
            # Some 62 MB, from the page before the segment's last 64
            grown "$segment" 960
            psql -c "INSERT INTO segments SELECT $segment, n, repeat(md5(n::text), 7) FROM generate_series(1, 240000) n" postgres
        done
        # The rows of the first segment and of the last, found by where they lie: all would be looked for in the holes
        question="SELECT pg_relation_size('segments'), count(*), sum(n), min(segment), max(segment) FROM (
            SELECT * FROM segments WHERE ctid >= '(122880,0)' AND ctid < '(131072,0)'
            UNION ALL SELECT * FROM segments WHERE ctid >= '($(((size - 1) * 131072)),0)') rows"
        copies
    done
}
