//! copy_file_range: whole committed ranges by the service, the rest through memory, holes as holes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blob_client::{BlockId, ETag, Error};
use futures::stream::{StreamExt, TryStreamExt};

use super::access::At;
use super::core::Core;
use super::error::FileError;
use super::overlay::Content;
use super::state::{StagedBlock, Standing, State, Target};
use super::streams::Reader;
use crate::caller::still_waits;

/// What goes through memory at once, in bytes.
const CHUNK: u64 = 1 << 20;
/// What goes through memory before the service is asked again for what comes after it.
const THROUGH_MEMORY: u64 = 8 << 20;

/// A piece of the source.
enum Run {
    /// Committed bytes of this version of this blob.
    Committed(u64, String, ETag),
    /// Zeros.
    Hole(u64),
    /// Anything else.
    Other,
}

impl Core {
    /// Copies what needs no memory, up to the first byte that does.
    pub(crate) async fn copy_stored(
        self: &Arc<Self>,
        source: &Arc<Core>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, FileError> {
        let len = len.min(source.lock().size.saturating_sub(from));
        if to.checked_add(len).is_none_or(|end| end > self.layout.max_size()) {
            return Err(FileError::TooLarge);
        }
        let mut done = 0;
        while done < len {
            still_waits()?;
            let at = from + done;
            let run = source.lock().run_at(at, from + len);
            let Some(run) = run else { break };
            let copied = match run {
                Run::Hole(n) => {
                    self.copy_hole(to + done, n).await?;
                    n
                }
                Run::Committed(n, blob, etag) if self.may_copy(n) => {
                    match self.copy_committed(to + done, at..at + n, &blob, &etag).await {
                        Ok(true) => n,
                        // Also when the source was committed anew meanwhile: memory always works.
                        Ok(false) | Err(FileError::Stale) => break,
                        Err(error) => return Err(error),
                    }
                }
                Run::Committed(..) | Run::Other => break,
            };
            done += copied;
        }
        Ok(done)
    }

    /// Copies through memory; a part of what is left.
    pub(crate) async fn copy_through(
        self: &Arc<Self>,
        source: &Arc<Core>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64, FileError> {
        let mut done = 0;
        while done < len.min(THROUGH_MEMORY) {
            let part = (len - done).min(CHUNK) as usize;
            let data = source.read(&Reader::default(), from + done, part).await?;
            // Who was told that it failed may have written something else there since.
            still_waits()?;
            if data.is_empty() {
                break;
            }
            self.write(At::Offset(to + done), &data).await?;
            done += data.len() as u64;
        }
        Ok(done)
    }

    fn may_copy(&self, len: u64) -> bool {
        let state = self.lock();
        len >= self.env.tuning.granule
            && self.env.server_copy.load(Ordering::Relaxed)
            && state.may_stage()
            && matches!(state.standing, Standing::Current)
    }

    async fn copy_hole(self: &Arc<Self>, to: u64, len: u64) -> Result<(), FileError> {
        self.allocate(to, len, false)?;
        self.punch_hole(to, len).await
    }

    /// Stages `range` of another blob's version in this one; false when the service cannot.
    async fn copy_committed(
        self: &Arc<Self>,
        to: u64,
        range: Range<u64>,
        source: &str,
        etag: &ETag,
    ) -> Result<bool, FileError> {
        let target = to..to + (range.end - range.start);
        // No commit may come between: it would discard what is staged here and not placed yet.
        let _still = loop {
            let still = self.turn_to_change(&self.commits.place()).await?;
            if !self.lock().loses(target.clone()) {
                break still;
            }
            drop(still);
            self.commit(None).await?;
        };
        self.lock().writable()?;
        let into = self.lock().target();
        let most = self.env.tuning.copy_max;
        let pieces: Vec<Range<u64>> = (range.start..range.end)
            .step_by(most as usize)
            .map(|start| start..range.end.min(start + most))
            .collect();
        let copied: Vec<Option<(Range<u64>, BlockId)>> = futures::stream::iter(pieces)
            .map(|piece| {
                let into = &into;
                let at = to + (piece.start - range.start);
                async move {
                    still_waits()?;
                    let id = self.copy_block(into, at, source, piece.clone(), etag).await?;
                    Ok::<_, FileError>(id.map(|id| (piece, id)))
                }
            })
            .buffered(self.env.tuning.stage_parallel.max(1))
            .try_collect()
            .await?;
        let Some(copied) = copied.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        still_waits()?;
        let mut state = self.lock();
        if state.loses(target.clone()) || state.blob != into.blob {
            // Memory was short, or the blob was renamed, just now.
            return Ok(false);
        }
        state.unstage(target.clone());
        let epoch = state.epoch;
        for (piece, id) in copied {
            let start = to + (piece.start - range.start);
            let len = piece.end - piece.start;
            self.env.log.sent(&id);
            state.overlay.put(start..start + len, Content::Remote, epoch);
            let (done, round) = (true, state.round);
            state.staged.insert(start, StagedBlock { id, len, done, round });
        }
        state.size = state.size.max(target.end);
        self.register(&mut state);
        Ok(true)
    }

    /// Put Block From URL for the range that begins at `at`; `None` when the service cannot, which is
    /// remembered.
    pub(crate) async fn copy_block(
        &self,
        target: &Target,
        at: u64,
        source: &str,
        range: Range<u64>,
        etag: &ETag,
    ) -> Result<Option<BlockId>, FileError> {
        if !self.env.server_copy.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let id = {
            let mut state = self.lock();
            let id = state.ids.fresh()?;
            self.env.log.block(&id, at, range.end - range.start);
            id
        };
        let store = &self.env.store;
        let copied = store
            .stage_from(&target.blob, &id, source, range, Some(etag), &target.options())
            .await;
        if copied.is_err() {
            let _state = self.lock();
            self.env.log.unstaged(&id);
        }
        match copied {
            Ok(()) => Ok(Some(id)),
            Err(Error::ConditionNotMet { .. } | Error::BlobNotFound { .. }) => Err(FileError::Stale),
            Err(error) if cannot(&error) => {
                if self.env.server_copy.swap(false, Ordering::Relaxed) {
                    tracing::info!(%error, "the endpoint has no Put Block From URL: copying through memory");
                }
                Ok(None)
            }
            // Such as a length of the id that does not fit: sending the bytes sorts that out.
            Err(Error::Service { status, .. }) if status < 500 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl State {
    /// What the file has at `at`, up to `end` at most; `None` past the end.
    fn run_at(&self, at: u64, end: u64) -> Option<Run> {
        let end = end.min(self.size);
        if at >= end {
            return None;
        }
        if let Some((range, _, segment)) = self.overlay.segments(at..end).next() {
            if range.start == at {
                let len = range.end - at;
                return Some(match segment.content {
                    Content::Hole => Run::Hole(len),
                    _ => Run::Other,
                });
            }
            return Some(self.base_run(at, range.start));
        }
        Some(self.base_run(at, end))
    }

    fn base_run(&self, at: u64, end: u64) -> Run {
        if at >= self.base_valid {
            return Run::Hole(end - at);
        }
        let end = end.min(self.base_valid);
        let index = self.holes.partition_point(|h| h.end <= at);
        let end = match self.holes.get(index) {
            Some(hole) if hole.start <= at => return Run::Hole(hole.end.min(end) - at),
            Some(hole) => end.min(hole.start),
            None => end,
        };
        match &self.base {
            Some(base) => Run::Committed(end - at, self.blob.clone(), base.etag.clone()),
            None => Run::Other,
        }
    }
}

/// The endpoint has no such call, or may not read the source for it.
fn cannot(error: &Error) -> bool {
    match error {
        Error::Denied { .. } => true,
        Error::Service { status, code, .. } => {
            matches!(status, 404 | 405 | 501)
                || matches!(
                    code.as_str(),
                    "CannotVerifyCopySource" | "UnsupportedHeader" | "NotImplemented"
                )
        }
        _ => false,
    }
}
