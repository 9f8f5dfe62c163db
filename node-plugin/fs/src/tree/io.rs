//! Reading, writing and resizing open files.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::attrs::{self, Attrs, Kind};
use super::busy::Busy;
use super::core::Tree;
use super::handles::Handle;
use super::node::{Access, Life, Node, NodeId, State};
use super::refusal::Wants;
use crate::caller::still_waits;
use crate::content::{At, File, ReadData};
use crate::errno::{Errno, Result, fail, fail_because};

/// How often a size is set anew when somebody begins to write meanwhile.
const ATTEMPTS: usize = 5;

/// What became of a size that is set by name, as far as this mount's own content goes.
enum Here {
    Done,
    /// There is something to commit first.
    Owed(Arc<File>),
    /// There is none.
    Nothing,
}

impl Tree {
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
            .map_err(Errno::from)
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
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Takes a write, waiting for room.
    pub(crate) async fn write(&self, handle: &Handle, at: At, data: &[u8], kill: bool) -> Result<()> {
        handle.file.write(at, data).await.map_err(Errno::from)?;
        self.wrote(handle, kill);
        Ok(())
    }

    fn wrote(&self, handle: &Handle, kill: bool) {
        let size = handle.file.size();
        let mut state = handle.node.state();
        let now = SystemTime::now();
        state.content_changed(now);
        state.emptied = false;
        // A commit was quicker, and did not carry this time.
        if !handle.file.is_dirty() {
            state.owe_attributes();
        }
        // Through a descriptor that was not the last, or a mapping.
        state.flushed -= u32::from(handle.flushed.swap(false, Ordering::Relaxed));
        // The kernel counts the size itself and asks for the time.
        state.kernel_view = Some((size, now));
        if kill {
            state.kill_privileges(handle.node.kind, &self.defaults);
        }
    }

    /// Sets the size through a handle.
    pub(crate) async fn truncate_handle(&self, fh: u64, size: u64, kill: bool) -> Result<()> {
        let handle = self.handle(fh)?;
        if !handle.writes {
            return fail(libc::EINVAL);
        }
        handle.file.truncate(size).await.map_err(Errno::from)?;
        self.resized(&handle.node, kill);
        Ok(())
    }

    /// Through a handle.
    fn resized(&self, node: &Node, kill: bool) {
        let mut state = node.state();
        state.emptied = false;
        self.note_resized(node, &mut state, kill);
    }

    fn note_resized(&self, node: &Node, state: &mut State, kill: bool) {
        state.content_changed(SystemTime::now());
        state.owe_attributes();
        if kill {
            state.kill_privileges(node.kind, &self.defaults);
        }
    }

    /// Sets the size of a file by its name: with the next commit of whoever is writing to it; else stored
    /// when this returns, or not at all.
    pub(crate) async fn truncate(&self, id: NodeId, size: u64, kill: bool) -> Result<()> {
        self.writable()?;
        let node = self.node(id)?;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return fail(libc::EISDIR),
            _ => return fail(libc::EINVAL),
        }
        for _ in 0..ATTEMPTS {
            if node.state().life == Life::Superseded {
                return fail_because(libc::ESTALE, "somebody else has replaced or removed the file");
            }
            // What is here and nobody writes to goes first, so that a failure of this is not one of that.
            match self.truncate_here(&node, size, kill)? {
                Here::Done => return Ok(()),
                Here::Owed(file) => {
                    self.commit(&node).await?;
                    // Of a file that no name leads to, nothing is ever stored.
                    if node.state().nameless() {
                        still_waits()?;
                        file.truncate(size).await?;
                        self.resized(&node, kill);
                        return Ok(());
                    }
                }
                Here::Nothing => {}
            }
            let _gates = self.gates(id).await?;
            let _change = node.change.lock().await;
            still_waits()?;
            // Somebody has begun to write.
            if self.shared(&node, |_, _| ()).is_some() {
                continue;
            }
            let file = self.current(&node, Wants::Write, |file, _| file).await?;
            if node.state().access == Access::ReadOnly {
                return fail(libc::EPERM);
            }
            if self.store_size(&node, &file, size, kill).await? {
                return Ok(());
            }
        }
        fail(libc::EBUSY)
    }

    /// Sets the size of content that is this mount's own, if somebody will store it.
    fn truncate_here(&self, node: &Arc<Node>, size: u64, kill: bool) -> Result<Here> {
        let here = self.shared(node, |file, state| {
            let stored_by_others = state.writers > 0 || state.nameless();
            if stored_by_others && file.try_truncate(size)? {
                // The kernel says the same of an open with O_TRUNC, after the open.
                state.emptied = size == 0;
                self.note_resized(node, state, kill);
                return Ok(Here::Done);
            }
            Ok(Here::Owed(file))
        });
        here.unwrap_or(Ok(Here::Nothing))
    }

    /// Stores a version of another size; false when somebody has begun to write meanwhile. Gates and `change`
    /// are held.
    async fn store_size(&self, node: &Arc<Node>, file: &File, size: u64, kill: bool) -> Result<bool> {
        let now = SystemTime::now();
        if file.size() == size && !file.is_dirty() {
            let defaults = self.defaults;
            let change = move |attrs: &mut Attrs| {
                attrs.mtime = Some(now);
                if kill {
                    attrs.kill_privileges(Kind::File, &defaults);
                }
                Ok(())
            };
            return self.store_attrs(node, &change).await.map(|()| true);
        }
        let (metadata, changes) = {
            let state = node.state();
            let mut attrs = state.attrs.clone();
            attrs.mtime = Some(now);
            if kill {
                attrs.kill_privileges(node.kind, &self.defaults);
            }
            attrs.ctime = Some(now);
            let metadata = attrs::encode_fitting(&attrs, node.kind, &self.defaults)?;
            (metadata, state.changes)
        };
        let busy = Busy::new(node);
        let Some(written) = file.resize(size, metadata.clone()).await? else {
            return Ok(false);
        };
        let attrs_left = {
            let mut state = node.state();
            // As if it had been changed before the commit that carried it.
            if state.changes == changes {
                state.attrs.mtime = Some(now);
            }
            if kill {
                state.kill_privileges(node.kind, &self.defaults);
            }
            state.ctime = now;
            drop(state);
            self.took(node, file, &written, &metadata, changes)?
        };
        drop(busy);
        if attrs_left {
            self.store_attrs(node, &|_: &mut Attrs| Ok(())).await?;
        }
        Ok(true)
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
        done.map_err(Errno::from)?;
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
        found.map_err(Errno::from)?.ok_or(Errno(libc::ENXIO))
    }

    /// copy_file_range(2).
    pub(crate) async fn copy_range(&self, from: u64, at: u64, to: u64, to_at: u64, len: u64) -> Result<u64> {
        let (from, to) = (self.handle(from)?, self.handle(to)?);
        if !to.writes {
            return fail(libc::EBADF);
        }
        let mut copied = 0;
        while copied < len {
            match self
                .copy_more(&from, at + copied, &to, to_at + copied, len - copied)
                .await
            {
                Ok(0) => break,
                Ok(more) => copied += more,
                Err(errno) if copied == 0 => return Err(errno),
                // The next call meets it.
                Err(_) => break,
            }
        }
        if copied > 0 {
            self.wrote(&to, false);
        }
        Ok(copied)
    }

    /// Copies a part of a range.
    async fn copy_more(&self, from: &Handle, at: u64, to: &Handle, to_at: u64, len: u64) -> Result<u64> {
        let stored = {
            // Blocks are copied by the source's blob name.
            let _gates = self.gates_for(&[from.node.id, to.node.id], &[]).await.ok();
            still_waits()?;
            to.file.copy_stored(&from.file, at, to_at, len).await?
        };
        if stored > 0 {
            return Ok(stored);
        }
        // No gates: it may wait for room, and directories above would wait with it.
        Ok(to.file.copy_through(&from.file, at, to_at, len).await?)
    }
}
