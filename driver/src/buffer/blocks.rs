//! Which pages of an arena are in use (a buddy allocator) and which are backed by memory (a bitmap).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Orders 0 to 13: blocks of 1 to 8192 pages (4 KiB to 32 MiB).
pub(super) const MAX_ORDER: u8 = 13;

/// A run of `1 << order` pages, aligned to its own size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Block {
    pub(super) page: usize,
    pub(super) order: u8,
}

impl Block {
    pub(super) fn pages(self) -> usize {
        1 << self.order
    }

    pub(super) fn range(self) -> Range<usize> {
        self.page..self.page + self.pages()
    }

    fn buddy(self) -> usize {
        self.page ^ self.pages()
    }
}

/// The free blocks, by order and address.
///
/// The lowest address is taken first: memory that is already resident gathers at the bottom and is used again
/// before new pages are asked from the machine.
#[derive(Debug)]
pub(super) struct FreeBlocks {
    by_order: [BTreeSet<usize>; MAX_ORDER as usize + 1],
}

impl FreeBlocks {
    /// All of `pages` free; `pages` is a multiple of the largest block.
    pub(super) fn new(pages: usize) -> Self {
        let mut by_order: [BTreeSet<usize>; MAX_ORDER as usize + 1] = Default::default();
        by_order[MAX_ORDER as usize] = (0..pages).step_by(1 << MAX_ORDER).collect();
        Self { by_order }
    }

    /// Takes a block of this order, splitting a larger one when there is none.
    pub(super) fn take(&mut self, order: u8) -> Option<Block> {
        let found = (order..=MAX_ORDER).find(|&o| !self.by_order[o as usize].is_empty())?;
        let page = self.by_order[found as usize].pop_first()?;
        for smaller in (order..found).rev() {
            self.by_order[smaller as usize].insert(page + (1 << smaller));
        }
        Some(Block { page, order })
    }

    /// Takes exactly this free block.
    fn take_exact(&mut self, block: Block) {
        self.by_order[block.order as usize].remove(&block.page);
    }

    /// Puts a block back and joins it with its free neighbors.
    pub(super) fn give(&mut self, mut block: Block) {
        while block.order < MAX_ORDER && self.by_order[block.order as usize].remove(&block.buddy()) {
            block = Block {
                page: block.page & !block.pages(),
                order: block.order + 1,
            };
        }
        self.by_order[block.order as usize].insert(block.page);
    }

    /// Takes free blocks, highest addresses of the largest blocks first, until they hold `pages` resident
    /// pages (or no free block holds any).
    pub(super) fn take_resident(&mut self, pages: usize, resident: &Residency) -> Vec<Block> {
        let mut taken = Vec::new();
        let mut found = 0;
        for order in (0..=MAX_ORDER).rev() {
            for &page in self.by_order[order as usize].iter().rev() {
                if found >= pages {
                    break;
                }
                let block = Block { page, order };
                let here = resident.count(block.range());
                if here > 0 {
                    taken.push(block);
                    found += here;
                }
            }
        }
        for &block in &taken {
            self.take_exact(block);
        }
        taken
    }
}

/// One bit a page: backed by memory or not. A page's bit is changed only by the page's present owner; words
/// are shared between owners, hence atomics (relaxed: a block's bits change hands through the lock around
/// [`FreeBlocks`]).
#[derive(Debug)]
pub(super) struct Residency {
    words: Vec<AtomicU64>,
}

impl Residency {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(super) fn count(&self, pages: Range<usize>) -> usize {
        masks(pages)
            .map(|(word, mask)| (self.load(word) & mask).count_ones() as usize)
            .sum()
    }

    pub(super) fn set(&self, pages: Range<usize>) {
        for (word, mask) in masks(pages) {
            if let Some(w) = self.words.get(word) {
                w.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn clear(&self, pages: Range<usize>) {
        for (word, mask) in masks(pages) {
            if let Some(w) = self.words.get(word) {
                w.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    /// The maximal runs inside `pages` whose bit equals `resident`, in ascending order.
    pub(super) fn runs(&self, pages: Range<usize>, resident: bool) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in pages {
            if (self.load(page / 64) >> (page % 64) & 1 == 1) != resident {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    fn load(&self, word: usize) -> u64 {
        self.words.get(word).map_or(0, |w| w.load(Ordering::Relaxed))
    }
}

/// The words a page range touches, each with the mask of its pages.
fn masks(pages: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    (pages.start / 64..pages.end.div_ceil(64)).map(move |word| {
        let low = pages.start.max(word * 64) - word * 64;
        let high = pages.end.min((word + 1) * 64) - word * 64;
        let upto = if high == 64 { u64::MAX } else { (1 << high) - 1 };
        (word, upto & (u64::MAX << low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_and_joining_come_back_to_one_block() {
        let mut free = FreeBlocks::new(1 << MAX_ORDER);
        let blocks: Vec<Block> = (0..=12).map(|o| free.take(o).unwrap()).collect();
        for a in &blocks {
            assert_eq!(a.page % a.pages(), 0, "aligned to its own size");
            for b in blocks.iter().filter(|b| b.page != a.page) {
                assert!(
                    a.range().end <= b.page || b.range().end <= a.page,
                    "{a:?} overlaps {b:?}"
                );
            }
        }
        assert_eq!(free.take(MAX_ORDER), None);
        blocks.into_iter().for_each(|b| free.give(b));
        assert_eq!(
            free.take(MAX_ORDER),
            Some(Block {
                page: 0,
                order: MAX_ORDER
            })
        );
    }

    #[test]
    fn residency_counts_and_finds_runs_across_words() {
        let bits = Residency::new(200);
        bits.set(60..70);
        bits.set(128..129);
        bits.clear(64..66);
        assert_eq!(bits.count(0..200), 9);
        assert_eq!(bits.count(61..64), 3);
        assert_eq!(bits.runs(0..200, true), vec![60..64, 66..70, 128..129]);
        assert_eq!(bits.runs(60..70, false), vec![64..66]);
        assert_eq!(bits.count(10..10), 0);
    }
}
