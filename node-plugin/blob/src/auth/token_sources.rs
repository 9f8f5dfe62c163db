//! One source of tokens for each identity, however many volumes use it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::TokenSource;
use super::entra::{Identity, token_source};
use crate::error::Result;
use crate::transport::Transport;

/// Hands out the sources of tokens of one program, see [`token_source`]; clones share them. A hundred volumes
/// of one identity fetch one token: after a reboot of the node the instance metadata service would answer
/// most of a hundred with 429.
#[derive(Debug, Clone)]
pub struct TokenSources {
    https: Arc<dyn Transport>,
    /// Those that were handed out; gone with the last volume that uses them.
    known: Arc<Mutex<Vec<Known>>>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    authority: Option<url::Url>,
    source: Weak<dyn TokenSource>,
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
        // Whole after a panic elsewhere: every change is one step.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.source.strong_count() > 0);
        let same = known
            .iter()
            .find(|known| known.identity == identity && known.authority == authority);
        if let Some(source) = same.and_then(|known| known.source.upgrade()) {
            return Ok(source);
        }
        let source = token_source(identity.clone(), authority.clone(), Arc::clone(&self.https))?;
        known.push(Known {
            identity,
            authority,
            source: Arc::downgrade(&source),
        });
        Ok(source)
    }
}
