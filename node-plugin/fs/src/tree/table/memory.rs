//! References of the kernel, and what is forgotten when nobody refers to it or memory is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FEW_NODES, Link, SWEEP_AFTER, Table};
use crate::content::CORE_BYTES;
use crate::journal::record::Record;
use crate::tree::node::{Life, NODE_BYTES, NodeId, ROOT};

impl Table {
    /// The kernel got a reference to the node, and may use its name for so long.
    pub(crate) fn refer(&mut self, id: NodeId, entry_ttl: Duration) {
        if let Some(link) = self.links.get_mut(&id) {
            link.lookups += 1;
            link.dentry_until = Instant::now().checked_add(entry_ttl);
        }
    }

    /// Undoes [`Table::refer`] for an entry that the kernel did not take.
    pub(crate) fn not_taken(&mut self, id: NodeId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.dentry_until = None;
        }
        self.forget(id, 1);
    }

    /// True when the kernel asks for a name that it may still use: for an exclusive creation, the target of a
    /// rename, or a path that led nowhere. What is known here is what it doubts.
    pub(crate) fn revalidates(&self, id: NodeId) -> bool {
        self.links.get(&id).is_some_and(|link| {
            link.dentry_until.is_some_and(|until| until > Instant::now()) && !link.node.state().local()
        })
    }

    /// The kernel dropped references. More than it was given (after a take-over) is no reason to free
    /// anything early.
    pub(crate) fn forget(&mut self, id: NodeId, count: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.lookups = link.lookups.saturating_sub(count);
        if link.lookups == 0 {
            link.dentry_until = None;
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

    pub(super) fn free(&mut self, id: NodeId) {
        if let Some(link) = self.links.remove(&id) {
            self.names = self.names.saturating_sub(2 * link.name.len());
            self.heaps = self.heaps.saturating_sub(link.heap);
            self.stays_superseded(id, link.superseded_from);
            self.record(Record::Forget { id });
            self.numbers.freed(&link.node);
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
    pub(super) fn let_go(&mut self, id: NodeId) -> usize {
        let Some(link) = self.links.get(&id) else {
            return 0;
        };
        let (parent, name) = (link.parent, Arc::clone(&link.name));
        let bytes = weight(link);
        self.leave(parent, &name);
        let listings = self.listings;
        if let Some(dir) = self.dir_mut(parent) {
            // What is not in the table must not look absent.
            dir.complete = None;
            dir.swept = listings;
        }
        self.free(id);
        bytes
    }

    /// Makes `bytes` of room, as far as that is possible: the content of closed files and nodes that nobody
    /// refers to go, what the service was not asked about for longest first. What is in somebody's hands
    /// stays. The bytes freed.
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

    /// Names that only the kernel refers to, as many as take `bytes`, and which it can be asked to forget:
    /// not those of directories, which may be somebody's working directory.
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
            taken += weight(link);
            names.push((link.parent, Arc::clone(&link.name)));
        }
        self.shedding = names.len();
        names
    }
}

/// What the node is charged with.
fn weight(link: &Link) -> usize {
    NODE_BYTES + 2 * link.name.len() + link.heap
}

/// Nobody but the kernel uses the node, and the service knows all about it.
fn is_idle(id: NodeId, link: &Link) -> bool {
    id != ROOT
        && Arc::strong_count(&link.node) == 1
        && link.dir.as_ref().is_none_or(|d| d.children.is_empty())
        && {
            let state = link.node.state();
            match state.life {
                Life::Named(_) => !state.local() && state.handles == 0 && state.hidden.is_none(),
                // Only what has it open knows of it, and the kernel.
                Life::Superseded | Life::Unlinked => false,
            }
        }
}
