//! Beside other writers: what mounts do to blobs that others own, and beside others who write at the same
//! time.
//!
//! One or two mounts (A, B: two nodes) of a container of the embedded store, and a client that is not ours.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

#[path = "neighbours/changes.rs"]
mod changes;
#[path = "neighbours/features.rs"]
mod features;
#[path = "neighbours/foreign.rs"]
mod foreign;
#[path = "neighbours/late.rs"]
mod late;
#[path = "neighbours/names.rs"]
mod names;
#[path = "neighbours/owners.rs"]
mod owners;
#[path = "neighbours/protected.rs"]
mod protected;
#[path = "neighbours/refused.rs"]
mod refused;

use std::process::Command;

use e2e::harness::backend::Kind;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tools::run;
use nix::errno::Errno;

fn setup() -> anyhow::Result<Setup> {
    Setup::new(Kind::Embedded, Way::Https)
}

/// Runs a shell command in a folder.
fn sh(folder: &std::path::Path, command: &str) -> anyhow::Result<String> {
    run(Command::new("sh").arg("-c").arg(command).current_dir(folder))
}

/// How a call ended: well, or with this errno.
fn outcome<T>(result: std::io::Result<T>) -> Result<(), Errno> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    }
}

/// Reproducible bytes that are no run of zeros.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
