//! The pool of connections, which can be exchanged for an empty one.
//!
//! hyper's pool gives out idle connections and cannot be told to forget them. After an outage of the network
//! all of them may be dead without a sign of it, and each would cost an attempt until its time is up.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::bodies::Pieces;
use super::wire::Wiring;
use crate::transport::proxy::Proxies;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the service's own idle limit, so that a request rarely meets a connection that is just being
/// closed.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// What is sent must be acknowledged by the peer's kernel in this time, or the connection is dead: well
/// before an attempt's time without progress (27 s unless the option `timeout` says otherwise), so that the
/// call has time for another one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Idle connections are probed after this long, and then this often; two missing answers in a row end one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
const POOL_IDLE_PER_HOST: usize = 64;
/// One read of the socket at most. Every connection keeps up to two such buffers, idle ones too, and they are
/// outside of the budget: larger ones save few system calls and cost tens of MiB.
const READ_BUFFER: usize = 128 * 1024;
/// A blob may carry 8 KiB of metadata, one header each.
const MAX_HEADERS: usize = 512;

pub(super) type Pool = Client<HttpsConnector<Wiring>, Pieces>;

pub(super) fn pool(tls: rustls::ClientConfig, proxies: Proxies) -> Pool {
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
        .wrap_connector(Wiring(proxies.over(http)));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .http1_max_buf_size(READ_BUFFER)
        .http1_max_headers(MAX_HEADERS)
        .build(connector)
}

/// See the module; clones share it.
#[derive(Clone)]
pub(super) struct Renewed(Arc<Inner>);

struct Inner {
    make: Box<dyn Fn() -> Pool + Send + Sync>,
    /// With how often it was exchanged.
    current: Mutex<(Pool, u64)>,
}

impl Renewed {
    pub(super) fn new(make: impl Fn() -> Pool + Send + Sync + 'static) -> Self {
        let first = make();
        Self(Arc::new(Inner {
            make: Box::new(make),
            current: Mutex::new((first, 0)),
        }))
    }

    /// The pool to use, and its age for [`Renewed::renew`].
    pub(super) fn current(&self) -> (Pool, u64) {
        self.lock().clone()
    }

    /// Exchanges the pool of this age; one that was exchanged meanwhile stays. Requests that are out go on
    /// undisturbed.
    pub(super) fn renew(&self, age: u64) {
        let mut current = self.lock();
        if current.1 == age {
            tracing::debug!("idle connections are left after a time-out");
            *current = ((self.0.make)(), age + 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Pool, u64)> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").finish_non_exhaustive()
    }
}
