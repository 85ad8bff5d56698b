# Owns what bench/scale prints: the tables, and their place in docs/performance.md.
# shellcheck shell=bash disable=SC2154 # part of bench/scale, which sets the rest

declare -A unit=([relations]=relations [sparse]=GB [segments]=GB [herd]=instances)

# told CASE: its table. How often the CPU seconds of the size before stands in the last column.
told() {
    echo "$(nproc) processors, loopback, one run each, beside other work$([ "$1" = herd ] || echo ", PostgreSQL 15")"
    echo
    if [ "$1" = herd ]; then
        echo "| ${unit[$1]} | platform | seconds | CPU seconds | peak MB of one process | most processes | most descriptors of herd | CPU by that of the size before |"
    else
        echo "| ${unit[$1]} | | seconds | … until durable | CPU seconds, target | … source | peak MB, target | … source | most descriptors, target | … source | MB on the line | MB on the disk | CPU by that of the size before |"
    fi
    awk -F '|' -v herd="$([ "$1" = herd ] && echo yes)" '
        function column(value) { printf " %s |", value }
        NR == 1 { printf "|"; for (i = 0; i < (herd ? 8 : 13); i++) printf "---|"; print "" }
        {
            split($3, v, " ")
            printf "|"; column($1); column($2); column(v[1])
            if (herd) { cpu = v[2]; column(v[2]); column(sprintf("%.0f", v[3] / 1024)); column(v[4]); column(v[5]) }
            else {
                cpu = v[3] + v[4]; column(v[2]); column(v[3]); column(v[4])
                column(sprintf("%.0f", v[5] / 1024)); column(sprintf("%.0f", v[6] / 1024)); column(v[7]); column(v[8])
                column(sprintf("%.1f", v[9])); column(v[10])
            }
            column(($2 in before) && before[$2] > 0 ? sprintf("%.1f ×, of %.0f × the size", cpu / before[$2], $1 / size[$2]) : "")
            print ""
            before[$2] = cpu; size[$2] = $1
        }' "$tables/$1"
}

# tell CASE: prints its table, and puts it into the page
tell() {
    told "$1" | tee "$tables/told"
    [ -n "$write" ] || return 0
    put_table "scale $1" "$tables/told"
}
