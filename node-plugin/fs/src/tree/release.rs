//! Making files durable: commits, close(2), fsync(2), and the end of a handle.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blob_client::{Metadata, Written};

use super::attrs::{self, Attrs};
use super::busy::Busy;
use super::core::Tree;
use super::handles::Handle;
use super::node::{Debt, Life, Node, State};
use crate::caller::still_waits;
use crate::content::File;
use crate::content::binding::same;
use crate::errno::{Errno, Result, fail_because};
use crate::journal::record::Record;
use crate::log_limit::limited;

/// Closes of one handle that wait for a commit; those that follow only make one begin.
const FLUSHES_THAT_COMMIT: u32 = 3;

/// Why a commit is `ESTALE`.
const REPLACED: &str =
    "somebody else has replaced or removed the file: what was written has no version to go on top of";

/// When that one begins.
const SOON: Duration = Duration::from_millis(900);

/// Outcome of a commit of a node without a name: `ESTALE` when it is not by this mount's doing, and there is
/// data. (What this mount deletes while it is open is detached, and clean, or hidden.)
fn nothing_to_commit(state: &State) -> Result<()> {
    let dirty = state.content.as_ref().is_some_and(|c| c.is_dirty());
    if state.hidden.is_none() && dirty {
        fail_because(libc::ESTALE, REPLACED)
    } else {
        Ok(())
    }
}

/// A close of a handle answers before what was written is in the service.
fn promise(handle: &Handle) {
    let mut state = handle.node.state();
    state.promised |= state.owes();
}

/// Whether another commit may do what this one did not: not once somebody else has another version, or
/// nothing leads to the name; nor what the service never does, because a policy keeps the blob as it is or
/// the file is too large.
pub(super) fn may_yet_succeed(state: &State, committed: Result<()>) -> bool {
    let never = matches!(committed, Err(Errno(libc::ESTALE | libc::EPERM | libc::EFBIG)));
    match state.life {
        Life::Named(_) => !state.stale() && !never,
        Life::Superseded | Life::Unlinked => false,
    }
}

impl Tree {
    /// Makes what was written to a file durable.
    pub(crate) async fn commit(&self, node: &Arc<Node>) -> Result<()> {
        {
            let state = node.state();
            if state.nameless() {
                return nothing_to_commit(&state);
            }
            // Somebody else was faster.
            if state.stale() && state.content.as_ref().is_some_and(|c| c.is_dirty()) {
                return fail_because(libc::ESTALE, REPLACED);
            }
            if !state.pinned() {
                return Ok(());
            }
        }
        // Directories above may be moved meanwhile: they wait for the last request only.
        self.stage_ahead(node).await?;
        let _gates = match self.gates(node.id).await {
            Ok(gates) => gates,
            Err(Errno(libc::ENOENT)) => {
                let state = node.state();
                return match state.nameless() {
                    true => nothing_to_commit(&state),
                    // A directory above has lost its name: there is no place for what was written.
                    false if state.pinned() => fail_because(libc::ESTALE, "a folder above has lost its name"),
                    false => Ok(()),
                };
            }
            Err(errno) => return Err(errno),
        };
        let _change = node.change.lock().await;
        still_waits()?;
        let committed = self.commit_changing(node).await;
        if matches!(committed, Err(Errno(libc::EPERM))) {
            // A policy of the container may be younger than this mount: the next open asks.
            self.deletes.store(false, Ordering::Relaxed);
        }
        committed
    }

    /// Sends what a commit would send before its last request. No gates are held.
    pub(super) async fn stage_ahead(&self, node: &Node) -> Result<()> {
        let content = node.state().content.clone().filter(|content| content.is_dirty());
        match content {
            Some(content) => content.stage_ahead().await.map_err(Errno::from),
            None => Ok(()),
        }
    }

    /// Commits content and attributes. Gates and `change` are held.
    pub(super) async fn commit_changing(&self, node: &Arc<Node>) -> Result<()> {
        let (file, debt) = {
            let mut state = node.state();
            if state.nameless() {
                return nothing_to_commit(&state);
            }
            state.catch_up();
            // Whatever comes of it: the next close waits.
            state.emptied = false;
            let dirty = state
                .content
                .clone()
                .filter(|f| f.is_dirty() || state.uncommitted());
            (dirty, state.debt())
        };
        let Some(file) = file else {
            return if debt == Debt::Attributes {
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
        let written = file.commit(metadata.clone()).await?;
        let attrs_left = match &written {
            Some(written) => self.took(node, &file, written, &metadata, changes)?,
            None => {
                let mut state = node.state();
                state.promised &= state.owes();
                state.debt() == Debt::Attributes && !file.is_dirty()
            }
        };
        drop(busy);
        if attrs_left {
            return self.store_attrs(node, &|_: &mut Attrs| Ok(())).await;
        }
        Ok(())
    }

    /// The service has a version of the content, with this metadata, made when so many `changes` of
    /// attributes were known. True when attributes are left to store.
    pub(super) fn took(
        &self,
        node: &Node,
        file: &File,
        written: &Written,
        metadata: &Metadata,
        changes: u64,
    ) -> Result<bool> {
        let stamp = self.table.lock().tick();
        let mut state = node.state();
        state.written(written, stamp);
        state.size = file.size();
        state.digest = state.committed().1;
        if let Some(stored) = file.stored_metadata().filter(|stored| !same(stored, metadata)) {
            // Somebody else changed attributes meanwhile: what was not changed here is theirs.
            let now = state.metadata(node.kind, &self.defaults)?;
            state.attrs = attrs::merged(metadata, &now, &stored);
        }
        // A write that came while the content was sent may be in it, but its time is not.
        let debt = match state.changes == changes {
            true => Debt::Nothing,
            false => Debt::Attributes,
        };
        state.set_debt(debt);
        state.promised &= state.owes();
        Ok(state.debt() == Debt::Attributes && !file.is_dirty())
    }

    /// close(2) of one descriptor. Commits, so that whoever waits for it may go by its answer; but not
    ///
    /// - a file that was made here, or emptied by its open, and is still empty: the shell that opens it for a
    ///   command closes a descriptor before the command has written anything. Unless it was made with O_EXCL:
    ///   it may be a lock, and this close says who has it;
    /// - from the third close of a handle on: it is inherited by one process after the other (the output of a
    ///   `make`, say), and each of them would make a version of the file. A commit follows soon.
    ///
    /// The last close ([`Tree::release`]) and fsync(2) commit in either case. What a close did not wait for
    /// is promised all the same: it is sent again until the service takes it.
    pub(crate) async fn flush(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        if handle.commits {
            let closes = handle.closes.fetch_add(1, Ordering::Relaxed) + 1;
            let still_empty = handle.file.size() == 0 && {
                let state = handle.node.state();
                if state.uncommitted() {
                    !handle.exclusive
                } else {
                    state.emptied
                }
            };
            match closes {
                _ if still_empty => promise(&handle),
                0..FLUSHES_THAT_COMMIT => self.commit_handle(&handle).await?,
                _ => {
                    promise(&handle);
                    self.commit_soon(fh, &handle);
                }
            }
        }
        if handle.writes {
            let mut state = handle.node.state();
            state.flushed += u32::from(!handle.flushed.swap(true, Ordering::Relaxed));
        }
        Ok(())
    }

    /// Begins a commit within a second, once for all who ask for it meanwhile.
    fn commit_soon(self: &Arc<Self>, fh: u64, handle: &Arc<Handle>) {
        if handle.commit_soon.swap(true, Ordering::Relaxed) {
            return;
        }
        let tree = Arc::downgrade(self);
        self.env.runtime.spawn(async move {
            tokio::time::sleep(SOON).await;
            let Some(tree) = tree.upgrade() else { return };
            // Released meanwhile: then it is committed, or will be.
            let Ok(handle) = tree.handle(fh) else { return };
            handle.commit_soon.store(false, Ordering::Relaxed);
            if let Err(error) = tree.commit_handle(&handle).await {
                tracing::debug!(path = handle.file.blob(), %error, "a commit that nobody waits for failed");
                tree.commit_later(&handle.node);
            }
        });
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
            return fail_because(libc::ESTALE, REPLACED);
        }
        self.commit(&handle.node).await
    }

    /// The last descriptor of a handle is gone. Commits what came after the last flush (writes through
    /// mappings).
    pub(crate) async fn release(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let node = Arc::clone(&handle.node);
        // Whoever closes last: a commit that another handle's close began may have failed.
        let commits = handle.commits || {
            let state = node.state();
            state.handles == 1 && state.owes()
        };
        let committed = if commits {
            self.commit_handle(&handle).await
        } else {
            Ok(())
        };
        let (kept, hidden) = self.close_handle(fh, &handle, committed);
        if kept {
            limited!(
                warn, self.volume(), "what was written to a closed file is not stored yet, and is sent again",
                path = self.blob_of(node.id), node = node.id, error = ?committed.err()
            );
            self.commit_later(&node);
        }
        if let Some(hidden) = hidden {
            self.hidden.drop_blob(&hidden).await;
        }
        committed
    }

    /// A handle is gone, after its commit has ended so. Whether what was written is still owed, and the
    /// hidden blob that nobody needs any more.
    pub(super) fn close_handle(
        &self,
        fh: u64,
        handle: &Handle,
        committed: Result<()>,
    ) -> (bool, Option<String>) {
        let node = &handle.node;
        self.handles.close_file(fh);
        handle.file.closed(handle.writes);
        let (last, kept, discarded, hidden) = {
            let mut state = node.state();
            state.flushed -= u32::from(handle.flushed.load(Ordering::Relaxed));
            let last = state.closed(handle.writes);
            // What this commit could not send, or what came after it began (by a truncate(2) of the name,
            // say, which went by it), is owed whatever was answered: a program that has ended was told
            // nothing.
            // Who only reads does not hold that up.
            state.promised |= (last || handle.writes && state.writers == 0) && state.owes();
            let kept = state.promised && state.owes() && may_yet_succeed(&state, committed);
            let discarded = last && !kept && self.finish_close(node, &mut state, committed);
            (last, kept, discarded, state.hidden.take_if(|_| last))
        };
        let mut table = self.table.lock();
        table.record(Record::Release { fh });
        if discarded {
            table.record(Record::Discard { node: node.id });
        }
        if last {
            table.reap(node.id);
        }
        (kept, hidden)
    }

    /// Nobody has the file open any more. True when data was discarded.
    pub(super) fn finish_close(&self, node: &Node, state: &mut State, committed: Result<()>) -> bool {
        if state.nameless() {
            if state.promised && state.life == Life::Superseded {
                limited!(
                    error,
                    self.volume(),
                    "what was written to a file that was closed is not stored: somebody \
                     else has replaced or removed it",
                    path = state.content.as_ref().map(|content| content.blob()),
                    node = node.id
                );
                self.owed.lock().given_up += 1;
            }
            state.promised = false;
            state.content = None;
            return false;
        }
        match &state.content {
            Some(content) if content.is_dirty() || state.uncommitted() => {
                // close or fsync said so to whoever listened; the data has no version to go on top of.
                limited!(
                    error, self.volume(), "uncommitted data of a closed file is discarded",
                    path = content.blob(), node = node.id, error = ?committed.err()
                );
                self.owed.lock().given_up += 1;
                state.content = None;
                state.cached = false;
                state.etag = None;
                if state.uncommitted() {
                    state.size = 0;
                }
                state.set_debt(Debt::Nothing);
                state.promised = false;
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
}
