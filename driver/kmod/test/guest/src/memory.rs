//! Memory of every kind that a caller may hand to the driver.
#![expect(unsafe_code, reason = "mappings that the kernel and a forked child write to")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// A mapping, unmapped on drop. Its bytes are read and written through volatile copies, since the host writes
/// there too.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; all access is by copies of bytes.
unsafe impl Send for Memory {}
// SAFETY: as above; two threads never write to one of these at a time (each case owns its memory).
unsafe impl Sync for Memory {}

fn length(len: usize) -> Result<NonZeroUsize> {
    NonZeroUsize::new(len).context("empty mapping")
}

impl Memory {
    /// Private anonymous memory, no page touched yet.
    pub(crate) fn untouched(len: usize) -> Result<Self> {
        // SAFETY: a new anonymous mapping overlaps nothing.
        let start = unsafe {
            mmap_anonymous(
                None,
                length(len)?,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        Ok(Self { start, len })
    }

    /// Private anonymous memory, every page written.
    pub(crate) fn written(len: usize) -> Result<Self> {
        let memory = Self::untouched(len)?;
        memory.fill(0xEE);
        Ok(memory)
    }

    /// A file, shared or private, no page touched yet.
    pub(crate) fn of_file(file: impl AsFd, len: usize, shared: bool) -> Result<Self> {
        let flags = if shared {
            MapFlags::MAP_SHARED
        } else {
            MapFlags::MAP_PRIVATE
        };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            mmap(
                None,
                length(len)?,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                flags,
                file,
                0,
            )
        }?;
        Ok(Self { start, len })
    }

    /// Takes the right to write away.
    pub(crate) fn read_only(self) -> Result<Self> {
        // SAFETY: the whole mapping is ours, and from here on it is only read.
        unsafe { mprotect(self.start, self.len, ProtFlags::PROT_READ) }?;
        Ok(self)
    }

    /// Takes the pages from `offset` on away from every access. They stay mapped, so that nothing else comes
    /// in their place.
    pub(crate) fn fence(&self, offset: usize) -> Result<()> {
        assert!(offset.is_multiple_of(PAGE) && offset < self.len);
        // SAFETY: the rest of our own mapping; nobody holds a reference into it.
        unsafe {
            mprotect(
                self.start.byte_add(offset),
                self.len - offset,
                ProtFlags::PROT_NONE,
            )
        }?;
        Ok(())
    }

    /// Address of the byte at `offset`.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        (self.start.as_ptr().addr() + offset) as u64
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A copy of the bytes at `offset`.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len);
        let mut out = vec![0; len];
        // SAFETY: in bounds by the assertion; the target is fresh.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().cast::<u8>().add(offset),
                out.as_mut_ptr(),
                len,
            );
        }
        out
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: in bounds by the assertion; a slice of ours never overlaps a mapping that is only reached
        // here.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.start.as_ptr().cast::<u8>().add(offset),
                bytes.len(),
            );
        }
    }

    /// Writes one byte value everywhere.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: the whole mapping is ours.
        unsafe { std::ptr::write_bytes(self.start.as_ptr().cast::<u8>(), byte, self.len) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more; the kernel's pins are its own.
        if let Err(error) = unsafe { munmap(self.start, self.len) } {
            eprintln!("munmap: {error}");
        }
    }
}

/// A forked copy of this process that shares its pages copy-on-write, until it is told to look at `watched`.
pub(crate) struct Twin {
    pid: Pid,
    go: std::os::fd::OwnedFd,
}

impl Twin {
    /// Forks. The child waits, then exits with 0 if every byte of `watched` still is `byte`.
    pub(crate) fn new(watched: &Memory, byte: u8) -> Result<Self> {
        let (wait, go) = nix::unistd::pipe()?;
        // SAFETY: the child of a process with threads calls only read, close and _exit, and reads memory.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, go }),
            ForkResult::Child => {
                drop(go);
                let mut one = [0u8; 1];
                let _ = nix::unistd::read(&wait, &mut one);
                let mut same = true;
                for offset in 0..watched.len {
                    // SAFETY: within the mapping, which the fork has copied.
                    same &=
                        unsafe { watched.start.as_ptr().cast::<u8>().add(offset).read_volatile() } == byte;
                }
                // SAFETY: ends the child at once, without the parent's exit handlers.
                unsafe { libc::_exit(i32::from(!same)) }
            }
        }
    }

    /// Lets the child look, and tells whether it saw its bytes unchanged.
    pub(crate) fn unchanged(self) -> Result<bool> {
        drop(self.go);
        Ok(matches!(waitpid(self.pid, None)?, WaitStatus::Exited(_, 0)))
    }
}
