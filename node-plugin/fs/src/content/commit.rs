//! Making what was written a new version of the blob, guarded by the version it started from.

use std::sync::Arc;

use blob_client::{Condition, Error, Metadata, PutOptions, Written};
use tokio::time::Instant;

use super::base::BaseVersion;
use super::binding::{Digest, bind, same};
use super::core::Core;
use super::error::{FileError, is_unclear, shutting_down};
use super::overlay::Content;
use super::sent::{Form, Sent};
use super::snapshot::Snapshot;
use super::state::{Place, Standing, Turn};
use super::verify::{Verdict, is_foreign};
use crate::caller::still_waits;
use crate::log_limit::limited;
use crate::sync::spawn;

/// Versions of others that a commit goes on top of before it gives up.
const TRIES: usize = 8;

/// Ends the state of committing, however the commit ends.
struct Committing<'a>(&'a Arc<Core>);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.turn = Turn::Free;
        self.0.pump(&mut state);
    }
}

impl Core {
    /// See [`crate::content::File::commit`]. Without metadata: what the tree said last, or what the blob has.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        metadata: Option<Metadata>,
    ) -> Result<Option<Written>, FileError> {
        {
            let mut state = self.lock();
            if let Some(metadata) = &metadata {
                state.metadata.replace(metadata.clone());
            }
            if !state.is_dirty() {
                return Ok(None);
            }
        }
        // A task of its own: a caller that goes away must not leave the outcome unknown.
        let (core, place) = (Arc::clone(self), self.commits.place());
        let task = spawn(&self.env.runtime, async move {
            let turn = core.commits.turn(&place).await?;
            let committed = place.waits_for(core.commit_held(metadata)).await;
            if let Ok(Some(_)) = &committed {
                turn.got_an_answer();
            }
            core.heed(&turn, committed)
        });
        task.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    async fn commit_held(self: &Arc<Self>, metadata: Option<Metadata>) -> Result<Option<Written>, FileError> {
        {
            let mut state = self.lock();
            if !state.is_dirty() {
                return Ok(None);
            }
            state.writable()?;
            // Put Block List discards staged blocks that it does not name: none may be on its way then.
            state.turn = Turn::Committing;
            state.to_stage.clear();
        }
        let _committing = Committing(self);
        self.no_block_on_its_way().await;
        let tree = metadata.is_some();
        let given = metadata.or_else(|| self.lock().metadata.get().cloned());
        for _ in 0..TRIES {
            match self.commit_onto_base(given.as_ref()).await {
                Err(FileError::Stale) => {}
                other => {
                    if tree && matches!(other, Ok(Some(_))) {
                        self.lock().know_stored();
                    }
                    return other;
                }
            }
            // Somebody else has changed the blob; if only its metadata, this goes on top of that.
            self.follow().await?;
        }
        Err(self.turn_superseded())
    }

    /// What is stored with the base.
    pub(crate) fn stored_metadata(&self) -> Option<Arc<Metadata>> {
        self.lock().base.as_ref().map(|base| Arc::clone(&base.metadata))
    }

    /// [`FileError::Stale`]: the base is not the service's version.
    async fn commit_onto_base(
        self: &Arc<Self>,
        given: Option<&Metadata>,
    ) -> Result<Option<Written>, FileError> {
        let given = match given {
            Some(given) => given.clone(),
            None => self.own_metadata().await?,
        };
        if let Some(written) = self.resolve_in_doubt(Some(&given)).await? {
            return Ok(Some(written));
        }
        self.renew_stored().await?;
        for last_try in [false, true] {
            let snapshot = self.snapshot();
            match self.send(&snapshot, &given).await {
                // Staged blocks are kept for a week at most, and a commit of somebody else discards them.
                Err(FileError::Client(error)) if !last_try && is_service(&error, "InvalidBlockList") => {
                    if !self.forget_staged() {
                        // Asking again will not bring them back.
                        limited!(
                            error,
                            self.env.share.id(),
                            "data that was sent to the service and kept nowhere else was discarded by it",
                            blob = snapshot.target.blob
                        );
                        return Err(self.turn_superseded());
                    }
                }
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// Asks what the owner stores with the blob now, if it was not asked for a while: tiers and index tags
    /// change without a new version, and the commit would put the old ones back.
    async fn renew_stored(&self) -> Result<(), FileError> {
        let (blob, etag) = {
            let state = self.lock();
            let old = |base: &&BaseVersion| base.stored_at.elapsed() >= self.env.tuning.stored_for;
            match (&state.place, state.base.as_ref().filter(old)) {
                (Place::Named, Some(base)) => (state.blob.clone(), base.etag.clone()),
                _ => return Ok(()),
            }
        };
        let begun = Instant::now();
        match self.env.store.head(&blob, &Condition::matches(&etag)).await {
            Ok(now) => {
                if let Some(base) = self.lock().base.as_mut().filter(|base| base.etag == etag) {
                    base.set_headers(now.stored);
                }
                Ok(())
            }
            Err(error) if is_foreign(&error) => Err(FileError::Stale),
            // Whoever waits has waited long enough.
            Err(error) if begun.elapsed() >= self.env.patience.attempt() => Err(error.into()),
            // The commit itself says what is amiss.
            Err(_) => Ok(()),
        }
    }

    pub(crate) async fn no_block_on_its_way(&self) {
        loop {
            let staged = self.staged.notified();
            tokio::pin!(staged);
            staged.as_mut().enable();
            if self.lock().staging == 0 {
                return;
            }
            staged.await;
        }
    }

    /// Staged blocks are dirty again; false when some of them are nowhere else.
    fn forget_staged(&self) -> bool {
        let mut state = self.lock();
        if state.has_remote(0..u64::MAX) {
            return false;
        }
        for (_, block) in std::mem::take(&mut state.staged) {
            self.env.log.unstaged(&block.id);
        }
        true
    }

    async fn own_metadata(&self) -> Result<Metadata, FileError> {
        let (blob, base) = {
            let state = self.lock();
            if let Some(metadata) = state.metadata.get() {
                return Ok(metadata.clone());
            }
            (state.blob.clone(), state.base.clone())
        };
        let Some(base) = base else {
            return Ok(Metadata::new());
        };
        let condition = Condition::matches(&base.etag);
        match self.env.store.head(&blob, &condition).await {
            Ok(properties) => Ok(properties.metadata),
            Err(error) if is_foreign(&error) => Err(FileError::Stale),
            Err(error) => Err(error.into()),
        }
    }

    fn turn_superseded(&self) -> FileError {
        self.lock().supersede();
        FileError::Stale
    }

    /// Finds out what became of an earlier commit. The version, when nothing more is to be sent.
    pub(crate) async fn resolve_in_doubt(
        self: &Arc<Self>,
        given: Option<&Metadata>,
    ) -> Result<Option<Written>, FileError> {
        let doubt = match &self.lock().standing {
            Standing::InDoubt(sent) => Arc::clone(sent),
            Standing::Current | Standing::Superseded => return Ok(None),
        };
        match self.verify(&doubt).await? {
            Verdict::Ours(written, stored) => {
                self.finish(&doubt, &written, &stored);
                let state = self.lock();
                let stored_all = given.is_some_and(|given| same(&state.merged(given), &stored));
                let clean = !state.is_dirty() && stored_all;
                Ok(clean.then_some(written))
            }
            Verdict::Unchanged => {
                self.lock().resolve_doubt();
                Ok(None)
            }
            Verdict::Foreign => {
                self.lock().resolve_doubt();
                self.follow().await.map(|()| None)
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        let segments = state.overlay.snapshot();
        let epoch = state.epoch;
        state.epoch += 1;
        state.cut = u64::MAX;
        state.metadata.unlog();
        self.env.log.begin_commit();
        Snapshot {
            target: state.target(),
            base: state.base.clone(),
            base_valid: state.base_valid,
            size: state.size,
            epoch,
            segments,
            staged: state
                .staged
                .iter()
                .filter(|(_, block)| block.done)
                .map(|(start, block)| (*start..start + block.len, block.id.clone()))
                .collect(),
            holes: state.all_holes(),
        }
    }

    /// Sends the snapshot and makes it the base.
    async fn send(self: &Arc<Self>, snapshot: &Snapshot, given: &Metadata) -> Result<Written, FileError> {
        let mut metadata = self.lock().merged(given);
        let tuning = &self.env.tuning;
        let whole = !snapshot.has_remote()
            && (snapshot.size <= tuning.small_file
                || snapshot.size <= tuning.block && snapshot.kept_base() == 0);
        let resent = if whole { snapshot.kept_base() } else { 0 };
        let _right = self.env.share.acquire_resend(resent).await;
        still_waits()?;
        let form = if whole {
            Form::Whole(self.gather(snapshot, 0..snapshot.size).await?)
        } else {
            Form::Blocks(vec![])
        };
        let digest = match &form {
            Form::Whole(body) => Digest::of_whole(body, snapshot.size),
            Form::Sum(_) | Form::Blocks(_) => Digest::None,
        };
        bind(&mut metadata, snapshot.size, digest, self.env.store.now());
        let mut sent = Sent {
            form,
            metadata: metadata.clone(),
            digest,
            given: given.clone(),
            size: snapshot.size,
            epoch: snapshot.epoch,
            changed: snapshot.segments.iter().map(|(s, seg)| *s..s + seg.len).collect(),
            holes: snapshot.holes.clone(),
        };
        let condition = match &snapshot.base {
            Some(base) => Condition::matches(&base.etag),
            None => Condition::absent(),
        };
        let options = PutOptions {
            metadata,
            stored: snapshot.base.as_ref().and_then(|base| base.stored.clone()),
            content_md5: digest.said(),
            condition: Condition {
                lease: snapshot.target.lease.clone(),
                ..condition
            },
        };
        let blob = &snapshot.target.blob;
        let (begun, answer) = if let Form::Whole(body) = &sent.form {
            let begun = Instant::now();
            (begun, self.env.store.put(blob, body.clone(), &options).await)
        } else {
            let (refs, blocks) = self.stage_all(snapshot).await?;
            sent.form = Form::Blocks(blocks);
            let begun = Instant::now();
            (begun, self.env.store.commit(blob, &refs, &options).await)
        };
        let error = match answer {
            Ok(written) => {
                self.finish(&sent, &written, &sent.metadata);
                return Ok(written);
            }
            Err(error) => error,
        };
        let foreign = is_foreign(&error);
        if !foreign && !is_unclear(&error) {
            return Err(error.into());
        }
        // Who waited so long for an answer that did not come does not wait once more for what became of the
        // request: the next commit asks first.
        if !foreign && begun.elapsed() >= self.env.patience.attempt() {
            let sent = sent.without_body();
            self.lock().leave_in_doubt(Arc::new(sent));
            return Err(error.into());
        }
        // A retry below may have met the success of the attempt before it.
        match self.verify(&sent).await {
            Ok(Verdict::Ours(written, stored)) => {
                self.finish(&sent, &written, &stored);
                Ok(written)
            }
            Ok(Verdict::Foreign) => Err(FileError::Stale),
            Ok(Verdict::Unchanged) if foreign => Err(FileError::Stale),
            Ok(Verdict::Unchanged) | Err(_) => {
                let sent = sent.without_body();
                self.lock().leave_in_doubt(Arc::new(sent));
                Err(error.into())
            }
        }
    }

    /// The new version is in the service, and `stored` with it: what was sent becomes the base.
    fn finish(&self, sent: &Sent, written: &Written, stored: &Metadata) {
        let mut state = self.lock();
        let state = &mut *state;
        let committed = state.overlay.take_committed(sent.epoch);
        let blocks = match &sent.form {
            Form::Whole(_) | Form::Sum(_) => {
                state.ids.reset();
                Vec::new()
            }
            Form::Blocks(blocks) => blocks.clone(),
        };
        let count = blocks.len();
        let (headers, stored_at) = match state.base.take() {
            Some(base) => (base.stored, base.stored_at),
            None => (None, std::time::Instant::now()),
        };
        state.base = Some(BaseVersion::own(
            written.etag.clone(),
            sent.size,
            stored.clone(),
            headers,
            (blocks, sent.digest),
        ));
        if let Some(base) = &mut state.base {
            base.stored_at = stored_at;
        }
        // That much of what the tree wants is stored.
        state.known = Some(Arc::new(sent.given.clone()));
        state.charge_blocks(count);
        state.base_valid = sent.size.min(state.cut);
        (state.assured, state.given) = (sent.size, sent.size);
        state.version += 1;
        // Staged blocks that were not named are gone; there are none, because none are sent during a commit.
        state.staged.clear();
        state.resolve_doubt();
        state.written = Some(written.clone());
        let budget = &self.env.budget;
        for range in &sent.changed {
            state.cache.remove(range.clone(), budget);
        }
        for (start, segment) in committed {
            if let Content::Mem(slice, charge) = segment.content {
                self.keep_cached(state, start, slice, charge);
            }
        }
        state.holes = sent.holes.clone();
        let valid = state.base_valid;
        state.forget_past(valid, budget);
        self.env.log.committed(&written.etag);
    }
}

fn is_service(error: &Error, wanted: &str) -> bool {
    matches!(error, Error::Service { code, .. } if code == wanted)
}
