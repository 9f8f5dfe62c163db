//! One Blob REST call as data, before any transport has seen it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use vsc_driver::buffer::Buffer;
use vsc_driver::channel::Ledger;

use crate::body::Body;
use crate::progress::Moved;
use crate::transport::path::Path;

/// A signed request, ready for a transport. Built by the client, so that both paths send the same thing.
pub struct Request {
    /// Method.
    pub method: Method,
    /// Absolute URL with query, percent-encoded exactly as it goes on the wire (a SAS is inside: never log
    /// the query).
    ///
    /// A [`http::Uri`] and not a [`url::Url`], because the latter folds `.` and `..` segments, which are
    /// ordinary characters of a blob's name.
    pub url: Uri,
    /// All headers, authorization included (never log them).
    pub headers: HeaderMap,
    /// Body to send; cloning a request shares it.
    pub body: Body,
    /// Where a successful body is to be written: over the channel the host writes here itself.
    pub dest: Option<Buffer>,
    /// Longest body that is collected in memory; a longer one is a `TooLong` failure.
    pub collect: usize,
    /// Whether sending it twice has the effect and the answer of sending it once (decides whether the other
    /// path may be tried after a lost answer; what this excludes the client itself retries, because it can
    /// read back).
    pub idempotent: bool,
    /// An earlier attempt of this call got no usable answer over this path: failover takes the other one when
    /// it may.
    pub avoid: Option<Path>,
    /// For this attempt: over the channel the whole time it may take, over HTTPS the time in which no byte
    /// moves.
    pub timeout: Duration,
    /// Is told what moves, where the transport can see it.
    pub moved: Arc<Moved>,
    /// Is told of memory that a device keeps when the request is given up.
    pub ledger: Option<Arc<dyn Ledger>>,
}

/// Bound of bodies that are collected in memory, where no other is said: error texts and block lists (50,000
/// entries).
pub const COLLECT: usize = 64 * 1024 * 1024;

impl Request {
    /// Its `x-ms-client-request-id`.
    pub(crate) fn id(&self) -> Option<uuid::Uuid> {
        let id = self.headers.get("x-ms-client-request-id")?;
        uuid::Uuid::try_parse_ascii(id.as_bytes()).ok()
    }

    /// The same request with another destination; the body is shared.
    pub fn with_dest(&self, dest: Option<Buffer>) -> Self {
        Self {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            dest,
            collect: self.collect,
            idempotent: self.idempotent,
            avoid: self.avoid,
            timeout: self.timeout,
            moved: Arc::clone(&self.moved),
            ledger: self.ledger.clone(),
        }
    }
}

impl fmt::Debug for Request {
    /// Leaves out the query and the headers: both may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("host", &self.url.authority().map(http::uri::Authority::as_str))
            .field("path", &self.url.path())
            .field("body", &self.body.len())
            .field("dest", &self.dest.as_ref().map(|d| d.len()))
            .field("idempotent", &self.idempotent)
            .field("avoid", &self.avoid)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
