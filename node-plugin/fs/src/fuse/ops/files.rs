//! Requests on files and what is in them.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{
    FileHandle, OpenFlags, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

use crate::cause;
use crate::content::{At, FileError};
use crate::errno::{Errno, Result};
use crate::fuse::call::{Call, Copied, Offset};
use crate::fuse::dispatch::{Adapter, not_taken};
use crate::fuse::replies::{GENERATION, attributes, empty, errno, open_flags, owner, reply_data};
use crate::observer::Operation;
use crate::tree::{Entry, NodeId, Opened, Tree};

/// Closes a handle that was opened too late.
async fn close(tree: Arc<Tree>, fh: u64) {
    // Nobody has written through it.
    let _ = tree.release(fh).await;
}

impl Adapter {
    pub(in crate::fuse) fn on_open(&self, node: NodeId, flags: OpenFlags, uid: u32, reply: ReplyOpen) {
        self.guard(Call::on(Operation::Open, node), |this, call| {
            let (tree, late) = (Arc::clone(&this.tree), Arc::clone(&this.tree));
            this.spawn_or_undo(
                call,
                async move { tree.open(node, flags.0, uid).await },
                |outcome| match outcome {
                    Ok(opened) => reply.opened(FileHandle(opened.fh), open_flags(opened)),
                    Err(e) => reply.error(errno(e)),
                },
                move |opened| close(late, opened.fh),
            );
        });
    }

    pub(in crate::fuse) fn on_create(
        &self,
        req: &Request,
        (parent, name): (NodeId, &OsStr),
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (owner, unique) = (owner(req), req.unique().0);
        self.guard(Call::at(Operation::Create, parent, name), |this, call| {
            let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
            let (journal, late) = (Arc::clone(&tree), Arc::clone(&tree));
            let operation = async move { tree.create(parent, &name, mode, flags, owner).await };
            let undo = move |(entry, opened): (Entry, Opened)| {
                let forget = not_taken(&late)(entry);
                async move {
                    forget.await;
                    close(late, opened.fh).await;
                }
            };
            let reply = move |outcome: Result<(Entry, Opened)>| {
                let (node, fh) = match &outcome {
                    Ok((entry, opened)) => (entry.stat.as_ref().map_or(0, |s| s.id), opened.fh),
                    Err(_) => (0, 0),
                };
                journal.record_reply(unique, outcome.as_ref().err().map_or(0, |e| e.0), node, fh);
                match outcome {
                    Ok((
                        Entry {
                            stat: Some(stat),
                            attr_ttl,
                            entry_ttl,
                        },
                        opened,
                    )) => reply.created(
                        &attr_ttl.min(entry_ttl),
                        &attributes(&stat),
                        GENERATION,
                        FileHandle(opened.fh),
                        open_flags(opened),
                    ),
                    Ok(_) => reply.error(fuser::Errno::EIO),
                    Err(e) => reply.error(errno(e)),
                }
            };
            this.spawn_or_undo(call, operation, reply, undo);
        });
    }

    pub(in crate::fuse) fn on_read(
        &self,
        node: NodeId,
        fh: FileHandle,
        (offset, size): (u64, usize),
        flags: OpenFlags,
        reply: ReplyData,
    ) {
        let call = Call::on(Operation::Read, node);
        self.with_handle(call, fh, reply, ReplyData::error, |this, call, handle, reply| {
            if flags.0 & libc::O_DIRECT == 0 && !handle.node.pages.load(Ordering::Relaxed) {
                handle.node.pages.store(true, Ordering::SeqCst);
            }
            if let Some(known) = this.now(&call, |tree| tree.read_now(&handle, offset, size).map(Ok)) {
                return reply_data(reply, known);
            }
            let tree = Arc::clone(&this.tree);
            this.spawn(
                call,
                async move { tree.read(&handle, offset, size).await },
                |outcome| reply_data(reply, outcome),
            );
        });
    }

    pub(in crate::fuse) fn on_write(
        &self,
        req: &Request,
        (node, fh): (NodeId, FileHandle),
        (offset, data): (u64, &[u8]),
        write_flags: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        let of_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let call = Call::on(Operation::Write, node)
            .with_bytes(data.len())
            .of_pages(of_pages);
        self.with_handle(call, fh, reply, ReplyWrite::error, |this, call, handle, reply| {
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            // Pages that were stored to through a mapping are written back where they are.
            let appends = flags.0 & libc::O_APPEND != 0 && !of_pages;
            let at = if appends { At::End } else { At::Offset(offset) };
            let size = data.len() as u32;
            // A write at the end of the file is not the same twice; at an offset it is.
            let once = appends.then(|| Arc::clone(&this.tree));
            let (unique, node) = (req.unique().0, handle.node.id);
            let answer = move |outcome: Result<()>| {
                if let Some(tree) = once {
                    tree.record_reply(unique, outcome.err().map_or(0, |e| e.0), node, 0);
                }
                match outcome {
                    Ok(()) => reply.written(size),
                    Err(e) => reply.error(errno(e)),
                }
            };
            let direct = flags.0 & libc::O_DIRECT != 0 && !of_pages;
            // Of a write at the end nobody has read the range yet.
            let range = (offset, data.len() as u64);
            // Pages that the kernel has of what is written past them go before the answer; never in this
            // thread, as the kernel waits for reads under way, which this thread answers.
            let (tree, runtime) = (Arc::clone(&this.tree), this.runtime.clone());
            let pages = Arc::clone(&handle);
            let finish = move |done: Result<()>| {
                if direct && done.is_ok() && pages.node.pages.swap(false, Ordering::SeqCst) {
                    runtime.spawn(async move {
                        tree.drop_pages(node, range.0, range.1).await;
                        answer(done);
                    });
                } else {
                    answer(done);
                }
            };
            if let Some(done) = this.now(&call, |tree| tree.write_now(&handle, at, data, kill)) {
                return finish(done);
            }
            let tree = Arc::clone(&this.tree);
            let share = Arc::clone(tree.share());
            if let Some(charge) = share.try_charge_waiting(data.len()) {
                // Not in the loop thread: programs read and close meanwhile.
                let data = data.to_vec();
                let operation = async move {
                    let _waiting = charge;
                    tree.write(&handle, at, &data, kill).await
                };
                return this.spawn_to_its_end(call, operation, finish);
            }
            // As many writes wait as there may be copies of.
            if let Some(spooled) = share.spool(data) {
                let patience = tree.config().timeout.whole();
                let operation = async move {
                    let Some(_waiting) = share.charge_waiting(size as usize, patience).await else {
                        return Err(FileError::NoRoom.into());
                    };
                    let data = spooled.read().map_err(|error| {
                        cause::note(|| format!("data of a write that waited on disk: {error}"));
                        Errno(libc::EIO)
                    })?;
                    drop(spooled);
                    tree.write(&handle, at, &data, kill).await
                };
                return this.spawn_to_its_end(call, operation, finish);
            }
            // This one waits here, where it is, and this mount's further requests in the kernel until there
            // is room. That comes by itself, by what is sent; other mounts have threads of their own.
            this.here(call, tree.write(&handle, at, data, kill), finish);
        });
    }

    pub(in crate::fuse) fn on_flush(&self, node: NodeId, fh: u64, reply: ReplyEmpty) {
        if self.tree.config().read_only {
            // Answered once, it ends FLUSH for the whole connection: closing a file then never waits for a
            // dead server.
            let call = Call::on(Operation::Flush, node);
            return self.refuse(&call, libc::ENOSYS, |errno| reply.error(errno));
        }
        self.guard(Call::on(Operation::Flush, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.flush(fh).await };
            this.spawn(call, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_release(&self, node: NodeId, fh: u64, reply: ReplyEmpty) {
        self.guard(Call::on(Operation::Release, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.release(fh).await };
            this.spawn(call, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_fsync(&self, node: NodeId, fh: u64, reply: ReplyEmpty) {
        self.guard(Call::on(Operation::Fsync, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.fsync(fh).await };
            this.spawn(call, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_fallocate(
        &self,
        (node, fh): (NodeId, u64),
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.guard(Call::on(Operation::Fallocate, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.fallocate(fh, offset, length, mode).await };
            this.spawn(call, operation, empty(reply));
        });
    }

    pub(in crate::fuse) fn on_lseek(
        &self,
        (node, fh): (NodeId, u64),
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let call = Call::on(Operation::Lseek, node);
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return self.refuse(&call, libc::EINVAL, |errno| reply.error(errno)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return self.refuse(&call, libc::ENXIO, |errno| reply.error(errno));
        };
        self.guard(call, |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.lseek(fh, offset, hole).await.map(Offset) };
            this.spawn(call, operation, |outcome| {
                match outcome.map(|Offset(at)| i64::try_from(at)) {
                    Ok(Ok(offset)) => reply.offset(offset),
                    Ok(Err(_)) => reply.error(fuser::Errno::EOVERFLOW),
                    Err(e) => reply.error(errno(e)),
                }
            });
        });
    }

    pub(in crate::fuse) fn on_copy_file_range(
        &self,
        (from, at): (u64, u64),
        (node, to, to_at): (NodeId, u64, u64),
        len: u64,
        reply: ReplyWrite,
    ) {
        // The reply holds 32 bits; programs go on from what was copied.
        let len = len.min(1 << 30);
        self.guard(Call::on(Operation::CopyFileRange, node), |this, call| {
            let tree = Arc::clone(&this.tree);
            let operation = async move { tree.copy_range(from, at, to, to_at, len).await.map(Copied) };
            this.spawn(call, operation, |outcome| match outcome {
                Ok(Copied(copied)) => reply.written(copied as u32),
                Err(e) => reply.error(errno(e)),
            });
        });
    }
}
