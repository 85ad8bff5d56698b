//! Sources of PostgreSQL that are no sources: a mirror like PostgreSQL's own, stand-in tarballs that "compile"
//! in a moment to a real server with another minor version, and a web server for them.

use super::account::{account, must};
use super::host::{Pg, quote};
use super::site::{Site, free_port, until};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tar::EntryType;

/// A directory with releases, laid out as https://ftp.postgresql.org/pub/source is.
pub struct Mirror {
    pub directory: PathBuf,
}

impl Mirror {
    pub fn new(site: &Site) -> Mirror {
        Mirror::named(site, "mirror")
    }

    pub fn named(site: &Site, name: &str) -> Mirror {
        let directory = site.directory.join(name);
        account().mkdir(&directory, 0o755);
        Mirror { directory }
    }

    /// One with a stand-in of each of these versions.
    pub fn with(site: &Site, versions: &[&str]) -> Mirror {
        let mirror = Mirror::new(site);
        for version in versions {
            mirror.publish(&Standin::new(version));
        }
        mirror
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.directory.display())
    }

    pub fn tarball_url(&self, version: &str) -> String {
        format!("{}/v{version}/{}", self.url(), tarball_name(version))
    }

    pub fn tarball(&self, version: &str) -> PathBuf {
        self.directory.join(format!("v{version}")).join(tarball_name(version))
    }

    pub fn checksum_file(&self, version: &str) -> PathBuf {
        self.tarball(version).with_extension("gz.sha256")
    }

    pub fn publish(&self, standin: &Standin) {
        self.publish_bytes(&standin.version, &standin.tarball(self));
    }

    /// Anything as a release, with its checksum.
    pub fn publish_bytes(&self, version: &str, bytes: &[u8]) {
        let directory = self.directory.join(format!("v{version}"));
        if !directory.exists() {
            account().mkdir(&directory, 0o755);
        }
        account().write(&self.tarball(version), bytes, 0o644);
        let line = format!("{}  {}\n", sha256(bytes), tarball_name(version));
        account().write(&self.checksum_file(version), line, 0o644);
    }

    /// What the stand-ins of this mirror have been told, a line each: `configure ARGUMENTS`, `make`, `install`.
    pub fn runs(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("runs")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// How often something was compiled from here.
    pub fn builds(&self) -> usize {
        self.runs().iter().filter(|run| run.starts_with("configure")).count()
    }

    /// From now on every stand-in's make waits, until [`Mirror::release`].
    pub fn hold(&self) {
        account().write(&self.directory.join("hold"), "", 0o644);
    }

    pub fn release(&self) {
        std::fs::remove_file(self.directory.join("hold")).unwrap();
    }

    pub fn until_make_is_at_work(&self) {
        until("make is at work", 60, || self.runs().iter().any(|run| run == "make"));
    }
}

fn tarball_name(version: &str) -> String {
    format!("postgresql-{version}.tar.gz")
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tarball whose `make install` copies the embedded server of the same major version and relabels it: a
/// real server of a version that does not exist.
pub struct Standin {
    pub version: String,
    configure: String,
    make: String,
    install: String,
    padding: usize,
    /// Name, kind and link of entries that the tar crate would not write.
    odd: Vec<(String, EntryType, String)>,
}

impl Standin {
    pub fn new(version: &str) -> Standin {
        Standin {
            version: version.into(),
            configure: String::new(),
            make: String::new(),
            install: String::new(),
            padding: 0,
            odd: Vec::new(),
        }
    }

    /// Lines of shell at the end of configure.
    pub fn in_configure(mut self, script: &str) -> Self {
        self.configure = script.into();
        self
    }

    /// Lines of shell at the end of make.
    pub fn in_make(mut self, script: &str) -> Self {
        self.make = script.into();
        self
    }

    /// Lines of shell at the end of make install; `$prefix` is the staged installation.
    pub fn in_install(mut self, script: &str) -> Self {
        self.install = script.into();
        self
    }

    /// Its programs say their version, but no server starts.
    pub fn that_does_not_start(self) -> Self {
        let version = self.version.clone();
        self.in_install(&format!(
            "cat >\"$prefix/bin/postgres\" <<'END'\n#!/bin/sh\ncase $1 in -V | --version)\n\
             echo 'postgres (PostgreSQL) {version}'; exit 0 ;;\nesac\necho 'this one does not start' >&2\nexit 1\nEND"
        ))
    }

    /// So many bytes that no compression makes smaller.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    pub fn entry(mut self, name: &str, kind: EntryType, link: &str) -> Self {
        self.odd.push((name.into(), kind, link.into()));
        self
    }

    fn tarball(&self, mirror: &Mirror) -> Vec<u8> {
        let top = format!("postgresql-{}", self.version);
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        let mut add = |name: &str, content: &[u8], mode: u32| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            archive.append_data(&mut header, format!("{top}/{name}"), content).unwrap();
        };
        add("configure", self.configure_script(mirror).as_bytes(), 0o755);
        add("build.sh", self.build_script(mirror).as_bytes(), 0o755);
        let makefile =
            "all:\n\t@sh ./build.sh make\ninstall:\n\t@sh ./build.sh install '$(DESTDIR)' '$(rpathdir)'\n";
        add("Makefile", makefile.as_bytes(), 0o644);
        add("contrib/Makefile", b"all install:\n\t@echo contrib/$@ done\n", 0o644);
        for n in 0..5 {
            add(&format!("src/{n}.c"), b"int x;\n", 0o644);
        }
        if self.padding > 0 {
            add("padding", &random(self.padding), 0o644);
        }
        for (name, kind, link) in &self.odd {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append(&header, std::io::empty()).unwrap();
        }
        let mut gzip = archive.into_inner().unwrap();
        gzip.flush().unwrap();
        gzip.finish().unwrap()
    }

    fn configure_script(&self, mirror: &Mirror) -> String {
        format!(
            "#!/bin/sh\necho \"configure $*\" >>{runs}\n\
             for what in gcc strip ld; do echo \"checking for $what... yes\"; done\n{more}\n",
            runs = quote(mirror.directory.join("runs")),
            more = self.configure
        )
    }

    fn build_script(&self, mirror: &Mirror) -> String {
        let (major, minor) = self.version.split_once('.').unwrap();
        let server = Pg::embedded(major);
        let real = must(account().command(server.bin.join("postgres")).arg("--version"));
        let real = real.rsplit(' ').next().unwrap();
        assert_eq!(real.len(), self.version.len(), "{real} cannot be relabelled as {}", self.version);
        let real_minor = real.split_once('.').unwrap().1;
        format!(
            "set -e\necho \"$1\" >>{runs}\nif [ \"$1\" = make ]; then\n\
             while [ -e {hold} ]; do sleep 0.05; done\n\
             for n in 0 1 2 3 4; do echo \"gcc -O2 -c -o $n.o src/$n.c\"; done\n{make}\nexit\nfi\n\
             prefix=\"$2/usr/local/postgresql-{version}\"\n[ \"$3\" = '$ORIGIN/../lib' ]\n\
             mkdir -p \"$prefix/lib\"\ncd {native}\ncp -R bin share \"$prefix\"\n\
             cp -R lib/*.so* lib/postgresql lib/pkgconfig \"$prefix/lib\"\n\
             perl -pi -e 's/\\Q{real}/{version}/g; s/{number}/{new_number}/g' \"$prefix/bin/\"*\n{install}\n",
            runs = quote(mirror.directory.join("runs")),
            hold = quote(mirror.directory.join("hold")),
            make = self.make,
            version = self.version,
            native = quote(server.bin.parent().unwrap()),
            number = version_number(major, real_minor),
            new_number = version_number(major, minor),
            install = self.install,
        )
    }
}

/// server_version_num as it stands in the program, written for perl.
fn version_number(major: &str, minor: &str) -> String {
    let number = major.parse::<i32>().unwrap() * 10_000 + minor.parse::<i32>().unwrap();
    number.to_ne_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn random(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next().to_ne_bytes()).take(bytes).collect()
}

/// The real nginx, which serves a directory by http and https.
pub struct Nginx {
    pub port: u16,
    pub tls_port: u16,
    directory: PathBuf,
    child: Child,
}

impl Nginx {
    pub fn serve(site: &Site, mirror: &Mirror) -> Nginx {
        let program = Path::new("/usr/sbin/nginx");
        assert!(program.exists(), "no nginx: run scripts/bootstrap --tests");
        let directory = site.directory.join("nginx");
        account().mkdir(&directory, 0o755);
        let (port, tls_port) = (free_port(), free_port());
        must(
            account()
                .command("openssl")
                .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
                .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
                .arg(directory.join("key.pem"))
                .arg("-out")
                .arg(directory.join("certificate.pem")),
        );
        let at = directory.display();
        let config = format!(
            "daemon off;\nmaster_process off;\npid \"{at}/pid\";\nerror_log \"{at}/error.log\";\n\
             events {{ worker_connections 64; }}\nhttp {{\n\
             log_format short '$request_method $uri $status';\naccess_log \"{at}/access.log\" short;\n\
             client_body_temp_path \"{at}/body\";\nproxy_temp_path \"{at}/proxy\";\n\
             fastcgi_temp_path \"{at}/fastcgi\";\nuwsgi_temp_path \"{at}/uwsgi\";\nscgi_temp_path \"{at}/scgi\";\n\
             server {{\nlisten 127.0.0.1:{port};\nlisten 127.0.0.1:{tls_port} ssl;\n\
             ssl_certificate \"{at}/certificate.pem\";\nssl_certificate_key \"{at}/key.pem\";\n\
             root \"{root}\";\nautoindex on;\n}}\n}}\n",
            root = mirror.directory.display(),
        );
        account().write(&directory.join("nginx.conf"), config, 0o644);
        let mut child = account()
            .command(program)
            .arg("-p")
            .arg(format!("{at}/"))
            .arg("-e")
            .arg(directory.join("error.log"))
            .arg("-c")
            .arg(directory.join("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("nginx answers", 10, || {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(directory.join("error.log")).unwrap_or_default();
                panic!("nginx: {status}\n{log}");
            }
            std::net::TcpStream::connect(("127.0.0.1", tls_port)).is_ok()
        });
        Nginx { port, tls_port, directory, child }
    }

    pub fn url(&self) -> String {
        url_at(self.port)
    }

    pub fn tls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port)
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }

    /// What it was asked and answered, a line each: `GET /v15.98/… 200`.
    pub fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// A mirror behind a port of this machine.
pub fn url_at(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
