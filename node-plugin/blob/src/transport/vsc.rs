//! The accelerated channel as a transport: one REST call is one exchange with the host.
//!
//! A read's destination is the exchange's data buffer, so the host writes the blob's bytes where the caller wants them and
//! nobody copies them in user space. A body that is one arena slice is sent from where it lies; other bodies are gathered first.
//! Hosts that refuse the REST extension get reads only, by handle (`vsc/handles.rs`).

mod handles;
mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use vsc_driver::buffer::{Arena, Buffer, PAGE};
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, ChannelStats, Data, Exchange};
use vsc_driver::framing::request::{Close, Rest, SCHEMA_VERSION};
use vsc_driver::framing::response::{
    Response as HostResponse, STORE_PAYLOAD_TOO_LARGE, STORE_SUCCESS, STORE_UNREACHABLE,
};
use vsc_driver::framing::{self, FrameError, RESPONSE_CAPACITY};
use vsc_driver::uapi::{MAX_PAGES, STATUS_TIMEOUT};

use self::handles::Handles;
use self::support::RestSupport;
use super::counters::Counters;
use super::failover::Probed;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::request::Request;
use crate::response::Response;
use crate::types::{Body, Piece};

/// Name of this path in counters and errors.
pub const CHANNEL: &str = "channel";

/// Room for a request's header and JSON; most need one page (a URL with a SAS, a dozen headers), metadata up to 8 KiB more.
const REQUEST_SIZES: [usize; 2] = [2 * PAGE, 32 * PAGE];
/// Room for an answer whose length nobody knows before (listings, block lists), tried one after the other.
const ANSWER_SIZES: [usize; 3] = [256 * 1024, 8 * 1024 * 1024, 31 * 1024 * 1024];
/// Copies of bodies in several pieces that all requests may hold at once: nobody's budget counts them.
const GATHER_LIMIT: usize = 24 << 20;
const GATHER_UNIT: usize = 64 << 10;
/// Bytes of payload that fit one exchange whatever their alignment, beside the largest request and response.
const MAX_PAYLOAD: usize = (MAX_PAGES - 1) * PAGE - RESPONSE_CAPACITY - REQUEST_SIZES[1];
/// A host that is well answers a probe in well under a millisecond.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Host status for a method it does not have (HRESULT of ERROR_NOT_SUPPORTED).
const STATUS_NOT_SUPPORTED: u32 = 0x8007_0032;

/// The channel of this machine. One per process is enough: it is shared by all volumes.
#[derive(Debug)]
pub struct Vsc {
    channel: Channel,
    arena: Arc<Arena>,
    rest: RestSupport,
    handles: Handles,
    counters: Counters,
    /// In units of [`GATHER_UNIT`].
    gathering: Semaphore,
}

impl Vsc {
    /// Opens the device (blocks for a few system calls). The arena serves headers, gathered bodies and listings.
    pub fn open(config: ChannelConfig, arena: Arc<Arena>) -> Result<Self, ChannelError> {
        Ok(Self {
            channel: Channel::open(config)?,
            arena,
            rest: RestSupport::unknown(),
            handles: Handles::default(),
            gathering: Semaphore::new(GATHER_LIMIT / GATHER_UNIT),
            counters: Counters::default(),
        })
    }

    /// The channel itself, for its counters.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// False while the host counts as refusing the REST extension.
    pub fn takes_rest(&self) -> bool {
        self.rest.worth_trying()
    }

    async fn exchange(&self, request: Request) -> Result<Response, TransportError> {
        if !self.takes_rest() {
            return self.read_by_handle(request).await;
        }
        let body = Rest {
            schema_version: SCHEMA_VERSION,
            method: request.method.as_str().to_owned(),
            target: request.url.to_string(),
            headers: header_list(&request.headers)?,
        };
        let id = exchange_id(&request.headers);
        let Some(dest) = request.dest else {
            if request.method == Method::GET {
                return self.rest_collect(&body, id, request.timeout).await;
            }
            let began = Instant::now();
            let room = self.room_to_gather(&request.body);
            let _room = tokio::time::timeout(request.timeout, room)
                .await
                .map_err(|_| no_memory("other requests' bodies are being gathered".to_owned()))?;
            let data = self.outgoing(&request.body)?;
            let left = request.timeout.saturating_sub(began.elapsed());
            let (host, _) = self.rest(&body, id, left, data).await?;
            return answer(host, Bytes::new(), None);
        };
        let (host, data) = self.rest(&body, id, request.timeout, Data::In(dest)).await?;
        let Data::In(mut dest) = data else {
            return Err(malformed("the channel lost the read's destination".into(), true));
        };
        let success = (200..300).contains(&host.http_status);
        if success {
            let arrived = payload_len(&host, dest.len())?;
            dest.set_len(arrived);
        }
        answer(host, Bytes::new(), Some(dest))
    }

    /// A GET whose answer may be of any length.
    async fn rest_collect(
        &self,
        body: &Rest,
        id: [u8; 16],
        timeout: Duration,
    ) -> Result<Response, TransportError> {
        for size in ANSWER_SIZES {
            let room = self.alloc(size)?;
            let (host, data) = match self.rest(body, id, timeout, Data::In(room)).await {
                // Executed, but nothing changed by it: once more with more room.
                Err(Refused::TooLarge) => continue,
                other => other?,
            };
            let (Data::In(mut room), true) = (data, (200..300).contains(&host.http_status)) else {
                return answer(host, Bytes::new(), None);
            };
            let arrived = payload_len(&host, room.len())?;
            room.set_len(arrived);
            return answer(host, room.freeze().to_bytes(), None);
        }
        Err(Refused::TooLarge.into())
    }

    /// One REST exchange whose host status and store status are good.
    async fn rest(
        &self,
        body: &Rest,
        id: [u8; 16],
        timeout: Duration,
        data: Data,
    ) -> Result<(HostResponse, Data), Refused> {
        let (host, data) = match self.call(framing::Method::Rest, body, id, timeout, data).await {
            Err(CallError::Status(status)) => {
                let outright = status == STATUS_NOT_SUPPORTED;
                let refused = status != STATUS_TIMEOUT && self.rest.refused(outright);
                return Err(Refused::Other(match (refused, outright) {
                    (true, true) => unsuitable(NO_REST.to_owned()),
                    // What the host meant by this one is a guess, so the request may have been executed.
                    (true, false) => TransportError {
                        kind: FailureKind::Unsuitable,
                        ..host_status(status)
                    },
                    (false, _) => host_status(status),
                }));
            }
            Err(CallError::Transport(error)) => return Err(Refused::Other(error)),
            Ok(done) => done,
        };
        self.rest.taken();
        match host.status {
            STORE_SUCCESS => Ok((host, data)),
            STORE_PAYLOAD_TOO_LARGE => Err(Refused::TooLarge),
            STORE_UNREACHABLE => Err(Refused::Other(TransportError {
                path: CHANNEL,
                kind: FailureKind::Unreachable,
                message: format!("the host cannot reach the store: {}", host.error_description),
                maybe_executed: true,
                retryable: true,
            })),
            other => Err(Refused::Other(malformed(
                format!(
                    "the host answered store status {other}: {}",
                    host.error_description
                ),
                true,
            ))),
        }
    }

    /// One exchange: request framed, submitted, response checked.
    async fn call<T: Serialize>(
        &self,
        method: framing::Method,
        body: &T,
        id: [u8; 16],
        timeout: Duration,
        data: Data,
    ) -> Result<(HostResponse, Data), CallError> {
        let exchange = Exchange {
            id,
            timeout,
            request: self.framed(method, body)?,
            response: self.alloc(RESPONSE_CAPACITY)?,
            data,
        };
        let done = self.channel.submit(exchange).await.map_err(channel_error)?;
        if done.status != 0 {
            return Err(CallError::Status(done.status));
        }
        let host = framing::decode_response::<HostResponse>(&done.exchange.response, done.response_len)
            .map_err(|error| malformed(format!("the host's response: {error}"), true))?;
        Ok((host, done.exchange.data))
    }

    fn framed<T: Serialize>(&self, method: framing::Method, body: &T) -> Result<Buffer, TransportError> {
        let mut needed = REQUEST_SIZES[0];
        loop {
            let mut buffer = self.alloc(needed)?;
            match framing::encode_request(method, body, &mut buffer) {
                Ok(len) => {
                    buffer.set_len(len);
                    return Ok(buffer);
                }
                Err(FrameError::Length { len, .. }) if needed < len && len <= REQUEST_SIZES[1] => {
                    needed = REQUEST_SIZES[1];
                }
                Err(error) => return Err(unsuitable(format!("request does not fit the channel: {error}"))),
            }
        }
    }

    /// The right to hold a copy of a body that does not lie in one piece, kept until the host has read it; `None` where none is made.
    async fn room_to_gather(&self, body: &Body) -> Option<SemaphorePermit<'_>> {
        if let [] | [Piece::Slice(_)] = &body.0[..] {
            return None;
        }
        // What the arena takes for it.
        let held = usize::try_from(body.len()).ok()?.checked_next_power_of_two()?;
        let units = held.div_ceil(GATHER_UNIT).min(GATHER_LIMIT / GATHER_UNIT);
        // The semaphore is never closed.
        self.gathering.acquire_many(u32::try_from(units).ok()?).await.ok()
    }

    /// The body as a data buffer: as it lies, when it is one slice of an arena; gathered otherwise.
    fn outgoing(&self, body: &Body) -> Result<Data, TransportError> {
        let len = usize::try_from(body.len())
            .ok()
            .filter(|len| *len <= MAX_PAYLOAD)
            .ok_or_else(|| unsuitable(format!("{} bytes do not fit one channel request", body.len())))?;
        if len == 0 {
            return Ok(Data::None);
        }
        if let [Piece::Slice(slice)] = &body.0[..] {
            return Ok(Data::Out(slice.clone()));
        }
        let mut gathered = self.alloc(len)?;
        let mut filled = 0;
        for piece in &body.0 {
            let bytes: &[u8] = match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Slice(slice) => slice,
            };
            gathered[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }
        Ok(Data::Out(gathered.freeze()))
    }

    fn alloc(&self, len: usize) -> Result<Buffer, TransportError> {
        self.arena
            .alloc(len)
            .map_err(|error| no_memory(error.to_string()))
    }
}

#[async_trait]
impl Transport for Vsc {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let sent = request.body.len();
        let outcome = self.exchange(request).await;
        match &outcome {
            Ok(response) => self.counters.answered(sent, response.payload_len()),
            Err(error) if matches!(error.kind, FailureKind::Unsuitable | FailureKind::NoMemory) => {}
            Err(_) => self.counters.failed(),
        }
        outcome
    }

    fn stats(&self) -> Vec<PathStats> {
        vec![self.counters.stats(CHANNEL, None)]
    }
}

#[async_trait]
impl Probed for Vsc {
    fn limits(&self) -> Option<String> {
        let refused = self.rest.is_refused();
        refused.then(|| format!("{NO_REST}: only reads with a SAS or a token go over it"))
    }

    /// Asks the host to close a handle that nobody has: any well-formed answer shows that it listens, and the store is not
    /// bothered.
    async fn probe(&self) -> Result<(), String> {
        self.channel.check().await.map_err(|e| e.to_string())?;
        let id = uuid::Uuid::new_v4();
        let body = Close {
            schema_version: SCHEMA_VERSION,
            handle_key: uuid::Uuid::nil().to_string(),
            client_request_id: id.to_string(),
        };
        let answered = self
            .call(
                framing::Method::Close,
                &body,
                *id.as_bytes(),
                PROBE_TIMEOUT,
                Data::None,
            )
            .await;
        match answered {
            Ok(_) => {
                self.rest.forget_refusal();
                Ok(())
            }
            Err(CallError::Status(status)) => Err(host_status(status).message),
            Err(CallError::Transport(error)) => Err(error.message),
        }
    }

    fn learn(&self, request: &Request, response: &Response) {
        Vsc::learn(self, request, response);
    }

    fn device_stats(&self) -> ChannelStats {
        self.channel.stats()
    }
}

const NO_REST: &str = "the host takes no REST requests on the channel";

/// Why one exchange gave no response.
#[derive(Debug)]
enum CallError {
    /// The host answered with this status and nothing else.
    Status(u32),
    Transport(TransportError),
}

impl From<TransportError> for CallError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

/// Why a REST exchange is not an HTTP answer.
#[derive(Debug)]
enum Refused {
    /// The answer's payload did not fit; the request was executed.
    TooLarge,
    Other(TransportError),
}

impl From<Refused> for TransportError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge => TransportError {
                path: CHANNEL,
                kind: FailureKind::Unsuitable,
                message: "the answer does not fit one channel request".into(),
                maybe_executed: true,
                // The client has to look what became of a write before HTTPS may have it.
                retryable: true,
            },
            Refused::Other(error) => error,
        }
    }
}

impl From<TransportError> for Refused {
    fn from(error: TransportError) -> Self {
        Self::Other(error)
    }
}

fn unsuitable(message: String) -> TransportError {
    TransportError {
        path: CHANNEL,
        kind: FailureKind::Unsuitable,
        message,
        maybe_executed: false,
        retryable: false,
    }
}

fn no_memory(message: String) -> TransportError {
    TransportError {
        path: CHANNEL,
        kind: FailureKind::NoMemory,
        message: format!("no memory for a channel request: {message}"),
        maybe_executed: false,
        retryable: true,
    }
}

fn malformed(message: String, maybe_executed: bool) -> TransportError {
    TransportError {
        path: CHANNEL,
        kind: FailureKind::Malformed,
        message,
        maybe_executed,
        retryable: true,
    }
}

fn host_status(status: u32) -> TransportError {
    TransportError {
        path: CHANNEL,
        kind: if status == STATUS_TIMEOUT {
            FailureKind::TimedOut
        } else {
            FailureKind::Unreachable
        },
        message: format!("the host answered status {status:#010x}"),
        maybe_executed: true,
        retryable: true,
    }
}

fn channel_error(error: ChannelError) -> TransportError {
    let message = error.to_string();
    // (kind, may have been executed, may be tried again)
    let (kind, maybe_executed, retryable) = match error {
        ChannelError::Gone { sent, .. } => (FailureKind::PathDown, sent, true),
        ChannelError::UnknownAbi { .. } => (FailureKind::PathDown, false, false),
        ChannelError::Stuck { .. } => (FailureKind::PathDown, false, true),
        ChannelError::Busy => (FailureKind::TimedOut, false, true),
        // Later than the host itself was allowed: whether it still listens is for the prober to find out.
        ChannelError::TimedOut { .. } => (FailureKind::PathDown, true, true),
        ChannelError::TooLarge { .. } => (FailureKind::Unsuitable, false, false),
        _ => (FailureKind::Unreachable, true, true),
    };
    TransportError {
        path: CHANNEL,
        kind,
        message,
        maybe_executed,
        retryable,
    }
}

/// The request's `x-ms-client-request-id`, which the host's and the kernel's logs then show as well.
fn exchange_id(headers: &HeaderMap) -> [u8; 16] {
    headers
        .get("x-ms-client-request-id")
        .and_then(|v| uuid::Uuid::try_parse_ascii(v.as_bytes()).ok())
        .unwrap_or_else(uuid::Uuid::new_v4)
        .into_bytes()
}

fn header_list(headers: &HeaderMap) -> Result<Vec<(String, String)>, TransportError> {
    headers
        .iter()
        .map(|(name, value)| {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| unsuitable(format!("header {name} is no text")))?;
            Ok((name.as_str().to_owned(), value.to_owned()))
        })
        .collect()
}

/// Bytes of payload the host says it has written, checked against the room and against the answer's own headers.
fn payload_len(host: &HostResponse, room: usize) -> Result<usize, TransportError> {
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

fn answer(host: HostResponse, payload: Bytes, dest: Option<Buffer>) -> Result<Response, TransportError> {
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

#[cfg(test)]
mod tests;
