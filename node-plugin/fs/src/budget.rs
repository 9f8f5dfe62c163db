//! One byte budget for data, metadata and dirty blocks of all mounts of a process.
//!
//! Whoever holds memory holds a [`Permit`] for it, by size class. When the budget is used up, cached data goes first
//! (oldest first, what was used since gets a second chance), then writers wait while dirty data is staged. Metadata is
//! always granted, it only pushes cached data out; readers always get one part, so that nobody waits for ever.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// The least a budget can be: a few parts for readers and a few blocks for writers.
pub const MIN_BUDGET: usize = 32 << 20;

/// What a mount needs of the budget to go on while all others are busy: a read and a write of the kernel's largest size (1 MiB
/// each), as much again on its way to the service, and a thousand names.
pub const MOUNT_SHARE: usize = 4 << 20;

/// Most reads that are granted at the same time when there is no room, of [`PROGRESS_BYTES`] at most each. Room is set aside for them.
const PROGRESS_READS: usize = 8;
/// What a read that somebody waits for takes at most: a request of 1 MiB whose ends are rounded.
const PROGRESS_BYTES: usize = 2 << 20;

/// One part in so many of the budget may be read by commits to be sent again. It is set aside.
const RESEND_SHARE: usize = 16;
/// What that is counted in, in bytes.
const RESEND_UNIT: usize = 64 << 10;

/// How long a writer waits for room before it asks for relief again. Relief may have failed (the service was away) and
/// then nobody else would try again.
const RELIEF_RETRY: Duration = Duration::from_millis(500);

/// Seconds after which a stream that was not read no longer counts (up to twice that).
const STREAM_STRETCH: u64 = 2;

/// What held bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Copies of what the service has, or is on its way from there; can be dropped at any time.
    Cached,
    /// Accepted writes that the service does not have yet.
    Dirty,
    /// Inodes, listings, block lists.
    Metadata,
}

/// Cached data that can be dropped. Called with no lock of the budget held; must not block.
pub(crate) trait Evict: Send + Sync + std::fmt::Debug {
    /// Drops the memory and returns true, or returns false when it was used since it was asked last.
    fn evict(&self) -> bool;
}

/// What a holder of dirty data could do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relief {
    /// It holds nothing that it could give back; it is forgotten until it registers again.
    Nothing,
    /// Memory was freed.
    Freed,
    /// Data is being sent; memory can be freed later.
    Working,
}

/// A holder of dirty data that can make room. Called with no lock of the budget held; must not block.
pub(crate) trait Relieve: Send + Sync + std::fmt::Debug {
    /// Drops what is in the service already, and starts to send what is not.
    fn relieve(self: Arc<Self>) -> Relief;
}

/// Holders that are made to send at the same time.
const RELIEF_PARALLEL: usize = 4;

/// Bytes that all mounts together may hold. Readers shrink, writers wait; nothing fails for want of budget.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    /// The total, less what is set aside.
    limit: usize,
    dirty_limit: usize,
    inner: Mutex<Inner>,
    room: Notify,
    progress: Semaphore,
    /// In units of [`RESEND_UNIT`].
    resend: Semaphore,
    started: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    used: [usize; 3],
    /// Most bytes ever held at once.
    peak: usize,
    clean: VecDeque<Weak<dyn Evict>>,
    /// Length of `clean` at which dead entries are swept out.
    sweep_at: usize,
    dirty: VecDeque<Weak<dyn Relieve>>,
    /// Likewise for `dirty`.
    sweep_dirty_at: usize,
    streams: Streams,
}

/// How many streams were read in the current stretch of time, and in the one before.
#[derive(Debug, Default)]
struct Streams {
    stretch: u64,
    now: usize,
    before: usize,
}

impl Streams {
    fn advance(&mut self, stretch: u64) {
        if stretch > self.stretch {
            self.before = if stretch == self.stretch + 1 { self.now } else { 0 };
            self.now = 0;
            self.stretch = stretch;
        }
    }
}

impl Inner {
    fn sum(&self) -> usize {
        self.used.iter().sum()
    }
}

/// See [`Budget::usage`]. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetUsage {
    /// Limit.
    pub total: usize,
    /// Cached or on its way.
    pub cached: usize,
    /// Accepted and not yet committed.
    pub dirty: usize,
    /// Inodes, listings, block lists.
    pub metadata: usize,
    /// Most bytes ever held at once.
    pub peak: usize,
}

impl Budget {
    /// A budget of `bytes` (default of the program: 512 MiB; at least 32 MiB).
    pub fn new(bytes: usize) -> Arc<Self> {
        let total = bytes.max(MIN_BUDGET);
        let progress = (total / RESEND_SHARE / PROGRESS_BYTES).clamp(1, PROGRESS_READS);
        let limit = total - total / RESEND_SHARE - progress * PROGRESS_BYTES;
        Arc::new(Self {
            total,
            limit,
            // Readers keep a quarter even while writers are fast.
            dirty_limit: limit / 4 * 3,
            inner: Mutex::default(),
            room: Notify::new(),
            progress: Semaphore::new(progress),
            resend: Semaphore::new(total / RESEND_SHARE / RESEND_UNIT),
            started: Instant::now(),
        })
    }

    /// How many mounts it can serve, all of them busy.
    pub fn mounts(&self) -> usize {
        self.total / MOUNT_SHARE
    }

    /// What is held now.
    pub fn usage(&self) -> BudgetUsage {
        let inner = self.lock();
        BudgetUsage {
            total: self.total,
            cached: inner.used[Kind::Cached as usize],
            dirty: inner.used[Kind::Dirty as usize],
            metadata: inner.used[Kind::Metadata as usize],
            peak: inner.peak,
        }
    }

    /// Room for `bytes`, dropping cached data if needed; never blocks.
    pub fn try_acquire(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Permit> {
        loop {
            if let Some(permit) = self.take(kind, bytes) {
                return Some(permit);
            }
            if self.dirty_full(&self.lock(), kind, bytes) || !self.evict_one() {
                return None;
            }
        }
    }

    /// Room for `bytes` of accepted writes; waits, and has the oldest dirty data staged meanwhile. `None` after
    /// `patience` without room.
    pub async fn acquire_dirty(self: &Arc<Self>, bytes: usize, patience: Duration) -> Option<Permit> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // From here on no release is missed.
            room.as_mut().enable();
            if let Some(permit) = self.try_acquire(Kind::Dirty, bytes) {
                return Some(permit);
            }
            self.relieve(bytes);
            if let Some(permit) = self.try_acquire(Kind::Dirty, bytes) {
                return Some(permit);
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return None;
            }
            let _ = tokio::time::timeout_at(deadline.min(now + RELIEF_RETRY), room).await;
        }
    }

    /// Room for a read that somebody waits for: granted even when nothing can be dropped, but then only to a few reads
    /// at a time. The progress permit is to be kept until the bytes have arrived.
    pub async fn acquire_read(self: &Arc<Self>, bytes: usize) -> (Permit, Option<SemaphorePermit<'_>>) {
        if let Some(permit) = self.try_acquire(Kind::Cached, bytes) {
            return (permit, None);
        }
        // The semaphore is never closed.
        let progress = self.progress.acquire().await.ok();
        match self.try_acquire(Kind::Cached, bytes) {
            Some(permit) => (permit, None),
            None => (self.force(Kind::Cached, bytes), progress),
        }
    }

    /// Waits for the right to hold `bytes` of a blob that a commit has read only to send them again; kept until they are sent.
    /// Cached data that is dropped meanwhile stays in memory that long; room for it is set aside.
    pub(crate) async fn acquire_resend(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let most = self.total / RESEND_SHARE / RESEND_UNIT;
        let units = bytes.div_ceil(RESEND_UNIT as u64).min(most as u64) as u32;
        self.resend.acquire_many(units).await.ok()
    }

    /// Charges metadata. Always granted; grow and shrink it with [`Permit::resize`].
    pub fn charge_metadata(self: &Arc<Self>, bytes: usize) -> Permit {
        let permit = self.force(Kind::Metadata, bytes);
        self.shrink();
        permit
    }

    /// Charges the copy of a write that waits for room. Always granted, cached data makes way; the caller bounds how many there are.
    pub(crate) fn charge_waiting(self: &Arc<Self>, bytes: usize) -> Permit {
        let permit = self.force(Kind::Dirty, bytes);
        self.shrink();
        permit
    }

    /// Takes room whether there is any or not.
    pub(crate) fn force(self: &Arc<Self>, kind: Kind, bytes: usize) -> Permit {
        let mut inner = self.lock();
        inner.used[kind as usize] += bytes;
        inner.peak = inner.peak.max(inner.sum());
        drop(inner);
        self.permit(kind, bytes)
    }

    /// Makes `entry` known as droppable.
    pub(crate) fn offer(&self, entry: Weak<dyn Evict>) {
        let mut inner = self.lock();
        inner.clean.push_back(entry);
        if inner.clean.len() > inner.sweep_at.max(256) {
            inner.clean.retain(|e| e.strong_count() > 0);
            inner.sweep_at = inner.clean.len() * 2;
        }
    }

    /// Makes `holder` known as having dirty data, the youngest of all.
    pub(crate) fn offer_relief(&self, holder: Weak<dyn Relieve>) {
        let mut inner = self.lock();
        inner.dirty.push_back(holder);
        if inner.dirty.len() > inner.sweep_dirty_at.max(256) {
            inner.dirty.retain(|h| h.strong_count() > 0);
            inner.sweep_dirty_at = inner.dirty.len() * 2;
        }
    }

    /// A stream is being read; `last` is what this said to it before (at first 0). Bytes that it may have in flight ahead of its reader.
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

    /// Limit in bytes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Asks holders of dirty data to make room for `bytes`, the oldest first.
    pub(crate) fn relieve(self: &Arc<Self>, bytes: usize) {
        let mut holders = std::mem::take(&mut self.lock().dirty);
        let mut keep = VecDeque::with_capacity(holders.len());
        let mut working = 0;
        while let Some(weak) = holders.pop_front() {
            let Some(holder) = weak.upgrade() else { continue };
            let relief = holder.relieve();
            if relief != Relief::Nothing {
                keep.push_back(weak);
            }
            working += usize::from(relief == Relief::Working);
            let enough = relief == Relief::Freed && !self.is_full(Kind::Dirty, bytes);
            if enough || working == RELIEF_PARALLEL {
                break;
            }
        }
        keep.extend(holders);
        let mut inner = self.lock();
        // Those that registered meanwhile are younger.
        let younger = std::mem::replace(&mut inner.dirty, keep);
        inner.dirty.extend(younger);
    }

    fn take(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Permit> {
        let mut inner = self.lock();
        if self.no_room(&inner, kind, bytes) {
            return None;
        }
        inner.used[kind as usize] += bytes;
        inner.peak = inner.peak.max(inner.sum());
        drop(inner);
        Some(self.permit(kind, bytes))
    }

    fn no_room(&self, inner: &Inner, kind: Kind, bytes: usize) -> bool {
        inner.sum() + bytes > self.limit || self.dirty_full(inner, kind, bytes)
    }

    fn dirty_full(&self, inner: &Inner, kind: Kind, bytes: usize) -> bool {
        kind == Kind::Dirty && inner.used[Kind::Dirty as usize] + bytes > self.dirty_limit
    }

    fn is_full(&self, kind: Kind, bytes: usize) -> bool {
        self.no_room(&self.lock(), kind, bytes)
    }

    fn permit(self: &Arc<Self>, kind: Kind, bytes: usize) -> Permit {
        Permit {
            budget: Arc::clone(self),
            kind: AtomicU8::new(kind as u8),
            bytes,
        }
    }

    /// Drops cached data until the sum fits again, as far as that is possible.
    fn shrink(&self) {
        while self.lock().sum() > self.limit && self.evict_one() {}
    }

    /// Drops one cached entry; false when there is none.
    pub(crate) fn evict_one(&self) -> bool {
        // Twice around: the first time only takes second chances away.
        let mut tries = self.lock().clean.len() * 2 + 1;
        while tries > 0 {
            tries -= 1;
            let Some(entry) = self.lock().clean.pop_front() else {
                return false;
            };
            // The entry (and with it, perhaps, a permit) must not be dropped under the lock.
            let Some(strong) = entry.upgrade() else {
                continue;
            };
            if strong.evict() {
                return true;
            }
            self.lock().clean.push_back(entry);
        }
        false
    }

    fn release(&self, kind: usize, bytes: usize) {
        let mut inner = self.lock();
        inner.used[kind] = inner.used[kind].saturating_sub(bytes);
        drop(inner);
        self.room.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to hold some bytes; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    kind: AtomicU8,
    bytes: usize,
}

impl Permit {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds another number of bytes from now on. Growing is always granted (and drops cached data if needed).
    pub fn resize(&mut self, bytes: usize) {
        let kind = usize::from(self.kind.load(Ordering::Relaxed));
        let grown = bytes > self.bytes;
        if grown {
            let mut inner = self.budget.lock();
            inner.used[kind] += bytes - self.bytes;
            inner.peak = inner.peak.max(inner.sum());
        } else {
            self.budget.release(kind, self.bytes - bytes);
        }
        self.bytes = bytes;
        if grown {
            self.budget.shrink();
        }
    }

    /// The same memory serves another purpose from now on (dirty data that was committed is cached data).
    pub fn recharge(&self, kind: Kind) {
        let mut inner = self.budget.lock();
        let old = usize::from(self.kind.swap(kind as u8, Ordering::Relaxed));
        if old == kind as usize {
            return;
        }
        inner.used[old] = inner.used[old].saturating_sub(self.bytes);
        inner.used[kind as usize] += self.bytes;
        drop(inner);
        self.budget.room.notify_waiters();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let kind = usize::from(self.kind.load(Ordering::Relaxed));
        self.budget.release(kind, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug)]
    struct Entry {
        permit: Mutex<Option<Permit>>,
        used: AtomicBool,
    }

    impl Evict for Entry {
        fn evict(&self) -> bool {
            if self.used.swap(false, Ordering::Relaxed) {
                return false;
            }
            self.permit.lock().unwrap().take().is_some()
        }
    }

    fn entry(budget: &Arc<Budget>, bytes: usize) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            permit: Mutex::new(budget.try_acquire(Kind::Cached, bytes)),
            used: AtomicBool::new(false),
        });
        assert!(entry.permit.lock().unwrap().is_some());
        let weak: Weak<Entry> = Arc::downgrade(&entry);
        budget.offer(weak);
        entry
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn cached_data_makes_room_oldest_first_unless_used() {
        let budget = Budget::new(32 * MIB);
        let half = budget.limit / 2;
        let first = entry(&budget, half);
        let second = entry(&budget, half);
        first.used.store(true, Ordering::Relaxed);
        let permit = budget.try_acquire(Kind::Cached, 10 * MIB).unwrap();
        assert!(first.permit.lock().unwrap().is_some());
        assert!(second.permit.lock().unwrap().is_none());
        drop(permit);
        assert_eq!(budget.usage().cached, half);
    }

    #[test]
    fn metadata_is_always_granted_and_pushes_data_out() {
        let budget = Budget::new(32 * MIB);
        let data = entry(&budget, budget.limit);
        let mut permit = budget.charge_metadata(MIB);
        assert!(data.permit.lock().unwrap().is_none());
        permit.resize(40 * MIB);
        assert_eq!(budget.usage().metadata, 40 * MIB);
        permit.resize(MIB);
        assert_eq!(budget.usage().metadata, MIB);
        drop(permit);
        assert_eq!(budget.usage().metadata, 0);
        assert_eq!(budget.usage().peak, 40 * MIB);
    }

    #[test]
    fn dirty_data_leaves_room_for_readers() {
        let budget = Budget::new(32 * MIB);
        let dirty = budget.try_acquire(Kind::Dirty, budget.dirty_limit).unwrap();
        assert!(budget.try_acquire(Kind::Dirty, 1).is_none());
        assert!(
            budget
                .try_acquire(Kind::Cached, budget.limit - budget.dirty_limit)
                .is_some()
        );
        dirty.recharge(Kind::Cached);
        assert!(budget.try_acquire(Kind::Dirty, MIB).is_some());
    }

    #[test]
    fn only_streams_that_are_read_share_the_budget() {
        let budget = Budget::new(64 * MIB);
        let (mut one, mut other) = (0, 0);
        assert_eq!(budget.stream_share(&mut one), 32 * MIB);
        assert_eq!(budget.stream_share(&mut other), 16 * MIB);
        assert_eq!(budget.stream_share(&mut one), 16 * MIB);
        let mut streams = Streams {
            stretch: 5,
            now: 3,
            before: 1,
        };
        streams.advance(6);
        assert_eq!((streams.now, streams.before), (0, 3));
        streams.advance(8);
        assert_eq!((streams.now, streams.before), (0, 0));
    }

    #[derive(Debug)]
    struct Holder(Mutex<Option<Permit>>);

    impl Relieve for Holder {
        fn relieve(self: Arc<Self>) -> Relief {
            self.0.lock().unwrap().take();
            Relief::Nothing
        }
    }

    #[tokio::test]
    async fn writers_wait_for_relief() {
        let budget = Budget::new(32 * MIB);
        let permit = budget.try_acquire(Kind::Dirty, budget.dirty_limit);
        let holder = Arc::new(Holder(Mutex::new(permit)));
        let weak: Weak<Holder> = Arc::downgrade(&holder);
        budget.offer_relief(weak);
        let got = budget.acquire_dirty(MIB, Duration::from_secs(60)).await;
        assert_eq!(got.unwrap().bytes(), MIB);
    }

    #[tokio::test]
    async fn writers_wake_when_room_comes_back_and_give_up_when_it_does_not() {
        let budget = Budget::new(32 * MIB);
        let permit = budget.try_acquire(Kind::Dirty, budget.dirty_limit).unwrap();
        assert!(budget.acquire_dirty(MIB, Duration::ZERO).await.is_none());
        let waiter = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move {
                budget
                    .acquire_dirty(MIB, Duration::from_secs(600))
                    .await
                    .is_some()
            }
        });
        tokio::task::yield_now().await;
        drop(permit);
        assert!(waiter.await.unwrap());
    }

    #[tokio::test]
    async fn a_read_is_granted_even_when_everything_is_dirty() {
        let budget = Budget::new(512 * MIB);
        let _dirty = budget.try_acquire(Kind::Dirty, budget.dirty_limit).unwrap();
        let _meta = budget.charge_metadata(budget.limit - budget.dirty_limit);
        let mut held = Vec::new();
        for _ in 0..PROGRESS_READS {
            let (permit, progress) = budget.acquire_read(MIB).await;
            assert!(progress.is_some());
            held.push((permit, progress));
        }
        let mut next = Box::pin(budget.acquire_read(MIB));
        assert!(futures::poll!(next.as_mut()).is_pending());
        held.pop();
        let (permit, progress) = next.await;
        assert_eq!(permit.bytes(), MIB);
        assert!(progress.is_some());
    }

    /// What is granted without room has room of its own: the limit of everything else, and all of it, are together the budget.
    #[tokio::test]
    async fn what_is_granted_without_room_stays_within_the_budget() {
        for total in [32 * MIB, 256 * MIB, 512 * MIB, 4096 * MIB] {
            let budget = Budget::new(total);
            let resend = budget.acquire_resend(u64::MAX).await;
            assert!(resend.is_some());
            assert!(
                budget.resend.try_acquire().is_err(),
                "one commit of a large file takes all"
            );
            let _all = budget.try_acquire(Kind::Cached, budget.limit).unwrap();
            let mut held = Vec::new();
            while budget.progress.available_permits() > 0 {
                held.push(budget.acquire_read(PROGRESS_BYTES).await);
            }
            assert!(!held.is_empty());
            assert!(budget.usage().peak + total / RESEND_SHARE <= total, "{total}");
            assert!(budget.limit >= total / 4 * 3, "{total}: too little is left");
        }
    }

    #[test]
    fn a_waiting_write_pushes_cached_data_out_and_keeps_other_writes_waiting() {
        let budget = Budget::new(32 * MIB);
        let data = entry(&budget, budget.limit);
        let copy = budget.charge_waiting(MIB);
        assert!(data.permit.lock().unwrap().is_none());
        assert!(budget.try_acquire(Kind::Dirty, budget.dirty_limit).is_none());
        drop(copy);
        assert!(budget.try_acquire(Kind::Dirty, budget.dirty_limit).is_some());
    }
}
