//! What one file is at one instant, and what can be answered from that without asking anybody.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use blob_client::{Block, BlockId, Metadata, StageOptions, StoredHeaders, Written};
use tokio::time::Instant;

use super::base::{Base, BaseVersion};
use super::error::FileError;
use super::extents::Extents;
use super::flight::Flight;
use super::ids::Ids;
use super::overlay::{Content, Overlay};
use super::refuge::{Refuge, Shelter};
use super::relation::merge;
use super::sent::Sent;
use crate::budget::{Budget, Permit};

/// What the structures of a file take, for the budget: its locks, its environment, and a little of each of
/// its maps.
pub(crate) const CORE_BYTES: usize = 2 << 10;
/// What a block of the base takes, with its id.
const BLOCK_BYTES: usize = size_of::<Block>() + 64;

/// Where the blocks of a file go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) blob: String,
    /// Lease of the blob, if it is one that was moved aside.
    pub(crate) lease: Option<String>,
    /// What the blob's owner stored with it.
    pub(crate) stored: Option<StoredHeaders>,
}

impl Target {
    /// What goes with each of the blocks.
    pub(crate) fn options(&self) -> StageOptions<'_> {
        StageOptions {
            lease: self.lease.as_deref(),
            stored: self.stored.as_ref(),
        }
    }
}

/// A block that is staged, or on its way.
#[derive(Debug, Clone)]
pub(crate) struct StagedBlock {
    pub(crate) id: BlockId,
    pub(crate) len: u64,
    pub(crate) done: bool,
    /// As of [`Queued`].
    pub(crate) round: u64,
}

/// A range that waits for its turn to be staged.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) range: Range<u64>,
    /// When it was queued, by [`State::round`].
    pub(crate) round: u64,
}

/// Where the content is kept.
#[derive(Debug)]
pub(crate) enum Place {
    /// In a blob of the file's name, which the first commit makes.
    Named,
    /// In a blob that no name leads to.
    Hidden {
        /// What is sent to that blob carries it.
        lease: String,
        /// The blob, if it was made for this file. It goes when nobody needs that any more.
        _shelter: Option<Shelter>,
    },
    /// In memory: the blob is being deleted, or is.
    Detached(Detached),
}

/// What becomes of a blob whose content is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// It is not known yet: it may turn out to stay.
    Going {
        /// There was something to commit when it was detached. It has to be committed again if the blob
        /// stays.
        owed: bool,
    },
    /// It is gone for good: what is in memory may go to a blob that no name leads to.
    Gone,
    /// It stays, and without what went to a blob that nobody will find: that was written for nothing.
    GivenUp,
}

/// What is known about the version that the file goes on top of.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It is the one in the service.
    Current,
    /// It, or the one that this commit made: the answer was lost.
    InDoubt(Arc<Sent>),
    /// The service has somebody else's.
    Superseded,
}

/// Who has the right to change the base ([`super::core::Core::commits`]), as far as others go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nobody, or somebody who does not mind what is staged.
    Free,
    /// A commit: nothing may be staged, because it would be discarded.
    Committing,
    /// Somebody who holds the version still: nothing may be only in the service.
    Held,
}

/// What the budget knows of the dirty data of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relieving {
    /// Nothing.
    Unknown,
    /// That there is some.
    Offered,
    /// The same, and it is being sent to make room.
    UnderWay {
        /// The try before this one failed, and the log has it.
        again: bool,
    },
    /// The same; if that fails, it is not tried again before.
    Resting {
        until: Instant,
        /// The last try failed as a whole, and the log has it; otherwise a block of it did.
        reported: bool,
    },
}

impl Relieving {
    /// Whether the log has it that the last try failed.
    pub(crate) fn is_reported(self) -> bool {
        match self {
            Self::Unknown | Self::Offered => false,
            Self::UnderWay { again } => again,
            Self::Resting { reported, .. } => reported,
        }
    }
}

/// Metadata of the next commit.
#[derive(Debug)]
pub(crate) enum NextMetadata {
    /// Whatever the blob has.
    Unknown,
    /// What the tree said.
    Given(Metadata),
    /// The same, and it is in the log since the last snapshot.
    Logged(Metadata),
}

impl NextMetadata {
    pub(crate) fn get(&self) -> Option<&Metadata> {
        match self {
            Self::Unknown => None,
            Self::Given(metadata) | Self::Logged(metadata) => Some(metadata),
        }
    }

    /// Other values, of which the log knows as much as before.
    pub(crate) fn replace(&mut self, metadata: Metadata) {
        *self = match self {
            Self::Unknown | Self::Given(_) => Self::Given(metadata),
            Self::Logged(_) => Self::Logged(metadata),
        };
    }

    /// The log has it from now on; it, if the log has to be told.
    pub(crate) fn log(&mut self) -> Option<&Metadata> {
        match std::mem::replace(self, Self::Unknown) {
            Self::Given(metadata) => {
                *self = Self::Logged(metadata);
                self.get()
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// The log has begun a new record of the file, without it.
    pub(crate) fn unlog(&mut self) {
        if let Self::Logged(metadata) = self {
            *self = Self::Given(std::mem::take(metadata));
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) blob: String,
    pub(crate) base: Option<BaseVersion>,
    /// How far the base shows through where the overlay has nothing.
    pub(crate) base_valid: u64,
    pub(crate) size: u64,
    /// So much of the base was promised to somebody: the size at the last open, and what reads got since.
    /// What is behind that may change when the base follows the blob.
    pub(crate) assured: u64,
    /// So much of the base somebody was given by a read, or has written.
    pub(crate) given: u64,
    /// Handles that may write, at offsets that they took from the base.
    pub(crate) writers: u32,
    pub(crate) overlay: Overlay,
    /// Ranges of the base that are known to be zeros; sorted.
    pub(crate) holes: Vec<Range<u64>>,
    /// By offset. The range is covered by overlay segments that did not change since staging began.
    pub(crate) staged: BTreeMap<u64, StagedBlock>,
    /// Put Block requests on their way.
    pub(crate) staging: usize,
    /// Ranges that wait for a free slot to be staged.
    pub(crate) to_stage: std::collections::VecDeque<Queued>,
    /// Goes up when somebody begins to wait for all that is queued by then.
    pub(crate) round: u64,
    /// The last block could not be sent: which, and why.
    pub(crate) unsent: Option<(Range<u64>, FileError)>,
    /// Stamped on segments; a commit contains those up to its snapshot's.
    pub(crate) epoch: u64,
    /// Smallest size set since the last snapshot.
    pub(crate) cut: u64,
    /// Changes whenever the base does.
    pub(crate) version: u64,
    /// A version that follows the one before it, and how much of that it still is.
    pub(crate) carried: Option<(u64, u64)>,
    pub(crate) cache: Extents,
    pub(crate) flights: Vec<Arc<Flight>>,
    pub(crate) place: Place,
    pub(crate) standing: Standing,
    pub(crate) turn: Turn,
    pub(crate) relieving: Relieving,
    /// Makes a blob for a detached file that is too large for memory.
    pub(crate) refuge: Option<Arc<dyn Refuge>>,
    /// For the structures of the file themselves.
    pub(crate) charge: Option<Permit>,
    pub(crate) metadata: NextMetadata,
    /// What was stored when the tree heard of that last, and what it had stored since: what differs from it
    /// in the tree's metadata was changed here.
    pub(crate) known: Option<Arc<Metadata>>,
    pub(crate) written: Option<Written>,
    pub(crate) ids: Ids,
}

/// Whether a range has something in common with one of several.
pub(crate) fn meets(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    ranges.iter().any(|r| r.start < range.end && range.start < r.end)
}

impl State {
    pub(crate) fn new(blob: String, base: Option<Base>) -> Self {
        let size = base.as_ref().map_or(0, |b| b.size);
        let base = base.map(BaseVersion::from);
        let known = base.as_ref().map(|base| Arc::clone(&base.metadata));
        Self {
            blob,
            base,
            base_valid: size,
            size,
            assured: size,
            given: 0,
            writers: 0,
            overlay: Overlay::default(),
            holes: Vec::new(),
            staged: BTreeMap::new(),
            staging: 0,
            to_stage: std::collections::VecDeque::new(),
            round: 0,
            unsent: None,
            epoch: 1,
            cut: u64::MAX,
            version: 0,
            carried: None,
            cache: Extents::default(),
            flights: Vec::new(),
            place: Place::Named,
            standing: Standing::Current,
            turn: Turn::Free,
            relieving: Relieving::Unknown,
            refuge: None,
            charge: None,
            metadata: NextMetadata::Unknown,
            known,
            written: None,
            ids: Ids::default(),
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        match (&self.place, &self.standing) {
            (Place::Detached(Detached::Going { owed }), Standing::Superseded) => *owed,
            (Place::Detached(Detached::GivenUp), _) => true,
            (Place::Detached(Detached::Going { .. } | Detached::Gone), _) => false,
            (Place::Named | Place::Hidden { .. }, _) => match &self.base {
                None => true,
                Some(base) => {
                    !self.overlay.is_empty() || self.size != base.size || self.base_valid < base.size
                }
            },
        }
    }

    /// Somebody else changed the blob: nothing of this file will ever be committed.
    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self.standing, Standing::Superseded)
    }

    /// See [`State::is_superseded`]. For ever: what is written now has no version to go on top of.
    pub(crate) fn supersede(&mut self) {
        self.standing = Standing::Superseded;
    }

    /// A commit was sent and its outcome is unknown.
    pub(crate) fn leave_in_doubt(&mut self, sent: Arc<Sent>) {
        if !self.is_superseded() {
            self.standing = Standing::InDoubt(sent);
        }
    }

    /// The outcome of every commit is known.
    pub(crate) fn resolve_doubt(&mut self) {
        if let Standing::InDoubt(_) = self.standing {
            self.standing = Standing::Current;
        }
    }

    /// What was sent to the service may be of use: the file has a blob, or will have one, whose version it
    /// is.
    pub(crate) fn may_stage(&self) -> bool {
        match (&self.place, &self.standing) {
            (Place::Detached(_), _) | (_, Standing::Superseded) => false,
            (Place::Named | Place::Hidden { .. }, Standing::Current | Standing::InDoubt(_)) => true,
        }
    }

    /// True while blocks of these ranges are on their way, or wait for their turn, that were queued up to a
    /// round: what is written and queued since is no matter.
    pub(crate) fn stages(&self, ranges: &[Range<u64>], round: u64) -> bool {
        let waits = |queued: &Queued| queued.round <= round && meets(ranges, &queued.range);
        let on_its_way = |(start, block): (&u64, &StagedBlock)| {
            !block.done && block.round <= round && meets(ranges, &(*start..start + block.len))
        };
        self.turn != Turn::Committing
            && (self.to_stage.iter().any(waits) || self.staged.iter().any(on_its_way))
    }

    /// Leaves the first `most` of the queued ranges that are not staged yet, and forgets the others.
    pub(crate) fn keep_queued(&mut self, most: usize) {
        let queue = std::mem::take(&mut self.to_stage);
        let left = queue.into_iter().filter(|queued| !self.is_staged(&queued.range));
        let left = left.take(most).collect();
        self.to_stage = left;
    }

    /// True when a block that ends in or after a range holds some of it.
    pub(crate) fn is_staged(&self, range: &Range<u64>) -> bool {
        let last = self.staged.range(..range.end).next_back();
        last.is_some_and(|(start, block)| start + block.len > range.start)
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

    /// True when a change of `range` would leave part of a staged block that is nowhere else: a commit has to
    /// come first.
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
            lease: match &self.place {
                Place::Hidden { lease, .. } => Some(lease.clone()),
                Place::Named | Place::Detached(_) => None,
            },
            stored: self.base.as_ref().and_then(|base| base.stored.clone()),
        }
    }

    /// The file has lost its version: what was not sent never will be. Gives its memory back; who reads it is
    /// told.
    pub(crate) fn drop_superseded(&mut self) {
        let memory: Vec<Range<u64>> = self.overlay.memory(0..u64::MAX);
        for range in memory {
            self.overlay.put(range, Content::Remote, self.epoch);
        }
        self.staged.clear();
        self.to_stage.clear();
    }

    /// Writes may change the file; the error says why not.
    pub(crate) fn writable(&self) -> Result<(), FileError> {
        if self.is_superseded() {
            // It could never be committed, and would only take memory from others.
            return Err(FileError::Stale);
        }
        match &self.base {
            Some(base) if !base.writable() => Err(FileError::Unwritable("page and append")),
            _ => Ok(()),
        }
    }

    /// The tree goes by this from now on; what it changed before stays changed.
    pub(crate) fn know(&mut self, stored: Arc<Metadata>) {
        if let (Some(before), Some(given)) = (&self.known, self.metadata.get()) {
            let given = merge(before, given, &stored);
            self.metadata.replace(given);
        }
        self.known = Some(stored);
    }

    /// The same with what is stored with the base.
    pub(crate) fn know_stored(&mut self) {
        if let Some(base) = &self.base {
            self.know(Arc::clone(&base.metadata));
        }
    }

    /// What a commit stores: what the tree changed as in `given`, the rest as somebody else may have stored
    /// it meanwhile.
    pub(crate) fn merged(&self, given: &Metadata) -> Metadata {
        match (&self.known, &self.base) {
            (Some(known), Some(base)) => merge(known, given, &base.metadata),
            _ => given.clone(),
        }
    }

    /// The base begins with the same `end` bytes as it did in `version`.
    pub(crate) fn still(&self, version: u64, end: u64) -> bool {
        let follows =
            |(to, proven)| to == self.version && version.checked_add(1) == Some(to) && end <= proven;
        version == self.version || self.carried.is_some_and(follows)
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
