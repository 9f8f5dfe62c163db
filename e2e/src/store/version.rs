//! Versions: ETags that never repeat and only grow, and times in whole seconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::macros::format_description;

/// 100 ns ticks between 0001-01-01 and the Unix epoch: the service's ETags are .NET ticks in hexadecimal.
const EPOCH_TICKS: u64 = 621_355_968_000_000_000;

/// A version: ticks (100 ns since 0001-01-01), unique in a store and growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u64);

impl Version {
    /// The ETag, quotes included.
    pub(super) fn etag(self) -> String {
        format!("\"0x{:X}\"", self.0)
    }
    /// `Last-Modified`: HTTP dates carry whole seconds.
    pub(super) fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.saturating_sub(EPOCH_TICKS) / 10_000_000)
    }
    /// The same as the id of a snapshot or version: ticks are told.
    pub(super) fn id(self) -> String {
        let ticks = self.0.saturating_sub(EPOCH_TICKS);
        let seconds = OffsetDateTime::from_unix_timestamp((ticks / 10_000_000) as i64)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
            .format(format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second]"
            ))
            .unwrap_or_default();
        format!("{seconds}.{:07}Z", ticks % 10_000_000)
    }
    /// The same as HTTP date.
    pub(super) fn http_date(self) -> String {
        httpdate::fmt_http_date(self.time())
    }
}

/// Gives out versions, and the store's time: the machine's, and what a test has put it forward by.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: AtomicU64,
    /// Nanoseconds ahead of the machine's clock.
    ahead: AtomicU64,
}

impl Clock {
    /// The store's time.
    pub(super) fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead()
    }
    /// The same for what is measured and not told.
    pub(super) fn instant(&self) -> Instant {
        Instant::now() + self.ahead()
    }
    /// Puts the store's time forward.
    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.ahead.fetch_add(by, Ordering::Relaxed);
    }
    fn ahead(&self) -> Duration {
        Duration::from_nanos(self.ahead.load(Ordering::Relaxed))
    }
    /// A version larger than every one before, close to the wall clock.
    pub(super) fn next(&self) -> Version {
        let now = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = EPOCH_TICKS + (now.as_nanos() / 100) as u64;
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(now.max(last + 1))
            });
        // The closure always gives a value; both arms carry the version before this one.
        let last = last.unwrap_or_else(|last| last);
        Version(now.max(last + 1))
    }
    /// Versions read back from a folder must not be given out again.
    pub(super) fn seen(&self, version: Version) {
        self.last.fetch_max(version.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_grow_and_look_like_the_service() {
        let clock = Clock::default();
        let first = clock.next();
        clock.seen(Version(first.0 + 1_000_000_000_000));
        let mut last = first;
        for _ in 0..1000 {
            let next = clock.next();
            assert!(next > last);
            last = next;
        }
        assert!(last.0 > first.0 + 1_000_000_000_000);
        assert!(
            first.etag().starts_with("\"0x8D") && first.etag().len() == 19,
            "{}",
            first.etag()
        );
        let age = SystemTime::now().duration_since(first.time()).unwrap();
        assert!(age < Duration::from_secs(5));
    }
}
