//! The system calls of a model, which runs many histories on one thread in virtual time: each call is a step
//! that takes its time, fails, returns too late or is the last one of its process, as the seed says.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::bounded::BoundedError;

/// A protection that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The mount that is there goes before the new one is there, and has answered.
    UnmountFirst,
    /// A dead mount is made anew by the next stage only.
    WaitForTheNextStage,
    /// Calls for one volume and at one path are at work at once.
    NoLock,
}

thread_local! {
    static HERE: RefCell<Option<Arc<Steps>>> = const { RefCell::new(None) };
}

/// The steps of the model that runs on this thread.
pub(crate) fn here() -> Option<Arc<Steps>> {
    HERE.with_borrow(Clone::clone)
}

/// Whether a model runs on this thread, without a protection.
pub(crate) fn lacks(mutant: Mutant) -> bool {
    here().is_some_and(|steps| steps.mutant == Some(mutant))
}

/// Ends the model of this thread when dropped.
pub(crate) struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

#[derive(Debug)]
struct Course {
    rng: StdRng,
    /// How many of the steps fail.
    failing: f64,
    /// Steps before the one at which the process is killed.
    killed_in: Option<usize>,
    trace: Option<Vec<String>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Steps {
    course: Mutex<Course>,
    killed: Notify,
    mutant: Option<Mutant>,
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It is not done.
    Refused(i32),
    /// It is done, and says otherwise.
    Failed(i32),
    /// It returns after its limit, and is done at its end, or at once.
    Late {
        after: Duration,
        at_once: bool,
    },
    /// The process is killed before it.
    KilledBefore,
    /// And after it.
    KilledAfter,
}

impl Steps {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>) -> Arc<Self> {
        Arc::new(Self {
            course: Mutex::new(Course {
                rng: StdRng::seed_from_u64(seed),
                failing: 0.0,
                killed_in: None,
                trace: None,
            }),
            killed: Notify::new(),
            mutant,
        })
    }

    /// From here on the calls of this thread are steps.
    pub(crate) fn install(self: &Arc<Self>) -> Installed {
        HERE.set(Some(Arc::clone(self)));
        Installed(())
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of the steps fail from here on.
    pub(crate) fn fail(&self, share: f64) {
        self.course().failing = share;
    }

    /// Kills the process after so many steps; never, if `None`.
    pub(crate) fn kill_in(&self, steps: Option<usize>) {
        self.course().killed_in = steps;
    }

    /// Returns when the process is killed.
    pub(crate) async fn killed(&self) {
        self.killed.notified().await;
    }

    /// Writes down what happens from here on.
    pub(crate) fn write_down(&self) {
        self.course().trace.get_or_insert_default();
    }

    /// One line of what happens.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.course().trace {
            trace.push(line());
        }
    }

    /// What has happened.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.course().trace.clone().unwrap_or_default()
    }

    /// In the place of a drawn number, so that a seed gives the same run again.
    pub(crate) fn draw(&self, range: std::ops::Range<f64>) -> f64 {
        self.course().rng.random_range(range)
    }

    fn next(&self, call: &'static str) -> (Duration, Fate) {
        let mut course = self.course();
        let course = &mut *course;
        let pause = match course.rng.random_range(0..4) {
            0 => Duration::from_millis(course.rng.random_range(1..30)),
            _ => Duration::ZERO,
        };
        let fate = match &mut course.killed_in {
            Some(0) => {
                course.killed_in = None;
                match course.rng.random_bool(0.5) {
                    true => Fate::KilledBefore,
                    false => Fate::KilledAfter,
                }
            }
            killed_in => {
                *killed_in = killed_in.map(|left| left - 1);
                match course.rng.random_bool(course.failing) {
                    true => failure(call, &mut course.rng),
                    false => Fate::Done,
                }
            }
        };
        if fate != Fate::Done
            && let Some(trace) = &mut course.trace
        {
            trace.push(format!("    {call}: {fate:?}"));
        }
        (pause, fate)
    }

    async fn kill(&self) -> Infallible {
        self.killed.notify_one();
        pending().await
    }

    /// A system call as [`super::bounded::bounded_or`] makes it.
    pub(super) async fn run<T, F, L>(
        self: Arc<Self>,
        call: &'static str,
        limit: Duration,
        work: F,
        late: L,
    ) -> Result<T, BoundedError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
        L: FnOnce(T) + Send + 'static,
    {
        let (pause, fate) = self.next(call);
        let failed = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            Err(BoundedError::Thread { call, source })
        };
        // Others go on meanwhile, also when it takes no time.
        tokio::task::yield_now().await;
        sleep(pause).await;
        match fate {
            Fate::Done => Ok(work()),
            Fate::Refused(errno) => failed(errno),
            Fate::Failed(errno) => {
                drop(work());
                failed(errno)
            }
            Fate::Late { after, at_once } => {
                let (done, work) = match at_once {
                    true => (Some(work()), None),
                    false => (None, Some(work)),
                };
                tokio::spawn(async move {
                    sleep(limit + after).await;
                    if let Some(value) = done.or_else(|| work.map(|work| work())) {
                        late(value);
                    }
                });
                sleep(limit).await;
                Err(BoundedError::TimedOut { call, limit })
            }
            Fate::KilledBefore => match self.kill().await {},
            Fate::KilledAfter => {
                drop(work());
                match self.kill().await {}
            }
        }
    }

    /// Work on a thread of its own that somebody waits for.
    pub(super) fn work(&self, work: impl FnOnce() + Send + 'static) {
        let takes = match self.course().rng.random_range(0..8) {
            // Longer than a call waits.
            0 => Duration::from_secs(100),
            _ => Duration::from_millis(5),
        };
        tokio::spawn(async move {
            sleep(takes).await;
            work();
        });
    }
}

fn failure(call: &'static str, rng: &mut StdRng) -> Fate {
    let errno = match call {
        "umount" | "rmdir" => libc::EBUSY,
        "attach" => libc::EINVAL,
        "mount" => libc::EPERM,
        "mkdir" => libc::ENOSPC,
        _ => libc::EIO,
    };
    let after = Duration::from_millis(rng.random_range(0..60_000));
    match (call, rng.random_range(0..4)) {
        ("attach" | "bind", 0) => Fate::Failed(libc::EIO),
        // A directory is not the kernel's here: what is mounted there does not keep it.
        ("mkdir" | "rmdir", _) => Fate::Refused(errno),
        // It has found its mount when it hangs.
        ("umount" | "umount -l", 1) => Fate::Late { after, at_once: true },
        (_, 1) => Fate::Late {
            after,
            at_once: rng.random_bool(0.5),
        },
        _ => Fate::Refused(errno),
    }
}
