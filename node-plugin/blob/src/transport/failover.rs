//! Which path a request takes: the channel when it works, HTTPS at once when it does not.
//!
//! The choice is made per request. A request that fails on the channel goes over HTTPS at once, if it was not
//! executed or may be executed twice; otherwise the client repeats it, which then looks what became of it.
//! What failures do to the channel as a whole is in `paths`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use vsc_driver::channel::Ledger;

pub use super::breaker::ChannelState;
use super::counters::Counters;
use super::path::Path;
pub use super::paths::Paths;
use super::paths::{ChannelPath, OPENING, Pair, SWITCHED_OFF};
use super::probed::Probed;
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::observer::{Exchange, Observer};
use crate::request::Request;
use crate::response::Response;

/// A channel request that takes longer than this, plus the time its payload needs at [`SLOWEST`], is not
/// worth waiting for: HTTPS is there.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes per second that any working channel reaches.
const SLOWEST: u64 = 8 * 1024 * 1024;
/// What HTTPS gets at least of a request's time, whatever the channel has used up.
const LEAST_HTTPS: Duration = Duration::from_secs(1);

/// A volume's wish (volumes.md, `transport`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportMode {
    /// Channel when the node has it, HTTPS otherwise.
    #[default]
    Prefer,
    /// Channel only.
    Require,
    /// HTTPS only.
    Https,
}

impl Paths {
    /// A transport with counters of its own over these shared paths.
    pub fn transport(self: &Arc<Self>, mode: TransportMode) -> Arc<dyn Transport> {
        Arc::new(Failover {
            paths: Arc::clone(self),
            mode,
            counters: Pair::default(),
            observer: OnceLock::new(),
            ledger: OnceLock::new(),
        })
    }
}

/// One volume's way to the service.
#[derive(Debug)]
struct Failover {
    paths: Arc<Paths>,
    mode: TransportMode,
    counters: Pair,
    /// Is told of the volume's requests.
    observer: OnceLock<Arc<dyn Observer>>,
    /// Is told of memory that the channel's device keeps of the volume's requests.
    ledger: OnceLock<Arc<dyn Ledger>>,
}

#[async_trait]
impl Transport for Failover {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        match self.mode {
            TransportMode::Https => self.https(request).await,
            TransportMode::Require => self.channel_only(request).await,
            TransportMode::Prefer => self.channel_first(request).await,
        }
    }

    fn stats(&self) -> Vec<PathStats> {
        let mut stats = self.paths.pair_stats(&self.counters);
        if self.mode == TransportMode::Https {
            stats.retain(|s| s.path == Path::Https.name());
        }
        stats
    }

    fn has(&self, request: uuid::Uuid) -> bool {
        let channel = self.paths.channel.as_ref().and_then(ChannelPath::current);
        channel.is_some_and(|channel| channel.has(request))
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        // A second one is told nothing: counters of one volume never mix with those of another.
        let _ = self.observer.set(observer);
    }

    fn keep_books(&self, ledger: Arc<dyn Ledger>) {
        // One volume has one: what is lost is charged once.
        let _ = self.ledger.set(ledger);
    }
}

impl Failover {
    async fn https(&self, request: Request) -> Result<Response, TransportError> {
        let (sent, began) = (request.body.len(), Instant::now());
        let outcome = self.paths.https.send(request).await;
        let counters = [&self.counters.https, &self.paths.totals.https];
        self.count(Path::Https, counters, &outcome, (sent, began.elapsed()));
        outcome
    }

    /// Over the channel, which must be open; failures go to the breaker.
    async fn channel(
        &self,
        path: &ChannelPath,
        channel: &dyn Probed,
        mut request: Request,
    ) -> Result<Response, TransportError> {
        let (sent, began) = (request.body.len(), Instant::now());
        request.ledger = self.ledger.get().map(Arc::clone);
        let outcome = channel.send(request).await;
        match &outcome {
            Ok(_) => path.breaker.succeeded(),
            Err(error) if says_nothing(error.kind) => return outcome,
            Err(error) => path.breaker.failed(error),
        }
        let counters = [&self.counters.channel, &self.paths.totals.channel];
        self.count(Path::Channel, counters, &outcome, (sent, began.elapsed()));
        outcome
    }

    fn count(
        &self,
        path: Path,
        counters: [&Counters; 2],
        outcome: &Result<Response, TransportError>,
        (sent, took): (u64, Duration),
    ) {
        let answer = outcome.as_ref().ok();
        let received = answer.map_or(0, Response::payload_len);
        for counters in counters {
            match answer {
                Some(_) => counters.answered(sent, received),
                None => counters.failed(),
            }
        }
        if let Some(observer) = self.observer.get() {
            observer.exchanged(&Exchange {
                path,
                status: answer.map(|response| response.status.as_u16()),
                took,
                sent,
                received,
            });
        }
    }

    async fn channel_only(&self, request: Request) -> Result<Response, TransportError> {
        let required = |message: String, retryable: bool| TransportError {
            path: Path::Channel,
            kind: FailureKind::ChannelRequired,
            message,
            maybe_executed: false,
            retryable,
        };
        let Some(path) = &self.paths.channel else {
            return Err(required(SWITCHED_OFF.to_owned(), false));
        };
        let channel = match (path.breaker.unusable(), path.current()) {
            (None, Some(channel)) => channel,
            // It may come back within the call's deadline if it has ever been there.
            (reason, _) => {
                return Err(required(
                    reason.unwrap_or_else(|| OPENING.to_owned()),
                    path.breaker.was_usable(),
                ));
            }
        };
        self.channel(path, &*channel, request)
            .await
            .map_err(|error| match error.kind {
                // Nobody else may take it.
                FailureKind::Unsuitable => TransportError {
                    retryable: false,
                    kind: FailureKind::ChannelRequired,
                    ..error
                },
                FailureKind::PathDown => TransportError {
                    kind: FailureKind::ChannelRequired,
                    ..error
                },
                _ => error,
            })
    }

    async fn channel_first(&self, mut request: Request) -> Result<Response, TransportError> {
        let usable = self
            .paths
            .channel
            .as_ref()
            .filter(|path| path.breaker.is_usable() && request.avoid != Some(Path::Channel))
            .and_then(|path| Some((path, path.current()?)));
        let Some((path, channel)) = usable else {
            return self.https(request).await;
        };
        let (began, whole) = (Instant::now(), request.timeout);
        let arena = request.dest.as_ref().map(|d| Arc::clone(d.arena()));
        let dest_len = request.dest.as_ref().map(|d| d.len());
        // The channel takes the destination with it when it fails: this is what HTTPS starts from.
        let mut spare = request.with_dest(None);
        request.timeout = whole.min(patience(&request));
        let error = match self.channel(path, &*channel, request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        if error.kind == FailureKind::TooLong || error.maybe_executed && !spare.idempotent {
            return Err(error);
        }
        let unsuitable = error.kind == FailureKind::Unsuitable;
        if !says_nothing(error.kind) {
            tracing::debug!(%error, "over HTTPS instead");
            self.counters.channel.moved();
            self.paths.totals.channel.moved();
        }
        if let (Some(arena), Some(len)) = (arena, dest_len) {
            match arena.alloc(len) {
                Ok(dest) => spare.dest = Some(dest),
                // No memory for a second buffer: the client comes again when there is.
                Err(_) => {
                    return Err(TransportError {
                        retryable: true,
                        ..error
                    });
                }
            }
        }
        spare.timeout = whole.saturating_sub(began.elapsed()).max(LEAST_HTTPS);
        if !unsuitable {
            return self.https(spare).await;
        }
        let asked = spare.with_dest(None);
        let response = self.https(spare).await?;
        channel.learn(&asked, &response);
        Ok(response)
    }
}

/// Whether a failure says nothing about the channel's health, so that it counts as none.
fn says_nothing(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Unsuitable | FailureKind::NoMemory | FailureKind::TooLong
    )
}

/// How long the channel may take for a request before HTTPS is the better idea.
fn patience(request: &Request) -> Duration {
    let payload = request.body.len() + request.dest.as_ref().map_or(0, |d| d.len() as u64);
    CHANNEL_PATIENCE + Duration::from_millis(payload.saturating_mul(1000) / SLOWEST)
}

#[cfg(test)]
mod tests;
