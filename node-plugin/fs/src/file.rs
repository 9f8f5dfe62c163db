//! The content of one file: what reads, writes, truncation and commits mean. Shared by all handles of one version.
//!
//! The tree owns names and attributes, a [`File`] owns bytes. The tree asks it to read and write, tells it the blob's
//! name and hands it the metadata to store with the next commit; the file tells it size and version.

use std::sync::Arc;

use blob_client::{ETag, Metadata, Written};
use thiserror::Error;
use vsc_driver::buffer::{Arena, Slice};

use crate::budget::Budget;
use crate::store::Store;

/// What every file of a volume needs.
#[derive(Debug, Clone)]
pub struct Env {
    /// The container.
    pub store: Arc<dyn Store>,
    /// Shared budget.
    pub budget: Arc<Budget>,
    /// Shared arena.
    pub arena: Arc<Arena>,
    /// Runtime for background work.
    pub runtime: tokio::runtime::Handle,
}

/// Why an operation on content failed.
#[derive(Debug, Error)]
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
    /// The service or the way to it.
    #[error(transparent)]
    Client(#[from] blob_client::Error),
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

/// Bytes answered to a read: one contiguous slice (fuser replies with one slice).
#[derive(Debug, Clone)]
pub enum ReadData {
    /// Straight out of the cache.
    Slice(Slice),
    /// Put together (a read that spans extents, holes or dirty data).
    Owned(Vec<u8>),
}

/// What a reading handle remembers: its streams (sequential detection). One per open handle.
#[derive(Debug, Default)]
pub struct Reader {}

/// Content of one blob version plus what was written on top of it and not committed yet.
#[derive(Debug)]
pub struct File {}

#[allow(unused_variables, clippy::todo)]
impl File {
    /// A new, empty file: nothing is in the service until the first commit. `must_create`: the first commit uses
    /// If-None-Match: * (Stale when somebody else created it meanwhile).
    pub fn create(env: Env, blob: String, must_create: bool) -> Arc<Self> {
        todo!()
    }
    /// The content of an existing blob.
    pub fn open(env: Env, blob: String, base: Base) -> Arc<Self> {
        todo!()
    }
    /// Logical size in bytes, dirty data included.
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// Version of the committed base; `None` before the first commit.
    pub fn etag(&self) -> Option<ETag> {
        todo!()
    }
    /// True while a commit would have something to send.
    pub fn is_dirty(&self) -> bool {
        todo!()
    }
    /// The answer, if it needs no request and no waiting (called in the FUSE loop thread). Past the end: empty.
    pub fn try_read(&self, reader: &Reader, offset: u64, len: usize) -> Option<ReadData> {
        todo!()
    }
    /// The answer, fetching what is missing. Several reads run at once.
    pub async fn read(&self, reader: &Reader, offset: u64, len: usize) -> Result<ReadData, FileError> {
        todo!()
    }
    /// Takes the bytes if the budget has room without waiting; false = call [`File::write`] with an owned copy.
    pub fn try_write(&self, offset: u64, data: &[u8]) -> Result<bool, FileError> {
        todo!()
    }
    /// Takes the bytes, waiting for the budget (staging dirty blocks meanwhile).
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        todo!()
    }
    /// Sets the size: cuts, or grows with a hole.
    pub async fn truncate(&self, size: u64) -> Result<(), FileError> {
        todo!()
    }
    /// Zeroes a range without changing the size (FALLOC_FL_PUNCH_HOLE).
    pub async fn punch_hole(&self, offset: u64, len: u64) -> Result<(), FileError> {
        todo!()
    }
    /// Grows the size to at least offset+len (fallocate mode 0; `keep_size` changes nothing).
    pub async fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        todo!()
    }
    /// SEEK_DATA from `offset`; `None` = ENXIO.
    pub async fn seek_data(&self, offset: u64) -> Result<Option<u64>, FileError> {
        todo!()
    }
    /// SEEK_HOLE from `offset`; `None` = ENXIO.
    pub async fn seek_hole(&self, offset: u64) -> Result<Option<u64>, FileError> {
        todo!()
    }
    /// copy_file_range out of another file of the same volume, server-side for whole committed blocks; bytes copied.
    pub async fn copy_from(&self, source: &File, from: u64, to: u64, len: u64) -> Result<u64, FileError> {
        todo!()
    }
    /// Makes everything accepted so far durable in the service with this metadata, If-Match on the base. `None` when there
    /// was nothing to send. Concurrent calls run one after the other; writes may go on meanwhile and stay dirty.
    pub async fn commit(&self, metadata: Metadata) -> Result<Option<Written>, FileError> {
        todo!()
    }
    /// After the tree changed only the blob's metadata: the base has a new version with the same bytes.
    pub fn rebase(&self, written: &Written) {
        todo!()
    }
    /// The tree moved the blob (or an uncommitted file's name): later requests use this name and version.
    pub fn moved(&self, blob: String, written: Option<&Written>) {
        todo!()
    }
    /// Before the blob is deleted while handles are open: loads what is not in memory if it is at most `limit` bytes and
    /// pins it; false when it is larger (the tree then moves the blob aside instead). Afterwards commits do nothing.
    pub async fn detach(&self, limit: u64) -> Result<bool, FileError> {
        todo!()
    }
}
