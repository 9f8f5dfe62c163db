//! The calls a file system needs, over any transport.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vsc_driver::buffer::{Arena, Buffer};

use crate::auth::Credentials;
use crate::error::Result;
use crate::transport::Transport;
use crate::types::*;

/// How to reach one storage account.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Blob endpoint: `https://account.blob.core.windows.net`, or `http://127.0.0.1:10000/devstoreaccount1` for emulators.
    pub endpoint: url::Url,
    /// Credentials.
    pub credentials: Credentials,
    /// Whole time a call may take, retries included. Default 60 s.
    pub deadline: Duration,
    /// One attempt. Default 30 s.
    pub attempt_timeout: Duration,
}

/// A storage account over a transport; clones share everything.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// A client; nothing is sent yet. The arena serves request and response buffers of retries.
    pub fn new(config: ClientConfig, transport: Arc<dyn Transport>, arena: Arc<Arena>) -> Result<Self> {
        let _ = (config, transport, arena);
        todo!()
    }
    /// A container of the account; checks the name's syntax (REST: "Naming and referencing containers").
    pub fn container(&self, name: &str) -> Result<Container> {
        let _ = name;
        todo!()
    }
    /// The transport, for its counters.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        todo!()
    }
}

/// Calls inside one container. Blob names are given decoded, exactly as stored; the client encodes them.
#[derive(Debug, Clone)]
pub struct Container {}

#[allow(unused_variables, clippy::todo)]
impl Container {
    /// Container name.
    pub fn name(&self) -> &str {
        todo!()
    }
    /// Create Container; `AlreadyExists` when it is there.
    pub async fn create(&self, metadata: &Metadata) -> Result<Written> {
        todo!()
    }
    /// Get Container Properties: its metadata and version.
    pub async fn properties(&self) -> Result<(Written, Metadata)> {
        todo!()
    }
    /// Set Container Metadata.
    pub async fn set_container_metadata(&self, metadata: &Metadata) -> Result<Written> {
        todo!()
    }
    /// Delete Container; `ContainerNotFound` when it is not there.
    pub async fn delete_container(&self) -> Result<()> {
        todo!()
    }
    /// Get Blob, `range` in bytes (end exclusive, at most `dest.len()` long). Reading at or past the end gives 0 bytes
    /// (the service's 416 is turned into an empty answer with the blob's properties).
    pub async fn get(
        &self,
        blob: &str,
        range: Range<u64>,
        condition: &Condition,
        dest: Buffer,
    ) -> Result<Got> {
        todo!()
    }
    /// Get Blob Properties.
    pub async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        todo!()
    }
    /// Put Blob (block blob, one request).
    pub async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        todo!()
    }
    /// Put Block.
    pub async fn stage(&self, blob: &str, id: &BlockId, body: Body) -> Result<()> {
        todo!()
    }
    /// Put Block From URL out of a blob of the same account. `Service` error (501, or 409/403 codes) where the endpoint cannot:
    /// the caller then reads and stages.
    pub async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
    ) -> Result<()> {
        todo!()
    }
    /// Put Block List.
    pub async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        todo!()
    }
    /// Get Block List (committed and uncommitted). `BlobNotFound` when neither exists.
    pub async fn block_list(&self, blob: &str) -> Result<BlockList> {
        todo!()
    }
    /// Set Blob Metadata (replaces all).
    pub async fn set_metadata(
        &self,
        blob: &str,
        metadata: &Metadata,
        condition: &Condition,
    ) -> Result<Written> {
        todo!()
    }
    /// Delete Blob, snapshots included.
    pub async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        todo!()
    }
    /// Copy Blob inside the container, waiting until the copy is complete. `metadata` None keeps the source's.
    pub async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        todo!()
    }
    /// One page of List Blobs.
    pub async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        todo!()
    }
    /// Lease Blob: acquire for `seconds` (15..=60, or `None` for ever); the lease id.
    pub async fn acquire_lease(&self, blob: &str, seconds: Option<u32>) -> Result<String> {
        todo!()
    }
    /// Lease Blob: renew.
    pub async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        todo!()
    }
    /// Lease Blob: release.
    pub async fn release_lease(&self, blob: &str, lease: &str) -> Result<()> {
        todo!()
    }
    /// Lease Blob: break at once.
    pub async fn break_lease(&self, blob: &str) -> Result<()> {
        todo!()
    }
}
