//! The closed files of a volume whose data the service does not have.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;

use super::node::Node;

/// What closed files of a volume owe the service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owing {
    /// Files.
    pub files: usize,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// How long the oldest of them has been closed and not stored.
    pub oldest: Option<Duration>,
    /// Closed files whose data was given up since the volume began: somebody else has stored another version,
    /// or taken the name away.
    pub given_up: u64,
}

/// The closed files whose data the service does not have.
#[derive(Debug, Default)]
pub(super) struct Owed {
    queue: Mutex<Queue>,
    /// Held by who sends them.
    pub(super) round: AsyncMutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The oldest first.
    pub(super) files: VecDeque<Owes>,
    /// Closed files whose data was given up since the volume began.
    pub(super) given_up: u64,
    /// Tickets that were given out.
    pub(super) tickets: u64,
    /// A task is at work for them.
    pub(super) sending: bool,
    /// The volume ends: what is left is tried once more, and by nobody else.
    pub(super) ended: bool,
}

/// A closed file, and since when.
#[derive(Debug, Clone)]
pub(super) struct Owes {
    /// No other entry has it.
    pub(super) ticket: u64,
    pub(super) node: Arc<Node>,
    pub(super) since: Instant,
    /// How often the service has refused it since.
    pub(super) refused: u32,
    /// It is not sent before.
    pub(super) due: tokio::time::Instant,
}

impl Owed {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
