//! The switch of `pgmahout build-version` from one build that is here to another, killed at every boundary.

use crate::common::*;
use crate::scene::*;

#[test]
fn a_switch_to_another_build() {
    let site = Site::new();
    let mirror = Mirror::with(&site, &["15.97", "15.98"]);
    let host = site.host("db.0").pg(Pg::embedded("15")).linked().yml("source_mirrors", &mirror.url()).build();
    for version in ["15.98", "15.97"] {
        host.agent(&["build-version", version]).run().ok();
    }
    let in_use = || host.one("SHOW server_version");
    let command = |version| Command {
        here: &host,
        arguments: vec!["build-version", version],
        stdin: String::new(),
        there: None,
    };
    let expected = [
        "file.renamed",
        "switch.marked",
        "server.stopping",
        "server.stopped",
        "switch.linked",
        "server.starting",
        "server.started",
        "switch.running",
        "switch.done",
    ];
    let points = command("15.98").points(&expected, &[]);
    for point in &points {
        let from = in_use();
        let to = if from == "15.97" { "15.98" } else { "15.97" };
        host.exec("DROP TABLE IF EXISTS journal");
        let journal = Journal::start(&host);
        until("the journal is written", 10, || host.one("SELECT count(*) > 5 FROM journal") == "t");
        command(to).killed_at(point);
        no_agents(&[&host]);
        let is_noted = host.home.join(".pgmahout/switching").exists();
        assert!(host.is_running() || is_noted, "the server is down, and nothing says that it is to run");
        command(to).again();
        assert_eq!(in_use(), to, "after {point}");
        assert!(!host.home.join(".pgmahout/switching").exists());
        let acknowledged = journal.stop();
        let has: u64 = host.one("SELECT max(n) FROM journal").parse().unwrap();
        assert!((acknowledged..=acknowledged + 1).contains(&has), "{has} of {acknowledged}");
        let half_made = |name: &String| name.contains(".pgmahout-");
        assert!(!names(&host.home).iter().any(half_made), "{:?}", names(&host.home));
    }
}
