//! Reading, writing and resizing open files.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::attrs::Kind;
use super::core::Tree;
use super::handles::Handle;
use super::node::{Access, Life, Node, NodeId};
use crate::content::{At, ReadData};
use crate::errno::{Errno, Result, fail};
use crate::journal::record::Record;

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

    fn resized(&self, node: &Node, kill: bool) {
        let mut state = node.state();
        state.content_changed(SystemTime::now());
        state.owe_attributes();
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
        if node.state().life == Life::Superseded {
            return fail(libc::ESTALE);
        }
        if let Some(file) = self.shared(&node, |file, _| file) {
            file.truncate(size).await?;
            self.resized(&node, kill);
            if node.state().writers > 0 {
                return Ok(());
            }
            let committed = self.commit(&node).await;
            return self.or_discarded(&node, committed);
        }
        let _gates = self.gates(id).await?;
        let _change = node.change.lock().await;
        let file = self.current(&node, |file, _| file).await?;
        if node.state().access == Access::ReadOnly {
            return fail(libc::EPERM);
        }
        file.truncate(size).await?;
        self.resized(&node, kill);
        let committed = self.commit_changing(&node).await;
        self.or_discarded(&node, committed)
    }

    /// What could not be stored of a file that nobody has open, and whose caller is told so, is not stored
    /// later; what an earlier close has promised is.
    fn or_discarded(&self, node: &Node, committed: Result<()>) -> Result<()> {
        let discarded = committed.is_err() && {
            let mut state = node.state();
            let promised = state.promised && state.retrying;
            state.handles == 0 && !promised && self.finish_close(node, &mut state, committed)
        };
        if discarded {
            self.table.lock().record(Record::Discard { node: node.id });
        }
        committed
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
        // Blocks are copied by the source's blob name.
        let _gates = self.gates_for(&[from.node.id, to.node.id], &[]).await.ok();
        let copied = to
            .file
            .copy_from(&from.file, at, to_at, len)
            .await
            .map_err(Errno::from)?;
        if copied > 0 {
            self.wrote(&to, false);
        }
        Ok(copied)
    }
}
