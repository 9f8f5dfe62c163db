//! One byte budget for data, metadata and dirty blocks of all mounts of a process.
//!
//! Whoever holds memory holds a [`Permit`] for it, by size class. When the budget is used up, cached data goes first
//! (oldest first, what was used since gets a second chance), then writers wait while dirty data is staged; readers always get one part, so
//! that nobody waits for ever.
//!
//! Metadata is always granted and pushes cached data out. Above its own part of the budget, whoever holds it is asked to forget what can be had again
//! (`Budget::crowded`); dirty data has room that metadata cannot take. A volume whose service does not answer keeps what others need to go on
//! ([`Share`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
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
pub(crate) const PROGRESS_BYTES: usize = 2 << 20;

/// One part in so many of the budget may be read by commits to be sent again. It is set aside.
const RESEND_SHARE: usize = 16;
/// What that is counted in, in bytes.
const RESEND_UNIT: usize = 64 << 10;

/// Dirty bytes that every volume can hold whatever the others do: a write of the kernel's largest size, and one on its way.
const DIRTY_SHARE: usize = 2 << 20;

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
    /// Copies of writes that wait for room. They are no reason for other writes to wait.
    Waiting,
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
    /// There is data that could be sent.
    Idle,
}

/// A holder of dirty data that can make room. Called with no lock of the budget held; must not block.
pub(crate) trait Relieve: Send + Sync + std::fmt::Debug {
    /// Drops what is in the service already, and starts to send what is not if `start` says so.
    fn relieve(self: Arc<Self>, start: bool) -> Relief;
    /// Tells volumes apart: an endpoint that does not answer must not hold up others.
    fn volume(&self) -> usize;
}

/// Holders of one volume that are made to send at the same time.
const RELIEF_PARALLEL: usize = 4;

/// Bytes that all mounts together may hold. Readers shrink, writers wait; nothing fails for want of budget.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    /// The total, less what is set aside.
    limit: usize,
    dirty_limit: usize,
    /// What metadata may hold before it is asked to shrink.
    metadata_limit: usize,
    /// What copies of waiting writes are expected to hold.
    waiting_limit: usize,
    inner: Mutex<Inner>,
    room: Notify,
    /// Metadata grew past its limit.
    crowd: Notify,
    /// Writes that wait for room.
    short: AtomicUsize,
    progress: Semaphore,
    /// In units of [`RESEND_UNIT`].
    resend: Semaphore,
    started: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    used: [usize; 4],
    /// Volumes, and how much of what is theirs in any case they do not use.
    volumes: usize,
    reserved: usize,
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

    fn of(&self, kind: Kind) -> usize {
        self.used.get(kind as usize).copied().unwrap_or_default()
    }

    fn add(&mut self, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) {
        if let Some(used) = self.used.get_mut(kind as usize) {
            *used += bytes;
        }
        if let (Kind::Dirty, Some(share)) = (kind, share) {
            let before = share.dirty.fetch_add(bytes, Ordering::Relaxed);
            self.reserved = (self.reserved + unused(before + bytes)).saturating_sub(unused(before));
        }
        self.peak = self.peak.max(self.sum());
    }

    fn sub(&mut self, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) {
        if let Some(used) = self.used.get_mut(kind as usize) {
            *used = used.saturating_sub(bytes);
        }
        if let (Kind::Dirty, Some(share)) = (kind, share) {
            let before = share.dirty.fetch_sub(bytes, Ordering::Relaxed);
            self.reserved += unused(before.saturating_sub(bytes)) - unused(before);
        }
    }
}

/// What a volume that holds so many dirty bytes could still take of its [`DIRTY_SHARE`].
fn unused(dirty: usize) -> usize {
    DIRTY_SHARE.saturating_sub(dirty)
}

/// One volume's part of what dirty data may take. A volume whose service does not answer fills up to a limit of its own, and the others
/// go on.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// Changed under the budget's lock.
    dirty: AtomicUsize,
}

impl Share {
    /// Room for `bytes` of accepted writes, if there is any without waiting.
    pub fn try_acquire(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        self.budget.try_for(Kind::Dirty, bytes, Some(self))
    }

    /// Room for `bytes` of accepted writes; waits, and has the oldest dirty data staged meanwhile. `None` after
    /// `patience` without room.
    pub async fn acquire(self: &Arc<Self>, bytes: usize, patience: Duration) -> Option<Permit> {
        self.budget.acquire_dirty(bytes, patience, Some(self)).await
    }

    /// Takes room for dirty data whether there is any or not.
    pub(crate) fn force(self: &Arc<Self>, bytes: usize) -> Permit {
        self.budget.force_for(Kind::Dirty, bytes, Some(self))
    }

    /// Tells volumes apart.
    pub(crate) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Every permit of dirty data keeps its share: there is none left.
        let mut inner = self.budget.lock();
        inner.volumes = inner.volumes.saturating_sub(1);
        inner.reserved = inner.reserved.saturating_sub(DIRTY_SHARE);
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
            // Together they are the limit: none of them can take another one's part. Readers have what is not used of them, and their own.
            dirty_limit: limit / 8 * 5,
            metadata_limit: limit / 8 * 2,
            waiting_limit: limit / 8,
            inner: Mutex::default(),
            room: Notify::new(),
            crowd: Notify::new(),
            short: AtomicUsize::new(0),
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
            cached: inner.of(Kind::Cached),
            dirty: inner.of(Kind::Dirty) + inner.of(Kind::Waiting),
            metadata: inner.of(Kind::Metadata),
            peak: inner.peak,
        }
    }

    /// A volume begins to use the budget. Its writes go through what is given back.
    pub fn join(self: &Arc<Self>) -> Arc<Share> {
        let mut inner = self.lock();
        inner.volumes += 1;
        inner.reserved += DIRTY_SHARE;
        drop(inner);
        Arc::new(Share {
            budget: Arc::clone(self),
            dirty: AtomicUsize::new(0),
        })
    }

    /// Room for `bytes`, dropping cached data if needed; never blocks.
    pub fn try_acquire(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Permit> {
        self.try_for(kind, bytes, None)
    }

    fn try_for(self: &Arc<Self>, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> Option<Permit> {
        loop {
            if let Some(permit) = self.take(kind, bytes, share) {
                return Some(permit);
            }
            if self.dirty_full(&self.lock(), kind, bytes, share) || !self.evict_one() {
                return None;
            }
        }
    }

    async fn acquire_dirty(
        self: &Arc<Self>,
        bytes: usize,
        patience: Duration,
        share: Option<&Arc<Share>>,
    ) -> Option<Permit> {
        let deadline = tokio::time::Instant::now() + patience;
        let _short = Short::new(self);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // From here on no release is missed.
            room.as_mut().enable();
            if let Some(permit) = self.try_for(Kind::Dirty, bytes, share) {
                return Some(permit);
            }
            self.relieve(bytes, share);
            if let Some(permit) = self.try_for(Kind::Dirty, bytes, share) {
                return Some(permit);
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return None;
            }
            let _ = tokio::time::timeout_at(deadline.min(now + RELIEF_RETRY), room).await;
        }
    }

    /// True while a write waits for room: what is in the service need not stay in memory then.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed) > 0
    }

    /// Bytes that metadata should shrink by: it holds more than its part of the budget (and then some, so that this is rare), or 0.
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
        self.note_crowd();
        permit
    }

    /// Charges the copy of a write that waits for room. Always granted, cached data makes way; the caller bounds how many there are.
    pub(crate) fn charge_waiting(self: &Arc<Self>, bytes: usize) -> Permit {
        let permit = self.force(Kind::Waiting, bytes);
        self.shrink();
        permit
    }

    /// Takes room whether there is any or not.
    pub(crate) fn force(self: &Arc<Self>, kind: Kind, bytes: usize) -> Permit {
        self.force_for(kind, bytes, None)
    }

    fn force_for(self: &Arc<Self>, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> Permit {
        self.lock().add(kind, bytes, share);
        self.permit(kind, bytes, share)
    }

    fn note_crowd(&self) {
        if self.excess() > 0 {
            self.crowd.notify_waiters();
        }
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

    /// What the arena may have of the machine's memory, idle buffers included: the total, less what is held outside of it.
    pub(crate) fn arena_limit(&self) -> usize {
        let inner = self.lock();
        let outside = inner.of(Kind::Metadata) + inner.of(Kind::Waiting);
        self.total.saturating_sub(outside)
    }

    /// Asks holders of dirty data to make room for `bytes`, the oldest first: to drop what is in the service, and if that is not enough, to send.
    pub(crate) fn relieve(self: &Arc<Self>, bytes: usize, share: Option<&Arc<Share>>) {
        // What other volumes hold is of no use to one that is at its own limit.
        let only = share
            .filter(|share| {
                let inner = self.lock();
                inner.of(Kind::Dirty) + bytes <= self.dirty_limit && self.over_own(&inner, bytes, share)
            })
            .map(Share::id);
        let mut holders = std::mem::take(&mut self.lock().dirty);
        let mut keep = VecDeque::with_capacity(holders.len());
        let mut working: HashMap<usize, usize> = HashMap::new();
        let mut idle = Vec::new();
        let mut enough = false;
        while let Some(weak) = holders.pop_front() {
            let Some(holder) = weak.upgrade() else { continue };
            let volume = holder.volume();
            if only.is_some_and(|only| only != volume) {
                keep.push_back(weak);
                continue;
            }
            match Arc::clone(&holder).relieve(false) {
                Relief::Nothing => continue,
                Relief::Freed => enough = !self.is_full(Kind::Dirty, bytes, share),
                Relief::Working => *working.entry(volume).or_default() += 1,
                Relief::Idle => idle.push(holder),
            }
            keep.push_back(weak);
            if enough {
                break;
            }
        }
        keep.extend(holders);
        let mut started = Vec::new();
        for holder in idle.into_iter().filter(|_| !enough) {
            let working = working.entry(holder.volume()).or_default();
            if *working < RELIEF_PARALLEL {
                *working += 1;
                Arc::clone(&holder).relieve(true);
                started.push(holder);
            }
        }
        // Others are asked before these are asked again: what they send may never arrive.
        let is_started = |weak: &Weak<dyn Relieve>| {
            started
                .iter()
                .any(|h| std::ptr::addr_eq(Arc::as_ptr(h), weak.as_ptr()))
        };
        let (back, mut front): (VecDeque<_>, VecDeque<_>) = keep.into_iter().partition(is_started);
        front.extend(back);
        let mut inner = self.lock();
        // Those that registered meanwhile are younger.
        let younger = std::mem::replace(&mut inner.dirty, front);
        inner.dirty.extend(younger);
    }

    fn take(self: &Arc<Self>, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> Option<Permit> {
        let mut inner = self.lock();
        if self.no_room(&inner, kind, bytes, share) {
            return None;
        }
        inner.add(kind, bytes, share);
        drop(inner);
        Some(self.permit(kind, bytes, share))
    }

    fn no_room(&self, inner: &Inner, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> bool {
        if kind != Kind::Dirty {
            return inner.sum() + bytes > self.limit;
        }
        // What others hold beyond their part does not stop writers: it would for ever, if they held it for ever.
        let others = inner.of(Kind::Metadata).min(self.metadata_limit)
            + inner.of(Kind::Waiting).min(self.waiting_limit)
            + inner.of(Kind::Cached);
        inner.of(Kind::Dirty) + others + bytes > self.limit || self.dirty_full(inner, kind, bytes, share)
    }

    fn dirty_full(&self, inner: &Inner, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> bool {
        kind == Kind::Dirty
            && (inner.of(Kind::Dirty) + bytes > self.dirty_limit
                || share.is_some_and(|share| self.over_own(inner, bytes, share)))
    }

    /// True when `bytes` more would be too much of one volume: beyond its share there must be left what is kept for others.
    fn over_own(&self, inner: &Inner, bytes: usize, share: &Arc<Share>) -> bool {
        let own = share.dirty.load(Ordering::Relaxed);
        if own + bytes <= DIRTY_SHARE || inner.volumes <= 1 {
            return false;
        }
        let others = inner.reserved.saturating_sub(unused(own));
        own + bytes > self.dirty_limit / 4 * 3 || inner.of(Kind::Dirty) + bytes + others > self.dirty_limit
    }

    fn is_full(&self, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> bool {
        self.no_room(&self.lock(), kind, bytes, share)
    }

    fn permit(self: &Arc<Self>, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> Permit {
        Permit {
            budget: Arc::clone(self),
            share: share.map(Arc::clone),
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write that waits for room.
struct Short<'a>(&'a Budget);

impl<'a> Short<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.short.fetch_add(1, Ordering::Relaxed);
        Self(budget)
    }
}

impl Drop for Short<'_> {
    fn drop(&mut self) {
        self.0.short.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to hold some bytes; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    /// Of dirty data: the volume it belongs to.
    share: Option<Arc<Share>>,
    /// A [`Kind`].
    kind: AtomicU8,
    bytes: usize,
}

impl Permit {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn kind(&self) -> Kind {
        match self.kind.load(Ordering::Relaxed) {
            0 => Kind::Cached,
            1 => Kind::Dirty,
            2 => Kind::Metadata,
            _ => Kind::Waiting,
        }
    }

    /// Holds another number of bytes from now on. Growing is always granted (and drops cached data if needed).
    pub fn resize(&mut self, bytes: usize) {
        let kind = self.kind();
        let grown = bytes > self.bytes;
        let mut inner = self.budget.lock();
        if grown {
            inner.add(kind, bytes - self.bytes, self.share.as_ref());
        } else {
            inner.sub(kind, self.bytes - bytes, self.share.as_ref());
        }
        drop(inner);
        self.bytes = bytes;
        if grown {
            self.budget.shrink();
            if kind == Kind::Metadata {
                self.budget.note_crowd();
            }
        } else {
            self.budget.room.notify_waiters();
        }
    }

    /// The same memory serves another purpose from now on (dirty data that was committed is cached data).
    pub fn recharge(&self, kind: Kind) {
        let mut inner = self.budget.lock();
        let old = self.kind();
        if old == kind {
            return;
        }
        self.kind.store(kind as u8, Ordering::Relaxed);
        inner.sub(old, self.bytes, self.share.as_ref());
        inner.add(kind, self.bytes, self.share.as_ref());
        drop(inner);
        self.budget.room.notify_waiters();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.budget.lock();
        inner.sub(self.kind(), self.bytes, self.share.as_ref());
        drop(inner);
        self.budget.room.notify_waiters();
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
        fn relieve(self: Arc<Self>, _start: bool) -> Relief {
            self.0.lock().unwrap().take();
            Relief::Nothing
        }
        fn volume(&self) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn writers_wait_for_relief() {
        let budget = Budget::new(32 * MIB);
        let share = budget.join();
        let permit = share.try_acquire(budget.dirty_limit);
        assert!(permit.is_some());
        let holder = Arc::new(Holder(Mutex::new(permit)));
        let weak: Weak<Holder> = Arc::downgrade(&holder);
        budget.offer_relief(weak);
        let got = share.acquire(MIB, Duration::from_secs(60)).await;
        assert_eq!(got.unwrap().bytes(), MIB);
    }

    #[tokio::test]
    async fn writers_wake_when_room_comes_back_and_give_up_when_it_does_not() {
        let budget = Budget::new(32 * MIB);
        let share = budget.join();
        let permit = share.try_acquire(budget.dirty_limit).unwrap();
        assert!(share.acquire(MIB, Duration::ZERO).await.is_none());
        let waiter =
            tokio::spawn(async move { share.acquire(MIB, Duration::from_secs(600)).await.is_some() });
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
    fn a_waiting_write_pushes_cached_data_out_but_stops_no_other_write() {
        let budget = Budget::new(32 * MIB);
        let data = entry(&budget, budget.limit);
        let copy = budget.charge_waiting(2 * budget.waiting_limit);
        assert!(data.permit.lock().unwrap().is_none());
        let dirty = budget.try_acquire(Kind::Dirty, budget.dirty_limit);
        assert!(dirty.is_some());
        assert!(
            budget.try_acquire(Kind::Cached, budget.limit / 4).is_none(),
            "cached data keeps clear of it"
        );
        drop((copy, dirty));
        assert_eq!(budget.usage().dirty, 0);
    }

    #[test]
    fn metadata_never_stops_writers() {
        let budget = Budget::new(32 * MIB);
        let share = budget.join();
        let data = entry(&budget, MIB);
        let metadata = budget.charge_metadata(64 * MIB);
        assert!(data.permit.lock().unwrap().is_none());
        assert_eq!(budget.excess(), 64 * MIB - budget.metadata_limit / 4 * 3);
        let dirty = share.try_acquire(budget.dirty_limit);
        assert!(dirty.is_some());
        drop(metadata);
        assert_eq!(budget.excess(), 0);
    }

    /// Files of a volume whose service does not answer, and of one whose service does.
    #[derive(Debug)]
    struct Sender {
        volume: usize,
        answers: bool,
        sending: AtomicBool,
        held: Mutex<Option<Permit>>,
    }

    impl Sender {
        fn new(budget: &Arc<Budget>, share: &Arc<Share>, answers: bool) -> Arc<Self> {
            let permit = share.try_acquire(MIB);
            assert!(permit.is_some());
            let sender = Arc::new(Self {
                volume: share.id(),
                answers,
                sending: AtomicBool::new(false),
                held: Mutex::new(permit),
            });
            let weak: Weak<Self> = Arc::downgrade(&sender);
            budget.offer_relief(weak);
            sender
        }
    }

    impl Relieve for Sender {
        fn relieve(self: Arc<Self>, start: bool) -> Relief {
            let mut held = self.held.lock().unwrap();
            if held.is_none() {
                return Relief::Nothing;
            }
            if self.sending.load(Ordering::Relaxed) {
                if self.answers {
                    held.take();
                    return Relief::Freed;
                }
                return Relief::Working;
            }
            if !start {
                return Relief::Idle;
            }
            self.sending.store(true, Ordering::Relaxed);
            Relief::Working
        }
        fn volume(&self) -> usize {
            self.volume
        }
    }

    #[test]
    fn a_volume_that_does_not_answer_holds_nobody_else_up() {
        let budget = Budget::new(32 * MIB);
        let (dead, healthy) = (budget.join(), budget.join());
        let stuck: Vec<_> = (0..8).map(|_| Sender::new(&budget, &dead, false)).collect();
        let sent: Vec<_> = (0..4).map(|_| Sender::new(&budget, &healthy, true)).collect();
        let _rest = budget.try_acquire(Kind::Dirty, budget.dirty_limit - budget.usage().dirty);
        assert!(healthy.try_acquire(MIB).is_none());
        // Once to send, once to drop what was sent.
        budget.relieve(MIB, Some(&healthy));
        budget.relieve(MIB, Some(&healthy));
        assert!(healthy.try_acquire(MIB).is_some());
        let sending = |of: &[Arc<Sender>]| of.iter().filter(|s| s.sending.load(Ordering::Relaxed)).count();
        assert_eq!(sending(&stuck), RELIEF_PARALLEL);
        assert_eq!(sending(&sent), 4);
        assert_eq!(
            sent.iter().filter(|s| s.held.lock().unwrap().is_none()).count(),
            1,
            "no more than needed"
        );
    }

    #[test]
    fn every_volume_has_a_share_that_others_cannot_take() {
        let budget = Budget::new(32 * MIB);
        let alone = budget.join();
        let all = alone.try_acquire(budget.dirty_limit);
        assert!(all.is_some(), "who is alone has everything");
        drop(all);
        let others: Vec<_> = (0..3).map(|_| budget.join()).collect();
        let mut greedy = Vec::new();
        while let Some(permit) = alone.try_acquire(MIB / 2) {
            greedy.push(permit);
        }
        assert!(greedy.len() * MIB / 2 >= budget.dirty_limit / 2);
        let held: Vec<_> = others.iter().map(|o| o.try_acquire(DIRTY_SHARE)).collect();
        assert!(held.iter().all(Option::is_some));
        drop((greedy, held, others));
        let again = alone.try_acquire(budget.dirty_limit);
        assert!(again.is_some(), "volumes that are gone keep nothing");
    }
}
