# Pure facts about an app's databases: names, attachments, texts.

# What somebody else wrote, as a part of a line: nothing that ends it or that a terminal obeys, such as a change of the
# direction of writing (Cf)
def one_line: gsub("[[:cntrl:]\\p{Cf}\\p{Zl}\\p{Zp}]+"; " ");

# "host:port" of a URL, as the platform writes addresses
def address:
    [capture("^[a-z]+://(?:[^@/]*@)?(?<h>\\[[^]]*\\]|[^:/?#]+)(?::(?<p>[0-9]+))?")][0] as $m
    | if $m then "\($m.h | ascii_downcase):\($m.p // "5432")" else null end;

def colour: [capture("^HEROKU_POSTGRESQL_(?<c>[A-Z][A-Z0-9_]*?)_URL$").c][0];

# config-list's answer and the lines of `instances`
def databases($app; $instances):
    . as $all
    | [.config | to_entries[] | {colour: (.key | colour), address: (.value | address), name: .key}
       | select(.colour or .name == "DATABASE_URL")] as $urls
    | [$instances | split("\n")[] | select(. != "") | split("\t")
       | {name: .[0], state: .[1], address: .[2]}
       | (.address | ascii_downcase) as $a
       | . + {attachments: [$urls[] | select(.colour and .address == $a) | .colour],
              current: ([$urls[] | select(.name == "DATABASE_URL" and .address == $a)] != [])}] as $databases
    | {app: $app, release: .release, config: .config, databases: $databases,
       strays: [$urls[] | select(.address as $a | [$databases[] | select((.address | ascii_downcase) == $a)] == []) | .name]};

# What a database may be called
def names: [.attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"] + [.name];
def attachment: names[0];
def title: if .current then "\(attachment) (DATABASE_URL)" else attachment end;

# What stands behind the address of a URL: the database, and how to connect
def tail: sub("^[a-z]+://([^@/]*@)?[^/?#]*"; "");

# The URL of an attachment of that instance: that of the name, else one like DATABASE_URL, else the first
def url_of($name; $wanted):
    . as $all
    | ($wanted | ascii_upcase | ltrimstr("HEROKU_POSTGRESQL_") | sub("_URL$"; "")) as $c
    | [.databases[] | select(.name == $name) | .attachments[] | {colour: ., url: $all.config["HEROKU_POSTGRESQL_\(.)_URL"]}] as $urls
    | ([$urls[] | select(.colour == $c)][0]
        // [$urls[] | select(.url | tail == ($all.config.DATABASE_URL // "" | tail))][0]
        // $urls[0] // empty).url;

# The config variable with the URL of that instance: the one that was named, else DATABASE_URL, else its first attachment
def url_variable($name; $wanted):
    . as $all
    | ($wanted | ascii_upcase | ltrimstr("HEROKU_POSTGRESQL_") | sub("_URL$"; "")) as $c
    | .databases[] | select(.name == $name)
    | if any(.attachments[]; . == $c) then "HEROKU_POSTGRESQL_\($c)_URL"
      elif .current then "DATABASE_URL"
      elif .attachments != [] then "HEROKU_POSTGRESQL_\(.attachments[0])_URL" else empty end;

# The instance that a name means, "?SEVERAL", "!VARIABLE" when it is a variable that points nowhere; nothing when there is none
def resolve($wanted):
    ($wanted | ascii_upcase) as $w
    | ($w | ltrimstr("HEROKU_POSTGRESQL_") | if . == "DATABASE_URL" then . else sub("_URL$"; "") end) as $c
    | ([.databases[]
       | select((.name | ascii_upcase) == $w
                or ($w == "DATABASE_URL" and .current)
                or ([.attachments[] | select(. == $c)] != []))
       | .name] | unique | (if length > 1 then "?" + join(" or ") else .[0] end))
      // ([.strays[] | select(. == $w or . == "HEROKU_POSTGRESQL_\($c)_URL")][0] // empty | "!" + .);

def bytes:
    if . == null then "unknown"
    elif . < 1000 then "\(.) B"
    else . as $b | [["kB", 1e3], ["MB", 1e6], ["GB", 1e9], ["TB", 1e12]]
        | map(select($b < .[1] * 1000)) | (.[0] // ["TB", 1e12]) as [$u, $n]
        | ($b / $n * 10 | round) as $tenths | "\($tenths / 10 | floor).\($tenths % 10) \($u)" end;

def seconds:
    if . == null then "unknown"
    elif . < 120 then "\(. * 10 | round / 10) s"
    elif . < 7200 then "\(. / 60 | round) min"
    else "\(. / 3600 * 10 | round / 10) h" end;

def lag:
    if .bytes == null then "unknown"
    elif .bytes == 0 then "nothing"
    else "\(.bytes | bytes)" + (if .seconds then " (\(.seconds | seconds))" else "" end) end;

def followed_text:
    if .already then "followed it already, \(.lag | lag) behind"
    else (if .copied then "\(.copied.bytes | bytes) copied" else "no data moved" end) + ", \(.seconds | seconds)" end;

# What pgmahout copy reports, as far as it says so
def copied_text:
    [(.tables // .filled.tables | numbers | "\(.) table\(if . == 1 then "" else "s" end)"),
     (.rows // .filled.rows | numbers | "\(.) row\(if . == 1 then "" else "s" end)"),
     (.bytes // .filled.bytes | numbers | bytes), (.seconds | numbers | seconds)]
    | if . == [] then "" else ", " + join(", ") end;

# What pg:info says of one database: [[name, value]…]. $all: the databases with their .info.
def facts($all):
    . as $d | (.info // {}) as $i
    | def by_address($a): [$all[] | select(.address == $a) | title][0] // $a;
      def by_name($n): [$all[] | select(.name == $n or .info.instance == $n) | title][0] // $n;
      [ ["Plan", ($i.plan // empty | if . == "" then empty else (.[0:1] | ascii_upcase) + .[1:] end)],
        ["Status",
         (if $i.error then "unavailable: \($i.error.message)"
          elif $i == {} then "unknown"
          elif $i.job and $i.job.state == "running" then "preparing (\($i.job.verb) of \($i.job.source): \($i.job.doing))"
          elif $i.job then "\($i.job.verb) of \($i.job.source) \($i.job.state)\(if $i.job.error then ": \($i.job.error.message)" else "; run it again" end)"
          elif $i.role == "unknown" then "unavailable: \($i.problem)"
          elif $i.problem then "\($i.role), \($i.problem)"
          elif $i.role == "primary" then "available"
          elif $i.role == "standby" then (if $i.following.streaming then "following" else "following, but not streaming" end)
          else $i.role end)],
        ["Role", ($i.role // empty)],
        ["Data Size", ($i.size_bytes // empty | bytes)],
        ["PG Version", ($i.version // empty)],
        ["Connections", ($i.connections // empty | "\(.used) of \(.limit)")],
        ["Fork/Follow", (if $i.connections == null or $i.job then empty elif $i.no_follow then "unavailable: \($i.no_follow)" else "available" end)],
        ["Following", ($i.following // empty | by_address(.primary))],
        ["Behind By", ($i.following // empty | .lag | lag)],
        ["Followers", ($i.followers // [] | select(. != []) | map(by_name(.name)
            + (if (.lag_bytes // 0) > 0 then " (\(.lag_bytes | bytes) behind)" else "" end)) | join(", "))],
        ["Slots", ($i.slots // [] | map(select(.active | not)) | select(. != [])
            | map("\(.name) is not in use and retains \(.retained_bytes | bytes)") | join(", "))],
        ["Created", ($i.created // empty | strftime("%Y-%m-%d %H:%M UTC"))],
        ["Instance", "\($d.name) at \($d.address)"] ];

def info_text:
    .databases as $all
    | [.databases | sort_by(.current | not)[] | select(.info) | "=== \(title)\n" + ([facts($all)[] | select(length == 2) | map(tostring | one_line) | "\(.[0] + ":" | . + " " * (13 - length))\(.[1])"] | join("\n"))]
    | join("\n\n");

# pg:info --json
def info_json:
    {app, databases: [.databases[] | select(.info)
        | {name, state, address, attachments: [.attachments[] | "HEROKU_POSTGRESQL_\(.)_URL"], current} + (.info | {info: .} | if .info.error then {error: .info.error} else . end)]};

# --- backups --------------------------------------------------------------------

# [{holder, backups}…], as instances list them, in one: the oldest first, each with its holders. Those that share a store
# all list the same.
def merged_backups:
    [.[] | .holder as $h | .backups[] | {key: [.id, .file, .sha256], value: ., $h}]
    | group_by(.key)
    | map(.[0].value + {verified: ([.[].value.verified | values] | max_by(.at)), holders: map(.h)})
    | sort_by(.started // .finished, (.id[1:] | tonumber), .id);

# The greatest number of a backup by hand
def last_number: [.[].id | select(startswith("b"))[1:] | tonumber] | max // 0;

# As Heroku wrote times: 2010/10/22 19:55.50 UTC
def backup_time: strftime("%Y/%m/%d %H:%M.%S UTC");

def age:
    if . < 0 then "in the future"
    elif . < 120 then "\(.) s"
    elif . < 7200 then "\(. / 60 | floor) min"
    elif . < 172800 then "\(. / 3600 | floor) h"
    else "\(. / 86400 | floor) days" end;

# What a backup is of. $all: the databases.
def backup_of($all):
    .instance as $i
    | ([$all[] | select(.name == $i) | attachment][0] // $i) + (if .database then "/\(.database)" else "" end);

# The rows of a table below its heading, in Heroku's look
def table($heading):
    [[$heading] + . | transpose[] | map(length) | max] as $widths
    | def row: [., $widths] | transpose | map(.[0] + " " * (.[1] - (.[0] | length))) | join(" | ") | sub(" +$"; "");
      ($heading | row), ($widths | map("-" * .) | join("-+-")), (.[] | row);

# The name of its file for a person, as pgbackups:url gives it: b001.dump, b002.tar.zst, b003.dump.age
def download_name:
    .id + (if .kind == "logical" then ".dump" else ".tar" + ({gzip: ".gz", zstd: ".zst"}[.compression // "" | split(":")[0] // ""] // "") end)
        + (if .encryption then ".age" else "" end);

def backups_text($all):
    map([.id, (.finished | backup_time), (.size | bytes), backup_of($all), .kind + (if .encryption then ", encrypted" else "" end),
         (now - .finished | floor | age),
         (.verified | if . == null then "-" elif .good then .at | backup_time else "FAILED \(.at | backup_time)" end)]
        | map(one_line))
    | table(["ID", "Backup Time", "Size", "Database", "Kind", "Age", "Verified"]);
