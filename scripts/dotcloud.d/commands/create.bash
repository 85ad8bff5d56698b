# shellcheck shell=bash disable=SC2016,SC2154
# Usage: dotcloud create APP
# Summary: make an application, and remember it for this directory
#
# The name is remembered in ./.dotcloud/config, which git ignores, so that the
# other commands need no -A here. An application that exists already is only
# remembered with `dotcloud create --link APP`.
#
# Example:
#   dotcloud create shop

command_create() {
    local link=0
    if [[ ${1:-} == --link ]]; then
        link=1
        shift
    fi
    [[ ${1:-} != -* ]] || usage_error "unknown option $1; see dotcloud create --help"
    app=${1:-$app_option}
    [[ $# -le 1 && -n $app ]] || usage_error "create wants one name, for example: dotcloud create shop"
    check_app_name
    need_everything
    app_directory=$DOTCLOUD_HOME/apps/$app
    if ((link)); then
        [[ -f $app_directory/app.json ]] || die "no such application: $app; see dotcloud list"
    else
        need_account
        make_app
    fi
    remember_app
}

make_app() {
    mkdir -p "$DOTCLOUD_HOME/apps" || die "cannot write to $DOTCLOUD_HOME; name another directory in DOTCLOUD_HOME"
    # An account that owned this directory could swap what is below it
    [[ $EUID != 0 || $(stat -c %u "$DOTCLOUD_HOME") == 0 ]] || chown 0:0 "$DOTCLOUD_HOME"
    as_account / test -x "$DOTCLOUD_HOME/apps" ||
        die "the account $account cannot reach $DOTCLOUD_HOME; name another directory in DOTCLOUD_HOME"
    lock_home
    [[ ! -f $app_directory/app.json ]] || die "the application $app exists already; choose another name, or use dotcloud create --link $app"
    # app.json comes last: without it there is no application
    rm -rf -- "${app_directory:?}"
    if ! (
        set -e
        mkdir "$app_directory"
        mkdir -m 700 "$app_directory/ssh"
        "$ssh_keygen_program" -q -t ed25519 -N "" -C "dotcloud $app" -f "$app_directory/ssh/id_ed25519"
        umask 077
        jq -n --arg name "$app" '{name: $name, created_at: now, release: 0, env: {}, services: {}}' >"$app_directory/app.json.new"
        mv "$app_directory/app.json.new" "$app_directory/app.json"
    ); then
        rm -rf -- "${app_directory:?}"
        die "cannot write to $app_directory; is the disk full?"
    fi
    unlock_home
    say "made the application $app"
}

remember_app() {
    if ! { mkdir -p .dotcloud && printf '*\n' >.dotcloud/.gitignore &&
        jq -n --arg name "$app" '{application: $name}' >.dotcloud/config; } 2>/dev/null; then
        die "cannot write $PWD/.dotcloud/config; name the application with -A $app"
    fi
}
