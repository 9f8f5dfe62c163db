//! Following the blob when somebody else changed it: a new version with the same content, or with more behind
//! it, is no reason to give up.

use std::ops::Range;
use std::sync::Arc;

use blob_client::{Block, Condition, Error, Properties};
use vsc_driver::buffer::Slice;

use super::base::{BaseVersion, Blocks};
use super::binding::Digest;
use super::core::{Core, size_class};
use super::error::FileError;
use super::relation::{Described, Relation, by_properties, described_same};
use super::state::State;
use crate::budget::Budget;
use crate::sync::spawn;

/// Versions that are looked at before somebody who changes the blob all the time is taken for a stranger.
const TRIES: usize = 8;

/// What was found out about a version that may follow the base.
struct Found {
    relation: Relation,
    /// So many bytes from the beginning are known to be the same.
    proven: u64,
    /// The rest is so by a digest that may have been only said of the old content.
    said: bool,
    /// Its blocks, if they were asked for.
    blocks: Option<Vec<Block>>,
}

impl Core {
    /// Makes the service's version the base, if that only has other metadata than the base, or more behind
    /// it (and nobody writes here). Else the file is superseded. The caller has the right to change the base.
    pub(super) async fn follow(self: &Arc<Self>) -> Result<(), FileError> {
        if self.try_follow(None).await? {
            return Ok(());
        }
        self.lock().supersede();
        Err(FileError::Stale)
    }

    /// The same; false when the content is another one. `now` is what the service said, if it was asked
    /// already.
    pub(super) async fn try_follow(self: &Arc<Self>, mut now: Option<Properties>) -> Result<bool, FileError> {
        for _ in 0..TRIES {
            let (blob, base) = {
                let state = self.lock();
                if state.is_superseded() {
                    return Ok(false);
                }
                (state.blob.clone(), state.base.clone())
            };
            let Some(base) = base else { break };
            let current = match now.take() {
                Some(current) => current,
                None => match self.env.store.head(&blob, &Condition::none()).await {
                    Ok(current) => current,
                    Err(Error::BlobNotFound { .. }) => break,
                    Err(error) => return Err(error.into()),
                },
            };
            if current.etag == base.etag {
                return Ok(true);
            }
            // Changed again meanwhile: nothing is known about it.
            let Some(found) = self.relation(&blob, &base, &current).await? else {
                continue;
            };
            let mut state = self.lock();
            if found.relation == Relation::Replaced
                || found.relation == Relation::Extended && (state.is_dirty() || state.writers > 0)
            {
                break;
            }
            // Read or written meanwhile: more has to be proven than was.
            if state.to_prove(base.size, found.said) > found.proven {
                now = Some(current);
                continue;
            }
            state.take_over(&current, found, &self.env.budget);
            return Ok(true);
        }
        Ok(false)
    }

    /// The relation of `now` to `base`. `None` when `now` is not the service's version any more.
    async fn relation(
        self: &Arc<Self>,
        blob: &str,
        base: &BaseVersion,
        now: &Properties,
    ) -> Result<Option<Found>, FileError> {
        let found = |relation, proven| {
            Ok(Some(Found {
                relation,
                proven,
                said: false,
                blocks: None,
            }))
        };
        if let Some(relation) = by_properties(base, now) {
            return found(relation, base.size);
        }
        let (mut proven, mut blocks) = (0, None);
        let (old, known) = match &base.blocks {
            Blocks::Known(old) => (&old[..], true),
            Blocks::Unknown | Blocks::Asked => (&[][..], false),
        };
        let described = |content_md5, size, blocks| Described {
            size,
            content_md5,
            blocks,
        };
        let old = described(base.content_md5.as_ref(), base.size, old);
        let new = described(now.content_md5.as_ref(), now.content_length, &[]);
        // Not worth a question when no list of blocks could tell it.
        if !old.blocks.is_empty() || described_same(old, new) > 0 {
            let list = match self.env.store.block_list(blob).await {
                Ok(list) => list,
                Err(Error::BlobNotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if list.etag.as_ref() != Some(&now.etag) {
                return Ok(None);
            }
            self.lock().ids.adopt(&list);
            let blocks_now = &list.committed[..];
            proven = described_same(
                old,
                Described {
                    blocks: blocks_now,
                    ..new
                },
            );
            blocks = Some(list.committed);
        }
        // Nobody knows whether the old content was put in one piece. If it was not, its digest is what its
        // writer said, perhaps of another content: that may take its place only as long as nobody has
        // anything of the old one.
        let said = !known && proven > 0;
        if said {
            proven = 0;
        }
        let needed = self.lock().to_prove(base.size, said);
        if proven < needed {
            match self.compare(blob, proven..needed, now).await? {
                Some(true) => proven = needed,
                Some(false) => return found(Relation::Replaced, 0),
                None => return Ok(None),
            }
        }
        let relation = match now.content_length == base.size {
            true => Relation::Same,
            false => Relation::Extended,
        };
        Ok(Some(Found {
            relation,
            proven,
            said,
            blocks,
        }))
    }

    /// Whether the bytes of a range are what they were, if they are still in memory and no more than one
    /// request brings.
    async fn compare(
        self: &Arc<Self>,
        blob: &str,
        range: Range<u64>,
        now: &Properties,
    ) -> Result<Option<bool>, FileError> {
        let len = range.end - range.start;
        let known = match len <= self.env.tuning.part_max {
            true => self.lock().known_base(range.clone()),
            false => None,
        };
        let Some(known) = known else {
            return Ok(Some(false));
        };
        let _room = self.env.share.acquire_read(size_class(len)).await;
        let buffer = self.buffer(len as usize)?;
        let condition = Condition::matches(&now.etag);
        match self.env.store.get(blob, range, &condition, buffer).await {
            Ok(got) => {
                let mut rest = &got.buffer[..];
                let same = known.iter().all(|slice| match rest.strip_prefix(&slice[..]) {
                    Some(after) => {
                        rest = after;
                        true
                    }
                    None => false,
                });
                Ok(Some(same && rest.is_empty()))
            }
            Err(Error::ConditionNotMet { .. } | Error::BlobNotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for the blocks of a base that is read in several requests, so that a version that follows it can
    /// be told from another content. Nobody waits for it.
    pub(super) fn ask_for_blocks(self: &Arc<Self>, state: &mut State) {
        let small = self.env.tuning.small_file;
        let Some(base) = &mut state.base else { return };
        if !matches!(base.blocks, Blocks::Unknown) || !base.writable() || base.size <= small {
            return;
        }
        base.blocks = Blocks::Asked;
        let (blob, etag, core) = (state.blob.clone(), base.etag.clone(), Arc::clone(self));
        spawn(&self.env.runtime, async move {
            let list = core.env.store.block_list(&blob).await;
            let mut state = core.lock();
            let Some(base) = &mut state.base else { return };
            if base.etag != etag || !matches!(base.blocks, Blocks::Asked) {
                return;
            }
            base.blocks = Blocks::Unknown;
            match list {
                Ok(list) if list.etag.as_ref() == Some(&etag) => {
                    state.ids.adopt(&list);
                    state.know_blocks(list.committed);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(blob, %error, "the blocks of a blob are not known"),
            }
        });
    }
}

impl State {
    /// What is in memory of a range of the base; `None` when that is not all of it.
    fn known_base(&self, range: Range<u64>) -> Option<Vec<Slice>> {
        let mut slices = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let slice = self.cache.get(at, range.end)?;
            at += slice.len() as u64;
            slices.push(slice);
        }
        Some(slices)
    }

    /// Blocks of the base. A list that does not add up to the blob is of no use (a blob put in one piece has
    /// an empty one).
    pub(super) fn know_blocks(&mut self, blocks: Vec<Block>) -> Arc<Vec<Block>> {
        let size = self.base.as_ref().map_or(0, |base| base.size);
        let sum: u64 = blocks.iter().map(|b| b.size).sum();
        let blocks = Arc::new(if sum == size { blocks } else { Vec::new() });
        if let Some(base) = &mut self.base {
            base.blocks = Blocks::Known(Arc::clone(&blocks));
        }
        self.charge_blocks(blocks.len());
        blocks
    }

    /// Somebody was given what is up to `end`.
    pub(super) fn gave(&mut self, end: u64) {
        self.assured = self.assured.max(end);
        self.given = self.given.max(end);
    }

    /// So much of a base of `size` bytes has to be proven to be the same in a version that follows it.
    /// `said`: a digest says that it is.
    fn to_prove(&self, size: u64, said: bool) -> u64 {
        if !said {
            return self.promised(size);
        }
        // What was cut off is neither read nor sent any more.
        let left = size.min(self.base_valid);
        match self.is_dirty() && left > 0 && self.known_base(0..size).is_some() {
            true => size,
            false => self.given.min(left),
        }
    }

    /// So much of a base of `size` bytes has to stay as it is.
    fn promised(&self, size: u64) -> u64 {
        match self.is_dirty() {
            true => size,
            false => size.min(self.assured),
        }
    }

    /// The base is this version of the same content from now on.
    fn take_over(&mut self, now: &Properties, found: Found, budget: &Budget) {
        let Some(base) = &mut self.base else { return };
        let unproven = found.proven < base.size;
        base.etag = now.etag.clone();
        base.content_md5 = now.content_md5.clone();
        base.digest = Digest::of_version(now);
        base.metadata = Arc::new(now.metadata.clone());
        base.set_headers(now.stored.clone());
        // What is known, or was asked for, is of another version.
        base.blocks = Blocks::Unknown;
        if found.relation == Relation::Extended {
            base.size = now.content_length;
            self.base_valid = now.content_length;
            self.size = now.content_length;
        }
        if let Some(blocks) = found.blocks {
            self.know_blocks(blocks);
        }
        // The version that the tree knows as this process's is not the last one any more.
        self.written = None;
        // The same bytes under a new version: what is cached, or on its way, stays as good as it was. But
        // what nobody was promised may be another content, although it was read ahead.
        if unproven {
            self.forget_past(found.proven, budget);
            self.version += 1;
            self.carried = Some((self.version, found.proven));
        }
    }
}
