//! What the store holds: containers, blobs, staged blocks; each blob behind a lock of its own, no lock held
//! while bytes move.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::attributes::Attributes;
use super::content::{Block, BlockRun};
use super::error::ServiceError;
use super::headers::{ContentHeaders, Metadata};
use super::lease::Lease;
use super::settings::Immutability;
use super::version::Version;

/// How long the service keeps blocks that nobody commits.
const STAGED_BLOCKS_LIVE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Who may read a container without credentials (`x-ms-blob-public-access`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum PublicAccess {
    /// Nobody.
    #[default]
    None,
    /// Blobs, when the name is known.
    Blob,
    /// Blobs and the listing.
    Container,
}

/// Kind of blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum BlobKind {
    Block,
    Append,
    Page,
}

impl BlobKind {
    /// `x-ms-blob-type`.
    pub(super) fn name(self) -> &'static str {
        match self {
            BlobKind::Block => "BlockBlob",
            BlobKind::Append => "AppendBlob",
            BlobKind::Page => "PageBlob",
        }
    }
}

/// How far a copy is (`x-ms-copy-status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum CopyStatus {
    #[default]
    Success,
    Pending,
    Aborted,
    Failed,
}

impl CopyStatus {
    pub(super) fn name(self) -> &'static str {
        match self {
            CopyStatus::Success => "success",
            CopyStatus::Pending => "pending",
            CopyStatus::Aborted => "aborted",
            CopyStatus::Failed => "failed",
        }
    }
}

/// The last copy that made a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopyInfo {
    pub(super) id: String,
    pub(super) source: String,
    #[serde(default)]
    pub(super) status: CopyStatus,
    /// Bytes of the source.
    #[serde(default)]
    pub(super) total: u64,
    /// HTTP date of its end; empty while it is pending.
    pub(super) completed: String,
}

/// One committed version of a blob; never changed, only replaced.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) version: Version,
    pub(super) created: Version,
    pub(super) kind: BlobKind,
    pub(super) content: BlockRun,
    pub(super) headers: ContentHeaders,
    pub(super) metadata: Arc<Metadata>,
    pub(super) copy: Option<Arc<CopyInfo>>,
    pub(super) attributes: Attributes,
}

impl Blob {
    /// A copy is being written into it.
    pub(super) fn is_copy_pending(&self) -> bool {
        self.copy
            .as_ref()
            .is_some_and(|copy| copy.status == CopyStatus::Pending)
    }
}

/// Why a blob that is not the current one is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Somebody took a snapshot.
    Snapshot,
    /// The account keeps versions.
    Version,
    /// Deleted, and restorable until then.
    Deleted(SystemTime),
    /// A snapshot that was deleted, likewise.
    DeletedSnapshot(SystemTime),
}

/// A blob that is not the current one any more. These live in memory only, whatever folder the store has.
#[derive(Debug, Clone)]
pub(super) struct Past {
    /// `snapshot` or `versionid`.
    pub(super) id: String,
    pub(super) reason: Reason,
    pub(super) blob: Arc<Blob>,
}

/// A name in a container: committed version, staged blocks, lease.
#[derive(Debug, Default)]
pub(super) struct SlotState {
    pub(super) blob: Option<Arc<Blob>>,
    pub(super) uncommitted: BTreeMap<Vec<u8>, Arc<Block>>,
    /// When the last of these was staged.
    pub(super) staged: Option<SystemTime>,
    pub(super) lease: Lease,
    /// Snapshots, versions and what was deleted, oldest first.
    pub(super) history: Vec<Past>,
    /// Taken out of the container: whoever still holds it looks the name up again.
    gone: bool,
}

impl SlotState {
    fn is_empty(&self) -> bool {
        self.blob.is_none() && self.uncommitted.is_empty() && self.history.is_empty()
    }
    /// Forgets what is too old: blocks that nobody committed within a week (REST: "Put Block"), and what was
    /// deleted and not restored in time.
    pub(super) fn expire(&mut self, now: SystemTime) {
        if self
            .staged
            .is_some_and(|staged| now >= staged + STAGED_BLOCKS_LIVE)
        {
            self.uncommitted = BTreeMap::new();
            self.staged = None;
        }
        self.history.retain(|past| match past.reason {
            Reason::Deleted(until) | Reason::DeletedSnapshot(until) => now < until,
            Reason::Snapshot | Reason::Version => true,
        });
    }
    /// The snapshots of the blob.
    pub(super) fn has_snapshots(&self) -> bool {
        self.history.iter().any(|past| past.reason == Reason::Snapshot)
    }
    /// Version of what is committed.
    pub(super) fn version(&self) -> Option<Version> {
        self.blob.as_ref().map(|blob| blob.version)
    }
}

/// A name in a container.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<SlotState>);

impl Slot {
    /// Locks it; held for bookkeeping only.
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        // A panic while it was held left consistent data: states are replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a container is, apart from its blobs.
#[derive(Debug, Clone)]
pub(super) struct ContainerState {
    pub(super) version: Version,
    pub(super) metadata: Metadata,
    pub(super) public: PublicAccess,
    pub(super) lease: Lease,
    /// The container's policy, which an administrator sets; it does not outlive the process.
    pub(super) immutability: Option<Immutability>,
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    state: Mutex<ContainerState>,
    blobs: RwLock<BTreeMap<String, Arc<Slot>>>,
    /// Deleted. Whoever found it before may still hold it, and must not write of it to the folder any more.
    gone: RwLock<bool>,
}

impl Container {
    /// An empty container.
    pub(super) fn new(name: String, state: ContainerState) -> Self {
        Self {
            name,
            state: Mutex::new(state),
            blobs: RwLock::default(),
            gone: RwLock::default(),
        }
    }

    /// Runs `f`, during which the container is not deleted; an error when it has been.
    pub(super) fn while_there<R>(
        &self,
        f: impl FnOnce() -> Result<R, ServiceError>,
    ) -> Result<R, ServiceError> {
        let gone = self.gone.read().unwrap_or_else(PoisonError::into_inner);
        if *gone {
            return Err(ServiceError::container_not_found());
        }
        f()
    }

    /// Runs `f`, which removes what is kept of the container, when nobody is writing of it; with its success
    /// it is gone.
    pub(super) fn end(&self, f: impl FnOnce() -> Result<(), ServiceError>) -> Result<(), ServiceError> {
        let mut gone = self.gone.write().unwrap_or_else(PoisonError::into_inner);
        f()?;
        *gone = true;
        Ok(())
    }

    /// Locks its own state.
    pub(super) fn lock(&self) -> MutexGuard<'_, ContainerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the slot of a name, when there is one.
    pub(super) fn with_existing<R>(&self, name: &str, f: impl FnOnce(Option<&mut SlotState>) -> R) -> R {
        let slot = self.read().get(name).cloned();
        let Some(slot) = slot else { return f(None) };
        let mut state = slot.lock();
        if state.gone {
            return f(None);
        }
        let out = f(Some(&mut state));
        self.drop_if_empty(name, &slot, state);
        out
    }

    /// Runs `f` on the slot of a name, made when there is none; a slot left empty is taken out again.
    pub(super) fn with_slot<R>(&self, name: &str, f: impl FnOnce(&mut SlotState) -> R) -> R {
        loop {
            let found = self.read().get(name).cloned();
            let slot = found.unwrap_or_else(|| self.write().entry(name.to_owned()).or_default().clone());
            let mut state = slot.lock();
            if state.gone {
                // Whoever emptied it is about to take it out of the map, or has done so.
                drop(state);
                self.remove(name, &slot);
                continue;
            }
            let out = f(&mut state);
            self.drop_if_empty(name, &slot, state);
            return out;
        }
    }

    fn drop_if_empty(&self, name: &str, slot: &Arc<Slot>, mut state: MutexGuard<'_, SlotState>) {
        if state.is_empty() {
            state.gone = true;
            drop(state);
            self.remove(name, slot);
        }
    }

    fn remove(&self, name: &str, slot: &Arc<Slot>) {
        let mut blobs = self.write();
        if blobs.get(name).is_some_and(|there| Arc::ptr_eq(there, slot)) {
            blobs.remove(name);
        }
    }

    /// The names and slots, in byte order.
    pub(super) fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Slot>>> {
        self.blobs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Slot>>> {
        self.blobs.write().unwrap_or_else(PoisonError::into_inner)
    }
}
