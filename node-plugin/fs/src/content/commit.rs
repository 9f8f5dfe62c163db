//! Making what was written a new version of the blob, guarded by the version it started from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blob_client::{Block, BlockId, BlockRef, Body, Condition, Error, Metadata, Piece, PutOptions, Written};
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};

use super::overlay::{Content, Segment};
use super::plan::{Out, Over, PlanInput, plan};
use crate::content::fetch::{shutting_down, size_class};
use crate::content::{BaseVersion, Blocks, Core, FileError, Target};

/// Zeros to send, again and again.
static ZEROS: &[u8] = &[0; 1 << 20];

/// What was sent as the new version.
#[derive(Debug)]
enum Form {
    /// Put Blob.
    Whole(Body),
    /// Put Block List.
    Blocks(Vec<Block>),
}

/// A commit that was sent, and what has to be known when it turns out to have succeeded.
#[derive(Debug)]
pub(crate) struct Sent {
    form: Form,
    metadata: Metadata,
    size: u64,
    epoch: u64,
    /// Ranges that differ from the version before.
    changed: Vec<Range<u64>>,
    holes: Vec<Range<u64>>,
}

/// A file's content at the instant a commit began.
struct Snapshot {
    target: Target,
    base: Option<BaseVersion>,
    base_valid: u64,
    size: u64,
    epoch: u64,
    segments: Vec<(u64, Segment)>,
    staged: Vec<(Range<u64>, BlockId)>,
    holes: Vec<Range<u64>>,
}

/// What became of a commit whose answer was lost.
enum Verdict {
    /// It was executed.
    Ours(Written),
    /// The blob is still what it was before.
    Unchanged,
    /// Somebody else was quicker.
    Foreign,
}

/// Ends the state of committing, however the commit ends.
struct Committing<'a>(&'a Arc<Core>);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.committing = false;
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
                state.metadata = Some(metadata.clone());
            }
            if !state.is_dirty() {
                return Ok(None);
            }
        }
        // A task of its own: a caller that goes away must not leave the outcome unknown.
        let core = Arc::clone(self);
        let task = self.env.runtime.spawn(async move {
            let _one = core.commits.lock().await;
            core.commit_held(metadata).await
        });
        task.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    async fn commit_held(self: &Arc<Self>, metadata: Option<Metadata>) -> Result<Option<Written>, FileError> {
        {
            let mut state = self.lock();
            if !state.is_dirty() {
                return Ok(None);
            }
            if state.stale {
                return Err(FileError::Stale);
            }
            state.writable()?;
            // Put Block List discards staged blocks that it does not name: none may be on its way then.
            state.committing = true;
            state.to_stage.clear();
        }
        let _committing = Committing(self);
        self.no_block_on_its_way().await;
        let metadata = match metadata {
            Some(metadata) => metadata,
            None => self.own_metadata().await?,
        };
        if let Some(written) = self.settle_doubt(Some(&metadata)).await? {
            return Ok(Some(written));
        }
        for last_try in [false, true] {
            let snapshot = self.snapshot();
            match self.send(&snapshot, &metadata).await {
                // Staged blocks are kept for a week at most, and a commit of somebody else discards them.
                Err(FileError::Client(error)) if !last_try && is_service(&error, "InvalidBlockList") => {
                    if !self.forget_staged() {
                        // Asking again will not bring them back.
                        tracing::error!(
                            blob = snapshot.target.blob,
                            "data that was sent to the service and kept nowhere else was discarded by it"
                        );
                        return Err(self.turn_stale());
                    }
                }
                other => return other.map(Some),
            }
        }
        Ok(None)
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
            if let Some(metadata) = &state.metadata {
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
            Err(error) if is_foreign(&error) => Err(self.turn_stale()),
            Err(error) => Err(error.into()),
        }
    }

    fn turn_stale(&self) -> FileError {
        self.lock().stale = true;
        FileError::Stale
    }

    /// Finds out what became of an earlier commit. The version, when nothing more is to be sent.
    pub(crate) async fn settle_doubt(
        self: &Arc<Self>,
        metadata: Option<&Metadata>,
    ) -> Result<Option<Written>, FileError> {
        let Some(doubt) = self.lock().doubt.clone() else {
            return Ok(None);
        };
        match self.verify(&doubt).await? {
            Verdict::Ours(written) => {
                self.finish(&doubt, &written);
                let clean = !self.lock().is_dirty() && metadata == Some(&doubt.metadata);
                Ok(clean.then_some(written))
            }
            Verdict::Unchanged => {
                self.lock().doubt = None;
                Ok(None)
            }
            Verdict::Foreign => Err(self.turn_stale()),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        let segments = state.overlay.snapshot();
        let epoch = state.epoch;
        state.epoch += 1;
        state.cut = u64::MAX;
        state.metadata_noted = false;
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
    async fn send(self: &Arc<Self>, snapshot: &Snapshot, metadata: &Metadata) -> Result<Written, FileError> {
        let tuning = &self.env.tuning;
        let whole = !snapshot.has_remote()
            && (snapshot.size <= tuning.small_file
                || snapshot.size <= tuning.block && snapshot.kept_base() == 0);
        let resent = if whole { snapshot.kept_base() } else { 0 };
        let _right = self.env.budget.acquire_resend(resent).await;
        let form = if whole {
            Form::Whole(self.gather(snapshot, 0..snapshot.size).await?)
        } else {
            Form::Blocks(vec![])
        };
        let mut sent = Sent {
            form,
            metadata: metadata.clone(),
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
            metadata: metadata.clone(),
            content_type: None,
            condition: Condition {
                lease: snapshot.target.lease.clone(),
                ..condition
            },
        };
        let blob = &snapshot.target.blob;
        let answer = if let Form::Whole(body) = &sent.form {
            self.env.store.put(blob, body.clone(), &options).await
        } else {
            let (refs, blocks) = self.stage_all(snapshot).await?;
            sent.form = Form::Blocks(blocks);
            self.env.store.commit(blob, &refs, &options).await
        };
        let error = match answer {
            Ok(written) => {
                self.finish(&sent, &written);
                return Ok(written);
            }
            Err(error) => error,
        };
        let foreign = is_foreign(&error);
        if !foreign && !is_unclear(&error) {
            return Err(error.into());
        }
        // A retry below may have met the success of the attempt before it.
        match self.verify(&sent).await {
            Ok(Verdict::Ours(written)) => {
                self.finish(&sent, &written);
                Ok(written)
            }
            Ok(Verdict::Foreign) => Err(self.turn_stale()),
            Ok(Verdict::Unchanged) if foreign => Err(self.turn_stale()),
            Ok(Verdict::Unchanged) | Err(_) => {
                self.lock().doubt = Some(Arc::new(sent));
                Err(error.into())
            }
        }
    }

    /// Looks whether the service has what was sent.
    async fn verify(&self, sent: &Sent) -> Result<Verdict, FileError> {
        let (blob, base) = {
            let state = self.lock();
            (state.blob.clone(), state.base.as_ref().map(|b| b.etag.clone()))
        };
        let store = &self.env.store;
        let now = match store.head(&blob, &Condition::none()).await {
            Ok(properties) => properties,
            Err(Error::BlobNotFound { .. }) if base.is_none() => return Ok(Verdict::Unchanged),
            Err(Error::BlobNotFound { .. }) => return Ok(Verdict::Foreign),
            Err(error) => return Err(error.into()),
        };
        if base.as_ref() == Some(&now.etag) {
            return Ok(Verdict::Unchanged);
        }
        if now.content_length != sent.size || now.metadata != sent.metadata {
            return Ok(Verdict::Foreign);
        }
        let same = match &sent.form {
            Form::Blocks(blocks) => {
                let list = store.block_list(&blob).await?;
                list.etag.as_ref() == Some(&now.etag) && list.committed == *blocks
            }
            Form::Whole(body) if sent.size == 0 => body.is_empty(),
            Form::Whole(body) => {
                let _room = self.env.budget.acquire_read(size_class(sent.size)).await;
                let buffer = self.buffer(sent.size as usize)?;
                let condition = Condition::matches(&now.etag);
                let got = store.get(&blob, 0..sent.size, &condition, buffer).await?;
                same_bytes(body, &got.buffer)
            }
        };
        if !same {
            return Ok(Verdict::Foreign);
        }
        Ok(Verdict::Ours(Written {
            etag: now.etag,
            last_modified: now.last_modified,
        }))
    }

    /// The new version is in the service: what was sent becomes the base.
    fn finish(&self, sent: &Sent, written: &Written) {
        let mut state = self.lock();
        let state = &mut *state;
        let committed = state.overlay.take_committed(sent.epoch);
        let blocks = match &sent.form {
            Form::Whole(_) => {
                state.ids.reset();
                Vec::new()
            }
            Form::Blocks(blocks) => blocks.clone(),
        };
        let count = blocks.len();
        state.base = Some(BaseVersion {
            etag: written.etag.clone(),
            size: sent.size,
            writable: true,
            blocks: Blocks::Known(Arc::new(blocks)),
        });
        state.charge_blocks(count);
        state.base_valid = sent.size.min(state.cut);
        state.version += 1;
        // Staged blocks that were not named are gone; there are none, because none are sent during a commit.
        state.staged.clear();
        state.doubt = None;
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

    /// Stages everything that is not in the service yet; the list to commit, and the same as blocks with sizes.
    async fn stage_all(
        self: &Arc<Self>,
        snapshot: &Snapshot,
    ) -> Result<(Vec<BlockRef>, Vec<Block>), FileError> {
        let base_blocks = self.base_blocks(snapshot).await?;
        let over = snapshot.over();
        let input = PlanInput {
            size: snapshot.size,
            base_valid: snapshot.base_valid,
            base_size: snapshot.base.as_ref().map_or(0, |b| b.size),
            blocks: &base_blocks,
            over: &over,
            server_copy: self.env.server_copy.load(Ordering::Relaxed),
        };
        let outs = plan(&input, &self.env.tuning, &self.layout)?;
        // One block of zeros of each length.
        let mut zeros: BTreeMap<u64, usize> = BTreeMap::new();
        let mut work = Vec::new();
        let mut at = 0;
        for (index, out) in outs.iter().enumerate() {
            let range = at..at + out.len();
            at = range.end;
            match out {
                Out::Keep(..) | Out::Staged(..) => {}
                Out::Zero(len) if zeros.contains_key(len) => {}
                Out::Zero(len) => {
                    zeros.insert(*len, index);
                    work.push((index, range, out.clone()));
                }
                Out::Copy(_) | Out::Fresh(_) => work.push((index, range, out.clone())),
            }
        }
        let sent: BTreeMap<usize, Vec<Block>> = futures::stream::iter(work)
            .map(|(index, range, out)| async move {
                let copy = matches!(out, Out::Copy(_));
                let blocks = match out {
                    Out::Zero(len) => vec![self.stage_body(snapshot, range.start, zeros_body(len)).await?],
                    _ => self.stage_range(snapshot, range, copy).await?,
                };
                Ok::<_, FileError>((index, blocks))
            })
            .buffer_unordered(self.env.tuning.stage_parallel.max(1))
            .try_collect()
            .await?;
        let mut refs = Vec::with_capacity(outs.len());
        let mut blocks = Vec::with_capacity(outs.len());
        for (index, out) in outs.into_iter().enumerate() {
            match out {
                Out::Keep(id, size) => {
                    refs.push(BlockRef::Committed(id.clone()));
                    blocks.push(Block { id, size });
                }
                Out::Staged(id, size) => {
                    refs.push(BlockRef::Uncommitted(id.clone()));
                    blocks.push(Block { id, size });
                }
                Out::Zero(_) | Out::Copy(_) | Out::Fresh(_) => {
                    let index = match out {
                        Out::Zero(len) => zeros.get(&len).copied().unwrap_or(index),
                        _ => index,
                    };
                    for block in sent.get(&index).into_iter().flatten() {
                        refs.push(BlockRef::Uncommitted(block.id.clone()));
                        blocks.push(block.clone());
                    }
                }
            }
        }
        if refs.len() > self.env.tuning.max_blocks {
            return Err(FileError::TooLarge);
        }
        Ok((refs, blocks))
    }

    /// Stages a range as one block: copied by the service when it can, else sent.
    async fn stage_range(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        range: Range<u64>,
        copy: bool,
    ) -> Result<Vec<Block>, FileError> {
        if copy && let Some(block) = self.stage_copy(snapshot, range.clone()).await? {
            return Ok(vec![block]);
        }
        let mut blocks = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // What was planned as a copy may be larger than a block that is sent.
            let end = if copy {
                range.end.min(at + self.env.tuning.block)
            } else {
                range.end
            };
            let _right = self.env.budget.acquire_resend(snapshot.kept_of(at..end)).await;
            let body = self.gather(snapshot, at..end).await?;
            blocks.push(self.stage_body(snapshot, at, body).await?);
            at = end;
        }
        Ok(blocks)
    }

    async fn stage_body(&self, snapshot: &Snapshot, at: u64, body: Body) -> Result<Block, FileError> {
        let size = body.len();
        let id = {
            let mut state = self.lock();
            let id = state.ids.fresh()?;
            self.env.log.block(&id, at, size);
            id
        };
        let id = self.send_block(&snapshot.target, id, at..at + size, body).await?;
        Ok(Block { id, size })
    }

    /// Put Block From URL of a range of the base; `None` when the service cannot.
    async fn stage_copy(&self, snapshot: &Snapshot, range: Range<u64>) -> Result<Option<Block>, FileError> {
        let Some(base) = &snapshot.base else {
            return Ok(None);
        };
        let size = range.end - range.start;
        match self
            .copy_block(
                &snapshot.target,
                range.start,
                &snapshot.target.blob,
                range,
                &base.etag,
            )
            .await
        {
            Ok(Some(id)) => Ok(Some(Block { id, size })),
            Ok(None) => Ok(None),
            Err(FileError::Stale) => Err(self.turn_stale()),
            Err(error) => Err(error),
        }
    }

    /// Blocks of the base, asked for once, and only when some of the base is kept.
    async fn base_blocks(&self, snapshot: &Snapshot) -> Result<Arc<Vec<Block>>, FileError> {
        let Some(base) = &snapshot.base else {
            return Ok(Arc::default());
        };
        match &base.blocks {
            Blocks::Known(blocks) => return Ok(Arc::clone(blocks)),
            Blocks::Unknown if snapshot.kept_base() == 0 => return Ok(Arc::default()),
            Blocks::Unknown => {}
        }
        let list = match self.env.store.block_list(&snapshot.target.blob).await {
            Ok(list) => list,
            Err(error) if is_foreign(&error) => return Err(self.turn_stale()),
            Err(error) => return Err(error.into()),
        };
        if list.etag.as_ref() != Some(&base.etag) {
            return Err(self.turn_stale());
        }
        let mut state = self.lock();
        state.ids.adopt(&list);
        let sum: u64 = list.committed.iter().map(|b| b.size).sum();
        // A list that does not add up to the blob is of no use (a blob put in one piece has an empty one).
        let blocks = if sum == base.size {
            list.committed
        } else {
            Vec::new()
        };
        let blocks = Arc::new(blocks);
        if let Some(base) = &mut state.base {
            base.blocks = Blocks::Known(Arc::clone(&blocks));
        }
        state.charge_blocks(blocks.len());
        Ok(blocks)
    }

    /// The bytes of a range of the snapshot.
    async fn gather(self: &Arc<Self>, snapshot: &Snapshot, range: Range<u64>) -> Result<Body, FileError> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = snapshot
            .segments
            .partition_point(|(s, seg)| s + seg.len <= range.start);
        for (start, segment) in &snapshot.segments[first..] {
            if *start >= range.end {
                break;
            }
            let clip = range.start.max(*start)..range.end.min(start + segment.len);
            self.gather_base(snapshot, at..clip.start, &mut pieces).await?;
            at = clip.end;
            match &segment.content {
                Content::Mem(slice, _) => pieces.push(Piece::Slice(
                    slice.slice((clip.start - start) as usize..(clip.end - start) as usize),
                )),
                Content::Hole => push_zeros(&mut pieces, clip.end - clip.start),
                // A snapshot has no open runs, and what is only staged is never sent again.
                Content::Open | Content::Remote => return Err(FileError::Stale),
            }
        }
        self.gather_base(snapshot, at..range.end, &mut pieces).await?;
        Ok(Body(pieces))
    }

    async fn gather_base(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        range: Range<u64>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), FileError> {
        let mut at = range.start;
        while at < range.end {
            let index = snapshot.holes.partition_point(|h| h.end <= at);
            let hole = snapshot.holes.get(index).filter(|h| h.start < range.end);
            let data_end = hole.map_or(range.end, |h| h.start.max(at));
            if at < data_end {
                match self.read_base(at..data_end).await {
                    Ok(slices) => pieces.extend(slices.into_iter().map(Piece::Slice)),
                    Err(FileError::Stale) => return Err(self.turn_stale()),
                    Err(error) => return Err(error),
                }
            }
            at = hole.map_or(range.end, |h| h.end.min(range.end));
            push_zeros(pieces, at - data_end);
        }
        Ok(())
    }
}

impl Snapshot {
    fn has_remote(&self) -> bool {
        self.segments
            .iter()
            .any(|(_, segment)| matches!(segment.content, Content::Remote))
    }

    /// Bytes of the base that show through.
    fn kept_base(&self) -> u64 {
        self.kept_of(0..self.base_valid)
    }

    /// Bytes of the base that show through in a range.
    fn kept_of(&self, range: Range<u64>) -> u64 {
        let end = range.end.min(self.base_valid);
        if end <= range.start {
            return 0;
        }
        let first = self
            .segments
            .partition_point(|(s, seg)| s + seg.len <= range.start);
        let covered: u64 = self.segments[first..]
            .iter()
            .take_while(|(start, _)| *start < end)
            .map(|(start, seg)| (start + seg.len).min(end) - (*start).max(range.start))
            .sum();
        end - range.start - covered
    }

    /// The overlay as the plan wants it.
    fn over(&self) -> Vec<(Range<u64>, Over)> {
        let staged = self
            .staged
            .iter()
            .map(|(range, id)| (range.clone(), Over::Staged(id.clone())));
        let mut over: Vec<(Range<u64>, Over)> = staged.collect();
        for (start, segment) in &self.segments {
            let what = match segment.content {
                Content::Hole => Over::Hole,
                _ => Over::Memory,
            };
            let end = start + segment.len;
            let mut at = *start;
            let first = self.staged.partition_point(|(block, _)| block.end <= *start);
            for (block, _) in self.staged[first..]
                .iter()
                .take_while(|(block, _)| block.start < end)
            {
                if at < block.start {
                    over.push((at..block.start, what.clone()));
                }
                at = at.max(block.end);
            }
            if at < end {
                over.push((at..end, what));
            }
        }
        over.sort_by_key(|(range, _)| range.start);
        over
    }
}

fn push_zeros(pieces: &mut Vec<Piece>, mut len: u64) {
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        pieces.push(Piece::Bytes(Bytes::from_static(&ZEROS[..now as usize])));
        len -= now;
    }
}

fn zeros_body(len: u64) -> Body {
    let mut pieces = Vec::new();
    push_zeros(&mut pieces, len);
    Body(pieces)
}

fn same_bytes(body: &Body, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for piece in &body.0 {
        let piece: &[u8] = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Slice(slice) => slice,
        };
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// The condition did not hold: the blob is not the version it was.
fn is_foreign(error: &Error) -> bool {
    matches!(
        error,
        Error::ConditionNotMet { .. } | Error::AlreadyExists { .. } | Error::BlobNotFound { .. }
    )
}

fn is_service(error: &Error, wanted: &str) -> bool {
    matches!(error, Error::Service { code, .. } if code == wanted)
}

/// The request may have been executed although there is no good answer.
fn is_unclear(error: &Error) -> bool {
    match error {
        Error::Service { status, .. } => *status >= 500,
        Error::Unreachable { .. }
        | Error::DeadlineExceeded { .. }
        | Error::Malformed { .. }
        | Error::Io { .. } => true,
        _ => false,
    }
}
