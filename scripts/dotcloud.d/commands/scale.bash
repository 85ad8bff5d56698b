# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud scale SERVICE=[+]COUNT... [--no-start] [--yes]
# Summary: change how many instances services have
#
# New instances are copies of the last build and take the lowest free numbers;
# +COUNT adds to those that there are. Fewer means that the highest ones are
# destroyed with their data, which wants an answer or --yes. A service that is
# no database (has no port named pgsql) may have none at all: its build stays,
# and a push makes none until it is scaled up again.
#
# Options:
#   --no-start   what is new is made, but not started; dotcloud up does that
#
# Examples:
#   dotcloud scale db=2 www=3
#   dotcloud scale db=+1
#   dotcloud scale www=0 --yes

command_scale() {
    local yes=0 no_start=0 argument service count least names=() counts=() doomed=()
    for argument; do
        case $argument in
            -y | --yes | -f) yes=1 ;;
            --no-start) no_start=1 ;;
            -*) usage_error "unknown option $argument; see dotcloud scale --help" ;;
            *)
                [[ $argument =~ ^([a-z][a-z0-9_-]*)=(\+?)([0-9]{1,3})$ ]] ||
                    usage_error "'$argument' is not SERVICE=COUNT; for example: dotcloud scale db=2"
                names+=("${BASH_REMATCH[1]}")
                counts+=("${BASH_REMATCH[2]}$((10#${BASH_REMATCH[3]}))")
                ;;
        esac
    done
    ((${#names[@]})) || usage_error "scale wants SERVICE=COUNT; for example: dotcloud scale db=2"
    need_everything
    use_app
    need_account
    lock_app

    local i
    for i in "${!names[@]}"; do
        service=${names[i]}
        parse_instance "$service"
        count=${counts[i]}
        [[ $count != +* ]] || count=$(($(instances "$service" | wc -l) + count))
        counts[i]=$count
        least=${least_of[$service]}
        ((count >= least && count <= 50)) ||
            usage_error "$service=$count: a $( ((least)) && echo database || echo service) has $least to 50 instances; see dotcloud destroy"
        mapfile -t -O "${#doomed[@]}" doomed < <(instances "$service" | tail -n "+$((count + 1))" | tac)
    done
    ((${#doomed[@]} == 0)) || confirm "This destroys ${doomed[*]} of $app with all data." "$yes"

    for argument in ${doomed[@]+"${doomed[@]}"}; do
        say "destroying $argument"
        remove_instance "$argument"
    done
    for i in "${!names[@]}"; do
        [[ -d $app_directory/build/${names[i]}/home ]] || die "${names[i]} was never built; run dotcloud push"
        add_instances "${names[i]}" "${counts[i]}" 'if $count == 0 then .services[$s].none = true else del(.services[$s].none) end'
    done
    start_new_instances "$no_start"
    write_all_environments
    say "$app now has $(summary)"
}
