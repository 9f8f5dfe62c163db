//! Which blocks a commit consists of: kept ones, staged ones, copies of kept ranges, zeros, and new ones.
//!
//! A block list may mix blocks of any size, so a change re-sends only its surroundings: a large block that is partly
//! overwritten is split at granule boundaries. Small blocks beside a change are folded into it when they are not larger
//! than what is re-sent anyway, so that a file that is appended to line by line keeps a logarithmic number of blocks per
//! granule instead of one per line.

use std::ops::Range;

use blob_client::{Block, BlockId};

use crate::content::{FileError, Tuning};

/// Where blocks of a sequentially written file begin and end: larger towards the end, so that the limit on the number
/// of blocks suffices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// (end of the tier, block size) in order; the last end is the largest file.
    tiers: [(u64, u64); 3],
    pub(crate) page: u64,
    /// Largest piece of memory for dirty data.
    pub(crate) largest_run: u64,
}

impl Layout {
    pub(crate) fn new(tuning: &Tuning) -> Self {
        let (block, blocks) = (tuning.block, tuning.max_blocks as u64);
        let first = blocks * 2 / 5 * block;
        let second = first + blocks / 5 * block * 2;
        // A quarter of the last tier stays free for blocks that were split.
        let third = second + blocks * 3 / 10 * block * 4;
        Self {
            tiers: [(first, block), (second, block * 2), (third, block * 4)],
            page: tuning.page,
            largest_run: (vsc_driver::buffer::MAX_BUFFER as u64).min(block * 4),
        }
    }

    /// The block that `offset` lies in.
    pub(crate) fn block_of(&self, offset: u64) -> Range<u64> {
        let mut begin = 0;
        let mut size = self.tiers[0].1;
        for (end, block) in self.tiers {
            size = block;
            if offset < end {
                break;
            }
            begin = end;
        }
        let start = begin + (offset - begin) / size * size;
        start..start + size
    }

    /// Largest size a file can be given.
    pub(crate) fn max_size(&self) -> u64 {
        self.tiers[2].0
    }
}

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

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A whole committed block.
    Block(BlockId),
    /// Part of a committed block, or of a base without blocks.
    Part,
    Hole,
    Memory,
    Staged(BlockId),
}

#[derive(Debug, Clone)]
struct Atom {
    range: Range<u64>,
    kind: Kind,
}

impl Atom {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
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

fn atoms(input: &PlanInput<'_>) -> Vec<Atom> {
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
fn hot(atoms: &[Atom], tuning: &Tuning) -> Vec<Range<u64>> {
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

/// The edge up to which a neighbor is sent along with `sent` bytes beside it; `None` = not at all. `edge` is its far end,
/// or the granule's if that is nearer.
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

/// Size of the shared block of zeros: small, unless there is so much to fill that the number of blocks matters.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tuning() -> Tuning {
        Tuning {
            block: 64,
            granule: 16,
            copy_min: 4,
            copy_max: 128,
            zero_max: 64,
            max_blocks: 200,
            page: 4,
            ..Tuning::default()
        }
    }

    fn blocks(sizes: &[u64]) -> Vec<Block> {
        let id = |n: usize| BlockId(vec![n as u8]);
        sizes
            .iter()
            .enumerate()
            .map(|(n, size)| Block {
                id: id(n),
                size: *size,
            })
            .collect()
    }

    fn run(input: &PlanInput<'_>) -> Vec<Out> {
        let tuning = tuning();
        plan(input, &tuning, &Layout::new(&tuning)).unwrap()
    }

    #[test]
    fn a_small_overwrite_splits_a_large_block_at_granules() {
        let blocks = blocks(&[64, 64]);
        let outs = run(&PlanInput {
            size: 128,
            base_valid: 128,
            base_size: 128,
            blocks: &blocks,
            over: &[(20..22, Over::Memory)],
            server_copy: true,
        });
        let keep = Out::Keep(BlockId(vec![1]), 64);
        let expected = vec![Out::Copy(0..16), Out::Fresh(16..32), Out::Copy(32..64), keep];
        assert_eq!(outs, expected);
    }

    #[test]
    fn appending_bytes_keeps_few_blocks() {
        let tuning = Tuning {
            granule: 1 << 20,
            max_blocks: 50_000,
            ..tuning()
        };
        let layout = Layout::new(&Tuning::default());
        let mut sizes: Vec<u64> = Vec::new();
        let mut sent = 0;
        for n in 0..2000u64 {
            let list = blocks(&sizes);
            let outs = plan(
                &PlanInput {
                    size: (n + 1) * 100,
                    base_valid: n * 100,
                    base_size: n * 100,
                    blocks: &list,
                    over: &[(n * 100..(n + 1) * 100, Over::Memory)],
                    server_copy: true,
                },
                &tuning,
                &layout,
            )
            .unwrap();
            sizes = outs.iter().map(Out::len).collect();
            let fresh = |o: &&Out| matches!(o, Out::Fresh(_));
            sent += outs.iter().filter(fresh).map(Out::len).sum::<u64>();
        }
        assert!(sizes.len() <= 20, "{}", sizes.len());
        assert!(sent < 200_000 * 20, "{sent}");
    }

    #[test]
    fn a_long_hole_is_few_zero_blocks() {
        let outs = run(&PlanInput {
            size: 6400,
            base_valid: 0,
            base_size: 0,
            blocks: &[],
            over: &[(6390..6400, Over::Memory)],
            server_copy: true,
        });
        assert!(outs.len() < 105, "{}", outs.len());
        assert_eq!(outs.last(), Some(&Out::Fresh(6390..6400)));
    }

    #[test]
    fn too_many_blocks_are_joined() {
        let blocks = blocks(&vec![8; 250]);
        let outs = run(&PlanInput {
            size: 2001,
            base_valid: 2000,
            base_size: 2000,
            blocks: &blocks,
            over: &[(2000..2001, Over::Memory)],
            server_copy: true,
        });
        assert!(outs.len() <= 200);
        assert_eq!(outs.iter().map(Out::len).sum::<u64>(), 2001);
    }

    #[test]
    fn blocks_grow_with_the_offset_and_tile_the_file() {
        let layout = Layout::new(&Tuning::default());
        assert_eq!(layout.block_of(0), 0..8 << 20);
        let mut at = 0;
        let mut blocks = 0;
        while at < layout.max_size() {
            let block = layout.block_of(at);
            assert_eq!(block.start, at);
            at = block.end;
            blocks += 1;
        }
        assert!(blocks <= 50_000, "{blocks}");
        assert!(layout.max_size() > 600 << 30);
    }

    proptest! {
        /// Every byte of the file comes from exactly one place, and from the right one.
        #[test]
        fn covers_the_file_once(
            sizes in prop::collection::vec(1u64..80, 0..8),
            single in any::<bool>(),
            valid in 0.0f64..=1.0,
            extra in 0u64..100,
            cuts in prop::collection::btree_set(0u64..600, 0..12),
            kinds in prop::collection::vec(0u8..4, 12),
            server_copy in any::<bool>(),
        ) {
            let list = blocks(&sizes);
            let base_size: u64 = sizes.iter().sum();
            let base_valid = (base_size as f64 * valid) as u64;
            let size = base_valid + extra;
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut over = Vec::new();
            for (pair, kind) in cuts.windows(2).zip(&kinds) {
                let range = pair[0]..pair[1];
                match kind {
                    0 => over.push((range, Over::Memory)),
                    1 => over.push((range, Over::Hole)),
                    2 if range.end <= size => {
                        over.push((range, Over::Staged(BlockId(vec![100 + *kind]))));
                    }
                    _ => {}
                }
            }
            let input = PlanInput {
                size, base_valid, base_size,
                blocks: if single { &[] } else { &list },
                over: &over, server_copy,
            };
            let outs = run(&input);
            let mut at = 0;
            for out in &outs {
                let range = at..at + out.len();
                prop_assert!(!range.is_empty());
                let touches = |r: &Range<u64>| r.start < range.end && range.start < r.end;
                let over_here: Vec<_> = over.iter().filter(|(r, _)| touches(r)).collect();
                match out {
                    Out::Keep(id, len) => {
                        let n = id.0[0] as usize;
                        let start: u64 = sizes[..n].iter().sum();
                        prop_assert_eq!(start..start + sizes[n], range.clone());
                        prop_assert_eq!(*len, sizes[n]);
                        prop_assert!(over_here.is_empty() && range.end <= base_valid);
                    }
                    Out::Copy(from) => {
                        prop_assert!(server_copy);
                        prop_assert_eq!(from.clone(), range.clone());
                        prop_assert!(over_here.is_empty() && range.end <= base_valid);
                    }
                    Out::Fresh(from) => {
                        prop_assert_eq!(from.clone(), range.clone());
                        prop_assert!(!over_here.iter().any(|(_, o)| matches!(o, Over::Staged(_))));
                    }
                    Out::Staged(..) => {
                        prop_assert_eq!(over_here.len(), 1);
                        prop_assert_eq!(over_here[0].0.clone(), range.clone());
                    }
                    Out::Zero(_) => {
                        let hole = |at: u64| match over.iter().find(|(r, _)| r.contains(&at)) {
                            Some((_, o)) => *o == Over::Hole,
                            None => at >= base_valid,
                        };
                        prop_assert!(range.clone().all(hole));
                    }
                }
                at = range.end;
            }
            prop_assert_eq!(at, size);
        }
    }
}
