//! Where the blocks of a file begin and end.

use std::ops::Range;

use super::tuning::Tuning;

/// Where blocks of a sequentially written file begin and end: larger towards the end, so that the limit on
/// the number of blocks suffices.
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
