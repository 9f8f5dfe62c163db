//! Metrics of the process (docs/metrics.md): calls are counted as they end, everything else is read when
//! somebody asks.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use blob_client::Accounts;
use blob_client::auth::Ending;
use blob_client::transport::failover::Paths;
use blob_fs::{Budget, Owing};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::family::Family;
use super::operations::Operations;
use super::volumes::{Counted, Volumes};
use crate::grpc::rpc::Rpcs;
use crate::mounts::Mounts;

/// What all names begin with.
const PREFIX: &str = "vsc_blob";

/// The metrics of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    rpcs: Rpcs,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What a node has besides, to be counted.
#[derive(Debug)]
pub struct NodeParts {
    /// Its mounts.
    pub mounts: Arc<Mounts>,
    /// What they do.
    pub operations: Arc<Operations>,
    /// The same, and what they ask for, by volume.
    pub volumes: Arc<Volumes>,
    /// Their memory.
    pub budget: Arc<Budget>,
    /// The accounts that they ask.
    pub accounts: Accounts,
}

impl Metrics {
    /// Metrics of a process that sends its requests over `paths`.
    pub fn new(paths: Arc<Paths>, node: Option<NodeParts>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let rpcs = Rpcs::default();
        rpcs.register(&mut registry);
        let build = Build {
            version: crate::VERSION,
        };
        registry.register("build", "The program", Info::new(build));
        registry.register_collector(Box::new(Requests(paths)));
        if let Some(node) = node {
            node.operations.register(&mut registry);
            registry.register_collector(Box::new(Asked(node.accounts)));
            registry.register_collector(Box::new(Counted {
                volumes: node.volumes,
                mounts: node.mounts.clone(),
            }));
            registry.register_collector(Box::new(Node {
                mounts: node.mounts,
                budget: node.budget,
            }));
        }
        Self {
            registry: Arc::new(registry),
            rpcs,
        }
    }

    /// The counters of calls, for the server.
    pub fn rpcs(&self) -> &Rpcs {
        &self.rpcs
    }

    /// Everything, in the OpenMetrics text format.
    ///
    /// # Errors
    /// None that could be mended; the encoder's interface has one.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

/// Which way requests went.
#[derive(Debug)]
struct Requests(Arc<Paths>);

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counter = |name, help, unit| Family {
            name,
            help,
            unit,
            kind: MetricType::Counter,
        };
        let stats = self.0.stats();
        let outcomes = stats.iter().flat_map(|path| {
            let labels = |outcome| -> Labels { [("path", path.path), ("outcome", outcome)] };
            [
                (labels("answered"), path.requests),
                (labels("failed"), path.errors),
            ]
        });
        counter(
            "requests",
            "Requests to the Blob service; failed: without an answer",
            None,
        )
        .encode(&mut encoder, outcomes)?;
        let bytes = stats.iter().flat_map(|path| {
            let labels = |direction| -> Labels { [("path", path.path), ("direction", direction)] };
            [(labels("read"), path.bytes_in), (labels("write"), path.bytes_out)]
        });
        // The unit stands in the middle of the name, so it cannot be said apart.
        counter(
            "transferred_bytes",
            "Payload of answered requests, without headers",
            None,
        )
        .encode(&mut encoder, bytes)?;
        let moved = stats.iter().map(|path| path.failed_over).sum();
        counter(
            "failovers",
            "Requests that failed on the channel and went over HTTPS at once",
            None,
        )
        .encode_one(&mut encoder, moved)?;

        let (usable, changes) = match self.0.watch_channel() {
            Some(state) => {
                let state = state.borrow();
                (state.unusable.is_none(), state.changes)
            }
            None => (false, 0),
        };
        Family {
            kind: MetricType::Gauge,
            ..counter("channel_usable", "1 while requests may take the channel", None)
        }
        .encode_one(&mut encoder, u64::from(usable))?;
        // The channel is not usable at first, so every odd change is one to it.
        let to: [(Label, u64); 2] = [
            ([("to", "channel")], changes.div_ceil(2)),
            ([("to", "https")], changes / 2),
        ];
        counter("transport_changes", "Changes of the path of new requests", None).encode(&mut encoder, to)?;

        let device = self.0.device_stats();
        let held: [(Label, usize); 3] = [
            ([("state", "queued")], device.queued),
            (
                [("state", "out")],
                device.in_flight.saturating_sub(device.written_off),
            ),
            ([("state", "lost")], device.written_off),
        ];
        Family {
            kind: MetricType::Gauge,
            ..counter(
                "channel_requests",
                "Requests at the channel's device now; lost: past their deadline",
                None,
            )
        }
        .encode(&mut encoder, held.map(|(label, n)| (label, n as u64)))?;
        counter(
            "channel_ring_full",
            "Times that the channel's ring was full (EAGAIN)",
            None,
        )
        .encode_one(&mut encoder, device.eagain)?;
        counter(
            "channel_reopened",
            "Times that the channel's device came back",
            None,
        )
        .encode_one(&mut encoder, device.reopened)
    }
}

/// What accounts are asked, and how much they may be. None is named: they are users'.
#[derive(Debug)]
struct Asked(Accounts);

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let family = |name, help, kind| Family {
            name,
            help,
            unit: None,
            kind,
        };
        let load = self.0.load();
        let requests: [(Label, u64); 2] = [
            ([("state", "out")], load.out as u64),
            ([("state", "waiting")], load.waiting as u64),
        ];
        family(
            "account_requests",
            "Requests to accounts now; waiting: for others to come back",
            MetricType::Gauge,
        )
        .encode(&mut encoder, requests)?;
        family(
            "account_width",
            "Requests that may be out at a time, of the account that was narrowed most",
            MetricType::Gauge,
        )
        .encode_one(&mut encoder, load.width as u64)?;
        family(
            "account_retry_budget",
            "Repetitions that may be made at once, of the account that has the fewest left",
            MetricType::Gauge,
        )
        .encode_one(&mut encoder, load.repetitions_left)?;
        let repetitions: [(Label, u64); 2] = [
            ([("outcome", "made")], load.repeated),
            ([("outcome", "refused")], load.refused),
        ];
        family(
            "account_repetitions",
            "Attempts that were repetitions, and those that the retry budget refused",
            MetricType::Counter,
        )
        .encode(&mut encoder, repetitions)
    }
}

/// What a node holds.
#[derive(Debug)]
struct Node {
    mounts: Arc<Mounts>,
    budget: Arc<Budget>,
}

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = |name, help, unit| Family {
            name,
            help,
            unit,
            kind: MetricType::Gauge,
        };
        gauge("mounts", "File systems served by this process", None)
            .encode_one(&mut encoder, self.mounts.served() as u64)?;
        gauge(
            "mounts_limit",
            "File systems that this process may serve (--max-volumes)",
            None,
        )
        .encode_one(&mut encoder, self.mounts.limit() as u64)?;
        gauge(
            "mounts_dead",
            "File systems that are mounted or remembered, and that no process serves",
            None,
        )
        .encode_one(&mut encoder, self.mounts.dead() as u64)?;
        let counter = |name, help, unit| Family {
            kind: MetricType::Counter,
            ..gauge(name, help, unit)
        };
        let healing = self.mounts.healing();
        counter("mounts_healed", "Dead mounts that were made anew", None)
            .encode_one(&mut encoder, healing.healed())?;
        counter(
            "mount_healing_failures",
            "Attempts to make a dead mount anew that failed",
            None,
        )
        .encode_one(&mut encoder, healing.failed())?;
        let owing = self.mounts.all_owing();
        let sum = |of: fn(&Owing) -> u64| owing.iter().map(|(_, owing)| of(owing)).sum();
        gauge(
            "unstored_files",
            "Closed files that the service has not taken yet",
            None,
        )
        .encode_one(&mut encoder, sum(|owing| owing.files as u64))?;
        // The unit stands in the middle of the name, so it cannot be said apart.
        gauge(
            "unstored_bytes",
            "Sizes of closed files that the service has not taken yet, together",
            None,
        )
        .encode_one(&mut encoder, sum(|owing| owing.bytes))?;
        let ages = owing.iter().filter_map(|(_, owing)| owing.oldest);
        gauge(
            "unstored_oldest",
            "How long the oldest of them has been closed",
            Some(Unit::Seconds),
        )
        .encode_one(&mut encoder, ages.max().unwrap_or_default().as_secs())?;
        // Signed, so that an end in the past is one.
        let ends = gauge(
            "credential_expires",
            "Time until what mounts are reached with ends, of the one that ends first",
            Some(Unit::Seconds),
        );
        let mut metric = ends.describe(&mut encoder)?;
        let now = SystemTime::now();
        for (kind, of) in [("sas", Ending::Sas), ("token", Ending::Token)] {
            let all = self.mounts.credential_ends().into_iter();
            let end = all.filter(|end| end.what == of).min();
            let left = end.map_or(f64::INFINITY, |end| seconds_until(end.at, now));
            let label: Label = [("kind", kind)];
            metric.encode_family(&label)?.encode_gauge(&left)?;
        }
        let held = self.mounts.all_held();
        gauge("open_handles", "Files and directories that are open", None)
            .encode_one(&mut encoder, held.handles as u64)?;
        gauge("inodes", "Inodes that are known, roots included", None)
            .encode_one(&mut encoder, held.inodes as u64)?;
        gauge(
            "leases",
            "Blobs that are leased because their files were deleted or replaced while open",
            None,
        )
        .encode_one(&mut encoder, held.leases as u64)?;
        let usage = self.budget.usage();
        gauge(
            "spooled_writes",
            "Writes that wait for memory with their data on disk",
            None,
        )
        .encode_one(&mut encoder, usage.spooled as u64)?;
        let kinds: [(Label, usize); 7] = [
            ([("kind", "limit")], usage.total),
            ([("kind", "cached")], usage.cached),
            ([("kind", "dirty")], usage.dirty),
            ([("kind", "waiting")], usage.waiting),
            ([("kind", "metadata")], usage.metadata),
            ([("kind", "lost")], usage.lost),
            ([("kind", "peak")], usage.peak),
        ];
        gauge(
            "budget",
            "Memory for data and metadata of all mounts: the limit, and what is held",
            Some(Unit::Bytes),
        )
        .encode(&mut encoder, kinds.map(|(label, bytes)| (label, bytes as u64)))
    }
}

/// Seconds from now to a moment; negative when it has passed.
fn seconds_until(moment: SystemTime, now: SystemTime) -> f64 {
    match moment.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use vsc_driver::buffer::Arena;

    use super::*;

    #[tokio::test]
    async fn a_process_without_the_channel_tells_so() {
        let arena = Arena::new(64 << 20).unwrap();
        let paths = Paths::new(None, arena, tokio::runtime::Handle::current());
        let text = Metrics::new(paths, None).text().unwrap();
        for line in [
            "vsc_blob_channel_usable 0",
            r#"vsc_blob_transport_changes_total{to="channel"} 0"#,
            r#"vsc_blob_requests_total{path="https",outcome="answered"} 0"#,
            r#"vsc_blob_transferred_bytes_total{path="channel",direction="read"} 0"#,
            "vsc_blob_failovers_total 0",
            r#"vsc_blob_channel_requests{state="lost"} 0"#,
            "vsc_blob_channel_ring_full_total 0",
            "vsc_blob_channel_reopened_total 0",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(text.contains(&format!(
            "vsc_blob_build_info{{version=\"{}\"}} 1",
            crate::VERSION
        )));
        assert!(!text.contains("mounts"), "a controller has none:\n{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
