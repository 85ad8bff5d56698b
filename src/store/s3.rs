//! Owns backups in a bucket of S3, or of a service that speaks like it. Everything asynchronous stays in here.

mod credentials;
mod download;
mod engine;
mod fault;
mod upload;

use super::{Object, Store, Upload, check_name};
use crate::error::{Error, Result};
use crate::instance::Instance;
use bytes::Bytes;
use engine::{Engine, Reply};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use std::fmt;
use std::future::Future;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is tried again is tried for so long.
const RETRY: Duration = Duration::from_secs(120);
/// The same where somebody waits for a first answer.
const QUICK_RETRY: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(10);
/// Nothing comes for so long: the connection is dead.
const STALL: Duration = Duration::from_secs(60);
/// One part, of which nobody knows how much has arrived.
const PART: Duration = Duration::from_secs(600);
/// After so long, whoever was about to write the same object has done it.
const SETTLED: Duration = Duration::from_secs(2);
/// The end of every wait, whatever happens.
const LONGEST: Duration = Duration::from_secs(1800);

/// Where the objects are.
#[derive(Clone, Debug)]
pub struct Place {
    bucket: String,
    prefix: String,
    region: String,
    endpoint: Option<String>,
}

impl Place {
    fn endpoint(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", self.region))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

fn no_answer(place: &Place) -> Error {
    let why = "no answer".into();
    Error::StoreUnreachable { place: place.to_string(), endpoint: place.endpoint(), why }
}

/// A bucket, or a part of one.
pub struct S3 {
    place: Place,
    /// The region is said, not guessed.
    region_said: bool,
    home: PathBuf,
    notes: PathBuf,
    link: Mutex<Option<Arc<Link>>>,
}

/// The way there, made with the first request.
struct Link {
    engine: Engine,
    /// For what somebody waits for: gives up early.
    quick: AmazonS3,
    patient: AmazonS3,
    parts: AmazonS3,
}

impl Link {
    fn wait<T: Send + 'static>(
        &self,
        place: &Place,
        action: &'static str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.reply(place, action, &self.engine.begin(work))
    }

    fn reply<T>(
        &self,
        place: &Place,
        action: &'static str,
        reply: &Reply<object_store::Result<T>>,
    ) -> Result<T> {
        match reply.wait(LONGEST)? {
            Some(result) => result.map_err(|error| fault::explain(place, action, &error)),
            None => Err(no_answer(place)),
        }
    }
}

impl S3 {
    /// The one of the instance's settings, which begin with `s3://`.
    pub fn new(instance: &Instance) -> Result<S3> {
        let settings = &instance.backup;
        let bad = || Error::SettingValue {
            name: "store",
            value: settings.store.clone(),
            wanted: "s3://BUCKET/PREFIX, of letters, digits and . _ -",
        };
        let rest = settings.store.strip_prefix("s3://").ok_or_else(bad)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let prefix = prefix.trim_end_matches('/');
        let good = |part: &str| !part.is_empty() && part.chars().all(plain) && part != "." && part != "..";
        if !good(bucket) || !(prefix.is_empty() || prefix.split('/').all(good)) {
            return Err(bad());
        }
        let region = settings.store_region.clone();
        Ok(S3 {
            place: Place {
                bucket: bucket.into(),
                prefix: prefix.into(),
                region: region.clone().unwrap_or_else(|| "us-east-1".into()),
                endpoint: settings.store_endpoint.as_ref().map(|url| url.trim_end_matches('/').to_owned()),
            },
            region_said: region.is_some(),
            home: instance.home.clone(),
            notes: instance.state_directory.join("uploads"),
            link: Mutex::new(None),
        })
    }

    fn link(&self) -> Result<Arc<Link>> {
        let mut link = self.link.lock().expect("no panic while connecting");
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        let made = Arc::new(self.connect()?);
        *link = Some(made.clone());
        Ok(made)
    }

    fn connect(&self) -> Result<Link> {
        let broken = |why: String| Error::Store { place: self.place(), action: "connect to", why };
        let engine = Engine::start().map_err(|e| broken(e.to_string()))?;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let found = credentials::find(&self.home, variable);
        let mut place = self.place.clone();
        if let (false, Some(region)) = (self.region_said, found.region) {
            place.region = region;
        }
        let client = |limits: Limits| {
            let plain = place.endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
            let options = ClientOptions::new()
                .with_allow_http(plain)
                // Those of the machine take a moment to be read.
                .with_no_system_certificates(plain)
                .with_connect_timeout(CONNECT);
            let options = match limits.whole {
                true => options.with_timeout(limits.request),
                false => options.with_timeout_disabled().with_read_timeout(limits.request),
            };
            let retry_timeout = limits.retry;
            let backoff = BackoffConfig { max_backoff: Duration::from_secs(10), ..Default::default() };
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(&place.bucket)
                .with_region(&place.region)
                .with_client_options(options)
                .with_retry(RetryConfig { backoff, max_retries: limits.tries, retry_timeout });
            if let Some(endpoint) = &place.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            builder
        };
        let provider = match found.key {
            Some(key) => {
                let mut builder =
                    client(Limits::QUICK).with_access_key_id(key.id).with_secret_access_key(key.secret);
                if let Some(token) = key.token {
                    builder = builder.with_token(token);
                }
                builder.build().map_err(|e| broken(e.to_string()))?.credentials().clone()
            }
            None => self.service_credentials(&engine, client(Limits::METADATA), found.looked)?,
        };
        let build = |limits: Limits| {
            let built = client(limits).with_credentials(provider.clone()).build();
            built.map_err(|e| broken(e.to_string()))
        };
        Ok(Link {
            engine,
            quick: build(Limits::QUICK)?,
            patient: build(Limits::PATIENT)?,
            parts: build(Limits::PARTS)?,
        })
    }

    /// Those that a machine, a container or a cluster gives to what runs in it.
    fn service_credentials(
        &self,
        engine: &Engine,
        mut builder: AmazonS3Builder,
        mut looked: Vec<String>,
    ) -> Result<object_store::aws::AwsCredentialProvider> {
        let variables = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_ENDPOINT_URL_STS",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_METADATA_ENDPOINT",
        ];
        let mut service = false;
        for name in variables {
            if let (Ok(value), Ok(key)) = (std::env::var(name), name.to_lowercase().parse()) {
                service |= name.contains("TOKEN_FILE") || name.contains("_URI");
                builder = builder.with_config(key, value);
            }
        }
        let missing =
            |looked: Vec<String>| Error::StoreCredentials { place: self.place(), looked: looked.join("; ") };
        let disabled =
            std::env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
        if disabled && !service {
            looked.push("AWS_EC2_METADATA_DISABLED is set".into());
            return Err(missing(looked));
        }
        let built = builder.build().map_err(|e| Error::Store {
            place: self.place(),
            action: "connect to",
            why: e.to_string(),
        })?;
        let provider = built.credentials().clone();
        let own = provider.clone();
        let reply = engine.begin(async move { own.get_credential().await.map(drop) });
        match reply.wait(Duration::from_secs(10))? {
            Some(Ok(())) => Ok(provider),
            _ => {
                let what = if service {
                    "the credentials service of the environment"
                } else {
                    "the metadata of this machine"
                };
                looked.push(format!("{what} gives none"));
                Err(missing(looked))
            }
        }
    }

    fn path(&self, name: &str) -> Result<Path> {
        check_name(self, name)?;
        Ok(self.whole().join(name))
    }

    fn whole(&self) -> Path {
        Path::from(self.place.prefix.as_str())
    }

    fn ask<T: Send + 'static, F: Future<Output = object_store::Result<T>> + Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(Arc<Link>) -> F,
    ) -> Result<T> {
        let link = self.link()?;
        link.wait(&self.place, action, work(link.clone()))
    }
}

/// How long a client tries.
struct Limits {
    /// Of one request.
    request: Duration,
    /// That limit is for the whole request, not for each step of it.
    whole: bool,
    tries: usize,
    retry: Duration,
}

impl Limits {
    const METADATA: Limits =
        Limits { request: Duration::from_secs(2), whole: true, tries: 1, retry: Duration::from_secs(4) };
    const QUICK: Limits = Limits { request: STALL, whole: false, tries: 5, retry: QUICK_RETRY };
    const PATIENT: Limits = Limits { request: STALL, whole: false, tries: 20, retry: RETRY };
    const PARTS: Limits = Limits { request: PART, whole: true, tries: 20, retry: RETRY };
}

impl Store for S3 {
    fn place(&self) -> String {
        self.place.to_string()
    }

    fn is_local(&self) -> bool {
        false
    }

    fn list(&self) -> Result<Vec<Object>> {
        let whole = self.whole();
        let listed = self.ask("list", |link| async move {
            let prefix = if whole.as_ref().is_empty() { None } else { Some(&whole) };
            link.quick.list_with_delimiter(prefix).await
        })?;
        let objects = listed.objects.into_iter().filter_map(|meta| {
            let name = meta.location.filename()?.to_owned();
            Some(Object { name, size: meta.size, modified: meta.last_modified.timestamp() })
        });
        Ok(objects.filter(|object| super::is_plain(&object.name)).collect())
    }

    fn read(&self, name: &str, offset: u64) -> Result<Box<dyn Read + Send>> {
        let opened = download::Downloading::open(self.link()?, self.place.clone(), self.path(name)?, offset);
        match opened {
            Ok(reader) => Ok(Box::new(reader)),
            Err(Error::NoObject { place, .. }) => Err(Error::NoObject { place, name: name.into() }),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let path = self.path(name)?;
        let notes = self.notes.clone();
        Ok(Box::new(upload::Uploading::new(self.link()?, self.place.clone(), path, notes)))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, bytes) = (self.path(name)?, Bytes::copy_from_slice(bytes));
        self.ask("write", |link| async move {
            link.patient.put(&path, PutPayload::from_bytes(bytes)).await.map(drop)
        })
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let (path, bytes) = (self.path(name)?, Bytes::copy_from_slice(bytes));
        self.ask("write", |link| async move { put_new(&link.patient, &path, bytes).await })
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        self.ask("remove from", |link| async move {
            match link.patient.delete(&path).await {
                Err(error) if fault::is_missing(&error) => Ok(()),
                other => other,
            }
        })
    }

    fn link(&self, name: &str, save_as: &str, expires: Duration) -> Result<Option<String>> {
        let path = self.path(name)?;
        let shown: String = save_as.chars().filter(|c| !c.is_control() && !"\"\\".contains(*c)).collect();
        let options = SignedUrlOptions::default()
            .with_query([("response-content-disposition", format!("attachment; filename=\"{shown}\""))]);
        self.ask("sign a link to", |link| async move {
            link.quick.signed_url_opts(Method::GET, &path, expires, &options).await
        })
        .map(|url| Some(url.to_string()))
    }

    fn local_path(&self, _: &str) -> Option<PathBuf> {
        None
    }

    fn sweep(&self) -> Result<()> {
        let notes = std::fs::read_dir(&self.notes).into_iter().flatten().flatten();
        for path in notes.map(|entry| entry.path()) {
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let Ok(note) = serde_json::from_slice::<upload::Note>(&bytes) else {
                let _ = std::fs::remove_file(&path);
                continue;
            };
            // One of another bucket, from before the settings were changed, waits for that bucket.
            if note.bucket != self.place.bucket || note.endpoint != self.place.endpoint() {
                continue;
            }
            upload::abort(&self.link()?, &self.place, &Path::from(note.key), &note.upload)?;
            let _ = std::fs::remove_file(&path);
        }
        Ok(())
    }
}

/// True when these bytes are there under this name now, false when others are.
async fn put_new(store: &AmazonS3, path: &Path, bytes: Bytes) -> object_store::Result<bool> {
    for _ in 0..5 {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        let error = match store.put_opts(path, PutPayload::from_bytes(bytes.clone()), options).await {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        let unknown = matches!(error, object_store::Error::NotImplemented { .. })
            || matches!(fault::code(&error).as_deref(), Some("NotImplemented" | "InvalidArgument"));
        let taken = matches!(error, object_store::Error::AlreadyExists { .. });
        if !unknown && !taken && fault::is_final(&error) {
            return Err(error);
        }
        // What stands there may be ours: the answer to the first try was lost, and a second one was made.
        match store.get(path).await {
            Ok(found) => return Ok(found.bytes().await? == bytes),
            Err(missing) if fault::is_missing(&missing) => {}
            Err(_) => return Err(error),
        }
        if unknown {
            // The service has no such condition: another instance, which saw nothing there either, can write over it
            // within this moment. It is theirs then, as whoever writes last keeps it.
            store.put(path, PutPayload::from_bytes(bytes.clone())).await?;
            tokio::time::sleep(SETTLED).await;
            return Ok(store.get(path).await?.bytes().await? == bytes);
        }
        if !taken {
            return Err(error);
        }
        // Another one was writing just then, or has removed it since.
    }
    Ok(false)
}
