//! One file's state with its lock, and the changes that need no more than that.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use blob_client::{Error, Written};
use tokio::sync::{Notify, OwnedMutexGuard};
use vsc_driver::buffer::{Buffer, Slice};

use super::state::CORE_BYTES;
use super::{At, Base, BaseVersion, Blocks, Env, FileError, Refuge, State};
use crate::budget::{Kind, Permit};
use crate::content::fetch::size_class;
use crate::content::overlay::{Content, Need, Spare};
use crate::content::plan::Layout;
use crate::content::streams::Pace;

/// How long a write waits for room before it fails. Longer than any single request of the client may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Below this it is not worth while to move committed data into smaller memory.
const SHRINK_MIN: usize = 64 << 10;

/// See [`super::File`].
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) env: Env,
    pub(crate) layout: Layout,
    pub(crate) pace: Pace,
    /// Held while the base changes.
    pub(crate) commits: Arc<tokio::sync::Mutex<()>>,
    /// A block that was on its way is staged, or has failed.
    pub(crate) staged: Notify,
    state: Mutex<State>,
}

/// See [`super::Hold`].
#[derive(Debug)]
pub(crate) struct Held {
    core: Arc<Core>,
    _guard: OwnedMutexGuard<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.lock().held = false;
    }
}

enum Attempt {
    Done,
    Needs(Vec<Need>),
    CommitFirst,
}

impl Core {
    pub(crate) fn new(env: Env, blob: String, base: Option<Base>) -> Arc<Self> {
        let mut state = State::new(blob, base);
        state.charge = Some(env.budget.charge_metadata(CORE_BYTES));
        Arc::new(Self {
            layout: Layout::new(&env.tuning),
            env,
            pace: Pace::default(),
            commits: Arc::default(),
            staged: Notify::new(),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for `len` bytes, which the caller has room for in the budget.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer, FileError> {
        let (arena, budget) = (&self.env.arena, &self.env.budget);
        let most = budget.arena_limit();
        let usage = arena.usage();
        // Idle memory is resident all the same.
        if usage.allocated + usage.idle + len > most {
            arena.trim(most.saturating_sub(usage.allocated + len));
        }
        loop {
            match arena.alloc(len) {
                Ok(buffer) => return Ok(buffer),
                Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory && budget.evict_one() => {}
                Err(source) => {
                    let call = "arena";
                    return Err(Error::Io { call, source }.into());
                }
            }
        }
    }

    pub(crate) fn try_write(self: &Arc<Self>, at: At, data: &[u8]) -> Result<bool, FileError> {
        let mut spares = Vec::new();
        loop {
            match self.attempt(at, data, &mut spares)? {
                Attempt::Done => return Ok(true),
                Attempt::CommitFirst => return Ok(false),
                Attempt::Needs(needs) => {
                    spares.clear();
                    for need in needs {
                        let permit = self.try_dirty(need.best).or_else(|| self.try_dirty(need.least));
                        let Some((charge, len)) = permit else {
                            return Ok(false);
                        };
                        let buffer = self.buffer(len)?;
                        spares.push(Spare { buffer, charge });
                    }
                }
            }
        }
    }

    pub(crate) async fn write(self: &Arc<Self>, at: At, data: &[u8]) -> Result<(), FileError> {
        let mut spares = Vec::new();
        loop {
            match self.attempt(at, data, &mut spares)? {
                Attempt::Done => return Ok(()),
                Attempt::CommitFirst => {
                    self.commit(None).await?;
                }
                Attempt::Needs(needs) => {
                    spares.clear();
                    for need in needs {
                        let (charge, len) = match self.try_dirty(need.best) {
                            Some(got) => got,
                            None => {
                                let class = size_class(need.least as u64);
                                let waited = self.env.share.acquire(class, PATIENCE).await;
                                (waited.ok_or(FileError::NoRoom)?, need.least)
                            }
                        };
                        let buffer = self.buffer(len)?;
                        spares.push(Spare { buffer, charge });
                    }
                }
            }
        }
    }

    fn try_dirty(&self, len: usize) -> Option<(Permit, usize)> {
        let class = size_class(len as u64);
        let permit = self.env.share.try_acquire(class)?;
        Some((permit, len))
    }

    fn attempt(self: &Arc<Self>, at: At, data: &[u8], spares: &mut Vec<Spare>) -> Result<Attempt, FileError> {
        let mut state = self.lock();
        let offset = match at {
            At::Offset(offset) => offset,
            At::End => state.size,
        };
        let range = self.range(&state, offset, data.len() as u64)?;
        if range.is_empty() {
            return Ok(Attempt::Done);
        }
        if state.stale {
            // It could never be committed, and would only take memory from others.
            return Err(FileError::Stale);
        }
        if state.loses(range.clone()) {
            return Ok(Attempt::CommitFirst);
        }
        let epoch = state.epoch;
        let log = &*self.env.log;
        if let Err(needs) = state
            .overlay
            .write(offset, data, epoch, &self.layout, spares, log)
        {
            return Ok(Attempt::Needs(needs));
        }
        state.unstage(range.clone());
        state.size = state.size.max(range.end);
        self.register(&mut state);
        self.stage_behind(&mut state, range);
        Ok(Attempt::Done)
    }

    /// The range of a change, if the file can be changed there.
    fn range(&self, state: &State, offset: u64, len: u64) -> Result<Range<u64>, FileError> {
        state.writable()?;
        let most = self
            .layout
            .max_size()
            .max(state.base.as_ref().map_or(0, |b| b.size));
        match offset.checked_add(len) {
            Some(end) if end <= most || len == 0 => Ok(offset..end),
            _ => Err(FileError::TooLarge),
        }
    }

    /// Makes the budget know that there is dirty data here, and the log what is to be stored with it.
    pub(crate) fn register(self: &Arc<Self>, state: &mut State) {
        if !state.metadata_noted
            && state.lease.is_none()
            && let Some(metadata) = &state.metadata
        {
            self.env.log.metadata(metadata);
            state.metadata_noted = true;
        }
        if !state.registered && (!state.detached || state.refuge.is_some()) {
            state.registered = true;
            let weak: Weak<Self> = Arc::downgrade(self);
            self.env.budget.offer_relief(weak);
        }
    }

    pub(crate) async fn truncate(self: &Arc<Self>, size: u64) -> Result<(), FileError> {
        loop {
            {
                let mut state = self.lock();
                self.range(&state, 0, size)?;
                if !state.loses(size..u64::MAX) {
                    if size < state.size {
                        state.unstage(size..u64::MAX);
                        state.overlay.carve(size..u64::MAX);
                        state.base_valid = state.base_valid.min(size);
                        state.cut = state.cut.min(size);
                        let valid = state.base_valid;
                        state.forget_past(valid, &self.env.budget);
                    }
                    if size != state.size {
                        state.size = size;
                        self.env.log.size(size);
                    }
                    return Ok(());
                }
            }
            self.commit(None).await?;
        }
    }

    pub(crate) async fn punch_hole(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), FileError> {
        loop {
            {
                let mut state = self.lock();
                state.writable()?;
                let range = offset..offset.saturating_add(len).min(state.size);
                if range.is_empty() {
                    return Ok(());
                }
                if !state.loses(range.clone()) {
                    state.unstage(range.clone());
                    let epoch = state.epoch;
                    state.overlay.put(range.clone(), Content::Hole, epoch);
                    self.env.log.hole(range.start, range.end - range.start);
                    return Ok(());
                }
            }
            self.commit(None).await?;
        }
    }

    pub(crate) fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        let mut state = self.lock();
        let range = self.range(&state, offset, len)?;
        if !keep_size && range.end > state.size {
            state.size = range.end;
            self.env.log.size(range.end);
        }
        Ok(())
    }

    pub(crate) async fn hold(self: &Arc<Self>) -> Result<Held, FileError> {
        loop {
            let guard = Arc::clone(&self.commits).lock_owned().await;
            self.settle_doubt(None).await?;
            {
                let mut state = self.lock();
                if !state.has_remote(0..u64::MAX) {
                    // What is staged from now on stays in memory, too: it may be staged under a name that is about to go.
                    state.held = true;
                    return Ok(Held {
                        core: Arc::clone(self),
                        _guard: guard,
                    });
                }
            }
            drop(guard);
            self.commit(None).await?;
        }
    }

    pub(crate) fn rebase(&self, written: &Written) {
        let mut state = self.lock();
        if let Some(base) = &mut state.base {
            base.etag = written.etag.clone();
        }
        state.written = Some(written.clone());
        state.version += 1;
        // The cache holds the same bytes under the new version.
    }

    pub(crate) fn moved(&self, blob: String, written: Option<&Written>) {
        let mut state = self.lock();
        state.blob = blob;
        if let (Some(base), Some(written)) = (&mut state.base, written) {
            base.etag = written.etag.clone();
            // A copy made by the service keeps the blocks, one made otherwise does not: ask when it matters.
            base.blocks = Blocks::Unknown;
        }
        if written.is_some() {
            state.written = written.cloned();
        }
        if state.has_remote(0..u64::MAX) {
            // Only without the hold that the contract asks for.
            tracing::error!(
                blob = state.blob,
                "a file was renamed whose data is only staged under its old name"
            );
            state.stale = true;
        }
        // Blocks staged under the old name stay there; their data is still in memory.
        for (_, block) in std::mem::take(&mut state.staged) {
            self.env.log.unstaged(&block.id);
        }
        if state.lease.take().is_some() {
            state.metadata = None;
        }
        state.doubt = None;
        state.ids.reset();
        state.version += 1;
    }

    pub(crate) async fn detach(self: &Arc<Self>, limit: u64) -> Result<bool, FileError> {
        let _still = self.hold().await?;
        let gaps = |state: &State| {
            let mut gaps = Vec::new();
            let mut at = 0;
            for (range, _, _) in state.overlay.segments(0..state.base_valid) {
                gaps.push(at..range.start);
                at = range.end;
            }
            gaps.push(at..state.base_valid);
            gaps.retain(|g| !g.is_empty());
            gaps
        };
        let wanted = gaps(&self.lock());
        if wanted.iter().map(|g| g.end - g.start).sum::<u64>() > limit {
            return Ok(false);
        }
        let mut loaded: Vec<(u64, Slice)> = Vec::new();
        for gap in wanted {
            let mut at = gap.start;
            for slice in self.read_base(gap).await? {
                let len = slice.len() as u64;
                loaded.push((at, slice));
                at += len;
            }
        }
        let mut state = self.lock();
        state.owed = state.is_dirty();
        // Writes may have come meanwhile: they stay on top.
        let epoch = state.epoch;
        for gap in gaps(&state) {
            for (start, slice) in &loaded {
                let range = gap.start.max(*start)..gap.end.min(start + slice.len() as u64);
                if range.is_empty() {
                    continue;
                }
                let part = slice.slice((range.start - start) as usize..(range.end - start) as usize);
                let charge = self.env.share.force(part.len());
                state
                    .overlay
                    .put(range, Content::Mem(part, Arc::new(charge)), epoch);
            }
        }
        state.base_valid = 0;
        state.detached = true;
        state.version += 1;
        state.to_stage.clear();
        state.forget_past(0, &self.env.budget);
        if !state.overlay.is_empty() {
            self.register(&mut state);
        }
        Ok(true)
    }

    /// A detached file gets a blob that no name leads to, and is sent there like any other from now on.
    pub(crate) async fn take_shelter(self: &Arc<Self>, refuge: Arc<dyn Refuge>) {
        let made = refuge.make().await;
        let mut state = self.lock();
        state.relieving = false;
        let failed = made.is_err();
        let reported = std::mem::replace(&mut state.relief_failed, failed);
        match made {
            Ok(shelter) if state.detached && !state.stale => {
                state.blob = shelter.blob.clone();
                state.base = Some(BaseVersion {
                    etag: shelter.written.etag.clone(),
                    size: 0,
                    writable: true,
                    blocks: Blocks::Known(Arc::default()),
                });
                state.lease = Some(shelter.lease.clone());
                state.metadata = Some(shelter.metadata.clone());
                state.shelter = Some(shelter);
                state.detached = false;
                state.ids.reset();
                state.version += 1;
            }
            // Somebody made it another file meanwhile; the blob goes with the guard.
            Ok(_) => {}
            Err(error) if !reported => {
                tracing::warn!(%error, "memory is short and the data of a deleted file cannot be sent");
            }
            Err(_) => {}
        }
    }

    /// What was dirty and is committed now becomes cached data, in memory of the right size.
    pub(crate) fn keep_cached(&self, state: &mut State, offset: u64, slice: Slice, charge: Arc<Permit>) {
        let wasteful = charge.bytes() > SHRINK_MIN && slice.len() <= charge.bytes() / 2;
        let (slice, charge) = match wasteful.then(|| self.env.arena.alloc(slice.len())) {
            Some(Ok(mut smaller)) => {
                smaller.copy_from_slice(&slice);
                let permit = self.env.budget.force(Kind::Cached, smaller.capacity());
                (smaller.freeze(), Arc::new(permit))
            }
            _ => {
                charge.recharge(Kind::Cached);
                (slice, charge)
            }
        };
        state.cache.insert(offset, slice, charge, &self.env.budget);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let (usage, total) = (self.env.arena.usage(), self.env.budget.total());
        if usage.idle > total / 8 && usage.allocated < total / 8 {
            let arena = Arc::clone(&self.env.arena);
            self.env.runtime.spawn_blocking(move || arena.trim(total / 16));
        }
    }
}
