//! Open files: close-to-open consistency, commits, sizes.
//!
//! Every open of a file that this mount has nothing of its own for asks the service for the version (HEAD), so that what another mount closed is
//! seen. Handles on a node with uncommitted data or open writers share its content; a writer that was closed counts no longer, although the kernel's
//! RELEASE comes some time after close(2) has returned. A reader keeps the version it opened: when there is a newer one,
//! the node loses its name to a new node, as the kernel keeps one size and one set of pages for each. It learns of that by ESTALE, and looks again.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use blob_client::{Condition, Error};

use super::attrs::{Attrs, Kind};
use super::children::Owner;
use super::handles::Handle;
use super::lookup::Entry;
use super::node::{Node, NodeId, State};
use super::table::Found;
use super::{Tree, names};
use crate::content::{At, Base, File, FileError, ReadData, Reader};
use crate::errno::{Errno, Result, fail};
use crate::journal::NodeLog;
use crate::journal::record::Record;
use crate::volume::Profile;

/// An opened handle, and what the kernel may do with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    pub(crate) fh: u64,
    /// Pages from before the open are still right.
    pub(crate) keep_cache: bool,
    /// No pages at all.
    pub(crate) direct: bool,
}

/// Requests under way that change a node's version; answers from the service are not believed meanwhile.
pub(super) struct Busy<'a>(&'a Node);

impl<'a> Busy<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        node.state().busy += 1;
        Self(node)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy = state.busy.saturating_sub(1);
    }
}

/// A handle to be: counted from the moment its content is chosen, so that nobody takes the node for closed in between.
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

/// Outcome of a commit of a node without a name: `ESTALE` when it is not by this mount's doing, and there is data. (What this mount deletes while it
/// is open is detached, and clean, or hidden.)
fn nothing_to_commit(state: &State) -> Result<()> {
    let dirty = state.content.as_ref().is_some_and(|c| c.is_dirty());
    if state.hidden.is_none() && dirty {
        fail(libc::ESTALE)
    } else {
        Ok(())
    }
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
        let (told, lost) = {
            let state = node.state();
            (state.told, state.lost)
        };
        if lost && !self.table.lock().restore(id) {
            // The kernel still held the name; this makes it look again.
            return fail(libc::ESTALE);
        }
        let writes = writes(flags);
        let take = |file, state: &mut State| Opening::new(self, &node, file, writes, state);
        let (opening, shared) = match self.shared(&node, take) {
            Some(opening) => (opening, true),
            None => {
                // Gone as a name since the kernel looked it up: ESTALE makes the kernel look again.
                let _gates = self.gates(id).await.map_err(|_| Errno(libc::ESTALE))?;
                let _change = node.change.lock().await;
                match self.shared(&node, take) {
                    Some(opening) => (opening, true),
                    None => (self.current(&node, take).await?, false),
                }
            }
        };
        let file = &opening.file;
        if (writes || truncates) && !node.state().writable {
            return fail(libc::EPERM);
        }
        if truncates {
            file.truncate(0).await?;
            let mut state = node.state();
            state.content_changed(SystemTime::now());
            state.attrs_dirty = true;
            if uid != 0 {
                state.kill_privileges(node.kind, &self.defaults);
            }
        }
        let asked = !shared && !truncates;
        let stale_size = asked && told.is_some_and(|(size, _)| size != file.size());
        // The kernel may hold attributes for longer than the version they are of: fstat after the open is about this one.
        let stale_attrs = asked && told.is_some_and(|told| told != (file.size(), node.state().mtime()));
        if stale_attrs && let Some(invalidate) = self.invalidate.get() {
            invalidate(id);
        }
        Ok(self.register(opening, flags, stale_size))
    }

    /// Content that a new handle shares without asking: this mount's own. It is taken while nobody else can change what the node has.
    fn shared<T>(&self, node: &Node, take: impl FnOnce(Arc<File>, &mut State) -> T) -> Option<T> {
        let mut state = node.state();
        let own = state.unlinked || (!state.stale() && (state.writing() || state.pinned()));
        let content = state.content.clone().filter(|_| own)?;
        Some(take(content, &mut state))
    }

    /// The content of the version that the service has now, taken likewise. `ESTALE` when handles have another version open: the name leads to
    /// a new node then. Gates and `change` are held.
    async fn current<T>(&self, node: &Arc<Node>, take: impl FnOnce(Arc<File>, &mut State) -> T) -> Result<T> {
        let (blob, parent, name, asked) = {
            let table = self.table.lock();
            let link = table.link(node.id).ok_or(Errno(libc::ESTALE))?;
            (
                table.blob(node.id).ok_or(Errno(libc::ESTALE))?,
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
                return fail(libc::ESTALE);
            }
            Err(error) => return Err(error.into()),
        };
        let found = Found {
            blob: Some(&properties),
            prefix: false,
        };
        if found.kind() != Some(Kind::File) {
            self.table.lock().learn(parent, &name, found, asked);
            return fail(libc::ESTALE);
        }
        let mut table = self.table.lock();
        if node.state().superseded_by(&properties.etag) {
            table.learn(parent, &name, found, asked);
            return fail(libc::ESTALE);
        }
        table.confirm(parent, &name, asked.at);
        drop(table);
        let mut state = node.state();
        if state.stale() {
            // What was not committed never will be.
            state.content = None;
            state.uncommitted = false;
            state.attrs_dirty = false;
        }
        state.adopt(&properties, asked.at);
        if let Some(content) = state.content.clone()
            && content.etag().as_ref() == Some(&properties.etag)
        {
            return Ok(take(content, &mut state));
        }
        let base = Base {
            etag: properties.etag.clone(),
            size: properties.content_length,
            writable: state.writable,
        };
        let log = NodeLog::new(Arc::clone(&self.journal), node.id);
        let file = File::open(self.env.with_log(log), blob, base);
        state.content = Some(Arc::clone(&file));
        Ok(take(file, &mut state))
    }

    fn register(&self, mut opening: Opening<'_>, flags: i32, stale_size: bool) -> Opened {
        opening.done = true;
        let (node, file, writes) = (opening.node, Arc::clone(&opening.file), opening.writes);
        // A file that is only read may still have been made or emptied by its open.
        let commits = writes || flags & libc::O_TRUNC != 0 || node.state().uncommitted;
        if writes && let Ok(metadata) = node.state().metadata(node.kind, &self.defaults) {
            file.set_metadata(metadata);
        }
        let generation = file.etag().map(|e| e.0).unwrap_or_default();
        // The kernel's idea of the size is older than the file: it would keep what is appended at the wrong place among its pages.
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
            settled: AtomicBool::new(false),
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

    /// Makes a file and opens it. Nothing is sent: the first commit creates the blob, and only if there is none.
    pub(crate) async fn create(
        &self,
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
        let directory = self.table.lock().blob(parent).ok_or(Errno(libc::ENOENT))?;
        let blob = names::join(&directory, name);
        names::check_blob(&blob)?;
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
                    state.uncommitted = true;
                    state.attrs_dirty = true;
                    state.content = Some(Arc::clone(&file));
                    let node = table.create(parent, name, Kind::File, state);
                    log.belongs_to(node.id);
                    let opening = Opening::new(self, &node, file, writes(flags), &mut node.state());
                    drop(table);
                    let opened = self.register(opening, flags, false);
                    self.touch(parent);
                    let entry = self.entry(node.id).ok_or(Errno(libc::EIO))?;
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
                fail(libc::ESTALE)
            }
        }
    }

    /// An open handle.
    pub(crate) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles.file(fh)
    }

    /// The answer to a read that needs no waiting.
    pub(crate) fn read_now(&self, handle: &Handle, offset: u64, len: usize) -> Option<ReadData> {
        handle.file.try_read(&handle.reader, offset, len)
    }

    /// The answer to a read.
    pub(crate) async fn read(&self, handle: &Handle, offset: u64, len: usize) -> Result<ReadData> {
        handle
            .file
            .read(&handle.reader, offset, len)
            .await
            .map_err(|error| self.broken(handle, error))
    }

    /// Takes a write if there is room; `None`: call [`Tree::write`].
    pub(crate) fn write_now(&self, handle: &Handle, at: At, data: &[u8], kill: bool) -> Option<Result<()>> {
        if !handle.writes {
            return Some(fail(libc::EBADF));
        }
        match handle.file.try_write(at, data) {
            Ok(true) => {
                self.wrote(handle, kill);
                Some(Ok(()))
            }
            Ok(false) => None,
            Err(error) => Some(Err(self.broken(handle, error))),
        }
    }

    /// Takes a write, waiting for room.
    pub(crate) async fn write(&self, handle: &Handle, at: At, data: &[u8], kill: bool) -> Result<()> {
        handle
            .file
            .write(at, data)
            .await
            .map_err(|error| self.broken(handle, error))?;
        self.wrote(handle, kill);
        Ok(())
    }

    fn wrote(&self, handle: &Handle, kill: bool) {
        let size = handle.file.size();
        let mut state = handle.node.state();
        let now = SystemTime::now();
        state.content_changed(now);
        // A commit was quicker, and did not carry this time.
        state.attrs_dirty |= !state.unlinked && !handle.file.is_dirty();
        // Through a descriptor that was not the last, or a mapping.
        state.settled -= u32::from(handle.settled.swap(false, Ordering::Relaxed));
        // The kernel counts the size itself and asks for the time.
        state.told = Some((size, now));
        if kill {
            state.kill_privileges(handle.node.kind, &self.defaults);
        }
    }

    /// What a program gets to see of an error of a file's content.
    fn broken(&self, handle: &Handle, error: FileError) -> Errno {
        if matches!(error, FileError::Stale) {
            tracing::warn!(
                node = handle.node.id,
                "a file was changed by somebody else while it was open here"
            );
        }
        error.into()
    }

    /// Makes what was written to a file durable.
    pub(crate) async fn commit(&self, node: &Arc<Node>) -> Result<()> {
        {
            let state = node.state();
            if state.unlinked {
                return nothing_to_commit(&state);
            }
            // Somebody else was faster.
            if state.stale() && state.content.as_ref().is_some_and(|c| c.is_dirty()) {
                return fail(libc::ESTALE);
            }
            if !state.pinned() {
                return Ok(());
            }
        }
        let _gates = match self.gates(node.id).await {
            Ok(gates) => gates,
            Err(Errno(libc::ENOENT)) => {
                let state = node.state();
                return match state.unlinked {
                    true => nothing_to_commit(&state),
                    // A directory above has lost its name: there is no place for what was written.
                    false if state.pinned() => fail(libc::ESTALE),
                    false => Ok(()),
                };
            }
            Err(errno) => return Err(errno),
        };
        let _change = node.change.lock().await;
        self.commit_changing(node).await
    }

    /// Commits content and attributes. Gates and `change` are held.
    pub(super) async fn commit_changing(&self, node: &Arc<Node>) -> Result<()> {
        let (file, attrs_dirty) = {
            let mut state = node.state();
            if state.unlinked {
                return nothing_to_commit(&state);
            }
            state.catch_up();
            let dirty = state
                .content
                .clone()
                .filter(|f| f.is_dirty() || state.uncommitted);
            (dirty, state.attrs_dirty)
        };
        let Some(file) = file else {
            return if attrs_dirty {
                self.store_attrs(node, &|_: &mut Attrs| Ok(())).await
            } else {
                Ok(())
            };
        };
        let (metadata, changes) = {
            let state = node.state();
            (state.metadata(node.kind, &self.defaults)?, state.changes)
        };
        let busy = Busy::new(node);
        let written = file.commit(metadata).await?;
        let stamp = self.table.lock().tick();
        let attrs_left = {
            let mut state = node.state();
            if let Some(written) = &written {
                state.written(written, stamp);
                state.uncommitted = false;
                state.size = file.size();
                // A write that came while the content was sent may be in it, but its time is not.
                state.attrs_dirty = state.changes != changes;
            }
            state.attrs_dirty && !file.is_dirty()
        };
        drop(busy);
        if attrs_left {
            return self.store_attrs(node, &|_: &mut Attrs| Ok(())).await;
        }
        Ok(())
    }

    /// close(2) of one descriptor.
    pub(crate) async fn flush(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        if handle.commits {
            self.commit_handle(&handle).await?;
        }
        if handle.writes {
            let mut state = handle.node.state();
            state.settled += u32::from(!handle.settled.swap(true, Ordering::Relaxed));
        }
        Ok(())
    }

    /// fsync(2): also of a handle that only reads, as the data may be another handle's.
    pub(crate) async fn fsync(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        self.commit_handle(&handle).await
    }

    async fn commit_handle(&self, handle: &Handle) -> Result<()> {
        let own = {
            let state = handle.node.state();
            state
                .content
                .as_ref()
                .is_some_and(|c| Arc::ptr_eq(c, &handle.file))
        };
        // The node has gone on without it: what was written has no version to go on top of.
        if handle.file.is_dirty() && !own {
            return fail(libc::ESTALE);
        }
        self.commit(&handle.node).await
    }

    /// The last descriptor of a handle is gone. Commits what came after the last flush (writes through mappings).
    pub(crate) async fn release(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let node = Arc::clone(&handle.node);
        let committed = if handle.commits {
            self.commit_handle(&handle).await
        } else {
            Ok(())
        };
        self.handles.close_file(fh);
        let (last, lost, hidden) = {
            let mut state = node.state();
            state.settled -= u32::from(handle.settled.load(Ordering::Relaxed));
            let last = state.closed(handle.writes);
            let lost = last && self.rest(&node, &mut state, committed);
            (last, lost, state.hidden.take_if(|_| last))
        };
        {
            let mut table = self.table.lock();
            table.record(Record::Release { fh });
            if lost {
                table.record(Record::Discard { node: node.id });
            }
            if last {
                table.reap(node.id);
            }
        }
        if let Some(hidden) = hidden {
            self.hidden.drop_blob(&hidden).await;
        }
        committed
    }

    /// Nobody has the file open any more. True when data was lost.
    fn rest(&self, node: &Node, state: &mut State, committed: Result<()>) -> bool {
        if state.unlinked {
            state.content = None;
            return false;
        }
        match &state.content {
            Some(content) if content.is_dirty() || state.uncommitted => {
                // close or fsync said so to whoever listened; the data has no version to go on top of.
                tracing::error!(node = node.id, error = ?committed.err(), "uncommitted data of a closed file is lost");
                state.content = None;
                state.attrs_dirty = false;
                state.cached = false;
                state.etag = None;
                if state.uncommitted {
                    state.uncommitted = false;
                    state.size = 0;
                }
                if let Some(old) = state
                    .validated
                    .checked_sub(self.timeouts.attr.max(self.timeouts.entry))
                {
                    state.validated = old;
                }
                return true;
            }
            Some(content) => state.size = content.size(),
            None => {}
        }
        false
    }

    /// Sets the size through a handle.
    pub(crate) async fn truncate_handle(&self, fh: u64, size: u64, kill: bool) -> Result<()> {
        let handle = self.handle(fh)?;
        if !handle.writes {
            return fail(libc::EINVAL);
        }
        handle
            .file
            .truncate(size)
            .await
            .map_err(|error| self.broken(&handle, error))?;
        self.resized(&handle.node, kill);
        Ok(())
    }

    fn resized(&self, node: &Node, kill: bool) {
        let mut state = node.state();
        state.content_changed(SystemTime::now());
        state.attrs_dirty |= !state.unlinked;
        if kill {
            state.kill_privileges(node.kind, &self.defaults);
        }
    }

    /// Sets the size of a file by its name; durable when it returns, unless somebody is writing anyway.
    pub(crate) async fn truncate(&self, id: NodeId, size: u64, kill: bool) -> Result<()> {
        self.writable()?;
        let node = self.node(id)?;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return fail(libc::EISDIR),
            _ => return fail(libc::EINVAL),
        }
        if node.state().lost {
            return fail(libc::ESTALE);
        }
        if let Some(file) = self.shared(&node, |file, _| file) {
            file.truncate(size).await?;
            self.resized(&node, kill);
            if node.state().writers > 0 {
                return Ok(());
            }
            return self.commit(&node).await;
        }
        let _gates = self.gates(id).await?;
        let _change = node.change.lock().await;
        let file = self.current(&node, |file, _| file).await?;
        if !node.state().writable {
            return fail(libc::EPERM);
        }
        file.truncate(size).await?;
        self.resized(&node, kill);
        self.commit_changing(&node).await
    }

    /// fallocate(2).
    pub(crate) async fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let handle = self.handle(fh)?;
        if !handle.writes {
            return fail(libc::EBADF);
        }
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        let done = match mode {
            0 => handle.file.allocate(offset, len, false).await,
            KEEP => handle.file.allocate(offset, len, true).await,
            PUNCH => handle.file.punch_hole(offset, len).await,
            _ => return fail(libc::EOPNOTSUPP),
        };
        done.map_err(|error| self.broken(&handle, error))?;
        if mode != KEEP {
            self.resized(&handle.node, false);
        }
        Ok(())
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub(crate) async fn lseek(&self, fh: u64, offset: u64, hole: bool) -> Result<u64> {
        let handle = self.handle(fh)?;
        let found = if hole {
            handle.file.seek_hole(offset).await
        } else {
            handle.file.seek_data(offset).await
        };
        found
            .map_err(|error| self.broken(&handle, error))?
            .ok_or(Errno(libc::ENXIO))
    }

    /// copy_file_range(2).
    pub(crate) async fn copy_range(&self, from: u64, at: u64, to: u64, to_at: u64, len: u64) -> Result<u64> {
        let (from, to) = (self.handle(from)?, self.handle(to)?);
        if !to.writes {
            return fail(libc::EBADF);
        }
        // Blocks are copied by the source's blob name.
        let _gates = self.gates_for(&[from.node.id, to.node.id], &[]).await.ok();
        let copied = to
            .file
            .copy_from(&from.file, at, to_at, len)
            .await
            .map_err(|error| self.broken(&to, error))?;
        if copied > 0 {
            self.wrote(&to, false);
        }
        Ok(copied)
    }
}
