//! A store whose calls take turns at random: on one thread, a seed decides which of two operations is first
//! at each step.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use blob_client::{
    BlockId, BlockList, BlockRef, Body, Condition, ContainerState, ETag, Error, Got, ListOptions, ListPage,
    Metadata, Properties, PutOptions, Result, StageOptions, StoredHeaders, Written,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use vsc_driver::buffer::Buffer;

use super::snapshot::IS_FOLDER;
use crate::store::Store;
use crate::store::fake::FakeStore;

/// A protection that is taken away from what a mount asks of the service: the model must notice each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// What is deleted is whatever has the name.
    UnconditionalDelete,
    /// A directory that is renamed takes its new name, whoever has it.
    NoClaim,
    /// A directory that is made takes its name, whoever has it.
    UnguardedMarkers,
    /// Attributes are written as this mount knows them, whatever has become of the blob.
    MetadataFromTheCache,
}

fn is_folder(metadata: &Metadata) -> bool {
    metadata.contains_key(IS_FOLDER)
}

/// Copies that do not go on before they are told to.
#[derive(Debug)]
pub(crate) struct Held {
    target: String,
    reached: Notify,
    told: Notify,
    /// Its caller then gives up on it, and the service never sees it.
    gives_up: bool,
}

impl Held {
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Nobody waits here any more, for the copies or in them.
    pub(crate) fn open(&self) {
        self.reached.notify_one();
        self.told.notify_one();
    }

    pub(crate) fn go_on(&self) {
        self.told.notify_one();
    }
}

#[derive(Debug)]
pub(crate) struct Jitter {
    store: Arc<FakeStore>,
    rng: Mutex<StdRng>,
    mutant: Option<Mutant>,
    held: OnceLock<Arc<Held>>,
}

impl Jitter {
    pub(crate) fn new(store: Arc<FakeStore>, seed: u64, mutant: Option<Mutant>) -> Arc<Self> {
        Arc::new(Self {
            store,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            mutant,
            held: OnceLock::new(),
        })
    }

    /// Copies to names that begin so wait.
    pub(crate) fn hold(&self, target: &str, gives_up: bool) -> Arc<Held> {
        let held = Held {
            target: target.to_owned(),
            reached: Notify::new(),
            told: Notify::new(),
            gives_up,
        };
        Arc::clone(self.held.get_or_init(|| Arc::new(held)))
    }

    /// The condition, unless the mutant takes it away.
    fn guard<'c>(&self, condition: &'c Condition, mutant: Mutant, concerned: bool) -> Cow<'c, Condition> {
        if self.mutant == Some(mutant) && concerned {
            Cow::Owned(Condition {
                lease: condition.lease.clone(),
                ..Condition::none()
            })
        } else {
            Cow::Borrowed(condition)
        }
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
        let marker = is_folder(&options.metadata);
        let condition = self.guard(&options.condition, Mutant::UnguardedMarkers, marker);
        let options = PutOptions {
            condition: condition.into_owned(),
            ..options.clone()
        };
        turn!(self, self.store.put(blob, body, &options))
    }
    async fn stage(&self, blob: &str, id: &BlockId, body: Body, options: &StageOptions<'_>) -> Result<()> {
        turn!(self, self.store.stage(blob, id, body, options))
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
        turn!(
            self,
            self.store
                .stage_from(blob, id, source, range, source_etag, options)
        )
    }
    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        turn!(self, self.store.commit(blob, blocks, options))
    }
    async fn block_list(&self, blob: &str) -> Result<BlockList> {
        turn!(self, self.store.block_list(blob))
    }
    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written> {
        let condition = self.guard(condition, Mutant::MetadataFromTheCache, true);
        turn!(self, self.store.set_metadata(blob, metadata, &condition))
    }
    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        let condition = self.guard(condition, Mutant::UnconditionalDelete, true);
        turn!(self, self.store.delete(blob, &condition))
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
        if let Some(held) = self.held.get().filter(|held| target.starts_with(&held.target)) {
            held.reached.notify_one();
            held.told.notified().await;
            if held.gives_up {
                return Err(Error::DeadlineExceeded {
                    waited: Duration::from_secs(60),
                });
            }
            held.told.notify_one();
        }
        let marker = metadata.is_some_and(is_folder);
        let condition = self.guard(condition, Mutant::NoClaim, marker);
        let kept = metadata.is_none() || self.mutant != Some(Mutant::MetadataFromTheCache);
        let source_etag = source_etag.filter(|_| kept);
        turn!(
            self,
            self.store
                .copy(source, source_etag, stored, target, metadata, &condition)
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
    async fn container_state(&self) -> Result<ContainerState> {
        turn!(self, self.store.container_state())
    }
    async fn set_container_metadata(&self, metadata: &Metadata, lease: Option<&str>) -> Result<()> {
        turn!(self, self.store.set_container_metadata(metadata, lease))
    }
    async fn acquire_container_lease(&self, seconds: u32) -> Result<String> {
        turn!(self, self.store.acquire_container_lease(seconds))
    }
    async fn release_container_lease(&self, lease: &str) -> Result<()> {
        turn!(self, self.store.release_container_lease(lease))
    }
    fn now(&self) -> SystemTime {
        self.store.now()
    }
}
