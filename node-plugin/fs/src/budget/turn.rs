//! Whose turn it is to get room, and the place of a writer that waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::ledger::{Budget, DIRTY_SHARE, Inner};
use super::queues::{Queue, Waiting};
use super::share::Share;

/// How long a write waits for a volume that has given no room for longer than any write was ready to wait:
/// long enough to see that it has come back, short enough that nobody is held up by what is known.
const STUCK_PATIENCE: Duration = Duration::from_secs(2);

/// A writer's place in its volume's queue; left on drop, also when nobody waits for the writer any more.
#[derive(Debug)]
pub(super) struct Place<'a> {
    budget: &'a Budget,
    share: Option<&'a Arc<Share>>,
    ticket: u64,
    since: Instant,
    pub(super) wake: Arc<Notify>,
}

fn volume(share: Option<&Arc<Share>>) -> usize {
    share.map_or(0, Share::id)
}

impl Budget {
    /// The last place of the volume's queue.
    pub(super) fn queue_up<'a>(&'a self, bytes: usize, share: Option<&'a Arc<Share>>) -> Place<'a> {
        let wake = Arc::new(Notify::new());
        let mut inner = self.lock();
        let ticket = inner.queues.ticket();
        let queue = inner.queues.of.entry(volume(share)).or_insert_with(|| Queue {
            waiting: VecDeque::new(),
            progress: Instant::now(),
        });
        queue.waiting.push_back(Waiting {
            ticket,
            bytes,
            own: share.map(|share| Arc::clone(&share.own)),
            wake: Arc::clone(&wake),
        });
        drop(inner);
        self.short.fetch_add(1, Ordering::Relaxed);
        Place {
            budget: self,
            share,
            ticket,
            since: Instant::now(),
            wake,
        }
    }

    /// True when dirty room is not for somebody who came earlier. `ticket`: none for who has just come.
    ///
    /// The own volume's writers go in order. Others' go first when they wait for what all share: not those
    /// whose volume holds so much that no room of others' is theirs, and not before who needs no more than
    /// what every volume has for itself.
    pub(super) fn in_turn(
        &self,
        inner: &Inner,
        bytes: usize,
        share: Option<&Arc<Share>>,
        ticket: Option<u64>,
    ) -> bool {
        let earlier = |waiting: &&Waiting| ticket.is_none_or(|own| waiting.ticket < own);
        let own = volume(share);
        let queues = &inner.queues.of;
        let front = |queue: &Queue| queue.waiting.front().is_some_and(|first| earlier(&first));
        if queues.get(&own).is_some_and(front) {
            return false;
        }
        let reserved =
            share.is_some_and(|share| share.own.dirty.load(Ordering::Relaxed) + bytes <= DIRTY_SHARE);
        reserved
            || !queues
                .iter()
                .filter(|(volume, _)| **volume != own)
                .filter_map(|(_, queue)| queue.waiting.front())
                .filter(earlier)
                .any(|first| !self.at_own_limit(inner, first))
    }

    /// When a writer that came then gives up: `patience` after that, and after its volume got room or stored
    /// something last.
    pub(super) fn gives_up(&self, since: Instant, patience: Duration, share: Option<&Arc<Share>>) -> Instant {
        let stuck = share.is_some_and(|share| share.own.stuck.load(Ordering::Relaxed));
        let patience = match stuck {
            true => (patience / 4).min(STUCK_PATIENCE),
            false => patience,
        };
        let queue = volume(share);
        let served = self.lock().queues.of.get(&queue).map(|queue| queue.progress);
        let stored = share.map(|share| share.progress.latest_stored());
        served.into_iter().chain(stored).fold(since, Instant::max) + patience
    }

    fn at_own_limit(&self, inner: &Inner, first: &Waiting) -> bool {
        let own = first.own.as_ref();
        own.is_some_and(|own| self.over_own(inner, first.bytes, own))
    }
}

impl Place<'_> {
    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// True for the first of its volume.
    pub(super) fn is_first(&self) -> bool {
        let inner = self.budget.lock();
        inner.queues.position(volume(self.share), self.ticket) == Some(0)
    }

    /// When the writer gives up, as things stand.
    pub(super) fn deadline(&self, patience: Duration) -> Instant {
        self.budget.gives_up(self.since, patience, self.share)
    }

    /// The writer got room.
    pub(super) fn served(&self) {
        if let Some(queue) = self.budget.lock().queues.of.get_mut(&volume(self.share)) {
            queue.progress = Instant::now();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.short.fetch_sub(1, Ordering::Relaxed);
        let mut inner = self.budget.lock();
        inner.queues.leave(volume(self.share), self.ticket);
        inner.queues.wake_first();
    }
}
