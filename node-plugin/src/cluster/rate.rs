//! The rate of requests to the API server: a token bucket, as client-go has it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Requests a second on the average, and how many at once after a quiet time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// More than zero.
    pub per_second: f64,
    /// At least one.
    pub burst: u32,
}

impl Rate {
    /// A node's: what client-go takes when nobody says anything.
    pub const NODE: Self = Self {
        per_second: 5.0,
        burst: 10,
    };
    /// The controller's: it is one for the whole cluster.
    pub const CONTROLLER: Self = Self {
        per_second: 20.0,
        burst: 40,
    };
    /// The cleanup's before an uninstallation: it has minutes for all nodes.
    pub const CLEANUP: Self = Self {
        per_second: 50.0,
        burst: 100,
    };
}

/// Lets requests through in the order in which they came. One that is given up while it waits has used its
/// turn.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Between two requests, once the burst is used.
    interval: Duration,
    /// How far ahead of the average the requests may be.
    ahead: Duration,
    /// When the next request would come if all came evenly.
    even: Mutex<Option<Instant>>,
}

impl Limiter {
    pub(super) fn new(rate: Rate) -> Self {
        // An hour between two requests stands for "hardly ever", and keeps the sums small.
        let longest = Duration::from_secs(3600);
        let interval = Duration::try_from_secs_f64(rate.per_second.recip()).unwrap_or(longest);
        let interval = interval.min(longest);
        Self {
            interval,
            ahead: interval.saturating_mul(rate.burst.saturating_sub(1)),
            even: Mutex::new(None),
        }
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) {
        let now = Instant::now();
        let at = {
            // Whole after a panic elsewhere: it is one value.
            let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = even.map_or(now, |even| even.max(now));
            *even = Some(mine + self.interval);
            now + (mine - now).saturating_sub(self.ahead)
        };
        if at > now {
            tokio::time::sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let limiter = Limiter::new(Rate {
            per_second: 5.0,
            burst: 10,
        });
        let start = Instant::now();
        for _ in 0..10 {
            limiter.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            limiter.turn().await;
        }
        assert_eq!(start.elapsed().as_secs(), 10);
        // A quiet time fills the bucket, and no more than that.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let start = Instant::now();
        for _ in 0..11 {
            limiter.turn().await;
        }
        assert_eq!(start.elapsed().as_millis() / 10, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_nothing_is_no_overflow() {
        for per_second in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE, f64::INFINITY] {
            let limiter = Limiter::new(Rate {
                per_second,
                burst: u32::MAX,
            });
            limiter.turn().await;
            limiter.turn().await;
        }
    }
}
