//! The C library's allocator, told to give memory back: a budget for data means nothing when freed memory
//! stays resident.
#![allow(unsafe_code, reason = "mallopt has no safe interface")]

/// Heaps of their own that threads may have together. The default of eight for each core keeps what one
/// thread's burst needed, once for each.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// From this size on an allocation is a mapping of its own, gone when it is freed. Set, it does not grow with
/// what is freed, as it otherwise does.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 256 * 1024;
/// Free memory at the end of a heap beyond which it is given back.
#[cfg(target_env = "gnu")]
const TRIM_FROM: libc::c_int = 1024 * 1024;

/// Bounds what the allocator keeps. To be called before the first thread starts.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
        (libc::M_TRIM_THRESHOLD, TRIM_FROM),
    ] {
        // SAFETY: no other thread is running yet; the call only sets a number.
        if unsafe { libc::mallopt(setting, value) } == 0 {
            // Memory is then only less tidy.
            eprintln!("vsc-blob-csi: the allocator refused setting {setting}");
        }
    }
}
