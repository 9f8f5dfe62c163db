//! Page-aligned, pre-faulted, never-forked memory that the host may write into, and the arena it comes from.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::Bytes;

/// One sparse memfd mapping, shared (`MAP_SHARED`, `MADV_DONTFORK`), from which every [`Buffer`] is cut.
///
/// Memory is taken from the machine only as buffers are allocated and can be given back with [`Arena::trim`].
/// Offsets inside the arena are stable, so a replacement process that maps the same memfd finds the same bytes.
#[derive(Debug)]
pub struct Arena {}

impl Arena {
    /// An arena with room for `capacity` bytes of address space (rounded up to the largest size class).
    pub fn new(capacity: usize) -> io::Result<Arc<Self>> {
        let _ = capacity;
        todo!()
    }

    /// A buffer of length `len` (> 0, at most 32 MiB), page-aligned, every page present and writable.
    ///
    /// The contents are unspecified (a reused buffer keeps old bytes of this process).
    /// Fails with `OutOfMemory` when the address space is used up.
    pub fn alloc(self: &Arc<Self>, len: usize) -> io::Result<Buffer> {
        let _ = len;
        todo!()
    }

    /// Bytes now handed out, and bytes resident in idle (free but not returned) buffers.
    pub fn usage(&self) -> ArenaUsage {
        todo!()
    }

    /// Gives idle memory back to the machine until at most `keep` idle bytes remain resident.
    pub fn trim(&self, keep: usize) {
        let _ = keep;
        todo!()
    }

    /// The memfd behind the arena (handed to the keeper).
    pub fn memfd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}

/// See [`Arena::usage`]. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArenaUsage {
    /// Bytes (by size class) of live buffers.
    pub allocated: usize,
    /// Bytes still resident in idle buffers.
    pub idle: usize,
}

/// Exclusive owner of a page-aligned piece of an [`Arena`]; goes back to the arena on drop.
///
/// `len` is the valid length; the capacity is the size class (>= len).
#[derive(Debug)]
pub struct Buffer {}

impl Buffer {
    /// The arena this buffer was cut from.
    pub fn arena(&self) -> &Arc<Arena> {
        todo!()
    }
    /// Offset of the first byte inside the arena's memfd.
    pub fn arena_offset(&self) -> u64 {
        todo!()
    }
    /// Bytes that can be used at most (the size class).
    pub fn capacity(&self) -> usize {
        todo!()
    }
    /// Changes the valid length; panics never, clamps to the capacity.
    pub fn set_len(&mut self, len: usize) {
        let _ = len;
        todo!()
    }
    /// Freezes into a shared, immutable view of the valid bytes.
    pub fn freeze(self) -> Slice {
        todo!()
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        todo!()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        todo!()
    }
}

/// A shared, immutable view of part of a frozen [`Buffer`]. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Slice {}

impl Slice {
    /// A narrower view of the same memory; `range` is relative to this view and is clamped to it.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        let _ = range;
        todo!()
    }
    /// The same memory as `Bytes`, without a copy.
    pub fn to_bytes(&self) -> Bytes {
        todo!()
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        todo!()
    }
}
