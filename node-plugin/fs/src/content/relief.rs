//! Making room when memory is short: the dirty data of this file goes to the service.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use blob_client::BlockId;
use tokio::time::Instant;

use super::core::Core;
use super::overlay::Content;
use super::state::{Detached, Place, Relieving, Standing, State, Turn};
use crate::budget::{Relief, Relieve};
use crate::log_limit::limited;
use crate::sync::spawn;

impl Relieve for Core {
    fn relieve(self: Arc<Self>, start: bool) -> Relief {
        let mut state = self.lock();
        let relief = match (&state.place, &state.standing) {
            (_, Standing::Superseded) => state.give_back_superseded(),
            (Place::Detached(_), _) => self.relieve_detached(&mut state, start),
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
    /// The task that was to make room has ended; if it could not, the next one begins after a pause. False
    /// when the log has that already: it is tried again twice a second while a writer waits, and once is
    /// enough to read.
    pub(super) fn relief_over(&mut self, pause: Option<Duration>) -> bool {
        let is_new = !self.relieving.is_reported();
        if let Relieving::UnderWay { .. } = self.relieving {
            self.relieving = match pause {
                Some(pause) => Relieving::Resting {
                    until: Instant::now() + pause,
                    reported: true,
                },
                None => Relieving::Offered,
            };
        }
        is_new
    }

    /// The next try begins.
    fn begin_relief(&mut self) {
        let again = self.relieving.is_reported();
        self.relieving = Relieving::UnderWay { again };
    }

    /// What was refused is not sent again and again while somebody waits for room.
    fn rests(&self) -> bool {
        match self.relieving {
            Relieving::Resting { until, reported } => {
                (reported || self.unsent.is_some()) && Instant::now() < until
            }
            Relieving::Unknown | Relieving::Offered | Relieving::UnderWay { .. } => false,
        }
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
    pub(super) fn pause(&self) -> Duration {
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
        let sends = matches!(state.relieving, Relieving::UnderWay { .. });
        if state.turn == Turn::Committing || sends || state.staging > 0 {
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
            state.relieving = Relieving::Resting {
                until: Instant::now() + self.pause(),
                reported: state.relieving.is_reported(),
            };
        }
        self.pump(state);
        if state.staging > 0 {
            return Relief::Working;
        }
        // Only small pieces: staged one by one they would fragment the blob, a commit folds them into their
        // granules.
        state.begin_relief();
        let core = Arc::clone(self);
        spawn(&self.env.runtime, async move {
            let sent = core.commit(None).await;
            let mut state = core.lock();
            let is_new = state.relief_over(sent.is_err().then(|| core.pause()));
            if let (Err(error), true) = (sent, is_new) {
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
        match (&state.place, state.relieving) {
            // Until it is known to be gone it stays in memory.
            (Place::Detached(Detached::Going { .. }), _) | (_, Relieving::UnderWay { .. }) => {
                return Relief::Working;
            }
            (Place::Named | Place::Hidden { .. } | Place::Detached(_), _) => {}
        }
        if state.rests() {
            return Relief::Resting;
        }
        if !start {
            return Relief::Idle;
        }
        state.begin_relief();
        let core = Arc::clone(self);
        spawn(&self.env.runtime, async move { core.take_shelter(refuge).await });
        Relief::Working
    }
}
