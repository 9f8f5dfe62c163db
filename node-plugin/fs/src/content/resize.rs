//! A size that is set by name: a version of its own, made beside the file, which takes it over when the
//! service has it. Until then, and if it does not come about, nothing of the file is changed.

use std::sync::Arc;

use blob_client::{Metadata, Written};

use super::base::{BaseVersion, Blocks};
use super::core::Core;
use super::dirty_log::NoLog;
use super::error::{FileError, shutting_down};
use super::state::Turn;
use crate::sync::spawn;

impl Core {
    /// See [`crate::content::File::resize`].
    pub(crate) async fn resize(
        self: &Arc<Self>,
        size: u64,
        metadata: Metadata,
    ) -> Result<Option<Written>, FileError> {
        // A task of its own: a caller that goes away must not leave the outcome unknown.
        let (core, place) = (Arc::clone(self), self.commits.place());
        let task = spawn(&self.env.runtime, async move {
            let _held = core.hold_at(&place).await?;
            place.waits_for(core.resize_held(size, metadata)).await
        });
        task.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    async fn resize_held(
        self: &Arc<Self>,
        size: u64,
        metadata: Metadata,
    ) -> Result<Option<Written>, FileError> {
        let (draft, base) = {
            let mut state = self.lock();
            self.range(&state, 0, size)?;
            let Some(base) = state.base.clone().filter(|_| !state.is_dirty()) else {
                return Ok(None);
            };
            // Whatever is staged meanwhile would be discarded.
            state.turn = Turn::Committing;
            (self.draft(&state, &base), base)
        };
        self.no_block_on_its_way().await;
        draft.truncate(size).await?;
        let Some(written) = draft.commit(Some(metadata)).await? else {
            // It has that size.
            return Ok(None);
        };
        self.take_resized(&base, &draft, &written);
        Ok(Some(written))
    }

    /// The file as it is stored, which nobody else knows.
    fn draft(&self, state: &super::state::State, base: &BaseVersion) -> Arc<Self> {
        let env = self.env.with_log(Arc::new(NoLog));
        let draft = Self::new(env, state.blob.clone(), None);
        {
            let mut drafted = draft.lock();
            (drafted.base_valid, drafted.size, drafted.assured) = (base.size, base.size, base.size);
            drafted.given = state.given;
            drafted.holes.clone_from(&state.holes);
            drafted.known.clone_from(&state.known);
            // Ids of blocks are of the one that sends them: the service is asked for those that are there.
            drafted.base = Some(BaseVersion {
                blocks: Blocks::Unknown,
                ..base.clone()
            });
        }
        draft
    }

    /// The service has the new version. What was written here meanwhile is cut or kept with the rest of the
    /// file, and goes on top of it.
    fn take_resized(&self, old: &BaseVersion, draft: &Self, written: &Written) {
        let (base, known, holes) = {
            let mut drafted = draft.lock();
            let holes = std::mem::take(&mut drafted.holes);
            (drafted.base.clone(), drafted.known.clone(), holes)
        };
        let Some(mut base) = base else { return };
        if matches!(&base.blocks, Blocks::Known(blocks) if !blocks.is_empty()) {
            // So that ids that are made here stay clear of them.
            base.blocks = Blocks::Unknown;
        }
        let (size, kept) = (base.size, old.size.min(base.size));
        let mut state = self.lock();
        let state = &mut *state;
        let clean = !state.is_dirty();
        state.overlay.carve(size..u64::MAX);
        for (_, block) in std::mem::take(&mut state.staged) {
            self.env.log.unstaged(&block.id);
        }
        state.base = Some(base);
        state.charge_blocks(0);
        state.ids.reset();
        state.known = known;
        state.written = Some(written.clone());
        (state.assured, state.given) = (size, size);
        state.version += 1;
        // What was read of the old version stays as it was.
        state.carried = Some((state.version, kept));
        if clean {
            state.base_valid = size;
            state.holes = holes;
            self.env.log.begin_commit();
            self.env.log.committed(&written.etag);
        } else {
            state.base_valid = state.base_valid.min(size);
            self.env.log.size(size);
        }
        state.size = size;
        state.cache.remove(kept..u64::MAX, &self.env.budget);
        let valid = state.base_valid;
        state.forget_past(valid, &self.env.budget);
    }
}
