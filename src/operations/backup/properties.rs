//! Owns what belongs to a database and not to what is in it: its owner, grants, settings, limit, comment; read from one
//! database, said as statements for another.

use crate::backups::manifest::{Grant, Properties, Setting};
use crate::error::Result;
use crate::sql::{Db, identifier, literal};

/// Those of the database with this OID.
pub fn read(db: &mut Db, oid: u32) -> Result<Properties> {
    let row = db.row(
        "SELECT pg_get_userbyid(datdba)::text, datconnlimit, shobj_description(oid, 'pg_database'), \
         datacl IS NOT NULL FROM pg_database WHERE oid = $1",
        &[&oid],
    )?;
    let grants = db.rows(
        "SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee)::text END, privilege_type::text, \
         is_grantable FROM pg_database d, aclexplode(datacl) WHERE d.oid = $1",
        &[&oid],
    )?;
    let grant = |row: &postgres::Row| Grant { to: row.get(0), privilege: row.get(1), again: row.get(2) };
    let settings = db.rows(
        "SELECT CASE setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(setrole)::text END, unnest(setconfig) \
         FROM pg_db_role_setting WHERE setdatabase = $1 ORDER BY 1 NULLS FIRST",
        &[&oid],
    )?;
    let setting = |row: &postgres::Row| {
        let said: String = row.get(1);
        let (name, value) = said.split_once('=')?;
        Some(Setting { role: row.get(0), name: name.to_owned(), value: value.to_owned() })
    };
    Ok(Properties {
        owner: row.get(0),
        connection_limit: row.get(1),
        comment: row.get(2),
        grants: row.get::<_, bool>(3).then(|| grants.iter().map(grant).collect()),
        settings: settings.iter().filter_map(setting).collect(),
        left_out: Vec::new(),
    })
}

/// As they may stand in a manifest, which others read: without the values of settings that are not PostgreSQL's.
pub fn for_manifest(mut properties: Properties) -> Properties {
    let (own, known): (Vec<_>, Vec<_>) = properties.settings.into_iter().partition(|s| s.name.contains('.'));
    properties.settings = known;
    // Ours are the cluster's, wherever they stand.
    properties.left_out =
        own.into_iter().map(|s| s.name).filter(|name| !name.starts_with("pgmahout.")).collect();
    properties
}

/// Statements that give them, but the owner, to the database `name`, which has that owner already.
pub fn statements(properties: &Properties, name: &str) -> Vec<String> {
    let name = identifier(name);
    let comment = properties.comment.as_ref().map_or("NULL".to_owned(), |comment| literal(comment));
    let mut steps = vec![
        format!("ALTER DATABASE {name} CONNECTION LIMIT {}", properties.connection_limit),
        format!("COMMENT ON DATABASE {name} IS {comment}"),
    ];
    if let Some(grants) = &properties.grants {
        steps.push(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC, {}", identifier(&properties.owner)));
        for grant in grants {
            let to = grant.to.as_ref().map_or("PUBLIC".to_owned(), |role| identifier(role));
            // A privilege's name comes from a file that others may have written.
            let privilege: String =
                grant.privilege.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').collect();
            let again = if grant.again { " WITH GRANT OPTION" } else { "" };
            steps.push(format!("GRANT {privilege} ON DATABASE {name} TO {to}{again}"));
        }
    }
    for Setting { role, name: setting, value } in &properties.settings {
        let whose = match role {
            Some(role) => format!("ROLE {} IN DATABASE {name}", identifier(role)),
            None => format!("DATABASE {name}"),
        };
        let quoted = setting.split('.').map(identifier).collect::<Vec<_>>().join(".");
        steps.push(format!("ALTER {whose} SET {quoted} = {}", value_of(setting, value)));
    }
    steps
}

/// Settings whose values are lists of quoted names (GUC_LIST_QUOTE): one literal for all would be one name.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

fn value_of(setting: &str, value: &str) -> String {
    if !LISTS.contains(&setting.to_ascii_lowercase().as_str()) {
        return literal(value);
    }
    let names = list(value);
    if names.is_empty() {
        "''".into()
    } else {
        names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
    }
}

/// `"$user", public` as its names.
fn list(value: &str) -> Vec<String> {
    let (mut names, mut chars) = (Vec::new(), value.chars().peekable());
    while chars.peek().is_some() {
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        let mut name = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(c) = chars.next() {
                if c == '"' && chars.next_if_eq(&'"').is_none() {
                    break;
                }
                name.push(c);
            }
            names.push(name);
            continue;
        }
        while let Some(c) = chars.next_if(|c| *c != ',') {
            name.push(c);
        }
        if !name.trim().is_empty() {
            names.push(name.trim().to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_stay_lists() {
        assert_eq!(value_of("search_path", r#""$user", public"#), "'$user', 'public'");
        assert_eq!(value_of("search_path", r#""a, ""b""",c d"#), r#"'a, "b"', 'c d'"#);
        assert_eq!(value_of("search_path", r#""""#), "''");
        assert_eq!(value_of("search_path", ""), "''");
        assert_eq!(value_of("application_name", r#"a, "b'"#), r#"'a, "b'''"#);
    }

    #[test]
    fn what_may_be_a_secret_does_not_reach_a_manifest() {
        let setting = |name: &str| Setting { role: None, name: name.into(), value: "x".into() };
        let names = ["work_mem", "app.jwt_secret", "pgmahout.backups"];
        let all = Properties { settings: names.map(setting).to_vec(), ..Properties::new("me") };
        let left = for_manifest(all);
        assert_eq!(left.settings, [setting("work_mem")]);
        assert_eq!(left.left_out, ["app.jwt_secret"]);
    }
}
