//! How the channel is used, and what it has done.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach the device and how patient to be.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// Device node, normally `/dev/azure_blob`.
    pub device: PathBuf,
    /// Blocking submission threads (requests in flight at most). Default 64.
    pub threads: usize,
    /// How long past its timeout a request may stay out before its thread is written off. Default 5 s.
    pub grace: Duration,
    /// Written-off threads at which the channel counts as stuck and takes no more requests, probes included,
    /// until one comes back. Default 4: a host that loses a single request for ever may serve all others, and
    /// whoever uses the channel finds that out by a probe; one that loses several at once is broken.
    pub stuck_after: usize,
    /// Bytes of buffers that may be with the host at once, those of lost requests included; one request may
    /// be out however large it is. What the host loses is memory that nobody has back, so this bounds it.
    /// When half of them are lost, the channel counts as stuck as well. Default 96 MiB.
    pub most_bytes: usize,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            device: PathBuf::from("/dev/azure_blob"),
            threads: 64,
            grace: Duration::from_secs(5),
            stuck_after: 4,
            most_bytes: 96 << 20,
        }
    }
}

/// Counters and state, for metrics and `doctor`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Requests the host answered.
    pub completed: u64,
    /// EAGAIN answers retried.
    pub eagain: u64,
    /// Times the device was reopened after ENODEV.
    pub reopened: u64,
    /// Threads now lost in an ioctl past its deadline.
    pub written_off: usize,
    /// Requests now with the host or waiting for room in its ring, lost ones included.
    pub in_flight: usize,
    /// Requests now waiting for a thread.
    pub queued: usize,
    /// Bytes of buffers of requests that nobody waits for any more, and that the host has still.
    pub lost_bytes: usize,
}
