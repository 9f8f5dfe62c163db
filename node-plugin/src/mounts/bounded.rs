//! System calls that may never return, on a thread of their own with a limit.
//!
//! A stat or umount of a mount whose server is stuck blocks for ever, and immune to signals. The thread is left behind
//! then; it ends when the mount's connection is aborted.

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
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(call.to_owned())
        // A receiver that gave up is no error of the call.
        .spawn(move || drop(done.send(work())))
        .map_err(|source| BoundedError::Thread { call, source })?;
    match tokio::time::timeout(limit, result).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(BoundedError::Thread {
            call,
            source: io::Error::other("the thread panicked"),
        }),
        Err(_) => Err(BoundedError::TimedOut { call, limit }),
    }
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
    async fn results_and_panics_come_back() {
        let limit = Duration::from_secs(60);
        assert_eq!(bounded("add", limit, || 1 + 1).await.unwrap(), 2);
        let panicked = bounded("panic", limit, || panic!("in the thread")).await;
        assert!(matches!(panicked, Err(BoundedError::Thread { .. })));
    }
}
