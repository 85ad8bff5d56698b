# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# One instance: its directory, its sshd and supervisord, its life and its end.
#
#   SERVICE.N/home/             HOME on the instance: a copy of the build's home
#   SERVICE.N/home/environment.json, supervisord.conf, .bash_profile, logs/
#   SERVICE.N/environment.sh    the instance's environment, for the shell
#   SERVICE.N/login, process    what sshd and supervisord start things with
#   SERVICE.N/processes/NAME    a program's command line
#   SERVICE.N/sshd_config, ssh_host_ed25519_key, authorized_keys, *.pid, sshd.log
#   /tmp/dotcloud-UID-HASH/     its sockets, as a socket's path has at most 107 bytes

run_directory() {
    local hash
    hash=$(printf %s "$app_directory/$1" | sha256sum)
    printf '/tmp/dotcloud-%s-%s' "$account_id" "${hash:0:12}"
}

# put FILE MODE: standard input becomes the file, as the account, at one stroke
put() {
    as_account / bash -c 'umask 077; cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"' put "$1" "$2" ||
        die "cannot write $1; is the disk full?"
}

# --- its files ---------------------------------------------------------------

# put_environment INSTANCE TEXT-OF-environment.json TEXT-FOR-THE-SHELL
put_environment() {
    local instance=$1 directory=$app_directory/$1
    printf '%s\n' "$2" | put "$directory/home/environment.json" 600
    {
        printf 'export %s\n' "HOME=$(printf %q "$directory/home")" "USER=$account" "LOGNAME=$account" \
            SHELL=/bin/bash LANG=C.UTF-8 "DOTCLOUD_INSTANCE_MARK=$(printf %q "$directory")" \
            "DOTCLOUD_SOCKET_DIR=$(run_directory "$instance")" \
            'PATH="$HOME/bin:$HOME/postgresql/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"'
        printf %s "$3"
    } | put "$directory/environment.sh" 600
}

# read_texts FILTER [JQ-OPTION...]: what `texts` gives, into the array $texts; it ends with "whole"
read_texts() {
    mapfile -d '' -t texts < <(query "($1), texts(\"whole\")" -j "${@:2}")
    [[ ${#texts[@]} != 0 && ${texts[-1]} == whole ]] || die "cannot read $app_directory/app.json; is it damaged?"
}

write_all_environments() {
    local instance texts there=() i
    need_facts
    for instance in ${instance_names[@]+"${instance_names[@]}"}; do
        [[ ! -d $app_directory/$instance/home ]] || there+=("$instance")
    done
    ((${#there[@]})) || return 0
    read_texts 'environment_texts($i; $a)' --arg i "${there[*]}" --arg a "$account"
    for i in "${!there[@]}"; do
        put_environment "${there[i]}" "${texts[i * 2]}" "${texts[i * 2 + 1]}"
    done
}

# Everything that the platform itself keeps in an instance; written anew at each
# start, so that an upgrade of the platform reaches it.
write_files() {
    local instance=$1 directory=$app_directory/$1 sockets name percent texts i
    sockets=$(run_directory "$instance")
    percent=${directory//%/%%}
    need_facts
    read_texts 'environment_texts($i; $a), ($i | sub("[.][0-9]+$"; "")) as $s | texts(supervisor_programs($s)),
        (.services[$s] | programs($s) | to_entries[] | texts(.key, (.value | text)))' --arg i "$instance" --arg a "$account"

    as_account / bash -c 'umask 077; mkdir -p "$1/processes" "$1/home/.ssh" "$1/home/logs" && rm -f "$1/processes/"*' \
        mkdir "$directory" || die "cannot write to $directory; is the disk full?"
    as_account / bash -c 'mkdir -m 700 "$1" 2>/dev/null || [[ -d $1 && ! -L $1 && -O $1 ]]' mkdir "$sockets" ||
        die "cannot use $sockets for the sockets of $instance; remove it, it belongs to somebody else"

    put_environment "$instance" "${texts[0]}" "${texts[1]}"
    put "$directory/authorized_keys" 600 <"$app_directory/ssh/id_ed25519.pub"

    # /etc/profile resets PATH in a login shell, so our environment comes again after it
    put "$directory/home/.bash_profile" 600 <<'END'
# Written by dotcloud; what you want to add belongs into ~/.profile
. ~/../environment.sh
if [[ -r ~/.profile ]]; then . ~/.profile; fi
END
    put "$directory/login" 700 <<'END'
#!/bin/bash
# sshd's forced command: the command line arrives as one string for bash
. ~/../environment.sh
cd || exit
command=${SSH_ORIGINAL_COMMAND:-}
unset SSH_ORIGINAL_COMMAND
[[ -n $command ]] || exec bash -l
exec bash -lc "$command"
END
    put "$directory/process" 700 <<'END'
#!/bin/bash
# supervisord's programs: process NAME
. ../environment.sh
cd || exit
exec bash -c "$(<"../processes/$1")"
END
    # HOME comes from here: no path with spaces needs to survive ForceCommand,
    # and the account's own ~/.bashrc is not read
    put "$directory/sshd_config" 600 <<END
# Written by dotcloud for $app $instance
Port ${ssh_port_of[$instance]}
ListenAddress 127.0.0.1
HostKey "$directory/ssh_host_ed25519_key"
PidFile "$directory/sshd.pid"
AuthorizedKeysFile "$percent/authorized_keys" "$percent/home/.ssh/authorized_keys"
AuthenticationMethods publickey
PasswordAuthentication no
UsePAM no
UseDNS no
# DOTCLOUD_HOME may lie below a directory that others may write to, such as /tmp
StrictModes no
PermitUserRC no
PrintMotd no
PrintLastLog no
X11Forwarding no
# A copy over several sessions opens them all at once
MaxStartups 100
MaxSessions 100
LoginGraceTime 30
ClientAliveInterval 30
ClientAliveCountMax 4
SetEnv HOME="$directory/home"
ForceCommand exec bash "\$HOME/../login"
$(for name in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server; do
        [[ ! -x $name ]] || printf 'Subsystem sftp %s\n' "$name"
    done)
END
    {
        cat <<END
; Written by dotcloud for $app $instance
[unix_http_server]
file=$sockets/supervisor.sock
chmod=0700

; Paths are relative to its working directory, the home: supervisord expands
; %(here)s twice, so a home with % in its path would break it
[supervisord]
logfile=logs/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile=../supervisord.pid
childlogdir=logs

[supervisorctl]
serverurl=unix://$sockets/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
END
        printf %s "${texts[2]}"
    } | put "$directory/home/supervisord.conf" 600
    for ((i = 3; i + 2 < ${#texts[@]}; i += 2)); do
        printf '%s\n' "${texts[i + 1]}" | put "$directory/processes/${texts[i]}" 600
    done
}

# --- its processes -------------------------------------------------------------

# daemon_pid INSTANCE sshd|supervisord: its process, if it runs. A pid file may
# outlive its process and the number may be somebody else's by now.
daemon_pid() {
    local directory=$app_directory/$1 pid configuration words=()
    case $2 in
        sshd) configuration=$directory/sshd_config ;;
        supervisord) configuration=$directory/home/supervisord.conf ;;
    esac
    read -r pid 2>/dev/null <"$directory/$2.pid" || return 1
    [[ $pid =~ ^[0-9]+$ ]] || return 1
    # Without another program: of a thousand instances it is asked twice each
    mapfile -d '' -t words 2>/dev/null <"/proc/$pid/cmdline" || return 1
    [[ "${words[*]}" == *"$configuration"* ]] || return 1
    printf '%s\n' "$pid"
}

# pids_below DIRECTORY: every process of an instance or a build: those with its
# mark in their environment, those that work below it (PostgreSQL and sshd
# overwrite their environment with their title; a terminal's shell is somebody
# looking around, not ours), and all their children. Never this command itself.
pids_below() {
    {
        sed 's/^/root /' "$1"/*.pid 2>/dev/null || true
        grep -lzxF -- "DOTCLOUD_INSTANCE_MARK=$1" /proc/[0-9]*/environ 2>/dev/null |
            sed 's|^/proc/\([0-9]*\)/.*|root \1|' || true
        find /proc/[0-9]*/cwd -maxdepth 0 -printf 'cwd %p %l\n' 2>/dev/null || true
        ps -eo pid=,ppid=,uid=,tty= | sed 's/^/ps /'
    } | directory=$1 own=$account_id self=$$ awk '
        $1 == "root" { root[$2] = 1 }
        $1 == "cwd" {
            split($2, part, "/")
            path = substr($0, length($1 $2) + 3)
            if (path == ENVIRON["directory"] || index(path, ENVIRON["directory"] "/") == 1) here[part[3]] = 1
        }
        $1 == "ps" { parent[$2] = $3; owner[$2] = $4; terminal[$2] = $5 }
        END {
            for (pid = ENVIRON["self"]; pid in parent && pid > 1; pid = parent[pid]) never[pid] = 1
            for (pid in here) if (terminal[pid] == "?") root[pid] = 1
            for (pid in parent) {
                if (owner[pid] != ENVIRON["own"]) continue
                for (up = pid; up in parent && up > 1 && !(up in root); up = parent[up]);
                if (up in root && owner[up] == ENVIRON["own"]) ours[pid] = 1
            }
            for (pid in ours) if (!(pid in never)) print pid
        }'
}

signal_below() {
    local pids
    mapfile -t pids < <(pids_below "$2")
    # As the account: whatever went wrong above, nobody else's process can be hit
    ((${#pids[@]} == 0)) || as_account / kill "-$1" "${pids[@]}" 2>/dev/null || true
    ((${#pids[@]} == 0))
}

kill_below() {
    local deadline=$((SECONDS + 3)) signal=TERM
    until signal_below "$signal" "$1"; do
        ((SECONDS < deadline)) || signal=KILL
        ((SECONDS < deadline + 15)) || die "processes below $1 cannot be killed; is a disk hanging?"
        sleep 0.1
    done
}

stop_programs() {
    local pid deadline=$((SECONDS + $2))
    if pid=$(daemon_pid "$1" supervisord); then
        as_account / kill -TERM "$pid" 2>/dev/null || true
        while daemon_pid "$1" supervisord >/dev/null; do
            if ((SECONDS >= deadline)); then
                warn "$1 does not stop within $2 seconds; killing it"
                break
            fi
            sleep 0.1
        done
    fi
}

stop_instance() {
    stop_programs "$1" "$2"
    kill_below "$app_directory/$1"
    rm -rf -- "$(run_directory "$1")"
}

instance_state() {
    local sshd=0 supervisord=0
    daemon_pid "$1" sshd >/dev/null && sshd=1
    daemon_pid "$1" supervisord >/dev/null && supervisord=1
    case $sshd$supervisord in
        11) echo running ;;
        00) echo stopped ;;
        *) echo degraded ;;
    esac
}

supervisorctl_of() {
    local home=$app_directory/$1/home
    as_account "$home" timeout "${supervisorctl_timeout:-20}" "$supervisorctl_program" \
        -c "$home/supervisord.conf" "${@:2}" </dev/null
}

# --- ssh to it -----------------------------------------------------------------

# The options of ssh to an instance, into the array $ssh_command.
ssh_to() {
    local key=${app_directory//%/%%}/ssh
    need_facts
    ssh_command=("$ssh_program" -F none -e none -p "${ssh_port_of[$1]}" -o "IdentityFile=\"$key/id_ed25519\"")
    ssh_command+=(-o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=10)
    # The post-quantum exchange costs half of a connection's time, and here nobody listens to record it
    ssh_command+=(-o "KexAlgorithms=^curve25519-sha256")
    ssh_command+=(-o "UserKnownHostsFile=\"$key/$1.known_hosts\"" -o StrictHostKeyChecking=yes)
    ssh_command+=(-o ServerAliveInterval=30 -o ServerAliveCountMax=4 "$account@127.0.0.1")
}

# --- its life ------------------------------------------------------------------

check_ports_free() {
    local name port listening
    listening=" $(listening_ports | tr '\n' ' ')"
    need_facts
    while read -r port name _; do
        [[ -z $port || $listening != *" $port "* ]] ||
            die "port $port ($name of $1) is taken by another program; stop that program, then run dotcloud -A $app up"
    done <<<"${ports_of[$1]}"
}

# Starts what does not run, and waits for it.
start_instance() {
    local instance=$1 directory=$app_directory/$1 state log
    state=$(instance_state "$instance")
    if [[ $state != running ]]; then
        # Left-overs of a half-dead instance would hold its ports
        [[ $state != stopped ]] || kill_below "$directory"
        [[ $state == degraded ]] || check_ports_free "$instance"
    fi
    write_files "$instance"
    local marker=$directory
    if ! daemon_pid "$instance" sshd >/dev/null; then
        if ! log=$(as_account "$directory" "$sshd_program" -f "$directory/sshd_config" -E "$directory/sshd.log" 2>&1 </dev/null); then
            [[ -n $log ]] || log=$(tail -n 1 "$directory/sshd.log" 2>/dev/null)
            die "sshd of $instance does not start: ${log##*$'\n'}"
        fi
    fi
    if ! daemon_pid "$instance" supervisord >/dev/null; then
        if ! log=$(as_account "$directory/home" "$supervisord_program" -c "$directory/home/supervisord.conf" 2>&1 </dev/null); then
            die "supervisord of $instance does not start: ${log%%$'\n'*}"
        fi
        # A program counts as running after a second; each question before that costs a start of Python
        sleep 1
    fi
    wait_until_ready "$instance"
}

# The last that tells why: what comes after it may be no more than tidying up
last_log_line() {
    local lines
    lines=$(as_account / tail -n 15 "$app_directory/$1/home/logs/$2.log" 2>/dev/null) || true
    grep -iE 'error:|fatal|panic|could not|cannot|no space' <<<"$lines" | tail -n 1 | grep . || tail -n 1 <<<"$lines"
}

wait_until_ready() {
    local instance=$1 deadline=$((SECONDS + start_timeout)) listen_deadline=$((SECONDS + 20)) ssh_command
    local status name state late ended ports port silent
    ssh_to "$instance"
    until timeout 10 "${ssh_command[@]}" true </dev/null >/dev/null 2>&1 8>&- 9>&-; do
        daemon_pid "$instance" sshd >/dev/null ||
            die "sshd of $instance ended: $(tail -n 1 "$app_directory/$instance/sshd.log" 2>/dev/null)"
        ((SECONDS < deadline)) ||
            die "$instance does not answer on ssh: $("${ssh_command[@]}" true 2>&1 </dev/null | tail -n 1); see $app_directory/$instance/sshd.log"
        sleep 0.1
    done

    # The programs run, and then somebody listens on each port. How long a program
    # takes until it listens is its own affair, so only a while is waited for that;
    # it may also end meanwhile.
    mapfile -t ports < <(awk '$3 == "tcp" || $3 == "http" { print $1, $2 }' <<<"${ports_of[$instance]}")
    while :; do
        # Its status is not 0 as long as one program does not run
        status=$(supervisorctl_of "$instance" status 2>&1) || true
        late=""
        ended=""
        while read -r name state _; do
            case $state in
                RUNNING | "") ;;
                EXITED | STOPPED) ended+=" $name" ;;
                FATAL) die "$name of $instance does not start: $(last_log_line "$instance" "$name")" ;;
                *) late+=" $name" ;;
            esac
        done <<<"$status"
        if [[ -n $late ]]; then
            daemon_pid "$instance" supervisord >/dev/null ||
                die "supervisord of $instance ended: $(last_log_line "$instance" supervisord)"
            ((SECONDS < deadline)) ||
                die "${late# } of $instance does not run after $start_timeout seconds: $(last_log_line "$instance" "${late##* }")"
            sleep 0.2
            continue
        fi
        for name in $ended; do
            warn "$name of $instance has ended: $(last_log_line "$instance" "$name")"
        done
        [[ -z $ended ]] || return 0
        silent=""
        for port in ${ports[@]+"${ports[@]}"}; do
            (exec 3<>"/dev/tcp/127.0.0.1/${port% *}") 2>/dev/null || silent+=" ${port#* }"
        done
        [[ -n $silent ]] || return 0
        if ((SECONDS >= listen_deadline)); then
            warn "nothing listens yet on these ports of $instance:$silent"
            return 0
        fi
        sleep 0.2
    done
}

# Restarts the programs with the environment of now.
# A supervisord whose settings are still the same goes on, and so its programs are away for a moment only.
restart_programs() {
    local settings=$app_directory/$1/home/supervisord.conf before
    say "restarting $1"
    if daemon_pid "$1" supervisord >/dev/null && daemon_pid "$1" sshd >/dev/null; then
        before=$(as_account / sha256sum "$settings")
        write_files "$1"
        if [[ $(as_account / sha256sum "$settings") == "$before" ]] &&
            supervisorctl_timeout=$stop_timeout supervisorctl_of "$1" restart all >/dev/null 2>&1; then
            wait_until_ready "$1"
            return
        fi
    fi
    stop_programs "$1" "$stop_timeout"
    start_instance "$1"
}

# The last build becomes the instance's home; what the instance itself made
# stays: nothing is deleted but from code/, and its own files are not touched.
deploy_instance() {
    local instance=$1 build=$app_directory/build/${1%.*}/home home=$app_directory/$1/home log
    log=$(as_account / bash -c '
        set -e
        umask 077
        mkdir -p "$2/.ssh"
        "$3" -a --delete "$1/code/" "$2/code/"
        # Links last: what one points to is complete by then
        "$3" -a --no-links --exclude={/code,/data,/logs,/environment.json,/supervisord.conf,/.bash_profile,/.ssh/known_hosts,/.ssh/authorized_keys} "$1/" "$2/"
        "$3" -a --exclude={/code,/data,/logs,/environment.json,/supervisord.conf,/.bash_profile,/.ssh/known_hosts,/.ssh/authorized_keys} "$1/" "$2/"
        if [[ -f $1/.ssh/authorized_keys ]]; then
            touch "$2/.ssh/authorized_keys"
            # A last line without its end must not swallow the next one
            [[ -z $(tail -c 1 "$2/.ssh/authorized_keys") ]] || echo >>"$2/.ssh/authorized_keys"
            while IFS= read -r line; do
                grep -qxF -- "$line" "$2/.ssh/authorized_keys" || printf "%s\n" "$line" >>"$2/.ssh/authorized_keys"
            done <"$1/.ssh/authorized_keys"
        fi' deploy "$build" "$home" "$rsync_program" 2>&1) ||
        die "cannot copy the build to $instance: ${log%%$'\n'*}"
}

# add_instances SERVICE COUNT [FILTER]: until there are that many; writes them into the state with their ports (and what
# else the filter says). They have the lowest free numbers, and count as half made until start_new_instances is through with
# them; should we be killed before, the next command removes what is incomplete (remove_incomplete).
add_instances() {
    local service=$1 count=$2 taken number new=()
    need_facts
    taken=" ${instance_names[*]} ${incomplete_names[*]} "
    for ((number = 0; $(instances "$service" | wc -l) + ${#new[@]} < count; number++)); do
        [[ $taken == *" $service.$number "* ]] || new+=("$number")
    done
    for number in ${new[@]+"${new[@]}"}; do half_made+=" $service.$number"; done
    update_with_ports "$service" \
        ".services[\$s].instances += (\$new | split(\" \") | map({(.): {created_at: now, ports: {}, incomplete: true}}) | add // {}) | ${3:-.}" \
        "${#new[@]}" --arg new "${new[*]}" --argjson count "$count"
}

# start_new_instances [NO-START]: 1 makes them only
start_new_instances() {
    local instance needed free build
    for instance in $half_made; do
        say "making $instance"
        build=$app_directory/build/${instance%.*}/home
        needed=$(du -sk "$build" | cut -f1)
        free=$(df -Pk "$app_directory" | awk 'NR == 2 { print $4 }')
        ((free > needed)) ||
            die "no room for $instance: it needs $needed KB and $DOTCLOUD_HOME has $free KB; free some space"
        make_directory "$app_directory/$instance" || die "cannot make $app_directory/$instance; is the disk full?"
        as_account / mkdir -m 700 "$app_directory/$instance/home" || die "cannot make the home of $instance; is the disk full?"
        as_account / "$ssh_keygen_program" -q -t ed25519 -N "" -C "$app $instance" -f "$app_directory/$instance/ssh_host_ed25519_key" ||
            die "cannot write the host key of $instance; is the disk full?"
        printf '[127.0.0.1]:%s %s\n' "${ssh_port_of[$instance]}" \
            "$(<"$app_directory/$instance/ssh_host_ed25519_key.pub")" >"$app_directory/ssh/$instance.known_hosts" ||
            die "cannot write to $app_directory/ssh; is the disk full?"
        deploy_instance "$instance"
        ((${1:-0})) || start_instance "$instance"
        update 'del(.services[$s].instances[$n].incomplete)' --arg s "${instance%.*}" --arg n "${instance##*.}"
        half_made=${half_made/ $instance/}
    done
}

# A directory that belongs to the account, below one that belongs to us
make_directory() {
    if ((EUID == 0)); then
        install -d -m 700 -o "$account_id" -g "$account_group" -- "$1"
    else
        install -d -m 700 -- "$1"
    fi
}

remove_instance() {
    local instance=$1
    update '.services[$s].instances[$n].incomplete = true' --arg s "${instance%.*}" --arg n "${instance##*.}"
    stop_programs "$instance" 15
    stop_instance "$instance" 1
    rm -rf -- "${app_directory:?}/$instance"
    rm -f -- "$app_directory/ssh/$instance.known_hosts"
    update 'del(.services[$s].instances[$n])' --arg s "${instance%.*}" --arg n "${instance##*.}"
}

# side_by_side FUNCTION [each]: of each instance in $chosen; those of a service one after the other, so that it goes on
# meanwhile, and the services at the same time; with "each" all, as many at a time as make sense
side_by_side() {
    local function=$1 group instance job jobs=() failed=0
    while read -r group; do
        [[ -n $group ]] || continue
        while (($(jobs -rp | wc -l) >= 8)); do sleep 0.05; done
        (
            for instance in "${chosen[@]}"; do
                [[ $instance != "$group" && ${instance%.*} != "$group" ]] || "$function" "$instance"
            done
        ) </dev/null &
        jobs+=($!)
    done < <(printf '%s\n' ${chosen[@]+"${chosen[@]}"} | if [[ -n ${2:-} ]]; then cat; else sed 's/\.[^.]*$//' | sort -u; fi)
    for job in ${jobs[@]+"${jobs[@]}"}; do
        wait "$job" || failed=1
    done
    return "$failed"
}

# What a command that was killed has half made or half removed
remove_incomplete() {
    local instance left
    need_facts
    left=(${incomplete_names[@]+"${incomplete_names[@]}"})
    for instance in ${left[@]+"${left[@]}"}; do
        warn "$instance was left half made or half removed, and goes"
        remove_instance "$instance"
    done
    ((${#left[@]} == 0)) || write_all_environments
}

# one_offs INSTANCE: what runs there that its supervisord has not started: commands of `dotcloud run`, and what they have
# left. PID, SINCE and COMMAND of each, without its children.
one_offs() {
    local directory=$app_directory/$1 pid since now words command
    now=$(date +%s)
    {
        for pid in $(daemon_pid "$1" supervisord) $(daemon_pid "$1" sshd); do printf 'ours %s\n' "$pid"; done
        pids_below "$directory" | sed 's/^/below /'
        ps -eo pid=,ppid=,etimes=,comm= | sed 's/^/ps /'
    } | awk '
        $1 == "ours" { root[$2] = 1 }
        $1 == "below" { below[$2] = 1 }
        $1 == "ps" { parent[$2] = $3; age[$2] = $4; sshd[$2] = $5 ~ /^sshd/ }
        # sshd has a process of its own for each session
        function session(pid) { return (pid in below) && sshd[pid] && ((parent[pid] in root) || session(parent[pid])) }
        END {
            for (pid in below) {
                if ((pid in root) || !(pid in parent) || session(pid)) continue
                up = parent[pid]
                if ((up in below) && !session(up)) continue
                print pid, age[pid]
            }
        }' | sort -n | while read -r pid since; do
        # bash, -lc, COMMAND; bash itself gives way to a simple one
        mapfile -d '' -t words 2>/dev/null <"/proc/$pid/cmdline" || continue
        ((${#words[@]})) || continue
        command="${words[*]}"
        [[ ${words[0]} != bash || ${words[1]:-} != -lc || ${#words[@]} != 3 ]] || command=${words[2]}
        printf '%s\t%s\t%s\n' "$pid" "$(date -u -d "@$((now - since))" +%Y-%m-%dT%H:%M:%SZ)" "$(tr '[:cntrl:]' ' ' <<<"$command" | sed 's/ $//')"
    done
}
