# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pg:unfollow DB [--confirm APP] [--json]
# Summary: make a follower an independent, writable database
#
# It keeps what it has received and follows no more; its primary goes on. That
# cannot be undone but by copying anew (herd pg:follow). The app's name has to be
# typed, or given with --confirm.
#
# Example:
#   herd pg:unfollow WHITE

command_pg_unfollow() {
    local target name source address report
    (($# == 1)) && [[ $1 != -* ]] || usage_error "which follower?"
    use_platform
    load_databases
    resolve "$1" target
    ask_all "$target"
    must_answer "$target"
    [[ $(info "$target" .role) == standby ]] || die 1 "$(label "$target") follows no database" "herd pg:info shows all roles"
    name=$(info "$target" .instance)
    address=$(info "$target" '.following.primary // ""')
    source=$(by_address "$address")
    confirm_app "$(label "$target") would become writable and no longer follow" \
        "$(label "$target") will become writable and no longer" \
        "follow ${source:+$(label "$source") on }$address. This cannot be undone."
    doing "Unfollowing"
    report=$(agent "$longest" "$target" promote --confirm "$name" </dev/null 2>/dev/null) || {
        not_done
        die_of "$target"
    }
    done_with
    # Its slot would keep WAL on the primary for ever
    if [[ -n $source ]] && ! ask "$source" forget "$name" >/dev/null; then
        warn "the slot of $target may still be on $(label "$source"): $(jq -r .message "$work/error.$source")"
        warn "when that one answers: herd pg:info $source shows it, and pgmahout forget $name there drops it"
    fi
    [[ -z $json ]] || printf '%s\n' "$report"
}
