//! The right to hold memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::ledger::{Budget, Kind};
use super::own::Own;
use super::share::Share;

/// The right to hold some bytes; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    /// Of dirty, waiting and lost data: the volume it belongs to.
    share: Option<Arc<Share>>,
    /// A [`Kind`].
    kind: AtomicU8,
    bytes: usize,
}

impl Permit {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn counted(&self) -> Option<&Own> {
        self.share.as_deref().map(|share| &*share.own)
    }

    fn kind(&self) -> Kind {
        match self.kind.load(Ordering::Relaxed) {
            0 => Kind::Cached,
            1 => Kind::Dirty,
            2 => Kind::Metadata,
            3 => Kind::Waiting,
            _ => Kind::Lost,
        }
    }

    /// Holds another number of bytes from now on. Growing is always granted (and drops cached data if
    /// needed).
    pub fn resize(&mut self, bytes: usize) {
        let grown = bytes > self.bytes;
        self.count(bytes);
        if grown {
            self.budget.shrink();
        }
    }

    /// Holds another number of bytes from now on, for who holds locks that dropping cached data takes: it is
    /// dropped when somebody else needs room.
    pub(crate) fn count(&mut self, bytes: usize) {
        let kind = self.kind();
        let mut inner = self.budget.lock();
        inner.sub(kind, self.bytes, self.counted());
        inner.add(kind, bytes, self.counted());
        if bytes < self.bytes {
            inner.queues.wake_first();
        }
        drop(inner);
        let grown = bytes > self.bytes;
        self.bytes = bytes;
        if grown && kind == Kind::Metadata {
            self.budget.note_crowd();
        }
    }

    /// Takes `bytes` of these out, as a permit of its own; all there are when it is less.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            budget: Arc::clone(&self.budget),
            share: self.share.as_ref().map(Arc::clone),
            kind: AtomicU8::new(self.kind.load(Ordering::Relaxed)),
            bytes,
        }
    }

    /// The same memory serves another purpose from now on (dirty data that was committed is cached data).
    pub fn recharge(&self, kind: Kind) {
        let mut inner = self.budget.lock();
        let old = self.kind();
        if old == kind {
            return;
        }
        self.kind.store(kind as u8, Ordering::Relaxed);
        inner.sub(old, self.bytes, self.counted());
        inner.add(kind, self.bytes, self.counted());
        inner.queues.wake_first();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.budget.lock();
        let kind = self.kind();
        inner.sub(kind, self.bytes, self.counted());
        inner.queues.wake_first();
        drop(inner);
        if kind == Kind::Waiting {
            self.budget.waiting_room.notify_waiters();
        }
    }
}

impl Budget {
    pub(super) fn permit(self: &Arc<Self>, kind: Kind, bytes: usize, share: Option<&Arc<Share>>) -> Permit {
        Permit {
            budget: Arc::clone(self),
            share: share.map(Arc::clone),
            kind: AtomicU8::new(kind as u8),
            bytes,
        }
    }
}
