//! The data of a copy: whatever a database holds goes from one server to the other, of another version too, and what
//! differs afterwards is found.

use crate::backups::{instance, program, quoted};
use crate::common::*;
use pgmahout::blurb::Secret;
use pgmahout::operations::Context;
use pgmahout::operations::copy::compare::{self, Change};
use pgmahout::operations::copy::{Sums, fill};
use pgmahout::progress::{Progress, Voice};
use pgmahout::sql::Target;
use std::time::{Duration, Instant};

fn host(site: &std::sync::Arc<Site>, name: &str, pg: Pg) -> Host {
    site.host(name).pg(pg).setting("max_locks_per_transaction", "256").build()
}

fn target(host: &Host, database: &str) -> Target {
    target_at(host, database, host.port)
}

fn target_at(host: &Host, database: &str, port: u16) -> Target {
    Target {
        label: host.name.clone(),
        host: "127.0.0.1".into(),
        port,
        user: host.superuser.clone(),
        password: Some(Secret::new(host.password.clone())),
        database: database.into(),
        tls: Default::default(),
        timeout: Duration::from_secs(5),
    }
}

const JOBS: usize = 2;

fn options(owner: Option<&str>) -> fill::Options {
    fill::Options { jobs: JOBS, owner: owner.map(Into::into), size: 0 }
}

/// Fills a new database of that name there.
fn try_fill(
    from: &Target,
    to: &Host,
    database: &str,
    owner: Option<&str>,
) -> pgmahout::error::Result<fill::Filled> {
    let (instance, progress) = (instance(to), Progress::new(Voice::Quiet));
    let context = Context { instance: &instance, progress: &progress };
    fill::run(context, from, &target(to, database), &options(owner))
}

fn create(host: &Host, database: &str, encoding: &str) {
    host.exec(&format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
        quoted(database)
    ));
}

fn filled(from: &Host, database: &str, to: &Host) -> fill::Filled {
    create(to, database, &from.one_in(database, "SHOW server_encoding"));
    try_fill(&target(from, database), to, database, None)
        .unwrap_or_else(|error| panic!("{error}\n{}", to.log()))
}

fn compared(to: &Host, database: &str, source: &Sums) -> Result<compare::Compared, String> {
    let (instance, progress) = (instance(to), Progress::new(Voice::Quiet));
    let context = Context { instance: &instance, progress: &progress };
    compare::run(context, source, &target(to, database), JOBS).map_err(|error| error.to_string())
}

fn read_again(host: &Host, at: &Host, database: &str, like: Option<&Sums>) -> Sums {
    let (instance, progress) = (instance(at), Progress::new(Voice::Quiet));
    let context = Context { instance: &instance, progress: &progress };
    compare::sums(context, &target(host, database), JOBS, like).unwrap()
}

fn changes(to: &Host, database: &str, before: &Sums) -> Vec<Change> {
    let (instance, progress) = (instance(to), Progress::new(Voice::Quiet));
    let context = Context { instance: &instance, progress: &progress };
    compare::changes(context, before, &target(to, database), JOBS).unwrap()
}

/// All that pg_dump says of a database, in an order that does not depend on where rows lie; by one and the same
/// pg_dump for both sides. Floats are left out: they are written differently before and since 12.
fn dumped(host: &Host, by: &Host, database: &str) -> Vec<String> {
    let mut command = host.command(program(by, "pg_dump"));
    command.env("PGHOST", "127.0.0.1").env("PGPORT", host.port.to_string()).env("PGUSER", &host.superuser);
    command.env("PGPASSFILE", host.pgpass()).env("PGDATABASE", database);
    for table in ["*float*", "enum_hash_*", "child"] {
        command.arg(format!("--exclude-table-data={table}"));
    }
    let text = must(&mut command);
    let noise = ["--", "\\restrict", "\\unrestrict", "SET default_table_access_method"];
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.is_empty() && !noise.iter().any(|n| line.starts_with(n)))
        .map(|line| {
            // What newer versions write in another way.
            let line = line.replace("EXECUTE PROCEDURE", "EXECUTE FUNCTION");
            if line.starts_with(' ') {
                line.replace("types.", "")
                    .replace("z_first.", "")
                    .replace("between_them.", "")
                    .replace("a,", "a")
            } else {
                line
            }
        })
        .collect();
    lines.sort();
    lines
}

/// A database with some of everything that is awkward.
fn odd(host: &Host, database: &str) {
    for role in ["clerk", "the \"Reader\""] {
        host.exec(&format!(
            "DO $$ BEGIN CREATE ROLE {}; EXCEPTION WHEN duplicate_object THEN END $$",
            quoted(role)
        ));
    }
    create(host, database, "UTF8");
    host.exec_in(
        database,
        r#"
        CREATE EXTENSION hstore; CREATE EXTENSION citext;
        CREATE SCHEMA "odd ""schema'"; ALTER SCHEMA "odd ""schema'" OWNER TO clerk;
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"');
        CREATE DOMAIN positive AS int CHECK (VALUE > 0);
        CREATE TYPE pair AS (a int, b text);
        CREATE TYPE measured AS (what text, how float8, more float4[]);
        -- All the usual types
        CREATE TABLE types (id serial PRIMARY KEY, a bool, b bytea, c "char", d name, e int8, f int2, g text, h oid, i json,
            j jsonb, k xml, l point, n money, o macaddr, p inet, q cidr, r char(5), s varchar(9), t date, u time, v timestamp,
            w timestamptz, x interval, y timetz, z bit(3), aa varbit, bb numeric, cc uuid, dd tsvector, ee tsquery,
            ff int4range, gg tstzrange, hh int[], ii text[][], jj mood, kk mood[], ll positive, mm pair, nn pair[], oo hstore,
            pp citext, qq regclass, rr pg_lsn, ss numeric(12, 3), tt path, uu polygon, vv circle, ww numrange[]);
        INSERT INTO types (a, b, c, d, e, f, g, h, i, j, l, n, o, p, q, r, s, t, u, v, w, x, y, z, aa, bb, cc, dd, ee, ff, gg,
            hh, ii, jj, kk, ll, mm, nn, oo, pp, qq, rr, ss, ww) SELECT g % 2 = 0, decode(md5(g::text), 'hex'), 'x', 'n' || g,
            g * 10000000000, g, E'a\tb\nc\\d\r ünï ' || g, g, '{"a" : [1,  null]}', '{"b": {"c": "\\u00fc"}, "a": 1.50}', '(1,2)',
            12.34, '08:00:2b:01:02:03', '10.1.2.3/8', '10.0.0.0/8', 'ab', 'xyz', '2000-02-29', '12:34:56.789', '0044-03-15 BC',
            '2020-01-01 00:00:00.000001+05:30', '1 year -2 days 03:04:05.6', '12:00+03:30', '101', '11', 1.100 / 3 * g,
            md5(g::text)::uuid, to_tsvector('the quick fox ' || g), 'a & !b', '[1,5)', '[2020-01-01, 2021-01-01)',
            '{1,NULL,3}', '{{a,"b,c"},{NULL,"\""}}', 'it''s "fine"', '{sad,ok}', 1 + g, ROW(g, 'x,"y')::pair, ARRAY[(1, NULL)::pair],
            'a=>1, b=>NULL', 'CaSe', 'types', '16/B374D848', 1.005, '{"[1.5,2.5]"}' FROM generate_series(1, 3000) g;
        INSERT INTO types (bb, v, w, t, g) VALUES ('NaN', 'infinity', '-infinity', 'infinity', ''), (NULL, NULL, NULL, NULL, '\.'),
            (-0.000, NULL, NULL, NULL, '\N');
        -- Floats, alone and in what goes as text
        CREATE TABLE floats (id int, a float8, b float4, c float8[]);
        CREATE TABLE text_floats (id int, m measured, x xml, f float8);
        INSERT INTO floats SELECT g, random() * 10 ^ (g % 600 - 300), random(), ARRAY[random(), NULL, 1e-320] FROM generate_series(1, 2000) g;
        INSERT INTO floats VALUES (-1, 'NaN', '-0', '{}'), (-2, '-Infinity', 'Infinity', '{1e308}'), (-3, 1e-320, 1e-40, NULL);
        INSERT INTO text_floats SELECT id, ('m' || id, a, ARRAY[b, b / 3]::float4[])::measured, NULL, a FROM floats;
        CREATE TABLE "odd ""schema'"."täble = 'x'" ("cölumn ""1""" bytea, "select" timestamptz DEFAULT now());
        INSERT INTO "odd ""schema'"."täble = 'x'" VALUES ('\x00ff', '2020-01-01'), (NULL, NULL);
        CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
        CREATE TABLE dropped (a int, b text, c int); ALTER TABLE dropped DROP COLUMN b; INSERT INTO dropped VALUES (1, 2);
        ALTER TABLE dropped ADD d int DEFAULT 7; CREATE TABLE empty (a int, b mood[]);
        CREATE UNLOGGED TABLE fleeting (a int); INSERT INTO fleeting VALUES (1);
        CREATE TABLE identified (a int GENERATED ALWAYS AS IDENTITY, b bigint GENERATED BY DEFAULT AS IDENTITY (START 50));
        INSERT INTO identified DEFAULT VALUES; INSERT INTO identified DEFAULT VALUES;
        CREATE TABLE large (id int, b bytea); ALTER TABLE large ALTER b SET STORAGE EXTERNAL;
        INSERT INTO large SELECT g, decode(string_agg(md5((g * 100000 + h)::text), ''), 'hex')
            FROM generate_series(1, 5) g, generate_series(1, 100000) h GROUP BY g;
        -- Partitions
        CREATE TABLE by_range (at date, n int) PARTITION BY RANGE (at);
        CREATE TABLE by_range_1 PARTITION OF by_range FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
        CREATE TABLE by_range_2 PARTITION OF by_range DEFAULT;
        INSERT INTO by_range SELECT date '2020-06-01' + g, g FROM generate_series(1, 400) g;
        CREATE TABLE by_list (k text, n int) PARTITION BY LIST (k);
        CREATE TABLE by_list_1 PARTITION OF by_list FOR VALUES IN ('a', NULL);
        CREATE TABLE by_list_2 PARTITION OF by_list DEFAULT PARTITION BY RANGE (n);
        CREATE TABLE by_list_2_1 PARTITION OF by_list_2 DEFAULT; INSERT INTO by_list VALUES ('a', 1), (NULL, 2), ('b', 3);
        CREATE TABLE enum_hash (m mood, n int) PARTITION BY HASH (m);
        CREATE TABLE enum_hash_0 PARTITION OF enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 0);
        CREATE TABLE enum_hash_1 PARTITION OF enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 1);
        CREATE TABLE enum_hash_2 PARTITION OF enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 2);
        INSERT INTO enum_hash SELECT (enum_range(NULL::mood))[1 + g % 3], g FROM generate_series(1, 300) g;
        CREATE TABLE parent (a int, z text); CREATE TABLE child (y int) INHERITS (parent); ALTER TABLE parent ADD m int;
        INSERT INTO parent VALUES (1, 'p', 5); INSERT INTO child VALUES (2, 'c', 6, 7), (3, 'd', 8, 9);
        -- Foreign keys in a circle, triggers, rules, event triggers, policies
        CREATE TABLE hen (id int PRIMARY KEY, egg int); CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen);
        INSERT INTO hen SELECT g, g FROM generate_series(1, 1000) g; INSERT INTO egg SELECT g, 1001 - g FROM generate_series(1, 1000) g;
        ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg;
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.egg := -1; RETURN NEW; END';
        CREATE TRIGGER touch BEFORE INSERT ON hen FOR EACH ROW EXECUTE PROCEDURE touch();
        ALTER TABLE hen ENABLE ALWAYS TRIGGER touch;
        CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
        CREATE POLICY own ON hen TO clerk USING (false); ALTER TABLE hen ENABLE ROW LEVEL SECURITY; ALTER TABLE hen FORCE ROW LEVEL SECURITY;
        CREATE VIEW moods AS SELECT DISTINCT jj FROM types; CREATE RULE silent AS ON INSERT TO empty DO INSTEAD NOTHING;
        -- Materialized views on each other, the first by name needs the last
        CREATE MATERIALIZED VIEW z_first AS SELECT a, count(*) FROM types GROUP BY 1;
        CREATE VIEW between_them AS SELECT * FROM z_first;
        CREATE MATERIALIZED VIEW a_second AS SELECT a FROM between_them; CREATE UNIQUE INDEX ON a_second (a);
        CREATE FUNCTION hidden() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.z_first';
        CREATE MATERIALIZED VIEW a_hidden AS SELECT hidden();
        CREATE MATERIALIZED VIEW a_empty AS SELECT 1 AS one WITH NO DATA;
        CREATE SEQUENCE tickets START 77; SELECT nextval('tickets'), nextval('tickets');
        CREATE SEQUENCE unused START 5; CREATE SEQUENCE moved; SELECT setval('moved', 42, false);
        CREATE SEQUENCE down INCREMENT -1; SELECT nextval('down');
        -- Large objects: small, of more than one window, with holes, with zeros at the end, empty
        SELECT lo_from_bytea(4242, '\xdeadbeef'), lo_from_bytea(4243, decode(repeat('00ff', 1500000), 'hex'));
        SELECT lo_create(4244), lo_create(4245), lo_create(4246), lo_create(4247);
        SELECT lo_put(4244, 10000000, '\x01'); SELECT lo_put(4245, 5000000, '\x0000');
        SELECT lo_put(4247, 0, decode(repeat('00', 65536 + 1048576), 'hex'));
        SELECT count(lo_from_bytea(g, convert_to(g::text, 'UTF8'))) FROM generate_series(100001, 101000) g;
        ALTER LARGE OBJECT 4242 OWNER TO clerk; GRANT SELECT ON LARGE OBJECT 4243 TO "the ""Reader""" WITH GRANT OPTION;
        REVOKE UPDATE ON LARGE OBJECT 4243 FROM CURRENT_USER; GRANT SELECT ON LARGE OBJECT 4244 TO PUBLIC;
        COMMENT ON LARGE OBJECT 4243 IS 'it''s \ large';
        ALTER TABLE egg OWNER TO clerk; GRANT SELECT ON types TO "the ""Reader"""; COMMENT ON COLUMN types.a IS 'yes or no';
        ALTER DEFAULT PRIVILEGES FOR ROLE clerk GRANT SELECT ON TABLES TO "the ""Reader""";
        CREATE STATISTICS both_of ON a, c FROM types; CREATE INDEX ON types (lower(g)); CREATE INDEX ON types USING gin (dd);
        CREATE PUBLICATION changes FOR TABLE hen;
        CREATE SCHEMA pgmahout_migration; CREATE TABLE pgmahout_migration.lock (a int); INSERT INTO pgmahout_migration.lock VALUES (1);
        CREATE EVENT TRIGGER forbid ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE PROCEDURE forbid();
    "#,
    );
    if host.pg.major >= 12 {
        host.exec_in(
            database,
            "DROP EVENT TRIGGER forbid; \
             CREATE TABLE made (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c text); INSERT INTO made (a, c) VALUES (1, 'x'), (2, NULL); \
             CREATE TABLE only_made (b int GENERATED ALWAYS AS (1 + 2) STORED); INSERT INTO only_made DEFAULT VALUES",
        );
    }
}

/// The bits of floats, wherever they stand.
fn float_bits(host: &Host, database: &str) -> Vec<String> {
    host.column(
        database,
        "SELECT concat_ws(' ', id, float8send(a), float4send(b), array_send(c)) FROM floats UNION ALL \
         SELECT concat_ws(' ', id, (m).what, float8send((m).how), array_send((m).more), float8send(f)) FROM text_floats ORDER BY 1",
    )
}

fn round_trip(from: Pg, to: Pg) {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", from), host(&site, "db.1", to));
    odd(&from, "shop");
    to.exec("CREATE ROLE clerk; CREATE ROLE \"the \"\"Reader\"\"\"");
    // The 18 of the tests knows no XML.
    if to.pg.major < 18 {
        from.exec_in(
            "shop",
            "UPDATE text_floats SET x = '<a/>'; UPDATE types SET k = '<b c=\"d\">ü</b>' WHERE id % 2 = 0",
        );
    }
    let secret = Argv::watch(&from.password);
    let filled = filled(&from, "shop", &to);
    assert_eq!(secret.seen(), Vec::<String>::new());
    assert_eq!(filled.warnings, Vec::<String>::new());
    assert!(filled.rows > 9000 && filled.bytes > 8_000_000, "{filled:?}");
    let own: Vec<_> =
        filled.sums.tables.iter().filter(|table| table.schema == "pgmahout_migration").collect();
    assert!(own.is_empty());
    let compared_now = compared(&to, "shop", &filled.sums).unwrap();
    assert_eq!(compared_now.rows, filled.rows);
    assert_eq!(changes(&to, "shop", &filled.sums), []);
    // Read again, the source is what was hashed on the way.
    let again = read_again(&from, &to, "shop", Some(&filled.sums));
    assert_eq!(
        serde_json::to_value(&again).unwrap(),
        serde_json::to_value(&filled.sums).unwrap(),
        "the source read again"
    );

    // What pg_dump says of both, and what it cannot tell.
    from.exec_in("shop", "DROP SCHEMA pgmahout_migration CASCADE");
    let (before, after) = (dumped(&from, &to, "shop"), dumped(&to, &to, "shop"));
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).take(10).collect();
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).take(10).collect();
    let at = before.iter().zip(&after).position(|(a, b)| a != b);
    assert!(
        before == after,
        "lost {lost:#?}, new {new:#?}, {} and {} lines, first {:?}",
        before.len(),
        after.len(),
        at.map(|at| (&before[at], &after[at]))
    );
    assert!(before.len() > 6000);
    assert_eq!(float_bits(&from, "shop"), float_bits(&to, "shop"));
    for rows in [
        "SELECT m || ' ' || n FROM enum_hash ORDER BY 1",
        "SELECT concat_ws(',', tableoid::regclass, a, m, y, z) FROM (SELECT tableoid, a, m, y, z FROM child) x ORDER BY 1",
    ] {
        assert_eq!(from.column("shop", rows), to.column("shop", rows));
    }
    assert_eq!(
        to.column("shop", "SELECT matviewname || ispopulated::text FROM pg_matviews ORDER BY 1"),
        ["a_emptyfalse", "a_hiddentrue", "a_secondtrue", "z_firsttrue"]
    );
    assert_eq!(to.one_in("shop", "SELECT * FROM a_hidden"), "3");
    assert_eq!(to.one_in("shop", "SELECT count(*) FROM a_second"), "3");
    assert_eq!(to.one_in("shop", "SELECT nextval('tickets')::text || nextval('moved')"), "7942");
    assert_ne!(to.one_in("shop", "SELECT reltuples FROM pg_class WHERE relname = 'types'"), "-1");
    // A hole takes no room.
    assert_eq!(to.one_in("shop", "SELECT count(*) < 50 FROM pg_largeobject WHERE loid = 4244"), "t");
    assert_eq!(to.one_in("shop", "SELECT count(*) FROM hen WHERE egg = -1"), "0");
}

#[test]
fn all_goes_from_11_to_15() {
    round_trip(Pg::embedded("11"), Pg::debian15());
}

#[test]
fn all_goes_from_11_to_18() {
    round_trip(Pg::embedded("11"), Pg::full18());
}

#[test]
fn all_goes_from_15_to_18() {
    round_trip(Pg::debian15(), Pg::full18());
}

/// One after the other is found, and nothing else.
#[test]
fn what_differs_is_found() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::embedded("11")), host(&site, "db.1", Pg::debian15()));
    create(&from, "shop", "UTF8");
    from.exec_in(
        "shop",
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, b bytea); \
         INSERT INTO t SELECT g, g / 7.0, decode(md5(g::text), 'hex') FROM generate_series(1, 1000) g; \
         CREATE TYPE both_of AS (a int, f float8); CREATE TABLE u (id int, x both_of); \
         INSERT INTO u SELECT g, ROW(g, g / 3.0)::both_of FROM generate_series(1, 100) g; CREATE TABLE w (a int); \
         CREATE SEQUENCE s; SELECT nextval('s'); SELECT lo_from_bytea(77, decode(repeat('ab', 3000000), 'hex'))",
    );
    let sums = filled(&from, "shop", &to).sums;
    assert_eq!(compared(&to, "shop", &sums).unwrap().rows, 1100);
    let the = |what: &str| format!("the copy does not hold what the source does: {what}");
    for (change, back, told, changed) in [
        (
            "UPDATE t SET n = n + 0.0001 WHERE id = 500",
            "UPDATE t SET n = 500 / 7.0 WHERE id = 500",
            "the 1000 rows of public.t are not the same",
            ("public.t", 1000, 1000),
        ),
        (
            "UPDATE u SET x = ROW(50, 16.7)::both_of WHERE id = 50",
            "UPDATE u SET x = ROW(50, 50 / 3.0)::both_of WHERE id = 50",
            "the 100 rows of public.u are not the same",
            ("public.u", 100, 100),
        ),
        (
            "DELETE FROM u WHERE id = 7",
            "INSERT INTO u VALUES (7, ROW(7, 7 / 3.0)::both_of)",
            "public.u has 99 rows in place of 100",
            ("public.u", 100, 99),
        ),
        (
            // One doubled, one missing: as many as before.
            "DELETE FROM u WHERE id = 9; INSERT INTO u SELECT * FROM u WHERE id = 8",
            "DELETE FROM u WHERE id = 8; INSERT INTO u SELECT g, ROW(g, g / 3.0)::both_of FROM generate_series(8, 9) g",
            "the 100 rows of public.u are not the same",
            ("public.u", 100, 100),
        ),
        (
            "SELECT nextval('s')",
            "SELECT setval('s', 1)",
            "the sequence public.s is at 2 in place of 1",
            ("sequence public.s", 1, 2),
        ),
        (
            "SELECT lo_put(77, 2999999, '\\x00')",
            "SELECT lo_put(77, 2999999, '\\xab')",
            "the 1 large objects of 3000000 bytes are not the same",
            ("large objects", 1, 1),
        ),
        (
            "SELECT lo_put(77, 3000000, '\\x00')",
            "SELECT lo_unlink(77); SELECT lo_from_bytea(77, decode(repeat('ab', 3000000), 'hex'))",
            "there are 1 large objects of 3000001 bytes in place of 1 large objects of 3000000 bytes",
            ("large objects", 1, 1),
        ),
        (
            "CREATE TABLE v AS SELECT 1",
            "DROP TABLE v",
            "the source has no table public.v",
            ("public.v", 0, 1),
        ),
        (
            "ALTER TABLE t ADD more regclass",
            "ALTER TABLE t DROP more",
            "the 1000 rows of public.t are not the same",
            ("public.t", 1000, 1000),
        ),
    ] {
        to.exec_in("shop", change);
        assert_eq!(compared(&to, "shop", &sums).unwrap_err(), the(told), "{change}");
        let (what, before, now) = changed;
        assert_eq!(changes(&to, "shop", &sums), [Change { what: what.into(), before, now }], "{change}");
        to.exec_in("shop", back);
        compared(&to, "shop", &sums).unwrap_or_else(|error| panic!("{back}: {error}"));
    }
    // An empty table is no lost work, but it is a difference.
    to.exec_in("shop", "DROP TABLE w");
    assert_eq!(compared(&to, "shop", &sums).unwrap_err(), the("there is no table public.w"));
    assert_eq!(changes(&to, "shop", &sums), []);
}

#[test]
fn five_thousand_tables_and_none() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::embedded("11")), host(&site, "db.1", Pg::debian15()));
    create(&from, "none", "UTF8");
    let none = filled(&from, "none", &to);
    assert_eq!((none.tables, none.rows), (0, 0));
    assert_eq!(compared(&to, "none", &none.sums).unwrap().tables, 0);

    create(&from, "many", "UTF8");
    for part in 0..10 {
        from.exec_in(
            "many",
            &format!(
                "DO $$ BEGIN FOR i IN {part} * 500 + 1 .. ({part} + 1) * 500 LOOP \
                 EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY, a text)', i); \
                 IF i % 2 = 0 THEN EXECUTE format('INSERT INTO t%s (a) VALUES (''x''), (NULL)', i); END IF; END LOOP; END $$"
            ),
        );
    }
    let begin = Instant::now();
    let filled = filled(&from, "many", &to);
    let filling = begin.elapsed();
    assert_eq!((filled.tables, filled.rows), (5000, 5000));
    let compared = compared(&to, "many", &filled.sums).unwrap();
    assert_eq!((compared.tables, filled.sums.sequences.len()), (5000, 5000));
    eprintln!("5000 tables: filled in {filling:?} {:?}, compared in {} s", filled.seconds, compared.seconds);
    assert!(begin.elapsed() < Duration::from_secs(300), "{:?}", begin.elapsed());
}

#[test]
fn a_hundred_megabytes_in_one_value() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::embedded("11")), host(&site, "db.1", Pg::full18()));
    create(&from, "shop", "UTF8");
    from.exec_in(
        "shop",
        "CREATE TABLE t (id int, b bytea); ALTER TABLE t ALTER b SET STORAGE EXTERNAL; \
         INSERT INTO t VALUES (1, decode(repeat(md5('x'), 6553600), 'hex')), (2, NULL), (3, '')",
    );
    let filled = filled(&from, "shop", &to);
    assert!(filled.bytes > 100 << 20 && filled.bytes < 101 << 20, "{}", filled.bytes);
    compared(&to, "shop", &filled.sums).unwrap();
    let sql = "SELECT length(b) || md5(b) FROM t WHERE id = 1";
    assert_eq!(from.one_in("shop", sql), to.one_in("shop", sql));
}

/// A large table is read in pieces at the same time, from a version on.
#[test]
fn a_large_table_goes_in_pieces() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::debian15()), host(&site, "db.1", Pg::full18()));
    create(&from, "shop", "UTF8");
    from.exec_in(
        "shop",
        "CREATE UNLOGGED TABLE t (id int, a text); ALTER TABLE t ALTER a SET STORAGE PLAIN; \
         INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 300000) g; DELETE FROM t WHERE id % 10 = 3",
    );
    let filled = filled(&from, "shop", &to);
    assert_eq!(filled.rows, 270_000);
    compared(&to, "shop", &filled.sums).unwrap();
    let whole = read_again(&from, &to, "shop", None);
    assert_eq!(whole.tables, filled.sums.tables);
}

#[test]
fn other_encodings_keep_their_bytes() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::embedded("11")), host(&site, "db.1", Pg::debian15()));
    for encoding in ["LATIN1", "SQL_ASCII"] {
        create(&from, encoding, encoding);
        let name = if encoding == "LATIN1" { "täble" } else { "plain" };
        from.exec_in(
            encoding,
            &format!(
                "CREATE TABLE {name} (id int, a text, x xml); CREATE TABLE b (id int, a text); \
                 INSERT INTO b VALUES (1, convert_from('\\x{}', '{encoding}')); INSERT INTO {name} SELECT id, a, NULL FROM b; \
                 CREATE TABLE h (a text) PARTITION BY HASH (a); \
                 CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
                 CREATE TABLE h1 PARTITION OF h FOR VALUES WITH (MODULUS 2, REMAINDER 1); \
                 INSERT INTO h SELECT a || g FROM b, generate_series(1, 50) g",
                if encoding == "LATIN1" { "e4f6fc" } else { "e4f6fcc3a4" }
            ),
        );
        let filled = filled(&from, encoding, &to);
        compared(&to, encoding, &filled.sums).unwrap();
        let sql = format!("SELECT encode(convert_to(a, '{encoding}'), 'hex') FROM {name}");
        assert_eq!(from.one_in(encoding, &sql), to.one_in(encoding, &sql));
    }
    // Into another encoding rows go where their new hashes say.
    create(&to, "UNICODE", "UTF8");
    let filled = try_fill(&target(&from, "LATIN1"), &to, "UNICODE", None).unwrap();
    compared(&to, "UNICODE", &filled.sums).unwrap();
    assert_eq!(to.one_in("UNICODE", "SELECT a FROM b"), "äöü");
    assert_eq!(to.one_in("UNICODE", "SELECT count(*) FROM h"), "50");
}

/// As an app's own role sees its database: no superuser, other roles' grants are gone with `owner`.
#[test]
fn an_ordinary_role_gives_all_to_another() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::embedded("11")), host(&site, "db.1", Pg::debian15()));
    from.exec(&format!("CREATE ROLE app LOGIN PASSWORD '{}'", from.password.replace('\'', "''")));
    from.exec("CREATE ROLE other");
    from.exec("CREATE DATABASE shop OWNER app TEMPLATE template0");
    from.exec_in(
        "shop",
        "SET ROLE app; CREATE TABLE t (id serial, a text); INSERT INTO t (a) VALUES ('x'); GRANT SELECT ON t TO other; \
         SELECT lo_from_bytea(5, '\\x01'); GRANT SELECT ON LARGE OBJECT 5 TO other; \
         CREATE MATERIALIZED VIEW m AS SELECT * FROM t; ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    );
    to.exec("CREATE ROLE owner");
    to.exec("CREATE DATABASE shop OWNER owner TEMPLATE template0");
    let source = Target { user: "app".into(), ..target(&from, "shop") };
    let filled = try_fill(&source, &to, "shop", Some("owner")).unwrap();
    compared(&to, "shop", &filled.sums).unwrap();
    let owners = "SELECT relname || ' ' || relowner::regrole || coalesce(relacl::text, '') FROM pg_class \
         WHERE relname IN ('t', 'm', 't_id_seq') ORDER BY 1";
    assert_eq!(to.column("shop", owners), ["m owner", "t owner", "t_id_seq owner"]);
    let large = "SELECT lomowner::regrole || coalesce(lomacl::text, '') FROM pg_largeobject_metadata";
    assert_eq!(to.column("shop", large), ["owner"]);
    assert_eq!(to.one_in("shop", "SELECT a FROM m"), "x");
}

/// What an extension's table holds of the user's.
#[test]
fn rows_of_an_extension_are_the_users() {
    let site = Site::new();
    let directory = site.directory.join("share");
    account().mkdir(&directory, 0o755);
    account().mkdir(&directory.join("extension"), 0o755);
    let at = |name: &str| directory.join("extension").join(name);
    account().write(
        &at("shelf.control"),
        "default_version = '1'\nrelocatable = false\nschema = public\n",
        0o644,
    );
    account().write(
        &at("shelf--1.sql"),
        "CREATE TABLE shelf_rows (id int, builtin bool); INSERT INTO shelf_rows VALUES (1, true); \
         CREATE TABLE shelf_own (a int); INSERT INTO shelf_own VALUES (1); CREATE SEQUENCE shelf_s; CREATE TABLE shelf_all (a int); \
         SELECT pg_extension_config_dump('shelf_rows', 'WHERE NOT builtin'); SELECT pg_extension_config_dump('shelf_s', ''); \
         SELECT pg_extension_config_dump('shelf_all', '')",
        0o644,
    );
    let path = format!("{}:$system", directory.display());
    let build =
        |name: &str| site.host(name).pg(Pg::full18()).setting("extension_control_path", &path).build();
    let (from, to) = (build("db.0"), build("db.1"));
    create(&from, "shop", "UTF8");
    from.exec_in(
        "shop",
        "CREATE EXTENSION shelf; INSERT INTO shelf_rows VALUES (2, false), (3, false); INSERT INTO shelf_own VALUES (2); \
         INSERT INTO shelf_all VALUES (9); SELECT setval('shelf_s', 33)",
    );
    let filled = filled(&from, "shop", &to);
    assert_eq!(filled.rows, 3);
    compared(&to, "shop", &filled.sums).unwrap();
    let sql = "SELECT string_agg(id::text, ',' ORDER BY id) || (SELECT count(*) FROM shelf_own) || nextval('shelf_s') \
         || (SELECT count(*) FROM shelf_all) FROM shelf_rows";
    assert_eq!(to.one_in("shop", sql), "1,2,31341");
}

/// The error names the table and the side, and comes soon.
#[test]
fn what_goes_wrong_is_named() {
    let site = Site::new();
    let (from, to) = (host(&site, "db.0", Pg::debian15()), host(&site, "db.1", Pg::debian15()));
    create(&from, "shop", "UTF8");
    from.exec_in(
        "shop",
        "CREATE TABLE large (a text); ALTER TABLE large ALTER a SET STORAGE PLAIN; \
         INSERT INTO large SELECT repeat(md5(g::text), 30) FROM generate_series(1, 60000) g",
    );
    // The network to the source is cut.
    create(&to, "cut", "UTF8");
    let proxy = std::sync::Arc::new(Proxy::to(from.port).slow(10 << 20));
    let cutter = {
        let proxy = proxy.clone();
        std::thread::spawn(move || {
            until("rows come", 60, || proxy.passed() > 20 << 20);
            proxy.refuse();
            proxy.cut();
        })
    };
    let begin = Instant::now();
    let error = try_fill(&target_at(&from, "shop", proxy.port), &to, "cut", None).unwrap_err().to_string();
    cutter.join().unwrap();
    assert!(error.starts_with("the rows of public.large could not be copied: db.0: "), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(300), "{:?}", begin.elapsed());

    // The target's disk is full.
    let disk = SmallDisk::mount(&site, "small", 60);
    to.exec(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.path.display()));
    to.exec("CREATE DATABASE full_up TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TABLESPACE small");
    let error = try_fill(&target(&from, "shop"), &to, "full_up", None).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("the rows of public.large could not be copied: db.1: "), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    to.exec("DROP DATABASE full_up");
    to.exec("DROP TABLESPACE small");

    // What one side takes the other does not.
    create(&from, "strict", "UTF8");
    from.exec_in(
        "strict",
        "CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 10); ALTER TABLE t ADD CHECK (a < 5) NOT VALID; \
         CREATE TABLE v (a int); INSERT INTO v VALUES (9); \
         CREATE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true'; ALTER TABLE v ADD CHECK (f(a)); \
         CREATE OR REPLACE FUNCTION f(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT false'",
    );
    create(&to, "strict", "UTF8");
    let error = try_fill(&target(&from, "strict"), &to, "strict", None).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the rows of public.v could not be copied: db.1: new row for relation \"v\" violates check"
        ),
        "{error}"
    );
}
