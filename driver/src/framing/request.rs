//! Bodies of requests. **The JSON field names in this file are ours**: the host's are not public.
//!
//! Known from public sources is *what* goes in (URL, token and its type, If-Match, range, client request id,
//! timeout, handle), not how it is called. When the host's names become known, this file is the only one to
//! change. REST (0x80) is our own extension as a whole.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version of the body format, both ways.
pub const SCHEMA_VERSION: u32 = 1;

/// Body of `OPEN`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Absolute URL of the blob; may carry a SAS.
    pub url: String,
    /// How the access is authorized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// Fails the open when the blob's ETag is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
    /// `x-ms-client-request-id`.
    pub client_request_id: String,
}

/// Body of `READ`. The bytes land at the start of the data buffer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Read {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// From the answer to `OPEN`.
    pub handle_key: String,
    /// First byte of the blob to read.
    pub offset: u64,
    /// Bytes to read; at most the data buffer's length.
    pub length: u64,
    /// Sent again with each read, because a token may be renewed while the handle stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// `x-ms-client-request-id`.
    pub client_request_id: String,
}

/// Body of `CLOSE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Close {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// From the answer to `OPEN`.
    pub handle_key: String,
    /// `x-ms-client-request-id`.
    pub client_request_id: String,
}

/// An access token and its type.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// `AadBearer` is the one published type; `SharedKey` and `Sas` requests carry theirs elsewhere.
    #[serde(rename = "type")]
    pub kind: String,
    /// The token itself.
    pub token: String,
}

/// Body of `REST`: one HTTP request without its payload, which is the data buffer (`data_valid` bytes of it).
///
/// The answer's payload goes to the start of the data buffer (`bytesRead` of it) when the request sends none
/// (`data_valid` = 0, a data buffer is there) and the HTTP status is 2xx. Every other payload travels inside
/// the response body (`body`): XML of errors, cut to the limit there, and small answers to requests that send
/// a payload or bring no buffer. A VSP that does not know the method answers with a host status other than 0.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rest {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// HTTP method.
    pub method: String,
    /// Absolute URL as it would go on the wire; may carry a SAS.
    pub target: String,
    /// Header names and values, authorization included.
    pub headers: Vec<(String, String)>,
}

// URLs may carry a SAS and headers an authorization: Debug shows neither.

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Open({}, {})",
            without_query(&self.url),
            self.client_request_id
        )
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read({} {}+{})", self.handle_key, self.offset, self.length)
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorization({}, ***)", self.kind)
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Rest({} {}, {} headers)",
            self.method,
            without_query(&self.target),
            self.headers.len()
        )
    }
}

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}
