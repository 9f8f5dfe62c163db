//! What a read finds in the state of a file, and what it has to wait for.

use std::ops::Range;

use vsc_driver::buffer::Slice;

use super::access::ReadData;
use super::overlay::Content;
use super::state::State;

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
}

fn find(pinned: &[(u64, Slice)], at: u64, end: u64) -> Option<Slice> {
    let (start, slice) = pinned
        .iter()
        .find(|(start, slice)| *start <= at && at < start + slice.len() as u64)?;
    let to = end.min(start + slice.len() as u64) - start;
    Some(slice.slice((at - start) as usize..to as usize))
}
