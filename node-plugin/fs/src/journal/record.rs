//! Records of the journal: one fact each.

use std::collections::BTreeMap;

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A node got its id, or moved; `parent` 0 = it has no name any more.
    Node {
        /// Node id.
        id: u64,
        /// Id of its directory.
        parent: u64,
        /// Name in the directory.
        name: String,
    },
    /// The kernel and we have forgotten the node.
    Forget {
        /// Node id.
        id: u64,
    },
    /// A handle was opened.
    Handle {
        /// Number the kernel knows it by.
        fh: u64,
        /// Its node.
        node: u64,
        /// Flags of open(2).
        flags: i32,
        /// Version it was opened on (ETag), empty for a file that has none yet.
        generation: String,
    },
    /// A handle was released.
    Release {
        /// Handle.
        fh: u64,
    },
    /// A non-idempotent operation was carried out; recorded before its reply is sent.
    Reply {
        /// The kernel's number of the request.
        unique: u64,
        /// 0, or the error number.
        errno: i32,
        /// The node that the operation made, 0 for none.
        node: u64,
        /// The handle that it opened, 0 for none.
        fh: u64,
    },
    /// Bytes of a file that the service does not have yet.
    Dirty {
        /// Node id.
        node: u64,
        /// Where in the file.
        offset: u64,
        /// How many.
        len: u64,
        /// Where in the arena's memfd.
        arena: u64,
    },
    /// A range of a file reads as zeros, which the service does not know yet.
    Hole {
        /// Node id.
        node: u64,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A file's size was set.
    Size {
        /// Node id.
        node: u64,
        /// New size.
        size: u64,
    },
    /// A block is about to be staged.
    Block {
        /// Node id.
        node: u64,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The block's id.
        id: Vec<u8>,
    },
    /// The range of a staged block is nowhere else: the memory that had it serves others.
    Sent {
        /// Node id.
        node: u64,
        /// The block's id.
        id: Vec<u8>,
    },
    /// A block will not be part of the file.
    Unstaged {
        /// Node id.
        node: u64,
        /// The block's id.
        id: Vec<u8>,
    },
    /// What the next commit of a file with uncommitted data stores as metadata: mode, owner, times, extended
    /// attributes.
    Metadata {
        /// Node id.
        node: u64,
        /// As it is sent.
        metadata: BTreeMap<String, String>,
    },
    /// A commit has taken its snapshot.
    BeginCommit {
        /// Node id.
        node: u64,
    },
    /// Uncommitted data was given up: its file lost its version to somebody else, and nobody has it open.
    Discard {
        /// Node id.
        node: u64,
    },
    /// What was recorded before the snapshot is in the service.
    Committed {
        /// Node id.
        node: u64,
        /// As this version (ETag).
        etag: String,
    },
}
