//! `pgmahout backup url` and `pgmahout serve`: a link for anyone, to one backup, for a while. Over real HTTP, by curl.

use crate::common::shelf::{objects, shelve, unshelve};
use crate::common::*;
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

/// A host whose server is down, as none is needed, and the port that it gives its backups out on.
fn host() -> (Host, u16) {
    let port = free_port();
    let site = Site::new();
    let host = site.host("db.0").stopped().yml("serve_listen", &format!("127.0.0.1:{port}")).build();
    (host, port)
}

fn serve(host: &Host) -> Running {
    let running = host.agent(&["serve"]).limit(10).spawn();
    until("it listens", 20, || running.stderr().contains("listening on "));
    running
}

fn url(host: &Host, arguments: &[&str]) -> String {
    let output = host.agent(&[&["backup", "url"], arguments].concat()).run().ok();
    output.stdout.trim().to_owned()
}

/// Bytes that repeat nowhere, so that a piece at a wrong place is seen.
fn noise_of(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// curl's exit code, what it printed with -w, and the directory that it ran in.
fn curl(directory: &std::path::Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "120"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("curl is there: run scripts/bootstrap --tests");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The status code of a GET.
fn status(directory: &std::path::Path, url: &str) -> String {
    curl(directory, &["-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", "-g", url]).1
}

/// The whole answer to a request that curl would not make.
fn raw(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(port: u16, target: &str) -> String {
    raw(port, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

#[test]
fn a_link_downloads_its_backup_and_resumes() {
    let (host, port) = host();
    let content = noise_of(20_000_000);
    shelve(&host, "b001", "shop", 1_795_191_420, &content);
    let mut server = serve(&host);
    let link = url(&host, &["b001"]);
    assert!(link.starts_with(&format!("http://127.0.0.1:{port}/b001.dump?expires=")), "{link}");
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("b001.dump");

    assert_eq!(curl(here.path(), &["-O", &link]).0, 0);
    assert!(std::fs::read(&file).unwrap() == content, "the bytes are the same");
    // What broke off goes on; what is whole stays.
    for there in [0, 1, 7_654_321, content.len() - 1] {
        std::fs::write(&file, &content[..there]).unwrap();
        assert_eq!(curl(here.path(), &["-C", "-", "-O", &link]).0, 0, "from {there}");
        assert!(std::fs::read(&file).unwrap() == content, "from {there}");
    }
    // A reader that takes its time gets all of it.
    assert_eq!(curl(here.path(), &["--limit-rate", "8M", "-O", &link]).0, 0);
    assert!(std::fs::read(&file).unwrap() == content);
    // By the name that the answer gives.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(curl(here.path(), &["-OJ", &link]).0, 0);
    assert!(file.exists());

    let (_, head) = curl(here.path(), &["-I", &link]);
    for line in [
        "HTTP/1.1 200 OK",
        "content-length: 20000000",
        "content-type: application/octet-stream",
        "content-disposition: attachment; filename=\"b001.dump\"",
        "accept-ranges: bytes",
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    let part = |range: &str| curl(here.path(), &["-r", range, "-o", "part", "-w", "%{http_code}", &link]).1;
    let read = || std::fs::read(here.path().join("part")).unwrap();
    assert_eq!((part("0-9").as_str(), read() == content[..10]), ("206", true));
    assert_eq!((part("10-19").as_str(), read() == content[10..20]), ("206", true));
    assert_eq!((part("-5").as_str(), read() == content[content.len() - 5..]), ("206", true));
    assert_eq!((part("19999999-30000000").as_str(), read() == content[19_999_999..]), ("206", true));
    assert_eq!(part("20000000-"), "416");
    let (_, head) = curl(here.path(), &["-I", "-r", "0-9", &link]);
    assert!(head.contains("206") && head.contains("content-range: bytes 0-9/20000000"), "{head}");
    let (_, head) = curl(here.path(), &["-I", "-r", "20000000-", &link]);
    assert!(head.contains("416") && head.contains("content-range: bytes */20000000"), "{head}");

    // A log line for each, and nothing in it that could be used.
    let log = server.stderr();
    assert!(log.contains("GET \"/b001.dump\" 206 10"), "{log}");
    let signature = link.rsplit('=').next().unwrap();
    assert!(!log.contains(signature) && !log.contains("signature"), "{log}");
    assert!(server.is_running());
    server.signal(Signal::SIGTERM);
    let output = server.wait().ok();
    output.says("\nended\n");
}

#[test]
fn nothing_else_can_be_reached() {
    let (host, port) = host();
    shelve(&host, "b001", "shop", 1_795_191_420, b"the first");
    shelve(&host, "b002", "shop", 1_795_191_430, b"the second");
    let server = serve(&host);
    let here = tempfile::tempdir().unwrap();
    let link = url(&host, &["b001"]);
    assert_eq!(status(here.path(), &link), "200");
    let base = format!("http://127.0.0.1:{port}");
    let (start, signature) = link.split_at(link.find("&signature=").unwrap() + "&signature=".len());
    let expires = &start[start.find("expires=").unwrap() + 8..start.find('&').unwrap()];

    // Changed, without a signature, or of a backup that is not there: all the same answer.
    let mut wrong = signature.to_owned();
    let last = wrong.pop().unwrap();
    wrong.insert(0, if signature.starts_with('A') { 'B' } else { 'A' });
    let later = (expires.parse::<u64>().unwrap() + 1).to_string();
    let mut bodies = Vec::new();
    for (name, target) in [
        ("another backup", link.replace("b001.dump", "b002.dump")),
        ("none such", link.replace("b001.dump", "b009.dump")),
        ("its manifest", link.replace("b001.dump", "b001.json")),
        ("another name", link.replace("b001.dump", "b001.tar")),
        ("longer", link.replace(expires, &later)),
        ("a wrong signature", format!("{start}{wrong}")),
        ("a short one", format!("{start}{}", &signature[..signature.len() - 1])),
        ("a long one", format!("{start}{signature}{last}")),
        ("none", start.trim_end_matches("&signature=").to_owned()),
        ("no query", format!("{base}/b001.dump")),
        ("no query, none such", format!("{base}/b009.dump")),
    ] {
        let answer = get(port, target.strip_prefix(&base).unwrap());
        assert!(answer.starts_with("HTTP/1.1 403 "), "{name}: {answer}");
        bodies.push(answer.split_once("\r\n\r\n").unwrap().1.to_owned());
    }
    assert!(bodies.iter().all(|body| *body == "this link is not good, or not any more\n"), "{bodies:?}");

    let query = &link[link.find('?').unwrap()..];
    let objects = objects(&host);
    assert!(objects.iter().any(|name| name == "b001.json"), "{objects:?}");
    let traversals = [
        "/",
        "//",
        "/.",
        "/..",
        "/backups",
        "/backups/",
        "/link-key",
        "/.pgmahout/link-key",
        "/password",
        "/../password",
        "/../.pgmahout/link-key",
        "/b001.dump/../../password",
        "/b001.dump/",
        "//b001.dump",
        "/./b001.dump",
        "/%2e%2e/password",
        "/..%2fpassword",
        "/%62001.dump",
        "/b001.dump%00",
        "/b001.dump%2f..",
        "/b001..dump",
        "/etc/passwd",
        "/index.html",
        "/favicon.ico",
        "/B001.dump",
        "/b1.dump",
        "*",
    ];
    for path in
        traversals.iter().map(|path| path.to_string()).chain(objects.iter().map(|name| format!("/{name}")))
    {
        let answer = get(port, &format!("{path}{query}"));
        let code = answer.split(' ').nth(1).unwrap_or("").to_owned();
        // A manifest has a name as a backup's: it takes a signature that nobody can have.
        let expected: &[&str] = if path.ends_with(".json") { &["403"] } else { &["404", "400"] };
        assert!(expected.contains(&code.as_str()), "{path}: {answer}");
        for secret in ["the first", "the second", "sha256", &host.password] {
            assert!(!answer.contains(secret), "{path}: {answer}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"] {
        let target = link.strip_prefix(&base).unwrap();
        let answer =
            raw(port, &format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
            "{method}: {answer}"
        );
    }
    let huge = format!("GET /b001.dump HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(100_000));
    let answer = raw(port, &huge);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    raw(port, "\0\0\0 what is this\r\n\r\n");
    assert_eq!(status(here.path(), &link), "200", "it goes on");
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[test]
fn a_link_ends_with_its_time_and_with_its_backup() {
    let (host, _) = host();
    let manifest = shelve(&host, "b001", "shop", 1_795_191_420, &noise_of(30_000_000));
    let server = serve(&host);
    let here = tempfile::tempdir().unwrap();
    let short = url(&host, &["b001", "--expires", "2"]);
    let long = url(&host, &["b001", "--expires", "600"]);
    until("the short one is over", 20, || status(here.path(), &short) == "403");
    assert_eq!(status(here.path(), &long), "200");
    let report = host.agent(&["--json", "backup", "url", "b001"]).run().json();
    let lasts = report["expires"].as_i64().unwrap() - shelf::now();
    assert!((590..=600).contains(&lasts), "{report}");
    assert_eq!((report["name"].as_str(), report["size"].as_u64()), (Some("b001.dump"), Some(30_000_000)));

    // Deleted in the middle of a download: this one goes on, the next one is refused.
    let slow = Command::new("curl")
        .args(["-sS", "--max-time", "120", "--limit-rate", "10M", "-o", "slow", &long])
        .current_dir(here.path())
        .spawn();
    let mut slow = slow.unwrap();
    until("it has begun", 20, || here.path().join("slow").metadata().is_ok_and(|m| m.len() > 0));
    unshelve(&host, &manifest);
    assert_eq!(status(here.path(), &long), "403");
    assert!(slow.wait().unwrap().success());
    assert_eq!(here.path().join("slow").metadata().unwrap().len(), 30_000_000);
    // Its number is given again: the old link is not the new backup's.
    shelve(&host, "b001", "shop", 1_795_199_999, b"another");
    assert_eq!(status(here.path(), &long), "403");
    assert_eq!(status(here.path(), &url(&host, &["b001"])), "200");
    drop(server);

    host.agent(&["backup", "url", "b007"]).run().fails(
        1,
        &format!("there is no backup b007 in {}", host.home.join("backups").display()),
        "pgmahout backup list shows those that are",
    );
    assert_eq!(host.agent(&["backup", "url", "../x"]).run().code, 2);
    assert_eq!(host.agent(&["backup", "url", "b001", "--expires", "0"]).run().code, 2);
}

#[test]
fn many_at_once_all_get_theirs() {
    let (host, port) = host();
    let content = noise_of(3_000_000);
    shelve(&host, "b001", "shop", 1_795_191_420, &content);
    let server = serve(&host);
    let link = url(&host, &["b001"]);
    let here = tempfile::tempdir().unwrap();
    // Some that say nothing are among them.
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let downloads: Vec<_> = (0..100)
        .map(|n| {
            let name = n.to_string();
            Command::new("curl")
                .args(["-sS", "--max-time", "120", "-o", &name, &link])
                .current_dir(here.path())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut download in downloads {
        assert!(download.wait().unwrap().success());
    }
    for n in 0..100 {
        assert!(std::fs::read(here.path().join(n.to_string())).unwrap() == content, "{n}");
    }
    // Bounded, however many and however large: a chunk for each connection.
    let of = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = of.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100_000, "{peak} kB");
    drop(silent);
}

#[test]
fn the_key_is_this_instances_own_and_two_do_not_listen() {
    let (host, port) = host();
    shelve(&host, "b001", "shop", 1_795_191_420, b"the first");
    // Whoever comes first makes the key; all links are good.
    let asking: Vec<Running> =
        (0..8).map(|_| host.agent(&["backup", "url", "b001", "--expires", "600"]).spawn()).collect();
    let links: Vec<String> = asking.into_iter().map(|a| a.wait().ok().stdout.trim().to_owned()).collect();
    let key = host.home.join(".pgmahout/link-key");
    let metadata = std::fs::metadata(&key).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (32, 0o600));
    let server = serve(&host);
    let here = tempfile::tempdir().unwrap();
    for link in &links {
        assert_eq!(status(here.path(), link), "200", "{link}");
    }
    let left: Vec<_> = std::fs::read_dir(host.home.join(".pgmahout")).unwrap().flatten().collect();
    assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with(".link-key")), "{left:?}");

    let second = host.agent(&["serve"]).run();
    second.fails(
        1,
        &format!("cannot listen on 127.0.0.1:{port}: Address already in use (os error 98)"),
        "another pgmahout serve, or another program, has it; stop that, or set serve_listen",
    );
    let odd = host.agent(&["serve"]).env("PGMAHOUT_SERVE_LISTEN", "nowhere").run();
    assert_eq!(odd.code, 1);
    odd.says("hint: set serve_listen to an ADDRESS:PORT of this machine");

    // Another key, another instance.
    host.account.write(&key, [1; 32], 0o600);
    assert_eq!(status(here.path(), &links[0]), "403");
    host.account.write(&key, "short", 0o600);
    let refused = host.agent(&["backup", "url", "b001"]).run();
    assert_eq!(refused.code, 1);
    refused.says("is not a key for links: it is too short");
    drop(server);
}

#[test]
fn a_link_says_where_others_reach_it() {
    let (host, port) = host();
    shelve(&host, "b001", "shop", 1_795_191_420, b"the first");
    let ask = |name: &str, value: &str| host.agent(&["backup", "url", "b001"]).env(name, value).run().ok();
    ask("X", "").says(&format!(
        "nothing listens on 127.0.0.1:{port} now: the link works while `pgmahout serve` runs"
    ));
    let _server = serve(&host);
    ask("X", "")
        .says_not("nothing listens")
        .says(&format!("http://127.0.0.1:{port}/b001.dump?"))
        .says("on this machine only");
    ask("PGMAHOUT_SERVE_URL", "https://backups.example.com/x/")
        .says("https://backups.example.com/x/b001.dump?")
        .says_not("warning");
    ask("PGMAHOUT_SERVE_LISTEN", "10.1.2.3:5480").says("http://10.1.2.3:5480/b001.dump?").says_not("warning");
    let name = nix::unistd::gethostname().unwrap();
    ask("PGMAHOUT_SERVE_LISTEN", "0.0.0.0:5480").says(&format!("http://{}:5480/b001.dump?", name.display()));
    // dotCloud names the ports of all instances.
    let environment = r#"{"DOTCLOUD_PROJECT":"shop","DOTCLOUD_SERVICE_NAME":"my-db","DOTCLOUD_SERVICE_ID":"2",
        "DOTCLOUD_MY_DB_BACKUPS_URL_1":"http://h:1/","DOTCLOUD_MY_DB_BACKUPS_URL_2":"http://db.example.com:31012/"}"#;
    host.account.write(&host.home.join("environment.json"), environment, 0o600);
    ask("X", "").says("http://db.example.com:31012/b001.dump?").says_not("warning");
}

/// Status, headers and body without the time of day.
fn timeless(answer: String) -> String {
    answer.lines().filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn ten_thousand_wrong_links_tell_nothing_and_cost_nothing() {
    let (host, port) = host();
    let manifest = shelve(&host, "b001", "shop", 1_795_191_420, b"the first");
    shelve(&host, "b002", "shop", 1_795_191_430, b"the second");
    // An object of the catalogue that leads out of the store.
    let outside = host.home.join("backups").join(&shelve(&host, "b003", "shop", 1_795_191_440, b"x").file);
    std::fs::remove_file(&outside).unwrap();
    std::os::unix::fs::symlink(host.home.join("password"), &outside).unwrap();
    let server = serve(&host);
    let target = |link: &str| link[link.find("/b0").unwrap()..].to_owned();
    let good = target(&url(&host, &["b001"]));
    let over = target(&url(&host, &["b001", "--expires", "1"]));
    let led_out = target(&url(&host, &["b003"]));
    assert!(get(port, &good).ends_with("\r\n\r\nthe first"));
    let open = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };

    // Every bit of the path, of the time and of the signature.
    let mut changed = 0;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if text.contains(|c: char| c.is_control() || c == ' ' || c == '#') {
            continue;
        }
        let answer = get(port, &text);
        let code = answer.split(' ').nth(1).unwrap_or("");
        assert!(["400", "403", "404"].contains(&code) && !answer.contains("the first"), "{text}: {answer}");
        changed += 1;
    }
    assert!(changed > 500, "{changed}");
    until("the short one is over", 20, || get(port, &over).starts_with("HTTP/1.1 403 "));
    let refused = timeless(get(port, &over));
    let answer = get(port, &led_out);
    assert!(!answer.starts_with("HTTP/1.1 2") && !answer.contains(&host.password), "{answer}");

    // Of backups that are there and of those that are not, for one is as for the other; with odd requests between them.
    let (before, descriptors) = (resident(), open());
    let query = &good[good.find('?').unwrap()..];
    let key = good.rsplit('=').next().unwrap();
    let expires = shelf::now() + 500;
    let ask = |from: usize| {
        for n in (from..10_000).step_by(4) {
            let forged = sha256(n.to_string().as_bytes());
            let link = match n % 5 {
                0 => format!("/b001.dump?expires={expires}&signature={}", &forged[..43]),
                1 => format!("/b{:03}.dump?expires={expires}&signature={key}", 4 + n % 900),
                2 => format!("/b002.dump{query}"),
                3 => format!("/{}{query}", manifest.file.replace("b001", "b002").replace('-', ".")),
                // Later than the good one in any case.
                _ => format!("/b001.dump?signature={key}&expires={}", n as i64 + expires + 1_000_000),
            };
            assert_eq!(timeless(get(port, &link)), refused, "{link}");
            match n % 400 {
                0 => drop(raw(
                    port,
                    &format!("HEAD /b001.dump HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(200_000)),
                )),
                100 => {
                    drop(raw(port, &format!("POST {good} HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")))
                }
                200 => {
                    let ranges = "0-0,".repeat(2000);
                    let answer = raw(
                        port,
                        &format!("GET {good} HTTP/1.1\r\nHost: x\r\nRange: bytes={ranges}1-1\r\n\r\n"),
                    );
                    assert!(answer.ends_with("\r\n\r\nthe first"), "{answer}");
                }
                300 => {
                    let answer = raw(port, &format!("HEAD {good} HTTP/1.1\r\nHost: x\r\n\r\n"));
                    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("the first"), "{answer}");
                }
                _ => {}
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|from| drop(scope.spawn(move || ask(from)))));
    until("the connections are closed", 20, || open() <= descriptors);
    assert!(resident() < before + 20_000, "{before} kB became {} kB", resident());
    assert!(get(port, &good).ends_with("\r\n\r\nthe first"));
    let log = server.stderr();
    assert!(log.matches(" 403 ").count() >= 10_000, "{}", log.len());
    assert!(!log.contains(key) && !log.contains("signature") && !log.contains("panicked"));
}
