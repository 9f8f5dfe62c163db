//! Counting what passes over one path.

use std::sync::atomic::{AtomicU64, Ordering};

use super::PathStats;
use super::path::Path;

/// Counters behind [`PathStats`]; all relaxed, they order nothing.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    failed_over: AtomicU64,
}

impl Counters {
    pub(crate) fn answered(&self, bytes_out: u64, bytes_in: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn moved(&self) {
        self.failed_over.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, path: Path, reason: Option<String>) -> PathStats {
        PathStats {
            path: path.name(),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            failed_over: self.failed_over.load(Ordering::Relaxed),
            usable: reason.is_none(),
            reason,
        }
    }
}
