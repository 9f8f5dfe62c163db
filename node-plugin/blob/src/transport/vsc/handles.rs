//! Reads through OPEN, READ and CLOSE, for hosts that refuse the REST extension.
//!
//! A READ's answer tells nothing of the blob but its bytes, while every read of ours answers with the version's properties. So
//! the first read of a version goes over HTTPS, and what its headers say is remembered under URL and ETag; later reads of that
//! version (with If-Match, as a file system reads) go over the channel and answer with the remembered headers. Everything else is
//! not for such a channel.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use vsc_driver::channel::Data;
use vsc_driver::framing;
use vsc_driver::framing::request::{Authorization, Close, Open, Read, SCHEMA_VERSION};
use vsc_driver::framing::response::{Response as HostResponse, STORE_SUCCESS};

use super::{
    CallError, NO_REST, PROBE_TIMEOUT, STATUS_NOT_SUPPORTED, Vsc, exchange_id, host_status, malformed,
    unsuitable,
};
use crate::request::Request;
use crate::response::Response;
use crate::transport::TransportError;

/// Versions remembered at most, each with at most one open handle at the host.
const MAX_VERSIONS: usize = 1024;

/// URL without query, and ETag.
type Key = (String, String);

#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    versions: HashMap<Key, Version>,
    /// In the order in which they were learnt.
    age: VecDeque<Key>,
}

#[derive(Debug, Clone)]
struct Version {
    /// What Get Blob says of it, lengths and range apart.
    headers: HeaderMap,
    /// Bytes of the whole blob.
    total: u64,
    /// The host's handle, once opened.
    handle: Option<String>,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vsc {
    /// Remembers the version that a read over HTTPS has shown. Cheap and without effect while the host takes REST.
    pub(crate) fn learn(&self, method: &Method, url: &Uri, response: &Response) {
        if self.takes_rest() || *method != Method::GET || response.status != StatusCode::PARTIAL_CONTENT {
            return;
        }
        let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
        let total = text(header::CONTENT_RANGE)
            .and_then(|range| range.rsplit('/').next())
            .and_then(|total| total.parse().ok());
        let (Some(etag), Some(total)) = (text(header::ETAG), total) else {
            return;
        };
        let key = (without_query(url), etag.to_owned());
        let mut headers = response.headers.clone();
        for gone in [header::CONTENT_RANGE, header::CONTENT_LENGTH, header::DATE] {
            headers.remove(gone);
        }
        // A checksum of the range that was read, not of the next one.
        headers.remove("content-md5");
        let mut known = self.handles.lock();
        if known.versions.contains_key(&key) {
            return;
        }
        known.age.push_back(key.clone());
        known.versions.insert(
            key,
            Version {
                headers,
                total,
                handle: None,
            },
        );
    }

    pub(super) async fn read_by_handle(&self, request: Request) -> Result<Response, TransportError> {
        self.close_oldest().await;
        let wanted = wanted(&request).ok_or_else(|| unsuitable(NO_REST.to_owned()))?;
        let Request { dest: Some(dest), .. } = request else {
            return Err(unsuitable(NO_REST.to_owned()));
        };
        let version = self
            .handles
            .lock()
            .versions
            .get(&wanted.key)
            .cloned()
            .filter(|v| wanted.range.start < v.total)
            .ok_or_else(|| {
                unsuitable("the host reads known versions only, and this one is new".to_owned())
            })?;
        let id = exchange_id(&request.headers);
        let client_request_id = uuid::Uuid::from_bytes(id).to_string();
        let handle_key = match version.handle {
            Some(handle) => handle,
            None => {
                let body = Open {
                    schema_version: SCHEMA_VERSION,
                    url: request.url.to_string(),
                    authorization: wanted.authorization.clone(),
                    if_match: Some(wanted.key.1.clone()),
                    client_request_id: client_request_id.clone(),
                };
                let (host, _) = self
                    .call(framing::Method::Open, &body, id, request.timeout, Data::None)
                    .await
                    .map_err(published_call)?;
                let handle = host
                    .handle_key
                    .clone()
                    .filter(|_| host.status == STORE_SUCCESS)
                    .ok_or_else(|| refused("open", &host))?;
                if let Some(version) = self.handles.lock().versions.get_mut(&wanted.key) {
                    version.handle = Some(handle.clone());
                }
                handle
            }
        };
        let end = wanted.range.end.min(version.total);
        let length = end - wanted.range.start;
        let body = Read {
            schema_version: SCHEMA_VERSION,
            handle_key,
            offset: wanted.range.start,
            length,
            authorization: wanted.authorization,
            client_request_id,
        };
        let (host, data) = self
            .call(framing::Method::Read, &body, id, request.timeout, Data::In(dest))
            .await
            .map_err(published_call)?;
        if host.status != STORE_SUCCESS {
            // The host may have forgotten the handle: the next read opens anew.
            if let Some(version) = self.handles.lock().versions.get_mut(&wanted.key) {
                version.handle = None;
            }
            return Err(refused("read", &host));
        }
        let Data::In(mut dest) = data else {
            return Err(malformed("the channel lost the read's destination".into(), true));
        };
        if host.bytes_read != Some(length) {
            return Err(malformed(
                format!("the host delivered {:?} bytes of {length}", host.bytes_read),
                true,
            ));
        }
        dest.set_len(usize::try_from(length).unwrap_or(usize::MAX));
        let mut headers = version.headers;
        let span = format!("bytes {}-{}/{}", wanted.range.start, end - 1, version.total);
        if let Ok(span) = HeaderValue::from_str(&span) {
            headers.insert(header::CONTENT_RANGE, span);
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        Ok(Response {
            status: StatusCode::PARTIAL_CONTENT,
            headers,
            body: Bytes::new(),
            dest: Some(dest),
        })
    }

    /// Forgets the versions that are too many, oldest first, and gives their handles back.
    async fn close_oldest(&self) {
        loop {
            let handle = {
                let mut known = self.handles.lock();
                if known.versions.len() <= MAX_VERSIONS {
                    return;
                }
                let Some(oldest) = known.age.pop_front() else {
                    return;
                };
                known.versions.remove(&oldest).and_then(|version| version.handle)
            };
            let Some(handle_key) = handle else { continue };
            let id = uuid::Uuid::new_v4();
            let body = Close {
                schema_version: SCHEMA_VERSION,
                handle_key,
                client_request_id: id.to_string(),
            };
            let closed = self
                .call(
                    framing::Method::Close,
                    &body,
                    *id.as_bytes(),
                    PROBE_TIMEOUT,
                    Data::None,
                )
                .await;
            if let Err(error) = closed {
                tracing::debug!(
                    ?error,
                    "a handle could not be closed; the host drops it with the device"
                );
            }
        }
    }
}

/// What a request asks for, if it can be asked by handle.
struct Wanted {
    key: Key,
    range: Range<u64>,
    authorization: Option<Authorization>,
}

fn wanted(request: &Request) -> Option<Wanted> {
    if request.method != Method::GET {
        return None;
    }
    let text = |name| request.headers.get(name).and_then(|v| v.to_str().ok());
    let (first, last) = text("x-ms-range")?.strip_prefix("bytes=")?.split_once('-')?;
    let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
    // Signed requests cannot be carried over to a handle: a SAS in the URL, a token or nothing can.
    let authorization = match text(header::AUTHORIZATION.as_str()) {
        None => None,
        Some(value) => Some(Authorization {
            kind: "AadBearer".to_owned(),
            token: value.strip_prefix("Bearer ")?.to_owned(),
        }),
    };
    Some(Wanted {
        key: (
            without_query(&request.url),
            text(header::IF_MATCH.as_str())?.to_owned(),
        ),
        range,
        authorization,
    })
}

fn without_query(url: &Uri) -> String {
    let authority = url.authority().map_or("", |a| a.as_str());
    format!("{authority}{}", url.path())
}

/// A store's refusal: HTTPS will say properly what it is.
fn refused(what: &str, host: &HostResponse) -> TransportError {
    unsuitable(format!(
        "the host refused to {what} (store status {}, HTTP {}): {}",
        host.status, host.http_status, host.error_description
    ))
}

fn published_call(error: CallError) -> TransportError {
    match error {
        CallError::Transport(error) => error,
        CallError::Status(STATUS_NOT_SUPPORTED) => {
            unsuitable("the host takes no reads on the channel".to_owned())
        }
        CallError::Status(status) => host_status(status),
    }
}
