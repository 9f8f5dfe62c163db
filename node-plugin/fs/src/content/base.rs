//! The committed version that a file starts from.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::binding::Digest;
use blob_client::{BlobType, Block, ETag, Metadata, Properties, StoredHeaders};

/// The committed version a file starts from.
#[derive(Debug, Clone)]
pub struct Base {
    /// Version.
    pub etag: ETag,
    /// Length in bytes.
    pub size: u64,
    /// Kind of blob: others than block blobs are read-only.
    pub kind: BlobType,
    /// Digest of the content, when the service says one.
    pub content_md5: Option<String>,
    /// When the blob was made, when the service says so.
    pub created: Option<SystemTime>,
    /// Its metadata.
    pub metadata: Metadata,
    /// What its owner stored with it besides; `None` when it is our own, of which nobody has said anything
    /// yet.
    pub stored: Option<StoredHeaders>,
}

impl From<&Properties> for Base {
    fn from(properties: &Properties) -> Self {
        Self {
            etag: properties.etag.clone(),
            size: properties.content_length,
            kind: properties.blob_type,
            content_md5: properties.content_md5.clone(),
            created: properties.created,
            metadata: properties.metadata.clone(),
            stored: Some(properties.stored.clone()),
        }
    }
}

/// What is known about the blocks of the base.
#[derive(Debug, Clone)]
pub(crate) enum Blocks {
    /// Not asked yet.
    Unknown,
    /// Asked for, without anybody waiting for the answer.
    Asked,
    /// In order; empty for a blob that was put in one piece.
    Known(Arc<Vec<Block>>),
}

/// The committed version.
#[derive(Debug, Clone)]
pub(crate) struct BaseVersion {
    pub(crate) etag: ETag,
    pub(crate) size: u64,
    pub(crate) kind: BlobType,
    pub(crate) content_md5: Option<String>,
    /// The same, and that of a content that this process has sent.
    pub(crate) digest: Digest,
    pub(crate) created: Option<SystemTime>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) stored: Option<StoredHeaders>,
    /// When the service said that, or the blob was made.
    pub(crate) stored_at: Instant,
    pub(crate) blocks: Blocks,
}

impl BaseVersion {
    /// A version that this process made.
    pub(crate) fn own(
        etag: ETag,
        size: u64,
        metadata: Metadata,
        stored: Option<StoredHeaders>,
        (blocks, digest): (Vec<Block>, Digest),
    ) -> Self {
        Self {
            etag,
            size,
            kind: BlobType::Block,
            content_md5: None,
            digest,
            created: None,
            metadata: Arc::new(metadata),
            stored,
            stored_at: Instant::now(),
            blocks: Blocks::Known(Arc::new(blocks)),
        }
    }

    /// The service has said now what the owner stored with this version.
    pub(crate) fn set_headers(&mut self, stored: StoredHeaders) {
        self.stored = Some(stored);
        self.stored_at = Instant::now();
    }

    /// Blocks can be put into it.
    pub(crate) fn writable(&self) -> bool {
        self.kind == BlobType::Block
    }
}

impl From<Base> for BaseVersion {
    fn from(base: Base) -> Self {
        Self {
            etag: base.etag,
            size: base.size,
            kind: base.kind,
            digest: Digest::of_kind(base.kind, base.content_md5.as_deref()),
            content_md5: base.content_md5,
            created: base.created,
            metadata: Arc::new(base.metadata),
            stored: base.stored,
            stored_at: Instant::now(),
            blocks: Blocks::Unknown,
        }
    }
}
