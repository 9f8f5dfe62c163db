//! A place for the data of files that no name leads to.

use async_trait::async_trait;
use blob_client::{Metadata, Written};

/// Makes blobs that no name leads to, for data of deleted files that are too large for memory. Implemented by
/// the tree.
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
