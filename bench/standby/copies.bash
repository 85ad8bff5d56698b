# Owns the copies of bench/run: everything, and what differs, by pgmahout and by its peers.
# shellcheck shell=bash disable=SC2154,SC2034 # part of bench/run, which sets and uses the rest

# Whether a competitor is wanted
wanted() { [[ -z $only || $1 == *"$only"* ]]; }

# pgBackRest restores from a repository on the source's side; its backup was made before, and is not in its time.
backrest=(pgbackrest --config="$work/backrest.conf" --stanza=bench --log-level-console=warn)
prepare_backrest() {
    wanted pgbackrest || return 0
    local user
    user=$(there id -un)
    printf '#!/bin/sh\nexec %s "$@"\n' "$(ssh_to "$gcm" | sed "s/ -p $ssh_port//")" >"$work/ssh"
    chmod 755 "$work/ssh"
    there mkdir -p "$work/a/repo" "$work/a/spool"
    cat >"$work/backrest-there.conf" <<CONF
[global]
repo1-path=$work/a/repo
lock-path=$work/a/spool
spool-path=$work/a/spool
log-level-file=off
compress-type=zst
compress-level=1
process-max=$(nproc)
archive-check=n
start-fast=y
[bench]
pg1-path=$work/a/data
pg1-port=$port
pg1-socket-path=$work/a
pg1-user=postgres
CONF
    cat >"$work/backrest.conf" <<CONF
[global]
repo1-path=$work/a/repo
repo1-host=$address
repo1-host-user=$user
repo1-host-port=$ssh_port
repo1-host-config=$work/backrest-there.conf
cmd-ssh=$work/ssh
lock-path=$work/b
spool-path=$work/b
log-level-file=off
process-max=$(nproc)
[bench]
pg1-path=$work/b/data
CONF
    there pgbackrest --config="$work/backrest-there.conf" --stanza=bench --log-level-console=warn stanza-create
    backrest_backup full
}
backrest_backup() {
    wanted pgbackrest || return 0
    there pgbackrest --config="$work/backrest-there.conf" --stanza=bench --log-level-console=warn --type="$1" backup
}

# The same over the machine's OpenSSH client
over_openssh() {
    echo 'ssh: system' >>"$work/b/pgmahout.yml"
    rm -rf "$work/b/data"
    enslave pgmahout-openssh
    stop_standby && forget
    sed -i '/^ssh:/d' "$work/b/pgmahout.yml"
}

full() {
    prepare_backrest >"$work/backrest.log" 2>&1 || { cat "$work/backrest.log" >&2 && exit 1; }
    local round
    for ((round = 0; round < runs; round++)); do
        rm -rf "$work/b/data"
        enslave pgmahout
        stop_standby && forget
        over_openssh
        if wanted rsync; then
            empty && measure rsync "${rsync[@]}" -e "$(ssh_to ssh)" "$source" "$work/b/data/"
            empty && measure rsync-gcm "${rsync[@]}" -e "$(ssh_to "$gcm")" "$source" "$work/b/data/"
            empty && measure rsync-zstd "${rsync[@]}" --zc=zstd --zl=1 -e "$(ssh_to "$gcm")" "$source" "$work/b/data/"
        fi
        if wanted tar; then
            empty && measure tar-ssh bash -c "$(ssh_to "$gcm") ${source%%:*} tar -C '$work/a/data' --exclude='./pg_wal/*' -cf - . | tar -C '$work/b/data' -xf -"
            [ -n "$link" ] || { empty && measure tar-tar bash -c "tar -C '$work/a/data' --exclude='./pg_wal/*' -cf - . | tar -C '$work/b/data' -xf -"; }
        fi
        if wanted basebackup; then
            empty && measure basebackup "$pg/pg_basebackup" -h "$address" -p "$port" -U postgres -D "$work/b/data" -c fast -X none
            empty && measure basebackup-zstd "$pg/pg_basebackup" -h "$address" -p "$port" -U postgres -D "$work/b/data" -c fast -X none --compress=server-zstd:1
        fi
        if wanted pgbackrest; then
            empty && measure pgbackrest "${backrest[@]}" restore
        fi
    done
}

delta() {
    local round
    rm -rf "$work/b/data"
    here "$work/b/bin/pgmahout" --quiet enslave --info "$work/blurb" >/dev/null && stop_standby && forget
    here cp -a "$work/b/data" "$work/b/base"
    change_pages 1
    backrest_backup incr >"$work/backrest.log" 2>&1 || { cat "$work/backrest.log" >&2 && exit 1; }
    anew() { rm -rf "$work/b/data" && here cp -a "$work/b/base" "$work/b/data"; }
    for ((round = 0; round < runs; round++)); do
        anew && enslave delta-pgmahout --plan delta
        stop_standby && forget
        if wanted pgbackrest; then
            anew && measure delta-pgbackrest "${backrest[@]}" --delta restore
        fi
        wanted rsync || continue
        anew && measure delta-rsync "${rsync[@]}" --delete -e "$(ssh_to "$gcm")" "$source" "$work/b/data/"
        anew && measure delta-rsync-checksum "${rsync[@]}" --checksum --delete -e "$(ssh_to "$gcm")" "$source" "$work/b/data/"
        anew && measure delta-rsync-inplace "${rsync[@]}" --inplace --delete -e "$(ssh_to "$gcm")" "$source" "$work/b/data/"
    done
    rm -rf "$work/b/base"
}

full
delta
