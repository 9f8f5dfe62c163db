//! Which path a request takes: the channel when it works, HTTPS at once when it does not.
//!
//! The choice is made per request. A request that fails on the channel goes over HTTPS at once, if it was not executed or
//! may be executed twice; otherwise the client repeats it, which then looks what became of it. Repeated failures, or a
//! device that is gone or stuck, open the circuit: requests leave the channel alone until a prober in the background has seen it
//! answer again.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::Instant;
use vsc_driver::buffer::Arena;
use vsc_driver::channel::{ChannelConfig, ChannelStats};

use super::breaker::Breaker;
pub use super::breaker::ChannelState;
use super::counters::Counters;
use super::https::{HTTPS, Https};
use super::vsc::{CHANNEL, Vsc};
use super::{FailureKind, PathStats, Transport, TransportError};
use crate::request::Request;
use crate::response::Response;

/// A channel request that takes longer than this, plus the time its payload needs at [`SLOWEST`], is not worth waiting for:
/// HTTPS is there.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes per second that any working channel reaches.
const SLOWEST: u64 = 8 * 1024 * 1024;
/// How long past its timeout a request may stay in the device before its thread counts as lost.
const CHANNEL_GRACE: Duration = Duration::from_secs(2);
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

/// Process-wide: the channel with its circuit breaker and prober, and the HTTPS connection pool.
#[derive(Debug)]
pub struct Paths {
    https: Arc<dyn Transport>,
    /// `None` = the channel is switched off.
    channel: Option<ChannelPath>,
    totals: Pair,
}

/// The channel as failover sees it: a transport that can be asked whether it is well.
#[async_trait]
pub(crate) trait Probed: Transport {
    /// Asks the host something harmless; `Err` says why the channel is not usable.
    async fn probe(&self) -> Result<(), String>;

    /// What the host does not take on a channel that is well otherwise, in one sentence.
    fn limits(&self) -> Option<String> {
        None
    }

    /// Shown what HTTPS answered to a request that was not for the channel.
    fn learn(&self, request: &Request, response: &Response);

    /// Counters of the device underneath.
    fn device_stats(&self) -> ChannelStats;
}

type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Probed>, String>> + Send>>;
/// Opens the channel's device anew.
type Opener = Box<dyn Fn() -> Opening + Send + Sync>;

struct ChannelPath {
    breaker: Breaker,
    opener: Opener,
    open: Mutex<Option<Arc<dyn Probed>>>,
}

impl std::fmt::Debug for ChannelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelPath")
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

/// Counters of both paths.
#[derive(Debug, Default)]
struct Pair {
    channel: Counters,
    https: Counters,
}

impl Paths {
    /// `device`: the channel's node (`None` = never use the channel). Missing or refusing devices are no error: they are
    /// probed again with back-off in the background of `runtime`.
    ///
    /// The device is opened in the background, so the first requests may still go over HTTPS; see
    /// [`Paths::settled`].
    pub fn new(device: Option<PathBuf>, arena: Arc<Arena>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        let opener = device.map(|device| -> Opener {
            Box::new(move || {
                let (device, arena) = (device.clone(), Arc::clone(&arena));
                Box::pin(async move {
                    let config = ChannelConfig {
                        device,
                        grace: CHANNEL_GRACE,
                        ..ChannelConfig::default()
                    };
                    tokio::task::spawn_blocking(move || Vsc::open(config, arena))
                        .await
                        .map_err(|error| error.to_string())?
                        .map(|vsc| Arc::new(vsc) as Arc<dyn Probed>)
                        .map_err(|error| error.to_string())
                })
            })
        });
        Self::over(Arc::new(Https::new()), opener, &runtime)
    }

    fn over(
        https: Arc<dyn Transport>,
        opener: Option<Opener>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Self> {
        let paths = Arc::new(Self {
            https,
            channel: opener.map(|opener| ChannelPath {
                breaker: Breaker::new(OPENING),
                opener,
                open: Mutex::new(None),
            }),
            totals: Pair::default(),
        });
        if let Some(channel) = &paths.channel {
            let state = channel.breaker.watch();
            runtime.spawn(probe_for_ever(Arc::downgrade(&paths), state));
        }
        paths
    }

    /// A transport with counters of its own over these shared paths.
    pub fn transport(self: &Arc<Self>, mode: TransportMode) -> Arc<dyn Transport> {
        Arc::new(Failover {
            paths: Arc::clone(self),
            mode,
            counters: Pair::default(),
        })
    }

    /// HTTPS alone, without counting for a volume: for token requests.
    pub fn https(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.https)
    }

    /// Why the channel is not in use, in one sentence; `None` while it is.
    pub fn channel_unusable(&self) -> Option<String> {
        match &self.channel {
            Some(channel) => channel.breaker.unusable(),
            None => Some(SWITCHED_OFF.to_owned()),
        }
    }

    /// What does not go over a channel that is in use, in one sentence; `None` when everything does, or when it is not in use.
    pub fn channel_limits(&self) -> Option<String> {
        let channel = self.channel.as_ref().filter(|c| c.breaker.is_usable())?;
        channel.current()?.limits()
    }

    /// Counters of the channel's device; all zero until it has been opened for the first time.
    pub fn device_stats(&self) -> ChannelStats {
        let open = self.channel.as_ref().and_then(ChannelPath::current);
        open.map(|channel| channel.device_stats()).unwrap_or_default()
    }

    /// Changes of the channel's state as they come, for Events and metrics; `None` when the channel is switched off.
    pub fn watch_channel(&self) -> Option<watch::Receiver<ChannelState>> {
        self.channel.as_ref().map(|c| c.breaker.watch())
    }

    /// Waits until the device has been tried for the first time; then as [`Paths::channel_unusable`].
    pub async fn settled(&self) -> Option<String> {
        if let Some(mut state) = self.watch_channel() {
            // The sender lives in self.
            let _ = state.wait_for(|s| s.unusable.as_deref() != Some(OPENING)).await;
        }
        self.channel_unusable()
    }

    /// Counters of both paths over all volumes.
    pub fn stats(&self) -> Vec<PathStats> {
        self.pair_stats(&self.totals)
    }

    fn pair_stats(&self, pair: &Pair) -> Vec<PathStats> {
        let https = self.https.stats().into_iter().find_map(|s| s.reason);
        vec![
            pair.channel.stats(CHANNEL, self.channel_unusable()),
            pair.https.stats(HTTPS, https),
        ]
    }
}

/// Reason before the first try.
const OPENING: &str = "the channel is being opened";
const SWITCHED_OFF: &str = "the channel is switched off on this node";

impl ChannelPath {
    fn current(&self) -> Option<Arc<dyn Probed>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One try to get the channel going.
    async fn try_once(&self) -> Result<(), String> {
        let channel = match self.current() {
            Some(channel) => channel,
            None => {
                let channel = (self.opener)().await?;
                *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&channel));
                channel
            }
        };
        channel.probe().await
    }
}

/// Waits for the circuit to be open, and tries the channel until it can be closed; ends with the paths.
async fn probe_for_ever(paths: Weak<Paths>, mut state: watch::Receiver<ChannelState>) {
    loop {
        if state.wait_for(|s| s.unusable.is_some()).await.is_err() {
            return;
        }
        let Some(strong) = paths.upgrade() else {
            return;
        };
        let Some(channel) = &strong.channel else {
            return;
        };
        // After a failure a pause, before the very first try none.
        if channel.breaker.unusable().as_deref() != Some(OPENING) {
            let pause = channel.breaker.next_pause();
            drop(strong);
            tokio::time::sleep(pause.mul_f64(jitter())).await;
            let Some(strong) = paths.upgrade() else {
                return;
            };
            try_channel(&strong).await;
        } else {
            try_channel(&strong).await;
        }
    }
}

async fn try_channel(paths: &Paths) {
    if let Some(channel) = &paths.channel {
        match channel.try_once().await {
            Ok(()) => channel.breaker.close(),
            Err(reason) => channel.breaker.still_open(&reason),
        }
    }
}

fn jitter() -> f64 {
    rand::rng().random_range(0.75..=1.25)
}

/// One volume's way to the service.
#[derive(Debug)]
struct Failover {
    paths: Arc<Paths>,
    mode: TransportMode,
    counters: Pair,
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
            stats.retain(|s| s.path == HTTPS);
        }
        stats
    }
}

impl Failover {
    async fn https(&self, request: Request) -> Result<Response, TransportError> {
        let sent = request.body.len();
        let outcome = self.paths.https.send(request).await;
        count(&[&self.counters.https, &self.paths.totals.https], &outcome, sent);
        outcome
    }

    /// Over the channel, which must be open; failures go to the breaker.
    async fn channel(
        &self,
        path: &ChannelPath,
        channel: &dyn Probed,
        request: Request,
    ) -> Result<Response, TransportError> {
        let sent = request.body.len();
        let outcome = channel.send(request).await;
        match &outcome {
            Ok(_) => path.breaker.succeeded(),
            Err(error) if says_nothing(error.kind) => return outcome,
            Err(error) => path.breaker.failed(error),
        }
        count(
            &[&self.counters.channel, &self.paths.totals.channel],
            &outcome,
            sent,
        );
        outcome
    }

    async fn channel_only(&self, request: Request) -> Result<Response, TransportError> {
        let required = |message: String, retryable: bool| TransportError {
            path: CHANNEL,
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
            .filter(|path| path.breaker.is_usable() && !request.avoid_channel)
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
        if error.maybe_executed && !spare.idempotent {
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
    matches!(kind, FailureKind::Unsuitable | FailureKind::NoMemory)
}

/// How long the channel may take for a request before HTTPS is the better idea.
fn patience(request: &Request) -> Duration {
    let payload = request.body.len() + request.dest.as_ref().map_or(0, |d| d.len() as u64);
    CHANNEL_PATIENCE + Duration::from_millis(payload.saturating_mul(1000) / SLOWEST)
}

fn count(counters: &[&Counters], outcome: &Result<Response, TransportError>, sent: u64) {
    for counters in counters {
        match outcome {
            Ok(response) => counters.answered(sent, response.payload_len()),
            Err(_) => counters.failed(),
        }
    }
}

#[cfg(test)]
mod tests;
