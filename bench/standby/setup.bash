# Owns the two instances of bench/run: the line between them, sshd, and the data of the primary.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/run, which sets and uses the rest

pg=/usr/lib/postgresql/15/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/pgmahout-bench.XXXXXX")
as=()
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL does not run as root.
    as=(setpriv --reuid dotcloud --regid dotcloud --clear-groups)
    chown dotcloud "$work"
fi
chmod 755 "$work"
space=() device=lo address=127.0.0.1
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
    [ -z "$link" ] || { ip netns del "pgmahout-a-$$" && ip netns del "pgmahout-b-$$"; } 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# --- the line, sshd, the data ---------------------------------------------------------------------

if [ -n "$link" ]; then
    rate=${link%,*} delay=${link#*,}
    for side in a b; do
        ip netns add "pgmahout-$side-$$"
        ip -n "pgmahout-$side-$$" link set lo up
    done
    ip link add "pgm-a" netns "pgmahout-a-$$" type veth peer name "pgm-b" netns "pgmahout-b-$$"
    half=$(awk -v d="${delay%ms}" 'BEGIN { print d / 2 "ms" }')
    for side in a b; do
        ip -n "pgmahout-$side-$$" address add "10.99.0.$([ "$side" = a ] && echo 1 || echo 2)/24" dev "pgm-$side"
        ip -n "pgmahout-$side-$$" link set "pgm-$side" up
        ip netns exec "pgmahout-$side-$$" tc qdisc add dev "pgm-$side" root netem delay "$half" rate "$rate" limit 10000
    done
    from=(ip netns exec "pgmahout-a-$$") space=(ip netns exec "pgmahout-b-$$") device=pgm-b address=10.99.0.1
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
ForceCommand HOME=$work/a exec /usr/bin/time -f %M -a -o $work/a/memory sh -c "\$SSH_ORIGINAL_COMMAND"
CONF
    there /usr/sbin/sshd -f "$work/a/sshd_config"
    there "$pg/initdb" -k -D "$work/a/data" -U postgres
    cat >>"$work/a/data/postgresql.conf" <<CONF
port = $port
listen_addresses = '$address'
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
CREATE TABLE noise (id int, bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL;
INSERT INTO noise SELECT g, (SELECT string_agg(decode(md5(random()::text || g || i), 'hex'), '') FROM generate_series(1, 110) i)
    FROM generate_series(1, $noise * 512) g;
VACUUM FREEZE noise;
SQL
    fi
    if [ "$files" -gt 0 ]; then
        # Above every number that the server gives in this run
        seq 3000000000 "$((3000000000 + files - 1))" | (cd "$work/a/data/base/5" && xargs "${as[@]}" touch)
    fi
    psql -c CHECKPOINT postgres
} >"$work/setup" 2>&1 || { cat "$work/setup" >&2 && exit 1; }
