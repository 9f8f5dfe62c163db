//! What a case works with: a container of its own, raw requests, and the notes that are compared.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use blob_client::auth::Credentials;
use blob_client::request::{COLLECT, Request};
use blob_client::secret::Secret;
use blob_client::transport::Transport;
use blob_client::{Body, Client, ClientConfig, Container, Error, Metadata, PutOptions};
use bytes::Bytes;
use e2e::harness::runtime;
use e2e::store::{AccountKey, SasOptions};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use url::Url;
use vsc_driver::buffer::{Arena, Buffer};

use crate::services::{Services, Target};

type CaseFuture<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// One case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Context) -> CaseFuture<'a>,
}

/// Runs a case against a target; every target but the reference must leave the same notes as the reference
/// does.
pub(crate) fn run(services: &Services, target: Target, case: &Case) -> Result<()> {
    let notes = run_once(services, target, case)?;
    if target != Target::Embedded {
        let wanted = run_once(services, Target::Embedded, case).context("the embedded store")?;
        ensure!(
            notes == wanted,
            "{target} and the embedded store differ:\n{}",
            difference(&notes, &wanted)
        );
    }
    Ok(())
}

fn difference(left: &[String], right: &[String]) -> String {
    let mut out = String::new();
    for i in 0..left.len().max(right.len()) {
        let (l, r) = (left.get(i), right.get(i));
        if l != r {
            out.push_str(&format!("  there:    {l:?}\n  embedded: {r:?}\n"));
        }
    }
    out
}

fn run_once(services: &Services, target: Target, case: &Case) -> Result<Vec<String>> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let service = services.get(target)?;
    let context = Context {
        target,
        endpoint: service.endpoint.clone(),
        transport: Arc::clone(&service.transport),
        arena: Arc::clone(&service.arena),
        box_name: match (target, NUMBER.fetch_add(1, Ordering::Relaxed)) {
            // Others may use the account, and an earlier run may have left something.
            (Target::Account, number) => format!("vsc-{}-{number}", std::process::id()),
            (_, number) => format!("box{number}"),
        },
        notes: Mutex::default(),
        key: AccountKey::new(&service.account, &service.key)?,
        account: service.account.clone(),
        secret: service.key.clone(),
    };
    runtime().block_on(async {
        context.container()?.create(&Metadata::new()).await?;
        let ended = (case.run)(&context).await;
        if target == Target::Account {
            context.clean_up().await?;
        }
        ended
    })?;
    if service.device.is_some() {
        for path in service.transport.stats() {
            let used = path.requests > 0;
            ensure!(
                used == (path.path == "channel"),
                "went over {}: {}",
                path.path,
                path.requests
            );
        }
    }
    Ok(context.notes.into_inner().unwrap())
}

/// What a case works with.
pub(crate) struct Context {
    pub(crate) target: Target,
    endpoint: Url,
    transport: Arc<dyn Transport>,
    arena: Arc<Arena>,
    box_name: String,
    notes: Mutex<Vec<String>>,
    key: AccountKey,
    account: String,
    secret: String,
}

/// Answer of a raw request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
    /// Status and error code.
    pub(crate) fn outcome(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.header("x-ms-error-code"))
            .trim_end()
            .to_owned()
    }
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Context {
    /// The container of this case.
    pub(crate) fn container(&self) -> Result<Container> {
        self.other(&self.box_name)
    }
    /// Name of that container.
    pub(crate) fn box_name(&self) -> &str {
        &self.box_name
    }
    /// Another container of the account; names of other cases are not used by [`Context::fresh_name`].
    pub(crate) fn other(&self, name: &str) -> Result<Container> {
        Ok(self
            .client(Credentials::SharedKey {
                account: self.account.clone(),
                key: Secret::new(self.secret.clone()),
            })?
            .container(name)?)
    }
    /// Name of the account.
    pub(crate) fn account(&self) -> &str {
        &self.account
    }
    /// Deletes what a case has made in an account that goes on: its containers, whatever it left in them.
    async fn clean_up(&self) -> Result<()> {
        for name in [self.box_name.clone(), self.fresh_name()] {
            // A lease that the case left would stand in the way.
            let breaks = [("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "0")];
            self.raw(
                "PUT",
                &format!("/{name}?restype=container&comp=lease"),
                &breaks,
                b"",
            )
            .await?;
            match self.other(&name)?.delete_container().await {
                Ok(()) | Err(Error::ContainerNotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
    /// A name no container has.
    pub(crate) fn fresh_name(&self) -> String {
        format!("{}-other", self.box_name)
    }
    /// A client with other credentials.
    pub(crate) fn client(&self, credentials: Credentials) -> Result<Client> {
        let config = ClientConfig::new(self.endpoint.clone(), credentials);
        Ok(Client::new(
            config,
            Arc::clone(&self.transport),
            Arc::clone(&self.arena),
        )?)
    }
    /// The container with a SAS.
    pub(crate) fn with_sas(&self, sas: String) -> Result<Container> {
        Ok(self
            .client(Credentials::Sas(Secret::new(sas)))?
            .container(&self.box_name)?)
    }
    /// A SAS for the container.
    pub(crate) fn container_sas(&self, options: &SasOptions) -> String {
        self.key.container_sas(&self.box_name, options)
    }
    /// A SAS for a blob of it.
    pub(crate) fn blob_sas(&self, blob: &str, options: &SasOptions) -> String {
        self.key.blob_sas(&self.box_name, blob, options)
    }
    /// A SAS for the account.
    pub(crate) fn account_sas(&self, types: &str, options: &SasOptions) -> String {
        self.key.account_sas(types, options)
    }
    /// Room for a read.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer> {
        Ok(self.arena.alloc(len)?)
    }

    /// Puts a blob.
    pub(crate) async fn put(&self, name: &str, body: &[u8]) -> Result<blob_client::Written> {
        Ok(self
            .container()?
            .put(name, bytes_body(body), &PutOptions::default())
            .await?)
    }
    /// All bytes of a blob.
    pub(crate) async fn read(&self, name: &str) -> Result<Vec<u8>> {
        let container = self.container()?;
        let len = container
            .head(name, &blob_client::Condition::none())
            .await?
            .content_length;
        let dest = self.buffer(len.max(1) as usize)?;
        let got = container
            .get(name, 0..len.max(1), &blob_client::Condition::none(), dest)
            .await?;
        Ok(got.buffer[..got.buffer.len()].to_vec())
    }

    /// Notes an outcome to be compared with other services.
    pub(crate) fn note(&self, what: &str, outcome: impl fmt::Display) {
        self.notes.lock().unwrap().push(format!("{what}: {outcome}"));
    }
    /// Notes how a call ended and gives its error's kind: `ok`, or the error without what differs by nature
    /// (names, request ids).
    pub(crate) fn ended<T>(&self, what: &str, result: &blob_client::Result<T>) -> String {
        let kind = kind(result);
        self.note(what, &kind);
        kind
    }
    /// Notes a result and expects it: the service's answer, and every target's.
    pub(crate) fn wants(&self, what: &str, got: String, wanted: &str) -> Result<()> {
        self.note(what, &got);
        ensure!(got == wanted, "{what}: {got:?} is not {wanted:?}");
        Ok(())
    }
    /// Expects what the service answers, except on Azurite, which is known to answer something else for this
    /// reason.
    pub(crate) fn wants_but(
        &self,
        what: &str,
        got: String,
        wanted: &str,
        azurite: &str,
        reason: &str,
    ) -> Result<()> {
        let wanted = if self.differs(reason) { azurite } else { wanted };
        ensure!(got == wanted, "{what}: {got:?} is not {wanted:?}");
        Ok(())
    }
    /// True on Azurite, where a case has to expect something else. The reason is part of the case; notes are
    /// not compared for what it covers.
    pub(crate) fn differs(&self, reason: &str) -> bool {
        assert!(!reason.is_empty());
        self.target.is_azurite()
    }

    /// A signed request; `path` follows the account, query included, `{box}` stands for the container.
    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let (method, url, mut map) = self.parts(method, path, headers)?;
        if method == Method::PUT {
            // The service wants it of every write, empty ones included.
            map.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if !map.contains_key("x-ms-version") {
            map.insert("x-ms-version", HeaderValue::from_static("2021-12-02"));
        }
        self.key.authorize(&method, &url, &mut map, body.len() as u64)?;
        self.send(method, url, map, body).await
    }
    /// The same without a signature.
    pub(crate) async fn unsigned(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let (method, url, map) = self.parts(method, path, headers)?;
        self.send(method, url, map, body).await
    }
    /// URL of a blob in the container of this case.
    pub(crate) fn url_of(&self, encoded: &str) -> String {
        format!(
            "{}/{}/{encoded}",
            self.endpoint.as_str().trim_end_matches('/'),
            self.box_name
        )
    }
    fn parts(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Method, http::Uri, HeaderMap)> {
        let path = path.replace("{box}", &self.box_name);
        let url = format!("{}{path}", self.endpoint.as_str().trim_end_matches('/')).parse()?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                HeaderName::try_from(*name)?,
                HeaderValue::from_bytes(value.as_bytes())?,
            );
        }
        Ok((method.parse()?, url, map))
    }
    async fn send(&self, method: Method, url: http::Uri, headers: HeaderMap, body: &[u8]) -> Result<Answer> {
        let response = self
            .transport
            .send(Request {
                method,
                url,
                headers,
                body: bytes_body(body),
                dest: None,
                collect: COLLECT,
                idempotent: false,
                avoid: None,
                timeout: Duration::from_secs(30),
                moved: std::sync::Arc::default(),
                ledger: None,
            })
            .await?;
        Ok(Answer {
            status: response.status,
            headers: response.headers,
            body: response.body,
        })
    }
}

/// A body out of a slice.
pub(crate) fn bytes_body(bytes: &[u8]) -> Body {
    if bytes.is_empty() {
        return Body::default();
    }
    Body::from(Bytes::copy_from_slice(bytes))
}

/// How a call ended, in a word or two.
pub(crate) fn kind<T>(result: &blob_client::Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(Error::BlobNotFound { .. }) => "BlobNotFound".into(),
        Err(Error::ContainerNotFound { .. }) => "ContainerNotFound".into(),
        Err(Error::AlreadyExists { .. }) => "AlreadyExists".into(),
        Err(Error::ConditionNotMet { .. }) => "ConditionNotMet".into(),
        Err(Error::NotModified { .. }) => "NotModified".into(),
        Err(Error::LeaseConflict { code, .. }) => format!("LeaseConflict {code}"),
        Err(Error::Denied { code, .. }) => format!("Denied {code}"),
        Err(Error::Service { status, code, .. }) => format!("Service {status} {code}"),
        Err(other) => format!("{other:?}"),
    }
}

/// Fails with both sides when they differ.
#[macro_export]
macro_rules! same {
    ($left:expr, $right:expr $(,)?) => {{
        let (left, right) = (&$left, &$right);
        anyhow::ensure!(
            left == right,
            "{}:{}: {:?} is not {:?}",
            file!(),
            line!(),
            left,
            right
        );
    }};
}
