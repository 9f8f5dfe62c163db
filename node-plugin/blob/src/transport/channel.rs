//! The accelerated channel as a transport: one REST call is one exchange with the host.
//!
//! A read's destination is the exchange's data buffer, so the host writes the blob's bytes where the caller
//! wants them and nobody copies them in user space. A body that is one arena slice is sent from where it
//! lies; other bodies are gathered first. Hosts that refuse the REST extension get reads only, by handle
//! (`handles`).

mod failure;
mod handles;
mod headers;
mod host;
mod rest_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use vsc_driver::buffer::{Arena, PAGE};
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, ChannelStats, Data, Ledger};
use vsc_driver::framing::request::{Close, Rest, SCHEMA_VERSION};
use vsc_driver::framing::response::{
    Response as HostResponse, STORE_PAYLOAD_TOO_LARGE, STORE_SUCCESS, STORE_UNREACHABLE,
};
use vsc_driver::framing::{self, RESPONSE_CAPACITY};
use vsc_driver::uapi::{MAX_PAGES, STATUS_TIMEOUT};

use self::failure::{
    CallError, NO_REST, NotAnswered, STATUS_NOT_SUPPORTED, host_status, malformed, no_memory, too_long,
    unsuitable,
};
use self::handles::Handles;
use self::headers::{answer, exchange_id, header_list, payload_len};
use self::host::{Host, PROBE_TIMEOUT, REQUEST_SIZES};
use self::rest_support::RestSupport;
use super::counters::Counters;
use super::path::Path;
use super::probed::Probed;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::body::{Body, Piece};
use crate::request::Request;
use crate::response::Response;

/// Room for an answer whose length nobody knows before (listings, block lists), tried one after the other.
const ANSWER_SIZES: [usize; 3] = [256 * 1024, 8 * 1024 * 1024, 31 * 1024 * 1024];
/// Copies of bodies in several pieces that all requests may hold at once: nobody's budget counts them.
const GATHER_LIMIT: usize = 24 << 20;
const GATHER_UNIT: usize = 64 << 10;
/// Bytes of payload that fit one exchange whatever their alignment, beside the largest request and response.
const MAX_PAYLOAD: usize = (MAX_PAGES - 1) * PAGE - RESPONSE_CAPACITY - REQUEST_SIZES[1];

/// The channel of this machine. One per process is enough: it is shared by all volumes.
#[derive(Debug)]
pub struct ChannelTransport {
    host: Host,
    rest: RestSupport,
    handles: Handles,
    counters: Counters,
    /// Room that the answer needed whose length was found out last.
    collected: AtomicUsize,
    /// In units of [`GATHER_UNIT`].
    gathering: Semaphore,
}

impl ChannelTransport {
    /// Opens the device (blocks for a few system calls). The arena serves headers, gathered bodies and
    /// listings.
    pub fn open(config: ChannelConfig, arena: Arc<Arena>) -> Result<Self, ChannelError> {
        Ok(Self {
            host: Host::open(config, arena)?,
            rest: RestSupport::unknown(),
            handles: Handles::default(),
            gathering: Semaphore::new(GATHER_LIMIT / GATHER_UNIT),
            counters: Counters::default(),
            collected: AtomicUsize::new(0),
        })
    }

    /// The channel itself, for its counters.
    pub fn channel(&self) -> &Channel {
        &self.host.channel
    }

    /// False while the host counts as refusing the REST extension.
    pub fn takes_rest(&self) -> bool {
        self.rest.worth_trying()
    }

    async fn exchange(&self, request: Request) -> Result<Response, TransportError> {
        if !self.takes_rest() {
            return self.handles.read(&self.host, request).await;
        }
        let body = Rest {
            schema_version: SCHEMA_VERSION,
            method: request.method.as_str().to_owned(),
            target: request.url.to_string(),
            headers: header_list(&request.headers)?,
        };
        let id = exchange_id(&request.headers);
        let ledger = request.ledger.as_ref();
        let Some(dest) = request.dest else {
            if request.method == Method::GET {
                return self
                    .rest_collect(&body, id, (request.timeout, request.collect), ledger)
                    .await;
            }
            let began = Instant::now();
            let room = self.room_to_gather(&request.body);
            let _room = tokio::time::timeout(request.timeout, room)
                .await
                .map_err(|_| no_memory("other requests' bodies are being gathered".to_owned()))?;
            let data = self.outgoing(&request.body)?;
            let left = request.timeout.saturating_sub(began.elapsed());
            let (host, _) = self.rest(&body, id, left, data, ledger).await?;
            return answer(host, Bytes::new(), None);
        };
        let data = Data::In(dest);
        let (host, data) = self.rest(&body, id, request.timeout, data, ledger).await?;
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
        (timeout, limit): (Duration, usize),
        ledger: Option<&Arc<dyn Ledger>>,
    ) -> Result<Response, TransportError> {
        // The next page of a listing is as long as the last.
        let first = self.collected.load(Ordering::Relaxed);
        for size in ANSWER_SIZES.into_iter().filter(|size| *size >= first.min(limit)) {
            let room = self.host.alloc(size.min(limit))?;
            let (host, data) = match self.rest(body, id, timeout, Data::In(room), ledger).await {
                Err(NotAnswered::TooLarge) if size >= limit => return Err(too_long(limit)),
                // Executed, but nothing changed by it: once more with more room.
                Err(NotAnswered::TooLarge) => continue,
                other => other?,
            };
            let (Data::In(mut room), true) = (data, (200..300).contains(&host.http_status)) else {
                return answer(host, Bytes::new(), None);
            };
            let arrived = payload_len(&host, room.len())?;
            let needed = ANSWER_SIZES.into_iter().find(|size| arrived <= *size);
            self.collected
                .store(needed.unwrap_or_default(), Ordering::Relaxed);
            room.set_len(arrived);
            return answer(host, room.freeze().to_bytes(), None);
        }
        Err(NotAnswered::TooLarge.into())
    }

    /// One REST exchange whose host status and store status are good.
    async fn rest(
        &self,
        body: &Rest,
        id: [u8; 16],
        timeout: Duration,
        data: Data,
        ledger: Option<&Arc<dyn Ledger>>,
    ) -> Result<(HostResponse, Data), NotAnswered> {
        let (host, data) = match self
            .host
            .call(framing::Method::Rest, body, id, timeout, data, ledger)
            .await
        {
            Err(CallError::Status(status)) => {
                let outright = status == STATUS_NOT_SUPPORTED;
                let refused = status != STATUS_TIMEOUT && self.rest.refused(outright);
                return Err(NotAnswered::Other(match (refused, outright) {
                    (true, true) => unsuitable(NO_REST.to_owned()),
                    // What the host meant by this one is a guess, so the request may have been executed.
                    (true, false) => TransportError {
                        kind: FailureKind::Unsuitable,
                        ..host_status(status)
                    },
                    (false, _) => host_status(status),
                }));
            }
            Err(CallError::Transport(error)) => return Err(NotAnswered::Other(error)),
            Ok(done) => done,
        };
        self.rest.taken();
        match host.status {
            STORE_SUCCESS => Ok((host, data)),
            STORE_PAYLOAD_TOO_LARGE => Err(NotAnswered::TooLarge),
            STORE_UNREACHABLE => Err(NotAnswered::Other(TransportError {
                path: Path::Channel,
                kind: FailureKind::Unreachable,
                message: format!("the host cannot reach the store: {}", host.error_description),
                maybe_executed: true,
                retryable: true,
            })),
            other => Err(NotAnswered::Other(malformed(
                format!(
                    "the host answered store status {other}: {}",
                    host.error_description
                ),
                true,
            ))),
        }
    }

    /// The right to hold a copy of a body that does not lie in one piece, kept until the host has read it;
    /// `None` where none is made.
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
        let mut gathered = self.host.alloc(len)?;
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
}

#[async_trait]
impl Transport for ChannelTransport {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let sent = request.body.len();
        let outcome = self.exchange(request).await;
        match &outcome {
            Ok(response) => self.counters.answered(sent, response.payload_len()),
            Err(error)
                if matches!(
                    error.kind,
                    FailureKind::Unsuitable | FailureKind::NoMemory | FailureKind::TooLong
                ) => {}
            Err(_) => self.counters.failed(),
        }
        outcome
    }

    fn stats(&self) -> Vec<PathStats> {
        vec![self.counters.stats(Path::Channel, None)]
    }

    fn has(&self, request: uuid::Uuid) -> bool {
        self.host.channel.has(request.as_bytes())
    }
}

#[async_trait]
impl Probed for ChannelTransport {
    fn limits(&self) -> Option<String> {
        let refused = self.rest.is_refused();
        refused.then(|| format!("{NO_REST}: only reads with a SAS or a token go over it"))
    }

    /// Asks the host to close a handle that nobody has: any well-formed answer shows that it listens, and the
    /// store is not bothered.
    async fn probe(&self) -> Result<(), String> {
        self.host.channel.check().await.map_err(|e| e.to_string())?;
        let id = uuid::Uuid::new_v4();
        let body = Close {
            schema_version: SCHEMA_VERSION,
            handle_key: uuid::Uuid::nil().to_string(),
            client_request_id: id.to_string(),
        };
        let answered = self
            .host
            .call(
                framing::Method::Close,
                &body,
                *id.as_bytes(),
                PROBE_TIMEOUT,
                Data::None,
                None,
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
        // Without effect while the host takes REST.
        if !self.takes_rest() {
            self.handles.learn(request, response);
        }
    }

    fn device_stats(&self) -> ChannelStats {
        self.host.channel.stats()
    }
}

#[cfg(test)]
mod tests;
