//! One byte budget for data, metadata and dirty blocks of all mounts of a process.

use std::sync::Arc;

/// Bytes that all mounts together may hold. Readers shrink, writers wait; nothing fails for want of budget.
#[derive(Debug)]
pub struct Budget {}

impl Budget {
    /// A budget of `bytes` (default of the program: 512 MiB; at least 32 MiB).
    pub fn new(bytes: usize) -> Arc<Self> {
        let _ = bytes;
        todo!()
    }
}
