//! The session of a mount: what the kernel is told at INIT, and how it is told to forget.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{Config, INodeNo, InitFlags, KernelConfig, Notifier, Session, SessionACL};
use tokio::runtime::Handle as Runtime;
use tokio_util::task::TaskTracker;

use super::dispatch::Adapter;
use super::mount::MAX_REQUEST;
use super::silence::Silence;
use crate::tree::Tree;

/// Requests in the background that the kernel keeps under way (read-ahead, asynchronous direct I/O,
/// releases).
const MAX_BACKGROUND: u16 = 256;
/// Loop threads: enough for hits, and a second one for when the first copies.
const LOOP_THREADS: usize = 2;

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
        silence: Silence::default(),
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
    tree.on_drop_pages(Arc::new(move |id, offset, len| {
        let range = (i64::try_from(offset), i64::try_from(len));
        let (Ok(offset), Ok(len)) = range else { return };
        if let Err(error) = notifier.inval_inode(INodeNo(id), offset, len) {
            // It has forgotten the file already.
            tracing::trace!(%error, id, "the kernel did not drop pages");
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

/// What the kernel and this process agree on.
pub(super) fn negotiate(config: &mut KernelConfig) {
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
}
