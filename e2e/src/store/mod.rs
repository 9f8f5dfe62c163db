//! Embedded blob store: the Blob REST calls the client uses, in memory with an optional folder behind it.
//!
//! [`BlobStore::execute`] is the service itself; [`BlobStore::serve`] puts HTTP/1.1 in front of it. What differs from the
//! service is listed here: metadata names come back in lower case (HTTP libraries fold header names); the MD5 of a body
//! that came without one is computed for small bodies only (256 KiB), so that a benchmark does not measure MD5; page and
//! append blobs exist so that tests can make foreign blobs; snapshots, versions, tags, tiers other than the name,
//! stored access policies and user delegation keys do not exist and are answered with 501 or an authentication error.

mod address;
mod aids;
mod auth;
mod condition;
mod content;
mod error;
mod folder;
mod handlers;
mod headers;
mod lease;
mod operation;
mod reply;
mod server;
mod signing;
mod state;
#[cfg(test)]
mod tests;
mod version;
mod xml;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method};

pub use self::aids::{Counters, Fault, FaultRule, RequestRecord};
pub use self::operation::Operation;
pub use self::server::Server;
pub use self::signing::{AccountKey, SasOptions};

use self::address::Target;
use self::aids::Aids;
use self::auth::{Account, Presented};
use self::content::Content;
use self::error::ServiceError;
use self::folder::Folder;
use self::handlers::Call;
use self::reply::Reply;
use self::state::Container;
use self::version::Clock;

/// The account of emulators: name `devstoreaccount1`.
pub const DEV_ACCOUNT: &str = "devstoreaccount1";
/// The public, well-known key of that account.
pub const DEV_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Settings of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// Account name.
    pub account: String,
    /// Account key, base64.
    pub key: String,
    /// Keep blobs in this folder too.
    pub folder: Option<PathBuf>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig")
            .field("account", &self.account)
            .field("key", &"***")
            .field("folder", &self.folder)
            .finish()
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.into(),
            folder: None,
        }
    }
}

/// The service itself, without a socket: what HTTP connections and the mock VSP both call.
#[derive(Debug)]
pub struct BlobStore {
    account: Account,
    containers: RwLock<BTreeMap<String, Arc<Container>>>,
    clock: Clock,
    folder: Option<Folder>,
    tokens: RwLock<HashSet<String>>,
    aids: Aids,
}

impl Drop for BlobStore {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            folder.close();
        }
    }
}

/// How an answer reaches the caller: whole, or as a fault rule wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Whole,
    /// Cut after this many bytes of the body.
    Cut(u64),
    /// The connection is closed instead.
    NoAnswer,
    /// Nothing ever comes.
    Hang,
}

/// A request that was looked at and not executed yet.
struct Job {
    target: Result<Target, ServiceError>,
    operation: Operation,
    /// To be waited before it is executed.
    wait: Duration,
    fault: Option<Fault>,
}

impl BlobStore {
    /// An empty store (or what the folder holds).
    pub fn new(config: StoreConfig) -> std::io::Result<Arc<Self>> {
        let clock = Clock::default();
        let mut containers = BTreeMap::new();
        let folder = match &config.folder {
            None => None,
            Some(path) => {
                let (folder, loaded) = Folder::open(path)?;
                for (container, blobs) in loaded {
                    clock.seen(container.lock().version);
                    for (name, blob) in blobs {
                        clock.seen(blob.version);
                        container.with_slot(&name, |state| state.blob = Some(Arc::new(blob)));
                    }
                    containers.insert(container.name.clone(), Arc::new(container));
                }
                Some(folder)
            }
        };
        Ok(Arc::new(Self {
            account: Account::new(&config.account, &config.key)?,
            containers: RwLock::new(containers),
            clock,
            folder,
            tokens: RwLock::default(),
            aids: Aids::default(),
        }))
    }

    /// Executes one request (absolute or origin-form URI, path-style `/account/container/blob`); never fails, errors are
    /// answers. The body of a GET is a list of shared pieces, not a copy.
    ///
    /// Blocks for injected latency and for reading the folder. A [`Fault`] that concerns the connection is added to the
    /// answer's extensions for a caller that can act on it.
    pub fn execute(&self, request: http::Request<Bytes>) -> http::Response<Vec<Bytes>> {
        let (parts, body) = request.into_parts();
        let job = self.plan(&parts);
        if !job.wait.is_zero() {
            std::thread::sleep(job.wait);
        }
        self.execute_job(job, &parts, body).0
    }

    /// As [`BlobStore::execute`], for callers that serve many requests on few threads: injected latency blocks none, and
    /// faults of the connection are an error (an answer that breaks off, or none) or a future that never ends.
    pub async fn execute_async(
        &self,
        request: http::Request<Bytes>,
    ) -> std::io::Result<http::Response<Vec<Bytes>>> {
        let (parts, body) = request.into_parts();
        let job = self.plan(&parts);
        if !job.wait.is_zero() {
            tokio::time::sleep(job.wait).await;
        }
        let (response, ending) = self.execute_job(job, &parts, body);
        match ending {
            Ending::Whole => Ok(response),
            Ending::Hang => std::future::pending().await,
            Ending::Cut(_) | Ending::NoAnswer => Err(std::io::Error::new(
                std::io::ErrorKind::ConnectionReset,
                "closed by a fault rule",
            )),
        }
    }

    fn execute_job(
        &self,
        job: Job,
        parts: &http::request::Parts,
        body: Bytes,
    ) -> (http::Response<Vec<Bytes>>, Ending) {
        let fault = job.fault.clone();
        let (response, ending) = self.run(job, parts, body.into(), None);
        let (mut parts, body) = response.into_parts();
        if let Some(fault) = fault {
            parts.extensions.insert(fault);
        }
        let response = match body.into_bytes() {
            Ok(pieces) => http::Response::from_parts(parts, pieces),
            Err(error) => {
                tracing::error!(%error, "cannot read blob data from the folder");
                let reply = Reply::error(&ServiceError::internal_error(), "", false);
                let mut response = http::Response::new(reply.body.joined().into_iter().collect());
                *response.status_mut() = reply.status;
                *response.headers_mut() = reply.headers;
                response
            }
        };
        (response, ending)
    }

    /// Serves HTTP/1.1 on `addr` (port 0 = any) until the server is dropped. It runs on threads of its own: a caller that
    /// blocks its runtime does not block the store.
    pub async fn serve(self: &Arc<Self>, addr: SocketAddr) -> std::io::Result<Server> {
        Server::start(self.clone(), addr)
    }

    /// Account name.
    pub fn account(&self) -> &str {
        &self.account.name
    }

    /// Makes a container as its owner, without a request; false when it was there already.
    pub fn create_container(&self, name: &str) -> std::io::Result<bool> {
        handlers::container::create(self, name, Default::default(), Default::default())
            .map(|_| true)
            .or_else(|error| match &*error.code {
                "ContainerAlreadyExists" => Ok(false),
                _ => Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    format!("container {name:?}: {}", error.message),
                )),
            })
    }

    /// Accepts this bearer token from now on, with all rights.
    pub fn accept_token(&self, token: &str) {
        self.tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token.to_owned());
    }

    /// Accepts a bearer token no longer (it "expired").
    pub fn revoke_token(&self, token: &str) {
        self.tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(token);
    }

    /// Counters of one operation.
    pub fn counters(&self, operation: Operation) -> Counters {
        self.aids.counters(operation)
    }

    /// Counters of all operations together.
    pub fn totals(&self) -> Counters {
        let mut out = Counters::default();
        for operation in Operation::ALL {
            out += self.aids.counters(*operation);
        }
        out
    }

    /// Sets all counters to zero and empties the request log.
    pub fn reset_counters(&self) {
        self.aids.reset();
    }

    /// Turns the request log on or off; it grows until [`BlobStore::reset_counters`].
    pub fn record_requests(&self, on: bool) {
        self.aids.record(on);
    }

    /// The requests since the log was turned on, in the order of their answers.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.aids.log()
    }

    /// Adds a fault rule.
    pub fn inject(&self, rule: FaultRule) {
        self.aids.inject(rule);
    }

    /// Delays every request of an operation (`None`: of all); zero removes the delay.
    pub fn set_latency(&self, operation: Option<Operation>, latency: Duration) {
        self.aids.set_latency(operation, latency);
    }

    /// Removes all fault rules and delays.
    pub fn clear_faults(&self) {
        self.aids.clear();
    }

    /// Looks at a request: which operation it is and what is to happen to it.
    fn plan(&self, parts: &http::request::Parts) -> Job {
        let host = parts
            .headers
            .get(http::header::HOST)
            .and_then(|host| host.to_str().ok());
        let target = Target::parse(&parts.uri, host, &self.account.name);
        let operation = match &target {
            Ok(target) => Operation::of(&parts.method, target, &parts.headers),
            Err(_) => Operation::Unsupported,
        };
        let blob = target.as_ref().ok().and_then(|target| target.blob.as_deref());
        let (wait, fault) = self.aids.plan(operation, blob);
        Job {
            target,
            operation,
            wait,
            fault,
        }
    }

    /// Executes a request (unless its fault says not to) and words the answer.
    fn run(
        &self,
        job: Job,
        parts: &http::request::Parts,
        body: Content,
        peer: Option<IpAddr>,
    ) -> (http::Response<Content>, Ending) {
        let request_id = uuid::Uuid::new_v4().to_string();
        let head = parts.method == Method::HEAD;
        let bytes_in = body.len();
        let (result, ending) = match &job.fault {
            Some(Fault::Answer {
                status,
                code,
                retry_after,
            }) => {
                let mut error = ServiceError::new(
                    *status,
                    code.clone(),
                    "Injected by a fault rule of the embedded blob store.",
                );
                error.retry_after = *retry_after;
                (Err(error), Ending::Whole)
            }
            Some(Fault::Disconnect) => (Err(ServiceError::internal_error()), Ending::NoAnswer),
            Some(Fault::Hang) => (Err(ServiceError::internal_error()), Ending::Hang),
            fault => {
                let ending = match fault {
                    Some(Fault::LoseAnswer) => Ending::NoAnswer,
                    Some(Fault::CutBody { after }) => Ending::Cut(*after),
                    _ => Ending::Whole,
                };
                (self.authorized(&job, parts, body, peer), ending)
            }
        };
        let mut reply = result.unwrap_or_else(|error| {
            tracing::debug!(operation = job.operation.name(), status = error.status, code = %error.code, "refused");
            Reply::error(&error, &request_id, head)
        });
        self.finish(&mut reply, parts, &request_id, head);
        let bytes_out = reply.body.len();
        let status = reply.status.as_u16();
        let record = || RequestRecord {
            operation: job.operation,
            container: job.target.as_ref().ok().and_then(|t| t.container.clone()),
            blob: job.target.as_ref().ok().and_then(|t| t.blob.clone()),
            range: headers::text(&parts.headers, "x-ms-range")
                .or_else(|| headers::text(&parts.headers, "range"))
                .map(str::to_owned),
            status,
            bytes_in,
            bytes_out,
        };
        self.aids.note(
            record,
            job.operation,
            Counters {
                requests: 1,
                errors: u64::from(status >= 400),
                bytes_in,
                bytes_out,
            },
        );
        let mut response = http::Response::new(reply.body);
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        (response, ending)
    }

    fn authorized(
        &self,
        job: &Job,
        parts: &http::request::Parts,
        body: Content,
        peer: Option<IpAddr>,
    ) -> Result<Reply, ServiceError> {
        let target = job.target.as_ref().map_err(Clone::clone)?;
        if let Some(version) = headers::text(&parts.headers, "x-ms-version")
            && !is_version(version)
        {
            return Err(ServiceError::invalid_header("x-ms-version", version));
        }
        let grant = self.account.authenticate(
            &Presented {
                method: &parts.method,
                target,
                headers: &parts.headers,
                body_len: body.len(),
                peer,
                now: SystemTime::now(),
            },
            |token| {
                self.tokens
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(token)
            },
        )?;
        let public = target
            .container
            .as_deref()
            .and_then(|name| self.container(name).ok())
            .map(|container| container.lock().public);
        grant.allows(job.operation, public)?;
        handlers::dispatch(
            self,
            &Call {
                operation: job.operation,
                method: &parts.method,
                target,
                headers: &parts.headers,
                body,
                grant: &grant,
                peer,
            },
        )
    }

    /// Headers every answer has.
    fn finish(&self, reply: &mut Reply, parts: &http::request::Parts, request_id: &str, head: bool) {
        reply.set("server", "Windows-Azure-Blob/1.0 vsc-blob-e2e");
        reply.set("x-ms-request-id", request_id);
        reply.set("date", httpdate::fmt_http_date(SystemTime::now()));
        let version = headers::text(&parts.headers, "x-ms-version").filter(|version| is_version(version));
        reply.set("x-ms-version", version.unwrap_or(NEWEST_VERSION));
        if let Some(id) = headers::text(&parts.headers, "x-ms-client-request-id")
            && id.len() <= 1024
        {
            reply.set("x-ms-client-request-id", id);
        }
        let bodyless =
            reply.status == http::StatusCode::NOT_MODIFIED || reply.status == http::StatusCode::NO_CONTENT;
        if !head && !bodyless {
            reply
                .headers
                .insert(http::header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
        }
    }

    /// A container by name.
    fn container(&self, name: &str) -> Result<Arc<Container>, ServiceError> {
        self.containers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
            .ok_or_else(ServiceError::container_not_found)
    }

    /// Writes a body to the folder, when there is one.
    fn keep(&self, content: Content) -> Result<Content, ServiceError> {
        match &self.folder {
            None => Ok(content),
            Some(folder) => folder.keep(content).map_err(folder_failed),
        }
    }
}

/// What is answered to requests that name no version.
const NEWEST_VERSION: &str = "2025-11-05";

/// `YYYY-MM-DD`: the store speaks every version since 2015-04-05 the same way.
fn is_version(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(i, b)| match i {
            4 | 7 => b == b'-',
            _ => b.is_ascii_digit(),
        })
}

/// The folder could not be read or written.
fn folder_failed(error: std::io::Error) -> ServiceError {
    tracing::error!(%error, "the store's folder failed");
    ServiceError::internal_error().detail("Reason", error.to_string())
}
