//! A file's content at the instant a commit began.

use std::ops::Range;

use blob_client::BlockId;

use super::atoms::Over;
use super::base::BaseVersion;
use super::overlay::{Content, Segment};
use super::state::Target;

/// A file's content at the instant a commit began.
pub(super) struct Snapshot {
    pub(super) target: Target,
    pub(super) base: Option<BaseVersion>,
    pub(super) base_valid: u64,
    pub(super) size: u64,
    pub(super) epoch: u64,
    pub(super) segments: Vec<(u64, Segment)>,
    pub(super) staged: Vec<(Range<u64>, BlockId)>,
    pub(super) holes: Vec<Range<u64>>,
}

impl Snapshot {
    pub(super) fn has_remote(&self) -> bool {
        self.segments
            .iter()
            .any(|(_, segment)| matches!(segment.content, Content::Remote))
    }

    /// Bytes of the base that show through.
    pub(super) fn kept_base(&self) -> u64 {
        self.kept_of(0..self.base_valid)
    }

    /// Bytes of the base that show through in a range.
    pub(super) fn kept_of(&self, range: Range<u64>) -> u64 {
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
    pub(super) fn over(&self) -> Vec<(Range<u64>, Over)> {
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
