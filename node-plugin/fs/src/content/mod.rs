//! The content of one file: what reads, writes, truncation and commits mean. Shared by all handles of one
//! version.
//!
//! The tree owns names and attributes, a [`File`] owns bytes. The tree asks it to read and write, tells it
//! the blob's name and hands it the metadata to store with the next commit; the file tells it size and
//! version.
//!
//! A file is a committed *base* version, an *overlay* of what was written since, and a logical size. Where
//! the overlay has nothing, the base shows through; past the part of the base that is still valid, there are
//! zeros. A commit makes the overlay part of the base.
//!
//! Imports run one way; calls of methods need not: `Core` and `State` are whole types whose methods are in
//! the files of what they do, and those call each other (a hold commits first, a fetch may find a commit in
//! doubt). Suite `house` reads the `use` lines only. Leaves: errors, tuning, layout; pure data: ids, extents,
//! overlay, plan, streams; `state` is all of it at one instant, `core` puts a lock around that; what talks to
//! the service (fetch, stage, commit, verify, gather, copy) is above, and [`File`] on top.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | base | the committed version of the blob (ETag, size, blocks) that a file goes on top of |
//! | overlay | ranges written since: in memory, holes, or only in the service as staged blocks (*remote*) |
//! | run | memory of the overlay that still takes appends (*open*); sealed, it is immutable |
//! | extent | cached bytes of the base; the budget may drop it at any time |
//! | flight | one GET that is on its way, however many wait for it |
//! | to stage | Put Block: the bytes are in the service, and in no version yet |
//! | to commit | Put Blob or Put Block List: what was written becomes a version, guarded by the base's ETag |
//! | epoch | number of the commit that a segment of the overlay will be in, or of a later one |
//! | version | number that changes when the base does: what was asked of an older one is not cached |
//! | dirty | a commit would have something to send |
//! | superseded | the service has somebody else's version (`ESTALE`): nothing here will be committed |
//! | in doubt | a commit was sent and its answer was lost: the next request finds out what became of it |
//! | held | the tree changes the blob; no commit runs and nothing may be only in the service |
//! | detached | the blob is deleted while handles are open: the content is in memory only |
//! | hidden | the same for content that is too large: it is in a leased blob that no name leads to |
//! | hot | ranges that a commit sends: what was written, and small neighbours |
//! | known | metadata that the tree goes by: what it changed since is merged with what others stored |
//! | described | what is said of a version (size, digest, blocks), to compare it with another one |
//! | pause | the time in which what was refused is not sent again to make room |

mod access;
mod assemble;
mod atoms;
mod base;
pub(crate) mod binding;
mod block_list;
mod commit;
mod copy;
mod core;
mod detach;
pub mod dirty_log;
mod env;
mod error;
mod extents;
mod fetch;
mod flight;
mod follow;
mod gather;
mod holes;
mod ids;
mod layout;
mod overlay;
mod plan;
mod refuge;
mod relation;
mod relief;
mod resize;
mod sent;
mod snapshot;
mod stage;
mod state;
mod streams;
mod tuning;
mod verify;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use blob_client::{BlobType, ETag, Metadata, Properties, StoredHeaders, Written};

pub use self::access::{At, ReadData};
pub use self::base::Base;
pub use self::env::Env;
pub use self::error::FileError;
pub use self::streams::Reader;
pub use self::tuning::Tuning;

use self::core::{Core, Held};
pub(crate) use self::refuge::{Keep, Refuge, Shelter};
pub(crate) use self::relation::{Described, described_same, merge};
pub(crate) use self::state::CORE_BYTES;
use self::state::{Detached, NextMetadata, Place};

/// Keeps the version of a file still: no commit runs while it lives. See [`File::hold`].
#[derive(Debug)]
pub struct Hold {
    _held: Held,
}

/// Content of one blob version plus what was written on top of it and not committed yet.
///
/// Every operation is atomic against every other on the same file: a read sees all of a write or nothing of
/// it.
#[derive(Debug)]
pub struct File {
    core: Arc<Core>,
}

impl File {
    /// A new, empty file: nothing is in the service until the first commit, which uses If-None-Match: *
    /// (Stale when somebody else created it meanwhile), with O_EXCL and without it: replacing a blob that was
    /// never looked at would be a silent overwrite.
    pub fn create(env: Env, blob: String) -> Arc<Self> {
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

    /// What is stored with the committed base; `None` before the first commit. After a commit on top of
    /// somebody else's change of metadata this is what both made of it.
    pub fn stored_metadata(&self) -> Option<Metadata> {
        self.core.stored_metadata().map(|stored| (*stored).clone())
    }

    /// What the tree knows to be stored, and what it had stored since.
    pub(crate) fn known_metadata(&self) -> Option<Metadata> {
        self.core.lock().known.as_deref().cloned()
    }

    /// What it is called in the container, or was when it lost its name: for the log.
    pub(crate) fn blob(&self) -> String {
        self.core.lock().blob.clone()
    }

    /// Size and digest of the committed base; `None` before the first commit.
    pub(crate) fn committed(&self) -> Option<(u64, binding::Digest)> {
        let state = self.core.lock();
        state.base.as_ref().map(|base| (base.size, base.digest))
    }

    /// Somebody opened the file: all of it, as it is now, is promised to stay.
    pub(crate) fn opened(&self, writes: bool) {
        let mut state = self.core.lock();
        state.assured = state.base.as_ref().map_or(0, |base| base.size);
        state.writers += u32::from(writes);
    }

    /// Whoever opened it has closed it.
    pub(crate) fn closed(&self, writes: bool) {
        let mut state = self.core.lock();
        state.writers = state.writers.saturating_sub(u32::from(writes));
    }

    /// The service has this version, which is not the base. Makes it the base if the content is the same, or
    /// nobody writes here and more was put behind it; false when it is another content.
    pub async fn follow(&self, now: Properties) -> Result<bool, FileError> {
        let turn = self.core.turn_to_change(&self.core.commits.place()).await?;
        let followed = self.core.try_follow(Some(now)).await;
        let followed = self.core.heed(&turn, followed)?;
        let mut state = self.core.lock();
        // While there is something to commit the tree keeps to its own attributes.
        if followed && !state.is_dirty() {
            state.know_stored();
        }
        Ok(followed)
    }

    /// Version of the committed base; `None` before the first commit.
    pub fn etag(&self) -> Option<ETag> {
        self.core.lock().base.as_ref().map(|base| base.etag.clone())
    }

    /// Kind of the blob; of one that is still to be made, what it will be.
    pub(crate) fn kind(&self) -> BlobType {
        let state = self.core.lock();
        state.base.as_ref().map_or(BlobType::Block, |base| base.kind)
    }

    /// The last commit of this process, its own ones (see [`File::set_metadata`]) included; `None` when there
    /// was none.
    pub fn written(&self) -> Option<Written> {
        self.core.lock().written.clone()
    }

    /// True while a commit would have something to send. Never for a file that no name leads to: nobody needs
    /// it to be durable.
    pub fn is_dirty(&self) -> bool {
        let state = self.core.lock();
        match state.place {
            Place::Hidden { .. } => false,
            Place::Named | Place::Detached(_) => state.is_dirty(),
        }
    }

    /// True once somebody else's change was noticed: commits answer [`FileError::Stale`].
    pub fn is_stale(&self) -> bool {
        self.core.lock().is_superseded()
    }

    /// The answer, if it needs no request and no waiting (called in the FUSE loop thread). Past the end:
    /// empty.
    pub fn try_read(&self, reader: &Reader, offset: u64, len: usize) -> Option<ReadData> {
        self.core.try_read(reader, offset, len)
    }

    /// The answer, fetching what is missing. Several reads run at once.
    pub async fn read(&self, reader: &Reader, offset: u64, len: usize) -> Result<ReadData, FileError> {
        self.core.read(reader, offset, len).await
    }

    /// Takes the bytes if the budget has room without waiting; false = call [`File::write`] with an owned
    /// copy.
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

    /// Stores a version of another size at once, with this metadata. An error changes nothing: not the file,
    /// and as far as that can be known not the blob. `None`: nothing was done, as there is something to
    /// commit first or the size is the same.
    pub async fn resize(&self, size: u64, metadata: Metadata) -> Result<Option<Written>, FileError> {
        self.core.resize(size, metadata).await
    }

    /// Sets the size if that needs no request; false: call [`File::truncate`].
    pub(crate) fn try_truncate(&self, size: u64) -> Result<bool, FileError> {
        self.core.try_truncate(size)
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
        Ok(self.core.lock().seek_data(offset, self.core.layout.page))
    }

    /// SEEK_HOLE from `offset`; `None` = ENXIO.
    pub async fn seek_hole(&self, offset: u64) -> Result<Option<u64>, FileError> {
        Ok(self.core.lock().seek_hole(offset, self.core.layout.page))
    }

    /// copy_file_range out of another file of the same volume: whole committed ranges by the service, and
    /// holes, up to the first byte that has to go through memory; bytes copied.
    pub async fn copy_stored(&self, source: &File, from: u64, to: u64, len: u64) -> Result<u64, FileError> {
        self.core.copy_stored(&source.core, from, to, len).await
    }

    /// The same through memory, which always works, and of a part only. It may wait for room.
    pub async fn copy_through(&self, source: &File, from: u64, to: u64, len: u64) -> Result<u64, FileError> {
        self.core.copy_through(&source.core, from, to, len).await
    }

    /// Makes everything accepted so far durable in the service with this metadata, If-Match on the base.
    /// `None` when there was nothing to send. Concurrent calls run one after the other; writes may go on
    /// meanwhile and stay dirty.
    ///
    /// A block that could not be staged in the background is still dirty; it is staged again here, and only
    /// if that fails is there an error. After an error everything is still dirty, and the next commit tries
    /// all of it again.
    pub async fn commit(&self, metadata: Metadata) -> Result<Option<Written>, FileError> {
        self.core.commit(Some(metadata)).await
    }

    /// Sends in blocks what the next [`File::commit`] would send before its last request; nothing of a file
    /// that is sent in one request. For a caller whose commit will hold up others: this does not.
    ///
    /// # Errors
    /// Why the commit would only take as long once more for nothing. Of a block that could not be sent there
    /// is none before that: the commit tries it again.
    pub async fn stage_ahead(&self) -> Result<(), FileError> {
        self.core.stage_ahead().await
    }

    /// Metadata for a commit that the file has to make on its own: when memory is short and data that is only
    /// staged has to be read or changed again. The tree says so when it opens a file for writing and when
    /// attributes change while the file is dirty. A file that was never told asks the service for what is
    /// there.
    pub fn set_metadata(&self, metadata: Metadata) {
        let mut state = self.core.lock();
        if let Place::Hidden { .. } = state.place {
            // It has that of its blob.
            return;
        }
        state.metadata = NextMetadata::Given(metadata);
        if state.is_dirty()
            && let Some(metadata) = state.metadata.log()
        {
            self.core.env.log.metadata(metadata);
        }
    }

    /// The blob that the file was moved to ([`File::moved`]) is leased: what is sent to it carries the lease
    /// and this metadata.
    pub(crate) fn leased(&self, lease: String, metadata: Metadata) {
        let mut state = self.core.lock();
        state.place = Place::Hidden {
            lease,
            _shelter: None,
        };
        state.metadata.replace(metadata);
    }

    /// Where the data of the file can go when it is detached and memory is short.
    pub(crate) fn give_refuge(&self, refuge: Arc<dyn Refuge>) {
        self.core.lock().refuge = Some(refuge);
    }

    /// What the owner of the version this file starts from stored with it now: tiers and index tags change
    /// without a new version.
    pub fn set_stored(&self, stored: &StoredHeaders) {
        if let Some(base) = &mut self.core.lock().base {
            base.set_headers(stored.clone());
        }
    }

    /// Keeps the version still while the tree changes the blob (metadata, name): waits for a running commit,
    /// holds off others, keeps in memory what is written meanwhile, and makes reads that meet the new version
    /// wait for [`File::rebase`] or [`File::moved`] instead of reporting a foreign change. Data that is only
    /// staged is committed first, so that it does not stay behind under the old name. Calling
    /// [`File::commit`] while holding waits for ever.
    pub async fn hold(&self) -> Result<Hold, FileError> {
        self.core.hold().await.map(|held| Hold { _held: held })
    }

    /// After the tree changed only the blob's metadata, to this: the base has a new version with the same
    /// bytes. Call it while holding ([`File::hold`]).
    pub fn rebase(&self, written: &Written, metadata: &Metadata) {
        self.core.rebase(written, metadata);
    }

    /// The tree moved the blob (or an uncommitted file's name): later requests use this name and version,
    /// with which this metadata is stored. Call it while holding ([`File::hold`]).
    pub fn moved(&self, blob: String, written: Option<(&Written, &Metadata)>) {
        self.core.moved(blob, written);
    }

    /// The blob was not deleted or replaced after [`File::detach`]: what was to be committed then still is,
    /// by the version it was based on. False where nothing was: that content stays as it is.
    pub fn attach(&self) -> bool {
        self.core.attach()
    }

    /// The blob was deleted or replaced after [`File::detach`]: what is in memory goes to a blob of its own
    /// when memory is short, if the tree offers one. Not before that: from there it could not come back.
    pub(crate) fn departed(&self) {
        self.core.departed();
    }

    /// The blob could not be deleted after [`File::detach`]: what is in memory stays readable, writes and
    /// commits fail with [`FileError::Stale`].
    pub fn give_up(&self) {
        let mut state = self.core.lock();
        state.supersede();
        if let Place::Hidden { .. } = state.place {
            // What was sent since it has the lease went to a blob that nobody will find.
            state.place = Place::Detached(Detached::GivenUp);
        }
    }

    /// Before the blob is deleted while handles are open: loads what is not in memory if it is at most
    /// `limit` bytes and pins it; false when it is larger (the tree then moves the blob aside instead).
    /// Afterwards commits do nothing. Then it has departed for good, or [`File::attach`] follows.
    pub async fn detach(&self, limit: u64) -> Result<bool, FileError> {
        self.core.detach(limit).await
    }
}
