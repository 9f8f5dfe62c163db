//! What the records of a journal add up to.

use std::collections::{BTreeMap, VecDeque};

use super::record::Record;

/// Replies kept: the kernel has at most `max_background` plus one per waiting thread in flight.
const REPLIES: usize = 1024;

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
                self.next_node = self.next_node.max(id.saturating_add(1));
                self.nodes.insert(id, (parent, name));
            }
            Record::Forget { id } => {
                self.next_node = self.next_node.max(id.saturating_add(1));
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
                self.next_handle = self.next_handle.max(fh.saturating_add(1));
                self.handles.insert(fh, (node, flags, generation));
            }
            Record::Release { fh } => {
                self.next_handle = self.next_handle.max(fh.saturating_add(1));
                self.handles.remove(&fh);
            }
            Record::Dirty {
                node,
                offset,
                len,
                arena,
            } => self.put(node, offset, len, Some(arena)),
            Record::Hole { node, offset, len } => self.put(node, offset, len, None),
            Record::Size { node, size } => self.file(node).resize(size),
            Record::Block {
                node,
                offset,
                len,
                id,
            } if offset.checked_add(len).is_some() => {
                self.file(node).blocks.insert(
                    id,
                    Block {
                        offset,
                        len,
                        only: false,
                    },
                );
            }
            // No file has such a range.
            Record::Block { .. } => {}
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

    /// Ranges that no file or no memory has are left out.
    fn put(&mut self, node: u64, offset: u64, len: u64, arena: Option<u64>) {
        let held = arena.is_none_or(|arena| arena.checked_add(len).is_some());
        if let Some(end) = offset.checked_add(len).filter(|_| len > 0 && held) {
            self.file(node).put(offset, end, arena);
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

/// What the log knows of a file's data that the service does not have. *Sealed* is what the commit under way
/// contains.
///
/// Where there is an extent, it is the file's content. Where there is none but a block with `only`, the block
/// is. Other blocks are known so that nobody stages anything else under their ids.
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

    fn put(&mut self, offset: u64, end: u64, arena: Option<u64>) {
        self.carve(offset, end);
        self.unstage(offset, end);
        self.grow(end);
        self.extents.insert(
            offset,
            Extent {
                len: end - offset,
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
