//! What a mount holds for the kernel and in the service.

use super::core::Tree;

/// What a mount holds now. Nobody who uses it: no handles, no leases, and the root's inode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Open files and directories.
    pub handles: usize,
    /// Inodes that are known: the kernel may ask for them, or they are kept for it.
    pub inodes: usize,
    /// Blobs that are leased because their files were deleted or replaced while open.
    pub leases: usize,
}

impl Tree {
    /// What is held now.
    pub(crate) fn held(&self) -> Held {
        Held {
            handles: self.handles.count(),
            inodes: self.table.lock().count(),
            leases: self.hidden.leases(),
        }
    }
}
