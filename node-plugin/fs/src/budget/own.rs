//! What one volume holds itself of what all share.

use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Changed under the budget's lock.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Bytes of accepted writes.
    pub(super) dirty: AtomicUsize,
    /// Bytes of writes that wait for room and were copied.
    pub(super) waiting: AtomicUsize,
    /// Bytes of requests that the channel's device lost.
    pub(super) lost: AtomicUsize,
    /// A writer gave up waiting, and nobody got room since.
    pub(super) stuck: AtomicBool,
}
