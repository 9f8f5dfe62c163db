//! A file that is changed through a mapping.
#![expect(unsafe_code, reason = "maps a file")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mlock, mmap, msync, munmap};

/// A mapping of a whole file, whose pages are in memory and stay there.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<c_void>,
    length: NonZeroUsize,
}

// SAFETY: memory of the process, which nobody else has the address of.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps a file that is not empty, and reads it.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file, 0) }?;
        let mapping = Self { at, length };
        // SAFETY: the mapping just made.
        unsafe { mlock(at, length.get()) }?;
        Ok(mapping)
    }

    /// Puts bytes at the beginning of the file.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.length.get(), "beyond the end of the file");
        // SAFETY: within the mapping, which is writable and of this value alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().cast(), bytes.len()) }
    }

    /// Waits until the file has what was put there.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping.
        unsafe { msync(self.at, self.length.get(), MsFlags::MS_SYNC) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has the address any more. It fails only for addresses that are none.
        let _ = unsafe { munmap(self.at, self.length.get()) };
    }
}
