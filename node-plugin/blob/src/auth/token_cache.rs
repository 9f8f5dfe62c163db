//! A token source that fetches rarely and early: callers wait only when there is no usable token at all, and
//! then all for the same fetch. What came of it is shared as well: an outage of the identity service costs
//! every caller one fetch, not a queue.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::TokenSource;
use crate::error::{Error, Result};
use crate::secret::Secret;

/// A token given out lives at least this much longer (contract of [`TokenSource::token`]).
const LEAST_LIFE: Duration = Duration::from_secs(60);
/// Pause after a failed refresh in the background; the old token still serves.
const REFRESH_PAUSE: Duration = Duration::from_secs(15);
/// A token fetched less than this ago is not thrown away because an older request was refused.
const FRESH: Duration = Duration::from_secs(5);
/// A token that replaced a refused one is not thrown away for this long: many share it, and a service that
/// refuses that one too has another reason.
const REFUSED_ONCE: Duration = Duration::from_secs(60);
/// When the next token is fetched in the background, as a part of the lifetime: what is left is for an outage
/// of the identity service. Sources that began at the same time do not go on at the same time.
const REFRESH: std::ops::Range<f64> = 0.65..0.85;
/// A failed fetch answers callers for this long before the next one is tried.
const FAILURE_KEPT: Duration = Duration::from_secs(2);

/// Where tokens come from.
#[async_trait]
pub(crate) trait Fetch: Send + Sync + fmt::Debug + 'static {
    /// One new token; no caching below this.
    async fn fetch(&self) -> Result<Fetched>;
}

#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) token: Secret<String>,
    /// From now.
    pub(crate) lifetime: Duration,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct CachedToken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Box<dyn Fetch>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    failed: Option<(Instant, Failure)>,
    /// When a token was thrown away.
    refused: Option<Instant>,
    /// A fetch that is under way; ends with its outcome, or without one if its task died.
    fetching: Option<watch::Receiver<Option<Outcome>>>,
}

#[derive(Debug)]
struct Held {
    token: Secret<String>,
    fetched: Instant,
    expires: Instant,
    /// The same by the clock.
    ends: SystemTime,
    /// When to fetch the next one in the background.
    refresh: Instant,
}

type Outcome = Result<Secret<String>, Failure>;

/// [`Error::Token`] that many callers can have.
#[derive(Debug, Clone)]
struct Failure {
    message: String,
    retryable: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Token { message, retryable } => Self { message, retryable },
            other => Self {
                message: other.to_string(),
                retryable: true,
            },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Token {
            message: failure.message,
            retryable: failure.retryable,
        }
    }
}

impl State {
    fn usable(&self) -> Option<&Held> {
        self.held
            .as_ref()
            .filter(|held| held.expires > Instant::now() + LEAST_LIFE)
    }
}

impl CachedToken {
    pub(crate) fn new(source: impl Fetch) -> Self {
        Self(Arc::new(Inner {
            source: Box::new(source),
            state: Mutex::default(),
        }))
    }

    /// The fetch that is under way, or a new one. It is a task of its own: a caller whose time is up does not
    /// end it for the others.
    fn fetch(&self, state: &mut State) -> watch::Receiver<Option<Outcome>> {
        if let Some(running) = &state.fetching
            && running.has_changed().is_ok()
        {
            return running.clone();
        }
        let (done, outcome) = watch::channel(None);
        state.fetching = Some(outcome.clone());
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let fetched = inner.source.fetch().await;
            done.send_replace(Some(inner.settle(fetched)));
        });
        outcome
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a fetch has come to.
    fn settle(&self, fetched: Result<Fetched>) -> Outcome {
        let mut state = self.lock();
        state.fetching = None;
        let now = Instant::now();
        match fetched {
            Ok(fetched) => {
                state.failed = None;
                state.held = Some(Held {
                    token: fetched.token.clone(),
                    fetched: now,
                    expires: now + fetched.lifetime,
                    ends: SystemTime::now() + fetched.lifetime,
                    refresh: now + fetched.lifetime.mul_f64(rand::random_range(REFRESH)),
                });
                Ok(fetched.token)
            }
            Err(error) => {
                if state.usable().is_some() {
                    tracing::warn!(
                        %error,
                        "the access token could not be refreshed yet; the old one still serves"
                    );
                }
                if let Some(held) = &mut state.held {
                    held.refresh = now + REFRESH_PAUSE;
                }
                let failure = Failure::from(error);
                state.failed = Some((now, failure.clone()));
                Err(failure)
            }
        }
    }
}

#[async_trait]
impl TokenSource for CachedToken {
    async fn token(&self) -> Result<Secret<String>> {
        let mut fetch = {
            let mut state = self.0.lock();
            if let Some(held) = state.usable() {
                let (token, due) = (held.token.clone(), held.refresh <= Instant::now());
                if due {
                    // Nobody waits for it.
                    drop(self.fetch(&mut state));
                }
                return Ok(token);
            }
            if let Some((at, failure)) = &state.failed
                && at.elapsed() < FAILURE_KEPT
            {
                return Err(failure.clone().into());
            }
            self.fetch(&mut state)
        };
        let ended = || Error::Token {
            message: "the token request ended without an answer".into(),
            retryable: true,
        };
        let outcome = fetch
            .wait_for(Option::is_some)
            .await
            .map_err(|_| ended())?
            .clone();
        Ok(outcome.ok_or_else(ended)??)
    }

    fn reject(&self) {
        let mut state = self.0.lock();
        let lately = |at: Instant| at.elapsed() < REFUSED_ONCE;
        if state
            .held
            .as_ref()
            .is_some_and(|held| held.fetched.elapsed() >= FRESH)
            && !state.refused.is_some_and(lately)
        {
            state.held = None;
            state.refused = Some(Instant::now());
        }
    }

    fn ends(&self) -> Option<SystemTime> {
        let state = self.0.lock();
        let held = state.held.as_ref()?;
        // A newer one was due, and nobody was refused it: nobody has asked for one.
        let unasked = held.refresh <= Instant::now() && state.failed.is_none();
        (!unasked).then_some(held.ends)
    }
}

#[cfg(test)]
mod tests;
