//! A blob container in memory, with faults on command and counters: what the tests of this crate run against.
//!
//! It keeps the service's rules that the file system leans on: ETags that change with every write, conditions, ids of
//! one length per blob, staged blocks that vanish with the next commit, leases.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use blob_client::{
    BlobType, Block, BlockId, BlockList, BlockRef, Body, Condition, ETag, Error, Got, ListItem, ListOptions,
    ListPage, Metadata, Piece, Properties, PutOptions, Result, Written,
};
use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use vsc_driver::buffer::Buffer;

use super::Store;

/// Kind of call, for counters and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Op {
    Get,
    Head,
    Put,
    Stage,
    StageFrom,
    Commit,
    BlockList,
    SetMetadata,
    Delete,
    Copy,
    List,
    AcquireLease,
    RenewLease,
    ContainerMetadata,
    SetContainerMetadata,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The service never sees it; the caller gets `Unreachable`.
    Lost,
    /// The service executes it, the answer is lost; the caller gets `DeadlineExceeded`.
    AnswerLost,
    /// The service refuses with this status and code.
    Status(u16, &'static str),
    /// The caller panics.
    Panic,
}

/// What was asked so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls by kind, failed ones included.
    pub calls: BTreeMap<Op, u64>,
    /// Bytes read by `get`.
    pub bytes_out: u64,
    /// Bytes received by `put` and `stage`.
    pub bytes_in: u64,
    /// Most calls that were being executed at once.
    pub most_at_once: u64,
}

impl Counters {
    /// Calls of one kind.
    pub fn of(&self, op: Op) -> u64 {
        self.calls.get(&op).copied().unwrap_or(0)
    }
    /// Calls of all kinds.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

#[derive(Debug, Clone)]
struct Blob {
    data: Bytes,
    blocks: Vec<(BlockId, Bytes)>,
    properties: Properties,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<String, Blob>,
    staged: BTreeMap<String, BTreeMap<BlockId, Bytes>>,
    container_metadata: Metadata,
    version: u64,
    faults: Vec<(Op, Fault, u64)>,
    /// Calls of any kind that pass, calls that go wrong after them, and how.
    planned: Option<(u64, u64, Fault)>,
    /// One of `planned` went wrong.
    struck: bool,
    /// Lease of a blob, by name.
    leases: BTreeMap<String, String>,
    counters: Counters,
    running: u64,
    no_stage_from: bool,
    delay: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct FakeStore {
    state: Mutex<State>,
    /// While closed (false), calls wait at the door of the service.
    gate: watch::Sender<bool>,
    /// Calls of this kind were executed, and their answers wait.
    held: watch::Sender<Option<Op>>,
    /// One permit for each call that has come to the gate, or whose answer waits.
    arrived: Semaphore,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            gate: watch::Sender::new(true),
            held: watch::Sender::new(None),
            arrived: Semaphore::new(0),
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
        self.lock().faults.push((op, fault, times));
    }

    /// After `pass` more calls of any kind, `times` calls go wrong.
    pub fn fail_after(&self, pass: u64, fault: Fault, times: u64) {
        let mut state = self.lock();
        state.planned = Some((pass, times, fault));
        state.struck = false;
    }

    /// Takes back all faults. True when what [`FakeStore::fail_after`] planned has begun.
    pub fn heal(&self) -> bool {
        let mut state = self.lock();
        state.faults.clear();
        state.planned = None;
        std::mem::take(&mut state.struck)
    }

    /// Leases that nobody renews have ended.
    pub fn end_leases(&self) {
        self.lock().leases.clear();
    }

    /// Every call takes at least this long.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Put Block From URL answers 501, as some emulators do.
    pub fn refuse_stage_from(&self, refuse: bool) {
        self.lock().no_stage_from = refuse;
    }

    /// From now on calls wait before they are executed, until [`FakeStore::open`].
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Lets waiting calls go on.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// From now on answers to calls of this kind wait after their execution, until [`FakeStore::give_answers`].
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
        self.lock().counters.clone()
    }

    /// Starts counting anew.
    pub fn reset_counters(&self) {
        self.lock().counters = Counters::default();
    }

    /// Content of a blob, past all faults and counters.
    pub fn content(&self, blob: &str) -> Option<Bytes> {
        self.lock().blobs.get(blob).map(|b| b.data.clone())
    }

    /// Properties of a blob, past all faults and counters.
    pub fn properties(&self, blob: &str) -> Option<Properties> {
        self.lock().blobs.get(blob).map(|b| b.properties.clone())
    }

    /// Sizes of a blob's committed blocks.
    pub fn block_sizes(&self, blob: &str) -> Vec<u64> {
        let state = self.lock();
        state
            .blobs
            .get(blob)
            .map(|b| b.blocks.iter().map(|(_, d)| d.len() as u64).collect())
            .unwrap_or_default()
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().blobs.keys().cloned().collect()
    }

    /// Somebody else writes a blob in one piece.
    pub fn foreign_put(&self, blob: &str, data: impl Into<Bytes>, metadata: Metadata) -> Written {
        let mut state = self.lock();
        state.staged.remove(blob);
        state.store(blob, data.into(), Vec::new(), metadata, None)
    }

    /// Somebody else writes a blob out of blocks.
    pub fn foreign_blocks(&self, blob: &str, blocks: Vec<(BlockId, Bytes)>) -> Written {
        let mut state = self.lock();
        state.staged.remove(blob);
        let data = join(&blocks);
        state.store(blob, data, blocks, Metadata::new(), None)
    }

    /// Somebody else stages a block and goes away.
    pub fn foreign_stage(&self, blob: &str, id: BlockId, data: impl Into<Bytes>) {
        let mut state = self.lock();
        state
            .staged
            .entry(blob.to_owned())
            .or_default()
            .insert(id, data.into());
    }

    /// Somebody else makes it another kind of blob.
    pub fn set_blob_type(&self, blob: &str, kind: BlobType) {
        if let Some(b) = self.lock().blobs.get_mut(blob) {
            b.properties.blob_type = kind;
        }
    }

    /// Somebody else deletes a blob.
    pub fn foreign_delete(&self, blob: &str) -> bool {
        let mut state = self.lock();
        state.staged.remove(blob);
        state.blobs.remove(blob).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, lets it wait, and runs it with the fault that is due.
    async fn call<T>(&self, op: Op, run: impl FnOnce(&mut State) -> Result<T> + Send) -> Result<T> {
        let (fault, delay) = {
            let mut locked = self.lock();
            let state = &mut *locked;
            *state.counters.calls.entry(op).or_default() += 1;
            state.running += 1;
            state.counters.most_at_once = state.counters.most_at_once.max(state.running);
            let due = state.faults.iter().position(|(o, _, n)| *o == op && *n > 0);
            let fault = due.and_then(|at| {
                let entry = state.faults.get_mut(at)?;
                entry.2 -= 1;
                Some(entry.1)
            });
            let fault = fault.or_else(|| match &mut state.planned {
                Some((0, times, fault)) if *times > 0 => {
                    *times -= 1;
                    state.struck = true;
                    Some(*fault)
                }
                Some((pass, _, _)) => {
                    *pass = pass.saturating_sub(1);
                    None
                }
                None => None,
            });
            (fault, state.delay)
        };
        let _running = Running(self);
        if !*self.gate.borrow() {
            self.arrived.add_permits(1);
            let _ = self.gate.subscribe().wait_for(|open| *open).await;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match fault {
            None => {
                let answer = run(&mut self.lock());
                if *self.held.borrow() == Some(op) {
                    self.arrived.add_permits(1);
                    let _ = self.held.subscribe().wait_for(|held| *held != Some(op)).await;
                }
                answer
            }
            Some(Fault::Lost) => Err(Error::Unreachable {
                endpoint: "http://fake".into(),
                message: "fault on command".into(),
            }),
            Some(Fault::AnswerLost) => {
                let _ = run(&mut self.lock());
                Err(Error::DeadlineExceeded { waited: delay })
            }
            Some(Fault::Status(status, code)) => Err(service(status, code)),
            #[allow(clippy::panic, reason = "that is the fault")]
            Some(Fault::Panic) => panic!("fault on command"),
        }
    }
}

struct Running<'a>(&'a FakeStore);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

fn service(status: u16, code: &str) -> Error {
    // What the client has an error of its own for.
    match (status, code) {
        (404, "ContainerNotFound") => {
            return Error::ContainerNotFound { name: "fake".into() };
        }
        (409 | 412, _) if code.starts_with("Lease") => {
            return Error::LeaseConflict {
                name: "fake".into(),
                code: code.to_owned(),
            };
        }
        (403, _) => {
            return Error::Denied {
                code: code.to_owned(),
                hint: "fault on command".into(),
            };
        }
        _ => {}
    }
    Error::Service {
        status,
        code: code.to_owned(),
        message: "fault on command".into(),
        request_id: "fake".into(),
    }
}

fn join(blocks: &[(BlockId, Bytes)]) -> Bytes {
    let mut data = Vec::with_capacity(blocks.iter().map(|(_, d)| d.len()).sum());
    blocks.iter().for_each(|(_, d)| data.extend_from_slice(d));
    data.into()
}

fn gather(body: &Body) -> Bytes {
    let mut data = Vec::with_capacity(body.len() as usize);
    for piece in &body.0 {
        match piece {
            Piece::Bytes(b) => data.extend_from_slice(b),
            Piece::Slice(s) => data.extend_from_slice(s),
        }
    }
    data.into()
}

/// `low..high` of `data`, clamped.
fn cut(data: &Bytes, range: &Range<u64>) -> Bytes {
    let end = range.end.min(data.len() as u64) as usize;
    let start = (range.start.min(end as u64)) as usize;
    data.slice(start..end)
}

impl State {
    fn find(&self, name: &str) -> Result<&Blob> {
        self.blobs
            .get(name)
            .ok_or_else(|| Error::BlobNotFound { name: name.into() })
    }

    fn check(&self, name: &str, condition: &Condition) -> Result<()> {
        let blob = self.blobs.get(name);
        let not_met = || Err(Error::ConditionNotMet { name: name.into() });
        if let Some(etag) = &condition.if_match
            && blob.is_none_or(|b| b.properties.etag != *etag)
        {
            return not_met();
        }
        if condition.if_absent && blob.is_some() {
            return Err(Error::AlreadyExists { name: name.into() });
        }
        if let (Some(etag), Some(blob)) = (&condition.if_none_match, blob)
            && blob.properties.etag == *etag
        {
            return Err(Error::NotModified { name: name.into() });
        }
        Ok(())
    }

    /// A leased blob is changed by its holder only.
    fn check_lease(&self, name: &str, condition: &Condition) -> Result<()> {
        let conflict = |code: &str| {
            Err(Error::LeaseConflict {
                name: name.into(),
                code: code.into(),
            })
        };
        match (self.leases.get(name), &condition.lease) {
            (Some(lease), Some(given)) if lease == given => Ok(()),
            (Some(_), Some(_)) => conflict("LeaseIdMismatchWithBlobOperation"),
            (Some(_), None) => conflict("LeaseIdMissing"),
            (None, Some(_)) => conflict("LeaseNotPresentWithBlobOperation"),
            (None, None) => Ok(()),
        }
    }

    fn written(&mut self) -> Written {
        self.version += 1;
        Written {
            etag: ETag(format!("\"0x{:016X}\"", self.version)),
            last_modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.version),
        }
    }

    fn store(
        &mut self,
        name: &str,
        data: Bytes,
        blocks: Vec<(BlockId, Bytes)>,
        metadata: Metadata,
        content_type: Option<String>,
    ) -> Written {
        let written = self.written();
        let blob = Blob {
            properties: Properties {
                etag: written.etag.clone(),
                last_modified: written.last_modified,
                content_length: data.len() as u64,
                blob_type: BlobType::Block,
                metadata,
                content_type,
                is_directory: false,
            },
            data,
            blocks,
        };
        self.blobs.insert(name.to_owned(), blob);
        written
    }

    /// REST, Put Block: "For a given blob, all block IDs must be the same length."
    fn stage(&mut self, name: &str, id: &BlockId, data: Bytes, lease: Option<&str>) -> Result<()> {
        let holder = Condition {
            lease: lease.map(str::to_owned),
            ..Condition::none()
        };
        self.check_lease(name, &holder)?;
        let committed = self.blobs.get(name).and_then(|b| b.blocks.first());
        let staged = self.staged.entry(name.to_owned()).or_default();
        let known = staged.keys().next().or(committed.map(|(id, _)| id));
        if id.0.is_empty() || id.0.len() > 64 || known.is_some_and(|k| k.0.len() != id.0.len()) {
            return Err(service(400, "InvalidBlobOrBlock"));
        }
        if data.is_empty() {
            return Err(service(400, "InvalidHeaderValue"));
        }
        staged.insert(id.clone(), data);
        Ok(())
    }

    fn commit(&mut self, name: &str, list: &[BlockRef], options: &PutOptions) -> Result<Written> {
        self.check_lease(name, &options.condition)?;
        self.check(name, &options.condition)?;
        let empty = BTreeMap::new();
        let staged = self.staged.get(name).unwrap_or(&empty);
        let old = self.blobs.get(name).map_or(&[][..], |b| &b.blocks[..]);
        let committed = |id: &BlockId| old.iter().find(|(i, _)| i == id).map(|(_, d)| d.clone());
        let mut blocks = Vec::with_capacity(list.len());
        for block in list {
            let (id, data) = match block {
                BlockRef::Committed(id) => (id, committed(id)),
                BlockRef::Uncommitted(id) => (id, staged.get(id).cloned()),
                BlockRef::Latest(id) => (id, staged.get(id).cloned().or_else(|| committed(id))),
            };
            let data = data.ok_or_else(|| service(400, "InvalidBlockList"))?;
            blocks.push((id.clone(), data));
        }
        if blocks.len() > 50_000 {
            return Err(service(400, "BlockListTooLong"));
        }
        self.staged.remove(name);
        let data = join(&blocks);
        let (metadata, kind) = (options.metadata.clone(), options.content_type.clone());
        Ok(self.store(name, data, blocks, metadata, kind))
    }

    fn list(&self, options: &ListOptions) -> ListPage {
        let limit = options.max_results.unwrap_or(5000).clamp(1, 5000) as usize;
        let mut items: Vec<(String, ListItem)> = Vec::new();
        for (name, blob) in &self.blobs {
            let Some(rest) = name.strip_prefix(&options.prefix) else {
                continue;
            };
            let folded = options
                .delimiter
                .as_deref()
                .and_then(|d| rest.find(d).map(|at| at + d.len()));
            let (key, item) = match folded {
                Some(at) => {
                    let prefix = format!("{}{}", options.prefix, &rest[..at]);
                    (prefix.clone(), ListItem::Prefix { name: prefix })
                }
                None => {
                    let mut properties = blob.properties.clone();
                    if !options.metadata {
                        properties.metadata.clear();
                    }
                    let name = name.clone();
                    (name.clone(), ListItem::Blob { name, properties })
                }
            };
            if items.last().is_some_and(|(last, _)| *last == key) {
                continue;
            }
            if options.marker.as_ref().is_some_and(|m| key < *m) {
                continue;
            }
            if items.len() == limit {
                return ListPage {
                    items: items.into_iter().map(|(_, item)| item).collect(),
                    next_marker: Some(key),
                };
            }
            items.push((key, item));
        }
        ListPage {
            items: items.into_iter().map(|(_, item)| item).collect(),
            next_marker: None,
        }
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn get(
        &self,
        blob: &str,
        range: Range<u64>,
        condition: &Condition,
        mut dest: Buffer,
    ) -> Result<Got> {
        let (data, properties) = self
            .call(Op::Get, |state| {
                let found = state.find(blob)?;
                state.check(blob, condition)?;
                let data = cut(&found.data, &range);
                let properties = found.properties.clone();
                state.counters.bytes_out += data.len() as u64;
                Ok((data, properties))
            })
            .await?;
        dest.set_len(data.len());
        dest.copy_from_slice(&data);
        Ok(Got {
            buffer: dest,
            properties,
        })
    }

    async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        self.call(Op::Head, |state| {
            let found = state.find(blob)?;
            state.check(blob, condition)?;
            Ok(found.properties.clone())
        })
        .await
    }

    async fn put(&self, blob: &str, body: Body, options: &PutOptions) -> Result<Written> {
        let data = gather(&body);
        self.call(Op::Put, |state| {
            state.counters.bytes_in += data.len() as u64;
            state.check_lease(blob, &options.condition)?;
            state.check(blob, &options.condition)?;
            state.staged.remove(blob);
            let (metadata, kind) = (options.metadata.clone(), options.content_type.clone());
            Ok(state.store(blob, data, Vec::new(), metadata, kind))
        })
        .await
    }

    async fn stage(&self, blob: &str, id: &BlockId, body: Body, lease: Option<&str>) -> Result<()> {
        let data = gather(&body);
        self.call(Op::Stage, |state| {
            state.counters.bytes_in += data.len() as u64;
            state.stage(blob, id, data, lease)
        })
        .await
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
        self.call(Op::StageFrom, |state| {
            if state.no_stage_from {
                return Err(service(501, "NotImplemented"));
            }
            let found = state.find(source)?;
            if source_etag.is_some_and(|e| *e != found.properties.etag) {
                return Err(Error::ConditionNotMet { name: source.into() });
            }
            if range.end > found.data.len() as u64 {
                return Err(service(416, "InvalidRange"));
            }
            let data = cut(&found.data, &range);
            state.stage(blob, id, data, lease)
        })
        .await
    }

    async fn commit(&self, blob: &str, blocks: &[BlockRef], options: &PutOptions) -> Result<Written> {
        self.call(Op::Commit, |state| state.commit(blob, blocks, options))
            .await
    }

    async fn block_list(&self, blob: &str) -> Result<BlockList> {
        self.call(Op::BlockList, |state| {
            let found = state.blobs.get(blob);
            let staged = state.staged.get(blob);
            if found.is_none() && staged.is_none_or(BTreeMap::is_empty) {
                return Err(Error::BlobNotFound { name: blob.into() });
            }
            let block = |id: &BlockId, data: &Bytes| Block {
                id: id.clone(),
                size: data.len() as u64,
            };
            Ok(BlockList {
                committed: found
                    .map(|b| b.blocks.iter().map(|(id, d)| block(id, d)).collect())
                    .unwrap_or_default(),
                uncommitted: staged
                    .map(|s| s.iter().map(|(id, d)| block(id, d)).collect())
                    .unwrap_or_default(),
                etag: found.map(|b| b.properties.etag.clone()),
                content_length: found.map_or(0, |b| b.data.len() as u64),
            })
        })
        .await
    }

    async fn set_metadata(&self, blob: &str, metadata: &Metadata, condition: &Condition) -> Result<Written> {
        self.call(Op::SetMetadata, |state| {
            state.find(blob)?;
            state.check_lease(blob, condition)?;
            state.check(blob, condition)?;
            let written = state.written();
            if let Some(found) = state.blobs.get_mut(blob) {
                found.properties.metadata = metadata.clone();
                found.properties.etag = written.etag.clone();
                found.properties.last_modified = written.last_modified;
            }
            Ok(written)
        })
        .await
    }

    async fn delete(&self, blob: &str, condition: &Condition) -> Result<()> {
        self.call(Op::Delete, |state| {
            state.find(blob)?;
            state.check(blob, condition)?;
            state.check_lease(blob, condition)?;
            state.leases.remove(blob);
            state.blobs.remove(blob);
            state.staged.remove(blob);
            Ok(())
        })
        .await
    }

    async fn copy(
        &self,
        source: &str,
        source_etag: Option<&ETag>,
        target: &str,
        metadata: Option<&Metadata>,
        condition: &Condition,
    ) -> Result<Written> {
        self.call(Op::Copy, |state| {
            let found = state.find(source)?.clone();
            if source_etag.is_some_and(|e| *e != found.properties.etag) {
                return Err(Error::ConditionNotMet { name: source.into() });
            }
            state.check(target, condition)?;
            state.check_lease(target, condition)?;
            state.staged.remove(target);
            let kind = found.properties.content_type.clone();
            let metadata = metadata.unwrap_or(&found.properties.metadata).clone();
            Ok(state.store(target, found.data, found.blocks, metadata, kind))
        })
        .await
    }

    async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        self.call(Op::List, |state| Ok(state.list(options))).await
    }

    async fn acquire_lease(&self, blob: &str, _seconds: u32) -> Result<String> {
        self.call(Op::AcquireLease, |state| {
            state.find(blob)?;
            state.check_lease(blob, &Condition::none())?;
            let lease = format!("lease {}", state.written().etag.0);
            state.leases.insert(blob.to_owned(), lease.clone());
            Ok(lease)
        })
        .await
    }

    async fn renew_lease(&self, blob: &str, lease: &str) -> Result<()> {
        self.call(Op::RenewLease, |state| {
            state.find(blob)?;
            let condition = Condition {
                lease: Some(lease.to_owned()),
                ..Condition::none()
            };
            state.check_lease(blob, &condition)
        })
        .await
    }

    async fn container_metadata(&self) -> Result<Metadata> {
        self.call(Op::ContainerMetadata, |state| {
            Ok(state.container_metadata.clone())
        })
        .await
    }

    async fn set_container_metadata(&self, metadata: &Metadata) -> Result<()> {
        self.call(Op::SetContainerMetadata, |state| {
            state.container_metadata = metadata.clone();
            Ok(())
        })
        .await
    }
}
