# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud info [SERVICE[.N]] [--format 0.4|0.9 | --text | --json]
# Summary: what there is and where its ports are
#
# The default is the YAML of the CLI's version 0.4; --format 0.9 (or --text) is
# the text of version 0.9; --json is the first as JSON.
#
# Examples:
#   dotcloud info
#   dotcloud info db.0 | dotcloud run db.1 pgmahout enslave
#   dotcloud info db --text

command_info() {
    local format=0.4 target="" service number states chosen instance filter
    while (($#)); do
        case $1 in
            --format)
                (($# > 1)) || usage_error "--format wants 0.4 or 0.9"
                format=$2
                shift
                ;;
            --format=*) format=${1#*=} ;;
            --text) format=0.9 ;;
            --json) format=json ;;
            -*) usage_error "unknown option $1; see dotcloud info --help" ;;
            *)
                [[ -z $target ]] || usage_error "info wants one service or instance; see dotcloud info --help"
                target=$1
                ;;
        esac
        shift
    done
    [[ $format =~ ^(0\.4|0\.9|json)$ ]] || usage_error "unknown format '$format'; it is 0.4 or 0.9"
    need jq
    use_app
    need_account
    if [[ -n $target ]]; then
        choose_instances "$target"
    else
        # All of them have directories: no need to read the state twice
        chosen=("$app_directory"/*.*/sshd_config)
        chosen=("${chosen[@]%/sshd_config}")
        chosen=("${chosen[@]##*/}")
    fi
    states=$(for instance in ${chosen[@]+"${chosen[@]}"}; do
        printf '%s %s\n' "$instance" "$(instance_state "$instance")"
    done)

    # What another command has made since we looked does not run yet
    local shapes='
        def state_of($s; $n): first($states | split("\n")[] | split(" ") | select(.[0] == "\($s).\($n)")[1]) // "stopped";
        def config: (.spec.config // {}) + (.spec.version // null | if . then {version: .} else {} end);
        def instance($s; $n):
            {config: (.services[$s] | config),
             created_at: .services[$s].instances[$n].created_at,
             datacenter: "local",
             ports: [port_list($s; $n; $a)[] | {name, url}],
             release, revision,
             instances: {"\(.name).\($s).\($n)": {state: state_of($s; $n)}},
             state: state_of($s; $n),
             type: .services[$s].spec.type};
        def service($s): . as $app
            | instance($s; numbers($s)[0] // "")
            | del(.ports, .state)
            + {instances: ($app | [numbers($s)[] as $n | {"\($app.name).\($s).\($n)":
                ($app | instance($s; $n) | {state, ports})}] | add // {})};
        def text_instance($s; $n):
            "=== \($s).\($n)",
            "datacenter:       local",
            "service revision: custom/\(.revision | ltrimstr("rsync-")) (latest revision)",
            "revision:         \(.revision)",
            "state:            \(state_of($s; $n))",
            "ports:",
            (port_list($s; $n; $a) | (map(.name | length) | max) as $width | .[]
             | "  \(.name):\(" " * ($width - (.name | length) + 1))\(.url)");
        def text_service($s): . as $app
            | "== \($s)",
            "type:            \(.services[$s].spec.type)",
            "instances:       \(numbers($s) | length)",
            "reserved memory: N/A",
            ((.services[$s] | config) as $config
             | if $config == {} then "config:          N/A"
               else "config:", ($config | to_entries[] | "  \(.key): \(.value | text)") end),
            ([numbers($s)[] as $n | $app | port_list($s; $n; $a)[] | select(.kind == "http") | .url] as $urls
             | if $urls == [] then "URLs:            N/A" else "URLs:", ($urls[] | "  \(.)") end),
            (numbers($s)[] as $n | "", ($app | text_instance($s; $n)));
        def summary: . as $app
            | {application: .name, created_at, release, revision,
               services: (.services | with_entries(.key as $s | .value |=
                ({config: config, ports: (.spec.ports // {}), instances: ($app | [numbers($s)[] as $n | {"\($s).\($n)":
                    {state: state_of($s; $n), ports: ($app | [port_list($s; $n; $a)[] | {name, url}])}}] | add // {}), type: .spec.type})))};'
    # A sole instance is what its service is
    if [[ -n $target ]]; then
        parse_instance "$target"
        if [[ -z $number && $format != 0.9 ]] && ((${#chosen[@]} == 1)); then number=${chosen[0]##*.}; fi
        filter='if $n != "" then instance($s; $n) else service($s) end'
        [[ $format != 0.9 ]] || filter='if $n != "" then text_instance($s; $n) else text_service($s) end'
    else
        filter=summary
        [[ $format != 0.9 ]] ||
            filter='. as $app | [.services | keys_unsorted[]] | to_entries[] | .value as $s | (if .key > 0 then "" else empty end), ($app | text_service($s))'
    fi
    [[ $format != 0.4 ]] || filter="$filter | yaml"
    query "$shapes complete | $filter" --arg s "${service:-}" --arg n "${number:-}" --arg a "$account" --arg states "$states"
}
