//! Body of responses. These field names are the published ones (public tests of Hadoop's client), our
//! extension (`headers`, `body`) apart.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `status` of a request that the store executed with success. Anything else is a store error.
///
/// For `Rest` (ours) it means that the store has answered at all: what it answered is in `httpStatus`.
pub const STORE_SUCCESS: i64 = 1001;
/// `Rest` (ours): the request was executed, but its payload fits neither the data buffer nor the response
/// body. `errorDescription` tells the size.
pub const STORE_PAYLOAD_TOO_LARGE: i64 = 2001;
/// `Rest` (ours): the host could not reach the store, or lost it before the whole answer was there.
pub const STORE_UNREACHABLE: i64 = 2002;

/// The largest payload that travels inside a response body, in bytes (base64 makes 4/3 of it).
pub const MAX_INLINE_BODY: usize = 12 * 1024;

/// The one body of all responses; which optional fields are there depends on `response_type`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Version of this format, 1.
    pub schema_version: u32,
    /// `Open`, `Read`, `Close`, or `Rest` (ours).
    pub response_type: String,
    /// [`STORE_SUCCESS`] or a store error.
    pub status: i64,
    /// HTTP status the store would have answered with.
    pub http_status: u16,
    /// `OK`, or what went wrong; for `Rest` the reason why the VSP itself refused.
    #[serde(default)]
    pub error_description: String,
    /// Time at the host.
    #[serde(default)]
    pub elapsed_time_ms: f64,
    /// `x-ms-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_ms_request_id: Option<String>,
    /// `x-ms-client-request-id`, echoed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_ms_client_request_id: Option<String>,
    /// `x-ms-version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_ms_version: Option<String>,
    /// RFC 1123 time of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_timestamp: Option<String>,
    /// `Open`: handle for `Read` and `Close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle_key: Option<String>,
    /// `Read` and `Rest`: bytes written into the data buffer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_read: Option<u64>,
    /// `Read`: CRC-64 of those bytes, base64.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "xMsContentCrc64")]
    pub content_crc64: Option<String>,
    /// `Rest`: the answer's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<(String, String)>>,
    /// `Rest`: a payload that is not in the data buffer, at most [`MAX_INLINE_BODY`] bytes; base64 in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "inline_body")]
    pub body: Option<Vec<u8>>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("response_type", &self.response_type)
            .field("status", &self.status)
            .field("http_status", &self.http_status)
            .field("error_description", &self.error_description)
            .field("x_ms_request_id", &self.x_ms_request_id)
            .field("bytes_read", &self.bytes_read)
            .finish_non_exhaustive()
    }
}

mod inline_body {
    use super::{BASE64, Deserialize, Deserializer, Engine, Serializer};

    pub(super) fn serialize<S: Serializer>(body: &Option<Vec<u8>>, out: S) -> Result<S::Ok, S::Error> {
        match body {
            Some(bytes) => out.serialize_str(&BASE64.encode(bytes)),
            None => out.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| BASE64.decode(text))
            .transpose()
            .map_err(serde::de::Error::custom)
    }
}
