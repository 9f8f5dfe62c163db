//! Where bytes go to, and what a read is answered with.

use vsc_driver::buffer::Slice;

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// To this offset in bytes.
    Offset(u64),
    /// To the end of the file, wherever it is when the bytes are taken (O_APPEND).
    End,
}

impl From<u64> for At {
    fn from(offset: u64) -> Self {
        Self::Offset(offset)
    }
}

/// Bytes answered to a read: one contiguous slice (fuser replies with one slice).
#[derive(Debug, Clone)]
pub enum ReadData {
    /// Straight out of the cache.
    Slice(Slice),
    /// Put together (a read that spans extents, holes or dirty data).
    Owned(Vec<u8>),
}

impl std::ops::Deref for ReadData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Owned(bytes) => bytes,
        }
    }
}
