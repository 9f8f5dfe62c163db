//! What a commit starts from, cut where the base's blocks and what was written begin and end; and which of it
//! is sent.

use std::ops::Range;

use blob_client::{Block, BlockId};

use super::tuning::Tuning;

/// What the overlay has for a range, as far as the plan cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// In memory.
    Memory,
    /// Zeros.
    Hole,
    /// A whole staged block.
    Staged(BlockId),
}

/// What a commit starts from.
#[derive(Debug)]
pub(crate) struct PlanInput<'a> {
    /// Size of the file.
    pub(crate) size: u64,
    /// How far the base shows through where the overlay has nothing.
    pub(crate) base_valid: u64,
    /// Length of the base.
    pub(crate) base_size: u64,
    /// Its blocks; empty when it was put in one piece.
    pub(crate) blocks: &'a [Block],
    /// Overlay, in order, without overlaps.
    pub(crate) over: &'a [(Range<u64>, Over)],
    /// The service can copy ranges.
    pub(crate) server_copy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A whole committed block.
    Block(BlockId),
    /// Part of a committed block, or of a base without blocks.
    Part,
    Hole,
    Memory,
    Staged(BlockId),
}

#[derive(Debug, Clone)]
pub(super) struct Atom {
    pub(super) range: Range<u64>,
    pub(super) kind: Kind,
}

impl Atom {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

pub(super) fn atoms(input: &PlanInput<'_>) -> Vec<Atom> {
    let mut atoms = Vec::new();
    let mut blocks = Blocks {
        blocks: input.blocks,
        base_size: input.base_size,
        next: 0,
        at: 0,
    };
    let mut gap = |range: Range<u64>, atoms: &mut Vec<Atom>| {
        let middle = input.base_valid.clamp(range.start, range.end);
        blocks.cut(range.start..middle, atoms);
        if middle < range.end {
            atoms.push(Atom {
                range: middle..range.end,
                kind: Kind::Hole,
            });
        }
    };
    let mut at = 0;
    for (range, over) in input.over {
        let range = range.start.min(input.size)..range.end.min(input.size);
        if range.is_empty() {
            continue;
        }
        gap(at..range.start, &mut atoms);
        at = range.end;
        let kind = match over {
            Over::Memory => Kind::Memory,
            Over::Hole => Kind::Hole,
            Over::Staged(id) => Kind::Staged(id.clone()),
        };
        match atoms.last_mut() {
            Some(last) if last.kind == kind && matches!(kind, Kind::Memory | Kind::Hole) => {
                last.range.end = range.end;
            }
            _ => atoms.push(Atom { range, kind }),
        }
    }
    gap(at..input.size, &mut atoms);
    atoms.retain(|a| !a.range.is_empty());
    atoms
}

/// Walks the base's blocks once, front to back.
struct Blocks<'a> {
    blocks: &'a [Block],
    base_size: u64,
    next: usize,
    at: u64,
}

impl Blocks<'_> {
    fn cut(&mut self, range: Range<u64>, atoms: &mut Vec<Atom>) {
        if range.is_empty() {
            return;
        }
        if self.blocks.is_empty() {
            let whole = range.end.min(self.base_size);
            if range.start < whole {
                atoms.push(Atom {
                    range: range.start..whole,
                    kind: Kind::Part,
                });
            }
            return;
        }
        while let Some(block) = self.blocks.get(self.next) {
            let here = self.at..self.at + block.size;
            if here.start >= range.end {
                return;
            }
            let clip = here.start.max(range.start)..here.end.min(range.end);
            if !clip.is_empty() {
                let kind = if clip == here {
                    Kind::Block(block.id.clone())
                } else {
                    Kind::Part
                };
                atoms.push(Atom { range: clip, kind });
            }
            if here.end > range.end {
                // The rest of this block may be in the next gap.
                return;
            }
            self.at = here.end;
            self.next += 1;
        }
    }
}

/// Ranges to send: memory and its surroundings.
pub(super) fn hot(atoms: &[Atom], tuning: &Tuning) -> Vec<Range<u64>> {
    let mut hot: Vec<Range<u64>> = Vec::new();
    for (index, atom) in atoms.iter().enumerate() {
        let small_hole = atom.kind == Kind::Hole && atom.len() < tuning.granule;
        let small_part = atom.kind == Kind::Part && atom.len() < tuning.copy_min;
        if atom.kind != Kind::Memory && !small_hole && !small_part {
            continue;
        }
        let mut range = atom.range.clone();
        let floor = range.start / tuning.granule * tuning.granule;
        let ceil = range.end.div_ceil(tuning.granule) * tuning.granule;
        for before in atoms[..index].iter().rev() {
            if hot.last().is_some_and(|h| h.end >= range.start) {
                break;
            }
            let start = grow(
                before,
                range.end - range.start,
                before.range.start.max(floor),
                tuning,
            );
            let taken = start.map_or(0, |edge| before.range.end.saturating_sub(edge));
            range.start -= taken;
            if taken < before.len() {
                break;
            }
        }
        for after in &atoms[index + 1..] {
            if after.kind == Kind::Memory {
                break;
            }
            let end = grow(after, range.end - range.start, after.range.end.min(ceil), tuning);
            let taken = end.map_or(0, |edge| edge.saturating_sub(after.range.start));
            range.end += taken;
            if taken < after.len() {
                break;
            }
        }
        match hot.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => hot.push(range),
        }
    }
    hot
}

/// The edge up to which a neighbor is sent along with `sent` bytes beside it; `None` = not at all. `edge` is
/// its far end, or the granule's if that is nearer.
fn grow(neighbor: &Atom, sent: u64, edge: u64, tuning: &Tuning) -> Option<u64> {
    let within = edge == neighbor.range.start || edge == neighbor.range.end;
    match neighbor.kind {
        Kind::Part => Some(edge),
        Kind::Block(_) => {
            (within && neighbor.len() <= sent * 2 && neighbor.len() < tuning.granule).then_some(edge)
        }
        Kind::Hole => (neighbor.len() < tuning.granule && within).then_some(edge),
        Kind::Memory | Kind::Staged(_) => None,
    }
}
