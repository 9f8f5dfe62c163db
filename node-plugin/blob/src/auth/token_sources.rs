//! One source of tokens for each identity, however many volumes use it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use async_trait::async_trait;

use super::TokenSource;
use super::entra::{Identity, token_source};
use crate::error::Result;
use crate::secret::Secret;
use crate::transport::Transport;

/// Hands out the sources of tokens of one program, see [`token_source`]; clones share them. A hundred volumes
/// of one identity fetch one token: after a reboot of the node the instance metadata service would answer
/// most of a hundred with 429.
#[derive(Debug, Clone)]
pub struct TokenSources {
    https: Arc<dyn Transport>,
    /// Those that were handed out.
    known: Arc<Mutex<Vec<Known>>>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    authority: Option<url::Url>,
    source: Weak<Shared>,
}

/// A source that was handed out: with the last volume that uses it goes all that is known of its identity,
/// the secret included.
#[derive(Debug)]
struct Shared {
    source: Arc<dyn TokenSource>,
    known: Arc<Mutex<Vec<Known>>>,
}

#[async_trait]
impl TokenSource for Shared {
    async fn token(&self) -> Result<Secret<String>> {
        self.source.token().await
    }

    fn reject(&self) {
        self.source.reject();
    }

    fn ends(&self) -> Option<SystemTime> {
        self.source.ends()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        lock(&self.known).retain(|known| known.source.strong_count() > 0);
    }
}

/// Whole after a panic elsewhere: every change is one step.
fn lock(known: &Mutex<Vec<Known>>) -> MutexGuard<'_, Vec<Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TokenSources {
    /// `https` carries the requests, as in [`token_source`].
    pub fn new(https: Arc<dyn Transport>) -> Self {
        Self {
            https,
            known: Arc::default(),
        }
    }

    /// The source for an identity, its secret included, at an authority: the one that is in use, or a new
    /// one. Nothing is fetched yet.
    ///
    /// # Errors
    /// As [`token_source`].
    pub fn get(&self, identity: Identity, authority: Option<url::Url>) -> Result<Arc<dyn TokenSource>> {
        let mut known = lock(&self.known);
        let same = known
            .iter()
            .find(|known| known.identity == identity && known.authority == authority);
        if let Some(source) = same.and_then(|known| known.source.upgrade()) {
            return Ok(source);
        }
        let source = Arc::new(Shared {
            source: token_source(identity.clone(), authority.clone(), Arc::clone(&self.https))?,
            known: Arc::clone(&self.known),
        });
        known.push(Known {
            identity,
            authority,
            source: Arc::downgrade(&source),
        });
        Ok(source)
    }

    /// Identities that something is known of.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.known).len()
    }
}
