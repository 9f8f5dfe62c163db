//! HTTPS (and plain HTTP for emulators): pooled keep-alive connections, bodies sent piece by piece, answers copied to their
//! destination as they arrive.

mod renewed;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;
use vsc_driver::buffer::Buffer;

use self::renewed::Renewed;
use super::counters::Counters;
use super::proxy::{Proxied, Proxies};
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::crypto;
use crate::request::Request;
use crate::response::Response;
use crate::types::{Body, Piece};

/// Name of this path in counters and errors.
pub const HTTPS: &str = "https";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the service's own idle limit, so that a request rarely meets a connection that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// What is sent must be acknowledged by the peer's kernel in this time, or the connection is dead: well before an attempt's time
/// without progress (30 s), so that the call has time for another one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Idle connections are probed after this long, and then this often; two missing answers in a row end one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// Bytes per second that an exchange reaches on average, or it is given up, however steadily it drips.
const SLOWEST: u64 = 16 * 1024;
const POOL_IDLE_PER_HOST: usize = 64;
/// One read of the socket at most. Every connection keeps up to two such buffers, idle ones too, and they are outside of the
/// budget: larger ones save few system calls and cost tens of MiB.
const READ_BUFFER: usize = 128 * 1024;
/// One frame of a request's body at most.
const FRAME: usize = 256 * 1024;
/// A blob may carry 8 KiB of metadata, one header each.
const MAX_HEADERS: usize = 512;
/// Bound of bodies that are collected in memory: error texts, block lists (50,000 entries) and listings (5,000 entries).
const COLLECT_LIMIT: usize = 64 * 1024 * 1024;

type Pool = Client<HttpsConnector<Proxied>, Pieces>;

/// The connection pool; cheap to clone, clones share it and the counters.
#[derive(Debug, Clone)]
pub struct Https {
    /// Or why TLS cannot be set up on this machine.
    pool: Result<Renewed, String>,
    counters: Arc<Counters>,
}

impl Https {
    /// A pool that trusts the machine's root certificates and takes the environment's proxy. A machine without any certificate can
    /// still reach `http://` endpoints; TLS then fails with the certificate's reason.
    pub fn new() -> Self {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "a root certificate of this machine cannot be read");
        }
        let mut roots = rustls::RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(native.certs);
        if added == 0 {
            tracing::warn!("this machine has no root certificates: https:// endpoints will not be trusted");
        }
        Self::over(roots, Proxies::from_env())
    }

    /// A pool that trusts exactly these roots and takes no proxy.
    pub fn with_roots(roots: rustls::RootCertStore) -> Self {
        Self::over(roots, Proxies::none())
    }

    fn over(roots: rustls::RootCertStore, proxies: Proxies) -> Self {
        // The provider is named here, so that nothing depends on a process-wide default.
        let pool = rustls::ClientConfig::builder_with_provider(crypto::provider().into())
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
            .map(|tls| Renewed::new(move || pool(tls.clone(), proxies.clone())))
            .map_err(|error| format!("TLS cannot be set up: {error}"));
        Self {
            pool,
            counters: Arc::default(),
        }
    }

    async fn exchange(
        &self,
        mut request: Request,
        progress: &Arc<Progress>,
    ) -> Result<Response, TransportError> {
        let pool = self
            .pool
            .as_ref()
            .map_err(|message| unsuitable(message.clone()))?;
        let (pool, age) = pool.current();
        progress.age.store(age, Ordering::Relaxed);
        let mut dest = request.dest.take();
        let body = Pieces::new(&request.body, Arc::clone(progress));
        let mut message = http::Request::new(body);
        *message.method_mut() = request.method;
        *message.uri_mut() = request.url;
        *message.headers_mut() = request.headers;
        let answer = pool.request(message).await.map_err(|error| TransportError {
            path: HTTPS,
            kind: match error.is_connect() {
                true if is_nobody(&error) => FailureKind::Nobody,
                false if is_silence(&error) => FailureKind::TimedOut,
                _ => FailureKind::Unreachable,
            },
            message: chain(&error),
            maybe_executed: !error.is_connect(),
            // A certificate that is not trusted now will not be trusted in a second.
            retryable: !is_untrusted(&error),
        })?;
        progress.note(0);
        let (head, body) = answer.into_parts();
        let body = match &mut dest {
            Some(buffer) if head.status.is_success() => {
                receive_into(body, buffer, progress).await?;
                Bytes::new()
            }
            _ => collect(body, progress).await?,
        };
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body,
            dest,
        })
    }
}

impl Default for Https {
    fn default() -> Self {
        Self::new()
    }
}

/// A request's timeout is the time in which nothing may move: a large body on a slow line takes as long as it takes, while a
/// connection that hangs is given up, and so is one that stays below `SLOWEST` for twice that time.
#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let (timeout, sent) = (request.timeout, request.body.len());
        let progress = Arc::new(Progress::new());
        let mut exchange = std::pin::pin!(self.exchange(request, &progress));
        let outcome = loop {
            let ends_at = progress.ends_at(timeout);
            match tokio::time::timeout_at(ends_at, &mut exchange).await {
                Ok(outcome) => break outcome,
                Err(_) if progress.ends_at(timeout) > ends_at => {}
                Err(_) => break Err(progress.timed_out(timeout)),
            }
        };
        // The idle connections may have died with this one: the next attempt must not wait for them one by one.
        if let (Ok(pool), Err(error)) = (&self.pool, &outcome)
            && error.kind == FailureKind::TimedOut
        {
            pool.renew(progress.age.load(Ordering::Relaxed));
        }
        match &outcome {
            Ok(response) => self.counters.answered(sent, response.payload_len()),
            Err(_) => self.counters.failed(),
        }
        outcome
    }

    fn stats(&self) -> Vec<PathStats> {
        vec![self.counters.stats(HTTPS, self.pool.as_ref().err().cloned())]
    }
}

fn pool(tls: rustls::ClientConfig, proxies: Proxies) -> Pool {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE.0));
    http.set_keepalive_interval(Some(KEEPALIVE.1));
    http.set_keepalive_retries(Some(2));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(proxies.over(http));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .http1_max_buf_size(READ_BUFFER)
        .http1_max_headers(MAX_HEADERS)
        .build(connector)
}

/// Copies a successful body to its destination as it arrives. This is the one copy that is ours: the pieces are views of the
/// connection's read buffer, which the kernel or, decrypting, TLS has filled.
async fn receive_into(
    mut body: Incoming,
    dest: &mut Buffer,
    progress: &Progress,
) -> Result<(), TransportError> {
    let mut filled = 0;
    while let Some(data) = next_data(&mut body, progress).await? {
        let Some(room) = dest.get_mut(filled..filled + data.len()) else {
            return Err(TransportError {
                path: HTTPS,
                kind: FailureKind::Malformed,
                message: format!("the answer is longer than the {} bytes asked for", dest.len()),
                maybe_executed: true,
                retryable: false,
            });
        };
        room.copy_from_slice(&data);
        filled += data.len();
    }
    dest.set_len(filled);
    Ok(())
}

async fn collect(mut body: Incoming, progress: &Progress) -> Result<Bytes, TransportError> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    while let Some(data) = next_data(&mut body, progress).await? {
        if first.is_empty() && rest.is_none() {
            first = data;
            continue;
        }
        let joined = rest.get_or_insert_with(|| BytesMut::from(first.as_ref()));
        if joined.len() + data.len() > COLLECT_LIMIT {
            return Err(TransportError {
                path: HTTPS,
                kind: FailureKind::Malformed,
                message: format!("the answer is longer than {COLLECT_LIMIT} bytes"),
                maybe_executed: true,
                retryable: false,
            });
        }
        joined.extend_from_slice(&data);
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

async fn next_data(body: &mut Incoming, progress: &Progress) -> Result<Option<Bytes>, TransportError> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers carry nothing of ours.
                if let Ok(data) = frame.into_data() {
                    progress.note(data.len());
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(TransportError {
                    path: HTTPS,
                    kind: if is_silence(&error) {
                        FailureKind::TimedOut
                    } else {
                        FailureKind::Unreachable
                    },
                    message: format!("the answer broke off: {}", chain(&error)),
                    maybe_executed: true,
                    retryable: true,
                });
            }
        }
    }
}

fn unsuitable(message: String) -> TransportError {
    TransportError {
        path: HTTPS,
        kind: FailureKind::Unsuitable,
        message,
        maybe_executed: false,
        retryable: false,
    }
}

/// An error with its causes; hyper's own text says only "client error (Connect)".
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether TLS refused the server's certificate.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An io::Error is transparent: its source is the source of what it wraps.
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => is_untrusted(inner),
        None => error.source().is_some_and(is_untrusted),
    }
}

/// Whether a failed connect says that nobody is there, rather than that the network had a bad moment.
fn is_nobody(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind as K;
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        let Some(io) = error.downcast_ref::<std::io::Error>() else {
            // The resolver's error has no kind, and hyper's for it no public type.
            if error.to_string() == "dns error" {
                return true;
            }
            next = error.source();
            continue;
        };
        if matches!(
            io.kind(),
            K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable
        ) {
            return true;
        }
        // An io::Error is transparent: its source is the source of what it wraps.
        next = match io.get_ref() {
            Some(inner) => Some(inner),
            None => None,
        };
    }
    false
}

/// Whether the kernel has given a connection up because the peer acknowledged nothing.
fn is_silence(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::TimedOut
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// When a byte moved last, and how many have.
#[derive(Debug)]
struct Progress {
    began: Instant,
    /// Milliseconds after `began`.
    latest: AtomicU64,
    moved: AtomicU64,
    /// Of the pool that was used.
    age: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            latest: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            age: AtomicU64::new(0),
        }
    }

    fn note(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.store(millis, Ordering::Relaxed);
    }

    /// When the exchange is given up, as things stand.
    fn ends_at(&self, timeout: Duration) -> Instant {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        self.began + (latest + timeout).min(self.allowed(timeout))
    }

    /// How long moving so many bytes may take.
    fn allowed(&self, timeout: Duration) -> Duration {
        let moved = self.moved.load(Ordering::Relaxed);
        2 * timeout + Duration::from_millis(moved.saturating_mul(1000) / SLOWEST)
    }

    fn timed_out(&self, timeout: Duration) -> TransportError {
        let elapsed = self.began.elapsed();
        let message = if elapsed >= self.allowed(timeout) {
            let moved = self.moved.load(Ordering::Relaxed);
            format!("only {moved} bytes moved in {elapsed:?}")
        } else {
            format!("no byte moved for {timeout:?}")
        };
        TransportError {
            path: HTTPS,
            kind: FailureKind::TimedOut,
            message,
            maybe_executed: true,
            retryable: true,
        }
    }
}

/// A request body that hands hyper its pieces as they are, for a vectored write.
#[derive(Debug)]
struct Pieces {
    rest: VecDeque<Bytes>,
    left: u64,
    progress: Arc<Progress>,
}

impl Pieces {
    fn new(body: &Body, progress: Arc<Progress>) -> Self {
        let rest = body
            .0
            .iter()
            .map(|piece| match piece {
                Piece::Bytes(bytes) => bytes.clone(),
                Piece::Slice(slice) => slice.to_bytes(),
            })
            .filter(|bytes| !bytes.is_empty())
            .collect();
        Self {
            rest,
            left: body.len(),
            progress,
        }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    /// A long piece in several frames, each a view of the same memory: hyper asks for the next one when it has written most
    /// of the last, and that is the progress that shows.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(first) = self.rest.front_mut() else {
            self.progress.note(0);
            return Poll::Ready(None);
        };
        let frame = if first.len() > FRAME {
            Some(first.split_to(FRAME))
        } else {
            self.rest.pop_front()
        };
        self.progress.note(frame.as_ref().map_or(0, Bytes::len));
        Poll::Ready(frame.map(|bytes| {
            self.left -= bytes.len() as u64;
            Ok(Frame::data(bytes))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests;
