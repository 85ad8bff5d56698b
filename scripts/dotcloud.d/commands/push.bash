# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud push [DIR]
# Summary: build what dotcloud.yml describes and deploy it
#
# DIR is the directory with dotcloud.yml (default: found upwards from here). Its
# files go to the build of each service: in a git checkout those that git does
# not ignore, else all; never target/ and .git. A build that fails changes
# nothing. The first push makes the instances.
#
# Keys of a service in dotcloud.yml:
#   type               custom
#   buildscript        a path in DIR; run with HOME = the service's build home,
#                      which is kept between pushes, the code in ~/code, and each
#                      key of the service as SERVICE_<KEY>, each key of config as
#                      SERVICE_CONFIG_<KEY>. What it writes to the file
#                      $DOTCLOUD_PUSH_MESSAGE is shown at the end of the push.
#   process, processes a command line; or a map of names to command lines
#   supervisor         a map of processes to supervisord's program options
#   ports              a map of names to tcp, http or udp: PORT_<NAME>
#   environment        a map of variables for the build and the instances
#   config             a map of anything
#   instances          how many the first push makes (1)
#   approot            the directory that the buildscript starts in
#   include            a map of paths in the code to lists of where a file that
#                      git ignores comes from: $NAME or a pattern in DIR
#   build_environment  a list of variables that the build gets from the caller
#
# Example:
#   dotcloud push

command_push() {
    local directory=${1:-} spec service instance
    [[ $directory != -* ]] || usage_error "unknown option $directory; see dotcloud push --help"
    (($# <= 1)) || usage_error "push wants one directory; see dotcloud push --help"
    need_everything
    use_app
    if [[ -z $directory ]]; then
        directory=$PWD
        while [[ -n $directory && ! -f $directory/dotcloud.yml ]]; do directory=${directory%/*}; done
        [[ -n $directory ]] || die "there is no dotcloud.yml in $PWD or above; go to a directory that has one, or name it"
    fi
    [[ -d $directory ]] || die "$directory: there is no such directory"
    directory=$(realpath -- "$directory")
    read_spec "$directory"
    need_account
    lock_app

    local names=()
    mapfile -t names < <(jq -r 'keys_unsorted[]' <<<"$spec")
    for service in "${names[@]}"; do
        build_service "$directory" "$service"
    done
    for service in "${names[@]}"; do
        accept_build "$service"
    done

    update '.revision = "rsync-\(now * 1000 | floor)" | new_release("Push \(.revision)")
        | reduce ($spec[0] | to_entries[]) as {$key, $value} (.; .services[$key].spec = $value)
        | .services |= map_values(.instances //= {})' --slurpfile spec <(printf %s "$spec")
    local existing=()
    mapfile -t existing < <(for service in "${names[@]}"; do instances "$service"; done)
    for service in "${names[@]}"; do
        add_instances "$service" "${first_of[$service]}"
    done
    for instance in ${existing[@]+"${existing[@]}"}; do
        say "deploying to $instance"
        deploy_instance "$instance"
        stop_programs "$instance" "$stop_timeout"
        start_instance "$instance"
    done
    start_new_instances
    write_all_environments

    for service in "${service_names[@]}"; do
        [[ " ${names[*]} " == *" $service "* ]] ||
            warn "service $service is not in dotcloud.yml any more and runs on; dotcloud destroy $service ends it"
    done
    say "$app is deployed: release $release"
    for service in "${names[@]}"; do
        show_message "$app_directory/build/$service"
    done
}

# It may hold a password: shown once, then gone
show_message() {
    as_account "$1" bash -c 'if [[ -f message ]]; then cat message && rm -f message; fi'
}
