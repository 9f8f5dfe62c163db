//! Log lines that come again and again: the first, the second, the fourth of them, and so on.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often a line would have been written.
#[derive(Debug)]
pub struct Seldom(AtomicU64);

impl Seldom {
    /// For a `static`: one for each kind of line.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one; how many there were, if this one is to be written.
    pub fn said(&self) -> Option<u64> {
        let times = self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        times.is_power_of_two().then_some(times)
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_with_their_count() {
        let seldom = Seldom::new();
        let written: Vec<u64> = (0..1000).filter_map(|_| seldom.said()).collect();
        assert_eq!(written, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    }
}
