//! Opening and making files: close-to-open consistency.
//!
//! Every open of a file that this mount has nothing of its own for asks the service for the version (HEAD),
//! so that what another mount closed is seen. Handles on a node with uncommitted data or open writers share
//! its content; a writer that was closed counts no longer, although the kernel's RELEASE comes some time
//! after close(2) has returned. A reader keeps the version it opened: when there is a newer one, the node
//! loses its name to a new node, as the kernel keeps one size and one set of pages for each. It learns of
//! that by ESTALE, and looks again.
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::SystemTime;

use blob_client::{Condition, Error};

use super::attrs::Kind;
use super::children::Owner;
use super::core::Tree;
use super::handles::Handle;
use super::lookup::Entry;
use super::names;
use super::node::{Access, Debt, Life, Node, NodeId, State};
use super::refusal::Wants;
use super::table::Found;
use crate::caller::still_waits;
use crate::config::Profile;
use crate::content::{Base, File, Reader};
use crate::errno::{NAME_GONE, NOT_MADE, Result, because, fail, fail_because};
use crate::journal::NodeLog;
use crate::journal::record::Record;

/// An opened handle, and what the kernel may do with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) fh: u64,
    /// Pages from before the open are still right.
    pub(crate) keep_cache: bool,
    /// No pages at all.
    pub(crate) direct: bool,
}

/// A handle to be: counted from the moment its content is chosen, so that nobody takes the node for closed in
/// between.
struct Opening<'a> {
    tree: &'a Tree,
    node: &'a Arc<Node>,
    file: Arc<File>,
    writes: bool,
    done: bool,
}

impl<'a> Opening<'a> {
    /// `state` is the node's, and has `file`.
    fn new(tree: &'a Tree, node: &'a Arc<Node>, file: Arc<File>, writes: bool, state: &mut State) -> Self {
        file.opened(writes);
        state.handles += 1;
        state.writers += u32::from(writes);
        Self {
            tree,
            node,
            file,
            writes,
            done: false,
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.file.closed(self.writes);
        let (last, hidden) = {
            let mut state = self.node.state();
            let last = state.closed(self.writes);
            (last, state.hidden.take_if(|_| last))
        };
        if last {
            self.tree.table.lock().reap(self.node.id);
        }
        if let Some(blob) = hidden {
            let hidden = Arc::clone(&self.tree.hidden);
            self.tree
                .env
                .runtime
                .spawn(async move { hidden.drop_blob(&blob).await });
        }
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl Tree {
    /// Opens a file.
    pub(crate) async fn open(&self, id: NodeId, flags: i32, uid: u32) -> Result<Opened> {
        let node = self.node(id)?;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return fail(libc::EISDIR),
            Kind::Symlink => return fail(libc::ELOOP),
            Kind::Fifo | Kind::Socket => return fail(libc::ENXIO),
        }
        let truncates = flags & libc::O_TRUNC != 0;
        if writes(flags) || truncates {
            self.writable()?;
        }
        let (seen, life) = {
            let state = node.state();
            (state.kernel_view, state.life)
        };
        if life == Life::Superseded && !self.table.lock().restore(id) {
            // The kernel still held the name; this makes it look again.
            return fail_because(libc::ESTALE, "somebody else has replaced or removed the file");
        }
        let writes = writes(flags);
        let wants = match writes || truncates {
            true => Wants::Write,
            false => Wants::Read,
        };
        let take = |file, state: &mut State| Opening::new(self, &node, file, writes, state);
        let (opening, shared) = match self.shared(&node, take) {
            Some(opening) => (opening, true),
            None => {
                // Gone as a name since the kernel looked it up: ESTALE makes the kernel look again.
                let _gates = self
                    .gates(id)
                    .await
                    .map_err(|_| because(libc::ESTALE, NAME_GONE))?;
                let _change = node.change.lock().await;
                still_waits()?;
                match self.shared(&node, take) {
                    Some(opening) => (opening, true),
                    None => (self.current(&node, wants, take).await?, false),
                }
            }
        };
        let file = &opening.file;
        if (writes || truncates) && node.state().access == Access::ReadOnly {
            return fail(libc::EPERM);
        }
        if truncates {
            still_waits()?;
            file.truncate(0).await?;
            let mut state = node.state();
            state.content_changed(SystemTime::now());
            state.owe_attributes();
            state.emptied = true;
            if uid != 0 {
                state.kill_privileges(node.kind, &self.defaults);
            }
        }
        let asked = !shared && !truncates;
        let stale_size = asked && seen.is_some_and(|(size, _)| size != file.size());
        // The kernel may hold attributes for longer than the version they are of: fstat after the open is
        // about this one.
        let stale_attrs = asked && seen.is_some_and(|seen| seen != (file.size(), node.state().mtime()));
        if stale_attrs && let Some(invalidate) = self.invalidate.get() {
            invalidate(id);
        }
        Ok(self.register(opening, flags, stale_size))
    }

    /// Content that a new handle shares without asking: this mount's own. It is taken while nobody else can
    /// change what the node has.
    pub(super) fn shared<T>(&self, node: &Node, take: impl FnOnce(Arc<File>, &mut State) -> T) -> Option<T> {
        let mut state = node.state();
        // Without a name it is there for those who have it open, not for a name that the kernel still
        // believes in.
        let unlinked = state.nameless() && state.handles > 0;
        let named = !state.nameless() && !state.stale() && (state.writing() || state.pinned());
        let own = unlinked || named;
        let content = state.content.clone().filter(|_| own)?;
        Some(take(content, &mut state))
    }

    /// The content of the version that the service has now, taken likewise. `ESTALE` when handles have
    /// another version open: the name leads to a new node then. Gates and `change` are held.
    pub(super) async fn current<T>(
        &self,
        node: &Arc<Node>,
        wants: Wants,
        take: impl FnOnce(Arc<File>, &mut State) -> T,
    ) -> Result<T> {
        let (blob, parent, name, asked) = {
            let table = self.table.lock();
            let link = table
                .link(node.id)
                .ok_or_else(|| because(libc::ESTALE, NAME_GONE))?;
            (
                table
                    .blob(node.id)
                    .ok_or_else(|| because(libc::ESTALE, NAME_GONE))?,
                link.parent,
                Arc::clone(&link.name),
                table.ask(),
            )
        };
        let properties = match self.env.store.head(&blob, &Condition::none()).await {
            Ok(properties) => properties,
            Err(Error::BlobNotFound { .. }) => {
                let nothing = Found {
                    blob: None,
                    prefix: false,
                };
                self.table.lock().learn(parent, &name, nothing, asked);
                return fail_because(libc::ESTALE, "the blob is gone since its name was looked up");
            }
            Err(error) => return Err(error.into()),
        };
        let found = Found {
            blob: Some(&properties),
            prefix: false,
        };
        if found.kind() != Some(Kind::File) {
            self.table.lock().learn(parent, &name, found, asked);
            return fail_because(
                libc::ESTALE,
                "the name leads to something that is no file any more",
            );
        }
        self.check_open(&blob, &properties, wants).await?;
        if wants == Wants::Write {
            self.warn_of_encoding(&blob, &properties.stored);
        }
        self.follow(parent, &name, &properties).await;
        let mut table = self.table.lock();
        if node.state().superseded_by(&properties.etag) {
            table.learn(parent, &name, found, asked);
            return fail_because(
                libc::ESTALE,
                "the blob has a newer version than the one that is open",
            );
        }
        table.confirm(parent, &name, asked.at);
        drop(table);
        let mut state = node.state();
        if state.stale() {
            // What was not committed never will be.
            state.content = None;
            state.set_debt(Debt::Nothing);
        }
        state.adopt(&properties, asked.at);
        if let Some(content) = state.content.clone()
            && content.etag().as_ref() == Some(&properties.etag)
        {
            content.set_stored(&properties.stored);
            return Ok(take(content, &mut state));
        }
        let log = NodeLog::new(Arc::clone(&self.journal), node.id);
        let file = File::open(self.env.with_log(log), blob, Base::from(&properties));
        state.content = Some(Arc::clone(&file));
        Ok(take(file, &mut state))
    }

    fn register(&self, mut opening: Opening<'_>, flags: i32, stale_size: bool) -> Opened {
        opening.done = true;
        let (node, file, writes) = (opening.node, Arc::clone(&opening.file), opening.writes);
        // A file that is only read may still have been made or emptied by its open.
        let commits = writes || flags & libc::O_TRUNC != 0 || node.state().uncommitted();
        if writes && let Ok(metadata) = node.state().metadata(node.kind, &self.defaults) {
            file.set_metadata(metadata);
        }
        let generation = file.etag().map(|e| e.0).unwrap_or_default();
        // The kernel's idea of the size is older than the file: it would keep what is appended at the wrong
        // place among its pages.
        let append_elsewhere = flags & libc::O_APPEND != 0 && stale_size;
        let (direct, keep_cache) = {
            let mut state = node.state();
            let direct = self.config.profile == Profile::Streaming || append_elsewhere;
            let keep_cache = self.config.kernel_cache && state.cached && !direct;
            // Without keeping, the kernel drops its pages now and reads this version from here on.
            state.cached = state.cached || !direct;
            (direct, keep_cache)
        };
        let handle = Handle {
            node: Arc::clone(node),
            file,
            reader: Reader::default(),
            writes,
            commits,
            flushed: AtomicBool::new(false),
            exclusive: flags & libc::O_EXCL != 0,
            closes: AtomicU32::new(0),
            commit_soon: AtomicBool::new(false),
        };
        let fh = self.handles.open_file(handle);
        self.table.lock().record(Record::Handle {
            fh,
            node: node.id,
            flags,
            generation,
        });
        Opened {
            fh,
            keep_cache,
            direct,
        }
    }

    /// Makes a file and opens it. Nothing is sent: the first commit creates the blob, and only if there is
    /// none.
    pub(crate) async fn create(
        self: &Arc<Self>,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: i32,
        owner: Owner,
    ) -> Result<(Entry, Opened)> {
        self.writable()?;
        let name = self.name_in(parent, name)?;
        // While the directory moves, a file made in it would be stored under the old name, and left behind.
        let gates = self.gates(parent).await?;
        let directory = self
            .table
            .lock()
            .blob(parent)
            .ok_or_else(|| because(libc::ENOENT, NAME_GONE))?;
        let blob = names::join(&directory, name);
        names::check_blob(&blob)?;
        self.lacking.may_create(&*self.env.store, &blob).await?;
        let attrs = self.new_attrs(parent, Kind::File, mode, owner)?;
        let log = NodeLog::new(Arc::clone(&self.journal), 0);
        let file = File::create(self.env.with_log(Arc::clone(&log) as _), blob);
        let existing = {
            let mut table = self.table.lock();
            match table.child(parent, name) {
                Some(existing) => existing.id,
                None => {
                    // Lost its own name meanwhile.
                    if table.blob(parent).as_deref() != Some(&directory) {
                        return fail(libc::ENOENT);
                    }
                    let mut state = State::fresh(attrs, SystemTime::now());
                    state.attrs.mtime = Some(state.modified);
                    state.set_debt(Debt::Blob);
                    state.content = Some(Arc::clone(&file));
                    let node = table.create(parent, name, Kind::File, state);
                    log.belongs_to(node.id);
                    let opening = Opening::new(self, &node, file, writes(flags), &mut node.state());
                    drop(table);
                    let opened = self.register(opening, flags, false);
                    self.touch(parent);
                    let entry = self.entry(node.id).ok_or_else(|| because(libc::EIO, NOT_MADE))?;
                    return Ok((entry, opened));
                }
            }
        };
        // Nobody asks for a gate while holding one.
        drop(gates);
        if flags & libc::O_EXCL != 0 {
            return fail(libc::EEXIST);
        }
        let opened = self.open(existing, flags, owner.uid).await?;
        match self.entry(existing) {
            Some(entry) => Ok((entry, opened)),
            None => {
                let _ = self.release(opened.fh).await;
                fail_because(libc::ESTALE, NAME_GONE)
            }
        }
    }
}
