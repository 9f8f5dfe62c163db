//! The block list of a commit: everything that is not in the service yet is staged, the rest is named.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blob_client::{Block, BlockRef, Body};
use futures::stream::{StreamExt, TryStreamExt};

use super::atoms::PlanInput;
use super::base::Blocks;
use super::core::Core;
use super::error::FileError;
use super::gather::zeros_body;
use super::plan::{Out, plan};
use super::snapshot::Snapshot;
use super::verify::is_foreign;
use crate::caller::still_waits;

impl Core {
    /// Stages everything that is not in the service yet; the list to commit, and the same as blocks with
    /// sizes.
    pub(super) async fn stage_all(
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
            let _right = self.env.share.acquire_resend(snapshot.kept_of(at..end)).await;
            still_waits()?;
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
            Blocks::Unknown | Blocks::Asked if snapshot.kept_base() == 0 => return Ok(Arc::default()),
            Blocks::Unknown | Blocks::Asked => {}
        }
        let list = match self.env.store.block_list(&snapshot.target.blob).await {
            Ok(list) => list,
            Err(error) if is_foreign(&error) => return Err(FileError::Stale),
            Err(error) => return Err(error.into()),
        };
        if list.etag.as_ref() != Some(&base.etag) {
            return Err(FileError::Stale);
        }
        let mut state = self.lock();
        state.ids.adopt(&list);
        Ok(state.know_blocks(list.committed))
    }
}
