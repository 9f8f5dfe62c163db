//! One Blob REST call as data, before any transport has seen it.

use std::time::Duration;

use http::{HeaderMap, Method};
use vsc_driver::buffer::Buffer;

use crate::types::Body;

/// A signed request, ready for a transport. Built by the client, so that both paths send the same thing.
#[derive(Debug)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Absolute URL with query, percent-encoded as it goes on the wire (a SAS is inside: never log the query).
    pub url: url::Url,
    /// All headers, authorization included (never log them).
    pub headers: HeaderMap,
    /// Body to send; cloning a request shares it.
    pub body: Body,
    /// Where a successful body is to be written: over the channel the host writes here itself.
    pub dest: Option<Buffer>,
    /// Whether sending it twice has the effect of sending it once (decides retry after a lost answer).
    pub idempotent: bool,
    /// For this attempt.
    pub timeout: Duration,
}
