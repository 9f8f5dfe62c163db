//! Records of the journal, the state they add up to, and their encoding.

use std::collections::{BTreeMap, VecDeque};

use crc::{CRC_32_ISCSI, Crc};

pub(super) const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Longest record: a name of 255 bytes and a reply of a few hundred fit many times over.
pub(super) const MAX_RECORD: usize = 64 * 1024;
/// Replies kept: the kernel has at most `max_background` plus one per waiting thread in flight.
const REPLIES: usize = 1024;

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
    /// What the next commit of a file with uncommitted data stores as metadata: mode, owner, times, extended attributes.
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

/// What a log says: the same whether it was compacted or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Node id -> (parent, name).
    pub nodes: BTreeMap<u64, (u64, String)>,
    /// Handle -> (node, flags, generation).
    pub handles: BTreeMap<u64, (u64, i32, String)>,
    /// The last replies, oldest first: (unique, errno, node, fh).
    pub replies: VecDeque<(u64, i32, u64, u64)>,
    /// Files with data that the service does not have.
    pub dirty: BTreeMap<u64, DirtyFile>,
    /// Last version that a file was committed as.
    pub versions: BTreeMap<u64, String>,
    /// Node ids below this have been given out.
    pub next_node: u64,
    /// Handles below this have been given out.
    pub next_handle: u64,
}

impl State {
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Node { id, parent, name } => {
                self.next_node = self.next_node.max(id + 1);
                self.nodes.insert(id, (parent, name));
            }
            Record::Forget { id } => {
                self.next_node = self.next_node.max(id + 1);
                self.nodes.remove(&id);
                self.dirty.remove(&id);
                self.versions.remove(&id);
            }
            Record::Handle {
                fh,
                node,
                flags,
                generation,
            } => {
                self.next_handle = self.next_handle.max(fh + 1);
                self.handles.insert(fh, (node, flags, generation));
            }
            Record::Release { fh } => {
                self.next_handle = self.next_handle.max(fh + 1);
                self.handles.remove(&fh);
            }
            Record::Dirty {
                node,
                offset,
                len,
                arena,
            } => self.file(node).put(offset, len, Some(arena)),
            Record::Hole { node, offset, len } => self.file(node).put(offset, len, None),
            Record::Size { node, size } => self.file(node).resize(size),
            Record::Block {
                node,
                offset,
                len,
                id,
            } => {
                self.file(node).blocks.insert(
                    id,
                    Block {
                        offset,
                        len,
                        only: false,
                    },
                );
            }
            Record::Sent { node, id } => {
                if let Some(file) = self.dirty.get_mut(&node) {
                    file.sent(&id);
                }
            }
            Record::Unstaged { node, id } => {
                if let Some(file) = self.dirty.get_mut(&node) {
                    file.blocks.remove(&id);
                    self.forget_clean(node);
                }
            }
            Record::Metadata { node, metadata } => self.file(node).metadata = Some((metadata, false)),
            Record::Discard { node } => {
                self.dirty.remove(&node);
            }
            Record::BeginCommit { node } => {
                if let Some(file) = self.dirty.get_mut(&node) {
                    file.seal();
                }
            }
            Record::Committed { node, etag } => {
                self.versions.insert(node, etag);
                if let Some(file) = self.dirty.get_mut(&node) {
                    file.drop_sealed();
                    self.forget_clean(node);
                }
            }
            Record::Reply {
                unique,
                errno,
                node,
                fh,
            } => {
                self.replies.push_back((unique, errno, node, fh));
                if self.replies.len() > REPLIES {
                    self.replies.pop_front();
                }
            }
        }
    }

    fn forget_clean(&mut self, node: u64) {
        if self.dirty.get(&node) == Some(&DirtyFile::default()) {
            self.dirty.remove(&node);
        }
    }

    fn file(&mut self, node: u64) -> &mut DirtyFile {
        self.dirty.entry(node).or_default()
    }

    /// The shortest list of records that leads here.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut records = Vec::with_capacity(self.nodes.len() + self.handles.len() + self.replies.len() + 2);
        // The counters never go back, even when their highest holder is gone.
        if self.next_node > 0 {
            records.push(Record::Forget {
                id: self.next_node - 1,
            });
        }
        if self.next_handle > 0 {
            records.push(Record::Release {
                fh: self.next_handle - 1,
            });
        }
        records.extend(self.nodes.iter().map(|(id, (parent, name))| Record::Node {
            id: *id,
            parent: *parent,
            name: name.clone(),
        }));
        records.extend(
            self.handles
                .iter()
                .map(|(fh, (node, flags, generation))| Record::Handle {
                    fh: *fh,
                    node: *node,
                    flags: *flags,
                    generation: generation.clone(),
                }),
        );
        records.extend(
            self.replies
                .iter()
                .map(|(unique, errno, node, fh)| Record::Reply {
                    unique: *unique,
                    errno: *errno,
                    node: *node,
                    fh: *fh,
                }),
        );
        records.extend(self.versions.iter().map(|(node, etag)| Record::Committed {
            node: *node,
            etag: etag.clone(),
        }));
        for (node, file) in &self.dirty {
            file.records(*node, true, &mut records);
            records.push(Record::BeginCommit { node: *node });
            file.records(*node, false, &mut records);
            // After the data: what is written later takes the place of a block.
            file.block_records(*node, &mut records);
        }
        records
    }
}

/// What the log knows of a file's data that the service does not have. *Sealed* is what the commit under way contains.
///
/// Where there is an extent, it is the file's content. Where there is none but a block with `only`, the block is. Other blocks are known so that
/// nobody stages anything else under their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirtyFile {
    /// By offset in the file; never overlapping.
    pub extents: BTreeMap<u64, Extent>,
    /// The size, if it was set.
    pub size: Option<(u64, bool)>,
    /// Blocks that may be staged, by id.
    pub blocks: BTreeMap<Vec<u8>, Block>,
    /// Metadata for the next commit, and whether it is sealed.
    pub metadata: Option<(BTreeMap<String, String>, bool)>,
}

/// A dirty range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// Where in the arena they are; `None` = zeros.
    pub arena: Option<u64>,
    /// Part of the commit under way.
    pub sealed: bool,
}

/// A block that may be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Where in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The range is nowhere else.
    pub only: bool,
}

impl DirtyFile {
    /// Takes a range out, cutting what reaches into it.
    fn carve(&mut self, from: u64, to: u64) {
        let touched: Vec<u64> = self
            .extents
            .range(..to)
            .rev()
            .take_while(|(offset, e)| *offset + e.len > from)
            .map(|(offset, _)| *offset)
            .collect();
        for offset in touched {
            let Some(extent) = self.extents.remove(&offset) else {
                continue;
            };
            let end = offset + extent.len;
            if offset < from {
                self.extents.insert(
                    offset,
                    Extent {
                        len: from - offset,
                        ..extent
                    },
                );
            }
            if end > to {
                let arena = extent.arena.map(|a| a + (to - offset));
                self.extents.insert(
                    to,
                    Extent {
                        len: end - to,
                        arena,
                        ..extent
                    },
                );
            }
        }
    }

    fn put(&mut self, offset: u64, len: u64, arena: Option<u64>) {
        let Some(end) = offset.checked_add(len).filter(|_| len > 0) else {
            return;
        };
        self.carve(offset, end);
        self.unstage(offset, end);
        self.grow(end);
        self.extents.insert(
            offset,
            Extent {
                len,
                arena,
                sealed: false,
            },
        );
    }

    /// Blocks that touch a range which was changed are no longer what the file holds.
    fn unstage(&mut self, from: u64, to: u64) {
        self.blocks
            .retain(|_, b| b.offset + b.len <= from || to <= b.offset);
    }

    fn grow(&mut self, end: u64) {
        if self.size.is_some_and(|(size, _)| size < end) {
            self.size = Some((end, false));
        }
    }

    fn sent(&mut self, id: &[u8]) {
        let Some(block) = self.blocks.get_mut(id) else {
            return;
        };
        block.only = true;
        let (from, to) = (block.offset, block.offset + block.len);
        self.carve(from, to);
        self.grow(to);
    }

    fn resize(&mut self, size: u64) {
        self.carve(size, u64::MAX);
        self.unstage(size, u64::MAX);
        self.size = Some((size, false));
    }

    fn seal(&mut self) {
        self.extents.values_mut().for_each(|e| e.sealed = true);
        self.size = self.size.map(|(size, _)| (size, true));
        if let Some((_, sealed)) = &mut self.metadata {
            *sealed = true;
        }
    }

    fn drop_sealed(&mut self) {
        self.extents.retain(|_, e| !e.sealed);
        self.size = self.size.filter(|(_, sealed)| !sealed);
        self.metadata = self.metadata.take().filter(|(_, sealed)| !sealed);
        // A commit discards every block that it does not name.
        self.blocks.clear();
    }

    /// Records that lead to what is sealed, or to the rest.
    fn records(&self, node: u64, sealed: bool, out: &mut Vec<Record>) {
        if let Some((metadata, _)) = self.metadata.as_ref().filter(|(_, s)| *s == sealed) {
            out.push(Record::Metadata {
                node,
                metadata: metadata.clone(),
            });
        }
        if let Some((size, _)) = self.size.filter(|(_, s)| *s == sealed) {
            out.push(Record::Size { node, size });
        }
        for (offset, e) in self.extents.iter().filter(|(_, e)| e.sealed == sealed) {
            out.push(match e.arena {
                Some(arena) => Record::Dirty {
                    node,
                    offset: *offset,
                    len: e.len,
                    arena,
                },
                None => Record::Hole {
                    node,
                    offset: *offset,
                    len: e.len,
                },
            });
        }
    }

    /// Records that lead to the blocks.
    fn block_records(&self, node: u64, out: &mut Vec<Record>) {
        for (id, b) in &self.blocks {
            out.push(Record::Block {
                node,
                offset: b.offset,
                len: b.len,
                id: id.clone(),
            });
            if b.only {
                out.push(Record::Sent { node, id: id.clone() });
            }
        }
    }
}

pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    let head = out.len();
    out.extend_from_slice(&[0; 8]);
    match record {
        Record::Node { id, parent, name } => {
            out.push(1);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&parent.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        Record::Forget { id } => {
            out.push(2);
            out.extend_from_slice(&id.to_le_bytes());
        }
        Record::Handle {
            fh,
            node,
            flags,
            generation,
        } => {
            out.push(3);
            out.extend_from_slice(&fh.to_le_bytes());
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&flags.to_le_bytes());
            out.extend_from_slice(generation.as_bytes());
        }
        Record::Release { fh } => {
            out.push(4);
            out.extend_from_slice(&fh.to_le_bytes());
        }
        Record::Reply {
            unique,
            errno,
            node,
            fh,
        } => {
            out.push(5);
            out.extend_from_slice(&unique.to_le_bytes());
            out.extend_from_slice(&errno.to_le_bytes());
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&fh.to_le_bytes());
        }
        Record::Dirty {
            node,
            offset,
            len,
            arena,
        } => numbers(out, 6, &[*node, *offset, *len, *arena]),
        Record::Hole { node, offset, len } => numbers(out, 7, &[*node, *offset, *len]),
        Record::Size { node, size } => numbers(out, 8, &[*node, *size]),
        Record::Block {
            node,
            offset,
            len,
            id,
        } => {
            numbers(out, 9, &[*node, *offset, *len]);
            out.extend_from_slice(id);
        }
        Record::BeginCommit { node } => numbers(out, 10, &[*node]),
        Record::Sent { node, id } => {
            numbers(out, 13, &[*node]);
            out.extend_from_slice(id);
        }
        Record::Unstaged { node, id } => {
            numbers(out, 14, &[*node]);
            out.extend_from_slice(id);
        }
        Record::Metadata { node, metadata } => {
            numbers(out, 15, &[*node]);
            for text in metadata.iter().flat_map(|(name, value)| [name, value]) {
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        Record::Discard { node } => numbers(out, 12, &[*node]),
        Record::Committed { node, etag } => {
            numbers(out, 11, &[*node]);
            out.extend_from_slice(etag.as_bytes());
        }
    }
    let body = &out[head + 8..];
    let (len, crc) = (body.len() as u32, CRC.checksum(body));
    out[head..head + 4].copy_from_slice(&len.to_le_bytes());
    out[head + 4..head + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Takes one record off the front; `None` where there is no valid one.
pub(super) fn decode(rest: &mut Fields<'_>) -> Option<Record> {
    let len = rest.u32()? as usize;
    let crc = rest.u32()?;
    if len == 0 || len > MAX_RECORD {
        return None;
    }
    let body = rest.take(len)?;
    if CRC.checksum(body) != crc {
        return None;
    }
    let (tag, body) = body.split_first()?;
    let mut fields = Fields(body);
    Some(match tag {
        1 => Record::Node {
            id: fields.u64()?,
            parent: fields.u64()?,
            name: fields.text()?,
        },
        2 => Record::Forget { id: fields.u64()? },
        3 => Record::Handle {
            fh: fields.u64()?,
            node: fields.u64()?,
            flags: fields.i32()?,
            generation: fields.text()?,
        },
        4 => Record::Release { fh: fields.u64()? },
        5 => Record::Reply {
            unique: fields.u64()?,
            errno: fields.i32()?,
            node: fields.u64()?,
            fh: fields.u64()?,
        },
        6 => Record::Dirty {
            node: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u64()?,
            arena: fields.u64()?,
        },
        7 => Record::Hole {
            node: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u64()?,
        },
        8 => Record::Size {
            node: fields.u64()?,
            size: fields.u64()?,
        },
        9 => {
            let (node, offset, len) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Record::Block {
                node,
                offset,
                len,
                id: fields.0.to_vec(),
            }
        }
        10 => Record::BeginCommit { node: fields.u64()? },
        13 => Record::Sent {
            node: fields.u64()?,
            id: fields.0.to_vec(),
        },
        14 => Record::Unstaged {
            node: fields.u64()?,
            id: fields.0.to_vec(),
        },
        15 => {
            let (node, mut metadata) = (fields.u64()?, BTreeMap::new());
            while !fields.0.is_empty() {
                let name = fields.counted()?;
                metadata.insert(name, fields.counted()?);
            }
            Record::Metadata { node, metadata }
        }
        12 => Record::Discard { node: fields.u64()? },
        11 => Record::Committed {
            node: fields.u64()?,
            etag: fields.text()?,
        },
        _ => return None,
    })
}

/// A tag and numbers behind it.
fn numbers(out: &mut Vec<u8>, tag: u8, fields: &[u64]) {
    out.push(tag);
    fields
        .iter()
        .for_each(|f| out.extend_from_slice(&f.to_le_bytes()));
}

/// Reads fields off the front of a slice.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u32::from_le_bytes(*head))
    }
    fn i32(&mut self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u64::from_le_bytes(*head))
    }
    /// A text behind its length.
    fn counted(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }
    fn text(&mut self) -> Option<String> {
        String::from_utf8(std::mem::take(&mut self.0).to_vec()).ok()
    }
}
