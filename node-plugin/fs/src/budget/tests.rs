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
    let (share, other) = (budget.join(), budget.join());
    let mut held = Vec::new();
    for _ in 0..PROGRESS_READS {
        let (permit, progress) = share.acquire_read(MIB).await;
        assert!(progress.is_some());
        held.push((permit, progress));
    }
    let mut next = Box::pin(share.acquire_read(MIB));
    assert!(futures::poll!(next.as_mut()).is_pending());
    let others = other.acquire_read(MIB).await;
    assert!(others.1.is_some(), "each volume has one of its own");
    held.pop();
    let (permit, progress) = next.await;
    assert_eq!(permit.bytes(), MIB);
    assert!(progress.is_some());
}

/// Requests of a service that does not answer hold what they asked room for: no other volume's writes or
/// commits wait for that.
#[tokio::test]
async fn what_a_silent_volume_holds_keeps_no_other_from_its_part() {
    let budget = Budget::new(32 * MIB);
    let (silent, other) = (budget.join(), budget.join());
    let _flights = budget.try_acquire(Kind::Cached, budget.limit).unwrap();
    let right = silent.acquire_resend(u64::MAX).await;
    let mut next = Box::pin(silent.acquire_resend(1));
    assert!(futures::poll!(next.as_mut()).is_pending());
    let others = other.acquire_resend(u64::MAX).await;
    assert!(others.is_some());
    let mut more = Box::pin(other.acquire_resend(1));
    assert!(futures::poll!(more.as_mut()).is_pending(), "one at a time");
    drop(others);
    assert!(futures::poll!(more.as_mut()).is_ready());
    let write = other.try_acquire(MIB);
    assert!(write.is_some());
    assert!(other.try_acquire(DIRTY_SHARE).is_none(), "more than its part");
    drop(right);
    assert!(next.await.is_some());
}

/// What is granted without room has room of its own: the limit of everything else, and all of it, are
/// together the budget.
#[tokio::test]
async fn what_is_granted_without_room_stays_within_the_budget() {
    for total in [32 * MIB, 256 * MIB, 512 * MIB, 4096 * MIB] {
        let budget = Budget::new(total);
        let share = budget.join();
        let resend = share.acquire_resend(u64::MAX).await;
        assert!(resend.is_some());
        assert!(
            budget.resend.try_acquire().is_err(),
            "one commit of a large file takes all"
        );
        let _all = budget.try_acquire(Kind::Cached, budget.limit).unwrap();
        let mut held = Vec::new();
        while budget.progress.available_permits() > 0 {
            held.push(share.acquire_read(PROGRESS_BYTES).await);
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
    let share = budget.join();
    let copy = share.try_charge_waiting(budget.waiting_limit);
    assert!(copy.is_some());
    assert!(data.permit.lock().unwrap().is_none());
    let dirty = budget.try_acquire(Kind::Dirty, budget.dirty_limit);
    assert!(dirty.is_some());
    assert!(
        budget.try_acquire(Kind::Cached, budget.limit / 4 + MIB).is_none(),
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

/// Everybody's turn, as far as they can get now.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Writers that wait, and in which order they got room.
struct Writers {
    budget: Arc<Budget>,
    got: Arc<Mutex<Vec<&'static str>>>,
    held: Arc<Mutex<Vec<Permit>>>,
}

impl Writers {
    fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            got: Arc::default(),
            held: Arc::default(),
        }
    }

    async fn come(
        &self,
        share: &Arc<Share>,
        name: &'static str,
        bytes: usize,
    ) -> tokio::task::JoinHandle<()> {
        let (share, got, held) = (Arc::clone(share), Arc::clone(&self.got), Arc::clone(&self.held));
        let waiter = tokio::spawn(async move {
            if let Some(permit) = share.acquire(bytes, Duration::from_secs(120)).await {
                got.lock().unwrap().push(name);
                held.lock().unwrap().push(permit);
            }
        });
        settle().await;
        waiter
    }

    fn got(&self) -> Vec<&'static str> {
        self.got.lock().unwrap().clone()
    }

    /// Nobody waits, nothing is held.
    fn check_end(self) {
        self.held.lock().unwrap().clear();
        assert_eq!(self.budget.usage().dirty, 0);
        assert!(!self.budget.is_short());
    }
}

#[tokio::test(start_paused = true)]
async fn writers_get_room_in_the_order_they_came() {
    let budget = Budget::new(32 * MIB);
    let share = budget.join();
    let mut full: Vec<_> = (0..4).map(|_| share.try_acquire(MIB)).collect();
    let rest = share.try_acquire(budget.dirty_limit - 4 * MIB);
    assert!(rest.is_some());
    let writers = Writers::new(&budget);
    writers.come(&share, "large", 3 * MIB).await;
    writers.come(&share, "small", MIB).await;
    for left in 0..2 {
        full.pop();
        settle().await;
        assert_eq!(writers.got(), [""; 0], "{left}");
        assert!(
            share.try_acquire(4096).is_none(),
            "who has just come does not take the room of those who wait"
        );
    }
    full.pop();
    settle().await;
    assert_eq!(writers.got(), ["large"]);
    full.pop();
    settle().await;
    assert_eq!(writers.got(), ["large", "small"]);
    drop(rest);
    assert!(share.try_acquire(MIB).is_some());
    writers.check_end();
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_writer_that_is_gone() {
    let budget = Budget::new(32 * MIB);
    let share = budget.join();
    let one = share.try_acquire(MIB);
    let rest = share.try_acquire(budget.dirty_limit - MIB);
    let writers = Writers::new(&budget);
    let large = writers.come(&share, "large", 8 * MIB).await;
    writers.come(&share, "small", MIB).await;
    drop(one);
    settle().await;
    assert_eq!(writers.got(), [""; 0]);
    large.abort();
    settle().await;
    assert_eq!(writers.got(), ["small"]);
    drop(rest);
    writers.check_end();
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_has_its_most_holds_up_no_other_volumes_writers() {
    let budget = Budget::new(32 * MIB);
    let (dead, healthy) = (budget.join(), budget.join());
    let mut stuck = Vec::new();
    while let Some(permit) = dead.try_acquire(MIB) {
        stuck.push(permit);
    }
    let writers = Writers::new(&budget);
    writers.come(&dead, "dead", MIB).await;
    // Beyond what is kept for every volume.
    let mut held: Vec<_> = (0..3).map(|_| healthy.try_acquire(MIB)).collect();
    assert!(held.iter().all(Option::is_some), "{:?}", budget.usage());
    while let Some(permit) = healthy.try_acquire(MIB) {
        held.push(Some(permit));
    }
    writers.come(&healthy, "healthy", MIB).await;
    held.pop();
    settle().await;
    assert_eq!(writers.got(), ["healthy"]);
    drop((stuck, held));
    settle().await;
    assert_eq!(writers.got(), ["healthy", "dead"]);
    writers.check_end();
}

#[tokio::test(start_paused = true)]
async fn waiting_has_no_clock_while_others_get_room_and_ends_when_nobody_does() {
    let budget = Budget::new(32 * MIB);
    let share = budget.join();
    let mut full = Vec::new();
    while let Some(permit) = share.try_acquire(MIB) {
        full.push(permit);
    }
    let room = full.len();
    let writers = Writers::new(&budget);
    for _ in 0..room {
        writers.come(&share, "patient", MIB).await;
    }
    // An hour in all.
    while full.pop().is_some() {
        tokio::time::sleep(Duration::from_secs(119)).await;
    }
    assert_eq!(writers.got().len(), room);
    let begin = tokio::time::Instant::now();
    assert!(share.acquire(MIB, Duration::from_secs(120)).await.is_none());
    assert_eq!(begin.elapsed().as_secs(), 120);
    // The next one knows.
    assert!(share.acquire(MIB, Duration::from_secs(120)).await.is_none());
    assert!(begin.elapsed().as_secs() < 125);
    // And what is over is over.
    writers.held.lock().unwrap().clear();
    let again = share.try_acquire(budget.dirty_limit / MIB * MIB);
    assert!(again.is_some());
    let begin = tokio::time::Instant::now();
    assert!(share.acquire(MIB, Duration::from_secs(120)).await.is_none());
    assert_eq!(begin.elapsed().as_secs(), 120);
    drop(again);
    writers.check_end();
}

#[test]
fn there_are_only_so_many_copies_of_writes_that_wait() {
    let budget = Budget::new(32 * MIB);
    let first = budget.join();
    let all = first.try_charge_waiting(budget.waiting_limit);
    assert!(all.is_some(), "who is alone has everything");
    assert!(first.try_charge_waiting(1).is_none());
    drop(all);
    let second = budget.join();
    let one = first.try_charge_waiting(4096);
    assert!(one.is_some());
    assert!(first.try_charge_waiting(budget.waiting_limit / 2).is_none());
    let half = first.try_charge_waiting(budget.waiting_limit / 2 - 4096);
    let other = second.try_charge_waiting(budget.waiting_limit / 2);
    assert!(half.is_some() && other.is_some());
    // What others hold stops nobody altogether.
    let third = budget.join();
    let own = third.try_charge_waiting(MIB);
    assert!(own.is_some());
    assert!(third.try_charge_waiting(1).is_none());
    drop((one, half, other, own));
    assert_eq!(budget.usage().dirty, 0);
}

#[test]
fn a_part_of_a_permit_is_a_permit() {
    let budget = Budget::new(32 * MIB);
    let share = budget.join();
    let mut all = share.try_acquire(3 * MIB).unwrap();
    let part = all.split(MIB);
    assert_eq!((all.bytes(), part.bytes()), (2 * MIB, MIB));
    drop(all);
    assert_eq!(budget.usage().dirty, MIB);
    part.recharge(Kind::Cached);
    assert_eq!((budget.usage().dirty, budget.usage().cached), (0, MIB));
    drop(part);
    assert_eq!(budget.usage().cached, 0);
    assert_eq!(share.own.dirty.load(Ordering::Relaxed), 0);
}

/// A write on disk waits for its volume's turn: who comes later takes no room before it.
#[tokio::test(start_paused = true)]
async fn volumes_take_turns_for_room_to_wait_in() {
    let budget = Budget::new(32 * MIB);
    let (a, b, c) = (budget.join(), budget.join(), budget.join());
    let (half, page) = (budget.waiting_limit / 2, 4096);
    let mut all_of_a = a.try_charge_waiting(half).unwrap();
    let all_of_c = c.try_charge_waiting(half).unwrap();
    let some_of_a = all_of_a.split(MIB);
    let _one_of_b = b.try_charge_waiting(page).unwrap();
    let on_disk = {
        let b = Arc::clone(&b);
        tokio::spawn(async move { b.charge_waiting(MIB / 2, Duration::from_secs(120)).await })
    };
    settle().await;
    assert!(!on_disk.is_finished());
    drop(some_of_a);
    assert!(a.try_charge_waiting(page).is_none(), "it is the other one's turn");
    let got = on_disk.await.unwrap();
    assert!(got.is_some());
    let again = a.try_charge_waiting(page);
    assert!(again.is_some(), "nobody else waits");
    drop((all_of_a, all_of_c, got, again));
}

#[tokio::test(start_paused = true)]
async fn a_write_on_disk_waits_while_something_is_stored_and_no_longer() {
    let (progress, minute) = (blob_client::Progress::default(), Duration::from_secs(60));
    let budget = Budget::new(32 * MIB);
    let share = budget.join_with(progress.clone());
    let full = share.try_charge_waiting(budget.waiting_limit).unwrap();
    let begin = tokio::time::Instant::now();
    let gets_on = async {
        for _ in 0..5 {
            tokio::time::sleep(minute - Duration::from_secs(10)).await;
            progress.note_stored();
        }
    };
    let (got, ()) = tokio::join!(share.charge_waiting(MIB, minute), gets_on);
    assert!(got.is_none());
    assert_eq!(begin.elapsed().as_secs(), 5 * 50 + 60);
    // The next one knows.
    assert!(share.charge_waiting(MIB, minute).await.is_none());
    assert!(begin.elapsed().as_secs() < 5 * 50 + 65);
    drop(full);
    assert!(share.charge_waiting(MIB, minute).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_while_something_is_stored() {
    let (progress, minute) = (blob_client::Progress::default(), Duration::from_secs(60));
    let budget = Budget::new(32 * MIB);
    let share = budget.join_with(progress.clone());
    let full = share.try_acquire(budget.dirty_limit).unwrap();
    let begin = tokio::time::Instant::now();
    let gets_on = async {
        for _ in 0..5 {
            tokio::time::sleep(minute - Duration::from_secs(10)).await;
            progress.note_stored();
        }
        // What is only read makes no room.
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            progress.note();
        }
    };
    let (got, ()) = tokio::join!(share.acquire(MIB, minute), gets_on);
    assert!(got.is_none());
    assert_eq!(begin.elapsed().as_secs(), 5 * 50 + 60);
    drop(full);
}
