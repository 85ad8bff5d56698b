//! Backups as `pgmahout backup capture` leaves them, made by pg_dump itself, so that a restore is tested against
//! what PostgreSQL's own program writes.
#![allow(dead_code)]

use super::common::*;
use pgmahout::backups::manifest::{BackupId, By, FORMAT, Kind, Manifest, Needs, Table};
use pgmahout::instance::Instance;
use pgmahout::postgres::wal::{Lsn, SystemId, Timeline};
use pgmahout::settings::Settings;
use pgmahout::store::sealed::Sealer;
use pgmahout::store::{self, catalog};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The one of its own version, else Debian's.
pub fn program(host: &Host, name: &str) -> PathBuf {
    let own = host.pg.bin.join(name);
    if own.exists() { own } else { Pg::client(name) }
}

pub fn instance(host: &Host) -> Instance {
    Instance::discover(&Settings::load(&host.home, BTreeMap::new(), Vec::new()).unwrap()).unwrap()
}

/// What pg_dump -Fc writes of a database.
pub fn dump(host: &Host, database: &str) -> Vec<u8> {
    dump_by(host, database, &program(host, "pg_dump"))
}

pub fn dump_by(host: &Host, database: &str, pg_dump: &Path) -> Vec<u8> {
    let mut command = host.command(pg_dump);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", host.port.to_string()).env("PGUSER", &host.superuser);
    command.env("PGPASSFILE", host.pgpass()).env("PGDATABASE", database);
    let output = command.args(["-Fc", "-Z1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn version_of(program: &Path) -> String {
    let said = must(account().command(program).arg("--version"));
    said.split_whitespace().nth(2).unwrap().to_owned()
}

pub fn manifest(host: &Host, database: &str, bytes: &[u8]) -> Manifest {
    let tables = host
        .column(
            database,
            "SELECT format('%s,%s', encode(convert_to(nspname, 'UTF8'), 'hex'), encode(convert_to(relname, 'UTF8'), 'hex')) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
             WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema') AND relpersistence <> 't' \
             AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY 1",
        )
        .into_iter()
        .map(|pair| {
            let (schema, name) = pair.split_once(',').unwrap();
            let (schema, name) = (unhex(schema), unhex(name));
            let sql = format!("SELECT count(*) FROM ONLY {}.{}", quoted(&schema), quoted(&name));
            let rows = host.one_in(database, &sql).parse().unwrap();
            Table { database: None, schema, name, estimate: rows as i64, rows: Some(rows) }
        })
        .collect();
    let pairs = |sql: &str| -> BTreeMap<String, String> {
        let rows = host.column(database, sql);
        rows.iter().filter_map(|row| row.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect()
    };
    let one = |sql: &str| Some(host.one_in(database, sql)).filter(|text| !text.is_empty());
    let of =
        |column: &str| one(&format!("SELECT {column} FROM pg_database WHERE datname = current_database()"));
    let number: u32 = host.one("SHOW server_version_num").parse().unwrap();
    Manifest {
        format: FORMAT,
        id: BackupId { by: By::Hand, number: 1 },
        kind: Kind::Logical,
        database: Some(database.into()),
        instance: host.name.clone(),
        app: None,
        from_standby: false,
        started: 1_700_000_000,
        finished: 1_700_000_001,
        server_version: host.one("SHOW server_version").split(' ').next().unwrap().into(),
        server_version_num: number,
        tool_version: Some(version_of(&program(host, "pg_dump"))),
        agent_version: "0.1.0".into(),
        system_id: SystemId(host.system_identifier()),
        lineage: None,
        timeline: Timeline(1),
        lsn: Lsn(1),
        file: String::new(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
        content_size: bytes.len() as u64,
        compression: "gzip:1".into(),
        encryption: None,
        database_size: one("SELECT pg_database_size(current_database())").unwrap().parse().unwrap(),
        tables,
        needs: Needs {
            encoding: of("pg_encoding_to_char(encoding)"),
            collate: of("datcollate"),
            ctype: of("datctype"),
            locale_provider: (number >= 150_000).then(|| of("datlocprovider")).flatten(),
            locale: (number >= 170_000).then(|| of("datlocale")).flatten(),
            roles: host.column(
                database,
                "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND EXISTS (SELECT FROM pg_shdepend WHERE refobjid = pg_roles.oid \
                 AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) ORDER BY 1",
            ),
            extensions: pairs("SELECT extname || '=' || extversion FROM pg_extension WHERE extname <> 'plpgsql'"),
            tablespaces: BTreeMap::new(),
            settings: BTreeMap::new(),
        },
        properties: None,
        physical: None,
    }
}

fn unhex(text: &str) -> String {
    let bytes = (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap());
    String::from_utf8(bytes.collect()).unwrap()
}

pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Puts bytes and a manifest into the host's store.
pub fn put(host: &Host, bytes: &[u8], mut manifest: Manifest) -> BackupId {
    let instance = instance(host);
    let store = store::open(&instance).unwrap();
    manifest.id = catalog::next(&*store, By::Hand).unwrap();
    manifest.file = format!("{}-0123abcd.dump", manifest.id);
    let mut sealer = Sealer::create(&*store, &instance, &manifest.file).unwrap();
    sealer.write_all(bytes).unwrap();
    let stored = sealer.finish().unwrap();
    (manifest.size, manifest.sha256) = (stored.size, stored.sha256);
    catalog::add(&*store, &mut manifest).unwrap();
    own_all(host, &directory(host));
    manifest.id
}

fn own_all(host: &Host, directory: &Path) {
    host.account.own(directory);
    for entry in std::fs::read_dir(directory).unwrap() {
        host.account.own(&entry.unwrap().path());
    }
}

pub fn directory(host: &Host) -> PathBuf {
    host.home.join("backups")
}

/// A backup of a database, in the store.
pub fn backup(host: &Host, database: &str) -> String {
    let bytes = dump(host, database);
    put(host, &bytes, manifest(host, database, &bytes)).to_string()
}

/// The stored bytes of a backup.
pub fn file(host: &Host, id: &str) -> PathBuf {
    directory(host).join(format!("{id}-0123abcd.dump"))
}

/// Everything in a database that a restore has to bring back, as texts that can be compared.
pub fn contents(host: &Host, database: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    // Or names would be shown as the database's own search_path lets them be.
    host.exec_in(database, "SET search_path = pg_catalog");
    let relations = host.column(
        database,
        "SELECT relkind::text || format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relkind IN ('r', 'm', 'p', 'S', 'v') AND nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_toast'",
    );
    for (kind, name) in relations.iter().map(|both| both.split_at(1)) {
        // A sequence has no row type. Where it stands in its log says nothing.
        let row = if kind == "S" { "last_value || ' ' || is_called" } else { "md5(t::text)" };
        all.insert(host.one_in(
            database,
            &format!(
                "SELECT $q${name}$q$ || ': ' || count(*) || ' ' || coalesce(md5(string_agg(r, '' ORDER BY r)), '') \
                 FROM (SELECT {row} r FROM ONLY {name} t) x"
            ),
        ));
    }
    for sql in [
        "SELECT 'relation ' || c.oid::regclass || ' ' || relkind::text || ' ' || relowner::regrole || ' ' || coalesce(relacl::text, '') \
         || coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_toast'",
        "SELECT 'object ' || l.oid || ' ' || lomowner::regrole || ' ' || md5(lo_get(l.oid)) FROM pg_largeobject_metadata l",
        "SELECT 'extension ' || extname || ' ' || extversion FROM pg_extension",
        "SELECT 'schema ' || nspname || ' ' || nspowner::regrole || ' ' || coalesce(nspacl::text, '') FROM pg_namespace WHERE nspname !~ '^pg_'",
        "SELECT 'function ' || p.oid::regprocedure || ' ' || proowner::regrole || md5(prosrc) FROM pg_proc p WHERE p.oid >= 16384",
        "SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE oid >= 16384",
        "SELECT 'index ' || pg_get_indexdef(indexrelid) || ' ' || indisvalid FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE c.oid >= 16384 AND relnamespace <> 99",
        "SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    ] {
        all.extend(host.column(database, sql));
    }
    host.exec_in(database, "RESET search_path");
    all
}

/// Drops a database although this test itself has a connection to it.
pub fn drop_database(host: &Host, name: &str) {
    host.exec(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $q${name}$q$"
    ));
    until("its sessions are gone", 10, || {
        host.one(&format!("SELECT count(*) FROM pg_stat_activity WHERE datname = $q${name}$q$")) == "0"
    });
    host.exec(&format!("DROP DATABASE {}", quoted(name)));
}

/// What a database is, beside what it holds.
pub fn properties(host: &Host, database: &str) -> Vec<String> {
    let sql = format!(
        "SELECT datdba::regrole || ' ' || coalesce((SELECT string_agg(a, ',' ORDER BY a) FROM unnest(datacl::text[]) a), '') \
         || ' ' || datconnlimit || ' ' || datistemplate || ' ' || datallowconn || ' ' || dattablespace || ' ' || encoding || datcollate || datctype \
         || coalesce(shobj_description(oid, 'pg_database'), '-') FROM pg_database WHERE datname = $q${database}$q$ \
         UNION ALL SELECT setrole || ' ' || setting FROM pg_db_role_setting, unnest(setconfig) setting \
         WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = $q${database}$q$) ORDER BY 1"
    );
    host.column("postgres", &sql)
}

/// No database, role or file of a restore is left.
#[track_caller]
pub fn no_leftovers(host: &Host) {
    let found = host.column(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname LIKE '%\\_pgmahout\\_%' UNION ALL \
         SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgmahout\\_restore%' UNION ALL \
         SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pgmahout%' AND datname LIKE '%\\_pgmahout\\_%'",
    );
    assert!(found.is_empty(), "left: {found:?}");
    let state = host.home.join(".pgmahout");
    let files: Vec<_> =
        std::fs::read_dir(&state).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    assert!(files.iter().all(|name| name == "backup.lock"), "left: {files:?}");
}
