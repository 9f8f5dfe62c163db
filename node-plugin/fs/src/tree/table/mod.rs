//! Which nodes there are, which name leads to which, and what is known to be absent.

pub(crate) mod guard;
mod learn;
mod memory;
mod names;
mod numbers;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blob_client::Properties;

use self::numbers::Numbers;
use super::attrs::{self, Kind};
use super::names::join;
use super::node::{Node, NodeId, ROOT, State};
use crate::budget::Permit;
use crate::journal::log::Log;
use crate::journal::record::Record;

/// How long a node nobody refers to is kept at least.
const SWEEP_AFTER: Duration = Duration::from_secs(30);
/// Nodes below which nothing is swept.
const FEW_NODES: usize = 16 * 1024;

/// How long answers may be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) attr: Duration,
    pub(crate) entry: Duration,
    pub(crate) negative: Duration,
}

impl Timeouts {
    fn longest(&self) -> Duration {
        self.attr.max(self.entry).max(self.negative)
    }
}

/// When a question to the service was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// Moment of the table's clock.
    pub(crate) stamp: u64,
    /// Moment of the machine's clock.
    pub(crate) at: Instant,
}

/// What the service says about a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    /// The blob of that name.
    pub(crate) blob: Option<&'a Properties>,
    /// Blobs below it.
    pub(crate) prefix: bool,
}

impl Found<'_> {
    /// What is shown: a directory wins over a file of the same name; nothing when neither is there.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let blob = self.blob.map(|p| {
            if p.is_directory {
                Kind::Directory
            } else {
                attrs::decode(&p.metadata).0
            }
        });
        if self.prefix { Some(Kind::Directory) } else { blob }
    }

    /// Properties that belong to the node shown (not those of a file that a directory hides).
    fn own(&self) -> Option<&Properties> {
        self.blob
            .filter(|p| !self.prefix || p.is_directory || attrs::is_folder(&p.metadata))
    }
}

/// What is known about a name without asking.
#[derive(Debug)]
pub(crate) enum Known {
    /// It is there, for this long at least.
    Node(NodeId, Duration),
    /// It is not, for this long at least.
    Absent(Duration),
    /// Ask.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: Arc<Node>,
    /// Directory that the name is in; 0 when no name leads here.
    pub(crate) parent: NodeId,
    pub(crate) name: Arc<str>,
    /// [`State::heap`] as it is charged.
    heap: usize,
    /// References the kernel holds.
    lookups: u64,
    /// Until when the kernel may use the name without asking.
    dentry_until: Option<Instant>,
    /// Directory that the name (which somebody else took away) would be in now.
    superseded_from: Option<NodeId>,
    pub(crate) dir: Option<Box<Dir>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) id: NodeId,
    /// When this mount last made, moved or replaced the name.
    stamp: u64,
    /// Listing that last mentioned it.
    pub(crate) seen: u64,
    /// When the service was asked for the youngest answer that had it, or this mount made it: older answers
    /// say nothing about it.
    known: Instant,
    /// Last listing that had begun when the service said that it is there; 0 for a name that this mount made.
    pub(crate) learnt: u64,
}

#[derive(Debug, Clone, Copy)]
struct Absent {
    until: Instant,
    stamp: u64,
    removed: Instant,
}

/// What is known of a directory's contents.
#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) children: HashMap<Arc<str>, Child>,
    absent: HashMap<Arc<str>, Absent>,
    /// `children` is all there was at this moment.
    pub(crate) complete: Option<Instant>,
    /// Directories among the children.
    pub(crate) subdirectories: u32,
    /// Blobs were seen whose names are no paths.
    pub(crate) hides: bool,
    /// Last listing that had begun when children were let go of.
    swept: u64,
    /// When it had more entries than one page of a listing.
    pub(super) large: Option<Instant>,
    /// Questions about single names since `window`.
    misses: u32,
    window: Option<Instant>,
}

/// The table proper; see [`SharedTable`].
#[derive(Debug)]
pub(crate) struct Table {
    links: HashMap<NodeId, Link>,
    /// Nodes that lost a name in a directory to somebody else, and that the kernel may still hold under it.
    superseded: HashMap<NodeId, HashSet<NodeId>>,
    numbers: Numbers,
    clock: u64,
    listings: u64,
    journal: Arc<Log>,
    pending: Vec<Record>,
    charge: Permit,
    /// Bytes of all names, twice, and of what is charged with the nodes.
    names: usize,
    heaps: usize,
    sweep_at: usize,
    /// When nodes were last let go of for want of memory.
    shed: Option<Instant>,
    /// Nodes that the kernel was asked to forget for want of memory.
    shedding: usize,
    timeouts: Timeouts,
    prefix: String,
    journal_failed: bool,
}

impl Table {
    /// A table with the root in it. `volume` tells it apart from the tables of others.
    pub(crate) fn new(
        volume: &str,
        root: State,
        prefix: String,
        timeouts: Timeouts,
        journal: Arc<Log>,
        charge: Permit,
    ) -> Self {
        let mut table = Self {
            links: HashMap::new(),
            superseded: HashMap::new(),
            numbers: Numbers::new(volume),
            clock: 0,
            listings: 0,
            journal,
            pending: Vec::new(),
            charge,
            names: 0,
            heaps: 0,
            sweep_at: FEW_NODES,
            shed: None,
            shedding: 0,
            timeouts,
            prefix,
            journal_failed: false,
        };
        table.add(0, "".into(), Kind::Directory, root);
        table
    }

    fn write_journal(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // Without memory for the journal the mount goes on; only its take-over would not.
        if let Err(error) = self.journal.append(&self.pending)
            && !std::mem::replace(&mut self.journal_failed, true)
        {
            tracing::error!(%error, "the journal cannot be written");
        }
        self.pending.clear();
    }

    /// Adds a record to what is written when the lock is given back.
    pub(crate) fn record(&mut self, record: Record) {
        self.pending.push(record);
    }

    /// A new moment: answers to questions asked before it are older than a change noted now.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// For a question that is asked now.
    pub(crate) fn ask(&self) -> Asked {
        Asked {
            stamp: self.clock,
            at: Instant::now(),
        }
    }

    pub(crate) fn link(&self, id: NodeId) -> Option<&Link> {
        self.links.get(&id)
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.links.get(&id).map(|l| Arc::clone(&l.node))
    }

    pub(crate) fn dir(&self, id: NodeId) -> Option<&Dir> {
        self.links.get(&id)?.dir.as_deref()
    }

    pub(crate) fn dir_mut(&mut self, id: NodeId) -> Option<&mut Dir> {
        self.links.get_mut(&id)?.dir.as_deref_mut()
    }

    pub(crate) fn child(&self, parent: NodeId, name: &str) -> Option<Arc<Node>> {
        self.node(self.dir(parent)?.children.get(name)?.id)
    }

    /// Known subdirectories, for the link count.
    pub(crate) fn subdirectories(&self, id: NodeId) -> u32 {
        self.dir(id).map_or(0, |d| d.subdirectories)
    }

    /// How many nodes there are.
    pub(crate) fn count(&self) -> usize {
        self.links.len()
    }

    /// Every node (shut-down, tests).
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.links.values().map(|l| Arc::clone(&l.node)).collect()
    }

    /// Ids from the root down to `id`; `None` when no name leads there any more.
    pub(crate) fn path(&self, id: NodeId) -> Option<Vec<NodeId>> {
        let mut path = vec![id];
        let mut at = id;
        while at != ROOT {
            at = self.links.get(&at)?.parent;
            if at == 0 {
                return None;
            }
            path.push(at);
        }
        path.reverse();
        Some(path)
    }

    /// Blob name of a node (of a directory: without trailing `/`).
    pub(crate) fn blob(&self, id: NodeId) -> Option<String> {
        let path = self.path(id)?;
        path.iter().skip(1).try_fold(self.prefix.clone(), |blob, id| {
            Some(join(&blob, &self.links.get(id)?.name))
        })
    }

    /// All nodes below a directory that the table has, the directory not included.
    pub(crate) fn below(&self, id: NodeId) -> Vec<Arc<Node>> {
        let mut found = Vec::new();
        let mut todo = vec![id];
        while let Some(at) = todo.pop() {
            let Some(dir) = self.dir(at) else { continue };
            for child in dir.children.values() {
                found.extend(self.node(child.id));
                todo.push(child.id);
            }
        }
        found
    }

    /// True when `id` is `ancestor` or below it.
    pub(crate) fn is_below(&self, id: NodeId, ancestor: NodeId) -> bool {
        self.path(id).is_some_and(|path| path.contains(&ancestor))
    }

    /// True while something below a directory is only here: the directory is, then, whatever the service
    /// says.
    pub(crate) fn pinned_below(&self, id: NodeId) -> bool {
        let Some(dir) = self.dir(id) else {
            return false;
        };
        dir.children.values().any(|child| {
            let pinned = self
                .links
                .get(&child.id)
                .is_some_and(|link| link.node.state().pinned());
            pinned || self.pinned_below(child.id)
        })
    }
}

#[cfg(test)]
mod tests;
