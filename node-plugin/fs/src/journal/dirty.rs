//! Dirty data of one file, written into the journal of its mount.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blob_client::{BlockId, ETag, Metadata};

use super::log::Log;
use super::record::Record;
use crate::content::dirty_log::DirtyLog;

/// The journal as a file's content sees it.
#[derive(Debug)]
pub(crate) struct NodeLog {
    log: Arc<Log>,
    node: AtomicU64,
    failed: AtomicBool,
}

impl NodeLog {
    /// For content whose node has its id already, or gets it by [`NodeLog::belongs_to`] before anything is
    /// written.
    pub(crate) fn new(log: Arc<Log>, node: u64) -> Arc<Self> {
        Arc::new(Self {
            log,
            node: AtomicU64::new(node),
            failed: AtomicBool::new(false),
        })
    }

    /// The content is that of this node.
    pub(crate) fn belongs_to(&self, node: u64) {
        self.node.store(node, Ordering::Relaxed);
    }

    fn node(&self) -> u64 {
        self.node.load(Ordering::Relaxed)
    }

    fn append(&self, record: Record) {
        // Without memory for the journal the mount goes on; only its take-over would not.
        if let Err(error) = self.log.append(&[record])
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, node = self.node(), "the journal cannot be written");
        }
    }
}

impl DirtyLog for NodeLog {
    fn dirty(&self, offset: u64, len: u64, arena_offset: u64) {
        self.append(Record::Dirty {
            node: self.node(),
            offset,
            len,
            arena: arena_offset,
        });
    }
    fn hole(&self, offset: u64, len: u64) {
        self.append(Record::Hole {
            node: self.node(),
            offset,
            len,
        });
    }
    fn size(&self, size: u64) {
        self.append(Record::Size {
            node: self.node(),
            size,
        });
    }
    fn block(&self, id: &BlockId, offset: u64, len: u64) {
        self.append(Record::Block {
            node: self.node(),
            offset,
            len,
            id: id.0.clone(),
        });
    }
    fn sent(&self, id: &BlockId) {
        self.append(Record::Sent {
            node: self.node(),
            id: id.0.clone(),
        });
    }
    fn unstaged(&self, id: &BlockId) {
        self.append(Record::Unstaged {
            node: self.node(),
            id: id.0.clone(),
        });
    }
    fn metadata(&self, metadata: &Metadata) {
        self.append(Record::Metadata {
            node: self.node(),
            metadata: metadata.clone(),
        });
    }
    fn committed(&self, etag: &ETag) {
        self.append(Record::Committed {
            node: self.node(),
            etag: etag.0.clone(),
        });
    }
    fn begin_commit(&self) {
        self.append(Record::BeginCommit { node: self.node() });
    }
}
