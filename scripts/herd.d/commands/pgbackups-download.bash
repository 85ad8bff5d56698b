# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:download ID [FILE] [--json]
# Summary: a backup as a file here, with its checksum compared
#
# FILE is named like the backup by default: b001.dump, b001.tar.zst; it must not be
# there yet. It comes through the platform, so nothing has to be open to this machine.
#
# Examples:
#   herd pgbackups:download b001
#   herd pgbackups:download b001 /srv/kept/shop.dump && pg_restore -l /srv/kept/shop.dump

command_pgbackups_download() {
    local id holder backup backups silent file directory status=() sum said
    (($# >= 1 && $# <= 2)) && [[ -n $1 && $1 != -* && ${2:-} != -* ]] || usage_error "it wants a backup, such as b001, and a file" "herd pgbackups shows the backups"
    need sha256sum
    use_platform
    load_databases
    find_backup "$1"
    warn_of_silence
    file=${2:-$(of_backup download_name)}
    [[ ! -d $file ]] || file=${file%/}/$(of_backup download_name)
    directory=$(dirname -- "$file")
    [[ -d $directory ]] || die 1 "there is no directory $directory"
    [[ ! -e $file && ! -L $file ]] || die 1 "$file is there already; nothing was done" "name another file, or remove it"
    partial=$(mktemp -- "$directory/.${file##*/}.XXXXXX" 2>"$work/partial") || die 1 "$file cannot be written: $(one_line 300 <"$work/partial")"

    doing "Downloading $id from $(label "$holder")"
    set +e
    call_platform "$longest" run "$holder" "pgmahout backup download $id -" </dev/null 2>"$work/stderr.$holder" |
        tee -- "$partial" 2>"$work/partial" | sha256sum >"$work/sum"
    status=("${PIPESTATUS[@]}")
    set -e
    [[ ! -e $work/interrupted ]] || exit "${status[0]}"
    # A full disk here ends what is sent there, too
    ((status[1] == 0)) || die 1 "$file cannot be written: $(one_line 300 <"$work/partial")"
    if ((status[0] != 0)); then
        said=$(sed -n 's/^hint: //p' "$work/stderr.$holder" | one_line 300)
        agent_error "$holder" "${status[0]}" "$longest" "" >"$work/error.$holder"
        case ${status[0]} in
            124 | 127 | 137 | 255) die_of "$holder" ;;
        esac
        die "$((status[0] <= 5 ? status[0] : 1))" "$holder: $(first_error "$work/stderr.$holder" | sed 's/^pgmahout: //')" "$said"
    fi
    sum=$(cut -d ' ' -f 1 "$work/sum")
    [[ $sum == "$(of_backup .sha256)" ]] || die 1 "$id came with another checksum than it was stored with; nothing was kept" \
        "try again; if it stays so, the backup is damaged: herd pgbackups:verify $holder:$id"
    sync -- "$partial" 2>"$work/partial" || die 1 "$file cannot be written: $(one_line 300 <"$work/partial")"
    mv -nT -- "$partial" "$file" 2>"$work/partial" || die 1 "$file cannot be written: $(one_line 300 <"$work/partial")"
    [[ ! -e $partial ]] || die 1 "somebody else made $file meanwhile; it was not touched" "name another file"
    sync -- "$directory"
    done_with
    say "$file: $(of_backup '.size | bytes')$(of_backup 'if .encryption then ", encrypted: age -d" else "" end')"
    [[ -z $json ]] || of_backup '{id, file: $f, size, sha256} | tojson' --arg f "$file"
}
