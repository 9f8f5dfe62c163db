//! System calls that may never return, on a thread of their own with a limit.
//!
//! A stat or umount of a mount whose server is stuck blocks for ever, and immune to signals. The thread is
//! left behind then; it ends when the mount's connection is aborted.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum BoundedError {
    /// The call did not return in time; its thread is left behind.
    #[error("{call} did not return within {limit:?}")]
    TimedOut {
        /// The call.
        call: &'static str,
        /// Time waited.
        limit: Duration,
    },
    /// No thread could be had, or the call panicked.
    #[error("{call}: {source}")]
    Thread {
        /// The call.
        call: &'static str,
        /// Reason.
        source: io::Error,
    },
}

/// Runs a blocking call on its own thread and waits at most `limit`.
pub async fn bounded<T, F>(call: &'static str, limit: Duration, work: F) -> Result<T, BoundedError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // A receiver that gave up is no error of the call.
    bounded_or(call, limit, work, drop).await
}

/// The same for a call that leaves something behind: `late` gets what came when nobody waited for it any
/// more, on the call's own thread. Either it gets the result or the caller does.
pub async fn bounded_or<T, F, L>(
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
    #[cfg(test)]
    if let Some(steps) = super::steps::here() {
        return steps.run(call, limit, work, late).await;
    }
    let (done, mut result) = oneshot::channel();
    std::thread::Builder::new()
        .name(call.to_owned())
        .spawn(move || {
            if let Err(value) = done.send(work()) {
                late(value);
            }
        })
        .map_err(|source| BoundedError::Thread { call, source })?;
    let panicked = |_| BoundedError::Thread {
        call,
        source: io::Error::other("the thread panicked"),
    };
    if let Ok(ended) = tokio::time::timeout(limit, &mut result).await {
        return ended.map_err(panicked);
    }
    // It may have come in this moment; after the close it cannot.
    result.close();
    result
        .try_recv()
        .map_err(|_| BoundedError::TimedOut { call, limit })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_never_returns_is_left_behind() {
        let (release, blocked) = mpsc::channel::<()>();
        let result = bounded("stat", Duration::from_millis(20), move || blocked.recv()).await;
        assert!(
            matches!(result, Err(BoundedError::TimedOut { call: "stat", .. })),
            "{result:?}"
        );
        drop(release);
    }

    #[tokio::test]
    async fn what_comes_too_late_is_handed_over() {
        let (release, blocked) = mpsc::channel::<()>();
        let (told, late) = mpsc::channel();
        let work = move || blocked.recv().map_or(0, |()| 7);
        let result = bounded_or("mount", Duration::from_millis(20), work, move |value| {
            told.send(value).unwrap();
        })
        .await;
        assert!(matches!(result, Err(BoundedError::TimedOut { .. })), "{result:?}");
        release.send(()).unwrap();
        assert_eq!(late.recv().unwrap(), 7);
        let in_time = bounded_or("mount", Duration::from_secs(60), || 8, |_| panic!("handed over"));
        assert_eq!(in_time.await.unwrap(), 8);
    }

    #[tokio::test]
    async fn results_and_panics_come_back() {
        let limit = Duration::from_secs(60);
        assert_eq!(bounded("add", limit, || 1 + 1).await.unwrap(), 2);
        let panicked = bounded("panic", limit, || panic!("in the thread")).await;
        assert!(matches!(panicked, Err(BoundedError::Thread { .. })));
    }
}
