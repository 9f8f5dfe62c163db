//! The pace of repetitions, and what the log says of them: jittered and capped pauses, one line per change of
//! state.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::DefaultBackoff;

use super::{Error, Result};

/// Longest pause between attempts: twice kube's 30 s, which its jitter can reach.
const LONGEST: Duration = Duration::from_secs(60);

/// Pauses that grow until something succeeds: from 0.8 s, doubled, jittered (kube's own for watches).
#[derive(Default)]
pub(super) struct Pauses(DefaultBackoff);

impl Pauses {
    /// The next pause; at least what the server asked for.
    pub(super) fn after(&mut self, error: &Error) -> Duration {
        let asked = match error {
            Error::Busy { after, .. } => after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        self.next().max(asked)
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST).min(LONGEST)
    }

    /// Something succeeded.
    pub(super) fn reset(&mut self) {
        self.0.reset();
    }
}

/// What the log knows of one purpose: trouble is told when it begins or becomes another one, and when it is
/// over.
#[derive(Debug)]
pub(super) struct Told {
    purpose: &'static str,
    last: Mutex<Option<&'static str>>,
}

impl Told {
    pub(super) const fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            last: Mutex::new(None),
        }
    }

    /// Notes an outcome; true when it was told.
    pub(super) fn note<T>(&self, result: &Result<T>) -> bool {
        let kind = result.as_ref().err().map(|error| match error {
            Error::NotFound(_) => "not found",
            Error::Denied(_) => "denied",
            // Somebody else was quicker; the next attempt tells.
            Error::Conflict(_) => "conflict",
            Error::Busy { .. } => "busy",
            Error::Unavailable(_) => "unavailable",
            Error::Other(_) => "other",
        });
        if kind == Some("conflict") {
            return false;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == kind {
            return false;
        }
        *last = kind;
        match result {
            Ok(_) => tracing::info!(purpose = self.purpose, "Kubernetes answers again"),
            Err(error) => {
                tracing::warn!(
                    purpose = self.purpose,
                    "Kubernetes: {error}; volumes are not affected"
                );
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap_with_jitter_and_start_again() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(2);
        assert!(pauses.next() <= short);
        let many: Vec<Duration> = (0..20).map(|_| pauses.next()).collect();
        assert!(many.iter().all(|p| *p <= LONGEST), "{many:?}");
        assert!(many[10..].iter().all(|p| *p >= LONGEST / 2), "{many:?}");
        assert!(many[10..].iter().any(|p| *p != many[10]), "no jitter: {many:?}");
        pauses.reset();
        assert!(pauses.next() <= short);
    }

    #[test]
    fn the_server_may_ask_for_more() {
        let busy = Error::Busy {
            message: "slow down".into(),
            after: Some(Duration::from_secs(90)),
        };
        assert_eq!(Pauses::default().after(&busy), Duration::from_secs(90));
        let gone = Error::Unavailable("refused".into());
        assert!(Pauses::default().after(&gone) < Duration::from_secs(5));
    }

    #[test]
    fn trouble_is_told_once_per_change() {
        let told = Told::new("test");
        let denied = || Err::<(), _>(Error::Denied("no".into()));
        assert!(!told.note(&Ok(())));
        assert!(told.note(&denied()));
        assert!(!told.note(&denied()));
        assert!(!told.note::<()>(&Err(Error::Conflict("changed".into()))));
        assert!(told.note::<()>(&Err(Error::Unavailable("gone".into()))));
        assert!(told.note(&Ok(())));
        assert!(!told.note(&Ok(())));
    }
}
