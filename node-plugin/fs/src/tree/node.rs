//! One node: what it is, its attributes, and its open content.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use blob_client::{BlobType, ETag, Metadata, Properties, Written};
use tokio::sync::{Mutex as AsyncMutex, RwLock};

use super::attrs::{self, Attrs, ContentOf, Defaults, Kind};
use crate::caller::Line;
use crate::content::File;
use crate::content::binding::Digest;
use crate::errno::Result;
use crate::sync::{Mutex, MutexGuard};

/// Number of a node, shown as its inode number.
pub(crate) type NodeId = u64;

/// The root of a volume.
pub(crate) const ROOT: NodeId = 1;

/// Memory that a node costs, for the budget: the structures here and in the table, without names and without
/// [`State::heap`].
pub(crate) const NODE_BYTES: usize = 900;

/// A file, directory, link, FIFO or socket.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
    /// Held while the blob's version changes: commits, metadata updates, moving, deleting. See the lock order
    /// in [`super`].
    pub(crate) change: AsyncMutex<()>,
    /// Directories only.
    pub(crate) directory: Option<DirectoryLocks>,
    /// The kernel has read content for its pages since it was last told to drop them.
    pub(crate) pages: AtomicBool,
    state: Mutex<State>,
}

/// See the lock order in [`super`].
#[derive(Debug, Default)]
pub(crate) struct DirectoryLocks {
    /// Read: something below is worked on by its blob name. Write: the directory itself moves.
    pub(crate) gate: Arc<RwLock<()>>,
    /// One listing on behalf of lookups at a time.
    pub(crate) listing: Line,
}

/// Where a directory's own attributes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    /// Nowhere: only blobs below it make it a directory.
    Implicit,
    /// Likewise, and this mount has removed entries: it is shown here even if nothing is left below it.
    Kept,
    /// In the blob named like it.
    Blob,
    /// In the metadata of the container (the root of a volume without a prefix).
    Container,
}

/// Whether a name leads to a node, and what the service lacks of one that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// A name leads here.
    Named(Debt),
    /// The name was taken away by somebody else, or leads to a newer version: the kernel may still hold it.
    Superseded,
    /// This mount removed or replaced the name: only open handles lead here.
    Unlinked,
}

/// What the service lacks of a node, besides written data (which its content knows).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Debt {
    Nothing,
    /// Attributes were changed, and travel with the next commit.
    Attributes,
    /// The first commit has not happened; attributes travel with it.
    Blob,
}

/// Whether a blob's content can be changed in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    /// A page or append blob of somebody else.
    ReadOnly,
}

/// What changes about a node.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) attrs: Attrs,
    /// Length of the committed version.
    pub(crate) size: u64,
    /// What is known of its digest.
    pub(crate) digest: Digest,
    /// Committed version; `None` for implicit directories and files that were never committed.
    pub(crate) etag: Option<ETag>,
    /// `Last-Modified` of the committed version, or when the node was made.
    pub(crate) modified: SystemTime,
    pub(crate) ctime: SystemTime,
    /// Directories: when an entry last came or went, by this mount or as a listing shows.
    pub(crate) entries_changed: Option<SystemTime>,
    pub(crate) access: Access,
    /// When the service was asked for what is here.
    pub(crate) validated: Instant,
    /// Answers to requests that were sent before this moment of the tree's clock say nothing about the node.
    pub(crate) stamp: u64,
    pub(crate) life: Life,
    pub(crate) marker: Marker,
    /// Content that handles share; kept for a while after the last one is gone.
    pub(crate) content: Option<Arc<File>>,
    /// Open handles, on `content` all of them: another version that is opened is another node.
    pub(crate) handles: u32,
    /// Open handles that may write.
    pub(crate) writers: u32,
    /// Those of them that were flushed and did not write since, see `Handle::flushed`.
    pub(crate) flushed: u32,
    /// Cut to nothing by an open (or by its name), and neither written to nor stored since.
    pub(crate) emptied: bool,
    /// A close said that all is well before what is here was in the service: it is not discarded because the
    /// service is away for a while.
    pub(crate) promised: bool,
    /// Commits that nobody waits for go on until one succeeds.
    pub(crate) retrying: bool,
    /// Counts attribute changes, so that a commit knows whether it carried the last one.
    pub(crate) changes: u64,
    /// Requests of ours under way that change the blob's version.
    pub(crate) busy: u32,
    /// Pages that the kernel may hold are those of `content` (or of `etag`, while there is none).
    pub(crate) cached: bool,
    /// Size and modification time that the kernel has.
    pub(crate) kernel_view: Option<(u64, SystemTime)>,
    /// Target of a symbolic link, once read.
    pub(crate) target: Option<Arc<[u8]>>,
    /// Reserved name that the blob was moved to when it was deleted while open.
    pub(crate) hidden: Option<String>,
}

impl Node {
    pub(crate) fn new(id: NodeId, kind: Kind, state: State) -> Arc<Self> {
        Arc::new(Self {
            id,
            kind,
            change: AsyncMutex::new(()),
            directory: (kind == Kind::Directory).then(DirectoryLocks::default),
            pages: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    /// It has another name now. The change time of what was copied there is stored with the copy; a
    /// directory's is this mount's, and what is not stored yet stores it with its first commit.
    pub(crate) fn renamed(&self, now: SystemTime) {
        let mut state = self.state();
        if self.kind == Kind::Directory || state.uncommitted() {
            state.ctime = now;
        }
    }

    /// The state. Innermost lock but for the journal's: nothing else is locked while it is held, nothing
    /// awaited.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// A node that this mount makes now.
    pub(crate) fn fresh(attrs: Attrs, now: SystemTime) -> Self {
        Self {
            attrs,
            size: 0,
            digest: Digest::Unknown,
            etag: None,
            modified: now,
            ctime: now,
            entries_changed: None,
            access: Access::ReadWrite,
            validated: Instant::now(),
            stamp: 0,
            life: Life::Named(Debt::Nothing),
            marker: Marker::Implicit,
            content: None,
            handles: 0,
            writers: 0,
            flushed: 0,
            emptied: false,
            promised: false,
            retrying: false,
            changes: 0,
            busy: 0,
            cached: false,
            kernel_view: None,
            target: None,
            hidden: None,
        }
    }

    /// A node as the service describes it.
    pub(crate) fn of(properties: &Properties, at: Instant) -> Self {
        let mut state = Self::fresh(Attrs::default(), properties.last_modified);
        state.adopt(properties, at);
        state
    }

    /// Takes over what the service says. The same version changes nothing but the time of validation.
    pub(crate) fn adopt(&mut self, properties: &Properties, at: Instant) {
        self.validated = at;
        if self.etag.as_ref() == Some(&properties.etag) {
            return;
        }
        let (kind, mut attrs) = attrs::of(properties);
        let ctime = attrs.ctime.take();
        self.attrs = attrs;
        self.size = properties.content_length;
        self.digest = Digest::of_version(properties);
        self.etag = Some(properties.etag.clone());
        self.modified = properties.last_modified;
        self.ctime = ctime.unwrap_or(properties.last_modified);
        // Entries came or went after it was written.
        self.entries_changed = self.entries_changed.filter(|at| *at > properties.last_modified);
        self.access = match properties.blob_type {
            BlobType::Block => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        self.target = None;
        self.cached = false;
        if self
            .content
            .as_ref()
            .is_some_and(|c| c.etag().as_ref() != Some(&properties.etag))
        {
            self.content = None;
        }
        if kind == Kind::Directory || properties.is_directory {
            self.marker = Marker::Blob;
        }
    }

    /// Memory of what the service keeps with the blob, which may be some KiB, and of a link's target.
    pub(crate) fn heap(&self) -> usize {
        self.attrs.heap() + self.target.as_ref().map_or(0, |target| target.len())
    }

    /// A write of ours gave the blob a new version.
    pub(crate) fn written(&mut self, written: &Written, stamp: u64) {
        self.etag = Some(written.etag.clone());
        self.modified = written.last_modified;
        self.validated = Instant::now();
        self.stamp = stamp;
    }

    /// The version that the content committed on its own, for want of memory, if that was not noted here yet.
    pub(crate) fn own_commit(&self) -> Option<Written> {
        let written = self.content.as_ref().filter(|c| !c.is_stale())?.written()?;
        (self.etag.as_ref() != Some(&written.etag)).then_some(written)
    }

    /// True when no name leads here any more.
    pub(crate) fn nameless(&self) -> bool {
        !matches!(self.life, Life::Named(_))
    }

    /// What the service lacks; nothing of a node without a name.
    pub(crate) fn debt(&self) -> Debt {
        match self.life {
            Life::Named(debt) => debt,
            Life::Superseded | Life::Unlinked => Debt::Nothing,
        }
    }

    /// Nothing of a node without a name is owed to the service.
    pub(crate) fn set_debt(&mut self, debt: Debt) {
        if let Life::Named(owed) = &mut self.life {
            *owed = debt;
        }
    }

    /// True while the first commit has not happened.
    pub(crate) fn uncommitted(&self) -> bool {
        self.debt() == Debt::Blob
    }

    /// True while there is something that a close has left to a later commit.
    pub(crate) fn owes(&self) -> bool {
        let dirty = self.content.as_ref().is_some_and(|c| c.is_dirty());
        !self.nameless() && (dirty || self.debt() != Debt::Nothing)
    }

    /// Attributes were changed, and travel with the next commit.
    pub(crate) fn owe_attributes(&mut self) {
        if let Life::Named(owed @ Debt::Nothing) = &mut self.life {
            *owed = Debt::Attributes;
        }
    }

    /// Notes what the content committed on its own. Attributes of the last writes are still to be stored.
    pub(crate) fn catch_up(&mut self) {
        if let Some(written) = self.own_commit() {
            self.written(&written, self.stamp);
            let committed = self.committed();
            (self.size, self.digest) = committed;
            self.set_debt(Debt::Attributes);
        }
    }

    /// True when the content lost its version to somebody else: what is in the service counts, not what is
    /// here.
    pub(crate) fn stale(&self) -> bool {
        !self.nameless() && self.content.as_ref().is_some_and(|c| c.is_stale())
    }

    /// True while this mount knows more about the node than the service.
    pub(crate) fn pinned(&self) -> bool {
        if self.stale() {
            return self.busy > 0;
        }
        let dirty = || self.content.as_ref().is_some_and(|c| c.is_dirty());
        self.busy > 0
            || match self.life {
                Life::Named(Debt::Blob | Debt::Attributes) => true,
                Life::Named(Debt::Nothing) => dirty() || self.own_commit().is_some(),
                // Whoever writes here is still to be told that there is no place for it.
                Life::Superseded => dirty(),
                Life::Unlinked => false,
            }
    }

    /// Whether somebody may be about to write.
    pub(crate) fn writing(&self) -> bool {
        self.writers > self.flushed
    }

    /// True while attributes are this mount's to answer: pinned, open for writing, or nameless.
    pub(crate) fn local(&self) -> bool {
        (self.writing() && self.content.is_some() && !self.stale()) || self.nameless() || self.pinned()
    }

    /// A handle is gone; true when it was the last.
    pub(crate) fn closed(&mut self, writes: bool) -> bool {
        self.handles = self.handles.saturating_sub(1);
        self.writers = self.writers.saturating_sub(u32::from(writes));
        self.handles == 0
    }

    /// True when handles have another version open than this one, which then gets a node of its own.
    pub(crate) fn superseded_by(&self, etag: &ETag) -> bool {
        self.handles > 0 && self.content.as_ref().and_then(|c| c.etag()).as_ref() != Some(etag)
    }

    /// Size to show.
    pub(crate) fn shown_size(&self) -> u64 {
        match &self.content {
            Some(content) if (self.handles > 0 && !self.stale()) || self.pinned() || self.nameless() => {
                content.size()
            }
            _ => self.size,
        }
    }

    /// Directories: a listing shows that an entry came or went at this time, and not by this mount.
    pub(crate) fn entries_changed_elsewhere(&mut self, at: SystemTime) {
        if at > self.modified && self.entries_changed.is_none_or(|known| at > known) {
            self.entries_changed = Some(at);
            self.ctime = self.ctime.max(at);
        }
    }

    /// Modification time to show.
    pub(crate) fn mtime(&self) -> SystemTime {
        self.entries_changed.or(self.attrs.mtime).unwrap_or(self.modified)
    }

    /// Notes a change of attributes by this mount.
    pub(crate) fn changed(&mut self, now: SystemTime) {
        self.ctime = now;
        self.changes += 1;
    }

    /// Notes a change of content by this mount.
    pub(crate) fn content_changed(&mut self, now: SystemTime) {
        self.attrs.mtime = Some(now);
        self.changed(now);
    }

    /// Attributes to store, with this change time.
    pub(crate) fn to_store(&self, ctime: SystemTime) -> Attrs {
        Attrs {
            ctime: Some(ctime),
            ..self.attrs.clone()
        }
    }

    /// The committed version's content.
    pub(crate) fn content_of(&self) -> ContentOf {
        let (size, digest) = self.committed();
        ContentOf { size, digest }
    }

    /// Size and digest of the committed version.
    pub(crate) fn committed(&self) -> (u64, Digest) {
        let content = self.content.as_ref().filter(|c| c.etag() == self.etag);
        let committed = content.and_then(|content| content.committed());
        committed.unwrap_or((self.size, self.digest))
    }

    /// Metadata to store with the blob, as far as it fits beside that of others.
    pub(crate) fn metadata(&self, kind: Kind, defaults: &Defaults) -> Result<Metadata> {
        attrs::encode_fitting(&self.to_store(self.ctime), kind, defaults)
    }

    /// Drops set-user-id, and set-group-id where it means execution, as a change of content or owner by
    /// others than root does.
    pub(crate) fn kill_privileges(&mut self, kind: Kind, defaults: &Defaults) -> bool {
        self.attrs.kill_privileges(kind, defaults)
    }
}

/// Attributes as a file system shows them.
#[derive(Debug, Clone)]
pub(crate) struct Stat {
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) atime: SystemTime,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
}

impl Stat {
    /// What to show of a node; `subdirectories` as far as they are known.
    pub(crate) fn of(node: &Node, state: &mut State, subdirectories: u32, defaults: &Defaults) -> Self {
        let mtime = state.mtime();
        let size = match node.kind {
            Kind::Directory | Kind::Fifo | Kind::Socket => 0,
            Kind::File | Kind::Symlink => state.shown_size(),
        };
        state.kernel_view = Some((size, mtime));
        Self {
            id: node.id,
            kind: node.kind,
            size,
            mode: state.attrs.mode.unwrap_or(defaults.mode(node.kind)),
            uid: state.attrs.uid.unwrap_or(defaults.uid),
            gid: state.attrs.gid.unwrap_or(defaults.gid),
            nlink: match (state.nameless(), node.kind) {
                (true, _) => 0,
                (false, Kind::Directory) => 2 + subdirectories,
                (false, _) => 1,
            },
            atime: state.attrs.atime.unwrap_or(mtime),
            mtime,
            ctime: state.ctime,
        }
    }
}
