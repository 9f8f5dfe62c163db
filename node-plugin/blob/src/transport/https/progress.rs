//! Whether an exchange still moves, and when it is given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// Bytes per second that an exchange reaches on average, or it is given up, however steadily it drips.
const SLOWEST: u64 = 16 * 1024;

/// When a byte moved last, and how many have.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// Milliseconds after `began`.
    latest: AtomicU64,
    moved: AtomicU64,
    /// Of the pool that was used.
    pub(super) age: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            latest: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            age: AtomicU64::new(0),
        }
    }

    pub(super) fn note(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.store(millis, Ordering::Relaxed);
    }

    /// When the exchange is given up, as things stand.
    pub(super) fn ends_at(&self, timeout: Duration) -> Instant {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        self.began + (latest + timeout).min(self.allowed(timeout))
    }

    /// How long moving so many bytes may take.
    fn allowed(&self, timeout: Duration) -> Duration {
        let moved = self.moved.load(Ordering::Relaxed);
        2 * timeout + Duration::from_millis(moved.saturating_mul(1000) / SLOWEST)
    }

    pub(super) fn timed_out(&self, timeout: Duration) -> TransportError {
        let elapsed = self.began.elapsed();
        let message = if elapsed >= self.allowed(timeout) {
            let moved = self.moved.load(Ordering::Relaxed);
            format!("only {moved} bytes moved in {elapsed:?}")
        } else {
            format!("no byte moved for {timeout:?}")
        };
        TransportError {
            path: Path::Https,
            kind: FailureKind::TimedOut,
            message,
            maybe_executed: true,
            retryable: true,
        }
    }
}
