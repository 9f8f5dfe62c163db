//! Who gets room, and what makes way for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::holders::Evict;
use super::ledger::{Budget, DIRTY_SHARE, Inner, Kind, RESEND_SHARE, RESEND_UNIT, unused};
use super::own::Own;
use super::permit::Permit;
use super::right::Right;
use super::share::Share;
use crate::sync::MutexGuard;

impl Share {
    /// Room for `bytes` of accepted writes, if there is any without waiting.
    pub fn try_acquire(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        self.budget.try_for(Kind::Dirty, bytes, Some(self), None)
    }

    /// Room for `bytes` of accepted writes; waits in its volume's queue, and has the oldest dirty data staged
    /// meanwhile. `None` when the volume got no room for as long as `patience`.
    pub async fn acquire(self: &Arc<Self>, bytes: usize, patience: Duration) -> Option<Permit> {
        self.budget.acquire_dirty(bytes, patience, Some(self)).await
    }

    /// Room for a read that somebody waits for: granted even when nothing can be dropped, but then only to a
    /// few reads at a time, and always to one of each volume. The right is to be kept until the bytes have
    /// arrived.
    pub(crate) async fn acquire_read(&self, bytes: usize) -> (Permit, Option<Right<'_>>) {
        let budget = &self.budget;
        if let Some(permit) = budget.try_acquire(Kind::Cached, bytes) {
            return (permit, None);
        }
        let progress = self.reads.get(&budget.progress, 1).await;
        match budget.try_acquire(Kind::Cached, bytes) {
            Some(permit) => (permit, None),
            None => (budget.force(Kind::Cached, bytes), Some(progress)),
        }
    }

    /// Waits for the right to hold `bytes` of a blob that a commit has read only to send them again; kept
    /// until they are sent. Room for them is set aside, for as many as all volumes have at a time; one of
    /// each volume goes on beyond that.
    pub(crate) async fn acquire_resend(&self, bytes: u64) -> Option<Right<'_>> {
        if bytes == 0 {
            return None;
        }
        let budget = &self.budget;
        let most = budget.total / RESEND_SHARE / RESEND_UNIT;
        let units = bytes.div_ceil(RESEND_UNIT as u64).min(most as u64) as u32;
        Some(self.resends.get(&budget.resend, units).await)
    }
}

impl Budget {
    /// Room for `bytes`, dropping cached data if needed; never blocks.
    pub fn try_acquire(self: &Arc<Self>, kind: Kind, bytes: usize) -> Option<Permit> {
        self.try_for(kind, bytes, None, None)
    }

    pub(super) fn try_for(
        self: &Arc<Self>,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
        ticket: Option<u64>,
    ) -> Option<Permit> {
        loop {
            if let Some(permit) = self.take(kind, bytes, share, ticket) {
                return Some(permit);
            }
            let inner = self.lock();
            let others_turn = kind == Kind::Dirty && !self.in_turn(&inner, bytes, share, ticket);
            if others_turn || self.dirty_full(&inner, kind, bytes, share) {
                return None;
            }
            drop(inner);
            if !self.evict_one() {
                return self.take_own_part(kind, bytes, share, ticket);
            }
        }
    }

    /// Charges metadata. Always granted; grow and shrink it with [`Permit::resize`].
    pub fn charge_metadata(self: &Arc<Self>, bytes: usize) -> Permit {
        let permit = self.force(Kind::Metadata, bytes);
        self.shrink();
        self.note_crowd();
        permit
    }

    /// Takes room whether there is any or not.
    pub(crate) fn force(self: &Arc<Self>, kind: Kind, bytes: usize) -> Permit {
        self.lock().add(kind, bytes, None);
        self.permit(kind, bytes, None)
    }

    /// Makes `entry` known as droppable.
    pub(crate) fn offer(&self, entry: Weak<dyn Evict>) {
        let mut inner = self.lock();
        inner.clean.push_back(entry);
        if inner.clean.len() > inner.sweep_at.max(256) {
            inner.clean.retain(|e| e.strong_count() > 0);
            inner.sweep_at = inner.clean.len() * 2;
        }
        // Who waits for room may drop it.
        inner.queues.wake_first();
    }

    pub(super) fn take(
        self: &Arc<Self>,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
        ticket: Option<u64>,
    ) -> Option<Permit> {
        let inner = self.lock();
        if self.no_room(&inner, kind, bytes, share) {
            return None;
        }
        if kind == Kind::Dirty && !self.in_turn(&inner, bytes, share, ticket) {
            return None;
        }
        Some(self.grant(inner, kind, bytes, share))
    }

    fn grant(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner>,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
    ) -> Permit {
        inner.add(kind, bytes, share.map(|share| &*share.own));
        drop(inner);
        if let Some(share) = share {
            share.own.stuck.store(false, Ordering::Relaxed);
        }
        self.permit(kind, bytes, share)
    }

    /// What every volume can hold whatever the others do, it can hold also while nothing of what is cached
    /// can be dropped: requests of a service that does not answer hold that.
    fn take_own_part(
        self: &Arc<Self>,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
        ticket: Option<u64>,
    ) -> Option<Permit> {
        let share = share.filter(|_| kind == Kind::Dirty)?;
        let inner = self.lock();
        let own = share.own.dirty.load(Ordering::Relaxed) + bytes;
        let full = own > DIRTY_SHARE || inner.of(Kind::Dirty) + bytes > self.dirty_limit;
        if full || !self.in_turn(&inner, bytes, Some(share), ticket) {
            return None;
        }
        Some(self.grant(inner, kind, bytes, Some(share)))
    }

    pub(super) fn no_room(
        &self,
        inner: &Inner,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
    ) -> bool {
        if kind != Kind::Dirty {
            return inner.sum() + bytes > self.limit;
        }
        // What others hold beyond their part does not stop writers: it would for ever, if they held it for
        // ever.
        let others = inner.of(Kind::Metadata).min(self.metadata_limit)
            + inner.of(Kind::Waiting).min(self.waiting_limit)
            + inner.of(Kind::Cached)
            + inner.of(Kind::Lost);
        inner.of(Kind::Dirty) + others + bytes > self.limit || self.dirty_full(inner, kind, bytes, share)
    }

    pub(super) fn dirty_full(
        &self,
        inner: &Inner,
        kind: Kind,
        bytes: usize,
        share: Option<&Arc<Share>>,
    ) -> bool {
        kind == Kind::Dirty
            && (inner.of(Kind::Dirty) + bytes > self.dirty_limit
                || share.is_some_and(|share| self.over_own(inner, bytes, &share.own)))
    }

    /// True when `bytes` more would be too much of one volume: beyond its share there must be left what is
    /// kept for others.
    pub(super) fn over_own(&self, inner: &Inner, bytes: usize, of: &Own) -> bool {
        let own = of.dirty.load(Ordering::Relaxed);
        if own + bytes <= DIRTY_SHARE || inner.volumes <= 1 {
            return false;
        }
        let others = inner.reserved.saturating_sub(unused(own));
        // What a device lost of its requests is the volume's, too.
        let lost = of.lost.load(Ordering::Relaxed);
        own + lost + bytes > self.dirty_limit / 4 * 3
            || inner.of(Kind::Dirty) + bytes + others > self.dirty_limit
    }

    pub(super) fn is_full(&self, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> bool {
        self.no_room(&self.lock(), kind, bytes, share)
    }

    /// Drops cached data until the sum fits again, as far as that is possible.
    pub(super) fn shrink(&self) {
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
}
