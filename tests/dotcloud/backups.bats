# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2154
# The recipe's programs for backups, with the real agent and the real server: a link from one instance that anyone can
# download by, and a schedule that is off until it is turned on.

load helper

setup_file() {
    set_scene
    # The instances' account cannot read everybody's target/
    install -m 755 "${PGMAHOUT_BIN:?run it by scripts/test}" "$scene/pgmahout"
    export PGMAHOUT_BINARY=$scene/pgmahout DOTCLOUD_START_TIMEOUT=60
    dotcloud create shop
    dotcloud push "$checkout"
}

teardown_file() {
    strike_scene
}

# A backup without a server's work: its bytes and its manifest
shelve() {
    dotcloud run db.0 "id=$1 bash -s" <<'END_OF_SCRIPT'
        set -eu
        mkdir -p ~/backups && cd ~/backups
        head -c 3000000 /dev/urandom >"$id-00000001.dump"
        sum=$(sha256sum "$id-00000001.dump" | cut -d ' ' -f 1)
        printf '{"format": 1, "id": "%s", "kind": "logical", "database": "shop", "instance": "db.0", "from_standby": false,
            "started": 1795191420, "finished": 1795191421, "server_version": "15.18", "server_version_num": 150018,
            "agent_version": "0", "system_id": "1", "timeline": 1, "lsn": "0/1000000", "file": "%s-00000001.dump",
            "size": 3000000, "sha256": "%s", "content_size": 3000000, "compression": "none", "database_size": 3000000,
            "tables": [], "needs": {}}' "$id" "$id" "$sum" >"$id.json"
END_OF_SCRIPT
}

@test "a link from an instance downloads the backup, and still does after a restart of the server" {
    shelve b001
    cd "$BATS_TEST_TMPDIR"
    url=$(dotcloud run db.0 pgmahout --quiet backup url b001 2>err)
    [[ $url == "$(dotcloud info db.0 --json | jq -r '.ports[] | select(.name == "backups").url')b001.dump?expires="* ]]
    grep -q 'warning: the link can be used on this machine only' err
    curl -sSO "$url"
    dotcloud run db.0 cat backups/b001-00000001.dump | cmp - b001.dump
    truncate -s 1000000 b001.dump
    dotcloud run db.0 supervisorctl -c supervisord.conf restart postgres
    curl -sSO -C - "$url"
    dotcloud run db.0 cat backups/b001-00000001.dump | cmp - b001.dump
    [ "$(curl -s -o out -w '%{http_code}' "${url%?dump*}b001.json")" != 200 ]
    [ "$(curl -s -o out -w '%{http_code}' "${url/b001/b002}")" = 403 ]
}

@test "the schedule is off, is turned on, and its program knows" {
    is_off() {
        dotcloud run db.0 'grep -q "the schedule is off" logs/backups.log'
    }
    # It looks every half a minute
    eventually is_off || eventually is_off
    dotcloud run db.0 pgmahout backup schedule auto-month >"$BATS_TEST_TMPDIR/out"
    [ "$(<"$BATS_TEST_TMPDIR/out")" = \
        "db.0: auto-month, every night from 03:00 UTC on; kept are 7 daily, 5 weekly, 10 by hand" ]
    dotcloud run db.0 pgmahout backup schedule off
    [ "$(dotcloud run db.0 pgmahout backup schedule)" = "db.0: the schedule is off" ]
}

@test "destroy leaves no process and no file" {
    dotcloud destroy --yes
    [ -z "$(ls -A "$DOTCLOUD_HOME")" ]
    eventually nothing_runs
}
