//! Writers that wait for room in one budget. Time stands still: whoever is not woken waits for ever, and that
//! is found.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{SCHEDULES, in_priorities, in_schedules, together};
use crate::budget::{Budget, Evict, Kind, Permit, Share};
use crate::sync::Mutex;

const MIB: usize = 1 << 20;
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(24 * 3600);

type Work = BoxFuture<'static, ()>;

fn in_all(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    in_schedules(SCHEDULES / 2, scenario.clone());
    in_priorities(SCHEDULES / 2, scenario);
}

/// A write that has come, and waits.
fn came(share: &Arc<Share>, bytes: usize) -> BoxFuture<'static, Permit> {
    let share = Arc::clone(share);
    let mut write: BoxFuture<'static, _> =
        Box::pin(async move { share.acquire(bytes, NEVER).await.expect("room") });
    assert!((&mut write).now_or_never().is_none(), "there was room");
    write
}

/// The same, and what it got is given back at once.
fn passes(write: BoxFuture<'static, Permit>) -> Work {
    Box::pin(async move { drop(write.await) })
}

fn drops<T: Send + 'static>(held: T) -> Work {
    Box::pin(async move { drop(held) })
}

fn at_rest(budget: &Budget) {
    let usage = budget.usage();
    assert_eq!((usage.dirty, usage.waiting, usage.cached), (0, 0, 0), "{usage:?}");
    assert!(!budget.is_short());
}

#[test]
fn writers_get_room_in_the_order_they_came() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let share = budget.join();
        let (dirty, _) = budget.limits();
        let all = share.try_acquire(dirty).unwrap();
        let got = Arc::new(std::sync::Mutex::new(Vec::new()));
        // No two of them fit.
        let writes: Vec<_> = (0..3).map(|_| came(&share, dirty / 2 + 1)).collect();
        let mut work: Vec<Work> = vec![drops(all)];
        for (number, write) in writes.into_iter().enumerate() {
            let got = Arc::clone(&got);
            work.push(Box::pin(async move {
                let room = write.await;
                got.lock().unwrap().push(number);
                drop(room);
            }));
        }
        together(work);
        assert_eq!(*got.lock().unwrap(), [0, 1, 2]);
        at_rest(&budget);
    });
}

/// Cached data that can be dropped.
#[derive(Debug)]
struct Entry(Mutex<Option<Permit>>);

impl Evict for Entry {
    fn evict(&self) -> bool {
        // Given back without the lock.
        let held = self.0.lock().take();
        held.is_some()
    }
}

/// Room comes back in each way there is: permits are dropped, shrink, and become cached data that makes way.
#[test]
fn nobody_waits_where_there_is_room() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let share = budget.join();
        let (dirty, limit) = budget.limits();
        // What readers wait for cannot be dropped.
        let read = budget.force(Kind::Cached, limit - dirty);
        let mut all = share.try_acquire(dirty).unwrap();
        let (shrinks, stored) = (all.split(dirty / 3), all.split(dirty / 3));
        // The first one fits only when what was stored makes way.
        let writes = [dirty / 4 * 3, MIB, dirty / 3].map(|bytes| came(&share, bytes));
        let mut work: Vec<Work> = writes.into_iter().map(passes).collect();
        work.push(drops(all));
        let (done, entries) = (Arc::clone(&budget), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&entries);
        work.push(Box::pin(async move {
            let mut shrinks = shrinks;
            shrinks.resize(1);
            kept.lock().push(Arc::new(Entry(Mutex::new(Some(shrinks)))));
        }));
        let kept = Arc::clone(&entries);
        work.push(Box::pin(async move {
            stored.recharge(Kind::Cached);
            let entry = Arc::new(Entry(Mutex::new(Some(stored))));
            let weak: Weak<Entry> = Arc::downgrade(&entry);
            done.offer(weak);
            kept.lock().push(entry);
        }));
        together(work);
        drop((entries, read));
        at_rest(&budget);
    });
}

/// Whoever waits in front of others may leave at any moment: also when it has just been woken.
#[test]
fn room_is_not_lost_with_a_writer_that_leaves() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let (share, other) = (budget.join(), budget.join());
        let (dirty, _) = budget.limits();
        let some = share.try_acquire(dirty / 2).unwrap();
        // There is room for the small ones, but not before the large one.
        let large = came(&share, dirty / 3);
        let small = [came(&share, MIB), came(&share, 2 * MIB)];
        let mut work: Vec<Work> = small.into_iter().map(passes).collect();
        work.extend([drops(large), drops(some)]);
        work.push(Box::pin(async move {
            drop(other.acquire(3 * MIB, NEVER).await.expect("room"))
        }));
        together(work);
        at_rest(&budget);
    });
}

/// Nobody gives anything back: the one that leaves was all that the others waited for.
#[test]
fn who_leaves_wakes_those_behind() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let share = budget.join();
        let (dirty, _) = budget.limits();
        let some = share.try_acquire(dirty / 2).unwrap();
        let large = came(&share, dirty);
        let small = [came(&share, MIB), came(&share, MIB)];
        let mut work: Vec<Work> = small.into_iter().map(passes).collect();
        work.push(drops(large));
        together(work);
        drop(some);
        at_rest(&budget);
    });
}

/// A volume takes what it can get; what another one has for itself is there at each moment.
#[test]
fn a_volume_never_has_more_than_its_share() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let (greedy, modest) = (budget.join(), budget.join());
        let (dirty, _) = budget.limits();
        let mut work: Vec<Work> = Vec::new();
        for bytes in [4, 5, 6, 3] {
            let greedy = Arc::clone(&greedy);
            let budget = Arc::clone(&budget);
            work.push(Box::pin(async move {
                for _ in 0..2 {
                    let room = greedy.acquire(bytes * MIB, NEVER).await.unwrap();
                    assert!(greedy.dirty() <= dirty / 4 * 3, "{}", greedy.dirty());
                    assert!(budget.usage().dirty <= dirty);
                    drop(room);
                }
            }));
        }
        let own = Arc::clone(&modest);
        work.push(Box::pin(async move {
            for _ in 0..2 {
                let one = own.try_acquire(MIB).expect("its own room");
                let two = own.try_acquire(MIB).expect("the rest of it");
                drop((one, two));
            }
        }));
        together(work);
        assert_eq!((greedy.dirty(), modest.dirty()), (0, 0));
        at_rest(&budget);
    });
}

/// What was kept for a volume that ends is for those that wait.
#[test]
fn a_volume_that_ends_leaves_its_part_to_others() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let (share, other) = (budget.join(), budget.join());
        let (dirty, _) = budget.limits();
        let some = share.try_acquire(dirty / 2).unwrap();
        let more = came(&share, dirty / 3);
        together(vec![passes(more), drops(other)]);
        drop(some);
        at_rest(&budget);
    });
}

/// Writes whose data is on disk wait for memory, while copies of others come and go.
#[test]
fn copies_of_waiting_writes_let_those_on_disk_in() {
    in_all(|| {
        let budget = Budget::scheduled(32 * MIB);
        let (share, other) = (budget.join(), budget.join());
        let mut copies = Vec::new();
        for share in [&share, &other] {
            while let Some(copy) = share.try_charge_waiting(MIB) {
                copies.push(copy);
            }
        }
        let mut work: Vec<Work> = copies.into_iter().map(drops).collect();
        for share in [&share, &share, &other] {
            let share = Arc::clone(share);
            work.push(Box::pin(
                async move { drop(share.charge_waiting(MIB, NEVER).await) },
            ));
        }
        together(work);
        at_rest(&budget);
    });
}
