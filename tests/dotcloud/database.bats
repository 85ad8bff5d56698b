# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2154
# The recipe on the platform, with the real server; the agent is a stand-in.

load helper

setup_file() {
    set_scene
    # Its two programs go on until they are ended
    cat >"$scene/agent" <<'END'
#!/bin/sh
case $* in
    "backup auto --loop") exec sleep 1000000 ;;
    serve) exec python3 -m http.server --bind 127.0.0.1 "$PORT_BACKUPS" ;;
esac
echo "agent: $*"
END
    chmod +x "$scene/agent"
    export PGMAHOUT_BINARY=$scene/agent
    export DOTCLOUD_START_TIMEOUT=60
    dotcloud create shop
}

teardown_file() {
    strike_scene
}

state() {
    dotcloud ps "$1" --json | jq -r '.[] | select(.process == "postgres") | .state'
}

is_state() {
    [[ $(state "$1") == "$2" ]]
}

@test "the builder says what is missing" {
    for try in "PGMAHOUT_BINARY=$scene/absent|PGMAHOUT_BINARY=$scene/absent: there is no such file" \
        "PGMAHOUT_BINARY=|builder: there is no pgmahout to install; run cargo build --release"; do
        run env "${try%%|*}" bash -c 'cd "$checkout" && scripts/dotcloud -A shop push 2>&1'
        [ "$status" = 1 ]
        [[ $output == *"${try#*|}"* ]]
    done
    sed -i 's/version: 15/version: 8/' "$checkout/dotcloud.yml"
    run dotcloud push "$checkout"
    sed -i 's/version: 8/version: 15/' "$checkout/dotcloud.yml"
    [ "$status" = 1 ]
    [[ $output == *"PostgreSQL 8 is not here (found: "*"15."*"); building it"*"builder: there is no PostgreSQL 8 here (found: "*"15."*"); apt-get install postgresql-8"* ]]
}

@test "push makes a database and shows its password at the end" {
    run dotcloud push "$checkout"
    [ "$status" = 0 ]
    password=$(dotcloud run db cat password)
    [[ $password =~ ^[A-Za-z0-9]{28}$ ]]
    [ "${lines[-1]}" = "Your database password is $password (superuser: dotcloud)" ]
    [ "$(dotcloud run db 'stat -c %a password .ssh/id_ed25519 .pgpass' | tr '\n' ' ')" = "600 600 600 " ]
    [[ $(dotcloud info db --json) != *"$password"* ]]
    run grep -lz -F -f <(printf %s "$password") /proc/[0-9]*/cmdline
    [[ $output != /proc/* ]]
}

@test "the server is set up for replication, with checksums and scram" {
    settings=$(dotcloud run db psql -Atc "\"select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name in
        ('wal_level', 'data_checksums', 'hot_standby', 'password_encryption', 'log_min_duration_statement', 'max_slot_wal_keep_size', 'server_encoding', 'lc_collate',
         'shared_preload_libraries', 'track_io_timing')\"")
    [ "$settings" = "data_checksums=on hot_standby=on lc_collate=C.UTF-8 log_min_duration_statement=50 max_slot_wal_keep_size=4096 password_encryption=scram-sha-256 server_encoding=UTF8 shared_preload_libraries=pg_stat_statements track_io_timing=on wal_level=replica" ]
    [ "$(dotcloud run db psql -Atc "'select current_user, usesuper from pg_user'")" = "dotcloud|t" ]
    [ "$(dotcloud run db 'psql "replication=true" -Atc "IDENTIFY_SYSTEM" | wc -l')" = 1 ]
    # Without the password, neither by TCP nor by the socket
    for place in 127.0.0.1 '$DOTCLOUD_SOCKET_DIR'; do
        run dotcloud run db "PGPASSFILE=/dev/null PGPASSWORD=wrong psql -h $place -c 'select 1' 2>&1"
        [ "$status" != 0 ]
        [[ $output == *"password authentication failed"* ]]
    done
    # PGDATA goes from instance to instance: it must not know where it is
    [ "$(dotcloud run db 'cat data/*.conf | grep -cF "$HOME"')" = 0 ]
    [ "$(dotcloud run db supervisorctl -c supervisord.conf status postgres | awk '{ print $2 }')" = RUNNING ]
    dotcloud logs db -n 1000 | grep -q 'database system is ready'
}

@test "the agent and its shims" {
    [ "$(dotcloud run db enslave 0 --dry-run)" = "agent: enslave 0 --dry-run" ]
    [ "$(dotcloud run db promote)" = "agent: promote" ]
    [ "$(dotcloud run db build-version --list)" = "agent: build-version --list" ]
    [ "$(dotcloud info db.0 | dotcloud run db pgmahout enslave)" = "agent: enslave" ]
}

@test "another instance has the same key and password; another push keeps them" {
    dotcloud run db 'psql -qc "create table kept as select 1 as one"'
    before=$(dotcloud run db 'cat password .ssh/id_ed25519.pub .ssh/authorized_keys')
    dotcloud push "$checkout"
    dotcloud scale db=2
    [ "$(dotcloud run db.0 'cat password .ssh/id_ed25519.pub .ssh/authorized_keys')" = "$before" ]
    [ "$(dotcloud run db.1 'cat password .ssh/id_ed25519.pub .ssh/authorized_keys')" = "$before" ]
    [ "$(dotcloud run db.0 'psql -Atc "select one from kept"')" = 1 ]
    # From one to the other, by SSH and by SQL
    dotcloud run db.1 'ssh -i .ssh/id_ed25519 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        -p "$(jq -r .DOTCLOUD_DB_SSH_PORT_0 environment.json)" "$USER@127.0.0.1" "echo \$DOTCLOUD_SERVICE_ID; pgmahout source"' >"$BATS_TEST_TMPDIR/out"
    [ "$(<"$BATS_TEST_TMPDIR/out")" = $'0\nagent: source' ]
    [ "$(dotcloud run db.1 'PGPASSWORD=$(<password) psql -p "$(jq -r .DOTCLOUD_DB_PGSQL_PORT_0 environment.json)" -Atc "select one from kept"')" = 1 ]
}

@test "the schedule and the downloads have programs of their own, which a restart of the server leaves alone" {
    pid_of() {
        dotcloud run db.0 supervisorctl -c supervisord.conf pid "$1"
    }
    [ "$(dotcloud ps db.0 --json | jq -r '[.[] | "\(.process) \(.state)"] | sort | join(", ")')" = \
        "backups RUNNING, postgres RUNNING, serve RUNNING, sshd RUNNING" ]
    before="$(pid_of backups) $(pid_of serve)"
    dotcloud run db.0 'supervisorctl -c supervisord.conf restart postgres'
    [ "$(pid_of backups) $(pid_of serve)" = "$before" ]
    # Its port is another one on each instance, and the blurb has PostgreSQL's as before
    [ "$(dotcloud info db.0 --json | jq -r '[.ports[].name] | join(" ")')" = "ssh pgsql backups" ]
    url=$(dotcloud info db.0 --json | jq -r '.ports[] | select(.name == "backups").url')
    [[ $url =~ ^http://127\.0\.0\.1:[0-9]+/$ ]]
    [ "$(dotcloud run db.1 'jq -r .DOTCLOUD_DB_BACKUPS_URL_0 environment.json')" = "$url" ]
    [ "$(port db.0 backups)" != "$(port db.1 backups)" ]
    [ "$(curl -s -o /dev/null -w '%{http_code}' "$url")" = 200 ]
}

@test "a crash restarts the server" {
    before=$(dotcloud run db.0 head -n 1 data/postmaster.pid)
    dotcloud run db.0 'kill -KILL $(head -n 1 data/postmaster.pid)'
    again() {
        now=$(dotcloud run db.0 'head -n 1 data/postmaster.pid; psql -Atc "select one from kept"' 2>/dev/null)
        [[ $now != "$before"* && $now == *$'\n1' ]]
    }
    eventually again
}

@test "a server that must stay down stays down, and says why" {
    stays_down() {
        dotcloud restart db.1 2>&1 | grep -F "$1"
        is_state db.1 EXITED
    }
    dotcloud run db.1 'mkdir -p .pgmahout && echo "db.0 is the primary now" >.pgmahout/fenced'
    stays_down "fenced: db.0 is the primary now"
    dotcloud run db.1 'rm .pgmahout/fenced && mv data data.pgmahout-aside'
    stays_down "there is no ~/data but ~/data.pgmahout-aside: an interrupted pgmahout enslave; run it again"
    dotcloud run db.1 '[ ! -e data ] && cp -a data.pgmahout-aside data && rm data/global/pg_control'
    stays_down "the data directory is not complete: an interrupted pgmahout enslave; run it again"
    dotcloud run db.1 'cp data.pgmahout-aside/global/pg_control data/global/ && echo 14 >data/PG_VERSION'
    stays_down "the data directory is of PostgreSQL 14, the server is 15; set version: 14"
    dotcloud run db.1 'rm -rf data && mv data.pgmahout-aside data'
    dotcloud restart db.1
    is_state db.1 RUNNING
}

@test "initdb that is killed leaves no cluster, and the next start makes it" {
    dotcloud run db.1 'supervisorctl -c supervisord.conf stop postgres && rm -rf data'
    dotcloud run db.1 'supervisorctl -c supervisord.conf start postgres >/dev/null 2>&1 &
        for i in $(seq 100); do [ ! -e data.initdb/base ] || break; sleep 0.02; done
        pkill -KILL -u "$(id -u)" -f -- "--pgdata=$HOME/data.initdb"; [ ! -e data ]'
    eventually dotcloud run db.1 'psql -Atc "select 1" 2>/dev/null'
    dotcloud run db.1 '[ ! -e data.initdb ]'
}

@test "destroy leaves no process and no file" {
    dotcloud destroy --yes
    [ -z "$(ls -A "$DOTCLOUD_HOME")" ]
    eventually nothing_runs
}
