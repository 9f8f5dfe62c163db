//! The budget: who gets room, who waits, who makes way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::ledger::{DIRTY_SHARE, PROGRESS_READS, RESEND_SHARE, Streams};
use super::relief::RELIEF_PARALLEL;
use super::*;

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
    let waiter = tokio::spawn(async move { share.acquire(MIB, Duration::from_secs(600)).await.is_some() });
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

/// What is granted without room has room of its own: the limit of everything else, and all of it, are
/// together the budget.
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
