# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:upgrade DB [--to DB2 | --plan PLAN] [--as COLOUR]
#                        [--rehearse] [-n | --dry-run] [--no-owner] [--wait SECONDS] [--terminate]
#                        [--jobs N] [--confirm APP] [--json]
# Summary: move the app from a database to one of a newer major version
#
# That is pg:migrate of the config variables that hold DB's URL, refused unless
# the new database's major version is newer. A new instance has the version that
# the platform gives it: with dotcloud that of its service in dotcloud.yml, so a
# newer one is a service of its own (HERD_DATABASE_SERVICE names it). The options
# are those of pg:migrate, and so is the way back: herd pg:migrate --rollback.
#
# Examples:
#   herd pg:upgrade DATABASE_URL --to db18.0 --rehearse
#   herd pg:upgrade DATABASE_URL --to db18.0
#   HERD_DATABASE_SERVICE=db18 herd pg:upgrade DATABASE_URL --plan ronin

command_pg_upgrade() {
    local command from to plan url as action options words colour source variable
    migration_options pg:upgrade "$@"
    ((${#words[@]} == 1)) || usage_error "which database? it wants one" "herd pg:upgrade DB --to DB2"
    use_platform
    load_databases
    resolve "${words[0]}" source
    # Whichever variable has its URL: all that have the same are bound anew
    variable=$(about 'url_variable($n; $w)' --arg n "$source" --arg w "${words[0]}")
    [[ -n $variable ]] || die 1 "$(label "$source") is not attached, so no config variable holds its URL" "herd addons:attach $source; or pg:copy, which moves data alone"
    options+=(--from "$variable" --newer)
    to_instance
    migrate "${options[@]}"
}
