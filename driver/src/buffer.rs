//! Page-aligned, pre-faulted, never-forked memory that the host may write into, and the arena it comes from.
//!
//! Why so strict: the shipped drivers pin response and data pages *without* write intent (reference of the
//! driver, "a trap in the page pinning"). A page that was never written may then be the kernel's shared zero
//! page, and a page shared with a forked child may be copied away: the host would write where this process
//! never looks. A shared mapping whose pages are all present before use, and which a child does not inherit,
//! is safe with every driver.
#![expect(
    unsafe_code,
    reason = "views into the mapping are handed out by range, which the compiler cannot follow"
)]

mod blocks;
mod mapping;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::blocks::{Block, FreeBlocks, MAX_ORDER, Residency};
use self::mapping::Mapping;
pub use self::mapping::PAGE;
use crate::seldom::Seldom;

/// Lines of a machine that is short of memory: each request would write them.
static SHORT: Seldom = Seldom::new();
static UNRETURNED: Seldom = Seldom::new();

/// The largest buffer in bytes: what the three buffers of one request may take together (8192 pages).
pub const MAX_BUFFER: usize = PAGE << MAX_ORDER;

/// One sparse memfd mapping, shared (`MAP_SHARED`, `MADV_DONTFORK`), from which every [`Buffer`] is cut.
///
/// Memory is taken from the machine only as buffers are allocated and can be given back with [`Arena::trim`].
/// Idle memory stays resident until then, because faulting pages in anew costs more than most requests.
/// Offsets inside the arena are stable, so a replacement process that maps the same memfd finds the same
/// bytes.
pub struct Arena {
    mapping: Mapping,
    resident: Residency,
    free: Mutex<FreeBlocks>,
    /// Held while `trim` has blocks in its hands, so that an allocation that finds none can wait for them.
    trimming: Mutex<()>,
    allocated: AtomicUsize,
    /// Resident pages of free blocks.
    idle_pages: AtomicUsize,
}

impl Arena {
    /// An arena with room for `capacity` bytes of address space (rounded up to the largest size class).
    pub fn new(capacity: usize) -> io::Result<Arc<Self>> {
        let len = capacity
            .max(1)
            .checked_next_multiple_of(MAX_BUFFER)
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "arena capacity overflows"))?;
        let pages = len.get() / PAGE;
        Ok(Arc::new(Self {
            mapping: Mapping::new(len)?,
            resident: Residency::new(pages),
            free: Mutex::new(FreeBlocks::new(pages)),
            trimming: Mutex::new(()),
            allocated: AtomicUsize::new(0),
            idle_pages: AtomicUsize::new(0),
        }))
    }

    /// A buffer of length `len` (> 0, at most 32 MiB), page-aligned, every page present and writable.
    ///
    /// The contents are unspecified (a reused buffer keeps old bytes of this process). Fails with
    /// `InvalidInput` for a length outside the range and with `OutOfMemory` when the address space is used up
    /// or the machine has no page to give.
    pub fn alloc(self: &Arc<Self>, len: usize) -> io::Result<Buffer> {
        if len == 0 || len > MAX_BUFFER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a buffer has 1 to {MAX_BUFFER} bytes, not {len}"),
            ));
        }
        let order = len.div_ceil(PAGE).next_power_of_two().trailing_zeros() as u8;
        let block = self.take(order).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("the arena has no free run of {} bytes", PAGE << order),
            )
        })?;
        let buffer = Buffer {
            arena: Arc::clone(self),
            block,
            len,
            secret: false,
        };
        // On failure the buffer's drop gives the block back.
        buffer.populate(len)?;
        Ok(buffer)
    }

    /// Bytes now handed out, and bytes resident in idle (free but not returned) buffers.
    pub fn usage(&self) -> ArenaUsage {
        ArenaUsage {
            allocated: self.allocated.load(Ordering::Relaxed),
            idle: self.idle_pages.load(Ordering::Relaxed) * PAGE,
        }
    }

    /// Gives idle memory back to the machine until at most `keep` idle bytes remain resident.
    pub fn trim(&self, keep: usize) {
        let _trimming = lock(&self.trimming);
        let mut surplus = self
            .idle_pages
            .load(Ordering::Relaxed)
            .saturating_sub(keep / PAGE);
        if surplus == 0 {
            return;
        }
        let taken = lock(&self.free).take_resident(surplus, &self.resident);
        for block in &taken {
            for run in self.resident.runs(block.range(), true).into_iter().rev() {
                if surplus == 0 {
                    break;
                }
                // The top of the run goes, what is kept stays in one piece.
                let go = run.end - run.len().min(surplus)..run.end;
                // SAFETY: the block was free and is now in our hands only, so nobody has a reference into it.
                match unsafe { self.mapping.punch(go.start * PAGE, go.len() * PAGE) } {
                    Ok(()) => {
                        surplus -= go.len();
                        self.resident.clear(go.clone());
                        self.idle_pages.fetch_sub(go.len(), Ordering::Relaxed);
                    }
                    // The memory stays ours and usable; only the saving is lost.
                    Err(error) => {
                        if let Some(times) = UNRETURNED.said() {
                            let bytes = go.len() * PAGE;
                            tracing::warn!(%error, bytes, times, "could not return idle memory");
                        }
                    }
                }
            }
        }
        let mut free = lock(&self.free);
        taken.into_iter().for_each(|block| free.give(block));
    }

    /// The memfd behind the arena (handed to the keeper).
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.mapping.fd()
    }

    fn take(&self, order: u8) -> Option<Block> {
        // The guard must not live on: `trim` takes the two locks in the other order.
        let first = lock(&self.free).take(order);
        let block = first.or_else(|| {
            let _trimming = lock(&self.trimming);
            lock(&self.free).take(order)
        })?;
        self.allocated.fetch_add(block.pages() * PAGE, Ordering::Relaxed);
        self.idle_pages
            .fetch_sub(self.resident.count(block.range()), Ordering::Relaxed);
        Some(block)
    }

    fn give(&self, block: Block) {
        self.allocated.fetch_sub(block.pages() * PAGE, Ordering::Relaxed);
        self.idle_pages
            .fetch_add(self.resident.count(block.range()), Ordering::Relaxed);
        lock(&self.free).give(block);
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

/// A panic elsewhere cannot leave these structures half changed in a way that matters to memory safety: go
/// on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
/// `len` is the valid length; the capacity is the size class (>= len). Memory is taken for the length only.
pub struct Buffer {
    arena: Arc<Arena>,
    block: Block,
    len: usize,
    /// See [`Buffer::holds_secrets`].
    secret: bool,
}

impl Buffer {
    /// The arena this buffer was cut from.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Offset of the first byte inside the arena's memfd.
    pub fn arena_offset(&self) -> u64 {
        self.start() as u64
    }

    /// Bytes that can be used at most (the size class).
    pub fn capacity(&self) -> usize {
        self.block.pages() * PAGE
    }

    /// Changes the valid length; panics never, clamps to the capacity.
    ///
    /// A longer buffer gets its new pages here; when the machine has none, the length stays as it was.
    pub fn set_len(&mut self, len: usize) {
        let len = len.min(self.capacity());
        if self.secret && len < self.len {
            self[len..].fill(0);
        }
        if len > self.len
            && let Err(error) = self.populate(len)
        {
            if let Some(times) = SHORT.said() {
                tracing::warn!(%error, len, times, "no memory to lengthen a buffer");
            }
            return;
        }
        self.len = len;
    }

    /// What is written from now on is no other request's business: it is wiped before the memory goes back to
    /// the arena, which hands it out again as it is.
    pub fn holds_secrets(&mut self) {
        self.secret = true;
    }

    /// Freezes into a shared, immutable view of the valid bytes.
    pub fn freeze(self) -> Slice {
        let range = 0..self.len;
        Slice {
            buffer: Arc::new(self),
            range,
        }
    }

    fn start(&self) -> usize {
        self.block.page * PAGE
    }

    fn populate(&self, len: usize) -> io::Result<()> {
        let wanted = self.block.page..self.block.page + len.div_ceil(PAGE);
        let resident = &self.arena.resident;
        if resident.count(wanted.clone()) == wanted.len() {
            return Ok(());
        }
        for run in resident.runs(wanted, false) {
            // SAFETY: the pages belong to this buffer's block, and no reference reaches beyond the populated
            // length.
            unsafe { self.arena.mapping.populate(run.start * PAGE, run.len() * PAGE) }?;
            resident.set(run);
        }
        Ok(())
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: populated up to `len` (alloc, set_len); the block is this buffer's alone, so a writer needs
        // `&mut self`.
        unsafe { self.arena.mapping.bytes(self.start(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only view.
        unsafe { self.arena.mapping.bytes_mut(self.start(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.secret {
            self.fill(0);
        }
        self.arena.give(self.block);
    }
}

// Contents are blob data or credentials: never in a log.
impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:#x})", self.len, self.start())
    }
}

/// A shared, immutable view of part of a frozen [`Buffer`]. Cloning shares the memory.
#[derive(Clone)]
pub struct Slice {
    buffer: Arc<Buffer>,
    /// Within the buffer's length.
    range: Range<usize>,
}

impl Slice {
    /// A narrower view of the same memory; `range` is relative to this view and is clamped to it.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        let end = self.range.start.saturating_add(range.end).min(self.range.end);
        let start = self.range.start.saturating_add(range.start).min(end);
        Slice {
            buffer: Arc::clone(&self.buffer),
            range: start..end,
        }
    }

    /// The same memory as `Bytes`, without a copy.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Views of the buffer that there are now, this one among them: its memory is free when all are gone.
    pub fn views(&self) -> usize {
        Arc::strong_count(&self.buffer)
    }

    /// Bytes of the arena that are not free before all views are gone.
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether both are views of one buffer.
    pub fn is_of_buffer(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer)
    }

    /// The buffer itself again, when this is its last view; otherwise the view comes back.
    ///
    /// The buffer has its full length, not that of this view.
    pub fn try_into_buffer(self) -> Result<Buffer, Slice> {
        let range = self.range;
        Arc::try_unwrap(self.buffer).map_err(|buffer| Slice { buffer, range })
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({:?} of {:?})", self.range, self.buffer)
    }
}
