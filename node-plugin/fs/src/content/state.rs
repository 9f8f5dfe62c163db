//! What one file is at one instant, and what can be answered from that without asking anybody.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use blob_client::{Block, BlockId, ETag, Metadata, Written};
use vsc_driver::buffer::Slice;

use super::{Base, FileError, ReadData, Refuge, Shelter};
use crate::budget::{Budget, Permit};
use crate::content::cache::Cache;
use crate::content::commit::Sent;
use crate::content::fetch::Flight;
use crate::content::ids::Ids;
use crate::content::overlay::{Content, Overlay};

/// What the structures of a file take, for the budget: its locks, its environment, and a little of each of its maps.
pub(crate) const CORE_BYTES: usize = 2 << 10;
/// What a block of the base takes, with its id.
const BLOCK_BYTES: usize = size_of::<Block>() + 64;

/// What is known about the blocks of the base.
#[derive(Debug, Clone)]
pub(crate) enum Blocks {
    /// Not asked yet.
    Unknown,
    /// In order; empty for a blob that was put in one piece.
    Known(Arc<Vec<Block>>),
}

/// The committed version.
#[derive(Debug, Clone)]
pub(crate) struct BaseVersion {
    pub(crate) etag: ETag,
    pub(crate) size: u64,
    pub(crate) writable: bool,
    pub(crate) blocks: Blocks,
}

impl From<Base> for BaseVersion {
    fn from(base: Base) -> Self {
        Self {
            etag: base.etag,
            size: base.size,
            writable: base.writable,
            blocks: Blocks::Unknown,
        }
    }
}

/// Where the blocks of a file go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) blob: String,
    /// Lease of the blob, if it is one that was moved aside.
    pub(crate) lease: Option<String>,
}

/// A block that is staged, or on its way.
#[derive(Debug, Clone)]
pub(crate) struct StagedBlock {
    pub(crate) id: BlockId,
    pub(crate) len: u64,
    pub(crate) done: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) blob: String,
    pub(crate) base: Option<BaseVersion>,
    /// How far the base shows through where the overlay has nothing.
    pub(crate) base_valid: u64,
    pub(crate) size: u64,
    pub(crate) overlay: Overlay,
    /// Ranges of the base that are known to be zeros; sorted.
    pub(crate) holes: Vec<Range<u64>>,
    /// By offset. The range is covered by overlay segments that did not change since staging began.
    pub(crate) staged: BTreeMap<u64, StagedBlock>,
    /// Put Block requests on their way.
    pub(crate) staging: usize,
    /// Ranges that wait for a free slot to be staged.
    pub(crate) to_stage: std::collections::VecDeque<Range<u64>>,
    /// Stamped on segments; a commit contains those up to its snapshot's.
    pub(crate) epoch: u64,
    /// Smallest size set since the last snapshot.
    pub(crate) cut: u64,
    /// Changes whenever the base does.
    pub(crate) version: u64,
    pub(crate) cache: Cache,
    pub(crate) flights: Vec<Arc<Flight>>,
    pub(crate) committing: bool,
    pub(crate) relieving: bool,
    /// The last try to make room failed, and was reported.
    pub(crate) relief_failed: bool,
    /// Known to the budget as a holder of dirty data.
    pub(crate) registered: bool,
    pub(crate) stale: bool,
    pub(crate) detached: bool,
    /// There was something to commit when the content was detached. Owed again if the blob turns out to stay.
    pub(crate) owed: bool,
    /// Somebody holds the version still: nothing may be only in the service.
    pub(crate) held: bool,
    /// Lease of the blob, which no name leads to any more.
    pub(crate) lease: Option<String>,
    /// Makes a blob for a detached file that is too large for memory.
    pub(crate) refuge: Option<Arc<dyn Refuge>>,
    /// That blob. It goes when nobody needs the file any more.
    pub(crate) shelter: Option<Shelter>,
    /// For the structures of the file themselves.
    pub(crate) charge: Option<Permit>,
    pub(crate) metadata: Option<Metadata>,
    /// It is in the log since the last snapshot.
    pub(crate) metadata_noted: bool,
    pub(crate) written: Option<Written>,
    pub(crate) ids: Ids,
    /// A commit whose outcome is unknown.
    pub(crate) doubt: Option<Arc<Sent>>,
}

/// What a read found.
#[derive(Debug)]
pub(crate) enum Assembled {
    /// The answer.
    Ready(ReadData),
    /// Ranges of the base that have to be fetched.
    Missing(Vec<Range<u64>>),
    /// Data that is only staged: it has to be committed before it can be read.
    Remote,
}

enum Piece {
    Zeros(u64),
    Slice(Slice),
    Open(u64, usize),
}

impl State {
    pub(crate) fn new(blob: String, base: Option<Base>) -> Self {
        let size = base.as_ref().map_or(0, |b| b.size);
        Self {
            blob,
            base: base.map(BaseVersion::from),
            base_valid: size,
            size,
            overlay: Overlay::default(),
            holes: Vec::new(),
            staged: BTreeMap::new(),
            staging: 0,
            to_stage: std::collections::VecDeque::new(),
            epoch: 1,
            cut: u64::MAX,
            version: 0,
            cache: Cache::default(),
            flights: Vec::new(),
            committing: false,
            relieving: false,
            relief_failed: false,
            registered: false,
            stale: false,
            detached: false,
            owed: false,
            held: false,
            lease: None,
            refuge: None,
            shelter: None,
            charge: None,
            metadata: None,
            metadata_noted: false,
            written: None,
            ids: Ids::default(),
            doubt: None,
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        if self.detached {
            return self.stale && self.owed;
        }
        match &self.base {
            None => true,
            Some(base) => !self.overlay.is_empty() || self.size != base.size || self.base_valid < base.size,
        }
    }

    /// The answer to a read of `offset..end` (within the size), with `pinned` as an addition to the cache.
    pub(crate) fn assemble(&self, offset: u64, end: u64, pinned: &[(u64, Slice)]) -> Assembled {
        if self.overlay.is_empty()
            && end <= self.base_valid
            && let Some(slice) = self.cache.get(offset, end)
            && slice.len() as u64 == end - offset
        {
            return Assembled::Ready(ReadData::Slice(slice));
        }
        let mut pieces = Vec::new();
        let mut missing = Vec::new();
        let mut at = offset;
        for (range, inside, segment) in self.overlay.segments(offset..end) {
            self.base_pieces(at..range.start, pinned, &mut pieces, &mut missing);
            at = range.end;
            let len = range.end - range.start;
            match &segment.content {
                Content::Hole => pieces.push(Piece::Zeros(len)),
                Content::Open => pieces.push(Piece::Open(range.start, len as usize)),
                Content::Mem(slice, _) => {
                    let from = inside as usize;
                    pieces.push(Piece::Slice(slice.slice(from..from + len as usize)));
                }
                Content::Remote => return Assembled::Remote,
            }
        }
        self.base_pieces(at..end, pinned, &mut pieces, &mut missing);
        if !missing.is_empty() {
            return Assembled::Missing(missing);
        }
        if let [Piece::Slice(slice)] = &pieces[..] {
            return Assembled::Ready(ReadData::Slice(slice.clone()));
        }
        let mut out = Vec::with_capacity((end - offset) as usize);
        for piece in pieces {
            match piece {
                Piece::Zeros(len) => out.resize(out.len() + len as usize, 0),
                Piece::Slice(slice) => out.extend_from_slice(&slice),
                Piece::Open(at, len) => out.extend_from_slice(self.overlay.open_bytes(at, len)),
            }
        }
        Assembled::Ready(ReadData::Owned(out))
    }

    /// Pieces of a range that the overlay has nothing for.
    fn base_pieces(
        &self,
        range: Range<u64>,
        pinned: &[(u64, Slice)],
        pieces: &mut Vec<Piece>,
        missing: &mut Vec<Range<u64>>,
    ) {
        let valid = self.base_valid.clamp(range.start, range.end.max(range.start));
        let mut at = range.start;
        while at < valid {
            if let Some(hole) = self.hole_at(at) {
                let end = hole.end.min(valid);
                pieces.push(Piece::Zeros(end - at));
                at = end;
                continue;
            }
            let end = self.next_hole(at).min(valid);
            let found = self.cache.get(at, end).or_else(|| find(pinned, at, end));
            match found {
                Some(slice) => {
                    at += slice.len() as u64;
                    pieces.push(Piece::Slice(slice));
                }
                None => {
                    // Up to where something is known again.
                    let gap = self.cache.missing(at..end).first().map_or(end, |m| m.end);
                    let gap = pinned
                        .iter()
                        .map(|(o, _)| *o)
                        .filter(|o| *o > at)
                        .fold(gap, u64::min);
                    missing.push(at..gap);
                    at = gap;
                }
            }
        }
        if valid < range.end {
            pieces.push(Piece::Zeros(range.end - valid.max(range.start)));
        }
    }

    fn hole_at(&self, at: u64) -> Option<&Range<u64>> {
        let index = self.holes.partition_point(|h| h.end <= at);
        self.holes.get(index).filter(|h| h.start <= at)
    }

    fn next_hole(&self, at: u64) -> u64 {
        let index = self.holes.partition_point(|h| h.end <= at);
        self.holes.get(index).map_or(u64::MAX, |h| h.start)
    }

    /// Ranges of the base in `range` that a reader would need from the service.
    pub(crate) fn wanted(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let end = range.end.min(self.base_valid);
        if range.start >= end {
            return Vec::new();
        }
        let mut covered: Vec<Range<u64>> = self.overlay.segments(range.start..end).map(|s| s.0).collect();
        covered.extend(
            self.flights
                .iter()
                .filter(|f| f.version == self.version)
                .map(|f| f.range.clone()),
        );
        let first = self.holes.partition_point(|h| h.end <= range.start);
        covered.extend(self.holes[first..].iter().take_while(|h| h.start < end).cloned());
        covered.sort_by_key(|r| r.start);
        let mut wanted = Vec::new();
        let mut at = range.start;
        for known in covered {
            if known.start > at {
                wanted.extend(self.cache.missing(at..known.start.min(end)));
            }
            at = at.max(known.end);
            if at >= end {
                break;
            }
        }
        if at < end {
            wanted.extend(self.cache.missing(at..end));
        }
        wanted
    }

    /// Holes from `from` on (within the size), in order; adjacent ones are not joined.
    fn holes_from(&self, from: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = from;
        let written = self.overlay.segments(from..self.size).map(|(range, _, segment)| {
            let hole = matches!(segment.content, Content::Hole);
            (range, hole)
        });
        // The end is a segment of nothing, behind the last gap.
        let end = std::iter::once((self.size..self.size, false));
        written.chain(end).flat_map(move |(range, hole)| {
            let gap = at.min(range.start)..range.start;
            at = range.end;
            self.holes_of_base(gap).chain(hole.then_some(range))
        })
    }

    /// Holes of a range that the overlay has nothing for.
    fn holes_of_base(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let valid = self.base_valid.clamp(range.start, range.end);
        let first = self.holes.partition_point(|h| h.end <= range.start);
        let known = self.holes[first..]
            .iter()
            .take_while(move |h| h.start < valid)
            .map(move |h| h.start.max(range.start)..h.end.min(valid))
            .filter(|h| !h.is_empty());
        let past = (valid < range.end).then_some(valid..range.end);
        known.chain(past)
    }

    /// All holes of the file as it is now, sorted, adjacent ones joined.
    pub(crate) fn all_holes(&self) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = Vec::new();
        for range in self.holes_from(0) {
            match all.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => all.push(range),
            }
        }
        all
    }

    pub(crate) fn seek_data(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let mut data = offset;
        for hole in self.holes_from(offset) {
            if hole.start > data {
                break;
            }
            data = hole.end;
        }
        (data < self.size).then_some(data)
    }

    pub(crate) fn seek_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let hole = self.holes_from(offset).next();
        Some(hole.map_or(self.size, |h| h.start))
    }

    /// Staged blocks that touch `range`.
    fn staged_in(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.staged
            .range(..range.end)
            .rev()
            .map(|(start, block)| *start..start + block.len)
            .take_while(|r| r.end > range.start)
            .collect()
    }

    /// True when a change of `range` would leave part of a staged block that is nowhere else: a commit has to come first.
    pub(crate) fn loses(&self, range: Range<u64>) -> bool {
        self.staged_in(&range).into_iter().any(|block| {
            let inside = range.start <= block.start && block.end <= range.end;
            !inside && self.has_remote(block)
        })
    }

    /// After a change of `range`: staged blocks in it are no longer what the file holds.
    pub(crate) fn unstage(&mut self, range: Range<u64>) {
        for block in self.staged_in(&range) {
            self.staged.remove(&block.start);
        }
    }

    pub(crate) fn has_remote(&self, range: Range<u64>) -> bool {
        self.overlay
            .segments(range)
            .any(|(_, _, segment)| matches!(segment.content, Content::Remote))
    }

    /// So many blocks of the base are remembered.
    pub(crate) fn charge_blocks(&mut self, blocks: usize) {
        if let Some(charge) = &mut self.charge {
            charge.resize(CORE_BYTES + blocks * BLOCK_BYTES);
        }
    }

    /// Where blocks go now.
    pub(crate) fn target(&self) -> Target {
        Target {
            blob: self.blob.clone(),
            lease: self.lease.clone(),
        }
    }

    /// The file has lost its version: what was not sent never will be. Gives its memory back; who reads it is told.
    pub(crate) fn drop_lost(&mut self) {
        let memory: Vec<Range<u64>> = self.overlay.memory(0..u64::MAX);
        for range in memory {
            self.overlay.put(range, Content::Remote, self.epoch);
        }
        self.staged.clear();
        self.to_stage.clear();
    }

    /// Writes may change the file; the error says why not.
    pub(crate) fn writable(&self) -> Result<(), FileError> {
        match &self.base {
            Some(base) if !base.writable => Err(FileError::Unwritable("page and append")),
            _ => Ok(()),
        }
    }

    /// Drops what is cached past the valid part of the base.
    pub(crate) fn forget_past(&mut self, end: u64, budget: &Budget) {
        self.cache.remove(end..u64::MAX, budget);
        self.holes.retain_mut(|h| {
            h.end = h.end.min(end);
            h.start < h.end
        });
    }
}

fn find(pinned: &[(u64, Slice)], at: u64, end: u64) -> Option<Slice> {
    let (start, slice) = pinned
        .iter()
        .find(|(start, slice)| *start <= at && at < start + slice.len() as u64)?;
    let to = end.min(start + slice.len() as u64) - start;
    Some(slice.slice((at - start) as usize..to as usize))
}
