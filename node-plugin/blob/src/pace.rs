//! How much an account is asked at a time: by all mounts of the process together.
//!
//! Three limits stand between a call and the wire, and each is there for an outage or an overload that
//! clients make worse:
//!
//! - `width`: how many requests are out at the same time. It is what connections are capped by, shrinks while
//!   the service says that it is busy or bodies do not get through, and grows again with its answers. Volumes
//!   take turns.
//! - `budget`: how many attempts may be repetitions. Where nobody answers, everything that is asked fails and
//!   is asked again: without a bound the load grows when the service can bear it least.
//! - the pause that the service asks for (`Retry-After`): what one call is told holds for the others.

mod budget;
mod width;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::budget::{Budget, Floor};
use self::width::{Slot, Width};

/// A pause that the service asks one call for holds for all others too, but not for longer than this: their
/// own answer may be another one.
const LONGEST_SHARED_PAUSE: Duration = Duration::from_secs(30);

/// The accounts of this process, by their endpoints; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    paces: Mutex<HashMap<String, Weak<Pace>>>,
    repetitions: Arc<Repetitions>,
}

/// Of all accounts, also of those that are gone.
#[derive(Debug, Default)]
struct Repetitions {
    made: AtomicU64,
    refused: AtomicU64,
}

/// What all accounts of a process are asked. See [`Accounts::load`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests that are out.
    pub out: usize,
    /// Requests that wait for others to come back.
    pub waiting: usize,
    /// How many may be out at a time of the account that was narrowed most; what all have at first where
    /// none is narrowed.
    pub width: usize,
    /// Repetitions that the account with the fewest has left, beside one a second for each volume; what all
    /// have at first where nobody repeats.
    pub repetitions_left: u64,
    /// Attempts that were repetitions, since the process began.
    pub repeated: u64,
    /// Repetitions that were not made, because there were too many.
    pub refused: u64,
}

impl Accounts {
    /// What is asked now.
    pub fn load(&self) -> Load {
        let paces: Vec<_> = self.paces().values().filter_map(Weak::upgrade).collect();
        let mut load = Load {
            out: 0,
            waiting: 0,
            width: width::WIDEST,
            repetitions_left: budget::MOST,
            repeated: self.0.repetitions.made.load(Ordering::Relaxed),
            refused: self.0.repetitions.refused.load(Ordering::Relaxed),
        };
        for pace in paces {
            let (out, waiting, width) = pace.width.load();
            load.out += out;
            load.waiting += waiting;
            load.width = load.width.min(width);
            load.repetitions_left = load.repetitions_left.min(pace.budget.left());
        }
        load
    }

    fn paces(&self) -> MutexGuard<'_, HashMap<String, Weak<Pace>>> {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume's part of what its account may be asked: the same account for all, as long as any volume has
    /// a part of it.
    pub(crate) fn volume(&self, endpoint: &str) -> Share {
        let mut known = self.paces();
        known.retain(|_, pace| pace.strong_count() > 0);
        let pace = match known.get(endpoint).and_then(Weak::upgrade) {
            Some(pace) => pace,
            None => {
                let pace = Arc::new(Pace::default());
                known.insert(endpoint.to_owned(), Arc::downgrade(&pace));
                pace
            }
        };
        let volume = pace.volumes.fetch_add(1, Ordering::Relaxed);
        Share {
            pace,
            volume,
            floor: Floor::default(),
            repetitions: Arc::clone(&self.0.repetitions),
        }
    }
}

/// What all volumes of an account share.
#[derive(Debug, Default)]
struct Pace {
    width: Arc<Width>,
    budget: Budget,
    /// Nothing is sent before this.
    pause: Mutex<Option<Instant>>,
    /// How many volumes there were.
    volumes: AtomicU64,
}

/// A volume's part of its account.
#[derive(Debug)]
pub(crate) struct Share {
    pace: Arc<Pace>,
    volume: u64,
    floor: Floor,
    repetitions: Arc<Repetitions>,
}

impl Share {
    /// [`Share::turn_while`] with an end that is known.
    #[cfg(test)]
    pub(crate) async fn turn(&self, until: Instant) -> Option<Turn<'_>> {
        self.turn_while(|| until).await
    }

    /// Waits until one more request may be out; `None` when that is not so in time. When that is may change
    /// meanwhile.
    pub(crate) async fn turn_while(&self, until: impl Fn() -> Instant) -> Option<Turn<'_>> {
        loop {
            let pause = self.pace.paused();
            let Some(end) = pause.filter(|end| *end > Instant::now()) else {
                break;
            };
            if end >= until() {
                return None;
            }
            sleep_until(end).await;
        }
        let slot = Width::slot(&self.pace.width, self.volume, until).await?;
        Some(Turn {
            pace: &self.pace,
            slot,
        })
    }

    /// A call begins: a part of a later repetition comes with it.
    pub(crate) fn began(&self) {
        self.pace.budget.began();
    }

    /// Waits until an attempt may be a repetition; false when that is not so in time.
    pub(crate) async fn repeat(&self, until: Instant) -> bool {
        let may = self.pace.budget.repeat(&self.floor, until).await;
        let counter = match may {
            true => &self.repetitions.made,
            false => &self.repetitions.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        may
    }
}

impl Pace {
    fn paused(&self) -> Option<Instant> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to have one request out, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pace: &'a Pace,
    slot: Slot,
}

impl Turn<'_> {
    /// The service has answered, and works.
    pub(crate) fn well(self) {
        self.pace.width.widen();
        self.pace.budget.succeeded();
    }

    /// A body stopped on its way: the line bears less than is sent over it.
    pub(crate) fn stalled(self) {
        self.pace.width.narrow(self.slot.since());
    }

    /// It turns requests away because they are too many, and asks for a pause or not.
    pub(crate) fn busy(self, pause: Option<Duration>) {
        self.pace.width.narrow(self.slot.since());
        let Some(pause) = pause else { return };
        let end = Instant::now() + pause.min(LONGEST_SHARED_PAUSE);
        let mut known = self.pace.lock();
        *known = Some(known.map_or(end, |known| known.max(end)));
    }
}

#[cfg(test)]
mod tests;
