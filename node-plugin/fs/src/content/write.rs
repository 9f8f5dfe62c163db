//! Changes of a file: writes, cuts, holes.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::access::At;
use super::core::{Core, size_class};
use super::error::FileError;
use super::overlay::{Content, Need, Spare};
use super::state::{Place, Relieving, State};
use crate::budget::Permit;
use crate::caller::still_waits;

enum Attempt {
    Done,
    Needs(Vec<Need>),
    CommitFirst,
}

impl Core {
    pub(crate) fn try_write(self: &Arc<Self>, at: At, data: &[u8]) -> Result<bool, FileError> {
        let mut spares = Vec::new();
        loop {
            match self.attempt(at, data, &mut spares)? {
                Attempt::Done => return Ok(true),
                Attempt::CommitFirst => return Ok(false),
                Attempt::Needs(needs) => {
                    if !self.spares_now(&needs, &mut spares)? {
                        return Ok(false);
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
                    still_waits()?;
                }
                Attempt::Needs(needs) => {
                    if self.spares_now(&needs, &mut spares)? {
                        continue;
                    }
                    // All at once: who held one while it waits for another would be waited for by those who
                    // hold the other.
                    let class = |need: &Need| size_class(need.least as u64);
                    let sum = needs.iter().map(class).sum();
                    let waited = self.env.share.acquire(sum, self.env.patience.whole()).await;
                    let mut room = waited.ok_or(FileError::NoRoom)?;
                    still_waits()?;
                    for need in &needs {
                        let charge = room.split(class(need));
                        let buffer = self.buffer(need.least)?;
                        spares.push(Spare { buffer, charge });
                    }
                }
            }
        }
    }

    /// Memory for all that is needed, if there is room without waiting; else none is held.
    fn spares_now(&self, needs: &[Need], spares: &mut Vec<Spare>) -> Result<bool, FileError> {
        spares.clear();
        for need in needs {
            let permit = self.try_dirty(need.best).or_else(|| self.try_dirty(need.least));
            let Some((charge, len)) = permit else {
                spares.clear();
                return Ok(false);
            };
            let buffer = self.buffer(len)?;
            spares.push(Spare { buffer, charge });
        }
        Ok(true)
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
        if state.loses(range.clone()) {
            return Ok(Attempt::CommitFirst);
        }
        let first = !state.is_dirty();
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
        self.ask_for_blocks(&mut state);
        if first {
            self.read_small(&mut state, &range);
        }
        self.stage_behind(&mut state, range);
        Ok(Attempt::Done)
    }

    /// The range of a change, if the file can be changed there.
    pub(super) fn range(&self, state: &State, offset: u64, len: u64) -> Result<Range<u64>, FileError> {
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
        let hidden = matches!(state.place, Place::Hidden { .. });
        if !hidden && let Some(metadata) = state.metadata.log() {
            self.env.log.metadata(metadata);
        }
        let can_go = match state.place {
            Place::Named | Place::Hidden { .. } => true,
            Place::Detached(_) => state.refuge.is_some(),
        };
        if can_go && state.relieving == Relieving::Unknown {
            state.relieving = Relieving::Offered;
            let weak: Weak<Self> = Arc::downgrade(self);
            self.env.budget.offer_relief(weak);
        }
    }

    pub(crate) async fn truncate(self: &Arc<Self>, size: u64) -> Result<(), FileError> {
        while !self.try_truncate(size)? {
            self.commit(None).await?;
            still_waits()?;
        }
        Ok(())
    }

    /// False: what is only staged has to be committed first.
    pub(crate) fn try_truncate(&self, size: u64) -> Result<bool, FileError> {
        let mut state = self.lock();
        self.range(&state, 0, size)?;
        if state.loses(size..u64::MAX) {
            return Ok(false);
        }
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
        Ok(true)
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
            still_waits()?;
        }
    }

    pub(crate) fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        let mut state = self.lock();
        let range = match self.range(&state, offset, len) {
            Err(FileError::TooLarge) => return Err(FileError::NoSpace),
            other => other?,
        };
        if !keep_size && range.end > state.size {
            state.size = range.end;
            self.env.log.size(range.end);
        }
        Ok(())
    }
}
