# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups:capture [DB] [--physical] [--database NAME] [--expire] [--json]
# Summary: take a backup now
#
# DB is DATABASE_URL by default. A follower has the same data and spares the primary
# the work. What is backed up is the database in the attachment's URL.
#
# Options:
#   --physical        the whole cluster, with the WAL that it needs to start
#   --database NAME   another database of that server
#   -e, --expire      then remove the oldest backups of it by hand, until there are
#                     as many as its schedule keeps (10)
#
# Examples:
#   herd pgbackups:capture
#   herd pgbackups:capture WHITE --physical
#   herd pgbackups:url $(herd pgbackups:capture --json | jq -r .id)

command_pgbackups_capture() {
    local wanted="" database="" physical="" expire="" target words=() backups silent number expected report status=0 id
    while (($#)); do
        case $1 in
            --physical) physical=yes ;;
            --database)
                database=$(option_value "$@")
                shift
                ;;
            --database=*) database=${1#*=} ;;
            -e | --expire) expire=yes ;;
            -*) usage_error "unknown option $1" ;;
            *)
                [[ -z $wanted ]] || usage_error "only one database at a time"
                wanted=$1
                ;;
        esac
        shift
    done
    [[ -z $physical || -z $database ]] || usage_error "--physical takes the whole server, not the database $database alone"
    use_platform
    load_databases
    resolve "$wanted" target
    if [[ -n $physical ]]; then
        words=(--physical)
    else
        database=${database:-$(database_at "$target" "$wanted")}
        [[ -z $database ]] || words=(-- "$database")
    fi
    # So that a name means one backup in all of the app
    list_backups
    warn_of_silence
    number=$(of_backups last_number)
    printf -v expected 'b%03d' $((number + 1))

    say ""
    say "$(title_of "$target")  ----backup--->  $expected"
    say ""
    report=$(shape='type == "object" and (.id | type == "string" and test("^b[0-9]{3,9}$")) and (.database, .manifest.instance, .manifest.file | type == "string" or . == null)' \
        agent "$longest" "$target" backup capture --after "$number" "${words[@]}" </dev/null 2> >(steps_of "$target")) || {
        say "Capturing... failed"
        die_of "$target"
    }
    id=$(jq -r .id <<<"$report")
    say "Capturing... done"
    say "Storing... done$(jq -r -L "$library" 'include "herd"; .manifest.size // empty | ", \(bytes)"' <<<"$report")"
    [[ $id == "$expected" ]] || say "It is $id, as another backup became $expected meanwhile"
    [[ -z $expire ]] || expire_oldest || status=$?
    [[ -z $json ]] || printf '%s\n' "$report"
    return "$status"
}

# Of the same database, by hand, before this one
expire_oldest() {
    local keep holder id failed=0
    keep=$(ask "$target" backup schedule | jq -er '.keep.manual | select(type == "number" and . >= 1)') || {
        warn "nothing is removed: $(label "$target") does not say how many backups it keeps"
        return 1
    }
    while read -r holder id; do
        doing "Destroying $id"
        agent "$longest" "$holder" backup delete "$id" </dev/null >/dev/null 2>&1 || {
            not_done
            warn "$holder: $(jq -r .message "$work/error.$holder")"
            failed=1
            continue
        }
        done_with
    done < <(of_backups '[.[] | select((.id | startswith("b")) and .kind == $r[0].kind and .database == $r[0].database and .instance == $r[0].manifest.instance)]
        | .[:([length + 1 - $keep, 0] | max)][] | "\(.holders[0]) \(.id)"' --argjson keep "$keep" --slurpfile r <(printf %s "$report"))
    return "$failed"
}
