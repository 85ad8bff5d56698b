# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# What every command needs: messages, settings, the account that instances run
# as, and the programs that the platform is made of.

die() {
    printf 'dotcloud: %s\n' "$1" >&2
    exit "${2:-1}"
}

usage_error() {
    die "$1" 2
}

warn() {
    printf 'dotcloud: %s\n' "$*" >&2
}

say() {
    printf -- '--> %s\n' "$*"
}

# The comment block at the top of a file is its help.
show_help() {
    awk '/^#!|^# shellcheck/ { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$1"
}

show_main_help() {
    local line file summary
    show_help "$program_file" | while IFS= read -r line; do
        if [[ $line != *@COMMANDS@* ]]; then
            printf '%s\n' "$line"
            continue
        fi
        for file in "$library"/commands/*.bash; do
            summary=$(sed -n 's/^# Summary: //p' "$file")
            file=${file##*/}
            printf '  %-9s %s\n' "${file%.bash}" "$summary"
        done
        printf '\n'
    done
}

read_settings() {
    umask 022
    if [[ -z ${DOTCLOUD_HOME:-} ]]; then
        if ((EUID == 0)); then
            DOTCLOUD_HOME=/var/lib/dotcloud
        else
            DOTCLOUD_HOME=${XDG_DATA_HOME:-$HOME/.local/share}/dotcloud
        fi
    fi
    [[ $DOTCLOUD_HOME == /* ]] || DOTCLOUD_HOME=$PWD/$DOTCLOUD_HOME
    DOTCLOUD_HOME=${DOTCLOUD_HOME%/}
    # sshd's and supervisord's settings have no way to quote these
    [[ $DOTCLOUD_HOME != *[[:cntrl:]\"\\]* ]] ||
        die "DOTCLOUD_HOME holds a quote, backslash or control character; choose another directory"
    # sshd and supervisord cope with long paths, PostgreSQL's own limit is 1024
    ((${#DOTCLOUD_HOME} <= 700)) || die "DOTCLOUD_HOME is longer than 700 bytes; choose a shorter path"
    port_range=${DOTCLOUD_PORTS:-20000-31999}
    if ! [[ $port_range =~ ^([0-9]{4,5})-([0-9]{4,5})$ ]] ||
        ((BASH_REMATCH[1] < 1024 || BASH_REMATCH[1] > BASH_REMATCH[2] || BASH_REMATCH[2] > 65535)); then
        die "DOTCLOUD_PORTS=$port_range is not a range of ports; use for example 20000-31999"
    fi
    read_seconds start_timeout DOTCLOUD_START_TIMEOUT 60
    read_seconds stop_timeout DOTCLOUD_STOP_TIMEOUT 120
    read_seconds build_timeout DOTCLOUD_BUILD_TIMEOUT 3600
    read_seconds lock_timeout DOTCLOUD_LOCK_TIMEOUT 300
}

# read_seconds VARIABLE SETTING DEFAULT
read_seconds() {
    local value=${!2:-$3}
    [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || die "$2=$value is not a number of seconds; use for example $3"
    printf -v "$1" %s "$value"
}

# The program's full name in the variable NAME_program (dashes as underscores).
# sbin is searched too, as it is not in an ordinary user's PATH.
need() {
    local name found package
    for name; do
        if ! found=$(PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin type -P "$name"); then
            case $name in
                sshd) package=openssh-server ;;
                ssh | ssh-keygen) package=openssh-client ;;
                supervisord | supervisorctl) package=supervisor ;;
                flock | setpriv) package=util-linux ;;
                *) package=$name ;;
            esac
            die "the program $name is missing; install it, for example: apt-get install $package"
        fi
        printf -v "${name//-/_}_program" %s "$found"
    done
}

need_everything() {
    need jq yq flock ssh ssh-keygen sshd supervisord supervisorctl rsync tar
}

# Whom instances run as: account, account_id, account_group.
need_account() {
    local shell
    if ((EUID != 0)); then
        account=$(id -un)
        [[ -z ${DOTCLOUD_USER:-} || $DOTCLOUD_USER == "$account" ]] ||
            die "only root can run instances as $DOTCLOUD_USER; unset DOTCLOUD_USER or become root"
    else
        need setpriv
        account=${DOTCLOUD_USER:-dotcloud}
        if ! getent passwd "$account" >/dev/null; then
            say "making the system account $account, which instances run as"
            useradd --system --create-home --home-dir "/home/$account" --shell /bin/bash -- "$account" ||
                die "cannot make the account $account; make it yourself or name another in DOTCLOUD_USER"
        fi
    fi
    account_id=$(id -u -- "$account")
    account_group=$(id -g -- "$account")
    if ((EUID == 0)); then
        ((account_id != 0)) || die "instances do not run as root; name an unprivileged account in DOTCLOUD_USER"
        shell=$(getent passwd "$account" | cut -d: -f7)
        [[ -x $shell && $shell != */nologin && $shell != */false ]] ||
            die "the account $account has no login shell, which sshd needs; name another account in DOTCLOUD_USER"
    fi
}

# as_account DIRECTORY COMMAND...: as the instances' account, with nothing of
# the caller's environment. The locks (descriptors 8 and 9) stay with us: a
# daemon that inherited one would hold it for ever.
as_account() {
    local directory=$1 drop=()
    shift
    if ((EUID == 0)); then
        drop=("$setpriv_program" "--reuid=$account_id" "--regid=$account_group" --init-groups --)
    fi
    ${drop[@]+"${drop[@]}"} env -i -C "$directory" \
        "HOME=$directory" "USER=$account" "LOGNAME=$account" SHELL=/bin/bash LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin \
        ${marker:+"DOTCLOUD_INSTANCE_MARK=$marker"} "$@" 8>&- 9>&-
}

# A destructive step: asks on a terminal, wants --yes without one.
confirm() {
    local question=$1 yes=$2 answer
    ((yes)) && return
    [[ -t 0 && -t 2 ]] || die "$question Nothing was done; say --yes to agree" 1
    read -r -p "$question [y/N] " answer || answer=""
    [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || die "nothing was done"
}

# What must be undone when a command ends early: instances that are not through
# start_new_instances yet, and a build that still runs.
half_made=""
building=""
cleanup() {
    local status=$? instance
    trap - EXIT
    trap '' INT TERM
    set +e
    [[ -z $building ]] || (kill_below "$building")
    if [[ -n $half_made ]]; then
        for instance in $half_made; do
            (remove_instance "$instance")
        done
        (write_all_environments)
        warn "not made, and gone again:$half_made"
    fi
    exit "$status"
}

upper_name() {
    local name=${1^^}
    printf %s "${name//[^A-Z0-9]/_}"
}
