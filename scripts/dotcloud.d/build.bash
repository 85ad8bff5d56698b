# shellcheck shell=bash disable=SC2016,SC2034,SC2154
# From a pushed directory to a build: what dotcloud.yml says, which files go
# along, and the run of the build script.
#
#   build/SERVICE/home  HOME of the last good build; instances are copies of it
#   build/SERVICE/next  the same while the build script runs: a failed build
#                       leaves no trace in what `scale` deploys
#
# Both are the home of the *service*: an SSH key or a password that the build
# makes is there again at the next push. As the path differs from an instance's,
# a build must not write absolute paths into its files.

# read_spec DIRECTORY: the checked contents of its dotcloud.yml in $spec
read_spec() {
    local file=$1/dotcloud.yml log mistake
    [[ -f $file ]] || die "$file: there is no such file; name a directory that has one"
    [[ -r $file ]] || die "$file: cannot be read; look at its permissions"
    log=$(yq --version 2>&1) || true
    [[ $log != *mikefarah* ]] || die "this yq is not the one that wraps jq; install that one, for example: apt-get install yq"
    if ! log=$(yq -c . "$file" 2>&1); then
        log=${log#*Error running jq: }
        die "$file: invalid YAML: $(tr -s ' \n' '  ' <<<"${log//\"<stdin>\", /}" | sed 's/ $//')"
    fi
    # More than one document, or nothing but comments
    [[ -n $log && $log != *$'\n'* ]] || die "$file: it must be one map of service names to settings"
    spec=$log
    mistake=$(jq -r -L "$library" 'include "dotcloud"; [mistakes][0] // empty' <<<"$spec") ||
        die "$file: cannot be understood; compare it with the example"
    [[ -z $mistake ]] || die "$file: $mistake"
    check_paths "$1" "$file"
}

check_paths() {
    local service key path
    while IFS=$'\t' read -r service key path; do
        [[ $path != /* && /$path/ != */../* ]] || die "$2: service $service: $key: $path is outside of the directory"
        case $key in
            buildscript) [[ -f $1/$path ]] || die "$2: service $service: there is no buildscript $path" ;;
            approot) [[ -d $1/$path ]] || die "$2: service $service: there is no directory $path (approot)" ;;
        esac
    done < <(jq -r 'to_entries[] | .key as $s | .value | (("buildscript", "approot") as $k | select(.[$k]) | [$s, $k, .[$k]]) | @tsv' <<<"$spec")
}

# code_files DIRECTORY: what is pushed, NUL after each: in a git checkout what
# git does not ignore, else everything; never target/ (a build's output) or .git.
code_files() {
    local file
    if [[ $(git -c safe.directory='*' -C "$1" ls-files -co --exclude-standard -- dotcloud.yml 2>/dev/null) == dotcloud.yml ]]; then
        git -c safe.directory='*' -C "$1" ls-files -z -co --exclude-standard
    else
        find "$1" -mindepth 1 \( -name .git -o -path "$1/target" -o -path "$1/.dotcloud" \) -prune \
            -o \( ! -type d -o -empty \) -printf '%P\0'
    fi | sort -zu | while IFS= read -r -d '' file; do
        [[ /$file/ != */.git/* && $file != target/* && $file != .dotcloud/* ]] || continue
        # git lists a file that was deleted but not yet committed
        [[ ! -e $1/$file && ! -L $1/$file ]] || printf '%s\0' "$file"
    done
}

# Extra files of a service (`include:` in dotcloud.yml), which git may ignore: a
# map of paths in the code to candidates. $NAME is a path from the caller's
# environment, anything else a pattern whose newest match is taken; the first
# candidate that gives a file wins. None is fine: the build script knows better
# what to say about it.
stage_includes() {
    local directory=$1 service=$2 code=$3 path candidate match file newest
    local -A found=()
    while IFS=$'\t' read -r path candidate; do
        [[ -z ${found[$path]:-} ]] || continue
        newest=""
        if [[ $candidate =~ ^\$([A-Za-z_][A-Za-z0-9_]*)$ ]]; then
            newest=${!BASH_REMATCH[1]:-}
            [[ -n $newest ]] || continue
            [[ -f $newest ]] || die "${candidate#\$}=$newest: there is no such file"
        else
            while IFS= read -r match; do
                [[ -f $directory/$match ]] || continue
                if [[ -z $newest || $directory/$match -nt $newest ]]; then newest=$directory/$match; fi
            done < <(cd "$directory" && compgen -G "$candidate")
        fi
        [[ -n $newest ]] || continue
        file=$code/$path
        as_account / bash -c 'umask 022; mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"' include \
            "$file" "$([[ -x $newest ]] && echo 755 || echo 644)" <"$newest" ||
            die "cannot copy $newest to the build; is the disk full?"
        found[$path]=1
    done < <(jq -r '.[$s].include // {} | to_entries[] | .key as $k | .value[] | [$k, .] | @tsv' --arg s "$service" <<<"$spec")
}

# build_service DIRECTORY SERVICE: fills build/SERVICE/next
build_service() {
    local directory=$1 service=$2 build=$app_directory/build/$2 log name script approot status=0
    script=$(jq -r '.[$s].buildscript // empty' --arg s "$service" <<<"$spec")
    approot=$(jq -r '.[$s].approot // "."' --arg s "$service" <<<"$spec")
    say "building $service"
    mkdir -p "$app_directory/build"
    [[ -d $build ]] || make_directory "$build" || die "cannot make $build; is the disk full?"
    log=$(as_account "$build" bash -c '
        umask 077
        rm -rf next message
        if [[ -d home ]]; then cp -a --reflink=auto home next; else mkdir next; fi &&
            rm -rf next/code && mkdir next/code' prepare 2>&1) ||
        die "cannot prepare the build of $service: ${log%%$'\n'*}"
    log=$( (code_files "$directory" | tar -C "$directory" --no-recursion --null -cf - -T - |
        as_account "$build/next/code" tar -xf -) 2>&1) ||
        die "cannot copy the code to the build of $service: ${log%%$'\n'*}"
    stage_includes "$directory" "$service" "$build/next/code"
    [[ -n $script ]] || return 0

    {
        printf 'export %s\n' "HOME=$(printf %q "$build/next")" SHELL=/bin/bash LANG=C.UTF-8 \
            "DOTCLOUD_PUSH_MESSAGE=$(printf %q "$build/message")" \
            "SERVICE_APPROOT=$(printf %q "$build/next/code/$approot")"
        while read -r name; do
            [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
        done < <(jq -r '.[$s].build_environment // [] | .[]' --arg s "$service" <<<"$spec")
        jq --slurpfile spec <(printf %s "$spec") '.services = ($spec[0] | map_values({spec: .}))' "$app_directory/app.json" |
            jq -r -L "$library" --arg s "$service" 'include "dotcloud"; del(.services[$s].spec.approot) | build_environment($s)'
    } | put "$build/environment.sh" 600

    building=$build
    marker=$build as_account "$build/next" timeout --foreground --kill-after=10 "$build_timeout" bash -c '
        . "$1"
        cd "$SERVICE_APPROOT" || exit
        if [[ -x $2 ]]; then exec "$2"; else exec bash "$2"; fi' \
        build "$build/environment.sh" "$build/next/code/$script" </dev/null || status=$?
    kill_below "$build"
    building=""
    ((status != 124)) || die "the build of $service did not end within $build_timeout seconds; what runs is as it was"
    ((status == 0)) || die "the build of $service failed: $script exited with $status; what runs is as it was"
}

# Every service is built: from here on these builds are the ones that count.
accept_build() {
    as_account "$app_directory/build/$1" bash -c '
        rm -rf old && if [[ -d home ]]; then mv home old; fi && mv next home && rm -rf old' accept ||
        die "cannot put the build of $1 in place; run dotcloud push again"
}
