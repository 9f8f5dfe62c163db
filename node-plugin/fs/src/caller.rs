//! Who waits for an operation: for how long, and whether still.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blob_client::{Patience, Progress};
use tokio::time::{Instant, timeout_at};

use crate::errno::{Result, fail};

tokio::task_local! {
    static CALLER: Caller;
}

/// Whoever waits for an operation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller(Arc<AtomicBool>);

impl Caller {
    /// Runs an operation that this one waits for.
    pub(crate) fn waits_for<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        CALLER.scope(self.clone(), operation)
    }

    /// The caller was told that the operation failed.
    pub(crate) fn leaves(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `EIO` once the caller of the operation that runs here was told that: what was not begun by then is not
/// carried out later. For who has waited for a turn and has done nothing yet.
pub(crate) fn still_waits() -> Result<()> {
    let left = CALLER.try_with(|caller| caller.0.load(Ordering::Relaxed));
    match left {
        Ok(true) => fail(libc::EIO),
        // Work that nobody waits for goes on.
        Ok(false) | Err(_) => Ok(()),
    }
}

/// How long a caller waits: as long as the volume gets on, and so much longer.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    timeout: Duration,
    progress: Progress,
}

impl Clock {
    pub(crate) fn new(patience: Patience, progress: &Progress) -> Self {
        Self {
            timeout: patience.whole(),
            progress: progress.clone(),
        }
    }

    /// How long that is without progress.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What the work gives; `None` when the volume has got nothing done for so long.
    pub(crate) async fn within<F: Future + Unpin>(&self, mut work: F) -> Option<F::Output> {
        let since = Instant::now();
        let ends = || self.progress.latest().max(since) + self.timeout;
        loop {
            match timeout_at(ends(), &mut work).await {
                Ok(output) => return Some(output),
                Err(_elapsed) if ends() > Instant::now() => {}
                Err(_elapsed) => return None,
            }
        }
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
    }
}
