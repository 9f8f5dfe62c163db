//! How many entries of a listing are asked for at a time.
//!
//! 5,000 entries are some three MiB. With 8 KiB of metadata each, which XML may write five times as long,
//! they are two hundred: more than may be held in memory. So what is too long is asked for in smaller pages,
//! and so are the pages after it, until they are short again.

use std::sync::atomic::{AtomicU32, Ordering};

/// What the service gives at most (REST: List Blobs, `maxresults`).
pub(super) const MOST: u32 = 5000;
/// What always fits, with all the metadata that a blob can have.
const FITS: u32 = 64;
/// A page's body in bytes.
pub(super) const LONGEST: usize = 8 * 1024 * 1024;

/// Of one container.
#[derive(Debug)]
pub(super) struct Pages(AtomicU32);

impl Default for Pages {
    fn default() -> Self {
        Self(AtomicU32::new(MOST))
    }
}

impl Pages {
    /// Entries to ask for, when the caller wants so many; `None`: as many as the service gives.
    pub(super) fn entries(&self, wanted: Option<u32>) -> Option<u32> {
        let fits = self.0.load(Ordering::Relaxed);
        match wanted {
            Some(wanted) => Some(wanted.clamp(1, MOST).min(fits)),
            None => (fits < MOST).then_some(fits),
        }
    }

    /// A page of so many was too long; false when a smaller one cannot be asked for.
    pub(super) fn too_long(&self, entries: Option<u32>) -> bool {
        let entries = entries.unwrap_or(MOST);
        self.0.fetch_min((entries / 4).max(FITS), Ordering::Relaxed);
        entries > FITS
    }

    /// A page of so many entries had so many bytes.
    pub(super) fn had(&self, entries: usize, bytes: usize) {
        let fits = self.0.load(Ordering::Relaxed);
        // A page that is not full says nothing of a larger one.
        if fits < MOST && entries as u64 >= u64::from(fits) && bytes < LONGEST / 8 {
            self.0.store((fits * 2).min(MOST), Ordering::Relaxed);
        }
    }
}
