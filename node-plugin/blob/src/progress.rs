//! Whether work gets on: bytes that move and answers that come are progress, requests that fail are none; and
//! what keeps the latest of them from it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When the work of a volume got on last; clones share it.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Latest>);

#[derive(Debug)]
struct Latest {
    began: Instant,
    /// Milliseconds after `began`, and likewise below.
    any: AtomicU64,
    stored: AtomicU64,
    /// What was sent by calls that stored nothing, since one did: bytes at most, by what it was.
    in_vain: Mutex<BTreeMap<u64, u64>>,
    trouble: Mutex<Option<String>>,
}

/// Contents that are known to have been sent in vain, at most.
const VAIN: usize = 4096;

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Latest {
            began: Instant::now(),
            any: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            in_vain: Mutex::default(),
            trouble: Mutex::default(),
        }))
    }
}

impl Progress {
    /// A request was answered, or what it asks for is on its way.
    pub fn note(&self) {
        self.0
            .any
            .fetch_max(millis_since(self.0.began), Ordering::Relaxed);
    }

    /// The service has stored what was written, or takes it: what makes room for more.
    pub fn note_stored(&self) {
        self.in_vain().clear();
        self.note_storing();
    }

    /// A call is over that has sent so many bytes of this content at most, and stored nothing: who sends as
    /// much of it again gets no farther.
    pub(crate) fn note_in_vain(&self, content: u64, bytes: u64) {
        let mut in_vain = self.in_vain();
        if in_vain.len() >= VAIN {
            in_vain.pop_first();
        }
        let known = in_vain.entry(content).or_default();
        *known = bytes.max(*known);
    }

    fn in_vain(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be stored is on its way.
    fn note_storing(&self) {
        self.note();
        self.0
            .stored
            .fetch_max(millis_since(self.0.began), Ordering::Relaxed);
    }

    /// What keeps the whole volume from being served, by the latest call that could tell; `None` when that
    /// was answered. Who wants to know need not ask the service.
    pub fn trouble(&self) -> Option<String> {
        self.0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// See [`trouble`](Self::trouble).
    pub(crate) fn note_trouble(&self, trouble: Option<String>) {
        *self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// When anything got on last.
    pub fn latest(&self) -> Instant {
        self.after(&self.0.any)
    }

    /// When storing got on last.
    pub fn latest_stored(&self) -> Instant {
        self.after(&self.0.stored)
    }

    fn after(&self, millis: &AtomicU64) -> Instant {
        self.0.began + Duration::from_millis(millis.load(Ordering::Relaxed))
    }
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What one attempt of a call moves. It is progress as far as no earlier attempt has come: what is sent once
/// more is not.
#[derive(Debug)]
pub struct Moved {
    volume: Progress,
    /// Bytes that an earlier attempt has moved.
    before: u64,
    /// Bytes that an earlier call has sent in vain.
    in_vain: u64,
    began: Instant,
    /// An exchange that is over sooner is judged by its answer alone.
    long: Duration,
    bytes: AtomicU64,
    /// Milliseconds after `began`.
    latest: AtomicU64,
    /// The other side did not take all that was handed to the connection.
    untaken: AtomicBool,
}

impl Default for Moved {
    fn default() -> Self {
        Self::new(&Progress::default(), 0, 0, Duration::ZERO)
    }
}

impl Moved {
    /// Of an attempt to send this content, after one that has moved so many bytes `before`.
    pub(crate) fn new(volume: &Progress, content: u64, before: u64, long: Duration) -> Self {
        Self {
            volume: volume.clone(),
            before,
            in_vain: volume.in_vain().get(&content).copied().unwrap_or_default(),
            began: Instant::now(),
            long,
            bytes: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            untaken: AtomicBool::new(false),
        }
    }

    /// It is over, and the other side has not taken all that was handed to the connection.
    pub(crate) fn note_untaken(&self) {
        self.untaken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_untaken(&self) -> bool {
        self.untaken.load(Ordering::Relaxed)
    }

    /// So many bytes more were handed to the connection, or (0) the other side has acknowledged some.
    pub(crate) fn sent(&self, bytes: usize) {
        if self.gets_on(bytes) && self.bytes() > self.in_vain {
            self.volume.note_storing();
        }
    }

    /// So many bytes of the answer are here.
    pub(crate) fn received(&self, bytes: usize) {
        if self.gets_on(bytes) {
            self.volume.note();
        }
    }

    /// Counts bytes; whether the volume is to know.
    fn gets_on(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.before {
            return false;
        }
        let now = millis_since(self.began);
        self.latest.store(now, Ordering::Relaxed);
        Duration::from_millis(now) >= self.long
    }

    /// Bytes in both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the call got on last by this attempt, if it did.
    pub(crate) fn got_on(&self) -> Option<Instant> {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        (self.bytes() > self.before).then_some(self.began + latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_once_more_is_no_progress() {
        let volume = Progress::default();
        let began = volume.latest();
        tokio::time::advance(LONG * 2).await;
        let again = Moved::new(&volume, 0, 100, LONG);
        tokio::time::advance(LONG).await;
        again.sent(100);
        assert_eq!((again.got_on(), volume.latest()), (None, began));
        again.sent(1);
        assert_eq!(again.got_on(), Some(Instant::now()));
        assert_eq!(volume.latest_stored(), Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_in_vain_says_nothing_of_another_content() {
        let volume = Progress::default();
        let began = volume.latest();
        volume.note_in_vain(1, 100);
        let (again, other) = (Moved::new(&volume, 1, 0, LONG), Moved::new(&volume, 2, 0, LONG));
        tokio::time::advance(LONG * 2).await;
        again.sent(100);
        assert_eq!(volume.latest_stored(), began);
        other.sent(50);
        assert_eq!(volume.latest_stored(), Instant::now());
        volume.note_stored();
        let again = Moved::new(&volume, 1, 0, LONG);
        tokio::time::advance(LONG * 2).await;
        again.sent(100);
        assert_eq!(volume.latest_stored(), Instant::now());
        for content in 0..2 * VAIN as u64 {
            volume.note_in_vain(content, 1);
        }
        assert_eq!(volume.in_vain().len(), VAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_soon_over_is_judged_by_its_answer() {
        let volume = Progress::default();
        let began = volume.latest();
        let moved = Moved::new(&volume, 0, 0, LONG);
        tokio::time::advance(LONG / 2).await;
        moved.sent(100);
        moved.received(100);
        assert_eq!(moved.got_on(), Some(Instant::now()));
        assert_eq!(volume.latest(), began);
        tokio::time::advance(LONG / 2).await;
        moved.received(1);
        assert_eq!(volume.latest(), Instant::now());
        assert_eq!(volume.latest_stored(), began);
    }
}
