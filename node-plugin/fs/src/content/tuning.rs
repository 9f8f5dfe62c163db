//! Sizes that decide how content is read and laid out.

use std::time::Duration;

/// Sizes that decide how content is read and laid out, in bytes unless said otherwise. Tests make them tiny.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Block of a sequentially written file; a file that fits into one is a single Put Blob.
    pub block: u64,
    /// What a small overwrite inside a large block re-sends at most.
    pub granule: u64,
    /// A file up to this size is read with one GET and rewritten with one Put Blob.
    pub small_file: u64,
    /// A random read is rounded to this.
    pub round: u64,
    /// Parts of a stream start at this size ...
    pub part_min: u64,
    /// ... and grow to this (at most what one buffer holds).
    pub part_max: u64,
    /// What one stream may be ahead of its reader.
    pub window_max: u64,
    /// Blocks of a blob (service limit 50,000).
    pub max_blocks: usize,
    /// Kept bytes below this are re-sent instead of copied by the service.
    pub copy_min: u64,
    /// Bytes of one Put Block From URL.
    pub copy_max: u64,
    /// Largest block of zeros.
    pub zero_max: u64,
    /// Smallest piece of dirty memory.
    pub page: u64,
    /// Blocks of one file staged at once.
    pub stage_parallel: usize,
    /// How long what the owner stored with a blob is believed to be the same: a commit that comes later asks
    /// again, because tiers and index tags change without a new version.
    pub stored_for: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            block: 8 << 20,
            granule: 1 << 20,
            small_file: 1 << 20,
            round: 64 << 10,
            part_min: 1 << 20,
            part_max: 8 << 20,
            window_max: 128 << 20,
            max_blocks: 50_000,
            copy_min: 256 << 10,
            copy_max: 64 << 20,
            zero_max: 32 << 20,
            page: 4 << 10,
            stage_parallel: 8,
            stored_for: Duration::from_secs(1),
        }
    }
}
