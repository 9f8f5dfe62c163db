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
        self.joined_holes(0).collect()
    }

    /// The same from `from` on.
    fn joined_holes(&self, from: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut parts = self.holes_from(from).peekable();
        std::iter::from_fn(move || {
            let mut hole = parts.next()?;
            while let Some(more) = parts.next_if(|more| more.start == hole.end) {
                hole.end = more.end;
            }
            Some(hole)
        })
    }

    /// Holes as a program sees them that looks from `from` on: whole pages, but for the end of the file.
    /// Programs find out in which units a file system has holes, and rely on these being no smaller than what
    /// they copy by.
    fn shown_holes(&self, from: u64, page: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let size = self.size;
        self.joined_holes(from / page * page).filter_map(move |hole| {
            let end = match hole.end {
                end if end == size => end,
                end => end / page * page,
            };
            let shown = hole.start.next_multiple_of(page)..end;
            (!shown.is_empty()).then_some(shown)
        })
    }

    pub(crate) fn seek_data(&self, offset: u64, page: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let mut data = offset;
        for hole in self.shown_holes(offset, page) {
            if hole.start > data {
                break;
            }
            data = data.max(hole.end);
        }
        (data < self.size).then_some(data)
    }

    pub(crate) fn seek_hole(&self, offset: u64, page: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let hole = self.shown_holes(offset, page).find(|hole| hole.end > offset);
        Some(hole.map_or(self.size, |hole| hole.start.max(offset)))
    }
}
