//! The content of one file: what reads, writes, truncation and commits mean. Shared by all handles of one version.
//!
//! The tree owns names and attributes, a [`File`] owns bytes. The tree asks it to read and write, tells it the blob's
//! name and hands it the metadata to store with the next commit; the file tells it size and version.
//!
//! A file is a committed *base* version, an *overlay* of what was written since, and a logical size. Where the overlay
//! has nothing, the base shows through; past the part of the base that is still valid, there are zeros. A commit makes
//! the overlay part of the base.

pub(crate) mod cache;
pub(crate) mod commit;
pub(crate) mod copy;
mod core;
pub mod dirty_log;
pub(crate) mod fetch;
pub(crate) mod ids;
pub(crate) mod overlay;
pub(crate) mod plan;
pub(crate) mod stage;
mod state;
pub(crate) mod streams;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use blob_client::{ETag, Metadata, Written};
use thiserror::Error;
use vsc_driver::buffer::{Arena, Slice};

use self::dirty_log::{DirtyLog, NoLog};
use self::streams::Streams;
use crate::budget::{Budget, Share};
use crate::store::Store;

pub(crate) use self::core::Core;
pub(crate) use self::state::{Assembled, BaseVersion, Blocks, CORE_BYTES, StagedBlock, State, Target};

/// What every file of a volume needs.
#[derive(Debug, Clone)]
pub struct Env {
    /// The container.
    pub store: Arc<dyn Store>,
    /// Shared budget.
    pub budget: Arc<Budget>,
    /// The volume's part of it for dirty data.
    pub share: Arc<Share>,
    /// Shared arena.
    pub arena: Arc<Arena>,
    /// Runtime for background work.
    pub runtime: tokio::runtime::Handle,
    /// Sizes; [`Tuning::default`] outside of tests.
    pub tuning: Tuning,
    /// Where this file's dirty data is written down (one per file: the log knows the node).
    pub log: Arc<dyn DirtyLog>,
    /// False once the endpoint has shown that it has no Put Block From URL. One per volume.
    pub server_copy: Arc<AtomicBool>,
}

impl Env {
    /// An environment with the usual sizes and no log.
    pub fn new(
        store: Arc<dyn Store>,
        budget: Arc<Budget>,
        arena: Arc<Arena>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            store,
            share: budget.join(),
            budget,
            arena,
            runtime,
            tuning: Tuning::default(),
            log: Arc::new(NoLog),
            server_copy: Arc::new(AtomicBool::new(true)),
        }
    }

    /// The same with a log of dirty data, for one file.
    pub fn with_log(&self, log: Arc<dyn DirtyLog>) -> Self {
        Self { log, ..self.clone() }
    }
}

/// Sizes that decide how content is read and laid out, in bytes unless said otherwise. Tests make them tiny.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Block of a sequentially written file; a file that fits into one is a single Put Blob.
    pub block: u64,
    /// What a small overwrite inside a large block re-sends at most.
    pub granule: u64,
    /// A file up to this size is read with one GET and rewritten with one Put Blob.
    pub small_file: u64,
    /// A random read is rounded to this.
    pub round: u64,
    /// Parts of a stream start at this size ...
    pub part_min: u64,
    /// ... and grow to this (at most what one buffer holds).
    pub part_max: u64,
    /// What one stream may be ahead of its reader.
    pub window_max: u64,
    /// Blocks of a blob (service limit 50,000).
    pub max_blocks: usize,
    /// Kept bytes below this are re-sent instead of copied by the service.
    pub copy_min: u64,
    /// Bytes of one Put Block From URL.
    pub copy_max: u64,
    /// Largest block of zeros.
    pub zero_max: u64,
    /// Smallest piece of dirty memory.
    pub page: u64,
    /// Blocks of one file staged at once.
    pub stage_parallel: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            block: 8 << 20,
            granule: 1 << 20,
            small_file: 1 << 20,
            round: 64 << 10,
            part_min: 1 << 20,
            part_max: 8 << 20,
            window_max: 128 << 20,
            max_blocks: 50_000,
            copy_min: 256 << 10,
            copy_max: 64 << 20,
            zero_max: 32 << 20,
            page: 4 << 10,
            stage_parallel: 8,
        }
    }
}

/// Why an operation on content failed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The blob was changed or deleted by somebody else since it was opened (ESTALE).
    #[error("the blob was changed by somebody else")]
    Stale,
    /// The blob cannot be written in place (page or append blob: EPERM... see errno.rs).
    #[error("{0} blobs cannot be written")]
    Unwritable(&'static str),
    /// Larger than a block blob can be (EFBIG).
    #[error("file too large")]
    TooLarge,
    /// The budget has no room for more dirty data and none could be made in time (ENOSPC).
    #[error("no room for more unsent data: the service does not take it fast enough")]
    NoRoom,
    /// The service or the way to it.
    #[error(transparent)]
    Client(Arc<blob_client::Error>),
}

impl From<blob_client::Error> for FileError {
    fn from(error: blob_client::Error) -> Self {
        Self::Client(Arc::new(error))
    }
}

/// The committed version a file starts from.
#[derive(Debug, Clone)]
pub struct Base {
    /// Version.
    pub etag: ETag,
    /// Length in bytes.
    pub size: u64,
    /// True for block blobs (others are read-only).
    pub writable: bool,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// To this offset in bytes.
    Offset(u64),
    /// To the end of the file, wherever it is when the bytes are taken (O_APPEND).
    End,
}

impl From<u64> for At {
    fn from(offset: u64) -> Self {
        Self::Offset(offset)
    }
}

/// Bytes answered to a read: one contiguous slice (fuser replies with one slice).
#[derive(Debug, Clone)]
pub enum ReadData {
    /// Straight out of the cache.
    Slice(Slice),
    /// Put together (a read that spans extents, holes or dirty data).
    Owned(Vec<u8>),
}

impl std::ops::Deref for ReadData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Makes blobs that no name leads to, for data of deleted files that are too large for memory. Implemented by the tree.
#[async_trait]
pub(crate) trait Refuge: Send + Sync + std::fmt::Debug {
    /// A new blob, empty and leased.
    async fn make(&self) -> Result<Shelter, blob_client::Error>;
}

/// A blob that no name leads to.
#[derive(Debug)]
pub(crate) struct Shelter {
    pub(crate) blob: String,
    pub(crate) written: Written,
    pub(crate) lease: String,
    /// What marks it; every version has to carry it.
    pub(crate) metadata: Metadata,
    /// Deletes the blob when it is dropped.
    pub(crate) _guard: Box<dyn Keep>,
}

/// Keeps a [`Shelter`] as long as it lives.
pub(crate) trait Keep: Send + std::fmt::Debug {}

/// What a reading handle remembers: its streams (sequential detection). One per open handle.
#[derive(Debug, Default)]
pub struct Reader {
    pub(crate) streams: Mutex<Streams>,
}

/// Keeps the version of a file still: no commit runs while it lives. See [`File::hold`].
#[derive(Debug)]
pub struct Hold {
    _held: self::core::Held,
}

/// Content of one blob version plus what was written on top of it and not committed yet.
///
/// Every operation is atomic against every other on the same file: a read sees all of a write or nothing of it.
#[derive(Debug)]
pub struct File {
    core: Arc<Core>,
}

impl File {
    /// A new, empty file: nothing is in the service until the first commit, which uses If-None-Match: * (Stale when
    /// somebody else created it meanwhile). `must_create` is what O_EXCL was; both kinds are guarded the same way,
    /// because replacing a blob that was never looked at would be a silent overwrite.
    pub fn create(env: Env, blob: String, must_create: bool) -> Arc<Self> {
        let _ = must_create;
        Arc::new(Self {
            core: Core::new(env, blob, None),
        })
    }

    /// The content of an existing blob.
    pub fn open(env: Env, blob: String, base: Base) -> Arc<Self> {
        Arc::new(Self {
            core: Core::new(env, blob, Some(base)),
        })
    }

    /// Logical size in bytes, dirty data included.
    pub fn size(&self) -> u64 {
        self.core.lock().size
    }

    /// Version of the committed base; `None` before the first commit.
    pub fn etag(&self) -> Option<ETag> {
        self.core.lock().base.as_ref().map(|base| base.etag.clone())
    }

    /// The last commit of this process, its own ones (see [`File::set_metadata`]) included; `None` when there was none.
    pub fn written(&self) -> Option<Written> {
        self.core.lock().written.clone()
    }

    /// True while a commit would have something to send. Never for a file that no name leads to: nobody needs it to be durable.
    pub fn is_dirty(&self) -> bool {
        let state = self.core.lock();
        state.lease.is_none() && state.is_dirty()
    }

    /// True once somebody else's change was noticed: commits answer [`FileError::Stale`].
    pub fn is_stale(&self) -> bool {
        self.core.lock().stale
    }

    /// The answer, if it needs no request and no waiting (called in the FUSE loop thread). Past the end: empty.
    pub fn try_read(&self, reader: &Reader, offset: u64, len: usize) -> Option<ReadData> {
        self.core.try_read(reader, offset, len)
    }

    /// The answer, fetching what is missing. Several reads run at once.
    pub async fn read(&self, reader: &Reader, offset: u64, len: usize) -> Result<ReadData, FileError> {
        self.core.read(reader, offset, len).await
    }

    /// Takes the bytes if the budget has room without waiting; false = call [`File::write`] with an owned copy.
    pub fn try_write(&self, at: impl Into<At>, data: &[u8]) -> Result<bool, FileError> {
        self.core.try_write(at.into(), data)
    }

    /// Takes the bytes, waiting for the budget (staging dirty blocks meanwhile).
    pub async fn write(&self, at: impl Into<At>, data: &[u8]) -> Result<(), FileError> {
        self.core.write(at.into(), data).await
    }

    /// Sets the size: cuts, or grows with a hole.
    pub async fn truncate(&self, size: u64) -> Result<(), FileError> {
        self.core.truncate(size).await
    }

    /// Zeroes a range without changing the size (FALLOC_FL_PUNCH_HOLE).
    pub async fn punch_hole(&self, offset: u64, len: u64) -> Result<(), FileError> {
        self.core.punch_hole(offset, len).await
    }

    /// Grows the size to at least offset+len (fallocate mode 0; `keep_size` changes nothing).
    pub async fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        self.core.allocate(offset, len, keep_size)
    }

    /// SEEK_DATA from `offset`; `None` = ENXIO.
    pub async fn seek_data(&self, offset: u64) -> Result<Option<u64>, FileError> {
        Ok(self.core.lock().seek_data(offset))
    }

    /// SEEK_HOLE from `offset`; `None` = ENXIO.
    pub async fn seek_hole(&self, offset: u64) -> Result<Option<u64>, FileError> {
        Ok(self.core.lock().seek_hole(offset))
    }

    /// copy_file_range out of another file of the same volume, server-side for whole committed ranges; bytes copied.
    pub async fn copy_from(&self, source: &File, from: u64, to: u64, len: u64) -> Result<u64, FileError> {
        self.core.copy_from(&source.core, from, to, len).await
    }

    /// Makes everything accepted so far durable in the service with this metadata, If-Match on the base. `None` when there
    /// was nothing to send. Concurrent calls run one after the other; writes may go on meanwhile and stay dirty.
    ///
    /// A block that could not be staged in the background is still dirty; it is staged again here, and only if that
    /// fails is there an error. After an error everything is still dirty, and the next commit tries all of it again.
    pub async fn commit(&self, metadata: Metadata) -> Result<Option<Written>, FileError> {
        self.core.commit(Some(metadata)).await
    }

    /// Metadata for a commit that the file has to make on its own: when memory is short and data that is only staged
    /// has to be read or changed again. The tree says so when it opens a file for writing and when attributes change
    /// while the file is dirty. A file that was never told asks the service for what is there.
    pub fn set_metadata(&self, metadata: Metadata) {
        let mut state = self.core.lock();
        if state.lease.is_some() {
            // It has that of its blob.
            return;
        }
        state.metadata_noted = state.is_dirty();
        if state.metadata_noted {
            self.core.env.log.metadata(&metadata);
        }
        state.metadata = Some(metadata);
    }

    /// The blob that the file was moved to ([`File::moved`]) is leased: what is sent to it carries the lease and this metadata.
    pub(crate) fn leased(&self, lease: String, metadata: Metadata) {
        let mut state = self.core.lock();
        state.lease = Some(lease);
        state.metadata = Some(metadata);
    }

    /// Where the data of the file can go when it is detached and memory is short.
    pub(crate) fn give_refuge(&self, refuge: Arc<dyn Refuge>) {
        self.core.lock().refuge = Some(refuge);
    }

    /// Keeps the version still while the tree changes the blob (metadata, name): waits for a running commit, holds off
    /// others, keeps in memory what is written meanwhile, and makes reads that meet the new version wait for [`File::rebase`] or [`File::moved`] instead of
    /// reporting a foreign change. Data that is only staged is committed first, so that it does not stay behind under
    /// the old name. Calling [`File::commit`] while holding waits for ever.
    pub async fn hold(&self) -> Result<Hold, FileError> {
        self.core.hold().await.map(|held| Hold { _held: held })
    }

    /// After the tree changed only the blob's metadata: the base has a new version with the same bytes. Call it while
    /// holding ([`File::hold`]).
    pub fn rebase(&self, written: &Written) {
        self.core.rebase(written);
    }

    /// The tree moved the blob (or an uncommitted file's name): later requests use this name and version. Call it while
    /// holding ([`File::hold`]).
    pub fn moved(&self, blob: String, written: Option<&Written>) {
        self.core.moved(blob, written);
    }

    /// The blob could not be deleted after [`File::detach`]: what is in memory stays readable, writes and commits fail with
    /// [`FileError::Stale`].
    pub fn give_up(&self) {
        let mut state = self.core.lock();
        state.stale = true;
        if state.lease.take().is_some() {
            // What was sent since it has the lease went to a blob that nobody will find.
            state.detached = true;
            state.owed = true;
        }
    }

    /// Before the blob is deleted while handles are open: loads what is not in memory if it is at most `limit` bytes and
    /// pins it; false when it is larger (the tree then moves the blob aside instead). Afterwards commits do nothing. What is in memory goes to a blob of
    /// its own when memory is short, if the tree offers one.
    pub async fn detach(&self, limit: u64) -> Result<bool, FileError> {
        self.core.detach(limit).await
    }
}
