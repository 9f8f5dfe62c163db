//! A store whose calls take turns at random: on one thread, a seed decides which of two operations is first
//! at each step.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use blob_client::{
    BlockId, BlockList, BlockRef, Body, Condition, ETag, Got, ListOptions, ListPage, Metadata, Properties,
    PutOptions, Result, StoredHeaders, Written,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vsc_driver::buffer::Buffer;

use crate::store::Store;
use crate::store::fake::FakeStore;

#[derive(Debug)]
pub(super) struct Jitter {
    store: Arc<FakeStore>,
    rng: Mutex<StdRng>,
}

impl Jitter {
    pub(super) fn new(store: Arc<FakeStore>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            store,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }

    async fn pause(&self) {
        let turns = self
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random_range(0..3u32);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

macro_rules! turn {
    ($self:ident, $call:expr) => {{
        $self.pause().await;
        let answer = $call.await;
        $self.pause().await;
        answer
    }};
}

#[async_trait]
impl Store for Jitter {
    async fn get(&self, blob: &str, range: Range<u64>, condition: &Condition, dest: Buffer) -> Result<Got> {
        turn!(self, self.store.get(blob, range, condition, dest))
    }
    async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        turn!(self, self.store.head(blob, condition))
    }
    async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        turn!(self, self.store.put(blob, body, options))
    }
    async fn stage(&self, blob: &str, id: &BlockId, body: Body, lease: Option<&str>) -> Result<()> {
        turn!(self, self.store.stage(blob, id, body, lease))
    }
    async fn stage_from(
        &self,
        blob: &str,
        id: &BlockId,
        source: &str,
        range: Range<u64>,
        source_etag: Option<&ETag>,
        lease: Option<&str>,
    ) -> Result<()> {
        turn!(
            self,
            self.store.stage_from(blob, id, source, range, source_etag, lease)
        )
    }
    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        turn!(self, self.store.commit(blob, blocks, options))
    }
    async fn block_list(&self, blob: &str) -> Result<BlockList> {
        turn!(self, self.store.block_list(blob))
    }
    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written> {
        turn!(self, self.store.set_metadata(blob, metadata, condition))
    }
    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        turn!(self, self.store.delete(blob, condition))
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
        turn!(
            self,
            self.store
                .copy(source, source_etag, stored, target, metadata, condition)
        )
    }
    async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        turn!(self, self.store.list(options))
    }
    async fn acquire_lease(&self, blob: &str, seconds: u32) -> Result<String> {
        turn!(self, self.store.acquire_lease(blob, seconds))
    }
    async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        turn!(self, self.store.renew_lease(blob, lease))
    }
    async fn container_metadata(&self) -> Result<Metadata> {
        turn!(self, self.store.container_metadata())
    }
    async fn set_container_metadata(&self, metadata: &Metadata) -> Result<()> {
        turn!(self, self.store.set_container_metadata(metadata))
    }
}
