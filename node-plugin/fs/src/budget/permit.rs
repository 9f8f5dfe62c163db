//! The right to hold memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::ledger::{Budget, Kind};
use super::share::Share;

/// The right to hold some bytes; given back on drop.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    /// Of dirty data: the volume it belongs to.
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

    fn counted(&self) -> Option<&AtomicUsize> {
        self.share.as_deref().map(|share| &share.dirty)
    }

    fn kind(&self) -> Kind {
        match self.kind.load(Ordering::Relaxed) {
            0 => Kind::Cached,
            1 => Kind::Dirty,
            2 => Kind::Metadata,
            _ => Kind::Waiting,
        }
    }

    /// Holds another number of bytes from now on. Growing is always granted (and drops cached data if
    /// needed).
    pub fn resize(&mut self, bytes: usize) {
        let kind = self.kind();
        let grown = bytes > self.bytes;
        let mut inner = self.budget.lock();
        if grown {
            inner.add(kind, bytes - self.bytes, self.counted());
        } else {
            inner.sub(kind, self.bytes - bytes, self.counted());
        }
        drop(inner);
        self.bytes = bytes;
        if grown {
            self.budget.shrink();
            if kind == Kind::Metadata {
                self.budget.note_crowd();
            }
        } else {
            self.budget.room.notify_waiters();
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
        drop(inner);
        self.budget.room.notify_waiters();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.budget.lock();
        inner.sub(self.kind(), self.bytes, self.counted());
        drop(inner);
        self.budget.room.notify_waiters();
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
