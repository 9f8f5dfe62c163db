//! Who waits for room: one queue for each volume.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::own::Own;

/// All queues of a budget.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// The next writer's ticket: they count up, over all volumes.
    pub(super) next: u64,
    /// By volume (0: who is of none).
    pub(super) of: BTreeMap<usize, Queue>,
    /// The first of each volume's writes that wait on disk for room to wait in, by their tickets.
    pub(super) spooled: BTreeMap<u64, Spooler>,
}

#[derive(Debug)]
pub(super) struct Spooler {
    pub(super) own: Arc<Own>,
    pub(super) bytes: usize,
}

/// The writers of one volume that wait, the first to come in front.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    /// When one of them got room last, or the first of them came.
    pub(super) progress: Instant,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) bytes: usize,
    pub(super) own: Option<Arc<Own>>,
    pub(super) wake: Arc<Notify>,
}

impl Queues {
    pub(super) fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn position(&self, volume: usize, ticket: u64) -> Option<usize> {
        let queue = self.of.get(&volume)?;
        queue.waiting.iter().position(|waiting| waiting.ticket == ticket)
    }

    /// The writer does not wait any more.
    pub(super) fn leave(&mut self, volume: usize, ticket: u64) {
        let at = self.position(volume, ticket);
        let Some(queue) = self.of.get_mut(&volume) else {
            return;
        };
        if let Some(at) = at {
            queue.waiting.remove(at);
        }
        if queue.waiting.is_empty() {
            self.of.remove(&volume);
        }
    }

    /// There may be room: the first of each volume looks.
    pub(super) fn wake_first(&self) {
        for queue in self.of.values() {
            if let Some(first) = queue.waiting.front() {
                first.wake.notify_one();
            }
        }
    }
}
