//! How many attempts may be repetitions.
//!
//! A call that begins brings a tenth of a repetition with it, and an answer of the service pays for two:
//! while it answers at all, what was lost is asked again at once. While nobody answers, repetitions are a
//! tenth of the calls, and one a second for each volume, so that the end of the outage is noticed; those who
//! have to wait are served in order.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

/// A repetition, in the unit of the others: what a call brings.
const REPETITION: u64 = 10;
/// What each answer brings.
const PER_ANSWER: u64 = 2 * REPETITION;
/// What is kept at most for later: enough for the requests that a connection takes down with it.
const RESERVE: u64 = 20 * REPETITION;
/// The same, in repetitions.
pub(super) const MOST: u64 = RESERVE / REPETITION;
/// What a volume has beside, in a second.
const FLOOR: f64 = 1.0;
/// What it keeps of that at most.
const FLOOR_RESERVE: f64 = 10.0;

/// Of an account.
#[derive(Debug)]
pub(super) struct Budget {
    left: Mutex<u64>,
    more: Notify,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: Mutex::new(RESERVE),
            more: Notify::new(),
        }
    }
}

/// Of a volume.
#[derive(Debug)]
pub(super) struct Floor {
    /// How much there was, and when.
    left: Mutex<(f64, Instant)>,
    /// Whoever is next.
    turn: tokio::sync::Mutex<()>,
}

impl Default for Floor {
    fn default() -> Self {
        Self {
            left: Mutex::new((FLOOR_RESERVE, Instant::now())),
            turn: tokio::sync::Mutex::new(()),
        }
    }
}

impl Budget {
    pub(super) fn began(&self) {
        self.add(1);
    }

    pub(super) fn succeeded(&self) {
        self.add(PER_ANSWER);
    }

    fn add(&self, more: u64) {
        let mut left = self.lock();
        *left = (*left + more).min(RESERVE);
        let enough = *left >= REPETITION;
        drop(left);
        if enough {
            self.more.notify_waiters();
        }
    }

    /// Waits for one repetition; false when there is none in time.
    pub(super) async fn repeat(&self, floor: &Floor, until: Instant) -> bool {
        let Ok(_turn) = timeout_at(until, floor.turn.lock()).await else {
            return false;
        };
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if self.take() {
                return true;
            }
            let next = match floor.take() {
                Ok(()) => return true,
                Err(next) => next,
            };
            if Instant::now() >= until {
                return false;
            }
            tokio::select! {
                () = more => {}
                () = sleep_until(next.min(until)) => {}
            }
        }
    }

    /// Repetitions that may be made at once.
    pub(super) fn left(&self) -> u64 {
        *self.lock() / REPETITION
    }

    fn take(&self) -> bool {
        let mut left = self.lock();
        let enough = *left >= REPETITION;
        if enough {
            *left -= REPETITION;
        }
        enough
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Floor {
    /// Or when there will be one.
    fn take(&self) -> Result<(), Instant> {
        let now = Instant::now();
        let mut floor = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *floor;
        let grown = now.saturating_duration_since(at).as_secs_f64() * FLOOR;
        let left = (left + grown).min(FLOOR_RESERVE);
        if left >= 1.0 {
            *floor = (left - 1.0, now);
            return Ok(());
        }
        *floor = (left, now);
        // A moment more, so that it is there then whatever the rounding.
        Err(now + Duration::from_secs_f64((1.0 - left) / FLOOR) + Duration::from_millis(1))
    }
}
