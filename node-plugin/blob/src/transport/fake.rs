//! A transport whose answers are scripted, for tests of what stands above it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use tokio::time::Instant;

use super::path::Path;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::request::Request;
use crate::response::Response;

/// What the fake was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body_len: u64,
    pub(crate) avoid: Option<Path>,
    pub(crate) idempotent: bool,
    pub(crate) timeout: std::time::Duration,
}

impl Sent {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// One scripted answer.
pub(crate) type Step = Box<dyn FnOnce(Request) -> Result<Response, TransportError> + Send>;

type MakeStep = fn() -> Step;

#[derive(Clone, Default)]
pub(crate) struct Fake {
    steps: Arc<Mutex<VecDeque<Step>>>,
    /// When the script has run out.
    otherwise: Arc<Mutex<Option<MakeStep>>>,
    sent: Arc<Mutex<Vec<Sent>>>,
    kept: Arc<Mutex<HashSet<uuid::Uuid>>>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    pub(crate) fn will(&self, step: Step) -> &Self {
        self.steps.lock().unwrap().push_back(step);
        self
    }

    pub(crate) fn always(&self, step: MakeStep) -> &Self {
        *self.otherwise.lock().unwrap() = Some(step);
        self
    }

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// The request that was sent as the `nth` is still with somebody.
    pub(crate) fn keep(&self, nth: usize) {
        let id = self.sent()[nth].header("x-ms-client-request-id").parse().unwrap();
        self.kept.lock().unwrap().insert(id);
    }

    /// What was with somebody has come back.
    pub(crate) fn give_back(&self) {
        self.kept.lock().unwrap().clear();
    }

    pub(crate) fn nothing_left(&self) -> bool {
        self.steps.lock().unwrap().is_empty()
    }
}

#[async_trait]
impl Transport for Fake {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        self.sent.lock().unwrap().push(Sent {
            at: Instant::now(),
            method: request.method.clone(),
            url: request.url.clone(),
            headers: request.headers.clone(),
            body_len: request.body.len(),
            avoid: request.avoid,
            idempotent: request.idempotent,
            timeout: request.timeout,
        });
        let step = self.steps.lock().unwrap().pop_front();
        let step = step.or_else(|| self.otherwise.lock().unwrap().map(|make| make()));
        step.expect("the script has an answer for every request")(request)
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }

    fn has(&self, request: uuid::Uuid) -> bool {
        self.kept.lock().unwrap().contains(&request)
    }
}

/// An answer with headers and a body; a success fills the destination, and is the service's.
pub(crate) fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Step {
    let id = [("x-ms-request-id", "id")];
    let id = if (200..300).contains(&status) {
        &id[..]
    } else {
        &[]
    };
    answer_as_said(status, &[id, headers].concat(), body)
}

/// The same with these headers and no other.
pub(crate) fn answer_as_said(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Step {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect();
    let body = Bytes::copy_from_slice(body);
    Box::new(move |request: Request| {
        let status = StatusCode::from_u16(status).unwrap();
        let mut dest = request.dest;
        let in_dest = status.is_success() && dest.is_some();
        if let (true, Some(dest)) = (in_dest, &mut dest) {
            dest[..body.len()].copy_from_slice(&body);
            dest.set_len(body.len());
        }
        Ok(Response {
            status,
            headers,
            body: if in_dest { Bytes::new() } else { body },
            dest,
        })
    })
}

/// ETag and Last-Modified of any version.
pub(crate) const VERSION: [(&str, &str); 2] = [
    ("etag", "\"0x1\""),
    ("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT"),
];

/// A success that tells a version.
pub(crate) fn written() -> Step {
    answer(201, &VERSION, b"")
}

/// A refusal with the service's code.
pub(crate) fn refusal(status: u16, code: &str) -> Step {
    answer(
        status,
        &[("x-ms-request-id", "id"), ("x-ms-error-code", code)],
        b"",
    )
}

/// An answer of somebody on the way: no header of the service.
pub(crate) fn stranger(status: u16) -> Step {
    answer_as_said(status, &[("server", "gateway")], b"<html><body>no</body></html>")
}

/// No answer over the channel.
pub(crate) fn failure(kind: FailureKind, maybe_executed: bool, retryable: bool) -> Step {
    failure_of(Path::Channel, kind, maybe_executed, retryable)
}

/// No answer over this path.
pub(crate) fn failure_of(path: Path, kind: FailureKind, maybe_executed: bool, retryable: bool) -> Step {
    Box::new(move |_| {
        Err(TransportError {
            path,
            kind,
            message: format!("scripted {kind:?}"),
            maybe_executed,
            retryable,
        })
    })
}
