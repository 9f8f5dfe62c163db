//! Counting operations of the file systems: how long each took, who answered, how it ended, and the bytes it
//! moved.

use std::sync::OnceLock;

use blob_fs::observer::{Ended, Observer, Operation};
use nix::errno::Errno;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    operation: &'static str,
    by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    operation: &'static str,
    errno: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moved {
    operation: &'static str,
}

/// What one kind of operation counts, found without a look into the families: reads come by the hundred
/// thousand.
#[derive(Debug, Default)]
struct Counts {
    by_memory: OnceLock<Histogram>,
    by_task: OnceLock<Histogram>,
    bytes: OnceLock<Counter>,
}

/// Counters of operations, of all file systems of a process together.
#[derive(Debug)]
pub struct Operations {
    durations: Family<Answered, Histogram, fn() -> Histogram>,
    failures: Family<Failed, Counter>,
    bytes: Family<Moved, Counter>,
    counts: [Counts; Operation::ALL.len()],
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(histogram),
            failures: Family::default(),
            bytes: Family::default(),
            counts: std::array::from_fn(|_| Counts::default()),
        }
    }
}

/// From 10 us (out of memory) to 168 s (an operation that was given up).
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_01, 4.0, 13))
}

impl Operations {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "operation_duration",
            "Time from the arrival of a file system operation to its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "operation_failures",
            "File system operations that were answered by an error",
            self.failures.clone(),
        );
        registry.register(
            "operation_bytes",
            "Data that file system operations gave or took",
            self.bytes.clone(),
        );
        self.begin_at_zero();
    }

    /// What dashboards ask for first is there before anything has happened: the rate of a series that begins
    /// with its first count misses that one.
    fn begin_at_zero(&self) {
        let errno = format!("{:?}", Errno::EIO);
        for operation in [Operation::Read, Operation::Write].map(|operation| operation.name()) {
            drop(self.bytes.get_or_create(&Moved { operation }));
            let (by, errno) = ("task", errno.clone());
            drop(self.durations.get_or_create(&Answered { operation, by }));
            drop(self.failures.get_or_create(&Failed { operation, errno }));
        }
    }
}

impl Observer for Operations {
    fn ended(&self, ended: &Ended) {
        let operation = ended.operation.name();
        if ended.errno != 0 {
            let errno = format!("{:?}", Errno::from_raw(ended.errno));
            let labels = Failed { operation, errno };
            self.failures.get_or_create(&labels).inc();
        }
        let Some(counts) = self.counts.get(ended.operation as usize) else {
            return;
        };
        let (durations, by) = match ended.inline {
            true => (&counts.by_memory, "memory"),
            false => (&counts.by_task, "task"),
        };
        durations
            .get_or_init(|| self.durations.get_or_create(&Answered { operation, by }).clone())
            .observe(ended.took.as_secs_f64());
        if ended.bytes > 0 {
            counts
                .bytes
                .get_or_init(|| self.bytes.get_or_create(&Moved { operation }).clone())
                .inc_by(ended.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn operations_are_counted_by_kind_answer_and_error() {
        let operations = Operations::default();
        let mut registry = Registry::default();
        operations.register(&mut registry);
        let read = Ended {
            operation: Operation::Read,
            errno: 0,
            took: Duration::from_micros(30),
            inline: true,
            bytes: 4096,
        };
        operations.ended(&read);
        operations.ended(&read);
        let took = Duration::from_millis(20);
        operations.ended(&Ended {
            inline: false,
            took,
            ..read
        });
        operations.ended(&Ended {
            operation: Operation::Rename,
            errno: libc::EIO,
            inline: false,
            took,
            bytes: 0,
        });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"operation_duration_seconds_count{operation="read",by="memory"} 2"#,
            r#"operation_duration_seconds_count{operation="read",by="task"} 1"#,
            r#"operation_duration_seconds_count{operation="rename",by="task"} 1"#,
            r#"operation_bytes_total{operation="read"} 12288"#,
            r#"operation_failures_total{operation="rename",errno="EIO"} 1"#,
            // What an alert is made of is there from the start.
            r#"operation_failures_total{operation="write",errno="EIO"} 0"#,
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(!text.contains(r#"operation="unlink""#), "{text}");
    }
}
