//! Answers of the service: what is known about a name, and what an answer or a listing changes about it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Asked, Found, Known, SWEEP_AFTER, Table};
use crate::tree::attrs::{Attrs, Kind};
use crate::tree::node::{Marker, NodeId, ROOT, State};

/// How long a directory is taken for a large one: then it is looked again whether it still is.
const LARGE_FOR: Duration = Duration::from_secs(300);
/// Questions about single names that are never worth a listing.
const FEW_QUESTIONS: usize = 3;
/// Entries of a listing that cost about as much as a question.
const ENTRIES_PER_QUESTION: usize = 64;

impl Table {
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

    /// A directory turned out to have more entries than one page of a listing.
    pub(crate) fn note_large(&mut self, id: NodeId) {
        if let Some(dir) = self.dir_mut(id) {
            dir.large = Some(Instant::now());
        }
    }

    /// Counts a question about a single name; true when asking for the whole directory is the better
    /// question: it answers many others, and is dearer the more entries there are.
    pub(crate) fn missed(&mut self, parent: NodeId) -> bool {
        let window = self.timeouts.longest();
        // A whole listing would take the room that was just made.
        let crowded = self.shed.is_some_and(|at| at.elapsed() < SWEEP_AFTER);
        let Some(dir) = self.dir_mut(parent) else {
            return false;
        };
        let worth = (dir.children.len() / ENTRIES_PER_QUESTION).max(FEW_QUESTIONS);
        // Many questions take their time, one after the other: they count while they come as often as few do.
        let counts = window.saturating_mul(worth.div_ceil(FEW_QUESTIONS) as u32);
        if dir.window.is_none_or(|at| at.elapsed() > counts) {
            dir.window = Some(Instant::now());
            dir.misses = 0;
        }
        dir.misses += 1;
        let large = dir.large.is_some_and(|at| at.elapsed() < LARGE_FOR);
        dir.misses as usize > worth && !large && !crowded && !window.is_zero()
    }

    /// A counted question was about a name that is not there. A listing saves the next such question only if
    /// absence is believed.
    pub(crate) fn missed_nothing(&mut self, parent: NodeId) {
        let strict = self.strict();
        if let Some(dir) = self.dir_mut(parent).filter(|_| strict) {
            dir.misses = dir.misses.saturating_sub(1);
        }
    }

    /// A whole answer of the service about one file, asked for at `at`, had its name.
    pub(crate) fn confirm(&mut self, parent: NodeId, name: &str, at: Instant) {
        if let Some(child) = self.dir_mut(parent).and_then(|d| d.children.get_mut(name)) {
            child.known = child.known.max(at);
        }
    }

    /// Takes over the answer to a question about one name; the node, if there is one to show.
    pub(crate) fn learn(
        &mut self,
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
    ) -> Option<NodeId> {
        self.learn_in(parent, name, found, asked, (0, false))
    }

    fn learn_in(
        &mut self,
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
        (seen, already_seen): (u64, bool),
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
            // The directory was let go of between its marker and what is below it, which knows no mode.
            if already_seen {
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
        if let Some(child) = self.dir_mut(parent).and_then(|d| d.children.get_mut(name)) {
            child.seen = seen.max(child.seen);
        }
        let node = self.node(child.id)?;
        let (local, pinned, stamp, superseded) = {
            let state = node.state();
            let superseded = found.own().is_some_and(|p| state.superseded_by(&p.etag));
            (state.local(), state.pinned(), state.stamp, superseded)
        };
        // This mount changed the name or the node after the question was asked, or is about to; or a younger
        // answer is here already.
        if pinned || child.stamp > asked.stamp || stamp > asked.stamp || child.known > asked.at {
            return Some(node.id);
        }
        // Services differ in the order of a blob and the directory of the same name: the directory is shown
        // either way.
        let both = already_seen && node.kind == Kind::Directory;
        if both && found.kind().is_some_and(|kind| kind != Kind::Directory) {
            return Some(node.id);
        }
        match found.kind() {
            // A reader keeps the version it opened: the new one is another node, so that the kernel does not
            // take one's pages and size for the other's.
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
                drop(state);
                self.weigh(node.id);
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
            None if node.state().marker == Marker::Kept => {
                self.confirm(parent, name, asked.at);
                node.state().validated = asked.at;
                Some(node.id)
            }
            other => {
                // Gone, or something else now: the node loses its name.
                self.leave(parent, name);
                self.supersede(node.id);
                match other {
                    Some(_) => self.learn_in(parent, name, found, asked, (seen, false)),
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

    /// One item of a listing; whether an item before it, in the same listing, said that the name is a
    /// directory.
    pub(crate) fn list_entry(
        &mut self,
        listing: (u64, bool),
        parent: NodeId,
        name: &str,
        found: Found<'_>,
        asked: Asked,
    ) -> Option<NodeId> {
        self.learn_in(parent, name, found, asked, listing)
    }

    /// True for a name that the service told of, which this mount has neither made nor moved there.
    pub(crate) fn made_elsewhere(&self, parent: NodeId, name: &str) -> bool {
        self.dir(parent)
            .and_then(|dir| dir.children.get(name))
            .is_some_and(|child| child.stamp == 0)
    }

    /// All entries of a listing that began with the question `first` were taken over: what it did not mention
    /// is gone.
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
                    !state.pinned() && state.marker != Marker::Kept && state.stamp <= first.stamp
                }) && !self.pinned_below(c.id)
            })
            .map(|(name, c)| (Arc::clone(name), c.id))
            .collect();
        if !gone.is_empty()
            && let Some(node) = self.node(parent)
        {
            node.state().entries_changed_elsewhere(SystemTime::now());
        }
        for (name, id) in gone {
            self.leave(parent, &name);
            self.supersede(id);
        }
        // Not if what it mentioned was let go of meanwhile.
        if let Some(dir) = self.dir_mut(parent).filter(|d| d.swept < listing) {
            dir.complete = Some(first.at);
            // It has become smaller, perhaps.
            dir.large = None;
        }
        // Listings are what fills the table with nodes that nobody refers to; this one's are too young to be
        // swept.
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
}
