//! What a volume holds, for statistics: counted in the background by listing it, now and then, within bounds.
//!
//! A container has no size that could be asked for. Listing is the only way to know, and costs a request for
//! each 5,000 blobs; so no call waits for more than a moment, a count is good for a while, and it ends at a
//! limit. Nothing is counted where [`CountInterval`] says so.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blob_client::{ListItem, ListOptions};
use blob_fs::Store;
use blob_fs::tree::inspect::Scan;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a count is good for, at least; up to a fifth longer, so that the volumes of many nodes are not
/// counted at the same moment for ever. Kubelet asks every minute or so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountInterval(Option<Duration>);

impl CountInterval {
    /// No volume is counted.
    pub const OFF: Self = Self(None);
    const SHORTEST: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

    /// When the next count is due, `None` when there is none.
    fn next(self, now: Instant) -> Option<Instant> {
        Some(now + self.0?.mul_f64(rand::random_range(1.0..1.2)))
    }
}

impl Default for CountInterval {
    fn default() -> Self {
        Self(Some(Duration::from_secs(3600)))
    }
}

impl FromStr for CountInterval {
    type Err = String;

    /// `off`, or a whole number of seconds, minutes, hours or days: `90s`, `15m`, `6h`, `1d`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let wrong = || format!("{text:?}: a time from 1m to 7d is wanted (s, m, h, d), or off");
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[number.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let time = Duration::from_secs(number.saturating_mul(unit));
        let fits = (Self::SHORTEST..=Self::LONGEST).contains(&time);
        fits.then_some(Self(Some(time))).ok_or_else(wrong)
    }
}

impl fmt::Display for CountInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(time) = self.0 else {
            return f.write_str("off");
        };
        let seconds = time.as_secs();
        let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
        let whole = units.iter().find(|(unit, _)| seconds % unit == 0);
        let (unit, name) = whole.copied().unwrap_or((1, "s"));
        write!(f, "{}{name}", seconds / unit)
    }
}

/// When a count that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5 * 60);
/// Requests of one count at most: 100,000 blobs.
const PAGES: usize = 20;
/// How long a call waits for the first count of a volume.
const FIRST: Duration = Duration::from_secs(3);

/// The outcome of a count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Bytes of the blobs counted, as the service has them.
    pub bytes: u64,
    /// Blobs counted: files, markers of directories, symbolic links.
    pub blobs: u64,
    /// There are no others; false when the count ended at its limit.
    pub all: bool,
    /// Those of them that the file system does not show.
    pub unshown: u64,
    /// The first of these.
    pub example: Option<String>,
}

/// What is known of the content of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    /// Nothing: it is not counted.
    Off,
    /// Nothing so far.
    NotYet,
    /// The latest count.
    Holds(Holdings),
}

/// Counts one volume.
#[derive(Debug)]
pub struct Counter {
    store: Arc<dyn Store>,
    /// Without a `/` at its end.
    prefix: String,
    runtime: tokio::runtime::Handle,
    turns: Turns,
    known: Mutex<Known>,
}

/// What the counters of a process share.
#[derive(Debug, Clone)]
pub struct Turns {
    interval: CountInterval,
    /// One count at a time in the whole process.
    turn: Arc<Semaphore>,
}

impl Turns {
    /// Counts of each volume, so often.
    pub fn new(interval: CountInterval) -> Self {
        Self {
            interval,
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    latest: Option<Holdings>,
    /// When the next count is to be started; `None` before the first.
    due: Option<Instant>,
}

impl Counter {
    /// A counter of the volume below `prefix`; nothing is asked yet.
    pub fn new(
        store: Arc<dyn Store>,
        prefix: &str,
        runtime: tokio::runtime::Handle,
        turns: Turns,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            prefix: prefix.to_owned(),
            runtime,
            turns,
            known: Mutex::default(),
        })
    }

    /// The latest count, after starting a new one when it is due. The call that starts the very first waits
    /// for it, for a moment: not yet, when it takes longer, or fails.
    pub async fn counted(self: &Arc<Self>) -> Counted {
        if self.turns.interval == CountInterval::OFF {
            return Counted::Off;
        }
        self.holdings().await.map_or(Counted::NotYet, Counted::Holds)
    }

    async fn holdings(self: &Arc<Self>) -> Option<Holdings> {
        let started = self.start_if_due();
        if let Some(counting) = started.filter(|_| self.known().latest.is_none()) {
            // Too late is as good as not yet: the count goes on.
            let _ = tokio::time::timeout(FIRST, counting).await;
        }
        self.known().latest.clone()
    }

    fn start_if_due(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        {
            let mut known = self.known();
            let now = Instant::now();
            if known.due.is_some_and(|due| now < due) {
                return None;
            }
            known.due = Some(self.turns.interval.next(now)?);
        }
        // Weak: a volume that is unmounted meanwhile need not be counted to the end.
        let (counter, turn) = (Arc::downgrade(self), Arc::clone(&self.turns.turn));
        Some(self.runtime.spawn(async move {
            // The semaphore is never closed.
            let _turn = turn.acquire_owned().await;
            let mut holdings = Holdings::default();
            let mut scan = None;
            let mut marker = None;
            for _ in 0..PAGES {
                let Some(counter) = counter.upgrade() else { return };
                let scan = scan.get_or_insert_with(|| Scan::new(&counter.prefix));
                match counter.page(marker, scan, &mut holdings).await {
                    Ok(None) => {
                        holdings.all = true;
                        break;
                    }
                    Ok(next) => marker = next,
                    // The file system tells its users what is wrong with the service.
                    Err(error) => {
                        tracing::debug!(%error, "a volume could not be counted");
                        counter.known().due = Some(Instant::now() + AGAIN_AFTER);
                        return;
                    }
                }
            }
            if let Some(counter) = counter.upgrade() {
                counter.known().latest = Some(holdings);
            }
        }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole after a panic elsewhere: each field stands for itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one page; answers where the next one starts.
    async fn page(
        &self,
        marker: Option<String>,
        scan: &mut Scan,
        holdings: &mut Holdings,
    ) -> blob_client::Result<Option<String>> {
        let options = ListOptions {
            prefix: match self.prefix.as_str() {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            marker,
            // What says whether a blob is a folder.
            metadata: true,
            ..ListOptions::default()
        };
        let page = self.store.list(&options).await?;
        for item in page.items {
            if let ListItem::Blob { name, properties } = item {
                if let Some(finding) = scan.unshown(&name, &properties.metadata) {
                    holdings.unshown += 1;
                    holdings.example.get_or_insert_with(|| finding.blob().to_owned());
                }
                holdings.blobs += 1;
                holdings.bytes = holdings.bytes.saturating_add(properties.content_length);
            }
        }
        Ok(page.next_marker)
    }
}

#[cfg(test)]
mod tests {
    use blob_client::Metadata;
    use blob_fs::store::fake::{FakeStore, Fault, Op};

    use super::*;

    fn counter(store: &Arc<FakeStore>, prefix: &str) -> Arc<Counter> {
        let runtime = tokio::runtime::Handle::current();
        Counter::new(
            Arc::clone(store) as Arc<dyn Store>,
            prefix,
            runtime,
            Turns::new(CountInterval::default()),
        )
    }

    fn store() -> Arc<FakeStore> {
        let store = Arc::new(FakeStore::new());
        store.foreign_put("a", "12345", Metadata::default());
        store.foreign_put("d/b", "123", Metadata::default());
        store.foreign_put("dd", "1", Metadata::default());
        store
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_counted_once_in_a_while() {
        let store = store();
        let counter = counter(&store, "");
        let first = counter.holdings().await.unwrap();
        let all = |bytes, blobs| Holdings {
            bytes,
            blobs,
            all: true,
            ..Holdings::default()
        };
        assert_eq!(first, all(9, 3));
        store.foreign_put("e", "1", Metadata::default());
        for _ in 0..100 {
            assert_eq!(counter.holdings().await.as_ref(), Some(&first));
        }
        assert_eq!(
            store.counters().of(Op::List),
            1,
            "one request for a hundred calls"
        );
        tokio::time::advance(CountInterval::default().0.unwrap().mul_f64(1.2)).await;
        // This call gets the old count and starts a new one.
        assert_eq!(counter.holdings().await.as_ref(), Some(&first));
        counted(&counter, Some(all(10, 4))).await;
    }

    #[tokio::test]
    async fn nothing_is_counted_where_it_is_off() {
        let store = store();
        let runtime = tokio::runtime::Handle::current();
        let counter = Counter::new(store.clone(), "", runtime, Turns::new(CountInterval::OFF));
        for _ in 0..10 {
            assert_eq!(counter.counted().await, Counted::Off);
        }
        assert_eq!(store.counters().of(Op::List), 0);
    }

    #[test]
    fn intervals_are_read_as_they_are_written() {
        for text in ["off", "90s", "15m", "1h", "36h", "7d"] {
            let read: CountInterval = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(CountInterval::default().to_string(), "1h");
        for text in [
            "",
            "0",
            "m",
            "59s",
            "8d",
            "1.5h",
            "-1h",
            "15 m",
            "1w",
            "OFF",
            "99999999999999999999d",
            "5µ",
        ] {
            assert!(text.parse::<CountInterval>().is_err(), "{text}");
        }
    }

    /// Waits until the latest count is this one.
    async fn counted(counter: &Arc<Counter>, wanted: Option<Holdings>) {
        while counter.known().latest != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn blobs_that_are_not_shown_are_counted() {
        let store = store();
        for blob in ["d/x//y", "d/b/c", "x."] {
            store.foreign_put(blob, "1", Metadata::default());
        }
        let holdings = counter(&store, "d").holdings().await.unwrap();
        assert_eq!((holdings.blobs, holdings.unshown), (3, 2));
        assert_eq!(holdings.example.as_deref(), Some("d/b"), "a folder has its name");
        assert_eq!(counter(&store, "").holdings().await.unwrap().unshown, 3);
    }

    #[tokio::test]
    async fn a_volume_with_a_prefix_is_what_is_below_it() {
        let holdings = counter(&store(), "d").holdings().await.unwrap();
        assert_eq!((holdings.bytes, holdings.blobs), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_service_holds_one_call_for_a_moment() {
        let slow = store();
        slow.set_delay(Duration::from_secs(10));
        let counter = counter(&slow, "");
        let began = Instant::now();
        assert_eq!(counter.holdings().await, None);
        assert_eq!(counter.holdings().await, None);
        // The clock is the test's own: it moves only while everybody waits.
        assert!(
            began.elapsed() <= FIRST + Duration::from_millis(10),
            "{:?}",
            began.elapsed()
        );
        let all = Holdings {
            bytes: 9,
            blobs: 3,
            all: true,
            ..Holdings::default()
        };
        counted(&counter, Some(all)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_that_failed_is_tried_again_and_waited_for_by_nobody() {
        let away = store();
        away.fail(Op::List, Fault::Lost, 1);
        let counter = counter(&away, "");
        let began = Instant::now();
        for _ in 0..100 {
            assert_eq!(counter.holdings().await, None);
        }
        assert!(began.elapsed() < FIRST, "{:?}", began.elapsed());
        assert_eq!(away.counters().of(Op::List), 1, "and asked once");
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(counter.holdings().await.is_some());
    }
}
