//! The seam between requests and the wire: one trait, three implementations (https, vsc, failover).

pub mod failover;

use async_trait::async_trait;
use thiserror::Error;

use crate::request::Request;
use crate::response::Response;

/// Why an attempt produced no HTTP answer.
#[derive(Debug, Error)]
#[error("{path}: {message}")]
pub struct TransportError {
    /// `channel` or `https`.
    pub path: &'static str,
    /// What happened.
    pub message: String,
    /// The request may have been executed although no answer arrived.
    pub maybe_executed: bool,
    /// Trying again on the same path can help (timeout, reset, ring full) - or not (bad URL, TLS failure).
    pub retryable: bool,
}

/// Sends one request once.
///
/// The implementation owns the request, its destination included, until it answers; after an error the
/// destination may be lost (a device may still write there), so a retry brings a new one.
/// It answers every HTTP status as `Ok`. It never retries by itself (that is the client's and failover's work).
#[async_trait]
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Sends the request and waits for its answer or its timeout.
    async fn send(&self, request: Request) -> Result<Response, TransportError>;

    /// Counters of each path behind this transport, for metrics and the demo.
    fn stats(&self) -> Vec<PathStats>;
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
