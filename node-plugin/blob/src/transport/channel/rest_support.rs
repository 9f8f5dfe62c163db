//! Whether the host takes the REST extension: found out by asking, remembered, and asked again now and then.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Refusals of any kind before the first success that count as "no". What a real host says to a method it
/// does not know is not public, so a single odd status must not shut the channel for good.
const REFUSALS: u32 = 3;
/// A host may learn (servicing, migration): one request tries again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct RestSupport(Mutex<State>);

#[derive(Debug)]
enum State {
    Unknown { refusals: u32 },
    Taken,
    Refused { since: Instant },
}

impl RestSupport {
    pub(super) fn unknown() -> Self {
        Self(Mutex::new(State::Unknown { refusals: 0 }))
    }

    /// Whether REST is worth trying.
    pub(super) fn worth_trying(&self) -> bool {
        let mut state = self.lock();
        if let State::Refused { since } = *state
            && since.elapsed() >= ASK_AGAIN
        {
            *state = State::Unknown {
                refusals: REFUSALS - 1,
            };
        }
        !matches!(*state, State::Refused { .. })
    }

    /// The host counts as refusing it now.
    pub(super) fn is_refused(&self) -> bool {
        matches!(*self.lock(), State::Refused { .. })
    }

    /// A REST request was executed.
    pub(super) fn taken(&self) {
        *self.lock() = State::Taken;
    }

    /// The host answered a REST request with a status and nothing else. `outright`: the status says that it
    /// has no such method. True when REST counts as refused now.
    pub(super) fn refused(&self, outright: bool) -> bool {
        let mut state = self.lock();
        let refused = match &mut *state {
            State::Refused { .. } => return true,
            State::Taken => outright,
            State::Unknown { refusals } => {
                *refusals += 1;
                outright || *refusals >= REFUSALS
            }
        };
        if refused {
            tracing::warn!(
                "the host refuses REST requests on the channel; it is used for reads of known versions only"
            );
            *state = State::Refused {
                since: Instant::now(),
            };
        }
        refused
    }

    /// The device came back, maybe on another host.
    pub(super) fn forget_refusal(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Refused { .. }) {
            *state = State::Unknown { refusals: 0 };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_odd_status_is_no_refusal_and_a_refusal_is_not_for_ever() {
        let rest = RestSupport::unknown();
        assert!(!rest.refused(false));
        assert!(!rest.refused(false));
        assert!(rest.worth_trying());
        assert!(rest.refused(false));
        assert!(!rest.worth_trying());
        tokio::time::advance(ASK_AGAIN).await;
        assert!(rest.worth_trying());
        assert!(rest.refused(false), "once more is enough");
        rest.forget_refusal();
        assert!(rest.worth_trying());
        assert!(!rest.refused(false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_took_rest_refuses_only_outright() {
        let rest = RestSupport::unknown();
        rest.taken();
        for _ in 0..10 {
            assert!(!rest.refused(false));
        }
        assert!(rest.refused(true));
        assert!(!rest.worth_trying());
    }
}
