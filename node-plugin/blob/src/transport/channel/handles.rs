//! Reads through OPEN, READ and CLOSE, for hosts that refuse the REST extension.
//!
//! A READ's answer tells nothing of the blob but its bytes, while every read of ours answers with the
//! version's properties. So the first read of a version goes over HTTPS, and what its headers say is
//! remembered under URL and ETag; later reads of that version (with If-Match, as a file system reads) go over
//! the channel and answer with the remembered headers. Everything else is not for such a channel.
//!
//! The channel is shared by all volumes of a node, the handles are not: whoever has not read a version with
//! his own credentials over HTTPS finds none, because a handle is the right to read.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use vsc_driver::channel::Data;
use vsc_driver::framing;
use vsc_driver::framing::request::{Authorization, Close, Open, Read, SCHEMA_VERSION};
use vsc_driver::framing::response::{Response as HostResponse, STORE_SUCCESS};

use super::failure::{CallError, NO_REST, STATUS_NOT_SUPPORTED, host_status, malformed, unsuitable};
use super::headers::exchange_id;
use super::host::{Host, PROBE_TIMEOUT};
use crate::crypto::digest;
use crate::request::Request;
use crate::response::Response;
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// Versions remembered at most, each with at most one open handle at the host.
const MAX_VERSIONS: usize = 1024;

/// One version of a blob, as one holder of credentials may read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Host and path.
    blob: String,
    etag: String,
    /// SHA-256 of what the request is authorized with: a renewed SAS or token starts anew.
    credentials: [u8; digest::SHA256_OUTPUT_LEN],
}

/// The host's handle, once opened. Locked while it is being opened, so that readers who come together open
/// one.
type Handle = Arc<tokio::sync::Mutex<Option<String>>>;

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
    handle: Handle,
}

impl Handles {
    /// Remembers the version that a read over HTTPS has shown.
    pub(super) fn learn(&self, request: &Request, response: &Response) {
        if request.method != Method::GET || response.status != StatusCode::PARTIAL_CONTENT {
            return;
        }
        let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
        let total = text(header::CONTENT_RANGE)
            .and_then(|range| range.rsplit('/').next())
            .and_then(|total| total.parse().ok());
        let (Some(etag), Some(total)) = (text(header::ETAG), total) else {
            return;
        };
        let key = key(request, etag);
        let mut headers = response.headers.clone();
        for gone in [header::CONTENT_RANGE, header::CONTENT_LENGTH, header::DATE] {
            headers.remove(gone);
        }
        // A checksum of the range that was read, not of the next one.
        headers.remove("content-md5");
        let mut known = self.lock();
        if known.versions.contains_key(&key) {
            return;
        }
        known.age.push_back(key.clone());
        known.versions.insert(
            key,
            Version {
                headers,
                total,
                handle: Handle::default(),
            },
        );
    }

    /// A read of a version that is known.
    pub(super) async fn read(&self, host: &Host, request: Request) -> Result<Response, TransportError> {
        self.close_oldest(host).await;
        let wanted = wanted(&request).ok_or_else(|| unsuitable(NO_REST.to_owned()))?;
        let Request { dest: Some(dest), .. } = request else {
            return Err(unsuitable(NO_REST.to_owned()));
        };
        let version = self
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
        let began = Instant::now();
        let open = Open {
            schema_version: SCHEMA_VERSION,
            url: request.url.to_string(),
            authorization: wanted.authorization.clone(),
            if_match: Some(wanted.key.etag.clone()),
            client_request_id: client_request_id.clone(),
        };
        let handle_key = Self::opened(host, &version.handle, &open, id, request.timeout).await?;
        let left = request.timeout.saturating_sub(began.elapsed());
        let end = wanted.range.end.min(version.total);
        let length = end - wanted.range.start;
        let body = Read {
            schema_version: SCHEMA_VERSION,
            handle_key: handle_key.clone(),
            offset: wanted.range.start,
            length,
            authorization: wanted.authorization,
            client_request_id,
        };
        let (answer, data) = host
            .call(
                framing::Method::Read,
                &body,
                id,
                left,
                Data::In(dest),
                request.ledger.as_ref(),
            )
            .await
            .map_err(published_call)?;
        if answer.status != STORE_SUCCESS {
            // The host may have forgotten the handle: the next read opens anew.
            let mut handle = version.handle.lock().await;
            if handle.as_ref() == Some(&handle_key) {
                *handle = None;
            }
            return Err(refused("read", &answer));
        }
        let Data::In(mut dest) = data else {
            return Err(malformed("the channel lost the read's destination".into(), true));
        };
        if answer.bytes_read != Some(length) {
            return Err(malformed(
                format!("the host delivered {:?} bytes of {length}", answer.bytes_read),
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

    /// The handle of a version, opened by the first who asks; the others wait for that.
    async fn opened(
        host: &Host,
        handle: &Handle,
        open: &Open,
        id: [u8; 16],
        timeout: Duration,
    ) -> Result<String, TransportError> {
        let began = Instant::now();
        let mut handle = tokio::time::timeout(timeout, handle.lock())
            .await
            .map_err(|_| TransportError {
                path: Path::Channel,
                kind: FailureKind::TimedOut,
                message: "the host did not open the blob in time".into(),
                maybe_executed: false,
                retryable: true,
            })?;
        if let Some(open) = &*handle {
            return Ok(open.clone());
        }
        let left = timeout.saturating_sub(began.elapsed());
        let (answer, _) = host
            .call(framing::Method::Open, open, id, left, Data::None, None)
            .await
            .map_err(published_call)?;
        let new = answer
            .handle_key
            .clone()
            .filter(|_| answer.status == STORE_SUCCESS)
            .ok_or_else(|| refused("open", &answer))?;
        *handle = Some(new.clone());
        Ok(new)
    }

    /// Forgets the versions that are too many, oldest first, and gives their handles back.
    async fn close_oldest(&self, host: &Host) {
        loop {
            let handle = {
                let mut known = self.lock();
                if known.versions.len() <= MAX_VERSIONS {
                    return;
                }
                let Some(oldest) = known.age.pop_front() else {
                    return;
                };
                let Some(version) = known.versions.get(&oldest) else {
                    continue;
                };
                // One that is just being opened is in use.
                let Ok(mut handle) = Arc::clone(&version.handle).try_lock_owned() else {
                    known.age.push_back(oldest);
                    return;
                };
                known.versions.remove(&oldest);
                handle.take()
            };
            let Some(handle_key) = handle else { continue };
            let id = uuid::Uuid::new_v4();
            let body = Close {
                schema_version: SCHEMA_VERSION,
                handle_key,
                client_request_id: id.to_string(),
            };
            let closed = host
                .call(
                    framing::Method::Close,
                    &body,
                    *id.as_bytes(),
                    PROBE_TIMEOUT,
                    Data::None,
                    None,
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

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        key: key(request, text(header::IF_MATCH.as_str())?),
        range,
        authorization,
    })
}

fn key(request: &Request, etag: &str) -> Key {
    let url = &request.url;
    let mut credentials = digest::Context::new(&digest::SHA256);
    let authorization = request.headers.get(header::AUTHORIZATION);
    credentials.update(url.query().unwrap_or_default().as_bytes());
    // No query has a line break.
    credentials.update(b"\n");
    credentials.update(authorization.map_or(&[], |value| value.as_bytes()));
    let mut key = Key {
        blob: format!("{}{}", url.authority().map_or("", |a| a.as_str()), url.path()),
        etag: etag.to_owned(),
        credentials: [0; digest::SHA256_OUTPUT_LEN],
    };
    key.credentials.copy_from_slice(credentials.finish().as_ref());
    key
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
