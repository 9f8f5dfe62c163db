//! File system operations on real mounts over a container in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]
#![allow(unsafe_code, reason = "system calls that std does not offer")]

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod bystanders;
mod closing;
mod conflicts;
mod direct;
mod files;
mod folders;
mod memory;
mod names;
mod outages;
mod protected;
mod renames;
mod replacing;
mod rights;
mod sharing;
mod times;
mod truncation;
mod volume;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use blob_fs::store::fake::FakeStore;

fn store() -> Arc<FakeStore> {
    Arc::new(FakeStore::new())
}

/// Timeouts that no test outlives: counters then do not depend on how fast the machine is.
fn patient(config: &mut blob_fs::VolumeConfig) {
    let minute = Duration::from_secs(60);
    (config.attr_timeout, config.entry_timeout, config.negative_timeout) = (minute, minute, minute);
}
