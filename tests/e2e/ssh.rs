//! SSH as the agent uses it: host keys, our own keys, the SSH agent, IPv6, odd servers.

use crate::common::*;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Two hosts, and a run that goes through SSH and SQL but changes nothing.
fn dry_run(target: &Host, source: &Host, flags: &[&str]) -> Output {
    let arguments: Vec<&str> = ["enslave", "--dry-run"].iter().chain(flags).copied().collect();
    target.agent(&arguments).stdin(source.blurb()).run()
}

fn known(target: &Host) -> String {
    std::fs::read_to_string(target.known_hosts()).unwrap_or_default()
}

#[test]
fn a_host_key_is_remembered_at_first_and_refused_when_it_changes() {
    let (mut source, target) = pair(Pg::embedded("18"));
    let first = format!(
        "host key of 127.0.0.1:{} seen for the first time and remembered: {}",
        source.ssh_port,
        source.host_key()
    );
    dry_run(&target, &source, &[]).ok().says(&first);
    let line = known(&target);
    assert!(line.starts_with(&format!("[127.0.0.1]:{} ssh-ed25519 ", source.ssh_port)), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    dry_run(&target, &source, &[]).ok().says_not("host key");
    assert_eq!(known(&target), line);
    // OpenSSH reads it as well.
    let ssh = target
        .command("ssh")
        .args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
            "-F",
            "none",
            "-p",
            &source.ssh_port.to_string(),
        ])
        .arg("-o")
        .arg(format!("UserKnownHostsFile=\"{}\"", target.known_hosts().display()))
        .arg("-i")
        .arg(target.home.join(".ssh/id_ed25519"))
        .args([&format!("{}@127.0.0.1", source.account.name), "true"])
        .output()
        .unwrap();
    assert!(ssh.status.success(), "{}", String::from_utf8_lossy(&ssh.stderr));

    // Hashed host names are known hosts too.
    must(target.command("ssh-keygen").args(["-q", "-H", "-f"]).arg(target.known_hosts()));
    assert!(known(&target).starts_with("|1|"), "{}", known(&target));
    dry_run(&target, &source, &[]).ok().says_not("host key");

    let old = source.host_key();
    source.stop_sshd();
    source.new_host_key();
    source.start_sshd();
    let before = known(&target);
    let refused = dry_run(&target, &source, &[]);
    assert_eq!(refused.code, 3, "{refused:?}");
    refused
        .says(&format!("the host key of 127.0.0.1:{} has changed", source.ssh_port))
        .says(&source.host_key());
    assert_eq!(known(&target), before);
    // A pin decides alone: the new key is taken, the old one is not, and nothing is remembered by it.
    dry_run(&target, &source, &["--host-key", &source.host_key()]).ok();
    dry_run(&target, &source, &["--host-key", &old]).fails(
        3,
        &format!("127.0.0.1:{} shows the host key {}, not {old}", source.ssh_port, source.host_key()),
        "if that is expected, give the new fingerprint by --host-key",
    );
    assert_eq!(known(&target), before);
}

#[test]
fn a_pin_on_the_first_meeting() {
    let (source, target) = pair(Pg::embedded("18"));
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let before = snapshot(&target);
    dry_run(&target, &source, &["--host-key", wrong]).fails(
        3,
        &format!("127.0.0.1:{} shows the host key {}, not {wrong}", source.ssh_port, source.host_key()),
        "if that is expected, give the new fingerprint by --host-key",
    );
    assert_eq!(source.ssh_commands(), Vec::<String>::new(), "something was run before the key was checked");
    before.assert_unchanged(&target);
    target.enslave(&source, &["--host-key", &source.host_key()]);
    assert_streams(&source, &target);
}

#[test]
fn a_known_key_of_another_kind_is_asked_for() {
    let (source, target) = pair(Pg::embedded("18"));
    // The server has two keys; the one we know is not the one it would offer first.
    let rsa = source.home.join("sshd/rsa");
    must(source.command("ssh-keygen").args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"]).arg(&rsa));
    let mut source = source;
    source.stop_sshd();
    let config = source.home.join("sshd/config");
    source.sshd_extra = format!("HostKey \"{}\"\n", rsa.display());
    source.start_sshd();
    assert!(std::fs::read_to_string(config).unwrap().contains("rsa"));
    let public = std::fs::read_to_string(rsa.with_extension("pub")).unwrap();
    let key: Vec<&str> = public.split(' ').take(2).collect();
    let line = format!("# a comment\n[127.0.0.1]:{} {}\n", source.ssh_port, key.join(" "));
    target.account.write(&target.known_hosts(), &line, 0o600);
    dry_run(&target, &source, &[]).ok().says_not("host key");
    assert_eq!(known(&target), line);
}

#[test]
fn a_revoked_key_is_refused() {
    let (source, target) = pair(Pg::embedded("18"));
    let public = std::fs::read_to_string(source.home.join("sshd/host_key.pub")).unwrap();
    let key: Vec<&str> = public.split(' ').take(2).collect();
    target.account.write(&target.known_hosts(), format!("@revoked * {}\n", key.join(" ")), 0o600);
    dry_run(&target, &source, &[]).fails(
        3,
        &format!(
            "the host key {} of 127.0.0.1:{} is revoked by {}",
            source.host_key(),
            source.ssh_port,
            target.known_hosts().display()
        ),
        "",
    );
}

#[test]
fn ipv6_from_end_to_end() {
    let site = Site::new();
    let source = site.host("db.0").pg(Pg::embedded("18")).ipv6().build();
    let target = site.host("db.1").pg(Pg::embedded("18")).ipv6().build();
    assert!(source.blurb().contains("@[::1]:"), "{}", source.blurb());
    source.exec("CREATE TABLE t AS SELECT 1 AS n");
    target.enslave(&source, &[]);
    assert_streams(&source, &target);
    compare(&source, &target);
    let host = target.one("SELECT substring(conninfo from 'host=(\\S+)') FROM pg_stat_wal_receiver");
    assert_eq!(host, "::1");
    assert!(known(&target).starts_with(&format!("[::1]:{} ", source.ssh_port)), "{}", known(&target));
    target.agent(&["promote", "--fence"]).stdin(source.blurb()).run().ok();
    assert!(!source.is_running() && !target.is_standby());
}

/// An ssh-agent with the key of the site.
struct SshAgent {
    child: Child,
    socket: std::path::PathBuf,
}

impl SshAgent {
    fn start(host: &Host, keys: &[&Path]) -> SshAgent {
        let socket = host.home.join("run/agent");
        let child = host
            .command("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("ssh-agent");
        until("ssh-agent answers", 10, || socket.exists());
        for key in keys {
            must(
                host.command("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).stdin(Stdio::null()),
            );
        }
        SshAgent { child, socket }
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_ssh_agents_keys() {
    let site = Site::new();
    let source = site.host("db.0").pg(Pg::embedded("18")).build();
    let target = site.host("db.1").pg(Pg::embedded("18")).without_identity().build();
    let key = source.home.join(".ssh/id_ed25519");
    // Without it nobody is let in; with it everything works, also over several sessions.
    let refused = dry_run(&target, &source, &[]);
    assert_eq!(refused.code, 4, "{refused:?}");
    // Other keys in the agent come first; a server hangs up after six wrong ones.
    let others = [site.new_key("a"), site.new_key("b"), site.new_key("c")];
    let keys: Vec<&Path> = others.iter().map(|p| p.as_path()).chain([key.as_path()]).collect();
    let agent = SshAgent::start(&target, &keys);
    let output = target.agent(&["enslave"]).stdin(source.blurb()).env("SSH_AUTH_SOCK", &agent.socket).run();
    output.ok();
    assert_streams(&source, &target);
}

#[test]
fn an_agent_full_of_wrong_keys_does_not_keep_the_key_file_from_its_turn() {
    let (source, target) = pair(Pg::embedded("18"));
    let others: Vec<_> = (0..8).map(|n| source.site.new_key(&format!("wrong{n}"))).collect();
    let keys: Vec<&Path> = others.iter().map(|p| p.as_path()).collect();
    let agent = SshAgent::start(&target, &keys);
    let run = |target: &Host| {
        target
            .agent(&["enslave", "--dry-run"])
            .stdin(source.blurb())
            .env("SSH_AUTH_SOCK", &agent.socket)
            .run()
    };
    run(&target).ok();
    // An agent that is dead is as good as none.
    let dead = target.home.join("run/nobody");
    target.agent(&["enslave", "--dry-run"]).stdin(source.blurb()).env("SSH_AUTH_SOCK", dead).run().ok();
}

#[test]
fn keys_of_other_kinds_and_places() {
    let (source, target) = pair(Pg::embedded("18"));
    std::fs::remove_file(target.home.join(".ssh/id_ed25519")).unwrap();
    for (kind, extra) in
        [("ecdsa", &["-b", "256"][..]), ("rsa", &["-b", "2048"]), ("rsa", &["-b", "2048", "-m", "PEM"])]
    {
        let path = target.home.join(format!(".ssh/id_{kind}"));
        let _ = std::fs::remove_file(&path);
        must(target.command("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-f"]).arg(&path).args(extra));
        let public = std::fs::read(path.with_extension("pub")).unwrap();
        source.account.write(&source.home.join(".ssh/authorized_keys"), public, 0o600);
        dry_run(&target, &source, &[]).ok();
        std::fs::remove_file(path.with_extension("pub")).unwrap();
        dry_run(&target, &source, &[]).ok();
        std::fs::rename(&path, target.home.join("key elsewhere")).unwrap();
        let output = target
            .agent(&["enslave", "--dry-run"])
            .stdin(source.blurb())
            .env("PGMAHOUT_SSH_IDENTITY", target.home.join("key elsewhere"))
            .run();
        output.ok();
    }
}

#[test]
fn a_login_that_talks() {
    let (source, target) = pair(Pg::embedded("18"));
    // A profile that prints, as many do.
    let wrapper = source.home.join("sshd/wrapper");
    let talking = std::fs::read_to_string(&wrapper).unwrap().replace(
        "exec /bin/bash",
        "echo 'Welcome to db.0!'; printf 'no newline'; echo 'and to stderr' >&2\nexec /bin/bash",
    );
    source.account.write(&wrapper, talking, 0o755);
    target.enslave(&source, &[]);
    assert_streams(&source, &target);
    target.agent(&["promote", "--fence"]).stdin(source.blurb()).run().ok();
}

#[test]
fn a_login_that_is_denied_a_shell() {
    let (source, target) = pair(Pg::embedded("18"));
    source.account.write(
        &source.home.join("sshd/wrapper"),
        "#!/bin/sh\necho 'This account is not available.'\nexit 1\n",
        0o755,
    );
    let before = snapshot(&target);
    let output = dry_run(&target, &source, &[]);
    assert_eq!(output.code, 1, "{output:?}");
    output.says("This account is not available.");
    before.assert_unchanged(&target);
}

#[test]
fn a_server_that_accepts_and_says_nothing() {
    let (source, target) = pair(Pg::embedded("18"));
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let enslave =
        |blurb: String| target.agent(&["enslave"]).stdin(blurb).env("PGMAHOUT_CONNECT_TIMEOUT", "2").run();
    let output = enslave(source.blurb_at(port, source.port));
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.elapsed.as_secs() < 60, "{:?}", output.elapsed);
    let output = enslave(source.blurb_at(source.ssh_port, port));
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.elapsed.as_secs() < 60, "{:?}", output.elapsed);
}

#[test]
fn names_of_the_hosts_file_resolve() {
    let (source, target) = pair(Pg::embedded("18"));
    let name =
        Command::new("hostname").output().ok().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let mut names = vec!["localhost".to_owned()];
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    names.extend(name.filter(|n| {
        hosts.lines().any(|l| l.starts_with("127.0.0.1") && l.split_whitespace().any(|w| w == n))
    }));
    for name in names {
        let blurb = source.blurb().replace("127.0.0.1", &name);
        target.agent(&["enslave", "--dry-run"]).stdin(blurb).run().ok();
    }
}

/// The source as `~/.ssh/config` knows it, and nobody else.
fn known_as_db_zero(site: &std::sync::Arc<Site>, source: &Host, name: &str, client: Option<&str>) -> Host {
    let mut builder = site.host(name).pg(Pg::embedded("18"));
    if let Some(client) = client {
        builder = builder.yml("ssh", client);
    }
    let target = builder.build();
    let config = format!(
        "Host db-zero\n  HostName 127.0.0.1\n  Port {}\n  StrictHostKeyChecking accept-new\n",
        source.ssh_port
    );
    target.account.write(&target.home.join(".ssh/config"), config, 0o600);
    target
}

fn as_db_zero(source: &Host) -> String {
    let text = source.blurb().replace(&format!("@127.0.0.1:{}", source.ssh_port), "@db-zero");
    assert!(text.contains("@db-zero"), "{text}");
    text
}

#[test]
fn the_machines_own_ssh_and_its_configuration() {
    let site = Site::new();
    let mut source = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&source, 8);
    let target = known_as_db_zero(&site, &source, "db.1", Some("system"));
    let blurb = as_db_zero(&source);
    let enslave = |arguments: &[&str]| target.agent(arguments).stdin(blurb.clone()).run();
    enslave(&["enslave"]).ok().says("over 2 SSH sessions").says("db.1 streams from");
    assert!(!known(&target).is_empty());
    assert_streams(&source, &target);
    compare(&source, &target);
    target.stop();
    let done = enslave(&["--json", "enslave", "--plan", "delta"]).json();
    assert_eq!(done["copied"]["compared"], true, "{done}");
    assert_streams(&source, &target);

    let pinned = enslave(&["enslave", "--plan", "full", "--host-key", "SHA256:x"]);
    assert_eq!(pinned.code, 4, "{pinned:?}");
    pinned.says("--host-key is not for the machine's own ssh, which has known_hosts");
    source.stop_sshd();
    source.new_host_key();
    source.start_sshd();
    let refused = enslave(&["enslave", "--plan", "full"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    refused.says("ssh says: Host key verification failed");
}

#[test]
fn the_machines_own_ssh_where_the_built_in_does_not_get_in() {
    let site = Site::new();
    let source = site.host("db.0").pg(Pg::embedded("18")).build();
    let target = known_as_db_zero(&site, &source, "db.1", None);
    target.agent(&["enslave", "--dry-run"]).stdin(as_db_zero(&source)).run().ok().says("would copy");
    for (name, client, code, said) in [
        ("db.2", "builtin", 4, "db-zero:22 by SSH: the name was not found"),
        ("db.3", "putty", 2, "auto, builtin or system"),
    ] {
        let host = known_as_db_zero(&site, &source, name, Some(client));
        let refused = host.agent(&["enslave", "--dry-run"]).stdin(as_db_zero(&source)).run();
        assert_eq!(refused.code, code, "{refused:?}");
        refused.says(said);
    }
}

/// Nothing comes for some seconds, and then it goes on.
#[test]
fn a_line_that_stands_still_for_a_while() {
    let site = Site::new();
    let source = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&source, 12);
    let target = site.host("db.1").pg(Pg::embedded("18")).build();
    let proxy = Proxy::to(source.ssh_port);
    proxy.set_rate(2_000_000);
    let mut running = target
        .agent(&["enslave", "--confirm", "db.1"])
        .stdin(source.blurb_at(proxy.port, source.port))
        .spawn();
    until("it copies", 60, || proxy.passed() > 2_000_000 || !running.is_running());
    let stood_still = proxy.passed();
    proxy.set_rate(1);
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert!(running.is_running(), "{}", running.stderr());
    assert!(proxy.passed() < stood_still + 2_000_000, "it did not stand still");
    proxy.set_rate(0);
    running.wait().ok();
    assert_streams(&source, &target);
    compare(&source, &target);
}

/// OpenSSH's client fetches the bulk of it, and what its configuration says of the host does not lead it elsewhere.
#[test]
fn what_does_not_compress_comes_over_the_machines_own_ssh() {
    const SAID: &str = "OpenSSH's own client fetches it";
    let site = Site::new();
    let source = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&source, 280);
    let target = site.host("db.1").pg(Pg::embedded("18")).build();
    let config = target.home.join(".ssh/config");
    target.account.write(&config, "Host 127.0.0.1\n  HostName 192.0.2.1\n", 0o600);
    let enslave = |client: &str, compression: &str| {
        let words =
            ["--verbose", "enslave", "--confirm", "db.1", "--plan", "full", "--compress", compression];
        target.agent(&words).env("PGMAHOUT_SSH", client).stdin(source.blurb()).run().ok()
    };
    enslave("auto", "auto").says(SAID);
    assert_streams(&source, &target);
    compare(&source, &target);
    enslave("auto", "lz4").says_not(SAID);
    enslave("builtin", "auto").says_not(SAID);
    assert_streams(&source, &target);
}
