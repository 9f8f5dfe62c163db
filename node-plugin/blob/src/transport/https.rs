//! HTTPS (and plain HTTP for emulators): pooled keep-alive connections, bodies sent piece by piece, answers
//! copied to their destination as they arrive.

mod bodies;
mod failure;
mod pool;
mod progress;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use hyper_util::client::legacy::connect::capture_connection;
use tokio::time::Instant;

use self::bodies::{Pieces, collect, receive_into};
use self::failure::{chain, is_nobody, is_silence, is_untrusted, unsuitable};
use self::pool::{Renewed, pool};
use self::progress::Progress;
use super::counters::Counters;
use super::path::Path;
use super::proxy::Proxies;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::crypto;
use crate::request::Request;
use crate::response::Response;

/// How often within a request's timeout it is looked whether the other side takes what it is sent.
const LOOKS: u32 = 4;

/// The connection pool; cheap to clone, clones share it and the counters.
#[derive(Debug, Clone)]
pub struct Https {
    /// Or why TLS cannot be set up on this machine.
    pool: Result<Renewed, String>,
    counters: Arc<Counters>,
}

impl Https {
    /// A pool that trusts the machine's root certificates and takes the environment's proxy. A machine
    /// without any certificate can still reach `http://` endpoints; TLS then fails with the certificate's
    /// reason.
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
        progress.watch(capture_connection(&mut message));
        let answer = pool.request(message).await.map_err(|error| TransportError {
            path: Path::Https,
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
        progress.touch();
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            progress.refused();
        }
        let body = match &mut dest {
            Some(buffer) if head.status.is_success() => {
                receive_into(body, buffer, progress).await?;
                Bytes::new()
            }
            _ => collect(body, request.collect, progress).await?,
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

/// A request's timeout is the time in which nothing may move: a large body on a slow line takes as long as it
/// takes, while a connection that hangs is given up, and so is one that stays below `SLOWEST` for twice that
/// time. What moves is what the other side acknowledges: megabytes that are sent lie in this machine's own
/// memory first.
#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let (timeout, sent) = (request.timeout, request.body.len());
        let progress = Arc::new(Progress::new(Arc::clone(&request.moved)));
        let mut exchange = std::pin::pin!(self.exchange(request, &progress));
        let outcome = loop {
            let look = Instant::now() + timeout / LOOKS;
            if let Ok(outcome) =
                tokio::time::timeout_at(progress.ends_at(timeout).min(look), &mut exchange).await
            {
                break outcome;
            }
            progress.look();
            if progress.ends_at(timeout) <= Instant::now() {
                break Err(progress.timed_out(timeout));
            }
        };
        // The idle connections may have died with this one: the next attempt must not wait for them one by
        // one.
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
        vec![
            self.counters
                .stats(Path::Https, self.pool.as_ref().err().cloned()),
        ]
    }
}

#[cfg(test)]
mod tests;
