//! How far an open directory has been read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::attrs::Kind;
use super::node::{Node, NodeId};
use super::table::{Asked, Table};
use crate::budget::{Budget, Permit};

/// What the service gives at most per page.
pub(super) const PAGE_RESULTS: u32 = 5000;
/// What an entry of an open directory takes, with its name.
const ENTRY_BYTES: usize = size_of::<Listed>() + size_of::<(u64, Arc<Node>)>() + 64;

/// One entry of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: Arc<str>,
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
    /// Where reading goes on after this entry.
    pub(crate) next: u64,
}

/// How far an open directory has been read: a snapshot that grows page by page, so offsets stay what they
/// were. Of a large directory, what was read is forgotten; who goes back makes it read anew.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Entries that were forgotten.
    pub(super) start: u64,
    pub(super) entries: Vec<Listed>,
    /// Nodes of entries that were not handed over yet, with the offset behind them: they stay in the table.
    pins: VecDeque<(u64, Arc<Node>)>,
    charge: Option<Permit>,
    /// Names of which an item said that they are directories: a marker and what is below it are one.
    pub(super) directories: HashSet<Arc<str>>,
    /// What the names of the listing begin with: the directory may get another name meanwhile.
    below: String,
    /// The last item of the last page, without `below`.
    last: String,
    /// After a change of `below` the listing begins anew: up to here its items were handed over.
    repeats: String,
    pub(super) marker: Option<String>,
    pub(super) first: Option<Asked>,
    pub(super) listing: u64,
    pub(super) done: bool,
}

impl Cursor {
    pub(super) fn entry(&mut self, name: Arc<str>, id: NodeId, kind: Kind) {
        let next = self.start + self.entries.len() as u64 + 1;
        self.entries.push(Listed { name, id, kind, next });
    }

    pub(super) fn push(&mut self, table: &Table, parent: NodeId, id: NodeId) {
        // Links of a name that this mount has moved meanwhile lead elsewhere.
        let Some(link) = table.link(id).filter(|l| l.parent == parent) else {
            return;
        };
        if link.node.kind == Kind::Directory && !self.directories.insert(Arc::clone(&link.name)) {
            return;
        }
        self.entry(Arc::clone(&link.name), id, link.node.kind);
        let behind = self.start + self.entries.len() as u64;
        self.pins.push_back((behind, Arc::clone(&link.node)));
    }

    /// The listing has begun, with the question `asked` if no earlier one; its first question.
    pub(super) fn begun(&mut self, table: &mut Table, asked: Asked) -> Asked {
        if self.first.is_none() {
            self.listing = table.begin_listing();
        }
        *self.first.get_or_insert(asked)
    }

    /// The next page is asked for below this name. Its marker does not go for another name: then the listing
    /// begins anew, and what was handed over is not handed over again.
    pub(super) fn goes_on_below(&mut self, below: &str) {
        if self.below == below {
            return;
        }
        if self.marker.take().is_some() {
            self.first = None;
            self.repeats = std::mem::take(&mut self.last);
        }
        below.clone_into(&mut self.below);
    }

    /// Notes an item by its name without `below`; true when it was handed over before the listing began anew.
    pub(super) fn repeated(&mut self, item: &str) -> bool {
        item.clone_into(&mut self.last);
        !self.repeats.is_empty() && *item <= *self.repeats
    }

    /// Reading goes on at `offset`.
    pub(super) fn handed_over(&mut self, offset: u64) {
        while self.pins.front().is_some_and(|(behind, _)| *behind <= offset) {
            self.pins.pop_front();
        }
        let read = offset.saturating_sub(self.start).min(self.entries.len() as u64);
        if read >= u64::from(PAGE_RESULTS) {
            self.entries.drain(..read as usize);
            self.start += read;
        }
    }

    pub(super) fn recharge(&mut self, budget: &Arc<Budget>) {
        let bytes = self.entries.len() * ENTRY_BYTES;
        match &mut self.charge {
            Some(charge) => charge.resize(bytes),
            None => self.charge = Some(budget.charge_metadata(bytes)),
        }
    }

    /// Appends the children that no page mentioned (files not committed yet), and ends the listing.
    pub(super) fn finish(&mut self, table: &Table, parent: NodeId) {
        let known: HashSet<NodeId> = self.entries.iter().map(|e| e.id).collect();
        // Of what was forgotten, the table knows whether a page mentioned it.
        let (listing, forgotten) = (self.listing, self.start > 0);
        let mut unlisted: Vec<_> = table
            .dir(parent)
            .into_iter()
            .flat_map(|d| d.children.iter())
            .filter(|(_, child)| !known.contains(&child.id))
            // What was let go of and found again was mentioned by its earlier node.
            .filter(|(_, child)| listing == 0 || child.learnt < listing)
            .filter(|(_, child)| !forgotten || child.seen < listing)
            .map(|(name, child)| (Arc::clone(name), child.id))
            .collect();
        unlisted.sort();
        for (_, id) in unlisted {
            self.push(table, parent, id);
        }
        self.done = true;
    }
}
