//! Names enter, leave and move: what this mount does to them, and what the service says has become of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Absent, Child, Link, Table};
use crate::journal::record::Record;
use crate::tree::attrs::Kind;
use crate::tree::names::join;
use crate::tree::node::{Debt, Life, NODE_BYTES, Node, NodeId, ROOT, State};

/// How long a deleted name is remembered, so that the late answer of an older listing does not bring it back.
/// Longer than any request lives.
const GONE_FOR: Duration = Duration::from_secs(120);
/// Absent names of a directory beyond which expired ones are dropped.
const MANY_ABSENT: usize = 1024;

impl Table {
    /// The number of a new node of this name.
    fn number(&mut self, parent: NodeId, name: &str) -> NodeId {
        if parent == 0 {
            return ROOT;
        }
        let blob = join(&self.blob(parent).unwrap_or_default(), name);
        let links = &self.links;
        self.numbers.number(&blob, |id| links.contains_key(&id))
    }

    pub(super) fn add(&mut self, parent: NodeId, name: Arc<str>, kind: Kind, state: State) -> Arc<Node> {
        let id = self.number(parent, &name);
        let heap = state.heap();
        let node = Node::new(id, kind, state);
        self.record(Record::Node {
            id,
            parent,
            name: name.to_string(),
        });
        self.names += 2 * name.len();
        self.heaps += heap;
        self.links.insert(
            id,
            Link {
                node: Arc::clone(&node),
                parent,
                name,
                heap,
                lookups: 0,
                dentry_until: None,
                superseded_from: None,
                dir: (kind == Kind::Directory).then(Box::default),
            },
        );
        self.recharge();
        node
    }

    /// What the service keeps with a node may have changed: it is charged as it is now.
    pub(crate) fn weigh(&mut self, id: NodeId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let heap = link.node.state().heap();
        let before = std::mem::replace(&mut link.heap, heap);
        if heap != before {
            self.heaps = (self.heaps + heap).saturating_sub(before);
            self.recharge();
        }
    }

    pub(super) fn recharge(&mut self) {
        let bytes = self.links.len() * NODE_BYTES + self.names + self.heaps;
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

    pub(super) fn enter(&mut self, parent: NodeId, name: Arc<str>, id: NodeId, kind: Kind, stamp: u64) {
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
    pub(super) fn leave(&mut self, parent: NodeId, name: &str) -> Option<NodeId> {
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
    pub(super) fn supersede(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            let parent = link.parent;
            link.node.state().life = Life::Superseded;
            if parent != 0 {
                link.superseded_from = Some(parent);
                self.superseded.entry(parent).or_default().insert(id);
            }
        }
        self.orphan(id);
    }

    /// Nodes that lost this name to somebody else.
    fn superseded_at(&self, parent: NodeId, name: &str) -> Vec<NodeId> {
        let all = self.superseded.get(&parent).into_iter().flatten().copied();
        all.filter(|id| self.links.get(id).is_some_and(|link| &*link.name == name))
            .collect()
    }

    /// The node is not one that may have its name back any more.
    pub(super) fn stays_superseded(&mut self, id: NodeId, from: Option<NodeId>) {
        let Some(parent) = from else { return };
        if let Some(nodes) = self.superseded.get_mut(&parent) {
            nodes.remove(&id);
            if nodes.is_empty() {
                self.superseded.remove(&parent);
            }
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.superseded_from = None;
        }
    }

    /// This mount has moved a name. The kernel took along what it holds under it, which may be a node that
    /// lost the name to what was moved: that name is the one it may have back, and no other file's.
    fn superseded_move(&mut self, nodes: Vec<NodeId>, parent: NodeId, name: &str) {
        let name: Arc<str> = name.into();
        for id in nodes {
            let from = self.links.get(&id).and_then(|link| link.superseded_from);
            self.stays_superseded(id, from);
            if let Some(link) = self.links.get_mut(&id) {
                self.names = (self.names + 2 * name.len()).saturating_sub(2 * link.name.len());
                link.name = Arc::clone(&name);
                link.superseded_from = Some(parent);
                self.superseded.entry(parent).or_default().insert(id);
            }
        }
    }

    /// A file that lost its name to a newer version, and that nobody has open any more, gets it back, unless
    /// the kernel knows the other node. (It does not where it comes by a mount of this one file, and would
    /// never look again.) True when that is so.
    pub(crate) fn restore(&mut self, id: NodeId) -> bool {
        let Some((link, parent)) = self.links.get(&id).and_then(|l| Some((l, l.superseded_from?))) else {
            return false;
        };
        let name = Arc::clone(&link.name);
        {
            let state = link.node.state();
            if state.life != Life::Superseded
                || state.handles > 0
                || link.node.kind != Kind::File
                || self.path(parent).is_none()
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
        self.stays_superseded(id, Some(parent));
        if let Some(link) = self.links.get_mut(&id) {
            let mut state = link.node.state();
            state.life = Life::Named(Debt::Nothing);
            (state.content, state.etag, state.cached) = (None, None, false);
        }
        let stamp = self.tick();
        self.place(id, parent, &name, stamp);
        true
    }

    pub(super) fn orphan(&mut self, id: NodeId) {
        self.record(Record::Node {
            id,
            parent: 0,
            name: String::new(),
        });
        if let Some(link) = self.links.get_mut(&id) {
            link.parent = 0;
            let node = Arc::clone(&link.node);
            let mut state = node.state();
            if let Life::Named(_) = state.life {
                state.life = Life::Unlinked;
            }
            drop(state);
        }
        self.reap(id);
    }

    /// The blob of a name was replaced by a request that failed all the same: what leads there is to be asked
    /// for anew.
    pub(crate) fn overwritten(&mut self, parent: NodeId, name: &str) {
        if let Some(id) = self.leave(parent, name) {
            self.supersede(id);
        }
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
    pub(super) fn note_absent(&mut self, parent: NodeId, name: &str, stamp: u64) {
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
        let moved = self.superseded_at(parent, name);
        for replaced in self.superseded_at(new_parent, new_name) {
            self.stays_superseded(replaced, Some(new_parent));
        }
        self.superseded_move(moved, new_parent, new_name);
        self.place(id, new_parent, new_name, stamp);
    }

    /// Two names that this mount has exchanged.
    pub(crate) fn exchange(&mut self, parent: NodeId, name: &str, new_parent: NodeId, new_name: &str) {
        let (Some(a), Some(b)) = (self.leave(parent, name), self.leave(new_parent, new_name)) else {
            return;
        };
        let (here, there) = (
            self.superseded_at(parent, name),
            self.superseded_at(new_parent, new_name),
        );
        self.superseded_move(here, new_parent, new_name);
        self.superseded_move(there, parent, name);
        let stamp = self.tick();
        self.place(a, new_parent, new_name, stamp);
        self.place(b, parent, name, stamp);
    }

    pub(super) fn place(&mut self, id: NodeId, parent: NodeId, name: &str, stamp: u64) {
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
}
