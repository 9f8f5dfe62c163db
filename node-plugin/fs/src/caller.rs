//! Who waits for an operation: for how long, and whether still.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blob_client::{Patience, Progress};
use thiserror::Error;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

tokio::task_local! {
    /// `None`: what runs here is done whoever waits for it, or does not any more.
    static CALLER: Option<Caller>;
}

/// Whoever waits for an operation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller(Arc<AtomicBool>);

impl Caller {
    /// Runs an operation that this one waits for.
    pub(crate) fn waits_for<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        CALLER.scope(Some(self.clone()), operation)
    }

    /// The caller was told that the operation failed.
    pub(crate) fn leaves(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_left(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why what had to wait is not done (`EIO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not tried: nothing got on while it waited for others")]
pub struct GivenUp;

/// An error once the caller of the operation that runs here was told that it failed: what was not begun by
/// then is not carried out later. For who has waited for a turn and has done nothing yet.
pub(crate) fn still_waits() -> Result<(), GivenUp> {
    let left = CALLER.try_with(|caller| caller.as_ref().is_some_and(Caller::has_left));
    match left {
        Ok(true) => Err(GivenUp),
        // Work that nobody waits for goes on.
        Ok(false) | Err(_) => Ok(()),
    }
}

/// Takes back what an operation has begun: that is done also when its caller has left.
pub(crate) fn undoing<F: Future>(undo: F) -> impl Future<Output = F::Output> {
    CALLER.scope(None, undo)
}

/// How long a caller waits: as long as the volume gets on, and so much longer.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    patience: Patience,
    progress: Progress,
}

impl Clock {
    pub(crate) fn new(patience: Patience, progress: &Progress) -> Self {
        Self {
            patience,
            progress: progress.clone(),
        }
    }

    /// How long that is without progress.
    pub(crate) fn timeout(&self) -> Duration {
        self.patience.whole()
    }

    /// Whether the volume has got on after that.
    pub(crate) fn got_on_after(&self, at: Instant) -> bool {
        self.progress.latest() > at
    }

    /// Whether nothing got on for as long as an attempt of a call has, of work that began then.
    pub(crate) fn was_silent_since(&self, began: Instant) -> bool {
        self.progress.latest().max(began).elapsed() >= self.patience.attempt()
    }

    /// What the work gives; `None` when the volume has got nothing done for so long.
    pub(crate) async fn within<F: Future + Unpin>(&self, mut work: F) -> Option<F::Output> {
        let since = Instant::now();
        let ends = || self.progress.latest().max(since) + self.timeout();
        loop {
            match timeout_at(ends(), &mut work).await {
                Ok(output) => return Some(output),
                Err(_elapsed) if ends() > Instant::now() => {}
                Err(_elapsed) => return None,
            }
        }
    }
}

/// Work that is done for one after the other, and that one who gets no answer keeps all others from. Who
/// stands in line meanwhile takes that for his own answer, if nobody in between got a better one: each would
/// wait for it anew.
#[derive(Debug, Default)]
pub(crate) struct Line {
    turn: Arc<Mutex<()>>,
    outcomes: Arc<Outcomes>,
}

#[derive(Debug, Default)]
struct Outcomes {
    /// Turns that ended without an answer.
    silent: AtomicU64,
    /// Nobody got an answer since the last of these.
    silence: AtomicBool,
}

/// Somebody's place in a [`Line`].
#[derive(Debug)]
pub(crate) struct Place(Option<(Caller, u64)>);

impl Place {
    /// [`still_waits`], also in a task of its own.
    pub(crate) fn still_waits(&self) -> Result<(), GivenUp> {
        match &self.0 {
            Some((caller, _)) if caller.has_left() => Err(GivenUp),
            _ => Ok(()),
        }
    }

    /// Runs what was waited for there, in whatever task: for the same caller.
    pub(crate) fn waits_for<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        CALLER.scope(self.0.as_ref().map(|(caller, _)| caller.clone()), operation)
    }
}

/// It is one's turn while this lives.
#[derive(Debug)]
pub(crate) struct Front {
    _guard: OwnedMutexGuard<()>,
    outcomes: Arc<Outcomes>,
    began: Instant,
}

impl Line {
    /// The caller of the operation that runs here gets in line. Work that nobody waits for (what closed files
    /// owe, the end of the volume) has to try for itself, whatever became of others.
    pub(crate) fn place(&self) -> Place {
        let silent = self.outcomes.silent.load(Ordering::Relaxed);
        let caller = CALLER.try_with(Clone::clone).ok().flatten();
        Place(caller.map(|caller| (caller, silent)))
    }

    /// Waits for the turn. An error when the caller was told that it failed, or when a turn meanwhile got no
    /// answer, and none did since.
    pub(crate) async fn turn(&self, place: &Place) -> Result<Front, GivenUp> {
        let guard = self.lock().await;
        place.still_waits()?;
        let silent = self.outcomes.silent.load(Ordering::Relaxed);
        let silence = self.outcomes.silence.load(Ordering::Relaxed);
        if matches!(place, Place(Some((_, before))) if silence && *before != silent) {
            return Err(GivenUp);
        }
        Ok(Front {
            _guard: guard,
            outcomes: Arc::clone(&self.outcomes),
            began: Instant::now(),
        })
    }

    /// Waits until nobody else has the turn, whatever became of those before.
    pub(crate) async fn lock(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }
}

impl Front {
    /// The service did not answer. If that took so long that those in line waited for it, it is their answer,
    /// too.
    pub(crate) fn got_no_answer(&self, patience: Patience) {
        if self.began.elapsed() >= patience.attempt() {
            self.outcomes.silent.fetch_add(1, Ordering::Relaxed);
            self.outcomes.silence.store(true, Ordering::Relaxed);
        }
    }

    /// The service answers: those in line may ask it.
    pub(crate) fn got_an_answer(&self) {
        self.outcomes.silence.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_while_the_volume_gets_on() {
        let progress = Progress::default();
        let patience = Patience::of(Duration::from_secs(10));
        let clock = Clock::new(patience, &progress);
        let since = Instant::now();
        let gets_on = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                progress.note();
            }
        };
        let never = Box::pin(std::future::pending::<()>());
        let (outcome, ()) = tokio::join!(clock.within(never), gets_on);
        assert_eq!(outcome, None);
        assert_eq!(since.elapsed().as_secs(), 20 * 9 + 10);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_begun() {
        let caller = Caller::default();
        assert!(still_waits().is_ok(), "nobody ever waited");
        assert!(caller.waits_for(async { still_waits() }).await.is_ok());
        caller.leaves();
        assert!(caller.waits_for(async { still_waits() }).await.is_err());
        let undone = caller.waits_for(undoing(async { still_waits() }));
        assert!(undone.await.is_ok(), "what was begun is taken back");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_silence_for_those_in_line() {
        let patience = Patience::of(Duration::from_secs(10));
        for answered in [false, true] {
            let (line, caller) = (Arc::new(Line::default()), Caller::default());
            let place = caller.waits_for(async { line.place() }).await;
            let nobody = line.place();
            let turn = line.turn(&nobody).await.unwrap();
            tokio::time::advance(patience.whole()).await;
            turn.got_no_answer(patience);
            drop(turn);
            let turn = line.turn(&nobody).await.unwrap();
            if answered {
                turn.got_an_answer();
            }
            drop(turn);
            assert_eq!(line.turn(&place).await.is_ok(), answered);
        }
    }
}
