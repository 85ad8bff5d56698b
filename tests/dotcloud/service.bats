# shellcheck shell=bash disable=SC2016,SC2030,SC2031,SC2034,SC2094,SC2154
# What scripts/dotcloud does for any service. The tests build on each other: one
# application lives from the first to the last.

load helper

setup_file() {
    set_scene
}

teardown_file() {
    strike_scene
}

@test "help is there for everything, and mistakes in usage are one line and 2" {
    dotcloud --help | grep -q '^  scale  *change how many'
    for file in "$checkout"/scripts/dotcloud.d/commands/*.bash; do
        command=$(basename "$file" .bash)
        dotcloud "$command" --help >"$BATS_TEST_TMPDIR/help"
        grep -q "^Usage: dotcloud $command" "$BATS_TEST_TMPDIR/help"
        grep -q '^Examples*:$' "$BATS_TEST_TMPDIR/help"
    done
    refused 2 "unknown command 'nonsense'; see dotcloud --help" dotcloud nonsense
    refused 2 "unknown option --nonsense" dotcloud --nonsense
    refused 2 "which command?" dotcloud
    refused 2 "unknown option --nonsense" dotcloud push --nonsense
    refused 2 "wants the name" dotcloud -A
    refused 2 "'Shop' cannot be" dotcloud create Shop
    refused 2 "'db' is not SERVICE=COUNT" dotcloud scale db
    refused 1 "no application is chosen here; run dotcloud create" dotcloud info
    refused 1 "no such application: nothing" dotcloud -A nothing info
}

@test "create remembers the application, out of git's sight" {
    git -C "$scene/here" init -q
    dotcloud create shop
    [ "$(jq -r .application "$scene/here/.dotcloud/config")" = shop ]
    [ -z "$(git -C "$scene/here" status --short)" ]
    refused 1 "shop exists already" dotcloud create shop
    mkdir -p "$scene/here/below"
    directory=$scene/here/below dotcloud info | grep -qx 'application: shop'
    refused 1 "no such service or instance: www.0" dotcloud run www.0 true
}

@test "a bad dotcloud.yml is one line that names the file and what" {
    bad="$scene/bad yml"
    mkdir -p "$bad"
    refused 1 "$bad/dotcloud.yml: there is no such file" dotcloud push "$bad"
    try() {
        printf %s "$1" >"$bad/dotcloud.yml"
        refused 1 "$bad/dotcloud.yml: $2" dotcloud push "$bad"
    }
    try 'www: [' 'invalid YAML'
    try '' 'it must be'
    try '[]' 'it must be'
    try 'www: {type: python}' 'service www: unknown type "python"; this platform knows: custom'
    try 'www: {process: x}' 'service www: it has no type'
    try 'www: {type: custom, buildscript: absent}' 'service www: there is no buildscript absent'
    try 'www: {type: custom, buildscript: ../x}' 'service www: buildscript: ../x is outside'
    try 'www: {type: custom, ports: {a: sctp}}' 'service www: ports: a must be tcp, http or udp'
    try 'www: {type: custom, ports: {ssh: tcp}}' 'service www: ports: "ssh" cannot be'
    try 'www: {type: custom, process: a, processes: {b: c}}' 'service www: it has process and processes'
    try 'www: {type: custom, instances: none}' 'service www: instances must be a number'
    try 'www: {type: custom, supervisor: {web: {}}}' 'service www: supervisor: there is no process web'
    try 'www: {type: custom, process: a, supervisor: {www: {command: b}}}' 'service www: supervisor: www: command is not'
    try 'www: {type: custom, environment: {"a b": c}}' 'service www: environment: "a b" is not'
    try '"w w": {type: custom}' 'service "w w": a name is'
}

@test "a build that fails makes nothing" {
    run env FIXTURE_FAIL=yes bash -c 'cd "$scene/here" && "$checkout/scripts/dotcloud" push "$scene/www" 2>&1'
    [ "$status" = 1 ]
    [[ $output == *"cannot build: told to fail"*"dotcloud: the build of www failed: build exited with 7"* ]]
    [ "$(dotcloud list --json | jq -c '.[0] | [.release, .services, .state]')" = '[0,{},"empty"]' ]
}

@test "push builds and deploys; the message comes last" {
    mkdir -p "$scene/www/target/release" "$scene/www/.git" "$scene/www/sub dir"
    echo no >"$scene/www/target/release/other"
    printf '#!/bin/sh\necho tool\n' >"$scene/www/target/release/tool"
    chmod +x "$scene/www/target/release/tool"
    echo spaces >"$scene/www/sub dir/a  file"
    run dotcloud push "$scene/www"
    [ "$status" = 0 ]
    [ "${lines[-1]}" = "the push is over" ]
    [ "$(dotcloud info --json | jq .release)" = 1 ]
    # target/ and .git stay behind, but for what include: names
    dotcloud run www 'cd code && [ ! -e target ] && [ ! -e .git ] && extra/tool && cat "sub dir/a  file"' >"$BATS_TEST_TMPDIR/out"
    [ "$(<"$BATS_TEST_TMPDIR/out")" = $'tool\nspaces' ]
}

@test "in a git checkout what git ignores is not pushed" {
    cp -a "$scene/www" "$scene/checked out"
    cd "$scene/checked out"
    rm -rf .git
    git init -q
    printf 'secret\n' >.gitignore
    touch secret deleted plain
    git add deleted
    rm deleted
    source "$checkout/scripts/dotcloud.d/build.bash"
    code_files "$PWD" | tr '\0' '\n' | sort >"$BATS_TEST_TMPDIR/list"
    printf '%s\n' .gitignore build dotcloud.yml plain serve "sub dir/a  file" | sort | diff - "$BATS_TEST_TMPDIR/list"
}

@test "the build sees every key of its service" {
    dotcloud run www cat seen-by-build >"$BATS_TEST_TMPDIR/seen"
    for line in SERVICE_TYPE=custom SERVICE_VERSION=3 SERVICE_CONFIG_COLOUR=blue 'SERVICE_CONFIG={"colour":"blue"}' \
        SERVICE_NAME=www 'SERVICE_PORTS={"http":"http","admin":"tcp"}' DOTCLOUD_PROJECT=shop \
        "FROM_YML=a 'quoted' \$HOME %(here)s value"; do
        grep -qxF "$line" "$BATS_TEST_TMPDIR/seen" || { echo "not seen: $line" && false; }
    done
}

@test "info in its forms" {
    # 0.4: as in the samples, and YAML
    dotcloud info www.0 >"$BATS_TEST_TMPDIR/info"
    grep -qx 'ports:' "$BATS_TEST_TMPDIR/info"
    grep -qxE -- '-   name: ssh' "$BATS_TEST_TMPDIR/info"
    grep -qxE -- '    url: ssh://[a-z]+@127\.0\.0\.1:[0-9]+' "$BATS_TEST_TMPDIR/info"
    grep -qxE -- '    url: http://127\.0\.0\.1:[0-9]+/' "$BATS_TEST_TMPDIR/info"
    [ "$(yq -r '[.type, .state, .config.colour, (.ports | map(.name) | join(" "))] | join("|")' "$BATS_TEST_TMPDIR/info")" = "custom|running|blue|ssh http admin" ]
    diff <(yq -S . "$BATS_TEST_TMPDIR/info") <(dotcloud info www.0 --json | jq -S .)
    dotcloud info www | diff - "$BATS_TEST_TMPDIR/info"
    [ "$(dotcloud info | yq -r '.services.www.instances["www.0"].state')" = running ]
    # 0.9
    dotcloud info www.0 --text | head -n 1 | grep -qx '=== www.0'
    dotcloud info www --format 0.9 >"$BATS_TEST_TMPDIR/text"
    diff - <(sed -E 's/[0-9]{5,}/N/g; s/@/ /; s,//[a-z]+ ,//,' "$BATS_TEST_TMPDIR/text") <<'END'
== www
type:            custom
instances:       1
reserved memory: N/A
config:
  colour: blue
  version: 3
URLs:
  http://127.0.0.1:N/

=== www.0
datacenter:       local
service revision: custom/N (latest revision)
revision:         rsync-N
state:            running
ports:
  ssh:   ssh://127.0.0.1:N
  http:  http://127.0.0.1:N/
  admin: tcp://127.0.0.1:N
END
    refused 2 "unknown format '7'" dotcloud info www --format 7
    refused 1 "no such service or instance: www.7" dotcloud info www.7
}

@test "run passes everything through" {
    head -c 1000000 /dev/urandom >"$BATS_TEST_TMPDIR/bytes"
    dotcloud run www.0 cat <"$BATS_TEST_TMPDIR/bytes" | cmp - "$BATS_TEST_TMPDIR/bytes"
    run dotcloud run www 'exit 43'
    [ "$status" = 43 ]
    dotcloud run www 'echo out; echo err >&2' >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err"
    [ "$(<"$BATS_TEST_TMPDIR/out")" = out ]
    [ "$(<"$BATS_TEST_TMPDIR/err")" = err ]
    # One string, expanded there
    [ "$(dotcloud run www 'echo $HOME')" = "$DOTCLOUD_HOME/apps/shop/www.0/home" ]
    [ "$(dotcloud run www echo '$((1 +' '1))' '|' tr 2 3)" = 3 ]
    [ "$(dotcloud run www -- echo -A --help)" = "-A --help" ]
    [ "$(echo 'echo from a shell' | dotcloud run www)" = "from a shell" ]
    # Nobody reads what -A is after the service
    [ "$(dotcloud run -A shop www.0 echo -A)" = "-A" ]
    # ~/bin comes first, in spite of /etc/profile
    [ "$(dotcloud run www 'echo ${PATH%%:*}')" = "$DOTCLOUD_HOME/apps/shop/www.0/home/bin" ]
    [ -z "$(dotcloud run www true 2>&1)" ]
}

@test "environment.json has what the instance knows about the application" {
    dotcloud run www cat environment.json >"$BATS_TEST_TMPDIR/environment"
    [ "$(jq -r '[.DOTCLOUD_PROJECT, .DOTCLOUD_ENVIRONMENT, .DOTCLOUD_SERVICE_NAME, .DOTCLOUD_SERVICE_ID, .DOTCLOUD_WWW_SSH_HOST] | join(" ")' \
        "$BATS_TEST_TMPDIR/environment")" = "shop default www 0 127.0.0.1" ]
    [ "$(jq -r .DOTCLOUD_WWW_SSH_PORT_0 "$BATS_TEST_TMPDIR/environment")" = "$(port www.0 ssh)" ]
    [ "$(jq -r .DOTCLOUD_WWW_ADMIN_URL_0 "$BATS_TEST_TMPDIR/environment")" = "tcp://127.0.0.1:$(port www.0 admin)" ]
    [ "$(dotcloud run www 'echo $PORT_ADMIN')" = "$(port www.0 admin)" ]
}

@test "env: a change is a release that the processes see, whatever the value" {
    before=$(dotcloud info --json | jq .release)
    value=$'a \'b\' "c" $HOME `id` %(here)s ; # \\ \n second line é = end'
    dotcloud env set "GREETING=$value" EMPTY=
    [ "$(dotcloud env list --json | jq -r .env.GREETING)" = "$value" ]
    [ "$(dotcloud env list --json | jq .release)" = $((before + 1)) ]
    dotcloud env list | head -n 1 | grep -qx "# shop, release $((before + 1))"
    [ "$(served GREETING)" = "$value" ]
    [ "$(dotcloud run www 'printf %s "$GREETING"')" = "$value" ]
    [ "$(dotcloud run www "jq -r .GREETING environment.json")" = "$value" ]
    dotcloud env unset GREETING EMPTY
    [ "$(dotcloud env list --json | jq -c '[.release, .env]')" = "[$((before + 2)),{}]" ]
    [ -z "$(served GREETING)" ]
    [ "$(served FROM_YML)" = "a 'quoted' \$HOME %(here)s value" ]
    refused 2 "DOTCLOUD_PROJECT is the platform's own" dotcloud env set DOTCLOUD_PROJECT=x
    refused 2 "'1x' is not NAME=VALUE" dotcloud env set 1x=2
    refused 2 "unknown action 'sett'" dotcloud env sett
}

@test "env: entries come on stdin, and without a restart nothing is restarted" {
    before=$(dotcloud info --json | jq .release)
    pids=$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')
    value=$'two\nlines "quoted" \'and\' é = $HOME'
    printf 'TOKEN=%s\0OTHER=\0' "$value" | dotcloud env set --stdin --no-restart
    [ "$(dotcloud env list --json | jq -r .env.TOKEN)" = "$value" ]
    [ "$(dotcloud run www 'jq -r .TOKEN environment.json')" = "$value" ]
    [ "$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')" = "$pids" ]
    [ -z "$(served TOKEN)" ]
    dotcloud restart www
    [ "$(served TOKEN)" = "$value" ]
    dotcloud env unset --no-restart --reason $'tidied\nup' TOKEN OTHER
    [ "$(served TOKEN)" = "$value" ]
    dotcloud restart
    [ -z "$(served TOKEN)" ]
    [ "$(dotcloud releases --json | jq -c '[.[:2][] | [.release, .what]]')" = "[[$((before + 2)),\"tidied up\"],[$((before + 1)),\"Set TOKEN, OTHER\"]]" ]
    # A half-read input sets nothing
    printf 'A=1\0B=2' >"$BATS_TEST_TMPDIR/cut"
    cut_off() { dotcloud env set --stdin <"$BATS_TEST_TMPDIR/cut"; }
    refused 2 "the input ends within 'B'" cut_off
    refused 2 "env set wants NAME=VALUE" dotcloud env set --stdin </dev/null
    refused 2 "takes no entries as arguments" dotcloud env set --stdin A=1 </dev/null
    refused 2 "unknown option --fast" dotcloud env set --fast A=1
    [ "$(dotcloud env list --json | jq -c '[.release, .env]')" = "[$((before + 2)),{}]" ]
}

@test "releases: every change, newest first" {
    dotcloud releases --json | jq -e 'map(.release) == [range(length; 0; -1)] and (map(.at) | all(test("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z$")))'
    dotcloud releases --json | jq -e '[.[-3:][].what] | .[2] == "Push \(.[2] | ltrimstr("Push "))" and (.[2] | test("^Push rsync-[0-9]+$")) and .[:2] == ["Unset GREETING, EMPTY", "Set GREETING, EMPTY"]'
    dotcloud releases | tail -n 1 | grep -qE '^1  [0-9TZ:-]+  Push rsync-[0-9]+$'
    # The history has an end
    file=$DOTCLOUD_HOME/apps/shop/app.json
    cp -p "$file" "$BATS_TEST_TMPDIR/app.json"
    jq '.releases = [range(1; 101) | {release: ., at: "2026-01-01T00:00:00Z", what: "x"}] | .release = 100' "$BATS_TEST_TMPDIR/app.json" >"$file"
    dotcloud env set --no-restart N=1
    [ "$(dotcloud releases --json | jq -c '[length, .[0].release, .[-1].release]')" = "[100,101,2]" ]
    cp -p "$BATS_TEST_TMPDIR/app.json" "$file"
}

@test "a failed build leaves what runs alone" {
    before=$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')
    run env FIXTURE_FAIL=yes bash -c 'cd "$scene/here" && "$checkout/scripts/dotcloud" push "$scene/www"'
    [ "$status" = 1 ]
    [ "$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')" = "$before" ]
    dotcloud run www '[ ! -e half ]'
    [ ! -e "$DOTCLOUD_HOME/apps/shop/build/www/home/half" ]
}

@test "a push keeps the build's home and the instance's own files" {
    kept=$(dotcloud run www cat kept)
    dotcloud run www 'mkdir -p data && echo mine >data/file && echo mine >own; printf "ssh-ed25519 AAAA guest" >.ssh/authorized_keys; echo host >.ssh/known_hosts'
    echo key-of-the-build >>"$DOTCLOUD_HOME/apps/shop/build/www/home/.ssh/authorized_keys"
    rm "$scene/www/sub dir/a  file"
    dotcloud push "$scene/www"
    [ "$(dotcloud run www cat kept data/file own)" = "$kept"$'\nmine\nmine' ]
    [ "$(dotcloud run www cat .ssh/authorized_keys)" = $'ssh-ed25519 AAAA guest\nkey-of-the-build' ]
    dotcloud run www '[ ! -e "code/sub dir/a  file" ] && grep -q host .ssh/known_hosts'
}

@test "scale up and down" {
    dotcloud scale www=2 >&2
    [ "$(dotcloud info www --json | jq -r '.instances | keys | join(" ")')" = "shop.www.0 shop.www.1" ]
    dotcloud info www --text | grep -x '=== www.1'
    [ "$(port www.0 http)" != "$(port www.1 http)" ]
    for n in 0 1; do
        [ "$(dotcloud run www.$n jq -r .DOTCLOUD_WWW_SSH_PORT_1 environment.json)" = "$(port www.1 ssh)" ]
    done
    [ "$(dotcloud run www.1 cat kept)" = "$(dotcloud run www.0 cat kept)" ]
    refused 1 "This destroys www.1 of shop with all data. Nothing was done; say --yes" dotcloud scale www=1
    [ "$(dotcloud run www.1 echo there)" = there ]
    dotcloud scale www=1 --yes
    [ ! -e "$DOTCLOUD_HOME/apps/shop/www.1" ]
    [ "$(dotcloud run www.0 jq -r .DOTCLOUD_WWW_SSH_PORT_1 environment.json)" = null ]
    refused 1 "no such service or instance: nosuch" dotcloud scale nosuch=2
    refused 2 "www=51: a service has 0 to 50 instances" dotcloud scale www=+50
}

@test "scale to nothing and back: the service stays known, and its build" {
    kept=$(dotcloud run www cat kept)
    refused 1 "This destroys www.0 of shop with all data. Nothing was done; say --yes" dotcloud scale www=0
    dotcloud scale www=0 --yes
    [ ! -e "$DOTCLOUD_HOME/apps/shop/www.0" ]
    [ "$(dotcloud list --json | jq -c '.[0] | [.services, .state]')" = '[{"www":0},"empty"]' ]
    dotcloud ps --json | jq -e '. == [{instance: "www", process: "-", state: "STOPPED", detail: "it has no instances"}]'
    dotcloud ps www | grep -q '^www  .*STOPPED  *it has no instances$'
    [ "$(dotcloud info --json | jq -c '.services.www | [.instances, .type]')" = '[{},"custom"]' ]
    [ "$(dotcloud info www --json | jq -c '[.instances, .type, .config.version]')" = '[{},"custom",3]' ]
    dotcloud info www --text | grep -qx 'instances:       0'
    refused 1 "www has no instance; see dotcloud scale --help" dotcloud run www true
    dotcloud up
    dotcloud down www
    dotcloud env set --no-restart N=1
    dotcloud env unset --no-restart N
    # A push builds and makes none
    dotcloud push "$scene/www"
    [ "$(dotcloud info --json | jq -c .services.www.instances)" = '{}' ]
    dotcloud scale www=2
    [ "$(dotcloud run www.1 cat kept)" = "$kept" ]
    dotcloud ps www.1 --json | jq -e 'length == 3 and all(.state == "RUNNING")'
    dotcloud scale www=1 --yes
}

@test "scale --no-start makes instances that up starts" {
    before=$(dotcloud ps www.0 --json | jq -c '[.[].detail | split(",")[0]]')
    dotcloud scale www=2 --no-start
    states() { dotcloud info www --json | jq -r '[.instances[].state] | join(" ")'; }
    [ "$(states)" = "running stopped" ]
    refused 255 "www.1 does not run; start it with dotcloud up" dotcloud run www.1 true
    [ "$(port www.0 http)" != "$(port www.1 http)" ]
    dotcloud up www
    [ "$(states)" = "running running" ]
    [ "$(dotcloud ps www.0 --json | jq -c '[.[].detail | split(",")[0]]')" = "$before" ]
    dotcloud scale www=1 --yes
}

@test "a scale that is killed leaves nothing that counts" {
    there() { dotcloud info www --json | jq -r '[.instances | keys[] | split(".")[2]] | join(" ")'; }
    kill_when() {
        local pid
        (cd "$scene/here" && exec setsid "$checkout/scripts/dotcloud" scale "$2" --yes) >"$BATS_TEST_TMPDIR/out" 2>&1 3>&- &
        pid=$!
        eventually grep -qF -- "$1" "$BATS_TEST_TMPDIR/out"
        sleep "$3"
        kill -KILL -- "-$pid" 2>/dev/null || true
        wait "$pid" || true
    }
    for pause in 0 0.2 0.5; do
        kill_when "--> making www.1" www=2 "$pause"
        seen=$(there)
        [[ $seen == 0 || $seen == "0 1" ]]
        [[ $seen == 0 ]] || dotcloud up www
        dotcloud scale www=2
        [ "$(dotcloud run www.1 'echo $DOTCLOUD_SERVICE_ID')" = 1 ]
        dotcloud ps www --json | jq -e 'length == 6 and all(.state == "RUNNING")'
        kill_when "--> destroying www.1" www=1 "$pause"
        # Going or gone, and back
        dotcloud scale www=2
        [ "$(there)" = "0 1" ]
        dotcloud up www
        [ "$(dotcloud run www.1 'echo $DOTCLOUD_SERVICE_ID')" = 1 ]
        dotcloud scale www=1 --yes
        [ ! -e "$DOTCLOUD_HOME/apps/shop/www.1" ]
    done
    dotcloud run www.0 'echo mine >own'
}

@test "ps --one-off: what was started by hand, and what that has left" {
    one_offs() { dotcloud ps "$@" --one-off --json | jq -r '.[] | "\(.instance) \(.command)"'; }
    [ -z "$(one_offs www)" ]
    dotcloud run www.0 'sleep 4711' >/dev/null 2>&1 </dev/null 3>&- &
    dotcloud run www.0 'echo "a  b" | (sleep 4712; cat)' >/dev/null 2>&1 </dev/null 3>&- &
    dotcloud run www.0 'nohup sleep 4713 >/dev/null 2>&1 </dev/null &'
    three() { [ "$(one_offs www | sort)" = $'www.0 echo "a  b" | (sleep 4712; cat)\nwww.0 sleep 4711\nwww.0 sleep 4713' ]; }
    eventually three
    dotcloud ps --one-off | grep -qE '^www\.0 +[0-9]+ +[0-9-]{10}T[0-9:]{8}Z +sleep 4711$'
    dotcloud ps --one-off --json | jq -e 'all(.[]; .since | fromdate > now - 120 and fromdate <= now + 1)'
    # Programs are none, whatever happens to them
    dotcloud restart www
    three
    pid=$(dotcloud ps --one-off --json | jq '.[] | select(.command == "sleep 4713").pid')
    kill "$pid"
    for number in 4711 4712; do
        kill "$(dotcloud run www.0 "pgrep -f -n '^sleep $number'")"
    done
    eventually eval '[ -z "$(one_offs www)" ]'
}

@test "an instance in the middle can go: the others keep their numbers, and its number is the next to be given" {
    there() { dotcloud info www --json | jq -r '.instances | keys | map(split(".")[2]) | join(" ")'; }
    dotcloud scale www=3
    pids=$(dotcloud ps --json | jq -c '[.[] | select(.instance != "www.1") | .detail | split(",")[0]]')
    ports=$(port www.2 http)
    dotcloud destroy www.1 --yes
    [ "$(there)" = "0 2" ]
    [ "$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')" = "$pids" ]
    [ "$(dotcloud run www.0 'jq -r "[.DOTCLOUD_WWW_SSH_PORT_1, .DOTCLOUD_WWW_HTTP_PORT_2] | join(\" \")" environment.json')" = " $ports" ]
    refused 1 "no such service or instance: www.1" dotcloud run www.1 true
    # A push makes none that was not asked for, and deploys to those that there are
    dotcloud push "$scene/www"
    [ "$(there)" = "0 2" ]
    dotcloud scale www=2
    [ "$(there)" = "0 2" ]
    run dotcloud scale www=+1
    [[ $output == *"--> making www.1"* ]]
    [ "$(there)" = "0 1 2" ]
    [ "$(port www.2 http)" = "$ports" ]
    dotcloud destroy www.0 --yes
    [ "$(dotcloud run www 'echo $DOTCLOUD_SERVICE_ID')" = 1 ]
    dotcloud scale www=3
    [ "$(there)" = "0 1 2" ]
    dotcloud destroy www.1 --yes
    refused 1 "This destroys www.2 of shop" dotcloud scale www=1
    dotcloud scale www=1 --yes
    [ "$(there)" = 0 ]
    dotcloud run www.0 'echo mine >own'
}

@test "ps, restart, logs and list" {
    [ "$(dotcloud ps --json | jq -r '.[] | "\(.instance) \(.process) \(.state)"')" = $'www.0 sshd RUNNING\nwww.0 echo RUNNING\nwww.0 web RUNNING' ]
    before=$(dotcloud ps --json)
    dotcloud restart www.0
    after=$(dotcloud ps --json)
    # Sessions survive: sshd is the same, the programs are not
    same='[$before, $after | .[] | select(.process == $p) | .detail | split(",")[0]] | .[0] == .[1]'
    [ "$(jq -n --argjson before "$before" --argjson after "$after" --arg p sshd "$same")" = true ]
    [ "$(jq -n --argjson before "$before" --argjson after "$after" --arg p web "$same")" = false ]
    served X >/dev/null
    dotcloud logs www.0 -n 100 | grep -q '^==> www.0/home/logs/web.log <==$'
    dotcloud logs www.0 -n 100 | grep -q 'GET /X HTTP'
    timeout 20 bash -c 'cd "$scene/here" && "$checkout/scripts/dotcloud" logs --tail' >"$BATS_TEST_TMPDIR/log" 2>&1 3>&- &
    served AGAIN >/dev/null
    eventually grep -q 'GET /AGAIN HTTP' "$BATS_TEST_TMPDIR/log"
    kill $!
    dotcloud list | grep -qE '^\* shop +running +release [0-9]+ +www=1$'
}

@test "two applications do not meet" {
    directory=$scene dotcloud -A other create
    directory=$scene dotcloud push -A other "$scene/www"
    jq -n '[inputs | .services[].instances[].ports[]] | length == (unique | length)' "$DOTCLOUD_HOME"/apps/*/app.json | grep -x true
    [ "$(dotcloud -A other run www 'echo $DOTCLOUD_PROJECT; ls data 2>&1 | wc -l')" = $'other\n1' ]
    # The key of one does not open the other
    run ssh -F none -n -i "$DOTCLOUD_HOME/apps/shop/ssh/id_ed25519" -o BatchMode=yes -o IdentitiesOnly=yes \
        -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p "$(port www.0 ssh -A other)" \
        "$(dotcloud run www 'echo $USER')@127.0.0.1" true
    [ "$status" = 255 ]
    before=$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')
    directory=$scene dotcloud destroy -A other --yes
    [ "$(dotcloud ps --json | jq -c '[.[].detail | split(",")[0]]')" = "$before" ]
    [ ! -e "$scene/.dotcloud" ]
}

@test "up brings back what was killed, and down stops what runs" {
    source "$checkout/scripts/dotcloud.d/common.bash"
    source "$checkout/scripts/dotcloud.d/instance.bash"
    account_id=$(stat -c %u "$DOTCLOUD_HOME/apps/shop/www.0")
    mapfile -t pids < <(pids_below "$DOTCLOUD_HOME/apps/shop/www.0")
    ((${#pids[@]} >= 4))
    kill -KILL "${pids[@]}"
    eventually refused 255 "www.0 does not run; start it with dotcloud up" dotcloud run www true
    # This instance's alone: other tests have theirs beside it
    app_directory=$DOTCLOUD_HOME/apps/shop
    rm "$(run_directory www.0)/supervisor.sock"
    [ "$(dotcloud list --json | jq -r '.[0].state')" = stopped ]
    dotcloud up
    served X >/dev/null
    [ "$(dotcloud run www cat own)" = mine ]
    # Only what is named
    dotcloud scale www=2
    dotcloud down www.1
    states() { dotcloud info www --json | jq -r '[.instances[].state] | join(" ")'; }
    [ "$(states)" = "running stopped" ]
    refused 1 "no such service or instance: www.7" dotcloud up www.7
    dotcloud up www.1
    [ "$(states)" = "running running" ]
    dotcloud down www
    [ "$(states)" = "stopped stopped" ]
    dotcloud up www.0
    [ "$(states)" = "running stopped" ]
    dotcloud scale www=1 --yes
    dotcloud down
    [ -z "$(pids_below "$DOTCLOUD_HOME/apps/shop/www.0")" ]
    dotcloud ps --json | jq -e 'length == 3 and all(.state == "STOPPED")'
}

@test "a port that somebody else took is named at the start" {
    taken=$(port www.0 http)
    python3 -c 'import socket, sys, time
s = socket.create_server(("0.0.0.0", int(sys.argv[1])))
time.sleep(60)' "$taken" >/dev/null 2>&1 3>&- &
    eventually bash -c "(: </dev/tcp/127.0.0.1/$taken) 2>/dev/null"
    refused 1 "port $taken (http of www.0) is taken by another program" dotcloud up
    kill $!
    wait $! || true
    dotcloud restart www.0
    served X >/dev/null
}

@test "destroy leaves no process and no file" {
    refused 1 "This destroys the application shop with all data. Nothing was done; say --yes" dotcloud destroy
    # Something that left its supervisor, and a session that is open
    dotcloud run www 'setsid sleep 10000 >/dev/null 2>&1 </dev/null &'
    dotcloud run www 'sleep 10000' >/dev/null 2>&1 3>&- &
    sleep 0.5
    account_id=$(stat -c %u "$DOTCLOUD_HOME/apps/shop/www.0")
    socket_directory=$(dotcloud run www 'echo $DOTCLOUD_SOCKET_DIR')
    [ -d "$socket_directory" ]
    dotcloud destroy --yes
    [ -z "$(ls -A "$DOTCLOUD_HOME")" ]
    [ ! -e "$socket_directory" ]
    [ ! -e "$scene/here/.dotcloud" ]
    eventually nothing_runs
}
