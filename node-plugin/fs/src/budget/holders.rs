//! Who holds memory that can be had back: what the budget asks of them.

use std::sync::Arc;

/// Cached data that can be dropped. Called with no lock of the budget held; must not block.
pub(crate) trait Evict: Send + Sync + std::fmt::Debug {
    /// Drops the memory and returns true, or returns false when it was used since it was asked last, or
    /// somebody holds it, so that dropping it would free nothing.
    fn evict(&self) -> bool;
}

/// What a holder of dirty data could do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relief {
    /// It holds nothing that it could give back; it is forgotten until it registers again.
    Nothing,
    /// Memory was freed.
    Freed,
    /// Data is being sent; memory can be freed later.
    Working,
    /// It was refused a moment ago: not to be tried yet.
    Resting,
    /// There is data that could be sent.
    Idle,
}

/// A holder of dirty data that can make room. Called with no lock of the budget held; must not block.
pub(crate) trait Relieve: Send + Sync + std::fmt::Debug {
    /// Drops what is in the service already, and starts to send what is not if `start` says so.
    fn relieve(self: Arc<Self>, start: bool) -> Relief;
    /// Tells volumes apart: an endpoint that does not answer must not hold up others.
    fn volume(&self) -> usize;
}
