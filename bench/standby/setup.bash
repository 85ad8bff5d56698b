# Owns the two instances of bench/run: the line between them, sshd, and the data of the primary.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/run, which sets and uses the rest

pg=/usr/lib/postgresql/15/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/pgmahout-bench.XXXXXX")
disk=''
as=()
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL does not run as root.
    as=(setpriv --reuid dotcloud --regid dotcloud --clear-groups)
    chown dotcloud "$work"
fi
chmod 755 "$work"
space=() lines=() device=lo address=127.0.0.1
# On the target's side, and on the source's
here() { env -i PATH="$PATH" HOME="$work/b" "${space[@]}" "${as[@]}" "$@"; }
there() { env -i PATH="$PATH" HOME="$work/a" "${from[@]}" "${as[@]}" "$@"; }
from=()
cleanup() {
    local data pid
    for data in "$work"/a/data "$work"/b/data; do
        there "$pg/pg_ctl" -D "$data" -m immediate -s stop 2>/dev/null || true
    done
    if pid=$(cat "$work/sshd.pid" 2>/dev/null); then kill "$pid" 2>/dev/null || true; fi
    [ ${#lines[@]} = 0 ] || kill "${lines[@]}" 2>/dev/null || true
    [ -z "$link" ] || { ip netns del "$(side_of a)" && ip netns del "$(side_of b)"; } 2>/dev/null || true
    if [ -n "$disk" ]; then
        umount "$work" 2>/dev/null || { sleep 1 && umount -l "$work"; } 2>/dev/null || true
        rm -f "$disk"
    fi
    rm -rf "$work"
}
trap cleanup EXIT

if [ -n "$memory" ]; then
    [ "$(id -u)" = 0 ] || { echo "--memory mounts a file system: run it as root" >&2 && exit 1; }
    disk=$(mktemp /dev/shm/pgmahout-bench.XXXXXX)
    # An old primary that comes back has WAL, and is kept to be tried again.
    more=1 && [ -z "$returns" ] || more=7
    truncate -s $((more + (scale * 15 + noise) * 5 / 1000 + files / 250000))G "$disk"
    mkfs.ext4 -q -m 0 -N $((100000 + 4 * files)) -E lazy_itable_init=0,lazy_journal_init=0 "$disk"
    mount -o loop "$disk" "$work"
    chown dotcloud "$work"
    # What it has is memory once: the file, not the pages of it that the loop device would keep too.
    losetup --direct-io=on "$(findmnt -no SOURCE "$work")"
fi

# --- the line, sshd, the data ---------------------------------------------------------------------

# side_of SIDE: its namespace
side_of() { echo "pgmahout-$1-$$"; }
if [ -n "$link" ]; then
    rate=${link%,*} delay=0ms
    [[ $link != *,* ]] || delay=${link#*,}
    half=$(awk -v d="${delay%ms}" 'BEGIN { print d / 2 }')
    for side in a b; do
        ip netns add "$(side_of $side)"
        ip -n "$(side_of $side)" link set lo up
    done
    ip link add pgm-a netns "$(side_of a)" type veth peer name pgm-b netns "$(side_of b)"
    shape() { ip netns exec "$(side_of "$1")" tc qdisc add dev "pgm-$1" root "${@:2}"; }
    device=pgm-b address=10.99.0.1
    if shape a netem delay "${half}ms" rate "$rate" limit 10000 2>/dev/null; then
        shape b netem delay "${half}ms" rate "$rate" limit 10000
    elif [ "$delay" = 0ms ]; then
        for side in a b; do shape $side tbf rate "$rate" burst 256k latency 50ms; done
    else
        # A kernel without netem
        device=tun0
        bits=$(numfmt --from=si "$(tr kmg KMG <<<"${rate%bit}")") seconds=$(awk -v h="$half" 'BEGIN { print h / 1000 }')
        lines=()
        for ends in "a 1 b" "b 2 a"; do
            read -r side n other <<<"$ends"
            ip netns exec "$(side_of "$side")" python3 bench/standby/line.py "10.99.0.$n/24" "$work/line-$side" \
                "$work/line-$other" "$bits" "$seconds" &
            lines+=($!)
        done
    fi
    if [ "$device" = pgm-b ]; then
        for ends in "a 1" "b 2"; do
            read -r side n <<<"$ends"
            ip -n "$(side_of "$side")" address add "10.99.0.$n/24" dev "pgm-$side"
            ip -n "$(side_of "$side")" link set "pgm-$side" up
        done
    fi
    from=(ip netns exec "$(side_of a)") space=(ip netns exec "$(side_of b)")
    limit=$((SECONDS + 20))
    for side in a b; do
        until ip -n "$(side_of $side)" address show | grep -q 'inet 10\.99\.0\.'; do
            [ $SECONDS -lt $limit ] || { echo "the line between the namespaces does not come up" >&2 && exit 1; }
            sleep 0.1
        done
    done
fi
binary=${PGMAHOUT_BIN:-$(find target -path '*/release/pgmahout' -type f -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)}
port=$((21000 + RANDOM % 4000)) ssh_port=$((25000 + RANDOM % 4000))
psql() { there "$pg/psql" -X -h "$work/a" -p "$port" -U postgres -q -At "$@"; }
{
    there mkdir -p "$work/a/bin" "$work/a/.ssh" "$work/b/bin" "$work/b/.ssh"
    for side in a b; do install -m 755 "$binary" "$work/$side/bin/pgmahout"; done
    here ssh-keygen -q -t ed25519 -N '' -f "$work/b/.ssh/id_ed25519"
    there ssh-keygen -q -t ed25519 -N '' -f "$work/a/host_key"
    there cp "$work/b/.ssh/id_ed25519.pub" "$work/a/.ssh/authorized_keys"
    echo "[$address]:$ssh_port $(cut -d' ' -f1,2 "$work/a/host_key.pub")" >"$work/b/.ssh/known_hosts"
    chmod 644 "$work/b/.ssh/known_hosts"
    there tee "$work/a/sshd_config" <<CONF
Port $ssh_port
ListenAddress $address
HostKey $work/a/host_key
PidFile $work/sshd.pid
AuthorizedKeysFile $work/a/.ssh/authorized_keys
UsePAM no
StrictModes no
PasswordAuthentication no
ForceCommand HOME=$work/a exec /usr/bin/time -f '${usage:-%M}' -a -o $work/a/memory sh -c "\$SSH_ORIGINAL_COMMAND"
CONF
    there /usr/sbin/sshd -f "$work/a/sshd_config"
    there "$pg/initdb" -k -D "$work/a/data" -U postgres
    cat >>"$work/a/data/postgresql.conf" <<CONF
port = $port
listen_addresses = '127.0.0.1,$address'
unix_socket_directories = '$work/a'
shared_buffers = 256MB
max_wal_size = 8GB
wal_keep_size = 4GB
archive_mode = on
archive_command = 'true'
checkpoint_timeout = 1h
autovacuum = off
CONF
    printf 'local all all trust\nhost all,replication all 0.0.0.0/0 trust\n' >"$work/a/data/pg_hba.conf"
    printf 'ports:\n-   name: ssh\n    url: ssh://%s@%s:%s\n-   name: pgsql\n    url: pgsql://postgres:x@%s:%s\n' \
        "$(there id -un)" "$address" "$ssh_port" "$address" "$port" >"$work/blurb"
    here tee "$work/b/pgmahout.yml" <<CONF
instance: db.1
data_directory: $work/b/data
bin_directory: $pg
socket_directory: $work/b
port: $((port + 1))
user: postgres
service: pg_ctl
CONF
    there "$pg/pg_ctl" -D "$work/a/data" -l "$work/a/log" -w start
    if [ "$noise" = 0 ]; then
        there "$pg/pgbench" -h "$work/a" -p "$port" -U postgres -q -i -s "$scale" postgres
    else
        psql postgres <<SQL
CREATE EXTENSION pgcrypto;
-- Four chunks of TOAST, which fill a page
CREATE FUNCTION bytes(int) RETURNS bytea LANGUAGE sql VOLATILE AS
    'SELECT string_agg(gen_random_bytes(998), NULL) FROM generate_series(1, 8) WHERE \$1 IS NOT NULL';
CREATE TABLE noise (id int, bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL;
INSERT INTO noise SELECT n, bytes(n) FROM generate_series(1, $noise * 125) n;
VACUUM FREEZE noise;
SQL
    fi
    if [ "$files" -gt 0 ]; then
        # Above every number that the server gives in this run
        seq 3000000000 "$((3000000000 + files - 1))" | (cd "$work/a/data/base/5" && xargs "${as[@]}" touch)
    fi
    psql -c CHECKPOINT postgres
} >"$work/setup" 2>&1 || { cat "$work/setup" >&2 && exit 1; }

# Spread over all: pages that are some 1 % to 2 % of all.
change_pages() {
    if [ "$noise" = 0 ]; then
        psql -c "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 6000 = $1" postgres
    else
        psql -c "UPDATE noise SET bytes = bytes(id) WHERE id % 100 = $1" postgres
    fi
    psql -c CHECKPOINT postgres
}
