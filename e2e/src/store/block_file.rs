//! A file of the store's folder that holds the bytes of one block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

/// Bytes of a block on disk; removed when the last version that uses it is gone.
#[derive(Debug)]
pub(super) struct BlockFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// The store goes away: dropped data stays on disk.
    pub(super) closing: Arc<AtomicBool>,
}

impl BlockFile {
    /// Reads exactly these bytes.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        if !self.closing.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove block data");
        }
    }
}
