//! Every sample of what `dotcloud info` printed over the years, through the real binary.

use crate::common::*;

fn sample(name: &str) -> String {
    let path = format!("{}/tests/fixtures/blurbs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The sample's addresses, replaced by those of a real instance, and what is there then.
const SAMPLES: &[(&str, &[&str], &str, &str)] = &[
    ("04-data-service.txt", &[], "203.0.113.10:7962", "203.0.113.10:7963"),
    ("04-custom-many-ports.txt", &[], "shop-example.test:12345", "shop-example.test:34567"),
    ("04-instances.txt", &[], "shop-example.test:20270", "shop-example.test:20269"),
    ("09-one-instance.txt", &[], "shop-example.test:22481", "shop-example.test:22482"),
    (
        "09-service-two-instances.txt",
        &["--from", "db.0"],
        "shop-example.test:22481",
        "shop-example.test:22482",
    ),
    (
        "09-service-two-instances.txt",
        &["--from", "db.1"],
        "shop-example.test:31011",
        "shop-example.test:31012",
    ),
];

#[test]
fn every_sample_leads_to_its_ports() {
    let (source, target) = pair(Pg::embedded("18"));
    // The roles and passwords that two of the samples name.
    source.exec("CREATE ROLE root SUPERUSER REPLICATION LOGIN");
    let user = &source.account.name;
    for (name, flags, ssh, sql) in SAMPLES {
        let mut blurb = sample(name);
        for password in ["Rz7kQ1mWtb", "hunter2"] {
            if blurb.contains(password) {
                source.exec(&format!("ALTER ROLE root PASSWORD '{password}'"));
            }
        }
        blurb = blurb
            .replace(ssh, &format!("127.0.0.1:{}", source.ssh_port))
            .replace(sql, &format!("127.0.0.1:{}", source.port))
            .replace("ssh://postgres@", &format!("ssh://{user}@"))
            .replace("ssh://dotcloud@", &format!("ssh://{user}@"));
        let arguments: Vec<&str> = ["enslave", "--dry-run"].iter().chain(*flags).copied().collect();
        let forms = [
            blurb.clone(),
            blurb.replace('\n', "\r\n"),
            format!("Warning: a newer version of the CLI is available\n{blurb}"),
        ];
        for form in forms {
            target.agent(&arguments).stdin(form).run().ok().says("would copy");
        }
    }
}

#[test]
fn samples_that_are_refused() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).without_data().build();
    let enslave = |blurb: String| target.agent(&["enslave"]).stdin(blurb).run();
    enslave(sample("bad-cli-error.txt")).fails(
        2,
        "the blurb is an error message: Error: Not Found: no such service or instance: db.7",
        "the command in front of the pipe failed; run it alone until it prints the instance's ports",
    );
    enslave(sample("09-service-two-instances.txt")).fails(
        2,
        "the blurb tells of several instances: db.0, db.1",
        "choose one with --from, or ask for one: dotcloud info db.0",
    );
    let unnamed = sample("04-custom-many-ports.txt").replace("pgsql", "database");
    enslave(unnamed).fails(
        2,
        "several ports could be PostgreSQL's: editor, database",
        "name one of them pgsql in dotcloud.yml, or in the blurb",
    );
}

#[test]
fn the_environment_names_the_other_instances() {
    let site = Site::new();
    let target = site.host("db.1").pg(Pg::embedded("18")).without_data().build();
    let json = sample("environment.json");
    let values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
    let lines = |separator: &str| -> String {
        values.iter().map(|(key, value)| format!("{key}{separator}{}\n", value.as_str().unwrap())).collect()
    };
    for (file, content) in [
        ("environment.json", json.clone()),
        ("environment.yaml", lines(": ")),
        ("environment.yml", lines(": ")),
        ("environment", lines("=")),
    ] {
        let path = target.home.join(file);
        target.account.write(&path, content, 0o600);
        for (wanted, address) in [("0", "shop-example.test:22481"), ("db.1", "shop-example.test:31011")] {
            let output = target.agent(&["enslave", wanted]).run();
            assert_eq!(output.code, 4, "{output:?}");
            output.says(&format!("could not connect to {address} by SSH: the name was not found"));
        }
        target.agent(&["enslave", "7"]).run().fails(2, "there is no instance 7, only db.0, db.1", "");
        std::fs::remove_file(&path).unwrap();
    }
}
