//! Cached extents of one file's committed version: immutable memory by offset, dropped when the budget needs
//! room.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vsc_driver::buffer::Slice;

use crate::budget::{Budget, Evict, Permit};

/// Entries without memory that a cache tolerates before it sweeps them out.
const DEAD_MIN: usize = 64;

#[derive(Debug)]
struct Extent {
    data: Mutex<Option<(Slice, Arc<Permit>)>>,
    used: AtomicBool,
    /// Evicted extents of the same file.
    dead: Arc<AtomicUsize>,
}

impl Extent {
    fn data(&self) -> MutexGuard<'_, Option<(Slice, Arc<Permit>)>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evict for Extent {
    fn evict(&self) -> bool {
        if self.used.swap(false, Ordering::Relaxed) {
            return false;
        }
        let mut data = self.data();
        // Each extent of a buffer has one view and one share of its charge. A view more is an answer that is
        // being sent: dropped now, the memory would be charged to nobody while it is still there.
        let free = |(slice, charge): &(Slice, Arc<Permit>)| slice.views() <= Arc::strong_count(charge);
        let taken = data.take_if(|held| free(held));
        drop(data);
        if taken.is_some() {
            self.dead.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_some()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// By offset; the length is that of the extent. No overlaps.
    map: BTreeMap<u64, (u64, Arc<Extent>)>,
    dead: Arc<AtomicUsize>,
}

impl Extents {
    /// Nothing was ever cached.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// What is cached from `offset` on, up to `end` at most.
    pub(crate) fn get(&self, offset: u64, end: u64) -> Option<Slice> {
        let (start, (len, extent)) = self.map.range(..=offset).next_back()?;
        if start + len <= offset {
            return None;
        }
        let data = extent.data();
        let (slice, _) = data.as_ref()?;
        extent.used.store(true, Ordering::Relaxed);
        Some(slice.slice((offset - start) as usize..(end.min(start + len) - start) as usize))
    }

    /// The extent at `offset` was read to its end by a stream: it goes before others.
    pub(crate) fn consumed(&self, offset: u64) {
        if let Some((_, (_, extent))) = self.map.range(..=offset).next_back() {
            extent.used.store(false, Ordering::Relaxed);
        }
    }

    /// Puts `slice` at `offset`, in place of what was there.
    pub(crate) fn insert(&mut self, offset: u64, slice: Slice, charge: Arc<Permit>, budget: &Budget) {
        if slice.is_empty() {
            return;
        }
        self.sweep();
        self.remove(offset..offset + slice.len() as u64, budget);
        self.add(offset, slice, charge, budget);
    }

    fn add(&mut self, offset: u64, slice: Slice, charge: Arc<Permit>, budget: &Budget) {
        let len = slice.len() as u64;
        let extent = Arc::new(Extent {
            data: Mutex::new(Some((slice, charge))),
            used: AtomicBool::new(true),
            dead: Arc::clone(&self.dead),
        });
        let weak: Weak<Extent> = Arc::downgrade(&extent);
        budget.offer(weak);
        self.map.insert(offset, (len, extent));
    }

    /// Drops what is cached of `range`.
    pub(crate) fn remove(&mut self, range: Range<u64>, budget: &Budget) {
        if range.is_empty() {
            return;
        }
        let first = self.map.range(..range.start).next_back();
        let first = first
            .filter(|(start, (len, _))| *start + len > range.start)
            .map_or(range.start, |(start, _)| *start);
        let touched: Vec<u64> = self
            .map
            .range(first..range.end.max(first))
            .map(|(s, _)| *s)
            .collect();
        for start in touched {
            let Some((len, extent)) = self.map.remove(&start) else {
                continue;
            };
            let Some((slice, charge)) = extent.data().take() else {
                self.dead.fetch_sub(1, Ordering::Relaxed);
                continue;
            };
            let end = start + len;
            if start < range.start {
                let left = slice.slice(0..(range.start - start) as usize);
                self.add(start, left, Arc::clone(&charge), budget);
            }
            if range.end < end {
                let right = slice.slice((range.end - start) as usize..slice.len());
                self.add(range.end, right, charge, budget);
            }
        }
    }

    /// Parts of `range` that are not cached.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let first = self
            .map
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(s, _)| *s);
        for (start, (len, extent)) in self.map.range(first..range.end.max(first)) {
            let end = start + len;
            if end <= at || extent.data().is_none() {
                continue;
            }
            if *start > at {
                missing.push(at..*start);
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    fn sweep(&mut self) {
        if self.dead.load(Ordering::Relaxed) < DEAD_MIN.max(self.map.len() / 2) {
            return;
        }
        let dead = &self.dead;
        self.map.retain(|_, (_, extent)| {
            let live = extent.data().is_some();
            if !live {
                dead.fetch_sub(1, Ordering::Relaxed);
            }
            live
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Kind;
    use vsc_driver::buffer::Arena;

    fn fill(
        cache: &mut Extents,
        arena: &Arc<Arena>,
        budget: &Arc<Budget>,
        offset: u64,
        len: usize,
        byte: u8,
    ) {
        let mut buffer = arena.alloc(len).unwrap();
        buffer.fill(byte);
        let permit = budget.try_acquire(Kind::Cached, buffer.capacity()).unwrap();
        cache.insert(offset, buffer.freeze(), Arc::new(permit), budget);
    }

    #[test]
    fn later_extents_replace_earlier_ones_and_the_rest_stays() {
        let (arena, budget) = (Arena::new(1 << 20).unwrap(), Budget::new(0));
        let mut cache = Extents::default();
        fill(&mut cache, &arena, &budget, 0, 100, 1);
        fill(&mut cache, &arena, &budget, 40, 20, 2);
        assert_eq!(&cache.get(0, 1000).unwrap()[..], &[1; 40]);
        assert_eq!(&cache.get(50, 55).unwrap()[..], &[2; 5]);
        assert_eq!(&cache.get(60, 1000).unwrap()[..], &[1; 40]);
        assert_eq!(cache.missing(0..200), vec![100..200]);
        cache.remove(30..70, &budget);
        assert_eq!(cache.missing(0..100), vec![30..70]);
        assert!(cache.get(30, 31).is_none());
        cache.remove(0..u64::MAX, &budget);
        assert_eq!(budget.usage().cached, 0);
        assert_eq!(arena.usage().allocated, 0);
    }

    #[test]
    fn what_an_answer_still_holds_is_not_evicted() {
        let (arena, budget) = (Arena::new(1 << 20).unwrap(), Budget::new(0));
        let mut cache = Extents::default();
        fill(&mut cache, &arena, &budget, 0, 8192, 1);
        let answer = cache.get(100, 200).unwrap();
        assert!(!budget.evict_one());
        assert_eq!(budget.usage().cached, 8192);
        // The rest of a buffer that was cut in two has one charge.
        cache.remove(4000..5000, &budget);
        assert!(!budget.evict_one());
        drop(answer);
        assert!(budget.evict_one());
        assert!(budget.evict_one());
        assert_eq!((budget.usage().cached, arena.usage().allocated), (0, 0));
    }

    #[test]
    fn evicted_extents_are_missing_and_swept() {
        let (arena, budget) = (Arena::new(128 << 20).unwrap(), Budget::new(0));
        let mut cache = Extents::default();
        for n in 0..200 {
            fill(&mut cache, &arena, &budget, n << 20, 1 << 20, n as u8);
        }
        assert!(budget.usage().cached <= 32 << 20);
        assert!(cache.map.len() < 140, "{}", cache.map.len());
        assert_eq!(cache.missing(199 << 20..200 << 20), vec![]);
        assert_eq!(cache.missing(0..1 << 20), vec![0..1 << 20]);
    }
}
