//! Listings, for readers of directories and for lookups of many names in one.
//!
//! A listing takes many requests and seconds, and everything goes on meanwhile. What has to be minded:
//!
//! 1. *Answers age.* A page says how things were when it was asked for. What this mount made, moved or
//!    removed since (stamps) and what a younger answer said (`Child::known`) stands; so does what is pinned.
//! 2. *Absence needs the whole.* Only when all pages are there is a name that none mentioned gone, and then
//!    only if it was known before the first page was asked for. A page's marker goes for the name that the
//!    directory had: after a rename of it the listing begins anew.
//! 3. *One name, two items.* The marker `d` and the prefix `d/` are one directory, in either order, on one
//!    page or on two; without its marker a directory has no attributes of its own, so that the second item
//!    must not undo the first. A blob `f` that is no marker beside a prefix `f/` is hidden by the directory.
//! 4. *Several readers.* Each listing has a number; a child remembers the last one that mentioned it, and one
//!    reader's pages must not be taken for another's: whether an item of a name came before, its own
//!    cursor says.
//! 5. *Offsets are promises.* The kernel comes back with the offset of an entry it has had. Entries are a
//!    snapshot that grows; what was removed meanwhile is skipped, and its offset stays used.
//! 6. *What the service does not have.* Files whose first commit is still to come are in no page: they are
//!    appended.
//! 7. *Memory.* A node may be let go of and found again between two pages: it must be neither shown twice nor
//!    taken for absent, and entries that were not handed over yet stay in the table.

use blob_client::{ListItem, ListOptions, ListPage};

use super::attrs::Kind;
use super::core::Tree;
use super::cursor::{Cursor, Listed, PAGE_RESULTS};
use super::names;
use super::node::{NodeId, ROOT};
use super::table::{Asked, Found, Known, Table};
use crate::errno::{Errno, NAME_GONE, Result, because, fail};
use crate::log_limit::limited;

/// Entries handed over at once: about what the kernel's largest reply buffers hold.
const BATCH: usize = 512;
/// Items of a page that are taken over at once: nobody else gets at the table meanwhile.
const LEARNT_AT_ONCE: usize = 256;

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

fn item_name(item: &ListItem) -> &str {
    let (ListItem::Blob { name, .. } | ListItem::Prefix { name }) = item;
    name
}

/// What an item of a listing below `below` (ending with `/`, or empty) is.
fn classify<'a>(item: &'a ListItem, below: &str, in_root: bool) -> Item<'a> {
    let found = match item {
        ListItem::Blob { properties, .. } => Found {
            blob: Some(properties),
            prefix: false,
        },
        ListItem::Prefix { .. } => Found {
            blob: None,
            prefix: true,
        },
    };
    let Some(rest) = item_name(item).strip_prefix(below) else {
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
    /// Lists a directory on behalf of a lookup that came in at `asked`; `None` when it turned out too large
    /// for that.
    pub(super) async fn find_by_listing(
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
        let turn = locks.listing.turn(&locks.listing.place()).await?;
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
                Known::Node(id, _) if !table.revalidates(id) => return Ok(Some(Some(id))),
                Known::Absent(_) => return Ok(Some(None)),
                _ => {}
            }
        }
        let mut cursor = Cursor::default();
        let page = self.next_page(parent, directory, &mut cursor).await;
        if matches!(page, Err(Errno(libc::EIO))) {
            turn.got_no_answer(self.config.timeout);
        }
        page?;
        turn.got_an_answer();
        let mut table = self.table.lock();
        if !cursor.done {
            table.note_large(parent);
            return Ok(None);
        }
        // All there is was listed after the question came in, whatever the timeouts are. It may have been let
        // go of again.
        let found = table.child(parent, name).map(|n| n.id);
        Ok((found.is_some() || listed_since(&table)).then_some(found))
    }

    /// Fetches one more page of a listing into the table and the cursor.
    async fn next_page(&self, parent: NodeId, directory: &str, cursor: &mut Cursor) -> Result<()> {
        let below = names::below(directory);
        cursor.goes_on_below(&below);
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
        let in_root = parent == ROOT;
        let blobs = page
            .items
            .iter()
            .filter_map(|item| match classify(item, &below, in_root) {
                Item::Shown(name, Found { blob: Some(blob), .. }) => Some((name, blob)),
                _ => None,
            });
        self.follow_all(parent, blobs).await;
        let (mut hidden, mut newest) = (None, None);
        for (n, items) in page.items.chunks(LEARNT_AT_ONCE).enumerate() {
            if n > 0 {
                // Others wait for the table, or for this thread.
                tokio::task::yield_now().await;
            }
            let mut table = self.table.lock();
            cursor.begun(&mut table, asked);
            for item in items {
                let (name, found) = match classify(item, &below, in_root) {
                    Item::Shown(name, found) => (name, found),
                    Item::Hidden => {
                        hidden.get_or_insert(item);
                        continue;
                    }
                    Item::Itself | Item::Reserved => continue,
                };
                let repeated = cursor.repeated(item_name(item).strip_prefix(&below).unwrap_or_default());
                let seen = cursor.directories.contains(&*name);
                if let Some(id) = table.list_entry((cursor.listing, seen), parent, &name, found, asked)
                    && !repeated
                {
                    cursor.push(&table, parent, id);
                }
                if let Some(blob) = found.blob
                    && table.made_elsewhere(parent, &name)
                {
                    newest = newest.max(Some(blob.created.unwrap_or(blob.last_modified)));
                }
            }
        }
        let mut table = self.table.lock();
        let first = cursor.begun(&mut table, asked);
        if let Some(ListItem::Blob { name, .. } | ListItem::Prefix { name }) = hidden
            && let Some(dir) = table.dir_mut(parent)
            && !std::mem::replace(&mut dir.hides, true)
        {
            limited!(
                info,
                self.volume(),
                "blobs whose names are no paths are not shown, and keep their folder from being empty",
                directory,
                first = ?name
            );
        }
        if let (Some(newest), Some(node)) = (newest, table.node(parent)) {
            node.state().entries_changed_elsewhere(newest);
        }
        match page.next_marker {
            Some(marker) => cursor.marker = Some(marker),
            None => {
                table.end_listing(cursor.listing, parent, first);
                cursor.finish(&table, parent);
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

    /// Entries of an open directory from `offset` on, at least one unless the end is reached. Offset 0 begins
    /// anew.
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
            let gates = match self.gates(handle.node).await {
                Err(Errno(libc::ENOENT)) => None,
                // Whoever waits was told that it failed: the next call goes on here.
                gates => Some(gates?),
            };
            let directory = self.table.lock().blob(handle.node);
            let (Some(_gates), Some(directory)) = (gates, directory) else {
                // Removed while open: an empty directory.
                cursor.done = true;
                continue;
            };
            self.next_page(handle.node, &directory, &mut cursor).await?;
        }
    }

    fn begin(&self, id: NodeId, cursor: &mut Cursor) -> Result<()> {
        let table = self.table.lock();
        let link = table.link(id).ok_or_else(|| because(libc::ESTALE, NAME_GONE))?;
        let parent = if link.parent == 0 { id } else { link.parent };
        for (name, id) in [(".", id), ("..", parent)] {
            cursor.entry(name.into(), id, Kind::Directory);
        }
        if table.listing_fresh(id) && self.env.budget.excess() == 0 {
            cursor.finish(&table, id);
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
