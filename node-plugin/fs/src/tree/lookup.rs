//! Names and listings: what the service is asked, and how few times.
//!
//! One List with a delimiter answers whether a name is a blob, a marker, an implicit directory or nothing. When several names of one
//! directory are asked for within the timeouts, the whole directory is listed instead, so a storm of lookups costs one request per timeout.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blob_client::{Condition, Error, ListItem, ListOptions, ListPage, Properties};
use futures::FutureExt;

use super::attrs::{self, Kind};
use super::handles::Handle;
use super::node::{Marker, Node, NodeId, ROOT, Stat};
use super::table::{Asked, Found, Known, Table};
use super::{Tree, names};
use crate::budget::{Budget, Permit};
use crate::errno::{Errno, Result, fail};

/// Entries asked for with a question about one name: siblings like `name-x` sort before `name/`, and a few of them must not cost a second request.
const NAME_RESULTS: u32 = 16;
/// What the service gives at most per page.
const PAGE_RESULTS: u32 = 5000;
/// Times that a name is asked for again when its node is gone before it can be shown.
const LOOKUPS: usize = 3;
/// What an entry of an open directory takes, with its name.
const ENTRY_BYTES: usize = size_of::<Listed>() + size_of::<(u64, Arc<Node>)>() + 64;
/// Entries handed over at once: about what the kernel's largest reply buffers hold.
const BATCH: usize = 512;

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

/// One entry of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: Arc<str>,
    pub(crate) id: NodeId,
    pub(crate) kind: Kind,
    /// Where reading goes on after this entry.
    pub(crate) next: u64,
}

/// How far an open directory has been read: a snapshot that grows page by page, so offsets stay what they were. Of a large directory, what was read
/// is forgotten; who goes back makes it read anew.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Entries that were forgotten.
    start: u64,
    entries: Vec<Listed>,
    /// Nodes of entries that were not handed over yet, with the offset behind them: they stay in the table.
    pins: VecDeque<(u64, Arc<Node>)>,
    charge: Option<Permit>,
    directories: HashSet<NodeId>,
    marker: Option<String>,
    first: Option<Asked>,
    listing: u64,
    done: bool,
}

/// Items of a directory's page, as names.
enum Item<'a> {
    Shown(std::borrow::Cow<'a, str>, Found<'a>),
    /// The marker `d/` of the directory itself.
    Itself,
    /// A blob whose name is no path, or a marker with content.
    Hidden,
    /// A reserved name of ours.
    Reserved,
}

/// What an item of a listing below `below` (ending with `/`, or empty) is.
fn classify<'a>(item: &'a ListItem, below: &str, in_root: bool) -> Item<'a> {
    let (full, found) = match item {
        ListItem::Blob { name, properties } => (
            name,
            Found {
                blob: Some(properties),
                prefix: false,
            },
        ),
        ListItem::Prefix { name } => (
            name,
            Found {
                blob: None,
                prefix: true,
            },
        ),
    };
    let Some(rest) = full.strip_prefix(below) else {
        return Item::Hidden;
    };
    if let (true, Some(blob)) = (rest.is_empty(), found.blob) {
        return if blob.content_length == 0 {
            Item::Itself
        } else {
            Item::Hidden
        };
    }
    let component = if found.prefix {
        rest.strip_suffix('/').unwrap_or(rest)
    } else {
        rest
    };
    if component.contains('/') {
        return Item::Hidden;
    }
    match names::shown(component, in_root) {
        Some(name) => Item::Shown(name, found),
        None if in_root && names::is_reserved(component) => Item::Reserved,
        None => Item::Hidden,
    }
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
            Known::Node(id, _) if table.doubted(id) => None,
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
            // What is open stays what it was, whether its name is gone, leads to a newer version, or cannot be asked for.
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
            let link = table.link(node.id).ok_or(Errno(libc::ESTALE))?;
            (link.parent, Arc::clone(&link.name))
        };
        if parent == 0 {
            return Ok(());
        }
        match self.find(parent, &name).await? {
            Some(id) if id == node.id => Ok(()),
            _ => fail(libc::ENOENT),
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
            // Rights for the container itself are rarer than rights for its blobs: without them the root has the defaults.
            let metadata = match self.env.store.container_metadata().await {
                Err(Error::Denied { .. }) => {
                    node.state().validated = asked.at;
                    return Ok(());
                }
                other => other?,
            };
            let mut state = node.state();
            if state.stamp <= asked.stamp {
                state.attrs = attrs::decode(&metadata).1;
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
                    let found = Found {
                        blob: Some(&properties),
                        prefix: false,
                    };
                    return Ok(self.table.lock().learn(parent, name, found, asked));
                }
                Err(Error::BlobNotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (properties, prefix) = self.ask(&blob).await?;
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

    /// The blob of this name, and whether blobs are below it. One request, unless many siblings begin with the name.
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

    /// Lists a directory on behalf of a lookup that came in at `asked`; `None` when it turned out too large for that.
    async fn find_by_listing(
        &self,
        parent: NodeId,
        directory: &str,
        name: &str,
        asked: Asked,
    ) -> Result<Option<Option<NodeId>>> {
        let node = self.node(parent)?;
        let Some(locks) = &node.directory else {
            return fail(libc::ENOTDIR);
        };
        let _one = locks.listing.lock().await;
        // Somebody else's listing may have answered while we waited.
        let listed_since = |table: &Table| {
            let complete = table.dir(parent).and_then(|d| d.complete);
            complete.is_some_and(|at| at >= asked.at)
        };
        {
            let table = self.table.lock();
            if listed_since(&table) {
                return Ok(Some(table.child(parent, name).map(|n| n.id)));
            }
            match table.known(parent, name) {
                Known::Node(id, _) if !table.doubted(id) => return Ok(Some(Some(id))),
                Known::Absent(_) => return Ok(Some(None)),
                _ => {}
            }
        }
        let mut cursor = Cursor::default();
        self.next_page(parent, directory, &mut cursor).await?;
        let mut table = self.table.lock();
        if !cursor.done {
            if let Some(dir) = table.dir_mut(parent) {
                dir.large = true;
            }
            return Ok(None);
        }
        // All there is was listed after the question came in, whatever the timeouts are. It may have been let go of again.
        let found = table.child(parent, name).map(|n| n.id);
        Ok((found.is_some() || listed_since(&table)).then_some(found))
    }

    /// Fetches one more page of a listing into the table and the cursor.
    async fn next_page(&self, parent: NodeId, directory: &str, cursor: &mut Cursor) -> Result<()> {
        let below = names::below(directory);
        let asked = {
            let mut table = self.table.lock();
            let excess = self.env.budget.excess();
            if excess > 0 {
                table.shed(excess);
            }
            table.ask()
        };
        let page: ListPage = self
            .env
            .store
            .list(&ListOptions {
                prefix: below.clone(),
                delimiter: Some("/".to_owned()),
                marker: cursor.marker.take(),
                max_results: Some(PAGE_RESULTS),
                metadata: true,
            })
            .await?;
        let mut table = self.table.lock();
        if cursor.first.is_none() {
            cursor.listing = table.begin_listing();
        }
        let first = *cursor.first.get_or_insert(asked);
        let mut hides = false;
        for item in &page.items {
            let (name, found) = match classify(item, &below, parent == ROOT) {
                Item::Shown(name, found) => (name, found),
                Item::Hidden => {
                    hides = true;
                    continue;
                }
                Item::Itself | Item::Reserved => continue,
            };
            if let Some(id) = table.list_entry(cursor.listing, parent, &name, found, asked) {
                cursor.push(&table, parent, id);
            }
        }
        if hides
            && let Some(dir) = table.dir_mut(parent)
            && !std::mem::replace(&mut dir.hides, true)
        {
            tracing::info!(directory, "blobs whose names are no paths are hidden");
        }
        match page.next_marker {
            Some(marker) => cursor.marker = Some(marker),
            None => {
                table.end_listing(cursor.listing, parent, first);
                cursor.rest(&table, parent);
            }
        }
        drop(table);
        cursor.recharge(&self.env.budget);
        Ok(())
    }

    /// Opens a directory for reading; nothing is asked yet.
    pub(crate) fn opendir(&self, id: NodeId) -> Result<u64> {
        let node = self.node(id)?;
        if node.kind != Kind::Directory {
            return fail(libc::ENOTDIR);
        }
        Ok(self.handles.open_directory(id))
    }

    /// Closes it.
    pub(crate) fn releasedir(&self, fh: u64) {
        self.handles.close_directory(fh);
    }

    /// Entries of an open directory from `offset` on, at least one unless the end is reached. Offset 0 begins anew.
    pub(crate) async fn readdir(&self, fh: u64, offset: u64) -> Result<Vec<Listed>> {
        let handle = self.handles.directory(fh)?;
        let mut cursor = handle.cursor.lock().await;
        if offset == 0 || offset < cursor.start {
            *cursor = Cursor::default();
            self.begin(handle.node, &mut cursor)?;
        }
        loop {
            cursor.handed_over(offset);
            let batch = {
                let table = self.table.lock();
                let skipped = usize::try_from(offset - cursor.start).map_err(|_| Errno(libc::EINVAL))?;
                cursor
                    .entries
                    .iter()
                    .skip(skipped)
                    // `.` and `..` are in front of the children.
                    .filter(|e| e.next <= 2 || table.link(e.id).is_some_and(|l| l.parent == handle.node))
                    .take(BATCH)
                    .cloned()
                    .collect::<Vec<_>>()
            };
            if !batch.is_empty() || cursor.done {
                return Ok(batch);
            }
            let gates = self.gates(handle.node).await;
            let directory = self.table.lock().blob(handle.node);
            let (Ok(_gates), Some(directory)) = (gates, directory) else {
                // Removed while open: an empty directory.
                cursor.done = true;
                continue;
            };
            self.next_page(handle.node, &directory, &mut cursor).await?;
        }
    }

    fn begin(&self, id: NodeId, cursor: &mut Cursor) -> Result<()> {
        let table = self.table.lock();
        let link = table.link(id).ok_or(Errno(libc::ESTALE))?;
        let parent = if link.parent == 0 { id } else { link.parent };
        for (name, id) in [(".", id), ("..", parent)] {
            cursor.entry(name.into(), id, Kind::Directory);
        }
        if table.listing_fresh(id) && self.env.budget.excess() == 0 {
            cursor.rest(&table, id);
            drop(table);
            cursor.recharge(&self.env.budget);
        } else if table.path(id).is_none() {
            cursor.done = true;
        } else {
            return Ok(());
        }
        Ok(())
    }
}

impl Cursor {
    fn entry(&mut self, name: Arc<str>, id: NodeId, kind: Kind) {
        let next = self.start + self.entries.len() as u64 + 1;
        self.entries.push(Listed { name, id, kind, next });
    }

    fn push(&mut self, table: &Table, parent: NodeId, id: NodeId) {
        // Links of a name that this mount has moved meanwhile lead elsewhere.
        let Some(link) = table.link(id).filter(|l| l.parent == parent) else {
            return;
        };
        // A marker and what is below it are one directory.
        if link.node.kind == Kind::Directory && !self.directories.insert(id) {
            return;
        }
        self.entry(Arc::clone(&link.name), id, link.node.kind);
        let behind = self.start + self.entries.len() as u64;
        self.pins.push_back((behind, Arc::clone(&link.node)));
    }

    /// Reading goes on at `offset`.
    fn handed_over(&mut self, offset: u64) {
        while self.pins.front().is_some_and(|(behind, _)| *behind <= offset) {
            self.pins.pop_front();
        }
        let read = offset.saturating_sub(self.start).min(self.entries.len() as u64);
        if read >= u64::from(PAGE_RESULTS) {
            self.entries.drain(..read as usize);
            self.start += read;
        }
    }

    fn recharge(&mut self, budget: &Arc<Budget>) {
        let bytes = self.entries.len() * ENTRY_BYTES;
        match &mut self.charge {
            Some(charge) => charge.resize(bytes),
            None => self.charge = Some(budget.charge_metadata(bytes)),
        }
    }

    /// Appends the children that no page mentioned (files not committed yet), and ends the listing.
    fn rest(&mut self, table: &Table, parent: NodeId) {
        let known: HashSet<NodeId> = self.entries.iter().map(|e| e.id).collect();
        // Of what was forgotten, the table knows whether a page mentioned it.
        let (listing, forgotten) = (self.listing, self.start > 0);
        let mut rest: Vec<_> = table
            .dir(parent)
            .into_iter()
            .flat_map(|d| d.children.iter())
            .filter(|(_, child)| !known.contains(&child.id))
            // What was let go of and found again was mentioned by its earlier node.
            .filter(|(_, child)| listing == 0 || child.learnt < listing)
            .filter(|(_, child)| !forgotten || child.seen < listing)
            .map(|(name, child)| (Arc::clone(name), child.id))
            .collect();
        rest.sort();
        for (_, id) in rest {
            self.push(table, parent, id);
        }
        self.done = true;
    }
}

fn absent(left: Duration) -> Entry {
    Entry {
        stat: None,
        attr_ttl: Duration::ZERO,
        entry_ttl: left,
    }
}
