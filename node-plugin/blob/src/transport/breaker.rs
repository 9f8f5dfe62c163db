//! The circuit breaker in front of the channel: opened by failures, closed by the prober, every change told
//! once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{FailureKind, TransportError};

/// The circuit opens when the score reaches this: three failures in a row, or a good fifth of all requests
/// for a while. A path that is down opens it at once.
const OPENS_AT: u32 = 12;
/// What a failure adds to the score; a success takes one off.
const FAILURE: u32 = 4;
/// First and longest pause between probes.
const PROBE_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A circuit that stayed closed this long was well: the next trouble begins with short pauses again.
const STEADY: Duration = Duration::from_secs(30);

/// Whether requests may take the channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelState {
    /// `None` while requests may take it, else why not, in one sentence.
    pub unusable: Option<String>,
    /// How often this changed between usable and not.
    pub changes: u64,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    inner: Mutex<Inner>,
    state: watch::Sender<ChannelState>,
}

#[derive(Debug)]
struct Inner {
    score: u32,
    closed_at: Option<Instant>,
    /// The circuit was closed at some time.
    was_usable: bool,
    backoff: Duration,
}

impl Breaker {
    /// Open at first, for this reason.
    pub(crate) fn new(reason: &str) -> Self {
        Self {
            inner: Mutex::new(Inner {
                score: 0,
                closed_at: None,
                was_usable: false,
                backoff: PROBE_BACKOFF.0,
            }),
            state: watch::Sender::new(ChannelState {
                unusable: Some(reason.to_owned()),
                changes: 0,
            }),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<ChannelState> {
        self.state.subscribe()
    }

    pub(crate) fn unusable(&self) -> Option<String> {
        self.state.borrow().unusable.clone()
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.state.borrow().unusable.is_none()
    }

    pub(crate) fn was_usable(&self) -> bool {
        self.lock().was_usable
    }

    /// A request was answered.
    pub(crate) fn succeeded(&self) {
        let mut inner = self.lock();
        inner.score = inner.score.saturating_sub(1);
    }

    /// A request was not answered.
    pub(crate) fn failed(&self, error: &TransportError) {
        let score = {
            let mut inner = self.lock();
            inner.score = inner.score.saturating_add(FAILURE);
            inner.score
        };
        if error.kind == FailureKind::PathDown {
            self.open(&error.message);
        } else if score >= OPENS_AT {
            self.open(&format!(
                "too many requests failed, the last with: {}",
                error.message
            ));
        }
    }

    /// Requests stay away until [`close`](Self::close). The first reason stands while it is open, unless the
    /// prober has a newer one.
    pub(crate) fn open(&self, reason: &str) {
        let mut inner = self.lock();
        self.state.send_if_modified(|state| {
            if state.unusable.is_some() {
                return false;
            }
            if inner.closed_at.take().is_some_and(|at| at.elapsed() >= STEADY) {
                inner.backoff = PROBE_BACKOFF.0;
            }
            tracing::warn!(reason, "requests leave the accelerated channel for HTTPS");
            state.unusable = Some(reason.to_owned());
            state.changes += 1;
            true
        });
    }

    /// The prober has found another reason why it stays open.
    pub(crate) fn still_open(&self, reason: &str) {
        self.state.send_if_modified(|state| {
            let news = state.unusable.as_deref().is_some_and(|old| old != reason);
            if news {
                tracing::info!(reason, "the accelerated channel is not usable");
                state.unusable = Some(reason.to_owned());
            }
            news
        });
    }

    /// The prober found the channel well.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.score = 0;
        inner.closed_at = Some(Instant::now());
        inner.was_usable = true;
        self.state.send_if_modified(|state| {
            if state.unusable.is_none() {
                return false;
            }
            tracing::info!("requests take the accelerated channel");
            state.unusable = None;
            state.changes += 1;
            true
        });
    }

    /// How long the prober waits before its next try; longer each time.
    pub(crate) fn next_pause(&self) -> Duration {
        let mut inner = self.lock();
        let pause = inner.backoff;
        inner.backoff = (pause * 2).min(PROBE_BACKOFF.1);
        pause
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
