//! Which nodes there are, which name leads to which, and what is known to be absent.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use blob_client::Properties;

use super::attrs::{self, Attrs, Kind};
use super::names;
use super::node::{Marker, NODE_BYTES, Node, NodeId, ROOT, State};
use crate::budget::Permit;
use crate::content::CORE_BYTES;
use crate::journal::log::Log;
use crate::journal::record::Record;

/// How long a deleted name is remembered, so that the late answer of an older listing does not bring it back. Longer than any request lives.
const GONE_FOR: Duration = Duration::from_secs(120);
/// Absent names of a directory beyond which expired ones are dropped.
const MANY_ABSENT: usize = 1024;
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
    /// References the kernel holds.
    lookups: u64,
    /// Until when the kernel may use the name without asking.
    told_until: Option<Instant>,
    /// Directory that a name somebody else took away was in.
    lost_from: Option<NodeId>,
    pub(crate) dir: Option<Box<Dir>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) id: NodeId,
    /// When this mount last made, moved or replaced the name.
    stamp: u64,
    /// Listing that last mentioned it.
    pub(crate) seen: u64,
    /// When the service was asked for the youngest answer that had it, or this mount made it: older answers say nothing about it.
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
    /// More entries than one page of a listing.
    pub(crate) large: bool,
    /// Questions about single names since `window`.
    misses: u32,
    window: Option<Instant>,
}

/// The table proper; see [`SharedTable`].
#[derive(Debug)]
pub(crate) struct Table {
    links: HashMap<NodeId, Link>,
    next: NodeId,
    clock: u64,
    listings: u64,
    journal: Arc<Log>,
    pending: Vec<Record>,
    charge: Permit,
    names: usize,
    sweep_at: usize,
    /// When nodes were last let go of for want of memory.
    shed: Option<Instant>,
    /// Nodes that the kernel was asked to forget for want of memory.
    shedding: usize,
    timeouts: Timeouts,
    prefix: String,
    journal_failed: bool,
}

/// The table behind its lock. Taken before any node's state, never across an await.
#[derive(Debug)]
pub(crate) struct SharedTable(Mutex<Table>);

/// Access to the table; what was recorded meanwhile is in the journal when it is dropped.
pub(crate) struct TableGuard<'a>(MutexGuard<'a, Table>);

impl SharedTable {
    pub(crate) fn new(table: Table) -> Self {
        Self(Mutex::new(table))
    }

    pub(crate) fn lock(&self) -> TableGuard<'_> {
        TableGuard(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Deref for TableGuard<'_> {
    type Target = Table;
    fn deref(&self) -> &Table {
        &self.0
    }
}

impl DerefMut for TableGuard<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.0
    }
}

impl Drop for TableGuard<'_> {
    fn drop(&mut self) {
        self.0.write_journal();
    }
}

impl Table {
    /// A table with the root in it.
    pub(crate) fn new(
        root: State,
        prefix: String,
        timeouts: Timeouts,
        journal: Arc<Log>,
        charge: Permit,
    ) -> Self {
        let mut table = Self {
            links: HashMap::new(),
            next: ROOT,
            clock: 0,
            listings: 0,
            journal,
            pending: Vec::new(),
            charge,
            names: 0,
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
            Some(names::join(&blob, &self.links.get(id)?.name))
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

    /// What is known about a name now.
    pub(crate) fn known(&self, parent: NodeId, name: &str) -> Known {
        let Some(dir) = self.dir(parent) else {
            return Known::Unknown;
        };
        if let Some(node) = dir
            .children
            .get(name)
            .and_then(|c| self.links.get(&c.id))
            .map(|l| &l.node)
        {
            let state = node.state();
            if state.local() {
                return Known::Node(node.id, self.timeouts.entry);
            }
            return match self.timeouts.entry.checked_sub(state.validated.elapsed()) {
                Some(left) if !left.is_zero() => Known::Node(node.id, left),
                _ => Known::Unknown,
            };
        }
        let now = Instant::now();
        let listed = dir.complete.map(|at| at + self.timeouts.negative);
        let absent = dir.absent.get(name).map(|a| a.until);
        match listed
            .max(absent)
            .map(|until| until.saturating_duration_since(now))
        {
            Some(left) if !left.is_zero() => Known::Absent(left),
            _ => Known::Unknown,
        }
    }

    /// True when absence is never believed: every answer that nothing is there is the service's.
    pub(crate) fn strict(&self) -> bool {
        self.timeouts.negative.is_zero()
    }

    /// Counts a question about a single name; true when asking for the whole directory is the better question.
    pub(crate) fn missed(&mut self, parent: NodeId) -> bool {
        let window = self.timeouts.longest();
        // A whole listing would take the room that was just made.
        let crowded = self.shed.is_some_and(|at| at.elapsed() < SWEEP_AFTER);
        let Some(dir) = self.dir_mut(parent) else {
            return false;
        };
        if dir.window.is_none_or(|at| at.elapsed() > window) {
            dir.window = Some(Instant::now());
            dir.misses = 0;
        }
        dir.misses += 1;
        dir.misses > 3 && !dir.large && !crowded && !window.is_zero()
    }

    /// A counted question was about a name that is not there. A listing saves the next such question only if absence is believed.
    pub(crate) fn missed_nothing(&mut self, parent: NodeId) {
        let strict = self.strict();
        if let Some(dir) = self.dir_mut(parent).filter(|_| strict) {
            dir.misses = dir.misses.saturating_sub(1);
        }
    }

    fn add(&mut self, parent: NodeId, name: Arc<str>, kind: Kind, state: State) -> Arc<Node> {
        let id = self.next;
        self.next += 1;
        let node = Node::new(id, kind, state);
        self.record(Record::Node {
            id,
            parent,
            name: name.to_string(),
        });
        self.names += 2 * name.len();
        self.links.insert(
            id,
            Link {
                node: Arc::clone(&node),
                parent,
                name,
                lookups: 0,
                told_until: None,
                lost_from: None,
                dir: (kind == Kind::Directory).then(Box::default),
            },
        );
        self.recharge();
        node
    }

    fn recharge(&mut self) {
        let bytes = self.links.len() * NODE_BYTES + self.names;
        // In steps, so that the budget's lock is not taken for every node.
        if bytes.abs_diff(self.charge.bytes()) > 64 * 1024 {
            self.charge.resize(bytes);
        }
    }

    /// A name that this mount makes: a new node. The caller has made sure that the name is free.
    pub(crate) fn create(&mut self, parent: NodeId, name: &str, kind: Kind, state: State) -> Arc<Node> {
        let name: Arc<str> = name.into();
        let stamp = self.tick();
        let node = self.add(parent, Arc::clone(&name), kind, state);
        node.state().stamp = stamp;
        self.enter(parent, name, node.id, kind, stamp);
        if kind == Kind::Directory
            && let Some(dir) = self.dir_mut(node.id)
        {
            dir.complete = Some(Instant::now());
        }
        node
    }

    fn enter(&mut self, parent: NodeId, name: Arc<str>, id: NodeId, kind: Kind, stamp: u64) {
        if let Some(dir) = self.dir_mut(parent) {
            dir.absent.remove(&name);
            dir.subdirectories += u32::from(kind == Kind::Directory);
            let child = Child {
                id,
                stamp,
                seen: 0,
                known: Instant::now(),
                learnt: 0,
            };
            dir.children.insert(name, child);
        }
    }

    /// Takes a name out of its directory; the node stays as long as somebody refers to it.
    fn leave(&mut self, parent: NodeId, name: &str) -> Option<NodeId> {
        let id = self.dir_mut(parent)?.children.remove(name)?.id;
        let kind = self.links.get(&id).map(|l| l.node.kind);
        if let Some(dir) = self.dir_mut(parent) {
            dir.subdirectories = dir
                .subdirectories
                .saturating_sub(u32::from(kind == Some(Kind::Directory)));
        }
        Some(id)
    }

    /// The service says that the name of a node is gone, or something else's.
    fn lose(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.lost_from = Some(link.parent).filter(|parent| *parent != 0);
            link.node.state().lost = true;
        }
        self.orphan(id);
    }

    /// A file that lost its name to a newer version, and that nobody has open any more, gets it back, unless the kernel knows the other node. (It
    /// does not where it comes by a mount of this one file, and would never look again.) True when that is so.
    pub(crate) fn restore(&mut self, id: NodeId) -> bool {
        let Some((link, parent)) = self.links.get(&id).and_then(|l| Some((l, l.lost_from?))) else {
            return false;
        };
        let name = Arc::clone(&link.name);
        {
            let state = link.node.state();
            if !state.lost || state.handles > 0 || link.node.kind != Kind::File || self.path(parent).is_none()
            {
                return false;
            }
        }
        if let Some(other) = self.dir(parent).and_then(|d| d.children.get(&name)) {
            let idle = self.links.get(&other.id).is_some_and(|l| {
                let state = l.node.state();
                l.lookups == 0 && l.node.kind == Kind::File && state.handles == 0 && !state.pinned()
            });
            if !idle {
                return false;
            }
        }
        if let Some(other) = self.leave(parent, &name) {
            self.orphan(other);
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.lost_from = None;
            let mut state = link.node.state();
            (state.lost, state.unlinked) = (false, false);
            (state.content, state.etag, state.cached) = (None, None, false);
        }
        let stamp = self.tick();
        self.place(id, parent, &name, stamp);
        true
    }

    fn orphan(&mut self, id: NodeId) {
        self.record(Record::Node {
            id,
            parent: 0,
            name: String::new(),
        });
        if let Some(link) = self.links.get_mut(&id) {
            link.parent = 0;
            let node = Arc::clone(&link.node);
            node.state().unlinked = true;
        }
        self.reap(id);
    }

    /// The blob of a name was replaced by a request that failed all the same: what leads there is to be asked for anew.
    pub(crate) fn overwritten(&mut self, parent: NodeId, name: &str) {
        if let Some(id) = self.leave(parent, name) {
            self.lose(id);
        }
    }

    /// A whole answer of the service about one file, asked for at `at`, had its name.
    pub(crate) fn confirm(&mut self, parent: NodeId, name: &str, at: Instant) {
        if let Some(child) = self.dir_mut(parent).and_then(|d| d.children.get_mut(name)) {
            child.known = child.known.max(at);
        }
    }

    /// True while something below a directory is only here: the directory is, then, whatever the service says.
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

    /// A name that this mount has removed.
    pub(crate) fn remove(&mut self, parent: NodeId, name: &str) {
        let stamp = self.tick();
        let id = self.leave(parent, name);
        self.note_absent(parent, name, stamp);
        if let Some(id) = id {
            self.orphan(id);
        }
    }

    /// Nothing is at this name. `stamp`: when this mount removed it; 0 when the service said so.
    fn note_absent(&mut self, parent: NodeId, name: &str, stamp: u64) {
        let now = Instant::now();
        let until = now + self.timeouts.negative;
        let strict = self.strict();
        let Some(dir) = self.dir_mut(parent) else {
            return;
        };
        if stamp == 0 {
            if let Some(known) = dir.absent.get_mut(name) {
                known.until = until;
                return;
            }
            if strict {
                return;
            }
        }
        if dir.absent.len() >= MANY_ABSENT && dir.absent.len().is_power_of_two() {
            dir.absent
                .retain(|_, a| a.until > now || (a.stamp > 0 && a.removed.elapsed() < GONE_FOR));
        }
        dir.absent.insert(
            name.into(),
            Absent {
                until,
                stamp,
                removed: now,
            },
        );
    }

    /// A name that this mount has moved, over whatever was there.
    pub(crate) fn rename(&mut self, parent: NodeId, name: &str, new_parent: NodeId, new_name: &str) {
        let Some(id) = self.leave(parent, name) else {
            return;
        };
        let stamp = self.tick();
        self.note_absent(parent, name, stamp);
        if let Some(replaced) = self.leave(new_parent, new_name)
            && replaced != id
        {
            self.orphan(replaced);
        }
        self.place(id, new_parent, new_name, stamp);
    }

    /// Two names that this mount has exchanged.
    pub(crate) fn exchange(&mut self, parent: NodeId, name: &str, new_parent: NodeId, new_name: &str) {
        let (Some(a), Some(b)) = (self.leave(parent, name), self.leave(new_parent, new_name)) else {
            return;
        };
        let stamp = self.tick();
        self.place(a, new_parent, new_name, stamp);
        self.place(b, parent, name, stamp);
    }

    fn place(&mut self, id: NodeId, parent: NodeId, name: &str, stamp: u64) {
        let name: Arc<str> = name.into();
        self.record(Record::Node {
            id,
            parent,
            name: name.to_string(),
        });
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        self.names = (self.names + 2 * name.len()).saturating_sub(2 * link.name.len());
        link.parent = parent;
        link.name = Arc::clone(&name);
        link.node.state().stamp = stamp;
        let kind = link.node.kind;
        self.enter(parent, name, id, kind, stamp);
    }

    /// Takes over the answer to a question about one name; the node, if there is one to show.
    pub(crate) fn learn(
        &mut self,
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
    ) -> Option<NodeId> {
        self.learn_in(parent, name, found, asked, 0)
    }

    fn learn_in(
        &mut self,
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
        seen: u64,
    ) -> Option<NodeId> {
        let child = self.dir(parent)?.children.get(name).copied();
        let Some(child) = child else {
            if self
                .dir(parent)?
                .absent
                .get(name)
                .is_some_and(|a| a.stamp > asked.stamp)
            {
                return None;
            }
            let Some(kind) = found.kind() else {
                if seen == 0 {
                    self.note_absent(parent, name, 0);
                }
                return None;
            };
            let mut state = match found.own() {
                Some(properties) => State::of(properties, asked.at),
                None => self.implicit(asked.at),
            };
            state.stamp = 0;
            let name: Arc<str> = name.into();
            let id = self.add(parent, Arc::clone(&name), kind, state).id;
            self.enter(parent, Arc::clone(&name), id, kind, 0);
            let learnt = self.listings;
            if let Some(child) = self.dir_mut(parent).and_then(|d| d.children.get_mut(&name)) {
                child.seen = seen;
                child.known = asked.at;
                child.learnt = learnt;
            }
            return Some(id);
        };
        let already_seen = seen != 0 && child.seen == seen;
        if let Some(child) = self.dir_mut(parent).and_then(|d| d.children.get_mut(name)) {
            child.seen = seen.max(child.seen);
        }
        let node = self.node(child.id)?;
        let (local, pinned, stamp, superseded) = {
            let state = node.state();
            let superseded = found.own().is_some_and(|p| state.superseded_by(&p.etag));
            (state.local(), state.pinned(), state.stamp, superseded)
        };
        // This mount changed the name or the node after the question was asked, or is about to; or a younger answer is here already.
        if pinned || child.stamp > asked.stamp || stamp > asked.stamp || child.known > asked.at {
            return Some(node.id);
        }
        // Services differ in the order of a blob and the directory of the same name: the directory is shown either way.
        let both = already_seen && node.kind == Kind::Directory;
        if both && found.kind().is_some_and(|kind| kind != Kind::Directory) {
            return Some(node.id);
        }
        match found.kind() {
            // A reader keeps the version it opened: the new one is another node, so that the kernel does not take one's pages and size for
            // the other's.
            Some(kind) if kind == node.kind && (local || !superseded) => {
                self.confirm(parent, name, asked.at);
                let mut state = node.state();
                match found.own() {
                    Some(properties) if !local => state.adopt(properties, asked.at),
                    // Somebody writes here, on top of the version that was opened.
                    Some(_) => {}
                    // The marker came earlier in the same listing.
                    None if already_seen => {}
                    None => {
                        state.validated = asked.at;
                        if state.marker == Marker::Blob {
                            // Somebody deleted the marker; what is below still makes it a directory.
                            state.marker = Marker::Implicit;
                            state.etag = None;
                            state.attrs = Attrs::default();
                        }
                    }
                }
                Some(node.id)
            }
            other if other != Some(node.kind) && self.pinned_below(node.id) => {
                self.confirm(parent, name, asked.at);
                let mut state = node.state();
                state.validated = asked.at;
                state.marker = Marker::Implicit;
                state.etag = None;
                Some(node.id)
            }
            other => {
                // Gone, or something else now: the node loses its name.
                self.leave(parent, name);
                self.lose(node.id);
                match other {
                    Some(_) => self.learn_in(parent, name, found, asked, seen),
                    None => {
                        self.note_absent(parent, name, 0);
                        None
                    }
                }
            }
        }
    }

    /// State of a directory that only blobs below it make one.
    fn implicit(&self, at: Instant) -> State {
        let now = self
            .links
            .get(&ROOT)
            .map_or(SystemTime::now(), |root| root.node.state().modified);
        let mut state = State::fresh(Attrs::default(), now);
        state.validated = at;
        state
    }

    /// Begins to take over a whole listing.
    pub(crate) fn begin_listing(&mut self) -> u64 {
        self.listings += 1;
        self.listings
    }

    /// One entry of a listing.
    pub(crate) fn list_entry(
        &mut self,
        listing: u64,
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
    ) -> Option<NodeId> {
        self.learn_in(parent, name, found, asked, listing)
    }

    /// All entries of a listing that began with the question `first` were taken over: what it did not mention is gone.
    pub(crate) fn end_listing(&mut self, listing: u64, parent: NodeId, first: Asked) {
        let Some(dir) = self.dir(parent) else {
            return;
        };
        let gone: Vec<(Arc<str>, NodeId)> = dir
            .children
            .iter()
            // What was learnt after the listing began is younger than its first pages.
            .filter(|(_, c)| c.seen < listing && c.stamp <= first.stamp && c.known <= first.at)
            .filter(|(_, c)| {
                self.links.get(&c.id).is_none_or(|l| {
                    let state = l.node.state();
                    !state.pinned() && state.stamp <= first.stamp
                }) && !self.pinned_below(c.id)
            })
            .map(|(name, c)| (Arc::clone(name), c.id))
            .collect();
        for (name, id) in gone {
            self.leave(parent, &name);
            self.lose(id);
        }
        // Not if what it mentioned was let go of meanwhile.
        if let Some(dir) = self.dir_mut(parent).filter(|d| d.swept < listing) {
            dir.complete = Some(first.at);
        }
        // Listings are what fills the table with nodes that nobody refers to; this one's are too young to be swept.
        if self.links.len() > self.sweep_at {
            self.sweep();
        }
    }

    /// True while a whole listing of the directory may still be used for its entries.
    pub(crate) fn listing_fresh(&self, id: NodeId) -> bool {
        self.dir(id)
            .and_then(|d| d.complete)
            .is_some_and(|at| at.elapsed() < self.timeouts.entry.min(self.timeouts.negative))
    }

    /// Nothing cached about the contents of a directory is to be used any more (a move failed half-way).
    pub(crate) fn distrust(&mut self, id: NodeId) {
        if let Some(dir) = self.dir_mut(id) {
            dir.complete = None;
            dir.absent.clear();
            let children: Vec<_> = dir.children.values().map(|c| c.id).collect();
            let old = Instant::now().checked_sub(self.timeouts.longest());
            for child in children {
                if let (Some(link), Some(old)) = (self.links.get(&child), old) {
                    link.node.state().validated = old;
                }
            }
        }
    }

    /// The kernel got a reference to the node, and may use its name for so long.
    pub(crate) fn refer(&mut self, id: NodeId, entry_ttl: Duration) {
        if let Some(link) = self.links.get_mut(&id) {
            link.lookups += 1;
            link.told_until = Instant::now().checked_add(entry_ttl);
        }
    }

    /// Undoes [`Table::refer`] for an entry that the kernel did not take.
    pub(crate) fn not_taken(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.told_until = None;
        }
        self.forget(id, 1);
    }

    /// True when the kernel asks for a name that it may still use: for an exclusive creation, the target of a rename, or a path that led
    /// nowhere. What is known here is what it doubts.
    pub(crate) fn doubted(&self, id: NodeId) -> bool {
        self.links.get(&id).is_some_and(|link| {
            link.told_until.is_some_and(|until| until > Instant::now()) && !link.node.state().local()
        })
    }

    /// The kernel dropped references. More than it was given (after a take-over) is no reason to free anything early.
    pub(crate) fn forget(&mut self, id: NodeId, count: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.lookups = link.lookups.saturating_sub(count);
        if link.lookups == 0 {
            link.told_until = None;
            self.reap(id);
            if self.shedding > 0 {
                self.shedding -= 1;
                if self.links.get(&id).is_some_and(|link| is_idle(id, link)) {
                    self.let_go(id);
                }
            }
        }
    }

    /// Frees a node without a name when nobody refers to it.
    pub(crate) fn reap(&mut self, id: NodeId) {
        if let Some(link) = self.links.get(&id)
            && link.parent == 0
            && id != ROOT
            && link.lookups == 0
            && link.node.state().handles == 0
        {
            self.free(id);
        }
        if self.links.len() > self.sweep_at {
            self.sweep();
        }
    }

    fn free(&mut self, id: NodeId) {
        if let Some(link) = self.links.remove(&id) {
            self.names = self.names.saturating_sub(2 * link.name.len());
            self.record(Record::Forget { id });
            // Children of a directory that is gone are gone.
            for child in link.dir.map(|d| d.children).unwrap_or_default().into_values() {
                self.orphan(child.id);
            }
            self.recharge();
        }
    }

    /// Frees nodes that neither the kernel nor a handle refers to and whose attributes have expired.
    pub(crate) fn sweep(&mut self) {
        // Long enough for whoever is just reading a listing.
        let expired = self.timeouts.longest().max(SWEEP_AFTER);
        let idle: Vec<NodeId> = self
            .links
            .iter()
            .filter(|(id, link)| {
                is_idle(**id, link) && link.lookups == 0 && link.node.state().validated.elapsed() > expired
            })
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.let_go(id);
        }
        self.sweep_at = (2 * self.links.len()).max(FEW_NODES);
    }

    /// Forgets a node that the service can be asked for again. The bytes that it took.
    fn let_go(&mut self, id: NodeId) -> usize {
        let Some(link) = self.links.get(&id) else {
            return 0;
        };
        let (parent, name) = (link.parent, Arc::clone(&link.name));
        self.leave(parent, &name);
        let listings = self.listings;
        if let Some(dir) = self.dir_mut(parent) {
            // What is not in the table must not look absent.
            dir.complete = None;
            dir.swept = listings;
        }
        self.free(id);
        NODE_BYTES + 2 * name.len()
    }

    /// Makes `bytes` of room, as far as that is possible: the content of closed files and nodes that nobody refers to go, what the service was not
    /// asked about for longest first. What is in somebody's hands stays. The bytes freed.
    pub(crate) fn shed(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        let mut idle = Vec::new();
        let mut contents = Vec::new();
        for (id, link) in &self.links {
            if !is_idle(*id, link) {
                continue;
            }
            let mut state = link.node.state();
            contents.extend(state.content.take());
            if link.lookups == 0 {
                idle.push((state.validated, *id));
            }
        }
        freed += contents.len() * CORE_BYTES;
        drop(contents);
        idle.sort_unstable();
        for (_, id) in idle {
            if freed >= bytes {
                break;
            }
            freed += self.let_go(id);
        }
        if freed > 0 {
            self.shed = Some(Instant::now());
            self.sweep_at = (2 * self.links.len()).max(FEW_NODES);
        }
        freed
    }

    /// Names that only the kernel refers to, as many as take `bytes`, and which it can be asked to forget: not those of directories, which may be
    /// somebody's working directory.
    pub(crate) fn kernels(&mut self, bytes: usize) -> Vec<(NodeId, Arc<str>)> {
        let mut held: Vec<_> = self
            .links
            .iter()
            .filter(|(id, link)| {
                is_idle(**id, link) && link.lookups > 0 && link.dir.is_none() && link.parent != 0
            })
            .map(|(id, link)| (link.node.state().validated, *id))
            .collect();
        held.sort_unstable();
        let mut names = Vec::new();
        let mut taken = 0;
        for (_, id) in held {
            let Some(link) = self.links.get(&id).filter(|_| taken < bytes) else {
                break;
            };
            taken += NODE_BYTES + 2 * link.name.len();
            names.push((link.parent, Arc::clone(&link.name)));
        }
        self.shedding = names.len();
        names
    }
}

/// Nobody but the kernel uses the node, and the service knows all about it.
fn is_idle(id: NodeId, link: &Link) -> bool {
    id != ROOT
        && Arc::strong_count(&link.node) == 1
        && link.dir.as_ref().is_none_or(|d| d.children.is_empty())
        && {
            let state = link.node.state();
            !state.local() && state.handles == 0 && state.hidden.is_none()
        }
}

#[cfg(test)]
mod tests;
