//! Between fuser and the tree: hits are answered in the loop thread, everything else by a task with a
//! deadline.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use futures::FutureExt;
use tokio::runtime::Handle as Runtime;
use tokio_util::task::TaskTracker;

use super::MAX_REQUEST;
use super::replies::{
    GENERATION, attributes, empty, errno, fill, fill_plus, open_flags, reply_attr, reply_data, reply_entry,
    reply_xattr, set_time,
};
use crate::content::At;
use crate::errno::{Result, fail};
use crate::tree::{Entry, Handle, Opened, Owner, Replace, SetAttr, Tree, Waits};

/// Requests in the background that the kernel keeps under way (read-ahead, asynchronous direct I/O,
/// releases).
const MAX_BACKGROUND: u16 = 256;
/// Loop threads: enough for hits, and a second one for when the first copies.
const LOOP_THREADS: usize = 2;
/// After this long, a caller gets EIO. Requests to the service have deadlines of their own, much shorter;
/// this one is for what nobody thought of, as a caller whose request is never answered cannot even be killed.
/// Waiting for a directory that is being moved does not count: that has its own end.
const DEADLINE: Duration = Duration::from_secs(120);
/// The same for operations that move an amount of data nobody knows beforehand.
const LONG_DEADLINE: Duration = Duration::from_secs(900);

/// Serves one tree through fuser.
#[derive(Debug)]
pub(crate) struct Adapter {
    tree: Arc<Tree>,
    runtime: Runtime,
    tasks: TaskTracker,
}

/// Answers INIT on a mounted descriptor; the session is then ready to run.
pub(crate) fn serve(
    tree: Arc<Tree>,
    fd: OwnedFd,
    runtime: Runtime,
    tasks: TaskTracker,
) -> io::Result<Session<Adapter>> {
    let adapter = Adapter {
        tree: Arc::clone(&tree),
        runtime: runtime.clone(),
        tasks,
    };
    let mut config = Config::default();
    config.n_threads = Some(LOOP_THREADS);
    // No cloned descriptors: their requests would die with this process (design: recovery).
    config.clone_fd = false;
    config.acl = SessionACL::All;
    let session = Session::from_fd(adapter, fd, SessionACL::All, config)?;
    let notifier: Notifier = session.notifier();
    tree.on_invalidate(Box::new(move |id| {
        // Attributes only: pages are dropped by the open itself.
        if let Err(error) = notifier.inval_inode(INodeNo(id), -1, 0) {
            tracing::debug!(%error, id, "the kernel did not drop attributes");
        }
    }));
    let notifier: Notifier = session.notifier();
    tree.on_expire(Arc::new(move |parent, name| {
        if let Err(error) = notifier.inval_entry(INodeNo(parent), OsStr::new(name)) {
            // It has forgotten the name already.
            tracing::trace!(%error, parent, name, "the kernel did not drop a name");
        }
    }));
    Ok(session)
}

impl Adapter {
    /// Runs an operation as a task and replies with its outcome, or EIO at the deadline; the operation itself
    /// is never cut off half-way.
    fn spawn<T, F>(
        &self,
        what: &'static str,
        deadline: Duration,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.spawn_or_undo(what, deadline, operation, reply, |_| std::future::ready(()));
    }

    /// The same for an operation whose success the kernel would have to know of: `undo` gets what came after
    /// the deadline.
    fn spawn_or_undo<T, F, U>(
        &self,
        what: &'static str,
        deadline: Duration,
        operation: F,
        reply: impl FnOnce(Result<T>) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        self.tasks.spawn_on(
            async move {
                let waits = Waits::default();
                let mut operation = pin!(waits.of(AssertUnwindSafe(operation).catch_unwind()));
                let outcome = loop {
                    let before = waits.count();
                    match tokio::time::timeout(deadline, &mut operation).await {
                        Ok(outcome) => break Some(outcome),
                        // It waited for a gate, or still does.
                        Err(_elapsed) if before != waits.count() || before % 2 != 0 => {}
                        Err(_elapsed) => break None,
                    }
                };
                match outcome {
                    Some(Ok(outcome)) => reply(outcome),
                    Some(Err(_panic)) => {
                        tracing::error!(what, "an operation panicked");
                        reply(fail(libc::EIO));
                    }
                    None => {
                        tracing::error!(what, ?deadline, "an operation took too long; the caller got EIO");
                        reply(fail(libc::EIO));
                        if let Ok(Ok(late)) = operation.await {
                            undo(late).await;
                        }
                    }
                }
            },
            &self.runtime,
        );
    }

    /// A callback that does not take the loop thread down with it: on a panic, fuser answers EIO for the
    /// dropped reply.
    fn guard(&self, what: &'static str, callback: impl FnOnce(&Self)) {
        if catch_unwind(AssertUnwindSafe(|| callback(self))).is_err() {
            tracing::error!(what, "a callback panicked");
        }
    }

    /// [`Adapter::guard`] for a callback on an open file, which refuses an unknown handle by `refuse`.
    fn with_handle<R>(
        &self,
        what: &'static str,
        fh: FileHandle,
        reply: R,
        refuse: fn(R, fuser::Errno),
        callback: impl FnOnce(&Self, Arc<Handle>, R),
    ) {
        self.guard(what, |this| match this.tree.handle(fh.0) {
            Ok(handle) => callback(this, handle, reply),
            Err(e) => refuse(reply, errno(e)),
        });
    }

    /// An operation that must not run twice: its outcome is in the journal before the reply is sent.
    fn once<F>(
        &self,
        what: &'static str,
        unique: u64,
        operation: F,
        reply: impl FnOnce(Result<()>) + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        self.spawn(what, LONG_DEADLINE, operation, move |outcome| {
            tree.record_reply(unique, outcome.err().map_or(0, |e| e.0), 0, 0);
            reply(outcome);
        });
    }

    /// The same for an operation that makes an entry.
    fn make<F>(&self, what: &'static str, unique: u64, operation: F, reply: ReplyEntry)
    where
        F: Future<Output = Result<Entry>> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        let reply = move |outcome: Result<Entry>| {
            let node = outcome
                .as_ref()
                .ok()
                .and_then(|e| e.stat.as_ref())
                .map_or(0, |s| s.id);
            tree.record_reply(unique, outcome.as_ref().err().map_or(0, |e| e.0), node, 0);
            reply_entry(reply, outcome);
        };
        self.spawn_or_undo(what, DEADLINE, operation, reply, not_taken(&self.tree));
    }
}

/// Undoes an entry that came too late.
fn not_taken(tree: &Arc<Tree>) -> impl FnOnce(Entry) -> std::future::Ready<()> + Send + 'static {
    let tree = Arc::clone(tree);
    move |entry| {
        if let Some(stat) = entry.stat {
            tree.not_taken(stat.id);
        }
        std::future::ready(())
    }
}

/// Closes a handle that was opened too late.
async fn close(tree: Arc<Tree>, fh: u64) {
    // Nobody has written through it.
    let _ = tree.release(fh).await;
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Refused values are the kernel's limits: then the nearest it takes.
        if let Err(nearest) = config.set_max_write(MAX_REQUEST) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            let _ = config.set_max_background(nearest);
        }
        // Not ATOMIC_O_TRUNC: with it, the kernel has a file emptied before it notices that the file is being
        // executed.
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // Without it, the kernel asks for an attribute before every write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer it");
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard("lookup", |this| match this.tree.lookup_now(parent.0, name) {
            Some(known) => reply_entry(reply, known),
            None => {
                let (tree, name) = (Arc::clone(&this.tree), name.to_owned());
                this.spawn_or_undo(
                    "lookup",
                    DEADLINE,
                    async move { tree.lookup(parent.0, &name).await },
                    |outcome| reply_entry(reply, outcome),
                    not_taken(&this.tree),
                );
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.guard("forget", |this| this.tree.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        // The kernel names the handle when it reads and wants to know where the file ends.
        if let Some(handle) = fh.and_then(|fh| self.tree.handle(fh.0).ok()) {
            return self.guard("getattr", |this| {
                reply_attr(reply, Ok(this.tree.getattr_open(&handle)));
            });
        }
        self.guard("getattr", |this| match this.tree.getattr_now(ino.0) {
            Some(known) => reply_attr(reply, known),
            None => {
                let tree = Arc::clone(&this.tree);
                this.spawn(
                    "getattr",
                    DEADLINE,
                    async move { tree.getattr(ino.0).await },
                    |outcome| {
                        reply_attr(reply, outcome);
                    },
                );
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            fh: fh.map(|fh| fh.0),
            // fuser does not show FATTR_KILL_SUIDGID; the kernel sets it for callers without CAP_FSETID.
            kill: req.uid() != 0,
        };
        self.guard("setattr", |this| {
            let tree = Arc::clone(&this.tree);
            this.spawn(
                "setattr",
                LONG_DEADLINE,
                async move { tree.setattr(ino.0, set).await },
                |outcome| {
                    reply_attr(reply, outcome);
                },
            );
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let answer = |reply: ReplyData, outcome: Result<Arc<[u8]>>| match outcome {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        };
        self.guard("readlink", |this| match this.tree.readlink_now(ino.0) {
            Some(known) => answer(reply, known),
            None => {
                let tree = Arc::clone(&this.tree);
                this.spawn(
                    "readlink",
                    DEADLINE,
                    async move { tree.readlink(ino.0).await },
                    move |outcome| {
                        answer(reply, outcome);
                    },
                );
            }
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let owner = Owner {
            uid: req.uid(),
            gid: req.gid(),
        };
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        let operation = async move { tree.mknod(parent.0, &name, mode, owner).await };
        self.guard("mknod", |this| {
            this.make("mknod", req.unique().0, operation, reply)
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let owner = Owner {
            uid: req.uid(),
            gid: req.gid(),
        };
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        let operation = async move { tree.mkdir(parent.0, &name, mode, owner).await };
        self.guard("mkdir", |this| {
            this.make("mkdir", req.unique().0, operation, reply)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        let operation = async move { tree.unlink(parent.0, &name).await };
        self.guard("unlink", |this| {
            this.once("unlink", req.unique().0, operation, empty(reply))
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        let operation = async move { tree.rmdir(parent.0, &name).await };
        self.guard("rmdir", |this| {
            this.once("rmdir", req.unique().0, operation, empty(reply))
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let owner = Owner {
            uid: req.uid(),
            gid: req.gid(),
        };
        let (tree, name) = (Arc::clone(&self.tree), link_name.to_owned());
        let target = target.as_os_str().as_bytes().to_vec();
        let operation = async move { tree.symlink(parent.0, &name, &target, owner).await };
        self.guard("symlink", |this| {
            this.make("symlink", req.unique().0, operation, reply)
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = if flags.is_empty() {
            Replace::Yes
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Replace::No
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Replace::Exchange
        } else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let (tree, name, newname) = (Arc::clone(&self.tree), name.to_owned(), newname.to_owned());
        let operation = async move { tree.rename(parent.0, &name, newparent.0, &newname, replace).await };
        self.guard("rename", |this| {
            this.once("rename", req.unique().0, operation, empty(reply))
        });
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        // link(2): "The filesystem does not support the creation of hard links".
        reply.error(fuser::Errno::EPERM);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (tree, late, uid) = (Arc::clone(&self.tree), Arc::clone(&self.tree), req.uid());
        self.guard("open", |this| {
            this.spawn_or_undo(
                "open",
                DEADLINE,
                async move { tree.open(ino.0, flags.0, uid).await },
                |outcome| match outcome {
                    Ok(opened) => reply.opened(FileHandle(opened.fh), open_flags(opened)),
                    Err(e) => reply.error(errno(e)),
                },
                move |opened| close(late, opened.fh),
            );
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let owner = Owner {
            uid: req.uid(),
            gid: req.gid(),
        };
        let unique = req.unique().0;
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        self.guard("create", |this| {
            let (journal, late) = (Arc::clone(&tree), Arc::clone(&tree));
            let operation = async move { tree.create(parent.0, &name, mode, flags, owner).await };
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
            this.spawn_or_undo("create", DEADLINE, operation, reply, undo);
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.with_handle("read", fh, reply, ReplyData::error, |this, handle, reply| {
            if let Some(known) = this.tree.read_now(&handle, offset, size as usize) {
                return reply_data(reply, Ok(known));
            }
            let tree = Arc::clone(&this.tree);
            this.spawn(
                "read",
                DEADLINE,
                async move { tree.read(&handle, offset, size as usize).await },
                |outcome| reply_data(reply, outcome),
            );
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.with_handle("write", fh, reply, ReplyWrite::error, |this, handle, reply| {
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            // Pages that were stored to through a mapping are written back where they are.
            let appends =
                flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
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
            if let Some(done) = this.tree.write_now(&handle, at, data, kill) {
                return answer(done);
            }
            // Never in the loop thread: what it would not read meanwhile are the reads and closes that make
            // room. There are as many copies as programs that write at the same time, and the budget knows of
            // them.
            let charge = this.tree.budget().charge_waiting(data.len());
            let (tree, data) = (Arc::clone(&this.tree), data.to_vec());
            this.spawn(
                "write",
                LONG_DEADLINE,
                async move {
                    let _waiting = charge;
                    tree.write(&handle, at, &data, kill).await
                },
                answer,
            );
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.tree.config().read_only {
            // Answered once, it ends FLUSH for the whole connection: closing a file then never waits for a
            // dead server.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let tree = Arc::clone(&self.tree);
        self.guard("flush", |this| {
            this.spawn(
                "flush",
                LONG_DEADLINE,
                async move { tree.flush(fh.0).await },
                empty(reply),
            );
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let tree = Arc::clone(&self.tree);
        self.guard("release", |this| {
            this.spawn(
                "release",
                LONG_DEADLINE,
                async move { tree.release(fh.0).await },
                empty(reply),
            );
        });
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let tree = Arc::clone(&self.tree);
        self.guard("fsync", |this| {
            this.spawn(
                "fsync",
                LONG_DEADLINE,
                async move { tree.fsync(fh.0).await },
                empty(reply),
            );
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.guard("opendir", |this| match this.tree.opendir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = Arc::clone(&self.tree);
        self.guard("readdir", |this| {
            this.spawn(
                "readdir",
                DEADLINE,
                async move { tree.readdir(fh.0, offset).await },
                |outcome| match outcome {
                    Ok(listed) => {
                        fill(&listed, &mut reply);
                        reply.ok();
                    }
                    Err(e) => reply.error(errno(e)),
                },
            );
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (tree, table) = (Arc::clone(&self.tree), Arc::clone(&self.tree));
        self.guard("readdirplus", |this| {
            this.spawn(
                "readdirplus",
                DEADLINE,
                async move { tree.readdir(fh.0, offset).await },
                move |outcome| match outcome {
                    Ok(listed) => {
                        fill_plus(&table, ino.0, &listed, &mut reply);
                        reply.ok();
                    }
                    Err(e) => reply.error(errno(e)),
                },
            );
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.guard("releasedir", |this| this.tree.releasedir(fh.0));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Names are in the service when the call that made them returns; those of files come with the file's
        // own fsync or close.
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // A container has no size. A pebibyte, all of it free, is within what programs can calculate with.
        const BLOCK: u32 = 4096;
        const BLOCKS: u64 = (1 << 50) / BLOCK as u64;
        const FILES: u64 = 1 << 40;
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, FILES, FILES, BLOCK, 255, BLOCK);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (tree, name, value) = (Arc::clone(&self.tree), name.to_owned(), value.to_vec());
        self.guard("setxattr", |this| {
            let operation = async move { tree.setxattr(ino.0, &name, &value, flags).await };
            this.spawn("setxattr", DEADLINE, operation, empty(reply));
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guard("getxattr", |this| match this.tree.getxattr_now(ino.0, name) {
            Some(known) => reply_xattr(reply, size, known),
            None => {
                let (tree, name): (_, OsString) = (Arc::clone(&this.tree), name.to_owned());
                let operation = async move { tree.getxattr(ino.0, &name).await };
                this.spawn("getxattr", DEADLINE, operation, move |outcome| {
                    reply_xattr(reply, size, outcome)
                });
            }
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let tree = Arc::clone(&self.tree);
        self.guard("listxattr", |this| {
            let operation = async move { tree.listxattr(ino.0).await };
            this.spawn("listxattr", DEADLINE, operation, move |outcome| {
                reply_xattr(reply, size, outcome)
            });
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (tree, name) = (Arc::clone(&self.tree), name.to_owned());
        self.guard("removexattr", |this| {
            this.spawn(
                "removexattr",
                DEADLINE,
                async move { tree.removexattr(ino.0, &name).await },
                empty(reply),
            );
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let tree = Arc::clone(&self.tree);
        self.guard("fallocate", |this| {
            let operation = async move { tree.fallocate(fh.0, offset, length, mode).await };
            this.spawn("fallocate", LONG_DEADLINE, operation, empty(reply));
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(fuser::Errno::ENXIO);
        };
        let tree = Arc::clone(&self.tree);
        self.guard("lseek", |this| {
            this.spawn(
                "lseek",
                DEADLINE,
                async move { tree.lseek(fh.0, offset, hole).await },
                |outcome| match outcome.map(i64::try_from) {
                    Ok(Ok(offset)) => reply.offset(offset),
                    Ok(Err(_)) => reply.error(fuser::Errno::EOVERFLOW),
                    Err(e) => reply.error(errno(e)),
                },
            );
        });
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let tree = Arc::clone(&self.tree);
        // The reply holds 32 bits; programs go on from what was copied.
        let len = len.min(1 << 30);
        self.guard("copy_file_range", |this| {
            let operation = async move {
                tree.copy_range(fh_in.0, offset_in, fh_out.0, offset_out, len)
                    .await
            };
            this.spawn(
                "copy_file_range",
                LONG_DEADLINE,
                operation,
                |outcome| match outcome {
                    Ok(copied) => reply.written(copied as u32),
                    Err(e) => reply.error(errno(e)),
                },
            );
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then answers "ready" itself, as for every regular file, and does not ask again.
        reply.error(fuser::Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests;
