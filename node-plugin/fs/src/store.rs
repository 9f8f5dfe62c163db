//! The seam below the file system: what it asks of a blob service, for one container.

pub mod fake;

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use blob_client::{
    BlockId, BlockList, BlockRef, Body, Condition, Container, ContainerState, ETag, Got, ListOptions,
    ListPage, Metadata, Observer, Progress, Properties, PutOptions, Result, StageOptions, StoredHeaders,
    Written,
};
use vsc_driver::buffer::Buffer;
use vsc_driver::channel::Ledger;

/// Blob calls of one container, as [`Container`] documents them. Names are whole blob names.
///
/// Implementations: [`Container`] (the service) and `fake::FakeStore` (memory, with faults, for tests).
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// See [`Container::get`].
    async fn get(&self, blob: &str, range: Range<u64>, condition: &Condition, dest: Buffer) -> Result<Got>;
    /// See [`Container::head`].
    async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties>;
    /// See [`Container::put`].
    async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written>;
    /// See [`Container::stage`].
    async fn stage(&self, blob: &str, id: &BlockId, body: Body, options: &StageOptions<'_>) -> Result<()>;
    /// See [`Container::stage_from`].
    async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
        options: &StageOptions<'_>,
    ) -> Result<()>;
    /// See [`Container::commit`].
    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written>;
    /// See [`Container::block_list`].
    async fn block_list(&self, blob: &str) -> Result<BlockList>;
    /// See [`Container::set_metadata`].
    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written>;
    /// See [`Container::delete`].
    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()>;
    /// See [`Container::wait_for_lost`]; by default nothing that was given up is executed later.
    async fn wait_for_lost(&self, _blob: &str) -> Result<()> {
        Ok(())
    }
    /// See [`Container::check_keeping`]; by default all that is stored with a blob can be read.
    async fn check_keeping(&self, _blob: &str, _stored: &StoredHeaders) -> Result<()> {
        Ok(())
    }
    /// See [`Container::copy`].
    async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        stored: Option<&StoredHeaders>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written>;
    /// See [`Container::list`].
    async fn list(&self, options: &ListOptions) -> Result<ListPage>;
    /// See [`Container::acquire_lease`].
    async fn acquire_lease(&self, blob: &str, seconds: u32) -> Result<String>;
    /// See [`Container::renew_lease`].
    async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()>;
    /// The container itself: see [`Container::state`].
    async fn container_state(&self) -> Result<ContainerState>;
    /// See [`Container::set_container_metadata`].
    async fn set_container_metadata(&self, metadata: &Metadata, lease: Option<&str>) -> Result<()>;
    /// See [`Container::acquire_container_lease`].
    async fn acquire_container_lease(&self, seconds: u32) -> Result<String>;
    /// See [`Container::release_container_lease`].
    async fn release_container_lease(&self, lease: &str) -> Result<()>;
    /// What the service's clock shows, as far as its answers have told; else this machine's.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    /// When what was asked got on last; by default nobody knows.
    fn progress(&self) -> Progress {
        Progress::default()
    }
    /// Names who is told of what is asked from now on: see [`Container::observe`]. By default nobody is.
    fn observe(&self, _observer: Arc<dyn Observer>) {}
    /// Names who is told of memory that a device keeps: see [`Container::keep_books`]. By default none does.
    fn keep_books(&self, _ledger: Arc<dyn Ledger>) {}
}

#[async_trait]
impl Store for Container {
    async fn get(&self, blob: &str, range: Range<u64>, condition: &Condition, dest: Buffer) -> Result<Got> {
        Container::get(self, blob, range, condition, dest).await
    }
    async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        Container::head(self, blob, condition).await
    }
    async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        Container::put(self, blob, body, options).await
    }
    async fn stage(&self, blob: &str, id: &BlockId, body: Body, options: &StageOptions<'_>) -> Result<()> {
        Container::stage(self, blob, id, body, options).await
    }
    async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
        options: &StageOptions<'_>,
    ) -> Result<()> {
        Container::stage_from(self, blob, id, source, range, source_etag, options).await
    }
    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        Container::commit(self, blob, blocks, options).await
    }
    async fn block_list(&self, blob: &str) -> Result<BlockList> {
        Container::block_list(self, blob).await
    }
    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written> {
        Container::set_metadata(self, blob, metadata, condition).await
    }
    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        Container::delete(self, blob, condition).await
    }
    async fn wait_for_lost(&self, blob: &str) -> Result<()> {
        Container::wait_for_lost(self, blob).await
    }
    async fn check_keeping(&self, blob: &str, stored: &StoredHeaders) -> Result<()> {
        Container::check_keeping(self, blob, stored).await
    }
    async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        stored: Option<&StoredHeaders>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        Container::copy(self, source, source_etag, stored, target, metadata, condition).await
    }
    async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        Container::list(self, options).await
    }
    async fn acquire_lease(&self, blob: &str, seconds: u32) -> Result<String> {
        Container::acquire_lease(self, blob, Some(seconds)).await
    }
    async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        Container::renew_lease(self, blob, lease).await
    }
    async fn container_state(&self) -> Result<ContainerState> {
        Container::state(self).await
    }
    async fn set_container_metadata(&self, metadata: &Metadata, lease: Option<&str>) -> Result<()> {
        Container::set_container_metadata(self, metadata, lease)
            .await
            .map(|_| ())
    }
    async fn acquire_container_lease(&self, seconds: u32) -> Result<String> {
        Container::acquire_container_lease(self, seconds).await
    }
    async fn release_container_lease(&self, lease: &str) -> Result<()> {
        Container::release_container_lease(self, lease).await
    }
    fn now(&self) -> SystemTime {
        Container::now(self)
    }
    fn progress(&self) -> Progress {
        Container::progress(self)
    }
    fn observe(&self, observer: Arc<dyn Observer>) {
        Container::observe(self, observer);
    }
    fn keep_books(&self, ledger: Arc<dyn Ledger>) {
        Container::keep_books(self, ledger);
    }
}
