//! The one memory mapping under an arena: a sparse memfd, shared, kept out of forked children.
#![expect(
    unsafe_code,
    reason = "mmap, madvise and views into the mapping have no safe interface"
)]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::unistd::ftruncate;

/// The page size of the only architecture the device exists on (x86-64; the host's page is 4 KiB as well).
pub const PAGE: usize = 4096;

/// Owns the memfd and its mapping. Hands out raw views; that two of them never overlap is the arena's duty.
#[derive(Debug)]
pub(super) struct Mapping {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `base` and `len` never change after `new`, and
// access to the bytes is handed out piecewise by the arena, which gives every piece to one owner only.
unsafe impl Send for Mapping {}
// SAFETY: as above; all methods taking `&self` are system calls or produce disjoint views.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` sparse bytes (`len` is a multiple of the page size).
    pub(super) fn new(len: NonZeroUsize) -> io::Result<Self> {
        let fd = memfd_create(c"vsc-arena", MFdFlags::MFD_CLOEXEC)?;
        let size = i64::try_from(len.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
        ftruncate(&fd, size)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing object.
        let base = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                &fd,
                0,
            )
        }?;
        let mapping = Self {
            fd,
            base: base.cast(),
            len,
        };
        // The shipped drivers pin without write intent: after a fork the host could write into a page that is
        // no longer the one this process sees. A child that lacks the mapping cannot cause that. Core dumps
        // would carry blob contents, so they leave it out as well.
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: the range is the mapping made above, and neither advice changes its contents.
            unsafe { madvise(base, len.get(), advice) }?;
        }
        Ok(mapping)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Address of the byte at `offset`, which must lie inside the mapping.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.len.get());
        // SAFETY: `offset` is inside the mapping (the arena cuts only blocks that are), so the result is in
        // bounds.
        unsafe { self.base.add(offset) }
    }

    /// Makes every page of the range present and writable. Contents stay; new pages are zero.
    ///
    /// # Safety
    /// The caller owns the range (nobody else reads or writes it).
    pub(super) unsafe fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        let start = self.at(offset);
        loop {
            // SAFETY: the range lies in the mapping and populating changes no byte of it.
            match unsafe { madvise(start.cast(), len, MmapAdvise::MADV_POPULATE_WRITE) } {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                // Linux before 5.14 does not know the advice.
                Err(Errno::EINVAL) => break,
                Err(e) => return Err(io::Error::new(io::ErrorKind::OutOfMemory, e)),
            }
        }
        // Reserve first, so that a machine without memory is an error here and not a SIGBUS below.
        fallocate(
            self.fd(),
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset as i64,
            len as i64,
        )
        .map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))?;
        for page in (0..len).step_by(PAGE) {
            // SAFETY: in the mapping, and the caller owns the range.
            unsafe {
                let byte = start.add(page);
                byte.write_volatile(byte.read_volatile());
            }
        }
        Ok(())
    }

    /// Gives the pages of the range back to the machine; they read as zero afterwards.
    ///
    /// # Safety
    /// The caller owns the range and no reference into it exists.
    pub(super) unsafe fn punch(&self, offset: usize, len: usize) -> io::Result<()> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(self.fd(), mode, offset as i64, len as i64) {
                Err(Errno::EINTR) => continue,
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// The bytes of a range as a shared slice.
    ///
    /// # Safety
    /// The range is populated, and nobody writes to it while the slice lives.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: in the mapping, initialized (a memfd starts as zeros), not written meanwhile (the caller's
        // promise).
        unsafe { std::slice::from_raw_parts(self.at(offset).as_ptr(), len) }
    }

    /// The bytes of a range as an exclusive slice.
    ///
    /// # Safety
    /// The range is populated, and the caller is its only user while the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusiveness is per range and kept by Buffer"
    )]
    pub(super) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        // SAFETY: in the mapping, initialized, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset).as_ptr(), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: every view holds the arena alive, so none is left when its mapping is dropped.
        let unmapped = unsafe { munmap(self.base.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping failed: {unmapped:?}");
    }
}
