//! Where a file has no data: SEEK_DATA and SEEK_HOLE, and what a commit need not send.

use std::ops::Range;

use super::overlay::Content;
use super::state::State;

impl State {
    pub(super) fn hole_at(&self, at: u64) -> Option<&Range<u64>> {
        let index = self.holes.partition_point(|h| h.end <= at);
        self.holes.get(index).filter(|h| h.start <= at)
    }

    pub(super) fn next_hole(&self, at: u64) -> u64 {
        let index = self.holes.partition_point(|h| h.end <= at);
        self.holes.get(index).map_or(u64::MAX, |h| h.start)
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
}
