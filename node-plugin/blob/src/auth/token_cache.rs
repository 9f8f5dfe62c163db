//! A token source that fetches rarely and early: callers wait only when there is no usable token at all.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::TokenSource;
use crate::error::Result;
use crate::secret::Secret;

/// A token given out lives at least this much longer (contract of [`TokenSource::token`]).
const LEAST_LIFE: Duration = Duration::from_secs(60);
/// Pause after a failed refresh in the background; the old token still serves.
const REFRESH_PAUSE: Duration = Duration::from_secs(15);
/// A token fetched less than this ago is not thrown away because an older request was refused.
const FRESH: Duration = Duration::from_secs(5);

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
    /// Held while fetching: many callers, one request.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    refreshing: bool,
}

#[derive(Debug)]
struct Held {
    token: Secret<String>,
    fetched: Instant,
    expires: Instant,
    /// When to fetch the next one in the background.
    refresh: Instant,
}

impl CachedToken {
    pub(crate) fn new(source: impl Fetch) -> Self {
        Self(Arc::new(Inner {
            source: Box::new(source),
            state: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Secret<String>> {
        let state = self.lock();
        let held = state.held.as_ref()?;
        (held.expires > Instant::now() + LEAST_LIFE).then(|| held.token.clone())
    }

    /// True for the one caller that shall start a refresh.
    fn take_refresh(&self) -> bool {
        let mut state = self.lock();
        let due = state
            .held
            .as_ref()
            .is_some_and(|held| held.refresh <= Instant::now());
        due && !std::mem::replace(&mut state.refreshing, true)
    }

    async fn fetch(&self) -> Result<Secret<String>> {
        let fetched = self.source.fetch().await?;
        let now = Instant::now();
        self.lock().held = Some(Held {
            token: fetched.token.clone(),
            fetched: now,
            expires: now + fetched.lifetime,
            // Three quarters leave a quarter of the lifetime for an outage of the identity service.
            refresh: now + fetched.lifetime.mul_f64(0.75),
        });
        Ok(fetched.token)
    }

    async fn refresh(&self) {
        let outcome = {
            let _one = self.fetching.lock().await;
            self.fetch().await
        };
        let mut state = self.lock();
        state.refreshing = false;
        if let Err(error) = outcome {
            tracing::warn!(%error, "the access token could not be refreshed yet; the old one still serves");
            if let Some(held) = &mut state.held {
                held.refresh = Instant::now() + REFRESH_PAUSE;
            }
        }
    }
}

#[async_trait]
impl TokenSource for CachedToken {
    async fn token(&self) -> Result<Secret<String>> {
        if let Some(token) = self.0.usable() {
            if self.0.take_refresh() {
                let inner = Arc::clone(&self.0);
                tokio::spawn(async move { inner.refresh().await });
            }
            return Ok(token);
        }
        let _one = self.0.fetching.lock().await;
        match self.0.usable() {
            Some(token) => Ok(token),
            None => self.0.fetch().await,
        }
    }

    fn reject(&self) {
        let mut state = self.0.lock();
        if state
            .held
            .as_ref()
            .is_some_and(|held| held.fetched.elapsed() >= FRESH)
        {
            state.held = None;
        }
    }
}

#[cfg(test)]
mod tests;
