//! Gives a link to a backup that is good for a while: the store's own, or one to `pgmahout serve`.

use super::super::Context;
use crate::backups::link;
use crate::backups::manifest::BackupId;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::layout;
use crate::store::{self, catalog};
use serde::Serialize;
use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// A link.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The backup.
    pub id: BackupId,
    /// The link itself.
    pub url: String,
    /// Until when it is good, seconds since 1970.
    pub expires: i64,
    /// What it is saved as.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The bytes are encrypted: `age`.
    pub encryption: Option<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Makes one; `expires` in place of the setting.
pub fn run(context: Context, id: BackupId, expires: Option<Duration>) -> Result<Report> {
    let instance = context.instance;
    let store = store::open(instance)?;
    let manifest = catalog::find(&*store, id)?.manifest;
    let lasts = expires.unwrap_or(instance.backup.link_expires);
    let expires = super::now() + lasts.as_secs() as i64;
    let name = manifest.download_name();
    let mut warnings = Vec::new();
    let url = match store.link(&manifest.file, &name, lasts)? {
        Some(url) => url,
        None => {
            let base = base_url(instance);
            if is_loopback(&base) {
                warnings.push(
                    "the link can be used on this machine only; set serve_listen to an address that others reach, \
                     or serve_url to the URL of a proxy before it"
                        .to_owned(),
                );
            }
            if nobody_listens(&instance.backup.serve_listen) {
                warnings.push(format!(
                    "nothing listens on {} now: the link works while `pgmahout serve` runs",
                    instance.backup.serve_listen
                ));
            }
            let base = base.trim_end_matches('/');
            format!("{base}/{}", link::signed(&key(instance)?, id, &name, &manifest.file, expires))
        }
    };
    if manifest.encryption.is_some() {
        warnings.push(
            "what is downloaded is encrypted: it takes the key file or passphrase and `age --decrypt`, or \
             `pgmahout backup restore`, to use it"
                .into(),
        );
    }
    Ok(Report { id, url, expires, name, size: manifest.size, encryption: manifest.encryption, warnings })
}

/// Under which URL others reach `pgmahout serve`: as said, as the platform says, or where it listens.
fn base_url(instance: &Instance) -> String {
    if let Some(url) = &instance.backup.serve_url {
        return url.clone();
    }
    if let Some(url) = platform_url(instance) {
        return url;
    }
    let listen = &instance.backup.serve_listen;
    let (host, port) = listen.rsplit_once(':').unwrap_or((listen, ""));
    let host = match host {
        // All addresses: the machine's name is the best that can be said.
        "" | "*" | "0.0.0.0" | "[::]" => nix::unistd::gethostname()
            .ok()
            .map_or("127.0.0.1".into(), |name| name.to_string_lossy().into_owned()),
        host => host.to_owned(),
    };
    format!("http://{host}:{port}")
}

/// dotCloud names every port of every instance: DOTCLOUD_DB_BACKUPS_URL_0.
fn platform_url(instance: &Instance) -> Option<String> {
    let environment = layout::read_environment(&instance.home);
    let service = environment.get("DOTCLOUD_SERVICE_NAME")?.to_uppercase();
    let service: String = service.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let number = environment.get("DOTCLOUD_SERVICE_ID")?;
    let of = |what: &str| environment.get(&format!("DOTCLOUD_{service}_BACKUPS_{what}_{number}"));
    match of("URL") {
        Some(url) if url.starts_with("http") => Some(url.clone()),
        _ => Some(format!("http://{}:{}", of("HOST")?, of("PORT")?)),
    }
}

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|begin| rest.starts_with(begin))
}

/// Of an address of this machine; of another one nothing can be said from here.
fn nobody_listens(listen: &str) -> bool {
    let (host, port) = listen.rsplit_once(':').unwrap_or((listen, ""));
    let host = match host {
        "" | "*" | "0.0.0.0" | "[::]" => "127.0.0.1",
        host if is_loopback(&format!("http://{host}")) => host,
        _ => return false,
    };
    let addresses = format!("{host}:{port}").to_socket_addrs();
    addresses.is_ok_and(|mut addresses| {
        addresses.all(|at| TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_err())
    })
}

/// The key that this instance's links are signed with; made when there is none. Two that make it at once get the
/// same one.
pub fn key(instance: &Instance) -> Result<Vec<u8>> {
    let path: PathBuf = instance.state_directory.join("link-key");
    loop {
        match fs::read(&path) {
            Ok(key) if key.len() < link::KEY_SIZE => return Err(Error::LinkKey { path }),
            Ok(key) => return Ok(key),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).on("read", &path),
        }
        durable::create_private_directory(&instance.state_directory)?;
        let mut key = [0; link::KEY_SIZE];
        openssl::rand::rand_bytes(&mut key).expect("OpenSSL has random bytes");
        let mut file = tempfile::Builder::new()
            .prefix(".link-key-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&instance.state_directory)
            .on("create a file in", &instance.state_directory)?;
        file.write_all(&key).on("write", &path)?;
        file.as_file().sync_all().on("sync", &path)?;
        match file.persist_noclobber(&path) {
            Ok(_) => durable::sync_directory(&instance.state_directory)?,
            // Another one was faster: its key is read.
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.error).on("create", &path),
        }
    }
}
