# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:psql [DB] [-c SQL] [-- PSQL-ARGUMENT...]
# Summary: psql on a database, DATABASE_URL by default
#
# It runs on the database's own machine, so yours needs neither psql nor a way to
# its port; input, output and the exit code pass through.
#
# Examples:
#   herd pg:psql
#   herd pg:psql WHITE -c 'SELECT count(*) FROM orders'
#   herd pg:psql AMBER -- -At < report.sql

command_pg_psql() {
    local wanted="" instance words arguments=() database
    while (($#)); do
        case $1 in
            -c)
                arguments+=(-c "$(option_value "$@")")
                shift
                ;;
            --)
                shift
                arguments+=("$@")
                break
                ;;
            -*) usage_error "unknown option $1" "psql's own options come after --" ;;
            *)
                [[ -z $wanted ]] || usage_error "only one database at a time"
                wanted=$1
                ;;
        esac
        shift
    done
    use_platform
    load_databases
    resolve "$wanted"
    database=$(decoded "$(database_in "$(attached_url "$instance" "$wanted")")")
    printf -v words '%q ' pgmahout psql --database "${database:-postgres}" -- ${arguments[@]+"${arguments[@]}"}
    # The person at it is the limit
    HERD_APP=$app "$platform_directory/run" "$instance" "${words% }"
}
