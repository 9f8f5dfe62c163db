//! The two paths of this process, shared by all volumes: the HTTPS pool, and the channel with its circuit
//! breaker.
//!
//! Repeated failures, or a device that is gone or stuck, open the circuit: requests leave the channel alone
//! until a prober in the background has seen it answer again.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;
use vsc_driver::buffer::Arena;
use vsc_driver::channel::{ChannelConfig, ChannelStats};

use super::breaker::{Breaker, ChannelState};
use super::channel::ChannelTransport;
use super::counters::Counters;
use super::https::Https;
use super::path::Path;
use super::probed::Probed;
use super::{PathStats, Transport};

/// How long past its timeout a request may stay in the device before its thread counts as lost.
const CHANNEL_GRACE: Duration = Duration::from_secs(2);

/// Process-wide: the channel with its circuit breaker and prober, and the HTTPS connection pool.
#[derive(Debug)]
pub struct Paths {
    pub(super) https: Arc<dyn Transport>,
    /// `None` = the channel is switched off.
    pub(super) channel: Option<ChannelPath>,
    pub(super) totals: Pair,
}

type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Probed>, String>> + Send>>;
/// Opens the channel's device anew.
pub(super) type Opener = Box<dyn Fn() -> Opening + Send + Sync>;

pub(super) struct ChannelPath {
    pub(super) breaker: Breaker,
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
pub(super) struct Pair {
    pub(super) channel: Counters,
    pub(super) https: Counters,
}

impl Paths {
    /// `device`: the channel's node (`None` = never use the channel). Missing or refusing devices are no
    /// error: they are probed again with back-off in the background of `runtime`.
    ///
    /// The device is opened in the background, so the first requests may still go over HTTPS; see
    /// [`Paths::settled`].
    pub fn new(device: Option<PathBuf>, arena: Arc<Arena>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        Self::within(device, arena, runtime, ChannelConfig::default().most_bytes)
    }

    /// The same, with at most `most_bytes` of memory at the device at a time: what a host that loses requests
    /// can keep of it.
    pub fn within(
        device: Option<PathBuf>,
        arena: Arc<Arena>,
        runtime: tokio::runtime::Handle,
        most_bytes: usize,
    ) -> Arc<Self> {
        let opener = device.map(|device| -> Opener {
            Box::new(move || {
                let (device, arena) = (device.clone(), Arc::clone(&arena));
                Box::pin(async move {
                    let config = ChannelConfig {
                        device,
                        grace: CHANNEL_GRACE,
                        most_bytes,
                        ..ChannelConfig::default()
                    };
                    tokio::task::spawn_blocking(move || ChannelTransport::open(config, arena))
                        .await
                        .map_err(|error| error.to_string())?
                        .map(|channel| Arc::new(channel) as Arc<dyn Probed>)
                        .map_err(|error| error.to_string())
                })
            })
        });
        Self::over(Arc::new(Https::new()), opener, &runtime)
    }

    pub(super) fn over(
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

    /// What does not go over a channel that is in use, in one sentence; `None` when everything does, or when
    /// it is not in use.
    pub fn channel_limits(&self) -> Option<String> {
        let channel = self.channel.as_ref().filter(|c| c.breaker.is_usable())?;
        channel.current()?.limits()
    }

    /// Counters of the channel's device; all zero until it has been opened for the first time.
    pub fn device_stats(&self) -> ChannelStats {
        let open = self.channel.as_ref().and_then(ChannelPath::current);
        open.map(|channel| channel.device_stats()).unwrap_or_default()
    }

    /// Changes of the channel's state as they come, for Events and metrics; `None` when the channel is
    /// switched off.
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

    pub(super) fn pair_stats(&self, pair: &Pair) -> Vec<PathStats> {
        let https = self.https.stats().into_iter().find_map(|s| s.reason);
        vec![
            pair.channel.stats(Path::Channel, self.channel_unusable()),
            pair.https.stats(Path::Https, https),
        ]
    }
}

/// Reason before the first try.
pub(super) const OPENING: &str = "the channel is being opened";
pub(super) const SWITCHED_OFF: &str = "the channel is switched off on this node";

impl ChannelPath {
    pub(super) fn current(&self) -> Option<Arc<dyn Probed>> {
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
