# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:migrate [--from VAR | --url FILE|-] [--to DB | --plan PLAN] [--as COLOUR]
#                        [--rehearse] [-n | --dry-run] [--no-owner] [--wait SECONDS] [--terminate]
#                        [--jobs N] [--confirm APP] [--json]
#        herd pg:migrate --resume | --rollback [--confirm APP] | --status [--json]
#        herd pg:migrate --abandon [--from VAR | --url FILE|-] --confirm APP [--json]
# Summary: move the app to another database, with the way back
#
# The app goes into maintenance and its processes are scaled to 0; when nobody
# writes any more, the data is copied and compared, all config variables that
# held the old URL get the new one in one release, and the processes come back.
# Until then Ctrl-C, or whatever fails, leaves the app as it was.
#
# The old database stays, read-only. After a crash go on or go back from this
# machine, which has the journal; a second migration is refused meanwhile.
#
# Options:
#   --from VAR      the config variable with the URL to move from (SHARED_DATABASE_URL)
#   --url FILE|-    a database outside: its URL on the first line of a file, or of stdin
#   --to DB         a database of the app that is empty; without it a new one is made
#   --plan PLAN     the plan of the new one
#   --as COLOUR     the name under which it is attached
#   --rehearse      copy and compare a fork, take nothing down, tell how long it takes
#   -n, --dry-run   check, say what would be done
#   --no-owner      all belongs to the new database's user; for roles that are not there
#   --wait SECONDS  how long to wait for the last client of the old database
#   --terminate     end the sessions of those that stay
#   --jobs N        connections that copy at the same time
#   --status        how far it is, or how it ended
#   --resume        go on after a crash
#   --rollback      back to the old database, also after success; --confirm APP when
#                   writes would be lost
#   --abandon       free a database of a migration whose machine is lost
#
# Examples:
#   herd pg:migrate --plan ronin
#   herd pg:migrate --from DATABASE_URL --to SILVER --rehearse
#   herd pg:migrate --from DATABASE_URL --to SILVER
#   herd pg:migrate --rollback --confirm shop

command_pg_migrate() {
    local command from to plan url as action options words colour variable
    migration_options pg:migrate "$@"
    ((${#words[@]} == 0)) || usage_error "unknown argument ${words[0]}" "herd pg:migrate --from VAR --to DB, for example --from DATABASE_URL --to SILVER"
    use_platform
    [[ -z $action || $action == --abandon ]] || migrate "$action"
    if [[ -n $url ]]; then
        url_file "$url"
        options+=(--url "$url")
    fi
    load_databases
    if [[ -z $url ]]; then
        variable=$(from_variable)
        options+=(--from "$variable")
    fi
    [[ -n $action ]] || to_instance
    migrate ${action:+"$action"} "${options[@]}"
}

# The config variable that is moved from
from_variable() {
    local known
    known=$(url_variables)
    if [[ -z $from ]]; then
        [[ -n $(about '.config.SHARED_DATABASE_URL // ""') ]] ||
            die 2 "$app has no SHARED_DATABASE_URL, and which database to move from is not guessed" \
                "$([[ -n $known ]] && echo "say --from with one of: $known" || echo "no config variable holds the URL of a database; --url FILE names one elsewhere")"
        from=SHARED_DATABASE_URL
    fi
    # As they are called, or as their databases are: DATABASE_URL, AMBER
    variable=$(about '.config as $c | ($w | ascii_upcase) as $u | first(($w, $u, "HEROKU_POSTGRESQL_\($u)_URL", "\($u)_URL") | select(. as $n | $c | has($n))) // empty' --arg w "$from")
    [[ -n $variable ]] || die 2 "$app has no config variable $from" "${known:+those with the URL of a database are: $known}"
    [[ $(about '.config[$v] | test("^(postgres|postgresql|pgsql)://"; "i")' --arg v "$variable") == true ]] ||
        die 2 "$variable of $app does not hold the URL of a PostgreSQL database" "${known:+these do: $known}"
    printf '%s\n' "$variable"
}
