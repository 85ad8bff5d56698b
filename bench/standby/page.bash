# Owns how a table gets into docs/performance.md.
# shellcheck shell=bash

# put_table MARK FILE: between the lines <!-- MARK --> and <!-- end --> of the page, in place of what stands there
put_table() {
    local page=docs/performance.md new
    grep -qxF "<!-- $1 -->" "$page" || { echo "$page has no place for \"$1\"" >&2 && exit 1; }
    new=$(awk -v begin="<!-- $1 -->" -v end="<!-- end -->" -v table="$2" '
        $0 == begin { print; print ""; while ((getline l < table) > 0) print l; print ""; skip = 1; next }
        skip && $0 == end { skip = 0 }
        !skip { print }' "$page")
    printf '%s\n' "$new" >"$page"
}
