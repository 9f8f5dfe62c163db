//! A blob container in memory, with faults on command and counters: what the tests of this crate run against.
//!
//! It keeps the service's rules that the file system leans on: ETags that change with every write,
//! conditions, ids of one length per blob, staged blocks that vanish with the next commit, leases.

mod calls;
mod fault;
mod rules;

pub use self::fault::{Counters, Fault, Op};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blob_client::{BlobType, BlockId, Metadata, Progress, Properties, Protection, StoredHeaders, Written};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use self::fault::Plan;
use self::rules::{Service, join};

/// A request that its caller no longer waits for.
struct Straggler {
    op: Op,
    /// Calls that are executed before it.
    after: u64,
    /// Whether the service did what it asks.
    run: Box<dyn Fn(&mut Service) -> bool + Send>,
}

impl std::fmt::Debug for Straggler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} after {} calls", self.op, self.after)
    }
}

#[derive(Debug, Default)]
struct State {
    service: Service,
    plan: Plan,
    stragglers: Vec<Straggler>,
    /// Stragglers that came to the service, and whether it did what they ask.
    came_late: Vec<(Op, bool)>,
    /// Blobs that stragglers made where there was none, as they made them.
    made_late: Vec<(String, Bytes, Metadata)>,
    counters: Counters,
    running: u64,
    delay: Duration,
}

impl State {
    /// The call that is executed next has come: stragglers whose turn was before it are executed.
    fn turn(&mut self) {
        let (due, rest): (Vec<_>, Vec<_>) = self.stragglers.drain(..).partition(|s| s.after == 0);
        self.stragglers = rest;
        for straggler in &mut self.stragglers {
            straggler.after -= 1;
        }
        self.straggle(due);
    }

    /// Stragglers are executed.
    fn straggle(&mut self, due: Vec<Straggler>) {
        for straggler in due {
            let before: Vec<String> = self.service.blobs.keys().cloned().collect();
            let done = (straggler.run)(&mut self.service);
            self.came_late.push((straggler.op, done));
            for (name, blob) in &self.service.blobs {
                if before.binary_search(name).is_err() {
                    let metadata = blob.properties.metadata.clone();
                    self.made_late.push((name.clone(), blob.data.clone(), metadata));
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct FakeStore {
    state: Mutex<State>,
    /// While closed (false), calls wait at the door of the service.
    gate: watch::Sender<bool>,
    /// Calls of this kind were executed, and their answers wait.
    held: watch::Sender<Option<Op>>,
    /// Deletions wait: of what is deleted, requests that were lost may be executed yet.
    unsettled: watch::Sender<bool>,
    /// One permit for each call that has come to the gate, or whose answer waits.
    arrived: Semaphore,
    /// Of calls that were answered.
    progress: Progress,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            gate: watch::Sender::new(true),
            held: watch::Sender::new(None),
            unsettled: watch::Sender::new(false),
            arrived: Semaphore::new(0),
            progress: Progress::default(),
        }
    }
}

impl FakeStore {
    /// An empty container.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `times` calls of this kind go wrong.
    pub fn fail(&self, op: Op, fault: Fault, times: u64) {
        self.lock().plan.fail(op, fault, times);
    }

    /// After `pass` more calls of any kind, `times` calls go wrong.
    pub fn fail_after(&self, pass: u64, fault: Fault, times: u64) {
        self.lock().plan.fail_after(pass, fault, times);
    }

    /// Takes back all faults; requests that are on their way stay so. True when what
    /// [`FakeStore::fail_after`] planned has begun.
    pub fn heal(&self) -> bool {
        self.lock().plan.heal()
    }

    /// Requests that are on their way come to the service now. What came late since the last call of this,
    /// and whether the service did what it asks.
    pub fn settle(&self) -> Vec<(Op, bool)> {
        let mut state = self.lock();
        let due = std::mem::take(&mut state.stragglers);
        state.straggle(due);
        std::mem::take(&mut state.came_late)
    }

    /// Blobs that stragglers have made where there was none since the last call, as they made them.
    pub fn made_late(&self) -> Vec<(String, Bytes, Metadata)> {
        std::mem::take(&mut self.lock().made_late)
    }

    /// From now on, deletions wait for requests that were lost; or no longer.
    pub fn unsettle(&self, unsettled: bool) {
        self.unsettled.send_replace(unsettled);
    }

    /// Requests whose callers no longer wait, and that have not come to the service yet.
    pub fn on_their_way(&self) -> usize {
        self.lock().stragglers.len()
    }

    /// Leases that nobody renews have ended.
    pub fn end_leases(&self) {
        let mut state = self.lock();
        state.service.leases.clear();
        state.service.container_lease = None;
    }

    /// Time passes on the service's clock, which goes on by a second with each version.
    pub fn pass(&self, time: Duration) {
        self.lock().service.version += time.as_secs();
    }

    /// Every call takes at least this long.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Put Block From URL answers 501, as some emulators do.
    pub fn refuse_stage_from(&self, refuse: bool) {
        self.lock().service.no_stage_from = refuse;
    }

    /// From now on calls wait before they are executed, until [`FakeStore::open`].
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Lets waiting calls go on.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// From now on answers to calls of this kind wait after their execution, until
    /// [`FakeStore::give_answers`].
    pub fn hold_answers(&self, op: Op) {
        self.held.send_replace(Some(op));
    }

    /// Lets waiting answers go.
    pub fn give_answers(&self) {
        self.held.send_replace(None);
    }

    /// Waits until `calls` more calls have come to a closed gate, or have an answer that waits.
    pub async fn wait_for(&self, calls: u32) {
        if let Ok(permit) = self.arrived.acquire_many(calls).await {
            permit.forget();
        }
    }

    /// What was asked since the start or the last [`FakeStore::reset_counters`].
    pub fn counters(&self) -> Counters {
        let state = self.lock();
        Counters {
            bytes_out: state.service.bytes_out,
            bytes_in: state.service.bytes_in,
            ..state.counters.clone()
        }
    }

    /// Starts counting anew.
    pub fn reset_counters(&self) {
        let mut state = self.lock();
        state.counters = Counters::default();
        (state.service.bytes_out, state.service.bytes_in) = (0, 0);
    }

    /// Content of a blob, past all faults and counters.
    pub fn content(&self, blob: &str) -> Option<Bytes> {
        self.lock().service.blobs.get(blob).map(|b| b.data.clone())
    }

    /// Properties of a blob, past all faults and counters.
    pub fn properties(&self, blob: &str) -> Option<Properties> {
        self.lock().service.blobs.get(blob).map(|b| b.properties.clone())
    }

    /// Sizes of a blob's committed blocks.
    pub fn block_sizes(&self, blob: &str) -> Vec<u64> {
        let state = self.lock();
        state
            .service
            .blobs
            .get(blob)
            .map(|b| b.blocks.iter().map(|(_, d)| d.len() as u64).collect())
            .unwrap_or_default()
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().service.blobs.keys().cloned().collect()
    }

    /// Somebody else writes a blob in one piece.
    pub fn foreign_put(&self, blob: &str, data: impl Into<Bytes>, metadata: Metadata) -> Written {
        let mut state = self.lock();
        state.service.staged.remove(blob);
        state
            .service
            .store(blob, data.into(), Vec::new(), metadata, StoredHeaders::default())
    }

    /// Another client sets what is stored with a blob besides; its version stays, as for tiers and index
    /// tags.
    pub fn foreign_stored(&self, blob: &str, stored: StoredHeaders) {
        if let Some(found) = self.lock().service.blobs.get_mut(blob) {
            found.properties.stored = stored;
        }
    }

    /// Somebody else puts something in the way of who reads or changes a blob; its version stays.
    pub fn foreign_protection(&self, blob: &str, protection: Protection) {
        if let Some(found) = self.lock().service.blobs.get_mut(blob) {
            found.properties.protection = protection;
        }
    }

    /// Somebody else writes a blob out of blocks.
    pub fn foreign_blocks(&self, blob: &str, blocks: Vec<(BlockId, Bytes)>) -> Written {
        let mut state = self.lock();
        state.service.staged.remove(blob);
        let data = join(&blocks);
        state
            .service
            .store(blob, data, blocks, Metadata::new(), StoredHeaders::default())
    }

    /// Somebody else stages a block and goes away.
    pub fn foreign_stage(&self, blob: &str, id: BlockId, data: impl Into<Bytes>) {
        let mut state = self.lock();
        state
            .service
            .staged
            .entry(blob.to_owned())
            .or_default()
            .insert(id, data.into());
    }

    /// Somebody else changes a blob's metadata only.
    pub fn foreign_metadata(&self, blob: &str, metadata: &Metadata) -> Option<Written> {
        let mut state = self.lock();
        let any = blob_client::Condition::none();
        state.service.set_metadata(blob, metadata, &any).ok()
    }

    /// Somebody else appends to an append blob.
    pub fn foreign_append(&self, blob: &str, data: &[u8]) -> bool {
        self.lock().service.append(blob, data)
    }

    /// Somebody else makes it another kind of blob.
    pub fn set_blob_type(&self, blob: &str, kind: BlobType) {
        if let Some(b) = self.lock().service.blobs.get_mut(blob) {
            b.properties.blob_type = kind;
        }
    }

    /// Somebody else says what its digest is; nobody looks whether it is.
    pub fn set_digest(&self, blob: &str, digest: Option<&str>) {
        if let Some(b) = self.lock().service.blobs.get_mut(blob) {
            b.properties.content_md5 = digest.map(str::to_owned);
        }
    }

    /// What is put in one piece has a digest if its writer says one: services of others make none, or not of
    /// each size.
    pub fn make_no_digests(&self) {
        self.lock().service.makes_no_digests = true;
    }

    /// A policy of the container keeps what it holds: blobs can be made, and neither changed nor deleted.
    pub fn keep_blobs(&self, keep: bool) {
        self.lock().service.keeps_blobs = keep;
    }

    /// Somebody else deletes a blob.
    pub fn foreign_delete(&self, blob: &str) -> bool {
        let mut state = self.lock();
        state.service.staged.remove(blob);
        state.service.blobs.remove(blob).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
