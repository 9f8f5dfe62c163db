//! HTTP headers as the host takes and gives them.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use vsc_driver::buffer::Buffer;
use vsc_driver::framing::response::Response as HostResponse;

use super::failure::{malformed, unsuitable};
use crate::response::Response;
use crate::transport::TransportError;

/// The request's `x-ms-client-request-id`, which the host's and the kernel's logs then show as well.
pub(super) fn exchange_id(headers: &HeaderMap) -> [u8; 16] {
    headers
        .get("x-ms-client-request-id")
        .and_then(|v| uuid::Uuid::try_parse_ascii(v.as_bytes()).ok())
        .unwrap_or_else(uuid::Uuid::new_v4)
        .into_bytes()
}

pub(super) fn header_list(headers: &HeaderMap) -> Result<Vec<(String, String)>, TransportError> {
    headers
        .iter()
        .map(|(name, value)| {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| unsuitable(format!("header {name} is no text")))?;
            Ok((name.as_str().to_owned(), value.to_owned()))
        })
        .collect()
}

/// Bytes of payload the host says it has written, checked against the room and against the answer's own
/// headers.
pub(super) fn payload_len(host: &HostResponse, room: usize) -> Result<usize, TransportError> {
    let claimed = host.bytes_read.unwrap_or_default();
    let len = usize::try_from(claimed)
        .ok()
        .filter(|len| *len <= room)
        .ok_or_else(|| {
            malformed(
                format!("the host claims {claimed} bytes in a buffer of {room}"),
                true,
            )
        })?;
    let stated = host
        .headers
        .iter()
        .flatten()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse::<usize>().ok());
    match stated {
        Some(stated) if stated != len => Err(malformed(
            format!("the host delivered {len} bytes of a payload of {stated}"),
            true,
        )),
        _ => Ok(len),
    }
}

pub(super) fn answer(
    host: HostResponse,
    payload: Bytes,
    dest: Option<Buffer>,
) -> Result<Response, TransportError> {
    let status = StatusCode::from_u16(host.http_status)
        .map_err(|_| malformed(format!("{} is no HTTP status", host.http_status), true))?;
    let mut headers = HeaderMap::new();
    for (name, value) in host.headers.unwrap_or_default() {
        let parsed = HeaderName::try_from(name.as_str())
            .ok()
            .zip(HeaderValue::from_bytes(value.as_bytes()).ok());
        let Some((name, value)) = parsed else {
            return Err(malformed(format!("{name:?} is no header"), true));
        };
        headers.append(name, value);
    }
    Ok(Response {
        status,
        headers,
        body: host.body.map_or(payload, Bytes::from),
        dest,
    })
}
