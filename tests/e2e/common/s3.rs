//! A real S3 server on loopback: moto, which scripts/bootstrap --tests installs. In one thing it is helped: S3
//! decides "only if there is none" and stores in one step; moto looks first and stores then, and of two requests at
//! the same time both can be told that they were the first.

use super::agent::Run;
use super::site::{Site, free_port, until};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Its server, ended when it is dropped. What it holds lies in its memory.
pub struct S3 {
    child: Child,
    pub port: u16,
}

/// Credentials that moto takes (it takes any, until [`S3::revoke`]).
pub const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// moto_server, with one request after the other where a condition is to be kept.
const SERVER: &str = r#"
import os
import threading
import moto.server

lock = threading.Lock()
run = moto.server.run_simple

def in_turn(application):
    def serve(environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environ:
            if "UNCONDITIONAL" in os.environ:
                start_response("501 Not Implemented", [("Content-Type", "application/xml")])
                return [b"<Error><Code>NotImplemented</Code><Message>no If-None-Match here</Message></Error>"]
            with lock:
                return application(environ, start_response)
        return application(environ, start_response)
    return serve

moto.server.run_simple = lambda host, port, application, **more: run(host, port, in_turn(application), **more)
moto.server.main()
"#;

/// Python with moto.
fn program() -> PathBuf {
    let cache = std::env::var_os("PGMAHOUT_MOTO").map(PathBuf::from).unwrap_or_else(|| {
        if nix::unistd::geteuid().is_root() {
            return "/var/cache/pgmahout/moto".into();
        }
        let home = PathBuf::from(std::env::var_os("HOME").expect("HOME"));
        std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("pgmahout/moto")
    });
    let program = cache.join("bin/python");
    assert!(program.exists(), "no S3 server in {}: run scripts/bootstrap --tests", cache.display());
    program
}

impl S3 {
    pub fn start(site: &Site) -> S3 {
        S3::start_at(site, free_port())
    }

    /// One that knows no "only if there is none", as older services of this kind.
    pub fn start_unconditional(site: &Site) -> S3 {
        S3::run(site, free_port(), &[("UNCONDITIONAL", "yes")])
    }

    /// On a port that is known before, such as that of one that was ended.
    pub fn start_at(site: &Site, port: u16) -> S3 {
        S3::run(site, port, &[])
    }

    fn run(site: &Site, port: u16, environment: &[(&str, &str)]) -> S3 {
        let log = site.directory.join(format!("s3-{port}.log"));
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(program())
            .envs(environment.iter().copied())
            .args(["-c", SERVER, "-H", "127.0.0.1", "-p", &port.to_string()])
            // So that a killed test run's server is found by its working directory.
            .current_dir(&site.directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut s3 = S3 { child, port };
        until("the S3 server answers", 60, || {
            let ended = s3.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        s3
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lines of pgmahout.yml for a store in `bucket`, under `prefix` (may be empty).
    pub fn yml(&self, bucket: &str, prefix: &str) -> [(&'static str, String); 3] {
        let store = format!("s3://{bucket}/{prefix}");
        let store = store.trim_end_matches('/').to_owned();
        [("store", store), ("store_endpoint", self.endpoint()), ("store_region", "us-east-1".into())]
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(120)))
            .http_status_as_error(false)
            .build()
            .into();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint()))
            // Nothing is checked but that there is one.
            .header(
                "Authorization",
                format!(
                    "AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
                     Signature=0"
                ),
            )
            .body(body)
            .unwrap();
        let mut response = agent.run(request).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let bytes = response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
        (response.status().as_u16(), bytes)
    }

    fn must(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let (status, bytes) = self.request(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        bytes
    }

    pub fn create_bucket(&self, name: &str) {
        self.must("PUT", &format!("/{name}"), b"");
    }

    /// The names of all objects, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let text = self.must("GET", &format!("/{bucket}?list-type=2"), b"");
        let mut keys = elements(&String::from_utf8(text).unwrap(), "Key");
        keys.sort();
        keys
    }

    /// The names of all multipart uploads that are neither completed nor aborted.
    pub fn uploads(&self, bucket: &str) -> Vec<String> {
        elements(&String::from_utf8(self.must("GET", &format!("/{bucket}?uploads"), b"")).unwrap(), "Key")
    }

    pub fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.must("GET", &format!("/{bucket}/{key}"), b"")
    }

    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        self.must("PUT", &format!("/{bucket}/{key}"), bytes);
    }

    pub fn delete(&self, bucket: &str, key: &str) {
        self.must("DELETE", &format!("/{bucket}/{key}"), b"");
    }

    /// Flips one bit of the byte at `offset`.
    pub fn flip(&self, bucket: &str, key: &str, offset: usize) {
        let mut bytes = self.get(bucket, key);
        bytes[offset] ^= 1;
        self.put(bucket, key, &bytes);
    }

    /// From now on every credential is checked; none is good.
    pub fn revoke(&self) {
        self.must("POST", "/moto-api/reset-auth", b"0");
    }
}

/// What stands in each `<name>…</name>`.
fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    parts.map(str::to_owned).collect()
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Run<'_> {
    /// With the credentials of [`S3`].
    pub fn s3(self) -> Self {
        self.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET)
    }
}
