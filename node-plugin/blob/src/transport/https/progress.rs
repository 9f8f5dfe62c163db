//! Whether an exchange still moves, and when it is given up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::client::legacy::connect::CaptureConnection;
use tokio::time::Instant;

use super::wire::Wire;
use crate::progress::Moved;
use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

/// Bytes per second that an exchange reaches on average, or it is given up, however steadily it drips: no
/// line is so slow, and no reader that patient.
const SLOWEST: u64 = 1024;
/// Nobody has looked at the connection yet.
const UNSEEN: u64 = u64::MAX;

/// When a byte moved last, and how many have.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// Milliseconds after `began`.
    latest: AtomicU64,
    moved: AtomicU64,
    /// Of the pool that was used.
    pub(super) age: AtomicU64,
    connection: OnceLock<CaptureConnection>,
    /// Bytes that the other side had not acknowledged when they were looked at last.
    unacknowledged: AtomicU64,
    refused: AtomicBool,
    /// Is told as well.
    call: Arc<Moved>,
}

impl Progress {
    pub(super) fn new(call: Arc<Moved>) -> Self {
        Self {
            began: Instant::now(),
            latest: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            age: AtomicU64::new(0),
            connection: OnceLock::new(),
            unacknowledged: AtomicU64::new(UNSEEN),
            refused: AtomicBool::new(false),
            call,
        }
    }

    /// The connection that the exchange gets.
    pub(super) fn watch(&self, connection: CaptureConnection) {
        // There is one request to an exchange.
        let _ = self.connection.set(connection);
    }

    /// So many bytes were handed to the connection.
    pub(super) fn sent(&self, bytes: usize) {
        self.note(bytes);
        self.call.sent(bytes);
    }

    /// So many bytes of the answer are here.
    pub(super) fn received(&self, bytes: usize) {
        self.note(bytes);
        if !self.refused.load(Ordering::Relaxed) {
            self.call.received(bytes);
        }
    }

    /// The answer is no success: what it says more is nothing that the call asks for.
    pub(super) fn refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// It goes on, without any bytes.
    pub(super) fn touch(&self) {
        self.note(0);
    }

    fn note(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.store(millis, Ordering::Relaxed);
    }

    /// Looks whether the other side has acknowledged something since the last look. (More that is not
    /// acknowledged went there meanwhile, and was noted.)
    pub(super) fn look(&self) {
        let Some(left) = self.connection.get().and_then(Wire::unacknowledged_by) else {
            return;
        };
        let before = self.unacknowledged.swap(left, Ordering::Relaxed);
        if before != UNSEEN && before != left {
            self.sent(0);
        }
    }

    /// When the exchange is given up, as things stand.
    pub(super) fn ends_at(&self, timeout: Duration) -> Instant {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        self.began + (latest + timeout).min(self.allowed(timeout))
    }

    /// How long moving so many bytes may take: what lies in this machine has not moved yet.
    fn allowed(&self, timeout: Duration) -> Duration {
        let moved = self.moved();
        2 * timeout + Duration::from_millis(moved.saturating_mul(1000) / SLOWEST)
    }

    fn moved(&self) -> u64 {
        let left = match self.unacknowledged.load(Ordering::Relaxed) {
            UNSEEN => 0,
            left => left,
        };
        self.moved.load(Ordering::Relaxed).saturating_sub(left)
    }

    pub(super) fn timed_out(&self, timeout: Duration) -> TransportError {
        // It lies in this machine, where it was seen a moment ago.
        if !matches!(self.unacknowledged.load(Ordering::Relaxed), 0 | UNSEEN) {
            self.call.note_untaken();
        }
        let elapsed = self.began.elapsed();
        let message = if elapsed >= self.allowed(timeout) {
            let moved = self.moved();
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_body_in_drops_is_given_up() {
        let progress = Progress::new(Arc::default());
        let began = progress.began;
        let handed: u64 = 4 << 20;
        progress.sent(handed as usize);
        let mut taken = 0;
        while progress.ends_at(TIMEOUT) > Instant::now() {
            tokio::time::advance(TIMEOUT / 2).await;
            taken += 100;
            progress.unacknowledged.store(handed - taken, Ordering::Relaxed);
            progress.sent(0);
            assert!(began.elapsed() <= 3 * TIMEOUT, "it goes on");
        }
    }
}
