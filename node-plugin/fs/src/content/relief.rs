//! Making room when memory is short: the dirty data of this file goes to the service.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use blob_client::BlockId;
use tokio::time::Instant;

use super::core::Core;
use super::overlay::Content;
use super::state::{Place, Relieving, Standing, State, Turn};
use crate::budget::{Relief, Relieve};
use crate::log_limit::limited;
use crate::sync::spawn;

impl Relieve for Core {
    fn relieve(self: Arc<Self>, start: bool) -> Relief {
        let mut state = self.lock();
        let relief = match (&state.place, &state.standing) {
            (_, Standing::Superseded) => state.give_back_superseded(),
            (Place::Detached { .. }, _) => self.relieve_detached(&mut state, start),
            (Place::Named | Place::Hidden { .. }, _) => self.relieve_blob(&mut state, start),
        };
        if let Relief::Nothing = relief {
            // The budget forgets about it.
            state.relieving = Relieving::Unknown;
        }
        relief
    }

    fn volume(&self) -> usize {
        self.env.share.id()
    }
}

impl State {
    /// The task that was to make room has ended; if it could not, the next one begins after a pause.
    pub(super) fn relief_over(&mut self, pause: Option<Duration>) {
        if self.relieving == Relieving::UnderWay {
            self.relieving = match pause {
                Some(pause) => Relieving::Resting(Instant::now() + pause),
                None => Relieving::Offered,
            };
        }
    }

    /// What was refused is not sent again and again while somebody waits for room.
    fn rests(&self) -> bool {
        let refused = self.unsent.is_some() || self.relief_failed;
        refused && matches!(self.relieving, Relieving::Resting(until) if Instant::now() < until)
    }

    /// What was not sent never will be.
    fn give_back_superseded(&mut self) -> Relief {
        if self.overlay.memory(0..u64::MAX).is_empty() {
            return Relief::Nothing;
        }
        self.drop_superseded();
        Relief::Freed
    }
}

impl Core {
    /// How long what was refused is not sent again to make room: less than a writer waits for a volume that
    /// is known to be stuck, who is to see that it no longer is.
    pub(super) fn rest(&self) -> Duration {
        self.env.patience.again() / 2
    }

    /// A file with a blob: what is in the service goes from memory, else something is sent.
    fn relieve_blob(self: &Arc<Self>, state: &mut State, start: bool) -> Relief {
        if !state.is_dirty() {
            return Relief::Nothing;
        }
        if self.drop_staged(state) > 0 {
            return Relief::Freed;
        }
        if state.overlay.memory(0..u64::MAX).is_empty() {
            // All of it is in the service: a commit would free nothing.
            return Relief::Nothing;
        }
        if state.turn == Turn::Committing || state.relieving == Relieving::UnderWay || state.staging > 0 {
            return Relief::Working;
        }
        if state.rests() {
            return Relief::Resting;
        }
        if !start {
            return Relief::Idle;
        }
        self.queue_all(state);
        if state.unsent.is_some() {
            // Neither is all of it sent to see whether it is still refused.
            state.keep_queued(1);
            state.relieving = Relieving::Resting(Instant::now() + self.rest());
        }
        self.pump(state);
        if state.staging > 0 {
            return Relief::Working;
        }
        // Only small pieces: staged one by one they would fragment the blob, a commit folds them into their
        // granules.
        state.relieving = Relieving::UnderWay;
        let core = Arc::clone(self);
        spawn(&self.env.runtime, async move {
            let sent = core.commit(None).await;
            let mut state = core.lock();
            state.relief_over(sent.is_err().then(|| core.rest()));
            let reported = std::mem::replace(&mut state.relief_failed, sent.is_err());
            // It is tried again twice a second while a writer waits: once is enough to read.
            if let (Err(error), false) = (sent, reported) {
                limited!(
                    warn, core.env.share.id(), "memory is short and dirty data cannot be sent",
                    blob = state.blob, %error
                );
            }
        });
        Relief::Working
    }

    /// Drops the memory of staged blocks; bytes freed.
    pub(super) fn drop_staged(&self, state: &mut State) -> u64 {
        if state.turn == Turn::Held {
            return 0;
        }
        let done: Vec<(Range<u64>, BlockId)> = state
            .staged
            .iter()
            .filter(|(_, block)| block.done)
            .map(|(start, block)| (*start..start + block.len, block.id.clone()))
            .collect();
        let mut freed = 0;
        for (block, id) in done {
            let segments: Vec<_> = state
                .overlay
                .segments(block)
                .filter(|(_, _, s)| matches!(s.content, Content::Mem(..)))
                .map(|(range, _, s)| (range, s.epoch))
                .collect();
            if !segments.is_empty() {
                self.env.log.sent(&id);
            }
            for (range, epoch) in segments {
                freed += range.end - range.start;
                state.overlay.put(range, Content::Remote, epoch);
            }
        }
        freed
    }

    /// A file that no name leads to has no blob; if it is given one, its data can go there.
    fn relieve_detached(self: &Arc<Self>, state: &mut State, start: bool) -> Relief {
        let refuge = state
            .refuge
            .clone()
            .filter(|_| !state.overlay.memory(0..u64::MAX).is_empty());
        let Some(refuge) = refuge else {
            return Relief::Nothing;
        };
        let going = matches!(state.place, Place::Detached { gone: false, .. });
        if going || state.relieving == Relieving::UnderWay {
            return Relief::Working;
        }
        if state.rests() {
            return Relief::Resting;
        }
        if !start {
            return Relief::Idle;
        }
        state.relieving = Relieving::UnderWay;
        let core = Arc::clone(self);
        spawn(&self.env.runtime, async move { core.take_shelter(refuge).await });
        Relief::Working
    }
}
