//! One file's state with its lock, and the changes that need no more than that.

use std::sync::Arc;

use blob_client::{Error, Metadata, Written};
use tokio::sync::Notify;
use vsc_driver::buffer::{Buffer, Slice};

use super::base::{Base, Blocks};
use super::env::Env;
use super::error::{FileError, is_unclear};
use super::layout::Layout;
use super::relation::merge;
use super::state::{self, CORE_BYTES, NextMetadata, State, Turn};
use super::streams::Pace;
use crate::budget::{Kind, Permit};
use crate::caller::{Front, Line, Place};
use crate::log_limit::limited;
use crate::sync::{Mutex, MutexGuard};

/// Below this it is not worth while to move committed data into smaller memory.
const SHRINK_MIN: usize = 64 << 10;

/// See [`super::File`].
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) env: Env,
    pub(crate) layout: Layout,
    pub(crate) pace: Pace,
    /// Held while the base changes.
    pub(crate) commits: Line,
    /// A block that was on its way is staged, or has failed.
    pub(crate) staged: Notify,
    state: Mutex<State>,
}

/// See [`super::Hold`].
#[derive(Debug)]
pub(crate) struct Held {
    core: Arc<Core>,
    _turn: Front,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.core.lock().turn = Turn::Free;
    }
}

impl Core {
    pub(crate) fn new(env: Env, blob: String, base: Option<Base>) -> Arc<Self> {
        let mut state = State::new(blob, base);
        state.charge = Some(env.budget.charge_metadata(CORE_BYTES));
        Arc::new(Self {
            layout: Layout::new(&env.tuning),
            env,
            pace: Pace::default(),
            commits: Line::default(),
            staged: Notify::new(),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
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

    pub(crate) async fn hold(self: &Arc<Self>) -> Result<Held, FileError> {
        self.hold_at(&self.commits.place()).await
    }

    /// The same for whoever got in line there.
    pub(super) async fn hold_at(self: &Arc<Self>, place: &Place) -> Result<Held, FileError> {
        loop {
            let turn = self.turn_to_change(place).await?;
            {
                let mut state = self.lock();
                if !state.has_remote(0..u64::MAX) {
                    // What is staged from now on stays in memory, too: it may be staged under a name that is
                    // about to go.
                    state.turn = Turn::Held;
                    return Ok(Held {
                        core: Arc::clone(self),
                        _turn: turn,
                    });
                }
            }
            drop(turn);
            self.commit(None).await?;
        }
    }

    /// Waits until no commit runs, holds off others, and finds out what became of an earlier one.
    pub(super) async fn turn_to_change(self: &Arc<Self>, place: &Place) -> Result<Front, FileError> {
        let turn = self.commits.turn(place).await?;
        let resolved = self.resolve_in_doubt(None).await;
        self.heed(&turn, resolved)?;
        // Whoever was told meanwhile that it failed does not have it carried out.
        place.still_waits()?;
        Ok(turn)
    }

    /// Whether those who wait for the turn have to ask themselves.
    pub(super) fn heed<T>(&self, turn: &Front, outcome: Result<T, FileError>) -> Result<T, FileError> {
        if matches!(&outcome, Err(FileError::Client(error)) if is_unclear(error)) {
            turn.got_no_answer(self.env.patience);
        }
        outcome
    }

    pub(crate) fn rebase(&self, written: &Written, metadata: &Metadata) {
        let mut state = self.lock();
        if let Some(base) = &mut state.base {
            base.etag = written.etag.clone();
            base.metadata = Arc::new(metadata.clone());
        }
        state.know_stored();
        state.written = Some(written.clone());
        state.version += 1;
        // The cache holds the same bytes under the new version.
    }

    pub(crate) fn moved(&self, blob: String, to: Option<(&Written, &Metadata)>) {
        let mut state = self.lock();
        state.blob = blob;
        if let (Some(base), Some((written, metadata))) = (&mut state.base, to) {
            base.etag = written.etag.clone();
            // A copy made by the service keeps the blocks, one made otherwise does not: ask when it matters.
            base.blocks = Blocks::Unknown;
            let before = std::mem::replace(&mut base.metadata, Arc::new(metadata.clone()));
            // What the tree did not know of the version that it moved it does not know of this one.
            if let Some(known) = state.known.clone() {
                state.know(Arc::new(merge(&before, metadata, &known)));
            }
            state.written = Some(written.clone());
        }
        if state.has_remote(0..u64::MAX) {
            // Only without the hold that the contract asks for.
            limited!(
                error,
                self.env.share.id(),
                "a file was renamed whose data is only staged under its old name",
                blob = state.blob
            );
            state.supersede();
        }
        // Blocks staged under the old name stay there; their data is still in memory.
        for (_, block) in std::mem::take(&mut state.staged) {
            self.env.log.unstaged(&block.id);
        }
        if let state::Place::Hidden { .. } = state.place {
            state.place = state::Place::Named;
            state.metadata = NextMetadata::Unknown;
        }
        state.resolve_doubt();
        state.ids.reset();
        state.version += 1;
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

/// What the arena takes for so many bytes.
pub(crate) fn size_class(len: u64) -> usize {
    (len.max(1) as usize)
        .next_power_of_two()
        .max(vsc_driver::buffer::PAGE)
}
