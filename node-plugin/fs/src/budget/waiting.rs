//! Writes that find no room and wait for it with a copy of their data: how many copies there may be, and
//! whose turn it is to have one. The data of those that come later waits on disk (`spool`).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{Budget, Inner, Kind};
use super::own::Own;
use super::permit::Permit;
use super::queues::Spooler;
use super::share::Share;
use super::spool::Spooled;
use crate::sync::in_time;

impl Share {
    /// Room for the copy of a write that waits, while there are not too many of all volumes, and of this one:
    /// cached data makes way. Copies stop no other write.
    pub(crate) fn try_charge_waiting(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        // Who waits on disk came earlier.
        let _nobody = self.spooled.try_lock().ok()?;
        self.take_waiting(bytes, None)
    }

    /// The same for a write whose data is on disk: waits for its turn. `None` when its volume got no room for
    /// as long as `patience`.
    pub(crate) async fn charge_waiting(self: &Arc<Self>, bytes: usize, patience: Duration) -> Option<Permit> {
        let since = Instant::now();
        let gives_up = || self.budget.gives_up(since, patience, Some(self));
        let mut earlier = pin!(self.spooled.lock());
        let _first = loop {
            match in_time(gives_up(), &mut earlier).await {
                Some(first) => break first,
                None if gives_up() > Instant::now() => {}
                None => return None,
            }
        };
        let place = Place::new(self, bytes);
        loop {
            let room = self.budget.waiting_room.notified();
            tokio::pin!(room);
            // From here on no release is missed.
            room.as_mut().enable();
            if let Some(permit) = self.take_waiting(bytes, Some(place.ticket)) {
                return Some(permit);
            }
            if in_time(gives_up(), room).await.is_none() && gives_up() <= Instant::now() {
                self.own.stuck.store(true, Ordering::Relaxed);
                return None;
            }
        }
    }

    /// `ticket`: none for who has just come.
    fn take_waiting(self: &Arc<Self>, bytes: usize, ticket: Option<u64>) -> Option<Permit> {
        let budget = &self.budget;
        let mut inner = budget.lock();
        // One of its own each volume may always have: what others hold does not stop it.
        let none = self.own.waiting.load(Ordering::Relaxed) == 0;
        if !none {
            let full = inner.of(Kind::Waiting) + bytes > budget.waiting_limit;
            if full
                || budget.has_its_most(&inner, &self.own, bytes)
                || budget.others_turn(&inner, self, ticket)
            {
                return None;
            }
        }
        inner.add(Kind::Waiting, bytes, Some(&self.own));
        drop(inner);
        let permit = budget.permit(Kind::Waiting, bytes, Some(self));
        budget.shrink();
        Some(permit)
    }

    /// Puts the data of a write on disk that finds no memory even to wait in. `None`: there is no place.
    pub(crate) fn spool(&self, data: &[u8]) -> Option<Spooled> {
        self.budget.spool.put(data)
    }
}

impl Budget {
    /// Whether so many bytes more would be too much of one volume.
    fn has_its_most(&self, inner: &Inner, own: &Own, bytes: usize) -> bool {
        inner.volumes > 1 && own.waiting.load(Ordering::Relaxed) + bytes > self.waiting_limit / 2
    }

    /// Whether a write of another volume came earlier that waits for what all share.
    fn others_turn(&self, inner: &Inner, share: &Share, ticket: Option<u64>) -> bool {
        let earlier = |other: u64| ticket.is_none_or(|own| other < own);
        inner
            .queues
            .spooled
            .iter()
            .take_while(|(other, _)| earlier(**other))
            .map(|(_, first)| first)
            .any(|first| {
                !Arc::ptr_eq(&first.own, &share.own) && !self.has_its_most(inner, &first.own, first.bytes)
            })
    }
}

/// The place of a volume's first write on disk among those of all volumes; left on drop, also when nobody
/// waits for the write any more.
struct Place<'a> {
    budget: &'a Budget,
    ticket: u64,
}

impl<'a> Place<'a> {
    fn new(share: &'a Share, bytes: usize) -> Self {
        let mut inner = share.budget.lock();
        let ticket = inner.queues.ticket();
        let own = Arc::clone(&share.own);
        inner.queues.spooled.insert(ticket, Spooler { own, bytes });
        drop(inner);
        Self {
            budget: &share.budget,
            ticket,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.lock().queues.spooled.remove(&self.ticket);
        // It may be the next one's turn.
        self.budget.waiting_room.notify_waiters();
    }
}
