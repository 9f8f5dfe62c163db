//! One volume's part of the budget.

use std::sync::Arc;

use blob_client::Progress;
use tokio::sync::Mutex as AsyncMutex;

use super::ledger::{Budget, DIRTY_SHARE};
use super::own::Own;
use super::right::Rights;
use crate::log_limit;

/// One volume's part of what dirty data may take. A volume whose service does not answer fills up to a limit
/// of its own, and the others go on.
#[derive(Debug)]
pub struct Share {
    pub(super) budget: Arc<Budget>,
    pub(super) own: Arc<Own>,
    /// Held by the first of the writes whose data waits on disk.
    pub(super) spooled: AsyncMutex<()>,
    /// When the volume's work got on last: what is being stored makes room, however long it takes.
    pub(super) progress: Progress,
    /// Reads that are granted without room.
    pub(super) reads: Rights,
    /// What is read to be sent again.
    pub(super) resends: Rights,
}

impl Share {
    /// Bytes of accepted writes.
    #[cfg(test)]
    pub(crate) fn dirty(&self) -> usize {
        self.own.dirty.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What the log calls the volume.
    pub(crate) fn is_of(self: &Arc<Self>, volume: &str) {
        log_limit::name_volume(self.id(), volume);
    }

    /// Tells volumes apart.
    pub(crate) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        log_limit::forget_volume(std::ptr::from_ref(self) as usize);
        // Every permit of dirty data keeps its share: there is none left.
        let mut inner = self.budget.lock();
        inner.volumes = inner.volumes.saturating_sub(1);
        inner.reserved = inner.reserved.saturating_sub(DIRTY_SHARE);
        // What was kept for it is somebody's.
        inner.queues.wake_first();
    }
}

impl Budget {
    /// A volume begins to use the budget. Its writes go through what is given back.
    pub fn join(self: &Arc<Self>) -> Arc<Share> {
        self.join_with(Progress::default())
    }

    /// The same for one that tells when its work gets on.
    pub(crate) fn join_with(self: &Arc<Self>, progress: Progress) -> Arc<Share> {
        let mut inner = self.lock();
        inner.volumes += 1;
        inner.reserved += DIRTY_SHARE;
        drop(inner);
        Arc::new(Share {
            budget: Arc::clone(self),
            own: Arc::default(),
            spooled: AsyncMutex::new(()),
            progress,
            reads: Rights::default(),
            resends: Rights::default(),
        })
    }
}
