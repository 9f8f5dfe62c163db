//! Which blocks a commit consists of: kept ones, staged ones, copies of kept ranges, zeros, and new ones.
//!
//! A block list may mix blocks of any size, so a change re-sends only its surroundings: a large block that is
//! partly overwritten is split at granule boundaries. Small blocks beside a change are folded into it when
//! they are not larger than what is re-sent anyway, so that a file that is appended to line by line keeps a
//! logarithmic number of blocks per granule instead of one per line.

use std::ops::Range;

use blob_client::BlockId;

use super::atoms::{Atom, Kind, PlanInput, atoms, hot};
use super::error::FileError;
use super::layout::Layout;
use super::tuning::Tuning;

/// One block of the list to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Out {
    /// A committed block that stays as it is.
    Keep(BlockId, u64),
    /// A staged block.
    Staged(BlockId, u64),
    /// A block of that many zeros.
    Zero(u64),
    /// A range of the base, to be copied by the service.
    Copy(Range<u64>),
    /// A range to be put together and sent.
    Fresh(Range<u64>),
}

impl Out {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Keep(_, len) | Self::Staged(_, len) | Self::Zero(len) => *len,
            Self::Copy(range) | Self::Fresh(range) => range.end - range.start,
        }
    }
}

/// The block list, or `TooLarge` when no list within the limit can be made.
pub(crate) fn plan(input: &PlanInput<'_>, tuning: &Tuning, layout: &Layout) -> Result<Vec<Out>, FileError> {
    let atoms = atoms(input);
    let hot = hot(&atoms, tuning);
    let mut outs = outs(&atoms, &hot, input, tuning, layout);
    let mut unit = tuning.granule;
    while outs.len() > tuning.max_blocks {
        if unit > tuning.block * 4 {
            return Err(FileError::TooLarge);
        }
        outs = compact(outs, unit, input);
        unit *= 2;
    }
    Ok(outs)
}

fn outs(
    atoms: &[Atom],
    hot: &[Range<u64>],
    input: &PlanInput<'_>,
    tuning: &Tuning,
    layout: &Layout,
) -> Vec<Out> {
    let zero = zero_block(atoms, tuning);
    let mut outs = Vec::new();
    let mut hot = hot.iter().peekable();
    let fresh = |range: Range<u64>, outs: &mut Vec<Out>| {
        let mut at = range.start;
        while at < range.end {
            let end = layout.block_of(at).end.min(range.end);
            outs.push(Out::Fresh(at..end));
            at = end;
        }
    };
    for atom in atoms {
        let mut at = atom.range.start;
        while at < atom.range.end {
            while hot.peek().is_some_and(|h| h.end <= at) {
                hot.next();
            }
            let next = hot.peek().map_or(u64::MAX, |h| h.start);
            if next <= at {
                // A hot range is sent as a whole when its first atom is met.
                let range = hot.peek().map_or(at..at, |h| (*h).clone());
                if range.start == at {
                    fresh(range.clone(), &mut outs);
                }
                at = range.end.min(atom.range.end);
                continue;
            }
            let range = at..atom.range.end.min(next);
            at = range.end;
            match &atom.kind {
                Kind::Block(id) if range == atom.range => outs.push(Out::Keep(id.clone(), atom.len())),
                Kind::Staged(id) if range == atom.range => outs.push(Out::Staged(id.clone(), atom.len())),
                Kind::Hole => {
                    let len = range.end - range.start;
                    outs.extend((0..len / zero).map(|_| Out::Zero(zero)));
                    if len % zero > 0 {
                        outs.push(Out::Zero(len % zero));
                    }
                }
                _ if input.server_copy => {
                    let mut from = range.start;
                    while from < range.end {
                        let to = range.end.min(from + tuning.copy_max);
                        outs.push(Out::Copy(from..to));
                        from = to;
                    }
                }
                _ => fresh(range, &mut outs),
            }
        }
    }
    outs
}

/// Size of the shared block of zeros: small, unless there is so much to fill that the number of blocks
/// matters.
fn zero_block(atoms: &[Atom], tuning: &Tuning) -> u64 {
    let holes: u64 = atoms.iter().filter(|a| a.kind == Kind::Hole).map(Atom::len).sum();
    let quarter = (tuning.max_blocks as u64 / 4).max(1);
    (holes / quarter)
        .next_power_of_two()
        .clamp(tuning.granule, tuning.zero_max.max(tuning.granule))
}

/// Joins neighbors to blocks of about `unit` bytes.
fn compact(outs: Vec<Out>, unit: u64, input: &PlanInput<'_>) -> Vec<Out> {
    let mut joined: Vec<Out> = Vec::new();
    // The end of `joined` as (start in the file, all of it base).
    let mut tail: Option<(u64, bool)> = None;
    let mut at = 0;
    for out in outs {
        let range = at..at + out.len();
        at = range.end;
        let base = matches!(out, Out::Keep(..) | Out::Copy(_));
        if matches!(out, Out::Staged(..)) {
            joined.push(out);
            tail = None;
            continue;
        }
        match tail {
            Some((start, pure)) if range.end - start <= unit => {
                let pure = pure && base;
                joined.pop();
                joined.push(if pure && input.server_copy {
                    Out::Copy(start..range.end)
                } else {
                    Out::Fresh(start..range.end)
                });
                tail = Some((start, pure));
            }
            _ => {
                tail = Some((range.start, base));
                joined.push(out);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests;
