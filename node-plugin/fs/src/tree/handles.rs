//! Open handles: small numbers whose meaning is in the journal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex as AsyncMutex;

use super::cursor::Cursor;
use super::node::{Node, NodeId};
use crate::content::{File, Reader};
use crate::errno::{Errno, Result};

/// An open file.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) node: Arc<Node>,
    pub(crate) file: Arc<File>,
    pub(crate) reader: Reader,
    pub(crate) writes: bool,
    /// Closing it makes the file durable.
    pub(crate) commits: bool,
    /// It may write, and has not since its last flush: its program has closed it, and the kernel says so
    /// later. Changed with the node's state locked, which counts them.
    pub(crate) flushed: AtomicBool,
    /// It was opened with O_EXCL.
    pub(crate) exclusive: bool,
    /// close(2) of its descriptors so far. From the third on they are those of processes that inherited one.
    pub(crate) closes: AtomicU32,
    /// A commit begins soon without anybody waiting for it.
    pub(crate) commit_soon: AtomicBool,
}

/// All handles of a volume. Numbers are never used twice.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<Handle>>>,
    directories: RwLock<HashMap<u64, Arc<DirectoryHandle>>>,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct DirectoryHandle {
    pub(crate) node: NodeId,
    pub(crate) cursor: AsyncMutex<Cursor>,
}

impl Handles {
    pub(crate) fn open_file(&self, handle: Handle) -> u64 {
        let fh = self.number();
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fh, Arc::new(handle));
        fh
    }

    pub(crate) fn file(&self, fh: u64) -> Result<Arc<Handle>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    pub(crate) fn close_file(&self, fh: u64) -> Option<Arc<Handle>> {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&fh)
    }

    pub(crate) fn all_files(&self) -> Vec<u64> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }

    /// Of files and directories.
    pub(crate) fn count(&self) -> usize {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner).len();
        let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
        files + directories.len()
    }

    pub(crate) fn open_directory(&self, node: NodeId) -> u64 {
        let fh = self.number();
        let handle = DirectoryHandle {
            node,
            cursor: AsyncMutex::default(),
        };
        self.directories
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fh, Arc::new(handle));
        fh
    }

    pub(crate) fn directory(&self, fh: u64) -> Result<Arc<DirectoryHandle>> {
        let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
        directories.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    pub(crate) fn close_directory(&self, fh: u64) {
        self.directories
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&fh);
    }

    fn number(&self) -> u64 {
        // 0 means "none" in the journal.
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }
}
