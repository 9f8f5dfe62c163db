//! What a file writes down about its dirty data, so that it outlives the process.

use std::fmt::Debug;

use blob_client::{BlockId, ETag, Metadata};

/// The record of one file's dirty data. Implemented by the journal; called in the order in which things
/// happen, with the file locked: an implementation must be quick and must not call back into the file.
pub trait DirtyLog: Send + Sync + Debug {
    /// `len` bytes at `offset` of the file are now those at `arena_offset` of the arena's memfd. Supersedes
    /// what was recorded for the range.
    fn dirty(&self, offset: u64, len: u64, arena_offset: u64);
    /// The range reads as zeros now.
    fn hole(&self, offset: u64, len: u64);
    /// The size was set; content past it is gone.
    fn size(&self, size: u64);
    /// The range is about to be staged under this id (recorded before the request is sent).
    fn block(&self, id: &BlockId, offset: u64, len: u64);
    /// The range of this block is in the service only, as the staged block: its memory serves others from now
    /// on.
    fn sent(&self, id: &BlockId);
    /// The block will not be part of the file.
    fn unstaged(&self, id: &BlockId);
    /// What the next commit stores as the blob's metadata.
    fn metadata(&self, metadata: &Metadata);
    /// Everything recorded before the matching [`DirtyLog::begin_commit`] is in the service under this
    /// version, and no block is staged any more.
    fn committed(&self, etag: &ETag);
    /// A commit has taken its snapshot: what is recorded from now on is not part of it.
    fn begin_commit(&self);
}

/// Writes nothing down.
#[derive(Debug)]
pub struct NoLog;

impl DirtyLog for NoLog {
    fn dirty(&self, _offset: u64, _len: u64, _arena_offset: u64) {}
    fn hole(&self, _offset: u64, _len: u64) {}
    fn size(&self, _size: u64) {}
    fn block(&self, _id: &BlockId, _offset: u64, _len: u64) {}
    fn sent(&self, _id: &BlockId) {}
    fn unstaged(&self, _id: &BlockId) {}
    fn metadata(&self, _metadata: &Metadata) {}
    fn committed(&self, _etag: &ETag) {}
    fn begin_commit(&self) {}
}
