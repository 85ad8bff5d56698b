# Owns what bench/run --returns measures: an old primary that comes back, an interrupted copy, a promotion, load.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/run, which sets and uses the rest

start_there() { there "$pg/pg_ctl" -D "$work/a/data" -l "$work/a/log" -w -s start; }
stop_there() { there "$pg/pg_ctl" -D "$work/a/data" -m fast -w -s stop; }
here_psql() { here "$pg/psql" -X -h "$work/a" -p $((port + 1)) -U postgres -q -At "$@"; } # the copied setting says where the socket is

# A cluster in b/base that was the primary: it wrote on after a was promoted, and so did a.
part() {
    stop_there
    rm -rf "$work/b/data" "$work/b/base"
    here cp -a "$work/a/data" "$work/b/base"
    there touch "$work/a/data/standby.signal"
    start_there && psql -c "SELECT pg_promote()" postgres >/dev/null
    here "$pg/pg_ctl" -D "$work/b/base" -o "-p $((port + 1))" -l "$work/b/log" -w -s start
    here_psql -c "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 6000 = 2" postgres
    here "$pg/pg_ctl" -D "$work/b/base" -m fast -w -s stop
    change_pages 1
}

old_primary() {
    local round
    part
    again() { rm -rf "$work/b/data" && here cp -a "$work/b/base" "$work/b/data"; }
    for ((round = 0; round < runs; round++)); do
        again && enslave comes-back --plan delta
        stop_standby && forget
        again && enslave comes-back-paranoid --plan delta --paranoid
        stop_standby && forget
        again && measure pg_rewind "$pg/pg_rewind" -D "$work/b/data" --source-server "host=$address port=$port user=postgres dbname=postgres"
    done
    rm -rf "$work/b/base"
}

# The size of what has been copied so far, in MB
copied_so_far() { du -sm "$work"/b/*pgmahout*/ 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }

interrupted() {
    local round size
    size=$(du -sm --exclude=pg_wal "$work/a/data" | cut -f1)
    for ((round = 0; round < runs; round++)); do
        rm -rf "$work/b/data"
        enslave full
        stop_standby && forget
        rm -rf "$work/b/data"
        here "$work/b/bin/pgmahout" enslave --info "$work/blurb" --confirm db.1 >"$work/said" 2>&1 &
        until (($(copied_so_far) * 10 >= size * 9)); do
            kill -0 $! 2>/dev/null || { cat "$work/said" >&2 && exit 1; }
            sleep 0.02
        done
        pkill -INT -P $! || kill -INT $!
        wait $! && echo "it was not interrupted" >&2 && exit 1
        enslave interrupted
        stop_standby && forget
    done
}

repoint() {
    local round
    here "$work/b/bin/pgmahout" --quiet enslave --info "$work/blurb" --confirm db.1 >/dev/null
    for ((round = 0; round < runs; round++)); do
        stop_standby
        psql -c "SELECT 1" postgres >/dev/null
        measure repoint "$work/b/bin/pgmahout" --json enslave --info "$work/blurb" --plan repoint
    done
}

# written_after NAME COMMAND...: seconds from the command to the first write that the standby takes, by its own clock: a
# session that is there already tries each millisecond.
written_after() {
    local name=$1 begin first
    shift
    for ((n = 0; n < 1000; n++)); do
        echo 'SELECT pg_sleep(0.001); INSERT INTO written VALUES (1) RETURNING extract(epoch FROM clock_timestamp());'
    done | here_psql postgres >"$work/written" 2>/dev/null &
    sleep 0.3
    begin=$(now)
    here "$@" >"$work/said" 2>"$work/errors" || { cat "$work/errors" >&2 && exit 1; }
    wait $!
    first=$(grep -m 1 '[0-9]' "$work/written") || { echo "$name: no write within 1000 attempts" >&2 && exit 1; }
    awk -v a="$begin" -v b="$first" 'BEGIN { printf "%.3f 0 0 0\n", b - a }' >>"$work/results/$name"
}

promote() {
    local round
    psql -c "CREATE TABLE IF NOT EXISTS written (n int)" postgres
    for ((round = 0; round < runs; round++)); do
        here "$work/b/bin/pgmahout" --quiet enslave --info "$work/blurb" --confirm db.1 >/dev/null
        written_after promote "$work/b/bin/pgmahout" promote --confirm db.1
        here "$work/b/bin/pgmahout" --quiet enslave --info "$work/blurb" --confirm db.1 >/dev/null
        written_after pg_promote "$pg/psql" -X -h "$work/a" -p $((port + 1)) -U postgres -c "SELECT pg_promote()" postgres
    done
    stop_standby && forget
}

# Transactions in a second of a pgbench on the primary: alone, after a checkpoint (from which on every page goes into the
# WAL as a whole once, in every base backup), and while a copy is made
rate() { there "$pg/pgbench" -h "$work/a" -p "$port" -U postgres -n -c 4 -T 10 postgres 2>/dev/null | awk '/^tps/ { print $3 }'; }
max_rate=100M
[ -z "$link" ] || max_rate=$(($(numfmt --from=si "$(tr kmg KMG <<<"${link%%bit*}")") / 16000))k
load() {
    local round tps
    for ((round = 0; round < runs; round++)); do
        rate >>"$work/tps.alone"
        psql -c CHECKPOINT postgres
        rate >>"$work/tps.checkpoint"
        rm -rf "$work/b/data"
        here "$work/b/bin/pgmahout" --quiet enslave --info "$work/blurb" --max-rate "$max_rate" >/dev/null &
        sleep 1
        tps=$(rate)
        kill -0 $! 2>/dev/null || echo "the copy was over before pgbench was" >&2
        echo "$tps" >>"$work/tps.limited"
        wait $!
        stop_standby && forget
    done
}

[ "$noise" = 0 ] || { echo "--returns is for pgbench's tables" >&2 && exit 2; }
old_primary
interrupted
repoint
promote
load
