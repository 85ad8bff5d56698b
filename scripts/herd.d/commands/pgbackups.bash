# shellcheck shell=bash disable=SC2015,SC2016,SC2034,SC2154
# Usage: herd pgbackups [--json]
# Summary: the backups of all the app's databases
#
# a001 was taken by the schedule, b001 by hand. All instances are asked at the same
# time, as each has a store of its own unless they share one in S3. One that does not
# answer is named, and does not hide the others' backups; the exit code is 4 then.
#
# Verified: when it was last restored into a throw-away server and compared.
#
# Examples:
#   herd pgbackups
#   herd pgbackups --json | jq -r '.backups[-1].id'

command_pgbackups() {
    local name backups silent
    no_arguments "$@"
    use_platform
    load_databases
    list_backups
    if [[ -n $json ]]; then
        for name in ${silent[@]+"${silent[@]}"}; do
            jq -c --arg n "$name" '{instance: $n} + .' "$work/error.$name"
        done | jq -cs --arg app "$app" --slurpfile b "$work/backups" '{app: $app, backups: $b[0], errors: .}'
    else
        if [[ $backups != "[]" ]]; then
            of_backups 'backups_text($all)'
        elif ((${#silent[@]} == 0)); then
            say "$app has no backups; herd pgbackups:capture takes one"
        fi
        warn_of_silence
        # Such as: the bytes of one are gone
        for name in $(about '.databases[].name'); do
            warnings_of "$name"
        done
    fi
    ((${#silent[@]} == 0)) || exit 4
}
