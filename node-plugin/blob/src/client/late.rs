//! Requests that were given up and may be executed yet.
//!
//! A mutation whose answer is lost is repeated, or reported as failed, while the first one may still be on
//! its way: with a host that sits on it, or in a queue of the service. Most do no harm then, because the
//! version they name has been replaced by their own repetition. Two kinds do: one that makes a name where
//! there is none (`If-None-Match: *`) brings a file back that was deleted meanwhile; one without a condition
//! undoes whatever came after it. So their names are remembered, and the next mutation that they could harm
//! waits until they cannot be executed any more. Nobody else does: a host that sits on the request of one
//! blob holds no other up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Method, header};
use tokio::time::Instant;
use uuid::Uuid;

use super::call::Call;
use crate::error::{Error, Result};
use crate::transport::Transport;

/// Nothing is executed later than this after its answer was given up: a connection that was closed delivers
/// no more, and the service ends what it has within this time (REST: "Setting timeouts for Blob service
/// operations").
pub(super) const LATEST: Duration = Duration::from_secs(30);
/// How often a host that still has requests is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The names, by container and blob.
#[derive(Debug, Default)]
pub(super) struct Late(Mutex<HashMap<(String, String), LateRequest>>);

#[derive(Debug, Clone)]
struct LateRequest {
    until: Instant,
    /// It makes the blob only where there is none.
    creates: bool,
    /// How many were lost.
    count: u32,
    /// The requests, for as long as a host may have them.
    requests: Vec<Uuid>,
}

impl LateRequest {
    fn is_over(&mut self, now: Instant, transport: &dyn Transport) -> bool {
        self.requests.retain(|request| transport.has(*request));
        now >= self.until && self.requests.is_empty()
    }
}

/// What a mutation does when it is executed late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only where there is no blob.
    Creates,
    /// Whatever is there.
    Any,
    /// Only a version that is named.
    Conditional,
}

fn kind(call: &Call<'_>) -> Option<Kind> {
    // Blocks are nobody's content before they are committed, and leases answer for themselves.
    let exempt =
        |(name, value): &(&str, String)| *name == "comp" && matches!(value.as_str(), "block" | "lease");
    if !matches!(call.method, Method::PUT | Method::DELETE) || call.query.iter().any(exempt) {
        return None;
    }
    Some(match call.headers.get(header::IF_NONE_MATCH) {
        Some(_) => Kind::Creates,
        None if call.headers.contains_key(header::IF_MATCH) => Kind::Conditional,
        None => Kind::Any,
    })
}

impl Late {
    /// The attempt of this call that was this request got no answer and may be executed yet.
    pub(super) fn note(&self, container: &str, call: &Call<'_>, request: Uuid, transport: &dyn Transport) {
        let (Some(blob), Some(kind)) = (call.blob, kind(call)) else {
            return;
        };
        if kind == Kind::Conditional {
            return;
        }
        let now = Instant::now();
        let mut lost = self.lock();
        lost.retain(|_, lost| !lost.is_over(now, transport));
        let name = (container.to_owned(), blob.to_owned());
        let known = lost.entry(name).or_insert(LateRequest {
            until: now,
            creates: true,
            count: 0,
            requests: Vec::new(),
        });
        known.until = now + LATEST;
        known.count += 1;
        known.requests.push(request);
        known.creates &= kind == Kind::Creates;
    }

    /// What a creation that was lost has made is there. It makes nothing any more, if it was the only one.
    pub(super) fn was_executed(&self, container: &str, blob: &str, transport: &dyn Transport) {
        let name = (container.to_owned(), blob.to_owned());
        let mut lost = self.lock();
        let only = |lost: &LateRequest| {
            lost.creates && lost.count == 1 && !lost.requests.iter().any(|request| transport.has(*request))
        };
        if lost.get(&name).is_some_and(only) {
            lost.remove(&name);
        }
    }

    /// Waits for what was lost so far of a blob, and of those below its name.
    pub(super) async fn wait_for_lost(
        &self,
        container: &str,
        blob: &str,
        transport: &dyn Transport,
        deadline: Instant,
    ) -> Result<()> {
        let (began, below) = (Instant::now(), format!("{blob}/"));
        let until = {
            let mut all = self.lock();
            all.retain(|_, lost| !lost.is_over(began, transport));
            let concerned = all
                .iter()
                .filter(|((at, name), _)| at == container && (name == blob || name.starts_with(&below)));
            concerned.map(|(_, lost)| lost.until).max()
        };
        let Some(until) = until else {
            return Ok(());
        };
        tokio::time::sleep_until(until.min(deadline)).await;
        match until <= deadline {
            true => Ok(()),
            false => Err(Error::EarlierRequest {
                waited: began.elapsed(),
            }),
        }
    }

    /// Waits until nothing that was lost can harm what this call does.
    pub(super) async fn wait(
        &self,
        container: &str,
        call: &Call<'_>,
        transport: &dyn Transport,
        deadline: Instant,
    ) -> Result<()> {
        let (Some(blob), Some(_)) = (call.blob, kind(call)) else {
            return Ok(());
        };
        let deletes = call.method == Method::DELETE;
        let name = (container.to_owned(), blob.to_owned());
        let began = Instant::now();
        loop {
            let now = Instant::now();
            let until = {
                let mut all = self.lock();
                let Some(lost) = all.get_mut(&name) else {
                    return Ok(());
                };
                if lost.creates && !deletes {
                    // It fails, or this one does, where there is a blob.
                    return Ok(());
                }
                if lost.is_over(now, transport) {
                    all.remove(&name);
                    return Ok(());
                }
                lost.until
            };
            if now >= deadline {
                return Err(Error::EarlierRequest {
                    waited: now.saturating_duration_since(began),
                });
            }
            tracing::debug!(container, blob, "waits for a request that may be executed late");
            tokio::time::sleep_until(until.max(now + POLL).min(deadline)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), LateRequest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
