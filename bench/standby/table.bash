# Owns what bench/run prints: the table, its plot, and their place in docs/performance.md.
# shellcheck shell=bash disable=SC2154 # part of bench/run, which sets the rest

# column N NAME: the median of a column of its results
column() { cut -d' ' -f"$1" "$work/results/$2" | median; }
# by A B: their ratio
by() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f ×", a / b }'; }
# against NAME OTHER: its seconds by the other's
against() { by "$(column 1 "$1")" "$(column 1 "$2")"; }
measured() { find "$work/results" -type f ! -name '*.own' -printf '%f\n' | sort; }

heading() {
    local data="pgbench's tables"
    [ "$noise" = 0 ] || data=noise
    [ "$files" = 0 ] || data="$data and $files empty files"
    echo "$(du -sm --apparent-size --exclude=pg_wal "$work/a/data" | cut -f1) MB of $data, $(nproc) processors, ${link:-loopback}${memory:+, a disk in memory}," \
        "medians of $runs, PostgreSQL $("$pg/postgres" --version | grep -o '[0-9.]*' | head -n 1)"
    echo
}

returned() {
    local name
    heading
    echo '| | seconds | CPU seconds | MB on the line | peak MB |'
    echo '|---|---|---|---|---|'
    for name in $(measured); do
        echo "| $name | $(column 1 "$name") | $(column 2 "$name") | $(column 3 "$name") | $(column 4 "$name") |"
    done
    echo
    echo "- An old primary that comes back, streaming again: $(against comes-back pg_rewind) of pg_rewind, which stops before" \
        "the server's start; $(against comes-back comes-back-paranoid) of comparing everything."
    echo "- Interrupted at 90 % and run again: $(against interrupted full) of a full copy."
    echo "- From the command to the first write: $(against promote pg_promote) of pg_promote()."
    awk -v a="$(median <"$work/tps.alone")" -v b="$(median <"$work/tps.limited")" -v c="$(median <"$work/tps.checkpoint")" -v r="$max_rate" 'BEGIN {
        printf "- pgbench on the primary, %.0f transactions per second alone: %.0f %% during a copy with --max-rate %s (%.0f);", a, b / a * 100, r, b
        printf " %.0f %% after a checkpoint as every base backup begins with, without a copy (%.0f).\n", c / a * 100, c
    }'
}

copied() {
    local name kind seconds
    heading
    echo '| | seconds | pgmahout, streaming | pgmahout, durable | CPU seconds | MB on the line | peak MB |'
    echo '|---|---|---|---|---|---|---|'
    for name in $(measured); do
        kind=pgmahout
        [[ $name != delta-* ]] || kind=delta-pgmahout
        seconds=$(column 1 "$name")
        echo "| $name | $seconds | $(by "$(column 1 "$kind")" "$seconds") |" \
            "$(by "$(cut -f1 "$work/results/$kind.own" | median)" "$seconds") |" \
            "$(column 2 "$name") | $(column 3 "$name") | $(column 4 "$name") |"
    done
}

# A bar for the seconds of each; what is not pgmahout is paler.
plot() {
    local name
    for name in $(measured); do echo "$name $(column 1 "$name")"; done | awk -v title="$mark" '
        { name[NR] = $1; seconds[NR] = $2; if ($2 > most) most = $2 }
        END {
            printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", NR * 20 + 34
            print "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
            printf "<text x=\"8\" y=\"18\" font-weight=\"bold\">%s: seconds</text>\n", title
            for (i = 1; i <= NR; i++) {
                y = 10 + i * 20
                printf "<text x=\"160\" y=\"%d\" text-anchor=\"end\">%s</text>\n", y + 12, name[i]
                printf "<rect x=\"168\" y=\"%d\" width=\"%.0f\" height=\"15\" fill=\"%s\"/>\n", y, seconds[i] / most * 400,
                    name[i] ~ /pgmahout|comes-back|full|interrupted|repoint|^promote/ ? "#33658a" : "#b8c4cc"
                printf "<text x=\"%.0f\" y=\"%d\">%s</text>\n", 173 + seconds[i] / most * 400, y + 12, seconds[i]
            }
            print "</svg>"
        }'
}

tell() {
    local mark picture
    mark="$([ "$noise" = 0 ] && echo pgbench || echo noise)"
    [ "$files" = 0 ] || mark="$files files"
    [ -z "$returns" ] || mark=returns
    mark="$mark ${link:-loopback}${memory:+ memory}"
    picture="performance-${mark//[ ,]/-}.svg"
    { if [ -n "$returns" ]; then returned; else copied; fi; } | tee "$work/table"
    [ -n "$write" ] || return 0
    plot >"docs/$picture"
    printf '\n![%s](%s)\n' "$mark" "$picture" >>"$work/table"
    put_table "$mark" "$work/table"
}
