//! The seam between requests and the wire: one trait, three implementations (https, channel, failover).

mod breaker;
pub mod channel;
mod counters;
pub mod failover;
#[cfg(test)]
pub(crate) mod fake;
pub mod https;
mod no_proxy;
pub mod path;
pub mod paths;
mod probed;
mod proxy;

use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use vsc_driver::channel::Ledger;

use self::path::Path;
use crate::observer::Observer;
use crate::request::Request;
use crate::response::Response;

/// Why an attempt produced no HTTP answer.
#[derive(Debug, Clone, Error)]
#[error("{path}: {message}")]
pub struct TransportError {
    /// The path it was tried on.
    pub path: Path,
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened.
    pub message: String,
    /// The request may have been executed although no answer arrived.
    pub maybe_executed: bool,
    /// Trying again on the same path can help (timeout, reset, ring full) - or not (bad URL, TLS failure).
    pub retryable: bool,
}

/// Kinds of [`TransportError`] that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, or it broke.
    Unreachable,
    /// There is nobody to talk to: the port refuses, the name or the network is not known, TLS does not come
    /// about. Waiting a second seldom mends it.
    Nobody,
    /// No answer within the request's timeout.
    TimedOut,
    /// Something arrived that is no answer to the request.
    Malformed,
    /// The answer is longer than the request allows. It says nothing of the path's health, and comes again on
    /// any path.
    TooLong,
    /// The path as a whole is out of service (device gone or stuck): other requests would fare no better.
    PathDown,
    /// The volume demands the channel and it is not usable.
    ChannelRequired,
    /// The request cannot go this way at all (too large for the channel, not an HTTP URL). It says nothing of
    /// the path's health.
    Unsuitable,
    /// This machine has no memory for the exchange at the moment; nothing was sent, and the path may be well.
    NoMemory,
}

/// Sends one request once.
///
/// The implementation owns the request, its destination included, until it answers; after an error the
/// destination may be lost (a device may still write there), so a retry brings a new one. It answers every
/// HTTP status as `Ok`. It never retries by itself (that is the client's and failover's work).
///
/// A success (2xx) to a request with a destination has its body there, the destination's length set to what
/// arrived, and an empty [`Response::body`]; a body longer than the destination is a `Malformed` error. Any
/// other status has its body in [`Response::body`] and the destination comes back untouched.
#[async_trait]
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Sends the request and waits for its answer or its timeout.
    async fn send(&self, request: Request) -> Result<Response, TransportError>;

    /// Counters of each path behind this transport, for metrics and the demo.
    fn stats(&self) -> Vec<PathStats>;

    /// Whether somebody still has the request of this `x-ms-client-request-id`: one that was given up may be
    /// executed as long as that is so.
    fn has(&self, _request: uuid::Uuid) -> bool {
        false
    }

    /// Names who is told of what passes from now on; the first one stays. By default nobody is.
    fn observe(&self, _observer: Arc<dyn Observer>) {}

    /// Names who is told of memory that a device keeps of requests that were given up; the first one stays.
    /// By default nothing is kept.
    fn keep_books(&self, _ledger: Arc<dyn Ledger>) {}
}

/// Counters of one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathStats {
    /// `channel` or `https`.
    pub path: &'static str,
    /// Requests answered (any status).
    pub requests: u64,
    /// Attempts without an answer.
    pub errors: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Requests that moved to the other path.
    pub failed_over: u64,
    /// True while this path may be used (circuit closed).
    pub usable: bool,
    /// Why it is not, in one sentence.
    pub reason: Option<String>,
}
