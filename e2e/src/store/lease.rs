//! Leases of blobs and containers (REST: "Lease Blob", "Lease Container").

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use http::HeaderMap;
use uuid::Uuid;

use super::error::ServiceError;
use super::headers;

/// Lease of one blob or container.
#[derive(Debug, Clone, Default)]
pub(super) struct Lease(State);

#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Available,
    Leased {
        id: String,
        /// `None` for ever.
        duration: Option<Duration>,
        since: Instant,
    },
    Breaking {
        id: String,
        until: Instant,
    },
    Broken {
        id: String,
    },
}

/// What the properties say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    /// `x-ms-lease-state`.
    pub(super) state: &'static str,
    /// `x-ms-lease-status`.
    pub(super) status: &'static str,
    /// `x-ms-lease-duration`, while leased.
    pub(super) duration: Option<&'static str>,
}

/// What a lease action answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// HTTP status.
    pub(super) status: u16,
    /// `x-ms-lease-id`.
    pub(super) id: Option<String>,
    /// `x-ms-lease-time`, seconds left of a broken lease.
    pub(super) time: Option<u64>,
}

/// Whose lease: the codes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    Blob,
    Container,
}

impl Lease {
    /// The state now: a breaking lease whose time is over is broken.
    fn now(&mut self, now: Instant) -> &mut State {
        if let State::Breaking { id, until } = &self.0
            && now >= *until
        {
            self.0 = State::Broken { id: id.clone() };
        }
        &mut self.0
    }

    fn expired(&self, now: Instant) -> bool {
        matches!(&self.0, State::Leased { duration: Some(d), since, .. } if now >= *since + *d)
    }

    /// Headers of properties and listings.
    pub(super) fn shown(&self, now: Instant) -> Shown {
        let (state, status, duration) = match &self.0 {
            State::Available => ("available", "unlocked", None),
            State::Leased { .. } if self.expired(now) => ("expired", "unlocked", None),
            State::Leased { duration, .. } => (
                "leased",
                "locked",
                Some(if duration.is_some() { "fixed" } else { "infinite" }),
            ),
            State::Breaking { until, .. } if now < *until => ("breaking", "locked", None),
            State::Breaking { .. } | State::Broken { .. } => ("broken", "unlocked", None),
        };
        Shown {
            state,
            status,
            duration,
        }
    }

    /// Whether a request with this `x-ms-lease-id` may go on. A write needs the id of an active lease; a read
    /// may bring one, and then it must match.
    pub(super) fn check(
        &mut self,
        given: Option<&str>,
        write: bool,
        resource: Resource,
        now: Instant,
    ) -> Result<(), ServiceError> {
        let expired = self.expired(now);
        let (not_present, mismatch) = match resource {
            Resource::Blob => (
                ServiceError::lease_not_present_blob as fn() -> _,
                ServiceError::lease_id_mismatch_blob as fn() -> _,
            ),
            Resource::Container => (
                ServiceError::lease_not_present_container as fn() -> _,
                ServiceError::lease_id_mismatch_container as fn() -> _,
            ),
        };
        let state = self.now(now);
        match (&*state, given) {
            (State::Leased { .. } | State::Breaking { .. }, None) if write && !expired => {
                Err(ServiceError::lease_id_missing())
            }
            (State::Leased { .. } | State::Broken { .. }, None) if write => {
                // A write ends a lease that is over: it can no longer be renewed.
                *state = State::Available;
                Ok(())
            }
            (_, None) => Ok(()),
            (State::Available | State::Broken { .. }, Some(_)) => Err(not_present()),
            (State::Leased { id, .. }, Some(given)) if expired => Err(if same(id, given) {
                ServiceError::lease_lost()
            } else {
                not_present()
            }),
            (State::Leased { id, .. } | State::Breaking { id, .. }, Some(given)) => {
                if same(id, given) {
                    Ok(())
                } else {
                    Err(mismatch())
                }
            }
        }
    }

    /// Executes `x-ms-lease-action`.
    pub(super) fn act(&mut self, headers: &HeaderMap, now: Instant) -> Result<Outcome, ServiceError> {
        let action = headers::text(headers, "x-ms-lease-action")
            .ok_or_else(|| ServiceError::missing_header("x-ms-lease-action"))?
            .to_ascii_lowercase();
        match action.as_str() {
            "acquire" => self.acquire(headers, now),
            "renew" => self.renew(&given_id(headers)?, now),
            "change" => {
                let proposed = proposed_id(headers)?
                    .ok_or_else(|| ServiceError::missing_header("x-ms-proposed-lease-id"))?;
                self.change(&given_id(headers)?, proposed, now)
            }
            "release" => self.release(&given_id(headers)?, now),
            "break" => self.break_(headers, now),
            other => Err(ServiceError::invalid_header("x-ms-lease-action", other)),
        }
    }

    fn acquire(&mut self, headers: &HeaderMap, now: Instant) -> Result<Outcome, ServiceError> {
        let name = "x-ms-lease-duration";
        let text = headers::text(headers, name).ok_or_else(|| ServiceError::missing_header(name))?;
        let duration = match text.parse::<i64>() {
            Ok(-1) => None,
            Ok(seconds @ 15..=60) => Some(Duration::from_secs(seconds as u64)),
            _ => return Err(ServiceError::invalid_header(name, text)),
        };
        let proposed = proposed_id(headers)?;
        let expired = self.expired(now);
        match self.now(now) {
            State::Leased { id, .. } if !expired && !proposed.as_deref().is_some_and(|p| same(id, p)) => {
                return Err(ServiceError::lease_already_present());
            }
            State::Breaking { id, .. } => {
                return Err(if proposed.as_deref().is_some_and(|p| same(id, p)) {
                    ServiceError::lease_is_breaking_acquire()
                } else {
                    ServiceError::lease_already_present()
                });
            }
            _ => {}
        }
        let id = proposed.unwrap_or_else(|| Uuid::new_v4().to_string());
        self.0 = State::Leased {
            id: id.clone(),
            duration,
            since: now,
        };
        Ok(Outcome {
            status: 201,
            id: Some(id),
            time: None,
        })
    }

    fn renew(&mut self, given: &str, now: Instant) -> Result<Outcome, ServiceError> {
        match self.now(now) {
            State::Leased { id, since, .. } if same(id, given) => {
                // An expired lease may be renewed as long as nobody took another one.
                *since = now;
                Ok(Outcome {
                    status: 200,
                    id: Some(id.clone()),
                    time: None,
                })
            }
            State::Breaking { id, .. } | State::Broken { id } if same(id, given) => {
                Err(ServiceError::lease_is_broken_renew())
            }
            _ => Err(ServiceError::lease_id_mismatch_lease()),
        }
    }

    fn change(&mut self, given: &str, proposed: String, now: Instant) -> Result<Outcome, ServiceError> {
        let expired = self.expired(now);
        match self.now(now) {
            State::Leased { id, .. } if !expired => {
                if !same(id, given) && !same(id, &proposed) {
                    return Err(ServiceError::lease_id_mismatch_lease());
                }
                *id = proposed.clone();
                Ok(Outcome {
                    status: 200,
                    id: Some(proposed),
                    time: None,
                })
            }
            State::Breaking { id, .. } if same(id, given) => Err(ServiceError::lease_is_breaking_change()),
            State::Breaking { .. } => Err(ServiceError::lease_id_mismatch_lease()),
            _ => Err(ServiceError::lease_not_present_lease()),
        }
    }

    fn release(&mut self, given: &str, now: Instant) -> Result<Outcome, ServiceError> {
        match self.now(now) {
            State::Leased { id, .. } | State::Breaking { id, .. } | State::Broken { id }
                if same(id, given) =>
            {
                self.0 = State::Available;
                Ok(Outcome {
                    status: 200,
                    id: None,
                    time: None,
                })
            }
            _ => Err(ServiceError::lease_id_mismatch_lease()),
        }
    }

    fn break_(&mut self, headers: &HeaderMap, now: Instant) -> Result<Outcome, ServiceError> {
        let name = "x-ms-lease-break-period";
        let asked = match headers::text(headers, name) {
            None => None,
            Some(text) => match text.parse::<u64>() {
                Ok(seconds @ 0..=60) => Some(Duration::from_secs(seconds)),
                _ => return Err(ServiceError::invalid_header(name, text)),
            },
        };
        let expired = self.expired(now);
        let (id, left) = match self.now(now) {
            State::Available => return Err(ServiceError::lease_not_present_lease()),
            State::Broken { id } => (id.clone(), Duration::ZERO),
            State::Breaking { id, until } => {
                let left = until.saturating_duration_since(now);
                (id.clone(), asked.map_or(left, |asked| asked.min(left)))
            }
            State::Leased { id, .. } if expired => (id.clone(), Duration::ZERO),
            State::Leased {
                id, duration: None, ..
            } => (id.clone(), asked.unwrap_or_default()),
            State::Leased {
                id,
                duration: Some(duration),
                since,
            } => {
                let left = (*since + *duration).saturating_duration_since(now);
                (id.clone(), asked.map_or(left, |asked| asked.min(left)))
            }
        };
        self.0 = if left.is_zero() {
            State::Broken { id }
        } else {
            State::Breaking {
                id,
                until: now + left,
            }
        };
        Ok(Outcome {
            status: 202,
            id: None,
            // Rounded up: a lease with half a second left is not free yet.
            time: Some(left.as_millis().div_ceil(1000) as u64),
        })
    }
}

/// Lease ids are GUIDs: case does not matter.
fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

fn given_id(headers: &HeaderMap) -> Result<String, ServiceError> {
    headers::lease_id(headers)?
        .map(str::to_owned)
        .ok_or_else(|| ServiceError::missing_header("x-ms-lease-id"))
}

fn proposed_id(headers: &HeaderMap) -> Result<Option<String>, ServiceError> {
    headers::guid(headers, "x-ms-proposed-lease-id").map(|id| id.map(str::to_owned))
}
