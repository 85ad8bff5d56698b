//! The command line and the binary itself: usage, help, man pages, completions, and that it needs nothing
//! of the machine it runs on.

use crate::common::*;
use std::path::Path;
use std::process::Command;

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary()).args(arguments).env_clear().output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

const COMMANDS: &[&str] = &["enslave", "promote", "wait", "logs", "info", "config", "completions", "man"];

#[test]
fn help_is_there_for_everything() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for command in COMMANDS {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command} is missing:\n{help}"
        );
        let (code, text, _) = run(&[command, "--help"]);
        assert_eq!(code, 0, "{command} --help");
        assert!(text.contains("Usage: pgmahout"), "{text}");
        assert!(text.contains("Example"), "{command} --help has no example");
    }
    for hidden in ["source", "fence", "copy-part"] {
        assert!(
            !help.lines().any(|line| line.trim_start().starts_with(hidden)),
            "{hidden} is shown:\n{help}"
        );
    }
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("[aliases: follow, track]") && words.contains("unfollow"), "{help}");
}

#[test]
fn wrong_usage_is_code_2_and_goes_to_stderr() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["enslave", "--nonsense"],
        &["enslave", "--plan", "magic"],
        &["enslave", "0", "--info", "x"],
        &["enslave", "--ssh-sessions", "0"],
        &["wait", "--timeout", "soon"],
        &["-q", "-v", "info"],
        &["promote", "--info", "x"],
        &["logs", "--since", "yesterday"],
        &["logs", "--slow", "-5"],
        &["logs", "--level", "bad"],
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
        assert!(stderr.contains("Usage: pgmahout") || stderr.contains("--help"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn man_pages_and_completions() {
    let directory = std::env::temp_dir().join(format!("pgmahout test {} man", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (code, _, stderr) = run(&["man", directory.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    for page in ["pgmahout.1", "pgmahout-enslave.1", "pgmahout-promote.1", "pgmahout-info.1"] {
        let text = std::fs::read_to_string(directory.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH") && text.contains(".SH"), "{page}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
    let (code, page, _) = run(&["man"]);
    assert!(code == 0 && page.contains(".TH pgmahout"), "{page}");
    let (code, _, stderr) = run(&["man", "/no/such/directory"]);
    assert_eq!(code, 1, "{stderr}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completions", shell]);
        assert!(code == 0 && script.contains("enslave") && script.contains("host-key"), "{shell}");
    }
    let (_, script, _) = run(&["completions", "bash"]);
    let path = std::env::temp_dir().join(format!("pgmahout test {} completion", std::process::id()));
    std::fs::write(&path, script).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn the_version_is_said() {
    let (code, version, _) = run(&["--version"]);
    assert_eq!(code, 0);
    assert_eq!(version, format!("pgmahout {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn it_is_static() {
    let output = Command::new("ldd").arg(binary()).env("LC_ALL", "C").output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("not a dynamic executable"), "{said}");
}

/// A directory with nothing but the binary and a hosts file, as a root file system of its own.
struct Bare {
    site: std::sync::Arc<Site>,
}

impl Bare {
    fn new() -> Bare {
        assert!(nix::unistd::geteuid().is_root(), "this test changes its root directory: run it as root");
        let site = Site::new();
        let root = site.directory.join("root");
        for directory in ["", "etc", "home", "tmp"] {
            account().mkdir(&root.join(directory), 0o755);
        }
        // By a process of its own: another test's child that is just being started would still have it open for writing.
        must(Command::new("cp").arg(binary()).arg(root.join("pgmahout")));
        account().write(&root.join("etc/hosts"), "127.0.0.1 primary.test\n::1 six.test\n", 0o644);
        Bare { site }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new("/usr/sbin/chroot")
            .arg(format!("--userspec={}:{}", account().uid, account().gid))
            .arg(self.site.directory.join("root"))
            .args(["/pgmahout"])
            .args(arguments)
            .env_clear()
            .env("HOME", "/home")
            .output()
            .unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), said)
    }
}

#[test]
fn it_runs_where_there_is_nothing_else() {
    let bare = Bare::new();
    let (code, said) = bare.run(&["--version"]);
    assert_eq!((code, said), (0, format!("pgmahout {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, said) = bare.run(&["config"]);
    assert_eq!(code, 0, "{said}");

    // A name of the hosts file is found, and the connection gets as far as the port.
    let source = bare.site.host("db.0").pg(Pg::embedded("18")).build();
    let closed = free_port();
    let blurb = bare.site.directory.join("root/home/blurb");
    let enslave = |text: String| {
        account().write(&blurb, text, 0o644);
        bare.run(&["-D", "/home/data", "enslave", "--info", "/home/blurb"])
    };
    let (code, said) = enslave(source.blurb_at(closed, source.port).replace("127.0.0.1", "primary.test"));
    assert_eq!(code, 4, "{said}");
    assert!(
        said.contains(&format!("could not connect to primary.test:{closed} by SSH: Connection refused")),
        "{said}"
    );
    // With sshd there: cryptography works without OpenSSL's files, and only our key is missing.
    let (code, said) = enslave(source.blurb().replace("127.0.0.1", "primary.test"));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("no key was found"), "{said}");
    // A name that is nowhere, with no DNS server to ask.
    let (code, said) = enslave(source.blurb().replace("127.0.0.1", "nowhere.test"));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("the name was not found"), "{said}");
}

/// A DNS server that knows one name, for as long as it lives.
fn dns_server(name: &'static str, address: [u8; 4]) -> std::net::Ipv4Addr {
    let ours = std::net::Ipv4Addr::new(127, 0, 0, 99);
    let socket =
        std::net::UdpSocket::bind((ours, 53)).expect("port 53 of 127.0.0.99 is free, and we are root");
    std::thread::spawn(move || {
        let mut query = [0u8; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // Header of 12 bytes, labels with their lengths, a zero, type and class (RFC 1035, 4.1).
            let labels = query[12..length].iter().position(|byte| *byte == 0).unwrap();
            let end = 12 + labels + 5;
            let wire: Vec<u8> =
                name.split('.').flat_map(|l| [&[l.len() as u8], l.as_bytes()].concat()).collect();
            let known = query[12..12 + labels] == wire[..];
            let is_a = query[12 + labels + 2] == 1;
            let mut answer = query[..2].to_vec();
            let (code, count) = (if known { 0x80 } else { 0x83 }, u8::from(known && is_a));
            answer.extend([0x81, code, 0, 1, 0, count, 0, 0, 0, 0]);
            answer.extend(&query[12..end]);
            if count == 1 {
                answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    ours
}

#[test]
fn names_resolve_by_dns_whatever_nsswitch_wants_to_load() {
    let bare = Bare::new();
    let server = dns_server("in-dns.test", [127, 0, 0, 1]);
    let etc = bare.site.directory.join("root/etc");
    account().write(&etc.join("resolv.conf"), format!("nameserver {server}\n"), 0o644);
    // Modules that a static program cannot load, as systemd's and Avahi's packages set them up.
    let nsswitch = "passwd: systemd files\nhosts: resolve mdns4_minimal [NOTFOUND=return] myhostname dns\n";
    account().write(&etc.join("nsswitch.conf"), nsswitch, 0o644);
    let closed = free_port();
    for (name, why) in [("in-dns.test", "Connection refused"), ("not-in-dns.test", "the name was not found")]
    {
        let blurb = format!(
            "ports:\n-   name: ssh\n    url: ssh://x@{name}:{closed}\n-   name: pgsql\n    url: tcp://{name}:1\n"
        );
        account().write(&bare.site.directory.join("root/home/blurb"), blurb, 0o644);
        let (code, said) = bare.run(&["-D", "/home/data", "enslave", "--info", "/home/blurb"]);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains(&format!("could not connect to {name}:{closed} by SSH: {why}")), "{said}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).stopped().build();
    let script = format!("'{}' config | true; exit ${{PIPESTATUS[0]}}", binary().display());
    let output = host.command("bash").arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn quiet_is_quiet_and_results_go_to_stdout() {
    let (primary, standby) = pair(Pg::embedded("18"));
    let quiet = standby.agent(&["-q", "enslave"]).stdin(primary.blurb()).run().ok();
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.starts_with("db.1 streams from the source: "), "{quiet:?}");
    assert_eq!(quiet.stdout.lines().count(), 1, "{quiet:?}");
    let again = standby.agent(&["enslave"]).stdin(primary.blurb()).run().ok();
    assert!(again.stdout.starts_with("db.1 follows the source already"), "{again:?}");
}

#[test]
fn home_may_be_given() {
    let site = Site::new();
    let host = site.host("db.0").pg(Pg::embedded("18")).stopped().build();
    let output = host
        .agent(&["--json", "--home", host.home.to_str().unwrap(), "info"])
        .env("HOME", "/nonexistent")
        .run();
    assert_eq!(output.json()["instance"], "db.0");
    assert!(Path::new(&host.home).exists());
}
