# Pure facts about a hosts file and its config: what is wrong with it, where a
# database is, which URL counts.

def name_ok: test("^[A-Za-z0-9][A-Za-z0-9._-]*$");
def variable_ok: test("^[A-Za-z_][A-Za-z0-9_]*$");
def plain: type == "string" or type == "number" or type == "boolean";

# {scheme, user, password, host, port, path} of a URL, or nothing. User and password stay percent-encoded.
def url_parts:
    capture("^(?<scheme>[A-Za-z][A-Za-z0-9+]*)://(?:(?<user>[^:@/?#\\s]*)(?::(?<password>[^:@/?#\\s]*))?@)?(?<host>\\[[0-9A-Fa-f:.%]+\\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::(?<port>[0-9]{1,5}))?(?<path>[/?][^\\s]*)?$")
    | .host |= ascii_downcase
    | .port |= (if . == null then null else tonumber end)
    | select(.port == null or (.port > 0 and .port < 65536));
def is_sql: .scheme | ascii_downcase | IN("postgres", "postgresql", "pgsql");
def sql_parts: strings | url_parts | select(is_sql) | .port //= 5432;
def ssh_parts: strings | url_parts | select(.scheme == "ssh") | .port //= 22;
def address: "\(.host):\(.port)";

# Where the config stands, as the file has it
def config: .config // "\(.application).config.json";

# A database with what holds for all, or nothing
def database($name):
    (.ssh // {}) as $all | .databases[$name] // empty
    | .identity = (.identity // $all.identity) | .known_hosts = (.known_hosts // $all.known_hosts);

# The first thing that is wrong with a hosts file, or nothing.
def mistakes:
    def unknown($at; $known): keys[] | select(IN($known[]) | not) | "\($at)\(tojson): there is no such key; it can be \($known | join(", "))";
    def text($at; $keys): to_entries[] | select(.key | IN($keys[])) | select(.value | (type == "string" and test("\\S")) | not)
        | "\($at)\(.key): it must be a text";
    def at_most($of; $at): if type != "object" then "\($at): it must be a map of \($of)" else empty end;
    if type != "object" then "it must be a map with application and databases"
    else unknown(""; ["application", "config", "ssh", "databases", "processes"]),
        (if (.application | type == "string" and name_ok) then empty
         else "application: it must be a name of letters, digits, ., _ and -" end),
        text(""; ["config"]),
        (.ssh | if . == null then empty elif type != "object" then "ssh: it must be a map of identity and known_hosts"
            else unknown("ssh: "; ["identity", "known_hosts"]), text("ssh: "; ["identity", "known_hosts"]) end),
        (.databases | if type != "object" or length == 0 then "databases: it must be a map of names to databases"
            else to_entries[] | .key as $n | "databases: \($n): " as $at
                | if ($n | name_ok | not) then "databases: \($n | tojson): a name is letters, digits, ., _ and -"
                  else .value
                    | if type != "object" then "\($at)it must be a map with ssh and sql"
                      else unknown($at; ["ssh", "sql", "url", "spare", "identity", "known_hosts", "environment", "provision", "destroy"]),
                        text($at; ["identity", "known_hosts", "provision", "destroy"]),
                        # No URL is quoted: it may hold a password
                        (if [.ssh | ssh_parts | select(.path == null or .path == "/")] == [] then "\($at)ssh: it must be a URL such as ssh://postgres@db1.example.com:22" else empty end),
                        (if [.ssh | ssh_parts | select(.password)] != [] then "\($at)ssh: ssh is given no password; use a key (ssh: identity:)" else empty end),
                        (if [.sql | sql_parts | select((.user // "") != "")] == [] then "\($at)sql: it must be a URL such as postgres://postgres@db1.example.com:5432, with the user and what is special in the password percent-encoded" else empty end),
                        (if has("url") then
                            if [.url | sql_parts | select((.user // "") != "")] == [] then "\($at)url: it must be a URL such as postgres://shop:secret@db1.example.com:5432/shop, with what is special in the password percent-encoded"
                            elif (.url | sql_parts | address) != (.sql | sql_parts | address) then "\($at)url: it is at \(.url | sql_parts | address), sql at \(.sql | sql_parts | address); they must be the same server"
                            else empty end else empty end),
                        (if has("spare") and (.spare | type) != "boolean" then "\($at)spare: it must be true or false" else empty end),
                        (if has("environment") then
                            .environment | if type != "object" then "\($at)environment: it must be a map of variables"
                            else to_entries[] | if (.key | variable_ok | not) then "\($at)environment: \(.key | tojson) is not a variable's name"
                                elif (.value | plain | not) then "\($at)environment: \(.key): it must be a plain value" else empty end end else empty end)
                      end end end),
        (.databases | objects | [to_entries[] | {name: .key, at: (.value | objects | .sql | sql_parts | address)}] | group_by(.at)[] | select(length > 1)
            | "databases: \(map(.name) | join(" and ")) are both at \(.[0].at); each needs an address of its own"),
        (.processes | if . == null then empty elif type != "object" then "processes: it must be a map of names to processes"
            else to_entries[] | .key as $n | "processes: \($n): " as $at
                | if ($n | name_ok | not) then "processes: \($n | tojson): a name is letters, digits, ., _ and -"
                  else .value
                    | if type != "object" then "\($at)it must be a map with count and commands"
                      else unknown($at; ["count", "restart", "scale", "stop", "start", "status"]),
                        text($at; ["restart", "scale", "stop", "start", "status"]),
                        (if has("count") and ((.count | type) != "number" or .count < 0 or .count != (.count | floor)) then "\($at)count: it must be a number, 0 or more" else empty end)
                      end end end)
    end;

# The URLs in a config that are attachments, DATABASE_URL first: [{user, password, host, port, …}]
def attachments: [.DATABASE_URL, (to_entries[] | select(.key | test("^HEROKU_POSTGRESQL_.*_URL$")) | .value) | strings | sql_parts];

# A URL of the hosts file with the password that counts: an attachment's with the same user and address was
# set later, by a rotation.
def with_password($attachments):
    . as $url | sql_parts
    | . as $own
    | ([$attachments[] | select(.user == $own.user and address == ($own | address) and (.password // "") != "")][0].password // .password) as $password
    | "\(.scheme)://\(.user)\(if $password then ":" + $password else "" end)@\(address)\(.path // "")";

# As `dotcloud info INSTANCE` prints it
def blurb($application; $name; $attachments):
    "ports:",
    "-   name: ssh",
    "    url: \(.ssh | tojson)",
    "-   name: pgsql",
    "    url: \(.sql | with_password($attachments) | tojson)",
    "instances:",
    "    \("\($application).\($name)" | tojson):",
    "        state: unknown",
    "state: unknown",
    "type: postgresql";

def quoted: "'" + gsub("'"; "'\\''") + "'";
