//! What a transport hands back.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use vsc_driver::buffer::Buffer;

/// Status, headers and body of an answer.
#[derive(Debug)]
pub struct Response {
    /// HTTP status (the channel carries the same numbers).
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Error bodies, listings, block lists; empty when the body went to `dest`.
    pub body: Bytes,
    /// The destination of the request, its length set to what arrived (success only).
    pub dest: Option<Buffer>,
}

impl Response {
    /// Bytes of the answer's body, wherever they are.
    pub fn payload_len(&self) -> u64 {
        let in_dest = match &self.dest {
            Some(dest) if self.status.is_success() => dest.len(),
            _ => 0,
        };
        (self.body.len() + in_dest) as u64
    }
}
