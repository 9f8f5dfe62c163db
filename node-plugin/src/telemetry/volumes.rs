//! What each volume does and asks for, counted apart: for "which claim is it?".
//!
//! Series have the volume's id as their label, and live as long as one of its mounts. At most so many volumes
//! are named ([`Volumes::new`]); what the others do is in one sum, `other`.

use std::array;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use blob_client::Exchange;
use blob_client::transport::path::Path;
use blob_fs::Owing;
use blob_fs::observer::{Ended, Operation};
use nix::errno::Errno;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;

use super::family::{Family, encode_times};
use super::operations::Operations;
use crate::mounts::Mounts;
use crate::mounts::observers::{Observed, Observers};

/// The label of volumes that are not named.
const OTHER: &str = "other";
/// Paths, each at the index that [`at`] gives.
const PATHS: [Path; 2] = [Path::Channel, Path::Https];
/// Statuses that are told apart: those that the service documents, and what proxies say. The last two are
/// for any other, and for no answer.
const CODES: [&str; 23] = [
    "200", "201", "202", "206", "304", "400", "401", "403", "404", "405", "408", "409", "411", "412", "413",
    "416", "429", "500", "502", "503", "504", "other", "none",
];
/// Those of them that are there before they happen, because alerts ask for them: the rate of a series that
/// begins with its first count misses that one.
const AWAITED: [&str; 4] = ["200", "401", "403", "503"];
/// Kinds of operations whose times are told apart for each volume.
const KINDS: [&str; 3] = ["read", "write", "metadata"];
/// Errors that say that something is wrong, not that a program has asked for what is not there.
const TROUBLE: [Errno; 5] = [
    Errno::EIO,
    Errno::EACCES,
    Errno::ENOSPC,
    Errno::ENXIO,
    Errno::ESTALE,
];

/// Which of [`PATHS`].
fn at(path: Path) -> usize {
    match path {
        Path::Channel => 0,
        Path::Https => 1,
    }
}

/// Which of [`CODES`].
fn code(status: Option<u16>) -> usize {
    let last = CODES.len() - 1;
    status.map_or(last, |status| {
        let text = status.to_string();
        CODES.iter().position(|code| *code == text).unwrap_or(last - 1)
    })
}

/// What is counted of one volume.
#[derive(Debug)]
struct Volume {
    /// Of the process as a whole.
    operations: Arc<Operations>,
    requests: [Histogram; PATHS.len()],
    sent: [AtomicU64; PATHS.len()],
    received: [AtomicU64; PATHS.len()],
    codes: [[AtomicU64; CODES.len()]; PATHS.len()],
    throttles: AtomicU64,
    repetitions: AtomicU64,
    durations: [Histogram; KINDS.len()],
    failures: [AtomicU64; TROUBLE.len()],
    /// Bytes that were read by programs.
    read: AtomicU64,
    /// Those of them that were in memory when they were asked for.
    read_from_memory: AtomicU64,
    written: AtomicU64,
}

impl Volume {
    fn new(operations: Arc<Operations>) -> Self {
        Self {
            operations,
            // From 1 ms (the channel) to 65 s (a call that was given up).
            requests: array::from_fn(|_| Histogram::new(exponential_buckets(0.001, 2.5, 13))),
            sent: array::from_fn(|_| AtomicU64::new(0)),
            received: array::from_fn(|_| AtomicU64::new(0)),
            codes: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
            throttles: AtomicU64::new(0),
            repetitions: AtomicU64::new(0),
            // From 50 us (out of memory) to 205 s (an operation that was given up).
            durations: array::from_fn(|_| Histogram::new(exponential_buckets(0.000_05, 4.0, 12))),
            failures: array::from_fn(|_| AtomicU64::new(0)),
            read: AtomicU64::new(0),
            read_from_memory: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }
}

impl blob_client::Observer for Volume {
    fn exchanged(&self, exchange: &Exchange) {
        let path = at(exchange.path);
        self.requests[path].observe(exchange.took.as_secs_f64());
        self.codes[path][code(exchange.status)].fetch_add(1, Ordering::Relaxed);
        if exchange.status.is_some() {
            self.sent[path].fetch_add(exchange.sent, Ordering::Relaxed);
            self.received[path].fetch_add(exchange.received, Ordering::Relaxed);
        }
    }

    fn throttled(&self) {
        self.throttles.fetch_add(1, Ordering::Relaxed);
    }

    fn repeated(&self) {
        self.repetitions.fetch_add(1, Ordering::Relaxed);
    }
}

impl blob_fs::observer::Observer for Volume {
    fn ended(&self, ended: &Ended) {
        self.operations.ended(ended);
        let kind = match ended.operation {
            Operation::Read => 0,
            Operation::Write => 1,
            _ => 2,
        };
        self.durations[kind].observe(ended.took.as_secs_f64());
        if ended.errno != 0
            && let Some(at) = TROUBLE.iter().position(|errno| *errno as i32 == ended.errno)
        {
            self.failures[at].fetch_add(1, Ordering::Relaxed);
        }
        match ended.operation {
            Operation::Read => {
                self.read.fetch_add(ended.bytes, Ordering::Relaxed);
                if ended.inline {
                    self.read_from_memory.fetch_add(ended.bytes, Ordering::Relaxed);
                }
            }
            Operation::Write => {
                self.written.fetch_add(ended.bytes, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// The counters of all volumes of a process.
#[derive(Debug)]
pub struct Volumes {
    /// Volumes that are named at most.
    limit: usize,
    operations: Arc<Operations>,
    named: Mutex<BTreeMap<String, Weak<Volume>>>,
    others: Arc<Volume>,
}

impl Volumes {
    /// Counters that name `limit` volumes at most; 0: none. `operations` counts them all together.
    pub fn new(limit: usize, operations: Arc<Operations>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            others: Arc::new(Volume::new(Arc::clone(&operations))),
            operations,
            named: Mutex::default(),
        })
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Volume>>> {
        // Whole after a panic elsewhere: each change is one insertion or removal.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, volume_id: &str) -> Arc<Volume> {
        let mut named = self.named();
        named.retain(|_, volume| volume.strong_count() > 0);
        if let Some(volume) = named.get(volume_id).and_then(Weak::upgrade) {
            return volume;
        }
        // A volume may have that name itself: its series would be there twice.
        if volume_id == OTHER || named.len() >= self.limit {
            return Arc::clone(&self.others);
        }
        let volume = Arc::new(Volume::new(Arc::clone(&self.operations)));
        named.insert(volume_id.to_owned(), Arc::downgrade(&volume));
        volume
    }

    /// The volumes that are there, the sum of the others last: when there is one, or when none is named.
    fn all(&self) -> Vec<Labelled> {
        let named = self.named();
        let live = named.iter();
        let mut all: Vec<_> = live
            .filter_map(|(id, volume)| Some((id.clone(), volume.upgrade()?)))
            .collect();
        drop(named);
        // Besides ours: somebody has been given it.
        if Arc::strong_count(&self.others) > 1 || self.limit == 0 {
            all.push((OTHER.to_owned(), Arc::clone(&self.others)));
        }
        all
    }

    /// What closed files of these volumes owe.
    fn owing(all: &[Labelled], mounts: &Mounts) -> BTreeMap<String, Owing> {
        let labels = all.iter().map(|(label, _)| (label.clone(), Owing::default()));
        let mut owing: BTreeMap<_, _> = labels.collect();
        for (volume_id, of_mount) in mounts.owing_by_volume() {
            let label = if owing.contains_key(&volume_id) {
                volume_id
            } else {
                OTHER.to_owned()
            };
            let sum = owing.entry(label).or_default();
            sum.files += of_mount.files;
            sum.bytes += of_mount.bytes;
            sum.oldest = sum.oldest.max(of_mount.oldest);
        }
        owing
    }
}

impl Observers for Volumes {
    fn of_volume(&self, volume_id: &str) -> Observed {
        let volume = self.of(volume_id);
        Observed {
            operations: Arc::clone(&volume) as Arc<dyn blob_fs::observer::Observer>,
            requests: volume,
        }
    }
}

/// Reads the counters when somebody asks.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) volumes: Arc<Volumes>,
    pub(super) mounts: Arc<Mounts>,
}

/// A volume by its label.
type Labelled = (String, Arc<Volume>);

/// What is read of one counter.
fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// One counter of each volume.
fn of_each(
    all: &[Labelled],
    counter: fn(&Volume) -> &AtomicU64,
) -> impl Iterator<Item = ([(&'static str, &str); 1], u64)> {
    all.iter()
        .map(move |(id, volume)| ([("volume", id.as_str())], read(counter(volume))))
}

impl Counted {
    fn requests(encoder: &mut DescriptorEncoder<'_>, all: &[Labelled]) -> fmt::Result {
        // Each volume once for each path.
        let by_path = || {
            all.iter().flat_map(|(id, volume)| {
                PATHS.map(|path| ([("volume", id.as_str()), ("path", path.name())], volume, at(path)))
            })
        };
        encode_times(
            encoder,
            (
                "volume_request_duration",
                "Time of a volume's requests to the Blob service over one path",
            ),
            by_path().map(|(labels, volume, at)| (labels, &volume.requests[at])),
        )?;
        let told = |(code, n): &(&str, u64)| *n > 0 || AWAITED.contains(code);
        Family::counter(
            "volume_responses",
            "Answers to a volume's requests, by HTTP status; none: there was no answer",
        )
        .encode(
            encoder,
            by_path().flat_map(|([id, path], volume, at)| {
                let counted = CODES.into_iter().zip(volume.codes[at].iter().map(read));
                counted
                    .filter(told)
                    .map(move |(code, n)| ([id, path, ("code", code)], n))
            }),
        )?;
        // The unit stands in the middle of the name, so it cannot be said apart.
        Family::counter(
            "volume_transferred_bytes",
            "Payload of a volume's answered requests, without headers",
        )
        .encode(
            encoder,
            by_path().flat_map(|([id, path], volume, at)| {
                let bytes = [("read", &volume.received[at]), ("write", &volume.sent[at])];
                bytes.map(|(direction, bytes)| ([id, path, ("direction", direction)], read(bytes)))
            }),
        )?;
        Family::counter(
            "volume_throttles",
            "Requests of a volume that the service turned away because it is asked for too much",
        )
        .encode(encoder, of_each(all, |volume| &volume.throttles))?;
        Family::counter(
            "volume_repetitions",
            "Requests of a volume that were sent once more",
        )
        .encode(encoder, of_each(all, |volume| &volume.repetitions))
    }

    fn operations(encoder: &mut DescriptorEncoder<'_>, all: &[Labelled]) -> fmt::Result {
        encode_times(
            encoder,
            (
                "volume_operation_duration",
                "Time of a volume's file system operations, by kind",
            ),
            all.iter().flat_map(|(id, volume)| {
                let by_kind = KINDS.into_iter().zip(&volume.durations);
                by_kind.map(|(kind, durations)| ([("volume", id.as_str()), ("kind", kind)], durations))
            }),
        )?;
        Family::counter(
            "volume_operation_failures",
            "File system operations of a volume that failed because something is wrong",
        )
        .encode(
            encoder,
            all.iter().flat_map(|(id, volume)| {
                let by_errno = TROUBLE.iter().zip(&volume.failures);
                by_errno.map(|(errno, n)| {
                    let labels = [("volume", id.clone()), ("errno", format!("{errno:?}"))];
                    (labels, read(n))
                })
            }),
        )?;
        Family::counter(
            "volume_read_bytes",
            "Data that programs have read from a volume; memory: it was there when they asked",
        )
        .encode(
            encoder,
            all.iter().flat_map(|(id, volume)| {
                let memory = read(&volume.read_from_memory);
                let others = read(&volume.read).saturating_sub(memory);
                let bytes = [("memory", memory), ("task", others)];
                bytes.map(|(by, bytes)| ([("volume", id.as_str()), ("by", by)], bytes))
            }),
        )?;
        Family::counter(
            "volume_written_bytes",
            "Data that programs have written to a volume",
        )
        .encode(encoder, of_each(all, |volume| &volume.written))
    }

    fn unstored(encoder: &mut DescriptorEncoder<'_>, owing: &BTreeMap<String, Owing>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, unit, value: fn(&Owing) -> u64| {
            let kind = MetricType::Gauge;
            let family = Family {
                name,
                help,
                unit,
                kind,
            };
            let values = owing.iter();
            family.encode(
                encoder,
                values.map(|(id, owing)| ([("volume", id.as_str())], value(owing))),
            )
        };
        gauge(
            "volume_unstored_files",
            "Closed files of a volume that the service has not taken yet",
            None,
            |owing| owing.files as u64,
        )?;
        gauge(
            "volume_unstored_bytes",
            "Sizes of closed files of a volume that the service has not taken yet, together",
            None,
            |owing| owing.bytes,
        )?;
        gauge(
            "volume_unstored_oldest",
            "How long the oldest of them has been closed",
            Some(Unit::Seconds),
            |owing| owing.oldest.unwrap_or_default().as_secs(),
        )
    }
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.volumes.all();
        Self::requests(&mut encoder, &all)?;
        Self::operations(&mut encoder, &all)?;
        Self::unstored(&mut encoder, &Volumes::owing(&all, &self.mounts))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blob_client::Observer as _;
    use blob_fs::observer::Observer as _;
    use prometheus_client::registry::Registry;

    use super::*;

    /// What is served of these volumes, without mounts.
    #[derive(Debug)]
    struct Alone(Arc<Volumes>);

    impl Collector for Alone {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let all = self.0.all();
            Counted::requests(&mut encoder, &all)?;
            Counted::operations(&mut encoder, &all)
        }
    }

    fn text(volumes: &Arc<Volumes>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Alone(Arc::clone(volumes))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn exchange(status: Option<u16>) -> Exchange {
        Exchange {
            path: Path::Https,
            status,
            took: Duration::from_millis(30),
            sent: 7,
            received: 100,
        }
    }

    fn read(bytes: u64, inline: bool) -> Ended {
        Ended {
            operation: Operation::Read,
            errno: 0,
            took: Duration::from_micros(40),
            inline,
            bytes,
        }
    }

    #[test]
    fn each_volume_is_counted_apart() {
        let volumes = Volumes::new(2, Arc::default());
        let (a, b) = (volumes.of("a"), volumes.of("b"));
        a.exchanged(&exchange(Some(206)));
        a.exchanged(&exchange(Some(503)));
        a.exchanged(&exchange(Some(599)));
        a.exchanged(&exchange(None));
        a.throttled();
        a.repeated();
        b.ended(&read(4096, true));
        b.ended(&read(1000, false));
        let failed = Ended {
            errno: libc::EIO,
            ..read(0, false)
        };
        b.ended(&failed);
        let text = text(&volumes);
        for line in [
            r#"volume_request_duration_seconds_count{volume="a",path="https"} 4"#,
            r#"volume_request_duration_seconds_count{volume="b",path="https"} 0"#,
            r#"volume_responses_total{volume="a",path="https",code="206"} 1"#,
            r#"volume_responses_total{volume="a",path="https",code="503"} 1"#,
            r#"volume_responses_total{volume="a",path="https",code="other"} 1"#,
            r#"volume_responses_total{volume="a",path="https",code="none"} 1"#,
            r#"volume_transferred_bytes_total{volume="a",path="https",direction="read"} 300"#,
            r#"volume_transferred_bytes_total{volume="a",path="https",direction="write"} 21"#,
            r#"volume_throttles_total{volume="a"} 1"#,
            r#"volume_repetitions_total{volume="a"} 1"#,
            r#"volume_read_bytes_total{volume="b",by="memory"} 4096"#,
            r#"volume_read_bytes_total{volume="b",by="task"} 1000"#,
            r#"volume_operation_failures_total{volume="b",errno="EIO"} 1"#,
            r#"volume_operation_failures_total{volume="a",errno="EIO"} 0"#,
            r#"volume_operation_duration_seconds_count{volume="b",kind="read"} 3"#,
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn volumes_beyond_the_limit_are_one_sum_and_gone_ones_make_room() {
        let volumes = Volumes::new(1, Arc::default());
        let a = volumes.of("a");
        assert!(Arc::ptr_eq(&a, &volumes.of("a")), "two mounts of one volume");
        let (b, c) = (volumes.of("b"), volumes.of("c"));
        b.throttled();
        c.throttled();
        let told = text(&volumes);
        assert!(
            told.contains(r#"volume_throttles_total{volume="other"} 2"#),
            "{told}"
        );
        assert!(!told.contains(r#"volume="b""#), "{told}");
        drop((a, b, c));
        assert!(!text(&volumes).contains("volume="), "what is gone is still told");
        let _c = volumes.of("c");
        assert!(text(&volumes).contains(r#"volume_throttles_total{volume="c"} 0"#));
    }

    #[test]
    fn a_volume_that_has_the_name_of_the_sum_is_in_the_sum() {
        let volumes = Volumes::new(1, Arc::default());
        let (other, a, b) = (volumes.of(OTHER), volumes.of("a"), volumes.of("b"));
        other.throttled();
        b.throttled();
        let told = text(&volumes);
        assert_eq!(
            told.matches(r#"volume_throttles_total{volume="other"}"#).count(),
            1,
            "{told}"
        );
        assert!(
            told.contains(r#"volume_throttles_total{volume="other"} 2"#),
            "{told}"
        );
        drop(a);
    }

    #[test]
    fn without_names_there_is_always_the_sum() {
        let volumes = Volumes::new(0, Arc::default());
        assert!(text(&volumes).contains(r#"volume_throttles_total{volume="other"} 0"#));
    }
}
