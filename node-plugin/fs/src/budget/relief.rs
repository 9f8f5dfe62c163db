//! Writers that wait for room, and the dirty data that is sent to make it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::holders::{Relief, Relieve};
use super::ledger::{Budget, Kind};
use super::permit::Permit;
use super::share::Share;
use crate::sync::in_time;

/// How long a writer waits for room before it asks for relief again. Relief may have failed (the service was
/// away) and then nobody else would try again.
const RELIEF_RETRY: Duration = Duration::from_millis(500);

/// Holders of one volume that are made to send at the same time.
pub(super) const RELIEF_PARALLEL: usize = 4;

impl Budget {
    pub(super) async fn acquire_dirty(
        self: &Arc<Self>,
        bytes: usize,
        patience: Duration,
        share: Option<&Arc<Share>>,
    ) -> Option<Permit> {
        let place = self.queue_up(bytes, share);
        let ticket = Some(place.ticket());
        loop {
            if let Some(permit) = self.try_for(Kind::Dirty, bytes, share, ticket) {
                place.served();
                return Some(permit);
            }
            let first = place.is_first();
            if first {
                self.relieve(bytes, share);
                if let Some(permit) = self.try_for(Kind::Dirty, bytes, share, ticket) {
                    place.served();
                    return Some(permit);
                }
            }
            let (now, deadline) = (Instant::now(), place.deadline(patience));
            if now >= deadline {
                if let Some(share) = share {
                    share.own.stuck.store(true, Ordering::Relaxed);
                }
                return None;
            }
            let until = if first {
                deadline.min(now + RELIEF_RETRY)
            } else {
                deadline
            };
            // Woken or not: it looks again.
            let _ = in_time(until, place.wake.notified()).await;
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

    /// Asks holders of dirty data to make room for `bytes`, the oldest first: to drop what is in the service,
    /// and if that is not enough, to send.
    pub(crate) fn relieve(self: &Arc<Self>, bytes: usize, share: Option<&Arc<Share>>) {
        // What other volumes hold is of no use to one that is at its own limit.
        let only = share
            .filter(|share| {
                let inner = self.lock();
                inner.of(Kind::Dirty) + bytes <= self.dirty_limit && self.over_own(&inner, bytes, &share.own)
            })
            .map(Share::id);
        let mut holders = std::mem::take(&mut self.lock().dirty);
        let mut keep = VecDeque::with_capacity(holders.len());
        let mut working: HashMap<usize, usize> = HashMap::new();
        let mut refused = HashSet::new();
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
                Relief::Resting => drop(refused.insert(volume)),
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
            let volume = holder.volume();
            let working = working.entry(volume).or_default();
            // The others are likely to fare no better.
            let most = if refused.contains(&volume) {
                1
            } else {
                RELIEF_PARALLEL
            };
            if *working < most {
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
}
