//! Names and listings: what the service is asked, and how few times.
//!
//! One List with a delimiter answers whether a name is a blob, a marker, an implicit directory or nothing.
//! When several names of one directory are asked for within the timeouts, the whole directory is listed
//! instead, so a storm of lookups costs one request per timeout. What is subtle about listings beside changes
//! is said at the head of `listing`.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blob_client::{Condition, Error, ListItem, ListOptions, Properties};
use futures::FutureExt;

use super::attrs::{self, Kind};
use super::core::Tree;
use super::handles::Handle;
use super::names;
use super::node::{Marker, Node, NodeId, ROOT, Stat};
use super::table::{Found, Known, Table};
use crate::errno::{Errno, NAME_GONE, Result, because, fail, fail_because};

/// Entries asked for with a question about one name: siblings like `name-x` sort before `name/`, and a few of
/// them must not cost a second request.
const NAME_RESULTS: u32 = 16;
/// Times that a name is asked for again when its node is gone before it can be shown.
const LOOKUPS: usize = 3;

/// Answer to a lookup.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// What is there; `None`: nothing is.
    pub(crate) stat: Option<Stat>,
    /// How long the attributes may be kept.
    pub(crate) attr_ttl: Duration,
    /// How long the name (or its absence) may be kept.
    pub(crate) entry_ttl: Duration,
}

impl Tree {
    /// The answer to a lookup if nothing has to be asked.
    pub(crate) fn lookup_now(&self, parent: NodeId, name: &OsStr) -> Option<Result<Entry>> {
        let name = match self.name_in(parent, name) {
            Ok(name) => name,
            // A name that cannot be here is not here.
            Err(Errno(libc::EPERM)) => return Some(fail(libc::ENOENT)),
            Err(errno) => return Some(Err(errno)),
        };
        let mut table = self.table.lock();
        match table.known(parent, name) {
            Known::Node(id, _) if table.revalidates(id) => None,
            Known::Node(id, left) => self.refer(&mut table, id, left).map(Ok),
            Known::Absent(left) => Some(Ok(absent(left))),
            Known::Unknown => None,
        }
    }

    /// Looks a name up, asking the service if needed. The kernel holds one more reference afterwards.
    pub(crate) async fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        if let Some(entry) = self.lookup_now(parent, name) {
            return entry;
        }
        let name = self.name_in(parent, name)?;
        // A directory that is being moved has half of its blobs somewhere else.
        let _gates = self.gates(parent).await?;
        for _ in 0..LOOKUPS {
            let asked = Instant::now();
            let Some(id) = self.find(parent, name).await? else {
                return Ok(absent(self.timeouts.negative.saturating_sub(asked.elapsed())));
            };
            let left = self.timeouts.entry.saturating_sub(asked.elapsed());
            if let Some(entry) = self.refer(&mut self.table.lock(), id, left) {
                return Ok(entry);
            }
            // Let go of for want of memory, or removed by another request, meanwhile.
        }
        fail(libc::ENOENT)
    }

    /// A name checked for use in a directory; `EPERM` for reserved ones.
    pub(super) fn name_in<'a>(&self, parent: NodeId, name: &'a OsStr) -> Result<&'a str> {
        let name = names::checked(name)?;
        if parent == ROOT && names::is_reserved(name) {
            return fail(libc::EPERM);
        }
        Ok(name)
    }

    /// Attributes of a node for a reply that gives the kernel a reference.
    pub(crate) fn entry(&self, id: NodeId) -> Option<Entry> {
        self.refer(&mut self.table.lock(), id, self.timeouts.entry)
    }

    fn refer(&self, table: &mut Table, id: NodeId, entry_ttl: Duration) -> Option<Entry> {
        let node = table.node(id)?;
        let subdirectories = table.subdirectories(id);
        let left = {
            let state = node.state();
            let (local, age) = (state.local(), state.validated.elapsed());
            move |timeout: Duration| {
                if local {
                    timeout
                } else {
                    timeout.saturating_sub(age)
                }
            }
        };
        let entry_ttl = entry_ttl.min(left(self.timeouts.entry));
        table.refer(id, entry_ttl);
        let mut state = node.state();
        Some(Entry {
            attr_ttl: left(self.timeouts.attr),
            entry_ttl,
            stat: Some(Stat::of(&node, &mut state, subdirectories, &self.defaults)),
        })
    }

    /// An entry did not get to the kernel.
    pub(crate) fn not_taken(&self, id: NodeId) {
        self.table.lock().not_taken(id);
    }

    /// The kernel dropped references.
    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        self.table.lock().forget(id, count);
    }

    /// Attributes if nothing has to be asked.
    pub(crate) fn getattr_now(&self, id: NodeId) -> Option<Result<(Stat, Duration)>> {
        let node = match self.node(id) {
            Ok(node) => node,
            Err(errno) => return Some(Err(errno)),
        };
        {
            let state = node.state();
            if !state.local() && state.validated.elapsed() >= self.timeouts.attr {
                return None;
            }
        }
        Some(Ok(self.stat(&node)))
    }

    /// Attributes of the version that a handle has open.
    pub(crate) fn getattr_open(&self, handle: &Handle) -> (Stat, Duration) {
        self.stat(&handle.node)
    }

    /// Attributes, asking the service if they are too old.
    pub(crate) async fn getattr(&self, id: NodeId) -> Result<(Stat, Duration)> {
        if let Some(known) = self.getattr_now(id) {
            return known;
        }
        let node = self.node(id)?;
        let open = node.state().handles > 0;
        if open {
            // What is open stays what it was, whether its name is gone, leads to a newer version, or cannot
            // be asked for.
            if let Some(Ok(_gates)) = self.gates(id).now_or_never() {
                let _ = self.refresh(&node).await;
            }
        } else if let Ok(_gates) = self.gates(id).await {
            self.refresh(&node).await?;
        }
        Ok(self.stat(&node))
    }

    /// Asks the service for a node's attributes; `ENOENT` when it is gone. Gates are held.
    pub(super) async fn refresh(&self, node: &Arc<Node>) -> Result<()> {
        if node.id == ROOT {
            return Ok(self.read_root().await?);
        }
        let (parent, name) = {
            let table = self.table.lock();
            let link = table
                .link(node.id)
                .ok_or_else(|| because(libc::ESTALE, NAME_GONE))?;
            (link.parent, Arc::clone(&link.name))
        };
        if parent == 0 {
            return Ok(());
        }
        match self.find(parent, &name).await? {
            Some(id) if id == node.id => Ok(()),
            // The name leads to another file now: the kernel looks again.
            Some(_) => fail_because(libc::ESTALE, "its name leads to another file now"),
            None => fail(libc::ENOENT),
        }
    }

    /// Asks for the attributes of the root.
    pub(super) async fn read_root(&self) -> Result<(), Error> {
        let (node, asked) = {
            let table = self.table.lock();
            (table.node(ROOT), table.ask())
        };
        let Some(node) = node else {
            return Ok(());
        };
        if self.config.prefix.is_empty() {
            // Rights for the container itself are rarer than rights for its blobs: without them the root has
            // the defaults.
            let container = match self.env.store.container_state().await {
                Err(Error::Denied { .. }) => {
                    // Nor will it be told of policies.
                    self.deletes.store(true, Ordering::Relaxed);
                    node.state().validated = asked.at;
                    return Ok(());
                }
                other => other?,
            };
            self.deletes.store(!container.keeps_blobs, Ordering::Relaxed);
            let mut state = node.state();
            if state.stamp <= asked.stamp {
                state.attrs = attrs::Attrs {
                    ctime: None,
                    ..attrs::decode(&container.metadata).1
                };
                state.validated = asked.at;
            }
            return Ok(());
        }
        match self.env.store.head(&self.config.prefix, &Condition::none()).await {
            Ok(properties) if properties.is_directory || attrs::is_folder(&properties.metadata) => {
                let mut state = node.state();
                if state.stamp <= asked.stamp {
                    state.adopt(&properties, asked.at);
                    state.marker = Marker::Blob;
                }
            }
            Ok(_) | Err(Error::BlobNotFound { .. }) => node.state().validated = asked.at,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Asks the service about a name and takes over the answer. Gates are held.
    pub(super) async fn find(&self, parent: NodeId, name: &str) -> Result<Option<NodeId>> {
        let (directory, whole, known_file, asked) = {
            let mut table = self.table.lock();
            let asked = table.ask();
            let directory = table.blob(parent).ok_or(Errno(libc::ENOENT))?;
            let file = table
                .child(parent, name)
                .is_some_and(|n| n.kind != Kind::Directory);
            (directory, table.missed(parent), file, asked)
        };
        if whole && let Some(answer) = self.find_by_listing(parent, &directory, name, asked).await? {
            return Ok(answer);
        }
        let blob = names::join(&directory, name);
        if names::check_blob(&blob).is_err() {
            return fail(libc::ENAMETOOLONG);
        }
        let asked = self.table.lock().ask();
        // What was a file is most likely still one: the cheapest question first.
        if known_file {
            match self.env.store.head(&blob, &Condition::none()).await {
                Ok(properties) => {
                    self.follow(parent, name, &properties).await;
                    let found = Found {
                        blob: Some(&properties),
                        prefix: false,
                    };
                    return Ok(self.table.lock().learn(parent, name, found, asked));
                }
                // Of one encrypted with its owner's key only a listing tells.
                Err(Error::BlobNotFound { .. } | Error::CustomerKey { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (properties, prefix) = self.ask(&blob).await?;
        if let Some(properties) = &properties {
            self.follow(parent, name, properties).await;
        }
        let found = Found {
            blob: properties.as_ref(),
            prefix,
        };
        let mut table = self.table.lock();
        let learnt = table.learn(parent, name, found, asked);
        if learnt.is_none() {
            table.missed_nothing(parent);
        }
        Ok(learnt)
    }

    /// Asks the service about a name that is not what it was taken for, whatever is known of it. Gates are
    /// held.
    pub(super) async fn look_again(&self, parent: NodeId, name: &str) -> Result<Option<NodeId>> {
        let (blob, asked) = {
            let table = self.table.lock();
            let directory = table.blob(parent).ok_or(Errno(libc::ENOENT))?;
            (names::join(&directory, name), table.ask())
        };
        let (properties, prefix) = self.ask(&blob).await?;
        let found = Found {
            blob: properties.as_ref(),
            prefix,
        };
        Ok(self.table.lock().learn(parent, name, found, asked))
    }

    /// The blob of this name, and whether blobs are below it. One request, unless many siblings begin with
    /// the name.
    pub(super) async fn ask(&self, blob: &str) -> Result<(Option<Properties>, bool)> {
        let below = format!("{blob}/");
        let mut options = ListOptions {
            prefix: blob.to_owned(),
            delimiter: Some("/".to_owned()),
            max_results: Some(NAME_RESULTS),
            metadata: true,
            marker: None,
        };
        let page = loop {
            let page = self.env.store.list(&options).await?;
            // The service may answer an empty page and a marker.
            if !page.items.is_empty() || page.next_marker.is_none() {
                break page;
            }
            options.marker = page.next_marker;
        };
        let (mut properties, mut prefix, mut past) = (None, false, page.next_marker.is_none());
        for item in page.items {
            match item {
                ListItem::Blob { name, properties: p } if name == blob => properties = Some(p),
                ListItem::Prefix { name } if name == below => prefix = true,
                ListItem::Blob { name, .. } | ListItem::Prefix { name } => past |= name > below,
            }
        }
        let marker = properties
            .as_ref()
            .is_some_and(|p| p.is_directory || attrs::is_folder(&p.metadata));
        if !prefix && !past && !marker {
            prefix = self.has_below(blob).await?;
        }
        Ok((properties, prefix))
    }

    /// True when there are blobs below a directory's blob name.
    pub(super) async fn has_below(&self, blob: &str) -> Result<bool> {
        let mut options = ListOptions {
            prefix: format!("{blob}/"),
            max_results: Some(1),
            ..ListOptions::default()
        };
        loop {
            let page = self.env.store.list(&options).await?;
            if !page.items.is_empty() {
                return Ok(true);
            }
            options.marker = page.next_marker;
            if options.marker.is_none() {
                return Ok(false);
            }
        }
    }
}

fn absent(left: Duration) -> Entry {
    Entry {
        stat: None,
        attr_ttl: Duration::ZERO,
        entry_ttl: left,
    }
}
