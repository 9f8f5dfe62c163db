//! The books: what is held, by kind, volume and stream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};

use super::holders::{Evict, Relieve};
use super::own::Own;
use super::queues::Queues;
use super::spool::Spool;
use crate::sync::{Mutex, MutexGuard};

/// The least a budget can be: a few parts for readers and a few blocks for writers.
pub const MIN_BUDGET: usize = 32 << 20;

/// What a mount needs of the budget to go on while all others are busy: a read and a write of the kernel's
/// largest size (1 MiB each), as much again on its way to the service, and a thousand names.
pub const MOUNT_SHARE: usize = 4 << 20;

/// Most reads that are granted at the same time when there is no room, of [`PROGRESS_BYTES`] at most each.
/// Room is set aside for them.
pub(super) const PROGRESS_READS: usize = 8;
/// What a read that somebody waits for takes at most: a request of 1 MiB whose ends are rounded.
pub(crate) const PROGRESS_BYTES: usize = 2 << 20;

/// One part in so many of the budget may be read by commits to be sent again. It is set aside.
pub(super) const RESEND_SHARE: usize = 16;
/// What that is counted in, in bytes.
pub(super) const RESEND_UNIT: usize = 64 << 10;

/// Dirty bytes that every volume can hold whatever the others do: a write of the kernel's largest size, and
/// one on its way.
pub(super) const DIRTY_SHARE: usize = 2 << 20;

/// One part in so many of the budget, beside what commits may send again, may be with the channel's device,
/// and [`AT_A_DEVICE`] at most: a host that loses all of it at once has the reads that are done again go
/// beyond the limit by that much.
const DEVICE_SHARE: usize = 8;
const AT_A_DEVICE: usize = 64 << 20;

/// Seconds after which a stream that was not read no longer counts (up to twice that).
pub(super) const STREAM_STRETCH: u64 = 2;

/// What held bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Copies of what the service has, or is on its way from there; can be dropped at any time.
    Cached,
    /// Accepted writes that the service does not have yet.
    Dirty,
    /// Inodes, listings, block lists.
    Metadata,
    /// Copies of writes that wait for room. They are no reason for other writes to wait.
    Waiting,
    /// Buffers of requests that were given up, which the channel's device keeps until the host returns them.
    Lost,
}

/// Bytes that all mounts together may hold. Readers shrink, writers wait; nothing fails for want of budget.
#[derive(Debug)]
pub struct Budget {
    pub(super) total: usize,
    /// The total, less what is set aside.
    pub(super) limit: usize,
    pub(super) dirty_limit: usize,
    /// What metadata may hold before it is asked to shrink.
    pub(super) metadata_limit: usize,
    /// What copies of waiting writes may hold.
    pub(super) waiting_limit: usize,
    pub(super) inner: Mutex<Inner>,
    /// Metadata grew past its limit.
    pub(super) crowd: Notify,
    /// Writes that wait for room.
    pub(super) short: AtomicUsize,
    /// Room for copies of waiting writes came back.
    pub(super) waiting_room: Notify,
    pub(super) spool: Spool,
    pub(super) progress: Semaphore,
    /// In units of [`RESEND_UNIT`].
    pub(super) resend: Semaphore,
    pub(super) started: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) used: [usize; 5],
    /// Volumes, and how much of what is theirs in any case they do not use.
    pub(super) volumes: usize,
    pub(super) reserved: usize,
    /// Most bytes ever held at once.
    pub(super) peak: usize,
    pub(super) clean: VecDeque<Weak<dyn Evict>>,
    /// Length of `clean` at which dead entries are swept out.
    pub(super) sweep_at: usize,
    pub(super) dirty: VecDeque<Weak<dyn Relieve>>,
    /// Likewise for `dirty`.
    pub(super) sweep_dirty_at: usize,
    pub(super) streams: Streams,
    /// Writers that wait.
    pub(super) queues: Queues,
}

/// How many streams were read in the current stretch of time, and in the one before.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stretch: u64,
    pub(super) now: usize,
    pub(super) before: usize,
}

impl Streams {
    pub(super) fn advance(&mut self, stretch: u64) {
        if stretch > self.stretch {
            self.before = if stretch == self.stretch + 1 { self.now } else { 0 };
            self.now = 0;
            self.stretch = stretch;
        }
    }
}

impl Inner {
    pub(super) fn sum(&self) -> usize {
        self.used.iter().sum()
    }

    pub(super) fn of(&self, kind: Kind) -> usize {
        self.used.get(kind as usize).copied().unwrap_or_default()
    }

    /// `own` counts what the volume holds itself.
    pub(super) fn add(&mut self, kind: Kind, bytes: usize, own: Option<&Own>) {
        if let Some(used) = self.used.get_mut(kind as usize) {
            *used += bytes;
        }
        match (kind, own) {
            (Kind::Dirty, Some(own)) => {
                let before = own.dirty.fetch_add(bytes, Ordering::Relaxed);
                self.reserved = (self.reserved + unused(before + bytes)).saturating_sub(unused(before));
            }
            (Kind::Waiting, Some(own)) => drop(own.waiting.fetch_add(bytes, Ordering::Relaxed)),
            (Kind::Lost, Some(own)) => drop(own.lost.fetch_add(bytes, Ordering::Relaxed)),
            _ => {}
        }
        self.peak = self.peak.max(self.sum());
    }

    pub(super) fn sub(&mut self, kind: Kind, bytes: usize, own: Option<&Own>) {
        if let Some(used) = self.used.get_mut(kind as usize) {
            *used = used.saturating_sub(bytes);
        }
        match (kind, own) {
            (Kind::Dirty, Some(own)) => {
                let before = own.dirty.fetch_sub(bytes, Ordering::Relaxed);
                self.reserved += unused(before.saturating_sub(bytes)) - unused(before);
            }
            (Kind::Waiting, Some(own)) => drop(own.waiting.fetch_sub(bytes, Ordering::Relaxed)),
            (Kind::Lost, Some(own)) => drop(own.lost.fetch_sub(bytes, Ordering::Relaxed)),
            _ => {}
        }
    }
}

/// What a volume that holds so many dirty bytes could still take of its [`DIRTY_SHARE`].
pub(super) fn unused(dirty: usize) -> usize {
    DIRTY_SHARE.saturating_sub(dirty)
}

/// See [`Budget::usage`]. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetUsage {
    /// Limit.
    pub total: usize,
    /// Cached or on its way.
    pub cached: usize,
    /// Accepted and not yet committed, and copies of writes that wait to be accepted.
    pub dirty: usize,
    /// Of these, the copies.
    pub waiting: usize,
    /// Writes whose data is on disk, because it finds no memory even to wait in (not bytes).
    pub spooled: usize,
    /// Inodes, listings, block lists.
    pub metadata: usize,
    /// What the channel's device keeps of requests that were given up.
    pub lost: usize,
    /// Most bytes ever held at once.
    pub peak: usize,
}

impl Budget {
    /// A budget of `bytes` (default of the program: 512 MiB; at least 32 MiB).
    pub fn new(bytes: usize) -> Arc<Self> {
        Self::over(bytes, Mutex::default())
    }

    /// One whose lock a schedule knows.
    #[cfg(test)]
    pub(crate) fn scheduled(bytes: usize) -> Arc<Self> {
        Self::over(bytes, Mutex::new(Inner::default()))
    }

    fn over(bytes: usize, inner: Mutex<Inner>) -> Arc<Self> {
        let total = bytes.max(MIN_BUDGET);
        let progress = (total / RESEND_SHARE / PROGRESS_BYTES).clamp(1, PROGRESS_READS);
        let limit = total - total / RESEND_SHARE - progress * PROGRESS_BYTES;
        Arc::new(Self {
            total,
            limit,
            // Together they are the limit: none of them can take another one's part. Readers have what is not
            // used of them, and their own.
            dirty_limit: limit / 8 * 5,
            metadata_limit: limit / 8 * 2,
            waiting_limit: limit / 8,
            inner,
            crowd: Notify::new(),
            short: AtomicUsize::new(0),
            waiting_room: Notify::new(),
            spool: Spool::default(),
            progress: Semaphore::new(progress),
            resend: Semaphore::new(total / RESEND_SHARE / RESEND_UNIT),
            started: Instant::now(),
        })
    }

    /// How many mounts it can serve, all of them busy.
    pub fn mounts(&self) -> usize {
        self.total / MOUNT_SHARE
    }

    /// Bytes of requests that may be with the channel's device at a time: what it can lose at once.
    pub fn most_at_a_device(&self) -> usize {
        self.total / RESEND_SHARE + (self.total / DEVICE_SHARE).min(AT_A_DEVICE)
    }

    /// What is held now.
    pub fn usage(&self) -> BudgetUsage {
        let inner = self.lock();
        BudgetUsage {
            total: self.total,
            cached: inner.of(Kind::Cached),
            dirty: inner.of(Kind::Dirty) + inner.of(Kind::Waiting),
            waiting: inner.of(Kind::Waiting),
            spooled: self.spool.held(),
            metadata: inner.of(Kind::Metadata),
            lost: inner.of(Kind::Lost),
            peak: inner.peak,
        }
    }

    /// True while a write waits for room: what is in the service need not stay in memory then.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed) > 0
    }

    /// Bytes that metadata should shrink by: it holds more than its part of the budget (and then some, so
    /// that this is rare), or 0.
    pub(crate) fn excess(&self) -> usize {
        let used = self.lock().of(Kind::Metadata);
        if used > self.metadata_limit {
            used - self.metadata_limit / 4 * 3
        } else {
            0
        }
    }

    /// Waits until metadata holds more than its part of the budget.
    pub(crate) async fn crowded(&self) {
        loop {
            let grown = self.crowd.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if self.excess() > 0 {
                return;
            }
            grown.await;
        }
    }

    pub(super) fn note_crowd(&self) {
        if self.excess() > 0 {
            self.crowd.notify_waiters();
        }
    }

    /// A stream is being read; `last` is what this said to it before (at first 0). Bytes that it may have in
    /// flight ahead of its reader.
    pub(crate) fn stream_share(&self, last: &mut u64) -> usize {
        let stretch = self.started.elapsed().as_secs() / STREAM_STRETCH + 1;
        let mut inner = self.lock();
        inner.streams.advance(stretch);
        if *last != stretch {
            *last = stretch;
            inner.streams.now += 1;
        }
        let active = inner.streams.now.max(inner.streams.before);
        drop(inner);
        self.total / 2 / active.max(1)
    }

    /// What dirty data may hold, and what may be held in all.
    #[cfg(test)]
    pub(crate) fn limits(&self) -> (usize, usize) {
        (self.dirty_limit, self.limit)
    }

    /// Limit in bytes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// What the arena may have of the machine's memory, idle buffers included: the total, less what is held
    /// outside of it.
    pub(crate) fn arena_limit(&self) -> usize {
        let inner = self.lock();
        let outside = inner.of(Kind::Metadata) + inner.of(Kind::Waiting);
        self.total.saturating_sub(outside)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}
