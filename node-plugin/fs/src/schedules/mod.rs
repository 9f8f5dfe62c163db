//! Threads at work on one file, one tree or one budget, in schedules that `shuttle` draws: at each lock and
//! each request it decides who goes on. What was acknowledged is there at the end, the table agrees with
//! itself, what is counted is at zero again, and nobody waits for ever. A schedule that fails is printed,
//! with its seed.

mod budget;
mod file;
mod tree;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use vsc_driver::buffer::Arena;

use crate::budget::Budget;
use crate::content::{Env, Tuning};
use crate::several_mounts::jitter::Jitter;
use crate::store::Store;
use crate::store::fake::FakeStore;
use crate::sync::{Mutex, scheduled};

/// Schedules of one scenario.
const SCHEDULES: usize = 1000;
/// A future of a whole operation, unoptimized, in each thread.
const STACK: usize = 1 << 20;

/// The scenario, in `count` schedules; each has threads that [`together`] starts.
fn in_schedules(count: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let (seed, count) = drawn(count);
    run(RandomScheduler::new_from_seed(seed, count), scenario);
}

/// The same, where one thread goes on as long as it can before another one does, but for a few moments: what
/// needs many steps of one between two of another.
fn in_priorities(count: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let (seed, count) = drawn(count);
    run(PctScheduler::new_from_seed(seed, 3, count), scenario);
}

/// Which schedules, and how many.
fn drawn(count: usize) -> (u64, usize) {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seed = number("BLOB_FS_SCHEDULES_SEED").unwrap_or(7);
    let count = number("BLOB_FS_SCHEDULES").map_or(count, |more: u64| more as usize);
    (seed, count)
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    scheduled::by_shuttle(|| {
        shuttle::Runner::new(scheduler, config).run(scenario);
    });
}

/// Runs futures to their ends, each on a thread of its own.
fn together(work: Vec<futures::future::BoxFuture<'static, ()>>) {
    let threads: Vec<_> = work
        .into_iter()
        .map(|work| shuttle::thread::spawn(move || shuttle::future::block_on(work)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A container in memory, and what files over it need. Nothing runs on the runtime: what tasks there do
/// after some time does not come in these schedules.
struct World {
    store: Arc<FakeStore>,
    env: Env,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new(tuning: Tuning) -> Self {
        let store = Arc::new(FakeStore::new());
        let as_store: Arc<dyn Store> = Jitter::new(Arc::clone(&store), 0, None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let arena = Arena::new(64 << 20).unwrap();
        let env = Env {
            tuning,
            ..Env::new(as_store, Budget::new(32 << 20), arena, runtime.handle().clone())
        };
        Self {
            store,
            env,
            _runtime: runtime,
        }
    }

    fn content(&self, name: &str) -> Option<String> {
        let content = self.store.content(name)?;
        Some(String::from_utf8_lossy(&content).into_owned())
    }
}

/// What looks under one lock and acts under another is noticed: the schedules do take turns between locks.
#[test]
fn a_check_and_an_act_under_two_locks_is_noticed() {
    let counts_up = |apart: bool| {
        move || {
            let count = Arc::new(Mutex::new(0));
            let work = |_| {
                let count = Arc::clone(&count);
                Box::pin(async move {
                    if apart {
                        let seen = *count.lock();
                        *count.lock() = seen + 1;
                    } else {
                        *count.lock() += 1;
                    }
                }) as _
            };
            together((0..2).map(work).collect());
            assert_eq!(*count.lock(), 2);
        }
    };
    in_schedules(100, counts_up(false));
    let noticed = catch_unwind(AssertUnwindSafe(|| in_schedules(100, counts_up(true))));
    assert!(noticed.is_err());
}
