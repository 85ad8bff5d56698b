# Pure facts about an application: what its state file says, in the shapes that
# people, instances and tests want to see.

def host: "127.0.0.1";
def env_name: ascii_upcase | gsub("[^A-Z0-9]"; "_");
def text: if type == "string" then . else tojson end;

def url($account; $kind; $port):
    if $kind == "ssh" then "ssh://\($account)@\(host):\($port)"
    elif $kind == "http" then "http://\(host):\($port)/"
    else "\($kind)://\(host):\($port)" end;

# {ssh: "ssh", pgsql: "tcp"} of a service
def kinds: {ssh: "ssh"} + (.spec.ports // {});

# [{name, kind, port, url}] of an instance, ssh first
def port_list($service; $number; $account):
    .services[$service] as $s
    | $s.instances[$number].ports as $ports
    | [$s | kinds | to_entries[]
       | select($ports[.key] != null)
       | {name: .key, kind: .value, port: $ports[.key],
          url: url($account; .value; $ports[.key])}];

# Another release and its line in the history, which keeps the last 100.
def new_release($what):
    .release += 1
    | .releases = ((.releases // []) + [{release, at: (now | todate), what: ($what | gsub("[[:cntrl:]]+"; " "))}])[-100:];

# Without the instances that a command is making or removing, or was when it was killed
def complete: del(.services[].instances[]? | select(.incomplete));

def numbers($service): .services[$service].instances // {} | keys | sort_by(tonumber);

# With no other service and instance than that; "" and the name of a service are all
def only($instance):
    def one($key): if has($key) then {($key): .[$key]} else {} end;
    ([$instance | capture("^(?<s>.*)[.](?<n>[0-9]+)$")][0]) as $it
    | if $it then .services |= (one($it.s) | map_values(.instances |= one($it.n))) else . end;

# What bash asks about the state, a line each (state.bash). An instance that is half made or half removed counts only for
# its ports and its number.
def facts:
    "release \(.release)",
    (. as $app | .services | keys_unsorted[] as $s | .[$s]
     | (kinds | keys_unsorted) as $names
     | "service \($s) \(if .spec.ports.pgsql then 1 else 0 end) \(
            if .none or (.instances // {} | length > 0) then 0 else .spec.instances // 1 end) \(
            [.instances[]? | $names - (.ports // {} | keys) | length] | add // 0) \($names | join(" "))",
       (.instances // {} | . as $all | keys | sort_by(tonumber)[] as $n
        | (if $all[$n].incomplete then "incomplete" else "complete" end) + " \($s).\($n)",
          ($app | port_list($s; $n; "")[] | "port \($s).\($n) \(.port) \(.name) \(.kind)")));

# A service whose instances have a port for each name: those that they lack are of $free, in their order
def with_ports($free):
    (kinds | keys_unsorted) as $names
    | .instances |= map_values(.ports |= with_entries(select([.key] | inside($names))))
    | [.instances | to_entries[] | .key as $n | ($names - (.value.ports | keys))[] | [$n, "ports", .]] as $lacking
    | reduce range(0; $lacking | length) as $i (.; setpath(["instances"] + $lacking[$i]; $free[$i]));

# What an instance learns about the application: its environment.json.
def environment($service; $number; $account):
    . as $app
    | def of_port($prefix; $suffix):
        {"\($prefix)_HOST\($suffix)": host,
         "\($prefix)_PORT\($suffix)": (.port | tostring),
         "\($prefix)_URL\($suffix)": .url};
    {DOTCLOUD_PROJECT: .name,
     DOTCLOUD_ENVIRONMENT: "default",
     DOTCLOUD_SERVICE_NAME: $service,
     DOTCLOUD_SERVICE_ID: $number}
    + ([.services | keys_unsorted[] as $name
        | "DOTCLOUD_\($name | env_name)" as $prefix
        | (($app | numbers($name)) as $all
           | ($all[0] | select(. != null) as $first
              | $app | port_list($name; $first; $account)[] | select(.name == "ssh")
              | of_port("\($prefix)_SSH"; "")),
             ($all[] as $n
              | $app | port_list($name; $n; $account)[] | select(.kind != "udp")
              | of_port("\($prefix)_\(.name | env_name)"; "_\($n)")))] | add // {})
    + (.services[$service].spec.environment // {} | map_values(text))
    + .env;

# The same for the shell, with what only the instance itself needs.
def shell_environment($service; $number; $account):
    environment($service; $number; $account)
    + ([port_list($service; $number; $account)[]
        | {"PORT_\(.name | env_name)": (.port | tostring)}] | add // {})
    | to_entries | map("export \(.key)=\(.value | @sh)\n") | add;

# Several texts after one another: NUL ends each
def texts(f): f | (if type == "string" then split("\u0000") | join("") else . end), "\u0000";
def environment_texts($instances; $account):
    . as $app | $instances | split(" ")[] | capture("^(?<s>.*)[.](?<n>[0-9]+)$") as {$s, $n}
    | $app | texts(environment($s; $n; $account), shell_environment($s; $n; $account));

# What the build of a service sees: every key as SERVICE_<KEY>.
def build_environment($service):
    .services[$service].spec as $spec
    | {DOTCLOUD_PROJECT: .name, DOTCLOUD_ENVIRONMENT: "default", DOTCLOUD_SERVICE_NAME: $service}
    + .env
    + ($spec.environment // {} | map_values(text))
    + ($spec | with_entries({key: "SERVICE_\(.key | env_name)", value: (.value | text)}))
    + ($spec.config // {} | with_entries({key: "SERVICE_CONFIG_\(.key | env_name)", value: (.value | text)}))
    + {SERVICE_NAME: $service}
    | to_entries[] | "export \(.key)=\(.value | @sh)";

# A service's programs: {name: command}
def programs($service):
    .spec | if .processes then .processes elif .process then {($service): .process} else {} end;

# supervisord reads "%" as the start of an expansion and " ;" as a comment.
def supervisor_value: text | gsub("%"; "%%");

# The programs of a service for its supervisord: its own options over ours. The environment and the command lines stand in
# files of their own.
def supervisor_programs($service):
    .services[$service] | .spec.supervisor as $options | [programs($service) | keys_unsorted[] | . as $p
        | "", "[program:\($p)]", "command=/bin/bash ../process \($p)",
          ({redirect_stderr: true, stdout_logfile: "logs/\($p).log",
            stdout_logfile_maxbytes: "10MB", stdout_logfile_backups: 3,
            autorestart: true, stopasgroup: true, killasgroup: true}
           + ($options[$p]? // {} | map_values(supervisor_value))
           | to_entries[] | "\(.key)=\(.value)")] | map(. + "\n") | add // "";

# The first thing that is wrong with a dotcloud.yml, or nothing.
def mistakes:
    def name_ok: test("^[a-z][a-z0-9_-]{0,29}$");
    def map_of_text($s; $key):
        if type != "object" then "service \($s): \($key) must be a map of names to values"
        else to_entries[] | select(.value | type == "object" or type == "array" or . == null)
            | "service \($s): \($key): \(.key) must be a plain value" end;
    if type != "object" or length == 0 then "it must be a map of service names to settings"
    else to_entries[] | .key as $s | .value
        | if ($s | name_ok | not) then "service \($s | tojson): a name is lower-case letters, digits, - and _, at most 30"
          elif type != "object" then "service \($s): it must be a map of settings"
          elif .type == null then "service \($s): it has no type; this platform knows: custom"
          elif .type != "custom" then "service \($s): unknown type \(.type | tojson); this platform knows: custom"
          else
            (if .buildscript != null and (.buildscript | type) != "string" then "service \($s): buildscript must be a path" else empty end),
            (if .approot != null and (.approot | type) != "string" then "service \($s): approot must be a path" else empty end),
            (if .process != null and .processes != null then "service \($s): it has process and processes; keep one" else empty end),
            (if .process != null and (.process | type) != "string" then "service \($s): process must be a command line" else empty end),
            (if .processes != null then
                (.processes | map_of_text($s; "processes")),
                (.processes | objects | keys[] | select(test("^[A-Za-z][A-Za-z0-9_-]*$") | not)
                 | "service \($s): processes: \(tojson) is not a name") else empty end),
            (if .environment != null then
                (.environment | map_of_text($s; "environment")),
                (.environment | objects | keys[] | select(test("^[A-Za-z_][A-Za-z0-9_]*$") | not)
                 | "service \($s): environment: \(tojson) is not a variable's name") else empty end),
            (if .config != null and (.config | type) != "object" then "service \($s): config must be a map" else empty end),
            (if .ports != null then
                if (.ports | type) != "object" then "service \($s): ports must be a map of names to tcp, http or udp"
                else .ports | to_entries[]
                    | if (.key | name_ok | not) or .key == "ssh" then "service \($s): ports: \(.key | tojson) cannot be a port's name"
                      elif (.value | IN("tcp", "http", "udp") | not) then "service \($s): ports: \(.key) must be tcp, http or udp"
                      else empty end end else empty end),
            (if .instances != null and ((.instances | type) != "number" or .instances < 1 or .instances > 50 or .instances != (.instances | floor))
             then "service \($s): instances must be a number from 1 to 50" else empty end),
            (if .include != null then
                if (.include | type) != "object" then "service \($s): include must be a map of paths in the code to lists of sources"
                else .include | to_entries[]
                    | if (.key | test("^/|(^|/)\\.\\.(/|$)")) then "service \($s): include: \(.key) must be a path inside the code"
                      elif (.value | type) != "array" or (.value | all(type == "string") | not)
                      then "service \($s): include: \(.key) must be a list of paths" else empty end end else empty end),
            (if .build_environment != null and ((.build_environment | type) != "array" or (.build_environment | all(type == "string" and test("^[A-Za-z_][A-Za-z0-9_]*$")) | not))
             then "service \($s): build_environment must be a list of variable names" else empty end),
            (. as $spec | if .supervisor != null then
                if (.supervisor | type) != "object" then "service \($s): supervisor must be a map of programs to options"
                else .supervisor | to_entries[] | .key as $p
                    | if ({spec: $spec} | programs($s) | has($p) | not) then "service \($s): supervisor: there is no process \($p)"
                      elif (.value | type) != "object" then "service \($s): supervisor: \($p) must be a map of options"
                      else .value | to_entries[]
                        | if (.key | test("^[a-z_]+$") | not) or (.key | IN("command", "directory", "environment", "user", "process_name"))
                          then "service \($s): supervisor: \($p): \(.key) is not for you to set"
                          elif (.value | text | test("[\\n;]")) then "service \($s): supervisor: \($p): \(.key) must be one plain value"
                          else empty end end end else empty end)
          end
    end;

def yaml_scalar:
    if type == "string" then
        if test("^[A-Za-z0-9_./@:+-]*[A-Za-z0-9_/]$") and (test("^[0-9.+:-]|^(true|false|yes|no|on|off|null|y|n)$"; "i") | not) and (test(": ") | not)
        then . else tojson end
    else tojson end;

# YAML as CLI 0.4 wrote it: four spaces, list items at "-   ".
def yaml($indent):
    if type == "object" then
        to_entries[]
        | if (.value | type) == "object" and (.value | length) > 0 then
            "\($indent)\(.key | yaml_scalar):", (.value | yaml($indent + "    "))
          elif (.value | type) == "array" and (.value | length) > 0 then
            "\($indent)\(.key | yaml_scalar):",
            (.value[]
             | if type == "object" then
                 [yaml($indent + "    ")] | ("\($indent)-   " + (.[0] | ltrimstr($indent + "    "))), .[1:][]
               else "\($indent)-   \(yaml_scalar)" end)
          else "\($indent)\(.key | yaml_scalar): \(.value | yaml_scalar)" end
    else $indent + yaml_scalar end;
def yaml: yaml("");
