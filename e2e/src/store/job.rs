//! A request on its way: looked at, not executed yet, or kept for later.

use std::net::IpAddr;
use std::time::Duration;

use super::address::Target;
use super::aids::Fault;
use super::content::Content;
use super::error::ServiceError;
use super::operation::Operation;

/// How an answer reaches the caller: whole, or as a fault rule wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// Cut after this many bytes of the body.
    Cut(u64),
    /// The connection is closed instead.
    NoAnswer,
    /// Nothing ever comes.
    Hang,
}

/// A request that was looked at and not executed yet.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) target: Result<Target, ServiceError>,
    pub(super) operation: Operation,
    /// To be waited before it is executed.
    pub(super) wait: Duration,
    pub(super) fault: Option<Fault>,
}

/// A request that its caller has given up, or a copy of one, and that the service executes later.
#[derive(Debug)]
pub(super) struct Belated {
    pub(super) job: Job,
    pub(super) parts: http::request::Parts,
    pub(super) body: Content,
    pub(super) peer: Option<IpAddr>,
}
