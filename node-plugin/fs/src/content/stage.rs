//! Staging in the background: full blocks of sequential writers as they fill, and the oldest dirty data when
//! memory is short.

use std::ops::Range;
use std::sync::Arc;

use blob_client::{BlockId, Body, Error, Piece};
use tokio::time::Instant;
use vsc_driver::buffer::Slice;

use super::core::Core;
use super::error::FileError;
use super::state::{Queued, StagedBlock, Standing, State, Target, Turn, meets};
use crate::sync::spawn;

impl Core {
    /// After a write of `range`: blocks before the one it ends in are full, if everything in them is there.
    pub(crate) fn stage_behind(self: &Arc<Self>, state: &mut State, range: Range<u64>) {
        if !state.may_stage() {
            return;
        }
        let current = self.layout.block_of(range.end - 1);
        let mut block = self.layout.block_of(range.start.saturating_sub(1));
        while block.end <= current.start {
            let after = self.layout.block_of(block.end);
            self.queue(state, block);
            block = after;
        }
        self.pump(state);
    }

    /// Queues the dirty memory at the end of `block`, if it is worth a block of its own and not staged yet.
    fn queue(&self, state: &mut State, block: Range<u64>) {
        let staged_until = state
            .staged
            .range(..block.end)
            .next_back()
            .map_or(0, |(start, s)| start + s.len);
        let from = block.start.max(staged_until);
        let last = state.overlay.memory(from..block.end).pop();
        if let Some(range) = last
            && range.end == block.end
            && range.end - range.start >= self.env.tuning.granule
            && !state
                .to_stage
                .iter()
                .any(|q| q.range.start < range.end && range.start < q.range.end)
        {
            let round = state.round;
            state.to_stage.push_back(Queued { range, round });
        }
    }

    /// Queues all dirty memory in pieces that are worth a block; ranges that are staged already are skipped
    /// when their turn comes.
    pub(super) fn queue_all(&self, state: &mut State) {
        let mut large: Vec<Range<u64>> = state.overlay.memory(0..u64::MAX);
        large.retain(|r| r.end - r.start >= self.env.tuning.granule);
        for range in large {
            let mut at = range.start;
            while at < range.end {
                let end = self.layout.block_of(at).end.min(range.end);
                let (range, round) = (at..end, state.round);
                state.to_stage.push_back(Queued { range, round });
                at = end;
            }
        }
    }

    /// Sends what a commit would send before its last request, for a caller that holds nothing yet that
    /// others wait for: the commit has little left to do. Of a file that is sent in one request, nothing.
    /// What is written meanwhile is left to the commit, and so is what could not be sent, unless whoever
    /// waits has waited long enough.
    pub(crate) async fn stage_ahead(self: &Arc<Self>) -> Result<(), FileError> {
        let begun = Instant::now();
        if self.lock().turn != Turn::Free {
            // Somebody commits or moves it: the end of that is waited for here.
            drop(self.commits.lock().await);
        }
        if self.lock().unsent.take().is_some() {
            // What was refused is not sent all at once again.
            let tried = self.stage_some(1).await;
            match &self.lock().unsent {
                Some((range, error)) if meets(&tried, range) => return Err(error.clone()),
                _ => {}
            }
        }
        let wanted = self.stage_some(usize::MAX).await;
        let state = self.lock();
        match &state.unsent {
            Some((range, error))
                if begun.elapsed() >= self.env.patience.attempt() && meets(&wanted, range) =>
            {
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }

    /// Sends the first `most` of what is worth a block of its own; the ranges.
    async fn stage_some(self: &Arc<Self>, most: usize) -> Vec<Range<u64>> {
        let (wanted, round): (Vec<Range<u64>>, u64) = {
            let mut state = self.lock();
            let one_request = state.size <= self.env.tuning.block;
            let in_doubt = matches!(state.standing, Standing::InDoubt(_));
            if one_request || in_doubt || !state.may_stage() || state.turn != Turn::Free {
                return Vec::new();
            }
            self.queue_all(&mut state);
            if state.to_stage.len() > most {
                state.keep_queued(most);
            }
            let wanted = state.to_stage.iter().map(|queued| queued.range.clone());
            let asked = (wanted.collect(), state.round);
            state.round += 1;
            self.pump(&mut state);
            asked
        };
        loop {
            let staged = self.staged.notified();
            tokio::pin!(staged);
            staged.as_mut().enable();
            if !self.lock().stages(&wanted, round) {
                return wanted;
            }
            staged.await;
        }
    }

    /// Starts as many of the queued ranges as may be on their way at once.
    ///
    /// Not while the outcome of a commit is unknown: if it is executed late, it discards what was staged
    /// meanwhile.
    pub(crate) fn pump(self: &Arc<Self>, state: &mut State) {
        if let Standing::InDoubt(_) = state.standing {
            state.to_stage.clear();
        }
        while state.staging < self.env.tuning.stage_parallel && state.turn != Turn::Committing {
            let Some(Queued { range, round }) = state.to_stage.pop_front() else {
                return;
            };
            // Changed since it was queued? Then the commit deals with it.
            if state.is_staged(&range) {
                continue;
            }
            state.overlay.seal_within(range.clone());
            let Some(slices) = state.overlay.slices(range.clone()) else {
                continue;
            };
            let Ok(id) = state.ids.fresh() else {
                continue;
            };
            let len = range.end - range.start;
            self.env.log.block(&id, range.start, len);
            let done = false;
            state.staged.insert(
                range.start,
                StagedBlock {
                    id: id.clone(),
                    len,
                    done,
                    round,
                },
            );
            state.staging += 1;
            let core = Arc::clone(self);
            let target = state.target();
            let on_its_way = OnItsWay(Arc::clone(self));
            spawn(&self.env.runtime, async move {
                let sent = core
                    .send_block(&target, id.clone(), range.clone(), body(slices))
                    .await;
                core.block_sent(range.start, &id, sent);
                drop(on_its_way);
            });
        }
    }

    fn block_sent(&self, start: u64, id: &BlockId, sent: Result<BlockId, FileError>) {
        let mut state = self.lock();
        let Some(block) = state.staged.get_mut(&start).filter(|b| b.id == *id) else {
            // Overwritten meanwhile.
            return;
        };
        match sent {
            Ok(id) => {
                block.id = id;
                block.done = true;
                state.unsent = None;
                if self.env.budget.is_short() {
                    self.drop_staged(&mut state);
                }
            }
            Err(error) => {
                // Still dirty: the next commit stages it again and reports if that fails, too.
                let blob = &state.blob;
                tracing::debug!(blob, start, %error, "a block could not be staged in the background");
                if let Some(block) = state.staged.remove(&start) {
                    state.unsent = Some((start..start + block.len, error));
                }
                // The others would fare no better, each after as long.
                state.to_stage.clear();
                self.env.log.unstaged(id);
            }
        }
    }

    /// Put Block of a range, under an id of the length the blob's other blocks have (found out when the
    /// service insists).
    pub(crate) async fn send_block(
        &self,
        target: &Target,
        id: BlockId,
        range: Range<u64>,
        body: Body,
    ) -> Result<BlockId, FileError> {
        let (blob, options) = (&target.blob, target.options());
        match self.env.store.stage(blob, &id, body.clone(), &options).await {
            Ok(()) => Ok(id),
            Err(error) if wrong_id_length(&error) => {
                let list = self.env.store.block_list(blob).await?;
                let other = {
                    let mut state = self.lock();
                    state.ids.adopt(&list);
                    let other = state.ids.fresh()?;
                    self.env.log.block(&other, range.start, range.end - range.start);
                    self.env.log.unstaged(&id);
                    other
                };
                self.env.store.stage(blob, &other, body, &options).await?;
                Ok(other)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Counts a block as on its way until its task ends, however that is.
struct OnItsWay(Arc<Core>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.staging -= 1;
        self.0.pump(&mut state);
        drop(state);
        self.0.staged.notify_waiters();
    }
}

pub(crate) fn body(slices: Vec<Slice>) -> Body {
    Body(slices.into_iter().map(Piece::Slice).collect())
}

/// REST, Put Block: the length of the id differs from that of the blob's other blocks.
fn wrong_id_length(error: &Error) -> bool {
    matches!(error, Error::Service { code, .. } if code == "InvalidBlobOrBlock" || code == "InvalidBlockId")
}
