//! The committed version that a file starts from.

use std::sync::Arc;

use blob_client::{Block, ETag, StoredHeaders};

/// The committed version a file starts from.
#[derive(Debug, Clone)]
pub struct Base {
    /// Version.
    pub etag: ETag,
    /// Length in bytes.
    pub size: u64,
    /// True for block blobs (others are read-only).
    pub writable: bool,
    /// What its owner stored with it; `None` when it is our own, of which nobody has said anything yet.
    pub stored: Option<StoredHeaders>,
}

/// What is known about the blocks of the base.
#[derive(Debug, Clone)]
pub(crate) enum Blocks {
    /// Not asked yet.
    Unknown,
    /// In order; empty for a blob that was put in one piece.
    Known(Arc<Vec<Block>>),
}

/// The committed version.
#[derive(Debug, Clone)]
pub(crate) struct BaseVersion {
    pub(crate) etag: ETag,
    pub(crate) size: u64,
    pub(crate) writable: bool,
    pub(crate) blocks: Blocks,
    pub(crate) stored: Option<StoredHeaders>,
}

impl From<Base> for BaseVersion {
    fn from(base: Base) -> Self {
        Self {
            etag: base.etag,
            size: base.size,
            writable: base.writable,
            blocks: Blocks::Unknown,
            stored: base.stored,
        }
    }
}
